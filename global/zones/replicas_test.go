package zones

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/types/known/timestamppb"

	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/storetest"
	"github.com/meridian-mesh/meridian/sync/kds"
)

// members stands for the gossip of replicas: it says that one is gone when the test does.
type members struct {
	mu      sync.Mutex
	gone    map[string]bool
	changed chan struct{}
}

func newMembers() *members { return &members{gone: map[string]bool{}, changed: make(chan struct{})} }

func (m *members) Gone(instance string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.gone[instance]
}

func (m *members) Changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

func (m *members) set(instance string, gone bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.gone[instance] = gone
	close(m.changed)
	m.changed = make(chan struct{})
}

// plane is a global of several replicas on one database.
type plane struct {
	database *storetest.Database
	members  *members
	limit    int // of subscriptions
}

func newPlane() *plane {
	return &plane{database: storetest.NewDatabase(), members: newMembers(), limit: 5}
}

// cable is between a replica and the database.
type cable struct {
	*storetest.Replica
	cut atomic.Bool
}

var errCut = errors.New("cut off")

func (c *cable) Lock(ctx context.Context) (store.Revision, error) {
	if c.cut.Load() {
		return 0, errCut
	}
	return c.Replica.Lock(ctx)
}

func (c *cable) Append(ctx context.Context, g store.Group) error {
	if c.cut.Load() {
		return errCut
	}
	return c.Replica.Append(ctx, g)
}

func (c *cable) Follow(ctx context.Context, record func(*store.Record) error, tombstone func(store.Tombstone) error) (store.Head, error) {
	if c.cut.Load() {
		return store.Head{}, errCut
	}
	return c.Replica.Follow(ctx, record, tombstone)
}

// replica is one of the plane's, running.
type replica struct {
	rig
	name  string
	cable *cable
	end   func()
}

// start runs a replica; the test ends it.
func (p *plane) start(t *testing.T, name string) *replica {
	t.Helper()
	c := &cable{Replica: p.database.Replica()}
	st, err := store.Open(context.Background(), c, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	r := &replica{rig: rig{st: st, reg: prometheus.NewRegistry(), log: &strings.Builder{}}, name: name, cable: c}
	r.Table, err = New(context.Background(), Config{
		InstanceID: name, HealthTimeout: 6 * time.Second, InsightInterval: 10 * time.Second, SubscriptionLimit: p.limit,
		WithdrawLost: true, Replicas: p.members,
	}, st, r.reg, slog.New(slog.NewTextHandler(&lockedWriter{w: r.log}, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.Run(ctx); err != nil && !c.cut.Load() {
			t.Errorf("run %s: %v", name, err)
		}
	})
	r.end = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		_ = st.Close()
	})
	t.Cleanup(r.end)
	return r
}

type lockedWriter struct {
	mu sync.Mutex
	w  *strings.Builder
}

func (l *lockedWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(b)
}

// kill ends a replica like a power cut: nothing more reaches the database.
func (r *replica) kill() {
	r.cable.cut.Store(true)
	r.end()
}

// stop ends a replica in an orderly way.
func (r *replica) stop() {
	r.Shutdown()
	r.end()
}

// hello is of a connection of a zone to this replica; the Zone is made where it is not there.
func (r *replica) hello(t *testing.T, zone, plane, session string) Hello {
	t.Helper()
	h := r.zone(t, zone)
	h.PlaneID, h.Session, h.Address = plane, session, "10.0.0.1:"+session
	return h
}

func (r *replica) holder(zone string) Holder {
	h, _ := HolderOf(r.st.Snapshot(), zone)
	return h
}

// ids are the subscriptions of an insight in order, "*" behind those that are open.
func ids(in *systemv1.ZoneInsight) (list []string) {
	for _, s := range in.GetSubscriptions() {
		mark := ""
		if s.GetDisconnectTime() == nil {
			mark = "*"
		}
		list = append(list, s.GetGlobalInstanceId()+mark)
	}
	return list
}

