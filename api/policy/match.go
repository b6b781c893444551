package policy

import (
	"cmp"
	"maps"
	"slices"

	"github.com/meridian-mesh/meridian/api/dataplane"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
)

// PassThrough is the service that stands for all traffic that leaves through no outbound. Only TrafficLog and MeshAccessLog
// know it.
const PassThrough = "pass_through"

// Options say of a proxy what its Dataplane does not.
type Options struct {
	// Metrics are the tags of the pseudo inbound from which metrics are read; nil when the proxy has none.
	Metrics map[string]string
	// Outbounds are the tags of the proxy's outbounds, where they are not those of the Dataplane: with transparent proxying
	// they follow from virtual addresses. nil: those of the Dataplane.
	Outbounds []map[string]string
	// Externals are the tags of the external services that the proxy reaches without an egress. They matter to Affects only:
	// TrafficPermissions decide which of them the proxy gets to know.
	Externals []map[string]string
}

// Matched are the policies that a proxy gets. It does not change, and is safe for concurrent use.
type Matched struct {
	// Inbounds belong to the inbounds of the Dataplane, in its order.
	Inbounds []Inbound
	// Metrics belongs to the pseudo inbound of Options.Metrics; nil when there is none.
	Metrics *Inbound
	// Outbounds belong to Options.Outbounds, or to the outbounds of the Dataplane, in that order.
	Outbounds []Outbound
	// TrafficTrace and ProxyTemplate are for the whole proxy; nil: none.
	TrafficTrace, ProxyTemplate *Policy
	// Gateway is the MeshGateway of a builtin gateway; nil: none.
	Gateway *Policy
	// AccessLog, Trace and Permission are the targetRef policies of the three types that are attached to the proxy.
	AccessLog, Trace, Permission Attached

	client *Client
}

// Inbound are the policies of one inbound, or of one external service behind an egress.
type Inbound struct {
	// TrafficPermission says who may connect: the sources of the specification. nil: nobody.
	TrafficPermission *Policy
	// FaultInjections and RateLimits all count. The most specific source comes first.
	FaultInjections, RateLimits []Sourced
}

// Sourced is a policy that applies to the requests of some clients only.
type Sourced struct {
	Policy *Policy
	// Sources are the tags of these clients, in the order of the specification; the value * stands for any. They are
	// shared: read-only.
	Sources []map[string]string
}

// Outbound are the policies of one outbound.
type Outbound struct {
	// Service is the destination.
	Service string
	// TrafficRoute is nil when the mesh has routes but none for this outbound: it leads nowhere. In a mesh without any it is
	// synthetic.
	TrafficRoute *Policy
	// Timeout and RateLimit are nil when there is none.
	Timeout, RateLimit *Policy
}

// Service are the policies of the traffic from a proxy to a service; nil where there is none.
type Service struct {
	HealthCheck, CircuitBreaker, Retry, TrafficLog *Policy
}

// clientTypes are the types whose policies are chosen by source and destination on the side of the client.
func clientTypes() [7]resource.Type {
	return [...]resource.Type{TrafficRoute, Timeout, RateLimit, TrafficLog, HealthCheck, CircuitBreaker, Retry}
}

// Match says what a proxy gets of the policies of its mesh.
func (s *Set) Match(dp *meshv1.Dataplane, o Options) *Matched {
	view := viewOf(dp)
	m := &Matched{
		Inbounds:      make([]Inbound, len(view.inbounds)),
		TrafficTrace:  s.ofProxy(TrafficTrace, view.all),
		ProxyTemplate: s.ofProxy(ProxyTemplate, view.all),
		client:        s.Client(view.all...),
	}
	for i, tags := range view.inbounds {
		m.Inbounds[i] = s.Inbound(tags)
	}
	if o.Metrics != nil {
		in := s.Inbound(o.Metrics)
		m.Metrics = &in
	}
	outbounds := o.Outbounds
	if outbounds == nil {
		for _, out := range dp.GetNetworking().GetOutbound() {
			outbounds = append(outbounds, dataplane.OutboundTags(out))
		}
	}
	m.Outbounds = make([]Outbound, len(outbounds))
	for i, tags := range outbounds {
		service := dataplane.Service(tags)
		m.Outbounds[i] = Outbound{
			Service:      service,
			TrafficRoute: m.client.To(TrafficRoute, service),
			Timeout:      m.client.To(Timeout, service),
			RateLimit:    m.client.To(RateLimit, service),
		}
	}
	if view.builtin {
		m.Gateway = s.gateway(view)
	}
	view = s.listeners(view)
	m.AccessLog = s.attached(MeshAccessLog, view)
	m.Trace = s.attached(MeshTrace, view)
	m.Permission = s.attached(MeshTrafficPermission, view)
	return m
}

