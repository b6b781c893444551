package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/meridian-mesh/meridian/api/codec"
	"github.com/meridian-mesh/meridian/api/inspect"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/vips"
)

// inspectPlane holds a mesh with one resource of each kind that can be inspected.
func inspectPlane(t *testing.T, pl resource.Plane, changes ...func(*Options)) *plane {
	t.Helper()
	p := newPlane(t, pl, changes...)
	gateway := dataplane(t, true, map[string]string{"kuma.io/service": "edge"})
	builtin := dataplane(t, true, map[string]string{"kuma.io/service": "edge"})
	builtin.Networking.Gateway.Type = meshv1.Dataplane_Networking_Gateway_BUILTIN
	p.seed(
		record(t, resource.Mesh, "", "demo", "", nil),
		record(t, resource.Dataplane, "demo", "sidecar", "", dataplane(t, false, map[string]string{"kuma.io/service": "web"})),
		record(t, resource.Dataplane, "demo", "delegated", "", gateway),
		record(t, resource.Dataplane, "demo", "builtin", "", builtin),
		record(t, "MeshGateway", "demo", "edge", "", nil), record(t, "MeshGatewayRoute", "demo", "route", "", nil),
		record(t, "Retry", "demo", "r", "", nil),
		record(t, resource.ZoneIngress, "", "in", "", nil), record(t, resource.ZoneEgress, "", "out", "", nil),
		record(t, resource.ZoneIngress, "", "zone-2.in", "global", nil),
	)
	return p
}

// seedYAML puts resources as users write them, of the given owner, into the store.
func (p *plane) seedYAML(origin, docs string) {
	p.t.Helper()
	for doc := range strings.SplitSeq(docs, "\n---\n") {
		d, parsed, err := codec.DecodeAny("application/yaml", []byte(doc))
		if err != nil {
			p.t.Fatalf("%s: %v", doc, err)
		}
		if len(parsed.Unknown) > 0 {
			p.t.Fatalf("%s: unknown fields %v", doc, parsed.Unknown)
		}
		rec := record(p.t, d.Name, parsed.Mesh, parsed.Name, origin, nil)
		rec.Spec = parsed.Spec
		p.seed(rec)
	}
}

// overSocket reads what is served at a path as clients do.
func overSocket(t testing.TB, h http.Handler, target string) string {
	t.Helper()
	ts := httptest.NewServer(h)
	defer ts.Close()
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, ts.URL+target, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	res, err := ts.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("%s: %d %v", target, res.StatusCode, err)
	}
	return string(body)
}

// shows compares what is served at a path, over a socket too, with JSON. Times, which all resources here have alike, may be left out
// there.
func (p *plane) shows(target, want string) {
	p.t.Helper()
	var wanted, got any
	body := p.want(http.StatusOK, http.MethodGet, target, "").Body
	if over := overSocket(p.t, p.srv.Handler(), target); over != body {
		p.t.Errorf("%s over a socket: %s", target, over)
	}
	body = strings.NewReplacer(`"creationTime": "2024-05-01T10:00:00Z",`, "", `"modificationTime": "2024-05-01T11:00:00Z",`, "").Replace(body)
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		p.t.Fatalf("%s: %v in %s", target, err, body)
	}
	if err := json.Unmarshal([]byte(want), &wanted); err != nil {
		p.t.Fatalf("%s: %v in %s", target, err, want)
	}
	if diff := cmp.Diff(wanted, got); diff != "" {
		p.t.Errorf("%s (-want +got)\n%s", target, diff)
	}
}

