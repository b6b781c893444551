package cluster

import (
	"encoding/json"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
)

// shared is the store of all replicas of a test.
func shared(t *testing.T) *store.Store {
	t.Helper()
	s, err := store.Open(t.Context(), memory.New(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// seeded has a replica find the others by the store alone.
func seeded(s *store.Store) func(*Options) {
	return func(o *Options) { o.Config.Join, o.Seeds = nil, s }
}

func seedsOf(t *testing.T, s *store.Store) (names []string) {
	t.Helper()
	for rec := range s.Snapshot().List(seedType, "") {
		var got seed
		if err := json.Unmarshal(rec.Spec, &got); err != nil || got.Address == "" || got.Started.IsZero() {
			t.Errorf("%s: %s, %v", rec.Key, rec.Spec, err)
		}
		names = append(names, rec.Key.Name)
	}
	return names
}

func TestReplicasFindEachOtherByTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, n := shared(t), newNetwork(t)
		a := startOn(t, n, "a", "10.0.0.1:7946", seeded(s))
		b := startOn(t, n, "b", "10.0.0.2:7946", seeded(s))
		c := startOn(t, n, "c", "10.0.0.3:7946", seeded(s))
		for _, r := range []*replica{a, b, c} {
			wants(t, r.Cluster, 30*time.Second, "joined", names("a", "b", "c"))
		}
		b.stop()
		synctest.Wait()
		if got := seedsOf(t, s); !slices.Equal(got, []string{"a", "c"}) {
			t.Errorf("after an orderly stop: %q", got)
		}
		revision := s.Snapshot().Revision()
		time.Sleep(time.Hour)
		if got := s.Snapshot().Revision(); got != revision {
			t.Errorf("%d writes in an hour without change", got-revision)
		}
		b = startOn(t, n, "b", "10.0.0.4:7946", seeded(s)) // at another address
		for _, r := range []*replica{a, b, c} {
			wants(t, r.Cluster, 30*time.Second, "joined again", names("a", "b", "c"))
		}
	})
}

func TestTheRecordOfADeadReplicaIsRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, n := shared(t), newNetwork(t)
		a := startOn(t, n, "a", "10.0.0.1:7946", seeded(s))
		startOn(t, n, "b", "10.0.0.2:7946", seeded(s))
		wants(t, a.Cluster, 30*time.Second, "joined", names("a", "b"))
		// One that died long before these were started, and one whose record nobody understands.
		for name, spec := range map[string]string{"past": `{"address":"10.0.0.9:7946"}`, "odd": `[]`} {
			if _, err := s.Update(t.Context(), func(*store.Snapshot) ([]store.Op, error) {
				return []store.Op{store.Put(&store.Record{Key: seedKey(name), Spec: []byte(spec)})}, nil
			}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(seedPatience)
		if s.Snapshot().Count(seedType, "") != 4 {
			t.Error("removed at once")
		}
		time.Sleep(strangerPatience + 2*seedInterval)
		if got := seedsOf(t, s); !slices.Equal(got, []string{"a", "b"}) {
			t.Errorf("still there: %q", got)
		}
	})
}

// Replicas that are cut off from each other write to one store. What one removes the other writes again, at a pace, and so they are
// together when the network is mended, however long that took.
func TestACutNetworkHealsByTheStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, n := shared(t), newNetwork(t)
		a := startOn(t, n, "a", "10.0.0.1:7946", seeded(s))
		b := startOn(t, n, "b", "10.0.0.2:7946", seeded(s))
		wants(t, a.Cluster, 30*time.Second, "joined", names("a", "b"))
		n.part(a.address, b.address, true)
		wants(t, a.Cluster, time.Minute, "alone", names("a"))
		before := s.Snapshot().Revision()
		time.Sleep(time.Hour)
		if writes := s.Snapshot().Revision() - before; writes < 60 || writes > 5*60 {
			t.Errorf("%d writes in an hour", writes)
		}
		n.part(a.address, b.address, false)
		for _, r := range []*replica{a, b} {
			wants(t, r.Cluster, time.Minute, "together", names("a", "b"))
		}
	})
}

// A replica that was started again under its name before the old process has ended keeps its own record.
func TestAReplicaRemovesItsOwnRecordOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, n := shared(t), newNetwork(t)
		old := startOn(t, n, "a", "10.0.0.1:7946", seeded(s))
		synctest.Wait()
		next := []byte(`{"address":"10.0.0.2:7946","started":"2026-01-01T00:00:00Z"}`)
		if _, err := s.Update(t.Context(), func(*store.Snapshot) ([]store.Op, error) {
			return []store.Op{store.Put(&store.Record{Key: seedKey("a"), Spec: next})}, nil
		}); err != nil {
			t.Fatal(err)
		}
		old.stop()
		if rec, ok := s.Snapshot().Get(seedKey("a")); !ok || string(rec.Spec) != string(next) {
			t.Error("the record of the next run is gone")
		}
	})
}
