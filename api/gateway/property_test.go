package gateway_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/meridian-mesh/meridian/api/gateway"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// maybe draws true about once in n times.
func maybe(t *rapid.T, n int) bool { return rapid.IntRange(1, n).Draw(t, "maybe") == n }

func oneOf[V any](t *rapid.T, of ...V) V { return rapid.SampledFrom(of).Draw(t, "one") }

func hostNames() []string {
	return []string{"*", "*.example.com", "*.b.example.com", "a.example.com", "A.example.com", "x.b.example.com", "example.com"}
}

func drawListener(t *rapid.T) string {
	protocol := oneOf(t, "HTTP", "HTTP", "TCP", "HTTPS", "HTTPS")
	port := map[string]int{"HTTP": 80, "TCP": 90, "HTTPS": 443}[protocol]
	if maybe(t, 8) {
		port = 80
	}
	l := fmt.Sprintf(`{"port":%d,"protocol":%q,"hostname":%q,"tags":%s,"crossMesh":%t`, port, protocol,
		oneOf(t, append(hostNames(), "", "")...), toJSON(drawListenerTags(t)), maybe(t, 10))
	if protocol == "HTTPS" {
		l += oneOf(t, `,"tls":{"mode":"PASSTHROUGH"}`, `,"tls":{"mode":"TERMINATE","certificates":[{"secret":"c"}]}`)
	}
	if maybe(t, 3) {
		l += fmt.Sprintf(`,"resources":{"connectionLimit":%d}`, rapid.IntRange(1, 3).Draw(t, "limit"))
	}
	return l + "}"
}

func drawListenerTags(t *rapid.T) tags {
	out := tags{}
	for _, k := range []string{"team", "tier"} {
		if maybe(t, 2) {
			out[k] = oneOf(t, "x", "y")
		}
	}
	return out
}

// drawSource selects what listeners and proxies may have.
func drawSource(t *rapid.T) tags {
	out := drawListenerTags(t)
	if !maybe(t, 3) {
		out["kuma.io/service"] = oneOf(t, "edge", "*")
	}
	return out
}

func drawDestination(t *rapid.T, wild bool) tags {
	out := tags{"kuma.io/service": oneOf(t, "a", "b")}
	if wild && maybe(t, 3) {
		out["kuma.io/service"] = "*"
	}
	if maybe(t, 3) {
		out["version"] = oneOf(t, "1", "2")
	}
	return out
}

func drawBackends(t *rapid.T) string {
	backends := make([]string, rapid.IntRange(1, 2).Draw(t, "backends"))
	for i := range backends {
		backends[i] = fmt.Sprintf(`{"weight":%d,"destination":%s}`, rapid.IntRange(0, 2).Draw(t, "weight"), toJSON(drawDestination(t, false)))
	}
	return strings.Join(backends, ",")
}

func drawRoute(t *rapid.T, i int) *store.Record {
	var conf string
	if maybe(t, 3) {
		conf = `"tcp":{"rules":[{"backends":[` + drawBackends(t) + `]}]}`
	} else {
		filters := ""
		if maybe(t, 3) {
			filters = `{"mirror":{"percentage":1,"backend":{"destination":` + toJSON(drawDestination(t, false)) + `}}}`
		}
		names := rapid.SliceOfN(rapid.SampledFrom(hostNames()), 0, 2).Draw(t, "hostnames")
		conf = `"http":{"hostnames":` + toJSON(names) + `,"rules":[{"matches":[{"method":"GET"}],"filters":[` + filters + `],"backends":[` + drawBackends(t) + `]}]}`
	}
	return record(policy.MeshGatewayRoute, fmt.Sprintf("r%d", i), `{"selectors":`+selectors(drawSource(t))+`,"conf":{`+conf+`}}`, 1)
}

func drawWorld(t *rapid.T) naive {
	listeners := rapid.SliceOfN(rapid.Custom(drawListener), 1, 4).Draw(t, "listeners")
	n := naive{tags: tags{"kuma.io/service": "edge"}}
	if maybe(t, 2) {
		n.tags["tier"] = "x"
	}
	n.records = append(n.records, record(policy.MeshGateway, "edge",
		`{"selectors":`+selectors(tags{"kuma.io/service": "edge"})+`,"tags":`+toJSON(drawListenerTags(t))+`,"conf":{"listeners":[`+strings.Join(listeners, ",")+`]}}`, 1))
	for i := range rapid.IntRange(0, 4).Draw(t, "routes") {
		n.records = append(n.records, drawRoute(t, i))
	}
	for _, typ := range []resource.Type{policy.CircuitBreaker, policy.FaultInjection, policy.HealthCheck, policy.RateLimit, policy.Retry, policy.Timeout} {
		for i := range rapid.IntRange(0, 2).Draw(t, "policies") {
			destination := drawDestination(t, true)
			if typ == policy.FaultInjection {
				destination["kuma.io/protocol"] = oneOf(t, "http", "http", "grpc")
			}
			n.records = append(n.records, record(typ, fmt.Sprintf("p%d", i),
				`{"sources":`+selectors(drawSource(t))+`,"destinations":`+selectors(destination)+`}`, rapid.IntRange(1, 2).Draw(t, "created")))
		}
	}
	return n
}