// guarded stores a batch that the stream has brought.
func (r *replica) guarded(s *Stream, name string) error {
	_, err := r.st.Update(context.Background(), func(head *store.Snapshot) ([]store.Op, error) {
		ops, err := s.Guard(head)
		return append(ops, store.Put(&store.Record{Key: store.Key{Type: "Thing", Name: name}, Origin: s.zone})), err
	})
	return err
}

func TestLesson5_AZoneThatConnectsToAnotherReplicaIsReplacedThere(t *testing.T) {
	for name, session := range map[string][2]string{"a Meridian zone": {"1", "2"}, "a Kuma zone, which names no session": {}} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPlane()
				a, b := p.start(t, "a"), p.start(t, "b")
				plane := ""
				if session[0] != "" {
					plane = "p"
				}
				first := a.hello(t, "zone-1", plane, session[0])
				down, downA := a.open(t, GlobalToZone, first)
				up, upA := a.open(t, ZoneToGlobal, first)
				synctest.Wait()
				if h := b.holder("zone-1"); h.Instance != "a" || !h.Online() || h.Number != 1 {
					t.Fatalf("b reads %+v", h)
				}
				if live, ok := b.Live(b.st.Snapshot(), "zone-1"); !ok || !live.Online || live.URL != "grpc://"+first.Address || live.ConnectedSince.IsZero() {
					t.Errorf("b shows %+v", live)
				}

				time.Sleep(time.Second)
				second := b.hello(t, "zone-1", plane, session[1])
				_, downB := b.open(t, GlobalToZone, second)
				_, upB := b.open(t, ZoneToGlobal, second)
				synctest.Wait()
				for _, ctx := range []context.Context{down, up} {
					if !errors.Is(context.Cause(ctx), ErrReplaced) {
						t.Errorf("a stream of the older connection: %v", context.Cause(ctx))
					}
				}
				if n := a.counter(t, "meridian_zones_session_swaps_total"); n != 1 {
					t.Errorf("%v swaps counted", n)
				}
				// What the older connection is late with changes nothing.
				downA.Sent(resource.Mesh)
				downA.Close(ErrReplaced)
				upA.Close(ErrReplaced)
				time.Sleep(time.Minute)
				synctest.Wait()
				h := a.holder("zone-1")
				if h.Instance != "b" || !h.Online() || h.Number != 2 || h.Lost {
					t.Errorf("the session is %+v", h)
				}
				if d := cmp.Diff([]string{"a", "b*"}, ids(a.stored(t, "zone-1"))); d != "" {
					t.Errorf("subscriptions: %s", d)
				}
				if streams := b.stored(t, "zone-1").GetKdsStreams(); streams.GetGlobalToZone().GetGlobalInstanceId() != "b" {
					t.Errorf("streams: %v", streams)
				}
				if err := a.guarded(upA, "late"); !errors.Is(err, ErrReplaced) {
					t.Errorf("a batch of the older connection: %v", err)
				}
				if err := b.guarded(upB, "new"); err != nil {
					t.Errorf("a batch of the newer one: %v", err)
				}
				downB.Close(nil)
				upB.Close(nil)
				synctest.Wait()
				if live, _ := a.Live(a.st.Snapshot(), "zone-1"); live.Online {
					t.Errorf("a shows %+v after the end", live)
				}
			})
		})
	}
}

// Lesson 43, over replicas.
func TestLesson43_AnotherPlaneUnderTheNameIsRefusedWhereverItConnects(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane()
		a, b := p.start(t, "a"), p.start(t, "b")
		ctx, s := a.open(t, GlobalToZone, a.hello(t, "zone-1", "p", "1"))
		synctest.Wait()
		for _, plane := range []string{"q", ""} {
			if _, _, err := b.Open(t.Context(), GlobalToZone, b.hello(t, "zone-1", plane, "2")); !errors.Is(err, ErrNameTaken) || !strings.Contains(err.Error(), "10.0.0.1:1") {
				t.Errorf("plane %q: %v", plane, err)
			}
		}
		if ctx.Err() != nil {
			t.Errorf("the first: %v", context.Cause(ctx))
		}
		if n := b.counter(t, "meridian_zones_refused_total"); n != 2 {
			t.Errorf("%v counted as refused", n)
		}
		s.Close(nil)
		synctest.Wait()
		other, s2 := b.open(t, GlobalToZone, b.hello(t, "zone-1", "q", "3"))
		synctest.Wait()
		if h := a.holder("zone-1"); h.Plane != "q" || other.Err() != nil {
			t.Errorf("once the first has gone: %+v, %v", h, context.Cause(other))
		}
		s2.Close(nil)
	})
}

