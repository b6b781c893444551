package envoy

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	faultcommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	rbachttpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/meridian-mesh/meridian/api/dataplane"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/zone/topology"
	"github.com/meridian-mesh/meridian/zone/xds"
)

const (
	// certificateInstance is the name under which a gRPC program finds its certificate and the authorities of its mesh.
	certificateInstance = "mesh"

	originProxyless origin = "proxyless"
)

// Proxyless makes the configuration of a gRPC program that speaks xDS itself, as gRPC's own documents (A27, A28, A29, A31, A32,
// A33, A36, A41, A44, A50) say it is read.
//
// For each service there is a listener of that name, and of the name that it has in a transparent mesh; a program that has
// outbounds gets those services, any other all of its mesh. For each inbound there is a listener for the addresses that a server
// may bind its port on. What gRPC cannot do is named in Output.Warnings.
func Proxyless(mesh *topology.Mesh, p *Proxy) (*Output, error) {
	g := newGenerator(mesh, p, (*generator).grpcOutbounds)
	for _, o := range g.outboundList {
		g.planOutbound(o)
	}
	for _, c := range sorted(g.clusters) {
		g.grpcCluster(c)
	}
	for _, o := range g.outboundList {
		g.grpcClient(o)
	}
	for i, in := range g.dp.GetNetworking().GetInbound() {
		g.grpcServer(i, in)
	}
	if g.mtls != mtlsOff {
		g.useMeshSecrets(g.mesh.Name) // for the agent, which keeps them in files
	}
	out, err := g.finish()
	if err != nil {
		return nil, fmt.Errorf("configuration of gRPC program %s in mesh %s: %w", p.Name, mesh.Name, err)
	}
	return out, nil
}

// grpcOutbounds are the services that a program may ask for.
func (g *generator) grpcOutbounds() []*outbound {
	services := make(map[string]*outbound)
	add := func(tags map[string]string) {
		tags = spelledNow(tags)
		if service := tags[serviceTag]; service != "" && services[service] == nil {
			services[service] = &outbound{tags: tags, service: service}
		}
	}
	for _, o := range g.dp.GetNetworking().GetOutbound() {
		add(dataplane.OutboundTags(o))
	}
	if len(services) == 0 {
		for name := range g.mesh.Services {
			add(map[string]string{serviceTag: name})
		}
	}
	out := make([]*outbound, 0, len(services))
	for _, o := range sorted(services) {
		out = append(out, o)
	}
	return out
}

// grpcNames are the targets under which programs find a service: xds:///backend, and what transparent proxies resolve.
func grpcNames(service string) []string {
	names := []string{service, service + ".mesh", service + ".mesh:80"}
	if dns := strings.ReplaceAll(service, "_", "."); dns != service {
		names = append(names, dns+".mesh", dns+".mesh:80")
	}
	return names
}

func (g *generator) grpcClient(o *outbound) {
	routeName := "outbound:" + o.service
	host := &routev3.VirtualHost{Name: o.service, Domains: []string{"*"}, Routes: g.grpcRoutes(o)}
	retry := g.matched.Service(o.service).Retry
	if host.RetryPolicy = grpcOnlyRetry(specOf[*meshv1.Retry](retry)); host.RetryPolicy != nil {
		g.p.check(label(retry), host.RetryPolicy)
	}
	g.add(originProxyless, xds.Route, routeName, &routev3.RouteConfiguration{Name: routeName, VirtualHosts: []*routev3.VirtualHost{host}})
	manager := g.p.pack(&hcmv3.HttpConnectionManager{
		StatPrefix:  statName(o.service),
		HttpFilters: append(g.grpcFaults(o), g.p.router()),
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{
			ConfigSource: viaADS(), RouteConfigName: routeName,
		}},
	})
	for _, name := range grpcNames(o.service) {
		if g.made[resourceKey{xds.Listener, name}] != nil {
			continue // a service of that very name
		}
		g.add(originProxyless, xds.Listener, name, &listenerv3.Listener{
			Name: name, ApiListener: &listenerv3.ApiListener{ApiListener: manager},
		})
	}
}

