package zones

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meridian-mesh/meridian/api/server"
	"github.com/meridian-mesh/meridian/common/peers"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/storetest"
	"github.com/meridian-mesh/meridian/sync/kds"
)

// plane is the replicas of a global: tables over one database that call each other.
type plane struct {
	t        *testing.T
	database *storetest.Database
	replicas map[string]*replicaRig

	mu    sync.Mutex // guards what follows
	calls map[string]int
	wrong map[string]error         // what calls to an instance answer
	dead  map[string]chan struct{} // closed when the instance dies
}

type replicaRig struct {
	*rig
	plane *plane
	name  string
}

// gated is a backend that learns of what other replicas commit when the test says so.
type gated struct {
	*storetest.Replica
	advanced chan struct{}
}

func (g gated) Advanced() <-chan struct{} { return g.advanced }

func newPlane(t *testing.T, names ...string) *plane {
	t.Helper()
	p := &plane{
		t: t, database: storetest.NewDatabase(), replicas: make(map[string]*replicaRig),
		calls: make(map[string]int), wrong: make(map[string]error), dead: make(map[string]chan struct{}),
	}
	for _, name := range names {
		p.start(name, p.database.Replica())
	}
	return p
}

func (p *plane) start(name string, backend store.Backend) *replicaRig {
	p.t.Helper()
	st, err := store.Open(p.t.Context(), backend, store.Options{})
	if err != nil {
		p.t.Fatal(err)
	}
	r := &replicaRig{rig: runTable(p.t, st, func(c *Config) { c.InstanceID, c.Peers = name, p }), plane: p, name: name}
	p.replicas[name] = r
	p.dead[name] = make(chan struct{})
	return r
}

// Call implements Caller.
func (p *plane) Call(ctx context.Context, instance, call string, body []byte) ([]byte, error) {
	p.mu.Lock()
	p.calls[instance+" "+call]++
	err, dead, r := p.wrong[instance], p.dead[instance], p.replicas[instance]
	p.mu.Unlock()
	switch {
	case err != nil:
		return nil, err
	case r == nil:
		return nil, peers.ErrUnreachable
	}
	handler := map[string]func(context.Context, []byte) ([]byte, error){AwaitCall: r.AnswerAwait, ProgressCall: r.AnswerProgress}[call]
	type result struct {
		body []byte
		err  error
	}
	answered := make(chan result, 1)
	handled, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { body, err := handler(handled, body); answered <- result{body, err} })
	select {
	case a := <-answered:
		return a.body, a.err
	case <-dead:
		return nil, peers.ErrUnreachable
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// breaks lets all calls to an instance fail from now on, those on their way too; nil: it answers again.
func (p *plane) breaks(instance string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wrong[instance] = err
	close(p.dead[instance])
	p.dead[instance] = make(chan struct{})
}

// called is how often an instance was asked something, and forgets it.
func (p *plane) called(instance, call string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := p.calls[instance+" "+call]
	delete(p.calls, instance+" "+call)
	return n
}

// publisher is one whose zone answers when the test says so.
type publisher struct {
	mu      sync.Mutex // guards what follows
	acked   store.Revision
	reason  string // why it rejects everything; "": it does not
	no      bool   // nothing is for it
	hates   string // the name that it rejects
	lag     int
	waiting map[*func()]store.Revision
	seen    []store.Delta // of the newest question
}

func (p *publisher) Lag(*store.Snapshot) int { return p.lag }

func (p *publisher) Outcome(rev store.Revision, deltas []store.Delta) (kds.Outcome, string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen = deltas
	switch {
	case p.no:
		return kds.NotApplicable, ""
	case p.acked < rev:
		return kds.Pending, ""
	case p.reason != "":
		return kds.Rejected, p.reason
	case slices.ContainsFunc(deltas, func(d store.Delta) bool { return d.Key.Name == p.hates }):
		return kds.Rejected, "not " + p.hates
	}
	return kds.Acknowledged, ""
}

func (p *publisher) Await(_ string, rev store.Revision, notify func()) func() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.waiting == nil {
		p.waiting = make(map[*func()]store.Revision)
	}
	p.waiting[&notify] = rev
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		delete(p.waiting, &notify)
	}
}

