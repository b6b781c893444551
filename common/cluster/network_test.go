package cluster

import (
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

// network is a network in memory, for a simulated clock: it can be cut, and what is sent to nobody is lost.
type network struct {
	mu    sync.Mutex // guards what follows
	nodes map[string]*wire
	cut   map[[2]string]bool
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	t.Cleanup(func() { time.Sleep(time.Minute) }) // the last: what memberlist has on its way ends, which takes simulated time
	return &network{nodes: map[string]*wire{}, cut: map[[2]string]bool{}}
}

// wire is the transport of one address.
type wire struct {
	n       *network
	address string
	packets chan *memberlist.Packet
	streams chan net.Conn
	gone    chan struct{}
	once    sync.Once
}

func (n *network) attach(address string) *wire {
	w := &wire{n: n, address: address, packets: make(chan *memberlist.Packet, 1000), streams: make(chan net.Conn, 100), gone: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nodes[address] = w
	return w
}

// part cuts the ways between two addresses, or mends them.
func (n *network) part(a, b string, cut bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[[2]string{a, b}], n.cut[[2]string{b, a}] = cut, cut
}

// reach returns the other end, nil where there is no way.
func (w *wire) reach(address string) *wire {
	w.n.mu.Lock()
	defer w.n.mu.Unlock()
	if w.n.cut[[2]string{w.address, address}] {
		return nil
	}
	return w.n.nodes[address]
}

func (w *wire) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	a, err := net.ResolveTCPAddr("tcp", w.address)
	if err != nil {
		return nil, 0, err
	}
	return a.IP, a.Port, nil
}

func (w *wire) WriteTo(b []byte, address string) (time.Time, error) {
	now := time.Now()
	if to := w.reach(address); to != nil {
		from := &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1}
		select {
		case to.packets <- &memberlist.Packet{Buf: append([]byte(nil), b...), From: from, Timestamp: now}:
		default: // lost
		}
	}
	return now, nil
}

func (w *wire) PacketCh() <-chan *memberlist.Packet { return w.packets }
func (w *wire) StreamCh() <-chan net.Conn           { return w.streams }

func (w *wire) DialTimeout(address string, timeout time.Duration) (net.Conn, error) {
	to := w.reach(address)
	if to == nil {
		time.Sleep(timeout)
		return nil, errors.New("timeout")
	}
	near, far := net.Pipe()
	select {
	case <-to.gone:
	case to.streams <- far:
		return near, nil
	}
	_, _ = near.Close(), far.Close()
	return nil, errors.New("connection refused")
}

func (w *wire) Shutdown() error {
	w.once.Do(func() {
		w.n.mu.Lock()
		defer w.n.mu.Unlock()
		if w.n.nodes[w.address] == w {
			delete(w.n.nodes, w.address)
		}
		close(w.gone)
	})
	return nil
}

// wants waits until the members that c knows are those, or the time is up, and returns how long it took.
func wants(t *testing.T, c *Cluster, within time.Duration, what string, is func([]Member) bool) time.Duration {
	t.Helper()
	started, timeout := time.Now(), time.After(within)
	for {
		changed := c.Changed()
		all := c.Members()
		if is(all) {
			return time.Since(started)
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("%s: not %s within %s: %+v", c.o.Name, what, within, all)
		}
	}
}

func names(want ...string) func([]Member) bool {
	return func(all []Member) bool {
		if len(all) != len(want) {
			return false
		}
		for i, m := range all {
			if m.Name != want[i] {
				return false
			}
		}
		return true
	}
}

func holds(member, kind, name string) func([]Member) bool {
	return func(all []Member) bool {
		for _, m := range all {
			if m.Name == member && m.Holds(kind, name) {
				return true
			}
		}
		return false
	}
}
