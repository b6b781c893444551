// Package validate decides whether a resource makes sense. There is one function per type; HTTP, synchronisation and
// the check at start all call the same.
//
// What a specification says by itself is judged by Spec. What depends on other resources, or on what the resource was
// before, is judged by State. Both name every violation they find, in the order of the schema's fields, under the
// paths and with the texts that Kuma's clients know; where they differ on purpose, docs/COMPATIBILITY.md says so. That a
// body has the right form (JSON types, known enum values) is decided before, in package codec.
//
// Rules are plain Go over typed messages rather than annotations of the schema: docs/decisions/0001-validation.md has
// the reasons. A file holds a family of types and reads from top to bottom in the order of the schema; rules.go has what
// they share.
package validate

import (
	"iter"

	"google.golang.org/protobuf/proto"

	"github.com/meridian-mesh/meridian/api/codec"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// View is the state that a resource is going to be part of. *store.Snapshot is one.
type View interface {
	Get(store.Key) (*store.Record, bool)
	List(typ, mesh string) iter.Seq[*store.Record]
}

// Spec returns everything that is wrong with a specification by itself, at most 100 violations; nil when there is
// nothing. spec is in the form in which it is stored: protobuf, or JSON for the JSON types, whose fields that this
// version does not know are never wrong. One that cannot be decoded is a single violation without a field.
func Spec(d *resource.Descriptor, key store.Key, spec []byte) []codec.Violation {
	r := &report{key: key}
	if check := jsonRules[d.Name]; check != nil {
		check(r, path{}, spec)
		return r.violations
	}
	check := specRules[d.Name]
	if check == nil || d.IsJSON() {
		return nil
	}
	m := d.NewSpec()
	if err := proto.Unmarshal(spec, m); err != nil {
		r.addf(path{}, "cannot be decoded: %v", err)
		return r.violations
	}
	check(r, path{}, m)
	return r.violations
}

// State returns what is wrong with rec given everything else in view, whose own record of the same key is not looked
// at: old is what the resource was, nil when it is created. It expects a specification that Spec found nothing wrong
// with, and passes over what it cannot read.
func State(view View, d *resource.Descriptor, rec, old *store.Record) []codec.Violation {
	check := stateRules[d.Name]
	if check == nil {
		return nil
	}
	r := &report{key: rec.Key}
	check(r, view, rec, old)
	return r.violations
}

// specRules are the types whose specification has rules. The others (secrets, zones, what only planes write) may hold
// whatever decodes.
var specRules = map[resource.Type]func(*report, path, proto.Message){
	"CircuitBreaker":     rule(circuitBreaker),
	"ExternalService":    rule(externalService),
	"FaultInjection":     rule(faultInjection),
	"HealthCheck":        rule(healthCheck),
	"MeshGateway":        rule(meshGateway),
	"MeshGatewayRoute":   rule(meshGatewayRoute),
	"ProxyTemplate":      rule(proxyTemplate),
	"RateLimit":          rule(rateLimit),
	"Retry":              rule(retry),
	"Timeout":            rule(timeout),
	"TrafficLog":         rule(trafficLog),
	"TrafficPermission":  rule(trafficPermission),
	"TrafficRoute":       rule(trafficRoute),
	"TrafficTrace":       rule(trafficTrace),
	"VirtualOutbound":    rule(virtualOutbound),
	resource.Dataplane:   rule(dataplane),
	resource.Mesh:        rule(mesh),
	resource.ZoneEgress:  rule(zoneEgress),
	resource.ZoneIngress: rule(zoneIngress),
}

// rule lets a function over one message type stand in a table over all.
func rule[M proto.Message](check func(*report, path, M)) func(*report, path, proto.Message) {
	return func(r *report, at path, m proto.Message) {
		if typed, ok := m.(M); ok {
			check(r, at, typed)
		}
	}
}

// jsonRules are the types whose specification is JSON.
var jsonRules = map[resource.Type]func(*report, path, []byte){
	"MeshAccessLog":         jsonRule(meshAccessLog),
	"MeshTrace":             jsonRule(meshTrace),
	"MeshTrafficPermission": jsonRule(meshTrafficPermission),
}

// stateRules are the types that depend on others.
var stateRules = map[resource.Type]func(r *report, view View, rec, old *store.Record){
	"ExternalService":  externalServiceState,
	"RateLimit":        rateLimitState,
	resource.Dataplane: dataplaneState,
	resource.Mesh:      meshState,
}

// decode reads the specification of a record of the named type.
func decode[M proto.Message](rec *store.Record) (M, bool) {
	var none M
	d, ok := resource.Lookup(resource.Type(rec.Key.Type))
	if !ok || d.IsJSON() {
		return none, false
	}
	m, ok := d.NewSpec().(M)
	if !ok || proto.Unmarshal(rec.Spec, m) != nil {
		return none, false
	}
	return m, true
}
