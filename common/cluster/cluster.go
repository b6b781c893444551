package cluster

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/meridian-mesh/meridian/common/store"
)

// What makes a dead member gone within 5 seconds: with three members each is probed within probeInterval*2, is suspected
// probeInterval later, and has suspicionMult*suspicionMaxMult*probeInterval to object where nobody confirms it: 4.5 s.
const (
	probeInterval    = 500 * time.Millisecond
	probeTimeout     = 300 * time.Millisecond
	suspicionMult    = 3
	suspicionMaxMult = 2

	gossipInterval   = 100 * time.Millisecond
	pushPullInterval = 5 * time.Second // what was lost on the way is here then
	connectTimeout   = 2 * time.Second
	leaveTimeout     = time.Second

	tellInterval = time.Second     // how often it is looked what this replica holds
	keyInterval  = 5 * time.Second // and what the file of keys
)

// strangerPatience is how long a replica that was never heard of may take to be found: what has just started, joins within it.
const strangerPatience = 8 * time.Second

// leaseTTL is how long after the death of a leader another may lead, at most.
const leaseTTL = 4 * time.Second

// Options is what a [Cluster] works with. All but the ports, Held, Seeds, Registerer and Log must be set.
type Options struct {
	Config Config
	// Name is the instance id: of all replicas, only this one has it.
	Name string
	// Plane returns the id of the plane's store. It changes when a database is restored.
	Plane   func() string
	Version string // of the program
	APIPort int    // where this replica serves the API
	// CallPort is where it takes the calls of the others (common/peers); 0: it does not.
	CallPort int
	// Held returns the names that this replica holds, by kind: 7 kinds at most. It is called often, from any goroutine.
	Held func() map[string][]string
	// Seeds is the store of the plane, where replicas say how the others find them; nil: they do not.
	Seeds      *store.Store
	Registerer prometheus.Registerer // nil: metrics are not registered
	Log        *slog.Logger

	transport memberlist.Transport // of tests; nil: sockets
}

// Cluster is the members of the plane. Safe for concurrent use.
type Cluster struct {
	// Set by New, read-only after.
	o       Options
	log     *slog.Logger
	self    Member              // without lists; Started tells the runs of one instance id apart
	ring    *memberlist.Keyring // nil: no keys
	list    *memberlist.Memberlist
	wake    chan struct{} // cap 1, level-triggered: there may be something to tell
	close   func() error  // once
	metrics *metrics

	announced string // id of the plane's store that the others were told first

	closed atomic.Bool

	mu      sync.Mutex           // guards what follows; never held while memberlist is called
	others  map[string]Member    // by name, without lists
	held    map[string]held      // by name; of others, those that are members
	absent  map[string]time.Time // by name, of those that are no members: since when they count as gone, or from when on they will
	leases  map[string]struct{}
	changed chan struct{} // closed at the next change
	refused map[string]time.Time
}

