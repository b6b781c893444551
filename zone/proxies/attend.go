package proxies

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/common/store"
)

const (
	// retryInterval is how long to wait after something that did not succeed.
	retryInterval = time.Second
	// maxRemovals is how many resources are removed in one batch.
	maxRemovals = 500
	// maxDead bounds how many processes are remembered that are gone and have left nothing any more.
	maxDead = 1000
)

// attendance follows the insights of the proxies, whoever writes them, and does what is to be done about them:
//
//   - Who announced that a proxy will be deregistered does that when the delay is over. What is announced is in the insight alone, so
//     that it is called off by whatever opens a subscription, in any process, and taken over when its process is gone.
//   - What a process that is gone has left open is closed. Every survivor may do that; the second finds nothing to do. It is done
//     once for each death: a process that was taken for dead opens its own again, and is then left alone.
//   - A stream of this process whose subscription others closed is told again, when no other is open.
type attendance struct {
	r *Registry

	from store.Revision // what was taken in
	// holders are the other processes that have something open, or announced: in which insights; and holder is whose an insight is.
	holders map[string]map[store.Key]struct{}
	holder  map[store.Key]string
	// dead are those that were gone when they were last asked for; what they left open has been closed.
	dead map[string]bool
	// leaving are the proxies to be deregistered, in the order of their times; those that left has otherwise were called off.
	leaving []departure
	left    map[store.Key]departure
}

// departure is a proxy that is to be deregistered at a time.
type departure struct {
	insight store.Key
	id      string // of the newest subscription: when that is another, the proxy was back meanwhile
	at      time.Time
}

// attend does what has to be done about insights, until ctx ends.
func (r *Registry) attend(ctx context.Context) error {
	a := &attendance{
		r: r, holders: make(map[string]map[store.Key]struct{}), holder: make(map[store.Key]string), dead: make(map[string]bool),
		left: make(map[store.Key]departure),
	}
	a.load(r.store.Snapshot())
	departures, retry := time.NewTimer(0), time.NewTimer(0)
	defer departures.Stop()
	defer retry.Stop()
	var bells [len(kinds)]<-chan struct{}
	for {
		var members <-chan struct{}
		if r.members != nil {
			members = r.members.Changed()
		}
		for kind := range kinds {
			bells[kind] = r.store.Changed(string(kinds[kind].insight))
		}
		a.catchUp(r.store.Snapshot())
		if err := a.bury(ctx); err != nil && ctx.Err() == nil {
			r.log.WarnContext(ctx, "the subscriptions of a process that is gone could not be closed and will be again", "err", err)
			retry.Reset(retryInterval)
		}
		if len(a.leaving) > 0 {
			departures.Reset(time.Until(a.leaving[0].at))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-members:
		case <-bells[Sidecar]:
		case <-bells[Ingress]:
		case <-bells[Egress]:
		case <-retry.C:
		case <-departures.C:
			a.deregister(ctx)
		}
	}
}

// load takes in a whole state.
func (a *attendance) load(snap *store.Snapshot) {
	known := maps.Clone(a.left)
	for key := range a.holder {
		known[key] = departure{}
	}
	for kind := range kinds {
		for rec := range snap.List(string(kinds[kind].insight), "") {
			a.look(rec.Key, rec)
			delete(known, rec.Key)
		}
	}
	for key := range known {
		a.look(key, nil)
	}
	a.from = snap.Revision()
}

// catchUp takes in what changed.
func (a *attendance) catchUp(snap *store.Snapshot) {
	for kind := range kinds {
		changes, err := snap.Changes(string(kinds[kind].insight), a.from)
		if errors.Is(err, store.ErrCompacted) {
			a.load(snap)
			return
		}
		for c := range changes {
			a.look(c.Key, c.Record)
		}
	}
	a.from = snap.Revision()
}

// look takes in an insight; nil: there is none.
func (a *attendance) look(key store.Key, rec *store.Record) {
	i := &insight{}
	if rec != nil {
		if rec.Origin != "" {
			return
		}
		var err error
		if i, err = decodeInsight(kindOfInsight(key.Type), rec.Spec); err != nil {
			i = &insight{} // it starts over when its proxy connects
		}
	}
	who, leaving := "", i.leaving()
	switch open := i.open(); {
	case open != nil:
		who = open.GetControlPlaneInstanceId()
	case leaving:
		who = i.newest().GetControlPlaneInstanceId()
	}
	a.hold(key, who)
	if leaving && (who == a.r.instance || a.dead[who]) {
		a.depart(key, i.newest().GetId())
	} else {
		delete(a.left, key)
	}
	if i.open() == nil {
		a.r.claim(key)
	}
}

// hold notes whose an insight is: what is open, or announced, there.
func (a *attendance) hold(key store.Key, who string) {
	if who == a.r.instance {
		who = ""
	}
	was := a.holder[key]
	if was == who {
		return
	}
	if delete(a.holders[was], key); len(a.holders[was]) == 0 {
		delete(a.holders, was)
	}
	if delete(a.holder, key); who == "" {
		return
	}
	a.holder[key] = who
	if a.holders[who] == nil {
		a.holders[who] = make(map[store.Key]struct{})
	}
	a.holders[who][key] = struct{}{}
}

// claim has the insight of a proxy stored anew that has a stream here, since it shows none.
func (r *Registry) claim(key store.Key) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.proxies[NodeID(kindOfInsight(key.Type), key.Mesh, key.Name)]
	if p != nil && !r.closing && p.live() != nil {
		r.markLocked(p, true)
	}
}

