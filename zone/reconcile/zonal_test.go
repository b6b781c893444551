package reconcile

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"pgregory.net/rapid"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/zone/envoy"
	"github.com/meridian-mesh/meridian/zone/mtls"
	"github.com/meridian-mesh/meridian/zone/xds"
)

func zonalBuilders(tb testing.TB) Builders {
	tb.Helper()
	admin := newAuthority(tb)
	return Builders{Sidecar: SidecarBuilder(admin), Ingress: IngressBuilder(admin), Egress: EgressBuilder(admin), LoadAssignment: envoy.LoadAssignment}
}

// TestIngressesAndEgressesAreThoseMadeFromScratch is the property for the proxies of the zone, with their own generators, and with
// what matters to them more often in the histories.
func TestIngressesAndEgressesAreThoseMadeFromScratch(t *testing.T) {
	zonal.areMadeFromScratch(t, zonalBuilders(t))
}

func TestZonalHistoriesFindBugs(t *testing.T) {
	zonal.findBugs(t, zonalBuilders(t), map[string]bug{
		"other endpoints mark nobody":                 lost(causeEndpoints),
		"services that come and go mark nobody":       lost(causeService),
		"policies mark nobody":                        lost(causePolicy),
		"a mesh marks nobody":                         lost(causeMesh),
		"the resource of the proxy itself marks none": lost(causeZone),
		"endpoints once made are current for ever":    func(r *Reconciler) { r.assignments.load = onlyOnce(r.assignments.load) },
		"external services are not followed":          notFollowing("ExternalService"),
	})
}

// zonal histories begin with an ingress and an egress that are connected. Proxies without a configuration are made anew at each change,
// and find no bugs.
var zonal = histories{
	begin: []step{
		{Do: "ingress", Shape: 2}, {Do: "egress"}, {Do: "connect-ingress"}, {Do: "connect-egress"}, {Do: "ingress", Name: 1, Pause: true},
	},
	steps: zonalSteps(),
}

// zonalSteps are histories of what ingresses and egresses are made from.
func zonalSteps() *rapid.Generator[step] {
	return rapid.Custom(func(t *rapid.T) step {
		return step{
			Do: rapid.SampledFrom([]string{
				"mesh", "unmesh", "dp", "dp", "undp", "permission", "zonal-policy", "zonal-policy", "zonal-route", "zonal-route", "unzonal-policy",
				"zonal-external", "zonal-external", "external", "unexternal", "ingress", "ingress", "uningress", "egress", "unegress", "secret",
				"external-secret", "connect", "connect-ingress", "connect-ingress", "connect-egress", "connect-egress", "disconnect-egress", "disconnect-ingress",
			}).Draw(t, "do"),
			Mesh:  rapid.SampledFrom([]int{0, 0, 0, 1}).Draw(t, "mesh"),
			Name:  rapid.IntRange(0, 3).Draw(t, "name"),
			Shape: rapid.IntRange(0, 23).Draw(t, "shape"),
			Pause: rapid.Bool().Draw(t, "pause"),
		}
	})
}

// who is the proxy of a step that connects or disconnects one.
func (s step) who() Connected {
	name := []string{"a", "b", "c", "d"}[s.Name]
	switch {
	case strings.HasSuffix(s.Do, "-ingress"):
		return Connected{NodeID: "ingress." + name, Kind: Ingress, Name: name}
	case strings.HasSuffix(s.Do, "-egress"):
		return Connected{NodeID: "egress." + name, Kind: Egress, Name: name}
	default:
		return sidecar([]string{"m", "o"}[s.Mesh], name)
	}
}

