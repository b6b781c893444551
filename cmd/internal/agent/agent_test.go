package agent

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"encoding/pem"
	"errors"
	"log/slog"
	"net"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

const patience = 20 * time.Second

// eventually waits until f has nothing to say.
func eventually(t *testing.T, f func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Millisecond) // files change without a sign
	}
}

func TestConfigErrorsNameTheField(t *testing.T) {
	good := func() Config { c := DefaultConfig(); c.Mesh, c.Name = "default", "web-1"; return c }
	tests := []struct {
		name string
		with func(*Config)
		want []string
	}{
		{"what is documented", func(*Config) {}, nil},
		{"no TLS", func(c *Config) { c.ControlPlane = "http://localhost:5678" }, []string{"controlPlane"}},
		{"no port", func(c *Config) { c.ControlPlane = "https://localhost" }, []string{"controlPlane"}},
		{"no dataplane at all", func(c *Config) { c.Mesh = "" }, []string{"dataplaneFile"}},
		{"two dataplanes", func(c *Config) { c.DataplaneFile = "dp.yaml" }, []string{"dataplaneFile"}},
		{"a mesh with a dot", func(c *Config) { c.Mesh = "a.b" }, []string{"mesh"}},
		{"several at once", func(c *Config) { c.ControlPlane, c.Dir = "", "" }, []string{"controlPlane", "dir"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := good()
			tt.with(&c)
			var got []string
			for _, err := range c.Validate() {
				field, _, _ := strings.Cut(err.Error(), ":")
				got = append(got, field)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestIdentitiesAreReplacedAsAWhole(t *testing.T) {
	f := files{t.TempDir()}
	read := func(name string) string {
		b, err := os.ReadFile(f.current(name))
		if err != nil {
			t.Error(err)
		}
		return string(b)
	}
	if err := f.writeIdentity([]byte("0"), []byte("0"), []byte("0")); err != nil {
		t.Fatal(err)
	}
	// Whoever opens the directory once sees files that belong together, and never none.
	stop, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			link, err := os.Readlink(filepath.Join(f.dir, "current"))
			if err != nil {
				t.Error(err)
				return
			}
			dir := filepath.Join(f.dir, link)
			cert, err1 := os.ReadFile(filepath.Join(dir, certFile))
			key, err2 := os.ReadFile(filepath.Join(dir, keyFile))
			if err := errors.Join(err1, err2); err != nil {
				continue // it was replaced twice since
			}
			if string(cert) != string(key) {
				t.Errorf("certificate %s with key %s", cert, key)
			}
		}
	}()
	for i := range 200 {
		content := []byte{byte('a' + i%26)}
		if err := f.writeIdentity(content, content, content); err != nil {
			t.Fatal(err)
		}
		if got := read(certFile) + read(keyFile) + read(caFile); got != strings.Repeat(string(content), 3) {
			t.Fatalf("current is %q, want %q", got, content)
		}
	}
	close(stop)
	<-done
	left, err := filepath.Glob(filepath.Join(f.dir, "identity-*"))
	if err != nil || len(left) != 2 {
		t.Errorf("%v are left (%v), want the current one and the one before", left, err)
	}
	for _, name := range []string{certFile, keyFile, caFile} {
		if info, err := os.Stat(f.current(name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info.Mode(), err)
		}
	}
}

func TestADataplaneFileIsReadStrictly(t *testing.T) {
	for name, tt := range map[string]struct{ content, want string }{
		"a field that is misspelt": {
			"type: Dataplane\nmesh: default\nname: web\nnetworking:\n  address: 10.0.0.1\n  inbuond: []\n", "networking.inbuond",
		},
		"a value of the wrong kind": {
			"type: Dataplane\nmesh: default\nname: web\nnetworking:\n  inbound:\n  - port: many\n", "networking.inbound[0].port",
		},
		"another resource": {"type: ZoneIngress\nname: web\n", "ZoneIngress"},
		"no name":          {"type: Dataplane\nmesh: default\n", "name"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "dp.yaml")
			if err := os.WriteFile(file, []byte(tt.content), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := newSelf(Config{DataplaneFile: file}); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v, want what names %s", err, tt.want)
			}
		})
	}
}

// plane is a control plane that does what a test says. It serves TLS with a certificate that the file ca is for.
type plane struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer

	ca      string
	address string

	mu     sync.Mutex // guards what follows
	tokens []string   // as streams presented them
	nodes  []*corev3.Node
	refuse error         // what streams of programs end with
	ends   chan struct{} // ends a stream of an agent
	cert   string
}

