// Package envoytest reads the configuration of a proxy as Envoy would and says what it does with a connection or a request:
// who is let in, where a request goes, within which time, and as whom the other end must prove itself. It knows nothing of
// policies and of how the configuration was made, so that tests can hold its answers against what the policies say.
//
// It understands what this control plane generates. Anything else in the way of an answer is an error, never a guess.
package envoytest

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	rbacfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
)

// Config is the configuration of a proxy.
type Config struct {
	listeners map[string]*listenerv3.Listener
	clusters  map[string]*clusterv3.Cluster
	endpoints map[string]*endpointv3.ClusterLoadAssignment
	routes    map[string]*routev3.RouteConfiguration
}

// New reads resources; those that are no listeners, clusters, endpoints or routes are passed over.
func New(resources []proto.Message) *Config {
	c := &Config{
		listeners: make(map[string]*listenerv3.Listener), clusters: make(map[string]*clusterv3.Cluster),
		endpoints: make(map[string]*endpointv3.ClusterLoadAssignment), routes: make(map[string]*routev3.RouteConfiguration),
	}
	for _, r := range resources {
		switch m := r.(type) {
		case *listenerv3.Listener:
			c.listeners[m.GetName()] = m
		case *clusterv3.Cluster:
			c.clusters[m.GetName()] = m
		case *endpointv3.ClusterLoadAssignment:
			c.endpoints[m.GetClusterName()] = m
		case *routev3.RouteConfiguration:
			c.routes[m.GetName()] = m
		}
	}
	return c
}

// Connection is a client's connection to a listener.
type Connection struct {
	// TLS: the client begins a handshake, in which it offers ALPN and presents a certificate of the trusted authority with
	// Identities as its URIs; nil: it presents none.
	TLS        bool
	ServerName string
	ALPN       []string
	Identities []string
	Source     netip.Addr
}

// Request is a request on it.
type Request struct {
	Method, Path string // with its query
	// Host is the name that the request is for.
	Host    string
	Headers map[string]string // names in lower case
}

// Outcome is what the proxy does.
type Outcome struct {
	// Refused says why the connection is closed or the request answered without going anywhere; "": it goes on.
	Refused string
	// Chain is the index of the filter chain that took the connection.
	Chain int
	// ShadowDenied: rules that are only counted would have refused the connection.
	ShadowDenied bool
	// Destinations are the clusters, and their shares.
	Destinations map[string]uint32
	// Subset is what endpoints must carry; nil: any will do. Destinations with subsets of their own are not understood.
	Subset map[string]string
	// RewritesHost: the host of the request becomes that of the endpoint.
	RewritesHost bool
	// Timeout is that of the request; nil: Envoy's default.
	Timeout *time.Duration
	// Faults are the faults that may be injected.
	Faults []*faultv3.HTTPFault
	// RateLimit is the limit on the request; nil: none.
	RateLimit *ratelimitv3.LocalRateLimit
	// Answer is the status with which the proxy answers itself; 0: it does not. Location is where a redirect leads.
	Answer   uint32
	Location string
	// Mirrors are the clusters that get copies.
	Mirrors []string
	// Path is that under which the request goes on, without its query.
	Path string
	// Retry is the policy for the request; nil: none.
	Retry *routev3.RetryPolicy
}

