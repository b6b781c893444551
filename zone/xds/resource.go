// Package xds serves Envoy and gRPC proxies their configuration over the aggregated discovery service. It knows resources by
// name and version, not what they are for: zone/envoy makes them, zone/reconcile decides when.
package xds

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// Kind is a kind of resource that a proxy subscribes to.
type Kind uint8

// The kinds, in the order in which a change of several is sent: what others refer to comes first.
const (
	Cluster Kind = iota
	Endpoint
	Secret
	Listener
	Route
	Runtime
	kinds
)

const typePrefix = "type.googleapis.com/envoy."

var typeURLs = [kinds]string{
	Cluster:  typePrefix + "config.cluster.v3.Cluster",
	Endpoint: typePrefix + "config.endpoint.v3.ClusterLoadAssignment",
	Secret:   typePrefix + "extensions.transport_sockets.tls.v3.Secret",
	Listener: typePrefix + "config.listener.v3.Listener",
	Route:    typePrefix + "config.route.v3.RouteConfiguration",
	Runtime:  typePrefix + "service.runtime.v3.Runtime",
}

// TypeURL is the kind's name on the wire.
func (k Kind) TypeURL() string { return typeURLs[k] }

// KindOf returns the kind with a name on the wire.
func KindOf(typeURL string) (Kind, bool) {
	i := slices.Index(typeURLs[:], typeURL)
	return Kind(max(i, 0)), i >= 0
}

// Resource is one named part of a proxy's configuration: validated and encoded once, shared by all proxies that have it.
// It never changes.
type Resource struct {
	Kind    Kind
	Name    string
	Version string // of the content: equal contents have equal versions
	Message proto.Message
	Any     *anypb.Any
}

// validator is what the Envoy types implement.
type validator interface{ ValidateAll() error }

// NewResource validates m by the rules of its own type and encodes it. m must not change afterwards.
func NewResource(kind Kind, name string, m proto.Message) (*Resource, error) {
	if v, ok := m.(validator); ok {
		if err := v.ValidateAll(); err != nil {
			return nil, fmt.Errorf("%s %q: %w", m.ProtoReflect().Descriptor().Name(), name, err)
		}
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %s %q: %w", m.ProtoReflect().Descriptor().Name(), name, err)
	}
	sum := sha256.Sum256(b)
	return &Resource{
		Kind: kind, Name: name, Version: hex.EncodeToString(sum[:8]), Message: m,
		Any: &anypb.Any{TypeUrl: kind.TypeURL(), Value: b},
	}, nil
}

// Config is the whole configuration of one proxy. It never changes.
type Config struct {
	sets [kinds]set
}

// set is the resources of one kind. All but byName is made of byName.
type set struct {
	byName  map[string]*Resource
	version string       // of the content
	sorted  []*Resource  // by name
	encoded []*anypb.Any // as sorted
}

// newSet returns the set of resources, which it keeps.
func newSet(byName map[string]*Resource) set {
	s := set{byName: byName, sorted: make([]*Resource, 0, len(byName))}
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		s.sorted = append(s.sorted, byName[name])
		_, _ = fmt.Fprintf(h, "%s\x00%s\x00", name, byName[name].Version)
	}
	s.version = hex.EncodeToString(h.Sum(nil)[:12])
	s.encoded = encoded(s.sorted)
	return s
}

// encoded returns the encoded forms of resources.
func encoded(resources []*Resource) []*anypb.Any {
	out := make([]*anypb.Any, len(resources))
	for i, r := range resources {
		out[i] = r.Any
	}
	return out
}

// NewConfig returns the configuration that consists of the resources. Two resources of one kind and name are an error.
func NewConfig(resources ...*Resource) (*Config, error) {
	c := &Config{}
	for _, r := range resources {
		s := &c.sets[r.Kind]
		if s.byName == nil {
			s.byName = make(map[string]*Resource)
		}
		if s.byName[r.Name] != nil {
			return nil, fmt.Errorf("two resources of kind %s are named %q", r.Kind.TypeURL(), r.Name)
		}
		s.byName[r.Name] = r
	}
	for i := range c.sets {
		c.sets[i] = newSet(c.sets[i].byName)
	}
	return c, nil
}

// Replace returns a copy of c in which the resources take the place of those of their kind and name.
func (c *Config) Replace(resources ...*Resource) *Config {
	n := *c
	var touched [kinds]bool
	for _, r := range resources {
		s := &n.sets[r.Kind]
		if !touched[r.Kind] {
			touched[r.Kind] = true
			if s.byName = maps.Clone(s.byName); s.byName == nil {
				s.byName = make(map[string]*Resource)
			}
		}
		s.byName[r.Name] = r
	}
	for k, t := range touched {
		if t {
			n.sets[k] = newSet(n.sets[k].byName)
		}
	}
	return &n
}

// Version is the version of all resources of a kind together.
func (c *Config) Version(k Kind) string { return c.sets[k].version }

// Get returns a resource, nil when there is none.
func (c *Config) Get(k Kind, name string) *Resource { return c.sets[k].byName[name] }

// Resources returns the resources of a kind in the order of their names. The slice is the caller's.
func (c *Config) Resources(k Kind) []*Resource { return slices.Clone(c.sets[k].sorted) }

func (c *Config) sorted(k Kind) []*Resource { return c.sets[k].sorted }
