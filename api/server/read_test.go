package server

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

func TestListsAreSortedAndPaged(t *testing.T) {
	p := newPlane(t, resource.Global)
	for _, mesh := range []string{"b", "a"} {
		p.seed(record(t, resource.Mesh, "", mesh, "", nil))
		for _, name := range []string{"3", "1", "2"} {
			p.seed(record(t, "Retry", mesh, name, "", nil))
		}
	}
	const base = "http://localhost:5681"
	for _, tc := range []struct {
		name, target string
		want         []string
		total        float64
		next         any
	}{
		{"all meshes, sorted by mesh and name", "/retries", []string{"a/1", "a/2", "a/3", "b/1", "b/2", "b/3"}, 6, nil},
		{"one mesh", "/meshes/b/retries", []string{"b/1", "b/2", "b/3"}, 3, nil},
		{"a mesh that does not exist", "/meshes/c/retries", []string{}, 0, nil},
		{"the first page", "/retries?size=2", []string{"a/1", "a/2"}, 6, base + "/retries?offset=2&size=2"},
		{"the second page", "/retries?offset=2&size=2", []string{"a/3", "b/1"}, 6, base + "/retries?offset=4&size=2"},
		{"the last page", "/retries?offset=4&size=2", []string{"b/2", "b/3"}, 6, nil},
		{"a page that reaches over the end", "/retries?offset=5&size=2", []string{"b/3"}, 6, nil},
		{"a page after the end", "/retries?offset=100&size=2", []string{}, 6, nil},
		{"an offset without a size", "/meshes/b/retries?offset=1", []string{"b/2", "b/3"}, 3, nil},
		{"size 0 is everything", "/retries?size=0", []string{"a/1", "a/2", "a/3", "b/1", "b/2", "b/3"}, 6, nil},
		{"size 0 from an offset", "/retries?size=0&offset=4", []string{"b/2", "b/3"}, 6, nil},
		{"empty values are no values", "/meshes/b/retries?size=&offset=", []string{"b/1", "b/2", "b/3"}, 3, nil},
		{"the largest page", "/meshes/b/retries?size=1000", []string{"b/1", "b/2", "b/3"}, 3, nil},
		{"the largest offset", "/retries?offset=9223372036854775807&size=1000", []string{}, 6, nil},
		{
			"other parameters are kept, sorted", "/meshes/b/retries?z=1&size=1&a=%3C%26",
			[]string{"b/1"},
			3,
			base + "/meshes/b/retries?a=%3C%26&offset=1&size=1&z=1",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := p.want(200, http.MethodGet, tc.target, "")
			if diff := cmp.Diff(tc.want, names(t, a.Body)); diff != "" {
				t.Error(diff)
			}
			got := object(t, a.Body)
			if got["total"] != tc.total || got["next"] != tc.next {
				t.Errorf("total %v, next %v; want %v, %v", got["total"], got["next"], tc.total, tc.next)
			}
			if _, ok := got["next"]; !ok || strings.Contains(a.Body, `\u0026`) {
				t.Errorf("next is missing or escaped in %s", a.Body)
			}
		})
	}
}

