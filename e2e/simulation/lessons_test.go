package simulation

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/storetest"
)

// Each test here is named after the number of a lesson that somebody else's synchronisation was taught by production
// (LESSONS.md says which, and lists those that have no test yet, with the reason).

// world starts a global and the named zones, and stops them at the end of the bubble.
func world(t *testing.T, zones ...string) (g *globalPlane, all []*zonePlane, stop func()) {
	t.Helper()
	g = newGlobal(t)
	g.start(t)
	for _, name := range zones {
		z := newZone(t, name, g)
		z.start(t)
		all = append(all, z)
	}
	settle(time.Second)
	return g, all, func() {
		for _, z := range all {
			z.stop()
		}
		g.stop()
	}
}

func converged(t *testing.T, g *globalPlane, all ...*zonePlane) {
	t.Helper()
	if d := diverged(g, all...); d != "" {
		t.Errorf("not converged:\n%s", d)
	}
}

func TestLesson01And02_LargeBurstsBothWaysDoNotStall(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _, stop := world(t)
		defer stop()
		for i := range 200 {
			for _, typ := range []resource.Type{"TrafficPermission", resource.Secret} {
				spec := permission(strings.Repeat("s", 4000))
				if typ == resource.Secret {
					spec = secret(i)
				}
				g.put(t, typ, "default", fmt.Sprint("r", i), spec)
			}
		}
		z := newZone(t, "zone-1", g)
		z.start(t)
		defer func() { z.stop() }()
		for i := range 200 {
			z.put(t, resource.Dataplane, "default", fmt.Sprint("dp", i), dataplane(strings.Repeat("9", 4000)))
		}
		settle(10 * time.Second)
		converged(t, g, z)

		// A peer that asks for 43 types with a megabyte of configuration each, and reads nothing meanwhile.
		raw := g.rawZone(t, "kuma-1")
		defer raw.close()
		s := raw.down()
		sent := make(chan error, 1)
		go func() {
			for i := range 43 {
				req := raw.ask(fmt.Sprint("Type", i))
				if all := resource.All(); i < len(all) {
					req = raw.ask(string(all[i].Name))
				}
				req.Node.Metadata.Fields["config"] = bigValue
				if err := s.Send(req); err != nil {
					sent <- err
					return
				}
			}
			sent <- nil
		}()
		time.Sleep(time.Second)
		for range 43 {
			if _, err := s.Recv(); err != nil {
				t.Fatalf("receive: %v", err)
			}
		}
		if err := <-sent; err != nil {
			t.Errorf("send: %v", err)
		}
	})
}

func TestLesson03And07_ALostAcknowledgementResetsTheStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _, stop := world(t)
		defer stop()
		raw := g.rawZone(t, "kuma-1")
		defer raw.close()
		s := raw.down()
		if err := s.Send(raw.ask("Mesh")); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Recv(); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		_, err := s.Recv()
		if status.Code(err) != codes.DeadlineExceeded || time.Since(began) > g.ackTimeout+time.Second {
			t.Errorf("after %s: %v", time.Since(began), err)
		}
	})
}

func TestLesson04And23_ConcurrentWritersOneStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, all, stop := world(t, "zone-1", "zone-2")
		defer stop()
		var wg sync.WaitGroup
		for w := range 8 {
			wg.Go(func() {
				for i := range 50 {
					g.put(t, "TrafficPermission", "default", fmt.Sprintf("w%d-%d", w, i%10), permission(fmt.Sprint(i)))
					all[w%2].put(t, resource.Dataplane, "default", fmt.Sprintf("w%d-%d", w, i%10), dataplane(fmt.Sprint(i)))
				}
			})
		}
		wg.Wait()
		settle(5 * time.Second)
		converged(t, g, all...)
	})
}

func TestLesson05And31_ClosingAnOlderStreamDoesNotTouchTheNewer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _, stop := world(t)
		defer stop()
		a, b := g.rawZone(t, "kuma-1"), g.rawZone(t, "kuma-1")
		defer a.close()
		defer b.close()
		// One after the other: which of two streams is the newer is decided by their arrival.
		subscribed := func(z *rawZone) grpc.BidiStreamingClient[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse] {
			s := z.down()
			if err := s.Send(z.ask("TrafficPermission")); err != nil {
				t.Fatal(err)
			}
			resp, err := s.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if err := s.Send(z.ack(resp)); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			return s
		}
		subscribed(a)
		sb := subscribed(b)
		a.close()
		settle(time.Second)
		g.put(t, "TrafficPermission", "default", "late", permission("*"))
		resp, err := sb.Recv()
		if err != nil || !slices.Equal(names(resp), []string{"late.default"}) {
			t.Fatalf("newer stream got %v, %v", names(resp), err)
		}
		if live, _ := g.table.Live(g.st.Snapshot(), "kuma-1"); !live.Online {
			t.Error("the zone is shown offline though a stream is open")
		}
	})
}

