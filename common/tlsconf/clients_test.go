package tlsconf_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meridian-mesh/meridian/common/tlsconf"
)

// issuer makes certificates: by itself, when parent is nil.
type issuer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func (i *issuer) issue(t *testing.T, name string, change func(*x509.Certificate)) *issuer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if change != nil {
		change(template)
	}
	parent := &issuer{template, key}
	if i != nil {
		parent = i
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent.cert, key.Public(), parent.key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &issuer{cert, key}
}

func (i *issuer) pem() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: i.cert.Raw})
}

func authority(c *x509.Certificate) {
	c.IsCA, c.BasicConstraintsValid, c.ExtKeyUsage = true, true, nil
}

func write(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestClientCertsTrustWhatTheDirectoryHolds(t *testing.T) {
	dir := t.TempDir()
	var self *issuer
	root := self.issue(t, "root", authority)
	between := root.issue(t, "between", authority)
	own := self.issue(t, "own", nil)
	write(t, filepath.Join(dir, "root.pem"), root.pem())
	write(t, filepath.Join(dir, "own.crt"), own.pem())
	write(t, filepath.Join(dir, "README"), []byte("not looked at"))
	certs, err := tlsconf.NewClientCerts(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name  string
		chain []*issuer
		want  bool
	}{
		{"a certificate that is there itself", []*issuer{own}, true},
		{"one of an authority that is there", []*issuer{root.issue(t, "c", nil)}, true},
		{"one of an authority below", []*issuer{between.issue(t, "c", nil), between}, true},
		{"one of an authority below that it does not show", []*issuer{between.issue(t, "c", nil)}, false},
		{"one for no particular use", []*issuer{root.issue(t, "c", func(c *x509.Certificate) { c.ExtKeyUsage = nil })}, true},
		{"a server's", []*issuer{root.issue(t, "c", func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })}, false},
		{"an expired one", []*issuer{root.issue(t, "c", func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) })}, false},
		{"somebody else's", []*issuer{self.issue(t, "own", nil)}, false},
		{"one of an authority of the same name", []*issuer{self.issue(t, "root", authority).issue(t, "c", nil)}, false},
		{"none", nil, false},
	} {
		state := &tls.ConnectionState{}
		for _, c := range tc.chain {
			state.PeerCertificates = append(state.PeerCertificates, c.cert)
		}
		if err := certs.Verify(state); (err == nil) != tc.want {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	if certs.Verify(nil) == nil {
		t.Error("a connection without TLS is trusted")
	}
}

func TestClientCertsFollowTheDirectory(t *testing.T) {
	dir := t.TempDir()
	var self *issuer
	synctest.Test(t, func(t *testing.T) {
		one, two := self.issue(t, "one", nil), self.issue(t, "two", nil)
		certs, err := tlsconf.NewClientCerts(dir)
		if err != nil {
			t.Fatal(err)
		}
		trusted := func(c *issuer) bool {
			return certs.Verify(&tls.ConnectionState{PeerCertificates: []*x509.Certificate{c.cert}}) == nil
		}
		expect := func(when string, wantOne, wantTwo bool) {
			t.Helper()
			time.Sleep(time.Second)
			if trusted(one) != wantOne || trusted(two) != wantTwo {
				t.Errorf("%s: trusted are %v, %v", when, trusted(one), trusted(two))
			}
		}
		expect("an empty directory", false, false)
		write(t, filepath.Join(dir, "one.pem"), one.pem())
		expect("with one", true, false)
		write(t, filepath.Join(dir, "two.pem"), two.pem())
		expect("with both", true, true)
		write(t, filepath.Join(dir, "two.pem"), []byte("half written"))
		expect("with a file that cannot be read", false, false)
		write(t, filepath.Join(dir, "two.pem"), two.pem())
		expect("with both again", true, true)
		if err := os.Remove(filepath.Join(dir, "one.pem")); err != nil {
			t.Fatal(err)
		}
		expect("without the first", false, true)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		expect("without a directory", false, false)
	})
}

func TestClientCertsRefuseADirectoryThatCannotBeMeant(t *testing.T) {
	var self *issuer
	cert := self.issue(t, "c", nil)
	der, err := x509.MarshalPKCS8PrivateKey(cert.key)
	if err != nil {
		t.Fatal(err)
	}
	key := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	for content, want := range map[string]string{
		"text": "x.pem holds no certificate", string(cert.pem()) + string(key): "x.pem holds a private key",
	} {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "x.pem"), []byte(content))
		if _, err := tlsconf.NewClientCerts(dir); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if _, err := tlsconf.NewClientCerts(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a directory that does not exist was taken")
	}
}
