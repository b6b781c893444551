package proxies

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/tokens"
	"github.com/meridian-mesh/meridian/common/store"
)

// Session is one stream of a proxy.
type Session struct {
	// Set before anybody else has it, read-only after.
	registry       *Registry
	node           *node
	proxy          *proxy
	credential     credential
	peer           string // "" of one aside
	aside          bool
	subscriptionID string

	done chan struct{}

	mu      sync.Mutex     // guards what follows; locked after Registry.mu
	checked store.Revision // the newest state it was judged by; 0: none
	allowed *store.Record  // the resource that the token was found to be for
	expiry  *time.Timer    // nil: the token has not been looked at, or does not expire
	err     error          // why the stream must end; set once
	closed  bool

	// sub is the stream's part of the insight, nil of one aside. Guarded by Registry.mu.
	sub *meshv1.DiscoverySubscription
}

// Errors that are the same for all streams.
var (
	errShuttingDown = refuse(shuttingDown, codes.Unavailable, "the control plane is shutting down")
	errDeleted      = refuse(resourceDeleted, codes.NotFound, "the resource of the proxy was deleted")
)

// NodeID is the key of the proxy's configuration.
func (s *Session) NodeID() string { return s.proxy.id }

// Metadata is what the proxy told of itself on this stream.
func (s *Session) Metadata() Metadata { return s.node.metadata }

// Key names the proxy's resource.
func (s *Session) Key() store.Key { return s.proxy.key }

// Done is closed when the stream must end.
func (s *Session) Done() <-chan struct{} { return s.done }

// Err is why, once Done is closed.
func (s *Session) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Check reports whether the stream may go on, by the newest state.
func (s *Session) Check() error { return s.verify(s.registry.store.Snapshot()) }

// verify judges the stream by snap, and ends it when its time is over. When nothing was committed since, that costs nothing;
// when neither the keys, the revocations nor the resource have changed, little.
func (s *Session) verify(snap *store.Snapshot) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return s.err
	}
	if s.checked >= snap.Revision() {
		return nil
	}
	claims, rec, err := s.judge(snap)
	if err != nil {
		s.end(err)
		return err
	}
	s.checked, s.allowed = snap.Revision(), rec
	if !claims.Expires.IsZero() && s.expiry == nil && !s.closed {
		s.expiry = time.AfterFunc(time.Until(claims.Expires), s.expire)
	}
	return nil
}

func (s *Session) judge(snap *store.Snapshot) (tokens.Claims, *store.Record, error) {
	rec, ok := snap.Get(s.proxy.key)
	if !ok {
		return tokens.Claims{}, nil, errDeleted
	}
	if !s.credential.required {
		return tokens.Claims{}, rec, nil
	}
	if s.node.kind == Sidecar && !hasMesh(snap, s.node.mesh) {
		// The keys went with the mesh. A proxy whose mesh is missing keeps what it has, and gets nothing new.
		return tokens.Claims{}, rec, nil
	}
	claims, err := s.registry.verify(snap, s.node, s.credential)
	if err != nil || s.node.kind != Sidecar || rec == s.allowed {
		return claims, rec, err
	}
	dp := &meshv1.Dataplane{}
	if err := proto.Unmarshal(rec.Spec, dp); err != nil {
		return claims, rec, refuse(badResource, codes.Internal, "the stored resource of the proxy cannot be read")
	}
	return claims, rec, allowTags(claims, dp)
}

// expire runs when the token's time is over.
func (s *Session) expire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.end(unauthenticated(expired, "the token is expired"))
	}
}

// end says that the stream must end. It is called with mu held.
func (s *Session) end(err error) {
	if s.err != nil {
		return
	}
	s.err = err
	close(s.done)
	s.registry.metrics.ended.WithLabelValues(reasonOf(err)).Inc()
}

// endLocked is end for holders of Registry.mu.
func (s *Session) endLocked(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.end(err)
}

// Close says that the stream has ended. Closing again does nothing.
func (s *Session) Close() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	s.closed = true
	if s.expiry != nil {
		s.expiry.Stop()
	}
	reason := s.err
	if reason == nil {
		reason = errors.New("the proxy closed it")
	}
	s.mu.Unlock()
	r := s.registry
	r.part(s)
	r.deliver()
	if !s.aside {
		r.log.InfoContext(context.Background(), "proxy's stream ended", "kind", s.node.kind, "mesh", s.node.mesh, "name", s.node.name,
			"subscription", s.subscriptionID, "reason", reason)
	}
}

// part takes a stream out of the proxy's.
func (r *Registry) part(s *Session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := s.proxy
	if s.aside {
		p.aside = slices.DeleteFunc(p.aside, func(o *Session) bool { return o == s })
		r.forgetLocked(p)
		return
	}
	p.streams = slices.DeleteFunc(p.streams, func(o *Session) bool { return o == s })
	last := len(p.streams) == 0
	if last {
		r.metrics.connected.WithLabelValues(p.kind.String()).Dec()
		r.events = append(r.events, event{gone: p.id})
	}
	if r.closing { // its insight is closed already, and nobody is deregistered
		r.forgetLocked(p)
		return
	}
	var remaining *meshv1.DiscoverySubscription
	if !last {
		remaining = p.streams[len(p.streams)-1].sub
	}
	p.insight.shut(s.sub, remaining)
	if last && p.selfRegistered && !r.draining {
		s.sub.Deregistering = true
		r.departLocked(p)
	}
	r.markLocked(p, true)
}
