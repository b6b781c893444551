package gateway

import (
	"maps"

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
