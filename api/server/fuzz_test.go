package server

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/tokens"
	"github.com/meridian-mesh/meridian/api/validate/validatetest"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
)

// fuzzPlane is a plane for a fuzz target; the store keeps what earlier inputs wrote.
func fuzzPlane(f *testing.F, pl resource.Plane) *plane {
	f.Helper()
	st, err := store.Open(context.Background(), memory.New(), store.Options{})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = st.Close() })
	o := Options{Config: Default(), Plane: pl, ZoneName: "zone-1", Store: st, Log: slog.New(slog.NewTextHandler(io.Discard, nil))}
	o.BindAddress, o.HTTPPort, o.HTTPSPort = "127.0.0.1", 0, -1
	srv, err := New(o)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = srv.Close() })
	p := &plane{t: f, srv: srv, store: st}
	p.seed(record(f, resource.Mesh, "", "demo", "", nil))
	return p
}

// FuzzPut sends any body of any type to both planes. No body may be answered 5xx; one that is accepted must be
// readable, and putting back what is read must change nothing.
func FuzzPut(f *testing.F) {
	all := resource.All()
	for i := range all {
		f.Add(uint8(i), false, bodyOf(f, &all[i], "demo", "x"))
	}
	for _, c := range validatetest.Cases() {
		row := slices.IndexFunc(all, func(d resource.Descriptor) bool { return d.Name == c.Type })
		f.Add(uint8(row), true, strings.Replace(c.Body, "name: "+validatetest.Mesh, "name: x", 1))
	}
	f.Add(uint8(1), true, "type: Mesh\nname: x\n")
	f.Add(uint8(1), true, "&a [*a, *a]")
	f.Add(uint8(1), false, "")
	f.Add(uint8(1), false, strings.Repeat("[", 1000))
	planes := []*plane{fuzzPlane(f, resource.Global), fuzzPlane(f, resource.Zone)}
	f.Fuzz(func(t *testing.T, row uint8, yaml bool, body string) {
		d := &all[int(row)%len(all)]
		if d.Path == "" {
			return
		}
		path, contentType := itemPath(d, "demo", "x"), "Content-Type: application/json"
		if yaml {
			contentType = "Content-Type: application/yaml"
		}
		for _, shared := range planes {
			p := &plane{t: t, srv: shared.srv, store: shared.store, unchecked: true}
			a := p.do(http.MethodPut, path, body, "-Content-Type", contentType)
			if a.Status >= 500 {
				t.Fatalf("PUT %s answered %d %s", path, a.Status, a.Body)
			}
			if a.Status != 200 && a.Status != 201 {
				continue
			}
			read := p.do(http.MethodGet, path, "")
			if read.Status != 200 {
				t.Fatalf("what was put cannot be read: %d %s", read.Status, read.Body)
			}
			rev := p.store.Snapshot().Revision()
			if a := p.do(http.MethodPut, path, read.Body); a.Status != 200 {
				t.Fatalf("what was read cannot be put back: %d %s\n%s", a.Status, a.Body, read.Body)
			}
			if now := p.store.Snapshot().Revision(); now != rev {
				t.Fatalf("putting back what was read changed it: %s", read.Body)
			}
		}
	})
}

