package oneport_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/meridian-mesh/meridian/common/oneport"
	"github.com/meridian-mesh/meridian/common/tlsconf"
)

// echo answers a List with a name of a size, for want of a service whose messages have one.
type echo struct {
	healthv1.UnimplementedHealthServer
	answer *healthv1.HealthListResponse
}

func (e echo) List(context.Context, *healthv1.HealthListRequest) (*healthv1.HealthListResponse, error) {
	return e.answer, nil
}

// BenchmarkCall compares gRPC through net/http with gRPC on frames of its own, over TLS on the loopback interface.
func BenchmarkCall(b *testing.B) {
	serving, ca, err := tlsconf.LoadOrCreate(b.TempDir(), "bench")
	if err != nil {
		b.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	for _, size := range []struct {
		name  string
		bytes int
	}{{"100 bytes", 100}, {"100 kB", 100_000}} {
		service := echo{answer: &healthv1.HealthListResponse{Statuses: map[string]*healthv1.HealthCheckResponse{strings.Repeat("x", size.bytes): {}}}}
		b.Run("through net_http, "+size.name, func(b *testing.B) {
			s, err := oneport.New(oneport.Options{
				Name: "bench", Address: "127.0.0.1:0", TLS: serving, MaxConnections: 10, MaxMessageBytes: 1 << 20,
				RequestTimeout: time.Minute, Keepalive: time.Minute, ShutdownTimeout: time.Second, Log: slog.New(slog.DiscardHandler),
				Register: func(r grpc.ServiceRegistrar) { healthv1.RegisterHealthServer(r, service) },
			})
			if err != nil {
				b.Fatal(err)
			}
			ctx, cancel := context.WithCancel(b.Context())
			done := make(chan error, 1)
			go func() { done <- s.Run(ctx) }()
			defer func() { cancel(); <-done }()
			call(b, s.Addr().String(), roots)
		})
		b.Run("by grpc-go, "+size.name, func(b *testing.B) {
			ln, err := (&net.ListenConfig{}).Listen(b.Context(), "tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			s := grpc.NewServer(grpc.Creds(credentials.NewTLS(serving)))
			healthv1.RegisterHealthServer(s, service)
			done := make(chan error, 1)
			go func() { done <- s.Serve(ln) }()
			defer func() { s.Stop(); <-done }()
			call(b, ln.Addr().String(), roots)
		})
	}
}

func call(b *testing.B, address string, roots *x509.CertPool) {
	b.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12})))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	client := healthv1.NewHealthClient(conn)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := client.List(b.Context(), &healthv1.HealthListRequest{}); err != nil {
			b.Fatal(err)
		}
	}
}
