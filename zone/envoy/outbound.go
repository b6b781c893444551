package envoy

import (
	"fmt"
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/zone/topology"
	"github.com/meridian-mesh/meridian/zone/xds"
)

// outbound is where a workload finds a service.
type outbound struct {
	address string
	port    uint32
	tags    map[string]string
	service string

	policies policy.Outbound
	timeouts timeouts
	protocol protocol
	rules    []rule     // for requests, in the order in which they are tried
	rest     []weighted // of what no rule is for
}

// rule is one rule of a TrafficRoute for requests.
type rule struct {
	match  *meshv1.TrafficRoute_Http_Match
	modify *meshv1.TrafficRoute_Http_Modify
	to     []weighted
}

// cluster is a service, or a part of one, as the outbounds of a proxy lead to it.
type cluster struct {
	name     string
	service  string
	tags     map[string]string // of the part, without the service
	balancer *meshv1.TrafficRoute_LoadBalancer
	timeouts timeouts
	own      bool // settings are those of the service's own outbound

	endpoints []topology.Endpoint // of an external service: those that the proxy may know of
	protocol  protocol            // of the endpoints
	known     bool                // there are endpoints, or there were
	external  bool                // endpoints are external services, which are connected to directly
	viaEgress bool                // endpoints are external services behind an egress
}

// outbounds plans all outbounds first, for they share clusters, and then makes them.
func (g *generator) outbounds() {
	for _, o := range g.outboundList {
		g.planOutbound(o)
	}
	for _, c := range sorted(g.clusters) {
		policies := g.matched.Service(c.service)
		g.addCluster(originOutbound, c, policies.CircuitBreaker, policies.HealthCheck)
	}
	for _, o := range g.outboundList {
		name := outboundListenerName(o.address, o.port)
		g.add(originOutbound, xds.Listener, name, g.outboundListener(name, o))
		if g.p.err != nil {
			g.p.err = fmt.Errorf("outbound %s to %s: %w", hostPort(o.address, o.port), o.service, g.p.err)
			return
		}
	}
}

// planOutbound works out where the route of an outbound leads.
func (g *generator) planOutbound(o *outbound) {
	route := specOf[*meshv1.TrafficRoute](o.policies.TrafficRoute).GetConf()
	o.timeouts = timeoutsOf(specOf[*meshv1.Timeout](o.policies.Timeout), unknown)
	if route == nil {
		return
	}
	for _, h := range route.GetHttp() {
		to := g.destinations(o, route, h.GetSplit(), h.GetDestination())
		if len(to) == 0 {
			continue
		}
		o.rules = append(o.rules, rule{match: h.GetMatch(), modify: h.GetModify(), to: to})
	}
	o.rest = g.destinations(o, route, route.GetSplit(), route.GetDestination())
	o.protocol = o.infer()
	if o.protocol == grpc {
		o.timeouts = timeoutsOf(specOf[*meshv1.Timeout](o.policies.Timeout), grpc)
		for _, c := range o.clusters() {
			if c.own || c.service == o.service {
				c.timeouts = o.timeouts
			}
		}
	}
}

// clusters are all that an outbound leads to, each once, in order of first use.
func (o *outbound) clusters() []*cluster {
	var out []*cluster
	add := func(to []weighted) {
		for _, w := range to {
			if !slices.Contains(out, w.cluster) {
				out = append(out, w.cluster)
			}
		}
	}
	for _, r := range o.rules {
		add(r.to)
	}
	add(o.rest)
	return out
}

// infer is the protocol that all endpoints have in common.
func (o *outbound) infer() protocol {
	found, p := false, unknown
	for _, c := range o.clusters() {
		switch {
		case !c.known:
		case !found:
			found, p = true, c.protocol
		default:
			p = common(p, c.protocol)
		}
	}
	return p
}

func (g *generator) destinations(o *outbound, route *meshv1.TrafficRoute_Conf, split []*meshv1.TrafficRoute_Split,
	destination map[string]string,
) []weighted {
	var out []weighted
	for _, d := range policy.Destinations(split, destination, o.tags) {
		c := g.cluster(o, route, d.Tags)
		if c == nil {
			continue
		}
		if i := slices.IndexFunc(out, func(w weighted) bool { return w.cluster == c }); i >= 0 {
			out[i].weight += uint64(d.Weight)
			continue
		}
		out = append(out, weighted{c, uint64(d.Weight)})
	}
	return out
}

