package envoy

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meridian-mesh/meridian/api/codec"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/zone/xds"
)

// The imports that stand for everything else in this package. A builtin gateway knows both.
const (
	defaultProxy = "default-proxy"
	gatewayProxy = "gateway-proxy"
)

// Operations of modifications.
const (
	opAdd       = "add"
	opRemove    = "remove"
	opPatch     = "patch"
	opAddFirst  = "addFirst"
	opAddLast   = "addLast"
	opAddBefore = "addBefore"
	opAddAfter  = "addAfter"
)

// template does to the configuration what the ProxyTemplate of the proxy says. What cannot be done is a warning: the rest of
// the configuration is better than none.
func (g *generator) template() {
	p := g.matched.ProxyTemplate
	if p == nil {
		return
	}
	name, conf := label(p), specOf[*meshv1.ProxyTemplate](p).GetConf()
	everything := false
	for _, imported := range conf.GetImports() {
		if imported != defaultProxy && (imported != gatewayProxy || !g.builtin()) {
			g.warn("%s: import %q is not known for this kind of proxy", name, imported)
			continue
		}
		everything = true
	}
	if !everything {
		// What a gateway waits for when it starts stays.
		maps.DeleteFunc(g.made, func(k resourceKey, _ *resource) bool { return k.kind != xds.Runtime })
		clear(g.secrets)
	}
	for i, raw := range conf.GetResources() {
		if err := g.rawResource(raw); err != nil {
			g.warn("%s: conf.resources[%d] %q is left out: %v", name, i, raw.GetName(), err)
		}
	}
	for i, m := range conf.GetModifications() {
		if err := g.modify(m); err != nil {
			g.warn("%s: conf.modifications[%d] is left out: %v", name, i, err)
		}
	}
}

// rawResource adds a resource as it stands in the template. It takes the place of one with its name.
func (g *generator) rawResource(raw *meshv1.ProxyTemplateRawResource) error {
	packed := &anypb.Any{}
	if err := fromYAML(raw.GetResource(), packed); err != nil {
		if strings.Contains(raw.GetResource(), "envoy.api.v2") {
			return fmt.Errorf("it is of version 2 of Envoy's API, which Envoy has given up: %w", err)
		}
		return err
	}
	m, err := packed.UnmarshalNew()
	if err != nil {
		return fmt.Errorf("read it: %w", err)
	}
	if v, ok := m.(interface{ ValidateAll() error }); ok {
		if err := v.ValidateAll(); err != nil {
			return err //nolint:wrapcheck // says it all
		}
	}
	var kind xds.Kind
	var name string
	switch m := m.(type) {
	case *clusterv3.Cluster:
		if err := noEDS(m); err != nil {
			return err
		}
		kind, name = xds.Cluster, m.GetName()
	case *listenerv3.Listener:
		kind, name = xds.Listener, m.GetName()
	case *routev3.RouteConfiguration:
		kind, name = xds.Route, m.GetName()
	case *endpointv3.ClusterLoadAssignment:
		return errors.New("endpoints come from the services of the mesh")
	default:
		return fmt.Errorf("%s is not served", m.ProtoReflect().Descriptor().FullName())
	}
	if name == "" {
		return errors.New("it has no name of its own")
	}
	if g.made == nil {
		g.made = make(resources)
	}
	g.made[resourceKey{kind, name}] = &resource{originTemplate, kind, name, m}
	return nil
}

// noEDS refuses clusters of users whose endpoints nobody knows.
func noEDS(c *clusterv3.Cluster) error {
	if c.GetType() == clusterv3.Cluster_EDS {
		return fmt.Errorf("cluster %q wants its endpoints by EDS, where only services of the mesh have some", c.GetName())
	}
	return nil
}

// fromYAML reads a message in the JSON form of protobuf, written as YAML.
func fromYAML(text string, into proto.Message) error {
	b, err := codec.JSON("application/yaml", []byte(text))
	if err != nil {
		return fmt.Errorf("read YAML: %w", err)
	}
	if err := protojson.Unmarshal(b, into); err != nil {
		// The package varies the white space of its errors on purpose; the same input is to give the same output here.
		text := strings.ReplaceAll(err.Error(), "\u00a0", " ")
		return fmt.Errorf("read %s: %s", into.ProtoReflect().Descriptor().Name(), text)
	}
	return nil
}

