package zones

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/version"
	"github.com/meridian-mesh/meridian/sync/kds"
)

// Publishing tells the table which publisher serves a GlobalToZone stream.
func (s *Stream) Publishing(p Publisher) {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	s.publisher = p
	if z := s.table.zones[s.zone]; z != nil {
		z.last = p
	}
	s.table.lookAgainLocked()
}

// Subscribed fills the subscription from the zone's first request.
func (s *Stream) Subscribed(n kds.Node) {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	s.sub.ZoneInstanceId = n.InstanceID
	s.sub.Config = n.Config
	s.sub.Version = &systemv1.Version{KumaCp: &systemv1.KumaCpVersion{
		Version: n.Version.Version, GitTag: n.Version.GitTag, GitCommit: n.Version.GitCommit, BuildDate: n.Version.BuildDate,
		KumaCpGlobalCompatible: compatible(version.KDS, n.Version.Version),
	}}
	s.table.markLocked(s.zone, true)
}

// Sent counts a response.
func (s *Stream) Sent(t resource.Type) {
	s.count(t, func(c *systemv1.KDSServiceStats) { c.ResponsesSent++ })
}

// Acked counts an acknowledgement.
func (s *Stream) Acked(t resource.Type) {
	s.count(t, func(c *systemv1.KDSServiceStats) { c.ResponsesAcknowledged++ })
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	if z := s.table.zones[s.zone]; z != nil {
		z.lastAck = time.Now()
	}
}

// Rejected counts a rejection.
func (s *Stream) Rejected(t resource.Type, _ string) {
	s.count(t, func(c *systemv1.KDSServiceStats) { c.ResponsesRejected++ })
}

func (s *Stream) count(t resource.Type, add func(*systemv1.KDSServiceStats)) {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	st := s.sub.GetStatus()
	st.LastUpdateTime = timestamppb.Now()
	add(st.GetTotal())
	if _, known := resource.Lookup(t); known { // a peer may ask for anything; the map stays bounded
		c := st.Stat[string(t)]
		if c == nil {
			c = &systemv1.KDSServiceStats{}
			st.Stat[string(t)] = c
		}
		add(c)
	}
	s.table.markLocked(s.zone, false)
}

// Run stores the insights that changed and ends the sessions of deleted zones, until ctx ends; then it stores once
// more what Shutdown has changed.
func (t *Table) Run(ctx context.Context) error {
	deleted, stop := t.watchZones(ctx)
	defer stop()
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return t.flush(context.WithoutCancel(ctx))
		case gone := <-deleted:
			t.forget(gone)
			continue
		case <-t.wake:
		}
		t.mu.Lock()
		urgent := t.urgent
		t.urgent = false
		t.mu.Unlock()
		if wait := time.Until(last.Add(t.cfg.InsightInterval)); wait > 0 && !urgent {
			if err := t.hold(ctx, wait, deleted); err != nil {
				return t.flush(context.WithoutCancel(ctx))
			}
		}
		if err := t.flush(ctx); err != nil {
			t.log.WarnContext(ctx, "zone insights could not be stored and will be again", "err", err)
		}
		last = time.Now()
	}
}

// hold waits, unless something urgent happens.
func (t *Table) hold(ctx context.Context, wait time.Duration, deleted <-chan deletion) error {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
			return nil
		case gone := <-deleted:
			t.forget(gone)
		case <-t.wake:
			t.mu.Lock()
			urgent := t.urgent
			t.urgent = false
			t.mu.Unlock()
			if urgent {
				return nil
			}
		}
	}
}

// deletion is a Zone that was deleted, and perhaps made again since.
type deletion struct {
	zone string
	// before is the revision up to which sessions belong to the deleted Zone.
	before store.Revision
}

// watchZones reports deleted zones until stop.
func (t *Table) watchZones(ctx context.Context) (deleted <-chan deletion, stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	found, done := make(chan deletion), make(chan struct{})
	from := t.store.Snapshot().Revision()
	go func() {
		defer close(done)
		for changes, err := range t.store.Watch(ctx, from, string(resource.ZoneType)) {
			if err != nil {
				return
			}
			for _, c := range changes.List {
				d := deletion{c.Key.Name, c.Revision}
				if c.Record != nil {
					d.before = c.Record.CreateRevision - 1
				}
				select {
				case found <- d:
				case <-ctx.Done():
					return
				}
			}
		}
	}()
	return found, func() { cancel(); <-done }
}

