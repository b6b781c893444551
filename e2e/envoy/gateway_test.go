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
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
)

// echo answers with what it was asked, and its name.
func echo(t *testing.T, name string, seen func(*http.Request)) int {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if seen != nil {
			seen(r)
		}
		w.Header().Set("X-App", name)
		fmt.Fprintf(w, "%s %s %s%s set=%s gone=%s proto=%s body=%s", name, r.Method, r.Host, r.URL.RequestURI(),
			strings.Join(r.Header.Values("X-Set"), ","), r.Header.Get("X-Gone"), r.Header.Get("X-Forwarded-Proto"), body)
	}))
	t.Cleanup(s.Close)
	return portOf(t, s.URL)
}

// rds is a connection manager as a gateway has it, whose routes are asked for by name.
func rds(name, filters string) string {
	return fmt.Sprintf(`{name: h, typedConfig: {"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, statPrefix: h,
    rds: {routeConfigName: %q, configSource: %s}, stripAnyHostPort: true, mergeSlashes: true, normalizePath: true, serverName: Gateway, useRemoteAddress: true,
    commonHttpProtocolOptions: {headersWithUnderscoresAction: REJECT_REQUEST},
    httpFilters: [%s {name: router, typedConfig: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]}}`, name, ads, filters)
}

const (
	filtersPrefix = `type.googleapis.com/envoy.extensions.filters.http.`
	gzip          = `{name: gzip, typedConfig: {"@type": ` + filtersPrefix + `compressor.v3.Compressor, compressorLibrary: {name: gzip, typedConfig: {"@type": type.googleapis.com/envoy.extensions.compression.gzip.compressor.v3.Gzip}}}},`
	rateFilter    = `{name: rate, typedConfig: {"@type": ` + filtersPrefix + `local_ratelimit.v3.LocalRateLimit, statPrefix: rate}},`
	faultFilter   = `{name: fault, typedConfig: {"@type": ` + filtersPrefix + `fault.v3.HTTPFault}},`
	always        = `{defaultValue: {numerator: 100}}`
)

func (p *plane) carrying(name string) *Proxy {
	o := p.options(name)
	o.Traffic = true
	proxy := p.proxy(o)
	waitFor(p.t, proxy, Ready)
	return proxy
}

// asked is a request and what comes back.
type asked struct {
	method, url, host, body string
	headers                 map[string]string
}

