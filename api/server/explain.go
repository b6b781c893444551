package server

import (
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/meridian-mesh/meridian/api/explain"
	"github.com/meridian-mesh/meridian/api/openapi"
	"github.com/meridian-mesh/meridian/api/resource"
)

const titleExplain = "Could not explain the traffic"

// explainRoute registers the explanation of a proxy's traffic to a service. Like the policies of a proxy it is for everyone: it says
// what they amount to.
func (s *Server) explainRoute(t table) {
	d, _ := resource.Lookup(resource.Dataplane)
	t.read("/meshes/{mesh}/dataplanes/{name}/explain", endpoint{s, d}.explain, openapi.Explain(d, t.doc.Of(explain.Explanation{})))
}

// explain answers with JSON, or with text for people where that is asked for.
func (e endpoint) explain(w http.ResponseWriter, r *http.Request) error {
	asText := !acceptsJSON(r)
	switch format := r.URL.Query().Get("format"); {
	case format == "text":
		asText = true
	case format == "json":
		asText = false
	case format != "":
		return invalid(titleExplain, cause{"format", "must be json or text"})
	case asText && !accepts(r, "text/plain"):
		return errUnaccepted
	}
	service := r.URL.Query().Get("service")
	if service == "" {
		return invalid(titleExplain, cause{"service", "must be the service whose traffic is to be explained"})
	}
	snap, key := e.store.Snapshot(), e.key(r)
	if !hasMesh(snap, key.Mesh) {
		return notFound(titleMeshContext)
	}
	if _, ok := snap.Get(key); !ok {
		return notFound(titleExplain)
	}
	body, err := e.ask(r.Context(), titleExplain, ProxyQuestion{
		Type: e.d.Name, Mesh: key.Mesh, Name: key.Name, View: ViewExplain, Service: service,
	})
	if err != nil {
		return err
	}
	var out explain.Explanation
	if err := json.Unmarshal(body, &out); err != nil {
		return internal(titleExplain, fmt.Errorf("read an explanation: %w", err))
	}
	if asText {
		sendText(w, http.StatusOK, out.Text())
		return nil
	}
	return e.sendValue(w, r, out)
}