// policiesOfShop are policies of each kind, and a mesh in which proxies have metrics.
const policiesOfShop = `
type: Mesh
name: shop
metrics: {enabledBackend: p, backends: [{name: p, type: prometheus}]}
---
type: TrafficRoute
mesh: shop
name: canary
sources: [{match: {kuma.io/service: web}}]
destinations: [{match: {kuma.io/service: backend}}]
conf:
  split: [{weight: 90, destination: {kuma.io/service: backend}}, {weight: 10, destination: {kuma.io/service: backend-next}}]
---
type: TrafficPermission
mesh: shop
name: all
sources: [{match: {kuma.io/service: "*"}}]
destinations: [{match: {kuma.io/service: "*"}}]
---
type: Timeout
mesh: shop
name: slow
sources: [{match: {kuma.io/service: "*"}}]
destinations: [{match: {kuma.io/service: backend}}]
conf: {connectTimeout: 5s}
---
type: CircuitBreaker
mesh: shop
name: cb
sources: [{match: {kuma.io/service: web}}]
destinations: [{match: {kuma.io/service: backend-next}}]
conf: {thresholds: {maxConnections: 7}}
---
type: Retry
mesh: shop
name: again
sources: [{match: {kuma.io/service: "*"}}]
destinations: [{match: {kuma.io/service: "*"}}]
conf: {http: {numRetries: 3}}
---
type: TrafficLog
mesh: shop
name: out
sources: [{match: {kuma.io/service: web}}]
destinations: [{match: {kuma.io/service: pass_through}}]
---
type: TrafficTrace
mesh: shop
name: tt
selectors: [{match: {kuma.io/service: web}}]
---
type: MeshTrafficPermission
mesh: shop
name: mtp
spec:
  targetRef: {kind: MeshService, name: web}
  from: [{targetRef: {kind: Mesh}, default: {action: ALLOW}}, {targetRef: {kind: MeshService, name: evil}, default: {action: DENY}}]
---
type: MeshAccessLog
mesh: shop
name: mal
spec:
  targetRef: {kind: Mesh}
  to: [{targetRef: {kind: MeshService, name: backend}, default: {backends: [{file: {path: /tmp/access.log}}]}}]
---
type: MeshTrace
mesh: shop
name: mt
spec:
  targetRef: {kind: MeshService, name: web}
  default: {backends: [{zipkin: {url: "http://jaeger:9411/api/v2/spans"}}]}`

const proxiesOfShop = `
type: Dataplane
mesh: shop
name: web-1
networking:
  address: 127.0.0.1
  inbound: [{port: 10010, servicePort: 10011, tags: {kuma.io/service: web}}]
  outbound:
  - {port: 10006, tags: {kuma.io/service: backend}}
  - {port: 9, address: 10.1.1.1, tags: {kuma.io/service: redis}}
---
type: Dataplane
mesh: shop
name: delegated-1
networking: {address: 127.0.0.2, gateway: {tags: {kuma.io/service: edge}}, outbound: [{port: 10006, tags: {kuma.io/service: backend}}]}`

// shop is a plane with these: the policies belong to the global, the proxies to a zone.
func shop(t *testing.T, pl resource.Plane) *plane {
	t.Helper()
	p := newPlane(t, pl)
	global, zone := "", "zone-1"
	if pl == resource.Zone {
		global, zone = "global", ""
	}
	p.seedYAML(global, policiesOfShop)
	p.seedYAML(zone, proxiesOfShop)
	return p
}

const (
	// As they are shown.
	shownAll = `{"type":"TrafficPermission","mesh":"shop","name":"all","sources":[{"match":{"kuma.io/service":"*"}}],
		"destinations":[{"match":{"kuma.io/service":"*"}}]}`
	shownRetry = `{"type":"Retry","mesh":"shop","name":"again","sources":[{"match":{"kuma.io/service":"*"}}],
		"destinations":[{"match":{"kuma.io/service":"*"}}],"conf":{"http":{"numRetries":3}}}`
	shownTimeout = `{"type":"Timeout","mesh":"shop","name":"slow","sources":[{"match":{"kuma.io/service":"*"}}],
		"destinations":[{"match":{"kuma.io/service":"backend"}}],"conf":{"connectTimeout":"5s"}}`
	shownAccessLog = `{"type":"MeshAccessLog","mesh":"shop","name":"mal","targetRef":{"kind":"Mesh"},
		"to":[{"targetRef":{"kind":"MeshService","name":"backend"},"default":{"backends":[{"file":{"path":"/tmp/access.log"}}]}}]}`
)

