package validate

import (
	"fmt"
	"maps"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// What proxies are registered as: Dataplane, ZoneIngress, ZoneEgress.

// loopback is where a proxy's admin port listens, and its outbounds unless they say otherwise.
const loopback = "127.0.0.1"

func dataplane(r *report, at path, m *meshv1.Dataplane) {
	networking, n := at.field("networking"), m.GetNetworking()
	if !r.check(n != nil, networking, "must be defined") {
		return
	}
	gateway := n.GetGateway()
	builtin := gateway != nil && gateway.GetType() == meshv1.Dataplane_Networking_Gateway_BUILTIN
	r.check(gateway != nil || len(n.GetInbound()) > 0, networking, "has to contain at least one inbound interface or gateway")
	address := networking.field("address")
	if r.check(n.GetAddress() != "", address, "address can't be empty") {
		r.address(address, n.GetAddress())
	}
	if gateway != nil {
		where := networking.field("gateway.tags")
		r.check(hasService(gateway.GetTags()), where, msgNoService)
		r.tagCharacters(where, gateway.GetTags(), ownTags)
		if p := gateway.GetTags()[tagProtocol]; p != "" && p != "tcp" {
			r.addf(where.entry(tagProtocol), "other values than tcp are not allowed, provided value %q", clip(p))
		}
	}
	inbounds, outbounds := networking.field("inbound"), networking.field("outbound")
	switch {
	case gateway == nil || len(n.GetInbound()) == 0:
	case builtin:
		r.add(inbounds, "inbound cannot be defined for builtin gateways")
	default:
		r.add(inbounds, "inbound cannot be defined for delegated gateways")
	}
	for i, in := range n.GetInbound() {
		r.inbound(inbounds.at(i), in, n.GetAddress())
	}
	r.check(!builtin || len(n.GetOutbound()) == 0, outbounds, "outbound cannot be defined for builtin gateways")
	for i, out := range n.GetOutbound() {
		r.outbound(outbounds.at(i), out)
	}
	if port := n.GetAdmin().GetPort(); port != 0 {
		where := networking.field("admin.port")
		r.check(!inboundOn(n, port), where, "must differ from inbound")
		r.check(!outboundOn(n, port), where, "must differ from outbound")
	}
	if m.GetMetrics() != nil && gateway == nil {
		r.metricsBackend(at.field("metrics"), m.GetMetrics())
	}
	if p := m.GetProbes(); p != nil {
		r.check(!builtin, networking.field("probes"), "probes cannot be defined for builtin gateways")
		probes := at.field("probes")
		r.port(probes.field("port"), p.GetPort())
		for i, e := range p.GetEndpoints() {
			list := probes.field("endpoints")
			item := list.at(i)
			r.port(item.field("inboundPort"), e.GetInboundPort())
			r.check(isURLPath(e.GetInboundPath()), item.field("inboundPath"), "should be a valid URL Path")
			r.check(isURLPath(e.GetPath()), item.field("path"), "should be a valid URL Path")
		}
	}
}

func (r *report) inbound(at path, in *meshv1.Dataplane_Networking_Inbound, address string) {
	r.port(at.field("port"), in.GetPort())
	r.portIfSet(at.field("servicePort"), in.GetServicePort())
	if s := in.GetServiceAddress(); s != "" {
		where := at.field("serviceAddress")
		r.check(isIP(s), where, "serviceAddress has to be valid IP address")
		r.check(s != either(in.GetAddress(), address) || either(in.GetServicePort(), in.GetPort()) != in.GetPort(), where,
			"serviceAddress and servicePort has to differ from address and port")
	}
	r.check(in.GetAddress() == "" || isIP(in.GetAddress()), at.field("address"), "address has to be valid IP address")
	tags := at.field("tags")
	r.check(hasService(in.GetTags()), tags.entry(tagService), "tag has to exist")
	r.tagCharacters(tags, in.GetTags(), ownTags)
	r.protocolTag(tags, in.GetTags())
	if p := in.GetServiceProbe(); p != nil {
		probe := at.field("serviceProbe")
		r.positive(probe.field("interval"), p.GetInterval(), msgPositive)
		r.positive(probe.field("timeout"), p.GetTimeout(), msgPositive)
		r.check(p.GetUnhealthyThreshold() == nil || p.GetUnhealthyThreshold().GetValue() > 0, probe.field("unhealthyThreshold"), msgPositive)
		r.check(p.GetHealthyThreshold() == nil || p.GetHealthyThreshold().GetValue() > 0, probe.field("healthyThreshold"), msgPositive)
	}
}

func (r *report) outbound(at path, out *meshv1.Dataplane_Networking_Outbound) {
	r.check(out.GetAddress() == "" || isIP(out.GetAddress()), at.field("address"), "address has to be valid IP address")
	r.port(at.field("port"), out.GetPort())
	tags := at.field("tags")
	r.check(out.GetService() != "" || hasService(out.GetTags()), tags, msgNoService)
	r.tagCharacters(tags, out.GetTags(), ownTags)
}

// inboundOn reports whether an inbound, or the application behind it, listens on a port of the loopback interface.
func inboundOn(n *meshv1.Dataplane_Networking, port uint32) bool {
	for _, in := range n.GetInbound() {
		address := either(in.GetAddress(), n.GetAddress())
		if in.GetPort() == port && onLoopback(address) {
			return true
		}
		if either(in.GetServicePort(), in.GetPort()) == port && onLoopback(either(in.GetServiceAddress(), n.GetAddress())) {
			return true
		}
	}
	return false
}

func outboundOn(n *meshv1.Dataplane_Networking, port uint32) bool {
	for _, out := range n.GetOutbound() {
		if out.GetPort() == port && onLoopback(either(out.GetAddress(), loopback)) {
			return true
		}
	}
	return false
}

// either returns v, or when it is zero the other.
func either[T comparable](v, other T) T {
	var zero T
	if v == zero {
		return other
	}
	return v
}

// dataplaneState checks whether a mesh takes the proxy: each inbound, or the gateway, must meet one of the mesh's
// requirements, where it has any, and none of its restrictions.
func dataplaneState(r *report, view View, rec, _ *store.Record) {
	meshRec, ok := view.Get(store.Key{Type: string(resource.Mesh), Name: rec.Key.Mesh})
	if !ok {
		return
	}
	in, ok := decode[*meshv1.Mesh](meshRec)
	if !ok {
		return
	}
	constraints := in.GetConstraints().GetDataplaneProxy()
	if len(constraints.GetRequirements())+len(constraints.GetRestrictions()) == 0 {
		return
	}
	m, ok := decode[*meshv1.Dataplane](rec)
	if !ok {
		return
	}
	var root path
	networking := root.field("networking")
	admit := func(at path, tags map[string]string) {
		met := len(constraints.GetRequirements()) == 0
		for _, rule := range constraints.GetRequirements() {
			met = met || matches(rule.GetTags(), tags)
		}
		r.check(met, at, fmt.Sprintf("must meet one of the requirements that mesh %q has for dataplane proxies", rec.Key.Mesh))
		for i, rule := range constraints.GetRestrictions() {
			if matches(rule.GetTags(), tags) {
				r.addf(at, "are not allowed by the restrictions[%d] that mesh %q has for dataplane proxies", i, rec.Key.Mesh)
			}
		}
	}
	if g := m.GetNetworking().GetGateway(); g != nil {
		admit(networking.field("gateway.tags"), g.GetTags())
	}
	for i, inbound := range m.GetNetworking().GetInbound() {
		list := networking.field("inbound")
		item := list.at(i)
		admit(item.field("tags"), withServiceTag(inbound.GetTags()))
	}
}

// withServiceTag returns tags with the service under today's name.
func withServiceTag(tags map[string]string) map[string]string {
	old, ok := tags[tagOldService]
	if _, today := tags[tagService]; !ok || today {
		return tags
	}
	both := maps.Clone(tags)
	both[tagService] = old
	return both
}

func zoneIngress(r *report, at path, m *meshv1.ZoneIngress) {
	networking, n := at.field("networking"), m.GetNetworking()
	r.zoneAddress(networking.field("address.address"), n.GetAddress())
	advertisedAddress, advertisedPort := networking.field("advertisedAddress"), networking.field("advertisedPort")
	r.check(n.GetAdvertisedAddress() != "" || n.GetAdvertisedPort() == 0, advertisedAddress, "has to be defined with advertisedPort")
	r.zoneAddress(advertisedAddress.field("address"), n.GetAdvertisedAddress())
	r.port(networking.field("port"), n.GetPort())
	r.portIfSet(advertisedPort, n.GetAdvertisedPort())
	r.check(n.GetAdvertisedPort() != 0 || n.GetAdvertisedAddress() == "", advertisedPort, "has to be defined with advertisedAddress")
	r.zoneAdmin(networking.field("admin.port"), n.GetAdmin().GetPort(), n.GetAddress(), n.GetPort())
	for i, s := range m.GetAvailableServices() {
		list := at.field("availableService")
		item := list.at(i)
		tags := item.field("tags")
		_, ok := s.GetTags()[tagService]
		r.check(ok, tags, msgNoService)
		r.tagCharacters(tags, s.GetTags(), ownTags)
	}
}

func zoneEgress(r *report, at path, m *meshv1.ZoneEgress) {
	networking, n := at.field("networking"), m.GetNetworking()
	r.zoneAddress(networking.field("address.address"), n.GetAddress())
	r.port(networking.field("port"), n.GetPort())
	r.zoneAdmin(networking.field("admin.port"), n.GetAdmin().GetPort(), n.GetAddress(), n.GetPort())
}

func (r *report) zoneAddress(at path, s string) {
	if s != "" {
		r.address(at, s)
	}
}

func (r *report) zoneAdmin(at path, admin uint32, address string, port uint32) {
	r.check(admin == 0 || admin != port || !onLoopback(either(address, "0.0.0.0")), at, "must differ from port")
}
