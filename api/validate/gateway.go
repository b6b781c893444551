package validate

import (
	"strings"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

// Builtin gateways: MeshGateway and MeshGatewayRoute.

func meshGateway(r *report, at path, m *meshv1.MeshGateway) {
	crossMesh := false
	for _, l := range m.GetConf().GetListeners() {
		crossMesh = crossMesh || l.GetCrossMesh()
	}
	r.selectors(at.field("selectors"), m.GetSelectors(), selectorRules{service: true, single: crossMesh})
	r.gatewayTags(at.field("tags"), m.GetTags())

	conf := at.field("conf")
	if !r.check(m.GetConf() != nil, conf, msgEmpty) {
		return
	}
	listeners := conf.field("listeners")
	r.check(len(m.GetConf().GetListeners()) > 0, listeners, msgEmpty)
	ports := make(map[uint32]*meshv1.MeshGateway_Listener)
	type endpoint struct {
		port     uint32
		hostname string
	}
	taken := make(map[endpoint]bool)
	for i, l := range m.GetConf().GetListeners() {
		item := listeners.at(i)
		r.listener(item, l)
		first, shared := ports[l.GetPort()]
		if !shared {
			ports[l.GetPort()] = l
		}
		r.check(!shared || first.GetProtocol() == l.GetProtocol(), item, "protocol conflicts with other listeners on this port")
		here := endpoint{l.GetPort(), either(l.GetHostname(), "*")}
		r.check(!taken[here], item, "multiple listeners for hostname on this port")
		taken[here] = true
		r.check(!shared || first.GetResources().GetConnectionLimit() == l.GetResources().GetConnectionLimit(),
			item.field("resources.connectionLimit"), "conflicting values for this port")
	}
}

func (r *report) listener(at path, l *meshv1.MeshGateway_Listener) {
	r.gatewayHostname(at.field("hostname"), l.GetHostname())
	r.port(at.field("port"), l.GetPort())

	protocol, https := at.field("protocol"), false
	switch l.GetProtocol() {
	case meshv1.MeshGateway_Listener_NONE:
		r.add(protocol, msgEmpty)
	case meshv1.MeshGateway_Listener_UDP, meshv1.MeshGateway_Listener_TLS:
		r.add(protocol, "protocol type is not supported")
	case meshv1.MeshGateway_Listener_HTTPS:
		https = true
		r.check(!l.GetCrossMesh(), protocol, "protocol is not supported with crossMesh")
	case meshv1.MeshGateway_Listener_TCP, meshv1.MeshGateway_Listener_HTTP:
	}

	where, t := at.field("tls"), l.GetTls()
	switch {
	case l.GetCrossMesh():
		r.check(t == nil, where, "must be empty with crossMesh")
	case t == nil:
		r.check(!https, where, msgEmpty)
	}
	if t != nil {
		certificates := where.field("certificates")
		switch n := len(t.GetCertificates()); t.GetMode() {
		case meshv1.MeshGateway_TLS_NONE:
			r.add(where.field("mode"), msgEmpty)
		case meshv1.MeshGateway_TLS_PASSTHROUGH:
			r.check(n == 0, certificates, "must be empty in TLS passthrough mode")
		case meshv1.MeshGateway_TLS_TERMINATE:
			r.check(n > 0, certificates, "cannot be empty in TLS termination mode")
			r.check(n <= 2, certificates, "cannot have more than 2 certificates")
		}
		for i, c := range t.GetCertificates() {
			r.dataSource(certificates.at(i), c)
		}
	}
	r.gatewayTags(at.field("tags"), l.GetTags())
}

// gatewayTags checks tags that a gateway adds to those of its proxies.
func (r *report) gatewayTags(at path, tags map[string]string) {
	for _, k := range [...]string{tagExternal, tagProtocol, tagService, tagZone} {
		if _, ok := tags[k]; ok {
			r.addf(at.entry(k), "tag name must not be %q", k)
		}
	}
	r.tagCharacters(at, tags, selectorTags)
}

func (r *report) gatewayHostname(at path, s string) {
	switch suffix, wildcard := strings.CutPrefix(s, "*."); {
	case s == "", s == "*":
	case wildcard:
		r.check(isLowerDNS(suffix), at, "invalid wildcard domain")
	default:
		r.check(isLowerDNS(s), at, "invalid hostname")
	}
}

func meshGatewayRoute(r *report, at path, m *meshv1.MeshGatewayRoute) {
	r.selectors(at.field("selectors"), m.GetSelectors(), selectorRules{service: true})

	conf := at.field("conf")
	switch route := m.GetConf().GetRoute().(type) {
	case nil:
		r.add(conf, msgEmpty)
	case *meshv1.MeshGatewayRoute_Conf_Tcp:
		rules := conf.field("tcp.rules")
		for i, rule := range route.Tcp.GetRules() {
			item := rules.at(i)
			r.routeBackends(item.field("backends"), rule.GetBackends())
		}
	case *meshv1.MeshGatewayRoute_Conf_Http:
		rules := conf.field("http.rules")
		r.check(len(route.Http.GetRules()) > 0, rules, msgEmpty)
		for i, rule := range route.Http.GetRules() {
			r.gatewayRule(rules.at(i), rule)
		}
	}
}

func (r *report) gatewayRule(at path, m *meshv1.MeshGatewayRoute_HttpRoute_Rule) {
	matches := at.field("matches")
	if !r.check(len(m.GetMatches()) > 0, matches, msgEmpty) {
		return
	}
	onPrefix := false
	for j, match := range m.GetMatches() {
		r.gatewayMatch(matches.at(j), match)
		onPrefix = onPrefix || match.GetPath() != nil && match.GetPath().GetMatch() == meshv1.MeshGatewayRoute_HttpRoute_Match_Path_PREFIX
	}

	filters, redirects := at.field("filters"), false
	for _, f := range m.GetFilters() {
		redirects = redirects || f.GetRedirect() != nil
	}
	if redirects && len(m.GetFilters()) > 1 {
		r.add(filters, "redirects cannot be used with other filters")
		return
	}
	for j, f := range m.GetFilters() {
		r.gatewayFilter(filters.at(j), f, onPrefix)
	}

	backends := at.field("backends")
	if redirects {
		r.check(len(m.GetBackends()) == 0, backends, "must be empty when using redirect filters")
	} else {
		r.check(len(m.GetBackends()) > 0, backends, msgEmpty)
	}
	r.routeBackends(backends, m.GetBackends())
}

// The paths of what follows are those that clients know, which are not quite those of the fields.

func (r *report) gatewayMatch(at path, m *meshv1.MeshGatewayRoute_HttpRoute_Match) {
	r.check(m.GetPath() != nil || m.GetMethod() != meshv1.HttpMethod_NONE || len(m.GetHeaders())+len(m.GetQueryParameters()) > 0, at, msgEmpty)
	if p := m.GetPath(); p != nil {
		value, v := at.field("value"), p.GetValue()
		switch p.GetMatch() {
		case meshv1.MeshGatewayRoute_HttpRoute_Match_Path_REGEX:
			if r.notEmpty(value, v) {
				r.regex(value, v, "must be a regular expression")
			}
		case meshv1.MeshGatewayRoute_HttpRoute_Match_Path_PREFIX:
			r.check(strings.HasPrefix(v, "/"), value, "must be an absolute path")
			r.check(v == "/" || !strings.HasSuffix(v, "/"), value, "does not need a trailing slash because only a / separated prefix or an entire path is matched")
		case meshv1.MeshGatewayRoute_HttpRoute_Match_Path_EXACT:
			r.check(strings.HasPrefix(v, "/"), value, "must be an absolute path")
		}
	}
	headers, parameters := at.field("headers"), at.field("query_parameters")
	for k, h := range m.GetHeaders() {
		r.named(headers.at(k), h)
		if h.GetMatch() == meshv1.MeshGatewayRoute_HttpRoute_Match_Header_REGEX {
			item := headers.at(k)
			r.regex(item.field("value"), h.GetValue(), "must be a regular expression")
		}
	}
	for k, q := range m.GetQueryParameters() {
		r.named(parameters.at(k), q)
		if q.GetMatch() == meshv1.MeshGatewayRoute_HttpRoute_Match_Query_REGEX {
			item := parameters.at(k)
			r.regex(item.field("value"), q.GetValue(), "must be a regular expression")
		}
	}
}

// named checks a pair, none of whose parts may be empty.
func (r *report) named(at path, pair interface {
	GetName() string
	GetValue() string
},
) {
	r.notEmpty(at.field("name"), pair.GetName())
	r.notEmpty(at.field("value"), pair.GetValue())
}

func (r *report) gatewayFilter(at path, f *meshv1.MeshGatewayRoute_HttpRoute_Filter, onPrefix bool) {
	switch v := f.GetFilter().(type) {
	case nil:
		r.add(at, msgEmpty)
	case *meshv1.MeshGatewayRoute_HttpRoute_Filter_RequestHeader_:
		where, h := at.field("request_header"), v.RequestHeader
		r.check(len(h.GetSet())+len(h.GetAdd())+len(h.GetRemove()) > 0, where, msgEmpty)
		set, add, remove := where.field("set"), where.field("add"), where.field("remove")
		for k, pair := range h.GetSet() {
			r.named(set.at(k), pair)
		}
		for k, pair := range h.GetAdd() {
			r.named(add.at(k), pair)
		}
		for k, name := range h.GetRemove() {
			r.notEmpty(remove.at(k), name)
		}
	case *meshv1.MeshGatewayRoute_HttpRoute_Filter_Mirror_:
		where := at.field("mirror")
		if backend := where.field("backend"); r.check(v.Mirror.GetBackend() != nil, backend, msgEmpty) {
			r.match(backend, v.Mirror.GetBackend().GetDestination(), true)
		}
		r.somePercent(where.field("percentage"), v.Mirror.GetPercentage())
	case *meshv1.MeshGatewayRoute_HttpRoute_Filter_Redirect_:
		where, d := at.field("redirect"), v.Redirect
		r.notEmpty(where.field("scheme"), d.GetScheme())
		r.notEmpty(where.field("hostname"), d.GetHostname())
		r.portIfSet(where.field("port"), d.GetPort())
		r.check(d.GetStatusCode() >= 300 && d.GetStatusCode() <= 308, where.field("status_code"), "must be in the range [300, 308]")
	case *meshv1.MeshGatewayRoute_HttpRoute_Filter_Rewrite_:
		_, prefix := v.Rewrite.GetPath().(*meshv1.MeshGatewayRoute_HttpRoute_Filter_Rewrite_ReplacePrefixMatch)
		r.check(!prefix || onPrefix, at.field("rewrite.replacePrefixMatch"), "cannot be used without a match on path prefix")
	}
}

func (r *report) routeBackends(at path, list []*meshv1.MeshGatewayRoute_Backend) {
	for i, b := range list {
		r.match(at.at(i), b.GetDestination(), true)
	}
}
