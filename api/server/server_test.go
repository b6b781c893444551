package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"log/slog"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/proto"

	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// plane is a control plane's API on a store in memory.
type plane struct {
	t     testing.TB
	srv   *Server
	store *store.Store
	// unchecked is set by fuzz targets, for whose speed traffic is not held against the description; see contract.
	unchecked bool
	describe  sync.Once
	described *contract
}

// newPlane returns the API of a global or of zone "zone-1". Changes are applied to its options.
func newPlane(t testing.TB, p resource.Plane, changes ...func(*Options)) *plane {
	t.Helper()
	st, err := store.Open(context.Background(), memory.New(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	o := Options{
		Config: Default(), Plane: p, Store: st, InstanceID: "host-1234", Hostname: "host", Version: "0.1.0",
		Keys: sameKey, Log: slog.New(slog.DiscardHandler),
	}
	o.BindAddress, o.HTTPPort, o.HTTPSPort = "127.0.0.1", 0, -1
	if p == resource.Zone {
		o.ZoneName = "zone-1"
	}
	for _, change := range changes {
		change(&o)
	}
	srv, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := srv.Close(); err != nil {
			t.Error(err)
		}
	})
	return &plane{t: t, srv: srv, store: o.Store}
}

// answer is what a request got.
type answer struct {
	Status int
	Header http.Header
	Body   string
}

// do sends a request as a local administrator would. Headers are "Name: value"; "Host: x" and "Remote: x" set those.
func (p *plane) do(method, target, body string, headers ...string) answer {
	p.t.Helper()
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.RemoteAddr, r.Host = "127.0.0.1:40000", "localhost:5681"
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		switch name {
		case "Host":
			r.Host = value
		case "Remote":
			r.RemoteAddr = value
		case "-Content-Type":
			r.Header.Del("Content-Type")
		default:
			r.Header.Add(name, value)
		}
	}
	w := httptest.NewRecorder()
	p.srv.Handler().ServeHTTP(w, r)
	a := answer{w.Code, w.Result().Header, w.Body.String()}
	if _, measuring := p.t.(*testing.B); !measuring && !p.unchecked {
		if err := p.contract().check(r, body, a); err != nil {
			p.t.Errorf("%s %s: %v", method, target, err)
		}
	}
	return a
}

// want sends a request and checks the status.
func (p *plane) want(status int, method, target, body string, headers ...string) answer {
	p.t.Helper()
	a := p.do(method, target, body, headers...)
	if a.Status != status {
		p.t.Fatalf("%s %s: status %d, want %d; body: %s", method, target, a.Status, status, a.Body)
	}
	return a
}

// seed commits records as synchronisation or a test of insights would.
func (p *plane) seed(records ...*store.Record) {
	p.t.Helper()
	ops := make([]store.Op, len(records))
	for i, r := range records {
		ops[i] = store.Put(r)
	}
	if _, err := p.store.Update(context.Background(), func(*store.Snapshot) ([]store.Op, error) { return ops, nil }); err != nil {
		p.t.Fatal(err)
	}
}

// sameKey is a source of keys for tests that do not look at them, nor wait for them.
func sameKey(context.Context, int) (*rsa.PrivateKey, error) { return theKey(), nil }

var theKey = sync.OnceValue(func() *rsa.PrivateKey {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

// record builds a record; spec may be nil.
func record(t testing.TB, typ resource.Type, mesh, name, origin string, spec proto.Message) *store.Record {
	t.Helper()
	rec := &store.Record{
		Key:      store.Key{Type: string(typ), Mesh: mesh, Name: name},
		Origin:   origin,
		Created:  time.Date(2024, 5, 1, 10, 0, 0, 0, time.UTC),
		Modified: time.Date(2024, 5, 1, 11, 0, 0, 0, time.UTC),
	}
	if origin != "" {
		rec.WireName = name
	}
	if spec != nil {
		var err error
		if rec.Spec, err = proto.Marshal(spec); err != nil {
			t.Fatal(err)
		}
	}
	return rec
}

// keys returns all keys of the store, sorted.
func (p *plane) keys(extra ...string) []string {
	var keys []string
	types := slices.Clone(extra)
	for _, d := range resource.All() {
		types = append(types, string(d.Name))
	}
	for _, typ := range types {
		for rec := range p.store.Snapshot().List(typ, "") {
			keys = append(keys, rec.Key.String())
		}
	}
	slices.Sort(keys)
	return keys
}

// object parses a JSON object.
func object(t testing.TB, body string) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(body), &m); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	return m
}

