package upstream

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
	"github.com/meridian-mesh/meridian/sync/kds"
)

func TestRetryBacksOffWithJitterAndForgivesARunThatLasted(t *testing.T) {
	r := &retry{base: time.Millisecond, limit: 8 * time.Millisecond, next: time.Millisecond}
	var grown []time.Duration
	for range 5 {
		grown = append(grown, r.next)
		began := time.Now()
		if !r.wait(t.Context(), 0) {
			t.Fatal("told to stop")
		}
		if took := time.Since(began); took < grown[len(grown)-1]/2 {
			t.Errorf("waited %s of %s", took, grown[len(grown)-1])
		}
	}
	if want := []time.Duration{1e6, 2e6, 4e6, 8e6, 8e6}; !slices.Equal(grown, want) {
		t.Errorf("pauses grow as %v, want %v", grown, want)
	}
	r.wait(t.Context(), 9*time.Millisecond)
	if r.next != 2*time.Millisecond {
		t.Errorf("after a run that lasted the next pause is %s", r.next)
	}
	stopped, stop := context.WithCancel(t.Context())
	stop()
	r.next = time.Hour
	if r.wait(stopped, 0) {
		t.Error("it waited on though told to stop")
	}
}

// global is the other end, over a real socket.
type global struct {
	meshv1.UnimplementedKDSSyncServiceServer
	meshv1.UnimplementedGlobalKDSServiceServer

	down, up error         // what the sync streams end with at once; nil: they stay open
	admin    error         // what the admin streams end with at once
	health   error         // what a health check is answered with
	silent   bool          // health checks are not answered
	interval time.Duration // what zones are told

	configs  chan grpc.BidiStreamingServer[meshv1.XDSConfigResponse, meshv1.XDSConfigRequest] // takes the streams for them; nil: none are served
	stats    chan grpc.BidiStreamingServer[meshv1.StatsResponse, meshv1.StatsRequest]
	clusters chan grpc.BidiStreamingServer[meshv1.ClustersResponse, meshv1.ClustersRequest]
	end      chan struct{} // ends one of the streams for configurations for each value

	mu     sync.Mutex
	calls  map[string]int
	header metadata.MD // of the last stream
}

func (g *global) called(ctx context.Context, method string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.calls[method]++
	g.header, _ = metadata.FromIncomingContext(ctx)
}

func (g *global) count(method string) int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.calls[method]
}

func (g *global) GlobalToZoneSync(s grpc.BidiStreamingServer[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]) error {
	g.called(s.Context(), "down")
	if g.down == nil {
		<-s.Context().Done()
	}
	return ended(g.down)
}

func (g *global) ZoneToGlobalSync(s grpc.BidiStreamingServer[discoveryv3.DeltaDiscoveryResponse, discoveryv3.DeltaDiscoveryRequest]) error {
	g.called(s.Context(), "up")
	if g.up == nil {
		<-s.Context().Done()
	}
	return ended(g.up)
}

func (g *global) HealthCheck(ctx context.Context, _ *meshv1.ZoneHealthCheckRequest) (*meshv1.ZoneHealthCheckResponse, error) {
	g.called(ctx, "health")
	if g.silent {
		<-ctx.Done()
	}
	return &meshv1.ZoneHealthCheckResponse{Interval: durationpb.New(g.interval)}, g.health
}

func (g *global) StreamStats(s grpc.BidiStreamingServer[meshv1.StatsResponse, meshv1.StatsRequest]) error {
	g.called(s.Context(), "stats")
	if g.admin != nil {
		return g.admin
	}
	return hold(s.Context(), g.stats, s, nil)
}

func (g *global) StreamXDSConfigs(s grpc.BidiStreamingServer[meshv1.XDSConfigResponse, meshv1.XDSConfigRequest]) error {
	g.called(s.Context(), "configs")
	return hold(s.Context(), g.configs, s, g.end)
}

