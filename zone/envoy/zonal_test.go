package envoy_test

import (
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/zone/envoy"
	"github.com/meridian-mesh/meridian/zone/envoy/envoytest"
	"github.com/meridian-mesh/meridian/zone/topology"
)

// read makes an oracle of a configuration.
func (w *world) read(t testing.TB, out *envoy.Output) *envoytest.Config {
	t.Helper()
	var all []proto.Message
	for _, r := range out.Resources {
		all = append(all, r.Message)
	}
	for _, cla := range w.assignments(t, out) {
		all = append(all, cla)
	}
	return envoytest.New(all)
}

// ends says where a connection to a listener ends: the addresses, or why nowhere.
func ends(t testing.TB, c *envoytest.Config, listener string, conn envoytest.Connection, req *envoytest.Request) (string, envoytest.Outcome) {
	t.Helper()
	out, err := c.Ask(listener, conn, req)
	if err != nil {
		t.Fatal(err)
	}
	if out.Refused != "" {
		return "refused: " + out.Refused, out
	}
	var to []string
	for cluster := range out.Destinations {
		endpoints, err := c.Endpoints(cluster, out.Subset)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range endpoints {
			text := fmt.Sprintf("%s*%d", e.Address, e.Weight)
			if e.Upstream.TLS {
				text += " TLS " + e.Upstream.SNI
			}
			to = append(to, text)
		}
	}
	slices.Sort(to)
	return strings.Join(to, " "), out
}

// TestServerNamesLeadToTheRightEndpoints asks the configurations of the golden cases.
func TestServerNamesLeadToTheRightEndpoints(t *testing.T) {
	web := []string{"spiffe://default/web", "kuma://kuma.io/service/web"}
	batch := []string{"spiffe://default/batch", "kuma://kuma.io/service/batch", "kuma://kuma.io/zone/zone-1"}
	other := []string{"spiffe://other/web", "kuma://kuma.io/service/web"}
	for _, c := range []struct {
		file, name string
		sni        string
		as         []string // nil: the client presents no certificate, as far as the proxy sees
		want       string
	}{
		{"ingress", "a service has the instances of its mesh", "backend{mesh=default}", nil, "10.0.0.1:8080*1 10.0.0.2:8080*1"},
		{"ingress", "one of the same name in another mesh has others", "backend{mesh=other}", nil, "10.0.0.3:8080*1"},
		{"ingress", "what is down leads nowhere", "down{mesh=default}", nil, ""},
		{"ingress", "what other zones have is not passed on", "elsewhere{mesh=default}", nil, "refused: no filter chain"},
		{"ingress", "a mesh without the service has none", "down{mesh=other}", nil, "refused: no filter chain"},
		{"ingress-without-services", "nothing is offered", "backend{mesh=default}", nil, "refused: no filters"},
		{"ingress-subsets", "the whole service", "backend{mesh=default}", nil, "10.0.0.1:8080*1 10.0.0.2:8080*1"},
		{"ingress-subsets", "a part by one tag", "backend{mesh=default,version=v1}", nil, "10.0.0.1:8080*1"},
		{"ingress-subsets", "a part by two tags", "backend{mesh=default,region=eu,version=v2}", nil, "10.0.0.2:8080*1"},
		{"ingress-subsets", "a part without instances leads nowhere", "backend{mesh=default,version=v3}", nil, ""},
		{"ingress-subsets", "a part that no route leads to is not served", "backend{mesh=default,region=eu}", nil, "refused: no filter chain"},
		{"ingress-external-service", "an external service of the zone is behind the egress", "api{mesh=default}", nil, "10.0.2.1:10002*1"},
		{"ingress-external-service", "one of no zone is not offered", "anywhere{mesh=default}", nil, "refused: no filter chain"},
		{"egress-remote", "a service of other zones", "backend{mesh=default}", nil, "192.0.2.2:10001*1 192.0.2.2:10001*3 192.0.2.3:10001*2"},
		{"egress-remote", "a part of it", "backend{mesh=default,version=v2}", nil, "192.0.2.2:10001*1 192.0.2.3:10001*2"},
		{"egress-remote", "a mesh that does not use egresses", "backend{mesh=direct}", nil, "refused: no filter chain"},
		{"egress-remote", "an external service of another zone", "api{mesh=default}", nil, "192.0.2.2:10001*1"},
		{"egress-external-tcp", "a client with permission", "db{mesh=default}", web, "192.0.2.7:5432*1"},
		{"egress-external-tcp", "a client without", "db{mesh=default}", batch, "refused: rbac"},
		{"egress-external-tcp", "a client of another mesh", "db{mesh=default}", other, "refused: client certificate of another mesh"},
		{"egress-external-tcp", "a client without a certificate", "db{mesh=default}", nil, "refused: no client certificate"},
		{"egress-external-tcp", "what nobody may reach", "forbidden{mesh=default}", web, "refused: rbac"},
		{"egress-external-tcp", "the other mesh's service of the name has no permission", "db{mesh=other}", other, "refused: rbac"},
		{"egress-external-tcp", "a service with workloads", "mixed{mesh=default}", web, "refused: no filter chain"},
		{"egress-external-http", "one of the two", "api{mesh=default,version=v1}", web, "api-1.example.org:80*1"},
		{"egress-external-http", "the other is for others", "api{mesh=default,version=v2}", web, "refused: rbac"},
		{"egress-external-http", "who may reach the other", "api{mesh=default,version=v2}", batch, "api-2.example.org:80*1"},
		{"egress-external-http", "both at once need both permissions", "api{mesh=default}", web, "refused: rbac"},
		{"egress-external-http", "no permission at all", "closed{mesh=default}", web, "refused: rbac"},
		{"egress-external-tls", "TLS of the external service", "api{mesh=default}", web, "api.example.org:443*1 TLS www.example.org"},
		{"egress-external-tls", "TLS that cannot be made is not left out", "lost{mesh=default}", web, ""},
		{"egress-external-tls", "one of two zones is served here", "both{mesh=default}", web, "192.0.2.1:80*1"},
		{"egress-external-tls", "the part in the other zone is passed on", "both{kuma.io/zone=zone-2,mesh=default}", nil, "192.0.2.2:10001*1"},
	} {
		t.Run(c.file+"/"+c.name, func(t *testing.T) {
			w := load(t, filepath.Join("testdata", c.file, "input.yaml"))
			config := w.read(t, w.output(t))
			got, _ := ends(t, config, fmt.Sprintf("inbound:%s:%d", w.zonal.Address, w.zonal.Port),
				envoytest.Connection{TLS: true, ServerName: c.sni, ALPN: []string{"kuma"}, Identities: c.as}, &envoytest.Request{Method: "GET", Path: "/"})
			if got != c.want {
				t.Errorf("%s leads to %q, want %q", c.sni, got, c.want)
			}
		})
	}
}