// Two planes that connect before either replica can see the other's: the store decides.
func TestOfTwoPlanesAtTheSameTimeTheFirstCommitWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane()
		a, b := p.start(t, "a"), p.start(t, "b")
		ha := a.hello(t, "zone-1", "p", "1")
		synctest.Wait()
		hb := b.hello(t, "zone-1", "q", "2")
		ctxA, sa := a.open(t, GlobalToZone, ha)
		ctxB, sb := b.open(t, GlobalToZone, hb) // nothing ran since
		upB, usb := b.open(t, ZoneToGlobal, hb)
		synctest.Wait()
		lost, refused := ctxB, ctxA
		if h := a.holder("zone-1"); h.Instance == "a" {
			lost, refused = ctxA, ctxB
			if err := b.guarded(usb, "thing"); !errors.Is(err, ErrNameTaken) || !errors.Is(context.Cause(upB), ErrNameTaken) {
				t.Errorf("what the refused one brings: %v, its stream: %v", err, context.Cause(upB))
			}
		}
		if lost.Err() != nil || !errors.Is(context.Cause(refused), ErrNameTaken) {
			t.Errorf("winner %v, other %v", context.Cause(lost), context.Cause(refused))
		}
		sa.Close(nil)
		sb.Close(nil)
		usb.Close(nil)
		synctest.Wait()
		if in := a.stored(t, "zone-1"); len(in.GetSubscriptions()) != 1 {
			t.Errorf("subscriptions: %v", ids(in))
		}
	})
}

func TestABatchFromAZoneClaimsItWhereThatHasNotBeenDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane()
		a, b := p.start(t, "a"), p.start(t, "b")
		old, olds := a.open(t, ZoneToGlobal, a.hello(t, "zone-1", "p", "1"))
		if err := a.guarded(olds, "one"); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		_, s := b.open(t, ZoneToGlobal, b.hello(t, "zone-1", "p", "2"))
		if err := b.guarded(s, "two"); err != nil {
			t.Fatal(err)
		}
		if h := b.holder("zone-1"); h.Instance != "b" || h.Session != "2" || h.Number != 2 {
			t.Errorf("after the batch: %+v", h)
		}
		if err := a.guarded(olds, "three"); !errors.Is(err, ErrReplaced) { // whatever a has seen by now
			t.Errorf("a batch of the older connection: %v", err)
		}
		synctest.Wait()
		if !errors.Is(context.Cause(old), ErrReplaced) {
			t.Errorf("the older connection: %v", context.Cause(old))
		}
		s.Close(nil)
		olds.Close(nil)
	})
}

// A session that is over must not come back with what it was late to store.
func TestABatchThatComesAfterTheEndOfItsSessionClaimsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane()
		a := p.start(t, "a")
		h := a.hello(t, "zone-1", "p", "1")
		p.database.SetAway(errCut)
		_, s := a.open(t, ZoneToGlobal, h)
		s.Close(nil)
		p.database.SetAway(nil)
		if _, err := s.Guard(a.st.Snapshot()); !errors.Is(err, ErrReplaced) {
			t.Errorf("guard: %v", err)
		}
	})
}

