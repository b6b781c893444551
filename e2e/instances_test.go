package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/meridian-mesh/meridian/common/store/postgres/pgtest"
)

// instance is what the tests read of an entry of /status/instances.
type instance struct {
	Name   string
	Self   bool
	Leader bool
	Zones  struct{ Names []string }
}

// instances waits until a plane shows so many, of which one leads, and returns them by name, and the leader's name.
func (p *Plane) instances(n int) (all map[string]instance, leader string) {
	p.t.Helper()
	p.eventually(30*time.Second, fmt.Sprintf("showing %d instances and a leader", n), func() error {
		_, body, err := p.Call(http.MethodGet, "/status/instances", "")
		if err != nil {
			return err
		}
		var list []instance
		if err := json.Unmarshal(body, &list); err != nil {
			return err
		}
		all, leader = map[string]instance{}, ""
		leaders := 0
		for _, i := range list {
			all[i.Name] = i
			if i.Leader {
				leader = i.Name
				leaders++
			}
		}
		if len(list) != n || leaders != 1 {
			return fmt.Errorf("shown: %s", body)
		}
		return nil
	})
	return all, leader
}

func TestInstancesOfAPlaneKnowEachOther(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, "fsync=off")
	keys := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(keys, []byte("MDEyMzQ1Njc4OWFiY2RlZg==\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	ports := []int{freePort(t), freePort(t), freePort(t), freePort(t)}
	start := func(i int, more ...string) *Plane {
		p := newPlane(t, bin, "global", "")
		p.KDS = freePort(t)
		p.env = append(append(p.env, fmt.Sprint("MERIDIAN_KDS_PORT=", p.KDS), fmt.Sprint("MERIDIAN_INSTANCE_ID=global-", i),
			"MERIDIAN_CLUSTER_BIND_ADDRESS=127.0.0.1", fmt.Sprint("MERIDIAN_CLUSTER_BIND_PORT=", ports[i]), "MERIDIAN_CLUSTER_KEY_FILE="+keys,
			fmt.Sprintf("MERIDIAN_CLUSTER_JOIN=localhost:%d,127.0.0.1:%d", ports[0], ports[1])), more...)
		p.Start()
		return p
	}
	planes := map[string]*Plane{}
	for i := range 3 {
		planes[fmt.Sprint("global-", i)] = start(i, "MERIDIAN_STORE_TYPE=postgres", "MERIDIAN_STORE_POSTGRES_URL="+server.URL())
	}
	stranger := start(3, "MERIDIAN_STORE_TYPE=memory")

	s := &System{Global: planes["global-2"]}
	zone := s.newZone(bin, "east")
	zone.Start()
	s.waitActive("east", true, 15*time.Second)
	_, leader := s.Global.instances(3)
	for name, p := range planes {
		p.eventually(30*time.Second, "knowing who holds the zone", func() error {
			all, l := p.instances(3)
			if held := all["global-2"].Zones.Names; len(held) != 1 || held[0] != "east" || !all[name].Self || l != leader {
				return fmt.Errorf("shown: %+v", all)
			}
			return nil
		})
	}

	if all, l := zone.instances(1); l == "" || !all[l].Self {
		t.Errorf("a zone by itself: %+v", all)
	}
	if all, l := stranger.instances(1); l != "global-3" {
		t.Errorf("a global of another store: %+v", all)
	}
	log, err := os.ReadFile(stranger.logFile())
	if err != nil || !strings.Contains(string(log), "member refused") {
		t.Errorf("nothing is said of it: %v", err)
	}

	planes[leader].Kill()
	died := time.Now()
	delete(planes, leader)
	for name, p := range planes {
		all, next := p.instances(2)
		t.Logf("%s shows %s gone and %s leading after %s", name, leader, next, time.Since(died))
		if _, there := all[leader]; there || next == leader {
			t.Errorf("%s shows %+v", name, all)
		}
	}
}
