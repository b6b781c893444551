package envoy

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	healthv3 "github.com/envoyproxy/go-control-plane/envoy/service/health/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/sotw/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// authority signs certificates of tests.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  string
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{cert, key, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))}
}

// issue returns a certificate for names: URIs, addresses or DNS names.
func (a *authority) issue(t *testing.T, names ...string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else if u, err := url.Parse(n); err == nil && u.Scheme != "" {
			template.URIs = append(template.URIs, u)
		} else {
			template.DNSNames = append(template.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, k.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}))
}

// plane is a small control plane: a bootstrap over HTTPS and, on a port of its own, ADS out of go-control-plane's snapshots.
type plane struct {
	t     *testing.T
	ca    *authority
	cache cache.SnapshotCache
	http  *httptest.Server
	cert  tls.Certificate

	mu        sync.Mutex // guards what follows
	server    *grpc.Server
	address   string
	requests  []*discoveryv3.DiscoveryRequest
	auth      []string
	posted    map[string]any
	answer    func(w http.ResponseWriter) bool // what to answer instead of a bootstrap; true when it did
	adminPort int
	extra     string // appended to the bootstrap
	health    healthv3.HealthDiscoveryServiceServer
}

func newPlane(t *testing.T) *plane {
	t.Helper()
	p := &plane{t: t, ca: newAuthority(t), cache: cache.NewSnapshotCache(true, cache.IDHash{}, nil), adminPort: freePort(t)}
	cert, key := p.ca.issue(t, "localhost", "127.0.0.1")
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	if err != nil {
		t.Fatal(err)
	}
	p.cert = pair
	p.http = httptest.NewUnstartedServer(http.HandlerFunc(p.bootstrap))
	p.http.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	p.http.StartTLS()
	t.Cleanup(p.http.Close)
	p.startADS("127.0.0.1:0")
	t.Cleanup(p.stopADS)
	return p
}

func (p *plane) startADS(address string) {
	p.t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", address)
	if err != nil {
		p.t.Fatal(err)
	}
	g := grpc.NewServer(grpc.Creds(credentials.NewServerTLSFromCert(&p.cert)))
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(g, &adsServer{Server: sotw.NewServer(context.Background(), p.cache, p), p: p})
	p.mu.Lock()
	if p.health != nil {
		healthv3.RegisterHealthDiscoveryServiceServer(g, p.health)
	}
	p.server, p.address = g, ln.Addr().String()
	p.mu.Unlock()
	go func() { _ = g.Serve(ln) }()
}

func (p *plane) stopADS() {
	p.mu.Lock()
	g := p.server
	p.mu.Unlock()
	g.Stop()
}

func (p *plane) bootstrap(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := json.Unmarshal(body, &p.posted); err != nil || r.URL.Path != "/bootstrap" || r.Method != http.MethodPost {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	if p.answer != nil && p.answer(w) {
		return
	}
	_, port, _ := net.SplitHostPort(p.address)
	text := fmt.Sprintf(`
node: {id: %q, cluster: web}
admin: {address: {socketAddress: {address: 127.0.0.1, portValue: %d}}}
dynamicResources:
  ldsConfig: {ads: {}, resourceApiVersion: V3}
  cdsConfig: {ads: {}, resourceApiVersion: V3}
  adsConfig: &ads
    apiType: GRPC
    transportApiVersion: V3
    setNodeOnFirstMessageOnly: true
    grpcServices:
    - envoyGrpc: {clusterName: ads_cluster}
      initialMetadata: [{key: authorization, value: %q}]
staticResources:
  secrets:
  - name: cp_validation_ctx
    validationContext:
      trustedCa: {inlineString: %q}
      matchTypedSubjectAltNames: [{sanType: DNS, matcher: {exact: localhost}}]
  clusters:
  - name: ads_cluster
    type: STATIC
    connectTimeout: 1s
    typedExtensionProtocolOptions:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicitHttpConfig: {http2ProtocolOptions: {}}
    loadAssignment:
      clusterName: ads_cluster
      endpoints: [{lbEndpoints: [{endpoint: {address: {socketAddress: {address: 127.0.0.1, portValue: %s}}}}]}]
    transportSocket:
      name: envoy.transport_sockets.tls
      typedConfig:
        "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext
        sni: localhost
        commonTlsContext: {validationContextSdsSecretConfig: {name: cp_validation_ctx}}
%s`, fmt.Sprintf("%v.%v", p.posted["mesh"], p.posted["name"]), p.adminPort, p.posted["dataplaneToken"], p.ca.pem, port, p.extra)
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(map[string]any{
		"bootstrap": []byte(text), "kumaSidecarConfiguration": map[string]any{
			"networking": map[string]any{"isUsingTransparentProxy": false}, "metrics": map[string]any{"aggregate": []any{}},
		},
	})
}

// The callbacks of the ADS server note what came.
func (p *plane) OnStreamOpen(ctx context.Context, _ int64, _ string) error {
	md, _ := metadata.FromIncomingContext(ctx)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.auth = md.Get("authorization")
	return nil
}

func (p *plane) OnStreamRequest(_ int64, r *discoveryv3.DiscoveryRequest) error {
	if r.GetErrorDetail() != nil {
		time.Sleep(50 * time.Millisecond) // the plain cache sends what was rejected again at once
	}
	return nil
}
func (p *plane) OnStreamClosed(int64, *corev3.Node) {}
func (p *plane) OnStreamResponse(context.Context, int64, *discoveryv3.DiscoveryRequest, *discoveryv3.DiscoveryResponse) {
}

// adsServer serves the plane's snapshots.
type adsServer struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	sotw.Server
	p *plane
}

