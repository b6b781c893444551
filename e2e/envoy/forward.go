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
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
)

// levels are what changes the headers of a request and of its answer, the most specific first.
func (e *exchange) levels() []headers { return []headers{e.route, e.host, e.config} }

func (e *exchange) editResponse(h http.Header) error {
	for _, l := range e.levels() {
		if err := edit(h, l.GetResponseHeadersToAdd(), l.GetResponseHeadersToRemove()); err != nil {
			return err
		}
	}
	return nil
}

func setPath(u *url.URL, escaped string) error {
	parsed, err := url.ParseRequestURI(escaped)
	if err != nil {
		return fmt.Errorf("path: %w", err)
	}
	u.Path, u.RawPath = parsed.Path, parsed.RawPath
	return nil
}

// forward sends a request to the cluster of its route.
func (e *exchange) forward(action *routev3.RouteAction, w http.ResponseWriter, r *http.Request) error {
	retry := action.GetRetryPolicy()
	if retry == nil {
		retry = e.host.GetRetryPolicy()
	}
	if err := understands(action, retry); err != nil {
		return err
	}
	name, metadata := action.GetCluster(), action.GetMetadataMatch()
	levels := e.levels()
	if weighted := action.GetWeightedClusters().GetClusters(); len(weighted) > 0 {
		c := pick(weighted, func(c *routev3.WeightedCluster_ClusterWeight) uint32 { return c.GetWeight().GetValue() })
		if len(c.GetTypedPerFilterConfig()) > 0 {
			return fmt.Errorf("%w: filters by weighted cluster", ErrUnsupported)
		}
		name, metadata = c.GetName(), mergeMetadata(metadata, c.GetMetadataMatch())
		levels = append([]headers{c}, levels...)
	}
	rewritten, err := rewritePath(e.route, r.URL.EscapedPath())
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
	up := &upstream{t: e.t, v: e.v, cluster: name, metadata: metadata, retry: retry, autoHost: action.GetAutoHostRewrite().GetValue()}
	var failed error
	proxy := &httputil.ReverseProxy{
		Transport: &mirroring{to: up, t: e.t, v: e.v, policies: action.GetRequestMirrorPolicies(), timeout: timeout}, FlushInterval: -1,
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host = "http", "upstream"
			failed = errors.Join(failed, setPath(p.Out.URL, rewritten))
			p.Out.Host = r.Host
			if literal := action.GetHostRewriteLiteral(); literal != "" {
				p.Out.Host = literal
			}
			if e.manager.GetUseRemoteAddress().GetValue() {
				p.Out.Header["X-Forwarded-For"] = r.Header["X-Forwarded-For"]
				p.SetXForwarded()
				p.Out.Header.Del("X-Forwarded-Host")
			}
			clientCertificate(e.manager, e.d, p.Out.Header)
			for _, l := range levels {
				failed = errors.Join(failed, edit(p.Out.Header, l.GetRequestHeadersToAdd(), l.GetRequestHeadersToRemove()))
			}
			p.Out.Header.Set("X-Forwarded-Proto", e.scheme())
		},
		ModifyResponse: func(resp *http.Response) error {
			if e.manager.GetServerName() != "" {
				resp.Header.Del("Server")
			}
			for _, l := range levels {
				failed = errors.Join(failed, edit(resp.Header, l.GetResponseHeadersToAdd(), l.GetResponseHeadersToRemove()))
			}
			return failed
		},
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, err error) {
			failed = errors.Join(failed, err)
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
		_ = e.t.p.fail("%s", failed)
	}
	return nil
}

// upstream makes each request, and each further attempt at it, on a connection of its own.
type upstream struct {
	t        *traffic
	v        *view
	cluster  string
	metadata *corev3.Metadata
	retry    *routev3.RetryPolicy
	autoHost bool // the endpoint's host name is sent
}

// once makes one attempt. The connection ends with the body of the answer.
func (u *upstream) once(r *http.Request) (*http.Response, error) {
	c, ok := u.v.clusters[u.cluster]
	if !ok {
		return nil, fmt.Errorf("no cluster %q", u.cluster)
	}
	h2, err := speaksHTTP2(c.proto)
	if err != nil {
		return nil, err
	}
	conn, endpoint, err := u.t.connect(r.Context(), u.v, u.cluster, u.metadata)
	if err != nil {
		return nil, &connectError{err}
	}
	if !u.t.track(conn) {
		return nil, net.ErrClosed
	}
	u.host(r, endpoint)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(!h2)
	protocols.SetUnencryptedHTTP2(h2)
	transport := &http.Transport{
		Protocols: protocols, DisableCompression: true,
		DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil },
	}
	end := func() {
		transport.CloseIdleConnections()
		u.t.untrack(conn)
	}
	resp, err := transport.RoundTrip(r)
	if err != nil {
		end()
		return nil, err
	}
	resp.Body = lasting(resp.Body, end)
	return resp, nil
}

func (u *upstream) host(r *http.Request, endpoint *endpointv3.LbEndpoint) {
	if name := endpoint.GetEndpoint().GetHostname(); u.autoHost && name != "" {
		r.Host = name
	}
}

// connectError is of an attempt that did not get as far as a request.
type connectError struct{ err error }

func (e *connectError) Error() string { return e.err.Error() }
func (e *connectError) Unwrap() error { return e.err }

// lasting ties what a body came from to it. That of an answer that changed the protocol of its connection can be written to.
func lasting(body io.ReadCloser, end func()) io.ReadCloser {
	if stream, ok := body.(io.ReadWriteCloser); ok {
		return &lastingStream{stream, end}
	}
	return &lastingBody{body, end}
}

// lastingBody ends what it came from when it is closed.
type lastingBody struct {
	io.ReadCloser
	end func()
}

func (b *lastingBody) Close() error {
	err := b.ReadCloser.Close()
	b.end()
	return err
}

// lastingStream is the body of an answer that changed the protocol of its connection.
type lastingStream struct {
	io.ReadWriteCloser
	end func()
}

func (b *lastingStream) Close() error {
	err := b.ReadWriteCloser.Close()
	b.end()
	return err
}
