package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/meridian-mesh/meridian/api/codec"
	"github.com/meridian-mesh/meridian/api/defaults"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/validate"
	"github.com/meridian-mesh/meridian/common/store"
)

// audit is what the log says about a write.
type audit struct {
	user     user
	outcome  string
	dryRun   bool // nothing was stored
	revision store.Revision
}

// written is the answer to a write that succeeded.
type written struct {
	status int
	tag    string // entity tag of the resource as it is now, "" when it has none
	body   []byte // JSON; nil: none

	// What ?wait= asked for, and what it is to wait for.
	waits    bool
	wait     time.Duration
	revision store.Revision
	deltas   []store.Delta
}

// write adapts a handler of PUT or DELETE: it answers errors and leaves one audit line, whatever the outcome.
func (e endpoint) write(action string, do func(http.ResponseWriter, *http.Request, *audit) (written, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		a := &audit{user: userOf(r)}
		var done written
		err := e.allowWrite(a.user)
		if err == nil {
			err = e.writing(func() error {
				var err error
				done, err = do(w, r, a)
				return err
			})
		}
		if err != nil {
			done.status = e.fail(w, r, err)
			a.outcome = failure(done.status)
		}
		key := e.key(r)
		e.log.InfoContext(r.Context(), "write",
			"action", action, "outcome", a.outcome, "status", done.status, "type", key.Type, "mesh", key.Mesh, "name", key.Name,
			"revision", uint64(a.revision), "user", a.user.String(), "remote", r.RemoteAddr, "dry_run", a.dryRun)
		if err != nil {
			return
		}
		if done.waits { // after the audit line: the write is done
			if err := e.await(w, r, &done); err != nil {
				e.fail(w, r, err)
				return
			}
		}
		done.send(w, a.dryRun)
	}
}

// errBusy turns a write away before its body is read.
var errBusy = &problem{
	status: http.StatusServiceUnavailable, Title: titleProcess, Details: "Too many writes at the same time", retryAfter: 1,
}

// writing calls do, unless as many writes are being worked on as may be. So memory for bodies and requests is bounded
// however many clients write, and how slow the disk is.
func (s *Server) writing(do func() error) error {
	select {
	case s.writes <- struct{}{}:
		defer func() { <-s.writes }()
		return do()
	default:
		return errBusy
	}
}

// commitContext bounds how long a request waits for the store, so that there is time left for an answer.
func (s *Server) commitContext(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, s.opts.WriteTimeout/2)
}

func (d written) send(w http.ResponseWriter, dryRun bool) {
	h := w.Header()
	if d.tag != "" {
		h.Set("ETag", d.tag)
	}
	if dryRun {
		h.Set("Meridian-Dry-Run", "true")
	}
	if d.body != nil {
		sendBody(w, d.status, "application/json", d.body)
		return
	}
	h.Set("Content-Length", "0")
	w.WriteHeader(d.status)
}

// failure is the outcome of what was answered with an error.
func failure(status int) string {
	if status >= http.StatusInternalServerError {
		return outcomeFailed
	}
	return outcomeRefused
}

// put serves PUT of one resource. What depends on the request alone is checked first. What depends on the state is
// decided by a plan: once on the snapshot, which keeps hopeless requests off the committer, and again inside the
// update, where nothing can change any more.
func (e endpoint) put(w http.ResponseWriter, r *http.Request, a *audit) (written, error) {
	if err := e.readOnly(e.key(r).Name); err != nil {
		return written{}, err
	}
	mediaType, err := bodyMediaType(r)
	if err != nil {
		return written{}, err
	}
	if !acceptsJSON(r) {
		return written{}, errUnaccepted
	}
	opts, err := writeOptionsOf(r)
	if err != nil {
		return written{}, err
	}
	wait, waits, err := e.waitOf(r.URL.Query(), opts.dryRun)
	if err != nil {
		return written{}, err
	}
	a.dryRun = opts.dryRun
	pre, err := preconditionsOf(r)
	if err != nil {
		return written{}, err
	}
	key := e.key(r)
	snap := e.store.Snapshot()
	if old, exists := snap.Get(key); exists {
		if err := foreign(old); err != nil {
			return written{}, err
		}
	}
	doc, err := e.document(w, r, mediaType)
	if err != nil {
		return written{}, err
	}
	causes := e.metaViolations(key, doc)
	causes = append(causes, e.nameViolations(snap, key)...)
	if opts.strict {
		for _, field := range doc.Unknown {
			causes = append(causes, cause{field, "unknown field"})
		}
	}
	if len(causes) > 0 {
		return written{}, invalid(titleProcess, causes...)
	}
	if err := e.allow(a.user, e.d); err != nil {
		return written{}, err
	}
	if found := validate.Spec(e.d, key, doc.Spec); len(found) > 0 {
		title := titleUpdate
		if _, exists := snap.Get(key); !exists {
			title = titleCreate
		}
		return written{}, violated(title, found)
	}
	d := draft{key: key, spec: doc.Spec, labels: doc.Labels, now: time.Now().UTC(), pre: pre}
	p, err := planned(r.Context(), e.Server, titleProcess, func(snap *store.Snapshot) (plan, error) { return e.planPut(snap, d) })
	if err != nil {
		return written{}, err
	}
	title := titleUpdate
	if p.outcome == outcomeCreated {
		title = titleCreate
	}
	warnUnknown(w, doc)
	if opts.dryRun {
		return e.wouldBe(p, a)
	}
	d.material = defaults.Material{}
	needs := p.needs
	// p is written by the update's function, which may still run when Commit returned early with the context's error:
	// read only after success.
	p = plan{}
	ctx, cancel := e.commitContext(r.Context())
	defer cancel()
	var deltas []store.Delta
	rev, err := defaults.Commit(ctx, e.store, e.opts.Keys, d.material, needs, func(head *store.Snapshot) ([]store.Op, []defaults.Need, error) {
		var err error
		p, err = e.planPut(head, d)
		if waits {
			deltas = deltasOf(head, p.ops)
		}
		return p.ops, p.needs, err
	})
	if err != nil {
		return written{}, storeProblem(title, err)
	}
	a.revision, a.outcome = rev, p.outcome
	if p.outcome == outcomeUnchanged {
		rev = p.record.Version // what is there, not the store's newest
		deltas = []store.Delta{{Key: key, Old: p.record, New: p.record}}
	}
	return written{
		status: p.status(), tag: e.etag(rev), waits: waits, wait: wait, revision: rev, deltas: deltas,
	}, nil
}

