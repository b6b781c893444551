package reconcile

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

const (
	// withdrawAfter is how long after its proxy has gone nothing is offered through an ingress any more: time for an Envoy that has
	// lost no more than its stream to be back. Others go on to send what they have to an ingress that may be dead until then.
	withdrawAfter = 500 * time.Millisecond
	// awaitReturn is the same after a start of this plane, when proxies come back one by one. Envoy tries twice a minute at least.
	awaitReturn = time.Minute
	// lookAgain is when an ingress is looked at again that is connected to another plane.
	lookAgain = 2 * time.Second
)

// offer writes what the zone offers to others into the zone's ZoneIngresses whose proxies are connected. Others route to what
// stands there, so it is cleared when a proxy has gone and does not come back in a moment. It stays when this plane stops: what
// proxies have goes on working without one.
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
	o.await()
	return writing(ctx, o.wake, o.due.C, o.write, o.log.With("what", "what the zone offers"))
}

// await gives the ingresses that an earlier process offered something through time to come back.
func (o *offer) await() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for rec := range o.store.Snapshot().List(string(resource.ZoneIngress), "") {
		_, connected := o.ingresses[rec.Key.Name]
		_, leaving := o.leaving[rec.Key.Name]
		if rec.Origin == "" && !connected && !leaving {
			o.leaveLocked(rec.Key.Name, awaitReturn)
		}
	}
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
	var elsewhere []string // connected to another plane
	now := time.Now()
	_, err := o.store.Update(ctx, func(head *store.Snapshot) ([]store.Op, error) {
		o.mu.Lock()
		defer o.mu.Unlock()
		var ops []store.Op
		elsewhere = nil
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
			switch {
			case at.After(now):
			case online(head, name):
				elsewhere = append(elsewhere, name)
			default:
				if err := set(name, nil); err != nil {
					return nil, err
				}
			}
		}
		return ops, nil
	})
	if err != nil {
		return fmt.Errorf("write what the zone offers: %w", err)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for name, at := range o.leaving {
		if !at.After(now) {
			delete(o.leaving, name)
			if slices.Contains(elsewhere, name) {
				o.leaving[name] = time.Now().Add(lookAgain)
			}
		}
	}
	o.setDueLocked()
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