// grpcRoutes are the rules of the route, and one for all else. All requests of gRPC are POST.
func (g *generator) grpcRoutes(o *outbound) []*routev3.Route {
	var out []*routev3.Route
	for _, r := range o.rules {
		match := routeMatch(r.match)
		if r.match.GetMethod() != nil {
			if !methodMatches(r.match.GetMethod(), "POST") {
				continue
			}
			match.Headers = match.Headers[:len(match.Headers)-1] // that of the method is the last
		}
		if r.modify != nil {
			g.warn("TrafficRoute %q: gRPC programs do not modify requests", o.policies.TrafficRoute.Name)
		}
		out = append(out, g.grpcRoute(o, match, r.to))
	}
	if len(o.rest) > 0 {
		out = append(out, g.grpcRoute(o, anyPath(), o.rest))
	}
	return out
}

func methodMatches(m *meshv1.TrafficRoute_Http_Match_StringMatcher, method string) bool {
	switch t := m.GetMatcherType().(type) {
	case *meshv1.TrafficRoute_Http_Match_StringMatcher_Prefix:
		return strings.HasPrefix(method, t.Prefix)
	case *meshv1.TrafficRoute_Http_Match_StringMatcher_Exact:
		return method == t.Exact
	case *meshv1.TrafficRoute_Http_Match_StringMatcher_Regex:
		whole, err := regexp.Compile("^(?:" + t.Regex + ")$")
		return err == nil && whole.MatchString(method)
	default:
		return true
	}
}

func (g *generator) grpcRoute(o *outbound, match *routev3.RouteMatch, to []weighted) *routev3.Route {
	action := &routev3.RouteAction{}
	if limit := o.timeouts.request; limit != nil {
		// Of the timeouts of a route, this is the one that gRPC reads: it bounds the call as a whole.
		if m := o.timeouts.maxStreamDuration; m != nil && m.AsDuration() > 0 && (limit.AsDuration() == 0 || m.AsDuration() < limit.AsDuration()) {
			limit = m
		}
		action.MaxStreamDuration = &routev3.RouteAction_MaxStreamDuration{MaxStreamDuration: limit}
	}
	if len(to) == 1 {
		action.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: to[0].cluster.name}
	} else {
		split := &routev3.WeightedCluster{}
		for i, weight := range shares(to) {
			split.Clusters = append(split.Clusters, &routev3.WeightedCluster_ClusterWeight{Name: to[i].cluster.name, Weight: u32(weight)})
		}
		action.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: split}
	}
	return &routev3.Route{Match: match, Action: &routev3.Route_Route{Route: action}}
}

// grpcOnlyRetry is what a Retry says of gRPC: the conditions that gRPC knows, which has no timeout for a single try.
func grpcOnlyRetry(retry *meshv1.Retry) *routev3.RetryPolicy {
	conf := retry.GetConf().GetGrpc()
	if conf == nil || conf.GetNumRetries() != nil && conf.GetNumRetries().GetValue() == 0 { // none, which gRPC rejects
		return nil
	}
	out := grpcRetry(conf)
	known := []string{"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable"}
	on := strings.Split(out.GetRetryOn(), ",")
	on = slices.DeleteFunc(on, func(c string) bool { return !slices.Contains(known, c) })
	out.RetryOn, out.PerTryTimeout = strings.Join(on, ","), nil
	return out
}

