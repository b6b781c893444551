// Package zones knows which zones are connected to the global, and keeps their ZoneInsights.
//
// A zone has one session at a time: the RPCs of one connection. The newest connection of a plane wins, and another
// plane under the same name is refused while the first is live (decision 28). What the table knows is in memory and
// is overlaid on reads; the store gets it when a session opens or closes, and at a bounded rate in between.
package zones

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/config"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/sync/kds"
)

// Causes for which the table ends a stream.
var (
	// ErrNameTaken refuses a plane whose name another live plane bears.
	ErrNameTaken = errors.New("another control plane with this zone's name is connected")
	// ErrReplaced ends the streams of a session that a newer one of the same zone has replaced.
	ErrReplaced = errors.New("replaced by a newer connection of the same zone")
	// ErrHealthLost ends the streams of a zone whose health checks stopped.
	ErrHealthLost = errors.New("the zone's health checks stopped")
	// ErrZoneDeleted ends the streams of a zone whose Zone resource was deleted.
	ErrZoneDeleted = errors.New("the Zone was deleted")
	// ErrTokenEnded ends the streams of a zone whose token has expired or is accepted no more.
	ErrTokenEnded = errors.New("the zone's token has ended")
	// ErrShutdown ends all streams when the global stops.
	ErrShutdown = errors.New("the global control plane is shutting down")
)

// Kind is one of the streams a zone holds open.
type Kind uint8

// The kinds. GlobalToZone is the one that makes a zone online and that a subscription stands for.
const (
	GlobalToZone Kind = iota
	ZoneToGlobal
	XDSConfigs
	Stats
	Clusters
	kinds int = iota
)

// String names the kind in logs.
func (k Kind) String() string {
	return [...]string{"global_to_zone", "zone_to_global", "xds_configs", "stats", "clusters"}[k]
}

// Hello is what a zone says of itself when it opens a stream, before its first message.
type Hello struct {
	Zone string
	// PlaneID and Session are empty for a Kuma zone.
	PlaneID, Session string
	// Address is where the connection comes from, host:port, and Secure that it is a TLS connection.
	Address string
	Secure  bool
	// Pings: the zone sends health checks, so their absence means something.
	Pings bool
	// Inspects: the zone answers the questions about proxies that Kuma does not know.
	Inspects bool
	// Credential is how the zone proved to be that zone.
	Credential Credential
	// Leaving: the plane is about to stop, of its own accord.
	Leaving bool
	// Created is the revision that created the Zone this stream belongs to. A Zone that is deleted and made again is
	// another one, with none of the resources of the first.
	Created store.Revision
}

// The ways in which a zone can have proved who it is, as /status/zones shows them.
const (
	AuthToken  = "token"
	AuthExempt = "exempt" // it need not, by configuration
	AuthNone   = "none"   // no zone need
)

// Credential is how a zone proved who it is. Token and Expires are those of a zone token, where Method is AuthToken.
type Credential struct {
	Method  string
	Token   config.Secret
	Expires time.Time
}

// Config tunes a Table.
type Config struct {
	InstanceID        string
	HealthTimeout     time.Duration // after which a zone that pings and stopped is cut; 0: never
	InsightInterval   time.Duration // least time between two stored versions of unchanged connections
	SubscriptionLimit int           // newest subscriptions kept per zone
	// Peers are asked about the zones that other replicas hold; nil: there are no others.
	Peers Caller
	// WithdrawLost keeps from other zones what a zone shares with them while its plane is lost.
	WithdrawLost bool
}

// Table is the live sessions. Safe for concurrent use.
type Table struct {
	cfg   Config
	store *store.Store
	log   *slog.Logger

	mu      sync.Mutex // guards what follows, and all that hangs from zones
	zones   map[string]*zone
	dirty   map[string]struct{}
	urgent  bool          // a connection opened or closed: store without waiting
	wake    chan struct{} // cap 1, level-triggered: dirty is not empty
	recount bool          // a zone was lost, or is there again
	closing error         // set once: no new streams
	waits   map[*wait]struct{}

	connected *prometheus.GaugeVec
	swaps     *prometheus.CounterVec
	refused   prometheus.Counter
}