func TestAnEgressAppliesThePoliciesOfExternalServicesToRequests(t *testing.T) {
	w := load(t, filepath.Join("testdata", "egress-external-http", "input.yaml"))
	config := w.read(t, w.output(t))
	ask := func(sni string, as []string, header string) envoytest.Outcome {
		_, out := ends(t, config, "inbound:10.0.2.1:10002", envoytest.Connection{TLS: true, ServerName: sni, Identities: as},
			&envoytest.Request{Method: "GET", Path: "/", Headers: map[string]string{"x-kuma-tags": header}})
		return out
	}
	web := ask("api{mesh=default,version=v1}", []string{"spiffe://default/web"}, "&kuma.io/service=web&")
	if n := len(web.Faults); n != 1 || web.RateLimit.GetTokenBucket().GetMaxTokens() != 10 {
		t.Errorf("web has %d faults and the limit %v, want 1 and its own", n, web.RateLimit)
	}
	if !web.RewritesHost || web.Timeout == nil || *web.Timeout != 0 {
		t.Errorf("the host is rewritten: %t, timeout %v; want true and none", web.RewritesHost, web.Timeout)
	}
	batch := ask("api{mesh=default,version=v2}", []string{"spiffe://default/batch", "kuma://kuma.io/zone/zone-1"}, "&kuma.io/service=batch&")
	if n := len(batch.Faults); n != 0 || batch.RateLimit.GetStatus().GetCode() != 423 {
		t.Errorf("batch has %d faults and the limit %v, want none and everyone's", n, batch.RateLimit)
	}
}

func TestAnEgressHasOnePairOfSecretsPerMesh(t *testing.T) {
	for file, want := range map[string][]string{
		"egress-external-http": {"identity_cert:secret:default", "mesh_ca:secret:default"},
		"egress-external-tcp": {
			"identity_cert:secret:default", "identity_cert:secret:other", "mesh_ca:secret:default", "mesh_ca:secret:other",
		},
		"egress-remote": nil, // nothing ends here
		"ingress":       nil,
	} {
		w := load(t, filepath.Join("testdata", file, "input.yaml"))
		if diff := cmp.Diff(want, w.output(t).Secrets); diff != "" {
			t.Errorf("%s (-want +got):\n%s", file, diff)
		}
	}
}

