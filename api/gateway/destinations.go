package gateway

import (
	"maps"
	"slices"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
)

// protocolTag is what FaultInjections must ask of their destinations.
const protocolTag = "kuma.io/protocol"

func route(client *policy.Client, p *policy.Policy) *Route {
	conf := p.Spec.(*meshv1.MeshGatewayRoute).GetConf()
	r := &Route{Policy: p}
	for _, rule := range conf.GetHttp().GetRules() {
		one := &Rule{HTTP: rule, Backends: destinations(client, rule.GetBackends(), true)}
		for _, f := range rule.GetFilters() {
			if backend := f.GetMirror().GetBackend(); len(backend.GetDestination()) > 0 {
				one.Mirrors = append(one.Mirrors, destination(client, backend, true))
			}
		}
		r.Rules = append(r.Rules, one)
	}
	for _, rule := range conf.GetTcp().GetRules() {
		r.Rules = append(r.Rules, &Rule{Backends: destinations(client, rule.GetBackends(), false)})
	}
	return r
}

func destinations(client *policy.Client, backends []*meshv1.MeshGatewayRoute_Backend, http bool) []*Destination {
	var out []*Destination
	for _, b := range backends {
		out = append(out, destination(client, b, http))
	}
	return out
}

// destination finds the policies for connections from a host, whose tags are those of the client, to a backend. http: they carry
// requests.
func destination(client *policy.Client, b *meshv1.MeshGatewayRoute_Backend, http bool) *Destination {
	tags := b.GetDestination()
	d := &Destination{
		Tags: tags, Weight: b.GetWeight(),
		CircuitBreaker: client.ToTags(policy.CircuitBreaker, tags),
		HealthCheck:    client.ToTags(policy.HealthCheck, tags),
		Retry:          client.ToTags(policy.Retry, tags),
		Timeout:        client.ToTags(policy.Timeout, tags),
	}
	if !http {
		return d
	}
	d.RateLimit = client.ToTags(policy.RateLimit, tags)
	// A FaultInjection names the protocol of its destinations, which backends seldom do: the gateway speaks HTTP to them.
	if _, said := tags[protocolTag]; !said {
		tags = maps.Clone(tags)
		if tags == nil {
			tags = make(map[string]string, 1)
		}
		tags[protocolTag] = "http"
	}
	d.FaultInjection = client.ToTags(policy.FaultInjection, tags)
	return d
}

// Weights are the shares of backends among which traffic is split: where none has a weight, all have the same. A backend with 0 gets
// nothing.
func Weights(backends []*Destination) []uint32 {
	some := slices.ContainsFunc(backends, func(d *Destination) bool { return d.Weight > 0 })
	out := make([]uint32, len(backends))
	for i, d := range backends {
		if out[i] = d.Weight; !some {
			out[i] = 1
		}
	}
	return out
}

// Splits are the backends of a listener, those together among which traffic is split: of requests, those of a rule; of connections,
// which cannot say what host they mean, those of all rules of all hosts in plain text, or of a host with TLS.
func (l *Listener) Splits() [][]*Destination {
	var splits [][]*Destination
	var plain []*Destination
	for _, h := range l.Hosts {
		var connections []*Destination
		for _, r := range h.Routes {
			for _, rule := range r.Rules {
				if HTTP(l.Protocol, h.TLS) {
					splits = append(splits, rule.Backends)
				} else {
					connections = append(connections, rule.Backends...)
				}
			}
		}
		if h.TLS == nil {
			plain = append(plain, connections...)
		} else {
			splits = append(splits, connections)
		}
	}
	return append(splits, plain)
}
