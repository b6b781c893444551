package envoy

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

// dialer is a gRPC service of the bootstrap.
type dialer struct {
	target   string
	tls      *tls.Config
	metadata metadata.MD
}

// dialer reads where a gRPC service of the bootstrap is and how to reach it.
func (p *Proxy) dialer(source *corev3.ApiConfigSource) (*dialer, error) {
	if source.GetApiType() != corev3.ApiConfigSource_GRPC || source.GetTransportApiVersion() != corev3.ApiVersion_V3 {
		return nil, fmt.Errorf("type %s with transport %s: must be GRPC and V3", source.GetApiType(), source.GetTransportApiVersion())
	}
	if len(source.GetGrpcServices()) != 1 {
		return nil, fmt.Errorf("%d services: must be one", len(source.GetGrpcServices()))
	}
	service := source.GetGrpcServices()[0]
	name := service.GetEnvoyGrpc().GetClusterName()
	cluster := p.state.static[name]
	if cluster == nil {
		return nil, fmt.Errorf("cluster %q is not a static one", name)
	}
	groups := cluster.GetLoadAssignment().GetEndpoints()
	if len(groups) == 0 || len(groups[0].GetLbEndpoints()) == 0 {
		return nil, fmt.Errorf("cluster %q has no endpoint", name)
	}
	if err := wantsHTTP2(cluster); err != nil {
		return nil, err
	}
	address := groups[0].GetLbEndpoints()[0].GetEndpoint().GetAddress().GetSocketAddress()
	config, err := upstreamTLS(cluster.GetTransportSocket(), p.staticSecret)
	if err != nil {
		return nil, fmt.Errorf("cluster %q: %w", name, err)
	}
	if config == nil {
		return nil, fmt.Errorf("cluster %q is not under TLS", name)
	}
	if len(config.NextProtos) == 0 {
		config.NextProtos = []string{"h2"} // Envoy's gRPC client sends it when nothing else is said
	}
	d := &dialer{
		target: net.JoinHostPort(address.GetAddress(), strconv.Itoa(int(address.GetPortValue()))), tls: config, metadata: metadata.MD{},
	}
	for _, v := range service.GetInitialMetadata() {
		d.metadata.Append(v.GetKey(), v.GetValue())
	}
	return d, nil
}

func (p *Proxy) staticSecret(name string) *tlsv3.Secret {
	for _, s := range p.bootstrap.GetStaticResources().GetSecrets() {
		if s.GetName() == name {
			return s
		}
	}
	return nil
}

func (d *dialer) dial() (*grpc.ClientConn, error) {
	return grpc.NewClient("passthrough:///"+d.target, grpc.WithTransportCredentials(credentials.NewTLS(d.tls)),
		grpc.WithDisableServiceConfig(), grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
}

// again runs one session after the other, with growing pauses after those that did not get anywhere.
func (p *Proxy) again(ctx context.Context, session func() (useful bool, err error)) {
	for tries := 0; ctx.Err() == nil; tries++ {
		useful, err := session()
		if ctx.Err() != nil {
			return
		}
		p.log.DebugContext(ctx, "stream ended", "err", err)
		if useful {
			tries = 0
		}
		most := min(p.backoff<<min(tries, 4), 10*p.backoff)
		if !pause(ctx, time.Duration(rand.Int64N(int64(most)))) { //nolint:gosec // a pause need not be unpredictable
			return
		}
	}
}

func (p *Proxy) runADS(ctx context.Context, d *dialer) {
	p.again(ctx, func() (bool, error) {
		useful, err := p.session(ctx, d)
		p.update(func() {
			p.connected = false
			p.lastError = err
		})
		return useful, err
	})
}

// session is one stream, from its first request to its end.
func (p *Proxy) session(ctx context.Context, d *dialer) (useful bool, err error) {
	conn, err := d.dial()
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithCancel(metadata.NewOutgoingContext(ctx, d.metadata))
	defer cancel()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
	if err != nil {
		return false, fmt.Errorf("open the ADS stream: %w", err)
	}
	s := &sender{stream: stream, node: p.bootstrap.GetNode(), once: p.bootstrap.GetDynamicResources().GetAdsConfig().
		GetSetNodeOnFirstMessageOnly()}

	// What was asked for on the stream before is asked for anew: with the versions accepted, without a nonce.
	var first []*discoveryv3.DiscoveryRequest
	p.update(func() {
		p.connected = true
		p.streams++
		for _, kind := range []Kind{Runtimes, Clusters, Endpoints, Secrets, Listeners, Routes} {
			if sub := p.state.subs[kind]; sub != nil {
				sub.nonce = ""
				first = append(first, sub.request(kind))
			}
		}
		for _, kind := range p.state.due() {
			first = append(first, p.state.subs[kind].request(kind))
		}
	})
	for _, r := range first {
		if err := s.send(r); err != nil {
			return false, err
		}
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			return useful, fmt.Errorf("ADS stream: %w", err)
		}
		useful = true
		for _, r := range p.receive(ctx, resp) {
			if err := s.send(r); err != nil {
				return useful, err
			}
		}
	}
}

