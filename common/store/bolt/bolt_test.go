package bolt_test

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"go.uber.org/goleak"

	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/bolt"
	"github.com/meridian-mesh/meridian/common/store/storetest"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(writerFileEnv); path != "" {
		writeUntilKilled(path)
	}
	goleak.VerifyTestMain(m)
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Opener {
		path := filepath.Join(t.TempDir(), "store.db")
		return func() (store.Backend, error) { return bolt.Open(path, bolt.Options{}) }
	})
}

func openStore(t *testing.T, path string) *store.Store {
	t.Helper()
	b, err := bolt.Open(path, bolt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(t.Context(), b, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func put(t *testing.T, s *store.Store, names ...string) {
	t.Helper()
	_, err := s.Update(t.Context(), func(*store.Snapshot) ([]store.Op, error) {
		var ops []store.Op
		for _, n := range names {
			ops = append(ops, store.Put(&store.Record{Key: store.Key{Type: "T", Mesh: "m", Name: n}, Spec: []byte("spec of " + n)}))
		}
		return ops, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestTheFileIsForItsOwnerOnly(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	openStore(t, path)
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o600 {
		t.Errorf("mode %o", got)
	}
}

func TestAFileInUseIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s := openStore(t, path)
	_, err := bolt.Open(path, bolt.Options{LockTimeout: time.Millisecond})
	if !errors.Is(err, bolt.ErrLocked) || !strings.Contains(err.Error(), path) {
		t.Errorf("open a file in use: %v", err)
	}
	put(t, s, "a") // the holder is not disturbed
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	openStore(t, path)
}

func TestOpenRefusesWhatItCannotRead(t *testing.T) {
	edit := func(change func(*bbolt.Tx) error) func(*testing.T, string) {
		return func(t *testing.T, path string) {
			t.Helper()
			s := openStore(t, path)
			put(t, s, "a", "b", "c")
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			db, err := bbolt.Open(path, 0o600, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(db.Update(change), db.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
	record := []byte("T\x00m\x00b")
	for _, c := range []struct {
		name string
		make func(*testing.T, string)
		want error
		says string
	}{
		{
			"a file that is no database",
			func(t *testing.T, path string) {
				t.Helper()
				if err := os.WriteFile(path, []byte(strings.Repeat("hello, world ", 4000)), 0o600); err != nil {
					t.Fatal(err)
				}
			},
			bolt.ErrFormat, "store.db",
		},
		{
			"another program's database",
			func(t *testing.T, path string) {
				t.Helper()
				db, err := bbolt.Open(path, 0o600, nil)
				if err != nil {
					t.Fatal(err)
				}
				err = db.Update(func(tx *bbolt.Tx) error { _, err := tx.CreateBucket([]byte("theirs")); return err })
				if err := errors.Join(err, db.Close()); err != nil {
					t.Fatal(err)
				}
			},
			bolt.ErrFormat, "another program",
		},
		{
			"a newer format",
			edit(func(tx *bbolt.Tx) error {
				return tx.Bucket([]byte("meta")).Put([]byte("format"), binary.BigEndian.AppendUint32(nil, 2))
			}),
			bolt.ErrFormat, "format 2",
		},
		{
			"a missing bucket",
			edit(func(tx *bbolt.Tx) error { return tx.DeleteBucket([]byte("tombstones")) }),
			bolt.ErrCorrupt, "tombstones",
		},
		{
			"a head of the wrong length",
			edit(func(tx *bbolt.Tx) error { return tx.Bucket([]byte("meta")).Put([]byte("head"), []byte("x")) }),
			bolt.ErrCorrupt, "head",
		},
		{
			"a record with a flipped bit",
			edit(func(tx *bbolt.Tx) error {
				b := tx.Bucket([]byte("records"))
				v := append([]byte(nil), b.Get(record)...)
				v[len(v)/2] ^= 1
				return b.Put(record, v)
			}),
			bolt.ErrCorrupt, "T/m/b",
		},
		{
			"a record cut short",
			edit(func(tx *bbolt.Tx) error {
				b := tx.Bucket([]byte("records"))
				return b.Put(record, append([]byte(nil), b.Get(record)[:2]...))
			}),
			bolt.ErrCorrupt, "T/m/b",
		},
		{
			"a record under another's name",
			edit(func(tx *bbolt.Tx) error {
				b := tx.Bucket([]byte("records"))
				return b.Put([]byte("T\x00m\x00d"), append([]byte(nil), b.Get(record)...))
			}),
			bolt.ErrCorrupt, "T/m/d",
		},
		{
			"an entry that is no key",
			edit(func(tx *bbolt.Tx) error { return tx.Bucket([]byte("records")).Put([]byte("stray"), []byte("x")) }),
			bolt.ErrCorrupt, "stray",
		},
		{
			"a damaged tombstone",
			edit(func(tx *bbolt.Tx) error {
				return tx.Bucket([]byte("tombstones")).Put([]byte("T\x00m\x00gone"), []byte("damaged"))
			}),
			bolt.ErrCorrupt, "T/m/gone",
		},
		{
			"records newer than the head",
			edit(func(tx *bbolt.Tx) error { return tx.Bucket([]byte("meta")).Put([]byte("head"), make([]byte, 16)) }),
			nil, "revision 1",
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "store.db")
			c.make(t, path)
			b, err := bolt.Open(path, bolt.Options{})
			if err == nil {
				var s *store.Store
				if s, err = store.Open(t.Context(), b, store.Options{}); err == nil {
					_ = s.Close()
					t.Fatal("opened")
				}
			}
			if c.want != nil && !errors.Is(err, c.want) {
				t.Errorf("error %v is not %v", err, c.want)
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("error %q does not say %q", err, c.says)
			}
			// Whatever was wrong, the file is not left locked.
			again, err := bolt.Open(path, bolt.Options{LockTimeout: time.Millisecond})
			if errors.Is(err, bolt.ErrLocked) {
				t.Error("the file is still locked")
			}
			if err == nil {
				_ = again.Close()
			}
		})
	}
}

func TestOpenInADirectoryThatDoesNotExistFails(t *testing.T) {
	if _, err := bolt.Open(filepath.Join(t.TempDir(), "absent", "store.db"), bolt.Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
}

func TestAnInterruptedLoadEndsWithItsContext(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s := openStore(t, path)
	put(t, s, "a")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := bolt.Open(path, bolt.Options{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := store.Open(ctx, b, store.Options{}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}
