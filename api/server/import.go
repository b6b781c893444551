package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meridian-mesh/meridian/api/codec"
	"github.com/meridian-mesh/meridian/api/defaults"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/validate"
	"github.com/meridian-mesh/meridian/common/store"
)

const (
	// maxImported bounds how many resources one import holds: the smallest ones cost far more memory than body.
	maxImported = 500_000
	// maxImportCauses bounds how many violations one answer names.
	maxImportCauses = 100
	// decodedTogether is how many documents are read before they are decoded, side by side.
	decodedTogether = 512
	// maxCommitterPlan is how long a plan may have taken to be made again where every writer waits for it.
	maxCommitterPlan = 100 * time.Millisecond
	// maxImportTries is how often one that takes longer is made elsewhere, before others' writes are blamed.
	maxImportTries = 10
)

// errStale ends a try to commit a plan that the state has overtaken.
var errStale = errors.New("the state has changed since the import was planned")

// imported is one resource of an import.
type imported struct {
	index    int // in the body, counted from 0
	line     int // where its document begins; 0: not known
	endpoint endpoint
	draft    draft
	// created and modified are what the document says; zero: it does not.
	created, modified time.Time
	unknown           []string
	causes            []cause // what is wrong with it by itself
}

// importCounts is what an import does to the resources of a type.
type importCounts struct {
	Created   int `json:"created"`
	Updated   int `json:"updated"`
	Unchanged int `json:"unchanged"`
}

// importAnswer is the body of a successful import.
type importAnswer struct {
	Revision store.Revision `json:"revision"`
	DryRun   bool           `json:"dryRun"`
	importCounts
	Types map[resource.Type]*importCounts `json:"types"`
}

// importPlan is what an import does to a state.
type importPlan struct {
	at     store.Revision // of the state
	took   time.Duration
	ops    []store.Op
	needs  []defaults.Need // key material without which ops is not complete
	counts importAnswer
}

// importResources serves POST /import and leaves one audit line.
func (s *Server) importResources(w http.ResponseWriter, r *http.Request) {
	status, outcome := http.StatusOK, "imported"
	var answer importAnswer
	err := s.writing(func() error {
		var err error
		answer, err = s.doImport(w, r)
		return err
	})
	var body []byte
	if err == nil {
		body, err = marshal(answer)
	}
	switch {
	case err != nil:
		status = s.fail(w, r, err)
		outcome = failure(status)
	default:
		sendBody(w, status, "application/json", body)
	}
	s.log.InfoContext(r.Context(), "write",
		"action", "import", "outcome", outcome, "dry_run", answer.DryRun, "status", status,
		"created", answer.Created, "updated", answer.Updated, "unchanged", answer.Unchanged,
		"revision", uint64(answer.Revision), "user", userOf(r).String(), "remote", r.RemoteAddr)
}

// doImport stores all resources of the body as one batch, or none. A resource is stored as its PUT would, with three
// differences: it is judged in the state that all resources of the body make together, whatever their order; it keeps
// the times that its document gives it; and a new mesh gets no default policies, since the body says what is in it.
//
// What is in the store and not in the body stays.
func (s *Server) doImport(w http.ResponseWriter, r *http.Request) (importAnswer, error) {
	if err := s.allowAdmin(userOf(r), "import resources"); err != nil {
		return importAnswer{}, err
	}
	if s.opts.ReadOnly {
		return importAnswer{}, &textError{
			status: http.StatusMethodNotAllowed, allow: "GET, HEAD",
			text: fmt.Sprintf("Operation not allowed. The API of this %s control plane is read-only.\n", s.plane),
		}
	}
	mediaType, err := bodyMediaType(r)
	if err != nil {
		return importAnswer{}, err
	}
	if !acceptsJSON(r) {
		return importAnswer{}, errUnaccepted
	}
	opts, err := writeOptionsOf(r, "wait")
	if err != nil {
		return importAnswer{}, err
	}
	if pre, err := preconditionsOf(r); err != nil {
		return importAnswer{}, err
	} else if pre.set() {
		return importAnswer{}, &problem{
			status: http.StatusBadRequest, Title: titleProcess, Details: "Invalid header",
			Causes: []cause{{"If-Match", "conditions are for one resource, not for an import"}},
		}
	}
	select {
	case s.importing <- struct{}{}:
		defer func() { <-s.importing }()
	case <-r.Context().Done():
		return importAnswer{}, storeProblem(titleImport, fmt.Errorf("wait for another import: %w", r.Context().Err()))
	}
	all, err := s.readImport(w, r, mediaType)
	if err != nil {
		return importAnswer{}, err
	}
	if err := checkImport(all, opts.strict); err != nil {
		return importAnswer{}, err
	}
	addImportWarnings(w, all)

	p, err := planned(r.Context(), s, titleImport, func(snap *store.Snapshot) (importPlan, error) { return planImport(snap, all) })
	if err != nil {
		return importAnswer{}, err
	}
	if opts.dryRun {
		w.Header().Set("Meridian-Dry-Run", "true")
		p.counts.DryRun = true
		p.counts.Revision = p.at
		return p.counts, nil
	}
	return s.commitImport(r.Context(), all, p)
}

