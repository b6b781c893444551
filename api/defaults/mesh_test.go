package defaults

import (
	"context"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meridian-mesh/meridian/api/codec"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/validate"
	"github.com/meridian-mesh/meridian/common/store"
)

// write stores what belongs to a mesh.
func write(t testing.TB, st *store.Store, keys Source, w MeshWrite) error {
	t.Helper()
	m := Material{}
	_, err := Commit(t.Context(), st, keys, m, nil, func(head *store.Snapshot) ([]store.Op, []Need, error) { return w.Ops(head, m) })
	return err
}

// mesh is a mesh named demo with CAs, each given as the name, the type, and its conf in JSON.
func mesh(t testing.TB, backends ...[3]string) MeshWrite {
	t.Helper()
	mtls := &meshv1.Mesh_Mtls{}
	for _, b := range backends {
		ca := &meshv1.CertificateAuthorityBackend{Name: b[0], Type: b[1]}
		if b[2] != "" {
			ca.Conf = &structpb.Struct{}
			if err := ca.Conf.UnmarshalJSON([]byte(b[2])); err != nil {
				t.Fatal(err)
			}
		}
		mtls.Backends = append(mtls.Backends, ca)
	}
	return MeshWrite{Name: "demo", Spec: &meshv1.Mesh{Mtls: mtls}, Now: time.Now()}
}

func TestANewMeshComesWithFivePoliciesAndASigningKey(t *testing.T) {
	const every = ` "sources": [
  {
   "match": {
    "kuma.io/service": "*"
   }
  }
 ],
 "destinations": [
  {
   "match": {
    "kuma.io/service": "*"
   }
  }
 ]`
	const retry = `{
   "numRetries": 5,
   "perTryTimeout": "16s",
   "backOff": {
    "baseInterval": "0.025s",
    "maxInterval": "0.250s"
   }
  }`
	want := map[string]string{
		"TrafficPermission/demo/allow-all-demo": "",
		"TrafficRoute/demo/route-all-demo": `,
 "conf": {
  "loadBalancer": {
   "roundRobin": {}
  },
  "destination": {
   "kuma.io/service": "*"
  }
 }`,
		"Timeout/demo/timeout-all-demo": `,
 "conf": {
  "connectTimeout": "5s",
  "tcp": {
   "idleTimeout": "3600s"
  },
  "http": {
   "requestTimeout": "15s",
   "idleTimeout": "3600s",
   "streamIdleTimeout": "1800s"
  }
 }`,
		"CircuitBreaker/demo/circuit-breaker-all-demo": `,
 "conf": {
  "thresholds": {
   "maxConnections": 1024,
   "maxPendingRequests": 1024,
   "maxRetries": 3,
   "maxRequests": 1024
  }
 }`,
		"Retry/demo/retry-all-demo": `,
 "conf": {
  "http": ` + retry + `,
  "tcp": {
   "maxConnectAttempts": 5
  },
  "grpc": ` + retry + `
 }`,
	}
	st := openStore(t)
	w := mesh(t)
	w.Policies, w.Key = true, true
	if err := write(t, st, (&generated{}).source, w); err != nil {
		t.Fatal(err)
	}
	snap := st.Snapshot()
	if snap.Revision() != 1 {
		t.Errorf("it took %d batches", snap.Revision())
	}
	got := map[string]string{}
	for _, d := range resource.All() {
		for rec := range snap.List(string(d.Name), "demo") {
			if !rec.Created.Equal(w.Now) || !rec.Modified.Equal(w.Now) || rec.Origin != "" {
				t.Errorf("%s: created %v, modified %v, of %q", rec.Key, rec.Created, rec.Modified, rec.Origin)
			}
			if d.Name == resource.Secret {
				continue
			}
			body, err := codec.Encode(&d, rec)
			if err != nil {
				t.Fatal(err)
			}
			_, spec, _ := strings.Cut(string(body), ` "sources"`)
			got[rec.Key.String()] = strings.TrimSuffix(` "sources"`+spec, "\n}")
		}
	}
	for key, conf := range want {
		want[key] = every + conf
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("policies (-want +got):\n%s", diff)
	}
	key := privateKey(t, secret(t, snap, resource.Secret, "demo", "dataplane-token-signing-key-demo-1"))
	if key.N.BitLen() != 2048 {
		t.Errorf("a key of %d bits", key.N.BitLen())
	}
	if n := snap.Count(string(resource.Secret), "demo"); n != 1 {
		t.Errorf("%d secrets", n)
	}
}

