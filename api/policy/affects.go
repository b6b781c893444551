package policy

import (
	"slices"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
)

// Difference is what changed between two sets of the policies of one mesh.
type Difference struct {
	before, after *Set
	// removed are in before only, added in after only; a policy that changed is in both lists.
	removed, added []*Policy
}

// Diff finds what changed. It costs as much as the types that did have policies, when after was made from before by With.
func Diff(before, after *Set) Difference {
	d := Difference{before: before, after: after}
	for _, t := range Types() {
		if before.table(t) == after.table(t) {
			continue
		}
		old, now := before.Of(t), after.Of(t)
		for len(old) > 0 || len(now) > 0 {
			switch {
			case len(old) > 0 && len(now) > 0 && old[0] == now[0]:
				old, now = old[1:], now[1:]
			case len(now) == 0 || len(old) > 0 && order(old[0], now[0]) <= 0:
				d.removed, old = append(d.removed, old[0]), old[1:]
			default:
				d.added, now = append(d.added, now[0]), now[1:]
			}
		}
	}
	return d
}

// Empty reports whether nothing changed.
func (d Difference) Empty() bool { return len(d.removed) == 0 && len(d.added) == 0 }

// Touches reports whether policies of any of the types changed.
func (d Difference) Touches(types ...resource.Type) bool {
	of := func(p *Policy) bool { return slices.Contains(types, p.Type) }
	return slices.ContainsFunc(d.removed, of) || slices.ContainsFunc(d.added, of)
}

// Affects reports whether the difference may change what a proxy is given. false is certain.
func (d Difference) Affects(dp *meshv1.Dataplane, o Options) bool {
	v := viewOf(dp)
	// A mesh's first routes replace the one that all its proxies had, and its last ones leave it to them.
	firstRoutes := len(d.before.Of(TrafficRoute)) == 0 != (len(d.after.Of(TrafficRoute)) == 0)
	return firstRoutes || slices.ContainsFunc(d.removed, func(p *Policy) bool { return d.before.affects(p, v, o) }) ||
		slices.ContainsFunc(d.added, func(p *Policy) bool { return d.after.affects(p, v, o) })
}

// Affects reports whether p, a policy that is in s, may change what a proxy is given: false is certain, so that the proxy
// gets the same from s and from s without p. Options.Outbounds do not matter.
func (s *Set) Affects(p *Policy, dp *meshv1.Dataplane, o Options) bool {
	return s.affects(p, viewOf(dp), o)
}

func (s *Set) affects(p *Policy, v view, o Options) bool {
	from := func() bool {
		_, ok := bestRank(p.sources, v.all...)
		if !ok && v.builtin { // what leaves a gateway comes from its listeners
			_, ok = bestRank(p.sources, s.listeners(v).all...)
		}
		return ok
	}
	to := func() bool {
		_, ok := bestRank(p.targets, v.inbounds...)
		return ok || o.Metrics != nil && p.Selects(o.Metrics)
	}
	switch p.Type {
	case TrafficRoute:
		// Without the only route of a mesh, all its proxies have the one of a mesh without any.
		return from() || len(s.Of(TrafficRoute)) <= 1
	case Timeout, TrafficLog, HealthCheck, CircuitBreaker, Retry:
		return from()
	case RateLimit:
		return from() || to()
	case FaultInjection:
		// A builtin gateway injects the faults of the destinations itself.
		return to() || v.builtin && from()
	case TrafficPermission:
		return to() || slices.ContainsFunc(o.Externals, p.Selects)
	case TrafficTrace, ProxyTemplate:
		_, ok := bestRank(p.targets, v.all...)
		return ok
	case MeshGateway:
		// A listener for other meshes has an address there, and with it their proxies an outbound.
		_, ok := bestRank(p.targets, v.all...)
		return ok && v.builtin || slices.ContainsFunc(p.Spec.(*meshv1.MeshGateway).GetConf().GetListeners(), (*meshv1.MeshGateway_Listener).GetCrossMesh)
	case MeshGatewayRoute:
		_, ok := bestRank(p.targets, s.listeners(v).all...)
		return ok && v.builtin
	case MeshAccessLog, MeshTrace, MeshTrafficPermission:
		_, ok := bestRank(p.targets, s.listeners(v).all...)
		return ok && p.Ref.TargetRef.forType(v.proxyType())
	default: // VirtualOutbound: gives addresses to the services it selects, which all proxies may have outbounds to
		return true
	}
}
