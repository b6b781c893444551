package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-memdb"
)

// Store is the change log with its committer: one goroutine that takes waiting updates in order of arrival, numbers
// those that are accepted, makes a group of them durable in one transaction, publishes one snapshot for the group, and
// only then answers. So nobody is told of, or reads, what is not on disk; concurrent writers share the cost of the
// disk; and a batch's function always sees every batch before its own.
type Store struct {
	// Set by Open, read-only after.
	opts    Options
	backend Backend
	shared  Shared // backend, where other replicas write to its storage too; else nil
	leaser  Leaser
	metrics *metrics
	queue   chan *request
	closing chan struct{} // closed by Close: no further updates
	done    chan struct{} // closed when the committer has ended
	close   func() error  // once

	// Owned by the committer goroutine.
	db      *memdb.MemDB
	compact compactor

	bells bells

	head   atomic.Pointer[Snapshot]
	failed atomic.Pointer[error] // set by the committer when an append fails; reset only where the backend is shared
}

// request is an update on its way through the queue.
type request struct {
	fn       func(head *Snapshot) ([]Op, error)
	lease    *Lease        // must be held; nil: none
	state    atomic.Uint32 // requestWaiting until either side takes it
	answered chan answer   // cap 1: the committer never waits for a caller
}

type answer struct {
	revision Revision
	err      error
}

// retryUnavailable is how often a store asks its storage, while that is away, whether it is back.
const retryUnavailable = time.Second

const (
	requestWaiting   = iota
	requestTaken     // by the committer: it runs
	requestAbandoned // by its caller: it never runs
)

// Open reads the whole state from b and starts the committer. Close ends it. ctx bounds the reading only. The store
// owns b from here on: when Open fails, b is closed.
func Open(ctx context.Context, b Backend, o Options) (*Store, error) {
	s, err := open(ctx, b, o.withDefaults())
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open store: %w", err), b.Close())
	}
	return s, nil
}

func open(ctx context.Context, b Backend, o Options) (*Store, error) {
	db, err := newDB()
	if err != nil {
		return nil, err
	}
	s := &Store{
		opts:    o,
		backend: b,
		db:      db,
		queue:   make(chan *request, o.QueueLength),
		closing: make(chan struct{}),
		done:    make(chan struct{}),
		compact: compactor{retention: o.TombstoneRetention, max: o.MaxTombstones},
	}
	s.shared, _ = b.(Shared)
	if s.leaser, _ = b.(Leaser); s.leaser == nil {
		s.leaser = &localLeases{byName: map[string]Lease{}}
	}
	head, err := load(ctx, b, db)
	if err != nil {
		return nil, err
	}
	s.head.Store(head)
	if s.metrics, err = newMetrics(s, o.Registerer); err != nil {
		return nil, err
	}
	s.close = sync.OnceValue(s.shutDown)
	go s.run(context.WithoutCancel(ctx)) // until Close
	return s, nil
}

// ID identifies the store: random, made with it, shared by all that write to the same backend, kept across restarts. It
// changes under a running store only when the database behind it is replaced, or restored to an earlier state:
// whoever remembers a revision of this store together with the ID then knows that it means nothing any more.
func (s *Store) ID() string { return s.head.Load().id }

// Snapshot returns the newest published state.
func (s *Store) Snapshot() *Snapshot { return s.head.Load() }

// Update commits one batch: the ops that fn returns for the pending head, that is, the state after every batch
// accepted before this one. It answers once the batch is durable and published, with the batch's revision (the
// head's, when fn returned no ops or none of them changed anything). Where several replicas share the storage, the
// pending head has what any of them had committed when Update was called; so an Update without ops is a read that
// is never stale. fn runs on the committer: it must be quick, must not block, and may run more than once. Its error is returned unchanged and nothing is applied; a panic of fn
// becomes an error.
//
// The store keeps a copy of each record of the ops, with Version and CreateRevision set, times in UTC, and no empty
// but non-nil Spec or Labels. A put changes nothing when Spec, Labels, Origin, WireName, Created and Modified equal
// what is there; preconditions are checked all the same.
//
// Update blocks while the queue is full. When ctx ends it returns ctx's error, wrapped: the batch was not applied if
// the committer had not come to it; otherwise it may or may not be, now or shortly.
// Other errors: ErrConflict, ErrInvalid, ErrUnavailable (with ErrUnknown or ErrFailed, or neither), ErrClosed.
func (s *Store) Update(ctx context.Context, fn func(head *Snapshot) ([]Op, error)) (Revision, error) {
	return s.update(ctx, &request{fn: fn, answered: make(chan answer, 1)})
}

// Latest returns a snapshot that has what any replica had committed when Latest was called. Snapshot may be some milliseconds
// behind that, and longer while the storage is away, when Latest fails as Update does. It costs a turn to write; in a
// store that has its storage for itself nothing, because there Snapshot is the latest.
func (s *Store) Latest(ctx context.Context) (*Snapshot, error) {
	if s.shared != nil {
		if _, err := s.Update(ctx, func(*Snapshot) ([]Op, error) { return nil, nil }); err != nil {
			return nil, err
		}
	}
	return s.Snapshot(), nil
}

