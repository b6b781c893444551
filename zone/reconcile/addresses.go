package reconcile

import (
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

// addresses keeps the virtual addresses of the meshes and writes them to the store, so that they are the same after a start.
type addresses struct {
	config vips.Config
	store  *store.Store
	log    *slog.Logger
	wake   chan struct{} // cap 1, level-triggered: something has to be written

	// Owned by the goroutine of Run.
	tables   map[string]vips.Table
	problems map[string]string // as they were last told

	mu      sync.Mutex        // guards what follows
	pending map[string]string // encoded tables by mesh; "": the mesh has gone
}

func newAddresses(c vips.Config, s *store.Store, log *slog.Logger) *addresses {
	return &addresses{
		config: c, store: s, log: log, wake: make(chan struct{}, 1), tables: make(map[string]vips.Table),
		problems: make(map[string]string), pending: make(map[string]string),
	}
}

func configKey(mesh string) store.Key {
	return store.Key{Type: string(resource.Config), Name: vips.ConfigName(mesh)}
}

// recall reads the table of a mesh that was written before.
func (a *addresses) recall(head *store.Snapshot, mesh string) {
	rec, ok := head.Get(configKey(mesh))
	if _, known := a.tables[mesh]; known || !ok {
		return
	}
	var config systemv1.Config
	err := proto.Unmarshal(rec.Spec, &config)
	if err == nil {
		a.tables[mesh], err = vips.Parse(config.GetConfig())
	}
	if err != nil {
		a.log.Error("the virtual addresses of a mesh cannot be read and are given anew", "mesh", mesh, "err", err)
	}
}

// renew computes the addresses of a mesh again.
func (a *addresses) renew(mesh *topology.Mesh) []dataplane.VIP {
	in := vips.Input{Config: a.config, ExternalServices: mesh.ExternalServices, VirtualOutbounds: make(map[string]*meshv1.VirtualOutbound)}
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
	table, problems := vips.Compute(a.tables[mesh.Name], in)
	a.tables[mesh.Name] = table
	switch text := fmt.Sprint(errors.Join(problems...)); {
	case len(problems) == 0:
		delete(a.problems, mesh.Name)
	case a.problems[mesh.Name] != text:
		a.problems[mesh.Name] = text
		a.log.Warn("some names of a mesh have no virtual address", "mesh", mesh.Name, "err", text)
	}
	if text, err := table.Encode(); err != nil {
		a.log.Error("the virtual addresses of a mesh cannot be written", "mesh", mesh.Name, "err", err)
	} else {
		a.later(mesh.Name, text)
	}
	return table.VIPs(a.config.Domain, a.config.ServiceVIPPort)
}

func (a *addresses) forget(mesh string) {
	if _, had := a.tables[mesh]; had {
		delete(a.tables, mesh)
		a.later(mesh, "")
	}
}

func (a *addresses) later(mesh, text string) {
	a.mu.Lock()
	a.pending[mesh] = text
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default: // already awake
	}
}

func (a *addresses) run(ctx context.Context) error {
	return writing(ctx, a.wake, nil, a.write, a.log.With("what", "virtual addresses"))
}

// write stores the tables that differ from what is stored, in one batch.
func (a *addresses) write(ctx context.Context) error {
	a.mu.Lock()
	pending := maps.Clone(a.pending)
	a.mu.Unlock()
	_, err := a.store.Update(ctx, func(head *store.Snapshot) ([]store.Op, error) {
		var ops []store.Op
		for mesh, text := range pending {
			key := configKey(mesh)
			old, ok := head.Get(key)
			if text == "" {
				if ok {
					ops = append(ops, store.Delete(key))
				}
				continue
			}
			spec, err := proto.MarshalOptions{Deterministic: true}.Marshal(&systemv1.Config{Config: text})
			if err != nil {
				return nil, fmt.Errorf("encode %s: %w", key, err)
			}
			if ok && string(old.Spec) == string(spec) {
				continue
			}
			rec := &store.Record{Key: key, Spec: spec, Modified: time.Now().UTC()}
			if rec.Created = rec.Modified; ok {
				rec.Created, rec.Labels = old.Created, old.Labels
			}
			ops = append(ops, store.Put(rec))
		}
		return ops, nil
	})
	if err != nil {
		return fmt.Errorf("write virtual addresses: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for mesh, text := range pending {
		if a.pending[mesh] == text {
			delete(a.pending, mesh)
		}
	}
	return nil
}

// renewAddresses gives virtual addresses anew where d may have changed what they are for, and adds to d what came of it.
func (r *Reconciler) renewAddresses(d *topology.Dirty) {
	for name, md := range d.Meshes {
		mesh := r.world.Mesh(name)
		if mesh == nil {
			r.addresses.forget(name)
			continue
		}
		if md.Whole || md.Tags || md.Externals || len(md.Services) > 0 || len(md.Remote) > 0 || !md.Policies.Empty() {
			if set := r.world.SetVIPs(name, r.addresses.renew(mesh)); set.Meshes[name] != nil {
				md.VIPs = true
			}
		}
	}
}
