package server

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"

	"github.com/meridian-mesh/meridian/common/store"
)

// Titles of errors, by what was being done. kumactl and scripts show them.
const (
	titleGet     = "Could not retrieve a resource"
	titleList    = "Could not retrieve resources"
	titleProcess = "Could not process a resource"
	titleCreate  = "Could not create a resource"
	titleUpdate  = "Could not update a resource"
	titleDelete  = "Could not delete a resource"
	titleAccess  = "Access Denied"

	detailsNotFound = "Not found"
	detailsInvalid  = "Resource is not valid"
	detailsInternal = "Internal Server Error"
)

// cause is one violation of a request: a field (or query parameter) and what is wrong with it.
type cause struct {
	Field   string `json:"field"`
	Message string `json:"message"`
}

// problem is an error that is answered as JSON.
type problem struct {
	Title   string  `json:"title"`
	Details string  `json:"details"`
	Causes  []cause `json:"causes,omitempty"`

	status     int
	retryAfter int   // seconds; 0: no header
	err        error // what really happened; logged for 5xx, never sent
}

func (p *problem) Error() string {
	if p.err != nil {
		return fmt.Sprintf("%s: %s: %v", p.Title, p.Details, p.err)
	}
	return p.Title + ": " + p.Details
}

func (p *problem) Unwrap() error { return p.err }

func notFound(title string) *problem {
	return &problem{status: http.StatusNotFound, Title: title, Details: detailsNotFound}
}

func invalid(title string, causes ...cause) *problem {
	return &problem{status: http.StatusBadRequest, Title: title, Details: detailsInvalid, Causes: causes}
}

func internal(title string, err error) *problem {
	return &problem{status: http.StatusInternalServerError, Title: title, Details: detailsInternal, err: err}
}

// textError is an error that is answered as one line of plain text: what clients of the reference expect where the
// request did not reach a handler, and for read-only resources, whose text kumactl prints.
type textError struct {
	status int
	text   string
	allow  string // value of Allow, for 405
}

func (e *textError) Error() string { return e.text }

// The router's own answers. They are shared and never changed.
var (
	errNoRoute    = &textError{status: http.StatusNotFound, text: "404: Page Not Found"}
	errMediaType  = &textError{status: http.StatusUnsupportedMediaType, text: "415: Unsupported Media Type"}
	errUnaccepted = &textError{status: http.StatusNotAcceptable, text: "406: Not Acceptable\n\nAvailable representations: application/json\n"}
)

// storeProblem maps an error of the store to an answer. Problems raised inside an update pass unchanged.
func storeProblem(title string, err error) error {
	if _, ok := errors.AsType[*problem](err); ok {
		return err
	}
	if _, ok := errors.AsType[*textError](err); ok {
		return err
	}
	switch {
	case errors.Is(err, store.ErrConflict):
		return &problem{
			status: http.StatusConflict, Title: title, err: err,
			Details: "The resource was changed by another request at the same time",
		}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return &problem{
			status: http.StatusServiceUnavailable, Title: title, retryAfter: 5, err: err,
			Details: "The store did not answer in time: it may have stored this, or may still do so",
		}
	case errors.Is(err, store.ErrUnknown):
		return &problem{
			status: http.StatusServiceUnavailable, Title: title, retryAfter: 5, err: err,
			Details: "The store was lost while it stored this: it may have stored it",
		}
	case errors.Is(err, store.ErrUnavailable), errors.Is(err, store.ErrClosed):
		return &problem{
			status: http.StatusServiceUnavailable, Title: title, retryAfter: 5, err: err,
			Details: "The store does not accept writes at the moment",
		}
	default:
		return internal(title, err)
	}
}

// fail answers err and returns the status. It is the one place that knows status codes of errors and logs what the client must not see.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, err error) int {
	if e, ok := errors.AsType[*textError](err); ok {
		if e.allow != "" {
			w.Header().Set("Allow", e.allow)
		}
		sendText(w, e.status, e.text)
		return e.status
	}
	p, ok := errors.AsType[*problem](err)
	if !ok {
		p = internal(detailsInternal, err)
	}
	if p.retryAfter > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(p.retryAfter))
	}
	if p.status >= http.StatusInternalServerError {
		id := rand.Text()
		w.Header().Set("X-Request-Id", id)
		level := slog.LevelError
		if r.Context().Err() != nil || p.err == nil {
			level = slog.LevelDebug // the client went away, or what it asks for is not there: nothing of ours failed
		}
		s.log.Log(r.Context(), level, "request failed",
			"request_id", id, "method", r.Method, "path", r.URL.Path, "status", p.status, "err", p.err)
	}
	body, err := marshal(p)
	if err != nil {
		sendText(w, http.StatusInternalServerError, "500: "+detailsInternal)
		return http.StatusInternalServerError
	}
	sendBody(w, p.status, "application/json", body)
	return p.status
}

// marshal renders v in the API's style: one space of indent, nothing escaped for HTML, a newline at the end.
func marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("render JSON: %w", err)
	}
	return b.Bytes(), nil
}

func sendText(w http.ResponseWriter, status int, text string) {
	sendBody(w, status, "text/plain; charset=utf-8", []byte(text))
}

// sendBody answers with a small body. A failed write means that the client is gone: nothing is left to do.
func sendBody(w http.ResponseWriter, status int, contentType string, body []byte) {
	h := w.Header()
	h.Set("Content-Type", contentType)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body)
}
