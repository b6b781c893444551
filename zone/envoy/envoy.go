// Package envoy makes the configuration of proxies: pure functions of the topology and a proxy. Nothing here reads a store, a
// clock or the network, and equal inputs give equal outputs.
package envoy

import (
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/zone/topology"
	"github.com/meridian-mesh/meridian/zone/xds"
)

// Proxy is what a connected sidecar told of itself.
type Proxy struct {
	Mesh, Name string
	Dataplane  *meshv1.Dataplane
	// AdminAddress and AdminPort are where Envoy's own administration listens; port 0: it has none.
	AdminAddress string
	AdminPort    uint32
	// DNSPort and EmptyDNSPort are those of kuma-dp; 0: none.
	DNSPort, EmptyDNSPort uint32
	// Features are what the proxy's data plane program announced, e.g. "feature-tcp-accesslog-via-named-pipe".
	Features []string
	// IPv6 etc. follow from Dataplane.
}

// Admin is what the listener for the control plane's administrative requests needs: PEM blocks.
type Admin struct {
	Cert, Key []byte // the proxy's server certificate, for its address
	CA        []byte // of the control plane's client certificate
}

// Output is the configuration of a proxy, except for what is resolved apart from it because it changes more often: endpoints
// and secrets.
type Output struct {
	// Resources are of any kind but Endpoint and Secret.
	Resources []*xds.Resource
	// Endpoints name the load assignments that the clusters need.
	Endpoints []EndpointRef
	// Secrets name the secrets that the resources refer to.
	Secrets []string
	// Services are the services of the proxy's own mesh whose protocol, TLSReady or external endpoints the resources were made
	// from, also ones that do not exist: when such a thing changes, the configuration is made again. Those of Endpoints need
	// not be repeated.
	Services []string
}

// EndpointRef is a cluster whose endpoints come by EDS: those of Service that carry all Tags.
type EndpointRef struct {
	Cluster string
	Mesh    string
	Service string
	Tags    map[string]string // without kuma.io/service
}

// Sidecar makes the configuration of a sidecar or a delegated gateway.
func Sidecar(mesh *topology.Mesh, p *Proxy, admin *Admin) (*Output, error) {
	return nil, nil
}
