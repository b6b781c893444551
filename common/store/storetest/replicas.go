package storetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meridian-mesh/meridian/common/store"
)

// RunReplicas checks what a [store.Shared] backend must keep beside everything else. An Opener's later calls open the same
// storage for a further replica, while those before are open.
func RunReplicas(t *testing.T, newBackend func(t *testing.T) Opener) {
	t.Helper()
	for _, c := range ReplicaCases() {
		t.Run(c.Name, func(t *testing.T) {
			if err := c.Check(t.Context(), newBackend(t)); err != nil {
				t.Error(err)
			}
		})
	}
}

// LeaseCases are what leases keep on every backend.
func LeaseCases() []Case {
	return []Case{
		{"a lease has one holder, who renews it", func(e *env) {
			s := e.store(store.Options{})
			first := e.acquire(s, "leader", "a", time.Hour)
			again := e.acquire(s, "leader", "a", 2*time.Hour)
			e.equal("epoch after renewing", first.Epoch, again.Epoch)
			if !again.Expires.After(first.Expires) {
				e.fatalf("renewed until %v, was %v", again.Expires, first.Expires)
			}
			if _, err := s.Acquire(e.ctx, "leader", "b", time.Hour); !errors.Is(err, store.ErrLeaseHeld) {
				e.fatalf("a second holder: %v", err)
			}
			e.acquire(s, "other", "b", time.Hour)
			for _, bad := range []func() (store.Lease, error){
				func() (store.Lease, error) { return s.Acquire(e.ctx, "", "a", time.Hour) },
				func() (store.Lease, error) { return s.Acquire(e.ctx, "leader", "", time.Hour) },
				func() (store.Lease, error) { return s.Acquire(e.ctx, "leader", "a", 0) },
			} {
				if _, err := bad(); !errors.Is(err, store.ErrInvalid) {
					e.fatalf("an impossible lease: %v", err)
				}
			}
		}},
		{"a released lease is free, and who released it writes no more", func(e *env) {
			s := e.store(store.Options{})
			first := e.acquire(s, "leader", "a", time.Hour)
			e.must("update", e.under(s, first, "1"))
			e.must("release", s.Release(e.ctx, first))
			e.lost(s, first)
			second := e.acquire(s, "leader", "b", time.Hour)
			if second.Epoch <= first.Epoch {
				e.fatalf("epoch %d follows %d", second.Epoch, first.Epoch)
			}
			e.must("release what is another's", s.Release(e.ctx, first))
			e.must("update", e.under(s, second, "2"))
		}},
		{"an expired lease passes on, and its former holder writes no more", func(e *env) {
			s := e.store(store.Options{})
			first := e.acquire(s, "leader", "a", 50*time.Millisecond)
			var second store.Lease
			for {
				var err error
				if second, err = s.Acquire(e.ctx, "leader", "b", time.Hour); err == nil {
					break
				}
				if !errors.Is(err, store.ErrLeaseHeld) {
					e.fatalf("acquire: %w", err)
				}
				e.pause(5*time.Millisecond, "a lease of 50ms never ended")
			}
			if second.Epoch <= first.Epoch {
				e.fatalf("epoch %d follows %d", second.Epoch, first.Epoch)
			}
			e.lost(s, first)
			e.must("update", e.under(s, second, "2"))
		}},
		{"losing a lease fails its own updates alone", func(e *env) {
			s := e.store(store.Options{})
			l := e.acquire(s, "leader", "a", time.Hour)
			e.must("release", s.Release(e.ctx, l))
			release := e.hold(s)
			before := e.queued(e.ctx, s, batch(store.Put(full("before"))))
			lost := e.queue(s, func() (store.Revision, error) { return 0, e.under(s, l, "lost") })
			after := e.queued(e.ctx, s, batch(store.Put(full("after"))))
			release()
			e.must("the update before", (<-before).Err)
			if r := <-lost; !errors.Is(r.Err, store.ErrLeaseLost) {
				e.fatalf("the update without its lease: %v", r.Err)
			}
			e.must("the update after", (<-after).Err)
		}},
	}
}

