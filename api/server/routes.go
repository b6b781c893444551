package server

import (
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"github.com/go-chi/chi/v5"

	"github.com/meridian-mesh/meridian/api/openapi"
	"github.com/meridian-mesh/meridian/api/resource"
)

// handlerFunc is a handler whose error is answered by [Server.fail].
type handlerFunc func(w http.ResponseWriter, r *http.Request) error

// endpoint serves the routes of one resource type.
type endpoint struct {
	*Server
	d *resource.Descriptor
}

// table is the routing table: each row is a route and what it means.
type table struct {
	s   *Server
	mux *chi.Mux
	doc *openapi.Document
}

// handle adds a route.
func (t table) handle(method, pattern string, h http.HandlerFunc, op openapi.Operation) {
	t.mux.Method(method, pattern, h)
	t.doc.Add(method, pattern, op)
}

// get adds a route that answers GET and HEAD with JSON.
func (t table) get(pattern string, h handlerFunc, op openapi.Operation) {
	t.read(pattern, producesJSON(h), op.Unacceptable())
}

// read adds a route that answers GET and HEAD.
func (t table) read(pattern string, h handlerFunc, op openapi.Operation) {
	f := t.s.handle(h)
	t.handle(http.MethodGet, pattern, f, op)
	t.mux.Head(pattern, f) // not described apart: openapi.Document says that HEAD is answered wherever GET is
}

// routes builds the routing table and its description: for each row of the registry the collection (in a mesh, and
// across meshes) and the item, then the overviews, then what is not a resource.
func (s *Server) routes() (http.Handler, *openapi.Document) {
	mux := chi.NewRouter()
	mux.Use(s.observe, s.cors, s.authenticate, cleanPath)
	mux.NotFound(s.handle(func(http.ResponseWriter, *http.Request) error { return errNoRoute }))
	mux.MethodNotAllowed(s.handle(func(_ http.ResponseWriter, r *http.Request) error { return methodNotAllowed(r) }))

	doc := openapi.New(s.plane, s.opts.Version)
	t := table{s, mux, doc}
	all := resource.All()
	for i := range all {
		d := &all[i]
		if d.Path == "" {
			continue
		}
		e := endpoint{s, d}
		list, one := e.list, e.get
		if d.Name == resource.ServiceInsight {
			list, one = e.listServices, e.getService
		}
		list = watchable(list, e.watch, titleList)
		t.read("/"+d.Path, list, doc.List(d, false))
		item := "/" + d.Path + "/{name}"
		if d.Scope == resource.ScopeMesh {
			t.read("/meshes/{mesh}/"+d.Path, list, doc.List(d, true))
			item = "/meshes/{mesh}/" + d.Path + "/{name}"
		}
		t.get(item, one, doc.Get(d))
		writable := e.readOnly("") == nil
		t.handle(http.MethodPut, item, e.write("put", e.put), doc.Put(d, writable))
		t.handle(http.MethodDelete, item, e.write("delete", e.delete), doc.Delete(d, writable))
	}
	// The one trailing slash that clients of the reference may use: a mesh with an empty name. It is never found, and
	// not described: what is described is what there is.
	empty := s.handle(func(http.ResponseWriter, *http.Request) error { return notFound(titleGet) })
	mux.Get("/meshes/", empty)
	mux.Head("/meshes/", empty)

	for _, o := range overviews() {
		o.Server = s
		list := watchable(o.list, o.watch, o.titleMany)
		t.read("/"+o.path, list, doc.ListOverviews(o.main, false))
		item := "/" + o.path + "/{name}"
		if o.main.Scope == resource.ScopeMesh {
			t.read("/meshes/{mesh}/"+o.path, list, doc.ListOverviews(o.main, true))
			item = "/meshes/{mesh}/" + o.path + "/{name}"
		}
		t.get(item, o.get, doc.GetOverview(o.main))
	}
	s.transferRoutes(t)
	s.inspectRoutes(t)
	s.tokenRoutes(t)
	s.statusRoutes(t)
	s.descriptionRoutes(t)
	return mux, doc
}

// handle adapts h to net/http.
func (s *Server) handle(h handlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if err := h(w, r); err != nil {
			s.fail(w, r, err)
		}
	}
}

// producesJSON answers 406 where Accept excludes application/json.
func producesJSON(h handlerFunc) handlerFunc {
	return func(w http.ResponseWriter, r *http.Request) error {
		if !acceptsJSON(r) {
			return errUnaccepted
		}
		return h(w, r)
	}
}

