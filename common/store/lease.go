package store

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Lease is the right to do work that must happen once among the replicas of a plane, for a limited time. Whoever has it
// writes by [Store.UpdateUnder], which refuses a holder that lost it without noticing: the lease is checked in the
// very transaction that commits the batch.
type Lease struct {
	Name, Holder string
	// Epoch grows each time the lease passes to another holder or is taken anew after its end. Renewing keeps it.
	Epoch uint64
	// Expires is when the lease ends at the earliest unless it is renewed, by this process's clock.
	Expires time.Time
}

// Leaser is implemented by a backend whose storage several replicas share. Its methods may be called at any time, from
// any goroutine, except HoldsLease.
type Leaser interface {
	// AcquireLease takes the lease if it is free or has expired, and renews it if holder has it. Else: ErrLeaseHeld.
	AcquireLease(ctx context.Context, name, holder string, ttl time.Duration) (Lease, error)
	// ReleaseLease frees the lease, if l still has it.
	ReleaseLease(ctx context.Context, l Lease) error
	// HoldsLease is called by the committer before the updates that need the lease, in a shared backend during its
	// turn. nil promises that nobody else acquires the lease before Append has ended; else: ErrLeaseLost.
	HoldsLease(ctx context.Context, l Lease) error
}

// Acquire takes or renews the lease of a name for a holder, which must be unique among the replicas. It fails with
// ErrLeaseHeld while another holder has it.
func (s *Store) Acquire(ctx context.Context, name, holder string, ttl time.Duration) (Lease, error) {
	if name == "" || holder == "" || ttl <= 0 {
		return Lease{}, fmt.Errorf("%w: a lease needs a name, a holder and a time", ErrInvalid)
	}
	return s.leaser.AcquireLease(ctx, name, holder, ttl)
}

// Release gives the lease up, so that another holder need not wait for its end.
func (s *Store) Release(ctx context.Context, l Lease) error { return s.leaser.ReleaseLease(ctx, l) }

// UpdateUnder is Update for the holder of l. It fails with ErrLeaseLost, without having run fn, when l has ended.
func (s *Store) UpdateUnder(ctx context.Context, l Lease, fn func(head *Snapshot) ([]Op, error)) (Revision, error) {
	return s.update(ctx, &request{fn: fn, lease: &l, answered: make(chan answer, 1)})
}

func (s *Store) checkLease(ctx context.Context, r *request) error {
	if r.lease == nil {
		return nil
	}
	return s.leaser.HoldsLease(ctx, *r.lease)
}

// localLeases are the leases of a store that has its storage for itself. They end with the process, as all its work does.
type localLeases struct {
	mu     sync.Mutex // guards what follows
	byName map[string]Lease
}

func (l *localLeases) AcquireLease(_ context.Context, name, holder string, ttl time.Duration) (Lease, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	have := l.byName[name]
	live := have.Holder != "" && now.Before(have.Expires)
	if live && have.Holder != holder {
		return Lease{}, fmt.Errorf("lease %s: %w: %s", name, ErrLeaseHeld, have.Holder)
	}
	if !live {
		have.Epoch++
	}
	have.Name, have.Holder, have.Expires = name, holder, now.Add(ttl)
	l.byName[name] = have
	return have, nil
}

func (l *localLeases) ReleaseLease(_ context.Context, lease Lease) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if have := l.byName[lease.Name]; have.Holder == lease.Holder && have.Epoch == lease.Epoch {
		have.Holder = ""
		l.byName[lease.Name] = have
	}
	return nil
}

func (l *localLeases) HoldsLease(_ context.Context, lease Lease) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	have := l.byName[lease.Name]
	if have.Holder != lease.Holder || have.Epoch != lease.Epoch || !time.Now().Before(have.Expires) {
		return fmt.Errorf("lease %s of %s, epoch %d: %w", lease.Name, lease.Holder, lease.Epoch, ErrLeaseLost)
	}
	return nil
}
