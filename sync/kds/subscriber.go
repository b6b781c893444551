package kds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/validate"
	"github.com/meridian-mesh/meridian/common/store"
)

// ResponseStream is the subscriber's end of a stream: it reads responses and writes requests.
type ResponseStream interface {
	Recv() (*discoveryv3.DeltaDiscoveryResponse, error)
	Send(*discoveryv3.DeltaDiscoveryRequest) error
}

// SubscriberConfig is what a subscriber needs; all fields are required unless said otherwise.
type SubscriberConfig struct {
	Direction Direction
	// Peer is the origin of all that arrives, and what its responses must call their sender: "global" or the zone.
	Peer string
	// Node goes with every first request; Node.ID, the zone's name, with every request.
	Node  Node
	Store *store.Store
	// Header returns what the peer sent in its response headers; it is asked only after the first message has
	// arrived. Nil on a server, which has none.
	Header func() (metadata.MD, error)
	// VerifyCluster is asked, before anything is applied, whether the peer is the global this zone belongs to. Its
	// error ends the stream. Nil accepts any peer at once.
	VerifyCluster func(ctx context.Context, clusterID string) error
	// Guard returns the ops that must go with every batch, given the head: the global makes sure of the Zone there.
	// Its error ends the stream. Optional.
	Guard func(head *store.Snapshot) ([]store.Op, error)
	// SendTimeout is how long the peer may leave a request unread before the stream is reset; 0 means no limit.
	SendTimeout time.Duration
	Metrics     *Metrics
	Log         *slog.Logger
}

// Subscriber serves one stream: it asks for every type of its direction and stores what comes.
type Subscriber struct {
	// Set by NewSubscriber, read-only after.
	cfg   SubscriberConfig
	inbox inbox
	types []*resource.Descriptor
	stall *stall

	mu       sync.Mutex // guards what follows
	slots    map[resource.Type]*discoveryv3.DeltaDiscoveryResponse
	unknown  []*discoveryv3.DeltaDiscoveryResponse
	received bool
	wake     chan struct{} // cap 1, level-triggered: "look at the slots"

	// Owned by the writer.
	state    map[resource.Type]*received
	verified bool
}

// received is what the writer knows of one type on this stream.
type received struct {
	done  bool            // the first state is complete
	pages map[string]bool // wire keys of the pages of a state that is not complete yet
	token string          // the last complete token on this stream or the stored one it was opened with
	// rejected are the wire keys of what was left out and not replaced since. While there are any, no token is
	// stored, so that the next stream offers them again.
	rejected map[string]bool
}

func (r *received) remember(bad []rejection) {
	if r.rejected == nil {
		r.rejected = make(map[string]bool)
	}
	for _, b := range bad {
		r.rejected[b.key] = true
	}
}

func (r *received) forget(put map[string]int, removed []string) {
	for k := range put {
		delete(r.rejected, k)
	}
	for _, k := range removed {
		delete(r.rejected, k)
	}
}

// NewSubscriber returns a subscriber for one stream.
func NewSubscriber(cfg SubscriberConfig) *Subscriber {
	s := &Subscriber{
		cfg:      cfg,
		inbox:    inbox{dir: cfg.Direction, peer: cfg.Peer},
		types:    cfg.Direction.Types(),
		stall:    newStall(cfg.SendTimeout),
		slots:    make(map[resource.Type]*discoveryv3.DeltaDiscoveryResponse),
		wake:     make(chan struct{}, 1),
		state:    make(map[resource.Type]*received),
		verified: cfg.VerifyCluster == nil,
	}
	for _, d := range s.types {
		s.state[d.Name] = &received{}
	}
	return s
}

// Run serves the stream until ctx ends, the peer goes away or breaks the protocol, or the store fails. It never
// returns nil. The reader and the writer it starts may end only when the stream does, which on a server is after the
// handler has returned: halves counts them. Nothing is committed any more once ctx has ended.
func (s *Subscriber) Run(ctx context.Context, stream ResponseStream, halves *sync.WaitGroup) error {
	s.cfg.Metrics.streams.WithLabelValues(s.cfg.Direction.String()).Inc()
	defer s.cfg.Metrics.streams.WithLabelValues(s.cfg.Direction.String()).Dec()
	return serve(ctx, halves, s.stall,
		func() error { return s.read(ctx, stream) },
		func(readErr <-chan error) error { return s.write(ctx, stream, readErr) })
}

