package envoy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path"
	"strings"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
)

// proxyHTTP serves requests on a connection until it ends.
func (t *traffic) proxyHTTP(ctx context.Context, listener string, h *hcmv3.HttpConnectionManager, d *downstream) error {
	if err := understands(h, h.GetCommonHttpProtocolOptions()); err != nil {
		return err
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(h.GetCodecType() != hcmv3.HttpConnectionManager_HTTP2)
	protocols.SetUnencryptedHTTP2(h.GetCodecType() != hcmv3.HttpConnectionManager_HTTP1)
	ln := &oneConn{conn: d.Conn, closed: make(chan struct{})}
	server := &http.Server{
		Protocols: protocols, ReadHeaderTimeout: 30 * time.Second, IdleTimeout: h.GetCommonHttpProtocolOptions().GetIdleTimeout().AsDuration(),
		BaseContext: func(net.Listener) context.Context { return ctx },
		ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateClosed || s == http.StateHijacked {
				_ = ln.Close()
			}
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			e := &exchange{t: t, v: t.view.Load(), listener: listener, manager: h, d: d}
			if err := e.serve(w, r); err != nil {
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

// exchange is one request on its way: what it came by, and the route that was found for it.
type exchange struct {
	t        *traffic
	v        *view
	listener string
	manager  *hcmv3.HttpConnectionManager
	d        *downstream

	config *routev3.RouteConfiguration
	host   *routev3.VirtualHost
	route  *routev3.Route
	index  int // of the route in its host
}

// serve answers one request. An error is answered with 503.
func (e *exchange) serve(w http.ResponseWriter, r *http.Request) error {
	if name := e.manager.GetServerName(); name != "" {
		w.Header().Set("Server", name)
	}
	if e.manager.GetCommonHttpProtocolOptions().GetHeadersWithUnderscoresAction() == corev3.HttpProtocolOptions_REJECT_REQUEST {
		for name := range r.Header {
			if strings.Contains(name, "_") {
				http.Error(w, "", http.StatusBadRequest)
				return nil
			}
		}
	}
	if err := e.normalize(r); err != nil {
		return err
	}
	e.config = e.manager.GetRouteConfig()
	if rds := e.manager.GetRds(); rds != nil {
		e.config = e.v.routes[rds.GetRouteConfigName()]
	}
	if e.host = virtualHost(e.config, r.Host); e.host == nil {
		http.NotFound(w, r)
		return nil
	}
	if err := understands(e.config, e.host); err != nil {
		return err
	}
	if tls := e.host.GetRequireTls(); tls == routev3.VirtualHost_ALL && !e.d.secure {
		w.Header().Set("Location", "https://"+r.Host+r.URL.RequestURI())
		w.WriteHeader(http.StatusMovedPermanently)
		return nil
	} else if tls == routev3.VirtualHost_EXTERNAL_ONLY {
		return fmt.Errorf("%w: require_tls %s", ErrUnsupported, tls)
	}
	var err error
	if e.route, e.index, err = findRoute(e.host, r); err != nil {
		return err
	}
	if e.route == nil {
		http.NotFound(w, r)
		return nil
	}
	if err := understands(e.route); err != nil {
		return err
	}
	if done, err := e.filter(w, r); done || err != nil {
		return err
	}
	switch a := e.route.GetAction().(type) {
	case *routev3.Route_DirectResponse:
		return e.direct(a.DirectResponse, w)
	case *routev3.Route_Redirect:
		return e.redirect(a.Redirect, w, r)
	case *routev3.Route_Route:
		return e.forward(a.Route, w, r)
	}
	return fmt.Errorf("%w: route action %T", ErrUnsupported, e.route.GetAction())
}

// normalize changes host and path as the connection manager is told to before a route is looked for.
func (e *exchange) normalize(r *http.Request) error {
	if e.manager.GetStripAnyHostPort() {
		if host, _, err := net.SplitHostPort(r.Host); err == nil {
			r.Host = host
		}
	}
	escaped := r.URL.EscapedPath()
	if strings.Contains(strings.ToLower(escaped), "%2f") || strings.Contains(strings.ToLower(escaped), "%5c") {
		switch action := e.manager.GetPathWithEscapedSlashesAction(); action {
		case hcmv3.HttpConnectionManager_IMPLEMENTATION_SPECIFIC_DEFAULT, hcmv3.HttpConnectionManager_KEEP_UNCHANGED:
		default:
			return fmt.Errorf("%w: %s", ErrUnsupported, action)
		}
	}
	clean := escaped
	if e.manager.GetMergeSlashes() {
		for strings.Contains(clean, "//") {
			clean = strings.ReplaceAll(clean, "//", "/")
		}
	}
	if e.manager.GetNormalizePath().GetValue() && strings.Contains(clean, "/.") {
		slash := strings.HasSuffix(clean, "/") || strings.HasSuffix(clean, "/.") || strings.HasSuffix(clean, "/..")
		if clean = path.Clean(clean); slash && clean != "/" {
			clean += "/"
		}
	}
	if clean != escaped {
		return setPath(r.URL, clean)
	}
	return nil
}
