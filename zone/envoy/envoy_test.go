package envoy_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/meridian-mesh/meridian/zone/envoy"
	"github.com/meridian-mesh/meridian/zone/xds"
)

const head = `zone: zone-1
proxy: web-1
---
type: Mesh
name: default
mtls: {enabledBackend: ca-1, backends: [{name: ca-1, type: builtin}]}
---
type: Dataplane
mesh: default
name: web-1
networking:
  address: 10.0.0.1
  inbound: [{port: 8080, tags: {kuma.io/service: web, kuma.io/protocol: http}}]
`

func TestEqualInputsGiveEqualBytes(t *testing.T) {
	for _, name := range []string{"traffic-route", "external-service", "transparent", "proxy-template", "mesh-access-log"} {
		t.Run(name, func(t *testing.T) {
			file := "testdata/" + name + "/input.yaml"
			first := load(t, file).sidecar(t)
			for range 10 {
				again := load(t, file).sidecar(t)
				if len(again.Resources) != len(first.Resources) {
					t.Fatalf("%d resources, then %d", len(first.Resources), len(again.Resources))
				}
				for i, r := range again.Resources {
					if f := first.Resources[i]; r.Name != f.Name || !bytes.Equal(r.Any.GetValue(), f.Any.GetValue()) {
						t.Fatalf("resource %d: %q and %q differ", i, f.Name, r.Name)
					}
				}
				if a, b := strings.Join(first.Warnings, "\n"), strings.Join(again.Warnings, "\n"); a != b {
					t.Fatalf("warnings differ:\n%s\n%s", a, b)
				}
			}
		})
	}
}

