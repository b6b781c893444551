package reconcile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"runtime"
	"slices"
	"sync"
	"time"
	"weak"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/vips"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/zone/envoy"
	"github.com/meridian-mesh/meridian/zone/mtls"
	"github.com/meridian-mesh/meridian/zone/topology"
	"github.com/meridian-mesh/meridian/zone/xds"
)

const (
	defaultHoldoff = 5 * time.Millisecond
	// batchSize is how many configurations are made between two looks at what happened meanwhile.
	batchSize = 32
	// keepIdentity is how long the certificates of a proxy that has gone are kept for its return.
	keepIdentity = time.Minute
	// retryStore is how long to wait after a failed write.
	retryStore = time.Second
	// maxWarnings is how many different warnings are logged for one proxy while it is connected.
	maxWarnings = 20
)

// Publisher is where configurations go. Neither method may block.
type Publisher interface {
	Publish(nodeID string, c *xds.Config)
	Forget(nodeID string)
}

// Status is told what became of a proxy's configuration. Neither method may block.
type Status interface {
	// Certificate tells what a proxy proves its identity with; nil when it needs no certificate.
	Certificate(nodeID string, c *Certificate)
	// ConfigError tells why a proxy keeps an older configuration than it should have; "" when that is over.
	ConfigError(nodeID, text string)
}

// Authority issues certificates. It is [mtls.Authority].
type Authority interface {
	Roots(mesh string, spec *meshv1.Mesh, secrets map[string][]byte) (*mtls.Roots, error)
	Issue(ctx context.Context, spec *meshv1.Mesh, secrets map[string][]byte, req mtls.IdentityRequest) (*mtls.Identity, error)
	Forget(mesh string)
}

// Input is what the configuration of a proxy is made from. All of it is read-only, and valid during the call only.
type Input struct {
	World *topology.World
	// Mesh and Dataplane are those of a sidecar or gateway; nil for ingresses and egresses.
	Mesh      *topology.Mesh
	Dataplane *meshv1.Dataplane
	Proxy     Connected
}

// Builder makes the configuration of a proxy. It must be a pure function of its input and safe for concurrent use. The output
// becomes the caller's.
type Builder func(in *Input) (*envoy.Output, error)

// Builders are the functions that make configurations; where one is nil, proxies of its kind get none.
type Builders struct {
	Sidecar, Gateway, Ingress, Egress, Proxyless Builder
	// LoadAssignment makes the endpoints of a cluster.
	LoadAssignment func(mesh *topology.Mesh, ref envoy.EndpointRef) (*endpointv3.ClusterLoadAssignment, error)
}

// of returns the builder for a proxy. dp is its Dataplane; nil for ingresses and egresses.
func (b *Builders) of(c *Connected, dp *meshv1.Dataplane) Builder {
	switch {
	case c.Kind == Ingress:
		return b.Ingress
	case c.Kind == Egress:
		return b.Egress
	case c.Proxyless:
		return b.Proxyless
	case dp.GetNetworking().GetGateway().GetType() == meshv1.Dataplane_Networking_Gateway_BUILTIN:
		return b.Gateway
	default:
		return b.Sidecar
	}
}

// Options are what a Reconciler needs.
type Options struct {
	Store     *store.Store
	Zone      string // the name of this zone
	Publisher Publisher
	Status    Status
	Authority Authority
	Builders  Builders
	// Holdoff is how long after the first change of a burst its other changes are waited for; 5 ms when 0, none when negative.
	// Later changes do not make it longer.
	Holdoff time.Duration
	// Workers is how many configurations are made at once; 0: as many as there are processors.
	Workers int
	// DNS says which virtual addresses services get; the zero value means the defaults.
	DNS vips.Config
	// Resolve returns the addresses of a host name; nil: the system's resolver.
	Resolve    func(ctx context.Context, host string) ([]string, error)
	Now        func() time.Time      // nil: time.Now
	Registerer prometheus.Registerer // nil: metrics are not registered
	Log        *slog.Logger
}

