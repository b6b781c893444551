package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"time"

	"github.com/meridian-mesh/meridian/common/store"
)

// seedType is the type of the records by which replicas that share a store find each other, one for each instance id: bookkeeping,
// never served nor sent.
const seedType = "Instance"

const (
	seedInterval = 10 * time.Second // how often the records are looked at
	// seedPatience is how long the record of a replica that is gone stays. Where it lives, and is cut off from those that remove it, it
	// writes another, and the record is what brings them together again.
	seedPatience = time.Minute
	seedTimeout  = time.Second // to remove the own one, at the end
)

// seed is where a replica is heard. Fields are added, never changed.
type seed struct {
	Address string    `json:"address"`
	Started time.Time `json:"started"`
}

func seedKey(instance string) store.Key { return store.Key{Type: seedType, Name: instance} }

// sighting is since when the replica of a record is gone.
type sighting struct {
	version store.Revision // of the record
	since   time.Time
}

// keepSeeds sees to it that the store says where this replica is, until ctx ends, and not where those are that died.
func (c *Cluster) keepSeeds(ctx context.Context) {
	if c.o.Seeds == nil {
		return
	}
	own, err := json.Marshal(seed{c.self.Address, c.self.Started})
	if err != nil { // a string and a time can be
		panic(err)
	}
	ticker := time.NewTicker(seedInterval)
	defer ticker.Stop()
	gone := map[string]sighting{}
	for warned := false; ; {
		var ops []store.Op
		ops, gone = c.tendSeeds(own, gone)
		if err := c.commitSeeds(ctx, ops); err != nil && ctx.Err() == nil && !warned {
			warned = true
			c.log.WarnContext(ctx, "the store does not say yet where this replica is; going on trying", "err", err)
		}
		select {
		case <-ctx.Done():
			end, cancel := context.WithTimeout(context.WithoutCancel(ctx), seedTimeout)
			defer cancel()
			if err := c.removeSeed(end, own); err != nil {
				c.log.WarnContext(end, "the store still says where this replica was", "err", err)
			}
			return
		case <-ticker.C:
		}
	}
}

// tendSeeds returns what to change of the records, and since when replicas are gone.
func (c *Cluster) tendSeeds(own []byte, before map[string]sighting) (ops []store.Op, gone map[string]sighting) {
	now := time.Now()
	gone = map[string]sighting{}
	told := false
	for rec := range c.o.Seeds.Snapshot().List(seedType, "") {
		name := rec.Key.Name
		if name == c.o.Name {
			told = bytes.Equal(rec.Spec, own)
			continue
		}
		if !c.Gone(name) {
			continue
		}
		s, ok := before[name]
		if !ok || s.version != rec.Version {
			s = sighting{rec.Version, now}
		}
		gone[name] = s
		if now.Sub(s.since) >= seedPatience {
			ops = append(ops, store.Delete(rec.Key).If(rec.Version))
		}
	}
	if !told {
		ops = append(ops, store.Put(&store.Record{Key: seedKey(c.o.Name), Spec: own}))
	}
	return ops, gone
}

// commitSeeds changes records one by one: what another replica was faster with must not stop the rest.
func (c *Cluster) commitSeeds(ctx context.Context, ops []store.Op) (failed error) {
	for _, op := range ops {
		_, err := c.o.Seeds.Update(ctx, func(head *store.Snapshot) ([]store.Op, error) {
			rec, there := head.Get(op.Key)
			if op.IfVersion != nil && (!there || rec.Version != *op.IfVersion) {
				return nil, nil
			}
			return []store.Op{op}, nil
		})
		if err != nil {
			failed = err
		}
	}
	return failed
}

// removeSeed removes the record of this run, not that of one which has come after it.
func (c *Cluster) removeSeed(ctx context.Context, own []byte) error {
	key := seedKey(c.o.Name)
	_, err := c.o.Seeds.Update(ctx, func(head *store.Snapshot) ([]store.Op, error) {
		if rec, there := head.Get(key); !there || !bytes.Equal(rec.Spec, own) {
			return nil, nil
		}
		return []store.Op{store.Delete(key)}, nil
	})
	return err
}

// seeds returns where the store says that replicas are.
func (c *Cluster) seeds() (addresses []string) {
	if c.o.Seeds == nil {
		return nil
	}
	for rec := range c.o.Seeds.Snapshot().List(seedType, "") {
		var s seed
		if json.Unmarshal(rec.Spec, &s) == nil && s.Address != "" {
			addresses = append(addresses, s.Address)
		}
	}
	return addresses
}
