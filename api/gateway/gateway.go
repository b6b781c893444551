// Package gateway decides what a builtin gateway serves: which MeshGateway configures it, on which ports, for which host names, by
// which routes, and which policies apply on the way to each destination. Configuration and inspection both ask it, so that what is
// shown is what is done.
//
// [Of] merges the listeners of the MeshGateway by port (listeners.go), attaches routes to their hosts (routes.go), and finds the
// policies of each destination (destinations.go).
//
// The package is pure, like api/policy on which it stands.
package gateway

import (
	"fmt"
	"slices"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
)

// Gateway is what a proxy serves. It does not change, and is safe for concurrent use.
type Gateway struct {
	// MeshGateway configures the proxy; nil: none selects it, and it serves nothing.
	MeshGateway *policy.Policy
	// Listeners are sorted by port.
	Listeners []*Listener
	// TrafficLog and TrafficTrace are for the whole proxy; nil: none.
	TrafficLog, TrafficTrace *policy.Policy
	// Warnings say what is asked for and not served, each once, in a form that an operator understands.
	Warnings []string
}

// Listener is a port. Several listeners of a MeshGateway may share it when they differ in their host names.
type Listener struct {
	Port     uint32
	Protocol meshv1.MeshGateway_Listener_Protocol
	// ConnectionLimit is how many connections there may be at a time; 0: no limit.
	ConnectionLimit uint32
	// Hosts are sorted by name.
	Hosts []*Host
}

// Host is what a listener serves under a host name.
type Host struct {
	// Name is a host name, *.domain, or * for what no other host of the listener is for.
	Name string
	// Tags are those of the proxy, of the MeshGateway and of the listener, where a later one overrides an earlier one.
	Tags map[string]string
	// TLS is how connections are taken on; nil: in plain text.
	TLS *meshv1.MeshGateway_TLS_Conf
	// Routes are sorted by name.
	Routes []*Route
}

// Route is a MeshGatewayRoute as far as it is for a host.
type Route struct {
	Policy *policy.Policy
	// Rules are in the order of the specification.
	Rules []*Rule
}

// Rule says where connections or requests of some form go.
type Rule struct {
	// HTTP is what requests must look like and what is done with them; nil for a TCP route.
	HTTP *meshv1.MeshGatewayRoute_HttpRoute_Rule
	// Backends are where they go. Mirrors are where copies go, one for each mirror filter that has a destination, in the order of
	// these filters.
	Backends, Mirrors []*Destination
}

// Destination is a backend and what applies to connections from the proxy to it; nil where there is no policy.
type Destination struct {
	Tags   map[string]string // kuma.io/service included
	Weight uint32

	CircuitBreaker, FaultInjection, HealthCheck, RateLimit, Retry, Timeout *policy.Policy
}

// Of says what the proxy of dp, a builtin gateway, serves.
func Of(set *policy.Set, dp *meshv1.Dataplane) *Gateway {
	m := set.Match(dp, policy.Options{})
	g := &Gateway{
		MeshGateway: m.Gateway, TrafficTrace: m.TrafficTrace, TrafficLog: m.Service(policy.PassThrough).TrafficLog,
	}
	if g.MeshGateway == nil {
		return g
	}
	for _, l := range g.ports(dp) {
		g.Listeners = append(g.Listeners, g.serve(set, l))
	}
	g.warnOfIdleRoutes(set)
	return g
}

// HTTP reports whether a listener of the given protocol, on which a host has the given TLS, understands requests. Where it does
// not, connections are passed on as they are.
func HTTP(protocol meshv1.MeshGateway_Listener_Protocol, tls *meshv1.MeshGateway_TLS_Conf) bool {
	switch protocol {
	case meshv1.MeshGateway_Listener_HTTP:
		return true
	case meshv1.MeshGateway_Listener_HTTPS:
		return tls.GetMode() != meshv1.MeshGateway_TLS_PASSTHROUGH
	default:
		return false
	}
}

func (g *Gateway) warn(format string, args ...any) {
	if text := fmt.Sprintf(format, args...); !slices.Contains(g.Warnings, text) {
		g.Warnings = append(g.Warnings, text)
	}
}
