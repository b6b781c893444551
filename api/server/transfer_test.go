package server

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/validate/validatetest"
	"github.com/meridian-mesh/meridian/common/store"
)

const (
	fromYAML  = "Content-Type: application/yaml"
	stranger  = "Remote: 10.0.0.9:1234"
	exportEnd = "\n"
)

// exportOf is an export without its first line, which names the state.
func (p *plane) exportOf(query string) string {
	p.t.Helper()
	a := p.want(http.StatusOK, http.MethodGet, "/export"+query, "")
	head, rest, _ := strings.Cut(a.Body, exportEnd)
	if !strings.HasPrefix(head, "# ") {
		p.t.Fatalf("export begins with %q", head)
	}
	return rest
}

// imports sends an import in YAML and returns its counts.
func (p *plane) imports(query, body string) importAnswer {
	p.t.Helper()
	a := p.want(http.StatusOK, http.MethodPost, "/import"+query, body, "-Content-Type", fromYAML)
	var got importAnswer
	if err := json.Unmarshal([]byte(a.Body), &got); err != nil {
		p.t.Fatal(err)
	}
	return got
}

// permission is a traffic permission as YAML.
func permission(mesh, name, service string) string {
	return fmt.Sprintf("---\ntype: TrafficPermission\nmesh: %s\nname: %s\nsources: [{match: {kuma.io/service: %s}}]\n"+
		"destinations: [{match: {kuma.io/service: backend}}]\n", mesh, name, service)
}

const meshDemo = "---\ntype: Mesh\nname: demo\n"

func TestAnExportHoldsWhatThePlaneOwns(t *testing.T) {
	p := withMesh(t, resource.Global)
	p.seed(
		record(t, resource.Mesh, "", "other", "", nil),
		record(t, "TrafficPermission", "other", "b", "", nil),
		record(t, "TrafficPermission", "demo", "a", "", &meshv1.TrafficPermission{
			Sources: []*meshv1.Selector{{Match: map[string]string{"kuma.io/service": "*"}}},
		}),
		record(t, resource.Secret, "demo", "key", "", nil),
		record(t, resource.GlobalSecret, "", "token", "", nil),
		record(t, resource.ZoneType, "", "east", "", nil),
		// What follows is not exported: made by planes, derived, or another plane's.
		record(t, resource.Config, "", resource.ClusterIDName, "", &systemv1.Config{Config: "the-cluster"}),
		record(t, resource.MeshInsight, "", "demo", "", nil),
		record(t, resource.ZoneInsight, "", "east", "", nil),
		record(t, resource.ServiceInsight, "demo", "all-services-demo", "", nil),
		record(t, resource.Dataplane, "demo", "east.web", "east", nil),
		record(t, resource.ZoneIngress, "", "east.ingress", "east", nil),
	)
	const times = "creationTime: \"2024-05-01T10:00:00Z\"\nmodificationTime: \"2024-05-01T11:00:00Z\"\n"
	meshes := []string{
		"---\ntype: Mesh\nname: demo\n" + times, "---\ntype: Mesh\nname: other\n" + times,
	}
	token := "---\ntype: GlobalSecret\nname: token\n" + times
	secret := "---\ntype: Secret\nmesh: demo\nname: key\n" + times
	policies := []string{
		"---\ntype: TrafficPermission\nmesh: demo\nname: a\n" + times + "sources:\n- match:\n    kuma.io/service: \"*\"\n",
		"---\ntype: TrafficPermission\nmesh: other\nname: b\n" + times,
	}
	zone := "---\ntype: Zone\nname: east\n" + times
	for query, want := range map[string][]string{
		"":                                   {meshes[0], meshes[1], token, secret, policies[0], policies[1], zone},
		"?mesh=demo":                         {meshes[0], secret, policies[0]},
		"?type=TrafficPermission":            {policies[0], policies[1]},
		"?type=TrafficPermission&mesh=other": {policies[1]},
		"?type=Zone&mesh=other":              nil,
	} {
		if d := cmp.Diff(strings.Join(want, ""), p.exportOf(query)); d != "" {
			t.Errorf("%s: %s", query, d)
		}
	}

	a := p.want(http.StatusOK, http.MethodGet, "/export", "", "Accept: application/yaml")
	if got := a.Header.Get("Content-Type"); got != "application/yaml" {
		t.Errorf("Content-Type is %q", got)
	}
	if got := a.Header.Get(revisionHeader); got != "2" {
		t.Errorf("%s is %q", revisionHeader, got)
	}
	if want := "# Resources of a Meridian global control plane, cluster \"the-cluster\", at revision 2.\n---\n"; !strings.HasPrefix(a.Body, want) {
		t.Errorf("body is %s", a.Body)
	}
	head := p.want(http.StatusOK, http.MethodHead, "/export", "")
	if got, want := head.Header.Get("Content-Length"), fmt.Sprint(len(a.Body)); got != want || head.Body != "" {
		t.Errorf("HEAD: Content-Length %s, want %s; body %q", got, want, head.Body)
	}
}

