package server

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"maps"
	"net/http"
	"time"

	"github.com/meridian-mesh/meridian/api/defaults"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/validate"
	"github.com/meridian-mesh/meridian/common/store"
)

// view is a state to plan a write on: a snapshot, the head inside an update, or one of these with earlier parts of the
// same batch on top.
type view interface {
	Get(key store.Key) (*store.Record, bool)
	List(typ, mesh string) iter.Seq[*store.Record]
	Count(typ, mesh string) int
}

// What a write comes to. outcomeRefused and outcomeFailed are never those of a plan: there was none, or it was not carried
// out.
const (
	outcomeCreated   = "created"
	outcomeUpdated   = "updated"
	outcomeUnchanged = "unchanged"
	outcomeDeleted   = "deleted"
	outcomeRefused   = "refused"
	outcomeFailed    = "failed"
)

// draft is a resource that somebody wants to store. It is right by itself; whether it fits the state is for a plan.
type draft struct {
	key    store.Key
	spec   []byte
	labels map[string]string
	now    time.Time
	// pre is checked last, so that a write that cannot be done says why, whatever it was made conditional on.
	pre preconditions
	// material is what was made for the needs of earlier plans of this draft; nil: nothing.
	material defaults.Material
	// bare: a mesh without default policies, because what is in it comes along.
	bare bool
}

// plan is what a write does to a state. Planning changes nothing, so the same function serves the first look at a
// request, the commit, and whoever only wants to know.
type plan struct {
	// ops is the batch. When the outcome is outcomeUnchanged the resource itself is not in it, and as a rule nothing is.
	ops     []store.Op
	outcome string
	// needs is key material that the draft must carry before ops is complete.
	needs []defaults.Need
	// record is the resource as it is stored then, the old one when nothing changes; nil for a deletion. Its Version is
	// that of the state, which the commit replaces.
	record *store.Record
}

// planned returns what plan makes of the newest state here. That keeps hopeless requests off the committer; but where other replicas
// write to the store too, they may just have stored what was missing, or what a condition names. So a refusal is a refusal
// by the latest state that any of them has.
func planned[P any](ctx context.Context, s *Server, title string, plan func(*store.Snapshot) (P, error)) (P, error) {
	snap := s.store.Snapshot()
	p, err := plan(snap)
	if err == nil {
		return p, nil
	}
	ctx, cancel := s.commitContext(ctx)
	defer cancel()
	switch latest, failure := s.store.Latest(ctx); {
	case failure != nil:
		return p, storeProblem(title, failure)
	case latest.Revision() > snap.Revision():
		return plan(latest)
	}
	return p, err
}

// status is the code of a PUT that comes to p.
func (p plan) status() int {
	if p.outcome == outcomeCreated {
		return http.StatusCreated
	}
	return http.StatusOK
}

// planPut says what storing d does to the state v, or why it cannot be stored.
func (e endpoint) planPut(v view, d draft) (plan, error) {
	old, exists := v.Get(d.key)
	title := titleCreate
	if exists {
		title = titleUpdate
		if err := foreign(old); err != nil {
			return plan{}, err
		}
	} else {
		if causes := e.nameViolations(v, d.key); len(causes) > 0 {
			return plan{}, invalid(titleProcess, causes...)
		}
		if e.d.Scope == resource.ScopeMesh && !hasMesh(v, d.key.Mesh) {
			return plan{}, &problem{
				status: http.StatusBadRequest, Title: titleCreate, Details: "Mesh is not found",
				Causes: []cause{{"mesh", fmt.Sprintf("mesh of name %s is not found", d.key.Mesh)}},
			}
		}
	}
	spec, err := e.admit(d.spec, !exists)
	if err != nil {
		return plan{}, internal(title, err)
	}
	rec := &store.Record{Key: d.key, Spec: spec, Labels: d.labels, Created: d.now, Modified: d.now}
	unchanged := exists && bytes.Equal(old.Spec, spec) && maps.Equal(old.Labels, d.labels)
	if !unchanged { // what is there already may stay, whatever became of the others since
		if found := validate.State(v, e.d, rec, old); len(found) > 0 {
			return plan{}, violated(title, found)
		}
	}
	extra, needs, err := e.belongings(v, d, spec, !exists)
	if err != nil {
		return plan{}, specProblem(title, err)
	}
	if d.pre.set() && !d.pre.hold(e.tagOf(old)) {
		return plan{}, preconditionFailed(title)
	}
	if unchanged {
		return plan{outcome: outcomeUnchanged, record: old, ops: extra, needs: needs}, nil
	}
	p := plan{outcome: outcomeCreated, record: rec, needs: needs}
	if exists {
		rec.Created, rec.Version, rec.CreateRevision = old.Created, old.Version, old.CreateRevision
		p.outcome = outcomeUpdated
	}
	p.ops = append([]store.Op{store.Put(rec)}, extra...)
	return p, nil
}

// planDelete says what deleting key does to the state head, or why it must stay. online says whether a zone has a live
// session.
func (e endpoint) planDelete(head *store.Snapshot, key store.Key, u user, online bool, pre preconditions) (plan, error) {
	rec, found := head.Get(key)
	if !found {
		return plan{}, notFound(titleDelete)
	}
	if err := foreign(rec); err != nil {
		return plan{}, err
	}
	if err := e.allow(u, e.d); err != nil {
		return plan{}, err
	}
	ops, err := e.deletion(head, rec, online)
	if err != nil {
		return plan{}, err
	}
	if pre.set() && !pre.hold(e.tagOf(rec)) {
		return plan{}, preconditionFailed(titleDelete)
	}
	return plan{ops: ops, outcome: outcomeDeleted}, nil
}

// tagOf is the entity tag of a record, "" of nil.
func (e endpoint) tagOf(rec *store.Record) string {
	if rec == nil {
		return ""
	}
	return e.etag(rec.Version)
}

// nameViolations checks the names of a resource that is to be created. Existing ones keep the name they have, which
// another plane may have chosen.
func (e endpoint) nameViolations(v view, key store.Key) []cause {
	if _, exists := v.Get(key); exists {
		return nil
	}
	var causes []cause
	check := resource.CheckName
	if e.d.Name == resource.ZoneType {
		check = resource.CheckZoneName
	}
	name := key.Name
	if e.d.Name == resource.Secret {
		name = authorityOf(key)
	}
	if err := check(name); err != nil {
		causes = append(causes, cause{"name", err.Error()})
	}
	if e.d.Scope == resource.ScopeMesh && !hasMesh(v, key.Mesh) {
		if err := resource.CheckName(key.Mesh); err != nil {
			causes = append(causes, cause{"mesh", err.Error()})
		}
	}
	return causes
}

func hasMesh(v view, name string) bool {
	_, ok := v.Get(store.Key{Type: string(resource.Mesh), Name: name})
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