func TestLesson06_AStreamThatEndsWithOKIsOpenedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{conns: map[*link]string{}}
		f := &fakeGlobal{down: func(grpc.BidiStreamingServer[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]) error {
			return nil
		}}
		stop := f.start(n)
		defer stop()
		z := newZone(t, "zone-1", &globalPlane{net: n})
		z.start(t)
		defer func() { z.stop() }()
		settle(time.Minute)
		if f.opened() < 3 {
			t.Errorf("opened %d times in a minute", f.opened())
		}
	})
}

func TestLesson08_TheNewestConnectionWinsOverAFrozenOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, all, stop := world(t, "zone-1")
		defer stop()
		for _, l := range g.net.of("zone-1") {
			l.freeze()
		}
		// The same plane comes back on another connection while the global still holds the frozen one.
		twin := newZone(t, "zone-1", g)
		twin.backend = all[0].backend
		twin.st = all[0].st
		all[0].stop()
		twin.start(t)
		all[0] = twin
		settle(2 * time.Second)
		g.put(t, "TrafficPermission", "default", "a", permission("*"))
		settle(time.Second)
		converged(t, g, twin)
	})
}

func TestLesson09_AnUnknownTypeIsAnsweredAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _, stop := world(t)
		defer stop()
		raw := g.rawZone(t, "kuma-1")
		defer raw.close()
		began := time.Now()
		down := raw.down()
		if err := down.Send(raw.ask("Bogus")); err != nil {
			t.Fatal(err)
		}
		if resp, err := down.Recv(); err != nil || resp.GetTypeUrl() != "Bogus" || len(resp.GetResources()) != 0 {
			t.Errorf("request of an unknown type: %v, %v", resp, err)
		}
		up := raw.up()
		if err := up.Send(response("kuma-1", "Bogus", "1")); err != nil {
			t.Fatal(err)
		}
		for {
			req, err := up.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if req.GetTypeUrl() == "Bogus" {
				if req.GetErrorDetail() == nil {
					t.Error("a response of an unknown type was acknowledged")
				}
				break
			}
		}
		if d := time.Since(began); d > time.Second {
			t.Errorf("took %s", d)
		}
	})
}

func TestLesson10_AForeignOrEmptyGlobalDoesNotWipeAZone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, all, stop := world(t, "zone-1")
		defer stop()
		z := all[0]
		g.put(t, resource.Mesh, "", "m", meshSpec(1))
		g.put(t, "TrafficPermission", "m", "a", permission("*"))
		settle(time.Second)
		before := content(z.st.Snapshot().List("TrafficPermission", ""))
		g.stop()
		other := newGlobal(t)
		other.net, other.cluster = g.net, "cluster-2"
		other.start(t)
		settle(5 * time.Minute)
		if got := content(z.st.Snapshot().List("TrafficPermission", "")); len(got) != 1 || got["m/a"] != before["m/a"] {
			t.Errorf("the zone now has %v", got)
		}
		other.stop()
		// A plain Kuma global that has no cluster id yet is not believed either.
		f := &fakeGlobal{down: plainGlobal(nil, nil)}
		stopFake := f.start(g.net)
		settle(5 * time.Minute)
		stopFake()
		if got := z.st.Snapshot().Count("TrafficPermission", ""); got != 1 {
			t.Errorf("the zone now has %d permissions", got)
		}
		g.start(t)
		g.put(t, "TrafficPermission", "m", "b", permission("*"))
		settle(time.Minute)
		converged(t, g, z)
	})
}

