package postgres

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"strconv"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/internal/codec"
)

func digest(key []byte) []byte {
	sum := sha256.Sum256(key)
	return sum[:]
}

// rows are entries as columns, which is how one statement takes many of them.
type rows struct {
	digests   [][]byte
	revisions []int64
	deleted   []bool
	keys      [][]byte
	values    [][]byte
	bytes     int
}

func (r *rows) add(key, value []byte, revision store.Revision, deleted bool) {
	r.digests = append(r.digests, digest(key))
	r.revisions = append(r.revisions, int64(revision)) //nolint:gosec // beyond reach
	r.deleted = append(r.deleted, deleted)
	r.keys = append(r.keys, key)
	r.values = append(r.values, value)
	r.bytes += len(key) + len(value) + 64
}

func (r *rows) args() []any { return []any{r.digests, r.revisions, r.deleted, r.keys, r.values} }

// chunkBytes bounds what one statement carries.
const chunkBytes = 4 << 20

// chunksOf returns what the group leaves of each key it changes; never nothing.
func chunksOf(g store.Group) []*rows {
	last := map[store.Key]store.Revision{}
	for _, b := range g.Batches {
		for _, r := range b.Puts {
			last[r.Key] = b.Revision
		}
		for _, t := range b.Deletes {
			last[t.Key] = b.Revision
		}
	}
	forgotten := map[store.Key]bool{}
	for _, k := range g.Forget {
		forgotten[k] = true
	}
	chunk := &rows{}
	chunks := []*rows{chunk}
	add := func(k store.Key, revision store.Revision, value func(key []byte) []byte, deleted bool) {
		if last[k] != revision || deleted && forgotten[k] {
			return
		}
		if chunk.bytes > chunkBytes {
			chunk = &rows{}
			chunks = append(chunks, chunk)
		}
		key := codec.EncodeKey(k)
		chunk.add(key, value(key), revision, deleted)
	}
	for _, b := range g.Batches {
		for _, r := range b.Puts {
			add(r.Key, b.Revision, func(key []byte) []byte { return codec.EncodeRecord(key, r) }, false)
		}
		for _, t := range b.Deletes {
			add(t.Key, b.Revision, func(key []byte) []byte { return codec.EncodeTombstone(key, t) }, true)
		}
	}
	return chunks
}

// pageRows is how many rows one round trip of a reading brings.
const pageRows = 1000

const (
	selectPage = `SELECT digest, revision, deleted, key, value FROM meridian_entries
		WHERE (revision, digest) > ($1, $2) ORDER BY revision, digest LIMIT $3`
	selectCommit = `SELECT (SELECT commit_id FROM meridian_commits WHERE revision = $1),
		coalesce((SELECT min(revision) FROM meridian_commits), 0)`
)

// Follow implements [store.Shared].
func (b *Backend) Follow(ctx context.Context, record func(*store.Record) error, tombstone func(store.Tombstone) error) (store.Head, error) {
	known := b.known.Load()
	recheck := b.recheck.Swap(false)
	if b.turn == nil && !recheck && store.Revision(b.noticed.Load()) <= known.revision {
		return store.Head{ID: b.id, Revision: known.revision}, nil // it was this replica's own commit
	}
	head, err := b.read(ctx, nil, record, tombstone)
	switch {
	case errors.Is(err, errOtherHistory):
		err = b.renameHistory(ctx, err)
	case !errors.Is(err, store.ErrCompacted):
		b.suspect(err)
	}
	if err != nil {
		b.recheck.Store(true)
		return store.Head{}, fmt.Errorf("read changes from the database: %w", err)
	}
	b.known.Store(&head.mark)
	return store.Head{ID: head.id, Revision: head.revision, Compacted: head.compacted}, nil
}

// errOtherHistory: the database does not have the commit that this replica knows as the newest.
var errOtherHistory = fmt.Errorf("the database was restored to another state, or replaced: %w", store.ErrCompacted)

