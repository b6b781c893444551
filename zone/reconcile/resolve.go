package reconcile

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"
	"time"
)

const (
	resolveInterval = 30 * time.Second
	resolveTimeout  = 5 * time.Second
)

// resolver finds the addresses of the host names that stand in Dataplanes, ZoneIngresses and ZoneEgresses: what is sent by EDS
// must be an address. A name that resolved once keeps its address while that is among the answers, or while there are none.
// Names are looked up when they appear and twice a minute; without names there is nothing to do and no timer.
type resolver struct {
	lookup  func(ctx context.Context, host string) ([]string, error)
	log     *slog.Logger
	wake    chan struct{}          // cap 1, level-triggered: other names are wanted
	results chan map[string]string // addresses by name, when they are others than before

	mu     sync.Mutex // guards what follows
	wanted []string
	found  map[string]string
}

func newResolver(lookup func(ctx context.Context, host string) ([]string, error), log *slog.Logger) *resolver {
	if lookup == nil {
		lookup = net.DefaultResolver.LookupHost
	}
	return &resolver{lookup: lookup, log: log, wake: make(chan struct{}, 1), results: make(chan map[string]string), found: make(map[string]string)}
}

// want tells which names are needed. It does not block.
func (r *resolver) want(hosts []string) {
	r.mu.Lock()
	same := slices.Equal(r.wanted, hosts)
	r.wanted = hosts
	r.mu.Unlock()
	if same {
		return
	}
	select {
	case r.wake <- struct{}{}:
	default: // already awake
	}
}

func (r *resolver) known() map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.found)
}

func (r *resolver) run(ctx context.Context) error {
	timer := newTimer()
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return fmt.Errorf("resolve host names: %w", ctx.Err())
		case <-r.wake:
		case <-timer.C:
		}
		r.mu.Lock()
		hosts, before := r.wanted, r.found
		r.mu.Unlock()
		if len(hosts) > 0 {
			timer.Reset(resolveInterval)
		} else {
			timer.Stop()
		}
		found := r.resolve(ctx, hosts, before)
		if maps.Equal(found, before) {
			continue
		}
		r.mu.Lock()
		r.found = found
		r.mu.Unlock()
		select {
		case r.results <- maps.Clone(found):
		case <-ctx.Done():
			return fmt.Errorf("resolve host names: %w", ctx.Err())
		}
	}
}

// resolve looks names up, a few at a time.
func (r *resolver) resolve(ctx context.Context, hosts []string, before map[string]string) map[string]string {
	const atOnce = 8
	addresses := make([]string, len(hosts))
	var wg sync.WaitGroup
	for w := range min(atOnce, len(hosts)) {
		wg.Go(func() {
			for i := w; i < len(hosts); i += atOnce {
				addresses[i] = r.one(ctx, hosts[i], before[hosts[i]])
			}
		})
	}
	wg.Wait()
	found := make(map[string]string, len(hosts))
	for i, host := range hosts {
		if addresses[i] != "" {
			found[host] = addresses[i]
		}
	}
	return found
}

func (r *resolver) one(ctx context.Context, host, before string) string {
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	all, err := r.lookup(ctx, host)
	switch {
	case err != nil || len(all) == 0:
		if before == "" && ctx.Err() == nil {
			r.log.WarnContext(ctx, "a host name is not resolved: its endpoint is left out", "host", host, "err", err)
		}
		return before
	case slices.Contains(all, before):
		return before
	default:
		slices.Sort(all)
		return all[0]
	}
}
