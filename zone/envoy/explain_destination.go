package envoy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"

	"github.com/meridian-mesh/meridian/api/explain"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/zone/topology"
)

// instance is an inbound of a proxy of this zone.
type instance struct {
	dataplane, address string
	tags               map[string]string
	ready, gateway     bool
}

// listInstances finds the inbounds of this zone, by the addresses that endpoints have.
func (x *explainer) listInstances() {
	for name, dp := range sorted(x.mesh.Dataplanes) {
		n := dp.GetNetworking()
		for _, in := range n.GetInbound() {
			host := cmp.Or(n.GetAdvertisedAddress(), in.GetAddress(), n.GetAddress())
			if !isIP(host) && x.in.Resolve != nil {
				host = cmp.Or(x.in.Resolve(host), host)
			}
			x.instances = append(x.instances, instance{
				dataplane: name, address: hostPort(host, in.GetPort()), tags: spelledNow(in.GetTags()),
				ready: in.GetHealth() == nil || in.GetHealth().GetReady(), gateway: n.GetGateway() != nil,
			})
		}
	}
	x.at = make(map[string]*instance, len(x.instances))
	for i := range x.instances {
		x.at[x.instances[i].address] = &x.instances[i]
	}
}

func (x *explainer) destination(c *cluster, o *outbound) explain.Destination {
	d := explain.Destination{
		Cluster: c.name, Service: c.service, Tags: c.tags, LoadBalancer: balancerText(c.balancer),
		TLS: x.tlsOf(c), Policies: x.clusterPolicies(c), Groups: []explain.Group{},
	}
	for _, i := range x.instances {
		switch {
		case i.ready || i.tags[serviceTag] != c.service || !carries(i.tags, c.tags):
		case len(d.Down) == maxListed:
			d.MoreDown++
		default:
			d.Down = append(d.Down, explain.Endpoint{Address: i.address, Dataplane: i.dataplane, Tags: without(i.tags, serviceTag)})
		}
	}
	x.group(&d, c, o)
	x.judge(&d, c)
	return d
}

func balancerText(lb *meshv1.TrafficRoute_LoadBalancer) string {
	switch lb.GetLbType().(type) {
	case *meshv1.TrafficRoute_LoadBalancer_LeastRequest_:
		return "least request"
	case *meshv1.TrafficRoute_LoadBalancer_RingHash_:
		return "ring hash"
	case *meshv1.TrafficRoute_LoadBalancer_Random_:
		return "random"
	case *meshv1.TrafficRoute_LoadBalancer_Maglev_:
		return "maglev"
	default:
		return "round robin"
	}
}

// tlsOf is how the proxy connects to the endpoints of a cluster.
func (x *explainer) tlsOf(c *cluster) explain.TLS {
	s := x.mesh.Services[c.service]
	if c.external {
		for _, e := range c.endpoints {
			if tls := e.External.GetNetworking().GetTls(); tls.GetEnabled() {
				return explain.TLS{
					Mode: "originated", SNI: cmp.Or(tls.GetServerName().GetValue(), e.Address),
					Reason: fmt.Sprintf("ExternalService %q enables networking.tls", e.ExternalName),
				}
			}
		}
		return explain.TLS{Mode: "plain", Reason: "the external service does not enable networking.tls"}
	}
	speaks := x.speaksTLS(c)
	if x.in.Proxyless {
		speaks = x.mtls == mtlsStrict
	}
	if !speaks {
		t := explain.TLS{Mode: "plain"}
		switch {
		case x.mtls == mtlsOff:
			t.Reason = "the mesh has no mutual TLS"
		case x.in.Proxyless:
			t.Reason = "the mesh is permissive: gRPC programs connect without TLS"
		case s.Proxyless():
			t.Reason = "the mesh is permissive, and gRPC programs without a proxy take plain connections there"
		default:
			t.Reason = "the mesh is permissive, and not every proxy of the service has a certificate yet"
		}
		return t
	}
	server := c.service
	if c.viaEgress {
		server = egressService
	}
	t := explain.TLS{
		Mode: "mutual", Reason: "the mesh is strict", SNI: SNI(x.mesh.Name, c.service, c.tags), Identity: SPIFFEID(x.mesh.Name, server),
	}
	if x.mtls == mtlsPermissive {
		t.Reason = "the mesh is permissive, and every proxy of the service has a certificate"
		if c.viaEgress {
			t.Reason = "the mesh is permissive, and egresses are always connected to with TLS"
		}
	}
	return t
}

// endpointsOf are the endpoints that the proxy has for a cluster.
func (x *explainer) endpointsOf(c *cluster) []topology.Endpoint {
	if c.external {
		return c.endpoints
	}
	var out []topology.Endpoint
	if s := x.mesh.Services[c.service]; s != nil {
		for _, e := range s.Endpoints {
			if !direct(e) && carries(e.Tags, c.tags) {
				out = append(out, e)
			}
		}
	}
	return out
}

