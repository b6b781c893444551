package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/e2e/envoy"
)

// inspected is a proxy by its path on its zone, and whether it has an Envoy that its control plane can ask.
type inspected struct {
	kind, path string
	answers    bool
}

// everyKindOfProxy makes one proxy of each kind in a zone.
func everyKindOfProxy(t *testing.T, s *System, z *Plane) []inspected {
	t.Helper()
	builtin := func(name, service string) sidecar {
		return sidecar{mesh: "default", name: name, networking: map[string]any{
			"inbound": nil, "gateway": map[string]any{"type": "BUILTIN", "tags": map[string]string{"kuma.io/service": service}},
		}}
	}
	connected := []struct {
		kind string
		d    sidecar
	}{
		{"sidecar", sidecar{mesh: "default", name: "backend-1", service: "backend", port: freePort(t), servicePort: freePort(t), outbounds: map[string]int{"backend": freePort(t)}}},
		{"delegated gateway", sidecar{mesh: "default", name: "delegated-1", outbounds: map[string]int{"backend": freePort(t)}, networking: map[string]any{
			"inbound": nil, "gateway": map[string]any{"type": "DELEGATED", "tags": map[string]string{"kuma.io/service": "delegated"}},
		}}},
		{"builtin gateway", builtin("edge-1", "edge")},
		{"builtin gateway without MeshGateway", builtin("idle-1", "idle")},
	}
	var all []inspected
	for _, c := range connected {
		holds(t, z.workload(c.d), 15*time.Second, "the configuration of the "+c.kind, envoy.Ready)
		all = append(all, inspected{c.kind, c.d.path(), true})
	}
	for _, kind := range []string{"ingress", "egress"} {
		holds(t, s.zonal(z, kind, freePort(t)), 15*time.Second, "the configuration of the "+kind, envoy.Ready)
		all = append(all, inspected{kind, map[string]string{"ingress": "/zoneingresses/ingress", "egress": "/zoneegresses/egress"}[kind], true})
	}
	program := s.joins(t, z, "default", "program-1", "kuma.io/service: program")
	all = append(all, inspected{"proxyless program", "/meshes/default/dataplanes/" + program.name, false})
	alone := sidecar{mesh: "default", name: "alone-1", service: "alone", port: freePort(t), servicePort: freePort(t)}
	gone := builtin("gone-1", "edge")
	z.Must(http.MethodPut, alone.path(), alone.json(t), 201)
	z.Must(http.MethodPut, gone.path(), gone.json(t), 201)
	z.Must(http.MethodPut, "/zoneingresses/lost", `{"type":"ZoneIngress","name":"lost","networking":{"address":"127.0.0.1","port":1,"admin":{"port":2}}}`, 201)
	z.Must(http.MethodPut, "/zoneegresses/lost", `{"type":"ZoneEgress","name":"lost","networking":{"address":"127.0.0.1","port":1,"admin":{"port":2}}}`, 201)
	return append(all, inspected{"sidecar that is not connected", alone.path(), false}, inspected{"gateway that is not connected", gone.path(), false},
		inspected{"ingress that is not connected", "/zoneingresses/lost", false}, inspected{"egress that is not connected", "/zoneegresses/lost", false})
}

// question is one request about a proxy or a policy, and the statuses that may come back.
type question struct {
	plane    *Plane
	what     string
	path     string
	statuses []int
}

// questions are all that the inspect API can be asked, about each proxy and each type of policy, on both planes.
func questions(s *System, z *Plane, proxies []inspected) []question {
	var out []question
	ask := func(what, path, onGlobal string, statuses ...int) {
		out = append(out, question{z, what, path, statuses}, question{s.Global, what, onGlobal, statuses})
	}
	of := func(p inspected, view string, statuses ...int) {
		ask(p.kind, p.path+"/"+view, z.onGlobal(p.path)+"/"+view, statuses...)
	}
	for _, p := range proxies {
		if strings.HasPrefix(p.path, "/meshes/") {
			of(p, "policies", 200)
			of(p, "rules", 200)
			of(p, "explain?service=backend", 200, 400) // not of builtin gateways
		} else {
			of(p, "policies", 404)
			of(p, "rules", 404)
			of(p, "explain?service=backend", 404)
		}
		for _, view := range []string{"xds", "stats", "clusters"} {
			if p.answers {
				of(p, view, 200)
			} else {
				of(p, view, 500, 503)
			}
		}
	}
	for _, d := range resource.All() {
		if d.Inspect || d.Name == "MeshGateway" || d.Name == "MeshGatewayRoute" {
			for _, name := range []string{"p", "absent", "p.p", "%00", strings.Repeat("n", 300)} {
				path := "/meshes/default/" + d.Path + "/" + name + "/dataplanes"
				ask("policy", path, path, 200, 404)
				path = "/meshes/absent/" + d.Path + "/" + name + "/dataplanes"
				ask("policy of no mesh", path, path, 404)
			}
		}
	}
	for _, view := range []string{"policies", "rules", "xds", "stats", "clusters", "explain?service=backend"} {
		for _, path := range []string{
			"/meshes/default/dataplanes/absent/", "/meshes/absent/dataplanes/backend-1/", "/zoneingresses/absent/", "/zoneegresses/absent/",
			"/meshes/default/dataplanes/.../", "/meshes/default/dataplanes/a.b.c/", "/meshes/default/dataplanes/%2e%2e/",
		} {
			ask("nobody", path+view, path+view, 404)
		}
	}
	return out
}

