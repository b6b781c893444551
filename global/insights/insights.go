package insights

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// externalService is the one type that is counted one by one and has no other part in the code.
const externalService = "ExternalService"

// Options are what an Insights needs.
type Options struct {
	Store *store.Store
	// Interval is the least time between two batches. The first change after a quiet time is stored at once.
	Interval time.Duration
	// Domain and VIPPort make the address under which the mesh offers a service: SERVICE.DOMAIN:PORT.
	Domain     string
	VIPPort    int
	Registerer prometheus.Registerer // nil: metrics are not registered
	Log        *slog.Logger
}

// Insights counts what is in each mesh.
type Insights struct {
	// Set by New, read-only after.
	store    *store.Store
	interval time.Duration
	address  string   // what follows the name of a service
	types    []string // followed
	log      *slog.Logger
	batches  prometheus.Counter
	seconds  prometheus.Histogram

	// Owned by Run, and empty while it does not run: who does not lead keeps nothing.
	lease   store.Lease
	meshes  map[string]*mesh
	dirty   map[string]struct{} // meshes whose insights may differ from what is stored
	scratch []byte
}

// New returns the insights of the meshes in a store. Run counts and stores them: in the one replica of the plane that leads.
func New(o Options) *Insights {
	in := &Insights{
		store: o.Store, interval: o.Interval, address: "." + o.Domain + ":" + strconv.Itoa(o.VIPPort), log: o.Log,
		batches: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: "meridian", Subsystem: "insights", Name: "batches_total", Help: "Batches of changed insights that were stored.",
		}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "meridian", Subsystem: "insights", Name: "update_duration_seconds",
			Help:    "Time from seeing changes to having the insights they make stored.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2.5, 12),
		}),
	}
	in.types = []string{string(resource.Mesh), string(resource.MeshInsight)}
	for _, d := range resource.All() {
		if d.Scope == resource.ScopeMesh {
			in.types = append(in.types, string(d.Name))
		}
	}
	if o.Registerer != nil {
		o.Registerer.MustRegister(in.batches, in.seconds)
	}
	return in
}

// Run keeps the insights true under a lease of the plane, until ctx ends or the lease is found lost, which is the error then. It
// counts everything anew first, so it may be called again under the next lease, but not while another call runs.
func (in *Insights) Run(ctx context.Context, lease store.Lease) error {
	in.lease = lease
	defer in.forget()
	for {
		err := in.follow(ctx)
		switch {
		case errors.Is(err, store.ErrCompacted):
			in.log.InfoContext(ctx, "insights are counted anew: more was deleted at once than is remembered")
		case errors.Is(err, store.ErrFailed):
			// The store has said why. What is stored stays readable; the next process counts anew. Until then this one leads.
			in.log.WarnContext(ctx, "insights are no longer kept: the store refuses writes")
			in.forget()
			<-ctx.Done()
			return nil
		default:
			return err
		}
	}
}

func (in *Insights) forget() { in.meshes, in.dirty, in.scratch = nil, nil, nil }

// follow counts everything, then follows the changes. It returns the error that ended it.
func (in *Insights) follow(ctx context.Context) error {
	snap, begin := in.store.Snapshot(), time.Now()
	in.countAll(snap)
	if err := in.flush(ctx, snap, begin); err != nil {
		return err
	}
	for step, err := range in.store.Watch(ctx, snap.Revision(), in.types...) {
		if err != nil {
			return fmt.Errorf("follow the store: %w", err)
		}
		begin = time.Now()
		for _, c := range step.List {
			in.count(step.Snapshot, c.Key)
		}
		if err := in.flush(ctx, step.Snapshot, begin); err != nil {
			return err
		}
	}
	return nil
}

// countAll counts what is in snap, from nothing.
func (in *Insights) countAll(snap *store.Snapshot) {
	in.meshes, in.dirty = make(map[string]*mesh), make(map[string]struct{})
	// Insights are among the types: what an earlier leader left behind for a mesh that is gone goes.
	for _, typ := range in.types {
		if typ == string(resource.DataplaneInsight) { // counted with its dataplane
			continue
		}
		for rec := range snap.List(typ, "") {
			in.count(snap, rec.Key)
		}
	}
}

