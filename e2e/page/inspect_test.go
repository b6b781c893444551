package page

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/e2e/envoy"
)

// scene is what an example of the inspect API shows: the resources from which its answer follows, value by value. The examples of
// the page contradict each other (three of them show another backend-1 or gateway-1), so each has its own.
type scene struct {
	// without are resources of a new mesh that the example does not show.
	without []string
	// with are the resources, as JSON.
	with []string
	// connect is the type of proxy that connects with the last of the resources; "": none does.
	connect string
	// more are the keys that the answer has and the example has not, by their last part, with the reason.
	more map[string]string
	// differs are paths at which the page cannot be met, with the reason, and what is there instead.
	differs map[string]difference
}

type difference struct{ reason, instead string }

// Why an answer says more than the page.
const (
	alwaysSaid = "kumactl and the GUI of 2.0 read it; the page is older"
	notInAMesh = "a zone's proxy is in no mesh: the nodes of kuma-dp 2.0 have an empty one in their id, and their type as cluster"
	typed      = "the configuration is shown with the fields that 2.0 shows although they are empty"
)

// scenes are by the path of the example's call.
var scenes = map[string]scene{
	"/meshes/default/dataplanes/backend-1/policies": {
		without: []string{"/meshes/default/traffic-routes/route-all-default"},
		with: []string{
			`{"type":"HealthCheck","mesh":"default","name":"gateway-to-backend","sources":[{"match":{"kuma.io/service":"backend"}}],
			  "destinations":[{"match":{"kuma.io/service":"gateway"}}],
			  "conf":{"interval":"10s","timeout":"2s","unhealthyThreshold":3,"healthyThreshold":1,"tcp":{}}}`,
			`{"type":"Dataplane","mesh":"default","name":"backend-1","networking":{"address":"127.0.0.1",
			  "inbound":[{"port":10010,"servicePort":10011,"tags":{"kuma.io/service":"backend"}}],
			  "outbound":[{"port":10006,"tags":{"kuma.io/service":"gateway"}}]}}`,
		},
		more: map[string]string{"service": alwaysSaid},
	},
	"/meshes/default/dataplanes/gateway-1/policies": {
		with: []string{
			meshGateway("foo-gateway-default"),
			gatewayRoute("default-foo-gateway-hw6n5", "demo-app_kuma-demo_svc_5000", "httpbin"),
			gatewayProxy,
		},
		differs: map[string]difference{"gateway.name": {
			"the page's name is that of a Kubernetes resource; the API takes no names with a dot", "foo-gateway-default",
		}},
	},
	"/meshes/default/circuit-breakers/circuit-breaker-all-default/dataplanes": {
		with: []string{
			meshGateway("edge-gateway"),
			gatewayRoute("default-gateway", "demo-app_kuma-demo_svc_5000"),
			gatewayProxy,
			`{"type":"Dataplane","mesh":"default","name":"demo-app-1","networking":{"address":"192.168.0.3",
			  "inbound":[{"port":5000,"tags":{"kuma.io/service":"demo-app_kuma-demo_svc_5000"}}],
			  "outbound":[{"port":10001,"tags":{"kuma.io/service":"demo-app_kuma-demo_svc_5000"}}]}}`,
		},
	},
	"/meshes/default/meshgateways/edge-gateway/policies": {
		with: []string{meshGateway("edge-gateway"), gatewayProxy},
	},
	"/meshes/default/dataplanes/backend-1/rules": {
		with: []string{
			`{"type":"MeshAccessLog","mesh":"default","name":"mal-1","spec":{"targetRef":{"kind":"Mesh"},
			  "to":[{"targetRef":{"kind":"Mesh"},"default":{"backends":[{"file":{"path":"/tmp/access.logs"}}]}}]}}`,
			`{"type":"MeshTrafficPermission","mesh":"default","name":"mtp-1","spec":{"targetRef":{"kind":"Mesh"},
			  "from":[{"targetRef":{"kind":"MeshServiceSubset","name":"client","tags":{"kuma.io/zone":"east"}},"default":{"action":"DENY"}}]}}`,
			`{"type":"MeshTrace","mesh":"default","name":"mtp-1","spec":{"targetRef":{"kind":"Mesh"},
			  "default":{"backends":[{"zipkin":{"url":"http://jaeger-collector.mesh-observability:9411/api/v2/spans"}}]}}}`,
			`{"type":"Dataplane","mesh":"default","name":"backend-1","networking":{"address":"192.168.0.2",
			  "inbound":[{"port":80,"tags":{"kuma.io/service":"web"}}],
			  "outbound":[{"port":10001,"tags":{"kuma.io/service":"backend"}}]}}`,
		},
		more: map[string]string{"format": typed, "sampling": typed},
	},
	"/meshes/default/dataplane/backend-1/xds": {
		with: []string{
			`{"type":"Dataplane","mesh":"default","name":"backend-1","networking":{"address":"127.0.0.1","admin":{"port":6606},
			  "inbound":[{"port":10010,"servicePort":10011,"tags":{"kuma.io/service":"backend"}}]}}`,
		},
		connect: "dataplane",
	},
	"/zoneingresses/zi-1/xds": {
		with:    []string{`{"type":"ZoneIngress","name":"zi-1","networking":{"address":"127.0.0.1","port":10001,"admin":{"port":6606}}}`},
		connect: "ingress",
		differs: map[string]difference{
			"configs.0.bootstrap.node.id":      {notInAMesh, ".zi-1"},
			"configs.0.bootstrap.node.cluster": {notInAMesh, "ingress"},
		},
	},
	"/zoneegresses/ze-1/xds": {
		with:    []string{`{"type":"ZoneEgress","name":"ze-1","networking":{"address":"127.0.0.1","port":10002,"admin":{"port":6606}}}`},
		connect: "egress",
		differs: map[string]difference{
			"configs.0.bootstrap.node.id":      {notInAMesh, ".ze-1"},
			"configs.0.bootstrap.node.cluster": {notInAMesh, "egress"},
		},
	},
}

