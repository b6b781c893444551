package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/structpb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
)

// withMesh is a plane that holds mesh "demo".
func withMesh(t testing.TB, pl resource.Plane, changes ...func(*Options)) *plane {
	t.Helper()
	p := newPlane(t, pl, changes...)
	p.seed(record(t, resource.Mesh, "", "demo", "", nil))
	return p
}

func TestAPutIsRefusedWithAllThatIsWrong(t *testing.T) {
	const (
		path    = "/meshes/demo/retries/web"
		invalid = "Resource is not valid"
	)
	for _, tc := range []struct {
		name, target, body string
		headers            []string
		want               problem
	}{
		{
			name: "name, type and mesh that differ are reported together", target: path,
			body: `{"type":"Timeout","name":"api","mesh":"other"}`,
			want: problem{Title: titleProcess, Details: invalid, status: 400, Causes: []cause{
				{"name", "name from the URL has to be the same as in body"},
				{"type", "type from the URL has to be the same as in body"},
				{"mesh", "mesh from the URL has to be the same as in body"},
			}},
		},
		{
			name: "a body without type, name and mesh differs in all", target: path, body: `{}`,
			want: problem{Title: titleProcess, Details: invalid, status: 400, Causes: []cause{
				{"name", "name from the URL has to be the same as in body"},
				{"type", "type from the URL has to be the same as in body"},
				{"mesh", "mesh from the URL has to be the same as in body"},
			}},
		},
		{
			name: "a new name may not hold capitals or dots", target: "/meshes/demo/retries/Web.1",
			body: `{"type":"Retry","name":"Web.1","mesh":"demo"}`,
			want: problem{Title: titleProcess, Details: invalid, status: 400, Causes: []cause{
				{"name", resource.ErrNameCharacters.Error()},
			}},
		},
		{
			name: "a zone's name is a DNS label", target: "/zones/a_b", body: `{"type":"Zone","name":"a_b"}`,
			want: problem{Title: titleProcess, Details: invalid, status: 400, Causes: []cause{
				{"name", resource.ErrZoneName.Error()},
			}},
		},
		{
			name: "the mesh must exist", target: "/meshes/none/retries/web",
			body: `{"type":"Retry","name":"web","mesh":"none",` + every + `,"conf":{"tcp":{"maxConnectAttempts":2}}}`,
			want: problem{Title: titleCreate, Details: "Mesh is not found", status: 400, Causes: []cause{
				{"mesh", "mesh of name none is not found"},
			}},
		},
		{
			name: "the mesh must exist for a secret too", target: "/meshes/none/secrets/s",
			body: `{"type":"Secret","name":"s","mesh":"none","data":"dGVzdA=="}`,
			want: problem{Title: titleCreate, Details: "Mesh is not found", status: 400, Causes: []cause{
				{"mesh", "mesh of name none is not found"},
			}},
		},
		{
			name: "a missing mesh with an impossible name", target: "/meshes/No/retries/web",
			body: `{"type":"Retry","name":"web","mesh":"No"}`,
			want: problem{Title: titleProcess, Details: invalid, status: 400, Causes: []cause{
				{"mesh", resource.ErrNameCharacters.Error()},
			}},
		},
		{
			name: "unknown fields when asked to be strict", target: path + "?strict=true",
			body: `{"type":"Retry","name":"web","mesh":"demo","colour":"red"}`,
			want: problem{Title: titleProcess, Details: invalid, status: 400, Causes: []cause{
				{"colour", "unknown field"},
			}},
		},
		{
			name: "a strictness that is neither", target: path + "?strict=perhaps",
			body: `{"type":"Retry","name":"web","mesh":"demo"}`,
			want: problem{Title: titleProcess, Details: "Invalid query parameter", status: 400, Causes: []cause{
				{"strict", "must be either true or false"},
			}},
		},
		{
			name: "a body over the limit", target: path, body: `{"type":"` + strings.Repeat("x", 4<<20) + `"}`,
			want: problem{Title: titleProcess, Details: "The request body is larger than 4194304 bytes", status: 413},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := withMesh(t, resource.Global)
			a := p.want(tc.want.status, http.MethodPut, tc.target, tc.body, tc.headers...)
			want, err := marshal(tc.want)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), a.Body); diff != "" {
				t.Error(diff)
			}
			if ct := a.Header.Get("Content-Type"); ct != "application/json" {
				t.Errorf("Content-Type %q", ct)
			}
			if got := p.keys(); len(got) != 1 {
				t.Errorf("the store holds %v", got)
			}
		})
	}
}