type sender struct {
	stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient
	node   *corev3.Node
	once   bool
	sent   bool
}

func (s *sender) send(r *discoveryv3.DiscoveryRequest) error {
	if !s.sent || !s.once {
		r.Node = s.node
	}
	s.sent = true
	if err := s.stream.Send(r); err != nil {
		_, err = s.stream.Recv() // the reason comes there
		return fmt.Errorf("ADS stream: %w", err)
	}
	return nil
}

func (sub *subscription) request(kind Kind) *discoveryv3.DiscoveryRequest {
	return &discoveryv3.DiscoveryRequest{
		TypeUrl: string(kind), VersionInfo: sub.version, ResponseNonce: sub.nonce, ResourceNames: slices.Clone(sub.names),
	}
}

// receive takes in a response and returns what to send: first what it makes the proxy ask for, then the answer to it, which is
// Envoy's order. A request that would be of the answer's own kind is merged into the answer.
func (p *Proxy) receive(ctx context.Context, resp *discoveryv3.DiscoveryResponse) []*discoveryv3.DiscoveryRequest {
	kind := Kind(resp.GetTypeUrl())
	record := Response{Kind: kind, Version: resp.GetVersionInfo(), Nonce: resp.GetNonce(), At: time.Now()}
	var resources []proto.Message
	var refused error
	for _, packed := range resp.GetResources() {
		m, err := packed.UnmarshalNew()
		switch {
		case err != nil:
			refused = errors.Join(refused, err)
		case packed.GetTypeUrl() != resp.GetTypeUrl():
			refused = errors.Join(refused, fmt.Errorf("a %s in a response of %s", packed.GetTypeUrl(), resp.GetTypeUrl()))
		default:
			record.Names = append(record.Names, nameOf(m))
			resources = append(resources, m)
		}
	}
	var out []*discoveryv3.DiscoveryRequest
	p.update(func() {
		sub := p.state.subs[kind]
		if sub == nil {
			p.state.find("a response of %s, which was not subscribed to", kind)
			record.Rejected = "not subscribed"
			p.history = append(p.history, record)
			return
		}
		record.Stream = p.streams
		if refused == nil {
			refused = p.state.verify(kind, resources)
		}
		if demanded := p.rejects[kind]; len(demanded) > 0 {
			refused = errors.New(demanded[0])
			p.rejects[kind] = demanded[1:]
		}
		sub.nonce = resp.GetNonce()
		count := p.counters[kind]
		count.Received++
		if refused != nil {
			count.Rejected++
			record.Rejected = refused.Error()
			// A first response that is no good does not keep Envoy from starting.
			p.state.clustersAnswered = p.state.clustersAnswered || kind == Clusters
		} else {
			count.Accepted++
			sub.version, sub.accepted = resp.GetVersionInfo(), record.At
			p.state.apply(kind, resp.GetVersionInfo(), resources, record.At)
		}
		p.counters[kind] = count
		p.history = append(p.history, record)
		p.state.settle()
		for _, k := range p.state.due() {
			if k != kind {
				out = append(out, p.state.subs[k].request(k))
			}
		}
		answer := sub.request(kind)
		if refused != nil {
			answer.ErrorDetail = &status.Status{Code: int32(codes.Internal), Message: refused.Error()}
		}
		out = append(out, answer)
		p.traffic.apply(p.state)
	})
	if refused != nil {
		p.log.InfoContext(ctx, "response rejected", "type", resp.GetTypeUrl(), "version", resp.GetVersionInfo(), "err", refused)
	}
	return out
}
