package xds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	runtimev3 "github.com/envoyproxy/go-control-plane/envoy/service/runtime/v3"
	"github.com/prometheus/client_golang/prometheus"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
)

// patience bounds how long a test waits for what must come.
const patience = 30 * time.Second

// newResource returns a resource whose content is told apart by n.
func newResource(t testing.TB, k Kind, name string, n int) *Resource {
	t.Helper()
	var m proto.Message
	switch k {
	case Cluster:
		m = &clusterv3.Cluster{Name: name, ConnectTimeout: durationpb.New(time.Duration(n+1) * time.Second)}
	case Endpoint:
		m = &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{{Priority: uint32(n % 100)}}}
	case Secret:
		m = &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_GenericSecret{GenericSecret: &tlsv3.GenericSecret{
			Secret: &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: []byte{byte(n), 1}}},
		}}}
	case Listener:
		m = &listenerv3.Listener{Name: name, StatPrefix: strings.Repeat("x", n+1)}
	case Route:
		m = &routev3.RouteConfiguration{Name: name, InternalOnlyHeaders: []string{strings.Repeat("x", n+1)}}
	case Runtime, kinds:
		m = &runtimev3.Runtime{Name: name, Layer: &structpb.Struct{Fields: map[string]*structpb.Value{"n": structpb.NewNumberValue(float64(n))}}}
	}
	r, err := NewResource(k, name, m)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// content is what a configuration or a response says: contents of resources by name.
type content map[string]int

