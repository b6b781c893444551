package policy_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// explained is a choice among the policies of one type, and what explains it.
type explained struct {
	what       string
	typ        resource.Type
	chosen     func(*policy.Set) []*policy.Policy
	candidates func(*policy.Set) policy.Candidates
}

func one(p *policy.Policy) []*policy.Policy {
	if p == nil {
		return nil
	}
	return []*policy.Policy{p}
}

func each(sourced []policy.Sourced) []*policy.Policy {
	var out []*policy.Policy
	for _, s := range sourced {
		if !slices.Contains(out, s.Policy) {
			out = append(out, s.Policy)
		}
	}
	return out
}

// choices are all that is chosen for the proxy of a world.
func choices(w world) []explained {
	var sources []tags
	for _, in := range w.dp.GetNetworking().GetInbound() {
		sources = append(sources, in.GetTags())
	}
	gateway := w.dp.GetNetworking().GetGateway()
	if gateway != nil {
		sources = append(sources, gateway.GetTags())
	}
	var out []explained
	for _, typ := range []resource.Type{
		policy.TrafficRoute, policy.Timeout, policy.RateLimit, policy.TrafficLog, policy.HealthCheck, policy.CircuitBreaker, policy.Retry,
	} {
		for _, service := range append(services(), policy.PassThrough) {
			out = append(out, explained{
				"to " + service, typ,
				func(s *policy.Set) []*policy.Policy { return one(s.Client(sources...).To(typ, service)) },
				func(s *policy.Set) policy.Candidates { return s.Client(sources...).CandidatesTo(typ, service) },
			})
		}
		for _, to := range w.options.Outbounds {
			out = append(out, explained{
				fmt.Sprint("to ", to), typ,
				func(s *policy.Set) []*policy.Policy { return one(s.Client(sources...).ToTags(typ, to)) },
				func(s *policy.Set) policy.Candidates { return s.Client(sources...).CandidatesToTags(typ, to) },
			})
		}
	}
	for _, typ := range []resource.Type{policy.TrafficTrace, policy.ProxyTemplate} {
		out = append(out, explained{
			"of the proxy", typ,
			func(s *policy.Set) []*policy.Policy {
				m := s.Match(w.dp, w.options)
				return one(map[resource.Type]*policy.Policy{policy.TrafficTrace: m.TrafficTrace, policy.ProxyTemplate: m.ProxyTemplate}[typ])
			},
			func(s *policy.Set) policy.Candidates { return s.CandidatesOf(typ, w.dp) },
		})
	}
	for i, in := range w.dp.GetNetworking().GetInbound() {
		where := fmt.Sprint("at inbound ", i)
		out = append(out, explained{
			where, policy.TrafficPermission,
			func(s *policy.Set) []*policy.Policy {
				return one(s.Match(w.dp, w.options).Inbounds[i].TrafficPermission)
			},
			func(s *policy.Set) policy.Candidates { return s.CandidatesFor(policy.TrafficPermission, in.GetTags()) },
		}, explained{
			where, policy.FaultInjection,
			func(s *policy.Set) []*policy.Policy {
				return each(s.Match(w.dp, w.options).Inbounds[i].FaultInjections)
			},
			func(s *policy.Set) policy.Candidates { return s.CandidatesAt(policy.FaultInjection, in.GetTags()) },
		}, explained{
			where, policy.RateLimit,
			func(s *policy.Set) []*policy.Policy { return each(s.Match(w.dp, w.options).Inbounds[i].RateLimits) },
			func(s *policy.Set) policy.Candidates { return s.CandidatesAt(policy.RateLimit, in.GetTags()) },
		}, explained{
			where, policy.MeshTrafficPermission,
			func(s *policy.Set) []*policy.Policy {
				from := s.Match(w.dp, w.options).Permission.From
				if i >= len(from) {
					return nil
				}
				return from[i].Policies
			},
			func(s *policy.Set) policy.Candidates {
				return s.AttachedCandidates(policy.MeshTrafficPermission, in.GetTags(), gateway != nil)
			},
		})
	}
	return out
}

