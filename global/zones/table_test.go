package zones

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/config"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
	"github.com/meridian-mesh/meridian/sync/kds"
)

// rig is a running table over a store in memory.
type rig struct {
	*Table
	st  *store.Store
	reg *prometheus.Registry
	log *strings.Builder
}

func newRig(t testing.TB) *rig {
	t.Helper()
	st, err := store.Open(t.Context(), memory.New(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return runTable(t, st)
}

func runTable(t testing.TB, st *store.Store, change ...func(*Config)) *rig {
	t.Helper()
	r := &rig{st: st, reg: prometheus.NewRegistry(), log: &strings.Builder{}}
	var err error
	cfg := Config{
		InstanceID: "global-1", HealthTimeout: 6 * time.Second, InsightInterval: 10 * time.Second, SubscriptionLimit: 3,
	}
	for _, c := range change {
		c(&cfg)
	}
	r.Table, err = New(t.Context(), cfg, st, r.reg, slog.New(slog.NewTextHandler(r.log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// zone makes the Zone, as the server does before it opens a stream, and returns a hello of it.
func (r *rig) zone(t testing.TB, name string) Hello {
	t.Helper()
	key := store.Key{Type: string(resource.ZoneType), Name: name}
	if _, ok := r.st.Snapshot().Get(key); !ok {
		spec, err := proto.Marshal(&systemv1.Zone{Enabled: wrapperspb.Bool(true)})
		if err != nil {
			t.Fatal(err)
		}
		r.update(t, store.Put(&store.Record{Key: key, Spec: spec}))
	}
	rec, _ := r.st.Snapshot().Get(key)
	return Hello{Zone: name, Address: "10.0.0.1:1", Created: rec.CreateRevision}
}

func (r *rig) update(t testing.TB, ops ...store.Op) {
	t.Helper()
	if _, err := r.st.Update(t.Context(), func(*store.Snapshot) ([]store.Op, error) { return ops, nil }); err != nil {
		t.Fatal(err)
	}
}

func (r *rig) open(t testing.TB, kind Kind, h Hello) (context.Context, *Stream) {
	t.Helper()
	ctx, s, err := r.Open(t.Context(), kind, h)
	if err != nil {
		t.Fatalf("open %s of %s: %v", kind, h.Zone, err)
	}
	return ctx, s
}

// counter is the sum of a metric over its labels.
func (r *rig) counter(t *testing.T, name string) (sum float64) {
	t.Helper()
	families, err := r.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}

// stored is the insight in the store.
func (r *rig) stored(t *testing.T, zone string) *systemv1.ZoneInsight {
	t.Helper()
	in := &systemv1.ZoneInsight{}
	rec, ok := r.st.Snapshot().Get(store.Key{Type: string(resource.ZoneInsight), Name: zone})
	if !ok {
		return nil
	}
	if err := proto.Unmarshal(rec.Spec, in); err != nil {
		t.Fatal(err)
	}
	return in
}

func openSubscriptions(in *systemv1.ZoneInsight) (n int) {
	for _, s := range in.GetSubscriptions() {
		if s.GetDisconnectTime() == nil {
			n++
		}
	}
	return n
}

func allKinds() []Kind { return []Kind{GlobalToZone, ZoneToGlobal, XDSConfigs, Stats, Clusters} }

func TestWhichOfTwoConnectionsWins(t *testing.T) {
	tests := map[string]struct {
		first, second Hello
		refused       error
		firstEnds     error
	}{
		"the newest connection of one plane": {
			Hello{PlaneID: "a", Session: "1"}, Hello{PlaneID: "a", Session: "2"}, nil, ErrReplaced,
		},
		"the first of two planes": {
			Hello{PlaneID: "a", Session: "1"}, Hello{PlaneID: "b", Session: "2"}, ErrNameTaken, nil,
		},
		"a Meridian plane over a Kuma zone that borrows its name": {
			Hello{PlaneID: "a", Session: "1"}, Hello{}, ErrNameTaken, nil,
		},
		"the newest of two Kuma zones": {
			Hello{}, Hello{Address: "10.0.0.2:2"}, nil, ErrReplaced,
		},
		"a Meridian plane over the Kuma zone that it replaces": {
			Hello{}, Hello{PlaneID: "a", Session: "1"}, nil, ErrReplaced,
		},
		"neither of two streams of one connection, but the newer stream": {
			Hello{PlaneID: "a", Session: "1"}, Hello{PlaneID: "a", Session: "1"}, nil, ErrReplaced,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				base := r.zone(t, "zone-1")
				hello := func(h Hello) Hello {
					h.Zone, h.Created = base.Zone, base.Created
					return h
				}
				ctx, first := r.open(t, GlobalToZone, hello(tt.first))
				_, second, err := r.Open(t.Context(), GlobalToZone, hello(tt.second))
				if !errors.Is(err, tt.refused) {
					t.Fatalf("second: %v, want %v", err, tt.refused)
				}
				if got := context.Cause(ctx); !errors.Is(got, tt.firstEnds) {
					t.Errorf("first: %v, want %v", got, tt.firstEnds)
				}
				// However late the loser's handler comes to its end, the winner is online.
				if tt.firstEnds != nil {
					first.Close(tt.firstEnds)
					first = second
				}
				if live, _ := r.Live(r.st.Snapshot(), "zone-1"); !live.Online {
					t.Error("the zone is offline while the winner is connected")
				}
				first.Close(nil)
				if live, _ := r.Live(r.st.Snapshot(), "zone-1"); live.Online {
					t.Error("the zone is online without a stream")
				}
			})
		})
	}
}

func TestASessionThatWasReplacedDoesNotComeBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		old := r.zone(t, "zone-1")
		old.PlaneID, old.Session = "a", "1"
		newer := old
		newer.Session = "2"
		r.open(t, GlobalToZone, old)
		_, s := r.open(t, GlobalToZone, newer)
		if _, _, err := r.Open(t.Context(), ZoneToGlobal, old); !errors.Is(err, ErrReplaced) {
			t.Errorf("another stream of the old connection: %v", err)
		}
		if err := r.Health(old); !errors.Is(err, ErrReplaced) {
			t.Errorf("a health check of the old connection: %v", err)
		}
		if err := r.Health(newer); err != nil {
			t.Errorf("a health check of the new one: %v", err)
		}
		s.Close(nil)
	})
}

