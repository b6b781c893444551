package xds

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/sotw/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// stream is one ADS stream. go-control-plane's server runs the protocol's loop (nonces, stale requests, one watch a kind) and
// asks the stream for everything else: as its callbacks, as its source of watches, and as the connection under it. There is
// one such server a stream, so that its context ends that stream alone.
type stream struct {
	discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer // the connection; Send and Recv are wrapped

	// Set when the stream opens, read-only after.
	server *Server
	ctx    context.Context //nolint:containedctx // the stream's own, as gRPC's is: its end is the stream's
	cancel context.CancelCauseFunc
	named  chan struct{} // closed when the first request is here
	opened chan Session  // cap 1: given to the handler, which watches Done
	since  time.Time

	// Owned by the goroutine that runs the loop.
	nodeID  string // as the first request says
	session Session
	node    *node
	unknown map[string]struct{} // type URLs that no kind has
	log     *slog.Logger

	watches   [kinds]watch    // guarded by node.mu; see watch
	exchanges [kinds]exchange // guarded by node.mu; for those who look

	recvMu  sync.Mutex // guards what follows
	recvEnd bool       // the loop has ended: receive no more
	recvErr error      // what ended receiving
}

// StreamAggregatedResources serves one stream. It returns as soon as the stream is to end, also while the loop waits for a
// proxy that does not read: only that makes gRPC give up what blocks the loop's Send and Recv.
func (s *Server) StreamAggregatedResources(conn discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesServer) error {
	ctx, cancel := context.WithCancelCause(conn.Context())
	defer cancel(nil)
	st := &stream{
		AggregatedDiscoveryService_StreamAggregatedResourcesServer: conn,

		server: s, ctx: ctx, cancel: cancel, named: make(chan struct{}), opened: make(chan Session, 1), unknown: make(map[string]struct{}), log: s.log,
		since: time.Now(),
	}
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return errShutdown
	}
	s.open[st] = struct{}{}
	ended := make(chan error, 1)
	s.wg.Go(func() { ended <- st.loop() })
	s.mu.Unlock()

	s.metrics.streams.Inc()
	defer s.metrics.streams.Dec()
	var session Session
	var over <-chan struct{}
	// Whoever reaches the port can open streams; those that say nothing are not kept.
	silent := time.NewTimer(firstRequest)
	defer silent.Stop()
	named := st.named
	for {
		select {
		case err := <-ended:
			return err
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-silent.C:
			return status.Error(codes.DeadlineExceeded, "no request has come on the stream")
		case <-named:
			silent.Stop()
			named = nil
		case session = <-st.opened:
			over = session.Done()
		case <-over:
			return statusOf(session.Err())
		}
	}
}

// loop serves the stream until it ends and then closes its session.
func (st *stream) loop() error {
	err := sotw.NewServer(st.ctx, st, st, sotw.WithOrderedADS(), sotw.DeactivateLegacyWildcardForTypes(namedTypes())).
		StreamHandler(st, resource.AnyType)
	st.recvMu.Lock()
	st.recvEnd = true
	if err == nil {
		err = st.recvErr
	}
	st.recvMu.Unlock()
	st.server.leave(st)
	if st.session != nil {
		st.session.Close()
	}
	if cause := context.Cause(st.ctx); cause != nil {
		return cause
	}
	return err
}

// namedTypes are the types of which a first request without names asks for nothing. Only of clusters and listeners does it
// ask for all.
func namedTypes() []string {
	var out []string
	for k := range kinds {
		if !k.complete() {
			out = append(out, k.TypeURL())
		}
	}
	return out
}

// Recv is called by a goroutine of go-control-plane's that it does not wait for; we do. When it is in Recv, it ends as the
// handler returns; when it is not, it ends because st.ctx has.
func (st *stream) Recv() (*discoveryv3.DiscoveryRequest, error) {
	st.recvMu.Lock()
	if st.recvEnd {
		st.recvMu.Unlock()
		return nil, io.EOF
	}
	st.server.wg.Add(1) // not 0 by now: loop has yet to set recvEnd
	st.recvMu.Unlock()
	defer st.server.wg.Done()

	req, err := st.AggregatedDiscoveryService_StreamAggregatedResourcesServer.Recv()
	if err != nil && !errors.Is(err, io.EOF) {
		st.recvMu.Lock()
		st.recvErr = err
		st.recvMu.Unlock()
	}
	return req, err
}

// Send sends a response and counts it.
func (st *stream) Send(r *discoveryv3.DiscoveryResponse) error {
	r.ControlPlane = st.server.control
	if err := st.AggregatedDiscoveryService_StreamAggregatedResourcesServer.Send(r); err != nil {
		return err
	}
	st.session.Sent(r.GetTypeUrl())
	kind, _ := KindOf(r.GetTypeUrl()) // nothing else is ever sent
	st.server.metrics.sent(kind, r, st.sent(kind, r))
	return nil
}

