package grpcrecover

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
)

// panics is a service whose handlers panic.
type panics struct {
	healthv1.UnimplementedHealthServer
}

func (panics) Check(context.Context, *healthv1.HealthCheckRequest) (*healthv1.HealthCheckResponse, error) {
	panic("a unary call")
}

func (panics) Watch(*healthv1.HealthCheckRequest, grpc.ServerStreamingServer[healthv1.HealthCheckResponse]) error {
	panic("a stream")
}

func TestAPanicEndsTheCallAndNotTheServer(t *testing.T) {
	var logged strings.Builder
	var mu sync.Mutex
	srv := grpc.NewServer(Options(slog.New(slog.NewTextHandler(writer(func(p []byte) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		return logged.Write(p)
	}), nil)))...)
	healthv1.RegisterHealthServer(srv, panics{})
	ln := bufconn.Listen(1 << 16)
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	conn, err := grpc.NewClient("passthrough:///test", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return ln.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	client := healthv1.NewHealthClient(conn)
	for range 2 { // the second finds the server there
		if _, err := client.Check(t.Context(), &healthv1.HealthCheckRequest{}); status.Code(err) != codes.Internal {
			t.Errorf("unary: %v", err)
		}
		stream, err := client.Watch(t.Context(), &healthv1.HealthCheckRequest{})
		if err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != codes.Internal || errors.Is(err, io.EOF) {
			t.Errorf("stream: %v", err)
		}
		if err != nil && strings.Contains(err.Error(), "a stream") {
			t.Errorf("the peer is told what happened inside: %v", err)
		}
	}
	_ = conn.Close()
	srv.Stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if got := logged.String(); strings.Count(got, "handler panicked") != 4 || !strings.Contains(got, "a unary call") {
		t.Errorf("logged: %s", got)
	}
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }
