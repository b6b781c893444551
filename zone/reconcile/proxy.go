package reconcile

import (
	"time"

	"github.com/meridian-mesh/meridian/api/dataplane"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/zone/envoy"
	"github.com/meridian-mesh/meridian/zone/mtls"
	"github.com/meridian-mesh/meridian/zone/xds"
)

// need is what has to be done for a proxy.
type need uint8

const (
	needEndpoints need = 1 << iota // take the endpoints that are current
	needSecrets                    // look at certificates too
	needAll                        // make everything
)

// cause is why, for the metric: the first of several.
type cause uint8

const (
	causeConnect cause = iota
	causeMesh
	causePolicy
	causeDataplane
	causeService
	causeEndpoints
	causeSecret
	causeVIPs
	causeCertificate
	causeZone
	causes
)

var causeNames = [causes]string{
	"connect", "mesh", "policy", "dataplane", "service", "endpoints", "secret", "vips", "certificate", "zone",
}

// proxy is a connected proxy. It belongs to the goroutine of Run; workers read it while that waits for them.
type proxy struct {
	Connected

	// What is to be done.
	need  need
	cause cause
	since time.Time // of the oldest cause
	fresh bool      // nothing has been published since it connected
	gone  bool

	// What it has.
	out       *envoy.Output
	refs      []*assignment // of out.Endpoints, in that order
	config    *xds.Config   // nil: none was published
	identity  identities
	told      bool     // its certificate has been told
	supported []string // backends, as they were told
	host      string   // where it listens, when that is not an address
	failure   string   // of the last attempt; "" when it was good
	warned    []string // warnings of its configurations that were logged, no more than maxWarnings and a last word

	// What it is in the indexes by.
	services, endpoints []serviceKey
}

// warns reports whether the configuration of p leaves out something that was asked for.
func (p *proxy) warns() bool { return p.out != nil && len(p.out.Warnings) > 0 }

// identities are those of a proxy by the mesh they are for. A sidecar has one; an egress one in each mesh.
type identities map[string]*identity

type identity struct {
	*mtls.Identity
	secret *xds.Resource
}

type serviceKey struct{ mesh, service string }

type set[T comparable] map[T]struct{}

// index finds proxies by what they depend on.
type index[K comparable] map[K]set[*proxy]

func (x index[K]) add(k K, p *proxy) {
	if x[k] == nil {
		x[k] = make(set[*proxy])
	}
	x[k][p] = struct{}{}
}

func (x index[K]) remove(k K, p *proxy) {
	delete(x[k], p)
	if len(x[k]) == 0 {
		delete(x, k)
	}
}

// dependencies are the services of which a configuration was made: those whose form it depends on, and those whose endpoints it
// has. An outbound depends on its service whatever was made of it.
func dependencies(p *proxy, dp *meshv1.Dataplane, out *envoy.Output) (services, endpoints []serviceKey) {
	seenServices, seenEndpoints := make(set[serviceKey]), make(set[serviceKey])
	add := func(list []serviceKey, seen set[serviceKey], k serviceKey) []serviceKey {
		if _, ok := seen[k]; ok {
			return list
		}
		seen[k] = struct{}{}
		return append(list, k)
	}
	for i := range out.Endpoints {
		ref := &out.Endpoints[i]
		k := serviceKey{meshOf(p, ref), ref.Service}
		endpoints = add(endpoints, seenEndpoints, k)
		services = add(services, seenServices, k)
	}
	for _, s := range out.Services {
		services = add(services, seenServices, serviceKey{p.Mesh, s})
	}
	for _, o := range dp.GetNetworking().GetOutbound() {
		service := o.GetService()
		if s := dataplane.Service(o.GetTags()); s != "" {
			service = s
		}
		services = add(services, seenServices, serviceKey{p.Mesh, service})
	}
	return services, endpoints
}

func meshOf(p *proxy, ref *envoy.EndpointRef) string {
	if ref.Mesh != "" {
		return ref.Mesh
	}
	return p.Mesh
}
