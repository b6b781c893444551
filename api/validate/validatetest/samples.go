package validatetest

import "github.com/meridian-mesh/meridian/api/resource"

// connection is what most policies begin with.
const connection = `
sources: [{match: {kuma.io/service: web}}]
destinations: [{match: {kuma.io/service: backend}}]
`

// samples are small and valid.
var samples = map[resource.Type]string{
	"CircuitBreaker":    connection + `conf: {thresholds: {maxConnections: 10}}`,
	"ExternalService":   `{networking: {address: "httpbin.org:80"}, tags: {kuma.io/service: httpbin}}`,
	"FaultInjection":    `{sources: [{match: {kuma.io/service: web}}], destinations: [{match: {kuma.io/service: backend, kuma.io/protocol: http}}], conf: {delay: {percentage: 50, value: 5s}}}`,
	"HealthCheck":       connection + `conf: {interval: 10s, timeout: 2s, unhealthyThreshold: 3, healthyThreshold: 1, tcp: {}}`,
	"MeshAccessLog":     `spec: {targetRef: {kind: Mesh}, to: [{targetRef: {kind: Mesh}, default: {backends: [{file: {path: /dev/stdout}}]}}]}`,
	"MeshGateway":       `{selectors: [{match: {kuma.io/service: edge}}], conf: {listeners: [{port: 8080, protocol: HTTP}]}}`,
	"MeshGatewayRoute":  `{selectors: [{match: {kuma.io/service: edge}}], conf: {http: {rules: [{matches: [{path: {match: PREFIX, value: /}}], backends: [{weight: 1, destination: {kuma.io/service: backend}}]}]}}}`,
	"MeshTrace":         `spec: {targetRef: {kind: Mesh}, default: {backends: [{zipkin: {url: "http://jaeger:9411/api/v2/spans"}}]}}`,
	"ProxyTemplate":     `{selectors: [{match: {kuma.io/service: backend}}], conf: {imports: [default-proxy]}}`,
	"RateLimit":         connection + `conf: {http: {requests: 5, interval: 10s}}`,
	"Retry":             connection + `conf: {http: {numRetries: 5}}`,
	"Timeout":           connection + `conf: {connectTimeout: 10s}`,
	"TrafficLog":        connection,
	"TrafficPermission": connection,
	"TrafficRoute":      connection + `conf: {destination: {kuma.io/service: backend}}`,
	"TrafficTrace":      `selectors: [{match: {kuma.io/service: "*"}}]`,
	"VirtualOutbound":   `{selectors: [{match: {kuma.io/service: "*"}}], conf: {host: "{{.service}}.mesh", port: "8080", parameters: [{name: service, tagKey: kuma.io/service}]}}`,

	"MeshTrafficPermission": `spec: {targetRef: {kind: Mesh}, from: [{targetRef: {kind: Mesh}, default: {action: ALLOW}}]}`,

	resource.Config:             `config: text`,
	resource.Dataplane:          `networking: {address: 192.168.0.1, inbound: [{port: 80, servicePort: 8080, tags: {kuma.io/service: backend}}]}`,
	resource.DataplaneInsight:   `{}`,
	resource.GlobalSecret:       `data: dGVzdAo=`,
	resource.Mesh:               `{}`,
	resource.MeshInsight:        `{}`,
	resource.Secret:             `data: dGVzdAo=`,
	resource.ServiceInsight:     `{}`,
	resource.ZoneEgress:         `networking: {address: 192.168.0.3, port: 10002}`,
	resource.ZoneEgressInsight:  `{}`,
	resource.ZoneIngress:        `networking: {address: 192.168.0.2, port: 10001}`,
	resource.ZoneIngressInsight: `{}`,
	resource.ZoneInsight:        `{}`,
	resource.ZoneType:           `{}`,
}