// read is the only caller of Recv. It touches only what mu guards, and never waits for the writer: a peer may have one
// response per type under way, so there is always room.
func (s *Subscriber) read(ctx context.Context, stream ResponseStream) error {
	for {
		resp, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return ErrStreamEnded
		case err != nil:
			return fmt.Errorf("read response: %w", err)
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		if err := s.accept(resp); err != nil {
			return err
		}
		select {
		case s.wake <- struct{}{}:
		default: // already awake
		}
	}
}

func (s *Subscriber) accept(resp *discoveryv3.DeltaDiscoveryResponse) error {
	typ := resource.Type(resp.GetTypeUrl())
	switch id := resp.GetControlPlane().GetIdentifier(); {
	case typ == "":
		return fmt.Errorf("%w: a response has no type_url", ErrProtocol)
	case resp.GetNonce() == "":
		return fmt.Errorf("%w: a response of %s has no nonce", ErrProtocol, typ)
	case id != s.cfg.Peer:
		return fmt.Errorf("%w: control plane identifier %q on a stream of %q", ErrProtocol, id, s.cfg.Peer)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.received = true
	if _, ok := s.state[typ]; !ok {
		if len(s.unknown) >= maxSubscriptions {
			return fmt.Errorf("%w: too many responses of types that do not travel in this direction", ErrProtocol)
		}
		s.unknown = append(s.unknown, resp)
		return nil
	}
	if _, busy := s.slots[typ]; busy {
		return fmt.Errorf("%w: a second response of %s before the first was acknowledged", ErrProtocol, typ)
	}
	s.slots[typ] = resp
	return nil
}

// write is the only caller of Send. It asks for every type, then applies and acknowledges what the reader put into
// the slots, in the registry's order.
func (s *Subscriber) write(ctx context.Context, stream ResponseStream, readErr <-chan error) error {
	snap := s.cfg.Store.Snapshot()
	for i, d := range s.types {
		node := s.cfg.Node
		if i > 0 {
			node.Config = "" // one copy is enough, and it is large
		}
		node.Resume = storedToken(snap, s.cfg.Peer, d.Name)
		s.state[d.Name].token = node.Resume
		req := &discoveryv3.DeltaDiscoveryRequest{Node: node.proto(), TypeUrl: string(d.Name), ResourceNamesSubscribe: []string{"*"}}
		if err := s.stall.watch(func() error { return stream.Send(req) }); err != nil {
			return s.sendError(err, readErr)
		}
	}
	for {
		if err := s.applyAll(ctx, stream, readErr); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case err := <-readErr:
			return err
		case <-s.wake:
		}
	}
}

// sendError explains a failed Send: gRPC reports only EOF there, and the cause to the reader.
func (s *Subscriber) sendError(err error, readErr <-chan error) error {
	if errors.Is(err, io.EOF) {
		return <-readErr
	}
	return fmt.Errorf("send request: %w", err)
}

func (s *Subscriber) take(t resource.Type) *discoveryv3.DeltaDiscoveryResponse {
	s.mu.Lock()
	defer s.mu.Unlock()
	resp := s.slots[t]
	delete(s.slots, t)
	return resp
}

func (s *Subscriber) applyAll(ctx context.Context, stream ResponseStream, readErr <-chan error) error {
	if err := s.verify(ctx); err != nil {
		return err
	}
	s.mu.Lock()
	unknown := s.unknown
	s.unknown = nil
	s.mu.Unlock()
	for _, resp := range unknown {
		s.cfg.Metrics.refused.WithLabelValues(s.cfg.Direction.String()).Inc()
		s.cfg.Log.WarnContext(ctx, "peer sent a type that does not travel in this direction", "type", resp.GetTypeUrl())
		reason := fmt.Sprintf("type %q does not travel in this direction", resp.GetTypeUrl())
		if err := s.answer(stream, resp, reason, nil); err != nil {
			return s.sendError(err, readErr)
		}
	}
	for _, d := range s.types {
		if !s.verified && d.Name != resource.Config {
			continue // held until the peer is known
		}
		resp := s.take(d.Name)
		if resp == nil {
			continue
		}
		if !s.verified {
			if err := s.verifyConfig(ctx, resp); err != nil {
				return err
			}
		}
		reason, bad := "", []rejection(nil)
		if s.verified {
			var err error
			if bad, err = s.store(ctx, d, resp); err != nil {
				return err
			}
			if len(bad) > 0 {
				reason = s.reasons(ctx, d, bad)
			}
		}
		if err := s.answer(stream, resp, reason, bad); err != nil {
			return s.sendError(err, readErr)
		}
	}
	return nil
}