func TestPoliciesOfAProxy(t *testing.T) {
	for _, pl := range [...]resource.Plane{resource.Global, resource.Zone} {
		p := shop(t, pl)
		p.shows("/meshes/shop/dataplanes/web-1/policies", `{"kind":"SidecarDataplane","total":8,"items":[
			{"type":"dataplane","name":"","service":"","matchedPolicies":{
				"MeshAccessLog":[`+shownAccessLog+`],
				"MeshTrace":[{"type":"MeshTrace","mesh":"shop","name":"mt","targetRef":{"kind":"MeshService","name":"web"},
					"default":{"backends":[{"zipkin":{"url":"http://jaeger:9411/api/v2/spans"}}]}}],
				"MeshTrafficPermission":[{"type":"MeshTrafficPermission","mesh":"shop","name":"mtp","targetRef":{"kind":"MeshService","name":"web"},
					"from":[{"targetRef":{"kind":"Mesh"},"default":{"action":"ALLOW"}},
						{"targetRef":{"kind":"MeshService","name":"evil"},"default":{"action":"DENY"}}]}],
				"TrafficTrace":[{"type":"TrafficTrace","mesh":"shop","name":"tt","selectors":[{"match":{"kuma.io/service":"web"}}]}]}},
			{"type":"inbound","name":"127.0.0.1:10010:10011","service":"web","matchedPolicies":{"TrafficPermission":[`+shownAll+`]}},
			{"type":"inbound","name":"127.0.0.1:5670:5670","service":"","matchedPolicies":{"TrafficPermission":[`+shownAll+`]}},
			{"type":"outbound","name":"127.0.0.1:10006","service":"backend","matchedPolicies":{
				"Timeout":[`+shownTimeout+`],
				"TrafficRoute":[{"type":"TrafficRoute","mesh":"shop","name":"canary","sources":[{"match":{"kuma.io/service":"web"}}],
					"destinations":[{"match":{"kuma.io/service":"backend"}}],"conf":{"split":[
						{"weight":90,"destination":{"kuma.io/service":"backend"}},{"weight":10,"destination":{"kuma.io/service":"backend-next"}}]}}]}},
			{"type":"service","name":"backend","service":"backend","matchedPolicies":{"Retry":[`+shownRetry+`]}},
			{"type":"service","name":"backend-next","service":"backend-next","matchedPolicies":{
				"CircuitBreaker":[{"type":"CircuitBreaker","mesh":"shop","name":"cb","sources":[{"match":{"kuma.io/service":"web"}}],
					"destinations":[{"match":{"kuma.io/service":"backend-next"}}],"conf":{"thresholds":{"maxConnections":7}}}]}},
			{"type":"service","name":"pass_through","service":"pass_through","matchedPolicies":{
				"TrafficLog":[{"type":"TrafficLog","mesh":"shop","name":"out","sources":[{"match":{"kuma.io/service":"web"}}],
					"destinations":[{"match":{"kuma.io/service":"pass_through"}}]}]}},
			{"type":"service","name":"redis","service":"redis","matchedPolicies":{"Retry":[`+shownRetry+`]}}]}`)
		p.shows("/meshes/shop/dataplanes/delegated-1/policies", `{"kind":"SidecarDataplane","total":4,"items":[
			{"type":"dataplane","name":"","service":"","matchedPolicies":{"MeshAccessLog":[`+shownAccessLog+`]}},
			{"type":"inbound","name":"127.0.0.2:5670:5670","service":"","matchedPolicies":{"TrafficPermission":[`+shownAll+`]}},
			{"type":"outbound","name":"127.0.0.1:10006","service":"backend","matchedPolicies":{"Timeout":[`+shownTimeout+`]}},
			{"type":"service","name":"backend","service":"backend","matchedPolicies":{"Retry":[`+shownRetry+`]}}]}`)
	}
}

func TestRulesOfAProxy(t *testing.T) {
	for _, pl := range [...]resource.Plane{resource.Global, resource.Zone} {
		p := shop(t, pl)
		p.shows("/meshes/shop/dataplanes/web-1/rules", `{"total":4,"items":[
			{"type":"destinationSubset","name":"127.0.0.1:10006","service":"backend","policyType":"MeshAccessLog",
				"subset":{"kuma.io/service":"backend"},"conf":{"backends":[{"file":{"path":"/tmp/access.log"}}]},"origins":[{"mesh":"shop","name":"mal"}]},
			{"type":"clientSubset","name":"127.0.0.1:10010","service":"web","policyType":"MeshTrafficPermission",
				"subset":{"kuma.io/service":"evil"},"conf":{"action":"DENY"},"origins":[{"mesh":"shop","name":"mtp"}]},
			{"type":"clientSubset","name":"127.0.0.1:10010","service":"web","policyType":"MeshTrafficPermission",
				"subset":{"kuma.io/service":"!evil"},"conf":{"action":"ALLOW"},"origins":[{"mesh":"shop","name":"mtp"}]},
			{"type":"singleItem","name":"dataplane","service":"","policyType":"MeshTrace","subset":{},
				"conf":{"backends":[{"zipkin":{"url":"http://jaeger:9411/api/v2/spans"}}],"tags":null},"origins":[{"mesh":"shop","name":"mt"}]}]}`)
		p.shows("/meshes/shop/dataplanes/delegated-1/rules", `{"total":1,"items":[
			{"type":"destinationSubset","name":"127.0.0.1:10006","service":"backend","policyType":"MeshAccessLog",
				"subset":{"kuma.io/service":"backend"},"conf":{"backends":[{"file":{"path":"/tmp/access.log"}}]},"origins":[{"mesh":"shop","name":"mal"}]}]}`)
	}
}

