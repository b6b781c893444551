package reconcile

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"pgregory.net/rapid"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/zone/envoy"
	"github.com/meridian-mesh/meridian/zone/xds"
)

func gatewayBuilders(tb testing.TB) Builders {
	tb.Helper()
	admin := newAuthority(tb)
	return Builders{Sidecar: SidecarBuilder(admin), Gateway: GatewayBuilder(admin), LoadAssignment: envoy.LoadAssignment}
}

// TestGatewaysAreThoseMadeFromScratch is the property for builtin gateways, with their own generator, and with what matters to them
// more often in the histories.
func TestGatewaysAreThoseMadeFromScratch(t *testing.T) {
	ofGateways.areMadeFromScratch(t, gatewayBuilders(t))
}

func TestGatewayHistoriesFindBugs(t *testing.T) {
	builders := gatewayBuilders(t)
	ofGateways.findBugs(t, builders, map[string]bug{
		"policies mark nobody":                     lost(causePolicy),
		"secrets mark nobody":                      lost(causeSecret),
		"a service's other form marks nobody":      lost(causeService),
		"other endpoints mark nobody":              lost(causeEndpoints),
		"a dataplane marks nobody":                 lost(causeDataplane),
		"gateways are not followed":                notFollowing(policy.MeshGateway),
		"routes of gateways are not followed":      notFollowing(policy.MeshGatewayRoute),
		"endpoints once made are current for ever": func(r *Reconciler) { r.assignments.load = onlyOnce(r.assignments.load) },
		"gateways are made like sidecars": func(r *Reconciler) {
			made := make(map[string]bool) // from the second time on
			var mu sync.Mutex
			r.builders.Gateway = func(in *Input) (*envoy.Output, error) {
				mu.Lock()
				defer mu.Unlock()
				if made[in.Proxy.NodeID] {
					return builders.Sidecar(in)
				}
				made[in.Proxy.NodeID] = true
				return builders.Gateway(in)
			}
		},
	})
}

// ofGateways are histories that begin with a gateway that is connected and serves something.
var ofGateways = histories{
	begin: []step{
		{Do: "edge", Name: 3}, {Do: "gateway"}, {Do: "gateway-route"}, {Do: "gateway-certificate", Shape: 1}, {Do: "connect", Name: 3, Pause: true},
	},
	steps: gatewaySteps(),
}

// gatewaySteps are histories of what gateways are made from.
func gatewaySteps() *rapid.Generator[step] {
	return rapid.Custom(func(t *rapid.T) step {
		return step{
			Do: rapid.SampledFrom([]string{
				"mesh", "dp", "dp", "undp", "edge", "edge", "gateway", "gateway", "gateway", "ungateway", "gateway-route", "gateway-route", "gateway-route",
				"ungateway-route", "gateway-policy", "gateway-policy", "ungateway-policy", "gateway-certificate", "permission", "external", "unexternal",
				"egress", "unegress", "ingress", "insight", "connect", "connect", "disconnect",
			}).Draw(t, "do"),
			Mesh:  rapid.SampledFrom([]int{0, 0, 0, 1}).Draw(t, "mesh"),
			Name:  rapid.IntRange(0, 3).Draw(t, "name"),
			Shape: rapid.IntRange(0, 23).Draw(t, "shape"),
			Pause: rapid.Bool().Draw(t, "pause"),
		}
	})
}

// gatewayOperation is what matters to builtin gateways alone. The services there are those of the other operations.
func gatewayOperation(c *cas, s step) (store.Op, bool) {
	mesh, name := []string{"m", "o"}[s.Mesh], []string{"a", "b", "c", "d"}[s.Name]
	services := []string{"web", "api", "db", "ext"}
	edge := []*meshv1.Selector{{Match: tags{"kuma.io/service": []string{"edge", "edge", "*"}[s.Shape%3]}}}
	switch s.Do {
	case "edge":
		return put(resource.Dataplane, mesh, name, &meshv1.Dataplane{Networking: &meshv1.Dataplane_Networking{
			Address: "10.0.1." + string(rune('1'+s.Name)),
			Gateway: &meshv1.Dataplane_Networking_Gateway{
				Type: meshv1.Dataplane_Networking_Gateway_BUILTIN, Tags: tags{"kuma.io/service": "edge", "version": []string{"1", "2"}[s.Shape%2]},
			},
		}}), true
	case "gateway":
		return put(policy.MeshGateway, mesh, name, shapeOfGateway(s.Shape, edge)), true
	case "ungateway":
		return del(policy.MeshGateway, mesh, name), true
	case "gateway-route":
		selector := []*meshv1.Selector{{Match: tags{"kuma.io/service": "edge"}}}
		if s.Shape%4 == 3 {
			selector[0].Match["listener"] = "x"
		}
		return put(policy.MeshGatewayRoute, mesh, name, &meshv1.MeshGatewayRoute{Selectors: selector, Conf: shapeOfGatewayRoute(s.Shape, services)}), true
	case "ungateway-route":
		return del(policy.MeshGatewayRoute, mesh, name), true
	case "gateway-policy":
		sources := []*meshv1.Selector{{Match: []tags{{"kuma.io/service": "edge"}, {"listener": "x"}, {"kuma.io/service": "web"}}[s.Shape%3]}}
		destinations := []*meshv1.Selector{{Match: tags{"kuma.io/service": services[s.Shape/3%4]}}}
		switch s.Shape / 6 {
		case 0:
			return put(policy.Timeout, mesh, name, &meshv1.Timeout{
				Sources: sources, Destinations: destinations, Conf: &meshv1.Timeout_Conf{ConnectTimeout: durationpb.New(time.Duration(1+s.Shape) * time.Second)},
			}), true
		case 1:
			return put(policy.RateLimit, mesh, name, &meshv1.RateLimit{
				Sources: sources, Destinations: destinations, Conf: &meshv1.RateLimit_Conf{Http: &meshv1.RateLimit_Conf_Http{
					Requests: uint32(1 + s.Shape), Interval: durationpb.New(time.Second),
				}},
			}), true
		case 2:
			destinations[0].Match["kuma.io/protocol"] = "http"
			return put(policy.FaultInjection, mesh, name, &meshv1.FaultInjection{
				Sources: sources, Destinations: destinations, Conf: &meshv1.FaultInjection_Conf{Abort: &meshv1.FaultInjection_Conf_Abort{
					HttpStatus: wrapperspb.UInt32(500), Percentage: wrapperspb.Double(float64(1 + s.Shape)),
				}},
			}), true
		default:
			return put(policy.CircuitBreaker, mesh, name, &meshv1.CircuitBreaker{
				Sources: sources, Destinations: destinations, Conf: &meshv1.CircuitBreaker_Conf{Thresholds: &meshv1.CircuitBreaker_Conf_Thresholds{
					MaxConnections: wrapperspb.UInt32(uint32(1 + s.Shape)),
				}},
			}), true
		}
	case "ungateway-policy":
		return del([]resource.Type{policy.Timeout, policy.RateLimit, policy.FaultInjection, policy.CircuitBreaker}[s.Shape%4], mesh, name), true
	case "gateway-certificate":
		if s.Shape%3 == 0 {
			return del(resource.Secret, mesh, "edge"), true
		}
		return put(resource.Secret, mesh, "edge", secretOf(slices.Concat(c[s.Shape%2].cert, c[s.Shape%2].key))), true
	}
	return store.Op{}, false
}