func newPlane(t *testing.T) *plane {
	t.Helper()
	web := httptest.NewUnstartedServer(nil)
	web.StartTLS()
	certificate := web.TLS.Certificates[0]
	web.Close()
	p := &plane{ca: filepath.Join(t.TempDir(), "ca.pem"), cert: "certificate", ends: make(chan struct{})}
	block := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate.Certificate[0]})
	if err := os.WriteFile(p.ca, block, 0o600); err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p.address = "https://" + lis.Addr().String()
	srv := grpc.NewServer(grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12})))
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(srv, p)
	served := make(chan struct{})
	go func() { _ = srv.Serve(lis); close(served) }()
	t.Cleanup(func() { srv.Stop(); <-served })
	return p
}

// StreamAggregatedResources answers an agent with secrets, and a program with its own names.
func (p *plane) StreamAggregatedResources(s discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	md, _ := metadata.FromIncomingContext(s.Context())
	req, err := s.Recv()
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.tokens, p.nodes = append(p.tokens, strings.Join(md.Get("authorization"), ",")), append(p.nodes, req.GetNode())
	refuse, cert := p.refuse, p.cert
	p.mu.Unlock()
	resp := &discoveryv3.DiscoveryResponse{TypeUrl: req.GetTypeUrl(), Nonce: "1", VersionInfo: "1"}
	if req.GetTypeUrl() != secretType {
		if refuse != nil {
			return refuse
		}
		resp.VersionInfo = strings.Join(req.GetResourceNames(), ",")
		return s.Send(resp)
	}
	inline := func(text string) *corev3.DataSource {
		return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: []byte(text)}}
	}
	for _, secret := range []*tlsv3.Secret{
		{Name: "identity_cert:secret:default", Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: inline(cert), PrivateKey: inline("key of " + cert),
		}}},
		{Name: "mesh_ca:secret:default", Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			TrustedCa: inline("authorities"),
		}}},
	} {
		packed, err := anypb.New(secret)
		if err != nil {
			return err
		}
		resp.Resources = append(resp.Resources, packed)
	}
	if err := s.Send(resp); err != nil {
		return err
	}
	select {
	case <-p.ends:
		return status.Error(codes.Unavailable, "told to end")
	case <-s.Context().Done():
		return nil
	}
}