func TestLesson12And36_OneBadResourceDoesNotBlockTheGoodOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _, stop := world(t)
		defer stop()
		raw := g.rawZone(t, "kuma-1")
		defer raw.close()
		s := raw.up()
		resp := response("kuma-1", "Dataplane", "1")
		for i := range 9 {
			resp.Resources = append(resp.Resources, wire(t, fmt.Sprint("dp", i), "default", dataplane("10.0.0.1"), nil))
		}
		bad := wire(t, "bad", "default", dataplane("10.0.0.1"), nil)
		var kr meshv1.KumaResource
		if err := proto.Unmarshal(bad.Resource.Value, &kr); err != nil {
			t.Fatal(err)
		}
		kr.Spec = nil
		bad.Resource.Value, _ = proto.Marshal(&kr)
		resp.Resources = append(resp.Resources, bad)
		nack := exchange(t, s, resp)
		if !strings.Contains(nack.GetErrorDetail().GetMessage(), "bad.default") {
			t.Errorf("the NACK does not name the bad one: %q", nack.GetErrorDetail().GetMessage())
		}
		if n := g.st.Snapshot().Count("Dataplane", "default"); n != 9 {
			t.Errorf("%d of 9 good ones stored", n)
		}
		fixed := exchange(t, s, response("kuma-1", "Dataplane", "2", wire(t, "bad", "default", dataplane("10.0.0.2"), nil)))
		if fixed.GetErrorDetail() != nil || g.st.Snapshot().Count("Dataplane", "default") != 10 {
			t.Errorf("mending it did not help: %v", fixed.GetErrorDetail())
		}
	})
}

// exchange sends a response and returns the answer to it.
func exchange(t testing.TB, s grpc.BidiStreamingClient[discoveryv3.DeltaDiscoveryResponse, discoveryv3.DeltaDiscoveryRequest], resp *discoveryv3.DeltaDiscoveryResponse) *discoveryv3.DeltaDiscoveryRequest {
	t.Helper()
	if err := s.Send(resp); err != nil {
		t.Fatalf("send: %v", err)
	}
	for {
		req, err := s.Recv()
		if err != nil {
			t.Fatalf("receive: %v", err)
		}
		if req.GetResponseNonce() == resp.GetNonce() && req.GetTypeUrl() == resp.GetTypeUrl() {
			return req
		}
	}
}

func TestLesson13_AFailingStoreFailsTheStreamAndNothingIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGlobal(t)
		healthy := g.backend
		var broken atomic.Bool
		g.backend = storetest.FailAppends(healthy, func(store.Group) error {
			if broken.Load() {
				return errors.New("disk full")
			}
			return nil
		})
		g.start(t)
		raw := g.rawZone(t, "kuma-1")
		s := raw.up()
		if ack := exchange(t, s, response("kuma-1", "Dataplane", "1", wire(t, "a", "default", dataplane("1.1.1.1"), nil))); ack.GetErrorDetail() != nil {
			t.Fatal(ack.GetErrorDetail())
		}
		broken.Store(true)
		if err := s.Send(response("kuma-1", "Dataplane", "2", wire(t, "b", "default", dataplane("1.1.1.1"), nil))); err != nil {
			t.Fatal(err)
		}
		for {
			req, err := s.Recv()
			if err != nil {
				if status.Code(err) != codes.Unavailable {
					t.Errorf("the stream ended with %v", err)
				}
				break
			}
			if req.GetResponseNonce() == "2" {
				t.Fatal("what was not stored was answered, not failed")
			}
		}
		raw.close()
		g.stop()
		broken.Store(false)
		g.start(t)
		defer func() { g.stop() }()
		raw = g.rawZone(t, "kuma-1")
		defer raw.close()
		exchange(t, raw.up(), response("kuma-1", "Dataplane", "1",
			wire(t, "a", "default", dataplane("1.1.1.1"), nil), wire(t, "b", "default", dataplane("1.1.1.1"), nil)))
		if n := g.st.Snapshot().Count("Dataplane", "default"); n != 2 {
			t.Errorf("%d dataplanes after the store was mended", n)
		}
	})
}