// count takes in what snap says of a key that may have changed.
func (in *Insights) count(snap *store.Snapshot, key store.Key) {
	name, changed := key.Mesh, true
	switch resource.Type(key.Type) {
	case resource.Mesh, resource.MeshInsight:
		name = key.Name
	case resource.ServiceInsight: // ours: it may have to be put back
	case resource.Dataplane, resource.DataplaneInsight:
		changed = in.mesh(name).setProxy(key.Name, in.proxy(snap, key))
	default:
		m := in.mesh(name)
		changed = m.setNumber(key.Type, snap.Count(key.Type, name))
		if key.Type == externalService && m.setExternal(key.Name, in.external(snap, key)) {
			changed = true
		}
	}
	if changed {
		in.dirty[name] = struct{}{}
	} else if in.meshes[name].empty() {
		delete(in.meshes, name)
	}
}

func (in *Insights) mesh(name string) *mesh {
	m := in.meshes[name]
	if m == nil {
		m = newMesh()
		in.meshes[name] = m
	}
	return m
}

// proxy is what the dataplane that key names, by itself or by its insight, adds in snap; nil when it is not there.
func (in *Insights) proxy(snap *store.Snapshot, key store.Key) *proxy {
	var dp meshv1.Dataplane
	key.Type = string(resource.Dataplane)
	if !in.read(snap, key, &dp) {
		return nil
	}
	insight := &meshv1.DataplaneInsight{}
	key.Type = string(resource.DataplaneInsight)
	if !in.read(snap, key, insight) {
		insight = nil
	}
	return newProxy(key.Name, &dp, insight, func(service string) string { return service + in.address })
}

func (in *Insights) external(snap *store.Snapshot, key store.Key) *entry {
	var es meshv1.ExternalService
	if !in.read(snap, key, &es) {
		return nil
	}
	return newExternal(key.Name, &es)
}

// read decodes the record of a key. One that cannot be read counts as absent: it stops nothing but itself.
func (in *Insights) read(snap *store.Snapshot, key store.Key, into proto.Message) bool {
	rec, ok := snap.Get(key)
	if !ok {
		return false
	}
	if err := proto.Unmarshal(rec.Spec, into); err != nil {
		in.log.Error("a stored resource cannot be read and is not counted", "type", key.Type, "mesh", key.Mesh, "name", key.Name, "err", err)
		return false
	}
	return true
}

// flush stores the insights that differ from what snap holds, in one batch. After a batch it waits for what is left of
// the interval since begin; what happens meanwhile the store merges into the next step. A batch that fails is tried
// again.
func (in *Insights) flush(ctx context.Context, snap *store.Snapshot, begin time.Time) error {
	for len(in.dirty) > 0 {
		stored, err := in.storeChanged(ctx, snap)
		switch {
		case err != nil && (ctx.Err() != nil || final(err)):
			return err
		case err != nil:
			in.log.WarnContext(ctx, "insights could not be stored and will be again", "err", err)
		case !stored:
			return nil
		default:
			in.batches.Inc()
			in.seconds.Observe(time.Since(begin).Seconds())
		}
		timer := time.NewTimer(in.interval - time.Since(begin))
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("wait for the next batch of insights: %w", ctx.Err())
		}
		begin = time.Now()
	}
	return nil
}

// final reports whether trying again cannot help: the lease or the store is lost.
func final(err error) bool {
	return errors.Is(err, store.ErrLeaseLost) || errors.Is(err, store.ErrFailed) || errors.Is(err, store.ErrClosed)
}

