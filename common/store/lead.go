package store

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"
)

// Lead runs fn while this process has the lease of a name, until ctx ends, and gives the lease up when it returns, so that
// another holder takes over at once. It waits while another holder has the lease or the storage does not answer.
//
// The context of fn ends when ctx does, when another has the lease, and, since a renewal may fail, a quarter of ttl before the
// lease expires. fn must return then; it is run anew under the next lease. Should it go on all the same, or the process
// be stopped and go on later, its writes are refused as long as they are made by [Store.UpdateUnder] with the lease that
// it was given: that one keeps its epoch, however often it is renewed.
//
// When fn returns by itself, with an error or because it had only so much to do, Lead returns what it returned; ErrLeaseLost is
// no such error. A store that has its storage for itself leads always.
func (s *Store) Lead(ctx context.Context, name, holder string, ttl time.Duration, fn func(ctx context.Context, l Lease) error) error {
	wait := ttl / 8
	for {
		asked := time.Now()
		lease, err := s.acquireBy(ctx, asked.Add(ttl/2), name, holder, ttl)
		switch {
		case err == nil:
			wait = ttl / 8
			done, err := s.hold(ctx, lease, ttl, fn)
			s.giveUp(ctx, lease, ttl)
			if done {
				return err
			}
		case ctx.Err() != nil:
		case errors.Is(err, ErrClosed) || errors.Is(err, ErrInvalid):
			return fmt.Errorf("lead %s: %w", name, err)
		case errors.Is(err, ErrLeaseHeld): // its holder is as likely to end now as at any other time
			wait = ttl / 4
		default:
			wait = min(2*wait, ttl)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(wait/2 + rand.N(wait/2+1)): // not all replicas at the same moment
		}
	}
}

// hold runs fn while lease can be renewed. done says that fn returned by itself, with err.
func (s *Store) hold(ctx context.Context, lease Lease, ttl time.Duration, fn func(context.Context, Lease) error) (done bool, err error) {
	margin := ttl / 4
	work, end := context.WithCancelCause(ctx)
	defer end(nil)
	expires := lease.Expires // of the latest renewal: lease itself is fn's too, and stays as it is
	// A timer of its own: a renewal that hangs must not keep fn beyond the lease.
	expiry := time.AfterFunc(time.Until(expires)-margin, func() { end(ErrLeaseLost) })
	defer expiry.Stop()
	returned := make(chan error, 1)
	go func() { returned <- fn(work, lease) }()
	renew := time.NewTimer(ttl / 4)
	defer renew.Stop()
	for {
		select {
		case err := <-returned:
			return work.Err() == nil && !errors.Is(err, ErrLeaseLost), err
		case <-work.Done():
			return false, <-returned
		case <-renew.C:
		}
		next, err := s.acquireBy(work, expires.Add(-margin), lease.Name, lease.Holder, ttl)
		switch {
		case err == nil && next.Epoch == lease.Epoch:
			expires = next.Expires
			expiry.Reset(time.Until(expires) - margin)
			renew.Reset(ttl / 4)
		case err == nil || errors.Is(err, ErrLeaseHeld): // it had expired
			end(ErrLeaseLost)
		default:
			renew.Reset(ttl / 8)
		}
	}
}

func (s *Store) acquireBy(ctx context.Context, deadline time.Time, name, holder string, ttl time.Duration) (Lease, error) {
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	return s.Acquire(ctx, name, holder, ttl)
}

// giveUp releases the lease for the next holder, which otherwise waits for its end. That is no reason to wait long here.
func (s *Store) giveUp(ctx context.Context, lease Lease, ttl time.Duration) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), min(ttl/4, time.Second))
	defer cancel()
	if err := s.Release(ctx, lease); err != nil {
		s.opts.Log.DebugContext(ctx, "lease not given up: it will expire", "lease", lease.Name, "err", err)
	}
}