// ReplicaCases returns what a shared backend must keep when several stores have it open.
func ReplicaCases() []Case {
	return []Case{
		{"what one replica commits the others see", func(e *env) {
			a, b := e.store(store.Options{}), e.store(store.Options{})
			e.equal("ID", a.ID(), b.ID())
			e.commit(a, store.Put(full("x")), store.Put(full("y")))
			e.commit(a, store.Delete(full("x").Key))
			e.await(b, 2)
			e.same(a, b)
			e.equal("next revision", store.Revision(3), e.commit(b, store.Put(full("x"))))
			e.await(a, 3)
			e.same(a, b)
		}},
		{"an update is decided on what every replica committed before", func(e *env) {
			replicas := []*store.Store{e.store(store.Options{}), e.store(store.Options{}), e.store(store.Options{})}
			for i := range 60 {
				s := replicas[i%3]
				var seen int
				if _, err := s.Update(e.ctx, func(head *store.Snapshot) ([]store.Op, error) { // a read that is never stale
					seen = head.Count("T", "")
					return nil, nil
				}); err != nil {
					e.fatalf("read: %w", err)
				}
				e.equal("records", i, seen)
				latest, err := replicas[(i+1)%3].Latest(e.ctx)
				e.must("latest state", err)
				e.equal("records of the latest state", i, latest.Count("T", ""))
				e.equal("revision", store.Revision(i+1), e.commit(replicas[(i+1)%3], store.Put(record("T", "m", fmt.Sprint(i), "1")).If(0)))
				e.refusedAnyway(replicas[(i+2)%3], store.ErrConflict, store.Put(record("T", "m", fmt.Sprint(i), "2")).If(0))
			}
		}},
		{"of writers on all replicas that expect the same version one wins", func(e *env) {
			replicas := []*store.Store{e.store(store.Options{}), e.store(store.Options{}), e.store(store.Options{})}
			for round := range 20 {
				won := make(chan struct{}, 12)
				var g errgroup.Group
				for i := range 12 {
					g.Go(func() error {
						_, err := replicas[i%3].Update(e.ctx, batch(store.Put(record("T", "m", fmt.Sprint(round), fmt.Sprint(i))).If(0)))
						switch {
						case err == nil:
							won <- struct{}{}
						case !errors.Is(err, store.ErrConflict):
							return err
						}
						return nil
					})
				}
				e.must("writers", g.Wait())
				e.equal("winners", 1, len(won))
			}
		}},
		{"counters on all replicas lose no increment", func(e *env) {
			replicas := []*store.Store{e.store(store.Options{}), e.store(store.Options{}), e.store(store.Options{})}
			const writers, writes = 6, 20
			var g errgroup.Group
			for w := range writers {
				g.Go(func() error {
					for range writes {
						_, err := replicas[w%3].Update(e.ctx, func(head *store.Snapshot) ([]store.Op, error) {
							n := 0
							if r, ok := head.Get(key("C", "", "counter")); ok {
								n = len(r.Spec)
							}
							return []store.Op{store.Put(&store.Record{Key: key("C", "", "counter"), Spec: make([]byte, n+1)})}, nil
						})
						if err != nil {
							return err
						}
					}
					return nil
				})
			}
			e.must("writers", g.Wait())
			for _, s := range replicas {
				e.await(s, writers*writes)
				e.equal("count", writers*writes, len(e.get(s.Snapshot(), key("C", "", "counter")).Spec))
			}
		}},
		{"watches on every replica replay to the state of all", func(e *env) {
			o := store.Options{MaxTombstones: 50}
			replicas := []*store.Store{e.store(o), e.store(o), e.store(o)}
			const writers, writes = 6, 40
			g, ctx := errgroup.WithContext(e.ctx)
			for w := range writers {
				g.Go(func() error {
					for i := range writes {
						name := fmt.Sprint((w*7 + i) % 10)
						op := store.Put(record("T", "m", name, fmt.Sprintf("%d-%d", w, i)))
						if i%3 == 2 {
							op = store.Delete(key("T", "m", name))
						}
						marker := store.Put(record("U", "", fmt.Sprint(w), fmt.Sprint(i)))
						if _, err := replicas[w%3].Update(ctx, batch(op, marker)); err != nil {
							return err
						}
					}
					return nil
				})
			}
			for n, s := range replicas {
				g.Go(func() error {
					w := NewWatcher(s)
					for {
						if err := w.Run(ctx, writers*writes); err != nil {
							return fmt.Errorf("watch of replica %d: %w", n, err)
						}
						if w.Revision() >= writers*writes {
							return nil
						}
					}
				})
			}
			e.must("writers and watchers", g.Wait())
			e.same(replicas...)
		}},
		{"deletions are forgotten by all replicas", func(e *env) {
			o := store.Options{MaxTombstones: 10}
			a, b := e.store(o), e.store(o)
			var last store.Revision
			for i := range 40 {
				s := []*store.Store{a, b}[i%2]
				e.commit(s, store.Put(record("T", "m", fmt.Sprint(i), "1")), store.Put(record("U", "m", fmt.Sprint(i), "1")))
				last = e.commit(s, store.Delete(key("T", "m", fmt.Sprint(i))))
			}
			e.await(a, last)
			e.await(b, last)
			if a.Snapshot().Compacted() == 0 {
				e.fatalf("nothing was forgotten")
			}
			e.same(a, b)
			e.must("close", errors.Join(a.Close(), b.Close()))
			c := e.store(o)
			e.equal("content after a restart", e.content(a.Snapshot()), e.content(c.Snapshot()))
		}},
		{"a batch larger than a page reaches the others whole", func(e *env) {
			a, b := e.store(store.Options{}), e.store(store.Options{})
			var ops []store.Op
			for i := range 2500 {
				ops = append(ops, store.Put(record("T", "m", fmt.Sprint(i), "1")))
			}
			e.commit(a, ops...)
			e.await(b, 1)
			e.same(a, b)
			for i := range ops {
				ops[i] = store.Delete(ops[i].Key)
			}
			e.commit(b, ops...)
			e.await(a, 2)
			e.same(a, b)
		}},
		{"a lease of one replica is known to the others, and fences what its holder lost", func(e *env) {
			a, b := e.store(store.Options{}), e.store(store.Options{})
			first := e.acquire(a, "leader", "a", time.Hour)
			if _, err := b.Acquire(e.ctx, "leader", "b", time.Hour); !errors.Is(err, store.ErrLeaseHeld) {
				e.fatalf("a second holder: %v", err)
			}
			e.must("update", e.under(a, first, "1"))
			e.must("release", a.Release(e.ctx, first))
			second := e.acquire(b, "leader", "b", time.Hour)
			e.lost(a, first)
			e.must("update", e.under(b, second, "2"))
		}},
		{"leaders that take over from each other never write at the same time", func(e *env) {
			replicas := []*store.Store{e.store(store.Options{}), e.store(store.Options{}), e.store(store.Options{})}
			var g errgroup.Group
			for n, s := range replicas {
				g.Go(func() error {
					for i := range 15 {
						l, err := s.Acquire(e.ctx, "leader", fmt.Sprint(n, "-", i), time.Millisecond)
						if errors.Is(err, store.ErrLeaseHeld) {
							continue
						}
						if err != nil {
							return err
						}
						_, err = s.UpdateUnder(e.ctx, l, func(head *store.Snapshot) ([]store.Op, error) {
							if r, ok := head.Get(key("L", "", "epoch")); ok && string(r.Spec) >= fmt.Sprintf("%09d", l.Epoch) {
								return nil, fmt.Errorf("epoch %d writes after epoch %s", l.Epoch, r.Spec)
							}
							return []store.Op{store.Put(record("L", "", "epoch", fmt.Sprintf("%09d", l.Epoch)))}, nil
						})
						if err != nil && !errors.Is(err, store.ErrLeaseLost) {
							return err
						}
					}
					return nil
				})
			}
			e.must("leaders", g.Wait())
		}},
	}
}

