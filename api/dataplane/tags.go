package dataplane

import (
	"maps"
	"slices"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

// Tags are the tags of all inbounds of a proxy and of its gateway together: the values of each, sorted, without repeats.
func Tags(dp *meshv1.Dataplane) map[string][]string {
	all := make(map[string][]string)
	add := func(tags map[string]string) {
		for k, v := range tags {
			all[k] = append(all[k], v)
		}
	}
	for _, in := range dp.GetNetworking().GetInbound() {
		add(in.GetTags())
	}
	add(dp.GetNetworking().GetGateway().GetTags())
	for k, values := range all {
		slices.Sort(values)
		all[k] = slices.Compact(values)
	}
	return all
}

// Tags of a service, and how the oldest resources spell them.
const (
	protocolTag    = "kuma.io/protocol"
	oldProtocolTag = "protocol"
)

// SpelledNow returns the tags with the old spelling of the tags of a service replaced by today's. The map is shared with the
// argument where nothing is to be replaced.
func SpelledNow(tags map[string]string) map[string]string {
	out := tags
	for old, now := range map[string]string{oldServiceTag: ServiceTag, oldProtocolTag: protocolTag} {
		v, has := tags[old]
		if !has || tags[now] != "" {
			continue
		}
		if len(out) == len(tags) {
			out = maps.Clone(out)
		}
		delete(out, old)
		out[now] = v
	}
	return out
}

// unknownService is what a proxy that names no service is called.
const unknownService = "unknown"

// IdentifyingService is the service that stands for the whole proxy: the first of its services by the alphabet, "unknown"
// when it has none.
func IdentifyingService(dp *meshv1.Dataplane) string {
	services := make(map[string]struct{})
	for _, in := range dp.GetNetworking().GetInbound() {
		services[Service(in.GetTags())] = struct{}{}
	}
	services[Service(dp.GetNetworking().GetGateway().GetTags())] = struct{}{}
	delete(services, "")
	if len(services) == 0 {
		return unknownService
	}
	return slices.Sorted(maps.Keys(services))[0]
}
