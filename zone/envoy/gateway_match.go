package envoy

import (
	"slices"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/meridian-mesh/meridian/api/gateway"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
)

// gatewayMatch is one of the forms of requests that a rule of a route is for.
type gatewayMatch struct {
	route *policy.Policy
	rule  *gateway.Rule
	match *meshv1.MeshGatewayRoute_HttpRoute_Match
}

// matchesOf are those of all routes of a host, the most specific first, for Envoy takes the first that matches. An exact path comes
// before a prefix, a prefix before a regular expression, and that before any path, which the prefix / is too; the longer comes before
// the shorter. Then count a method, the number of headers, and of query parameters. Equals stay in the order of the names of the routes
// and of their rules.
func matchesOf(h *gateway.Host) []gatewayMatch {
	var out []gatewayMatch
	for _, r := range h.Routes {
		for _, rule := range r.Rules {
			matches := rule.HTTP.GetMatches()
			if len(matches) == 0 {
				matches = []*meshv1.MeshGatewayRoute_HttpRoute_Match{{}}
			}
			for _, m := range matches {
				out = append(out, gatewayMatch{r.Policy, rule, m})
			}
		}
	}
	slices.SortStableFunc(out, func(a, b gatewayMatch) int { return slices.Compare(b.rank(), a.rank()) })
	return out
}

// rank is higher for what is more specific.
func (m gatewayMatch) rank() []int {
	path := m.match.GetPath()
	kind, length := 0, len(path.GetValue())
	switch {
	case path == nil || anyPrefix(path):
		length = 0
	case path.GetMatch() == meshv1.MeshGatewayRoute_HttpRoute_Match_Path_EXACT:
		kind = 3
	case path.GetMatch() == meshv1.MeshGatewayRoute_HttpRoute_Match_Path_PREFIX:
		kind = 2
	default:
		kind = 1
	}
	method := 0
	if m.match.GetMethod() != meshv1.HttpMethod_NONE {
		method = 1
	}
	return []int{kind, length, method, len(m.match.GetHeaders()), len(m.match.GetQueryParameters())}
}

func anyPrefix(path *meshv1.MeshGatewayRoute_HttpRoute_Match_Path) bool {
	return path.GetMatch() == meshv1.MeshGatewayRoute_HttpRoute_Match_Path_PREFIX && (path.GetValue() == "/" || path.GetValue() == "")
}

// forms are the match as Envoy has it. A prefix means whole segments of a path, which takes two: the path itself, and what is below.
func (m gatewayMatch) forms() []*routev3.RouteMatch {
	base := func() *routev3.RouteMatch {
		out := anyPath()
		for _, h := range m.match.GetHeaders() {
			out.Headers = append(out.Headers, gatewayHeader(h))
		}
		if method := m.match.GetMethod(); method != meshv1.HttpMethod_NONE {
			out.Headers = append(out.Headers, exactHeader(":method", method.String()))
		}
		for _, q := range m.match.GetQueryParameters() {
			out.QueryParameters = append(out.QueryParameters, gatewayQuery(q))
		}
		return out
	}
	path := m.match.GetPath()
	switch first := base(); {
	case path == nil || anyPrefix(path):
		return []*routev3.RouteMatch{first}
	case path.GetMatch() == meshv1.MeshGatewayRoute_HttpRoute_Match_Path_EXACT:
		first.PathSpecifier = &routev3.RouteMatch_Path{Path: path.GetValue()}
		return []*routev3.RouteMatch{first}
	case path.GetMatch() == meshv1.MeshGatewayRoute_HttpRoute_Match_Path_PREFIX:
		below := base()
		first.PathSpecifier = &routev3.RouteMatch_Path{Path: path.GetValue()}
		below.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: path.GetValue() + "/"}
		return []*routev3.RouteMatch{first, below}
	default:
		first.PathSpecifier = &routev3.RouteMatch_SafeRegex{SafeRegex: regex(path.GetValue())}
		return []*routev3.RouteMatch{first}
	}
}

func gatewayHeader(h *meshv1.MeshGatewayRoute_HttpRoute_Match_Header) *routev3.HeaderMatcher {
	if h.GetMatch() == meshv1.MeshGatewayRoute_HttpRoute_Match_Header_REGEX {
		return regexHeader(h.GetName(), h.GetValue())
	}
	return exactHeader(h.GetName(), h.GetValue())
}

func gatewayQuery(q *meshv1.MeshGatewayRoute_HttpRoute_Match_Query) *routev3.QueryParameterMatcher {
	value := exactly(q.GetValue())
	if q.GetMatch() == meshv1.MeshGatewayRoute_HttpRoute_Match_Query_REGEX {
		value = &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: regex(q.GetValue())}}
	}
	return &routev3.QueryParameterMatcher{
		Name: q.GetName(), QueryParameterMatchSpecifier: &routev3.QueryParameterMatcher_StringMatch{StringMatch: value},
	}
}