func TestLesson30_WhatAReplicaThatDiedLeftOpenIsClosedByTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane()
		a, b, c := p.start(t, "a"), p.start(t, "b"), p.start(t, "c")
		a.open(t, GlobalToZone, a.hello(t, "zone-1", "p", "1"))
		ctx, s := b.open(t, GlobalToZone, b.hello(t, "zone-2", "q", "2"))
		synctest.Wait()
		a.kill()
		time.Sleep(4500 * time.Millisecond)
		if h := c.holder("zone-1"); !h.Online() {
			t.Fatalf("before anybody knows: %+v", h)
		}
		p.members.set("a", true)
		synctest.Wait()
		if h := c.holder("zone-1"); h.Live() || h.Lost {
			t.Errorf("the session of the dead replica: %+v", h)
		}
		if n := openSubscriptions(c.stored(t, "zone-1")); n != 0 {
			t.Errorf("%d subscriptions of the dead replica are open", n)
		}
		if _, lost := c.st.Snapshot().Get(kds.LostZoneKey("zone-1")); lost {
			t.Error("the zone is lost with the replica")
		}
		if h := c.holder("zone-2"); !h.Online() || ctx.Err() != nil {
			t.Errorf("the session of another: %+v, %v", h, context.Cause(ctx))
		}
		rev := c.st.Snapshot().Revision()
		time.Sleep(time.Hour)
		if now := c.st.Snapshot().Revision(); now != rev {
			t.Errorf("%d batches in an hour in which nothing happened", now-rev)
		}
		s.Close(nil)
	})
}

// What a replica was about to say when it died may come to light after its death was dealt with, or before it was ever heard of.
func TestASessionThatTurnsUpOfADeadReplicaIsClosedToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane()
		b := p.start(t, "b")
		p.members.set("a", true)
		a := p.start(t, "a")
		a.open(t, GlobalToZone, a.hello(t, "zone-1", "p", "1"))
		synctest.Wait()
		a.kill()
		time.Sleep(closeAgain + time.Second)
		if h := b.holder("zone-1"); h.Live() {
			t.Errorf("the session: %+v", h)
		}
		if in := b.stored(t, "zone-1"); openSubscriptions(in) != 0 {
			t.Errorf("subscriptions: %v", ids(in))
		}
	})
}

func TestAReplicaThatIsWronglyTakenForDeadAssertsItsSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane()
		a, b := p.start(t, "a"), p.start(t, "b")
		h := a.hello(t, "zone-1", "p", "1")
		ctx, s := a.open(t, GlobalToZone, h)
		_, up := a.open(t, ZoneToGlobal, h)
		synctest.Wait()
		id := a.stored(t, "zone-1").GetSubscriptions()[0].GetId()
		p.members.set("a", true)
		synctest.Wait()
		if !strings.Contains(a.log.String(), "takes this one for dead") {
			t.Fatal("the session was not closed at all")
		}
		if h := b.holder("zone-1"); !h.Online() || h.Number != 1 || ctx.Err() != nil {
			t.Errorf("the session: %+v, %v", h, context.Cause(ctx))
		}
		if in := b.stored(t, "zone-1"); openSubscriptions(in) != 1 || len(in.GetSubscriptions()) != 1 || in.GetSubscriptions()[0].GetId() != id {
			t.Errorf("subscriptions: %v", in.GetSubscriptions())
		}
		if err := a.guarded(up, "thing"); err != nil {
			t.Errorf("a batch: %v", err)
		}
		synctest.Wait()
		rev := b.st.Snapshot().Revision()
		time.Sleep(closeAgain - time.Second)
		if n := b.st.Snapshot().Revision() - rev; n != 0 {
			t.Errorf("%d batches while each replica keeps to its belief", n)
		}
		s.Close(nil)
		up.Close(nil)
	})
}