// Reconciler configures the proxies of a zone.
type Reconciler struct {
	// Set by New, read-only after.
	store     *store.Store
	zone      string
	publisher Publisher
	status    Status
	builders  Builders
	holdoff   time.Duration
	workers   int
	now       func() time.Time
	log       *slog.Logger
	metrics   *metrics

	assignments assignments
	trust       trust
	interned    interned
	inbox       inbox
	hosts       *resolver
	looks       chan *look    // those who wait to look at the World
	stopped     chan struct{} // closed when the loop has ended
	offer       *offer
	addresses   *addresses

	// Owned by the goroutine of Run; workers read the World.
	types    []string
	world    *topology.World
	revision store.Revision // that the World is at
	woken    time.Time      // when a change was seen that the World does not have yet; zero: there is none
	proxies  map[string]*proxy
	byMesh   index[string]     // sidecars
	byForm   index[serviceKey] // by services whose form they depend on
	byEnds   index[serviceKey] // by services whose endpoints they have
	zonal    set[*proxy]       // ingresses and egresses
	hosted   set[*proxy]       // sidecars whose address is a host name
	failed   set[*proxy]       // what they depend on is not known
	fresh    []*proxy          // to do: those that have nothing yet
	queue    []*proxy          // to do
	kept     map[string]kept   // identities of proxies that have gone
	renewAt  time.Time         // when to look at identities next; zero: never
	skip     func(cause) bool  // of tests: causes whose marks are lost
}

type kept struct {
	identities
	until time.Time
}

// New returns a Reconciler without proxies.
func New(o Options) (*Reconciler, error) {
	r := &Reconciler{
		store: o.Store, zone: o.Zone, publisher: o.Publisher, status: o.Status, builders: o.Builders,
		holdoff: cmp.Or(o.Holdoff, defaultHoldoff), workers: cmp.Or(o.Workers, runtime.GOMAXPROCS(0)), now: o.Now, log: o.Log,
		metrics: newMetrics(), types: topology.Types(),
		proxies: make(map[string]*proxy), byMesh: make(index[string]), byForm: make(index[serviceKey]), byEnds: make(index[serviceKey]),
		zonal: make(set[*proxy]), failed: make(set[*proxy]), hosted: make(set[*proxy]), kept: make(map[string]kept),
	}
	if r.now == nil {
		r.now = time.Now
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	r.assignments = assignments{load: o.Builders.LoadAssignment, byRef: make(map[string]*assignment)}
	r.trust = trust{authority: o.Authority, byMesh: make(map[string]trusted)}
	r.interned = interned{byKey: make(map[internKey]weak.Pointer[xds.Resource])}
	r.inbox.wake = make(chan struct{}, 1)
	r.hosts = newResolver(o.Resolve, r.log)
	r.looks, r.stopped = make(chan *look, maxLooks), make(chan struct{})
	r.offer = newOffer(o.Store, r.log)
	if o.DNS == (vips.Config{}) {
		o.DNS = vips.DefaultConfig()
	}
	r.addresses = newAddresses(o.DNS, o.Store, r.log)
	r.metrics.watch(r)
	if o.Registerer != nil {
		if err := r.metrics.register(o.Registerer); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// Run configures proxies until ctx ends. It must be called once. Proxies may connect before.
func (r *Reconciler) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.loop(ctx) })
	g.Go(func() error { return r.hosts.run(ctx) })
	g.Go(func() error { return r.offer.run(ctx) })
	g.Go(func() error { return r.addresses.run(ctx) })
	return g.Wait()
}

// always is ready to be received from.
var always = func() <-chan struct{} { c := make(chan struct{}); close(c); return c }()