type zone struct {
	name    string
	session *session
	// last is the newest publisher to the zone, kept after it is gone for what it had acknowledged.
	last    Publisher
	lastAck time.Time
	insight *systemv1.ZoneInsight
	swapped []time.Time
	retired map[string]struct{} // sessions that were replaced
	// lost: the session ended, and nobody had said that it would. What stops in an orderly way will be back, and its proxies
	// go on meanwhile.
	lost bool
}

type session struct {
	hello   Hello
	since   time.Time
	streams [kinds]*Stream
	health  *time.Timer // nil: not watched
	leaving bool        // the zone has said that it stops
}

// Publisher is what the table asks of a zone's GlobalToZone publisher.
type Publisher interface {
	Lag(snap *store.Snapshot) int
	Outcome(rev store.Revision, deltas []store.Delta) (outcome kds.Outcome, reason string)
	Await(typ string, rev store.Revision, notify func()) (cancel func())
}

// Stream is one open stream of a zone's session.
type Stream struct {
	table  *Table
	zone   string
	kind   Kind
	token  config.Secret // what it was opened with; "": no token
	cancel context.CancelCauseFunc
	sub    *systemv1.KDSSubscription // of a GlobalToZone stream; guarded by Table.mu
	// publisher serves a GlobalToZone stream, nil until it is known; guarded by Table.mu.
	publisher Publisher
}

// New returns a table over the ZoneInsights in st. Subscriptions that an earlier process left open are closed: it is
// gone, and with it its streams.
func New(ctx context.Context, cfg Config, st *store.Store, reg prometheus.Registerer, log *slog.Logger) (*Table, error) {
	t := &Table{
		cfg: cfg, store: st, log: log,
		zones: make(map[string]*zone), dirty: make(map[string]struct{}), wake: make(chan struct{}, 1),
		waits: make(map[*wait]struct{}),
		connected: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "meridian", Subsystem: "zones", Name: "connected", Help: "1 while the zone has a live session.",
		}, []string{"zone"}),
		swaps: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: "meridian", Subsystem: "zones", Name: "session_swaps_total", Help: "Sessions replaced by a newer one of the same zone.",
		}, []string{"zone"}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "meridian", Subsystem: "zones", Name: "refused_total", Help: "Streams refused because another plane bears the zone's name.",
		}),
	}
	if reg != nil {
		reg.MustRegister(t.connected, t.swaps, t.refused)
	}
	if err := t.closeLeftOvers(ctx); err != nil {
		return nil, fmt.Errorf("close the subscriptions of an earlier process: %w", err)
	}
	// What that process took for lost still is, until it is here again.
	for rec := range st.Snapshot().List(kds.LostZoneKey("").Type, "") {
		t.zoneLocked(rec.Key.Name).lost = true
	}
	return t, nil
}

func (t *Table) closeLeftOvers(ctx context.Context) error {
	_, err := t.store.Update(ctx, func(head *store.Snapshot) ([]store.Op, error) {
		var ops []store.Op
		for rec := range head.List(string(resource.ZoneInsight), "") {
			insight := &systemv1.ZoneInsight{}
			if err := proto.Unmarshal(rec.Spec, insight); err != nil {
				return nil, fmt.Errorf("decode %s: %w", rec.Key, err)
			}
			if !closeOpen(insight, timestamppb.Now()) {
				continue
			}
			op, err := putInsight(head, rec.Key.Name, insight)
			if err != nil {
				return nil, err
			}
			ops = append(ops, op)
		}
		return ops, nil
	})
	return err
}

// closeOpen gives every open subscription a disconnect time and reports whether there was one.
func closeOpen(insight *systemv1.ZoneInsight, at *timestamppb.Timestamp) bool {
	changed := false
	for _, s := range insight.GetSubscriptions() {
		if s.GetDisconnectTime() == nil {
			s.DisconnectTime, changed = at, true
		}
	}
	return changed
}

