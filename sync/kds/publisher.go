package kds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"strconv"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// RequestStream is the publisher's end of a stream: it reads requests and writes responses.
type RequestStream interface {
	Recv() (*discoveryv3.DeltaDiscoveryRequest, error)
	Send(*discoveryv3.DeltaDiscoveryResponse) error
}

// PublisherObserver is told what a publisher does. Sent comes from the stream's writer, the rest from its reader; none
// may block.
type PublisherObserver interface {
	// Subscribed is called once, with the first request.
	Subscribed(n Node)
	Sent(t resource.Type)
	Acked(t resource.Type)
	Rejected(t resource.Type, reason string)
}

// PublisherConfig is what a publisher needs; all fields are required unless said otherwise.
type PublisherConfig struct {
	Direction Direction
	// Zone is the zone of the stream, which is the node id of every request in both directions.
	Zone string
	// Identifier is what the responses call their sender: "global", or the zone's name.
	Identifier string
	Store      *store.Store
	Encoder    *Encoder
	// MaxMessageBytes is what the peer is willing to receive in one message.
	MaxMessageBytes int
	// AckTimeout is how long a response may stay unacknowledged, or unread, before the stream is reset.
	AckTimeout time.Duration
	// InsightInterval is the least time between two responses of an insight type; 0 means no limit.
	InsightInterval time.Duration
	Observer        PublisherObserver // optional
	Metrics         *Metrics
	Log             *slog.Logger
}

// Publisher serves one stream: it sends the peer the full state of each type it asks for, then what changes.
type Publisher struct {
	// Set by NewPublisher, read-only after.
	cfg   PublisherConfig
	types map[resource.Type]*resource.Descriptor
	stall *stall

	mu    sync.Mutex // guards what follows
	subs  []*subscription
	byTyp map[resource.Type]*subscription
	peer  *Node         // as said in the first request
	wake  chan struct{} // cap 1, level-triggered: "look at the subscriptions"
	// answered: the peer has acknowledged or rejected something, so it has asked for all that it wants.
	answered bool
	waiting  map[resource.Type][]*awaiting // sorted by revision
	due      []*awaiting                   // to be told once the lock is released

	// Owned by the writer.
	nonce       uint64
	offer       *offer
	behindUntil time.Time // zero: the peer's tokens are of states that were here
}

// subscription is what the peer asked for of one type, and what it has. Guarded by Publisher.mu except where said.
type subscription struct {
	desc     *resource.Descriptor // nil: a type unknown here, answered by an empty response
	typ      resource.Type
	resume   string            // token to go on from
	initial  map[string]string // initial_resource_versions: wire key → version
	names    map[string]bool   // nil: everything
	answer   bool              // a response is due even if it is empty
	inflight *inflight
	acked    store.Revision // everything up to here is acknowledged
	rejected map[store.Key]rejectedIn
	// refused says of which keys the peer does not have what it was sent, and why. rejected, which only counts, also
	// forgets what is gone or was mended by the way; this does not: it answers for single writes.
	refused map[store.Key]refusal

	// Owned by the writer; read by Lag under mu only through acked and rejected.
	started  bool
	rev      store.Revision // everything up to here was sent
	sent     map[store.Key]sentResource
	page     *paging
	lastSent time.Time
	oversize bool // the last state did not fit a message; nothing more until it changes
}

type sentResource struct {
	key     string // on the wire
	version string // "" when not known: the peer resumed
}

type inflight struct {
	nonce string
	since time.Time
	rev   store.Revision
	more  bool
	puts  []pagedPut

	removed []pagedRemoval
}

// rejectedIn is the response in which a resource was last rejected. A peer that does not say which resources of a
// response it left out is taken to have left out all of them, until it acknowledges one of them: that one was mended.
type rejectedIn struct {
	nonce string
	named bool // the peer said that it was this one
}

// paging is a state or a change that takes several messages, taken from one snapshot.
type paging struct {
	puts    []pagedPut
	removed []pagedRemoval
	token   Token
}

// pagedRemoval is a wire key that the peer must drop, and the record it stood for; the zero key where the peer alone
// knows of it, or where the record stays under another wire key.
type pagedRemoval struct {
	key  store.Key
	wire string
}

type pagedPut struct {
	key store.Key
	w   *wireResource
}

