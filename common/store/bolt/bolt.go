// Package bolt is the default store backend: one file, held by one process, every commit on disk before it is
// answered. The file is go.etcd.io/bbolt's, which survives kill -9 and power loss at any instant by writing a new root
// page only after everything below it.
//
// The file has three buckets. "meta" holds the format, the store's ID and the head; "records" and "tombstones" hold one
// entry per key, whose name is the type, mesh and name joined by NULs. Values are described in package codec.
package bolt

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"

	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/internal/codec"
)

var (
	// ErrLocked reports that another process has the file open.
	ErrLocked = errors.New("store file is in use by another process")
	// ErrFormat reports a file that is not a store, or one of a format this program does not know.
	ErrFormat = errors.New("unknown store format")
	// ErrCorrupt reports content that does not read back as it was written. The error names the key.
	ErrCorrupt = codec.ErrCorrupt
)

// Options tune the backend; the zero value means the defaults.
type Options struct {
	// LockTimeout is how long Open waits for another process to let go of the file, as one that is shutting down
	// will. Default 1 second.
	LockTimeout time.Duration
}

// Backend is a [store.Backend] in one file.
type Backend struct {
	path string
	db   *bbolt.DB
}

// format is the version of everything below. It grows when an older program could misread what a newer one wrote;
// adding a field to a value does not need that.
const format = 1

// Names of the buckets, and of the entries of meta.
const (
	bucketMeta       = "meta"
	bucketRecords    = "records"
	bucketTombstones = "tombstones"

	metaFormat = "format" // uint32, big endian
	metaID     = "id"     // text
	metaHead   = "head"   // revision and compacted revision, each uint64, big endian
)

// Open opens the store file at path, or makes a new one that only its owner may read (mode 0600; a store holds secrets).
// The directory must exist. Errors: ErrLocked, ErrFormat, and those of the file system.
func Open(path string, o Options) (*Backend, error) {
	if o.LockTimeout == 0 {
		o.LockTimeout = time.Second
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{
		Timeout:        o.LockTimeout,
		NoFreelistSync: true, // the list of free pages is rebuilt on opening, so a commit need not write it
		FreelistType:   bbolt.FreelistMapType,
	})
	switch {
	case errors.Is(err, bolterrors.ErrTimeout):
		return nil, fmt.Errorf("open store file %s: %w", path, ErrLocked)
	case errors.Is(err, bolterrors.ErrInvalid), errors.Is(err, bolterrors.ErrVersionMismatch), errors.Is(err, bolterrors.ErrChecksum):
		return nil, fmt.Errorf("open store file %s: %w: %w", path, ErrFormat, err)
	case err != nil:
		return nil, fmt.Errorf("open store file %s: %w", path, err)
	}
	b := &Backend{path: path, db: db}
	if err := b.prepare(); err != nil {
		return nil, errors.Join(fmt.Errorf("open store file %s: %w", path, err), db.Close())
	}
	return b, nil
}

