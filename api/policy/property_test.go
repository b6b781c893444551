package policy_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// world is a proxy and the policies of its mesh.
type world struct {
	records []*store.Record
	dp      *meshv1.Dataplane
	options policy.Options
}

func services() []string { return []string{"a", "b", "c"} }

// maybe draws true about once in n times.
func maybe(t *rapid.T, n int) bool { return rapid.IntRange(1, n).Draw(t, "maybe") == n }

func drawTags(t *rapid.T) tags {
	out := tags{}
	if s := rapid.SampledFrom(services()).Draw(t, "service"); maybe(t, 5) {
		out["service"] = s
	} else {
		out["kuma.io/service"] = s
	}
	for _, k := range []string{"version", "kuma.io/protocol", "protocol"} {
		if maybe(t, 3) {
			out[k] = rapid.SampledFrom([]string{"1", "http"}).Draw(t, k)
		}
	}
	return out
}

func drawSelector(t *rapid.T) tags {
	out := tags{}
	if !maybe(t, 8) {
		out["kuma.io/service"] = rapid.SampledFrom(append(services(), "*", "*")).Draw(t, "service")
	}
	for _, k := range []string{"version", "protocol"} {
		if maybe(t, 5) {
			out[k] = rapid.SampledFrom([]string{"1", "http", "*"}).Draw(t, k)
		}
	}
	if maybe(t, 12) {
		out["service"] = "a"
	}
	return out
}

func drawSelectors(t *rapid.T, least int) []tags {
	return rapid.SliceOfN(rapid.Custom(drawSelector), least, 3).Draw(t, "selectors")
}

func drawRef(t *rapid.T) string {
	kind := rapid.SampledFrom([]string{"Mesh", "Mesh", "MeshSubset", "MeshService", "MeshServiceSubset"}).Draw(t, "kind")
	ref := map[string]any{"kind": kind}
	if strings.HasPrefix(kind, "MeshService") {
		ref["name"] = rapid.SampledFrom(services()).Draw(t, "name")
	}
	if strings.HasSuffix(kind, "Subset") {
		m := tags{"version": rapid.SampledFrom([]string{"1", "http"}).Draw(t, "version")}
		if maybe(t, 4) {
			m["zone"] = "z"
		}
		ref["tags"] = m
	}
	return toJSON(ref)
}

func drawItems(t *rapid.T) string {
	items := make([]string, rapid.IntRange(0, 2).Draw(t, "items"))
	for i := range items {
		items[i] = `{"targetRef":` + drawRef(t) + `,"default":` + drawConf(t) + `}`
	}
	return "[" + strings.Join(items, ",") + "]"
}

func drawConf(t *rapid.T) string {
	return rapid.SampledFrom([]string{
		`{"action":"ALLOW"}`, `{"action":"Deny","list":["x"]}`, `{"list":["y","z"]}`, `{"list":null,"deep":{"p":1}}`,
		`{"deep":{"p":null,"q":1.50}}`, `{}`, `{"deep":{"r":"<&>"}}`,
	}).Draw(t, "conf")
}

func toJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func drawRecord(t *rapid.T, typ resource.Type, i int) *store.Record {
	var body string
	switch typ {
	case policy.MeshAccessLog, policy.MeshTrafficPermission, policy.MeshTrace:
		body = `{"targetRef":` + drawRef(t) + `,"from":` + drawItems(t) + `,"to":` + drawItems(t)
		if maybe(t, 2) {
			body += `,"default":` + drawConf(t)
		}
		body += `}`
	case policy.TrafficTrace, policy.ProxyTemplate:
		selectors := []map[string]tags{}
		for _, s := range drawSelectors(t, 0) {
			selectors = append(selectors, map[string]tags{"match": s})
		}
		body = `{"selectors":` + toJSON(selectors) + `}`
	default:
		body = connection(drawSelectors(t, 1), drawSelectors(t, 1), "")
	}
	rec := record(typ, fmt.Sprintf("p%d", i), body, rapid.IntRange(0, 3).Draw(t, "created"))
	if maybe(t, 5) {
		rec.Labels = tags{"kuma.io/display-name": rapid.SampledFrom([]string{"p0", "o", "q"}).Draw(t, "display")}
	}
	return rec
}

