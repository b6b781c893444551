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
// to one database, the backend is a [Shared] one.
type Backend interface {
	// Load yields every record and every tombstone, in any order, and returns the head they belong to. A new backend
	// first makes itself an ID ([NewID]) and stores it. What cannot be read back whole is an error that names the
	// key; nothing is skipped. An error of a yield function ends the load and is returned wrapped.
	Load(ctx context.Context, record func(*Record) error, tombstone func(Tombstone) error) (Head, error)
	// Append makes the group durable, all of it or nothing, before it returns nil. After any error the store
	// appends nothing more, unless the backend is a [Shared] one.
	Append(ctx context.Context, g Group) error
	// Close releases what the backend holds. The same storage can be opened again afterwards.
	Close() error
}

// Shared is a Backend on storage that several replicas of a plane write to. They take turns: a replica locks the
// storage, takes over what others committed since its last look, runs its updates on that very state, appends, and
// so lets go. Updates are therefore never decided on a stale head, and a replica that waited for its turn never has to
// start over, however many others write: the turn comes with the lock.
//
// A failure is not final. The storage may be away and come back: every call may be tried again, and the store does so.
// What is not known to be stored after an error is found out by Follow, which gives whatever is there.
//
// As with Backend, no call overlaps another, those of [Leaser] excepted.
type Shared interface {
	Backend
	// Lock waits for this replica's turn and returns the newest revision of the storage. Nobody else appends until
	// Append, Unlock, or the loss of the connection. It fails after a bounded time.
	Lock(ctx context.Context) (Revision, error)
	// Unlock ends the turn without an Append. Without a turn it does nothing.
	Unlock(ctx context.Context)
	// Follow yields what is stored of every key that was changed since the newest head that Load, Follow or Append left
	// in this backend, in any order, each key once, and returns the head it belongs to. It may be called with
	// and without a turn. ErrCompacted: that cannot be told, because deletions since may be forgotten or because
	// the storage has another history (it was restored from a backup, or replaced); the caller loads it as a whole.
	// Another history comes with another ID, and is compacted beyond every revision of the old one: where the storage
	// is not so, the backend makes it so, lest a revision of the old history be mistaken for one of the new.
	Follow(ctx context.Context, record func(*Record) error, tombstone func(Tombstone) error) (Head, error)
	// Advanced tells that Follow has something to say: others committed, or the storage is away, or back. One value
	// stands for any number of reasons.
	Advanced() <-chan struct{}
	// Append, here, is called during a turn and ends it whatever it returns. It fails after a bounded time. An error
	// that is ErrUnknown leaves open whether the group was stored; ErrBehind says that it was not, and that the same
	// updates may succeed in another turn; after any other error nothing of it is stored.
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