func TestLesson14_AnObjectInTheWayConcernsOnlyItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _, stop := world(t)
		defer stop()
		g.put(t, resource.ZoneIngress, "", "kuma-1.zi", ingress("1.1.1.1")) // an operator's own, under the very name
		raw := g.rawZone(t, "kuma-1")
		defer raw.close()
		s := raw.up()
		nack := exchange(t, s, response("kuma-1", "ZoneIngress", "1", wire(t, "zi", "", ingress("2.2.2.2"), nil), wire(t, "other", "", ingress("2.2.2.2"), nil)))
		if !strings.Contains(nack.GetErrorDetail().GetMessage(), "zi.: resource already exists") {
			t.Errorf("answer: %q", nack.GetErrorDetail().GetMessage())
		}
		snap := g.st.Snapshot()
		if rec, ok := snap.Get(store.Key{Type: "ZoneIngress", Name: "kuma-1.zi"}); !ok || rec.Origin != "" {
			t.Error("the operator's own was touched")
		}
		if _, ok := snap.Get(store.Key{Type: "ZoneIngress", Name: "kuma-1.other"}); !ok {
			t.Error("the other one was not stored")
		}
		if ack := exchange(t, s, response("kuma-1", "ZoneEgress", "2")); ack.GetErrorDetail() != nil {
			t.Error("the stream did not go on")
		}
	})
}

func TestLesson15And18_ReconnectingTenTimesWritesAndSendsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, all, stop := world(t, "zone-1", "zone-2")
		defer stop()
		g.put(t, "TrafficPermission", "default", "a", permission("*"))
		g.put(t, resource.Secret, "default", "s", secret(1))
		all[0].put(t, resource.ZoneIngress, "", "zi", ingress("1.1.1.1"))
		all[0].put(t, resource.Dataplane, "default", "dp", dataplane("1.1.1.1"))
		settle(5 * time.Second)
		before := all[0].st.Snapshot().Revision()
		rec, _ := g.st.Snapshot().Get(store.Key{Type: "Dataplane", Mesh: "default", Name: "zone-1.dp"})
		for range 10 {
			g.net.cut("zone-1")
			settle(30 * time.Second)
		}
		converged(t, g, all...)
		if after := all[0].st.Snapshot().Revision(); after != before {
			t.Errorf("the zone wrote %d times", after-before)
		}
		if again, _ := g.st.Snapshot().Get(rec.Key); again.Version != rec.Version {
			t.Error("the global rewrote the zone's dataplane")
		}
	})
}

func TestLesson16_TypesInAnyOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _, stop := world(t)
		defer stop()
		raw := g.rawZone(t, "kuma-1")
		defer raw.close()
		s := raw.up()
		for i, resp := range []*discoveryv3.DeltaDiscoveryResponse{
			response("kuma-1", "DataplaneInsight", "1", wire(t, "dp", "nowhere", insight(1), nil)),
			response("kuma-1", "Dataplane", "2", wire(t, "dp", "nowhere", dataplane("1.1.1.1"), nil)),
		} {
			if ack := exchange(t, s, resp); ack.GetErrorDetail() != nil {
				t.Errorf("%d: %v", i, ack.GetErrorDetail())
			}
		}
		if _, ok := g.st.Snapshot().Get(store.Key{Type: "Dataplane", Mesh: "nowhere", Name: "kuma-1.dp"}); !ok {
			t.Error("a dataplane of a mesh that the global lacks is not shown")
		}
	})
}

func TestLesson17_AZoneDeletedWhileConnectedComesBackWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, all, stop := world(t, "zone-1")
		defer stop()
		all[0].put(t, resource.Dataplane, "default", "dp", dataplane("1.1.1.1"))
		settle(time.Second)
		deleteZone(t, g, "zone-1")
		settle(time.Minute)
		converged(t, g, all...)
		if live, _ := g.table.Live(g.st.Snapshot(), "zone-1"); !live.Online {
			t.Error("the zone is not online again")
		}
	})
}

func TestLesson20_AnInsightIsSentAtMostOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, all, stop := world(t, "zone-1")
		defer stop()
		before := g.st.Snapshot().Revision()
		for i := range 500 { // ten seconds
			all[0].put(t, resource.DataplaneInsight, "default", "dp", insight(i))
			time.Sleep(20 * time.Millisecond)
		}
		settle(2 * time.Second)
		if n := g.st.Snapshot().Revision() - before; n > 13 {
			t.Errorf("%d writes on the global for ten seconds of changes", n)
		}
		converged(t, g, all...)
	})
}

