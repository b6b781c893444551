package simulation

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/server"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
	"github.com/meridian-mesh/meridian/global/admin"
	"github.com/meridian-mesh/meridian/global/insights"
	"github.com/meridian-mesh/meridian/global/kdsserver"
	"github.com/meridian-mesh/meridian/global/zones"
	"github.com/meridian-mesh/meridian/sync/kds"
	"github.com/meridian-mesh/meridian/zone/upstream"
)

// settings are what tests may change before a plane starts.
type settings struct {
	ackTimeout      time.Duration
	healthInterval  time.Duration // between health checks
	healthTimeout   time.Duration // without one, until the zone is cut off
	maxSessionAge   time.Duration // of a zone, until it is asked to connect anew; 0: none
	maxMessageBytes int
	store           store.Options
	mangle          func(store.Group) store.Group // what a faulty disk makes of a commit; nil: nothing
	registry        *prometheus.Registry
	log             *slog.Logger
}

func newSettings(t testing.TB) settings {
	return settings{
		ackTimeout: 30 * time.Second, healthInterval: 2 * time.Second, healthTimeout: 6 * time.Second, maxMessageBytes: 10 << 20,
		registry: prometheus.NewRegistry(), log: logger(t),
	}
}

// globalPlane is the KDS half of a global control plane: everything but its HTTP API. It can be stopped and started
// again over the same backend.
type globalPlane struct {
	settings
	backend store.Backend
	cluster string // the cluster id; "" leaves the one that is in the store
	net     *network

	st     *store.Store
	table  *zones.Table
	asks   *admin.Registry
	server *kdsserver.Server
	valve  *valve // between st and backend
	stop   func()
}

// network is what connects the planes of a test: connections to the current global, which a test can cut or freeze.
type network struct {
	mu       sync.Mutex
	listener *listener
	conns    map[*link]string // to the zone that dialled
	dead     map[string]bool  // zones without a network
}

// link is one side of a connection.
type link struct {
	net.Conn
	mu     sync.Mutex
	frozen chan struct{} // closed on thaw; nil when not frozen
}

func (l *link) Write(b []byte) (int, error) {
	l.mu.Lock()
	frozen := l.frozen
	l.mu.Unlock()
	if frozen != nil {
		<-frozen
	}
	return l.Conn.Write(b)
}

func (l *link) freeze() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.frozen == nil {
		l.frozen = make(chan struct{})
	}
}

func (l *link) thaw() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.frozen != nil {
		close(l.frozen)
		l.frozen = nil
	}
}

func (l *link) Close() error {
	l.thaw()
	return l.Conn.Close()
}

// serve makes l what the next connections reach; nil refuses them.
func (n *network) serve(l *listener) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listener = l
}

func (n *network) dial(ctx context.Context, zone string) (net.Conn, error) {
	n.mu.Lock()
	listener := n.listener
	if n.dead[zone] {
		listener = nil
	}
	n.mu.Unlock()
	if listener == nil {
		return nil, errors.New("connection refused")
	}
	c, err := listener.dial(ctx)
	if err != nil {
		return nil, err
	}
	l := &link{Conn: c}
	n.mu.Lock()
	n.conns[l] = zone
	n.mu.Unlock()
	return l, nil
}

// sever leaves a zone without a network, or gives it one again.
func (n *network) sever(zone string, dead bool) {
	n.mu.Lock()
	if n.dead == nil {
		n.dead = make(map[string]bool)
	}
	n.dead[zone] = dead
	n.mu.Unlock()
	if dead {
		n.cut(zone)
	}
}

// cut closes every connection of a zone; "" means of all zones.
func (n *network) cut(zone string) {
	for _, l := range n.of(zone) {
		_ = l.Close()
		n.mu.Lock()
		delete(n.conns, l)
		n.mu.Unlock()
	}
}

// of returns the connections of a zone.
func (n *network) of(zone string) []*link {
	n.mu.Lock()
	defer n.mu.Unlock()
	var out []*link
	for l, z := range n.conns {
		if zone == "" || z == zone {
			out = append(out, l)
		}
	}
	return out
}

func newGlobal(t testing.TB) *globalPlane {
	t.Helper()
	return newGlobalAt(t, newNetwork())
}

func newNetwork() *network { return &network{conns: make(map[*link]string)} }

// newGlobalAt is a global that zones find at the end of net once it is started.
func newGlobalAt(t testing.TB, net *network) *globalPlane {
	t.Helper()
	return &globalPlane{settings: newSettings(t), backend: memory.New(), cluster: "cluster-1", net: net}
}

