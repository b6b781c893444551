package insights

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/storetest"
)

// newReplicas is a rig over a database: the test writes and reads in one replica, and two others lead in turn.
func newReplicas(t testing.TB) *rig {
	t.Helper()
	db := storetest.NewDatabase()
	r := &rig{t: t, st: open(t, db.Replica())}
	r.leaders = []*store.Store{open(t, db.Replica()), open(t, db.Replica())}
	return r
}

func open(t testing.TB, b store.Backend) *store.Store {
	t.Helper()
	st, err := store.Open(context.Background(), b, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// replica is one global of several, in a process of its own as far as the others know.
type replica struct {
	t       *testing.T
	name    string
	backend *process
	st      *store.Store
	in      *Insights
	stop    func()
}

// process is the way of a replica to the database. It can be frozen, as by SIGSTOP, and killed, which is to be frozen for ever.
type process struct {
	*storetest.Replica
	appends atomic.Int64
	frozen  atomic.Pointer[chan struct{}] // closed when it goes on; nil: it runs
}

// freeze returns what lets the process go on.
func (p *process) freeze() (thaw func()) {
	c := make(chan struct{})
	p.frozen.Store(&c)
	return sync.OnceFunc(func() { p.frozen.Store(nil); close(c) })
}

func (p *process) run() {
	if c := p.frozen.Load(); c != nil {
		<-*c
	}
}

func (p *process) Lock(ctx context.Context) (store.Revision, error) {
	p.run()
	return p.Replica.Lock(ctx)
}

func (p *process) Append(ctx context.Context, g store.Group) error {
	p.appends.Add(1)
	return p.Replica.Append(ctx, g)
}

func (p *process) AcquireLease(ctx context.Context, name, holder string, ttl time.Duration) (store.Lease, error) {
	p.run()
	return p.Replica.AcquireLease(ctx, name, holder, ttl)
}

func (p *process) ReleaseLease(ctx context.Context, l store.Lease) error {
	p.run()
	return p.Replica.ReleaseLease(ctx, l)
}

func startReplica(t *testing.T, db *storetest.Database, name string) *replica {
	t.Helper()
	r := &replica{t: t, name: name, backend: &process{Replica: db.Replica()}}
	r.st = open(t, r.backend)
	r.in = New(Options{
		Store: r.st, Interval: time.Second, Domain: "mesh", VIPPort: 80,
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)).With("replica", name),
	})
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- r.st.Lead(ctx, "plane", name, leaseTTL, r.in.Run) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("%s ended with %v", name, err)
		}
		if err := r.st.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *replica) update(ops ...store.Op) {
	r.t.Helper()
	if _, err := r.st.Update(r.t.Context(), func(*store.Snapshot) ([]store.Op, error) { return ops, nil }); err != nil {
		r.t.Fatal(err)
	}
}

func (r *replica) total() uint32 {
	return meshInsight(r.t, r.st.Snapshot(), "m").GetDataplanes().GetTotal()
}

func putDataplane(t testing.TB, name string) store.Op {
	return put(t, resource.Dataplane, "m", name, workload(good("web")))
}

func TestOneOfSeveralReplicasCountsForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := storetest.NewDatabase()
		leader := startReplica(t, db, "a")
		synctest.Wait()
		all := []*replica{leader, startReplica(t, db, "b"), startReplica(t, db, "c")}
		leader.update(putMesh(t, "m"))
		time.Sleep(time.Minute)
		for i, writer := range all {
			before := leader.st.Snapshot().Revision()
			writer.update(putDataplane(t, writer.name))
			time.Sleep(time.Second)
			synctest.Wait()
			for _, reader := range all {
				if n := reader.total(); int(n) != i+1 {
					t.Errorf("%s wrote, and a second later %s reads %d dataplanes, want %d", writer.name, reader.name, n, i+1)
				}
			}
			if n := leader.st.Snapshot().Revision() - before; n != 2 {
				t.Errorf("%d batches for one change, want it and its insights", n)
			}
			time.Sleep(time.Minute)
		}
		for i, r := range all {
			r.stop()
			if r.in.meshes != nil || r.in.dirty != nil {
				t.Errorf("%s no longer leads, and keeps counters", r.name)
			}
			if n := r.backend.appends.Load(); i > 0 && n != 1 {
				t.Errorf("%s does not lead, and wrote %d times, want its change only", r.name, n)
			}
		}
	})
}