// NewPublisher returns a publisher for one stream.
func NewPublisher(cfg PublisherConfig) *Publisher {
	p := &Publisher{
		cfg:   cfg,
		types: make(map[resource.Type]*resource.Descriptor),
		stall: newStall(cfg.AckTimeout),
		byTyp: make(map[resource.Type]*subscription),
		wake:  make(chan struct{}, 1),
	}
	for _, d := range cfg.Direction.Types() {
		p.types[d.Name] = d
	}
	return p
}

// Run serves the stream until ctx ends, the peer goes away or breaks the protocol, or leaves a response
// unacknowledged or unread. It never returns nil. The reader and the writer it starts may end only when the stream
// does, which on a server is after the handler has returned: halves counts them.
func (p *Publisher) Run(ctx context.Context, stream RequestStream, halves *sync.WaitGroup) error {
	p.cfg.Metrics.streams.WithLabelValues(p.cfg.Direction.String()).Inc()
	defer p.cfg.Metrics.streams.WithLabelValues(p.cfg.Direction.String()).Dec()
	err := serve(ctx, halves, p.stall,
		func() error { return p.read(ctx, stream) },
		func(readErr <-chan error) error { return p.write(ctx, stream, readErr) })
	if errors.Is(err, ErrAckTimeout) {
		p.cfg.Metrics.ackTimeouts.WithLabelValues(p.cfg.Direction.String()).Inc()
	}
	return err
}

// read is the only caller of Recv. It touches only what mu guards, and never waits for the writer.
func (p *Publisher) read(ctx context.Context, stream RequestStream) error {
	for {
		req, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return ErrStreamEnded
		case err != nil:
			return fmt.Errorf("read request: %w", err)
		case ctx.Err() != nil:
			return context.Cause(ctx)
		}
		if err := p.accept(req); err != nil {
			return err
		}
		p.kick()
	}
}

func (p *Publisher) kick() {
	select {
	case p.wake <- struct{}{}:
	default: // already awake
	}
}

// accept takes a request into the subscriptions.
func (p *Publisher) accept(req *discoveryv3.DeltaDiscoveryRequest) error {
	p.mu.Lock()
	defer p.unlockAndNotify()
	node := nodeOf(req.GetNode())
	switch {
	case req.GetNode() != nil && node.ID != p.cfg.Zone:
		return fmt.Errorf("%w: node id %q on a stream of zone %q", ErrProtocol, node.ID, p.cfg.Zone)
	case p.peer == nil && req.GetNode() == nil:
		return fmt.Errorf("%w: the first request has no node", ErrProtocol)
	case req.GetTypeUrl() == "":
		return fmt.Errorf("%w: a request has no type_url", ErrProtocol)
	case p.peer == nil:
		p.peer = &node
		if p.cfg.Observer != nil {
			p.cfg.Observer.Subscribed(node)
		}
	}
	typ := resource.Type(req.GetTypeUrl())
	sub := p.byTyp[typ]
	if nonce := req.GetResponseNonce(); nonce != "" {
		if sub == nil {
			return fmt.Errorf("%w: an acknowledgement of %s, which was never sent", ErrProtocol, typ)
		}
		p.settle(sub, nonce, req)
		return nil
	}
	if sub == nil {
		if len(p.subs) >= maxSubscriptions {
			return fmt.Errorf("%w: more than %d types requested", ErrProtocol, maxSubscriptions)
		}
		sub = &subscription{
			desc: p.types[typ], typ: typ, resume: node.Resume,
			initial: req.GetInitialResourceVersions(), names: subscribedNames(req.GetResourceNamesSubscribe()),
		}
		p.subs = append(p.subs, sub)
		p.byTyp[typ] = sub
	}
	sub.answer = true
	return nil
}

// maxSubscriptions bounds what one stream may ask for; Kuma asks for 43 types.
const maxSubscriptions = 256

func subscribedNames(names []string) map[string]bool {
	if len(names) == 0 {
		return nil
	}
	set := make(map[string]bool, len(names))
	for _, n := range names {
		if n == "*" {
			return nil
		}
		set[n] = true
	}
	return set
}

// settle takes the answer to a response. A nonce that is not the one in flight is stale and says nothing.
func (p *Publisher) settle(sub *subscription, nonce string, req *discoveryv3.DeltaDiscoveryRequest) {
	in := sub.inflight
	if in == nil || in.nonce != nonce {
		return
	}
	sub.inflight = nil
	p.answeredLocked()
	sub.pruneRefusals(p.cfg.Store.Snapshot())
	p.cfg.Metrics.ackAge.WithLabelValues(p.cfg.Direction.String()).Observe(time.Since(in.since).Seconds())
	if detail := req.GetErrorDetail(); detail != nil {
		sub.reject(in, rejectedKeys(detail), detail.GetMessage())
		p.cfg.Metrics.responses.WithLabelValues(p.cfg.Direction.String(), string(sub.typ), "rejected").Inc()
		p.cfg.Log.Warn("peer rejected resources", "type", sub.typ, "nonce", nonce, "reason", detail.GetMessage())
		if p.cfg.Observer != nil {
			p.cfg.Observer.Rejected(sub.typ, detail.GetMessage())
		}
	} else {
		sub.accepted(in)
		p.cfg.Metrics.responses.WithLabelValues(p.cfg.Direction.String(), string(sub.typ), "acked").Inc()
		if p.cfg.Observer != nil {
			p.cfg.Observer.Acked(sub.typ)
		}
	}
	if !in.more {
		p.settledLocked(sub, in.rev)
	}
}

// reject notes what the peer left out of a response: the wire keys it named, or all when it named none.
func (s *subscription) reject(in *inflight, named map[string]bool, reason string) {
	if s.rejected == nil {
		s.rejected = make(map[store.Key]rejectedIn)
	}
	for _, put := range in.puts {
		if len(named) == 0 || named[put.w.res.GetName()] {
			s.rejected[put.key] = rejectedIn{in.nonce, len(named) > 0}
			s.refuse(put.key, reason)
		} else {
			delete(s.rejected, put.key)
			delete(s.refused, put.key)
		}
	}
	for _, r := range in.removed {
		if len(named) == 0 {
			s.refuse(r.key, reason)
		} else {
			delete(s.refused, r.key)
		}
	}
}

// accepted notes that the peer took all of a response.
func (s *subscription) accepted(in *inflight) {
	mended := make(map[string]bool)
	for _, put := range in.puts {
		if was, ok := s.rejected[put.key]; ok && !was.named {
			mended[was.nonce] = true
		}
		delete(s.rejected, put.key)
		delete(s.refused, put.key)
	}
	for _, r := range in.removed {
		delete(s.refused, r.key)
	}
	if len(mended) > 0 {
		maps.DeleteFunc(s.rejected, func(_ store.Key, was rejectedIn) bool { return !was.named && mended[was.nonce] })
	}
}

// Lag counts the resources that changed and that the peer has not acknowledged, rejected ones included.
func (p *Publisher) Lag(snap *store.Snapshot) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.peer == nil {
		return 0
	}
	offer := p.offerTo(*p.peer)
	lag := 0
	for _, sub := range p.subs {
		if sub.desc == nil {
			continue
		}
		for k := range sub.rejected {
			if rec, ok := snap.Get(k); !ok || !offer.selects(snap, sub.desc, rec) {
				delete(sub.rejected, k) // gone, which the peer cannot but accept
			}
		}
		lag += len(sub.rejected)
		if snap.LastChange(string(sub.typ)) <= sub.acked {
			continue
		}
		changes, err := snap.Changes(string(sub.typ), sub.acked)
		if err != nil { // compacted: all of it is unacknowledged
			for rec := range snap.List(string(sub.typ), "") {
				if offer.selects(snap, sub.desc, rec) {
					lag++
				}
			}
			continue
		}
		for c := range changes {
			_, counted := sub.rejected[c.Key]
			if !counted && (c.Record != nil && offer.selects(snap, sub.desc, c.Record) || c.Record == nil && offer.owned(c)) {
				lag++
			}
		}
	}
	return lag
}

// Acknowledged is the revision up to which the peer has committed everything it asked for of a type; ok is false when
// it did not ask.
func (p *Publisher) Acknowledged(t resource.Type) (rev store.Revision, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	sub := p.byTyp[t]
	if sub == nil {
		return 0, false
	}
	return sub.acked, true
}