// The example of the API's documentation page, which has an outbound of one mesh and an inbound of another address.
func TestTheRulesOfTheDocumentationPage(t *testing.T) {
	p := newPlane(t, resource.Zone)
	p.seedYAML("global", `
type: Mesh
name: default
---
type: MeshAccessLog
mesh: default
name: mal-1
spec:
  targetRef: {kind: Mesh}
  to: [{targetRef: {kind: Mesh}, default: {backends: [{file: {path: /tmp/access.logs}}]}}]
---
type: MeshTrafficPermission
mesh: default
name: mtp-1
spec:
  targetRef: {kind: Mesh}
  from: [{targetRef: {kind: MeshSubset, tags: {kuma.io/service: client, kuma.io/zone: east}}, default: {action: DENY}}]
---
type: MeshTrace
mesh: default
name: mtp-1
spec:
  targetRef: {kind: Mesh}
  default: {backends: [{zipkin: {url: "http://jaeger-collector.mesh-observability:9411/api/v2/spans"}}]}`)
	p.seedYAML("", `
type: Dataplane
mesh: default
name: backend-1
networking:
  address: 192.168.0.2
  inbound: [{port: 80, tags: {kuma.io/service: web}}]
  outbound: [{port: 10001, tags: {kuma.io/service: backend}}]`)
	p.shows("/meshes/default/dataplanes/backend-1/rules", `{"total":3,"items":[
		{"type":"destinationSubset","name":"127.0.0.1:10001","service":"backend","policyType":"MeshAccessLog","subset":{},
			"conf":{"backends":[{"file":{"path":"/tmp/access.logs"}}]},"origins":[{"mesh":"default","name":"mal-1"}]},
		{"type":"clientSubset","name":"192.168.0.2:80","service":"web","policyType":"MeshTrafficPermission",
			"subset":{"kuma.io/service":"client","kuma.io/zone":"east"},"conf":{"action":"DENY"},"origins":[{"mesh":"default","name":"mtp-1"}]},
		{"type":"singleItem","name":"dataplane","service":"","policyType":"MeshTrace","subset":{},
			"conf":{"backends":[{"zipkin":{"url":"http://jaeger-collector.mesh-observability:9411/api/v2/spans"}}],"tags":null},
			"origins":[{"mesh":"default","name":"mtp-1"}]}]}`)
}

func TestProxiesOfAPolicy(t *testing.T) {
	const web, delegated = `{"mesh":"shop","name":"web-1"}`, `{"mesh":"shop","name":"delegated-1"}`
	sidecar := func(dataplane, attachments string) string {
		return `{"kind":"SidecarDataplane","dataplane":` + dataplane + `,"attachments":[` + attachments + `]}`
	}
	for _, pl := range [...]resource.Plane{resource.Global, resource.Zone} {
		p := shop(t, pl)
		p.shows("/meshes/shop/circuit-breakers/cb/dataplanes", `{"total":1,"items":[`+
			sidecar(web, `{"type":"service","name":"backend-next","service":"backend-next"}`)+`]}`)
		p.shows("/meshes/shop/retries/again/dataplanes", `{"total":2,"items":[`+
			sidecar(delegated, `{"type":"service","name":"backend","service":"backend"}`)+`,`+
			sidecar(web, `{"type":"service","name":"backend","service":"backend"},{"type":"service","name":"redis","service":"redis"}`)+`]}`)
		p.shows("/meshes/shop/traffic-permissions/all/dataplanes", `{"total":2,"items":[`+
			sidecar(delegated, `{"type":"inbound","name":"127.0.0.2:5670:5670","service":""}`)+`,`+
			sidecar(web, `{"type":"inbound","name":"127.0.0.1:10010:10011","service":"web"},
				{"type":"inbound","name":"127.0.0.1:5670:5670","service":""}`)+`]}`)
		p.shows("/meshes/shop/meshtraces/mt/dataplanes", `{"total":1,"items":[`+sidecar(web, `{"type":"dataplane","name":"","service":""}`)+`]}`)
	}
}