func TestWhatIsMadeIsWhatWouldBeAccepted(t *testing.T) {
	st := openStore(t)
	if _, err := start(st, sameKey).Global(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, d := range resource.All() {
		for rec := range st.Snapshot().List(string(d.Name), "") {
			if found := append(validate.Spec(&d, rec.Key, rec.Spec), validate.State(st.Snapshot(), &d, rec, nil)...); len(found) > 0 {
				t.Errorf("%s: %v", rec.Key, found)
			}
		}
	}
}

func TestOnlyWhatIsAbsentIsMade(t *testing.T) {
	own := &systemv1.Secret{Data: wrapperspb.Bytes([]byte("the operator's own"))}
	for name, tc := range map[string]struct {
		before []*store.Record
		write  func(*MeshWrite)
		after  []string // beside what was there
		keys   int32
	}{
		"a policy of a default name stays as it is": {
			before: []*store.Record{record(t, "Timeout", "demo", "timeout-all-demo", &meshv1.Timeout{})},
			write:  func(w *MeshWrite) { w.Policies = true },
			after:  []string{"CircuitBreaker/demo/circuit-breaker-all-demo", "Retry/demo/retry-all-demo", "TrafficPermission/demo/allow-all-demo", "TrafficRoute/demo/route-all-demo"},
		},
		"a signing key of any number is enough": {
			before: []*store.Record{record(t, resource.Secret, "demo", "dataplane-token-signing-key-demo-7", own)},
			write:  func(w *MeshWrite) { w.Key = true },
		},
		"the signing key of another mesh is not": {
			before: []*store.Record{record(t, resource.Secret, "other", "dataplane-token-signing-key-demo-1", own)},
			write:  func(w *MeshWrite) { w.Key = true },
			after:  []string{"Secret/demo/dataplane-token-signing-key-demo-1"}, keys: 1,
		},
		"an authority that is there stays": {
			before: []*store.Record{
				record(t, resource.Secret, "demo", "demo.ca-builtin-cert-ca-1", own), record(t, resource.Secret, "demo", "demo.ca-builtin-key-ca-1", own),
			},
			write: func(w *MeshWrite) { *w = mesh(t, [3]string{"ca-1", "builtin", `{"caCert":{"RSAbits":4096}}`}) },
		},
		"each builtin backend has an authority of its own": {
			before: []*store.Record{
				record(t, resource.Secret, "demo", "demo.ca-builtin-cert-ca-1", own), record(t, resource.Secret, "demo", "demo.ca-builtin-key-ca-1", own),
			},
			write: func(w *MeshWrite) {
				*w = mesh(t, [3]string{"ca-1", "builtin", ""}, [3]string{"ca-2", "builtin", ""}, [3]string{"ca-3", "provided", ""})
			},
			after: []string{"Secret/demo/demo.ca-builtin-cert-ca-2", "Secret/demo/demo.ca-builtin-key-ca-2"}, keys: 1,
		},
		"a later write of the mesh makes nothing": {write: func(*MeshWrite) {}},
	} {
		t.Run(name, func(t *testing.T) {
			st := openStore(t)
			want := slices.Clone(tc.after)
			for _, rec := range tc.before {
				commit(t, st, store.Put(rec))
				want = append(want, rec.Key.String())
			}
			slices.Sort(want)
			w := mesh(t)
			tc.write(&w)
			var keys generated
			if err := write(t, st, keys.source, w); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, names(st.Snapshot())); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			for _, rec := range tc.before {
				if got, _ := st.Snapshot().Get(rec.Key); got == nil || got.Version > 2 || !got.Created.Equal(rec.Created) || string(got.Spec) != string(rec.Spec) {
					t.Errorf("%s was written again", rec.Key)
				}
			}
			if n := keys.keys.Load(); n != tc.keys {
				t.Errorf("%d keys were generated, %d needed", n, tc.keys)
			}
		})
	}
}

