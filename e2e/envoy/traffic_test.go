package envoy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	healthv3 "github.com/envoyproxy/go-control-plane/envoy/service/health/v3"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/durationpb"
)

func portOf(t *testing.T, url string) int {
	t.Helper()
	port, err := strconv.Atoi(url[strings.LastIndex(url, ":")+1:])
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func staticCluster(name string, port int) string {
	return fmt.Sprintf("name: %s\ntype: STATIC\nconnectTimeout: 5s\nloadAssignment: {%s}", name,
		strings.ReplaceAll(assignment(name, port), "\n", ", "))
}

func httpFilter(routes string) string {
	return fmt.Sprintf(`{name: h, typedConfig: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, statPrefix: h,
    forwardClientCertDetails: SANITIZE_SET, setCurrentClientCertDetails: {uri: true},
    routeConfig: {name: r, virtualHosts: [{name: v, domains: ["*"], routes: [%s]}]},
    httpFilters: [{name: router, typedConfig: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}`, routes)
}

func rbac(principals string) string {
	return `{name: rbac, typedConfig: {"@type": type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, statPrefix: x, rules: {policies: {p: {permissions: [{any: true}], principals: [` + principals + `]}}}}}`
}

func uri(name string) string {
	return fmt.Sprintf(`{andIds: {ids: [{authenticated: {principalName: {exact: %q}}}]}}`, name)
}

// get asks for a path and returns status and body; an error text when there is no answer.
func get(t *testing.T, url string) (int, string) {
	t.Helper()
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err.Error()
	}
	return resp.StatusCode, string(b)
}