func (e *env) acquire(s *store.Store, name, holder string, ttl time.Duration) store.Lease {
	l, err := s.Acquire(e.ctx, name, holder, ttl)
	e.must("acquire", err)
	return l
}

// under commits one batch under a lease.
func (e *env) under(s *store.Store, l store.Lease, spec string) error {
	_, err := s.UpdateUnder(e.ctx, l, batch(store.Put(record("T", "m", "under lease", spec))))
	return err
}

// lost checks that l gives no right to write.
func (e *env) lost(s *store.Store, l store.Lease) {
	before := s.Snapshot().Revision()
	if err := e.under(s, l, "too late"); !errors.Is(err, store.ErrLeaseLost) {
		e.fatalf("an update under a lost lease: %v", err)
	}
	e.equal("revision", before, s.Snapshot().Revision())
}

// refusedAnyway is refused where other replicas' batches may be published meanwhile.
func (e *env) refusedAnyway(s *store.Store, want error, ops ...store.Op) {
	if _, err := s.Update(e.ctx, batch(ops...)); !errors.Is(err, want) {
		e.fatalf("update answered %v, want %w", err, want)
	}
}

// await waits until s has the revision.
func (e *env) await(s *store.Store, revision store.Revision) {
	if err := Await(e.ctx, s, revision); err != nil {
		e.fatalf("%w", err)
	}
}