// Ask says what becomes of a connection to a listener, and of a request on it; nil for a connection that is no HTTP.
func (c *Config) Ask(listener string, conn Connection, req *Request) (Outcome, error) {
	l := c.listeners[listener]
	if l == nil {
		return Outcome{}, fmt.Errorf("no listener %q", listener)
	}
	out := Outcome{Chain: chainFor(l, conn)}
	if out.Chain < 0 {
		out.Refused = "no filter chain"
		return out, nil
	}
	chain := l.GetFilterChains()[out.Chain]
	encrypted := conn.TLS
	if s := chain.GetTransportSocket(); s != nil {
		refused, err := handshake(s.GetTypedConfig(), conn)
		if err != nil || refused != "" {
			out.Refused = refused
			return out, err
		}
		encrypted = false
	}
	if len(chain.GetFilters()) == 0 {
		out.Refused = "no filters"
		return out, nil
	}
	for _, f := range chain.GetFilters() {
		m, err := f.GetTypedConfig().UnmarshalNew()
		if err != nil {
			return out, fmt.Errorf("filter %s: %w", f.GetName(), err)
		}
		switch m := m.(type) {
		case *rbacfilterv3.RBAC:
			if ok, err := permits(m.GetRules(), conn); err != nil {
				return out, err
			} else if !ok {
				out.Refused = "rbac"
				return out, nil
			}
			if m.GetShadowRules() != nil {
				ok, err := permits(m.GetShadowRules(), conn)
				if err != nil {
					return out, err
				}
				out.ShadowDenied = !ok
			}
		case *tcpproxyv3.TcpProxy:
			return out, c.tcp(m, &out)
		case *hcmv3.HttpConnectionManager:
			if encrypted || req == nil {
				out.Refused = "not HTTP"
				return out, nil
			}
			return out, c.http(m, req, &out)
		default:
			if !strings.HasSuffix(f.GetTypedConfig().GetTypeUrl(), "KafkaBroker") {
				return out, fmt.Errorf("filter %s is not understood", f.GetName())
			}
		}
	}
	return out, fmt.Errorf("listener %q: no filter ends the chain", listener)
}

// chainFor is the filter chain for a connection: of those whose conditions are met, the one with the more specific ones, in
// Envoy's order of conditions. -1: none.
func chainFor(l *listenerv3.Listener, conn Connection) int {
	transport, alpn, sni := "raw_buffer", []string(nil), ""
	for _, f := range l.GetListenerFilters() {
		if f.GetName() == "envoy.filters.listener.tls_inspector" && conn.TLS {
			transport, alpn, sni = "tls", conn.ALPN, conn.ServerName
		}
	}
	best, bestScore := -1, -1
	for i, chain := range l.GetFilterChains() {
		m, score := chain.GetFilterChainMatch(), 0
		if names := m.GetServerNames(); len(names) > 0 {
			length := specificity(names, sni)
			if length < 0 {
				continue
			}
			score += 8 * (1 + length)
		}
		if p := m.GetTransportProtocol(); p != "" {
			if p != transport {
				continue
			}
			score += 4
		}
		if ps := m.GetApplicationProtocols(); len(ps) > 0 {
			if !slices.ContainsFunc(alpn, func(p string) bool { return slices.Contains(ps, p) }) {
				continue
			}
			score += 2
		}
		if ranges := m.GetSourcePrefixRanges(); len(ranges) > 0 {
			if !slices.ContainsFunc(ranges, func(r *corev3.CidrRange) bool {
				return conn.Source.IsValid() && r.GetAddressPrefix() == conn.Source.String()
			}) {
				continue
			}
			score++
		}
		if score > bestScore {
			best, bestScore = i, score
		}
	}
	return best
}

// exactName is more than any pattern that covers a name.
const exactName = 1 << 20

// specificity is how well the best of some names and patterns fits a name: exactly, or by the length of a suffix; -1: none does.
func specificity(patterns []string, name string) int {
	best := -1
	name = strings.ToLower(name)
	for _, p := range patterns {
		suffix, wildcard := strings.CutPrefix(p, "*")
		switch {
		case p == name:
			best = exactName
		case wildcard && strings.HasSuffix(name, suffix):
			best = max(best, len(suffix))
		}
	}
	return best
}

// handshake says why a chain refuses the TLS of a connection; "": it does not.
func handshake(config *anypb.Any, conn Connection) (string, error) {
	tls := &tlsv3.DownstreamTlsContext{}
	if err := config.UnmarshalTo(tls); err != nil {
		return "", fmt.Errorf("transport socket: %w", err)
	}
	if !conn.TLS {
		return "not TLS", nil
	}
	validation := validationOf(tls.GetCommonTlsContext())
	switch {
	case validation == nil:
		return "", nil
	case conn.Identities == nil:
		if tls.GetRequireClientCertificate().GetValue() {
			return "no client certificate", nil
		}
		return "", nil
	}
	for _, san := range validation.GetMatchTypedSubjectAltNames() {
		for _, id := range conn.Identities {
			ok, err := matches(san.GetMatcher(), id)
			if err != nil {
				return "", err
			}
			if ok {
				return "", nil
			}
		}
	}
	return "client certificate of another mesh", nil
}

