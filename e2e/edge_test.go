package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meridian-mesh/meridian/e2e/envoy"
)

// edge is a mesh of two zones with a builtin gateway in the first: the service api, in two versions, is in the zone of the
// gateway, the service store in the other one, and greeter, which speaks no HTTP, beside the gateway.
type edge struct {
	*System
	t        *testing.T
	z1, z2   *Plane
	dp       sidecar
	proxy    *envoy.Proxy
	sidecars []*envoy.Proxy
	apps     map[string]*webApp

	http, https, tcp int // ports of listeners
}

// webApp is a workload that tells what it was asked.
type webApp struct {
	name  string
	port  int
	asked atomic.Int64
	hosts sync.Map
}

// heard is a request as a workload heard it.
type heard struct {
	App, Method, Host, URL string
	Header                 http.Header
}

func newWebApp(t *testing.T, name string) *webApp {
	t.Helper()
	a := &webApp{name: name}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.asked.Add(1)
		a.hosts.Store(r.Host, true)
		if r.URL.Path == "/slow" {
			select {
			case <-r.Context().Done():
			case <-time.After(patience):
			}
			return
		}
		_ = json.NewEncoder(w).Encode(heard{name, r.Method, r.Host, r.URL.String(), r.Header})
	}))
	t.Cleanup(s.Close)
	a.port = s.Listener.Addr().(*net.TCPAddr).Port
	return a
}

func newEdge(t *testing.T) *edge {
	t.Helper()
	e := &edge{System: newSystem(t, bin, "zone-1", "zone-2"), t: t, apps: make(map[string]*webApp), http: freePort(t), https: freePort(t), tcp: freePort(t)}
	e.z1, e.z2 = e.Zones[0], e.Zones[1]
	g := e.Global
	g.Must(http.MethodPut, "/meshes/default", fmt.Sprintf(routedMesh, false), 200)
	g.Must(http.MethodDelete, "/meshes/default/retries/retry-all-default", "", 200) // which would hide failures
	for _, z := range e.Zones {
		z.has("/meshes/default/secrets/default.ca-builtin-key-ca-1", "/meshes/default/secrets/dataplane-token-signing-key-default-1",
			"/global-secrets/zone-token-signing-public-key-1")
	}
	e.zonal(e.z2, "ingress", freePort(t))
	web := func(z *Plane, name, service, version string) {
		a := newWebApp(t, name)
		e.apps[name] = a
		e.sidecars = append(e.sidecars, z.workload(sidecar{
			mesh: "default", name: name, service: service, port: freePort(t), servicePort: a.port,
			tags: map[string]string{"kuma.io/protocol": "http", "version": version},
		}))
	}
	web(e.z1, "api-1", "api", "v1")
	web(e.z1, "api-2", "api", "v2")
	web(e.z2, "store-1", "store", "v1")
	port, _ := app(t, "greeter-1")
	e.sidecars = append(e.sidecars, e.z1.workload(sidecar{mesh: "default", name: "greeter-1", service: "greeter", port: freePort(t), servicePort: port}))
	e.dp = sidecar{mesh: "default", name: "edge-1", networking: map[string]any{
		"inbound": nil, "gateway": map[string]any{"type": "BUILTIN", "tags": map[string]string{"kuma.io/service": "edge"}},
	}}
	e.proxy = e.z1.workload(e.dp)
	return e
}

// serves makes the MeshGateway have these listeners.
func (e *edge) serves(listeners ...string) {
	e.t.Helper()
	e.Global.Must(http.MethodPut, "/meshes/default/meshgateways/edge", fmt.Sprintf(
		`{"type":"MeshGateway","mesh":"default","name":"edge","selectors":[{"match":{"kuma.io/service":"edge"}}],"conf":{"listeners":[%s]}}`,
		strings.Join(listeners, ",")), 200, 201)
}

// plainListener takes requests for any host.
func (e *edge) plainListener() string { return fmt.Sprintf(`{"port":%d,"protocol":"HTTP"}`, e.http) }

// route puts a route for requests. hosts may be none: any.
func (e *edge) route(name string, hosts []string, rules ...string) {
	e.t.Helper()
	e.Global.Must(http.MethodPut, "/meshes/default/meshgatewayroutes/"+name, routeBody(name, hosts, rules...), 200, 201)
}

