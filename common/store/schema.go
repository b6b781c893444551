package store

import (
	"encoding/binary"
	"fmt"

	"github.com/hashicorp/go-memdb"
)

// The state lives in three go-memdb tables. memdb was taken for its immutable radix trees (a snapshot is a pointer, an
// iterator is sorted) with secondary indexes kept in step, at the price of two small dependencies; cilium/statedb does
// the same and brings a lifecycle framework along. The store's db is a memdb snapshot rather than a primary: memdb then
// leaves out its per-node watch bookkeeping, which Snapshot.Next replaces.
//
// Parts of an index key are separated by a NUL, which keys may not contain; so keys sort by type, then mesh, then name.
const (
	tableRecords    = "records"    // *Record
	tableTombstones = "tombstones" // *Tombstone; a key is in at most one of the two
	tableCounts     = "counts"     // *countRow

	indexID       = "id"       // records, tombstones: type, mesh, name; counts: type, mesh
	indexOrigin   = "origin"   // records: type, origin, mesh, name
	indexWireName = "wirename" // records with one: type, origin, mesh, wire name, name
	indexVersion  = "version"  // records, tombstones: type, version (of a tombstone: its revision), mesh, name
	indexRevision = "revision" // tombstones: revision, type, mesh, name

	indexIDPrefix       = indexID + "_prefix"
	indexOriginPrefix   = indexOrigin + "_prefix"
	indexWireNamePrefix = indexWireName + "_prefix"
)

// countRow counts the records of a type in a mesh; under mesh "" those of the type as a whole, with its last change.
// The row of a type is never removed, that of a mesh when its count falls to 0.
type countRow struct {
	typ, mesh string
	n         int
	last      Revision
}

func newDB() (*memdb.MemDB, error) {
	unique := func(name string, ix memdb.Indexer) *memdb.IndexSchema {
		return &memdb.IndexSchema{Name: name, Unique: true, Indexer: ix}
	}
	wireName := unique(indexWireName, index[*Record](func(r *Record) []byte {
		if r.WireName == "" {
			return nil
		}
		return joinKey(r.Key.Type, r.Origin, r.Key.Mesh, r.WireName, r.Key.Name)
	}))
	wireName.AllowMissing = true
	db, err := memdb.NewMemDB(&memdb.DBSchema{Tables: map[string]*memdb.TableSchema{
		tableRecords: {Name: tableRecords, Indexes: map[string]*memdb.IndexSchema{
			indexID: unique(indexID, index[*Record](func(r *Record) []byte { return r.Key.bytes() })),
			indexOrigin: unique(indexOrigin, index[*Record](func(r *Record) []byte {
				return joinKey(r.Key.Type, r.Origin, r.Key.Mesh, r.Key.Name)
			})),
			indexWireName: wireName,
			indexVersion: unique(indexVersion, index[*Record](func(r *Record) []byte {
				return versionKey(r.Key.Type, r.Version, r.Key.Mesh, r.Key.Name)
			})),
		}},
		tableTombstones: {Name: tableTombstones, Indexes: map[string]*memdb.IndexSchema{
			indexID: unique(indexID, index[*Tombstone](func(t *Tombstone) []byte { return t.Key.bytes() })),
			indexVersion: unique(indexVersion, index[*Tombstone](func(t *Tombstone) []byte {
				return versionKey(t.Key.Type, t.Revision, t.Key.Mesh, t.Key.Name)
			})),
			indexRevision: unique(indexRevision, index[*Tombstone](func(t *Tombstone) []byte {
				return append(binary.BigEndian.AppendUint64(nil, uint64(t.Revision)), t.Key.bytes()...)
			})),
		}},
		tableCounts: {Name: tableCounts, Indexes: map[string]*memdb.IndexSchema{
			indexID: unique(indexID, index[*countRow](func(r *countRow) []byte { return joinKey(r.typ, r.mesh) })),
		}},
	}})
	if err != nil {
		return nil, fmt.Errorf("make the in-memory tables: %w", err)
	}
	return db.Snapshot(), nil
}

// index is a memdb indexer by a function that builds the key; nil leaves the object out. A query gives the bytes of
// the key, or of its beginning, as they are.
type index[T any] func(T) []byte

func (f index[T]) FromObject(obj any) (bool, []byte, error) {
	key := f(obj.(T))
	return key != nil, key, nil
}

func (index[T]) FromArgs(args ...any) ([]byte, error) { return args[0].([]byte), nil }

func (index[T]) PrefixFromArgs(args ...any) ([]byte, error) { return args[0].([]byte), nil }

func (k Key) bytes() []byte { return joinKey(k.Type, k.Mesh, k.Name) }

// joinKey joins parts with a NUL between.
func joinKey(parts ...string) []byte {
	n := len(parts)
	for _, p := range parts {
		n += len(p)
	}
	b := make([]byte, 0, n)
	for i, p := range parts {
		if i > 0 {
			b = append(b, 0)
		}
		b = append(b, p...)
	}
	return b
}

// versionKey is the key of indexVersion; without rest, the lower bound of all keys of that type and version.
func versionKey(typ string, v Revision, rest ...string) []byte {
	n := len(typ) + 1 + 8
	for _, p := range rest {
		n += 1 + len(p)
	}
	b := append(append(make([]byte, 0, n), typ...), 0)
	b = binary.BigEndian.AppendUint64(b, uint64(v))
	for _, p := range rest {
		b = append(append(b, 0), p...)
	}
	return b
}
