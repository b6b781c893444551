package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
)

// relay serves the program's gRPC library on the socket, and passes each of its streams on.
func (a *Agent) relay(ctx context.Context) error {
	srv := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(srv, &relay{agent: a})
	served := make(chan error, 1)
	go func() { served <- srv.Serve(a.socket) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve the socket: %w", err)
	case <-ctx.Done():
		srv.Stop()
		<-served //nolint:errcheck // that it was stopped
		return nil
	}
}

// relay is the server side of the socket.
type relay struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	agent *Agent
}

// StreamAggregatedResources passes a stream on, message by message, until either side ends it. A program that starts before
// its agent is registered waits: the control plane would refuse a proxy it does not know.
func (r *relay) StreamAggregatedResources(down discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	ctx, cancel := context.WithCancel(down.Context())
	defer cancel()
	const patience = 30 * time.Second
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-r.agent.registered:
	case <-timer.C: // let the control plane say what is wrong
	case <-ctx.Done():
		return ctx.Err()
	}
	up, err := discoveryv3.NewAggregatedDiscoveryServiceClient(r.agent.conn).StreamAggregatedResources(ctx)
	if err != nil {
		return err // a status, which is the program's to see
	}
	// The request side ends with down's context, which gRPC ends when this returns.
	go func() {
		for {
			req, err := down.Recv()
			switch {
			case errors.Is(err, io.EOF):
				_ = up.CloseSend()
				return
			case err != nil:
				cancel()
				return
			}
			if up.Send(req) != nil {
				return // Recv below says why
			}
		}
	}()
	for {
		resp, err := up.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		if err := down.Send(resp); err != nil {
			return err
		}
	}
}
