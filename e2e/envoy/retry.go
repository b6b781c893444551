package envoy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// maxKept bounds the body of a request that is kept for a further attempt or for a copy.
const maxKept = 1 << 20

// keep reads the body of a request so that it can be sent more than once; nil when it is too long or does not end by itself.
func keep(r *http.Request) (func() io.ReadCloser, error) {
	if r.Body == nil || r.Body == http.NoBody {
		return func() io.ReadCloser { return http.NoBody }, nil
	}
	if r.ContentLength < 0 || r.ContentLength > maxKept {
		return nil, nil
	}
	b, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, fmt.Errorf("body of the request: %w", err)
	}
	body := func() io.ReadCloser { return io.NopCloser(bytes.NewReader(b)) }
	r.Body = body()
	return body, nil
}

// RoundTrip makes attempts until one is good enough, or there may be no more. A request whose body is not kept is tried again only
// while nothing of it was sent.
func (u *upstream) RoundTrip(r *http.Request) (*http.Response, error) {
	attempts := 1
	if u.retry != nil {
		attempts = 2
		if n := u.retry.GetNumRetries(); n != nil {
			attempts = 1 + int(n.GetValue())
		}
	}
	retriable, err := u.mayRetry(r)
	if err != nil {
		return nil, err
	}
	if !retriable {
		attempts = 1
	}
	var body func() io.ReadCloser
	if attempts > 1 {
		if body, err = keep(r); err != nil {
			return nil, err
		}
	}
	for n := 1; ; n++ {
		try := r
		cancel := context.CancelFunc(func() {})
		if t := u.retry.GetPerTryTimeout(); t != nil {
			var ctx context.Context
			ctx, cancel = context.WithTimeout(r.Context(), t.AsDuration())
			try = r.Clone(ctx)
		}
		if body != nil {
			try = try.Clone(try.Context())
			try.Body = body()
		}
		resp, err := u.once(try)
		var early *connectError
		again := false
		if n < attempts && (body != nil || errors.As(err, &early)) {
			var unknown error
			if again, unknown = u.worthRetrying(resp, err); unknown != nil {
				cancel()
				return nil, unknown
			}
		}
		if !again || r.Context().Err() != nil {
			if resp == nil {
				cancel()
				return nil, err
			}
			resp.Body = lasting(resp.Body, cancel)
			return resp, nil
		}
		if resp != nil {
			_ = resp.Body.Close()
		}
		cancel()
		base := 25 * time.Millisecond // Envoy's own default
		if b := u.retry.GetRetryBackOff().GetBaseInterval(); b != nil {
			base = b.AsDuration()
		}
		if !pause(r.Context(), base) {
			return nil, r.Context().Err()
		}
	}
}

func (u *upstream) mayRetry(r *http.Request) (bool, error) {
	wanted := u.retry.GetRetriableRequestHeaders()
	for _, m := range wanted {
		if ok, err := matchHeader(m, r); err != nil || ok {
			return ok, err
		}
	}
	return len(wanted) == 0, nil
}

var grpcConditions = map[string]int{ //nolint:gochecknoglobals // a constant
	"cancelled": 1, "deadline-exceeded": 4, "internal": 13, "resource-exhausted": 8, "unavailable": 14,
}

// worthRetrying is whether the outcome of an attempt is one of those for which the policy asks for another.
func (u *upstream) worthRetrying(resp *http.Response, err error) (bool, error) {
	status := 0
	if resp != nil {
		status = resp.StatusCode
	}
	var early *connectError
	for on := range strings.SplitSeq(u.retry.GetRetryOn(), ",") {
		is := false
		switch on = strings.TrimSpace(on); on {
		case "5xx":
			is = err != nil || status >= 500
		case "gateway-error":
			is = err != nil || (status >= 502 && status <= 504)
		case "reset", "refused-stream", "http3-post-connect-failure":
			is = on == "reset" && err != nil
		case "connect-failure":
			is = errors.As(err, &early)
		case "retriable-4xx":
			is = status == http.StatusConflict
		case "retriable-status-codes":
			is = slices.Contains(u.retry.GetRetriableStatusCodes(), uint32(status))
		case "":
		default:
			code, known := grpcConditions[on]
			if !known {
				return false, fmt.Errorf("%w: retry_on %q", ErrUnsupported, on)
			}
			is = resp != nil && resp.Header.Get("Grpc-Status") == strconv.Itoa(code)
		}
		if is {
			return true, nil
		}
	}
	return false, nil
}
