package envoy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
)

// harmless are the http filters that do not change what happens to a request.
var harmless = map[string]bool{ //nolint:gochecknoglobals // a constant
	"type.googleapis.com/envoy.extensions.filters.http.router.v3.Router":           true,
	"type.googleapis.com/envoy.extensions.filters.http.grpc_stats.v3.FilterConfig": true,
}

// proxyHTTP serves requests on a connection until it ends.
func (t *traffic) proxyHTTP(ctx context.Context, h *hcmv3.HttpConnectionManager, d *downstream) error {
	for _, f := range h.GetHttpFilters() {
		if !harmless[f.GetTypedConfig().GetTypeUrl()] {
			return fmt.Errorf("%w: http filter %s", ErrUnsupported, f.GetTypedConfig().GetTypeUrl())
		}
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(h.GetCodecType() != hcmv3.HttpConnectionManager_HTTP2)
	protocols.SetUnencryptedHTTP2(h.GetCodecType() != hcmv3.HttpConnectionManager_HTTP1)
	ln := &oneConn{conn: d.Conn, closed: make(chan struct{})}
	server := &http.Server{
		Protocols: protocols, ReadHeaderTimeout: 30 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx },
		ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateClosed || s == http.StateHijacked {
				_ = ln.Close()
			}
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if err := t.request(h, d, w, r); err != nil {
				t.p.log.DebugContext(r.Context(), "request failed", "err", err)
				if errors.Is(err, ErrUnsupported) {
					_ = t.p.fail("%s", err)
				}
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
			}
		}),
	}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	err := server.Serve(ln)
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// oneConn is a listener with one connection; its second Accept returns when that has ended.
type oneConn struct {
	conn   net.Conn
	once   sync.Once
	closed chan struct{}
	mu     sync.Mutex
	taken  bool
}

func (l *oneConn) Accept() (net.Conn, error) {
	l.mu.Lock()
	first := !l.taken
	l.taken = true
	l.mu.Unlock()
	if first {
		return l.conn, nil
	}
	<-l.closed
	return nil, net.ErrClosed
}

func (l *oneConn) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *oneConn) Addr() net.Addr { return l.conn.LocalAddr() }

// request routes one request. An error is answered with 503.
func (t *traffic) request(h *hcmv3.HttpConnectionManager, d *downstream, w http.ResponseWriter, r *http.Request) error {
	v := t.view.Load()
	config := h.GetRouteConfig()
	if rds := h.GetRds(); rds != nil {
		config = v.routes[rds.GetRouteConfigName()]
	}
	host := virtualHost(config, r.Host)
	if host == nil {
		http.NotFound(w, r)
		return nil
	}
	route, err := findRoute(host, r)
	if err != nil {
		return err
	}
	if route == nil {
		http.NotFound(w, r)
		return nil
	}
	for _, overrides := range []int{
		len(config.GetTypedPerFilterConfig()), len(host.GetTypedPerFilterConfig()), len(route.GetTypedPerFilterConfig()),
	} {
		if overrides > 0 {
			return fmt.Errorf("%w: configuration of http filters per route", ErrUnsupported)
		}
	}
	switch a := route.GetAction().(type) {
	case *routev3.Route_DirectResponse:
		w.WriteHeader(int(a.DirectResponse.GetStatus()))
		_, err := w.Write(inline(a.DirectResponse.GetBody()))
		return err
	case *routev3.Route_Redirect:
		return redirect(a.Redirect, w, r)
	case *routev3.Route_Route:
		return t.forward(v, h, d, config, host, route, w, r)
	}
	return fmt.Errorf("%w: route action %T", ErrUnsupported, route.GetAction())
}

