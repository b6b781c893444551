package xds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"pgregory.net/rapid"
)

// The property: whatever is published, subscribed to, dropped, acknowledged late and rejected, once nothing moves each proxy
// holds exactly what it subscribes to of the latest configuration, unless that is what it rejected last; and every response is
// a part of one published configuration. Clusters that are asked for by name and gone are kept, and of all clusters those that are gone
// may stay for a while.

// fault is what the test of the test does wrong in the server's place.
type fault struct {
	publish func(n int) bool                              // false: the n-th Publish is lost
	send    func(n int, m *discoveryv3.DiscoveryResponse) // changes the n-th response that is not the first of its kind
}

// step is one action; what it does not need is ignored.
type step struct {
	what   string // publish, subscribe, blink, repeat, settle, reject, hold
	who    int
	kind   Kind
	config map[Kind]content
	names  []string
}

var names = []string{"a", "b", "c"}

func genContent(t *rapid.T) content {
	return rapid.MapOf(rapid.SampledFrom(names), rapid.IntRange(0, 2)).Draw(t, "content")
}

func genStep(t *rapid.T) step {
	s := step{
		what: rapid.SampledFrom([]string{"publish", "publish", "subscribe", "subscribe", "blink", "repeat", "settle", "reject", "hold"}).Draw(t, "what"),
		who:  rapid.IntRange(0, 2).Draw(t, "who"),
		kind: rapid.SampledFrom([]Kind{Cluster, Endpoint, Secret, Secret, Listener, Route}).Draw(t, "kind"),
	}
	switch s.what {
	case "publish":
		s.config = map[Kind]content{}
		for k := range kinds {
			s.config[k] = genContent(t)
		}
	case "subscribe":
		s.names = slices.Sorted(maps.Keys(rapid.MapOf(rapid.SampledFrom(names), rapid.Just(true)).Draw(t, "names")))
	}
	return s
}

func TestConverge(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		steps := rapid.SliceOfN(rapid.Custom(genStep), 1, 30).Draw(rt, "steps")
		if err := converge(t, steps, fault{}); err != nil {
			rt.Fatal(err)
		}
	})
}

// TestConvergeFindsFaults injects what the property must not miss.
func TestConvergeFindsFaults(t *testing.T) {
	for name, f := range map[string]fault{
		"a Publish that is lost": {publish: func(n int) bool { return n%3 != 2 }},
		"a response without one of the resources": {send: func(_ int, m *discoveryv3.DiscoveryResponse) {
			if len(m.GetResources()) > 1 {
				m.Resources = m.GetResources()[1:]
			}
		}},
		"a response that mixes two states": {send: func() func(int, *discoveryv3.DiscoveryResponse) {
			var mu sync.Mutex // streams send at the same time
			old := map[string]*discoveryv3.DiscoveryResponse{}
			return func(_ int, m *discoveryv3.DiscoveryResponse) {
				mu.Lock()
				defer mu.Unlock()
				before := old[m.GetTypeUrl()]
				old[m.GetTypeUrl()] = &discoveryv3.DiscoveryResponse{Resources: slices.Clone(m.GetResources())}
				if before != nil && len(before.GetResources()) > 0 && len(m.GetResources()) > 0 {
					m.Resources = append(slices.Clone(m.GetResources()[1:]), before.GetResources()[0])
				}
			}
		}()},
		"a response of an older state": {send: func() func(int, *discoveryv3.DiscoveryResponse) {
			var mu sync.Mutex // streams send at the same time
			old := map[string]*discoveryv3.DiscoveryResponse{}
			return func(_ int, m *discoveryv3.DiscoveryResponse) {
				mu.Lock()
				defer mu.Unlock()
				if before := old[m.GetTypeUrl()]; before != nil {
					m.Resources, m.VersionInfo = before.GetResources(), before.GetVersionInfo()
				}
				old[m.GetTypeUrl()] = &discoveryv3.DiscoveryResponse{Resources: m.GetResources(), VersionInfo: m.GetVersionInfo()}
			}
		}()},
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range 20 {
				steps := rapid.SliceOfN(rapid.Custom(genStep), 30, 30).Example(seed)
				if err := converge(t, steps, f); err != nil {
					t.Logf("found with seed %d: %v", seed, err)
					return
				}
			}
			t.Error("not found")
		})
	}
}

// converge runs the steps with a server and three proxies in a bubble, where it can tell when nothing moves any more.
func converge(t *testing.T, steps []step, f fault) (err error) {
	synctest.Test(t, func(t *testing.T) {
		w, stop := newWorld(t, f)
		defer stop()
		for i, s := range steps {
			w.apply(t, s)
			if err = w.violation(); err != nil {
				err = fmt.Errorf("step %d: %w", i, err)
				return
			}
		}
		err = w.settle()
	})
	return err
}

// world is a server, proxies of two nodes, and what is true of them.
type world struct {
	server    *Server
	proxies   []*model
	fault     fault
	latest    map[Kind]content // as published
	published []map[Kind]content
	versions  map[Kind]map[string][]content // what was published under a version
}

