package policy_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/common/store"
)

// The algebra of rules: every client is in one rule at most, and that rule says what the items that name the client say one after
// the other. It is asked for clients, where TestMatchFollowsTheRules asks for the rules themselves.

// algebra is an inbound with the policies that are for it, and clients of it.
type algebra struct {
	records []*store.Record
	clients []tags
}

func drawAlgebra(t *rapid.T) algebra {
	var a algebra
	for i := range rapid.IntRange(1, 4).Draw(t, "policies") {
		target := rapid.SampledFrom([]string{toMesh, toService("web"), subset(`{"version":"1"}`)}).Draw(t, "target")
		var items []string
		for range rapid.IntRange(1, 3).Draw(t, "items") {
			items = append(items, item(drawRef(t), drawConf(t)))
		}
		a.records = append(a.records, permission(fmt.Sprintf("p%d", i), target, items...))
	}
	for range 8 {
		client := tags{}
		add := func(key string, values ...string) {
			if v := rapid.SampledFrom(append(values, "")).Draw(t, key); v != "" {
				client[key] = v
			}
		}
		add("kuma.io/service", append(services(), "stranger")...)
		add("version", "1", "http", "9")
		add("zone", "z", "y")
		a.clients = append(a.clients, client)
	}
	return a
}

// ruleOf is as much of a rule as the algebra is about.
type ruleOf struct {
	subset []policy.Tag
	conf   any
}

func (a algebra) rules() (rules []ruleOf, attached []*policy.Policy) {
	set, errs := policy.NewSet("default", slices.Values(a.records))
	if len(errs) > 0 {
		panic(errs)
	}
	from := set.Match(sidecar(service("web", "version=1")), policy.Options{}).Permission.From[0]
	if from.Err != nil {
		panic(from.Err)
	}
	for _, r := range from.Rules {
		var conf any
		if err := json.Unmarshal(r.Conf, &conf); err != nil {
			panic(err)
		}
		rules = append(rules, ruleOf{slices.Clone(r.Subset), conf})
	}
	return rules, from.Policies
}

// broken says how rules break the algebra; "": not at all.
func (a algebra) broken(rules []ruleOf, attached []*policy.Policy) string {
	for _, client := range a.clients {
		var in []ruleOf
		for _, r := range rules {
			if (&policy.Rule{Subset: r.subset}).Has(client) {
				in = append(in, r)
			}
		}
		if len(in) > 1 {
			return fmt.Sprintf("client %v is in the rules %v", client, in)
		}
		named := false
		var said any = map[string]any{}
		for _, p := range attached {
			for _, i := range p.Ref.From {
				if wanted := wants(i.TargetRef); !slices.ContainsFunc(slices.Collect(maps.Keys(wanted)), func(k string) bool { return client[k] != wanted[k] }) {
					var conf any
					if err := json.Unmarshal(i.Default, &conf); err != nil {
						panic(err)
					}
					named, said = true, naive{}.merge(said, conf)
				}
			}
		}
		switch {
		case named != (len(in) == 1):
			return fmt.Sprintf("client %v is named: %t, and in the rules %v", client, named, in)
		case named && !reflect.DeepEqual(in[0].conf, said):
			return fmt.Sprintf("to client %v items say %v, the rule %v", client, said, in[0].conf)
		}
	}
	return ""
}

// wants are the tags that a targetRef asks for.
func wants(r policy.TargetRef) tags {
	all := maps.Clone(r.Tags)
	if all == nil {
		all = tags{}
	}
	if r.Name != "" {
		all["kuma.io/service"] = r.Name
	}
	return all
}

func TestEveryClientIsInOneRuleAtMost(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := drawAlgebra(t)
		if broken := a.broken(a.rules()); broken != "" {
			t.Fatal(broken)
		}
	})
}

// Rules that are wrong in one respect break the algebra.
func TestWrongRulesBreakTheAlgebra(t *testing.T) {
	wrong := map[string]func(rules []ruleOf, attached []*policy.Policy) ([]ruleOf, []*policy.Policy){
		"clients without a tag are not told from those with it": func(rules []ruleOf, p []*policy.Policy) ([]ruleOf, []*policy.Policy) {
			for i := range rules {
				rules[i].subset = slices.DeleteFunc(rules[i].subset, func(t policy.Tag) bool { return t.Not })
			}
			return rules, p
		},
		"a tag that a client must have is forgotten": func(rules []ruleOf, p []*policy.Policy) ([]ruleOf, []*policy.Policy) {
			for i := range rules {
				if n := len(rules[i].subset); n > 0 && !rules[i].subset[n-1].Not {
					rules[i].subset = rules[i].subset[:n-1]
				}
			}
			return rules, p
		},
		"of several values only the first is excluded": func(rules []ruleOf, p []*policy.Policy) ([]ruleOf, []*policy.Policy) {
			for i := range rules {
				rules[i].subset = slices.CompactFunc(rules[i].subset, func(a, b policy.Tag) bool { return a.Not && b.Not && a.Key == b.Key })
			}
			return rules, p
		},
		"the last rule is missing": func(rules []ruleOf, p []*policy.Policy) ([]ruleOf, []*policy.Policy) {
			return rules[:max(len(rules)-1, 0)], p
		},
		"the first policy has the last word": func(rules []ruleOf, p []*policy.Policy) ([]ruleOf, []*policy.Policy) {
			p = slices.Clone(p)
			slices.Reverse(p)
			return rules, p
		},
		"one policy is left out": func(rules []ruleOf, p []*policy.Policy) ([]ruleOf, []*policy.Policy) {
			return rules, p[:max(len(p)-1, 0)]
		},
		"all say what the first rule says": func(rules []ruleOf, p []*policy.Policy) ([]ruleOf, []*policy.Policy) {
			for i := range rules {
				rules[i].conf = rules[0].conf
			}
			return rules, p
		},
	}
	algebras := rapid.Custom(drawAlgebra)
	for name, change := range wrong {
		found := false
		for seed := 0; seed < 300 && !found; seed++ {
			a := algebras.Example(seed)
			found = a.broken(change(a.rules())) != ""
		}
		if !found {
			t.Errorf("nobody notices that %s", name)
		}
	}
}