func (p *Publisher) offerTo(peer Node) *offer {
	style := wireStyle{
		dir:      p.cfg.Direction,
		hashed:   p.cfg.Direction == Down && peer.Has(FeatureHashSuffix),
		meridian: peer.Has(FeatureResume),
	}
	if style.dir == Up {
		style.zone = p.cfg.Zone
	}
	return &offer{style: style, zone: p.cfg.Zone, enc: p.cfg.Encoder}
}

// owned reports whether a deletion concerns the peer: this plane deleted something it may have offered.
func (o *offer) owned(c store.Change) bool {
	if o.style.dir == Up {
		return c.Origin == ""
	}
	return c.Origin != o.zone
}

// write is the only caller of Send.
func (p *Publisher) write(ctx context.Context, stream RequestStream, readErr <-chan error) error {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		snap := p.cfg.Store.Snapshot()
		next, err := p.sendAll(stream, snap)
		if errors.Is(err, io.EOF) { // gRPC tells a client only the reader why
			return <-readErr
		}
		if err != nil {
			return err
		}
		timer.Stop()
		var due <-chan time.Time
		if !next.IsZero() {
			timer.Reset(time.Until(next))
			due = timer.C
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case err := <-readErr:
			return err
		case <-p.wake:
		case <-snap.Next():
		case <-due:
		}
	}
}

// sendAll sends, for each subscription that waits for nothing, the response that is due at snap. It returns when to
// look again even if nothing happens, and ErrAckTimeout if the peer is past its time.
func (p *Publisher) sendAll(stream RequestStream, snap *store.Snapshot) (next time.Time, err error) {
	p.mu.Lock()
	subs, peer := p.subs, p.peer
	p.mu.Unlock()
	if peer == nil {
		return time.Time{}, nil
	}
	if p.offer == nil {
		p.offer = p.offerTo(*peer)
	}
	soonest := func(t time.Time) {
		if next.IsZero() || t.Before(next) {
			next = t
		}
	}
	for _, sub := range subs {
		p.mu.Lock()
		waiting, answer := sub.inflight, sub.answer
		p.mu.Unlock()
		if waiting != nil {
			deadline := waiting.since.Add(p.cfg.AckTimeout)
			if !time.Now().Before(deadline) {
				return next, fmt.Errorf("%w: %s, nonce %s, after %s", ErrAckTimeout, sub.typ, waiting.nonce, p.cfg.AckTimeout)
			}
			soonest(deadline)
			continue
		}
		if wait := p.behind(sub, snap); !wait.IsZero() {
			soonest(wait)
			continue
		}
		if wait := p.pace(sub, snap); !answer && !wait.IsZero() {
			soonest(wait)
			continue
		}
		resp, in, err := p.nextResponse(sub, snap, *peer, answer)
		if err != nil {
			return next, err
		}
		if resp == nil {
			p.current(sub)
			continue
		}
		p.mu.Lock()
		sub.inflight, sub.answer = in, false
		p.mu.Unlock()
		sub.lastSent = in.since
		p.observeSent(sub, resp)
		if err := p.stall.watch(func() error { return stream.Send(resp) }); err != nil {
			return next, fmt.Errorf("send %s: %w", sub.typ, err)
		}
		soonest(in.since.Add(p.cfg.AckTimeout))
	}
	return next, nil
}

// current notes that the peer lacks nothing of a type up to sub.rev: what changed since the last acknowledgement was
// not for it, or looks the same to it.
func (p *Publisher) current(sub *subscription) {
	if !sub.started || sub.page != nil || sub.oversize {
		return
	}
	p.mu.Lock()
	defer p.unlockAndNotify()
	if sub.inflight == nil {
		p.settledLocked(sub, sub.rev)
	}
}

// pace returns until when a type that changes by itself must wait, so that it cannot fill the stream.
func (p *Publisher) pace(sub *subscription, snap *store.Snapshot) time.Time {
	if sub.desc == nil || !sub.started || sub.page != nil || p.cfg.InsightInterval == 0 {
		return time.Time{}
	}
	if sub.desc.InsightOf == "" && sub.typ != resource.ServiceInsight {
		return time.Time{}
	}
	if snap.LastChange(string(sub.typ)) <= sub.rev {
		return time.Time{}
	}
	if at := sub.lastSent.Add(p.cfg.InsightInterval); time.Now().Before(at) {
		return at
	}
	return time.Time{}
}

