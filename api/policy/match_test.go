package policy_test

import (
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

func everything() []tags { return []tags{service("*")} }

func displayed(rec *store.Record, name string) *store.Record {
	rec.Labels = tags{"kuma.io/display-name": name}
	return rec
}

// The proxy of these tests has the service web, version 1, and one outbound to backend.
func TestOneTimeoutCountsForAnOutbound(t *testing.T) {
	timeout := func(name string, created int, sources, destinations []tags) *store.Record {
		return record(policy.Timeout, name, connection(sources, destinations, ""), created)
	}
	web, backend := []tags{service("web")}, []tags{service("backend")}
	tests := []struct {
		name    string
		records []*store.Record
		want    string
	}{
		{"none is there", nil, "-"},
		{"a wildcard matches", []*store.Record{timeout("w", 1, everything(), everything())}, "w"},
		{"a wildcard needs the tag", []*store.Record{timeout("w", 1, []tags{service("*", "zone=*")}, everything())}, "-"},
		{"the source must match", []*store.Record{timeout("s", 1, []tags{service("other")}, everything())}, "-"},
		{"the destination must match", []*store.Record{timeout("d", 1, everything(), []tags{service("other")})}, "-"},
		{"the destination has no other tag than its service", []*store.Record{timeout("d", 1, everything(), []tags{service("backend", "version=*")})}, "-"},
		{"a selector without tags matches all", []*store.Record{timeout("e", 1, []tags{{}}, []tags{{}})}, "e"},
		{"no sources match nothing", []*store.Record{timeout("n", 1, nil, everything())}, "-"},
		{
			"an exact value is more specific than a wildcard",
			[]*store.Record{timeout("exact", 1, everything(), backend), timeout("wild", 2, everything(), everything())},
			"exact",
		},
		{
			"more tags are more specific than exact values",
			[]*store.Record{timeout("exact", 2, web, backend), timeout("more", 1, []tags{service("*", "version=*")}, everything())},
			"more",
		},
		{
			"the ranks of source and destination add up",
			[]*store.Record{timeout("source", 1, []tags{service("web", "version=1")}, everything()), timeout("destination", 2, everything(), backend)},
			"source",
		},
		{
			"the best source of a policy counts",
			[]*store.Record{timeout("two", 1, []tags{service("*"), service("web")}, everything()), timeout("one", 2, everything(), everything())},
			"two",
		},
		{
			"a source that does not match gives no rank",
			[]*store.Record{timeout("two", 1, []tags{service("*"), service("web", "version=2")}, everything()), timeout("one", 2, everything(), everything())},
			"one",
		},
		{
			"of equals the one created later counts",
			[]*store.Record{timeout("a", 1, everything(), everything()), timeout("b", 2, everything(), everything())},
			"b",
		},
		{
			"of those created at the same time the smaller name",
			[]*store.Record{timeout("b", 1, everything(), everything()), timeout("a", 1, everything(), everything())},
			"a",
		},
		{
			"where the time of one is not known, the smaller name",
			[]*store.Record{timeout("a", 1, everything(), everything()), timeout("b", 2, everything(), everything()), timeout("c", 0, everything(), everything())},
			"a",
		},
		{
			"a policy that is beaten need not have a time",
			[]*store.Record{timeout("0", 0, everything(), everything()), timeout("a", 1, web, everything()), timeout("b", 2, web, everything())},
			"b",
		},
		{
			"the smaller name is that which the owner gave",
			[]*store.Record{displayed(timeout("a", 0, everything(), everything()), "z"), timeout("b", 0, everything(), everything())},
			"b",
		},
		{"the older name of the protocol", []*store.Record{timeout("p", 1, []tags{service("*", "protocol=http")}, everything())}, "p"},
		{"the older name with another value", []*store.Record{timeout("p", 1, []tags{service("*", "protocol=tcp")}, everything())}, "-"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dp := sidecar(service("web", "version=1", "kuma.io/protocol=http"))
			dp.Networking.Outbound = []*meshv1.Dataplane_Networking_Outbound{{Tags: service("backend", "version=7")}}
			slices.Reverse(tt.records)
			m := newSet(t, tt.records...).Match(dp, policy.Options{})
			if got := name(m.Outbounds[0].Timeout); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestEachTypeIsMatchedWhereItBelongs(t *testing.T) {
	var records []*store.Record
	for _, typ := range policy.Types() {
		switch typ {
		case policy.MeshAccessLog, policy.MeshTrace, policy.MeshTrafficPermission, policy.MeshGateway, policy.MeshGatewayRoute, policy.VirtualOutbound:
		case policy.TrafficTrace, policy.ProxyTemplate:
			records = append(records, record(typ, string(typ), `{"selectors":[{"match":{"kuma.io/service":"web"}}]}`, 1))
		default:
			// From web to backend, and from clients to web.
			records = append(records, record(typ, string(typ), connection([]tags{service("web")}, []tags{service("backend")}, ""), 1),
				record(typ, string(typ)+"-in", connection([]tags{service("client")}, []tags{service("web")}, ""), 1))
		}
	}
	records = append(records, record(policy.TrafficLog, "pass", connection([]tags{service("web")}, []tags{service("pass_through")}, ""), 1))
	w := world{dp: sidecar(service("web")), options: policy.Options{
		Outbounds: []tags{service("backend"), service("web")},
		Metrics:   service("metrics"),
	}}
	set := newSet(t, records...)
	m := set.Match(w.dp, w.options)
	got := fmt.Sprintln(describe(set, w), name(m.Service("backend").HealthCheck), name(m.Service("backend").CircuitBreaker),
		name(m.Service("backend").Retry), name(m.Service("backend").TrafficLog), name(m.Service(policy.PassThrough).TrafficLog),
		name(m.Service(policy.PassThrough).Retry))
	want := fmt.Sprintln([]string{
		"in 0: permission TrafficPermission-in faults FaultInjection-in limits RateLimit-in",
		"in 1: permission - faults  limits ",
		"out 0 backend: route TrafficRoute timeout Timeout limit RateLimit",
		"out 1 web: route - timeout - limit -",
		"service a: health - breaker - retry - log -",
		"service b: health - breaker - retry - log -",
		"service c: health - breaker - retry - log -",
		"service pass_through: health - breaker - retry - log pass",
		"trace TrafficTrace template ProxyTemplate",
	}, "HealthCheck CircuitBreaker Retry TrafficLog pass -")
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestInboundPolicies(t *testing.T) {
	sources := func(list ...tags) []tags { return list }
	fault := func(name string, created int, sources []tags, destinations ...tags) *store.Record {
		return record(policy.FaultInjection, name, connection(sources, destinations, ""), created)
	}
	tests := []struct {
		name    string
		records []*store.Record
		want    []string
	}{
		{"all that match count", []*store.Record{fault("a", 1, everything(), service("*")), fault("b", 1, everything(), service("web")), fault("c", 1, everything(), service("x"))}, []string{"a", "b"}},
		{"the more specific first source comes first", []*store.Record{fault("a", 2, sources(service("*"), service("x", "v=1")), service("web")), fault("b", 1, sources(service("x")), service("*"))}, []string{"b", "a"}},
		{"then what was created later", []*store.Record{fault("a", 1, everything(), service("*")), fault("b", 3, everything(), service("*")), fault("c", 2, everything(), service("*"))}, []string{"b", "c", "a"}},
		{"without a time by name", []*store.Record{fault("a", 1, everything(), service("*")), fault("b", 3, everything(), service("*")), fault("c", 0, everything(), service("*"))}, []string{"a", "b", "c"}},
		{"once for each destination that matches", []*store.Record{fault("a", 1, everything(), service("*"), service("web"), service("x"))}, []string{"a", "a"}},
		{"the older name of the protocol", []*store.Record{fault("a", 1, everything(), service("*", "protocol=http")), fault("b", 1, everything(), service("*", "kuma.io/protocol=http")), fault("c", 1, everything(), service("*", "protocol=tcp"))}, []string{"a", "b"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			web := service("web", "kuma.io/protocol=http")
			set := newSet(t, tt.records...)
			m := set.Match(sidecar(service("x9"), web), policy.Options{Metrics: web})
			for place, list := range map[string][]policy.Sourced{
				"inbound": m.Inbounds[1].FaultInjections, "metrics": m.Metrics.FaultInjections, "external service": set.FaultInjectionsFor(web),
			} {
				var got []string
				for _, s := range list {
					got = append(got, s.Policy.Name)
				}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("%s: %s", place, diff)
				}
			}
		})
	}
}

func TestSourcesOfFaultsAreSpelledAsProxiesDo(t *testing.T) {
	set := newSet(t, record(policy.FaultInjection, "f", connection([]tags{service("a", "protocol=http"), service("b")}, everything(), ""), 1))
	got := set.FaultInjectionsFor(service("web"))[0].Sources
	if diff := cmp.Diff([]tags{service("a", "kuma.io/protocol=http"), service("b")}, got); diff != "" {
		t.Error(diff)
	}
}

func TestAPermissionIsTheMostSpecificOne(t *testing.T) {
	set := newSet(t,
		record(policy.TrafficPermission, "all", connection(everything(), everything(), ""), 9),
		record(policy.TrafficPermission, "web", connection([]tags{service("a")}, []tags{service("web")}, ""), 1),
		record(policy.TrafficPermission, "two", connection([]tags{service("a")}, []tags{service("web", "version=2"), service("x")}, ""), 1),
	)
	tests := []struct {
		name string
		tags tags
		want string
	}{
		{"by service", service("web"), "web"},
		{"by service and version", service("web", "version=2"), "two"},
		{"by any of the destinations", service("x"), "two"},
		{"by a wildcard", service("other"), "all"},
		{"not without the tag", tags{"version": "1"}, "-"},
		{"by the older name of the service", tags{"service": "web"}, "web"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := name(set.PermissionFor(tt.tags)); got != tt.want {
				t.Errorf("external service: got %s, want %s", got, tt.want)
			}
			m := set.Match(sidecar(tt.tags), policy.Options{})
			if got := name(m.Inbounds[0].TrafficPermission); got != tt.want {
				t.Errorf("inbound: got %s, want %s", got, tt.want)
			}
		})
	}
	if set.Match(sidecar(service("b")), policy.Options{}).MayReach(service("web")) {
		t.Error("b may reach web although the permission that counts does not name it")
	}
	if !set.Match(sidecar(service("a")), policy.Options{}).MayReach(service("web")) {
		t.Error("a may not reach web")
	}
}

func TestPoliciesOfTheWholeProxy(t *testing.T) {
	trace := func(name string, created int, selectors string) *store.Record {
		return record(policy.TrafficTrace, name, `{"selectors":[`+selectors+`]}`, created)
	}
	all, web, none := `{"match":{"kuma.io/service":"*"}}`, `{"match":{"kuma.io/service":"web"}}`, `{"match":{"kuma.io/service":"none"}}`
	tests := []struct {
		name    string
		records []*store.Record
		want    string
	}{
		{"the most specific counts", []*store.Record{trace("all", 2, all), trace("web", 1, web)}, "web"},
		{"any inbound is enough", []*store.Record{trace("web", 1, web)}, "web"},
		{"any selector is enough", []*store.Record{trace("two", 1, none+","+web), trace("all", 2, all)}, "two"},
		{"no selectors are for all", []*store.Record{trace("empty", 1, "")}, "empty"},
		{"but any selector beats none", []*store.Record{trace("empty", 2, ""), trace("all", 1, all)}, "all"},
		{"later counts", []*store.Record{trace("a", 1, all), trace("b", 2, all)}, "b"},
		{"nothing matches", []*store.Record{trace("none", 1, none)}, "-"},
	}
	gateway := sidecar()
	gateway.Networking.Gateway = &meshv1.Dataplane_Networking_Gateway{Tags: service("web")}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			set := newSet(t, tt.records...)
			for kind, dp := range map[string]*meshv1.Dataplane{"sidecar": sidecar(service("other"), service("web")), "gateway": gateway} {
				if got := name(set.Match(dp, policy.Options{}).TrafficTrace); got != tt.want {
					t.Errorf("%s: got %s, want %s", kind, got, tt.want)
				}
			}
		})
	}
}