// wouldBe answers a PUT that is only tried: with the resource as GET would show it afterwards.
func (e endpoint) wouldBe(p plan, a *audit) (written, error) {
	item, err := (&renders{}).resource(e.d, p.record)
	if err != nil {
		return written{}, internal(titleProcess, err)
	}
	a.outcome = p.outcome
	done := written{status: p.status(), body: append(codec.Single(item), '\n')}
	if p.outcome == outcomeUnchanged {
		done.tag = e.etag(p.record.Version)
	}
	return done, nil
}

// warnUnknown names the fields of a body that were left out.
func warnUnknown(w http.ResponseWriter, doc *codec.Document) {
	for i, field := range doc.Unknown {
		if i == maxWarnings {
			w.Header().Add("Warning", warning(fmt.Sprintf("%d more unknown fields", len(doc.Unknown)-i)))
			break
		}
		w.Header().Add("Warning", warning("unknown field "+field))
	}
}

// delete serves DELETE of one resource, together with what goes with it.
func (e endpoint) delete(_ http.ResponseWriter, r *http.Request, a *audit) (written, error) {
	if err := e.readOnly(e.key(r).Name); err != nil {
		return written{}, err
	}
	if !acceptsJSON(r) {
		return written{}, errUnaccepted
	}
	opts, err := writeOptionsOf(r)
	if err != nil {
		return written{}, err
	}
	wait, waits, err := e.waitOf(r.URL.Query(), opts.dryRun)
	if err != nil {
		return written{}, err
	}
	a.dryRun = opts.dryRun
	pre, err := preconditionsOf(r)
	if err != nil {
		return written{}, err
	}
	key := e.key(r)
	snap := e.store.Snapshot()
	online := e.d.Name == resource.ZoneType && e.zoneOnline(snap, key)
	p, err := planned(r.Context(), e.Server, titleDelete, func(snap *store.Snapshot) (plan, error) {
		return e.planDelete(snap, key, a.user, online, pre)
	})
	if err != nil {
		return written{}, err
	}
	if opts.dryRun {
		return e.wouldGo(p, a)
	}
	if online && e.opts.EndZoneSession != nil {
		if err := e.opts.EndZoneSession(r.Context(), key.Name); err != nil {
			return written{}, internal(titleDelete, fmt.Errorf("end the session of zone %s: %w", key.Name, err))
		}
	}
	ctx, cancel := e.commitContext(r.Context())
	defer cancel()
	var deltas []store.Delta
	rev, err := e.store.Update(ctx, func(head *store.Snapshot) ([]store.Op, error) {
		p, err := e.planDelete(head, key, a.user, online, pre)
		if waits {
			deltas = deltasOf(head, p.ops)
		}
		return p.ops, err
	})
	if err != nil {
		return written{}, storeProblem(titleDelete, err)
	}
	a.revision, a.outcome = rev, outcomeDeleted
	return written{status: http.StatusOK, waits: waits, wait: wait, revision: rev, deltas: deltas}, nil
}

// resourceKey names a resource in JSON.
type resourceKey struct {
	Type string `json:"type"`
	Mesh string `json:"mesh,omitempty"`
	Name string `json:"name"`
}