// same checks that all replicas, once they have the same revision, hold the same.
func (e *env) same(replicas ...*store.Store) {
	newest := store.Revision(0)
	for _, s := range replicas {
		newest = max(newest, s.Snapshot().Revision())
	}
	for _, s := range replicas {
		e.await(s, newest)
		e.equal("content of a replica", e.content(replicas[0].Snapshot()), e.content(s.Snapshot()))
	}
}

// Await waits until s has published the revision.
func Await(ctx context.Context, s *store.Store, revision store.Revision) error {
	for {
		head := s.Snapshot()
		if head.Revision() >= revision {
			return nil
		}
		select {
		case <-head.Next():
		case <-ctx.Done():
			return fmt.Errorf("replica is at revision %d, waited for %d: %w", head.Revision(), revision, ctx.Err())
		}
	}
}

// Watcher follows a store by [store.Store.Watch] and checks each step: it follows the one before, and replaying it gives the
// state of its snapshot.
type Watcher struct {
	store *store.Store
	at    atomic.Uint64
	state map[store.Key]store.Revision
	// Restarts counts how often the watch was told to begin anew.
	Restarts int
}

// NewWatcher returns a watcher of the types T and U, from the beginning.
func NewWatcher(s *store.Store) *Watcher {
	return &Watcher{store: s, state: map[store.Key]store.Revision{}}
}

// Revision is what the watcher has seen.
func (w *Watcher) Revision() store.Revision { return store.Revision(w.at.Load()) }

// Run watches until the revision is reached. When the watch must begin anew, it does and Run returns nil early.
func (w *Watcher) Run(ctx context.Context, until store.Revision) error {
	for step, err := range w.store.Watch(ctx, w.Revision(), "T", "U") {
		if errors.Is(err, store.ErrCompacted) {
			head := w.store.Snapshot()
			w.at.Store(uint64(head.Revision()))
			w.state = versions(head)
			w.Restarts++
			return nil
		}
		if err != nil {
			return err
		}
		if err := w.step(step); err != nil {
			return err
		}
		if w.Revision() >= until {
			return nil
		}
	}
	return errors.New("watch ended without an error")
}

func (w *Watcher) step(step store.Changes) error {
	if step.From != w.Revision() || step.To <= step.From || step.To != step.Snapshot.Revision() {
		return fmt.Errorf("step from %d to %d (snapshot at %d) follows revision %d", step.From, step.To, step.Snapshot.Revision(), w.Revision())
	}
	seen := map[store.Key]bool{}
	last := step.From
	for _, c := range step.List {
		if c.Revision <= step.From || c.Revision > step.To || c.Revision < last || seen[c.Key] {
			return fmt.Errorf("step from %d to %d has %s at %d out of order, out of range or twice", step.From, step.To, c.Key, c.Revision)
		}
		seen[c.Key], last = true, c.Revision
		if c.Record == nil {
			delete(w.state, c.Key)
		} else {
			w.state[c.Key] = c.Record.Version
		}
	}
	if want := versions(step.Snapshot); !maps.Equal(want, w.state) {
		return fmt.Errorf("replayed to revision %d: have %v, want %v", step.To, w.state, want)
	}
	w.at.Store(uint64(step.To))
	return nil
}

// versions is the versions of the records of T and U.
func versions(s *store.Snapshot) map[store.Key]store.Revision {
	state := map[store.Key]store.Revision{}
	for _, typ := range []string{"T", "U"} {
		for r := range s.List(typ, "") {
			state[r.Key] = r.Version
		}
	}
	return state
}

// Equal says how the newest snapshots of replicas differ, if they do.
func Equal(ctx context.Context, replicas ...*store.Store) error {
	e := &env{ctx: ctx}
	var err error
	func() {
		defer func() {
			if p := recover(); p != nil {
				failed, ok := p.(failure)
				if !ok {
					panic(p)
				}
				err = failed.err
			}
		}()
		e.same(replicas...)
	}()
	return err
}
