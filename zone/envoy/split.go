package envoy

import (
	"math"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// weighted is a cluster and its share of the traffic.
type weighted struct {
	cluster *cluster
	weight  uint64
}

// shares are the weights of clusters as proxies take them: with a sum that is no larger than the largest uint32. Where it would be, all
// are made smaller, and none is made 0.
func shares(to []weighted) []uint32 {
	var sum uint64
	for _, w := range to {
		sum += w.weight
	}
	by := sum/(math.MaxUint32-uint64(len(to))) + 1
	if sum <= math.MaxUint32 {
		by = 1
	}
	out := make([]uint32, len(to))
	for i, w := range to {
		if w.weight > 0 {
			out[i] = uint32(max(w.weight/by, 1)) //nolint:gosec // see above
		}
	}
	return out
}

// splitRequests shares requests among clusters. settings are those of filters for the requests to a cluster, by its place.
func splitRequests(to []weighted, settings func(i int) map[string]*anypb.Any) *routev3.RouteAction_WeightedClusters {
	split := &routev3.WeightedCluster{}
	var total uint32
	for i, weight := range shares(to) {
		total += weight
		split.Clusters = append(split.Clusters, &routev3.WeightedCluster_ClusterWeight{
			Name: to[i].cluster.name, Weight: u32(weight), TypedPerFilterConfig: settings(i),
		})
	}
	// Envoy before 1.24 takes a sum other than 100 only when it is said.
	split.TotalWeight = u32(total) //nolint:staticcheck // see above
	return &routev3.RouteAction_WeightedClusters{WeightedClusters: split}
}

// splitConnections leads the connections of m to one cluster, or shares them among several.
func splitConnections(m *tcpproxyv3.TcpProxy, to []weighted) {
	if len(to) == 1 {
		m.ClusterSpecifier = &tcpproxyv3.TcpProxy_Cluster{Cluster: to[0].cluster.name}
		return
	}
	split := &tcpproxyv3.TcpProxy_WeightedCluster{}
	for i, weight := range shares(to) {
		split.Clusters = append(split.Clusters, &tcpproxyv3.TcpProxy_WeightedCluster_ClusterWeight{Name: to[i].cluster.name, Weight: weight})
	}
	m.ClusterSpecifier = &tcpproxyv3.TcpProxy_WeightedClusters{WeightedClusters: split}
}