func TestAnErrorNamesThePolicyThatCausedIt(t *testing.T) {
	tests := []struct{ name, policy, want string }{
		{"a fault with an impossible status", `
type: FaultInjection
mesh: default
name: odd
sources: [{match: {kuma.io/service: "*"}}]
destinations: [{match: {kuma.io/service: web, kuma.io/protocol: http}}]
conf: {abort: {percentage: 10, httpStatus: 5}}`, `FaultInjection "odd"`},
		{"a limit without time", `
type: RateLimit
mesh: default
name: endless
sources: [{match: {kuma.io/service: "*"}}]
destinations: [{match: {kuma.io/service: web}}]
conf: {http: {requests: 5}}`, `RateLimit "endless"`},
		{"a bandwidth without unit", `
type: FaultInjection
mesh: default
name: slow
sources: [{match: {kuma.io/service: "*"}}]
destinations: [{match: {kuma.io/service: web, kuma.io/protocol: http}}]
conf: {responseBandwidth: {percentage: 10, limit: "5"}}`, `FaultInjection "slow"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := parse(t, head+"---"+tt.policy)
			out, err := envoy.Sidecar(w.mesh, w.proxy, w.admin)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "web-1") {
				t.Fatalf("got %v, want an error with %s", err, tt.want)
			}
			if out != nil {
				t.Error("there is a configuration all the same")
			}
		})
	}
}

func TestWhatIsNotDoneIsTold(t *testing.T) {
	const outbound = "  outbound: [{port: 10001, tags: {kuma.io/service: api}}]\n"
	tests := []struct{ name, docs, want string }{
		{"an external service whose secret is missing", outbound + `---
type: TrafficPermission
mesh: default
name: all
sources: [{match: {kuma.io/service: "*"}}]
destinations: [{match: {kuma.io/service: "*"}}]
---
type: ExternalService
mesh: default
name: api
tags: {kuma.io/service: api, kuma.io/protocol: http}
networking: {address: "api.example.org:443", tls: {enabled: true, caCert: {secret: none}}}`, `ExternalService "api": networking.tls.caCert: there is no secret "none"`},
		{"a log to a backend that is not there", outbound + `---
type: TrafficLog
mesh: default
name: all
sources: [{match: {kuma.io/service: "*"}}]
destinations: [{match: {kuma.io/service: "*"}}]
conf: {backend: none}`, `TrafficLog "all": the mesh has no logging backend "none"`},
		{"a trace to a backend that is not there", `---
type: TrafficTrace
mesh: default
name: all
conf: {backend: none}`, `TrafficTrace "all": the mesh has no tracing backend "none"`},
		{"two outbounds at one address", `  outbound: [{port: 1, tags: {kuma.io/service: a}}, {port: 1, tags: {kuma.io/service: b}}]
`, "outbound 127.0.0.1:1 is there twice: the first is used"},
		{"a service of another mesh", `  outbound: [{port: 1, tags: {kuma.io/service: a, kuma.io/mesh: other}}]
`, "outbound a: services of other meshes cannot be reached"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			out := parse(t, head+tt.docs).sidecar(t)
			if got := strings.Join(out.Warnings, "\n"); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestAnExternalServiceWithoutPermissionHasNoEndpoints(t *testing.T) {
	w := load(t, "testdata/external-service/input.yaml")
	for _, ref := range w.sidecar(t).Endpoints {
		if ref.Cluster != "forbidden" {
			continue
		}
		cla, err := envoy.LoadAssignment(w.mesh, ref)
		if err != nil || len(cla.GetEndpoints()) > 0 {
			t.Errorf("got %v, %v", cla, err)
		}
		return
	}
	t.Error("its cluster does not wait for endpoints")
}

func TestServicesNamedByRulesAloneGetTheirPoliciesToo(t *testing.T) {
	out := parse(t, head+`  outbound: [{port: 10001, tags: {kuma.io/service: a}}]
---
type: TrafficRoute
mesh: default
name: all
sources: [{match: {kuma.io/service: "*"}}]
destinations: [{match: {kuma.io/service: "*"}}]
conf:
  http: [{match: {path: {prefix: /b}}, destination: {kuma.io/service: b}}]
  destination: {kuma.io/service: a}
---
type: CircuitBreaker
mesh: default
name: b
sources: [{match: {kuma.io/service: "*"}}]
destinations: [{match: {kuma.io/service: b}}]
conf: {thresholds: {maxConnections: 7}}
`).sidecar(t)
	for _, r := range out.Resources {
		if r.Kind == xds.Cluster && r.Name == "b" {
			if !strings.Contains(fmt.Sprint(r.Message), "max_connections:{value:7}") {
				t.Errorf("cluster b is %v", r.Message)
			}
			return
		}
	}
	t.Error("no cluster b")
}

// manyOutbounds is a proxy with n outbounds, all policies that a mesh has by default, and two instances of each service.
func manyOutbounds(n int) string {
	var b strings.Builder
	b.WriteString(head + "  outbound:\n")
	for i := range n {
		fmt.Fprintf(&b, "    - {port: %d, tags: {kuma.io/service: s%d}}\n", 10000+i, i)
	}
	every := `sources: [{match: {kuma.io/service: "*"}}]
destinations: [{match: {kuma.io/service: "*"}}]
`
	b.WriteString("---\ntype: TrafficPermission\nmesh: default\nname: all\n" + every)
	b.WriteString("---\ntype: TrafficRoute\nmesh: default\nname: all\n" + every +
		`conf: {destination: {kuma.io/service: "*"}, loadBalancer: {roundRobin: {}}}` + "\n")
	b.WriteString("---\ntype: Timeout\nmesh: default\nname: all\n" + every +
		"conf: {connectTimeout: 5s, tcp: {idleTimeout: 1h}, http: {requestTimeout: 15s, idleTimeout: 1h}}\n")
	b.WriteString("---\ntype: Retry\nmesh: default\nname: all\n" + every + "conf: {http: {numRetries: 5, perTryTimeout: 16s}}\n")
	b.WriteString("---\ntype: CircuitBreaker\nmesh: default\nname: all\n" + every + "conf: {thresholds: {maxConnections: 1024}}\n")
	for i := range n {
		for j := range 2 {
			fmt.Fprintf(&b, `---
type: Dataplane
mesh: default
name: s%d-%d
networking: {address: 10.%d.%d.%d, inbound: [{port: 80, tags: {kuma.io/service: s%d, kuma.io/protocol: http}}]}
`, i, j, 1+i/250, i%250, 1+j, i)
		}
	}
	return b.String()
}

func BenchmarkSidecar(b *testing.B) {
	for _, n := range []int{10, 100} {
		b.Run(fmt.Sprintf("outbounds=%d", n), func(b *testing.B) {
			w := parse(b, manyOutbounds(n))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := envoy.Sidecar(w.mesh, w.proxy, w.admin); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkLoadAssignment(b *testing.B) {
	w := parse(b, manyOutbounds(1))
	ref := envoy.EndpointRef{Cluster: "s0", Mesh: "default", Service: "s0"}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := envoy.LoadAssignment(w.mesh, ref); err != nil {
			b.Fatal(err)
		}
	}
}