// commitImport stores what p planned. If the state has changed meanwhile in what plans look at, the plan is made again:
// by the committer when it is short, and otherwise here, where nobody waits for it, and tried once more.
func (s *Server) commitImport(ctx context.Context, all []imported, p importPlan) (importAnswer, error) {
	ctx, cancel := s.commitContext(ctx)
	defer cancel()
	material := defaults.Material{}
	for i := range all {
		all[i].draft.material = material
	}
	for range maxImportTries {
		answer, err := s.tryImport(ctx, all, p, material)
		if !errors.Is(err, errStale) {
			return answer, err
		}
		if p, err = planImport(s.store.Snapshot(), all); err != nil {
			return importAnswer{}, err
		}
	}
	return importAnswer{}, storeProblem(titleImport, store.ErrConflict)
}

// tryImport commits first, or what it becomes on the state at hand. material is made where that lacks it.
func (s *Server) tryImport(ctx context.Context, all []imported, first importPlan, material defaults.Material) (importAnswer, error) {
	// p is written by the update's function, which may still run when Commit returned early with the context's error:
	// read only after success.
	p := first
	rev, err := defaults.Commit(ctx, s.store, s.opts.Keys, material, first.needs, func(head *store.Snapshot) ([]store.Op, []defaults.Need, error) {
		p = first
		switch {
		case len(p.needs) == 0 && !plannedTypesChanged(head, p.at):
			return p.ops, nil, nil
		case p.took > maxCommitterPlan:
			return nil, nil, errStale
		}
		var err error
		p, err = planImport(head, all)
		return p.ops, p.needs, err
	})
	if errors.Is(err, errStale) {
		return importAnswer{}, errStale
	}
	if err != nil {
		return importAnswer{}, storeProblem(titleImport, err)
	}
	p.counts.Revision = rev
	return p.counts, nil
}

// plannedTypesChanged reports whether anything that a plan may look at has changed after a revision: not insights,
// which planes write all the time.
func plannedTypesChanged(head *store.Snapshot, after store.Revision) bool {
	all := resource.All()
	for i := range all {
		d := &all[i]
		if d.InsightOf == "" && d.Name != resource.ServiceInsight && head.LastChange(string(d.Name)) > after {
			return true
		}
	}
	return false
}

// readImport reads and decodes the body, in the order of the registry: a mesh before what is in it.
func (s *Server) readImport(w http.ResponseWriter, r *http.Request, mediaType string) ([]imported, error) {
	if r.ContentLength > s.opts.ImportMaxBytes {
		return nil, s.importTooLarge(w)
	}
	body := &patientReader{
		r: http.MaxBytesReader(w, r.Body, s.opts.ImportMaxBytes), conn: http.NewResponseController(w),
		read: s.opts.ReadTimeout, write: s.opts.WriteTimeout,
	}
	now := time.Now().UTC()
	var (
		all   []imported
		parts []codec.Part
	)
	decode := func() error {
		first := len(all)
		all = slices.Grow(all, len(parts))[:first+len(parts)]
		if err := s.decodeParts(all[first:], parts, first, mediaType, now); err != nil {
			return err
		}
		parts = parts[:0]
		return nil
	}
	for part, err := range codec.Split(body, mediaType, int(s.opts.MaxBodyBytes)) {
		if err != nil {
			return nil, s.unreadable(w, err)
		}
		if len(all)+len(parts) == maxImported {
			return nil, &problem{
				status: http.StatusRequestEntityTooLarge, Title: titleImport,
				Details: fmt.Sprintf("The request body holds more than %d resources", maxImported),
			}
		}
		if parts = append(parts, part); len(parts) == decodedTogether {
			if err := decode(); err != nil {
				return nil, err
			}
		}
	}
	if err := decode(); err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, invalid(titleImport, cause{"", "the body holds no resource"})
	}
	return all, nil
}

