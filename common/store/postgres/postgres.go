// Package postgres is the store backend for several replicas of one plane: they share a database, and each holds the whole
// state in memory.
//
// The state is two tables. meridian_head is a single row with the newest revision; who writes takes it FOR UPDATE, which
// is the turn that [store.Shared] speaks of. Turns therefore follow each other in the order of Postgres's lock queue,
// revisions have no gaps, and they are in commit order. meridian_entries has one row for each key: the record, or the
// memory of its deletion, with the revision of its last change. What changed since a revision is found by an index,
// so there is no log to keep, and a replica that was away reads only what changed meanwhile, however long that was.
//
// A transaction that commits also notifies; every replica listens on a connection of its own. Nothing depends on a
// notification: the head row is read every second and after each new connection.
//
// When the connection is lost while a commit is on its way, its outcome is found out before anything is answered: a new
// connection takes the head row FOR UPDATE, which waits until the old transaction has ended either way, and looks
// whether the random ID of the commit is there. Only a database that stays away leaves the outcome open.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/internal/codec"
)

// Backend is a [store.Shared] and [store.Leaser] in a Postgres database.
type Backend struct {
	// Set by Open, read-only after.
	o       Options
	pool    *pgxpool.Pool
	channel string // of notifications
	knows   int    // the newest version of the schema that this program knows

	// Of one call at a time, as the interface promises.
	turn *pgxpool.Conn // in a transaction that has the head row locked; nil: not this replica's turn
	id   string        // of the store

	known   atomic.Pointer[mark] // what the store has been given
	noticed atomic.Uint64        // newest revision that a notification told
	recheck atomic.Bool          // Follow must ask the database, whatever was noticed

	advanced chan struct{} // cap 1, level-triggered
	stop     context.CancelFunc
	listens  sync.WaitGroup
}

// mark is a place in the history.
type mark struct {
	revision store.Revision
	commit   uuid.UUID
}

// Open connects, waiting for a database that is not there yet, and brings its schema up to date. Close ends what it started.
// Errors: ErrVersion, ErrPooler, ErrMigrationsPending, ErrSchema, and those of the database.
func Open(ctx context.Context, o Options) (*Backend, error) {
	o = o.withDefaults()
	b := &Backend{o: o, advanced: make(chan struct{}, 1)}
	b.known.Store(&mark{})
	config, err := o.poolConfig()
	if err != nil {
		return nil, err
	}
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	b.stop = stop
	if b.pool, err = pgxpool.NewWithConfig(life, config); err != nil {
		stop()
		return nil, fmt.Errorf("connect to the database: %w", err)
	}
	if err := b.start(ctx); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	b.listens.Go(func() { b.listen(life) })
	return b, nil
}

// Migrate brings the schema up to date and returns the names of the migrations that it ran.
func Migrate(ctx context.Context, o Options) ([]string, error) {
	o = o.withDefaults()
	config, err := o.poolConfig()
	if err != nil {
		return nil, err
	}
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connect to the database: %w", err)
	}
	defer pool.Close()
	steps, err := migrations(migrationFiles)
	if err != nil {
		return nil, err
	}
	return migratePool(ctx, pool, steps, true)
}

func migratePool(ctx context.Context, pool *pgxpool.Pool, steps []migration, allowed bool) ([]string, error) {
	c, err := pool.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to the database: %w", err)
	}
	defer c.Release()
	return migrate(ctx, c.Conn(), steps, allowed)
}

// start waits for the database and prepares it.
func (b *Backend) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, b.o.StartTimeout)
	defer cancel()
	var wait backoff
	for {
		err := b.prepare(ctx)
		if err == nil || permanent(err) {
			return err
		}
		b.o.Log.WarnContext(ctx, "the database does not answer yet", "err", err)
		if !wait.wait(ctx) {
			return fmt.Errorf("no database within %s: %w", b.o.StartTimeout, err)
		}
	}
}

func (b *Backend) prepare(ctx context.Context) error {
	steps, err := migrations(migrationFiles)
	if err != nil {
		return err
	}
	b.knows = steps[len(steps)-1].version
	applied, err := migratePool(ctx, b.pool, steps, !b.o.NoMigrations)
	if err != nil {
		return err
	}
	for _, name := range applied {
		b.o.Log.InfoContext(ctx, "database migrated", "migration", name)
	}
	// Two statements: the second sees what another replica did while the first waited for it.
	if _, err := b.pool.Exec(ctx, "UPDATE meridian_head SET plane = $1 WHERE plane = ''", b.o.Plane); err != nil {
		return fmt.Errorf("note whose state the database holds: %w", err)
	}
	var schema, plane string
	if err := b.pool.QueryRow(ctx, "SELECT current_schema(), plane FROM meridian_head").Scan(&schema, &plane); err != nil {
		return fmt.Errorf("read whose state the database holds: %w", err)
	}
	if plane != b.o.Plane && b.o.Plane != "" {
		return fmt.Errorf("%w: it holds the state of %s, not of %s: give each plane a database, or a schema by search_path", ErrSchema, plane, b.o.Plane)
	}
	b.channel = "meridian_" + schema
	return b.warn(ctx)
}

