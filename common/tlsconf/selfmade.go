package tlsconf

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/meridian-mesh/meridian/common/atomicfile"
)

const (
	caLife   = 10 * 365 * 24 * time.Hour
	leafLife = 365 * 24 * time.Hour
	// renewBefore is how long before its end a server certificate is replaced; an authority, leafLife before its own.
	renewBefore = leafLife / 3
	// backdate allows for clocks that are behind ours.
	backdate = time.Hour
)

// TrustDir is the directory inside the data directory with the certificates of our authorities. It holds nothing
// secret: copy or mount it where clients need to trust us.
const TrustDir = "trust"

// LoadOrCreate serves a certificate that an authority of our own issued, making first whatever is missing:
//
//	<dir>/trust/<name>-ca.crt   the authority: what clients need, world-readable
//	<dir>/<name>-ca.key         its key, ECDSA P-256, mode 0600
//	<dir>/<name>.crt, .key      the server's certificate and key, mode 0600
//
// The certificate is valid for this host's name, localhost, every address of the host, and hosts (further names and IP
// addresses). It is kept across restarts, and replaced when those names changed or a third of its year is left, also
// while it is served. The authority's certificate lives for ten years and is replaced in the last, with the same key, so
// that clients which hold the earlier one still trust us. Files appear whole or not at all. An authority whose key was
// lost or damaged is an error that names the file as soon as the key is needed, never silently another authority.
//
// The second result is the authority's certificate in PEM.
func LoadOrCreate(dir, name string, hosts ...string) (*tls.Config, []byte, error) {
	names, err := localNames(hosts)
	if err != nil {
		return nil, nil, fmt.Errorf("self-made certificate: %w", err)
	}
	i := &issuer{dir: dir, name: name, names: names}
	i.mu.Lock()
	defer i.mu.Unlock()
	if _, err := i.ensureLocked(time.Now()); err != nil {
		return nil, nil, fmt.Errorf("self-made certificate: %w", err)
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: i.certificate}, i.caPEM, nil
}

// names are the subjects of a certificate, each list sorted and without repeats.
type names struct {
	dns []string
	ips []string
}

func localNames(hosts []string) (names, error) {
	dns, ips := []string{"localhost"}, []string{"127.0.0.1", "::1"}
	if host, err := os.Hostname(); err == nil {
		hosts = append(slices.Clone(hosts), host)
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return names{}, fmt.Errorf("list addresses of this host: %w", err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			ips = append(ips, n.IP.String())
		}
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			ips = append(ips, ip.String())
		} else if h != "" {
			dns = append(dns, strings.ToLower(h))
		}
	}
	return names{unique(dns), unique(ips)}, nil
}

func unique(list []string) []string {
	slices.Sort(list)
	return slices.Compact(list)
}

func namesOf(cert *x509.Certificate) names {
	ips := make([]string, 0, len(cert.IPAddresses))
	for _, ip := range cert.IPAddresses {
		ips = append(ips, ip.String())
	}
	return names{unique(slices.Clone(cert.DNSNames)), unique(ips)}
}

func (n names) equal(o names) bool { return slices.Equal(n.dns, o.dns) && slices.Equal(n.ips, o.ips) }

// issuer keeps one authority and the server certificate it issued.
type issuer struct {
	dir, name string
	names     names

	mu     sync.Mutex // guards what follows, and the files
	caPEM  []byte
	served *tls.Certificate
	renew  time.Time
}

func (i *issuer) caCertFile() string { return filepath.Join(i.dir, TrustDir, i.name+"-ca.crt") }
func (i *issuer) caKeyFile() string  { return filepath.Join(i.dir, i.name+"-ca.key") }
func (i *issuer) certFile() string   { return filepath.Join(i.dir, i.name+".crt") }
func (i *issuer) keyFile() string    { return filepath.Join(i.dir, i.name+".key") }

// certificate serves handshakes. A renewal that fails leaves the certificate that is there, until it has expired.
func (i *issuer) certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	now := time.Now()
	if now.Before(i.renew) {
		return i.served, nil
	}
	cert, err := i.ensureLocked(now)
	if err != nil && now.Before(i.served.Leaf.NotAfter) {
		return i.served, nil
	}
	return cert, err
}

func (i *issuer) ensureLocked(now time.Time) (*tls.Certificate, error) {
	ca, err := i.ensureCA(now)
	if err != nil {
		return nil, err
	}
	cert, err := i.loadLeaf()
	if err != nil || !i.usable(cert.Leaf, ca, now) {
		// Whatever is wrong with the server's own certificate, the authority can issue another.
		if cert, err = i.issue(ca, now); err != nil {
			return nil, err
		}
	}
	i.served, i.renew = cert, cert.Leaf.NotAfter.Add(-renewBefore)
	return cert, nil
}

