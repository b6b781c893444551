package gateway_test

import (
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"

	"github.com/meridian-mesh/meridian/api/codec"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// naive is what a gateway serves, worked out once more for one name at a time, without any regard to cost and without the package.
// fault names a mistake that it makes on purpose; "" makes none.
type naive struct {
	fault   string
	records []*store.Record
	tags    tags // of the proxy
}

// faults are the mistakes. Each is one that the package could have, and the property below must notice it.
var faults = []string{
	"a later listener takes the port",
	"the tags of the gateway override those of the listener",
	"routes select the proxy, not the listener",
	"a route without host names is for all hosts",
	"a route for a domain is not for a name in it",
	"a name under a listener for a domain has no host of its own",
	"a route keeps out of the listener that has its name",
	"host names differ by the case of their letters",
	"a host is made like the listener for all names",
	"a route for connections is for requests too",
	"TLS that is passed through is taken on",
	"a listener for other meshes is served",
	"policies are those of the proxy, not of the listener",
	"the other tags of a destination do not matter",
	"a mirror is a backend",
	"the first connection limit is the least",
	"faults need the protocol in the backend",
}

func (n naive) is(fault string) bool { return n.fault == fault }

func (n naive) all(typ resource.Type) []*store.Record {
	var out []*store.Record
	for _, r := range n.records {
		if r.Key.Type == string(typ) {
			out = append(out, r)
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Key.Name < out[j].Key.Name })
	return out
}

func specOf[T any](r *store.Record) T {
	d, _ := resource.Lookup(resource.Type(r.Key.Type))
	m, err := codec.Spec(d, r)
	if err != nil {
		panic(err)
	}
	return m.(T)
}

func naiveMatch(selector, t tags) bool {
	for k, v := range selector {
		if got, ok := t[k]; !ok || v != "*" && v != got {
			return false
		}
	}
	return true
}

// naiveRank is a number for each selector: more tags, then more exact ones.
func naiveRank(selector tags) (total, exact int) {
	for _, v := range selector {
		total++
		if v != "*" {
			exact++
		}
	}
	return total, exact
}

type naiveHost struct {
	name  string
	tags  tags
	tls   *meshv1.MeshGateway_TLS_Conf
	limit uint32
	index int
}

func (n naive) describe() []string {
	gateway := n.all(policy.MeshGateway)[0]
	spec := specOf[*meshv1.MeshGateway](gateway)
	lines := []string{"gateway " + gateway.Key.Name + " log - trace -"}
	ports := map[uint32][]naiveHost{}
	protocols := map[uint32]meshv1.MeshGateway_Listener_Protocol{}
	var order []uint32
	listeners := slices.Clone(spec.GetConf().GetListeners())
	if n.is("a later listener takes the port") {
		slices.Reverse(listeners)
	}
	for i, l := range listeners {
		if l.GetCrossMesh() && !n.is("a listener for other meshes is served") {
			continue
		}
		h := naiveHost{name: n.fold(l.GetHostname()), tags: tags{}, limit: l.GetResources().GetConnectionLimit(), index: i}
		if h.name == "" {
			h.name = "*"
		}
		layers := []tags{n.tags, spec.GetTags(), l.GetTags()}
		if n.is("the tags of the gateway override those of the listener") {
			layers = []tags{n.tags, l.GetTags(), spec.GetTags()}
		}
		for _, layer := range layers {
			maps.Copy(h.tags, layer)
		}
		if l.GetProtocol() == meshv1.MeshGateway_Listener_HTTPS {
			h.tls = l.GetTls()
		}
		port := l.GetPort()
		if len(ports[port]) == 0 {
			order = append(order, port)
			protocols[port] = l.GetProtocol()
		}
		taken := slices.ContainsFunc(ports[port], func(o naiveHost) bool { return o.name == h.name })
		if protocols[port] == l.GetProtocol() && !taken {
			ports[port] = append(ports[port], h)
		}
	}
	slices.Sort(order)
	for _, port := range order {
		limit := uint32(0)
		for _, h := range ports[port] {
			if limit == 0 || n.is("the first connection limit is the least") && h.limit != 0 && h.limit < limit {
				limit = h.limit
			}
		}
		lines = append(lines, fmt.Sprintf("port %d %s limit %d", port, protocols[port], limit))
		lines = append(lines, n.hosts(protocols[port], ports[port])...)
	}
	return lines
}

func (n naive) fold(name string) string {
	if n.is("host names differ by the case of their letters") {
		return name
	}
	return strings.ToLower(name)
}

// within: a request for a host name that pattern stands for is one that name stands for, tried with names that tell.
func within(name, pattern string) bool {
	if pattern == "*" || name == pattern {
		return true
	}
	return strings.HasPrefix(pattern, "*.") && strings.HasSuffix(name, pattern[1:])
}

func (n naive) http(p meshv1.MeshGateway_Listener_Protocol, h naiveHost) bool {
	if p == meshv1.MeshGateway_Listener_HTTPS {
		return h.tls.GetMode() == meshv1.MeshGateway_TLS_TERMINATE || n.is("TLS that is passed through is taken on")
	}
	return p == meshv1.MeshGateway_Listener_HTTP
}

// serves reports whether a route of a listener is at a host name.
func (n naive) serves(p meshv1.MeshGateway_Listener_Protocol, h naiveHost, r *store.Record, name string) bool {
	conf := specOf[*meshv1.MeshGatewayRoute](r).GetConf()
	http := n.http(p, h)
	if http && conf.GetHttp() == nil && !n.is("a route for connections is for requests too") || !http && conf.GetTcp() == nil {
		return false
	}
	against := h.tags
	if n.is("routes select the proxy, not the listener") {
		against = n.tags
	}
	if !slices.ContainsFunc(specOf[*meshv1.MeshGatewayRoute](r).GetSelectors(), func(s *meshv1.Selector) bool { return naiveMatch(s.GetMatch(), against) }) {
		return false
	}
	names := conf.GetHttp().GetHostnames()
	if len(names) == 0 {
		return name == h.name || n.is("a route without host names is for all hosts")
	}
	for _, wanted := range names {
		wanted = n.fold(wanted)
		switch {
		case within(h.name, wanted):
			if name == h.name && (h.name == wanted || !n.is("a route for a domain is not for a name in it")) {
				return true
			}
		case strings.HasPrefix(h.name, "*") && within(wanted, h.name):
			if n.is("a name under a listener for a domain has no host of its own") && h.name != "*" {
				wanted = h.name
			}
			if name == wanted {
				return true
			}
		}
	}
	return false
}

func (n naive) hosts(p meshv1.MeshGateway_Listener_Protocol, listeners []naiveHost) []string {
	names := map[string]bool{}
	for _, h := range listeners {
		names[h.name] = true
	}
	for _, r := range n.all(policy.MeshGatewayRoute) {
		for _, wanted := range specOf[*meshv1.MeshGatewayRoute](r).GetConf().GetHttp().GetHostnames() {
			names[n.fold(wanted)] = true
		}
	}
	sortedNames := []string{}
	for name := range names {
		sortedNames = append(sortedNames, name)
	}
	slices.Sort(sortedNames)
	var lines []string
	for _, name := range sortedNames {
		own := slices.IndexFunc(listeners, func(h naiveHost) bool { return h.name == name })
		var host *naiveHost
		routes := map[string]*store.Record{}
		candidates := slices.Clone(listeners)
		sort.SliceStable(candidates, func(i, j int) bool {
			if len(candidates[i].name) != len(candidates[j].name) {
				return len(candidates[i].name) > len(candidates[j].name) != n.is("a host is made like the listener for all names")
			}
			return candidates[i].name < candidates[j].name
		})
		if own >= 0 {
			host = &listeners[own]
		}
		for i, h := range candidates {
			for _, r := range n.all(policy.MeshGatewayRoute) {
				if !n.serves(p, h, r, name) || own >= 0 && h.name != name && n.is("a route keeps out of the listener that has its name") {
					continue
				}
				if host == nil {
					made := candidates[i]
					made.name = name
					host = &made
				}
				if n.http(p, *host) == n.http(p, h) {
					routes[r.Key.Name] = r
				}
			}
		}
		if host == nil {
			continue
		}
		lines = append(lines, fmt.Sprintf(" host %s %s %s", name, toJSON(host.tags), host.tls.GetMode()))
		for _, r := range n.all(policy.MeshGatewayRoute) {
			if routes[r.Key.Name] != nil {
				lines = append(lines, "  route "+r.Key.Name)
				lines = append(lines, n.rules(host.tags, r)...)
			}
		}
	}
	return lines
}

func (n naive) rules(source tags, r *store.Record) []string {
	var lines []string
	conf := specOf[*meshv1.MeshGatewayRoute](r).GetConf()
	for i, rule := range conf.GetHttp().GetRules() {
		lines = append(lines, fmt.Sprintf("   rule %d http true", i))
		for _, b := range rule.GetBackends() {
			lines = append(lines, n.destination("to", source, b, true))
		}
		for _, f := range rule.GetFilters() {
			if f.GetMirror() != nil {
				kind := "mirror"
				if n.is("a mirror is a backend") {
					kind = "to"
				}
				lines = append(lines, n.destination(kind, source, f.GetMirror().GetBackend(), true))
			}
		}
	}
	for i, rule := range conf.GetTcp().GetRules() {
		lines = append(lines, fmt.Sprintf("   rule %d http false", i))
		for _, b := range rule.GetBackends() {
			lines = append(lines, n.destination("to", source, b, false))
		}
	}
	return lines
}

func (n naive) destination(kind string, source tags, b *meshv1.MeshGatewayRoute_Backend, http bool) string {
	if n.is("policies are those of the proxy, not of the listener") {
		source = n.tags
	}
	to := tags{}
	for k, v := range b.GetDestination() {
		if k == "kuma.io/service" || !n.is("the other tags of a destination do not matter") {
			to[k] = v
		}
	}
	limit, fault := "-", "-"
	if http {
		limit = n.choose(policy.RateLimit, source, to)
		if to["kuma.io/protocol"] == "" && !n.is("faults need the protocol in the backend") {
			to["kuma.io/protocol"] = "http"
			fault = n.choose(policy.FaultInjection, source, to)
			delete(to, "kuma.io/protocol")
		} else {
			fault = n.choose(policy.FaultInjection, source, to)
		}
	}
	return fmt.Sprintf("    %s %s x%d: breaker %s fault %s health %s limit %s retry %s timeout %s", kind, toJSON(b.GetDestination()), b.GetWeight(),
		n.choose(policy.CircuitBreaker, source, to), fault, n.choose(policy.HealthCheck, source, to), limit,
		n.choose(policy.Retry, source, to), n.choose(policy.Timeout, source, to))
}

// choose is the policy whose source and destination together are the most specific: with more tags, then more exact ones; then the
// one created last, then the first by name.
func (n naive) choose(typ resource.Type, source, to tags) string {
	type connection interface {
		GetSources() []*meshv1.Selector
		GetDestinations() []*meshv1.Selector
	}
	best := []int{-1}
	found := "-"
	for _, r := range n.all(typ) {
		spec := specOf[connection](r)
		for _, s := range spec.GetSources() {
			for _, d := range spec.GetDestinations() {
				if !naiveMatch(s.GetMatch(), source) || !naiveMatch(d.GetMatch(), to) {
					continue
				}
				st, se := naiveRank(s.GetMatch())
				dt, de := naiveRank(d.GetMatch())
				if rank := []int{st + dt, se + de, int(r.Created.Unix())}; slices.Compare(rank, best) > 0 {
					best, found = rank, r.Key.Name
				}
			}
		}
	}
	return found
}
