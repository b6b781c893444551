package validate

import (
	"strings"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

// The policies that say who may talk to whom, where it goes, and what is recorded of it: TrafficLog, TrafficPermission,
// TrafficRoute, TrafficTrace. A backend that a policy names need not be in the mesh: without one, nothing is recorded.

func trafficLog(r *report, at path, m *meshv1.TrafficLog) {
	r.selectors(at.field("sources"), m.GetSources(), selectorRules{service: true})
	r.serviceOnly(at.field("destinations"), m.GetDestinations())
}

func trafficPermission(r *report, at path, m *meshv1.TrafficPermission) {
	r.selectors(at.field("sources"), m.GetSources(), selectorRules{})
	r.selectors(at.field("destinations"), m.GetDestinations(), selectorRules{})
}

func trafficTrace(r *report, at path, m *meshv1.TrafficTrace) {
	r.selectors(at.field("selectors"), m.GetSelectors(), selectorRules{})
}

func trafficRoute(r *report, at path, m *meshv1.TrafficRoute) {
	r.selectors(at.field("sources"), m.GetSources(), selectorRules{service: true})
	r.serviceOnly(at.field("destinations"), m.GetDestinations())

	conf, c := at.field("conf"), m.GetConf()
	if !r.check(c != nil, conf, msgEmpty) {
		return
	}
	r.split(conf, c.GetSplit(), c.GetDestination())
	switch f := c.GetLoadBalancer().GetRingHash().GetHashFunction(); f {
	case "", "XX_HASH", "MURMUR_HASH_2": // none: the first
	default:
		r.add(conf.field("loadBalancer.ringHash.hashFunction"), "must have a valid hash function")
	}
	for i, h := range c.GetHttp() {
		list := conf.field("http")
		item := list.at(i)
		r.routeMatch(item.field("match"), h.GetMatch())
		r.routeModify(item.field("modify"), h)
		r.split(item, h.GetSplit(), h.GetDestination())
	}
}

// split checks where a route leads to.
func (r *report) split(at path, split []*meshv1.TrafficRoute_Split, destination map[string]string) {
	switch {
	case len(split) == 0 && len(destination) == 0:
		r.add(at, `requires either "destination" or "split"`)
	case len(split) > 0 && len(destination) > 0:
		r.add(at, `"split" cannot be defined at the same time as "destination"`)
	}
	list, sum := at.field("split"), uint64(0)
	for i, s := range split {
		item := list.at(i)
		r.check(s.GetWeight() != nil, item.field("weight"), "needs to be defined")
		sum += uint64(s.GetWeight().GetValue())
		r.match(item.field("destination"), s.GetDestination(), true)
	}
	r.check(len(split) == 0 || sum > 0, list, "there must be at least one split entry with weight above 0")
	if len(destination) > 0 {
		r.match(at.field("destination"), destination, true)
	}
}

func (r *report) routeMatch(at path, m *meshv1.TrafficRoute_Http_Match) {
	if m.GetMethod() == nil && m.GetPath() == nil && len(m.GetHeaders()) == 0 {
		r.add(at, `must be present and contain at least one of the elements: "method", "path" or "headers"`)
		return
	}
	if m.GetMethod() != nil {
		r.stringMatcher(at.field("method"), m.GetMethod())
	}
	if m.GetPath() != nil {
		r.stringMatcher(at.field("path"), m.GetPath())
	}
	headers := at.field("headers")
	for _, k := range sortedKeys(m.GetHeaders()) {
		r.stringMatcher(headers.entry(k), m.GetHeaders()[k])
	}
}

func (r *report) stringMatcher(at path, m *meshv1.TrafficRoute_Http_Match_StringMatcher) {
	switch v := m.GetMatcherType().(type) {
	case nil:
		r.add(at, `cannot be empty. Available options: "exact", "prefix" or "regex"`)
	case *meshv1.TrafficRoute_Http_Match_StringMatcher_Prefix:
		r.notEmpty(at.field("prefix"), v.Prefix)
	case *meshv1.TrafficRoute_Http_Match_StringMatcher_Regex:
		if where := at.field("regex"); r.notEmpty(where, v.Regex) {
			r.regex(where, v.Regex, "must be a regular expression")
		}
	}
}

func (r *report) routeModify(at path, h *meshv1.TrafficRoute_Http) {
	m := h.GetModify()
	if m.GetPath() != nil {
		where := at.field("path")
		switch v := m.GetPath().GetType().(type) {
		case nil:
			r.add(where, `either "rewritePrefix" or "regex" has to be set`)
		case *meshv1.TrafficRoute_Http_Modify_Path_RewritePrefix:
			prefix := where.field("rewritePrefix")
			r.notEmpty(prefix, v.RewritePrefix)
			r.check(h.GetMatch().GetPath().GetPrefix() != "", prefix, "can only be set when .http.match.path.prefix is not empty")
		case *meshv1.TrafficRoute_Http_Modify_Path_Regex:
			r.regexReplace(where.field("regex"), v.Regex)
		}
	}
	if m.GetHost() != nil {
		where := at.field("host")
		switch v := m.GetHost().GetType().(type) {
		case nil:
			r.add(where, `either "value" or "fromPath" has to be set`)
		case *meshv1.TrafficRoute_Http_Modify_Host_Value:
			r.notEmpty(where.field("value"), v.Value)
		case *meshv1.TrafficRoute_Http_Modify_Host_FromPath:
			r.regexReplace(where.field("fromPath"), v.FromPath)
		}
	}
	r.modifyHeaders(at.field("requestHeaders"), m.GetRequestHeaders())
	r.modifyHeaders(at.field("responseHeaders"), m.GetResponseHeaders())
}

func (r *report) regexReplace(at path, m *meshv1.TrafficRoute_Http_Modify_RegexReplace) {
	if where := at.field("pattern"); r.notEmpty(where, m.GetPattern()) {
		r.regex(where, m.GetPattern(), "must be a regular expression")
	}
	r.notEmpty(at.field("substitution"), m.GetSubstitution())
}

func (r *report) modifyHeaders(at path, m *meshv1.TrafficRoute_Http_Modify_Headers) {
	add, remove := at.field("add"), at.field("remove")
	for i, h := range m.GetAdd() {
		item := add.at(i)
		r.headerName(item.field("name"), h.GetName())
		r.notEmpty(item.field("value"), h.GetValue())
	}
	for i, h := range m.GetRemove() {
		item := remove.at(i)
		r.headerName(item.field("name"), h.GetName())
	}
}

// headerName wants a header that routes may touch.
func (r *report) headerName(at path, name string) {
	if r.notEmpty(at, name) {
		r.check(!strings.EqualFold(name, "host") && name[0] != ':', at, "host header and HTTP/2 pseudo-headers are not allowed to be modified")
	}
}