// A Kuma zone tells nobody which of its streams belong together, so they are replaced one by one.
func TestAReconnectingKumaZoneIsNotTakenForTwo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		h := r.zone(t, "zone-1")
		var last []*Stream
		for i := range 3 { // two reconnects while the older connection hangs
			h.Address = fmt.Sprintf("10.0.0.%d:1", i)
			last = nil
			for _, kind := range allKinds() {
				_, s := r.open(t, kind, h)
				last = append(last, s)
			}
		}
		if strings.Contains(r.log.String(), "two zones under one name") {
			t.Error("two reconnects were flagged as two zones")
		}
		if live, _ := r.Live(r.st.Snapshot(), "zone-1"); live.URL != "grpc://10.0.0.2:1" {
			t.Errorf("the address shown is %s, of a connection that is gone", live.URL)
		}
		if got := r.counter(t, "meridian_zones_session_swaps_total"); got != 2 {
			t.Errorf("%v swaps counted for two", got)
		}
		for i := range 2 { // a fourth within a minute: two zones take turns
			h.Address = fmt.Sprintf("10.0.1.%d:1", i)
			last = nil
			for _, kind := range allKinds() {
				_, s := r.open(t, kind, h)
				last = append(last, s)
			}
		}
		if !strings.Contains(r.log.String(), "two zones under one name") {
			t.Error("four swaps within a minute were not flagged")
		}
		for _, s := range last {
			s.Close(nil)
		}
	})
}

func TestAZoneThatStopsItsHealthChecksIsCut(t *testing.T) {
	tests := map[string]struct {
		pings  bool
		checks bool
		cut    bool
	}{
		"it announced them and stopped":   {pings: true, cut: true},
		"it announced them and goes on":   {pings: true, checks: true},
		"it never announced any":          {},
		"it sends some without a promise": {checks: true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t)
				h := r.zone(t, "zone-1")
				h.PlaneID, h.Session, h.Pings = "a", "1", tt.pings
				ctx, s := r.open(t, GlobalToZone, h)
				for range 30 {
					time.Sleep(2 * time.Second)
					if tt.checks {
						if err := r.Health(h); err != nil {
							t.Fatal(err)
						}
					}
				}
				if cut := errors.Is(context.Cause(ctx), ErrHealthLost); cut != tt.cut {
					t.Errorf("cut is %v", cut)
				}
				if live, _ := r.Live(r.st.Snapshot(), "zone-1"); live.Online == tt.cut {
					t.Errorf("online is %v", live.Online)
				}
				s.Close(nil)
			})
		})
	}
}

