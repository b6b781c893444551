package envoy

import (
	"iter"
	"maps"
	"slices"
	"strings"

	"github.com/meridian-mesh/meridian/api/dataplane"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

// Tags with a meaning of their own.
const (
	serviceTag  = "kuma.io/service"
	protocolTag = "kuma.io/protocol"
	zoneTag     = "kuma.io/zone"
	meshTag     = "kuma.io/mesh"

	// externalNameTag is put on the endpoints of external services: by it an endpoint finds its own TLS settings.
	externalNameTag = "kuma.io/external-service-name"
)

// sorted yields a map in the order of its keys.
func sorted[V any](m map[string]V) iter.Seq2[string, V] {
	return func(yield func(string, V) bool) {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			if !yield(k, m[k]) {
				return
			}
		}
	}
}

// spelledNow returns the tags with the old spelling of the tags of a service replaced by today's.
func spelledNow(tags map[string]string) map[string]string { return dataplane.SpelledNow(tags) }

// without returns the tags except some.
func without(tags map[string]string, keys ...string) map[string]string {
	out := make(map[string]string, len(tags))
	for k, v := range tags {
		if !slices.Contains(keys, k) {
			out[k] = v
		}
	}
	return out
}

// carries reports whether tags has all of want.
func carries(tags, want map[string]string) bool {
	for k, v := range want {
		if got, has := tags[k]; !has || got != v {
			return false
		}
	}
	return true
}

// multi is the tags of a whole proxy: a key may have several values, which are sorted and distinct.
type multi map[string][]string

// tagsOf returns the tags of all inbounds and of the gateway of a proxy.
func tagsOf(dp *meshv1.Dataplane) multi {
	out := make(multi)
	add := func(tags map[string]string) {
		for k, v := range spelledNow(tags) {
			if !slices.Contains(out[k], v) {
				out[k] = append(out[k], v)
			}
		}
	}
	for _, in := range dp.GetNetworking().GetInbound() {
		add(in.GetTags())
	}
	add(dp.GetNetworking().GetGateway().GetTags())
	for _, values := range out {
		slices.Sort(values)
	}
	return out
}

// header is the value of TagsHeader: &key=v1,v2& for each key in order.
func (m multi) header() string {
	var b strings.Builder
	for k, values := range sorted(m) {
		b.WriteString("&" + k + "=" + strings.Join(values, ",") + "&")
	}
	return b.String()
}