// A request goes from the outbound listener of web, by route and subset, through an ingress that looks at the SNI only, to the
// inbound listener of backend, which knows its client, and to the application.
func TestBytesGoThroughRoutesIngressAndPermission(t *testing.T) {
	p := newPlane(t)
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s", r.URL.Path, r.Header.Get("X-Forwarded-Client-Cert"))
	}))
	defer app.Close()
	inbound, ingress, outbound := freePort(t), freePort(t), freePort(t)
	allowed := rbac(uri("spiffe://default/web"))
	backend := func(permission string) map[resource.Type][]string {
		return map[resource.Type][]string{
			resource.ClusterType:  {staticCluster("localhost:app", portOf(t, app.URL))},
			resource.ListenerType: {listenerYAML("inbound", inbound, mtlsChain("", permission, httpFilter(`{match: {prefix: /}, route: {cluster: "localhost:app", timeout: 0s}}`)))},
			resource.SecretType:   p.secrets("spiffe://default/backend", "kuma://version/v2.1"),
		}
	}
	p.publish("default.backend", "v1", backend(allowed))
	sni := "backend{mesh=default,version=v2}"
	p.publish(".ingress", "v1", map[resource.Type][]string{
		resource.ClusterType: {edsCluster("backend", "lbSubsetConfig: {fallbackPolicy: ANY_ENDPOINT, subsetSelectors: [{keys: [mesh, version], fallbackPolicy: NO_FALLBACK}]}")},
		resource.EndpointType: {fmt.Sprintf("clusterName: backend\nendpoints: [{lbEndpoints: [%s, %s]}]",
			fmt.Sprintf(`{endpoint: {address: {socketAddress: {address: 127.0.0.1, portValue: %d}}}, metadata: {filterMetadata: {envoy.lb: {mesh: default, version: v2}}}}`, inbound),
			`{endpoint: {address: {socketAddress: {address: 127.0.0.1, portValue: 1}}}, metadata: {filterMetadata: {envoy.lb: {mesh: default, version: v1}}}}`)},
		resource.ListenerType: {listenerYAML("ingress", ingress, fmt.Sprintf(`{filterChainMatch: {transportProtocol: tls, serverNames: [%q]}, filters: [%s]}`, sni,
			strings.Replace(tcpFilter("backend"), "statPrefix: x", "statPrefix: x, metadataMatch: {filterMetadata: {envoy.lb: {mesh: default, version: v2}}}", 1)))},
	})
	p.publish("default.web", "v1", map[resource.Type][]string{
		resource.ClusterType: {
			mtlsCluster("backend", "spiffe://default/backend", sni, ""), mtlsCluster("impostor", "spiffe://default/other", sni, ""),
			mtlsCluster("lost", "spiffe://default/backend", "nobody", ""),
		},
		resource.EndpointType: {assignment("backend", ingress), assignment("impostor", ingress), assignment("lost", ingress)},
		resource.ListenerType: {listenerYAML("outbound", outbound, plainChain(httpFilter(
			`{match: {prefix: /old}, route: {prefixRewrite: /new, cluster: backend}}, {match: {prefix: /impostor}, route: {cluster: impostor}}, {match: {prefix: /lost}, route: {cluster: lost}}, {match: {prefix: /}, route: {weightedClusters: {clusters: [{name: backend, weight: 100}]}}}`)))},
		resource.SecretType: p.secrets("spiffe://default/web"),
	})
	start := func(mesh, name string) *Proxy {
		o := p.options(name)
		o.Mesh, o.Traffic = mesh, true
		p.mu.Lock()
		p.adminPort = freePort(t)
		p.mu.Unlock()
		proxy := p.proxy(o)
		waitFor(t, proxy, Ready)
		return proxy
	}
	to := start("default", "backend")
	start("", "ingress")
	start("default", "web")
	url := fmt.Sprintf("http://127.0.0.1:%d", outbound)

	if code, body := get(t, url+"/a"); code != 200 || body != "/a URI=spiffe://default/web" {
		t.Errorf("got %d %q", code, body)
	}
	if code, body := get(t, url+"/old/b"); code != 200 || body != "/new/b URI=spiffe://default/web" {
		t.Errorf("got %d %q", code, body)
	}
	if code, body := get(t, url+"/impostor"); code != 503 || !strings.Contains(body, "no subject alternative name") {
		t.Errorf("a server of another name: got %d %q", code, body)
	}
	if code, _ := get(t, url+"/lost"); code != 503 {
		t.Errorf("an unknown SNI: got %d", code)
	}
	p.publish("default.backend", "v2", backend(rbac(uri("spiffe://default/other"))))
	waitFor(t, to, func(c *Config) error {
		if c.Versions[Listeners] != "v2" {
			return errors.New("the new permission is not there")
		}
		return Ready(c)
	})
	if code, body := get(t, url+"/a"); code != 503 {
		t.Errorf("a denied client: got %d %q", code, body)
	}
}

func TestTrafficThatIsNotSupportedFailsLoudly(t *testing.T) {
	p := newPlane(t)
	port := freePort(t)
	fault := strings.Replace(httpFilter(`{match: {prefix: /}, directResponse: {status: 200}}`), "httpFilters: [",
		`httpFilters: [{name: fault, typedConfig: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, responseRateLimit: {fixedLimit: {limitKbps: "1"}}}}, `, 1)
	p.publish("default.web", "v1", map[resource.Type][]string{
		resource.ClusterType: {staticCluster("unused", 1)}, resource.ListenerType: {listenerYAML("l", port, plainChain(fault))},
	})
	o := p.options("web")
	o.Traffic = true
	proxy := p.proxy(o)
	waitFor(t, proxy, Ready)
	get(t, fmt.Sprintf("http://127.0.0.1:%d/", port))
	eventually(t, func() error {
		if err := proxy.Wait(t.Context(), Ready); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "HTTPFault") {
			return fmt.Errorf("got %w", err)
		}
		return nil
	})
}

