package zones

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/server"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/sync/kds"
)

// wait is one call of Await: it sleeps until a zone may have answered.
type wait struct {
	wake chan struct{} // cap 1, level-triggered: "look at the zones below"

	mu      sync.Mutex // guards what follows
	all     bool       // a zone came or went
	zones   map[string]struct{}
	answers []answer // of other replicas
}

func newWait() *wait {
	return &wait{wake: make(chan struct{}, 1), all: true, zones: make(map[string]struct{})}
}

// zone says that one zone may have answered.
func (w *wait) zone(name string) {
	w.mu.Lock()
	w.zones[name] = struct{}{}
	w.mu.Unlock()
	w.kick()
}

// look says that all zones must be looked at.
func (w *wait) look() {
	w.mu.Lock()
	w.all = true
	w.mu.Unlock()
	w.kick()
}

func (w *wait) kick() {
	select {
	case w.wake <- struct{}{}:
	default: // already awake
	}
}

// heard says that another replica has answered, or has not.
func (w *wait) heard(of answer) {
	w.mu.Lock()
	w.answers = append(w.answers, of)
	w.all = true
	w.mu.Unlock()
	w.kick()
}

// take returns what to look at.
func (w *wait) take() (all bool, zones []string, answers []answer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	all, zones, answers = w.all, slices.Collect(maps.Keys(w.zones)), w.answers
	w.all, w.answers = false, nil
	clear(w.zones)
	return all, zones, answers
}

// lookAgainLocked wakes every wait: a zone came or went. Answers, which are far more frequent, wake only those who wait
// for them.
func (t *Table) lookAgainLocked() {
	for w := range t.waits {
		w.look()
	}
}

// standing is how one zone stands to the batch that is waited for.
type standing struct {
	outcome   kds.Outcome
	reason    string // of a rejection, or why it is not known how the zone stands
	offline   bool
	publisher Publisher // that tells of answers; nil: none does
	cancel    []func()
}

func (s *standing) forget() {
	for _, cancel := range s.cancel {
		cancel()
	}
	s.publisher, s.cancel = nil, nil
}

// Await implements [server.Replication]. Whoever waits is woken by answers of zones to the types of the batch at or
// beyond its revision, by zones that come and go, and by what other replicas answer about the zones they hold; nothing
// is polled.
//
// A zone that has acknowledged stays so, whatever happens to it later. All else is as it is when Await returns: a zone
// that went offline is offline, and one that connected meanwhile counts from then on. Only what another replica has said
// of a zone is as it was when it said so.
func (t *Table) Await(ctx context.Context, rev store.Revision, deltas []store.Delta) server.Delivery {
	a := t.await(ctx, rev, deltas, false)
	return a.delivery()
}

// await waits and returns the state it ended in. For another replica it is about the zones held here and no others.
func (t *Table) await(ctx context.Context, rev store.Revision, deltas []store.Delta, forAnother bool) *awaited {
	w := newWait()
	t.mu.Lock()
	t.waits[w] = struct{}{}
	t.mu.Unlock()
	a := &awaited{
		table: t, wait: w, rev: rev, deltas: deltas, types: typesOf(deltas), forAnother: forAnother, zones: make(map[string]*standing),
	}
	a.others.until, _ = ctx.Deadline()
	defer func() {
		t.mu.Lock()
		delete(t.waits, w)
		t.mu.Unlock()
		for _, s := range a.zones {
			s.forget()
		}
		a.others.stop()
	}()
	for {
		moved := t.store.Changed(HolderType)
		if a.step(ctx); !a.pending() {
			a.look(ctx, true, nil) // all at one moment
			if !a.pending() {
				return a
			}
		}
		select {
		case <-w.wake:
		case <-moved:
			w.look()
		case <-ctx.Done():
			a.look(ctx, true, nil)
			if errors.Is(ctx.Err(), context.DeadlineExceeded) {
				a.hearOut(ctx)
			}
			return a
		}
	}
}

func typesOf(deltas []store.Delta) []string {
	var types []string
	for _, d := range deltas {
		if !slices.Contains(types, d.Key.Type) {
			types = append(types, d.Key.Type)
		}
	}
	return types
}

// awaited is the state of one Await, owned by it.
type awaited struct {
	table      *Table
	wait       *wait
	rev        store.Revision
	deltas     []store.Delta
	types      []string
	forAnother bool // replica that asks
	zones      map[string]*standing
	others     others
}