func routeBody(name string, hosts []string, rules ...string) string {
	list, _ := json.Marshal(hosts)
	if hosts == nil {
		list = []byte("[]")
	}
	return fmt.Sprintf(`{"type":"MeshGatewayRoute","mesh":"default","name":%q,"selectors":[{"match":{"kuma.io/service":"edge"}}],
		"conf":{"http":{"hostnames":%s,"rules":[%s]}}}`, name, list, strings.Join(rules, ","))
}

// tcpRoute puts a route for connections.
func (e *edge) tcpRoute(name, service string) {
	e.t.Helper()
	e.Global.Must(http.MethodPut, "/meshes/default/meshgatewayroutes/"+name, fmt.Sprintf(`{"type":"MeshGatewayRoute","mesh":"default","name":%q,
		"selectors":[{"match":{"kuma.io/service":"edge"}}],"conf":{"tcp":{"rules":[{"backends":[{"weight":1,"destination":{"kuma.io/service":%q}}]}]}}}`, name, service), 200, 201)
}

func (e *edge) removeRoute(name string) {
	e.t.Helper()
	e.Global.Must(http.MethodDelete, "/meshes/default/meshgatewayroutes/"+name, "", 200)
}

// rule sends requests under a prefix of the path to backends.
func rule(prefix, filters string, backends ...string) string {
	return matchRule(fmt.Sprintf(`{"path":{"match":"PREFIX","value":%q}}`, prefix), filters, backends...)
}

func matchRule(match, filters string, backends ...string) string {
	out := fmt.Sprintf(`{"matches":[%s]`, match)
	if filters != "" {
		out += `,"filters":[` + filters + `]`
	}
	if len(backends) > 0 {
		out += `,"backends":[` + strings.Join(backends, ",") + `]`
	}
	return out + "}"
}

// to is a backend; tags beside the service are further ones.
func to(service string, weight int, tags ...string) string {
	all := map[string]string{"kuma.io/service": service}
	for _, t := range tags {
		k, v, _ := strings.Cut(t, "=")
		all[k] = v
	}
	b, _ := json.Marshal(all)
	return fmt.Sprintf(`{"weight":%d,"destination":%s}`, weight, b)
}

// request is what a client of a gateway asks.
type request struct {
	method, host, path string
	header             map[string]string
}

// reply is what it gets.
type reply struct {
	heard

	status int
	header http.Header
	secure *tls.ConnectionState
	body   string
}

// send makes a request to the listener for plain requests.
func (e *edge) send(r request) (reply, error) {
	client := e.client(nil, "", e.http, false)
	defer client.CloseIdleConnections()
	return do(e.t.Context(), client, "http", r)
}

// client reaches a port whatever the host of a request is, and follows no redirect.
func (e *edge) client(roots *x509.CertPool, name string, port int, keep bool) *http.Client {
	return &http.Client{
		Timeout:       patience,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			DisableKeepAlives: !keep, ForceAttemptHTTP2: true,
			TLSClientConfig: &tls.Config{RootCAs: roots, ServerName: name, MinVersion: tls.VersionTLS12},
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return (&net.Dialer{}).DialContext(ctx, "tcp", fmt.Sprint("127.0.0.1:", port))
			},
		},
	}
}

func do(ctx context.Context, client *http.Client, scheme string, r request) (reply, error) {
	method := r.method
	if method == "" {
		method = http.MethodGet
	}
	req, err := http.NewRequestWithContext(ctx, method, scheme+"://"+r.host+r.path, http.NoBody)
	if err != nil {
		return reply{}, err
	}
	for k, v := range r.header {
		req.Header.Set(k, v)
	}
	resp, err := client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	out := reply{status: resp.StatusCode, header: resp.Header, secure: resp.TLS, body: string(b)}
	if err == nil && strings.HasPrefix(out.body, "{") {
		err = json.Unmarshal(b, &out.heard)
	}
	return out, err
}

// until waits until a request has the reply that cond wants.
func (e *edge) until(t *testing.T, what string, r request, cond func(reply) error) reply {
	t.Helper()
	var got reply
	began := time.Now()
	e.z1.eventually(patience, what, func() error {
		var err error
		if got, err = e.send(r); err != nil {
			return err
		}
		return cond(got)
	})
	t.Logf("%s after %s", what, time.Since(began).Round(time.Millisecond))
	return got
}