const gatewayProxy = `{"type":"Dataplane","mesh":"default","name":"gateway-1","networking":{"address":"192.168.0.4",
	"gateway":{"type":"BUILTIN","tags":{"kuma.io/service":"edge"}}}}`

func meshGateway(name string) string {
	return fmt.Sprintf(`{"type":"MeshGateway","mesh":"default","name":%q,"selectors":[{"match":{"kuma.io/service":"edge"}}],
		"conf":{"listeners":[{"port":80,"protocol":"HTTP","hostname":"go.com"}]}}`, name)
}

func gatewayRoute(name string, services ...string) string {
	var backends []string
	for _, s := range services {
		backends = append(backends, fmt.Sprintf(`{"weight":1,"destination":{"kuma.io/service":%q}}`, s))
	}
	return fmt.Sprintf(`{"type":"MeshGatewayRoute","mesh":"default","name":%q,"selectors":[{"match":{"kuma.io/service":"edge"}}],
		"conf":{"http":{"rules":[{"matches":[{"path":{"match":"PREFIX","value":"/"}}],"backends":[%s]}]}}}`, name, strings.Join(backends, ","))
}

// inspections plays the scene of every example of the inspect API on planes of its own, and compares both planes' answers.
func (b book) inspections(t *testing.T) {
	stage := book{newPlanes(t), b.page}
	eventually(t, "the zone has the mesh default", func() string {
		return statusIs(stage.zone, "/meshes/default/traffic-routes/route-all-default", http.StatusOK)
	})
	played := 0
	stage.each(t, http.MethodGet, func(t *testing.T, e Example, c Call) {
		if !isInspection(c.Path) {
			return
		}
		s, ok := scenes[c.Path]
		if !ok {
			t.Fatalf("there is no scene for %s", c.Path)
		}
		played++
		stage.play(t, s, c.Path, e)
	})
	if played != len(scenes) {
		t.Errorf("%d of %d scenes were played", played, len(scenes))
	}
}

