package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

const (
	// withdrawAfter is how long after its proxy has gone nothing is offered through an ingress any more: time for an Envoy that has
	// lost no more than its stream to be back. Others go on to send what they have to an ingress that may be dead until then.
	withdrawAfter = 500 * time.Millisecond
	// awaitReturn is the same where a process of the plane has ended, and proxies come back one by one, to this or another process.
	// Envoy tries twice a minute at least.
	awaitReturn = time.Minute
)

// offer writes what the zone offers to others into the zone's ZoneIngresses whose proxies are connected. Others route to what
// stands there, so it is cleared when a proxy has gone and does not come back in a moment. It stays when this plane stops: what
// proxies have goes on working without one.
//
// Each process of the plane writes what is offered through the ingresses that are connected to it, which is the same in all of
// them. Whether an ingress is connected anywhere is in its insight: every process clears what is offered through one that is not, and
// the second finds nothing to do.
type offer struct {
	store *store.Store
	log   *slog.Logger
	wake  chan struct{} // cap 1, level-triggered: something may have to be written
	due   *time.Timer   // for the next of leaving

	mu        sync.Mutex // guards what follows
	services  []*meshv1.ZoneIngress_AvailableService
	ingresses set[string]          // names of those whose proxies are connected
	leaving   map[string]time.Time // of those whose proxies are not: when nothing is offered through them any more
}

func newOffer(s *store.Store, log *slog.Logger) *offer {
	return &offer{
		store: s, log: log, wake: make(chan struct{}, 1), due: newTimer(), ingresses: make(set[string]), leaving: make(map[string]time.Time),
	}
}

// set tells what is offered. It does not block.
func (o *offer) set(services []*meshv1.ZoneIngress_AvailableService) {
	o.change(func() { o.services = services })
}

func (o *offer) connected(name string) {
	o.change(func() {
		o.ingresses[name] = struct{}{}
		delete(o.leaving, name)
	})
}

func (o *offer) disconnected(name string) {
	o.change(func() {
		delete(o.ingresses, name)
		o.leaveLocked(name, withdrawAfter)
	})
}

func (o *offer) leaveLocked(name string, after time.Duration) {
	o.leaving[name] = time.Now().Add(after)
	o.setDueLocked()
}

func (o *offer) setDueLocked() {
	var first time.Time
	for _, at := range o.leaving {
		if first.IsZero() || at.Before(first) {
			first = at
		}
	}
	if !first.IsZero() {
		o.due.Reset(time.Until(first))
	}
}

func (o *offer) change(f func()) {
	o.mu.Lock()
	f()
	idle := len(o.ingresses) == 0
	o.mu.Unlock()
	if idle {
		return
	}
	select {
	case o.wake <- struct{}{}:
	default: // already awake
	}
}

func (o *offer) run(ctx context.Context) error {
	defer o.due.Stop()
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return o.watch(ctx) })
	g.Go(func() error { return writing(ctx, o.wake, o.due.C, o.write, o.log.With("what", "what the zone offers")) })
	return g.Wait()
}

// watch follows which ingresses are connected to any process.
func (o *offer) watch(ctx context.Context) error {
	for {
		changed := o.store.Changed(string(resource.ZoneIngressInsight))
		o.look(o.store.Snapshot())
		select {
		case <-ctx.Done():
			return fmt.Errorf("watch ingresses: %w", ctx.Err())
		case <-changed:
		}
	}
}

// look gives the ingresses through which something is offered, and which are not connected, time to come back.
func (o *offer) look(snap *store.Snapshot) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for rec := range snap.ByOrigin(string(resource.ZoneIngress), "") {
		name := rec.Key.Name
		_, connected := o.ingresses[name]
		_, leaving := o.leaving[name]
		switch {
		case connected:
		case online(snap, name):
			delete(o.leaving, name)
		case !leaving && offersAnything(rec):
			o.leaveLocked(name, awaitReturn)
		}
	}
}

