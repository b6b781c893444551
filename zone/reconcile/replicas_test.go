package reconcile

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/vips"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/storetest"
	"github.com/meridian-mesh/meridian/zone/envoy"
	"github.com/meridian-mesh/meridian/zone/xds"
)

// newReplicas starts reconcilers, each with a store of its own, on one database.
func newReplicas(t *testing.T, n int, builders Builders) []*rig {
	t.Helper()
	db := storetest.NewDatabase()
	var list []*rig
	for range n {
		st, err := store.Open(t.Context(), db.Replica(), store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		r := newRig(t, func(o *Options) {
			_ = o.Store.Close()
			o.Store, o.Builders = st, builders
		})
		r.start()
		list = append(list, r)
	}
	return list
}

// table is the stored addresses of the mesh m, by the names of services.
func (r *rig) table() map[string]string {
	rec, ok := r.st.Snapshot().Get(configKey("m"))
	if !ok {
		return nil
	}
	table, err := parseTable(rec)
	if err != nil {
		r.tb.Fatal(err)
	}
	out := make(map[string]string)
	for e, a := range table {
		if e.Kind == vips.Service {
			out[e.Name] = a.Address.String()
		}
	}
	return out
}

// Services come and go at two replicas at once. All use the addresses that are stored; a name keeps its address for as long as
// it lives, and no address is given twice.
func TestReplicasAgreeOnVirtualAddresses(t *testing.T) {
	for seed := range uint64(20) {
		synctest.Test(t, func(t *testing.T) {
			all := newReplicas(t, 2, modelBuilders)
			defer func() {
				for _, r := range all {
					r.stop()
				}
			}()
			all[0].write(put(resource.Mesh, "", "m", &meshv1.Mesh{}))
			settle()
			random := rand.New(rand.NewPCG(seed, 0)) //nolint:gosec // a repeatable history
			lives := make(map[string]bool)
			had := make(map[string]string)
			for round := range 12 {
				// Without a pause, so that each replica sees them in its own steps.
				for range 4 {
					name := fmt.Sprintf("s-%d", random.IntN(8))
					r := all[random.IntN(2)]
					if lives[name] && random.IntN(3) == 0 {
						r.write(del(resource.Dataplane, "m", name))
						delete(lives, name)
						delete(had, name)
					} else {
						r.write(put(resource.Dataplane, "m", name, workload("10.0.0.1", nil, in(80, http(name)))))
						lives[name] = true
					}
					time.Sleep(time.Duration(random.IntN(8)) * time.Millisecond)
				}
				if round%3 == 2 {
					time.Sleep(3 * settleAfter)
				}
				settle()
				table := all[0].table()
				for name, address := range had {
					if table[name] != address {
						t.Fatalf("seed %d: %s had %s, and now %v", seed, name, address, table)
					}
				}
				seen := make(map[string]string)
				for name, address := range table {
					if other := seen[address]; other != "" {
						t.Fatalf("seed %d: %s and %s have the address %s", seed, name, other, address)
					}
					seen[address] = name
				}
				for name := range lives {
					if had[name] = table[name]; had[name] == "" {
						t.Fatalf("seed %d: %s has no address: %v", seed, name, table)
					}
				}
				if diff := cmp.Diff(all[0].r.world.Mesh("m").VIPs, all[1].r.world.Mesh("m").VIPs); diff != "" {
					t.Fatalf("seed %d: the replicas differ:\n%s", seed, diff)
				}
			}
			time.Sleep(3 * settleAfter)
			synctest.Wait()
			if got, want := slices.Sorted(maps.Keys(all[0].table())), slices.Sorted(maps.Keys(lives)); !slices.Equal(got, want) {
				t.Errorf("seed %d: at rest %v have addresses, and %v live", seed, got, want)
			}
			revision := all[0].st.Snapshot().Revision()
			time.Sleep(time.Hour)
			synctest.Wait()
			if all[0].st.Snapshot().Revision() != revision {
				t.Errorf("seed %d: tables are written while nothing happens", seed)
			}
		})
	}
}

// A proxy that comes over from another replica is given what it has, but for a certificate of its own.
func TestReplicasConfigureAlike(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		authority := newAuthority(t)
		all := newReplicas(t, 2, Builders{
			Sidecar: SidecarBuilder(authority), Ingress: IngressBuilder(authority), Egress: EgressBuilder(authority),
			LoadAssignment: envoy.LoadAssignment,
		})
		defer func() {
			for _, r := range all {
				r.stop()
			}
		}()
		all[0].write(secured(t, "m")...)
		proxies := []Connected{
			sidecar("m", "a"), sidecar("m", "b"), sidecar("m", "t"),
			{NodeID: ".in", Kind: Ingress, Name: "in"}, {NodeID: "egress/.out", Kind: Egress, Name: "out"},
		}
		transparent := workload("10.0.0.3", nil, in(80, http("transparent")))
		transparent.Networking.TransparentProxying = &meshv1.Dataplane_Networking_TransparentProxying{RedirectPortInbound: 15006, RedirectPortOutbound: 15001}
		for i, op := range []store.Op{
			put(resource.Dataplane, "m", "b", workload("10.0.0.2", []string{"web"}, in(80, http("backend")))),
			put(resource.Dataplane, "m", "a", workload("10.0.0.1", []string{"backend", "transparent"}, in(80, http("web")), in(81, tags{"kuma.io/service": "tcp"}))),
			put(resource.Dataplane, "m", "t", transparent),
			put(resource.ZoneIngress, "", "in", &meshv1.ZoneIngress{Networking: &meshv1.ZoneIngress_Networking{
				Address: "10.0.0.4", Port: 10001, AdvertisedAddress: "192.0.2.1", AdvertisedPort: 10001,
			}}),
			put(resource.ZoneEgress, "", "out", &meshv1.ZoneEgress{Networking: &meshv1.ZoneEgress_Networking{Address: "10.0.0.5", Port: 10002}}),
		} {
			all[i%2].write(op)
		}
		for _, p := range proxies {
			all[0].r.Connected(p)
		}
		time.Sleep(3 * settleAfter)
		synctest.Wait()
		for _, p := range proxies { // the old stream may go on for a while
			all[1].r.Connected(p)
		}
		time.Sleep(3 * settleAfter)
		synctest.Wait()
		for _, p := range proxies {
			was, _ := all[0].pub.get(p.NodeID)
			now, _ := all[1].pub.get(p.NodeID)
			if was == nil || now == nil {
				t.Fatalf("%s is not configured: %q, %q", p.NodeID, all[0].pub.failure(p.NodeID), all[1].pub.failure(p.NodeID))
			}
			for _, k := range allKinds {
				if k != xds.Secret && was.Version(k) != now.Version(k) {
					t.Errorf("%s: the other replica has other resources of %s: %v, %v", p.NodeID, k.TypeURL(), namesOf(was, k), namesOf(now, k))
				}
			}
			if x, y := namesOf(was, xds.Secret), namesOf(now, xds.Secret); !slices.Equal(x, y) {
				t.Errorf("%s: the secrets are %v at one replica, %v at the other", p.NodeID, x, y)
			}
		}
		if len(all[1].r.world.Mesh("m").VIPs) == 0 {
			t.Error("no service has an address, so that this test shows too little")
		}
	})
}

