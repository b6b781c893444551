package envoy

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	connectionlimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/connection_limit/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	runtimev3 "github.com/envoyproxy/go-control-plane/envoy/service/runtime/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

const adminListener = "kuma:envoy:admin"

// traffic carries connections through the active listeners. A connection is served by the configuration at its start.
type traffic struct {
	p   *Proxy
	all bool // not only the admin listener

	view atomic.Pointer[view]

	// Touched under p.mu only.
	sockets map[string]*socket

	limits *limits

	ctx  context.Context //nolint:containedctx // the life of the connections, which outlive the call that makes them
	done sync.WaitGroup

	mu     sync.Mutex // guards what follows
	conns  map[net.Conn]struct{}
	closed bool
}

// view is what connections are served by. It never changes.
type view struct {
	clusters map[string]cluster
	secrets  map[string]*tlsv3.Secret
	routes   map[string]*routev3.RouteConfiguration
	runtimes map[string]*runtimev3.Runtime
}

func (v *view) secret(name string) *tlsv3.Secret { return v.secrets[name] }

// socket is the listening end of one listener.
type socket struct {
	address string
	ln      net.Listener
	proto   atomic.Pointer[listenerv3.Listener]
}

func newTraffic(ctx context.Context, p *Proxy, all bool) *traffic {
	t := &traffic{p: p, all: all, ctx: ctx, sockets: make(map[string]*socket), limits: newLimits(), conns: make(map[net.Conn]struct{})}
	t.view.Store(&view{})
	return t
}

// apply takes over the active configuration: opens and closes sockets. The caller holds p.mu.
func (t *traffic) apply(s *state) {
	v := &view{clusters: make(map[string]cluster), secrets: maps.Clone(s.secrets), routes: maps.Clone(s.routes), runtimes: maps.Clone(s.runtimes)}
	for name, c := range s.static {
		v.clusters[name] = cluster{proto: c}
	}
	for name, c := range s.clusters {
		v.clusters[name] = *c
	}
	t.view.Store(v)
	t.limits.keep(s.listeners)
	t.mu.Lock()
	closed := t.closed
	t.mu.Unlock()
	if closed {
		return
	}
	for name, open := range t.sockets {
		if l := s.listeners[name]; l == nil || address(l.proto) != open.address {
			open.ln.Close()
			delete(t.sockets, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.listeners)) {
		l := s.listeners[name].proto
		if (!t.all && name != adminListener) || !bound(l) || l.GetAddress().GetSocketAddress().GetProtocol() == corev3.SocketAddress_UDP {
			continue
		}
		if open := t.sockets[name]; open != nil {
			open.proto.Store(l)
			continue
		}
		ln, err := (&net.ListenConfig{}).Listen(t.ctx, "tcp", address(l))
		if err != nil {
			if t.ctx.Err() == nil {
				t.p.failLocked(fmt.Errorf("open listener %q: %w", name, err))
			}
			continue
		}
		open := &socket{address: address(l), ln: ln}
		open.proto.Store(l)
		t.sockets[name] = open
		t.done.Go(func() { t.accept(open) })
	}
}

func address(l *listenerv3.Listener) string {
	s := l.GetAddress().GetSocketAddress()
	return net.JoinHostPort(s.GetAddress(), strconv.Itoa(int(s.GetPortValue())))
}

func (t *traffic) close() {
	t.mu.Lock()
	t.closed = true
	for c := range t.conns {
		_ = c.Close()
	}
	t.mu.Unlock()
	t.p.mu.Lock()
	for _, s := range t.sockets {
		s.ln.Close()
	}
	t.p.mu.Unlock()
	t.done.Wait()
}

// track notes an open connection, so that close ends it; false when it is too late.
func (t *traffic) track(c net.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		_ = c.Close()
		return false
	}
	t.conns[c] = struct{}{}
	return true
}

func (t *traffic) untrack(c net.Conn) {
	_ = c.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.conns, c)
}

