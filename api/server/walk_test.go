package server

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meridian-mesh/meridian/api/resource"
)

// documented is a collection of the API as its documentation has it, written down apart from the registry.
type documented struct {
	path     string // of the collection
	inMeshes bool
	writable resource.Plane // where PUT and DELETE are served; 405 elsewhere
	inspect  bool           // /{name}/dataplanes
}

const both = resource.Global | resource.Zone

var collections = []documented{
	{"circuit-breakers", true, resource.Global, true},
	{"fault-injections", true, resource.Global, true},
	{"health-checks", true, resource.Global, true},
	{"meshaccesslogs", true, resource.Global, true},
	{"meshgateways", true, resource.Global, false},
	{"meshgatewayroutes", true, resource.Global, false},
	{"meshtraces", true, resource.Global, true},
	{"meshtrafficpermissions", true, resource.Global, true},
	{"proxytemplates", true, resource.Global, true},
	{"rate-limits", true, resource.Global, true},
	{"retries", true, resource.Global, true},
	{"timeouts", true, resource.Global, true},
	{"traffic-logs", true, resource.Global, true},
	{"traffic-permissions", true, resource.Global, true},
	{"traffic-routes", true, resource.Global, true},
	{"traffic-traces", true, resource.Global, true},
	{"virtual-outbounds", true, resource.Global, false},
	{"external-services", true, resource.Global, false},
	{"meshes", false, resource.Global, false},
	{"secrets", true, resource.Global, false},
	{"global-secrets", false, resource.Global, false},
	{"dataplanes", true, resource.Zone, false},
	{"dataplane-insights", true, resource.Nowhere, false},
	{"zone-ingresses", false, both, false},
	{"zone-ingress-insights", false, resource.Nowhere, false},
	{"zoneegresses", false, resource.Zone, false},
	{"zoneegressinsights", false, resource.Nowhere, false},
	{"zones", false, resource.Global, false}, // Kuma: on both planes, without effect on a zone
	{"zone-insights", false, resource.Nowhere, false},
	{"mesh-insights", false, resource.Nowhere, false},
	{"service-insights", true, resource.Nowhere, false},
}

// single is a path that is no collection.
type single struct {
	path   string
	status int    // of GET
	title  string // of the error, when status is one
}

const (
	notHere    = "x-none" // a name that nothing has
	notOne     = "Could not retrieve a resource"
	notContext = "Could not build MeshContext"
	notMatched = "Could not get MatchedPolicies"
)

var singles = []single{
	{"/", 200, ""},
	{"/config", 200, ""},
	{"/versions", 200, ""},
	{"/policies", 200, ""},
	{"/global-insights", 200, ""},
	{"/status/zones", 200, ""},
	{"/status/instances", 200, ""},
	{"/dataplanes+insights", 200, ""},
	{"/meshes/default/dataplanes+insights", 200, ""},
	{"/meshes/default/dataplanes+insights/x-none", 404, "Could not retrieve a dataplane overview"},
	{"/zoneingresses+insights", 200, ""},
	{"/zoneingresses+insights/x-none", 404, "Could not retrieve a zone ingress overview"},
	{"/zoneegressoverviews", 200, ""},
	{"/zoneegressoverviews/x-none", 404, "Could not retrieve a zone egress overview"},
	{"/zones+insights", 200, ""},
	{"/zones+insights/x-none", 404, "Could not retrieve a zone overview"},
	{"/meshes/default/meshgateways/x-none/dataplanes", 404, "Could not find MeshGateway"},
	{"/meshes/default/meshgatewayroutes/x-none/dataplanes", 404, "Could not find MeshGatewayRoute"},
	{"/meshes/default/dataplanes/x-none/policies", 404, notMatched},
	{"/meshes/x-none/dataplanes/x-none/policies", 404, notContext},
	{"/meshes/default/dataplanes/x-none/rules", 404, notMatched},
	{"/meshes/x-none/dataplanes/x-none/rules", 404, notContext},
	{"/meshes/default/dataplanes/x-none/xds", 404, "Could not get dataplane resource"},
	{"/meshes/default/dataplanes/x-none/stats", 404, "Could not get dataplane resource"},
	{"/meshes/default/dataplanes/x-none/clusters", 404, "Could not get dataplane resource"},
	{"/zoneingresses/x-none/xds", 404, "Could not get zone ingress resource"},
	{"/zoneingresses/x-none/stats", 404, "Could not get zone ingress resource"},
	{"/zoneingresses/x-none/clusters", 404, "Could not get zone ingress resource"},
	{"/zoneegresses/x-none/xds", 404, "Could not get zone egress resource"},
	{"/zoneegresses/x-none/stats", 404, "Could not get zone egress resource"},
	{"/zoneegresses/x-none/clusters", 404, "Could not get zone egress resource"},
}

