package insights

import (
	"cmp"
	"slices"
	"strings"

	"github.com/meridian-mesh/meridian/api/dataplane"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

// unknown stands for a version or a backend that a proxy did not tell.
const unknown = "unknown"

// stat counts proxies by [dataplane.Status].
type stat [3]int

// tally is a stat by name. A name that counts nothing is not in it.
type tally map[string]stat

func (t tally) add(name string, status dataplane.Status, n int) {
	s := t[name]
	s[status] += n
	if s == (stat{}) {
		delete(t, name)
		return
	}
	t[name] = s
}

// mesh is the counters of one mesh. It may count what zones have in a mesh that is not there, or not yet.
type mesh struct {
	proxies   map[string]*proxy // by name of the Dataplane
	externals map[string]*entry // by name of the ExternalService
	numbers   map[string]int    // of the resources of each further type, external services among them; none are 0

	all, standard, gateway stat
	kumaDP, envoy          tally
	issued, supported      tally

	services map[string]*service
	names    []string // of the services, sorted
	internal int      // services that have a proxy
}

func newMesh() *mesh {
	return &mesh{
		proxies: make(map[string]*proxy), externals: make(map[string]*entry), numbers: make(map[string]int),
		kumaDP: make(tally), envoy: make(tally), issued: make(tally), supported: make(tally),
		services: make(map[string]*service),
	}
}

// empty reports whether nothing is counted.
func (m *mesh) empty() bool {
	return len(m.proxies) == 0 && len(m.externals) == 0 && len(m.numbers) == 0
}

// setNumber tells how many resources of a type there are, and reports whether that is news.
func (m *mesh) setNumber(typ string, n int) bool {
	if m.numbers[typ] == n {
		return false
	}
	if n == 0 {
		delete(m.numbers, typ)
	} else {
		m.numbers[typ] = n
	}
	return true
}

// proxy is what one dataplane adds to the counters of its mesh.
type proxy struct {
	status        dataplane.Status
	gateway       bool
	kumaDP, envoy string
	secured       bool // it has an identity: issued and supported mean something
	issued        string
	supported     []string
	entries       []*entry
}

func (p *proxy) equal(o *proxy) bool {
	return p.status == o.status && p.gateway == o.gateway && p.kumaDP == o.kumaDP && p.envoy == o.envoy &&
		p.secured == o.secured && p.issued == o.issued && slices.Equal(p.supported, o.supported) &&
		slices.EqualFunc(p.entries, o.entries, func(a, b *entry) bool { return *a == *b })
}

// entry is one place where a service is offered: an inbound, a gateway, or an external service.
type entry struct {
	service string
	kind    meshv1.ServiceInsight_Service_Type
	address string
	status  dataplane.Status
	issued  string // backend of the proxy's identity; empty when it has none

	// name and index are where the entry comes from: the n-th of a Dataplane or an ExternalService.
	name  string
	index int
}

func (e *entry) external() bool { return e.kind == meshv1.ServiceInsight_Service_external }

// compare orders entries as a walk over the mesh meets them: dataplanes by name, then external services by name.
func (e *entry) compare(o *entry) int {
	if e.external() != o.external() {
		if o.external() {
			return -1
		}
		return 1
	}
	return cmp.Or(strings.Compare(e.name, o.name), cmp.Compare(e.index, o.index))
}

// newProxy is what a dataplane of the given name adds. insight is nil when nothing is known of its proxy. addressOf
// tells where the mesh makes a service reachable.
func newProxy(name string, dp *meshv1.Dataplane, insight *meshv1.DataplaneInsight, addressOf func(service string) string) *proxy {
	version := dataplane.LastVersion(insight)
	p := &proxy{
		status:  dataplane.StatusOf(dp, insight),
		gateway: dp.GetNetworking().GetGateway() != nil,
		kumaDP:  cmp.Or(version.GetKumaDp().GetVersion(), unknown),
		envoy:   cmp.Or(version.GetEnvoy().GetVersion(), unknown),
		secured: insight.GetMTLS() != nil,
		issued:  insight.GetMTLS().GetIssuedBackend(),
	}
	if s := insight.GetMTLS().GetSupportedBackends(); len(s) > 0 {
		p.supported = slices.Clone(s)
		slices.Sort(p.supported)
		p.supported = slices.Compact(p.supported)
	}
	offer := func(service string, kind meshv1.ServiceInsight_Service_Type, address string) {
		p.entries = append(p.entries, &entry{
			service: service, kind: kind, address: address, status: p.status, issued: p.issued, name: name, index: len(p.entries),
		})
	}
	if g := dp.GetNetworking().GetGateway(); g != nil {
		kind := meshv1.ServiceInsight_Service_gateway_delegated
		if g.GetType() == meshv1.Dataplane_Networking_Gateway_BUILTIN {
			kind = meshv1.ServiceInsight_Service_gateway_builtin
		}
		if service := dataplane.Service(g.GetTags()); service != "" {
			offer(service, kind, "")
		}
	}
	for _, in := range dp.GetNetworking().GetInbound() {
		if service := dataplane.Service(in.GetTags()); service != "" {
			offer(service, meshv1.ServiceInsight_Service_internal, addressOf(service))
		}
	}
	return p
}

// setProxy replaces what the dataplane of a name adds; nil when it is gone. It reports whether that changes anything.
func (m *mesh) setProxy(name string, p *proxy) bool {
	old := m.proxies[name]
	switch {
	case old == nil && p == nil, old != nil && p != nil && old.equal(p):
		return false
	}
	if old != nil {
		m.count(old, -1)
		delete(m.proxies, name)
	}
	if p != nil {
		m.count(p, 1)
		m.proxies[name] = p
	}
	return true
}

// count adds p n times.
func (m *mesh) count(p *proxy, n int) {
	m.all[p.status] += n
	if p.gateway {
		m.gateway[p.status] += n
	} else {
		m.standard[p.status] += n
	}
	m.kumaDP.add(p.kumaDP, p.status, n)
	m.envoy.add(p.envoy, p.status, n)
	if p.secured {
		m.issued.add(cmp.Or(p.issued, unknown), p.status, n)
		for _, b := range p.supported {
			m.supported.add(b, p.status, n)
		}
	}
	for _, e := range p.entries {
		if n > 0 {
			m.offer(e)
		} else {
			m.withdraw(e)
		}
	}
}

// newExternal is what an external service of the given name adds; it may be of no service.
func newExternal(name string, es *meshv1.ExternalService) *entry {
	return &entry{
		service: dataplane.Service(es.GetTags()), kind: meshv1.ServiceInsight_Service_external,
		address: es.GetNetworking().GetAddress(), name: name,
	}
}

// setExternal replaces the external service of a name; nil when it is gone. It reports whether that changes anything.
func (m *mesh) setExternal(name string, e *entry) bool {
	old := m.externals[name]
	switch {
	case old == nil && e == nil, old != nil && e != nil && *old == *e:
		return false
	}
	if old != nil {
		m.withdraw(old)
		delete(m.externals, name)
	}
	if e != nil {
		m.offer(e)
		m.externals[name] = e
	}
	return true
}

// service is the counters of one service.
type service struct {
	// entries, sorted. The first fixes what kind of service it is. A slice, since moving the pointers of a service
	// with thousands of proxies costs microseconds, and most are added at the end.
	entries         []*entry
	total           int
	online, offline int // proxies that are online, and those that are not
	issued          map[string]uint32
	encoded         []byte // nil when the counters have changed since
}

// offer adds e to its service.
func (m *mesh) offer(e *entry) {
	if e.service == "" {
		return
	}
	s := m.services[e.service]
	if s == nil {
		s = &service{issued: make(map[string]uint32)}
		m.services[e.service] = s
		i, _ := slices.BinarySearch(m.names, e.service)
		m.names = slices.Insert(m.names, i, e.service)
	}
	had := s.hasProxy()
	i, _ := slices.BinarySearchFunc(s.entries, e, (*entry).compare)
	s.entries = slices.Insert(s.entries, i, e)
	s.count(e, 1)
	if !had && s.hasProxy() {
		m.internal++
	}
}

// withdraw takes e from its service.
func (m *mesh) withdraw(e *entry) {
	s := m.services[e.service]
	if s == nil {
		return
	}
	had := s.hasProxy()
	if i, found := slices.BinarySearchFunc(s.entries, e, (*entry).compare); found {
		s.entries = slices.Delete(s.entries, i, i+1)
		s.count(e, -1)
	}
	if had && !s.hasProxy() {
		m.internal--
	}
	if len(s.entries) == 0 {
		delete(m.services, e.service)
		if i, found := slices.BinarySearch(m.names, e.service); found {
			m.names = slices.Delete(m.names, i, i+1)
		}
	}
}

// hasProxy reports whether a proxy offers the service: the entries of proxies come first.
func (s *service) hasProxy() bool { return len(s.entries) > 0 && !s.entries[0].external() }

func (s *service) count(e *entry, n int) {
	s.encoded = nil
	s.total += n
	if e.external() {
		return
	}
	if e.status == dataplane.Online {
		s.online += n
	} else {
		s.offline += n
	}
	if e.issued != "" {
		if s.issued[e.issued] += uint32(n); s.issued[e.issued] == 0 { //nolint:gosec // n is 1 or -1, and adding it wraps as meant
			delete(s.issued, e.issued)
		}
	}
}
