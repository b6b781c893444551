package server

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	"github.com/meridian-mesh/meridian/api/codec"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// audit is what the log says about a write.
type audit struct {
	user     user
	outcome  string // one of the outcomes of a plan; otherwise refused or failed
	revision store.Revision
}

// write adapts a handler of PUT or DELETE: it answers errors and leaves one audit line, whatever the outcome.
// The handler returns the status of a success, which has no body.
func (e endpoint) write(action string, do func(http.ResponseWriter, *http.Request, *audit) (int, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		a := &audit{user: userOf(r)}
		status, err := do(w, r, a)
		if err != nil {
			status = e.fail(w, r, err)
			a.outcome = "refused"
			if status >= http.StatusInternalServerError {
				a.outcome = "failed"
			}
		} else {
			w.Header().Set("Content-Length", "0")
			w.WriteHeader(status)
		}
		key := e.key(r)
		e.log.InfoContext(r.Context(), "write",
			"action", action, "outcome", a.outcome, "status", status, "type", key.Type, "mesh", key.Mesh, "name", key.Name,
			"revision", uint64(a.revision), "user", a.user.String(), "remote", r.RemoteAddr)
	}
}

// put serves PUT of one resource. What depends on the request alone is checked first. What depends on the state is
// decided by a plan: once on the snapshot, which keeps hopeless requests off the committer, and again inside the
// update, where nothing can change any more.
func (e endpoint) put(w http.ResponseWriter, r *http.Request, a *audit) (int, error) {
	if err := e.readOnly(); err != nil {
		return 0, err
	}
	mediaType, err := bodyMediaType(r)
	if err != nil {
		return 0, err
	}
	if !acceptsJSON(r) {
		return 0, errUnaccepted
	}
	opts, err := writeOptionsOf(r)
	if err != nil {
		return 0, err
	}
	key := e.key(r)
	snap := e.store.Snapshot()
	if old, exists := snap.Get(key); exists {
		if err := foreign(old); err != nil {
			return 0, err
		}
	}
	doc, err := e.document(w, r, mediaType)
	if err != nil {
		return 0, err
	}
	causes := e.metaViolations(key, doc)
	causes = append(causes, e.nameViolations(snap, key)...)
	if opts.strict {
		for _, field := range doc.Unknown {
			causes = append(causes, cause{field, "unknown field"})
		}
	}
	if len(causes) > 0 {
		return 0, invalid(titleProcess, causes...)
	}
	if err := e.allow(a.user, e.d); err != nil {
		return 0, err
	}
	d := draft{key: key, spec: doc.Spec, labels: doc.Labels, now: time.Now().UTC()}
	p, err := e.planPut(snap, d)
	if err != nil {
		return 0, err
	}
	title := titleUpdate
	if p.outcome == outcomeCreated {
		title = titleCreate
	}
	// p is written by the update's function, which may still run when Update returned early with the context's error:
	// read only after success.
	p = plan{}
	rev, err := e.store.Update(r.Context(), func(head *store.Snapshot) ([]store.Op, error) {
		var err error
		p, err = e.planPut(head, d)
		return p.ops, err
	})
	if err != nil {
		return 0, storeProblem(title, err)
	}
	for i, field := range doc.Unknown {
		if i == maxWarnings {
			w.Header().Add("Warning", warning(fmt.Sprintf("%d more unknown fields", len(doc.Unknown)-i)))
			break
		}
		w.Header().Add("Warning", warning("unknown field "+field))
	}
	a.revision, a.outcome = rev, p.outcome
	if p.outcome == outcomeCreated {
		return http.StatusCreated, nil
	}
	return http.StatusOK, nil
}

// delete serves DELETE of one resource, together with what goes with it.
func (e endpoint) delete(_ http.ResponseWriter, r *http.Request, a *audit) (int, error) {
	if err := e.readOnly(); err != nil {
		return 0, err
	}
	if !acceptsJSON(r) {
		return 0, errUnaccepted
	}
	key := e.key(r)
	online := false
	if e.d.Name == resource.ZoneType {
		var err error
		if online, err = e.zoneOnline(r, key); err != nil {
			return 0, internal(titleDelete, err)
		}
	}
	rev, err := e.store.Update(r.Context(), func(head *store.Snapshot) ([]store.Op, error) {
		p, err := e.planDelete(head, key, a.user, online)
		return p.ops, err
	})
	if err != nil {
		return 0, storeProblem(titleDelete, err)
	}
	a.revision, a.outcome = rev, outcomeDeleted
	return http.StatusOK, nil
}

// document reads and decodes the body of a PUT.
func (e endpoint) document(w http.ResponseWriter, r *http.Request, mediaType string) (*codec.Document, error) {
	tooLarge := func() error {
		w.Header().Set("Connection", "close") // the rest of the body is not read
		return &problem{
			status: http.StatusRequestEntityTooLarge, Title: titleProcess,
			Details: fmt.Sprintf("The request body is larger than %d bytes", e.opts.MaxBodyBytes),
		}
	}
	if r.ContentLength > e.opts.MaxBodyBytes {
		return nil, tooLarge()
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, e.opts.MaxBodyBytes))
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return nil, tooLarge()
		}
		return nil, &problem{
			status: http.StatusBadRequest, Title: titleProcess, Details: "The request body could not be read", err: err,
		}
	}
	doc, err := codec.Decode(e.d, mediaType, body)
	if err == nil {
		return doc, nil
	}
	if errors.Is(err, codec.ErrMediaType) {
		return nil, errMediaType
	}
	violations, ok := errors.AsType[*codec.Error](err)
	if !ok {
		return nil, internal(titleProcess, err)
	}
	causes := make([]cause, len(violations.Violations))
	for i, v := range violations.Violations {
		causes[i] = cause{v.Field, v.Message}
	}
	return nil, invalid(titleProcess, causes...)
}

// metaViolations compares what the body says about itself with the path.
func (e endpoint) metaViolations(key store.Key, doc *codec.Document) []cause {
	var causes []cause
	differs := func(field string) {
		causes = append(causes, cause{field, field + " from the URL has to be the same as in body"})
	}
	if doc.Name != key.Name {
		differs("name")
	}
	// Older clients send global secrets under the type of mesh secrets.
	secret := e.d.Name == resource.GlobalSecret && doc.Type == string(resource.Secret)
	if doc.Type != key.Type && !secret {
		differs("type")
	}
	if e.d.Scope == resource.ScopeMesh && doc.Mesh != key.Mesh {
		differs("mesh")
	}
	return causes
}

// writeOptions is what the query of a write asks for.
type writeOptions struct {
	strict bool // unknown fields are errors
}

func writeOptionsOf(r *http.Request) (writeOptions, error) {
	var o writeOptions
	query := r.URL.Query()
	if v := query.Get("strict"); v != "" {
		var err error
		if o.strict, err = strconv.ParseBool(v); err != nil {
			return o, invalidQuery(titleProcess, "strict", "must be either true or false")
		}
	}
	return o, nil
}

const (
	// maxWarnings bounds the headers of one answer.
	maxWarnings = 20
	// maxWarningBytes bounds each of them: a field's path is chosen by the client.
	maxWarningBytes = 200
)

// warning renders the value of a Warning header.
func warning(text string) string {
	return "299 - " + strconv.QuoteToASCII(text[:min(len(text), maxWarningBytes)])
}
