package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"

	"github.com/meridian-mesh/meridian/api/openapi"
	"github.com/meridian-mesh/meridian/api/resource"
)

// Titles of errors about asking a proxy.
const (
	titleAdmin            = "Could not execute admin operation"
	titleIngressElsewhere = "Could not connect to zone ingress that resides in another zone"
)

// askAgain is after how many seconds to ask again a proxy that could not be reached.
const askAgain = 5

// askRoutes registers what a proxy itself says.
func (s *Server) askRoutes(t table) {
	for _, p := range [...]struct {
		typ           resource.Type
		path, missing string
	}{
		{resource.Dataplane, "/meshes/{mesh}/dataplanes/{name}", "Could not get dataplane resource"},
		{resource.ZoneIngress, "/zoneingresses/{name}", "Could not get zone ingress resource"},
		{resource.ZoneEgress, "/zoneegresses/{name}", "Could not get zone egress resource"},
	} {
		d, _ := resource.Lookup(p.typ)
		e := endpoint{s, d}
		t.get(p.path+"/"+string(ViewConfigDump), e.askProxy(ViewConfigDump, p.missing), openapi.AskProxy(d, string(ViewConfigDump), true))
		for _, view := range [...]ProxyView{ViewStats, ViewClusters} {
			// Whatever Accept says: clients of the reference ask for JSON, and print the text.
			t.read(p.path+"/"+string(view), e.askProxy(view, p.missing), openapi.AskProxy(d, string(view), false))
		}
	}
}

// askProxy serves a view of a proxy of the endpoint's type. missing is the title when there is no such proxy.
func (e endpoint) askProxy(view ProxyView, missing string) handlerFunc {
	return func(w http.ResponseWriter, r *http.Request) error {
		if err := e.allowView(userOf(r), view); err != nil {
			return err
		}
		key := e.key(r)
		q := ProxyQuestion{Type: e.d.Name, Mesh: key.Mesh, Name: key.Name, View: view}
		if err := q.read(r.URL.Query()); err != nil {
			return err
		}
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
		body, err := e.ask(r.Context(), titleAdmin, q)
		if err != nil {
			return err
		}
		o := e.newReply(w, r)
		defer o.release()
		if view != ViewConfigDump && !q.JSON {
			o.contentType = "text/plain; charset=utf-8"
		}
		o.write(body)
		return o.send()
	}
}

// ask asks a question about a proxy. The error is one to answer with.
func (s *Server) ask(ctx context.Context, title string, q ProxyQuestion) ([]byte, error) {
	if s.opts.Proxies == nil {
		return nil, askProblem(title, &AskError{
			AskUnreachable, fmt.Sprintf("The proxy of %s %q is not connected to this control plane", q.Type, q.Name),
		})
	}
	body, err := s.opts.Proxies.Ask(ctx, q)
	if err != nil {
		return nil, askProblem(title, err)
	}
	return body, nil
}

// askProblem maps why a question has no answer to what the API answers.
func askProblem(title string, err error) error {
	ask, ok := errors.AsType[*AskError](err)
	if !ok {
		return internal(title, err)
	}
	p := &problem{Title: title, Details: ask.Details}
	switch ask.Reason {
	case AskUnreachable:
		p.status, p.retryAfter = http.StatusServiceUnavailable, askAgain
	case AskTimeout:
		p.status = http.StatusGatewayTimeout
	case AskFailed:
		p.status = http.StatusBadGateway
	case AskBusy:
		p.status, p.retryAfter = http.StatusTooManyRequests, 1
	case AskInvalid:
		p.status = http.StatusBadRequest
	case AskNotFound:
		p.status = http.StatusNotFound
	default:
		return internal(title, fmt.Errorf("reason %d: %w", ask.Reason, err))
	}
	return p
}

// Parameters of questions about proxies. Those of two names may be spelled as Envoy does, or as the rest of the API.
const (
	sourceQuery = "source"
	formatQuery = "format"
)

var (
	endpointsQuery = []string{"include_eds", "includeEds"}
	usedOnlyQuery  = []string{"used_only", "usedOnly"}
)

// read takes in the parameters that the view has. One of another view is an error: without it, the answer would not be what was
// asked for.
func (q *ProxyQuestion) read(query url.Values) (err error) {
	known := [][]string{{formatQuery}}
	switch q.View {
	case ViewConfigDump:
		known = [][]string{{sourceQuery}, endpointsQuery}
	case ViewStats:
		known = append(known, usedOnlyQuery)
	case ViewClusters, ViewExplain:
	}
	for _, name := range slices.Concat([]string{sourceQuery, formatQuery}, endpointsQuery, usedOnlyQuery) {
		has := slices.ContainsFunc(known, func(names []string) bool { return slices.Contains(names, name) })
		if query.Has(name) && !has {
			return invalidQuery(titleAdmin, name, "is not available for "+string(q.View))
		}
	}
	if q.ControlPlane, err = choice(query, sourceQuery, "proxy", "controlplane"); err != nil {
		return err
	}
	if q.JSON, err = choice(query, formatQuery, "text", "json"); err != nil {
		return err
	}
	if q.IncludeEndpoints, err = anyFlag(query, endpointsQuery); err != nil {
		return err
	}
	q.UsedOnly, err = anyFlag(query, usedOnlyQuery)
	return err
}

// choice reads a parameter that is one of two words; true when it is the second, false when it is the first or absent.
func choice(query url.Values, name, first, second string) (bool, error) {
	switch v := query.Get(name); {
	case !query.Has(name), v == first:
		return false, nil
	case v == second:
		return true, nil
	}
	return false, invalidQuery(titleAdmin, name, "must be either "+first+" or "+second)
}

// anyFlag reads a flag that may be spelled in several ways. It is on without a value too: so Envoy reads it.
func anyFlag(query url.Values, names []string) (bool, error) {
	set := false
	for _, name := range names {
		on, err := boolQuery(query, name, titleAdmin)
		if err != nil {
			return false, err
		}
		set = set || on || query.Has(name) && query.Get(name) == ""
	}
	return set, nil
}