// bury closes what processes left open that are gone since they were last asked for, and takes over what they announced.
func (a *attendance) bury(ctx context.Context) error {
	var died []string
	for who := range a.holders {
		switch gone := a.r.gone(who); {
		case !gone:
			delete(a.dead, who)
		case !a.dead[who]:
			died = append(died, who)
		}
	}
	if len(died) == 0 {
		return nil
	}
	closed, err := a.r.closeOf(ctx, func(s *meshv1.DiscoverySubscription) bool {
		return slices.Contains(died, s.GetControlPlaneInstanceId())
	})
	if err != nil {
		return err
	}
	a.r.log.WarnContext(ctx, "control planes are gone, and the subscriptions that they left open are closed", "instances", died, "count", closed)
	if len(a.dead) > maxDead {
		maps.DeleteFunc(a.dead, func(who string, _ bool) bool { return a.holders[who] == nil })
	}
	snap := a.r.store.Snapshot()
	for _, who := range died {
		a.dead[who] = true
		for key := range maps.Clone(a.holders[who]) {
			rec, _ := snap.Get(key)
			a.look(key, rec)
		}
	}
	return nil
}

func (r *Registry) gone(instance string) bool { return r.members == nil || r.members.Gone(instance) }

// closeLeftOvers closes what an earlier process of this instance id left open, and where there are no others what any did.
func (r *Registry) closeLeftOvers(ctx context.Context) error {
	_, err := r.closeOf(ctx, func(s *meshv1.DiscoverySubscription) bool {
		return r.members == nil || s.GetControlPlaneInstanceId() == r.instance
	})
	return err
}

// closeOf closes the open subscriptions that match, since the processes that served them are gone.
func (r *Registry) closeOf(ctx context.Context, match func(*meshv1.DiscoverySubscription) bool) (closed int, err error) {
	now := time.Now().UTC()
	var n int // written by the update, which may still run when it was given up: read only after success
	_, err = r.store.Update(ctx, func(head *store.Snapshot) ([]store.Op, error) {
		ops, err := editInsights(head, now, func(_ store.Key, i *insight) bool { return i.abandon(timestamppb.New(now), match) })
		n = len(ops)
		return ops, err
	})
	if err != nil {
		return 0, fmt.Errorf("close subscriptions of control planes that are gone: %w", err)
	}
	return n, nil
}

// depart has a proxy deregistered when the delay is over, unless it will be already.
func (a *attendance) depart(key store.Key, id string) {
	if a.left[key].id != id {
		a.departAt(departure{key, id, time.Now().Add(a.r.cfg.DeregistrationDelay)})
	}
}

func (a *attendance) departAt(d departure) {
	a.left[d.insight] = d
	i, _ := slices.BinarySearchFunc(a.leaving, d.at, func(d departure, at time.Time) int { return d.at.Compare(at) })
	a.leaving = slices.Insert(a.leaving, i, d)
}

// due takes departures whose time has come out of the queue.
func (a *attendance) due(now time.Time) []departure {
	var list []departure
	for len(a.leaving) > 0 && len(list) < maxRemovals && !a.leaving[0].at.After(now) {
		d := a.leaving[0]
		if a.leaving = a.leaving[1:]; a.left[d.insight] == d {
			delete(a.left, d.insight)
			list = append(list, d)
		}
	}
	return list
}

// deregister removes the resources of proxies whose time has come.
func (a *attendance) deregister(ctx context.Context) {
	due := a.due(time.Now())
	if len(due) == 0 {
		return
	}
	removed, later, err := a.r.remove(ctx, due)
	if err != nil {
		if ctx.Err() == nil {
			a.r.log.WarnContext(ctx, "proxies that are gone could not be deregistered and will be", "count", len(due), "err", err)
		}
		later = due
	}
	for _, d := range later {
		d.at = time.Now().Add(retryInterval)
		a.departAt(d)
	}
	a.r.metrics.deregistered.WithLabelValues("left").Add(float64(len(removed)))
	for _, key := range removed {
		a.r.log.InfoContext(ctx, "proxy deregistered", "type", key.Type, "mesh", key.Mesh, "name", key.Name)
	}
}

// remove deletes the resources of proxies that are gone, with their insights. What is stored decides: nothing is done about a
// proxy that is back, or was, at any process. later are those of which a stream is being opened here.
func (r *Registry) remove(ctx context.Context, due []departure) (removed []store.Key, later []departure, err error) {
	var gone []store.Key // written by the update, which may still run when it was given up: read only after success
	var opening []departure
	_, err = r.store.Update(ctx, func(head *store.Snapshot) ([]store.Op, error) {
		gone, opening = nil, nil
		var ops []store.Op
		for _, d := range due {
			kind := kindOfInsight(d.insight.Type)
			owner := store.Key{Type: string(kinds[kind].main), Mesh: d.insight.Mesh, Name: d.insight.Name}
			rec, ok := head.Get(d.insight)
			if res, exists := head.Get(owner); !ok || !exists || rec.Origin != "" || res.Origin != "" {
				continue
			}
			i, err := decodeInsight(kind, rec.Spec)
			switch {
			case err != nil || !i.leaving() || i.newest().GetId() != d.id:
			case r.present(NodeID(kind, d.insight.Mesh, d.insight.Name)):
				opening = append(opening, d)
			default:
				ops = append(ops, store.Delete(owner), store.Delete(d.insight))
				gone = append(gone, owner)
			}
		}
		return ops, nil
	})
	if err != nil {
		return nil, nil, fmt.Errorf("deregister %d proxies: %w", len(due), err)
	}
	return gone, opening, nil
}
