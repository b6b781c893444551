package simulation

import (
	"context"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

// rawZone is a zone played by hand, the way a Kuma zone speaks unless a test makes it speak otherwise.
type rawZone struct {
	t      testing.TB
	name   string
	conn   *grpc.ClientConn
	client meshv1.KDSSyncServiceClient
	admin  meshv1.GlobalKDSServiceClient
	ctx    context.Context // of the connection that the value stands for
	cancel context.CancelFunc
}

// rawZone connects a hand-played zone. headers are pairs beside client-id.
func (g *globalPlane) rawZone(t testing.TB, name string, headers ...string) *rawZone {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	z := &rawZone{t: t, name: name, conn: g.client(t, name), cancel: cancel}
	z.client, z.admin = meshv1.NewKDSSyncServiceClient(z.conn), meshv1.NewGlobalKDSServiceClient(z.conn)
	z.ctx = metadata.AppendToOutgoingContext(ctx, append([]string{"client-id", name, "kds-version", "v3"}, headers...)...)
	return z
}

func (z *rawZone) close() {
	z.cancel()
	_ = z.conn.Close()
}

func (z *rawZone) node(features ...string) *corev3.Node {
	list := make([]*structpb.Value, len(features))
	for i, f := range features {
		list[i] = structpb.NewStringValue(f)
	}
	return &corev3.Node{Id: z.name, Metadata: &structpb.Struct{Fields: map[string]*structpb.Value{
		"features": structpb.NewListValue(&structpb.ListValue{Values: list}),
	}}}
}

// down opens GlobalToZoneSync.
func (z *rawZone) down() grpc.BidiStreamingClient[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse] {
	z.t.Helper()
	s, err := z.client.GlobalToZoneSync(z.ctx)
	if err != nil {
		z.t.Fatalf("open GlobalToZoneSync: %v", err)
	}
	return s
}

// up opens ZoneToGlobalSync.
func (z *rawZone) up() grpc.BidiStreamingClient[discoveryv3.DeltaDiscoveryResponse, discoveryv3.DeltaDiscoveryRequest] {
	z.t.Helper()
	s, err := z.client.ZoneToGlobalSync(z.ctx)
	if err != nil {
		z.t.Fatalf("open ZoneToGlobalSync: %v", err)
	}
	return s
}

func (z *rawZone) ask(typ string, features ...string) *discoveryv3.DeltaDiscoveryRequest {
	return &discoveryv3.DeltaDiscoveryRequest{Node: z.node(features...), TypeUrl: typ, ResourceNamesSubscribe: []string{"*"}}
}

func (z *rawZone) ack(resp *discoveryv3.DeltaDiscoveryResponse) *discoveryv3.DeltaDiscoveryRequest {
	return &discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: z.name}, TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()}
}

// wire renders a resource as it travels; a nil spec becomes JSON.
func wire(t testing.TB, name, mesh string, spec proto.Message, labels map[string]string) *discoveryv3.Resource {
	t.Helper()
	body := &anypb.Any{Value: []byte(`{"targetRef":{"kind":"Mesh"}}`)}
	if spec != nil {
		b, err := proto.Marshal(spec)
		if err != nil {
			t.Fatalf("encode: %v", err)
		}
		body = &anypb.Any{TypeUrl: "type.googleapis.com/" + string(spec.ProtoReflect().Descriptor().FullName()), Value: b}
	}
	kr, err := proto.Marshal(&meshv1.KumaResource{Meta: &meshv1.KumaResource_Meta{Name: name, Mesh: mesh, Labels: labels}, Spec: body})
	if err != nil {
		t.Fatalf("encode: %v", err)
	}
	return &discoveryv3.Resource{
		Name: name + "." + mesh, Version: "1",
		Resource: &anypb.Any{TypeUrl: "type.googleapis.com/kuma.mesh.v1alpha1.KumaResource", Value: kr},
	}
}

func response(identifier, typ, nonce string, resources ...*discoveryv3.Resource) *discoveryv3.DeltaDiscoveryResponse {
	return &discoveryv3.DeltaDiscoveryResponse{
		TypeUrl: typ, Nonce: nonce, Resources: resources, ControlPlane: &corev3.ControlPlane{Identifier: identifier},
	}
}

func names(resp *discoveryv3.DeltaDiscoveryResponse) []string {
	var out []string
	for _, r := range resp.GetResources() {
		out = append(out, r.GetName())
	}
	return out
}

// fakeGlobal is a global played by hand, which a zone of the test connects to.
type fakeGlobal struct {
	meshv1.UnimplementedKDSSyncServiceServer
	meshv1.UnimplementedGlobalKDSServiceServer
	net    *network
	server *grpc.Server
	down   func(grpc.BidiStreamingServer[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]) error
	up     func(grpc.BidiStreamingServer[discoveryv3.DeltaDiscoveryResponse, discoveryv3.DeltaDiscoveryRequest]) error

	mu    sync.Mutex
	opens []time.Time // of GlobalToZoneSync
}

func (f *fakeGlobal) GlobalToZoneSync(s grpc.BidiStreamingServer[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]) error {
	f.mu.Lock()
	f.opens = append(f.opens, time.Now())
	f.mu.Unlock()
	return f.down(s)
}

func (f *fakeGlobal) ZoneToGlobalSync(s grpc.BidiStreamingServer[discoveryv3.DeltaDiscoveryResponse, discoveryv3.DeltaDiscoveryRequest]) error {
	if f.up != nil {
		return f.up(s)
	}
	<-s.Context().Done()
	return nil
}

func (f *fakeGlobal) HealthCheck(context.Context, *meshv1.ZoneHealthCheckRequest) (*meshv1.ZoneHealthCheckResponse, error) {
	return &meshv1.ZoneHealthCheckResponse{}, nil
}

// opened is how often a zone has opened GlobalToZoneSync.
func (f *fakeGlobal) opened() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.opens)
}

// start takes the place of the global on the network until stop.
func (f *fakeGlobal) start(n *network) (stop func()) {
	l := listen()
	f.net = n
	f.server = grpc.NewServer()
	meshv1.RegisterKDSSyncServiceServer(f.server, f)
	meshv1.RegisterGlobalKDSServiceServer(f.server, f)
	n.mu.Lock()
	n.listener = l
	n.mu.Unlock()
	done := make(chan struct{})
	go func() { defer close(done); _ = f.server.Serve(l) }()
	return func() {
		f.server.Stop()
		<-done
	}
}

// plainGlobal answers every type with what it is given, once, and then only acknowledgements matter: a Kuma global
// with state that does not change. answered gets every request after the first of a type.
func plainGlobal(state map[string][]*discoveryv3.Resource, answered func(*discoveryv3.DeltaDiscoveryRequest)) func(grpc.BidiStreamingServer[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]) error {
	return func(s grpc.BidiStreamingServer[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]) error {
		for {
			req, err := s.Recv()
			if err != nil {
				return err
			}
			if req.GetResponseNonce() != "" {
				if answered != nil {
					answered(req)
				}
				continue
			}
			if err := s.Send(response("global", req.GetTypeUrl(), "n-"+req.GetTypeUrl(), state[req.GetTypeUrl()]...)); err != nil {
				return err
			}
		}
	}
}
