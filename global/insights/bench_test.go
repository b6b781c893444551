package insights

import (
	"fmt"
	"log/slog"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
)

// fleet is insights over a mesh of n dataplanes, with up to services services, and the two states between which the
// insight of one dataplane goes back and forth.
type fleet struct {
	in      *Insights
	st      *store.Store
	one     store.Key
	between [2][]byte
}

func newFleet(tb testing.TB, n, services int) *fleet {
	tb.Helper()
	st, err := store.Open(tb.Context(), memory.New(), store.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := st.Close(); err != nil {
			tb.Error(err)
		}
	})
	f := &fleet{st: st, one: key(resource.DataplaneInsight, "m", fmt.Sprintf("zone-1.dp-%05d", n/2))}
	identity := mtls("ca-1", "ca-1")
	ops := []store.Op{putMesh(tb, "m")}
	for i := range n {
		name := fmt.Sprintf("zone-1.dp-%05d", i)
		ops = append(ops,
			put(tb, resource.Dataplane, "m", name, workload(good(fmt.Sprint("service-", i%services)))),
			put(tb, resource.DataplaneInsight, "m", name, told{kumaDP: "2.0.8", envoy: "1.22.7", mtls: identity}.message()))
	}
	f.update(tb, ops...)
	for i, gone := range []bool{true, false} {
		if f.between[i], err = proto.Marshal(told{gone: gone, kumaDP: "2.0.8", envoy: "1.22.7", mtls: identity}.message()); err != nil {
			tb.Fatal(err)
		}
	}
	f.in = New(Options{Store: st, Interval: time.Second, Domain: "mesh", VIPPort: 80, Log: slog.New(slog.DiscardHandler)})
	f.in.lease = lease(tb, st)
	f.in.countAll(st.Snapshot())
	if _, err := f.in.storeChanged(tb.Context(), st.Snapshot()); err != nil {
		tb.Fatal(err)
	}
	return f
}

func (f *fleet) update(tb testing.TB, ops ...store.Op) {
	tb.Helper()
	if _, err := f.st.Update(tb.Context(), func(*store.Snapshot) ([]store.Op, error) { return ops, nil }); err != nil {
		tb.Fatal(err)
	}
}

// change commits the i-th change of the one dataplane's insight.
func (f *fleet) change(tb testing.TB, i int) {
	tb.Helper()
	f.update(tb, store.Put(&store.Record{Key: f.one, Spec: f.between[i%2]}))
}

// settle takes the change in and stores what it makes, as Run does.
func (f *fleet) settle(tb testing.TB) {
	tb.Helper()
	snap := f.st.Snapshot()
	f.in.count(snap, f.one)
	stored, err := f.in.storeChanged(tb.Context(), snap)
	if err != nil || !stored {
		tb.Fatalf("stored: %t, %v", stored, err)
	}
}

// BenchmarkOneChange is the insight of one proxy changing: count takes the change in; update is all of it, the
// insights counted, encoded and committed to a store in memory.
func BenchmarkOneChange(b *testing.B) {
	for _, size := range []struct{ dataplanes, services int }{{100, 10}, {5000, 500}, {50_000, 5000}, {5000, 1}} {
		name := fmt.Sprintf("dataplanes=%d/services=%d/", size.dataplanes, size.services)
		b.Run(name+"count", func(b *testing.B) {
			f := newFleet(b, size.dataplanes, size.services)
			f.change(b, 0)
			snaps := [2]*store.Snapshot{f.st.Snapshot()}
			f.change(b, 1)
			snaps[1] = f.st.Snapshot()
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				f.in.count(snaps[i%2], f.one)
			}
		})
		b.Run(name+"update", func(b *testing.B) {
			f := newFleet(b, size.dataplanes, size.services)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				b.StopTimer()
				f.change(b, i)
				b.StartTimer()
				f.settle(b)
			}
		})
	}
}

// BenchmarkStart counts a whole mesh and stores its insights, as a new process does.
func BenchmarkStart(b *testing.B) {
	f := newFleet(b, 5000, 500)
	b.ReportAllocs()
	for b.Loop() {
		f.in.countAll(f.st.Snapshot())
	}
}

// The cost of counting a change must not depend on how many dataplanes there are. Medians of many rounds, taken in
// turns, so that what else the machine does hits both.
func TestTheCostOfAChangeDoesNotGrowWithTheMesh(t *testing.T) {
	small, large := newFleet(t, 100, 10), newFleet(t, 5000, 500)
	measure := func(f *fleet) func() time.Duration {
		f.change(t, 0)
		snaps := [2]*store.Snapshot{f.st.Snapshot()}
		f.change(t, 1)
		snaps[1] = f.st.Snapshot()
		return func() time.Duration {
			const changes = 50
			begin := time.Now()
			for i := range changes {
				f.in.count(snaps[i%2], f.one)
			}
			return time.Since(begin) / changes
		}
	}
	a, b := measure(small), measure(large)
	var costs [2][]time.Duration
	for range 101 {
		costs[0], costs[1] = append(costs[0], a()), append(costs[1], b())
	}
	few, many := median(costs[0]), median(costs[1])
	t.Logf("one change among 100 dataplanes: %s, among 5,000: %s", few, many)
	if many > 5*few { // fifty times the dataplanes
		t.Errorf("one change costs %s among 5,000 dataplanes, %s among 100", many, few)
	}
}

// The promise is 10 ms for a whole update in a mesh of 5,000 dataplanes and 500 services.
func TestAnUpdateTakesLessThanTenMilliseconds(t *testing.T) {
	f := newFleet(t, 5000, 500)
	var costs []time.Duration
	for i := range 51 {
		f.change(t, i)
		begin := time.Now()
		f.settle(t)
		costs = append(costs, time.Since(begin))
	}
	m := median(costs)
	t.Logf("one change among 5,000 dataplanes, counted, encoded and committed: %s", m)
	if m > 10*time.Millisecond {
		t.Errorf("it takes %s", m)
	}
	rec, _ := f.st.Snapshot().Get(key(resource.MeshInsight, "", "m"))
	var got meshv1.MeshInsight
	if err := proto.Unmarshal(rec.Spec, &got); err != nil || got.GetDataplanes().GetOffline() != 1 {
		t.Errorf("after the last change: %v, %v", got.GetDataplanes(), err)
	}
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}
