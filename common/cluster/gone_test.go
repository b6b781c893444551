package cluster

import (
	"testing"
	"testing/synctest"
	"time"
)

// goes waits until Gone answers so, woken by nothing but Changed, and returns how long it took.
func goes(t *testing.T, c *Cluster, instance string, gone bool) time.Duration {
	t.Helper()
	started, timeout := time.Now(), time.After(time.Minute)
	for {
		changed := c.Changed()
		if c.Gone(instance) == gone {
			return time.Since(started)
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("%s: Gone(%q) is still %t", c.o.Name, instance, !gone)
		}
	}
}

func TestMembersAreNotGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b, c := three(t, newNetwork(t))
		time.Sleep(time.Minute)
		for _, r := range []*replica{a, b, c} {
			for _, other := range []string{"a", "b", "c"} {
				if r.Gone(other) {
					t.Errorf("%s takes %s for gone", r.o.Name, other)
				}
			}
		}
	})
}

func TestWhoLeavesIsGoneAtOnceAndBackAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		a, _, c := three(t, n)
		c.stop()
		if d := goes(t, a.Cluster, "c", true); d > time.Second {
			t.Errorf("gone after %s", d)
		}
		startOn(t, n, "c", c.address, nil)
		goes(t, a.Cluster, "c", false)
	})
}

func TestWhoDiesIsGoneWithinFiveSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		a, b, c := three(t, n)
		cut := func(cut bool) { n.part(a.address, c.address, cut); n.part(b.address, c.address, cut) }
		cut(true)
		for _, r := range []*replica{a, b} {
			if d := goes(t, r.Cluster, "c", true); d > 5*time.Second {
				t.Errorf("%s takes it for gone after %s", r.o.Name, d)
			}
		}
		// To the one that is cut off, the others are gone: it cannot know better.
		goes(t, c.Cluster, "a", true)
		goes(t, c.Cluster, "b", true)
		cut(false)
		for _, r := range []*replica{a, b} {
			goes(t, r.Cluster, "c", false)
		}
		goes(t, c.Cluster, "a", false)
	})
}

// What was there before this replica started, it cannot have heard of: it gives it the time to be found.
func TestAStrangerIsGoneOnceItHadTheTimeToJoin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := startOn(t, newNetwork(t), "a", "10.0.0.1:7946", nil)
		time.Sleep(time.Hour) // counts from the question, not from the start
		if a.Gone("b") {
			t.Fatal("gone at the first question")
		}
		time.Sleep(strangerPatience / 2)
		if a.Gone("b") || a.Gone("later") {
			t.Fatal("gone too early")
		}
		if d := goes(t, a.Cluster, "b", true); d != strangerPatience/2 {
			t.Errorf("gone after another %s", d)
		}
		if d := goes(t, a.Cluster, "later", true); d != strangerPatience/2 {
			t.Errorf("the other is gone after another %s", d)
		}
		if !a.Gone("b") {
			t.Error("no longer gone")
		}
	})
}

func TestAStrangerThatJoinsInTimeIsNotGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		a := startOn(t, n, "a", "10.0.0.1:7946", nil)
		if a.Gone("b") {
			t.Fatal("gone at the first question")
		}
		startOn(t, n, "b", "10.0.0.2:7946", nil)
		for range 60 {
			time.Sleep(time.Second)
			if a.Gone("b") {
				t.Fatal("gone")
			}
		}
	})
}

func TestWithoutMembershipEveryOtherIsGone(t *testing.T) {
	c, err := New(Options{Config: Default(), Name: "a", Plane: func() string { return "plane-1" }})
	if err != nil {
		t.Fatal(err)
	}
	if c.Gone("a") || !c.Gone("b") {
		t.Errorf("own %t, other %t", c.Gone("a"), c.Gone("b"))
	}
}
