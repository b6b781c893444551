package mtls

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/protobuf/proto"

	"github.com/meridian-mesh/meridian/api/defaults"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/common/rsakeys"
	"github.com/meridian-mesh/meridian/common/store"
)

var backendTags = map[string][]string{
	"kuma.io/service": {"web", "backend"}, "version": {"2", "1"}, "kuma.io/protocol": {"http"}, "kuma.io/zone": {"east"},
}

// TestACertificateOfAProxy compares a certificate with what Kuma's data plane protocol says of it, item by item.
func TestACertificateOfAProxy(t *testing.T) {
	ca := newCA(t, "demo", nil, nil)
	s := builtin(map[string]*pair{"ca-1": ca}, "ca-1")
	a := newAuthority(t, Options{})
	id := s.issue(t, a, backendTags)
	c := leaf(t, id.CertPEM)

	var uris []string
	for _, u := range c.URIs {
		uris = append(uris, u.String())
	}
	if diff := cmp.Diff([]string{
		"spiffe://demo/backend", "spiffe://demo/web",
		"kuma://kuma.io/protocol/http", "kuma://kuma.io/service/backend", "kuma://kuma.io/service/web", "kuma://kuma.io/zone/east",
		"kuma://version/1", "kuma://version/2",
	}, uris); diff != "" {
		t.Errorf("names: -want +got:\n%s", diff)
	}
	if len(c.DNSNames)+len(c.IPAddresses)+len(c.EmailAddresses) > 0 {
		t.Error("there are names that are not URIs")
	}
	if len(c.Subject.Names) > 0 {
		t.Errorf("the subject is %s", c.Subject)
	}
	critical := map[string]bool{}
	for _, e := range c.Extensions {
		critical[e.Id.String()] = e.Critical
	}
	if !critical[asn1.ObjectIdentifier{2, 5, 29, 17}.String()] {
		t.Error("the names are not critical, though there is no subject")
	}
	if want := x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageKeyAgreement; c.KeyUsage != want {
		t.Errorf("key usage %b, not %b", c.KeyUsage, want)
	}
	if diff := cmp.Diff([]x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}, c.ExtKeyUsage); diff != "" {
		t.Errorf("extended key usage:\n%s", diff)
	}
	if c.IsCA || !c.BasicConstraintsValid {
		t.Error("it does not say that it is no authority's")
	}
	if want := noon.Add(-10 * time.Second).Truncate(time.Second); !c.NotBefore.Equal(want) {
		t.Errorf("valid from %s, not %s", c.NotBefore, want)
	}
	if want := noon.Add(24 * time.Hour).Truncate(time.Second); !c.NotAfter.Equal(want) || !id.NotAfter.Equal(want) {
		t.Errorf("valid to %s (%s), not %s", c.NotAfter, id.NotAfter, want)
	}
	if key, ok := c.PublicKey.(*ecdsa.PublicKey); !ok || key.Curve != elliptic.P256() {
		t.Errorf("the key is a %T", c.PublicKey)
	}
	if err := c.CheckSignatureFrom(ca.parsed); err != nil {
		t.Error(err)
	}
	if _, err := tls.X509KeyPair(id.CertPEM, id.KeyPEM); err != nil {
		t.Error(err)
	}
	if other := leaf(t, s.issue(t, a, backendTags).CertPEM); other.SerialNumber.Cmp(c.SerialNumber) == 0 || c.SerialNumber.BitLen() < 64 {
		t.Errorf("serial numbers %x and %x", c.SerialNumber, other.SerialNumber)
	}
	if id.Backend != "ca-1" || !cmp.Equal(id.Supported, []string{"ca-1"}) || !id.Issued.Equal(noon) {
		t.Errorf("%s, %s, %s", id.Backend, id.Supported, id.Issued)
	}
	if life := id.RenewAt.Sub(noon); (life - 24*time.Hour*4/5).Abs() > time.Second {
		t.Errorf("renewed after %s", life)
	}
}

