package zones

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// retryStore is how long after a failure it is tried again to store what has changed.
const retryStore = time.Second

// Run stores what changed, ends the sessions of deleted zones and of those that another replica has claimed, and closes what replicas
// that are gone left open, until ctx ends; then it stores once more what Shutdown has changed.
func (t *Table) Run(ctx context.Context) error {
	following, stop := context.WithCancel(ctx)
	var g sync.WaitGroup
	g.Go(func() { t.follow(following) })
	if t.cfg.Replicas != nil {
		g.Go(func() { t.closeGone(following) })
	}
	defer g.Wait()
	defer stop()
	var last time.Time
	var retry <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return t.flush(context.WithoutCancel(ctx))
		case <-retry:
		case <-t.wake:
			if wait := time.Until(last.Add(t.cfg.InsightInterval)); wait > 0 && !t.takeUrgent() {
				if err := t.hold(ctx, wait, retry); err != nil {
					return t.flush(context.WithoutCancel(ctx))
				}
			}
		}
		retry = nil
		if err := t.flush(ctx); err != nil {
			t.log.WarnContext(ctx, "zone sessions and insights could not be stored and will be again", "err", err)
			retry = time.After(retryStore)
		}
		last = time.Now()
	}
}

// hold waits, unless something urgent happens, or what failed is due again.
func (t *Table) hold(ctx context.Context, wait time.Duration, retry <-chan time.Time) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			return nil
		case <-retry:
			return nil
		case <-t.wake:
			if t.takeUrgent() {
				return nil
			}
		}
	}
}

func (t *Table) takeUrgent() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	urgent := t.urgent
	t.urgent = false
	return urgent
}

// follow takes note of what happens to zones and their sessions in the store, whoever does it.
func (t *Table) follow(ctx context.Context) {
	for {
		snap := t.store.Snapshot()
		t.reviewAll(snap)
		for changes, err := range t.store.Watch(ctx, snap.Revision(), string(resource.ZoneType), HolderType) {
			if errors.Is(err, store.ErrCompacted) {
				break // the state was replaced: all is looked at once more
			}
			if err != nil {
				return
			}
			for _, c := range changes.List {
				t.changed(c, changes.Snapshot)
			}
		}
	}
}