func (r *Reconciler) loop(ctx context.Context) error {
	defer close(r.stopped)
	head := r.store.Snapshot()
	r.load(head)
	holdoff, renew := newTimer(), newTimer()
	defer holdoff.Stop()
	defer renew.Stop()
	var renewSet time.Time
	for {
		next, work := head.Next(), (<-chan struct{})(nil)
		if !r.woken.IsZero() {
			next = nil // the holdoff takes in whatever comes until it ends
		}
		if len(r.fresh)+len(r.queue) > 0 {
			work = always
		}
		if !r.renewAt.Equal(renewSet) {
			if renewSet = r.renewAt; renewSet.IsZero() {
				renew.Stop()
			} else {
				renew.Reset(max(renewSet.Sub(r.now()), 0))
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("configure proxies: %w", ctx.Err())
		case <-next:
			if head = r.store.Snapshot(); r.concerns(head) {
				r.woken = time.Now()
				holdoff.Reset(max(r.holdoff, 0))
			} else {
				r.revision = head.Revision() // deletions since are not remembered for ever
			}
		case <-holdoff.C:
			head = r.store.Snapshot()
			if err := r.catchUp(head); err != nil {
				return err
			}
		case <-r.inbox.wake:
			// What a proxy connects with is in the store before it does.
			head = r.store.Snapshot()
			if err := r.catchUp(head); err != nil {
				return err
			}
			holdoff.Stop()
			r.takeInbox()
		case l := <-r.looks:
			r.show(l)
		case byHost := <-r.hosts.results:
			r.setAddresses(byHost)
		case <-r.addresses.settle.C:
			head = r.store.Snapshot()
			if err := r.catchUp(head); err != nil {
				return err
			}
			holdoff.Stop()
			r.settleAddresses()
		case <-renew.C:
			renewSet, r.renewAt = time.Time{}, time.Time{}
			r.lookAtIdentities()
		case <-work:
			if err := r.step(ctx); err != nil {
				return err
			}
		}
	}
}

func newTimer() *time.Timer {
	t := time.NewTimer(time.Hour)
	t.Stop()
	return t
}

// load makes the World anew. All proxies are marked.
func (r *Reconciler) load(head *store.Snapshot) {
	w := topology.New(r.zone, r.log)
	w.Load(head)
	w.SetAddresses(r.hosts.known())
	r.world, r.revision, r.woken = w, head.Revision(), time.Time{}
	r.loadAddresses(head)
	for _, p := range r.proxies {
		r.need(p, needAll|needSecrets, causeMesh, time.Now())
	}
	r.wantHosts()
	r.offer.set(w.AvailableServices())
}

// concerns reports whether anything happened since the World's revision that it is made from.
func (r *Reconciler) concerns(head *store.Snapshot) bool {
	return head.LastChange(string(resource.Config)) > r.revision ||
		slices.ContainsFunc(r.types, func(t string) bool { return head.LastChange(t) > r.revision })
}

// catchUp takes in what happened until head, and marks the proxies that it can affect.
func (r *Reconciler) catchUp(head *store.Snapshot) error {
	since := r.woken
	if since.IsZero() {
		since = time.Now()
	}
	r.woken = time.Time{}
	var list []store.Change
	tables, err := r.changedTables(head)
	for _, typ := range r.types {
		var changes iter.Seq[store.Change]
		if err == nil {
			changes, err = head.Changes(typ, r.revision)
		}
		if errors.Is(err, store.ErrCompacted) {
			r.log.Info("the topology is read anew: more was deleted at once than is remembered")
			r.load(head)
			return nil
		} else if err != nil {
			return fmt.Errorf("follow the store from revision %d: %w", r.revision, err)
		}
		list = slices.AppendSeq(list, changes)
	}
	r.revision = head.Revision()
	if len(list)+len(tables) == 0 {
		return nil
	}
	r.metrics.reconciles.Inc()
	d := r.world.Apply(list)
	r.renewAddresses(head, d, tables)
	r.mark(d, since)
	return nil
}

// takeInbox takes in which proxies came and went.
func (r *Reconciler) takeInbox() {
	for _, e := range r.inbox.take() {
		if e.connected == nil {
			r.disconnect(e.nodeID)
		} else {
			r.connect(*e.connected, e.at)
		}
	}
}

func (r *Reconciler) connect(c Connected, at time.Time) {
	if p := r.proxies[c.NodeID]; p != nil { // what it says of itself is another
		if p.Kind == c.Kind && p.Mesh == c.Mesh && p.Name == c.Name {
			p.Connected = c
			r.need(p, needAll|needSecrets, causeConnect, at)
			return
		}
		r.disconnect(c.NodeID)
	}
	p := &proxy{Connected: c, fresh: true}
	if k, ok := r.kept[c.NodeID]; ok {
		p.identity = k.identities
		delete(r.kept, c.NodeID)
	}
	r.proxies[c.NodeID] = p
	if c.Kind == Sidecar {
		r.byMesh.add(c.Mesh, p)
	} else {
		r.zonal[p] = struct{}{}
		if c.Kind == Ingress {
			r.offer.connected(c.Name)
		}
	}
	r.metrics.proxies.WithLabelValues(c.Kind.String()).Inc()
	r.need(p, needAll|needSecrets, causeConnect, at)
}

func (r *Reconciler) disconnect(nodeID string) {
	p := r.proxies[nodeID]
	if p == nil {
		return
	}
	p.gone = true // it may be in a queue
	delete(r.proxies, nodeID)
	r.byMesh.remove(p.Mesh, p)
	delete(r.zonal, p)
	delete(r.failed, p)
	r.setHost(p, "")
	r.setDependencies(p, nil, nil)
	r.assignments.release(p.refs)
	if p.Kind == Ingress {
		r.offer.disconnected(p.Name)
	}
	if len(p.identity) > 0 {
		until := r.now().Add(keepIdentity)
		r.kept[nodeID] = kept{p.identity, until}
		r.lookAt(until)
	}
	if p.warns() {
		r.metrics.warned.Dec()
	}
	r.metrics.proxies.WithLabelValues(p.Kind.String()).Dec()
	r.publisher.Forget(nodeID)
}

func (r *Reconciler) setDependencies(p *proxy, services, endpoints []serviceKey) {
	for _, k := range p.services {
		r.byForm.remove(k, p)
	}
	for _, k := range p.endpoints {
		r.byEnds.remove(k, p)
	}
	p.services, p.endpoints = services, endpoints
	for _, k := range p.services {
		r.byForm.add(k, p)
	}
	for _, k := range p.endpoints {
		r.byEnds.add(k, p)
	}
}

// need notes that something has to be done for a proxy.
func (r *Reconciler) need(p *proxy, n need, c cause, since time.Time) {
	if r.skip != nil && r.skip(c) {
		return
	}
	if p.failure != "" {
		n |= needAll | needSecrets // what it has is not what it should have
	}
	queued := p.need != 0
	p.need |= n
	if queued {
		return
	}
	p.cause, p.since = c, since
	if p.fresh {
		r.fresh = append(r.fresh, p)
	} else {
		r.queue = append(r.queue, p)
	}
}

// lookAt sees to it that identities are looked at by t.
func (r *Reconciler) lookAt(t time.Time) {
	if r.renewAt.IsZero() || t.Before(r.renewAt) {
		r.renewAt = t
	}
}

// lookAtIdentities marks the proxies whose certificates are due, or will be in a moment, and forgets those of proxies that did
// not return.
func (r *Reconciler) lookAtIdentities() {
	now := r.now()
	soon := now.Add(time.Second)
	for _, p := range r.proxies {
		for _, id := range p.identity {
			if id.RenewAt.After(soon) {
				r.lookAt(id.RenewAt)
			} else if id.RenewAt.After(now) {
				r.lookAt(soon)
			} else {
				r.need(p, needSecrets, causeCertificate, time.Now())
			}
		}
	}
	for nodeID, k := range r.kept {
		if k.until.After(now) {
			r.lookAt(k.until)
		} else {
			delete(r.kept, nodeID)
		}
	}
}

// take returns the proxies of the next batch, those that have nothing yet first.
func (r *Reconciler) take() []*proxy {
	var batch []*proxy
	for _, q := range []*[]*proxy{&r.fresh, &r.queue} {
		for len(*q) > 0 && len(batch) < batchSize {
			p := (*q)[0]
			(*q)[0] = nil
			if *q = (*q)[1:]; !p.gone {
				batch = append(batch, p)
			}
		}
	}
	return batch
}

// step makes and publishes the configurations of one batch.
func (r *Reconciler) step(ctx context.Context) error {
	batch := r.take()
	results := make([]result, len(batch))
	if workers := min(r.workers, len(batch)); workers <= 1 {
		for i, p := range batch {
			results[i] = r.build(ctx, p)
		}
	} else {
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				for i := w; i < len(batch); i += workers {
					results[i] = r.build(ctx, batch[i])
				}
			})
		}
		wg.Wait()
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("configure proxies: %w", err)
	}
	for i := range results {
		r.finish(&results[i])
	}
	return nil
}