func TestAnExportIsRefused(t *testing.T) {
	p := withMesh(t, resource.Global)
	for _, c := range []struct {
		name, target string
		headers      []string
		status       int
		text         string
	}{
		{"to anybody but an administrator", "/export", []string{stranger}, 403, "cannot export resources"},
		{"as JSON", "/export", []string{"Accept: application/json"}, 406, "application/yaml"},
		{"of an unknown type", "/export?type=Nope", nil, 400, "is no type of resources that this control plane exports"},
		{"of a type that others write", "/export?type=Dataplane", nil, 400, "is no type of resources that this control plane exports"},
		{"of an unknown mesh", "/export?mesh=nope", nil, 400, "mesh of name nope is not found"},
		{"of two types", "/export?type=Mesh&type=Zone", nil, 400, "is given more than once"},
		{"of two meshes", "/export?mesh=demo&mesh=other", nil, 400, "is given more than once"},
		{"with a query that cannot be read", "/export?mesh=demo;type=Mesh", nil, 400, "the query cannot be read"},
		{"by POST", "/export", nil, 405, "Not Allowed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			method := http.MethodGet
			if c.status == http.StatusMethodNotAllowed {
				method = http.MethodPost
			}
			if a := p.do(method, c.target, "", c.headers...); a.Status != c.status || !strings.Contains(a.Body, c.text) {
				t.Errorf("got %d %s", a.Status, a.Body)
			}
		})
	}
}

// TestARestoredPlaneIsTheSame: an export, imported into an empty plane, gives the same export, with every type that
// the plane writes; importing it once more changes nothing.
func TestARestoredPlaneIsTheSame(t *testing.T) {
	for _, pl := range []resource.Plane{resource.Global, resource.Zone} {
		t.Run(pl.String(), func(t *testing.T) {
			p, fresh := newPlane(t, pl), newPlane(t, pl)
			if pl == resource.Zone { // meshes reach a zone from its global
				p.seed(record(t, resource.Mesh, "", "demo", "global", nil))
				fresh.seed(record(t, resource.Mesh, "", "demo", "global", nil))
			}
			types := 0
			all := resource.All()
			for i := range all {
				d := &all[i]
				if !p.srv.transferable(d) {
					continue
				}
				types++
				name := "demo"
				if !d.WritableOn(pl, name) {
					name = "user-token-revocations" // one that a zone has of its own
				}
				body := object(t, bodyOf(t, d, "demo", name))
				body["labels"] = map[string]string{"note": "kept: 100%"}
				text, err := json.Marshal(body)
				if err != nil {
					t.Fatal(err)
				}
				p.want(http.StatusCreated, http.MethodPut, itemPath(d, "demo", name), string(text))
			}
			backup := p.exportOf("")
			got := fresh.imports("", backup)
			if got.Created < types || got.Updated+got.Unchanged != 0 || len(got.Types) != types {
				t.Errorf("imported %+v, want %d types", got, types)
			}
			if d := cmp.Diff(backup, fresh.exportOf("")); d != "" {
				t.Errorf("the restored plane differs: %s", d)
			}
			before := fresh.store.Snapshot().Revision()
			if again := fresh.imports("", backup); again.Unchanged != got.Created || again.Revision != before {
				t.Errorf("the second import answered %+v at revision %d", again, before)
			}
		})
	}
}

