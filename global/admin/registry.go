package admin

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

	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/server"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/global/zones"
	"github.com/meridian-mesh/meridian/sync/forward"
	"github.com/meridian-mesh/meridian/sync/kds"
)

// Options are what a [Registry] stands on.
type Options struct {
	Config Config
	Store  *store.Store
	// Zones tells whether a zone is online, and what it has said of itself.
	Zones server.ZoneSessions
	// Instance is the id of this replica of the plane, Peers the others: a zone has its streams with one of them. nil: there are none.
	Instance string
	Peers    forward.Peers
	// Registerer takes the metrics; nil: none are exported.
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// Registry is the streams over which zones can be asked about their proxies. Safe for concurrent use.
type Registry struct {
	o       Options
	metrics *metrics

	mu    sync.Mutex // guards what follows
	links map[linkKey]*link
	asked map[string]int // questions on their way, by zone; no zeros
	total int
}

type linkKey struct {
	zone string
	kind zones.Kind
}

var _ server.Proxies = (*Registry)(nil)

// New returns a registry without streams.
func New(o Options) *Registry {
	return &Registry{o: o, metrics: newMetrics(o.Registerer), links: make(map[linkKey]*link), asked: make(map[string]int)}
}

// open makes l the stream of its zone and kind, in place of an older one, whose questions end with it. A stream that was replaced
// before it came here must not take the place of the one that replaced it: its ctx has ended by then.
func (r *Registry) open(ctx context.Context, l *link) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if ctx.Err() == nil {
		r.links[linkKey{l.zone, l.kind}] = l
	}
}

// close ends the questions on l.
func (r *Registry) close(l *link) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if key := (linkKey{l.zone, l.kind}); r.links[key] == l {
		delete(r.links, key)
	}
	close(l.over)
}

// Ask implements [server.Proxies]. Where another replica of this plane has the zone's session, that one asks the zone.
func (r *Registry) Ask(ctx context.Context, q server.ProxyQuestion) (body []byte, err error) {
	began := time.Now()
	r.metrics.inFlight.Inc()
	defer func() {
		r.metrics.inFlight.Dec()
		r.metrics.observe(q.View, outcome(ctx, err), time.Since(began))
	}()
	k, zone, name, err := r.understand(q)
	if err != nil {
		return nil, err
	}
	if instance := r.holder(zone, k); instance != r.o.Instance {
		return forward.Ask(ctx, r.o.Peers, instance, fmt.Sprintf("zone %q is connected", zone), r.o.Config.Timeout, q)
	}
	return r.askZone(ctx, k, zone, name, q)
}

// AskHere answers what another replica was asked, by the streams of this one only.
func (r *Registry) AskHere(ctx context.Context, q server.ProxyQuestion) ([]byte, error) {
	k, zone, name, err := r.understand(q)
	if err != nil {
		return nil, err
	}
	return r.askZone(ctx, k, zone, name, q)
}

// understand returns how a question is asked, of which zone, and what its proxy is called there.
func (r *Registry) understand(q server.ProxyQuestion) (k kind, zone, name string, err error) {
	k, ok := kinds[q.View]
	if !ok {
		return k, "", "", fail(server.AskInvalid, "%q is not a view of proxies", q.View)
	}
	zone, name, err = r.locate(q)
	return k, zone, name, err
}

// holder returns the replica to ask a zone from: this one, unless the zone is connected to another and has no stream here.
func (r *Registry) holder(zone string, k kind) (instance string) {
	if r.link(zone, k) == nil && r.o.Peers != nil {
		if h, ok := zones.HolderOf(r.o.Store.Snapshot(), zone); ok && h.Live() {
			return h.Instance
		}
	}
	return r.o.Instance
}

func (r *Registry) link(zone string, k kind) *link {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.links[linkKey{zone, k.stream}]
}

