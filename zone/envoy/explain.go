package envoy

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/meridian-mesh/meridian/api/explain"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/zone/topology"
)

// Bounds of an explanation.
const (
	maxListed  = 20 // endpoints of a group, instances that are down, outbounds to other services
	maxGroups  = 20 // groups whose policies are told in full
	maxSimilar = 5
)

// ExplainInput is what an explanation is made from besides the mesh.
type ExplainInput struct {
	Proxy *Proxy
	Zone  string
	// Proxyless: the proxy is a gRPC program.
	Proxyless bool
	Service   string
	// Resolve returns the address of a host name, "" while it is not known; nil: none is.
	Resolve func(host string) string
}

// explainer reads what the generator of a proxy decided.
type explainer struct {
	*generator
	in     *ExplainInput
	client *policy.Client
	ids    []string // URIs of the certificate of the proxy
	out    *explain.Explanation

	instances []instance // of this zone
	at        map[string]*instance
	permitted map[string]permission // by tags of the destination and the kind of its proxy
	parts     *destinations
	told      int // groups whose policies are told in full
}

// Explain says what becomes of the traffic of a proxy to a service. Outbounds, routes and clusters are planned, and those in question
// made, by the very code that configures the proxy; permissions are asked of the principals that inbounds get.
//
// The proxy must not be a builtin gateway.
func Explain(mesh *topology.Mesh, in *ExplainInput) *explain.Explanation {
	list := (*generator).listOutbounds
	if in.Proxyless {
		list = (*generator).grpcOutbounds
	}
	g := newGenerator(mesh, in.Proxy, list)
	x := &explainer{
		generator: g, in: in, permitted: make(map[string]permission),
		out: &explain.Explanation{
			Mesh: mesh.Name, Proxy: in.Proxy.Name, Service: in.Service, Zone: in.Zone,
			Outbounds: []explain.Outbound{}, Policies: []explain.Policy{}, Destinations: []explain.Destination{},
		},
	}
	x.client = mesh.Policies.Client(g.identityTags()...)
	for k, values := range sorted(g.tags) {
		for _, v := range values {
			if k == serviceTag {
				x.ids = append(x.ids, SPIFFEID(mesh.Name, v))
			} else {
				x.ids = append(x.ids, kumaID(k, v))
			}
		}
	}
	x.run()
	return x.out
}

// identityTags are the sets of tags by which policies know the proxy.
func (g *generator) identityTags() []map[string]string {
	var out []map[string]string
	for _, in := range g.dp.GetNetworking().GetInbound() {
		out = append(out, in.GetTags())
	}
	if gateway := g.dp.GetNetworking().GetGateway(); gateway != nil {
		out = append(out, gateway.GetTags())
	}
	return out
}

func (x *explainer) run() {
	var asked []*outbound
	for _, o := range x.outboundList {
		before := len(x.generator.out.Warnings)
		x.planOutbound(o)
		if o.service == x.in.Service {
			asked = append(asked, o)
			x.out.Warnings = append(x.out.Warnings, x.generator.out.Warnings[before:]...)
		}
	}
	if len(asked) == 0 {
		x.noOutbound()
		return
	}
	x.listInstances()
	before := len(x.generator.out.Warnings)
	var clusters []*cluster
	for _, o := range asked {
		x.out.Outbounds = append(x.out.Outbounds, x.outbound(o))
		for _, c := range o.used() {
			if !slices.Contains(clusters, c) {
				clusters = append(clusters, c)
			}
		}
		x.make(o)
	}
	first := asked[0]
	x.clientPolicies(first)
	for _, c := range clusters {
		x.out.Destinations = append(x.out.Destinations, x.destination(c, first))
	}
	x.out.Warnings = append(x.out.Warnings, x.generator.out.Warnings[before:]...)
	if x.p.err != nil {
		x.out.ConfigError = x.p.err.Error()
	}
	if p := x.matched.ProxyTemplate; p != nil {
		x.out.Warnings = append(x.out.Warnings, label(p)+" may change the configuration further, which is not looked at here")
	}
	x.conclude(asked)
}

// make makes the configuration of an outbound, for what it warns of.
func (x *explainer) make(o *outbound) {
	for _, c := range o.clusters() {
		policies := x.matched.Service(c.service)
		if x.in.Proxyless {
			x.grpcCluster(c)
		} else {
			x.addCluster(originOutbound, c, policies.CircuitBreaker, policies.HealthCheck)
		}
	}
	if x.in.Proxyless {
		x.grpcClient(o)
	} else {
		x.outboundListener(outboundListenerName(o.address, o.port), o)
	}
}