// A name that may be created may be restored, with the names that are made from it.
func TestThePlaneHoldsNothingThatItsOwnExportCannotRestore(t *testing.T) {
	const longest = 223
	for name, mesh := range map[string]string{
		"the longest name of a mesh":          `{"type":"Mesh","name":"` + strings.Repeat("m", longest) + `"}`,
		"dots in the name of a CA":            `{"type":"Mesh","name":"m","mtls":{"enabledBackend":"ca.1","backends":[{"name":"ca.1","type":"builtin"}]}}`,
		"long names of a mesh and of its CAs": `{"type":"Mesh","name":"` + strings.Repeat("m", 120) + `","mtls":{"backends":[{"name":"` + strings.Repeat("ca.", 40) + `1","type":"builtin"}]}}`,
	} {
		t.Run(name, func(t *testing.T) {
			p, fresh := newPlane(t, resource.Global), newPlane(t, resource.Global)
			p.want(http.StatusCreated, http.MethodPut, "/meshes/"+object(t, mesh)["name"].(string), mesh)
			backup := p.exportOf("")
			fresh.imports("", backup)
			if d := cmp.Diff(backup, fresh.exportOf("")); d != "" {
				t.Errorf("the restored plane differs: %s", d)
			}
		})
	}
	p := newPlane(t, resource.Global)
	tooLong := strings.Repeat("m", longest+1)
	a := p.want(http.StatusBadRequest, http.MethodPut, "/meshes/"+tooLong, `{"type":"Mesh","name":"`+tooLong+`"}`)
	if !strings.Contains(a.Body, `"field": "name"`) || !strings.Contains(a.Body, "cannot be longer than 223 characters") {
		t.Errorf("a mesh with a longer name: %s", a.Body)
	}
}

func TestAnImportTakesWhatKumactlExports(t *testing.T) {
	p := newPlane(t, resource.Global)
	cert, key := validatetest.Authority()
	got := p.imports("", strings.NewReplacer("CERT", base64.StdEncoding.EncodeToString([]byte(cert)),
		"KEY", base64.StdEncoding.EncodeToString([]byte(key))).Replace(`# Product: Kuma, Version: 2.7.1, Hostname: cp, ClusterId: 1, InstanceId: cp-1
---
creationTime: "2024-03-01T10:15:30.606217+02:00"
modificationTime: "2024-03-01T10:15:30.606217+02:00"
mtls:
  backends:
  - conf:
      cert:
        secret: provided-cert
      key:
        secret: provided-key
    mode: STRICT
    name: ca-1
    type: provided
  enabledBackend: ca-1
name: default
skipCreatingInitialPolicies:
- '*'
type: Mesh
---
creationTime: "2024-03-01T10:15:31Z"
data: CERT
mesh: default
modificationTime: "2024-03-01T10:15:31Z"
name: provided-cert
type: Secret
---
data: KEY
mesh: default
name: provided-key
type: Secret
---
mesh: default
name: mtp-1
spec:
  from:
  - default:
      action: Allow
    targetRef:
      kind: Mesh
  targetRef:
    kind: Mesh
type: MeshTrafficPermission
`))
	if got.Created != 4 || len(got.Types) != 3 {
		t.Fatalf("got %+v", got)
	}
	want := []string{"Mesh/default", "MeshTrafficPermission/default/mtp-1", "Secret/default/provided-cert", "Secret/default/provided-key"}
	for _, key := range want {
		if !slices.Contains(p.keys(), key) {
			t.Errorf("%s is missing in %v", key, p.keys())
		}
	}
	rec, _ := p.store.Snapshot().Get(store.Key{Type: "Mesh", Name: "default"})
	if at := time.Date(2024, 3, 1, 8, 15, 30, 606217000, time.UTC); !rec.Created.Equal(at) || !rec.Modified.Equal(at) {
		t.Errorf("times are %s and %s", rec.Created, rec.Modified)
	}
}