func (t *traffic) accept(s *socket) {
	for {
		conn, err := s.ln.Accept()
		if err != nil {
			return
		}
		if !t.track(conn) {
			return
		}
		t.done.Go(func() {
			defer t.untrack(conn)
			l := s.proto.Load()
			if err := t.serve(t.ctx, l, conn); err != nil {
				t.p.log.DebugContext(t.ctx, "connection refused", "listener", l.GetName(), "err", err)
				if errors.Is(err, ErrUnsupported) {
					_ = t.p.fail("listener %q: %s", l.GetName(), err)
				}
			}
		})
	}
}

// downstream is one connection with what is known about it.
type downstream struct {
	net.Conn
	peer   *x509.Certificate // of the client, nil without
	secure bool              // under TLS
}

func (t *traffic) serve(ctx context.Context, l *listenerv3.Listener, raw net.Conn) error {
	v := t.view.Load()
	if most, limited := v.connectionLimit(l.GetName()); limited {
		at := place{listener: l.GetName(), route: -1}
		if !t.limits.enter(at, most) {
			return errors.New("too many connections")
		}
		defer t.limits.leave(at)
	}
	hello, conn, err := inspect(ctx, l, raw)
	if err != nil {
		return err
	}
	chain, err := choose(l, hello, raw)
	if err != nil || chain == nil {
		return err
	}
	d := &downstream{Conn: conn}
	config, err := downstreamTLS(chain.GetTransportSocket(), v.secret)
	if err != nil {
		return err
	}
	if config != nil {
		server := tls.Server(conn, config)
		handshake, cancel := context.WithTimeout(ctx, 15*time.Second)
		defer cancel()
		if err := server.HandshakeContext(handshake); err != nil {
			return fmt.Errorf("TLS: %w", err)
		}
		d.Conn, d.secure = plainConn{server}, true
		if peers := server.ConnectionState().PeerCertificates; len(peers) > 0 {
			d.peer = peers[0]
		}
	}
	for _, f := range chain.GetFilters() {
		m, err := f.GetTypedConfig().UnmarshalNew()
		if err != nil {
			return err
		}
		switch m := m.(type) {
		case *rbacv3.RBAC:
			allowed, err := permits(m, d)
			if err != nil || !allowed {
				return errors.Join(err, errors.New("denied"))
			}
		case *connectionlimitv3.ConnectionLimit:
			if err := understands(m); err != nil {
				return err
			}
			at := place{listener: l.GetName(), route: -1, filter: f.GetName() + " " + m.GetStatPrefix()}
			if !t.limits.enter(at, m.GetMaxConnections().GetValue()) {
				pause(ctx, m.GetDelay().AsDuration())
				return errors.New("too many connections")
			}
			defer t.limits.leave(at)
		case *tcpv3.TcpProxy:
			return t.proxyTCP(ctx, v, m, d)
		case *hcmv3.HttpConnectionManager:
			return t.proxyHTTP(ctx, l.GetName(), m, d)
		default:
			return fmt.Errorf("%w: network filter %s", ErrUnsupported, f.GetTypedConfig().GetTypeUrl())
		}
	}
	return nil // a chain without filters closes
}

// inspect looks at the first bytes where a filter chain wants to know about TLS. hello is nil for plain text.
func inspect(ctx context.Context, l *listenerv3.Listener, conn net.Conn) (*tls.ClientHelloInfo, net.Conn, error) {
	for _, f := range l.GetListenerFilters() {
		switch f.GetTypedConfig().GetTypeUrl() {
		case "type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector":
		default:
			return nil, nil, fmt.Errorf("%w: listener filter %s", ErrUnsupported, f.GetTypedConfig().GetTypeUrl())
		}
	}
	wanted := len(l.GetListenerFilters()) > 0 || slices.ContainsFunc(l.GetFilterChains(), func(c *listenerv3.FilterChain) bool {
		m := c.GetFilterChainMatch()
		return m.GetTransportProtocol() != "" || len(m.GetServerNames()) > 0 || len(m.GetApplicationProtocols()) > 0
	})
	if !wanted {
		return nil, conn, nil
	}
	// As Envoy, wait for the first byte: a protocol in which the server speaks first does not get through here.
	if err := conn.SetReadDeadline(time.Now().Add(15 * time.Second)); err != nil {
		return nil, nil, err
	}
	first := make([]byte, 1)
	if _, err := io.ReadFull(conn, first); err != nil {
		return nil, nil, fmt.Errorf("inspect the connection: %w", err)
	}
	read := bytes.NewBuffer(slices.Clone(first))
	var hello *tls.ClientHelloInfo
	if first[0] == 22 { // a TLS handshake record
		peek := &replayConn{Conn: readOnly{conn}, r: io.MultiReader(bytes.NewReader(first), io.TeeReader(conn, read))}
		stop := errors.New("seen")
		err := tls.Server(peek, &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			hello = h
			return nil, stop
		}}).HandshakeContext(ctx)
		if hello == nil {
			return nil, nil, fmt.Errorf("inspect the TLS handshake: %w", err)
		}
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		return nil, nil, err
	}
	return hello, &replayConn{Conn: conn, r: io.MultiReader(read, conn)}, nil
}

