package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/global/zones"
	"github.com/meridian-mesh/meridian/sync/kds"
)

// ServeXDSConfigs asks over a stream of a zone, which must have been admitted, until ctx or the stream ends. It may return before
// the last Send and Recv have: those end with the caller's handler, and halves counts them.
func (r *Registry) ServeXDSConfigs(ctx context.Context, hello zones.Hello,
	s grpc.BidiStreamingServer[meshv1.XDSConfigResponse, meshv1.XDSConfigRequest], halves *sync.WaitGroup,
) error {
	return serve(ctx, r, newLink(hello, zones.XDSConfigs, r.o.Config.MaxPerZone), s, halves, func(a *meshv1.XDSConfigResponse) answer {
		_, failed := a.GetResult().(*meshv1.XDSConfigResponse_Error)
		return answer{body: a.GetConfig(), failed: failed, text: a.GetError(), reason: a.GetMeridianReason()}
	})
}

// ServeStats is [Registry.ServeXDSConfigs] for statistics.
func (r *Registry) ServeStats(ctx context.Context, hello zones.Hello,
	s grpc.BidiStreamingServer[meshv1.StatsResponse, meshv1.StatsRequest], halves *sync.WaitGroup,
) error {
	return serve(ctx, r, newLink(hello, zones.Stats, r.o.Config.MaxPerZone), s, halves, func(a *meshv1.StatsResponse) answer {
		_, failed := a.GetResult().(*meshv1.StatsResponse_Error)
		return answer{body: a.GetStats(), failed: failed, text: a.GetError(), reason: a.GetMeridianReason()}
	})
}

// ServeClusters is [Registry.ServeXDSConfigs] for clusters.
func (r *Registry) ServeClusters(ctx context.Context, hello zones.Hello,
	s grpc.BidiStreamingServer[meshv1.ClustersResponse, meshv1.ClustersRequest], halves *sync.WaitGroup,
) error {
	return serve(ctx, r, newLink(hello, zones.Clusters, r.o.Config.MaxPerZone), s, halves, func(a *meshv1.ClustersResponse) answer {
		_, failed := a.GetResult().(*meshv1.ClustersResponse_Error)
		return answer{body: a.GetClusters(), failed: failed, text: a.GetError(), reason: a.GetMeridianReason()}
	})
}

func serve[Resp, Req any, A interface {
	*Resp
	GetRequestId() string
}](ctx context.Context, r *Registry, l *link, s grpc.BidiStreamingServer[Resp, Req], halves *sync.WaitGroup, read func(A) answer) error {
	r.open(ctx, l)
	defer r.close(l)
	// Neither half can be waited for: a Send waits while the zone does not read, and a Recv while it does not write.
	ended := make(chan error, 2)
	halves.Go(func() {
		ended <- l.write(func(m proto.Message) error {
			if err := s.Send(any(m).(*Req)); err != nil {
				return fmt.Errorf("send request: %w", err)
			}
			return nil
		})
	})
	halves.Go(func() {
		ended <- r.read(l, func() (string, answer, error) {
			msg, err := s.Recv()
			if err != nil {
				return "", answer{}, err
			}
			return A(msg).GetRequestId(), read(msg), nil
		})
	})
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// read delivers the answers on l until receive fails.
func (r *Registry) read(l *link, receive func() (id string, a answer, err error)) error {
	for {
		id, a, err := receive()
		if errors.Is(err, io.EOF) {
			return kds.ErrStreamEnded
		}
		if err != nil {
			return fmt.Errorf("read answer: %w", err)
		}
		if !l.deliver(id, a) {
			r.metrics.ignored.WithLabelValues(l.kind.String()).Inc()
			r.o.Log.Debug("an answer that nobody waits for is ignored", "zone", l.zone, "stream", l.kind.String(), "id", id)
		}
	}
}