// answers lets the zone answer for a revision.
func (p *publisher) answers(rev store.Revision, reason string) {
	p.mu.Lock()
	p.acked, p.reason = rev, reason
	var due []func()
	for notify, r := range p.waiting {
		if r <= rev {
			due = append(due, *notify)
			delete(p.waiting, notify)
		}
	}
	p.mu.Unlock()
	for _, notify := range due {
		notify()
	}
}

// connects opens a session of a zone with a replica. The store knows of it when connects returns.
func (r *replicaRig) connects(zone, session string, p *publisher) *Stream {
	r.plane.t.Helper()
	h := r.zone(r.plane.t, zone)
	h.PlaneID, h.Session = "plane of "+zone, session
	_, s := r.open(r.plane.t, GlobalToZone, h)
	s.Publishing(p)
	op, _ := putHolder(zone, Holder{Instance: r.name, Session: session, Since: time.Now()})
	r.update(r.plane.t, op)
	synctest.Wait()
	return s
}

func (r *replicaRig) ends(s *Stream) {
	s.Close(nil)
	if h, _ := HolderOf(r.st.Snapshot(), s.zone); h.Instance == r.name {
		h.Ended = time.Now()
		op, _ := putHolder(s.zone, h)
		r.update(r.plane.t, op)
	}
}

// write commits something that zones are to get.
func (r *replicaRig) write(spec string) (store.Revision, []store.Delta) {
	r.plane.t.Helper()
	key := store.Key{Type: "TrafficPermission", Mesh: "default", Name: "tp"}
	old, _ := r.st.Snapshot().Get(key)
	r.update(r.plane.t, store.Put(&store.Record{Key: key, Spec: []byte(spec), Labels: map[string]string{"team": "a"}}))
	now, _ := r.st.Snapshot().Get(key)
	return now.Version, []store.Delta{{Key: key, Old: old, New: now}}
}

// awaits waits for a batch.
func (r *replicaRig) awaits(rev store.Revision, deltas []store.Delta, wait time.Duration) (d server.Delivery, took time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	defer cancel()
	start := time.Now()
	d = r.Await(ctx, rev, deltas)
	return d, time.Since(start)
}

func sameDelivery(t *testing.T, want, got server.Delivery) {
	t.Helper()
	want.Revision = got.Revision
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestAWaitIsAnsweredForZonesOfOtherReplicas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, "a", "b", "c")
		a, b, c := p.replicas["a"], p.replicas["b"], p.replicas["c"]
		zones := map[string]*publisher{}
		open := func(r *replicaRig, zone string, pub *publisher) *Stream {
			zones[zone] = pub
			return r.connects(zone, "1", pub)
		}
		streams := map[*Stream]*replicaRig{
			open(a, "here", &publisher{}): a, open(b, "acknowledges", &publisher{}): b, open(b, "rejects", &publisher{}): b,
			open(c, "not-applicable", &publisher{no: true}): c, open(c, "pending", &publisher{}): c,
		}
		b.ends(open(b, "offline", &publisher{}))
		a.zone(t, "never-there")
		rev, deltas := a.write("x")
		go func() {
			time.Sleep(time.Second)
			zones["acknowledges"].answers(rev, "")
			time.Sleep(time.Second)
			zones["rejects"].answers(rev+1, "it is bad")
			zones["here"].answers(rev, "")
		}()
		d, took := a.awaits(rev, deltas, 5*time.Second)
		sameDelivery(t, server.Delivery{
			Acknowledged: []string{"acknowledges", "here"}, Rejected: []server.Reason{{Zone: "rejects", Reason: "it is bad"}},
			Pending: []string{"pending"}, Offline: []string{"never-there", "offline"}, NotApplicable: []string{"not-applicable"},
		}, d)
		if took != 5*time.Second {
			t.Errorf("it took %s", took)
		}
		for _, r := range []string{"b", "c"} {
			if n := p.called(r, AwaitCall); n != 1 {
				t.Errorf("%s was asked %d times", r, n)
			}
		}
		want := []store.Delta{{Key: deltas[0].Key, New: &store.Record{Key: deltas[0].Key, Labels: map[string]string{"team": "a"}}}}
		if diff := cmp.Diff(want, zones["acknowledges"].seen); diff != "" {
			t.Errorf("what the holder compares: %s", diff)
		}

		go func() {
			time.Sleep(2 * time.Second)
			zones["pending"].answers(rev, "")
		}()
		d, took = a.awaits(rev, deltas, time.Minute)
		if len(d.Pending) > 0 || took != 2*time.Second {
			t.Errorf("with the last answer after 2s: %+v after %s", d, took)
		}
		d, took = a.awaits(rev, deltas, 0)
		if len(d.Acknowledged) != 3 || len(d.Rejected) != 1 || len(d.NotApplicable) != 1 || took != 0 {
			t.Errorf("with no time: %+v after %s", d, took)
		}
		for s, r := range streams {
			r.ends(s)
		}
	})
}

func TestAZoneMovesWhileItIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, "a", "b", "c")
		a, b, c := p.replicas["a"], p.replicas["b"], p.replicas["c"]
		first := b.connects("zone", "1", &publisher{})
		busy := &publisher{} // keeps the question to c on its way
		other := c.connects("other", "1", busy)
		rev, deltas := a.write("x")
		moved := &publisher{}
		var second *Stream
		go func() {
			time.Sleep(time.Second)
			b.ends(first)
			second = c.connects("zone", "2", moved)
			time.Sleep(time.Second)
			moved.answers(rev+1, "") // a later revision counts
			time.Sleep(time.Second)
			busy.answers(rev, "")
		}()
		d, took := a.awaits(rev, deltas, time.Minute)
		sameDelivery(t, server.Delivery{Acknowledged: []string{"other", "zone"}}, d)
		if took != 3*time.Second {
			t.Errorf("it took %s", took)
		}
		if n, m := p.called("b", AwaitCall), p.called("c", AwaitCall); n != 1 || m != 1 {
			t.Errorf("the old holder was asked %d times, the new one, which was about to answer, %d times", n, m)
		}

		// To this replica, and away again: to one that has answered already.
		rev, deltas = a.write("y")
		busy.answers(rev, "")
		third, fourth := &publisher{}, &publisher{}
		var last *Stream
		go func() {
			time.Sleep(time.Second)
			here := a.connects("zone", "3", third)
			c.ends(second)
			time.Sleep(time.Second)
			last = c.connects("zone", "4", fourth)
			a.ends(here)
			time.Sleep(time.Second)
			fourth.answers(rev, "")
		}()
		d, took = a.awaits(rev, deltas, time.Minute)
		sameDelivery(t, server.Delivery{Acknowledged: []string{"other", "zone"}}, d)
		if took != 3*time.Second {
			t.Errorf("it took %s", took)
		}
		if n := p.called("c", AwaitCall); n != 2 {
			t.Errorf("the holder was asked %d times", n)
		}
		c.ends(last)
		c.ends(other)
	})
}

func TestAZoneThatComesBackToItsHolderIsAskedForAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, "a", "b")
		a, b := p.replicas["a"], p.replicas["b"]
		here, again := &publisher{}, &publisher{}
		first, other := b.connects("zone", "1", &publisher{acked: 1 << 20, reason: "full"}), a.connects("here", "1", here)
		rev, deltas := a.write("x")
		again.answers(rev, "")
		var second *Stream
		go func() {
			time.Sleep(time.Second)
			b.ends(first)
			second = b.connects("zone", "2", again)
			time.Sleep(time.Second)
			here.answers(rev, "")
		}()
		d, took := a.awaits(rev, deltas, time.Minute)
		sameDelivery(t, server.Delivery{Acknowledged: []string{"here", "zone"}}, d)
		if n := p.called("b", AwaitCall); took != 2*time.Second || n != 2 {
			t.Errorf("after %s and %d calls", took, n)
		}
		b.ends(second)
		a.ends(other)
	})
}

func TestAZoneThatHasAcknowledgedStaysSo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, "a", "b")
		a, b := p.replicas["a"], p.replicas["b"]
		has, late := &publisher{}, &publisher{}
		streams := []*Stream{a.connects("here", "1", has), b.connects("there", "1", has), a.connects("late", "1", late)}
		rev, deltas := a.write("x")
		has.answers(rev, "")
		go func() {
			time.Sleep(time.Second)
			a.ends(streams[0])
			b.ends(streams[1])
			time.Sleep(time.Second)
			late.answers(rev, "")
		}()
		d, took := a.awaits(rev, deltas, time.Minute)
		sameDelivery(t, server.Delivery{Acknowledged: []string{"here", "late", "there"}}, d)
		if took != 2*time.Second {
			t.Errorf("it took %s", took)
		}
		a.ends(streams[2])
	})
}

