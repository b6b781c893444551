package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/go-memdb"
)

// lock begins this replica's turn to write: the head is then the newest there is, whoever committed it.
func (s *Store) lock(ctx context.Context) error {
	newest, err := s.shared.Lock(ctx)
	if err != nil {
		return fmt.Errorf("wait for the turn to write: %w", err)
	}
	if newest == s.head.Load().revision {
		return nil
	}
	return s.follow(ctx)
}

// catchUp brings the head up to what other replicas committed. It also finds out whether the storage is there.
func (s *Store) catchUp(ctx context.Context) {
	err := s.follow(ctx)
	if err != nil { // a connection that broke says nothing of the storage: once more, by another
		err = s.follow(ctx)
	}
	if err != nil {
		_ = s.fail(ctx, err)
		return
	}
	if s.failed.Swap(nil) != nil {
		s.opts.Log.InfoContext(ctx, "store accepts writes again")
	}
}

// follow publishes what others committed as one step: a snapshot at the newest revision. Those between need not be
// seen, since a change log tells the last change of each key only.
func (s *Store) follow(ctx context.Context) error {
	base := s.head.Load()
	f := follower{group: newGroup(s.db, base), counts: countDeltas{}, last: map[string]Revision{}}
	start := time.Now()
	head, err := s.shared.Follow(ctx, f.record, f.tombstone)
	if errors.Is(err, ErrCompacted) {
		f.abort()
		return s.reload(ctx, err)
	}
	if err == nil {
		err = f.check(head)
	}
	if err != nil {
		f.abort()
		return fmt.Errorf("follow other replicas since revision %d: %w", base.revision, err)
	}
	if head.Revision == base.revision {
		f.abort()
		return nil
	}
	f.settle(head)
	s.publish(f.group)
	s.metrics.followSeconds.Observe(time.Since(start).Seconds())
	return nil
}

// reload reads everything anew and replaces the state. Whoever watches is told by ErrCompacted or by the changes that
// are left.
func (s *Store) reload(ctx context.Context, reason error) error {
	old := s.head.Load()
	s.opts.Log.ErrorContext(ctx, "the state is read anew: what changed in the storage cannot be told", "err", reason)
	db, err := newDB()
	if err != nil {
		return err
	}
	head, err := load(ctx, s.backend, db)
	if err != nil {
		return fmt.Errorf("read the state anew: %w", err)
	}
	s.opts.Log.ErrorContext(ctx, "the state was read anew", "id", head.id, "old_id", old.id,
		"revision", uint64(head.revision), "old_revision", uint64(old.revision))
	if head.id != old.id {
		if head, err = otherHistory(db, head, old); err != nil {
			return err
		}
	}
	s.db = db
	s.compact.due = time.Time{}
	s.head.Store(head)
	s.metrics.reloads.Inc()
	close(old.next)
	s.bells.ringAll()
	return nil
}

// otherHistory sees to it that no change since a revision of the history that old belongs to is told of any type, for the
// revisions of the two count different batches: head comes compacted beyond old, and every type has changed since.
func otherHistory(db *memdb.MemDB, head, old *Snapshot) (*Snapshot, error) {
	if head.compacted <= old.revision {
		return nil, fmt.Errorf("the new state is compacted to %d, the old one was at %d", head.compacted, old.revision)
	}
	rows := map[string]countRow{}
	for _, s := range []*Snapshot{old, head} {
		for typ := range s.Types() {
			rows[typ] = countRow{typ: typ, n: head.Count(typ, ""), last: max(head.LastChange(typ), head.compacted)}
		}
	}
	txn := db.Txn(true)
	defer txn.Abort() // nothing, once committed
	for _, row := range rows {
		if err := txn.Insert(tableCounts, &row); err != nil {
			return nil, err
		}
	}
	txn.Commit()
	next := *head
	next.txn = db.Txn(false)
	return &next, nil
}

// follower brings what other replicas committed into the tables.
type follower struct {
	*group
	counts countDeltas
	last   map[string]Revision // newest change, by type
	batch  Batch
}

func (f *follower) abort() {
	if f.txn != nil {
		f.txn.Abort()
	}
}

// begin checks a change and takes out what the tables have of its key.
func (f *follower) begin(key Key, revision Revision) error {
	if err := checkKeys([]Op{Delete(key)}); err != nil {
		return err
	}
	if revision <= f.base.revision {
		return fmt.Errorf("%s changed at revision %d already", key, revision)
	}
	if f.txn == nil {
		f.txn = f.db.Txn(true)
	}
	f.revision = max(f.revision, revision)
	f.last[key.Type] = max(f.last[key.Type], revision)
	f.counts.add(key, 0)
	f.unbury(key)
	return nil
}

func (f *follower) record(r *Record) error {
	if err := f.begin(r.Key, r.Version); err != nil {
		return err
	}
	if _, exists := f.head().Get(r.Key); !exists {
		f.counts.add(r.Key, 1)
	}
	f.batch.Puts = append(f.batch.Puts, r)
	return f.txn.Insert(tableRecords, r)
}

func (f *follower) tombstone(t Tombstone) error {
	if err := f.begin(t.Key, t.Revision); err != nil {
		return err
	}
	if old, exists := f.head().Get(t.Key); exists {
		f.counts.add(t.Key, -1)
		if err := f.txn.Delete(tableRecords, old); err != nil {
			return err
		}
	}
	f.batch.Deletes = append(f.batch.Deletes, t)
	f.bury(&t)
	return nil
}

// check refuses a head that does not belong to what was yielded.
func (f *follower) check(head Head) error {
	switch {
	case head.ID != f.base.id:
		return fmt.Errorf("store %s became %s", f.base.id, head.ID)
	case head.Revision < f.revision || head.Compacted > head.Revision:
		return fmt.Errorf("head is at revision %d, compacted to %d, after revision %d", head.Revision, head.Compacted, f.revision)
	case head.Revision > f.base.revision && f.txn == nil:
		return fmt.Errorf("head is at revision %d, and nothing changed", head.Revision)
	}
	return nil
}

// settle makes the state that of head.
func (f *follower) settle(head Head) {
	for k, n := range f.counts {
		f.addCounts(countDeltas{k: n}, f.last[k.typ])
	}
	f.revision, f.batch.Revision = head.Revision, head.Revision
	f.batches = []Batch{f.batch}
	if head.Compacted > f.compacted {
		f.compacted = head.Compacted
		f.forgetCompacted()
	}
}

// forgetCompacted drops the deletions that others have forgotten, by the rule of the compactor.
func (f *follower) forgetCompacted() {
	var drop []*Tombstone
	pending := f.head()
	kept := map[string]bool{} // types whose newest change is a tombstone that stays
	for t := range all[*Tombstone](f.txn, tableTombstones, indexRevision+"_prefix", []byte{}) {
		if t.Revision > f.compacted {
			break
		}
		if !kept[t.Key.Type] && t.Revision == pending.LastChange(t.Key.Type) {
			kept[t.Key.Type] = true
			continue
		}
		drop = append(drop, t)
	}
	for _, t := range drop {
		f.must(f.txn.Delete(tableTombstones, t))
	}
	f.tombstones -= len(drop)
}
