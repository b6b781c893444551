package envoy_test

import (
	"testing"

	"github.com/meridian-mesh/meridian/zone/xds"
)

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
	const edge = `zone: zone-1
proxy: edge-1
---
type: Mesh
name: default
---
type: Dataplane
mesh: default
name: edge-1
networking: {address: 10.0.0.1, gateway: {type: BUILTIN, tags: {kuma.io/service: edge}}}`
	for name, more := range map[string]string{"no MeshGateway": "", "a template without imports": noImports} {
		t.Run(name, func(t *testing.T) {
			found := false
			for _, r := range parse(t, edge+more).output(t).Resources {
				found = found || r.Kind == xds.Runtime && r.Name == "gateway.listeners"
			}
			if !found {
				t.Error("there is no runtime")
			}
		})
	}
}
