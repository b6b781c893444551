package topology

import (
	"cmp"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/meridian-mesh/meridian/api/dataplane"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

// assembly puts one service together from its parts.
type assembly struct {
	world  *World
	mesh   *mesh
	parts  *parts
	name   string
	weight uint32 // of an instance in this zone

	// What comes out: nil when there is no such service.
	service *Service
	remote  []Endpoint
}

func (a *assembly) run() {
	if a.parts.empty() {
		return
	}
	mtls := a.mesh.Spec.GetMtls().GetEnabledBackend() != ""
	s := &Service{Name: a.name}
	var down []string // protocols of what is not reachable
	for _, name := range slices.Sorted(maps.Keys(a.parts.local)) {
		dp := a.mesh.Dataplanes[name]
		for _, in := range a.parts.local[name] {
			if !healthy(in) {
				down = append(down, Protocol(in.GetTags()))
			} else if e, ok := a.local(dp, in); ok {
				s.Endpoints = append(s.Endpoints, e)
			}
		}
	}
	if mtls {
		a.remote = a.atIngresses(a.parts.remote, false)
		if egresses := a.world.egresses; a.mesh.Egress && len(egresses) > 0 {
			for _, e := range a.remote {
				s.Endpoints = a.appendEgresses(s.Endpoints, e)
			}
		} else {
			s.Endpoints = append(s.Endpoints, a.remote...)
		}
		if a.mesh.Egress && len(a.remote) == 0 {
			a.remote = a.atIngresses(a.parts.beyond, true)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(a.parts.external)) {
		if e, ok := a.external(name, a.parts.external[name]); ok && a.mesh.Egress {
			s.Endpoints = a.appendEgresses(s.Endpoints, e)
		} else if ok {
			s.Endpoints = append(s.Endpoints, e)
		}
		down = append(down, Protocol(a.parts.external[name].GetTags()))
	}
	slices.SortFunc(s.Endpoints, Endpoint.compare)
	s.Endpoints = slices.CompactFunc(s.Endpoints, Endpoint.same)
	var protocols []string
	for _, e := range s.Endpoints {
		protocols = append(protocols, Protocol(e.Tags))
	}
	if len(protocols) == 0 {
		protocols = down
	}
	s.Protocol = CommonProtocol(protocols...)
	s.Local = len(a.parts.local) > 0
	s.Outside = !s.Local && len(a.parts.remote) == 0
	if len(s.Endpoints) > 0 {
		s.Outside = !slices.ContainsFunc(s.Endpoints, func(e Endpoint) bool { return e.External == nil })
	}
	s.TLSReady = mtls && a.tlsReady(s)
	if len(s.Endpoints) == 0 && len(a.parts.local) == 0 && len(a.parts.external) == 0 {
		return // behind ingresses that cannot be used
	}
	a.service = s
}

func healthy(in *meshv1.Dataplane_Networking_Inbound) bool {
	return in.GetHealth() == nil || in.GetHealth().GetReady()
}

// local is an inbound of a proxy of this zone as an endpoint.
func (a *assembly) local(dp *meshv1.Dataplane, in *meshv1.Dataplane_Networking_Inbound) (Endpoint, bool) {
	n := dp.GetNetworking()
	host := cmp.Or(n.GetAdvertisedAddress(), in.GetAddress(), n.GetAddress())
	e := Endpoint{
		Address: a.resolve(host), Port: in.GetPort(), Tags: withService(in.GetTags(), a.name), Weight: a.weight, Zone: in.GetTags()[zoneTag],
	}
	return e, e.Address != ""
}

// withService returns tags that name their service in today's way.
func withService(tags map[string]string, service string) map[string]string {
	if tags[dataplane.ServiceTag] == service {
		return tags
	}
	tags = maps.Clone(tags)
	tags[dataplane.ServiceTag] = service
	return tags
}

// atIngresses are the instances in other zones, or the external services there, at the ingresses of those zones. Ingresses at the same coordinates are one
// place, which has as many instances of a set of tags as the one that knows most.
func (a *assembly) atIngresses(ingresses map[string]*Ingress, external bool) []Endpoint {
	var out []Endpoint
	for _, name := range slices.Sorted(maps.Keys(ingresses)) {
		in := ingresses[name]
		n := in.Spec.GetNetworking()
		if n.GetAdvertisedAddress() == "" || n.GetAdvertisedPort() == 0 {
			continue
		}
		address := a.resolve(n.GetAdvertisedAddress())
		if address == "" {
			continue
		}
		for _, s := range in.Spec.GetAvailableServices() {
			if s.GetMesh() != a.mesh.Name || s.GetExternalService() != external || dataplane.Service(s.GetTags()) != a.name {
				continue
			}
			zone := cmp.Or(s.GetTags()[zoneTag], in.Spec.GetZone())
			out = append(out, Endpoint{
				Address: address, Port: n.GetAdvertisedPort(), Tags: withService(s.GetTags(), a.name), Weight: max(s.GetInstances(), 1), Zone: zone, Remote: true,
			})
		}
	}
	slices.SortFunc(out, Endpoint.compare)
	return slices.CompactFunc(out, Endpoint.same)
}

// appendEgresses appends what e stands for as it is reached through each egress of this zone.
func (a *assembly) appendEgresses(to []Endpoint, e Endpoint) []Endpoint {
	for _, name := range slices.Sorted(maps.Keys(a.world.egresses)) {
		n := a.world.egresses[name].Spec.GetNetworking()
		via := e
		via.Address, via.Port, via.Weight, via.ViaEgress = a.resolve(n.GetAddress()), n.GetPort(), 1, true
		if via.Address != "" && via.Port != 0 {
			to = append(to, via)
		}
	}
	return to
}

// external is an external service as an endpoint. One that belongs to another zone is reached through egresses only.
func (a *assembly) external(name string, es *meshv1.ExternalService) (Endpoint, bool) {
	host, port, err := net.SplitHostPort(es.GetNetworking().GetAddress())
	if err != nil {
		return Endpoint{}, false
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return Endpoint{}, false
	}
	zone := es.GetTags()[zoneTag]
	remote := zone != "" && zone != a.world.zone
	if remote && !a.mesh.Egress {
		return Endpoint{}, false
	}
	return Endpoint{
		Address: host, Port: uint32(number), Tags: withService(es.GetTags(), a.name), Weight: 1, Zone: zone, Remote: remote,
		External: es, ExternalName: name,
	}, true
}

// tlsReady reports whether clients may use TLS toward a service of a mesh with mutual TLS.
func (a *assembly) tlsReady(s *Service) bool {
	mtls := a.mesh.Spec.GetMtls()
	for _, b := range mtls.GetBackends() {
		if b.GetName() == mtls.GetEnabledBackend() && b.GetMode() != meshv1.CertificateAuthorityBackend_PERMISSIVE {
			return true
		}
	}
	if s.Outside {
		return true
	}
	counted := a.mesh.insight.GetServices()[a.name]
	total := counted.GetDataplanes().GetTotal()
	return total > 0 && counted.GetIssuedBackends()[mtls.GetEnabledBackend()] == total
}

// compare orders endpoints by address, port and what they stand for; of several that are the same it puts the heaviest first.
func (e Endpoint) compare(o Endpoint) int {
	return cmp.Or(e.identity(o), cmp.Compare(o.Weight, e.Weight))
}

func (e Endpoint) same(o Endpoint) bool { return e.identity(o) == 0 }

// identity compares everything but the weight.
func (e Endpoint) identity(o Endpoint) int {
	return cmp.Or(
		strings.Compare(e.Address, o.Address), cmp.Compare(e.Port, o.Port), strings.Compare(e.ExternalName, o.ExternalName),
		compareTags(e.Tags, o.Tags), strings.Compare(e.Zone, o.Zone),
	)
}

func compareTags(a, b map[string]string) int {
	if maps.Equal(a, b) {
		return 0
	}
	return strings.Compare(tagString(a), tagString(b))
}

// tagString is a form of tags that is the same for the same tags only.
func tagString(tags map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(tags)) {
		b.WriteString(k)
		b.WriteByte('=')
		b.WriteString(tags[k])
		b.WriteByte(0)
	}
	return b.String()
}

// equal reports whether two endpoints are the same in everything.
func (e Endpoint) equal(o Endpoint) bool {
	return e.same(o) && e.Weight == o.Weight && e.Remote == o.Remote && e.ViaEgress == o.ViaEgress &&
		(e.External == o.External || proto.Equal(e.External, o.External))
}
