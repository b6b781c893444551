package zone

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/meridian-mesh/meridian/api/defaults"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/tokens"
	"github.com/meridian-mesh/meridian/common/rsakeys"
	"github.com/meridian-mesh/meridian/common/storage"
	"github.com/meridian-mesh/meridian/common/store"
)

// The benchmarks run a whole zone plane in this process, and its proxies in another: a thousand, each with a connection over TLS
// and a token of its own, in a mesh with mutual TLS and the policies that every mesh begins with. There are a hundred services
// of ten instances, and each proxy has ten of them for outbounds; the first of the proxies have one more, whose one endpoint
// changes.

const (
	proxyCount    = 1000
	serviceCount  = 100
	outboundCount = 10
	zoneName      = "zone-1"
)

// benchPlane is a zone plane that runs.
type benchPlane struct {
	b    *testing.B
	cfg  Config
	zone *Zone
	stop context.CancelFunc
	done chan error
}

func newBenchPlane(b *testing.B, storeType string) *benchPlane {
	b.Helper()
	cfg := DefaultConfig()
	cfg.General.DataDir = b.TempDir()
	cfg.Store.Type = storeType
	cfg.Multizone.Zone.Name, cfg.Multizone.Zone.GlobalAddress = zoneName, "grpc://localhost:1"
	cfg.API.BindAddress, cfg.Diagnostics.BindAddress, cfg.DPServer.BindAddress = "127.0.0.1", "127.0.0.1", "127.0.0.1"
	cfg.API.HTTPPort, cfg.API.HTTPSPort, cfg.Diagnostics.Port, cfg.DPServer.Port, cfg.MADS.Port = 0, 0, 0, 0, 0
	return &benchPlane{b: b, cfg: cfg}
}

func (p *benchPlane) open() {
	p.b.Helper()
	var err error
	if p.zone, err = New(p.b.Context(), p.cfg, slog.New(slog.DiscardHandler)); err != nil {
		p.b.Fatal(err)
	}
	p.cfg.DPServer.Port = p.zone.cfg.DPServer.Port // and the next time again
}

func (p *benchPlane) run() {
	ctx, cancel := context.WithCancel(context.Background())
	p.stop, p.done = cancel, make(chan error, 1)
	go func() { p.done <- p.zone.Run(ctx) }()
}

func (p *benchPlane) close() {
	p.stop()
	if err := <-p.done; err != nil && !errors.Is(err, context.Canceled) {
		p.b.Errorf("the plane ended: %v", err)
	}
	if err := p.zone.Close(); err != nil {
		p.b.Error(err)
	}
}

func (p *benchPlane) put(recs ...*store.Record) {
	p.b.Helper()
	_, err := p.zone.store.Update(p.b.Context(), func(*store.Snapshot) ([]store.Op, error) {
		ops := make([]store.Op, len(recs))
		for i, rec := range recs {
			ops[i] = store.Put(rec)
		}
		return ops, nil
	})
	if err != nil {
		p.b.Fatal(err)
	}
}

func record(typ resource.Type, mesh, name string, spec proto.Message) *store.Record {
	raw, err := proto.MarshalOptions{Deterministic: true}.Marshal(spec)
	if err != nil {
		panic(err)
	}
	return &store.Record{Key: store.Key{Type: string(typ), Mesh: mesh, Name: name}, Spec: raw}
}

func outboundsOf(i, dependents int) []string {
	var out []string
	for j := range outboundCount {
		out = append(out, fmt.Sprintf("service-%d", (i+j)%serviceCount))
	}
	if i < dependents {
		out = append(out, "changing")
	}
	return out
}

func tagged(service string) map[string]string {
	return map[string]string{"kuma.io/service": service, "kuma.io/protocol": "http", "kuma.io/zone": zoneName}
}