func TestABodyThatIsNoResourceIs400NamingTheFieldOrPosition(t *testing.T) {
	p := withMesh(t, resource.Global)
	for name, tc := range map[string]struct{ body, field, message string }{
		"no body":             {"", "", "empty"},
		"broken JSON":         {`{"type":`, "", "line 1"},
		"an array":            {`[]`, "", "object"},
		"trailing garbage":    {`{"type":"Retry","name":"web","mesh":"demo"} x`, "", ""},
		"a wrong type":        {`{"type":"Retry","name":"web","mesh":"demo","sources":"all"}`, "sources", "array"},
		"a wrong name type":   {`{"type":"Retry","name":7,"mesh":"demo"}`, "name", "string"},
		"a bad duration":      {`{"type":"Retry","name":"web","mesh":"demo","conf":{"http":{"perTryTimeout":"soon"}}}`, "conf.http.perTryTimeout", ""},
		"labels of no kind":   {`{"type":"Retry","name":"web","mesh":"demo","labels":{"a":1}}`, "labels", ""},
		"binary":              {"\x00\xff\xfe", "", ""},
		"a very deep nesting": {strings.Repeat(`{"conf":`, 5000), "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			a := p.want(http.StatusBadRequest, http.MethodPut, "/meshes/demo/retries/web", tc.body, "Content-Type: application/json")
			got := object(t, a.Body)
			if got["title"] != titleProcess || got["details"] != "Resource is not valid" {
				t.Errorf("title %q, details %q", got["title"], got["details"])
			}
			causes, _ := got["causes"].([]any)
			if len(causes) == 0 {
				t.Fatalf("no causes in %s", a.Body)
			}
			first := causes[0].(map[string]any)
			if !strings.HasPrefix(first["field"].(string), tc.field) || !strings.Contains(first["message"].(string), tc.message) {
				t.Errorf("first cause is %v, want field %q and a message about %q", first, tc.field, tc.message)
			}
		})
	}
}

func TestTheContentTypeOfABodyDecides(t *testing.T) {
	const (
		path  = "/meshes/demo/retries/web"
		asIs  = `{"type":"Retry","name":"web","mesh":"demo",` + every + `,"conf":{"http":{"numRetries":5}}}`
		plain = "type: Retry\nname: web\nmesh: demo\nsources: [{match: {kuma.io/service: a}}]\n" +
			"destinations:\n- match:\n    kuma.io/service: b\nconf:\n  http:\n    numRetries: 5\n"
	)
	p := withMesh(t, resource.Global)
	for _, tc := range []struct {
		contentType, body string
		want              int
	}{
		{"application/json", asIs, 201},
		{"application/json; charset=utf-8", asIs, 201},
		{"Application/JSON", asIs, 201},
		{"application/yaml", plain, 201},
		{"application/x-yaml", plain, 201},
		{"text/yaml; charset=utf-8", plain, 201},
		{"application/yaml", "a: [", 400},
		{"text/json", asIs, 415},
		{"text/plain", asIs, 415},
		{"application/x-www-form-urlencoded", asIs, 415},
		{"garbage/;;", asIs, 415},
		{"", asIs, 415},
	} {
		header := "Content-Type: " + tc.contentType
		if tc.contentType == "" {
			header = "-Content-Type"
		}
		a := p.want(tc.want, http.MethodPut, path, tc.body, "-Content-Type", header)
		switch tc.want {
		case 415:
			if a.Body != "415: Unsupported Media Type" || a.Header.Get("Content-Type") != "text/plain; charset=utf-8" {
				t.Errorf("%s: %q %v", tc.contentType, a.Body, a.Header)
			}
		case 201:
			if strings.Contains(tc.contentType, "yaml") {
				got := object(t, p.want(200, http.MethodGet, path, "").Body)
				if diff := cmp.Diff(map[string]any{"http": map[string]any{"numRetries": 5.0}}, got["conf"]); diff != "" {
					t.Errorf("%s: %s", tc.contentType, diff)
				}
			}
			p.want(200, http.MethodDelete, path, "")
		}
	}
	p.want(415, http.MethodPut, path, asIs, "Content-Encoding: gzip")
}

