package peers

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/meridian-mesh/meridian/common/cluster"
)

// timeoutHeader is how long the caller still waits, in milliseconds: clocks differ.
const timeoutHeader = "Meridian-Timeout-Ms"

// Call has another instance answer, and waits until it has or ctx ends. The error is ctx's, [ErrUnreachable], [ErrUnknownCall], or the [*Error]
// that was answered.
func (p *Peers) Call(ctx context.Context, instance, call string, body []byte) ([]byte, error) {
	start := time.Now()
	answer, err := p.call(ctx, instance, call, body)
	p.metrics.observe(call, err, time.Since(start))
	if err != nil {
		return nil, fmt.Errorf("call %s of instance %q: %w", call, instance, err)
	}
	return answer, nil
}

func (p *Peers) call(ctx context.Context, instance, call string, body []byte) ([]byte, error) {
	if len(body) > maxBodyBytes {
		return nil, errorf(CodeTooLarge, "the body has %d bytes, of which %d may travel", len(body), maxBodyBytes)
	}
	m, err := p.member(instance)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnreachable, err)
	}
	target := url.URL{Scheme: "https", Host: hostOf(m), Path: "/" + call}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, target.String(), bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	if deadline, ok := ctx.Deadline(); ok {
		req.Header.Set(timeoutHeader, strconv.FormatInt(time.Until(deadline).Milliseconds(), 10))
	}
	resp, err := p.transport.RoundTrip(req)
	if err != nil {
		return nil, broken(ctx, err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswerBytes+1))
	switch {
	case err != nil:
		return nil, broken(ctx, err)
	case len(answer) > maxAnswerBytes:
		return nil, errorf(CodeTooLarge, "the answer has more than the %d bytes that may travel", maxAnswerBytes)
	case resp.StatusCode == http.StatusOK:
		return answer, nil
	case resp.StatusCode == http.StatusNotFound:
		return nil, ErrUnknownCall
	}
	var e Error
	if err := json.Unmarshal(answer, &e); err != nil {
		return nil, fmt.Errorf("%w: it answers %s, and nothing that can be read", ErrUnreachable, resp.Status)
	}
	if _, limited := ctx.Deadline(); limited && e.Code == CodeDeadline {
		return nil, context.DeadlineExceeded // both clocks run toward the caller's: the callee's was a moment ahead
	}
	return nil, &e
}

// broken is the error of a call that did not come to its end.
func broken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return fmt.Errorf("%w: %w", ErrUnreachable, err)
}

// member returns an instance that can be called.
func (p *Peers) member(instance string) (cluster.Member, error) {
	m, ok := p.o.Member(instance)
	switch {
	case !ok:
		return m, errors.New("no such member is there")
	case m.Self:
		return m, errors.New("it is this one")
	case m.Calls == "":
		return m, errors.New("it takes no calls")
	}
	return m, nil
}

// hostOf names a run of an instance toward the transport, which keeps connections by host: one that has moved or was restarted is another.
// It is no address; dial looks that up.
func hostOf(m cluster.Member) string { return fmt.Sprintf("%x.%x", m.Name, m.Started.UnixNano()) }

// dial connects to the run of an instance that is meant by a host of hostOf.
func (p *Peers) dial(ctx context.Context, network, host string) (net.Conn, error) {
	var instance []byte
	if _, err := fmt.Sscanf(host, "%x.", &instance); err != nil {
		return nil, err
	}
	m, err := p.member(string(instance))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	d := tls.Dialer{Config: p.identity.client(m.Name)}
	return d.DialContext(ctx, network, m.Calls)
}
