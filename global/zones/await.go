package zones

import (
	"context"
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

	mu    sync.Mutex // guards what follows
	all   bool       // a zone came or went
	zones map[string]struct{}
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

// take returns what to look at.
func (w *wait) take() (all bool, zones []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	all, zones = w.all, slices.Collect(maps.Keys(w.zones))
	w.all = false
	clear(w.zones)
	return all, zones
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
	reason    string
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
// beyond its revision, and by zones that come and go; nothing is polled.
//
// A zone that has acknowledged stays so, whatever happens to it later. All else is as it is when Await returns: a zone
// that went offline is offline, and one that connected meanwhile counts from then on.
func (t *Table) Await(ctx context.Context, rev store.Revision, deltas []store.Delta) server.Delivery {
	w := newWait()
	t.mu.Lock()
	t.waits[w] = struct{}{}
	t.mu.Unlock()
	a := &awaited{table: t, wait: w, rev: rev, deltas: deltas, types: typesOf(deltas), zones: make(map[string]*standing)}
	defer func() {
		t.mu.Lock()
		delete(t.waits, w)
		t.mu.Unlock()
		for _, s := range a.zones {
			s.forget()
		}
	}()
	for {
		all, some := w.take()
		a.look(all, some)
		if !a.pending() {
			a.look(true, nil) // all at one moment
			if !a.pending() {
				return a.delivery()
			}
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			a.look(true, nil)
			return a.delivery()
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
	table  *Table
	wait   *wait
	rev    store.Revision
	deltas []store.Delta
	types  []string
	zones  map[string]*standing
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
func (a *awaited) look(all bool, some []string) {
	online := a.table.publishers(all, some)
	if all {
		some = a.table.names(online)
		for name, s := range a.zones { // of a zone that was deleted nobody wants to hear
			if !slices.Contains(some, name) && s.outcome != kds.Acknowledged {
				s.forget()
				delete(a.zones, name)
			}
		}
	}
	for _, name := range some {
		s := a.zones[name]
		if s == nil {
			s = &standing{}
			a.zones[name] = s
		}
		publisher, connected := online[name]
		a.judge(s, name, publisher, connected)
	}
}

// names returns the zones that there are: those with a resource, and those connected.
func (t *Table) names(online map[string]Publisher) []string {
	names := slices.Collect(maps.Keys(online))
	for rec := range t.store.Snapshot().List(string(resource.ZoneType), "") {
		if _, ok := online[rec.Key.Name]; !ok {
			names = append(names, rec.Key.Name)
		}
	}
	slices.Sort(names)
	return names
}

func (a *awaited) judge(s *standing, name string, publisher Publisher, connected bool) {
	if s.outcome == kds.Acknowledged {
		return
	}
	if s.publisher != publisher {
		s.forget()
	}
	s.offline, s.reason = !connected, ""
	if publisher == nil {
		s.outcome = kds.Pending // unless offline: its publisher is about to be known
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
		case s.outcome == kds.Rejected:
			d.Rejected = append(d.Rejected, server.Rejection{Zone: name, Reason: s.reason})
		default:
			d.NotApplicable = append(d.NotApplicable, name)
		}
	}
	return d
}
