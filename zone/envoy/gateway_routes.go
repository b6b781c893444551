package envoy

import (
	"fmt"
	"maps"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meridian-mesh/meridian/api/gateway"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
)

const (
	noRouteText   = "no route of this gateway is for the request\n"
	noBackendText = "the route of the request leads to no service\n"

	// strictTransport tells browsers to come with TLS only, for a year.
	strictTransport = "max-age=31536000; includeSubDomains"
)

// routes makes the routes of a listener: a virtual host for each host, and one for all other names, whose requests find nothing. It
// reports whether any route injects faults.
func (g *gatewayGenerator) routes(name string, l *gateway.Listener, hosts []*gateway.Host) (*routev3.RouteConfiguration, bool) {
	out := &routev3.RouteConfiguration{
		Name: name, ValidateClusters: boolean(false),
		RequestHeadersToAdd: []*corev3.HeaderValueOption{header(TagsHeader, g.tags.header(), false)},
	}
	faults, others := false, true
	for _, h := range hosts {
		host, faulty := g.virtualHost(l, h)
		out.VirtualHosts = append(out.VirtualHosts, host)
		faults, others = faults || faulty, others && h.Name != anyHost
	}
	if others {
		host, _ := g.virtualHost(l, &gateway.Host{Name: anyHost})
		out.VirtualHosts = append(out.VirtualHosts, host)
	}
	return out, faults
}

func (g *gatewayGenerator) virtualHost(l *gateway.Listener, h *gateway.Host) (host *routev3.VirtualHost, faults bool) {
	host = &routev3.VirtualHost{Name: h.Name, Domains: []string{h.Name}}
	if l.Protocol == meshv1.MeshGateway_Listener_HTTPS {
		host.RequireTls = routev3.VirtualHost_ALL
		host.ResponseHeadersToAdd = []*corev3.HeaderValueOption{header("Strict-Transport-Security", strictTransport, false)}
	}
	for _, m := range matchesOf(h) {
		for _, match := range m.forms() {
			r := &routev3.Route{Match: match}
			faults = g.act(h, m, r) || faults
			g.p.check(fmt.Sprintf("%s, host %s", label(m.route), h.Name), r)
			host.Routes = append(host.Routes, r)
		}
	}
	host.Routes = append(host.Routes, &routev3.Route{Match: anyPath(), Action: answer(404, noRouteText)})
	return host, faults
}

func answer(status uint32, text string) *routev3.Route_DirectResponse {
	return &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
		Status: status, Body: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: text}},
	}}
}

// act says what becomes of the requests that a route matches, and whether faults are among it.
func (g *gatewayGenerator) act(h *gateway.Host, m gatewayMatch, r *routev3.Route) (faults bool) {
	action := &routev3.RouteAction{}
	mirrors := m.rule.Mirrors
	for _, f := range m.rule.HTTP.GetFilters() {
		switch t := f.GetFilter().(type) {
		case *meshv1.MeshGatewayRoute_HttpRoute_Filter_Redirect_:
			r.Action = g.redirect(m.route, t.Redirect)
			return false
		case *meshv1.MeshGatewayRoute_HttpRoute_Filter_RequestHeader_:
			g.editHeaders(m.route, t.RequestHeader, r, action)
		case *meshv1.MeshGatewayRoute_HttpRoute_Filter_Rewrite_:
			rewrite(t.Rewrite, r.GetMatch(), action)
		case *meshv1.MeshGatewayRoute_HttpRoute_Filter_Mirror_:
			if len(t.Mirror.GetBackend().GetDestination()) == 0 {
				continue
			}
			if c := g.dial(h, mirrors[0]); c != nil {
				action.RequestMirrorPolicies = append(action.RequestMirrorPolicies, &routev3.RouteAction_RequestMirrorPolicy{
					Cluster:         c.name,
					RuntimeFraction: &corev3.RuntimeFractionalPercent{DefaultValue: percent(t.Mirror.GetPercentage().GetValue())},
				})
			}
			mirrors = mirrors[1:]
		}
	}
	to := g.backends(wants(h, m.rule.Backends))
	if len(to) == 0 {
		g.warn("%s: a rule leads to no service: requests are answered with 503", label(m.route))
		r.Action = answer(503, noBackendText)
		return false
	}
	g.forward(to, r, action)
	r.Action = &routev3.Route_Route{Route: action}
	for _, b := range to {
		faults = faults || b.injects()
	}
	return faults
}

// forward leads requests to backends. What is one setting for all of them is that of the first.
func (g *gatewayGenerator) forward(to []backend, r *routev3.Route, action *routev3.RouteAction) {
	first := to[0]
	action.Timeout = first.cluster.timeouts.request
	action.IdleTimeout = first.cluster.timeouts.streamIdle
	retryProtocol := first.cluster.protocol
	if !retryProtocol.overHTTP() {
		retryProtocol = http
	}
	if action.RetryPolicy = retryPolicy(specOf[*meshv1.Retry](first.destination.Retry), retryProtocol); action.RetryPolicy != nil {
		g.p.check(label(first.destination.Retry), action.RetryPolicy)
	}
	external, alike := false, true
	for _, b := range to {
		external = external || b.cluster.external
		alike = alike && b.destination.RateLimit == first.destination.RateLimit && b.fault() == first.fault()
	}
	if external && action.GetHostRewriteSpecifier() == nil {
		// Only endpoints that have a host name take part in this: those of the mesh have none.
		action.HostRewriteSpecifier = &routev3.RouteAction_AutoHostRewrite{AutoHostRewrite: boolean(true)}
	}
	if alike {
		r.TypedPerFilterConfig = g.filtersOf(first)
	}
	if len(to) == 1 {
		action.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: first.cluster.name}
		return
	}
	action.ClusterSpecifier = splitRequests(weightedOf(to), func(i int) map[string]*anypb.Any {
		if alike {
			return nil
		}
		return g.filtersOf(to[i])
	})
}

// fault is the FaultInjection that the gateway does itself: that of external services which it connects to directly. All others have
// theirs at the other end, where they would be injected once more.
func (b backend) fault() *policy.Policy {
	if !b.cluster.external {
		return nil
	}
	return b.destination.FaultInjection
}

func (b backend) injects() bool { return b.fault() != nil }

// filtersOf are the settings of filters for requests to a backend.
func (g *gatewayGenerator) filtersOf(b backend) map[string]*anypb.Any {
	out := make(map[string]*anypb.Any)
	if limit := specOf[*meshv1.RateLimit](b.destination.RateLimit).GetConf().GetHttp(); limit != nil {
		maps.Copy(out, g.rateLimit(label(b.destination.RateLimit), limit))
	}
	if p := b.fault(); p != nil {
		if m := g.faults(p); m != nil {
			out[faultFilter] = g.p.pack(m)
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}
