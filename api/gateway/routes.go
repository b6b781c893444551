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
	byName := make(map[string]*Host)
	for _, h := range l.Hosts {
		byName[h.Name] = &Host{Name: h.Name, Tags: h.Tags, TLS: h.TLS}
		out.Hosts = append(out.Hosts, byName[h.Name])
	}
	// Of two listeners whose hosts cover the name of a route, the host for that name is made like the more specific one.
	listeners := slices.SortedFunc(slices.Values(l.Hosts), moreSpecific)
	attached := make(map[*Host]map[*policy.Policy]bool)
	for _, h := range listeners {
		for _, p := range set.Of(policy.MeshGatewayRoute) {
			if !fits(p, HTTP(l.Protocol, h.TLS)) || !p.Selects(h.Tags) {
				continue
			}
			for _, name := range g.namesOf(h, p) {
				target := byName[name]
				if target == nil {
					target = &Host{Name: name, Tags: h.Tags, TLS: h.TLS}
					out.Hosts, byName[name] = append(out.Hosts, target), target
				}
				if HTTP(l.Protocol, target.TLS) == HTTP(l.Protocol, h.TLS) {
					if attached[target] == nil {
						attached[target] = make(map[*policy.Policy]bool)
					}
					attached[target][p] = true
				}
			}
		}
	}
	for _, h := range out.Hosts {
		client := set.Client(h.Tags)
		for p := range attached[h] {
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
func (g *Gateway) namesOf(h *Host, p *policy.Policy) []string {
	wanted := p.Spec.(*meshv1.MeshGatewayRoute).GetConf().GetHttp().GetHostnames()
	if len(wanted) == 0 {
		return []string{h.Name}
	}
	var out []string
	for _, name := range wanted {
		switch name = hostName(name); {
		case !isHostName(name):
			g.warn("MeshGatewayRoute %q: conf.http.hostnames: %q is not a host name, *.domain or *: the route is not for it", p.Name, name)
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
	served := make(map[*policy.Policy]bool)
	var hosts []*Host
	for _, l := range g.Listeners {
		hosts = append(hosts, l.Hosts...)
		for _, h := range l.Hosts {
			for _, r := range h.Routes {
				served[r.Policy] = true
			}
		}
	}
	for _, p := range set.Of(policy.MeshGatewayRoute) {
		if !served[p] && slices.ContainsFunc(hosts, func(h *Host) bool { return p.Selects(h.Tags) }) {
			g.warn("MeshGatewayRoute %q is not served: no listener that it selects has its protocol and one of its host names", p.Name)
		}
	}
}
