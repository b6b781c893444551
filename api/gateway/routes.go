package gateway

import (
	"slices"
	"strings"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
)

// serve attaches the routes to the hosts of a listener.
//
// A route is for the listeners whose tags it selects. Without host names it is for the host of the listener. With some it is for
// those names that the listener has too: a route for *.example.com is at the host www.example.com, and at a listener for all names
// it is at a host of its own. A name that a listener of its own has is that listener's, and the route joins the routes there. So a
// request is served by the routes of the most specific host for its name, and by no others.
func (g *Gateway) serve(set *policy.Set, l *Listener) *Listener {
	out := &Listener{Port: l.Port, Protocol: l.Protocol, ConnectionLimit: l.ConnectionLimit}
	for _, h := range l.Hosts {
		out.Hosts = append(out.Hosts, &Host{Name: h.Name, Tags: h.Tags, TLS: h.TLS})
	}
	// Of two listeners whose hosts cover the name of a route, the host for that name is made like the more specific one.
	listeners := slices.SortedFunc(slices.Values(l.Hosts), moreSpecific)
	attached := make(map[*Host][]*policy.Policy)
	for _, h := range listeners {
		for _, p := range set.Of(policy.MeshGatewayRoute) {
			if !fits(p, HTTP(l.Protocol, h.TLS)) || !p.Selects(h.Tags) {
				continue
			}
			for _, name := range h.namesOf(p) {
				target := out.host(name)
				if target == nil {
					target = &Host{Name: name, Tags: h.Tags, TLS: h.TLS}
					out.Hosts = append(out.Hosts, target)
				}
				if HTTP(l.Protocol, target.TLS) == HTTP(l.Protocol, h.TLS) && !slices.Contains(attached[target], p) {
					attached[target] = append(attached[target], p)
				}
			}
		}
	}
	for _, h := range out.Hosts {
		client := set.Client(h.Tags)
		for _, p := range attached[h] {
			h.Routes = append(h.Routes, route(client, p))
		}
		slices.SortFunc(h.Routes, func(a, b *Route) int { return strings.Compare(a.Policy.Name, b.Policy.Name) })
	}
	slices.SortFunc(out.Hosts, func(a, b *Host) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// fits reports whether a route speaks of requests where they are understood, and of connections where they are not.
func fits(p *policy.Policy, http bool) bool {
	conf := p.Spec.(*meshv1.MeshGatewayRoute).GetConf()
	return http && conf.GetHttp() != nil || !http && conf.GetTcp() != nil
}

// namesOf are the names of the host that a route is for, each once.
func (h *Host) namesOf(p *policy.Policy) []string {
	wanted := p.Spec.(*meshv1.MeshGatewayRoute).GetConf().GetHttp().GetHostnames()
	if len(wanted) == 0 {
		return []string{h.Name}
	}
	var out []string
	for _, name := range wanted {
		switch name = hostName(name); {
		case covers(name, h.Name):
			out = append(out, h.Name)
		case h.wildcard() && covers(h.Name, name):
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// warnOfIdleRoutes names the routes that select a listener and are served by none.
func (g *Gateway) warnOfIdleRoutes(set *policy.Set) {
	for _, p := range set.Of(policy.MeshGatewayRoute) {
		selects, served := false, false
		for _, l := range g.Listeners {
			for _, h := range l.Hosts {
				selects = selects || p.Selects(h.Tags)
				served = served || slices.ContainsFunc(h.Routes, func(r *Route) bool { return r.Policy == p })
			}
		}
		if selects && !served {
			g.warn("MeshGatewayRoute %q is not served: no listener that it selects has its protocol and one of its host names", p.Name)
		}
	}
}
