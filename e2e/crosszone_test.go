package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/meridian-mesh/meridian/e2e/envoy"
)

// app is a workload that greets whoever connects, after a line.
func app(t testing.TB, name string) (port int, stop func()) {
	t.Helper()
	port = freePort(t)
	ln, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_ = c.SetDeadline(time.Now().Add(20 * time.Second))
				line, err := bufio.NewReader(c).ReadString('\n')
				if err == nil {
					_, _ = fmt.Fprintf(c, "%s answers %s", name, line)
				}
			}()
		}
	}()
	return port, func() { _ = ln.Close() }
}

// greet sends a line to a port and returns the answer.
func greet(port int) (string, error) {
	c, err := net.DialTimeout("tcp", fmt.Sprint("127.0.0.1:", port), 5*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(c, "hello"); err != nil {
		return "", err
	}
	b, err := io.ReadAll(c)
	return strings.TrimSpace(string(b)), err
}

// endpoints are the addresses of a cluster's endpoints.
func endpoints(c *envoy.Config, cluster string) []string {
	var out []string
	for _, group := range c.Endpoints[cluster].GetEndpoints() {
		for _, e := range group.GetLbEndpoints() {
			a := e.GetEndpoint().GetAddress().GetSocketAddress()
			out = append(out, fmt.Sprintf("%s:%d", a.GetAddress(), a.GetPortValue()))
		}
	}
	slices.Sort(out)
	return out
}

// reaches is a condition: the endpoints of a cluster are at these ports of this host.
func reaches(cluster string, ports ...int) func(*envoy.Config) error {
	var want []string
	for _, p := range ports {
		want = append(want, fmt.Sprint("127.0.0.1:", p))
	}
	slices.Sort(want)
	return func(c *envoy.Config) error {
		if got := endpoints(c, cluster); !slices.Equal(got, want) {
			return fmt.Errorf("endpoints of %s are %q, want %q", cluster, got, want)
		}
		return nil
	}
}

// sni is the server name by which a proxy asks for a cluster.
func sni(t testing.TB, c *envoy.Config, cluster string) string {
	t.Helper()
	m, err := c.Clusters[cluster].GetTransportSocket().GetTypedConfig().UnmarshalNew()
	if err != nil {
		t.Fatal(err)
	}
	upstream, ok := m.(*tlsv3.UpstreamTlsContext)
	if !ok {
		t.Fatalf("cluster %s has %T", cluster, m)
	}
	return upstream.GetSni()
}

// zonal starts an ingress or an egress of a zone at a port.
func (s *System) zonal(z *Plane, kind string, port int) *envoy.Proxy {
	t := s.Global.t
	t.Helper()
	networking := map[string]any{"address": "127.0.0.1", "port": port, "admin": map[string]any{"port": freePort(t)}}
	typ := "ZoneEgress"
	if kind == "ingress" {
		typ = "ZoneIngress"
		networking["advertisedAddress"], networking["advertisedPort"] = "127.0.0.1", port
	}
	token := s.Global.token("zone", fmt.Sprintf(`{"zone":%q,"scope":[%q]}`, z.Zone, kind))
	o := z.options(token, object(t, map[string]any{"type": typ, "name": kind, "networking": networking}))
	o.ProxyType, o.Traffic = kind, true
	return z.proxy(o)
}

// workload starts a sidecar of a zone that carries traffic.
func (p *Plane) workload(d sidecar) *envoy.Proxy {
	p.t.Helper()
	o := p.options(p.token("dataplane", fmt.Sprintf(`{"mesh":%q,"name":%q}`, d.mesh, d.name)), d.json(p.t))
	o.Traffic = true
	return p.proxy(o)
}

// answers waits until a greeting at a port is answered by a workload.
func answers(p *Plane, port int, by string) {
	p.t.Helper()
	p.eventually(10*time.Second, fmt.Sprintf("%s answering at %d", by, port), func() error {
		got, err := greet(port)
		if err == nil && got != by+" answers hello" {
			err = fmt.Errorf("got %q", got)
		}
		return err
	})
}

// withoutLosing does something while a condition must hold of a proxy all the time.
func withoutLosing(t testing.TB, proxy *envoy.Proxy, cond func(*envoy.Config) error, do func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	lost := make(chan error, 1)
	go func() {
		var objection error
		_ = proxy.Wait(ctx, func(c *envoy.Config) error {
			if objection = cond(c); objection == nil {
				return errors.New("it holds")
			}
			return nil
		})
		lost <- objection // of the last look, nil when that was at the end
	}()
	do()
	cancel()
	if err := <-lost; err != nil {
		t.Errorf("meanwhile: %v", err)
	}
}

const routedMesh = `{"type":"Mesh","name":"default","routing":{"zoneEgress":%v},"mtls":{"enabledBackend":"ca-1","backends":[{"name":"ca-1","type":"builtin"}]}}`

func TestAServiceOfAnotherZone(t *testing.T) {
	t.Parallel()
	for name, egress := range map[string]bool{"through ingress": false, "through egress and ingress": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			crossZone(t, egress)
		})
	}
}