func (a asked) do(t *testing.T, client *http.Client) (*http.Response, string) {
	t.Helper()
	method := a.method
	if method == "" {
		method = http.MethodGet
	}
	req, err := http.NewRequestWithContext(t.Context(), method, a.url, strings.NewReader(a.body))
	if err != nil {
		t.Fatal(err)
	}
	req.Host = a.host
	for k, v := range a.headers {
		req.Header.Set(k, v)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, a.url, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

// plain does not follow redirects, which are answers here.
func plain(config *tls.Config) *http.Client {
	return &http.Client{
		Timeout: 20 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: config},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

func TestARouteDecidesWhatBecomesOfARequest(t *testing.T) {
	p := newPlane(t)
	port := freePort(t)
	mirrored := make(chan string, 10)
	one, two := echo(t, "one", nil), echo(t, "two", nil)
	shadow := echo(t, "shadow", func(r *http.Request) { mirrored <- r.Host + r.URL.Path })
	var failures atomic.Int32
	flaky := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if failures.Add(1)%3 != 0 {
			w.WriteHeader(http.StatusBadGateway)
		}
	}))
	defer flaky.Close()
	slow := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	defer slow.Close()
	limited := func(tokens int) string {
		return fmt.Sprintf(`typedPerFilterConfig: {rate: {"@type": %slocal_ratelimit.v3.LocalRateLimit, statPrefix: rate, status: {code: TooManyRequests},
  tokenBucket: {maxTokens: %d, fillInterval: 3600s}, filterEnabled: %s, filterEnforced: %s, responseHeadersToAdd: [{header: {key: x-limited, value: "yes"}}]}}`,
			filtersPrefix, tokens, always, always)
	}
	routes := `
name: r
virtualHosts:
- name: wild
  domains: ["*.example.com"]
  routes: [{match: {prefix: /}, directResponse: {status: 200, body: {inlineString: wild}}}]
- name: secure
  domains: ["secure.example.com"]
  requireTls: ALL
  routes: [{match: {prefix: /}, directResponse: {status: 200, body: {inlineString: secure}}}]
- name: all
  domains: ["*"]
  responseHeadersToAdd: [{header: {key: x-host, value: all}}]
  routes:
  - {match: {path: /exact}, route: {cluster: one}}
  - {match: {safeRegex: {regex: "/re/[0-9]+"}}, route: {cluster: two}}
  - {match: {prefix: /method, headers: [{name: ":method", stringMatch: {exact: POST}}]}, route: {cluster: two}}
  - {match: {prefix: /header, headers: [{name: x-env, stringMatch: {safeRegex: {regex: "dev.*"}}}]}, route: {cluster: two}}
  - {match: {prefix: /header, headers: [{name: x-env, presentMatch: true, invertMatch: true}]}, route: {cluster: one}}
  - {match: {prefix: /query, queryParameters: [{name: v, stringMatch: {exact: "2"}}]}, route: {cluster: two}}
  - {match: {prefix: /query, queryParameters: [{name: v, presentMatch: true}]}, route: {cluster: one}}
  - {match: {pathSeparatedPrefix: /seg}, route: {cluster: one, prefixRewrite: /new}}
  - {match: {prefix: /regex}, route: {cluster: one, regexRewrite: {pattern: {regex: "^/regex/(.*)$"}, substitution: '/\1/x'}}}
  - {match: {prefix: /host}, route: {cluster: one, hostRewriteLiteral: other.test}}
  - {match: {prefix: /edit}, route: {cluster: one}, requestHeadersToAdd: [{header: {key: x-set, value: new}, appendAction: OVERWRITE_IF_EXISTS_OR_ADD}],
     requestHeadersToRemove: [x-gone], responseHeadersToAdd: [{header: {key: x-back, value: b}}], responseHeadersToRemove: [x-app]}
  - {match: {prefix: /mirror}, route: {cluster: one, requestMirrorPolicies: [{cluster: shadow, runtimeFraction: {defaultValue: {numerator: 100}}}]}}
  - {match: {prefix: /never}, route: {cluster: one, requestMirrorPolicies: [{cluster: shadow, runtimeFraction: {defaultValue: {numerator: 0}}}]}}
  - {match: {prefix: /weights}, route: {weightedClusters: {clusters: [{name: one, weight: 0}, {name: two, weight: 5}]}}}
  - {match: {prefix: /redirect}, redirect: {hostRedirect: other.test, portRedirect: 8443, schemeRedirect: https, pathRedirect: /there, responseCode: FOUND}}
  - {match: {prefix: /move}, redirect: {prefixRewrite: /moved}}
  - {match: {prefix: /direct}, directResponse: {status: 418, body: {inlineString: tea}}}
  - {match: {prefix: /limited}, route: {cluster: one}, ` + limited(2) + `}
  - {match: {prefix: /fault}, route: {cluster: one}, typedPerFilterConfig: {fault: {"@type": ` + filtersPrefix + `fault.v3.HTTPFault, abort: {httpStatus: 451, percentage: {numerator: 100}}}}}
  - {match: {prefix: /retried}, route: {cluster: flaky, retryPolicy: {retryOn: "gateway-error", numRetries: 2, retryBackOff: {baseInterval: 0.001s}}}}
  - {match: {prefix: /slow}, route: {cluster: slow, timeout: 0.05s}}
`
	clusters := []string{
		staticCluster("one", one), staticCluster("two", two), staticCluster("shadow", shadow),
		staticCluster("flaky", portOf(t, flaky.URL)), staticCluster("slow", portOf(t, slow.URL)),
	}
	p.publish("default.gw", "v1", map[resource.Type][]string{
		resource.ClusterType: clusters, resource.RouteType: {routes},
		resource.ListenerType: {listenerYAML("gw:HTTP:80", port, plainChain(rds("r", rateFilter+gzip+faultFilter)))},
	})
	proxy := p.carrying("gw")
	client := plain(nil)
	defer client.CloseIdleConnections()
	base := fmt.Sprintf("http://127.0.0.1:%d", port)
	const host = "h.test"
	for name, tt := range map[string]struct {
		asked
		status int
		want   string            // of the body
		header map[string]string // of the answer
	}{
		"an exact path":                        {asked{url: "/exact"}, 200, "one GET h.test/exact", map[string]string{"X-Host": "all", "X-App": "one", "Server": "Gateway"}},
		"no other path":                        {asked{url: "/exactly"}, 404, "", nil},
		"a path by a regular expression":       {asked{url: "/re/12"}, 200, "two GET h.test/re/12", nil},
		"a regular expression takes all of it": {asked{url: "/re/12a"}, 404, "", nil},
		"slashes are merged":                   {asked{url: "//re///12"}, 200, "two GET h.test/re/12", nil},
		"dots are resolved":                    {asked{url: "/a/../exact"}, 200, "one GET h.test/exact", nil},
		"a method":                             {asked{url: "/method", method: "POST", body: "b"}, 200, "two POST h.test/method set= gone= proto=http body=b", nil},
		"another method":                       {asked{url: "/method"}, 404, "", nil},
		"a header":                             {asked{url: "/header", headers: map[string]string{"X-Env": "dev-1"}}, 200, "two GET", nil},
		"a header that must be absent":         {asked{url: "/header"}, 200, "one GET", nil},
		"a header of another value":            {asked{url: "/header", headers: map[string]string{"X-Env": "prod"}}, 404, "", nil},
		"a query parameter":                    {asked{url: "/query?v=2"}, 200, "two GET h.test/query?v=2", nil},
		"a query parameter that is there":      {asked{url: "/query?v=3"}, 200, "one GET", nil},
		"no query parameter":                   {asked{url: "/query"}, 404, "", nil},
		"a prefix of segments":                 {asked{url: "/seg/a?b"}, 200, "one GET h.test/new/a?b", nil},
		"not of a part of one":                 {asked{url: "/segment"}, 404, "", nil},
		"a rewrite by a regular expression":    {asked{url: "/regex/a"}, 200, "one GET h.test/a/x", nil},
		"another host":                         {asked{url: "/host"}, 200, "one GET other.test/host", nil},
		"headers":                              {asked{url: "/edit", headers: map[string]string{"X-Set": "old", "X-Gone": "a"}}, 200, "one GET h.test/edit set=new gone= ", map[string]string{"X-Back": "b", "X-App": ""}},
		"weights":                              {asked{url: "/weights"}, 200, "two GET", nil},
		"a redirect":                           {asked{url: "/redirect?q=1"}, 302, "", map[string]string{"Location": "https://other.test:8443/there?q=1", "X-Host": "all"}},
		"a redirect of a prefix":               {asked{url: "/move/a", host: host + ":8080"}, 301, "", map[string]string{"Location": "http://h.test/moved/a"}},
		"a direct response":                    {asked{url: "/direct"}, 418, "tea", map[string]string{"X-Host": "all"}},
		"an injected abort":                    {asked{url: "/fault"}, 451, "", nil},
		"a third attempt":                      {asked{url: "/retried"}, 200, "", nil},
		"a timeout":                            {asked{url: "/slow"}, 504, "", nil},
		"a wildcard host, with a port":         {asked{url: "/x", host: "a.example.com:81"}, 200, "wild", nil},
		"a host that wants TLS":                {asked{url: "/x?y", host: "secure.example.com"}, 301, "", map[string]string{"Location": "https://secure.example.com/x?y"}},
		"a header with an underscore":          {asked{url: "/exact", headers: map[string]string{"a_b": "1"}}, 400, "", nil},
		"no copy by chance":                    {asked{url: "/never"}, 200, "one GET", nil},
	} {
		t.Run(name, func(t *testing.T) {
			if tt.host == "" {
				tt.host = host
			}
			tt.url = base + tt.url
			resp, body := tt.do(t, client)
			if resp.StatusCode != tt.status || !strings.HasPrefix(body, tt.want) {
				t.Errorf("got %d %q, want %d %q", resp.StatusCode, body, tt.status, tt.want)
			}
			for k, want := range tt.header {
				if got := resp.Header.Get(k); got != want {
					t.Errorf("%s is %q, want %q", k, got, want)
				}
			}
		})
	}
	t.Run("a copy", func(t *testing.T) {
		_, body := asked{url: base + "/mirror/a", host: host, method: "PUT", body: "x"}.do(t, client)
		if !strings.HasSuffix(body, "body=x") {
			t.Errorf("got %q", body)
		}
		if got := <-mirrored; got != "h.test-shadow/mirror/a" {
			t.Errorf("the copy went to %q", got)
		}
	})
	t.Run("a limit, counted over connections and kept when something else changes", func(t *testing.T) {
		var codes []int
		ask := func() {
			resp, _ := asked{url: base + "/limited", host: host}.do(t, client)
			codes = append(codes, resp.StatusCode)
		}
		ask()
		p.publish("default.gw", "v2", map[resource.Type][]string{
			resource.ClusterType: clusters, resource.RouteType: {routes + "  - {match: {path: /v2}, directResponse: {status: 200}}\n"},
			resource.ListenerType: {listenerYAML("gw:HTTP:80", port, plainChain(rds("r", rateFilter+gzip+faultFilter)))},
		})
		waitFor(t, proxy, func(c *Config) error {
			if c.Versions[Routes] != "v2" {
				return errors.New("the new routes are not there")
			}
			return nil
		})
		ask()
		ask()
		if fmt.Sprint(codes) != "[200 200 429]" {
			t.Errorf("got %v", codes)
		}
		resp, _ := asked{url: base + "/limited", host: host}.do(t, client)
		if resp.Header.Get("X-Limited") != "yes" {
			t.Errorf("headers %v", resp.Header)
		}
	})
}