func TestABuiltinBackendHasTheAuthorityItAsksFor(t *testing.T) {
	for name, tc := range map[string]struct {
		conf string
		bits int
		life time.Duration
	}{
		"nothing said":                {"", 2048, 10 * 365 * 24 * time.Hour},
		"an empty conf":               {`{}`, 2048, 10 * 365 * 24 * time.Hour},
		"a larger key":                {`{"caCert":{"RSAbits":3072}}`, 3072, 10 * 365 * 24 * time.Hour},
		"a shorter life":              {`{"caCert":{"expiration":"30d"}}`, 2048, 30 * 24 * time.Hour},
		"fields that nobody knows":    {`{"caCert":{"expiration":"1y","x":1},"y":{}}`, 2048, 365 * 24 * time.Hour},
		"nulls, which stand for none": {`{"caCert":{"RSAbits":null,"expiration":null}}`, 2048, 10 * 365 * 24 * time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			st := openStore(t)
			if err := write(t, st, (&generated{}).source, mesh(t, [3]string{"ca-1", "builtin", tc.conf})); err != nil {
				t.Fatal(err)
			}
			cert, rest := certificate(t, secret(t, st.Snapshot(), resource.Secret, "demo", "demo.ca-builtin-cert-ca-1"))
			key := privateKey(t, secret(t, st.Snapshot(), resource.Secret, "demo", "demo.ca-builtin-key-ca-1"))
			if len(rest) > 0 || !key.PublicKey.Equal(cert.PublicKey) {
				t.Error("certificate and key are no pair")
			}
			if got := cert.Subject.String(); got != "CN=demo,OU=Mesh,O=Kuma" {
				t.Errorf("subject %s", got)
			}
			if len(cert.URIs) != 1 || cert.URIs[0].String() != "spiffe://demo" || len(cert.DNSNames)+len(cert.IPAddresses)+len(cert.EmailAddresses) > 0 {
				t.Errorf("names %v %v", cert.URIs, cert.DNSNames)
			}
			if !cert.IsCA || !cert.BasicConstraintsValid || cert.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign || cert.CheckSignatureFrom(cert) != nil {
				t.Errorf("CA %v, usage %b, signed by itself: %v", cert.IsCA, cert.KeyUsage, cert.CheckSignatureFrom(cert))
			}
			if key.N.BitLen() != tc.bits {
				t.Errorf("%d bits, want %d", key.N.BitLen(), tc.bits)
			}
			if got := time.Until(cert.NotAfter) - tc.life; got < -time.Minute || got > 0 {
				t.Errorf("it lives until %s, want for %s", cert.NotAfter, tc.life)
			}
			if time.Since(cert.NotBefore) < 30*time.Second {
				t.Errorf("not valid for whose clock is a little behind: %s", cert.NotBefore)
			}
		})
	}
}

func TestHalfAnAuthorityIsRefused(t *testing.T) {
	secretNamed := func(name string) *store.Record {
		return record(t, resource.Secret, "demo", name, &systemv1.Secret{Data: wrapperspb.Bytes([]byte("x"))})
	}
	for name, tc := range map[string]struct {
		before *store.Record
		want   codec.Violation
	}{
		"a certificate without its key": {
			before: secretNamed("demo.ca-builtin-cert-ca-1"),
			want:   codec.Violation{Field: "mtls.backends[1].name", Message: `secret "demo.ca-builtin-cert-ca-1" exists, but its key "demo.ca-builtin-key-ca-1" does not: restore it, or delete the secret`},
		},
		"a key without its certificate": {
			before: secretNamed("demo.ca-builtin-key-ca-1"),
			want:   codec.Violation{Field: "mtls.backends[1].name", Message: `secret "demo.ca-builtin-key-ca-1" exists, but its certificate "demo.ca-builtin-cert-ca-1" does not: restore it, or delete the secret`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			st := openStore(t)
			commit(t, st, store.Put(tc.before))
			rev := st.Snapshot().Revision()
			err := write(t, st, sameKey, mesh(t, [3]string{"file", "provided", ""}, [3]string{"ca-1", "builtin", ""}))
			refused, ok := errors.AsType[*codec.Error](err)
			if !ok {
				t.Fatalf("got %v", err)
			}
			if diff := cmp.Diff([]codec.Violation{tc.want}, refused.Violations); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if st.Snapshot().Revision() != rev {
				t.Error("something was stored")
			}
		})
	}
}

