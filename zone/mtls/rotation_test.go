package mtls

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
)

// peer is what a proxy has at some time.
type peer struct {
	id    *Identity
	roots []byte
}

func (p peer) tls(t testing.TB) *tls.Config {
	t.Helper()
	pair, err := tls.X509KeyPair(p.id.CertPEM, p.id.KeyPEM)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(p.roots) {
		t.Fatal("nothing is trusted")
	}
	clock := func() time.Time { return noon }
	return &tls.Config{
		Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, Time: clock, MinVersion: tls.VersionTLS12,
		// As Envoy does: the chain counts, and a SPIFFE name instead of a host's.
		InsecureSkipVerify: true,
		VerifyConnection: func(s tls.ConnectionState) error {
			inter := x509.NewCertPool()
			for _, c := range s.PeerCertificates[1:] {
				inter.AddCert(c)
			}
			_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{
				Roots: pool, Intermediates: inter, CurrentTime: noon, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny},
			})
			return err
		},
	}
}

// handshake connects two peers, each of which verifies the other.
func handshake(t testing.TB, client, server peer) error {
	t.Helper()
	return connect(client.tls(t), server.tls(t))
}

func connect(client, server *tls.Config) error {
	a, b := net.Pipe()
	var g errgroup.Group
	for _, c := range []*tls.Conn{tls.Client(a, client), tls.Server(b, server)} {
		g.Go(func() error {
			err := c.Handshake()
			if err != nil {
				return errors.Join(err, a.Close(), b.Close())
			}
			return nil
		})
	}
	err := g.Wait()
	_, _ = a.Close(), b.Close()
	return err
}

// TestAnAuthorityIsChangedWithoutAFailedHandshake walks through a change of authority. Proxies may be one step apart at any
// time, in either direction, and may also have the new trust before their new certificate: whichever calls whichever, the
// handshake succeeds.
func TestAnAuthorityIsChangedWithoutAFailedHandshake(t *testing.T) {
	a := newAuthority(t, Options{})
	cas := map[string]*pair{"old": newCA(t, "demo", nil, nil), "new": newCA(t, "demo", nil, nil)} // of the same name, as builtin ones are
	steps := []struct {
		name  string
		state state
	}{
		{"the old one alone", builtin(cas, "old")},
		{"the new one is added", builtin(cas, "old", "new")},
		{"the new one signs", builtin(cas, "new", "old")},
		{"the old one is removed", builtin(cas, "new")},
	}
	var at []peer
	for _, s := range steps {
		at = append(at, peer{s.state.issue(t, a, backendTags), s.state.roots(t, a).PEM})
	}
	for i := range steps {
		var about []peer // what proxies may have while this step reaches them
		for _, j := range []int{i, i + 1} {
			if j < len(at) {
				about = append(about, at[j])
			}
		}
		if i+1 < len(at) {
			about = append(about, peer{at[i].id, at[i+1].roots}, peer{at[i+1].id, at[i].roots})
		}
		for c, client := range about {
			for s, server := range about {
				if err := handshake(t, client, server); err != nil {
					t.Errorf("%s: %d calls %d: %v", steps[i].name, c, s, err)
				}
			}
		}
	}
	if handshake(t, at[0], at[3]) == nil || handshake(t, at[0], at[2]) == nil {
		t.Error("a proxy that missed a step is trusted all the same: this test cannot fail")
	}
	req := IdentityRequest{"demo", backendTags}
	for i, want := range []bool{true, false, true} { // only enabling makes new certificates
		next := steps[i+1].state
		if got := at[i].id.Fits(next.spec, next.secrets, req); got != want {
			t.Errorf("%s: the certificate before fits: %t", steps[i+1].name, got)
		}
	}
}

var adminKeys = big.NewInt(7)

