// Package admin answers what operators ask about the proxies of a zone: it asks the proxy at its administration port, or tells what
// the control plane last sent to it.
//
// A proxy may have registered itself, so that where its administration is is what the proxy says. What it says can make the control
// plane do little: a GET of one of three fixed paths, and then
//
//   - over TLS with the zone's own authority for administration ports, so that nothing is asked of whoever is not a proxy that this
//     control plane configured for that very address, or
//   - in plain text at a loopback address, if that is where Envoy's own administration listens, and if the proxy's stream comes from
//     this host: else the administration is on another host's loopback, and the port here is somebody else's.
//
// Redirects are not followed, no proxy of the environment is used, and answers are bounded in time and size.
package admin

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"

	"github.com/meridian-mesh/meridian/api/codec"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/server"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/zone/proxies"
	"github.com/meridian-mesh/meridian/zone/xds"
)

// Bounds on a question.
const (
	dialTimeout = 3 * time.Second
	timeout     = 5 * time.Second
	// maxAnswerBytes is the largest answer that is passed on. It must fit a message to the global, 10 MiB by default.
	maxAnswerBytes = 10<<20 - 64<<10
	// maxWaiting is how many questions wait for each that may be on its way.
	maxWaiting = 4
)

// Options are what an Asker needs. All but Resolve, Local, Registerer and Log must be set.
type Options struct {
	Config
	Store *store.Store
	// Proxies tells who is connected. It is [proxies.Registry].
	Proxies interface {
		Look(nodeID string) (proxies.Look, bool)
	}
	// Sent tells what was sent. It is [xds.Server].
	Sent interface {
		Look(nodeID string) (xds.Look, bool)
	}
	// Authority makes the certificate that proxies are asked with. It is [mtls.Authority].
	Authority interface {
		AdminClient(ca []byte) (*tls.Config, error)
	}
	// Resolve returns the addresses of a host name; nil: the system's resolver.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	// Local says whether an address is one of this host's; nil: those of its interfaces are.
	Local      func(netip.Addr) bool
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// Asker asks the proxies of a zone. It is safe for concurrent use.
type Asker struct {
	o       Options
	log     *slog.Logger
	metrics *metrics
	slots   chan struct{} // a token for each question on its way
	waiting atomic.Int64
}

var _ server.Proxies = (*Asker)(nil)

// New returns an Asker.
func New(o Options) (*Asker, error) {
	if err := errors.Join(o.Validate()...); err != nil {
		return nil, err
	}
	if o.Store == nil || o.Proxies == nil || o.Sent == nil || o.Authority == nil {
		return nil, errors.New("admin: Store, Proxies, Sent and Authority must be set")
	}
	if o.Resolve == nil {
		o.Resolve = resolve
	}
	if o.Local == nil {
		o.Local = local
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	a := &Asker{o: o, log: o.Log, metrics: newMetrics(), slots: make(chan struct{}, o.MaxConcurrent)}
	if o.Registerer != nil {
		if err := a.metrics.register(o.Registerer); err != nil {
			return nil, err
		}
	}
	return a, nil
}

// Ask implements [server.Proxies] for all views but the explanation. It takes 5 seconds and the wait for its turn at most.
func (a *Asker) Ask(ctx context.Context, q server.ProxyQuestion) ([]byte, error) {
	begun := time.Now()
	a.metrics.inFlight.Inc()
	body, err := a.ask(ctx, q)
	a.metrics.inFlight.Dec()
	a.metrics.asked(q.View, err, time.Since(begun))
	if err != nil {
		a.log.DebugContext(ctx, "a question about a proxy has no answer", "view", q.View, "type", q.Type, "mesh", q.Mesh, "name", q.Name, "err", err)
	}
	return body, err
}

func (a *Asker) ask(ctx context.Context, q server.ProxyQuestion) ([]byte, error) {
	p, err := a.find(q)
	if err != nil {
		return nil, err
	}
	release, err := a.turn(ctx)
	if err != nil {
		return nil, err
	}
	defer release()
	if q.View == server.ViewConfigDump && q.ControlPlane {
		return a.sent(p, q.IncludeEndpoints)
	}
	path, err := pathOf(q)
	if err != nil {
		return nil, err
	}
	return a.fetch(ctx, p, path, q.View == server.ViewConfigDump)
}

// turn waits until the question may go on its way.
func (a *Asker) turn(ctx context.Context) (release func(), err error) {
	release = func() { <-a.slots }
	select {
	case a.slots <- struct{}{}:
		return release, nil
	default:
	}
	busy := failure(server.AskBusy, "%d questions about proxies are on their way, which is as many as may be at a time", cap(a.slots))
	if a.waiting.Add(1) > int64(maxWaiting*cap(a.slots)) {
		a.waiting.Add(-1)
		return nil, busy
	}
	defer a.waiting.Add(-1)
	late := time.NewTimer(a.o.MaxWait)
	defer late.Stop()
	select {
	case a.slots <- struct{}{}:
		return release, nil
	case <-late.C:
		return nil, busy
	case <-ctx.Done():
		return nil, fmt.Errorf("wait to ask a proxy: %w", ctx.Err())
	}
}

// asked is the proxy that a question is about.
type asked struct {
	key     store.Key
	nodeID  string
	address string // that its resource says, "" when it says none
	look    proxies.Look
	online  bool
}

// String names the proxy in errors.
func (p *asked) String() string { return fmt.Sprintf("%s %q", p.key.Type, p.key.Name) }

// find returns the proxy that a question is about. It need not be connected.
func (a *Asker) find(q server.ProxyQuestion) (*asked, error) {
	p := &asked{key: store.Key{Type: string(q.Type), Mesh: q.Mesh, Name: q.Name}}
	rec, ok := a.o.Store.Snapshot().Get(p.key)
	if !ok {
		return nil, failure(server.AskNotFound, "There is no %s here", p)
	}
	if rec.Origin != "" {
		return nil, failure(server.AskInvalid, "%s belongs to another zone. Ask its own control plane, or the global one", p)
	}
	var err error
	kind := proxies.Sidecar
	switch q.Type {
	case resource.Dataplane:
		var dp *meshv1.Dataplane
		dp, err = specOf[*meshv1.Dataplane](rec)
		p.address = dp.GetNetworking().GetAddress()
	case resource.ZoneIngress:
		var in *meshv1.ZoneIngress
		in, err = specOf[*meshv1.ZoneIngress](rec)
		kind, p.address = proxies.Ingress, in.GetNetworking().GetAddress()
	case resource.ZoneEgress:
		var out *meshv1.ZoneEgress
		out, err = specOf[*meshv1.ZoneEgress](rec)
		kind, p.address = proxies.Egress, out.GetNetworking().GetAddress()
	default:
		return nil, failure(server.AskInvalid, "%s is no proxy", p)
	}
	if err != nil {
		return nil, err
	}
	p.nodeID = proxies.NodeID(kind, q.Mesh, q.Name)
	p.look, p.online = a.o.Proxies.Look(p.nodeID)
	return p, nil
}

func specOf[T proto.Message](rec *store.Record) (T, error) {
	spec, err := codec.SpecOf[T](rec)
	if err != nil {
		return spec, fmt.Errorf("read %s: %w", rec.Key, err)
	}
	return spec, nil
}

func failure(reason server.AskReason, format string, args ...any) *server.AskError {
	return &server.AskError{Reason: reason, Details: fmt.Sprintf(format, args...)}
}