func TestUnknownFieldsAreAcceptedWithAWarning(t *testing.T) {
	p := withMesh(t, resource.Global)
	a := p.want(201, http.MethodPut, "/meshes/demo/retries/web",
		`{"type":"Retry","name":"web","mesh":"demo",`+every+`,"colour":"red","conf":{"tcp":{"maxConnectAttempts":2},"x\ny":1}}`)
	want := []string{`299 - "unknown field colour"`}
	if diff := cmp.Diff(want, a.Header["Warning"][:1]); diff != "" {
		t.Error(diff)
	}
	if len(a.Header["Warning"]) != 2 || strings.ContainsAny(a.Header["Warning"][1], "\r\n") {
		t.Errorf("warnings are %q", a.Header["Warning"])
	}
	if body := p.want(200, http.MethodGet, "/meshes/demo/retries/web", "").Body; strings.Contains(body, "colour") {
		t.Errorf("the field was stored: %s", body)
	}

	var many strings.Builder
	for i := range 50 {
		fmt.Fprintf(&many, `,"f%d%s":1`, i, strings.Repeat("x", 1000))
	}
	a = p.want(200, http.MethodPut, "/meshes/demo/retries/web", `{"type":"Retry","name":"web","mesh":"demo",`+every+`,"conf":{"tcp":{"maxConnectAttempts":2}}`+many.String()+`}`)
	if w := a.Header["Warning"]; len(w) != maxWarnings+1 || len(w[0]) > 300 || w[maxWarnings] != `299 - "30 more unknown fields"` {
		t.Errorf("%d warnings, the last is %q", len(w), w[len(w)-1])
	}
}

func TestAnOptionOfAWriteIsNeverPassedOver(t *testing.T) {
	p := withMesh(t, resource.Global)
	before := p.store.Snapshot().Revision()
	for query, message := range map[string]string{
		"dryRun":                    "must be either true or false",
		"dryRun=":                   "must be either true or false",
		"dryRun=yes":                "must be either true or false",
		"dryrun=true":               "is not known, but dryRun is",
		"dry-run=true":              "is not known, but dryRun is",
		"dry_run=server":            "is not known, but dryRun is",
		"Strict=true":               "is not known, but strict is",
		"WAIT=1s":                   "is not known, but wait is",
		"dryRun=false&dryRun=true":  "is given more than once",
		"dryRun=true;strict=true":   "the query cannot be read",
		"dryRun=true%zz":            "the query cannot be read",
		"strict=false&dryRun=true;": "the query cannot be read",
	} {
		for _, req := range [...]struct{ method, target, body string }{
			{http.MethodPut, "/meshes/new", `{"type":"Mesh","name":"new"}`},
			{http.MethodDelete, "/meshes/demo", ""},
			{http.MethodPost, "/import", `{"type":"Mesh","name":"new"}`},
		} {
			a := p.want(http.StatusBadRequest, req.method, req.target+"?"+query, req.body)
			if !strings.Contains(a.Body, message) {
				t.Errorf("%s %s: %s", req.method, query, a.Body)
			}
		}
	}
	p.want(http.StatusBadRequest, http.MethodPost, "/tokens/user?dryRun=true", `{"name":"x","validFor":"1h"}`)
	p.want(http.StatusBadRequest, http.MethodPost, "/import?wait=1s", `{"type":"Mesh","name":"new"}`)
	if after := p.store.Snapshot().Revision(); after != before {
		t.Errorf("revision %d became %d", before, after)
	}
	p.want(http.StatusCreated, http.MethodPut, "/meshes/new?of=a+client&another", `{"type":"Mesh","name":"new"}`)
}

func TestAPutThatChangesNothingCommitsNothing(t *testing.T) {
	p := withMesh(t, resource.Global)
	const path = "/meshes/demo/retries/web"
	body := `{"type":"Retry","name":"web","mesh":"demo","labels":{"a":"1"},` + every + `,"conf":{"http":{"numRetries":5}}}`
	p.want(201, http.MethodPut, path, body)
	before := p.want(200, http.MethodGet, path, "").Body
	rev := p.store.Snapshot().Revision()

	p.want(200, http.MethodPut, path, body)
	p.want(200, http.MethodPut, path,
		`{"conf":{"http":{"numRetries":5.0}},"labels":{"a":"1"},"mesh":"demo","name":"web","type":"Retry","creationTime":"2001-01-01T00:00:00Z",`+every+`}`)
	if diff := cmp.Diff(before, p.want(200, http.MethodGet, path, "").Body); diff != "" {
		t.Error(diff)
	}
	if now := p.store.Snapshot().Revision(); now != rev {
		t.Errorf("revision went from %d to %d", rev, now)
	}

	p.want(200, http.MethodPut, path, strings.Replace(body, `"a":"1"`, `"a":"2"`, 1))
	if now := p.store.Snapshot().Revision(); now != rev+1 {
		t.Errorf("changed labels made revision %d of %d", now, rev)
	}
}

