package validate_test

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meridian-mesh/meridian/api/codec"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/validate"
	"github.com/meridian-mesh/meridian/api/validate/validatetest"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
)

// parse decodes a body into a record. The body says of which type it is.
func parse(tb testing.TB, typ resource.Type, body string) (*resource.Descriptor, *store.Record, error) {
	tb.Helper()
	d, ok := resource.Lookup(typ)
	if !ok {
		tb.Fatalf("no type %q", typ)
	}
	doc, err := codec.Decode(d, "application/yaml", []byte(body))
	if err != nil {
		return d, nil, err
	}
	rec := &store.Record{Key: store.Key{Type: string(typ), Name: doc.Name}, Spec: doc.Spec, Labels: doc.Labels}
	if d.Scope == resource.ScopeMesh {
		rec.Key.Mesh = doc.Mesh
	}
	return d, rec, nil
}

func mustParse(tb testing.TB, typ resource.Type, body string) (*resource.Descriptor, *store.Record) {
	tb.Helper()
	d, rec, err := parse(tb, typ, body)
	if err != nil {
		tb.Fatalf("decode %s: %v\n%s", typ, err, body)
	}
	return d, rec
}

// typeOf reads the type that a body of package validatetest names.
func typeOf(tb testing.TB, body string) resource.Type {
	tb.Helper()
	for line := range strings.Lines(body) {
		if typ, ok := strings.CutPrefix(line, "type: "); ok {
			return resource.Type(strings.TrimSpace(typ))
		}
	}
	tb.Fatalf("no type in %s", body)
	return ""
}

// open returns a store that holds the records.
func open(tb testing.TB, records ...*store.Record) *store.Store {
	tb.Helper()
	st, err := store.Open(tb.Context(), memory.New(), store.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = st.Close() })
	_, err = st.Update(tb.Context(), func(*store.Snapshot) ([]store.Op, error) {
		var ops []store.Op
		for _, rec := range records {
			ops = append(ops, store.Put(rec))
		}
		return ops, nil
	})
	if err != nil {
		tb.Fatal(err)
	}
	return st
}

// judge returns all that the rules say about a case, and how codec.Decode fails.
func judge(t *testing.T, c validatetest.Case) ([]codec.Violation, error) {
	t.Helper()
	d, rec, err := parse(t, c.Type, c.Body)
	if err != nil {
		return nil, err
	}
	if found := validate.Spec(d, rec.Key, rec.Spec); len(found) > 0 {
		return found, nil
	}
	var records []*store.Record
	for _, body := range c.Given {
		_, given := mustParse(t, typeOf(t, body), body)
		records = append(records, given)
	}
	var old *store.Record
	if c.Old != "" {
		_, old = mustParse(t, c.Type, c.Old)
		records = append(records, old)
	}
	return validate.State(open(t, records...).Snapshot(), d, rec, old), nil
}

func TestEachRuleIsKept(t *testing.T) {
	for _, c := range validatetest.Cases() {
		t.Run(c.Name(), func(t *testing.T) {
			t.Parallel()
			got, err := judge(t, c)
			if c.Form {
				invalid, ok := err.(*codec.Error) //nolint:errorlint // Decode returns it as it is
				if !ok {
					t.Fatalf("decoded with %v, want violations", err)
				}
				for i, v := range invalid.Violations {
					if i >= len(c.Want) || v.Field != c.Want[i].Field {
						t.Errorf("found %v", v)
					}
				}
				return
			}
			if err != nil {
				t.Fatalf("the body has not even the right form: %v\n%s", err, c.Body)
			}
			if diff := cmp.Diff(c.Want, got); diff != "" {
				t.Errorf("violations (-want +got):\n%s\n%s", diff, c.Body)
			}
		})
	}
}

// bodies are the bodies that package codec is tested with, by the names of their files.
func bodies(tb testing.TB) map[string]string {
	tb.Helper()
	files, err := filepath.Glob("../codec/testdata/bodies/*.json")
	if err != nil || len(files) == 0 {
		tb.Fatalf("no bodies: %v", err)
	}
	found := make(map[string]string)
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			tb.Fatal(err)
		}
		found[strings.TrimSuffix(filepath.Base(file), ".json")] = string(text)
	}
	return found
}