// methodNotAllowed names the methods that the request's path does have. A path without any is unknown: chi asks for
// this answer too when it does not know the method itself.
func methodNotAllowed(r *http.Request) error {
	rctx := chi.RouteContext(r.Context())
	var allowed []string
	for _, m := range [...]string{http.MethodPut, http.MethodPost, http.MethodDelete, http.MethodGet, http.MethodHead} {
		if rctx.Routes.Match(chi.NewRouteContext(), m, rctx.RoutePath) {
			allowed = append(allowed, m)
		}
	}
	if len(allowed) == 0 {
		return errNoRoute
	}
	return &textError{
		status: http.StatusMethodNotAllowed, text: "405: Method Not Allowed",
		allow: strings.Join(allowed, ", "),
	}
}

// acceptsJSON reports whether Accept is missing or leaves room for application/json.
func acceptsJSON(r *http.Request) bool { return accepts(r, "application/json") }

// accepts reports whether Accept is missing or leaves room for a media type.
func accepts(r *http.Request, mediaType string) bool {
	values := r.Header["Accept"]
	if len(values) == 0 {
		return true
	}
	// The most specific range decides, so that "application/json;q=0, */*" excludes JSON.
	ranges := []string{"*/*", mediaType[:strings.IndexByte(mediaType, '/')] + "/*", mediaType}
	best, accepted := -1, false
	for element := range elements(values) {
		mediaRange, q := quality(element)
		specificity := slices.Index(ranges, mediaRange)
		if mediaRange == "" {
			specificity = 0 // an empty header restricts nothing
		}
		if specificity > best {
			best, accepted = specificity, q > 0
		}
	}
	return accepted
}

// elements yields the comma-separated elements of a header.
func elements(values []string) func(yield func(string) bool) {
	return func(yield func(string) bool) {
		for _, v := range values {
			for e := range strings.SplitSeq(v, ",") {
				if !yield(strings.TrimSpace(e)) {
					return
				}
			}
		}
	}
}

// quality splits "name;q=0.5" into the lower-case name and its weight, 1 when there is none.
func quality(element string) (string, float64) {
	name, params, _ := strings.Cut(element, ";")
	q := 1.0
	for p := range strings.SplitSeq(params, ";") {
		if v, ok := strings.CutPrefix(strings.TrimSpace(p), "q="); ok {
			if f, err := strconv.ParseFloat(v, 64); err == nil {
				q = f
			}
		}
	}
	return strings.ToLower(strings.TrimSpace(name)), q
}

// bodyMediaType returns the media type of a request's body, or errMediaType when it is none that is understood.
func bodyMediaType(r *http.Request) (string, error) {
	if enc := r.Header.Get("Content-Encoding"); enc != "" && enc != "identity" {
		return "", errMediaType
	}
	mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		return "", errMediaType
	}
	switch mediaType {
	case "application/json", "application/yaml", "application/x-yaml", "text/yaml":
		return mediaType, nil
	default:
		return "", errMediaType
	}
}

// readOnly says why the resource of a name cannot be written on this plane, or with "" none of the type; nil when it can.
// The sentence is made for people: kumactl prints it as the error.
func (e endpoint) readOnly(name string) error {
	if !e.opts.ReadOnly && e.d.WritableOn(e.plane, name) {
		return nil
	}
	text := "Operation not allowed. On a global control plane, resources that belong to data plane proxies and insights " +
		"cannot be modified with kumactl apply or the HTTP API. Use the zone control plane instead.\n"
	if e.plane == resource.Zone {
		text = "Operation not allowed. On a zone control plane, only dataplane, zone ingress and zone egress resources " +
			"can be modified with kumactl apply or the HTTP API. Use the global control plane for all others.\n"
		if len(e.d.OwnOfZones) > 0 {
			text = "Operation not allowed. A zone control plane writes only those of its own: " +
				strings.Join(e.d.OwnOfZones, ", ") + ". Use the global control plane for all others.\n"
		}
	}
	if e.opts.ReadOnly {
		text = fmt.Sprintf("Operation not allowed. The API of this %s control plane is read-only.\n", e.plane)
	}
	return &textError{status: http.StatusMethodNotAllowed, text: text, allow: "GET, HEAD"}
}