const gatewaysOfShop = `
type: MeshGateway
mesh: shop
name: edge-gateway
selectors: [{match: {kuma.io/service: edge}}]
conf:
  listeners:
  - {port: 80, protocol: HTTP, hostname: go.com, tags: {at: go}}
  - {port: 80, protocol: HTTP, hostname: idle.com, tags: {at: idle}}
  - {port: 8443, protocol: TCP, tags: {at: tcp}}
---
type: MeshGateway
mesh: shop
name: less-specific
selectors: [{match: {kuma.io/service: "*"}}]
conf: {listeners: [{port: 81, protocol: HTTP}]}
---
type: MeshGatewayRoute
mesh: shop
name: r-http
selectors: [{match: {at: go}}]
conf:
  http:
    rules:
    - matches: [{path: {match: PREFIX, value: /}}]
      filters: [{mirror: {backend: {destination: {kuma.io/service: shadow}}, percentage: 1}}]
      backends:
      - {weight: 90, destination: {kuma.io/service: backend}}
      - {weight: 10, destination: {kuma.io/service: backend-next}}
    - matches: [{path: {match: PREFIX, value: /x}}]
      backends: [{destination: {kuma.io/service: backend}}]
---
type: MeshGatewayRoute
mesh: shop
name: r-tcp
selectors: [{match: {at: tcp}}]
conf: {tcp: {rules: [{backends: [{destination: {kuma.io/service: redis}}]}]}}
---
type: MeshGatewayRoute
mesh: shop
name: r-unused
selectors: [{match: {at: nowhere}}]
conf: {tcp: {rules: [{backends: [{destination: {kuma.io/service: redis}}]}]}}
---
type: TrafficLog
mesh: shop
name: of-edge
sources: [{match: {kuma.io/service: edge}}]
destinations: [{match: {kuma.io/service: "*"}}]`

const builtinsOfShop = `
type: Dataplane
mesh: shop
name: gateway-1
networking: {address: 10.0.0.9, gateway: {type: BUILTIN, tags: {kuma.io/service: edge}}}
---
type: Dataplane
mesh: shop
name: gateway-2
networking: {address: 10.0.0.10, gateway: {type: BUILTIN, tags: {kuma.io/service: other}}}`

func TestInspectionOfBuiltinGateways(t *testing.T) {
	const (
		shownLog = `{"type":"TrafficLog","mesh":"shop","name":"of-edge","sources":[{"match":{"kuma.io/service":"edge"}}],
			"destinations":[{"match":{"kuma.io/service":"*"}}]}`
		gateway = `"gateway":{"mesh":"shop","name":"edge-gateway"}`
	)
	for _, pl := range [...]resource.Plane{resource.Global, resource.Zone} {
		p := shop(t, pl)
		if pl == resource.Global {
			p.seedYAML("", gatewaysOfShop)
			p.seedYAML("zone-1", builtinsOfShop)
		} else {
			p.seedYAML("global", gatewaysOfShop)
			p.seedYAML("", builtinsOfShop)
		}
		p.shows("/meshes/shop/dataplanes/gateway-1/policies", `{"kind":"MeshGatewayDataplane",`+gateway+`,
			"policies":{"TrafficLog":`+shownLog+`},"matchedPolicies":{"MeshAccessLog":[`+shownAccessLog+`]},
			"listeners":[
			{"port":80,"protocol":"HTTP","hosts":[
				{"hostName":"go.com","routes":[{"route":"r-http","destinations":[
					{"tags":{"kuma.io/service":"backend"},"policies":{"Retry":`+shownRetry+`,"Timeout":`+shownTimeout+`}},
					{"tags":{"kuma.io/service":"backend-next"},"policies":{"Retry":`+shownRetry+`}},
					{"tags":{"kuma.io/service":"shadow"},"policies":{"Retry":`+shownRetry+`}}]}]},
				{"hostName":"idle.com","routes":null}]},
			{"port":8443,"protocol":"TCP","hosts":[
				{"hostName":"*","routes":[{"route":"r-tcp","destinations":[
					{"tags":{"kuma.io/service":"redis"},"policies":{"Retry":`+shownRetry+`}}]}]}]}]}`)
		p.shows("/meshes/shop/timeouts/slow/dataplanes", `{"total":3,"items":[
			{"kind":"SidecarDataplane","dataplane":{"mesh":"shop","name":"delegated-1"},"attachments":[
				{"type":"outbound","name":"127.0.0.1:10006","service":"backend"}]},
			{"kind":"MeshGatewayDataplane","dataplane":{"mesh":"shop","name":"gateway-1"},`+gateway+`,"listeners":[
				{"port":80,"protocol":"HTTP","hosts":[{"hostName":"go.com","routes":[
					{"route":"r-http","destinations":[{"kuma.io/service":"backend"}]}]}]}]},
			{"kind":"SidecarDataplane","dataplane":{"mesh":"shop","name":"web-1"},"attachments":[
				{"type":"outbound","name":"127.0.0.1:10006","service":"backend"}]}]}`)
		// delegated-1 is of the same service.
		p.shows("/meshes/shop/traffic-logs/of-edge/dataplanes", `{"total":2,"items":[
			{"kind":"SidecarDataplane","dataplane":{"mesh":"shop","name":"delegated-1"},"attachments":[
				{"type":"service","name":"backend","service":"backend"},{"type":"service","name":"pass_through","service":"pass_through"}]},
			{"kind":"MeshGatewayDataplane","dataplane":{"mesh":"shop","name":"gateway-1"},`+gateway+`}]}`)
		const first = `{"total":1,"items":[{"dataplane":{"mesh":"shop","name":"gateway-1"}}]}`
		p.shows("/meshes/shop/meshgateways/edge-gateway/dataplanes", first)
		p.shows("/meshes/shop/meshgateways/edge-gateway/policies", first) // as the documentation page spells it
		p.shows("/meshes/shop/meshgatewayroutes/r-http/dataplanes", first)
		p.shows("/meshes/shop/meshgatewayroutes/r-unused/dataplanes", `{"total":0,"items":[]}`)
		p.shows("/meshes/shop/dataplanes/gateway-1/rules", `{"total":0,"items":null}`) // the only rule is for one destination
		// It selects both, and counts for the one that no more specific one selects.
		p.shows("/meshes/shop/meshgateways/less-specific/dataplanes", `{"total":1,"items":[{"dataplane":{"mesh":"shop","name":"gateway-2"}}]}`)

		p.remove("MeshGateway", "shop", "less-specific")
		p.shows("/meshes/shop/dataplanes/gateway-2/policies",
			`{"kind":"MeshGatewayDataplane","gateway":{"mesh":"","name":""},"listeners":null}`)
	}
}