func shapeOfGateway(n int, selectors []*meshv1.Selector) *meshv1.MeshGateway {
	certificate := &systemv1.DataSource{Type: &systemv1.DataSource_Secret{Secret: "edge"}}
	listeners := []*meshv1.MeshGateway_Listener{
		{Port: 80, Protocol: meshv1.MeshGateway_Listener_HTTP, Hostname: []string{"", "a.example", "*.example"}[n%3]},
		{Port: 90, Protocol: meshv1.MeshGateway_Listener_TCP},
		{Port: 443, Protocol: meshv1.MeshGateway_Listener_HTTPS, Tls: &meshv1.MeshGateway_TLS_Conf{
			Mode: meshv1.MeshGateway_TLS_TERMINATE, Certificates: []*systemv1.DataSource{certificate},
		}},
	}
	if n%2 == 0 {
		listeners[n%3].Tags = tags{"listener": "x"}
	}
	return &meshv1.MeshGateway{Selectors: selectors, Conf: &meshv1.MeshGateway_Conf{Listeners: listeners[n/8:]}}
}

func shapeOfGatewayRoute(n int, services []string) *meshv1.MeshGatewayRoute_Conf {
	backends := []*meshv1.MeshGatewayRoute_Backend{{Weight: 1, Destination: tags{"kuma.io/service": services[n%4]}}}
	if n%5 == 0 {
		backends = append(backends, &meshv1.MeshGatewayRoute_Backend{Weight: 2, Destination: tags{"kuma.io/service": services[n/4%4], "kuma.io/protocol": "http"}})
	}
	if n%3 == 0 {
		return &meshv1.MeshGatewayRoute_Conf{Route: &meshv1.MeshGatewayRoute_Conf_Tcp{Tcp: &meshv1.MeshGatewayRoute_TcpRoute{
			Rules: []*meshv1.MeshGatewayRoute_TcpRoute_Rule{{Backends: backends}},
		}}}
	}
	return &meshv1.MeshGatewayRoute_Conf{Route: &meshv1.MeshGatewayRoute_Conf_Http{Http: &meshv1.MeshGatewayRoute_HttpRoute{
		Hostnames: [][]string{nil, {"a.example"}, {"*.example", "b.example"}}[n/2%3],
		Rules:     []*meshv1.MeshGatewayRoute_HttpRoute_Rule{{Backends: backends}},
	}}}
}

func TestACertificateOfAGatewayIsReplaced(t *testing.T) {
	cas := newCAs(t)
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(o *Options) { o.Builders = gatewayBuilders(t) })
		r.start()
		defer func() { r.stop() }()
		begin := func(do string, shape int) store.Op {
			op, ok := gatewayOperation(cas, step{Do: do, Shape: shape})
			if !ok {
				t.Fatal(do)
			}
			return op
		}
		r.write(put(resource.Mesh, "", "m", &meshv1.Mesh{}), begin("edge", 0), begin("gateway", 0), begin("gateway-route", 1))
		r.r.Connected(sidecar("m", "a"))
		served := func(when, want string) {
			t.Helper()
			time.Sleep(time.Second)
			synctest.Wait()
			config, _ := r.pub.get("m.a")
			if config == nil {
				t.Fatalf("%s: nothing is published: %s", when, r.pub.failure("m.a"))
			}
			var got string
			for _, s := range config.Resources(xds.Secret) {
				if s.Name != "cert.ecdsa:secret:edge" {
					t.Errorf("%s: secret %q", when, s.Name)
				}
				got = string(s.Message.(*tlsv3.Secret).GetTlsCertificate().GetCertificateChain().GetInlineBytes())
			}
			if got != want {
				t.Errorf("%s: the certificate is %q, want %q", when, got, want)
			}
			for _, k := range []xds.Kind{xds.Listener, xds.Cluster, xds.Route} {
				for _, res := range config.Resources(k) {
					if strings.Contains(string(res.Any.GetValue()), "PRIVATE KEY") {
						t.Errorf("%s: %s has a private key", when, res.Name)
					}
				}
			}
		}
		served("there is no secret", "")
		r.write(begin("gateway-certificate", 1))
		served("there is one", string(cas[1].cert))
		r.write(begin("gateway-certificate", 2))
		served("it is another", string(cas[0].cert))
		r.write(begin("gateway-certificate", 0))
		served("it is gone", "")
	})
}
