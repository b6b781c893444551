package envoy

import (
	"maps"
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/types/known/structpb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/zone/topology"
	"github.com/meridian-mesh/meridian/zone/xds"
)

// ZoneProxy is an ingress or an egress: a proxy of the zone, which serves all its meshes.
type ZoneProxy struct {
	// Zone is the zone that it belongs to.
	Zone, Name string
	// Address and Port are where it takes connections.
	Address string
	Port    uint32
	// AdminAddress and AdminPort are where Envoy's own administration listens; port 0: it has none.
	AdminAddress string
	AdminPort    uint32
}

// zonal makes the configuration of an ingress or an egress: one listener, on which the server name of a connection says where it
// goes.
type zonal struct {
	draft
	proxy    *ZoneProxy
	chains   map[string]*listenerv3.FilterChain // by server name
	clusters map[string]*clusterv3.Cluster
}

func newZonal(p *ZoneProxy) *zonal {
	return &zonal{
		draft: newDraft(), proxy: p, chains: make(map[string]*listenerv3.FilterChain), clusters: make(map[string]*clusterv3.Cluster),
	}
}

// serve adds the listener, with what the chains lead to, and makes all final.
func (z *zonal) serve(from origin, admin *Admin) (*Output, error) {
	name := inboundListenerName(z.proxy.Address, z.proxy.Port)
	l := &listenerv3.Listener{
		Name: name, Address: socketAddress(z.proxy.Address, z.proxy.Port), TrafficDirection: corev3.TrafficDirection_INBOUND,
		EnableReusePort: boolean(false), ListenerFilters: []*listenerv3.ListenerFilter{z.p.inspectTLS()},
	}
	for _, chain := range sorted(z.chains) {
		l.FilterChains = append(l.FilterChains, chain)
	}
	if len(l.GetFilterChains()) == 0 {
		// A listener without any is refused. This one closes all connections.
		l.FilterChains = []*listenerv3.FilterChain{{}}
	}
	z.add(from, xds.Listener, name, l)
	for name, c := range sorted(z.clusters) {
		z.add(from, xds.Cluster, name, c)
	}
	z.adminListener(z.proxy.AdminAddress, z.proxy.AdminPort, z.proxy.Address, admin)
	return z.finish()
}

// passOn takes the connections for parts of a service to the endpoints that ref says. They stay encrypted: whom the client talks
// to is behind the next proxy.
func (z *zonal) passOn(ref EndpointRef, parts []map[string]string) {
	c := z.clusters[ref.Cluster]
	if c == nil {
		c = edsCluster(ref.Cluster)
		z.clusters[ref.Cluster] = c
	}
	for _, tags := range parts {
		tags = withTag(tags, sniMeshTag, ref.Mesh)
		z.chain(SNI(ref.Mesh, ref.Service, tags), &listenerv3.FilterChain{Filters: []*listenerv3.Filter{
			z.p.tcpProxy(&tcpproxyv3.TcpProxy{
				StatPrefix: statName(ref.Cluster), ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: ref.Cluster},
				MetadataMatch: subset(tags), IdleTimeout: seconds(inboundIdleSeconds),
			}),
		}})
		selectBy(c, tags)
	}
	z.out.Endpoints = append(z.out.Endpoints, ref)
}

// chain adds what becomes of the connections with a server name. The first one stays.
func (z *zonal) chain(sni string, chain *listenerv3.FilterChain) {
	if z.chains[sni] == nil {
		chain.FilterChainMatch = &listenerv3.FilterChainMatch{TransportProtocol: "tls", ServerNames: []string{sni}}
		z.chains[sni] = chain
	}
}

// subset is how a connection asks for the endpoints of a cluster that carry tags.
func subset(tags map[string]string) *corev3.Metadata {
	fields := make(map[string]*structpb.Value, len(tags))
	for k, v := range tags {
		fields[k] = structpb.NewStringValue(v)
	}
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"envoy.lb": {Fields: fields}}}
}

