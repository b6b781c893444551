package topology

import (
	"bytes"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/meridian-mesh/meridian/api/dataplane"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// Names of what a World reads and has no other part in the code.
const (
	externalService = "ExternalService"
	adminCA         = "envoy-admin-ca"
	zoneTag         = "kuma.io/zone"
)

// Types are the types of resources that a World is made from.
func Types() []string {
	types := []string{
		string(resource.Mesh), string(resource.Secret), string(resource.GlobalSecret), string(resource.Dataplane), string(resource.ZoneIngress),
		string(resource.ZoneEgress), string(resource.ServiceInsight),
	}
	types = append(types, externalService)
	for _, t := range policy.Types() {
		types = append(types, string(t))
	}
	return types
}

// Ingress is a zone ingress: of this zone, or how another zone is reached.
type Ingress struct {
	Name   string
	Remote bool
	Spec   *meshv1.ZoneIngress
}

// Egress is a zone egress of this zone.
type Egress struct {
	Name string
	Spec *meshv1.ZoneEgress
}

// World is all that a zone knows. It belongs to one goroutine. What it returns may be read by others until that goroutine calls
// Apply or SetAddresses again; a World never calls out and never waits.
//
// Whatever the order of the changes that led to a state, the World of that state is the same as one made from it at once.
type World struct {
	zone string
	log  *slog.Logger

	meshes    map[string]*mesh
	ingresses map[string]*Ingress
	egresses  map[string]*Egress
	adminCA   []byte

	addresses map[string]string                  // of host names, as far as they are resolved
	hosts     map[string]map[serviceKey]struct{} // host names, and which services need them
	available map[availableKey]*availableService // what the zone offers to others, except for external services
	touched   map[serviceKey]struct{}            // services that have to be put together again
}

type serviceKey struct{ mesh, service string }

// mesh is a mesh with what its services are put together from. It exists while anything of it does, also when the Mesh does not.
type mesh struct {
	Mesh
	parts   map[string]*parts // by service
	insight *meshv1.ServiceInsight
	pending []store.Change // of policies, until the end of Apply
}

// parts are what a service consists of.
type parts struct {
	local    map[string][]*meshv1.Dataplane_Networking_Inbound // by name of the dataplane
	remote   map[string]*Ingress                               // by name of the ingress
	beyond   map[string]*Ingress                               // those that lead to external services
	external map[string]*meshv1.ExternalService                // by name of the resource
	hosts    []string                                          // that its endpoints have for addresses
}

func (p *parts) empty() bool {
	return len(p.local) == 0 && len(p.remote) == 0 && len(p.beyond) == 0 && len(p.external) == 0
}

// New returns an empty World of a zone. log is told of resources that cannot be read.
func New(zone string, log *slog.Logger) *World {
	return &World{
		zone: zone, log: log, meshes: make(map[string]*mesh), ingresses: make(map[string]*Ingress), egresses: make(map[string]*Egress),
		addresses: make(map[string]string), hosts: make(map[string]map[serviceKey]struct{}),
		available: make(map[availableKey]*availableService), touched: make(map[serviceKey]struct{}),
	}
}

// Load takes in a whole snapshot. The World must be empty.
func (w *World) Load(snap *store.Snapshot) {
	var all []store.Change
	for _, typ := range Types() {
		for rec := range snap.List(typ, "") {
			all = append(all, store.Change{Key: rec.Key, Record: rec, Origin: rec.Origin})
		}
	}
	w.Apply(all)
}

// Zone is the name of this zone.
func (w *World) Zone() string { return w.zone }

// Mesh returns a mesh, nil when it is not there.
func (w *World) Mesh(name string) *Mesh {
	m := w.meshes[name]
	if m == nil || m.Spec == nil {
		return nil
	}
	return &m.Mesh
}

// Meshes returns the meshes in the order of their names.
func (w *World) Meshes() []*Mesh {
	var out []*Mesh
	for _, name := range slices.Sorted(maps.Keys(w.meshes)) {
		if m := w.Mesh(name); m != nil {
			out = append(out, m)
		}
	}
	return out
}

// Ingress returns a zone ingress, nil when it is not there.
func (w *World) Ingress(name string) *Ingress { return w.ingresses[name] }

// Ingresses returns the zone ingresses, those of other zones included, in the order of their names.
func (w *World) Ingresses() []*Ingress { return inOrder(w.ingresses) }

// Egress returns a zone egress of this zone, nil when it is not there.
func (w *World) Egress(name string) *Egress { return w.egresses[name] }

// Egresses returns the zone egresses of this zone in the order of their names.
func (w *World) Egresses() []*Egress { return inOrder(w.egresses) }

func inOrder[T any](m map[string]*T) []*T {
	out := make([]*T, 0, len(m))
	for _, name := range slices.Sorted(maps.Keys(m)) {
		out = append(out, m[name])
	}
	return out
}

// AdminCA is the content of the secret with the authority of the proxies' administration; nil when the zone has none.
func (w *World) AdminCA() []byte { return w.adminCA }

// Hosts returns the host names that stand for addresses of endpoints, in order. Until SetAddresses has told its address an
// endpoint is left out: what comes by EDS must be an address.
func (w *World) Hosts() []string { return slices.Sorted(maps.Keys(w.hosts)) }

// Address returns what SetAddresses has told of a host name; "" while it has not.
func (w *World) Address(host string) string { return w.addresses[strings.ToLower(host)] }

// Apply takes in changes of the store and says what of the World is another now.
func (w *World) Apply(changes []store.Change) *Dirty {
	d := newDirty()
	for _, c := range changes {
		w.apply(c, d)
	}
	w.settle(d)
	return d
}

// SetAddresses tells the addresses of host names; names that are not in it are unknown from now on.
func (w *World) SetAddresses(byHost map[string]string) *Dirty {
	d := newDirty()
	old := w.addresses
	w.addresses = maps.Clone(byHost)
	for host, users := range w.hosts {
		if old[host] == w.addresses[host] {
			continue
		}
		for key := range users {
			w.touch(key.mesh, key.service)
		}
	}
	w.settle(d)
	return d
}

// SetVIPs tells the virtual addresses of a mesh, which follow from the rest of it and from what they were.
func (w *World) SetVIPs(meshName string, vips []dataplane.VIP) *Dirty {
	d := newDirty()
	if m := w.meshes[meshName]; m != nil && !slices.EqualFunc(m.VIPs, vips, dataplane.VIP.Equal) {
		m.VIPs = vips
		d.mesh(meshName).VIPs = true
	}
	return d
}

func (w *World) apply(c store.Change, d *Dirty) {
	if c.Key.Mesh != "" {
		d.mesh(c.Key.Mesh) // looked at in the end, whether or not something is different
	}
	switch typ := resource.Type(c.Key.Type); typ {
	case resource.Mesh:
		w.setMesh(c.Key.Name, read[meshv1.Mesh](w, c), d)
	case resource.Dataplane:
		w.setDataplane(c.Key.Mesh, c.Key.Name, read[meshv1.Dataplane](w, c), d)
	case externalService:
		w.setExternal(c.Key.Mesh, c.Key.Name, read[meshv1.ExternalService](w, c), d)
	case resource.ServiceInsight:
		if c.Key.Name == resource.ServiceInsightName(c.Key.Mesh) {
			w.setInsight(c.Key.Mesh, read[meshv1.ServiceInsight](w, c))
		}
	case resource.ZoneIngress:
		w.setIngress(c.Key.Name, read[meshv1.ZoneIngress](w, c), d)
	case resource.ZoneEgress:
		w.setEgress(c.Key.Name, read[meshv1.ZoneEgress](w, c), d)
	case resource.Secret:
		w.setSecret(c.Key.Mesh, c.Key.Name, read[systemv1.Secret](w, c), d)
	case resource.GlobalSecret:
		if c.Key.Name == adminCA {
			data := read[systemv1.Secret](w, c).GetData().GetValue()
			d.AdminCA = d.AdminCA || !bytes.Equal(data, w.adminCA)
			w.adminCA = data
		}
	default:
		if policy.Holds(typ) {
			w.setPolicy(c)
		}
	}
}

// message is a pointer to a T that is a message.
type message[T any] interface {
	*T
	proto.Message
}

// read decodes what a change puts; nil when it deletes. What cannot be read counts as absent: it stops nothing but itself.
func read[T any, M message[T]](w *World, c store.Change) M {
	if c.Record == nil {
		return nil
	}
	m := M(new(T))
	if err := proto.Unmarshal(c.Record.Spec, m); err != nil {
		w.log.Error("a stored resource cannot be read and counts as absent", "type", c.Key.Type, "mesh", c.Key.Mesh, "name", c.Key.Name, "err", err)
		return nil
	}
	return m
}

// of returns the mesh of a name, made when it is not there.
func (w *World) of(name string) *mesh {
	m := w.meshes[name]
	if m == nil {
		none, _ := policy.NewSet(name, func(func(*store.Record) bool) {})
		m = &mesh{parts: make(map[string]*parts), Mesh: Mesh{
			Name: name, Policies: none, Services: make(map[string]*Service), Remote: make(map[string][]Endpoint),
			Dataplanes: make(map[string]*meshv1.Dataplane), ExternalServices: make(map[string]*meshv1.ExternalService),
			Secrets: make(map[string][]byte),
		}}
		w.meshes[name] = m
	}
	return m
}

func (m *mesh) of(service string) *parts {
	p := m.parts[service]
	if p == nil {
		p = &parts{
			local: make(map[string][]*meshv1.Dataplane_Networking_Inbound), remote: make(map[string]*Ingress),
			beyond: make(map[string]*Ingress), external: make(map[string]*meshv1.ExternalService),
		}
		m.parts[service] = p
	}
	return p
}

func (w *World) touch(mesh, service string) { w.touched[serviceKey{mesh, service}] = struct{}{} }

func (w *World) touchAll(m *mesh) {
	for service := range m.parts {
		w.touch(m.Name, service)
	}
}

func (w *World) setMesh(name string, spec *meshv1.Mesh, d *Dirty) {
	m := w.of(name)
	if spec != nil && m.Spec != nil && proto.Equal(m.Spec, spec) {
		return
	}
	m.Spec, m.Egress = spec, spec.GetRouting().GetZoneEgress()
	d.mesh(name).Whole = true
	d.Available = true // external services are offered where the mesh uses egresses
	w.touchAll(m)
}

func (w *World) setDataplane(meshName, name string, dp *meshv1.Dataplane, d *Dirty) {
	m := w.of(meshName)
	old := m.Dataplanes[name]
	if old == nil && dp == nil || old != nil && dp != nil && proto.Equal(old, dp) {
		return
	}
	d.mesh(meshName).Dataplanes[name] = struct{}{}
	if !slices.EqualFunc(old.GetNetworking().GetInbound(), dp.GetNetworking().GetInbound(), func(a, b *meshv1.Dataplane_Networking_Inbound) bool {
		return a.GetPort() == b.GetPort() && maps.Equal(a.GetTags(), b.GetTags())
	}) {
		d.mesh(meshName).Tags = true
	}
	for _, in := range old.GetNetworking().GetInbound() {
		service := dataplane.Service(in.GetTags())
		if service == "" {
			continue
		}
		delete(m.of(service).local, name)
		w.touch(meshName, service)
		w.offer(meshName, in, -1, d)
	}
	if dp == nil {
		delete(m.Dataplanes, name)
		return
	}
	m.Dataplanes[name] = dp
	for _, in := range dp.GetNetworking().GetInbound() {
		service := dataplane.Service(in.GetTags())
		if service == "" {
			continue
		}
		p := m.of(service)
		p.local[name] = append(p.local[name], in)
		w.touch(meshName, service)
		w.offer(meshName, in, 1, d)
	}
}

func (w *World) setExternal(meshName, name string, es *meshv1.ExternalService, d *Dirty) {
	m := w.of(meshName)
	d.Available, d.mesh(meshName).Externals = true, true
	if old := m.ExternalServices[name]; old != nil {
		if service := dataplane.Service(old.GetTags()); service != "" {
			delete(m.of(service).external, name)
			w.touch(meshName, service)
		}
		delete(m.ExternalServices, name)
	}
	if es == nil {
		return
	}
	m.ExternalServices[name] = es
	if service := dataplane.Service(es.GetTags()); service != "" {
		m.of(service).external[name] = es
		w.touch(meshName, service)
	}
}

func (w *World) setInsight(meshName string, insight *meshv1.ServiceInsight) {
	m := w.of(meshName)
	old := m.insight
	m.insight = insight
	if m.Spec.GetMtls().GetEnabledBackend() == "" {
		return
	}
	for service := range m.parts {
		if !proto.Equal(old.GetServices()[service], insight.GetServices()[service]) {
			w.touch(meshName, service)
		}
	}
}

func (w *World) setIngress(name string, spec *meshv1.ZoneIngress, d *Dirty) {
	old := w.ingresses[name]
	if old == nil && spec == nil || old != nil && spec != nil && proto.Equal(old.Spec, spec) {
		return
	}
	d.Ingresses[name] = struct{}{}
	before, after := w.listed(old), map[serviceKey]listing(nil)
	weights := make(map[string]uint32)
	for key := range before {
		weights[key.mesh] = w.spread(w.of(key.mesh))
		p := w.of(key.mesh).of(key.service)
		delete(p.remote, name)
		delete(p.beyond, name)
	}
	delete(w.ingresses, name)
	if spec != nil {
		in := &Ingress{Name: name, Spec: spec, Remote: spec.GetZone() != "" && spec.GetZone() != w.zone}
		after = w.listed(in)
		for key, l := range after {
			if _, counted := weights[key.mesh]; !counted {
				weights[key.mesh] = w.spread(w.of(key.mesh))
			}
			p := w.of(key.mesh).of(key.service)
			if l.instances != "" {
				p.remote[name] = in
			}
			if l.externals != "" {
				p.beyond[name] = in
			}
		}
		w.ingresses[name] = in
	}
	for _, keys := range []map[serviceKey]listing{before, after} {
		for key := range keys {
			if before[key] != after[key] {
				w.touch(key.mesh, key.service)
			}
		}
	}
	for name, weight := range weights {
		if m := w.of(name); w.spread(m) != weight {
			w.touchAll(m) // it is the weight of all that is here
		}
	}
}

// listing is all that endpoints of a service at an ingress are made from: of its instances, and of external services.
type listing struct{ instances, externals string }

// listed are the services behind an ingress of another zone.
func (w *World) listed(in *Ingress) map[serviceKey]listing {
	if in == nil || !in.Remote {
		return nil
	}
	n := in.Spec.GetNetworking()
	out := make(map[serviceKey]listing)
	for _, s := range in.Spec.GetAvailableServices() {
		service := dataplane.Service(s.GetTags())
		if service == "" || s.GetMesh() == "" {
			continue
		}
		key := serviceKey{s.GetMesh(), service}
		l := out[key]
		text := fmt.Sprintf("%s:%d %s %d %s\n",
			n.GetAdvertisedAddress(), n.GetAdvertisedPort(), in.Spec.GetZone(), s.GetInstances(), tagString(s.GetTags()))
		if s.GetExternalService() {
			l.externals += text
		} else {
			l.instances += text
		}
		out[key] = l
	}
	return out
}

func (w *World) setEgress(name string, spec *meshv1.ZoneEgress, d *Dirty) {
	old := w.egresses[name]
	if zone := spec.GetZone(); zone != "" && zone != w.zone {
		spec = nil
	}
	if old == nil && spec == nil {
		return
	}
	d.Egresses[name] = struct{}{}
	if spec == nil {
		delete(w.egresses, name)
	} else {
		w.egresses[name] = &Egress{Name: name, Spec: spec}
	}
	if old != nil && proto.Equal(old.Spec.GetNetworking(), spec.GetNetworking()) {
		return
	}
	for _, m := range w.meshes {
		if !m.Egress {
			continue
		}
		for service, p := range m.parts {
			if len(p.remote)+len(p.external) > 0 {
				w.touch(m.Name, service)
			}
		}
	}
}

func (w *World) setSecret(meshName, name string, secret *systemv1.Secret, d *Dirty) {
	m := w.of(meshName)
	old, had := m.Secrets[name]
	data := secret.GetData().GetValue()
	if secret == nil {
		if !had {
			return
		}
		delete(m.Secrets, name)
	} else {
		if had && bytes.Equal(old, data) {
			return
		}
		m.Secrets[name] = data
	}
	d.mesh(meshName).Secrets[name] = struct{}{}
}

// settle puts together again what the changes touched, and forgets what nothing is left of.
func (w *World) settle(d *Dirty) {
	weights := make(map[string]uint32)
	for key := range w.touched {
		m := w.meshes[key.mesh]
		weight, counted := weights[key.mesh]
		if !counted {
			weight = w.spread(m)
			weights[key.mesh] = weight
		}
		w.assemble(m, key.service, weight, d.mesh(key.mesh))
	}
	clear(w.touched)
	w.settlePolicies(d)
	for name, md := range d.Meshes {
		if md.empty() {
			delete(d.Meshes, name)
		}
		if w.meshes[name].empty() {
			delete(w.meshes, name)
		}
	}
}

func (m *mesh) empty() bool {
	return m != nil && m.Spec == nil && m.insight == nil && len(m.parts) == 0 && len(m.Dataplanes) == 0 && len(m.ExternalServices) == 0 &&
		len(m.Secrets) == 0 && m.noPolicies()
}

// assemble puts a service together and notes what is new of it.
func (w *World) assemble(m *mesh, name string, weight uint32, d *MeshDirty) {
	old, p := m.Services[name], m.parts[name]
	for _, host := range p.hosts {
		delete(w.hosts[host], serviceKey{m.Name, name})
		if len(w.hosts[host]) == 0 {
			delete(w.hosts, host)
		}
	}
	p.hosts = p.hosts[:0]
	a := assembly{world: w, mesh: m, parts: p, weight: weight, name: name}
	a.run()
	for _, host := range p.hosts {
		if w.hosts[host] == nil {
			w.hosts[host] = make(map[serviceKey]struct{})
		}
		w.hosts[host][serviceKey{m.Name, name}] = struct{}{}
	}
	if p.empty() {
		delete(m.parts, name)
	}
	if !slices.EqualFunc(m.Remote[name], a.remote, Endpoint.equal) {
		d.Remote[name] = struct{}{}
		if m.Remote[name] = a.remote; len(a.remote) == 0 {
			delete(m.Remote, name)
		}
	}
	switch s := a.service; {
	case s == nil && old == nil:
	case s == nil:
		delete(m.Services, name)
		d.Services[name] = struct{}{}
	case old == nil:
		m.Services[name] = s
		d.Services[name] = struct{}{}
	default:
		sameEndpoints := slices.EqualFunc(old.Endpoints, s.Endpoints, Endpoint.equal)
		// Of a service without a protocol it matters whether there is anything at all.
		appeared := s.Protocol == "" && (len(old.Endpoints) == 0) != (len(s.Endpoints) == 0)
		if appeared || old.Protocol != s.Protocol || old.TLSReady != s.TLSReady || old.Outside != s.Outside || old.Local != s.Local ||
			old.Proxyless() != s.Proxyless() || !sameEndpoints && (inline(old) || inline(s)) {
			d.Services[name] = struct{}{}
		} else if sameEndpoints {
			return // the old one stays, so that what was made from it does
		}
		if !sameEndpoints {
			d.Endpoints[name] = struct{}{}
		}
		m.Services[name] = s
	}
}

// inline reports whether a service has endpoints that are written into its clusters, rather than sent by EDS.
func inline(s *Service) bool {
	return slices.ContainsFunc(s.Endpoints, func(e Endpoint) bool { return e.External != nil && !e.ViaEgress })
}

// spread is how many ingresses of other zones a mesh is spread over, by their coordinates: several of the same are one
// behind a load balancer. It is at least 1.
func (w *World) spread(m *mesh) uint32 {
	if m.Spec.GetMtls().GetEnabledBackend() == "" {
		return 1
	}
	at := make(map[string]struct{})
	for _, in := range w.ingresses {
		n := in.Spec.GetNetworking()
		if !in.Remote || n.GetAdvertisedAddress() == "" || n.GetAdvertisedPort() == 0 {
			continue
		}
		if slices.ContainsFunc(in.Spec.GetAvailableServices(), func(s *meshv1.ZoneIngress_AvailableService) bool {
			return s.GetMesh() == m.Name && !s.GetExternalService()
		}) {
			at[fmt.Sprintf("%s:%d", n.GetAdvertisedAddress(), n.GetAdvertisedPort())] = struct{}{}
		}
	}
	return uint32(max(len(at), 1))
}

// resolve returns the address that stands for a host, which may be one; "" while it is not known.
func (a *assembly) resolve(host string) string {
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.String()
	}
	host = strings.ToLower(host)
	if host == "" {
		return ""
	}
	if !slices.Contains(a.parts.hosts, host) {
		a.parts.hosts = append(a.parts.hosts, host)
	}
	return a.world.addresses[host]
}