// zone returns the entry of a name, made from the stored insight if need be. It is called with mu held.
func (t *Table) zoneLocked(name string) *zone {
	if z, ok := t.zones[name]; ok {
		return z
	}
	z := &zone{name: name, insight: &systemv1.ZoneInsight{}, retired: make(map[string]struct{})}
	if rec, ok := t.store.Snapshot().Get(store.Key{Type: string(resource.ZoneInsight), Name: name}); ok {
		if err := proto.Unmarshal(rec.Spec, z.insight); err != nil {
			t.log.Error("a stored zone insight cannot be read and starts over", "zone", name, "err", err)
			z.insight = &systemv1.ZoneInsight{}
		}
	}
	t.zones[name] = z
	return z
}

// Open admits a stream of a zone. The returned context ends, with one of the causes above, when the table ends the
// stream; Close must be called when it is over for whatever reason.
func (t *Table) Open(ctx context.Context, kind Kind, hello Hello) (context.Context, *Stream, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closing != nil {
		return nil, nil, t.closing
	}
	z := t.zoneLocked(hello.Zone)
	if err := t.joinLocked(z, hello); err != nil {
		return nil, nil, err
	}
	// A Kuma zone does not say which of its streams belong to one connection, so they are replaced one by one. The one
	// that makes it online stands for the connection.
	anonymous := hello.Session == "" && kind == GlobalToZone
	if old := z.session.streams[kind]; old != nil {
		if anonymous {
			t.swapLocked(z)
		}
		t.endLocked(z, old, ErrReplaced)
	}
	if anonymous {
		z.session.hello = hello
	}
	ctx, cancel := context.WithCancelCause(ctx)
	if c := hello.Credential; c.Method == AuthToken {
		var stop context.CancelFunc
		ctx, stop = context.WithDeadlineCause(ctx, c.Expires, fmt.Errorf("%w: it expired", ErrTokenEnded))
		end := cancel
		cancel = func(cause error) { end(cause); stop() }
	}
	s := &Stream{table: t, zone: hello.Zone, kind: kind, token: hello.Credential.Token, cancel: cancel}
	z.session.streams[kind] = s
	t.stampLocked(z, kind)
	if kind == GlobalToZone {
		now := timestamppb.Now()
		closeOpen(z.insight, now)
		s.sub = &systemv1.KDSSubscription{
			Id: uuid.NewString(), GlobalInstanceId: t.cfg.InstanceID, ConnectTime: now,
			Status: &systemv1.KDSSubscriptionStatus{
				LastUpdateTime: now, Total: &systemv1.KDSServiceStats{}, Stat: map[string]*systemv1.KDSServiceStats{},
			},
			AuthTokenProvided: hello.Credential.Method == AuthToken,
		}
		z.insight.Subscriptions = append(z.insight.Subscriptions, s.sub)
		if over := len(z.insight.Subscriptions) - t.cfg.SubscriptionLimit; over > 0 {
			z.insight.Subscriptions = z.insight.Subscriptions[over:]
		}
		t.connected.WithLabelValues(z.name).Set(1)
		t.log.Info("zone connected", "zone", z.name, "address", hello.Address, "plane", hello.PlaneID, "auth", hello.Credential.Method)
		if hello.Credential.Method == AuthExempt {
			t.log.Warn("a zone is connected without having proved who it is, as configured", "zone", z.name, "address", hello.Address)
		}
		t.lookAgainLocked()
		t.markLocked(z.name, true)
	}
	return ctx, s, nil
}