func TestInspectionOfWhatIsNotThere(t *testing.T) {
	const (
		empty   = "{\n \"total\": 0,\n \"items\": []\n}\n"
		none    = "{\n \"total\": 0,\n \"items\": null\n}\n"
		sidecar = "{\n \"kind\": \"SidecarDataplane\",\n \"total\": 0,\n \"items\": []\n}\n"
	)
	missing := func(title string) string {
		return "{\n \"title\": \"" + title + "\",\n \"details\": \"Not found\"\n}\n"
	}
	for _, pl := range [...]resource.Plane{resource.Global, resource.Zone} {
		p := inspectPlane(t, pl)
		for _, tc := range []struct {
			target string
			status int
			body   string
		}{
			{"/meshes/demo/dataplanes/sidecar/policies", 200, sidecar},
			{"/meshes/demo/dataplanes/delegated/policies", 200, sidecar},
			{"/meshes/none/dataplanes/sidecar/policies", 404, missing("Could not build MeshContext")},
			{"/meshes/demo/dataplanes/none/policies", 404, missing("Could not get MatchedPolicies")},
			{"/meshes/demo/dataplanes/sidecar/rules", 200, none},
			{"/meshes/demo/dataplanes/builtin/rules", 200, none},
			{"/meshes/none/dataplanes/sidecar/rules", 404, missing("Could not build MeshContext")},
			{"/meshes/demo/dataplanes/none/rules", 404, missing("Could not get MatchedPolicies")},
			{"/meshes/demo/retries/r/dataplanes", 200, empty},
			{"/meshes/demo/retries/none/dataplanes", 200, empty},
			{"/meshes/none/retries/r/dataplanes", 404, missing("Could not list Dataplanes")},
			{"/meshes/demo/trafficpermissions/none/dataplanes", 200, empty},
			{"/meshes/demo/virtual-outbounds/v/dataplanes", 404, "404: Page Not Found"},
			{"/meshes/demo/external-services/e/dataplanes", 404, "404: Page Not Found"},
			{"/meshes/demo/secrets/s/dataplanes", 404, "404: Page Not Found"},
			{"/meshes/demo/meshgateways/none/dataplanes", 404, missing("Could not find MeshGateway")},
			{"/meshes/none/meshgateways/edge/dataplanes", 404, missing("Could not find MeshGateway")},
			{"/meshes/demo/meshgatewayroutes/route/dataplanes", 200, empty},
			{"/meshes/demo/meshgatewayroutes/none/dataplanes", 404, missing("Could not find MeshGatewayRoute")},
		} {
			a := p.want(tc.status, http.MethodGet, tc.target, "")
			if diff := cmp.Diff(tc.body, a.Body); diff != "" {
				t.Errorf("%s: %s", tc.target, diff)
			}
			p.want(tc.status, http.MethodHead, tc.target, "")
		}
	}
}

// What is shown follows every write: of policies, of the mesh and of proxies, and also when a mesh goes and comes back.
func TestInspectionEndsWithItsClient(t *testing.T) {
	p := inspectPlane(t, resource.Global)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	v, ok, err := p.srv.inspected.at(ctx, "demo")
	if !ok || err != nil {
		t.Fatal(ok, err)
	}
	seen := 0
	if err := v.each(ctx, func(*inspect.Proxy) { seen++ }); !errors.Is(err, context.Canceled) || seen > 0 {
		t.Errorf("error %v after %d proxies", err, seen)
	}
}