func (g *generator) modify(m *meshv1.ProxyTemplate_Modifications) error {
	switch t := m.GetType().(type) {
	case *meshv1.ProxyTemplate_Modifications_Cluster_:
		return g.modifyClusters(t.Cluster)
	case *meshv1.ProxyTemplate_Modifications_Listener_:
		return g.modifyListeners(t.Listener)
	case *meshv1.ProxyTemplate_Modifications_NetworkFilter_:
		return g.modifyNetworkFilters(t.NetworkFilter)
	case *meshv1.ProxyTemplate_Modifications_HttpFilter_:
		return g.modifyHTTPFilters(t.HttpFilter)
	case *meshv1.ProxyTemplate_Modifications_VirtualHost_:
		return g.modifyVirtualHosts(t.VirtualHost)
	default:
		return errors.New("it modifies nothing")
	}
}

// selected are the resources of a kind that a modification is for.
func (g *generator) selected(kind xds.Kind, from, name string) []*resource {
	var out []*resource
	for _, r := range g.made.sorted() {
		if r.kind == kind && (from == "" || string(r.origin) == from) && (name == "" || r.name == name) {
			out = append(out, r)
		}
	}
	return out
}

// replace gives a resource another content, if that is valid.
func (g *generator) replace(r *resource, m interface {
	proto.Message
	ValidateAll() error
},
) error {
	if err := m.ValidateAll(); err != nil {
		return fmt.Errorf("the result for %q is not valid: %w", r.name, err)
	}
	g.made[resourceKey{r.kind, r.name}] = &resource{r.origin, r.kind, r.name, m}
	return nil
}

// whole is a resource that modifications add, remove and patch as a whole.
type whole interface {
	proto.Message
	GetName() string
	ValidateAll() error
}

// valueOf is the value of a modification; a removal has none.
func valueOf[M proto.Message](operation, text string, into M) (M, error) {
	if operation == opRemove {
		return into, nil
	}
	return into, fromYAML(text, into)
}

// modifyWhole does an operation to the resources of a kind that are selected. check may refuse what comes out; before is nil
// for what is added.
func modifyWhole[M whole](g *generator, kind xds.Kind, operation string, value M, selected []*resource, check func(before, after M) error) error {
	if operation == opAdd {
		if value.GetName() == "" {
			return errors.New("it has no name")
		}
		var none M
		if err := check(none, value); err != nil {
			return err
		}
		return g.replace(&resource{origin: originTemplate, kind: kind, name: value.GetName()}, value)
	}
	if len(selected) == 0 {
		return errNoMatch
	}
	for _, r := range selected {
		switch operation {
		case opRemove:
			delete(g.made, resourceKey{r.kind, r.name})
		case opPatch:
			before := r.message.(M) //nolint:forcetypeassert // of its kind
			after := proto.CloneOf(before)
			patch(after, value)
			name := after.ProtoReflect().Descriptor().Fields().ByName("name")
			after.ProtoReflect().Set(name, protoreflect.ValueOfString(r.name)) // others refer to it by that
			if err := check(before, after); err != nil {
				return err
			}
			if err := g.replace(r, after); err != nil {
				return err
			}
		default:
			return unknownOperation(operation)
		}
	}
	return nil
}

func (g *generator) modifyClusters(m *meshv1.ProxyTemplate_Modifications_Cluster) error {
	value, err := valueOf(m.GetOperation(), m.GetValue(), &clusterv3.Cluster{})
	if err != nil {
		return err
	}
	found := g.selected(xds.Cluster, m.GetMatch().GetOrigin(), m.GetMatch().GetName())
	return modifyWhole(g, xds.Cluster, m.GetOperation(), value, found, func(before, after *clusterv3.Cluster) error {
		if before.GetType() == clusterv3.Cluster_EDS {
			return nil
		}
		return noEDS(after)
	})
}

func (g *generator) modifyListeners(m *meshv1.ProxyTemplate_Modifications_Listener) error {
	value, err := valueOf(m.GetOperation(), m.GetValue(), &listenerv3.Listener{})
	if err != nil {
		return err
	}
	found := g.selectedListeners(m.GetMatch().GetOrigin(), m.GetMatch().GetName(), m.GetMatch().GetTags())
	return modifyWhole(g, xds.Listener, m.GetOperation(), value, found, func(_, _ *listenerv3.Listener) error { return nil })
}

