// Package oneport serves HTTP and gRPC on one port, because that is what proxies expect of a control plane: they ask for
// their start-up configuration over HTTP, and for all else over gRPC, at the same address.
//
// The two are told apart per request, not per connection: an HTTP/2 request whose content type is that of gRPC goes to the
// gRPC server, everything else to the HTTP handler, whatever else the connection carries. So net/http has to read the frames
// and gRPC is served through it. Deciding per connection, by looking at its first request, would leave frames to grpc-go,
// which is quicker; but a client that puts both on one connection would get errors that depend on which came first, and
// before grpc-go clients send anything they wait for settings, which whoever looks first would have to invent. What is lost
// is little: a stream to a proxy carries a few messages a second at most (the benchmarks compare the two), and pings,
// limits on streams and buffers are net/http's, set below. There is no punishment for clients that ping often, as grpc-go
// has it; frames that ask for an answer are bounded by net/http.
package oneport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/meridian-mesh/meridian/common/grpcrecover"
)

// MaxRequestBytes bounds gRPC messages that are received. Who sends them is not known while they are read, and each stream
// of each connection may send one.
const MaxRequestBytes = 4 << 20

const (
	// maxStreams bounds the requests at one time on one HTTP/2 connection. A proxy has three.
	maxStreams = 1024
	// headerTimeout also bounds the TLS handshake.
	headerTimeout  = 10 * time.Second
	idleTimeout    = 5 * time.Minute
	maxHeaderBytes = 64 << 10
	// writeTimeout is how long a connection may be unable to take a byte.
	writeTimeout = 30 * time.Second
)

// Options is what a [Server] needs.
type Options struct {
	// Name says in logs and errors what is served.
	Name string
	// Address is host:port; port 0 takes any free port.
	Address string
	// TLS nil serves plain text: HTTP/1.1, and HTTP/2 to clients that know that they may speak it.
	TLS *tls.Config
	// HTTP serves what is not gRPC; nil: 404. A request has RequestTimeout to arrive and to be answered.
	HTTP http.Handler
	// Register adds the services to the gRPC server; nil: there are none.
	Register func(grpc.ServiceRegistrar)
	// Drain, where set, is called first at shutdown, with a context that ends with the time that is left. It ends the gRPC
	// streams with a word of farewell; those that are still open when it returns are cancelled.
	Drain func(context.Context)

	// MaxConnections bounds the connections open at one time; further ones are closed at once.
	MaxConnections int
	// MaxMessageBytes bounds gRPC messages that are sent, and those that are received where it is less than [MaxRequestBytes].
	MaxMessageBytes int
	// RequestTimeout bounds HTTP requests, not gRPC; a handler may extend it with [http.ResponseController].
	RequestTimeout time.Duration
	// Keepalive is how long an HTTP/2 connection is silent before it is pinged, and how long it may take to answer.
	Keepalive time.Duration
	// ShutdownTimeout is how long what is in flight may take to finish.
	ShutdownTimeout time.Duration

	// Connections and Refused, where set, count open connections and those closed for MaxConnections.
	Connections prometheus.Gauge
	Refused     prometheus.Counter
	Log         *slog.Logger
}

// Server serves one port. The listener is bound from [New] on.
type Server struct {
	o    Options
	ln   *limited
	grpc *grpc.Server

	streams context.Context //nolint:containedctx // parent of the contexts of gRPC calls; ended at shutdown
	cut     context.CancelFunc

	refusing atomic.Bool // no connection is accepted any more

	mu       sync.Mutex     // guards what follows
	closing  bool           // no handler is started any more
	handlers sync.WaitGroup // running
}

// New binds the listener. Who does not call Run must call Close.
func New(o Options) (*Server, error) {
	if o.Log == nil || o.MaxConnections < 1 || o.MaxMessageBytes < 1 || o.RequestTimeout <= 0 || o.Keepalive <= 0 || o.ShutdownTimeout <= 0 {
		return nil, fmt.Errorf("%s: Log and every limit must be set", o.Name)
	}
	if o.HTTP == nil {
		o.HTTP = http.NotFoundHandler()
	}
	ln, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", o.Address)
	if err != nil {
		return nil, fmt.Errorf("%s: listen: %w", o.Name, err)
	}
	s := &Server{o: o, ln: &limited{Listener: ln, limit: int64(o.MaxConnections), open: o.Connections, refused: o.Refused}}
	s.streams, s.cut = context.WithCancel(context.Background())
	s.grpc = grpc.NewServer(append(grpcrecover.Options(o.Log),
		grpc.MaxRecvMsgSize(min(o.MaxMessageBytes, MaxRequestBytes)),
		grpc.MaxSendMsgSize(o.MaxMessageBytes))...)
	if o.Register != nil {
		o.Register(s.grpc)
	}
	return s, nil
}

// Addr is the address that is listened on.
func (s *Server) Addr() net.Addr { return s.ln.Addr() }

// Close releases the listener of a server that is not running.
func (s *Server) Close() error {
	s.cut()
	if err := s.ln.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("%s: close listener: %w", s.o.Name, err)
	}
	return nil
}

