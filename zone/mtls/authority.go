package mtls

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/model"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

// ErrOff says that a mesh has no enabled backend.
var ErrOff = errors.New("mutual TLS is off")

// Lifetimes of proxies' certificates.
const (
	defaultLife = 24 * time.Hour
	// minLife keeps a mesh from having its proxies' certificates made anew all the time.
	minLife = 5 * time.Second
	// backdate is how far behind ours the clock of a verifier may be.
	backdate = 10 * time.Second
)

// maxCached bounds how many parsed authorities, and how many administration certificates, are kept. Beyond it others are
// thrown out, and cost their making again.
const maxCached = 10_000

// Options are what an [Authority] needs.
type Options struct {
	Config
	// Keys returns RSA keys, for proxies where KeyType asks for such; nil: they are made on the spot.
	Keys       func(ctx context.Context, bits int) (*rsa.PrivateKey, error)
	Now        func() time.Time      // nil: time.Now
	Registerer prometheus.Registerer // nil: metrics are not registered
	Log        *slog.Logger
}

// Authority signs for the meshes of a zone. It holds nothing that could not be had again from the meshes and their secrets,
// and is safe for concurrent use.
type Authority struct {
	keyType string
	keys    func(ctx context.Context, bits int) (*rsa.PrivateKey, error)
	now     func() time.Time
	log     *slog.Logger

	issued   prometheus.Counter
	failures *prometheus.CounterVec

	mu     sync.Mutex // guards what follows
	parsed map[[sha256.Size]byte]*authority
	roots  map[string]*Roots // the last of each mesh
	admin  map[adminKey]*AdminCertificate
}

// New returns an authority.
func New(o Options) (*Authority, error) {
	if err := errors.Join(o.Validate()...); err != nil {
		return nil, err
	}
	a := &Authority{
		keyType: o.KeyType, keys: o.Keys, now: o.Now, log: o.Log,
		issued: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "meridian", Subsystem: "mtls", Name: "certificates_issued_total", Help: "Certificates made for proxies.",
		}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "meridian", Subsystem: "mtls", Name: "failures_total",
			Help: "What could not be made, by what it was: identity, roots, admin.",
		}, []string{"what"}),
		parsed: make(map[[sha256.Size]byte]*authority), roots: make(map[string]*Roots), admin: make(map[adminKey]*AdminCertificate),
	}
	for _, what := range [...]string{whatIdentity, whatRoots, whatAdmin} {
		a.failures.WithLabelValues(what)
	}
	if a.now == nil {
		a.now = time.Now
	}
	if a.keys == nil {
		a.keys = func(_ context.Context, bits int) (*rsa.PrivateKey, error) { return rsa.GenerateKey(rand.Reader, bits) }
	}
	if o.Registerer != nil {
		for _, c := range [...]prometheus.Collector{a.issued, a.failures} {
			if err := o.Registerer.Register(c); err != nil {
				return nil, fmt.Errorf("register metrics: %w", err)
			}
		}
	}
	return a, nil
}

// The values of the label what.
const whatIdentity, whatRoots, whatAdmin = "identity", "roots", "admin"

// authority returns the parsed authority of a material.
func (a *Authority) authority(m material) (*authority, error) {
	sum := m.hash()
	a.mu.Lock()
	ca := a.parsed[sum]
	a.mu.Unlock()
	if ca != nil {
		return ca, nil
	}
	ca, err := parse(m)
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	makeRoom(a.parsed)
	a.parsed[sum] = ca
	return ca, nil
}

// makeRoom leaves m with room for one more.
func makeRoom[K comparable, V any](m map[K]V) {
	for k := range m {
		if len(m) < maxCached {
			return
		}
		delete(m, k)
	}
}

// Roots are the certificates of the authorities that the proxies of a mesh trust. They never change.
type Roots struct {
	// PEM are the certificates, each once, in an order that does not depend on that of the backends.
	PEM []byte
	// Hash is of the PEM.
	Hash string
	// Backends are the names of the backends they are of, in the order of the mesh's list: what an insight calls the
	// supported ones.
	Backends []string
	// Skipped says why other backends of the list are not trusted.
	Skipped []error

	ders [][]byte
	made [sha256.Size]byte // of what they were made from
}

