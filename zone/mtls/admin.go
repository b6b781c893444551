package mtls

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"time"
)

// AdminSecret is the name of the global secret with the authority of the administration ports of a zone.
const AdminSecret = "envoy-admin-ca"

// AdminClientName is the name that a control plane has where it asks proxies.
const AdminClientName = "kuma-cp"

// AdminCertificate is a certificate of a proxy's administration port. It never changes. It prints without the key.
type AdminCertificate struct {
	CertPEM, KeyPEM []byte
	// CAPEM is the authority that clients of the port, and the port itself, are verified by.
	CAPEM    []byte
	NotAfter time.Time

	ca *authority
}

// String tells of the certificate without its key.
func (c AdminCertificate) String() string {
	return "admin certificate until " + c.NotAfter.UTC().Format(time.RFC3339)
}

// Format is String for every verb.
func (c AdminCertificate) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(c.String())) }

// LogValue is String.
func (c AdminCertificate) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalJSON is String.
func (c AdminCertificate) MarshalJSON() ([]byte, error) {
	return fmt.Appendf(nil, "%q", c.String()), nil
}

type adminKey struct {
	ca   [sha256.Size]byte
	name string // of the proxy's address; "": the control plane's
}

// AdminServer returns the certificate of the administration port of the proxy with an address, an IP address or a host
// name. ca is the content of [AdminSecret].
//
// The certificate is part of a listener, and a listener that changes cuts the connections it has. So it only changes with the
// authority, which it is as old as and ends with, and not when a control plane starts again or another one answers: key and
// serial number follow from the authority's key, which whoever knows could make any certificate with anyway. (That holds for
// authorities with RSA keys, which the planes make. With another kind the signature differs from process to process.)
func (a *Authority) AdminServer(ca []byte, address string) (*AdminCertificate, error) {
	if address == "" {
		a.failures.WithLabelValues(whatAdmin).Inc()
		return nil, errors.New("admin certificate: no address")
	}
	template := &x509.Certificate{
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if ip := net.ParseIP(address); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{address}
	}
	c, err := a.adminCertificate(ca, address, template)
	if err != nil {
		a.failures.WithLabelValues(whatAdmin).Inc()
		return nil, fmt.Errorf("admin certificate of %s: %w", address, err)
	}
	return c, nil
}

// AdminClient returns the TLS configuration with which the control plane asks proxies at their administration ports. The
// caller may change it.
func (a *Authority) AdminClient(ca []byte) (*tls.Config, error) {
	c, err := a.adminCertificate(ca, "", &x509.Certificate{
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		DNSNames:    []string{AdminClientName},
	})
	if err != nil {
		a.failures.WithLabelValues(whatAdmin).Inc()
		return nil, fmt.Errorf("certificate for asking proxies: %w", err)
	}
	pair, err := tls.X509KeyPair(c.CertPEM, c.KeyPEM)
	if err != nil {
		return nil, fmt.Errorf("certificate for asking proxies: %w", err)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{pair}, RootCAs: c.ca.pool, MinVersion: tls.VersionTLS12,
	}, nil
}

func (a *Authority) adminCertificate(caPEM []byte, name string, template *x509.Certificate) (*AdminCertificate, error) {
	if len(caPEM) == 0 {
		return nil, fmt.Errorf("global secret %q is not there (yet)", AdminSecret)
	}
	if len(caPEM) > maxCertBytes {
		return nil, fmt.Errorf("global secret %q is longer than %d bytes", AdminSecret, maxCertBytes)
	}
	now := a.now()
	key := adminKey{ca: sha256.Sum256(caPEM), name: name}
	a.mu.Lock()
	c := a.admin[key]
	a.mu.Unlock()
	if c != nil && now.Before(c.NotAfter) {
		return c, nil
	}
	ca, err := a.authority(material{cert: caPEM, key: caPEM}) // either is found among the other's blocks
	if err != nil {
		return nil, err
	}
	priv, serial, err := ca.derive(name)
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	template.NotBefore, template.NotAfter = ca.cert.NotBefore, ca.cert.NotAfter
	leaf, err := ca.sign(priv.Public(), template, now)
	if err != nil {
		return nil, err
	}
	keyPEM, err := encodeKey(priv)
	if err != nil {
		return nil, err
	}
	c = &AdminCertificate{CertPEM: leaf.pem, KeyPEM: keyPEM, NotAfter: leaf.notAfter, ca: ca}
	for _, der := range ca.certs {
		c.CAPEM = append(c.CAPEM, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if other := a.admin[key]; other != nil && now.Before(other.NotAfter) {
		return other, nil // made meanwhile; the first one counts
	}
	makeRoom(a.admin)
	a.admin[key] = c
	return c, nil
}

// derive returns the key and serial number of the certificate with a name.
func (ca *authority) derive(name string) (*ecdsa.PrivateKey, *big.Int, error) {
	secret, err := x509.MarshalPKCS8PrivateKey(ca.key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode the authority's key: %w", err)
	}
	// A candidate is too large to be a key once in four billion times.
	for try := range 8 {
		out, err := hkdf.Key(sha256.New, secret, ca.cert.Raw, fmt.Sprintf("meridian admin certificate %d %q", try, name), 32+16)
		if err != nil {
			return nil, nil, fmt.Errorf("derive a key: %w", err)
		}
		if key, err := ecdsa.ParseRawPrivateKey(elliptic.P256(), out[:32]); err == nil {
			return key, new(big.Int).SetBytes(out[32:]), nil
		}
	}
	return nil, nil, errors.New("derive a key: no candidate is one")
}