// walker asks a plane that holds nothing but the mesh default, and checks what every answer has in common.
type walker struct {
	*plane
	t *testing.T
}

// read checks GET and HEAD of a path: the status and, for an error, the title.
func (w walker) read(target string, status int, title string) string {
	w.t.Helper()
	get := w.do(http.MethodGet, target, "")
	head := w.do(http.MethodHead, target, "")
	if get.Status != status || head.Status != status {
		w.t.Errorf("GET %s: %d, HEAD: %d, want %d; %s", target, get.Status, head.Status, status, get.Body)
		return "{}"
	}
	if head.Header.Get("Content-Type") != get.Header.Get("Content-Type") {
		w.t.Errorf("HEAD %s has another type than GET: %v", target, head.Header)
	}
	if !json.Valid([]byte(get.Body)) {
		w.t.Errorf("GET %s: no JSON: %s", target, get.Body)
		return "{}"
	}
	if status >= http.StatusBadRequest {
		if got := object(w.t, get.Body); got["title"] != title || got["details"] != "Not found" {
			w.t.Errorf("GET %s: %v, want title %q", target, got, title)
		}
	}
	w.refused(target)
	return get.Body
}

// refused checks that methods nothing documents are answered 405 with what there is instead.
func (w walker) refused(target string) {
	w.t.Helper()
	for _, method := range [...]string{http.MethodPost, http.MethodPatch} {
		a := w.do(method, target, "{}")
		if a.Status != http.StatusMethodNotAllowed || a.Body != "405: Method Not Allowed" || !strings.Contains(a.Header.Get("Allow"), "GET") {
			w.t.Errorf("%s %s: %d %q, Allow %q", method, target, a.Status, a.Body, a.Header.Get("Allow"))
		}
	}
}

// list checks a list: unlike all others, the one of services has no items instead of an empty list of them.
func (w walker) list(target string, total int) {
	w.t.Helper()
	got := object(w.t, w.read(target, http.StatusOK, ""))
	want := map[string]any{"total": float64(total), "items": []any{}, "next": nil}
	if strings.HasSuffix(target, "service-insights") {
		want["items"] = nil
	}
	if total > 0 {
		want["items"] = got["items"]
	}
	if diff := cmp.Diff(want, got); diff != "" {
		w.t.Errorf("GET %s: %s", target, diff)
	}
}

// TestEveryDocumentedPathAnswers walks the whole documented API on both planes.
func TestEveryDocumentedPathAnswers(t *testing.T) {
	for _, pl := range [...]resource.Plane{resource.Global, resource.Zone} {
		t.Run(pl.String(), func(t *testing.T) {
			p := newPlane(t, pl)
			origin := ""
			if pl == resource.Zone {
				origin = "global"
			}
			p.seed(record(t, resource.Mesh, "", "default", origin, nil))
			w := walker{p, t}
			for _, c := range collections {
				w.collection(c, pl)
			}
			for _, s := range singles {
				w.read(s.path, s.status, s.title)
			}
			w.tokens()
		})
	}
}

// tokens checks the paths that issue tokens: the only ones that are asked by POST. What they need is named.
func (w walker) tokens() {
	w.t.Helper()
	for path, field := range map[string]string{
		"/tokens": "mesh", "/tokens/dataplane": "mesh", "/tokens/zone": "scope", "/tokens/zone-ingress": "zone", "/tokens/user": "name",
	} {
		for _, method := range [...]string{http.MethodPost, http.MethodPut} {
			a := w.do(method, path, "{}")
			if a.Status != http.StatusBadRequest || object(w.t, a.Body)["title"] != "Invalid request" || !strings.Contains(a.Body, `"`+field+`"`) {
				w.t.Errorf("%s %s: %d %s", method, path, a.Status, a.Body)
			}
		}
		for _, method := range [...]string{http.MethodGet, http.MethodDelete} {
			if a := w.do(method, path, ""); a.Status != http.StatusMethodNotAllowed || !strings.Contains(a.Header.Get("Allow"), "POST") {
				w.t.Errorf("%s %s: %d, Allow %q", method, path, a.Status, a.Header.Get("Allow"))
			}
		}
		w.want(http.StatusForbidden, http.MethodPost, path, "{}", "Remote: 10.0.0.1:1")
	}
	key := w.do(http.MethodPost, "/tokens/dataplane", `{"mesh":"`+notHere+`"}`)
	if key.Status != http.StatusNotFound || object(w.t, key.Body)["title"] != "Signing Key not found" {
		w.t.Errorf("a token for a mesh that is not there: %d %s", key.Status, key.Body)
	}
}

