package envoy_test

import (
	"encoding/base64"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/meridian-mesh/meridian/zone/envoy"
)

// BenchmarkGatewayWithCertificates is what it takes to configure a gateway with a hundred HTTPS hosts, with a certificate each, or with
// one for all: the listeners, and the secrets.
func BenchmarkGatewayWithCertificates(b *testing.B) {
	input, err := os.ReadFile("testdata/gateway-https/input.yaml")
	if err != nil {
		b.Fatal(err)
	}
	pair, err := base64.StdEncoding.DecodeString(string(regexp.MustCompile(`(?s)name: rsa\ndata: (\S+)`).FindSubmatch(input)[1]))
	if err != nil {
		b.Fatal(err)
	}
	var each, one, secrets strings.Builder
	var names []string
	for i := range 100 {
		fmt.Fprintf(&each, "\n    - {port: 443, protocol: HTTPS, hostname: h-%d, tls: {mode: TERMINATE, certificates: [{secret: s-%d}]}}", i, i)
		fmt.Fprintf(&secrets, "\n---\ntype: Secret\nmesh: default\nname: s-%d\ndata: %s", i, base64.StdEncoding.EncodeToString(pair))
		names = append(names, fmt.Sprintf("h-%d", i))
	}
	fmt.Fprintf(&one, "\n    - {port: 443, protocol: HTTPS, tls: {mode: TERMINATE, certificates: [{secret: s-0}]}}")
	for name, listeners := range map[string]string{"each": each.String(), "one": one.String()} {
		b.Run(name, func(b *testing.B) {
			w := parse(b, bareEdge+secrets.String()+`
---
type: MeshGateway
mesh: default
name: edge
selectors: [{match: {kuma.io/service: edge}}]
conf:
  listeners:`+listeners+`
---
type: MeshGatewayRoute
mesh: default
name: r
selectors: [{match: {kuma.io/service: edge}}]
conf: {http: {hostnames: [`+strings.Join(names, ", ")+`], rules: [{matches: [{path: {match: PREFIX, value: /}}], filters: [{redirect: {scheme: https, hostname: x, statusCode: 301}}]}]}}`)
			for b.Loop() {
				for _, name := range w.output(b).Secrets {
					if _, err := envoy.ServerSecret(w.mesh, w.proxy.Dataplane, name); err != nil {
						b.Fatal(err)
					}
				}
			}
		})
	}
}