// group adds the endpoints of a cluster, those that are alike together.
func (x *explainer) group(d *explain.Destination, c *cluster, o *outbound) {
	type key struct {
		zone, via  string
		priority   uint32
		permission string
	}
	groups, weights := make(map[key]*explain.Group), make(map[key]uint64)
	totals := make(map[uint32]uint64)
	first := make(map[key]topology.Endpoint)
	seen := make(map[string]bool)
	for _, e := range x.endpointsOf(c) {
		at := hostPort(e.Address, e.Port)
		id := at + " " + tagString(e.Tags)
		if seen[id] {
			continue
		}
		seen[id] = true
		permission := x.permissionOf(c, e)
		k := key{zone: e.Tags[zoneTag], via: viaOf(e), permission: fmt.Sprint(permission.out.Verdict, permission.out.Reason)}
		if x.mesh.Spec.GetRouting().GetLocalityAwareLoadBalancing() && e.Remote {
			k.priority = 1
		}
		g := groups[k]
		if g == nil {
			g = &explain.Group{Zone: k.zone, Via: k.via, Priority: k.priority, Permission: permission.out, Endpoints: []explain.Endpoint{}}
			groups[k], first[k] = g, e
		}
		weight := max(e.Weight, 1)
		weights[k] += uint64(weight)
		totals[k.priority] += uint64(weight)
		if g.Count++; len(g.Endpoints) < maxListed {
			shown := explain.Endpoint{Address: at, Weight: weight, Tags: without(e.Tags, serviceTag)}
			if i := x.at[at]; i != nil && !e.Remote && e.External == nil {
				shown.Dataplane = i.dataplane
			}
			g.Endpoints = append(g.Endpoints, shown)
		}
	}
	keys := slices.SortedFunc(maps.Keys(groups), func(a, b key) int {
		return cmp.Or(cmp.Compare(a.priority, b.priority), cmp.Compare(a.zone, b.zone), cmp.Compare(a.via, b.via), cmp.Compare(a.permission, b.permission))
	})
	for _, k := range keys {
		g, e := groups[k], first[k]
		if k.priority == keys[0].priority {
			g.Percent = share(weights[k], totals[k.priority])
		}
		if x.told++; x.told <= maxGroups {
			x.tell(g, c, e, o)
		}
		d.Groups = append(d.Groups, *g)
	}
}

// tell adds to a group the policies that decide about it.
func (x *explainer) tell(g *explain.Group, c *cluster, e topology.Endpoint, o *outbound) {
	switch p := x.permissionOf(c, e); {
	case !p.asks:
	case p.from != nil:
		told := explained(policy.MeshTrafficPermission, x.mesh.Policies.AttachedCandidates(policy.MeshTrafficPermission, e.Tags, x.isGateway(e)), nil)
		g.Permission.Policy = &told
	default:
		told := explained(policy.TrafficPermission, x.mesh.Policies.CandidatesFor(policy.TrafficPermission, e.Tags), nil)
		g.Permission.Policy = &told
	}
	if !direct(e) && g.Permission.Verdict == explain.Allowed && e.Tags[topology.ProxylessTag] != "true" {
		g.Policies = x.serverPolicies(e.Tags, o.protocol.overHTTP())
	}
}

func viaOf(e topology.Endpoint) string {
	switch {
	case e.ViaEgress:
		return "egress"
	case e.External != nil:
		return "external"
	case e.Remote:
		return "ingress"
	default:
		return "direct"
	}
}

func (x *explainer) isGateway(e topology.Endpoint) bool {
	i := x.at[hostPort(e.Address, e.Port)]
	return i != nil && i.gateway && !e.Remote
}

// permission is whether an endpoint lets the proxy in, and who says so.
type permission struct {
	out  explain.Permission
	asks bool         // policies are asked
	from *policy.From // the MeshTrafficPermissions that are; nil: the TrafficPermission is
	next string
}

// permissionOf asks on behalf of an endpoint.
func (x *explainer) permissionOf(c *cluster, e topology.Endpoint) permission {
	id := fmt.Sprint(c.name, "\x00", viaOf(e), e.Remote, x.isGateway(e), tagString(e.Tags))
	p, known := x.permitted[id]
	if !known {
		p = x.permission(c, e)
		x.permitted[id] = p
	}
	return p
}

func unreachable(format string, args ...any) permission {
	return permission{out: explain.Permission{Verdict: explain.Unreachable, Reason: fmt.Sprintf(format, args...)}}
}