// replayConn reads from r instead of the connection.
type replayConn struct {
	net.Conn
	r io.Reader
}

func (c *replayConn) Read(b []byte) (int, error) { return c.r.Read(b) }

func (c *replayConn) CloseWrite() error { return closeWrite(c.Conn) }

// readOnly swallows what is written and cannot be closed.
type readOnly struct{ net.Conn }

func (readOnly) Write(b []byte) (int, error) { return len(b), nil }
func (readOnly) Close() error                { return nil }

// choose finds the filter chain of a connection, nil when none matches. Each criterion narrows the chains to the most specific
// that match, in Envoy's order, and there is no way back.
func choose(l *listenerv3.Listener, hello *tls.ClientHelloInfo, conn net.Conn) (*listenerv3.FilterChain, error) {
	remote, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return nil, err
	}
	source := remote.Addr().Unmap()
	chains := l.GetFilterChains()
	criteria := []func(*listenerv3.FilterChainMatch) int{ // -1: does not match; else the more, the more specific
		func(m *listenerv3.FilterChainMatch) int {
			if len(m.GetServerNames()) == 0 {
				return 0
			}
			best := -1
			for _, name := range m.GetServerNames() {
				switch {
				case hello == nil:
				case strings.EqualFold(name, hello.ServerName):
					best = 1 << 20
				case strings.HasPrefix(name, "*.") && strings.HasSuffix(strings.ToLower(hello.ServerName), strings.ToLower(name[1:])):
					best = max(best, len(name))
				}
			}
			return best
		},
		func(m *listenerv3.FilterChainMatch) int {
			is := "raw_buffer"
			if hello != nil {
				is = "tls"
			}
			return rank(m.GetTransportProtocol() == "", m.GetTransportProtocol() == is)
		},
		func(m *listenerv3.FilterChainMatch) int {
			return rank(len(m.GetApplicationProtocols()) == 0, hello != nil &&
				slices.ContainsFunc(m.GetApplicationProtocols(), func(p string) bool { return slices.Contains(hello.SupportedProtos, p) }))
		},
		func(m *listenerv3.FilterChainMatch) int { return prefixRank(m.GetDirectSourcePrefixRanges(), source) },
		func(m *listenerv3.FilterChainMatch) int { return prefixRank(m.GetSourcePrefixRanges(), source) },
	}
	for _, c := range chains {
		m := c.GetFilterChainMatch()
		if m.GetDestinationPort() != nil || len(m.GetPrefixRanges()) > 0 || len(m.GetSourcePorts()) > 0 || m.GetSourceType() != 0 {
			return nil, fmt.Errorf("%w: filter chain match %v", ErrUnsupported, m)
		}
	}
	for _, criterion := range criteria {
		best := -1
		var narrowed []*listenerv3.FilterChain
		for _, c := range chains {
			switch r := criterion(c.GetFilterChainMatch()); {
			case r < 0 || r < best:
			case r > best:
				best, narrowed = r, []*listenerv3.FilterChain{c}
			default:
				narrowed = append(narrowed, c)
			}
		}
		chains = narrowed
	}
	if len(chains) == 0 {
		return l.GetDefaultFilterChain(), nil
	}
	return chains[0], nil
}

