package simulation

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/server"
)

// proxyFunc is what answers questions about the proxies of a zone.
type proxyFunc func(ctx context.Context, q server.ProxyQuestion) ([]byte, error)

func (f proxyFunc) Ask(ctx context.Context, q server.ProxyQuestion) ([]byte, error) { return f(ctx, q) }

// askedOf is a question about the Dataplane dp of a zone.
func askedOf(zone string, view server.ProxyView) server.ProxyQuestion {
	return server.ProxyQuestion{Type: resource.Dataplane, Mesh: "default", Name: zone + ".dp", View: view}
}

type told struct {
	text string
	err  error
	took time.Duration
}

// asksLater asks the global, and gives what comes of it.
func (g *globalPlane) asksLater(t testing.TB, q server.ProxyQuestion) <-chan told {
	out := make(chan told, 1)
	began := time.Now()
	go func() {
		body, err := g.asks.Ask(t.Context(), q)
		out <- told{strings.TrimSpace(string(body)), err, time.Since(began)}
	}()
	return out
}

func refused(t testing.TB, got told, reason server.AskReason, text string) {
	t.Helper()
	ask, ok := errors.AsType[*server.AskError](got.err)
	if !ok || ask.Reason != reason || !strings.Contains(ask.Details, text) {
		t.Errorf("answered %.80q, %v; want reason %d with %q", got.text, got.err, reason, text)
	}
}

// kumaZone is a hand-played zone with a Dataplane dp, its two sync streams, and the one for configurations.
type kumaZone struct {
	*rawZone
	t       testing.TB
	g       *globalPlane
	arrived chan string // names of TrafficPermissions that came down
	configs grpc.BidiStreamingClient[meshv1.XDSConfigResponse, meshv1.XDSConfigRequest]
	reading sync.WaitGroup
}

func newKumaZone(t testing.TB, g *globalPlane, name string) *kumaZone {
	t.Helper()
	z := &kumaZone{rawZone: g.rawZone(t, name), t: t, g: g, arrived: make(chan string, 100)}
	labels := map[string]string{"kuma.io/display-name": "dp", "kuma.io/origin": "zone", "kuma.io/zone": name}
	down, up := z.down(), z.up()
	exchange(t, up, response(name, "Dataplane", "1", wire(t, "dp-hash", "default", dataplane("1.1.1.1"), labels)))
	if err := down.Send(z.ask("TrafficPermission")); err != nil {
		t.Fatal(err)
	}
	z.reading.Go(func() {
		defer close(z.arrived)
		for {
			resp, err := down.Recv()
			if err != nil {
				return
			}
			for _, n := range names(resp) {
				z.arrived <- n
			}
			if err := down.Send(z.ack(resp)); err != nil {
				return
			}
		}
	})
	z.openConfigs()
	return z
}

func (z *kumaZone) openConfigs(opts ...grpc.CallOption) {
	z.t.Helper()
	var err error
	if z.configs, err = z.admin.StreamXDSConfigs(z.ctx, opts...); err != nil {
		z.t.Fatal(err)
	}
	settle(time.Second)
}

func (z *kumaZone) stop() { z.close(); z.reading.Wait() }

// asked is the id of the next question.
func (z *kumaZone) asked() string {
	z.t.Helper()
	req, err := z.configs.Recv()
	if err != nil {
		z.t.Fatalf("nothing was asked: %v", err)
	}
	if req.GetResourceName() != "dp" || req.GetResourceMesh() != "default" || req.GetResourceType() != "Dataplane" || req.GetMeridianQuery() != "" {
		z.t.Errorf("asked %v", req)
	}
	return req.GetRequestId()
}

func (z *kumaZone) says(id, config string) {
	z.t.Helper()
	if err := z.configs.Send(&meshv1.XDSConfigResponse{RequestId: id, Result: &meshv1.XDSConfigResponse_Config{Config: []byte(config)}}); err != nil {
		z.t.Fatal(err)
	}
}

// syncs checks that both sync streams are those that were opened first, and live.
func (z *kumaZone) syncs(name string) {
	z.t.Helper()
	z.g.put(z.t, "TrafficPermission", "default", name, permission("*"))
	if got, ok := <-z.arrived; !ok || got != name+".default" {
		z.t.Errorf("%q came down, want %s: the stream lives %v", got, name, ok)
	}
	if live, _ := z.g.table.Live(z.g.st.Snapshot(), z.name); !live.Online {
		z.t.Error("the zone is offline")
	}
	if in, _ := z.g.table.Insight(z.name); len(in.GetSubscriptions()) != 1 {
		z.t.Errorf("it has %d subscriptions", len(in.GetSubscriptions()))
	}
}

func TestLesson38_AnswersOutOfTurnConcernNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g, _, stop := world(t)
		defer stop()
		z := newKumaZone(t, g, "kuma-1")
		defer z.stop()
		never := g.asksLater(t, askedOf("kuma-1", server.ViewConfigDump))
		late := z.asked()
		first := g.asksLater(t, askedOf("kuma-1", server.ViewConfigDump))
		id1 := z.asked()
		second := g.asksLater(t, askedOf("kuma-1", server.ViewConfigDump))
		id2 := z.asked()
		z.says("an id of nobody", "1")
		z.says("", "2")
		z.says(id2, `"second"`)
		z.says(id2, `"second again"`)
		z.says(id1, `"first"`)
		if got := <-second; got.text != `"second"` || got.err != nil {
			t.Errorf("answer %q, %v", got.text, got.err)
		}
		if got := <-first; got.text != `"first"` || got.err != nil {
			t.Errorf("answer %q, %v", got.text, got.err)
		}
		got := <-never
		refused(t, got, server.AskTimeout, `zone "kuma-1" has not answered within 10s`)
		if got.took != 10*time.Second {
			t.Errorf("it took %s", got.took)
		}
		z.says(late, `"late"`)
		z.syncs("after-a-late-answer")
		again := g.asksLater(t, askedOf("kuma-1", server.ViewConfigDump))
		z.says(z.asked(), `"again"`)
		if got := <-again; got.text != `"again"` || got.err != nil {
			t.Errorf("answer %q, %v", got.text, got.err)
		}
		// What Kuma does not know is not asked of it.
		controlPlane := askedOf("kuma-1", server.ViewConfigDump)
		controlPlane.ControlPlane = true
		refused(t, <-g.asksLater(t, controlPlane), server.AskInvalid, `the control plane of zone "kuma-1" does not offer`)
		refused(t, <-g.asksLater(t, askedOf("kuma-1", server.ViewStats)), server.AskUnreachable, "stream not connected")
	})
}

// garbage sends what is no message.
type garbage struct{}

func (garbage) Marshal(any) ([]byte, error)     { return []byte{0xff, 0xff, 0xff}, nil }
func (garbage) Unmarshal(b []byte, v any) error { return proto.Unmarshal(b, v.(proto.Message)) }
func (garbage) Name() string                    { return "proto" }

func TestLesson39_AnAnswerThatIsTooLargeEndsNoSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGlobal(t)
		g.start(t)
		defer func() { g.stop() }()
		large := strings.Repeat("x", 11<<20)
		ours := newZone(t, "zone-1", g)
		ours.proxies = proxyFunc(func(_ context.Context, q server.ProxyQuestion) ([]byte, error) {
			if q.View == server.ViewStats {
				return []byte("small"), nil
			}
			return []byte(large), nil
		})
		ours.start(t)
		defer func() { ours.stop() }()
		ours.put(t, resource.Dataplane, "default", "dp", dataplane("1.1.1.1"))
		z := newKumaZone(t, g, "kuma-1")
		defer z.stop()
		settle(5 * time.Second)

		// A Meridian zone says so in its answer, on the stream.
		for range 3 {
			refused(t, <-g.asksLater(t, askedOf("zone-1", server.ViewConfigDump)), server.AskFailed,
				"could not send XDSConfigRequest: the answer has 11534")
		}
		if got := <-g.asksLater(t, askedOf("zone-1", server.ViewStats)); got.text != "small" || got.err != nil {
			t.Errorf("answer %q, %v", got.text, got.err)
		}
		g.put(t, "TrafficPermission", "default", "p", permission("*"))
		settle(5 * time.Second)
		if d := diverged(g, ours); d != "" {
			t.Errorf("not converged:\n%s", d)
		}
		if in, _ := g.table.Insight("zone-1"); len(in.GetSubscriptions()) != 1 {
			t.Errorf("zone-1 has %d subscriptions", len(in.GetSubscriptions()))
		}

		// A Kuma zone sends it: that ends this stream and the questions on it, and the zone opens it again.
		<-z.arrived
		for i, wrong := range []struct {
			name string
			opts []grpc.CallOption
			body string
			code codes.Code
		}{
			{"more than the limit", nil, large, codes.ResourceExhausted},
			{"no message", []grpc.CallOption{grpc.ForceCodec(garbage{})}, "", codes.Internal},
		} {
			z.openConfigs(wrong.opts...)
			c, other := g.asksLater(t, askedOf("kuma-1", server.ViewConfigDump)), g.asksLater(t, askedOf("kuma-1", server.ViewConfigDump))
			id := z.asked()
			z.asked()
			z.says(id, wrong.body)
			refused(t, <-c, server.AskUnreachable, `the stream of zone "kuma-1" has ended`)
			refused(t, <-other, server.AskUnreachable, `the stream of zone "kuma-1" has ended`)
			if _, err := z.configs.Recv(); status.Code(err) != wrong.code {
				t.Errorf("%s: the stream ended with %v", wrong.name, err)
			}
			refused(t, <-g.asksLater(t, askedOf("kuma-1", server.ViewConfigDump)), server.AskUnreachable, "stream not connected")
			z.syncs(fmt.Sprint("after-", i))
			z.openConfigs()
			c = g.asksLater(t, askedOf("kuma-1", server.ViewConfigDump))
			z.says(z.asked(), "{}")
			if got := <-c; got.text != "{}" {
				t.Errorf("answer %q, %v", got.text, got.err)
			}
		}
	})
}

