package server

import (
	"encoding/json"
	"flag"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/go-chi/chi/v5"
	"github.com/google/go-cmp/cmp"
	"github.com/pb33f/libopenapi"
	validator "github.com/pb33f/libopenapi-validator"

	"github.com/meridian-mesh/meridian/api/openapi"
	"github.com/meridian-mesh/meridian/api/resource"
)

var update = flag.Bool("update", false, "write docs/openapi again")

var planes = []resource.Plane{resource.Global, resource.Zone}

// Review sees a change of the API as a change of these files.
func TestTheDescriptionIsTheOneInDocs(t *testing.T) {
	for _, plane := range planes {
		t.Run(plane.String(), func(t *testing.T) {
			got, err := newPlane(t, plane, func(o *Options) { o.Version = "0.0.0" }).srv.doc.YAML()
			if err != nil {
				t.Fatal(err)
			}
			file := filepath.Join("..", "..", "docs", "openapi", plane.String()+".yaml")
			if *update {
				if err := os.WriteFile(file, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(string(got), "\n")); diff != "" {
				t.Errorf("%s is not up to date: make generate (-want +got):\n%s", file, diff)
			}
		})
	}
}

func TestEveryRouteIsDescribedAndNothingElse(t *testing.T) {
	for _, plane := range planes {
		t.Run(plane.String(), func(t *testing.T) {
			p := newPlane(t, plane)
			served, read := map[string]bool{}, map[string]bool{}
			err := chi.Walk(p.srv.Handler().(chi.Routes), func(method, route string, _ http.Handler, _ ...func(http.Handler) http.Handler) error {
				switch {
				case route == "/meshes/": // a mesh without a name: never found
				case method == http.MethodHead:
					read[route] = true
				default:
					served[method+" "+route] = true
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			described := map[string]bool{}
			for path, methods := range p.srv.doc.Paths {
				for method := range methods {
					described[strings.ToUpper(method)+" "+path] = true
				}
				if _, get := methods["get"]; get != read[path] {
					t.Errorf("%s: GET is described: %t, HEAD is served: %t", path, get, read[path])
				}
			}
			if diff := cmp.Diff(served, described); diff != "" {
				t.Errorf("(-served +described):\n%s", diff)
			}
			if len(served) < 150 {
				t.Errorf("only %d routes", len(served))
			}
		})
	}
}

func TestTheDescriptionIsValidOpenAPI(t *testing.T) {
	for _, plane := range planes {
		t.Run(plane.String(), func(t *testing.T) {
			p := newPlane(t, plane)
			for _, form := range []string{"/openapi.json", "/openapi.yaml"} {
				doc, err := libopenapi.NewDocument([]byte(p.want(200, "GET", form, "").Body))
				if err != nil {
					t.Fatal(err)
				}
				v, errs := validator.NewValidator(doc)
				if len(errs) > 0 {
					t.Fatal(errs)
				}
				if ok, errs := v.ValidateDocument(); !ok {
					t.Error(violations(errs))
				}
			}
			ids := map[string]string{}
			for path, methods := range p.srv.doc.Paths {
				for method, op := range methods {
					if other, twice := ids[op.ID]; twice {
						t.Errorf("operation %s is both %s and %s %s", op.ID, other, method, path)
					}
					ids[op.ID] = method + " " + path
					for _, name := range regexp.MustCompile(`{(\w+)}`).FindAllStringSubmatch(path, -1) {
						if !strings.Contains(string(mustJSON(t, op.Parameters)), "/"+name[1]+`"`) {
							t.Errorf("%s %s does not describe %s", method, path, name[1])
						}
					}
				}
			}
		})
	}
}

// The description of a plane tells its clients what cannot be written there.
func TestWhatIsReadOnlyIsDescribedAsRefused(t *testing.T) {
	for _, tc := range []struct {
		plane    resource.Plane
		path     string
		writable bool
	}{
		{resource.Global, "/meshes/{mesh}/traffic-routes/{name}", true},
		{resource.Zone, "/meshes/{mesh}/traffic-routes/{name}", false},
		{resource.Global, "/meshes/{mesh}/dataplanes/{name}", false},
		{resource.Zone, "/meshes/{mesh}/dataplanes/{name}", true},
		{resource.Global, "/zone-insights/{name}", false},
	} {
		doc := newPlane(t, tc.plane).srv.doc
		for _, method := range []string{"put", "delete"} {
			_, ok := doc.Paths[tc.path][method].Responses["200"]
			if _, refused := doc.Paths[tc.path][method].Responses["405"]; ok != tc.writable || !refused {
				t.Errorf("%s on the %s: 200 is %t, 405 is %t", tc.path, tc.plane, ok, refused)
			}
		}
	}
	readOnly := newPlane(t, resource.Global, func(o *Options) { o.ReadOnly = true }).srv.doc
	if _, ok := readOnly.Paths["/meshes/{name}"]["put"].Responses["201"]; ok {
		t.Error("a read-only server describes writes")
	}
}

// What the page shows can be sent as it is.
func TestEveryExampleCanBeWritten(t *testing.T) {
	all := resource.All()
	for i := range all {
		d := &all[i]
		example := openapi.Example(d.Name)
		if d.Path == "" || d.Writable == resource.Nowhere {
			if example != nil {
				t.Errorf("%s has an example and cannot be written", d.Name)
			}
			continue
		}
		plane := resource.Global
		if d.Writable&plane == 0 {
			plane = resource.Zone
		}
		p := newPlane(t, plane)
		p.seed(record(t, resource.Mesh, "", "default", "", nil))
		name, _ := object(t, string(example))["name"].(string)
		p.want(201, "PUT", itemPath(d, "default", name)+"?strict=true", string(example))
	}
	p := newPlane(t, resource.Global)
	p.want(201, "PUT", "/meshes/default", `{"type":"Mesh","name":"default"}`)
	for _, path := range []string{"/tokens/dataplane", "/tokens/zone", "/tokens/zone-ingress", "/tokens/user"} {
		if _, ok := p.srv.doc.Paths[path]["post"].RequestBody.Content["application/json"].Example.(json.RawMessage); !ok {
			t.Errorf("%s has no example", path)
		}
	}
}

func TestTheDescriptionIsServedInThreeForms(t *testing.T) {
	p := newPlane(t, resource.Global)
	for _, tc := range []struct{ path, contentType, has string }{
		{"/openapi.json", "application/json", `"openapi": "3.1.1"`},
		{"/openapi.yaml", "application/yaml", "openapi: 3.1.1\n"},
		{"/docs", "text/html; charset=utf-8", "/meshes/{mesh}/traffic-routes/{name}"},
	} {
		a := p.want(200, "GET", tc.path, "")
		if !strings.Contains(a.Body, tc.has) || a.Header.Get("Content-Type") != tc.contentType {
			t.Errorf("%s: %v", tc.path, a.Header)
		}
		if b := p.want(200, "GET", tc.path, ""); b.Body != a.Body || b.Header.Get("ETag") != a.Header.Get("ETag") {
			t.Errorf("%s differs from one request to the next", tc.path)
		}
		if got := p.want(304, "GET", tc.path, "", "If-None-Match: "+a.Header.Get("ETag")).Body; got != "" {
			t.Errorf("%s: 304 with a body", tc.path)
		}
		if got := p.want(200, "HEAD", tc.path, ""); got.Body != "" || got.Header.Get("ETag") != a.Header.Get("ETag") {
			t.Errorf("HEAD %s: %v", tc.path, got.Header)
		}
		zipped := p.want(200, "GET", tc.path, "", "Accept-Encoding: gzip")
		if zipped.Header.Get("Content-Encoding") != "gzip" || len(zipped.Body) > len(a.Body)/5 {
			t.Errorf("%s: %d bytes compressed, %d not", tc.path, len(zipped.Body), len(a.Body))
		}
	}
}

func TestThePageNeedsNothingFromElsewhere(t *testing.T) {
	p := newPlane(t, resource.Global)
	a := p.want(200, "GET", "/docs", "")
	policy := a.Header.Get("Content-Security-Policy")
	if !strings.HasPrefix(policy, "default-src 'none';") || strings.Contains(policy, "unsafe") || strings.Contains(policy, "http") {
		t.Errorf("policy %s", policy)
	}
	for _, what := range []string{"<script", "<link", "<img", "<iframe", "@import", "url(", "style=", "onclick"} {
		if strings.Contains(a.Body, what) {
			t.Errorf("the page has %s", what)
		}
	}
	anchors := map[string]bool{}
	for _, id := range regexp.MustCompile(` id="([^"]+)"`).FindAllStringSubmatch(a.Body, -1) {
		if anchors[id[1]] {
			t.Errorf("id %s is there twice", id[1])
		}
		anchors[id[1]] = true
	}
	for _, link := range regexp.MustCompile(`href="([^"]+)"`).FindAllStringSubmatch(a.Body, -1) {
		if anchor, local := strings.CutPrefix(link[1], "#"); local && !anchors[anchor] || !local && !strings.HasPrefix(link[1], "/openapi.") {
			t.Errorf("link to %s", link[1])
		}
	}
	for path, methods := range p.srv.doc.Paths {
		for _, op := range methods {
			if !anchors[op.ID] {
				t.Errorf("%s (%s) is not on the page", op.ID, path)
			}
		}
	}
}

// The validator would be of no use if it found nothing.
func TestTheContractFindsWhatIsNotDescribed(t *testing.T) {
	p := newPlane(t, resource.Global)
	c := p.contract()
	good := p.want(200, "GET", "/policies", "")
	with := func(change func(*answer)) answer {
		a := answer{good.Status, good.Header.Clone(), good.Body}
		change(&a)
		return a
	}
	request := func(method, target, body string) *http.Request {
		r, err := http.NewRequestWithContext(t.Context(), method, "http://localhost:5681"+target, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		return r
	}
	done := answer{Status: 201, Header: http.Header{"Content-Length": {"0"}}}
	for _, tc := range []struct {
		name, method, target, body string
		answer                     answer
		want                       string // "" when all is well
	}{
		{"as it is", "GET", "/policies", "", good, ""},
		{"a status", "GET", "/policies", "", with(func(a *answer) { a.Status = 203 }), "203 is not described"},
		{"a header", "GET", "/policies", "", with(func(a *answer) { a.Header.Set("X-More", "1") }), "X-More"},
		{"a content type", "GET", "/policies", "", with(func(a *answer) { a.Header.Set("Content-Type", "text/plain") }), "text/plain"},
		{
			"a member that is too many", "GET", "/policies", "",
			with(func(a *answer) { a.Body = strings.Replace(a.Body, `"name"`, `"more": 1, "name"`, 1) }), "'more' not allowed",
		},
		{
			"a member that is missing", "GET", "/policies", "",
			with(func(a *answer) { a.Body = strings.Replace(a.Body, `"path"`, `"displayName"`, 1) }), "path",
		},
		{
			"a member of another type", "GET", "/policies", "",
			with(func(a *answer) { a.Body = strings.Replace(a.Body, `"readOnly": false`, `"readOnly": "no"`, 1) }), "want boolean",
		},
		{"an error without a title", "GET", "/meshes/x", "", answer{404, good.Header, `{"details":"Not found"}`}, "title"},
		{"a path", "GET", "/nothing", "", good, "is not described"},
		{"a method", "PATCH", "/policies", "", good, "is not described"},
		{"a good body", "PUT", "/meshes/demo", demoMesh, done, ""},
		{"a body of a wrong type", "PUT", "/meshes/demo", `{"type":"Mesh","name":"demo","mtls":{"backends":{}}}`, done, "want array"},
		{"a body without a name", "PUT", "/meshes/demo", `{"type":"Mesh"}`, done, "name"},
		{"a query", "GET", "/meshes?size=many", "", with(func(*answer) {}), "size"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := c.check(request(tc.method, tc.target, tc.body), tc.body, tc.answer)
			switch {
			case tc.want == "" && err != nil:
				t.Error(err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)):
				t.Errorf("got %v, want an error with %q", err, tc.want)
			}
		})
	}
}
