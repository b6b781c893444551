package store

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-memdb"
)

// group is the batches that will share one durable transaction, applied one after the other to a write transaction of
// the tables: the pending head. It belongs to the committer.
//
// memdb has no savepoints, so a batch that is refused must not have touched the tables: prepare checks all of a batch
// and changes nothing, apply changes and cannot fail.
type group struct {
	db   *memdb.MemDB
	base *Snapshot  // what is published
	txn  *memdb.Txn // nil until the first change

	revision, compacted Revision
	tombstones          int

	id      string
	batches []Batch
	forget  []Key
	bytes   int // of the records in batches, roughly
	waiting []waiter
}

// waiter is a request that has run and is not answered yet.
type waiter struct {
	request *request
	answer  answer
	outcome outcome
	// pending: it saw batches that were not yet durable, so its answer is only as good as they are.
	pending bool
}

// change is an op that passed all checks and does change something.
type change struct {
	key       Key
	old, next *Record // nil: absent before, deleted
}

func newGroup(db *memdb.MemDB, base *Snapshot) *group {
	return &group{db: db, base: base, id: base.id, revision: base.revision, compacted: base.compacted, tombstones: base.tombstones}
}

// head is the state after all batches so far.
func (g *group) head() *Snapshot {
	if g.txn == nil {
		return g.base
	}
	return &Snapshot{txn: g.txn, revision: g.revision, compacted: g.compacted, tombstones: g.tombstones, id: g.id, next: g.base.next}
}

// run decides one request and applies it if it is accepted. Its answer waits for the group. refusal, when not nil, is
// why it is not even run.
func (g *group) run(r *request, refusal error) {
	head := g.head()
	w := waiter{request: r, outcome: outcomeCommitted, pending: g.txn != nil}
	var changes []change
	err := refusal
	if err == nil {
		changes, err = g.prepare(r.fn, head)
	}
	switch {
	case errors.Is(err, ErrConflict):
		w.outcome, w.answer.err = outcomeConflict, err
	case err != nil:
		w.outcome, w.answer.err = outcomeRejected, err
	case len(changes) == 0:
		w.outcome, w.answer.revision = outcomeUnchanged, g.revision
	default:
		g.apply(changes)
		w.pending, w.answer.revision = true, g.revision
	}
	g.waiting = append(g.waiting, w)
}

func (g *group) prepare(fn func(*Snapshot) ([]Op, error), head *Snapshot) ([]change, error) {
	ops, err := call(fn, head)
	if err != nil {
		return nil, err
	}
	if err := checkKeys(ops); err != nil {
		return nil, err
	}
	changes := make([]change, 0, len(ops))
	for _, op := range ops {
		old, exists := head.Get(op.Key)
		if op.IfVersion != nil {
			var version Revision
			if exists {
				version = old.Version
			}
			if *op.IfVersion != version {
				return nil, fmt.Errorf("%s is at version %d, not %d: %w", op.Key, version, *op.IfVersion, ErrConflict)
			}
		}
		switch {
		case op.Record == nil && !exists:
		case op.Record == nil:
			changes = append(changes, change{key: op.Key, old: old})
		case exists && same(old, op.Record):
		default:
			changes = append(changes, change{key: op.Key, old: old, next: op.Record})
		}
	}
	return changes, nil
}

// call runs fn; a panic is an error of this batch alone.
func call(fn func(*Snapshot) ([]Op, error), head *Snapshot) (ops []Op, err error) {
	defer func() {
		if p := recover(); p != nil {
			ops, err = nil, fmt.Errorf("update function panicked: %v", p)
		}
	}()
	return fn(head)
}

// maxKeyBytes bounds type, mesh and name together, below what any backend can take: a key that only the backend
// refused would fail the whole store.
const maxKeyBytes = 4096

func checkKeys(ops []Op) error {
	var seen map[Key]struct{}
	if len(ops) > 1 {
		seen = make(map[Key]struct{}, len(ops))
	}
	for _, op := range ops {
		if op.Key.Type == "" || op.Key.Name == "" {
			return fmt.Errorf("%w: key %q has no type or no name", ErrInvalid, op.Key)
		}
		if n := len(op.Key.Type) + len(op.Key.Mesh) + len(op.Key.Name); n > maxKeyBytes {
			return fmt.Errorf("%w: key of %d bytes, at most %d are allowed", ErrInvalid, n, maxKeyBytes)
		}
		if hasNUL(op.Key.Type) || hasNUL(op.Key.Mesh) || hasNUL(op.Key.Name) {
			return fmt.Errorf("%w: key %q has a NUL in it", ErrInvalid, op.Key)
		}
		if r := op.Record; r != nil {
			if r.Key != op.Key {
				return fmt.Errorf("%w: op on %s puts a record of %s", ErrInvalid, op.Key, r.Key)
			}
			if hasNUL(r.Origin) || hasNUL(r.WireName) {
				return fmt.Errorf("%w: origin or wire name of %s has a NUL in it", ErrInvalid, op.Key)
			}
		}
		if seen != nil {
			if _, twice := seen[op.Key]; twice {
				return fmt.Errorf("%w: two ops on %s", ErrInvalid, op.Key)
			}
			seen[op.Key] = struct{}{}
		}
	}
	return nil
}

