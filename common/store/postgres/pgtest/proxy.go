package pgtest

import (
	"errors"
	"net"
	"sync"
	"testing"
	"time"
)

// Proxy passes connections on to a server, until told otherwise. It knows TCP, and nothing of Postgres.
type Proxy struct {
	listener net.Listener
	done     sync.WaitGroup

	mu      sync.Mutex // guards what follows
	targets []string
	next    int // the target whose turn it is
	conns   map[net.Conn]struct{}
	refuses bool
	delay   time.Duration
	edit    func(fromServer []byte) []byte
}

// NewProxy starts a proxy to the server that ends with the test.
func (s *Server) NewProxy(tb testing.TB) *Proxy {
	tb.Helper()
	return NewProxy(tb, s.Addr())
}

// NewProxy starts a proxy that ends with the test. Of several targets, host:port, it is what a load balancer is.
func NewProxy(tb testing.TB, targets ...string) *Proxy {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // at once
	if err != nil {
		tb.Fatal(err)
	}
	p := &Proxy{listener: l, targets: targets, conns: map[net.Conn]struct{}{}}
	p.done.Go(p.accept)
	tb.Cleanup(func() {
		_ = l.Close()
		p.Refuse(true)
		p.done.Wait()
	})
	return p
}

// Addr is where the proxy listens.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Port is the port of that address.
func (p *Proxy) Port() int { return p.listener.Addr().(*net.TCPAddr).Port }

// Target makes new connections go to these targets in turn, past those that refuse. Connections that are there stay.
func (p *Proxy) Target(targets ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.targets, p.next = targets, 0
}

// Cut closes every connection at once.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		if tcp, ok := c.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // a reset, as from a firewall
		}
		_ = c.Close()
	}
}

// Refuse closes every connection, and new ones as long as refuses is true.
func (p *Proxy) Refuse(refuses bool) {
	p.mu.Lock()
	p.refuses = refuses
	p.mu.Unlock()
	if refuses {
		p.Cut()
	}
}

// Slow makes whatever passes wait.
func (p *Proxy) Slow(delay time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = delay
}

// Edit changes what the server sends, read by read.
func (p *Proxy) Edit(edit func([]byte) []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.edit = edit
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			p.done.Go(func() { p.serve(client) })
		}
	}
}

// register makes c one that Cut closes; false: it is refused.
func (p *Proxy) register(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.refuses {
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *Proxy) serve(client net.Conn) {
	defer p.forget(client)
	if !p.register(client) {
		return
	}
	server := p.dial()
	if server == nil {
		return
	}
	defer p.forget(server)
	if !p.register(server) {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { p.pass(server, client, false) })
	both.Go(func() { p.pass(client, server, true) })
	both.Wait()
}

// dial connects to the target whose turn it is, or to the next that answers; nil: none does.
func (p *Proxy) dial() net.Conn {
	p.mu.Lock()
	targets, first := p.targets, p.next
	p.next++
	p.mu.Unlock()
	for i := range targets {
		c, err := net.Dial("tcp", targets[(first+i)%len(targets)]) //nolint:noctx // on the loopback interface it answers at once or not at all
		if err == nil {
			return c
		}
	}
	return nil
}

func (p *Proxy) forget(c net.Conn) {
	_ = c.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// pass copies until either side ends, and then ends both.
func (p *Proxy) pass(to, from net.Conn, fromServer bool) {
	defer func() { _ = errors.Join(to.Close(), from.Close()) }()
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		b := buffer[:n]
		p.mu.Lock()
		delay, edit := p.delay, p.edit
		p.mu.Unlock()
		if n > 0 && delay > 0 {
			<-time.After(delay)
		}
		if n > 0 && fromServer && edit != nil {
			b = edit(b)
		}
		if _, writeErr := to.Write(b); writeErr != nil || err != nil {
			return
		}
	}
}
