package admin

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"

	"github.com/meridian-mesh/meridian/api/redact"
	"github.com/meridian-mesh/meridian/api/server"
)

// pathOf returns what to ask a proxy for.
func pathOf(q server.ProxyQuestion) (string, error) {
	switch q.View {
	case server.ViewConfigDump:
		if q.IncludeEndpoints {
			return "/config_dump?include_eds", nil
		}
		return "/config_dump", nil
	case server.ViewStats:
		switch {
		case q.JSON && q.UsedOnly:
			return "/stats?format=json&usedonly", nil
		case q.JSON:
			return "/stats?format=json", nil
		case q.UsedOnly:
			return "/stats?usedonly", nil
		}
		return "/stats", nil
	case server.ViewClusters:
		if q.JSON {
			return "/clusters?format=json", nil
		}
		return "/clusters", nil
	case server.ViewExplain:
	}
	return "", failure(server.AskInvalid, "Proxies are not asked for %q", q.View)
}

// errTooLarge ends an answer that is larger than is passed on.
var errTooLarge = errors.New("larger than is passed on")

// bounded is a buffer that takes no more than maxAnswerBytes.
type bounded struct{ bytes.Buffer }

func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > maxAnswerBytes {
		return 0, errTooLarge
	}
	return b.Buffer.Write(p)
}

// fetch asks a proxy. dump says that the answer is a configuration dump, which is masked.
func (a *Asker) fetch(ctx context.Context, p *asked, path string, dump bool) ([]byte, error) {
	bound, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	body, err := a.exchange(bound, p, path, dump)
	switch {
	case err == nil:
		return body, nil
	case ctx.Err() != nil:
		return nil, fmt.Errorf("ask the proxy of %s: %w", p, ctx.Err())
	case bound.Err() != nil:
		return nil, failure(server.AskTimeout, "The proxy of %s did not answer within %s", p, timeout)
	}
	return nil, err
}

func (a *Asker) exchange(ctx context.Context, p *asked, path string, dump bool) ([]byte, error) {
	t, err := a.locate(ctx, p)
	if err != nil {
		return nil, err
	}
	scheme := "http"
	if t.tls != nil {
		scheme = "https"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+t.at.String()+path, http.NoBody)
	if err != nil {
		return nil, fmt.Errorf("ask the proxy of %s: %w", p, err)
	}
	transport := newTransport(t.tls)
	defer transport.CloseIdleConnections()
	res, err := transport.RoundTrip(req) // follows no redirects
	if err != nil {
		return nil, unreached(p, t, err)
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return nil, failure(server.AskFailed, "The proxy of %s answered %d", p, res.StatusCode)
	}
	return read(p, res.Body, dump)
}

// newTransport returns one for a single request.
func newTransport(secure *tls.Config) *http.Transport {
	return &http.Transport{ // without Proxy, which would be that of the environment
		DialContext:            (&net.Dialer{Timeout: dialTimeout}).DialContext,
		TLSClientConfig:        secure,
		DisableKeepAlives:      true,
		DisableCompression:     true, // else a small answer could become a large one
		MaxResponseHeaderBytes: 64 << 10,
	}
}

// unreached says why there is no answer.
func unreached(p *asked, t target, err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		why := "does not take connections"
		if op.Timeout() {
			why = "took no connection within " + dialTimeout.String()
		}
		return failure(server.AskUnreachable, "The administration port of %s at %s %s", p, t.at, why)
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return failure(server.AskFailed, "Who answers at %s has no certificate of the administration port of %s: %v", t.at, p, err)
	}
	return failure(server.AskFailed, "The administration port of %s at %s gave no answer that can be understood: %v", p, t.at, err)
}

// read takes in an answer.
func read(p *asked, body io.Reader, dump bool) ([]byte, error) {
	var out bounded
	limited := &limit{r: body, left: maxAnswerBytes}
	var err error
	if dump {
		err = redact.Dump(&out, limited)
	} else {
		_, err = io.Copy(&out, limited)
	}
	switch {
	case err == nil:
		return out.Bytes(), nil
	case errors.Is(err, errTooLarge):
		return nil, tooLarge(p)
	case limited.err != nil:
		return nil, failure(server.AskFailed, "The answer of the proxy of %s broke off: %v", p, limited.err)
	}
	return nil, failure(server.AskFailed, "The answer of the proxy of %s is not JSON: %v", p, err)
}

func tooLarge(p *asked) error {
	return failure(server.AskFailed, "The answer about the proxy of %s is larger than the %d bytes that are passed on", p, maxAnswerBytes)
}

// limit reads as much of r as is passed on. err is the error of r other than its end.
type limit struct {
	r    io.Reader
	left int
	err  error
}

func (l *limit) Read(b []byte) (int, error) {
	n, err := l.r.Read(b)
	if l.left -= n; l.left < 0 {
		return 0, errTooLarge
	}
	if err != nil && !errors.Is(err, io.EOF) {
		l.err = err
	}
	return n, err //nolint:wrapcheck // as a reader should
}