func TestAnImportTakesAnyForm(t *testing.T) {
	item := func(name string) string {
		return `{"type":"Retry","mesh":"demo","name":"` + name + `","sources":[{"match":{"kuma.io/service":"web"}}],` +
			`"destinations":[{"match":{"kuma.io/service":"api"}}],"conf":{"tcp":{"maxConnectAttempts":3}}}`
	}
	for name, c := range map[string]struct{ contentType, body string }{
		"objects":        {"application/json", item("a") + item("b")},
		"array":          {"application/json", "[" + item("a") + "," + item("b") + "]"},
		"list":           {"application/json; charset=utf-8", `{"total":2,"items":[` + item("a") + "," + item("b") + `],"next":null}`},
		"JSON documents": {"text/yaml", "--- " + item("a") + "\n---\n" + item("b")},
	} {
		t.Run(name, func(t *testing.T) {
			p := withMesh(t, resource.Global)
			p.want(http.StatusOK, http.MethodPost, "/import", c.body, "-Content-Type", "Content-Type: "+c.contentType)
			if d := cmp.Diff([]string{"Mesh/demo", "Retry/demo/a", "Retry/demo/b"}, p.keys()); d != "" {
				t.Error(d)
			}
		})
	}
	t.Run("what a list answered", func(t *testing.T) {
		p, other := withMesh(t, resource.Global), withMesh(t, resource.Global)
		p.want(http.StatusOK, http.MethodPost, "/import", item("a"))
		list := p.want(http.StatusOK, http.MethodGet, "/retries", "").Body
		other.want(http.StatusOK, http.MethodPost, "/import", list)
		if got := other.want(http.StatusOK, http.MethodGet, "/retries", "").Body; got != list {
			t.Errorf("got %s, want %s", got, list)
		}
	})
}

func TestTheOrderOfAnImportDoesNotMatter(t *testing.T) {
	p := newPlane(t, resource.Global)
	p.imports("", permission("demo", "a", "web")+meshDemo)
	if d := cmp.Diff([]string{"Mesh/demo", "TrafficPermission/demo/a"}, ownKeys(p)); d != "" {
		t.Error(d)
	}
	if got := p.store.Snapshot().Revision(); got != 1 {
		t.Errorf("the import took %d revisions", got)
	}
}

func TestAnImportedMeshGetsOnlyWhatItNeeds(t *testing.T) {
	p := newPlane(t, resource.Global)
	const mesh = meshDemo + "mtls: {enabledBackend: ca-1, backends: [{name: ca-1, type: builtin}]}\n"
	got := p.imports("", mesh)
	if got.Created != 1 || got.Revision != 1 {
		t.Errorf("got %+v", got)
	}
	want := []string{
		"Mesh/demo", "Secret/demo/dataplane-token-signing-key-demo-1",
		"Secret/demo/demo.ca-builtin-cert-ca-1", "Secret/demo/demo.ca-builtin-key-ca-1",
	}
	if d := cmp.Diff(want, p.keys()); d != "" {
		t.Error(d)
	}

	// What comes along is not made.
	other := newPlane(t, resource.Global)
	other.imports("", p.exportOf(""))
	if d := cmp.Diff(p.exportOf(""), other.exportOf("")); d != "" {
		t.Error(d)
	}
}

// ownKeys are the keys of what the tests import: without the key material that meshes come with.
func ownKeys(p *plane) []string {
	return slices.DeleteFunc(p.keys(), func(k string) bool { return strings.HasPrefix(k, "Secret/") })
}

