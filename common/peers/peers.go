package peers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/meridian-mesh/meridian/common/cluster"
	"github.com/meridian-mesh/meridian/common/store"
)

const (
	// maxBodyBytes bounds what is asked, maxAnswerBytes what is answered: the configuration of a large proxy takes 11 MiB.
	maxBodyBytes   = 1 << 20
	maxAnswerBytes = 32 << 20
	// maxServed bounds the calls that a replica answers at a time, maxWaiting those beside them that mostly wait. More are refused.
	maxServed  = 64
	maxWaiting = 1024

	// defaultTimeout is of calls that come without a deadline, maxTimeout of all.
	defaultTimeout = 30 * time.Second
	maxTimeout     = 10 * time.Minute

	dialTimeout = 2 * time.Second // with the handshake
	idleTimeout = 2 * time.Minute
	// A connection that was silent for pingAfter is asked for a sign of life, and ended pingTimeout later: whose machine died, says nothing.
	pingAfter   = 2 * time.Second
	pingTimeout = 2 * time.Second
	// drainTimeout is how long a stop waits for the calls that are being answered.
	drainTimeout = time.Second
)

// Handler answers a call. Its context ends with the deadline of the caller, and when that has gone. An error reaches the caller as
// an [*Error]: with the code of the one that is in it, if any. Handlers run at the same time.
type Handler func(ctx context.Context, body []byte) ([]byte, error)

// Options is what [Peers] work with. All but Registerer and Log must be set.
type Options struct {
	Config cluster.Config
	Name   string // instance id of this replica
	Store  *store.Store
	// Member returns an instance that is there.
	Member     func(instance string) (cluster.Member, bool)
	Registerer prometheus.Registerer // nil: metrics are not registered
	Log        *slog.Logger

	now func() time.Time // of tests; nil: time.Now
}

// Peers are the other replicas of the plane, to call and to be called by. Safe for concurrent use once Run was called.
type Peers struct {
	o         Options
	log       *slog.Logger
	identity  *identity
	handlers  map[string]handler // complete before Run
	metrics   *metrics
	listener  net.Listener // nil: membership is off
	transport *http.Transport
	serving   slots
	waiting   slots
}

// slots holds a value for each call that is being answered.
type slots chan struct{}

type handler struct {
	answer Handler
	slots  slots
}

// New binds the port, where membership is on. Who does not call Run calls Close.
func New(ctx context.Context, o Options) (*Peers, error) {
	if o.Name == "" || o.Store == nil || o.Member == nil {
		return nil, errors.New("peers: Name, Store and Member must be set")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.now == nil {
		o.now = time.Now
	}
	p := &Peers{
		o: o, log: o.Log.With("component", "peers"), identity: &identity{name: o.Name, store: o.Store, now: o.now},
		handlers: map[string]handler{}, metrics: newMetrics(o.Registerer),
		serving: make(slots, maxServed), waiting: make(slots, maxWaiting),
	}
	p.transport = &http.Transport{
		DialTLSContext: p.dial, DisableCompression: true, IdleConnTimeout: idleTimeout,
		Protocols: new(http.Protocols), HTTP2: &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
	}
	p.transport.Protocols.SetHTTP2(true)
	if !o.Config.Enabled() {
		return p, nil
	}
	bind := o.Config.BindAddress
	if bind == "" {
		bind = "0.0.0.0"
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", net.JoinHostPort(bind, strconv.Itoa(o.Config.PeerPort)))
	if err != nil {
		return nil, fmt.Errorf("peers: peerPort: %w", err)
	}
	p.listener = l
	return p, nil
}

// Port is where this replica takes calls, 0 where membership is off.
func (p *Peers) Port() int {
	if p.listener == nil {
		return 0
	}
	if a, ok := p.listener.Addr().(*net.TCPAddr); ok {
		return a.Port
	}
	return 0
}

// Handle has h answer the calls of a name, "area/verb". Before Run.
func (p *Peers) Handle(call string, h Handler) { p.handle(call, handler{h, p.serving}) }

// HandleWaiting is Handle for calls that wait for something to happen and cost little meanwhile. Many of them may wait, and none
// keeps others from being answered.
func (p *Peers) HandleWaiting(call string, h Handler) { p.handle(call, handler{h, p.waiting}) }

func (p *Peers) handle(call string, h handler) {
	p.handlers[call] = h
	p.metrics.expect(call)
}

// Run answers calls until ctx ends.
func (p *Peers) Run(ctx context.Context) error {
	if p.listener == nil {
		return nil
	}
	p.log.InfoContext(ctx, "other replicas may call", "address", p.listener.Addr().String())
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { p.keepAuthority(ctx); return nil })
	g.Go(func() error { return p.serve(ctx) })
	defer p.transport.CloseIdleConnections()
	return g.Wait()
}

// keepAuthority sees to it that the store has an authority: at the first start of the plane, and when the database was replaced.
func (p *Peers) keepAuthority(ctx context.Context) {
	for warned := false; ; {
		changed := p.o.Store.Changed(authorityKey.Type)
		err := p.identity.ensureAuthority(ctx)
		var again <-chan time.Time
		if err != nil && ctx.Err() == nil {
			if !warned {
				warned = true
				p.log.WarnContext(ctx, "no authority for replicas yet: they cannot call each other; going on trying", "err", err)
			}
			again = time.After(time.Second)
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-again:
		}
	}
}

// serve takes connections until ctx ends, then gives the calls that are being answered a moment.
func (p *Peers) serve(ctx context.Context) error {
	calls, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	srv := &http.Server{
		Handler: http.HandlerFunc(p.answer), TLSConfig: p.identity.server(), Protocols: p.transport.Protocols,
		BaseContext:       func(net.Listener) context.Context { return calls },
		ReadHeaderTimeout: 5 * time.Second, IdleTimeout: idleTimeout + time.Minute, // callers end connections, not callees
		HTTP2:    &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
		ErrorLog: slog.NewLogLogger(p.log.Handler(), slog.LevelDebug), // of whoever reaches the port
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.ServeTLS(p.listener, "", "") }()
	var err error
	select {
	case err = <-ended:
		err = fmt.Errorf("accept connections: %w", err)
	case <-ctx.Done():
		drain, stop := context.WithTimeout(calls, drainTimeout)
		_ = srv.Shutdown(drain) // late ones are ended next
		stop()
		<-ended
	}
	cancel()
	_ = srv.Close()
	p.serving.fill() // handlers return, and no other begins
	p.waiting.fill()
	return err
}

func (s slots) fill() {
	for range cap(s) {
		s <- struct{}{}
	}
}

// Close releases the port.
func (p *Peers) Close() error {
	p.transport.CloseIdleConnections()
	if p.listener == nil {
		return nil
	}
	return p.listener.Close()
}
