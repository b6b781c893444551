package envoy

import (
	"slices"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

func anyPath() *routev3.RouteMatch {
	return &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}}
}

// outboundRoutes are the rules of the route for requests, and one for all else.
//
// A split between services of the mesh and external services is one route. Kuma makes two with the same condition, of which
// the second, with the external services, is never reached.
func (g *generator) outboundRoutes(o *outbound) []*routev3.Route {
	limit := g.externalLimit(o)
	var out []*routev3.Route
	for _, r := range o.rules {
		out = append(out, g.outboundRoute(o, routeMatch(r.match), r.modify, r.to, limit))
	}
	if len(o.rest) > 0 {
		out = append(out, g.outboundRoute(o, anyPath(), nil, o.rest, limit))
	}
	for _, r := range out {
		g.p.check(label(o.policies.TrafficRoute), r)
	}
	return out
}

func (g *generator) outboundRoute(o *outbound, match *routev3.RouteMatch, modify *meshv1.TrafficRoute_Http_Modify, to []weighted,
	limit map[string]*anypb.Any,
) *routev3.Route {
	action := &routev3.RouteAction{Timeout: o.timeouts.request}
	route := &routev3.Route{Match: match, Action: &routev3.Route_Route{Route: action}}
	limitOf := func(i int) map[string]*anypb.Any {
		if !to[i].cluster.external {
			return nil
		}
		return limit
	}
	if len(to) == 1 {
		action.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: to[0].cluster.name}
		route.TypedPerFilterConfig = limitOf(0)
	} else {
		action.ClusterSpecifier = splitRequests(to, limitOf)
	}
	if slices.ContainsFunc(to, func(w weighted) bool { return w.cluster.external }) {
		// Only endpoints that have a host name take part in this: those of the mesh have none.
		action.HostRewriteSpecifier = &routev3.RouteAction_AutoHostRewrite{AutoHostRewrite: boolean(true)}
	}
	modifyRoute(route, action, modify)
	return route
}

func routeMatch(m *meshv1.TrafficRoute_Http_Match) *routev3.RouteMatch {
	out := anyPath()
	switch t := m.GetPath().GetMatcherType().(type) {
	case *meshv1.TrafficRoute_Http_Match_StringMatcher_Prefix:
		out.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: t.Prefix}
	case *meshv1.TrafficRoute_Http_Match_StringMatcher_Exact:
		out.PathSpecifier = &routev3.RouteMatch_Path{Path: t.Exact}
	case *meshv1.TrafficRoute_Http_Match_StringMatcher_Regex:
		out.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: regex(t.Regex)}
	}
	for name, value := range sorted(m.GetHeaders()) {
		out.Headers = append(out.Headers, headerMatch(name, value))
	}
	if m.GetMethod() != nil {
		out.Headers = append(out.Headers, headerMatch(":method", m.GetMethod()))
	}
	return out
}

func headerMatch(name string, m *meshv1.TrafficRoute_Http_Match_StringMatcher) *routev3.HeaderMatcher {
	s := &matcherv3.StringMatcher{}
	switch t := m.GetMatcherType().(type) {
	case *meshv1.TrafficRoute_Http_Match_StringMatcher_Prefix:
		s = beginsWith(t.Prefix)
	case *meshv1.TrafficRoute_Http_Match_StringMatcher_Exact:
		s = exactly(t.Exact)
	case *meshv1.TrafficRoute_Http_Match_StringMatcher_Regex:
		s.MatchPattern = &matcherv3.StringMatcher_SafeRegex{SafeRegex: regex(t.Regex)}
	default:
		// Without a condition it is enough that the header is there.
		return &routev3.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true}}
	}
	return &routev3.HeaderMatcher{Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: s}}
}

func exactHeader(name, value string) *routev3.HeaderMatcher {
	return &routev3.HeaderMatcher{
		Name: name, HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: exactly(value)},
	}
}

func regexHeader(name, expr string) *routev3.HeaderMatcher {
	return &routev3.HeaderMatcher{
		Name: name,
		HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
			MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: regex(expr)},
		}},
	}
}

func modifyRoute(route *routev3.Route, action *routev3.RouteAction, m *meshv1.TrafficRoute_Http_Modify) {
	switch t := m.GetPath().GetType().(type) {
	case *meshv1.TrafficRoute_Http_Modify_Path_RewritePrefix:
		action.PrefixRewrite = t.RewritePrefix
	case *meshv1.TrafficRoute_Http_Modify_Path_Regex:
		action.RegexRewrite = regexReplace(t.Regex)
	}
	switch t := m.GetHost().GetType().(type) {
	case *meshv1.TrafficRoute_Http_Modify_Host_Value:
		action.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: t.Value}
	case *meshv1.TrafficRoute_Http_Modify_Host_FromPath:
		action.HostRewriteSpecifier = &routev3.RouteAction_HostRewritePathRegex{HostRewritePathRegex: regexReplace(t.FromPath)}
	}
	for _, h := range m.GetRequestHeaders().GetAdd() {
		route.RequestHeadersToAdd = append(route.RequestHeadersToAdd, header(h.GetName(), h.GetValue(), h.GetAppend()))
	}
	for _, h := range m.GetRequestHeaders().GetRemove() {
		route.RequestHeadersToRemove = append(route.RequestHeadersToRemove, h.GetName())
	}
	for _, h := range m.GetResponseHeaders().GetAdd() {
		route.ResponseHeadersToAdd = append(route.ResponseHeadersToAdd, header(h.GetName(), h.GetValue(), h.GetAppend()))
	}
	for _, h := range m.GetResponseHeaders().GetRemove() {
		route.ResponseHeadersToRemove = append(route.ResponseHeadersToRemove, h.GetName())
	}
}

func regexReplace(r *meshv1.TrafficRoute_Http_Modify_RegexReplace) *matcherv3.RegexMatchAndSubstitute {
	return &matcherv3.RegexMatchAndSubstitute{Pattern: regex(r.GetPattern()), Substitution: r.GetSubstitution()}
}