func (s *Store) update(ctx context.Context, r *request) (Revision, error) {
	if err := s.Err(); err != nil {
		return 0, err
	}
	select {
	case s.queue <- r:
	case <-ctx.Done():
		return 0, fmt.Errorf("wait for a place in the store's queue: %w", ctx.Err())
	case <-s.closing:
		return 0, ErrClosed
	}
	select {
	case a := <-r.answered:
		return a.revision, a.err
	case <-ctx.Done():
		if r.state.CompareAndSwap(requestWaiting, requestAbandoned) {
			return 0, fmt.Errorf("wait for the store's committer, batch not applied: %w", ctx.Err())
		}
		return 0, fmt.Errorf("wait for a batch to become durable, outcome unknown: %w", ctx.Err())
	case <-s.done:
		// The committer drains the queue before it ends, but r may have entered after that.
		select {
		case a := <-r.answered:
			return a.revision, a.err
		default:
			return 0, ErrClosed
		}
	}
}

// Err is not nil while the store refuses writes (ErrUnavailable) and once it is closed.
func (s *Store) Err() error {
	select {
	case <-s.closing:
		return ErrClosed
	default:
	}
	if err := s.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// Ready is Err, but nil while the store only waits for its storage to come back and answers reads meanwhile.
func (s *Store) Ready() error {
	if err := s.Err(); !errors.Is(err, ErrUnavailable) || errors.Is(err, ErrFailed) {
		return err
	}
	return nil
}

// Close waits for the pending batches, then closes the backend. Snapshots stay readable. Closing again does nothing
// and returns the same error.
func (s *Store) Close() error { return s.close() }

func (s *Store) shutDown() error {
	close(s.closing)
	<-s.done
	s.bells.ringAll()
	s.metrics.unregister()
	if err := s.backend.Close(); err != nil {
		return fmt.Errorf("close store: %w", err)
	}
	return nil
}

// run is the committer.
func (s *Store) run(ctx context.Context) {
	defer close(s.done)
	var advanced <-chan struct{}
	if s.shared != nil {
		advanced = s.shared.Advanced()
	}
	for {
		var again <-chan time.Time
		if s.shared != nil && s.failed.Load() != nil {
			again = time.After(retryUnavailable)
		}
		select {
		case r := <-s.queue:
			s.commitGroup(ctx, r)
		case <-advanced:
			s.catchUp(ctx)
		case <-again:
			s.catchUp(ctx)
		case <-s.closing:
			for {
				select {
				case r := <-s.queue:
					s.commitGroup(ctx, r)
				default:
					return
				}
			}
		}
	}
}

// take makes r the committer's; false: its caller has left.
func (r *request) take() bool { return r.state.CompareAndSwap(requestWaiting, requestTaken) }

// commitGroup runs r and what waits behind it, commits what they ask for, and answers them.
func (s *Store) commitGroup(ctx context.Context, r *request) {
	if !r.take() {
		return
	}
	if err := s.failed.Load(); err != nil {
		r.answered <- answer{err: *err}
		s.metrics.count(outcomeFailed)
		return
	}
	g, err := s.tryGroup(ctx, []*request{r})
	if errors.Is(err, ErrBehind) {
		g, err = s.tryGroup(ctx, g.requests())
	}
	if err != nil {
		err = s.fail(ctx, err)
	}
	g.answer(s.metrics, err)
}

// tryGroup runs taken and what waits in the queue as one group, and commits it. Nobody is answered yet.
func (s *Store) tryGroup(ctx context.Context, taken []*request) (*group, error) {
	if s.shared != nil {
		defer s.shared.Unlock(ctx)
		if err := s.lock(ctx); err != nil {
			g := newGroup(s.db, s.head.Load())
			for _, r := range taken {
				g.waiting = append(g.waiting, waiter{request: r, pending: true})
			}
			return g, err
		}
	}
	g := newGroup(s.db, s.head.Load())
	for _, r := range taken {
		g.run(r, s.checkLease(ctx, r))
	}
	for waits := true; waits && len(g.waiting) < s.opts.MaxGroupBatches && g.bytes < s.opts.MaxGroupBytes; {
		select {
		case r := <-s.queue:
			if r.take() {
				g.run(r, s.checkLease(ctx, r))
			}
		default:
			waits = false
		}
	}
	if g.txn == nil { // nobody changed anything
		return g, nil
	}
	s.compact.run(g)
	if err := s.metrics.timeAppend(len(g.batches), func() error { return s.backend.Append(ctx, g.durable()) }); err != nil {
		g.txn.Abort()
		return g, fmt.Errorf("append revisions %d to %d: %w", g.base.revision+1, g.revision, err)
	}
	s.publish(g)
	return g, nil
}

// fail makes the store refuse writes, until catchUp succeeds where the backend is shared, else for good. It returns
// the error to answer.
func (s *Store) fail(ctx context.Context, err error) error {
	if s.shared == nil {
		err = fmt.Errorf("%w: %w: %w", ErrUnavailable, ErrFailed, err)
		s.opts.Log.ErrorContext(ctx, "store refuses writes from now on", "err", err)
	} else {
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
		if s.failed.Load() == nil {
			s.opts.Log.WarnContext(ctx, "store refuses writes until its storage answers; reads go on", "err", err)
		}
	}
	kept := err
	if errors.Is(err, ErrUnknown) { // true of this group, not of those that come after it
		kept = fmt.Errorf("%w: the last commit failed", ErrUnavailable)
	}
	s.failed.Store(&kept)
	return err
}

func (s *Store) publish(g *group) {
	g.txn.Commit()
	s.head.Store(&Snapshot{
		txn:        s.db.Txn(false),
		revision:   g.revision,
		compacted:  g.compacted,
		tombstones: g.tombstones,
		id:         g.id,
		next:       make(chan struct{}),
	})
	close(g.base.next)
	s.bells.ring(g.batches)
}

// Waiting is how many updates wait for the committer.
func (s *Store) Waiting() int { return len(s.queue) }
