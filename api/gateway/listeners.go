package gateway

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

// anyHost is the host for all names that no other host is for.
const anyHost = "*"

// ports merges the listeners of the MeshGateway by port. What cannot stand beside an earlier listener is left out: one of a
// MeshGateway that this API stored fits, one that another plane sent may not. The hosts have no routes yet.
func (g *Gateway) ports(dp *meshv1.Dataplane) []*Listener {
	spec := g.MeshGateway.Spec.(*meshv1.MeshGateway)
	var out []*Listener
	for i, l := range spec.GetConf().GetListeners() {
		leaveOut := func(why string) {
			g.warn("MeshGateway %q: conf.listeners[%d] on port %d is not served: %s", g.MeshGateway.Name, i, l.GetPort(), why)
		}
		if l.GetCrossMesh() {
			leaveOut("listeners for other meshes are not supported")
			continue
		}
		switch l.GetProtocol() {
		case meshv1.MeshGateway_Listener_TCP, meshv1.MeshGateway_Listener_HTTP:
		case meshv1.MeshGateway_Listener_HTTPS, meshv1.MeshGateway_Listener_TLS:
			if l.GetTls().GetMode() == meshv1.MeshGateway_TLS_NONE {
				leaveOut("it does not say how TLS is taken on")
				continue
			}
		default:
			leaveOut("the protocol " + l.GetProtocol().String() + " is not supported")
			continue
		}
		host := newHost(dp, spec, l)
		if !isHostName(host.Name) {
			leaveOut(fmt.Sprintf("%q is not a host name, *.domain or *", host.Name))
			continue
		}
		if l.GetProtocol() == meshv1.MeshGateway_Listener_HTTP && host.TLS != nil {
			g.warn("MeshGateway %q: conf.listeners[%d] on port %d: tls has no effect with the protocol HTTP", g.MeshGateway.Name, i, l.GetPort())
			host.TLS = nil
		}
		limit := l.GetResources().GetConnectionLimit()
		at := slices.IndexFunc(out, func(o *Listener) bool { return o.Port == l.GetPort() })
		if at < 0 {
			out = append(out, &Listener{Port: l.GetPort(), Protocol: l.GetProtocol(), ConnectionLimit: limit, Hosts: []*Host{host}})
			continue
		}
		same := out[at]
		switch {
		case same.Protocol != l.GetProtocol():
			leaveOut("an earlier one has another protocol there")
			continue
		case same.host(host.Name) != nil:
			leaveOut("an earlier one is for the same host name there")
			continue
		case same.ConnectionLimit == 0:
			same.ConnectionLimit = limit
		case limit != 0 && limit != same.ConnectionLimit:
			g.warn("MeshGateway %q: the listeners on port %d have several connection limits: the first is used", g.MeshGateway.Name, l.GetPort())
		}
		same.Hosts = append(same.Hosts, host)
	}
	slices.SortFunc(out, func(a, b *Listener) int { return cmp.Compare(a.Port, b.Port) })
	return out
}

func newHost(dp *meshv1.Dataplane, spec *meshv1.MeshGateway, l *meshv1.MeshGateway_Listener) *Host {
	h := &Host{Name: hostName(l.GetHostname()), Tags: make(map[string]string)}
	maps.Copy(h.Tags, dp.GetNetworking().GetGateway().GetTags())
	maps.Copy(h.Tags, spec.GetTags())
	maps.Copy(h.Tags, l.GetTags())
	if l.GetTls().GetMode() != meshv1.MeshGateway_TLS_NONE {
		h.TLS = l.GetTls()
	}
	return h
}

// hostName is a name in the form in which names are compared.
func hostName(name string) string { return cmp.Or(strings.ToLower(name), anyHost) }

// isHostName reports whether a name is one that a listener can be for. Proxies refuse to listen for names with a * in other places.
func isHostName(name string) bool {
	domain := strings.TrimPrefix(name, anyHost+".")
	return name == anyHost || domain != "" && strings.Trim(domain, hostCharacters) == ""
}

// hostCharacters are those of DNS names, of the names that programs make do with, and of addresses.
const hostCharacters = "abcdefghijklmnopqrstuvwxyz0123456789-._:[]"

func (l *Listener) host(name string) *Host {
	for _, h := range l.Hosts {
		if h.Name == name {
			return h
		}
	}
	return nil
}

func (h *Host) wildcard() bool { return strings.HasPrefix(h.Name, anyHost) }

// covers reports whether all names that name stands for are among those that pattern stands for.
func covers(pattern, name string) bool {
	suffix, wildcard := strings.CutPrefix(pattern, anyHost)
	return pattern == name || wildcard && strings.HasSuffix(name, suffix)
}

// moreSpecific orders names so that a name comes before all patterns that cover it.
func moreSpecific(a, b *Host) int {
	return cmp.Or(cmp.Compare(len(b.Name), len(a.Name)), cmp.Compare(a.Name, b.Name))
}
