package zones

import (
	"context"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// closeAgain is how long what a replica asserts that is taken for dead here is left alone. Either it is alive, or it has died
// since and nobody can tell: between the two stands showing a zone as online that is not.
const closeAgain = 30 * time.Second

// closeGone closes what replicas that are gone left open, until ctx ends. Every replica does, and the first to commit it leaves
// nothing to the others.
func (t *Table) closeGone(ctx context.Context) {
	closed := make(map[string]time.Time) // when, by replica, while it is gone
	for {
		changed := t.cfg.Replicas.Changed() // taken before it is asked: nothing is missed
		var due []string
		var again <-chan time.Time
		for _, instance := range t.goneOthers(closed) {
			if wait := time.Until(closed[instance].Add(closeAgain)); wait > 0 {
				again = time.After(wait)
				continue
			}
			due = append(due, instance)
		}
		if len(due) > 0 {
			t.log.InfoContext(ctx, "replicas are gone: what they left open is closed", "replicas", due)
			t.setOthers(due, false) // before: one that asserts a session afterwards is met anew
			err := t.closeOf(ctx, func(instance string) bool { return slices.Contains(due, instance) })
			if err != nil {
				t.log.WarnContext(ctx, "what replicas that are gone left open could not be closed and will be", "replicas", due, "err", err)
				t.setOthers(due, true)
				again = time.After(retryStore)
			} else {
				for _, instance := range due {
					closed[instance] = time.Now()
				}
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-t.met:
		case <-again:
		}
	}
}

// meet notes that a replica may hold something open.
func (t *Table) meet(instances ...string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, instance := range instances {
		if _, known := t.others[instance]; known || instance == t.cfg.InstanceID {
			continue
		}
		t.others[instance] = struct{}{}
		select {
		case t.met <- struct{}{}:
		default: // already awake
		}
	}
}

// meetAll notes every replica that has something open in a snapshot.
func (t *Table) meetAll(snap *store.Snapshot) {
	for rec := range snap.List(HolderType, "") {
		if h, ok := readHolder(rec); ok && h.Live() {
			t.meet(h.Instance)
		}
	}
	for rec := range snap.List(string(resource.ZoneInsight), "") {
		for _, s := range t.readInsight(rec).GetSubscriptions() {
			if s.GetDisconnectTime() == nil {
				t.meet(s.GetGlobalInstanceId())
			}
		}
	}
}

// goneOthers returns those of the others that are gone, and forgets of the rest that anything was closed for them.
func (t *Table) goneOthers(closed map[string]time.Time) []string {
	t.mu.Lock()
	others := slices.Sorted(maps.Keys(t.others))
	t.mu.Unlock()
	maps.DeleteFunc(closed, func(instance string, _ time.Time) bool { return !t.cfg.Replicas.Gone(instance) })
	return slices.DeleteFunc(others, func(instance string) bool { return !t.cfg.Replicas.Gone(instance) })
}

// setOthers says whether these replicas may hold something open.
func (t *Table) setOthers(instances []string, may bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, instance := range instances {
		if may {
			t.others[instance] = struct{}{}
		} else {
			delete(t.others, instance)
		}
	}
}

// closeOf ends the sessions of dead replicas and closes their subscriptions. A zone is not lost with the replica it was connected to.
func (t *Table) closeOf(ctx context.Context, dead func(instance string) bool) error {
	_, err := t.store.Update(ctx, func(head *store.Snapshot) ([]store.Op, error) {
		now := time.Now()
		var ops []store.Op
		for rec := range head.List(HolderType, "") {
			h, ok := readHolder(rec)
			if !ok || !h.Live() || !dead(h.Instance) {
				continue
			}
			h.Ended = now
			op, err := putHolder(rec.Key.Name, h)
			if err != nil {
				return nil, err
			}
			ops = append(ops, op)
		}
		for rec := range head.List(string(resource.ZoneInsight), "") {
			insight := t.readInsight(rec)
			closed := closeOpen(insight, timestamppb.New(now), func(s *systemv1.KDSSubscription) bool { return dead(s.GetGlobalInstanceId()) })
			if !closed {
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
