package store_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
	"github.com/meridian-mesh/meridian/common/store/storetest"
)

func TestADeletionIsRememberedForADay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, memory.New(), store.Options{})
		for i := range 4 {
			commit(t, s, store.Put(numbered(i))) // revisions 1 to 4
		}
		commit(t, s, store.Delete(numbered(0).Key)) // 5
		time.Sleep(12 * time.Hour)
		commit(t, s, store.Delete(numbered(1).Key)) // 6
		commit(t, s, store.Put(numbered(9)))        // 7: the newest change of the type is no deletion
		time.Sleep(12*time.Hour - time.Nanosecond)
		commit(t, s, store.Put(numbered(10)))
		if c := s.Snapshot().Compacted(); c != 0 {
			t.Fatalf("forgotten up to revision %d before a day was over", c)
		}
		time.Sleep(time.Nanosecond)
		if c := s.Snapshot().Compacted(); c != 0 {
			t.Fatalf("forgotten up to revision %d without a commit", c)
		}
		commit(t, s, store.Put(numbered(11)))
		if c := s.Snapshot().Compacted(); c != 5 {
			t.Fatalf("forgotten up to revision %d after a day, want 5", c)
		}
		time.Sleep(12 * time.Hour)
		commit(t, s, store.Put(numbered(12)))
		if c := s.Snapshot().Compacted(); c != 6 {
			t.Fatalf("forgotten up to revision %d after another half, want 6", c)
		}
	})
}

func TestTheNumberOfRememberedDeletionsIsBounded(t *testing.T) {
	const limit = 1000
	reg := prometheus.NewPedanticRegistry()
	s := open(t, memory.New(), store.Options{MaxTombstones: limit, Registerer: reg})
	most := 0.0
	for i := range 5 * limit {
		commit(t, s, store.Put(numbered(i)))
		commit(t, s, store.Delete(numbered(i).Key))
		if i%50 == 0 || i == 5*limit-1 {
			most = max(most, gauge(t, reg, "meridian_store_tombstones"))
		}
	}
	if most < limit || most > 1.1*limit+2 {
		t.Errorf("%v deletions remembered, want at most %d and a tenth, and not fewer than allowed", most, limit)
	}
}