func TestWhatIsValidIsAccepted(t *testing.T) {
	accepted := bodies(t)
	all := resource.All()
	for i := range all {
		accepted[string(all[i].Name)+"-sample"] = validatetest.Sample(all[i].Name, "")
	}
	for name, body := range accepted {
		t.Run(name, func(t *testing.T) {
			typ, _, _ := strings.Cut(name, "-")
			accepts(t, resource.Type(typ), body)
		})
	}
}

// accepts checks that a body is found valid by itself, as a new resource and as one that is there already.
func accepts(t *testing.T, typ resource.Type, body string) {
	t.Helper()
	d, rec := mustParse(t, typ, body)
	if found := validate.Spec(d, rec.Key, rec.Spec); len(found) > 0 {
		t.Errorf("%s by itself: %v", rec.Key, found)
	}
	if found := validate.State(open(t).Snapshot(), d, rec, nil); len(found) > 0 {
		t.Errorf("%s in an empty store: %v", rec.Key, found)
	}
	if found := validate.State(open(t, rec).Snapshot(), d, rec, rec); len(found) > 0 {
		t.Errorf("%s unchanged: %v", rec.Key, found)
	}
}

func TestASpecificationThatCannotBeDecodedIsOneViolation(t *testing.T) {
	for _, typ := range []resource.Type{resource.Mesh, "Timeout", "MeshTrace"} {
		d, _ := resource.Lookup(typ)
		if found := validate.Spec(d, store.Key{Type: string(typ), Name: "x"}, []byte{0xff}); len(found) != 1 {
			t.Errorf("%s: found %v", typ, found)
		}
	}
}

func TestAReportIsBounded(t *testing.T) {
	body := validatetest.Sample("Timeout", "sources = ["+strings.Repeat("{}, ", 500)+"{}]")
	d, rec := mustParse(t, "Timeout", body)
	if found := validate.Spec(d, rec.Key, rec.Spec); len(found) != 100 {
		t.Errorf("found %d violations, want 100", len(found))
	}
	long := strings.Repeat("x", 10_000)
	d, rec = mustParse(t, "Timeout", validatetest.Sample("Timeout", `destinations[0].match["`+long+`"] = "`+long+` "`))
	for _, v := range validate.Spec(d, rec.Key, rec.Spec) {
		if len(v.Field)+len(v.Message) > 1000 {
			t.Errorf("a violation repeats %d bytes", len(v.Field)+len(v.Message))
		}
	}
}

// FuzzSpec gives the rules any stored specification of any type. They may find fault with it, and must not panic.
func FuzzSpec(f *testing.F) {
	all := resource.All()
	for i := range all {
		_, rec := mustParse(f, all[i].Name, validatetest.Sample(all[i].Name, ""))
		f.Add(uint8(i), rec.Spec)
	}
	for _, c := range validatetest.Cases() {
		for i := range all {
			if all[i].Name == c.Type && !c.Form {
				_, rec := mustParse(f, c.Type, c.Body)
				f.Add(uint8(i), rec.Spec)
			}
		}
	}
	_, mesh := mustParse(f, resource.Mesh, validatetest.Sample(resource.Mesh, "constraints = {dataplaneProxy: {requirements: [{tags: {a: b}}]}}"))
	view := open(f, mesh).Snapshot()
	f.Fuzz(func(t *testing.T, row uint8, spec []byte) {
		d := &all[int(row)%len(all)]
		rec := &store.Record{Key: store.Key{Type: string(d.Name), Mesh: "demo", Name: "x"}, Spec: spec}
		for _, v := range validate.Spec(d, rec.Key, spec) {
			if v.Message == "" {
				t.Errorf("a violation of %q says nothing", v.Field)
			}
		}
		validate.State(view, d, rec, nil)
		validate.State(view, d, rec, rec)
	})
}

// BenchmarkSpec is what validation adds to a PUT, for the largest example of each type.
func BenchmarkSpec(b *testing.B) {
	for name, body := range bodies(b) {
		if strings.Contains(name, "-") {
			continue
		}
		d, rec := mustParse(b, resource.Type(name), body)
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if found := validate.Spec(d, rec.Key, rec.Spec); len(found) > 0 {
					b.Fatal(found)
				}
			}
		})
	}
}

