package insights

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
)

// rig is running insights over a store in memory. It belongs into a synctest bubble.
type rig struct {
	t       testing.TB
	backend *backend
	st      *store.Store
	reg     *prometheus.Registry
	leaders []*store.Store  // of the replicas that lead in turn; empty: st
	turn    int             // which of them is next
	in      *Insights       // owned by its Run until stop
	bug     func(*Insights) // what a test of the tests breaks; nil: nothing
	stop    func()
}

// backend keeps account of what is committed.
type backend struct {
	store.Backend
	mu      sync.Mutex
	broken  bool          // nothing can be committed any more
	latency time.Duration // of a commit
	commits []commit
}

// commit is a batch that wrote insights.
type commit struct {
	at   time.Time
	keys []store.Key
}

// Append implements [store.Backend].
func (b *backend) Append(ctx context.Context, g store.Group) error {
	time.Sleep(b.latency) // set before the store is used
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.broken {
		return errors.New("the disk is gone")
	}
	for _, batch := range g.Batches {
		c := commit{at: time.Now()}
		for _, r := range batch.Puts {
			if isInsight(r.Key) {
				c.keys = append(c.keys, r.Key)
			}
		}
		if len(c.keys) > 0 {
			b.commits = append(b.commits, c)
		}
	}
	return b.Backend.Append(ctx, g)
}

func isInsight(k store.Key) bool {
	return k.Type == string(resource.MeshInsight) || k.Type == string(resource.ServiceInsight)
}

// written returns the batches of insights since the last call.
func (r *rig) written() []commit {
	r.backend.mu.Lock()
	defer r.backend.mu.Unlock()
	list := r.backend.commits
	r.backend.commits = nil
	return list
}

func newRig(t testing.TB, o store.Options) *rig {
	t.Helper()
	r := &rig{t: t, backend: &backend{Backend: memory.New()}}
	st, err := store.Open(context.Background(), r.backend, o)
	if err != nil {
		t.Fatal(err)
	}
	r.st = st
	return r
}

// start makes the next leader count.
func (r *rig) start() {
	r.reg = prometheus.NewRegistry()
	st := r.st
	if len(r.leaders) > 0 {
		st = r.leaders[r.turn%len(r.leaders)]
		r.turn++
	}
	r.in = New(Options{
		Store: st, Interval: time.Second, Domain: "mesh", VIPPort: 80, Registerer: r.reg,
		Log: slog.New(slog.NewTextHandler(r.t.Output(), nil)),
	})
	if r.bug != nil {
		r.bug(r.in)
	}
	in := r.in
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := st.Lead(ctx, "plane", "a", leaseTTL, in.Run); err != nil && ctx.Err() == nil {
			r.t.Errorf("run: %v", err)
		}
	})
	r.stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
}

func (r *rig) close() {
	r.stop()
	for _, st := range append(r.leaders, r.st) {
		if err := st.Close(); err != nil {
			r.t.Error(err)
		}
	}
}

// leaseTTL is the one of planes.
const leaseTTL = 4 * time.Second

// lease is of a test that calls parts of Run by itself.
func lease(t testing.TB, st *store.Store) store.Lease {
	t.Helper()
	l, err := st.Acquire(t.Context(), "plane", "a", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (r *rig) update(ops ...store.Op) {
	r.t.Helper()
	if _, err := r.st.Update(context.Background(), func(*store.Snapshot) ([]store.Op, error) { return ops, nil }); err != nil {
		r.t.Fatal(err)
	}
}

// wait lets everything happen that happens without time passing.
func (r *rig) wait() { synctest.Wait() }

// pass lets time pass, and then everything happen.
func (r *rig) pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func key(typ resource.Type, mesh, name string) store.Key {
	return store.Key{Type: string(typ), Mesh: mesh, Name: name}
}

func put(t testing.TB, typ resource.Type, mesh, name string, spec proto.Message) store.Op {
	t.Helper()
	b, err := proto.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	return store.Put(&store.Record{Key: key(typ, mesh, name), Spec: b})
}

func putMesh(t testing.TB, name string) store.Op {
	t.Helper()
	return put(t, resource.Mesh, "", name, &meshv1.Mesh{})
}

// meshInsight is the stored insight without its time; nil when there is none.
func meshInsight(t testing.TB, snap *store.Snapshot, mesh string) *meshv1.MeshInsight {
	t.Helper()
	rec, ok := snap.Get(key(resource.MeshInsight, "", mesh))
	if !ok {
		return nil
	}
	m := &meshv1.MeshInsight{}
	if err := proto.Unmarshal(rec.Spec, m); err != nil {
		t.Fatal(err)
	}
	if m.GetLastSync() == nil {
		t.Errorf("the insight of mesh %s does not say when it was counted", mesh)
	}
	m.LastSync = nil
	return m
}

// services is the stored insight; nil when there is none.
func services(t testing.TB, snap *store.Snapshot, mesh string) *meshv1.ServiceInsight {
	t.Helper()
	rec, ok := snap.Get(key(resource.ServiceInsight, mesh, "all-services-"+mesh))
	if !ok {
		return nil
	}
	m := &meshv1.ServiceInsight{}
	if err := proto.Unmarshal(rec.Spec, m); err != nil {
		t.Fatal(err)
	}
	return m
}

type (
	inbound = meshv1.Dataplane_Networking_Inbound
	health  = meshv1.Dataplane_Networking_Inbound_Health
	tags    = map[string]string
)

func good(service string) *inbound { return &inbound{Tags: tags{"kuma.io/service": service}} }

func bad(service string) *inbound {
	return &inbound{Tags: tags{"kuma.io/service": service}, Health: &health{}}
}

func workload(inbounds ...*inbound) *meshv1.Dataplane {
	return &meshv1.Dataplane{Networking: &meshv1.Dataplane_Networking{Address: "10.0.0.1", Inbound: inbounds}}
}

func gateway(kind meshv1.Dataplane_Networking_Gateway_GatewayType, service string) *meshv1.Dataplane {
	dp := workload()
	dp.Networking.Gateway = &meshv1.Dataplane_Networking_Gateway{Type: kind, Tags: tags{"kuma.io/service": service}}
	return dp
}

// told is an insight of a proxy.
type told struct {
	gone          bool // its stream has ended
	kumaDP, envoy string
	mtls          *meshv1.DataplaneInsight_MTLS
}

func (i told) message() *meshv1.DataplaneInsight {
	sub := &meshv1.DiscoverySubscription{Id: "s", ConnectTime: &timestamppb.Timestamp{Seconds: 1}}
	if i.gone {
		sub.DisconnectTime = &timestamppb.Timestamp{Seconds: 2}
	}
	if i.kumaDP != "" || i.envoy != "" {
		sub.Version = &meshv1.Version{KumaDp: &meshv1.KumaDpVersion{Version: i.kumaDP}, Envoy: &meshv1.EnvoyVersion{Version: i.envoy}}
	}
	return &meshv1.DataplaneInsight{Subscriptions: []*meshv1.DiscoverySubscription{sub}, MTLS: i.mtls}
}

func mtls(issued string, supported ...string) *meshv1.DataplaneInsight_MTLS {
	return &meshv1.DataplaneInsight_MTLS{IssuedBackend: issued, SupportedBackends: supported}
}

func external(service, address string) *meshv1.ExternalService {
	return &meshv1.ExternalService{
		Networking: &meshv1.ExternalService_Networking{Address: address}, Tags: tags{"kuma.io/service": service},
	}
}