func TestInspectionFollowsWrites(t *testing.T) {
	p := shop(t, resource.Global)
	const target = "/meshes/shop/timeouts/slow/dataplanes"
	both := p.want(200, http.MethodGet, target, "").Body
	if strings.Count(both, "SidecarDataplane") != 2 {
		t.Fatal(both)
	}
	attached := func() int { return int(object(t, p.want(200, http.MethodGet, target, "").Body)["total"].(float64)) }

	p.remove(resource.Dataplane, "shop", "delegated-1")
	if n := attached(); n != 1 {
		t.Errorf("%d proxies after one is gone", n)
	}
	p.seedYAML("", "type: Timeout\nmesh: shop\nname: slower\nsources: [{match: {kuma.io/service: web}}]\n"+
		"destinations: [{match: {kuma.io/service: backend}}]\nconf: {connectTimeout: 9s}")
	if n := attached(); n != 0 {
		t.Errorf("%d proxies after a more specific policy came", n)
	}
	p.remove("Timeout", "shop", "slower")
	if n := attached(); n != 1 {
		t.Errorf("%d proxies after it went", n)
	}
	policies := func() int {
		return int(object(t, p.want(200, http.MethodGet, "/meshes/shop/dataplanes/web-1/policies", "").Body)["total"].(float64))
	}
	before := policies()
	p.seedYAML("", "type: Mesh\nname: shop")
	if now := policies(); now != before-1 {
		t.Errorf("%d parts with metrics, %d without", before, now)
	}
	p.remove(resource.Mesh, "", "shop")
	p.want(404, http.MethodGet, target, "")
	if n := len(p.srv.inspected.meshes); n != 0 {
		t.Errorf("%d meshes are kept", n)
	}
	p.seedYAML("", "type: Mesh\nname: shop")
	if n := attached(); n != 1 {
		t.Errorf("%d proxies after the mesh came back", n)
	}
}