// askZone asks a zone over a stream of this replica.
func (r *Registry) askZone(ctx context.Context, k kind, zone, name string, q server.ProxyQuestion) ([]byte, error) {
	l, err := r.reach(zone, k)
	if err != nil {
		return nil, err
	}
	if kds.Query(q) != "" && !l.inspects {
		return nil, fail(server.AskInvalid, "the control plane of zone %q does not offer this view of its proxies", zone)
	}
	if err := r.take(zone); err != nil {
		return nil, err
	}
	defer r.release(zone)
	body, err := r.ask(ctx, l, k, name, q)
	if err == nil && q.View == server.ViewConfigDump {
		return k.redact(body)
	}
	return body, err
}

// ask sends the question and waits for its answer.
func (r *Registry) ask(ctx context.Context, l *link, k kind, name string, q server.ProxyQuestion) ([]byte, error) {
	limit := time.NewTimer(r.o.Config.Timeout)
	defer limit.Stop()
	id := uuid.NewString()
	answers := l.expect(id)
	defer l.forget(id)
	select {
	case l.queue <- question{id, k.request(id, name, q)}:
	default: // full of questions whose askers have gone: the zone does not read
		return nil, fail(server.AskBusy, "zone %q has not taken the questions before this one", l.zone)
	}
	select {
	case a := <-answers:
		return k.result(a)
	case <-l.over:
		select {
		case a := <-answers: // the last thing that came
			return k.result(a)
		default:
			return nil, fail(server.AskUnreachable, "%s: the stream of zone %q has ended", k.prefix(), l.zone)
		}
	case <-limit.C:
		return nil, fail(server.AskTimeout, "%s: zone %q has not answered within %s", k.prefix(), l.zone, r.o.Config.Timeout)
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// reach returns the stream to ask a zone over.
func (r *Registry) reach(zone string, k kind) (*link, error) {
	snap := r.o.Store.Snapshot()
	rec, ok := snap.Get(store.Key{Type: string(resource.ZoneType), Name: zone})
	if !ok {
		return nil, fail(server.AskUnreachable, "%s: there is no zone %q", k.failure(), zone)
	}
	var z systemv1.Zone
	if err := proto.Unmarshal(rec.Spec, &z); err != nil {
		return nil, fmt.Errorf("decode zone %q: %w", zone, err)
	}
	if z.GetEnabled() != nil && !z.GetEnabled().GetValue() {
		return nil, fail(server.AskUnreachable, "%s: zone %q is disabled", k.failure(), zone)
	}
	if l := r.link(zone, k); l != nil {
		return l, nil
	}
	if live, _ := r.o.Zones.Live(snap, zone); live.Online {
		return nil, fail(server.AskUnreachable, "%s: stream not connected: zone %q has not opened the stream for these questions", k.failure(), zone)
	}
	return nil, fail(server.AskUnreachable, "%s: zone %q is offline", k.failure(), zone)
}

// take counts a question, if there may be one more.
func (r *Registry) take(zone string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.asked[zone] >= r.o.Config.MaxPerZone {
		return fail(server.AskBusy, "zone %q has %d questions about proxies to answer already", zone, r.asked[zone])
	}
	if r.total >= r.o.Config.MaxTotal {
		return fail(server.AskBusy, "%d questions about proxies are on their way already", r.total)
	}
	r.asked[zone]++
	r.total++
	return nil
}

func (r *Registry) release(zone string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.total--
	if r.asked[zone]--; r.asked[zone] == 0 {
		delete(r.asked, zone)
	}
}

func fail(reason server.AskReason, format string, args ...any) error {
	return &server.AskError{Reason: reason, Details: fmt.Sprintf(format, args...)}
}

// outcome is the word for how a question ended.
func outcome(ctx context.Context, err error) string {
	switch {
	case err == nil:
		return "ok"
	case kds.Reason(err) != "":
		return kds.Reason(err)
	case errors.Is(ctx.Err(), context.Canceled):
		return "canceled"
	default:
		return "error"
	}
}
