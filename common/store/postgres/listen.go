package postgres

import (
	"context"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// pollInterval is how often the head row is read, whatever notifications tell.
const pollInterval = time.Second

// listen tells the store of what others commit, until ctx ends.
func (b *Backend) listen(ctx context.Context) {
	var wait backoff
	for {
		listened, err := b.listenOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		b.o.Log.WarnContext(ctx, "lost the connection that listens to the database", "err", err)
		b.recheck.Store(true) // also to find out whether the database is there at all
		b.signal()
		if listened {
			wait = backoff{}
		}
		if !wait.wait(ctx) {
			return
		}
	}
}

// listenOnce listens on one connection until that is lost.
func (b *Backend) listenOnce(ctx context.Context) (listened bool, err error) {
	config := b.pool.Config().ConnConfig
	if err := b.o.setPassword(ctx, config); err != nil {
		return false, err
	}
	var c *pgx.Conn
	err = b.bounded(ctx, func(ctx context.Context) (err error) {
		if c, err = pgx.ConnectConfig(ctx, config); err != nil {
			return err
		}
		_, err = c.Exec(ctx, "LISTEN "+pgx.Identifier{b.channel}.Sanitize())
		return err
	})
	if c != nil {
		defer func() {
			_ = b.bounded(context.WithoutCancel(ctx), c.Close)
		}()
	}
	if err != nil {
		return false, err
	}
	// From here on nothing is missed; what came before must be asked for.
	b.recheck.Store(true)
	b.signal()
	polled := time.Now()
	for {
		if err := b.await(ctx, c, polled.Add(pollInterval)); err != nil {
			return true, err
		}
		if time.Since(polled) >= pollInterval {
			if err := b.poll(ctx, c); err != nil {
				return true, err
			}
			polled = time.Now()
		}
	}
}

// await handles a notification, if one comes before the deadline.
func (b *Backend) await(ctx context.Context, c *pgx.Conn, until time.Time) error {
	wait, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	n, err := c.WaitForNotification(wait)
	switch {
	case err == nil:
		b.notice(n)
		return nil
	case ctx.Err() == nil && wait.Err() != nil && !c.IsClosed():
		return nil // nothing happened
	default:
		return err
	}
}

// notice takes a notification. What it says is only a hint: Follow reads what is so.
func (b *Backend) notice(n *pgconn.Notification) {
	revision, err := strconv.ParseUint(n.Payload, 10, 64)
	if err != nil {
		b.recheck.Store(true)
	} else {
		b.noticed.Store(revision)
	}
	b.signal()
}

// poll reads the head row: the safety net behind notifications.
func (b *Backend) poll(ctx context.Context, c *pgx.Conn) error {
	known := *b.known.Load()
	var head headRow
	err := b.bounded(ctx, func(ctx context.Context) error { return head.scan(c.QueryRow(ctx, selectHead)) })
	if err != nil {
		return err
	}
	if head.mark != known {
		b.recheck.Store(true)
		b.signal()
	}
	return nil
}
