package mtls

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/meridian-mesh/meridian/api/defaults"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	capb "github.com/meridian-mesh/meridian/api/kuma/plugins/ca"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
)

// The longest certificates and key of an authority that are looked at.
const maxCertBytes, maxKeyBytes = 256 << 10, 16 << 10

// enabledBackend returns the backend that signs.
func enabledBackend(spec *meshv1.Mesh) (*meshv1.CertificateAuthorityBackend, error) {
	name := spec.GetMtls().GetEnabledBackend()
	if name == "" {
		return nil, ErrOff
	}
	for _, b := range spec.GetMtls().GetBackends() {
		if b.GetName() == name {
			return b, nil
		}
	}
	return nil, fmt.Errorf("the enabled backend %q is not in the list", name)
}

// material is the PEM of an authority; without a key of one that is only trusted.
type material struct{ cert, key []byte }

// use is what material is wanted for.
type use uint8

const (
	trust use = iota
	sign
)

// load returns the material of a backend, to sign with or only to trust. Its errors name what is missing and never repeat
// what was read.
func load(mesh string, b *meshv1.CertificateAuthorityBackend, secrets map[string][]byte, to use) (material, error) {
	var m material
	switch b.GetType() {
	case "builtin":
		certName, keyName := defaults.BuiltinSecrets(mesh, b.GetName())
		if m.cert = secrets[certName]; len(m.cert) == 0 {
			return material{}, fmt.Errorf("secret %q is not there (yet)", certName)
		}
		if m.key = secrets[keyName]; to == sign && len(m.key) == 0 {
			return material{}, fmt.Errorf("secret %q is not there (yet)", keyName)
		}
	case "provided":
		encoded, err := b.GetConf().MarshalJSON()
		if err != nil {
			return material{}, errors.New("conf cannot be read")
		}
		var conf capb.ProvidedCertificateAuthorityConfig
		if (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(encoded, &conf) != nil {
			return material{}, errors.New("conf cannot be read") // the cause may repeat a key
		}
		if m.cert, err = read(conf.GetCert(), secrets, maxCertBytes); err != nil {
			return material{}, fmt.Errorf("conf.cert: %w", err)
		}
		if to == sign {
			if m.key, err = read(conf.GetKey(), secrets, maxKeyBytes); err != nil {
				return material{}, fmt.Errorf("conf.key: %w", err)
			}
		}
	default:
		return material{}, fmt.Errorf("type %q is not known", b.GetType())
	}
	if len(m.cert) > maxCertBytes || len(m.key) > maxKeyBytes {
		return material{}, fmt.Errorf("longer than %d bytes of certificates or %d of key", maxCertBytes, maxKeyBytes)
	}
	if to == trust {
		m.key = nil
	}
	return m, nil
}

// read returns the content of a data source, which is not empty and, of a file, not longer than limit.
//
// A file is one of this host. A mesh is written on the global, so that every zone has to have the file under the same path;
// secrets have no such condition and are what a mesh of several zones should use.
func read(s *systemv1.DataSource, secrets map[string][]byte, limit int64) ([]byte, error) {
	var content []byte
	switch v := s.GetType().(type) {
	case *systemv1.DataSource_Secret:
		if content = secrets[v.Secret]; len(content) == 0 {
			return nil, fmt.Errorf("secret %q is not there (yet)", v.Secret)
		}
	case *systemv1.DataSource_Inline:
		content = v.Inline.GetValue()
	case *systemv1.DataSource_InlineString:
		content = []byte(v.InlineString)
	case *systemv1.DataSource_File:
		var err error
		if content, err = readFile(v.File, limit); err != nil {
			return nil, err
		}
	}
	if len(content) == 0 {
		return nil, errors.New("is empty")
	}
	return content, nil
}

func readFile(path string, limit int64) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() { // a pipe would be waited for
		return nil, fmt.Errorf("%s is not a file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	content, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(content)) > limit {
		return nil, fmt.Errorf("%s is longer than %d bytes", path, limit)
	}
	return content, nil
}

// hash identifies the material.
func (m material) hash() [sha256.Size]byte {
	h := sha256.New()
	certSum := sha256.Sum256(m.cert)
	_, _ = h.Write(certSum[:])
	_, _ = h.Write(m.key)
	return [sha256.Size]byte(h.Sum(nil))
}

// authority is a certificate authority, parsed. It never changes.
type authority struct {
	cert *x509.Certificate // the one that signs
	key  crypto.Signer     // nil: it is only trusted
	// certs are all certificates of the material, in DER; what a proxy that trusts the authority trusts.
	certs [][]byte
	// chain is the PEM of those that lead from cert to a root: what comes after a signed certificate. A root signs itself.
	chain []byte
	pool  *x509.CertPool
}

func parse(m material) (*authority, error) {
	a := &authority{pool: x509.NewCertPool()}
	if len(m.key) > 0 {
		pair, err := tls.X509KeyPair(m.cert, m.key)
		if err != nil {
			return nil, fmt.Errorf("not a usable pair of certificate and key: %w", err)
		}
		key, ok := pair.PrivateKey.(crypto.Signer)
		if !ok {
			return nil, fmt.Errorf("a key of type %T cannot sign", pair.PrivateKey)
		}
		a.key = key
	}
	for block, rest := pem.Decode(m.cert); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" { // a key, perhaps
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(a.certs)+1, err)
		}
		if !c.IsCA || c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0 {
			return nil, fmt.Errorf("certificate %d is not that of an authority", len(a.certs)+1)
		}
		if a.cert == nil {
			a.cert = c
		}
		a.certs = append(a.certs, c.Raw)
		a.pool.AddCert(c)
		if !bytes.Equal(c.RawSubject, c.RawIssuer) {
			a.chain = append(a.chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
		}
	}
	if a.cert == nil {
		return nil, errors.New("there is no certificate")
	}
	return a, nil
}