func logger(t testing.TB) *slog.Logger {
	level := slog.LevelError + 1
	if os.Getenv("MERIDIAN_TEST_LOG") != "" {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: level}))
}

func (g *globalPlane) start(t testing.TB) {
	t.Helper()
	g.valve = &valve{Backend: g.backend, mangle: g.mangle}
	st, err := store.Open(context.Background(), g.valve, g.store)
	if err != nil {
		t.Fatalf("open the global's store: %v", err)
	}
	g.st = st
	if _, ok := st.Snapshot().Get(store.Key{Type: string(resource.Config), Name: resource.ClusterIDName}); !ok && g.cluster != "" {
		g.put(t, resource.Config, "", resource.ClusterIDName, &systemv1.Config{Config: g.cluster})
	}
	reg := prometheus.NewRegistry() // a new process counts from nothing
	g.registry = reg
	g.table, err = zones.New(context.Background(), zones.Config{
		InstanceID: "global-1", HealthTimeout: g.healthTimeout, InsightInterval: time.Second, SubscriptionLimit: 10, WithdrawLost: true,
	}, st, reg, g.log)
	if err != nil {
		t.Fatalf("open the session table: %v", err)
	}
	g.asks = admin.New(admin.Options{Config: admin.Default(), Store: st, Zones: g.table, Registerer: reg, Log: g.log.With("plane", "global")})
	g.server = kdsserver.New(kdsserver.Options{
		Config: kdsserver.Config{
			MaxMessageBytes: g.maxMessageBytes, HealthCheckInterval: g.healthInterval, AckTimeout: g.ackTimeout,
			InsightInterval: time.Second, Keepalive: 15 * time.Second, MaxSessionAge: g.maxSessionAge, DrainTimeout: 2 * time.Second,
		},
		ClusterID: g.cluster, InstanceID: "global-1", Store: st, Zones: g.table, Proxies: g.asks, Metrics: kds.NewMetrics(reg), Log: g.log.With("plane", "global"),
	})
	listener := listen()
	g.net.serve(listener)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	table, server := g.table, g.server
	counts := insights.New(insights.Options{
		Store: st, Interval: time.Second, Domain: "mesh", VIPPort: 80, Registerer: reg, Log: g.log.With("plane", "global"),
	})
	wg.Go(func() { _ = table.Run(ctx) })
	wg.Go(func() { _ = st.Lead(ctx, "plane", "global-1", 4*time.Second, counts.Run) })
	wg.Go(func() { _ = server.Serve(ctx, listener) })
	g.stop = sync.OnceFunc(func() {
		g.net.serve(nil)
		cancel()
		wg.Wait()
		_ = listener.Close()
		if err := st.Close(); err != nil {
			t.Errorf("close the global's store: %v", err)
		}
	})
}

// kill ends the plane like a power cut: nothing more reaches its storage, and nobody is told.
func (g *globalPlane) kill() {
	g.valve.shut()
	g.net.serve(nil)
	g.net.cut("")
	g.stop()
}

func (g *globalPlane) restart(t testing.TB) {
	g.stop()
	g.start(t)
}

// zonePlane is the KDS half of a zone control plane.
type zonePlane struct {
	settings
	name    string
	accept  string
	config  string // what it reports as its configuration
	backend store.Backend
	net     *network
	dial    []grpc.DialOption // faults to inject
	proxies server.Proxies    // what answers questions about its proxies; nil: nothing

	st    *store.Store
	up    *upstream.Upstream
	valve *valve // between st and backend
	stop  func()
}

func newZone(t testing.TB, name string, g *globalPlane) *zonePlane {
	t.Helper()
	return newZoneAt(t, name, g.net)
}

// newZoneAt is a zone that dials whatever listens on net.
func newZoneAt(t testing.TB, name string, net *network) *zonePlane {
	t.Helper()
	return &zonePlane{settings: newSettings(t), name: name, config: "{}", backend: memory.New(), net: net}
}

