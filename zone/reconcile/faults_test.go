package reconcile

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/wrapperspb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/zone/envoy"
	"github.com/meridian-mesh/meridian/zone/topology"
	"github.com/meridian-mesh/meridian/zone/xds"
)

// Clients without a proxy inject the faults of servers, which are chosen by the tags that all servers of the service share. So
// a change of nothing but tags of endpoints changes what clients have besides endpoints.
func TestGRPCClientsHaveTheFaultsOfTheTagsThatAllServersShare(t *testing.T) {
	authority := newAuthority(t)
	server := func(address, version string) *meshv1.Dataplane {
		return workload(address, nil, in(8080, tags{
			"kuma.io/service": "backend", "kuma.io/protocol": "grpc", topology.ProxylessTag: "true", "version": version,
		}))
	}
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) {
			o.Builders = Builders{Sidecar: SidecarBuilder(authority), Proxyless: ProxylessBuilder, LoadAssignment: envoy.LoadAssignment}
		})
		r.start()
		defer func() { r.stop() }()
		r.write(
			put(resource.Mesh, "", "m", &meshv1.Mesh{}),
			put(policy.TrafficRoute, "m", "all", &meshv1.TrafficRoute{
				Sources:      []*meshv1.Selector{{Match: tags{"kuma.io/service": "*"}}},
				Destinations: []*meshv1.Selector{{Match: tags{"kuma.io/service": "*"}}},
				Conf:         &meshv1.TrafficRoute_Conf{Destination: tags{"kuma.io/service": "*"}},
			}),
			put(policy.FaultInjection, "m", "old", &meshv1.FaultInjection{
				Sources:      []*meshv1.Selector{{Match: tags{"kuma.io/service": "web"}}},
				Destinations: []*meshv1.Selector{{Match: tags{"kuma.io/service": "backend", "version": "1", "kuma.io/protocol": "grpc"}}},
				Conf: &meshv1.FaultInjection_Conf{Abort: &meshv1.FaultInjection_Conf_Abort{
					HttpStatus: wrapperspb.UInt32(503), Percentage: wrapperspb.Double(100),
				}},
			}),
			put(resource.Dataplane, "m", "backend-1", server("10.0.0.1", "1")),
			put(resource.Dataplane, "m", "backend-2", server("10.0.0.2", "1")),
			put(resource.Dataplane, "m", "web", workload("10.0.0.3", []string{"backend"}, in(8080, tags{"kuma.io/service": "web"}))),
		)
		web := sidecar("m", "web")
		web.Proxyless = true
		r.r.Connected(web)
		injects := func(when string, want bool) {
			t.Helper()
			time.Sleep(time.Second)
			synctest.Wait()
			config, _ := r.pub.get("m.web")
			if config == nil {
				t.Fatalf("%s: nothing was published: %s", when, r.pub.failure("m.web"))
			}
			var got bool
			for _, res := range config.Resources(xds.Listener) {
				got = got || strings.Contains(string(res.Any.GetValue()), "HTTPFault")
			}
			if got != want {
				t.Errorf("%s: faults are injected: %t, want %t", when, got, want)
			}
		}
		injects("both servers have the tag", true)
		r.write(put(resource.Dataplane, "m", "backend-2", server("10.0.0.2", "2")))
		injects("one has another", false)
		r.write(put(resource.Dataplane, "m", "backend-2", server("10.0.0.2", "1")))
		injects("both have it again", true)
	})
}