func TestAListenerWaitsForItsRoutes(t *testing.T) {
	p := newPlane(t)
	port := freePort(t)
	config := map[resource.Type][]string{
		resource.ClusterType:  {staticCluster("one", 1)},
		resource.ListenerType: {listenerYAML("l", port, plainChain(rds("r", "")))},
	}
	p.publish("default.gw", "v1", config)
	o := p.options("gw")
	o.Traffic = true
	proxy := p.proxy(o)
	waitFor(t, proxy, func(c *Config) error {
		if len(c.Waiting) == 1 && c.Waiting[0] == `listener "l" waits for routes "r"` {
			return nil
		}
		return fmt.Errorf("waiting for %v", c.Waiting)
	})
	if conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", fmt.Sprint("127.0.0.1:", port)); err == nil {
		conn.Close()
		t.Error("it listens")
	}
	config[resource.RouteType] = []string{`{name: r, virtualHosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, directResponse: {status: 204}}]}]}`}
	p.publish("default.gw", "v2", config)
	waitFor(t, proxy, Ready)
	if code, _ := get(t, fmt.Sprintf("http://127.0.0.1:%d/", port)); code != 204 {
		t.Errorf("got %d", code)
	}
}

func TestAnUnknownFieldOnTheWayFailsLoudly(t *testing.T) {
	for name, tt := range map[string]struct{ host, route, want string }{
		"of a route":            {"", `route: {cluster: one, hashPolicy: [{header: {headerName: a}}]}`, "hash_policy"},
		"of a virtual host":     {`cors: {allowCredentials: true},`, `directResponse: {status: 200}`, "VirtualHost.cors"},
		"of no filter":          {"", `directResponse: {status: 200}, typedPerFilterConfig: {a: {"@type": ` + filtersPrefix + `fault.v3.HTTPFault}}`, `filter "a"`},
		"of a formatted header": {"", `directResponse: {status: 200}, responseHeadersToAdd: [{header: {key: a, value: "%PROTOCOL%"}}]`, "formatted"},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlane(t)
			port := freePort(t)
			p.publish("default.gw", "v1", map[resource.Type][]string{
				resource.ClusterType:  {staticCluster("one", 1)},
				resource.RouteType:    {fmt.Sprintf(`{name: r, virtualHosts: [{name: v, domains: ["*"], %s routes: [{match: {prefix: /}, %s}]}]}`, tt.host, tt.route)},
				resource.ListenerType: {listenerYAML("l", port, plainChain(rds("r", "")))},
			})
			proxy := p.carrying("gw")
			get(t, fmt.Sprintf("http://127.0.0.1:%d/", port))
			eventually(t, func() error {
				if err := proxy.Wait(t.Context(), Ready); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), tt.want) {
					return fmt.Errorf("got %w", err)
				}
				return nil
			})
		})
	}
}

