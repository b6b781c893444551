package cluster

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// replica is one member on a network in memory.
type replica struct {
	*Cluster
	address string
	stop    func() // in an orderly way

	mu   sync.Mutex
	held map[string][]string
}

func (r *replica) hold(kind string, names ...string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	next := map[string][]string{kind: names}
	for k, v := range r.held {
		if k != kind {
			next[k] = v
		}
	}
	r.held = next
}

func startOn(t *testing.T, n *network, name, address string, change func(*Options)) *replica {
	t.Helper()
	r := &replica{address: address}
	o := Options{
		Config: Config{BindAddress: "127.0.0.1", BindPort: 7946, Join: []string{"10.0.0.1:7946", "10.0.0.2:7946", "10.0.0.3:7946"}},
		Name:   name, Plane: func() string { return "plane-1" }, Version: "1.0.0", APIPort: 5681, CallPort: 7947,
		Held: func() map[string][]string { r.mu.Lock(); defer r.mu.Unlock(); return r.held },
	}
	if change != nil {
		change(&o)
	}
	o.transport = n.attach(address)
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	r.Cluster = c
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(r.stop)
	return r
}

func three(t *testing.T, n *network) (a, b, c *replica) {
	t.Helper()
	a = startOn(t, n, "a", "10.0.0.1:7946", nil)
	b = startOn(t, n, "b", "10.0.0.2:7946", nil)
	c = startOn(t, n, "c", "10.0.0.3:7946", nil)
	for _, r := range []*replica{a, b, c} {
		wants(t, r.Cluster, 30*time.Second, "joined", names("a", "b", "c"))
	}
	return a, b, c
}

func TestMembersLearnWhatOthersHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c := three(t, newNetwork(t))
		a.hold(Zones, "zone-2", "zone-1")
		for _, r := range []*replica{a, b, c} {
			if d := wants(t, r.Cluster, 10*time.Second, "told", holds("a", Zones, "zone-1")); d > 2*tellInterval {
				t.Errorf("told after %s", d)
			}
		}
		a.hold(Zones, "zone-2")
		wants(t, c.Cluster, 10*time.Second, "told of what is gone", func(all []Member) bool {
			return holds("a", Zones, "zone-2")(all) && !holds("a", Zones, "zone-1")(all)
		})
		for _, m := range c.Members() {
			if want := m.Name == "c"; m.Self != want || m.Version != "1.0.0" || m.Started.IsZero() || !strings.HasSuffix(m.API, ":5681") || !strings.HasSuffix(m.Calls, ":7947") {
				t.Errorf("member: %+v", m)
			}
		}
		b.stop()
	})
}

func TestADeadMemberIsGoneWithinFiveSeconds(t *testing.T) {
	for i := range 20 { // who probes whom is random
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(t)
			a, b, c := three(t, n)
			time.Sleep(time.Duration(i) * 137 * time.Millisecond)
			// The machine dies: nothing leaves or reaches it any more.
			n.part(a.address, c.address, true)
			n.part(b.address, c.address, true)
			died := time.Now()
			for _, r := range []*replica{a, b} {
				wants(t, r.Cluster, time.Minute, "noticed", names("a", "b"))
				if d := time.Since(died); d > 5*time.Second {
					t.Errorf("%s noticed after %s", r.o.Name, d)
				}
			}
		})
	}
}

func TestAMemberThatLeavesIsGoneAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c := three(t, newNetwork(t))
		left := time.Now()
		c.stop()
		for _, r := range []*replica{a, b} {
			wants(t, r.Cluster, time.Minute, "noticed", names("a", "b"))
		}
		if d := time.Since(left); d > time.Second {
			t.Errorf("noticed after %s", d)
		}
	})
}

// memberlist itself forgets the dead, and would leave the halves apart.
func TestALongPartitionHeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		a, b, c := three(t, n)
		cut := func(cut bool) { n.part(a.address, c.address, cut); n.part(b.address, c.address, cut) }
		cut(true)
		wants(t, c.Cluster, time.Minute, "alone", names("c"))
		wants(t, a.Cluster, time.Minute, "two", names("a", "b"))
		c.hold(Proxies, "default/web-1")
		time.Sleep(5 * time.Minute)
		cut(false)
		for _, r := range []*replica{a, b, c} {
			wants(t, r.Cluster, time.Minute, "whole again", names("a", "b", "c"))
			wants(t, r.Cluster, time.Minute, "told", holds("c", Proxies, "default/web-1"))
		}
	})
}