// candidatesFault says what is wrong with the explanations of the choices of a world, after change has had its way with them.
func candidatesFault(w world, change func(policy.Candidates) policy.Candidates) string {
	set := w.set()
	for _, e := range choices(w) {
		got := change(e.candidates(set))
		want := e.chosen(set)
		if diff := cmp.Diff(names(want), names(got.Chosen())); diff != "" {
			return fmt.Sprintf("%s %s: what is chosen (-) and what is said to be (+) differ:\n%s", e.typ, e.what, diff)
		}
		if len(want) > 0 && want[0].Synthetic() {
			continue
		}
		seen := make(map[string]bool)
		for _, c := range got.List {
			if seen[c.Policy.Name] {
				return fmt.Sprintf("%s %s: %s is there twice", e.typ, e.what, c.Policy.Name)
			}
			seen[c.Policy.Name] = true
			if c.Reason == "" {
				return fmt.Sprintf("%s %s: of %s there is no reason", e.typ, e.what, c.Policy.Name)
			}
			// Alone in its mesh a policy counts exactly if it matches.
			alone, _ := policy.NewSet("default", slices.Values(slices.DeleteFunc(slices.Clone(w.records), func(r *store.Record) bool {
				return r.Key != c.Policy.Key()
			})))
			matches := len(e.chosen(alone)) > 0
			if matches != (c.Verdict != policy.Unmatched) {
				return fmt.Sprintf("%s %s: %s matches: %t, and is said to be %d (%s)", e.typ, e.what, c.Policy.Name, matches, c.Verdict, c.Reason)
			}
			if less := strings.HasPrefix(c.Reason, "less specific"); c.Verdict == policy.Lost && less != lessSpecific(c, got.List[0]) {
				return fmt.Sprintf("%s %s: %s lost because %s", e.typ, e.what, c.Policy.Name, c.Reason)
			}
		}
		if n := len(set.Of(e.typ)); len(got.List)+got.MoreLost+got.MoreUnmatched != n {
			return fmt.Sprintf("%s %s: %d policies, of which %d are listed and %d and %d are not", e.typ, e.what, n, len(got.List), got.MoreLost, got.MoreUnmatched)
		}
	}
	return ""
}

func lessSpecific(a, b policy.Candidate) bool {
	exact := func(c policy.Candidate) int { return c.Source.Exact + c.Target.Exact }
	all := func(c policy.Candidate) int { return exact(c) + c.Source.Wildcard + c.Target.Wildcard }
	return all(a) < all(b) || all(a) == all(b) && exact(a) < exact(b)
}

func names(policies []*policy.Policy) []string {
	out := make([]string, len(policies))
	for i, p := range policies {
		out[i] = p.Name
	}
	return out
}

func asTheyAre(c policy.Candidates) policy.Candidates { return c }

func TestCandidatesSayWhatIsChosen(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		if fault := candidatesFault(drawWorld(t), asTheyAre); fault != "" {
			t.Fatal(fault)
		}
	})
}

func TestWrongCandidatesAreNoticed(t *testing.T) {
	edit := func(f func(list []policy.Candidate) []policy.Candidate) func(policy.Candidates) policy.Candidates {
		return func(c policy.Candidates) policy.Candidates {
			c.List = f(slices.Clone(c.List))
			return c
		}
	}
	all := func(list []policy.Candidate, from, to policy.Verdict) []policy.Candidate {
		for i := range list {
			if list[i].Verdict == from {
				list[i].Verdict = to
			}
		}
		return list
	}
	wrong := map[string]func(policy.Candidates) policy.Candidates{
		"those that lost do not match": edit(func(l []policy.Candidate) []policy.Candidate { return all(l, policy.Lost, policy.Unmatched) }),
		"those that do not match lost": edit(func(l []policy.Candidate) []policy.Candidate { return all(l, policy.Unmatched, policy.Lost) }),
		"all that match are chosen":    edit(func(l []policy.Candidate) []policy.Candidate { return all(l, policy.Lost, policy.Chosen) }),
		"the last of those that match is chosen": edit(func(l []policy.Candidate) []policy.Candidate {
			for i, c := range slices.Backward(l) {
				if c.Verdict == policy.Lost {
					l[0].Verdict, l[i].Verdict = policy.Lost, policy.Chosen
					return l
				}
			}
			return l
		}),
		"one is left out": edit(func(l []policy.Candidate) []policy.Candidate { return l[:max(len(l)-1, 0)] }),
		"one is there twice": edit(func(l []policy.Candidate) []policy.Candidate {
			if len(l) > 1 {
				l[len(l)-1] = l[0]
			}
			return l
		}),
		"ranks do not count": edit(func(l []policy.Candidate) []policy.Candidate {
			for i := range l {
				l[i].Source, l[i].Target = policy.Specificity{}, policy.Specificity{}
			}
			return l
		}),
	}
	worlds := rapid.Custom(drawWorld)
	for seed := 0; seed < 5000 && len(wrong) > 0; seed++ {
		w := worlds.Example(seed)
		for name, change := range wrong {
			if candidatesFault(w, change) != "" {
				delete(wrong, name)
			}
		}
	}
	for name := range wrong {
		t.Errorf("nobody notices that %s", name)
	}
}