func TestLesson30_AReplicaThatComesBackUnderItsNameClosesWhatItLeftOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane()
		a, b := p.start(t, "a"), p.start(t, "b")
		a.open(t, GlobalToZone, a.hello(t, "zone-1", "p", "1"))
		ctx, s := b.open(t, GlobalToZone, b.hello(t, "zone-2", "q", "2"))
		synctest.Wait()
		a.kill()
		a = p.start(t, "a")
		if h := a.holder("zone-1"); h.Live() || openSubscriptions(a.stored(t, "zone-1")) != 0 {
			t.Errorf("left open: %+v", h)
		}
		if h := a.holder("zone-2"); !h.Online() || openSubscriptions(a.stored(t, "zone-2")) != 1 || ctx.Err() != nil {
			t.Errorf("another replica's: %+v", h)
		}
		_, again := a.open(t, GlobalToZone, a.hello(t, "zone-1", "p", "3"))
		synctest.Wait()
		if d := cmp.Diff([]string{"a", "a*"}, ids(b.stored(t, "zone-1"))); d != "" {
			t.Error(d)
		}
		again.Close(nil)
		s.Close(nil)
	})
}

func TestAReplicaThatStopsLeavesNothingOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane()
		a, b := p.start(t, "a"), p.start(t, "b")
		a.open(t, GlobalToZone, a.hello(t, "zone-1", "p", "1"))
		synctest.Wait()
		a.stop()
		synctest.Wait()
		if h := b.holder("zone-1"); h.Live() || h.Lost || openSubscriptions(b.stored(t, "zone-1")) != 0 {
			t.Errorf("left open: %+v, %v", h, ids(b.stored(t, "zone-1")))
		}
	})
}

func TestWhileTheStoreIsAwayZonesAreAdmittedAndClaimedLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane()
		a, b := p.start(t, "a"), p.start(t, "b")
		kept, s1 := a.open(t, GlobalToZone, a.hello(t, "zone-1", "p", "1"))
		moved, s2 := a.open(t, GlobalToZone, a.hello(t, "zone-2", "q", "2"))
		h := a.hello(t, "zone-3", "r", "3")
		synctest.Wait()
		p.database.SetAway(errors.New("away"))
		_, s2b := b.open(t, GlobalToZone, b.hello(t, "zone-2", "q", "4"))
		_, s3 := a.open(t, GlobalToZone, h)
		time.Sleep(time.Minute)
		if live, _ := a.Live(a.st.Snapshot(), "zone-3"); !live.Online || kept.Err() != nil || moved.Err() != nil {
			t.Errorf("zone-3 is shown as %+v; streams: %v, %v", live, context.Cause(kept), context.Cause(moved))
		}
		if in, ok := a.Insight("zone-3"); !ok || openSubscriptions(in) != 1 {
			t.Errorf("insight of zone-3: %v", in)
		}
		p.database.SetAway(nil)
		time.Sleep(3 * time.Second)
		synctest.Wait()
		if kept.Err() != nil || !errors.Is(context.Cause(moved), ErrReplaced) {
			t.Errorf("streams: %v, %v", context.Cause(kept), context.Cause(moved))
		}
		for zone, instance := range map[string]string{"zone-1": "a", "zone-2": "b", "zone-3": "a"} {
			if h := a.holder(zone); h.Instance != instance || !h.Online() || openSubscriptions(b.stored(t, zone)) != 1 {
				t.Errorf("%s: %+v, %v", zone, h, ids(b.stored(t, zone)))
			}
		}
		for _, s := range []*Stream{s1, s2, s2b, s3} {
			s.Close(nil)
		}
	})
}

func TestADatabaseThatForgotASessionIsToldAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane()
		a, b := p.start(t, "a"), p.start(t, "b")
		h := a.hello(t, "zone-1", "p", "1")
		synctest.Wait()
		restore := p.database.Backup()
		ctx, s := a.open(t, GlobalToZone, h)
		synctest.Wait()
		restore()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if h := b.holder("zone-1"); h.Instance != "a" || !h.Online() || ctx.Err() != nil {
			t.Errorf("after the restore: %+v, %v", h, context.Cause(ctx))
		}
		// and what happens to the session afterwards is still seen
		_, s2 := b.open(t, GlobalToZone, b.hello(t, "zone-1", "p", "2"))
		synctest.Wait()
		if !errors.Is(context.Cause(ctx), ErrReplaced) {
			t.Errorf("the older connection: %v", context.Cause(ctx))
		}
		s.Close(nil)
		s2.Close(nil)
	})
}