// Roots returns the certificates of the authorities of all backends of a mesh. Equal content gives the same pointer.
//
// A zone may know a mesh before it knows its secrets. Without the certificate of the enabled backend the answer is an
// error: proxies that trust the wrong authorities are worse than proxies that wait. Of other backends it is left out, and
// named in Skipped and in the log. Without an enabled backend the error is [ErrOff].
func (a *Authority) Roots(mesh string, spec *meshv1.Mesh, secrets map[string][]byte) (*Roots, error) {
	enabled, err := enabledBackend(spec)
	if errors.Is(err, ErrOff) {
		return nil, err
	}
	if err == nil {
		var roots *Roots
		if roots, err = a.rootsOf(mesh, spec, enabled.GetName(), secrets); err == nil {
			return roots, nil
		}
	}
	a.failures.WithLabelValues(whatRoots).Inc()
	return nil, fmt.Errorf("trust of mesh %q: %w", mesh, err)
}

func (a *Authority) rootsOf(mesh string, spec *meshv1.Mesh, enabled string, secrets map[string][]byte) (*Roots, error) {
	roots, h := &Roots{}, sha256.New()
	for _, b := range spec.GetMtls().GetBackends() {
		var ca *authority
		m, err := load(mesh, b, secrets, trust)
		if err == nil {
			ca, err = a.authority(m)
		}
		_, _ = fmt.Fprintf(h, "%q %v ", b.GetName(), err)
		if err != nil {
			err = fmt.Errorf("backend %q: %w", b.GetName(), err)
			if b.GetName() == enabled {
				return nil, err
			}
			roots.Skipped = append(roots.Skipped, err)
			continue
		}
		roots.Backends = append(roots.Backends, b.GetName())
		for _, der := range ca.certs {
			sum := sha256.Sum256(der)
			_, _ = h.Write(sum[:])
		}
		roots.ders = append(roots.ders, ca.certs...)
	}
	roots.made = [sha256.Size]byte(h.Sum(nil))
	a.mu.Lock()
	if last := a.roots[mesh]; last != nil && last.made == roots.made {
		a.mu.Unlock()
		return last, nil
	}
	roots.encode()
	a.roots[mesh] = roots
	a.mu.Unlock()
	for _, err := range roots.Skipped {
		a.log.Warn("a backend of a mesh is not trusted", "mesh", mesh, "err", err)
	}
	return roots, nil
}