// Close implements [store.Backend].
func (b *Backend) Close() error {
	b.stop()
	b.listens.Wait()
	b.drop()
	b.pool.Close()
	return nil
}

// Advanced implements [store.Shared].
func (b *Backend) Advanced() <-chan struct{} { return b.advanced }

func (b *Backend) signal() {
	select {
	case b.advanced <- struct{}{}:
	default: // already told
	}
}

// Lock implements [store.Shared]. Nothing has been asked of the database that a lost connection could leave half done, so it
// tries again until the timeout.
func (b *Backend) Lock(ctx context.Context) (store.Revision, error) {
	ctx, cancel := context.WithTimeout(ctx, b.o.Timeout)
	defer cancel()
	var wait backoff
	for {
		revision, err := b.lock(ctx)
		if err == nil {
			return revision, nil
		}
		b.drop()
		b.suspect(err)
		if refusedByServer(err) || permanent(err) || !wait.wait(ctx) {
			b.recheck.Store(true)
			return 0, fmt.Errorf("lock the head of the store: %w", err)
		}
	}
}

func (b *Backend) lock(ctx context.Context) (store.Revision, error) {
	c, err := b.pool.Acquire(ctx)
	if err != nil {
		return 0, err
	}
	b.turn = c
	head, err := b.lockHead(ctx, c.Conn())
	if err != nil {
		return 0, err
	}
	if known := b.known.Load(); head.id != b.id || head.revision < known.revision || head.revision == known.revision && head.commit != known.commit {
		// Another history: Follow says so. The store asks it when the revision is not the one it has.
		return known.revision + 1, nil
	}
	return head.revision, nil
}

// headRow is the row of meridian_head.
type headRow struct {
	mark
	id        string
	compacted store.Revision
}

const selectHead = "SELECT id, revision, compacted, commit_id FROM meridian_head"

func (h *headRow) scan(row pgx.Row) error {
	return row.Scan(&h.id, &h.revision, &h.compacted, &h.commit)
}

// selectCompatible is asked once more with each turn and each look at what others wrote: a newer program may have changed the schema
// since this one started.
const selectCompatible = "SELECT max(version), max(compatible) FROM meridian_schema"

// checkSchema refuses a schema that this program cannot work with.
func (b *Backend) checkSchema(row pgx.Row) error {
	var version, compatible int
	if err := row.Scan(&version, &compatible); err != nil {
		return err
	}
	return checkCompatible(version, compatible, b.knows)
}

// lockHead begins a transaction on c that has the head row. A client that falls silent in it loses it in half the time that the
// others wait.
func (b *Backend) lockHead(ctx context.Context, c *pgx.Conn) (headRow, error) {
	var batch pgx.Batch
	batch.Queue("BEGIN")
	batch.Queue("SELECT set_config('statement_timeout', $1, true), set_config('idle_in_transaction_session_timeout', $2, true)",
		milliseconds(b.o.Timeout), milliseconds(b.o.Timeout/2))
	var head headRow
	batch.Queue(selectHead + " FOR UPDATE").QueryRow(head.scan)
	batch.Queue(selectCompatible).QueryRow(b.checkSchema) // a migration takes the row too
	err := c.SendBatch(ctx, &batch).Close()
	return head, err
}

func milliseconds(d time.Duration) string { return strconv.FormatInt(d.Milliseconds(), 10) }

// drop gives the connection of the turn back; one with an open transaction is closed by the pool.
func (b *Backend) drop() {
	if b.turn != nil {
		b.turn.Release()
		b.turn = nil
	}
}

// suspect closes what is left in the pool after a connection broke: what broke it has most likely broken the others, which
// would be found one by one.
func (b *Backend) suspect(err error) {
	if err != nil && !refusedByServer(err) {
		b.pool.Reset()
	}
}

// Unlock implements [store.Shared].
func (b *Backend) Unlock(ctx context.Context) {
	if b.turn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, b.o.Timeout)
	defer cancel()
	_, _ = b.turn.Exec(ctx, "ROLLBACK") // when it fails, releasing the connection closes it
	b.drop()
}

// Load implements [store.Backend].
func (b *Backend) Load(ctx context.Context, record func(*store.Record) error, tombstone func(store.Tombstone) error) (store.Head, error) {
	head, err := b.read(ctx, func(headRow) (store.Revision, error) { return 0, nil }, record, tombstone)
	if err != nil {
		return store.Head{}, fmt.Errorf("read the store from the database: %w", err)
	}
	b.id = head.id
	b.known.Store(&head.mark)
	return store.Head{ID: head.id, Revision: head.revision, Compacted: head.compacted}, nil
}