func TestAMeshWithoutRoutesLeadsEverywhere(t *testing.T) {
	dp := sidecar(service("web"))
	dp.Networking.Outbound = []*meshv1.Dataplane_Networking_Outbound{{Service: "old"}}
	set := newSet(t)
	out := set.Match(dp, policy.Options{}).Outbounds[0]
	if out.Service != "old" || !out.TrafficRoute.Synthetic() {
		t.Errorf("got %+v", out)
	}
	if got := policy.RouteServices(out.TrafficRoute, service(out.Service)); !slices.Equal(got, []string{"old"}) {
		t.Errorf("leads to %v", got)
	}
	other, _ := set.With(store.Change{Key: store.Key{Type: "TrafficRoute", Mesh: "default", Name: "r"}, Record: record(policy.TrafficRoute, "r", connection(everything(), []tags{service("x")}, ""), 1)})
	if out := other.Match(dp, policy.Options{}).Outbounds[0]; out.TrafficRoute != nil {
		t.Errorf("with a route for something else: %s", name(out.TrafficRoute))
	}
	if !policy.Diff(set, other).Affects(sidecar(), policy.Options{}) {
		t.Error("the first route of a mesh does not affect a proxy")
	}
}

func TestAllDestinationsOfARouteCount(t *testing.T) {
	route := record(policy.TrafficRoute, "r", connection(everything(), everything(), `,"conf":{
		"split":[{"weight":1,"destination":{"kuma.io/service":"b","version":"1"}},{"weight":1,"destination":{"kuma.io/service":"*"}}],
		"http":[{"match":{"path":{"prefix":"/"}},"destination":{"kuma.io/service":"h"}},
			{"match":{"path":{"prefix":"/x"}},"split":[{"weight":1,"destination":{"kuma.io/service":"b"}},{"weight":0,"destination":{"kuma.io/service":"s"}}]}]}`), 1)
	p := newSet(t, route).Of(policy.TrafficRoute)[0]
	if diff := cmp.Diff([]string{"b", "h", "own"}, policy.RouteServices(p, service("own"))); diff != "" {
		t.Error(diff)
	}
	if got := policy.RouteServices(nil, service("own")); got != nil {
		t.Errorf("without a route: %v", got)
	}
}

