package simulation

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/meridian-mesh/meridian/api/resource"
)

// wantIngress checks whether a zone sees the ingress of another.
func (z *zonePlane) wantIngress(t *testing.T, of string, want bool, when string) {
	t.Helper()
	if _, got := z.st.Snapshot().ByWireName(string(resource.ZoneIngress), "global", "", of+".ingress"); got != want {
		t.Errorf("%s: %s has the ingress of %s: %t, want %t", when, z.name, of, got, want)
	}
}

func TestTheIngressOfAZoneWhosePlaneDiesIsWithdrawnUntilItIsBack(t *testing.T) {
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
		z2.put(t, resource.ZoneIngress, "", "ingress", ingress("10.0.0.9"))
		settle(time.Second)
		z1.wantIngress(t, "zone-2", true, "while both are connected")

		z2.kill()
		settle(time.Second)
		z1.wantIngress(t, "zone-2", false, "a second after zone-2 died")
		g.restart(t)
		settle(15 * time.Second)
		z1.wantIngress(t, "zone-2", false, "after the global restarted meanwhile")
		z2.start(t)
		settle(2 * time.Second)
		z1.wantIngress(t, "zone-2", true, "once zone-2 is back")

		z2.stop()
		settle(time.Minute)
		z1.wantIngress(t, "zone-2", true, "while zone-2 is stopped in an orderly way")
		z2.start(t)
		settle(15 * time.Second)

		for _, l := range g.net.of("zone-2") {
			l.freeze()
		}
		settle(10 * time.Second)
		z1.wantIngress(t, "zone-2", false, "once zone-2 is silent for longer than the health timeout")
		for _, l := range g.net.of("zone-2") {
			l.thaw()
		}
		settle(30 * time.Second)
		z1.wantIngress(t, "zone-2", true, "once zone-2 speaks again")
	})
}

func TestNothingIsWithdrawnWhileMoreZonesAreGoneThanAreHere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGlobal(t)
		g.start(t)
		defer func() { g.stop() }()
		all := []*zonePlane{newZone(t, "zone-1", g), newZone(t, "zone-2", g), newZone(t, "zone-3", g)}
		for _, z := range all {
			z.start(t)
			defer func() { z.stop() }()
		}
		settle(2 * time.Second)
		all[1].put(t, resource.ZoneIngress, "", "ingress", ingress("10.0.0.9"))
		settle(time.Second)
		all[1].kill()
		all[2].kill()
		settle(time.Minute)
		all[0].wantIngress(t, "zone-2", true, "while two of three zones are gone")
		all[2].start(t)
		settle(15 * time.Second)
		all[0].wantIngress(t, "zone-2", false, "once only zone-2 is gone")
	})
}

func TestTheGlobalsOwnRestartWithdrawsNothing(t *testing.T) {
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
		z2.put(t, resource.ZoneIngress, "", "ingress", ingress("10.0.0.9"))
		settle(time.Second)
		seen := z1.st.Snapshot().LastChange(string(resource.ZoneIngress))
		g.kill()
		settle(5 * time.Second)
		g.start(t)
		settle(30 * time.Second)
		if now := z1.st.Snapshot().LastChange(string(resource.ZoneIngress)); now != seen {
			t.Errorf("zone-1 saw its ingresses change at revision %d, after %d", now, seen)
		}
	})
}