func redirect(a *routev3.RedirectAction, w http.ResponseWriter, r *http.Request) error {
	if a.GetPathRewriteSpecifier() != nil || a.GetSchemeRewriteSpecifier() != nil {
		return fmt.Errorf("%w: redirect %v", ErrUnsupported, a)
	}
	host, port, err := net.SplitHostPort(r.Host)
	if err != nil {
		host, port = r.Host, ""
	}
	if a.GetHostRedirect() != "" {
		host = a.GetHostRedirect()
	}
	if a.GetPortRedirect() != 0 {
		port = strconv.Itoa(int(a.GetPortRedirect()))
	}
	if port != "" {
		host = net.JoinHostPort(host, port)
	}
	code := map[routev3.RedirectAction_RedirectResponseCode]int{
		routev3.RedirectAction_MOVED_PERMANENTLY: 301, routev3.RedirectAction_FOUND: 302, routev3.RedirectAction_SEE_OTHER: 303,
		routev3.RedirectAction_TEMPORARY_REDIRECT: 307, routev3.RedirectAction_PERMANENT_REDIRECT: 308,
	}[a.GetResponseCode()]
	http.Redirect(w, r, (&url.URL{Scheme: "http", Host: host, Path: r.URL.Path, RawQuery: r.URL.RawQuery}).String(), code)
	return nil
}

// virtualHost finds the host by exact domain, then the longest suffix, the longest prefix, then `*`.
func virtualHost(config *routev3.RouteConfiguration, authority string) *routev3.VirtualHost {
	var best *routev3.VirtualHost
	score := -1
	authority = strings.ToLower(authority)
	for _, host := range config.GetVirtualHosts() {
		for _, domain := range host.GetDomains() {
			d, s := strings.ToLower(domain), -1
			switch {
			case d == authority:
				s = 1 << 20
			case d == "*":
				s = 0
			case strings.HasPrefix(d, "*") && strings.HasSuffix(authority, d[1:]):
				s = 1<<10 + len(d)
			case strings.HasSuffix(d, "*") && strings.HasPrefix(authority, d[:len(d)-1]):
				s = len(d)
			}
			if s > score {
				best, score = host, s
			}
		}
	}
	return best
}

// findRoute returns the first route that matches.
func findRoute(host *routev3.VirtualHost, r *http.Request) (*routev3.Route, error) {
	for _, route := range host.GetRoutes() {
		ok, err := matches(route.GetMatch(), r)
		if err != nil {
			return nil, err
		}
		if ok {
			return route, nil
		}
	}
	return nil, nil
}

func matches(m *routev3.RouteMatch, r *http.Request) (bool, error) {
	if len(m.GetQueryParameters()) > 0 || m.GetRuntimeFraction() != nil || m.GetGrpc() != nil || m.GetTlsContext() != nil {
		return false, fmt.Errorf("%w: route match %v", ErrUnsupported, m)
	}
	path, ok := r.URL.EscapedPath(), false
	fold := func(s string) string {
		if cs := m.GetCaseSensitive(); cs != nil && !cs.GetValue() {
			return strings.ToLower(s)
		}
		return s
	}
	var err error
	switch p := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		ok = strings.HasPrefix(fold(path), fold(p.Prefix))
	case *routev3.RouteMatch_Path:
		ok = fold(path) == fold(p.Path)
	case *routev3.RouteMatch_SafeRegex:
		ok, err = matchWhole(p.SafeRegex, path)
	default:
		err = fmt.Errorf("%w: route match %T", ErrUnsupported, p)
	}
	for _, header := range m.GetHeaders() {
		if err != nil || !ok {
			break
		}
		ok, err = matchHeader(header, r)
	}
	return ok, err
}