func TestAnUpdateKeepsTheCreationTimeAndReplacesTheRest(t *testing.T) {
	p := withMesh(t, resource.Global)
	const path = "/meshes/demo/retries/web"
	p.want(201, http.MethodPut, path, `{"type":"Retry","name":"web","mesh":"demo","labels":{"a":"1"},`+every+`,"conf":{"http":{"numRetries":5}}}`)
	first := object(t, p.want(200, http.MethodGet, path, "").Body)
	if first["creationTime"] != first["modificationTime"] {
		t.Errorf("a new resource has times %v and %v", first["creationTime"], first["modificationTime"])
	}
	p.want(200, http.MethodPut, path, `{"type":"Retry","name":"web","mesh":"demo",`+every+`,"conf":{"tcp":{"maxConnectAttempts":2}}}`)
	second := object(t, p.want(200, http.MethodGet, path, "").Body)
	if first["creationTime"] != second["creationTime"] || first["modificationTime"] == second["modificationTime"] {
		t.Errorf("times went from %v to %v", first, second)
	}
	if diff := cmp.Diff(map[string]any{"tcp": map[string]any{"maxConnectAttempts": 2.0}}, second["conf"]); diff != "" {
		t.Error(diff)
	}
	if second["labels"] != nil {
		t.Errorf("labels are still %v", second["labels"])
	}
}

func TestResourcesOfOtherPlanesCannotBeWritten(t *testing.T) {
	for _, tc := range []struct {
		name, origin, owner string
		plane               resource.Plane
	}{
		{"a zone's ingress on the global", "zone-1", `the control plane of zone "zone-1"`, resource.Global},
		{"another zone's ingress on a zone", "global", "the global control plane", resource.Zone},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPlane(t, tc.plane)
			p.seed(record(t, resource.ZoneIngress, "", "zone-2.ingress", tc.origin, nil))
			for _, method := range []string{http.MethodPut, http.MethodDelete} {
				a := p.want(405, method, "/zone-ingresses/zone-2.ingress", `{"type":"ZoneIngress","name":"zone-2.ingress"}`)
				want := `Operation not allowed. ZoneIngress "zone-2.ingress" is owned by ` + tc.owner + ". Modify it there.\n"
				if diff := cmp.Diff(want, a.Body); diff != "" {
					t.Errorf("%s: %s", method, diff)
				}
			}
			if rec, _ := p.store.Snapshot().Get(store.Key{Type: "ZoneIngress", Name: "zone-2.ingress"}); rec == nil || rec.Version != 1 {
				t.Errorf("the record is now %+v", rec)
			}
		})
	}
}

func TestAnExistingResourceKeepsItsUnusualName(t *testing.T) {
	p := withMesh(t, resource.Global)
	p.seed(record(t, "Retry", "demo", "Old.Name", "", nil))
	p.want(200, http.MethodPut, "/meshes/demo/retries/Old.Name", `{"type":"Retry","name":"Old.Name","mesh":"demo",`+every+`,"conf":{"tcp":{"maxConnectAttempts":2}}}`)
	p.want(200, http.MethodDelete, "/meshes/demo/retries/Old.Name", "")
}

func TestAGlobalSecretMayCallItselfSecret(t *testing.T) {
	p := newPlane(t, resource.Global)
	p.want(201, http.MethodPut, "/global-secrets/s", `{"type":"Secret","name":"s","mesh":"ignored","data":"dGVzdAo="}`)
	got := object(t, p.want(200, http.MethodGet, "/global-secrets/s", "").Body)
	if got["type"] != "GlobalSecret" || got["data"] != "dGVzdAo=" || got["mesh"] != nil {
		t.Errorf("got %v", got)
	}
	p.seed(record(t, resource.Mesh, "", "demo", "", nil))
	p.want(400, http.MethodPut, "/meshes/demo/secrets/s", `{"type":"GlobalSecret","name":"s","mesh":"demo"}`)
}