func (i *issuer) usable(leaf, ca *x509.Certificate, now time.Time) bool {
	return leaf.CheckSignatureFrom(ca) == nil && now.Before(leaf.NotAfter.Add(-renewBefore)) && !now.Before(leaf.NotBefore) &&
		i.names.equal(namesOf(leaf))
}

// ensureCA returns the authority, with i.caPEM set. The key is written before the certificate, so that a certificate
// without a key means that the key was lost, and a key without a certificate that it may be used for a new one.
func (i *issuer) ensureCA(now time.Time) (*x509.Certificate, error) {
	content, err := os.ReadFile(i.caCertFile())
	exists := !errors.Is(err, fs.ErrNotExist)
	if exists {
		if err != nil {
			return nil, fmt.Errorf("read authority: %w", err)
		}
		ca, err := parseCertificate(content)
		if err != nil {
			return nil, fmt.Errorf("read authority %s: %w", i.caCertFile(), err)
		}
		if now.Before(ca.NotAfter.Add(-leafLife)) {
			i.caPEM = content
			return ca, nil
		}
	}
	// The key stays the same when there is one: whoever trusts an earlier certificate of the authority can go on
	// trusting it.
	key, err := i.loadCAKey()
	if errors.Is(err, fs.ErrNotExist) && !exists {
		key, err = i.createCAKey()
	}
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "Meridian " + i.name + " CA", Organization: []string{"Meridian"}},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(caLife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		MaxPathLenZero:        true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	ca, certPEM, err := sign(template, template, key, key)
	if err != nil {
		return nil, err
	}
	if err := atomicfile.Write(i.caCertFile(), certPEM, 0o644, 0o755); err != nil {
		return nil, err
	}
	i.caPEM = certPEM
	return ca, nil
}

func (i *issuer) loadCAKey() (*ecdsa.PrivateKey, error) {
	content, err := os.ReadFile(i.caKeyFile())
	if err != nil {
		return nil, fmt.Errorf("read key of the authority: %w", err)
	}
	block, _ := pem.Decode(content)
	if block == nil {
		return nil, fmt.Errorf("read key of the authority: %s is not in PEM", i.caKeyFile())
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read key of the authority %s: %w", i.caKeyFile(), err)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("read key of the authority: %s is a %T, not an ECDSA key", i.caKeyFile(), key)
	}
	return ec, nil
}

func (i *issuer) createCAKey() (*ecdsa.PrivateKey, error) {
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, err
	}
	return key, atomicfile.Write(i.caKeyFile(), keyPEM, 0o600, 0o700)
}

func (i *issuer) issue(ca *x509.Certificate, now time.Time) (*tls.Certificate, error) {
	caKey, err := i.loadCAKey()
	if err != nil {
		return nil, err
	}
	if !caKey.PublicKey.Equal(ca.PublicKey) {
		return nil, fmt.Errorf("key %s does not belong to authority %s", i.caKeyFile(), i.caCertFile())
	}
	key, keyPEM, err := newKey()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "Meridian " + i.name, Organization: []string{"Meridian"}},
		NotBefore:   now.Add(-backdate),
		NotAfter:    now.Add(leafLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    i.names.dns,
	}
	for _, ip := range i.names.ips {
		template.IPAddresses = append(template.IPAddresses, net.ParseIP(ip))
	}
	leaf, certPEM, err := sign(template, ca, key, caKey)
	if err != nil {
		return nil, err
	}
	// A crash between the two leaves a pair that does not fit together, which the next start replaces.
	if err := atomicfile.Write(i.keyFile(), keyPEM, 0o600, 0o700); err != nil {
		return nil, err
	}
	if err := atomicfile.Write(i.certFile(), certPEM, 0o600, 0o700); err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}, nil
}

func (i *issuer) loadLeaf() (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(i.certFile(), i.keyFile())
	if err != nil {
		return nil, fmt.Errorf("read server certificate: %w", err)
	}
	return &pair, nil
}

func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode key: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func sign(template, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) (*x509.Certificate, []byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, nil, fmt.Errorf("make serial number: %w", err)
	}
	template.SerialNumber = serial
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		return nil, nil, fmt.Errorf("sign certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, fmt.Errorf("read back certificate: %w", err)
	}
	return cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

func parseCertificate(content []byte) (*x509.Certificate, error) {
	block, _ := pem.Decode(content)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("not a certificate in PEM")
	}
	return x509.ParseCertificate(block.Bytes)
}