func (g *generator) grpcCluster(c *cluster) {
	if c.external {
		g.warn("external service %q: gRPC programs reach external services through a zone egress only", c.service)
	}
	policies := g.matched.Service(c.service)
	m := &clusterv3.Cluster{
		Name: c.name, ConnectTimeout: c.timeouts.connect,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: viaADS()},
	}
	g.grpcBalance(m, c)
	breaker := specOf[*meshv1.CircuitBreaker](policies.CircuitBreaker)
	if t := breaker.GetConf().GetThresholds().GetMaxRequests(); t != nil {
		m.CircuitBreakers = &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{MaxRequests: t}}}
	}
	if d := breaker.GetConf().GetDetectors(); d.GetFailure() != nil || d.GetStandardDeviation() != nil {
		m.OutlierDetection = outlierDetection(breaker)
		g.p.check(label(policies.CircuitBreaker), m.OutlierDetection)
	}
	if d := breaker.GetConf().GetDetectors(); d.GetTotalErrors() != nil || d.GetGatewayErrors() != nil || d.GetLocalErrors() != nil {
		g.warn("CircuitBreaker %q: of the detectors gRPC programs know failure and standardDeviation", policies.CircuitBreaker.Name)
	}
	if policies.HealthCheck != nil {
		g.warn("HealthCheck %q: gRPC programs do not check the health of servers this way", policies.HealthCheck.Name)
	}
	if g.mtls == mtlsStrict {
		server := c.service
		if c.viaEgress {
			server = egressService
		}
		m.TransportSocket = g.p.tlsSocket(&tlsv3.UpstreamTlsContext{
			CommonTlsContext: fileTLS(exactly(SPIFFEID(g.mesh.Name, server))),
			Sni:              SNI(g.mesh.Name, c.service, c.tags),
		})
	}
	g.out.Endpoints = append(g.out.Endpoints, EndpointRef{Cluster: c.name, Mesh: g.mesh.Name, Service: c.service, Tags: c.tags, Proxyless: true})
	g.add(originProxyless, xds.Cluster, c.name, m)
}

// grpcBalance sets how a cluster chooses among its endpoints, in the ways that gRPC has.
func (g *generator) grpcBalance(m *clusterv3.Cluster, c *cluster) {
	balance(m, c.balancer)
	switch m.GetLbPolicy() {
	case clusterv3.Cluster_ROUND_ROBIN, clusterv3.Cluster_LEAST_REQUEST:
	case clusterv3.Cluster_RING_HASH:
		if m.GetRingHashLbConfig().GetHashFunction() == clusterv3.Cluster_RingHashLbConfig_XX_HASH {
			return
		}
		fallthrough
	default:
		g.warn("service %q: gRPC programs have no such load balancer and take turns", c.service)
		m.LbPolicy, m.LbConfig = clusterv3.Cluster_ROUND_ROBIN, nil
	}
}

// fileTLS is the program's own certificate and the authorities of its mesh, which its agent keeps in files. san is who the
// other side must be; nil: anyone of the mesh.
func fileTLS(san *matcherv3.StringMatcher) *tlsv3.CommonTlsContext {
	instance := &tlsv3.CertificateProviderPluginInstance{InstanceName: certificateInstance}
	validation := &tlsv3.CertificateValidationContext{CaCertificateProviderInstance: instance}
	if san != nil {
		// The newer field, which also says what kind of name it is, is not read by gRPC.
		validation.MatchSubjectAltNames = []*matcherv3.StringMatcher{san} //nolint:staticcheck // see above
	}
	return &tlsv3.CommonTlsContext{
		TlsCertificateProviderInstance: instance,
		ValidationContextType:          &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: validation},
	}
}

