package store

import "time"

// maxForgotten bounds what one commit forgets beyond what it deletes itself, so that compaction never makes one writer
// wait for the deletions of a whole day.
const maxForgotten = 10_000

// compactor decides when deletions are forgotten. It works on commits only: an idle store does nothing, and the
// tombstones of its last hours stay until it is written again. Each tombstone is forgotten once, a commit that has
// nothing to forget compares two numbers, so the cost per commit is constant on average.
//
// The newest tombstone of a type survives while it is the newest change of that type: Snapshot.LastChange must be the
// same after a restart, and is computed from what is stored.
type compactor struct {
	retention time.Duration
	max       int
	// due is when the oldest tombstone is old enough; zero: not known, look at the next commit that has one.
	due time.Time
}

// run forgets what is due as part of g.
func (c *compactor) run(g *group) {
	now := time.Now()
	surplus := g.tombstones - c.max
	if surplus <= c.max/10 {
		surplus = 0
	}
	if g.tombstones == 0 || surplus <= 0 && now.Before(c.due) {
		return
	}
	limit := maxForgotten
	for _, b := range g.batches {
		limit += 2 * len(b.Deletes)
	}
	head := g.head()
	kept := map[string]Revision{} // types whose newest change is a tombstone that stays
	var forget []*Tombstone
	c.due = now.Add(c.retention)
	for t := range all[*Tombstone](g.txn, tableTombstones, indexRevision+"_prefix", []byte{}) {
		expires := t.Deleted.Add(c.retention)
		if len(forget) == limit || len(forget) >= surplus && now.Before(expires) {
			if expires.Before(c.due) {
				c.due = expires
			}
			break
		}
		if _, ok := kept[t.Key.Type]; !ok && t.Revision == head.LastChange(t.Key.Type) {
			kept[t.Key.Type] = t.Revision
			continue
		}
		forget = append(forget, t)
	}
	for _, t := range forget {
		g.must(g.txn.Delete(tableTombstones, t))
		g.forget = append(g.forget, t.Key)
		g.compacted = max(g.compacted, t.Revision)
	}
	g.tombstones -= len(forget)
}