func (z *zonePlane) start(t testing.TB) {
	t.Helper()
	z.net.sever(z.name, false)
	z.valve = &valve{Backend: z.backend, mangle: z.mangle}
	st, err := store.Open(context.Background(), z.valve, z.store)
	if err != nil {
		t.Fatalf("open the store of %s: %v", z.name, err)
	}
	z.st = st
	z.registry = prometheus.NewRegistry() // a new process counts from nothing
	z.up, err = upstream.New(upstream.Options{
		Config: upstream.Config{
			Zone: z.name, Address: "grpc://127.0.0.1:1", AcceptGlobal: z.accept, MaxMessageBytes: z.maxMessageBytes,
			HealthCheckInterval: z.healthInterval, HealthCheckTimeout: 5 * time.Second, AckTimeout: z.ackTimeout, InsightInterval: time.Second,
			Keepalive: 15 * time.Second, ReconnectBase: 250 * time.Millisecond, ReconnectMax: 10 * time.Second,
		},
		InstanceID: z.name + "-1", Version: kds.Version{Version: "2.13.0"}, EffectiveConfig: func() string { return z.config },
		Store: st, Proxies: z.proxies, Registerer: z.registry, Metrics: kds.NewMetrics(z.registry), Log: z.log.With("plane", z.name),
		Dial: append(slices.Clip(z.dial),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return z.net.dial(ctx, z.name) })),
	})
	if err != nil {
		t.Fatalf("make the upstream of %s: %v", z.name, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	up := z.up
	wg.Go(func() { _ = up.Run(ctx, st.Update) })
	z.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		if err := st.Close(); err != nil {
			t.Errorf("close the store of %s: %v", z.name, err)
		}
	})
}

// kill ends the plane like a power cut.
func (z *zonePlane) kill() {
	z.valve.shut()
	z.net.sever(z.name, true) // or it might still say goodbye
	z.stop()
}

func (z *zonePlane) restart(t testing.TB) {
	z.stop()
	z.start(t)
}

// client connects to the global like a peer that is not ours; the caller closes it.
func (g *globalPlane) client(t testing.TB, zone string, opts ...grpc.DialOption) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:1", append(opts, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return g.net.dial(ctx, zone) }))...)
	if err != nil {
		t.Fatalf("dial: %v", err)
	}
	return conn
}

// valve stands between a store and its backend, so that a test can make it fail.
type valve struct {
	store.Backend
	mangle func(store.Group) store.Group

	mu   sync.Mutex
	dead bool
	fail int // appends that are yet to fail
	slow time.Duration
}

var errValve = errors.New("the disk is gone")

// Append implements [store.Backend].
func (v *valve) Append(ctx context.Context, g store.Group) error {
	v.mu.Lock()
	refuse := v.dead || v.fail > 0
	v.fail = max(v.fail-1, 0)
	slow := v.slow
	v.mu.Unlock()
	time.Sleep(slow)
	if refuse {
		return errValve
	}
	if v.mangle != nil {
		g = v.mangle(g)
	}
	return v.Backend.Append(ctx, g)
}

// shut lets nothing through any more.
func (v *valve) shut() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.dead = true
}

// delay makes every commit take that long.
func (v *valve) delay(d time.Duration) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.slow = d
}

// failNext makes the next n commits fail.
func (v *valve) failNext(n int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.fail = n
}

func update(t testing.TB, st *store.Store, ops ...store.Op) {
	t.Helper()
	if _, err := st.Update(context.Background(), func(*store.Snapshot) ([]store.Op, error) { return ops, nil }); err != nil {
		t.Fatalf("update: %v", err)
	}
}

