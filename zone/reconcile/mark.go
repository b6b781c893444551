package reconcile

import (
	"slices"
	"time"

	"github.com/meridian-mesh/meridian/api/dataplane"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/zone/topology"
)

// mark marks the proxies that what is different can affect.
func (r *Reconciler) mark(d *topology.Dirty, since time.Time) {
	for name, md := range d.Meshes {
		r.markMesh(name, md, since)
	}
	for _, p := range r.anyOf(r.zonal) {
		r.markZonal(p, d, since)
	}
	if d.AdminCA {
		for _, p := range r.proxies {
			r.need(p, needAll|needSecrets, causeZone, since)
		}
	}
	if !d.Empty() {
		// Of these it is not known what they depend on.
		for p := range r.failed {
			r.need(p, needAll|needSecrets, p.cause, since)
		}
	}
	if d.Available {
		r.offer.set(r.world.AvailableServices())
	}
	r.wantHosts()
}

// wantHosts tells which host names need addresses: those of endpoints, and those that proxies listen on.
func (r *Reconciler) wantHosts() {
	hosts := r.world.Hosts()
	for p := range r.hosted {
		if at, there := slices.BinarySearch(hosts, p.host); !there {
			hosts = slices.Insert(hosts, at, p.host)
		}
	}
	r.hosts.want(hosts)
}

// setAddresses takes in what host names stand for.
func (r *Reconciler) setAddresses(byHost map[string]string) {
	var moved []*proxy
	for p := range r.hosted {
		if r.world.Address(p.host) != byHost[p.host] {
			moved = append(moved, p)
		}
	}
	d := r.world.SetAddresses(byHost)
	for _, p := range moved {
		r.need(p, needAll, causeDataplane, time.Now())
	}
	r.renewAddresses(d)
	r.mark(d, time.Now())
}

// setHost notes where a proxy listens, when that is not an address.
func (r *Reconciler) setHost(p *proxy, host string) {
	if p.host == host {
		return
	}
	delete(r.hosted, p)
	if p.host = host; host != "" {
		r.hosted[p] = struct{}{}
	}
	r.wantHosts()
}

func (r *Reconciler) anyOf(s set[*proxy]) []*proxy {
	list := make([]*proxy, 0, len(s))
	for p := range s {
		list = append(list, p)
	}
	return list
}

func (r *Reconciler) markMesh(name string, md *topology.MeshDirty, since time.Time) {
	mesh := r.world.Mesh(name)
	if mesh == nil {
		// Proxies of a mesh that is not there keep what they have.
		r.trust.forget(name)
		return
	}
	switch {
	case md.Whole:
		for p := range r.byMesh[name] {
			r.need(p, needAll|needSecrets, causeMesh, since)
		}
	case len(md.Secrets) > 0:
		for p := range r.byMesh[name] {
			r.need(p, needAll|needSecrets, causeSecret, since)
		}
	}
	if !md.Policies.Empty() || md.VIPs || len(md.Dataplanes) > 0 {
		r.markByDataplane(mesh, md, since)
	}
	r.markProxyless(mesh, md, since)
	for service := range md.Services {
		for p := range r.byForm[serviceKey{name, service}] {
			r.need(p, needAll, causeService, since)
		}
	}
	for service := range md.Endpoints {
		for p := range r.byEnds[serviceKey{name, service}] {
			r.need(p, needEndpoints, causeEndpoints, since)
		}
	}
}

// markProxyless marks gRPC programs, of which more depends on services than of proxies: they may ask for any service of the
// mesh, and have the faults that are injected into servers, which the tags of all servers decide.
func (r *Reconciler) markProxyless(mesh *topology.Mesh, md *topology.MeshDirty, since time.Time) {
	faults := len(mesh.Policies.Of(policy.FaultInjection)) > 0
	if len(md.Services) == 0 && (!faults || len(md.Endpoints) == 0) {
		return
	}
	for p := range r.byMesh[mesh.Name] {
		all := p.Proxyless && len(mesh.Dataplanes[p.Name].GetNetworking().GetOutbound()) == 0
		if all && len(md.Services) > 0 {
			r.need(p, needAll, causeService, since)
		}
		if !p.Proxyless || !faults {
			continue
		}
		for service := range md.Endpoints {
			if _, has := r.byEnds[serviceKey{mesh.Name, service}][p]; has {
				r.need(p, needAll, causeService, since)
			}
		}
	}
}