// answer acknowledges a response, or rejects it with a reason, naming what was left out.
func (s *Subscriber) answer(stream ResponseStream, resp *discoveryv3.DeltaDiscoveryResponse, reason string, bad []rejection) error {
	req := &discoveryv3.DeltaDiscoveryRequest{
		Node: &corev3.Node{Id: s.cfg.Node.ID}, TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce(),
	}
	outcome := "acked"
	if reason != "" {
		outcome = "rejected"
		req.ErrorDetail = &status.Status{Message: reason, Details: rejectionDetails(bad)}
		req.ResourceNamesSubscribe = []string{"*"}
	}
	s.cfg.Metrics.received.WithLabelValues(s.cfg.Direction.String(), s.typeLabel(resp), outcome).Inc()
	return s.stall.watch(func() error { return stream.Send(req) })
}

// typeLabel keeps the metric's label bounded, whatever a peer calls its types.
func (s *Subscriber) typeLabel(resp *discoveryv3.DeltaDiscoveryResponse) string {
	if _, ok := s.state[resource.Type(resp.GetTypeUrl())]; ok {
		return resp.GetTypeUrl()
	}
	return "other"
}

// verify asks, once the first message is there, whether the peer is the right global. A Meridian global says its
// cluster id in the headers; of any other it is learned from the Config it sends.
func (s *Subscriber) verify(ctx context.Context) error {
	s.mu.Lock()
	received := s.received
	s.mu.Unlock()
	if s.verified || !received || s.cfg.Header == nil {
		return nil
	}
	md, err := s.cfg.Header()
	if err != nil {
		return fmt.Errorf("read response headers: %w", err)
	}
	if id := md.Get(HeaderClusterID); len(id) == 1 && id[0] != "" {
		return s.admit(ctx, id[0])
	}
	return nil
}

func (s *Subscriber) admit(ctx context.Context, clusterID string) error {
	if err := s.cfg.VerifyCluster(ctx, clusterID); err != nil {
		return err
	}
	s.verified = true
	return nil
}

// verifyConfig looks for the cluster id in a response of Config. Without one the response is acknowledged and not
// applied: there is nothing in it that a global without identity may take away.
func (s *Subscriber) verifyConfig(ctx context.Context, resp *discoveryv3.DeltaDiscoveryResponse) error {
	for _, res := range resp.GetResources() {
		var kr meshv1.KumaResource
		if proto.Unmarshal(res.GetResource().GetValue(), &kr) != nil || kr.GetMeta().GetName() != resource.ClusterIDName {
			continue
		}
		var config systemv1.Config
		if proto.Unmarshal(kr.GetSpec().GetValue(), &config) != nil || config.GetConfig() == "" {
			continue
		}
		return s.admit(ctx, config.GetConfig())
	}
	return nil
}

// maxReasons bounds the text of a NACK.
const maxReasons = 20

// store commits one response and returns what was left out of it. An error ends the stream.
func (s *Subscriber) store(ctx context.Context, d *resource.Descriptor, resp *discoveryv3.DeltaDiscoveryResponse) ([]rejection, error) {
	st := s.state[d.Name]
	token, isDelta, err := s.token(st, resp)
	if err != nil {
		return nil, err
	}
	a := &apply{inbox: s.inbox, desc: d, removed: resp.GetRemovedResources(), keep: map[string]bool{}}
	var bad []rejection
	byWire := make(map[string]int, len(resp.GetResources()))
	for _, res := range resp.GetResources() {
		rec, err := s.inbox.record(d, res)
		if err != nil {
			bad = append(bad, rejection{res.GetName(), err})
			a.keep[res.GetName()], a.keep[ownKey(res)] = true, true
			continue
		}
		if rec == nil {
			continue
		}
		key := wireKey(rec.WireName, rec.Key.Mesh)
		if i, twice := byWire[key]; twice {
			a.records[i] = rec // the last one wins
			continue
		}
		byWire[key] = len(a.records)
		a.records = append(a.records, rec)
	}
	complete := token == nil || !token.More
	if !isDelta {
		if st.pages == nil {
			st.pages = make(map[string]bool, len(byWire))
			clear(st.rejected)
		}
		for k := range byWire {
			st.pages[k] = true
		}
		maps.Copy(st.pages, a.keep)
		if complete {
			a.full, a.keep = true, st.pages
		}
	}
	st.forget(byWire, resp.GetRemovedResources())
	if complete && token != nil && len(bad) == 0 && len(st.rejected) == 0 {
		a.token = token.String()
	}
	var rejected []rejection
	var result applied
	rev, err := s.cfg.Store.Update(ctx, func(head *store.Snapshot) ([]store.Op, error) {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx) // another stream may have brought newer state meanwhile
		}
		var ops []store.Op
		if s.cfg.Guard != nil {
			guard, err := s.cfg.Guard(head)
			if err != nil {
				return nil, err
			}
			ops = append(ops, guard...)
		}
		var more []store.Op
		more, rejected, result = a.ops(head)
		return append(ops, more...), nil
	})
	if err != nil {
		return nil, fmt.Errorf("commit %s: %w", d.Name, err)
	}
	if complete {
		st.done, st.pages = true, nil
		if token != nil {
			st.token = token.String()
		}
	}
	bad = append(bad, rejected...)
	st.remember(bad)
	s.observe(ctx, d, resp, rev, result, a.full)
	return bad, nil
}

