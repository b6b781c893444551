package cluster

import (
	"context"
	"math/rand/v2"
	"net"
	"time"
)

const (
	joinBase = 500 * time.Millisecond
	joinMax  = 10 * time.Second
)

// join keeps this replica joined, for ever: memberlist forgets the dead after a while, so that after a long partition nobody
// but this would bring the halves together again. Addresses at which a member is known to be are left alone.
func (c *Cluster) join(ctx context.Context) {
	if len(c.o.Config.Join) == 0 && c.o.Seeds == nil {
		return
	}
	backoff, warned := joinBase, false
	for {
		pause := joinMax
		if err := c.joinRound(ctx); err == nil {
			backoff, warned = joinBase, false
		} else {
			pause, backoff = backoff, min(2*backoff, joinMax)
			if !warned && len(c.Members()) == 1 { // said once: the others may just not be there yet
				warned = true
				c.log.WarnContext(ctx, "no other member found; going on trying", "err", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause/2 + rand.N(pause/2)):
		}
	}
}

// joinRound tries each address once, and returns why one of them could not be joined.
func (c *Cluster) joinRound(ctx context.Context) (failed error) {
	for _, t := range c.resolve(ctx) {
		if ctx.Err() != nil || t.err == nil && c.knows(t.address) {
			continue
		}
		err := t.err
		if err == nil {
			_, err = c.list.Join([]string{t.address})
		}
		if err != nil {
			failed = err
		}
	}
	return failed
}

func (c *Cluster) knows(address string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if address == c.self.Address {
		return true
	}
	for _, m := range c.others {
		if m.Address == address {
			return true
		}
	}
	return false
}

// target is an address to join.
type target struct {
	address string
	err     error // it is not known
}

// resolve returns the addresses of the join list, and those in the store.
func (c *Cluster) resolve(ctx context.Context) []target {
	var all []target
	for _, address := range c.seeds() {
		all = append(all, target{address: address})
	}
	for _, entry := range c.o.Config.Join {
		host, port, err := splitAddress(entry, c.o.Config.BindPort)
		if err != nil {
			all = append(all, target{entry, err})
			continue
		}
		ips := []net.IP{net.ParseIP(host)}
		if ips[0] == nil {
			ips, err = net.DefaultResolver.LookupIP(ctx, "ip", host)
		}
		if err != nil {
			all = append(all, target{entry, err})
			continue
		}
		for _, ip := range ips {
			all = append(all, target{address: (&net.TCPAddr{IP: ip, Port: port}).String()})
		}
	}
	return all
}
