package upstream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/testing/protocmp"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/server"
	"github.com/meridian-mesh/meridian/common/store"
)

// proxies is what answers on the zone: a function.
type proxies func(ctx context.Context, q server.ProxyQuestion) ([]byte, error)

func (p proxies) Ask(ctx context.Context, q server.ProxyQuestion) ([]byte, error) { return p(ctx, q) }

type (
	configsStream  = grpc.BidiStreamingServer[meshv1.XDSConfigResponse, meshv1.XDSConfigRequest]
	statsStream    = grpc.BidiStreamingServer[meshv1.StatsResponse, meshv1.StatsRequest]
	clustersStream = grpc.BidiStreamingServer[meshv1.ClustersResponse, meshv1.ClustersRequest]
)

// asking is a global that asks a zone whose proxies answer by p; of it are the Dataplane dp-1, a ZoneIngress and a ZoneEgress, and it
// has a copy of another zone's ingress.
func asking(t *testing.T, p server.Proxies) *global {
	t.Helper()
	g := &global{configs: make(chan configsStream), stats: make(chan statsStream), clusters: make(chan clustersStream), end: make(chan struct{})}
	_, st := connect(t, g, func(o *Options) { o.Proxies = p })
	put := func(typ resource.Type, mesh, name, origin string) store.Op {
		return store.Put(&store.Record{Key: store.Key{Type: string(typ), Mesh: mesh, Name: name}, Spec: []byte{}, Origin: origin})
	}
	if _, err := st.Update(t.Context(), func(*store.Snapshot) ([]store.Op, error) {
		return []store.Op{
			put(resource.Dataplane, "default", "dp-1", ""), put(resource.ZoneIngress, "", "in-1", ""), put(resource.ZoneEgress, "", "out-1", ""),
			put(resource.ZoneIngress, "", "zone-2.in-1", "zone-2"),
		}, nil
	}); err != nil {
		t.Fatal(err)
	}
	return g
}

// echo answers with the question.
func echo(_ context.Context, q server.ProxyQuestion) ([]byte, error) {
	return fmt.Appendf(nil, "%+v", q), nil
}

func recv[T any](t *testing.T, receive func() (T, error)) T {
	t.Helper()
	m, err := receive()
	if err != nil {
		t.Fatalf("receive: %v", err)
	}
	return m
}

func TestWhatTheGlobalAsksReachesTheProxyAndItsAnswerTheGlobal(t *testing.T) {
	g := asking(t, proxies(echo))
	configs, stats, clusters := <-g.configs, <-g.stats, <-g.clusters
	dp := server.ProxyQuestion{Type: resource.Dataplane, Mesh: "default", Name: "dp-1"}
	want := func(change func(*server.ProxyQuestion)) []byte {
		q := dp
		change(&q)
		return fmt.Appendf(nil, "%+v", q)
	}
	ask := func(change func(*meshv1.XDSConfigRequest)) []byte {
		t.Helper()
		req := &meshv1.XDSConfigRequest{RequestId: "1", ResourceType: "Dataplane", ResourceMesh: "default", ResourceName: "dp-1"}
		change(req)
		if err := configs.Send(req); err != nil {
			t.Fatal(err)
		}
		resp := recv(t, configs.Recv)
		if resp.GetRequestId() != "1" || resp.GetError() != "" {
			t.Errorf("answer %v", resp)
		}
		return resp.GetConfig()
	}
	for _, tt := range []struct {
		name      string
		got, want []byte
	}{
		{
			"a config dump", ask(func(*meshv1.XDSConfigRequest) {}),
			want(func(q *server.ProxyQuestion) { q.View = server.ViewConfigDump }),
		},
		{
			"a config dump with endpoints", ask(func(r *meshv1.XDSConfigRequest) { r.IncludeEds = true }),
			want(func(q *server.ProxyQuestion) { q.View, q.IncludeEndpoints = server.ViewConfigDump, true }),
		},
		{
			"what the control plane sent", ask(func(r *meshv1.XDSConfigRequest) { r.MeridianQuery = "source=controlplane" }),
			want(func(q *server.ProxyQuestion) { q.View, q.ControlPlane = server.ViewConfigDump, true }),
		},
		{
			"an explanation", ask(func(r *meshv1.XDSConfigRequest) { r.MeridianQuery = "view=explain&service=backend" }),
			want(func(q *server.ProxyQuestion) { q.View, q.Service = server.ViewExplain, "backend" }),
		},
		{
			"an egress, whatever mesh is given",
			ask(func(r *meshv1.XDSConfigRequest) { r.ResourceType, r.ResourceName = "ZoneEgress", "out-1" }),
			fmt.Appendf(nil, "%+v", server.ProxyQuestion{Type: resource.ZoneEgress, Name: "out-1", View: server.ViewConfigDump}),
		},
	} {
		if !bytes.Equal(tt.got, tt.want) {
			t.Errorf("%s: answered %s, want %s", tt.name, tt.got, tt.want)
		}
	}
	if err := stats.Send(&meshv1.StatsRequest{
		RequestId: "2", ResourceType: "Dataplane", ResourceMesh: "default", ResourceName: "dp-1", Format: meshv1.AdminOutputFormat_JSON, UsedOnly: true,
	}); err != nil {
		t.Fatal(err)
	}
	if got, want := recv(t, stats.Recv).GetStats(), want(func(q *server.ProxyQuestion) { q.View, q.JSON, q.UsedOnly = server.ViewStats, true, true }); !bytes.Equal(got, want) {
		t.Errorf("stats: answered %s, want %s", got, want)
	}
	if err := clusters.Send(&meshv1.ClustersRequest{RequestId: "3", ResourceType: "ZoneIngress", ResourceName: "in-1"}); err != nil {
		t.Fatal(err)
	}
	wantClusters := fmt.Appendf(nil, "%+v", server.ProxyQuestion{Type: resource.ZoneIngress, Name: "in-1", View: server.ViewClusters})
	if got := recv(t, clusters.Recv).GetClusters(); !bytes.Equal(got, wantClusters) {
		t.Errorf("clusters: answered %s, want %s", got, wantClusters)
	}
}

