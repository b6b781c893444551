package envoy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
)

// mirroring sends copies of a request to other clusters. What becomes of them is nobody's business.
type mirroring struct {
	to       http.RoundTripper
	t        *traffic
	v        *view
	policies []*routev3.RouteAction_RequestMirrorPolicy
	timeout  time.Duration
}

func (m *mirroring) RoundTrip(r *http.Request) (*http.Response, error) {
	if len(m.policies) == 0 {
		return m.to.RoundTrip(r)
	}
	body, err := keep(r)
	if err != nil {
		return nil, err
	}
	if body == nil {
		return nil, fmt.Errorf("%w: a copy of a request with a body of unknown length", ErrUnsupported)
	}
	for _, p := range m.policies {
		if err := understands(p); err != nil {
			return nil, err
		}
		if f := p.GetRuntimeFraction(); f == nil || chance(f.GetDefaultValue()) {
			m.copy(r, body(), p.GetCluster())
		}
	}
	return m.to.RoundTrip(r)
}

// copy sends a request a second time, under Envoy's name for copies.
func (m *mirroring) copy(r *http.Request, body io.ReadCloser, cluster string) {
	c := r.Clone(context.WithoutCancel(r.Context()))
	c.Body = body
	if host, port, err := net.SplitHostPort(c.Host); err == nil {
		c.Host = net.JoinHostPort(host+"-shadow", port)
	} else {
		c.Host += "-shadow"
	}
	m.t.done.Go(func() {
		ctx, cancel := context.WithCancel(c.Context())
		defer cancel()
		if m.timeout > 0 {
			ctx, cancel = context.WithTimeout(ctx, m.timeout)
			defer cancel()
		}
		stop := context.AfterFunc(m.t.ctx, cancel)
		defer stop()
		resp, err := (&upstream{t: m.t, v: m.v, cluster: cluster}).RoundTrip(c.WithContext(ctx))
		if err != nil {
			if errors.Is(err, ErrUnsupported) {
				_ = m.t.p.fail("%s", err)
			}
			return
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	})
}
