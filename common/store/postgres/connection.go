package postgres

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

var (
	// ErrVersion reports a server that is too old.
	ErrVersion = errors.New("the server is older than Postgres 13")
	// ErrPooler reports a connection that does not lead to one server process.
	ErrPooler = errors.New("the connection goes through a pooler, such as pgbouncer: connect to Postgres directly, since " +
		"notifications and prepared statements need a session")
)

const oldestServer = 130000

// checkConnection refuses a new connection that could not be relied upon.
func checkConnection(ctx context.Context, c *pgx.Conn) error {
	var version, pid int
	var mayLose bool
	err := c.QueryRow(ctx, `SELECT current_setting('server_version_num')::int, pg_backend_pid(),
		current_setting('synchronous_commit') = 'off'`).Scan(&version, &pid, &mayLose)
	if err != nil {
		return fmt.Errorf("ask the server for its version: %w", err)
	}
	if version < oldestServer {
		return fmt.Errorf("%w: it is %s", ErrVersion, c.PgConn().ParameterStatus("server_version"))
	}
	if uint32(pid) != c.PgConn().PID() { //nolint:gosec // a process number
		return ErrPooler
	}
	if mayLose {
		if _, err := c.Exec(ctx, "SET synchronous_commit = on"); err != nil {
			return fmt.Errorf("ask for durable commits: %w", err)
		}
	}
	return nil
}

// warn tells of settings that are allowed and unsafe.
func (b *Backend) warn(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, b.o.Timeout)
	defer cancel()
	c, err := b.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer c.Release()
	var fsync, encrypted bool
	err = c.QueryRow(ctx, `SELECT current_setting('fsync')::bool,
		coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false)`).Scan(&fsync, &encrypted)
	if err != nil {
		return err
	}
	if !fsync {
		b.o.Log.WarnContext(ctx, "fsync is off in the database: writes that were answered are lost when its machine fails")
	}
	host := c.Conn().Config().Host
	if ip := net.ParseIP(host); !encrypted && !strings.HasPrefix(host, "/") && host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		b.o.Log.WarnContext(ctx, "the connection to the database is not encrypted, and secrets travel on it: set sslmode in its URL", "host", host)
	}
	return nil
}

// permanent reports whether trying again cannot help: wrong password, no such database, no right, wrong server.
func permanent(err error) bool {
	if errors.Is(err, ErrVersion) || errors.Is(err, ErrPooler) || errors.Is(err, ErrMigrationsPending) || errors.Is(err, ErrSchema) {
		return true
	}
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && (strings.HasPrefix(e.Code, "28") || strings.HasPrefix(e.Code, "3D") || strings.HasPrefix(e.Code, "42"))
}

// refusedByServer reports whether the server itself said that the transaction is over and nothing of it stays.
func refusedByServer(err error) bool {
	e, ok := errors.AsType[*pgconn.PgError](err)
	return ok && e.Severity == "ERROR"
}

// The delays between attempts to connect: they double, and vary so that replicas do not come all at once.
const (
	firstDelay   = 20 * time.Millisecond
	longestDelay = 2 * time.Second
)

// backoff waits longer each time.
type backoff struct{ next time.Duration }

// wait returns false when ctx ends first.
func (b *backoff) wait(ctx context.Context) bool {
	b.next = min(max(2*b.next, firstDelay), longestDelay)
	timer := time.NewTimer(b.next/2 + rand.N(b.next)) //nolint:gosec // not a secret
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
