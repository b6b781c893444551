package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
)

// What of the candidates is listed, so that a mesh with hundreds of policies still gives an answer that one can read.
const (
	maxLost      = 20
	maxUnmatched = 5
)

// Verdict is what became of a candidate.
type Verdict uint8

// The verdicts.
const (
	Chosen    Verdict = iota // it counts
	Lost                     // it matches, and another one counts
	Unmatched                // it does not match
)

// Specificity is how many tags a selector wants to have an exact value, and how many any value.
type Specificity struct{ Exact, Wildcard int }

// Candidate is a policy, and what became of it where one of its type was chosen.
type Candidate struct {
	Policy  *Policy
	Verdict Verdict
	// Source and Target are those of the selectors that match best; zero where nothing does, or where no source is asked for.
	Source, Target Specificity
	// Reason is why, in words for who wrote the policy.
	Reason string
}

// Candidates are the policies of a type that were there to choose from: those that count, then those that match, the closest
// first, then those that do not, the nearest misses first.
type Candidates struct {
	List []Candidate
	// MoreLost and MoreUnmatched count those that are not listed.
	MoreLost, MoreUnmatched int
}

// Chosen are the policies that count.
func (c Candidates) Chosen() []*Policy {
	var out []*Policy
	for _, one := range c.List {
		if one.Verdict == Chosen {
			out = append(out, one.Policy)
		}
	}
	return out
}

// CandidatesTo explains To: the chosen one is what it returns.
func (c *Client) CandidatesTo(t resource.Type, service string) Candidates {
	if p := c.unrouted(t); p != nil {
		return p.alone()
	}
	return trial{sources: c.sources, fromClient: true, targets: []map[string]string{{serviceTag: service}}, serviceOnly: true}.
		decide(c.set.Of(t))
}

// CandidatesToTags explains ToTags.
func (c *Client) CandidatesToTags(t resource.Type, tags map[string]string) Candidates {
	if p := c.unrouted(t); p != nil {
		return p.alone()
	}
	return trial{sources: c.sources, fromClient: true, targets: []map[string]string{normalize(tags)}}.decide(c.set.Of(t))
}

// unrouted is the route of a mesh without any; nil for other types, and where there are routes.
func (c *Client) unrouted(t resource.Type) *Policy {
	if t == TrafficRoute && len(c.set.Of(t)) == 0 {
		return c.set.routeAll
	}
	return nil
}

func (p *Policy) alone() Candidates {
	return Candidates{List: []Candidate{{
		Policy: p, Source: Specificity{Wildcard: 1}, Target: Specificity{Wildcard: 1},
		Reason: "the mesh has no TrafficRoute: every outbound leads to the service it names",
	}}}
}

// CandidatesFor explains which policy of a type counts for what has the given tags, as PermissionFor says it of TrafficPermissions.
func (s *Set) CandidatesFor(t resource.Type, tags map[string]string) Candidates {
	return trial{targets: []map[string]string{normalize(tags)}}.decide(s.Of(t))
}

// CandidatesOf explains which policy of a type with selectors counts for a proxy as a whole: its TrafficTrace, ProxyTemplate or
// MeshGateway.
func (s *Set) CandidatesOf(t resource.Type, dp *meshv1.Dataplane) Candidates {
	return trial{targets: viewOf(dp).all}.decide(s.Of(t))
}

// CandidatesAt explains FaultInjectionsFor and RateLimitsFor: all that match count, in the order in which they do. Whom each of
// them is for is in its sources.
func (s *Set) CandidatesAt(t resource.Type, tags map[string]string) Candidates {
	tags = normalize(tags)
	tr := trial{targets: []map[string]string{tags}}
	var out Candidates
	for _, p := range s.sourced(t, tags) {
		if !slices.ContainsFunc(out.List, func(c Candidate) bool { return c.Policy == p.Policy }) {
			_, target, _ := tr.ranks(p.Policy)
			out.List = append(out.List, Candidate{Policy: p.Policy, Target: target.specificity(), Reason: "all that match count"})
		}
	}
	tr.addUnmatched(&out, s.Of(t))
	return out
}

// AttachedCandidates explains which targetRef policies of a type are for an inbound with the given tags: all that name it, in the
// order in which they override each other. gateway says that its proxy is one.
func (s *Set) AttachedCandidates(t resource.Type, tags map[string]string, gateway bool) Candidates {
	v, tags := typedView(gateway), normalize(tags)
	var out Candidates
	attached := s.table(t).attachedTo(v.proxyType(), tags)
	for i, p := range attached {
		r, _ := bestRank(p.targets, tags)
		reason := "its targetRef names the inbound"
		if i > 0 {
			reason += "; it overrides those before it"
		}
		out.List = append(out.List, Candidate{Policy: p, Target: r.specificity(), Reason: reason})
	}
	for _, p := range s.Of(t) {
		switch {
		case slices.Contains(attached, p):
		case len(out.List)-len(attached) == maxUnmatched:
			out.MoreUnmatched++
		default:
			out.List = append(out.List, Candidate{Policy: p, Verdict: Unmatched, Reason: p.Ref.TargetRef.misses(v.proxyType(), tags)})
		}
	}
	return out
}

