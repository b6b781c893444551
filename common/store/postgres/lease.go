package postgres

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/meridian-mesh/meridian/common/store"
)

// Leases are judged by the clock of the database alone, so replicas need not agree on the time.
const (
	acquireLease = `INSERT INTO meridian_leases AS l (name, holder, epoch, expires)
		VALUES ($1, $2, 1, clock_timestamp() + $3 * interval '1 microsecond')
		ON CONFLICT (name) DO UPDATE SET
			epoch = l.epoch + CASE WHEN l.holder = $2 AND l.expires > clock_timestamp() THEN 0 ELSE 1 END,
			holder = excluded.holder, expires = excluded.expires
		WHERE l.holder IN ($2, '') OR l.expires <= clock_timestamp()
		RETURNING epoch`
	releaseLease = "UPDATE meridian_leases SET holder = '' WHERE name = $1 AND holder = $2 AND epoch = $3"
	// FOR SHARE makes who would take the lease over wait for the end of this transaction.
	holdsLease = `SELECT 1 FROM meridian_leases
		WHERE name = $1 AND holder = $2 AND epoch = $3 AND expires > clock_timestamp() FOR SHARE`
)

// AcquireLease implements [store.Leaser].
func (b *Backend) AcquireLease(ctx context.Context, name, holder string, ttl time.Duration) (store.Lease, error) {
	l := store.Lease{Name: name, Holder: holder, Expires: time.Now().Add(ttl)}
	err := b.bounded(ctx, func(ctx context.Context) error {
		return b.pool.QueryRow(ctx, acquireLease, name, holder, ttl.Microseconds()).Scan(&l.Epoch)
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return store.Lease{}, fmt.Errorf("lease %s: %w", name, store.ErrLeaseHeld)
	case err != nil:
		return store.Lease{}, fmt.Errorf("%w: acquire lease %s: %w", store.ErrUnavailable, name, err)
	}
	return l, nil
}

// ReleaseLease implements [store.Leaser].
func (b *Backend) ReleaseLease(ctx context.Context, l store.Lease) error {
	err := b.bounded(ctx, func(ctx context.Context) error {
		_, err := b.pool.Exec(ctx, releaseLease, l.Name, l.Holder, l.Epoch)
		return err
	})
	if err != nil {
		return fmt.Errorf("%w: release lease %s: %w", store.ErrUnavailable, l.Name, err)
	}
	return nil
}

// HoldsLease implements [store.Leaser].
func (b *Backend) HoldsLease(ctx context.Context, l store.Lease) error {
	err := b.bounded(ctx, func(ctx context.Context) error {
		var one int
		return b.turn.QueryRow(ctx, holdsLease, l.Name, l.Holder, l.Epoch).Scan(&one)
	})
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return fmt.Errorf("lease %s of %s, epoch %d: %w", l.Name, l.Holder, l.Epoch, store.ErrLeaseLost)
	case err != nil:
		return fmt.Errorf("%w: check lease %s: %w", store.ErrUnavailable, l.Name, err)
	}
	return nil
}
