package server

import (
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meridian-mesh/meridian/api/resource"
)

// TestEveryTypeIsServedOnBothPlanes goes through the whole registry: what a plane may write can be put, read, listed,
// changed and deleted there; the rest can be read and answers 405 to writes.
func TestEveryTypeIsServedOnBothPlanes(t *testing.T) {
	for _, pl := range []resource.Plane{resource.Global, resource.Zone} {
		all := resource.All()
		for i := range all {
			d := &all[i]
			t.Run(fmt.Sprintf("%s on a %s", d.Name, pl), func(t *testing.T) {
				p := newPlane(t, pl)
				if d.Path == "" {
					p.want(http.StatusNotFound, http.MethodGet, "/"+strings.ToLower(string(d.Name))+"s", "")
					return
				}
				mesh := ""
				if d.Scope == resource.ScopeMesh {
					mesh = "demo"
					p.seed(record(t, resource.Mesh, "", "demo", "", nil))
				}
				if d.Writable&pl != 0 {
					testWritable(t, p, d, mesh)
				} else {
					testReadOnly(t, p, d, mesh)
				}
			})
		}
	}
}

func testWritable(t *testing.T, p *plane, d *resource.Descriptor, mesh string) {
	t.Helper()
	item := itemPath(d, mesh, "one")
	p.want(http.StatusNotFound, http.MethodGet, item, "")
	p.want(http.StatusNotFound, http.MethodDelete, item, "")

	body := bodyOf(t, d, mesh, "one")
	a := p.want(http.StatusCreated, http.MethodPut, item, body)
	if a.Body != "" || a.Header.Get("Content-Length") != "0" || a.Header.Get("Content-Type") != "" {
		t.Errorf("PUT answered %q with %v", a.Body, a.Header)
	}
	if w := a.Header["Warning"]; len(w) > 0 {
		t.Errorf("PUT warned: %v", w)
	}

	a = p.want(http.StatusOK, http.MethodGet, item, "")
	if ct := a.Header.Get("Content-Type"); ct != "application/json" {
		t.Errorf("Content-Type %q", ct)
	}
	got := object(t, a.Body)
	prefix := fmt.Sprintf("{\n \"type\": %q,\n", d.Name)
	if mesh != "" {
		prefix += fmt.Sprintf(" \"mesh\": %q,\n", mesh)
	}
	prefix += " \"name\": \"one\",\n \"creationTime\": \""
	if !strings.HasPrefix(a.Body, prefix) || !strings.HasSuffix(a.Body, "\n}\n") {
		t.Errorf("answer begins or ends wrong:\n%s\nwant prefix\n%s", a.Body, prefix)
	}

	// The same item, moved two to the right, is what lists show.
	indented := "  " + strings.ReplaceAll(strings.TrimSuffix(a.Body, "\n"), "\n", "\n  ")
	want := "{\n \"total\": 1,\n \"items\": [\n" + indented + "\n ],\n \"next\": null\n}\n"
	lists := []string{"/" + d.Path}
	if mesh != "" {
		lists = append(lists, "/meshes/"+mesh+"/"+d.Path)
		if d.Name != resource.ServiceInsight {
			b := p.want(http.StatusOK, http.MethodGet, "/meshes/other/"+d.Path, "")
			if diff := cmp.Diff("{\n \"total\": 0,\n \"items\": [],\n \"next\": null\n}\n", b.Body); diff != "" {
				t.Error(diff)
			}
		}
	}
	for _, l := range lists {
		if diff := cmp.Diff(want, p.want(http.StatusOK, http.MethodGet, l, "").Body); diff != "" {
			t.Errorf("%s: %s", l, diff)
		}
	}

	// What was read can be put back: on a zone that includes what the zone added.
	rev := p.store.Snapshot().Revision()
	p.want(http.StatusOK, http.MethodPut, item, a.Body)
	if now := p.store.Snapshot().Revision(); now != rev {
		t.Errorf("putting back what was read made revision %d of %d", now, rev)
	}
	got["labels"] = map[string]any{"team": "blue"}
	p.want(http.StatusOK, http.MethodPut, item, string(mustJSON(t, got)))
	if got := object(t, p.want(http.StatusOK, http.MethodGet, item, "").Body); got["labels"].(map[string]any)["team"] != "blue" {
		t.Errorf("labels are %v", got["labels"])
	}

	if a := p.want(http.StatusOK, http.MethodDelete, item, ""); a.Body != "" || a.Header.Get("Content-Length") != "0" {
		t.Errorf("DELETE answered %q with %v", a.Body, a.Header)
	}
	p.want(http.StatusNotFound, http.MethodGet, item, "")
	p.want(http.StatusNotFound, http.MethodDelete, item, "")
}

