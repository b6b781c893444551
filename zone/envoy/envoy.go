// Package envoy makes the configuration of proxies: pure functions of the topology and a proxy. Nothing here reads a store, a
// clock or the network, and equal inputs give equal outputs.
//
// [Sidecar] is the list of the parts of a sidecar's configuration, as [Gateway], [Proxyless], [Ingress] and [Egress] are of the others'; each
// part is a file: listeners of a workload
// (inbound.go), of the services that it uses (outbound.go, routes.go, clusters.go), of redirected traffic (transparent.go),
// and what stands beside them (admin.go, probes.go, prometheus.go, dns.go). Each policy is a file too. Which policies apply
// is asked of api/policy, so that what is shown of them is what is done. [LoadAssignment] is apart: endpoints change more
// often than anything else, and many proxies share them.
package envoy

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/meridian-mesh/meridian/api/dataplane"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
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
	// Resources are of any kind but Endpoint and Secret, sorted by kind and name.
	Resources []*xds.Resource
	// Endpoints name the load assignments that the clusters need, in the order of the clusters' names.
	Endpoints []EndpointRef
	// Secrets name the secrets that the resources refer to, sorted.
	Secrets []string
	// Services are the services of the mesh whose protocol, TLSReady or external endpoints the resources were made from, sorted.
	// Some may not exist: that they appear makes another configuration too.
	Services []string
	// Warnings say what the resources of the mesh ask for and the configuration does not do, each once, in a form that an
	// operator understands.
	Warnings []string
}

// EndpointRef is a cluster whose endpoints come by EDS: those of Service that carry all Tags.
type EndpointRef struct {
	Cluster string
	Mesh    string
	Service string
	Tags    map[string]string // without kuma.io/service
	// Proxyless: for a gRPC program, which takes less than Envoy.
	Proxyless bool
	// At is the kind of proxy that has the cluster.
	At Place
}

// Place is a kind of proxy, as far as endpoints differ by it.
type Place uint8

// The places.
const (
	AtSidecar Place = iota
	// AtIngress: what the zone offers to others. Several meshes may have endpoints in one cluster, one ref each: [Join] makes one
	// assignment of them.
	AtIngress
	// AtEgress: what other zones offer, at their ingresses.
	AtEgress
)

// Sidecar makes the configuration of a sidecar or a delegated gateway. admin may be nil: then there is no listener for the
// control plane's administrative requests.
//
// An error names the policy or the resource that caused it; there is no configuration then. What can be left out without
// doing something other than was asked for is left out, and named in Output.Warnings.
func Sidecar(mesh *topology.Mesh, p *Proxy, admin *Admin) (*Output, error) {
	g := newGenerator(mesh, p, (*generator).listOutbounds)
	g.inbounds()
	g.outbounds()
	g.transparentProxying()
	g.directAccess()
	g.dns()
	g.beside(admin)
	out, err := g.finish()
	if err != nil {
		return nil, fmt.Errorf("configuration of %s in mesh %s: %w", p.Name, mesh.Name, err)
	}
	return out, nil
}

// beside makes what every Envoy of a Dataplane has beside its traffic.
func (g *generator) beside(admin *Admin) {
	g.adminListener(g.proxy.AdminAddress, g.proxy.AdminPort, g.dp.GetNetworking().GetAddress(), admin)
	g.probes()
	g.prometheus()
	g.tracingCluster()
}

// generator makes the configuration of one sidecar.
type generator struct {
	// Set by newGenerator.
	mesh         *topology.Mesh
	proxy        *Proxy
	dp           *meshv1.Dataplane
	tags         multi
	mtls         mtlsMode
	ipv6         bool                                   // the proxy's own address is one
	metrics      *meshv1.PrometheusMetricsBackendConfig // nil: none
	outboundList []*outbound
	matched      *policy.Matched
	trace        *tracer // nil: requests are not traced

	// Grow while parts are made.
	draft
	clusters map[string]*cluster
	subsets  map[string]string // names by service and tags
	services map[string]bool   // that were looked at
	ports    []uint32          // that a builtin gateway serves on its own address
}

func newGenerator(mesh *topology.Mesh, p *Proxy, list func(*generator) []*outbound) *generator {
	g := &generator{
		mesh: mesh, proxy: p, dp: p.Dataplane, tags: tagsOf(p.Dataplane), mtls: modeOf(mesh.Spec),
		ipv6:  isIPv6(p.Dataplane.GetNetworking().GetAddress()),
		draft: newDraft(), clusters: make(map[string]*cluster), subsets: make(map[string]string), services: make(map[string]bool),
	}
	g.metrics = g.effectivePrometheus()
	g.outboundList = list(g)
	options := policy.Options{Outbounds: make([]map[string]string, len(g.outboundList))}
	for i, o := range g.outboundList {
		options.Outbounds[i] = o.tags
	}
	if g.metrics != nil {
		options.Metrics = g.metrics.GetTags()
	}
	g.matched = mesh.Policies.Match(p.Dataplane, options)
	for i, o := range g.outboundList {
		o.policies = g.matched.Outbounds[i]
	}
	g.trace = g.findTracer()
	return g
}

// listOutbounds are those that the proxy has.
func (g *generator) listOutbounds() []*outbound {
	all, twice := dataplane.Outbounds(g.dp, g.mesh.VIPs)
	for _, o := range twice {
		g.warn("outbound %s is there twice: the first is used", hostPort(o.Address, o.Port))
	}
	out := make([]*outbound, len(all))
	for i, o := range all {
		out[i] = &outbound{address: o.Address, port: o.Port, tags: o.Tags, service: o.Tags[serviceTag]}
	}
	return out
}

// inboundPolicies are what applies to one inbound.
type inboundPolicies struct {
	policy.Inbound
	faults, limits []policy.Sourced
	permission     *policy.From // MeshTrafficPermissions; nil: none
	logs           *policy.From // MeshAccessLogs; nil: none
}

func (g *generator) inboundPolicies(i int) inboundPolicies {
	in := inboundPolicies{Inbound: g.matched.Inbounds[i]}
	in.faults, in.limits = in.FaultInjections, in.RateLimits
	if from := g.matched.Permission.From; i < len(from) && len(from[i].Policies) > 0 {
		in.permission = &from[i]
	}
	if from := g.matched.AccessLog.From; i < len(from) && len(from[i].Policies) > 0 {
		in.logs = &from[i]
	}
	return in
}

// specOf is the message of a policy, nil without one. Getters may be called on it all the same.
func specOf[T proto.Message](p *policy.Policy) T {
	var none T
	if p == nil {
		return none
	}
	spec, _ := p.Spec.(T)
	return spec
}

// label names a policy in errors and warnings.
func label(p *policy.Policy) string {
	if p == nil {
		return "policy"
	}
	return fmt.Sprintf("%s %q", p.Type, p.Name)
}

func cmpOr(p, fallback protocol) protocol {
	if p == unknown {
		return fallback
	}
	return p
}