// wouldGo answers a DELETE that is only tried: with all that would be deleted, as a list, what was named first. Secrets go
// with their mesh whoever deletes it, but only those who may list them are told their names.
func (e endpoint) wouldGo(p plan, a *audit) (written, error) {
	list := struct {
		Total int           `json:"total"`
		Items []resourceKey `json:"items"`
		Next  *string       `json:"next"` // always null: it is all of them
	}{Items: []resourceKey{}}
	for _, op := range p.ops {
		d, ok := resource.Lookup(resource.Type(op.Key.Type))
		if !ok || op.Record != nil || e.allow(a.user, d) != nil { // the first: what is kept about synchronisation
			continue
		}
		list.Items = append(list.Items, resourceKey{op.Key.Type, op.Key.Mesh, op.Key.Name})
	}
	list.Total = len(list.Items)
	body, err := marshal(list)
	if err != nil {
		return written{}, internal(titleDelete, err)
	}
	a.outcome = p.outcome
	return written{status: http.StatusOK, body: body}, nil
}

// document reads and decodes the body of a PUT.
func (e endpoint) document(w http.ResponseWriter, r *http.Request, mediaType string) (*codec.Document, error) {
	body, err := readBody(w, r, titleProcess, e.opts.MaxBodyBytes)
	if err != nil {
		return nil, err
	}
	doc, err := codec.Decode(e.d, mediaType, body)
	if err != nil {
		return nil, undecodable(titleProcess, err)
	}
	return doc, nil
}

// readBody reads the body of a request, up to maxBytes.
func readBody(w http.ResponseWriter, r *http.Request, title string, maxBytes int64) ([]byte, error) {
	tooLarge := func() error {
		w.Header().Set("Connection", "close") // the rest of the body is not read
		return &problem{
			status: http.StatusRequestEntityTooLarge, Title: title,
			Details: fmt.Sprintf("The request body is larger than %d bytes", maxBytes),
		}
	}
	if r.ContentLength > maxBytes {
		return nil, tooLarge()
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBytes))
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return nil, tooLarge()
		}
		return nil, &problem{
			status: http.StatusBadRequest, Title: title, Details: "The request body could not be read", err: err,
		}
	}
	return body, nil
}

// undecodable is the answer to a body that the codec refused with err.
func undecodable(title string, err error) error {
	if errors.Is(err, codec.ErrMediaType) {
		return errMediaType
	}
	return specProblem(title, err)
}

// specProblem answers what is wrong with a body field by field, or that this side failed.
func specProblem(title string, err error) error {
	violations, ok := errors.AsType[*codec.Error](err)
	if !ok {
		return internal(title, err)
	}
	return violated(title, violations.Violations)
}

// violated answers what is wrong with a resource.
func violated(title string, violations []codec.Violation) *problem {
	return invalid(title, causesOf(violations)...)
}

func causesOf(violations []codec.Violation) []cause {
	causes := make([]cause, len(violations))
	for i, v := range violations {
		causes[i] = cause{v.Field, v.Message}
	}
	return causes
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
	dryRun bool // everything but storing it
}

// writeOptionsOf reads the query of a write. unavailable are the options that this kind of write does not have.
//
// It is exact where reads are lenient: an option that was meant and is passed over makes another write than the one that
// was asked for, a real one instead of a dry run.
func writeOptionsOf(r *http.Request, unavailable ...string) (writeOptions, error) {
	var o writeOptions
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return o, invalidQuery(titleProcess, "", "the query cannot be read: "+err.Error())
	}
	for _, name := range slices.Sorted(maps.Keys(query)) {
		for _, option := range [...]string{"dryRun", "strict", "wait"} {
			switch {
			case !strings.EqualFold(withoutDashes.Replace(name), option):
			case name != option:
				return o, invalidQuery(titleProcess, name, "is not known, but "+option+" is")
			case slices.Contains(unavailable, option):
				return o, invalidQuery(titleProcess, name, "is not available for this request")
			case len(query[name]) > 1:
				return o, invalidQuery(titleProcess, name, "is given more than once")
			case query[name][0] == "" && option != "wait":
				return o, invalidQuery(titleProcess, name, "must be either true or false")
			}
		}
	}
	for _, flag := range []struct {
		name string
		on   *bool
	}{{"strict", &o.strict}, {"dryRun", &o.dryRun}} {
		if *flag.on, err = boolQuery(query, flag.name, titleProcess); err != nil {
			return o, err
		}
	}
	return o, nil
}

var withoutDashes = strings.NewReplacer("-", "", "_", "")

// boolQuery reads a parameter that is true or false, false when it is absent or empty.
func boolQuery(query url.Values, name, title string) (bool, error) {
	v := query.Get(name)
	if v == "" {
		return false, nil
	}
	on, err := strconv.ParseBool(v)
	if err != nil {
		return false, invalidQuery(title, name, "must be either true or false")
	}
	return on, nil
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
