package store

import (
	"cmp"
	"fmt"
	"iter"
	"strings"

	"github.com/hashicorp/go-memdb"
)

// Snapshot is the whole state at one revision. It never changes; holding it costs only memory. All methods are safe
// for concurrent use, except on the pending head that Update lends to its function: that one is valid during the
// call only.
type Snapshot struct {
	txn                 *memdb.Txn // read-only; of the pending head: the committer's
	revision, compacted Revision
	tombstones          int
	id                  string
	next                chan struct{}
}

// Revision is the revision of the last batch the snapshot contains.
func (s *Snapshot) Revision() Revision { return s.revision }

// Compacted is the newest revision of any deletion that was forgotten: what changed since a revision below it is no
// longer known. 0 when every deletion is still known.
func (s *Snapshot) Compacted() Revision { return s.compacted }

// Get returns the record of key.
func (s *Snapshot) Get(key Key) (*Record, bool) {
	return first[*Record](s.txn, tableRecords, indexID, key.bytes())
}

// List yields the records of a type sorted by mesh, then name. With a mesh it yields only that mesh's; with "" all.
func (s *Snapshot) List(typ, mesh string) iter.Seq[*Record] {
	if mesh == "" {
		return all[*Record](s.txn, tableRecords, indexIDPrefix, joinKey(typ, ""))
	}
	return all[*Record](s.txn, tableRecords, indexIDPrefix, joinKey(typ, mesh, ""))
}

// Count returns how many records List would yield, without visiting them.
func (s *Snapshot) Count(typ, mesh string) int { return s.counts(typ, mesh).n }

// ByOrigin yields the records of a type that the named peer owns ("" : this plane), in key order.
func (s *Snapshot) ByOrigin(typ, origin string) iter.Seq[*Record] {
	return all[*Record](s.txn, tableRecords, indexOriginPrefix, joinKey(typ, origin, ""))
}

// ByWireName returns the record that the peer origin knows under wireName. Where several records were given the same
// wire name, it is the one whose name sorts first.
func (s *Snapshot) ByWireName(typ, origin, mesh, wireName string) (*Record, bool) {
	if wireName == "" {
		return nil, false
	}
	return first[*Record](s.txn, tableRecords, indexWireNamePrefix, joinKey(typ, origin, mesh, wireName, ""))
}

// Changes yields what happened to each key of a type since the batch at revision after: the last change of each key,
// in commit order; within a batch by mesh, then name. The cost is proportional to the number of changes.
//
// It returns ErrCompacted when deletions of the type since then may have been forgotten, and when after is newer than
// the snapshot: whoever saw that revision did not see it in this history. A type that has not changed since after
// yields nothing, however long ago that was.
func (s *Snapshot) Changes(typ string, after Revision) (iter.Seq[Change], error) {
	if after > s.revision {
		return nil, fmt.Errorf("changes of %s since revision %d, newest is %d: %w", typ, after, s.revision, ErrCompacted)
	}
	if s.LastChange(typ) <= after {
		return func(func(Change) bool) {}, nil
	}
	if after < s.compacted {
		return nil, fmt.Errorf("changes of %s since revision %d, deletions known since %d: %w", typ, after, s.compacted, ErrCompacted)
	}
	return func(yield func(Change) bool) {
		// A key is either a record or a tombstone, so merging the two by revision yields each key once.
		records := s.since(tableRecords, typ, after)
		tombstones := s.since(tableTombstones, typ, after)
		rec, _ := records.Next().(*Record)
		tomb, _ := tombstones.Next().(*Tombstone)
		for {
			// The iterators run on into the types that sort after this one.
			if rec != nil && rec.Key.Type != typ {
				rec = nil
			}
			if tomb != nil && tomb.Key.Type != typ {
				tomb = nil
			}
			var c Change
			switch {
			case rec == nil && tomb == nil:
				return
			case tomb == nil || rec != nil && cmp.Or(cmp.Compare(rec.Version, tomb.Revision), rec.Key.compare(tomb.Key)) < 0:
				c = Change{Key: rec.Key, Record: rec, Origin: rec.Origin, Revision: rec.Version}
				rec, _ = records.Next().(*Record)
			default:
				c = Change{Key: tomb.Key, Origin: tomb.Origin, Revision: tomb.Revision}
				tomb, _ = tombstones.Next().(*Tombstone)
			}
			if !yield(c) {
				return
			}
		}
	}, nil
}

// LastChange is the revision of the newest change of a type, deletions included; 0 when there was none.
func (s *Snapshot) LastChange(typ string) Revision { return s.counts(typ, "").last }

// Types yields the types that have or had records, sorted.
func (s *Snapshot) Types() iter.Seq[string] {
	return func(yield func(string) bool) {
		for row := range all[*countRow](s.txn, tableCounts, indexIDPrefix, []byte{}) {
			if row.mesh == "" && !yield(row.typ) {
				return
			}
		}
	}
}

// Next is closed once a newer snapshot is published.
func (s *Snapshot) Next() <-chan struct{} { return s.next }

func (s *Snapshot) counts(typ, mesh string) countRow {
	if row, ok := first[*countRow](s.txn, tableCounts, indexID, joinKey(typ, mesh)); ok {
		return *row
	}
	return countRow{typ: typ, mesh: mesh}
}

func (s *Snapshot) since(table, typ string, after Revision) memdb.ResultIterator {
	it, err := s.txn.LowerBound(table, indexVersion, versionKey(typ, after+1))
	mustQuery(err)
	return it
}

func (k Key) compare(o Key) int {
	return cmp.Or(strings.Compare(k.Type, o.Type), strings.Compare(k.Mesh, o.Mesh), strings.Compare(k.Name, o.Name))
}

// first returns the object under key, or with a prefix index the first whose key begins so.
func first[T any](txn *memdb.Txn, table, index string, key []byte) (T, bool) {
	obj, err := txn.First(table, index, key)
	mustQuery(err)
	v, ok := obj.(T)
	return v, ok
}

// all yields the objects whose key begins with prefix, in the order of the index.
func all[T any](txn *memdb.Txn, table, index string, prefix []byte) iter.Seq[T] {
	return func(yield func(T) bool) {
		it, err := txn.Get(table, index, prefix)
		mustQuery(err)
		for obj := it.Next(); obj != nil; obj = it.Next() {
			if !yield(obj.(T)) {
				return
			}
		}
	}
}

// mustQuery panics on an error of memdb's: it has no others than "no such table or index".
func mustQuery(err error) {
	if err != nil {
		panic(fmt.Sprintf("store: query of a table that the schema does not have: %v", err))
	}
}