// cluster returns the cluster of a destination. Of several outbounds that lead to one cluster, its settings are those of the
// outbound for the very service, or else of the first.
func (g *generator) cluster(o *outbound, route *meshv1.TrafficRoute_Conf, tags map[string]string) *cluster {
	service := tags[serviceTag]
	if service == "" {
		g.warn("TrafficRoute %q leads from outbound %s to no service", o.policies.TrafficRoute.Name, o.service)
		return nil
	}
	if m := tags[meshTag]; m != "" && m != g.mesh.Name {
		g.warn("outbound %s: services of other meshes cannot be reached", o.service)
		return nil
	}
	rest := without(tags, serviceTag, meshTag)
	name := service
	if len(rest) > 0 {
		name = g.subsetName(service, rest)
	}
	c := g.clusters[name]
	if c == nil {
		c = &cluster{name: name, service: service, tags: rest, balancer: route.GetLoadBalancer(), timeouts: o.timeouts}
		g.resolveEndpoints(c)
		g.clusters[name] = c
	}
	if own := service == o.service; own && !c.own {
		c.own, c.balancer, c.timeouts = true, route.GetLoadBalancer(), o.timeouts
	}
	return c
}

// subsetName numbers the parts of services in the order in which the proxy meets them.
func (g *generator) subsetName(service string, tags map[string]string) string {
	key := service + "\x00" + tagString(tags)
	name, ok := g.subsets[key]
	if !ok {
		name = subsetClusterName(service, len(g.subsets))
		g.subsets[key] = name
	}
	return name
}

// resolveEndpoints finds what the proxy may know of the endpoints.
func (g *generator) resolveEndpoints(c *cluster) {
	g.services[c.service] = true
	s := g.mesh.Services[c.service]
	if s == nil {
		return
	}
	c.protocol = protocolOf(s.Protocol)
	c.known = len(s.Endpoints) > 0 || c.protocol != unknown
	c.external = s.External() && !g.mesh.Egress
	c.viaEgress = s.External() && g.mesh.Egress
	if !c.external {
		// Endpoints themselves come apart from the cluster. The protocol is that of the whole service, so that a part which is
		// scaled to nothing does not change it.
		return
	}
	c.protocol, c.known = unknown, false
	for _, e := range s.Endpoints {
		if carries(e.Tags, c.tags) && g.matched.MayReach(e.External.GetTags()) {
			if p := protocolOf(e.Tags[protocolTag]); len(c.endpoints) == 0 {
				c.protocol = p
			} else {
				c.protocol = common(c.protocol, p)
			}
			c.endpoints, c.known = append(c.endpoints, e), true
		}
	}
	// An external service that the proxy has no permission for is a service without endpoints.
	c.external = len(c.endpoints) > 0
}

// addCluster makes the cluster of a service, or of a part of one, with the policies for the connections to it.
func (g *generator) addCluster(from origin, c *cluster, circuitBreaker, healthCheck *policy.Policy) {
	breaker := specOf[*meshv1.CircuitBreaker](circuitBreaker)
	check := specOf[*meshv1.HealthCheck](healthCheck)
	protocol := c.protocol

	var m *clusterv3.Cluster
	if c.external {
		m = g.externalCluster(g.mesh, g.ipv6, c)
	} else {
		m = g.serviceCluster(c)
	}
	m.ConnectTimeout = c.timeouts.connect
	balance(m, c.balancer)
	// Policies reach the services that only rules for requests lead to as well, where Kuma passes these over.
	m.CircuitBreakers, m.OutlierDetection = circuitBreakers(breaker), outlierDetection(breaker)
	m.HealthChecks, m.CommonLbConfig = healthChecks(check, protocol), panicLB(check)
	if m.OutlierDetection != nil {
		g.p.check(label(circuitBreaker), m.OutlierDetection)
	}
	for _, hc := range m.HealthChecks {
		g.p.check(label(healthCheck), hc)
	}
	g.add(from, xds.Cluster, c.name, m)
}

// serviceCluster leads to other proxies. Between proxies all requests go over HTTP/2, whatever workloads speak.
func (g *generator) serviceCluster(c *cluster) *clusterv3.Cluster {
	m := edsCluster(c.name)
	m.TypedExtensionProtocolOptions = g.p.httpOptions(version2, c.timeouts.clusterOptions())
	g.out.Endpoints = append(g.out.Endpoints, EndpointRef{
		Cluster: c.name, Mesh: g.mesh.Name, Service: c.service, Tags: c.tags,
	})
	if g.speaksTLS(c) {
		server := c.service
		if c.viaEgress {
			server = egressService
		}
		g.useMeshSecrets(g.mesh.Name)
		m.TransportSocket = g.p.clientTLS(g.mesh.Name, server, SNI(g.mesh.Name, c.service, c.tags), g.mesh.Services[c.service].Proxyless())
	}
	return m
}