// Whoever has written sees it in what is inspected next, whatever others write and ask at the same time.
func TestInspectionIsConcurrent(t *testing.T) {
	const clients, rounds = 8, 8
	p := shop(t, resource.Global)
	var g errgroup.Group
	for c := range clients {
		p.seedYAML("zone-1", fmt.Sprintf("type: Dataplane\nmesh: shop\nname: client-%[1]d\nnetworking:\n  address: 10.2.0.%[1]d\n"+
			"  inbound: [{port: 80, tags: {kuma.io/service: client-%[1]d}}]\n  outbound: [{port: 1, tags: {kuma.io/service: backend}}]", c))
	}
	for c := range clients {
		g.Go(func() error {
			for round := range rounds {
				put := fmt.Sprintf(`{"type":"Timeout","mesh":"shop","name":"t-%[1]d","sources":[{"match":{"kuma.io/service":"client-%[1]d"}}],`+
					`"destinations":[{"match":{"kuma.io/service":"backend"}}],"conf":{"connectTimeout":"%[2]ds"}}`, c, round+1)
				if a := p.do(http.MethodPut, fmt.Sprintf("/meshes/shop/timeouts/t-%d", c), put); a.Status >= 300 {
					return fmt.Errorf("PUT: %d %s", a.Status, a.Body)
				}
				for target, want := range map[string]string{
					fmt.Sprintf("/meshes/shop/dataplanes/client-%d/policies", c): fmt.Sprintf(`"connectTimeout": "%ds"`, round+1),
					fmt.Sprintf("/meshes/shop/timeouts/t-%d/dataplanes", c):      fmt.Sprintf(`"name": "client-%d"`, c),
				} {
					if a := p.do(http.MethodGet, target, ""); a.Status != http.StatusOK || !strings.Contains(a.Body, want) {
						return fmt.Errorf("%s: %d, not %s in %s", target, a.Status, want, a.Body)
					}
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
}

// A transparent proxy has outbounds at virtual addresses: on its zone those that were given, on the global their host names.
func TestOutboundsOfATransparentProxy(t *testing.T) {
	const transparent = `
type: Dataplane
mesh: shop
name: tp
networking:
  address: 10.9.9.9
  inbound: [{port: 80, tags: {kuma.io/service: tp}}]
  transparentProxying: {redirectPortInbound: 15006, redirectPortOutbound: 15001, reachableServices: [backend, web]}`
	const attached = `{"kind":"SidecarDataplane","total":4,"items":[
		{"type":"dataplane","name":"","service":"","matchedPolicies":{"MeshAccessLog":[` + shownAccessLog + `]}},
		{"type":"inbound","name":"10.9.9.9:5670:5670","service":"","matchedPolicies":{"TrafficPermission":[` + shownAll + `]}},
		{"type":"inbound","name":"10.9.9.9:80:80","service":"tp","matchedPolicies":{"TrafficPermission":[` + shownAll + `]}},
		{"type":"service","name":"web","service":"web","matchedPolicies":{"Retry":[` + shownRetry + `]}}]}`
	withBackend := func(name string) string {
		out := strings.Replace(attached, `"total":4`, `"total":6`, 1)
		return strings.Replace(out, `{"type":"service","name":"web"`, `{"type":"outbound","name":"`+name+`","service":"backend","matchedPolicies":{"Timeout":[`+
			shownTimeout+`]}},{"type":"service","name":"backend","service":"backend","matchedPolicies":{"Retry":[`+shownRetry+`]}},
			{"type":"service","name":"web"`, 1)
	}
	const backend = `
type: Dataplane
mesh: shop
name: be
networking: {address: 10.9.9.8, inbound: [{port: 80, tags: {kuma.io/service: backend}}]}`

	p := shop(t, resource.Global)
	p.seedYAML("zone-1", transparent)
	p.shows("/meshes/shop/dataplanes/tp/policies", attached)
	// Services of another zone cannot be reached without mutual TLS.
	p.seedYAML("zone-2", backend)
	p.shows("/meshes/shop/dataplanes/tp/policies", attached)
	p.remove(resource.Dataplane, "shop", "be")
	p.seedYAML("zone-1", backend)
	p.shows("/meshes/shop/dataplanes/tp/policies", withBackend("backend.mesh:80"))

	p = shop(t, resource.Zone)
	p.seedYAML("", transparent)
	table := vips.Table{}
	for i, service := range []string{"backend", "web"} {
		table[vips.Entry{Kind: vips.Service, Name: service}] = vips.Address{
			Address:   netip.AddrFrom4([4]byte{240, 0, 0, byte(i)}),
			Outbounds: []vips.Outbound{{TagSet: map[string]string{"kuma.io/service": service}}},
		}
	}
	text, err := table.Encode()
	if err != nil {
		t.Fatal(err)
	}
	p.seed(record(t, resource.Config, "", vips.ConfigName("shop"), "", &systemv1.Config{Config: text}))
	p.shows("/meshes/shop/dataplanes/tp/policies", withBackend("240.0.0.0:80"))
}

func TestAProxyThatIsNotConnectedCannotBeAsked(t *testing.T) {
	const notConnected = "is not connected to this control plane"
	for _, pl := range [...]resource.Plane{resource.Global, resource.Zone} {
		p := inspectPlane(t, pl)
		elsewhere, elsewhereTitle, elsewhereText := 503, titleAdmin, notConnected
		if pl == resource.Zone {
			elsewhere, elsewhereTitle, elsewhereText = 400, "Could not connect to zone ingress that resides in another zone", "another zone"
		}
		for _, tc := range []struct {
			target         string
			status         int
			title, details string
		}{
			{"/meshes/demo/dataplanes/sidecar", 503, "Could not execute admin operation", notConnected},
			{"/meshes/demo/dataplane/sidecar", 503, "Could not execute admin operation", notConnected},
			{"/meshes/demo/dataplanes/none", 404, "Could not get dataplane resource", "Not found"},
			{"/meshes/none/dataplanes/sidecar", 404, "Could not get dataplane resource", "Not found"},
			{"/zoneingresses/in", 503, "Could not execute admin operation", notConnected},
			{"/zoneingresses/none", 404, "Could not get zone ingress resource", "Not found"},
			{"/zoneingresses/zone-2.in", elsewhere, elsewhereTitle, elsewhereText},
			{"/zoneegresses/out", 503, "Could not execute admin operation", notConnected},
			{"/zoneegresses/none", 404, "Could not get zone egress resource", "Not found"},
		} {
			for _, view := range [...]string{"xds", "stats", "clusters"} {
				target := tc.target + "/" + view
				a := object(t, p.want(tc.status, http.MethodGet, target, "").Body)
				if details, _ := a["details"].(string); a["title"] != tc.title || !strings.Contains(details, tc.details) {
					t.Errorf("%s: got %v", target, a)
				}
				for _, who := range [...]string{"Remote: 10.0.0.1:1", "Origin: http://elsewhere"} {
					denied := object(t, p.want(403, http.MethodGet, target, "", who).Body)
					if denied["title"] != "Access Denied" {
						t.Errorf("%s: got %v", target, denied)
					}
				}
			}
		}
	}
}
