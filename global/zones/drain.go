package zones

import (
	"context"
	"errors"
	"time"

	"github.com/meridian-mesh/meridian/common/drain"
)

// ErrMoved ends the streams of a zone that is to connect anew, perhaps to another replica of this plane. Nothing is wrong with it.
var ErrMoved = errors.New("the zone is asked to connect anew")

// Drain admits no streams from now on, and ends the sessions that are open, spread over a time: other replicas of this plane are there for
// the zones. Sessions that are left are served as before.
func (t *Table) Drain(ctx context.Context, over time.Duration) {
	t.mu.Lock()
	t.draining = true
	var open []*session
	for _, z := range t.zones {
		if z.session != nil {
			open = append(open, z.session)
		}
	}
	t.mu.Unlock()
	t.log.InfoContext(ctx, "zones are told to connect to other instances", "zones", len(open), "over", over)
	drain.Spread(ctx, over, open, func(s *session) { t.end(s.hello.Zone, ErrShutdown, func(now *session) bool { return now == s }) })
}

// Move ends the session that hello was said of, if that is still the zone's.
func (t *Table) Move(hello Hello) {
	t.end(hello.Zone, ErrMoved, func(now *session) bool { return now.hello.Session == hello.Session })
}

// end ends the session of a zone, if it is the one that is meant.
func (t *Table) end(name string, cause error, meant func(*session) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if z := t.zones[name]; z != nil && z.session != nil && meant(z.session) {
		t.retireLocked(z, cause)
	}
}
