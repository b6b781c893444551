package proxies

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/meridian-mesh/meridian/api/tokens"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/zone/xds"
)

// Connected is a proxy that has a stream.
type Connected struct {
	NodeID     string
	Kind       Kind
	Proxyless  bool
	Mesh, Name string // Mesh is "" for ingresses and egresses
	Metadata   Metadata
}

// Watcher is told who is connected. Calls for one node are made one after the other, in order, and without a lock held; they
// must not block.
type Watcher interface {
	// Connected is called before the first stream of a proxy is served, and again when a newer stream says other things of a
	// proxy that is connected already.
	Connected(c Connected)
	// Disconnected is called when its last stream has ended.
	Disconnected(nodeID string)
}

// Options is what a Registry works with. All but Watcher, Registerer and Log must be set.
type Options struct {
	Config     Config
	Zone       string // name of this zone
	InstanceID string // of this process
	Store      *store.Store
	Authority  *tokens.Authority
	Watcher    Watcher
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// Registry holds the proxies that are connected to this process. Safe for concurrent use.
type Registry struct {
	// Set by New, read-only after.
	cfg       Config
	zone      string
	instance  string
	store     *store.Store
	authority *tokens.Authority
	watcher   Watcher
	log       *slog.Logger
	metrics   *metrics
	from      store.Revision // the watch begins here

	// delivery is held while the watcher is told, so that events come in order. Locked before mu.
	delivery sync.Mutex

	mu       sync.Mutex // guards what follows, and all that hangs from proxies
	closing  bool
	draining bool              // no new streams
	proxies  map[string]*proxy // by node id: those that are connected, about to be, or not stored or removed yet
	events   []event
	dirty    map[*proxy]struct{} // insights to store
	urgent   bool                // one of them now
	wake     chan struct{}       // cap 1, level-triggered: dirty is not empty
	leaving  []departure         // in the order of their times
	left     chan struct{}       // cap 1, level-triggered: leaving has changed
}

// proxy is one proxy and its streams.
type proxy struct {
	id      string
	key     store.Key
	insKey  store.Key
	kind    Kind
	opening int        // streams that are being opened
	streams []*Session // oldest first
	aside   []*Session // that only ask for the credential
	said    Connected  // what the watcher was told last
	insight *insight   // nil while it never connected
	// selfRegistered: it brought its resource, on any of the streams since it connected. A gRPC program has streams of its own
	// beside that of the agent which registers it.
	selfRegistered bool
	leaveAt        time.Time // when its resource is removed; zero: it is not
}

// event is something to tell the watcher.
type event struct {
	connected Connected
	gone      string // the node that is disconnected, or ""
}

// New returns a registry without proxies. Subscriptions that an earlier process left open are closed, since that process is
// gone and its streams with it; removals that it had announced will be made.
func New(ctx context.Context, o Options) (*Registry, error) {
	if o.Store == nil || o.Authority == nil || o.Zone == "" || o.InstanceID == "" {
		return nil, errors.New("proxies: store, authority, zone and instance must be set")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	r := &Registry{
		cfg: o.Config, zone: o.Zone, instance: o.InstanceID, store: o.Store, authority: o.Authority, watcher: o.Watcher,
		log: o.Log, metrics: newMetrics(),
		proxies: make(map[string]*proxy), dirty: make(map[*proxy]struct{}),
		wake: make(chan struct{}, 1), left: make(chan struct{}, 1),
	}
	if err := r.closeLeftOvers(ctx); err != nil {
		return nil, err
	}
	r.from = r.store.Snapshot().Revision()
	if o.Registerer != nil {
		if err := r.metrics.register(o.Registerer); err != nil {
			return nil, err
		}
	}
	return r, nil
}

var _ xds.Sessions = (*Registry)(nil)

// Open implements [xds.Sessions]: it authenticates the proxy and registers its resource. All its errors are status errors.
func (r *Registry) Open(ctx context.Context, first xds.Opening) (xds.Session, error) {
	s, err := r.admit(ctx, first, false)
	if err != nil {
		r.refused(ctx, first.Node, first.Peer, err)
		return nil, err
	}
	r.log.InfoContext(ctx, "proxy connected", "kind", s.node.kind, "mesh", s.node.mesh, "name", s.node.name, "peer", first.Peer,
		"version", s.node.metadata.Version.GetKumaDp().GetVersion(), "subscription", s.subscriptionID)
	return s, nil
}

// Attach authenticates a stream that belongs to a proxy but is not what keeps it connected: it registers nothing and is in no
// insight. It fails with codes.NotFound while the proxy has no resource. The caller closes what it returns.
func (r *Registry) Attach(ctx context.Context, n *corev3.Node, authorization []string) (*Session, error) {
	s, err := r.admit(ctx, xds.Opening{Node: n, Authorization: authorization}, true)
	if err != nil {
		r.refused(ctx, n, "", err)
		return nil, err
	}
	return s, nil
}

func (r *Registry) refused(ctx context.Context, n *corev3.Node, peer string, err error) {
	r.metrics.refused.WithLabelValues(reasonOf(err)).Inc()
	r.log.WarnContext(ctx, "a proxy is refused", "node", clip(n.GetId()), "peer", peer, "reason", err)
}

func (r *Registry) admit(ctx context.Context, first xds.Opening, aside bool) (_ *Session, err error) {
	n, err := parseNode(first.Node)
	if err != nil {
		return nil, refuse(badNode, codes.InvalidArgument, "%v", err)
	}
	c, err := r.credentialOf(first.Authorization)
	if err != nil {
		return nil, err
	}
	p, err := r.enter(n)
	if err != nil {
		return nil, err
	}
	joined := false
	defer func() {
		if !joined {
			r.leave(p)
		}
	}()
	if aside {
		n.resource = ""
	}
	done, err := r.register(ctx, n, c)
	if err != nil {
		return nil, err
	}
	s := &Session{registry: r, node: n, proxy: p, credential: c, peer: first.Peer, aside: aside, done: make(chan struct{})}
	joined = true
	r.join(s, done)
	r.deliver()
	// The watch looks at sessions it finds; what was committed before this one could be found is looked at here.
	if err := s.verify(r.store.Snapshot()); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Connected returns the proxies that have a stream with this process, each as TYPE/MESH/NAME or TYPE/NAME of its resource.
func (r *Registry) Connected() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var names []string
	for _, p := range r.proxies {
		if len(p.streams) > 0 {
			names = append(names, p.key.String())
		}
	}
	return names
}

// enter notes that a stream of the proxy is being opened.
func (r *Registry) enter(n *node) (*proxy, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closing || r.draining {
		return nil, errShuttingDown
	}
	p := r.proxies[n.id()]
	if p == nil {
		p = &proxy{id: n.id(), key: n.key(), insKey: n.insightKey(), kind: n.kind}
		r.proxies[p.id] = p
	}
	p.opening++
	return p, nil
}

// leave notes that the stream was not opened.
func (r *Registry) leave(p *proxy) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p.opening--
	r.forgetLocked(p)
}

// forgetLocked drops a proxy of which nothing is left to do.
func (r *Registry) forgetLocked(p *proxy) {
	_, dirty := r.dirty[p]
	if p.opening > 0 || len(p.streams) > 0 || len(p.aside) > 0 || !p.leaveAt.IsZero() || dirty {
		return
	}
	if r.proxies[p.id] == p {
		delete(r.proxies, p.id)
	}
}

// join makes an admitted stream one of the proxy's.
func (r *Registry) join(s *Session, done registration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := s.proxy
	p.opening--
	if r.closing || r.draining {
		s.endLocked(errShuttingDown)
	}
	if s.aside {
		p.aside = append(p.aside, s)
		return
	}
	p.leaveAt = time.Time{}
	p.selfRegistered = done.brought || p.selfRegistered && len(p.streams) > 0
	if p.insight == nil || done.created {
		fresh := &insight{}
		if !done.created {
			fresh = r.loadInsight(p.kind, p.insKey)
		} else if len(p.streams) > 0 { // it is still connected, with the certificate that it has
			fresh.mtls = p.insight.mtls
		}
		p.insight = fresh
	}
	s.sub = p.insight.open(r.instance, s.node.metadata.Version)
	s.subscriptionID = s.sub.GetId()
	if len(p.streams) > 0 { // what is wrong with its configuration still is
		s.sub.Status.ConfigError = p.streams[len(p.streams)-1].sub.GetStatus().GetConfigError()
	}
	if len(p.streams) == 0 {
		r.metrics.connected.WithLabelValues(p.kind.String()).Inc()
	}
	p.streams = append(p.streams, s)
	c := Connected{
		NodeID: p.id, Kind: p.kind, Proxyless: s.node.proxyless, Mesh: s.node.mesh, Name: s.node.name, Metadata: s.node.metadata,
	}
	if len(p.streams) == 1 || !same(p.said, c) {
		p.said = c
		r.events = append(r.events, event{connected: c})
	}
	r.markLocked(p, true)
}

// deliver tells the watcher what has happened. When it returns, all that had happened before has been told.
func (r *Registry) deliver() {
	r.delivery.Lock()
	defer r.delivery.Unlock()
	for {
		r.mu.Lock()
		if len(r.events) == 0 {
			r.mu.Unlock()
			return
		}
		e := r.events[0]
		r.events = r.events[1:]
		r.mu.Unlock()
		switch {
		case r.watcher == nil:
		case e.gone != "":
			r.watcher.Disconnected(e.gone)
		default:
			r.watcher.Connected(e.connected)
		}
	}
}

// same reports whether the watcher knows all that c says.
func same(a, b Connected) bool {
	x, y := a.Metadata, b.Metadata
	return a.Proxyless == b.Proxyless && x.AdminAddress == y.AdminAddress && x.AdminPort == y.AdminPort &&
		x.DNSPort == y.DNSPort && x.EmptyDNSPort == y.EmptyDNSPort && slices.Equal(x.Features, y.Features) &&
		maps.Equal(x.Dynamic, y.Dynamic) && proto.Equal(x.Version, y.Version)
}
