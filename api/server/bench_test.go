package server

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
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

func BenchmarkPut(b *testing.B) {
	const body = `{"type":"TrafficPermission","name":"x","mesh":"demo",
		"sources":[{"match":{"kuma.io/service":"web","kuma.io/zone":"east"}}],
		"destinations":[{"match":{"kuma.io/service":"backend","version":"%d"}}]}`
	for _, tc := range []struct {
		name                  string
		changing, conditional bool
	}{{"changing", true, false}, {"unchanged", false, false}, {"if-match", true, true}} {
		b.Run(tc.name, func(b *testing.B) {
			p := newPlane(b, resource.Global)
			policies(b, p, 1000)
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