// finish takes in what a worker made, and publishes it when it is something new.
func (r *Reconciler) finish(res *result) {
	p := res.proxy
	r.metrics.regenerated.WithLabelValues(causeNames[p.cause]).Inc()
	r.metrics.seconds.Observe(res.seconds)
	p.need = 0
	r.setHost(p, res.host)
	if res.err != nil {
		r.assignments.sweep(res.refs)
		if errors.Is(res.err, errWait) {
			return // its mesh or its resource will mark it
		}
		r.fail(p, res, res.err)
		return
	}
	if res.partial != nil {
		r.fail(p, res, res.partial)
	} else if p.failure != "" {
		p.failure = ""
		delete(r.failed, p)
		r.status.ConfigError(p.NodeID, "")
		r.log.Info("a proxy has a good configuration again", "node", p.NodeID)
	}
	if res.out != p.out {
		r.warn(p, res.out.Warnings)
		r.assignments.use(res.refs)
		r.assignments.release(p.refs)
		p.out, p.refs = res.out, res.refs
		r.setDependencies(p, nil, nil)
		services, endpoints := dependencies(p, res.dataplane, res.out)
		r.setDependencies(p, services, endpoints)
	}
	r.setIdentity(p, res)
	if same(p.config, res.config) {
		p.fresh = false
		return
	}
	p.config, p.fresh = res.config, false
	r.publisher.Publish(p.NodeID, p.config)
	r.metrics.latency.Observe(time.Since(p.since).Seconds())
}

