package peers

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// answer serves a call of an authenticated replica.
func (p *Peers) answer(w http.ResponseWriter, r *http.Request) {
	call := strings.TrimPrefix(r.URL.Path, "/")
	h, ok := p.handlers[call]
	if !ok {
		http.Error(w, "no such call", http.StatusNotFound)
		return
	}
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	default:
		refuse(w, errorf(CodeBusy, "the instance answers %d calls already", cap(h.slots)))
		return
	}
	p.metrics.serving.Inc()
	defer p.metrics.serving.Dec()
	deadline := time.Now().Add(timeoutOf(r))
	ctx, cancel := context.WithDeadline(r.Context(), deadline)
	defer cancel()
	conn := http.NewResponseController(w) // who neither sends nor reads, takes a slot for as long as its call may last
	_ = conn.SetReadDeadline(deadline)
	_ = conn.SetWriteDeadline(deadline.Add(time.Second)) // for the error
	answer, err := p.run(ctx, w, r, call, h.answer)
	if err == nil && len(answer) > maxAnswerBytes {
		err = errorf(CodeTooLarge, "the answer has %d bytes, of which %d may travel", len(answer), maxAnswerBytes)
	}
	if err != nil {
		refuse(w, asError(err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(len(answer)))
	_, _ = w.Write(answer) // whose caller has gone, goes nowhere
}

// run runs a handler. Its panic is an error of this call.
func (p *Peers) run(ctx context.Context, w http.ResponseWriter, r *http.Request, call string, h Handler) (answer []byte, err error) {
	defer func() {
		if v := recover(); v != nil {
			p.log.ErrorContext(ctx, "handler panicked", "call", call, "err", fmt.Sprint(v))
			answer, err = nil, errorf(CodeInternal, "the call failed")
		}
	}()
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBodyBytes))
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, errorf(CodeTooLarge, "the body has more than the %d bytes that may travel", tooLarge.Limit)
	}
	if err != nil {
		return nil, fmt.Errorf("read the body: %w", err)
	}
	return h(ctx, body)
}

// timeoutOf is how long the caller waits.
func timeoutOf(r *http.Request) time.Duration {
	ms, err := strconv.ParseInt(r.Header.Get(timeoutHeader), 10, 64)
	if err != nil {
		return defaultTimeout
	}
	return time.Duration(max(0, min(ms, maxTimeout.Milliseconds()))) * time.Millisecond
}

// refuse answers an error.
func refuse(w http.ResponseWriter, e *Error) {
	body, err := json.Marshal(e)
	if err != nil { // two strings can be
		panic(err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusUnprocessableEntity)
	_, _ = w.Write(body)
}