// used are the clusters that traffic can get to: rules are for requests, which only some protocols have.
func (o *outbound) used() []*cluster {
	if o.protocol.overHTTP() {
		return o.clusters()
	}
	return (&outbound{rest: o.rest}).clusters()
}

func (x *explainer) outbound(o *outbound) explain.Outbound {
	out := explain.Outbound{
		Tags: without(o.tags, serviceTag), Protocol: string(cmpOr(o.protocol, tcp)), ProtocolReason: x.protocolReason(o), Default: sharesOf(o.rest),
	}
	if x.in.Proxyless {
		out.Hostnames = grpcNames(o.service)
	} else {
		out.Address = hostPort(o.address, o.port)
	}
	for _, v := range x.mesh.VIPs {
		if v.Address == o.address && x.transparent() {
			out.Hostnames = v.Hostnames
		}
	}
	if o.protocol.overHTTP() || x.in.Proxyless {
		for _, r := range o.rules {
			out.Rules = append(out.Rules, explain.Rule{Match: matchText(r.match), To: sharesOf(r.to)})
		}
	}
	return out
}

func (x *explainer) protocolReason(o *outbound) string {
	var says []string
	for _, c := range o.clusters() {
		switch {
		case !c.known:
		case c.protocol == unknown:
			says = append(says, c.name+" does not say "+protocolTag)
		default:
			says = append(says, c.name+" has "+protocolTag+"="+string(c.protocol))
		}
	}
	switch {
	case x.in.Proxyless:
		return "gRPC programs speak gRPC"
	case len(says) == 0:
		return "no destination is known, so nothing is known of requests"
	case len(says) == 1:
		return says[0]
	default:
		return "what all have in common: " + some(says)
	}
}

func sharesOf(to []weighted) []explain.Share {
	var total uint64
	for _, w := range to {
		total += w.weight
	}
	out := make([]explain.Share, len(to))
	for i, w := range to {
		out[i] = explain.Share{Cluster: w.cluster.name, Weight: w.weight, Percent: share(w.weight, total)}
	}
	return out
}

// share is a percentage with one decimal.
func share(part, total uint64) float64 {
	if total == 0 {
		return 0
	}
	return float64((part*1000+total/2)/total) / 10
}

func matchText(m *meshv1.TrafficRoute_Http_Match) string {
	type matcher = meshv1.TrafficRoute_Http_Match_StringMatcher
	one := func(name string, m *matcher) string {
		switch t := m.GetMatcherType().(type) {
		case *meshv1.TrafficRoute_Http_Match_StringMatcher_Prefix:
			return fmt.Sprintf("%s begins with %q", name, t.Prefix)
		case *meshv1.TrafficRoute_Http_Match_StringMatcher_Exact:
			return fmt.Sprintf("%s is %q", name, t.Exact)
		case *meshv1.TrafficRoute_Http_Match_StringMatcher_Regex:
			return fmt.Sprintf("%s matches %q", name, t.Regex)
		default:
			return name + " is there"
		}
	}
	var parts []string
	if m.GetMethod() != nil {
		parts = append(parts, one("method", m.GetMethod()))
	}
	if m.GetPath() != nil {
		parts = append(parts, one("path", m.GetPath()))
	}
	for name, h := range sorted(m.GetHeaders()) {
		parts = append(parts, one("header "+name, h))
	}
	if len(parts) == 0 {
		return "all requests"
	}
	return strings.Join(parts, ", ")
}

// noOutbound says what there is instead of an outbound to the service.
func (x *explainer) noOutbound() {
	service := x.in.Service
	other := &explain.Other{TransparentProxying: x.transparent(), Outbounds: []string{}}
	_, other.ServiceExists = x.mesh.Services[service]
	for _, o := range x.outboundList {
		other.Outbounds = append(other.Outbounds, o.service)
	}
	slices.Sort(other.Outbounds)
	other.Outbounds = slices.Compact(other.Outbounds)
	other.MoreOutbounds = max(len(other.Outbounds)-maxListed, 0)
	other.Outbounds = other.Outbounds[:min(len(other.Outbounds), maxListed)]
	for name := range sorted(x.mesh.Services) {
		if len(other.Similar) < maxSimilar && name != service && similar(name, service) {
			other.Similar = append(other.Similar, name)
		}
	}
	x.out.Other, x.out.Verdict = other, explain.NoOutbound
	switch {
	case !other.ServiceExists:
		x.out.Summary = fmt.Sprintf("no service %s is known in this zone, and the proxy has no outbound to it", service)
		if len(other.Similar) > 0 {
			x.next("check the name: there is " + some(other.Similar))
		} else {
			x.next("check that a Dataplane of the mesh has an inbound with " + serviceTag + "=" + service + ", here or in a zone whose ingress is online")
		}
	case other.TransparentProxying && x.unreachable(service):
		x.out.Summary = "the service is not among networking.transparentProxying.reachableServices of the Dataplane"
		x.next("add " + service + " to reachableServices of Dataplane " + x.in.Proxy.Name)
	case other.TransparentProxying:
		x.out.Summary = "the service has no virtual address"
	default:
		x.out.Summary = "the Dataplane has no outbound to the service"
		x.next(fmt.Sprintf("add an entry with %s=%s to networking.outbound of Dataplane %s", serviceTag, service, x.in.Proxy.Name))
	}
}

