package upstream

import (
	"context"
	"fmt"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

// noProxies answers every administrative request: this plane serves no proxies yet, so there is none to ask.
const noProxies = "no proxy of this zone is connected to its control plane"

// superviseAdmin holds open the three reverse streams on which the global asks about proxies. Their failures concern
// nothing else.
func (u *Upstream) superviseAdmin(ctx context.Context, g *errgroup.Group, client meshv1.GlobalKDSServiceClient) {
	g.Go(func() error {
		return u.superviseOptional(ctx, "xds_configs", func(ctx context.Context) error {
			stream, err := client.StreamXDSConfigs(ctx)
			return answer(stream, err, func(req *meshv1.XDSConfigRequest) *meshv1.XDSConfigResponse {
				return &meshv1.XDSConfigResponse{RequestId: req.GetRequestId(), Result: &meshv1.XDSConfigResponse_Error{Error: noProxies}}
			})
		})
	})
	g.Go(func() error {
		return u.superviseOptional(ctx, "stats", func(ctx context.Context) error {
			stream, err := client.StreamStats(ctx)
			return answer(stream, err, func(req *meshv1.StatsRequest) *meshv1.StatsResponse {
				return &meshv1.StatsResponse{RequestId: req.GetRequestId(), Result: &meshv1.StatsResponse_Error{Error: noProxies}}
			})
		})
	})
	g.Go(func() error {
		return u.superviseOptional(ctx, "clusters", func(ctx context.Context) error {
			stream, err := client.StreamClusters(ctx)
			return answer(stream, err, func(req *meshv1.ClustersRequest) *meshv1.ClustersResponse {
				return &meshv1.ClustersResponse{RequestId: req.GetRequestId(), Result: &meshv1.ClustersResponse_Error{Error: noProxies}}
			})
		})
	})
}

// answer replies to each request of a reverse stream, on which the client answers and the server asks.
func answer[Req, Resp any](stream grpc.BidiStreamingClient[Resp, Req], err error, reply func(*Req) *Resp) error {
	if err != nil {
		return fmt.Errorf("open stream: %w", err)
	}
	for {
		req, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("read request: %w", err)
		}
		if err := stream.Send(reply(req)); err != nil {
			return fmt.Errorf("send response: %w", err)
		}
	}
}
