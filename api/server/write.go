package server

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
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
	outcome  string // created, updated, unchanged, deleted; otherwise refused or failed
	revision store.Revision
}

// write adapts a handler of PUT or DELETE: it answers errors and leaves one audit line, whatever the outcome.
// The handler returns the status of a success, which has no body.
func (e endpoint) write(action string, do func(http.ResponseWriter, *http.Request, *audit) (int, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		a := &audit{user: e.identify(r)}
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

// put serves PUT of one resource. What depends on the request alone is checked first; what depends on the state is
// checked again inside the update, where nothing can change any more. The look at the snapshot before that serves the
// order in which problems are reported, and keeps hopeless requests off the committer.
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
	strict, err := strictOf(r)
	if err != nil {
		return 0, err
	}
	key := e.key(r)
	snap := e.store.Snapshot()
	old, exists := snap.Get(key)
	if exists {
		if err := foreign(old); err != nil {
			return 0, err
		}
	}
	doc, err := e.document(w, r, mediaType)
	if err != nil {
		return 0, err
	}
	causes := e.metaViolations(key, doc)
	if !exists {
		causes = append(causes, e.nameViolations(snap, key)...)
	}
	if strict {
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

	title := titleUpdate
	if !exists {
		title = titleCreate
	}
	expected, err := e.admit(doc.Spec, !exists)
	if err != nil {
		return 0, internal(title, err)
	}
	// Written by the update's function, which may still run when Update returned early with the context's error:
	// read only after success.
	var created, changed bool
	rev, err := e.store.Update(r.Context(), func(head *store.Snapshot) ([]store.Op, error) {
		now := time.Now().UTC()
		rec := &store.Record{Key: key, Spec: expected, Labels: doc.Labels, Created: now, Modified: now}
		old, found := head.Get(key)
		created, changed = !found, true
		if found != exists {
			// It came or went since we looked.
			var err error
			if rec.Spec, err = e.admit(doc.Spec, !found); err != nil {
				return nil, internal(title, err)
			}
		}
		if !found {
			if causes := e.nameViolations(head, key); len(causes) > 0 {
				return nil, invalid(titleProcess, causes...)
			}
			if e.d.Scope == resource.ScopeMesh && !hasMesh(head, key.Mesh) {
				return nil, &problem{
					status: http.StatusBadRequest, Title: titleCreate, Details: "Mesh is not found",
					Causes: []cause{{"mesh", fmt.Sprintf("mesh of name %s is not found", key.Mesh)}},
				}
			}
			return []store.Op{store.Put(rec)}, nil
		}
		if err := foreign(old); err != nil {
			return nil, err
		}
		if bytes.Equal(old.Spec, rec.Spec) && maps.Equal(old.Labels, rec.Labels) {
			changed = false
			return nil, nil
		}
		rec.Created = old.Created
		return []store.Op{store.Put(rec)}, nil
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
	a.revision = rev
	switch {
	case created:
		a.outcome = "created"
		return http.StatusCreated, nil
	case changed:
		a.outcome = "updated"
	default:
		a.outcome = "unchanged"
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
		rec, found := head.Get(key)
		if !found {
			return nil, notFound(titleDelete)
		}
		if err := foreign(rec); err != nil {
			return nil, err
		}
		if err := e.allow(a.user, e.d); err != nil {
			return nil, err
		}
		return e.deletion(head, rec, online)
	})
	if err != nil {
		return 0, storeProblem(titleDelete, err)
	}
	a.revision, a.outcome = rev, "deleted"
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

// nameViolations checks the names of a resource that is to be created. Existing ones keep the name they have, which
// another plane may have chosen.
func (e endpoint) nameViolations(head *store.Snapshot, key store.Key) []cause {
	var causes []cause
	check := resource.CheckName
	if e.d.Name == resource.ZoneType {
		check = resource.CheckZoneName
	}
	if err := check(key.Name); err != nil {
		causes = append(causes, cause{"name", err.Error()})
	}
	if e.d.Scope == resource.ScopeMesh && !hasMesh(head, key.Mesh) {
		if err := resource.CheckName(key.Mesh); err != nil {
			causes = append(causes, cause{"mesh", err.Error()})
		}
	}
	return causes
}

func hasMesh(snap *store.Snapshot, name string) bool {
	_, ok := snap.Get(store.Key{Type: string(resource.Mesh), Name: name})
	return ok
}

// foreign refuses a write to a resource that another plane owns: the next synchronisation would undo it.
func foreign(rec *store.Record) error {
	if rec.Origin == "" {
		return nil
	}
	owner := fmt.Sprintf("the control plane of zone %q", rec.Origin)
	if rec.Origin == resource.Global.String() {
		owner = "the global control plane"
	}
	return &textError{
		status: http.StatusMethodNotAllowed,
		text:   fmt.Sprintf("Operation not allowed. %s %q is owned by %s. Modify it there.\n", rec.Key.Type, rec.Key.Name, owner),
		allow:  "GET, HEAD",
	}
}

// strictOf reads ?strict: whether unknown fields are errors.
func strictOf(r *http.Request) (bool, error) {
	v := r.URL.Query().Get("strict")
	if v == "" {
		return false, nil
	}
	strict, err := strconv.ParseBool(v)
	if err != nil {
		return false, invalidQuery(titleProcess, "strict", "must be either true or false")
	}
	return strict, nil
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