// by is a condition: a workload answered.
func by(apps ...string) func(reply) error {
	return func(r reply) error {
		if r.status != http.StatusOK || !slices.Contains(apps, r.App) {
			return fmt.Errorf("%d from %q: %s", r.status, r.App, r.body)
		}
		return nil
	}
}

// answered is a condition: with this status.
func answered(code int) func(reply) error {
	return func(r reply) error {
		if r.status != code {
			return fmt.Errorf("%d from %q: %s", r.status, r.App, r.body)
		}
		return nil
	}
}

// underLoad does something while clients ask all the time, half of them on connections that they keep. It returns how often each
// reply came, under the status and the workload.
func (e *edge) underLoad(t *testing.T, scheme string, roots *x509.CertPool, port int, r request, change func()) map[string]int {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var mu sync.Mutex
	seen := make(map[string]int)
	var clients sync.WaitGroup
	for n := range 4 {
		client := e.client(roots, r.host, port, n%2 == 0)
		clients.Go(func() {
			defer client.CloseIdleConnections()
			for ctx.Err() == nil {
				got, err := do(context.WithoutCancel(ctx), client, scheme, r)
				key := fmt.Sprint(got.status, " ", got.App)
				if err != nil {
					key = err.Error()
				} else if got.status != http.StatusOK {
					key += got.body
				}
				mu.Lock()
				seen[key]++
				mu.Unlock()
				select {
				case <-ctx.Done():
				case <-time.After(2 * time.Millisecond):
				}
			}
		})
	}
	change()
	cancel()
	clients.Wait()
	t.Logf("meanwhile: %v", seen)
	return seen
}

// onlyBy is an error unless all replies are of these workloads.
func onlyBy(seen map[string]int, apps ...string) error {
	n := 0
	for key, times := range seen {
		if !slices.ContainsFunc(apps, func(a string) bool { return key == "200 "+a }) {
			return fmt.Errorf("%d times %s", times, key)
		}
		n += times
	}
	if n == 0 {
		return errors.New("no request was made")
	}
	return nil
}

// hostAuthority signs certificates of host names.
type hostAuthority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
	next int64
}

func newHostAuthority(t *testing.T) *hostAuthority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "edge"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	a := &hostAuthority{key: key, pool: x509.NewCertPool(), next: 2}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pool.AddCert(a.cert)
	return a
}

// issue returns a certificate for a host name, then its key, as PEM.
func (a *hostAuthority) issue(t *testing.T, host string) (text []byte, serial int64) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial = a.next
	a.next++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), DNSNames: []string{host}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return append(text, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: secret})...), serial
}

// serverTLS is the configuration of a server with a certificate as issue returns it.
func serverTLS(t *testing.T, text []byte) *tls.Config {
	t.Helper()
	pair, err := tls.X509KeyPair(text, text)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
}

// secret stores a certificate and its key in the mesh.
func (e *edge) secret(name string, text []byte) {
	e.t.Helper()
	e.Global.Must(http.MethodPut, "/meshes/default/secrets/"+name, fmt.Sprintf(`{"type":"Secret","mesh":"default","name":%q,"data":%q}`,
		name, base64.StdEncoding.EncodeToString(text)), 200, 201)
}

// put puts a policy, which is deleted at the end of t.
func (e *edge) put(t *testing.T, path, body string) {
	t.Helper()
	e.Global.Must(http.MethodPut, "/meshes/default/"+path, body, 200, 201)
	t.Cleanup(func() { e.Global.Must(http.MethodDelete, "/meshes/default/"+path, "", 200) })
}

var errNoListener = errors.New("no such listener")

// listens is a condition of the gateway's configuration: it has listeners of a protocol at these ports, and no others of it.
func listens(protocol string, ports ...int) func(*envoy.Config) error {
	return func(c *envoy.Config) error {
		var got []string
		for name := range maps.Keys(c.Listeners) {
			if strings.Contains(name, ":"+protocol+":") {
				got = append(got, name[strings.LastIndex(name, ":")+1:])
			}
		}
		var want []string
		for _, p := range ports {
			want = append(want, fmt.Sprint(p))
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			return fmt.Errorf("%w: at %q, want %q", errNoListener, got, want)
		}
		return envoy.Ready(c)
	}
}