func TestADeletedZoneEndsItsSessionWhereverThatIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane()
		a, b := p.start(t, "a"), p.start(t, "b")
		h := a.hello(t, "zone-1", "p", "1")
		ctx, s := a.open(t, GlobalToZone, h)
		synctest.Wait()
		if err := b.End(t.Context(), "zone-1"); err != nil {
			t.Fatal(err)
		}
		s.Sent(resource.Mesh) // something is dirty
		b.update(t, store.Delete(zoneKey("zone-1")), store.Delete(insightKey("zone-1")), store.Delete(holderKey("zone-1")))
		time.Sleep(time.Minute)
		synctest.Wait()
		if !errors.Is(context.Cause(ctx), ErrZoneDeleted) {
			t.Errorf("the stream: %v", context.Cause(ctx))
		}
		for _, key := range []store.Key{holderKey("zone-1"), insightKey("zone-1")} {
			if _, ok := b.st.Snapshot().Get(key); ok {
				t.Errorf("%s is there without its Zone", key)
			}
		}
		// Nor does the session of the old Zone become that of a new one.
		b.zone(t, "zone-1")
		if _, _, err := a.Open(t.Context(), GlobalToZone, h); err == nil {
			synctest.Wait()
		}
		time.Sleep(time.Minute)
		if h, ok := HolderOf(b.st.Snapshot(), "zone-1"); ok {
			t.Errorf("the new Zone has the session %+v", h)
		}
		s.Close(nil)
	})
}

func TestWhichZonesAreLostIsTheSameFromEveryReplica(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane()
		a, b := p.start(t, "a"), p.start(t, "b")
		open := map[string]*Stream{}
		for i, r := range []*replica{a, a, b, b, b} {
			zone := fmt.Sprint("zone-", i)
			_, open[zone] = r.open(t, GlobalToZone, r.hello(t, zone, zone, fmt.Sprint(i)))
		}
		want := func(when string, zones ...string) {
			t.Helper()
			synctest.Wait()
			var got []string
			for rec := range a.st.Snapshot().List(kds.LostZoneKey("").Type, "") {
				got = append(got, rec.Key.Name)
			}
			if d := cmp.Diff(zones, got); d != "" {
				t.Errorf("%s: %s", when, d)
			}
		}
		want("while all are connected")
		open["zone-0"].Close(nil)
		want("one was lost by a", "zone-0")
		open["zone-2"].Close(nil)
		want("another was lost by b", "zone-0", "zone-2")
		open["zone-3"].Close(nil)
		want("more are lost than are connected")
		h := a.hello(t, "zone-3", "zone-3", "again") // with the other replica now
		_, open["zone-3"] = a.open(t, ZoneToGlobal, h)
		if err := a.guarded(open["zone-3"], "thing"); err != nil {
			t.Fatal(err)
		}
		want("one is here again, by what it brings", "zone-0", "zone-2")
		open["zone-0"], open["zone-2"] = nil, nil
		b.kill()
		p.members.set("b", true)
		want("a replica has died, and its zones with it", "zone-0", "zone-2")
		if h := a.holder("zone-4"); h.Live() || h.Lost {
			t.Errorf("the zone of the dead replica: %+v", h)
		}
		_, open["zone-2"] = a.open(t, GlobalToZone, a.hello(t, "zone-2", "zone-2", "again"))
		want("a lost zone has come to the other replica", "zone-0")
		for _, zone := range []string{"zone-1", "zone-2", "zone-3"} {
			open[zone].Close(nil)
		}
	})
}

func TestTheNewestSubscriptionsOfAllReplicasAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane()
		a, b := p.start(t, "a"), p.start(t, "b")
		var last *Stream
		for i := range 8 {
			r := []*replica{a, b}[i%2]
			_, last = r.open(t, GlobalToZone, r.hello(t, "zone-1", "p", fmt.Sprint(i)))
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if d := cmp.Diff([]string{"b", "a", "b", "a", "b*"}, ids(a.stored(t, "zone-1"))); d != "" {
			t.Error(d)
		}
		last.Close(nil)
	})
}