// zonalOperation is what matters to ingresses and egresses more than to sidecars.
func zonalOperation(c *cas, s step) (store.Op, bool) {
	mesh, name := []string{"m", "o"}[s.Mesh], []string{"a", "b", "c", "d"}[s.Name]
	services := []string{"web", "api", "db", "ext", "*"}
	sources := []*meshv1.Selector{{Match: tags{"kuma.io/service": services[s.Shape%5]}}}
	destinations := []*meshv1.Selector{{Match: tags{"kuma.io/service": services[3+s.Shape/3%2], "kuma.io/protocol": "http"}}}
	kinds := []resource.Type{policy.FaultInjection, policy.RateLimit, policy.MeshGatewayRoute, policy.TrafficRoute}
	switch s.Do {
	case "zonal-policy":
		switch s.Shape % 3 {
		case 0:
			return put(policy.FaultInjection, mesh, name, &meshv1.FaultInjection{
				Sources: sources, Destinations: destinations,
				Conf: &meshv1.FaultInjection_Conf{Abort: &meshv1.FaultInjection_Conf_Abort{
					HttpStatus: wrapperspb.UInt32(500), Percentage: wrapperspb.Double(float64(1 + s.Shape)),
				}},
			}), true
		case 1:
			return put(policy.RateLimit, mesh, name, &meshv1.RateLimit{
				Sources: sources, Destinations: destinations,
				Conf: &meshv1.RateLimit_Conf{Http: &meshv1.RateLimit_Conf_Http{
					Requests: uint32(1 + s.Shape), Interval: durationpb.New(time.Second),
				}},
			}), true
		default:
			return put(policy.MeshGatewayRoute, mesh, name, &meshv1.MeshGatewayRoute{
				Conf: &meshv1.MeshGatewayRoute_Conf{
					Route: &meshv1.MeshGatewayRoute_Conf_Tcp{Tcp: &meshv1.MeshGatewayRoute_TcpRoute{
						Rules: []*meshv1.MeshGatewayRoute_TcpRoute_Rule{{Backends: []*meshv1.MeshGatewayRoute_Backend{
							{Weight: 1, Destination: tags{"kuma.io/service": services[s.Shape%4], "color": "blue"}},
						}}},
					}},
				},
			}), true
		}
	case "zonal-route":
		return put(policy.TrafficRoute, mesh, name, &meshv1.TrafficRoute{
			Sources: sources, Destinations: sources,
			Conf: &meshv1.TrafficRoute_Conf{Destination: tags{"kuma.io/service": services[s.Shape%5], "kuma.io/protocol": []string{"http", "*", "grpc"}[s.Shape%3]}},
		}), true
	case "unzonal-policy":
		return del(kinds[s.Shape%4], mesh, name), true
	case "zonal-external":
		es := &meshv1.ExternalService{ // mostly ext, which no workload is
			Tags: tags{"kuma.io/service": services[2+min(s.Shape%4, 1)], "kuma.io/protocol": []string{"http", "tcp"}[s.Shape/3%2]},
			Networking: &meshv1.ExternalService_Networking{
				Address: fmt.Sprintf("1.2.3.%d:443", s.Shape%3),
				Tls: &meshv1.ExternalService_Networking_TLS{Enabled: s.Shape%4 == 1, CaCert: &systemv1.DataSource{
					Type: &systemv1.DataSource_Secret{Secret: "external"},
				}},
			},
		}
		if s.Shape%3 > 0 {
			es.Tags["kuma.io/zone"] = fmt.Sprintf("zone-%d", s.Shape%3)
		}
		return put("ExternalService", mesh, name, es), true
	case "external-secret":
		if s.Shape%3 == 0 {
			return del(resource.Secret, mesh, "external"), true
		}
		return put(resource.Secret, mesh, "external", secretOf(c[s.Shape%2].cert)), true
	}
	return gatewayOperation(c, s)
}

