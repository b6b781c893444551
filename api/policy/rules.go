package policy

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/meridian-mesh/meridian/api/resource"
)

// Rules are what targetRef policies amount to. Each says for one subset of the peers what the items that name it say
// together. A peer is in exactly one subset, or in none of which anything is said.
//
// The subsets: take all tags that the items name. A peer either has a tag or does not; of tags with one key it has at
// most one. So each key gives as many cases as it has values, and one more, that the peer has none of them; a subset is
// one case of each key. It counts when at least one item names all of it.
//
// There can be as many subsets as the product of these cases. Only those are visited that some item names, and each costs
// as much as there are items that do; beyond maxRules subsets, or maxMerges items in all of them, there is an error
// instead of rules.

// maxRules and maxMerges bound what the rules for one inbound, or for all outbounds, may cost.
const (
	maxRules  = 1 << 13
	maxMerges = 1 << 18
)

// Tag is a condition on a peer: that it has a tag, or with Not that it does not.
type Tag struct {
	Key, Value string
	Not        bool
}

// String is "key=value", or "key!=value".
func (t Tag) String() string {
	if t.Not {
		return t.Key + "!=" + t.Value
	}
	return t.Key + "=" + t.Value
}

// Rule is what holds for the peers of a subset. It is shared: read-only.
type Rule struct {
	// Subset are the conditions that a peer meets, all of them, sorted by key and value. Empty: all peers.
	Subset []Tag
	// Conf is the merged configuration.
	Conf json.RawMessage
	// Origins are the policies it is merged from; later ones override earlier ones.
	Origins []*Policy

	conf any // Conf, parsed
}

// Has reports whether a peer with the given tags is in the subset of the rule.
func (r *Rule) Has(tags map[string]string) bool {
	for _, t := range r.Subset {
		if v, ok := tags[t.Key]; (ok && v == t.Value) == t.Not {
			return false
		}
	}
	return true
}

// Rules are in the order in which they are to be tried: subsets with more tags that a peer must have come first.
type Rules []*Rule

// Compute returns the rule for a peer with the given tags; nil when nothing is said of it.
func (rs Rules) Compute(tags map[string]string) *Rule {
	tags = normalize(tags)
	for _, r := range rs {
		if r.Has(tags) {
			return r
		}
	}
	return nil
}

// Attached are the policies of one type that are for a proxy, and what they amount to.
type Attached struct {
	// Policies are sorted: what a later one says overrides what an earlier one says.
	Policies []*Policy
	// From belong to the inbounds of the Dataplane, in its order, or of a builtin gateway to the listeners of its
	// MeshGateway. It is empty when Policies is.
	From []From
	// To are the rules for the traffic that leaves the proxy, by the tags of the destination. Err says why there are none
	// although there should be.
	To    Rules
	ToErr error
	// Single is what holds for the proxy as a whole; nil: nothing.
	Single *Rule
}

// From are the policies for connections to one inbound.
type From struct {
	// Policies are those of the attached policies that are for the inbound.
	Policies []*Policy
	// Rules are by the tags of the client. Err says why there are none although there should be.
	Rules Rules
	Err   error
}

// The values of proxyTypes in a targetRef.
const (
	typeSidecar = "Sidecar"
	typeGateway = "Gateway"
)

// attached finds the targetRef policies of a type that are for a proxy.
func (s *Set) attached(t resource.Type, v view) Attached {
	table := s.table(t)
	var a Attached
	a.Policies = table.attachedTo(v.proxyType(), v.all...)
	if len(a.Policies) == 0 {
		return a
	}
	a.From = make([]From, len(v.inbounds))
	for i, tags := range v.inbounds {
		from := &a.From[i]
		from.Policies = table.attachedTo(v.proxyType(), tags)
		if same := slices.IndexFunc(a.From[:i], func(f From) bool { return slices.Equal(f.Policies, from.Policies) }); same >= 0 {
			*from = a.From[same]
			continue
		}
		from.Rules, from.Err = buildRules(from.Policies, func(r *Ref) []Item { return r.From })
	}
	a.To, a.ToErr = buildRules(a.Policies, func(r *Ref) []Item { return r.To })
	a.Single = single(a.Policies)
	return a
}

// attachedTo are the policies that name any of the sets of tags, in the order in which they override each other.
func (t *table) attachedTo(proxyType string, tags ...map[string]string) []*Policy {
	var found []int
	for _, set := range tags {
		for at := range t.matching(set) {
			if t.policies[at].Ref.TargetRef.forType(proxyType) {
				found = append(found, at)
			}
		}
	}
	kinds := kindOrder()
	kind := func(at int) int { return slices.Index(kinds, t.policies[at].Ref.TargetRef.Kind) }
	slices.SortFunc(found, func(a, b int) int { return cmp.Or(cmp.Compare(kind(a), kind(b)), cmp.Compare(a, b)) })
	found = slices.Compact(found)
	policies := make([]*Policy, len(found))
	for i, at := range found {
		policies[i] = t.policies[at]
	}
	return policies
}

func (v view) proxyType() string {
	if v.gateway != nil {
		return typeGateway
	}
	return typeSidecar
}