func TestAnImportKeepsTimesWhereItSaysThem(t *testing.T) {
	p := withMesh(t, resource.Global)
	p.imports("", permission("demo", "a", "web"))
	get := func() *store.Record {
		rec, _ := p.store.Snapshot().Get(store.Key{Type: "TrafficPermission", Mesh: "demo", Name: "a"})
		return rec
	}
	first := get()
	if time.Since(first.Created) > time.Minute || !first.Created.Equal(first.Modified) {
		t.Errorf("without times: created %s, modified %s", first.Created, first.Modified)
	}
	if got := p.imports("", permission("demo", "a", "web")); got.Unchanged != 1 {
		t.Errorf("an equal document without times: %+v", got)
	}
	const stamped = "creationTime: 2020-01-01T00:00:00Z\nmodificationTime: 2020-01-02T00:00:00Z\n"
	if got := p.imports("", permission("demo", "a", "web")+stamped); got.Updated != 1 {
		t.Errorf("an equal document with other times: %+v", got)
	}
	if rec := get(); rec.Created.Year() != 2020 || rec.Modified.Day() != 2 || rec.CreateRevision != first.CreateRevision {
		t.Errorf("got %+v", rec)
	}
	if got := p.imports("", permission("demo", "a", "web")+stamped); got.Unchanged != 1 {
		t.Errorf("an equal document with equal times: %+v", got)
	}
	p.imports("", permission("demo", "a", "api"))
	if rec := get(); rec.Created.Year() != 2020 || time.Since(rec.Modified) > time.Minute {
		t.Errorf("an update without times: created %s, modified %s", rec.Created, rec.Modified)
	}
}

func TestAnImportReportsEverything(t *testing.T) {
	p := withMesh(t, resource.Global)
	p.seed(record(t, resource.ZoneIngress, "", "ingress", "east", nil))
	body := `# 0
type: Mesh
---
type: Nope
name: a
--- # 2
- 1
---
type: Dataplane
mesh: demo
name: web
---
type: MeshInsight
name: demo
---
type: Config
name: kuma-cluster-id
config: mine
---
type: Retry
name: r
sources: 7
---
{"type": "Secret", "name": "s"}
---
a: [
---
type: Zone
name: z
---
type: Zone
name: z
`
	want := []cause{
		{"documents[0].name", "must be defined (Mesh/, line 1)"},
		{"documents[1].type", `is not known: "Nope" (Nope/a, line 3)`},
		{"documents[2]", "must be an object, got an array (line 6)"},
		{"documents[3].type", "resources of type Dataplane cannot be written on this global control plane (Dataplane/demo/web, line 8)"},
		{"documents[4].type", "resources of type MeshInsight cannot be written on this global control plane (MeshInsight/demo, line 12)"},
		{"documents[5].type", "resources of type Config cannot be written on this global control plane (Config/kuma-cluster-id, line 15)"},
		{"documents[6].sources", "must be an array, got a number (Retry/r, line 19)"},
		{"documents[7].mesh", "must be defined (Secret/s, line 23)"},
		{"documents[8]", "malformed YAML: line 2: did not find expected node content (line 25)"},
		{"documents[10].name", "is given twice, first in documents[9] (Zone/z, line 30)"},
	}
	for _, query := range []string{"", "?dryRun=true"} {
		a := p.want(http.StatusBadRequest, http.MethodPost, "/import"+query, body, "-Content-Type", fromYAML)
		var got problem
		if err := json.Unmarshal([]byte(a.Body), &got); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, got.Causes); d != "" {
			t.Error(d)
		}
	}

	// What depends on the state is reported together, too.
	a := p.want(http.StatusBadRequest, http.MethodPost, "/import", permission("nope", "a", "web")+
		"---\ntype: ZoneIngress\nname: ingress\nnetworking: {address: 1.1.1.1, advertisedAddress: 1.1.1.1, port: 1, advertisedPort: 1}\n"+
		"---\ntype: Zone\nname: Bad.Name\n", "-Content-Type", fromYAML)
	for _, part := range []string{
		`"documents[0].mesh"`, "mesh of name nope is not found (TrafficPermission/nope/a, line 1)",
		`"documents[1]"`, `is owned by the control plane of zone`, `"documents[2].name"`,
	} {
		if !strings.Contains(a.Body, part) {
			t.Errorf("%s is missing in %s", part, a.Body)
		}
	}
	if d := cmp.Diff([]string{"Mesh/demo", "ZoneIngress/ingress"}, p.keys()); d != "" {
		t.Errorf("something was stored: %s", d)
	}
}

