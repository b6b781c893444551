package store

import (
	"context"
	"iter"
)

// Store is the change log with its committer.
type Store struct{}

// Options tune a store; the zero value means the defaults.
type Options struct{}

// Backend makes batches durable.
type Backend interface{}

// Open reads the whole state from b and starts the committer. Close ends it.
func Open(ctx context.Context, b Backend, o Options) (*Store, error) { panic("stub") }

// ID identifies the store: random, made with it, shared by all that write to the same backend, kept across restarts.
func (s *Store) ID() string { panic("stub") }

// Snapshot returns the newest published state.
func (s *Store) Snapshot() *Snapshot { panic("stub") }

// Update commits one batch: the ops that fn returns for the pending head, that is, the state after every batch
// accepted before this one. It answers once the batch is durable and published, with the batch's revision (the
// head's, when fn returned no ops or none of them changed anything). fn runs on the committer: it must be quick,
// must not block, and may run more than once. Its error is returned unchanged and nothing is applied.
func (s *Store) Update(ctx context.Context, fn func(head *Snapshot) ([]Op, error)) (Revision, error) {
	panic("stub")
}

// Changes is a step of a Watch: the last change of each key in (From, To].
type Changes struct {
	From, To Revision
	List     []Change
	Snapshot *Snapshot // at To
}

// Watch yields the changes of the given types after revision from, without gaps or repeats: applying them in order gives the
// state of Snapshot at To. What happened while the consumer was busy is merged per key. ErrCompacted ends the
// iteration when from is older than the oldest retained tombstone.
func (s *Store) Watch(ctx context.Context, from Revision, types ...string) iter.Seq2[Changes, error] {
	panic("stub")
}

// Err is not nil once the store refuses writes (ErrUnavailable) or is closed.
func (s *Store) Err() error { panic("stub") }

// Close waits for the pending batches, then closes the backend.
func (s *Store) Close() error { panic("stub") }