func (x *explainer) permission(c *cluster, e topology.Endpoint) permission {
	switch {
	case direct(e):
		p := x.trafficPermission(e.Tags)
		p.out.Reason += ": this proxy is told the address"
		return p
	case (e.Remote || e.ViaEgress) && !x.passes(c):
		return unreachable("no TrafficRoute of the mesh leads to this part of the service, so zone ingresses and egresses do not know it")
	case e.External != nil && !c.viaEgress:
		return unreachable("ExternalService %q has the name of a service with workloads: egresses do not pass it on", e.ExternalName)
	case e.ViaEgress && x.mtls == mtlsOff:
		return unreachable("the mesh sends its traffic through egresses and has no mutual TLS: they pass nothing on")
	case (e.Remote || e.ViaEgress) && x.tlsOf(c).Mode != "mutual":
		return unreachable("connections to other zones must be TLS, by whose server name they are passed on, and these are plain")
	case x.mtls == mtlsOff:
		return permission{out: explain.Permission{Verdict: explain.Allowed, Reason: "the mesh has no mutual TLS"}}
	case x.tlsOf(c).Mode != "mutual":
		return permission{out: explain.Permission{
			Verdict: explain.Allowed, Reason: "the connection is plain, so nobody can tell who the client is: permissions are not asked in a permissive mesh",
		}}
	case e.External != nil:
		return x.trafficPermission(e.Tags)
	case e.Tags[topology.ProxylessTag] == "true" && x.mtls == mtlsPermissive:
		return permission{out: explain.Permission{Verdict: explain.Allowed, Reason: "gRPC programs without a proxy do not ask in a permissive mesh"}}
	}
	from := x.mesh.Policies.InboundFrom(policy.MeshTrafficPermission, e.Tags, x.isGateway(e))
	if len(from.Policies) > 0 {
		return x.meshPermission(&from)
	}
	return x.trafficPermission(e.Tags)
}

// passes reports whether proxies between zones know the part of a service that a cluster is.
func (x *explainer) passes(c *cluster) bool {
	if x.parts == nil {
		d := destinationsOf(x.mesh)
		x.parts = &d
	}
	return slices.ContainsFunc(x.parts.to(c.service), func(tags map[string]string) bool { return maps.Equal(tags, c.tags) })
}

// trafficPermission asks the TrafficPermission of what has the given tags.
func (x *explainer) trafficPermission(tags map[string]string) permission {
	p := x.mesh.Policies.PermissionFor(tags)
	out := permission{asks: true, out: explain.Permission{Verdict: explain.Denied, Checked: true}}
	service := spelledNow(tags)[serviceTag]
	if p == nil {
		out.out.Reason = "no TrafficPermission is for the destination, so nobody may connect"
		out.next = fmt.Sprintf("create a TrafficPermission with a source that matches this proxy (%s) and the destination %s=%s", x.who(), serviceTag, service)
		return out
	}
	for _, source := range specOf[*meshv1.TrafficPermission](p).GetSources() {
		if admits(principalOf(x.mesh.Name, source.GetMatch()), x.ids) {
			out.out.Verdict, out.out.Reason = explain.Allowed, label(p)+" allows it"
			return out
		}
	}
	out.out.Reason = label(p) + " is the one that counts for the destination, and none of its sources is this proxy"
	out.next = fmt.Sprintf("add a source that matches this proxy (%s) to %s", x.who(), label(p))
	return out
}

func (x *explainer) who() string {
	if services := x.tags[serviceTag]; len(services) > 0 {
		return serviceTag + "=" + services[0]
	}
	return "it has no " + serviceTag
}

// meshPermission asks MeshTrafficPermissions.
func (x *explainer) meshPermission(from *policy.From) permission {
	out := permission{asks: true, from: from, out: explain.Permission{Verdict: explain.Denied, Checked: true}}
	if from.Err != nil {
		out.out.Reason = fmt.Sprintf("the MeshTrafficPermissions cannot be made rules of: %v", from.Err)
		return out
	}
	out.out.Reason = "no rule of its MeshTrafficPermissions is for this proxy"
	out.next = fmt.Sprintf("add an item with action ALLOW for this proxy (%s) to a MeshTrafficPermission of the destination", x.who())
	for _, rule := range from.Rules {
		if !admits(x.principalOfRule(rule), x.ids) {
			continue
		}
		action, err := rule.Action()
		text := fmt.Sprintf("the rule for %s of %s", subsetText(rule), origins(rule))
		switch {
		case err != nil:
			out.out.Reason = fmt.Sprintf("%s cannot be read: %v", text, err)
		case action == policy.Deny:
			if out.out.Verdict == explain.Denied {
				out.out.Reason = text + " denies it"
			}
		case out.out.Verdict != explain.Allowed || action == policy.AllowWithShadowDeny:
			out.out.Verdict, out.out.Reason, out.next = explain.Allowed, text+" allows it", ""
			if action == policy.AllowWithShadowDeny {
				out.out.Shadow = true
				out.out.Reason += ", and counts it as what would be denied"
			}
		}
	}
	return out
}

