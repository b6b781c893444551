package envoy

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/meridian-mesh/meridian/zone/xds"
)

// origin is the part of the configuration that a resource belongs to. Templates choose by it.
type origin string

const (
	originInbound      origin = "inbound"
	originOutbound     origin = "outbound"
	originTransparent  origin = "transparent"
	originDirectAccess origin = "direct-access"
	originDNS          origin = "dns"
	originAdmin        origin = "admin"
	originProbe        origin = "probe"
	originPrometheus   origin = "prometheus"
	originTracing      origin = "tracing"
	originIngress      origin = "ingress"
	originEgress       origin = "egress"
	originGateway      origin = "gateway"
	originTemplate     origin = "proxy-template"
)

// resource is a resource before it is final.
type resource struct {
	origin  origin
	kind    xds.Kind
	name    string
	message proto.Message
}

// resources are those of one proxy, by kind and name.
type resources map[resourceKey]*resource

type resourceKey struct {
	kind xds.Kind
	name string
}

// sorted are the resources in order of kind and name.
func (rs resources) sorted() []*resource {
	return slices.SortedFunc(maps.Values(rs), func(a, b *resource) int {
		return cmp.Or(cmp.Compare(a.kind, b.kind), cmp.Compare(a.name, b.name))
	})
}

// draft is a configuration that grows, whatever kind of proxy it is for.
type draft struct {
	p       packer
	made    resources
	secrets map[string]bool
	warned  map[string]bool
	out     Output
}

func newDraft() draft { return draft{secrets: make(map[string]bool), warned: make(map[string]bool)} }

// useMeshSecrets notes that the configuration refers to the certificate of the proxy in a mesh and to the authorities there.
func (g *draft) useMeshSecrets(mesh string) {
	g.secrets[IdentitySecretName(mesh)] = true
	g.secrets[RootsSecretName(mesh)] = true
}

func (g *draft) warn(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if !g.warned[text] {
		g.warned[text] = true
		g.out.Warnings = append(g.out.Warnings, text)
	}
}

// add puts a resource into the configuration. Parts that come to the same name must mean the same: two inbounds may lead to
// one port of the workload. Where they do not, the first stays.
func (g *draft) add(from origin, kind xds.Kind, name string, m proto.Message) {
	if g.p.err != nil {
		return
	}
	if g.made == nil {
		g.made = make(resources)
	}
	key := resourceKey{kind, name}
	if have := g.made[key]; have != nil {
		if !proto.Equal(have.message, m) {
			g.warn("%s %q is wanted in two forms: the first is used", m.ProtoReflect().Descriptor().Name(), name)
		}
		return
	}
	g.made[key] = &resource{from, kind, name, m}
}

// finish applies the template of the proxy and makes the resources final.
func (g *generator) finish() (*Output, error) {
	if g.p.err == nil {
		g.template()
	}
	g.out.Services = slices.Sorted(maps.Keys(g.services))
	return g.draft.finish()
}

// finish makes the resources final.
func (g *draft) finish() (*Output, error) {
	if g.p.err != nil {
		return nil, g.p.err
	}
	for _, r := range g.made.sorted() {
		final, err := xds.NewResource(r.kind, r.name, r.message)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r.origin, err)
		}
		g.out.Resources = append(g.out.Resources, final)
	}
	// A template may have taken clusters away: their endpoints are wanted no more.
	g.out.Endpoints = slices.DeleteFunc(g.out.Endpoints, func(e EndpointRef) bool {
		return g.made[resourceKey{xds.Cluster, e.Cluster}] == nil
	})
	slices.SortFunc(g.out.Endpoints, func(a, b EndpointRef) int {
		return cmp.Or(cmp.Compare(a.Cluster, b.Cluster), cmp.Compare(a.Mesh, b.Mesh))
	})
	g.out.Secrets = slices.Sorted(maps.Keys(g.secrets))
	return &g.out, nil
}
