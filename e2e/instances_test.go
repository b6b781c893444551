package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/meridian-mesh/meridian/common/store/postgres/pgtest"
)

func TestInstancesOfAPlaneKnowEachOther(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, "fsync=off")
	globals := newReplicas(t, server, "global", "", 3)
	globals.start()
	stranger := newPlane(t, bin, "global", "")
	stranger.Name = "stranger"
	stranger.env = append(append(stranger.env, globals.join...), "MERIDIAN_INSTANCE_ID=stranger", "MERIDIAN_STORE_TYPE=memory",
		fmt.Sprint("MERIDIAN_KDS_PORT=", freePort(t)), fmt.Sprint("MERIDIAN_CLUSTER_BIND_PORT=", freePort(t)))
	stranger.Start()

	zones := newZoneReplicas(globals, server, "east", 1)
	zones.start()
	holder, leader := globals.holder("east"), globals.leader()
	for _, p := range globals.planes {
		p.eventually(30*time.Second, "knowing who holds the zone", func() error {
			all, l := p.instances(3)
			if held := all[holder.Name].Zones.Names; len(held) != 1 || held[0] != "east" || !all[p.Name].Self || l != leader.Name {
				return fmt.Errorf("shown: %+v", all)
			}
			return nil
		})
	}

	if l := zones.leader(); l.Name != "east-0" {
		t.Errorf("a zone by itself is led by %s", l.Name)
	}
	if all, l := stranger.instances(1); l != "stranger" {
		t.Errorf("a global of another store: %+v", all)
	}
	log, err := os.ReadFile(stranger.logFile())
	if err != nil || !strings.Contains(string(log), "member refused") {
		t.Errorf("nothing is said of it: %v", err)
	}

	leader.Kill()
	died := time.Now()
	for _, p := range globals.running() {
		all, next := p.instances(2)
		t.Logf("%s shows %s gone and %s leading after %s", p.Name, leader.Name, next, time.Since(died))
		if _, there := all[leader.Name]; there || next == leader.Name {
			t.Errorf("%s shows %+v", p.Name, all)
		}
	}
}
