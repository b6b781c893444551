package server

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"google.golang.org/protobuf/types/known/durationpb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// inspectMesh puts a mesh of 1,000 dataplanes of 50 services and 500 policies into the store: of each type about connections some
// that are for everything and some that are for one service, and targetRef policies of each type.
func inspectMesh(b *testing.B, p *plane) {
	b.Helper()
	match := func(service string) []*meshv1.Selector {
		return []*meshv1.Selector{{Match: map[string]string{"kuma.io/service": service}}}
	}
	service := func(i int) string { return fmt.Sprintf("service-%02d", i%50) }
	records := []*store.Record{record(b, resource.Mesh, "", "demo", "", nil)}
	for i := range 1000 {
		n := &meshv1.Dataplane_Networking{Address: fmt.Sprintf("10.0.%d.%d", i/250, i%250)}
		n.Inbound = []*meshv1.Dataplane_Networking_Inbound{{Port: 8080, Tags: map[string]string{
			"kuma.io/service": service(i), "kuma.io/protocol": "http", "kuma.io/zone": "zone-1", "version": fmt.Sprint(i % 3),
		}}}
		if i%10 == 0 {
			n.TransparentProxying = &meshv1.Dataplane_Networking_TransparentProxying{RedirectPortInbound: 15006, RedirectPortOutbound: 15001}
		} else {
			for j := range 5 {
				n.Outbound = append(n.Outbound, &meshv1.Dataplane_Networking_Outbound{
					Port: uint32(10000 + j), Tags: map[string]string{"kuma.io/service": service(i + j + 1)},
				})
			}
		}
		records = append(records, record(b, resource.Dataplane, "demo", fmt.Sprintf("dp-%04d", i), "zone-1", &meshv1.Dataplane{Networking: n}))
	}
	for i := range 500 {
		from, to := match("*"), match("*")
		if i >= 10 {
			to = match(service(i))
		}
		name := fmt.Sprintf("policy-%03d", i)
		var rec *store.Record
		switch i % 10 {
		case 0:
			rec = record(b, "TrafficPermission", "demo", name, "", &meshv1.TrafficPermission{Sources: from, Destinations: to})
		case 1:
			rec = record(b, "TrafficRoute", "demo", name, "", &meshv1.TrafficRoute{
				Sources: from, Destinations: to, Conf: &meshv1.TrafficRoute_Conf{Destination: map[string]string{"kuma.io/service": "*"}},
			})
		case 2:
			rec = record(b, "Timeout", "demo", name, "", &meshv1.Timeout{
				Sources: from, Destinations: to, Conf: &meshv1.Timeout_Conf{ConnectTimeout: &durationpb.Duration{Seconds: 5}},
			})
		case 3:
			rec = record(b, "Retry", "demo", name, "", &meshv1.Retry{Sources: from, Destinations: to})
		case 4:
			rec = record(b, "CircuitBreaker", "demo", name, "", &meshv1.CircuitBreaker{Sources: from, Destinations: to})
		case 5:
			rec = record(b, "HealthCheck", "demo", name, "", &meshv1.HealthCheck{Sources: from, Destinations: to})
		case 6:
			rec = record(b, "RateLimit", "demo", name, "", &meshv1.RateLimit{Sources: from, Destinations: to})
		case 7:
			rec = record(b, "MeshTrafficPermission", "demo", name, "", nil)
			rec.Spec = fmt.Appendf(nil, `{"targetRef":{"kind":"MeshService","name":%q},"from":[{"targetRef":{"kind":"MeshService","name":%q},"default":{"action":"ALLOW"}}]}`,
				service(i), service(i+1))
		case 8:
			rec = record(b, "MeshAccessLog", "demo", name, "", nil)
			rec.Spec = fmt.Appendf(nil, `{"targetRef":{"kind":"MeshService","name":%q},"to":[{"targetRef":{"kind":"Mesh"},"default":{"backends":[{"file":{"path":"/dev/stdout"}}]}}]}`,
				service(i+9)) // so that some proxies have both kinds of rules
		case 9:
			rec = record(b, "TrafficLog", "demo", name, "", &meshv1.TrafficLog{Sources: from, Destinations: to})
		}
		records = append(records, rec)
	}
	p.seed(records...)
}

// BenchmarkInspect is what a client waits for in such a mesh, without the socket. after-write: with a policy written before each
// request, whose write is not counted; first: nothing has been decoded yet.
func BenchmarkInspect(b *testing.B) {
	for _, tc := range []struct{ name, target string }{
		{"policies", "/meshes/demo/dataplanes/dp-0001/policies"},
		{"policies-transparent", "/meshes/demo/dataplanes/dp-0010/policies"},
		{"rules", "/meshes/demo/dataplanes/dp-0007/rules"},
		{"dataplanes-of-one-service", "/meshes/demo/circuit-breakers/policy-014/dataplanes"},
		{"dataplanes-of-all", "/meshes/demo/traffic-permissions/policy-000/dataplanes"},
		{"dataplanes-of-a-rule", "/meshes/demo/meshaccesslogs/policy-018/dataplanes"},
	} {
		b.Run(tc.name, func(b *testing.B) {
			p := newPlane(b, resource.Global)
			inspectMesh(b, p)
			b.Run("unchanged", func(b *testing.B) { benchmarkGet(b, p, tc.target) })
			for _, after := range []struct {
				name    string
				prepare func(i int)
			}{
				{"after-write", func(i int) {
					p.seed(record(b, "Retry", "demo", "written", "", &meshv1.Retry{Conf: &meshv1.Retry_Conf{
						Tcp: &meshv1.Retry_Conf_Tcp{MaxConnectAttempts: uint32(i + 1)},
					}}))
				}},
				{"first", func(int) { p.srv.inspected = newInspected(&p.srv.opts, p.srv.log) }},
			} {
				b.Run(after.name, func(b *testing.B) {
					r := httptest.NewRequest(http.MethodGet, tc.target, http.NoBody)
					r.RemoteAddr, r.Host = "127.0.0.1:1", "localhost"
					w := &sink{header: http.Header{}}
					i := 0
					for b.Loop() {
						b.StopTimer()
						after.prepare(i)
						w.reset()
						b.StartTimer()
						p.srv.Handler().ServeHTTP(w, r)
						if w.status != http.StatusOK {
							b.Fatal(w.status)
						}
						i++
					}
				})
			}
		})
	}
}