// TestHostileResourcesAreJudgedQuickly gives the rules what costs most: anyone may write it, unless writes are closed. The
// slowest takes an eighth of a second; the limit is there for a rule whose cost grows faster than what it judges.
func TestHostileResourcesAreJudgedQuickly(t *testing.T) {
	const size = 1 << 20
	limit := 5 * time.Second
	if testing.Short() { // under the race detector
		limit = time.Minute
	}
	quoted := func(unit string) string { return `"` + strings.Repeat(unit, size/len(unit)) + `"` }
	for name, c := range map[string]struct {
		typ     resource.Type
		changes string
	}{
		"a format of percent signs":      {resource.Mesh, "logging = {backends: [{name: a, type: file, conf: {path: /a}, format: " + quoted("%%") + "}]}"},
		"a format of open parentheses":   {resource.Mesh, "logging = {backends: [{name: a, type: file, conf: {path: /a}, format: " + quoted("%A(") + "}]}"},
		"a long name":                    {resource.Mesh, "mtls = {backends: [{type: builtin, name: " + quoted("a-") + "}]}"},
		"a long regular expression":      {"TrafficRoute", "conf.http = [{match: {path: {regex: " + quoted("(a|b)*") + "}}, destination: {kuma.io/service: a}}]"},
		"a wide regular expression":      {"TrafficRoute", `conf.http = [{match: {path: {regex: "` + strings.Repeat(`\\pL{1000}`, 400) + `"}}, destination: {kuma.io/service: a}}]`},
		"a long template":                {"VirtualOutbound", "conf.host = " + quoted("{{(")},
		"a deep template":                {"VirtualOutbound", `conf.host = "{{` + strings.Repeat("(", 500) + `"`},
		"an address of dots":             {"ExternalService", "networking.address = " + quoted("a.")},
		"a deep Envoy resource":          {"ProxyTemplate", "conf.resources = [{name: a, version: b, resource: " + quoted("{a: ") + "}]"},
		"an Envoy resource of aliases":   {"ProxyTemplate", `conf.resources = [{name: a, version: b, resource: "{a: &a ` + strings.Repeat("x", size/2) + `, b: [` + strings.Repeat("*a, ", size/8) + `]}"}]`},
		"many retry conditions":          {"Retry", "conf.grpc.retryOn = [" + strings.Repeat("cancelled, internal, ", size/40) + "internal]"},
		"many parameters of one name":    {"VirtualOutbound", "conf.parameters = [" + strings.Repeat("{name: a}, ", size/20) + "{name: a}]"},
		"many listeners on one port":     {"MeshGateway", "conf.listeners = [" + strings.Repeat("{port: 80, protocol: HTTP}, ", size/30) + "{}]"},
		"many tags that no resource has": {"TrafficPermission", "sources = [" + strings.Repeat("{match: {a b: c d}}, ", size/30) + "{}]"},
	} {
		t.Run(name, func(t *testing.T) {
			d, rec := mustParse(t, c.typ, validatetest.Sample(c.typ, c.changes))
			start := time.Now()
			found := validate.Spec(d, rec.Key, rec.Spec)
			if took := time.Since(start); took > limit {
				t.Errorf("took %v", took)
			} else {
				t.Logf("%d violations after %v", len(found), took)
			}
		})
	}
}

// BenchmarkState is the dearest look at other resources: an external service among the rate limits of its mesh.
func BenchmarkState(b *testing.B) {
	for _, n := range []int{10, 1000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			records := make([]*store.Record, n)
			for i := range records {
				_, records[i] = mustParse(b, "RateLimit", validatetest.Sample("RateLimit", ""))
				records[i].Key.Name = strconv.Itoa(i)
			}
			view := open(b, records...).Snapshot()
			d, rec := mustParse(b, "ExternalService", validatetest.Sample("ExternalService", ""))
			b.ReportAllocs()
			for b.Loop() {
				if found := validate.State(view, d, rec, nil); len(found) > 0 {
					b.Fatal(found)
				}
			}
		})
	}
}