// grpcFaults are the faults of a service. Envoy injects them in front of the server; a gRPC server cannot, so clients do it
// where all servers are such programs. The source is the client itself, so it is decided here whether a policy is for it.
func (g *generator) grpcFaults(o *outbound) []*hcmv3.HttpFilter {
	service := g.mesh.Services[o.service]
	if service == nil || len(service.Endpoints) == 0 {
		return nil
	}
	shared := maps.Clone(service.Endpoints[0].Tags)
	for _, e := range service.Endpoints[1:] {
		maps.DeleteFunc(shared, func(k, v string) bool { return e.Tags[k] != v })
	}
	if shared[topology.ProxylessTag] != "true" {
		return nil
	}
	var out []*hcmv3.HttpFilter
	for _, s := range g.mesh.Policies.FaultInjectionsFor(shared) {
		if !slices.ContainsFunc(s.Sources, g.tags.matches) {
			continue
		}
		conf := specOf[*meshv1.FaultInjection](s.Policy).GetConf()
		m := &faultv3.HTTPFault{}
		if d := conf.GetDelay(); d != nil {
			m.Delay = &faultcommonv3.FaultDelay{
				FaultDelaySecifier: &faultcommonv3.FaultDelay_FixedDelay{FixedDelay: d.GetValue()},
				Percentage:         percent(d.GetPercentage().GetValue()),
			}
		}
		if a := conf.GetAbort(); a != nil {
			m.Abort = &faultv3.FaultAbort{
				ErrorType:  &faultv3.FaultAbort_HttpStatus{HttpStatus: a.GetHttpStatus().GetValue()},
				Percentage: percent(a.GetPercentage().GetValue()),
			}
		}
		if conf.GetResponseBandwidth() != nil {
			g.warn("FaultInjection %q: gRPC programs do not limit bandwidth", s.Policy.Name)
		}
		g.p.check(label(s.Policy), m)
		out = append(out, g.p.httpFilter(fmt.Sprintf("%s.%d", faultFilter, len(out)), m))
	}
	return out
}

// matches reports whether a proxy with these tags has all of a selector's.
func (m multi) matches(selector map[string]string) bool {
	for k, v := range spelledNow(selector) {
		values, has := m[k]
		if !has || v != "*" && !slices.Contains(values, v) {
			return false
		}
	}
	return true
}

// grpcServer makes the listeners of an inbound. gRPC asks for one by the address that the program listens on, of which only
// the port is known here, so there is one for each address it may be.
func (g *generator) grpcServer(i int, raw *meshv1.Dataplane_Networking_Inbound) {
	in := g.inboundOf(raw)
	policies := g.inboundPolicies(i)
	filters := []*hcmv3.HttpFilter{}
	chain := &listenerv3.FilterChain{Name: inboundListenerName(in.Address, in.Port)}
	switch g.mtls {
	case mtlsStrict:
		rules, _ := g.inboundRBAC(policies)
		filters = append(filters, g.p.httpFilter("envoy.filters.http.rbac", &rbachttpv3.RBAC{Rules: rules}))
		chain.TransportSocket = g.p.tlsSocket(&tlsv3.DownstreamTlsContext{
			CommonTlsContext: fileTLS(nil), RequireClientCertificate: boolean(true),
		})
	case mtlsPermissive:
		g.warn("inbound %d: a gRPC program cannot take plain and mutual TLS connections at once; in a permissive mesh all are plain, and permissions are not enforced", in.Port)
	case mtlsOff:
	}
	if len(policies.limits) > 0 {
		g.warn("RateLimit %q: gRPC programs do not limit rates", policies.limits[0].Policy.Name)
	}
	chain.Filters = []*listenerv3.Filter{g.p.hcm(&hcmv3.HttpConnectionManager{
		StatPrefix:  statName(in.service),
		HttpFilters: append(filters, g.p.router()),
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
			Name: "inbound:" + in.service,
			VirtualHosts: []*routev3.VirtualHost{{
				Name: in.service, Domains: []string{"*"},
				Routes: []*routev3.Route{{
					Match: anyPath(), Action: &routev3.Route_NonForwardingAction{NonForwardingAction: &routev3.NonForwardingAction{}},
				}},
			}},
		}},
	})}
	for _, address := range []string{in.Address, "0.0.0.0", "::", "127.0.0.1", "::1"} {
		name := "grpc/server?xds.resource.listening_address=" + hostPort(address, in.Port)
		if g.made[resourceKey{xds.Listener, name}] != nil {
			continue
		}
		g.add(originProxyless, xds.Listener, name, &listenerv3.Listener{
			Name: name, Address: socketAddress(address, in.Port), TrafficDirection: corev3.TrafficDirection_INBOUND,
			FilterChains: []*listenerv3.FilterChain{chain},
		})
	}
}