func (s *Server) importTooLarge(w http.ResponseWriter) error {
	w.Header().Set("Connection", "close") // the rest of the body is not read
	return &problem{
		status: http.StatusRequestEntityTooLarge, Title: titleImport,
		Details: fmt.Sprintf("The request body is larger than %d bytes", s.opts.ImportMaxBytes),
	}
}

// unreadable answers a body that cannot be read to its end.
func (s *Server) unreadable(w http.ResponseWriter, err error) error {
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return s.importTooLarge(w)
	}
	if violations, ok := errors.AsType[*codec.Error](err); ok {
		w.Header().Set("Connection", "close")
		return violated(titleImport, violations.Violations)
	}
	return &problem{status: http.StatusBadRequest, Title: titleImport, Details: "The request body could not be read", err: err}
}

// decodeParts decodes parts into dst, which is as long; first is the index of the first one.
func (s *Server) decodeParts(dst []imported, parts []codec.Part, first int, mediaType string, now time.Time) error {
	var g errgroup.Group
	workers := runtime.GOMAXPROCS(0)
	for w := range workers {
		g.Go(func() error {
			for i := w; i < len(parts); i += workers {
				var err error
				if dst[i], err = s.decodePart(parts[i], mediaType, now); err != nil {
					return err
				}
				dst[i].index = first + i
			}
			return nil
		})
	}
	return g.Wait()
}

// decodePart decodes one document and checks what can be checked without a state.
func (s *Server) decodePart(part codec.Part, mediaType string, now time.Time) (imported, error) {
	d, doc, err := codec.DecodeAny(mediaType, part.Content)
	it := imported{
		line: part.Line,
		draft: draft{
			key:  store.Key{Type: doc.Type, Mesh: doc.Mesh, Name: doc.Name},
			spec: doc.Spec, labels: doc.Labels, now: now, bare: true,
		},
		endpoint: endpoint{s, d},
		created:  doc.Created, modified: doc.Modified, unknown: doc.Unknown,
	}
	if err != nil {
		violations, ok := errors.AsType[*codec.Error](err)
		if !ok {
			return imported{}, internal(titleImport, err)
		}
		it.causes = causesOf(violations.Violations)
	}
	if d == nil {
		return it, nil
	}
	if d.Scope == resource.ScopeGlobal {
		it.draft.key.Mesh = ""
	}
	switch {
	case !s.transferable(d):
		it.causes = []cause{{"type", fmt.Sprintf("resources of type %s cannot be written on this %s control plane", d.Name, s.plane)}}
	case doc.Name != "" && !d.WritableOn(s.plane, doc.Name):
		it.causes = append(it.causes, cause{"name", fmt.Sprintf("of type %s, this %s control plane writes only what it has of its own: %s",
			d.Name, s.plane, strings.Join(d.OwnOfZones, ", "))})
	case doc.Name == "" && len(it.causes) == 0:
		it.causes = append(it.causes, cause{"name", "must be defined"})
	}
	if d.Scope == resource.ScopeMesh && doc.Mesh == "" && len(it.causes) == 0 {
		it.causes = append(it.causes, cause{"mesh", "must be defined"})
	}
	if len(it.causes) == 0 {
		it.causes = causesOf(validate.Spec(d, it.draft.key, doc.Spec))
	}
	return it, nil
}

