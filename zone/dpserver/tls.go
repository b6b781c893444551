package dpserver

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"sync"

	"github.com/meridian-mesh/meridian/common/tlsconf"
)

// certName is the name of the self-made certificate's files: trust/dp-ca.crt, dp.crt and so on in the data directory.
const certName = "dp"

// TLS is the certificate of the listener for proxies, and who signed it. All methods are safe for concurrent use.
type TLS struct {
	// Set by LoadTLS, read-only after.
	base   *tls.Config
	ownCA  []byte // PEM of the self-made authority; nil when the certificate comes from files
	caFile string

	mu   sync.Mutex // guards what follows
	leaf *x509.Certificate
	of   [sha256.Size]byte // hash of the certificate that leaf was parsed from
}

// LoadTLS serves the files that c names, which are read again when they change, or a self-made certificate that is kept in
// dataDir and also valid for hosts.
func LoadTLS(c Config, dataDir string, hosts ...string) (*TLS, error) {
	t := &TLS{caFile: c.TLSCAFile}
	var err error
	if c.TLSCertFile != "" {
		t.base, err = tlsconf.FromFiles(c.TLSCertFile, c.TLSKeyFile)
	} else {
		t.base, t.ownCA, err = tlsconf.LoadOrCreate(dataDir, certName, hosts...)
	}
	if err != nil {
		return nil, fmt.Errorf("TLS for proxies: %w", err)
	}
	if _, err := t.CA(); err != nil && t.caFile != "" {
		return nil, fmt.Errorf("TLS for proxies: tlsCaFile: %w", err)
	}
	return t, nil
}

func (t *TLS) config(minVersion string) *tls.Config {
	cfg := t.base.Clone()
	if v, ok := tlsVersion(minVersion); ok {
		cfg.MinVersion = v
	}
	return cfg
}

// CA is what proxies have to trust to believe this server, in PEM: the content of tlsCaFile; or the self-made authority; or
// the authorities in tlsCertFile, in their order, which is the certificate itself where it is its own authority. It is empty
// when none of the certificates in tlsCertFile is an authority: what signed them is known elsewhere only.
func (t *TLS) CA() ([]byte, error) {
	if t.caFile != "" {
		content, err := os.ReadFile(t.caFile)
		if err != nil {
			return nil, fmt.Errorf("read authorities: %w", err)
		}
		if !x509.NewCertPool().AppendCertsFromPEM(content) {
			return nil, fmt.Errorf("read authorities: %s holds no certificate", t.caFile)
		}
		return content, nil
	}
	if t.ownCA != nil {
		return t.ownCA, nil
	}
	pair, err := t.pair()
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	for _, der := range pair.Certificate {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("read certificate of the server: %w", err)
		}
		if cert.IsCA {
			out.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
		}
	}
	return out.Bytes(), nil
}

// VerifyHost reports whether the certificate is valid for a host name or IP address.
func (t *TLS) VerifyHost(host string) error {
	leaf, err := t.current()
	if err != nil {
		return err
	}
	return leaf.VerifyHostname(host) //nolint:wrapcheck // it says it all
}

func (t *TLS) pair() (*tls.Certificate, error) {
	pair, err := t.base.GetCertificate(&tls.ClientHelloInfo{})
	if err != nil {
		return nil, fmt.Errorf("certificate of the server: %w", err)
	}
	if len(pair.Certificate) == 0 {
		return nil, errors.New("certificate of the server: there is none")
	}
	return pair, nil
}

// current is the certificate that is served at the moment.
func (t *TLS) current() (*x509.Certificate, error) {
	pair, err := t.pair()
	if err != nil {
		return nil, err
	}
	of := sha256.Sum256(pair.Certificate[0])
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.leaf == nil || of != t.of {
		leaf, err := x509.ParseCertificate(pair.Certificate[0])
		if err != nil {
			return nil, fmt.Errorf("read certificate of the server: %w", err)
		}
		t.leaf, t.of = leaf, of
	}
	return t.leaf, nil
}
