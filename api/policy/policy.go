// Package policy decides which policies reach which proxies. Configuration of proxies and the inspect API both ask it, so
// that what is shown is what is done.
//
// There are two families. Policies with selectors compete: of those that match a connection, an inbound or a proxy, the most
// specific one counts (match.go). Policies with a targetRef add up: all that are attached to a proxy are merged into rules
// (rules.go). A [Set] holds the policies of one mesh and [Set.Match] says what a proxy gets of them.
//
// The package is pure: nothing in it reads a clock, a store or the network, and equal inputs give equal results on every
// plane.
package policy

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/meridian-mesh/meridian/api/codec"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// The types that a Set holds.
const (
	CircuitBreaker        resource.Type = "CircuitBreaker"
	FaultInjection        resource.Type = "FaultInjection"
	HealthCheck           resource.Type = "HealthCheck"
	MeshAccessLog         resource.Type = "MeshAccessLog"
	MeshGateway           resource.Type = "MeshGateway"
	MeshGatewayRoute      resource.Type = "MeshGatewayRoute"
	MeshTrace             resource.Type = "MeshTrace"
	MeshTrafficPermission resource.Type = "MeshTrafficPermission"
	ProxyTemplate         resource.Type = "ProxyTemplate"
	RateLimit             resource.Type = "RateLimit"
	Retry                 resource.Type = "Retry"
	Timeout               resource.Type = "Timeout"
	TrafficLog            resource.Type = "TrafficLog"
	TrafficPermission     resource.Type = "TrafficPermission"
	TrafficRoute          resource.Type = "TrafficRoute"
	TrafficTrace          resource.Type = "TrafficTrace"
	VirtualOutbound       resource.Type = "VirtualOutbound"
)

// externalService is listed in /policies, but it is a destination, and nothing that is matched.
const externalService resource.Type = "ExternalService"

// Holds reports whether a Set holds resources of type t.
func Holds(t resource.Type) bool {
	d, ok := resource.Lookup(t)
	return ok && holds(d)
}

func holds(d *resource.Descriptor) bool { return d.Policy && d.Name != externalService }

// Types returns the types that a Set holds, in the order of the registry.
func Types() []resource.Type {
	var types []resource.Type
	all := resource.All()
	for i := range all {
		if holds(&all[i]) {
			types = append(types, all[i].Name)
		}
	}
	return types
}

// Policy is a stored policy, decoded. It never changes, and is made by a Set only.
type Policy struct {
	Type       resource.Type
	Mesh, Name string
	Created    time.Time // zero when its owner did not say
	// Spec is the message of a policy with selectors; nil for a targetRef policy, which has Ref.
	Spec proto.Message
	// Ref is the decoded specification of a targetRef policy; nil for any other.
	Ref *Ref

	// display is the name the policy has for its owner. It decides ties: unlike Name it is the same on every plane.
	display string
	// sources are where a connection must come from; targets are what the policy is for: destinations of a connection, or
	// proxies. Both stand in the order of the specification.
	sources, targets []selector
	// sourceTags are the tags of the sources, in the spelling that proxies have.
	sourceTags []map[string]string
}

// Key is the key of the record that the policy was made from.
func (p *Policy) Key() store.Key {
	return store.Key{Type: string(p.Type), Mesh: p.Mesh, Name: p.Name}
}

// Synthetic reports whether the policy stands for a decision of ours and is not stored anywhere: the route that a mesh
// without any TrafficRoute has. It has no name.
func (p *Policy) Synthetic() bool { return p.Name == "" }

// Selects reports whether a destination or selector of the policy matches tags. A policy without any selects nothing,
// except where an empty list means all: TrafficTrace, ProxyTemplate and their like.
func (p *Policy) Selects(tags map[string]string) bool {
	_, ok := bestRank(p.targets, normalize(tags))
	return ok
}

// SelectsSource reports whether a source of the policy matches tags.
func (p *Policy) SelectsSource(tags map[string]string) bool {
	_, ok := bestRank(p.sources, normalize(tags))
	return ok
}

// connectionPolicy is what messages of policies about connections have in common; proxyPolicy, of those about proxies.
type (
	connectionPolicy interface {
		GetSources() []*meshv1.Selector
		GetDestinations() []*meshv1.Selector
	}
	proxyPolicy interface {
		GetSelectors() []*meshv1.Selector
	}
)

// decode makes a policy of a record.
func decode(d *resource.Descriptor, rec *store.Record) (*Policy, error) {
	p := &Policy{Type: d.Name, Mesh: rec.Key.Mesh, Name: rec.Key.Name, Created: rec.Created, display: resource.DisplayName(rec)}
	if d.IsJSON() {
		ref, err := decodeRef(rec.Spec)
		if err != nil {
			return nil, fmt.Errorf("decode specification of %s: %w", rec.Key, err)
		}
		p.Ref, p.targets = ref, ref.TargetRef.selectors()
		return p, nil
	}
	spec, err := codec.Spec(d, rec)
	if err != nil {
		return nil, err
	}
	p.Spec = spec
	p.compile()
	return p, nil
}

// compile makes the selectors of a policy that has a message.
func (p *Policy) compile() {
	switch spec := p.Spec.(type) {
	case connectionPolicy:
		var drop []string
		if p.Type == Retry {
			// Clients of old write the protocol there. Destinations are matched by service alone.
			drop = []string{protocolTag, oldProtocolTag}
		}
		p.sources, p.targets = selectors(spec.GetSources()), selectors(spec.GetDestinations(), drop...)
		for _, s := range spec.GetSources() {
			match := s.GetMatch()
			if p.Type == FaultInjection {
				match = spellProtocol(match)
			}
			p.sourceTags = append(p.sourceTags, match)
		}
	case proxyPolicy:
		p.targets = selectors(spec.GetSelectors())
		if len(p.targets) == 0 {
			p.targets = []selector{{}}
		}
	}
}
