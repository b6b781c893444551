package simulation

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meridian-mesh/meridian/api/resource"
)

// A zone that is asked to connect anew does so as it reconnects at any other time: nothing is sent again, and it is not taken for lost.
func TestLesson44_AnOldSessionMovesAndResumes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGlobal(t)
		g.maxSessionAge = 20 * time.Second
		g.start(t)
		defer func() { g.stop() }()
		z1, z2 := newZone(t, "zone-1", g), newZone(t, "zone-2", g)
		for _, z := range []*zonePlane{z1, z2} {
			z.start(t)
			defer func() { z.stop() }()
		}
		for i := range 50 {
			g.put(t, "TrafficPermission", "default", fmt.Sprint("tp-", i), permission("web"))
		}
		z2.put(t, resource.ZoneIngress, "", "ingress", ingress("10.0.0.9"))
		settle(5 * time.Second)
		before := sent(t, g.registry) + sent(t, z1.registry) + sent(t, z2.registry)
		for range 600 {
			settle(100 * time.Millisecond)
			z1.wantIngress(t, "zone-2", true, "whenever zone-2 moves")
		}
		if again := sent(t, g.registry) + sent(t, z1.registry) + sent(t, z2.registry) - before; again != 0 {
			t.Errorf("%v resources were sent again", again)
		}
		for _, zone := range []string{"zone-1", "zone-2"} {
			insight, _ := g.table.Insight(zone)
			if n := len(insight.GetSubscriptions()); n < 3 || n > 5 { // 65 s in steps of 18 to 22
				t.Errorf("%s had %d sessions", zone, n)
			}
		}
		if d := diverged(g, z1, z2); d != "" {
			t.Error(d)
		}
	})
}

// sent is how many resources a process has sent.
func sent(t *testing.T, r *prometheus.Registry) (sum float64) {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "meridian_kds_sent_resources_total" {
			for _, m := range f.GetMetric() {
				sum += m.GetCounter().GetValue()
			}
		}
	}
	return sum
}
