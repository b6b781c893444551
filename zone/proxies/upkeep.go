package proxies

import (
	"context"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

const (
	cleanupInterval = time.Minute
	// slots is into how many groups proxies are divided, so that the signs of life of all are not stored at once.
	slots = 30
)

// upkeep does what time brings about.
func (r *Registry) upkeep(ctx context.Context) error {
	cleanup := time.NewTicker(cleanupInterval)
	defer cleanup.Stop()
	finalize := time.NewTicker(r.cfg.IdleTimeout)
	defer finalize.Stop()
	life := time.NewTicker(max(r.cfg.IdleTimeout/2/slots, time.Millisecond))
	defer life.Stop()
	generations := make(map[store.Key]generation)
	slot := uint32(0)
	warn := func(what string, err error) {
		if err != nil && ctx.Err() == nil {
			r.log.WarnContext(ctx, "upkeep of proxies failed and will be tried again", "what", what, "err", err)
		}
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-cleanup.C:
			warn("removal of dataplanes that are long offline", r.removeOffline(ctx))
		case <-finalize.C:
			warn("closing of subscriptions that nobody keeps", r.finalize(ctx, generations))
		case <-life.C:
			slot = (slot + 1) % slots
			r.signOfLife(slot)
		}
	}
}

// editInsights makes the ops that store the insights of this plane that edit changes. What cannot be read is left alone: it
// is replaced when its proxy connects.
func editInsights(head *store.Snapshot, now time.Time, edit func(store.Key, *insight) bool) ([]store.Op, error) {
	var ops []store.Op
	for kind := range kinds {
		for rec := range head.List(string(kinds[kind].insight), "") {
			if rec.Origin != "" {
				continue
			}
			i, err := decodeInsight(Kind(kind), rec.Spec)
			if err != nil || !edit(rec.Key, i) {
				continue
			}
			spec, err := i.encode(Kind(kind))
			if err != nil {
				return nil, fmt.Errorf("%s: %w", rec.Key, err)
			}
			ops = append(ops, store.Put(&store.Record{Key: rec.Key, Spec: spec, Labels: rec.Labels, Created: rec.Created, Modified: now}))
		}
	}
	return ops, nil
}

// generation is how far a subscription had come when it was looked at.
type generation struct {
	id string
	n  uint32
}

// finalize closes subscriptions that are open but have shown no sign of life since the last time: the process that served
// them has died. seen is what was found then.
func (r *Registry) finalize(ctx context.Context, seen map[store.Key]generation) error {
	now := time.Now().UTC()
	found := make(map[store.Key]generation)
	var stale map[store.Key]string
	for kind := range kinds {
		for rec := range r.store.Snapshot().List(string(kinds[kind].insight), "") {
			i, err := decodeInsight(Kind(kind), rec.Spec)
			if err != nil || rec.Origin != "" || i.open() == nil {
				continue
			}
			g := generation{i.open().GetId(), i.open().GetGeneration()}
			if before, ok := seen[rec.Key]; ok && before == g && !r.serves(Kind(kind), rec.Key, g.id) {
				if stale == nil {
					stale = make(map[store.Key]string)
				}
				stale[rec.Key] = g.id
			}
			found[rec.Key] = g
		}
	}
	clear(seen)
	maps.Copy(seen, found)
	if len(stale) == 0 {
		return nil
	}
	_, err := r.store.Update(ctx, func(head *store.Snapshot) ([]store.Op, error) {
		return editInsights(head, now, func(key store.Key, i *insight) bool {
			id, ok := stale[key]
			return ok && i.abandon(timestamppb.New(now), func(s *meshv1.DiscoverySubscription) bool {
				return s.GetId() == id && s.GetGeneration() == found[key].n
			})
		})
	})
	if err != nil {
		return fmt.Errorf("close %d subscriptions: %w", len(stale), err)
	}
	r.log.WarnContext(ctx, "subscriptions of proxies were closed that no control plane keeps alive", "count", len(stale))
	return nil
}

// serves reports whether a subscription is that of a stream of this process, however long it could not be stored.
func (r *Registry) serves(kind Kind, key store.Key, id string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.proxies[NodeID(kind, key.Mesh, key.Name)]
	return p != nil && slices.ContainsFunc(p.streams, func(s *Session) bool { return s.subscriptionID == id })
}

// signOfLife raises the generation of the proxies in a slot.
func (r *Registry) signOfLife(slot uint32) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.proxies {
		if len(p.streams) == 0 || slotOf(p.id) != slot {
			continue
		}
		p.streams[len(p.streams)-1].sub.Generation++
		r.markLocked(p, false)
	}
}

func slotOf(nodeID string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(nodeID))
	return h.Sum32() % slots
}

// removeOffline removes the dataplanes of this zone that have been offline for too long.
func (r *Registry) removeOffline(ctx context.Context) error {
	before := time.Now().Add(-r.cfg.CleanupAge)
	if !anyOffline(r.store.Snapshot(), before) {
		return nil
	}
	removed := 0
	_, err := r.store.Update(ctx, func(head *store.Snapshot) ([]store.Op, error) {
		var ops []store.Op
		removed = 0
		for rec := range head.List(string(resource.DataplaneInsight), "") {
			if !offlineSince(rec, before) || r.present(NodeID(Sidecar, rec.Key.Mesh, rec.Key.Name)) {
				continue
			}
			ops = append(ops, store.Delete(rec.Key))
			owner := store.Key{Type: string(resource.Dataplane), Mesh: rec.Key.Mesh, Name: rec.Key.Name}
			if dp, ok := head.Get(owner); ok && dp.Origin == "" {
				ops = append(ops, store.Delete(owner))
				removed++
			}
		}
		return ops, nil
	})
	if err != nil {
		return fmt.Errorf("remove dataplanes: %w", err)
	}
	r.metrics.deregistered.WithLabelValues("offline").Add(float64(removed))
	r.log.InfoContext(ctx, "dataplanes that were offline for long are removed", "count", removed, "longer_than", r.cfg.CleanupAge)
	return nil
}

// present reports whether a proxy is here, or about to be.
func (r *Registry) present(nodeID string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.proxies[nodeID]
	return p != nil && (p.opening > 0 || len(p.streams) > 0)
}

func anyOffline(snap *store.Snapshot, before time.Time) bool {
	for rec := range snap.List(string(resource.DataplaneInsight), "") {
		if offlineSince(rec, before) {
			return true
		}
	}
	return false
}

// offlineSince reports whether an insight of this plane says that its proxy was disconnected before a time, and is not back.
func offlineSince(rec *store.Record, before time.Time) bool {
	if rec.Origin != "" {
		return false
	}
	i, err := decodeInsight(Sidecar, rec.Spec)
	return err == nil && i.offlineSince(before)
}