// token reads what system_version_info says, and whether the response is a delta: a Kuma peer's is, after the first of
// its type. The first delta of a stream must build on what this side has.
func (s *Subscriber) token(st *received, resp *discoveryv3.DeltaDiscoveryResponse) (token *Token, delta bool, err error) {
	text := resp.GetSystemVersionInfo()
	if text == "" {
		return nil, st.done, nil
	}
	t, err := ParseToken(text)
	if err != nil {
		return nil, st.done, nil //nolint:nilerr // some other implementation's version info: of no use here
	}
	if t.Delta && !st.done {
		have, err := ParseToken(st.token)
		if err != nil || have.Store != t.Store || have.Revision != t.From {
			return nil, false, fmt.Errorf("%w: a delta of %s from revision %d, which this side did not ask for", ErrProtocol, resp.GetTypeUrl(), t.From)
		}
	}
	return &t, t.Delta, nil
}

func (s *Subscriber) observe(ctx context.Context, d *resource.Descriptor, resp *discoveryv3.DeltaDiscoveryResponse, rev store.Revision, result applied, full bool) {
	dir := s.cfg.Direction.String()
	s.cfg.Metrics.arrived.WithLabelValues(dir, string(d.Name), "put").Add(float64(len(resp.GetResources())))
	s.cfg.Metrics.arrived.WithLabelValues(dir, string(d.Name), "removed").Add(float64(len(resp.GetRemovedResources())))
	s.cfg.Metrics.applied.WithLabelValues(dir, string(d.Name), "put").Add(float64(len(result.put)))
	s.cfg.Metrics.applied.WithLabelValues(dir, string(d.Name), "removed").Add(float64(result.deleted))
	if full && result.deleted > 1 && result.deleted*2 > result.known {
		s.cfg.Metrics.massDeletions.WithLabelValues(dir, string(d.Name)).Inc()
		s.cfg.Log.ErrorContext(ctx, "a full state from the peer removed more than half of a type",
			"type", d.Name, "removed", result.deleted, "of", result.known)
	}
	s.judge(ctx, d, result.put)
	s.cfg.Log.DebugContext(ctx, "response applied", "type", d.Name, "nonce", resp.GetNonce(), "full", full,
		"put", len(result.put), "removed", result.deleted, "revision", rev)
}

// judge makes visible which of the stored records the HTTP API would have refused. They are stored all the same, and
// passed on: a resource is its owner's, the owner may be of a version with other rules, and one that is left out would
// be rejected anew on every stream. What does not even decode is left out; record sees to that.
//
// How a resource stands among the others is not looked at: they come on this stream in any order.
func (s *Subscriber) judge(ctx context.Context, d *resource.Descriptor, put []*store.Record) {
	var bad validate.Findings
	for _, rec := range put {
		bad.Add(rec.Key, validate.Spec(d, rec.Key, rec.Spec))
	}
	if bad.Count == 0 {
		return
	}
	s.cfg.Metrics.invalid.WithLabelValues(s.cfg.Direction.String(), string(d.Name)).Add(float64(bad.Count))
	s.cfg.Log.WarnContext(ctx, "resources from the peer break the rules of this version; they are kept and used as they are",
		"type", d.Name, "resources", &bad)
}

func (s *Subscriber) reasons(ctx context.Context, d *resource.Descriptor, bad []rejection) string {
	texts := make([]string, 0, min(len(bad), maxReasons)+1)
	for i, r := range bad {
		if i == maxReasons {
			texts = append(texts, fmt.Sprintf("and %d more", len(bad)-i))
			break
		}
		texts = append(texts, r.String())
	}
	reason := strings.Join(texts, "\n")
	s.cfg.Log.WarnContext(ctx, "resources from the peer left out", "type", d.Name, "count", len(bad), "reason", reason)
	return reason
}
