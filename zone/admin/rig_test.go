package admin

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/server"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
	"github.com/meridian-mesh/meridian/zone/mtls"
	"github.com/meridian-mesh/meridian/zone/proxies"
	"github.com/meridian-mesh/meridian/zone/xds"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// rig is an Asker whose proxies are what the test says.
type rig struct {
	*Asker

	t         *testing.T
	store     *store.Store
	authority *mtls.Authority
	ca        []byte
	online    map[string]proxies.Look
	looks     map[string]xds.Look
}

type onlineProxies struct{ r *rig }

func (o onlineProxies) Look(nodeID string) (proxies.Look, bool) {
	l, ok := o.r.online[nodeID]
	return l, ok
}

type sentConfigs struct{ r *rig }

func (s sentConfigs) Look(nodeID string) (xds.Look, bool) {
	l, ok := s.r.looks[nodeID]
	return l, ok
}

func newRig(t *testing.T, changes ...func(*Options)) *rig {
	t.Helper()
	r := &rig{t: t, ca: newCA(t), online: make(map[string]proxies.Look), looks: make(map[string]xds.Look)}
	var err error
	if r.store, err = store.Open(context.Background(), memory.New(), store.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.store.Close() })
	if r.authority, err = mtls.New(mtls.Options{Config: mtls.DefaultConfig()}); err != nil {
		t.Fatal(err)
	}
	o := Options{
		Config: DefaultConfig(), Store: r.store, Proxies: onlineProxies{r}, Sent: sentConfigs{r}, Authority: r.authority,
		Local: func(netip.Addr) bool { return false },
	}
	for _, change := range changes {
		change(&o)
	}
	if r.Asker, err = New(o); err != nil {
		t.Fatal(err)
	}
	r.put(store.Key{Type: string(resource.GlobalSecret), Name: mtls.AdminSecret}, "", &systemv1.Secret{Data: wrapperspb.Bytes(r.ca)})
	return r
}

func (r *rig) put(key store.Key, origin string, spec proto.Message) {
	r.t.Helper()
	b, err := proto.Marshal(spec)
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := r.store.Update(r.t.Context(), func(*store.Snapshot) ([]store.Op, error) {
		return []store.Op{store.Put(&store.Record{Key: key, Origin: origin, Spec: b})}, nil
	}); err != nil {
		r.t.Fatal(err)
	}
}

// dataplane makes a connected proxy whose administration is at an address and port.
func (r *rig) dataplane(address string, port int, changes ...func(*proxies.Look)) server.ProxyQuestion {
	r.t.Helper()
	r.put(store.Key{Type: string(resource.Dataplane), Mesh: "default", Name: "web"}, "",
		&meshv1.Dataplane{Networking: &meshv1.Dataplane_Networking{Address: address}})
	look := proxies.Look{Peer: "127.0.0.1:40000", Connected: proxies.Connected{
		NodeID: "default.web", Mesh: "default", Name: "web",
		Metadata: proxies.Metadata{AdminAddress: "127.0.0.1", AdminPort: uint32(port)}, //nolint:gosec // a port
	}}
	for _, change := range changes {
		change(&look)
	}
	r.online["default.web"] = look
	return server.ProxyQuestion{Type: resource.Dataplane, Mesh: "default", Name: "web", View: server.ViewConfigDump}
}

// fails asks, and wants a reason with a text.
func (r *rig) fails(q server.ProxyQuestion, reason server.AskReason) string {
	r.t.Helper()
	body, err := r.Ask(r.t.Context(), q)
	ask, ok := errors.AsType[*server.AskError](err)
	if !ok {
		r.t.Fatalf("got %.100q, %v", body, err)
	}
	if ask.Reason != reason {
		r.t.Fatalf("reason %d, want %d: %v", ask.Reason, reason, err)
	}
	return ask.Details
}

// newCA returns the certificate and key of an authority.
func newCA(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "admin"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	priv, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: priv})...)
}

// listener is what zone/envoy opens in front of Envoy's administration: TLS for the control plane alone, at 127.0.0.2, that is, not
// where the administration itself is. ca is what it was made with, and name what its certificate is for.
func (r *rig) listener(ca []byte, name string, h http.Handler) (address string, port int) {
	r.t.Helper()
	cert, err := r.authority.AdminServer(ca, name)
	if err != nil {
		r.t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(cert.CertPEM, cert.KeyPEM)
	if err != nil {
		r.t.Fatal(err)
	}
	clients := x509.NewCertPool()
	clients.AppendCertsFromPEM(cert.CAPEM)
	srv := httptest.NewUnstartedServer(h)
	_ = srv.Listener.Close()
	if srv.Listener, err = (&net.ListenConfig{}).Listen(r.t.Context(), "tcp", "127.0.0.2:0"); err != nil {
		r.t.Fatal(err)
	}
	srv.TLS = &tls.Config{
		Certificates: []tls.Certificate{pair}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS12,
		VerifyConnection: func(s tls.ConnectionState) error {
			return s.PeerCertificates[0].VerifyHostname(mtls.AdminClientName) //nolint:wrapcheck // a test
		},
	}
	srv.Config.ErrorLog = nil
	srv.StartTLS()
	r.t.Cleanup(srv.Close)
	return "127.0.0.2", portOf(r.t, srv.Listener.Addr().String())
}

func portOf(t *testing.T, address string) int {
	t.Helper()
	_, text, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		t.Fatal(err)
	}
	return port
}
