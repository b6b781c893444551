package envoy_test

import (
	"bytes"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/meridian-mesh/meridian/api/codec"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/zone/envoy"
	"github.com/meridian-mesh/meridian/zone/topology"
)

// world is a zone as the documents of a file describe it.
type world struct {
	mesh  *topology.Mesh
	proxy *envoy.Proxy
	admin *envoy.Admin
}

// settings is the first document of a file: what the proxy told of itself, and what is not a resource.
type settings struct {
	Zone         string
	Proxy        string // the name of its Dataplane
	AdminAddress string `yaml:"adminAddress"`
	AdminPort    uint32 `yaml:"adminPort"`
	DNSPort      uint32 `yaml:"dnsPort"`
	EmptyDNSPort uint32 `yaml:"emptyDnsPort"`
	Features     []string
	VIPs         []topology.VIP `yaml:"vips"`
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
		rec := &store.Record{Key: key, Spec: parsed.Spec, Labels: parsed.Labels, Created: parsed.Created, Modified: parsed.Created}
		changes, records = append(changes, store.Change{Key: key, Record: rec}), append(records, rec)
		if key.Type == "Dataplane" && key.Name == s.Proxy {
			m, err := codec.Spec(d, rec)
			if err != nil {
				t.Fatal(err)
			}
			dp, meshName = m.(*meshv1.Dataplane), key.Mesh
		}
	}
	if dp == nil {
		t.Fatalf("no Dataplane %q", s.Proxy)
	}
	w.Apply(changes)
	mesh := w.Mesh(meshName)
	if mesh == nil {
		t.Fatalf("no mesh %q", meshName)
	}
	mesh.VIPs = s.VIPs
	var errs []error
	if mesh.Policies, errs = policy.NewSet(meshName, slices.Values(records)); len(errs) > 0 {
		t.Fatal(errs)
	}
	out := &world{mesh: mesh, proxy: &envoy.Proxy{
		Mesh: meshName, Name: s.Proxy, Dataplane: dp, AdminAddress: s.AdminAddress, AdminPort: s.AdminPort,
		DNSPort: s.DNSPort, EmptyDNSPort: s.EmptyDNSPort, Features: s.Features,
	}}
	if s.AdminPort != 0 {
		out.admin = &envoy.Admin{Cert: []byte("CERTIFICATE"), Key: []byte("KEY"), CA: []byte("AUTHORITY")}
	}
	return out
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
