package simulation

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/timestamppb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// connected is the insight of a proxy with a live stream.
func connected() proto.Message {
	return &meshv1.DataplaneInsight{Subscriptions: []*meshv1.DiscoverySubscription{{Id: "s", ConnectTime: &timestamppb.Timestamp{Seconds: 1}}}}
}

// proxies is what the MeshInsight of default counts; nil without one.
func proxies(t testing.TB, st *store.Store) *meshv1.MeshInsight_DataplaneStat {
	t.Helper()
	rec, ok := st.Snapshot().Get(store.Key{Type: string(resource.MeshInsight), Name: "default"})
	if !ok {
		return nil
	}
	var m meshv1.MeshInsight
	if err := proto.Unmarshal(rec.Spec, &m); err != nil {
		t.Fatal(err)
	}
	return m.GetDataplanes()
}

// serviceOf is what a plane knows of a service of default; nil when it knows nothing.
func serviceOf(t testing.TB, st *store.Store, name string) *meshv1.ServiceInsight_Service {
	t.Helper()
	rec, ok := st.Snapshot().Get(store.Key{Type: string(resource.ServiceInsight), Mesh: "default", Name: "all-services-default"})
	if !ok {
		return nil
	}
	var s meshv1.ServiceInsight
	if err := proto.Unmarshal(rec.Spec, &s); err != nil {
		t.Fatal(err)
	}
	return s.GetServices()[name]
}

// What a zone says of its proxies is counted on the global, and every zone knows the services, within a second.
func TestInsightsGoUpAndServicesComeDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGlobal(t)
		g.start(t)
		defer func() { g.stop() }()
		z1, z2 := newZone(t, "zone-1", g), newZone(t, "zone-2", g)
		for _, z := range []*zonePlane{z1, z2} {
			z.start(t)
			defer func() { z.stop() }()
		}
		g.put(t, resource.Mesh, "", "default", meshSpec(0))
		settle(time.Minute)

		expect := func(when string, mesh *meshv1.MeshInsight_DataplaneStat, web *meshv1.ServiceInsight_Service) {
			t.Helper()
			if diff := cmp.Diff(mesh, proxies(t, g.st), protocmp.Transform()); diff != "" {
				t.Errorf("%s: the mesh on the global (-want +got):\n%s", when, diff)
			}
			for plane, st := range map[string]*store.Store{"global": g.st, "zone-1": z1.st, "zone-2": z2.st} {
				if diff := cmp.Diff(web, serviceOf(t, st, "web"), protocmp.Transform()); diff != "" {
					t.Errorf("%s: the service on %s (-want +got):\n%s", when, plane, diff)
				}
			}
		}
		service := func(status meshv1.ServiceInsight_Service_Status, online, offline uint32) *meshv1.ServiceInsight_Service {
			return &meshv1.ServiceInsight_Service{
				Status:      status,
				Dataplanes:  &meshv1.ServiceInsight_Service_DataplaneStat{Total: online + offline, Online: online, Offline: offline},
				AddressPort: "web.mesh:80",
			}
		}
		const up, degraded, down = meshv1.ServiceInsight_Service_online, meshv1.ServiceInsight_Service_partially_degraded, meshv1.ServiceInsight_Service_offline

		z1.put(t, resource.Dataplane, "default", "dp-1", dataplane("10.0.0.1"))
		z1.put(t, resource.DataplaneInsight, "default", "dp-1", connected())
		settle(time.Second)
		expect("one proxy", &meshv1.MeshInsight_DataplaneStat{Total: 1, Online: 1}, service(up, 1, 0))

		settle(time.Minute)
		z2.put(t, resource.Dataplane, "default", "dp-1", dataplane("10.0.0.2"))
		settle(time.Second)
		expect("another without stream", &meshv1.MeshInsight_DataplaneStat{Total: 2, Online: 1, Offline: 1}, service(degraded, 1, 1))

		settle(time.Minute)
		z1.delete(t, resource.DataplaneInsight, "default", "dp-1")
		z1.delete(t, resource.Dataplane, "default", "dp-1")
		settle(time.Second)
		expect("the first deleted", &meshv1.MeshInsight_DataplaneStat{Total: 1, Offline: 1}, service(down, 0, 1))

		// An idle hour writes nothing anywhere.
		settle(time.Minute)
		before := []store.Revision{g.st.Snapshot().Revision(), z1.st.Snapshot().Revision(), z2.st.Snapshot().Revision()}
		settle(time.Hour)
		after := []store.Revision{g.st.Snapshot().Revision(), z1.st.Snapshot().Revision(), z2.st.Snapshot().Revision()}
		if diff := cmp.Diff(before, after); diff != "" {
			t.Errorf("revisions before and after an idle hour (-before +after):\n%s", diff)
		}
	})
}

// A zone that is cut off works on, and so do its proxies: what it last said of them stands, until it says otherwise.
func TestProxiesOfAZoneThatIsCutOffStayAsReported(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGlobal(t)
		g.start(t)
		defer func() { g.stop() }()
		z := newZone(t, "zone-1", g)
		z.start(t)
		defer func() { z.stop() }()
		g.put(t, resource.Mesh, "", "default", meshSpec(0))
		z.put(t, resource.Dataplane, "default", "dp-1", dataplane("10.0.0.1"))
		z.put(t, resource.DataplaneInsight, "default", "dp-1", connected())
		settle(10 * time.Second)
		z.stop()
		settle(time.Hour)
		if live, _ := g.table.Live(g.st.Snapshot(), "zone-1"); live.Online {
			t.Error("the zone is shown online")
		}
		if got := proxies(t, g.st); got.GetOnline() != 1 {
			t.Errorf("the global counts %v", got)
		}
		z.start(t)
		z.delete(t, resource.DataplaneInsight, "default", "dp-1")
		settle(15 * time.Second)
		if got := proxies(t, g.st); got.GetOnline() != 0 || got.GetOffline() != 1 {
			t.Errorf("after the zone came back the global counts %v", got)
		}
	})
}
