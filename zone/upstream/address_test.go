package upstream

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/meridian-mesh/meridian/common/tlsconf"
)

func TestParseAddresses(t *testing.T) {
	for _, tt := range []struct {
		list    string
		targets []string
		plain   bool
		wrong   string // part of the error
	}{
		{list: "grpcs://global:5685", targets: []string{"global:5685"}},
		{list: "grpc://10.0.0.1:5685", targets: []string{"10.0.0.1:5685"}, plain: true},
		{list: "grpcs://[::1]:5685", targets: []string{"[::1]:5685"}},
		{list: "grpcs://g1:5685,grpcs://g2:5685", targets: []string{"g1:5685", "g2:5685"}},
		{list: " grpc://g1:1 , grpc://g1:2", targets: []string{"g1:1", "g1:2"}, plain: true},
		{list: "https://global:5685", wrong: `"https://global:5685" is not grpcs://host:port`},
		{list: "global:5685", wrong: `"global:5685" is not grpcs://`},
		{list: "grpcs://global", wrong: `"grpcs://global" is not`},
		{list: "grpcs://global:65536", wrong: `"grpcs://global:65536": the port must be 1-65535`},
		{list: "grpcs://global:0", wrong: "the port must be"},
		{list: "grpcs://:5685", wrong: `"grpcs://:5685" is not`},
		{list: "grpcs://global:5685/kds", wrong: `"grpcs://global:5685/kds" is not`},
		{list: "", wrong: `"" is not`},
		{list: "grpcs://a b:1", wrong: `"grpcs://a b:1" is not`},
		{list: "grpcs://g1:1,", wrong: `"" is not`},
		{list: "grpcs://g1:1,g2:2", wrong: `"g2:2" is not`},
		{list: "grpcs://g1:1,grpc://g2:2", wrong: `"grpc://g2:2" is not of the same scheme`},
		{list: "grpcs://g1:1,grpcs://g2:2,grpcs://g1:1", wrong: `"grpcs://g1:1" is there twice`},
	} {
		targets, plain, err := ParseAddresses(tt.list)
		if tt.wrong != "" {
			if err == nil || !strings.Contains(err.Error(), tt.wrong) {
				t.Errorf("ParseAddresses(%q): %v, want an error with %q", tt.list, err, tt.wrong)
			}
			continue
		}
		if err != nil || !slices.Equal(targets, tt.targets) || plain != tt.plain {
			t.Errorf("ParseAddresses(%q) = %q, %v, %v", tt.list, targets, plain, err)
		}
	}
}

// refusing returns an address at which nobody listens.
func refusing(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// silent returns an address at which connections are taken, and nothing is said.
func silent(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() }) // the kernel takes them
	return l.Addr().String()
}

func TestAReplicaThatDoesNotAnswerIsPassedOver(t *testing.T) {
	for name, dead := range map[string]string{
		"nobody listens":        refusing(t),
		"it hangs":              silent(t),
		"its name is not known": "nowhere.invalid:5685",
	} {
		t.Run(name, func(t *testing.T) {
			g := &global{}
			address, _ := g.listen(t)
			for n := 1; n <= 8; n++ { // the dead one is the first of some
				_, _, stop := start(t, "grpc://"+dead+",grpc://"+address, func(o *Options) { o.Config.HealthCheckTimeout = 5 * time.Second })
				eventually(t, "the zone connects", func() bool { return g.count("down") == n })
				stop()
			}
		})
	}
}

func TestZonesSpreadOverReplicasAndMoveToTheOtherWhenOneDies(t *testing.T) {
	one, two := &global{}, &global{}
	first, kill := one.listen(t)
	second, _ := two.listen(t)
	const zones = 20 // that all draw the same has a probability of 1 in 500,000
	for range zones {
		start(t, "grpc://"+first+",grpc://"+second, nil)
	}
	eventually(t, "all zones connect", func() bool { return one.count("down")+two.count("down") == zones })
	before := two.count("down")
	if before == 0 || before == zones {
		t.Fatalf("%d of %d zones are with the second replica", before, zones)
	}
	kill()
	killed := time.Now()
	eventually(t, "the zones of the first move to the second", func() bool { return two.count("down") == zones })
	if took := time.Since(killed); took > 2*time.Second { // the back-off is 5 ms
		t.Errorf("it took %s", took)
	}
}

// certificate makes a server certificate that is valid for one name or IP address.
func certificate(t *testing.T, name string) (_ tls.Certificate, ca []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestEachReplicaProvesTheNameItIsReachedBy(t *testing.T) {
	byName, nameCA := certificate(t, "localhost")
	byIP, ipCA := certificate(t, "127.0.0.1")
	caFile := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(caFile, slices.Concat(nameCA, ipCA), 0o600); err != nil {
		t.Fatal(err)
	}
	secure := func(o *Options) {
		o.Credentials = func(serverName string) (credentials.TransportCredentials, error) {
			cfg, err := tlsconf.ClientConfig{ServerName: serverName, CAFile: caFile}.TLS()
			return credentials.NewTLS(cfg), err
		}
		o.Config.HealthCheckTimeout = 5 * time.Second
	}
	named, numbered := &global{}, &global{}
	a, _ := named.listen(t, grpc.Creds(credentials.NewServerTLSFromCert(&byName)))
	b, _ := numbered.listen(t, grpc.Creds(credentials.NewServerTLSFromCert(&byIP)))
	_, port, err := net.SplitHostPort(a)
	if err != nil {
		t.Fatal(err)
	}
	for n := 1; named.count("down") == 0 || numbered.count("down") == 0; n++ {
		if n > 30 {
			t.Fatalf("of %d connections %d and %d went to each", n, named.count("down"), numbered.count("down"))
		}
		_, _, stop := start(t, "grpcs://localhost:"+port+",grpcs://"+b, secure)
		eventually(t, "the zone connects", func() bool { return named.count("down")+numbered.count("down") == n })
		stop()
	}
	named.mu.Lock()
	host := named.header.Get(":authority")
	named.mu.Unlock()
	if !slices.Equal(host, []string{"localhost:" + port}) {
		t.Errorf("it was asked for %q", host)
	}
	// Reached by each other's names, neither is believed.
	wrongName, wrongNumber := named.count("health"), numbered.count("health")
	_, ipPort, err := net.SplitHostPort(b)
	if err != nil {
		t.Fatal(err)
	}
	u, _, stop := start(t, "grpcs://"+a+",grpcs://localhost:"+ipPort, func(o *Options) {
		secure(o)
		o.Config.HealthCheckTimeout = 300 * time.Millisecond
	})
	select {
	case <-time.After(time.Second):
	case <-t.Context().Done():
	}
	stop()
	if u.Connected() || named.count("health") != wrongName || numbered.count("health") != wrongNumber {
		t.Error("a replica was believed that has another's certificate")
	}
}