func namesOf(c *xds.Config, k xds.Kind) []string {
	var names []string
	for _, r := range c.Resources(k) {
		names = append(names, r.Name)
	}
	return names
}

// What is offered through an ingress whose process has died is taken back by the others, unless it comes back at one of them.
func TestAnIngressOfADeadReplicaIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newOfferRig(t)
		r.put(resource.ZoneIngress, &meshv1.ZoneIngress{AvailableServices: r.services})
		sub := &meshv1.DiscoverySubscription{Id: "1", ConnectTime: timestamppb.Now()}
		insight := func() {
			r.put(resource.ZoneIngressInsight, &meshv1.ZoneIngressInsight{Subscriptions: []*meshv1.DiscoverySubscription{sub}})
		}
		insight()
		defer r.runs()()
		time.Sleep(time.Hour)
		for range 3 {
			sub.DisconnectTime = timestamppb.Now()
			insight()
			time.Sleep(awaitReturn - time.Second)
			r.offers(true, "it may come back")
			sub.DisconnectTime = nil
			insight()
			time.Sleep(time.Hour)
			r.offers(true, "it is back, elsewhere")
		}
		sub.DisconnectTime = timestamppb.Now()
		insight()
		time.Sleep(awaitReturn)
		r.offers(false, "it does not come back")
		revision := r.store.Snapshot().Revision()
		time.Sleep(time.Hour)
		synctest.Wait()
		if r.store.Snapshot().Revision() != revision {
			t.Error("it is written while nothing happens")
		}
	})
}