func TestAPrometheusBackendIsFilledIn(t *testing.T) {
	const all = `{"path":"/metrics","port":5670,"tags":{"kuma.io/service":"dataplane-metrics"}}`
	for name, tc := range map[string]struct {
		typ, conf, want string
	}{
		"nothing said":                        {"prometheus", ``, all},
		"empty":                               {"prometheus", `{}`, all},
		"zeros, which say nothing":            {"prometheus", `{"port":0,"path":"","tags":{}}`, all},
		"nulls":                               {"prometheus", `{"port":null,"path":null,"tags":null}`, all},
		"the rest is kept":                    {"prometheus", `{"port":1,"skipMTLS":false,"x":[1]}`, `{"path":"/metrics","port":1,"skipMTLS":false,"tags":{"kuma.io/service":"dataplane-metrics"},"x":[1]}`},
		"complete":                            {"prometheus", `{"path":"/m","port":2,"tags":{"kuma.io/service":"m"}}`, `{"path":"/m","port":2,"tags":{"kuma.io/service":"m"}}`},
		"another type":                        {"statsd", `{}`, `{}`},
		"a wrong type is not ours to correct": {"prometheus", `{"path":[],"port":"x","tags":true}`, `{"path":[],"port":"x","tags":true}`},
	} {
		t.Run(name, func(t *testing.T) {
			backend := &meshv1.MetricsBackend{Name: "m", Type: tc.typ}
			if tc.conf != "" {
				backend.Conf = &structpb.Struct{}
				if err := backend.Conf.UnmarshalJSON([]byte(tc.conf)); err != nil {
					t.Fatal(err)
				}
			}
			spec := &meshv1.Mesh{Metrics: &meshv1.Metrics{Backends: []*meshv1.MetricsBackend{backend}}}
			changed := FillMesh(spec)
			want := &structpb.Struct{}
			if err := want.UnmarshalJSON([]byte(tc.want)); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want.AsMap(), backend.GetConf().AsMap()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if want := tc.conf != tc.want; changed != want {
				t.Errorf("changed is %v", changed)
			}
			if FillMesh(spec) {
				t.Error("filling in once more changes it again")
			}
		})
	}
	if FillMesh(&meshv1.Mesh{}) {
		t.Error("an empty mesh was changed")
	}
}

// The head may need what the snapshot did not: between the two the mesh was deleted with its secrets.
func TestACommitMakesWhatOnlyTheHeadNeeds(t *testing.T) {
	st := openStore(t)
	w := mesh(t, [3]string{"ca-1", "builtin", ""})
	m := Material{}
	var keys generated
	tries := 0
	rev, err := Commit(t.Context(), st, keys.source, m, nil, func(head *store.Snapshot) ([]store.Op, []Need, error) {
		tries++
		w.Key = tries > 1 // needed at the second look only
		return w.Ops(head, m)
	})
	if err != nil || rev != 1 {
		t.Fatalf("revision %d, %v", rev, err)
	}
	want := []string{"Secret/demo/dataplane-token-signing-key-demo-1", "Secret/demo/demo.ca-builtin-cert-ca-1", "Secret/demo/demo.ca-builtin-key-ca-1"}
	if diff := cmp.Diff(want, names(st.Snapshot())); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if tries != 3 || keys.keys.Load() != 2 {
		t.Errorf("%d tries, %d keys", tries, keys.keys.Load())
	}
}

func TestACommitWithoutKeysFailsAndStoresNothing(t *testing.T) {
	st := openStore(t)
	broken := errors.New("no entropy")
	w := mesh(t)
	w.Policies, w.Key = true, true
	err := write(t, st, func(context.Context, int) (*rsa.PrivateKey, error) { return nil, broken }, w)
	if !errors.Is(err, broken) || !strings.Contains(err.Error(), "dataplane-token-signing-key-demo-1") {
		t.Errorf("got %v", err)
	}
	if got := names(st.Snapshot()); len(got) > 0 {
		t.Errorf("stored %v", got)
	}
}
