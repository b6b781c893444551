package page

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/structpb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/storage"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/global"
	"github.com/meridian-mesh/meridian/zone"
	"github.com/meridian-mesh/meridian/zone/dpserver"
)

func TestMain(m *testing.M) {
	// The render cache keeps its timer goroutine until it is collected.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/maypok86/otter/v2.(*cache[...]).periodicCleanUp"))
}

// zoneName is the zone of the tests. The zones that the page puts and deletes have other names.
const zoneName = "zone-1"

// plane is a control plane that runs in this process and is asked over its socket. It can be stopped and started
// again on the same data.
type plane struct {
	kind   resource.Plane
	port   int
	dir    string
	client *http.Client
	run    func(ctx context.Context) error // runs until ctx ends
	stop   func()
}

// component is what both planes are.
type component interface {
	Run(ctx context.Context) error
	Close() error
}

// start starts the plane.
func (p *plane) start(t *testing.T, build func() (component, error)) {
	t.Helper()
	c, err := build()
	if err != nil {
		t.Fatalf("start the %s: %v", p.kind, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := c.Run(ctx); err != nil {
			t.Errorf("the %s failed: %v", p.kind, err)
		}
	})
	p.stop = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		if err := c.Close(); err != nil {
			t.Errorf("close the %s: %v", p.kind, err)
		}
	})
}

// planes are a global and a zone of it.
type planes struct {
	global, zone *plane
	zoneConfig   zone.Config
	log          *slog.Logger
	test         *testing.T // what they end with
}

// newPlanes starts a global and its zone; they end with the test.
func newPlanes(t *testing.T) *planes {
	t.Helper()
	level := slog.LevelError + 1
	if os.Getenv("MERIDIAN_TEST_LOG") != "" {
		level = slog.LevelDebug
	}
	// Idle connections would keep goroutines.
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}
	ps := &planes{
		test:   t,
		global: &plane{kind: resource.Global, dir: t.TempDir(), port: freePort(t), client: client},
		zone:   &plane{kind: resource.Zone, dir: t.TempDir(), port: freePort(t), client: client},
		log:    slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: level})),
	}
	g := global.DefaultConfig()
	g.General.DataDir = ps.global.dir
	g.API.BindAddress, g.API.HTTPPort, g.API.HTTPSPort = "127.0.0.1", ps.global.port, -1
	g.Diagnostics.BindAddress, g.Diagnostics.Port = "127.0.0.1", 0
	g.Multizone.Global.KDS.BindAddress, g.Multizone.Global.KDS.Port = "127.0.0.1", freePort(t)
	ps.global.start(t, func() (component, error) { return global.New(t.Context(), g, ps.log.With("plane", "global")) })
	t.Cleanup(ps.global.stop)

	z := zone.DefaultConfig()
	z.General.DataDir = ps.zone.dir
	z.API.BindAddress, z.API.HTTPPort, z.API.HTTPSPort = "127.0.0.1", ps.zone.port, -1
	z.Diagnostics.BindAddress, z.Diagnostics.Port = "127.0.0.1", 0
	z.DPServer.BindAddress, z.DPServer.Port, z.MADS.Port = "127.0.0.1", freePort(t), -1
	z.DPServer.Auth.Type = dpserver.AuthNone
	z.Multizone.Zone.Name = zoneName
	z.Multizone.Zone.GlobalAddress = fmt.Sprintf("grpcs://127.0.0.1:%d", g.Multizone.Global.KDS.Port)
	z.Multizone.Zone.KDS.CAFile = filepath.Join(ps.global.dir, "trust", "kds-ca.crt")
	z.Multizone.Zone.KDS.ReconnectBase = 10 * time.Millisecond
	z.Multizone.Zone.TokenFile = filepath.Join(ps.zone.dir, "zone-token")
	token := ps.global.call(t, http.MethodPost, "/tokens/zone", fmt.Sprintf(`{"zone":%q,"scope":["cp"]}`, zoneName),
		[2]string{"Content-Type", "application/json"})
	if err := os.WriteFile(z.Multizone.Zone.TokenFile, token.body, 0o600); err != nil || token.status != http.StatusOK {
		t.Fatalf("token of the zone: %v: %d %s", err, token.status, token.body)
	}
	ps.zoneConfig = z
	ps.startZone(t)
	t.Cleanup(func() { ps.zone.stop() })
	return ps
}