// forget ends the session of a zone that was deleted. It may come back, as a new zone.
func (t *Table) forget(d deletion) {
	t.mu.Lock()
	defer t.mu.Unlock()
	z := t.zones[d.zone]
	if z == nil {
		return
	}
	if z.session == nil {
		if _, ok := t.store.Snapshot().Get(store.Key{Type: string(resource.ZoneType), Name: d.zone}); ok {
			return
		}
	} else if z.session.hello.Created > d.before {
		return // of the Zone that is there now
	}
	t.retireLocked(z, ErrZoneDeleted)
	delete(t.zones, d.zone)
	delete(t.dirty, d.zone)
	t.connected.DeleteLabelValues(d.zone)
	t.swaps.DeleteLabelValues(d.zone)
}

// flush stores every dirty insight in one batch. An insight without its Zone is not stored: it goes with it.
func (t *Table) flush(ctx context.Context) error {
	t.mu.Lock()
	insights := make(map[string]*systemv1.ZoneInsight, len(t.dirty))
	for name := range t.dirty {
		insights[name] = proto.CloneOf(t.zones[name].insight)
	}
	clear(t.dirty)
	recount := t.recount
	t.recount = false
	lost := t.withdrawnLocked()
	t.mu.Unlock()
	if len(insights) == 0 && !recount {
		return nil
	}
	_, err := t.store.Update(ctx, func(head *store.Snapshot) ([]store.Op, error) {
		var ops []store.Op
		for name, insight := range insights {
			if _, ok := head.Get(store.Key{Type: string(resource.ZoneType), Name: name}); !ok {
				continue
			}
			op, err := putInsight(head, name, insight)
			if err != nil {
				return nil, err
			}
			ops = append(ops, op)
		}
		if recount {
			ops = append(ops, withdrawals(head, lost)...)
		}
		return ops, nil
	})
	if err != nil {
		t.mu.Lock()
		t.recount = t.recount || recount
		for name := range insights {
			if _, ok := t.zones[name]; ok {
				t.dirty[name] = struct{}{}
			}
		}
		t.mu.Unlock()
	}
	return err
}

// withdrawnLocked returns the zones whose resources are kept from the others: those that are lost. While more zones are
// lost than are connected, the more likely explanation is that this plane is the one cut off, and none is.
func (t *Table) withdrawnLocked() map[string]bool {
	lost, connected := make(map[string]bool), 0
	for name, z := range t.zones {
		switch {
		case z.session != nil:
			connected++
		case z.lost && t.cfg.WithdrawLost:
			lost[name] = true
		}
	}
	if len(lost) > connected {
		return nil
	}
	return lost
}

// withdrawals are the changes that make the stored lost zones those given.
func withdrawals(head *store.Snapshot, lost map[string]bool) []store.Op {
	var ops []store.Op
	for rec := range head.List(kds.LostZoneKey("").Type, "") {
		if !lost[rec.Key.Name] {
			ops = append(ops, store.Delete(rec.Key))
		}
	}
	for name := range lost {
		if _, ok := head.Get(kds.LostZoneKey(name)); !ok {
			ops = append(ops, store.Put(&store.Record{Key: kds.LostZoneKey(name)}))
		}
	}
	return ops
}

func putInsight(head *store.Snapshot, name string, insight *systemv1.ZoneInsight) (store.Op, error) {
	spec, err := proto.MarshalOptions{Deterministic: true}.Marshal(insight)
	if err != nil {
		return store.Op{}, fmt.Errorf("encode the insight of zone %q: %w", name, err)
	}
	now := time.Now().UTC()
	rec := &store.Record{
		Key: store.Key{Type: string(resource.ZoneInsight), Name: name}, Spec: spec, Created: now, Modified: now,
	}
	if old, ok := head.Get(rec.Key); ok {
		rec.Created, rec.Labels = old.Created, old.Labels
	}
	return store.Put(rec), nil
}

// compatible reports whether a zone of version theirs may work with a global of version ours: the same major and
// minors at most two apart. What cannot be parsed is given the benefit of the doubt (insights.md §2).
func compatible(ours, theirs string) bool {
	major, minor, ok := version.MajorMinor(ours)
	theirMajor, theirMinor, known := version.MajorMinor(theirs)
	if !ok || !known {
		return true
	}
	return major == theirMajor && max(minor, theirMinor)-min(minor, theirMinor) <= 2
}