// newConfig returns a configuration of the contents.
func newConfig(t testing.TB, of map[Kind]content) *Config {
	t.Helper()
	var resources []*Resource
	for k, names := range of {
		for name, n := range names {
			resources = append(resources, newResource(t, k, name, n))
		}
	}
	c, err := NewConfig(resources...)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// read decodes a response.
func read(t testing.TB, r *discoveryv3.DiscoveryResponse) content {
	t.Helper()
	out, err := decode(r)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func decode(r *discoveryv3.DiscoveryResponse) (content, error) {
	out := content{}
	for _, a := range r.GetResources() {
		if a.GetTypeUrl() != r.GetTypeUrl() {
			return nil, fmt.Errorf("resource of type %q in a response of type %q", a.GetTypeUrl(), r.GetTypeUrl())
		}
		m, err := a.UnmarshalNew()
		if err != nil {
			return nil, err
		}
		name, n := "", 0
		switch m := m.(type) {
		case *clusterv3.Cluster:
			name, n = m.GetName(), int(m.GetConnectTimeout().GetSeconds())-1
		case *endpointv3.ClusterLoadAssignment:
			name, n = m.GetClusterName(), int(m.GetEndpoints()[0].GetPriority())
		case *tlsv3.Secret:
			name, n = m.GetName(), int(m.GetGenericSecret().GetSecret().GetInlineBytes()[0])
		case *listenerv3.Listener:
			name, n = m.GetName(), len(m.GetStatPrefix())-1
		case *routev3.RouteConfiguration:
			name, n = m.GetName(), len(m.GetInternalOnlyHeaders()[0])-1
		case *runtimev3.Runtime:
			name, n = m.GetName(), int(m.GetLayer().GetFields()["n"].GetNumberValue())
		default:
			return nil, fmt.Errorf("unexpected %T", m)
		}
		if _, twice := out[name]; twice {
			return nil, fmt.Errorf("%q is in the response twice", name)
		}
		out[name] = n
	}
	return out, nil
}

// sessions is a Sessions that admits everyone unless told otherwise, and remembers the sessions it opened.
type sessions struct {
	refuse error

	mu       sync.Mutex
	sessions []*session
	opened   chan *session
}

func newSessions() *sessions { return &sessions{opened: make(chan *session, 2000)} }

func (s *sessions) Open(_ context.Context, first Opening) (Session, error) {
	if s.refuse != nil {
		return nil, s.refuse
	}
	out := &session{first: first, done: make(chan struct{}), closed: make(chan struct{}), answered: make(chan struct{}, 1)}
	s.mu.Lock()
	s.sessions = append(s.sessions, out)
	s.mu.Unlock()
	s.opened <- out
	return out, nil
}

type session struct {
	first  Opening
	done   chan struct{}
	closed chan struct{}

	mu       sync.Mutex
	check    error
	err      error
	events   []string // as they came
	answered chan struct{}
}

func (s *session) NodeID() string { return s.first.Node.GetId() }
func (s *session) Check() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.check
}

func (s *session) Sent(typeURL string) { s.note("sent", typeURL, "") }
func (s *session) Answered(typeURL, nack string) {
	if nack == "" {
		s.note("ack", typeURL, "")
	} else {
		s.note("nack", typeURL, nack)
	}
}
func (s *session) Done() <-chan struct{} { return s.done }
func (s *session) Err() error            { return s.err }
func (s *session) Close()                { close(s.closed) }

func (s *session) note(what, typeURL, text string) {
	kind := typeURL
	if k, ok := KindOf(typeURL); ok {
		kind = kindLabels[k]
	}
	s.mu.Lock()
	s.events = append(s.events, strings.TrimSpace(what+" "+kind+" "+text))
	s.mu.Unlock()
	select {
	case s.answered <- struct{}{}:
	default:
	}
}

// wants waits until the session was told all events.
func (s *session) wants(t *testing.T, want ...string) {
	t.Helper()
	deadline := time.After(patience)
	for {
		s.mu.Lock()
		got := slices.Clone(s.events)
		s.mu.Unlock()
		if slices.Equal(got, want) {
			return
		}
		select {
		case <-s.answered:
		case <-deadline:
			t.Fatalf("the session was told %q, want %q", got, want)
		}
	}
}

// rig is a server on a connection in memory.
type rig struct {
	*Server

	sessions *sessions
	registry *prometheus.Registry
	conn     *grpc.ClientConn
	dial     func() (*grpc.ClientConn, error)
}

func newRig(t testing.TB, options ...grpc.ServerOption) *rig {
	t.Helper()
	r := &rig{sessions: newSessions(), registry: prometheus.NewRegistry()}
	log := slog.New(slog.DiscardHandler)
	var err error
	r.Server, err = New(Options{Sessions: r.sessions, ControlPlaneID: "zone-1", Registerer: r.registry, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(options...)
	r.Register(g)
	listener := bufconn.Listen(1 << 16)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := g.Serve(listener); err != nil {
			t.Error(err)
		}
	})
	r.dial = func() (*grpc.ClientConn, error) {
		return grpc.NewClient("passthrough:///xds", grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	}
	if r.conn, err = r.dial(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = r.conn.Close()
		r.Shutdown()
		g.Stop()
		wg.Wait()
	})
	return r
}

// proxy is one stream as a proxy sees it. Methods fail the test when something else happens than they are told to expect.
type proxy struct {
	t        testing.TB
	stream   discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient
	node     *corev3.Node // for the next request
	received chan *discoveryv3.DiscoveryResponse
	err      chan error
	session  *session

	nonce, version [kinds]string
	names          [kinds][]string
}

// connect opens a stream. It sends nothing.
func (r *rig) connect(t testing.TB, node string) *proxy {
	t.Helper()
	return connect(t, r.conn, node)
}

func connect(t testing.TB, conn *grpc.ClientConn, node string) *proxy {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{
		t: t, stream: stream, node: &corev3.Node{Id: node},
		received: make(chan *discoveryv3.DiscoveryResponse), err: make(chan error, 1),
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				p.err <- err
				return
			}
			select {
			case p.received <- m:
			case <-ctx.Done():
				p.err <- ctx.Err()
				return
			}
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return p
}

func (p *proxy) send(r *discoveryv3.DiscoveryRequest) {
	p.t.Helper()
	r.Node, p.node = p.node, nil
	_ = p.stream.Send(r) // an error is that of Recv
}

// subscribe asks for resources of a kind, in the first request of the kind or by changing a subscription.
func (p *proxy) subscribe(k Kind, names ...string) {
	p.t.Helper()
	p.names[k] = names
	p.send(&discoveryv3.DiscoveryRequest{
		TypeUrl: k.TypeURL(), ResourceNames: names, ResponseNonce: p.nonce[k], VersionInfo: p.version[k],
	})
}

// wants receives the next response, which must hold what is given and nothing else. It does not answer.
func (p *proxy) wants(k Kind, want content) *discoveryv3.DiscoveryResponse {
	p.t.Helper()
	select {
	case m := <-p.received:
		got := read(p.t, m)
		if m.GetTypeUrl() != k.TypeURL() || !maps.Equal(got, want) {
			p.t.Fatalf("response of type %s: %v, want type %s: %v", m.GetTypeUrl(), got, k.TypeURL(), want)
		}
		p.nonce[k] = m.GetNonce()
		return m
	case err := <-p.err:
		p.t.Fatalf("stream ended: %v; want a response of type %s: %v", err, k.TypeURL(), want)
	case <-time.After(patience):
		p.t.Fatalf("no response; want type %s: %v", k.TypeURL(), want)
	}
	return nil
}

// ack acknowledges the latest response of a kind.
func (p *proxy) ack(m *discoveryv3.DiscoveryResponse) {
	p.t.Helper()
	k, _ := KindOf(m.GetTypeUrl())
	p.version[k] = m.GetVersionInfo()
	p.subscribe(k, p.names[k]...)
}

func (p *proxy) nack(m *discoveryv3.DiscoveryResponse, text string) {
	p.t.Helper()
	k, _ := KindOf(m.GetTypeUrl())
	p.send(&discoveryv3.DiscoveryRequest{
		TypeUrl: k.TypeURL(), ResourceNames: p.names[k], ResponseNonce: m.GetNonce(), VersionInfo: p.version[k],
		ErrorDetail: &rpcstatus.Status{Code: 3, Message: text},
	})
}

// takes receives and acknowledges the next response.
func (p *proxy) takes(k Kind, want content) *discoveryv3.DiscoveryResponse {
	p.t.Helper()
	m := p.wants(k, want)
	p.ack(m)
	return m
}

// quiet checks that the requests so far are not answered: the server takes requests in order, so when it has answered the
// first request of another kind, it has passed over them.
func (p *proxy) quiet(probe Kind) {
	p.t.Helper()
	p.subscribe(probe)
	m := p.wants(probe, content{})
	p.ack(m)
}

// ends waits for the end of the stream.
func (p *proxy) ends() error {
	p.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case <-p.received:
		case err := <-p.err:
			return err
		case <-deadline:
			p.t.Fatal("the stream did not end")
			return errors.New("unreachable")
		}
	}
}

// opened returns the session of the stream that was opened last.
func (r *rig) opened(t testing.TB) *session {
	t.Helper()
	select {
	case s := <-r.sessions.opened:
		return s
	case <-time.After(patience):
		t.Fatal("no session was opened")
		return nil
	}
}