func (p *Publisher) observeSent(sub *subscription, resp *discoveryv3.DeltaDiscoveryResponse) {
	dir, typ := p.cfg.Direction.String(), string(sub.typ)
	p.cfg.Metrics.responses.WithLabelValues(dir, typ, "sent").Inc()
	p.cfg.Metrics.resources.WithLabelValues(dir, typ, "put").Add(float64(len(resp.GetResources())))
	p.cfg.Metrics.resources.WithLabelValues(dir, typ, "removed").Add(float64(len(resp.GetRemovedResources())))
	p.cfg.Log.Debug("response sent", "type", sub.typ, "nonce", resp.GetNonce(), "resources", len(resp.GetResources()),
		"removed", len(resp.GetRemovedResources()), "token", resp.GetSystemVersionInfo())
	if p.cfg.Observer != nil {
		p.cfg.Observer.Sent(sub.typ)
	}
}

// nextResponse makes the response that brings the peer closer to snap, nil when there is none to make. answer asks for
// one even if it is empty.
func (p *Publisher) nextResponse(sub *subscription, snap *store.Snapshot, peer Node, answer bool) (*discoveryv3.DeltaDiscoveryResponse, *inflight, error) {
	if sub.page == nil {
		page := p.collect(sub, snap)
		switch {
		case page == nil && answer && !sub.oversize: // asked again, and nothing changed
			page = &paging{token: Token{Store: p.cfg.Store.ID(), Revision: snap.Revision(), Delta: true, From: sub.rev}}
		case page == nil, !answer && len(page.puts) == 0 && len(page.removed) == 0:
			return nil, nil, nil
		}
		sub.page = page
	}
	delta := sub.page.token.Delta
	puts, removed, more, ok := p.cut(sub, peer)
	switch {
	case !ok && delta:
		// The peer keeps what it has. Only a full state, on another stream, can bring it back in step.
		return nil, nil, fmt.Errorf("%w: the changes of %s", ErrOversize, sub.typ)
	case !ok:
		return nil, nil, nil
	}
	token := sub.page.token
	token.More = more
	if !more {
		sub.page = nil
	}
	p.nonce++
	resp := &discoveryv3.DeltaDiscoveryResponse{
		TypeUrl:      string(sub.typ),
		Nonce:        strconv.FormatUint(p.nonce, 10),
		ControlPlane: &corev3.ControlPlane{Identifier: p.cfg.Identifier},
	}
	for _, r := range removed {
		resp.RemovedResources = append(resp.RemovedResources, r.wire)
	}
	if p.offer.style.meridian {
		resp.SystemVersionInfo = token.String()
	}
	in := &inflight{nonce: resp.GetNonce(), since: time.Now(), rev: token.Revision, more: more}
	in.puts, in.removed = puts, removed
	for _, put := range puts {
		resp.Resources = append(resp.Resources, put.w.res)
	}
	return resp, in, nil
}

// cut takes from the front of the pages as much as one message holds. Toward a peer that knows no pages everything
// must fit; if it does not, nothing is sent, and an operator must act.
func (p *Publisher) cut(sub *subscription, peer Node) (puts []pagedPut, removed []pagedRemoval, more, ok bool) {
	const (
		envelope  = 1024 // identifier, type, nonce, token
		perEntry  = 8    // tag and length
		pageBytes = 1 << 20
	)
	limit := p.cfg.MaxMessageBytes - envelope
	paged := peer.Has(FeatureResume)
	if paged {
		limit = min(limit, pageBytes)
	}
	page, size := sub.page, 0
	n := 0
	for ; n < len(page.puts); n++ {
		s := page.puts[n].w.size + perEntry
		if paged && n > 0 && size+s > limit {
			break
		}
		size += s
	}
	r := 0
	for ; r < len(page.removed) && n == len(page.puts); r++ {
		s := len(page.removed[r].wire) + perEntry
		if paged && n+r > 0 && size+s > limit {
			break
		}
		size += s
	}
	p.cfg.Metrics.messageBytes.WithLabelValues(p.cfg.Direction.String()).Observe(float64(size))
	if size > p.cfg.MaxMessageBytes-envelope {
		p.cfg.Metrics.oversized.WithLabelValues(p.cfg.Direction.String(), string(sub.typ)).Inc()
		p.cfg.Log.Error("a type is too large for one message to this peer and is not sent; raise the message limit on both sides",
			"type", sub.typ, "bytes", size, "limit", p.cfg.MaxMessageBytes, "resources", len(page.puts))
		sub.page, sub.oversize = nil, true
		return nil, nil, false, false
	}
	puts, page.puts = page.puts[:n], page.puts[n:]
	removed, page.removed = page.removed[:r], page.removed[r:]
	return puts, removed, len(page.puts)+len(page.removed) > 0, true
}