// populate stores a mesh and its dataplanes and returns the proxies that belong to them.
func (p *benchPlane) populate(dependents int) []peer {
	p.b.Helper()
	mesh := &meshv1.Mesh{Mtls: &meshv1.Mesh_Mtls{EnabledBackend: "ca-1", Backends: []*meshv1.CertificateAuthorityBackend{{Name: "ca-1", Type: "builtin"}}}}
	made := make(defaults.Material)
	_, err := defaults.Commit(p.b.Context(), p.zone.store, rsakeys.NewPool(0).Key, made, nil, func(head *store.Snapshot) ([]store.Op, []defaults.Need, error) {
		ops, needs, err := defaults.MeshWrite{Name: "default", Spec: mesh, Policies: true, Key: true, Now: time.Now()}.Ops(head, made)
		return append(ops, store.Put(record(resource.Mesh, "", "default", mesh))), needs, err
	})
	if err != nil {
		p.b.Fatal(err)
	}
	authority := tokens.NewAuthority()
	list := make([]peer, proxyCount)
	recs := make([]*store.Record, proxyCount)
	for i := range list {
		name, service, address := fmt.Sprintf("dp-%d", i), fmt.Sprintf("service-%d", i%serviceCount), fmt.Sprintf("10.1.%d.%d", i/250, 1+i%250)
		outbounds := outboundsOf(i, dependents)
		dp := &meshv1.Dataplane{Networking: &meshv1.Dataplane_Networking{
			Address: address, Inbound: []*meshv1.Dataplane_Networking_Inbound{{Port: 80, Tags: tagged(service)}},
		}}
		var body []map[string]any
		for j, o := range outbounds {
			dp.Networking.Outbound = append(dp.Networking.Outbound, &meshv1.Dataplane_Networking_Outbound{
				Port: uint32(10000 + j), Tags: map[string]string{"kuma.io/service": o},
			})
			body = append(body, map[string]any{"port": 10000 + j, "tags": map[string]string{"kuma.io/service": o}})
		}
		recs[i] = record(resource.Dataplane, "default", name, dp)
		brought, err := json.Marshal(map[string]any{"type": "Dataplane", "mesh": "default", "name": name, "networking": map[string]any{
			"address": address, "inbound": []any{map[string]any{"port": 80, "tags": tagged(service)}}, "outbound": body,
		}})
		if err != nil {
			p.b.Fatal(err)
		}
		token, _, err := authority.Issue(p.zone.store.Snapshot(), tokens.Dataplane, tokens.Claims{Mesh: "default", Name: name}, time.Hour)
		if err != nil {
			p.b.Fatal(err)
		}
		slices.Sort(outbounds)
		list[i] = peer{Node: "default." + name, Token: token, Resource: string(brought), Clusters: outbounds, Listeners: len(outbounds) + 1}
	}
	p.put(append(recs, changing(0))...)
	return list
}

func changingAddress(i int) string { return fmt.Sprintf("10.2.0.%d", 1+i%2) }

// changing is the workload that moves.
func changing(i int) *store.Record {
	return record(resource.Dataplane, "default", "changing", &meshv1.Dataplane{Networking: &meshv1.Dataplane_Networking{
		Address: changingAddress(i), Inbound: []*meshv1.Dataplane_Networking_Inbound{{Port: 80, Tags: tagged("changing")}},
	}})
}

// crowd is the process of the proxies.
type crowd struct {
	b      *testing.B
	cmd    *exec.Cmd
	in     io.WriteCloser
	orders *json.Encoder
	events chan event
}

func (p *benchPlane) connect(list []peer) *crowd {
	p.b.Helper()
	ca, err := os.ReadFile(filepath.Join(p.cfg.General.DataDir, "trust", "dp-ca.crt"))
	if err != nil {
		p.b.Fatal(err)
	}
	c := &crowd{b: p.b, events: make(chan event, 16)}
	c.cmd = exec.Command(os.Args[0]) // it ends with its standard input
	c.cmd.Env, c.cmd.Stderr = append(os.Environ(), peersEnv+"=1"), os.Stderr
	if c.in, err = c.cmd.StdinPipe(); err != nil {
		p.b.Fatal(err)
	}
	out, err := c.cmd.StdoutPipe()
	if err != nil {
		p.b.Fatal(err)
	}
	if err := c.cmd.Start(); err != nil {
		p.b.Fatal(err)
	}
	go func() {
		defer close(c.events)
		for dec := json.NewDecoder(out); ; {
			var e event
			if dec.Decode(&e) != nil {
				return
			}
			c.events <- e
		}
	}()
	c.orders = json.NewEncoder(c.in)
	c.tell(order{Address: fmt.Sprintf("127.0.0.1:%d", p.cfg.DPServer.Port), CA: ca, Peers: list})
	return c
}

func (c *crowd) tell(o order) {
	c.b.Helper()
	if err := c.orders.Encode(o); err != nil {
		c.b.Fatal(err)
	}
}

// wait waits for an event of a kind.
func (c *crowd) wait(what string) event {
	c.b.Helper()
	limit := time.NewTimer(2 * time.Minute)
	defer limit.Stop()
	for {
		select {
		case e, ok := <-c.events:
			switch {
			case !ok:
				c.b.Fatal("the process of the proxies has ended")
			case e.What == "wrong":
				c.b.Fatal("a proxy got what it should not: ", e.Text)
			case e.What == what:
				return e
			}
		case <-limit.C:
			c.b.Fatalf("the proxies do not tell: %s", what)
		}
	}
}