// New binds the address, where membership is on; Run then joins. Who does not call Run calls Close.
func New(o Options) (*Cluster, error) {
	if err := errors.Join(o.Config.Validate()...); err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	if o.Name == "" || o.Plane == nil {
		return nil, errors.New("cluster: Name and Plane must be set")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Held == nil {
		o.Held = func() map[string][]string { return nil }
	}
	c := &Cluster{
		o: o, log: o.Log.With("component", "cluster"), wake: make(chan struct{}, 1),
		self:   Member{Name: o.Name, Self: true, Version: o.Version, Started: time.Now().UTC().Round(0)},
		others: map[string]Member{}, held: map[string]held{}, absent: map[string]time.Time{}, leases: map[string]struct{}{},
		changed: make(chan struct{}), refused: map[string]time.Time{},
	}
	c.close = sync.OnceValue(func() error { return nil })
	c.metrics = newMetrics(o.Registerer)
	c.metrics.members.Set(1)
	if !o.Config.Enabled() {
		return c, nil
	}
	if err := c.listen(); err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	return c, nil
}

// listen opens the sockets. From here on others may find this replica.
func (c *Cluster) listen() error {
	c.announced = c.o.Plane() // before it is told: a change after this is noticed
	if _, err := c.meta().encode(); err != nil {
		return err
	}
	if file := c.o.Config.KeyFile; file != "" {
		keys, err := readKeys(file)
		if err != nil {
			return fmt.Errorf("keyFile: %w", err)
		}
		if c.ring, err = memberlist.NewKeyring(keys, keys[0]); err != nil {
			return fmt.Errorf("keyFile: %w", err)
		}
	}
	bind := c.o.Config.BindAddress
	if bind == "" {
		bind = "0.0.0.0"
	}
	cfg := memberlist.DefaultLANConfig()
	cfg.Name, cfg.Transport, cfg.Keyring = c.o.Name, c.o.transport, c.ring
	cfg.BindAddr, cfg.BindPort = bind, c.o.Config.BindPort
	cfg.AdvertiseAddr, cfg.AdvertisePort = c.o.Config.AdvertiseAddress, c.o.Config.BindPort
	cfg.ProbeInterval, cfg.ProbeTimeout = probeInterval, probeTimeout
	cfg.SuspicionMult, cfg.SuspicionMaxTimeoutMult = suspicionMult, suspicionMaxMult
	cfg.AwarenessMaxMultiplier = 2
	cfg.GossipInterval, cfg.PushPullInterval, cfg.TCPTimeout = gossipInterval, pushPullInterval, connectTimeout
	cfg.DeadNodeReclaimTime = time.Millisecond // a replica that comes back at another address is taken as soon as it was found dead
	cfg.Logger = log.New(&logWriter{log: c.log}, "", 0)
	d := delegate{c}
	cfg.Delegate, cfg.Events, cfg.Merge, cfg.Alive, cfg.Conflict = d, d, d, d, d
	list, err := memberlist.Create(cfg)
	if err != nil {
		return err
	}
	c.list = list
	local := memberOf(list.LocalNode(), c.meta())
	c.self.Address, c.self.API, c.self.Calls = local.Address, local.API, local.Calls
	c.close = sync.OnceValue(func() error {
		c.closed.Store(true)
		return list.Shutdown()
	})
	return nil
}

func (c *Cluster) meta() meta {
	return meta{Plane: c.o.Plane(), Version: c.o.Version, Started: c.self.Started, APIPort: c.o.APIPort, CallPort: c.o.CallPort}
}

// Run joins the others and tells them what this replica holds, until ctx ends. Then it leaves, so that nobody has to find out.
func (c *Cluster) Run(ctx context.Context) error {
	if c.list == nil {
		return nil
	}
	c.log.InfoContext(ctx, "membership is on", "address", c.self.Address, "encrypted", c.ring != nil, "join", c.o.Config.Join)
	g, groupCtx := errgroup.WithContext(ctx)
	g.Go(func() error { c.tell(groupCtx); return nil })
	g.Go(func() error { c.join(groupCtx); return nil })
	g.Go(func() error { c.keepSeeds(groupCtx); return nil })
	g.Go(func() error { c.rotate(groupCtx); return nil })
	_ = g.Wait() // none fails
	if c.closed.Load() {
		return nil
	}
	if err := c.list.Leave(leaveTimeout); err != nil {
		c.log.Warn("the other members may take this one for dead", "err", err)
	}
	return c.Close()
}

// Close leaves without a word: the others find out.
func (c *Cluster) Close() error { return c.close() }

// Members returns those that are there, by name, this process among them. Its own lists are of this moment, those of
// others what was heard last.
func (c *Cluster) Members() []Member {
	self := c.self
	self.Lists = bounded(c.holding())
	c.mu.Lock()
	defer c.mu.Unlock()
	all := []Member{self}
	for name, m := range c.others {
		if h, ok := c.held[name]; ok {
			m.Lists = h.Lists
		}
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Member returns an instance that is there, without its lists.
func (c *Cluster) Member(instance string) (m Member, there bool) {
	if instance == c.o.Name {
		return c.self, true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	m, there = c.others[instance]
	return m, there
}

// Gone says whether a replica of this plane is there no more, as far as is known here: a member that left or was found dead, and
// one that was never heard of and has not turned up 8 seconds after it was first asked for. It is how survivors find what the
// dead left open in the store. It may be wrong, as where a network is cut: what is closed by it, the one that lives opens again. With
// membership off every other replica is gone: there is one.
func (c *Cluster) Gone(instance string) bool {
	if instance == c.o.Name {
		return false
	}
	if c.list == nil {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, member := c.others[instance]; member {
		return false
	}
	now := time.Now()
	from, asked := c.absent[instance]
	if !asked {
		from = now.Add(strangerPatience)
		c.absent[instance] = from
		time.AfterFunc(strangerPatience, func() {
			c.mu.Lock()
			defer c.mu.Unlock()
			if _, absent := c.absent[instance]; absent {
				c.changedLocked()
			}
		})
	}
	return !now.Before(from)
}

// Changed returns a channel that is closed when the members, or the lists of another, are no longer what Members would return
// now, or Gone may give another answer. Who follows them takes the channel first, then asks: nothing is missed, and a slow
// follower delays nobody.
func (c *Cluster) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

func (c *Cluster) changedLocked() {
	close(c.changed)
	c.changed = make(chan struct{})
}

// Lead runs fn while this process leads under the lease of a name, as [store.Store.Lead] does, and tells the members.
func (c *Cluster) Lead(ctx context.Context, s *store.Store, name string, fn func(ctx context.Context, l store.Lease) error) error {
	c.metrics.leading.WithLabelValues(name).Set(0)
	return s.Lead(ctx, name, c.o.Name, leaseTTL, func(ctx context.Context, l store.Lease) error {
		c.log.InfoContext(ctx, "leading", "lease", name, "epoch", l.Epoch)
		c.setLease(name, true)
		defer func() {
			c.setLease(name, false)
			c.log.InfoContext(ctx, "no longer leading", "lease", name, "epoch", l.Epoch)
		}()
		return fn(ctx, l)
	})
}

func (c *Cluster) setLease(name string, has bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if has {
		c.leases[name] = struct{}{}
		c.metrics.leading.WithLabelValues(name).Set(1)
	} else {
		delete(c.leases, name)
		c.metrics.leading.WithLabelValues(name).Set(0)
	}
	c.wakeTell()
}

// wakeTell makes tell look at once.
func (c *Cluster) wakeTell() {
	select {
	case c.wake <- struct{}{}:
	default: // already awake
	}
}

// holding returns the names of this replica by kind.
func (c *Cluster) holding() map[string][]string {
	names := maps.Clone(c.o.Held())
	if names == nil {
		names = map[string][]string{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	names[Leases] = slices.Collect(maps.Keys(c.leases))
	return names
}

// tell keeps the others up with what this replica holds.
func (c *Cluster) tell(ctx context.Context) {
	ticker := time.NewTicker(tellInterval)
	defer ticker.Stop()
	plane := c.announced
	sent := map[string]uint64{} // by member and run: the version it has
	for {
		own := c.refresh()
		if now := c.o.Plane(); now != plane { // the database was restored; all replicas notice
			plane = now
			if err := c.list.UpdateNode(connectTimeout); err != nil {
				c.log.WarnContext(ctx, "the new id of the store is not told yet", "err", err)
			}
		}
		c.send(ctx, own, sent)
		select {
		case <-ctx.Done():
			return
		case <-c.wake:
		case <-ticker.C:
		}
	}
}

// refresh looks what this replica holds, and counts a version where that is new.
func (c *Cluster) refresh() held {
	lists := bounded(c.holding())
	c.mu.Lock()
	defer c.mu.Unlock()
	own := c.held[c.o.Name]
	if !equalLists(own.Lists, lists) {
		own = held{Name: c.o.Name, Started: c.self.Started, Version: own.Version + 1, Lists: lists}
		c.held[c.o.Name] = own
		c.changedLocked()
	}
	return own
}

// send gives own to the members that have an older version. Who does not get it has it from the next exchange of states.
func (c *Cluster) send(ctx context.Context, own held, sent map[string]uint64) {
	runs := c.runs()
	var to []*memberlist.Node
	there := map[string]bool{}
	for _, n := range c.list.Members() {
		if run, ok := runs[n.Name]; ok {
			there[run] = true
			if sent[run] < own.Version {
				sent[run] = own.Version
				to = append(to, n)
			}
		}
	}
	maps.DeleteFunc(sent, func(run string, _ uint64) bool { return !there[run] })
	if len(to) == 0 {
		return
	}
	msg, err := encodeHeld([]held{own})
	if err != nil {
		c.log.ErrorContext(ctx, "what this replica holds cannot be told", "err", err)
		return
	}
	var g errgroup.Group
	g.SetLimit(8)
	for _, n := range to {
		g.Go(func() error {
			if err := c.list.SendReliable(n, msg); err != nil {
				c.log.DebugContext(ctx, "member not told what this replica holds", "member", n.Name, "err", err)
			}
			return nil
		})
	}
	_ = g.Wait() // none fails
}

// runs returns which run of each other member is there.
func (c *Cluster) runs() map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	runs := make(map[string]string, len(c.others))
	for name, m := range c.others {
		runs[name] = name + " " + m.Started.String()
	}
	return runs
}

// rotate follows the file of keys.
func (c *Cluster) rotate(ctx context.Context) {
	if c.ring == nil {
		return
	}
	ticker := time.NewTicker(keyInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			c.reloadKeys(ctx)
		}
	}
}

func (c *Cluster) reloadKeys(ctx context.Context) {
	keys, err := readKeys(c.o.Config.KeyFile)
	if err == nil && slices.EqualFunc(keys, c.ring.GetKeys(), slices.Equal) {
		return
	}
	if err == nil {
		err = replaceKeys(c.ring, keys)
	}
	if err != nil {
		c.log.ErrorContext(ctx, "keys not replaced: those from before stay in use", "err", err)
		return
	}
	c.log.InfoContext(ctx, "keys replaced", "keys", len(keys))
}