func TestAZoneAddsItsNameToDataplanes(t *testing.T) {
	p := withMesh(t, resource.Zone)
	const path = "/meshes/demo/dataplanes/dp"
	body := `{"type":"Dataplane","name":"dp","mesh":"demo","networking":{"address":"10.0.0.1","inbound":[
		{"port":80,"tags":{"kuma.io/service":"a","kuma.io/zone":"elsewhere"},"serviceProbe":{"tcp":{}}},
		{"port":81,"tags":{"kuma.io/service":"b"},"serviceProbe":{"tcp":{}},"health":{"ready":true}},
		{"port":82,"tags":{"service":"old"}}]}}`
	p.want(201, http.MethodPut, path, body)
	inbound := func() []any {
		net := object(t, p.want(200, http.MethodGet, path, "").Body)["networking"].(map[string]any)
		return net["inbound"].([]any)
	}
	want := []any{
		map[string]any{
			"port": 80.0, "tags": map[string]any{"kuma.io/service": "a", "kuma.io/zone": "zone-1"},
			"serviceProbe": map[string]any{"tcp": map[string]any{}}, "health": map[string]any{},
		},
		map[string]any{
			"port": 81.0, "tags": map[string]any{"kuma.io/service": "b", "kuma.io/zone": "zone-1"},
			"serviceProbe": map[string]any{"tcp": map[string]any{}}, "health": map[string]any{"ready": true},
		},
		map[string]any{"port": 82.0, "tags": map[string]any{"service": "old", "kuma.io/zone": "zone-1"}},
	}
	if diff := cmp.Diff(want, inbound()); diff != "" {
		t.Error(diff)
	}
	p.want(200, http.MethodPut, path, body)
	delete(want[0].(map[string]any), "health")
	if diff := cmp.Diff(want, inbound()); diff != "" {
		t.Errorf("after an update: %s", diff)
	}

	p.want(201, http.MethodPut, "/meshes/demo/dataplanes/gw",
		`{"type":"Dataplane","name":"gw","mesh":"demo","networking":{"address":"10.0.0.2","gateway":{"tags":{"kuma.io/service":"gw"}}}}`)
	net := object(t, p.want(200, http.MethodGet, "/meshes/demo/dataplanes/gw", "").Body)["networking"].(map[string]any)
	if diff := cmp.Diff(map[string]any{"kuma.io/service": "gw", "kuma.io/zone": "zone-1"}, net["gateway"].(map[string]any)["tags"]); diff != "" {
		t.Error(diff)
	}
}

func TestAnIngressOnAZoneStaysAsGiven(t *testing.T) {
	p := newPlane(t, resource.Zone)
	p.want(201, http.MethodPut, "/zone-ingresses/in", `{"type":"ZoneIngress","name":"in","networking":{"address":"10.0.0.1","port":10001}}`)
	if got := object(t, p.want(200, http.MethodGet, "/zone-ingresses/in", "").Body); got["zone"] != nil {
		t.Errorf("zone is %v", got["zone"])
	}
}