// Service returns the policies of the proxy's traffic to a service. HealthCheck and CircuitBreaker are for a service that a route
// of an outbound leads to (see RouteServices); Retry and TrafficLog for the service of the outbound itself, and TrafficLog for
// PassThrough.
func (m *Matched) Service(name string) Service {
	return Service{
		HealthCheck:    m.client.To(HealthCheck, name),
		CircuitBreaker: m.client.To(CircuitBreaker, name),
		Retry:          m.client.To(Retry, name),
		TrafficLog:     m.client.To(TrafficLog, name),
	}
}

// MayReach reports whether the proxy may connect to an external service with the given tags without an egress, where
// nobody else asks: whether the permission for the service has a source that is the proxy.
func (m *Matched) MayReach(tags map[string]string) bool {
	p := m.client.set.PermissionFor(tags)
	return p != nil && m.client.isSource(p)
}

// view is a proxy as selectors see it. All tags are normalized.
type view struct {
	inbounds []map[string]string
	gateway  map[string]string // nil unless the proxy is a gateway
	builtin  bool
	all      []map[string]string // inbounds and gateway
}

func viewOf(dp *meshv1.Dataplane) view {
	var v view
	for _, in := range dp.GetNetworking().GetInbound() {
		v.inbounds = append(v.inbounds, normalize(in.GetTags()))
	}
	v.all = slices.Clip(v.inbounds)
	if gateway := dp.GetNetworking().GetGateway(); gateway != nil {
		v.gateway = normalize(gateway.GetTags())
		v.builtin = gateway.GetType() == meshv1.Dataplane_Networking_Gateway_BUILTIN
		v.all = append(v.all, v.gateway)
	}
	return v
}

// gateway is the MeshGateway that counts for a proxy.
func (s *Set) gateway(v view) *Policy { return s.ofProxy(MeshGateway, v.all) }

// listeners is how targetRef policies see a proxy. A builtin gateway has listeners instead of inbounds, whose tags are its
// own, those of the MeshGateway and those of the listener.
func (s *Set) listeners(v view) view {
	if !v.builtin {
		return v
	}
	listeners := view{gateway: v.gateway, builtin: true}
	if p := s.gateway(v); p != nil {
		spec := p.Spec.(*meshv1.MeshGateway)
		for _, l := range spec.GetConf().GetListeners() {
			tags := make(map[string]string)
			maps.Copy(tags, v.gateway)
			maps.Copy(tags, spec.GetTags())
			maps.Copy(tags, l.GetTags())
			listeners.inbounds = append(listeners.inbounds, normalize(tags))
		}
	}
	listeners.all = listeners.inbounds
	return listeners
}

// choice finds the policy that counts among those that match: the highest rank; among equals the one created last; among
// those created at the same time the first in order. Times are not known of everything that came from elsewhere: where
// one of the equals lacks its time, the first in order counts, so that every plane decides alike. The order in which
// policies are offered does not matter, nor how often.
type choice struct {
	found    bool
	rank     rank
	first    int // the least position of the equals
	latest   int // the least position of those of the equals that were created last
	timeless bool
}

func (c *choice) offer(policies []*Policy, at int, r rank) {
	better := 1
	if c.found {
		better = r.compare(c.rank)
	}
	p := policies[at]
	switch {
	case better < 0:
	case better > 0:
		*c = choice{found: true, rank: r, first: at, latest: at, timeless: p.Created.IsZero()}
	default:
		c.first = min(c.first, at)
		c.timeless = c.timeless || p.Created.IsZero()
		if d := p.Created.Compare(policies[c.latest].Created); d > 0 || d == 0 && at < c.latest {
			c.latest = at
		}
	}
}

func (c *choice) policy(policies []*Policy) *Policy {
	switch {
	case !c.found:
		return nil
	case c.timeless:
		return policies[c.first]
	default:
		return policies[c.latest]
	}
}

// single is the policy of type t that counts for something with the given tags.
func (s *Set) single(t resource.Type, tags ...map[string]string) *Policy {
	table := s.table(t)
	var c choice
	for _, set := range tags {
		for at, sel := range table.matching(set) {
			c.offer(table.policies, at, sel.rank)
		}
	}
	return c.policy(table.policies)
}

// ofProxy is the policy of type t that counts for a proxy: it selects any of its sets of tags.
func (s *Set) ofProxy(t resource.Type, tags []map[string]string) *Policy { return s.single(t, tags...) }