func subsetText(r *policy.Rule) string {
	if len(r.Subset) == 0 {
		return "everyone"
	}
	list := make([]string, len(r.Subset))
	for i, t := range r.Subset {
		list[i] = t.String()
	}
	return some(list)
}

// admits reports whether a certificate with the URIs is of the principal, as Envoy decides it.
func admits(p *rbacv3.Principal, ids []string) bool {
	switch t := p.GetIdentifier().(type) {
	case *rbacv3.Principal_Any:
		return t.Any
	case *rbacv3.Principal_AndIds:
		return !slices.ContainsFunc(t.AndIds.GetIds(), func(one *rbacv3.Principal) bool { return !admits(one, ids) })
	case *rbacv3.Principal_NotId:
		return !admits(t.NotId, ids)
	case *rbacv3.Principal_Authenticated_:
		return slices.Contains(ids, t.Authenticated.GetPrincipalName().GetExact())
	default:
		return false
	}
}

// judge sums up what the endpoints of a destination say: those that get traffic while all are healthy.
func (x *explainer) judge(d *explain.Destination, c *cluster) {
	if len(d.Groups) == 0 {
		x.judgeEmpty(d, c)
		return
	}
	var verdicts []explain.Verdict
	count := 0
	for _, g := range d.Groups {
		if g.Priority != d.Groups[0].Priority {
			continue
		}
		count += g.Count
		if !slices.Contains(verdicts, g.Permission.Verdict) {
			verdicts = append(verdicts, g.Permission.Verdict)
			if d.Reason != "" {
				d.Reason += "; "
			}
			d.Reason += g.Permission.Reason
		}
	}
	for _, e := range x.endpointsOf(c) {
		if p := x.permissionOf(c, e); p.next != "" {
			x.next(p.next)
			break
		}
	}
	if d.Verdict = explain.Partly; len(verdicts) == 1 {
		d.Verdict = verdicts[0]
	}
	if d.Verdict == explain.Allowed {
		d.Reason = fmt.Sprintf("%s; %d ready", d.Reason, count)
	}
}

// judgeEmpty says why a destination has no endpoints.
func (x *explainer) judgeEmpty(d *explain.Destination, c *cluster) {
	s, down := x.mesh.Services[c.service], len(d.Down)+d.MoreDown
	d.Verdict = explain.NoEndpoints
	switch {
	case s == nil:
		d.Reason = "no service of this name is known in this zone: it has no Dataplane here, and no zone whose ingress is online offers it"
		x.next(fmt.Sprintf("check that Dataplanes with %s=%s are there, and that their zone is enabled, connected, and has an ingress", serviceTag, c.service))
	case s.External() && !x.mesh.Egress && len(s.Endpoints) > 0:
		for _, e := range s.Endpoints {
			tags := e.External.GetTags()
			if !carries(e.Tags, c.tags) || x.matched.MayReach(tags) {
				continue
			}
			d.Verdict, d.Reason = explain.Denied, "no TrafficPermission of the external service has a source that is this proxy"
			if p := x.trafficPermission(tags); p.out.Verdict == explain.Denied {
				d.Reason = p.out.Reason
				x.next(p.next)
			}
			d.TLS = explain.TLS{Mode: "plain", Reason: "nothing is connected to: only who may know an external service is told its address"}
			d.Policies = append(d.Policies, explained(policy.TrafficPermission, x.mesh.Policies.CandidatesFor(policy.TrafficPermission, tags), nil))
			return
		}
		d.Reason = fmt.Sprintf("none of the %d endpoints of the service has the tags that the route asks for", len(s.Endpoints))
	case s.External() && x.mesh.Egress && len(s.Endpoints) == 0:
		d.Reason = "the mesh sends its traffic through zone egresses (routing.zoneEgress), and this zone has none"
		x.next("start a zone egress in zone " + x.in.Zone + ", or set routing.zoneEgress of the mesh to false")
	case down > 0:
		d.Reason = fmt.Sprintf("the service has %d instances in this zone that would do, and none is ready", down)
		x.next("see why they are not ready: GET /meshes/" + x.mesh.Name + "/dataplanes+insights/" + d.Down[0].Dataplane)
	case len(s.Endpoints) > 0:
		d.Reason = fmt.Sprintf("none of the %d endpoints of the service has the tags that the route asks for", len(s.Endpoints))
		x.next("compare the tags of the destination in the TrafficRoute with those of the service's Dataplanes")
	default:
		d.Reason = "the service has no endpoint that can be used"
	}
}
