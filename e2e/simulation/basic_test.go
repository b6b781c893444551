package simulation

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/meridian-mesh/meridian/api/resource"
)

func TestPairReplicatesBothWays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGlobal(t)
		g.start(t)
		defer func() { g.stop() }()
		z1, z2 := newZone(t, "zone-1", g), newZone(t, "zone-2", g)
		for _, z := range []*zonePlane{z1, z2} {
			z.start(t)
			defer func() { z.stop() }()
		}
		settle(2 * time.Second)
		g.put(t, "TrafficPermission", "default", "allow", permission("*"))
		g.put(t, "MeshTrace", "default", "trace", nil)
		z1.put(t, resource.Dataplane, "default", "dp-1", dataplane("10.0.0.1"))
		z1.put(t, resource.ZoneIngress, "", "ingress", ingress("10.0.0.9"))
		settle(time.Second)
		if d := diverged(g, z1, z2); d != "" {
			t.Fatalf("not converged:\n%s", d)
		}
		if _, ok := z2.st.Snapshot().ByWireName("ZoneIngress", "global", "", "zone-1.ingress"); !ok {
			t.Errorf("zone-2 has no ingress of zone-1")
		}
		g.delete(t, "TrafficPermission", "default", "allow")
		z1.delete(t, resource.Dataplane, "default", "dp-1")
		g.put(t, resource.ZoneType, "", "zone-1", zoneSpec(false))
		settle(time.Second)
		if d := diverged(g, z1, z2); d != "" {
			t.Fatalf("not converged after removals:\n%s", d)
		}
		if _, ok := z2.st.Snapshot().ByWireName("ZoneIngress", "global", "", "zone-1.ingress"); ok {
			t.Errorf("zone-2 still has the ingress of disabled zone-1")
		}
		g.restart(t)
		g.put(t, "TrafficPermission", "default", "again", permission("web"))
		settle(15 * time.Second)
		if d := diverged(g, z1, z2); d != "" {
			t.Fatalf("not converged after the global restarted:\n%s", d)
		}
	})
}