func (g *generator) selectedListeners(from, name string, tags map[string]string) []*resource {
	return slices.DeleteFunc(g.selected(xds.Listener, from, name), func(r *resource) bool {
		l := r.message.(*listenerv3.Listener) //nolint:forcetypeassert // of its kind
		have := l.GetMetadata().GetFilterMetadata()[listenerTagsKey].GetFields()
		for k, v := range tags {
			if f, ok := have[k]; !ok || v != "*" && f.GetStringValue() != v {
				return true
			}
		}
		return false
	})
}

// eachChain lets edit work on a copy of each chain of filters of some listeners, and takes over what it changed.
func (g *generator) eachChain(listeners []*resource, edit func(*listenerv3.FilterChain) (bool, error)) error {
	changed := false
	for _, r := range listeners {
		l := proto.CloneOf(r.message.(*listenerv3.Listener)) //nolint:forcetypeassert // of its kind
		edited := false
		for _, chain := range l.GetFilterChains() {
			c, err := edit(chain)
			if err != nil {
				return err
			}
			edited = edited || c
		}
		if edited {
			changed = true
			if err := g.replace(r, l); err != nil {
				return err
			}
		}
	}
	if !changed {
		return errNoMatch
	}
	return nil
}

func (g *generator) modifyNetworkFilters(m *meshv1.ProxyTemplate_Modifications_NetworkFilter) error {
	value, err := valueOf(m.GetOperation(), m.GetValue(), &listenerv3.Filter{})
	if err != nil {
		return err
	}
	match := m.GetMatch()
	found := g.selectedListeners(match.GetOrigin(), match.GetListenerName(), match.GetListenerTags())
	return g.eachChain(found, func(chain *listenerv3.FilterChain) (changed bool, err error) {
		chain.Filters, changed, err = editList(chain.Filters, m.GetOperation(), match.GetName(), value,
			func(into *listenerv3.Filter) error {
				config, err := patchConfig(into.GetTypedConfig(), value.GetTypedConfig())
				if err == nil && config != nil {
					into.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: config}
				}
				return err
			})
		return changed, err
	})
}

// eachHTTP lets edit work on the HTTP connection managers of some listeners.
func (g *generator) eachHTTP(listeners []*resource, edit func(*hcmv3.HttpConnectionManager) (bool, error)) error {
	return g.eachChain(listeners, func(chain *listenerv3.FilterChain) (bool, error) {
		changed := false
		for _, f := range chain.GetFilters() {
			m := &hcmv3.HttpConnectionManager{}
			if !f.GetTypedConfig().MessageIs(m) {
				continue
			}
			if err := f.GetTypedConfig().UnmarshalTo(m); err != nil {
				return false, fmt.Errorf("read %s: %w", f.GetName(), err)
			}
			c, err := edit(m)
			if err != nil {
				return false, err
			}
			if !c {
				continue
			}
			var p packer
			config := p.pack(m)
			if p.err != nil {
				return false, fmt.Errorf("the result is not valid: %w", p.err)
			}
			f.ConfigType = &listenerv3.Filter_TypedConfig{TypedConfig: config}
			changed = true
		}
		return changed, nil
	})
}

func (g *generator) modifyHTTPFilters(m *meshv1.ProxyTemplate_Modifications_HttpFilter) error {
	value, err := valueOf(m.GetOperation(), m.GetValue(), &hcmv3.HttpFilter{})
	if err != nil {
		return err
	}
	match := m.GetMatch()
	found := g.selectedListeners(match.GetOrigin(), match.GetListenerName(), match.GetListenerTags())
	return g.eachHTTP(found, func(hcm *hcmv3.HttpConnectionManager) (changed bool, err error) {
		hcm.HttpFilters, changed, err = editList(hcm.HttpFilters, m.GetOperation(), match.GetName(), value,
			func(into *hcmv3.HttpFilter) error {
				config, err := patchConfig(into.GetTypedConfig(), value.GetTypedConfig())
				if err == nil && config != nil {
					into.ConfigType = &hcmv3.HttpFilter_TypedConfig{TypedConfig: config}
				}
				return err
			})
		return changed, err
	})
}

