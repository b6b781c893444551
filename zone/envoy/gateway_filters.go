package envoy

import (
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
)

// redirect answers with another address of the resource. The path stays.
func (g *gatewayGenerator) redirect(p *policy.Policy, conf *meshv1.MeshGatewayRoute_HttpRoute_Filter_Redirect) *routev3.Route_Redirect {
	out := &routev3.RedirectAction{HostRedirect: conf.GetHostname(), PortRedirect: conf.GetPort()}
	if conf.GetScheme() != "" {
		out.SchemeRewriteSpecifier = &routev3.RedirectAction_SchemeRedirect{SchemeRedirect: conf.GetScheme()}
	}
	switch conf.GetStatusCode() {
	case 301:
		out.ResponseCode = routev3.RedirectAction_MOVED_PERMANENTLY
	case 0, 302:
		out.ResponseCode = routev3.RedirectAction_FOUND
	case 303:
		out.ResponseCode = routev3.RedirectAction_SEE_OTHER
	case 307:
		out.ResponseCode = routev3.RedirectAction_TEMPORARY_REDIRECT
	case 308:
		out.ResponseCode = routev3.RedirectAction_PERMANENT_REDIRECT
	default:
		g.warn("%s: Envoy does not redirect with the status %d: it is 302", label(p), conf.GetStatusCode())
		out.ResponseCode = routev3.RedirectAction_FOUND
	}
	return &routev3.Route_Redirect{Redirect: out}
}

// editHeaders changes the headers of requests. The host is not a header to Envoy, and can only be set.
func (g *gatewayGenerator) editHeaders(p *policy.Policy, conf *meshv1.MeshGatewayRoute_HttpRoute_Filter_RequestHeader, r *routev3.Route,
	action *routev3.RouteAction,
) {
	for _, h := range conf.GetSet() {
		switch {
		case isHost(h.GetName()):
			action.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: h.GetValue()}
		case g.editable(p, h.GetName()):
			r.RequestHeadersToAdd = append(r.RequestHeadersToAdd, header(h.GetName(), h.GetValue(), false))
		}
	}
	for _, h := range conf.GetAdd() {
		if g.editable(p, h.GetName()) {
			r.RequestHeadersToAdd = append(r.RequestHeadersToAdd, header(h.GetName(), h.GetValue(), true))
		}
	}
	for _, name := range conf.GetRemove() {
		if g.editable(p, name) {
			r.RequestHeadersToRemove = append(r.RequestHeadersToRemove, name)
		}
	}
}

func isHost(name string) bool { return strings.EqualFold(name, "host") || name == ":authority" }

func (g *gatewayGenerator) editable(p *policy.Policy, name string) bool {
	if isHost(name) || strings.HasPrefix(name, ":") {
		g.warn("%s: the request header %q is left as it is: Envoy does not edit it", label(p), name)
		return false
	}
	return true
}

// rewrite changes the path of requests, all of it or what a prefix matched. Of several the last counts: Envoy takes one.
func rewrite(conf *meshv1.MeshGatewayRoute_HttpRoute_Filter_Rewrite, match *routev3.RouteMatch, action *routev3.RouteAction) {
	action.PrefixRewrite, action.RegexRewrite = "", nil
	switch t := conf.GetPath().(type) {
	case *meshv1.MeshGatewayRoute_HttpRoute_Filter_Rewrite_ReplaceFull:
		action.RegexRewrite = &matcherv3.RegexMatchAndSubstitute{
			Pattern: regex("^.*$"), Substitution: strings.ReplaceAll(t.ReplaceFull, `\`, `\\`),
		}
	case *meshv1.MeshGatewayRoute_HttpRoute_Filter_Rewrite_ReplacePrefixMatch:
		with := strings.TrimSuffix(t.ReplacePrefixMatch, "/")
		switch match.GetPathSpecifier().(type) {
		case *routev3.RouteMatch_Prefix: // with the slash at the end of the prefix
			action.PrefixRewrite = with + "/"
		case *routev3.RouteMatch_Path: // the very path of the prefix
			if action.PrefixRewrite = with; with == "" {
				action.PrefixRewrite = "/"
			}
		}
	}
}
