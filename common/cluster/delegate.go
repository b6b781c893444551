package cluster

import (
	"fmt"
	"time"

	"github.com/hashicorp/memberlist"
)

const (
	// refusalInterval is how often the refusal of one member is logged, of maxRefusals members at most.
	refusalInterval = time.Minute
	maxRefusals     = 64
)

// delegate is what memberlist asks and tells. It does so while it holds locks of its own: nothing here blocks or calls it back.
type delegate struct{ c *Cluster }

var (
	_ memberlist.Delegate         = delegate{}
	_ memberlist.EventDelegate    = delegate{}
	_ memberlist.AliveDelegate    = delegate{}
	_ memberlist.MergeDelegate    = delegate{}
	_ memberlist.ConflictDelegate = delegate{}
)

// NodeMeta is what every member gets to know of this one.
func (d delegate) NodeMeta(int) []byte {
	b, err := d.c.meta().encode()
	if err != nil { // the id of the store has become longer
		d.c.log.Error("this replica cannot tell who it is", "err", err)
		return nil
	}
	return b
}

// NotifyAlive is asked about each member that is heard of, by whatever way.
func (d delegate) NotifyAlive(n *memberlist.Node) error { return d.c.check(n) }

// NotifyMerge is asked when this replica joins others or they join it.
func (d delegate) NotifyMerge(peers []*memberlist.Node) error {
	for _, n := range peers {
		if n.State == memberlist.StateDead || n.State == memberlist.StateLeft {
			continue
		}
		if err := d.c.check(n); err != nil {
			return err
		}
	}
	return nil
}

// check refuses who is not of this plane.
func (c *Cluster) check(n *memberlist.Node) error {
	if n.Name == c.o.Name {
		return nil
	}
	m, err := decodeMeta(n.Meta)
	if own := c.o.Plane(); err == nil && m.Plane != own {
		err = fmt.Errorf("it is of the plane whose store is %s, this of %s", m.Plane, own)
	}
	if err == nil {
		return nil
	}
	c.metrics.refused.Inc()
	if c.firstRefusal(n.Name + " " + n.Address()) {
		c.log.Error("member refused", "member", n.Name, "address", n.Address(), "err", err)
	}
	return fmt.Errorf("member %s at %s refused: %w", n.Name, n.Address(), err)
}

// firstRefusal says whether a refusal is to be logged.
func (c *Cluster) firstRefusal(of string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	if last, ok := c.refused[of]; ok && now.Sub(last) < refusalInterval {
		return false
	}
	if len(c.refused) >= maxRefusals {
		clear(c.refused)
	}
	c.refused[of] = now
	return true
}

// NotifyConflict tells of two live processes with one instance id. The one that was here first stays a member.
func (d delegate) NotifyConflict(existing, other *memberlist.Node) {
	if d.c.firstRefusal("conflict " + other.Name + " " + other.Address()) {
		d.c.log.Error("two members have the same instance id", "member", existing.Name, "address", existing.Address(), "other", other.Address())
	}
}

// NotifyJoin is told of each member that is there, this one too.
func (d delegate) NotifyJoin(n *memberlist.Node) {
	if d.c.put(n) {
		d.c.log.Info("member is here", "member", n.Name, "address", n.Address())
	}
}

// NotifyUpdate is told when a member says other things of itself, such as when it was restarted before anyone missed it.
func (d delegate) NotifyUpdate(n *memberlist.Node) {
	if d.c.put(n) {
		d.c.log.Info("member has changed", "member", n.Name, "address", n.Address())
	}
}

func (c *Cluster) put(n *memberlist.Node) bool {
	m, err := decodeMeta(n.Meta)
	if n.Name == c.o.Name || err != nil { // NotifyAlive has refused what cannot be read
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.others[n.Name] = memberOf(n, m)
	c.metrics.members.Set(float64(1 + len(c.others)))
	delete(c.absent, n.Name)
	if h, ok := c.held[n.Name]; ok && !h.Started.Equal(m.Started) {
		delete(c.held, n.Name)
	}
	c.changedLocked()
	c.wakeTell() // it does not know what this replica holds
	return true
}

// NotifyLeave is told when a member has left or was found dead.
func (d delegate) NotifyLeave(n *memberlist.Node) {
	if n.Name == d.c.o.Name {
		return
	}
	d.c.metrics.departures.Inc()
	d.c.remove(n.Name)
	d.c.log.Info("member is gone", "member", n.Name, "address", n.Address())
}

func (c *Cluster) remove(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.others, name)
	c.metrics.members.Set(float64(1 + len(c.others)))
	delete(c.held, name)
	c.absent[name] = time.Now()
	c.changedLocked()
}

// GetBroadcasts has nothing: lists may be too long for a packet.
func (delegate) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState is the lists of all members, so that each exchange spreads them.
func (d delegate) LocalState(bool) []byte {
	c := d.c
	c.mu.Lock()
	all := make([]held, 0, len(c.held))
	for _, h := range c.held {
		all = append(all, h)
	}
	c.mu.Unlock()
	b, err := encodeHeld(all)
	if err != nil {
		c.log.Error("what is held cannot be told", "err", err)
	}
	return b
}

// MergeRemoteState takes the lists of all members that another knows.
func (d delegate) MergeRemoteState(b []byte, _ bool) { d.c.take(b) }

// NotifyMsg takes the lists of one member.
func (d delegate) NotifyMsg(b []byte) { d.c.take(b) }

// take keeps what is newer than what is known, of members only.
func (c *Cluster) take(b []byte) {
	all, refused, err := decodeHeld(b)
	if err != nil || refused > 0 {
		c.log.Warn("what members hold cannot be read", "members", refused, "err", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	changed := false
	for _, h := range all {
		m, member := c.others[h.Name]
		if !member || !m.Started.Equal(h.Started) || h.Version <= c.held[h.Name].Version {
			continue
		}
		c.held[h.Name] = h
		changed = true
	}
	if changed {
		c.changedLocked()
	}
}