func TestKeysAreRSAWhereAskedFor(t *testing.T) {
	s := builtin(map[string]*pair{"ca-1": newCA(t, "demo", nil, nil)}, "ca-1")
	a := newAuthority(t, Options{Config: Config{KeyType: RSA2048}, Keys: rsakeys.NewPool(1).Key})
	id := s.issue(t, a, backendTags)
	if key, ok := leaf(t, id.CertPEM).PublicKey.(*rsa.PublicKey); !ok || key.N.BitLen() != 2048 {
		t.Error("the key is not an RSA key of 2048 bits")
	}
	if _, err := tls.X509KeyPair(id.CertPEM, id.KeyPEM); err != nil {
		t.Error(err)
	}
}

func TestTheLifeOfACertificate(t *testing.T) {
	for name, tc := range map[string]struct {
		expiration  string
		left        time.Duration // of the authority; 0: ten years
		want, renew time.Duration // 0: an error
	}{
		"is a day":                                     {want: 24 * time.Hour, renew: 24 * time.Hour * 4 / 5},
		"is what the mesh says":                        {expiration: "2w", want: 14 * 24 * time.Hour, renew: 14 * 24 * time.Hour * 4 / 5},
		"may be minutes":                               {expiration: "10m", want: 10 * time.Minute, renew: 8 * time.Minute},
		"is a day where the mesh says zero":            {expiration: "0s", want: 24 * time.Hour, renew: 24 * time.Hour * 4 / 5},
		"is never so short that nothing else is done":  {expiration: "1ms", want: minLife, renew: minLife * 4 / 5},
		"ends with the authority":                      {left: time.Hour, want: time.Hour, renew: time.Hour * 4 / 5},
		"is renewed once a second at most":             {left: time.Second, want: time.Second, renew: time.Second},
		"cannot begin when the authority's is over":    {left: -time.Minute},
		"is not made up where the mesh cannot be read": {expiration: "soon"},
	} {
		t.Run(name, func(t *testing.T) {
			now := noon.Truncate(time.Second)
			ca := newCA(t, "demo", nil, func(c *x509.Certificate) {
				if tc.left != 0 {
					c.NotAfter = now.Add(tc.left)
				}
			})
			s := builtin(map[string]*pair{"ca-1": ca}, "ca-1")
			if tc.expiration != "" {
				s.spec.Mtls.Backends[0].DpCert = &meshv1.CertificateAuthorityBackend_DpCert{
					Rotation: &meshv1.CertificateAuthorityBackend_DpCert_Rotation{Expiration: tc.expiration},
				}
			}
			a := newAuthority(t, Options{Now: func() time.Time { return now }})
			id, err := a.Issue(t.Context(), s.spec, s.secrets, IdentityRequest{"demo", backendTags})
			if tc.want == 0 {
				if err == nil {
					t.Fatalf("it is %s", id)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := leaf(t, id.CertPEM).NotAfter.Sub(now); got != tc.want || !id.NotAfter.Equal(now.Add(tc.want)) {
				t.Errorf("valid for %s (%s), not %s", got, id.NotAfter, tc.want)
			}
			if got := id.RenewAt.Sub(now); got != tc.renew {
				t.Errorf("renewed after %s, not %s", got, tc.renew)
			}
		})
	}
}

func TestTagsOf(t *testing.T) {
	dp := &meshv1.Dataplane{Networking: &meshv1.Dataplane_Networking{
		Inbound: []*meshv1.Dataplane_Networking_Inbound{
			{Tags: map[string]string{"kuma.io/service": "web", "version": "2", "service": "kept"}},
			{Tags: map[string]string{"service": "old", "version": "1"}},
			{Tags: map[string]string{"kuma.io/service": "web", "version": "2"}},
		},
		Gateway: &meshv1.Dataplane_Networking_Gateway{Tags: map[string]string{"kuma.io/service": "edge"}},
	}}
	want := map[string][]string{"kuma.io/service": {"edge", "old", "web"}, "version": {"1", "2"}, "service": {"kept"}}
	if diff := cmp.Diff(want, TagsOf(dp)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestTagsThatNoCertificateCanHoldAreLeftOut(t *testing.T) {
	s := builtin(map[string]*pair{"ca-1": newCA(t, "demo", nil, nil)}, "ca-1")
	id := s.issue(t, newAuthority(t, Options{}), map[string][]string{
		"kuma.io/service": {"a:8080"}, "a..b": {"1"}, "a:b": {"1"}, "plain": {"ü", "x:y"},
	})
	var uris []string
	for _, u := range leaf(t, id.CertPEM).URIs { // which Go could not read otherwise
		uris = append(uris, u.String())
	}
	if diff := cmp.Diff([]string{"spiffe://demo/a:8080", "kuma://kuma.io/service/a:8080", "kuma://plain/x:y"}, uris); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestWhenAnIdentityFits(t *testing.T) {
	one, two := newCA(t, "demo", nil, nil), newCA(t, "demo", nil, nil)
	fresh := func() state { return builtin(map[string]*pair{"ca-1": one, "ca-2": two}, "ca-1") }
	a := newAuthority(t, Options{})
	id := fresh().issue(t, a, backendTags)
	for name, tc := range map[string]struct {
		change func(s *state, req *IdentityRequest)
		want   bool
	}{
		"as long as nothing changes":                    {func(*state, *IdentityRequest) {}, true},
		"when the values of a tag are in another order": {func(_ *state, r *IdentityRequest) { r.Tags["version"] = []string{"1", "2", "1"} }, true},
		"when a backend is added": {func(s *state, _ *IdentityRequest) {
			s.spec.Mtls.Backends = append(s.spec.Mtls.Backends, &meshv1.CertificateAuthorityBackend{Name: "ca-2", Type: "builtin"})
		}, true},
		"when the mode changes": {func(s *state, _ *IdentityRequest) {
			s.spec.Mtls.Backends[0].Mode = meshv1.CertificateAuthorityBackend_PERMISSIVE
		}, true},
		"not when another backend signs": {func(s *state, _ *IdentityRequest) {
			*s = builtin(map[string]*pair{"ca-1": one, "ca-2": two}, "ca-2", "ca-1")
		}, false},
		"not when the authority's content changes": {func(s *state, _ *IdentityRequest) {
			*s = builtin(map[string]*pair{"ca-1": two}, "ca-1")
		}, false},
		"not when the life changes": {func(s *state, _ *IdentityRequest) {
			s.spec.Mtls.Backends[0].DpCert = &meshv1.CertificateAuthorityBackend_DpCert{Rotation: &meshv1.CertificateAuthorityBackend_DpCert_Rotation{Expiration: "1h"}}
		}, false},
		"not when a tag changes":         {func(_ *state, r *IdentityRequest) { r.Tags["version"] = []string{"3"} }, false},
		"not when a tag goes":            {func(_ *state, r *IdentityRequest) { delete(r.Tags, "version") }, false},
		"not when mutual TLS is off":     {func(s *state, _ *IdentityRequest) { s.spec.Mtls.EnabledBackend = "" }, false},
		"not when the authority is gone": {func(s *state, _ *IdentityRequest) { clear(s.secrets) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := fresh()
			req := IdentityRequest{"demo", maps.Clone(backendTags)}
			tc.change(&s, &req)
			if got := id.Fits(s.spec, s.secrets, req); got != tc.want {
				t.Errorf("it fits: %t", got)
			}
		})
	}
	if (*Identity)(nil).Fits(fresh().spec, fresh().secrets, IdentityRequest{"demo", backendTags}) {
		t.Error("none fits")
	}
}

func TestWhatCannotBeMadeIsSaidAndCounted(t *testing.T) {
	ca := newCA(t, "demo", nil, nil)
	for name, tc := range map[string]struct {
		change func(s *state, req *IdentityRequest)
		want   string
	}{
		"the secret is not there yet": {
			func(s *state, _ *IdentityRequest) { delete(s.secrets, "demo.ca-builtin-key-ca-1") },
			`identity in mesh "demo": backend "ca-1": secret "demo.ca-builtin-key-ca-1" is not there (yet)`,
		},
		"the enabled backend is not listed": {
			func(s *state, _ *IdentityRequest) { s.spec.Mtls.EnabledBackend = "ca-9" }, `the enabled backend "ca-9" is not in the list`,
		},
		"there is no service": {func(_ *state, r *IdentityRequest) { r.Tags = map[string][]string{"version": {"1"}} }, "no service"},
		"the type is unknown": {func(s *state, _ *IdentityRequest) { s.spec.Mtls.Backends[0].Type = "vault" }, `type "vault" is not known`},
		"the pair does not match": {
			func(s *state, _ *IdentityRequest) {
				s.secrets["demo.ca-builtin-key-ca-1"] = newCA(t, "x", nil, nil).key
			}, "not a usable pair",
		},
		"it is no authority": {func(s *state, _ *IdentityRequest) {
			no := newCA(t, "x", nil, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = false, x509.KeyUsageDigitalSignature })
			s.secrets["demo.ca-builtin-cert-ca-1"], s.secrets["demo.ca-builtin-key-ca-1"] = no.cert, no.key
		}, "not that of an authority"},
	} {
		t.Run(name, func(t *testing.T) {
			reg := prometheus.NewPedanticRegistry()
			a := newAuthority(t, Options{Registerer: reg})
			s := builtin(map[string]*pair{"ca-1": ca}, "ca-1")
			req := IdentityRequest{"demo", backendTags}
			tc.change(&s, &req)
			if _, err := a.Issue(t.Context(), s.spec, s.secrets, req); err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("%v, not %s", err, tc.want)
			}
			const metrics = `
# HELP meridian_mtls_certificates_issued_total Certificates made for proxies.
# TYPE meridian_mtls_certificates_issued_total counter
meridian_mtls_certificates_issued_total 0
# HELP meridian_mtls_failures_total What could not be made, by what it was: identity, roots, admin.
# TYPE meridian_mtls_failures_total counter
meridian_mtls_failures_total{what="admin"} 0
meridian_mtls_failures_total{what="identity"} 1
meridian_mtls_failures_total{what="roots"} 0
`
			if err := testutil.GatherAndCompare(reg, strings.NewReader(metrics)); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("mutual TLS is off, which is no failure", func(t *testing.T) {
		a := newAuthority(t, Options{})
		_, err := a.Issue(t.Context(), &meshv1.Mesh{}, nil, IdentityRequest{"demo", backendTags})
		_, rootsErr := a.Roots("demo", &meshv1.Mesh{}, nil)
		if !errors.Is(err, ErrOff) || !errors.Is(rootsErr, ErrOff) || testutil.ToFloat64(a.failures.WithLabelValues(whatIdentity)) > 0 {
			t.Errorf("%v, %v", err, rootsErr)
		}
	})
}

func TestAnAuthorityCanBeProvided(t *testing.T) {
	root := newCA(t, "root", nil, nil)
	inter := newCA(t, "intermediate", root, nil)
	dir := t.TempDir()
	file := func(name string, content []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	chain := bytes.Join([][]byte{inter.cert, root.cert}, nil)
	for name, tc := range map[string]struct {
		cert, key map[string]any
		want      string // "": it can
	}{
		"by secrets": {cert: map[string]any{"secret": "c"}, key: map[string]any{"secret": "k"}},
		"inline": {
			cert: map[string]any{"inline": base64.StdEncoding.EncodeToString(chain)}, key: map[string]any{"inlineString": string(inter.key)},
		},
		"in files":            {cert: map[string]any{"file": file("c", chain)}, key: map[string]any{"file": file("k", inter.key)}},
		"not by a folder":     {cert: map[string]any{"file": dir}, key: map[string]any{"secret": "k"}, want: "is not a file"},
		"not by a huge file":  {cert: map[string]any{"file": file("huge", make([]byte, maxCertBytes+1))}, key: map[string]any{"secret": "k"}, want: "longer than"},
		"not by an empty one": {cert: map[string]any{"file": file("empty", nil)}, key: map[string]any{"secret": "k"}, want: "is empty"},
		"not by nothing":      {cert: map[string]any{}, key: map[string]any{"secret": "k"}, want: "conf.cert: is empty"},
		"not without a key":   {cert: map[string]any{"secret": "c"}, key: map[string]any{"secret": "other"}, want: `conf.key: secret "other" is not there (yet)`},
	} {
		t.Run(name, func(t *testing.T) {
			s := state{
				spec: &meshv1.Mesh{Mtls: &meshv1.Mesh_Mtls{EnabledBackend: "mine", Backends: []*meshv1.CertificateAuthorityBackend{{
					Name: "mine", Type: "provided", Conf: conf(t, map[string]any{"cert": tc.cert, "key": tc.key}),
				}}}},
				secrets: map[string][]byte{"c": chain, "k": inter.key},
			}
			a := newAuthority(t, Options{})
			id, err := a.Issue(t.Context(), s.spec, s.secrets, IdentityRequest{"demo", backendTags})
			if tc.want != "" {
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("%v, not %s", err, tc.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			// Who trusts the root alone is led to it.
			if err := handshake(t, peer{id: id, roots: root.cert}, peer{id: id, roots: root.cert}); err != nil {
				t.Error(err)
			}
			if n := strings.Count(string(s.roots(t, a).PEM), "BEGIN CERTIFICATE"); n != 2 {
				t.Errorf("%d certificates are trusted", n)
			}
		})
	}
}

func TestRootsOfAMesh(t *testing.T) {
	one, two := newCA(t, "one", nil, nil), newCA(t, "two", nil, nil)
	a := newAuthority(t, Options{})
	s := builtin(map[string]*pair{"ca-1": one, "ca-2": two}, "ca-1", "ca-2")
	delete(s.secrets, "demo.ca-builtin-key-ca-2") // only to sign with
	both := s.roots(t, a)
	if !cmp.Equal(both.Backends, []string{"ca-1", "ca-2"}) || len(both.Skipped) > 0 || strings.Count(string(both.PEM), "BEGIN") != 2 {
		t.Errorf("%v %v\n%s", both.Backends, both.Skipped, both.PEM)
	}
	if s.roots(t, a) != both {
		t.Error("the same is made again")
	}

	reversed := builtin(map[string]*pair{"ca-1": one, "ca-2": two}, "ca-2", "ca-1").roots(t, a)
	if reversed.Hash != both.Hash || !bytes.Equal(reversed.PEM, both.PEM) || !cmp.Equal(reversed.Backends, []string{"ca-2", "ca-1"}) {
		t.Errorf("the order of backends counts: %v", reversed.Backends)
	}

	delete(s.secrets, "demo.ca-builtin-cert-ca-2")
	first := s.roots(t, a)
	if !cmp.Equal(first.Backends, []string{"ca-1"}) || first.Hash == both.Hash || len(first.Skipped) != 1 ||
		first.Skipped[0].Error() != `backend "ca-2": secret "demo.ca-builtin-cert-ca-2" is not there (yet)` {
		t.Errorf("%v %v", first.Backends, first.Skipped)
	}

	delete(s.secrets, "demo.ca-builtin-cert-ca-1")
	if _, err := a.Roots("demo", s.spec, s.secrets); err == nil || !strings.Contains(err.Error(), `backend "ca-1": secret "demo.ca-builtin-cert-ca-1" is not there`) {
		t.Error(err)
	}
	if merged := Merge(both, first); merged.Hash != both.Hash {
		t.Error("a certificate is merged twice")
	}
	a.Forget("demo")
}

func TestWhatIsTrustedHasNoKeys(t *testing.T) {
	ca := newCA(t, "demo", nil, nil)
	s := builtin(map[string]*pair{"ca-1": ca}, "ca-1")
	s.secrets["demo.ca-builtin-cert-ca-1"] = append(bytes.Clone(ca.key), ca.cert...) // as some keep them
	if roots := s.roots(t, newAuthority(t, Options{})); bytes.Contains(roots.PEM, []byte("KEY")) || !bytes.Contains(roots.PEM, []byte("CERTIFICATE")) {
		t.Error("a key is among the certificates")
	}
}

func TestSecretsOfEnvoy(t *testing.T) {
	s := builtin(map[string]*pair{"ca-1": newCA(t, "demo", nil, nil)}, "ca-1")
	a := newAuthority(t, Options{})
	id, roots := s.issue(t, a, EgressTags()), s.roots(t, a)
	if got := leaf(t, id.CertPEM).URIs[0].String(); got != "spiffe://demo/zone-egress" {
		t.Error(got)
	}
	secret := IdentitySecret("demo", id)
	if secret.GetName() != "identity_cert:secret:demo" ||
		!bytes.Equal(secret.GetTlsCertificate().GetCertificateChain().GetInlineBytes(), id.CertPEM) ||
		!bytes.Equal(secret.GetTlsCertificate().GetPrivateKey().GetInlineBytes(), id.KeyPEM) {
		t.Error(secret.GetName())
	}
	ca, all := RootsSecret("demo", roots), AllRootsSecret(roots)
	if ca.GetName() != "mesh_ca:secret:demo" || all.GetName() != "mesh_ca:secret:all" ||
		!bytes.Equal(ca.GetValidationContext().GetTrustedCa().GetInlineBytes(), roots.PEM) || !proto.Equal(ca.GetValidationContext(), all.GetValidationContext()) {
		t.Error(ca)
	}
	if err := errors.Join(secret.ValidateAll(), ca.ValidateAll(), all.ValidateAll()); err != nil {
		t.Error(err)
	}
}

func TestNothingPrintsAKey(t *testing.T) {
	s := builtin(map[string]*pair{"ca-1": newCA(t, "demo", nil, nil)}, "ca-1")
	a := newAuthority(t, Options{})
	id := s.issue(t, a, backendTags)
	admin, err := a.AdminServer(adminCA(t), "192.0.2.1")
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(id.KeyPEM)
	adminBlock, _ := pem.Decode(admin.KeyPEM)
	for _, v := range []any{id, admin, *id, *admin} {
		var log bytes.Buffer
		slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "v", v)
		slog.New(slog.NewTextHandler(&log, nil)).Info("x", "v", v)
		encoded, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		printed := fmt.Sprintf("%v %+v %#v %s %x %s %s", v, v, v, v, v, encoded, log.String())
		for _, key := range [][]byte{block.Bytes, adminBlock.Bytes} {
			for _, form := range []string{"PRIVATE", base64.StdEncoding.EncodeToString(key[20:44]), fmt.Sprintf("%x", key[20:40]), strings.Trim(fmt.Sprintf("%d", key[20:40]), "[]")} {
				if strings.Contains(printed, form) {
					t.Errorf("%T prints a key", v)
				}
			}
		}
	}
}

// TestTheAuthoritiesOfTheGlobalAreUsable takes the secrets that a control plane makes, and not those of the tests.
func TestTheAuthoritiesOfTheGlobalAreUsable(t *testing.T) {
	spec := builtin(nil, "ca-1").spec
	m := defaults.Material{}
	w := defaults.MeshWrite{Name: "demo", Spec: spec, Now: time.Now()}
	nothing := storeView{}
	_, needs, err := w.Ops(nothing, m)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Add(t.Context(), rsakeys.NewPool(1).Key, needs); err != nil {
		t.Fatal(err)
	}
	ops, _, err := w.Ops(nothing, m)
	if err != nil {
		t.Fatal(err)
	}
	s := state{spec: spec, secrets: map[string][]byte{}}
	for _, op := range ops {
		var secret systemv1.Secret
		if err := proto.Unmarshal(op.Record.Spec, &secret); err != nil {
			t.Fatal(err)
		}
		s.secrets[op.Key.Name] = secret.GetData().GetValue()
	}
	a := newAuthority(t, Options{Now: time.Now})
	id, roots := s.issue(t, a, backendTags), s.roots(t, a)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(roots.PEM)
	if _, err := leaf(t, id.CertPEM).Verify(x509.VerifyOptions{Roots: pool}); err != nil {
		t.Error(err)
	}
}

// storeView is an empty state.
type storeView struct{}

func (storeView) Get(store.Key) (*store.Record, bool) { return nil, false }
func (storeView) List(string, string) iter.Seq[*store.Record] {
	return func(func(*store.Record) bool) {}
}
