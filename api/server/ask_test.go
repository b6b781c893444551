package server

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meridian-mesh/meridian/api/resource"
)

// askedProxies answers every question the same way and keeps them.
type askedProxies struct {
	asked []ProxyQuestion
	body  string
	err   error
}

func (p *askedProxies) Ask(_ context.Context, q ProxyQuestion) ([]byte, error) {
	p.asked = append(p.asked, q)
	return []byte(p.body), p.err
}

func withProxies(p Proxies) func(*Options) { return func(o *Options) { o.Proxies = p } }

func TestAProxyIsAskedWhatTheRequestSays(t *testing.T) {
	for _, pl := range [...]resource.Plane{resource.Global, resource.Zone} {
		proxies := &askedProxies{body: `{"asked":true}`}
		p := inspectPlane(t, pl, withProxies(proxies))
		dataplane := func(view ProxyView, q ProxyQuestion) ProxyQuestion {
			q.Type, q.Mesh, q.Name, q.View = resource.Dataplane, "demo", "sidecar", view
			return q
		}
		const at = "/meshes/demo/dataplanes/sidecar"
		for _, tc := range []struct {
			target, contentType string
			want                ProxyQuestion
		}{
			{at + "/xds", "application/json", dataplane(ViewConfigDump, ProxyQuestion{})},
			{"/meshes/demo/dataplane/sidecar/xds", "application/json", dataplane(ViewConfigDump, ProxyQuestion{})},
			{at + "/xds?source=proxy&include_eds=false", "application/json", dataplane(ViewConfigDump, ProxyQuestion{})},
			{at + "/xds?source=controlplane", "application/json", dataplane(ViewConfigDump, ProxyQuestion{ControlPlane: true})},
			{at + "/xds?include_eds", "application/json", dataplane(ViewConfigDump, ProxyQuestion{IncludeEndpoints: true})},
			{at + "/xds?includeEds=true", "application/json", dataplane(ViewConfigDump, ProxyQuestion{IncludeEndpoints: true})},
			{at + "/stats", "text/plain; charset=utf-8", dataplane(ViewStats, ProxyQuestion{})},
			{at + "/stats?used_only", "text/plain; charset=utf-8", dataplane(ViewStats, ProxyQuestion{UsedOnly: true})},
			{at + "/stats?usedOnly=1&format=json", "application/json", dataplane(ViewStats, ProxyQuestion{UsedOnly: true, JSON: true})},
			{at + "/clusters?format=text", "text/plain; charset=utf-8", dataplane(ViewClusters, ProxyQuestion{})},
			{at + "/clusters?format=json", "application/json", dataplane(ViewClusters, ProxyQuestion{JSON: true})},
			{"/zoneingresses/in/xds", "application/json", ProxyQuestion{Type: resource.ZoneIngress, Name: "in", View: ViewConfigDump}},
			{"/zoneegresses/out/stats", "text/plain; charset=utf-8", ProxyQuestion{Type: resource.ZoneEgress, Name: "out", View: ViewStats}},
		} {
			proxies.asked = nil
			a := p.want(200, http.MethodGet, tc.target, "", "Accept: application/json")
			if got := a.Header.Get("Content-Type"); got != tc.contentType || a.Body != proxies.body {
				t.Errorf("%s: %s %q", tc.target, got, a.Body)
			}
			if diff := cmp.Diff([]ProxyQuestion{tc.want}, proxies.asked); diff != "" {
				t.Errorf("%s: %s", tc.target, diff)
			}
		}
		proxies.asked = nil
		for target, name := range map[string]string{
			"/xds?source=": "source", "/xds?source=envoy": "source", "/xds?include_eds=perhaps": "include_eds", "/xds?includeEds=2": "includeEds",
			"/xds?format=json": "format", "/stats?format=yaml": "format", "/stats?usedOnly=no": "usedOnly", "/stats?source=controlplane": "source",
			"/clusters?used_only": "used_only", "/clusters?include_eds": "include_eds",
		} {
			a := object(t, p.want(400, http.MethodGet, at+target, "").Body)
			causes, _ := a["causes"].([]any)
			if len(causes) != 1 || a["title"] != "Could not execute admin operation" {
				t.Errorf("%s: %v", target, a)
				continue
			}
			if c, _ := causes[0].(map[string]any); c["field"] != name {
				t.Errorf("%s: %v", target, c)
			}
		}
		p.want(404, http.MethodGet, "/meshes/demo/dataplanes/none/xds", "")
		p.want(403, http.MethodGet, at+"/xds", "", remote)
		p.want(406, http.MethodGet, at+"/xds", "", "Accept: text/plain")
		if proxies.asked != nil {
			t.Errorf("asked all the same: %v", proxies.asked)
		}
	}
}

func TestWhyAProxyHasNoAnswerIsAStatus(t *testing.T) {
	for _, tc := range []struct {
		reason     AskReason
		status     int
		retryAfter string
	}{
		{AskUnreachable, 503, "5"},
		{AskTimeout, 504, ""},
		{AskFailed, 502, ""},
		{AskBusy, 429, "1"},
		{AskInvalid, 400, ""},
		{AskNotFound, 404, ""},
	} {
		p := inspectPlane(t, resource.Zone, withProxies(&askedProxies{err: &AskError{tc.reason, "the reason"}}))
		for _, view := range [...]string{"xds", "stats", "clusters"} {
			a := p.want(tc.status, http.MethodGet, "/zoneegresses/out/"+view, "")
			if diff := cmp.Diff("{\n \"title\": \"Could not execute admin operation\",\n \"details\": \"the reason\"\n}\n", a.Body); diff != "" {
				t.Error(diff)
			}
			if got := a.Header.Get("Retry-After"); got != tc.retryAfter {
				t.Errorf("%d: Retry-After %q, want %q", tc.status, got, tc.retryAfter)
			}
		}
	}
	p := inspectPlane(t, resource.Zone, withProxies(&askedProxies{err: errors.New("what clients must not see")}))
	if a := p.want(500, http.MethodGet, "/zoneegresses/out/xds", ""); strings.Contains(a.Body, "must not see") {
		t.Error(a.Body)
	}
}

// waitingProxies answers when the client is gone.
type waitingProxies struct{ asked, done chan struct{} }

func (p waitingProxies) Ask(ctx context.Context, _ ProxyQuestion) ([]byte, error) {
	close(p.asked)
	<-ctx.Done()
	close(p.done)
	return nil, ctx.Err()
}

func TestAProxyIsNotAskedForAClientThatIsGone(t *testing.T) {
	proxies := waitingProxies{make(chan struct{}), make(chan struct{})}
	p := inspectPlane(t, resource.Zone, withProxies(proxies))
	srv := httptest.NewServer(p.srv.Handler())
	defer srv.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, srv.URL+"/zoneegresses/out/stats", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		<-proxies.asked
		cancel()
	}()
	if res, err := srv.Client().Do(req); err == nil {
		_ = res.Body.Close()
		t.Error("answered")
	}
	<-proxies.done
}