// collect finds out what the peer lacks at snap, and from then on takes it as sent. It returns nil when nothing of
// the type changed.
func (p *Publisher) collect(sub *subscription, snap *store.Snapshot) *paging {
	out := &paging{token: Token{Store: p.cfg.Store.ID(), Revision: snap.Revision()}}
	if sub.desc == nil {
		if sub.started {
			return nil
		}
		sub.started = true
		return out
	}
	c := collector{p: p, sub: sub, snap: snap, out: out}
	switch {
	case !sub.started:
		sub.started = true
		sub.sent = make(map[store.Key]sentResource)
		from, ok := p.resumeFrom(sub, snap)
		switch {
		case ok:
			out.token.Delta, out.token.From = true, from
			c.resume(from)
		case sub.initial != nil:
			c.known(sub.initial)
			sub.initial = nil
		default:
			c.everything()
		}
	case sub.oversize:
		// The sent map already holds what was too much to send: start over, as if nothing had been.
		if snap.LastChange(string(sub.typ)) <= sub.rev {
			return nil
		}
		sub.oversize = false
		clear(sub.sent)
		c.everything()
	case p.unchanged(sub, snap):
		sub.rev = snap.Revision()
		return nil
	default:
		out.token.Delta, out.token.From = true, sub.rev
		c.changes(sub.rev)
	}
	sub.rev = snap.Revision()
	return out
}

func (p *Publisher) unchanged(sub *subscription, snap *store.Snapshot) bool {
	if snap.LastChange(string(sub.typ)) > sub.rev {
		return false
	}
	return !zonesChanged(snap, p.cfg.Direction, sub.desc, sub.rev)
}

// behindTimeout is how long the state may take to reach what another replica of this plane has sent already. It does so within
// milliseconds, or a second where a notification is lost.
const behindTimeout = 5 * time.Second

// behind returns until when to wait for the state that the peer's token stands for, zero for not at all: it was given by another
// replica, which has seen more of the store. Who never gets there sends the full state.
func (p *Publisher) behind(sub *subscription, snap *store.Snapshot) time.Time {
	if sub.started || sub.resume == "" {
		return time.Time{}
	}
	t, err := ParseToken(sub.resume)
	if err != nil || t.Store != p.cfg.Store.ID() || t.Revision <= snap.Revision() {
		return time.Time{}
	}
	if p.behindUntil.IsZero() {
		p.behindUntil = time.Now().Add(behindTimeout)
	}
	if !time.Now().Before(p.behindUntil) {
		return time.Time{}
	}
	return p.behindUntil
}

// resumeFrom returns the revision that the peer's token stands for, if this store can go on from it.
func (p *Publisher) resumeFrom(sub *subscription, snap *store.Snapshot) (store.Revision, bool) {
	if sub.resume == "" || sub.names != nil || !p.offer.style.meridian {
		return 0, false
	}
	t, err := ParseToken(sub.resume)
	if err != nil || t.More || t.Store != p.cfg.Store.ID() || t.Revision > snap.Revision() {
		return 0, false
	}
	if _, err := snap.Changes(string(sub.typ), t.Revision); err != nil {
		return 0, false
	}
	return t.Revision, true
}

// collector fills a paging with what one subscription lacks.
type collector struct {
	p    *Publisher
	sub  *subscription
	snap *store.Snapshot
	out  *paging
}

func (c *collector) wants(w *wireResource) bool {
	return c.sub.names == nil || c.sub.names[w.res.GetName()]
}