func rank(unset, match bool) int {
	switch {
	case unset:
		return 0
	case match:
		return 1
	}
	return -1
}

func prefixRank(ranges []*corev3.CidrRange, source netip.Addr) int {
	if len(ranges) == 0 {
		return 0
	}
	best := -1
	for _, r := range ranges {
		a, err := netip.ParseAddr(r.GetAddressPrefix())
		if err != nil {
			continue
		}
		bits := int(r.GetPrefixLen().GetValue())
		if p, err := a.Prefix(bits); err == nil && p.Contains(source) {
			best = max(best, bits+1)
		}
	}
	return best
}

// permits evaluates a network RBAC filter.
func permits(f *rbacv3.RBAC, d *downstream) (bool, error) {
	if f.GetMatcher() != nil {
		return false, fmt.Errorf("%w: RBAC by matcher", ErrUnsupported)
	}
	rules := f.GetRules()
	if rules == nil {
		return true, nil // nothing is enforced; shadow rules only count
	}
	matched := false
	for _, name := range slices.Sorted(maps.Keys(rules.GetPolicies())) {
		policy := rules.GetPolicies()[name]
		if policy.GetCondition() != nil || policy.GetCheckedCondition() != nil {
			return false, fmt.Errorf("%w: RBAC condition", ErrUnsupported)
		}
		for _, p := range policy.GetPermissions() {
			if !p.GetAny() {
				return false, fmt.Errorf("%w: RBAC permission %v", ErrUnsupported, p)
			}
		}
		for _, principal := range policy.GetPrincipals() {
			ok, err := isPrincipal(principal, d)
			if err != nil {
				return false, err
			}
			matched = matched || ok
		}
	}
	switch rules.GetAction() { //nolint:exhaustive // LOG lets all pass
	case rbacconfigv3.RBAC_ALLOW:
		return matched, nil
	case rbacconfigv3.RBAC_DENY:
		return !matched, nil
	}
	return true, nil // LOG
}

func isPrincipal(p *rbacconfigv3.Principal, d *downstream) (bool, error) {
	switch id := p.GetIdentifier().(type) {
	case *rbacconfigv3.Principal_Any:
		return id.Any, nil
	case *rbacconfigv3.Principal_NotId:
		ok, err := isPrincipal(id.NotId, d)
		return !ok, err
	case *rbacconfigv3.Principal_AndIds:
		for _, p := range id.AndIds.GetIds() {
			if ok, err := isPrincipal(p, d); err != nil || !ok {
				return false, err
			}
		}
		return true, nil
	case *rbacconfigv3.Principal_OrIds:
		for _, p := range id.OrIds.GetIds() {
			if ok, err := isPrincipal(p, d); err != nil || ok {
				return ok, err
			}
		}
		return false, nil
	case *rbacconfigv3.Principal_Authenticated_:
		if d.peer == nil {
			return false, nil
		}
		name := id.Authenticated.GetPrincipalName()
		if name == nil {
			return true, nil
		}
		names := append(altNames(d.peer, tlsv3.SubjectAltNameMatcher_URI), altNames(d.peer, tlsv3.SubjectAltNameMatcher_DNS)...)
		if len(names) == 0 {
			names = []string{d.peer.Subject.String()}
		}
		for _, n := range names {
			if ok, err := matchString(name, n); err != nil || ok {
				return ok, err
			}
		}
		return false, nil
	}
	return false, fmt.Errorf("%w: RBAC principal %T", ErrUnsupported, p.GetIdentifier())
}