func (c *crowd) close() {
	_ = c.in.Close()
	for range c.events { // until it has ended
	}
	_ = c.cmd.Wait()
}

// cpu is the time that this process has used of processors.
func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func percentile(sorted []time.Duration, p float64) float64 {
	return float64(sorted[min(int(p*float64(len(sorted))), len(sorted)-1)].Microseconds()) / 1000
}

// BenchmarkEndpointChange moves one endpoint: the time from its commit until the last of the proxies that depend on it has it.
// CPU is that of the plane alone; bytes are those of the responses.
func BenchmarkEndpointChange(b *testing.B) {
	for _, dependents := range []int{10, 100, 1000} {
		b.Run(fmt.Sprintf("dependents=%d", dependents), func(b *testing.B) {
			p := newBenchPlane(b, storage.Memory)
			p.open()
			peers := p.populate(dependents)
			p.run()
			defer p.close()
			c := p.connect(peers)
			defer c.close()
			c.wait("complete")
			time.Sleep(3 * time.Second) // what was stored of the proxies that connected is worked off
			var took []time.Duration
			var bytes int64
			begin := cpu()
			for i := 1; b.Loop(); i++ {
				c.tell(order{Await: changingAddress(i), Count: dependents})
				c.wait("ready")
				at := time.Now()
				p.put(changing(i))
				e := c.wait("changed")
				took = append(took, time.Unix(0, e.At).Sub(at))
				bytes += e.Bytes
			}
			used := cpu() - begin
			slices.Sort(took)
			n := float64(len(took))
			b.ReportMetric(percentile(took, 0.5), "p50-ms")
			b.ReportMetric(percentile(took, 0.99), "p99-ms")
			b.ReportMetric(float64(used.Microseconds())/1000/n, "cpu-ms/op")
			b.ReportMetric(float64(bytes)/n, "bytes/op")
		})
	}
}

// BenchmarkIdle has a thousand proxies connected and nothing happen, for longer than it takes until connections are pinged:
// what the plane uses of a processor, and how much memory there is for each proxy.
func BenchmarkIdle(b *testing.B) {
	const watched = 20 * time.Second
	p := newBenchPlane(b, storage.Memory)
	p.open()
	peers := p.populate(100)
	p.run()
	defer p.close()
	time.Sleep(time.Second)
	before, goroutines := memory(), runtime.NumGoroutine()
	c := p.connect(peers)
	defer c.close()
	c.wait("complete")
	time.Sleep(3 * time.Second)
	after := memory()
	for b.Loop() {
		begin, used := time.Now(), cpu()
		time.Sleep(watched)
		b.ReportMetric(100*float64(cpu()-used)/float64(time.Since(begin)), "%core")
	}
	b.ReportMetric(float64(runtime.NumGoroutine()-goroutines)/proxyCount, "goroutines/proxy")
	b.ReportMetric(float64(after.heap-before.heap)/proxyCount/1024, "heap-kB/proxy")
	b.ReportMetric(float64(after.stacks-before.stacks)/proxyCount/1024, "stack-kB/proxy")
}

type usage struct{ heap, stacks int64 }

// memory is what is in use after all that is not has been freed.
func memory() usage {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return usage{int64(m.HeapAlloc), int64(m.StackInuse)}
}

// BenchmarkColdStart restarts the plane on its data directory while a thousand proxies try to reach it: the time from the start
// until each has a complete configuration. A proxy that gets a part of one first, or one without endpoints, fails it.
func BenchmarkColdStart(b *testing.B) {
	p := newBenchPlane(b, storage.Bolt)
	p.open()
	peers := p.populate(100)
	p.run()
	defer func() { p.close() }()
	c := p.connect(peers)
	defer c.close()
	c.wait("complete")
	var worst time.Duration
	var used time.Duration
	n := 0
	for b.Loop() {
		b.StopTimer()
		p.close()
		c.wait("lost")
		b.StartTimer()
		at, before := time.Now(), cpu()
		p.open()
		p.run()
		e := c.wait("complete")
		worst = max(worst, time.Unix(0, e.At).Sub(at))
		used += cpu() - before
		n++
	}
	b.ReportMetric(worst.Seconds(), "worst-s")
	b.ReportMetric(used.Seconds()/float64(n), "cpu-s/op")
}