// names returns the names of a list's items.
func names(t testing.TB, body string) []string {
	t.Helper()
	var list struct{ Items []struct{ Mesh, Name string } }
	if err := json.Unmarshal([]byte(body), &list); err != nil {
		t.Fatalf("%v in %s", err, body)
	}
	found := []string{}
	for _, i := range list.Items {
		found = append(found, strings.TrimPrefix(i.Mesh+"/"+i.Name, "/"))
	}
	return found
}

// bodyOf returns a body for a type under the given name: a realistic one where the codec's test data has it.
func bodyOf(t testing.TB, d *resource.Descriptor, mesh, name string) string {
	t.Helper()
	m := map[string]any{}
	raw, err := os.ReadFile(filepath.Join("..", "codec", "testdata", "bodies", string(d.Name)+".json"))
	switch {
	case err == nil:
		m = object(t, string(raw))
		delete(m, "creationTime")
		delete(m, "modificationTime")
	case d.IsJSON():
		m["spec"] = map[string]any{"targetRef": map[string]any{"kind": "Mesh"}}
	}
	m["type"], m["name"] = string(d.Name), name
	delete(m, "mesh")
	if d.Scope == resource.ScopeMesh {
		m["mesh"] = mesh
	}
	out, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// every is what most policies begin with: they are for all connections.
const every = `"sources":[{"match":{"kuma.io/service":"*"}}],"destinations":[{"match":{"kuma.io/service":"*"}}]`

// itemPath is the path of one resource.
func itemPath(d *resource.Descriptor, mesh, name string) string {
	if d.Scope == resource.ScopeMesh {
		return "/meshes/" + mesh + "/" + d.Path + "/" + name
	}
	return "/" + d.Path + "/" + name
}

func lookup(t testing.TB, typ resource.Type) *resource.Descriptor {
	t.Helper()
	d, ok := resource.Lookup(typ)
	if !ok {
		t.Fatalf("no type %s", typ)
	}
	return d
}

// sessions are live zone sessions that say what a test wants.
type sessions struct {
	live     map[string]ZoneLive
	progress map[string]ZoneProgress
	insight  map[string]*systemv1.ZoneInsight
}

func (s sessions) Live(_ *store.Snapshot, zone string) (ZoneLive, bool) {
	l, ok := s.live[zone]
	return l, ok
}

func (s sessions) Progress(context.Context, *store.Snapshot, []string) map[string]ZoneProgress {
	return s.progress
}

func (s sessions) Insight(zone string) (*systemv1.ZoneInsight, bool) {
	i, ok := s.insight[zone]
	return i, ok
}

// selfSigned returns a TLS configuration for 127.0.0.1 and a client that trusts it.
func selfSigned(t *testing.T) (*tls.Config, *http.Client) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	client := &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true,
	}}
	t.Cleanup(client.CloseIdleConnections)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, client
}