func TestAMeshWithoutAnAuthorityDoesNotStopTheEgressOfOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.Builders = zonalBuilders(t) })
		r.start()
		defer func() { r.stop() }()
		var ops []store.Op
		for _, mesh := range []string{"m", "o"} {
			ops = append(ops, secured(t, mesh)[1:]...)
			spec := withBackends("ca-1", "ca-1")
			spec.Routing = &meshv1.Routing{ZoneEgress: true}
			ops = append(ops, put(resource.Mesh, "", mesh, spec), put("ExternalService", mesh, "ext", &meshv1.ExternalService{
				Tags: tags{"kuma.io/service": "ext"}, Networking: &meshv1.ExternalService_Networking{Address: "1.2.3.4:443"},
			}))
		}
		r.write(append(ops, put(resource.ZoneEgress, "", "a", &meshv1.ZoneEgress{
			Networking: &meshv1.ZoneEgress_Networking{Address: "10.9.0.1", Port: 10002},
		}))...)
		const node = "egress.a"
		r.r.Connected(Connected{NodeID: node, Kind: Egress, Name: "a"})
		settled := func() *xds.Config {
			time.Sleep(time.Second)
			synctest.Wait()
			c, _ := r.pub.get(node)
			return c
		}
		before := settled()
		if got := len(before.Resources(xds.Secret)); got != 4 || r.pub.failure(node) != "" {
			t.Fatalf("%d secrets and failure %q, want 4 and none", got, r.pub.failure(node))
		}

		r.write(del(resource.Secret, "o", "o.ca-builtin-cert-ca-1"), put("ExternalService", "m", "more", &meshv1.ExternalService{
			Tags: tags{"kuma.io/service": "more"}, Networking: &meshv1.ExternalService_Networking{Address: "1.2.3.5:443"},
		}))
		after := settled()
		if after.Get(xds.Cluster, "m:more") == nil {
			t.Error("mesh m is not served its new service")
		}
		for _, name := range []string{mtls.RootsName("o"), mtls.IdentityName("o")} {
			if after.Get(xds.Secret, name) != before.Get(xds.Secret, name) {
				t.Errorf("secret %s is another", name)
			}
		}
		if got := r.pub.failure(node); !strings.Contains(got, `"o"`) {
			t.Errorf("the failure is %q and should name mesh o", got)
		}

		cert, key := authorityPEM(t, "o")
		r.write(put(resource.Secret, "o", "o.ca-builtin-cert-ca-1", secretOf(cert)), put(resource.Secret, "o", "o.ca-builtin-key-ca-1", secretOf(key)))
		if again := settled(); again.Get(xds.Secret, mtls.RootsName("o")) == before.Get(xds.Secret, mtls.RootsName("o")) || r.pub.failure(node) != "" {
			t.Errorf("with a new authority mesh o has its old secrets, or failure %q", r.pub.failure(node))
		}
	})
}

func TestInstancesThatComeAndGoReachIngressesAndEgressesByEndpointsAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.Builders = zonalBuilders(t) })
		r.start()
		defer func() { r.stop() }()
		spec := withBackends("ca-1", "ca-1")
		spec.Routing = &meshv1.Routing{ZoneEgress: true}
		elsewhere := func(instances uint32) store.Op {
			return put(resource.ZoneIngress, "", "zone-2.a", &meshv1.ZoneIngress{
				Zone: "zone-2", Networking: &meshv1.ZoneIngress_Networking{AdvertisedAddress: "1.1.1.1", AdvertisedPort: 10001},
				AvailableServices: []*meshv1.ZoneIngress_AvailableService{{Mesh: "m", Instances: instances, Tags: tags{"kuma.io/service": "far"}}},
			})
		}
		r.write(append(secured(t, "m")[1:], put(resource.Mesh, "", "m", spec), elsewhere(1),
			put(resource.Dataplane, "m", "a", workload("10.0.0.1", nil, in(80, tags{"kuma.io/service": "near"}))),
			put(resource.ZoneIngress, "", "a", &meshv1.ZoneIngress{Networking: &meshv1.ZoneIngress_Networking{Address: "10.8.0.1", Port: 10001}}),
			put(resource.ZoneEgress, "", "a", &meshv1.ZoneEgress{Networking: &meshv1.ZoneEgress_Networking{Address: "10.9.0.1", Port: 10002}}))...)
		r.r.Connected(Connected{NodeID: "ingress.a", Kind: Ingress, Name: "a"})
		r.r.Connected(Connected{NodeID: "egress.a", Kind: Egress, Name: "a"})
		settled := func(node string) *xds.Config {
			time.Sleep(time.Second)
			synctest.Wait()
			c, _ := r.pub.get(node)
			return c
		}
		for node, change := range map[string]store.Op{
			"ingress.a": put(resource.Dataplane, "m", "b", workload("10.0.0.2", nil, in(80, tags{"kuma.io/service": "near"}))),
			"egress.a":  elsewhere(2),
		} {
			before := settled(node)
			r.r.skip = func(c cause) bool { return c != causeEndpoints } // nothing else is to be done
			r.write(change)
			after := settled(node)
			r.r.skip = nil
			for _, kind := range allKinds {
				if same := before.Version(kind) == after.Version(kind); same == (kind == xds.Endpoint) {
					t.Errorf("%s: %s changed: %t", node, kind.TypeURL(), !same)
				}
			}
		}
	})
}