func crossZone(t *testing.T, egress bool) {
	s := newSystem(t, bin, "zone-1", "zone-2")
	g, z1, z2 := s.Global, s.Zones[0], s.Zones[1]
	g.Must(http.MethodPut, "/meshes/default", fmt.Sprintf(routedMesh, egress), 200)
	for _, z := range s.Zones {
		z.has("/meshes/default/secrets/default.ca-builtin-key-ca-1", "/meshes/default/secrets/dataplane-token-signing-key-default-1",
			"/global-secrets/zone-token-signing-public-key-1")
	}
	in1, in2, out1, backendPort, webPort, outbound := freePort(t), freePort(t), freePort(t), freePort(t), freePort(t), freePort(t)
	s.zonal(z1, "ingress", in1)
	ingress := s.zonal(z2, "ingress", in2)
	workload, _ := app(t, "backend-1")
	backend := sidecar{mesh: "default", name: "backend-1", service: "backend", port: backendPort, servicePort: workload}
	server := z2.workload(backend)
	web := z1.workload(sidecar{mesh: "default", name: "web-1", service: "web", port: webPort, servicePort: freePort(t), outbounds: map[string]int{"backend": outbound}})

	at := in2
	var passes *envoy.Proxy
	if egress {
		at = out1
		passes = s.zonal(z1, "egress", out1)
	}
	there, nowhere := reaches("backend", at), reaches("backend")
	// lost waits until the service is lost, back until it is there again, and used.
	lost := func(why string) { t.Helper(); holds(t, web, aSecond, "the service is lost: "+why, nowhere) }
	back := func(why string) {
		t.Helper()
		holds(t, web, 15*time.Second, "the service is back: "+why, there)
		answers(z1, outbound, "backend-1")
	}
	back("at first")
	if got := sni(t, web.Config(), "backend"); got != "backend{mesh=default}" {
		t.Errorf("SNI is %q", got)
	}
	if egress {
		holds(t, passes, aSecond, "the egress knows the ingress", reaches("default:backend", in2))
	}
	for _, kind := range []string{"ingress", "egress"} {
		if kind == "egress" && !egress {
			continue
		}
		path := map[string]string{"ingress": "/zoneingresses+insights/ingress", "egress": "/zoneegressoverviews/egress"}[kind]
		z1.shows(path, true)
		g.shows(z1.onGlobal(path), true)
	}

	g.Must(http.MethodPut, "/zones/zone-2", `{"type":"Zone","name":"zone-2","enabled":false}`, 200)
	lost("the zone is disabled")
	g.Must(http.MethodPut, "/zones/zone-2", `{"type":"Zone","name":"zone-2","enabled":true}`, 200)
	back("the zone is enabled")

	withoutLosing(t, web, there, func() {
		z2.Stop()
		answers(z1, outbound, "backend-1")
		z2.Start()
		holds(t, ingress, 15*time.Second, "the ingress is connected again", func(c *envoy.Config) error {
			if c.Streams < 2 {
				return errors.New("not yet")
			}
			return envoy.Ready(c)
		})
		s.waitActive("zone-2", true, 15*time.Second)
	})

	z2.Kill()
	lost("the zone's plane is killed")
	z2.Start()
	back("the zone's plane is there again")

	if err := server.Close(); err != nil {
		t.Error(err)
	}
	z2.Must(http.MethodDelete, backend.path(), "", 200)
	lost("its dataplane is deleted")
	server = z2.workload(backend)
	back("its dataplane is there again")

	unhealthy := backend
	unhealthy.inbound = map[string]any{"health": map[string]any{"ready": false}}
	if err := server.Close(); err != nil {
		t.Error(err)
	}
	z2.Must(http.MethodPut, backend.path(), unhealthy.json(t), 200)
	lost("its dataplane is not healthy")
	z2.workload(backend)
	z2.Must(http.MethodPut, backend.path(), backend.json(t), 200)
	back("its dataplane is healthy")

	if err := ingress.Close(); err != nil {
		t.Error(err)
	}
	lost("its ingress is gone")
	z2.shows("/zoneingresses+insights/ingress", false)
	g.shows(z2.onGlobal("/zoneingresses+insights/ingress"), false)
	s.zonal(z2, "ingress", in2)
	back("its ingress is there again")
	g.shows(z2.onGlobal("/zoneingresses+insights/ingress"), true)
	sound(t, web)
	if egress {
		accepted(t, passes)
	}
}