func newWorld(t *testing.T, f fault) (*world, func()) {
	w := &world{fault: f, versions: map[Kind]map[string][]content{}}
	for k := range kinds {
		w.versions[k] = map[string][]content{}
	}
	var err error
	w.server, err = New(Options{Sessions: newSessions(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer(grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
		return h(srv, &faulty{ServerStream: ss, fault: f.send})
	}))
	w.server.Register(g)
	listener := bufconn.Listen(1 << 16)
	var wg sync.WaitGroup
	wg.Go(func() { _ = g.Serve(listener) })
	conn, err := grpc.NewClient("passthrough:///xds", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	for i := range 3 {
		stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx)
		if err != nil {
			t.Fatal(err)
		}
		m := &model{world: w, stream: stream, node: &corev3.Node{Id: "node"}, random: rand.New(rand.NewPCG(1, uint64(i)))} //nolint:gosec // a test
		w.proxies = append(w.proxies, m)
		wg.Go(m.receive)
	}
	return w, func() {
		cancel()
		_ = conn.Close()
		w.server.Shutdown()
		g.Stop()
		wg.Wait()
	}
}

// faulty is a connection that spoils what it sends.
type faulty struct {
	grpc.ServerStream

	fault func(int, *discoveryv3.DiscoveryResponse)
	n     map[string]int
}

func (s *faulty) SendMsg(m any) error {
	r, ok := m.(*discoveryv3.DiscoveryResponse)
	if s.fault == nil || !ok {
		return s.ServerStream.SendMsg(m)
	}
	if s.n == nil {
		s.n = map[string]int{}
	}
	if s.n[r.GetTypeUrl()]++; s.n[r.GetTypeUrl()] > 1 {
		s.fault(s.n[r.GetTypeUrl()], r)
	}
	return s.ServerStream.SendMsg(r)
}

func (w *world) apply(t *testing.T, s step) {
	switch m := w.proxies[s.who]; s.what {
	case "publish":
		c := newConfig(t, s.config)
		for _, p := range w.proxies {
			p.mu.Lock()
		}
		for k := range kinds {
			w.versions[k][c.Version(k)] = append(w.versions[k][c.Version(k)], s.config[k])
		}
		w.published = append(w.published, s.config)
		w.latest = s.config
		for _, p := range w.proxies {
			p.mu.Unlock()
		}
		if w.fault.publish == nil || w.fault.publish(len(w.published)) {
			w.server.Publish("node", c)
		}
	case "subscribe":
		m.subscribe(s.kind, s.names)
	case "blink": // drops everything for a moment
		m.mu.Lock()
		names := m.kinds[s.kind].names
		m.mu.Unlock()
		if len(names) > 0 {
			m.subscribe(s.kind, nil)
			m.subscribe(s.kind, names)
		}
	case "repeat": // the same in one request
		m.mu.Lock()
		if len(m.kinds[s.kind].names) > 0 {
			m.kinds[s.kind].held = content{}
			m.request(s.kind, nil)
		}
		m.mu.Unlock()
	case "reject":
		m.mu.Lock()
		m.kinds[s.kind].reject = true
		m.mu.Unlock()
	case "hold":
		m.hold(!m.holding)
	case "settle":
		synctest.Wait()
	}
}

// settle waits until nothing moves and then compares.
func (w *world) settle() error {
	for _, m := range w.proxies {
		m.hold(false)
	}
	synctest.Wait()
	if err := w.violation(); err != nil {
		return err
	}
	if w.latest == nil {
		return nil
	}
	for i, m := range w.proxies {
		for k := range kinds {
			if err := m.compare(k, w.latest[k]); err != nil {
				return fmt.Errorf("proxy %d, %s: %w", i, kindLabels[k], err)
			}
		}
	}
	return nil
}

func (w *world) violation() error {
	for i, m := range w.proxies {
		m.mu.Lock()
		err := m.err
		m.mu.Unlock()
		if err != nil {
			return fmt.Errorf("proxy %d: %w", i, err)
		}
	}
	return nil
}

// model is a proxy: as long as it holds back, it answers nothing of what it receives.
type model struct {
	world  *world
	stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient

	mu      sync.Mutex // guards what follows
	random  *rand.Rand
	node    *corev3.Node
	holding bool
	late    []*discoveryv3.DiscoveryResponse
	kinds   [kinds]modelKind
	err     error
}

type modelKind struct {
	subscribed, wild bool
	wasWild          bool
	names            []string
	ever             map[string]bool // named so far
	held             content
	sent             []content // all responses
	refused          content   // what it would hold had it not rejected the latest response; nil: it did not
	reject           bool      // the next response
	nonce, version   string
}

func (m *model) subscribe(k Kind, names []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &m.kinds[k]
	if !s.subscribed {
		s.subscribed, s.held, s.wild = true, content{}, k.complete() && len(names) == 0
		s.wasWild = s.wild
	} else if len(names) > 0 {
		s.wild = false
	}
	for name := range s.held { // it forgets what it drops
		if !s.wild && !slices.Contains(names, name) {
			delete(s.held, name)
		}
	}
	if s.ever == nil {
		s.ever = map[string]bool{}
	}
	for _, name := range append(slices.Clone(names), s.names...) {
		s.ever[name] = true
	}
	s.names = names
	m.request(k, nil)
}

func (m *model) request(k Kind, nack *rpcstatus.Status) {
	s := &m.kinds[k]
	_ = m.stream.Send(&discoveryv3.DiscoveryRequest{
		Node: m.node, TypeUrl: k.TypeURL(), ResourceNames: s.names, ResponseNonce: s.nonce, VersionInfo: s.version, ErrorDetail: nack,
	})
	m.node = nil
}

func (m *model) hold(on bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.holding = on
	if !on {
		m.random.Shuffle(len(m.late), func(i, j int) {
			if m.late[i].GetTypeUrl() != m.late[j].GetTypeUrl() { // never within a kind
				m.late[i], m.late[j] = m.late[j], m.late[i]
			}
		})
		for _, r := range m.late {
			m.answer(r)
		}
		m.late = nil
	}
}

func (m *model) receive() {
	for {
		r, err := m.stream.Recv()
		m.mu.Lock()
		switch {
		case err != nil:
			if !errors.Is(err, io.EOF) && m.stream.Context().Err() == nil {
				m.err = err
			}
			m.mu.Unlock()
			return
		case m.holding:
			m.late = append(m.late, r)
		default:
			m.answer(r)
		}
		m.mu.Unlock()
	}
}

// answer checks a response, takes or rejects what it says, and answers it.
func (m *model) answer(r *discoveryv3.DiscoveryResponse) {
	k, _ := KindOf(r.GetTypeUrl())
	s := &m.kinds[k]
	got, err := decode(r)
	if err == nil {
		err = m.check(k, r.GetVersionInfo(), got)
	}
	if err != nil && m.err == nil {
		m.err = err
	}
	next := content{}
	if !k.complete() {
		maps.Copy(next, s.held)
	}
	for name, n := range got {
		if s.wild || slices.Contains(s.names, name) {
			next[name] = n
		}
	}
	s.nonce, s.sent = r.GetNonce(), append(s.sent, got)
	if s.reject {
		s.reject, s.refused = false, next
		m.request(k, &rpcstatus.Status{Code: 3, Message: "rejected"})
		return
	}
	s.held, s.refused, s.version = next, nil, r.GetVersionInfo()
	m.request(k, nil)
}

// check says what is wrong with a response by itself.
func (m *model) check(k Kind, version string, got content) error {
	s := &m.kinds[k]
	states := m.world.versions[k][version]
	if len(states) == 0 {
		if k == Cluster && s.wasWild && m.leaving(got) {
			return nil
		}
		return fmt.Errorf("%s: version %q of %v was never published", kindLabels[k], version, got)
	}
	for name, n := range got {
		was, ok := states[0][name]
		if !ok && k == Cluster && !s.wild { // kept
			was = n
			ok = slices.ContainsFunc(m.world.published, func(c map[Kind]content) bool { v, has := c[k][name]; return has && v == n })
		}
		if !ok || was != n {
			return fmt.Errorf("%s: response %v is not a part of %v", kindLabels[k], got, states[0])
		}
		if !s.wasWild && !s.ever[name] {
			return fmt.Errorf("%s: response %v holds more than was ever named: %v", kindLabels[k], got, s.ever)
		}
	}
	return nil
}

// leaving reports whether clusters are all those of one published state, and beside them only some that the proxy was sent before.
func (m *model) leaving(got content) bool {
	in := func(all []content, name string, n int) bool {
		return slices.ContainsFunc(all, func(c content) bool { is, ok := c[name]; return ok && is == n })
	}
	return slices.ContainsFunc(m.world.published, func(state map[Kind]content) bool {
		for name, n := range state[Cluster] {
			if !in([]content{got}, name, n) {
				return false
			}
		}
		for name, n := range got {
			if !in([]content{state[Cluster]}, name, n) && !in(m.kinds[Cluster].sent, name, n) {
				return false
			}
		}
		return true
	})
}

// compare says how what the proxy holds differs from what it should.
func (m *model) compare(k Kind, published content) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := &m.kinds[k]
	if !s.subscribed {
		return nil
	}
	want := content{}
	for name, n := range published {
		if s.wild || slices.Contains(s.names, name) {
			want[name] = n
		}
	}
	current := func(c content) bool {
		for name, n := range want {
			if is, ok := c[name]; !ok || is != n {
				return false
			}
		}
		return len(c) == len(want) || !k.complete() || k == Cluster && !s.wild // else what is gone is not told
	}
	switch {
	case s.refused != nil && current(s.refused), s.refused == nil && current(s.held):
		return nil
	case len(s.names) == 0 && !s.wild:
		return nil
	}
	return fmt.Errorf("holds %v (rejected: %v), want %v", s.held, s.refused, want)
}