// selectBy lets connections ask a cluster for endpoints by the keys of tags. Where none carries what is asked for, none is taken.
func selectBy(c *clusterv3.Cluster, tags map[string]string) {
	if c.LbSubsetConfig == nil {
		c.LbSubsetConfig = &clusterv3.Cluster_LbSubsetConfig{FallbackPolicy: clusterv3.Cluster_LbSubsetConfig_ANY_ENDPOINT}
	}
	keys := slices.Sorted(maps.Keys(tags))
	i, have := slices.BinarySearchFunc(c.LbSubsetConfig.SubsetSelectors, keys,
		func(s *clusterv3.Cluster_LbSubsetConfig_LbSubsetSelector, keys []string) int {
			return slices.Compare(s.GetKeys(), keys)
		})
	if !have {
		c.LbSubsetConfig.SubsetSelectors = slices.Insert(c.LbSubsetConfig.SubsetSelectors, i, &clusterv3.Cluster_LbSubsetConfig_LbSubsetSelector{
			Keys: keys, FallbackPolicy: clusterv3.Cluster_LbSubsetConfig_LbSubsetSelector_NO_FALLBACK,
		})
	}
}

// destinations are the parts of services that the routes of a mesh lead to. What clients ask for across zones is one of them, or
// a whole service: a proxy between zones knows the routes, and not the outbounds.
type destinations struct {
	of  map[string]map[string]map[string]string // tags without the service, by their text, by service
	any map[string]map[string]string            // of whatever service the client means
}

func destinationsOf(mesh *topology.Mesh) destinations {
	d := destinations{of: make(map[string]map[string]map[string]string), any: make(map[string]map[string]string)}
	for _, p := range mesh.Policies.Of(policy.TrafficRoute) {
		conf := specOf[*meshv1.TrafficRoute](p).GetConf()
		d.split(mesh, conf.GetDestination(), conf.GetSplit())
		for _, h := range conf.GetHttp() {
			d.split(mesh, h.GetDestination(), h.GetSplit())
		}
	}
	for _, p := range mesh.Policies.Of(policy.MeshGatewayRoute) {
		conf := specOf[*meshv1.MeshGatewayRoute](p).GetConf()
		for _, rule := range conf.GetHttp().GetRules() {
			for _, b := range rule.GetBackends() {
				d.add(mesh, b.GetDestination())
			}
			for _, f := range rule.GetFilters() {
				d.add(mesh, f.GetMirror().GetBackend().GetDestination())
			}
		}
		for _, rule := range conf.GetTcp().GetRules() {
			for _, b := range rule.GetBackends() {
				d.add(mesh, b.GetDestination())
			}
		}
	}
	return d
}

func (d *destinations) split(mesh *topology.Mesh, destination map[string]string, split []*meshv1.TrafficRoute_Split) {
	d.add(mesh, destination)
	for _, s := range split {
		d.add(mesh, s.GetDestination())
	}
}

// add notes a destination. A tag that is * is that of the outbound, which most do not have.
func (d *destinations) add(mesh *topology.Mesh, destination map[string]string) {
	destination = spelledNow(destination)
	if m := destination[meshTag]; m != "" && m != mesh.Name {
		return
	}
	tags := without(destination, serviceTag, meshTag)
	maps.DeleteFunc(tags, func(_, v string) bool { return v == "*" })
	if len(tags) == 0 {
		return
	}
	service := destination[serviceTag]
	if service == "*" || service == "" {
		d.any[tagString(tags)] = tags
		return
	}
	if d.of[service] == nil {
		d.of[service] = make(map[string]map[string]string)
	}
	d.of[service][tagString(tags)] = tags
}

// to are the parts of a service, of which the whole is one.
func (d *destinations) to(service string) []map[string]string {
	all := maps.Clone(d.any)
	maps.Copy(all, d.of[service])
	out := []map[string]string{{}}
	for _, tags := range sorted(all) {
		out = append(out, tags)
	}
	return out
}