// storeChanged stores the insights of dirty meshes where they differ from snap, and reports whether any did. On success
// nothing is dirty.
func (in *Insights) storeChanged(ctx context.Context, snap *store.Snapshot) (bool, error) {
	var plans []plan
	for _, name := range slices.Sorted(maps.Keys(in.dirty)) {
		p, err := in.plan(snap, name)
		if err != nil {
			return false, err
		}
		if len(p.ops) > 0 {
			plans = append(plans, p)
		}
	}
	if len(plans) > 0 {
		if _, err := in.store.UpdateUnder(ctx, in.lease, func(head *store.Snapshot) ([]store.Op, error) {
			var ops []store.Op
			for _, p := range plans {
				// A mesh that was deleted or made again since snap gets nothing that was counted before; its turn
				// comes with that change.
				if created(head, p.mesh) == p.created {
					ops = append(ops, p.ops...)
				}
			}
			return ops, nil
		}); err != nil {
			return false, fmt.Errorf("store insights: %w", err)
		}
	}
	for name := range in.dirty {
		if m := in.meshes[name]; m != nil && m.empty() && created(snap, name) == 0 {
			delete(in.meshes, name)
		}
	}
	clear(in.dirty)
	return len(plans) > 0, nil
}

// created is the revision that made a mesh; 0 when it is not there.
func created(snap *store.Snapshot, mesh string) store.Revision {
	rec, ok := snap.Get(store.Key{Type: string(resource.Mesh), Name: mesh})
	if !ok {
		return 0
	}
	return rec.CreateRevision
}

// plan is what makes the insights of a mesh true.
type plan struct {
	mesh    string
	created store.Revision // of the mesh it is for
	ops     []store.Op
}

// plan compares what is counted for a mesh with what snap holds.
func (in *Insights) plan(snap *store.Snapshot, name string) (plan, error) {
	p := plan{mesh: name, created: created(snap, name)}
	meshKey := store.Key{Type: string(resource.MeshInsight), Name: name}
	servicesKey := store.Key{Type: string(resource.ServiceInsight), Mesh: name, Name: resource.ServiceInsightName(name)}
	if p.created == 0 {
		for _, key := range []store.Key{meshKey, servicesKey} {
			if rec, ok := snap.Get(key); ok && rec.Origin == "" {
				p.ops = append(p.ops, store.Delete(key))
			}
		}
		return p, nil
	}
	m := in.mesh(name)
	now := time.Now().UTC()
	put := func(key store.Key, spec []byte) {
		rec := &store.Record{Key: key, Spec: spec, Created: now, Modified: now}
		if old, ok := snap.Get(key); ok {
			rec.Created, rec.Labels = old.Created, old.Labels
		}
		p.ops = append(p.ops, store.Put(rec))
	}

	insight := m.meshInsight()
	if same, err := sameMeshInsight(snap, meshKey, insight); err != nil {
		return plan{}, fmt.Errorf("mesh %q: %w", name, err)
	} else if !same {
		insight.LastSync = timestamppb.New(now)
		spec, err := deterministic.Marshal(insight)
		if err != nil {
			return plan{}, fmt.Errorf("encode the insight of mesh %q: %w", name, err)
		}
		put(meshKey, spec)
	}

	var err error
	if in.scratch, err = m.appendServices(in.scratch[:0]); err != nil {
		return plan{}, fmt.Errorf("mesh %q: %w", name, err)
	}
	if old, ok := snap.Get(servicesKey); !ok || !bytes.Equal(old.Spec, in.scratch) {
		put(servicesKey, bytes.Clone(in.scratch))
	}
	return p, nil
}

// sameMeshInsight reports whether the stored insight says what insight says. When it was counted does not matter.
func sameMeshInsight(snap *store.Snapshot, key store.Key, insight *meshv1.MeshInsight) (bool, error) {
	rec, ok := snap.Get(key)
	if !ok {
		return false, nil
	}
	var old meshv1.MeshInsight
	_ = proto.Unmarshal(rec.Spec, &old) // what cannot be read differs below, and is replaced
	insight.LastSync = old.GetLastSync()
	spec, err := deterministic.Marshal(insight)
	if err != nil {
		return false, fmt.Errorf("encode the insight: %w", err)
	}
	return bytes.Equal(spec, rec.Spec), nil
}
