package postgres_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/postgres"
	"github.com/meridian-mesh/meridian/common/store/postgres/pgtest"
	"github.com/meridian-mesh/meridian/common/store/storetest"
)

// rounds is how often a test that gets better with time does its thing; MERIDIAN_STRESS_ROUNDS says otherwise.
func rounds(tb testing.TB, normally int) int {
	tb.Helper()
	if s := os.Getenv("MERIDIAN_STRESS_ROUNDS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			tb.Fatal(err)
		}
		return n
	}
	return normally
}

// openURL opens a store on the database; it is closed with the test.
func openURL(tb testing.TB, url string, o postgres.Options) *store.Store {
	tb.Helper()
	o.URL = url
	b, err := postgres.Open(tb.Context(), o)
	if err != nil {
		tb.Fatal(err)
	}
	s, err := store.Open(tb.Context(), b, store.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Close(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

func put(name, spec string) func(*store.Snapshot) ([]store.Op, error) {
	return func(*store.Snapshot) ([]store.Op, error) {
		return []store.Op{store.Put(&store.Record{Key: store.Key{Type: "T", Mesh: "m", Name: name}, Spec: []byte(spec)})}, nil
	}
}

func mustPut(tb testing.TB, s *store.Store, name, spec string) store.Revision {
	tb.Helper()
	rev, err := s.Update(tb.Context(), put(name, spec))
	if err != nil {
		tb.Fatal(err)
	}
	return rev
}

// pause waits for a moment, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// Three replicas, each by way of a proxy, while connections are cut and slowed and the server is killed, frozen and stopped.
func TestReplicasAreLinearizableUnderFaults(t *testing.T) {
	for range rounds(t, 2) {
		t.Run("", func(t *testing.T) {
			s := pgtest.Start(t, "fsync=off")
			d := s.NewSchema(t)
			h := storetest.History{Seed: rand.Uint64(), Clients: 2, Calls: 250}
			var proxies []*pgtest.Proxy
			for range 3 {
				p := s.NewProxy(t)
				proxies = append(proxies, p)
				h.Replicas = append(h.Replicas, openURL(t, d.Through(p), postgres.Options{Timeout: time.Second}))
			}
			faults := map[string]int{}
			h.Disturb = func(ctx context.Context, rng *rand.Rand) error {
				for ctx.Err() == nil {
					p := proxies[rng.IntN(3)]
					var err error
					switch kind := rng.IntN(10); {
					case kind < 6:
						faults["cut"]++
						p.Cut()
					case kind < 7:
						faults["refuse"]++
						p.Refuse(true)
						pause(ctx, time.Duration(rng.IntN(100))*time.Millisecond)
						p.Refuse(false)
					case kind < 8:
						faults["slow"]++
						p.Slow(time.Duration(rng.IntN(10)) * time.Millisecond)
						pause(ctx, 50*time.Millisecond)
						p.Slow(0)
					case kind < 9:
						faults["kill"]++
						err = errors.Join(s.Kill(), s.Start())
					case rng.IntN(2) == 0:
						faults["stop"]++
						err = errors.Join(s.Stop(), s.Start())
					default:
						faults["freeze"]++
						err = s.Pause()
						pause(ctx, time.Duration(rng.IntN(300))*time.Millisecond)
						err = errors.Join(err, s.Resume())
					}
					if err != nil {
						return err
					}
					pause(ctx, time.Duration(rng.IntN(60))*time.Millisecond)
				}
				return nil
			}
			err := h.Run(t.Context())
			t.Log(&h, faults)
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

// What a connection that breaks at any point of a commit leaves is found out: each write is answered truly.
func TestALostConnectionInACommitIsLookedUp(t *testing.T) {
	d := database(t)
	p := server.NewProxy(t)
	s := openURL(t, d.Through(p), postgres.Options{})
	for i := range 200 {
		name := fmt.Sprint(i)
		var g errgroup.Group
		g.Go(func() error {
			pause(t.Context(), time.Duration(rand.IntN(1500))*time.Microsecond)
			p.Cut()
			return nil
		})
		rev, err := s.Update(t.Context(), put(name, "x"))
		_ = g.Wait()
		switch {
		case errors.Is(err, store.ErrUnknown):
			t.Fatalf("outcome unknown though the database is there: %v", err)
		case errors.Is(err, store.ErrUnavailable):
			t.Logf("refused: %v", err)
			awaitWritable(t, s)
		case err != nil:
			t.Fatal(err)
		default:
			r, ok := s.Snapshot().Get(store.Key{Type: "T", Mesh: "m", Name: name})
			if !ok || r.Version != rev || r.CreateRevision != rev {
				t.Fatalf("write %d was answered with revision %d, and the record is %+v", i, rev, r)
			}
		}
	}
	fresh := openURL(t, d.URL(), postgres.Options{})
	if err := storetest.Equal(t.Context(), fresh, s); err != nil {
		t.Error(err)
	}
}

// The answer to a COMMIT is lost. Where the database can be asked, the write is answered as if nothing had happened; where it stays
// away, the outcome is said to be unknown, and shows when it is back.
func TestTheAnswerToACommitIsLost(t *testing.T) {
	for _, away := range []bool{false, true} {
		t.Run(fmt.Sprintf("away=%v", away), func(t *testing.T) {
			d := database(t)
			p := server.NewProxy(t)
			s := openURL(t, d.Through(p), postgres.Options{Timeout: time.Second})
			mustPut(t, s, "a", "1")
			var armed atomic.Bool
			p.Edit(func(b []byte) []byte {
				if !bytes.Contains(b, []byte("UPDATE 1\x00")) || !bytes.Contains(b, []byte("COMMIT\x00")) || !armed.CompareAndSwap(true, false) {
					return b
				}
				if away {
					p.Refuse(true)
				} else {
					p.Cut()
				}
				return nil
			})
			armed.Store(true)
			rev, err := s.Update(t.Context(), put("b", "1"))
			if armed.Load() {
				t.Fatal("no COMMIT was seen")
			}
			switch {
			case !away && (err != nil || rev != 2):
				t.Fatalf("answered %d, %v", rev, err)
			case away && (!errors.Is(err, store.ErrUnknown) || !errors.Is(err, store.ErrUnavailable)):
				t.Fatalf("answered %d, %v", rev, err)
			case away:
				if _, err := s.Update(t.Context(), put("c", "1")); !errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrUnknown) {
					t.Errorf("a later write: %v", err)
				}
				p.Refuse(false)
				awaitWritable(t, s)
			}
			if err := storetest.Await(t.Context(), s, 2); err != nil {
				t.Fatal(err)
			}
			if _, ok := s.Snapshot().Get(store.Key{Type: "T", Mesh: "m", Name: "b"}); !ok {
				t.Error("the write is lost")
			}
			if rev := mustPut(t, s, "d", "1"); rev != 3 {
				t.Errorf("the next write has revision %d", rev)
			}
		})
	}
}

func awaitWritable(tb testing.TB, s *store.Store) {
	tb.Helper()
	for s.Err() != nil {
		select {
		case <-time.After(time.Millisecond):
		case <-tb.Context().Done():
			tb.Fatal(s.Err())
		}
	}
}

// While the database is away, stopped or frozen, reads go on, writes are refused within a bound, and nothing needs a restart.
func TestTheDatabaseIsAwayForAWhile(t *testing.T) {
	s := pgtest.Start(t, "fsync=off")
	for _, tc := range []struct {
		name       string
		away, back func() error
	}{
		{"stopped", s.Stop, s.Start},
		{"killed", s.Kill, s.Start},
		{"frozen", s.Pause, s.Resume},
	} {
		t.Run(tc.name, func(t *testing.T) {
			const timeout = time.Second
			d := s.NewSchema(t)
			a := openURL(t, d.URL(), postgres.Options{Timeout: timeout})
			b := openURL(t, d.URL(), postgres.Options{Timeout: timeout})
			mustPut(t, a, "a", "1")
			if err := storetest.Await(t.Context(), b, 1); err != nil {
				t.Fatal(err)
			}
			if err := tc.away(); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second) // far beyond the bound: a machine may be slow
			defer cancel()
			for _, replica := range []*store.Store{a, b} {
				for range 10 {
					_, err := replica.Update(ctx, put("b", "1"))
					if !errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrFailed) {
						t.Errorf("a write is answered with %v", err)
					}
				}
				if _, ok := replica.Snapshot().Get(store.Key{Type: "T", Mesh: "m", Name: "a"}); !ok {
					t.Error("nothing to read")
				}
				if err := replica.Ready(); err != nil {
					t.Errorf("not ready: %v", err)
				}
			}
			if err := tc.back(); err != nil {
				t.Fatal(err)
			}
			awaitWritable(t, a)
			awaitWritable(t, b)
			mustPut(t, a, "c", "1")
			mustPut(t, b, "d", "1")
			if err := storetest.Equal(t.Context(), a, b); err != nil {
				t.Error(err)
			}
		})
	}
}

// A replica that was away for so long that deletions were forgotten loads everything, and its watches begin anew.
func TestAReplicaThatWasAwayForTooLong(t *testing.T) {
	d := database(t)
	p := server.NewProxy(t)
	s := openURL(t, d.Through(p), postgres.Options{Timeout: time.Second})
	for _, name := range []string{"a", "b", "c"} {
		mustPut(t, s, name, "1")
	}
	w := storetest.NewWatcher(s)
	if err := w.Run(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	id := s.ID()
	p.Refuse(true)

	b, err := postgres.Open(t.Context(), postgres.Options{URL: d.URL()})
	if err != nil {
		t.Fatal(err)
	}
	other, err := store.Open(t.Context(), b, store.Options{MaxTombstones: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Close() }()
	for _, name := range []string{"a", "b"} {
		if _, err := other.Update(t.Context(), func(*store.Snapshot) ([]store.Op, error) {
			return []store.Op{store.Delete(store.Key{Type: "T", Mesh: "m", Name: name})}, nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	last := mustPut(t, other, "d", "1")
	p.Refuse(false)
	if err := storetest.Await(t.Context(), s, last); err != nil {
		t.Fatal(err)
	}
	if err := storetest.Equal(t.Context(), other, s); err != nil {
		t.Error(err)
	}
	if err := w.Run(t.Context(), last); err != nil || w.Restarts != 1 || w.Revision() != last {
		t.Errorf("the watch is at revision %d after %d restarts: %v", w.Revision(), w.Restarts, err)
	}
	if s.ID() != id {
		t.Error("it is the same history, and has another ID")
	}
}

// A batch may be larger than what one statement carries.
func TestALargeBatch(t *testing.T) {
	d := database(t)
	a, b := openURL(t, d.URL(), postgres.Options{}), openURL(t, d.URL(), postgres.Options{})
	spec := bytes.Repeat([]byte("0123456789abcdef"), 3<<16)
	_, err := a.Update(t.Context(), func(*store.Snapshot) ([]store.Op, error) {
		var ops []store.Op
		for i := range 5 {
			ops = append(ops, store.Put(&store.Record{Key: store.Key{Type: "T", Name: fmt.Sprint(i)}, Spec: spec}))
		}
		return ops, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := storetest.Await(t.Context(), b, 1); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		r, ok := b.Snapshot().Get(store.Key{Type: "T", Name: fmt.Sprint(i)})
		if !ok || !bytes.Equal(r.Spec, spec) {
			t.Errorf("record %d is not what was written", i)
		}
	}
}

// A replica that froze during its turn does not hold up the others for longer than half the timeout.
func TestAFrozenReplicaLosesItsTurn(t *testing.T) {
	d := database(t)
	a := openURL(t, d.URL(), postgres.Options{Timeout: time.Second})
	b := openURL(t, d.URL(), postgres.Options{Timeout: time.Second})
	running, wake := make(chan struct{}), make(chan struct{})
	frozen := make(chan error, 1)
	calls := 0
	go func() {
		_, err := a.Update(t.Context(), func(*store.Snapshot) ([]store.Op, error) {
			if calls++; calls == 1 {
				close(running)
				<-wake
			}
			ops, _ := put("frozen", "1")(nil)
			return ops, nil
		})
		frozen <- err
	}()
	<-running
	for {
		_, err := b.Update(t.Context(), put("b", "1"))
		if err == nil {
			break
		}
		if !errors.Is(err, store.ErrUnavailable) {
			t.Fatal(err)
		}
		awaitWritable(t, b)
	}
	close(wake)
	if err := <-frozen; err != nil {
		t.Errorf("the replica that woke up could not write in another turn: %v", err)
	}
	if err := storetest.Equal(t.Context(), a, b); err != nil {
		t.Error(err)
	}
}

// Replicas that start at the same instant on an empty database agree on one schema and one store.
func TestFreshReplicasStartAtOnce(t *testing.T) {
	for range rounds(t, 50) {
		d := database(t)
		stores := make([]*store.Store, 2)
		var g errgroup.Group
		start := make(chan struct{})
		for i := range stores {
			g.Go(func() error {
				<-start
				b, err := postgres.Open(t.Context(), postgres.Options{URL: d.URL(), Plane: "global"})
				if err != nil {
					return err
				}
				if stores[i], err = store.Open(t.Context(), b, store.Options{}); err != nil {
					return err
				}
				// As a plane makes its defaults: once.
				_, err = stores[i].Update(t.Context(), func(head *store.Snapshot) ([]store.Op, error) {
					if head.Count("Default", "") > 0 {
						return nil, nil
					}
					return []store.Op{store.Put(&store.Record{Key: store.Key{Type: "Default", Name: fmt.Sprint(i)}})}, nil
				})
				return err
			})
		}
		close(start)
		if err := g.Wait(); err != nil {
			t.Fatal(err)
		}
		if stores[0].ID() != stores[1].ID() {
			t.Error("two stores were made")
		}
		for _, s := range stores {
			if err := storetest.Await(t.Context(), s, 1); err != nil {
				t.Fatal(err)
			}
			if n := s.Snapshot().Count("Default", ""); n != 1 {
				t.Errorf("defaults were made %d times", n)
			}
		}
		for _, s := range stores {
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// A restored database is noticed by those that run, even if it is ahead again when they look.
func TestARestoredDatabaseIsNoticed(t *testing.T) {
	for _, tc := range []struct {
		name string
		more int // commits after the restoration, before anybody looks
	}{
		{"that is behind", 0},
		{"that has come as far", 2},
		{"that is ahead", 4},
	} {
		t.Run(tc.name, func(t *testing.T) {
			d := database(t)
			p := server.NewProxy(t)
			s := openURL(t, d.Through(p), postgres.Options{})
			mustPut(t, s, "kept", "1")
			d.Exec(t, "CREATE SCHEMA backup_"+d.Schema()+"; CREATE TABLE backup_"+d.Schema()+".e AS TABLE meridian_entries; "+
				"CREATE TABLE backup_"+d.Schema()+".h AS TABLE meridian_head; CREATE TABLE backup_"+d.Schema()+".c AS TABLE meridian_commits")
			mustPut(t, s, "lost", "1")
			mustPut(t, s, "lost", "2")
			id := s.ID()

			p.Refuse(true)
			for _, table := range []string{"entries e", "head h", "commits c"} {
				var name, short string
				_, _ = fmt.Sscan(table, &name, &short)
				d.Exec(t, "DELETE FROM meridian_"+name+"; INSERT INTO meridian_"+name+" TABLE backup_"+d.Schema()+"."+short)
			}
			other := openURL(t, d.URL(), postgres.Options{})
			for i := range tc.more {
				mustPut(t, other, "more", fmt.Sprint(i))
			}
			p.Refuse(false)

			awaitWritable(t, s)
			if err := storetest.Await(t.Context(), s, 4); err != nil {
				t.Fatal(err)
			}
			mustPut(t, s, "new", "1")
			if _, ok := s.Snapshot().Get(store.Key{Type: "T", Mesh: "m", Name: "lost"}); ok {
				t.Error("what was lost is still there")
			}
			if s.ID() == id {
				t.Error("the other history has the same ID")
			}
			if err := storetest.Equal(t.Context(), s, other); err != nil {
				t.Error(err)
			}
			if s.ID() != other.ID() {
				t.Error("the replicas do not agree on the ID")
			}
		})
	}
}
