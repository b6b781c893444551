package topology

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/meridian-mesh/meridian/api/dataplane"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

// availableKey is a set of tags in a mesh.
type availableKey struct{ mesh, tags string }

// availableService counts the instances in this zone that share their tags.
type availableService struct {
	tags      map[string]string
	instances int
}

// offer counts an inbound of a proxy of this zone, or no longer.
func (w *World) offer(mesh string, in *meshv1.Dataplane_Networking_Inbound, n int, d *Dirty) {
	service := dataplane.Service(in.GetTags())
	if !healthy(in) || service == "" {
		return
	}
	tags := withService(in.GetTags(), service)
	key := availableKey{mesh, tagString(tags)}
	s := w.available[key]
	if s == nil {
		s = &availableService{tags: tags}
		w.available[key] = s
	}
	if s.instances += n; s.instances == 0 {
		delete(w.available, key)
	}
	d.Available = true
}

// AvailableServices is what this zone offers to others through its ingresses: its healthy instances by mesh and tags, then the
// external services of this zone in meshes that use egresses.
func (w *World) AvailableServices() []*meshv1.ZoneIngress_AvailableService {
	var out []*meshv1.ZoneIngress_AvailableService
	for _, key := range slices.SortedFunc(maps.Keys(w.available), func(a, b availableKey) int {
		return cmp.Or(strings.Compare(a.mesh, b.mesh), strings.Compare(a.tags, b.tags))
	}) {
		s := w.available[key]
		out = append(out, &meshv1.ZoneIngress_AvailableService{Tags: s.tags, Instances: uint32(s.instances), Mesh: key.mesh})
	}
	for _, m := range w.Meshes() {
		if !m.Egress {
			continue
		}
		outside := make(map[string]*meshv1.ZoneIngress_AvailableService)
		for _, es := range m.ExternalServices {
			if es.GetTags()[zoneTag] != w.zone {
				continue
			}
			key := tagString(es.GetTags())
			if outside[key] == nil {
				outside[key] = &meshv1.ZoneIngress_AvailableService{Tags: es.GetTags(), Mesh: m.Name, ExternalService: true}
			}
			outside[key].Instances++
		}
		for _, key := range slices.Sorted(maps.Keys(outside)) {
			out = append(out, outside[key])
		}
	}
	return out
}