func (ps *planes) startZone(t *testing.T) {
	t.Helper()
	ps.zone.start(t, func() (component, error) { return zone.New(t.Context(), ps.zoneConfig, ps.log.With("plane", "zone")) })
}

// seedZone puts records into the zone's store, as its proxies would, while the zone is stopped; it runs again after.
func (ps *planes) seedZone(t *testing.T, records []*store.Record) {
	t.Helper()
	ps.zone.stop()
	st, err := storage.Open(t.Context(), ps.zoneConfig.Store, ps.zone.dir, "zone "+ps.zoneConfig.Multizone.Zone.Name, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = st.Update(t.Context(), func(*store.Snapshot) ([]store.Op, error) {
		ops := make([]store.Op, len(records))
		for i, r := range records {
			ops[i] = store.Put(r)
		}
		return ops, nil
	})
	if err := errors.Join(err, st.Close()); err != nil {
		t.Fatal(err)
	}
	ps.startZone(t)
}

// connect holds a stream of a proxy open, which makes it online, until the planes end.
func (ps *planes) connect(t *testing.T, mesh, name string, version *meshv1.Version) {
	t.Helper()
	meta := map[string]any{"version": map[string]any{
		"kumaDp": map[string]any{"version": version.GetKumaDp().GetVersion()},
		"envoy":  map[string]any{"version": version.GetEnvoy().GetVersion()},
	}}
	metadata, err := structpb.NewStruct(meta)
	if err != nil {
		t.Fatal(err)
	}
	creds := credentials.NewTLS(&tls.Config{InsecureSkipVerify: true}) //nolint:gosec // whom the test talks to is no question
	conn, err := grpc.NewClient(fmt.Sprintf("127.0.0.1:%d", ps.zoneConfig.DPServer.Port), grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	ps.test.Cleanup(func() { _ = conn.Close() })
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ps.test.Context(), grpc.WaitForReady(true))
	if err == nil {
		err = stream.Send(&discoveryv3.DiscoveryRequest{
			Node: &corev3.Node{Id: mesh + "." + name, Metadata: metadata}, TypeUrl: "type.googleapis.com/envoy.config.cluster.v3.Cluster",
		})
	}
	if err == nil {
		_, err = stream.Recv() // by then it is registered
	}
	if err != nil {
		t.Fatalf("connect %s: %v", name, err)
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// answer is what a call got.
type answer struct {
	status int
	header http.Header
	body   []byte
}

// value parses the body of an answer as JSON.
func (a answer) value(t *testing.T) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(a.body, &v); err != nil {
		t.Fatalf("%v in %s", err, a.body)
	}
	return v
}

// call makes a request over the socket, as a program on this host does.
func (p *plane) call(t *testing.T, method, path, body string, headers ...[2]string) answer {
	t.Helper()
	a, err := p.try(method, path, body, headers...)
	if err != nil {
		t.Fatalf("%s: %s %s: %v", p.kind, method, path, err)
	}
	return a
}

func (p *plane) try(method, path, body string, headers ...[2]string) (answer, error) {
	req, err := http.NewRequestWithContext(context.Background(), method, fmt.Sprintf("http://localhost:%d%s", p.port, path), strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	for _, h := range headers {
		req.Header.Set(h[0], h[1])
	}
	resp, err := p.client.Do(req)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := io.Copy(&b, resp.Body); err != nil {
		return answer{}, err
	}
	return answer{resp.StatusCode, resp.Header, b.Bytes()}, nil
}

// eventually repeats what waits for the other plane until it says "".
func eventually(t *testing.T, what string, f func() string) bool {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		complaint := f()
		if complaint == "" {
			return true
		}
		if time.Now().After(deadline) {
			t.Errorf("%s: %s", what, complaint)
			return false
		}
		time.Sleep(10 * time.Millisecond) // another plane is awaited over a socket, which gives no sign
	}
}