// encode writes the certificates out.
func (r *Roots) encode() {
	slices.SortFunc(r.ders, slices.Compare[[]byte])
	r.ders = slices.CompactFunc(r.ders, slices.Equal[[]byte])
	for _, der := range r.ders {
		r.PEM = append(r.PEM, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	sum := sha256.Sum256(r.PEM)
	r.Hash = hex.EncodeToString(sum[:])
}

// Merge returns the certificates of several meshes together: what a gateway that serves other meshes too trusts.
func Merge(all ...*Roots) *Roots {
	merged := &Roots{}
	for _, r := range all {
		merged.ders = append(merged.ders, r.ders...)
	}
	merged.encode()
	return merged
}

// Forget drops what is kept for a mesh that is gone.
func (a *Authority) Forget(mesh string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.roots, mesh)
}

// Issue makes a new key for a proxy, and a certificate of the mesh's enabled backend for it. Without an enabled backend the
// error is [ErrOff].
func (a *Authority) Issue(ctx context.Context, spec *meshv1.Mesh, secrets map[string][]byte, req IdentityRequest) (*Identity, error) {
	b, err := enabledBackend(spec)
	if errors.Is(err, ErrOff) {
		return nil, err
	}
	if err == nil {
		var id *Identity
		if id, err = a.issue(ctx, b, spec, secrets, req); err == nil {
			a.issued.Inc()
			return id, nil
		}
		err = fmt.Errorf("backend %q: %w", b.GetName(), err)
	}
	a.failures.WithLabelValues(whatIdentity).Inc()
	return nil, fmt.Errorf("identity in mesh %q: %w", req.Mesh, err)
}

func (a *Authority) issue(
	ctx context.Context, b *meshv1.CertificateAuthorityBackend, spec *meshv1.Mesh, secrets map[string][]byte, req IdentityRequest,
) (*Identity, error) {
	life, err := lifeOf(b)
	if err != nil {
		return nil, err
	}
	m, err := load(req.Mesh, b, secrets, sign)
	if err != nil {
		return nil, err
	}
	ca, err := a.authority(m)
	if err != nil {
		return nil, err
	}
	uris, odd, err := req.uris()
	if err != nil {
		return nil, err
	}
	if len(odd) > 0 {
		a.log.WarnContext(ctx, "tags of a proxy cannot be part of its certificate", "mesh", req.Mesh, "uris", odd)
	}
	key, err := a.newKey(ctx)
	if err != nil {
		return nil, err
	}
	now := a.now()
	leaf, err := ca.sign(key.Public(), &x509.Certificate{
		URIs:        uris,
		NotBefore:   now.Add(-backdate),
		NotAfter:    now.Add(life),
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment | x509.KeyUsageKeyAgreement,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, now)
	if err != nil {
		return nil, err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, err
	}
	id := &Identity{
		CertPEM: leaf.pem, KeyPEM: keyPEM,
		Backend: b.GetName(), Issued: now, NotAfter: leaf.notAfter,
		made: req.fingerprint(b, m),
	}
	// At most once a second, also when the authority's own end leaves less and less.
	id.RenewAt = now.Add(max(leaf.notAfter.Sub(now)*4/5, time.Second))
	id.Supported = a.supported(spec, secrets, req.Mesh)
	return id, nil
}

// supported returns the names of the backends that the proxies of a mesh trust.
func (a *Authority) supported(spec *meshv1.Mesh, secrets map[string][]byte, mesh string) []string {
	var names []string
	for _, b := range spec.GetMtls().GetBackends() {
		m, err := load(mesh, b, secrets, trust)
		if err == nil {
			_, err = a.authority(m)
		}
		if err == nil {
			names = append(names, b.GetName())
		}
	}
	return names
}

// lifeOf returns how long certificates of a backend are valid. What it may say is judged by package validate.
func lifeOf(b *meshv1.CertificateAuthorityBackend) (time.Duration, error) {
	text := b.GetDpCert().GetRotation().GetExpiration()
	if text == "" {
		return defaultLife, nil
	}
	d, err := model.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("read dpCert.rotation.expiration: %w", err)
	}
	if d == 0 {
		return defaultLife, nil
	}
	return max(time.Duration(d), minLife), nil
}

func (a *Authority) newKey(ctx context.Context) (crypto.Signer, error) {
	if a.keyType == RSA2048 {
		key, err := a.keys(ctx, 2048)
		if err != nil {
			return nil, fmt.Errorf("make a key: %w", err)
		}
		return key, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return key, nil
}

func encodeKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode the key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// signed is a certificate and those that lead from it to a root.
type signed struct {
	pem      []byte
	notAfter time.Time
}

// sign makes the certificate that template describes. It ends with the authority at the latest. Without a serial number it
// gets a random one of 128 bits.
func (ca *authority) sign(pub crypto.PublicKey, template *x509.Certificate, now time.Time) (signed, error) {
	if end := ca.cert.NotAfter; template.NotAfter.After(end) {
		template.NotAfter = end
	}
	template.NotAfter = template.NotAfter.UTC().Truncate(time.Second) // a certificate has no fractions
	if !template.NotAfter.After(now) {
		return signed{}, fmt.Errorf("the certificate of the authority ended at %s", ca.cert.NotAfter.UTC().Format(time.RFC3339))
	}
	if template.SerialNumber == nil {
		var b [16]byte
		_, _ = rand.Read(b[:]) // never fails
		template.SerialNumber = new(big.Int).SetBytes(b[:])
	}
	template.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, pub, ca.key)
	if err != nil {
		return signed{}, fmt.Errorf("sign a certificate: %w", err)
	}
	encoded := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return signed{pem: append(encoded, ca.chain...), notAfter: template.NotAfter}, nil
}

// uri parses what is to stand in a certificate, so that every peer can read the certificate: Go's library, which proxies
// without Envoy use, refuses all of it for one name that it does not understand.
func uri(text string) (*url.URL, bool) {
	u, err := url.Parse(text)
	if err != nil || u.String() != text {
		return nil, false
	}
	if u.Host != "" && slices.Contains(strings.Split(u.Host, "."), "") {
		return nil, false
	}
	for i := range len(text) {
		if text[i] <= ' ' || text[i] > '~' {
			return nil, false
		}
	}
	return u, true
}