func TestWhatCannotBeAnsweredIsAnErrorOnTheStreamAndNotItsEnd(t *testing.T) {
	g := asking(t, proxies(func(_ context.Context, q server.ProxyQuestion) ([]byte, error) {
		switch q.Service {
		case "panics":
			panic("a fault")
		case "fails":
			return nil, errors.New("it fails")
		case "dead":
			return nil, &server.AskError{Reason: server.AskUnreachable, Details: "the proxy is not connected"}
		case "large":
			return make([]byte, 1<<20), nil // of 1 MiB that fit into a message of the test's zone
		case "fits":
			return make([]byte, 1<<20-64), nil
		default:
			return nil, nil
		}
	}))
	stream := <-g.configs
	for _, tt := range []struct {
		name string
		req  *meshv1.XDSConfigRequest
		want *meshv1.XDSConfigResponse
		size int // of the answer
	}{
		{
			"a proxy that is not there", &meshv1.XDSConfigRequest{ResourceType: "Dataplane", ResourceMesh: "default", ResourceName: "dp-2"},
			failure(`resource not found: type="Dataplane" name="dp-2" mesh="default"`, "not_found"), 0,
		},
		{
			"a type that is no proxy", &meshv1.XDSConfigRequest{ResourceType: "Mesh", ResourceName: "default"},
			failure(`"Mesh" is not a type of proxies`, "invalid"), 0,
		},
		{"nothing at all", &meshv1.XDSConfigRequest{}, failure(`"" is not a type of proxies`, "invalid"), 0},
		{
			"an ingress of another zone", &meshv1.XDSConfigRequest{ResourceType: "ZoneIngress", ResourceName: "zone-2.in-1"},
			failure(`ZoneIngress "zone-2.in-1" belongs to "zone-2" and is not a proxy of this zone`, "invalid"), 0,
		},
		{"a view that is not known", dp1("view=spy"), failure(`view=spy is not known to this zone`, "invalid"), 0},
		{"a query that is none", dp1("%zz"), failure(`the query cannot be read: invalid URL escape "%zz"`, "invalid"), 0},
		{"a fault of the zone", dp1("view=explain&service=panics"), failure("internal error", ""), 0},
		{"any error", dp1("view=explain&service=fails"), failure("it fails", ""), 0},
		{"a dead proxy", dp1("view=explain&service=dead"), failure("the proxy is not connected", "unreachable"), 0},
		{
			"more than a message holds", dp1("view=explain&service=large"),
			failure("the answer has 1048583 bytes, more than the 1048576 that fit into a message", "failed"), 0,
		},
		{"as much as a message holds", dp1("view=explain&service=fits"), &meshv1.XDSConfigResponse{}, 1<<20 - 64},
		{"nothing to say", dp1(""), &meshv1.XDSConfigResponse{}, 0},
	} {
		tt.req.RequestId = tt.name[:1]
		tt.want.RequestId = tt.name[:1]
		if err := stream.Send(tt.req); err != nil {
			t.Fatal(err)
		}
		got := recv(t, stream.Recv)
		if tt.size > 0 {
			if len(got.GetConfig()) != tt.size {
				t.Errorf("%s: answered with %d bytes and error %q", tt.name, len(got.GetConfig()), got.GetError())
			}
			continue
		}
		if d := cmp.Diff(tt.want, got, protocmp.Transform()); d != "" {
			t.Errorf("%s (-want +got):\n%s", tt.name, d)
		}
	}
	stats := <-g.stats
	if err := stats.Send(&meshv1.StatsRequest{RequestId: "1", ResourceType: "Dataplane", ResourceMesh: "default", ResourceName: "dp-1", Format: 7}); err != nil {
		t.Fatal(err)
	}
	if got := recv(t, stats.Recv).GetError(); got != "format 7 is not known to this zone" {
		t.Errorf("an unknown format: %q", got)
	}
	if g.count("down") != 1 || g.count("up") != 1 {
		t.Errorf("sync streams were opened %d and %d times", g.count("down"), g.count("up"))
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if got := g.header.Get("features"); !slices.Equal(got, []string{"zone-ping-health", "meridian-inspect-1"}) {
		t.Errorf("features %q", got)
	}
}

func dp1(query string) *meshv1.XDSConfigRequest {
	return &meshv1.XDSConfigRequest{ResourceType: "Dataplane", ResourceMesh: "default", ResourceName: "dp-1", MeridianQuery: query}
}

func failure(text, reason string) *meshv1.XDSConfigResponse {
	return &meshv1.XDSConfigResponse{Result: &meshv1.XDSConfigResponse_Error{Error: text}, MeridianReason: reason}
}

func TestAZoneWithoutProxiesToAskSaysSo(t *testing.T) {
	g := asking(t, nil)
	stream := <-g.configs
	req := dp1("")
	if err := stream.Send(req); err != nil {
		t.Fatal(err)
	}
	if got := recv(t, stream.Recv).GetError(); got != "no proxy of this zone can be asked" {
		t.Errorf("error %q", got)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if got := g.header.Get("features"); !slices.Equal(got, []string{"zone-ping-health"}) {
		t.Errorf("features %q", got)
	}
}

// held are proxies that answer when they are told to.
type held struct {
	mu    sync.Mutex
	calls int
	ended int
	say   chan struct{} // closed: all answer
}

func (h *held) Ask(ctx context.Context, _ server.ProxyQuestion) ([]byte, error) {
	h.mu.Lock()
	h.calls++
	h.mu.Unlock()
	defer func() { h.mu.Lock(); h.ended++; h.mu.Unlock() }()
	select {
	case <-h.say:
		return []byte("said"), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (h *held) count() (calls, ended int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.calls, h.ended
}

func TestQuestionsAreAnsweredSideBySideAndTooManyAreRefusedAtOnce(t *testing.T) {
	h := &held{say: make(chan struct{})}
	g := asking(t, h)
	stream := <-g.configs
	for i := range maxQuestions + 3 {
		req := dp1("")
		req.RequestId = fmt.Sprint(i)
		if err := stream.Send(req); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 {
		resp := recv(t, stream.Recv)
		if resp.GetRequestId() != fmt.Sprint(maxQuestions+i) || resp.GetMeridianReason() != "busy" {
			t.Errorf("answer %v", resp)
		}
	}
	close(h.say)
	ids := map[string]bool{}
	for range maxQuestions {
		resp := recv(t, stream.Recv)
		if string(resp.GetConfig()) != "said" || ids[resp.GetRequestId()] {
			t.Errorf("answer %v", resp)
		}
		ids[resp.GetRequestId()] = true
	}
	req := dp1("") // there is room again
	if err := stream.Send(req); err != nil {
		t.Fatal(err)
	}
	if resp := recv(t, stream.Recv); string(resp.GetConfig()) != "said" {
		t.Errorf("answer %v", resp)
	}
}

func TestAnIDThatIsAskedTwiceAtATimeIsAnsweredOnce(t *testing.T) {
	h := &held{say: make(chan struct{})}
	g := asking(t, h)
	stream := <-g.configs
	ask := func(id string) {
		t.Helper()
		req := dp1("")
		req.RequestId = id
		if err := stream.Send(req); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		ask("twice")
	}
	if resp := recv(t, stream.Recv); resp.GetRequestId() != "twice" || !strings.Contains(resp.GetError(), "asked twice") {
		t.Errorf("answer %v", resp)
	}
	close(h.say)
	eventually(t, "the first is done", func() bool { _, ended := h.count(); return ended == 1 })
	ask("other")
	if resp := recv(t, stream.Recv); resp.GetRequestId() != "other" || string(resp.GetConfig()) != "said" {
		t.Errorf("answer %v", resp)
	}
	if calls, _ := h.count(); calls != 2 {
		t.Errorf("the proxy was asked %d times", calls)
	}
}

func TestTheEndOfAStreamEndsItsQuestionsAndNoOther(t *testing.T) {
	h := &held{say: make(chan struct{})}
	g := asking(t, h)
	configs, stats := <-g.configs, <-g.stats
	req := dp1("")
	if err := configs.Send(req); err != nil {
		t.Fatal(err)
	}
	if err := stats.Send(&meshv1.StatsRequest{RequestId: "1", ResourceType: "Dataplane", ResourceMesh: "default", ResourceName: "dp-1"}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both are asked", func() bool { calls, _ := h.count(); return calls == 2 })
	g.end <- struct{}{}
	again := <-g.configs // it comes back by itself
	eventually(t, "the first has ended", func() bool { _, ended := h.count(); return ended == 1 })
	close(h.say)
	if got := recv(t, stats.Recv).GetStats(); string(got) != "said" {
		t.Errorf("the other is answered %q", got)
	}
	if err := again.Send(req); err != nil {
		t.Fatal(err)
	}
	if got := recv(t, again.Recv).GetConfig(); string(got) != "said" {
		t.Errorf("the new stream is answered %q", got)
	}
	if g.count("down") != 1 || g.count("up") != 1 {
		t.Errorf("sync streams were opened %d and %d times", g.count("down"), g.count("up"))
	}
}
