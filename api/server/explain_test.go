package server

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/meridian-mesh/meridian/api/resource"
)

// oneAnswer gives the same answer to all questions, and remembers the last one.
type oneAnswer struct {
	body  string
	err   error
	asked ProxyQuestion
}

func (o *oneAnswer) Ask(_ context.Context, q ProxyQuestion) ([]byte, error) {
	o.asked = q
	return []byte(o.body), o.err
}

func TestExplain(t *testing.T) {
	const path = "/meshes/demo/dataplanes/sidecar/explain"
	answer := &oneAnswer{body: `{"verdict":"denied","summary":"because","mesh":"demo","proxy":"sidecar","service":"web","zone":"zone-1",` +
		`"connected":true,"outbounds":[],"policies":[],"destinations":[]}`}
	p := newPlane(t, resource.Zone, func(o *Options) { o.Proxies = answer })
	p.seed(record(t, resource.Mesh, "", "demo", "", nil), record(t, resource.Dataplane, "demo", "sidecar", "", nil))
	for _, tc := range []struct {
		target  string
		headers []string
		status  int
		has     string
	}{
		{path + "?service=web", nil, 200, `"verdict": "denied"`},
		{path + "?service=web", []string{"Accept: text/plain"}, 200, "DENIED: because\n"},
		{path + "?service=web&format=text", nil, 200, "DENIED: because\n"},
		{path + "?service=web&format=json", []string{"Accept: text/plain"}, 200, `"verdict": "denied"`},
		{path + "?service=web&format=xml", nil, 400, "must be json or text"},
		{path + "?service=web", []string{"Accept: image/png"}, 406, ""},
		{path, nil, 400, `"field": "service"`},
		{"/meshes/none/dataplanes/sidecar/explain?service=web", nil, 404, "Could not build MeshContext"},
		{"/meshes/demo/dataplanes/none/explain?service=web", nil, 404, "Could not explain the traffic"},
		{path + "?service=web", []string{"Remote: 10.0.0.1:1"}, 200, `"verdict": "denied"`},
	} {
		if a := p.want(tc.status, http.MethodGet, tc.target, "", tc.headers...); !strings.Contains(a.Body, tc.has) {
			t.Errorf("%s %v: got %s", tc.target, tc.headers, a.Body)
		}
	}
	if q := answer.asked; q.Mesh != "demo" || q.Name != "sidecar" || q.Service != "web" || q.View != ViewExplain {
		t.Errorf("asked %+v", q)
	}
	for reason, status := range map[AskReason]int{
		AskUnreachable: 503, AskTimeout: 504, AskFailed: 502, AskBusy: 429, AskInvalid: 400, AskNotFound: 404,
	} {
		answer.err = &AskError{Reason: reason, Details: "so it is"}
		if a := p.want(status, http.MethodGet, path+"?service=web", ""); !strings.Contains(a.Body, "so it is") {
			t.Errorf("%d: got %s", reason, a.Body)
		}
	}
}