func (g *global) StreamClusters(s grpc.BidiStreamingServer[meshv1.ClustersResponse, meshv1.ClustersRequest]) error {
	return hold(s.Context(), g.clusters, s, nil)
}

// hold gives a stream to the test and keeps it open, until the test ends it.
func hold[S any](ctx context.Context, to chan<- S, s S, end <-chan struct{}) error {
	select {
	case to <- s: // never, where it is nil
	case <-ctx.Done():
	}
	select {
	case <-end:
	case <-ctx.Done():
	}
	return nil
}

// listen serves g until stop is called or the test ends, at the host:port that is returned.
func (g *global) listen(t *testing.T, opts ...grpc.ServerOption) (address string, stop func()) {
	t.Helper()
	g.calls = map[string]int{}
	server := grpc.NewServer(opts...)
	meshv1.RegisterKDSSyncServiceServer(server, g)
	meshv1.RegisterGlobalKDSServiceServer(server, g)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(l) })
	stop = sync.OnceFunc(func() {
		server.Stop()
		wg.Wait()
	})
	t.Cleanup(stop)
	return l.Addr().String(), stop
}

// connect runs a zone against g until the test ends.
func connect(t *testing.T, g *global, change func(*Options)) (*Upstream, *store.Store) {
	t.Helper()
	address, _ := g.listen(t)
	u, st, _ := start(t, "grpc://"+address, change)
	return u, st
}

