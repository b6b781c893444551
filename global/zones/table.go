// Package zones knows which zones are connected to the global, and keeps their ZoneInsights.
//
// A zone has one session at a time: the RPCs of one connection. The newest connection of a plane wins, and another
// plane under the same name is refused while the first is live (decision 28). What the table knows is in memory and
// is overlaid on reads; the store gets it when a session opens or closes, and at a bounded rate in between.
//
// The global may have several replicas on one store, and a zone may connect to any. Each replica has a table of the
// sessions it holds itself; which of them is the zone's is decided by the store, in the order of commits ([Holder], claim.go):
//
//   - A session is admitted from memory at once and claimed with the next batch, which takes the zone away from whoever held it.
//   - A replica that finds in the store that its session was replaced ends it. Until it does, what the zone's older streams
//     bring is refused, for each of their batches is checked against the record on the head ([Stream.Guard]).
//   - Each replica writes only the subscriptions of its own streams into a ZoneInsight, by their ids, and keeps those of others.
//   - What a replica that died left open, the others close (gone.go). One that was wrongly taken for dead finds its session
//     closed and asserts it again.
package zones

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/timestamppb"

	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
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
	// WithdrawLost keeps from other zones what a zone shares with them while its plane is lost.
	WithdrawLost bool
	// Replicas tells which other replicas of this plane are gone. Nil: there are no others.
	Replicas Replicas
}

// Replicas is what the table asks about the other replicas of its plane, from Run on. See [cluster.Cluster], which answers.
type Replicas interface {
	// Gone says that a replica is there no more, as far as is known here.
	Gone(instance string) bool
	// Changed returns a channel that is closed when Gone may give another answer.
	Changed() <-chan struct{}
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
	closing error         // set once: no new streams
	waits   map[*wait]struct{}
	others  map[string]struct{} // replicas that may hold something open
	met     chan struct{}       // cap 1, level-triggered: there is a new one among them

	connected *prometheus.GaugeVec
	swaps     *prometheus.CounterVec
	refused   prometheus.Counter
}

type zone struct {
	name    string
	session *session
	// over is the last session that ended here, until that is stored or another session makes it a thing of the past.
	over *session
	// subs are the subscriptions of streams here: that of the open stream, and ended ones until they are stored so.
	subs []*systemv1.KDSSubscription
	// opened is when streams were last opened here, checked the last health check.
	opened  systemv1.KDSStreams
	checked *timestamppb.Timestamp
	// last is the newest publisher to the zone, kept after it is gone for what it had acknowledged.
	last    Publisher
	lastAck time.Time
	swapped []time.Time
	retired map[string]struct{} // sessions that were replaced
}

type session struct {
	id      string // the zone's own, or made here for a Kuma zone, which has none
	hello   Hello
	streams [kinds]*Stream
	health  *time.Timer // nil: not watched
	leaving bool        // the zone has said that it stops
	number  uint64      // that it was claimed under, or would have been had the batch been stored; 0: none yet
	ended   time.Time
	// lost: the session ended, and nobody had said that it would. What stops in an orderly way will be back, and its proxies
	// go on meanwhile.
	lost bool
}

// Publisher is what the table asks of a zone's GlobalToZone publisher.
type Publisher interface {
	Lag(snap *store.Snapshot) int
	Outcome(rev store.Revision, deltas []store.Delta) (outcome kds.Outcome, reason string)
	Await(typ string, rev store.Revision, notify func()) (cancel func())
}

// Stream is one open stream of a zone's session.
type Stream struct {
	table   *Table
	zone    string
	session *session
	kind    Kind
	token   config.Secret // what it was opened with; "": no token
	cancel  context.CancelCauseFunc
	sub     *systemv1.KDSSubscription // of a GlobalToZone stream; guarded by Table.mu
	// publisher serves a GlobalToZone stream, nil until it is known; guarded by Table.mu.
	publisher Publisher
}