// step takes in what has happened.
func (a *awaited) step(ctx context.Context) {
	all, some, answers := a.wait.take()
	for _, answer := range answers {
		a.others.take(answer)
	}
	a.look(ctx, all, some)
}

// publishers returns the publishers of the zones that are online, nil for one that is not known yet; of the given
// zones, or of all.
func (t *Table) publishers(all bool, some []string) map[string]Publisher {
	t.mu.Lock()
	defer t.mu.Unlock()
	online := make(map[string]Publisher)
	add := func(z *zone) {
		if z != nil && z.session != nil && z.session.streams[GlobalToZone] != nil {
			online[z.name] = z.session.streams[GlobalToZone].publisher
		}
	}
	if all {
		for _, z := range t.zones {
			add(z)
		}
		return online
	}
	for _, name := range some {
		add(t.zones[name])
	}
	return online
}

// look brings zones up to date: all that there are, or some.
func (a *awaited) look(ctx context.Context, all bool, some []string) {
	online := a.table.publishers(all, some)
	snap := a.table.store.Snapshot()
	if all {
		some = names(snap, online)
		for name, s := range a.zones { // of a zone that was deleted nobody wants to hear
			if _, ok := slices.BinarySearch(some, name); !ok && s.outcome != kds.Acknowledged {
				s.forget()
				delete(a.zones, name)
			}
		}
		a.others.nobody()
	}
	for _, name := range some {
		s := a.zones[name]
		if s == nil {
			s = &standing{}
			a.zones[name] = s
		}
		if s.outcome == kds.Acknowledged {
			continue
		}
		if publisher, connected := online[name]; connected {
			a.judge(s, name, publisher)
		} else {
			a.judgeByRecord(s, name, snap)
		}
	}
	if all {
		a.askOthers(ctx)
	}
}

// names returns the zones that there are: those with a resource, and those connected.
func names(snap *store.Snapshot, online map[string]Publisher) []string {
	names := slices.Collect(maps.Keys(online))
	for rec := range snap.List(string(resource.ZoneType), "") {
		if _, ok := online[rec.Key.Name]; !ok {
			names = append(names, rec.Key.Name)
		}
	}
	slices.Sort(names)
	return names
}

// judge says how a zone stands that is connected to this replica; its publisher is nil while it is about to be known.
func (a *awaited) judge(s *standing, name string, publisher Publisher) {
	if s.publisher != publisher {
		s.forget()
	}
	s.offline, s.outcome, s.reason = false, kds.Pending, ""
	if publisher == nil {
		return
	}
	if s.publisher == nil {
		s.publisher = publisher
		for _, typ := range a.types {
			s.cancel = append(s.cancel, publisher.Await(typ, a.rev, func() { a.wait.zone(name) }))
		}
	}
	s.outcome, s.reason = publisher.Outcome(a.rev, a.deltas)
	if s.outcome == kds.Acknowledged {
		s.forget()
	}
}

// judgeByRecord says how a zone stands that is not connected to this replica, by what the store says of its session.
func (a *awaited) judgeByRecord(s *standing, name string, snap *store.Snapshot) {
	s.forget()
	s.offline, s.outcome, s.reason = true, kds.Pending, ""
	if a.forAnother {
		return // which judges for itself
	}
	rec, ok := snap.Get(holderKey(name))
	if !ok {
		return
	}
	if h, ok := readHolder(rec); ok && h.Online() && h.Instance != a.table.cfg.InstanceID {
		s.offline = false
		s.outcome, s.reason = a.others.outcome(h.Instance, rec.Version, name)
	}
}

func (a *awaited) pending() bool {
	for _, s := range a.zones {
		if !s.offline && s.outcome == kds.Pending {
			return true
		}
	}
	return false
}

func (a *awaited) delivery() server.Delivery {
	d := server.Delivery{Revision: a.rev}
	for _, name := range slices.Sorted(maps.Keys(a.zones)) {
		switch s := a.zones[name]; {
		case s.outcome == kds.Acknowledged:
			d.Acknowledged = append(d.Acknowledged, name)
		case s.offline:
			d.Offline = append(d.Offline, name)
		case s.outcome == kds.Pending:
			d.Pending = append(d.Pending, name)
			if s.reason != "" {
				d.PendingReasons = append(d.PendingReasons, server.Reason{Zone: name, Reason: s.reason})
			}
		case s.outcome == kds.Rejected:
			d.Rejected = append(d.Rejected, server.Reason{Zone: name, Reason: s.reason})
		default:
			d.NotApplicable = append(d.NotApplicable, name)
		}
	}
	return d
}