// joinLocked makes the session that hello belongs to the zone's, or refuses it.
func (t *Table) joinLocked(z *zone, hello Hello) error {
	if _, gone := z.retired[hello.Session]; gone && hello.Session != "" {
		return ErrReplaced
	}
	cur := z.session
	switch {
	case cur == nil:
	case cur.hello.PlaneID != "" && hello.PlaneID != cur.hello.PlaneID:
		t.refused.Inc()
		t.log.Error("another control plane uses the name of a connected zone and is refused",
			"zone", z.name, "address", hello.Address, "plane", hello.PlaneID,
			"connected_address", cur.hello.Address, "connected_plane", cur.hello.PlaneID)
		return fmt.Errorf("%w: zone %q is connected from %s", ErrNameTaken, z.name, cur.hello.Address)
	case cur.hello.Session == hello.Session:
		return nil
	default:
		t.swapLocked(z)
		t.log.Info("zone reconnects while its older session is still open", "zone", z.name, "address", hello.Address, "older_address", cur.hello.Address)
		t.retireLocked(z, ErrReplaced)
	}
	z.session = &session{hello: hello, since: time.Now()}
	t.lostLocked(z, false)
	if hello.Pings && t.cfg.HealthTimeout > 0 {
		s := z.session
		s.health = time.AfterFunc(t.cfg.HealthTimeout, func() { t.healthLost(z.name, s) })
	}
	return nil
}

// maxSwapsAMinute is how often a zone may change its connection before it looks like two zones under one name.
const maxSwapsAMinute = 3

func (t *Table) swapLocked(z *zone) {
	t.swaps.WithLabelValues(z.name).Inc()
	now := time.Now()
	recent := z.swapped[:0]
	for _, at := range z.swapped {
		if now.Sub(at) < time.Minute {
			recent = append(recent, at)
		}
	}
	z.swapped = append(recent, now)
	if len(z.swapped) > maxSwapsAMinute {
		t.log.Error("sessions of a zone keep replacing each other; are there two zones under one name?", "zone", z.name, "swaps_last_minute", len(z.swapped))
	}
}

// retireLocked ends all streams of the zone's session, which may not come back.
func (t *Table) retireLocked(z *zone, cause error) {
	s := z.session
	if s == nil {
		return
	}
	if s.hello.Session != "" {
		const enough = 64
		if len(z.retired) >= enough {
			clear(z.retired)
		}
		z.retired[s.hello.Session] = struct{}{}
	}
	for _, stream := range s.streams {
		if stream != nil {
			t.endLocked(z, stream, cause)
		}
	}
	t.dropLocked(z)
}

// dropLocked forgets a session without streams.
func (t *Table) dropLocked(z *zone) {
	if z.session != nil && z.session.health != nil {
		z.session.health.Stop()
	}
	z.session = nil
}

func (t *Table) healthLost(name string, s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	z := t.zones[name]
	if z == nil || z.session != s {
		return
	}
	t.log.Warn("zone sends no health checks any more and is cut off", "zone", name, "timeout", t.cfg.HealthTimeout)
	t.lostLocked(z, true)
	t.retireLocked(z, ErrHealthLost)
}

// endLocked takes a stream out of its session and closes its subscription.
func (t *Table) endLocked(z *zone, s *Stream, cause error) {
	s.cancel(cause)
	if z.session == nil || z.session.streams[s.kind] != s {
		return
	}
	z.session.streams[s.kind] = nil
	if s.sub != nil {
		s.sub.DisconnectTime = timestamppb.Now()
		t.connected.WithLabelValues(z.name).Set(0)
		t.log.Info("zone disconnected", "zone", z.name, "reason", cause)
		t.lookAgainLocked()
		t.markLocked(z.name, true)
	}
}

// stampLocked records when a stream of a kind was last opened, and on which instance.
func (t *Table) stampLocked(z *zone, kind Kind) {
	if z.insight.KdsStreams == nil {
		z.insight.KdsStreams = &systemv1.KDSStreams{}
	}
	if z.insight.EnvoyAdminStreams == nil {
		z.insight.EnvoyAdminStreams = &systemv1.EnvoyAdminStreams{}
	}
	stamp := &systemv1.KDSStream{GlobalInstanceId: t.cfg.InstanceID, ConnectTime: timestamppb.Now()}
	switch kind {
	case GlobalToZone:
		z.insight.KdsStreams.GlobalToZone = stamp
	case ZoneToGlobal:
		z.insight.KdsStreams.ZoneToGlobal = stamp
	case XDSConfigs:
		z.insight.KdsStreams.ConfigDump = stamp
		z.insight.EnvoyAdminStreams.ConfigDumpGlobalInstanceId = t.cfg.InstanceID
	case Stats:
		z.insight.KdsStreams.Stats = stamp
		z.insight.EnvoyAdminStreams.StatsGlobalInstanceId = t.cfg.InstanceID
	case Clusters:
		z.insight.KdsStreams.Clusters = stamp
		z.insight.EnvoyAdminStreams.ClustersGlobalInstanceId = t.cfg.InstanceID
	}
	t.markLocked(z.name, false)
}

