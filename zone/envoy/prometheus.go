package envoy

import (
	"net/netip"
	"net/url"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meridian-mesh/meridian/api/dataplane"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/zone/xds"
)

// effectivePrometheus is how the proxy exposes its metrics; nil: not at all.
func (g *generator) effectivePrometheus() *meshv1.PrometheusMetricsBackendConfig {
	conf, err := dataplane.Prometheus(g.mesh.Spec, g.dp)
	if err != nil {
		g.warn("metrics are not exposed: %v", err)
		return nil
	}
	return conf
}

// prometheus makes the listener that metrics are read from. The data plane program answers there: it asks Envoy and the
// applications that are to be aggregated.
func (g *generator) prometheus() {
	conf := g.metrics
	if conf == nil {
		return
	}
	address := g.dp.GetNetworking().GetAddress()
	if used := g.usedFor(address, conf.GetPort()); used != "" {
		g.warn("metrics are not exposed: port %d of the proxy is that of %s", conf.GetPort(), used)
		return
	}
	g.add(originPrometheus, xds.Cluster, hijackerName,
		staticCluster(hijackerName, pipeAddress(socketPath("kuma-mh", g.proxy.Name, g.mesh.Name))))

	serve := func() *listenerv3.Filter {
		action := routeTo(hijackerName)
		action.Route.PrefixRewrite = statsPath(conf.GetEnvoy())
		return g.plainHTTP(prometheusName, prometheusName, &routev3.Route{
			Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: conf.GetPath()}}, Action: action,
		})
	}
	l := &listenerv3.Listener{
		Name: prometheusName, Address: socketAddress(address, conf.GetPort()), TrafficDirection: corev3.TrafficDirection_INBOUND,
		EnableReusePort: boolean(false),
	}
	if g.mtls == mtlsOff || conf.GetSkipMTLS().GetValue() {
		l.FilterChains = []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{serve()}}}
		g.add(originPrometheus, xds.Listener, prometheusName, l)
		return
	}
	if ip, err := netip.ParseAddr(address); err == nil {
		// What runs beside the proxy may read without a certificate.
		l.FilterChains = append(l.FilterChains, &listenerv3.FilterChain{
			FilterChainMatch: &listenerv3.FilterChainMatch{SourcePrefixRanges: []*corev3.CidrRange{{
				AddressPrefix: address, PrefixLen: wrapperspb.UInt32(uint32(ip.BitLen())), //nolint:gosec // 32 or 128
			}}},
			Filters: []*listenerv3.Filter{serve()},
		})
	}
	g.useMeshSecrets(g.mesh.Name)
	var policies inboundPolicies
	if g.matched.Metrics != nil {
		policies.Inbound = *g.matched.Metrics
	}
	rules, shadow := g.inboundRBAC(policies)
	l.FilterChains = append(l.FilterChains, &listenerv3.FilterChain{
		TransportSocket: g.p.serverTLS(g.mesh.Name),
		Filters:         []*listenerv3.Filter{g.p.rbac(prometheusName, rules, shadow), serve()},
	})
	g.add(originPrometheus, xds.Listener, prometheusName, l)
}

// statsPath is what the data plane program is asked for.
func statsPath(conf *meshv1.PrometheusEnvoyConfig) string {
	query := ""
	if f := conf.GetFilterRegex(); f != "" {
		query = "filter=" + url.QueryEscape(f)
	}
	if conf.GetUsedOnly().GetValue() {
		if query != "" {
			query += "&"
		}
		query += "usedonly"
	}
	if query == "" {
		return "/"
	}
	return "/?" + query
}

// usedFor says what listens at an address already; "": nothing.
func (g *generator) usedFor(address string, port uint32) string {
	for _, raw := range g.dp.GetNetworking().GetInbound() {
		if in := g.inboundOf(raw); in.Port == port && in.Address == address || in.WorkloadPort == port && in.WorkloadAddress == address {
			return "an inbound"
		}
	}
	for _, o := range g.outboundList {
		if o.port == port && o.address == address {
			return "an outbound"
		}
	}
	switch {
	case address == g.dp.GetNetworking().GetAddress() && slices.Contains(g.ports, port):
		return "a listener of the gateway"
	case g.proxy.AdminPort == port:
		return "the administration"
	case g.dp.GetProbes().GetPort() == port:
		return "the probes"
	default:
		return ""
	}
}
