package hds

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	healthv3 "github.com/envoyproxy/go-control-plane/envoy/service/health/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
	"github.com/meridian-mesh/meridian/zone/proxies"
)

func TestAStreamThatSaysNothingEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, err := store.Open(t.Context(), memory.New(), store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = st.Close() }()
		s, err := New(Options{Config: DefaultConfig(), Proxies: nobody{}, Store: st})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel() // as gRPC does when the handler has returned
		ended := make(chan error, 1)
		go func() { ended <- s.StreamHealthCheck(silentStream{ctx: ctx}) }()
		time.Sleep(firstMessage + time.Second)
		synctest.Wait()
		select {
		case err := <-ended:
			if status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("it ends with %v", err)
			}
		default:
			t.Error("it is still open")
		}
	})
}

type nobody struct{}

func (nobody) Attach(context.Context, *corev3.Node, []string) (*proxies.Session, error) {
	return nil, status.Error(codes.Unimplemented, "nobody is let in")
}

// silentStream is a connection on which nothing comes.
type silentStream struct {
	grpc.ServerStream

	ctx context.Context
}

func (s silentStream) Context() context.Context                { return s.ctx }
func (silentStream) Send(*healthv3.HealthCheckSpecifier) error { return nil }
func (s silentStream) Recv() (*healthv3.HealthCheckRequestOrEndpointHealthResponse, error) {
	<-s.ctx.Done()
	return nil, s.ctx.Err()
}
