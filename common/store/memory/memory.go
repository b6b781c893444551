// Package memory is a store backend that keeps everything in this process: for tests and demos, where a restart may
// forget all. What was appended survives closing, so a test can open the same value again to see what a restart sees.
package memory

import (
	"context"
	"fmt"
	"sync"

	"github.com/meridian-mesh/meridian/common/store"
)

// Backend is a [store.Backend] in memory. Of two stores that have the same value open, the first to write wins: the
// other's next write fails, since it does not follow.
type Backend struct {
	mu         sync.Mutex // guards what follows
	head       store.Head
	records    map[store.Key]*store.Record
	tombstones map[store.Key]store.Tombstone
}

// New returns an empty backend with an ID of its own.
func New() *Backend {
	return &Backend{
		head:       store.Head{ID: store.NewID()},
		records:    map[store.Key]*store.Record{},
		tombstones: map[store.Key]store.Tombstone{},
	}
}

// Load implements [store.Backend].
func (b *Backend) Load(_ context.Context, record func(*store.Record) error, tombstone func(store.Tombstone) error) (store.Head, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.records {
		if err := record(r); err != nil {
			return store.Head{}, fmt.Errorf("load from memory: %w", err)
		}
	}
	for _, t := range b.tombstones {
		if err := tombstone(t); err != nil {
			return store.Head{}, fmt.Errorf("load from memory: %w", err)
		}
	}
	return b.head, nil
}

// Append implements [store.Backend].
func (b *Backend) Append(_ context.Context, g store.Group) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if g.Base != b.head.Revision {
		return fmt.Errorf("group follows revision %d, but the newest in memory is %d", g.Base, b.head.Revision)
	}
	for _, batch := range g.Batches {
		for _, r := range batch.Puts {
			b.records[r.Key] = r
			delete(b.tombstones, r.Key)
		}
		for _, t := range batch.Deletes {
			delete(b.records, t.Key)
			b.tombstones[t.Key] = t
		}
	}
	for _, k := range g.Forget {
		delete(b.tombstones, k)
	}
	b.head.Revision, b.head.Compacted = g.Revision(), g.Compacted
	return nil
}

// Close implements [store.Backend]. What is stored stays, and b can be opened again.
func (b *Backend) Close() error { return nil }