// ask is an error unless the answer is an orderly one: whole, of a status that may be, and in the form that goes with it.
func (q question) ask(query string) error {
	path, asked, _ := strings.Cut(q.path, "?")
	view := path[strings.LastIndex(path, "/")+1:]
	statuses := q.statuses
	if refuses(view, query) {
		statuses = append(slices.Clip(statuses), http.StatusBadRequest)
	}
	switch {
	case asked != "" && query != "":
		query = "?" + asked + "&" + query[1:]
	case asked != "":
		query = "?" + asked
	}
	req, err := http.NewRequest(http.MethodGet, q.plane.url(path+query), http.NoBody)
	if err != nil {
		return err
	}
	code, b, err := q.plane.Call(http.MethodGet, path+query, "")
	if err != nil {
		return fmt.Errorf("%s: %s: GET %s: %w", q.plane.Name, q.what, req.URL, err)
	}
	problem := func(format string, args ...any) error {
		return fmt.Errorf("%s: %s: GET %s: %d: %s: %.300s", q.plane.Name, q.what, req.URL, code, fmt.Sprintf(format, args...), b)
	}
	if !slices.Contains(statuses, code) {
		return problem("want one of %v", statuses)
	}
	if code == http.StatusOK && (view == "stats" || view == "clusters") {
		if len(b) == 0 {
			return problem("empty")
		}
		return nil
	}
	if code == http.StatusNotFound && string(b) == "404: Page Not Found" {
		return nil // there is no such route
	}
	var v map[string]any
	if err := json.Unmarshal(b, &v); err != nil {
		return problem("%v", err)
	}
	if title, _ := v["title"].(string); code != http.StatusOK && title == "" {
		return problem("an error without a title")
	}
	return nil
}

// refuses reports whether a view may refuse a query: the views of proxies and explanations read their parameters, and refuse wrong
// ones and those of each other.
func refuses(view, query string) bool {
	switch view {
	case "stats", "clusters", "explain":
		return query == "?format=k8s" || query == "?include_eds=true"
	case "xds":
		return query == "?format=k8s"
	}
	return false
}

// Whatever is asked about whatever proxy, while policies come and go, is answered in an orderly way.
func TestEveryInspectionOfEveryKindOfProxyIsAnswered(t *testing.T) {
	t.Parallel()
	s := newSystem(t, bin, "zone-1")
	g, z := s.Global, s.Zones[0]
	g.Must(http.MethodPut, "/meshes/default", fmt.Sprintf(routedMesh, false), 200)
	z.has("/meshes/default/secrets/default.ca-builtin-key-ca-1", "/meshes/default/secrets/dataplane-token-signing-key-default-1",
		"/global-secrets/zone-token-signing-public-key-1")
	policies := inspectedPolicies()
	for path, body := range policies {
		g.Must(http.MethodPut, "/meshes/default/"+path, body, 201)
		z.has("/meshes/default/" + path)
	}
	proxies := everyKindOfProxy(t, s, z)
	for _, p := range proxies {
		g.has(z.onGlobal(p.path))
	}
	all := questions(s, z, proxies)
	seed := uint64(time.Now().UnixNano())
	t.Logf("%d questions about %d proxies, seed %d", len(all), len(proxies), seed)
	random := rand.New(rand.NewPCG(seed, 0))

	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		for {
			for path, body := range policies {
				select {
				case <-stop:
					return
				default:
				}
				if _, _, err := g.Call(http.MethodDelete, "/meshes/default/"+path, ""); err != nil {
					t.Error(err)
				}
				if _, _, err := g.Call(http.MethodPut, "/meshes/default/"+path, body); err != nil {
					t.Error(err)
				}
			}
		}
	})
	work := make(chan func())
	var askers sync.WaitGroup
	for range 4 {
		askers.Go(func() {
			for f := range work {
				f()
			}
		})
	}
	queries := []string{"", "", "?format=k8s", "?size=1&offset=x", "?%zz", "?include_eds=true"}
	for range 3 {
		random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		for _, q := range all {
			query := queries[random.IntN(len(queries))]
			work <- func() {
				if err := q.ask(query); err != nil {
					t.Error(err)
				}
			}
		}
	}
	close(work)
	askers.Wait()
	close(stop)
	writer.Wait()
	for _, p := range []*Plane{g, z} {
		log, err := os.ReadFile(p.logFile())
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(log), "panic") {
			t.Errorf("%s panicked", p.Name)
		}
	}
}