func gauge(t *testing.T, g prometheus.Gatherer, name string) float64 {
	t.Helper()
	for _, line := range exposed(t, g) {
		if v, ok := strings.CutPrefix(line, name+" "); ok {
			f, err := strconv.ParseFloat(v, 64)
			if err != nil {
				t.Fatal(err)
			}
			return f
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// exposed renders what is registered: gauges and counters with their value, histograms with their count.
func exposed(t *testing.T, g prometheus.Gatherer) []string {
	t.Helper()
	families, err := g.Gather()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, f := range families {
		for _, m := range f.GetMetric() {
			line := f.GetName()
			for _, l := range m.GetLabel() {
				line += fmt.Sprintf("{%s=%s}", l.GetName(), l.GetValue())
			}
			switch {
			case m.GetHistogram() != nil:
				line += fmt.Sprintf(" count %d", m.GetHistogram().GetSampleCount())
			default:
				line += fmt.Sprintf(" %v", m.GetGauge().GetValue()+m.GetCounter().GetValue())
			}
			out = append(out, line)
		}
	}
	return out
}

func TestMetricsSayWhatTheStoreHoldsAndDid(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	failing := false
	var log strings.Builder
	backend := memory.New()
	s, err := store.Open(t.Context(), storetest.FailAppends(backend, func(store.Group) error {
		if failing {
			return errors.New("disk full")
		}
		return nil
	}), store.Options{Registerer: reg, Log: slog.New(slog.NewTextHandler(&log, nil))})
	if err != nil {
		t.Fatal(err)
	}
	update := func(err error, ops ...store.Op) {
		_, _ = s.Update(t.Context(), func(*store.Snapshot) ([]store.Op, error) { return ops, err })
	}
	update(nil, store.Put(numbered(1)), store.Put(numbered(2)), store.Put(&store.Record{Key: store.Key{Type: "Mesh", Name: "default"}}))
	update(nil, store.Put(numbered(1)))
	update(nil, store.Put(numbered(1)).If(9))
	update(errors.New("no"))
	update(nil, store.Delete(numbered(2).Key))
	failing = true
	update(nil, store.Put(numbered(3)))

	want := []string{
		"meridian_store_batches_total{outcome=committed} 2",
		"meridian_store_batches_total{outcome=conflict} 1",
		"meridian_store_batches_total{outcome=failed} 1",
		"meridian_store_batches_total{outcome=rejected} 1",
		"meridian_store_batches_total{outcome=unchanged} 1",
		"meridian_store_commit_duration_seconds count 3",
		"meridian_store_group_batches count 3",
		"meridian_store_queue_length 0",
		"meridian_store_records{type=Mesh} 1",
		"meridian_store_records{type=TrafficRoute} 1",
		"meridian_store_revision 2",
		"meridian_store_tombstones 1",
		"meridian_store_writable 0",
	}
	if diff := cmp.Diff(want, exposed(t, reg)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if !strings.Contains(log.String(), "disk full") {
		t.Errorf("the failure was not logged: %q", log.String())
	}

	// A second store must say so rather than share the figures of the first, until that one is closed.
	if second, err := store.Open(t.Context(), memory.New(), store.Options{Registerer: reg}); err == nil {
		_ = second.Close()
		t.Error("two stores registered the same metrics")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	open(t, backend, store.Options{Registerer: reg})
}

// TestTheCostOfAChangeDoesNotGrowWithTheStore compares the fastest of many runs, which other load on the machine hardly
// touches: a walk over the records would be two hundred times as slow with two hundred times as many.
func TestTheCostOfAChangeDoesNotGrowWithTheStore(t *testing.T) {
	const small, big, tolerated = 100, 20_000, 10
	type costs struct{ Changes, Update, Watch time.Duration }
	fastest := func(op func()) time.Duration {
		least := time.Hour
		for range 200 {
			start := time.Now()
			op()
			least = min(least, time.Since(start))
		}
		return max(least, time.Microsecond)
	}
	measure := func(records int) costs {
		s := open(t, memory.New(), store.Options{})
		fill(t, s, records)
		before := s.Snapshot().Revision()
		r := numbered(50)
		r.Spec = []byte("changed")
		commit(t, s, store.Put(r), store.Delete(numbered(51).Key))
		var c costs
		c.Changes = fastest(func() {
			seq, err := s.Snapshot().Changes("TrafficRoute", before)
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for range seq {
				n++
			}
			if n != 2 {
				t.Fatalf("%d changes", n)
			}
		})
		c.Watch = fastest(func() {
			for step, err := range s.Watch(t.Context(), before, "TrafficRoute") {
				if err != nil || len(step.List) != 2 {
					t.Fatal(step, err)
				}
				break
			}
		})
		n := 0
		c.Update = fastest(func() {
			n++
			r := numbered(50)
			r.Spec = fmt.Append(nil, n)
			commit(t, s, store.Put(r))
		})
		return c
	}
	few, many := measure(small), measure(big)
	t.Logf("with %d records: %+v; with %d: %+v", small, few, big, many)
	if many.Changes > tolerated*few.Changes || many.Update > tolerated*few.Update || many.Watch > tolerated*few.Watch {
		t.Errorf("with %d records %+v, with %d %+v", small, few, big, many)
	}
}

func TestAnIdleStoreAndItsWatchersDoNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := open(t, memory.New(), store.Options{})
		commit(t, s, store.Put(numbered(1)))
		ctx, cancel := context.WithCancel(t.Context())
		steps, ended := 0, make(chan struct{})
		for range 3 {
			go func() {
				defer func() { ended <- struct{}{} }()
				for _, err := range s.Watch(ctx, 1) {
					if err == nil {
						steps++ // a race, were there any
					}
				}
			}()
		}
		// Were any of them to set a timer, it would fire within a year, and the clock would stop at it.
		time.Sleep(365 * 24 * time.Hour)
		synctest.Wait()
		cancel()
		for range 3 {
			<-ended
		}
		if steps != 0 {
			t.Errorf("%d steps without a change", steps)
		}
	})
}