// unreachable reports whether the proxy names the services that it wants virtual addresses of, and not this one.
func (x *explainer) unreachable(service string) bool {
	wanted := x.dp.GetNetworking().GetTransparentProxying().GetReachableServices()
	return len(wanted) > 0 && !slices.Contains(wanted, service)
}

func (x *explainer) next(text string) {
	if !slices.Contains(x.out.Next, text) {
		x.out.Next = append(x.out.Next, text)
	}
}

// similar reports whether two names differ by little: one is part of the other, or two characters at most are different.
func similar(a, b string) bool {
	const most, longest = 2, 253
	if a == "" || b == "" || len(a) > longest || len(b) > longest {
		return false
	}
	if len(a) > most && len(b) > most && (strings.Contains(a, b) || strings.Contains(b, a)) {
		return true
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal, row[j+1] = row[j+1], min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)] <= min(most, len(b)/2)
}

// some lists as many as one can read.
func some(list []string) string {
	const most = 3
	if len(list) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), len(list)-most)
	}
	return strings.Join(list, ", ")
}

// conclude sums up what the destinations say.
func (x *explainer) conclude(asked []*outbound) {
	unrouted := 0
	for _, o := range asked {
		if len(o.used()) == 0 || o.protocol.overHTTP() && len(o.rest) == 0 {
			unrouted++
		}
	}
	if len(x.out.Destinations) == 0 {
		x.out.Verdict = explain.NoRoute
		route := asked[0].policies.TrafficRoute
		switch {
		case route == nil:
			x.out.Summary = "no TrafficRoute of the mesh is for this traffic: connections are closed"
			x.next(fmt.Sprintf("create a TrafficRoute whose sources match this proxy and whose destinations match %s=%s", serviceTag, x.in.Service))
		case len(asked[0].rules) > 0:
			x.out.Summary = label(route) + " has rules for requests only, and the traffic is not HTTP: connections are closed"
			x.next(fmt.Sprintf("give the service %s=http, or the route a conf.destination", protocolTag))
		default:
			x.out.Summary = label(route) + " leads nowhere"
		}
		return
	}
	verdicts := make(map[explain.Verdict]bool)
	var reasons []string
	for _, d := range x.out.Destinations {
		verdicts[d.Verdict] = true
		if len(x.out.Destinations) == 1 {
			reasons = append(reasons, d.Reason)
		} else {
			reasons = append(reasons, fmt.Sprintf("%s is %s (%s)", d.Cluster, d.Verdict, d.Reason))
		}
	}
	x.out.Verdict = explain.Partly
	if len(verdicts) == 1 {
		x.out.Verdict = slices.Collect(maps.Keys(verdicts))[0]
	}
	if unrouted > 0 {
		reasons = append(reasons, "what no rule of the route is for leads nowhere")
		if x.out.Verdict == explain.Allowed {
			x.out.Verdict = explain.Partly
		}
	}
	x.out.Summary = strings.Join(reasons[:min(len(reasons), 3)], "; ")
	if len(reasons) > 3 {
		x.out.Summary += fmt.Sprintf("; and %d more", len(reasons)-3)
	}
}

// explained is the explanation of a choice. settings may be nil.
func explained[T ~string](t T, c policy.Candidates, settings []explain.Setting) explain.Policy {
	out := explain.Policy{Type: string(t), Names: []string{}, Settings: settings, MoreLost: c.MoreLost, MoreUnmatched: c.MoreUnmatched}
	for _, one := range c.List {
		name := one.Policy.Name
		if one.Policy.Synthetic() {
			name = "(none: each outbound leads to its service)"
		}
		if one.Verdict == policy.Chosen {
			out.Names = append(out.Names, name)
		}
		out.Candidates = append(out.Candidates, explain.Candidate{
			Name: name, Result: [...]string{"chosen", "lost", "unmatched"}[one.Verdict], Reason: one.Reason,
			Source: explain.Rank(one.Source), Destination: explain.Rank(one.Target),
		})
	}
	return out
}
