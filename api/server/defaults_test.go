package server

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/rsakeys"
	"github.com/meridian-mesh/meridian/common/store"
)

// ofMesh is what comes with mesh "demo".
var ofMesh = []string{
	"CircuitBreaker/demo/circuit-breaker-all-demo", "Mesh/demo", "Retry/demo/retry-all-demo",
	"Secret/demo/dataplane-token-signing-key-demo-1", "Timeout/demo/timeout-all-demo",
	"TrafficPermission/demo/allow-all-demo", "TrafficRoute/demo/route-all-demo",
}

// withCA are ofMesh and the authority of backend "ca-1".
func withCA() []string {
	return slices.Sorted(slices.Values(append([]string{"Secret/demo/demo.ca-builtin-cert-ca-1", "Secret/demo/demo.ca-builtin-key-ca-1"}, ofMesh...)))
}

const (
	plainMesh   = `{"type":"Mesh","name":"demo"}`
	builtinMesh = `{"type":"Mesh","name":"demo","mtls":{"enabledBackend":"ca-1","backends":[{"name":"ca-1","type":"builtin"}]}}`
)

// realKeys makes real keys.
func realKeys(o *Options) { o.Keys = rsakeys.NewPool(0).Key }

func TestAMeshIsCreatedInOneBatchWithAllThatBelongsToIt(t *testing.T) {
	p := newPlane(t, resource.Global, realKeys)
	p.want(201, http.MethodPut, "/meshes/demo", builtinMesh)
	if diff := cmp.Diff(withCA(), p.keys()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if rev := p.store.Snapshot().Revision(); rev != 1 {
		t.Errorf("it took %d batches", rev)
	}
	got := object(t, p.want(200, http.MethodGet, "/meshes/demo/timeouts/timeout-all-demo", "").Body)
	if mesh := object(t, p.want(200, http.MethodGet, "/meshes/demo", "").Body); got["creationTime"] != mesh["creationTime"] {
		t.Errorf("times differ: %v and %v", got["creationTime"], mesh["creationTime"])
	}
}

func TestWhatWasDeletedDoesNotComeBackWithAnUpdateOfItsMesh(t *testing.T) {
	p := newPlane(t, resource.Global)
	p.want(201, http.MethodPut, "/meshes/demo", plainMesh)
	for _, path := range []string{"traffic-permissions/allow-all-demo", "retries/retry-all-demo", "secrets/dataplane-token-signing-key-demo-1"} {
		p.want(200, http.MethodDelete, "/meshes/demo/"+path, "")
	}
	p.want(200, http.MethodPut, "/meshes/demo", plainMesh)
	p.want(200, http.MethodPut, "/meshes/demo", `{"type":"Mesh","name":"demo","routing":{"localityAwareLoadBalancing":true}}`)
	want := []string{
		"CircuitBreaker/demo/circuit-breaker-all-demo", "Mesh/demo", "Timeout/demo/timeout-all-demo", "TrafficRoute/demo/route-all-demo",
	}
	if diff := cmp.Diff(want, p.keys()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAnUpdateOfAMeshBringsTheAuthoritiesOfItsNewBackends(t *testing.T) {
	p := newPlane(t, resource.Global)
	p.want(201, http.MethodPut, "/meshes/demo", plainMesh)
	p.want(200, http.MethodPut, "/meshes/demo", builtinMesh)
	if diff := cmp.Diff(withCA(), p.keys()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	before := p.want(200, http.MethodGet, "/secrets", "").Body

	// Removing the backend leaves its authority, and adding it again finds it.
	p.want(400, http.MethodDelete, "/meshes/demo/secrets/demo.ca-builtin-key-ca-1", "")
	p.want(200, http.MethodPut, "/meshes/demo", plainMesh)
	p.want(200, http.MethodPut, "/meshes/demo", builtinMesh)
	if diff := cmp.Diff(before, p.want(200, http.MethodGet, "/secrets", "").Body); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	rev := p.store.Snapshot().Revision()
	p.want(200, http.MethodPut, "/meshes/demo", builtinMesh)
	if now := p.store.Snapshot().Revision(); now != rev {
		t.Errorf("an equal PUT made revision %d of %d", now, rev)
	}
}

func TestAnEqualPutMakesAnAuthorityThatWasForciblyDeleted(t *testing.T) {
	p := newPlane(t, resource.Global, func(o *Options) { o.UnsafeDelete = true })
	p.want(201, http.MethodPut, "/meshes/demo", builtinMesh)
	mesh := p.want(200, http.MethodGet, "/meshes/demo", "").Body
	p.want(200, http.MethodDelete, "/meshes/demo/secrets/demo.ca-builtin-cert-ca-1", "")
	a := p.want(400, http.MethodPut, "/meshes/demo", builtinMesh)
	if !strings.Contains(a.Body, `"field": "mtls.backends[0].name"`) || !strings.Contains(a.Body, "demo.ca-builtin-cert-ca-1") {
		t.Errorf("half an authority: %s", a.Body)
	}
	p.want(200, http.MethodDelete, "/meshes/demo/secrets/demo.ca-builtin-key-ca-1", "")
	p.want(200, http.MethodPut, "/meshes/demo", builtinMesh)
	if diff := cmp.Diff(withCA(), p.keys()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(mesh, p.want(200, http.MethodGet, "/meshes/demo", "").Body); diff != "" {
		t.Errorf("the mesh itself was written: %s", diff)
	}
}

func TestAMeshThatIsCreatedAgainHasNewKeys(t *testing.T) {
	p := newPlane(t, resource.Global, realKeys)
	secrets := func() map[string]string {
		t.Helper()
		var list struct{ Items []struct{ Name, Data string } }
		if err := json.Unmarshal([]byte(p.want(200, http.MethodGet, "/meshes/demo/secrets", "").Body), &list); err != nil {
			t.Fatal(err)
		}
		out := map[string]string{}
		for _, s := range list.Items {
			out[s.Name] = s.Data
		}
		return out
	}
	p.want(201, http.MethodPut, "/meshes/demo", builtinMesh)
	first := secrets()
	p.want(200, http.MethodDelete, "/meshes/demo", "")
	if left := p.keys(); len(left) > 0 {
		t.Fatalf("left over: %v", left)
	}
	p.want(201, http.MethodPut, "/meshes/demo", builtinMesh)
	second := secrets()
	if len(first) != 3 || len(second) != 3 {
		t.Fatalf("%d secrets, then %d", len(first), len(second))
	}
	for name, data := range second {
		if data == first[name] {
			t.Errorf("%s is the same as before", name)
		}
	}
}

func TestAMeshIsStoredWithWhatItsPrometheusBackendLeavesOut(t *testing.T) {
	p := newPlane(t, resource.Global)
	const body = `{"type":"Mesh","name":"demo","metrics":{"enabledBackend":"p","backends":[{"name":"p","type":"prometheus","conf":{"port":9090}},{"name":"q","type":"prometheus"}]}}`
	p.want(201, http.MethodPut, "/meshes/demo", body)
	got := p.want(200, http.MethodGet, "/meshes/demo", "").Body
	conf := func(port float64) any {
		return map[string]any{"port": port, "path": "/metrics", "tags": map[string]any{"kuma.io/service": "dataplane-metrics"}}
	}
	want := []any{
		map[string]any{"name": "p", "type": "prometheus", "conf": conf(9090)}, map[string]any{"name": "q", "type": "prometheus", "conf": conf(5670)},
	}
	if diff := cmp.Diff(want, object(t, got)["metrics"].(map[string]any)["backends"]); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	rev := p.store.Snapshot().Revision()
	p.want(200, http.MethodPut, "/meshes/demo", body) // as it was sent
	p.want(200, http.MethodPut, "/meshes/demo", got)  // as it was read
	if now := p.store.Snapshot().Revision(); now != rev {
		t.Errorf("equal PUTs made revision %d of %d", now, rev)
	}
}

func TestABackendThatAsksForTooMuchIsRefusedByField(t *testing.T) {
	p := newPlane(t, resource.Global)
	a := p.want(400, http.MethodPut, "/meshes/demo", strings.Replace(builtinMesh, `"builtin"`, `"builtin","conf":{"caCert":{"RSAbits":65536}}`, 1))
	want := problem{Title: titleCreate, Details: detailsInvalid, Causes: []cause{{"mtls.backends[0].conf.caCert.RSAbits", "must be in the range [2048, 4096]"}}}
	body, err := marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(body), a.Body); diff != "" {
		t.Error(diff)
	}
	if left := p.keys(); len(left) > 0 {
		t.Errorf("stored %v", left)
	}
}

// Of many clients that create one mesh at the same time, one does, and its keys are the mesh's: the policies and keys
// the others had ready are nowhere.
func TestManyWhoCreateOneMeshMakeItOnce(t *testing.T) {
	p := newPlane(t, resource.Global, realKeys)
	statuses := make([]int, 8)
	var wg sync.WaitGroup
	for i := range statuses {
		wg.Go(func() { statuses[i] = p.do(http.MethodPut, "/meshes/demo", builtinMesh).Status })
	}
	wg.Wait()
	slices.Sort(statuses)
	if diff := cmp.Diff([]int{200, 200, 200, 200, 200, 200, 200, 201}, statuses); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(withCA(), p.keys()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if rev := p.store.Snapshot().Revision(); rev != 1 {
		t.Errorf("it took %d batches", rev)
	}
	var pair [2]*pem.Block
	for i, name := range []string{"cert", "key"} {
		data := object(t, p.want(200, http.MethodGet, "/meshes/demo/secrets/demo.ca-builtin-"+name+"-ca-1", "").Body)["data"]
		var raw []byte
		if err := json.Unmarshal([]byte(fmt.Sprintf("%q", data)), &raw); err != nil {
			t.Fatal(err)
		}
		if pair[i], _ = pem.Decode(raw); pair[i] == nil {
			t.Fatalf("%s is no PEM", name)
		}
	}
	cert, err := x509.ParseCertificate(pair[0].Bytes)
	if err != nil {
		t.Fatal(err)
	}
	key, err := x509.ParsePKCS1PrivateKey(pair[1].Bytes)
	if err != nil || !key.PublicKey.Equal(cert.PublicKey) {
		t.Errorf("certificate and key are no pair: %v", err)
	}
}

func TestTheCommitterDoesNotWaitForKeys(t *testing.T) {
	asked, release := make(chan struct{}, 2), make(chan struct{})
	p := newPlane(t, resource.Global, func(o *Options) {
		o.Keys = func(ctx context.Context, bits int) (*rsa.PrivateKey, error) {
			asked <- struct{}{}
			<-release
			return sameKey(ctx, bits)
		}
	})
	p.seed(record(t, resource.Mesh, "", "other", "", nil))
	var wg sync.WaitGroup
	wg.Go(func() { p.want(201, http.MethodPut, "/meshes/demo", plainMesh) })
	<-asked
	p.want(201, http.MethodPut, "/meshes/other/retries/r", `{"type":"Retry","name":"r","mesh":"other",`+every+`,"conf":{"tcp":{"maxConnectAttempts":2}}}`)
	close(release)
	wg.Wait()
}

// TestDeletingAMeshRemovesEveryTypeInIt goes through the registry, so that a new type cannot be forgotten.
func TestDeletingAMeshRemovesEveryTypeInIt(t *testing.T) {
	p := newPlane(t, resource.Global)
	p.want(201, http.MethodPut, "/meshes/demo", builtinMesh)
	var left []string
	for _, d := range resource.All() {
		if d.Name == resource.Dataplane { // no mesh with one is deleted
			continue
		}
		mesh := ""
		if d.Scope == resource.ScopeMesh {
			mesh = "demo"
		}
		rec := record(t, d.Name, mesh, "one", "", nil)
		if d.IsJSON() {
			rec.Spec = []byte(`{"targetRef":{"kind":"Mesh"}}`)
		}
		p.seed(rec)
		if d.Scope == resource.ScopeGlobal {
			left = append(left, rec.Key.String())
		}
	}
	p.seed(record(t, resource.MeshInsight, "", "demo", "", nil))
	slices.Sort(left)
	p.want(200, http.MethodDelete, "/meshes/demo", "")
	if diff := cmp.Diff(left, p.keys()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestDeletingAZoneRemovesEveryTypeThatCameFromIt goes through the registry likewise.
func TestDeletingAZoneRemovesEveryTypeThatCameFromIt(t *testing.T) {
	p := newPlane(t, resource.Global)
	p.seed(record(t, resource.ZoneType, "", "zone-1", "", nil), record(t, resource.ZoneInsight, "", "zone-1", "", nil))
	before := []string{}
	for _, d := range resource.All() {
		if d.Flow != resource.FlowToGlobal && d.Flow != resource.FlowBoth {
			continue
		}
		mesh := ""
		if d.Scope == resource.ScopeMesh {
			mesh = "gone" // a zone may hold proxies of a mesh that the global lacks
		}
		kept := record(t, d.Name, mesh, "zone-2.one", "zone-2", nil)
		p.seed(record(t, d.Name, mesh, "zone-1.one", "zone-1", nil), kept)
		before = append(before, kept.Key.String())
	}
	slices.Sort(before)
	p.want(200, http.MethodDelete, "/zones/zone-1", "")
	if diff := cmp.Diff(before, p.keys(syncToken)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// BenchmarkPutMesh is the creation of a mesh, which needs an RSA key, or with a builtin authority two and a signature. The
// keys are made when needed, or ready because meshes are not created in a row.
func BenchmarkPutMesh(b *testing.B) {
	for _, bc := range []struct {
		name, body string
		ready      int
	}{
		{"plain/keys-when-needed", plainMesh, 0},
		{"plain/keys-ready", plainMesh, 2},
		{"builtin-ca/keys-when-needed", builtinMesh, 0},
		{"builtin-ca/keys-ready", builtinMesh, 2},
	} {
		b.Run(bc.name, func(b *testing.B) {
			pool := rsakeys.NewPool(bc.ready)
			if bc.ready > 0 {
				ctx, cancel := context.WithCancel(b.Context())
				done := make(chan error, 1)
				go func() { done <- pool.Run(ctx) }()
				defer func() { cancel(); <-done }()
			}
			p := newPlane(b, resource.Global, func(o *Options) { o.Keys = pool.Key })
			h := p.srv.Handler()
			w := &sink{header: http.Header{}}
			var took []time.Duration
			for b.Loop() {
				b.StopTimer()
				if rec, ok := p.store.Snapshot().Get(store.Key{Type: "Mesh", Name: "demo"}); ok {
					p.want(200, http.MethodDelete, "/meshes/"+rec.Key.Name, "")
				}
				if bc.ready > 0 {
					time.Sleep(400 * time.Millisecond)
				}
				r := httptest.NewRequest(http.MethodPut, "/meshes/demo", strings.NewReader(bc.body))
				r.Header.Set("Content-Type", "application/json")
				w.reset()
				b.StartTimer()
				began := time.Now()
				h.ServeHTTP(w, r)
				took = append(took, time.Since(began))
				if w.status != http.StatusCreated {
					b.Fatal(w.status)
				}
			}
			slices.Sort(took)
			b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
			b.ReportMetric(float64(took[len(took)-1].Microseconds())/1000, "max-ms")
		})
	}
}