// setIdentity takes over the certificates of a result and tells of them.
func (r *Reconciler) setIdentity(p *proxy, res *result) {
	now := r.now()
	for _, id := range res.identity {
		if id.RenewAt.After(now) { // otherwise it could not be renewed
			r.lookAt(id.RenewAt)
		}
	}
	had, has := p.identity[p.Mesh], res.identity[p.Mesh]
	p.identity = res.identity
	if p.Kind != Sidecar {
		return
	}
	switch {
	case has == nil && (had != nil || !p.told):
		r.status.Certificate(p.NodeID, nil)
	case has != nil && (had != has || !p.told || res.supported != nil && !slices.Equal(res.supported, p.supported)):
		if res.supported != nil {
			p.supported = res.supported
		}
		r.status.Certificate(p.NodeID, &Certificate{
			Issued: has.Issued, NotAfter: has.NotAfter, Backend: has.Backend, Supported: p.supported,
		})
	}
	p.told = true
}

// warn tells what the new configuration of a proxy leaves out, each thing once.
func (r *Reconciler) warn(p *proxy, warnings []string) {
	switch had, has := p.warns(), len(warnings) > 0; {
	case has && !had:
		r.metrics.warned.Inc()
	case had && !has:
		r.metrics.warned.Dec()
	}
	for _, text := range warnings {
		if slices.Contains(p.warned, text) {
			continue
		}
		if len(p.warned) > maxWarnings {
			return
		}
		attrs := []any{"node", p.NodeID, "mesh", p.Mesh, "name", p.Name}
		if p.warned = append(p.warned, text); len(p.warned) > maxWarnings {
			r.log.Warn("no more is logged of what the configuration of a proxy leaves out", attrs...)
			return
		}
		r.log.Warn("the configuration of a proxy leaves out something that was asked for", append(attrs, "warning", text)...)
	}
}

// fail tells, once, why a proxy keeps the configuration it has, or a part of it.
func (r *Reconciler) fail(p *proxy, res *result, err error) {
	r.metrics.failures.Inc()
	r.failed[p] = struct{}{}
	text := err.Error()
	if text == p.failure {
		return
	}
	p.failure = text
	r.status.ConfigError(p.NodeID, text)
	attrs := []any{"node", p.NodeID, "mesh", p.Mesh, "name", p.Name, "err", err}
	if res.stack != nil {
		attrs = append(attrs, "stack", string(res.stack))
	}
	r.log.Error("a proxy keeps what it has: a new configuration, or a part of it, could not be made", attrs...)
}