// drawType draws the types of a world, most often few of them, so that there are many of each.
func drawWorld(t *rapid.T) world {
	types := slices.DeleteFunc(policy.Types(), func(typ resource.Type) bool {
		return strings.HasPrefix(string(typ), "MeshGateway") || typ == policy.VirtualOutbound
	})
	var w world
	for _, typ := range rapid.SliceOfNDistinct(rapid.SampledFrom(types), 1, 3, rapid.ID).Draw(t, "types") {
		for i := range rapid.IntRange(0, 5).Draw(t, "policies") {
			w.records = append(w.records, drawRecord(t, typ, i))
		}
	}
	inbounds := rapid.SliceOfN(rapid.Custom(drawTags), 0, 2).Draw(t, "inbounds")
	w.dp = sidecar(inbounds...)
	if len(inbounds) == 0 || maybe(t, 6) {
		w.dp.Networking.Gateway = &meshv1.Dataplane_Networking_Gateway{Tags: drawTags(t)}
	}
	w.options.Outbounds = rapid.SliceOfN(rapid.Custom(drawTags), 0, 3).Draw(t, "outbounds")
	w.options.Externals = rapid.SliceOfN(rapid.Custom(drawTags), 0, 1).Draw(t, "externals")
	if maybe(t, 3) {
		w.options.Metrics = drawTags(t)
	}
	return w
}

// describe says in lines what the proxy of a world gets from a set.
func describe(set *policy.Set, w world) []string {
	m := set.Match(w.dp, w.options)
	list := func(sourced []policy.Sourced) string {
		names := make([]string, len(sourced))
		for i, s := range sourced {
			names[i] = s.Policy.Name
		}
		return strings.Join(names, " ")
	}
	var lines []string
	inbound := func(i int, in policy.Inbound) {
		lines = append(lines, fmt.Sprintf("in %d: permission %s faults %s limits %s", i,
			name(in.TrafficPermission), list(in.FaultInjections), list(in.RateLimits)))
	}
	for i, in := range m.Inbounds {
		inbound(i, in)
	}
	if m.Metrics != nil {
		inbound(len(m.Inbounds), *m.Metrics)
	}
	for i, out := range m.Outbounds {
		lines = append(lines, fmt.Sprintf("out %d %s: route %s timeout %s limit %s", i, out.Service, name(out.TrafficRoute), name(out.Timeout), name(out.RateLimit)))
	}
	for _, s := range append(services(), policy.PassThrough) {
		to := m.Service(s)
		lines = append(lines, fmt.Sprintf("service %s: health %s breaker %s retry %s log %s", s,
			name(to.HealthCheck), name(to.CircuitBreaker), name(to.Retry), name(to.TrafficLog)))
	}
	for _, t := range w.options.Externals {
		lines = append(lines, fmt.Sprintf("may reach %v: %t", t, m.MayReach(t)))
	}
	lines = append(lines, fmt.Sprintf("trace %s template %s", name(m.TrafficTrace), name(m.ProxyTemplate)))
	for i, a := range []policy.Attached{m.AccessLog, m.Trace, m.Permission} {
		lines = append(lines, describeAttached(refTypes()[i], a)...)
	}
	return lines
}

func describeAttached(typ resource.Type, a policy.Attached) []string {
	var lines []string
	for _, p := range a.Policies {
		lines = append(lines, fmt.Sprintf("%s attached %s", typ, p.Name))
	}
	for i, from := range a.From {
		for _, r := range from.Rules {
			lines = append(lines, fmt.Sprintf("%s from %d: %s", typ, i, describeRule(r)))
		}
	}
	for _, r := range a.To {
		lines = append(lines, fmt.Sprintf("%s to: %s", typ, describeRule(r)))
	}
	if a.Single != nil {
		lines = append(lines, fmt.Sprintf("%s single: %s", typ, describeRule(a.Single)))
	}
	return lines
}

func describeRule(r *policy.Rule) string {
	var conf any
	if err := json.Unmarshal(r.Conf, &conf); err != nil {
		panic(err)
	}
	origins := make([]string, len(r.Origins))
	for i, p := range r.Origins {
		origins[i] = p.Name
	}
	return fmt.Sprintf("%v %s %v", r.Subset, toJSON(conf), origins)
}

func (w world) set() *policy.Set {
	set, errs := policy.NewSet("default", slices.Values(w.records))
	if len(errs) > 0 {
		panic(errs)
	}
	return set
}

func TestMatchFollowsTheRules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		if diff := cmp.Diff(naive{records: w.records}.describe(w), describe(w.set(), w)); diff != "" {
			t.Fatal(diff)
		}
	})
}