// sent notes that a response was sent, and returns when what is new in it was published.
func (st *stream) sent(k Kind, r *discoveryv3.DiscoveryResponse) (since time.Time) {
	st.node.mu.Lock()
	defer st.node.mu.Unlock()
	w := &st.watches[k]
	w.nonce = r.GetNonce()
	st.exchanges[k].sent(r)
	since, w.sending = w.sending, time.Time{}
	return since
}

// OnStreamRequest is called before anything else is done with a request.
func (st *stream) OnStreamRequest(_ int64, req *discoveryv3.DiscoveryRequest) error {
	if st.session == nil {
		if err := st.authenticate(req.GetNode()); err != nil {
			return err
		}
	} else {
		if id := req.GetNode().GetId(); id != st.nodeID { // without a node, it is that of the first request
			return status.Errorf(codes.InvalidArgument, "node id changed from %.200q to %.200q", st.nodeID, id)
		}
		if err := st.session.Check(); err != nil {
			return statusOf(err)
		}
	}
	// It was read, and go-control-plane keeps the node as long as the stream: the whole resource of the proxy is in it.
	req.GetNode().Metadata = nil
	if n := len(req.GetResourceNames()); n > st.server.maxNames {
		return status.Errorf(codes.InvalidArgument, "request names %d resources, more than %d", n, st.server.maxNames)
	}
	kind, known := KindOf(req.GetTypeUrl())
	if !known {
		if st.unknown[req.GetTypeUrl()] = struct{}{}; len(st.unknown) > maxUnknownTypes {
			return status.Errorf(codes.InvalidArgument, "requests of more than %d types that are not known here", maxUnknownTypes)
		}
	}
	if w := &st.watches[kind]; known && req.GetResponseNonce() != w.nonce {
		st.node.mu.Lock()
		w.stale = true
		st.node.mu.Unlock()
	}
	if req.GetResponseNonce() == "" {
		return nil
	}
	nack := ""
	if detail := req.GetErrorDetail(); detail != nil {
		if nack = detail.GetMessage(); nack == "" {
			nack = "rejected without a reason: code " + codes.Code(uint32(detail.GetCode())).String() //nolint:gosec // a small enum
		}
		st.server.metrics.nacked(kind, known)
		st.log.WarnContext(st.ctx, "proxy rejected its configuration", "type", req.GetTypeUrl(), "nonce", req.GetResponseNonce(),
			"version_kept", req.GetVersionInfo(), "err", truncate(nack, maxNACKLog))
	}
	if known {
		st.noteAnswer(kind, req, nack)
	}
	st.session.Answered(req.GetTypeUrl(), nack)
	return nil
}

// authenticate opens the session of a stream.
func (st *stream) authenticate(node *corev3.Node) error {
	close(st.named)
	if node.GetId() == "" {
		return status.Error(codes.InvalidArgument, "the first request of a stream must have a node with an id")
	}
	o := Opening{Node: node, Authorization: metadata.ValueFromIncomingContext(st.ctx, "authorization")}
	if p, ok := peer.FromContext(st.ctx); ok {
		o.Peer = p.Addr.String()
	}
	session, err := st.server.sessions.Open(st.ctx, o)
	if err != nil {
		return statusOf(err)
	}
	st.nodeID, st.session = node.GetId(), session
	st.log = st.log.With("node", session.NodeID())
	st.node = st.server.lockNode(session.NodeID())
	st.node.streams[st] = struct{}{}
	st.server.parted.drop(session.NodeID())
	st.node.mu.Unlock()
	st.opened <- session
	return nil
}

// OnStreamOpen, OnStreamClosed and OnStreamResponse complete the callbacks; what they would do is done around the loop.

func (*stream) OnStreamOpen(context.Context, int64, string) error { return nil }
func (*stream) OnStreamClosed(int64, *corev3.Node)                {}
func (*stream) OnStreamResponse(context.Context, int64, *discoveryv3.DiscoveryRequest, *discoveryv3.DiscoveryResponse) {
}

// CreateDeltaWatch is never called: the incremental variant is not served.
func (*stream) CreateDeltaWatch(*cache.DeltaRequest, cache.Subscription, chan cache.DeltaResponse) (func(), error) {
	return nil, status.Error(codes.Unimplemented, "the incremental protocol is not served")
}

// truncate returns at most n bytes of text, ending at a whole character.
func truncate(text string, n int) string {
	if len(text) <= n {
		return text
	}
	for n > 0 && text[n]&0xC0 == 0x80 {
		n--
	}
	return text[:n] + "…"
}