// isInspection is whether a path asks what is attached to a proxy, which proxies a resource reaches, or a proxy itself.
func isInspection(path string) bool {
	segments := strings.Split(path, "/")
	switch segments[len(segments)-1] {
	case "xds":
		return true
	case "policies", "rules", "dataplanes":
		return len(segments) > 4
	}
	return false
}

func (b book) play(t *testing.T, s scene, path string, e Example) {
	for _, w := range s.without {
		raw := b.global.call(t, http.MethodGet, w, "").body
		wants(t, b.global.call(t, http.MethodDelete, w, ""), http.StatusOK)
		eventually(t, w+" is gone", func() string { return statusIs(b.zone, w, http.StatusNotFound) })
		defer b.put(t, objectOf(t, raw))
	}
	var made []reference
	for _, body := range s.with {
		item := objectOf(t, []byte(body))
		r := reference{d: descriptorOf(t, item), name: item["name"].(string)}
		r.mesh, _ = item["mesh"].(string)
		made = append(made, r)
		if r.d.IsJSON() {
			raw := b.home(r.d).call(t, http.MethodPut, r.path(), body, [2]string{"Content-Type", "application/json"})
			if raw.status != http.StatusCreated {
				t.Fatalf("PUT %s: %d %s", r.path(), raw.status, raw.body)
			}
			eventually(t, r.path()+" reaches the zone", func() string { return statusIs(b.zone, r.path(), http.StatusOK) })
			continue
		}
		b.put(t, item)
	}
	defer func() {
		for _, r := range slices.Backward(made) {
			wants(t, b.home(r.d).call(t, http.MethodDelete, r.path(), ""), http.StatusOK)
			eventually(t, r.path()+" is gone", func() string { return statusIs(b.other(r.d), b.seenOn(b.other(r.d), r.path()), http.StatusNotFound) })
		}
	}()
	if s.connect != "" {
		defer b.join(t, s.connect, s.with[len(s.with)-1])()
	}
	var example any
	if err := json.Unmarshal(e.Answer, &example); err != nil {
		t.Fatal(err)
	}
	for at, d := range s.differs {
		example = replace(example, strings.Split(at, "."), d.instead)
	}
	for _, p := range []*plane{b.zone, b.global} {
		for _, spelling := range []string{path, written(t, e, path)} {
			ok := eventually(t, fmt.Sprintf("GET %s on the %s is the example", spelling, p.kind), func() string {
				a, err := p.try(http.MethodGet, b.seenOn(p, spelling), "")
				if err != nil || a.status != http.StatusOK {
					return fmt.Sprint(a.status, " ", string(a.body), err)
				}
				got := local(a.value(t))
				if s.connect != "" {
					firstConfig(got) // the page shows no others
				}
				found := changed(example, got)
				for _, key := range beyond("", example, got) {
					if s.more[key[strings.LastIndexByte(key, '.')+1:]] == "" && s.connect == "" {
						found = append(found, key+" is not in the example")
					}
				}
				return strings.Join(found, "; ")
			})
			if !ok {
				return
			}
		}
	}
}