func offersAnything(rec *store.Record) bool {
	var in meshv1.ZoneIngress
	return proto.Unmarshal(rec.Spec, &in) == nil && len(in.GetAvailableServices()) > 0
}

// writing calls write when woken or something is due, and again after a failure, until ctx ends.
func writing(ctx context.Context, wake <-chan struct{}, due <-chan time.Time, write func(context.Context) error, log *slog.Logger) error {
	retry := newTimer()
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("write to the store: %w", ctx.Err())
		case <-wake:
		case <-due:
		case <-retry.C:
		}
		err := write(ctx)
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return err
		case errors.Is(err, store.ErrClosed), errors.Is(err, store.ErrFailed):
			log.WarnContext(ctx, "nothing more is written: the store refuses writes", "err", err)
			<-ctx.Done()
			return fmt.Errorf("write to the store: %w", ctx.Err())
		default:
			log.WarnContext(ctx, "a write failed and will be tried again", "err", err)
			retry.Reset(retryStore)
		}
	}
}

// write stores what is offered where the stored resources say something else.
func (o *offer) write(ctx context.Context) error {
	now := time.Now()
	_, err := o.store.Update(ctx, func(head *store.Snapshot) ([]store.Op, error) {
		o.mu.Lock()
		defer o.mu.Unlock()
		var ops []store.Op
		set := func(name string, services []*meshv1.ZoneIngress_AvailableService) error {
			op, ok, err := offering(head, name, services)
			if ok {
				ops = append(ops, op)
			}
			return err
		}
		for name := range o.ingresses {
			if err := set(name, o.services); err != nil {
				return nil, err
			}
		}
		for name, at := range o.leaving {
			if at.After(now) || online(head, name) { // when it no longer is, watch sees that
				continue
			}
			if err := set(name, nil); err != nil {
				return nil, err
			}
		}
		return ops, nil
	})
	if err != nil {
		return fmt.Errorf("write what the zone offers: %w", err)
	}
	o.mu.Lock()
	maps.DeleteFunc(o.leaving, func(_ string, at time.Time) bool { return !at.After(now) })
	o.setDueLocked()
	o.mu.Unlock()
	o.look(o.store.Snapshot()) // one that was connected elsewhere may have gone meanwhile
	return nil
}

// offering is the change that makes an ingress of this zone offer services; there is none when it does, or is not there.
func offering(head *store.Snapshot, name string, services []*meshv1.ZoneIngress_AvailableService) (_ store.Op, ok bool, _ error) {
	rec, ok := head.Get(store.Key{Type: string(resource.ZoneIngress), Name: name})
	if !ok || rec.Origin != "" {
		return store.Op{}, false, nil
	}
	var in meshv1.ZoneIngress
	if err := proto.Unmarshal(rec.Spec, &in); err != nil {
		return store.Op{}, false, nil //nolint:nilerr // the topology has told of it
	}
	if slices.EqualFunc(in.GetAvailableServices(), services, func(a, b *meshv1.ZoneIngress_AvailableService) bool { return proto.Equal(a, b) }) {
		return store.Op{}, false, nil
	}
	in.AvailableServices = services
	spec, err := proto.MarshalOptions{Deterministic: true}.Marshal(&in)
	if err != nil {
		return store.Op{}, false, fmt.Errorf("encode zone ingress %q: %w", name, err)
	}
	changed := *rec
	changed.Spec, changed.Modified = spec, time.Now().UTC()
	return store.Put(&changed), true, nil
}

// online reports whether the proxy of an ingress is connected to some plane, as its insight says.
func online(head *store.Snapshot, name string) bool {
	rec, ok := head.Get(store.Key{Type: string(resource.ZoneIngressInsight), Name: name})
	var insight meshv1.ZoneIngressInsight
	return ok && proto.Unmarshal(rec.Spec, &insight) == nil &&
		slices.ContainsFunc(insight.GetSubscriptions(), func(s *meshv1.DiscoverySubscription) bool {
			return s.GetConnectTime() != nil && s.GetDisconnectTime() == nil
		})
}