// recording notes requests as they come: the server completes them with the node of the first.
type recording struct {
	discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer
	p *plane
}

func (s *recording) Recv() (*discoveryv3.DiscoveryRequest, error) {
	r, err := s.AggregatedDiscoveryService_StreamAggregatedResourcesServer.Recv()
	if err == nil {
		s.p.mu.Lock()
		s.p.requests = append(s.p.requests, proto.CloneOf(r))
		s.p.mu.Unlock()
	}
	return r, err
}

func (s *adsServer) StreamAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	return s.StreamHandler(&recording{stream, s.p}, resource.AnyType)
}

// sent is the requests so far, shortened: kind, names, version, and N for an answer that rejects.
func (p *plane) sent() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	var out []string
	for _, r := range p.requests {
		kind := r.GetTypeUrl()[strings.LastIndex(r.GetTypeUrl(), ".")+1:]
		line := fmt.Sprintf("%s %v %q", kind, r.GetResourceNames(), r.GetVersionInfo())
		if r.GetErrorDetail() != nil {
			line += " NACK"
		}
		if r.GetNode() != nil {
			line += " node"
		}
		out = append(out, line)
	}
	return out
}

// publish gives a node resources as YAML documents, by kind.
func (p *plane) publish(node, version string, resources map[resource.Type][]string) {
	p.t.Helper()
	decoded := make(map[resource.Type][]types.Resource)
	for kind, docs := range resources {
		for _, d := range docs {
			decoded[kind] = append(decoded[kind], decode(p.t, kind, d))
		}
	}
	snapshot, err := cache.NewSnapshot(version, decoded)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := p.cache.SetSnapshot(p.t.Context(), node, snapshot); err != nil {
		p.t.Fatal(err)
	}
}

func (p *plane) options(name string) Options {
	return Options{
		ControlPlane: p.http.URL, CA: []byte(p.ca.pem), Mesh: "default", Name: name, Token: "token-of-" + name,
		BootstrapRetry: 10 * time.Millisecond, Backoff: 10 * time.Millisecond,
		Log: slog.New(slog.NewTextHandler(p.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
}

// proxy starts one; it is closed with the test and must not have failed.
func (p *plane) proxy(o Options) *Proxy {
	p.t.Helper()
	proxy, err := Start(p.t.Context(), o)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() {
		if err := proxy.Close(); err != nil && !errors.Is(err, ErrUnsupported) {
			p.t.Error(err)
		}
	})
	return proxy
}

func waitFor(t *testing.T, p *Proxy, cond func(*Config) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := p.Wait(ctx, cond); err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, cond func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	for {
		err := cond()
		if err == nil {
			return
		}
		if !pause(ctx, 5*time.Millisecond) {
			t.Fatal(err)
		}
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	ln, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	n, _ := strconv.Atoi(port)
	return n
}

// publishVersions is publish with a version of its own for some kinds.
func (p *plane) publishVersions(node string, versions map[resource.Type]string, other string, resources map[resource.Type][]string) {
	p.t.Helper()
	full := &cache.Snapshot{}
	for kind, docs := range resources {
		var decoded []types.Resource
		for _, d := range docs {
			decoded = append(decoded, decode(p.t, kind, d))
		}
		version := other
		if v := versions[kind]; v != "" {
			version = v
		}
		full.Resources[cache.GetResponseType(kind)] = cache.NewResources(version, decoded)
	}
	if err := p.cache.SetSnapshot(p.t.Context(), node, full); err != nil {
		p.t.Fatal(err)
	}
}

func (p *plane) setAnswer(f func(http.ResponseWriter) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answer = f
}

func newPlaneless() *slog.Logger { return slog.New(slog.DiscardHandler) }