// single merges what policies say of the proxy as a whole.
func single(policies []*Policy) *Rule {
	b := ruleBuilder{}
	for _, p := range policies {
		if p.Ref.Default != nil {
			b.items = append(b.items, ruleItem{conf: p.Ref.conf, origin: p})
		}
	}
	rules, _ := b.build() // one rule at most
	if len(rules) == 0 {
		return nil
	}
	return rules[0]
}

// buildRules makes the rules of the items that policies have in one direction.
func buildRules(policies []*Policy, items func(*Ref) []Item) (Rules, error) {
	b := ruleBuilder{}
	for _, p := range policies {
		for _, item := range items(p.Ref) {
			b.items = append(b.items, ruleItem{tags: item.TargetRef.tags(), conf: item.conf, origin: p})
		}
	}
	return b.build()
}

// ruleItem is an item as far as rules are concerned: the tags of the peers it names, and what it says.
type ruleItem struct {
	tags   map[string]string
	conf   any
	origin *Policy
}

// ruleBuilder visits the subsets. Keys are decided from the last to the first, the values of a key from the last to the
// first, and that a peer has none of them at the end: this is the order of a binary counter whose digits are the tags
// with the first as the lowest digit, 1 for a tag that a peer does not have.
type ruleBuilder struct {
	items  []ruleItem
	keys   []string   // of all items, sorted
	values [][]string // by key, sorted

	subset []Tag // decided so far, in the order of the decisions
	rules  Rules
	merges int
}

func (b *ruleBuilder) build() (Rules, error) {
	named := make(map[string]map[string]bool)
	all := make([]int, len(b.items))
	for i, item := range b.items {
		all[i] = i
		for k, v := range item.tags {
			if named[k] == nil {
				named[k] = make(map[string]bool)
			}
			named[k][v] = true
		}
	}
	for k := range named {
		b.keys = append(b.keys, k)
	}
	slices.Sort(b.keys)
	for _, k := range b.keys {
		values := make([]string, 0, len(named[k]))
		for v := range named[k] {
			values = append(values, v)
		}
		slices.Sort(values)
		b.values = append(b.values, values)
	}
	if err := b.visit(len(b.keys)-1, all); err != nil {
		return nil, err
	}
	slices.SortStableFunc(b.rules, func(x, y *Rule) int { return cmp.Compare(y.positive(), x.positive()) })
	return b.rules, nil
}

func (r *Rule) positive() int {
	n := 0
	for _, t := range r.Subset {
		if !t.Not {
			n++
		}
	}
	return n
}

// visit decides the keys up to and including the given one. live are the items that name everything decided so far, in
// order. One of them at least names some subset that is still to come, so nothing is visited in vain.
func (b *ruleBuilder) visit(key int, live []int) error {
	if len(live) == 0 {
		return nil
	}
	if key < 0 {
		return b.add(live)
	}
	name, values := b.keys[key], b.values[key]
	silent, saying := make([]int, 0, len(live)), make(map[string][]int) // items that do not name the key, and those that do
	for _, i := range live {
		if v, ok := b.items[i].tags[name]; ok {
			saying[v] = append(saying[v], i)
		} else {
			silent = append(silent, i)
		}
	}
	decided := len(b.subset)
	for _, v := range slices.Backward(values) {
		b.subset = append(b.subset[:decided], Tag{Key: name, Value: v})
		if err := b.visit(key-1, union(silent, saying[v])); err != nil {
			return err
		}
	}
	b.subset = b.subset[:decided]
	if len(silent) == 0 {
		return nil
	}
	for _, v := range slices.Backward(values) {
		b.subset = append(b.subset, Tag{Key: name, Value: v, Not: true})
	}
	err := b.visit(key-1, silent)
	b.subset = b.subset[:decided]
	return err
}

// union merges two sorted lists that have nothing in common.
func union(a, b []int) []int {
	if len(b) == 0 {
		return a
	}
	out := make([]int, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		if a[0] < b[0] {
			out, a = append(out, a[0]), a[1:]
		} else {
			out, b = append(out, b[0]), b[1:]
		}
	}
	return append(append(out, a...), b...)
}

// add makes the rule of the subset that is decided.
func (b *ruleBuilder) add(live []int) error {
	if b.merges += len(live); len(b.rules) == maxRules || b.merges > maxMerges {
		return fmt.Errorf("policies %s name too many combinations of tags: more than %d rules, or %d merged items",
			b.names(), maxRules, maxMerges)
	}
	r := &Rule{Subset: slices.Clone(b.subset), conf: map[string]any{}}
	slices.Reverse(r.Subset)
	for _, i := range live {
		item := b.items[i]
		if item.conf != nil {
			r.conf = mergePatch(r.conf, item.conf)
		}
		if len(r.Origins) == 0 || r.Origins[len(r.Origins)-1] != item.origin {
			r.Origins = append(r.Origins, item.origin)
		}
	}
	conf, err := encode(r.conf)
	if err != nil {
		return fmt.Errorf("merge policies %s: %w", b.names(), err)
	}
	r.Conf = conf
	b.rules = append(b.rules, r)
	return nil
}

// names are those of the policies, as many as an error message can hold.
func (b *ruleBuilder) names() string {
	const most = 10
	var names []string
	for _, item := range b.items {
		if name := item.origin.Name; !slices.Contains(names, name) {
			names = append(names, name)
		}
		if len(names) > most {
			names[most] = "..."
			break
		}
	}
	return strings.Join(names, ", ")
}