// A listener of several hosts has a certificate for each, chosen by what the client asks for, and hands on what it must not open.
func TestTLSIsChosenByServerName(t *testing.T) {
	p := newPlane(t)
	port, through := freePort(t), freePort(t)
	secret := func(name string, hosts ...string) string {
		cert, key := p.ca.issue(t, hosts...)
		return fmt.Sprintf(`{name: %q, tlsCertificate: {certificateChain: {inlineString: %q}, privateKey: {inlineString: %q}}}`, name, cert, key)
	}
	chain := func(host, secret, routes string) string {
		return fmt.Sprintf(`{filterChainMatch: {transportProtocol: tls, serverNames: [%q]}, transportSocket: {%sDownstreamTlsContext, commonTlsContext: {
   alpnProtocols: [h2, http/1.1], tlsParams: {tlsMinimumProtocolVersion: TLSv1_2}, tlsCertificateSdsSecretConfigs: [{name: %q, sdsConfig: %s}]}}},
   filters: [%s]}`, host, tlsPrefix, secret, ads, rds(routes, ""))
	}
	inspector := "\nlistenerFilters: [{name: tls, typedConfig: {\"@type\": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}]"
	behind := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "behind") }))
	cert, key := p.ca.issue(t, "pass.test")
	pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
	if err != nil {
		t.Fatal(err)
	}
	behind.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	behind.StartTLS()
	defer behind.Close()
	routes := func(name, text string) string {
		return fmt.Sprintf(`{name: %s, virtualHosts: [{name: v, domains: ["*"], requireTls: ALL, responseHeadersToAdd: [{header: {key: strict-transport-security, value: "max-age=1"}}],
  routes: [{match: {prefix: /}, directResponse: {status: 200, body: {inlineString: %q}}}]}]}`, name, text)
	}
	config := map[resource.Type][]string{
		resource.ClusterType: {staticCluster("behind", portOf(t, behind.URL))},
		resource.ListenerType: {
			listenerYAML("gw:HTTPS:443", port, chain("a.test", "cert.rsa:secret:a", "a"), chain("*.b.test", "cert.rsa:secret:b", "b")) + inspector,
			listenerYAML("gw:TLS:444", through, `{filterChainMatch: {transportProtocol: tls, serverNames: [pass.test]}, filters: [`+tcpFilter("behind")+`]}`) + inspector,
		},
		resource.RouteType:  {routes("a", "for a"), routes("b", "for b")},
		resource.SecretType: {secret("cert.rsa:secret:a", "a.test"), secret("cert.rsa:secret:b", "*.b.test")},
	}
	p.publish("default.gw", "v1", config)
	proxy := p.carrying("gw")
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(p.ca.pem))
	ask := func(t *testing.T, port int, name string, h2 bool) (*http.Response, string, error) {
		t.Helper()
		client := plain(&tls.Config{RootCAs: roots, ServerName: name, MinVersion: tls.VersionTLS12})
		protocols := new(http.Protocols)
		protocols.SetHTTP1(!h2)
		protocols.SetHTTP2(h2)
		client.Transport.(*http.Transport).Protocols = protocols
		defer client.CloseIdleConnections()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("https://127.0.0.1:%d/", port), http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = name
		resp, err := client.Do(req)
		if err != nil {
			return nil, "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return resp, string(b), err
	}
	for _, tt := range []struct {
		name, want string
		h2         bool
	}{{"a.test", "for a", true}, {"x.b.test", "for b", false}} {
		resp, body, err := ask(t, port, tt.name, tt.h2)
		if err != nil || body != tt.want || resp.Header.Get("Strict-Transport-Security") != "max-age=1" ||
			(resp.ProtoMajor == 2) != tt.h2 {
			t.Errorf("%s: %q %v %v", tt.name, body, resp, err)
		}
	}
	if _, _, err := ask(t, port, "c.test", false); err == nil {
		t.Error("a name that nothing is for is answered")
	}
	if _, body, err := ask(t, through, "pass.test", false); err != nil || body != "behind" {
		t.Errorf("passed through: %q %v", body, err)
	}

	// A new certificate is taken for the next connection, without a new listener.
	serial := func() string {
		resp, _, err := ask(t, port, "a.test", false)
		if err != nil {
			t.Fatal(err)
		}
		return string(resp.TLS.PeerCertificates[0].Signature)
	}
	before := serial()
	config[resource.SecretType][0] = secret("cert.rsa:secret:a", "a.test")
	p.publishVersions("default.gw", map[resource.Type]string{resource.SecretType: "v2"}, "v1", config)
	waitFor(t, proxy, func(c *Config) error {
		if c.Versions[Secrets] != "v2" {
			return errors.New("the new secret is not there")
		}
		return nil
	})
	if serial() == before {
		t.Error("the old certificate is still used")
	}
}

func TestConnectionsAreLimited(t *testing.T) {
	p := newPlane(t)
	app, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	go func() {
		for {
			c, err := app.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "x")
			go func() { _, _ = io.Copy(io.Discard, c); c.Close() }()
		}
	}()
	port := freePort(t)
	limit := `{name: limit, typedConfig: {"@type": type.googleapis.com/envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit, statPrefix: l, maxConnections: "1"}}`
	p.publish("default.gw", "v1", map[resource.Type][]string{
		resource.ClusterType:  {staticCluster("app", portOf(t, app.Addr().String()))},
		resource.ListenerType: {listenerYAML("gw:TCP:1", port, plainChain(limit, tcpFilter("app")))},
	})
	p.carrying("gw")
	dial := func() (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", fmt.Sprint("127.0.0.1:", port))
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.ReadFull(c, make([]byte, 1))
		return c, err
	}
	first, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	second, err := dial()
	second.Close()
	if err == nil {
		t.Error("a second connection is served")
	}
	first.Close()
	eventually(t, func() error {
		c, err := dial()
		c.Close()
		return err
	})
}
