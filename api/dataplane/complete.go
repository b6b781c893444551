package dataplane

import (
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

// ZoneTag names the zone of a proxy.
const ZoneTag = "kuma.io/zone"

// Complete adds to a dataplane what its zone knows better than whoever wrote it: the name of the zone on every inbound and on
// its gateway, and when it is created, that an inbound with a probe is not ready until the probe has spoken.
func Complete(dp *meshv1.Dataplane, zone string, creating bool) {
	if g := dp.GetNetworking().GetGateway(); g != nil {
		g.Tags = withZone(g.GetTags(), zone)
	}
	for _, in := range dp.GetNetworking().GetInbound() {
		in.Tags = withZone(in.GetTags(), zone)
		if creating && in.GetServiceProbe() != nil && in.GetHealth() == nil {
			in.Health = &meshv1.Dataplane_Networking_Inbound_Health{}
		}
	}
}

func withZone(tags map[string]string, zone string) map[string]string {
	if tags == nil {
		tags = make(map[string]string, 1)
	}
	tags[ZoneTag] = zone
	return tags
}
