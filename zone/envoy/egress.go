package envoy

import (
	"fmt"
	"net"
	"slices"
	"strconv"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/zone/topology"
)

// Egress makes the configuration of the proxy through which traffic leaves the zone, in meshes that send it there.
//
// What is for services of other zones stays encrypted and goes on to their ingresses, also what is for an external service that
// belongs to another zone: the egress there is the one that ends the encryption. What is for external services that are reached
// from here ends at the egress, which proves to be the service zone-egress of the mesh, asks the policies of the external service,
// and connects. Each mesh has one pair of secrets, whatever the number of its services. admin may be nil.
func Egress(meshes []*topology.Mesh, p *ZoneProxy, admin *Admin) (*Output, error) {
	z := newZonal(p)
	for _, mesh := range meshes {
		if !mesh.Egress {
			continue
		}
		if modeOf(mesh.Spec) == mtlsOff {
			z.warn("mesh %q sends its traffic through egresses and has no mutual TLS: nothing is passed on", mesh.Name)
			continue
		}
		d := destinationsOf(mesh)
		z.externals(mesh, &d)
		for service := range sorted(mesh.Remote) {
			z.remote(mesh.Name, service, d.to(service))
		}
	}
	out, err := z.serve(originEgress, admin)
	if err != nil {
		return nil, fmt.Errorf("configuration of zone egress %s: %w", p.Name, err)
	}
	return out, nil
}

// remote passes on what is for a service that other zones have, except for parts that are served from here: an external service
// of several zones.
func (z *zonal) remote(mesh, service string, parts []map[string]string) {
	parts = slices.DeleteFunc(parts, func(tags map[string]string) bool {
		return z.chains[SNI(mesh, service, tags)] != nil
	})
	name := egressCluster(mesh, service)
	if z.clusters[name] != nil {
		name += ":remote"
	}
	if len(parts) > 0 {
		z.passOn(EndpointRef{Cluster: name, Mesh: mesh, Service: service, At: AtEgress}, parts)
	}
}

func egressCluster(mesh, service string) string { return mesh + ":" + service }

// externals serves the external services of a mesh that are reached from this zone.
func (z *zonal) externals(mesh *topology.Mesh, d *destinations) {
	byService := make(map[string][]topology.Endpoint)
	for name, es := range sorted(mesh.ExternalServices) {
		tags := spelledNow(es.GetTags())
		if zone := tags[zoneTag]; zone != "" && zone != z.proxy.Zone || tags[serviceTag] == "" {
			continue
		}
		host, text, err := net.SplitHostPort(es.GetNetworking().GetAddress())
		port, portErr := strconv.ParseUint(text, 10, 16)
		if err != nil || portErr != nil {
			z.warn("ExternalService %q of mesh %q: its address is not a host and a port", name, mesh.Name)
			continue
		}
		byService[tags[serviceTag]] = append(byService[tags[serviceTag]], topology.Endpoint{
			Address: host, Port: uint32(port), Tags: tags, Weight: 1, Zone: tags[zoneTag], External: es, ExternalName: name,
		})
	}
	for service, endpoints := range sorted(byService) {
		if s := mesh.Services[service]; s != nil && !s.External() {
			// Clients expect the certificate of a workload.
			z.warn("ExternalService %q of mesh %q has the name of a service with workloads (%s): it is not reached through egresses",
				endpoints[0].ExternalName, mesh.Name, service)
			continue
		}
		z.external(mesh, service, endpoints, d.to(service))
	}
}

// external serves one external service. What cannot be made of it leaves out the service and nothing else: other meshes have no
// part in it.
func (z *zonal) external(mesh *topology.Mesh, service string, endpoints []topology.Endpoint, parts []map[string]string) {
	protocols := make([]string, len(endpoints))
	for i, e := range endpoints {
		protocols[i] = topology.Protocol(e.Tags)
	}
	c := &cluster{name: egressCluster(mesh.Name, service), service: service, protocol: protocol(topology.CommonProtocol(protocols...))}
	for _, e := range endpoints {
		e.Tags = withTag(e.Tags, sniMeshTag, mesh.Name)
		c.endpoints = append(c.endpoints, e)
	}
	out := z.externalCluster(mesh, isIPv6(z.proxy.Address), c)
	chains := make(map[string]*listenerv3.FilterChain)
	for _, tags := range parts {
		of := slices.DeleteFunc(slices.Clone(endpoints), func(e topology.Endpoint) bool { return !carries(e.Tags, tags) })
		if len(of) == 0 {
			continue
		}
		tags = withTag(tags, sniMeshTag, mesh.Name)
		chains[SNI(mesh.Name, service, tags)] = z.externalChain(mesh, c, of, tags)
		selectBy(out, tags)
	}
	if z.p.err != nil {
		z.warn("external service %s of mesh %q cannot be reached: %v", service, mesh.Name, z.p.err)
		z.p.err = nil
		return
	}
	z.clusters[c.name] = out
	for sni, chain := range sorted(chains) {
		z.chain(sni, chain)
	}
	z.useMeshSecrets(mesh.Name)
}

