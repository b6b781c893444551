package server

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/bolt"
)

// sink is a response that is thrown away.
type sink struct {
	header http.Header
	status int
	n      int
}

func (s *sink) Header() http.Header         { return s.header }
func (s *sink) WriteHeader(status int)      { s.status = status }
func (s *sink) Write(p []byte) (int, error) { s.n += len(p); return len(p), nil }

func (s *sink) reset() { clear(s.header); s.status, s.n = 0, 0 }

// policies puts n traffic permissions of ordinary size into mesh "demo".
func policies(b *testing.B, p *plane, n int) {
	b.Helper()
	p.seed(record(b, resource.Mesh, "", "demo", "", nil))
	for i := range n {
		p.seed(record(b, "TrafficPermission", "demo", fmt.Sprintf("tp-%05d", i), "", &meshv1.TrafficPermission{
			Sources:      []*meshv1.Selector{{Match: map[string]string{"kuma.io/service": "web", "kuma.io/zone": "east"}}},
			Destinations: []*meshv1.Selector{{Match: map[string]string{"kuma.io/service": "backend", "version": "2"}}},
		}))
	}
}

func benchmarkGet(b *testing.B, p *plane, target string, headers ...string) {
	b.Helper()
	h := p.srv.Handler()
	b.ReportAllocs()
	r := httptest.NewRequest(http.MethodGet, target, http.NoBody)
	r.RemoteAddr, r.Host = "127.0.0.1:1", "localhost"
	for _, v := range headers {
		name, value, _ := strings.Cut(v, ": ")
		r.Header.Set(name, value)
	}
	w := &sink{header: http.Header{}}
	for b.Loop() {
		w.reset()
		h.ServeHTTP(w, r)
		if w.status != http.StatusOK {
			b.Fatal(w.status)
		}
	}
	b.SetBytes(int64(w.n))
	b.ReportMetric(float64(w.n), "body-bytes")
}

func BenchmarkGetOne(b *testing.B) {
	p := newPlane(b, resource.Global)
	policies(b, p, 1000)
	benchmarkGet(b, p, "/meshes/demo/traffic-permissions/tp-00500")
}

// BenchmarkGetUnchanged is a GET that is answered with 304.
func BenchmarkGetUnchanged(b *testing.B) {
	p := newPlane(b, resource.Global)
	policies(b, p, 1000)
	const target = "/meshes/demo/traffic-permissions/tp-00500"
	r := httptest.NewRequest(http.MethodGet, target, http.NoBody)
	r.RemoteAddr, r.Host = "127.0.0.1:1", "localhost"
	w := &sink{header: http.Header{}}
	p.srv.Handler().ServeHTTP(w, r)
	r.Header.Set("If-None-Match", w.header.Get("ETag"))
	b.ReportAllocs()
	for b.Loop() {
		w.reset()
		p.srv.Handler().ServeHTTP(w, r)
		if w.status != http.StatusNotModified || w.n != 0 {
			b.Fatal(w.status, w.n)
		}
	}
}

func BenchmarkListPage(b *testing.B) {
	p := newPlane(b, resource.Global)
	policies(b, p, 20_000)
	b.Run("100", func(b *testing.B) { benchmarkGet(b, p, "/traffic-permissions") })
	b.Run("1000", func(b *testing.B) { benchmarkGet(b, p, "/traffic-permissions?size=1000") })
	b.Run("1000-last", func(b *testing.B) { benchmarkGet(b, p, "/traffic-permissions?size=1000&offset=19000") })
	b.Run("1000-gzip", func(b *testing.B) {
		benchmarkGet(b, p, "/traffic-permissions?size=1000", "Accept-Encoding: gzip")
	})
}

// BenchmarkListPageOverTCP is a page of 1,000 policies as clients see it: sockets, parsing and copying included.
func BenchmarkListPageOverTCP(b *testing.B) {
	p := newPlane(b, resource.Global)
	policies(b, p, 1000)
	ts := httptest.NewServer(p.srv.Handler())
	defer ts.Close()
	b.ReportAllocs()
	for b.Loop() {
		res, err := ts.Client().Get(ts.URL + "/traffic-permissions?size=1000")
		if err != nil {
			b.Fatal(err)
		}
		n, err := io.Copy(io.Discard, res.Body)
		if err != nil || n < 100_000 {
			b.Fatal(n, err)
		}
		_ = res.Body.Close()
	}
}

// onDisk gives a plane a store that survives.
func onDisk(b *testing.B) func(*Options) {
	b.Helper()
	return func(o *Options) {
		backend, err := bolt.Open(filepath.Join(b.TempDir(), "store.db"), bolt.Options{})
		if err != nil {
			b.Fatal(err)
		}
		st, err := store.Open(b.Context(), backend, store.Options{})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() {
			if err := st.Close(); err != nil {
				b.Error(err)
			}
		})
		o.Store = st
	}
}

