package store

import (
	"cmp"
	"context"
	"fmt"
	"iter"
	"slices"
	"sync"
)

// Changes is a step of a Watch: the last change of each key in (From, To].
type Changes struct {
	From, To Revision
	List     []Change
	Snapshot *Snapshot // at To
}

// Watch yields the changes of the given types (none given: of all) after revision from, without gaps or repeats:
// applying them in order gives the state of Snapshot at To. From of each step is To of the one before. A step has at
// least one change; its List is in commit order, within a revision by type as given, then by key.
//
// What happened while the consumer was busy is merged per key into its next step, so a slow consumer costs nothing
// and delays only itself. List is the consumer's own; the records are shared.
//
// The iteration ends with an error: ErrCompacted when deletions since from may be forgotten or from is newer than the
// head (read a snapshot and watch again from its revision), ErrClosed once the store is closed and all was
// yielded, or ctx's error, wrapped.
func (s *Store) Watch(ctx context.Context, from Revision, types ...string) iter.Seq2[Changes, error] {
	return func(yield func(Changes, error) bool) {
		from := from
		seen := from // nothing of these types changed in (from, seen]
		closed := false
		for {
			head := s.Snapshot()
			list, err := changesOf(head, seen, types)
			if err != nil {
				yield(Changes{}, err)
				return
			}
			seen = head.Revision()
			if len(list) > 0 {
				if !yield(Changes{From: from, To: seen, List: list, Snapshot: head}, nil) {
					return
				}
				from = seen
			}
			if closed {
				yield(Changes{}, ErrClosed)
				return
			}
			select {
			case <-head.Next():
			case <-ctx.Done():
				yield(Changes{}, fmt.Errorf("watch from revision %d: %w", seen, ctx.Err()))
				return
			case <-s.done:
				closed = true // once more: the last batch may have come in between
			}
		}
	}
}

// Changed returns a channel that is closed once a batch that changes the type has been published, or the store is
// closed. Whoever waits for a change takes the channel first and then looks at a snapshot, so that nothing can fall in
// between. Snapshot.Next tells of every batch; with thousands of waiters, waking them all for each is what would cost.
func (s *Store) Changed(typ string) <-chan struct{} { return s.bells.of(typ) }

// bells are the channels of [Store.Changed]: one per type that is waited for, shared by all who wait.
type bells struct {
	mu    sync.Mutex // guards what follows
	byTyp map[string]chan struct{}
}

func (b *bells) of(typ string) <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	bell := b.byTyp[typ]
	if bell == nil {
		if b.byTyp == nil {
			b.byTyp = make(map[string]chan struct{})
		}
		bell = make(chan struct{})
		b.byTyp[typ] = bell
	}
	return bell
}

// ring wakes who waits for a type that batches change.
func (b *bells) ring(batches []Batch) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, batch := range batches {
		if len(b.byTyp) == 0 {
			return
		}
		for _, r := range batch.Puts {
			b.ringLocked(r.Key.Type)
		}
		for _, t := range batch.Deletes {
			b.ringLocked(t.Key.Type)
		}
	}
}

func (b *bells) ringLocked(typ string) {
	if bell := b.byTyp[typ]; bell != nil {
		close(bell)
		delete(b.byTyp, typ)
	}
}

func (b *bells) ringAll() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for typ := range b.byTyp {
		b.ringLocked(typ)
	}
}

func changesOf(head *Snapshot, after Revision, types []string) ([]Change, error) {
	if len(types) == 0 {
		types = slices.Collect(head.Types())
	}
	var list []Change
	for _, typ := range types {
		changes, err := head.Changes(typ, after)
		if err != nil {
			return nil, err
		}
		list = slices.AppendSeq(list, changes)
	}
	if len(types) > 1 {
		slices.SortStableFunc(list, func(a, b Change) int { return cmp.Compare(a.Revision, b.Revision) })
	}
	return list, nil
}
