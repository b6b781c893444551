package server

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"sync"

	"github.com/meridian-mesh/meridian/api/codec"
	proxies "github.com/meridian-mesh/meridian/api/dataplane"
	"github.com/meridian-mesh/meridian/api/inspect"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/vips"
	"github.com/meridian-mesh/meridian/common/store"
)

// inspected keeps the meshes that were asked about, decoded, and keeps them up with the store: a request after a write costs as
// much as that write, not as much as the mesh. A mesh that is gone is dropped with the next request.
type inspected struct {
	// Set by newInspected, read-only after.
	store *store.Store
	plane resource.Plane
	vips  vips.Config
	log   *slog.Logger

	mu     sync.Mutex // guards what follows
	meshes map[string]*inspectedMesh
	swept  store.Revision // meshes that were deleted until then are dropped
}

func newInspected(o *Options, log *slog.Logger) *inspected {
	c := vips.DefaultConfig()
	if o.DNSDomain != "" {
		c.Domain = o.DNSDomain
	}
	if o.ServiceVIPPort != 0 {
		c.ServiceVIPPort = o.ServiceVIPPort
	}
	return &inspected{store: o.Store, plane: o.Plane, vips: c, log: log, meshes: make(map[string]*inspectedMesh)}
}

// meshView is a mesh at one revision. It never changes, and is safe for concurrent use.
type meshView struct {
	snap     *store.Snapshot
	spec     *meshv1.Mesh
	policies *policy.Set
	from     *inspectedMesh
}

// inspectedMesh is what is decoded of a mesh.
type inspectedMesh struct {
	*inspected
	name string

	mu     sync.Mutex // guards what follows; held while something is decoded, which is in no one's interest to do twice
	spec   decoded[*meshv1.Mesh]
	set    *policy.Set    // nil: not decoded yet
	setAt  store.Revision // the revision that set is of
	dps    proxyList
	stored storedVIPs
	names  computedVIPs
}

// decoded is a record and its specification.
type decoded[M any] struct {
	rec  *store.Record
	spec M
}

// at returns a mesh as it is now; false when there is no such mesh.
func (in *inspected) at(ctx context.Context, mesh string) (*meshView, bool, error) {
	m := in.entry(mesh)
	if m == nil {
		return nil, false, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	snap := in.store.Snapshot()
	rec, ok := snap.Get(store.Key{Type: string(resource.Mesh), Name: mesh})
	if !ok {
		return nil, false, nil
	}
	if m.spec.rec != rec {
		spec, err := codec.SpecOf[*meshv1.Mesh](rec)
		if err != nil {
			return nil, false, fmt.Errorf("read %s: %w", rec.Key, err)
		}
		m.spec = decoded[*meshv1.Mesh]{rec, spec}
	}
	m.follow(ctx, snap)
	return &meshView{snap, m.spec.spec, m.set, m}, true, nil
}

// entry returns what is kept of a mesh, which there must be; else nil. It drops what is kept of meshes that are gone.
func (in *inspected) entry(mesh string) *inspectedMesh {
	in.mu.Lock()
	defer in.mu.Unlock()
	snap := in.store.Snapshot()
	if last := snap.LastChange(string(resource.Mesh)); last != in.swept {
		for name := range in.meshes {
			if !hasMesh(snap, name) {
				delete(in.meshes, name)
			}
		}
		in.swept = last
	}
	m := in.meshes[mesh]
	if m == nil && hasMesh(snap, mesh) {
		m = &inspectedMesh{inspected: in, name: mesh}
		in.meshes[mesh] = m
	}
	return m
}

// follow brings the policies up to the snapshot.
func (m *inspectedMesh) follow(ctx context.Context, snap *store.Snapshot) {
	changes, err := m.changes(snap)
	var errs []error
	if m.set == nil || err != nil { // too much has happened to be told change by change
		m.set, errs = policy.NewSet(m.name, m.records(snap))
	} else {
		m.set, errs = m.set.With(changes...)
	}
	m.setAt = snap.Revision()
	for _, err := range errs {
		m.log.ErrorContext(ctx, "a stored policy cannot be read and counts as absent", "mesh", m.name, "err", err)
	}
}

func (m *inspectedMesh) changes(snap *store.Snapshot) ([]store.Change, error) {
	var changes []store.Change
	for _, t := range policy.Types() {
		since, err := snap.Changes(string(t), m.setAt)
		if err != nil {
			return nil, err
		}
		changes = slices.AppendSeq(changes, since)
	}
	return changes, nil
}

func (m *inspectedMesh) records(snap *store.Snapshot) iter.Seq[*store.Record] {
	return func(yield func(*store.Record) bool) {
		for _, t := range policy.Types() {
			for rec := range snap.List(string(t), m.name) {
				if !yield(rec) {
					return
				}
			}
		}
	}
}

// proxyList are the proxies of a mesh, decoded.
type proxyList struct {
	at     store.Revision // the last change of any Dataplane
	byName map[string]decoded[*meshv1.Dataplane]
	sorted []decoded[*meshv1.Dataplane]
}

// proxies returns the proxies of the mesh, sorted by name. Those that cannot be read are left out.
func (v *meshView) proxies(ctx context.Context) []decoded[*meshv1.Dataplane] {
	v.from.mu.Lock()
	defer v.from.mu.Unlock()
	return v.proxiesLocked(ctx)
}

// proxiesLocked decodes only what was not decoded before: a record never changes.
func (v *meshView) proxiesLocked(ctx context.Context) []decoded[*meshv1.Dataplane] {
	l := &v.from.dps
	last := v.snap.LastChange(string(resource.Dataplane))
	if l.byName != nil && l.at == last {
		return l.sorted
	}
	next := proxyList{at: last, byName: make(map[string]decoded[*meshv1.Dataplane], len(l.byName))}
	for rec := range v.snap.List(string(resource.Dataplane), v.from.name) {
		d := l.byName[rec.Key.Name]
		if d.rec != rec {
			spec, err := codec.SpecOf[*meshv1.Dataplane](rec)
			if err != nil {
				v.from.log.ErrorContext(ctx, "a stored dataplane cannot be read and counts as absent", "mesh", v.from.name, "err", err)
				continue
			}
			d = decoded[*meshv1.Dataplane]{rec, spec}
		}
		next.byName[rec.Key.Name] = d
		next.sorted = append(next.sorted, d)
	}
	*l = next
	return l.sorted
}

// each calls f with the proxies of the mesh, in the order of their names. It stops with an error when ctx ends: in a large mesh it takes
// a while, and its client may have gone.
func (v *meshView) each(ctx context.Context, f func(*inspect.Proxy)) error {
	for _, d := range v.proxies(ctx) {
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("look at the proxies of mesh %q: %w", v.from.name, err)
		}
		p := v.proxy(ctx, d)
		f(&p)
	}
	return nil
}