func TestRunServesBothListenersAndFinishesRequestsInFlightAtShutdown(t *testing.T) {
	conf, client := selfSigned(t)
	entered, leave := make(chan struct{}), make(chan struct{})
	p := newPlane(t, resource.Global, func(o *Options) {
		o.HTTPSPort, o.TLS = 0, conf
		o.EffectiveConfig = func() ([]byte, error) {
			close(entered)
			<-leave
			return []byte(`{"mode": "global"}`), nil
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.srv.Run(ctx) }()

	for _, base := range []string{"http://" + p.srv.HTTPAddr().String(), "https://" + p.srv.HTTPSAddr().String()} {
		res, err := client.Get(base + "/meshes?size=1")
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		if err != nil || res.Body.Close() != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff("{\n \"total\": 0,\n \"items\": [],\n \"next\": null\n}\n", string(body)); diff != "" {
			t.Errorf("%s: %s", base, diff)
		}
		if want := 1 + strings.Count(base, "https"); res.ProtoMajor != want {
			t.Errorf("%s: HTTP/%d, want %d", base, res.ProtoMajor, want)
		}
	}

	slow := make(chan string, 1)
	go func() {
		res, err := client.Get("http://" + p.srv.HTTPAddr().String() + "/config")
		if err != nil {
			slow <- err.Error()
			return
		}
		body, _ := io.ReadAll(res.Body)
		_ = res.Body.Close()
		slow <- string(body)
	}()
	<-entered
	cancel()
	close(leave)
	if got := <-slow; got != `{"mode":"global"}` {
		t.Errorf("the request in flight got %q", got)
	}
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
}

func TestRequestsThatDoNotFinishAreCutOffAtShutdown(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	defer close(leave)
	p := newPlane(t, resource.Global, func(o *Options) {
		o.ShutdownTimeout = 20 * time.Millisecond
		o.EffectiveConfig = func() ([]byte, error) { close(entered); <-leave; return []byte(`{}`), nil }
	})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.srv.Run(ctx) }()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	failed := make(chan bool, 1)
	go func() {
		res, err := client.Get("http://" + p.srv.HTTPAddr().String() + "/config")
		if err == nil {
			_ = res.Body.Close()
		}
		failed <- err != nil
	}()
	<-entered
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Run: %v", err)
	}
	if !<-failed {
		t.Error("the request was answered")
	}
}

func TestNewRefusesWhatCannotWork(t *testing.T) {
	st, err := store.Open(t.Context(), memory.New(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = st.Close() }()
	taken, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	for _, tc := range []struct {
		name   string
		change func(*Options)
		want   string
	}{
		{"no store", func(o *Options) { o.Store = nil }, "Store, Log and Plane must be set"},
		{"no plane", func(o *Options) { o.Plane = resource.Nowhere }, "Store, Log and Plane must be set"},
		{"HTTPS without a certificate", func(o *Options) { o.HTTPSPort = 0 }, "no TLS configuration"},
		{"a port in use", func(o *Options) { o.HTTPPort = taken.Addr().(*net.TCPAddr).Port }, "listen for HTTP"},
		{"client certificates that are not there", func(o *Options) {
			o.HTTPSPort, o.TLS, o.ClientCertsDir = 0, &tls.Config{}, "/nonexistent"
		}, "clientCertsDir: read client certificates"},
		{"an invalid configuration", func(o *Options) { o.MaxBodyBytes = 1 }, "maxBodyBytes: 1 is less than 1024"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o := Options{Config: Default(), Plane: resource.Global, Store: st, Log: slog.New(slog.DiscardHandler)}
			o.BindAddress, o.HTTPPort, o.HTTPSPort = "127.0.0.1", 0, -1
			tc.change(&o)
			s, err := New(o)
			if err == nil {
				_ = s.Close()
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %q, want it to contain %q", err, tc.want)
			}
		})
	}
}

func TestValidateReportsEveryProblem(t *testing.T) {
	if errs := Default().Validate(); len(errs) > 0 {
		t.Fatalf("the defaults are invalid: %v", errs)
	}
	c := Config{HTTPPort: 70000, HTTPSPort: -2, TLSCertFile: "x", RenderCacheBytes: -1, MaxWatches: -1, MaxWait: -1, CORSAllowedDomains: []string{"ok", "("}}
	var fields []string
	for _, err := range c.Validate() {
		field, _, _ := strings.Cut(err.Error(), ":")
		fields = append(fields, field)
	}
	want := []string{
		"httpPort", "httpsPort", "tlsCertFile, tlsKeyFile", "writes", "maxBodyBytes", "maxWrites", "importMaxBytes", "renderCacheBytes",
		"maxWait", "maxWatches", "watchHeartbeat",
		"readTimeout", "writeTimeout", "idleTimeout", "shutdownTimeout", "corsAllowedDomains[1]",
	}
	if diff := cmp.Diff(want, fields); diff != "" {
		t.Error(diff)
	}
}

// sortedKeys returns the keys of a map in order.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
