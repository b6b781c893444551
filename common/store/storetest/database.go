package storetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/meridian-mesh/meridian/common/store"
)

// Database is storage in memory that several replicas share: the least that a [store.Shared] backend can be, so that what the
// store makes of one can be tested without a server, and failed at will.
type Database struct {
	turn chan struct{} // cap 1: holds a value while a replica has its turn

	mu         sync.Mutex // guards what follows
	head       store.Head
	records    map[store.Key]*store.Record
	tombstones map[store.Key]store.Tombstone
	leases     map[string]store.Lease
	replicas   map[*Replica]struct{}
	away       error
}

// NewDatabase returns an empty database.
func NewDatabase() *Database {
	return &Database{
		turn: make(chan struct{}, 1), head: store.Head{ID: store.NewID()},
		records: map[store.Key]*store.Record{}, tombstones: map[store.Key]store.Tombstone{},
		leases: map[string]store.Lease{}, replicas: map[*Replica]struct{}{},
	}
}

// Replica is a backend on a Database.
type Replica struct {
	d        *Database
	advanced chan struct{}
	has      bool // the turn
	known    store.Revision
	id       string
	// LosesAnswers makes an Append that was stored answer with ErrUnknown.
	LosesAnswers func() bool
}

// Replica opens the database once more.
func (d *Database) Replica() *Replica {
	d.mu.Lock()
	defer d.mu.Unlock()
	r := &Replica{d: d, advanced: make(chan struct{}, 1)}
	d.replicas[r] = struct{}{}
	return r
}

// SetAway makes every call fail with err, until it is nil.
func (d *Database) SetAway(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.away = err
	d.ringLocked(nil)
}

// Backup returns a function that restores the state the database has now, as another history.
func (d *Database) Backup() (restore func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	head, records, tombstones := d.head, maps.Clone(d.records), maps.Clone(d.tombstones)
	return func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		newest := d.head.Revision
		d.head, d.records, d.tombstones = head, records, tombstones
		d.head.ID, d.head.Revision, d.head.Compacted = store.NewID(), newest+1, newest+1
		d.ringLocked(nil)
	}
}

func (d *Database) ringLocked(but *Replica) {
	for r := range d.replicas {
		if r != but {
			select {
			case r.advanced <- struct{}{}:
			default: // already told
			}
		}
	}
}

// Known is the revision that the replica's store has seen.
func (r *Replica) Known() store.Revision {
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	return r.known
}

// Load implements [store.Backend].
func (r *Replica) Load(_ context.Context, record func(*store.Record) error, tombstone func(store.Tombstone) error) (store.Head, error) {
	return r.read(0, record, tombstone)
}

func (r *Replica) read(after store.Revision, record func(*store.Record) error, tombstone func(store.Tombstone) error) (store.Head, error) {
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	if r.d.away != nil {
		return store.Head{}, r.d.away
	}
	for _, rec := range r.d.records {
		if rec.Version > after {
			if err := record(rec); err != nil {
				return store.Head{}, err
			}
		}
	}
	for _, t := range r.d.tombstones {
		if t.Revision > after {
			if err := tombstone(t); err != nil {
				return store.Head{}, err
			}
		}
	}
	r.known, r.id = r.d.head.Revision, r.d.head.ID
	return r.d.head, nil
}

// Lock implements [store.Shared].
func (r *Replica) Lock(ctx context.Context) (store.Revision, error) {
	select {
	case r.d.turn <- struct{}{}:
		r.has = true
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-time.After(5 * time.Second):
		return 0, errors.New("no turn within 5 seconds")
	}
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	if r.d.away != nil {
		r.Unlock(ctx)
		return 0, r.d.away
	}
	return r.d.head.Revision, nil
}

// Unlock implements [store.Shared].
func (r *Replica) Unlock(context.Context) {
	if r.has {
		r.has = false
		<-r.d.turn
	}
}

// Follow implements [store.Shared].
func (r *Replica) Follow(_ context.Context, record func(*store.Record) error, tombstone func(store.Tombstone) error) (store.Head, error) {
	r.d.mu.Lock()
	compacted := r.d.head.ID != r.id || r.known < r.d.head.Compacted
	r.d.mu.Unlock()
	if compacted {
		return store.Head{}, store.ErrCompacted
	}
	return r.read(r.known, record, tombstone)
}

// Advanced implements [store.Shared].
func (r *Replica) Advanced() <-chan struct{} { return r.advanced }

// Append implements [store.Shared].
func (r *Replica) Append(ctx context.Context, g store.Group) error {
	if !r.has {
		if _, err := r.Lock(ctx); err != nil {
			return err
		}
	}
	defer r.Unlock(ctx)
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	if r.d.away != nil {
		return r.d.away
	}
	if g.Base != r.d.head.Revision {
		return fmt.Errorf("%w: group follows revision %d, not %d", store.ErrBehind, g.Base, r.d.head.Revision)
	}
	for _, b := range g.Batches {
		for _, rec := range b.Puts {
			r.d.records[rec.Key] = rec
			delete(r.d.tombstones, rec.Key)
		}
		for _, t := range b.Deletes {
			delete(r.d.records, t.Key)
			r.d.tombstones[t.Key] = t
		}
	}
	for _, k := range g.Forget {
		delete(r.d.tombstones, k)
	}
	r.d.head.Revision, r.d.head.Compacted = g.Revision(), g.Compacted
	r.d.ringLocked(r)
	if r.LosesAnswers != nil && r.LosesAnswers() {
		return store.ErrUnknown
	}
	r.known = g.Revision()
	return nil
}

// Close implements [store.Backend].
func (r *Replica) Close() error {
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	delete(r.d.replicas, r)
	return nil
}

// AcquireLease implements [store.Leaser].
func (r *Replica) AcquireLease(_ context.Context, name, holder string, ttl time.Duration) (store.Lease, error) {
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	l, now := r.d.leases[name], time.Now()
	live := l.Holder != "" && now.Before(l.Expires)
	if live && l.Holder != holder {
		return store.Lease{}, store.ErrLeaseHeld
	}
	if !live {
		l.Epoch++
	}
	l.Name, l.Holder, l.Expires = name, holder, now.Add(ttl)
	r.d.leases[name] = l
	return l, nil
}

// ReleaseLease implements [store.Leaser].
func (r *Replica) ReleaseLease(_ context.Context, l store.Lease) error {
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	if have := r.d.leases[l.Name]; have.Holder == l.Holder && have.Epoch == l.Epoch {
		have.Holder = ""
		r.d.leases[l.Name] = have
	}
	return nil
}

// HoldsLease implements [store.Leaser]. Who would take the lease over between this and the Append is late all the same: it can
// write in a later turn only.
func (r *Replica) HoldsLease(_ context.Context, l store.Lease) error {
	r.d.mu.Lock()
	defer r.d.mu.Unlock()
	if have := r.d.leases[l.Name]; have.Holder != l.Holder || have.Epoch != l.Epoch || !time.Now().Before(have.Expires) {
		return store.ErrLeaseLost
	}
	return nil
}