// Two zones that share a mesh and its policies. Zone 1 has the client; zone 2 a service in two versions and an external service.
const (
	sharedByZones = `type: Mesh
name: default
mtls: {enabledBackend: ca-1, backends: [{name: ca-1, type: builtin}]}
routing: {zoneEgress: EGRESS}
---
type: TrafficRoute
mesh: default
name: backend
sources: [{match: {kuma.io/service: "*"}}]
destinations: [{match: {kuma.io/service: backend}}]
conf: {destination: {kuma.io/service: backend, version: v2}}
---
type: TrafficRoute
mesh: default
name: all
sources: [{match: {kuma.io/service: "*"}}]
destinations: [{match: {kuma.io/service: "*"}}]
conf: {destination: {kuma.io/service: "*"}}
---
type: TrafficPermission
mesh: default
name: web
sources: [{match: {kuma.io/service: web}}]
destinations: [{match: {kuma.io/service: "*"}}]
---
type: ExternalService
mesh: default
name: api
tags: {kuma.io/service: api, kuma.io/protocol: http, kuma.io/zone: zone-2}
networking: {address: "192.0.2.99:80"}`
	clientZone = `type: Dataplane
mesh: default
name: web-1
networking:
  address: 10.1.0.1
  inbound: [{port: 80, tags: {kuma.io/service: web, kuma.io/zone: zone-1}}]
  outbound: [{port: 1, tags: {kuma.io/service: backend}}, {port: 2, tags: {kuma.io/service: api}}]
---
type: ZoneEgress
name: egress-1
networking: {address: 10.1.0.3, port: 10002}`
	serverZone = `type: Dataplane
mesh: default
name: backend-1
networking:
  address: 10.2.0.1
  inbound: [{port: 80, tags: {kuma.io/service: backend, version: v1, kuma.io/protocol: http, kuma.io/zone: zone-2}}]
---
type: Dataplane
mesh: default
name: backend-2
networking:
  address: 10.2.0.2
  inbound: [{port: 80, tags: {kuma.io/service: backend, version: v2, kuma.io/protocol: http, kuma.io/zone: zone-2}}]
---
type: ZoneIngress
name: ingress-2
networking: {address: 10.2.0.4, port: 10001, advertisedAddress: 203.0.113.2, advertisedPort: 20001}
---
type: ZoneEgress
name: egress-2
networking: {address: 10.2.0.3, port: 10002}`
)

func zone(t *testing.T, name string, docs ...string) *topology.World {
	t.Helper()
	w := topology.New(name, slog.New(slog.NewTextHandler(t.Output(), nil)))
	var changes []store.Change
	for _, doc := range docs {
		for one := range strings.SplitSeq(doc, "\n---\n") {
			_, rec := record(t, one)
			changes = append(changes, store.Change{Key: rec.Key, Record: rec})
		}
	}
	w.Apply(changes)
	return w
}

// TestConnectionsReachOtherZones follows connections of a client in one zone from proxy to proxy until they leave the last, with
// and without egresses.
func TestConnectionsReachOtherZones(t *testing.T) {
	for _, c := range []struct {
		egress bool
		port   int
		want   []string
	}{
		{false, 1, []string{"203.0.113.2:20001", "10.2.0.2:80", "10.2.0.2:80"}},
		{false, 2, []string{}}, // of another zone, and no egress to go through
		{true, 1, []string{"10.1.0.3:10002", "203.0.113.2:20001", "10.2.0.2:80", "10.2.0.2:80"}},
		{true, 2, []string{"10.1.0.3:10002", "203.0.113.2:20001", "10.2.0.3:10002", "192.0.2.99:80"}},
	} {
		t.Run(fmt.Sprintf("to outbound %d, egress %t", c.port, c.egress), func(t *testing.T) {
			shared := strings.Replace(sharedByZones, "EGRESS", fmt.Sprint(c.egress), 1)
			w2 := zone(t, "zone-2", shared, serverZone)
			w1 := zone(t, "zone-1", shared, clientZone)
			// What zone 2 offers comes to zone 1 in its ingress.
			offered := proto.Clone(w2.Ingress("ingress-2").Spec).(*meshv1.ZoneIngress)
			offered.Zone, offered.AvailableServices = "zone-2", w2.AvailableServices()
			spec, err := proto.Marshal(offered)
			if err != nil {
				t.Fatal(err)
			}
			key := store.Key{Type: "ZoneIngress", Name: "zone-2.ingress-2"}
			w1.Apply([]store.Change{{Key: key, Record: &store.Record{Key: key, Spec: spec, Origin: "zone-2"}}})

			n := network{"203.0.113.2:20001": ingressOf(t, w2, "zone-2", "ingress-2")}
			n["10.1.0.3:10002"] = egressOf(t, w1, "zone-1", "egress-1")
			n["10.2.0.3:10002"] = egressOf(t, w2, "zone-2", "egress-2")
			n["10.2.0.2:80"] = sidecarOf(t, w2, "backend-2")
			if diff := cmp.Diff(c.want, n.follow(t, sidecarOf(t, w1, "web-1"), fmt.Sprintf("outbound:127.0.0.1:%d", c.port))); diff != "" {
				t.Errorf("the way (-want +got):\n%s", diff)
			}
		})
	}
}

