package reconcile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/meridian-mesh/meridian/api/dataplane"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/vips"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/zone/topology"
)

// settleAfter is when a table is computed again that was written without knowing all of the state.
const settleAfter = time.Second

// addresses keeps the virtual addresses of the meshes. They are in effect once they are stored, so that all processes of the zone
// agree on them, and they are the same after a start: what is stored decides, and a new table is computed from the one at the
// store's head.
//
// A process may be behind another in what it has seen, and would take the addresses of names away that the other has just given
// some. So whoever is behind the head only adds to a table, and computes it again when it has caught up.
type addresses struct {
	config vips.Config
	store  *store.Store
	log    *slog.Logger
	types  []string      // what tables are computed from
	wake   chan struct{} // cap 1, level-triggered: something has to be written
	settle *time.Timer   // when the unsettled are due

	// Owned by the goroutine of Run.
	tables   map[string]storedTable // by mesh
	problems map[string]string      // as they were last told

	mu        sync.Mutex              // guards what follows
	pending   map[string]*wantedTable // by mesh; nil: the mesh has gone
	unsettled set[string]             // meshes whose tables are to be computed again
}

// storedTable is the table of a mesh that is in effect.
type storedTable struct {
	record *store.Record // nil: none is stored
	table  vips.Table
}

// wantedTable is what a table is to become.
type wantedTable struct {
	input vips.Input
	at    store.Revision // of the state that input is of
	// spec is what input makes of the table in with.
	with *store.Record
	spec []byte
}

func newAddresses(c vips.Config, s *store.Store, log *slog.Logger) *addresses {
	return &addresses{
		config: c, store: s, log: log, types: topology.Types(), wake: make(chan struct{}, 1), settle: newTimer(), tables: make(map[string]storedTable),
		problems: make(map[string]string), pending: make(map[string]*wantedTable), unsettled: make(set[string]),
	}
}

func configKey(mesh string) store.Key {
	return store.Key{Type: string(resource.Config), Name: vips.ConfigName(mesh)}
}

// recall reads the table of a mesh.
func (a *addresses) recall(head *store.Snapshot, mesh string) {
	rec, _ := head.Get(configKey(mesh))
	table, err := parseTable(rec)
	if err != nil {
		a.log.Error("the virtual addresses of a mesh cannot be read and are given anew", "mesh", mesh, "err", err)
	}
	a.tables[mesh] = storedTable{rec, table}
}

// parseTable reads a stored table; that of nil is empty, and so is one that cannot be read.
func parseTable(rec *store.Record) (vips.Table, error) {
	if rec == nil {
		return nil, nil
	}
	var config systemv1.Config
	if err := proto.Unmarshal(rec.Spec, &config); err != nil {
		return nil, err //nolint:wrapcheck // said by the caller
	}
	return vips.Parse(config.GetConfig()) //nolint:wrapcheck // said by the caller
}

func encodeTable(t vips.Table) ([]byte, error) {
	text, err := t.Encode()
	if err != nil {
		return nil, err //nolint:wrapcheck // said by the caller
	}
	return proto.MarshalOptions{Deterministic: true}.Marshal(&systemv1.Config{Config: text}) //nolint:wrapcheck // said by the caller
}

// of returns the addresses of a mesh that are in effect.
func (a *addresses) of(mesh string) []dataplane.VIP {
	return a.tables[mesh].table.VIPs(a.config.Domain, a.config.ServiceVIPPort)
}

// renew has the table of a mesh written anew where it should be another. at is the revision that the mesh is of.
func (a *addresses) renew(mesh *topology.Mesh, at store.Revision) {
	have := a.tables[mesh.Name]
	w := &wantedTable{input: a.input(mesh), at: at, with: have.record}
	table, problems := vips.Compute(have.table, w.input)
	switch text := fmt.Sprint(errors.Join(problems...)); {
	case len(problems) == 0:
		delete(a.problems, mesh.Name)
	case a.problems[mesh.Name] != text:
		a.problems[mesh.Name] = text
		a.log.Warn("some names of a mesh have no virtual address", "mesh", mesh.Name, "err", text)
	}
	var err error
	if w.spec, err = encodeTable(table); err != nil {
		a.log.Error("the virtual addresses of a mesh cannot be written", "mesh", mesh.Name, "err", err)
		return
	}
	if have.record != nil && bytes.Equal(have.record.Spec, w.spec) {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.pending, mesh.Name)
		return
	}
	a.later(mesh.Name, w)
}

func (a *addresses) input(mesh *topology.Mesh) vips.Input {
	in := vips.Input{
		Config: a.config, ExternalServices: maps.Clone(mesh.ExternalServices), VirtualOutbounds: make(map[string]*meshv1.VirtualOutbound),
	}
	for _, dp := range mesh.Dataplanes {
		in.Services = append(in.Services, vips.TagSets(dp)...)
	}
	for _, list := range mesh.Remote {
		for _, e := range list {
			in.Services = append(in.Services, e.Tags)
		}
	}
	for _, p := range mesh.Policies.Of(policy.VirtualOutbound) {
		if v, ok := p.Spec.(*meshv1.VirtualOutbound); ok {
			in.VirtualOutbounds[p.Name] = v
		}
	}
	return in
}

func (a *addresses) forget(mesh string) {
	if _, had := a.tables[mesh]; had {
		delete(a.tables, mesh)
		a.later(mesh, nil)
	}
}

func (a *addresses) later(mesh string, w *wantedTable) {
	a.mu.Lock()
	a.pending[mesh] = w
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default: // already awake
	}
}

