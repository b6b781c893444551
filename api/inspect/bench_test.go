package inspect_test

import (
	"fmt"
	"testing"

	"github.com/meridian-mesh/meridian/api/inspect"
	"github.com/meridian-mesh/meridian/api/policy"
)

// BenchmarkReachOfGateways is what one of many gateways costs a client that asks which proxies a policy reaches: "one", which is for one
// of their hundred backends, or "none", for what only another gateway does.
func BenchmarkReachOfGateways(b *testing.B) {
	docs := `
type: Dataplane
mesh: m
name: dp
networking: {address: 10.0.0.1, gateway: {type: BUILTIN, tags: {kuma.io/service: edge}}}
---
type: MeshGateway
mesh: m
name: edge
selectors: [{match: {kuma.io/service: edge}}]
conf: {listeners: [{port: 80, protocol: HTTP}]}
---
type: Timeout
mesh: m
name: one
sources: [{match: {kuma.io/service: "*"}}]
destinations: [{match: {kuma.io/service: s-1}}]
conf: {connectTimeout: 1s}
---
type: Timeout
mesh: m
name: none
sources: [{match: {kuma.io/service: other}}]
destinations: [{match: {kuma.io/service: s-1}}]
conf: {connectTimeout: 1s}`
	for i := range 100 {
		docs += fmt.Sprintf(`
---
type: MeshGatewayRoute
mesh: m
name: r-%d
selectors: [{match: {kuma.io/service: edge}}]
conf: {http: {rules: [{matches: [{path: {match: PREFIX, value: /%d}}], backends: [{weight: 1, destination: {kuma.io/service: s-%d}}]}]}}`, i, i, i)
	}
	set, p := load(b, docs)
	for _, name := range []string{"one", "none"} {
		b.Run(name, func(b *testing.B) {
			reach, _ := inspect.NewReach(nil, set, policy.Timeout, name)
			for b.Loop() {
				if _, ok := reach.Gateway(p); ok != (name == "one") {
					b.Fatal(ok)
				}
			}
		})
	}
	b.Run("route", func(b *testing.B) {
		by, _ := set.Get(policy.MeshGatewayRoute, "r-99")
		for b.Loop() {
			if !inspect.Configures(set, by, p) {
				b.Fatal("not configured")
			}
		}
	})
}
