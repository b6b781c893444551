package tlsconf_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"github.com/meridian-mesh/meridian/common/tlsconf"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// handshake joins a client and a server over a pipe and returns the certificate the client was shown.
func handshake(t *testing.T, server, client *tls.Config) (*x509.Certificate, error) {
	t.Helper()
	near, far := net.Pipe()
	s, c := tls.Server(near, server), tls.Client(far, client)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = s.HandshakeContext(t.Context()) // the client's error is the one of interest
		_ = near.Close()
	}()
	err := c.HandshakeContext(t.Context())
	_ = far.Close()
	<-done
	if err != nil {
		return nil, err
	}
	return c.ConnectionState().PeerCertificates[0], nil
}

func client(t *testing.T, c tlsconf.ClientConfig) *tls.Config {
	t.Helper()
	cfg, err := c.TLS()
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func create(t *testing.T, dir string, hosts ...string) (*tls.Config, []byte) {
	t.Helper()
	cfg, ca, err := tlsconf.LoadOrCreate(dir, "kds", hosts...)
	if err != nil {
		t.Fatal(err)
	}
	return cfg, ca
}

func caFile(dir string) string { return filepath.Join(dir, tlsconf.TrustDir, "kds-ca.crt") }

func TestWhoIsTrusted(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	server, _ := create(t, dir, "global.example", "192.0.2.7")
	create(t, other)
	empty := filepath.Join(other, "empty.crt")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		client tlsconf.ClientConfig
		want   string // part of the error; empty: the handshake succeeds
	}{
		{"localhost by the authority", tlsconf.ClientConfig{ServerName: "localhost", CAFile: caFile(dir)}, ""},
		{"the loopback address by the authority", tlsconf.ClientConfig{ServerName: "127.0.0.1", CAFile: caFile(dir)}, ""},
		{"the loopback address of IPv6 by the authority", tlsconf.ClientConfig{ServerName: "::1", CAFile: caFile(dir)}, ""},
		{"this host's name by the authority", tlsconf.ClientConfig{ServerName: host, CAFile: caFile(dir)}, ""},
		{"a name that was asked for", tlsconf.ClientConfig{ServerName: "global.example", CAFile: caFile(dir)}, ""},
		{"an address that was asked for", tlsconf.ClientConfig{ServerName: "192.0.2.7", CAFile: caFile(dir)}, ""},
		{"anyone without verification", tlsconf.ClientConfig{ServerName: "elsewhere.example", SkipVerify: true}, ""},
		{"not another name", tlsconf.ClientConfig{ServerName: "elsewhere.example", CAFile: caFile(dir)}, "not elsewhere.example"},
		{"not another address", tlsconf.ClientConfig{ServerName: "192.0.2.8", CAFile: caFile(dir)}, "not 192.0.2.8"},
		{"not by the operating system's authorities", tlsconf.ClientConfig{ServerName: "localhost"}, "as no CA file is set"},
		{"not by another authority", tlsconf.ClientConfig{ServerName: "localhost", CAFile: caFile(other)}, "certificate signed by unknown authority"},
		{"not by the operating system's authorities", tlsconf.ClientConfig{ServerName: "localhost"}, "certificate signed by unknown authority"},
		{"not by a CA file that is missing", tlsconf.ClientConfig{ServerName: "localhost", CAFile: caFile(dir) + ".absent"}, "no such file"},
		{"not by a CA file without a certificate", tlsconf.ClientConfig{ServerName: "localhost", CAFile: empty}, "holds no certificate"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := handshake(t, server, client(t, tt.client))
			switch {
			case tt.want == "" && err != nil:
				t.Errorf("handshake: %v", err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("handshake error is %v, want %q in it", err, tt.want)
			}
		})
	}
}

func TestClientConfigRefusesNonsense(t *testing.T) {
	for _, c := range []tlsconf.ClientConfig{{}, {ServerName: "a", CAFile: "b", SkipVerify: true}} {
		if _, err := c.TLS(); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
}

func TestOldVersionsAreRefused(t *testing.T) {
	dir := t.TempDir()
	server, _ := create(t, dir)
	old := client(t, tlsconf.ClientConfig{ServerName: "localhost", CAFile: caFile(dir)})
	if old.MinVersion != tls.VersionTLS12 {
		t.Errorf("clients start at %s", tls.VersionName(old.MinVersion))
	}
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	if _, err := handshake(t, server, old); err == nil {
		t.Error("the server spoke TLS 1.1")
	}
}

// A zone may start before the global wrote its authority, and must get through once it has.
func TestCAFileMayAppearLater(t *testing.T) {
	dir := t.TempDir()
	c := client(t, tlsconf.ClientConfig{ServerName: "localhost", CAFile: caFile(dir)})
	elsewhere, _ := create(t, t.TempDir())
	if _, err := handshake(t, elsewhere, c); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("before the file exists the error is %v", err)
	}
	server, _ := create(t, dir)
	if _, err := handshake(t, server, c); err != nil {
		t.Errorf("after the file appeared: %v", err)
	}
}

