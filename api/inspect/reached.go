package inspect

import (
	"slices"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/api/resource"
)

// Reach says which proxies a policy reaches: the inverse of [Policies] and [Gateway]. It is safe for concurrent use.
type Reach struct {
	mesh   *meshv1.Mesh
	set    *policy.Set // with what decides about the policy, and nothing else
	policy *policy.Policy
}

// NewReach returns the reach of the policy of a type and name; false when there is no such policy in the set.
func NewReach(mesh *meshv1.Mesh, set *policy.Set, t resource.Type, name string) (*Reach, bool) {
	p, ok := set.Get(t, name)
	if !ok {
		return nil, false
	}
	only := []resource.Type{t, policy.MeshGateway, policy.MeshGatewayRoute}
	switch t {
	case policy.HealthCheck, policy.CircuitBreaker:
		only = append(only, policy.TrafficRoute) // which says to which services outbounds lead
	case policy.TrafficPermission, policy.FaultInjection, policy.RateLimit:
	default:
		mesh = nil // the inbound for metrics has nothing to do with it
	}
	return &Reach{mesh: mesh, set: set.Only(only...), policy: p}, true
}

// Sidecar returns the parts of a sidecar or delegated gateway that the policy is attached to, in the order of [Policies].
func (r *Reach) Sidecar(p *Proxy) []Attachment {
	if r.mesh == nil && !r.set.Affects(r.policy, p.Dataplane, policy.Options{}) {
		return nil
	}
	var at []Attachment
	for _, item := range Policies(r.mesh, r.set, p) {
		if slices.Contains(item.Policies[r.policy.Type], r.policy) {
			at = append(at, item.Attachment)
		}
	}
	return at
}

// Gateway returns the listeners of a builtin gateway, cut down to the destinations that the policy is for; without listeners when
// it is for the whole gateway. false when it is for nothing there.
func (r *Reach) Gateway(p *Proxy) (*GatewayPolicies, bool) {
	if !r.set.Affects(r.policy, p.Dataplane, policy.Options{}) {
		return nil, false
	}
	g := Gateway(r.set, p)
	if slices.Contains(g.Whole, r.policy) || slices.Contains(g.Attached, r.policy) {
		return &GatewayPolicies{MeshGateway: g.MeshGateway}, true
	}
	out := &GatewayPolicies{MeshGateway: g.MeshGateway}
	for _, l := range g.Listeners {
		listener := Listener{Port: l.Port, Protocol: l.Protocol}
		for _, h := range l.Hosts {
			host := Host{Name: h.Name}
			for _, route := range h.Routes {
				route.Destinations = slices.DeleteFunc(route.Destinations, func(d Destination) bool {
					return d.Policies[r.policy.Type] != r.policy
				})
				if len(route.Destinations) > 0 {
					host.Routes = append(host.Routes, route)
				}
			}
			if len(host.Routes) > 0 {
				listener.Hosts = append(listener.Hosts, host)
			}
		}
		if len(listener.Hosts) > 0 {
			out.Listeners = append(out.Listeners, listener)
		}
	}
	return out, len(out.Listeners) > 0
}

// Configures reports whether a builtin gateway serves something by a MeshGateway, or by a MeshGatewayRoute.
func Configures(set *policy.Set, by *policy.Policy, p *Proxy) bool {
	if !p.IsBuiltinGateway() || !set.Affects(by, p.Dataplane, policy.Options{}) {
		return false
	}
	g := Gateway(set.Only(policy.MeshGateway, policy.MeshGatewayRoute), p)
	if by.Type == policy.MeshGateway {
		return g.MeshGateway == by
	}
	return slices.ContainsFunc(g.Listeners, func(l Listener) bool {
		return slices.ContainsFunc(l.Hosts, func(h Host) bool {
			return slices.ContainsFunc(h.Routes, func(r Route) bool { return r.Policy == by })
		})
	})
}
