// Package explain is the answer to "why is my request failing?": what becomes of the traffic of one proxy to one service, and
// which policies, endpoints and certificates decide it. A zone makes an [Explanation]; the API shows it as JSON, or by
// [Explanation.Text] to people. Fields stand in the order in which a request travels.
package explain

// Verdict is what becomes of the traffic as a whole.
type Verdict string

// The verdicts. What has none of the others is Partly: some of the destinations take the traffic.
const (
	Allowed     Verdict = "allowed"
	Denied      Verdict = "denied"
	Partly      Verdict = "partly"
	NoOutbound  Verdict = "no outbound"
	NoRoute     Verdict = "no route"
	NoEndpoints Verdict = "no endpoints"
	// Unreachable: there are endpoints, and connections to them do not get through.
	Unreachable Verdict = "unreachable"
)

// Explanation is what becomes of the traffic from a proxy to a service, and why.
type Explanation struct {
	Verdict Verdict `json:"verdict"`
	// Summary is why, in a sentence; Next what to do about it, where that is clear.
	Summary string   `json:"summary"`
	Next    []string `json:"next,omitempty"`

	Mesh    string `json:"mesh"`
	Proxy   string `json:"proxy"`
	Service string `json:"service"`
	Zone    string `json:"zone"`
	// Connected: the proxy has a stream to this control plane. One that has none keeps what it was given before.
	Connected bool `json:"connected"`
	// ConfigError is why the proxy keeps an older configuration than is explained here.
	ConfigError string `json:"configError,omitempty"`

	// Outbounds are where the workload finds the service.
	Outbounds []Outbound `json:"outbounds"`
	// Other says what there is instead of an outbound; nil when there is one.
	Other *Other `json:"other,omitempty"`
	// Policies are those on the side of the client, the route first.
	Policies     []Policy      `json:"policies"`
	Destinations []Destination `json:"destinations"`
	// Warnings are what was asked for here and is not done.
	Warnings []string `json:"warnings,omitempty"`
}

// Outbound is where the workload finds the service, and where requests go from there.
type Outbound struct {
	Address        string            `json:"address"` // host:port; empty for a gRPC program, which asks by name
	Hostnames      []string          `json:"hostnames,omitempty"`
	Tags           map[string]string `json:"tags,omitempty"`
	Protocol       string            `json:"protocol"`
	ProtocolReason string            `json:"protocolReason"`
	// Rules are tried in order, by requests of HTTP only; Default is for the rest, and for connections. Empty: it is closed.
	Rules   []Rule  `json:"rules,omitempty"`
	Default []Share `json:"default"`
}

// Rule is a rule of the route for requests.
type Rule struct {
	Match string  `json:"match"`
	To    []Share `json:"to"`
}

// Share is the part of the traffic that a destination gets.
type Share struct {
	Cluster string  `json:"cluster"`
	Weight  uint64  `json:"weight"`
	Percent float64 `json:"percent"`
}

// Policy is a type of policies, which of them counts, and what became of the others.
type Policy struct {
	Type string `json:"type"`
	// Names are of those that count; empty: none does.
	Names    []string  `json:"names"`
	Settings []Setting `json:"settings,omitempty"`

	Candidates    []Candidate `json:"candidates,omitempty"`
	MoreLost      int         `json:"moreLost,omitempty"`
	MoreUnmatched int         `json:"moreUnmatched,omitempty"`
}

// Setting is a value that acts, e.g. of a Timeout. Durations have their unit with them.
type Setting struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Candidate is a policy, and what became of it.
type Candidate struct {
	Name   string `json:"name"`
	Result string `json:"result"` // chosen, lost or unmatched
	// Source and Destination count the tags that its selectors want.
	Source      Rank   `json:"source"`
	Destination Rank   `json:"destination"`
	Reason      string `json:"reason"`
}

// Rank is how many tags a selector wants to have an exact value, and how many any value.
type Rank struct {
	Exact    int `json:"exact"`
	Wildcard int `json:"wildcard"`
}

// Destination is a cluster that the outbounds lead to.
type Destination struct {
	Cluster      string            `json:"cluster"`
	Service      string            `json:"service"`
	Tags         map[string]string `json:"tags,omitempty"` // of the part of the service, without the service
	Verdict      Verdict           `json:"verdict"`
	Reason       string            `json:"reason"`
	LoadBalancer string            `json:"loadBalancer"`
	TLS          TLS               `json:"tls"`
	Policies     []Policy          `json:"policies"`
	Groups       []Group           `json:"groups"`
	// Down are instances of this zone that are not ready; MoreDown counts those that are not listed.
	Down     []Endpoint `json:"down,omitempty"`
	MoreDown int        `json:"moreDown,omitempty"`
}

// TLS is how the proxy connects to a destination.
type TLS struct {
	Mode   string `json:"mode"` // mutual, plain, or originated: by the settings of an external service
	Reason string `json:"reason"`
	SNI    string `json:"sni,omitempty"`
	// Identity is who the other end must prove to be.
	Identity string `json:"identity,omitempty"`
}

// Group are endpoints that are alike: in a zone, on the same way, and with the same permission.
type Group struct {
	Zone string `json:"zone"`
	Via  string `json:"via"` // direct, ingress, egress or external
	// Priority 1 gets traffic only while nothing of priority 0 is healthy.
	Priority uint32 `json:"priority"`
	// Count is how many endpoints there are, Endpoints the first of them; Percent is their share of the destination's traffic.
	Count      int        `json:"count"`
	Percent    float64    `json:"percent"`
	Endpoints  []Endpoint `json:"endpoints"`
	Permission Permission `json:"permission"`
	// Policies at the destination that hit this client: FaultInjections and RateLimits.
	Policies []Policy `json:"policies,omitempty"`
}

// Endpoint is an address.
type Endpoint struct {
	Address   string            `json:"address"`
	Weight    uint32            `json:"weight,omitempty"`
	Dataplane string            `json:"dataplane,omitempty"`
	Tags      map[string]string `json:"tags,omitempty"`
}

// Permission is whether endpoints let the proxy in.
type Permission struct {
	Verdict Verdict `json:"verdict"` // allowed, denied or unreachable
	// Checked: somebody asks. Without mutual TLS nobody does.
	Checked bool   `json:"checked"`
	Reason  string `json:"reason"`
	// Shadow: allowed, but reported as what would be denied.
	Shadow bool `json:"shadow,omitempty"`
	// Policy is what is asked; nil when nobody asks.
	Policy *Policy `json:"policy,omitempty"`
}

// Other is what a proxy without an outbound to the service has instead.
type Other struct {
	// TransparentProxying: outbounds follow from virtual addresses, and need not be listed.
	TransparentProxying bool `json:"transparentProxying"`
	// ServiceExists: the service is known in this zone.
	ServiceExists bool `json:"serviceExists"`
	// Outbounds are services that the proxy has outbounds to; MoreOutbounds counts those that are not listed.
	Outbounds     []string `json:"outbounds"`
	MoreOutbounds int      `json:"moreOutbounds,omitempty"`
	// Similar are services of the mesh with names that are alike.
	Similar []string `json:"similar,omitempty"`
}