func (t *traffic) proxyTCP(ctx context.Context, v *view, f *tcpv3.TcpProxy, d *downstream) error {
	name, metadata := f.GetCluster(), f.GetMetadataMatch()
	if weighted := f.GetWeightedClusters().GetClusters(); len(weighted) > 0 {
		c := pick(weighted, func(c *tcpv3.TcpProxy_WeightedCluster_ClusterWeight) uint32 { return c.GetWeight() })
		name, metadata = c.GetName(), mergeMetadata(metadata, c.GetMetadataMatch())
	}
	if f.GetTunnelingConfig() != nil {
		return fmt.Errorf("%w: tunneling", ErrUnsupported)
	}
	var up net.Conn
	var err error
	for range max(f.GetMaxConnectAttempts().GetValue(), 1) {
		if up, _, err = t.connect(ctx, v, name, metadata); err == nil || errors.Is(err, ErrUnsupported) {
			break
		}
	}
	if err != nil {
		return err
	}
	if !t.track(up) {
		return net.ErrClosed
	}
	defer t.untrack(up)
	var group sync.WaitGroup
	group.Go(func() {
		_, err := io.Copy(up, d.Conn)
		if err != nil || closeWrite(up) != nil {
			_ = up.Close()
		}
	})
	_, err = io.Copy(d.Conn, up)
	if err != nil || closeWrite(d.Conn) != nil {
		_ = d.Close()
	}
	group.Wait()
	return nil
}

func (c plainConn) CloseWrite() error { return closeWrite(c.Conn) }

func closeWrite(c net.Conn) error {
	if w, ok := c.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}

// pick chooses at random by weight.
func pick[T any](of []T, weight func(T) uint32) T {
	var total uint64
	for _, v := range of {
		total += uint64(weight(v))
	}
	if total == 0 {
		return of[0]
	}
	n := rand.Uint64N(total) //nolint:gosec // load balancing
	for _, v := range of {
		w := uint64(weight(v))
		if n < w {
			return v
		}
		n -= w
	}
	return of[len(of)-1]
}

func mergeMetadata(a, b *corev3.Metadata) *corev3.Metadata {
	if a == nil {
		return b
	}
	out := proto.CloneOf(a)
	proto.Merge(out, b)
	return out
}

// connect opens a connection to an endpoint of a cluster.
func (t *traffic) connect(ctx context.Context, v *view, name string, metadata *corev3.Metadata) (net.Conn, *endpointv3.LbEndpoint, error) {
	c, ok := v.clusters[name]
	if !ok {
		return nil, nil, fmt.Errorf("no cluster %q", name)
	}
	endpoint, err := c.endpoint(metadata)
	if err != nil {
		return nil, nil, fmt.Errorf("cluster %q: %w", name, err)
	}
	transport := c.proto.GetTransportSocket()
	for _, m := range c.proto.GetTransportSocketMatches() {
		if includes(endpoint.GetMetadata().GetFilterMetadata()["envoy.transport_socket_match"], m.GetMatch()) {
			transport = m.GetTransportSocket()
			break
		}
	}
	config, err := upstreamTLS(transport, v.secret)
	if err != nil {
		return nil, nil, fmt.Errorf("cluster %q: %w", name, err)
	}
	network, target := "tcp", ""
	if pipe := endpoint.GetEndpoint().GetAddress().GetPipe(); pipe != nil {
		network, target = "unix", pipe.GetPath()
	} else {
		s := endpoint.GetEndpoint().GetAddress().GetSocketAddress()
		target = net.JoinHostPort(s.GetAddress(), strconv.Itoa(int(s.GetPortValue())))
	}
	timeout := 5 * time.Second
	if d := c.proto.GetConnectTimeout(); d != nil {
		timeout = d.AsDuration()
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, network, target)
	if err != nil {
		return nil, nil, fmt.Errorf("cluster %q: %w", name, err)
	}
	if config == nil {
		return conn, endpoint, nil
	}
	secure := tls.Client(conn, config)
	if err := secure.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, nil, fmt.Errorf("cluster %q: TLS with %s: %w", name, target, err)
	}
	return plainConn{secure}, endpoint, nil
}

