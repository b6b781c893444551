package store_test

import (
	"context"
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/bolt"
	"github.com/meridian-mesh/meridian/common/store/memory"
)

var backends = []struct {
	name string
	open func(testing.TB) store.Backend
}{
	{"memory", func(testing.TB) store.Backend { return memory.New() }},
	{"bolt", func(tb testing.TB) store.Backend {
		tb.Helper()
		b, err := bolt.Open(filepath.Join(tb.TempDir(), "store.db"), bolt.Options{})
		if err != nil {
			tb.Fatal(err)
		}
		return b
	}},
}

func open(tb testing.TB, b store.Backend, o store.Options) *store.Store {
	tb.Helper()
	s, err := store.Open(tb.Context(), b, o)
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

// numbered is a record like a small policy, with about 200 bytes of specification.
func numbered(i int) *store.Record {
	return &store.Record{
		Key:    store.Key{Type: "TrafficRoute", Mesh: "default", Name: fmt.Sprintf("route-%06d", i)},
		Spec:   fmt.Appendf(nil, "%0200d", i),
		Labels: map[string]string{"kuma.io/origin": "global"},
	}
}

// fill puts n records in batches of 1000.
func fill(tb testing.TB, s *store.Store, n int) {
	tb.Helper()
	for from := 0; from < n; from += 1000 {
		var ops []store.Op
		for i := from; i < min(n, from+1000); i++ {
			ops = append(ops, store.Put(numbered(i)))
		}
		commit(tb, s, ops...)
	}
}

func commit(tb testing.TB, s *store.Store, ops ...store.Op) store.Revision {
	tb.Helper()
	rev, err := s.Update(tb.Context(), func(*store.Snapshot) ([]store.Op, error) { return ops, nil })
	if err != nil {
		tb.Fatal(err)
	}
	return rev
}

func BenchmarkUpdate(b *testing.B) {
	for _, backend := range backends {
		for _, writers := range []int{1, 32} {
			b.Run(fmt.Sprintf("%s/writers=%d", backend.name, writers), func(b *testing.B) {
				s := open(b, backend.open(b), store.Options{})
				fill(b, s, 1000)
				var left, next atomic.Int64
				left.Store(int64(b.N))
				b.ReportAllocs()
				b.ResetTimer()
				g, ctx := errgroup.WithContext(b.Context())
				for range writers {
					g.Go(func() error { return write(ctx, s, &left, &next) })
				}
				if err := g.Wait(); err != nil {
					b.Fatal(err)
				}
			})
		}
	}
}

// write updates one of 1000 records at a time until left is used up. (b.Loop belongs to one goroutine.)
func write(ctx context.Context, s *store.Store, left, next *atomic.Int64) error {
	for left.Add(-1) >= 0 {
		n := int(next.Add(1))
		r := numbered(n % 1000)
		r.Spec = fmt.Appendf(nil, "%0200d", -n)
		_, err := s.Update(ctx, func(*store.Snapshot) ([]store.Op, error) { return []store.Op{store.Put(r)}, nil })
		if err != nil {
			return err
		}
	}
	return nil
}

func BenchmarkGet(b *testing.B) {
	s := open(b, memory.New(), store.Options{})
	fill(b, s, 20_000)
	head := s.Snapshot()
	key := numbered(7777).Key
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := head.Get(key); !ok {
			b.Fatal("not found")
		}
	}
}

func BenchmarkList1000Of20000(b *testing.B) {
	s := open(b, memory.New(), store.Options{})
	fill(b, s, 20_000)
	head := s.Snapshot()
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		for range head.List("TrafficRoute", "default") {
			if n++; n == 1000 {
				break
			}
		}
	}
}

func BenchmarkChangesOfOne(b *testing.B) {
	for _, records := range []int{100, 20_000} {
		b.Run(fmt.Sprintf("records=%d", records), func(b *testing.B) {
			s := open(b, memory.New(), store.Options{})
			fill(b, s, records)
			before := s.Snapshot().Revision()
			r := numbered(50)
			r.Spec = []byte("changed")
			commit(b, s, store.Put(r))
			head := s.Snapshot()
			b.ReportAllocs()
			for b.Loop() {
				changes, err := head.Changes("TrafficRoute", before)
				if err != nil {
					b.Fatal(err)
				}
				for c := range changes {
					if c.Record == nil {
						b.Fatal("a deletion")
					}
				}
			}
		})
	}
}

func BenchmarkUpdateOfOne(b *testing.B) {
	for _, records := range []int{100, 20_000} {
		b.Run(fmt.Sprintf("records=%d", records), func(b *testing.B) {
			s := open(b, memory.New(), store.Options{})
			fill(b, s, records)
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				n++
				r := numbered(n % 100)
				r.Spec = fmt.Appendf(nil, "%0200d", -n)
				commit(b, s, store.Put(r))
			}
		})
	}
}

func BenchmarkOpen20000(b *testing.B) {
	for _, backend := range []string{"memory", "bolt"} {
		b.Run(backend, func(b *testing.B) {
			mem := memory.New()
			path := filepath.Join(b.TempDir(), "store.db")
			reopen := func() *store.Store {
				var be store.Backend = mem
				if backend == "bolt" {
					var err error
					if be, err = bolt.Open(path, bolt.Options{}); err != nil {
						b.Fatal(err)
					}
				}
				s, err := store.Open(b.Context(), be, store.Options{})
				if err != nil {
					b.Fatal(err)
				}
				return s
			}
			s := reopen()
			fill(b, s, 20_000)
			if err := s.Close(); err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			for b.Loop() {
				s := reopen()
				if n := s.Snapshot().Count("TrafficRoute", ""); n != 20_000 {
					b.Fatalf("%d records", n)
				}
				if err := s.Close(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