func TestFollowingNextVisitsEverythingOnce(t *testing.T) {
	p := newPlane(t, resource.Global)
	var want []string
	for i := range 25 {
		name := fmt.Sprintf("m-%02d", i)
		p.seed(record(t, resource.Mesh, "", name, "", nil))
		want = append(want, name)
	}
	var got []string
	for target := "/meshes?size=7"; target != ""; {
		body := p.want(200, http.MethodGet, target, "").Body
		got = append(got, names(t, body)...)
		next, _ := object(t, body)["next"].(string)
		target = strings.TrimPrefix(next, "http://localhost:5681")
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestPagingThatMeansNothingIs400(t *testing.T) {
	p := newPlane(t, resource.Global)
	for _, tc := range []struct{ query, details, field, message string }{
		{"size=x", "Invalid page size", "size", "Invalid format"},
		{"size=1.5", "Invalid page size", "size", "Invalid format"},
		{"size=-1", "Invalid page size", "size", "Invalid page size of -1. It must not be negative"},
		{"size=1001", "Invalid page size", "size", "Invalid page size of 1001. Maximum page size is 1000"},
		{"offset=x", "Invalid offset", "offset", "Invalid format"},
		{"offset=99999999999999999999", "Invalid offset", "offset", "Invalid format"},
		{"offset=-1", "Invalid offset", "offset", "Invalid offset of -1. It must not be negative"},
	} {
		for target, title := range map[string]string{
			"/meshes": titleList, "/meshes/demo/retries": titleList, "/service-insights": titleServices,
			"/dataplanes+insights":    "Could not retrieve dataplane overviews",
			"/zones+insights":         "Could not retrieve dataplane overviews",
			"/zoneingresses+insights": "Could not retrieve zone ingress overviews",
			"/zoneegressoverviews":    "Could not retrieve zone egress overviews",
		} {
			a := p.want(400, http.MethodGet, target+"?"+tc.query, "")
			want := fmt.Sprintf("{\n \"title\": %q,\n \"details\": %q,\n \"causes\": [\n  {\n   \"field\": %q,\n   \"message\": %q\n  }\n ]\n}\n",
				title, tc.details, tc.field, tc.message)
			if diff := cmp.Diff(want, a.Body); diff != "" {
				t.Errorf("%s?%s: %s", target, tc.query, diff)
			}
		}
	}
}

func TestTheRouterAnswersWhatItDoesNotServe(t *testing.T) {
	p := newPlane(t, resource.Global)
	p.seed(record(t, resource.Mesh, "", "demo", "", nil))
	const notFoundText = "404: Page Not Found"
	for _, tc := range []struct {
		method, target string
		headers        []string
		status         int
		body, allow    string
	}{
		{"GET", "/nothing", nil, 404, notFoundText, ""},
		{"GET", "/dataplanes/", nil, 404, notFoundText, ""},
		{"GET", "/meshes/demo/", nil, 404, notFoundText, ""},
		{"GET", "/meshes/demo/retries/", nil, 404, notFoundText, ""},
		{"GET", "/meshes/demo/retries/a%2Fb", nil, 404, notFoundText, ""},
		{"BREW", "/nothing", nil, 404, notFoundText, ""},
		{"GET", "/meshes/", nil, 404, "{\n \"title\": \"Could not retrieve a resource\",\n \"details\": \"Not found\"\n}\n", ""},
		{"GET", "/meshes/none", nil, 404, "{\n \"title\": \"Could not retrieve a resource\",\n \"details\": \"Not found\"\n}\n", ""},
		{"DELETE", "/meshes/none", nil, 404, "{\n \"title\": \"Could not delete a resource\",\n \"details\": \"Not found\"\n}\n", ""},
		{"POST", "/meshes/demo", nil, 405, "405: Method Not Allowed", "PUT, DELETE, GET, HEAD"},
		{"PATCH", "/meshes/demo/retries/a", nil, 405, "405: Method Not Allowed", "PUT, DELETE, GET, HEAD"},
		{"OPTIONS", "/meshes", nil, 405, "405: Method Not Allowed", "GET, HEAD"},
		{"BREW", "/policies", nil, 405, "405: Method Not Allowed", "GET, HEAD"},
		{"PUT", "/zones+insights/a", nil, 405, "405: Method Not Allowed", "GET, HEAD"},
		{"GET", "/meshes", []string{"Accept: text/html"}, 406, errUnaccepted.text, ""},
		{"GET", "/meshes", []string{"Accept: application/json;q=0, */*"}, 406, errUnaccepted.text, ""},
		{"DELETE", "/meshes/demo", []string{"Accept: text/html"}, 406, errUnaccepted.text, ""},
	} {
		t.Run(tc.method+" "+tc.target, func(t *testing.T) {
			a := p.want(tc.status, tc.method, tc.target, "", tc.headers...)
			if diff := cmp.Diff(tc.body, a.Body); diff != "" {
				t.Error(diff)
			}
			if allow := a.Header.Get("Allow"); allow != tc.allow {
				t.Errorf("Allow %q, want %q", allow, tc.allow)
			}
			wantType := "text/plain; charset=utf-8"
			if strings.HasPrefix(tc.body, "{") {
				wantType = "application/json"
			}
			if ct := a.Header.Get("Content-Type"); ct != wantType {
				t.Errorf("Content-Type %q, want %q", ct, wantType)
			}
		})
	}
	if !strings.HasPrefix(errUnaccepted.text, "406: Not Acceptable\n") {
		t.Error("the first line of a 406 is not what clients know")
	}
	for _, accept := range []string{"*/*", "application/*", "application/json", "text/html, application/json;q=0.1", "", "text/html, */*;q=0.1"} {
		p.want(200, http.MethodGet, "/meshes", "", "Accept: "+accept)
	}
}

func TestAliasesAnswerAsTheirCanonicalPath(t *testing.T) {
	p := newPlane(t, resource.Global)
	p.seed(
		record(t, resource.Mesh, "", "demo", "", nil), record(t, "TrafficPermission", "demo", "a", "", nil),
		record(t, resource.Dataplane, "demo", "dp", "zone-1", nil), record(t, resource.ZoneType, "", "zone-1", "", nil),
		record(t, resource.ZoneIngress, "", "in", "", nil), record(t, resource.ZoneEgress, "", "out", "zone-1", nil),
		record(t, resource.GlobalSecret, "", "s", "", nil), record(t, "MeshGateway", "demo", "gw", "", nil),
	)
	for alias, target := range map[string]string{
		"/dataplane+insights":                   "/dataplanes+insights",
		"/dataplane+insights/":                  "/dataplanes+insights",
		"/dataplanes+insights/":                 "/dataplanes+insights",
		"/meshes/demo/dataplane+insights":       "/meshes/demo/dataplanes+insights",
		"/meshes/demo/dataplane+insights/":      "/meshes/demo/dataplanes+insights",
		"/meshes/demo/dataplanes+insights/":     "/meshes/demo/dataplanes+insights",
		"/meshes/demo/dataplane+insights/dp":    "/meshes/demo/dataplanes+insights/dp",
		"/meshes/demo/dataplanes%2Binsights/dp": "/meshes/demo/dataplanes+insights/dp",
		"/meshes/demo/dataplane/dp":             "/meshes/demo/dataplanes/dp",
		"/zone-ingress/in":                      "/zone-ingresses/in",
		"/zonesegressoverviews/out":             "/zoneegressoverviews/out",
		"/zonesegressoverviews":                 "/zoneegressoverviews",
		"/trafficpermissions":                   "/traffic-permissions",
		"/meshes/demo/trafficpermissions/a":     "/meshes/demo/traffic-permissions/a",
		"/globalsecrets/s":                      "/global-secrets/s",
		"/globalsecrets":                        "/global-secrets",
		"/zoneingresses":                        "/zone-ingresses",
		"/zoneingresses/in":                     "/zone-ingresses/in",
		"/zones+insights/":                      "/zones+insights",
		"/zoneingresses+insights/":              "/zoneingresses+insights",
		"/zoneegressoverviews/":                 "/zoneegressoverviews",
		"/meshes/demo/dataplane/dp/rules":       "/meshes/demo/dataplanes/dp/rules",
		"/meshes/demo/meshgateways/gw/policies": "/meshes/demo/meshgateways/gw/dataplanes",
		"/dataplanes/_overview":                 "/dataplanes+insights",
		"/meshes/demo/dataplanes/_overview":     "/meshes/demo/dataplanes+insights",
		"/meshes/demo/dataplanes/dp/_overview":  "/meshes/demo/dataplanes+insights/dp",
		"/zones/_overview":                      "/zones+insights",
		"/zones/zone-1/_overview":               "/zones+insights/zone-1",
		"/zoneingresses/_overview":              "/zoneingresses+insights",
		"/zoneingresses/in/_overview":           "/zoneingresses+insights/in",
		"/zone-ingresses/_overview":             "/zoneingresses+insights",
		"/zone-ingresses/in/_overview":          "/zoneingresses+insights/in",
		"/zoneegresses/_overview":               "/zoneegressoverviews",
		"/zoneegresses/out/_overview":           "/zoneegressoverviews/out",
	} {
		want := p.want(200, http.MethodGet, target, "")
		if diff := cmp.Diff(want.Body, p.want(200, http.MethodGet, alias, "").Body); diff != "" {
			t.Errorf("%s: %s", alias, diff)
		}
		p.want(200, http.MethodHead, alias, "")
	}
	p.want(201, http.MethodPut, "/globalsecrets/t", `{"type":"GlobalSecret","name":"t"}`)
	p.want(200, http.MethodDelete, "/zoneingresses/in", "")
	if got := canonical("/meshgateways/gw/policies"); got != "/meshgateways/gw/dataplanes" {
		t.Errorf("got %s", got)
	}
	next := object(t, p.want(200, http.MethodGet, "/meshes/demo/dataplane+insights?size=0", "").Body)["next"]
	if next != nil {
		t.Errorf("next is %v", next)
	}
}

func TestLinksRepeatThePathTheClientUsed(t *testing.T) {
	p := newPlane(t, resource.Global)
	for i := range 3 {
		p.seed(record(t, resource.Dataplane, "demo", fmt.Sprint("dp-", i), "zone-1", nil))
	}
	a := p.want(200, http.MethodGet, "/meshes/demo/dataplane%2Binsights?size=1", "", "Host: cp.example:80")
	if got, want := object(t, a.Body)["next"], "http://cp.example:80/meshes/demo/dataplane%2Binsights?offset=1&size=1"; got != want {
		t.Errorf("next is %v, want %v", got, want)
	}
}

func TestHeadIsAnsweredWhereverGetIs(t *testing.T) {
	p := newPlane(t, resource.Global)
	for i := range 2000 {
		p.seed(record(t, resource.Mesh, "", fmt.Sprintf("m-%04d", i), "", &meshv1.Mesh{
			Mtls: &meshv1.Mesh_Mtls{EnabledBackend: strings.Repeat("x", 600)},
		}))
	}
	for _, target := range []string{
		"/", "/config", "/policies", "/versions", "/status/zones", "/meshes", "/meshes/m-0000", "/meshes?size=0",
		"/zones+insights", "/dataplanes+insights", "/service-insights",
	} {
		get, head := p.want(200, http.MethodGet, target, ""), p.want(200, http.MethodHead, target, "")
		if head.Body != "" {
			t.Errorf("%s: HEAD has a body of %d bytes", target, len(head.Body))
		}
		if got, want := head.Header.Get("Content-Length"), fmt.Sprint(len(get.Body)); got != want {
			t.Errorf("%s: Content-Length %s, want %s", target, got, want)
		}
		if diff := cmp.Diff(get.Header.Get("Content-Type"), head.Header.Get("Content-Type")); diff != "" {
			t.Errorf("%s: %s", target, diff)
		}
	}
	p.want(404, http.MethodHead, "/meshes/none", "")
	if got := names(t, p.want(200, http.MethodGet, "/meshes?size=0", "").Body); len(got) != 2000 {
		t.Errorf("a list of more than a mebibyte has %d items", len(got))
	}
}

func TestBodiesAreCompressedOnRequest(t *testing.T) {
	p := newPlane(t, resource.Global)
	for i := range 3000 {
		p.seed(record(t, resource.Mesh, "", fmt.Sprintf("m-%04d", i), "", &meshv1.Mesh{
			Mtls: &meshv1.Mesh_Mtls{EnabledBackend: strings.Repeat("x", 400)},
		}))
	}
	for _, target := range []string{"/meshes", "/meshes?size=0", "/policies"} {
		plain := p.want(200, http.MethodGet, target, "")
		if plain.Header.Get("Content-Encoding") != "" || plain.Header.Get("Vary") != "Accept-Encoding" {
			t.Errorf("%s: headers %v", target, plain.Header)
		}
		for _, accept := range []string{"gzip", "deflate, gzip;q=0.5", "*"} {
			zipped := p.want(200, http.MethodGet, target, "", "Accept-Encoding: "+accept)
			if zipped.Header.Get("Content-Encoding") != "gzip" || len(zipped.Body) >= len(plain.Body) {
				t.Fatalf("%s: %d of %d bytes, headers %v", target, len(zipped.Body), len(plain.Body), zipped.Header)
			}
			r, err := gzip.NewReader(strings.NewReader(zipped.Body))
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(r)
			if err != nil {
				t.Fatal(err)
			}
			if string(body) != plain.Body {
				t.Errorf("%s: the bodies differ", target)
			}
		}
		for _, accept := range []string{"gzip;q=0, *", "identity", "br"} {
			if a := p.want(200, http.MethodGet, target, "", "Accept-Encoding: "+accept); a.Header.Get("Content-Encoding") != "" {
				t.Errorf("%s: compressed for %q", target, accept)
			}
		}
	}
	if a := p.want(200, http.MethodGet, "/meshes/m-0000", "", "Accept-Encoding: gzip"); a.Header.Get("Content-Encoding") != "" {
		t.Error("a small body was compressed")
	}
}

func TestRenderedJSONFollowsTheRecord(t *testing.T) {
	for _, cache := range []int64{0, 2048, 64 << 20} {
		p := newPlane(t, resource.Global, func(o *Options) { o.RenderCacheBytes = cache })
		for round := range 5 {
			for i := range 20 {
				path := fmt.Sprintf("/meshes/m-%02d", i)
				p.do(http.MethodPut, path, fmt.Sprintf(`{"type":"Mesh","name":"m-%02d","labels":{"round":"%d"}}`, i, round))
			}
			body := p.want(200, http.MethodGet, "/meshes", "").Body
			if n := strings.Count(body, fmt.Sprintf(`"round": "%d"`, round)); n != 20 {
				t.Fatalf("with a cache of %d bytes, %d of 20 items show round %d", cache, n, round)
			}
		}
		if c := p.srv.renders.cache; c != nil {
			c.CleanUp()
			if got := c.WeightedSize(); got > uint64(cache) {
				t.Errorf("%d bytes are kept, the bound is %d", got, cache)
			}
		}
	}
}

func TestARecordIsRenderedOncePerVersion(t *testing.T) {
	p := newPlane(t, resource.Global)
	p.seed(record(t, resource.Mesh, "", "demo", "", nil))
	rec, _ := p.store.Snapshot().Get(store.Key{Type: "Mesh", Name: "demo"})
	renders := 0
	render := func() ([]byte, error) { renders++; return []byte("{}"), nil }
	for range 3 {
		if _, err := p.srv.renders.item(renderKey{main: rec}, render); err != nil {
			t.Fatal(err)
		}
	}
	if renders != 1 {
		t.Errorf("rendered %d times", renders)
	}
}

func TestARecordThatCannotBeReadIs500WithoutDetails(t *testing.T) {
	p := newPlane(t, resource.Global)
	bad := record(t, resource.Mesh, "", "bad", "", nil)
	bad.Spec = []byte{0xff}
	p.seed(bad)
	for _, target := range []string{"/meshes/bad", "/meshes"} {
		a := p.want(500, http.MethodGet, target, "")
		got := object(t, a.Body)
		if got["details"] != detailsInternal || len(got) != 2 || a.Header.Get("X-Request-Id") == "" {
			t.Errorf("%s: %s %v", target, a.Body, a.Header)
		}
	}
}

func TestAFailureInTheMiddleOfALongListCutsTheConnection(t *testing.T) {
	p := newPlane(t, resource.Global)
	for i := range 1500 {
		p.seed(record(t, resource.Mesh, "", fmt.Sprintf("a-%04d", i), "", &meshv1.Mesh{
			Mtls: &meshv1.Mesh_Mtls{EnabledBackend: strings.Repeat("x", 800)},
		}))
	}
	bad := record(t, resource.Mesh, "", "z-bad", "", nil)
	bad.Spec = []byte{0xff}
	p.seed(bad)
	defer func() {
		if r := recover(); r != http.ErrAbortHandler { //nolint:errorlint // as net/http compares it
			t.Errorf("recovered %v", r)
		}
	}()
	a := p.do(http.MethodGet, "/meshes?size=0", "")
	t.Errorf("answered %d with %d bytes", a.Status, len(a.Body))
}

func TestAPanicIs500AndLogged(t *testing.T) {
	var log strings.Builder
	p := newPlane(t, resource.Global, func(o *Options) {
		o.Log = slog.New(slog.NewTextHandler(&log, nil))
		o.EffectiveConfig = func() ([]byte, error) { panic("secret-detail") }
	})
	a := p.want(500, http.MethodGet, "/config", "")
	id := a.Header.Get("X-Request-Id")
	if strings.Contains(a.Body, "secret-detail") || id == "" {
		t.Errorf("got %s %v", a.Body, a.Header)
	}
	if l := log.String(); !strings.Contains(l, "secret-detail") || !strings.Contains(l, "request_id="+id) || !strings.Contains(l, "read_test.go") {
		t.Errorf("logged %s", l)
	}
}

func TestRequestsAreCountedByRoutePattern(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	p := newPlane(t, resource.Global, func(o *Options) { o.Registerer = reg })
	p.seed(record(t, resource.Mesh, "", "demo", "", nil))
	p.do(http.MethodGet, "/meshes/demo/retries/a", "")
	p.do(http.MethodGet, "/meshes/demo/retries/b", "")
	p.do(http.MethodPut, "/meshes/demo/retries/a", `{"type":"Retry","name":"a","mesh":"demo",`+every+`,"conf":{"tcp":{"maxConnectAttempts":2}}}`)
	p.do(http.MethodGet, "/trafficpermissions", "")
	p.do(http.MethodGet, "/who/knows", "")
	p.do("BREW", "/who/knows", "")
	p.do(http.MethodPost, "/policies", "")
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			var labels []string
			for _, l := range m.GetLabel() { // sorted by name: code, method, route
				labels = append(labels, l.GetValue())
			}
			key := strings.TrimPrefix(f.GetName(), "meridian_http_") + " " + strings.Join(labels, " ")
			got[key] = m.GetCounter().GetValue() + m.GetGauge().GetValue() + float64(m.GetHistogram().GetSampleCount())
		}
	}
	want := map[string]float64{
		"requests_total 200 GET /traffic-permissions":                1,
		"requests_total 201 PUT /meshes/{mesh}/retries/{name}":       1,
		"requests_total 404 GET /meshes/{mesh}/retries/{name}":       2,
		"requests_total 404 GET unmatched":                           1,
		"requests_total 404 other unmatched":                         1,
		"requests_total 405 POST unmatched":                          1,
		"request_duration_seconds GET /traffic-permissions":          1,
		"request_duration_seconds PUT /meshes/{mesh}/retries/{name}": 1,
		"request_duration_seconds GET /meshes/{mesh}/retries/{name}": 2,
		"request_duration_seconds GET unmatched":                     1,
		"request_duration_seconds other unmatched":                   1,
		"request_duration_seconds POST unmatched":                    1,
		"requests_in_flight ":                                        0,
		"watches ":                                                   0,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestCORSIsClosedUnlessConfigured(t *testing.T) {
	const origin = "https://ui.example.com"
	closed := newPlane(t, resource.Global)
	a := closed.want(200, http.MethodGet, "/meshes", "", "Origin: "+origin)
	if a.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Error("an origin was allowed by default")
	}
	closed.want(405, http.MethodOptions, "/meshes", "", "Origin: "+origin, "Access-Control-Request-Method: PUT")

	open := newPlane(t, resource.Global, func(o *Options) { o.CORSAllowedDomains = []string{`.*\.example\.com`, `https://exact\.org`} })
	for o, allowed := range map[string]bool{
		origin: true, "http://a.example.com:8080": true, "https://exact.org": true,
		"http://exact.org": false, "https://example.com.evil.net": false, "https://evil.net": false, "null": false,
	} {
		a := open.want(200, http.MethodGet, "/meshes", "", "Origin: "+o)
		want := ""
		if allowed {
			want = o
		}
		if got := a.Header.Get("Access-Control-Allow-Origin"); got != want {
			t.Errorf("%s: allowed %q", o, got)
		}
	}
	a = open.want(200, http.MethodOptions, "/meshes/demo", "", "Origin: "+origin,
		"Access-Control-Request-Method: PUT", "Access-Control-Request-Headers: content-type")
	if a.Header.Get("Access-Control-Allow-Methods") != "PUT,DELETE,GET,POST" || a.Header.Get("Access-Control-Allow-Headers") != "content-type" {
		t.Errorf("preflight answered %v", a.Header)
	}
	open.want(405, http.MethodOptions, "/meshes", "", "Origin: https://evil.net", "Access-Control-Request-Method: PUT")
}

func TestOnlyAdministratorsSeeAdminOnlyTypes(t *testing.T) {
	const forbidden = "{\n \"title\": \"Access Denied\",\n \"details\": \"user \\\"mesh-system:anonymous/mesh-system:unauthenticated\\\" cannot access the resource of type \\\"%s\\\"\"\n}\n"
	for _, tc := range []struct {
		name    string
		headers []string
		closed  bool // localhostIsAdmin is off
		admin   bool
	}{
		{name: "a local client", admin: true},
		{name: "a local client over IPv6", headers: []string{"Remote: [::1]:4", "Host: [::1]:5681"}, admin: true},
		{name: "a local client over mapped IPv4", headers: []string{"Remote: [::ffff:127.0.0.1]:4", "Host: 127.0.0.1:5681"}, admin: true},
		{name: "a host name without a port", headers: []string{"Host: localhost"}, admin: true},
		{name: "a request typed into a local browser", headers: []string{"Sec-Fetch-Site: none"}, admin: true},
		{name: "a local client when localhost is not special", closed: true},
		{name: "a remote client", headers: []string{"Remote: 10.1.2.3:4"}},
		{name: "a remote client that claims a local host", headers: []string{"Remote: 10.1.2.3:4", "Host: localhost"}},
		{name: "a local page of another origin", headers: []string{"Origin: https://evil.net"}},
		{name: "a local page of an opaque origin", headers: []string{"Origin: null"}},
		{name: "a name that was bound to the loopback address", headers: []string{"Host: evil.net:5681"}},
		{name: "an empty host", headers: []string{"Host: "}},
		{name: "a local proxy", headers: []string{"X-Forwarded-For: 10.1.2.3"}},
		{name: "a local proxy that follows the standard", headers: []string{"Forwarded: for=10.1.2.3"}},
		{name: "an image on a foreign page", headers: []string{"Sec-Fetch-Site: cross-site"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPlane(t, resource.Global, func(o *Options) { o.LocalhostIsAdmin = !tc.closed })
			p.seed(record(t, resource.Mesh, "", "demo", "", nil),
				record(t, resource.Secret, "demo", "s", "", nil), record(t, resource.GlobalSecret, "", "s", "", nil))
			all := resource.All()
			for i := range all {
				d := &all[i]
				if !d.AdminOnly {
					continue
				}
				item := itemPath(d, "demo", "s")
				lists := []string{"/" + d.Path}
				if d.Scope == resource.ScopeMesh {
					lists = append(lists, "/meshes/demo/"+d.Path)
				}
				status := 403
				if tc.admin {
					status = 200
				}
				check := func(a answer) {
					t.Helper()
					if diff := cmp.Diff(fmt.Sprintf(forbidden, d.Name), a.Body); !tc.admin && diff != "" {
						t.Error(diff)
					}
				}
				check(p.want(status, http.MethodGet, item, "", tc.headers...))
				for _, l := range lists {
					check(p.want(status, http.MethodGet, l, "", tc.headers...))
				}
				check(p.want(status, http.MethodPut, item, bodyOf(t, d, "demo", "s"), tc.headers...))
				p.want(400, http.MethodPut, item, `{`, tc.headers...)
				p.want(404, http.MethodDelete, itemPath(d, "demo", "none"), "", tc.headers...)
				check(p.want(status, http.MethodDelete, item, "", tc.headers...))
			}
			p.want(200, http.MethodGet, "/meshes", "", tc.headers...)
			p.want(201, http.MethodPut, "/meshes/new", `{"type":"Mesh","name":"new"}`, tc.headers...)
		})
	}
}

func TestConfigurationIsShownCompact(t *testing.T) {
	p := newPlane(t, resource.Global, func(o *Options) {
		o.EffectiveConfig = func() ([]byte, error) { return []byte("{\n  \"mode\": \"global\"\n}"), nil }
	})
	if a := p.want(200, http.MethodGet, "/config", ""); a.Body != `{"mode":"global"}` {
		t.Errorf("got %s", a.Body)
	}
	p = newPlane(t, resource.Global)
	if a := p.want(200, http.MethodGet, "/config", ""); !json.Valid([]byte(a.Body)) {
		t.Errorf("got %s", a.Body)
	}
}
