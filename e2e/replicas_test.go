package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meridian-mesh/meridian/common/store/postgres/pgtest"
	"github.com/meridian-mesh/meridian/e2e/envoy"
)

// replicas are the processes of one plane: they share a database and know of each other. The name of each, such as global-0 or
// east-1, is its instance id too.
type replicas struct {
	t        testing.TB
	database pgtest.Database
	planes   []*Plane
	// links are the replicas' ways to the database, one each.
	links []*pgtest.Proxy
	// gate is a load balancer before the replicas: it leads zones to those of a global, proxies to those of a zone.
	gate *pgtest.Proxy
	// join are the variables by which a process finds the others.
	join []string
}

// newReplicas makes n replicas of a global, or of the zone of that name, on a database of their own. They are not started.
func newReplicas(t testing.TB, server *pgtest.Server, kind, name string, n int, env ...string) *replicas {
	t.Helper()
	keys := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(keys, []byte("MDEyMzQ1Njc4OWFiY2RlZg==\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := &replicas{t: t, database: server.NewSchema(t), gate: pgtest.NewProxy(t)}
	var ports, members, served []string
	for range n {
		port := fmt.Sprint(freePort(t))
		ports, members = append(ports, port), append(members, "127.0.0.1:"+port)
	}
	r.join = []string{
		"MERIDIAN_CLUSTER_BIND_ADDRESS=127.0.0.1", "MERIDIAN_CLUSTER_PEER_PORT=0", "MERIDIAN_CLUSTER_KEY_FILE=" + keys,
		"MERIDIAN_CLUSTER_JOIN=" + strings.Join(members, ","),
	}
	for i := range n {
		p, link := newPlane(t, bin, kind, name), server.NewProxy(t)
		p.Name = fmt.Sprint(p.Name, "-", i)
		p.env = append(p.env, "MERIDIAN_INSTANCE_ID="+p.Name, "MERIDIAN_CLUSTER_BIND_PORT="+ports[i],
			"MERIDIAN_STORE_TYPE=postgres", "MERIDIAN_STORE_POSTGRES_URL="+r.database.Through(link))
		p.env = append(append(p.env, r.join...), env...)
		port := p.Proxies
		if kind == "global" {
			p.KDS = freePort(t)
			p.env = append(p.env, fmt.Sprint("MERIDIAN_KDS_PORT=", p.KDS))
			port = p.KDS
		}
		r.planes, r.links, served = append(r.planes, p), append(r.links, link), append(served, fmt.Sprint("127.0.0.1:", port))
	}
	r.gate.Target(served...)
	return r
}

// newZoneReplicas makes n replicas of a zone of the global that g are. They are not started; g are.
func newZoneReplicas(g *replicas, server *pgtest.Server, name string, n int, env ...string) *replicas {
	g.t.Helper()
	r := newReplicas(g.t, server, "zone", name, n, env...)
	for _, z := range r.planes {
		z.env = append(z.env, fmt.Sprint("MERIDIAN_BOOTSTRAP_XDS_PORT=", r.gate.Port()))
		g.admit(z)
	}
	return r
}

// admit gives a zone its token, and tells it where the replicas of the global are.
func (r *replicas) admit(z *Plane) {
	r.t.Helper()
	(&System{Global: r.running()[0]}).admit(z)
	authorities := filepath.Join(z.Dir, "global-ca.crt")
	if err := os.WriteFile(authorities, r.authorities("kds-ca.crt"), 0o600); err != nil {
		r.t.Fatal(err)
	}
	z.env = append(z.env, fmt.Sprint("MERIDIAN_ZONE_GLOBAL_ADDRESS=grpcs://localhost:", r.gate.Port()),
		"MERIDIAN_ZONE_KDS_CA_FILE="+authorities)
}

// authorities are those of all replicas that have been started.
func (r *replicas) authorities(file string) []byte {
	r.t.Helper()
	var all []byte
	for _, p := range r.planes {
		b, err := os.ReadFile(filepath.Join(p.Dir, "trust", file))
		if err != nil {
			r.t.Fatal(err)
		}
		all = append(all, b...)
	}
	return all
}

// options are those of a proxy of the zone that finds the replicas by way of the gate.
func (r *replicas) options(token, resource string) envoy.Options {
	o := r.planes[0].options(token, resource)
	o.ControlPlane, o.CA = fmt.Sprint("https://localhost:", r.gate.Port()), r.authorities("dp-ca.crt")
	return o
}

// start starts those that do not run, all at once, and waits until they are ready.
func (r *replicas) start() {
	r.t.Helper()
	var started []*Plane
	for _, p := range r.planes {
		if p.cmd == nil {
			p.launch()
			started = append(started, p)
		}
	}
	for _, p := range started {
		p.awaitReady()
	}
}

// running are those that have been started and neither stopped nor killed.
func (r *replicas) running() []*Plane {
	return slices.DeleteFunc(slices.Clone(r.planes), func(p *Plane) bool { return p.cmd == nil })
}

// link is a replica's way to the database.
func (r *replicas) link(p *Plane) *pgtest.Proxy { return r.links[slices.Index(r.planes, p)] }

// named is the replica of that instance id.
func (r *replicas) named(id string) *Plane {
	r.t.Helper()
	i := slices.IndexFunc(r.planes, func(p *Plane) bool { return p.Name == id })
	if i < 0 {
		r.t.Fatalf("there is no replica %q", id)
	}
	return r.planes[i]
}

// leader waits until one of those that run leads, and no others are shown, and returns it.
func (r *replicas) leader() *Plane {
	r.t.Helper()
	running := r.running()
	_, leader := running[0].instances(len(running))
	return r.named(leader)
}

// holder waits until one of those that run holds the session of a zone, and no others are shown, and returns it.
func (r *replicas) holder(zone string) *Plane {
	r.t.Helper()
	running := r.running()
	var holder *Plane
	running[0].eventually(30*time.Second, "knowing who holds "+zone, func() error {
		all, _ := running[0].instances(len(running))
		var held []string
		for id, i := range all {
			if slices.Contains(i.Zones.Names, zone) {
				held = append(held, id)
			}
		}
		if len(held) != 1 {
			return fmt.Errorf("held by %q", held)
		}
		holder = r.named(held[0])
		return nil
	})
	return holder
}

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