// One that the store comes to know late takes its place, and not that of the newest.
func TestAnOldSubscriptionThatIsStoredLateIsNotTheNewest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane()
		a, b := p.start(t, "a"), p.start(t, "b")
		h := a.hello(t, "zone-1", "p", "1")
		synctest.Wait()
		a.cable.cut.Store(true)
		ctx, s := a.open(t, GlobalToZone, h)
		time.Sleep(time.Second)
		s.Subscribed(kds.Node{InstanceID: "early"})
		s.Close(nil)
		time.Sleep(10 * time.Second)
		_, s2 := b.open(t, GlobalToZone, b.hello(t, "zone-1", "p", "2"))
		synctest.Wait()
		a.cable.cut.Store(false)
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if d := cmp.Diff([]string{"a", "b*"}, ids(b.stored(t, "zone-1"))); d != "" {
			t.Error(d)
		}
		if h := b.holder("zone-1"); h.Instance != "b" || !h.Online() || ctx.Err() == nil {
			t.Errorf("the session: %+v", h)
		}
		s2.Close(nil)
	})
}

// A session takes the zone over whole, also from a replica that is in no state to write.
func TestAClaimClosesWhatTheOtherReplicaHasOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane()
		a, b := p.start(t, "a"), p.start(t, "b")
		ctx, s := a.open(t, GlobalToZone, a.hello(t, "zone-1", "p", "1"))
		synctest.Wait()
		a.cable.cut.Store(true)
		time.Sleep(time.Second)
		_, s2 := b.open(t, GlobalToZone, b.hello(t, "zone-1", "p", "2"))
		synctest.Wait()
		if d := cmp.Diff([]string{"a", "b*"}, ids(b.stored(t, "zone-1"))); d != "" || ctx.Err() != nil {
			t.Errorf("while a does not know, its stream %v: %s", context.Cause(ctx), d)
		}
		a.cable.cut.Store(false)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if !errors.Is(context.Cause(ctx), ErrReplaced) {
			t.Errorf("once it knows: %v", context.Cause(ctx))
		}
		s.Close(nil)
		s2.Close(nil)
	})
}

func TestASessionThatEndsWhileItIsBeingStoredEndsInTheStoreToo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane()
		a := p.start(t, "a")
		h := a.hello(t, "zone-1", "p", "1")
		other := p.database.Replica()
		if _, err := other.Lock(t.Context()); err != nil { // a waits for its turn
			t.Fatal(err)
		}
		_, s := a.open(t, GlobalToZone, h)
		synctest.Wait()
		s.Close(nil)
		other.Unlock(t.Context())
		synctest.Wait()
		if h := a.holder("zone-1"); h.Live() || !h.Lost || openSubscriptions(a.stored(t, "zone-1")) != 0 {
			t.Errorf("the session: %+v, %v", h, ids(a.stored(t, "zone-1")))
		}
	})
}

// An insight from before there were records of sessions is closed as well.
func TestSubscriptionsWithoutARecordAreClosedWithTheirReplica(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPlane()
		b := p.start(t, "b")
		b.zone(t, "zone-1")
		op, err := putInsight(b.st.Snapshot(), "zone-1", &systemv1.ZoneInsight{Subscriptions: []*systemv1.KDSSubscription{
			{Id: "1", GlobalInstanceId: "a", ConnectTime: timestamppb.Now()}, {Id: "2", GlobalInstanceId: "c", ConnectTime: timestamppb.Now()},
		}})
		if err != nil {
			t.Fatal(err)
		}
		b.update(t, op)
		c := p.start(t, "c")
		if d := cmp.Diff([]string{"a*", "c"}, ids(c.stored(t, "zone-1"))); d != "" {
			t.Error(d)
		}
		p.members.set("a", true)
		synctest.Wait()
		if d := cmp.Diff([]string{"a", "c"}, ids(c.stored(t, "zone-1"))); d != "" {
			t.Error(d)
		}
	})
}