func TestFilesAreKeptSafely(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	_, ca := create(t, dir)
	want := map[string]fs.FileMode{
		"kds-ca.key": 0o600, "kds.crt": 0o600, "kds.key": 0o600, "trust": fs.ModeDir | 0o755, "trust/kds-ca.crt": 0o644, ".": fs.ModeDir | 0o700,
	}
	got := map[string]fs.FileMode{}
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		got[path] = info.Mode()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	written, err := os.ReadFile(caFile(dir))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(ca), string(written)); diff != "" {
		t.Errorf("the authority returned is not the one written:\n%s", diff)
	}
	block, rest := pem.Decode(ca)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil || len(rest) > 0 {
		t.Fatalf("authority: %v, and %d bytes after it", err, len(rest))
	}
	if !cert.IsCA || cert.PublicKeyAlgorithm != x509.ECDSA {
		t.Errorf("authority: IsCA %t, key %s", cert.IsCA, cert.PublicKeyAlgorithm)
	}
}

// TestRenewal runs on a fake clock.
func TestRenewal(t *testing.T) {
	const day = 24 * time.Hour
	tests := []struct {
		name     string
		after    time.Duration
		between  func(t *testing.T, dir string) // what happens before the restart
		hosts    []string                       // at the restart
		sameLeaf bool
		sameCA   bool
		wantErr  string
	}{
		{name: "a restart changes nothing", sameLeaf: true, sameCA: true},
		{name: "a certificate with enough time left stays", after: 200 * day, sameLeaf: true, sameCA: true},
		{name: "a certificate in its last third is replaced", after: 250 * day, sameCA: true},
		{name: "an expired certificate is replaced", after: 400 * day, sameCA: true},
		{name: "a new host name makes a new certificate", hosts: []string{"new.example"}, sameCA: true},
		{name: "an authority in its last year is replaced", after: 9*365*day + day},
		{name: "a lost server key makes a new certificate", between: remove("kds.key"), sameCA: true},
		{name: "a damaged server certificate is replaced", between: damage("kds.crt"), sameCA: true},
		{name: "a lost authority certificate is made again", between: remove("trust/kds-ca.crt"), sameLeaf: true},
		{name: "a lost authority key is no matter before it is needed", between: remove("kds-ca.key"), sameLeaf: true, sameCA: true},
		{name: "a lost authority key is an error when it is needed", after: 250 * day, between: remove("kds-ca.key"), wantErr: "kds-ca.key"},
		{name: "a lost authority key is an error when the authority ends", after: 9*365*day + day, between: remove("kds-ca.key"), wantErr: "kds-ca.key"},
		{name: "a damaged authority is an error", between: damage("trust/kds-ca.crt"), wantErr: "kds-ca.crt: not a certificate in PEM"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				before, beforeCA := create(t, dir)
				held := filepath.Join(dir, "held.crt") // a client's copy of the authority, made on the first day
				if err := os.WriteFile(held, beforeCA, 0o600); err != nil {
					t.Fatal(err)
				}
				trusting := client(t, tlsconf.ClientConfig{ServerName: "localhost", CAFile: held})
				first, err := handshake(t, before, trusting)
				if err != nil {
					t.Fatal(err)
				}
				time.Sleep(tt.after)
				if tt.between != nil {
					tt.between(t, dir)
				}
				after, afterCA, err := tlsconf.LoadOrCreate(dir, "kds", tt.hosts...)
				if tt.wantErr != "" {
					if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
						t.Errorf("error is %v, want %q in it", err, tt.wantErr)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				second, err := handshake(t, after, trusting)
				if err != nil {
					t.Fatalf("who trusted the authority does not any more: %v", err)
				}
				if same := first.Equal(second); same != tt.sameLeaf {
					t.Errorf("certificate stayed: %t, want %t", same, tt.sameLeaf)
				}
				if same := string(beforeCA) == string(afterCA); same != tt.sameCA {
					t.Errorf("authority stayed: %t, want %t", same, tt.sameCA)
				}
			})
		})
	}
}

func TestRenewalWhileServing(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		server, _ := create(t, dir)
		trusting := client(t, tlsconf.ClientConfig{ServerName: "localhost", CAFile: caFile(dir)})
		for range 40 { // 20 years: the authority is replaced too
			if _, err := handshake(t, server, trusting); err != nil {
				t.Fatalf("%s: %v", time.Now(), err)
			}
			time.Sleep(180 * 24 * time.Hour)
		}
	})
}

func TestFromFiles(t *testing.T) {
	one, two := t.TempDir(), t.TempDir()
	create(t, one)
	create(t, two)
	cert, key := filepath.Join(one, "kds.crt"), filepath.Join(one, "kds.key")
	server, err := tlsconf.FromFiles(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	anyone := client(t, tlsconf.ClientConfig{ServerName: "localhost", SkipVerify: true})
	shown := func() *x509.Certificate {
		t.Helper()
		c, err := handshake(t, server, anyone)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	first := shown()

	// A pair that does not fit is not served.
	copyFile(t, filepath.Join(two, "kds.crt"), cert)
	if got := shown(); !got.Equal(first) {
		t.Error("a certificate without its key was served")
	}
	copyFile(t, filepath.Join(two, "kds.key"), key)
	if got := shown(); got.Equal(first) {
		t.Error("the new pair is not served")
	}
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	if got := shown(); got.Equal(first) {
		t.Error("without files the pair before the last is served")
	}
	if _, err := tlsconf.FromFiles(cert, key); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("FromFiles without a key returned %v", err)
	}
}

func remove(name string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

func damage(name string) func(*testing.T, string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte("not PEM"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// copyFile replaces to by from, and makes sure that the change shows in the time of change.
func copyFile(t *testing.T, from, to string) {
	t.Helper()
	content, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(to)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, content, 0o600); err != nil {
		t.Fatal(err)
	}
	later := info.ModTime().Add(time.Second)
	if err := os.Chtimes(to, later, later); err != nil {
		t.Fatal(err)
	}
}
