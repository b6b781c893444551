package zones

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"

	"github.com/meridian-mesh/meridian/api/resource"
)

// TestOneWriterOfEachSubscription lets zones connect to three replicas at random, which die, come back, are taken for dead, and lose
// their database, and asks that in the end every replica tells the same: a zone has one session or none, its insight has that
// session's subscription open and no other, and no subscription was lost or written twice.
func TestOneWriterOfEachSubscription(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		script := rapid.SliceOfN(act(), 1, 60).Draw(rt, "script")
		// A bubble per case; what went wrong is reported outside it, so that rapid can shrink the script.
		if wrong := perform(t, script); wrong != "" {
			rt.Fatalf("after %v:\n%s", script, wrong)
		}
	})
}

type action struct {
	Do            string
	Replica, Zone int
	N             int
}

func (a action) String() string { return fmt.Sprintf("%s(r%d z%d %d)", a.Do, a.Replica, a.Zone, a.N) }

func act() *rapid.Generator[action] {
	return rapid.Custom(func(t *rapid.T) action {
		return action{
			Do: rapid.SampledFrom([]string{
				"open", "open", "open", "open", "close", "close", "batch", "batch", "count", "pause", "wait",
				"kill", "stop", "restart", "doubt", "trust", "away", "back", "cut", "mend",
			}).Draw(t, "do"),
			Replica: rapid.IntRange(0, 2).Draw(t, "replica"),
			Zone:    rapid.IntRange(0, 1).Draw(t, "zone"),
			N:       rapid.IntRange(0, 20).Draw(t, "n"),
		}
	})
}

// connection is one of a zone's, as the zone sees it.
type connection struct {
	zone     string
	on       *replica
	down, up *Stream
	ctx      context.Context
	closed   bool
}

// world is what the test has done.
type world struct {
	t        *testing.T
	plane    *plane
	replicas [3]*replica // nil: dead
	all      []*connection
	// newest is the connection that has the zone for certain: it was opened while nothing was wrong. Nil: not known.
	newest map[string]*connection
	away   bool
	// unclaimed: there may be connections that the store does not know of yet, because it was away.
	unclaimed bool
	wrong     strings.Builder
}

func perform(t *testing.T, script []action) (wrong string) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, plane: newPlane(), newest: map[string]*connection{}}
		w.plane.limit = 1000
		for i := range w.replicas {
			w.replicas[i] = w.plane.start(t, fmt.Sprint("r", i))
		}
		for i := range 2 {
			w.replicas[0].zone(t, fmt.Sprint("z", i))
		}
		synctest.Wait()
		for _, a := range script {
			w.do(a)
		}
		w.settle()
		w.check()
		for _, r := range w.replicas {
			if r != nil {
				r.stop()
			}
		}
		wrong = w.wrong.String()
	})
	return wrong
}

func (w *world) errorf(format string, args ...any) { fmt.Fprintf(&w.wrong, format+"\n", args...) }

func (w *world) do(a action) {
	zone, name := fmt.Sprint("z", a.Zone), fmt.Sprint("r", a.Replica)
	r := w.replicas[a.Replica]
	switch a.Do {
	case "pause":
		time.Sleep(time.Duration(a.N) * time.Millisecond)
	case "wait":
		time.Sleep(time.Duration(a.N) * time.Second)
		synctest.Wait()
		if a.N > 5 && !w.broken() {
			w.unclaimed = false
		}
	case "away":
		w.plane.database.SetAway(errCut)
		w.away, w.unclaimed = true, true
	case "back":
		w.plane.database.SetAway(nil)
		w.away = false
	case "restart":
		if r == nil && !w.away {
			w.replicas[a.Replica] = w.plane.start(w.t, name)
			w.plane.members.set(name, false)
		}
	case "doubt":
		w.plane.members.set(name, true)
	case "trust":
		w.plane.members.set(name, r == nil)
	case "close", "batch", "count":
		if c := w.pick(zone, a.N); c != nil {
			w.use(a.Do, c)
		}
	}
	if r == nil {
		return
	}
	switch a.Do {
	case "open":
		w.open(r, zone)
	case "kill", "stop":
		if a.Do == "stop" && !w.away && !r.cable.cut.Load() && r.st.Err() == nil {
			r.stop()
		} else {
			r.kill()
		}
		w.replicas[a.Replica] = nil
		clear(w.newest)
	case "cut":
		r.cable.cut.Store(true)
		w.unclaimed = true
	case "mend":
		r.cable.cut.Store(false)
	}
}

