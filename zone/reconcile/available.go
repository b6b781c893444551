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

// offer writes what the zone offers to others into the zone's ZoneIngresses whose proxies are connected. Others route to what
// stands there, so an ingress whose proxy has gone keeps what it had: the proxy may be connected to another plane, or be back
// in a moment.
type offer struct {
	store *store.Store
	log   *slog.Logger
	wake  chan struct{} // cap 1, level-triggered: something may have to be written

	mu        sync.Mutex // guards what follows
	services  []*meshv1.ZoneIngress_AvailableService
	ingresses set[string] // names of those whose proxies are connected
}

func newOffer(s *store.Store, log *slog.Logger) *offer {
	return &offer{store: s, log: log, wake: make(chan struct{}, 1), ingresses: make(set[string])}
}

// set tells what is offered. It does not block.
func (o *offer) set(services []*meshv1.ZoneIngress_AvailableService) {
	o.change(func() { o.services = services })
}

func (o *offer) connected(name string) { o.change(func() { o.ingresses[name] = struct{}{} }) }

func (o *offer) disconnected(name string) { o.change(func() { delete(o.ingresses, name) }) }

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
	return writing(ctx, o.wake, o.write, o.log.With("what", "what the zone offers"))
}

// writing calls write when woken, and again after a failure, until ctx ends.
func writing(ctx context.Context, wake <-chan struct{}, write func(context.Context) error, log *slog.Logger) error {
	retry := newTimer()
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("write to the store: %w", ctx.Err())
		case <-wake:
		case <-retry.C:
		}
		err := write(ctx)
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return err
		case errors.Is(err, store.ErrClosed), errors.Is(err, store.ErrUnavailable):
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
	_, err := o.store.Update(ctx, func(head *store.Snapshot) ([]store.Op, error) {
		o.mu.Lock()
		defer o.mu.Unlock()
		var ops []store.Op
		for name := range o.ingresses {
			rec, ok := head.Get(store.Key{Type: string(resource.ZoneIngress), Name: name})
			if !ok || rec.Origin != "" {
				continue
			}
			var in meshv1.ZoneIngress
			if err := proto.Unmarshal(rec.Spec, &in); err != nil {
				continue // the topology has told of it
			}
			if slices.EqualFunc(in.GetAvailableServices(), o.services, func(a, b *meshv1.ZoneIngress_AvailableService) bool { return proto.Equal(a, b) }) {
				continue
			}
			in.AvailableServices = o.services
			spec, err := proto.MarshalOptions{Deterministic: true}.Marshal(&in)
			if err != nil {
				return nil, fmt.Errorf("encode zone ingress %q: %w", name, err)
			}
			changed := *rec
			changed.Spec, changed.Modified = spec, time.Now().UTC()
			ops = append(ops, store.Put(&changed))
		}
		return ops, nil
	})
	if err != nil {
		return fmt.Errorf("write what the zone offers: %w", err)
	}
	return nil
}
