// Package inspect says what the inspect API shows: which policies are attached to which part of a proxy, which rules hold there,
// and which proxies a policy reaches.
//
// It decides nothing itself. Which policies count is asked of api/policy, where a proxy listens of api/dataplane, and what a
// builtin gateway serves of api/gateway: the same functions that zone/envoy makes configuration of. The package is pure.
package inspect

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/meridian-mesh/meridian/api/dataplane"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/api/resource"
)

// Proxy is a proxy that is looked at. It is read-only.
type Proxy struct {
	Name      string
	Dataplane *meshv1.Dataplane
	// VIPs are the virtual addresses of the mesh as the proxy gets them. Where these are not known, their host names may stand
	// for them.
	VIPs []dataplane.VIP
}

// IsBuiltinGateway reports whether a MeshGateway configures the proxy, and not its own inbounds and outbounds.
func (p *Proxy) IsBuiltinGateway() bool {
	g := p.Dataplane.GetNetworking().GetGateway()
	return g != nil && g.GetType() == meshv1.Dataplane_Networking_Gateway_BUILTIN
}

// Kind is the part of a proxy that policies are attached to.
type Kind string

// The kinds.
const (
	AtDataplane Kind = "dataplane" // the proxy as a whole
	AtInbound   Kind = "inbound"
	AtOutbound  Kind = "outbound"
	AtService   Kind = "service" // all traffic to a service, by whatever outbound
)

// Attachment names a part of a proxy.
type Attachment struct {
	Type Kind `json:"type"`
	// Name is address:port:workloadPort of an inbound, address:port of an outbound, the service of a service.
	Name string `json:"name"`
	// Service is empty for the proxy as a whole, and for the inbound that metrics are read from.
	Service string `json:"service"`
}

func (a Attachment) compare(o Attachment) int {
	return cmp.Or(strings.Compare(string(a.Type), string(o.Type)), strings.Compare(a.Name, o.Name), strings.Compare(a.Service, o.Service))
}

// Item is a part of a proxy and what is attached to it, by type. Of several policies of a type, the order is that in which they
// apply.
type Item struct {
	Attachment
	Policies map[resource.Type][]*policy.Policy
}

// Policies returns the parts of a sidecar or delegated gateway to which policies are attached, sorted by type, name and service.
// mesh is the specification of the proxy's mesh, which says whether there is an inbound for metrics.
func Policies(mesh *meshv1.Mesh, set *policy.Set, p *Proxy) []Item {
	v := viewOf(mesh, set, p)
	items := make(items)
	whole := Attachment{Type: AtDataplane}
	items.add(whole, v.matched.TrafficTrace, v.matched.ProxyTemplate)
	for _, a := range [...]policy.Attached{v.matched.AccessLog, v.matched.Trace, v.matched.Permission} {
		items.add(whole, a.Policies...)
	}
	for i, in := range v.inbounds {
		if in.Serves() {
			items.inbound(in, in.Tags[dataplane.ServiceTag], v.matched.Inbounds[i])
		}
	}
	if v.matched.Metrics != nil {
		items.inbound(v.metrics, "", *v.matched.Metrics)
	}
	for i, out := range v.outbounds {
		m := v.matched.Outbounds[i]
		service := out.Tags[dataplane.ServiceTag]
		items.add(Attachment{AtOutbound, dataplane.HostPort(out.Address, out.Port), service}, m.TrafficRoute, m.Timeout, m.RateLimit)
		own := v.matched.Service(service)
		items.add(Attachment{AtService, service, service}, own.Retry, own.TrafficLog)
		for _, name := range policy.RouteServices(m.TrafficRoute, out.Tags) {
			to := v.matched.Service(name)
			items.add(Attachment{AtService, name, name}, to.HealthCheck, to.CircuitBreaker)
		}
	}
	items.add(Attachment{AtService, policy.PassThrough, policy.PassThrough}, v.matched.Service(policy.PassThrough).TrafficLog)
	return items.sorted()
}

// view is a proxy and the policies that it gets.
type view struct {
	inbounds  []dataplane.Inbound
	metrics   dataplane.Inbound // as far as there are any
	outbounds []dataplane.Outbound
	matched   *policy.Matched
}

func viewOf(mesh *meshv1.Mesh, set *policy.Set, p *Proxy) view {
	var v view
	for _, in := range p.Dataplane.GetNetworking().GetInbound() {
		v.inbounds = append(v.inbounds, dataplane.InboundOf(p.Dataplane, in))
	}
	v.outbounds, _ = dataplane.Outbounds(p.Dataplane, p.VIPs)
	o := policy.Options{Outbounds: make([]map[string]string, len(v.outbounds))}
	for i, out := range v.outbounds {
		o.Outbounds[i] = out.Tags
	}
	// Metrics in a form that cannot be read are not exposed.
	if m, err := dataplane.Prometheus(mesh, p.Dataplane); err == nil && m != nil {
		v.metrics = dataplane.Inbound{Address: p.Dataplane.GetNetworking().GetAddress(), Port: m.GetPort(), WorkloadPort: m.GetPort()}
		o.Metrics = m.GetTags()
	}
	v.matched = set.Match(p.Dataplane, o)
	return v
}

// items collects what is attached.
type items map[Attachment]map[resource.Type][]*policy.Policy

// add attaches policies, each once. nil is none, and what is stored nowhere is not shown.
func (is items) add(at Attachment, policies ...*policy.Policy) {
	for _, p := range policies {
		if p == nil || p.Synthetic() || slices.Contains(is[at][p.Type], p) {
			continue
		}
		if is[at] == nil {
			is[at] = make(map[resource.Type][]*policy.Policy)
		}
		is[at][p.Type] = append(is[at][p.Type], p)
	}
}

func (is items) inbound(in dataplane.Inbound, service string, m policy.Inbound) {
	at := Attachment{AtInbound, dataplane.HostPort(in.Address, in.Port) + ":" + portText(in.WorkloadPort), service}
	is.add(at, m.TrafficPermission)
	for _, sourced := range [...][]policy.Sourced{m.FaultInjections, m.RateLimits} {
		for _, s := range sourced {
			is.add(at, s.Policy)
		}
	}
}

func (is items) sorted() []Item {
	out := make([]Item, 0, len(is))
	for at, policies := range is {
		out = append(out, Item{at, policies})
	}
	slices.SortFunc(out, func(a, b Item) int { return a.compare(b.Attachment) })
	return out
}

func portText(port uint32) string { return strconv.FormatUint(uint64(port), 10) }