// InboundFrom is what policies of a type with a targetRef say of connections to an inbound with the given tags: what Match says of
// the inbound when it is one of a proxy's. gateway says that its proxy is one.
func (s *Set) InboundFrom(t resource.Type, tags map[string]string, gateway bool) From {
	from := From{Policies: s.table(t).attachedTo(typedView(gateway).proxyType(), normalize(tags))}
	from.Rules, from.Err = buildRules(from.Policies, func(r *Ref) []Item { return r.From })
	return from
}

func typedView(gateway bool) (v view) {
	if gateway {
		v.gateway = map[string]string{}
	}
	return v
}

// misses says why a targetRef does not name a proxy of a type with the given tags.
func (r TargetRef) misses(proxyType string, tags map[string]string) string {
	if !r.forType(proxyType) {
		return "its targetRef is not for proxies of type " + proxyType
	}
	if list := r.selectors(); len(list) > 0 {
		return "its targetRef does not name it: " + nearest(list, []map[string]string{tags}).text(len(list), "it")
	}
	return "its targetRef is a " + r.Kind + ", which names no inbound"
}

// trial is what policies of a type with selectors are held against.
type trial struct {
	// sources are the sets of tags of the client; they are not asked for without fromClient.
	sources    []map[string]string
	fromClient bool
	// targets are the sets of tags of which one must match.
	targets []map[string]string
	// serviceOnly: nothing but the service of the destination is known.
	serviceOnly bool
}

// ranks are those of the selectors of p that match best; false when p does not match.
func (tr trial) ranks(p *Policy) (source, target rank, ok bool) {
	if tr.fromClient {
		if source, ok = bestRank(p.sources, tr.sources...); !ok {
			return rank{}, rank{}, false
		}
	}
	target, ok = bestRank(tr.eligible(p), tr.targets...)
	return source, target, ok
}

// eligible are the destinations of p that can match at all.
func (tr trial) eligible(p *Policy) []selector {
	if !tr.serviceOnly {
		return p.targets
	}
	return slices.DeleteFunc(slices.Clone(p.targets), func(s selector) bool { return !s.serviceOnly() })
}

// decide offers the policies to a choice, and says of each what became of it.
func (tr trial) decide(policies []*Policy) Candidates {
	type ranked struct {
		at             int
		source, target rank
	}
	var c choice
	var found []ranked
	for at, p := range policies {
		if source, target, ok := tr.ranks(p); ok {
			found = append(found, ranked{at, source, target})
			c.offer(policies, at, source.plus(target))
		}
	}
	winner := c.policy(policies)
	slices.SortStableFunc(found, func(a, b ranked) int {
		if wins := policies[a.at] == winner; wins != (policies[b.at] == winner) {
			return map[bool]int{true: -1, false: 1}[wins]
		}
		return b.source.plus(b.target).compare(a.source.plus(a.target))
	})
	equals := 0
	for _, f := range found {
		if f.source.plus(f.target) == c.rank {
			equals++
		}
	}
	var out Candidates
	for i, f := range found {
		p := policies[f.at]
		one := Candidate{Policy: p, Source: f.source.specificity(), Target: f.target.specificity()}
		switch {
		case p == winner:
			one.Reason = c.won(len(found), equals)
		case i > maxLost:
			out.MoreLost++
			continue
		default:
			one.Verdict, one.Reason = Lost, c.lost(p, winner, f.source.plus(f.target))
		}
		out.List = append(out.List, one)
	}
	tr.addUnmatched(&out, policies)
	return out
}

// won says why the chosen one is, of as many that match, of which as many are as specific.
func (c *choice) won(matching, equals int) string {
	switch {
	case matching == 1:
		return "the only one that matches"
	case equals == 1:
		return fmt.Sprintf("the most specific of %d that match", matching)
	case c.timeless:
		return fmt.Sprintf("the first by name of %d that are as specific: not of all is known when they were created", equals)
	case c.first == c.latest:
		return fmt.Sprintf("created last, or the first by name, of %d that are as specific", equals)
	default:
		return fmt.Sprintf("created last of %d that are as specific", equals)
	}
}

