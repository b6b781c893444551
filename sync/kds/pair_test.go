package kds

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
)

// pipe is a stream between a publisher and a subscriber, without a network. What is not received yet is kept, up to
// what its channels hold.
type pipe struct {
	requests  chan *discoveryv3.DeltaDiscoveryRequest
	responses chan *discoveryv3.DeltaDiscoveryResponse
	done      chan struct{}
	once      sync.Once
}

func newPipe(depth int) *pipe {
	return &pipe{
		requests:  make(chan *discoveryv3.DeltaDiscoveryRequest, depth),
		responses: make(chan *discoveryv3.DeltaDiscoveryResponse, depth),
		done:      make(chan struct{}),
	}
}

func (p *pipe) close() { p.once.Do(func() { close(p.done) }) }

func recv[T any](p *pipe, c <-chan T) (T, error) {
	select {
	case v := <-c:
		return v, nil
	case <-p.done:
		var zero T
		return zero, io.EOF
	}
}

func send[T any](p *pipe, c chan<- T, v T) error {
	select {
	case c <- v:
		return nil
	case <-p.done:
		return errors.New("stream closed")
	}
}

// publisherEnd and subscriberEnd are the two sides of a pipe.
type (
	publisherEnd  struct{ *pipe }
	subscriberEnd struct{ *pipe }
)

func (e publisherEnd) Recv() (*discoveryv3.DeltaDiscoveryRequest, error) {
	return recv(e.pipe, e.requests)
}

func (e publisherEnd) Send(r *discoveryv3.DeltaDiscoveryResponse) error {
	return send(e.pipe, e.responses, r)
}

func (e subscriberEnd) Recv() (*discoveryv3.DeltaDiscoveryResponse, error) {
	return recv(e.pipe, e.responses)
}

func (e subscriberEnd) Send(r *discoveryv3.DeltaDiscoveryRequest) error {
	return send(e.pipe, e.requests, r)
}

func openStore(t testing.TB, o store.Options) *store.Store {
	t.Helper()
	st, err := store.Open(context.Background(), memory.New(), o)
	if err != nil {
		t.Fatalf("open store: %v", err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Errorf("close store: %v", err)
		}
	})
	return st
}

func commit(t testing.TB, st *store.Store, ops ...store.Op) store.Revision {
	t.Helper()
	rev, err := st.Update(context.Background(), func(*store.Snapshot) ([]store.Op, error) { return ops, nil })
	if err != nil {
		t.Fatalf("commit: %v", err)
	}
	return rev
}

func newRecord(t testing.TB, typ resource.Type, mesh, name string, spec proto.Message) *store.Record {
	t.Helper()
	rec := &store.Record{Key: store.Key{Type: string(typ), Mesh: mesh, Name: name}, Spec: []byte(`{"targetRef":{"kind":"Mesh"}}`)}
	if spec != nil {
		rec.Spec = encode(t, spec)
	}
	return rec
}

func encode(t testing.TB, m proto.Message) []byte {
	t.Helper()
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		t.Fatalf("encode: %v", err)
	}
	return b
}

func newPermission(service string) proto.Message {
	match := []*meshv1.Selector{{Match: map[string]string{"kuma.io/service": service}}}
	return &meshv1.TrafficPermission{Sources: match, Destinations: match}
}

func newDataplane(address string) proto.Message {
	return &meshv1.Dataplane{Networking: &meshv1.Dataplane_Networking{
		Address: address,
		Inbound: []*meshv1.Dataplane_Networking_Inbound{{Port: 8080, Tags: map[string]string{"kuma.io/service": "web"}}},
	}}
}

func newSecret(data string) proto.Message {
	return &systemv1.Secret{Data: wrapperspb.Bytes([]byte(data))}
}

func publisherConfig(t testing.TB, dir Direction, st *store.Store) PublisherConfig {
	identifier := GlobalIdentifier
	if dir == Up {
		identifier = "zone-1"
	}
	return PublisherConfig{
		Direction: dir, Zone: "zone-1", Identifier: identifier, Store: st, Encoder: NewEncoder(), MaxMessageBytes: 10 << 20,
		AckTimeout: 30 * time.Second, InsightInterval: time.Second, Metrics: NewMetrics(nil), Log: testLog(t),
	}
}

func subscriberConfig(t testing.TB, dir Direction, st *store.Store) SubscriberConfig {
	peer := GlobalIdentifier
	if dir == Up {
		peer = "zone-1"
	}
	return SubscriberConfig{
		Direction: dir, Peer: peer, Node: Node{ID: "zone-1", PlaneID: st.ID(), Features: []string{FeatureResume}},
		Store: st, Metrics: NewMetrics(nil), Log: testLog(t),
	}
}

func testLog(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), nil))
}

// publish runs a publisher and returns the peer's end of its stream, and what ends it and says why.
func publish(t testing.TB, cfg PublisherConfig, depth int) (end subscriberEnd, p *Publisher, stop func() error) {
	t.Helper()
	line := newPipe(depth)
	p = NewPublisher(cfg)
	stop = run(line, func(ctx context.Context, readers *sync.WaitGroup) error {
		return p.Run(ctx, publisherEnd{line}, readers)
	})
	t.Cleanup(func() { _ = stop() })
	return subscriberEnd{line}, p, stop
}

// subscribe runs a subscriber and returns the peer's end of its stream, and what ends it and says why.
func subscribe(t testing.TB, cfg SubscriberConfig, depth int) (end publisherEnd, stop func() error) {
	t.Helper()
	line := newPipe(depth)
	s := NewSubscriber(cfg)
	stop = run(line, func(ctx context.Context, readers *sync.WaitGroup) error {
		return s.Run(ctx, subscriberEnd{line}, readers)
	})
	t.Cleanup(func() { _ = stop() })
	return publisherEnd{line}, stop
}