func TestLesson21_OneChangeIsOneResourceOnTheWire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _, stop := world(t)
		defer stop()
		for i := range 1000 {
			g.put(t, "TrafficPermission", "default", fmt.Sprint("p", i), permission("*"))
		}
		raw := g.rawZone(t, "kuma-1")
		defer raw.close()
		s := raw.down()
		if err := s.Send(raw.ask("TrafficPermission")); err != nil {
			t.Fatal(err)
		}
		first, err := s.Recv()
		if err != nil || len(first.GetResources()) != 1000 {
			t.Fatalf("first response: %d, %v", len(first.GetResources()), err)
		}
		if err := s.Send(raw.ack(first)); err != nil {
			t.Fatal(err)
		}
		g.put(t, "TrafficPermission", "default", "p7", permission("web"))
		second, err := s.Recv()
		if err != nil || !slices.Equal(names(second), []string{"p7.default"}) || len(second.GetRemovedResources()) != 0 {
			t.Errorf("second response: %v, %v", names(second), err)
		}
	})
}

func TestLesson22_AThousandAbortedConnectionsLeaveNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _, stop := world(t)
		defer stop()
		cycle := func() {
			raw := g.rawZone(t, "kuma-1")
			s := raw.down()
			_ = s.Send(raw.ask("Mesh"))
			_, _ = s.Recv()
			raw.close()
			synctest.Wait()
		}
		heap := func() uint64 {
			runtime.GC()
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return m.HeapAlloc
		}
		for range 100 {
			cycle()
		}
		settle(time.Minute)
		before, heapBefore := runtime.NumGoroutine(), heap()
		for range 1000 {
			cycle()
		}
		settle(time.Minute)
		if after := runtime.NumGoroutine(); after > before+5 {
			t.Errorf("%d goroutines became %d", before, after)
		}
		if after := heap(); after > heapBefore+4<<20 {
			t.Errorf("%d bytes on the heap became %d", heapBefore, after)
		} else {
			t.Logf("heap: %d KiB, then %d KiB", heapBefore>>10, after>>10)
		}
	})
}

func TestLesson24_AnIdleHourSendsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, all, stop := world(t, "zone-1", "zone-2", "zone-3", "zone-4", "zone-5")
		defer stop()
		settle(10 * time.Second)
		sent := func() (n uint64) {
			for _, z := range all {
				in, _ := g.table.Insight(z.name)
				for _, s := range in.GetSubscriptions() {
					n += s.GetStatus().GetTotal().GetResponsesSent()
				}
			}
			return n
		}
		before, rev := sent(), g.st.Snapshot().Revision()
		settle(time.Hour)
		if after := sent(); after != before {
			t.Errorf("%d responses in an idle hour", after-before)
		}
		if n := g.st.Snapshot().Revision() - rev; n != 0 {
			t.Errorf("%d writes in an idle hour", n)
		}
	})
}

func TestLesson25_SixStreamsAtOnceMakeOneInsight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _, stop := world(t, "zone-1")
		defer stop()
		settle(3 * time.Second)
		in, ok := g.table.Insight("zone-1")
		if !ok || len(in.GetSubscriptions()) != 1 {
			t.Fatalf("%d subscriptions", len(in.GetSubscriptions()))
		}
		s := in.GetKdsStreams()
		if s.GetGlobalToZone() == nil || s.GetZoneToGlobal() == nil || s.GetConfigDump() == nil || s.GetStats() == nil || s.GetClusters() == nil {
			t.Errorf("streams missing: %v", s)
		}
		a := in.GetEnvoyAdminStreams()
		for _, id := range []string{a.GetConfigDumpGlobalInstanceId(), a.GetStatsGlobalInstanceId(), a.GetClustersGlobalInstanceId()} {
			if id != "global-1" {
				t.Errorf("a stream is said to end at %q", id)
			}
		}
		total := in.GetSubscriptions()[0].GetStatus().GetTotal()
		if total.GetResponsesSent() == 0 || total.GetResponsesSent() != total.GetResponsesAcknowledged() {
			t.Errorf("sent %d, acknowledged %d", total.GetResponsesSent(), total.GetResponsesAcknowledged())
		}
		rec, ok := g.st.Snapshot().Get(store.Key{Type: "ZoneInsight", Name: "zone-1"})
		var stored systemv1.ZoneInsight
		if !ok || proto.Unmarshal(rec.Spec, &stored) != nil || len(stored.GetSubscriptions()) != 1 {
			t.Errorf("stored: %v", &stored)
		}
	})
}