func validationOf(c *tlsv3.CommonTlsContext) *tlsv3.CertificateValidationContext {
	if v := c.GetCombinedValidationContext(); v != nil {
		return v.GetDefaultValidationContext()
	}
	return c.GetValidationContext()
}

// permits evaluates rules.
func permits(rules *rbacv3.RBAC, conn Connection) (bool, error) {
	matched := false
	for name, p := range rules.GetPolicies() {
		if len(p.GetPermissions()) != 1 || !p.GetPermissions()[0].GetAny() {
			return false, fmt.Errorf("policy %q: permissions are not understood", name)
		}
		for _, principal := range p.GetPrincipals() {
			ok, err := is(principal, conn)
			if err != nil {
				return false, err
			}
			matched = matched || ok
		}
	}
	switch rules.GetAction() {
	case rbacv3.RBAC_ALLOW:
		return matched, nil
	case rbacv3.RBAC_DENY:
		return !matched, nil
	default:
		return false, fmt.Errorf("action %s is not understood", rules.GetAction())
	}
}

func is(p *rbacv3.Principal, conn Connection) (bool, error) {
	switch t := p.GetIdentifier().(type) {
	case *rbacv3.Principal_Any:
		return t.Any, nil
	case *rbacv3.Principal_AndIds:
		for _, id := range t.AndIds.GetIds() {
			if ok, err := is(id, conn); err != nil || !ok {
				return false, err
			}
		}
		return true, nil
	case *rbacv3.Principal_OrIds:
		for _, id := range t.OrIds.GetIds() {
			if ok, err := is(id, conn); err != nil || ok {
				return ok, err
			}
		}
		return false, nil
	case *rbacv3.Principal_NotId:
		ok, err := is(t.NotId, conn)
		return !ok, err
	case *rbacv3.Principal_Authenticated_:
		for _, id := range conn.Identities {
			if ok, err := matches(t.Authenticated.GetPrincipalName(), id); err != nil || ok {
				return ok, err
			}
		}
		return false, nil
	default:
		return false, fmt.Errorf("principal %T is not understood", t)
	}
}

func matches(m *matcherv3.StringMatcher, s string) (bool, error) {
	switch t := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		return s == t.Exact, nil
	case *matcherv3.StringMatcher_Prefix:
		return strings.HasPrefix(s, t.Prefix), nil
	case *matcherv3.StringMatcher_SafeRegex:
		return wholly(t.SafeRegex.GetRegex(), s)
	default:
		return false, fmt.Errorf("string matcher %T is not understood", t)
	}
}

// wholly: Envoy's expressions match the whole text.
func wholly(expr, s string) (bool, error) {
	re, err := regexp.Compile("^(?:" + expr + ")$")
	if err != nil {
		return false, fmt.Errorf("regular expression: %w", err)
	}
	return re.MatchString(s), nil
}

func (c *Config) tcp(m *tcpproxyv3.TcpProxy, out *Outcome) error {
	out.Destinations, out.Subset = make(map[string]uint32), subsetOf(m.GetMetadataMatch())
	if split := m.GetWeightedClusters(); split != nil {
		for _, w := range split.GetClusters() {
			out.Destinations[w.GetName()] += w.GetWeight()
		}
	} else {
		out.Destinations[m.GetCluster()] = 1
	}
	return c.closeMissing(out)
}

// closeMissing refuses what goes to a cluster that is not there.
func (c *Config) closeMissing(out *Outcome) error {
	for name := range out.Destinations {
		if c.clusters[name] == nil {
			if len(out.Destinations) > 1 {
				return fmt.Errorf("cluster %q of a split is missing", name)
			}
			out.Refused = "no cluster"
		}
	}
	return nil
}