// externalChain ends the encryption of connections for a part of an external service. Where several external services make up the
// part, a client needs the permission of each, for it cannot choose among them.
func (z *zonal) externalChain(mesh *topology.Mesh, c *cluster, of []topology.Endpoint, tags map[string]string) *listenerv3.FilterChain {
	chain := &listenerv3.FilterChain{TransportSocket: z.p.serverTLS(mesh.Name)}
	var permissions []*policy.Policy
	var faults, limits []policy.Sourced
	for _, e := range of {
		policies := mesh.Policies.Inbound(e.Tags)
		faults, limits = union(faults, policies.FaultInjections), union(limits, policies.RateLimits)
		if slices.Contains(permissions, policies.TrafficPermission) {
			continue
		}
		permissions = append(permissions, policies.TrafficPermission)
		name := ""
		if policies.TrafficPermission != nil {
			name = policies.TrafficPermission.Name
		}
		rules := permissionRBAC(mesh.Name, name, specOf[*meshv1.TrafficPermission](policies.TrafficPermission))
		chain.Filters = append(chain.Filters, z.p.rbac(c.name, rules, nil))
	}
	if len(permissions) > 1 {
		z.warn("external service %s of mesh %q is several ExternalServices with different TrafficPermissions: clients need all of them",
			c.service, mesh.Name)
	}
	if c.protocol.overHTTP() {
		chain.Filters = append(chain.Filters, z.p.hcm(z.externalHTTP(c, faults, limits, tags)))
		return chain
	}
	for _, s := range slices.Concat(faults, limits) {
		z.warn("%s of mesh %q is for requests, and the protocol of external service %s is %s", label(s.Policy), mesh.Name, c.service, cmpOr(c.protocol, tcp))
	}
	if c.protocol == kafka {
		chain.Filters = append(chain.Filters, z.p.kafkaBroker(statName(c.name)))
	}
	chain.Filters = append(chain.Filters, z.p.tcpProxy(&tcpproxyv3.TcpProxy{
		StatPrefix: statName(c.name), ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: c.name},
		MetadataMatch: subset(tags), IdleTimeout: seconds(inboundIdleSeconds),
	}))
	return chain
}

// union appends the policies that are not there yet.
func union(to, more []policy.Sourced) []policy.Sourced {
	for _, s := range more {
		if !slices.ContainsFunc(to, func(t policy.Sourced) bool { return t.Policy == s.Policy }) {
			to = append(to, s)
		}
	}
	return to
}

// externalHTTP is for requests what an inbound does for its workload. The tags of clients and their certificates do not leave the
// mesh.
func (z *zonal) externalHTTP(c *cluster, faults, limits []policy.Sourced, tags map[string]string) *hcmv3.HttpConnectionManager {
	route := func(match *routev3.RouteMatch) *routev3.Route {
		return &routev3.Route{Match: match, Action: &routev3.Route_Route{Route: &routev3.RouteAction{
			ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: c.name}, MetadataMatch: subset(tags), Timeout: seconds(0),
			HostRewriteSpecifier: &routev3.RouteAction_AutoHostRewrite{AutoHostRewrite: boolean(true)},
		}}}
	}
	var filters []*hcmv3.HttpFilter
	if c.protocol == grpc {
		filters = append(filters, z.p.grpcStats())
	}
	for _, fault := range faults {
		filters = append(filters, z.fault(fault))
	}
	var routes []*routev3.Route
	if len(limits) > 0 {
		filters = append(filters, z.p.rateLimitFilter())
		routes = z.rateLimitRoutes(limits, route)
	}
	return &hcmv3.HttpConnectionManager{
		StatPrefix:                statName(c.name),
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{IdleTimeout: seconds(inboundIdleSeconds)},
		StreamIdleTimeout:         seconds(inboundStreamIdleSeconds),
		HttpFilters:               append(filters, z.p.router()),
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
			Name: "outbound:" + c.name, ValidateClusters: boolean(false),
			RequestHeadersToRemove: []string{TagsHeader},
			VirtualHosts: []*routev3.VirtualHost{{
				Name: c.service, Domains: []string{"*"}, Routes: append(routes, route(anyPath())),
			}},
		}},
	}
}
