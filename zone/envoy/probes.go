package envoy

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/meridian-mesh/meridian/zone/xds"
)

// probes lets an orchestrator, which has no certificate of the mesh, ask the workload how it is.
func (g *generator) probes() {
	conf := g.dp.GetProbes()
	if conf.GetPort() == 0 {
		return
	}
	local := make(map[uint32]bool)
	for _, raw := range g.dp.GetNetworking().GetInbound() {
		local[g.inboundOf(raw).WorkloadPort] = true
	}
	var routes []*routev3.Route
	for _, e := range conf.GetEndpoints() {
		r := &routev3.Route{Match: &routev3.RouteMatch{
			PathSpecifier: &routev3.RouteMatch_Path{Path: e.GetPath()},
			Headers:       []*routev3.HeaderMatcher{exactHeader(":method", "GET")},
		}}
		if local[e.GetInboundPort()] {
			action := routeTo(localClusterName(e.GetInboundPort()))
			action.Route.RegexRewrite = &matcherv3.RegexMatchAndSubstitute{Pattern: regex(".*"), Substitution: e.GetInboundPath()}
			r.Action = action
		} else {
			// The workload has the port to itself.
			r.Action = &routev3.Route_Redirect{Redirect: &routev3.RedirectAction{
				PortRedirect:         e.GetInboundPort(),
				PathRewriteSpecifier: &routev3.RedirectAction_PathRedirect{PathRedirect: e.GetInboundPath()},
			}}
		}
		routes = append(routes, r)
	}
	g.add(originProbe, xds.Listener, probeListener, &listenerv3.Listener{
		Name: probeListener, Address: socketAddress(g.dp.GetNetworking().GetAddress(), conf.GetPort()),
		TrafficDirection: corev3.TrafficDirection_INBOUND, EnableReusePort: boolean(false),
		FilterChains: []*listenerv3.FilterChain{{
			Filters: []*listenerv3.Filter{g.plainHTTP(probeListener, "probe", routes...)},
		}},
	})
}