func TestAdmin(t *testing.T) {
	p := newPlane(t)
	config := p.sample()
	port := freePort(t)
	cert, key := p.ca.issue(t, "127.0.0.1")
	// As a control plane says it: plain for /ready only, everything for the client named kuma-cp.
	route := `{match: {prefix: /}, route: {cluster: "kuma:envoy:admin"}}`
	secure := fmt.Sprintf(`{filterChainMatch: {transportProtocol: tls}, transportSocket: {%sDownstreamTlsContext, requireClientCertificate: true, commonTlsContext: {
    tlsCertificates: [{certificateChain: {inlineString: %q}, privateKey: {inlineString: %q}}],
    validationContext: {trustedCa: {inlineString: %q}, matchTypedSubjectAltNames: [{sanType: DNS, matcher: {exact: kuma-cp}}]}}}}, filters: [%s]}`,
		tlsPrefix, cert, key, p.ca.pem, httpFilter(route))
	plain := strings.Replace(plainChain(httpFilter(strings.Replace(route, "prefix: /", "path: /ready", 1))), "{", "{filterChainMatch: {transportProtocol: raw_buffer}, ", 1)
	config[resource.ClusterType] = append(config[resource.ClusterType], staticCluster("kuma:envoy:admin", p.adminPort))
	config[resource.ListenerType] = append(config[resource.ListenerType], listenerYAML(adminListener, port, plain, secure))
	p.publish("default.web", "v1", config)
	proxy := p.proxy(p.options("web"))
	waitFor(t, proxy, Ready)

	local := fmt.Sprintf("http://127.0.0.1:%d", p.adminPort)
	remote := fmt.Sprintf("127.0.0.1:%d", port)
	if code, body := get(t, local+"/ready"); code != 200 || body != "LIVE\n" {
		t.Errorf("/ready: %d %q", code, body)
	}
	if code, body := get(t, "http://"+remote+"/ready"); code != 200 || body != "LIVE\n" {
		t.Errorf("/ready through the listener: %d %q", code, body)
	}
	if code, _ := get(t, "http://"+remote+"/stats"); code != 404 {
		t.Errorf("/stats in plain text: %d", code)
	}
	ask := func(name, path string) (int, string) {
		c, k := p.ca.issue(t, name)
		pair, err := tls.X509KeyPair([]byte(c), []byte(k))
		if err != nil {
			t.Fatal(err)
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM([]byte(p.ca.pem))
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{
			RootCAs: pool, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12,
		}}}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "https://"+remote+path, http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	if code, _ := ask("somebody", "/stats"); code != 0 {
		t.Errorf("/stats for somebody: %d", code)
	}
	if code, body := ask("kuma-cp", "/stats"); code != 200 || !strings.Contains(body, "cluster_manager.cds.update_success: 1\n") {
		t.Errorf("/stats: %d %q", code, body)
	}
	if code, body := ask("kuma-cp", "/clusters"); code != 200 || !strings.Contains(body, "backend::127.0.0.1:4321::weight::1\n") {
		t.Errorf("/clusters: %d %q", code, body)
	}
	code, body := ask("kuma-cp", "/config_dump?include_eds")
	if code != 200 || strings.Contains(body, "PRIVATE KEY") || strings.Count(body, "[redacted]") != 2 {
		t.Errorf("/config_dump: %d, %d times redacted", code, strings.Count(body, "[redacted]"))
	}
	for _, part := range []string{"Bootstrap", "Clusters", "Endpoints", "Listeners", "Routes", "Secrets"} {
		if !strings.Contains(body, "envoy.admin.v3."+part+"ConfigDump") {
			t.Errorf("/config_dump lacks %s", part)
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, local+"/healthcheck/fail", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
	if code, body := get(t, local+"/ready"); code != 503 || body != "DRAINING\n" {
		t.Errorf("/ready while draining: %d %q", code, body)
	}
}

// checker is an HDS server that asks for one specifier and hands on the reports.
type checker struct {
	healthv3.UnimplementedHealthDiscoveryServiceServer
	specifier *healthv3.HealthCheckSpecifier
	hello     chan *healthv3.HealthCheckRequest
	reports   chan *healthv3.EndpointHealthResponse
}

func (c *checker) StreamHealthCheck(s healthv3.HealthDiscoveryService_StreamHealthCheckServer) error {
	first, err := s.Recv()
	if err != nil {
		return err
	}
	select {
	case c.hello <- first.GetHealthCheckRequest():
	default:
	}
	if err := s.Send(c.specifier); err != nil {
		return err
	}
	for {
		r, err := s.Recv()
		if err != nil {
			return err
		}
		select {
		case c.reports <- r.GetEndpointHealthResponse():
		case <-s.Context().Done():
			return s.Context().Err()
		}
	}
}

func TestHealthIsCheckedAndReported(t *testing.T) {
	p := newPlane(t)
	p.publish("default.web", "v1", p.sample())
	app, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	at := func(port int) []*healthv3.LocalityEndpoints {
		return []*healthv3.LocalityEndpoints{{Endpoints: []*endpointv3.Endpoint{{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{
			SocketAddress: &corev3.SocketAddress{Address: "127.0.0.1", PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(port)}},
		}}}}}}
	}
	check := func(name, how string, port int) *healthv3.ClusterHealthCheck {
		hc := &corev3.HealthCheck{}
		text := `{"timeout":"2s","interval":"0.02s","healthyThreshold":1,"unhealthyThreshold":1,` + how + `}`
		if err := protojson.Unmarshal([]byte(text), hc); err != nil {
			t.Fatal(err)
		}
		return &healthv3.ClusterHealthCheck{ClusterName: name, HealthChecks: []*corev3.HealthCheck{hc}, LocalityEndpoints: at(port)}
	}
	c := &checker{
		hello: make(chan *healthv3.HealthCheckRequest, 1), reports: make(chan *healthv3.EndpointHealthResponse),
		specifier: &healthv3.HealthCheckSpecifier{Interval: durationpb.New(20 * time.Millisecond), ClusterHealthChecks: []*healthv3.ClusterHealthCheck{
			check("kuma:envoy:admin", `"httpHealthCheck":{"path":"/ready"}`, p.adminPort),
			check("localhost:app", `"tcpHealthCheck":{}`, portOf(t, app.Addr().String())),
			check("localhost:none", `"tcpHealthCheck":{}`, freePort(t)),
		}},
	}
	p.stopADS()
	p.mu.Lock()
	p.health = c
	p.extra = `
hdsConfig:
  apiType: GRPC
  transportApiVersion: V3
  grpcServices: [{envoyGrpc: {clusterName: ads_cluster}, initialMetadata: [{key: authorization, value: x}]}]
`
	p.mu.Unlock()
	p.startADS("127.0.0.1:0")
	proxy := p.proxy(p.options("web"))
	waitFor(t, proxy, Ready)
	want := "kuma:envoy:admin HEALTHY, localhost:app HEALTHY, localhost:none UNHEALTHY, "
	eventually(t, func() error {
		var got strings.Builder
		for _, h := range (<-c.reports).GetClusterEndpointsHealth() {
			fmt.Fprintf(&got, "%s %s, ", h.GetClusterName(), h.GetLocalityEndpointsHealth()[0].GetEndpointsHealth()[0].GetHealthStatus())
		}
		if got.String() != want {
			return fmt.Errorf("got %s", got.String())
		}
		return nil
	})
	if hello := <-c.hello; hello.GetNode().GetId() != "default.web" {
		t.Errorf("node %v", hello.GetNode())
	}
	app.Close()
	eventually(t, func() error {
		r := <-c.reports
		if s := r.GetClusterEndpointsHealth()[1].GetLocalityEndpointsHealth()[0].GetEndpointsHealth()[0].GetHealthStatus(); s != corev3.HealthStatus_UNHEALTHY {
			return fmt.Errorf("an application that is gone is %s", s)
		}
		return nil
	})
}
