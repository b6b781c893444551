package envoy_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meridian-mesh/meridian/zone/envoy"
	"github.com/meridian-mesh/meridian/zone/envoy/envoytest"
)

// certificate makes a certificate for a key, and the key, in PEM.
func certificate(t *testing.T, key crypto.Signer) (cert, private []byte) {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

func signer[K crypto.Signer](t *testing.T) func(K, error) crypto.Signer {
	t.Helper()
	return func(k K, err error) crypto.Signer {
		if err != nil {
			t.Fatal(err)
		}
		return k
	}
}

func TestCertificatesThatCannotBeUsed(t *testing.T) {
	t.Setenv("GODEBUG", "rsa1024min=0")
	good, goodKey := certificate(t, signer[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)))
	_, otherKey := certificate(t, signer[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)))
	curve, curveKey := certificate(t, signer[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)))
	short, shortKey := certificate(t, signer[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 1024))) //nolint:gosec // that is the point
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	edwards, edwardsKey := certificate(t, ed)
	tests := []struct {
		name    string
		content []byte
		want    string // "": it can be used
	}{
		{"a certificate and its key", slices.Concat(good, goodKey), ""},
		{"in the other order, with a chain and what else there may be", slices.Concat(goodKey, good, curve, []byte("-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n")), ""},
		{"nothing", nil, "it has no certificate in PEM"},
		{"no key", good, "it has no private key in PEM"},
		{"no certificate", goodKey, "it has no certificate in PEM"},
		{"two keys", slices.Concat(good, goodKey, otherKey), "it has more than one private key"},
		{"another key", slices.Concat(good, otherKey), "its certificate and private key cannot be read, or do not belong together"},
		{"nonsense in PEM", slices.Concat(good, []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")), "its certificate and private key cannot be read, or do not belong together"},
		{"another curve", slices.Concat(curve, curveKey), "its key is on the curve P-384: Envoy takes P-256"},
		{"a short key", slices.Concat(short, shortKey), "its RSA key has 1024 bits: Envoy takes no fewer than 2048"},
		{"another kind of key", slices.Concat(edwards, edwardsKey), "its key is neither RSA nor ECDSA"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := parse(t, bareEdge+fmt.Sprintf(`
---
type: Secret
mesh: default
name: c
data: %q
---
type: MeshGateway
mesh: default
name: edge
selectors: [{match: {kuma.io/service: edge}}]
conf: {listeners: [{port: 443, protocol: HTTPS, tls: {mode: TERMINATE, certificates: [{secret: c}]}}]}
`, base64.StdEncoding.EncodeToString(tt.content)))
			out := w.output(t)
			warnings := strings.Join(out.Warnings, "\n")
			if tt.want == "" {
				if warnings != "" || !slices.Equal(out.Secrets, []string{"cert.ecdsa:secret:c"}) {
					t.Fatalf("secrets %v, warnings %s", out.Secrets, warnings)
				}
				return
			}
			if len(out.Secrets) > 0 || !strings.Contains(warnings, "tls.certificates[0]: "+tt.want) || !strings.Contains(warnings, "host * is not served") {
				t.Errorf("secrets %v, warnings %s", out.Secrets, warnings)
			}
			if _, err := envoy.ServerSecret(w.mesh, w.proxy.Dataplane, "cert.ecdsa:secret:c"); err == nil {
				t.Error("there is a secret all the same")
			}
		})
	}
}

func TestCertificatesAreSecretsAlone(t *testing.T) {
	w := load(t, "testdata/gateway-https/input.yaml")
	out := w.output(t)
	var kinds []string
	for _, name := range out.Secrets {
		s, err := envoy.ServerSecret(w.mesh, w.proxy.Dataplane, name)
		if err != nil {
			t.Fatal(err)
		}
		cert := s.GetTlsCertificate()
		if s.GetName() != name || !bytes.Contains(cert.GetCertificateChain().GetInlineBytes(), []byte("BEGIN CERTIFICATE")) ||
			!bytes.Contains(cert.GetPrivateKey().GetInlineBytes(), []byte("PRIVATE KEY")) {
			t.Errorf("%s is incomplete", name)
		}
		kind, _, _ := strings.Cut(name, ":")
		kinds = append(kinds, kind)
	}
	if want := []string{"cert.ecdsa", "cert.ecdsa", "cert.rsa"}; !slices.Equal(kinds, want) {
		t.Errorf("secrets %v, want kinds %v", out.Secrets, want)
	}
	for _, r := range out.Resources {
		if bytes.Contains(r.Any.GetValue(), []byte("PRIVATE KEY")) {
			t.Errorf("%s has a private key", r.Name)
		}
	}
	for _, w := range out.Warnings {
		if strings.Contains(w, "BEGIN") {
			t.Errorf("a warning tells of a certificate: %s", w)
		}
	}
}