func TestReasonsOfCandidates(t *testing.T) {
	anyone := []tags{service("*")}
	client := tags{"kuma.io/service": "web", "kuma.io/zone": "west"}
	timeout := func(name string, created int, sources, destinations []tags) *store.Record {
		return record(policy.Timeout, name, connection(sources, destinations, `,"conf":{"connectTimeout":"1s"}`), created)
	}
	tests := []struct {
		name    string
		records []*store.Record
		want    []string
	}{
		{"alone", []*store.Record{timeout("a", 1, anyone, anyone)}, []string{"chosen a: the only one that matches"}},
		{
			"less specific",
			[]*store.Record{timeout("a", 1, anyone, anyone), timeout("b", 1, []tags{service("web")}, []tags{service("backend")})},
			[]string{"chosen b: the most specific of 2 that match", "lost a: less specific: 2 wildcards against 2 exact tags"},
		},
		{
			"created earlier",
			[]*store.Record{timeout("a", 1, anyone, anyone), timeout("b", 2, anyone, anyone)},
			[]string{
				"chosen b: created last of 2 that are as specific",
				"lost a: as specific, but created earlier: 2023-11-14T22:13:21Z against 2023-11-14T22:13:22Z",
			},
		},
		{
			"created at the same time",
			[]*store.Record{timeout("a", 1, anyone, anyone), timeout("b", 1, anyone, anyone)},
			[]string{
				"chosen a: created last, or the first by name, of 2 that are as specific",
				"lost b: as specific, and created at the same time: the first name counts",
			},
		},
		{
			"times are not known",
			[]*store.Record{timeout("a", 0, anyone, anyone), timeout("b", 2, anyone, anyone)},
			[]string{
				"chosen a: the first by name of 2 that are as specific: not of all is known when they were created",
				"lost b: as specific; not of all is known when they were created: the first name counts",
			},
		},
		{
			"for another zone",
			[]*store.Record{timeout("a", 1, []tags{service("*", "kuma.io/zone=east")}, anyone)},
			[]string{"unmatched a: its sources do not match: wants kuma.io/zone=east; this proxy has kuma.io/zone=west"},
		},
		{
			"for another service",
			[]*store.Record{timeout("a", 1, anyone, []tags{service("c"), service("d")})},
			[]string{"unmatched a: its destinations do not match: the nearest of 2 wants kuma.io/service=c; the destination has kuma.io/service=backend"},
		},
		{
			"for a version",
			[]*store.Record{timeout("a", 1, anyone, []tags{service("backend", "version=1")})},
			[]string{"unmatched a: its destinations do not match: wants version=1; the destination has no version"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := newSet(t, tt.records...).Client(client).CandidatesTo(policy.Timeout, "backend")
			if diff := cmp.Diff(tt.want, lines(got)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func lines(c policy.Candidates) []string {
	var out []string
	for _, one := range c.List {
		out = append(out, fmt.Sprintf("%s %s: %s", [...]string{"chosen", "lost", "unmatched"}[one.Verdict], one.Policy.Name, one.Reason))
	}
	return out
}

func TestCandidatesAreBounded(t *testing.T) {
	var records []*store.Record
	for i := range 300 {
		to := service("*")
		if i%2 == 0 {
			to = service("other")
		}
		records = append(records, record(policy.Timeout, fmt.Sprintf("p%03d", i), connection([]tags{service("*")}, []tags{to}, ""), 1))
	}
	got := newSet(t, records...).Client(service("web")).CandidatesTo(policy.Timeout, "backend")
	if len(got.List) != 1+20+5 || got.MoreLost != 129 || got.MoreUnmatched != 145 {
		t.Errorf("%d listed, %d that lost and %d that do not match are not", len(got.List), got.MoreLost, got.MoreUnmatched)
	}
}