// BenchmarkImport10000 is a whole import as its client sees it, socket and disk included: 10,000 new policies, and the
// same with every one changed. others-ms is the longest that a PUT of somebody else took meanwhile.
func BenchmarkImport10000(b *testing.B) {
	const n = 10_000
	for _, form := range []string{"yaml", "json"} {
		b.Run(form, func(b *testing.B) {
			bodies := [2]string{importBody(form, n, 1), importBody(form, n, 2)}
			b.SetBytes(int64(len(bodies[0])))
			p := newPlane(b, resource.Global, onDisk(b))
			ts := httptest.NewServer(p.srv.Handler())
			defer ts.Close()
			send := func(method, path, contentType, body string) {
				r, err := http.NewRequestWithContext(b.Context(), method, ts.URL+path, strings.NewReader(body))
				if err != nil {
					b.Error(err)
					return
				}
				r.Header.Set("Content-Type", contentType)
				res, err := ts.Client().Do(r)
				if err != nil {
					b.Error(err)
					return
				}
				answer, _ := io.ReadAll(res.Body)
				_ = res.Body.Close()
				if res.StatusCode >= 300 {
					b.Errorf("%s %s: %d %s", method, path, res.StatusCode, answer)
				}
			}
			var slowest time.Duration
			i := 0
			for b.Loop() {
				ctx, stop := context.WithCancel(b.Context())
				var others sync.WaitGroup
				others.Go(func() {
					for j := 0; ctx.Err() == nil; j++ {
						began := time.Now()
						send(http.MethodPut, "/zones/other", "application/json", fmt.Sprintf(`{"type":"Zone","name":"other","enabled":%t}`, j%2 == 0))
						slowest = max(slowest, time.Since(began))
					}
				})
				send(http.MethodPost, "/import", "application/"+form, bodies[i%2])
				stop()
				others.Wait()
				i++
			}
			b.ReportMetric(float64(slowest.Microseconds())/1000, "others-ms")
			if got := p.store.Snapshot().Count("TrafficPermission", "demo"); got != n {
				b.Fatalf("%d policies were imported", got)
			}
		})
	}
}

// importBody holds a mesh and n policies.
func importBody(form string, n, version int) string {
	var body strings.Builder
	if form == "json" {
		body.WriteString(`{"type":"Mesh","name":"demo"}`)
	} else {
		body.WriteString("type: Mesh\nname: demo\n")
	}
	for i := range n {
		if form == "json" {
			fmt.Fprintf(&body, `{"type":"TrafficPermission","name":"tp-%05d","mesh":"demo",
				"sources":[{"match":{"kuma.io/service":"web","kuma.io/zone":"east"}}],
				"destinations":[{"match":{"kuma.io/service":"backend","version":"%d"}}]}`, i, version)
			continue
		}
		fmt.Fprintf(&body, `---
type: TrafficPermission
mesh: demo
name: tp-%05d
creationTime: "2024-05-01T10:00:00Z"
modificationTime: "2024-05-01T11:00:00Z"
sources:
- match:
    kuma.io/service: web
    kuma.io/zone: east
destinations:
- match:
    kuma.io/service: backend
    version: "%d"
`, i, version)
	}
	return body.String()
}

// BenchmarkExport10000 is the whole export of as many policies, without a socket.
func BenchmarkExport10000(b *testing.B) {
	p := newPlane(b, resource.Global)
	policies(b, p, 10_000)
	benchmarkGet(b, p, "/export")
}

func BenchmarkPut(b *testing.B) {
	const body = `{"type":"TrafficPermission","name":"x","mesh":"demo",
		"sources":[{"match":{"kuma.io/service":"web","kuma.io/zone":"east"}}],
		"destinations":[{"match":{"kuma.io/service":"backend","version":"%d"}}]}`
	for _, tc := range []struct {
		name                        string
		disk, changing, conditional bool
	}{
		{"memory/changing", false, true, false},
		{"memory/unchanged", false, false, false},
		{"memory/if-match", false, true, true},
		{"bolt/changing", true, true, false},
	} {
		b.Run(tc.name, func(b *testing.B) {
			var options []func(*Options)
			if tc.disk {
				options = append(options, onDisk(b))
			}
			p := newPlane(b, resource.Global, options...)
			p.imports("", importBody("yaml", 1000, 1))
			h := p.srv.Handler()
			w := &sink{header: http.Header{}}
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				if tc.changing {
					i++
				}
				r := httptest.NewRequest(http.MethodPut, "/meshes/demo/traffic-permissions/x", strings.NewReader(fmt.Sprintf(body, i)))
				r.RemoteAddr, r.Host = "127.0.0.1:1", "localhost"
				r.Header.Set("Content-Type", "application/json")
				if tag := w.header.Get("ETag"); tc.conditional && tag != "" {
					r.Header.Set("If-Match", tag)
				}
				w.reset()
				h.ServeHTTP(w, r)
				if w.status != http.StatusOK && w.status != http.StatusCreated {
					b.Fatal(w.status)
				}
			}
		})
	}
}

// BenchmarkListFiltered is a page of a list whose names are looked at one by one.
func BenchmarkListFiltered(b *testing.B) {
	p := newPlane(b, resource.Global)
	policies(b, p, 20_000)
	b.Run("20000", func(b *testing.B) { benchmarkGet(b, p, "/traffic-permissions?name=tp-001") })
}

func BenchmarkRoutes(b *testing.B) {
	p := newPlane(b, resource.Global)
	b.ReportAllocs()
	for b.Loop() {
		p.srv.routes()
	}
}

func BenchmarkDescribe(b *testing.B) {
	p := newPlane(b, resource.Global)
	for _, form := range []struct {
		name   string
		render func() ([]byte, error)
	}{{"JSON", p.srv.doc.JSON}, {"YAML", p.srv.doc.YAML}, {"page", p.srv.doc.Page}} {
		b.Run(form.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := form.render(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