func record(t testing.TB, typ resource.Type, mesh, name string, spec proto.Message) *store.Record {
	t.Helper()
	rec := &store.Record{Key: store.Key{Type: string(typ), Mesh: mesh, Name: name}, Created: time.Now().UTC(), Modified: time.Now().UTC()}
	if spec == nil {
		rec.Spec = []byte(`{"targetRef":{"kind":"Mesh"}}`)
		return rec
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(spec)
	if err != nil {
		t.Fatalf("encode %s: %v", rec.Key, err)
	}
	rec.Spec = b
	return rec
}

func (g *globalPlane) put(t testing.TB, typ resource.Type, mesh, name string, spec proto.Message) {
	t.Helper()
	update(t, g.st, store.Put(record(t, typ, mesh, name, spec)))
}

func (z *zonePlane) put(t testing.TB, typ resource.Type, mesh, name string, spec proto.Message) {
	t.Helper()
	update(t, z.st, store.Put(record(t, typ, mesh, name, spec)))
}

func (g *globalPlane) delete(t testing.TB, typ resource.Type, mesh, name string) {
	t.Helper()
	update(t, g.st, store.Delete(store.Key{Type: string(typ), Mesh: mesh, Name: name}))
}

func (z *zonePlane) delete(t testing.TB, typ resource.Type, mesh, name string) {
	t.Helper()
	update(t, z.st, store.Delete(store.Key{Type: string(typ), Mesh: mesh, Name: name}))
}

func permission(service string) proto.Message {
	match := []*meshv1.Selector{{Match: map[string]string{"kuma.io/service": service}}}
	return &meshv1.TrafficPermission{Sources: match, Destinations: match}
}

func dataplane(address string) proto.Message {
	return &meshv1.Dataplane{Networking: &meshv1.Dataplane_Networking{
		Address: address,
		Inbound: []*meshv1.Dataplane_Networking_Inbound{{Port: 8080, Tags: map[string]string{"kuma.io/service": "web"}}},
	}}
}

func ingress(address string) proto.Message {
	return &meshv1.ZoneIngress{Networking: &meshv1.ZoneIngress_Networking{Address: address, Port: 10001}}
}

func zoneSpec(enabled bool) proto.Message { return &systemv1.Zone{Enabled: wrapperspb.Bool(enabled)} }

// settle lets simulated time pass until everything that was going to happen has happened.
func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// content is the specs of a type by mesh/name.
func content(recs func(func(*store.Record) bool)) map[string]string {
	out := map[string]string{}
	for r := range recs {
		out[r.Key.Mesh+"/"+r.Key.Name] = string(r.Spec)
	}
	return out
}

// diverged compares what every zone has with what it should have by the rules of the contract, written down here
// once more and independently of the code that is tested. It returns "" when all is as it should be.
func diverged(g *globalPlane, all ...*zonePlane) string {
	var out strings.Builder
	gs := g.st.Snapshot()
	enabled := func(zone string) bool {
		rec, ok := gs.Get(store.Key{Type: "Zone", Name: zone})
		if !ok {
			return true
		}
		var z systemv1.Zone
		_ = proto.Unmarshal(rec.Spec, &z)
		return z.GetEnabled() == nil || z.GetEnabled().GetValue()
	}
	same := func(what string, want, got map[string]string) {
		if maps.Equal(want, got) {
			return
		}
		fmt.Fprintf(&out, "%s: want %v, got %v\n", what, sorted(want), sorted(got))
	}
	for _, z := range all {
		zs := z.st.Snapshot()
		for _, d := range resource.All() {
			typ := string(d.Name)
			switch d.Flow {
			case resource.FlowNone:
			case resource.FlowToZones:
				want := map[string]string{}
				for r := range gs.List(typ, "") {
					if r.Origin == "" && r.Labels["kuma.io/kds-sync"] != "disabled" && d.Name != resource.GlobalSecret {
						want[r.Key.Mesh+"/"+r.Key.Name] = string(r.Spec)
					}
				}
				same(z.name+" "+typ, want, content(zs.List(typ, "")))
			case resource.FlowToGlobal, resource.FlowBoth:
				want := map[string]string{}
				for r := range zs.ByOrigin(typ, "") {
					want[r.Key.Mesh+"/"+z.name+"."+r.Key.Name] = string(withZone(&d, r, z.name))
				}
				same("global "+typ+" of "+z.name, want, content(gs.ByOrigin(typ, z.name)))
			}
			if d.Flow == resource.FlowBoth {
				want := map[string]string{}
				for r := range gs.List(typ, "") {
					if r.Origin != "" && r.Origin != z.name && enabled(r.Origin) {
						want[r.Key.Mesh+"/"+r.Key.Name] = string(r.Spec)
					}
				}
				same(z.name+" foreign "+typ, want, content(zs.ByOrigin(typ, "global")))
			}
		}
	}
	return out.String()
}

func withZone(d *resource.Descriptor, r *store.Record, zone string) []byte {
	switch d.Name {
	case resource.ZoneIngress:
		var m meshv1.ZoneIngress
		_ = proto.Unmarshal(r.Spec, &m)
		m.Zone = zone
		b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(&m)
		return b
	case resource.ZoneEgress:
		var m meshv1.ZoneEgress
		_ = proto.Unmarshal(r.Spec, &m)
		m.Zone = zone
		b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(&m)
		return b
	}
	return bytes.Clone(r.Spec)
}

func sorted(m map[string]string) string {
	keys := slices.Sorted(maps.Keys(m))
	for i, k := range keys {
		keys[i] = fmt.Sprintf("%s=%x", k, m[k])
	}
	return strings.Join(keys, " ")
}
