package pgtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// EnableTLS makes the server take TLS connections beside plain ones, and returns the file of the authority its certificate
// comes from.
func (s *Server) EnableTLS(tb testing.TB) string {
	tb.Helper()
	certificate, key := selfSigned(tb)
	for name, content := range map[string][]byte{"server.crt": certificate, "server.key": key} {
		file := filepath.Join(s.data(), name)
		if err := os.WriteFile(file, content, 0o600); err != nil {
			tb.Fatal(err)
		}
		if s.credential != nil {
			if err := os.Chown(file, int(s.credential.Uid), int(s.credential.Gid)); err != nil {
				tb.Fatal(err)
			}
		}
	}
	s.Exec(tb, "ALTER SYSTEM SET ssl = on")
	s.Exec(tb, "SELECT pg_reload_conf()")
	if err := s.awaitTLS(tb); err != nil {
		tb.Fatal(err)
	}
	return authorityFile(tb, certificate)
}

// awaitTLS waits until the server has read its configuration.
func (s *Server) awaitTLS(tb testing.TB) error {
	tb.Helper()
	u := "postgres://postgres@" + s.Addr() + "/postgres?sslmode=require"
	for {
		err := s.exec(tb.Context(), u, "SELECT 1")
		if err == nil || tb.Context().Err() != nil {
			return err
		}
		<-time.After(20 * time.Millisecond)
	}
}

// OtherCA returns the file of an authority that the server has nothing from.
func (s *Server) OtherCA(tb testing.TB) string {
	tb.Helper()
	certificate, _ := selfSigned(tb)
	return authorityFile(tb, certificate)
}

func authorityFile(tb testing.TB, certificate []byte) string {
	tb.Helper()
	file := filepath.Join(tb.TempDir(), "ca.crt")
	if err := os.WriteFile(file, certificate, 0o600); err != nil {
		tb.Fatal(err)
	}
	return file
}

// selfSigned makes a certificate for the loopback address that is its own authority, in PEM.
func selfSigned(tb testing.TB) (certificate, key []byte) {
	tb.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "pgtest"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		tb.Fatal(err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		tb.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw})
}