func TestAnImportIsRefused(t *testing.T) {
	p := withMesh(t, resource.Global, func(o *Options) { o.MaxBodyBytes, o.ImportMaxBytes = 1024, 4096 })
	readOnly := withMesh(t, resource.Global, func(o *Options) { o.ReadOnly = true })
	unknown := strings.Repeat("x", 1024)
	for _, c := range []struct {
		name    string
		p       *plane
		body    string
		headers []string
		status  int
		text    string
	}{
		{"from anybody but an administrator", p, meshDemo, []string{stranger, fromYAML}, 403, "cannot import resources"},
		{"on a read-only plane", readOnly, meshDemo, []string{fromYAML}, 405, "is read-only"},
		{"in another format", p, meshDemo, []string{"Content-Type: text/plain"}, 415, "Unsupported Media Type"},
		{"without a format", p, meshDemo, nil, 415, "Unsupported Media Type"},
		{"when the answer is not accepted", p, meshDemo, []string{fromYAML, "Accept: text/html"}, 406, "Not Acceptable"},
		{"without resources", p, "# nothing\n", []string{fromYAML}, 400, "the body holds no resource"},
		{"with half a list", p, `{"items":[{}`, []string{"Content-Type: application/json"}, 400, "malformed JSON"},
		{"with a resource that is too large", p, meshDemo + "x: " + unknown, []string{fromYAML}, 400, "a document that begins at line 1 is larger than 1024 bytes"},
		{"with a condition", p, meshDemo, []string{fromYAML, `If-Match: "x"`}, 400, "conditions are for one resource"},
		{"with a body that is too large", p, strings.Repeat(meshDemo+"#"+unknown[:900]+"\n", 5), []string{fromYAML}, 413, "larger than 4096 bytes"},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.p.t = t
			a := c.p.do(http.MethodPost, "/import", c.body, append([]string{"-Content-Type"}, c.headers...)...)
			if a.Status != c.status || !strings.Contains(a.Body, c.text) {
				t.Errorf("got %d %s, want %d %q", a.Status, a.Body, c.status, c.text)
			}
		})
	}
}

func TestUnknownFieldsOfAnImport(t *testing.T) {
	p := newPlane(t, resource.Global)
	a := p.want(http.StatusOK, http.MethodPost, "/import?dryRun=true", meshDemo+"later: 1\n", "-Content-Type", fromYAML)
	if d := cmp.Diff([]string{`299 - "documents[0] Mesh/demo: unknown field later"`}, a.Header["Warning"]); d != "" {
		t.Error(d)
	}
	a = p.want(http.StatusBadRequest, http.MethodPost, "/import?strict=true", meshDemo+"later: 1\n", "-Content-Type", fromYAML)
	if !strings.Contains(a.Body, `"documents[0].later"`) {
		t.Error(a.Body)
	}
}

func TestADryImportStoresNothing(t *testing.T) {
	p := withMesh(t, resource.Global)
	p.imports("", permission("demo", "old", "web")+permission("demo", "same", "web"))
	before, keys := p.store.Snapshot().Revision(), p.keys()
	got := p.imports("?dryRun=true", permission("demo", "new", "web")+permission("demo", "old", "api")+permission("demo", "same", "web"))
	want := importAnswer{
		Revision: before, DryRun: true, importCounts: importCounts{Created: 1, Updated: 1, Unchanged: 1},
		Types: map[resource.Type]*importCounts{"TrafficPermission": {Created: 1, Updated: 1, Unchanged: 1}},
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(importAnswer{})); d != "" {
		t.Error(d)
	}
	if after := p.store.Snapshot().Revision(); after != before || !slices.Equal(keys, p.keys()) {
		t.Errorf("the store went from revision %d to %d: %v", before, after, p.keys())
	}
}

