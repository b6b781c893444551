package store_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
	"github.com/meridian-mesh/meridian/common/store/storetest"
)

const leadTTL = 4 * time.Second

// failing is a replica whose leases a test can take away.
type failing struct {
	*storetest.Replica
	err  atomic.Pointer[error] // what renewals answer
	hang atomic.Bool           // they do not even do that, whatever the deadline
	free chan struct{}         // closed: they go on
}

func (f *failing) AcquireLease(ctx context.Context, name, holder string, ttl time.Duration) (store.Lease, error) {
	if f.hang.Load() {
		<-f.free
	}
	if err := f.err.Load(); err != nil {
		return store.Lease{}, *err
	}
	return f.Replica.AcquireLease(ctx, name, holder, ttl)
}

func (f *failing) ReleaseLease(ctx context.Context, l store.Lease) error {
	if err := f.err.Load(); err != nil {
		return *err
	}
	return f.Replica.ReleaseLease(ctx, l)
}

// term is what a leader did.
type term struct {
	holder     string
	epoch      uint64
	from, till time.Time
}

// leaders runs contenders on one database, each in a process of its own, as far as they know.
type leaders struct {
	t       *testing.T
	db      *storetest.Database
	leading chan string
	terms   chan term
}

func newLeaders(t *testing.T) *leaders {
	return &leaders{t: t, db: storetest.NewDatabase(), leading: make(chan string, 100), terms: make(chan term, 100)}
}

// start returns what stops the contender in an orderly way, and waits for it.
func (l *leaders) start(name string) (*failing, *store.Store, func()) {
	l.t.Helper()
	replica := &failing{Replica: l.db.Replica(), free: make(chan struct{})}
	s, err := store.Open(l.t.Context(), replica, store.Options{})
	if err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(l.t.Context())
	ended := make(chan error, 1)
	go func() {
		ended <- s.Lead(ctx, "plane", name, leadTTL, func(ctx context.Context, lease store.Lease) error {
			from := time.Now()
			l.leading <- name
			<-ctx.Done()
			l.terms <- term{name, lease.Epoch, from, time.Now()}
			return nil
		})
	}()
	return replica, s, func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			l.t.Errorf("%s ended with %v", name, err)
		}
		if err := s.Close(); err != nil {
			l.t.Error(err)
		}
	}
}

func TestAnOrderlyStopHandsTheLeadOverAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLeaders(t)
		_, _, stopA := l.start("a")
		if got := <-l.leading; got != "a" {
			t.Fatalf("%s leads", got)
		}
		_, _, stopB := l.start("b")
		time.Sleep(time.Hour) // a renews as long as it lives
		synctest.Wait()
		if len(l.leading)+len(l.terms) > 0 {
			t.Fatal("the lead changed without reason")
		}
		stopped := time.Now()
		stopA()
		if got := <-l.leading; got != "b" {
			t.Fatalf("%s leads", got)
		}
		if d := time.Since(stopped); d > leadTTL/4 {
			t.Errorf("handed over after %s, as if the lease had to expire", d)
		}
		stopB()
		if a, b := <-l.terms, <-l.terms; b.epoch <= a.epoch || b.from.Before(a.till) {
			t.Errorf("terms overlap: %+v, %+v", a, b)
		}
	})
}

// What a leader notices of a lost lease must come before anyone else can have it.
func TestALeaderThatCannotRenewEndsBeforeTheNextBegins(t *testing.T) {
	for name, fail := range map[string]func(*failing){
		"renewals fail": func(f *failing) { err := errors.New("away"); f.err.Store(&err) },
		"renewals hang": func(f *failing) { f.hang.Store(true) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLeaders(t)
				a, _, stopA := l.start("a")
				<-l.leading
				_, _, stopB := l.start("b")
				time.Sleep(10*time.Second + 123*time.Millisecond)
				failed := time.Now()
				fail(a)
				var first term
				select {
				case first = <-l.terms:
				case <-time.After(time.Minute):
					t.Fatal("a still leads")
				}
				if got := <-l.leading; got != "b" {
					t.Fatalf("%s leads", got)
				}
				if d := time.Since(failed); d > leadTTL*5/4 {
					t.Errorf("b leads after %s", d)
				}
				began := time.Now()
				if first.holder != "a" || began.Sub(first.till) < leadTTL/4 {
					t.Errorf("%s ended only %s before the next began", first.holder, began.Sub(first.till))
				}
				close(a.free)
				stopA()
				stopB()
			})
		})
	}
}

// A leader that was stopped (SIGSTOP, a long pause) does not know that it lost the lead: the storage refuses what it writes.
func TestALeaderThatDoesNotNoticeCannotWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := storetest.NewDatabase()
		open := func() *store.Store {
			s, err := store.Open(t.Context(), db.Replica(), store.Options{})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = s.Close() })
			return s
		}
		a, b := open(), open()
		put := func(s *store.Store, l store.Lease, by string) error {
			_, err := s.UpdateUnder(t.Context(), l, func(*store.Snapshot) ([]store.Op, error) {
				return []store.Op{store.Put(&store.Record{Key: store.Key{Type: "T", Name: "who"}, Spec: []byte(by)})}, nil
			})
			return err
		}
		paused, err := a.Acquire(t.Context(), "plane", "a", leadTTL) // and does nothing more
		if err != nil {
			t.Fatal(err)
		}
		err = b.Lead(t.Context(), "plane", "b", leadTTL, func(_ context.Context, l store.Lease) error {
			if err := put(a, paused, "a"); !errors.Is(err, store.ErrLeaseLost) {
				return fmt.Errorf("the old leader's write: %w", err)
			}
			time.Sleep(10 * leadTTL) // renewals keep the epoch: the lease from the start is still good
			return put(b, l, "b")
		})
		if err != nil {
			t.Error(err)
		}
		if rec, ok := b.Snapshot().Get(store.Key{Type: "T", Name: "who"}); !ok || string(rec.Spec) != "b" {
			t.Errorf("stored: %v", rec)
		}
	})
}

func TestAStoreOfItsOwnLeadsAlways(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, err := store.Open(t.Context(), memory.New(), store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		started, mistake := time.Now(), errors.New("a mistake")
		runs := 0
		lead := func(fn func(context.Context, store.Lease) error) error {
			return s.Lead(t.Context(), "plane", "a", leadTTL, fn)
		}
		if err := lead(func(context.Context, store.Lease) error { return mistake }); !errors.Is(err, mistake) {
			t.Errorf("what fn returned is lost: %v", err)
		}
		if err := lead(func(context.Context, store.Lease) error {
			if runs++; runs == 1 {
				return fmt.Errorf("write: %w", store.ErrLeaseLost)
			}
			return nil
		}); err != nil || runs != 2 {
			t.Errorf("a lost lease ends it after %d runs: %v", runs, err)
		}
		if d := time.Since(started); d > leadTTL/4 {
			t.Errorf("it took %s", d)
		}
		if err := s.Lead(t.Context(), "", "a", leadTTL, nil); !errors.Is(err, store.ErrInvalid) {
			t.Errorf("no name: %v", err)
		}
	})
}
