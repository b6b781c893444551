package envoy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	runtimev3 "github.com/envoyproxy/go-control-plane/envoy/service/runtime/v3"
)

// ErrUnsupported marks what a configuration asks for and this stand-in does not do.
var ErrUnsupported = errors.New("not supported by the Envoy stand-in")

// Options say which proxy to be and where its control plane is. Only ControlPlane and CA are always needed.
type Options struct {
	ControlPlane string // https://host:port
	CA           []byte // PEM, verifies the bootstrap's server

	ProxyType  string // dataplane (the default), ingress or egress
	Mesh, Name string // taken from Resource where empty
	Resource   string // Dataplane, ZoneIngress or ZoneEgress as YAML or JSON; "" when it was created before
	Token      string
	TokenPath  string

	KumaDPVersion, EnvoyVersion string            // 2.0.8 and 1.22.7 by default
	Features                    []string          // nil: those of kuma-dp 2.0.8
	DNSPort, EmptyDNSPort       uint32            // 15054 and 15055 by default
	DynamicMetadata             map[string]string // sent as it is

	// DumpBytes makes its configuration dumps larger by as many bytes: a long field in the node's metadata.
	DumpBytes int
	// Traffic makes the proxy carry bytes through its listeners. Without it only the admin listener is opened.
	Traffic bool

	BootstrapRetry   time.Duration // between two tries; 3 s by default, as kuma-dp
	BootstrapTimeout time.Duration // 5 min by default, as kuma-dp
	Backoff          time.Duration // first pause before a new ADS stream, doubled up to ten times; 500 ms by default
	Log              *slog.Logger
}

func (o Options) withDefaults() Options {
	setDefault(&o.ProxyType, "dataplane")
	setDefault(&o.KumaDPVersion, "2.0.8")
	setDefault(&o.EnvoyVersion, "1.22.7")
	setDefault(&o.DNSPort, 15054)
	setDefault(&o.EmptyDNSPort, 15055)
	setDefault(&o.BootstrapRetry, 3*time.Second)
	setDefault(&o.BootstrapTimeout, 5*time.Minute)
	setDefault(&o.Backoff, 500*time.Millisecond)
	setDefault(&o.Log, slog.New(slog.DiscardHandler))
	if o.Features == nil {
		o.Features = []string{"feature-tcp-accesslog-via-named-pipe"}
	}
	if o.DynamicMetadata == nil {
		o.DynamicMetadata = map[string]string{"version.dependencies.coredns": "1.8.3"}
	}
	return o
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// Proxy is a running proxy. Its methods may be called from any goroutine.
type Proxy struct {
	// Set by Start, read-only after.
	log       *slog.Logger
	bootstrap *bootstrapv3.Bootstrap
	sidecar   *Sidecar
	backoff   time.Duration
	dumpBytes int
	stop      context.CancelFunc
	done      sync.WaitGroup
	traffic   *traffic
	admin     *admin

	mu        sync.Mutex // guards what follows
	state     *state
	connected bool
	streams   int
	lastError error // why the last stream ended
	failed    error // what this stand-in cannot do
	counters  map[Kind]Counter
	history   []Response
	rejects   map[Kind][]string
	draining  bool
	changed   chan struct{} // closed and replaced at every change
}

// Counter counts the responses of one kind.
type Counter struct{ Received, Accepted, Rejected int }

// Response is one response as it came.
type Response struct {
	Kind           Kind
	Version, Nonce string
	Names          []string // in the order of the response
	At             time.Time
	Rejected       string // why it was; "" when it was acknowledged
	Stream         int    // 1 for the first stream of the proxy
}

// Config is the configuration at one moment. The messages in it are shared: read only.
type Config struct {
	Connected   bool
	Initialized bool // the first listeners are in place
	Streams     int  // opened so far

	Clusters, WarmingClusters   map[string]*clusterv3.Cluster
	Endpoints                   map[string]*endpointv3.ClusterLoadAssignment // of active clusters, by the name asked for
	Listeners, WarmingListeners map[string]*listenerv3.Listener
	Secrets                     map[string]*tlsv3.Secret
	Routes                      map[string]*routev3.RouteConfiguration
	Runtimes                    map[string]*runtimev3.Runtime

	Versions map[Kind]string // last accepted
	Counters map[Kind]Counter
	Waiting  []string // what is warming and for what
	Dangling []string // references of the active configuration to clusters that are not there
	Findings []string // what Envoy tolerates and a sound control plane does not do, since the start
}

// Start gets a bootstrap and starts the proxy. ctx bounds the bootstrap only; Close ends the proxy.
func Start(ctx context.Context, o Options) (*Proxy, error) {
	o = o.withDefaults()
	b, side, err := o.bootstrap(ctx)
	if err != nil {
		return nil, err
	}
	return start(ctx, o, b, side)
}

func start(ctx context.Context, o Options, b *bootstrapv3.Bootstrap, side *Sidecar) (*Proxy, error) {
	p := &Proxy{
		log: o.Log.With("component", "envoy", "node", b.GetNode().GetId()), bootstrap: b, sidecar: side, backoff: o.Backoff, dumpBytes: o.DumpBytes,
		state: newState(), counters: make(map[Kind]Counter), rejects: make(map[Kind][]string), changed: make(chan struct{}),
	}
	for _, c := range b.GetStaticResources().GetClusters() {
		p.state.static[c.GetName()] = c
	}
	for _, layer := range b.GetLayeredRuntime().GetLayers() {
		if rtds := layer.GetRtdsLayer(); rtds != nil {
			p.state.runtime = append(p.state.runtime, rtds.GetName())
		}
	}
	ads, err := p.dialer(b.GetDynamicResources().GetAdsConfig())
	if err != nil {
		return nil, fmt.Errorf("the ADS source of the bootstrap: %w", err)
	}
	if b.GetDynamicResources().GetCdsConfig().GetAds() == nil || b.GetDynamicResources().GetLdsConfig().GetAds() == nil {
		return nil, errors.New("the bootstrap must take CDS and LDS from ADS")
	}
	var hds *dialer
	if b.GetHdsConfig() != nil {
		if hds, err = p.dialer(b.GetHdsConfig()); err != nil {
			return nil, fmt.Errorf("the HDS source of the bootstrap: %w", err)
		}
	}
	run, stop := context.WithCancel(context.WithoutCancel(ctx))
	p.stop = stop
	p.traffic = newTraffic(run, p, o.Traffic)
	if p.admin, err = startAdmin(run, p); err != nil {
		stop()
		return nil, err
	}
	p.done.Go(func() { p.runADS(run, ads) })
	if hds != nil {
		p.done.Go(func() { p.runHDS(run, hds) })
	}
	return p, nil
}

// Close ends the proxy as a process that ends: streams break, sockets close. It waits for everything and returns what the
// proxy could not do.
func (p *Proxy) Close() error {
	p.stop()
	p.admin.close()
	p.traffic.close()
	p.done.Wait()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.failed
}

// Bootstrap is what the control plane answered; read only.
func (p *Proxy) Bootstrap() (*bootstrapv3.Bootstrap, *Sidecar) { return p.bootstrap, p.sidecar }

// RejectNext makes the proxy reject the next response of a kind with a text, whatever is in it. Calls add up.
func (p *Proxy) RejectNext(kind Kind, text string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rejects[kind] = append(p.rejects[kind], text)
}

// History returns all responses since the start, in order.
func (p *Proxy) History() []Response {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.history)
}