// join connects a proxy with its Envoy, and returns what ends it.
func (b book) join(t *testing.T, kind, resource string) (leave func()) {
	t.Helper()
	ca, err := os.ReadFile(filepath.Join(b.zone.dir, "trust", "dp-ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	proxy, err := envoy.Start(ctx, envoy.Options{
		ControlPlane: fmt.Sprintf("https://localhost:%d", b.zoneConfig.DPServer.Port), CA: ca, ProxyType: kind, Resource: resource,
		Token: "none", BootstrapRetry: 10 * time.Millisecond, Log: b.log,
	})
	if err != nil {
		t.Fatal(err)
	}
	leave = func() {
		if err := proxy.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := proxy.Wait(ctx, envoy.Ready); err != nil {
		leave()
		t.Fatal(err)
	}
	return leave
}

// firstConfig leaves only the first part of a configuration dump.
func firstConfig(dump any) {
	o, _ := dump.(map[string]any)
	if configs, _ := o["configs"].([]any); len(configs) > 0 {
		o["configs"] = configs[:1]
	}
}

// local gives the proxies in an answer of the global the names that they have in their zone, which the page shows.
func local(v any) any {
	switch x := v.(type) {
	case map[string]any:
		for k, child := range x {
			if dp, ok := child.(map[string]any); ok && k == "dataplane" {
				if name, ok := dp["name"].(string); ok {
					dp["name"] = strings.TrimPrefix(name, zoneName+".")
				}
			}
			x[k] = local(child)
		}
	case []any:
		for i, child := range x {
			x[i] = local(child)
		}
	}
	return v
}

// beyond returns the paths of the keys that an answer has and an example has not. Of a resource the page shows only the name.
func beyond(path string, example, got any) []string {
	switch g := got.(type) {
	case map[string]any:
		e, _ := example.(map[string]any)
		if e["type"] != nil && e["mesh"] != nil && e["name"] != nil {
			return nil
		}
		var out []string
		for _, key := range slices.Sorted(maps.Keys(g)) {
			at := strings.TrimPrefix(path+"."+key, ".")
			if _, ok := e[key]; !ok {
				out = append(out, at)
				continue
			}
			out = append(out, beyond(at, e[key], g[key])...)
		}
		return out
	case []any:
		e, _ := example.([]any)
		var out []string
		for i := range min(len(e), len(g)) {
			out = append(out, beyond(fmt.Sprintf("%s[%d]", path, i), e[i], g[i])...)
		}
		return out
	}
	return nil
}

// replace puts a value at a path of an example. An element of a list is named by its number.
func replace(v any, path []string, with any) any {
	if len(path) == 0 {
		return with
	}
	switch x := v.(type) {
	case map[string]any:
		x[path[0]] = replace(x[path[0]], path[1:], with)
	case []any:
		var i int
		if _, err := fmt.Sscan(path[0], &i); err == nil && i < len(x) {
			x[i] = replace(x[i], path[1:], with)
		}
	}
	return v
}

func descriptorOf(t *testing.T, item map[string]any) *resource.Descriptor {
	t.Helper()
	d, ok := resource.Lookup(resource.Type(item["type"].(string)))
	if !ok {
		t.Fatalf("%v is no type", item["type"])
	}
	return d
}

func TestWhatIsBeyondAnExampleIsFound(t *testing.T) {
	parse := func(text string) any {
		var v any
		if err := json.Unmarshal([]byte(text), &v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	for name, tt := range map[string]struct {
		example, got string
		want         []string
	}{
		"nothing":                    {`{"a":1}`, `{"a":2}`, nil},
		"a key":                      {`{"a":{"b":1}}`, `{"a":{"b":1,"c":1},"d":1}`, []string{"a.c", "d"}},
		"a key in a list":            {`{"a":[{"b":1},{"b":2}]}`, `{"a":[{"b":1},{"b":2,"c":1}]}`, []string{"a[1].c"}},
		"not the rest of a resource": {`[{"type":"T","mesh":"m","name":"n"}]`, `[{"type":"T","mesh":"m","name":"n","conf":{}}]`, nil},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, beyond("", parse(tt.example), parse(tt.got))); diff != "" {
				t.Error(diff)
			}
		})
	}
	got := local(parse(`{"items":[{"dataplane":{"mesh":"default","name":"` + zoneName + `.a"},"gateway":{"name":"` + zoneName + `.b"}}]}`))
	if diff := cmp.Diff(parse(`{"items":[{"dataplane":{"mesh":"default","name":"a"},"gateway":{"name":"`+zoneName+`.b"}}]}`), got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(parse(`{"a":[{"b":"c"}]}`), replace(parse(`{"a":[{"b":"x"}]}`), []string{"a", "0", "b"}, "c")); diff != "" {
		t.Error(diff)
	}
}