// The test above is worth something only when what it draws tells right rules from wrong ones.
func TestMatchWithWrongRulesIsNoticed(t *testing.T) {
	const tries = 20_000
	worlds := rapid.Custom(drawWorld)
	left := slices.Clone(faults)
	for seed := 0; seed < tries && len(left) > 0; seed++ {
		w := worlds.Example(seed)
		got := describe(w.set(), w)
		left = slices.DeleteFunc(left, func(fault string) bool {
			return !slices.Equal(naive{fault: fault, records: w.records}.describe(w), got)
		})
	}
	for _, fault := range left {
		t.Errorf("nobody notices that %s", fault)
	}
}

func TestWhatDoesNotAffectAProxyChangesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := drawWorld(t)
		if fault := affectsFault(w, (*policy.Set).Affects); fault != "" {
			t.Fatal(fault)
		}
	})
}

type affects = func(*policy.Set, *policy.Policy, *meshv1.Dataplane, policy.Options) bool

// affectsFault names a policy that is said not to affect the proxy, and does; "" when there is none.
func affectsFault(w world, says affects) string {
	set := w.set()
	with := describe(set, w)
	for _, rec := range w.records {
		p, ok := set.Get(resource.Type(rec.Key.Type), rec.Key.Name)
		if !ok {
			return "lost " + rec.Key.String()
		}
		if says(set, p, w.dp, w.options) {
			continue
		}
		less, _ := set.With(store.Change{Key: rec.Key})
		if diff := cmp.Diff(with, describe(less, w)); diff != "" {
			return fmt.Sprintf("without %s:\n%s", rec.Key, diff)
		}
	}
	return ""
}

func TestWrongAnswersToAffectsAreNoticed(t *testing.T) {
	except := func(types ...resource.Type) affects {
		return func(s *policy.Set, p *policy.Policy, dp *meshv1.Dataplane, o policy.Options) bool {
			return !slices.Contains(types, p.Type) && s.Affects(p, dp, o)
		}
	}
	wrong := map[string]affects{
		"routes matter to their sources only": func(s *policy.Set, p *policy.Policy, dp *meshv1.Dataplane, o policy.Options) bool {
			return s.Affects(p, dp, o) && (p.Type != policy.TrafficRoute || slices.ContainsFunc(dp.Networking.Inbound, func(in *meshv1.Dataplane_Networking_Inbound) bool {
				return p.SelectsSource(in.Tags)
			}))
		},
		"the inbound of metrics does not matter": func(s *policy.Set, p *policy.Policy, dp *meshv1.Dataplane, o policy.Options) bool {
			o.Metrics = nil
			return s.Affects(p, dp, o)
		},
		"external services do not matter": func(s *policy.Set, p *policy.Policy, dp *meshv1.Dataplane, o policy.Options) bool {
			o.Externals = nil
			return s.Affects(p, dp, o)
		},
	}
	for _, typ := range policy.Types() {
		if !strings.HasPrefix(string(typ), "MeshGateway") && typ != policy.VirtualOutbound {
			wrong[string(typ)+" does not matter"] = except(typ)
		}
	}
	worlds := rapid.Custom(drawWorld)
	for seed := 0; seed < 5000 && len(wrong) > 0; seed++ {
		w := worlds.Example(seed)
		for name, says := range wrong {
			if affectsFault(w, says) != "" {
				delete(wrong, name)
			}
		}
	}
	for name := range wrong {
		t.Errorf("nobody notices that %s", name)
	}
}

func TestASetThatChangedIsLikeANewOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		before, after := drawWorld(t), drawWorld(t)
		set := before.set()
		wanted := describe(set, before)
		final := make(map[store.Key]*store.Record)
		var changes []store.Change
		for _, r := range before.records {
			final[r.Key] = r
			if maybe(t, 3) {
				changes = append(changes, store.Change{Key: r.Key})
			}
		}
		for _, r := range after.records {
			changes = append(changes, store.Change{Key: r.Key, Record: r})
		}
		for _, c := range changes {
			if delete(final, c.Key); c.Record != nil {
				final[c.Key] = c.Record
			}
		}
		changed, errs := set.With(changes...)
		if len(errs) > 0 {
			t.Fatal(errs)
		}
		w := after
		w.records = nil
		for _, r := range final {
			w.records = append(w.records, r)
		}
		if diff := cmp.Diff(describe(w.set(), w), describe(changed, w)); diff != "" {
			t.Fatal(diff)
		}
		if diff := cmp.Diff(wanted, describe(set, before)); diff != "" {
			t.Fatalf("the old set changed: %s", diff)
		}
		if !policy.Diff(set, changed).Affects(w.dp, w.options) {
			if diff := cmp.Diff(describe(set, w), describe(changed, w)); diff != "" {
				t.Fatalf("the difference is said not to affect the proxy: %s", diff)
			}
		}
	})
}
