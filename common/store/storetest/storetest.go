// Package storetest says, as tests, what every store backend must keep, so that all of them can be trusted alike: a
// backend is done when [Run] passes. The cases drive a whole store on the backend, since its promises (what is
// answered is durable, what is read is consistent) are the ones that matter.
package storetest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meridian-mesh/meridian/common/store"
)

// Opener opens the backend under test; a call after the first opens the same storage again, as a restart does.
type Opener func() (store.Backend, error)

// Case is one thing every backend must keep.
type Case struct {
	// Name is the promise, as a sentence.
	Name  string
	check func(*env)
}

// Run checks every case on storage of its own, which newBackend makes.
func Run(t *testing.T, newBackend func(t *testing.T) Opener) {
	t.Helper()
	for _, c := range Cases() {
		t.Run(c.Name, func(t *testing.T) {
			if err := c.Check(t.Context(), newBackend(t)); err != nil {
				t.Error(err)
			}
		})
	}
}

// Check runs the case on new, empty storage and says how it was broken, if it was.
func (c Case) Check(ctx context.Context, open Opener) (err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	e := &env{ctx: ctx, open: open}
	defer func() {
		p := recover()
		failed, ok := p.(failure)
		cancel()
		if p != nil && !ok {
			panic(p)
		}
		for _, s := range e.opened {
			_ = s.Close() // a second time for most: then without effect
		}
		if ok {
			err = failed.err
		}
	}()
	c.check(e)
	return nil
}

// FailAppends returns b with every Append that fail objects to failing with that error, before anything is stored.
func FailAppends(b store.Backend, fail func(store.Group) error) store.Backend {
	return &failingBackend{Backend: b, fail: fail}
}

type failingBackend struct {
	store.Backend
	fail func(store.Group) error
}

func (b *failingBackend) Append(ctx context.Context, g store.Group) error {
	if err := b.fail(g); err != nil {
		return err
	}
	return b.Backend.Append(ctx, g) //nolint:wrapcheck // a double must be seen through
}

// env is what a case works with. Its methods end the case when something is wrong; they are for the case's own
// goroutine only.
type env struct {
	ctx    context.Context //nolint:containedctx // lives as long as one case
	open   Opener
	opened []*store.Store
}

type failure struct{ err error }

func (e *env) fatalf(format string, args ...any) {
	panic(failure{fmt.Errorf(format, args...)})
}

func (e *env) must(what string, err error) {
	if err != nil {
		e.fatalf("%s: %w", what, err)
	}
}

// store opens the storage.
func (e *env) store(o store.Options) *store.Store {
	b, err := e.open()
	e.must("open the backend", err)
	return e.storeOn(b, o)
}

func (e *env) storeOn(b store.Backend, o store.Options) *store.Store {
	s, err := store.Open(e.ctx, b, o)
	e.must("open the store", err)
	e.opened = append(e.opened, s)
	return s
}

// restart closes s and opens its storage again.
func (e *env) restart(s *store.Store, o store.Options) *store.Store {
	e.must("close the store", s.Close())
	return e.store(o)
}

// commit commits one batch that must be accepted.
func (e *env) commit(s *store.Store, ops ...store.Op) store.Revision {
	rev, err := s.Update(e.ctx, batch(ops...))
	e.must("update", err)
	return rev
}

// refused commits one batch that must fail with want, leaving everything as it was.
func (e *env) refused(s *store.Store, want error, ops ...store.Op) {
	before := s.Snapshot()
	if _, err := s.Update(e.ctx, batch(ops...)); !errors.Is(err, want) {
		e.fatalf("update answered %v, want %w", err, want)
	}
	if after := s.Snapshot(); after.Revision() != before.Revision() {
		e.fatalf("a refused batch was published: revision %d became %d", before.Revision(), after.Revision())
	}
}

func (e *env) equal(what string, want, got any) {
	if diff := cmp.Diff(want, got); diff != "" {
		e.fatalf("%s (-want +got):\n%s", what, diff)
	}
}

func (e *env) get(s *store.Snapshot, k store.Key) *store.Record {
	r, ok := s.Get(k)
	if !ok {
		e.fatalf("%s is missing at revision %d", k, s.Revision())
	}
	return r
}

func (e *env) changes(s *store.Snapshot, typ string, after store.Revision) []store.Change {
	changes, err := s.Changes(typ, after)
	e.must("changes", err)
	return slices.Collect(changes)
}

// content is all that a snapshot says.
type content struct {
	Revision, Compacted store.Revision
	Records             []*store.Record
	Deleted             []store.Change
	Counts              map[string]int
	LastChange          map[string]store.Revision
}

func (e *env) content(s *store.Snapshot) content {
	c := content{
		Revision: s.Revision(), Compacted: s.Compacted(),
		Counts: map[string]int{}, LastChange: map[string]store.Revision{},
	}
	for typ := range s.Types() {
		c.Counts[typ], c.LastChange[typ] = s.Count(typ, ""), s.LastChange(typ)
		for r := range s.List(typ, "") {
			c.Records = append(c.Records, r)
			if r.Key.Mesh != "" {
				c.Counts[typ+"/"+r.Key.Mesh] = s.Count(typ, r.Key.Mesh)
			}
		}
		for _, change := range e.changes(s, typ, s.Compacted()) {
			if change.Record == nil {
				c.Deleted = append(c.Deleted, change)
			}
		}
	}
	return c
}

func batch(ops ...store.Op) func(*store.Snapshot) ([]store.Op, error) {
	return func(*store.Snapshot) ([]store.Op, error) { return ops, nil }
}

// hold makes the committer wait inside an update until the returned function is called, which waits for its answer.
func (e *env) hold(s *store.Store) (release func()) {
	running, proceed, answered := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		_, err := s.Update(e.ctx, func(*store.Snapshot) ([]store.Op, error) {
			close(running)
			select {
			case <-proceed:
			case <-e.ctx.Done(): // the case failed before it let go
			}
			return nil, nil
		})
		answered <- err
	}()
	select {
	case <-running:
	case err := <-answered:
		e.fatalf("the update that should hold the committer ended: %w", err)
	}
	return func() {
		close(proceed)
		e.must("the update that held the committer", <-answered)
	}
}

// queued starts an update and returns once it waits in the queue of a held committer.
func (e *env) queued(ctx context.Context, s *store.Store, fn func(*store.Snapshot) ([]store.Op, error)) <-chan result {
	return e.queue(s, func() (store.Revision, error) { return s.Update(ctx, fn) })
}

// queue is queued for whatever way an update is made.
func (e *env) queue(s *store.Store, update func() (store.Revision, error)) <-chan result {
	ch := make(chan result, 1)
	before := s.Waiting()
	go func() {
		rev, err := update()
		ch <- result{rev, err}
	}()
	for s.Waiting() == before {
		e.pause(100*time.Microsecond, "an update never reached the queue")
	}
	return ch
}

// pause is between two looks at what takes a while. The case fails for the given reason when its time is over.
func (e *env) pause(d time.Duration, late string) {
	select {
	case <-e.ctx.Done():
		e.fatalf("%s", late)
	case <-time.After(d):
	}
}

type result struct {
	Rev store.Revision
	Err error
}

func key(typ, mesh, name string) store.Key { return store.Key{Type: typ, Mesh: mesh, Name: name} }

func record(typ, mesh, name, spec string) *store.Record {
	return &store.Record{Key: key(typ, mesh, name), Spec: []byte(spec)}
}