// node is a proxy that others can reach: the listener for that, and whose certificate it shows.
type node struct {
	config   *envoytest.Config
	listener string
	identity string
}

// network has the proxies by their addresses.
type network map[string]node

// follow is the way that a connection of a client takes, until it is handed to a workload or the world outside.
func (n network) follow(t *testing.T, client node, outbound string) []string {
	t.Helper()
	way := []string{}
	at, listener, conn := client, outbound, envoytest.Connection{}
	var peers func(string) bool // who may end the encryption
	for range 10 {
		req := &envoytest.Request{Method: "GET", Path: "/"}
		out, err := at.config.Ask(listener, conn, req)
		if err != nil || out.Refused != "" {
			t.Fatalf("after %v: refused: %s %v", way, out.Refused, err)
		}
		if conn.TLS && !passes(at, conn) {
			if !peers(at.identity) {
				t.Fatalf("after %v: %s is not whom the client expects", way, at.identity)
			}
			conn = envoytest.Connection{}
		}
		cluster := slices.Collect(maps.Keys(out.Destinations))[0]
		endpoints, err := at.config.Endpoints(cluster, out.Subset)
		if err != nil || len(endpoints) == 0 {
			return way
		}
		e := endpoints[0]
		way = append(way, e.Address)
		if e.Upstream.TLS {
			conn = envoytest.Connection{TLS: true, ServerName: e.Upstream.SNI, ALPN: e.Upstream.ALPN, Identities: []string{client.identity}}
			peers = func(id string) bool {
				for _, m := range e.Upstream.Identities {
					if m.GetExact() == id {
						return true
					}
				}
				return false
			}
		}
		next, ok := n[e.Address]
		if !ok || !conn.TLS {
			return way
		}
		at, listener = next, next.listener
	}
	t.Fatalf("a circle: %v", way)
	return nil
}

// passes reports whether a proxy passes a connection on as it is: it takes one without any certificate too.
func passes(at node, conn envoytest.Connection) bool {
	conn.Identities = nil
	out, err := at.config.Ask(at.listener, conn, nil)
	return err == nil && out.Refused == ""
}

func ingressOf(t *testing.T, w *topology.World, zone, name string) node {
	t.Helper()
	at := w.Ingress(name).Spec.GetNetworking()
	out, err := envoy.Ingress(w.Meshes(), &envoy.ZoneProxy{Zone: zone, Name: name, Address: at.GetAddress(), Port: at.GetPort()}, nil)
	return nodeOf(t, w, out, err, fmt.Sprintf("inbound:%s:%d", at.GetAddress(), at.GetPort()), "")
}

func egressOf(t *testing.T, w *topology.World, zone, name string) node {
	t.Helper()
	at := w.Egress(name).Spec.GetNetworking()
	out, err := envoy.Egress(w.Meshes(), &envoy.ZoneProxy{Zone: zone, Name: name, Address: at.GetAddress(), Port: at.GetPort()}, nil)
	return nodeOf(t, w, out, err, fmt.Sprintf("inbound:%s:%d", at.GetAddress(), at.GetPort()), "spiffe://default/zone-egress")
}

func sidecarOf(t *testing.T, w *topology.World, name string) node {
	t.Helper()
	mesh := w.Mesh("default")
	dp := mesh.Dataplanes[name]
	out, err := envoy.Sidecar(mesh, &envoy.Proxy{Mesh: "default", Name: name, Dataplane: dp}, nil)
	service := dp.GetNetworking().GetInbound()[0].GetTags()["kuma.io/service"]
	return nodeOf(t, w, out, err, fmt.Sprintf("inbound:%s:80", dp.GetNetworking().GetAddress()), "spiffe://default/"+service)
}

func nodeOf(t *testing.T, w *topology.World, out *envoy.Output, err error, listener, identity string) node {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	read := &world{mesh: w.Mesh("default"), meshes: w.Meshes()}
	return node{read.read(t, out), listener, identity}
}
