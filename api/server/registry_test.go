package server

import (
	"fmt"
	"net/http"
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
