package mads

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/meridian-mesh/meridian/api/codec"
	madsv1 "github.com/meridian-mesh/meridian/api/kuma/observability/v1"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
)

var update = flag.Bool("update", false, "rewrite golden files")

const metricsOn = `{"type":"Mesh","name":"default","metrics":{"enabledBackend":"p","backends":[{"name":"p","type":"prometheus","conf":{"port":1234}}]}}`

func newStore(tb testing.TB, bodies ...string) *store.Store {
	tb.Helper()
	st, err := store.Open(tb.Context(), memory.New(), store.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = st.Close() })
	put(tb, st, bodies...)
	return st
}

func put(tb testing.TB, st *store.Store, bodies ...string) {
	tb.Helper()
	var ops []store.Op
	for _, body := range bodies {
		d, doc, err := codec.DecodeAny("application/json", []byte(body))
		if err != nil {
			tb.Fatal(err)
		}
		ops = append(ops, store.Put(&store.Record{Key: store.Key{Type: string(d.Name), Mesh: doc.Mesh, Name: doc.Name}, Spec: doc.Spec}))
	}
	if _, err := st.Update(tb.Context(), func(*store.Snapshot) ([]store.Op, error) { return ops, nil }); err != nil {
		tb.Fatal(err)
	}
}

func proxy(name, address string) string {
	return fmt.Sprintf(`{"type":"Dataplane","mesh":"default","name":%q,"networking":{"address":%q,"inbound":[`+
		`{"port":80,"tags":{"kuma.io/service":"web","version":"2"}},{"port":81,"tags":{"kuma.io/service":"api","version":"1"}}]}}`, name, address)
}