func TestDeletingTakesAlongWhatBelongsToTheResource(t *testing.T) {
	secret := func(mesh, name, origin string) *store.Record {
		return record(t, resource.Secret, mesh, name, origin, nil)
	}
	for _, tc := range []struct {
		name   string
		plane  resource.Plane
		seed   []*store.Record
		delete string
		left   []string
	}{
		{
			name: "a mesh goes with all that this plane owns in it", plane: resource.Global, delete: "/meshes/demo",
			seed: []*store.Record{
				record(t, resource.Mesh, "", "demo", "", nil), record(t, resource.Mesh, "", "demo-2", "", nil),
				record(t, "Retry", "demo", "a", "", nil), record(t, "ExternalService", "demo", "a", "", nil),
				record(t, "RateLimit", "demo", "a", "", nil), secret("demo", "s", ""), secret("demo-2", "s", ""),
				record(t, resource.ServiceInsight, "demo", "all-services-demo", "", nil),
				record(t, resource.MeshInsight, "", "demo", "", nil), record(t, resource.MeshInsight, "", "demo-2", "", nil),
				record(t, resource.DataplaneInsight, "demo", "zone-1.dp", "zone-1", nil),
				record(t, resource.GlobalSecret, "", "demo", "", nil),
			},
			left: []string{
				"DataplaneInsight/demo/zone-1.dp", "GlobalSecret/demo", "Mesh/demo-2", "MeshInsight/demo-2", "Secret/demo-2/s",
			},
		},
		{
			name: "a zone goes with all that came from it", plane: resource.Global, delete: "/zones/zone-1",
			seed: []*store.Record{
				record(t, resource.ZoneType, "", "zone-1", "", nil), record(t, resource.ZoneType, "", "zone-2", "", nil),
				record(t, resource.ZoneInsight, "", "zone-1", "", nil), record(t, resource.ZoneInsight, "", "zone-2", "", nil),
				record(t, resource.Dataplane, "demo", "zone-1.dp", "zone-1", nil),
				record(t, resource.DataplaneInsight, "demo", "zone-1.dp", "zone-1", nil),
				record(t, resource.ZoneIngress, "", "zone-1.in", "zone-1", nil),
				record(t, resource.Dataplane, "demo", "zone-2.dp", "zone-2", nil),
				record(t, resource.ZoneEgress, "", "zone-1.own", "", nil),
				record(t, syncToken, "zone-1", "Dataplane", "", nil), record(t, syncToken, "zone-2", "Dataplane", "", nil),
			},
			left: []string{
				"Dataplane/demo/zone-2.dp", "SyncToken/zone-2/Dataplane", "Zone/zone-2", "ZoneEgress/zone-1.own", "ZoneInsight/zone-2",
			},
		},
		{
			name: "a dataplane goes with its insight", plane: resource.Zone, delete: "/meshes/demo/dataplanes/dp",
			seed: []*store.Record{
				record(t, resource.Dataplane, "demo", "dp", "", nil), record(t, resource.DataplaneInsight, "demo", "dp", "", nil),
				record(t, resource.DataplaneInsight, "other", "dp", "", nil),
			},
			left: []string{"DataplaneInsight/other/dp"},
		},
		{
			name: "a zone ingress goes with its insight", plane: resource.Zone, delete: "/zone-ingresses/in",
			seed: []*store.Record{
				record(t, resource.ZoneIngress, "", "in", "", nil), record(t, resource.ZoneIngressInsight, "", "in", "", nil),
				record(t, resource.ZoneEgressInsight, "", "in", "", nil),
			},
			left: []string{"ZoneEgressInsight/in"},
		},
		{
			name: "a zone egress goes with its insight", plane: resource.Zone, delete: "/zoneegresses/out",
			seed: []*store.Record{
				record(t, resource.ZoneEgress, "", "out", "", nil), record(t, resource.ZoneEgressInsight, "", "out", "", nil),
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPlane(t, tc.plane)
			p.seed(tc.seed...)
			rev := p.store.Snapshot().Revision()
			p.want(200, http.MethodDelete, tc.delete, "")
			if diff := cmp.Diff(tc.left, p.keys(syncToken)); diff != "" {
				t.Error(diff)
			}
			if now := p.store.Snapshot().Revision(); now != rev+1 {
				t.Errorf("the deletion took %d batches", now-rev)
			}
		})
	}
}