// Config returns the configuration as it is now.
func (p *Proxy) Config() *Config {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.configLocked()
}

func (p *Proxy) configLocked() *Config {
	s := p.state
	c := &Config{
		Connected: p.connected, Initialized: s.listenersReady, Streams: p.streams,
		Endpoints: make(map[string]*endpointv3.ClusterLoadAssignment),
		Clusters:  clusterProtos(s.clusters), WarmingClusters: clusterProtos(s.warmingClusters),
		Listeners: listenerProtos(s.listeners), WarmingListeners: listenerProtos(s.warmingListeners),
		Secrets: maps.Clone(s.secrets), Routes: maps.Clone(s.routes), Runtimes: maps.Clone(s.runtimes),
		Versions: make(map[Kind]string), Counters: maps.Clone(p.counters),
		Waiting: s.waits(), Dangling: s.dangling(), Findings: slices.Clone(s.findings),
	}
	for _, active := range s.clusters {
		if active.assignment != nil {
			c.Endpoints[active.service()] = active.assignment
		}
	}
	for kind, sub := range s.subs {
		c.Versions[kind] = sub.version
	}
	return c
}

func clusterProtos(in map[string]*cluster) map[string]*clusterv3.Cluster {
	out := make(map[string]*clusterv3.Cluster, len(in))
	for name, c := range in {
		out[name] = c.proto
	}
	return out
}

func listenerProtos(in map[string]*listener) map[string]*listenerv3.Listener {
	out := make(map[string]*listenerv3.Listener, len(in))
	for name, l := range in {
		out[name] = l.proto
	}
	return out
}

// Wait returns when cond returns nil for the configuration. cond is called at every change, never twice at once. The error of a
// Wait that ends with ctx holds cond's last objection, what is still warming, and why the last stream ended. Once the
// configuration has asked for what the stand-in cannot do, Wait returns an ErrUnsupported.
func (p *Proxy) Wait(ctx context.Context, cond func(*Config) error) error {
	for {
		p.mu.Lock()
		c, changed, failed, last := p.configLocked(), p.changed, p.failed, p.lastError
		p.mu.Unlock()
		if failed != nil {
			return failed
		}
		objection := cond(c)
		if objection == nil {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			detail := ""
			if len(c.Waiting) > 0 {
				detail = "; warming: " + strings.Join(c.Waiting, ", ")
			}
			if last != nil {
				detail += "; last stream ended: " + last.Error()
			}
			return fmt.Errorf("%w: %w%s", ctx.Err(), objection, detail)
		}
	}
}

// Ready is a condition for Wait: everything is warm, every reference resolves.
func Ready(c *Config) error {
	switch {
	case !c.Connected:
		return errors.New("not connected")
	case !c.Initialized:
		return errors.New("not initialized")
	case len(c.Waiting) > 0:
		return errors.New("something is warming")
	case len(c.Dangling) > 0:
		return errors.New(strings.Join(c.Dangling, ", "))
	}
	return nil
}

// update changes what p.mu guards and wakes those who wait.
func (p *Proxy) update(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	close(p.changed)
	p.changed = make(chan struct{})
}

// fail notes what the stand-in cannot do; the first such thing stays.
func (p *Proxy) fail(format string, args ...any) error {
	err := fmt.Errorf("%w: %s", ErrUnsupported, fmt.Sprintf(format, args...))
	p.update(func() { p.failLocked(err) })
	return err
}

func (p *Proxy) failLocked(err error) {
	if p.failed == nil {
		p.failed = err
	}
}