// start runs an agent of the plane until the test ends.
func start(t *testing.T, p *plane, with func(*Config)) *Agent {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent") //nolint:usetesting // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	c := DefaultConfig()
	c.ControlPlane, c.CAFile, c.Mesh, c.Name, c.Dir, c.Diagnostics.Port = p.address, p.ca, "default", "web-1", dir, 0
	c.TokenFile = filepath.Join(dir, "token")
	if err := os.WriteFile(c.TokenFile, []byte("first\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if with != nil {
		with(&c)
	}
	a, err := New(t.Context(), c, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		if err := a.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return a
}

func (a *Agent) holds(cert string) func() error {
	return func() error {
		got, err := os.ReadFile(a.files.current(certFile))
		if err == nil && string(got) != cert {
			err = errors.New("the certificate is " + string(got))
		}
		return err
	}
}

// program makes one request as a program of the agent would.
func program(t *testing.T, a *Agent) (*discoveryv3.DiscoveryResponse, error) {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+a.files.socketPath(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&discoveryv3.DiscoveryRequest{TypeUrl: "listeners", ResourceNames: []string{"backend"}}); err != nil {
		t.Fatal(err)
	}
	return stream.Recv()
}

func TestTheAgentGivesAProgramWhatItLacks(t *testing.T) {
	p := newPlane(t)
	a := start(t, p, nil)
	eventually(t, a.holds("certificate"))

	t.Run("only its user may connect to the socket", func(t *testing.T) {
		info, err := os.Stat(a.files.socketPath())
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info.Mode(), err)
		}
	})
	t.Run("the bootstrap file names the socket, the node and the files", func(t *testing.T) {
		raw, err := os.ReadFile(a.files.bootstrap())
		if err != nil {
			t.Fatal(err)
		}
		var doc struct {
			Servers []struct {
				URI string `json:"server_uri"`
			} `json:"xds_servers"`
			Node struct {
				ID       string
				Metadata map[string]any
			}
			Providers map[string]struct {
				Config map[string]string
			} `json:"certificate_providers"`
		}
		if err := json.Unmarshal(raw, &doc); err != nil {
			t.Fatal(err)
		}
		if doc.Servers[0].URI != "unix://"+a.files.socketPath() || doc.Node.ID != "default.web-1" || doc.Node.Metadata[proxyless] != "true" ||
			doc.Providers["mesh"].Config["certificate_file"] != a.files.current(certFile) {
			t.Errorf("%s", raw)
		}
	})
	t.Run("streams of programs are passed on, with the token", func(t *testing.T) {
		resp, err := program(t, a)
		if err != nil || resp.GetVersionInfo() != "backend" {
			t.Fatalf("%v, %v", resp, err)
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		if diff := cmp.Diff([]string{"first", "first"}, p.tokens); diff != "" {
			t.Error(diff)
		}
	})
	t.Run("what ends a stream is the program's to see", func(t *testing.T) {
		p.mu.Lock()
		p.refuse = status.Error(codes.PermissionDenied, "not you")
		p.mu.Unlock()
		if _, err := program(t, a); status.Code(err) != codes.PermissionDenied || status.Convert(err).Message() != "not you" {
			t.Error(err)
		}
	})
	t.Run("a stream that ended is opened again, with the token of now", func(t *testing.T) {
		if err := os.WriteFile(a.cfg.TokenFile, []byte("second\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		p.mu.Lock()
		p.cert, p.tokens = "renewed", nil
		p.mu.Unlock()
		p.ends <- struct{}{}
		eventually(t, a.holds("renewed"))
		p.mu.Lock()
		defer p.mu.Unlock()
		if diff := cmp.Diff([]string{"second"}, p.tokens); diff != "" {
			t.Error(diff)
		}
	})
}

func TestTheAgentBringsItsDataplane(t *testing.T) {
	p := newPlane(t)
	file := filepath.Join(t.TempDir(), "dp.yaml")
	const dataplane = "type: Dataplane\nmesh: shop\nname: web-2\n"
	if err := os.WriteFile(file, []byte(dataplane), 0o600); err != nil {
		t.Fatal(err)
	}
	a := start(t, p, func(c *Config) { c.Mesh, c.Name, c.DataplaneFile = "", "", file })
	eventually(t, a.holds("certificate"))
	p.mu.Lock()
	defer p.mu.Unlock()
	node := p.nodes[0]
	if got := node.GetMetadata().GetFields()["dataplane.resource"].GetStringValue(); node.GetId() != "shop.web-2" || got != dataplane {
		t.Errorf("%s with %q", node.GetId(), got)
	}
}

func TestAPathTooLongForASocketIsNamed(t *testing.T) {
	c := DefaultConfig()
	c.Mesh, c.Name, c.Diagnostics.Port = "default", "web-1", 0
	c.Dir = filepath.Join(t.TempDir(), strings.Repeat("x", 120))
	_, err := New(t.Context(), c, slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "dir") || !strings.Contains(err.Error(), "long") {
		t.Errorf("got %v", err)
	}
}

func TestACertificateThatCouldNotBeWrittenComesAgain(t *testing.T) {
	p := newPlane(t)
	var inTheWay string
	a := start(t, p, func(c *Config) {
		inTheWay = filepath.Join(c.Dir, "current", "something")
		if err := os.MkdirAll(inTheWay, 0o700); err != nil {
			t.Fatal(err)
		}
	})
	eventually(t, func() error {
		if failed := a.failure.Load(); failed == nil || !errors.Is(*failed, errFiles) {
			return errors.New("no failure to write is known")
		}
		return nil
	})
	if err := os.RemoveAll(filepath.Dir(inTheWay)); err != nil {
		t.Fatal(err)
	}
	eventually(t, a.holds("certificate"))
}

func TestTwoAgentsDoNotShareADirectory(t *testing.T) {
	var cfg Config
	a := start(t, newPlane(t), func(c *Config) { cfg = *c })
	if _, err := New(t.Context(), cfg, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "another agent") {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(a.files.socketPath()); err != nil {
		t.Errorf("the first has lost its socket: %v", err)
	}
}