// checkImport reports what is wrong with resources by themselves, and which occur twice. It sorts all by type.
func checkImport(all []imported, strict bool) error {
	var bad importCauses
	seen := make(map[store.Key]int, len(all))
	for i := range all {
		it := &all[i]
		bad.add(it, it.causes...)
		if strict {
			for _, field := range it.unknown {
				bad.add(it, cause{field, "unknown field"})
			}
		}
		if len(it.causes) > 0 {
			continue
		}
		if other, twice := seen[it.draft.key]; twice {
			bad.add(it, cause{"name", fmt.Sprintf("is given twice, first in documents[%d]", other)})
			continue
		}
		seen[it.draft.key] = it.index
	}
	if err := bad.err(); err != nil {
		return err
	}
	order := make(map[resource.Type]int)
	for i, d := range resource.All() {
		order[d.Name] = i
	}
	slices.SortStableFunc(all, func(a, b imported) int { return order[a.endpoint.d.Name] - order[b.endpoint.d.Name] })
	return nil
}

// planImport says what storing all resources does to the state v, or why it cannot be done.
func planImport(v *store.Snapshot, all []imported) (importPlan, error) {
	began := time.Now()
	p := importPlan{at: v.Revision(), counts: importAnswer{Types: make(map[resource.Type]*importCounts)}}
	batch := newBatchView(v, all)
	var bad importCauses
	for i := range all {
		it := &all[i]
		one, err := it.plan(batch)
		if err != nil {
			if err := bad.addError(it, err); err != nil {
				return importPlan{}, err
			}
			continue
		}
		p.ops = append(p.ops, one.ops...)
		p.needs = append(p.needs, one.needs...)
		p.counts.count(it.endpoint.d.Name, one.outcome)
	}
	p.took = time.Since(began)
	return p, bad.err()
}

// plan says what storing one resource does.
func (it *imported) plan(batch *batchView) (plan, error) {
	batch.planned = it.draft.key
	p, err := it.endpoint.planPut(batch, it.draft)
	if err != nil {
		return plan{}, err
	}
	// The plan is ours, so its record may still be changed, unless it is the one that the state has.
	rec := *p.record
	if !it.created.IsZero() {
		rec.Created = it.created
	}
	if !it.modified.IsZero() {
		rec.Modified = it.modified
	}
	if rec.Created.Equal(p.record.Created) && rec.Modified.Equal(p.record.Modified) {
		return p, nil
	}
	if p.outcome == outcomeUnchanged {
		p.outcome = outcomeUpdated
		p.ops = append(p.ops, store.Put(&rec))
	} else {
		*p.record = rec
	}
	return p, nil
}

func (a *importAnswer) count(t resource.Type, outcome string) {
	of := a.Types[t]
	if of == nil {
		of = &importCounts{}
		a.Types[t] = of
	}
	for _, c := range []*importCounts{of, &a.importCounts} {
		switch outcome {
		case outcomeCreated:
			c.Created++
		case outcomeUpdated:
			c.Updated++
		default:
			c.Unchanged++
		}
	}
}

// batchView is a state with all resources of an import in it, except the one that is being planned.
type batchView struct {
	state   *store.Snapshot
	planned store.Key
	records map[store.Key]*store.Record
	sorted  map[string][]*store.Record // by type, in key order; made when a type is listed
}

func newBatchView(state *store.Snapshot, all []imported) *batchView {
	b := &batchView{state: state, records: make(map[store.Key]*store.Record, len(all)), sorted: make(map[string][]*store.Record)}
	for i := range all {
		d := all[i].draft
		b.records[d.key] = &store.Record{Key: d.key, Spec: d.spec, Labels: d.labels, Created: d.now, Modified: d.now}
	}
	return b
}

// Get implements view.
func (b *batchView) Get(key store.Key) (*store.Record, bool) {
	if key != b.planned {
		if rec, ok := b.records[key]; ok {
			return rec, true
		}
	}
	return b.state.Get(key)
}

// List implements view.
func (b *batchView) List(typ, mesh string) iter.Seq[*store.Record] {
	return func(yield func(*store.Record) bool) {
		added := b.of(typ, mesh)
		for rec := range b.state.List(typ, mesh) {
			for len(added) > 0 && compareKeys(added[0].Key, rec.Key) <= 0 {
				next := added[0]
				added = added[1:]
				if next.Key == b.planned {
					continue
				}
				if !yield(next) {
					return
				}
			}
			if _, replaced := b.records[rec.Key]; replaced && rec.Key != b.planned {
				continue
			}
			if !yield(rec) {
				return
			}
		}
		for _, rec := range added {
			if rec.Key != b.planned && !yield(rec) {
				return
			}
		}
	}
}

