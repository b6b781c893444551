package storetest_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/storetest"
)

func TestConformanceOfTheDatabaseInMemory(t *testing.T) {
	opener := func(*testing.T) storetest.Opener {
		d := storetest.NewDatabase()
		return func() (store.Backend, error) { return d.Replica(), nil }
	}
	storetest.Run(t, opener)
	storetest.RunReplicas(t, opener)
}

// openReplicas opens three stores on one database; wrap stands between.
func openReplicas(t *testing.T, d *storetest.Database, wrap func(int, *storetest.Replica) store.Backend) []*store.Store {
	t.Helper()
	var all []*store.Store
	for i := range 3 {
		s, err := store.Open(t.Context(), wrap(i, d.Replica()), store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		all = append(all, s)
	}
	return all
}

// blinking takes the database away, for moments.
func blinking(d *storetest.Database) func(context.Context, *rand.Rand) error {
	return func(ctx context.Context, rng *rand.Rand) error {
		defer d.SetAway(nil)
		for ctx.Err() == nil {
			select {
			case <-time.After(time.Duration(rng.IntN(20)) * time.Millisecond):
			case <-ctx.Done():
			}
			d.SetAway(errors.New("away"))
			select {
			case <-time.After(time.Duration(rng.IntN(5)) * time.Millisecond):
			case <-ctx.Done():
			}
			d.SetAway(nil)
		}
		return nil
	}
}

func TestReplicasAreLinearizableWhileTheDatabaseComesAndGoes(t *testing.T) {
	d := storetest.NewDatabase()
	var n atomic.Int64
	h := storetest.History{
		Seed: rand.Uint64(), Clients: 3, Calls: 100, Disturb: blinking(d),
		Replicas: openReplicas(t, d, func(_ int, r *storetest.Replica) store.Backend {
			r.LosesAnswers = func() bool { return n.Add(1)%40 == 0 }
			return r
		}),
	}
	err := h.Run(t.Context())
	t.Log(&h)
	if err != nil {
		t.Fatal(err)
	}
}

// buggy is a replica with a bug.
type buggy struct {
	*storetest.Replica
	lock     func(*storetest.Replica, store.Revision) store.Revision
	append   func(context.Context, *storetest.Replica, store.Group) error
	put      func(*store.Record) bool // false: Follow leaves it out
	advanced func() <-chan struct{}
}

func (b *buggy) Lock(ctx context.Context) (store.Revision, error) {
	rev, err := b.Replica.Lock(ctx)
	if b.lock != nil && err == nil {
		rev = b.lock(b.Replica, rev)
	}
	return rev, err
}

func (b *buggy) Append(ctx context.Context, g store.Group) error {
	if b.append != nil {
		return b.append(ctx, b.Replica, g)
	}
	return b.Replica.Append(ctx, g)
}

func (b *buggy) Follow(ctx context.Context, record func(*store.Record) error, tombstone func(store.Tombstone) error) (store.Head, error) {
	return b.Replica.Follow(ctx, func(r *store.Record) error {
		if b.put != nil && !b.put(r) {
			return nil
		}
		return record(r)
	}, tombstone)
}

func (b *buggy) Advanced() <-chan struct{} {
	if b.advanced != nil {
		return b.advanced()
	}
	return b.Replica.Advanced()
}

// The history above finds these bugs.
func TestTheHistoryFindsAReplicaThat(t *testing.T) {
	var n atomic.Int64
	every := func(k int64) bool { return n.Add(1)%k == 0 }
	for _, bug := range []struct {
		name string
		make buggy
	}{
		{"is not told of what others commit", buggy{advanced: func() <-chan struct{} { return nil }}},
		{"leaves out a change when it follows", buggy{put: func(*store.Record) bool { return !every(10) }}},
		{"loses a batch", buggy{append: func(ctx context.Context, r *storetest.Replica, g store.Group) error {
			if every(10) {
				g.Batches = slices.Clone(g.Batches)
				g.Batches[len(g.Batches)-1].Puts = nil
			}
			return r.Append(ctx, g)
		}}},
		{"decides on a stale head", buggy{lock: func(r *storetest.Replica, newest store.Revision) store.Revision {
			if every(2) {
				return r.Known()
			}
			return newest
		}}},
		{"says that a batch was refused which it stored", buggy{append: func(ctx context.Context, r *storetest.Replica, g store.Group) error {
			err := r.Append(ctx, g)
			if err == nil && every(10) {
				return errors.New("refused")
			}
			return err
		}}},
		{"acknowledges a batch that was not stored", buggy{append: func(ctx context.Context, r *storetest.Replica, g store.Group) error {
			if every(10) {
				r.Unlock(ctx)
				return nil
			}
			return r.Append(ctx, g)
		}}},
	} {
		t.Run(bug.name, func(t *testing.T) {
			for range 10 {
				d := storetest.NewDatabase()
				h := storetest.History{
					Seed: rand.Uint64(), Clients: 3, Calls: 60, Patience: 3 * time.Second,
					Replicas: openReplicas(t, d, func(i int, r *storetest.Replica) store.Backend {
						b := bug.make
						if b.Replica = r; i == 0 && bug.make.advanced != nil {
							b.advanced = nil // this one writes the last batch
						}
						return &b
					}),
				}
				if err := h.Run(t.Context()); err != nil {
					t.Log(err)
					return
				}
			}
			t.Error("the bug went unnoticed")
		})
	}
}

func TestARestoredDatabaseIsReadAnew(t *testing.T) {
	d := storetest.NewDatabase()
	replicas := openReplicas(t, d, func(_ int, r *storetest.Replica) store.Backend { return r })
	put := func(s *store.Store, typ, name string) {
		t.Helper()
		_, err := s.Update(t.Context(), func(*store.Snapshot) ([]store.Op, error) {
			return []store.Op{store.Put(&store.Record{Key: store.Key{Type: typ, Mesh: "m", Name: name}})}, nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	put(replicas[0], "T", "kept")
	restore := d.Backup()
	put(replicas[0], "T", "lost")
	put(replicas[1], "Gone", "type that the backup does not have")
	for _, s := range replicas {
		if err := storetest.Await(t.Context(), s, 3); err != nil {
			t.Fatal(err)
		}
	}
	id := replicas[0].ID()
	restore()
	for _, s := range replicas {
		if err := storetest.Await(t.Context(), s, 4); err != nil {
			t.Fatal(err)
		}
		head := s.Snapshot()
		if s.ID() == id {
			t.Error("the store ID is the old one")
		}
		if _, ok := head.Get(store.Key{Type: "T", Mesh: "m", Name: "lost"}); ok {
			t.Error("what the backup does not have is still there")
		}
		for _, typ := range []string{"T", "Gone"} {
			if _, err := head.Changes(typ, 3); !errors.Is(err, store.ErrCompacted) {
				t.Errorf("changes of %s since the old history: %v", typ, err)
			}
		}
	}
	put(replicas[2], "T", "new")
	if err := storetest.Equal(t.Context(), replicas...); err != nil {
		t.Error(err)
	}
}

func TestWritesAreRefusedAtOnceWhileTheDatabaseIsAway(t *testing.T) {
	d := storetest.NewDatabase()
	s := openReplicas(t, d, func(_ int, r *storetest.Replica) store.Backend { return r })[0]
	d.SetAway(errors.New("connection refused"))
	update := func() error {
		_, err := s.Update(t.Context(), func(*store.Snapshot) ([]store.Op, error) {
			return []store.Op{store.Put(&store.Record{Key: store.Key{Type: "T", Mesh: "m", Name: "a"}})}, nil
		})
		return err
	}
	for range 3 {
		if err := update(); !errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrFailed) || errors.Is(err, store.ErrUnknown) {
			t.Fatalf("update answered %v", err)
		}
	}
	if err := s.Err(); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Err: %v", err)
	}
	if err := s.Ready(); err != nil {
		t.Errorf("not ready, though it serves: %v", err)
	}
	d.SetAway(nil)
	for s.Err() != nil { // the test's own deadline bounds this
		time.Sleep(time.Millisecond)
	}
	if err := update(); err != nil {
		t.Fatal(err)
	}
}