// Run serves until ctx ends. Then no connection is accepted any more, streams end, and requests in flight get
// ShutdownTimeout to finish; the rest is cut off. It returns nil after a shutdown that ctx asked for. It is called at most
// once.
func (s *Server) Run(ctx context.Context) error {
	defer s.cut()
	srv := &http.Server{
		Handler:           http.HandlerFunc(s.serve),
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		ErrorLog:          slog.NewLogLogger(s.o.Log.Handler(), slog.LevelDebug),
		Protocols:         new(http.Protocols),
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreams,
			SendPingTimeout:      s.o.Keepalive,
			PingTimeout:          s.o.Keepalive,
			WriteByteTimeout:     writeTimeout,
		},
		// Requests outlive ctx: they end by themselves during the shutdown.
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
	}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetHTTP2(s.o.TLS != nil)
	srv.Protocols.SetUnencryptedHTTP2(s.o.TLS == nil)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		s.o.Log.InfoContext(ctx, "serving", "address", s.ln.Addr().String(), "tls", s.o.TLS != nil)
		var err error
		if s.o.TLS != nil {
			srv.TLSConfig = s.o.TLS.Clone()
			err = srv.ServeTLS(s.ln, "", "")
		} else {
			err = srv.Serve(s.ln)
		}
		if !errors.Is(err, http.ErrServerClosed) && !(s.refusing.Load() && errors.Is(err, net.ErrClosed)) {
			return fmt.Errorf("%s: serve on %s: %w", s.o.Name, s.ln.Addr(), err)
		}
		return nil
	})
	g.Go(func() error {
		<-ctx.Done()
		s.shutdown(context.WithoutCancel(ctx), srv)
		return nil
	})
	return g.Wait() //nolint:wrapcheck // both are wrapped above
}

// Refuse accepts no connections from now on, and asks clients to leave those that they have with their next request. What is in
// flight, and Run, go on.
func (s *Server) Refuse() {
	s.refusing.Store(true)
	_ = s.ln.Close() // its only error is that it was closed before
}

// shutdown ends what is in flight: in good order within ShutdownTimeout, and otherwise not.
func (s *Server) shutdown(ctx context.Context, srv *http.Server) {
	grace, cancel := context.WithTimeout(ctx, s.o.ShutdownTimeout)
	defer cancel()
	if s.o.Drain != nil {
		s.o.Drain(grace)
	}
	s.cut()
	if err := srv.Shutdown(grace); err != nil {
		s.o.Log.WarnContext(ctx, "requests cut off at shutdown", "err", err)
		_ = srv.Close()
	}
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	done := make(chan struct{})
	go func() { s.handlers.Wait(); close(done) }()
	timer := time.NewTimer(s.o.ShutdownTimeout)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
		s.o.Log.ErrorContext(ctx, "handlers did not end at shutdown")
	}
}

// enter counts a handler, unless the server is closing.
func (s *Server) enter() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closing {
		s.handlers.Add(1)
	}
	return !s.closing
}

func (s *Server) serve(w http.ResponseWriter, r *http.Request) {
	if !s.enter() {
		http.Error(w, "closing", http.StatusServiceUnavailable)
		return
	}
	defer s.handlers.Done()
	if s.refusing.Load() {
		w.Header().Set("Connection", "close") // over HTTP/2, net/http makes a GOAWAY of it
	}
	if r.ProtoMajor == 2 && strings.Contains(r.Header.Get("Content-Type"), "application/grpc") {
		ctx, cancel := context.WithCancel(r.Context())
		defer cancel()
		defer context.AfterFunc(s.streams, cancel)()
		s.grpc.ServeHTTP(w, r.WithContext(ctx))
		return
	}
	// A client may neither send nor take its answer byte by byte. Where there are no deadlines there is a test at work.
	rc, until := http.NewResponseController(w), time.Now().Add(s.o.RequestTimeout)
	_ = rc.SetReadDeadline(until)
	_ = rc.SetWriteDeadline(until)
	defer func() {
		if p := recover(); p != nil && p != http.ErrAbortHandler { //nolint:errorlint // net/http's own test for it
			s.o.Log.ErrorContext(r.Context(), "handler panicked", "path", r.URL.Path, "err", fmt.Sprint(p))
			panic(http.ErrAbortHandler)
		} else if p != nil {
			panic(p)
		}
	}()
	s.o.HTTP.ServeHTTP(w, r)
}

// limited closes connections beyond a limit. One that waits to be accepted instead would look, to its client, like a
// server that is slow, and would keep a proxy from trying another control plane.
type limited struct {
	net.Listener
	limit   int64
	open    prometheus.Gauge   // nil: not counted
	refused prometheus.Counter // likewise

	n atomic.Int64
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err //nolint:wrapcheck // net/http looks for net.Error
		}
		if l.n.Add(1) <= l.limit {
			if l.open != nil {
				l.open.Inc()
			}
			return &counted{Conn: conn, l: l}, nil
		}
		l.n.Add(-1)
		if l.refused != nil {
			l.refused.Inc()
		}
		_ = conn.Close()
	}
}

type counted struct {
	net.Conn
	l    *limited
	once sync.Once
}

func (c *counted) Close() error {
	c.once.Do(func() {
		c.l.n.Add(-1)
		if c.l.open != nil {
			c.l.open.Dec()
		}
	})
	return c.Conn.Close() //nolint:wrapcheck // a connection's own error
}