func TestAWayLostBetweenTwoIsNoDeath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		a, _, c := three(t, n)
		n.part(a.address, c.address, true) // b sees both
		time.Sleep(2 * time.Minute)
		for _, r := range []*replica{a, c} {
			if all := r.Members(); !names("a", "b", "c")(all) {
				t.Errorf("%s: %+v", r.o.Name, all)
			}
		}
	})
}

// A replica that comes back before it was missed, under its name and at another address or the same, holds nothing yet.
func TestARestartForgetsWhatWasHeldBefore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		a, _, c := three(t, n)
		c.hold(Zones, "zone-1")
		wants(t, a.Cluster, time.Minute, "told", holds("c", Zones, "zone-1"))
		before := a.Members()[2].Started
		c.stop()
		again := startOn(t, n, "c", c.address, nil)
		wants(t, a.Cluster, time.Minute, "back, with nothing", func(all []Member) bool {
			return names("a", "b", "c")(all) && all[2].Started.After(before) && !all[2].Holds(Zones, "zone-1")
		})
		again.hold(Zones, "zone-2")
		wants(t, a.Cluster, time.Minute, "told", holds("c", Zones, "zone-2"))
	})
}

func TestLongListsAreCutAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, _, c := three(t, newNetwork(t))
		var proxies []string
		for i := range 20_000 {
			proxies = append(proxies, fmt.Sprintf("default/proxy-%06d", i))
		}
		a.hold(Proxies, proxies...)
		wants(t, c.Cluster, time.Minute, "told", holds("a", Proxies, "default/proxy-000000"))
		for _, m := range c.Members() {
			if m.Name != "a" {
				continue
			}
			l := m.Lists[Proxies]
			if size := len(strings.Join(l.Names, `","`)); l.Total != 20_000 || size > maxListBytes || size < maxListBytes/2 {
				t.Errorf("%d of %d names, %d bytes", len(l.Names), l.Total, size)
			}
		}
		msg, err := encodeHeld([]held{{Name: "x", Lists: bounded(map[string][]string{Proxies: proxies})}})
		if err != nil || len(msg) > 2*maxListBytes {
			t.Errorf("%d bytes travel: %v", len(msg), err)
		}
	})
}

func TestARestoredDatabaseKeepsTheMembersTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		var mu sync.Mutex
		ids := map[string]string{}
		id := func(name string) func(*Options) {
			mu.Lock() // the replicas that run already read it
			ids[name] = "before"
			mu.Unlock()
			return func(o *Options) {
				o.Plane = func() string { mu.Lock(); defer mu.Unlock(); return ids[name] }
			}
		}
		a := startOn(t, n, "a", "10.0.0.1:7946", id("a"))
		b := startOn(t, n, "b", "10.0.0.2:7946", id("b"))
		wants(t, a.Cluster, time.Minute, "joined", names("a", "b"))
		for _, name := range []string{"a", "b"} { // one notices later than the other
			mu.Lock()
			ids[name] = "after"
			mu.Unlock()
			time.Sleep(3 * time.Second)
		}
		time.Sleep(time.Minute)
		for _, r := range []*replica{a, b} {
			wants(t, r.Cluster, time.Minute, "together", names("a", "b"))
		}
		c := startOn(t, n, "c", "10.0.0.3:7946", func(o *Options) { o.Plane = func() string { return "after" } })
		wants(t, c.Cluster, time.Minute, "let in", names("a", "b", "c"))
	})
}

func TestMembershipIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		a, b, c := three(t, n)
		want := func(m prometheus.Collector, what string, want float64) {
			t.Helper()
			if got := testutil.ToFloat64(m); got != want {
				t.Errorf("%s: %g, not %g", what, got, want)
			}
		}
		want(a.metrics.members, "members", 3)
		want(a.metrics.departures, "departures", 0)
		n.part(a.address, c.address, true)
		n.part(b.address, c.address, true)
		wants(t, a.Cluster, time.Minute, "noticed", names("a", "b"))
		b.stop()
		wants(t, a.Cluster, time.Minute, "noticed", names("a"))
		want(a.metrics.members, "members", 1)
		want(a.metrics.departures, "departures", 2)
		a.setLease("plane", true)
		want(a.metrics.leading.WithLabelValues("plane"), "leading", 1)
		a.setLease("plane", false)
		want(a.metrics.leading.WithLabelValues("plane"), "leading", 0)
		if err := a.check(&memberlist.Node{Name: "stranger", Meta: []byte(`{"plane":"another"}`)}); err == nil {
			t.Error("a stranger is let in")
		}
		want(a.metrics.refused, "refused", 1)
	})
}