// Lesson 4 again: questions have their own writers.
func TestLesson04_QuestionsAmongWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGlobal(t)
		g.start(t)
		defer func() { g.stop() }()
		var all []*zonePlane
		for _, name := range []string{"zone-1", "zone-2"} {
			z := newZone(t, name, g)
			z.proxies = proxyFunc(func(_ context.Context, q server.ProxyQuestion) ([]byte, error) {
				return fmt.Appendf(nil, "%q", name+" "+string(q.View)), nil
			})
			z.start(t)
			defer func() { z.stop() }()
			z.put(t, resource.Dataplane, "default", "dp", dataplane("1.1.1.1"))
			all = append(all, z)
		}
		settle(5 * time.Second)
		var wg sync.WaitGroup
		for i := range 20 {
			zone, view := all[i%2].name, []server.ProxyView{server.ViewConfigDump, server.ViewStats, server.ViewClusters, server.ViewExplain}[i/2%4]
			wg.Go(func() {
				for range 20 {
					want := fmt.Sprintf("%q", zone+" "+string(view))
					if got := <-g.asksLater(t, askedOf(zone, view)); got.text != want || got.err != nil {
						t.Errorf("answered %s, %v, want %s", got.text, got.err, want)
						return
					}
				}
			})
		}
		for i := range 100 {
			g.put(t, "TrafficPermission", "default", fmt.Sprint("p", i), permission("*"))
			all[i%2].put(t, resource.Dataplane, "default", fmt.Sprint("dp", i), dataplane("1.1.1.1"))
		}
		wg.Wait()
		settle(10 * time.Second)
		converged(t, g, all...)
	})
}

func TestAZoneThatIsCutOffOrFrozenAnswersNoQuestionAndBlocksNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGlobal(t)
		g.start(t)
		defer func() { g.stop() }()
		z := newZone(t, "zone-1", g)
		z.proxies = proxyFunc(func(context.Context, server.ProxyQuestion) ([]byte, error) { return []byte("{}"), nil })
		z.start(t)
		defer func() { z.stop() }()
		z.put(t, resource.Dataplane, "default", "dp", dataplane("1.1.1.1"))
		settle(5 * time.Second)
		// Frozen: nothing of it arrives, and its connection stays, until its health checks are missed.
		for _, l := range g.net.of("zone-1") {
			l.freeze()
		}
		got := <-g.asksLater(t, askedOf("zone-1", server.ViewConfigDump))
		refused(t, got, server.AskUnreachable, `the stream of zone "zone-1" has ended`)
		if got.took > g.healthTimeout {
			t.Errorf("it took %s", got.took)
		}
		got = <-g.asksLater(t, askedOf("zone-1", server.ViewConfigDump))
		refused(t, got, server.AskUnreachable, `zone "zone-1" is offline`)
		if got.took != 0 {
			t.Errorf("it took %s", got.took)
		}
		g.net.cut("zone-1")
		settle(30 * time.Second)
		if got := <-g.asksLater(t, askedOf("zone-1", server.ViewConfigDump)); got.text != "{}" {
			t.Errorf("after it is back: %q, %v", got.text, got.err)
		}
	})
}