// start runs a zone until stop is called or the test ends.
func start(t *testing.T, address string, change func(*Options)) (u *Upstream, st *store.Store, stop func()) {
	t.Helper()
	st, err := store.Open(t.Context(), memory.New(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	o := Options{
		Config: Config{
			Zone: "zone-1", Address: address, MaxMessageBytes: 1 << 20,
			HealthCheckInterval: time.Millisecond, HealthCheckTimeout: time.Second, AckTimeout: time.Second,
			InsightInterval: time.Second, Keepalive: 15 * time.Second, ReconnectBase: time.Millisecond, ReconnectMax: 5 * time.Millisecond,
		},
		InstanceID: "instance-1", Version: kds.Version{Version: "2.13.7"}, EffectiveConfig: func() string { return "{}" },
		Store: st, Registerer: prometheus.NewRegistry(), Metrics: kds.NewMetrics(nil), Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	if change != nil {
		change(&o)
	}
	u, err = New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := u.Run(ctx, st.Update); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return u, st, stop
}

// eventually waits for something another goroutine or the kernel does.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if holds() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

func TestAZoneSaysWhoItIs(t *testing.T) {
	g := &global{}
	_, st := connect(t, g, nil)
	eventually(t, "the zone opens its streams", func() bool { return g.count("down") > 0 && g.count("up") > 0 && g.count("stats") > 0 })
	want := map[string]string{
		"client-id": "zone-1", "kds-version": "v3", "version": "2.13.7", "features": "zone-ping-health", "meridian-plane-id": st.ID(),
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for k, v := range want {
		if got := g.header.Get(k); len(got) != 1 || got[0] != v {
			t.Errorf("header %s: %q, want %q", k, got, v)
		}
	}
	if len(g.header.Get("meridian-session")) != 1 {
		t.Error("no session in the header")
	}
}

// Lesson 42 and the contract's §12: what one stream's end means for the others.
func TestLesson42_EachStreamIsSupervisedByItself(t *testing.T) {
	tests := map[string]struct {
		global *global
		again  []string // opened again and again
		once   []string // left alone
	}{
		"a sync stream that fails": {
			&global{up: status.Error(codes.Internal, "no")}, []string{"up"}, []string{"down", "stats"},
		},
		"a sync stream that ends without a reason": {
			&global{up: errEnd}, []string{"up"}, []string{"down", "stats"},
		},
		"a sync service that is not there, as a proxy says while the global restarts": {
			&global{down: status.Error(codes.Unimplemented, "404"), up: status.Error(codes.Unimplemented, "404")}, []string{"down", "up"}, []string{"stats"},
		},
		"an admin stream that fails": {
			&global{admin: status.Error(codes.Internal, "no")}, []string{"stats"}, []string{"down", "up"},
		},
		"an admin stream that the global does not have": {
			&global{admin: status.Error(codes.Unimplemented, "no")}, nil, []string{"down", "up", "stats"},
		},
		"health checks that the global does not have": {
			&global{health: status.Error(codes.Unimplemented, "no")}, nil, []string{"down", "up", "health"},
		},
		"health checks that fail": {
			&global{health: status.Error(codes.Internal, "no")}, []string{"down", "up", "stats"}, nil,
		},
		"health checks that are not answered": {
			&global{silent: true}, []string{"down", "up", "stats"}, nil,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			connect(t, tt.global, nil)
			for _, method := range tt.again {
				eventually(t, method+" is opened again", func() bool { return tt.global.count(method) >= 3 })
			}
			for _, method := range tt.once {
				eventually(t, method+" is opened", func() bool { return tt.global.count(method) > 0 })
			}
			if len(tt.again) == 0 {
				time.Sleep(100 * time.Millisecond) // twenty times the longest pause
			}
			for _, method := range tt.once {
				if n := tt.global.count(method); n != 1 {
					t.Errorf("%s was opened %d times", method, n)
				}
			}
		})
	}
}

// errEnd makes a handler end its stream with OK.
var errEnd = errors.New("end")

func ended(err error) error {
	if errors.Is(err, errEnd) {
		return nil
	}
	return err
}

func TestTheGlobalSetsThePaceOfHealthChecks(t *testing.T) {
	g := &global{interval: time.Hour}
	connect(t, g, nil)
	eventually(t, "the first check", func() bool { return g.count("health") > 0 })
	time.Sleep(50 * time.Millisecond) // fifty times the zone's own interval
	if n := g.count("health"); n != 1 {
		t.Errorf("%d checks though the global asked for one an hour", n)
	}
}

// A certificate authority's file may appear after the zone has started, or be replaced.
func TestCredentialsAreMadeForEachConnection(t *testing.T) {
	g := &global{}
	var mu sync.Mutex
	asked := 0
	u, _ := connect(t, g, func(o *Options) {
		o.Config.Address = strings.Replace(o.Config.Address, "grpc:", "grpcs:", 1)
		o.Credentials = func(string) (credentials.TransportCredentials, error) {
			mu.Lock()
			defer mu.Unlock()
			asked++
			return nil, errors.New("no such file")
		}
	})
	eventually(t, "credentials are asked for again", func() bool { mu.Lock(); defer mu.Unlock(); return asked >= 3 })
	if u.Connected() {
		t.Error("connected without credentials")
	}
}

// Of the replicas of a zone the leader is connected. One that was stopped for a while does not know that it leads no more.
func TestAReplicaThatLeadsNoMoreStopsAndStoresNothing(t *testing.T) {
	g := &global{}
	address, _ := g.listen(t)
	u, st, stop := start(t, "grpc://"+address, nil)
	stop() // another leads
	replaced := func(context.Context, func(*store.Snapshot) ([]store.Op, error)) (store.Revision, error) {
		return 0, store.ErrLeaseLost
	}
	if err := u.Run(t.Context(), replaced); !errors.Is(err, store.ErrLeaseLost) {
		t.Errorf("it ends with %v", err)
	}
	if err := u.verifyCluster(t.Context(), replaced, "cluster-1"); !errors.Is(err, store.ErrLeaseLost) {
		t.Errorf("to belong to a global it has not met: %v", err)
	}
	if _, ok := st.Snapshot().Get(clusterKey); ok {
		t.Error("it stored the global's id")
	}
	if u.Connected() || testutil.ToFloat64(u.gauge) != 0 {
		t.Error("it says that it is connected")
	}
}