// Lesson 25: six streams and two writers, one insight, written once.
func TestLesson25_InsightsAreStoredAtOnceOnConnectAndThenAtABoundedRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		hellos := make([]Hello, 20)
		for i := range hellos {
			hellos[i] = r.zone(t, fmt.Sprint("zone-", i))
			hellos[i].PlaneID, hellos[i].Session = fmt.Sprint("p", i), fmt.Sprint("s", i)
		}
		synctest.Wait()
		before := r.st.Snapshot().Revision()
		var streams []*Stream
		for _, h := range hellos {
			for _, kind := range allKinds() {
				_, s := r.open(t, kind, h)
				streams = append(streams, s)
			}
		}
		synctest.Wait()
		for _, h := range hellos {
			if in := r.stored(t, h.Zone); openSubscriptions(in) != 1 || in.GetKdsStreams().GetClusters() == nil {
				t.Errorf("stored of %s: %v", h.Zone, in)
			}
		}
		connected := r.st.Snapshot().Revision()
		if connected-before > 20 {
			t.Errorf("%d commits for %d streams of 20 zones", connected-before, len(streams))
		}
		for range 100 { // ten seconds
			for _, s := range streams {
				if s.kind == GlobalToZone {
					s.Sent(resource.Mesh)
					s.Acked(resource.Mesh)
				}
			}
			time.Sleep(100 * time.Millisecond)
		}
		synctest.Wait()
		if n := r.st.Snapshot().Revision() - connected; n < 1 || n > 2 {
			t.Errorf("%d commits in ten seconds of counting", n)
		}
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if got := r.stored(t, "zone-7").GetSubscriptions()[0].GetStatus().GetTotal(); got.GetResponsesSent() != 100 || got.GetResponsesAcknowledged() != 100 {
			t.Errorf("stored counters: %v", got)
		}
		for _, s := range streams {
			s.Close(nil)
		}
		synctest.Wait()
		for _, h := range hellos {
			if n := openSubscriptions(r.stored(t, h.Zone)); n != 0 {
				t.Errorf("%d subscriptions of %s are still open in the store", n, h.Zone)
			}
		}
	})
}

func TestTheNewestSubscriptionsAreKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		h := r.zone(t, "zone-1")
		var want []string
		for i := range 5 {
			h.PlaneID, h.Session = "a", fmt.Sprint(i)
			_, s := r.open(t, GlobalToZone, h)
			s.Subscribed(kds.Node{ID: "zone-1", InstanceID: fmt.Sprint("instance-", i), Config: "{}", Version: kds.Version{Version: "2.13.7"}})
			s.Close(nil)
			if i >= 2 {
				want = append(want, fmt.Sprint("instance-", i))
			}
		}
		synctest.Wait()
		var got []string
		for _, s := range r.stored(t, "zone-1").GetSubscriptions() {
			got = append(got, s.GetZoneInstanceId())
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
	})
}

// Lesson 30: nothing that a dead process left behind says "online".
func TestLesson30_WhatAnEarlierProcessLeftOpenIsClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, err := store.Open(t.Context(), memory.New(), store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		then := timestamppb.Now()
		closed := timestamppb.New(then.AsTime().Add(time.Second))
		spec, err := proto.Marshal(&systemv1.ZoneInsight{Subscriptions: []*systemv1.KDSSubscription{
			{Id: "1", ConnectTime: then, DisconnectTime: closed}, {Id: "2", ConnectTime: then}, {Id: "3", ConnectTime: then},
		}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := st.Update(t.Context(), func(*store.Snapshot) ([]store.Op, error) {
			return []store.Op{store.Put(&store.Record{Key: store.Key{Type: string(resource.ZoneInsight), Name: "zone-1"}, Spec: spec})}, nil
		}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		r := runTable(t, st)
		in := r.stored(t, "zone-1")
		if openSubscriptions(in) != 0 || !proto.Equal(in.GetSubscriptions()[0].GetDisconnectTime(), closed) {
			t.Errorf("after the start: %v", in)
		}
		if _, ok := r.Live(st.Snapshot(), "zone-1"); ok {
			t.Error("a zone that never connected to this process is known to it")
		}
	})
}

func TestLesson17_ADeletedZoneTakesItsSessionWithIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		h := r.zone(t, "zone-1")
		h.PlaneID, h.Session = "a", "1"
		ctx, s := r.open(t, GlobalToZone, h)
		synctest.Wait()
		r.update(t, store.Delete(store.Key{Type: string(resource.ZoneType), Name: "zone-1"}),
			store.Delete(store.Key{Type: string(resource.ZoneInsight), Name: "zone-1"}))
		synctest.Wait()
		if !errors.Is(context.Cause(ctx), ErrZoneDeleted) {
			t.Errorf("the stream: %v", context.Cause(ctx))
		}
		s.Close(ErrZoneDeleted)
		time.Sleep(time.Minute)
		synctest.Wait()
		if in := r.stored(t, "zone-1"); in != nil {
			t.Errorf("an insight without a zone: %v", in)
		}
		// It comes back, as another Zone, and what is still said of the old one does not touch it.
		again := r.zone(t, "zone-1")
		again.PlaneID, again.Session = "a", "2"
		ctx, s2 := r.open(t, GlobalToZone, again)
		s.Close(ErrZoneDeleted)
		synctest.Wait()
		if ctx.Err() != nil || openSubscriptions(r.stored(t, "zone-1")) != 1 {
			t.Errorf("the new session: %v, %v", context.Cause(ctx), r.stored(t, "zone-1"))
		}
		s2.Close(nil)
	})
}

func TestShutdownEndsEverythingAndAdmitsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		h := r.zone(t, "zone-1")
		ctx, s := r.open(t, GlobalToZone, h)
		r.Shutdown()
		if !errors.Is(context.Cause(ctx), ErrShutdown) {
			t.Errorf("the stream: %v", context.Cause(ctx))
		}
		if _, _, err := r.Open(t.Context(), ZoneToGlobal, h); !errors.Is(err, ErrShutdown) {
			t.Errorf("another stream: %v", err)
		}
		if err := r.Health(h); !errors.Is(err, ErrShutdown) {
			t.Errorf("a health check: %v", err)
		}
		s.Close(ErrShutdown)
		synctest.Wait()
		if n := openSubscriptions(r.stored(t, "zone-1")); n != 0 {
			t.Errorf("%d subscriptions stored as open", n)
		}
	})
}

func TestCompatibleVersions(t *testing.T) {
	for _, tt := range []struct {
		ours, theirs string
		want         bool
	}{
		{"2.13.7", "2.13.0", true},
		{"2.13.7", "2.11.4", true},
		{"2.13.7", "2.15.0", true},
		{"2.13.7", "2.10.9", false},
		{"2.13.7", "2.16.0", false},
		{"2.13.7", "1.13.7", false},
		{"2.13.7", "v2.12.1", true},
		{"2.13.7", "0.0.0-preview.vabc", false},
		{"2.13.7", "unknown", true},
		{"2.13.7", "", true},
		{"2.13.7", "2.x", true},
	} {
		if got := compatible(tt.ours, tt.theirs); got != tt.want {
			t.Errorf("compatible(%q, %q) = %v", tt.ours, tt.theirs, got)
		}
	}
}

// What a peer asks for must not make the insight grow.
func TestOnlyKnownTypesAreCountedByName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		_, s := r.open(t, GlobalToZone, r.zone(t, "zone-1"))
		for i := range 1000 {
			s.Sent(resource.Type(fmt.Sprint("Bogus", i)))
		}
		s.Sent(resource.Mesh)
		s.Rejected(resource.Mesh, "no")
		in, _ := r.Insight("zone-1")
		status := in.GetSubscriptions()[0].GetStatus()
		if len(status.GetStat()) != 1 || status.GetTotal().GetResponsesSent() != 1001 || status.GetStat()["Mesh"].GetResponsesRejected() != 1 {
			t.Errorf("%d types, total %v", len(status.GetStat()), status.GetTotal())
		}
		s.Close(nil)
	})
}

func TestASessionEndsWithItsToken(t *testing.T) {
	r := newRig(t)
	token := func(name string, raw config.Secret, life time.Duration) Hello {
		h := r.zone(t, name)
		h.Credential = Credential{Method: AuthToken, Token: raw, Expires: time.Now().Add(life)}
		return h
	}
	good, _ := r.open(t, GlobalToZone, token("zone-1", "good", time.Hour))
	revoked, _ := r.open(t, GlobalToZone, token("zone-2", "revoked", time.Hour))
	also, _ := r.open(t, ZoneToGlobal, token("zone-2", "revoked", time.Hour))
	exempt, _ := r.open(t, GlobalToZone, r.zone(t, "kuma-1"))
	short, stream := r.open(t, GlobalToZone, token("zone-3", "good", 10*time.Millisecond))

	r.Recheck(func(_ string, raw config.Secret) error {
		if raw == "revoked" {
			return errors.New("revoked")
		}
		return nil
	})
	for _, ctx := range []context.Context{revoked, also} {
		if !errors.Is(context.Cause(ctx), ErrTokenEnded) {
			t.Errorf("a stream with a revoked token: %v", context.Cause(ctx))
		}
	}
	if good.Err() != nil || exempt.Err() != nil {
		t.Errorf("other zones' streams ended: %v, %v", context.Cause(good), context.Cause(exempt))
	}
	<-short.Done()
	if !errors.Is(context.Cause(short), ErrTokenEnded) {
		t.Errorf("a stream whose token expired: %v", context.Cause(short))
	}
	stream.Close(context.Cause(short))
	if live, ok := r.Live(r.st.Snapshot(), "zone-1"); !ok || live.Auth != AuthToken || !live.Online {
		t.Errorf("zone-1 is shown as %+v", live)
	}
	if live, _ := r.Live(r.st.Snapshot(), "zone-2"); live.Online || live.Auth != "" {
		t.Errorf("zone-2 is shown as %+v", live)
	}
}