func (a *addresses) run(ctx context.Context) error {
	defer a.settle.Stop()
	return writing(ctx, a.wake, nil, a.write, a.log.With("what", "virtual addresses"))
}

// write stores the tables that are wanted, in one batch.
func (a *addresses) write(ctx context.Context) error {
	a.mu.Lock()
	pending := maps.Clone(a.pending)
	a.mu.Unlock()
	if len(pending) == 0 {
		return nil
	}
	now := time.Now().UTC()
	var behind bool // written by the update, which may still run when it was given up: read only after success
	_, err := a.store.Update(ctx, func(head *store.Snapshot) ([]store.Op, error) {
		behind = false
		var ops []store.Op
		for mesh, w := range pending {
			key := configKey(mesh)
			_, exists := head.Get(store.Key{Type: string(resource.Mesh), Name: mesh})
			switch {
			case !exists:
				ops = append(ops, store.Delete(key))
			case w == nil: // it was made anew, and is about to be seen
			default:
				late := a.isBehind(head, w.at)
				behind = behind || late
				op, ok, err := w.op(head, key, late, now)
				if err != nil {
					return nil, err
				}
				if ok {
					ops = append(ops, op)
				}
			}
		}
		return ops, nil
	})
	if err != nil {
		return fmt.Errorf("write virtual addresses: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for mesh, w := range pending {
		if a.pending[mesh] == w {
			delete(a.pending, mesh)
		}
		if behind && w != nil {
			a.unsettled[mesh] = struct{}{}
			a.settle.Reset(settleAfter)
		}
	}
	return nil
}

// isBehind reports whether something that tables are computed from has changed since a revision.
func (a *addresses) isBehind(head *store.Snapshot, at store.Revision) bool {
	for _, typ := range a.types {
		if head.LastChange(typ) > at {
			return true
		}
	}
	return false
}

// op makes the change of a stored table; there is none when it is as it should be.
func (w *wantedTable) op(head *store.Snapshot, key store.Key, behind bool, now time.Time) (_ store.Op, ok bool, _ error) {
	old, _ := head.Get(key)
	spec := w.spec
	if behind || old != w.with {
		prev, _ := parseTable(old) // what cannot be read is given anew, as was said when it was first seen
		in := w.input
		in.Keep = behind
		table, _ := vips.Compute(prev, in) // the problems were told
		var err error
		if spec, err = encodeTable(table); err != nil {
			return store.Op{}, false, fmt.Errorf("encode %s: %w", key, err)
		}
	}
	rec := &store.Record{Key: key, Spec: spec, Created: now, Modified: now}
	if old != nil {
		if bytes.Equal(old.Spec, spec) {
			return store.Op{}, false, nil
		}
		rec.Created, rec.Labels = old.Created, old.Labels
	}
	return store.Put(rec), true, nil
}

// takeUnsettled returns the meshes whose tables are to be computed again.
func (a *addresses) takeUnsettled() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var list []string
	for mesh := range a.unsettled {
		list = append(list, mesh)
	}
	clear(a.unsettled)
	return list
}

// loadAddresses brings the stored tables into a World that is new, and has them renewed.
func (r *Reconciler) loadAddresses(head *store.Snapshot) {
	for _, m := range r.world.Meshes() {
		r.addresses.recall(head, m.Name)
		r.world.SetVIPs(m.Name, r.addresses.of(m.Name))
		r.addresses.renew(m, head.Revision())
	}
}

// changedTables returns the meshes whose stored tables have changed since the World's revision.
func (r *Reconciler) changedTables(head *store.Snapshot) ([]string, error) {
	changes, err := head.Changes(string(resource.Config), r.revision)
	if err != nil {
		return nil, err //nolint:wrapcheck // said by the caller
	}
	var meshes []string
	for c := range changes {
		if mesh, ok := vips.ConfigMesh(c.Key.Name); ok {
			meshes = append(meshes, mesh)
		}
	}
	return meshes, nil
}

// renewAddresses brings stored tables that changed into effect, has those renewed where d may have changed what they are for, and
// adds to d what came of it.
func (r *Reconciler) renewAddresses(head *store.Snapshot, d *topology.Dirty, changed []string) {
	renew := make(set[string])
	for name, md := range d.Meshes {
		if r.world.Mesh(name) == nil {
			r.addresses.forget(name)
			continue
		}
		if _, known := r.addresses.tables[name]; !known {
			changed = append(changed, name)
		}
		if md.Whole || md.Tags || md.Externals || len(md.Services) > 0 || len(md.Remote) > 0 || !md.Policies.Empty() {
			renew[name] = struct{}{}
		}
	}
	for _, name := range changed {
		if r.world.Mesh(name) == nil {
			continue
		}
		r.addresses.recall(head, name)
		renew[name] = struct{}{} // the table may be of one who knew less
		if set := r.world.SetVIPs(name, r.addresses.of(name)); set.Meshes[name] == nil {
			continue
		} else if md := d.Meshes[name]; md != nil {
			md.VIPs = true
		} else {
			d.Meshes[name] = set.Meshes[name]
		}
	}
	for name := range renew {
		r.addresses.renew(r.world.Mesh(name), head.Revision())
	}
}

// settleAddresses computes tables again that were written without knowing all of the state.
func (r *Reconciler) settleAddresses() {
	for _, name := range r.addresses.takeUnsettled() {
		if m := r.world.Mesh(name); m != nil {
			r.addresses.renew(m, r.revision)
		}
	}
}
