package hds

import (
	"context"
	"net"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	healthv3 "github.com/envoyproxy/go-control-plane/envoy/service/health/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/tokens"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
	"github.com/meridian-mesh/meridian/zone/proxies"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type probe = meshv1.Dataplane_Networking_Inbound_ServiceProbe

func theDataplane() *meshv1.Dataplane {
	inbound := func(port uint32, p *probe) *meshv1.Dataplane_Networking_Inbound {
		return &meshv1.Dataplane_Networking_Inbound{Port: port, ServicePort: port - 8000, ServiceProbe: p, Tags: map[string]string{"kuma.io/service": "web"}}
	}
	return &meshv1.Dataplane{Networking: &meshv1.Dataplane_Networking{Address: "10.0.0.1", Inbound: []*meshv1.Dataplane_Networking_Inbound{
		inbound(8080, &probe{Interval: durationpb.New(3 * time.Second)}), inbound(8081, nil),
	}}}
}

var key = store.Key{Type: "Dataplane", Mesh: "default", Name: "web-1"}

func serve(t *testing.T, auth string) (*store.Store, healthv3.HealthDiscoveryServiceClient) {
	t.Helper()
	st, err := store.Open(t.Context(), memory.New(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	put(t, st, store.Key{Type: "Mesh", Name: "default"}, &meshv1.Mesh{})
	put(t, st, key, theDataplane())
	cfg := proxies.DefaultConfig()
	cfg.Auth = auth
	reg, err := proxies.New(t.Context(), proxies.Options{Config: cfg, Zone: "zone-1", InstanceID: "cp", Store: st, Authority: tokens.NewAuthority()})
	if err != nil {
		t.Fatal(err)
	}
	s, err := New(Options{Config: DefaultConfig(), Proxies: reg, Store: st})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 2)
	go func() { ran <- s.Run(ctx) }()
	go func() { ran <- reg.Run(ctx) }()
	g := grpc.NewServer()
	s.Register(g)
	l := bufconn.Listen(1 << 16)
	served := make(chan error, 1)
	go func() { served <- g.Serve(l) }()
	conn, err := grpc.NewClient("passthrough:///x", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = conn.Close()
		g.Stop()
		<-served
		cancel()
		<-ran
		<-ran
		_ = st.Close()
	})
	return st, healthv3.NewHealthDiscoveryServiceClient(conn)
}

func put(t *testing.T, st *store.Store, k store.Key, m proto.Message) {
	t.Helper()
	spec, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	_, err = st.Update(context.Background(), func(*store.Snapshot) ([]store.Op, error) {
		return []store.Op{store.Put(&store.Record{Key: k, Spec: spec})}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func hello() *healthv3.HealthCheckRequestOrEndpointHealthResponse {
	m, _ := structpb.NewStruct(map[string]any{"dataplane.admin.port": "9901"})
	return &healthv3.HealthCheckRequestOrEndpointHealthResponse{RequestType: &healthv3.HealthCheckRequestOrEndpointHealthResponse_HealthCheckRequest{
		HealthCheckRequest: &healthv3.HealthCheckRequest{Node: &corev3.Node{Id: "default.web-1", Metadata: m}},
	}}
}

func says(health map[string]corev3.HealthStatus) *healthv3.HealthCheckRequestOrEndpointHealthResponse {
	r := &healthv3.EndpointHealthResponse{}
	for cluster, st := range health {
		r.ClusterEndpointsHealth = append(r.ClusterEndpointsHealth, &healthv3.ClusterEndpointsHealth{
			ClusterName: cluster, LocalityEndpointsHealth: []*healthv3.LocalityEndpointsHealth{
				{EndpointsHealth: []*healthv3.EndpointHealth{{HealthStatus: st}}},
			},
		})
	}
	return &healthv3.HealthCheckRequestOrEndpointHealthResponse{
		RequestType: &healthv3.HealthCheckRequestOrEndpointHealthResponse_EndpointHealthResponse{EndpointHealthResponse: r},
	}
}

// wants waits until the inbounds are as ready as that.
func wants(t *testing.T, st *store.Store, ready ...bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for {
		changed := st.Changed(key.Type)
		rec, _ := st.Snapshot().Get(key)
		var dp meshv1.Dataplane
		if err := proto.Unmarshal(rec.Spec, &dp); err != nil {
			t.Fatal(err)
		}
		same := true
		for i, in := range dp.GetNetworking().GetInbound() {
			same = same && in.GetHealth() != nil && in.GetHealth().GetReady() == ready[i]
		}
		if same {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			t.Fatalf("the inbounds are %v", dp.GetNetworking().GetInbound())
		}
	}
}

func TestWhatAProxyReportsIsInItsDataplane(t *testing.T) {
	st, client := serve(t, proxies.AuthNone)
	stream, err := client.StreamHealthCheck(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(hello()); err != nil {
		t.Fatal(err)
	}
	spec, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if err := spec.ValidateAll(); err != nil {
		t.Error(err)
	}
	checks := spec.GetClusterHealthChecks()
	if len(checks) != 2 || checks[0].GetClusterName() != "kuma:envoy:admin" || checks[1].GetClusterName() != "localhost:80" ||
		checks[0].GetHealthChecks()[0].GetHttpHealthCheck().GetPath() != "/ready" || checks[1].GetHealthChecks()[0].GetTcpHealthCheck() == nil ||
		checks[1].GetHealthChecks()[0].GetInterval().AsDuration() != 3*time.Second ||
		checks[1].GetHealthChecks()[0].GetTimeout().AsDuration() != 2*time.Second || spec.GetInterval().AsDuration() != 5*time.Second {
		t.Errorf("it is asked for %v", spec)
	}
	const healthy, unhealthy = corev3.HealthStatus_HEALTHY, corev3.HealthStatus_UNHEALTHY
	for _, c := range []struct {
		envoy, workload corev3.HealthStatus
		ready           []bool
	}{
		{healthy, healthy, []bool{true, true}},
		{healthy, unhealthy, []bool{false, true}},
		{corev3.HealthStatus_UNKNOWN, healthy, []bool{true, true}},
		{unhealthy, healthy, []bool{false, false}},
	} {
		if err := stream.Send(says(map[string]corev3.HealthStatus{"kuma:envoy:admin": c.envoy, "localhost:80": c.workload})); err != nil {
			t.Fatal(err)
		}
		wants(t, st, c.ready...)
	}
	dp := theDataplane()
	dp.Networking.Inbound[1].ServiceProbe = &probe{}
	put(t, st, key, dp)
	if spec, err = stream.Recv(); err != nil || len(spec.GetClusterHealthChecks()) != 3 {
		t.Errorf("with a second probe it is asked for %v %v", spec, err)
	}
}

func TestAProxyWithoutATokenIsRefused(t *testing.T) {
	_, client := serve(t, proxies.AuthToken)
	stream, err := client.StreamHealthCheck(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(hello()); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unknown {
		t.Errorf("it is answered with %v", err)
	}
	if _, err := client.FetchHealthCheck(t.Context(), hello()); status.Code(err) != codes.Unimplemented {
		t.Errorf("a fetch is answered with %v", err)
	}
}
