package defaults

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meridian-mesh/meridian/common/store"
)

// Source returns a new RSA key of a size in bits. It is safe for concurrent use.
type Source func(ctx context.Context, bits int) (*rsa.PrivateKey, error)

// Need is a secret whose content takes too long to make where a batch is decided.
type Need struct {
	secret store.Key // of a pair, the certificate's
	bits   int
	ca     authority // zero: a key alone
	signer signer    // not zero: the administrator's token, signed with this key
}

// signer is a signing key and its number.
type signer struct {
	pem string
	n   int
}

// authority is what a certificate authority says about itself.
type authority struct {
	commonName string
	mesh       string // the mesh it vouches for; empty: none
	life       time.Duration
}

// String names the secret.
func (n Need) String() string { return n.secret.String() }

// Material is what was made for needs.
type Material map[Need]material

// material is a key, with a certificate where one was needed, both in PEM; or else a token.
type material struct{ cert, key, token []byte }

// Add makes what is needed and not there yet, side by side. What could be made is kept also when something else could not.
func (m Material) Add(ctx context.Context, keys Source, needs []Need) error {
	absent := make([]Need, 0, len(needs))
	for _, n := range needs {
		if _, ok := m[n]; !ok {
			absent = append(absent, n)
		}
	}
	made := make([]*material, len(absent)) // each goroutine has its own; nil where it failed
	g, ctx := errgroup.WithContext(ctx)
	for i, n := range absent {
		g.Go(func() error {
			one, err := n.make(ctx, keys)
			if err != nil {
				return fmt.Errorf("make %s: %w", n, err)
			}
			made[i] = &one
			return nil
		})
	}
	err := g.Wait()
	for i, one := range made {
		if one != nil {
			m[absent[i]] = *one
		}
	}
	return err
}

func (n Need) make(ctx context.Context, keys Source) (material, error) {
	if n.signer != (signer{}) {
		token, err := adminToken(n.signer)
		return material{token: token}, err
	}
	key, err := keys(ctx, n.bits)
	if err != nil {
		return material{}, err
	}
	made := material{key: pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})}
	if n.ca != (authority{}) {
		made.cert, err = n.ca.certificate(key, time.Now())
	}
	return made, err
}

// clockSkew is how far behind ours the clock of a verifier may be when an authority is new.
const clockSkew = time.Minute

// certificate returns the PEM of a self-signed certificate.
func (a authority) certificate(key *rsa.PrivateKey, now time.Time) ([]byte, error) {
	template := &x509.Certificate{
		Subject:               pkix.Name{Organization: []string{"Kuma"}, OrganizationalUnit: []string{"Mesh"}, CommonName: a.commonName},
		NotBefore:             now.Add(-clockSkew),
		NotAfter:              now.Add(a.life),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	if a.mesh != "" {
		template.URIs = []*url.URL{{Scheme: "spiffe", Host: a.mesh}}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate: %w", err)
	}
	if _, err := x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("certificate is not usable: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}

// missing ends an update that lacks material.
type missing struct{ needs []Need }

func (m *missing) Error() string { return fmt.Sprintf("key material is missing: %v", m.needs) }

// Commit commits the batch that plan returns for the head, as [store.Store.Update] does. What plan says it still needs
// is made between the tries and added to m; needs is what is known to be needed before the first. plan must read m,
// and ask for nothing that is in it.
func Commit(
	ctx context.Context, st *store.Store, keys Source, m Material, needs []Need,
	plan func(head *store.Snapshot) ([]store.Op, []Need, error),
) (store.Revision, error) {
	for {
		if err := m.Add(ctx, keys, needs); err != nil {
			return 0, err
		}
		rev, err := st.Update(ctx, func(head *store.Snapshot) ([]store.Op, error) {
			ops, needs, err := plan(head)
			if err == nil && len(needs) > 0 {
				err = &missing{needs}
			}
			return ops, err
		})
		short, ok := errors.AsType[*missing](err)
		if !ok {
			return rev, err
		}
		needs = short.needs
	}
}