// TestAnImportIsPlannedAgainOnAnotherState: what was written between the plan and the commit counts.
func TestAnImportIsPlannedAgainOnAnotherState(t *testing.T) {
	prepare := func(t *testing.T) (*plane, []imported, importPlan) {
		t.Helper()
		p := withMesh(t, resource.Global)
		w := httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodPost, "/import", strings.NewReader(permission("demo", "a", "web")))
		all, err := p.srv.readImport(w, r, mediaYAML)
		if err == nil {
			err = checkImport(all, false)
		}
		if err != nil {
			t.Fatal(err)
		}
		plan, err := planImport(p.store.Snapshot(), all)
		if err != nil || plan.counts.Created != 1 {
			t.Fatalf("%+v, %v", plan, err)
		}
		return p, all, plan
	}
	t.Run("a resource that has come meanwhile is updated", func(t *testing.T) {
		p, all, plan := prepare(t)
		p.seed(record(t, "TrafficPermission", "demo", "a", "", nil))
		got, err := p.srv.commitImport(t.Context(), all, plan)
		if err != nil || got.Updated != 1 || got.Created != 0 || got.Revision != 3 {
			t.Errorf("%+v, %v", got, err)
		}
	})
	t.Run("where that takes long, the committer is not kept", func(t *testing.T) {
		p, all, plan := prepare(t)
		plan.took = time.Minute
		p.seed(record(t, "TrafficPermission", "demo", "a", "", nil))
		if _, err := p.srv.tryImport(t.Context(), all, plan, nil); !errors.Is(err, errStale) {
			t.Errorf("got %v", err)
		}
		if got, err := p.srv.commitImport(t.Context(), all, plan); err != nil || got.Updated != 1 {
			t.Errorf("%+v, %v", got, err)
		}
	})
	t.Run("insights do not count", func(t *testing.T) {
		p, all, plan := prepare(t)
		plan.took = time.Minute
		p.seed(record(t, resource.MeshInsight, "", "demo", "", nil))
		if got, err := p.srv.tryImport(t.Context(), all, plan, nil); err != nil || got.Created != 1 {
			t.Errorf("%+v, %v", got, err)
		}
	})
	t.Run("a mesh that has gone meanwhile is missing", func(t *testing.T) {
		p, all, plan := prepare(t)
		p.want(http.StatusOK, http.MethodDelete, "/meshes/demo", "")
		if _, err := p.srv.commitImport(t.Context(), all, plan); err == nil || !strings.Contains(p.causes(err), "mesh of name demo is not found") {
			t.Errorf("got %v", err)
		}
	})
}

func (p *plane) causes(err error) string {
	w := httptest.NewRecorder()
	p.srv.fail(w, httptest.NewRequest(http.MethodGet, "/", http.NoBody), err)
	return w.Body.String()
}

func TestImportsWaitForEachOther(t *testing.T) {
	p := withMesh(t, resource.Global)
	p.srv.importing <- struct{}{}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	r := httptest.NewRequest(http.MethodPost, "/import", strings.NewReader(meshDemo)).WithContext(ctx)
	r.RemoteAddr, r.Host = "127.0.0.1:1", "localhost"
	r.Header.Set("Content-Type", mediaYAML)
	w := httptest.NewRecorder()
	p.srv.Handler().ServeHTTP(w, r)
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") == "" {
		t.Errorf("an import that gave up waiting was answered %d %v", w.Code, w.Header())
	}
	<-p.srv.importing
	p.imports("", meshDemo)
}

func TestAnImportLeavesOneAuditLine(t *testing.T) {
	var out strings.Builder
	p := withMesh(t, resource.Global, func(o *Options) { o.Log = slog.New(slog.NewJSONHandler(&out, nil)) })
	p.imports("", permission("demo", "a", "web")+"---\ntype: Secret\nmesh: demo\nname: s\ndata: c2VjcmV0\n")
	p.do(http.MethodPost, "/import", "x", "-Content-Type", fromYAML)
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 2 || strings.Contains(out.String(), "c2VjcmV0") {
		t.Fatalf("log is %s", out.String())
	}
	for i, want := range []string{
		`"action":"import","outcome":"imported","dry_run":false,"status":200,"created":2,"updated":0,"unchanged":0,"revision":2,"user":"mesh-system:admin/mesh-system:admin,mesh-system:authenticated"`,
		`"action":"import","outcome":"refused","dry_run":false,"status":400`,
	} {
		if !strings.Contains(lines[i], want) {
			t.Errorf("%s is missing in %s", want, lines[i])
		}
	}
}

