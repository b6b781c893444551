package inspect_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meridian-mesh/meridian/api/codec"
	"github.com/meridian-mesh/meridian/api/inspect"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// That inspection is what is configured is tested where configuration is made, in zone/envoy; the JSON of answers in api/server.

// load reads a proxy and policies as users write them.
func load(t testing.TB, docs string) (*policy.Set, *inspect.Proxy) {
	t.Helper()
	var records []*store.Record
	p := &inspect.Proxy{}
	for doc := range strings.SplitSeq(strings.TrimSpace(docs), "\n---\n") {
		d, parsed, err := codec.DecodeAny("application/yaml", []byte(doc))
		if err != nil {
			t.Fatal(err)
		}
		rec := &store.Record{Key: store.Key{Type: string(d.Name), Mesh: parsed.Mesh, Name: parsed.Name}, Spec: parsed.Spec}
		if d.Name == resource.Dataplane {
			if p.Dataplane, err = codec.SpecOf[*meshv1.Dataplane](rec); err != nil {
				t.Fatal(err)
			}
			p.Name = parsed.Name
		}
		records = append(records, rec)
	}
	set, errs := policy.NewSet("m", slices.Values(records))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	return set, p
}

const ipv6Proxy = `
type: Dataplane
mesh: m
name: dp
networking:
  address: fd00::1
  inbound:
  - {port: 9, tags: {kuma.io/service: a}}
  - {port: 10, servicePort: 8080, tags: {kuma.io/service: a}}
  - {port: 49151, tags: {kuma.io/service: a}}
  outbound: [{port: 1, address: fd00::2, tags: {kuma.io/service: b}}]`

func TestPartsAreInTheOrderOfTheirText(t *testing.T) {
	set, p := load(t, ipv6Proxy+`
---
type: TrafficPermission
mesh: m
name: tp
sources: [{match: {kuma.io/service: "*"}}]
destinations: [{match: {kuma.io/service: a}}]
---
type: RateLimit
mesh: m
name: rl
sources: [{match: {kuma.io/service: a}}]
destinations: [{match: {kuma.io/service: a}}, {match: {kuma.io/service: "*"}}]
conf: {http: {requests: 1, interval: 1s}}`)
	var got []string
	for _, item := range inspect.Policies(nil, set, p) {
		line := fmt.Sprintf("%s %s %s:", item.Type, item.Name, item.Service)
		for _, typ := range policy.Types() {
			for _, p := range item.Policies[typ] {
				line += " " + p.Name
			}
		}
		got = append(got, line)
	}
	want := []string{ // 10 before 9, as texts are; a port that is not served has nothing; a policy is there once
		"inbound [fd00::1]:10:8080 a: rl tp", "inbound [fd00::1]:9:9 a: rl tp", "outbound [fd00::2]:1 b: rl",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestRulesSayWhoseTheyAre(t *testing.T) {
	set, p := load(t, ipv6Proxy+`
---
type: MeshTrafficPermission
mesh: m
name: z
spec:
  targetRef: {kind: Mesh}
  from: [{targetRef: {kind: Mesh}, default: {action: ALLOW}}]
---
type: MeshTrafficPermission
mesh: m
name: a
spec:
  targetRef: {kind: MeshService, name: a}
  from: [{targetRef: {kind: MeshSubset, tags: {v: "1"}}, default: {action: DENY}}, {targetRef: {kind: MeshSubset, tags: {v: "2"}}, default: {action: DENY}}]
---
type: MeshTrace
mesh: m
name: t
spec: {targetRef: {kind: Mesh}, default: {backends: [{zipkin: {url: "http://t/<&>"}}]}}`)
	rules, err := inspect.Rules(nil, set, p)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range rules {
		var origins []string
		for _, o := range r.Origins {
			origins = append(origins, o.Name)
		}
		got = append(got, fmt.Sprint(r.Name, " ", r.Type, " ", r.PolicyType, " ", r.Subset, " ", string(r.Conf), " ", origins))
	}
	var want []string
	for _, name := range []string{"[fd00::1]:10", "[fd00::1]:9"} {
		want = append(want,
			name+` clientSubset MeshTrafficPermission map[v:2] {"action":"DENY"} [a z]`,
			name+` clientSubset MeshTrafficPermission map[v:1] {"action":"DENY"} [a z]`,
			// Of several values that clients do not have the last one is shown: the other rules come first.
			name+` clientSubset MeshTrafficPermission map[v:!2] {"action":"ALLOW"} [z]`)
	}
	want = append(want, `dataplane singleItem MeshTrace map[] {"backends":[{"zipkin":{"url":"http://t/<&>"}}],"tags":null} [t]`)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestPoliciesThatMakeTooManyRulesAreNamed(t *testing.T) {
	docs := ipv6Proxy
	for i := range 14 {
		docs += fmt.Sprintf("\n---\ntype: MeshTrafficPermission\nmesh: m\nname: p-%02d\nspec:\n  targetRef: {kind: Mesh}\n"+
			"  from: [{targetRef: {kind: Mesh}, default: {action: ALLOW}}, {targetRef: {kind: MeshSubset, tags: {k%d: v}}, default: {action: DENY}}]", i, i)
	}
	set, p := load(t, docs)
	if rules, err := inspect.Rules(nil, set, p); rules != nil || err == nil || !strings.Contains(err.Error(), "p-00") {
		t.Errorf("%d rules, error %v", len(rules), err)
	}
}
