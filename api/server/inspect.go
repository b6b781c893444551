package server

import (
	"fmt"
	"net/http"

	"github.com/go-chi/chi/v5"

	"github.com/meridian-mesh/meridian/api/codec"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/openapi"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// Titles of errors about what is attached to proxies, and about asking a proxy.
const (
	titleMeshContext      = "Could not build MeshContext"
	titleMatched          = "Could not get MatchedPolicies"
	titleListDataplanes   = "Could not list Dataplanes"
	titleAdmin            = "Could not execute admin operation"
	titleIngressElsewhere = "Could not connect to zone ingress that resides in another zone"
)

// inspectRoutes registers what shows which policies reach which proxies, and what a proxy itself says.
//
// This plane configures no proxies: nothing is attached to any of them, and none is connected. So every answer is an
// empty one, or says that the proxy cannot be asked; whether the mesh, the policy and the proxy exist is checked as if
// there were more to say.
func (s *Server) inspectRoutes(t table) {
	all := resource.All()
	for i := range all {
		if d := &all[i]; d.Inspect {
			t.get("/meshes/{mesh}/"+d.Path+"/{name}/dataplanes", s.inspectPolicy,
				openapi.Inspect(d, "Proxies", "List the proxies that it reaches", t.doc.Of(attached{})))
		}
	}
	for _, name := range [...]resource.Type{"MeshGateway", "MeshGatewayRoute"} {
		d, _ := resource.Lookup(name)
		t.get("/meshes/{mesh}/"+d.Path+"/{name}/dataplanes", endpoint{s, d}.inspectGateway,
			openapi.Inspect(d, "Proxies", "List the proxies that it configures", t.doc.Of(attached{})))
	}
	dataplane, _ := resource.Lookup(resource.Dataplane)
	t.get("/meshes/{mesh}/dataplanes/{name}/policies", s.inspectPolicies, openapi.Inspect(dataplane, "Policies",
		"List the policies that reach it", &openapi.Schema{AnyOf: []*openapi.Schema{t.doc.Of(attached{}), t.doc.Of(gatewayPolicies{})}}))
	t.get("/meshes/{mesh}/dataplanes/{name}/rules", s.inspectRules,
		openapi.Inspect(dataplane, "Rules", "List the rules that targetRef policies make for it", t.doc.Of(attached{})))

	for _, p := range [...]struct {
		typ           resource.Type
		path, missing string
	}{
		{resource.Dataplane, "/meshes/{mesh}/dataplanes/{name}", "Could not get dataplane resource"},
		{resource.ZoneIngress, "/zoneingresses/{name}", "Could not get zone ingress resource"},
		{resource.ZoneEgress, "/zoneegresses/{name}", "Could not get zone egress resource"},
	} {
		d, _ := resource.Lookup(p.typ)
		for _, view := range [...]ProxyView{ViewConfigDump, ViewStats, ViewClusters} {
			t.get(p.path+"/"+string(view), endpoint{s, d}.askProxy(view, p.missing), openapi.AskProxy(d, string(view)))
		}
	}
}

// attached is a list of what is attached to something: proxies to a policy, or policies to a proxy.
type attached struct {
	Kind  string     `json:"kind,omitempty"`
	Total int        `json:"total"`
	Items []struct{} `json:"items"`
}

// gatewayPolicies is what is attached to a proxy that is itself a gateway.
type gatewayPolicies struct {
	Kind      string     `json:"kind"`
	Gateway   gatewayKey `json:"gateway"`
	Listeners []struct{} `json:"listeners"`
}

// gatewayKey names the MeshGateway that configures a proxy; Name is empty while none does.
type gatewayKey struct {
	Mesh string `json:"mesh"`
	Name string `json:"name"`
}

// inspectPolicies serves the policies that are attached to a proxy.
func (s *Server) inspectPolicies(w http.ResponseWriter, r *http.Request) error {
	rec, err := s.inspected(r)
	if err != nil {
		return err
	}
	d, _ := resource.Lookup(resource.Dataplane)
	spec, err := codec.Spec(d, rec)
	if err != nil {
		return internal(titleMatched, fmt.Errorf("read %s: %w", rec.Key, err))
	}
	dp, ok := spec.(*meshv1.Dataplane)
	if !ok {
		return internal(titleMatched, fmt.Errorf("read %s: it holds a %T", rec.Key, spec))
	}
	gateway := dp.GetNetworking().GetGateway()
	if gateway != nil && gateway.GetType() == meshv1.Dataplane_Networking_Gateway_BUILTIN {
		return s.sendValue(w, r, gatewayPolicies{
			Kind: "MeshGatewayDataplane", Gateway: gatewayKey{Mesh: rec.Key.Mesh}, Listeners: []struct{}{},
		})
	}
	return s.sendValue(w, r, attached{Kind: "SidecarDataplane", Items: []struct{}{}})
}

// inspectRules serves the rules that targetRef policies make for a proxy.
func (s *Server) inspectRules(w http.ResponseWriter, r *http.Request) error {
	if _, err := s.inspected(r); err != nil {
		return err
	}
	return s.sendValue(w, r, attached{Items: []struct{}{}})
}

// inspected returns the Dataplane that a request asks about.
func (s *Server) inspected(r *http.Request) (*store.Record, error) {
	snap := s.store.Snapshot()
	key := store.Key{Type: string(resource.Dataplane), Mesh: chi.URLParam(r, "mesh"), Name: chi.URLParam(r, "name")}
	if !hasMesh(snap, key.Mesh) {
		return nil, notFound(titleMeshContext)
	}
	rec, ok := snap.Get(key)
	if !ok {
		return nil, notFound(titleMatched)
	}
	return rec, nil
}

// inspectPolicy serves the proxies that a policy reaches. A policy that does not exist reaches none.
func (s *Server) inspectPolicy(w http.ResponseWriter, r *http.Request) error {
	if !hasMesh(s.store.Snapshot(), chi.URLParam(r, "mesh")) {
		return notFound(titleListDataplanes)
	}
	return s.sendValue(w, r, attached{Items: []struct{}{}})
}

// inspectGateway serves the proxies that a gateway, or a route of one, configures.
func (e endpoint) inspectGateway(w http.ResponseWriter, r *http.Request) error {
	if _, ok := e.store.Snapshot().Get(e.key(r)); !ok {
		return notFound("Could not find " + string(e.d.Name))
	}
	return e.sendValue(w, r, attached{Items: []struct{}{}})
}

// askProxy serves a view of a proxy of the endpoint's type. missing is the title when there is no such proxy.
func (e endpoint) askProxy(view ProxyView, missing string) handlerFunc {
	return func(_ http.ResponseWriter, r *http.Request) error {
		if err := e.allowView(userOf(r), view); err != nil {
			return err
		}
		key := e.key(r)
		rec, ok := e.store.Snapshot().Get(key)
		if !ok {
			return notFound(missing)
		}
		if e.plane == resource.Zone && e.d.Name == resource.ZoneIngress && rec.Origin != "" {
			return &problem{
				status: http.StatusBadRequest, Title: titleIngressElsewhere,
				Details: fmt.Sprintf("%s %q belongs to another zone. Ask its own control plane, or the global one", key.Type, key.Name),
			}
		}
		return &problem{
			status: http.StatusServiceUnavailable, Title: titleAdmin,
			Details: fmt.Sprintf("The proxy of %s %q is not connected to this control plane", key.Type, key.Name),
		}
	}
}

// sendValue answers 200 with v as JSON.
func (s *Server) sendValue(w http.ResponseWriter, r *http.Request, v any) error {
	body, err := marshal(v)
	if err != nil {
		return internal(titleGet, err)
	}
	return s.sendJSON(w, r, body)
}