// proxy is a proxy of the mesh as inspection takes it.
func (v *meshView) proxy(ctx context.Context, d decoded[*meshv1.Dataplane]) inspect.Proxy {
	p := inspect.Proxy{Name: d.rec.Key.Name, Dataplane: d.spec}
	if proxies.Transparent(d.spec) && !p.IsBuiltinGateway() {
		p.VIPs = v.vips(ctx, d.rec.Origin)
	}
	return p
}

const externalService = "ExternalService"

// storedVIPs are the virtual addresses that a zone has written.
type storedVIPs struct {
	rec  *store.Record // nil: none were read
	vips []proxies.VIP
}

// computedVIPs stand for virtual addresses that are known in their zones only.
type computedVIPs struct {
	from   [3]store.Revision // the last changes of what they are computed from
	mesh   *meshv1.Mesh
	byZone map[string][]proxies.VIP // "": of all zones
}

// vips returns the virtual addresses of the mesh, as the proxies of a zone have them; "" is the plane's own zone.
func (v *meshView) vips(ctx context.Context, zone string) []proxies.VIP {
	v.from.mu.Lock()
	defer v.from.mu.Unlock()
	if v.from.plane == resource.Zone {
		return v.storedVIPsLocked(ctx)
	}
	return v.computedVIPsLocked(ctx, zone)
}

// storedVIPsLocked are what the zone has given: its proxies are configured with these.
func (v *meshView) storedVIPsLocked(ctx context.Context) []proxies.VIP {
	rec, ok := v.snap.Get(store.Key{Type: string(resource.Config), Name: vips.ConfigName(v.from.name)})
	if !ok {
		return nil
	}
	kept := &v.from.stored
	if kept.rec == rec {
		return kept.vips
	}
	*kept = storedVIPs{rec: rec}
	config, err := codec.SpecOf[*systemv1.Config](rec)
	var table vips.Table
	if err == nil {
		table, err = vips.Parse(config.GetConfig())
	}
	if err != nil {
		v.from.log.ErrorContext(ctx, "the virtual addresses of a mesh cannot be read", "mesh", v.from.name, "err", err)
		return nil
	}
	kept.vips = table.VIPs(v.from.vips.Domain, v.from.vips.ServiceVIPPort)
	return kept.vips
}

// computedVIPsLocked has the host names instead of the addresses, which the global does not know: each zone gives its own. What
// has a name follows from what the global does know. Services of other zones can be reached with mutual TLS only.
func (v *meshView) computedVIPsLocked(ctx context.Context, zone string) []proxies.VIP {
	everywhere := v.spec.GetMtls().GetEnabledBackend() != ""
	if everywhere {
		zone = ""
	}
	kept := &v.from.names
	from := [...]store.Revision{
		v.snap.LastChange(string(resource.Dataplane)), v.snap.LastChange(externalService),
		v.snap.LastChange(string(policy.VirtualOutbound)),
	}
	if kept.from != from || kept.mesh != v.spec {
		*kept = computedVIPs{from: from, mesh: v.spec, byZone: make(map[string][]proxies.VIP)}
	}
	if found, ok := kept.byZone[zone]; ok {
		return found
	}
	in := vips.Input{
		Config: v.from.vips, ExternalServices: make(map[string]*meshv1.ExternalService),
		VirtualOutbounds: make(map[string]*meshv1.VirtualOutbound),
	}
	for _, d := range v.proxiesLocked(ctx) {
		if everywhere || d.rec.Origin == zone {
			in.Services = append(in.Services, vips.TagSets(d.spec)...)
		}
	}
	for rec := range v.snap.List(externalService, v.from.name) {
		if es, err := codec.SpecOf[*meshv1.ExternalService](rec); err == nil { // else it has no name either
			in.ExternalServices[rec.Key.Name] = es
		}
	}
	for _, p := range v.policies.Of(policy.VirtualOutbound) {
		in.VirtualOutbounds[p.Name], _ = p.Spec.(*meshv1.VirtualOutbound)
	}
	table, _ := vips.Compute(nil, in) // what has no name is the zone's to tell
	all := table.VIPs(in.Domain, in.ServiceVIPPort)
	for i, a := range all {
		if len(a.Hostnames) > 0 {
			all[i].Address = a.Hostnames[0]
		}
	}
	kept.byZone[zone] = all
	return all
}
