package peers

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"sync"
	"time"

	"github.com/meridian-mesh/meridian/common/store"
)

// authorityKey is the record with the plane's authority for calls, certificate and key in PEM: bookkeeping, never served nor sent.
var authorityKey = store.Key{Type: "PeerAuthority", Name: "peers"}

const (
	leafLife = time.Hour
	// renewBefore is how long before its end a certificate is replaced.
	renewBefore = leafLife / 2
	// backdate is how far behind ours the clock of another replica may be.
	backdate = time.Hour
)

// noEnd is the end of what does not expire (RFC 5280, 4.1.2.5): the authority lives as long as the store that it is in.
var noEnd = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

// authority signs the certificates of a plane's replicas, and tells them from others.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// identity is who this replica is to the others, by the authority that is in the store at this moment. Safe for concurrent use.
type identity struct {
	// Set by New, read-only after.
	name  string
	store *store.Store
	now   func() time.Time

	mu   sync.Mutex // guards what follows
	leaf *tls.Certificate
	ca   []byte // record of the authority that signed leaf
}

// ensureAuthority makes the plane's authority, unless there is one. Of replicas that do so at once, one makes it.
func (i *identity) ensureAuthority(ctx context.Context) error {
	if _, ok := i.store.Snapshot().Get(authorityKey); ok {
		return nil
	}
	spec, err := newAuthority()
	if err != nil {
		return err
	}
	_, err = i.store.Update(ctx, func(head *store.Snapshot) ([]store.Op, error) {
		if _, ok := head.Get(authorityKey); ok {
			return nil, nil
		}
		return []store.Op{store.Put(&store.Record{Key: authorityKey, Spec: spec})}, nil
	})
	return err
}

func newAuthority() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "Meridian replicas"}, NotBefore: time.Now().Add(-backdate), NotAfter: noEnd,
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})...), nil
}

// authority returns the one in the store, and its record.
func (i *identity) authority() (*authority, []byte, error) {
	rec, ok := i.store.Snapshot().Get(authorityKey)
	if !ok {
		return nil, nil, errors.New("the store has no authority for replicas yet")
	}
	pair, err := tls.X509KeyPair(rec.Spec, rec.Spec)
	if err != nil { // tls names what is missing, not what is there
		return nil, nil, fmt.Errorf("the authority for replicas in the store cannot be read: %w", err)
	}
	key, ok := pair.PrivateKey.(crypto.Signer)
	if !ok {
		return nil, nil, errors.New("the authority for replicas in the store has no key that signs")
	}
	return &authority{pair.Leaf, key}, rec.Spec, nil
}

// certificate returns the certificate of this replica.
func (i *identity) certificate() (*tls.Certificate, error) {
	ca, spec, err := i.authority()
	if err != nil {
		return nil, err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	now := i.now()
	if i.leaf == nil || !bytes.Equal(spec, i.ca) || !now.Before(i.leaf.Leaf.NotAfter.Add(-renewBefore)) {
		leaf, err := ca.issue(i.name, now)
		if err != nil {
			return nil, err
		}
		i.leaf, i.ca = leaf, spec
	}
	return i.leaf, nil
}

func (a *authority) issue(instance string, now time.Time) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		URIs: []*url.URL{nameOf(instance)}, NotBefore: now.Add(-backdate), NotAfter: now.Add(leafLife), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}, a.cert, key.Public(), a.key)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, nil
}

// nameOf is an instance in a certificate. Instance ids need not be DNS names.
func nameOf(instance string) *url.URL {
	return &url.URL{Scheme: "meridian", Path: "/instances/" + instance}
}

// verify returns an error unless the other end is a replica of this plane, and the named one where instance is not empty.
func (i *identity) verify(state tls.ConnectionState, usage x509.ExtKeyUsage, instance string) error {
	ca, _, err := i.authority()
	if err != nil {
		return err
	}
	if len(state.PeerCertificates) == 0 {
		return errors.New("it shows no certificate")
	}
	leaf, roots := state.PeerCertificates[0], x509.NewCertPool()
	roots.AddCert(ca.cert)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: i.now(), KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
		return fmt.Errorf("it is no replica of this plane: %w", err)
	}
	if len(leaf.URIs) != 1 {
		return errors.New("its certificate names no instance")
	}
	if got := leaf.URIs[0].String(); instance != "" && got != nameOf(instance).String() {
		return fmt.Errorf("another instance answers at its address: %s", got)
	}
	return nil
}

// server returns what this replica accepts connections with.
func (i *identity) server() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}, ClientAuth: tls.RequireAnyClientCert,
		// A resumed session would be judged by the authority of its beginning.
		SessionTicketsDisabled: true,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return i.certificate() },
		VerifyConnection: func(state tls.ConnectionState) error {
			return i.verify(state, x509.ExtKeyUsageClientAuth, "")
		},
	}
}

// client returns what this replica connects to an instance with.
func (i *identity) client(instance string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"},
		InsecureSkipVerify:   true, // VerifyConnection does: by the authority in the store, and the name that is no host's
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return i.certificate() },
		VerifyConnection: func(state tls.ConnectionState) error {
			return i.verify(state, x509.ExtKeyUsageServerAuth, instance)
		},
	}
}
