package policy_test

import (
	"encoding/json"
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

// naive is the rules of matching, written down once more from their description without any regard to cost, and sharing no
// code with the package. fault names a mistake that it makes on purpose; "" makes none.
type naive struct {
	fault   string
	records []*store.Record
}

// faults are the mistakes. Each is one that the package could have, and the property below must notice it.
var faults = []string{
	"the selector with more exact values wins, whatever their number of tags",
	"the less specific selector wins",
	"the policy created first wins",
	"the larger name wins a tie",
	"a policy without time is as old as can be",
	"the name in the mesh decides ties, not the owner's",
	"the ranks of source and destination are compared one after the other",
	"the rank of the first matching source counts",
	"a source must match all inbounds",
	"a wildcard matches a tag that is absent",
	"a destination with more tags than the service matches an outbound",
	"inbounds are in the order of the most specific source",
	"a policy counts once for an inbound",
	"the older name of the service tag is unknown",
	"the older name of the protocol tag is unknown",
	"the protocol in destinations of a Retry counts",
	"a mesh without routes has none",
	"a proxy's policy needs a selector",
	"a kind of target is as good as another",
	"the first item of a rule overrides the later ones",
	"arrays are joined by a merge",
	"null is a value",
	"rules are in the order of the counter",
	"the counter counts down",
	"other values of a tag that is there are negated",
	"a rule without items is a rule",
	"a gateway's tags name no proxy",
}

func (n naive) decoded(typ resource.Type) []*store.Record {
	var list []*store.Record
	for _, r := range n.records {
		if r.Key.Type == string(typ) {
			list = append(list, r)
		}
	}
	sort.Slice(list, func(i, j int) bool { return n.before(list[i], list[j]) })
	return list
}

func (n naive) before(a, b *store.Record) bool {
	x, y := n.display(a), n.display(b)
	if x == y {
		x, y = a.Key.Name, b.Key.Name
	}
	if n.fault == "the larger name wins a tie" {
		return x > y
	}
	return x < y
}

func (n naive) display(r *store.Record) string {
	if d, ok := r.Labels["kuma.io/display-name"]; ok && n.fault != "the name in the mesh decides ties, not the owner's" {
		return d
	}
	return r.Key.Name
}

func spec(r *store.Record) any {
	d, _ := resource.Lookup(resource.Type(r.Key.Type))
	m, err := codec.Spec(d, r)
	if err != nil {
		panic(err)
	}
	return m
}

func matches(list []*meshv1.Selector) []tags {
	out := make([]tags, len(list))
	for i, s := range list {
		out[i] = s.GetMatch()
	}
	return out
}

func (n naive) sources(r *store.Record) []tags {
	return matches(spec(r).(interface{ GetSources() []*meshv1.Selector }).GetSources())
}

func (n naive) destinations(r *store.Record) []tags {
	list := matches(spec(r).(interface{ GetDestinations() []*meshv1.Selector }).GetDestinations())
	if r.Key.Type == "Retry" && n.fault != "the protocol in destinations of a Retry counts" {
		for _, t := range list {
			delete(t, "protocol")
			delete(t, "kuma.io/protocol")
		}
	}
	return list
}

func (n naive) proxySelectors(r *store.Record) []tags {
	list := matches(spec(r).(interface{ GetSelectors() []*meshv1.Selector }).GetSelectors())
	if len(list) == 0 && n.fault != "a proxy's policy needs a selector" {
		return []tags{{}}
	}
	return list
}

func (n naive) value(t tags, key string) (string, bool) {
	v, ok := t[key]
	if key == "kuma.io/service" && v == "" && n.fault != "the older name of the service tag is unknown" {
		if old := t["service"]; old != "" {
			return old, true
		}
	}
	if !ok && key == "protocol" && n.fault != "the older name of the protocol tag is unknown" {
		v, ok = t["kuma.io/protocol"]
	}
	return v, ok
}

func (n naive) match(selector, t tags) bool {
	for k, want := range selector {
		got, ok := n.value(t, k)
		switch {
		case !ok && want == "*" && n.fault == "a wildcard matches a tag that is absent":
		case !ok, want != "*" && want != got:
			return false
		}
	}
	return true
}

// candidate is a policy that matches, by way of selectors with so many exact values and wildcards.
type candidate struct {
	rec          *store.Record
	exact, wild  int
	source, dest [2]int
}

func ranks(selector tags) (exact, wild int) {
	for _, v := range selector {
		if v == "*" {
			wild++
		} else {
			exact++
		}
	}
	return exact, wild
}

// higher reports whether the first rank is higher.
func (n naive) higher(e1, w1, e2, w2 int) bool {
	switch n.fault {
	case "the less specific selector wins":
		e1, w1, e2, w2 = e2, w2, e1, w1
	case "the selector with more exact values wins, whatever their number of tags":
		return e1 > e2 || e1 == e2 && w1 > w2
	}
	return e1+w1 > e2+w2 || e1+w1 == e2+w2 && e1 > e2
}

// choose finds the candidate that counts. Candidates are in the order of their names.
func (n naive) choose(list []candidate) string {
	if len(list) == 0 {
		return "-"
	}
	beaten := func(c candidate) bool {
		return slices.ContainsFunc(list, func(o candidate) bool {
			if n.fault == "the ranks of source and destination are compared one after the other" {
				return n.higher(o.source[0], o.source[1], c.source[0], c.source[1]) ||
					o.source == c.source && n.higher(o.dest[0], o.dest[1], c.dest[0], c.dest[1])
			}
			return n.higher(o.exact, o.wild, c.exact, c.wild)
		})
	}
	var tied []*store.Record
	for _, c := range list {
		if !beaten(c) {
			tied = append(tied, c.rec)
		}
	}
	n.byTime(tied)
	return tied[0].Key.Name
}

// byTime sorts equals, which are in the order of their names.
func (n naive) byTime(equals []*store.Record) {
	if n.fault != "a policy without time is as old as can be" {
		for _, r := range equals {
			if r.Created.IsZero() {
				return
			}
		}
	}
	sort.SliceStable(equals, func(i, j int) bool {
		if n.fault == "the policy created first wins" {
			return equals[i].Created.Before(equals[j].Created)
		}
		return equals[i].Created.After(equals[j].Created)
	})
}

func (n naive) sourceRank(r *store.Record, proxy []tags) (exact, wild int, ok bool) {
	for _, s := range n.sources(r) {
		hits := 0
		for _, t := range proxy {
			if n.match(s, t) {
				hits++
			}
		}
		if hits == 0 || n.fault == "a source must match all inbounds" && hits < len(proxy) {
			continue
		}
		e, w := ranks(s)
		if !ok || n.fault != "the rank of the first matching source counts" && n.higher(e, w, exact, wild) {
			exact, wild, ok = e, w, true
		}
	}
	return exact, wild, ok
}

func (n naive) outbound(typ resource.Type, proxy []tags, service string) string {
	records := n.decoded(typ)
	if typ == "TrafficRoute" && len(records) == 0 && n.fault != "a mesh without routes has none" {
		return ""
	}
	var list []candidate
	for _, r := range records {
		se, sw, ok := n.sourceRank(r, proxy)
		if !ok {
			continue
		}
		for _, d := range n.destinations(r) {
			probe := d
			if n.fault == "a destination with more tags than the service matches an outbound" {
				probe = tags{}
				if v, ok := d["kuma.io/service"]; ok {
					probe["kuma.io/service"] = v
				}
			}
			if n.match(probe, tags{"kuma.io/service": service}) {
				de, dw := ranks(d)
				list = append(list, candidate{r, se + de, sw + dw, [2]int{se, sw}, [2]int{de, dw}})
			}
		}
	}
	return n.choose(list)
}

func (n naive) inboundOne(typ resource.Type, t tags) string {
	var list []candidate
	for _, r := range n.decoded(typ) {
		for _, d := range n.destinations(r) {
			if n.match(d, t) {
				e, w := ranks(d)
				list = append(list, candidate{rec: r, exact: e, wild: w, dest: [2]int{e, w}})
			}
		}
	}
	return n.choose(list)
}

func (n naive) inboundAll(typ resource.Type, t tags) string {
	var found []*store.Record
	for _, r := range n.decoded(typ) {
		for _, d := range n.destinations(r) {
			if n.match(d, t) {
				found = append(found, r)
				if n.fault == "a policy counts once for an inbound" {
					break
				}
			}
		}
	}
	rank := func(r *store.Record) (e, w int) {
		for i, s := range n.sources(r) {
			e2, w2 := ranks(s)
			if i == 0 || n.fault == "inbounds are in the order of the most specific source" && n.higher(e2, w2, e, w) {
				e, w = e2, w2
			}
		}
		return e, w
	}
	sort.SliceStable(found, func(i, j int) bool {
		e1, w1 := rank(found[i])
		e2, w2 := rank(found[j])
		return n.higher(e1, w1, e2, w2)
	})
	for from := 0; from < len(found); {
		to := from + 1
		for e, w := rank(found[from]); to < len(found); to++ {
			if e2, w2 := rank(found[to]); e2 != e || w2 != w {
				break
			}
		}
		n.byTime(found[from:to])
		from = to
	}
	names := make([]string, len(found))
	for i, r := range found {
		names[i] = r.Key.Name
	}
	return strings.Join(names, " ")
}

func (n naive) proxyOne(typ resource.Type, proxy []tags) string {
	var list []candidate
	for _, r := range n.decoded(typ) {
		for _, s := range n.proxySelectors(r) {
			for _, t := range proxy {
				if n.match(s, t) {
					e, w := ranks(s)
					list = append(list, candidate{rec: r, exact: e, wild: w, dest: [2]int{e, w}})
				}
			}
		}
	}
	return n.choose(list)
}

// What follows is about targetRef policies.

type refJSON struct {
	Kind string
	Name string
	Tags tags
}

type itemJSON struct {
	TargetRef refJSON
	Default   any
}

type policyJSON struct {
	TargetRef refJSON
	From, To  []itemJSON
	Default   any
	rec       *store.Record
}

func (r refJSON) tags() tags {
	t := tags{}
	maps.Copy(t, r.Tags)
	if strings.HasPrefix(r.Kind, "MeshService") {
		t["kuma.io/service"] = r.Name
	}
	return t
}

func (n naive) attached(typ resource.Type, proxy []tags) []policyJSON {
	var out []policyJSON
	for _, r := range n.decoded(typ) {
		p := policyJSON{rec: r}
		if err := json.Unmarshal(r.Spec, &p); err != nil {
			panic(err)
		}
		if slices.ContainsFunc(proxy, func(t tags) bool { return n.match(p.TargetRef.tags(), t) }) {
			out = append(out, p)
		}
	}
	if n.fault == "a kind of target is as good as another" {
		return out
	}
	kinds := []string{"Mesh", "MeshSubset", "MeshService", "MeshServiceSubset"}
	sort.SliceStable(out, func(i, j int) bool {
		return slices.Index(kinds, out[i].TargetRef.Kind) < slices.Index(kinds, out[j].TargetRef.Kind)
	})
	return out
}

type literal struct {
	key, value string
	not        bool
}

type naiveItem struct {
	tags tags
	conf any
	name string
}

// rules are the lines of the rules of items, by trying all combinations of tags.
func (n naive) rules(items []naiveItem) []string {
	if len(items) == 0 {
		return nil
	}
	var all []literal
	for _, it := range items {
		for k, v := range it.tags {
			if l := (literal{k, v, false}); !slices.Contains(all, l) {
				all = append(all, l)
			}
		}
	}
	sort.Slice(all, func(i, j int) bool {
		return all[i].key < all[j].key || all[i].key == all[j].key && all[i].value < all[j].value
	})
	type rule struct {
		positive int
		line     string
	}
	var rules []rule
	total := 1 << len(all)
	for step := 1; step <= total; step++ {
		number := step % total // the first tag is negated first; all are there at the end
		if n.fault == "the counter counts down" {
			number = total - step
		}
		var set []literal
		present := map[string]bool{}
		impossible := false
		for i, l := range all {
			l.not = number>>i&1 == 1
			if !l.not {
				impossible = impossible || present[l.key]
				present[l.key] = true
			}
			set = append(set, l)
		}
		if impossible {
			continue
		}
		if n.fault != "other values of a tag that is there are negated" {
			set = slices.DeleteFunc(set, func(l literal) bool { return l.not && present[l.key] })
		}
		var conf any = map[string]any{}
		var origins []string
		used := 0
		for _, it := range items {
			if !holds(it.tags, set) {
				continue
			}
			used++
			if n.fault == "the first item of a rule overrides the later ones" {
				conf = n.merge(it.conf, conf)
			} else {
				conf = n.merge(conf, it.conf)
			}
			if !slices.Contains(origins, it.name) {
				origins = append(origins, it.name)
			}
		}
		if used == 0 && n.fault != "a rule without items is a rule" {
			continue
		}
		r := rule{}
		var subset []string
		for _, l := range set {
			if l.not {
				subset = append(subset, l.key+"!="+l.value)
			} else {
				subset = append(subset, l.key+"="+l.value)
				r.positive++
			}
		}
		body, err := json.Marshal(conf)
		if err != nil {
			panic(err)
		}
		r.line = fmt.Sprintf("%v %s %v", subset, body, origins)
		rules = append(rules, r)
	}
	if n.fault != "rules are in the order of the counter" {
		sort.SliceStable(rules, func(i, j int) bool { return rules[i].positive > rules[j].positive })
	}
	lines := make([]string, len(rules))
	for i, r := range rules {
		lines[i] = r.line
	}
	return lines
}

// holds reports whether an item with these tags is for everyone of the set.
func holds(item tags, set []literal) bool {
	for k, v := range item {
		known := false
		for _, l := range set {
			if l.key == k {
				known = true
				if l.not && l.value == v || !l.not && l.value != v {
					return false
				}
			}
		}
		if !known {
			return false
		}
	}
	return true
}

// merge is RFC 7386, section 2, word for word.
func (n naive) merge(target, patch any) any {
	p, ok := patch.(map[string]any)
	if !ok {
		if a, ok := target.([]any); ok && n.fault == "arrays are joined by a merge" {
			if b, ok := patch.([]any); ok {
				return append(slices.Clone(a), b...)
			}
		}
		return patch
	}
	result := map[string]any{}
	if t, ok := target.(map[string]any); ok {
		maps.Copy(result, t)
	}
	for k, v := range p {
		if v == nil && n.fault != "null is a value" {
			delete(result, k)
		} else {
			result[k] = n.merge(result[k], v)
		}
	}
	return result
}

func (n naive) refs(typ resource.Type, inbounds, proxy []tags) []string {
	if n.fault == "a gateway's tags name no proxy" {
		proxy = inbounds
	}
	attached := n.attached(typ, proxy)
	if len(attached) == 0 {
		return nil
	}
	items := func(list []policyJSON, of func(policyJSON) []itemJSON) []naiveItem {
		var out []naiveItem
		for _, p := range list {
			for _, it := range of(p) {
				out = append(out, naiveItem{it.TargetRef.tags(), it.Default, p.rec.Key.Name})
			}
		}
		return out
	}
	var lines []string
	for _, p := range attached {
		lines = append(lines, fmt.Sprintf("%s attached %s", typ, p.rec.Key.Name))
	}
	for i, in := range inbounds {
		for _, l := range n.rules(items(n.attached(typ, []tags{in}), func(p policyJSON) []itemJSON { return p.From })) {
			lines = append(lines, fmt.Sprintf("%s from %d: %s", typ, i, l))
		}
	}
	for _, l := range n.rules(items(attached, func(p policyJSON) []itemJSON { return p.To })) {
		lines = append(lines, fmt.Sprintf("%s to: %s", typ, l))
	}
	var single []naiveItem
	for _, p := range attached {
		if p.Default != nil {
			single = append(single, naiveItem{tags{}, p.Default, p.rec.Key.Name})
		}
	}
	for _, l := range n.rules(single) {
		lines = append(lines, fmt.Sprintf("%s single: %s", typ, l))
	}
	return lines
}

// describe says in lines what the proxy of a world gets.
func (n naive) describe(w world) []string {
	var inbounds, proxy []tags
	for _, in := range w.dp.Networking.Inbound {
		inbounds = append(inbounds, in.Tags)
	}
	proxy = slices.Clone(inbounds)
	if g := w.dp.Networking.Gateway; g != nil {
		proxy = append(proxy, g.Tags)
	}
	var lines []string
	for i, t := range append(slices.Clone(inbounds), w.options.Metrics) {
		if t != nil {
			lines = append(lines, fmt.Sprintf("in %d: permission %s faults %s limits %s", i,
				n.inboundOne("TrafficPermission", t), n.inboundAll("FaultInjection", t), n.inboundAll("RateLimit", t)))
		}
	}
	for i, t := range w.options.Outbounds {
		service, _ := naive{}.value(t, "kuma.io/service")
		lines = append(lines, fmt.Sprintf("out %d %s: route %s timeout %s limit %s", i, service,
			n.outbound("TrafficRoute", proxy, service), n.outbound("Timeout", proxy, service), n.outbound("RateLimit", proxy, service)))
	}
	for _, s := range append(services(), "pass_through") {
		lines = append(lines, fmt.Sprintf("service %s: health %s breaker %s retry %s log %s", s,
			n.outbound("HealthCheck", proxy, s), n.outbound("CircuitBreaker", proxy, s), n.outbound("Retry", proxy, s), n.outbound("TrafficLog", proxy, s)))
	}
	for _, t := range w.options.Externals {
		lines = append(lines, fmt.Sprintf("may reach %v: %t", t, n.mayReach(t, proxy)))
	}
	lines = append(lines, fmt.Sprintf("trace %s template %s", n.proxyOne("TrafficTrace", proxy), n.proxyOne("ProxyTemplate", proxy)))
	for _, typ := range refTypes() {
		lines = append(lines, n.refs(typ, inbounds, proxy)...)
	}
	return lines
}

func (n naive) mayReach(external tags, proxy []tags) bool {
	best := n.inboundOne("TrafficPermission", external)
	for _, r := range n.decoded("TrafficPermission") {
		if r.Key.Name == best {
			_, _, ok := n.sourceRank(r, proxy)
			return ok
		}
	}
	return false
}

func refTypes() []resource.Type {
	return []resource.Type{policy.MeshAccessLog, policy.MeshTrace, policy.MeshTrafficPermission}
}
