package xds

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Sessions decides who may open a stream.
type Sessions interface {
	// Open is called with the first request of each stream, before anything is answered. It must return when ctx ends.
	// An error ends the stream: a status error as it is, any other with codes.Unknown and its text.
	Open(ctx context.Context, first Opening) (Session, error)
}

// Opening is what is known of a proxy when it opens a stream.
type Opening struct {
	Node          *corev3.Node
	Authorization []string // all values of that metadata key
	Peer          string   // address
}

// Session is told what happens on one stream, and may end it. All methods but Done and Err are called by one goroutine at a
// time.
type Session interface {
	// NodeID is the key of the configuration that the stream gets. It must not change.
	NodeID() string
	// Check is called before each later request: is the credential still good? An error ends the stream as one of Open does.
	Check() error
	// Sent is called after each response that was sent.
	Sent(typeURL string)
	// Answered is called for each request that carries the nonce of a response: "" as nack means that it acknowledges.
	// That includes requests that only change a subscription, and those that answer a response that is not the latest.
	Answered(typeURL, nack string)
	// Done is closed when the stream must end now, with Err as the reason (nil: codes.Unavailable, "session over").
	Done() <-chan struct{}
	Err() error
	// Close is the last call, after the stream has ended.
	Close()
}

// Limits of what one stream may ask for.
const (
	defaultMaxNames = 10_000
	maxUnknownTypes = 16
	maxNACKLog      = 1 << 10 // bytes
	// firstRequest is how long after its opening a stream must have said whose it is.
	firstRequest = 30 * time.Second
)

// Options configure a Server.
type Options struct {
	Sessions       Sessions
	ControlPlaneID string // control_plane.identifier of each response
	// MaxNames is how many names of resources one request may hold; 10,000 when 0.
	MaxNames   int
	Registerer prometheus.Registerer // nil: not registered
	Log        *slog.Logger          // nil: nowhere
}

// Server serves configuration over the aggregated discovery service, in the state-of-the-world variant. The incremental one
// answers Unimplemented.
//
// Each node has one current Config. A stream holds, for each kind it subscribes to, at most one open watch: a request that
// waits for something new. Publish answers the open watches of one node and blocks on nothing, so a proxy that does not read
// delays only itself: it has no open watch, and its next request is answered with the Config that is current by then.
type Server struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer

	// Set by New, read-only after.
	sessions Sessions
	control  *corev3.ControlPlane
	maxNames int
	metrics  *metrics
	log      *slog.Logger

	parted parted // with its own lock, which is locked last

	wg sync.WaitGroup // goroutines that serve streams; grows only while mu is held and closing is false, or while it is not 0

	mu      sync.Mutex // guards what follows; locked before any node's
	closing bool
	open    map[*stream]struct{}
	nodes   map[string]*node
}

// node is the state of all streams of one proxy.
type node struct {
	mu      sync.Mutex // guards what follows, and of its streams what they say
	config  *Config    // nil: not published
	streams map[*stream]struct{}
}

// New returns a server without streams.
func New(o Options) (*Server, error) {
	if o.Sessions == nil {
		return nil, errors.New("xds: no Sessions")
	}
	if o.MaxNames == 0 {
		o.MaxNames = defaultMaxNames
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		sessions: o.Sessions,
		control:  &corev3.ControlPlane{Identifier: o.ControlPlaneID},
		maxNames: o.MaxNames,
		metrics:  newMetrics(),
		log:      o.Log,
		open:     make(map[*stream]struct{}),
		nodes:    make(map[string]*node),
	}
	if o.Registerer != nil {
		if err := s.metrics.register(o.Registerer); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// Register offers the service. The gRPC server's own limit of a message's size (4 MiB) bounds a request.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(r, s)
}

// Publish makes c the configuration of the node and answers the requests of its streams that wait for what is new in it. It
// does not block, and costs the kinds that changed times the watches that are open (for subscriptions by name, times the
// names). c is kept until the next Publish or Forget, whether or not the node has a stream.
//
// Kinds are sent in the order of their constants: a cluster is known before the endpoints that fill it and the listeners and
// routes that send to it (Envoy rejects a listener whose inline route names an unknown cluster). Listeners and routes also
// wait for clusters that changed while the proxy has yet to acknowledge earlier ones. A cluster that is gone stays with a stream
// that asks for all of them until the proxy has answered the listeners and routes that no longer send to it, so that no request
// is lost on the way. Streams that ask for clusters by name, as gRPC does, keep those they have for as long as they name them.
func (s *Server) Publish(nodeID string, c *Config) {
	n := s.lockNode(nodeID)
	defer n.mu.Unlock()
	n.config = c
	now := time.Now()
	for st := range n.streams {
		st.pump(now)
	}
}

// Forget drops the configuration of a node. Its streams stay open and keep what they have.
func (s *Server) Forget(nodeID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.nodes[nodeID]
	if n == nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.config = nil
	if len(n.streams) == 0 {
		delete(s.nodes, nodeID)
	}
}

// Shutdown ends all streams with codes.Unavailable, refuses new ones, and returns when every goroutine that served one has
// ended and every session is closed.
func (s *Server) Shutdown() {
	s.mu.Lock()
	s.closing = true
	for st := range s.open {
		st.cancel(errShutdown)
	}
	s.mu.Unlock()
	s.wg.Wait()
}

var errShutdown = status.Error(codes.Unavailable, "control plane is shutting down")

// lockNode returns a node's state, locked. The node is made when it is new.
func (s *Server) lockNode(id string) *node {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.nodes[id]
	if n == nil {
		n = &node{streams: make(map[*stream]struct{})}
		s.nodes[id] = n
	}
	n.mu.Lock()
	return n
}

// leave takes a stream out of its node.
func (s *Server) leave(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, st)
	if st.node == nil {
		return
	}
	st.node.mu.Lock()
	defer st.node.mu.Unlock()
	delete(st.node.streams, st)
	if len(st.node.streams) == 0 {
		s.parted.add(st.session.NodeID(), Look{Ended: time.Now(), Kinds: st.look()})
	}
	if len(st.node.streams) == 0 && st.node.config == nil {
		delete(s.nodes, st.session.NodeID())
	}
}

// statusOf returns err as what ends a stream.
func statusOf(err error) error {
	if err == nil {
		return status.Error(codes.Unavailable, "session over")
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	return status.Error(codes.Unknown, err.Error())
}