// lost says why p is not the chosen one.
func (c *choice) lost(p, winner *Policy, r rank) string {
	switch {
	case r.compare(c.rank) < 0:
		return fmt.Sprintf("less specific: %s against %s", r, c.rank)
	case c.timeless:
		return "as specific; not of all is known when they were created: the first name counts"
	case p.Created.Before(winner.Created):
		return fmt.Sprintf("as specific, but created earlier: %s against %s", p.Created.UTC().Format(time.RFC3339), winner.Created.UTC().Format(time.RFC3339))
	default:
		return "as specific, and created at the same time: the first name counts"
	}
}

// addUnmatched adds those that do not match, the nearest misses first.
func (tr trial) addUnmatched(out *Candidates, policies []*Policy) {
	type missed struct {
		p             *Policy
		source, where miss
	}
	var all []missed
	for _, p := range policies {
		if _, _, ok := tr.ranks(p); ok {
			continue
		}
		m := missed{p: p, where: nearest(p.targets, tr.targets)}
		if tr.fromClient {
			m.source = nearest(p.sources, tr.sources)
		}
		all = append(all, m)
	}
	slices.SortStableFunc(all, func(a, b missed) int {
		return cmp.Compare(a.source.count()+a.where.count(), b.source.count()+b.where.count())
	})
	out.MoreUnmatched = max(len(all)-maxUnmatched, 0)
	for _, m := range all[:len(all)-out.MoreUnmatched] {
		out.List = append(out.List, Candidate{Policy: m.p, Verdict: Unmatched, Reason: tr.misfit(m.p, m.source, m.where)})
	}
}

// misfit says why p does not match.
func (tr trial) misfit(p *Policy, source, target miss) string {
	sources, targets := "its sources do not match: ", "its destinations do not match: "
	if !tr.fromClient {
		targets = "it does not match: "
	}
	var parts []string
	if tr.fromClient && source.misses() {
		parts = append(parts, sources+source.text(len(p.sources), "this proxy"))
	}
	switch {
	case target.misses():
		parts = append(parts, targets+target.text(len(p.targets), "the destination"))
	case tr.serviceOnly && len(tr.eligible(p)) == 0:
		parts = append(parts, "its destinations want more than a service, and which endpoint it will be is not known where it acts")
	case tr.serviceOnly && len(parts) == 0:
		parts = append(parts, "those of its destinations that match want more than a service, and which endpoint it will be is not known where it acts")
	}
	return strings.Join(parts, "; ")
}

// miss is how far the nearest of some selectors is from matching.
type miss struct {
	none  bool        // there is no selector at all
	unmet []condition // sorted
	has   map[string]string
}

func (m miss) misses() bool { return m.none || len(m.unmet) > 0 }

func (m miss) count() int {
	if m.none {
		return 1 << 10
	}
	return len(m.unmet)
}

// nearest is the miss of the selector with the fewest conditions unmet by any of the sets of tags.
func nearest(list []selector, tags []map[string]string) miss {
	if len(tags) == 0 {
		tags = []map[string]string{nil}
	}
	best := miss{none: true}
	for i := range list {
		for _, set := range tags {
			if m := list[i].unmet(set); best.none || len(m) < len(best.unmet) {
				best = miss{unmet: m, has: set}
			}
		}
	}
	return best
}

// unmet are the conditions of a selector that tags do not meet.
func (s *selector) unmet(tags map[string]string) []condition {
	var out []condition
	if s.service != "" && tags[serviceTag] != s.service {
		out = append(out, condition{serviceTag, s.service})
	}
	for _, c := range s.rest {
		if one := (selector{rest: []condition{c}}); !one.matches(tags) {
			out = append(out, c)
		}
	}
	return out
}

// text is what is wanted, and what who has instead.
func (m miss) text(of int, who string) string {
	if m.none {
		return "there are none"
	}
	const most = 3
	wants, has := make([]string, 0, most), make([]string, 0, most)
	for i, c := range m.unmet {
		if i == most {
			wants = append(wants, fmt.Sprintf("%d more", len(m.unmet)-most))
			break
		}
		wants = append(wants, c.key+"="+c.value)
		if v, ok := m.has[c.key]; ok {
			has = append(has, c.key+"="+v)
		} else {
			has = append(has, "no "+c.key)
		}
	}
	text := "wants "
	if of > 1 {
		text = fmt.Sprintf("the nearest of %d wants ", of)
	}
	return text + strings.Join(wants, ", ") + "; " + who + " has " + strings.Join(has, ", ")
}

func (r rank) specificity() Specificity { return Specificity{r.exact, r.wildcard} }

// String is a number of tags in words.
func (r rank) String() string {
	switch {
	case r.exact == 0 && r.wildcard == 0:
		return "no tag"
	case r.wildcard == 0:
		return count(r.exact, "exact tag")
	case r.exact == 0:
		return count(r.wildcard, "wildcard")
	default:
		return count(r.exact, "exact tag") + " and " + count(r.wildcard, "wildcard")
	}
}

func count(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", n, what)
}
