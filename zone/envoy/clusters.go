package envoy

import (
	"cmp"
	"net/netip"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	upstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/anypb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

// Sizes of the ring of the load balancer of that name: the least that Envoy makes unasked, and the most that it takes.
const (
	defaultRingSize = 1024
	maxRingSize     = 8 << 20
)

const httpOptionsKey = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

// defaultConnectSeconds is the connect timeout of clusters for which no Timeout says anything.
const defaultConnectSeconds = 10

// staticCluster is a cluster with the one address.
func staticCluster(name string, address *corev3.Address) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name: name, AltStatName: altStatName(name), ConnectTimeout: seconds(defaultConnectSeconds),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		LoadAssignment:       oneEndpoint(name, address),
	}
}

func oneEndpoint(cluster string, address *corev3.Address) *endpointv3.ClusterLoadAssignment {
	return &endpointv3.ClusterLoadAssignment{
		ClusterName: cluster,
		Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address}},
		}}}},
	}
}

// altStatName is the name of a cluster in metrics, where it cannot be its own.
func altStatName(name string) string {
	if s := statName(name); s != name {
		return s
	}
	return ""
}

// edsCluster is a cluster whose endpoints come over ADS.
func edsCluster(name string) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name: name, AltStatName: altStatName(name), ConnectTimeout: seconds(defaultConnectSeconds),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: viaADS()},
	}
}

// originalDstCluster connects to the address that the client meant.
func originalDstCluster(name string) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name: name, AltStatName: altStatName(name), ConnectTimeout: seconds(defaultConnectSeconds),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST},
		LbPolicy:             clusterv3.Cluster_CLUSTER_PROVIDED,
	}
}

// version is the version of HTTP that a cluster's connections speak.
type version uint8

const (
	version1 version = 1
	version2 version = 2
)

// httpVersion is the version that a workload speaks.
func httpVersion(p protocol) version {
	if p == http2 || p == grpc {
		return version2
	}
	return version1
}

func (p *packer) httpOptions(v version, common *corev3.HttpProtocolOptions) map[string]*anypb.Any {
	explicit := &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig{}
	if v == version2 {
		explicit.ProtocolConfig = &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
			Http2ProtocolOptions: &corev3.Http2ProtocolOptions{},
		}
	} else {
		explicit.ProtocolConfig = &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{
			HttpProtocolOptions: &corev3.Http1ProtocolOptions{},
		}
	}
	return map[string]*anypb.Any{httpOptionsKey: p.pack(&upstreamv3.HttpProtocolOptions{
		CommonHttpProtocolOptions: common,
		UpstreamProtocolOptions:   &upstreamv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: explicit},
	})}
}

// balance sets how a cluster chooses among its endpoints.
func balance(c *clusterv3.Cluster, lb *meshv1.TrafficRoute_LoadBalancer) {
	switch t := lb.GetLbType().(type) {
	case *meshv1.TrafficRoute_LoadBalancer_LeastRequest_:
		c.LbPolicy = clusterv3.Cluster_LEAST_REQUEST
		if t.LeastRequest.GetChoiceCount() == 1 { // of one there is no least
			c.LbPolicy = clusterv3.Cluster_RANDOM
		} else if n := t.LeastRequest.GetChoiceCount(); n > 0 {
			c.LbConfig = &clusterv3.Cluster_LeastRequestLbConfig_{
				LeastRequestLbConfig: &clusterv3.Cluster_LeastRequestLbConfig{ChoiceCount: u32(n)},
			}
		}
	case *meshv1.TrafficRoute_LoadBalancer_RingHash_:
		c.LbPolicy = clusterv3.Cluster_RING_HASH
		conf := &clusterv3.Cluster_RingHashLbConfig{}
		if t.RingHash.GetHashFunction() == "MURMUR_HASH_2" {
			conf.HashFunction = clusterv3.Cluster_RingHashLbConfig_MURMUR_HASH_2
		}
		least, most := t.RingHash.GetMinRingSize(), t.RingHash.GetMaxRingSize()
		if most > 0 { // a ring whose least size is more is refused, also where that is the default
			least = min(cmp.Or(least, defaultRingSize), most)
			conf.MaximumRingSize = u64(min(most, maxRingSize))
		}
		if least > 0 && least != defaultRingSize {
			conf.MinimumRingSize = u64(min(least, maxRingSize))
		}
		c.LbConfig = &clusterv3.Cluster_RingHashLbConfig_{RingHashLbConfig: conf}
	case *meshv1.TrafficRoute_LoadBalancer_Random_:
		c.LbPolicy = clusterv3.Cluster_RANDOM
	case *meshv1.TrafficRoute_LoadBalancer_Maglev_:
		c.LbPolicy = clusterv3.Cluster_MAGLEV
	}
}

// isIPv6 reports whether an address is one of IPv6; host names are not.
func isIPv6(address string) bool {
	ip, err := netip.ParseAddr(address)
	return err == nil && ip.Is6() && !ip.Is4In6()
}

func isIP(address string) bool {
	_, err := netip.ParseAddr(address)
	return err == nil
}

// loopSource is the address that connections to a workload come from where traffic is redirected.
func loopSource(workload string) string {
	if isIPv6(workload) {
		return "::6"
	}
	return "127.0.0.6"
}
