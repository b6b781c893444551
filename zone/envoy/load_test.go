package envoy_test

import (
	"bytes"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"go.yaml.in/yaml/v3"

	"github.com/meridian-mesh/meridian/api/codec"
	"github.com/meridian-mesh/meridian/api/dataplane"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/zone/envoy"
	"github.com/meridian-mesh/meridian/zone/topology"
)

// world is a zone as the documents of a file describe it.
type world struct {
	mesh  *topology.Mesh
	proxy *envoy.Proxy
	admin *envoy.Admin
	grpc  bool // the proxy is a gRPC program

	// zonal is set where the proxy is an ingress or an egress, and ingress says which.
	zonal   *envoy.ZoneProxy
	ingress bool
	meshes  []*topology.Mesh
}

// settings is the first document of a file: what the proxy told of itself, and what is not a resource.
type settings struct {
	Zone         string
	Proxy        string // the name of its Dataplane, ZoneIngress or ZoneEgress
	AdminAddress string `yaml:"adminAddress"`
	AdminPort    uint32 `yaml:"adminPort"`
	DNSPort      uint32 `yaml:"dnsPort"`
	EmptyDNSPort uint32 `yaml:"emptyDnsPort"`
	Features     []string
	Proxyless    bool            // it is a gRPC program without a proxy
	VIPs         []dataplane.VIP `yaml:"vips"`
}

// load reads a file of YAML documents: settings, then resources as users write them. All resources are created at the same
// time unless they say when.
func load(t testing.TB, file string) *world {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, string(content))
}

func parse(t testing.TB, content string) *world {
	t.Helper()
	docs := strings.Split(content, "\n---\n")
	var s settings
	dec := yaml.NewDecoder(bytes.NewReader([]byte(docs[0])))
	dec.KnownFields(true)
	if err := dec.Decode(&s); err != nil {
		t.Fatalf("settings: %v", err)
	}
	w := topology.New(s.Zone, slog.New(slog.NewTextHandler(t.Output(), nil)))
	var changes []store.Change
	var records []*store.Record
	var meshName string
	var dp *meshv1.Dataplane
	for _, doc := range docs[1:] {
		d, rec := record(t, doc)
		key := rec.Key
		changes, records = append(changes, store.Change{Key: key, Record: rec}), append(records, rec)
		if key.Type == "Dataplane" && key.Name == s.Proxy {
			m, err := codec.Spec(d, rec)
			if err != nil {
				t.Fatal(err)
			}
			dp, meshName = m.(*meshv1.Dataplane), key.Mesh
		}
	}
	w.Apply(changes)
	in, eg := w.Ingress(s.Proxy), w.Egress(s.Proxy)
	if in != nil || eg != nil {
		out := &world{ingress: in != nil, meshes: w.Meshes(), zonal: &envoy.ZoneProxy{
			Zone: s.Zone, Name: s.Proxy, AdminAddress: s.AdminAddress, AdminPort: s.AdminPort,
		}}
		if in != nil {
			out.zonal.Address, out.zonal.Port = in.Spec.GetNetworking().GetAddress(), in.Spec.GetNetworking().GetPort()
		} else {
			out.zonal.Address, out.zonal.Port = eg.Spec.GetNetworking().GetAddress(), eg.Spec.GetNetworking().GetPort()
		}
		out.setAdmin(s)
		return out
	}
	if dp == nil {
		t.Fatalf("no Dataplane %q", s.Proxy)
	}
	mesh := w.Mesh(meshName)
	if mesh == nil {
		t.Fatalf("no mesh %q", meshName)
	}
	mesh.VIPs = s.VIPs
	var errs []error
	if mesh.Policies, errs = policy.NewSet(meshName, slices.Values(records)); len(errs) > 0 {
		t.Fatal(errs)
	}
	out := &world{mesh: mesh, grpc: s.Proxyless, proxy: &envoy.Proxy{
		Mesh: meshName, Name: s.Proxy, Dataplane: dp, AdminAddress: s.AdminAddress, AdminPort: s.AdminPort,
		DNSPort: s.DNSPort, EmptyDNSPort: s.EmptyDNSPort, Features: s.Features,
	}}
	out.setAdmin(s)
	return out
}

// record reads a resource as users write it.
func record(t testing.TB, doc string) (*resource.Descriptor, *store.Record) {
	t.Helper()
	d, parsed, err := codec.DecodeAny("application/yaml", []byte(doc))
	if err != nil {
		t.Fatalf("%s %s: %v", parsed.Type, parsed.Name, err)
	}
	if len(parsed.Unknown) > 0 {
		t.Fatalf("%s %s: unknown fields %v", parsed.Type, parsed.Name, parsed.Unknown)
	}
	if parsed.Created.IsZero() {
		parsed.Created = time.Unix(1_700_000_000, 0)
	}
	key := store.Key{Type: string(d.Name), Mesh: parsed.Mesh, Name: parsed.Name}
	return d, &store.Record{Key: key, Spec: parsed.Spec, Labels: parsed.Labels, Created: parsed.Created, Modified: parsed.Created}
}

func (w *world) setAdmin(s settings) {
	if s.AdminPort != 0 {
		w.admin = &envoy.Admin{Cert: []byte("CERTIFICATE"), Key: []byte("KEY"), CA: []byte("AUTHORITY")}
	}
}

// output makes the configuration of whatever the proxy is.
func (w *world) output(t testing.TB) *envoy.Output {
	t.Helper()
	if w.grpc {
		out, err := envoy.Proxyless(w.mesh, w.proxy)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if w.zonal == nil && w.proxy.Dataplane.GetNetworking().GetGateway().GetType() == meshv1.Dataplane_Networking_Gateway_BUILTIN {
		out, err := envoy.Gateway(w.mesh, w.proxy, w.admin)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	if w.zonal == nil {
		return w.sidecar(t)
	}
	generate := envoy.Egress
	if w.ingress {
		generate = envoy.Ingress
	}
	out, err := generate(w.meshes, w.zonal, w.admin)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// assignments makes the endpoints of the clusters of a configuration, in the order of their names.
func (w *world) assignments(t testing.TB, out *envoy.Output) []*endpointv3.ClusterLoadAssignment {
	t.Helper()
	var all []*endpointv3.ClusterLoadAssignment
	for _, ref := range out.Endpoints {
		mesh := w.mesh
		for _, m := range w.meshes {
			if m.Name == ref.Mesh {
				mesh = m
			}
		}
		cla, err := envoy.LoadAssignment(mesh, ref)
		if err != nil {
			t.Fatal(err)
		}
		if n := len(all); n > 0 && all[n-1].GetClusterName() == ref.Cluster {
			all[n-1] = envoy.Join(ref.Cluster, []*endpointv3.ClusterLoadAssignment{all[n-1], cla})
			continue
		}
		all = append(all, cla)
	}
	return all
}

// sidecar makes the configuration, and fails when there is none.
func (w *world) sidecar(t testing.TB) *envoy.Output {
	t.Helper()
	out, err := envoy.Sidecar(w.mesh, w.proxy, w.admin)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
