package server

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meridian-mesh/meridian/api/codec"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/validate"
	"github.com/meridian-mesh/meridian/api/validate/validatetest"
	"github.com/meridian-mesh/meridian/common/store"
)

// parsed decodes a body of package validatetest.
func parsed(t testing.TB, body string) *store.Record {
	t.Helper()
	d, doc, err := codec.DecodeAny("application/yaml", []byte(body))
	if err != nil {
		t.Fatalf("%v\n%s", err, body)
	}
	key := store.Key{Type: doc.Type, Name: doc.Name}
	if d.Scope == resource.ScopeMesh {
		key.Mesh = doc.Mesh
	}
	return &store.Record{Key: key, Spec: doc.Spec, Labels: doc.Labels}
}

// TestEachRuleIsKeptFromEndToEnd puts the cases of all rules: what is wrong must be answered field by field, and nothing
// of it be stored.
func TestEachRuleIsKeptFromEndToEnd(t *testing.T) {
	for _, c := range validatetest.Cases() {
		d := lookup(t, c.Type)
		if d.Path == "" || d.Writable == resource.Nowhere {
			continue
		}
		t.Run(c.Name(), func(t *testing.T) {
			plane := resource.Global
			if d.Writable == resource.Zone {
				plane = resource.Zone
			}
			p := newPlane(t, plane)
			records := map[store.Key]*store.Record{}
			for _, body := range append([]string{validatetest.Sample(resource.Mesh, "")}, c.Given...) {
				rec := parsed(t, body)
				records[rec.Key] = rec
			}
			name, title := "x", titleCreate
			if c.Type == resource.Mesh {
				name = validatetest.Mesh
				delete(records, store.Key{Type: "Mesh", Name: name})
			}
			if c.Old != "" {
				rec := parsed(t, c.Old)
				records[rec.Key] = rec
				title = titleUpdate
			}
			for _, rec := range records {
				p.seed(rec)
			}
			rev := p.store.Snapshot().Revision()

			a := p.do(http.MethodPut, itemPath(d, validatetest.Mesh, name), c.Body, "-Content-Type", "Content-Type: application/yaml")
			if len(c.Want) == 0 {
				if a.Status != http.StatusOK && a.Status != http.StatusCreated {
					t.Errorf("answered %d %s", a.Status, a.Body)
				}
				return
			}
			want := problem{Title: title, Details: detailsInvalid}
			for _, v := range c.Want {
				want.Causes = append(want.Causes, cause{v.Field, v.Message})
			}
			if a.Status != http.StatusBadRequest {
				t.Fatalf("answered %d %s", a.Status, a.Body)
			}
			if c.Form {
				if !strings.Contains(a.Body, `"field": "`+c.Want[0].Field+`"`) {
					t.Errorf("answered %s", a.Body)
				}
			} else {
				text, err := marshal(want)
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(string(text), a.Body); diff != "" {
					t.Error(diff)
				}
			}
			if now := p.store.Snapshot().Revision(); now != rev {
				t.Errorf("revision went from %d to %d", rev, now)
			}
		})
	}
}

func TestTheRulesComeAfterAccessAndBeforeTheMesh(t *testing.T) {
	p := withMesh(t, resource.Global)
	a := p.want(400, http.MethodPut, "/meshes/none/timeouts/x", `{"type":"Timeout","name":"x","mesh":"none"}`)
	if !strings.Contains(a.Body, `"field": "conf"`) || strings.Contains(a.Body, "Mesh is not found") {
		t.Errorf("a wrong body in no mesh: %s", a.Body)
	}
	a = p.want(400, http.MethodPut, "/meshes/demo/timeouts/x", `{"type":"Timeout","name":"y","mesh":"demo"}`)
	if strings.Contains(a.Body, `"field": "conf"`) || !strings.Contains(a.Body, `"field": "name"`) {
		t.Errorf("a wrong body under another name: %s", a.Body)
	}
}

// TestWhatAPlaneMakesByItselfIsValid judges the policies and the fields that come with a mesh.
func TestWhatAPlaneMakesByItselfIsValid(t *testing.T) {
	p := newPlane(t, resource.Global)
	p.want(201, http.MethodPut, "/meshes/demo", `{"type":"Mesh","name":"demo","mtls":{"enabledBackend":"a","backends":[{"name":"a","type":"builtin"}]},`+
		`"metrics":{"backends":[{"name":"m","type":"prometheus"}]}}`)
	snap, n := p.store.Snapshot(), 0
	for typ := range snap.Types() {
		d := lookup(t, resource.Type(typ))
		for rec := range snap.List(typ, "") {
			n++
			if found := append(validate.Spec(d, rec.Key, rec.Spec), validate.State(snap, d, rec, rec)...); len(found) > 0 {
				t.Errorf("%s: %v", rec.Key, found)
			}
		}
	}
	if n < 7 {
		t.Errorf("judged only %d resources", n)
	}
}

// What a targetRef policy says beyond its schema is kept, for peers that know it, and a typing error is seen all the same.
func TestUnknownFieldsInsideATargetRefPolicyAreNamed(t *testing.T) {
	p := withMesh(t, resource.Global)
	const path = "/meshes/demo/meshtrafficpermissions/p"
	body := `{"type":"MeshTrafficPermission","mesh":"demo","name":"p","spec":{"targetRef":{"kind":"Mesh"},"from":[` +
		`{"targetRef":{"kind":"Mesh"},"default":{"action":"ALLOW","actoin":"DENY"}}]}}`
	p.want(400, http.MethodPut, path+"?strict=true", body)
	a := p.want(201, http.MethodPut, path, body)
	if got := a.Header.Get("Warning"); !strings.Contains(got, "spec.from[0].default.actoin") {
		t.Errorf("warning %q", got)
	}
	if got := p.want(200, http.MethodGet, path, "").Body; !strings.Contains(got, "actoin") {
		t.Errorf("not kept: %s", got)
	}
}
