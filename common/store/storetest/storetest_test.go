package storetest_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
	"github.com/meridian-mesh/meridian/common/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// broken is a backend with a bug: what is appended or loaded goes through a function that gets it wrong.
type broken struct {
	store.Backend
	group  func(store.Group) store.Group
	record func(*store.Record) *store.Record
	head   func(store.Head) store.Head
}

func (b *broken) Append(ctx context.Context, g store.Group) error {
	if b.group != nil {
		g = b.group(g)
	}
	return b.Backend.Append(ctx, g)
}

func (b *broken) Load(
	ctx context.Context, record func(*store.Record) error, tombstone func(store.Tombstone) error,
) (store.Head, error) {
	head, err := b.Backend.Load(ctx, func(r *store.Record) error {
		if b.record != nil {
			r = b.record(r)
		}
		return record(r)
	}, tombstone)
	if b.head != nil {
		head = b.head(head)
	}
	return head, err
}

// eachBatch returns a bug in the handling of every batch.
func eachBatch(change func(*store.Batch)) func(store.Group) store.Group {
	return func(g store.Group) store.Group {
		g.Batches = slices.Clone(g.Batches)
		for i := range g.Batches {
			change(&g.Batches[i])
		}
		return g
	}
}

func TestTheSuiteFindsABackendThat(t *testing.T) {
	for _, bug := range []struct {
		name string
		make broken
		// found names a case that must find it.
		found string
	}{
		{
			"forgets deletions",
			broken{group: eachBatch(func(b *store.Batch) { b.Deletes = nil })},
			"everything survives a restart",
		},
		{
			"loses the last batch of a group",
			broken{group: func(g store.Group) store.Group {
				if n := len(g.Batches); n > 1 {
					g.Batches = slices.Clone(g.Batches)
					g.Batches[n-1] = store.Batch{Revision: g.Revision()}
				}
				return g
			}},
			"a group of batches is durable as a whole",
		},
		{
			"loses labels",
			broken{record: func(r *store.Record) *store.Record { c := *r; c.Labels = nil; return &c }},
			"a record survives a restart in every field",
		},
		{
			"keeps time in microseconds",
			broken{record: func(r *store.Record) *store.Record {
				c := *r
				c.Created = c.Created.Truncate(1000)
				return &c
			}},
			"a record survives a restart in every field",
		},
		{
			"keeps tombstones that were compacted",
			broken{group: func(g store.Group) store.Group { g.Forget = nil; return g }},
			"deletions are forgotten when they are old",
		},
		{
			"does not know what was compacted",
			broken{head: func(h store.Head) store.Head { h.Compacted = 0; return h }},
			"changes before the oldest known deletion are refused",
		},
		{
			"makes a new ID on every start",
			broken{head: func(h store.Head) store.Head { h.ID = store.NewID(); return h }},
			"a new store is empty and has an ID of its own",
		},
		{
			"restarts the count of revisions at the newest record",
			broken{group: func(g store.Group) store.Group {
				// A batch of deletions alone is not counted.
				for len(g.Batches) > 0 && len(g.Batches[len(g.Batches)-1].Puts) == 0 {
					g.Batches = g.Batches[:len(g.Batches)-1]
				}
				return g
			}},
			"a deletion tells whose record it was",
		},
		{
			"stores one record of each batch",
			broken{group: eachBatch(func(b *store.Batch) {
				if len(b.Puts) > 1 {
					b.Puts = b.Puts[:1]
				}
			})},
			"a record survives a restart in every field",
		},
	} {
		t.Run(bug.name, func(t *testing.T) {
			var found []string
			for _, c := range storetest.Cases() {
				if c.Name != bug.found {
					continue
				}
				mem := memory.New()
				if err := c.Check(t.Context(), func() (store.Backend, error) {
					b := bug.make
					b.Backend = mem
					return &b, nil
				}); err != nil {
					found = append(found, c.Name)
					t.Logf("%s: %s", c.Name, strings.SplitN(err.Error(), "\n", 2)[0])
				}
			}
			if len(found) == 0 {
				t.Errorf("no case named %q, or it did not find the bug", bug.found)
			}
		})
	}
}