// endpoint chooses one: of the subset that the metadata ask for, of the first priority that has a healthy one, by weight.
func (c *cluster) endpoint(metadata *corev3.Metadata) (*endpointv3.LbEndpoint, error) {
	assignment := c.assignment
	switch c.proto.GetType() {
	case clusterv3.Cluster_EDS:
	case clusterv3.Cluster_ORIGINAL_DST:
		return nil, fmt.Errorf("%w: ORIGINAL_DST", ErrUnsupported)
	default:
		assignment = c.proto.GetLoadAssignment()
	}
	if c.proto.GetCommonLbConfig().GetLocalityWeightedLbConfig() != nil {
		return nil, fmt.Errorf("%w: locality weighted load balancing", ErrUnsupported)
	}
	suits, err := c.subset(metadata, assignment)
	if err != nil {
		return nil, err
	}
	var of []*endpointv3.LbEndpoint
	priority := uint32(0)
	for _, group := range assignment.GetEndpoints() {
		for _, e := range group.GetLbEndpoints() {
			switch e.GetHealthStatus() {
			case corev3.HealthStatus_UNKNOWN, corev3.HealthStatus_HEALTHY, corev3.HealthStatus_DEGRADED:
			default:
				continue
			}
			if !suits(e) || (len(of) > 0 && group.GetPriority() > priority) {
				continue
			}
			if len(of) == 0 || group.GetPriority() < priority {
				of, priority = nil, group.GetPriority()
			}
			of = append(of, e)
		}
	}
	if len(of) == 0 {
		return nil, errors.New("no healthy endpoint")
	}
	return pick(of, func(e *endpointv3.LbEndpoint) uint32 {
		if w := e.GetLoadBalancingWeight(); w != nil {
			return w.GetValue()
		}
		return 1
	}), nil
}

// subset says which endpoints may be used, by the cluster's subset configuration.
func (c *cluster) subset(metadata *corev3.Metadata, a *endpointv3.ClusterLoadAssignment) (func(*endpointv3.LbEndpoint) bool, error) {
	all := func(*endpointv3.LbEndpoint) bool { return true }
	none := func(*endpointv3.LbEndpoint) bool { return false }
	config := c.proto.GetLbSubsetConfig()
	if config == nil {
		return all, nil
	}
	fallback := func() (func(*endpointv3.LbEndpoint) bool, error) {
		switch config.GetFallbackPolicy() {
		case clusterv3.Cluster_LbSubsetConfig_ANY_ENDPOINT:
			return all, nil
		case clusterv3.Cluster_LbSubsetConfig_NO_FALLBACK:
			return none, nil
		default:
			return func(e *endpointv3.LbEndpoint) bool {
				return includes(e.GetMetadata().GetFilterMetadata()["envoy.lb"], config.GetDefaultSubset())
			}, nil
		}
	}
	wanted := metadata.GetFilterMetadata()["envoy.lb"]
	keys := slices.Sorted(maps.Keys(wanted.GetFields()))
	for _, selector := range config.GetSubsetSelectors() {
		if !slices.Equal(slices.Sorted(slices.Values(selector.GetKeys())), keys) {
			continue
		}
		match := func(e *endpointv3.LbEndpoint) bool {
			return includes(e.GetMetadata().GetFilterMetadata()["envoy.lb"], wanted)
		}
		for _, group := range a.GetEndpoints() {
			if slices.ContainsFunc(group.GetLbEndpoints(), match) {
				return match, nil
			}
		}
		switch selector.GetFallbackPolicy() {
		case clusterv3.Cluster_LbSubsetConfig_LbSubsetSelector_NOT_DEFINED:
			return fallback()
		case clusterv3.Cluster_LbSubsetConfig_LbSubsetSelector_NO_FALLBACK:
			return none, nil
		case clusterv3.Cluster_LbSubsetConfig_LbSubsetSelector_ANY_ENDPOINT:
			return all, nil
		default:
			return nil, fmt.Errorf("%w: fallback policy %s of a subset", ErrUnsupported, selector.GetFallbackPolicy())
		}
	}
	return fallback()
}

// includes is whether all fields of want are in have with the same values.
func includes(have, want *structpb.Struct) bool {
	for k, w := range want.GetFields() {
		if h := have.GetFields()[k]; h == nil || !proto.Equal(h, w) {
			return false
		}
	}
	return true
}