// TestABatchViewIsTheStateAfterwards compares the view with a store that really holds the batch.
func TestABatchViewIsTheStateAfterwards(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	meshes, names := []string{"a", "b", "c"}, []string{"1", "2", "3", "4", "5"}
	random := func() store.Key {
		return store.Key{Type: "Retry", Mesh: meshes[rnd.IntN(len(meshes))], Name: names[rnd.IntN(len(names))]}
	}
	for range 200 {
		before, after := newPlane(t, resource.Global), newPlane(t, resource.Global)
		for range rnd.IntN(8) {
			k := random()
			before.seed(record(t, "Retry", k.Mesh, k.Name, "", nil))
			after.seed(record(t, "Retry", k.Mesh, k.Name, "", nil))
		}
		var all []imported
		planned := random()
		for range rnd.IntN(8) {
			k := random()
			if slices.ContainsFunc(all, func(it imported) bool { return it.draft.key == k }) {
				continue
			}
			all = append(all, imported{draft: draft{key: k, labels: map[string]string{"new": "yes"}}})
			if k != planned {
				rec := record(t, "Retry", k.Mesh, k.Name, "", nil)
				rec.Labels = map[string]string{"new": "yes"}
				after.seed(rec)
			}
		}
		v := newBatchView(before.store.Snapshot(), all)
		v.planned = planned
		want := after.store.Snapshot()
		show := func(rec *store.Record) string { return rec.Key.String() + rec.Labels["new"] }
		for _, mesh := range append(meshes, "") {
			var got, expected []string
			for rec := range v.List("Retry", mesh) {
				got = append(got, show(rec))
			}
			for rec := range want.List("Retry", mesh) {
				expected = append(expected, show(rec))
			}
			if d := cmp.Diff(expected, got); d != "" || v.Count("Retry", mesh) != len(expected) {
				t.Fatalf("mesh %q: %s", mesh, d)
			}
			for range v.List("Retry", mesh) {
				break
			}
		}
		for _, mesh := range meshes {
			for _, name := range names {
				k := store.Key{Type: "Retry", Mesh: mesh, Name: name}
				got, ok := v.Get(k)
				expected, exists := want.Get(k)
				if ok != exists || ok && show(got) != show(expected) {
					t.Fatalf("%s: got %v, want %v", k, got, expected)
				}
			}
		}
	}
	if slices.Collect(maps.Keys(newBatchView(newPlane(t, resource.Global).store.Snapshot(), nil).records)) != nil {
		t.Error("an empty import has records")
	}
}

// A zone signs the tokens of its own users, so it must be where they are revoked and where their keys are replaced.
func TestAZoneWritesTheSecretsItHasOfItsOwn(t *testing.T) {
	p := newPlane(t, resource.Zone)
	body := func(name string) string { return `{"type":"GlobalSecret","name":"` + name + `","data":"eA=="}` }
	for name, want := range map[string]int{
		"user-token-revocations": 201, "user-token-signing-key-2": 201, "admin-user-token": 201,
		"zone-token-revocations": 405, "zone-token-signing-key-1": 405, "other": 405,
	} {
		p.want(want, http.MethodPut, "/global-secrets/"+name, body(name))
		from := p.do(http.MethodPut, "/global-secrets/"+name, body(name), "Remote: 10.0.0.9:1")
		if wrong := from.Status != 403 && from.Status != 405; wrong {
			t.Errorf("%s written by anybody: %d", name, from.Status)
		}
	}
	p.want(200, http.MethodDelete, "/global-secrets/user-token-signing-key-2", "")
	p.want(400, http.MethodPost, "/import", body("other"))
	p.want(200, http.MethodPost, "/import", body("user-token-signing-key-3"))
}