func (w walker) collection(c documented, pl resource.Plane) {
	w.t.Helper()
	total := 0
	if c.path == "meshes" {
		total = 1
	}
	w.list("/"+c.path, total)
	item := "/" + c.path + "/" + notHere
	if c.inMeshes {
		w.list("/meshes/default/"+c.path, 0)
		w.list("/meshes/"+notHere+"/"+c.path, 0)
		item = "/meshes/default/" + c.path + "/" + notHere
	}
	if c.path == "service-insights" {
		w.read(item, http.StatusOK, "") // a service that nothing is known of
		w.read("/meshes/"+notHere+"/service-insights/a", http.StatusNotFound, notOne)
	} else {
		w.read(item, http.StatusNotFound, notOne)
	}
	w.writes(c, pl, item)
	switch {
	case c.inspect:
		got := object(w.t, w.read(item+"/dataplanes", http.StatusOK, ""))
		if diff := cmp.Diff(map[string]any{"total": 0.0, "items": []any{}}, got); diff != "" {
			w.t.Errorf("%s/dataplanes: %s", item, diff)
		}
		w.read("/meshes/"+notHere+"/"+c.path+"/a/dataplanes", http.StatusNotFound, "Could not list Dataplanes")
	case strings.HasPrefix(c.path, "meshgateway"): // has its own
	case c.path == "meshes": // that is the list of dataplanes of a mesh
	default:
		w.want(http.StatusNotFound, http.MethodGet, item+"/dataplanes", "")
	}
}

// writes checks PUT and DELETE of an item that does not exist, and of one that was put.
func (w walker) writes(c documented, pl resource.Plane, item string) {
	w.t.Helper()
	d, ok := resource.ByPath(c.path)
	if !ok {
		w.t.Errorf("%s is no collection of a type", c.path)
		return
	}
	mesh := ""
	if c.inMeshes {
		mesh = "default"
	}
	body := bodyOf(w.t, d, mesh, notHere)
	if c.writable&pl == 0 {
		for _, a := range [...]answer{w.do(http.MethodPut, item, body), w.do(http.MethodDelete, item, "")} {
			if a.Status != http.StatusMethodNotAllowed || !strings.HasPrefix(a.Header.Get("Content-Type"), "text/plain") ||
				!strings.HasSuffix(a.Body, ".\n") || a.Header.Get("Allow") != "GET, HEAD" {
				w.t.Errorf("writing %s: %d %q, Allow %q", item, a.Status, a.Body, a.Header.Get("Allow"))
			}
		}
		return
	}
	if a := w.do(http.MethodDelete, item, ""); a.Status != http.StatusNotFound || object(w.t, a.Body)["title"] != "Could not delete a resource" {
		w.t.Errorf("DELETE %s: %d %s", item, a.Status, a.Body)
	}
	if a := w.do(http.MethodPut, item, body, "-Content-Type"); a.Status != http.StatusUnsupportedMediaType {
		w.t.Errorf("PUT %s without a type: %d %s", item, a.Status, a.Body)
	}
	if a := w.do(http.MethodPut, item, "{"); a.Status != http.StatusBadRequest || object(w.t, a.Body)["title"] != "Could not process a resource" {
		w.t.Errorf("PUT %s with half a body: %d %s", item, a.Status, a.Body)
	}
	w.want(http.StatusCreated, http.MethodPut, item, body)
	w.want(http.StatusOK, http.MethodPut, item, body)
	w.want(http.StatusOK, http.MethodGet, item, "")
	w.want(http.StatusOK, http.MethodDelete, item, "")
	w.want(http.StatusNotFound, http.MethodGet, item, "")
}

// TestTheDocumentedPathsAreTheServedOnes compares the table above with the registry.
func TestTheDocumentedPathsAreTheServedOnes(t *testing.T) {
	var want, got []documented
	for _, c := range collections {
		want = append(want, c)
		d, ok := resource.ByPath(c.path)
		if !ok {
			t.Errorf("%s is not in the registry", c.path)
			continue
		}
		got = append(got, documented{d.Path, d.Scope == resource.ScopeMesh, d.Writable, d.Inspect})
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(documented{})); diff != "" {
		t.Error(diff)
	}
	served := 0
	for _, d := range resource.All() {
		if d.Path != "" {
			served++
		}
	}
	if served != len(collections) {
		t.Errorf("%d collections are served, %d documented", served, len(collections))
	}
}