func TestAReplicaTellsOfTheZonesThatItHolds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, "a", "b")
		a, b := p.replicas["a"], p.replicas["b"]
		b.zone(t, "offline")
		streams := []*Stream{a.connects("here", "1", &publisher{}), b.connects("there", "1", &publisher{})}
		rev, _ := a.write("x")
		got, err := b.AnswerAwait(t.Context(), fmt.Appendf(nil, `{"revision":%d,"changes":[{"type":"TrafficPermission","name":"tp"}],"later":1}`, rev))
		if want := `{"zones":{"there":{"outcome":"pending"}}}`; err != nil || string(got) != want {
			t.Errorf("%s, %v", got, err)
		}
		if _, err := b.AnswerAwait(t.Context(), []byte("x")); err == nil {
			t.Error("nonsense was understood")
		}
		for _, s := range streams {
			s.Close(nil)
		}
	})
}

func TestAHolderDiesWhileItIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, "a", "b", "c")
		a, b, c := p.replicas["a"], p.replicas["b"], p.replicas["c"]
		has, busy := &publisher{}, &publisher{}
		here := a.connects("busy", "1", busy)
		first, stays := b.connects("zone", "1", &publisher{}), b.connects("gone", "1", &publisher{})
		rev, deltas := a.write("x")
		var second *Stream
		go func() {
			time.Sleep(time.Second)
			p.breaks("b", peers.ErrUnreachable)
			time.Sleep(3 * time.Second)
			second = c.connects("zone", "2", has) // before anybody has closed what b left open
			has.answers(rev, "")
			time.Sleep(time.Second)
			h, _ := HolderOf(c.st.Snapshot(), "gone")
			h.Ended = time.Now()
			op, _ := putHolder("gone", h)
			c.update(t, op)
			synctest.Wait()
			p.called("b", AwaitCall)
			time.Sleep(10 * time.Second)
			busy.answers(rev, "")
		}()
		d, took := a.awaits(rev, deltas, time.Minute)
		sameDelivery(t, server.Delivery{Acknowledged: []string{"busy", "zone"}, Offline: []string{"gone"}}, d)
		if took != 15*time.Second {
			t.Errorf("it took %s", took)
		}
		if n := p.called("b", AwaitCall); n > 0 {
			t.Errorf("the dead one was asked %d times more once it held nothing", n)
		}
		a.ends(here)
		c.ends(second)
		first.Close(nil)
		stays.Close(nil)
	})
}

func TestAHolderThatDoesNotTell(t *testing.T) {
	for _, tc := range []struct {
		name   string
		err    error
		calls  int // within three seconds
		reason string
	}{
		{"is not reached, and asked again and again", peers.ErrUnreachable, 4, peers.ErrUnreachable.Error()},
		{"answers with an error", errors.New("busy"), 4, "busy"},
		{"is of a version without the call, and asked once", fmt.Errorf("call: %w", peers.ErrUnknownCall), 1, peers.ErrUnknownCall.Error()},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlane(t, "a", "b")
				a, b := p.replicas["a"], p.replicas["b"]
				pub := &publisher{}
				s := b.connects("zone", "1", pub)
				rev, deltas := a.write("x")
				pub.answers(rev, "")
				p.breaks("b", tc.err)
				d, took := a.awaits(rev, deltas, 3*time.Second)
				if len(d.PendingReasons) != 1 || d.PendingReasons[0].Zone != "zone" || !strings.Contains(d.PendingReasons[0].Reason, tc.reason) {
					t.Errorf("reasons: %+v", d.PendingReasons)
				}
				d.PendingReasons = nil
				sameDelivery(t, server.Delivery{Pending: []string{"zone"}}, d)
				if n := p.called("b", AwaitCall); took != 3*time.Second || n != tc.calls {
					t.Errorf("after %s and %d calls", took, n)
				}
				go func() { time.Sleep(time.Second); p.breaks("b", nil) }()
				d, _ = a.awaits(rev, deltas, 10*time.Second)
				if errors.Is(tc.err, peers.ErrUnknownCall) {
					s.Close(nil)
					s = b.connects("zone", "2", pub) // the new version is another process
					d, _ = a.awaits(rev, deltas, 10*time.Second)
				}
				sameDelivery(t, server.Delivery{Acknowledged: []string{"zone"}}, d)
				b.ends(s)
			})
		})
	}
}

func TestAHolderThatHangsIsHeardOutForASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, "a", "b")
		a, b := p.replicas["a"], p.replicas["b"]
		s := b.connects("zone", "1", &publisher{})
		rev, deltas := a.write("x")
		a.cfg.Peers = hanging{}
		d, took := a.awaits(rev, deltas, 3*time.Second)
		if len(d.Pending) != 1 || len(d.PendingReasons) != 1 || took != 3*time.Second+hearing {
			t.Errorf("%+v after %s", d, took)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() { time.Sleep(time.Second); cancel() }()
		start := time.Now()
		a.Await(ctx, rev, deltas)
		if took := time.Since(start); took != time.Second {
			t.Errorf("the client went after 1s, the wait ended after %s", took)
		}
		a.cfg.Peers = p
		b.ends(s)
	})
}

// hanging are replicas that take questions and do not answer.
type hanging struct{}

func (hanging) Call(ctx context.Context, _, _ string, _ []byte) ([]byte, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// slow are replicas that take their time.
type slow struct{ Caller }

func (s slow) Call(ctx context.Context, instance, call string, body []byte) ([]byte, error) {
	time.Sleep(600 * time.Millisecond)
	return s.Caller.Call(ctx, instance, call, body)
}

func TestAHolderWhoseStoreIsBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, "a")
		a := p.replicas["a"]
		advanced := make(chan struct{}, 1)
		b := p.start("b", gated{p.database.Replica(), advanced})
		pub := &publisher{no: true} // to judge by what b has so far, nothing is for the zone
		s := b.connects("zone", "1", pub)
		rev, deltas := a.write("x")
		go func() {
			time.Sleep(2 * time.Second)
			pub.mu.Lock()
			pub.no = false
			pub.mu.Unlock()
			advanced <- struct{}{}
			time.Sleep(time.Second)
			pub.answers(rev, "")
		}()
		d, took := a.awaits(rev, deltas, 10*time.Second)
		sameDelivery(t, server.Delivery{Acknowledged: []string{"zone"}}, d)
		if took != 3*time.Second {
			t.Errorf("it took %s", took)
		}
		rev, deltas = a.write("y") // b does not hear of it
		d, took = a.awaits(rev, deltas, 2*time.Second)
		if len(d.PendingReasons) != 1 || !strings.Contains(d.PendingReasons[0].Reason, "behind revision") || took > 2*time.Second+hearing {
			t.Errorf("%+v after %s", d, took)
		}
		advanced <- struct{}{}
		synctest.Wait()
		b.ends(s)
	})
}

func TestALargeBatchIsAskedAboutInParts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, "a", "b")
		a, b := p.replicas["a"], p.replicas["b"]
		pub := &publisher{}
		s := b.connects("zone", "1", pub)
		rev, deltas := a.write("x")
		for i := range 2*maxChanges + 1 {
			deltas = append(deltas, store.Delta{Key: store.Key{Type: "Timeout", Mesh: "default", Name: fmt.Sprint(i)}, New: &store.Record{}})
		}
		go func() { time.Sleep(time.Second); pub.answers(rev, "") }()
		d, took := a.awaits(rev, deltas, 10*time.Second)
		sameDelivery(t, server.Delivery{Acknowledged: []string{"zone"}}, d)
		if n := p.called("b", AwaitCall); n != 3 || took != time.Second {
			t.Errorf("%d calls in %s", n, took)
		}
		pub.hates = fmt.Sprint(2 * maxChanges)
		d, _ = a.awaits(rev, deltas, 10*time.Second)
		sameDelivery(t, server.Delivery{Rejected: []server.Reason{{Zone: "zone", Reason: "not " + pub.hates}}}, d)
		b.ends(s)
	})
}

