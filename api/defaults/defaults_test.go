package defaults

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func openStore(t testing.TB) *store.Store {
	t.Helper()
	st, err := store.Open(context.Background(), memory.New(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	return st
}

// generated is a source of real keys that counts them.
type generated struct{ keys atomic.Int32 }

func (g *generated) source(_ context.Context, bits int) (*rsa.PrivateKey, error) {
	g.keys.Add(1)
	return rsa.GenerateKey(rand.Reader, bits)
}

// sameKey is a source for tests that do not look at the keys, nor wait for them.
func sameKey(context.Context, int) (*rsa.PrivateKey, error) { return theKey(), nil }

var theKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, keyBits)
	if err != nil {
		panic(err)
	}
	return key
})

// names returns everything in the store as Type/mesh/name, sorted.
func names(v View) []string {
	var out []string
	for _, d := range resource.All() {
		for rec := range v.List(string(d.Name), "") {
			out = append(out, rec.Key.String())
		}
	}
	slices.Sort(out)
	return out
}

func secret(t testing.TB, v View, typ resource.Type, mesh, name string) []byte {
	t.Helper()
	rec, ok := v.Get(store.Key{Type: string(typ), Mesh: mesh, Name: name})
	if !ok {
		t.Fatalf("there is no %s %s", typ, name)
	}
	var s systemv1.Secret
	if err := proto.Unmarshal(rec.Spec, &s); err != nil {
		t.Fatal(err)
	}
	return s.GetData().GetValue()
}

func certificate(t testing.TB, content []byte) (cert *x509.Certificate, rest []byte) {
	t.Helper()
	block, rest := pem.Decode(content)
	if block == nil || block.Type != "CERTIFICATE" {
		t.Fatalf("not a certificate in PEM: %q", content)
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert, rest
}

func privateKey(t testing.TB, content []byte) *rsa.PrivateKey {
	t.Helper()
	block, rest := pem.Decode(content)
	if block == nil || block.Type != "RSA PRIVATE KEY" || len(rest) > 0 {
		t.Fatalf("not one RSA key in PEM: %q", content)
	}
	key, err := x509.ParsePKCS1PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func commit(t testing.TB, st *store.Store, ops ...store.Op) {
	t.Helper()
	if _, err := st.Update(t.Context(), func(*store.Snapshot) ([]store.Op, error) { return ops, nil }); err != nil {
		t.Fatal(err)
	}
}

func record(t testing.TB, typ resource.Type, mesh, name string, spec proto.Message) *store.Record {
	t.Helper()
	encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	return &store.Record{Key: store.Key{Type: string(typ), Mesh: mesh, Name: name}, Spec: encoded, Created: now, Modified: now}
}
