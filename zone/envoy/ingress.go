package envoy

import (
	"fmt"
	"maps"
	"slices"

	"github.com/meridian-mesh/meridian/zone/topology"
)

// Ingress makes the configuration of the proxy through which other zones reach what is in this one. It decrypts nothing: by the
// server name of a connection, which names a part of a service and its mesh, it chooses the endpoints.
//
// A cluster is named for its service, and has the endpoints of all meshes that have a service of the name: which mesh is meant is
// part of what a connection asks for, like all other tags. admin may be nil.
func Ingress(meshes []*topology.Mesh, p *ZoneProxy, admin *Admin) (*Output, error) {
	z := newZonal(p)
	for _, mesh := range meshes {
		d := destinationsOf(mesh)
		for _, service := range offers(mesh, p.Zone) {
			z.passOn(EndpointRef{Cluster: service, Mesh: mesh.Name, Service: service, At: AtIngress}, d.to(service))
		}
	}
	out, err := z.serve(originIngress, admin)
	if err != nil {
		return nil, fmt.Errorf("configuration of zone ingress %s: %w", p.Name, err)
	}
	return out, nil
}

// offers are the services of a mesh that other zones may reach here: those with instances in this zone, whether or not any is up,
// and external services that belong to this zone, which are behind its egresses.
func offers(mesh *topology.Mesh, zone string) []string {
	out := make(map[string]bool)
	for name, s := range mesh.Services {
		if s.Local {
			out[name] = true
		}
	}
	if mesh.Egress {
		for _, es := range mesh.ExternalServices {
			if tags := spelledNow(es.GetTags()); tags[zoneTag] == zone && tags[serviceTag] != "" {
				out[tags[serviceTag]] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(out))
}