func matchHeader(m *routev3.HeaderMatcher, r *http.Request) (bool, error) {
	var value string
	var there bool
	switch strings.ToLower(m.GetName()) {
	case ":method":
		value, there = r.Method, true
	case ":path":
		value, there = r.URL.RequestURI(), true
	case ":authority", "host":
		value, there = r.Host, true
	default:
		values := r.Header.Values(m.GetName())
		value, there = strings.Join(values, ","), len(values) > 0
	}
	var ok bool
	var err error
	//nolint:staticcheck // the older matchers are still valid on the wire
	switch s := m.GetHeaderMatchSpecifier().(type) {
	case *routev3.HeaderMatcher_StringMatch:
		ok, err = matchString(s.StringMatch, value)
	case *routev3.HeaderMatcher_ExactMatch:
		ok = value == s.ExactMatch
	case *routev3.HeaderMatcher_PrefixMatch:
		ok = strings.HasPrefix(value, s.PrefixMatch)
	case *routev3.HeaderMatcher_SuffixMatch:
		ok = strings.HasSuffix(value, s.SuffixMatch)
	case *routev3.HeaderMatcher_ContainsMatch:
		ok = strings.Contains(value, s.ContainsMatch)
	case *routev3.HeaderMatcher_SafeRegexMatch:
		ok, err = matchWhole(s.SafeRegexMatch, value)
	case *routev3.HeaderMatcher_PresentMatch:
		return (there == s.PresentMatch) != m.GetInvertMatch(), nil
	case nil:
		return there != m.GetInvertMatch(), nil
	default:
		err = fmt.Errorf("%w: header match %T", ErrUnsupported, s)
	}
	if !there {
		return false, err // a header that is not there matches nothing, inverted or not
	}
	return ok != m.GetInvertMatch(), err
}

func (t *traffic) forward(v *view, h *hcmv3.HttpConnectionManager, d *downstream, config *routev3.RouteConfiguration,
	host *routev3.VirtualHost, route *routev3.Route, w http.ResponseWriter, r *http.Request,
) error {
	action := route.GetRoute()
	if len(action.GetHashPolicy())+len(action.GetRequestMirrorPolicies()) > 0 || action.GetHostRewriteHeader() != "" ||
		action.GetHostRewritePathRegex() != nil || action.GetClusterHeader() != "" {
		return fmt.Errorf("%w: one of the fields of the route to %v", ErrUnsupported, action.GetClusterSpecifier())
	}
	name, metadata := action.GetCluster(), action.GetMetadataMatch()
	levels := []headers{route, host, config}
	if weighted := action.GetWeightedClusters().GetClusters(); len(weighted) > 0 {
		c := pick(weighted, func(c *routev3.WeightedCluster_ClusterWeight) uint32 { return c.GetWeight().GetValue() })
		name, metadata = c.GetName(), mergeMetadata(metadata, c.GetMetadataMatch())
		levels = append([]headers{c}, levels...)
	}
	c, ok := v.clusters[name]
	if !ok {
		return fmt.Errorf("no cluster %q", name)
	}
	h2, err := speaksHTTP2(c.proto)
	if err != nil {
		return err
	}
	timeout := 15 * time.Second // Envoy's own default
	if action.GetTimeout() != nil {
		timeout = action.GetTimeout().AsDuration()
	}
	ctx := r.Context()
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	up, endpoint, err := t.connect(ctx, v, name, metadata)
	if err != nil {
		return err
	}
	if !t.track(up) {
		return net.ErrClosed
	}
	defer t.untrack(up)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!h2)
	protocols.SetUnencryptedHTTP2(h2)
	transport := &http.Transport{
		Protocols: protocols, DisableCompression: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) { return up, nil },
	}
	defer transport.CloseIdleConnections()

	rewritten, err := rewritePath(route, r.URL.EscapedPath())
	if err != nil {
		return err
	}
	var failed error
	proxy := &httputil.ReverseProxy{
		Transport: transport, FlushInterval: -1,
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host = "http", "upstream"
			if u, err := url.ParseRequestURI(rewritten); err == nil {
				p.Out.URL.Path, p.Out.URL.RawPath = u.Path, u.RawPath
			}
			p.Out.Host = r.Host
			if literal := action.GetHostRewriteLiteral(); literal != "" {
				p.Out.Host = literal
			} else if action.GetAutoHostRewrite().GetValue() && endpoint.GetEndpoint().GetHostname() != "" {
				p.Out.Host = endpoint.GetEndpoint().GetHostname()
			}
			clientCertificate(h, d, p.Out.Header)
			for _, l := range levels {
				failed = errors.Join(failed, edit(p.Out.Header, l.GetRequestHeadersToAdd(), l.GetRequestHeadersToRemove()))
			}
			p.Out.Header.Set("X-Forwarded-Proto", "http")
		},
		ModifyResponse: func(resp *http.Response) error {
			for _, l := range levels {
				failed = errors.Join(failed, edit(resp.Header, l.GetResponseHeadersToAdd(), l.GetResponseHeadersToRemove()))
			}
			return failed
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			code := http.StatusServiceUnavailable
			if errors.Is(err, context.DeadlineExceeded) {
				code = http.StatusGatewayTimeout
			}
			w.WriteHeader(code)
			_, _ = io.WriteString(w, err.Error())
		},
	}
	proxy.ServeHTTP(w, r.WithContext(ctx))
	if errors.Is(failed, ErrUnsupported) {
		_ = t.p.fail("%s", failed)
	}
	return nil
}