// Inbound returns the policies of what has the given tags and takes connections: an inbound, or for an egress an external
// service.
func (s *Set) Inbound(tags map[string]string) Inbound {
	tags = normalize(tags)
	return Inbound{
		TrafficPermission: s.single(TrafficPermission, tags),
		FaultInjections:   s.sourced(FaultInjection, tags),
		RateLimits:        s.sourced(RateLimit, tags),
	}
}

// PermissionFor returns the TrafficPermission of what has the given tags; nil when there is none.
func (s *Set) PermissionFor(tags map[string]string) *Policy {
	return s.single(TrafficPermission, normalize(tags))
}

// FaultInjectionsFor returns the FaultInjections of what has the given tags, the most specific source first.
func (s *Set) FaultInjectionsFor(tags map[string]string) []Sourced {
	return s.sourced(FaultInjection, normalize(tags))
}

// RateLimitsFor returns the RateLimits of what has the given tags, the most specific source first.
func (s *Set) RateLimitsFor(tags map[string]string) []Sourced {
	return s.sourced(RateLimit, normalize(tags))
}

// sourced are all policies of type t with a destination that matches, one entry for each such destination. The policy
// whose first source is more specific comes first; then the one created later, unless one of the equals lacks its time;
// then the first in order.
func (s *Set) sourced(t resource.Type, tags map[string]string) []Sourced {
	table := s.table(t)
	var found []int
	for at := range table.matching(tags) {
		found = append(found, at)
	}
	if len(found) == 0 {
		return nil
	}
	first := func(at int) rank {
		if sources := table.policies[at].sources; len(sources) > 0 {
			return sources[0].rank
		}
		return rank{}
	}
	timeless := make(map[rank]bool)
	for _, at := range found {
		if table.policies[at].Created.IsZero() {
			timeless[first(at)] = true
		}
	}
	slices.SortFunc(found, func(a, b int) int {
		if c := first(b).compare(first(a)); c != 0 {
			return c
		}
		if !timeless[first(a)] {
			if c := table.policies[b].Created.Compare(table.policies[a].Created); c != 0 {
				return c
			}
		}
		return cmp.Compare(a, b)
	})
	out := make([]Sourced, len(found))
	for i, at := range found {
		p := table.policies[at]
		out[i] = Sourced{Policy: p, Sources: p.sourceTags}
	}
	return out
}

// Client chooses policies for the connections of a client.
type Client struct {
	set     *Set
	sources []map[string]string // normalized
	// open are, per type, what the destinations amount to that any service matches.
	open map[resource.Type]choice
}

// Client returns what chooses policies for connections of a client that has any of the given sets of tags.
func (s *Set) Client(sources ...map[string]string) *Client {
	c := &Client{set: s, sources: make([]map[string]string, len(sources)), open: make(map[resource.Type]choice)}
	for i, tags := range sources {
		c.sources[i] = normalize(tags)
	}
	for _, t := range clientTypes() {
		table := s.table(t)
		var open choice
		for _, o := range table.open {
			if o.sel.serviceOnly() {
				c.offer(&open, table, o)
			}
		}
		c.open[t] = open
	}
	return c
}

// To returns the policy of a type that counts for connections to a service; nil when there is none. Destinations that
// want more than a service do not match: which endpoint it will be is not known where the policy acts.
func (c *Client) To(t resource.Type, service string) *Policy {
	table := c.set.table(t)
	if t == TrafficRoute && len(table.policies) == 0 {
		return c.set.routeAll
	}
	best := c.open[t]
	for _, o := range table.exact[service] {
		if o.sel.serviceOnly() {
			c.offer(&best, table, o)
		}
	}
	return best.policy(table.policies)
}

// ToTags is To for a destination of which more is known than its service: all given tags may be asked for.
func (c *Client) ToTags(t resource.Type, tags map[string]string) *Policy {
	table := c.set.table(t)
	if t == TrafficRoute && len(table.policies) == 0 {
		return c.set.routeAll
	}
	var best choice
	for at, sel := range table.matching(normalize(tags)) {
		c.offer(&best, table, target{at, sel})
	}
	return best.policy(table.policies)
}

func (c *Client) offer(best *choice, t *table, o target) {
	if r, ok := bestRank(t.policies[o.at].sources, c.sources...); ok {
		best.offer(t.policies, o.at, r.plus(o.sel.rank))
	}
}

func (c *Client) isSource(p *Policy) bool {
	_, ok := bestRank(p.sources, c.sources...)
	return ok
}