func (n naive) served() []string {
	set, errs := policy.NewSet("default", slices.Values(n.records))
	if len(errs) > 0 {
		panic(errs)
	}
	return describe(gateway.Of(set, builtin(n.tags)))
}

func TestWhatAGatewayServesFollowsTheRules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := drawWorld(t)
		if diff := cmp.Diff(n.describe(), n.served()); diff != "" {
			t.Fatal(diff)
		}
	})
}

// The test above is worth something only when what it draws tells right rules from wrong ones.
func TestAGatewayWithWrongRulesIsNoticed(t *testing.T) {
	const tries = 5000
	worlds := rapid.Custom(drawWorld)
	left := slices.Clone(faults)
	for seed := 0; seed < tries && len(left) > 0; seed++ {
		n := worlds.Example(seed)
		got := n.served()
		left = slices.DeleteFunc(left, func(fault string) bool {
			return !slices.Equal(naive{fault: fault, records: n.records, tags: n.tags}.describe(), got)
		})
	}
	for _, fault := range left {
		t.Errorf("nobody notices that %s", fault)
	}
}

// What is said not to affect a gateway must change nothing of what it serves.
func TestWhatDoesNotAffectAGatewayChangesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := drawWorld(t)
		if wrong := n.wronglyUnaffected((*policy.Set).Affects); wrong != "" {
			t.Fatal(wrong)
		}
	})
}

type affects = func(*policy.Set, *policy.Policy, *meshv1.Dataplane, policy.Options) bool

// wronglyUnaffected names a policy that is said not to affect the gateway, and does; "" when there is none.
func (n naive) wronglyUnaffected(says affects) string {
	set, _ := policy.NewSet("default", slices.Values(n.records))
	dp, with := builtin(n.tags), n.served()
	for i, rec := range n.records {
		p, ok := set.Get(resource.Type(rec.Key.Type), rec.Key.Name)
		if !ok || says(set, p, dp, policy.Options{}) {
			continue
		}
		less := naive{records: slices.Delete(slices.Clone(n.records), i, i+1), tags: n.tags}
		if diff := cmp.Diff(with, less.served()); diff != "" {
			return fmt.Sprintf("without %s:\n%s", rec.Key, diff)
		}
	}
	return ""
}

func TestWrongAnswersToAffectsOfAGatewayAreNoticed(t *testing.T) {
	wrong := map[string]affects{
		"the tags of listeners are no sources": func(s *policy.Set, p *policy.Policy, dp *meshv1.Dataplane, o policy.Options) bool {
			return s.Affects(p, dp, o) && (p.Type == policy.MeshGateway || p.Type == policy.MeshGatewayRoute || p.SelectsSource(dp.Networking.Gateway.Tags))
		},
		"the tags of listeners are not what routes select": func(s *policy.Set, p *policy.Policy, dp *meshv1.Dataplane, o policy.Options) bool {
			return s.Affects(p, dp, o) && (p.Type != policy.MeshGatewayRoute || p.Selects(dp.Networking.Gateway.Tags))
		},
	}
	for _, typ := range []resource.Type{
		policy.MeshGateway, policy.MeshGatewayRoute, policy.CircuitBreaker, policy.FaultInjection, policy.HealthCheck, policy.RateLimit, policy.Retry, policy.Timeout,
	} {
		wrong[string(typ)+" does not matter"] = func(s *policy.Set, p *policy.Policy, dp *meshv1.Dataplane, o policy.Options) bool {
			return p.Type != typ && s.Affects(p, dp, o)
		}
	}
	worlds := rapid.Custom(drawWorld)
	for seed := 0; seed < 5000 && len(wrong) > 0; seed++ {
		n := worlds.Example(seed)
		for name, says := range wrong {
			if n.wronglyUnaffected(says) != "" {
				delete(wrong, name)
			}
		}
	}
	for name := range wrong {
		t.Errorf("nobody notices that %s", name)
	}
}