// FuzzImport sends any body to both planes. None may be answered 5xx; one that is accepted is accepted again, without
// effect, and so is the export of what it made.
func FuzzImport(f *testing.F) {
	f.Add(false, "type: Mesh\nname: x\n---\ntype: Retry\nmesh: x\nname: r\ncreationTime: 2024-01-01T00:00:00Z\n")
	f.Add(false, "--- {type: Zone, name: z}\n--- |\n text\n...\n# end")
	f.Add(true, `[{"type":"Mesh","name":"x"},{"items":[]}] {"items":[{"type":"Secret","mesh":"x","name":"s","data":"YQ=="}]}`)
	f.Add(true, `{"type":"Dataplane","mesh":"demo","name":"d","networking":{"address":"1.1.1.1","inbound":[{"port":1,"tags":{"kuma.io/service":"a"}}]}}`)
	planes := []*plane{fuzzPlane(f, resource.Global), fuzzPlane(f, resource.Zone)}
	f.Fuzz(func(t *testing.T, inJSON bool, body string) {
		contentType := "Content-Type: application/yaml"
		if inJSON {
			contentType = "Content-Type: application/json"
		}
		for _, shared := range planes {
			p := &plane{t: t, srv: shared.srv, store: shared.store, unchecked: true}
			a := p.do(http.MethodPost, "/import", body, "-Content-Type", contentType)
			if a.Status >= 500 {
				t.Fatalf("answered %d %s", a.Status, a.Body)
			}
			if a.Status != 200 {
				continue
			}
			rev := p.store.Snapshot().Revision()
			if a := p.do(http.MethodPost, "/import", body, "-Content-Type", contentType); a.Status != 200 {
				t.Fatalf("the second time, it is answered %d %s", a.Status, a.Body)
			}
			if now := p.store.Snapshot().Revision(); now != rev {
				t.Fatal("the second time, it changed something")
			}
			// The first time, escapes in plain JSON become the characters they stand for.
			for range 2 {
				rev = p.store.Snapshot().Revision()
				if a := p.do(http.MethodPost, "/import", p.exportOf(""), "-Content-Type", "Content-Type: application/yaml"); a.Status != 200 {
					t.Fatalf("its export is answered %d %s", a.Status, a.Body)
				}
			}
			if now := p.store.Snapshot().Revision(); now != rev {
				t.Fatal("importing the export changed something")
			}
		}
	})
}

// FuzzRequest sends any method, path, query and headers. Whatever it is, it is no fault of the server's.
func FuzzRequest(f *testing.F) {
	f.Add("GET", "/meshes/demo/retries", "size=1&offset=1", "*/*", "gzip")
	f.Add("DELETE", "/meshes/demo/dataplane+insights/", "tag=a:b", "application/json;q=", "gzip;q=x, *")
	f.Add("PUT", "/zones/_overview", "strict=1;", "", "")
	f.Add("OPTIONS", "*", "%zz", ",;,", ";")
	f.Add("HEAD", "//", "offset=9223372036854775807&size=1000", "a/b", "")
	p := fuzzPlane(f, resource.Global)
	f.Fuzz(func(t *testing.T, method, path, query, accept, encoding string) {
		r := httptest.NewRequest(http.MethodGet, "/", http.NoBody)
		r.Method, r.Host, r.RemoteAddr = method, "localhost", "127.0.0.1:1"
		r.URL = &url.URL{Path: path, RawQuery: query}
		r.Header = http.Header{"Accept": {accept}, "Accept-Encoding": {encoding}, "Content-Type": {"application/json"}}
		w := httptest.NewRecorder()
		p.srv.Handler().ServeHTTP(w, r)
		if w.Code >= 500 && !strings.Contains(w.Body.String(), titleAdmin) { // a proxy that is not connected cannot be asked
			t.Fatalf("%s %q?%q answered %d %s", method, path, query, w.Code, w.Body)
		}
	})
}

// FuzzToken asks for tokens of every kind with any body. No body may be answered 5xx, and what is issued verifies.
func FuzzToken(f *testing.F) {
	for i, tc := range tokenCases {
		f.Add(uint8(i), false, tc.body)
	}
	f.Add(uint8(0), true, "mesh: demo\ntags: {a: [b]}\nvalidFor: 1h\n")
	f.Add(uint8(3), false, `{"name":"\u0000\ufffd","groups":[null],"validFor":"1e9h"}`)
	p := fuzzPlane(f, resource.Global)
	p.seedKeys(resource.Global)
	authority := tokens.NewAuthority()
	f.Fuzz(func(t *testing.T, row uint8, yaml bool, body string) {
		tc := tokenCases[int(row)%len(tokenCases)]
		contentType := "Content-Type: application/json"
		if yaml {
			contentType = "Content-Type: application/yaml"
		}
		p := &plane{t: t, srv: p.srv, store: p.store}
		a := p.do(http.MethodPost, tc.path, body, "-Content-Type", contentType)
		if a.Status >= 500 {
			t.Fatalf("POST %s answered %d %s", tc.path, a.Status, a.Body)
		}
		if a.Status != 200 {
			return
		}
		if _, err := authority.Verify(p.store.Snapshot(), tc.kind, tc.mesh, a.Body); err != nil {
			t.Fatalf("what was issued for %q does not verify: %v", body, err)
		}
	})
}
