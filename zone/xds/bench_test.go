package xds

import (
	"context"
	"fmt"
	"io"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// conn is the server's end of a stream without a network. Only one goroutine sends and only one receives.
type conn struct {
	grpc.ServerStream

	ctx      context.Context
	requests chan *discoveryv3.DiscoveryRequest
	sent     chan string // nonces
}

func (c *conn) Context() context.Context    { return c.ctx }
func (c *conn) SetHeader(metadata.MD) error { return nil }
func (c *conn) Send(r *discoveryv3.DiscoveryResponse) error {
	c.sent <- r.GetNonce()
	return nil
}

func (c *conn) Recv() (*discoveryv3.DiscoveryRequest, error) {
	select {
	case r := <-c.requests:
		return r, nil
	case <-c.ctx.Done():
		return nil, io.EOF
	}
}

// BenchmarkPublish publishes one changed kind to 1,000 connected streams with 200 resources of each of four kinds. The publish
// cases measure what Publish costs its caller; the round cases also the answers of all streams, without the network.
func BenchmarkPublish(b *testing.B) {
	const streams, size = 1000, 200
	state := func(b *testing.B, endpoint int) *Config {
		all := map[Kind]content{}
		for _, k := range []Kind{Cluster, Endpoint, Listener, Secret} {
			all[k] = content{}
			for i := range size {
				all[k][fmt.Sprint("resource-", i)] = 1
			}
		}
		all[Endpoint]["resource-7"] = endpoint
		return newConfig(b, all)
	}
	names := make([]string, size)
	for i := range names {
		names[i] = fmt.Sprint("resource-", i)
	}
	configs := []*Config{state(b, 2), state(b, 3)}
	for _, round := range []bool{false, true} {
		b.Run(map[bool]string{false: "publish", true: "round"}[round], func(b *testing.B) {
			s, err := New(Options{Sessions: newSessions()})
			if err != nil {
				b.Fatal(err)
			}
			ctx, cancel := context.WithCancel(b.Context())
			conns := make([]*conn, streams)
			done := make(chan error, streams)
			ids := make([]string, streams)
			for i := range conns {
				ids[i] = fmt.Sprint("node-", i)
				c := &conn{ctx: ctx, requests: make(chan *discoveryv3.DiscoveryRequest), sent: make(chan string, 8)}
				conns[i] = c
				s.Publish(ids[i], configs[1])
				go func() { done <- s.StreamAggregatedResources(c) }()
				for _, k := range []Kind{Cluster, Endpoint, Listener} {
					req := &discoveryv3.DiscoveryRequest{Node: &corev3.Node{Id: ids[i]}, TypeUrl: k.TypeURL()}
					if k == Endpoint {
						req.ResourceNames = names
					}
					c.requests <- req
					c.requests <- &discoveryv3.DiscoveryRequest{TypeUrl: k.TypeURL(), ResourceNames: req.GetResourceNames(), ResponseNonce: <-c.sent}
				}
			}
			ack := func() {
				for _, c := range conns {
					c.requests <- &discoveryv3.DiscoveryRequest{TypeUrl: Endpoint.TypeURL(), ResourceNames: names, ResponseNonce: <-c.sent}
				}
				(&rig{Server: s}).settle(b)
			}
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				for _, id := range ids {
					s.Publish(id, configs[n%2])
				}
				n++
				if !round {
					b.StopTimer()
				}
				ack()
				if !round {
					b.StartTimer()
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/streams, "ns/stream")
			cancel()
			for range conns {
				<-done
			}
			s.Shutdown()
		})
	}
}