// put offers rec unless the peer has just that. It reports whether the record belongs to what the peer may have.
func (c *collector) put(rec *store.Record) bool {
	if !c.p.offer.selects(c.snap, c.sub.desc, rec) {
		return false
	}
	w := c.p.offer.encode(c.sub.desc, rec)
	if w.err != nil {
		c.p.cfg.Log.Error("a resource cannot be sent to this peer", "type", c.sub.typ, "mesh", rec.Key.Mesh, "name", rec.Key.Name, "err", w.err)
		c.p.mu.Lock()
		c.sub.withhold(rec, w.err)
		c.p.mu.Unlock()
		return false
	}
	if !c.wants(w) {
		return false
	}
	was, had := c.sub.sent[rec.Key]
	if had && was.version == w.res.GetVersion() {
		return true
	}
	if had && was.key != w.res.GetName() {
		c.out.removed = append(c.out.removed, pagedRemoval{wire: was.key})
	}
	c.sub.sent[rec.Key] = sentResource{key: w.res.GetName(), version: w.res.GetVersion()}
	c.out.puts = append(c.out.puts, pagedPut{rec.Key, w})
	return true
}

// remove takes a key from the peer, if it has it.
func (c *collector) remove(k store.Key) {
	if was, had := c.sub.sent[k]; had {
		delete(c.sub.sent, k)
		c.out.removed = append(c.out.removed, pagedRemoval{k, was.key})
	}
}

// everything is the full state.
func (c *collector) everything() {
	for rec := range c.snap.List(string(c.sub.typ), "") {
		c.put(rec)
	}
}

// known is the difference to a state that the peer described by version.
func (c *collector) known(versions map[string]string) {
	have := make(map[string]bool, len(versions))
	for rec := range c.snap.List(string(c.sub.typ), "") {
		if !c.p.offer.selects(c.snap, c.sub.desc, rec) {
			continue
		}
		w := c.p.offer.encode(c.sub.desc, rec)
		if w.err != nil || !c.wants(w) {
			continue
		}
		have[w.res.GetName()] = true
		if versions[w.res.GetName()] == w.res.GetVersion() {
			c.sub.sent[rec.Key] = sentResource{key: w.res.GetName(), version: w.res.GetVersion()}
			continue
		}
		c.put(rec)
	}
	for key := range versions {
		if !have[key] {
			c.out.removed = append(c.out.removed, pagedRemoval{wire: key})
		}
	}
}

// changes is what happened since revision after, on a stream that has been served all along.
func (c *collector) changes(after store.Revision) {
	zones := zonesChanged(c.snap, c.p.cfg.Direction, c.sub.desc, after)
	changed, err := c.snap.Changes(string(c.sub.typ), after)
	if err != nil || zones {
		c.difference()
		return
	}
	for ch := range changed {
		if ch.Record == nil || !c.put(ch.Record) {
			c.remove(ch.Key)
		}
	}
}

// difference compares all there is with all that was sent.
func (c *collector) difference() {
	keep := make(map[store.Key]bool, len(c.sub.sent))
	for rec := range c.snap.List(string(c.sub.typ), "") {
		if c.put(rec) {
			keep[rec.Key] = true
		}
	}
	for k := range c.sub.sent {
		if !keep[k] {
			c.remove(k)
		}
	}
}

// resume is what happened since revision from, for a peer that kept its state over a reconnect. What it has is taken
// as sent in a version not known; what it should not have is removed whether it has it or not.
func (c *collector) resume(from store.Revision) {
	zones := zonesChanged(c.snap, c.p.cfg.Direction, c.sub.desc, from)
	for rec := range c.snap.List(string(c.sub.typ), "") {
		selected := c.p.offer.selects(c.snap, c.sub.desc, rec)
		switch {
		case rec.Version <= from && selected && !zones:
			c.sub.sent[rec.Key] = sentResource{key: plainWireKey(c.sub.desc, rec.Key)}
		case selected:
			c.put(rec)
		case (rec.Version > from || zones) && c.p.offer.owned(store.Change{Origin: rec.Origin}):
			c.out.removed = append(c.out.removed, pagedRemoval{rec.Key, plainWireKey(c.sub.desc, rec.Key)})
		}
	}
	changed, err := c.snap.Changes(string(c.sub.typ), from)
	if err != nil {
		return // resumeFrom has just asked the same snapshot
	}
	for ch := range changed {
		if ch.Record == nil && c.p.offer.owned(ch) {
			c.out.removed = append(c.out.removed, pagedRemoval{ch.Key, plainWireKey(c.sub.desc, ch.Key)})
		}
	}
}
