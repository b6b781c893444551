package server

import (
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/go-chi/chi/v5"

	"github.com/meridian-mesh/meridian/api/codec"
	"github.com/meridian-mesh/meridian/api/inspect"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/openapi"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// Titles of errors about what is attached to proxies.
const (
	titleMeshContext    = "Could not build MeshContext"
	titleMatched        = "Could not get MatchedPolicies"
	titleListDataplanes = "Could not list Dataplanes"
)

// inspectRoutes registers what shows which policies reach which proxies, and what a proxy itself says.
func (s *Server) inspectRoutes(t table) {
	all := resource.All()
	for i := range all {
		if d := &all[i]; d.Inspect {
			t.get("/meshes/{mesh}/"+d.Path+"/{name}/dataplanes", endpoint{s, d}.inspectPolicy,
				openapi.InspectPolicy(d, t.doc.Of(reachedProxies{})))
		}
	}
	for _, name := range [...]resource.Type{policy.MeshGateway, policy.MeshGatewayRoute} {
		d, _ := resource.Lookup(name)
		t.get("/meshes/{mesh}/"+d.Path+"/{name}/dataplanes", endpoint{s, d}.inspectGateway,
			openapi.InspectGateway(d, t.doc.Of(configuredProxies{})))
	}
	t.get("/meshes/{mesh}/dataplanes/{name}/policies", s.inspectPolicies, openapi.InspectPolicies(&openapi.Schema{
		AnyOf: []*openapi.Schema{t.doc.Of(sidecarPolicies{}), t.doc.Of(gatewayPolicies{})},
	}))
	t.get("/meshes/{mesh}/dataplanes/{name}/rules", s.inspectRules, openapi.InspectRules(t.doc.Of(proxyRules{})))
	s.askRoutes(t)
	s.explainRoute(t)
}

// meshName names a resource of a mesh.
type meshName struct {
	Mesh string `json:"mesh"`
	Name string `json:"name"`
}

// The kinds of proxies in answers.
const (
	kindSidecar = "SidecarDataplane"
	kindGateway = "MeshGatewayDataplane"
)

// sidecarPolicies is what is attached to the parts of a sidecar or delegated gateway.
type sidecarPolicies struct {
	Kind  string           `json:"kind" doc:"SidecarDataplane."`
	Total int              `json:"total"`
	Items []attachedToPart `json:"items" doc:"Sorted by type, name and service. Parts without policies are left out."`
}

// attachedToPart is a part of a proxy and what is attached to it.
type attachedToPart struct {
	inspect.Attachment

	MatchedPolicies map[string][]json.RawMessage `json:"matchedPolicies" doc:"By type: the policies, as resources, with what a targetRef policy has under spec beside its name."`
}

// gatewayPolicies is what is attached to a builtin gateway.
type gatewayPolicies struct {
	Kind      string                     `json:"kind" doc:"MeshGatewayDataplane."`
	Gateway   meshName                   `json:"gateway" doc:"The MeshGateway that configures it; the names are empty while none does."`
	Listeners []gatewayListener          `json:"listeners" null:"true" doc:"null while no MeshGateway configures it."`
	Policies  map[string]json.RawMessage `json:"policies,omitempty" doc:"Those of the whole gateway, by type."`

	MatchedPolicies map[string][]json.RawMessage `json:"matchedPolicies,omitempty" doc:"The targetRef policies of the whole gateway, by type."`
}

type gatewayListener struct {
	Port     uint32        `json:"port"`
	Protocol string        `json:"protocol"`
	Hosts    []gatewayHost `json:"hosts"`
}

type gatewayHost struct {
	HostName string         `json:"hostName"`
	Routes   []gatewayRoute `json:"routes" null:"true" doc:"null when there are none."`
}

type gatewayRoute struct {
	Route        string               `json:"route" doc:"The MeshGatewayRoute."`
	Destinations []gatewayDestination `json:"destinations"`
}

type gatewayDestination struct {
	Tags     map[string]string          `json:"tags"`
	Policies map[string]json.RawMessage `json:"policies" doc:"By type: the one that applies to connections there."`
}

// inspectPolicies serves the policies that are attached to a proxy.
func (s *Server) inspectPolicies(w http.ResponseWriter, r *http.Request) error {
	v, p, err := s.inspectedProxy(r)
	if err != nil {
		return err
	}
	render := policyRenderer{s, v.snap, nil}
	var body any
	if p.IsBuiltinGateway() {
		body = render.gateway(v, p)
	} else {
		body = render.sidecar(inspect.Policies(v.spec, v.policies, p))
	}
	if render.err != nil {
		return internal(titleMatched, render.err)
	}
	return s.sendValue(w, r, body)
}

// policyRenderer shows policies as resources. The first error is kept, and makes the rest worthless.
type policyRenderer struct {
	s    *Server
	snap *store.Snapshot
	err  error
}

func (r *policyRenderer) policy(p *policy.Policy) json.RawMessage {
	d, _ := resource.Lookup(p.Type)
	rec, ok := r.snap.Get(p.Key())
	if !ok {
		r.err = fmt.Errorf("%s is not in the state that it was matched in", p.Key())
		return nil
	}
	text, err := r.s.renders.flat(d, rec)
	if err != nil && r.err == nil {
		r.err = err
	}
	return text
}

func (r *policyRenderer) sidecar(items []inspect.Item) sidecarPolicies {
	out := sidecarPolicies{Kind: kindSidecar, Total: len(items), Items: make([]attachedToPart, len(items))}
	for i, item := range items {
		byType := make(map[string][]json.RawMessage, len(item.Policies))
		for t, policies := range item.Policies {
			for _, p := range policies {
				byType[string(t)] = append(byType[string(t)], r.policy(p))
			}
		}
		out.Items[i] = attachedToPart{item.Attachment, byType}
	}
	return out
}

func (r *policyRenderer) gateway(v *meshView, p *inspect.Proxy) gatewayPolicies {
	g := inspect.Gateway(v.policies, p)
	out := gatewayPolicies{Kind: kindGateway}
	if g.MeshGateway == nil {
		return out
	}
	out.Gateway = meshName{g.MeshGateway.Mesh, g.MeshGateway.Name}
	if len(g.Whole) > 0 {
		out.Policies = make(map[string]json.RawMessage, len(g.Whole))
	}
	for _, p := range g.Whole {
		out.Policies[string(p.Type)] = r.policy(p)
	}
	if len(g.Attached) > 0 {
		out.MatchedPolicies = make(map[string][]json.RawMessage, len(g.Attached))
	}
	for _, p := range g.Attached {
		out.MatchedPolicies[string(p.Type)] = append(out.MatchedPolicies[string(p.Type)], r.policy(p))
	}
	out.Listeners = make([]gatewayListener, len(g.Listeners))
	for i, l := range g.Listeners {
		out.Listeners[i] = gatewayListener{Port: l.Port, Protocol: l.Protocol, Hosts: make([]gatewayHost, len(l.Hosts))}
		for j, h := range l.Hosts {
			out.Listeners[i].Hosts[j] = r.host(h)
		}
	}
	return out
}

func (r *policyRenderer) host(h inspect.Host) gatewayHost {
	out := gatewayHost{HostName: h.Name}
	for _, route := range h.Routes {
		shown := gatewayRoute{Route: route.Policy.Name, Destinations: make([]gatewayDestination, len(route.Destinations))}
		for i, d := range route.Destinations {
			byType := make(map[string]json.RawMessage, len(d.Policies))
			for t, p := range d.Policies {
				byType[string(t)] = r.policy(p)
			}
			shown.Destinations[i] = gatewayDestination{d.Tags, byType}
		}
		out.Routes = append(out.Routes, shown)
	}
	return out
}

// proxyRules are the rules that targetRef policies make for a proxy.
type proxyRules struct {
	Total int         `json:"total"`
	Items []proxyRule `json:"items" null:"true" doc:"Sorted by name, type and policyType; of one inbound and policyType in the order in which they are tried. null when there are none."`
}

type proxyRule struct {
	Type       inspect.RuleKind  `json:"type" doc:"clientSubset: for some clients of an inbound; destinationSubset: for where an outbound leads; singleItem: for the proxy."`
	Name       string            `json:"name" doc:"address:port of the inbound or outbound; dataplane; pass_through, for all traffic through a builtin gateway."`
	Service    string            `json:"service" doc:"Of the inbound or outbound."`
	PolicyType string            `json:"policyType"`
	Subset     map[string]string `json:"subset" doc:"The tags of the clients or of the destination; a value that begins with ! is one that they do not have."`
	Conf       json.RawMessage   `json:"conf" doc:"What all policies together say."`
	Origins    []meshName        `json:"origins" doc:"The policies."`
}

// inspectRules serves the rules that targetRef policies make for a proxy.
func (s *Server) inspectRules(w http.ResponseWriter, r *http.Request) error {
	v, p, err := s.inspectedProxy(r)
	if err != nil {
		return err
	}
	rules, err := inspect.Rules(v.spec, v.policies, p)
	if err != nil {
		return internal(titleMatched, err)
	}
	out := proxyRules{Total: len(rules)}
	for _, rule := range rules {
		item := proxyRule{
			Type: rule.Type, Name: rule.Name, Service: rule.Service, PolicyType: string(rule.PolicyType),
			Subset: rule.Subset, Conf: rule.Conf,
		}
		for _, p := range rule.Origins {
			item.Origins = append(item.Origins, meshName{p.Mesh, p.Name})
		}
		out.Items = append(out.Items, item)
	}
	return s.sendValue(w, r, out)
}

// inspectedProxy returns the proxy that a request asks about, and its mesh.
func (s *Server) inspectedProxy(r *http.Request) (*meshView, *inspect.Proxy, error) {
	v, ok, err := s.inspected.at(r.Context(), chi.URLParam(r, "mesh"))
	switch {
	case err != nil:
		return nil, nil, internal(titleMeshContext, err)
	case !ok:
		return nil, nil, notFound(titleMeshContext)
	}
	rec, ok := v.snap.Get(store.Key{Type: string(resource.Dataplane), Mesh: v.from.name, Name: chi.URLParam(r, "name")})
	if !ok {
		return nil, nil, notFound(titleMatched)
	}
	dp, err := codec.SpecOf[*meshv1.Dataplane](rec)
	if err != nil {
		return nil, nil, internal(titleMatched, fmt.Errorf("read %s: %w", rec.Key, err))
	}
	p := v.proxy(r.Context(), decoded[*meshv1.Dataplane]{rec, dp})
	return v, &p, nil
}

// reachedProxies are the proxies that a policy reaches.
type reachedProxies struct {
	Total int            `json:"total"`
	Items []reachedProxy `json:"items" doc:"Sorted by name."`
}

// reachedProxy is a proxy, and where on it the policy is attached.
type reachedProxy struct {
	Kind        string               `json:"kind" doc:"SidecarDataplane, which has attachments, or MeshGatewayDataplane, which has gateway, and listeners unless the policy is for the whole gateway."`
	Dataplane   meshName             `json:"dataplane"`
	Attachments []inspect.Attachment `json:"attachments,omitempty"`
	Gateway     *meshName            `json:"gateway,omitempty"`
	Listeners   []reachedListener    `json:"listeners,omitempty"`
}

type reachedListener struct {
	Port     uint32        `json:"port"`
	Protocol string        `json:"protocol"`
	Hosts    []reachedHost `json:"hosts"`
}

type reachedHost struct {
	HostName string         `json:"hostName"`
	Routes   []reachedRoute `json:"routes"`
}

type reachedRoute struct {
	Route        string              `json:"route"`
	Destinations []map[string]string `json:"destinations" doc:"Their tags."`
}

// inspectPolicy serves the proxies that a policy reaches. A policy that does not exist reaches none.
func (e endpoint) inspectPolicy(w http.ResponseWriter, r *http.Request) error {
	v, ok, err := e.inspected.at(r.Context(), chi.URLParam(r, "mesh"))
	switch {
	case err != nil:
		return internal(titleListDataplanes, err)
	case !ok:
		return notFound(titleListDataplanes)
	}
	out := reachedProxies{Items: []reachedProxy{}}
	if reach, ok := inspect.NewReach(v.spec, v.policies, e.d.Name, chi.URLParam(r, "name")); ok {
		err := v.each(r.Context(), func(p *inspect.Proxy) {
			if item, ok := reached(reach, p); ok {
				item.Dataplane = meshName{v.from.name, p.Name}
				out.Items = append(out.Items, item)
			}
		})
		if err != nil {
			return internal(titleListDataplanes, err)
		}
	}
	out.Total = len(out.Items)
	return e.sendValue(w, r, out)
}

// reached shows where on a proxy a policy is attached; false when it is nowhere.
func reached(reach *inspect.Reach, p *inspect.Proxy) (reachedProxy, bool) {
	if !p.IsBuiltinGateway() {
		at := reach.Sidecar(p)
		return reachedProxy{Kind: kindSidecar, Attachments: at}, len(at) > 0
	}
	g, ok := reach.Gateway(p)
	if !ok {
		return reachedProxy{}, false
	}
	out := reachedProxy{Kind: kindGateway, Gateway: &meshName{g.MeshGateway.Mesh, g.MeshGateway.Name}}
	for _, l := range g.Listeners {
		listener := reachedListener{Port: l.Port, Protocol: l.Protocol}
		for _, h := range l.Hosts {
			host := reachedHost{HostName: h.Name}
			for _, route := range h.Routes {
				shown := reachedRoute{Route: route.Policy.Name}
				for _, d := range route.Destinations {
					shown.Destinations = append(shown.Destinations, d.Tags)
				}
				host.Routes = append(host.Routes, shown)
			}
			listener.Hosts = append(listener.Hosts, host)
		}
		out.Listeners = append(out.Listeners, listener)
	}
	return out, true
}

// configuredProxies are the builtin gateways that a gateway, or a route of one, configures.
type configuredProxies struct {
	Total int               `json:"total"`
	Items []configuredProxy `json:"items" doc:"Sorted by name."`
}

type configuredProxy struct {
	Dataplane meshName `json:"dataplane"`
}

// inspectGateway serves the proxies that a gateway, or a route of one, configures.
func (e endpoint) inspectGateway(w http.ResponseWriter, r *http.Request) error {
	title := "Could not find " + string(e.d.Name)
	v, ok, err := e.inspected.at(r.Context(), chi.URLParam(r, "mesh"))
	if err != nil {
		return internal(title, err)
	}
	if !ok {
		return notFound(title)
	}
	if _, ok := v.snap.Get(e.key(r)); !ok {
		return notFound(title)
	}
	out := configuredProxies{Items: []configuredProxy{}}
	if p, ok := v.policies.Get(e.d.Name, chi.URLParam(r, "name")); ok { // else it cannot be read
		err := v.each(r.Context(), func(proxy *inspect.Proxy) {
			if inspect.Configures(v.policies, p, proxy) {
				out.Items = append(out.Items, configuredProxy{meshName{v.from.name, proxy.Name}})
			}
		})
		if err != nil {
			return internal(title, err)
		}
	}
	out.Total = len(out.Items)
	return e.sendValue(w, r, out)
}

// sendValue answers 200 with v as JSON.
func (s *Server) sendValue(w http.ResponseWriter, r *http.Request, v any) error {
	body, err := marshal(v)
	if err != nil {
		return internal(titleGet, err)
	}
	return s.sendJSON(w, r, body)
}