func hasNUL(s string) bool { return strings.IndexByte(s, 0) >= 0 }

// same reports whether putting b over a would change nothing.
func same(a, b *Record) bool {
	return a.Origin == b.Origin && a.WireName == b.WireName &&
		a.Created.Equal(b.Created) && a.Modified.Equal(b.Modified) &&
		bytes.Equal(a.Spec, b.Spec) && maps.Equal(a.Labels, b.Labels)
}

// apply gives the changes the next revision and brings them into the tables.
func (g *group) apply(changes []change) {
	if g.txn == nil {
		g.txn = g.db.Txn(true)
	}
	g.revision++
	batch := Batch{Revision: g.revision}
	counts := countDeltas{}
	var now time.Time
	for _, c := range changes {
		if c.next == nil {
			if now.IsZero() {
				now = time.Now().UTC().Round(0)
			}
			tomb := Tombstone{Key: c.key, Origin: c.old.Origin, Revision: g.revision, Deleted: now}
			batch.Deletes = append(batch.Deletes, tomb)
			g.must(g.txn.Delete(tableRecords, c.old))
			g.bury(&tomb)
			counts.add(c.key, -1)
			g.bytes += len(c.key.Type) + len(c.key.Mesh) + len(c.key.Name)
			continue
		}
		r := stored(c.next)
		r.Version, r.CreateRevision = g.revision, g.revision
		if c.old != nil {
			r.CreateRevision = c.old.CreateRevision
			counts.add(c.key, 0)
		} else {
			g.unbury(c.key)
			counts.add(c.key, 1)
		}
		batch.Puts = append(batch.Puts, r)
		g.must(g.txn.Insert(tableRecords, r))
		g.bytes += r.size()
	}
	g.addCounts(counts, g.revision)
	g.batches = append(g.batches, batch)
}

// stored returns the copy of r that the store keeps.
func stored(r *Record) *Record {
	c := *r
	if len(c.Spec) == 0 {
		c.Spec = nil
	}
	if len(c.Labels) == 0 {
		c.Labels = nil
	}
	c.Created, c.Modified = utc(c.Created), utc(c.Modified)
	return &c
}

// utc keeps the instant alone, so that a record is equal to itself read back from disk.
func utc(t time.Time) time.Time {
	if t.IsZero() {
		return time.Time{}
	}
	return t.Round(0).UTC()
}

// size is about what r takes on disk, in bytes.
func (r *Record) size() int {
	n := 64 + len(r.Key.Type) + len(r.Key.Mesh) + len(r.Key.Name) + len(r.Spec) + len(r.Origin) + len(r.WireName)
	for k, v := range r.Labels {
		n += len(k) + len(v) + 6
	}
	return n
}

func (g *group) bury(t *Tombstone) {
	g.must(g.txn.Insert(tableTombstones, t))
	g.tombstones++
}

// unbury removes the tombstone of key, if there is one.
func (g *group) unbury(key Key) {
	if g.tombstones == 0 {
		return
	}
	if t, ok := first[*Tombstone](g.txn, tableTombstones, indexID, key.bytes()); ok {
		g.must(g.txn.Delete(tableTombstones, t))
		g.tombstones--
	}
}

// countDeltas collects what a batch changes in the counts, so that each row is written once per batch.
type countDeltas map[countKey]int

type countKey struct{ typ, mesh string }

func (d countDeltas) add(k Key, n int) {
	d[countKey{k.Type, ""}] += n
	if k.Mesh != "" && n != 0 {
		d[countKey{k.Type, k.Mesh}] += n
	}
}

func (g *group) addCounts(deltas countDeltas, last Revision) {
	for k, n := range deltas {
		row := (&Snapshot{txn: g.txn}).counts(k.typ, k.mesh)
		row.n += n
		switch {
		case k.mesh == "":
			row.last = max(row.last, last)
		case n == 0:
			continue
		case row.n == 0:
			g.must(g.txn.Delete(tableCounts, &row))
			continue
		}
		g.must(g.txn.Insert(tableCounts, &row))
	}
}

// must panics: what prepare let through fits the tables.
func (g *group) must(err error) {
	if err != nil {
		panic(fmt.Sprintf("store: apply revision %d: %v", g.revision, err))
	}
}

// durable is what the backend has to write.
func (g *group) durable() Group {
	return Group{Base: g.base.revision, Batches: slices.Clip(g.batches), Forget: g.forget, Compacted: g.compacted}
}

// requests are those that ran and are not answered.
func (g *group) requests() []*request {
	all := make([]*request, len(g.waiting))
	for i, w := range g.waiting {
		all[i] = w.request
	}
	return all
}

// answer answers every request that ran; failure, when not nil, to all that stood on the group's batches.
func (g *group) answer(m *metrics, failure error) {
	for _, w := range g.waiting {
		if failure != nil && w.pending {
			w.answer, w.outcome = answer{err: failure}, outcomeFailed
		}
		m.count(w.outcome)
		w.request.answered <- w.answer
	}
}