func TestTheWholeOfABatchStandsLikeTheWorstOfItsParts(t *testing.T) {
	for _, tc := range []struct{ s, other, want string }{
		{"acknowledged", "notApplicable", "acknowledged"},
		{"notApplicable", "notApplicable", "notApplicable"},
		{"acknowledged", "rejected", "rejected"},
		{"rejected", "pending", "pending"},
		{"a word of a later version", "acknowledged", "a word of a later version"},
	} {
		s, other := zoneStanding{Outcome: tc.s}, zoneStanding{Outcome: tc.other}
		if got := s.and(other).Outcome; got != tc.want {
			t.Errorf("%s and %s: %s", tc.s, tc.other, got)
		}
		if got := other.and(s).Outcome; got != tc.want {
			t.Errorf("%s and %s: %s", tc.other, tc.s, got)
		}
	}
}

func TestProgressOfZonesOfOtherReplicas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, "a", "b", "c")
		a, b, c := p.replicas["a"], p.replicas["b"], p.replicas["c"]
		streams := []*Stream{
			a.connects("here", "1", &publisher{lag: 1}), b.connects("there", "1", &publisher{lag: 2}),
			b.connects("left", "1", &publisher{lag: 3}), c.connects("unknown", "1", &publisher{lag: 4}),
		}
		streams[1].Acked("Mesh")
		acked := time.Now().UTC()
		b.ends(streams[2])
		a.zone(t, "never-there")
		p.breaks("c", peers.ErrUnreachable)
		all := []string{"here", "left", "never-there", "there", "unknown"}
		want := map[string]server.ZoneProgress{"here": {Lag: 1}, "there": {Lag: 2, LastAck: acked}, "left": {Lag: 3}}
		synctest.Wait()
		if diff := cmp.Diff(want, a.Progress(t.Context(), a.st.Snapshot(), all)); diff != "" {
			t.Error(diff)
		}
		if n, m := p.called("b", ProgressCall), p.called("c", ProgressCall); n != 1 || m != 1 {
			t.Errorf("the holders were asked %d and %d times", n, m)
		}
		delete(want, "here")
		if diff := cmp.Diff(want["there"], c.Progress(t.Context(), c.st.Snapshot(), all)["there"]); diff != "" {
			t.Error(diff)
		}
		p.breaks("c", nil)
		a.cfg.Peers = slow{p}
		if got := a.Progress(t.Context(), a.st.Snapshot(), all); len(got) != 4 {
			t.Errorf("of holders that take their time: %v", got)
		}
		a.cfg.Peers = hanging{}
		start := time.Now()
		got := a.Progress(t.Context(), a.st.Snapshot(), all)
		if took := time.Since(start); len(got) != 1 || took != time.Second {
			t.Errorf("%v after %s", got, took)
		}
		for _, s := range streams {
			s.Close(nil)
		}
	})
}

// What is asked must be understood by the versions that are there: fields may be added, never changed.
func TestQuestionsBetweenReplicas(t *testing.T) {
	labels := map[string]string{"kuma.io/kds-sync": "disabled"}
	key := store.Key{Type: "ZoneIngress", Name: "i"}
	deltas := []store.Delta{
		{Key: key, Old: &store.Record{Key: key, Spec: []byte("s"), Labels: labels}, New: &store.Record{Key: key, Spec: []byte("t"), Origin: "east"}},
		{Key: store.Key{Type: "Mesh", Name: "m"}, New: &store.Record{Key: store.Key{Type: "Mesh", Name: "m"}, Spec: []byte("large")}},
	}
	got, err := json.Marshal(awaitQuestion{Revision: 7, AsOf: 9, WaitMillis: 1500, Changes: changesOf(deltas)})
	const want = `{"revision":7,"asOf":9,"waitMillis":1500,"changes":[` +
		`{"type":"ZoneIngress","name":"i","old":{"labels":{"kuma.io/kds-sync":"disabled"},"spec":"cw=="},"new":{"origin":"east"}},` +
		`{"type":"Mesh","name":"m","new":{}}]}`
	if diff := cmp.Diff(want, string(got)); err != nil || diff != "" {
		t.Errorf("%v: %s", err, diff)
	}
	var q awaitQuestion
	if err := json.Unmarshal(got, &q); err != nil {
		t.Fatal(err)
	}
	back := deltasOf(q.Changes)
	for i, d := range deltas {
		d.Old, d.New = kds.Outline(d.Old), kds.Outline(d.New)
		if diff := cmp.Diff(d, back[i]); diff != "" {
			t.Error(diff)
		}
	}
}
