package admin

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/server"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
	"github.com/meridian-mesh/meridian/global/zones"
)

// rig is a registry over a store with the zones zone-1, zone-2, and off, which is disabled; each has a Dataplane dp-1.
type rig struct {
	*Registry
	t        *testing.T
	registry *prometheus.Registry
	sessions *sessions
	halves   sync.WaitGroup
}

func newRig(t *testing.T, change func(*Config)) *rig {
	t.Helper()
	st, err := store.Open(t.Context(), memory.New(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var ops []store.Op
	for _, zone := range []string{"zone-1", "zone-2", "off"} {
		spec, err := proto.Marshal(&systemv1.Zone{Enabled: wrapperspb.Bool(zone != "off")})
		if err != nil {
			t.Fatal(err)
		}
		ops = append(ops,
			store.Put(&store.Record{Key: store.Key{Type: string(resource.ZoneType), Name: zone}, Spec: spec}),
			store.Put(&store.Record{
				Key:  store.Key{Type: string(resource.Dataplane), Mesh: "default", Name: zone + ".dp-1"},
				Spec: []byte{}, Origin: zone, WireName: "dp-1",
			}))
	}
	if _, err := st.Update(t.Context(), func(*store.Snapshot) ([]store.Op, error) { return ops, nil }); err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, registry: prometheus.NewRegistry(), sessions: &sessions{online: map[string]bool{}}}
	config := Default()
	if change != nil {
		change(&config)
	}
	r.Registry = New(Options{
		Config: config, Store: st, Zones: r.sessions, Registerer: r.registry, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	t.Cleanup(func() {
		r.halves.Wait()
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

// sessions is what the registry asks about zones.
type sessions struct {
	online  map[string]bool
	insight *systemv1.ZoneInsight
}

func (s *sessions) Live(_ *store.Snapshot, zone string) (server.ZoneLive, bool) {
	return server.ZoneLive{Online: s.online[zone]}, true
}

func (s *sessions) Progress(context.Context, *store.Snapshot, []string) map[string]server.ZoneProgress {
	return nil
}

func (s *sessions) Insight(string) (*systemv1.ZoneInsight, bool) { return s.insight, s.insight != nil }

// peer is a zone's end of a stream for configurations.
type peer struct {
	grpc.ServerStream
	t       *testing.T
	asked   chan *meshv1.XDSConfigRequest  // not buffered: a zone that does not read it does not read
	answers chan *meshv1.XDSConfigResponse // closed: the zone ends the stream
	over    chan struct{}                  // closed when the handler has returned
	cut     context.CancelCauseFunc        // ends the stream, as the table of sessions does
	err     error                          // of the handler, once over is closed
}

func (p *peer) Send(m *meshv1.XDSConfigRequest) error {
	select {
	case p.asked <- m:
		return nil
	case <-p.over:
		return io.ErrClosedPipe
	}
}

func (p *peer) Recv() (*meshv1.XDSConfigResponse, error) {
	select {
	case m, ok := <-p.answers:
		if !ok {
			return nil, io.EOF
		}
		return m, nil
	case <-p.over:
		return nil, io.ErrClosedPipe
	}
}

// connect opens a stream of a zone, which is the zone's stream when connect returns.
func (r *rig) connect(zone string, inspects bool) *peer {
	r.t.Helper()
	p := &peer{
		t: r.t, asked: make(chan *meshv1.XDSConfigRequest), answers: make(chan *meshv1.XDSConfigResponse), over: make(chan struct{}),
	}
	ctx, cut := context.WithCancelCause(context.Background())
	p.cut = cut
	before := r.link(zone)
	r.halves.Go(func() {
		defer close(p.over)
		p.err = r.ServeXDSConfigs(ctx, zones.Hello{Zone: zone, Inspects: inspects}, p, &r.halves)
	})
	r.eventually("the stream is open", func() bool { return r.link(zone) != before })
	r.t.Cleanup(func() { cut(context.Canceled); <-p.over })
	return p
}

func (r *rig) link(zone string) *link {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.links[linkKey{zone, zones.XDSConfigs}]
}

func (r *rig) eventually(what string, holds func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if holds() {
			return
		}
	}
	r.t.Fatalf("never: %s", what)
}

func (p *peer) read() *meshv1.XDSConfigRequest {
	p.t.Helper()
	select {
	case m := <-p.asked:
		return m
	case <-p.t.Context().Done():
		p.t.Fatal("nothing was asked")
		return nil
	}
}

// say answers with what is said.
func (p *peer) say(id, config string) {
	p.write(&meshv1.XDSConfigResponse{RequestId: id, Result: &meshv1.XDSConfigResponse_Config{Config: []byte(config)}})
}

func (p *peer) write(m *meshv1.XDSConfigResponse) {
	p.t.Helper()
	select {
	case p.answers <- m:
	case <-p.over:
		p.t.Fatalf("the stream has ended: %v", p.err)
	}
}

func dump(zone string) server.ProxyQuestion {
	return server.ProxyQuestion{Type: resource.Dataplane, Mesh: "default", Name: zone + ".dp-1", View: server.ViewConfigDump}
}

type reply struct {
	body []byte
	err  error
}

// start asks, and gives what comes of it.
func (r *rig) start(ctx context.Context, q server.ProxyQuestion) <-chan reply {
	c := make(chan reply, 1)
	r.halves.Go(func() {
		body, err := r.Ask(ctx, q)
		c <- reply{bytes.TrimSpace(body), err}
	})
	return c
}

// metric is the sum of a counter or gauge over its labels.
func (r *rig) metric(name string) (sum float64) {
	r.t.Helper()
	families, err := r.registry.Gather()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
		for _, m := range f.GetMetric() {
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sum
}