// mtlsMesh is a mesh "demo" with a builtin and a provided backend.
func mtlsMesh(t *testing.T) *store.Record {
	t.Helper()
	conf, err := structpb.NewStruct(map[string]any{
		"cert": map[string]any{"secret": "my-cert"}, "key": map[string]any{"secret": "my-key"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return record(t, resource.Mesh, "", "demo", "", &meshv1.Mesh{Mtls: &meshv1.Mesh_Mtls{
		EnabledBackend: "ca-1",
		Backends: []*meshv1.CertificateAuthorityBackend{
			{Name: "ca-1", Type: "builtin"}, {Name: "ca-2", Type: "provided", Conf: conf},
		},
	}})
}

func TestADeletionIsRefusedWhileTheResourceIsInUse(t *testing.T) {
	online := sessions{live: map[string]ZoneLive{"zone-1": {Online: true}, "zone-2": {Online: false}}}
	for _, tc := range []struct {
		name, delete, field, message string
		seed                         []*store.Record
	}{
		{
			name: "a mesh with a zone's dataplane", delete: "/meshes/demo", field: "mesh", message: "dataplanes attached",
			seed: []*store.Record{record(t, resource.Mesh, "", "demo", "", nil), record(t, resource.Dataplane, "demo", "zone-1.dp", "zone-1", nil)},
		},
		{
			name: "a zone that is online", delete: "/zones/zone-1", field: "zone", message: "still connected",
			seed: []*store.Record{record(t, resource.ZoneType, "", "zone-1", "", nil)},
		},
		{
			name: "the certificate of a builtin backend", delete: "/meshes/demo/secrets/demo.ca-builtin-cert-ca-1", field: "name", message: `backend "ca-1"`,
			seed: []*store.Record{mtlsMesh(t), record(t, resource.Secret, "demo", "demo.ca-builtin-cert-ca-1", "", nil)},
		},
		{
			name: "the key of a provided backend that does not sign", delete: "/meshes/demo/secrets/my-key", field: "name", message: `backend "ca-2"`,
			seed: []*store.Record{mtlsMesh(t), record(t, resource.Secret, "demo", "my-key", "", nil)},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPlane(t, resource.Global, func(o *Options) { o.Zones = online })
			p.seed(tc.seed...)
			before := p.keys()
			a := p.want(400, http.MethodDelete, tc.delete, "")
			got := object(t, a.Body)
			first := got["causes"].([]any)[0].(map[string]any)
			if got["title"] != titleDelete || first["field"] != tc.field || !strings.Contains(first["message"].(string), tc.message) {
				t.Errorf("got %s", a.Body)
			}
			if diff := cmp.Diff(before, p.keys()); diff != "" {
				t.Error(diff)
			}

			p = newPlane(t, resource.Global, func(o *Options) { o.Zones, o.UnsafeDelete = online, true })
			p.seed(tc.seed...)
			p.want(200, http.MethodDelete, tc.delete, "")
		})
	}
	t.Run("what is not in use can be deleted", func(t *testing.T) {
		p := newPlane(t, resource.Global, func(o *Options) { o.Zones = online })
		p.seed(mtlsMesh(t), record(t, resource.Secret, "demo", "demo.ca-builtin-cert-ca-9", "", nil), record(t, resource.ZoneType, "", "zone-2", "", nil),
			record(t, resource.Secret, "gone", "s", "", nil))
		p.want(200, http.MethodDelete, "/meshes/demo/secrets/demo.ca-builtin-cert-ca-9", "")
		p.want(200, http.MethodDelete, "/meshes/gone/secrets/s", "")
		p.want(200, http.MethodDelete, "/zones/zone-2", "")
	})
}

func TestTheSessionOfAZoneEndsBeforeItsForcedDeletion(t *testing.T) {
	var ended []string
	var fail error
	p := newPlane(t, resource.Global, func(o *Options) {
		o.Zones = sessions{live: map[string]ZoneLive{"zone-1": {Online: true}, "none": {Online: true}}}
		o.UnsafeDelete = true
		o.EndZoneSession = func(_ context.Context, zone string) error { ended = append(ended, zone); return fail }
	})
	p.seed(record(t, resource.ZoneType, "", "zone-1", "", nil))
	fail = errors.New("it hangs")
	p.want(500, http.MethodDelete, "/zones/zone-1", "")
	fail = nil
	p.want(200, http.MethodDelete, "/zones/zone-1", "")
	p.want(404, http.MethodDelete, "/zones/none", "")
	if diff := cmp.Diff([]string{"zone-1", "zone-1"}, ended); diff != "" {
		t.Error(diff)
	}
}

func TestOfManyConcurrentPutsOneCreates(t *testing.T) {
	p := withMesh(t, resource.Global)
	statuses := make([]int, 32)
	var wg sync.WaitGroup
	for i := range statuses {
		wg.Go(func() {
			statuses[i] = p.do(http.MethodPut, "/meshes/demo/retries/web",
				fmt.Sprintf(`{"type":"Retry","name":"web","mesh":"demo",`+every+`,"conf":{"http":{"numRetries":%d}}}`, i+1)).Status
		})
	}
	wg.Wait()
	count := map[int]int{}
	for _, s := range statuses {
		count[s]++
	}
	if diff := cmp.Diff(map[int]int{201: 1, 200: 31}, count); diff != "" {
		t.Error(diff)
	}
}

// TestNoResourceIsCreatedInAMeshThatIsBeingDeleted has writers race with the deletion of their mesh: whatever the
// order, no resource may be left in a mesh that is gone.
func TestNoResourceIsCreatedInAMeshThatIsBeingDeleted(t *testing.T) {
	for range 20 {
		p := withMesh(t, resource.Global)
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				path := fmt.Sprintf("/meshes/demo/retries/r%d", i)
				a := p.do(http.MethodPut, path, fmt.Sprintf(`{"type":"Retry","name":"r%d","mesh":"demo",`+every+`,"conf":{"tcp":{"maxConnectAttempts":2}}}`, i))
				if a.Status != 201 && (a.Status != 400 || !strings.Contains(a.Body, "Mesh is not found")) {
					t.Errorf("%s: %d %s", path, a.Status, a.Body)
				}
			})
		}
		wg.Go(func() { p.want(200, http.MethodDelete, "/meshes/demo", "") })
		wg.Wait()
		if left := p.keys(); len(left) > 0 {
			t.Fatalf("left over: %v", left)
		}
	}
}