func (t *Table) markLocked(name string, urgent bool) {
	if _, ok := t.zones[name]; !ok {
		return // a stream of a deleted zone, on its way out
	}
	t.dirty[name] = struct{}{}
	t.urgent = t.urgent || urgent
	select {
	case t.wake <- struct{}{}:
	default: // already awake
	}
}

// Close says that a stream is over.
func (s *Stream) Close(cause error) {
	t := s.table
	t.mu.Lock()
	defer t.mu.Unlock()
	z := t.zones[s.zone]
	if z == nil {
		s.cancel(cause)
		return
	}
	t.endLocked(z, s, cause)
	if z.session == nil {
		return
	}
	for _, other := range z.session.streams {
		if other != nil {
			return
		}
	}
	t.lostLocked(z, !z.session.leaving)
	t.dropLocked(z)
}

func (t *Table) lostLocked(z *zone, lost bool) {
	if z.lost == lost {
		return
	}
	z.lost, t.recount = lost, true
	t.markLocked(z.name, true)
}

// Health notes a health check. It fails for a session that was replaced.
func (t *Table) Health(hello Hello) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closing != nil {
		return t.closing
	}
	z := t.zones[hello.Zone]
	if z == nil {
		return nil
	}
	if _, gone := z.retired[hello.Session]; gone && hello.Session != "" {
		return ErrReplaced
	}
	if z.session == nil || z.session.hello.Session != hello.Session {
		return nil
	}
	z.session.leaving = hello.Leaving
	z.insight.HealthCheck = &systemv1.HealthCheck{Time: timestamppb.Now()}
	if z.session.health != nil {
		z.session.health.Reset(t.cfg.HealthTimeout)
	}
	return nil
}

// End ends the session of a zone that is about to be deleted. What its streams were about to commit fails once the Zone
// is gone.
func (t *Table) End(_ context.Context, name string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if z := t.zones[name]; z != nil {
		t.retireLocked(z, ErrZoneDeleted)
	}
	return nil
}

// Recheck asks check about the token of every open stream, and ends the session of each zone whose token it refuses.
// check is called without the table's lock.
func (t *Table) Recheck(check func(zone string, token config.Secret) error) {
	type held struct {
		zone  string
		token config.Secret
	}
	open := make(map[held]*session)
	t.mu.Lock()
	for _, z := range t.zones {
		if z.session == nil {
			continue
		}
		for _, stream := range z.session.streams {
			if stream != nil && stream.token != "" {
				open[held{z.name, stream.token}] = z.session
			}
		}
	}
	t.mu.Unlock()
	for h, s := range open {
		err := check(h.zone, h.token)
		if err == nil {
			continue
		}
		t.mu.Lock()
		if z := t.zones[h.zone]; z != nil && z.session == s {
			t.log.Warn("the token of a connected zone is accepted no more and its session ends", "zone", h.zone, "reason", err)
			t.retireLocked(z, fmt.Errorf("%w: %w", ErrTokenEnded, err))
		}
		t.mu.Unlock()
	}
}

// Shutdown ends every stream and admits no new ones.
func (t *Table) Shutdown() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closing = ErrShutdown
	for _, z := range t.zones {
		t.retireLocked(z, ErrShutdown)
	}
}

// Connected returns the names of the zones that have a session with this process.
func (t *Table) Connected() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	var names []string
	for name, z := range t.zones {
		if z.session != nil {
			names = append(names, name)
		}
	}
	return names
}

// Insight returns the zone's insight as it is right now, which may be newer than the stored one.
func (t *Table) Insight(name string) (*systemv1.ZoneInsight, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	z := t.zones[name]
	if z == nil {
		return nil, false
	}
	return proto.CloneOf(z.insight), true
}