// adminCA is the content of the secret with the authority of administration ports.
func adminCA(t testing.TB) []byte {
	t.Helper()
	key, err := authorityKey()
	if err != nil {
		t.Fatal(err)
	}
	ca := caWith(t, "Envoy Admin CA", key, nil, func(c *x509.Certificate) { c.SerialNumber = adminKeys })
	return bytes.Join([][]byte{ca.cert, ca.key}, nil)
}

func TestTheControlPlaneAsksProxiesAtTheirAdministrationPorts(t *testing.T) {
	ca := adminCA(t)
	a := newAuthority(t, Options{})
	for _, address := range []string{"192.0.2.7", "2001:db8::7", "proxy.example.org"} {
		t.Run(address, func(t *testing.T) {
			c, err := a.AdminServer(ca, address)
			if err != nil {
				t.Fatal(err)
			}
			cert := leaf(t, c.CertPEM)
			if err := cert.VerifyHostname(address); err != nil || len(cert.DNSNames)+len(cert.IPAddresses) != 1 || cert.IsCA {
				t.Errorf("names: %v %v (%v)", cert.DNSNames, cert.IPAddresses, err)
			}
			client, err := a.AdminClient(ca)
			if err != nil {
				t.Fatal(err)
			}
			client.ServerName, client.Time = address, func() time.Time { return noon }
			own, err := tls.X509KeyPair(c.CertPEM, c.KeyPEM)
			if err != nil {
				t.Fatal(err)
			}
			pool := x509.NewCertPool()
			pool.AppendCertsFromPEM(c.CAPEM)
			server := &tls.Config{
				Certificates: []tls.Certificate{own}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool, MinVersion: tls.VersionTLS12,
				Time: func() time.Time { return noon },
				VerifyConnection: func(s tls.ConnectionState) error {
					if n := s.PeerCertificates[0]; len(n.DNSNames) != 1 || n.DNSNames[0] != "kuma-cp" || len(n.URIs)+len(n.IPAddresses) > 0 {
						return fmt.Errorf("the client is %v", n.DNSNames)
					}
					return nil
				},
			}
			if err := connect(client, server); err != nil {
				t.Error(err)
			}
			client.ServerName = "other.example.org"
			if connect(client, server) == nil {
				t.Error("another proxy's name is accepted")
			}
			if block, rest := pem.Decode(c.CAPEM); block.Type != "CERTIFICATE" || len(rest) > 0 {
				t.Error("there is more than a certificate in what is trusted")
			}
		})
	}
}

func TestAnAdministrationPortKeepsItsCertificate(t *testing.T) {
	ca := adminCA(t)
	one, err := newAuthority(t, Options{}).AdminServer(ca, "192.0.2.7")
	if err != nil {
		t.Fatal(err)
	}
	later := newAuthority(t, Options{Now: func() time.Time { return noon.Add(365 * 24 * time.Hour) }}) // another process
	two, err := later.AdminServer(ca, "192.0.2.7")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one.CertPEM, two.CertPEM) || !bytes.Equal(one.KeyPEM, two.KeyPEM) {
		t.Error("another process makes another one")
	}
	if again, _ := later.AdminServer(ca, "192.0.2.7"); again != two {
		t.Error("it is made again")
	}
	other, err := later.AdminServer(ca, "192.0.2.8")
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Equal(other.KeyPEM, two.KeyPEM) || leaf(t, other.CertPEM).SerialNumber.Cmp(leaf(t, two.CertPEM).SerialNumber) == 0 {
		t.Error("two proxies share a key")
	}
	for want, args := range map[string][2]string{"is not there": {"", "192.0.2.7"}, "no address": {string(ca), ""}, "not a usable pair": {"x", "192.0.2.7"}} {
		if _, err := later.AdminServer([]byte(args[0]), args[1]); err == nil {
			t.Errorf("no error about %s", want)
		}
	}
	over := newAuthority(t, Options{Now: func() time.Time { return noon.Add(20 * 365 * 24 * time.Hour) }})
	if _, err := over.AdminServer(ca, "192.0.2.7"); err == nil {
		t.Error("an authority that is over signs")
	}
}
