package envoy_test

import (
	"testing"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	"github.com/meridian-mesh/meridian/zone/xds"
)

// bareEdge is a builtin gateway that no MeshGateway configures.
const bareEdge = `zone: zone-1
proxy: edge-1
---
type: Mesh
name: default
---
type: Dataplane
mesh: default
name: edge-1
networking: {address: 10.0.0.1, gateway: {type: BUILTIN, tags: {kuma.io/service: edge}}}`

// The bootstrap of a gateway asks for the runtime by name, and Envoy waits for it.
func TestAGatewayHasItsRuntimeWhateverItServes(t *testing.T) {
	const noImports = `
---
type: ProxyTemplate
mesh: default
name: bare
selectors: [{match: {kuma.io/service: edge}}]
conf: {imports: [], resources: []}
`
	for name, more := range map[string]string{"no MeshGateway": "", "a template without imports": noImports} {
		t.Run(name, func(t *testing.T) {
			found := false
			for _, r := range parse(t, bareEdge+more).output(t).Resources {
				found = found || r.Kind == xds.Runtime && r.Name == "gateway.listeners"
			}
			if !found {
				t.Error("there is no runtime")
			}
		})
	}
}

// Envoy refuses a route with two rewrites, values of headers with commands that it does not know, and weights whose sum is too large,
// and with it all routes of the listener.
func TestRoutesThatEnvoyWouldRefuse(t *testing.T) {
	out := parse(t, bareEdge+`
---
type: MeshGateway
mesh: default
name: edge
selectors: [{match: {kuma.io/service: edge}}]
conf: {listeners: [{port: 80, protocol: HTTP}]}
---
type: MeshGatewayRoute
mesh: default
name: r
selectors: [{match: {kuma.io/service: edge}}]
conf:
  http:
    rules:
      - matches: [{path: {match: PREFIX, value: /}}]
        filters:
          - rewrite: {replaceFull: /all}
          - rewrite: {replacePrefixMatch: /one}
          - requestHeader: {set: [{name: x-share, value: 50%}]}
        backends:
          - {weight: 4294967295, destination: {kuma.io/service: api}}
          - {weight: 4294967295, destination: {kuma.io/service: web}}`).output(t)
	for _, r := range out.Resources {
		if r.Kind != xds.Route {
			continue
		}
		route := r.Message.(*routev3.RouteConfiguration).GetVirtualHosts()[0].GetRoutes()[0]
		action := route.GetRoute()
		if action.GetRegexRewrite() != nil || action.GetPrefixRewrite() != "/one/" {
			t.Errorf("rewrites: %q and %s", action.GetPrefixRewrite(), action.GetRegexRewrite())
		}
		if got := route.GetRequestHeadersToAdd()[0].GetHeader().GetValue(); got != "50%%" {
			t.Errorf("value of the header: %q", got)
		}
		var sum uint64
		for _, c := range action.GetWeightedClusters().GetClusters() {
			sum += uint64(c.GetWeight().GetValue())
		}
		if total := action.GetWeightedClusters().GetTotalWeight().GetValue(); sum == 0 || sum != uint64(total) { //nolint:staticcheck // for Envoy before 1.24
			t.Errorf("weights have the sum %d, which is said to be %d", sum, total)
		}
		return
	}
	t.Error("there are no routes")
}