// speaksTLS: in a permissive mesh only to services that are ready for it, and to the egress, which goes by the name in the
// handshake.
func (g *generator) speaksTLS(c *cluster) bool {
	switch g.mtls {
	case mtlsStrict:
		return true
	case mtlsPermissive:
		s := g.mesh.Services[c.service]
		return s != nil && s.TLSReady && !s.Proxyless() || c.viaEgress
	default:
		return false
	}
}

func (g *generator) outboundListener(name string, o *outbound) *listenerv3.Listener {
	l := &listenerv3.Listener{
		Name: name, Address: socketAddress(o.address, o.port), TrafficDirection: corev3.TrafficDirection_OUTBOUND,
		Metadata: listenerTags(without(o.tags, meshTag)),
	}
	if g.transparent() {
		l.BindToPort = boolean(false)
	}
	chain := &listenerv3.FilterChain{}
	switch p := o.protocol; {
	case len(o.rules) == 0 && len(o.rest) == 0:
		// No route: connections are closed.
	case p.overHTTP():
		chain.Filters = []*listenerv3.Filter{g.p.hcm(g.outboundHTTP(o))}
	case len(o.rest) == 0:
		g.warn("outbound %s: its route has rules for requests only, but its protocol is %s", o.service, cmpOr(p, tcp))
	case p == kafka:
		chain.Filters = []*listenerv3.Filter{g.p.kafkaBroker(statName(o.service)), g.p.tcpProxy(g.outboundTCP(o))}
	default:
		chain.Filters = []*listenerv3.Filter{g.p.tcpProxy(g.outboundTCP(o))}
	}
	l.FilterChains = []*listenerv3.FilterChain{chain}
	return l
}

func (g *generator) outboundTCP(o *outbound) *tcpproxyv3.TcpProxy {
	policies := g.matched.Service(o.service)
	m := &tcpproxyv3.TcpProxy{
		StatPrefix: statName(o.service), IdleTimeout: o.timeouts.tcpIdle,
		AccessLog: g.outboundLogs(o.service, o.tags, policies.TrafficLog, false),
	}
	if n := specOf[*meshv1.Retry](policies.Retry).GetConf().GetTcp().GetMaxConnectAttempts(); n > 0 {
		m.MaxConnectAttempts = u32(n)
	}
	splitConnections(m, o.rest)
	return m
}

func (g *generator) outboundHTTP(o *outbound) *hcmv3.HttpConnectionManager {
	policies := g.matched.Service(o.service)
	host := &routev3.VirtualHost{Name: o.service, Domains: []string{"*"}, Routes: g.outboundRoutes(o)}
	if host.RetryPolicy = retryPolicy(specOf[*meshv1.Retry](policies.Retry), o.protocol); host.RetryPolicy != nil {
		g.p.check(label(policies.Retry), host.RetryPolicy)
	}
	var filters []*hcmv3.HttpFilter
	if o.protocol == grpc {
		filters = append(filters, g.p.grpcStats())
	}
	if g.limitsExternal(o) {
		filters = append(filters, g.p.rateLimitFilter())
	}
	filters = append(filters, g.p.router())
	m := &hcmv3.HttpConnectionManager{
		StatPrefix:        statName(o.service),
		StreamIdleTimeout: o.timeouts.streamIdle,
		HttpFilters:       filters,
		AccessLog:         g.outboundLogs(o.service, o.tags, policies.TrafficLog, true),
		Tracing:           g.tracing(corev3.TrafficDirection_OUTBOUND, o.service),
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
			Name: "outbound:" + o.service, ValidateClusters: boolean(false),
			RequestHeadersToAdd: []*corev3.HeaderValueOption{header(TagsHeader, g.tags.header(), false)},
			VirtualHosts:        []*routev3.VirtualHost{host},
		}},
	}
	if o.timeouts.httpIdle != nil {
		m.CommonHttpProtocolOptions = &corev3.HttpProtocolOptions{IdleTimeout: o.timeouts.httpIdle}
	}
	return m
}
