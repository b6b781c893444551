package e2e

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/meridian-mesh/meridian/e2e/envoy"
)

// What routes say is what happens to requests, in the zone of the gateway and in the other one.
func TestGatewayRoutesRequests(t *testing.T) {
	t.Parallel()
	e := newEdge(t)
	holds(t, e.proxy, patience, "without a MeshGateway it serves nothing", func(c *envoy.Config) error {
		for name := range c.Listeners {
			if !strings.HasPrefix(name, "kuma:") {
				return fmt.Errorf("there is %q", name)
			}
		}
		return envoy.Ready(c)
	})
	e.serves(e.plainListener())
	holds(t, e.proxy, patience, "a listener", listens("HTTP", e.http))
	e.until(t, "nothing without a route", request{host: "a.test", path: "/"}, answered(404))

	e.route("hosts", []string{"api.test"}, rule("/", "", to("api", 1, "version=v1")))
	e.route("paths", nil,
		rule("/api", "", to("api", 1, "version=v2")), rule("/store", "", to("store", 1)),
		matchRule(`{"path":{"match":"EXACT","value":"/exact"}}`, "", to("store", 1)),
		matchRule(`{"path":{"match":"REGEX","value":"/re/[0-9]+"}}`, "", to("store", 1)),
		matchRule(`{"path":{"match":"PREFIX","value":"/method"},"method":"POST"}`, "", to("store", 1)),
		matchRule(`{"path":{"match":"PREFIX","value":"/header"},"headers":[{"match":"EXACT","name":"x-env","value":"dev"}]}`, "", to("store", 1)),
		matchRule(`{"path":{"match":"PREFIX","value":"/query"},"queryParameters":[{"match":"REGEX","name":"v","value":"[0-9]+"}]}`, "", to("store", 1)),
		rule("/redirect", `{"redirect":{"scheme":"https","hostname":"other.test","port":8443,"statusCode":302}}`),
		rule("/old", `{"rewrite":{"replacePrefixMatch":"/new"}}`, to("store", 1)),
		rule("/full", `{"rewrite":{"replaceFull":"/all"}}`, to("store", 1)),
		rule("/edit", `{"requestHeader":{"set":[{"name":"x-set","value":"s"}],"add":[{"name":"x-add","value":"a"}],"remove":["x-gone"]}}`, to("store", 1)),
		rule("/mirror", `{"mirror":{"percentage":100,"backend":`+to("api", 1, "version=v1")+`}}`, to("store", 1)),
		rule("/split", "", to("api", 3, "version=v1"), to("api", 1, "version=v2")),
		rule("/slow", "", to("api", 1, "version=v1")),
	)
	e.until(t, "a service of another zone by path", request{host: "a.test", path: "/store"}, by("store-1"))
	e.until(t, "a service of this zone by path", request{host: "a.test", path: "/api"}, by("api-2"))
	e.until(t, "a service by host", request{host: "api.test", path: "/x"}, by("api-1"))
	for name, tt := range map[string]struct {
		request

		check func(reply) error
	}{
		"no route":                 {request{host: "a.test", path: "/none"}, answered(404)},
		"no part of a segment":     {request{host: "a.test", path: "/storey"}, answered(404)},
		"a path below":             {request{host: "a.test", path: "/store/b?c=d"}, by("store-1")},
		"an exact path":            {request{host: "a.test", path: "/exact"}, by("store-1")},
		"no other than the exact":  {request{host: "a.test", path: "/exact/a"}, answered(404)},
		"a regular expression":     {request{host: "a.test", path: "/re/12"}, by("store-1")},
		"not in its form":          {request{host: "a.test", path: "/re/a"}, answered(404)},
		"a method":                 {request{host: "a.test", path: "/method", method: "POST"}, by("store-1")},
		"another method":           {request{host: "a.test", path: "/method"}, answered(404)},
		"a header":                 {request{host: "a.test", path: "/header", header: map[string]string{"X-Env": "dev"}}, by("store-1")},
		"another header":           {request{host: "a.test", path: "/header", header: map[string]string{"X-Env": "prod"}}, answered(404)},
		"a query parameter":        {request{host: "a.test", path: "/query?v=1"}, by("store-1")},
		"another query parameter":  {request{host: "a.test", path: "/query?v=a"}, answered(404)},
		"a host with a port":       {request{host: "api.test:8080", path: "/x"}, by("api-1")},
		"a host in capitals":       {request{host: "API.test", path: "/x"}, by("api-1")},
		"slashes that are doubled": {request{host: "a.test", path: "//exact"}, by("store-1")},
		"a redirect": {request{host: "a.test", path: "/redirect/a?b=c"}, func(r reply) error {
			if got := r.header.Get("Location"); r.status != 302 || got != "https://other.test:8443/redirect/a?b=c" {
				return fmt.Errorf("%d to %q", r.status, got)
			}
			return nil
		}},
		"a rewritten prefix": {request{host: "a.test", path: "/old/a?b=c"}, func(r reply) error {
			if r.URL != "/new/a?b=c" {
				return fmt.Errorf("heard %q", r.URL)
			}
			return by("store-1")(r)
		}},
		"a rewritten path": {request{host: "a.test", path: "/full/a"}, func(r reply) error {
			if r.URL != "/all" {
				return fmt.Errorf("heard %q", r.URL)
			}
			return by("store-1")(r)
		}},
		"headers": {request{host: "a.test", path: "/edit", header: map[string]string{"X-Set": "old", "X-Add": "old", "X-Gone": "old"}}, func(r reply) error {
			set, add, gone := r.Header.Values("X-Set"), r.Header.Values("X-Add"), r.Header.Values("X-Gone")
			if fmt.Sprint(set, add, gone) != "[s] [old a] []" {
				return fmt.Errorf("heard %q %q %q", set, add, gone)
			}
			return by("store-1")(r)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := e.send(tt.request)
			if err == nil {
				err = tt.check(got)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("a copy of each request", func(t *testing.T) {
		before := e.apps["api-1"].asked.Load()
		const n = 20
		for range n {
			got, err := e.send(request{host: "a.test", path: "/mirror"})
			if err = errors.Join(err, by("store-1")(got)); err != nil {
				t.Fatal(err)
			}
		}
		e.z1.eventually(patience, "copied", func() error {
			if got := e.apps["api-1"].asked.Load() - before; got != n {
				return fmt.Errorf("%d of %d", got, n)
			}
			return nil
		})
	})
	t.Run("a split", func(t *testing.T) {
		const n = 2000
		client := e.client(nil, "", e.http, true)
		defer client.CloseIdleConnections()
		seen := make(map[string]int)
		for range n {
			got, err := do(t.Context(), client, "http", request{host: "a.test", path: "/split"})
			if err != nil {
				t.Fatal(err)
			}
			seen[got.App]++
		}
		if err := shares("to v1", seen["api-1"], n, 0.75); err != nil || seen["api-1"]+seen["api-2"] != n {
			t.Errorf("%v: %v", seen, err)
		}
	})
	t.Run("a timeout", func(t *testing.T) {
		e.put(t, "timeouts/short", legacyPolicy("Timeout", "default", "short", "edge", "api", `{"http":{"requestTimeout":"0.2s"}}`))
		e.until(t, "cut", request{host: "a.test", path: "/slow"}, answered(504))
	})
	t.Run("a rate limit", func(t *testing.T) {
		e.put(t, "rate-limits/few", `{"type":"RateLimit","mesh":"default","name":"few","sources":[{"match":{"kuma.io/service":"edge"}}],
			"destinations":[{"match":{"kuma.io/service":"store"}}],"conf":{"http":{"requests":3,"interval":"3600s","onRateLimit":{"status":423}}}}`)
		e.until(t, "limited", request{host: "a.test", path: "/store"}, answered(423))
		e.until(t, "not the others", request{host: "a.test", path: "/api"}, by("api-2"))
	})
	e.until(t, "no limit any more", request{host: "a.test", path: "/store"}, by("store-1"))
	t.Run("a fault", func(t *testing.T) {
		e.put(t, "fault-injections/abort", `{"type":"FaultInjection","mesh":"default","name":"abort","sources":[{"match":{"kuma.io/service":"edge"}}],
			"destinations":[{"match":{"kuma.io/service":"store","kuma.io/protocol":"http"}}],"conf":{"abort":{"percentage":100,"httpStatus":451}}}`)
		e.until(t, "aborted", request{host: "a.test", path: "/store"}, answered(451))
	})
	e.until(t, "no fault any more", request{host: "a.test", path: "/store"}, by("store-1"))
	for _, p := range append(e.sidecars, e.proxy) {
		sound(t, p)
	}
}

// What changes at a gateway costs no request.
func TestGatewayChangesUnderTraffic(t *testing.T) {
	t.Parallel()
	e := newEdge(t)
	e.serves(e.plainListener())
	e.route("steady", nil, rule("/steady", "", to("api", 1, "version=v1")))
	steady := request{host: "a.test", path: "/steady"}
	e.until(t, "served", steady, by("api-1"))

	t.Run("routes come, change and go", func(t *testing.T) {
		seen := e.underLoad(t, "http", nil, e.http, steady, func() {
			for i := range 6 {
				other := fmt.Sprintf("/other-%d", i)
				e.route("other", []string{"*", "b.test"}[i%2:i%2+1], rule(other, "", to("store", 1)))
				e.until(t, "a route that came", request{host: "b.test", path: other}, by("store-1"))
				version := []string{"v2", "v1"}[i%2]
				e.route("steady", nil, rule("/steady", "", to("api", 1, "version="+version)))
				e.until(t, "a route that changed", steady, by(map[string]string{"v1": "api-1", "v2": "api-2"}[version]))
				e.removeRoute("other")
				e.until(t, "a route that went", request{host: "b.test", path: other}, answered(404))
			}
		})
		if err := onlyBy(seen, "api-1", "api-2"); err != nil {
			t.Error(err)
		}
	})
	t.Run("listeners come and go", func(t *testing.T) {
		another := freePort(t)
		seen := e.underLoad(t, "http", nil, e.http, steady, func() {
			for range 3 {
				e.serves(e.plainListener(), fmt.Sprintf(`{"port":%d,"protocol":"HTTP","hostname":"c.test"}`, another))
				holds(t, e.proxy, patience, "two listeners", listens("HTTP", e.http, another))
				e.serves(e.plainListener())
				holds(t, e.proxy, patience, "one listener", listens("HTTP", e.http))
			}
		})
		if err := onlyBy(seen, "api-1", "api-2"); err != nil {
			t.Error(err)
		}
	})
	t.Run("the control plane restarts", func(t *testing.T) {
		seen := e.underLoad(t, "http", nil, e.http, steady, func() {
			streams := e.proxy.Config().Streams
			e.z1.Stop()
			e.z1.Start()
			holds(t, e.proxy, patience, "connected again", func(c *envoy.Config) error {
				if c.Streams == streams {
					return errors.New("not yet")
				}
				return envoy.Ready(c)
			})
			e.route("other", nil, rule("/other", "", to("store", 1)))
			e.until(t, "a route of after", request{host: "a.test", path: "/other"}, by("store-1"))
		})
		if err := onlyBy(seen, "api-1", "api-2"); err != nil {
			t.Error(err)
		}
	})
	t.Run("the gateway restarts", func(t *testing.T) {
		if err := e.proxy.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := e.send(steady); err == nil {
			t.Error("a gateway that ended serves")
		}
		e.proxy = e.z1.workload(e.dp)
		e.until(t, "served again", steady, by("api-1", "api-2"))
	})
	t.Run("permission is asked at the destination", func(t *testing.T) {
		e.Global.Must(http.MethodDelete, "/meshes/default/traffic-permissions/allow-all-default", "", 200)
		e.until(t, "denied", steady, answered(503))
		e.until(t, "denied in the other zone", request{host: "a.test", path: "/other"}, answered(503))
		e.put(t, "traffic-permissions/edge", legacyPolicy("TrafficPermission", "default", "edge", "edge", "api", ""))
		e.until(t, "allowed", steady, by("api-1", "api-2"))
		e.until(t, "still denied", request{host: "a.test", path: "/other"}, answered(503))
	})
	t.Run("its MeshGateway goes", func(t *testing.T) {
		e.Global.Must(http.MethodDelete, "/meshes/default/meshgateways/edge", "", 200)
		holds(t, e.proxy, patience, "no listener", listens("HTTP"))
		e.z1.eventually(patience, "closed", func() error {
			if _, err := e.send(steady); err == nil {
				return errors.New("it serves")
			}
			return nil
		})
	})
	sound(t, e.proxy)
}

// Connections under TLS end at the gateway, with the certificate of their host, or go through as they are.
func TestGatewayTLS(t *testing.T) {
	t.Parallel()
	e := newEdge(t)
	ca := newHostAuthority(t)
	first, serial := ca.issue(t, "secure.test")
	other, _ := ca.issue(t, "*.wild.test")
	e.secret("secure-cert", first)
	e.secret("wild-cert", other)
	through := freePort(t)
	behind := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, `{"App":"behind"}`) }))
	text, _ := ca.issue(t, "pass.test")
	behind.TLS = serverTLS(t, text)
	behind.StartTLS()
	defer behind.Close()
	e.sidecars = append(e.sidecars, e.z1.workload(sidecar{
		mesh: "default", name: "behind-1", service: "behind", port: freePort(t), servicePort: behind.Listener.Addr().(*net.TCPAddr).Port,
	}))
	terminating := func(host, secret string) string {
		return fmt.Sprintf(`{"port":%d,"protocol":"HTTPS","hostname":%q,"tls":{"mode":"TERMINATE","certificates":[{"secret":%q}]}}`, e.https, host, secret)
	}
	e.serves(terminating("secure.test", "secure-cert"), terminating("*.wild.test", "wild-cert"), e.plainListener(),
		fmt.Sprintf(`{"port":%d,"protocol":"TCP"}`, e.tcp),
		fmt.Sprintf(`{"port":%d,"protocol":"HTTPS","hostname":"pass.test","tags":{"through":"yes"},"tls":{"mode":"PASSTHROUGH"}}`, through))
	e.route("web", []string{"secure.test"}, rule("/", "", to("api", 1, "version=v1")))
	e.route("wild", []string{"*.wild.test"}, rule("/", "", to("store", 1)))
	e.tcpRoute("greetings", "greeter")
	ask := func(port int, host string) (reply, error) {
		client := e.client(ca.pool, host, port, false)
		defer client.CloseIdleConnections()
		return do(t.Context(), client, "https", request{host: host, path: "/a"})
	}
	served := func(t *testing.T, port int, host, app string) (got reply) {
		t.Helper()
		e.z1.eventually(patience, "serving "+host, func() (err error) {
			if got, err = ask(port, host); err != nil {
				return err
			}
			return by(app)(got)
		})
		return got
	}
	t.Run("by host name", func(t *testing.T) {
		got := served(t, e.https, "secure.test", "api-1")
		if cert := got.secure.PeerCertificates[0]; cert.SerialNumber.Int64() != serial || got.secure.NegotiatedProtocol != "h2" {
			t.Errorf("certificate %v, protocol %q", cert.SerialNumber, got.secure.NegotiatedProtocol)
		}
		if got.header.Get("Strict-Transport-Security") == "" {
			t.Errorf("no HSTS: %v", got.header)
		}
		served(t, e.https, "a.wild.test", "store-1")
		if _, err := ask(e.https, "unknown.test"); err == nil {
			t.Error("a host that is not served is answered")
		}
	})
	t.Run("a certificate is replaced under traffic", func(t *testing.T) {
		seen := e.underLoad(t, "https", ca.pool, e.https, request{host: "secure.test", path: "/"}, func() {
			for range 3 {
				text, serial := ca.issue(t, "secure.test")
				e.secret("secure-cert", text)
				e.z1.eventually(patience, "the new certificate", func() error {
					got, err := ask(e.https, "secure.test")
					if err != nil {
						return err
					}
					if n := got.secure.PeerCertificates[0].SerialNumber.Int64(); n != serial {
						return fmt.Errorf("serial number %d, want %d", n, serial)
					}
					return nil
				})
			}
		})
		if err := onlyBy(seen, "api-1"); err != nil {
			t.Error(err)
		}
	})
	t.Run("connections that are no requests", func(*testing.T) { answers(e.z1, e.tcp, "greeter-1") })
	t.Run("connections that go through", func(t *testing.T) {
		e.Global.Must(http.MethodPut, "/meshes/default/meshgatewayroutes/through", `{"type":"MeshGatewayRoute","mesh":"default","name":"through",
			"selectors":[{"match":{"kuma.io/service":"edge","through":"yes"}}],"conf":{"tcp":{"rules":[{"backends":[{"weight":1,"destination":{"kuma.io/service":"behind"}}]}]}}}`, 201)
		e.removeRoute("greetings") // it is for every listener that passes connections on
		served(t, through, "pass.test", "behind")
		if _, err := ask(through, "other.test"); err == nil {
			t.Error("a host that is not served is passed on")
		}
	})
	sound(t, e.proxy)
}