// inspectedPolicies are one of each type that can be inspected, by path in the mesh default, named p where possible.
func inspectedPolicies() map[string]string {
	legacy := func(typ, conf string) string { return legacyPolicy(typ, "default", "p", "*", "*", conf) }
	target := func(typ, rest string) string {
		return fmt.Sprintf(`{"type":%q,"mesh":"default","name":"p","spec":{"targetRef":{"kind":"Mesh"},%s}}`, typ, rest)
	}
	return map[string]string{
		"circuit-breakers/p":    legacy("CircuitBreaker", `{"thresholds":{"maxRequests":5}}`),
		"health-checks/p":       legacy("HealthCheck", `{"interval":"5s","timeout":"1s","unhealthyThreshold":1,"healthyThreshold":1,"tcp":{}}`),
		"retries/p":             legacy("Retry", `{"http":{"numRetries":3}}`),
		"timeouts/p":            legacy("Timeout", `{"connectTimeout":"1s"}`),
		"traffic-permissions/p": legacy("TrafficPermission", ""),
		"traffic-routes/p":      legacy("TrafficRoute", `{"destination":{"kuma.io/service":"*"}}`),
		"fault-injections/p": `{"type":"FaultInjection","mesh":"default","name":"p","sources":[{"match":{"kuma.io/service":"*"}}],
			"destinations":[{"match":{"kuma.io/service":"*","kuma.io/protocol":"http"}}],"conf":{"abort":{"percentage":0,"httpStatus":503}}}`,
		"rate-limits/p": `{"type":"RateLimit","mesh":"default","name":"p","sources":[{"match":{"kuma.io/service":"*"}}],
			"destinations":[{"match":{"kuma.io/service":"*"}}],"conf":{"http":{"requests":1000,"interval":"1s"}}}`,
		"meshaccesslogs/p":         target("MeshAccessLog", `"to":[{"targetRef":{"kind":"Mesh"},"default":{"backends":[{"file":{"path":"/tmp/access.log"}}]}}]`),
		"meshtraces/p":             target("MeshTrace", `"default":{"backends":[{"zipkin":{"url":"http://jaeger.test:9411/api/v2/spans"}}]}`),
		"meshtrafficpermissions/p": target("MeshTrafficPermission", `"from":[{"targetRef":{"kind":"MeshService","name":"web"},"default":{"action":"ALLOW"}},{"targetRef":{"kind":"Mesh"},"default":{"action":"ALLOW"}}]`),
		"meshgateways/p": `{"type":"MeshGateway","mesh":"default","name":"p","selectors":[{"match":{"kuma.io/service":"edge"}}],
			"conf":{"listeners":[{"port":28080,"protocol":"HTTP","hostname":"a.test"},{"port":28080,"protocol":"HTTP"},{"port":28081,"protocol":"TCP"}]}}`,
		"meshgatewayroutes/p": `{"type":"MeshGatewayRoute","mesh":"default","name":"p","selectors":[{"match":{"kuma.io/service":"edge"}}],
			"conf":{"http":{"rules":[{"matches":[{"path":{"match":"PREFIX","value":"/"}}],"backends":[{"weight":1,"destination":{"kuma.io/service":"backend"}}]}]}}}`,
	}
}

func TestADisorderlyAnswerIsFound(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		answer http.HandlerFunc
		want   string
	}{
		"a connection that drops": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "EOF"},
		"half an answer": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write([]byte(`{"total":`))
		}, "EOF"},
		"a body that is cut": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"total":`)) }, "unexpected end of JSON"},
		"another status":     {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) }, "want one of [200 404]"},
		"an error that does not say what": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusNotFound)
			_, _ = w.Write([]byte(`{}`))
		}, "without a title"},
		"an orderly answer": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"total":0}`)) }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := httptest.NewServer(tt.answer)
			defer s.Close()
			q := question{&Plane{HTTP: s.Listener.Addr().(*net.TCPAddr).Port}, "sidecar", "/meshes/default/dataplanes/a/rules", []int{200, 404}}
			err := q.ask("")
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}
