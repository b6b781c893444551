package proxies

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/tokens"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
	"github.com/meridian-mesh/meridian/common/store/storetest"
	"github.com/meridian-mesh/meridian/zone/xds"
)

// simulate runs a test in a bubble, where hours take no time.
func simulate(t *testing.T, change func(*Config), test func(r *rig)) {
	t.Helper()
	keys() // outside, so that no bubble owns them
	synctest.Test(t, func(t *testing.T) {
		t.Helper()
		r := newRig(t, change)
		test(r)
	})
}

func pause(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (r *rig) wantEvents(want ...string) {
	r.Helper()
	if got := r.events.all(); got != strings.Join(want, "; ") {
		r.Errorf("the watcher was told %q, want %q", got, strings.Join(want, "; "))
	}
}

func TestAProxyIsRegisteredAndRemovedWhenItStaysAway(t *testing.T) {
	simulate(t, nil, func(r *rig) {
		s := r.mustOpen(backendNode(), r.dpToken())
		r.wantEvents("connected default.backend-1")
		if got := r.dataplane().GetNetworking().GetInbound()[0].GetTags()["kuma.io/zone"]; got != "zone-1" {
			t.Errorf("the zone's tag is %q", got)
		}
		synctest.Wait()
		if subs := r.insight().GetSubscriptions(); len(subs) != 1 || subs[0].GetConnectTime() == nil || subs[0].GetDisconnectTime() != nil ||
			subs[0].GetControlPlaneInstanceId() != "cp-1" || subs[0].GetId() == "" {
			t.Errorf("connected, the insight is %v", subs)
		}
		s.Close()
		s.Close()
		synctest.Wait()
		r.wantEvents("connected default.backend-1", "disconnected default.backend-1")
		if sub := r.insight().GetSubscriptions()[0]; sub.GetDisconnectTime() == nil || !sub.GetDeregistering() {
			t.Errorf("disconnected, the insight is %v", sub)
		}
		pause(9 * time.Second)
		if !r.exists(resource.Dataplane, "default", "backend-1") {
			t.Fatal("removed before the delay is over")
		}
		pause(2 * time.Second)
		if r.exists(resource.Dataplane, "default", "backend-1") || r.exists(resource.DataplaneInsight, "default", "backend-1") {
			t.Fatal("not removed")
		}
		if n := len(r.registry.proxies); n != 0 {
			t.Errorf("%d proxies are remembered", n)
		}
	})
}

func TestAProxyThatIsBackInTimeStays(t *testing.T) {
	simulate(t, nil, func(r *rig) {
		r.mustOpen(backendNode(), r.dpToken()).Close()
		pause(9 * time.Second)
		if _, err := r.open(backendNode(), "nonsense"); err == nil { // is no comeback
			t.Fatal("it is admitted")
		}
		s := r.mustOpen(backendNode(), r.dpToken())
		pause(time.Minute)
		if !r.exists(resource.Dataplane, "default", "backend-1") {
			t.Fatal("removed although it is back")
		}
		subs := r.insight().GetSubscriptions()
		if len(subs) != 2 || subs[0].GetDisconnectTime() == nil || subs[0].GetDeregistering() || subs[1].GetDisconnectTime() != nil {
			t.Errorf("the insight is %v", subs)
		}
		s.Close()
		pause(5 * time.Second)
		r.mustOpen(backendNode(), r.dpToken()).Close() // the delay begins anew
		pause(9 * time.Second)
		if !r.exists(resource.Dataplane, "default", "backend-1") {
			t.Fatal("removed by the older departure")
		}
		pause(2 * time.Second)
		if r.exists(resource.Dataplane, "default", "backend-1") {
			t.Fatal("not removed")
		}
	})
}

func TestAProxyWithoutAResourceOfItsOwnIsNotRemoved(t *testing.T) {
	simulate(t, nil, func(r *rig) {
		r.mustOpen(backendNode(), r.dpToken()).Close()
		r.mustOpen(aNode("default.backend-1", nil), r.dpToken()).Close() // its resource is there without it now
		pause(time.Hour)
		if !r.exists(resource.Dataplane, "default", "backend-1") {
			t.Fatal("removed")
		}
	})
}

// A gRPC program and the agent that registers it have one node.
func TestStreamsThatBringNothingDoNotKeepWhatAnotherOneBrought(t *testing.T) {
	for _, first := range []int{0, 1} {
		simulate(t, nil, func(r *rig) {
			both := []*Session{r.mustOpen(backendNode(), r.dpToken()), r.mustOpen(aNode("default.backend-1", nil), r.dpToken())}
			pause(time.Second)
			both[first].Close()
			pause(time.Minute)
			if !r.exists(resource.Dataplane, "default", "backend-1") {
				t.Error("it is removed while a stream is open")
			}
			both[1-first].Close()
			pause(time.Minute)
			if r.exists(resource.Dataplane, "default", "backend-1") {
				t.Error("it is still there")
			}
		})
	}
}

func TestOverlappingStreamsOfOneProxy(t *testing.T) {
	simulate(t, nil, func(r *rig) {
		older := r.mustOpen(backendNode(), r.dpToken())
		newer := r.mustOpen(backendNode(), r.dpToken())
		const cds = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
		older.Sent(cds)
		newer.Sent(cds)
		newer.Sent(cds)
		newer.Answered(cds, "bad cluster")
		older.Answered(cds, "")
		pause(2 * time.Second)
		subs := r.insight().GetSubscriptions()
		if len(subs) != 2 || subs[0].GetDisconnectTime() == nil || subs[1].GetDisconnectTime() != nil {
			t.Fatalf("the insight is %v", subs)
		}
		if a, b := subs[0].GetStatus(), subs[1].GetStatus(); a.GetCds().GetResponsesSent() != 1 || a.GetTotal().GetResponsesAcknowledged() != 1 ||
			b.GetCds().GetResponsesSent() != 2 || b.GetTotal().GetResponsesRejected() != 1 || b.GetLastRejection().GetMessage() != "bad cluster" {
			t.Errorf("the counters are %v and %v", a, b)
		}
		newer.Close()
		pause(time.Minute)
		if subs := r.insight().GetSubscriptions(); len(subs) != 2 || subs[1].GetId() != older.subscriptionID || subs[1].GetDisconnectTime() != nil ||
			subs[0].GetDisconnectTime() == nil {
			t.Errorf("one stream is left, and the insight is %v", subs)
		}
		r.wantEvents("connected default.backend-1")
		third := r.mustOpen(backendNode(), r.dpToken())
		older.Close()
		pause(time.Minute)
		if !r.exists(resource.Dataplane, "default", "backend-1") {
			t.Fatal("removed while a stream is open")
		}
		third.Close()
		r.wantEvents("connected default.backend-1", "disconnected default.backend-1")
		pause(time.Minute)
		if r.exists(resource.Dataplane, "default", "backend-1") {
			t.Fatal("not removed")
		}
	})
}

func TestAStreamEndsAtOnceWhen(t *testing.T) {
	expiring := func(r *rig) string { return r.token(tokens.Dataplane, 0, tokens.Claims{Mesh: "default"}, time.Minute) }
	tagged := func(r *rig) string {
		return r.token(tokens.Dataplane, 0, tokens.Claims{Mesh: "default", Tags: map[string][]string{"version": {"1"}}}, time.Hour)
	}
	for _, c := range []struct {
		name, reason string
		token        func(*rig) string
		change       func(r *rig, id string)
	}{
		{"its token is revoked", revoked, (*rig).dpToken, func(r *rig, id string) {
			r.secret(tokens.Revocations(tokens.Dataplane, "default"), []byte(id))
		}},
		{"the key of its token is removed", noKey, (*rig).dpToken, func(r *rig, _ string) {
			r.update(store.Delete(tokens.SigningKey(tokens.Dataplane, "default", 1)))
		}},
		{"the key of its token is replaced", badSignature, (*rig).dpToken, func(r *rig, _ string) {
			r.secret(tokens.SigningKey(tokens.Dataplane, "default", 1), keys()[4])
		}},
		{"its token expires", expired, expiring, func(*rig, string) { time.Sleep(time.Minute) }},
		{"its resource is deleted", resourceDeleted, (*rig).dpToken, func(r *rig, _ string) {
			r.update(store.Delete(store.Key{Type: "Dataplane", Mesh: "default", Name: "backend-1"}))
		}},
		{"its tags change to ones that the token does not allow", tagNotAllowed, tagged, func(r *rig, _ string) {
			dp := r.dataplane()
			dp.Networking.Inbound[0].Tags["version"] = "2"
			r.put("Dataplane", "default", "backend-1", dp)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			simulate(t, nil, func(r *rig) {
				raw := c.token(r)
				claims, err := tokens.NewAuthority().Verify(r.store.Snapshot(), tokens.Dataplane, "default", raw)
				if err != nil {
					r.Fatal(err)
				}
				s := r.mustOpen(backendNode(), raw)
				aside, err := r.registry.Attach(r.Context(), backendNode(), []string{raw})
				if err != nil {
					r.Fatal(err)
				}
				synctest.Wait()
				if s.Err() != nil || s.Check() != nil {
					r.Fatalf("ended too early: %v", s.Err())
				}
				c.change(r, claims.ID)
				synctest.Wait() // no time passes
				for _, s := range []*Session{s, aside} {
					select {
					case <-s.Done():
					default:
						r.Fatal("it goes on")
					}
					if reasonOf(s.Err()) != c.reason || !errors.Is(s.Check(), s.Err()) {
						r.Errorf("it ends for %v, and a request is refused for %v", s.Err(), s.Check())
					}
					s.Close()
				}
			})
		})
	}
}

func TestAStreamGoesOnWhenWhatChangesDoesNotConcernIt(t *testing.T) {
	simulate(t, nil, func(r *rig) {
		s := r.mustOpen(backendNode(), r.dpToken())
		defer s.Close()
		r.secret(tokens.Revocations(tokens.Dataplane, "default"), []byte("another"))
		r.secret(tokens.Revocations(tokens.Zone, ""), []byte("another"))
		r.secret(tokens.SigningKey(tokens.Dataplane, "default", 2), keys()[4])
		dp := r.dataplane()
		dp.Networking.Inbound[0].Health = &meshv1.Dataplane_Networking_Inbound_Health{}
		r.put("Dataplane", "default", "backend-1", dp)
		// The keys of a mesh that goes, go as well: the proxy keeps what it has.
		r.update(store.Delete(store.Key{Type: "Mesh", Name: "default"}), store.Delete(tokens.SigningKey(tokens.Dataplane, "default", 1)))
		synctest.Wait()
		if s.Err() != nil || s.Check() != nil {
			t.Errorf("it ends: %v %v", s.Err(), s.Check())
		}
	})
}

func TestADeletedDataplaneIsRegisteredAgainByItsProxy(t *testing.T) {
	simulate(t, nil, func(r *rig) {
		s := r.mustOpen(backendNode(), r.dpToken())
		synctest.Wait()
		r.registry.Certificate(s.NodeID(), &Certificate{Backend: "ca-1", Issued: time.Now(), NotAfter: time.Now().Add(time.Hour)})
		r.update(store.Delete(s.Key()), store.Delete(store.Key{Type: "DataplaneInsight", Mesh: "default", Name: "backend-1"}))
		<-s.Done()
		again := r.mustOpen(backendNode(), r.dpToken()) // before the old stream is over
		s.Close()
		pause(time.Minute)
		if subs := r.insight().GetSubscriptions(); len(subs) != 1 || subs[0].GetId() != again.subscriptionID || subs[0].GetDisconnectTime() != nil {
			t.Errorf("the insight is %v", subs)
		}
		// Nobody tells of its certificate again: it is the one it had.
		if got := r.insight().GetMTLS().GetIssuedBackend(); got != "ca-1" {
			t.Errorf("its certificate is from %q", got)
		}
		again.Close()
	})
}

func TestAGracefulStopRemovesNobody(t *testing.T) {
	simulate(t, nil, func(r *rig) {
		s := r.mustOpen(backendNode(), r.dpToken())
		pause(time.Second)
		r.stop()
		select {
		case <-s.Done():
		default:
			t.Fatal("the stream goes on")
		}
		if status.Code(s.Err()) != codes.Unavailable {
			t.Errorf("it ends with %v", s.Err())
		}
		if _, err := r.open(backendNode(), r.dpToken()); reasonOf(err) != shuttingDown {
			t.Errorf("a new stream is answered with %v", err)
		}
		s.Close()
		pause(time.Hour)
		if subs := r.insight().GetSubscriptions(); len(subs) != 1 || subs[0].GetDisconnectTime() == nil || subs[0].GetDeregistering() {
			t.Errorf("the insight is %v", subs)
		}
		r.instance = "cp-2"
		r.start()
		pause(time.Hour)
		if !r.exists(resource.Dataplane, "default", "backend-1") {
			t.Fatal("removed")
		}
	})
}

func TestACrashLeavesNobodyOnlineAndForgetsNoRemoval(t *testing.T) {
	simulate(t, nil, func(r *rig) {
		live := r.mustOpen(backendNode(), r.dpToken())
		gone := aNode("default.web-1", map[string]any{"dataplane.resource": strings.ReplaceAll(backendResource, "backend-1", "web-1")})
		r.mustOpen(gone, r.dpToken()).Close()
		pause(time.Second)
		// As a crash leaves it: another process finds what was stored by then.
		crashed := r.registry
		before := r.insight()
		r.stop()
		live.Close()
		_ = crashed
		r.put("DataplaneInsight", "default", "backend-1", before)
		r.instance = "cp-2"
		r.start()
		if sub := r.insight().GetSubscriptions()[0]; sub.GetDisconnectTime() == nil {
			t.Errorf("the subscription is left open: %v", sub)
		}
		pause(9 * time.Second)
		if !r.exists(resource.Dataplane, "default", "web-1") {
			t.Error("the proxy has no time to come back")
		}
		pause(2 * time.Second)
		if r.exists(resource.Dataplane, "default", "web-1") {
			t.Error("the removal is forgotten")
		}
		pause(time.Hour)
		if !r.exists(resource.Dataplane, "default", "backend-1") {
			t.Error("a proxy is removed that was connected")
		}
	})
}

func TestARegistrationThatIsCutShortLeavesNothing(t *testing.T) {
	t.Run("by a crash before anything is known of the proxy but its resource", func(t *testing.T) {
		simulate(t, nil, func(r *rig) {
			r.stop()
			dying, err := New(context.Background(), Options{Config: r.cfg, Zone: "zone-1", InstanceID: r.instance, Store: r.store, Authority: tokens.NewAuthority()})
			if err != nil {
				r.Fatal(err)
			}
			s, err := dying.Open(context.Background(), xds.Opening{Node: backendNode(), Authorization: []string{r.dpToken()}})
			if err != nil {
				r.Fatal(err)
			}
			defer s.Close()
			if !r.exists(resource.Dataplane, "default", "backend-1") {
				r.Fatal("it is not registered")
			}
			r.instance = "cp-2"
			r.start()
			pause(5 * time.Second)
			if !r.exists(resource.Dataplane, "default", "backend-1") {
				r.Fatal("it has no time to come back")
			}
			pause(time.Minute)
			if r.exists(resource.Dataplane, "default", "backend-1") || r.exists(resource.DataplaneInsight, "default", "backend-1") {
				r.Fatal("it is there for ever")
			}
		})
	})
	t.Run("by the end of the stream", func(t *testing.T) {
		simulate(t, nil, func(r *rig) {
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			r.stop()
			_ = r.store.Close()
			r.backend = storetest.FailAppends(r.backend.(*memory.Backend), func(store.Group) error {
				cancel() // while the resource is being written
				time.Sleep(time.Second)
				return nil
			})
			r.openStore()
			r.start()
			s, err := r.registry.Open(ctx, xds.Opening{Node: backendNode(), Authorization: []string{r.dpToken()}})
			if err == nil {
				s.Close()
			}
			pause(time.Minute)
			if r.exists(resource.Dataplane, "default", "backend-1") || r.exists(resource.DataplaneInsight, "default", "backend-1") {
				r.Fatal("it is there for ever")
			}
		})
	})
}

func TestAProxyThatMovedToAnotherControlPlaneIsNotRemoved(t *testing.T) {
	simulate(t, nil, func(r *rig) {
		r.mustOpen(backendNode(), r.dpToken()).Close()
		pause(time.Second)
		i := r.insight()
		i.Subscriptions = append(i.Subscriptions, &meshv1.DiscoverySubscription{Id: "elsewhere", ControlPlaneInstanceId: "cp-7"})
		r.put("DataplaneInsight", "default", "backend-1", i)
		pause(time.Hour / 2)
		if !r.exists(resource.Dataplane, "default", "backend-1") {
			t.Error("removed")
		}
	})
}

func TestTheStoredResourceDecidesToo(t *testing.T) {
	simulate(t, nil, func(r *rig) {
		r.put("Dataplane", "default", "backend-1", &meshv1.Dataplane{Networking: &meshv1.Dataplane_Networking{
			Address: "10.0.0.1", Inbound: []*meshv1.Dataplane_Networking_Inbound{{Port: 8080, Tags: map[string]string{"kuma.io/service": "secret"}}},
		}})
		token := r.token(tokens.Dataplane, 0, tokens.Claims{Mesh: "default", Tags: map[string][]string{"kuma.io/service": {"backend"}}}, time.Hour)
		if _, err := r.open(backendNode(), token); reasonOf(err) != tagNotAllowed {
			t.Errorf("a token may take another's dataplane over: %v", err)
		}
		rec, _ := r.store.Snapshot().Get(store.Key{Type: "Dataplane", Mesh: "default", Name: "backend-1"})
		foreign := *rec
		foreign.Origin = "zone-2"
		r.update(store.Put(&foreign))
		if _, err := r.open(backendNode(), r.dpToken()); reasonOf(err) != foreignResource {
			t.Errorf("a copy is overwritten: %v", err)
		}
	})
}

func TestReconnectingKeepsWhatOthersKnowOfTheResource(t *testing.T) {
	simulate(t, nil, func(r *rig) {
		probed := aNode("default.backend-1", map[string]any{
			"dataplane.resource": strings.ReplaceAll(backendResource, `"port":8080`, `"port":8080,"serviceProbe":{"tcp":{}}`),
		})
		s := r.mustOpen(probed, r.dpToken())
		if in := r.dataplane().GetNetworking().GetInbound()[0]; in.GetHealth() == nil || in.GetHealth().GetReady() {
			t.Errorf("an inbound with a probe starts as %v", in.GetHealth())
		}
		dp := r.dataplane()
		dp.Networking.Inbound[0].Health.Ready = true
		r.put("Dataplane", "default", "backend-1", dp)
		again := r.mustOpen(probed, r.dpToken())
		if in := r.dataplane().GetNetworking().GetInbound()[0]; !in.GetHealth().GetReady() {
			t.Error("a proxy that reconnects has become ill")
		}
		s.Close()
		again.Close()
		before := r.store.Snapshot().LastChange("Dataplane")
		r.mustOpen(probed, r.dpToken()).Close()
		if r.store.Snapshot().LastChange("Dataplane") != before {
			t.Error("the same resource is stored again")
		}
	})
}

func TestIngressAndEgressOfOneNameAreTwoProxies(t *testing.T) {
	simulate(t, nil, func(r *rig) {
		in := r.mustOpen(ingressNode(), r.token(tokens.Zone, 2, tokens.Claims{Zone: "zone-1", Scope: []string{"ingress"}}, time.Hour))
		out := r.mustOpen(egressNode(), r.token(tokens.Zone, 2, tokens.Claims{Zone: "zone-1", Scope: []string{"egress"}}, time.Hour))
		if in.NodeID() == out.NodeID() {
			t.Fatal("both have the same configuration")
		}
		synctest.Wait()
		if !r.exists(resource.ZoneIngressInsight, "", "in-1") || !r.exists(resource.ZoneEgressInsight, "", "in-1") {
			t.Error("an insight is missing")
		}
		in.Close()
		pause(time.Minute)
		if r.exists(resource.ZoneIngress, "", "in-1") || !r.exists(resource.ZoneEgress, "", "in-1") {
			t.Error("the wrong one is removed")
		}
		out.Close()
	})
}

func TestDataplanesThatAreOfflineForLongAreRemoved(t *testing.T) {
	simulate(t, nil, func(r *rig) {
		r.put("Dataplane", "default", "backend-1", &meshv1.Dataplane{Networking: &meshv1.Dataplane_Networking{
			Address: "10.0.0.1", Inbound: []*meshv1.Dataplane_Networking_Inbound{{Port: 8080, Tags: map[string]string{"kuma.io/service": "backend"}}},
		}})
		r.put("Dataplane", "default", "never-seen", r.dataplane())
		r.mustOpen(aNode("default.backend-1", nil), r.dpToken()).Close()
		pause(71 * time.Hour)
		s := r.mustOpen(aNode("default.backend-1", nil), r.token(tokens.Dataplane, 0, tokens.Claims{Mesh: "default"}, 1000*time.Hour))
		pause(80 * time.Hour)
		s.Close()
		pause(72*time.Hour - time.Minute)
		if !r.exists(resource.Dataplane, "default", "backend-1") {
			t.Fatal("removed too early")
		}
		pause(2 * time.Minute)
		if r.exists(resource.Dataplane, "default", "backend-1") || r.exists(resource.DataplaneInsight, "default", "backend-1") {
			t.Error("not removed")
		}
		if !r.exists(resource.Dataplane, "default", "never-seen") {
			t.Error("one is removed of which nothing is known")
		}
	})
}

func TestSubscriptionsThatNobodyKeepsAreClosed(t *testing.T) {
	simulate(t, nil, func(r *rig) {
		s := r.mustOpen(backendNode(), r.token(tokens.Dataplane, 0, tokens.Claims{Mesh: "default"}, 1000*time.Hour))
		r.put("Dataplane", "default", "orphan", r.dataplane())
		r.put("DataplaneInsight", "default", "orphan", &meshv1.DataplaneInsight{Subscriptions: []*meshv1.DiscoverySubscription{
			{Id: "1", ControlPlaneInstanceId: "cp-7", ConnectTime: now()},
		}})
		pause(4 * time.Minute)
		pause(7 * time.Minute)
		rec, _ := r.store.Snapshot().Get(store.Key{Type: "DataplaneInsight", Mesh: "default", Name: "orphan"})
		i, err := decodeInsight(Sidecar, rec.Spec)
		if err != nil || i.open() != nil {
			t.Errorf("the subscription is left open: %v %v", i, err)
		}
		pause(5 * time.Hour)
		sub := r.insight().GetSubscriptions()[0]
		if sub.GetDisconnectTime() != nil || sub.GetGeneration() < 100 {
			t.Errorf("a live subscription is %v", sub)
		}
		s.Close()
	})
}

func TestCertificatesAreInTheInsight(t *testing.T) {
	simulate(t, nil, func(r *rig) {
		s := r.mustOpen(backendNode(), r.dpToken())
		c := Certificate{Backend: "ca-1", Supported: []string{"ca-1", "ca-2"}, Issued: time.Now(), NotAfter: time.Now().Add(time.Hour)}
		r.registry.Certificate("default.nobody", &c)
		r.registry.Certificate(s.NodeID(), &c)
		r.registry.Certificate(s.NodeID(), &c)
		pause(time.Second)
		m := r.insight().GetMTLS()
		if m.GetCertificateRegenerations() != 1 || m.GetIssuedBackend() != "ca-1" || len(m.GetSupportedBackends()) != 2 ||
			!m.GetCertificateExpirationTime().AsTime().Equal(c.NotAfter) || !m.GetLastCertificateRegeneration().AsTime().Equal(c.Issued) {
			t.Errorf("after a second the section is %v", m)
		}
		c.Supported = []string{"ca-1"}
		r.registry.Certificate(s.NodeID(), &c)
		r.registry.ConfigError(s.NodeID(), "listener is bad")
		s.Close()
		pause(time.Second)
		if i := r.insight(); i.GetMTLS().GetCertificateRegenerations() != 2 || i.GetSubscriptions()[0].GetStatus().GetConfigError() != "listener is bad" {
			t.Errorf("after the stream the insight is %v", i)
		}
		s = r.mustOpen(backendNode(), r.dpToken())
		r.registry.Certificate(s.NodeID(), nil)
		pause(time.Second)
		if i := r.insight(); i.GetMTLS() != nil || i.GetSubscriptions()[1].GetStatus().GetConfigError() != "" {
			t.Errorf("without TLS the insight is %v", i)
		}
		s.Close()
	})
}

func TestInsightsAreStoredOnceASecond(t *testing.T) {
	simulate(t, nil, func(r *rig) {
		s := r.mustOpen(backendNode(), r.dpToken())
		pause(5 * time.Second)
		before := r.store.Snapshot().Revision()
		for range 3000 { // three seconds
			s.Sent("type.googleapis.com/envoy.config.listener.v3.Listener")
			pause(time.Millisecond)
		}
		pause(time.Second)
		if got := r.insight().GetSubscriptions()[0].GetStatus().GetLds().GetResponsesSent(); got != 3000 {
			t.Errorf("%d responses are counted", got)
		}
		if n := r.store.Snapshot().Revision() - before; n < 3 || n > 5 {
			t.Errorf("stored %d times", n)
		}
		s.Close()
	})
}

func TestTheStoreFails(t *testing.T) {
	keys()
	synctest.Test(t, func(t *testing.T) {
		var failing atomic.Bool
		r := newRig(t, nil)
		r.stop()
		_ = r.store.Close()
		r.backend = storetest.FailAppends(r.backend.(*memory.Backend), func(store.Group) error {
			if failing.Load() {
				return fmt.Errorf("disk full")
			}
			return nil
		})
		r.openStore()
		r.start()
		s := r.mustOpen(backendNode(), r.dpToken())
		pause(time.Second)
		failing.Store(true)
		s.Sent("type.googleapis.com/envoy.config.listener.v3.Listener")
		pause(time.Minute)
		web := aNode("default.web-1", map[string]any{"dataplane.resource": strings.ReplaceAll(backendResource, "backend-1", "web-1")})
		_, err := r.open(web, r.dpToken())
		if status.Code(err) != codes.Unavailable || reasonOf(err) != storeFailed {
			t.Errorf("a registration is answered with %v", err)
		}
		if s.Check() != nil {
			t.Error("a connected proxy is cut off")
		}
		s.Close()
		pause(time.Minute)
		// The store refuses to go on until it is opened again: what the registry knows is gone then, as in a crash.
		r.stop()
	})
}