// prepare makes the buckets of a new file, and checks the format of an old one.
func (b *Backend) prepare() error {
	fresh := false
	err := b.db.View(func(tx *bbolt.Tx) error {
		if name, _ := tx.Cursor().First(); name == nil {
			fresh = true
			return nil
		}
		return checkFormat(tx)
	})
	if err != nil || !fresh {
		return err
	}
	err = b.db.Update(func(tx *bbolt.Tx) error {
		for _, name := range []string{bucketMeta, bucketRecords, bucketTombstones} {
			if _, err := tx.CreateBucket([]byte(name)); err != nil {
				return fmt.Errorf("make bucket %s: %w", name, err)
			}
		}
		meta := tx.Bucket([]byte(bucketMeta))
		return errors.Join(
			meta.Put([]byte(metaFormat), binary.BigEndian.AppendUint32(nil, format)),
			meta.Put([]byte(metaID), []byte(store.NewID())),
			putHead(meta, 0, 0),
		)
	})
	if err != nil {
		return err
	}
	// The file's name, too, must survive a power loss.
	dir, err := os.Open(filepath.Dir(b.path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

func checkFormat(tx *bbolt.Tx) error {
	meta := tx.Bucket([]byte(bucketMeta))
	if meta == nil {
		return fmt.Errorf("%w: the file belongs to another program", ErrFormat)
	}
	v := meta.Get([]byte(metaFormat))
	if len(v) != 4 {
		return fmt.Errorf("%w: the file does not say its format", ErrFormat)
	}
	if f := binary.BigEndian.Uint32(v); f != format {
		return fmt.Errorf("%w: the file has format %d, this program knows %d", ErrFormat, f, format)
	}
	for _, name := range []string{bucketRecords, bucketTombstones} {
		if tx.Bucket([]byte(name)) == nil {
			return fmt.Errorf("%w: bucket %s is missing", ErrCorrupt, name)
		}
	}
	return nil
}

// Load implements [store.Backend].
func (b *Backend) Load(
	ctx context.Context, record func(*store.Record) error, tombstone func(store.Tombstone) error,
) (head store.Head, err error) {
	defer func() {
		// bbolt panics on pages whose inside does not fit together.
		if p := recover(); p != nil {
			head, err = store.Head{}, fmt.Errorf("load %s: %w: %v", b.path, ErrCorrupt, p)
		}
	}()
	err = b.db.View(func(tx *bbolt.Tx) error {
		var err error
		if head, err = readHead(tx.Bucket([]byte(bucketMeta))); err != nil {
			return err
		}
		var keys codec.KeyReader
		err = tx.Bucket([]byte(bucketRecords)).ForEach(func(k, v []byte) error {
			key, err := keys.Read(k)
			if err != nil {
				return err
			}
			r, err := codec.DecodeRecord(key, k, v)
			if err != nil {
				return fmt.Errorf("record %s: %w", key, err)
			}
			return errors.Join(record(r), ctx.Err())
		})
		if err != nil {
			return err
		}
		return tx.Bucket([]byte(bucketTombstones)).ForEach(func(k, v []byte) error {
			key, err := keys.Read(k)
			if err != nil {
				return err
			}
			t, err := codec.DecodeTombstone(key, k, v)
			if err != nil {
				return fmt.Errorf("tombstone %s: %w", key, err)
			}
			return errors.Join(tombstone(t), ctx.Err())
		})
	})
	if err != nil {
		return store.Head{}, fmt.Errorf("load %s: %w", b.path, err)
	}
	return head, nil
}

// Append implements [store.Backend]: one bbolt transaction, on disk when it returns.
func (b *Backend) Append(_ context.Context, g store.Group) error {
	err := b.db.Update(func(tx *bbolt.Tx) error {
		meta := tx.Bucket([]byte(bucketMeta))
		records, tombstones := tx.Bucket([]byte(bucketRecords)), tx.Bucket([]byte(bucketTombstones))
		head, err := readHead(meta)
		if err != nil {
			return err
		}
		if head.Revision != g.Base {
			return fmt.Errorf("group follows revision %d, but the newest in the file is %d", g.Base, head.Revision)
		}
		for _, batch := range g.Batches {
			for _, r := range batch.Puts {
				k := codec.EncodeKey(r.Key)
				if err := errors.Join(records.Put(k, codec.EncodeRecord(k, r)), tombstones.Delete(k)); err != nil {
					return fmt.Errorf("put %s: %w", r.Key, err)
				}
			}
			for _, t := range batch.Deletes {
				k := codec.EncodeKey(t.Key)
				if err := errors.Join(records.Delete(k), tombstones.Put(k, codec.EncodeTombstone(k, t))); err != nil {
					return fmt.Errorf("delete %s: %w", t.Key, err)
				}
			}
		}
		for _, key := range g.Forget {
			if err := tombstones.Delete(codec.EncodeKey(key)); err != nil {
				return fmt.Errorf("forget %s: %w", key, err)
			}
		}
		return putHead(meta, g.Revision(), g.Compacted)
	})
	if err != nil {
		return fmt.Errorf("write %s: %w", b.path, err)
	}
	return nil
}

// Close implements [store.Backend] and lets go of the file.
func (b *Backend) Close() error {
	if err := b.db.Close(); err != nil {
		return fmt.Errorf("close %s: %w", b.path, err)
	}
	return nil
}

func putHead(meta *bbolt.Bucket, revision, compacted store.Revision) error {
	v := binary.BigEndian.AppendUint64(make([]byte, 0, 16), uint64(revision))
	return meta.Put([]byte(metaHead), binary.BigEndian.AppendUint64(v, uint64(compacted)))
}

func readHead(meta *bbolt.Bucket) (store.Head, error) {
	id, v := meta.Get([]byte(metaID)), meta.Get([]byte(metaHead))
	if len(id) == 0 || len(v) != 16 {
		return store.Head{}, fmt.Errorf("%w: the store's ID or head cannot be read", ErrCorrupt)
	}
	return store.Head{
		ID:        string(id),
		Revision:  store.Revision(binary.BigEndian.Uint64(v)),
		Compacted: store.Revision(binary.BigEndian.Uint64(v[8:])),
	}, nil
}