func (t *Table) changed(c store.Change, snap *store.Snapshot) {
	if c.Key.Type == HolderType {
		if h, ok := HolderOf(snap, c.Key.Name); ok && h.Live() {
			t.meet(h.Instance)
		}
		t.mu.Lock()
		defer t.mu.Unlock()
		if z := t.zones[c.Key.Name]; z != nil {
			t.reviewLocked(z, snap)
		}
		return
	}
	before := c.Revision
	if c.Record != nil {
		before = c.Record.CreateRevision - 1
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.forgetLocked(c.Key.Name, before)
}

// reviewAll looks at everything there is here as if it had changed.
func (t *Table) reviewAll(snap *store.Snapshot) {
	if t.cfg.Replicas != nil {
		t.meetAll(snap)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, name := range slices.Collect(maps.Keys(t.zones)) {
		before := snap.Revision()
		if rec, ok := snap.Get(zoneKey(name)); ok {
			before = rec.CreateRevision - 1
		}
		t.forgetLocked(name, before)
		if z := t.zones[name]; z != nil {
			t.reviewLocked(z, snap)
		}
	}
}

// forgetLocked ends the session of a zone whose Zone was deleted, and may have been made again since: before is the revision up to
// which sessions belong to the deleted one. It may come back, as a new zone.
func (t *Table) forgetLocked(name string, before store.Revision) {
	z := t.zones[name]
	if z == nil {
		return
	}
	if z.session == nil {
		if _, ok := t.store.Snapshot().Get(zoneKey(name)); ok {
			return
		}
	} else if z.session.hello.Created > before {
		return // of the Zone that is there now
	}
	t.retireLocked(z, ErrZoneDeleted)
	delete(t.zones, name)
	delete(t.dirty, name)
	t.connected.DeleteLabelValues(name)
	t.swaps.DeleteLabelValues(name)
}

func zoneKey(name string) store.Key { return store.Key{Type: string(resource.ZoneType), Name: name} }

// draft is what this replica has to say of a zone, as of one moment.
type draft struct {
	zone    *zone
	session *session // live, or over; nil: neither
	holder  Holder   // of session
	subs    []*systemv1.KDSSubscription
	open    string // id of the one of them that is open
	opened  *systemv1.KDSStreams
	checked *timestamppb.Timestamp
}

func (t *Table) draftLocked(z *zone) draft {
	d := draft{zone: z, session: z.over, opened: proto.CloneOf(&z.opened), checked: z.checked}
	for _, sub := range z.subs {
		d.subs = append(d.subs, proto.CloneOf(sub))
	}
	if s := z.session; s != nil {
		d.session = s
		if stream := s.streams[GlobalToZone]; stream != nil {
			d.open = stream.sub.GetId()
		}
	}
	if d.session != nil {
		d.holder = t.holderOf(d.session)
	}
	return d
}

// plan is what a draft comes to on a snapshot.
type plan struct {
	draft
	zoneRec, heldRec, insightRec *store.Record // that it was made from

	ops     []store.Op
	right   right  // of the draft's session
	held    Holder // the session that is in the way of the draft's, or that it replaces
	number  uint64 // of the draft's session once the ops are stored; 0: they do not say
	turned  bool   // the zone is lost, or no longer
	written Holder
}

// plan makes the ops for a zone on head. An insight without its Zone is not stored: it goes with it.
func (t *Table) plan(head *store.Snapshot, d draft) (*plan, error) {
	name := d.zone.name
	p := &plan{draft: d}
	p.zoneRec, p.heldRec, p.insightRec = basis(head, name)
	if p.zoneRec == nil {
		return p, nil
	}
	if d.session != nil {
		if d.session.hello.Created != p.zoneRec.CreateRevision {
			return p, nil // of a Zone that was deleted: it is about to be forgotten
		}
		held, known := Holder{}, false
		if p.heldRec != nil {
			held, known = readHolder(p.heldRec)
		}
		if end := t.planSession(p, held, known); end {
			return p, nil
		}
	}
	if p.number != 0 {
		p.written.Number = p.number
		op, err := putHolder(name, p.written)
		if err != nil {
			return nil, err
		}
		p.ops = append(p.ops, op)
	}
	op, err := putInsight(head, name, t.insightOf(head, d, p.number != 0))
	if err != nil {
		return nil, err
	}
	p.ops = append(p.ops, op)
	return p, nil
}

// planSession decides what becomes of the draft's session. end says that it ends here before anything else is written.
func (t *Table) planSession(p *plan, held Holder, known bool) (end bool) {
	t.mu.Lock()
	p.right = t.rightLocked(p.session, held, known)
	t.mu.Unlock()
	over := !p.holder.Live()
	p.held = held
	switch {
	case p.right == own:
		p.number = held.Number
	case p.right == free && (!over || !known || !held.Live() || held.Instance == t.cfg.InstanceID):
		p.number = held.Number + 1
	default: // one that is over, or has no right to the zone, leaves the record to whom it names
		return !over
	}
	p.written, p.turned = p.holder, held.Lost != p.holder.Lost
	return false
}

// basis is what a plan depends on.
func basis(head *store.Snapshot, name string) (zone, holder, insight *store.Record) {
	zone, _ = head.Get(zoneKey(name))
	holder, _ = head.Get(holderKey(name))
	insight, _ = head.Get(insightKey(name))
	return zone, holder, insight
}

// on returns p, or where head is not what it was made from, another.
func (t *Table) on(head *store.Snapshot, p *plan) (*plan, error) {
	if zone, holder, insight := basis(head, p.zone.name); zone == p.zoneRec && holder == p.heldRec && insight == p.insightRec {
		return p, nil
	}
	return t.plan(head, p.draft)
}

// flush stores what is new of every dirty zone in one batch: who has its session, and its insight. Both are made before the committer is
// asked, and there only where they have been changed meanwhile.
func (t *Table) flush(ctx context.Context) error {
	t.mu.Lock()
	drafts := make([]draft, 0, len(t.dirty))
	for name := range t.dirty {
		drafts = append(drafts, t.draftLocked(t.zones[name]))
	}
	clear(t.dirty)
	t.mu.Unlock()
	if len(drafts) == 0 {
		return nil
	}
	made := make([]*plan, len(drafts))
	snap := t.store.Snapshot()
	for i, d := range drafts {
		var err error
		if made[i], err = t.plan(snap, d); err != nil {
			return err
		}
	}
	plans := make([]*plan, len(made)) // as stored
	_, err := t.store.Update(ctx, func(head *store.Snapshot) ([]store.Op, error) {
		var ops []store.Op
		turned := false
		changed := make(map[string]Holder)
		for i, p := range made {
			p, err := t.on(head, p)
			if err != nil {
				return nil, err
			}
			plans[i] = p
			ops = append(ops, p.ops...)
			if p.number != 0 {
				changed[p.zone.name] = p.written
				turned = turned || p.turned
			}
		}
		if turned {
			ops = append(ops, t.withdrawals(head, changed)...)
		}
		t.numbered(plans)
		return ops, nil
	})
	t.mu.Lock()
	defer t.mu.Unlock()
	if err != nil {
		for _, d := range drafts {
			if t.zones[d.zone.name] == d.zone {
				t.dirty[d.zone.name] = struct{}{}
			}
		}
		return err
	}
	for _, p := range plans {
		t.storedLocked(p)
	}
	return nil
}

// numbered notes the numbers under which sessions are claimed, before anybody can see that they are.
func (t *Table) numbered(plans []*plan) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range plans {
		if p.number != 0 {
			p.session.number = p.number
		}
	}
}

// storedLocked draws the consequences of a plan that was stored.
func (t *Table) storedLocked(p *plan) {
	z := p.zone
	if z.over == p.session && !p.holder.Live() { // it may have ended since the draft
		z.over = nil
	}
	if z.session == p.session && z.session != nil {
		switch {
		case p.right == replaced:
			t.replacedLocked(z, p.held)
		case p.right == taken:
			t.takenAwayLocked(z, p.held)
		case p.right == free && p.held.Live() && p.held.Instance != t.cfg.InstanceID && p.held.Instance != "":
			t.log.Info("zone was connected to another replica", "zone", z.name, "replica", p.held.Instance, "older_address", p.held.Address)
		}
	}
	if len(p.ops) == 0 {
		return
	}
	for _, sub := range p.subs {
		if sub.GetDisconnectTime() != nil {
			z.subs = without(z.subs, sub.GetId())
		}
	}
}