// pick is one of the zone's connections that have not been closed, on a replica that lives.
func (w *world) pick(zone string, n int) *connection {
	var some []*connection
	for _, c := range w.all {
		if c.zone == zone && !c.closed && w.lives(c.on) {
			some = append(some, c)
		}
	}
	if len(some) == 0 {
		return nil
	}
	return some[n%len(some)]
}

func (w *world) lives(r *replica) bool {
	for _, other := range w.replicas {
		if other == r {
			return true
		}
	}
	return false
}

func (w *world) open(r *replica, zone string) {
	c := &connection{zone: zone, on: r}
	h := r.zone(w.t, zone)
	h.PlaneID, h.Session = "plane-of-"+zone, fmt.Sprint(len(w.all))
	c.ctx, c.down = r.open(w.t, GlobalToZone, h)
	_, c.up = r.open(w.t, ZoneToGlobal, h)
	w.all = append(w.all, c)
	delete(w.newest, zone)
	if w.unclaimed || w.broken() {
		return
	}
	synctest.Wait()
	w.newest[zone] = c
	for _, other := range w.all {
		if other != c && other.zone == zone && other.ctx.Err() == nil && w.lives(other.on) {
			w.errorf("connection %s to %s goes on beside the newer %s to %s", other.down.session.id, other.on.name, h.Session, r.name)
		}
	}
}

// broken reports whether any replica may be behind.
func (w *world) broken() bool {
	for _, r := range w.replicas {
		if w.away || (r != nil && (r.cable.cut.Load() || r.st.Err() != nil)) {
			return true
		}
	}
	return false
}

func (w *world) use(do string, c *connection) {
	switch do {
	case "close":
		c.down.Close(nil)
		c.up.Close(nil)
		c.closed = true
		if w.newest[c.zone] == c {
			delete(w.newest, c.zone)
		}
	case "count":
		c.down.Sent(resource.Mesh)
	case "batch":
		err := c.on.guarded(c.up, fmt.Sprint("thing-", len(w.all)))
		if newest := w.newest[c.zone]; err == nil && newest != nil && newest != c {
			w.errorf("a batch of connection %s was stored after %s had the zone", c.up.session.id, newest.up.session.id)
		}
	}
}

// settle ends what is wrong and waits.
func (w *world) settle() {
	w.plane.database.SetAway(nil)
	for i, r := range w.replicas {
		if r != nil {
			r.cable.cut.Store(false)
		}
		w.plane.members.set(fmt.Sprint("r", i), r == nil)
	}
	time.Sleep(2 * closeAgain)
	synctest.Wait()
}

func (w *world) check() {
	var reader *replica
	for _, r := range w.replicas {
		if r != nil {
			reader = r
		}
	}
	if reader == nil {
		return
	}
	for _, zone := range []string{"z0", "z1"} {
		var live []*connection
		known := map[string]bool{}   // subscriptions of connections
		certain := map[string]bool{} // of those, what must be stored
		for _, c := range w.all {
			if c.zone != zone {
				continue
			}
			id := c.down.sub.GetId()
			known[id], certain[id] = true, w.lives(c.on)
			if w.lives(c.on) && c.ctx.Err() == nil {
				live = append(live, c)
			}
		}
		in, h := reader.stored(w.t, zone), reader.holder(zone)
		if len(live) > 1 {
			w.errorf("%s has %d sessions", zone, len(live))
			continue
		}
		want := ""
		if len(live) == 1 {
			want = live[0].down.sub.GetId()
			if !h.Online() || h.Instance != live[0].on.name || h.Session != live[0].down.session.id {
				w.errorf("the session of %s is %s on %s, and the record %+v", zone, live[0].down.session.id, live[0].on.name, h)
			}
		} else if h.Live() && h.Instance != "" {
			w.errorf("%s has no session, and the record %+v", zone, h)
		}
		for _, s := range in.GetSubscriptions() {
			id := s.GetId()
			if !known[id] {
				w.errorf("%s has subscription %s twice, or of nobody", zone, id)
			}
			delete(known, id)
			delete(certain, id)
			if open := s.GetDisconnectTime() == nil; open != (id == want) {
				w.errorf("%s: subscription %s of %s is open: %t", zone, id, s.GetGlobalInstanceId(), open)
			}
		}
		for id, must := range certain {
			if must {
				w.errorf("%s: subscription %s was lost", zone, id)
			}
		}
		for _, r := range w.replicas {
			if r == nil {
				continue
			}
			if live, _ := r.Live(r.st.Snapshot(), zone); live.Online != h.Online() {
				w.errorf("%s shows %s as %+v", r.name, zone, live)
			}
		}
	}
}
