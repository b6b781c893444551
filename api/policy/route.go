package policy

import (
	"maps"
	"slices"

	"github.com/meridian-mesh/meridian/api/dataplane"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

// meshTag on an outbound names the mesh that its service is in.
const meshTag = "kuma.io/mesh"

// Destination is where a share of the traffic of an outbound goes.
type Destination struct {
	// Tags are those of the endpoints, kuma.io/service and, of a service of another mesh, kuma.io/mesh included.
	Tags   map[string]string
	Weight uint32
}

// Destinations resolves what one rule of a TrafficRoute says: a split, or else a single destination. Tags that a destination
// lacks, and those that it wants with any value, are the outbound's. Shares of 0 are left out.
func Destinations(split []*meshv1.TrafficRoute_Split, destination, outbound map[string]string) []Destination {
	if len(split) == 0 {
		if len(destination) == 0 {
			return nil
		}
		return []Destination{{Tags: resolve(destination, outbound), Weight: 1}}
	}
	var out []Destination
	for _, part := range split {
		if weight := part.GetWeight().GetValue(); weight > 0 {
			out = append(out, Destination{Tags: resolve(part.GetDestination(), outbound), Weight: weight})
		}
	}
	return out
}

func resolve(destination, outbound map[string]string) map[string]string {
	tags := maps.Clone(outbound)
	if tags == nil {
		tags = make(map[string]string)
	}
	for k, v := range dataplane.SpelledNow(destination) {
		if v != anyValue {
			tags[k] = v
		}
	}
	return tags
}

// RouteServices returns the services of the mesh that a route leads to from an outbound with the given tags: by its default
// destinations and by its rules for requests alike. Sorted, each once.
func RouteServices(route *Policy, outbound map[string]string) []string {
	if route == nil {
		return nil
	}
	outbound = dataplane.SpelledNow(outbound)
	conf := route.Spec.(*meshv1.TrafficRoute).GetConf()
	destinations := Destinations(conf.GetSplit(), conf.GetDestination(), outbound)
	for _, rule := range conf.GetHttp() {
		destinations = append(destinations, Destinations(rule.GetSplit(), rule.GetDestination(), outbound)...)
	}
	var services []string
	for _, d := range destinations {
		if service, ok := ServiceOf(d.Tags, route.Mesh); ok {
			services = append(services, service)
		}
	}
	slices.Sort(services)
	return slices.Compact(services)
}

// ServiceOf returns the service of a mesh that the tags of a destination name; false when they name none, or one of another mesh.
func ServiceOf(tags map[string]string, mesh string) (string, bool) {
	service := dataplane.Service(tags)
	return service, service != "" && (tags[meshTag] == "" || tags[meshTag] == mesh)
}