// join lets a publisher and a subscriber talk until stop, which returns what ended each.
func join(t testing.TB, pub PublisherConfig, sub SubscriberConfig) (p *Publisher, stop func() (published, subscribed error)) {
	t.Helper()
	line := newPipe(1000)
	p = NewPublisher(pub)
	s := NewSubscriber(sub)
	stopPub := run(line, func(ctx context.Context, readers *sync.WaitGroup) error {
		return p.Run(ctx, publisherEnd{line}, readers)
	})
	stopSub := run(line, func(ctx context.Context, readers *sync.WaitGroup) error {
		return s.Run(ctx, subscriberEnd{line}, readers)
	})
	stop = func() (error, error) { return stopPub(), stopSub() }
	t.Cleanup(func() { _, _ = stop() })
	return p, stop
}

// run starts one end of a line. When it ends by itself the line goes down, as a handler's return takes its stream down.
func run(line *pipe, serve func(context.Context, *sync.WaitGroup) error) (stop func() error) {
	ctx, cancel := context.WithCancel(context.Background())
	var readers sync.WaitGroup
	ended := make(chan struct{})
	var err error
	go func() {
		defer close(ended)
		err = serve(ctx, &readers)
		line.close()
	}()
	return func() error {
		cancel()
		<-ended
		readers.Wait()
		return err
	}
}

// request is the first request for a type, from a peer with the given features.
func request(typ resource.Type, resume string, features ...string) *discoveryv3.DeltaDiscoveryRequest {
	return &discoveryv3.DeltaDiscoveryRequest{
		Node: Node{ID: "zone-1", Features: features, Resume: resume}.proto(), TypeUrl: string(typ), ResourceNamesSubscribe: []string{"*"},
	}
}

func ackOf(resp *discoveryv3.DeltaDiscoveryResponse) *discoveryv3.DeltaDiscoveryRequest {
	return &discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "zone-1"}, TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()}
}

// next waits for the next message of a channel, and says when there is none.
func next[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	synctest.Wait()
	select {
	case v := <-c:
		return v
	default:
		t.Fatal("nothing was sent")
		panic("unreachable")
	}
}

// quiet asks that nothing is under way.
func quiet[T any](t testing.TB, c <-chan T) {
	t.Helper()
	synctest.Wait()
	select {
	case v := <-c:
		t.Fatalf("something was sent: %v", v)
	default:
	}
}

// summary is what matters of a response: its names, what it removes, and its token.
type summary struct {
	Names, Removed []string
	Token          string
}

func summarize(resp *discoveryv3.DeltaDiscoveryResponse) summary {
	s := summary{Removed: resp.GetRemovedResources(), Token: resp.GetSystemVersionInfo()}
	for _, r := range resp.GetResources() {
		s.Names = append(s.Names, r.GetName())
	}
	return s
}

func sameSummary(t testing.TB, want summary, got *discoveryv3.DeltaDiscoveryResponse) {
	t.Helper()
	if d := cmp.Diff(want, summarize(got)); d != "" {
		t.Errorf("response (-want +got):\n%s", d)
	}
}

// onWire is a resource as it travels; a nil spec becomes JSON.
func onWire(t testing.TB, name, mesh string, spec proto.Message, labels map[string]string) *discoveryv3.Resource {
	t.Helper()
	body := &anypb.Any{Value: []byte(`{"targetRef":{"kind":"Mesh"}}`)}
	if spec != nil {
		body = &anypb.Any{TypeUrl: typeURLPrefix + string(spec.ProtoReflect().Descriptor().FullName()), Value: encode(t, spec)}
	}
	return &discoveryv3.Resource{
		Name: wireKey(name, mesh), Version: "1",
		Resource: &anypb.Any{TypeUrl: kumaResourceURL, Value: encode(t, &meshv1.KumaResource{
			Meta: &meshv1.KumaResource_Meta{Name: name, Mesh: mesh, Labels: labels}, Spec: body,
		})},
	}
}

// reply is a response of the peer that a subscriber listens to.
func reply(identifier string, typ resource.Type, nonce, token string, resources ...*discoveryv3.Resource) *discoveryv3.DeltaDiscoveryResponse {
	return &discoveryv3.DeltaDiscoveryResponse{
		TypeUrl: string(typ), Nonce: nonce, SystemVersionInfo: token, Resources: resources,
		ControlPlane: &corev3.ControlPlane{Identifier: identifier},
	}
}

// answerTo reads the subscriber's requests up to its answer to a nonce.
func answerTo(t testing.TB, end publisherEnd, nonce string) *discoveryv3.DeltaDiscoveryRequest {
	t.Helper()
	for {
		if req := next(t, end.requests); req.GetResponseNonce() == nonce {
			return req
		}
	}
}

// stored is what a store holds of a type, by mesh/name.
func stored(st *store.Store, typ resource.Type) map[string]string {
	out := map[string]string{}
	for rec := range st.Snapshot().List(string(typ), "") {
		out[rec.Key.Mesh+"/"+rec.Key.Name] = string(bytes.Clone(rec.Spec))
	}
	return out
}

func namesOf(st *store.Store, typ resource.Type) []string {
	var out []string
	for rec := range st.Snapshot().List(string(typ), "") {
		out = append(out, rec.Key.Mesh+"/"+rec.Key.Name)
	}
	return out
}
