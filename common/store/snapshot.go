package store

import "iter"

// Snapshot is the whole state at one revision. It never changes; holding it costs only memory. All methods are safe
// for concurrent use, except on the pending head that Update lends to its function: that one is valid during the
// call only.
type Snapshot struct{}

// Revision is the revision of the last batch the snapshot contains.
func (s *Snapshot) Revision() Revision { panic("stub") }

// Get returns the record of key.
func (s *Snapshot) Get(key Key) (*Record, bool) { panic("stub") }

// List yields the records of a type sorted by mesh, then name. With a mesh it yields only that mesh's; with "" all.
func (s *Snapshot) List(typ, mesh string) iter.Seq[*Record] { panic("stub") }

// Count returns how many records List would yield, without visiting them.
func (s *Snapshot) Count(typ, mesh string) int { panic("stub") }

// ByOrigin yields the records of a type that the named peer owns ("" : this plane), in key order.
func (s *Snapshot) ByOrigin(typ, origin string) iter.Seq[*Record] { panic("stub") }

// ByWireName returns the record that the peer origin knows under wireName.
func (s *Snapshot) ByWireName(typ, origin, mesh, wireName string) (*Record, bool) { panic("stub") }

// Changes yields what happened to each key of a type since the batch at revision after: the last change of each key,
// in commit order. It returns ErrCompacted when deletions since then may have been forgotten.
// The cost is proportional to the number of changes.
func (s *Snapshot) Changes(typ string, after Revision) (iter.Seq[Change], error) { panic("stub") }

// LastChange is the revision of the newest change of a type, deletions included; 0 when there was none.
func (s *Snapshot) LastChange(typ string) Revision { panic("stub") }

// Next is closed once a newer snapshot is published.
func (s *Snapshot) Next() <-chan struct{} { panic("stub") }