func TestGatewaysMatchByAllTagsOfADestination(t *testing.T) {
	set := newSet(t,
		record(policy.Timeout, "all", connection(everything(), everything(), ""), 1),
		record(policy.Timeout, "two", connection([]tags{service("edge")}, []tags{service("web", "version=2")}, ""), 1),
	)
	client := set.Client(service("edge"))
	for want, destination := range map[string]tags{"two": service("web", "version=2"), "all": service("web", "version=1")} {
		if got := name(client.ToTags(policy.Timeout, destination)); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if !client.ToTags(policy.TrafficRoute, service("web")).Synthetic() {
		t.Error("no route in a mesh without any")
	}
}

func TestASetHoldsWhatDecodes(t *testing.T) {
	bad := record(policy.Timeout, "bad", `{}`, 1)
	bad.Spec = []byte{0xff}
	other := record(policy.Timeout, "other", `{}`, 1)
	other.Key.Mesh = "elsewhere"
	external := record("ExternalService", "external", `{}`, 1)
	good := record(policy.Timeout, "good", connection(everything(), everything(), ""), 1)
	records := []*store.Record{
		bad, other, external, good,
		{Key: store.Key{Type: "Dataplane", Mesh: "default", Name: "dp"}},
		{Key: store.Key{Type: "Strange", Mesh: "default", Name: "x"}},
		record(policy.MeshGateway, "gateway", `{}`, 1), record(policy.MeshGatewayRoute, "route", `{}`, 1), record(policy.VirtualOutbound, "v", `{}`, 1),
	}
	set, errs := policy.NewSet("default", slices.Values(records))
	if len(errs) != 1 || !cmp.Equal(errs[0].Error()[:46], "decode specification of Timeout/default/bad: p"[:46]) {
		t.Errorf("got errors %v", errs)
	}
	var held []string
	for _, typ := range policy.Types() {
		for _, p := range set.Of(typ) {
			held = append(held, p.Key().String())
		}
	}
	want := []string{"MeshGateway/default/gateway", "MeshGatewayRoute/default/route", "Timeout/default/good", "VirtualOutbound/default/v"}
	if diff := cmp.Diff(want, held); diff != "" {
		t.Error(diff)
	}

	broken := *good
	broken.Spec = bad.Spec
	next, errs := set.With(store.Change{Key: good.Key, Record: &broken})
	if _, ok := next.Get(policy.Timeout, "good"); ok || len(errs) != 1 {
		t.Errorf("a version that does not decode: %t, %v", ok, errs)
	}
	if same, _ := set.With(store.Change{Key: other.Key, Record: other}); same != set {
		t.Error("a change elsewhere makes another set")
	}
	if !policy.Diff(set, set).Empty() || policy.Diff(set, next).Empty() {
		t.Error("wrong difference")
	}
}

func TestTypesAreThoseOfTheRegistry(t *testing.T) {
	for _, typ := range policy.Types() {
		if !policy.Holds(typ) {
			t.Errorf("does not hold %s", typ)
		}
	}
	for _, typ := range []resource.Type{"ExternalService", resource.Dataplane, "Strange"} {
		if policy.Holds(typ) || slices.Contains(policy.Types(), typ) {
			t.Errorf("holds %s", typ)
		}
	}
	if n := len(policy.Types()); n != 17 {
		t.Errorf("%d types", n)
	}
}
