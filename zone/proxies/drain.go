package proxies

import (
	"context"
	"maps"
	"slices"
	"time"

	"github.com/meridian-mesh/meridian/common/drain"
)

// Drain refuses new streams from now on, and ends those that are open, proxy by proxy, spread over a time: other replicas of the zone
// are there for them. Nobody is deregistered for it.
func (r *Registry) Drain(ctx context.Context, over time.Duration) {
	r.mu.Lock()
	r.draining = true
	there := slices.Collect(maps.Values(r.proxies))
	r.mu.Unlock()
	r.log.InfoContext(ctx, "proxies are told to connect to other instances", "proxies", len(there), "over", over)
	drain.Spread(ctx, over, there, func(p *proxy) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, s := range slices.Concat(p.streams, p.aside) {
			s.endLocked(errShuttingDown)
		}
	})
}