func TestAnExternalService(t *testing.T) {
	t.Parallel()
	s := newSystem(t, bin, "zone-1")
	g, z := s.Global, s.Zones[0]
	g.Must(http.MethodPut, "/meshes/default", fmt.Sprintf(routedMesh, false), 200)
	z.has("/meshes/default/secrets/default.ca-builtin-key-ca-1", "/meshes/default/secrets/dataplane-token-signing-key-default-1",
		"/global-secrets/zone-token-signing-public-key-1")
	outside, _ := app(t, "outside")
	g.Must(http.MethodPut, "/meshes/default/external-services/es", fmt.Sprintf(
		`{"type":"ExternalService","mesh":"default","name":"es","tags":{"kuma.io/service":"es","kuma.io/protocol":"tcp"},"networking":{"address":"127.0.0.1:%d"}}`, outside), 201)
	outbound, out := freePort(t), freePort(t)
	web := z.workload(sidecar{mesh: "default", name: "web-1", service: "web", port: freePort(t), servicePort: freePort(t), outbounds: map[string]int{"es": outbound}})
	holds(t, web, 10*time.Second, "the first configuration", envoy.Ready)
	answers(z, outbound, "outside")

	// Through egresses, of which there is none yet: nothing may go around them.
	g.Must(http.MethodPut, "/meshes/default", fmt.Sprintf(routedMesh, true), 200)
	holds(t, web, aSecond, "no egress, no endpoint", func(c *envoy.Config) error {
		if _, ok := c.Endpoints["es"]; !ok {
			return errors.New("not by EDS")
		}
		return reaches("es")(c)
	})
	if got, err := greet(outbound); err == nil && got != "" {
		t.Errorf("it is reached around the egress: %q", got)
	}
	egress := s.zonal(z, "egress", out)
	holds(t, web, 10*time.Second, "the egress is the endpoint", reaches("es", out))
	answers(z, outbound, "outside")

	// Permission is asked at the egress.
	g.Must(http.MethodDelete, "/meshes/default/traffic-permissions/allow-all-default", "", 200)
	z.eventually(aSecond, "denied", func() error {
		if got, err := greet(outbound); err == nil && got != "" {
			return fmt.Errorf("got %q", got)
		}
		return nil
	})
	g.Must(http.MethodPut, "/meshes/default/traffic-permissions/p", fmt.Sprintf(permissionBody, "p", "es"), 201)
	answers(z, outbound, "outside")
	g.Must(http.MethodPut, "/meshes/default", fmt.Sprintf(routedMesh, false), 200)
	answers(z, outbound, "outside")
	accepted(t, web)
	accepted(t, egress)
}