// New returns a table over the ZoneInsights in st. What an earlier process under the same instance id left open is closed: it is
// gone, and with it its streams. Where there are no other replicas, the same goes for every other process.
func New(ctx context.Context, cfg Config, st *store.Store, reg prometheus.Registerer, log *slog.Logger) (*Table, error) {
	t := &Table{
		cfg: cfg, store: st, log: log,
		zones: make(map[string]*zone), dirty: make(map[string]struct{}), wake: make(chan struct{}, 1),
		waits: make(map[*wait]struct{}), others: make(map[string]struct{}), met: make(chan struct{}, 1),
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
	earlier := func(instance string) bool { return instance == cfg.InstanceID || cfg.Replicas == nil }
	if err := t.closeOf(ctx, earlier); err != nil {
		return nil, fmt.Errorf("close what an earlier process left open: %w", err)
	}
	return t, nil
}

// zoneLocked returns the entry of a name, made if need be.
func (t *Table) zoneLocked(name string) *zone {
	if z, ok := t.zones[name]; ok {
		return z
	}
	z := &zone{name: name, retired: make(map[string]struct{})}
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
	s := &Stream{table: t, zone: hello.Zone, session: z.session, kind: kind, token: hello.Credential.Token, cancel: cancel}
	z.session.streams[kind] = s
	now := timestamppb.Now()
	*stampOf(&z.opened, kind) = &systemv1.KDSStream{GlobalInstanceId: t.cfg.InstanceID, ConnectTime: now}
	t.markLocked(z.name, false)
	if kind == GlobalToZone {
		s.sub = &systemv1.KDSSubscription{
			Id: uuid.NewString(), GlobalInstanceId: t.cfg.InstanceID, ConnectTime: now,
			Status: &systemv1.KDSSubscriptionStatus{
				LastUpdateTime: now, Total: &systemv1.KDSServiceStats{}, Stat: map[string]*systemv1.KDSServiceStats{},
			},
			AuthTokenProvided: hello.Credential.Method == AuthToken,
		}
		z.subs = newest(append(z.subs, s.sub), t.cfg.SubscriptionLimit)
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

// joinLocked makes the session that hello belongs to the zone's, or refuses it. Where another replica holds the zone's session, that
// stays as it is until this one has been claimed.
func (t *Table) joinLocked(z *zone, hello Hello) error {
	if _, gone := z.retired[hello.Session]; gone && hello.Session != "" {
		return ErrReplaced
	}
	cur := z.session
	switch {
	case cur == nil:
		held, known := HolderOf(t.store.Snapshot(), z.name)
		if known && t.takenLocked(held, hello.PlaneID) {
			t.refusedLocked(z, hello, held.Address, held.Plane)
			return nameTaken(z.name, held.Address)
		}
	case cur.hello.PlaneID != "" && hello.PlaneID != cur.hello.PlaneID:
		t.refusedLocked(z, hello, cur.hello.Address, cur.hello.PlaneID)
		return nameTaken(z.name, cur.hello.Address)
	case cur.hello.Session == hello.Session:
		return nil
	default:
		t.swapLocked(z)
		t.log.Info("zone reconnects while its older session is still open", "zone", z.name, "address", hello.Address, "older_address", cur.hello.Address)
		t.retireLocked(z, ErrReplaced)
	}
	z.session = &session{id: cmp.Or(hello.Session, uuid.NewString()), hello: hello}
	z.over = nil
	if hello.Pings && t.cfg.HealthTimeout > 0 {
		s := z.session
		s.health = time.AfterFunc(t.cfg.HealthTimeout, func() { t.healthLost(z.name, s) })
	}
	return nil
}

func nameTaken(zone, address string) error {
	return fmt.Errorf("%w: zone %q is connected from %s", ErrNameTaken, zone, address)
}

// refusedLocked tells of a plane that is refused because another one, live, has its name.
func (t *Table) refusedLocked(z *zone, hello Hello, address, plane string) {
	t.refused.Inc()
	t.log.Error("another control plane uses the name of a connected zone and is refused",
		"zone", z.name, "address", hello.Address, "plane", hello.PlaneID, "connected_address", address, "connected_plane", plane)
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
	t.overLocked(z, false)
}

// overLocked ends a session without streams.
func (t *Table) overLocked(z *zone, lost bool) {
	s := z.session
	if s.health != nil {
		s.health.Stop()
	}
	s.ended, s.lost = time.Now(), lost
	z.session, z.over = nil, s
	t.markLocked(z.name, true)
}

func (t *Table) healthLost(name string, s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	z := t.zones[name]
	if z == nil || z.session != s {
		return
	}
	t.log.Warn("zone sends no health checks any more and is cut off", "zone", name, "timeout", t.cfg.HealthTimeout)
	t.retireLocked(z, ErrHealthLost)
	s.lost = true
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
	t.overLocked(z, !z.session.leaving)
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
	z.checked = timestamppb.Now()
	if z.session.health != nil {
		z.session.health.Reset(t.cfg.HealthTimeout)
	}
	return nil
}

// End ends the session of a zone that is about to be deleted. What its streams were about to commit fails once the Zone
// is gone. A session with another replica ends there with the commit of the deletion, and what that replica writes until then goes
// with the Zone.
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