// read yields every entry that changed since the revision that since returns for the head (nil: since what is known), as of one
// instant, and returns the head of that instant.
func (b *Backend) read(
	ctx context.Context, since func(headRow) (store.Revision, error), record func(*store.Record) error, tombstone func(store.Tombstone) error,
) (_ headRow, err error) {
	c := b.turn
	if c == nil {
		acquire, cancel := context.WithTimeout(ctx, b.o.Timeout)
		defer cancel()
		if c, err = b.pool.Acquire(acquire); err != nil {
			return headRow{}, err
		}
		defer c.Release() // with an open transaction: closed
	}
	// During the turn nobody else commits, and each statement sees the same. Without it one snapshot serves all statements.
	begin := b.turn == nil
	known := *b.known.Load()
	after := known.revision
	if since != nil {
		after = 0
	}
	p := pager{record: record, tombstone: tombstone, after: after}
	var head headRow
	var commit *uuid.UUID
	var oldest store.Revision
	var batch pgx.Batch
	if begin {
		batch.Queue("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
	}
	batch.Queue(selectHead).QueryRow(head.scan)
	batch.Queue(selectCommit, after).QueryRow(func(row pgx.Row) error { return row.Scan(&commit, &oldest) })
	batch.Queue(selectCompatible).QueryRow(func(row pgx.Row) error { // the place to stop before the first page is read
		if err := b.checkSchema(row); err != nil || since != nil {
			return err
		}
		return b.sameHistory(head, known, commit, oldest)
	})
	batch.Queue(selectPage, p.after, p.digest, pageRows).Query(p.read)
	page, cancel := context.WithTimeout(ctx, b.o.pageTimeout())
	err = c.SendBatch(page, &batch).Close()
	cancel()
	for err == nil && p.more {
		err = b.page(ctx, c.Conn(), &p)
	}
	if err == nil && begin {
		err = b.bounded(ctx, func(ctx context.Context) error {
			_, err := c.Exec(ctx, "COMMIT")
			return err
		})
	}
	return head, err
}

func (b *Backend) page(ctx context.Context, c *pgx.Conn, p *pager) error {
	ctx, cancel := context.WithTimeout(ctx, b.o.pageTimeout())
	defer cancel()
	rows, err := c.Query(ctx, selectPage, p.after, p.digest, pageRows)
	if err != nil {
		return err
	}
	return p.read(rows)
}

// sameHistory reports whether the changes since known lead from it to head.
func (b *Backend) sameHistory(head headRow, known mark, commit *uuid.UUID, oldest store.Revision) error {
	switch {
	case head.id != b.id, head.revision < known.revision, commit != nil && *commit != known.commit:
		return errOtherHistory
	case commit == nil && known.revision >= oldest:
		return errOtherHistory
	case commit == nil, known.revision < head.compacted:
		return fmt.Errorf("revision %d is too long ago, deletions are known since %d: %w", known.revision, head.compacted, store.ErrCompacted)
	}
	return nil
}

// pager reads one page after the other.
type pager struct {
	record    func(*store.Record) error
	tombstone func(store.Tombstone) error
	keys      codec.KeyReader

	// Where the last page ended, and whether it was full.
	after  store.Revision
	digest []byte
	more   bool
}

func (p *pager) read(rows pgx.Rows) error {
	defer rows.Close()
	n := 0
	for rows.Next() {
		var deleted bool
		var raw, value []byte
		if err := rows.Scan(&p.digest, &p.after, &deleted, &raw, &value); err != nil {
			return err
		}
		n++
		key, err := p.keys.Read(raw)
		if err != nil {
			return err
		}
		if deleted {
			t, err := codec.DecodeTombstone(key, raw, value)
			if err == nil {
				err = p.tombstone(t)
			}
			if err != nil {
				return fmt.Errorf("tombstone %s: %w", key, err)
			}
			continue
		}
		r, err := codec.DecodeRecord(key, raw, value)
		if err == nil {
			err = p.record(r)
		}
		if err != nil {
			return fmt.Errorf("record %s: %w", key, err)
		}
	}
	p.more = n == pageRows
	return rows.Err()
}

// renameHistory gives the history that the database has now an ID of its own, and compacts it beyond what this replica knows
// of another one. It returns the reason, or why it could not.
func (b *Backend) renameHistory(ctx context.Context, reason error) (why error) {
	if b.turn != nil { // what was read in it is void
		b.Unlock(ctx)
		defer func() {
			if _, err := b.Lock(ctx); err != nil {
				why = err
			}
		}()
	}
	known := b.known.Load()
	err := b.bounded(ctx, func(ctx context.Context) error {
		return pgx.BeginFunc(ctx, b.pool, func(tx pgx.Tx) error {
			var head headRow
			if err := head.scan(tx.QueryRow(ctx, selectHead+" FOR UPDATE")); err != nil {
				return err
			}
			renamed := head.id != b.id // by another replica, or it is another database
			if renamed && head.compacted > known.revision {
				return nil
			}
			id := head.id
			if !renamed {
				id = store.NewID()
			}
			next := mark{revision: max(head.revision, known.revision) + 1, commit: uuid.New()}
			var batch pgx.Batch
			batch.Queue("UPDATE meridian_head SET id = $1, revision = $2, compacted = $2, commit_id = $3", id, next.revision, next.commit)
			batch.Queue(insertCommit, next.revision, next.commit)
			batch.Queue(notify, b.channel, strconv.FormatUint(uint64(next.revision), 10))
			return tx.SendBatch(ctx, &batch).Close()
		})
	})
	if err != nil {
		return fmt.Errorf("%s; give it a new ID: %w", reason.Error(), err)
	}
	return reason
}
