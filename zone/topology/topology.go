// Package topology is what a zone knows of its meshes in the form that configuration of proxies is made from: decoded,
// indexed, and kept up with the store one change at a time.
package topology

import (
	"slices"

	"github.com/meridian-mesh/meridian/api/dataplane"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
)

// Mesh is the part of the state that the proxies of one mesh are configured from. One that a World made is valid, and must not
// be changed, until the World takes in the next change; each Service in it never changes.
type Mesh struct {
	Name string
	Spec *meshv1.Mesh
	// Policies are the mesh's policies of all types.
	Policies *policy.Set
	// Services are the services that are known in this zone, by the value of kuma.io/service. One whose instances are all down
	// is there without endpoints.
	Services map[string]*Service
	// Remote are the endpoints of services in other zones, by service: where the ingresses of those zones are reached, whether
	// or not the mesh sends its traffic through an egress. It is what an egress dials, and in a mesh with egresses it has the
	// external services that belong to other zones, which are behind the egresses there.
	Remote map[string][]Endpoint
	// Dataplanes are the mesh's proxies in this zone, by name.
	Dataplanes map[string]*meshv1.Dataplane
	// ExternalServices are the mesh's external services, by the name of the resource.
	ExternalServices map[string]*meshv1.ExternalService
	// Secrets are the contents of the mesh's secrets, by name.
	Secrets map[string][]byte
	// Egress: traffic that leaves the zone or the mesh goes through the zone's egresses. External services then come by EDS,
	// and have no endpoints while the zone has no egress.
	Egress bool
	// VIPs are the virtual addresses of the mesh.
	VIPs []dataplane.VIP
}

// Service is a service as seen from this zone.
type Service struct {
	Name string
	// Protocol is what all endpoints have in common: tcp, http, http2, grpc, kafka, or "" when unknown. While no endpoint is up
	// it is that of those that are down, so that listeners do not change their form with the health of a service.
	Protocol string
	// Endpoints are sorted. Of an external service they have External set, whether it is reached directly or through an egress.
	Endpoints []Endpoint
	// TLSReady: clients may use TLS. In a mesh with mutual TLS every proxy of the service has a certificate of the enabled
	// backend, or the mode is strict; in one without it is false.
	TLSReady bool
	// Local: workloads of this zone belong to it, whether or not one is up.
	Local bool
	// Outside is what External reports where there are endpoints; where there are none it says whether the service consists of
	// external services only.
	Outside bool
}

// ProxylessTag marks the inbounds of gRPC programs that have no proxy.
const ProxylessTag = "meridian.io/proxyless"

// Proxyless reports whether endpoints of the service are gRPC programs without a proxy.
func (s *Service) Proxyless() bool {
	return s != nil && slices.ContainsFunc(s.Endpoints, func(e Endpoint) bool { return e.Tags[ProxylessTag] == "true" })
}

// External reports whether the service has endpoints of external services, and none else.
func (s *Service) External() bool {
	if s == nil || len(s.Endpoints) == 0 {
		return s != nil && s.Outside
	}
	for _, e := range s.Endpoints {
		if e.External == nil {
			return false
		}
	}
	return true
}

// Endpoint is where a service, or a part of it, can be reached.
type Endpoint struct {
	// Address is an IP address, or of an external service possibly a host name.
	Address string
	Port    uint32
	// Tags are all tags of what stands behind it, kuma.io/service included.
	Tags   map[string]string
	Weight uint32
	// Zone is where it is, "" when unknown; Remote: not in this zone.
	Zone   string
	Remote bool
	// External is the external service that it stands for; ExternalName the name of that resource.
	External     *meshv1.ExternalService
	ExternalName string
	// ViaEgress: the address is that of a zone egress of this zone, which passes the traffic on.
	ViaEgress bool
}
