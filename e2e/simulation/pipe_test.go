package simulation

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// listener hands out in-memory connections. google.golang.org/grpc/test/bufconn would do, were it not for the timers
// that each of its connections fires at once when made: in a synctest bubble under the race detector that crashes the
// runtime of Go 1.26 now and then (SIGSEGV in runtime.(*timer).modify).
type listener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func listen() *listener {
	return &listener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *listener) Addr() net.Addr { return address{} }

func (l *listener) dial(ctx context.Context) (net.Conn, error) {
	a, b := newBuffer(), newBuffer()
	select {
	case l.conns <- &conn{in: a, out: b}:
		return &conn{in: b, out: a}, nil
	case <-l.closed:
		return nil, errors.New("connection refused")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// conn is one end of a connection; deadlines are not kept.
type conn struct{ in, out *buffer }

func (c *conn) Read(b []byte) (int, error)  { return c.in.read(b) }
func (c *conn) Write(b []byte) (int, error) { return c.out.write(b) }

func (c *conn) Close() error {
	c.in.close()
	c.out.close()
	return nil
}

func (c *conn) LocalAddr() net.Addr              { return address{} }
func (c *conn) RemoteAddr() net.Addr             { return address{} }
func (c *conn) SetDeadline(time.Time) error      { return nil }
func (c *conn) SetReadDeadline(time.Time) error  { return nil }
func (c *conn) SetWriteDeadline(time.Time) error { return nil }

type address struct{}

func (address) Network() string { return "memory" }
func (address) String() string  { return "memory" }

// bufferBytes is what one direction of a connection holds, like a socket's buffer.
const bufferBytes = 64 << 10

// buffer is one direction of a connection.
type buffer struct {
	mu     sync.Mutex
	cond   *sync.Cond
	data   []byte
	closed bool
}

func newBuffer() *buffer {
	b := &buffer{}
	b.cond = sync.NewCond(&b.mu)
	return b
}

func (b *buffer) read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for len(b.data) == 0 && !b.closed {
		b.cond.Wait()
	}
	if len(b.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p, b.data)
	b.data = b.data[n:]
	b.cond.Broadcast()
	return n, nil
}

func (b *buffer) write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := 0
	for n < len(p) {
		for len(b.data) >= bufferBytes && !b.closed {
			b.cond.Wait()
		}
		if b.closed {
			return n, io.ErrClosedPipe
		}
		m := min(len(p)-n, bufferBytes-len(b.data))
		b.data = append(b.data, p[n:n+m]...)
		n += m
		b.cond.Broadcast()
	}
	return n, nil
}

func (b *buffer) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.cond.Broadcast()
}
