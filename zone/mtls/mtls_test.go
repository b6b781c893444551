package mtls

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/meridian-mesh/meridian/api/defaults"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

// noon is when the tests take place.
var noon = time.Date(2030, 1, 2, 12, 0, 0, 500_000_000, time.UTC)

// authorityKey is the RSA key of all authorities whose tests do not look at it: they take long to find.
var authorityKey = sync.OnceValues(func() (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, 2048) })

func newAuthority(t testing.TB, o Options) *Authority {
	t.Helper()
	if o.KeyType == "" {
		o.Config = DefaultConfig()
	}
	if o.Now == nil {
		o.Now = func() time.Time { return noon }
	}
	if o.Registerer == nil {
		o.Registerer = prometheus.NewPedanticRegistry()
	}
	o.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	a, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// pair is the PEM of an authority, and what it consists of.
type pair struct {
	cert, key []byte
	parsed    *x509.Certificate
	signer    crypto.Signer
}

// newCA makes an authority that signs itself, or is signed by another one.
func newCA(t testing.TB, name string, by *pair, change func(*x509.Certificate)) *pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return caWith(t, name, key, by, change)
}

func caWith(t testing.TB, name string, key crypto.Signer, by *pair, change func(*x509.Certificate)) *pair {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    noon.Add(-time.Hour).Truncate(time.Second), NotAfter: noon.Add(10 * 365 * 24 * time.Hour).Truncate(time.Second),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true,
	}
	if change != nil {
		change(template)
	}
	parent, signer := template, key
	if by != nil {
		parent, signer = by.parsed, by.signer
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return &pair{
		cert:   pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		key:    pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
		parsed: parsed, signer: key,
	}
}

// state is a mesh named demo and its secrets.
type state struct {
	spec    *meshv1.Mesh
	secrets map[string][]byte
}

// builtin returns a mesh with builtin backends, of which the first is enabled.
func builtin(cas map[string]*pair, order ...string) state {
	s := state{spec: &meshv1.Mesh{Mtls: &meshv1.Mesh_Mtls{EnabledBackend: order[0]}}, secrets: make(map[string][]byte)}
	for _, name := range order {
		s.spec.Mtls.Backends = append(s.spec.Mtls.Backends, &meshv1.CertificateAuthorityBackend{Name: name, Type: "builtin"})
	}
	for name, ca := range cas {
		cert, key := defaults.BuiltinSecrets("demo", name)
		s.secrets[cert], s.secrets[key] = ca.cert, ca.key
	}
	return s
}

func (s state) issue(t testing.TB, a *Authority, tags map[string][]string) *Identity {
	t.Helper()
	id, err := a.Issue(t.Context(), s.spec, s.secrets, IdentityRequest{Mesh: "demo", Tags: tags})
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func (s state) roots(t testing.TB, a *Authority) *Roots {
	t.Helper()
	r, err := a.Roots("demo", s.spec, s.secrets)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// leaf parses the first certificate in PEM.
func leaf(t testing.TB, b []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(b)
	if block == nil {
		t.Fatal("no PEM")
	}
	c, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func conf(t testing.TB, m map[string]any) *structpb.Struct {
	t.Helper()
	s, err := structpb.NewStruct(m)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func BenchmarkIssue(b *testing.B) {
	key, err := authorityKey()
	if err != nil {
		b.Fatal(err)
	}
	for _, keyType := range keyTypes {
		b.Run(keyType, func(b *testing.B) {
			a := newAuthority(b, Options{Config: Config{KeyType: keyType}})
			s := builtin(map[string]*pair{"ca-1": caWith(b, "demo", key, nil, nil)}, "ca-1")
			req := IdentityRequest{Mesh: "demo", Tags: map[string][]string{
				"kuma.io/service": {"backend"}, "kuma.io/zone": {"east"}, "kuma.io/protocol": {"http"}, "version": {"1"},
			}}
			b.ReportAllocs()
			for b.Loop() {
				if _, err := a.Issue(context.Background(), s.spec, s.secrets, req); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