// Nothing is lost when the leader dies, and what it had stored is not stored again.
func TestTheNextLeaderGoesOn(t *testing.T) {
	tests := []struct {
		name   string
		end    func(*replica) (afterwards func())
		within time.Duration
	}{
		{"after an orderly stop", func(r *replica) func() { r.stop(); return func() {} }, time.Second},
		{"after kill -9", func(r *replica) func() { return r.backend.freeze() }, leaseTTL*5/4 + time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				db := storetest.NewDatabase()
				a := startReplica(t, db, "a")
				synctest.Wait()
				a.update(putMesh(t, "m"), putDataplane(t, "before"))
				synctest.Wait()
				b := startReplica(t, db, "b")
				time.Sleep(time.Minute + 123*time.Millisecond)
				afterwards := tt.end(a)
				b.update(putDataplane(t, "after"))
				time.Sleep(tt.within)
				synctest.Wait()
				if n := b.total(); n != 2 {
					t.Errorf("%d dataplanes %s later, want 2", n, tt.within)
				}
				if n := b.backend.appends.Load(); n != 2 {
					t.Errorf("%d batches, want the change and its insights", n)
				}
				b.stop()
				afterwards() // the test ends what it began
				a.stop()
			})
		})
	}
}

// A leader that is stopped in the middle of storing what it counted goes on when another has counted more.
func TestALeaderThatWasFrozenOverwritesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := storetest.NewDatabase()
		a := startReplica(t, db, "a")
		a.update(putMesh(t, "m"))
		synctest.Wait()
		b := startReplica(t, db, "b")
		defer b.stop()
		time.Sleep(time.Minute)

		thaw := a.backend.freeze()
		b.update(putDataplane(t, "one")) // a hears of it, counts, and waits for its turn to store
		synctest.Wait()
		for i := range 3 { // b leads, and counts more
			time.Sleep(leaseTTL)
			b.update(putDataplane(t, fmt.Sprint("more-", i)))
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if n := b.total(); n != 4 {
			t.Fatalf("%d dataplanes, want 4", n)
		}
		before := b.st.Snapshot().Revision()
		thaw()
		time.Sleep(time.Minute)
		if n := b.total(); n != 4 {
			t.Errorf("the leader of before stored its count: %d dataplanes, want 4", n)
		}
		if now := b.st.Snapshot().Revision(); now != before {
			t.Errorf("%d batches without any change", now-before)
		}
		// It is as good a replica as before, and may lead again.
		b.stop()
		a.update(putDataplane(t, "again"))
		time.Sleep(2 * time.Second)
		if n := a.total(); n != 5 {
			t.Errorf("%d dataplanes, want 5", n)
		}
		a.stop()
	})
}

func TestTheKeepingEndsWithTheLease(t *testing.T) {
	r := newRig(t, store.Options{})
	t.Cleanup(func() { _ = r.st.Close() })
	r.update(putMesh(t, "m"))
	lost := lease(t, r.st)
	if err := r.st.Release(t.Context(), lost); err != nil {
		t.Fatal(err)
	}
	in := New(Options{Store: r.st, Interval: time.Second, Log: slog.New(slog.DiscardHandler)})
	if err := in.Run(t.Context(), lost); !errors.Is(err, store.ErrLeaseLost) {
		t.Errorf("it ended with %v", err)
	}
	if keys := left(r, "m"); len(keys) != 0 {
		t.Errorf("stored: %v", keys)
	}
}