func start(t *testing.T, st *store.Store, change func(*Config)) (address string) {
	t.Helper()
	cfg := Default()
	cfg.BindAddress, cfg.Port, cfg.Holdoff = "127.0.0.1", 0, time.Millisecond
	if change != nil {
		change(&cfg)
	}
	s, err := New(Options{Config: cfg, Store: st, Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s.Addr().String()
}

// fetch asks over HTTP/1.1 and returns status and body.
func fetch(t *testing.T, address, query, body string) (int, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+address+Path+query, strings.NewReader(body))
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	resp, err := (&http.Client{Transport: tr}).Do(req)
	if err != nil {
		t.Error(err)
		return 0, ""
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Error(err)
	}
	return resp.StatusCode, string(answer)
}

func versionOf(t *testing.T, body string) string {
	t.Helper()
	var v struct {
		Version string `json:"version_info"`
	}
	if err := json.Unmarshal([]byte(body), &v); err != nil || v.Version == "" {
		t.Fatalf("%v: %s", err, body)
	}
	return v.Version
}

func TestTheAnswerOverHTTP(t *testing.T) {
	st := newStore(t, metricsOn, `{"type":"Mesh","name":"silent"}`, proxy("dp-1", "10.0.0.1"),
		strings.Replace(proxy("dp-2", "10.0.0.2"), `"default"`, `"silent"`, 1),
		`{"type":"Dataplane","mesh":"default","name":"edge-1","networking":{"address":"fd00::1","gateway":{"type":"BUILTIN","tags":{"kuma.io/service":"edge"}}},`+
			`"metrics":{"type":"prometheus","conf":{"port":9,"path":"/own"}}}`,
		`{"type":"MeshGateway","mesh":"default","name":"any","selectors":[{"match":{"kuma.io/service":"*"}}]}`,
		`{"type":"MeshGateway","mesh":"default","name":"edge","selectors":[{"match":{"kuma.io/service":"edge"}}]}`)
	address := start(t, st, nil)
	code, body := fetch(t, address, "", `{"node":{"id":"prometheus"},"type_url":"`+TypeURL+`"}`)
	if code != http.StatusOK {
		t.Fatalf("status %d: %s", code, body)
	}
	var got bytes.Buffer
	if err := json.Indent(&got, []byte(body), "", " "); err != nil {
		t.Fatal(err)
	}
	golden := filepath.Join("testdata", "answer.golden.json")
	if *update {
		if err := os.WriteFile(golden, got.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestAFetchWaitsForWhatIsNew(t *testing.T) {
	st := newStore(t, metricsOn, proxy("dp-1", "10.0.0.1"))
	address := start(t, st, func(c *Config) { c.MaxWaiting = 1 })
	_, body := fetch(t, address, "", `{}`)
	known := `{"version_info":"` + versionOf(t, body) + `"}`
	if code, _ := fetch(t, address, "?fetch-timeout=0", known); code != http.StatusNotModified {
		t.Errorf("at once: status %d", code)
	}
	if code, _ := fetch(t, address, "?fetch-timeout=20ms", known); code != http.StatusNotModified {
		t.Errorf("after a while: status %d", code)
	}
	type answer struct {
		code int
		body string
	}
	answers := make(chan answer, 1)
	go func() {
		code, body := fetch(t, address, "?fetch-timeout=50s", known)
		answers <- answer{code, body}
	}()
	for { // until it waits
		if code, _ := fetch(t, address, "?fetch-timeout=0", known); code == http.StatusServiceUnavailable {
			break
		}
	}
	put(t, st, proxy("dp-2", "10.0.0.2"))
	if a := <-answers; a.code != http.StatusOK || !strings.Contains(a.body, "10.0.0.2:1234") {
		t.Errorf("status %d: %s", a.code, a.body)
	}
	for query, body := range map[string]string{"?fetch-timeout=x": `{}`, "?fetch-timeout=-1s": `{}`, "": `{`, "?fetch-timeout=1s": `{"type_url":"x"}`} {
		if code, _ := fetch(t, address, query, body); code != http.StatusBadRequest {
			t.Errorf("%q %q: status %d", query, body, code)
		}
	}
}

func TestStream(t *testing.T) {
	st := newStore(t, metricsOn, proxy("dp-1", "10.0.0.1"))
	conn, err := grpc.NewClient(start(t, st, nil), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	client := madsv1.NewMonitoringAssignmentDiscoveryServiceClient(conn)
	stream, err := client.StreamMonitoringAssignments(ctx)
	if err != nil {
		t.Fatal(err)
	}
	exchange := func(req *discoveryv3.DiscoveryRequest, resources int) *discoveryv3.DiscoveryResponse {
		t.Helper()
		if err := stream.Send(req); err != nil {
			t.Fatal(err)
		}
		resp, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if len(resp.GetResources()) != resources || resp.GetTypeUrl() != TypeURL {
			t.Fatalf("%d resources, want %d", len(resp.GetResources()), resources)
		}
		return resp
	}
	first := exchange(&discoveryv3.DiscoveryRequest{TypeUrl: TypeURL}, 1)
	put(t, st, proxy("dp-2", "10.0.0.2"))
	second := exchange(&discoveryv3.DiscoveryRequest{VersionInfo: first.GetVersionInfo(), ResponseNonce: first.GetNonce()}, 2)
	if second.GetVersionInfo() == first.GetVersionInfo() || second.GetNonce() == first.GetNonce() {
		t.Errorf("version %q, nonce %q again", second.GetVersionInfo(), second.GetNonce())
	}
	put(t, st, strings.Replace(metricsOn, `"enabledBackend":"p"`, `"enabledBackend":""`, 1))
	exchange(&discoveryv3.DiscoveryRequest{VersionInfo: second.GetVersionInfo(), ResponseNonce: second.GetNonce()}, 0)

	put(t, st, metricsOn)
	all, err := client.FetchMonitoringAssignments(ctx, &discoveryv3.DiscoveryRequest{})
	if err != nil || all.GetVersionInfo() != second.GetVersionInfo() {
		t.Errorf("fetch: %v, version %q, want that of the same content before, %q", err, all.GetVersionInfo(), second.GetVersionInfo())
	}
	if _, err := client.FetchMonitoringAssignments(ctx, &discoveryv3.DiscoveryRequest{TypeUrl: "x"}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("another type: %v", err)
	}
	delta, err := client.DeltaMonitoringAssignments(ctx)
	if err == nil {
		_, err = delta.Recv()
	}
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("delta: %v", err)
	}
}

func TestConfig(t *testing.T) {
	if errs := Default().Validate(); len(errs) > 0 {
		t.Errorf("defaults: %v", errs)
	}
	bad := Config{Port: -2, TLSCertFile: "x", DefaultFetchTimeout: -1, MaxFetchTimeout: -2, Holdoff: -1}
	if errs := bad.Validate(); len(errs) != 6 {
		t.Errorf("%d problems: %v", len(errs), errs)
	}
}

// BenchmarkCurrent is what a change of one of 1,000 proxies costs, and what one that asks when nothing has changed.
func BenchmarkCurrent(b *testing.B) {
	bodies := []string{metricsOn}
	for i := range 1000 {
		bodies = append(bodies, proxy(fmt.Sprintf("dp-%d", i), "10.0.0.1"))
	}
	st := newStore(b, bodies...)
	c := newCache(st, slog.New(slog.DiscardHandler))
	c.current()
	b.Run("nothing changed", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			c.current()
		}
	})
	b.Run("one changed", func(b *testing.B) {
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			b.StopTimer()
			put(b, st, proxy("dp-1", fmt.Sprintf("10.0.%d.%d", i/250%250, i%250)))
			b.StartTimer()
			c.current()
		}
	})
	b.Run("all anew", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			newCache(st, c.log).current()
		}
	})
}