// brokenBackend is durable storage whose disk fails.
type brokenBackend struct {
	*memory.Backend
	broken bool
}

func (b *brokenBackend) Append(ctx context.Context, g store.Group) error {
	if b.broken {
		return errors.New("write /var/lib/secret-path: no space left on device")
	}
	return b.Backend.Append(ctx, g)
}

func TestAStoreThatCannotWriteAnswers503AndStillReads(t *testing.T) {
	backend := &brokenBackend{Backend: memory.New()}
	st, err := store.Open(t.Context(), backend, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = st.Close() }()
	p := newPlane(t, resource.Global, func(o *Options) { o.Store = st })
	p.want(201, http.MethodPut, "/meshes/demo", `{"type":"Mesh","name":"demo"}`)
	backend.broken = true
	for range 2 {
		a := p.want(503, http.MethodPut, "/meshes/demo-2", `{"type":"Mesh","name":"demo-2"}`)
		if a.Header.Get("Retry-After") == "" || a.Header.Get("X-Request-Id") == "" || strings.Contains(a.Body, "secret-path") {
			t.Errorf("got %v %s", a.Header, a.Body)
		}
	}
	p.want(503, http.MethodDelete, "/meshes/demo", "")
	p.want(200, http.MethodGet, "/meshes/demo", "")
}

func TestEveryWriteLeavesOneAuditLine(t *testing.T) {
	var log bytes.Buffer
	p := newPlane(t, resource.Global, func(o *Options) { o.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	for _, tc := range []struct {
		method, path, body, remote string
		want                       string
	}{
		{"PUT", "/meshes/demo", `{"type":"Mesh","name":"demo"}`, "127.0.0.1:1", "action=put outcome=created status=201 type=Mesh mesh=\"\" name=demo revision=1 user=mesh-system:admin/mesh-system:admin,mesh-system:authenticated remote=127.0.0.1:1"},
		{"PUT", "/meshes/demo", `{"type":"Mesh","name":"demo"}`, "10.0.0.9:1", "action=put outcome=unchanged status=200 type=Mesh mesh=\"\" name=demo revision=1 user=mesh-system:anonymous/mesh-system:unauthenticated remote=10.0.0.9:1"},
		{"PUT", "/meshes/demo", `{"type":"Mesh","name":"demo","labels":{"a":"b"}}`, "10.0.0.9:1", "outcome=updated status=200"},
		{"PUT", "/meshes/demo/secrets/s", `{"type":"Secret","name":"s","mesh":"demo","data":"c2VzYW1l"}`, "10.0.0.9:1", "outcome=refused status=403"},
		{"PUT", "/meshes/demo", `{`, "10.0.0.9:1", "outcome=refused status=400"},
		{"PUT", "/meshes/demo/dataplanes/d", `{}`, "10.0.0.9:1", "outcome=refused status=405"},
		{"DELETE", "/meshes/demo?dryRun=true", ``, "10.0.0.9:1", "action=delete outcome=deleted status=200 type=Mesh mesh=\"\" name=demo revision=0 user=mesh-system:anonymous/mesh-system:unauthenticated remote=10.0.0.9:1 dry_run=true"},
		{"DELETE", "/meshes/demo", ``, "10.0.0.9:1", "action=delete outcome=deleted status=200"},
		{"DELETE", "/meshes/demo", ``, "10.0.0.9:1", "action=delete outcome=refused status=404"},
	} {
		log.Reset()
		p.do(tc.method, tc.path, tc.body, "Remote: "+tc.remote)
		if got := log.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, tc.want) || strings.Contains(got, "c2VzYW1l") {
			t.Errorf("%s %s logged %s want %s", tc.method, tc.path, got, tc.want)
		}
	}
}