func (c *Config) http(m *hcmv3.HttpConnectionManager, req *Request, out *Outcome) error {
	config := m.GetRouteConfig()
	if rds := m.GetRds(); rds != nil {
		if config = c.routes[rds.GetRouteConfigName()]; config == nil {
			return fmt.Errorf("no routes %q", rds.GetRouteConfigName())
		}
	}
	name := req.Host
	if m.GetStripAnyHostPort() {
		name, _, _ = strings.Cut(name, ":")
	}
	var host *routev3.VirtualHost
	best := -1
	for _, h := range config.GetVirtualHosts() {
		if fit := specificity(h.GetDomains(), name); fit > best {
			host, best = h, fit
		}
	}
	if host == nil {
		out.Refused = "no virtual host"
		return nil
	}
	var route *routev3.Route
	for _, r := range host.GetRoutes() {
		ok, err := routeMatches(r.GetMatch(), req)
		if err != nil {
			return err
		}
		if ok {
			route = r
			break
		}
	}
	if route == nil {
		out.Refused = "no route"
		return nil
	}
	for _, f := range m.GetHttpFilters() {
		fault := &faultv3.HTTPFault{}
		if !f.GetTypedConfig().MessageIs(fault) {
			continue
		}
		if err := f.GetTypedConfig().UnmarshalTo(fault); err != nil {
			return fmt.Errorf("fault: %w", err)
		}
		ok, err := headersMatch(fault.GetHeaders(), req)
		if err != nil {
			return err
		}
		if ok {
			out.Faults = append(out.Faults, fault)
		}
	}
	for _, config := range route.GetTypedPerFilterConfig() {
		limit := &ratelimitv3.LocalRateLimit{}
		if config.MessageIs(limit) {
			if err := config.UnmarshalTo(limit); err != nil {
				return fmt.Errorf("rate limit: %w", err)
			}
			out.RateLimit = limit
		}
	}
	if d := route.GetDirectResponse(); d != nil {
		out.Refused, out.Answer = "answered", d.GetStatus()
		return nil
	}
	if r := route.GetRedirect(); r != nil {
		out.Refused, out.Answer, out.Location = "answered", redirectStatus(r), location(r, req)
		return nil
	}
	action := route.GetRoute()
	if action == nil {
		return fmt.Errorf("action %T is not understood", route.GetAction())
	}
	if err := c.forward(route, req, out); err != nil {
		return err
	}
	if action.GetTimeout() != nil {
		d := action.GetTimeout().AsDuration()
		out.Timeout = &d
	}
	if out.Retry = action.GetRetryPolicy(); out.Retry == nil {
		out.Retry = host.GetRetryPolicy()
	}
	out.RewritesHost = action.GetAutoHostRewrite().GetValue()
	out.Destinations, out.Subset = make(map[string]uint32), subsetOf(action.GetMetadataMatch())
	if split := action.GetWeightedClusters(); split != nil {
		for _, w := range split.GetClusters() {
			out.Destinations[w.GetName()] += w.GetWeight().GetValue()
		}
	} else {
		out.Destinations[action.GetCluster()] = 1
	}
	return c.closeMissing(out)
}

