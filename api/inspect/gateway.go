package inspect

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/meridian-mesh/meridian/api/gateway"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/api/resource"
)

// GatewayPolicies are the policies of a builtin gateway.
type GatewayPolicies struct {
	// MeshGateway configures the proxy; nil: none does, and nothing else is set.
	MeshGateway *policy.Policy
	// Whole are the policies of the proxy as a whole, at most one of a type; Attached are the targetRef policies that are for it, of
	// which there may be several.
	Whole, Attached []*policy.Policy
	// Listeners are sorted by port, what is in them by name.
	Listeners []Listener
}

// Listener is a port of a gateway.
type Listener struct {
	Port     uint32
	Protocol string
	Hosts    []Host
}

// Host is a host name that a listener serves.
type Host struct {
	Name   string
	Routes []Route
}

// Route is a MeshGatewayRoute that a host uses, and where it leads: each destination once, sorted by its tags.
type Route struct {
	Policy       *policy.Policy
	Destinations []Destination
}

// Destination is where a route leads, and what applies to connections there.
type Destination struct {
	Tags     map[string]string
	Policies map[resource.Type]*policy.Policy
}

// Gateway returns the policies of a builtin gateway.
func Gateway(set *policy.Set, p *Proxy) *GatewayPolicies {
	g := gateway.Of(set, p.Dataplane)
	out := &GatewayPolicies{MeshGateway: g.MeshGateway}
	if g.MeshGateway == nil {
		return out
	}
	m := set.Match(p.Dataplane, policy.Options{})
	for _, p := range [...]*policy.Policy{g.TrafficLog, g.TrafficTrace, m.ProxyTemplate} {
		if p != nil {
			out.Whole = append(out.Whole, p)
		}
	}
	// MeshTrafficPermissions are for sidecars only.
	out.Attached = slices.Concat(m.AccessLog.Policies, m.Trace.Policies)
	for _, l := range g.Listeners {
		listener := Listener{Port: l.Port, Protocol: l.Protocol.String()}
		idle := idleOf(l)
		for _, h := range l.Hosts {
			host := Host{Name: h.Name}
			for _, r := range h.Routes {
				host.Routes = append(host.Routes, Route{Policy: r.Policy, Destinations: destinations(r, idle)})
			}
			listener.Hosts = append(listener.Hosts, host)
		}
		out.Listeners = append(out.Listeners, listener)
	}
	return out
}

// destinations are the services of the mesh that traffic goes to by any rule, mirrors included.
func destinations(r *gateway.Route, idle map[*gateway.Destination]bool) []Destination {
	unreached := func(d *gateway.Destination) bool {
		_, known := policy.ServiceOf(d.Tags, r.Policy.Mesh)
		return !known || idle[d]
	}
	out := []Destination{}
	for _, rule := range r.Rules {
		to := slices.DeleteFunc(slices.Clone(rule.Backends), unreached)
		if redirects(rule) || len(to) == 0 {
			continue // the gateway answers by itself: there is nothing to copy either
		}
		to = append(to, slices.DeleteFunc(slices.Clone(rule.Mirrors), unreached)...)
		for _, d := range to {
			if !slices.ContainsFunc(out, func(o Destination) bool { return maps.Equal(o.Tags, d.Tags) }) {
				out = append(out, Destination{d.Tags, policiesOf(d)})
			}
		}
	}
	slices.SortFunc(out, func(a, b Destination) int { return compareTags(a.Tags, b.Tags) })
	return out
}

func redirects(rule *gateway.Rule) bool {
	return slices.ContainsFunc(rule.HTTP.GetFilters(), func(f *meshv1.MeshGatewayRoute_HttpRoute_Filter) bool { return f.GetRedirect() != nil })
}

// idleOf are the backends of a listener that get no share of the traffic.
func idleOf(l *gateway.Listener) map[*gateway.Destination]bool {
	idle := make(map[*gateway.Destination]bool)
	for _, split := range l.Splits() {
		for i, weight := range gateway.Weights(split) {
			if weight == 0 {
				idle[split[i]] = true
			}
		}
	}
	return idle
}

func policiesOf(d *gateway.Destination) map[resource.Type]*policy.Policy {
	policies := make(map[resource.Type]*policy.Policy)
	for _, p := range [...]*policy.Policy{d.CircuitBreaker, d.FaultInjection, d.HealthCheck, d.RateLimit, d.Retry, d.Timeout} {
		if p != nil {
			policies[p.Type] = p
		}
	}
	return policies
}

// compareTags orders sets of tags by their text: key=value, by key.
func compareTags(a, b map[string]string) int {
	keys := func(m map[string]string) []string { return slices.Sorted(maps.Keys(m)) }
	ka, kb := keys(a), keys(b)
	for i := range min(len(ka), len(kb)) {
		if c := cmp.Or(strings.Compare(ka[i], kb[i]), strings.Compare(a[ka[i]], b[kb[i]])); c != 0 {
			return c
		}
	}
	return cmp.Compare(len(ka), len(kb))
}