func (g *generator) modifyVirtualHosts(m *meshv1.ProxyTemplate_Modifications_VirtualHost) error {
	value, err := valueOf(m.GetOperation(), m.GetValue(), &routev3.VirtualHost{})
	if err != nil {
		return err
	}
	match := m.GetMatch()
	edit := func(config *routev3.RouteConfiguration) (bool, error) {
		if config == nil || match.GetRouteConfigurationName() != "" && config.GetName() != match.GetRouteConfigurationName() {
			return false, nil
		}
		selected := func(h *routev3.VirtualHost) bool { return match.GetName() == "" || h.GetName() == match.GetName() }
		changed := false
		switch m.GetOperation() {
		case opAdd:
			config.VirtualHosts = append(config.VirtualHosts, value)
			changed = true
		case opRemove:
			n := len(config.VirtualHosts)
			config.VirtualHosts = slices.DeleteFunc(config.VirtualHosts, selected)
			changed = len(config.VirtualHosts) != n
		case opPatch:
			for _, h := range config.VirtualHosts {
				if selected(h) {
					patch(h, value)
					changed = true
				}
			}
		default:
			return false, unknownOperation(m.GetOperation())
		}
		return changed, nil
	}
	// Routes of sidecars are in their listeners, those of gateways beside them.
	found := false
	for _, r := range g.selected(xds.Route, match.GetOrigin(), "") {
		config := proto.CloneOf(r.message.(*routev3.RouteConfiguration)) //nolint:forcetypeassert // of its kind
		changed, err := edit(config)
		if err == nil && changed {
			err = g.replace(r, config)
		}
		if err != nil {
			return err
		}
		found = found || changed
	}
	err = g.eachHTTP(g.selectedListeners(match.GetOrigin(), "", nil), func(hcm *hcmv3.HttpConnectionManager) (bool, error) {
		return edit(hcm.GetRouteConfig())
	})
	if found && errors.Is(err, errNoMatch) {
		return nil
	}
	return err
}

var errNoMatch = errors.New("nothing matches it")

func unknownOperation(name string) error { return fmt.Errorf("operation %q is not known", name) }

// filter is what both kinds of filters are.
type filter interface {
	comparable
	GetName() string
}

// editList does an operation to a list of filters. name selects filters; empty: all.
func editList[F filter](list []F, operation, name string, value F, patchOne func(F) error) (out []F, changed bool, err error) {
	selected := func(f F) bool { return name == "" || f.GetName() == name }
	switch operation {
	case opAddFirst:
		return append([]F{value}, list...), true, nil
	case opAddLast:
		return append(list, value), true, nil
	case opAddBefore, opAddAfter:
		at := slices.IndexFunc(list, selected)
		if at < 0 {
			return list, false, nil
		}
		if operation == opAddAfter {
			at++
		}
		return slices.Insert(list, at, value), true, nil
	case opRemove:
		n := len(list)
		list = slices.DeleteFunc(list, selected)
		return list, len(list) != n, nil
	case opPatch:
		for _, f := range list {
			if selected(f) {
				if err := patchOne(f); err != nil {
					return list, false, err
				}
				changed = true
			}
		}
		return list, changed, nil
	default:
		return list, false, unknownOperation(operation)
	}
}

// patchConfig patches the configuration of an extension; nil when there is nothing to patch it with.
func patchConfig(into, with *anypb.Any) (*anypb.Any, error) {
	if with == nil {
		return nil, nil //nolint:nilnil // said above
	}
	value, err := with.UnmarshalNew()
	if err != nil {
		return nil, fmt.Errorf("read the configuration of the filter: %w", err)
	}
	if into != nil {
		if into.GetTypeUrl() != with.GetTypeUrl() {
			return nil, fmt.Errorf("%s does not patch %s", with.GetTypeUrl(), into.GetTypeUrl())
		}
		m, err := into.UnmarshalNew()
		if err != nil {
			return nil, fmt.Errorf("read the configuration of the filter: %w", err)
		}
		patch(m, value)
		value = m
	}
	var p packer
	config := p.pack(value)
	return config, p.err
}

// patch merges a message into another: lists grow, and what stands for one value is replaced as a whole, for one second and
// no nanoseconds must not come out as one second and half of what was there.
func patch(into, with proto.Message) {
	dropReplaced(into.ProtoReflect(), with.ProtoReflect())
	proto.Merge(into, with)
}

func dropReplaced(into, with protoreflect.Message) {
	with.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Message() == nil || f.IsList() || f.IsMap() || !into.Has(f):
		case f.Message().ParentFile().Package() == "google.protobuf" && f.Message().Name() != "Struct":
			into.Clear(f)
		default:
			dropReplaced(into.Mutable(f).Message(), v.Message())
		}
		return true
	})
}
