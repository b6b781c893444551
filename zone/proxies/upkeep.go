package proxies

import (
	"context"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

const (
	cleanupInterval = time.Minute
	// retryInterval is how long to wait after a removal that did not succeed.
	retryInterval = time.Second
	// slots is into how many groups proxies are divided, so that the signs of life of all are not stored at once.
	slots = 30
)

// departure is a proxy that is to be deregistered at a time, unless it is back by then.
type departure struct {
	proxy *proxy
	at    time.Time // that of the proxy's leaveAt, or this one was called off
}

// departLocked has the proxy's resource removed after the delay.
func (r *Registry) departLocked(p *proxy) {
	r.departAtLocked(p, time.Now().Add(r.cfg.DeregistrationDelay))
}

func (r *Registry) departAtLocked(p *proxy, at time.Time) {
	p.leaveAt = at
	i, _ := slices.BinarySearchFunc(r.leaving, at, func(d departure, at time.Time) int { return d.at.Compare(at) })
	r.leaving = slices.Insert(r.leaving, i, departure{p, at})
	select {
	case r.left <- struct{}{}:
	default:
	}
}

// upkeep does what time brings about.
func (r *Registry) upkeep(ctx context.Context) error {
	cleanup := time.NewTicker(cleanupInterval)
	defer cleanup.Stop()
	finalize := time.NewTicker(r.cfg.IdleTimeout)
	defer finalize.Stop()
	life := time.NewTicker(max(r.cfg.IdleTimeout/2/slots, time.Millisecond))
	defer life.Stop()
	departures := time.NewTimer(0)
	defer departures.Stop()
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
		case <-r.left:
			departures.Reset(r.untilDeparture())
		case <-departures.C:
			r.deregister(ctx)
			departures.Reset(r.untilDeparture())
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

const never = 1000 * time.Hour

func (r *Registry) untilDeparture() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.leaving) == 0 {
		return never
	}
	return time.Until(r.leaving[0].at)
}

// deregister removes the resources of proxies whose time has come.
func (r *Registry) deregister(ctx context.Context) {
	for _, p := range r.due(time.Now()) {
		removed, err := r.remove(ctx, p)
		r.mu.Lock()
		switch {
		case err != nil && ctx.Err() == nil, p.opening > 0 && !p.leaveAt.IsZero():
			// Called off only when the stream that is being opened is admitted.
			r.departAtLocked(p, time.Now().Add(retryInterval))
		default:
			p.leaveAt = time.Time{}
			r.forgetLocked(p)
		}
		r.mu.Unlock()
		switch {
		case err != nil:
			r.log.WarnContext(ctx, "a proxy that is gone could not be deregistered", "type", p.key.Type, "mesh", p.key.Mesh, "name", p.key.Name, "err", err)
		case removed:
			r.metrics.deregistered.WithLabelValues("left").Inc()
			r.log.InfoContext(ctx, "proxy deregistered", "type", p.key.Type, "mesh", p.key.Mesh, "name", p.key.Name)
		}
	}
}

// due takes those whose time has come out of the queue.
func (r *Registry) due(now time.Time) []*proxy {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []*proxy
	waiting := r.leaving[:0]
	for _, d := range r.leaving {
		switch {
		case !d.proxy.leaveAt.Equal(d.at): // called off
		case d.at.After(now):
			waiting = append(waiting, d)
		default:
			list = append(list, d.proxy)
		}
	}
	clear(r.leaving[len(waiting):])
	r.leaving = waiting
	return list
}

// remove deletes the resource of a proxy that is gone, with its insight. It does nothing when the proxy is back, here or, as
// the stored insight says, at another control plane.
func (r *Registry) remove(ctx context.Context, p *proxy) (removed bool, err error) {
	_, err = r.store.Update(ctx, func(head *store.Snapshot) ([]store.Op, error) {
		removed = false
		r.mu.Lock()
		present := p.opening > 0 || len(p.streams) > 0 || p.leaveAt.IsZero()
		last := p.insight.newest().GetId()
		r.mu.Unlock()
		rec, ok := head.Get(p.key)
		if present || !ok || rec.Origin != "" {
			return nil, nil
		}
		ops := []store.Op{store.Delete(p.key)}
		if stored, ok := head.Get(p.insKey); ok && stored.Origin == "" {
			i, err := decodeInsight(p.kind, stored.Spec)
			if err == nil && i.newest() != nil && i.newest().GetId() != last && i.newest().GetControlPlaneInstanceId() != r.instance {
				return nil, nil
			}
			ops = append(ops, store.Delete(p.insKey))
		}
		removed = true
		return ops, nil
	})
	if err != nil {
		return false, fmt.Errorf("deregister %s: %w", p.key, err)
	}
	return removed, nil
}

// closeLeftOvers closes the subscriptions that an earlier process left open, and resumes the removals it had announced.
func (r *Registry) closeLeftOvers(ctx context.Context) error {
	now := time.Now().UTC()
	snap := r.store.Snapshot()
	for kind := range kinds {
		for rec := range snap.List(string(kinds[kind].insight), "") {
			r.resume(Kind(kind), rec)
		}
	}
	_, err := r.store.Update(ctx, func(head *store.Snapshot) ([]store.Op, error) {
		return editInsights(head, now, func(_ store.Key, i *insight) bool { return i.closeAll(timestamppb.New(now)) })
	})
	if err != nil {
		return fmt.Errorf("close the subscriptions of an earlier process: %w", err)
	}
	return nil
}

// resume has a proxy removed that was about to be when the earlier process ended. It has the whole delay to come back.
func (r *Registry) resume(kind Kind, rec *store.Record) {
	i, err := decodeInsight(kind, rec.Spec)
	if err != nil || rec.Origin != "" || !i.newest().GetDeregistering() {
		return
	}
	n := &node{kind: kind, mesh: rec.Key.Mesh, name: rec.Key.Name}
	p := &proxy{id: n.id(), key: n.key(), insKey: rec.Key, kind: kind, insight: i, selfRegistered: true}
	r.proxies[p.id] = p
	r.departLocked(p) // nobody else has r yet
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
			if err != nil || rec.Origin != "" || !connected(i) {
				continue
			}
			g := generation{i.newest().GetId(), i.newest().GetGeneration()}
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
			return ok && i.newest().GetId() == id && i.newest().GetGeneration() == found[key].n && i.closeAll(timestamppb.New(now))
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
	return p != nil && len(p.streams) > 0 && p.streams[len(p.streams)-1].subscriptionID == id
}

func connected(i *insight) bool {
	for _, s := range i.subscriptions {
		if s.GetConnectTime() != nil && s.GetDisconnectTime() == nil {
			return true
		}
	}
	return false
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
	var i meshv1.DataplaneInsight
	if rec.Origin != "" || proto.Unmarshal(rec.Spec, &i) != nil || len(i.GetSubscriptions()) == 0 {
		return false
	}
	var last time.Time
	for _, s := range i.GetSubscriptions() {
		if s.GetDisconnectTime() == nil {
			return false
		}
		if at := s.GetDisconnectTime().AsTime(); at.After(last) {
			last = at
		}
	}
	return last.Before(before)
}
