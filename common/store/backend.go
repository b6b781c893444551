package store

import (
	"context"

	"github.com/google/uuid"
)

// Backend makes batches durable, and gives the state back when a store is opened. It holds no logic of its own:
// numbering, preconditions, tombstones and compaction are the committer's, so all backends behave alike.
// storetest.Run says in sentences what each must keep.
//
// A store calls Load once, before anything else, then Append from one goroutine, then Close once. No call overlaps
// another. Records are shared with all readers: a backend must not change one, and may keep the pointer.
//
// A backend whose storage has a single writer, such as a file, needs no more than this. Where several replicas write
// to one database, Append finds that Group.Base is no longer the newest revision, because another replica committed
// in between. Such a backend refuses the group without storing any of it, and implements a further, optional
// interface that hands the others' batches to the store; the store then applies them and runs the functions of the
// refused group again on the newer head, which is why [Store.Update] lets a function run more than once.
type Backend interface {
	// Load yields every record and every tombstone, in any order, and returns the head they belong to. A new backend
	// first makes itself an ID ([NewID]) and stores it. What cannot be read back whole is an error that names the
	// key; nothing is skipped. An error of a yield function ends the load and is returned wrapped.
	Load(ctx context.Context, record func(*Record) error, tombstone func(Tombstone) error) (Head, error)
	// Append makes the group durable, all of it or nothing, before it returns nil. After any error the store
	// appends nothing more.
	Append(ctx context.Context, g Group) error
	// Close releases what the backend holds. The same storage can be opened again afterwards.
	Close() error
}

// Head is what a backend knows beside records and tombstones.
type Head struct {
	// ID identifies the storage: random, made with it, never changed.
	ID string
	// Revision is that of the newest batch; Compacted the newest revision of any tombstone ever dropped.
	Revision, Compacted Revision
}

// Batch is one accepted batch, reduced to what it changes. Each key occurs once.
type Batch struct {
	Revision Revision
	// Puts replace the record and the tombstone of their keys, if there are any.
	Puts []*Record
	// Deletes replace the record of their keys.
	Deletes []Tombstone
}

// Group is what one Append makes durable: batches in order, then the tombstones to forget.
type Group struct {
	// Base is the revision before the first batch. Revisions follow it without a gap.
	Base Revision
	// Batches is never empty.
	Batches []Batch
	// Forget names tombstones to drop after the batches are applied. Compacted is the newest revision of any
	// tombstone dropped so far, by this group or before it.
	Forget    []Key
	Compacted Revision
}

// Revision is that of the last batch of the group.
func (g Group) Revision() Revision { return g.Base + Revision(len(g.Batches)) }

// NewID returns a new random ID for a backend that is being created.
func NewID() string { return uuid.NewString() }