func testReadOnly(t *testing.T, p *plane, d *resource.Descriptor, mesh string) {
	t.Helper()
	p.seed(record(t, d.Name, mesh, "one", "", nil))
	item := itemPath(d, mesh, "one")
	if d.IsJSON() {
		rec := record(t, d.Name, mesh, "one", "", nil)
		rec.Spec = []byte(`{"targetRef":{"kind":"Mesh"}}`)
		p.seed(rec)
	}
	p.want(http.StatusOK, http.MethodGet, item, "")
	p.want(http.StatusOK, http.MethodGet, "/"+d.Path, "")
	before := p.store.Snapshot().Revision()
	for _, method := range []string{http.MethodPut, http.MethodDelete} {
		// Neither the body nor its type are looked at.
		a := p.want(http.StatusMethodNotAllowed, method, item, "{", "Content-Type: text/plain")
		if ct := a.Header.Get("Content-Type"); ct != "text/plain; charset=utf-8" {
			t.Errorf("%s: Content-Type %q", method, ct)
		}
		if !strings.Contains(a.Body, p.srv.plane.String()+" control plane") || !strings.HasSuffix(a.Body, ".\n") {
			t.Errorf("%s says %q", method, a.Body)
		}
		if allow := a.Header.Get("Allow"); allow != "GET, HEAD" {
			t.Errorf("%s: Allow %q", method, allow)
		}
	}
	if now := p.store.Snapshot().Revision(); now != before {
		t.Error("a refused write changed the store")
	}
}

func TestAReadOnlyServerRefusesEveryWrite(t *testing.T) {
	for _, pl := range []resource.Plane{resource.Global, resource.Zone} {
		p := newPlane(t, pl, func(o *Options) { o.ReadOnly = true })
		all := resource.All()
		for i := range all {
			if d := &all[i]; d.Path != "" {
				p.want(http.StatusMethodNotAllowed, http.MethodPut, itemPath(d, "m", "x"), bodyOf(t, d, "m", "x"))
				p.want(http.StatusMethodNotAllowed, http.MethodDelete, itemPath(d, "m", "x"), "")
			}
		}
		if a := p.want(http.StatusOK, http.MethodGet, "/policies", ""); strings.Contains(a.Body, `"readOnly": false`) {
			t.Error("/policies lists a policy that can be written")
		}
	}
}

// TestEveryExampleBodyIsAcceptedAndKept puts each example body where its type may be written, and compares values.
func TestEveryExampleBodyIsAcceptedAndKept(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("..", "codec", "testdata", "bodies", "*.json"))
	if err != nil || len(files) < 20 {
		t.Fatalf("found %d example bodies, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			raw, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			body := object(t, string(raw))
			typ, _, _ := strings.Cut(strings.TrimSuffix(filepath.Base(file), ".json"), "-")
			d := lookup(t, resource.Type(typ))
			if d.Writable == resource.Nowhere {
				return // TestEveryTypeIsServedOnBothPlanes shows that it is refused
			}
			pl := resource.Global
			if d.Writable&resource.Global == 0 {
				pl = resource.Zone
			}
			p := newPlane(t, pl, func(o *Options) { o.ZoneName = "east" })
			mesh, _ := body["mesh"].(string)
			if mesh != "" && d.Scope == resource.ScopeMesh {
				p.seed(record(t, resource.Mesh, "", mesh, "", nil))
			}
			item := itemPath(d, mesh, body["name"].(string))
			a := p.want(201, http.MethodPut, item+"?strict=true", string(raw))
			if w := a.Header["Warning"]; len(w) > 0 {
				t.Errorf("warnings: %v", w)
			}
			got := object(t, p.want(200, http.MethodGet, item, "").Body)
			for _, m := range []map[string]any{got, body} {
				delete(m, "creationTime")
				delete(m, "modificationTime")
			}
			for key, want := range body {
				if key == "type" || (pl == resource.Zone && key == "networking") {
					continue // a zone adds its tag; GlobalSecret has an older spelling
				}
				if _, shown := got[key]; !shown && key == "mesh" && d.Scope == resource.ScopeGlobal {
					continue
				}
				if diff := cmp.Diff(want, got[key]); diff != "" {
					t.Errorf("%s: %s", key, diff)
				}
			}
		})
	}
}