// headers is what can change headers: a route, a virtual host, a route configuration, a weighted cluster.
type headers interface {
	GetRequestHeadersToAdd() []*corev3.HeaderValueOption
	GetRequestHeadersToRemove() []string
	GetResponseHeadersToAdd() []*corev3.HeaderValueOption
	GetResponseHeadersToRemove() []string
}

func edit(h http.Header, add []*corev3.HeaderValueOption, remove []string) error {
	for _, name := range remove {
		h.Del(name)
	}
	for _, o := range add {
		name, value := o.GetHeader().GetKey(), o.GetHeader().GetValue()
		if strings.Contains(strings.ReplaceAll(value, "%%", ""), "%") {
			return fmt.Errorf("%w: formatted header %q", ErrUnsupported, name)
		}
		value = strings.ReplaceAll(value, "%%", "%")
		//nolint:staticcheck // the older field is still valid on the wire
		appends := o.GetAppend()
		switch {
		case appends != nil && !appends.GetValue(), o.GetAppendAction() == corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD:
			h.Set(name, value)
		case o.GetAppendAction() == corev3.HeaderValueOption_ADD_IF_ABSENT && len(h.Values(name)) > 0:
		case o.GetAppendAction() == corev3.HeaderValueOption_OVERWRITE_IF_EXISTS:
			if len(h.Values(name)) > 0 {
				h.Set(name, value)
			}
		default:
			h.Add(name, value)
		}
	}
	return nil
}

func clientCertificate(h *hcmv3.HttpConnectionManager, d *downstream, out http.Header) {
	const name = "X-Forwarded-Client-Cert"
	switch h.GetForwardClientCertDetails() {
	case hcmv3.HttpConnectionManager_SANITIZE:
		out.Del(name)
	case hcmv3.HttpConnectionManager_SANITIZE_SET:
		out.Del(name)
		if d.peer == nil || !h.GetSetCurrentClientCertDetails().GetUri() {
			return
		}
		var parts []string
		for _, u := range d.peer.URIs {
			parts = append(parts, "URI="+u.String())
		}
		out.Set(name, strings.Join(parts, ";"))
	default:
	}
}

func rewritePath(route *routev3.Route, path string) (string, error) {
	action := route.GetRoute()
	if prefix := action.GetPrefixRewrite(); prefix != "" {
		switch p := route.GetMatch().GetPathSpecifier().(type) {
		case *routev3.RouteMatch_Prefix:
			return prefix + path[len(p.Prefix):], nil
		case *routev3.RouteMatch_Path:
			return prefix, nil
		default:
			return "", fmt.Errorf("%w: prefix rewrite of %T", ErrUnsupported, p)
		}
	}
	if regex := action.GetRegexRewrite(); regex != nil {
		re, err := regexp.Compile(regex.GetPattern().GetRegex())
		if err != nil {
			return "", fmt.Errorf("regex rewrite: %w", err)
		}
		// \1 is Envoy's way to say ${1}, a dollar has no meaning there.
		to := strings.ReplaceAll(regex.GetSubstitution(), "$", "$$")
		to = regexp.MustCompile(`\\(\d)`).ReplaceAllString(to, "$${$1}")
		return re.ReplaceAllString(path, to), nil
	}
	return path, nil
}
