package dpserver_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/meridian-mesh/meridian/zone/dpserver"
)

// running is a server on a free port, with a health service and an HTTP handler that tells the protocol.
type running struct {
	address string
	roots   *x509.CertPool
	stop    func() error // ends Run and waits for it
}

func start(t *testing.T, change func(*dpserver.Options)) running {
	t.Helper()
	cfg := dpserver.Default()
	cfg.BindAddress, cfg.Port = "127.0.0.1", 0
	trust, err := dpserver.LoadTLS(cfg, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ca, err := trust.CA()
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		t.Fatal("the authority is not in PEM")
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /bootstrap", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		_, _ = io.WriteString(w, r.Proto+" "+string(body))
	})
	o := dpserver.Options{
		Config: cfg, TLS: trust, HTTP: mux, Registerer: prometheus.NewRegistry(), Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Register: func(r grpc.ServiceRegistrar) { healthv1.RegisterHealthServer(r, health.NewServer()) },
	}
	if change != nil {
		change(&o)
	}
	s, err := dpserver.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stopped := false
	stop := func() error {
		if stopped {
			return nil
		}
		stopped = true
		cancel()
		return <-done
	}
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
	return running{address: s.Addr().String(), roots: roots, stop: stop}
}

func (r running) client(protocols func(*http.Protocols)) (*http.Client, func()) {
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: r.roots, MinVersion: tls.VersionTLS12}, Protocols: new(http.Protocols)}
	protocols(tr.Protocols)
	return &http.Client{Transport: tr, Timeout: 30 * time.Second}, tr.CloseIdleConnections
}

func (r running) dial(t *testing.T) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(r.address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: r.roots, MinVersion: tls.VersionTLS12})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestHTTPAndGRPCShareThePort(t *testing.T) {
	r := start(t, nil)
	for name, tc := range map[string]struct {
		protocols func(*http.Protocols)
		want      string
	}{
		"HTTP/1.1": {func(p *http.Protocols) { p.SetHTTP1(true) }, "HTTP/1.1 hello"},
		"HTTP/2":   {func(p *http.Protocols) { p.SetHTTP2(true) }, "HTTP/2.0 hello"},
		"either":   {func(p *http.Protocols) { p.SetHTTP1(true); p.SetHTTP2(true) }, "HTTP/2.0 hello"},
	} {
		t.Run(name, func(t *testing.T) {
			client, release := r.client(tc.protocols)
			defer release()
			for _, path := range []string{"/bootstrap", "/other"} {
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+r.address+path, strings.NewReader("hello"))
				if err != nil {
					t.Fatal(err)
				}
				resp, err := client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				body, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if err != nil {
					t.Fatal(err)
				}
				if path == "/bootstrap" && string(body) != tc.want {
					t.Errorf("answer is %q, want %q", body, tc.want)
				}
				if path == "/other" && (resp.StatusCode != http.StatusNotFound || string(body) != "404 page not found\n") {
					t.Errorf("unknown path: %d %q", resp.StatusCode, body)
				}
			}
		})
	}
	t.Run("gRPC", func(t *testing.T) {
		resp, err := healthv1.NewHealthClient(r.dial(t)).Check(t.Context(), &healthv1.HealthCheckRequest{})
		if err != nil || resp.GetStatus() != healthv1.HealthCheckResponse_SERVING {
			t.Fatalf("%v, %v", resp, err)
		}
	})
	t.Run("gRPC and HTTP on one connection", func(t *testing.T) {
		client, release := r.client(func(p *http.Protocols) { p.SetHTTP2(true) })
		defer release()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "https://"+r.address+"/grpc.health.v1.Health/Check",
			bytes.NewReader([]byte{0, 0, 0, 0, 0}))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/grpc+proto")
		req.Header.Set("Te", "trailers")
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if got := resp.Trailer.Get("Grpc-Status"); got != "0" {
			t.Errorf("grpc-status is %q", got)
		}
	})
	t.Run("a gRPC message of more than 4 MiB is refused, whatever is sent", func(t *testing.T) {
		_, err := healthv1.NewHealthClient(r.dial(t)).Check(t.Context(), &healthv1.HealthCheckRequest{Service: strings.Repeat("a", 5<<20)})
		if status.Code(err) != codes.ResourceExhausted {
			t.Errorf("got %v", err)
		}
	})
	t.Run("plain text is refused", func(t *testing.T) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+r.address+"/bootstrap", nil)
		if err != nil {
			t.Fatal(err)
		}
		tr := &http.Transport{}
		defer tr.CloseIdleConnections()
		resp, err := (&http.Client{Transport: tr}).Do(req)
		if err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusBadRequest {
				t.Errorf("status %d", resp.StatusCode)
			}
		}
	})
}

func TestShutdownEndsStreams(t *testing.T) {
	drained := make(chan struct{})
	r := start(t, func(o *dpserver.Options) { o.Drain = func(context.Context) { close(drained) } })
	stream, err := healthv1.NewHealthClient(r.dial(t)).Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("took %s: the stream was waited for", took)
	}
	<-drained
	if _, err := stream.Recv(); err == nil {
		t.Error("the stream is still open")
	}
}

func TestConnectionsBeyondTheLimitAreClosed(t *testing.T) {
	r := start(t, func(o *dpserver.Options) { o.MaxConnections = 1 })
	stream, err := healthv1.NewHealthClient(r.dial(t)).Watch(t.Context(), &healthv1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	conn, err := (&tls.Dialer{Config: &tls.Config{RootCAs: r.roots, MinVersion: tls.VersionTLS12}}).DialContext(t.Context(), "tcp", r.address)
	if err == nil {
		_ = conn.Close()
		t.Error("a second connection was served")
	}
}

func TestTheOldestTLSVersionCanBeSet(t *testing.T) {
	r := start(t, func(o *dpserver.Options) { o.TLSMinVersion = "TLSv1_3" })
	dial := func(newest uint16) error {
		conn, err := (&tls.Dialer{Config: &tls.Config{RootCAs: r.roots, MinVersion: tls.VersionTLS12, MaxVersion: newest}}).
			DialContext(t.Context(), "tcp", r.address)
		if err == nil {
			_ = conn.Close()
		}
		return err
	}
	if err := dial(tls.VersionTLS12); err == nil {
		t.Error("TLS 1.2 was spoken")
	}
	if err := dial(tls.VersionTLS13); err != nil {
		t.Errorf("TLS 1.3: %v", err)
	}
}

func TestConfig(t *testing.T) {
	if errs := dpserver.Default().Validate(); len(errs) > 0 {
		t.Errorf("defaults: %v", errs)
	}
	bad := dpserver.Config{Port: -1, TLSCertFile: "x", TLSCAFile: "x", Auth: dpserver.Auth{Type: "x"}}
	if errs := bad.Validate(); len(errs) != 9 {
		t.Errorf("%d problems: %v", len(errs), errs)
	}
}