// forward notes under which path a request goes on, and who gets copies.
func (c *Config) forward(route *routev3.Route, req *Request, out *Outcome) error {
	action := route.GetRoute()
	out.Path, _, _ = strings.Cut(req.Path, "?")
	switch prefix, whole := action.GetPrefixRewrite(), action.GetRegexRewrite(); {
	case prefix != "":
		out.Path = prefix + out.Path[len(route.GetMatch().GetPrefix()+route.GetMatch().GetPath()):]
	case whole != nil:
		re, err := regexp.Compile(whole.GetPattern().GetRegex())
		if err != nil {
			return fmt.Errorf("rewrite: %w", err)
		}
		out.Path = re.ReplaceAllLiteralString(out.Path, strings.ReplaceAll(whole.GetSubstitution(), `\\`, `\`))
	}
	for _, m := range action.GetRequestMirrorPolicies() {
		if c.clusters[m.GetCluster()] == nil {
			return fmt.Errorf("cluster %q of a mirror is missing", m.GetCluster())
		}
		out.Mirrors = append(out.Mirrors, m.GetCluster())
	}
	return nil
}

func redirectStatus(r *routev3.RedirectAction) uint32 {
	return map[routev3.RedirectAction_RedirectResponseCode]uint32{
		routev3.RedirectAction_MOVED_PERMANENTLY: 301, routev3.RedirectAction_FOUND: 302, routev3.RedirectAction_SEE_OTHER: 303,
		routev3.RedirectAction_TEMPORARY_REDIRECT: 307, routev3.RedirectAction_PERMANENT_REDIRECT: 308,
	}[r.GetResponseCode()]
}

// location is where a redirect leads that names a scheme and a host.
func location(r *routev3.RedirectAction, req *Request) string {
	host := r.GetHostRedirect()
	if r.GetPortRedirect() != 0 {
		host = net.JoinHostPort(host, strconv.FormatUint(uint64(r.GetPortRedirect()), 10))
	}
	return r.GetSchemeRedirect() + "://" + host + req.Path
}

func routeMatches(m *routev3.RouteMatch, req *Request) (bool, error) {
	path, query, _ := strings.Cut(req.Path, "?")
	values, err := url.ParseQuery(query)
	if err != nil {
		return false, fmt.Errorf("query of the request: %w", err)
	}
	for _, q := range m.GetQueryParameters() {
		if !values.Has(q.GetName()) {
			return false, nil
		}
		if ok, err := matches(q.GetStringMatch(), values.Get(q.GetName())); err != nil || !ok {
			return false, err
		}
	}
	switch t := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		if !strings.HasPrefix(path, t.Prefix) {
			return false, nil
		}
	case *routev3.RouteMatch_Path:
		if path != t.Path {
			return false, nil
		}
	case *routev3.RouteMatch_SafeRegex:
		if ok, err := wholly(t.SafeRegex.GetRegex(), path); err != nil || !ok {
			return false, err
		}
	default:
		return false, fmt.Errorf("path matcher %T is not understood", t)
	}
	return headersMatch(m.GetHeaders(), req)
}

func headersMatch(all []*routev3.HeaderMatcher, req *Request) (bool, error) {
	for _, m := range all {
		value, has := req.Headers[strings.ToLower(m.GetName())]
		if m.GetName() == ":method" {
			value, has = req.Method, true
		}
		switch t := m.GetHeaderMatchSpecifier().(type) {
		case *routev3.HeaderMatcher_PresentMatch:
			if has != t.PresentMatch {
				return false, nil
			}
		case *routev3.HeaderMatcher_StringMatch:
			if !has {
				return false, nil
			}
			if ok, err := matches(t.StringMatch, value); err != nil || !ok {
				return false, err
			}
		default:
			return false, fmt.Errorf("header matcher %T is not understood", t)
		}
	}
	return true, nil
}

// Upstream is how the proxy connects to the endpoints of a cluster.
type Upstream struct {
	TLS        bool
	SNI        string
	ALPN       []string
	Identities []*matcherv3.StringMatcher // the other end must have one of them
	Connect    time.Duration              // timeout
}

// Upstream says how the proxy connects to the endpoints of a cluster.
func (c *Config) Upstream(cluster string) (Upstream, error) {
	m := c.clusters[cluster]
	if m == nil {
		return Upstream{}, fmt.Errorf("no cluster %q", cluster)
	}
	return upstream(m, m.GetTransportSocket())
}

func upstream(m *clusterv3.Cluster, socket *corev3.TransportSocket) (Upstream, error) {
	out, cluster := Upstream{Connect: m.GetConnectTimeout().AsDuration()}, m.GetName()
	if socket == nil {
		return out, nil
	}
	tls := &tlsv3.UpstreamTlsContext{}
	if err := socket.GetTypedConfig().UnmarshalTo(tls); err != nil {
		return out, fmt.Errorf("cluster %q: %w", cluster, err)
	}
	out.TLS, out.SNI, out.ALPN = true, tls.GetSni(), tls.GetCommonTlsContext().GetAlpnProtocols()
	for _, san := range validationOf(tls.GetCommonTlsContext()).GetMatchTypedSubjectAltNames() {
		out.Identities = append(out.Identities, san.GetMatcher())
	}
	return out, nil
}

// Endpoint is where a connection may end up.
type Endpoint struct {
	Address string // host:port
	Weight  uint32
	// Upstream is how the proxy connects to it.
	Upstream Upstream
}

func subsetOf(m *corev3.Metadata) map[string]string {
	fields := m.GetFilterMetadata()["envoy.lb"].GetFields()
	if len(fields) == 0 {
		return nil
	}
	out := make(map[string]string, len(fields))
	for k, v := range fields {
		out[k] = v.GetStringValue()
	}
	return out
}

// Endpoints are those of a cluster that a connection may get which asks for a subset, in their order.
func (c *Config) Endpoints(cluster string, subset map[string]string) ([]Endpoint, error) {
	m := c.clusters[cluster]
	if m == nil {
		return nil, fmt.Errorf("no cluster %q", cluster)
	}
	assignment := m.GetLoadAssignment()
	if m.GetType() == clusterv3.Cluster_EDS {
		assignment = c.endpoints[cluster]
	}
	want, err := wanted(m.GetLbSubsetConfig(), subset)
	if err != nil {
		return nil, fmt.Errorf("cluster %q: %w", cluster, err)
	}
	var out []Endpoint
	for _, group := range assignment.GetEndpoints() {
		if group.GetPriority() != 0 {
			return nil, fmt.Errorf("cluster %q: priorities are not understood", cluster)
		}
		for _, e := range group.GetLbEndpoints() {
			metadata := e.GetMetadata().GetFilterMetadata()
			if !has(metadata["envoy.lb"], want) {
				continue
			}
			socket := m.GetTransportSocket()
			for _, match := range m.GetTransportSocketMatches() {
				if has(metadata["envoy.transport_socket_match"], subsetOf(&corev3.Metadata{
					FilterMetadata: map[string]*structpb.Struct{"envoy.lb": match.GetMatch()},
				})) {
					socket = match.GetTransportSocket()
					break
				}
			}
			at := e.GetEndpoint().GetAddress().GetSocketAddress()
			found := Endpoint{
				Address: net.JoinHostPort(at.GetAddress(), strconv.FormatUint(uint64(at.GetPortValue()), 10)), Weight: e.GetLoadBalancingWeight().GetValue(),
			}
			if found.Upstream, err = upstream(m, socket); err != nil {
				return nil, err
			}
			out = append(out, found)
		}
	}
	return out, nil
}

// wanted is what endpoints must carry for a connection that asks for a subset: nothing where the cluster knows no subset by
// these keys, and falls back to any endpoint.
func wanted(config *clusterv3.Cluster_LbSubsetConfig, subset map[string]string) (map[string]string, error) {
	anything := map[string]string{}
	if config == nil {
		return anything, nil
	}
	keys := slices.Sorted(maps.Keys(subset))
	for _, s := range config.GetSubsetSelectors() {
		if slices.Equal(s.GetKeys(), keys) {
			if s.GetFallbackPolicy() != clusterv3.Cluster_LbSubsetConfig_LbSubsetSelector_NO_FALLBACK {
				return nil, fmt.Errorf("fallback %s is not understood", s.GetFallbackPolicy())
			}
			return subset, nil
		}
	}
	if config.GetFallbackPolicy() != clusterv3.Cluster_LbSubsetConfig_ANY_ENDPOINT {
		return nil, fmt.Errorf("fallback %s is not understood", config.GetFallbackPolicy())
	}
	return anything, nil
}

func has(metadata *structpb.Struct, want map[string]string) bool {
	for k, v := range want {
		got, ok := metadata.GetFields()[k]
		if !ok || got.GetStringValue() != v {
			return false
		}
	}
	return true
}
