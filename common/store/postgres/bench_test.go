package postgres_test

import (
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/bolt"
	"github.com/meridian-mesh/meridian/common/store/postgres"
	"github.com/meridian-mesh/meridian/common/store/postgres/pgtest"
)

// numbered is a record like a small policy, as in the benchmarks of package store.
func numbered(i, value int) *store.Record {
	return &store.Record{
		Key:    store.Key{Type: "TrafficRoute", Mesh: "default", Name: fmt.Sprintf("route-%06d", i)},
		Spec:   fmt.Appendf(nil, "%0200d", value),
		Labels: map[string]string{"kuma.io/origin": "global"},
	}
}

func fill(tb testing.TB, s *store.Store, n int) {
	tb.Helper()
	for from := 0; from < n; from += 1000 {
		_, err := s.Update(tb.Context(), func(*store.Snapshot) ([]store.Op, error) {
			var ops []store.Op
			for i := from; i < min(n, from+1000); i++ {
				ops = append(ops, store.Put(numbered(i, i)))
			}
			return ops, nil
		})
		if err != nil {
			tb.Fatal(err)
		}
	}
}

func update(ctx context.Context, s *store.Store, n int) error {
	_, err := s.Update(ctx, func(*store.Snapshot) ([]store.Op, error) { return []store.Op{store.Put(numbered(n%1000, -n))}, nil })
	return err
}

// BenchmarkUpdate writes on one and on three replicas. The server syncs its disk.
func BenchmarkUpdate(b *testing.B) {
	s := pgtest.Start(b)
	for _, replicas := range []int{1, 3} {
		for _, writers := range []int{1, 32} {
			b.Run(fmt.Sprintf("replicas=%d/writers=%d", replicas, writers*replicas), func(b *testing.B) {
				d := s.NewSchema(b)
				var stores []*store.Store
				for range replicas {
					stores = append(stores, openURL(b, d.URL(), postgres.Options{}))
				}
				fill(b, stores[0], 1000)
				var left, next atomic.Int64
				left.Store(int64(b.N))
				b.ReportAllocs()
				b.ResetTimer()
				g, ctx := errgroup.WithContext(b.Context())
				for w := range writers * replicas {
					g.Go(func() error {
						for left.Add(-1) >= 0 {
							if err := update(ctx, stores[w%replicas], int(next.Add(1))); err != nil {
								return err
							}
						}
						return nil
					})
				}
				if err := g.Wait(); err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}

// BenchmarkVisible is the time from the beginning of a write on one replica until another serves it.
func BenchmarkVisible(b *testing.B) {
	d := pgtest.Start(b).NewSchema(b)
	writer, reader := openURL(b, d.URL(), postgres.Options{}), openURL(b, d.URL(), postgres.Options{})
	fill(b, writer, 1000)
	var took []time.Duration
	n := 0
	for b.Loop() {
		n++
		start := time.Now()
		if err := update(b.Context(), writer, n); err != nil {
			b.Fatal(err)
		}
		for head := reader.Snapshot(); head.Revision() < writer.Snapshot().Revision(); head = reader.Snapshot() {
			<-head.Next()
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds()), "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}

// BenchmarkOpen100000 opens a store with 100,000 records, in Postgres and in a file.
func BenchmarkOpen100000(b *testing.B) {
	b.Run("postgres", func(b *testing.B) {
		d := pgtest.Start(b, "fsync=off").NewSchema(b)
		benchmarkOpen(b, func() (store.Backend, error) { return postgres.Open(b.Context(), postgres.Options{URL: d.URL()}) })
	})
	b.Run("bolt", func(b *testing.B) {
		file := filepath.Join(b.TempDir(), "store.db")
		benchmarkOpen(b, func() (store.Backend, error) { return bolt.Open(file, bolt.Options{}) })
	})
}

func benchmarkOpen(b *testing.B, open func() (store.Backend, error)) {
	b.Helper()
	backend, err := open()
	if err != nil {
		b.Fatal(err)
	}
	s, err := store.Open(b.Context(), backend, store.Options{})
	if err != nil {
		b.Fatal(err)
	}
	fill(b, s, 100_000)
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	s = nil
	b.ReportAllocs()
	var before, after runtime.MemStats
	for b.Loop() {
		runtime.GC()
		runtime.ReadMemStats(&before)
		backend, err := open()
		if err != nil {
			b.Fatal(err)
		}
		s, err := store.Open(b.Context(), backend, store.Options{})
		if err != nil {
			b.Fatal(err)
		}
		if n := s.Snapshot().Count("TrafficRoute", ""); n != 100_000 {
			b.Fatalf("%d records", n)
		}
		runtime.GC()
		runtime.ReadMemStats(&after)
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(int64(after.HeapAlloc)-int64(before.HeapAlloc))/(1<<20), "MiB-heap")
}
