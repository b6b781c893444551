package topology

import (
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"pgregory.net/rapid"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

type (
	tags    = map[string]string
	inbound = meshv1.Dataplane_Networking_Inbound
	health  = meshv1.Dataplane_Networking_Inbound_Health
)

func put(typ resource.Type, mesh, name string, spec proto.Message) store.Change {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(spec)
	if err != nil {
		panic(err)
	}
	key := store.Key{Type: string(typ), Mesh: mesh, Name: name}
	return store.Change{Key: key, Record: &store.Record{Key: key, Spec: b}}
}

func gone(typ resource.Type, mesh, name string) store.Change {
	return store.Change{Key: store.Key{Type: string(typ), Mesh: mesh, Name: name}}
}

func meshSpec(change ...func(*meshv1.Mesh)) *meshv1.Mesh {
	m := &meshv1.Mesh{}
	for _, c := range change {
		c(m)
	}
	return m
}

func secured(m *meshv1.Mesh) {
	m.Mtls = &meshv1.Mesh_Mtls{EnabledBackend: "ca-1", Backends: []*meshv1.CertificateAuthorityBackend{{Name: "ca-1", Type: "builtin"}}}
}

func permissive(m *meshv1.Mesh) {
	secured(m)
	m.Mtls.Backends[0].Mode = meshv1.CertificateAuthorityBackend_PERMISSIVE
}

func egress(m *meshv1.Mesh) { m.Routing = &meshv1.Routing{ZoneEgress: true} }

func workload(address string, inbounds ...*inbound) *meshv1.Dataplane {
	return &meshv1.Dataplane{Networking: &meshv1.Dataplane_Networking{Address: address, Inbound: inbounds}}
}

func in(port uint32, t tags) *inbound { return &inbound{Port: port, Tags: t} }

func ingress(zone, address string, port uint32, services ...*meshv1.ZoneIngress_AvailableService) *meshv1.ZoneIngress {
	return &meshv1.ZoneIngress{Zone: zone, AvailableServices: services, Networking: &meshv1.ZoneIngress_Networking{
		Address: "192.168.0.1", Port: 10001, AdvertisedAddress: address, AdvertisedPort: port,
	}}
}

func offered(n uint32, t tags) *meshv1.ZoneIngress_AvailableService {
	return &meshv1.ZoneIngress_AvailableService{Mesh: "default", Instances: n, Tags: t}
}

func outside(address string, t tags) *meshv1.ExternalService {
	return &meshv1.ExternalService{Networking: &meshv1.ExternalService_Networking{Address: address}, Tags: t}
}

func zoneEgress(address string) *meshv1.ZoneEgress {
	return &meshv1.ZoneEgress{Networking: &meshv1.ZoneEgress_Networking{Address: address, Port: 10002}}
}

// short is an endpoint in one line.
func short(e Endpoint) string {
	s := fmt.Sprintf("%s:%d w%d", e.Address, e.Port, e.Weight)
	for _, f := range []struct {
		set  bool
		text string
	}{{e.Zone != "", " in " + e.Zone}, {e.Remote, " remote"}, {e.External != nil, " external " + e.ExternalName}, {e.ViaEgress, " via egress"}} {
		if f.set {
			s += f.text
		}
	}
	return s
}

func shorts(list []Endpoint) []string {
	var out []string
	for _, e := range list {
		out = append(out, short(e))
	}
	return out
}

func TestEndpointsOfAService(t *testing.T) {
	web := tags{"kuma.io/service": "web", "kuma.io/protocol": "http"}
	webIn := func(zone string) tags { return tags{"kuma.io/service": "web", "kuma.io/zone": zone} }
	tests := []struct {
		name     string
		mesh     *meshv1.Mesh
		have     []store.Change
		resolved map[string]string
		want     []string
	}{
		{
			name: "inbounds count while they are healthy or do not say",
			have: []store.Change{
				put(resource.Dataplane, "default", "a", workload("10.0.0.1", in(80, web), &inbound{Port: 81, Tags: web, Health: &health{Ready: true}})),
				put(resource.Dataplane, "default", "b", workload("10.0.0.2", &inbound{Port: 80, Tags: web, Health: &health{}})),
			},
			want: []string{"10.0.0.1:80 w1", "10.0.0.1:81 w1"},
		},
		{
			name: "the advertised address stands before that of the inbound, and that before the proxy's",
			have: []store.Change{
				put(resource.Dataplane, "default", "a", workload("10.0.0.1", &inbound{Address: "10.0.0.9", Port: 80, Tags: web})),
				put(resource.Dataplane, "default", "b", func() *meshv1.Dataplane {
					dp := workload("10.0.0.2", in(80, web))
					dp.Networking.AdvertisedAddress = "10.0.1.2"
					return dp
				}()),
			},
			want: []string{"10.0.0.9:80 w1", "10.0.1.2:80 w1"},
		},
		{
			name: "a host name is resolved, and left out until then",
			have: []store.Change{
				put(resource.Dataplane, "default", "a", workload("a.example", in(80, web))),
				put(resource.Dataplane, "default", "b", workload("b.example", in(80, web))),
			},
			resolved: map[string]string{"b.example": "10.0.0.7"},
			want:     []string{"10.0.0.7:80 w1"},
		},
		{
			name: "ingresses of other zones weigh what is behind them, and what is here weighs as many as there are",
			mesh: meshSpec(secured),
			have: []store.Change{
				put(resource.Dataplane, "default", "a", workload("10.0.0.1", in(80, webIn("zone-1")))),
				put(resource.ZoneIngress, "", "zone-2.i", ingress("zone-2", "1.1.1.2", 10001, offered(3, webIn("zone-2")))),
				put(resource.ZoneIngress, "", "zone-3.i", ingress("zone-3", "1.1.1.3", 10001, offered(5, webIn("zone-3")))),
			},
			want: []string{"1.1.1.2:10001 w3 in zone-2 remote", "1.1.1.3:10001 w5 in zone-3 remote", "10.0.0.1:80 w2 in zone-1"},
		},
		{
			name: "ingresses behind one load balancer count once",
			mesh: meshSpec(secured),
			have: []store.Change{
				put(resource.Dataplane, "default", "a", workload("10.0.0.1", in(80, web))),
				put(resource.ZoneIngress, "", "zone-2.i", ingress("zone-2", "1.1.1.2", 10001, offered(3, webIn("zone-2")))),
				put(resource.ZoneIngress, "", "zone-2.j", ingress("zone-2", "1.1.1.2", 10001, offered(3, webIn("zone-2")))),
			},
			want: []string{"1.1.1.2:10001 w3 in zone-2 remote", "10.0.0.1:80 w1"},
		},
		{
			name: "other zones are not reached without mutual TLS",
			have: []store.Change{
				put(resource.Dataplane, "default", "a", workload("10.0.0.1", in(80, web))),
				put(resource.ZoneIngress, "", "zone-2.i", ingress("zone-2", "1.1.1.2", 10001, offered(3, webIn("zone-2")))),
			},
			want: []string{"10.0.0.1:80 w1"},
		},
		{
			name: "the zone's own ingress and one that does not say where it is reached do not count",
			mesh: meshSpec(secured),
			have: []store.Change{
				put(resource.ZoneIngress, "", "own", ingress("", "1.1.1.1", 10001, offered(3, web))),
				put(resource.ZoneIngress, "", "own2", ingress("zone-1", "1.1.1.1", 10001, offered(3, web))),
				put(resource.ZoneIngress, "", "zone-2.i", ingress("zone-2", "", 0, offered(3, webIn("zone-2")))),
			},
		},
		{
			name: "with an egress other zones are reached through it",
			mesh: meshSpec(secured, egress),
			have: []store.Change{
				put(resource.Dataplane, "default", "a", workload("10.0.0.1", in(80, web))),
				put(resource.ZoneIngress, "", "zone-2.i", ingress("zone-2", "1.1.1.2", 10001, offered(3, webIn("zone-2")))),
				put(resource.ZoneIngress, "", "zone-2.j", ingress("zone-2", "1.1.1.3", 10001, offered(3, webIn("zone-2")))),
				put(resource.ZoneEgress, "", "e", zoneEgress("10.9.0.1")),
				put(resource.ZoneEgress, "", "f", zoneEgress("10.9.0.2")),
			},
			want: []string{"10.0.0.1:80 w2", "10.9.0.1:10002 w1 in zone-2 remote via egress", "10.9.0.2:10002 w1 in zone-2 remote via egress"},
		},
		{
			name: "where the mesh wants an egress and the zone has none, other zones are reached directly",
			mesh: meshSpec(secured, egress),
			have: []store.Change{put(resource.ZoneIngress, "", "zone-2.i", ingress("zone-2", "1.1.1.2", 10001, offered(3, webIn("zone-2"))))},
			want: []string{"1.1.1.2:10001 w3 in zone-2 remote"},
		},
		{
			name: "an external service is reached directly",
			have: []store.Change{put(externalService, "default", "es", outside("example.org:443", web))},
			want: []string{"example.org:443 w1 external es"},
		},
		{
			name: "through an egress where the mesh wants it, also when another zone has it too",
			mesh: meshSpec(secured, egress),
			have: []store.Change{
				put(externalService, "default", "es", outside("example.org:443", webIn("zone-2"))),
				put(resource.ZoneIngress, "", "zone-2.i", ingress("zone-2", "1.1.1.2", 10001, &meshv1.ZoneIngress_AvailableService{
					Mesh: "default", Instances: 1, Tags: webIn("zone-2"), ExternalService: true,
				})),
				put(resource.ZoneEgress, "", "e", zoneEgress("10.9.0.1")),
			},
			want: []string{"10.9.0.1:10002 w1 in zone-2 remote external es via egress"},
		},
		{
			name: "and not at all without an egress",
			mesh: meshSpec(secured, egress),
			have: []store.Change{put(externalService, "default", "es", outside("example.org:443", web))},
		},
		{
			name: "an external service of another zone is not reached directly",
			have: []store.Change{put(externalService, "default", "es", outside("example.org:443", webIn("zone-2")))},
		},
		{
			name: "the older tag names the service too",
			have: []store.Change{put(resource.Dataplane, "default", "a", workload("10.0.0.1", in(80, tags{"service": "web"})))},
			want: []string{"10.0.0.1:80 w1"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := New("zone-1", slog.New(slog.DiscardHandler))
			if tt.mesh == nil {
				tt.mesh = meshSpec()
			}
			w.Apply(append([]store.Change{put(resource.Mesh, "", "default", tt.mesh)}, tt.have...))
			w.SetAddresses(tt.resolved)
			var got []string
			if s := w.Mesh("default").Services["web"]; s != nil {
				got = shorts(s.Endpoints)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestReadinessForTLS(t *testing.T) {
	insight := func(total, issued uint32) store.Change {
		return put(resource.ServiceInsight, "default", "all-services-default", &meshv1.ServiceInsight{Services: map[string]*meshv1.ServiceInsight_Service{
			"web": {Dataplanes: &meshv1.ServiceInsight_Service_DataplaneStat{Total: total}, IssuedBackends: map[string]uint32{"ca-1": issued, "ca-2": 2}},
		}})
	}
	for _, tt := range []struct {
		name    string
		mesh    *meshv1.Mesh
		insight []store.Change
		want    bool
	}{
		{"off without mutual TLS", meshSpec(), []store.Change{insight(2, 2)}, false},
		{"on in a strict mesh", meshSpec(secured), nil, true},
		{"on where all have a certificate", meshSpec(permissive), []store.Change{insight(2, 2)}, true},
		{"off while one lacks it", meshSpec(permissive), []store.Change{insight(2, 1)}, false},
		{"off while nobody has counted", meshSpec(permissive), nil, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := New("zone-1", slog.New(slog.DiscardHandler))
			w.Apply([]store.Change{
				put(resource.Mesh, "", "default", tt.mesh),
				put(resource.Dataplane, "default", "a", workload("10.0.0.1", in(80, tags{"kuma.io/service": "web"}))),
			})
			d := w.Apply(tt.insight)
			if got := w.Mesh("default").Services["web"].TLSReady; got != tt.want {
				t.Errorf("got %t, want %t", got, tt.want)
			}
			if flips := tt.name == "on where all have a certificate"; flips != (len(d.Meshes) == 1) {
				t.Errorf("the change made different: %v", d.Meshes)
			}
		})
	}
}

func TestAProtocolOutlivesTheInstances(t *testing.T) {
	w := New("zone-1", slog.New(slog.DiscardHandler))
	web := tags{"kuma.io/service": "web", "kuma.io/protocol": "grpc"}
	w.Apply([]store.Change{put(resource.Mesh, "", "default", meshSpec()), put(resource.Dataplane, "default", "a", workload("10.0.0.1", in(80, web)))})
	d := w.Apply([]store.Change{put(resource.Dataplane, "default", "a", workload("10.0.0.1", &inbound{Port: 80, Tags: web, Health: &health{}}))})
	if s := w.Mesh("default").Services["web"]; s.Protocol != "grpc" || len(s.Endpoints) != 0 {
		t.Errorf("got protocol %q and %d endpoints", s.Protocol, len(s.Endpoints))
	}
	if md := d.Meshes["default"]; len(md.Services) != 0 || len(md.Endpoints) != 1 {
		t.Errorf("more than endpoints changed: %+v", md)
	}
}

func TestAvailableServicesAreCountedByTheirTags(t *testing.T) {
	w := New("zone-1", slog.New(slog.DiscardHandler))
	v := func(version string) tags { return tags{"kuma.io/service": "web", "version": version} }
	w.Apply([]store.Change{
		put(resource.Mesh, "", "default", meshSpec(secured, egress)),
		put(resource.Mesh, "", "a", meshSpec()),
		put(resource.Dataplane, "default", "a", workload("10.0.0.1", in(80, v("1")), in(81, v("2")))),
		put(resource.Dataplane, "default", "b", workload("10.0.0.2", in(80, v("1")), &inbound{Port: 81, Tags: v("3"), Health: &health{}})),
		put(resource.Dataplane, "a", "c", workload("10.0.0.3", in(80, v("9")))),
		put(externalService, "default", "es", outside("example.org:443", tags{"kuma.io/service": "es", "kuma.io/zone": "zone-1"})),
		put(externalService, "default", "es2", outside("example.org:443", tags{"kuma.io/service": "es2"})),
		put(externalService, "a", "es3", outside("example.org:443", tags{"kuma.io/service": "es3", "kuma.io/zone": "zone-1"})),
	})
	var got []string
	for _, s := range w.AvailableServices() {
		got = append(got, fmt.Sprintf("%s %s %d %t", s.GetMesh(), strings.ReplaceAll(tagString(s.GetTags()), "\x00", " "), s.GetInstances(), s.GetExternalService()))
	}
	want := []string{
		"a kuma.io/service=web version=9  1 false",
		"default kuma.io/service=web version=1  2 false",
		"default kuma.io/service=web version=2  1 false",
		"default kuma.io/service=es kuma.io/zone=zone-1  1 true",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// drawChange draws a change over few names, so that they meet.
func drawChange(t *rapid.T) store.Change {
	mesh := rapid.SampledFrom([]string{"default", "other"}).Draw(t, "mesh")
	name := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "name")
	zone := rapid.SampledFrom([]string{"", "zone-1", "zone-2", "zone-3"}).Draw(t, "zone")
	shape := rapid.IntRange(0, 11).Draw(t, "shape")
	del := rapid.IntRange(0, 3).Draw(t, "del") == 0
	service := []string{"web", "api", "db"}[shape%3]
	tagged := tags{"kuma.io/service": service, "kuma.io/protocol": []string{"http", "grpc", "http2", ""}[shape%4]}
	if zone != "" {
		tagged["kuma.io/zone"] = zone
	}
	put := func(typ resource.Type, mesh, name string, spec proto.Message) store.Change {
		if del {
			return gone(typ, mesh, name)
		}
		return put(typ, mesh, name, spec)
	}
	switch rapid.IntRange(0, 9).Draw(t, "type") {
	case 0:
		return put(resource.Mesh, "", mesh, [](*meshv1.Mesh){meshSpec(), meshSpec(secured), meshSpec(permissive), meshSpec(secured, egress), meshSpec(permissive, egress)}[shape%5])
	case 1:
		return put(externalService, mesh, name, outside([]string{"example.org:443", "1.2.3.4:80", "bad"}[shape%3], tagged))
	case 2:
		s := &meshv1.ServiceInsight_Service{
			Dataplanes:     &meshv1.ServiceInsight_Service_DataplaneStat{Total: uint32(shape % 2)},
			IssuedBackends: map[string]uint32{"ca-1": uint32(shape % 3)},
		}
		return put(resource.ServiceInsight, mesh, resource.ServiceInsightName(mesh), &meshv1.ServiceInsight{Services: map[string]*meshv1.ServiceInsight_Service{service: s}})
	case 3, 4:
		return put(resource.ZoneIngress, "", name, ingress(zone, []string{"1.1.1.1", "1.1.1.2", "in.example", ""}[shape%4], 10001,
			&meshv1.ZoneIngress_AvailableService{Mesh: mesh, Instances: uint32(shape), Tags: tagged},
			&meshv1.ZoneIngress_AvailableService{Mesh: "default", Instances: 2, Tags: tags{"kuma.io/service": "web"}, ExternalService: shape%2 == 0}))
	case 5:
		return put(resource.ZoneEgress, "", name, zoneEgress([]string{"10.9.0.1", "10.9.0.2", "eg.example"}[shape%3]))
	case 6:
		if shape%2 == 0 {
			to := []*meshv1.Selector{{Match: tags{"kuma.io/service": service}}}
			return put(policy.Timeout, mesh, name, &meshv1.Timeout{Sources: to, Destinations: to, Conf: &meshv1.Timeout_Conf{}})
		}
		return put(resource.Secret, mesh, name, &systemv1.Secret{Data: wrapperspb.Bytes([]byte{byte(shape)})})
	default:
		inbounds := []*inbound{in(80, tagged)}
		if shape%3 == 0 {
			inbounds = append(inbounds, &inbound{Port: 81, Tags: tags{"service": "api"}, Health: &health{Ready: shape%2 == 0}}, in(82, nil))
		}
		return put(resource.Dataplane, mesh, name, workload([]string{"10.0.0.1", "10.0.0.2", "dp.example"}[shape%3], inbounds...))
	}
}

// seen is all that a World shows.
type seen struct {
	Meshes    map[string]Mesh
	Ingresses []*Ingress
	Egresses  []*Egress
	Available []*meshv1.ZoneIngress_AvailableService
	Hosts     []string
	Kept      []string // also the meshes that are not there and that something is known of
}

func look(w *World) seen {
	s := seen{
		Meshes: make(map[string]Mesh), Ingresses: w.Ingresses(), Egresses: w.Egresses(), Available: w.AvailableServices(), Hosts: w.Hosts(),
		Kept: slices.Sorted(maps.Keys(w.meshes)),
	}
	for _, m := range w.Meshes() {
		c := *m
		c.Services = maps.Clone(m.Services)
		s.Meshes[m.Name] = c
	}
	return s
}

// comparing compares sets of policies by what is in them: their index follows from it.
var comparing = cmp.Options{protocmp.Transform(), cmp.Transformer("policies", func(s *policy.Set) []policy.Policy {
	var all []policy.Policy
	for _, t := range policy.Types() {
		for _, p := range s.Of(t) {
			all = append(all, policy.Policy{Type: p.Type, Mesh: p.Mesh, Name: p.Name, Spec: p.Spec})
		}
	}
	return all
}), cmpopts.IgnoreUnexported(policy.Policy{})}

// TestAWorldIsThatOfItsState makes random histories and asks that the World that followed them is the one that is made from
// where they led, and that what Dirty does not name is what it was.
func TestAWorldIsThatOfItsState(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		log := slog.New(slog.DiscardHandler)
		w, state := New("zone-1", log), make(map[store.Key]store.Change)
		var resolved map[string]string
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			before := look(w)
			var d *Dirty
			if rapid.IntRange(0, 5).Draw(rt, "resolve") == 0 {
				resolved = map[string]string{"dp.example": rapid.SampledFrom([]string{"", "10.7.0.1", "10.7.0.2"}).Draw(rt, "address")}
				d = w.SetAddresses(resolved)
			} else {
				changes := rapid.SliceOfN(rapid.Custom(drawChange), 1, 4).Draw(rt, "changes")
				for _, c := range changes {
					state[c.Key] = c
				}
				d = w.Apply(changes)
			}
			after := look(w)
			unnamed(rt, before, after, d)
			scratch := New("zone-1", log)
			for _, c := range state {
				if c.Record != nil {
					scratch.Apply([]store.Change{c})
				}
			}
			scratch.SetAddresses(resolved)
			if diff := cmp.Diff(look(scratch), after, comparing); diff != "" {
				rt.Fatalf("from scratch (-) and followed (+) differ:\n%s", diff)
			}
		}
	})
}

// unnamed fails when something is different that d does not name.
func unnamed(t *rapid.T, before, after seen, d *Dirty) {
	for name, m := range after.Meshes {
		old, had := before.Meshes[name]
		md := d.Meshes[name]
		if md != nil && md.Whole {
			continue
		}
		if !had {
			t.Fatalf("mesh %q appeared unnamed", name)
		}
		if md == nil {
			md = newDirty().mesh(name)
		}
		for _, service := range append(slices.Collect(maps.Keys(m.Services)), "web", "api", "db") {
			a, b := old.Services[service], m.Services[service]
			_, endpoints := md.Endpoints[service]
			_, shape := md.Services[service]
			if a != b && !endpoints && !shape {
				t.Fatalf("service %q of %q changed unnamed", service, name)
			}
			if a == b && (endpoints || shape) {
				t.Fatalf("service %q of %q is named and did not change", service, name)
			}
			if !shape && a != nil && (a.Protocol != b.Protocol || a.TLSReady != b.TLSReady || a.External() != b.External()) {
				t.Fatalf("the shape of service %q of %q changed unnamed", service, name)
			}
		}
	}
}