func TestServerNamesChooseHosts(t *testing.T) {
	https := messages(load(t, "testdata/gateway-https/input.yaml").output(t))
	passed := messages(load(t, "testdata/gateway-tls-passthrough/input.yaml").output(t))
	tests := []struct {
		name, sni, path string
		passed          bool
		want            string // the service, "404", or why not
	}{
		{"a host", "www.example.com", "/", false, "api"},
		{"a host of a domain", "b.example.org", "/", false, "api"},
		{"a host that a route makes", "a.example.org", "/a", false, "api"},
		{"a host that a route makes has that route alone", "a.example.org", "/b", false, "404"},
		{"a host whose certificate is missing", "lost.example.com", "/", false, "no filters"},
		{"no host", "example.net", "/", false, "no filter chain"},
		{"no TLS", "", "/", false, "no filter chain"},
		{"TLS is passed on", "db.example.com", "", true, "db"},
		{"TLS is passed on, of a domain", "x.example.org", "", true, "api"},
		{"TLS is passed on to nobody", "none.example.net", "", true, "no filters"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			oracle, req := envoytest.New(https), &envoytest.Request{Method: "GET", Host: tt.sni, Path: tt.path}
			if tt.passed {
				oracle, req = envoytest.New(passed), nil
			}
			o, err := oracle.Ask("edge:HTTPS:8443", envoytest.Connection{TLS: tt.sni != "", ServerName: tt.sni, ALPN: []string{"h2"}}, req)
			if err != nil {
				t.Fatal(err)
			}
			if got := whereTo(o); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// Nor is it served by the host for all names, under whose certificate.
func TestAHostWithoutACertificateIsNotServedByAnother(t *testing.T) {
	cert, key := certificate(t, signer[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)))
	out := parse(t, bareEdge+fmt.Sprintf(`
---
type: Dataplane
mesh: default
name: api-1
networking: {address: 10.0.0.2, inbound: [{port: 80, tags: {kuma.io/service: api, kuma.io/protocol: http}}]}
---
type: Secret
mesh: default
name: c
data: %q
---
type: MeshGateway
mesh: default
name: edge
selectors: [{match: {kuma.io/service: edge}}]
conf:
  listeners:
    - {port: 443, protocol: HTTPS, tls: {mode: TERMINATE, certificates: [{secret: c}]}}
    - {port: 443, protocol: HTTPS, hostname: lost.example.com, tls: {mode: TERMINATE, certificates: [{secret: none}]}}
---
type: MeshGatewayRoute
mesh: default
name: all
selectors: [{match: {kuma.io/service: edge}}]
conf: {http: {rules: [{matches: [{path: {match: PREFIX, value: /}}], backends: [{weight: 1, destination: {kuma.io/service: api}}]}]}}
`, base64.StdEncoding.EncodeToString(slices.Concat(cert, key)))).output(t)
	for _, tt := range []struct{ sni, host, want string }{
		{"lost.example.com", "lost.example.com", "no filters"},
		{"other.example.com", "lost.example.com", "404"},
		{"other.example.com", "other.example.com", "api"},
	} {
		o, err := envoytest.New(messages(out)).Ask("edge:HTTPS:443", envoytest.Connection{TLS: true, ServerName: tt.sni, ALPN: []string{"h2"}},
			&envoytest.Request{Method: "GET", Host: tt.host, Path: "/"})
		if err != nil {
			t.Fatal(err)
		}
		if got := whereTo(o); got != tt.want {
			t.Errorf("server name %s, host %s: got %q, want %q", tt.sni, tt.host, got, tt.want)
		}
	}
}

// whereTo is the service that something goes to, the status that it is answered with, or why it is refused.
func whereTo(o envoytest.Outcome) string {
	if o.Answer != 0 {
		return fmt.Sprint(o.Answer)
	}
	for cluster := range o.Destinations {
		service, _, _ := strings.Cut(cluster, "-")
		return service
	}
	return o.Refused
}