func TestLesson26_NamesOfKumaPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _, stop := world(t)
		defer stop()
		long := strings.Repeat("x", 253)
		for _, name := range []string{"allow-all", "a.b.c", long} {
			g.put(t, "TrafficPermission", "default", name, permission("*"))
		}
		raw := g.rawZone(t, "kuma-1", "features", "hash-suffix")
		defer raw.close()
		s := raw.down()
		if err := s.Send(raw.ask("TrafficPermission", "hash-suffix")); err != nil {
			t.Fatal(err)
		}
		first, err := s.Recv()
		if err != nil || len(first.GetResources()) != 3 || !slices.Contains(names(first), "allow-all-6cf46w7x6f445w75.default") {
			t.Fatalf("hashed names: %v, %v", names(first), err)
		}
		_ = s.Send(raw.ack(first))
		g.delete(t, "TrafficPermission", "default", "allow-all")
		second, err := s.Recv()
		if err != nil || !slices.Equal(second.GetRemovedResources(), []string{"allow-all-6cf46w7x6f445w75.default"}) {
			t.Errorf("removed: %v, %v", second.GetRemovedResources(), err)
		}
		// Upward: hashed names with their display name, and a removal by wire name.
		up := raw.up()
		labels := map[string]string{"kuma.io/display-name": "dp.one", "kuma.io/origin": "zone", "kuma.io/zone": "kuma-1", "team": "a"}
		exchange(t, up, response("kuma-1", "Dataplane", "1", wire(t, "dp.one-dff6z597w47d46xx", "default", dataplane("1.1.1.1"), labels)))
		rec, ok := g.st.Snapshot().Get(store.Key{Type: "Dataplane", Mesh: "default", Name: "kuma-1.dp.one"})
		if !ok || rec.WireName != "dp.one-dff6z597w47d46xx" || rec.Labels["team"] != "a" || rec.Labels["kuma.io/zone"] != "" {
			t.Fatalf("stored as %+v", rec)
		}
		gone := response("kuma-1", "Dataplane", "2")
		gone.RemovedResources = []string{"dp.one-dff6z597w47d46xx.default"}
		exchange(t, up, gone)
		if _, ok := g.st.Snapshot().Get(rec.Key); ok {
			t.Error("not removed by its wire name")
		}
	})
}

func TestLesson28_AZoneWithoutMeshesSyncsItsIngress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, all, stop := world(t, "zone-1", "zone-2")
		defer stop()
		all[0].put(t, resource.ZoneIngress, "", "zi", ingress("1.1.1.1"))
		all[0].put(t, resource.ZoneEgress, "", "ze", egress("1.1.1.1"))
		settle(time.Second)
		converged(t, g, all...)
		if g.st.Snapshot().Count("Mesh", "") != 0 {
			t.Fatal("there is a mesh: the test tests nothing")
		}
	})
}

func TestLesson30_NoFalseOnlineAfterACrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, all, stop := world(t, "zone-1")
		defer func() { _ = stop }()
		settle(3 * time.Second)
		rec, ok := g.st.Snapshot().Get(store.Key{Type: "ZoneInsight", Name: "zone-1"})
		if !ok {
			t.Fatal("no insight stored")
		}
		all[0].stop()
		g.stop()
		// What a crash leaves: the subscription open in the store.
		st, err := store.Open(t.Context(), g.backend, store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		update(t, st, store.Put(&store.Record{Key: rec.Key, Spec: rec.Spec, Created: rec.Created, Modified: rec.Modified}))
		if err := st.Close(); err != nil {
			t.Fatal(err)
		}
		g.start(t)
		defer func() { g.stop() }()
		rec, _ = g.st.Snapshot().Get(rec.Key)
		var in systemv1.ZoneInsight
		if err := proto.Unmarshal(rec.Spec, &in); err != nil {
			t.Fatal(err)
		}
		for _, s := range in.GetSubscriptions() {
			if s.GetDisconnectTime() == nil {
				t.Error("a subscription of the crashed process is still open")
			}
		}
	})
}

func TestLesson33And34_ABrandNewZoneIsWatchedAndNotCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _, stop := world(t, "zone-1")
		defer stop()
		settle(time.Minute)
		in, _ := g.table.Insight("zone-1")
		if n := len(in.GetSubscriptions()); n != 1 {
			t.Errorf("%d subscriptions in the first minute", n)
		}
		for _, l := range g.net.of("zone-1") {
			l.freeze()
		}
		settle(10 * time.Second)
		if live, _ := g.table.Live(g.st.Snapshot(), "zone-1"); live.Online {
			t.Error("a silent zone is online after 10 s")
		}
	})
}

func TestLesson35_AnyMissingFieldHarmsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, all, stop := world(t, "zone-1")
		defer stop()
		raw := g.rawZone(t, "kuma-1")
		defer raw.close()
		valid := raw.ask("Mesh")
		valid.InitialResourceVersions = map[string]string{"a.": "1"}
		for _, req := range withoutEachField(valid) {
			s := raw.down()
			_ = s.Send(req.(*discoveryv3.DeltaDiscoveryRequest))
			ack := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: "Mesh", ResponseNonce: "1"} // without node: it took Kuma down
			_ = s.Send(ack)
			_ = s.CloseSend()
			drain(s)
		}
		for _, resp := range withoutEachField(response("kuma-1", "Dataplane", "1", wire(t, "dp", "default", dataplane("1.1.1.1"), map[string]string{"a": "b"}))) {
			s := raw.up()
			_ = s.Send(resp.(*discoveryv3.DeltaDiscoveryResponse))
			_ = s.CloseSend()
			drain(s)
		}
		g.put(t, "TrafficPermission", "default", "still", permission("*"))
		settle(time.Second)
		converged(t, g, all...)
	})
}

func drain[T any](s interface{ Recv() (*T, error) }) {
	for {
		if _, err := s.Recv(); err != nil {
			return
		}
	}
}

func TestLesson37_ImpostorsAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _, stop := world(t)
		defer stop()
		refused := func(what string, err error, want codes.Code) {
			t.Helper()
			if status.Code(err) != want {
				t.Errorf("%s: %v", what, err)
			}
		}
		bad := g.rawZone(t, "Bad_Zone/Name")
		defer bad.close()
		_, err := bad.down().Recv()
		refused("a zone that is no DNS label", err, codes.InvalidArgument)
		nobody := g.client(t, "nobody")
		defer nobody.Close()
		anonymous, err := meshv1.NewKDSSyncServiceClient(nobody).GlobalToZoneSync(t.Context())
		if err == nil {
			_, err = anonymous.Recv()
		}
		refused("no client-id", err, codes.Unknown)
		raw := g.rawZone(t, "kuma-1")
		defer raw.close()
		s := raw.down()
		req := raw.ask("Mesh")
		req.Node.Id = "kuma-2"
		_ = s.Send(req)
		_, err = s.Recv()
		refused("another zone's node id", err, codes.InvalidArgument)
		up := raw.up()
		_ = up.Send(response("kuma-2", "Dataplane", "1", wire(t, "dp", "default", dataplane("1.1.1.1"), nil)))
		for err = nil; err == nil; {
			_, err = up.Recv()
		}
		refused("another zone's identifier", err, codes.InvalidArgument)
		up = raw.up()
		if nack := exchange(t, up, response("kuma-1", "Mesh", "1", wire(t, "evil", "", meshSpec(1), nil))); nack.GetErrorDetail() == nil {
			t.Error("a mesh from a zone was acknowledged")
		}
		snap := g.st.Snapshot()
		if snap.Count("Mesh", "") != 0 || snap.Count("Dataplane", "") != 0 {
			t.Error("something was stored")
		}
		if _, ok := snap.Get(store.Key{Type: "Zone", Name: "Bad_Zone/Name"}); ok {
			t.Error("a Zone was made for the bad name")
		}
	})
}

func TestLesson40_TheMessageLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGlobal(t)
		g.maxMessageBytes = 256 << 10
		g.start(t)
		defer func() { g.stop() }()
		for i := range 300 {
			g.put(t, "TrafficPermission", "default", fmt.Sprint("p", i), permission(strings.Repeat("s", 1000)))
		}
		g.put(t, resource.Mesh, "", "m", meshSpec(1))
		// A Meridian zone gets it in pages.
		z := newZone(t, "zone-1", g)
		z.maxMessageBytes = g.maxMessageBytes
		z.start(t)
		defer func() { z.stop() }()
		settle(5 * time.Second)
		converged(t, g, z)
		// A Kuma zone cannot; its other types go on, and it gets the type once it fits.
		raw := g.rawZone(t, "kuma-1")
		defer raw.close()
		s := raw.down()
		_ = s.Send(raw.ask("TrafficPermission"))
		_ = s.Send(raw.ask("Mesh"))
		resp, err := s.Recv()
		if err != nil || resp.GetTypeUrl() != "Mesh" {
			t.Fatalf("got %s, %v", resp.GetTypeUrl(), err)
		}
		_ = s.Send(raw.ack(resp))
		for i := range 250 {
			g.delete(t, "TrafficPermission", "default", fmt.Sprint("p", i))
		}
		resp, err = s.Recv()
		if err != nil || resp.GetTypeUrl() != "TrafficPermission" || len(resp.GetResources()) == 0 {
			t.Errorf("after shrinking: %s with %d, %v", resp.GetTypeUrl(), len(resp.GetResources()), err)
		}
	})
}

func TestLesson41_AnIdleHourWithoutGoAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, all, stop := world(t, "zone-1")
		defer stop()
		settle(time.Hour)
		in, _ := g.table.Insight("zone-1")
		if n := len(in.GetSubscriptions()); n != 1 {
			t.Errorf("%d connections in an idle hour", n)
		}
		converged(t, g, all...)
	})
}

func TestLesson42_OneFailingStreamLeavesTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &network{conns: map[*link]string{}}
		ups := make(chan struct{}, 100)
		f := &fakeGlobal{
			down: plainGlobal(nil, nil),
			up: func(grpc.BidiStreamingServer[discoveryv3.DeltaDiscoveryResponse, discoveryv3.DeltaDiscoveryRequest]) error {
				ups <- struct{}{}
				return status.Error(codes.Internal, "no")
			},
		}
		stop := f.start(n)
		defer stop()
		z := newZone(t, "zone-1", &globalPlane{net: n})
		z.start(t)
		defer func() { z.stop() }()
		settle(time.Minute)
		if f.opened() != 1 || len(ups) < 3 {
			t.Errorf("down opened %d times, up %d times", f.opened(), len(ups))
		}
	})
}

func TestLesson43_TwoPlanesUnderOneName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, all, stop := world(t, "zone-1")
		twin := newZone(t, "zone-1", g)
		twin.start(t)
		all[0].put(t, resource.Dataplane, "default", "mine", dataplane("1.1.1.1"))
		twin.put(t, resource.Dataplane, "default", "theirs", dataplane("2.2.2.2"))
		settle(time.Minute)
		if got := content(g.st.Snapshot().ByOrigin("Dataplane", "zone-1")); len(got) != 1 || got["default/zone-1.mine"] == "" {
			t.Errorf("the global has %v", got)
		}
		in, _ := g.table.Insight("zone-1")
		if n := len(in.GetSubscriptions()); n != 1 {
			t.Errorf("the first was disturbed: %d subscriptions", n)
		}
		all[0].stop()
		settle(time.Minute)
		converged(t, g, twin)
		all[0] = twin
		stop()
	})
}

func TestLesson45_UnknownFeaturesAreIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _, stop := world(t)
		defer stop()
		g.put(t, resource.Mesh, "", "m", meshSpec(1))
		raw := g.rawZone(t, "kuma-1", "features", "from-the-future")
		defer raw.close()
		s := raw.down()
		_ = s.Send(raw.ask("Mesh", "from-the-future"))
		resp, err := s.Recv()
		if err != nil || !slices.Equal(names(resp), []string{"m."}) || resp.GetSystemVersionInfo() != "" {
			t.Errorf("%v %q %v", names(resp), resp.GetSystemVersionInfo(), err)
		}
	})
}

// TestEveryLessonIsAccountedFor asks that each lesson has a test here, or a row in LESSONS.md that says why not.
func TestEveryLessonIsAccountedFor(t *testing.T) {
	table, err := os.ReadFile("LESSONS.md")
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	has := map[int]bool{}
	for _, f := range files {
		src, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`func TestLesson((?:\d\d(?:And)?)+)_`).FindAllStringSubmatch(string(src), -1) {
			for n := range strings.SplitSeq(m[1], "And") {
				i, err := strconv.Atoi(n)
				if err != nil {
					t.Fatal(err)
				}
				has[i] = true
			}
		}
	}
	for i := 1; i <= 45; i++ {
		row := strings.Contains(string(table), fmt.Sprintf("\n| %d |", i))
		if has[i] == row {
			t.Errorf("lesson %d: test %v, row in LESSONS.md %v", i, has[i], row)
		}
	}
}
