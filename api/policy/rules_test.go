package policy_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/common/store"
)

func permission(name, target string, items ...string) *store.Record {
	return record(policy.MeshTrafficPermission, name, `{"targetRef":`+target+`,"from":[`+strings.Join(items, ",")+`]}`, 1)
}

func item(target, conf string) string { return `{"targetRef":` + target + `,"default":` + conf + `}` }

const (
	toMesh = `{"kind":"Mesh"}`
	allow  = `{"action":"ALLOW"}`
	deny   = `{"action":"DENY"}`
)

func subset(t string) string    { return `{"kind":"MeshSubset","tags":` + t + `}` }
func toService(s string) string { return `{"kind":"MeshService","name":"` + s + `"}` }

func TestRules(t *testing.T) {
	tests := []struct {
		name    string
		records []*store.Record
		want    []string
	}{
		{"no items make no rules", []*store.Record{permission("p", toMesh)}, nil},
		{"an item for all makes one rule", []*store.Record{permission("p", toMesh, item(toMesh, allow))}, []string{`[] {"action":"ALLOW"} [p]`}},
		{
			"an item for some makes no rule for the others",
			[]*store.Record{permission("p", toMesh, item(toService("a"), allow))},
			[]string{`[kuma.io/service=a] {"action":"ALLOW"} [p]`},
		},
		{
			"with an item for all, the others are those without the tag",
			[]*store.Record{permission("p", toMesh, item(toMesh, allow), item(toService("a"), deny))},
			[]string{`[kuma.io/service=a] {"action":"DENY"} [p]`, `[kuma.io/service!=a] {"action":"ALLOW"} [p]`},
		},
		{
			"of several values of a key one is there, or none",
			[]*store.Record{permission("p", toMesh, item(toMesh, allow), item(toService("a"), deny), item(toService("b"), deny))},
			[]string{
				`[kuma.io/service=b] {"action":"DENY"} [p]`, `[kuma.io/service=a] {"action":"DENY"} [p]`,
				`[kuma.io/service!=a kuma.io/service!=b] {"action":"ALLOW"} [p]`,
			},
		},
		{
			"two keys make four rules, those with more tags first, else in the order of the counter",
			[]*store.Record{permission("p", toMesh, item(toMesh, `{"m":1}`), item(subset(`{"a":"1"}`), `{"a":1}`), item(subset(`{"b":"1"}`), `{"b":1}`))},
			[]string{
				`[a=1 b=1] {"a":1,"b":1,"m":1} [p]`, `[a!=1 b=1] {"b":1,"m":1} [p]`, `[a=1 b!=1] {"a":1,"m":1} [p]`, `[a!=1 b!=1] {"m":1} [p]`,
			},
		},
		{
			"items of a service and a subset need both",
			[]*store.Record{permission("p", toMesh, item(`{"kind":"MeshServiceSubset","name":"a","tags":{"v":"1"}}`, deny))},
			[]string{`[kuma.io/service=a v=1] {"action":"DENY"} [p]`},
		},
		{
			"later items override earlier ones, arrays whole, and null deletes",
			[]*store.Record{permission("p", toMesh, item(toMesh, `{"l":[1,2],"o":{"x":1,"y":2},"z":1}`), item(toMesh, `{"l":[3],"o":{"x":null,"w":4},"z":null}`))},
			[]string{`[] {"l":[3],"o":{"w":4,"y":2}} [p]`},
		},
		{
			"a more specific target overrides, then the larger name, and origins are named once",
			[]*store.Record{
				permission("a", toService("web"), item(toMesh, `{"x":"service"}`)),
				permission("c", toMesh, item(toMesh, `{"x":"c","c":1}`), item(toMesh, `{"c":2}`)),
				permission("b", toMesh, item(toMesh, `{"x":"b","c":0}`)),
			},
			[]string{`[] {"c":2,"x":"service"} [b c a]`},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := newSet(t, tt.records...).Match(sidecar(service("web")), policy.Options{})
			from := m.Permission.From[0]
			if from.Err != nil {
				t.Fatal(from.Err)
			}
			var got []string
			for _, r := range from.Rules {
				got = append(got, describeRule(r))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestTargetsOfPolicies(t *testing.T) {
	web := service("web", "version=1")
	gateway := sidecar()
	gateway.Networking.Gateway = &meshv1.Dataplane_Networking_Gateway{Tags: web}
	old := sidecar(tags{"service": "web", "version": "1"})
	tests := []struct {
		name, target string
		dp           *meshv1.Dataplane
		want         bool
	}{
		{"the mesh", toMesh, sidecar(web), true},
		{"a subset", subset(`{"version":"1"}`), sidecar(web), true},
		{"a subset with any value", subset(`{"version":"*"}`), sidecar(web), true},
		{"another subset", subset(`{"version":"2"}`), sidecar(web), false},
		{"a service", toService("web"), sidecar(service("x"), web), true},
		{"another service", toService("x"), sidecar(web), false},
		{"a service and a subset", `{"kind":"MeshServiceSubset","name":"web","tags":{"version":"1"}}`, sidecar(web), true},
		{"a service and another subset", `{"kind":"MeshServiceSubset","name":"web","tags":{"version":"2"}}`, sidecar(web), false},
		{"another service and a subset", `{"kind":"MeshServiceSubset","name":"x","tags":{"version":"1"}}`, sidecar(web), false},
		{"a gateway's route", `{"kind":"MeshGatewayRoute","name":"web"}`, sidecar(web), false},
		{"a delegated gateway", toService("web"), gateway, true},
		{"an old dataplane", toService("web"), old, true},
		{"sidecars", `{"kind":"Mesh","proxyTypes":["Sidecar"]}`, sidecar(web), true},
		{"gateways", `{"kind":"Mesh","proxyTypes":["Gateway"]}`, sidecar(web), false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			set := newSet(t, record(policy.MeshAccessLog, "p", `{"targetRef":`+tt.target+`,"to":[`+item(toMesh, `{"backends":[]}`)+`]}`, 1))
			m := set.Match(tt.dp, policy.Options{})
			if got := len(m.AccessLog.Policies) == 1 && len(m.AccessLog.To) == 1; got != tt.want {
				t.Errorf("got %+v", m.AccessLog)
			}
			if got := set.Affects(set.Of(policy.MeshAccessLog)[0], tt.dp, policy.Options{}); got != tt.want {
				t.Errorf("affects: %t", got)
			}
		})
	}
}

func TestOnlyTheInboundsThatAreNamedHaveRules(t *testing.T) {
	set := newSet(t, permission("p", toService("b"), item(toMesh, allow)))
	m := set.Match(sidecar(service("a"), service("b")), policy.Options{})
	if from := m.Permission.From; len(from[0].Policies)+len(from[0].Rules) != 0 || len(from[1].Policies) != 1 || len(from[1].Rules) != 1 {
		t.Errorf("got %+v", from)
	}
}

func TestABuiltinGatewayIsNamedByTheTagsOfItsListeners(t *testing.T) {
	dp := sidecar()
	dp.Networking.Gateway = &meshv1.Dataplane_Networking_Gateway{Tags: service("edge"), Type: meshv1.Dataplane_Networking_Gateway_BUILTIN}
	gateway := record(policy.MeshGateway, "g", `{"selectors":[{"match":{"kuma.io/service":"edge"}}],"tags":{"team":"x"},
		"conf":{"listeners":[{"port":80,"protocol":"HTTP","tags":{"port":"80"}},{"port":81,"protocol":"HTTP","tags":{"port":"81"}}]}}`, 1)
	log := func(name, target string) *store.Record {
		return record(policy.MeshAccessLog, name, `{"targetRef":`+target+`,"from":[`+item(toMesh, `{"backends":[]}`)+`]}`, 1)
	}
	set := newSet(t, gateway, log("all", toMesh), log("one", subset(`{"port":"81","team":"x","kuma.io/service":"edge"}`)), log("none", subset(`{"port":"82"}`)))
	m := set.Match(dp, policy.Options{})
	if name(m.Gateway) != "g" {
		t.Fatalf("gateway %s", name(m.Gateway))
	}
	got := fmt.Sprint(describeAttached(policy.MeshAccessLog, m.AccessLog))
	want := fmt.Sprint([]string{
		"MeshAccessLog attached all", "MeshAccessLog attached one",
		`MeshAccessLog from 0: [] {"backends":[]} [all]`, `MeshAccessLog from 1: [] {"backends":[]} [all one]`,
	})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, p := range set.Of(policy.MeshAccessLog) {
		if got := set.Affects(p, dp, policy.Options{}); got != (p.Name != "none") {
			t.Errorf("%s affects: %t", p.Name, got)
		}
	}
	if !set.Affects(m.Gateway, dp, policy.Options{}) || set.Affects(m.Gateway, sidecar(service("edge")), policy.Options{}) {
		t.Error("whom the gateway affects")
	}
	route := func(name, port string) *store.Record {
		return record(policy.MeshGatewayRoute, name, `{"selectors":[{"match":{"kuma.io/service":"edge","port":"`+port+`"}}],"conf":{"http":{}}}`, 1)
	}
	routed := newSet(t, gateway, route("one", "81"), route("none", "82"))
	for _, p := range routed.Of(policy.MeshGatewayRoute) {
		if got := routed.Affects(p, dp, policy.Options{}); got != (p.Name == "one") {
			t.Errorf("route %s affects: %t", p.Name, got)
		}
	}
	without := newSet(t, log("all", toMesh)).Match(dp, policy.Options{})
	if without.Gateway != nil || len(without.AccessLog.Policies) != 0 {
		t.Errorf("without its MeshGateway: %+v", without.AccessLog)
	}
}

func TestComputeTakesTheFirstRuleForADestination(t *testing.T) {
	log := func(path string) string { return `{"backends":[{"file":{"path":"` + path + `"}}]}` }
	set := newSet(t, record(policy.MeshAccessLog, "p",
		`{"targetRef":{"kind":"Mesh"},"to":[`+item(toMesh, log("/all"))+`,`+item(toService("a"), log("/a"))+`]}`, 1))
	to := set.Match(sidecar(service("web")), policy.Options{}).AccessLog.To
	for want, destination := range map[string]tags{"/a": service("a", "version=1"), "/all": service("b")} {
		backends, err := to.Compute(destination).AccessLog()
		if err != nil || len(backends) != 1 || backends[0].File.Path != want {
			t.Errorf("got %+v, %v, want %s", backends, err, want)
		}
	}
	if r := to.Compute(tags{"service": "a"}); r == nil || len(r.Subset) != 1 || r.Subset[0].Not {
		t.Errorf("by the older name: %v", r)
	}
	if r := (policy.Rules{}).Compute(service("a")); r != nil {
		t.Errorf("of no rules: %v", r)
	}
}

func TestRulesAreBounded(t *testing.T) {
	var many []string
	for key := range 4 {
		for value := range 12 { // 13^4 combinations
			many = append(many, item(subset(fmt.Sprintf(`{"k%d":"v%d"}`, key, value)), allow))
		}
	}
	var services []string
	for i := range 5000 {
		services = append(services, item(toService(fmt.Sprintf("s%d", i)), allow))
	}
	services = append(services, item(toMesh, deny))
	set := newSet(t, permission("many-1", toService("web"), many...), permission("many-2", toService("web"), item(toMesh, allow)),
		permission("services", toService("b"), services...))
	start := time.Now()
	m := set.Match(sidecar(service("web"), service("b")), policy.Options{})
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("took %s", took)
	}
	from := m.Permission.From
	if err := from[0].Err; err == nil || !strings.Contains(err.Error(), "many-1, many-2") || from[0].Rules != nil || len(from[0].Policies) != 2 {
		t.Errorf("got %v, %d rules", err, len(from[0].Rules))
	}
	if from[1].Err != nil || len(from[1].Rules) != 5001 {
		t.Errorf("many services: %d rules, %v", len(from[1].Rules), from[1].Err)
	}
	if len(m.Inbounds) != 2 || m.Permission.ToErr != nil {
		t.Error("the rest is affected")
	}
}

func TestRefsThatAreNotUnderstoodAreLeftOut(t *testing.T) {
	tests := []struct{ name, spec, want string }{
		{"no JSON", `{`, "unexpected end of JSON input"},
		{"no object", `null`, "is not an object"},
		{"a list", `[]`, "cannot unmarshal array"},
		{"an unknown kind", `{"targetRef":{"kind":"Dataplane"}}`, `targetRef: kind "Dataplane" is not known`},
		{"an unknown kind in an item", `{"targetRef":{"kind":"Mesh"},"from":[{"targetRef":{"kind":"Mesh"}},{"targetRef":{"kind":"X"}}]}`, `from[1].targetRef: kind "X" is not known`},
		{"a route as a peer", `{"to":[{"targetRef":{"kind":"MeshGatewayRoute"}}]}`, "to[0].targetRef: kind MeshGatewayRoute names no peers"},
		{"rules of a newer version", `{"targetRef":{"kind":"Mesh"},"rules":[{"default":{}}]}`, "rules: are of a newer version"},
		{"tags that are no texts", `{"targetRef":{"kind":"MeshSubset","tags":{"a":1}}}`, "targetRef: tags:"},
		{"items that are no list", `{"from":{}}`, "from: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			rec := permission("p", toMesh)
			rec.Spec = []byte(tt.spec)
			set, errs := policy.NewSet("default", slices.Values([]*store.Record{rec}))
			if len(errs) != 1 || !strings.Contains(errs[0].Error(), tt.want) || !strings.Contains(errs[0].Error(), rec.Key.String()) {
				t.Errorf("got %v", errs)
			}
			if len(set.Of(policy.MeshTrafficPermission)) != 0 {
				t.Error("it is held")
			}
		})
	}
	rec := permission("p", toMesh)
	rec.Spec = []byte(`{"from":[{"default":{"action":"Allow"}}],"TargetRef":{"kind":"X"}}`)
	m := newSet(t, rec).Match(sidecar(service("web")), policy.Options{})
	if len(m.Permission.From[0].Rules) != 1 {
		t.Error("without targetRefs, which newer planes leave out, and with a member that only looks like one")
	}
}
