package store

import (
	"context"
	"fmt"

	"github.com/hashicorp/go-memdb"
)

// load fills the tables from the backend, and refuses a state that no committer can have left.
func load(ctx context.Context, b Backend, db *memdb.MemDB) (*Snapshot, error) {
	g := newGroup(db, &Snapshot{})
	g.txn = db.Txn(true)
	defer g.txn.Abort() // nothing, once committed

	counts := countDeltas{}
	last := map[string]Revision{}
	seen := func(key Key, revision Revision) error {
		if err := checkKeys([]Op{Delete(key)}); err != nil {
			return err
		}
		_, isRecord := first[*Record](g.txn, tableRecords, indexID, key.bytes())
		_, isTombstone := first[*Tombstone](g.txn, tableTombstones, indexID, key.bytes())
		if isRecord || isTombstone {
			return fmt.Errorf("%s is stored twice", key)
		}
		if revision == 0 {
			return fmt.Errorf("%s has no version", key)
		}
		g.revision = max(g.revision, revision)
		last[key.Type] = max(last[key.Type], revision)
		return nil
	}
	head, err := b.Load(ctx,
		func(r *Record) error {
			if err := seen(r.Key, r.Version); err != nil {
				return err
			}
			if r.CreateRevision == 0 || r.CreateRevision > r.Version {
				return fmt.Errorf("%s at version %d was created at %d", r.Key, r.Version, r.CreateRevision)
			}
			counts.add(r.Key, 1)
			return g.txn.Insert(tableRecords, r)
		},
		func(t Tombstone) error {
			if err := seen(t.Key, t.Revision); err != nil {
				return err
			}
			counts.add(t.Key, 0)
			g.bury(&t)
			return nil
		})
	if err != nil {
		return nil, fmt.Errorf("load: %w", err)
	}
	if g.revision > head.Revision || head.Compacted > head.Revision {
		return nil, fmt.Errorf("load: head is at revision %d, but revision %d is stored, and %d compacted",
			head.Revision, g.revision, head.Compacted)
	}
	for k, n := range counts {
		g.addCounts(countDeltas{k: n}, last[k.typ])
	}
	g.txn.Commit()
	return &Snapshot{
		txn:        db.Txn(false),
		revision:   head.Revision,
		compacted:  head.Compacted,
		tombstones: g.tombstones,
		id:         head.ID,
		next:       make(chan struct{}),
	}, nil
}