// Count implements view.
func (b *batchView) Count(typ, mesh string) int {
	n := 0
	for range b.List(typ, mesh) {
		n++
	}
	return n
}

// of returns the resources of the import that List yields, in its order.
func (b *batchView) of(typ, mesh string) []*store.Record {
	list, ok := b.sorted[typ]
	if !ok {
		for key, rec := range b.records {
			if key.Type == typ {
				list = append(list, rec)
			}
		}
		slices.SortFunc(list, func(x, y *store.Record) int { return compareKeys(x.Key, y.Key) })
		b.sorted[typ] = list
	}
	if mesh == "" {
		return list
	}
	from, _ := slices.BinarySearchFunc(list, mesh, func(rec *store.Record, mesh string) int { return strings.Compare(rec.Key.Mesh, mesh) })
	list = list[from:]
	if to := slices.IndexFunc(list, func(rec *store.Record) bool { return rec.Key.Mesh != mesh }); to >= 0 {
		list = list[:to]
	}
	return list
}

// compareKeys is the order of store.Snapshot.List within a type.
func compareKeys(a, b store.Key) int {
	if c := strings.Compare(a.Mesh, b.Mesh); c != 0 {
		return c
	}
	return strings.Compare(a.Name, b.Name)
}

// importCauses collects what is wrong with an import.
type importCauses struct {
	list []cause
	more int // not in list
}

// add notes causes of one resource under the name of its document.
func (c *importCauses) add(it *imported, causes ...cause) {
	for _, one := range causes {
		if len(c.list) == maxImportCauses {
			c.more++
			continue
		}
		field := fmt.Sprintf("documents[%d]", it.index)
		if one.Field != "" {
			field += "." + strings.TrimPrefix(one.Field, ".")
		}
		var where []string
		if it.draft.key != (store.Key{}) {
			where = append(where, it.draft.key.String())
		}
		if it.line > 0 {
			where = append(where, fmt.Sprintf("line %d", it.line))
		}
		if len(where) > 0 {
			one.Message += " (" + strings.Join(where, ", ") + ")"
		}
		c.list = append(c.list, cause{field, one.Message})
	}
}

// addError notes why a resource cannot be stored. An error that is not the client's is returned.
func (c *importCauses) addError(it *imported, err error) error {
	if e, ok := errors.AsType[*textError](err); ok {
		c.add(it, cause{"", strings.TrimSpace(e.text)})
		return nil
	}
	p, ok := errors.AsType[*problem](err)
	if !ok || p.status >= http.StatusInternalServerError {
		return err
	}
	if len(p.Causes) == 0 {
		c.add(it, cause{"", p.Details})
	}
	c.add(it, p.Causes...)
	return nil
}

func (c *importCauses) err() error {
	if len(c.list) == 0 {
		return nil
	}
	if c.more > 0 {
		c.list = append(c.list, cause{"documents", fmt.Sprintf("%d more violations", c.more)})
	}
	return &problem{status: http.StatusBadRequest, Title: titleImport, Details: "Resources are not valid", Causes: c.list}
}

// addImportWarnings names the fields that are not known, of all resources.
func addImportWarnings(w http.ResponseWriter, all []imported) {
	n := 0
	for i := range all {
		for _, field := range all[i].unknown {
			if n++; n <= maxWarnings {
				w.Header().Add("Warning", warning(fmt.Sprintf("documents[%d] %s: unknown field %s", all[i].index, all[i].draft.key, field)))
			}
		}
	}
	if n > maxWarnings {
		w.Header().Add("Warning", warning(fmt.Sprintf("%d more unknown fields", n-maxWarnings)))
	}
}

// patientReader lets a request take as long as its body keeps coming: each read moves the connection's deadlines.
type patientReader struct {
	r           io.Reader
	conn        *http.ResponseController
	read, write time.Duration
	moved       time.Time
}

func (p *patientReader) Read(b []byte) (int, error) {
	if now := time.Now(); now.Sub(p.moved) > time.Second {
		p.moved = now
		// Where deadlines cannot be set, there are none.
		_ = p.conn.SetReadDeadline(now.Add(p.read))
		_ = p.conn.SetWriteDeadline(now.Add(p.read + p.write))
	}
	return p.r.Read(b) //nolint:wrapcheck // the reader is transparent
}