// keepCommits is how many revisions the names of commits are kept for. A replica that is further behind loads all.
const keepCommits = 100_000

const (
	upsertEntries = `INSERT INTO meridian_entries (digest, revision, deleted, key, value)
		SELECT * FROM unnest($1::bytea[], $2::bigint[], $3::boolean[], $4::bytea[], $5::bytea[])
		ON CONFLICT (digest) DO UPDATE SET revision = excluded.revision, deleted = excluded.deleted, value = excluded.value`
	forgetEntries = "DELETE FROM meridian_entries WHERE digest = ANY($1::bytea[])"
	insertCommit  = "INSERT INTO meridian_commits (revision, commit_id) VALUES ($1, $2)"
	trimCommits   = "DELETE FROM meridian_commits WHERE revision <= $1"
	updateHead    = "UPDATE meridian_head SET revision = $1, compacted = $2, commit_id = $3"
	notify        = "SELECT pg_notify($1, $2)"
)

// Append implements [store.Shared]. Without a turn it takes one first, and refuses a group that does not follow.
func (b *Backend) Append(ctx context.Context, g store.Group) error {
	if b.turn == nil {
		newest, err := b.Lock(ctx)
		if err != nil {
			return err
		}
		if newest != g.Base {
			b.Unlock(ctx)
			return fmt.Errorf("%w: it follows revision %d, but the newest in the database is %d", store.ErrBehind, g.Base, newest)
		}
	}
	next := mark{revision: g.Revision(), commit: uuid.New()}
	committing, err := b.write(ctx, g, next)
	broken := err != nil && !refusedByServer(err)
	b.drop()
	b.suspect(err)
	switch {
	case err == nil:
		b.known.Store(&next)
		return nil
	case !broken:
		return fmt.Errorf("write to the database: %w", err)
	case !committing:
		// The server ends the transaction when it finds the connection gone.
		return fmt.Errorf("%w: connection to the database lost: %w", store.ErrBehind, err)
	}
	stored, resolveErr := b.resolve(ctx, next)
	switch {
	case resolveErr != nil:
		b.recheck.Store(true)
		return fmt.Errorf("%w: connection to the database lost in a commit: %w; then: %w", store.ErrUnknown, err, resolveErr)
	case stored:
		b.known.Store(&next)
		return nil
	default:
		return fmt.Errorf("%w: connection to the database lost: %w", store.ErrBehind, err)
	}
}

// write writes the group and commits. committing: the commit was sent, so an error may come after it.
func (b *Backend) write(ctx context.Context, g store.Group, next mark) (committing bool, err error) {
	c := b.turn.Conn()
	chunks := chunksOf(g)
	for _, rows := range chunks[:len(chunks)-1] {
		if err := b.bounded(ctx, func(ctx context.Context) error {
			_, err := c.Exec(ctx, upsertEntries, rows.args()...)
			return err
		}); err != nil {
			return false, err
		}
	}
	var batch pgx.Batch
	batch.Queue(upsertEntries, chunks[len(chunks)-1].args()...)
	if len(g.Forget) > 0 {
		digests := make([][]byte, len(g.Forget))
		for i, k := range g.Forget {
			digests[i] = digest(codec.EncodeKey(k))
		}
		batch.Queue(forgetEntries, digests)
	}
	batch.Queue(insertCommit, next.revision, next.commit)
	if next.revision > keepCommits {
		batch.Queue(trimCommits, next.revision-keepCommits)
	}
	batch.Queue(updateHead, next.revision, g.Compacted, next.commit)
	batch.Queue(notify, b.channel, strconv.FormatUint(uint64(next.revision), 10))
	batch.Queue("COMMIT")
	return true, b.bounded(ctx, func(ctx context.Context) error { return c.SendBatch(ctx, &batch).Close() })
}

// bounded calls f with the deadline of a round trip.
func (b *Backend) bounded(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, b.o.Timeout)
	defer cancel()
	return f(ctx)
}

// resolve finds out whether the commit was stored.
func (b *Backend) resolve(ctx context.Context, sought mark) (stored bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, b.o.Timeout)
	defer cancel()
	var wait backoff
	for {
		if stored, err = b.tryResolve(ctx, sought); err == nil {
			return stored, nil
		}
		if !wait.wait(ctx) {
			return false, err
		}
	}
}

func (b *Backend) tryResolve(ctx context.Context, sought mark) (stored bool, err error) {
	c, err := b.pool.Acquire(ctx)
	if err != nil {
		return false, err
	}
	defer c.Release() // ends the transaction with the connection
	if _, err := b.lockHead(ctx, c.Conn()); err != nil {
		return false, err
	}
	err = c.QueryRow(ctx, "SELECT EXISTS (SELECT FROM meridian_commits WHERE revision = $1 AND commit_id = $2)",
		sought.revision, sought.commit).Scan(&stored)
	if err == nil {
		_, err = c.Exec(ctx, "ROLLBACK")
	}
	return stored, err
}