// markByDataplane marks the proxies of a mesh by what their Dataplanes say.
func (r *Reconciler) markByDataplane(mesh *topology.Mesh, md *topology.MeshDirty, since time.Time) {
	options := policyOptions(mesh)
	for p := range r.byMesh[mesh.Name] {
		dp := mesh.Dataplanes[p.Name]
		_, itself := md.Dataplanes[p.Name]
		transparent := dp.GetNetworking().GetTransparentProxying()
		switch {
		case itself, len(md.Dataplanes) > 0 && len(transparent.GetDirectAccessServices()) > 0:
			r.need(p, needAll|needSecrets, causeDataplane, since)
		case dp == nil:
		case md.VIPs && transparent != nil:
			r.need(p, needAll, causeVIPs, since)
		case p.Proxyless && md.Policies.Touches(policy.FaultInjection): // clients have the faults of servers
			r.need(p, needAll, causePolicy, since)
		case !md.Policies.Empty() && md.Policies.Affects(dp, options(dp)):
			r.need(p, needAll, causePolicy, since)
		}
	}
}

// policyOptions returns what decides, beside a Dataplane, which policies reach its proxy: the tags of the listener for metrics,
// and of external services that any proxy of the mesh may reach.
func policyOptions(mesh *topology.Mesh) func(*meshv1.Dataplane) policy.Options {
	var externals []map[string]string
	for _, es := range mesh.ExternalServices {
		externals = append(externals, es.GetTags())
	}
	return func(dp *meshv1.Dataplane) policy.Options {
		metrics, _ := dataplane.Prometheus(mesh.Spec, dp) // what cannot be read fails the configuration too
		return policy.Options{Externals: externals, Metrics: metrics.GetTags()}
	}
}

// markZonal marks an ingress or an egress: its configuration is made of all meshes.
//
// An ingress has the services with workloads in this zone, the external services that belong to it, and the destinations of routes.
// An egress has the services and external services of other zones, the external services that are reached from here with their
// secrets and policies, and the destinations of routes. Both have the endpoints by EDS, which most changes are of.
func (r *Reconciler) markZonal(p *proxy, d *topology.Dirty, since time.Time) {
	_, itself := d.Ingresses[p.Name]
	types := []resource.Type{policy.TrafficRoute, policy.MeshGatewayRoute}
	if p.Kind == Egress {
		_, itself = d.Egresses[p.Name]
		types = append(types, policy.TrafficPermission, policy.FaultInjection, policy.RateLimit)
	}
	if itself {
		r.need(p, needAll|needSecrets, causeZone, since)
	}
	for name, md := range d.Meshes {
		switch {
		case md.Whole:
			r.need(p, needAll|needSecrets, causeMesh, since)
		case len(md.Secrets) > 0 && p.Kind == Egress:
			r.need(p, needAll|needSecrets, causeSecret, since)
		}
		if len(md.Services) > 0 || md.Externals {
			r.need(p, needAll, causeService, since)
		}
		if md.Policies.Touches(types...) {
			r.need(p, needAll, causePolicy, since)
		}
		mesh := r.world.Mesh(name)
		for service := range md.Remote {
			_, has := r.byEnds[serviceKey{name, service}][p]
			if p.Kind == Egress && has != (mesh != nil && len(mesh.Remote[service]) > 0) {
				r.need(p, needAll, causeService, since) // it appeared, or it is gone
			}
		}
		for _, changed := range []map[string]struct{}{md.Endpoints, md.Remote} {
			for service := range changed {
				if _, has := r.byEnds[serviceKey{name, service}][p]; has {
					r.need(p, needEndpoints, causeEndpoints, since)
				}
			}
		}
	}
}
