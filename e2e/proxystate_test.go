package e2e

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/meridian-mesh/meridian/e2e/envoy"
)

// proxyProcess is set, to the options of a proxy, in the environment of a process that is to be one: this program, started anew.
const proxyProcess = "MERIDIAN_E2E_PROXY"

// runProxy is what such a process does until it is killed.
func runProxy(options string) int {
	var o envoy.Options
	if err := json.Unmarshal([]byte(options), &o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if _, err := envoy.Start(context.Background(), o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	select {}
}

// proxyToKill starts a proxy in a process of its own. kill is kill -9.
func (p *Plane) proxyToKill(o envoy.Options) (kill func()) {
	p.t.Helper()
	o.Log = nil
	b, err := json.Marshal(o)
	if err != nil {
		p.t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env, cmd.Stderr = append(os.Environ(), proxyProcess+"="+string(b)), p.t.Output()
	if err := cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	killed := false
	kill = func() {
		if !killed {
			killed = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	p.t.Cleanup(kill)
	return kill
}

// settled is what a proxy has: to be the same later.
func settled(c *envoy.Config) map[string]any {
	return map[string]any{"clusters": c.Clusters, "endpoints": c.Endpoints, "listeners": c.Listeners, "routes": c.Routes}
}

func TestARejectedConfigurationIsShownAndNotRepeated(t *testing.T) {
	t.Parallel()
	s := newSystem(t, bin, "zone-1")
	g, z := s.Global, s.Zones[0]
	s.aMesh("m")
	web := sidecar{mesh: "m", name: "web-1", service: "web", port: freePort(t), servicePort: freePort(t)}
	proxy := z.proxy(z.options(z.token("dataplane", `{"mesh":"m"}`), web.json(t)))
	holds(t, proxy, 10*time.Second, "the first configuration", envoy.Ready)
	before := proxy.Config()

	const reason = "the stand-in does not like it"
	proxy.RejectNext(envoy.Listeners, reason)
	g.Must(http.MethodDelete, "/meshes/m/traffic-permissions/allow-all-m", "", 200)
	holds(t, proxy, aSecond, "rejected", func(c *envoy.Config) error {
		if c.Counters[envoy.Listeners].Rejected != 1 {
			return errors.New("not rejected")
		}
		return nil
	})
	received := len(proxy.History())
	for _, p := range []*Plane{z, g} {
		overview := web.overview()
		if p == g {
			overview = z.onGlobal(overview)
		}
		p.quickly("showing the rejection", func() error {
			i, err := p.insightOf(overview)
			if err != nil {
				return err
			}
			st := i.newest().Status
			if st.LDS.Rejected != 1 || st.Total.Rejected != 1 || st.LastRejection == nil {
				return fmt.Errorf("got %+v, total %+v, last %+v", st.LDS, st.Total, st.LastRejection)
			}
			if r := st.LastRejection; r.Message != reason || r.TypeURL != string(envoy.Listeners) || time.Since(r.Time) > time.Minute {
				return fmt.Errorf("got %+v", r)
			}
			return nil
		})
	}
	if n := z.metric("meridian_ads_rejections_total"); n != 1 {
		t.Errorf("the metric counts %v rejections", n)
	}
	time.Sleep(3 * time.Second) // nothing must happen
	if n := len(proxy.History()); n != received {
		t.Errorf("%d responses in the three seconds after a rejection", n-received)
	}
	if diff := cmp.Diff(settled(before), settled(proxy.Config()), protocmp.Transform()); diff != "" {
		t.Errorf("the proxy lost what it had (-want +got):\n%s", diff)
	}

	g.Must(http.MethodPut, "/meshes/m/traffic-permissions/p",
		`{"type":"TrafficPermission","mesh":"m","name":"p","sources":[{"match":{"kuma.io/service":"other"}}],"destinations":[{"match":{"kuma.io/service":"*"}}]}`, 201)
	holds(t, proxy, aSecond, "the next configuration is accepted", func(c *envoy.Config) error {
		if c.Counters[envoy.Listeners].Accepted != before.Counters[envoy.Listeners].Accepted+1 {
			return fmt.Errorf("%+v", c.Counters[envoy.Listeners])
		}
		return envoy.Ready(c)
	})
	if cmp.Diff(settled(before), settled(proxy.Config()), protocmp.Transform()) == "" {
		t.Error("the accepted configuration is the old one")
	}
}

// authority makes a certificate authority of a mesh, as PEM.
func authority(t *testing.T, mesh string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: mesh}, URIs: []*url.URL{{Scheme: "spiffe", Host: mesh}},
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
}

func TestAProxyKeepsItsConfigurationWhenNoneCanBeMade(t *testing.T) {
	t.Parallel()
	s := newSystem(t, bin, "zone-1")
	g, z := s.Global, s.Zones[0]
	g.Must(http.MethodPut, "/meshes/m", `{"type":"Mesh","name":"m"}`, 201)
	z.has("/meshes/m/secrets/dataplane-token-signing-key-m-1", "/meshes/m/traffic-permissions/allow-all-m")
	cert, key := authority(t, "m")
	g.Must(http.MethodPut, "/meshes/m/secrets/cert", secret("Secret", "m", "cert", cert), 201)
	g.Must(http.MethodPut, "/meshes/m/secrets/key", secret("Secret", "m", "key", key), 201)
	z.has("/meshes/m/secrets/cert", "/meshes/m/secrets/key")
	g.Must(http.MethodPut, "/meshes/m", `{"type":"Mesh","name":"m","mtls":{"enabledBackend":"ca-2","backends":[{"name":"ca-2","type":"provided","conf":{"cert":{"secret":"cert"},"key":{"secret":"key"}}}]}}`, 200)
	web := sidecar{mesh: "m", name: "web-1", service: "web", port: freePort(t), servicePort: freePort(t)}
	proxy := z.proxy(z.options(z.token("dataplane", `{"mesh":"m"}`), web.json(t)))
	holds(t, proxy, 10*time.Second, "the first configuration", envoy.Ready)
	z.quickly("with a certificate of the authority", func() error {
		i, err := z.insightOf(web.overview())
		if err == nil && (i.MTLS == nil || i.MTLS.IssuedBackend != "ca-2") {
			err = fmt.Errorf("mTLS %+v", i.MTLS)
		}
		return err
	})
	before, failures := proxy.Config(), z.metric("meridian_reconcile_failures_total")
	if failures != 0 {
		t.Errorf("%v failures before", failures)
	}

	g.Must(http.MethodPut, "/meshes/m/secrets/cert", secret("Secret", "m", "cert", "no certificate"), 200)
	wrong := func(want bool) {
		t.Helper()
		z.quickly(fmt.Sprintf("telling that no configuration can be made: %v", want), func() error {
			i, err := z.insightOf(web.overview())
			if text := i.newest().Status.ConfigError; err == nil && (text != "") != want {
				err = fmt.Errorf("configError is %q", text)
			}
			return err
		})
	}
	wrong(true)
	if z.metric("meridian_reconcile_failures_total") == 0 {
		t.Error("the metric counts no failure")
	}
	g.Must(http.MethodDelete, "/meshes/m/traffic-permissions/allow-all-m", "", 200)
	z.gone("/meshes/m/traffic-permissions/allow-all-m", 10*time.Second)
	time.Sleep(300 * time.Millisecond) // nothing must happen
	if diff := cmp.Diff(settled(before), settled(proxy.Config()), protocmp.Transform()); diff != "" {
		t.Errorf("the configuration is another (-want +got):\n%s", diff)
	}
	g.Must(http.MethodPut, "/meshes/m/secrets/cert", secret("Secret", "m", "cert", cert), 200)
	wrong(false)
	holds(t, proxy, aSecond, "what was changed meanwhile has come", func(c *envoy.Config) error {
		if c.Versions[envoy.Listeners] == before.Versions[envoy.Listeners] {
			return errors.New("not yet")
		}
		return envoy.Ready(c)
	})
	sound(t, proxy)
}

func TestStreamsOfOneProxyThatOverlap(t *testing.T) {
	t.Parallel()
	s := newSystemWith(t, []string{"MERIDIAN_DP_DEREGISTRATION_DELAY=1s"}, "zone-1")
	z := s.Zones[0]
	s.aMesh("m")
	web := sidecar{mesh: "m", name: "web-1", service: "web", port: freePort(t), servicePort: freePort(t)}
	token, body := z.token("dataplane", `{"mesh":"m"}`), web.json(t)
	proxy := z.proxy(z.options(token, body))
	holds(t, proxy, 10*time.Second, "the first configuration", envoy.Ready)
	opens := func(want int) {
		t.Helper()
		z.quickly(fmt.Sprintf("with %d of two subscriptions open", want), func() error {
			i, err := z.insightOf(web.overview())
			if err != nil {
				return err
			}
			open := 0
			for _, sub := range i.Subscriptions {
				if sub.DisconnectTime == nil {
					open++
				}
			}
			if len(i.Subscriptions) != 2 || open != want {
				return fmt.Errorf("%d of %d are open", open, len(i.Subscriptions))
			}
			return nil
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	second := z.stream(ctx, "m.web-1", "dataplane", body, token)
	if resp, err := second.Recv(); err != nil || resp.GetTypeUrl() != string(envoy.Clusters) {
		t.Fatalf("the second stream got %v, %v", resp.GetTypeUrl(), err)
	}
	opens(1) // the newer one
	cancel()
	z.logs(10*time.Second, "proxy's stream ended", "name=web-1")
	opens(1) // the first one, which is still there
	z.shows(web.overview(), true)
	time.Sleep(1500 * time.Millisecond) // the delay: nobody is deregistered
	z.shows(web.overview(), true)
	s.Global.Must(http.MethodDelete, "/meshes/m/traffic-permissions/allow-all-m", "", 200)
	holds(t, proxy, aSecond, "the first stream goes on", func(c *envoy.Config) error {
		if c.Counters[envoy.Listeners].Accepted < 2 || c.Streams != 1 {
			return fmt.Errorf("%+v, %d streams", c.Counters[envoy.Listeners], c.Streams)
		}
		return nil
	})
	if err := proxy.Close(); err != nil {
		t.Error(err)
	}
	z.shows(web.overview(), false)
	z.gone(web.path(), 10*time.Second)
}

func TestAProxyThatCrashes(t *testing.T) {
	t.Parallel()
	// Insights reach the global once a second: it must hear that the proxy is away before the proxy is forgotten.
	s := newSystemWith(t, []string{"MERIDIAN_DP_DEREGISTRATION_DELAY=4s"}, "zone-1")
	z := s.Zones[0]
	s.aMesh("m")
	web := sidecar{mesh: "m", name: "web-1", service: "web", port: freePort(t), servicePort: freePort(t)}
	kill := z.proxyToKill(z.options(z.token("dataplane", `{"mesh":"m"}`), web.json(t)))
	z.eventually(20*time.Second, "connected", func() error { return is(z, web.overview(), http.StatusOK) })
	s.Global.shows(z.onGlobal(web.overview()), true)
	kill()
	z.shows(web.overview(), false)
	s.Global.shows(z.onGlobal(web.overview()), false)
	z.gone(web.path(), 10*time.Second)
	s.Global.gone(z.onGlobal(web.path()), aSecond)
}

func TestProxiesOverRestartsOfTheirPlane(t *testing.T) {
	t.Parallel()
	s := newSystemWith(t, []string{"MERIDIAN_DP_DEREGISTRATION_DELAY=2s"}, "zone-1")
	g, z := s.Global, s.Zones[0]
	s.aMesh("m")
	token := z.token("dataplane", `{"mesh":"m"}`)
	var list []sidecar
	var proxies []*envoy.Proxy
	for _, name := range []string{"web-1", "web-2"} {
		web := sidecar{mesh: "m", name: name, service: "web", port: freePort(t), servicePort: freePort(t), outbounds: map[string]int{"web": freePort(t)}}
		list = append(list, web)
		proxies = append(proxies, z.proxy(z.options(token, web.json(t))))
	}
	// A transparent proxy, which has virtual addresses.
	transparent := sidecar{mesh: "m", name: "transparent-1", service: "transparent", port: freePort(t), servicePort: freePort(t), networking: map[string]any{
		"transparentProxying": map[string]any{"redirectPortInbound": 15006, "redirectPortOutbound": 15001},
	}}
	list = append(list, transparent)
	through := z.proxy(z.options(token, transparent.json(t)))
	proxies = append(proxies, through)
	for i, p := range proxies {
		holds(t, p, 10*time.Second, list[i].name+" is configured", func(c *envoy.Config) error {
			if i < 2 && len(endpoints(c, "web")) != 2 {
				return fmt.Errorf("endpoints are %q", endpoints(c, "web"))
			}
			if _, ok := c.Clusters["web"]; !ok {
				return errors.New("no way to web")
			}
			return envoy.Ready(c)
		})
	}
	// An address stays with its service when others come before it by name.
	virtual := func(c *envoy.Config, of string) string {
		for name, l := range c.Listeners {
			if strings.HasPrefix(name, "outbound:240.") && l.GetMetadata().GetFilterMetadata()["io.kuma.tags"].GetFields()["kuma.io/service"].GetStringValue() == of {
				return name
			}
		}
		return ""
	}
	address := virtual(through.Config(), "web")
	if address == "" {
		t.Fatalf("no virtual address of web among %q", slices.Sorted(maps.Keys(through.Config().Listeners)))
	}
	early := sidecar{mesh: "m", name: "a-1", service: "a", port: 1, servicePort: 2}
	z.Must(http.MethodPut, early.path(), early.json(t), 201)
	holds(t, through, aSecond, "a new service has an address", func(c *envoy.Config) error {
		if virtual(c, "a") == "" {
			return errors.New("none")
		}
		return envoy.Ready(c)
	})
	if got := virtual(through.Config(), "web"); got != address {
		t.Errorf("the address of web moved from %s to %s", address, got)
	}

	var before []map[string]any
	var resources [][]byte
	for i, p := range proxies {
		before = append(before, settled(p.Config()))
		resources = append(resources, z.Must(http.MethodGet, list[i].path(), "", 200))
	}
	streams := func(n int) {
		t.Helper()
		for i, p := range proxies {
			holds(t, p, 20*time.Second, list[i].name+" is connected again", func(c *envoy.Config) error {
				if !c.Connected || c.Streams < n {
					return errors.New("not connected")
				}
				return envoy.Ready(c)
			})
			z.shows(list[i].overview(), true)
		}
	}
	same := func() {
		t.Helper()
		time.Sleep(2500 * time.Millisecond) // the delay: nobody is deregistered
		for i, p := range proxies {
			if diff := cmp.Diff(before[i], settled(p.Config()), protocmp.Transform()); diff != "" {
				t.Errorf("the configuration of %s is another after the restart (-before +after):\n%s", list[i].name, diff)
			}
			if got := z.Must(http.MethodGet, list[i].path(), "", 200); !bytes.Equal(got, resources[i]) {
				t.Errorf("%s was %s and is %s", list[i].name, resources[i], got)
			}
		}
	}
	z.Stop()
	z.Start()
	streams(2)
	same()
	for _, d := range list {
		g.shows(z.onGlobal(d.overview()), true)
		i, err := z.insightOf(d.overview())
		if err != nil || len(i.Subscriptions) != 2 || i.Subscriptions[0].DisconnectTime == nil || i.Subscriptions[1].DisconnectTime != nil ||
			i.Subscriptions[0].ControlPlaneInstanceID == i.Subscriptions[1].ControlPlaneInstanceID {
			t.Errorf("%s: %v, %+v", d.name, err, i)
		}
	}

	// Nobody is taken for connected who went while the plane was dead.
	z.Kill()
	if err := proxies[0].Close(); err != nil {
		t.Error(err)
	}
	gone := list[0]
	proxies, list, before, resources = proxies[1:], list[1:], before[1:], resources[1:]
	z.Start()
	z.shows(gone.overview(), false)
	s.waitActive("zone-1", true, 15*time.Second)
	g.shows(z.onGlobal(gone.overview()), false)
	streams(3)
	z.Must(http.MethodDelete, gone.path(), "", 200)
	z.eventually(aSecond, "without what is gone", func() error { return is(z, gone.path(), http.StatusNotFound) })
	if got := virtual(through.Config(), "web"); got != address {
		t.Errorf("the address of web moved from %s to %s", address, got)
	}
}

// What a proxy finds out about the workload beside it decides whether others send to it.
func TestAWorkloadThatStopsAnsweringIsLeftOut(t *testing.T) {
	t.Parallel()
	s := newSystemWith(t, []string{"MERIDIAN_HDS_INTERVAL=200ms", "MERIDIAN_HDS_CHECK_INTERVAL=100ms", "MERIDIAN_HDS_CHECK_NO_TRAFFIC_INTERVAL=100ms"}, "zone-1")
	z := s.Zones[0]
	s.aMesh("m")
	port, stop := app(t, "web-1")
	admin := freePort(t)
	// An address beside that of Envoy's own administration, on systems that have more than one of their own.
	address := "127.0.0.1"
	if runtime.GOOS == "linux" {
		address = "127.0.0.2"
	}
	web := sidecar{
		mesh: "m", name: "web-1", service: "web", port: freePort(t), servicePort: port,
		networking: map[string]any{"address": address, "admin": map[string]any{"port": admin}},
		inbound:    map[string]any{"serviceAddress": "127.0.0.1", "serviceProbe": map[string]any{"tcp": map[string]any{}}},
	}
	client := sidecar{mesh: "m", name: "client-1", service: "client", port: freePort(t), servicePort: freePort(t), outbounds: map[string]int{"web": freePort(t)}}
	proxy := z.proxy(z.options(z.token("dataplane", `{"mesh":"m"}`), web.json(t)))
	from := z.proxy(z.options(z.token("dataplane", `{"mesh":"m"}`), client.json(t)))
	there := func(c *envoy.Config) error {
		if got := endpoints(c, "web"); !slices.Equal(got, []string{fmt.Sprintf("%s:%d", address, web.port)}) {
			return fmt.Errorf("endpoints are %q", got)
		}
		return envoy.Ready(c)
	}
	holds(t, proxy, 10*time.Second, "the first configuration", envoy.Ready)
	holds(t, from, 10*time.Second, "the workload is found to answer", there)
	stop()
	holds(t, from, 5*time.Second, "it is left out", func(c *envoy.Config) error {
		if len(endpoints(c, "web")) > 0 {
			return errors.New("it is there")
		}
		return nil
	})
	again, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", port))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	holds(t, from, 5*time.Second, "it is there again", there)
	sound(t, proxy)
	sound(t, from)

	// The administration of a proxy is open to the control plane, and to others as far as whether it is ready.
	if address == "127.0.0.1" {
		return
	}
	for path, want := range map[string]int{"/ready": http.StatusOK, "/config_dump": http.StatusNotFound} {
		resp, err := http.Get(fmt.Sprintf("http://%s:%d%s", address, admin, path))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s is answered with %s", path, resp.Status)
		}
	}
}

func TestMonitoringSystemsFindTheProxies(t *testing.T) {
	t.Parallel()
	s := newSystem(t, bin, "zone-1")
	z := s.Zones[0]
	s.Global.Must(http.MethodPut, "/meshes/m", `{"type":"Mesh","name":"m","metrics":{"enabledBackend":"p","backends":[{"name":"p","type":"prometheus"}]}}`, 201)
	z.has("/meshes/m/secrets/dataplane-token-signing-key-m-1")
	web := sidecar{mesh: "m", name: "web-1", service: "web", port: freePort(t), servicePort: freePort(t)}
	proxy := z.proxy(z.options(z.token("dataplane", `{"mesh":"m"}`), web.json(t)))
	holds(t, proxy, 10*time.Second, "the first configuration", envoy.Ready)
	z.quickly("telling monitoring systems of the proxy", func() error {
		resp, err := http.Post(fmt.Sprintf("http://localhost:%d/v3/discovery:monitoringassignments?fetch-timeout=0s", z.MADS), "application/json",
			strings.NewReader(`{"type_url":"type.googleapis.com/kuma.observability.v1.MonitoringAssignment","node":{"id":"prometheus"}}`))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		var got struct {
			VersionInfo string `json:"version_info"`
			Resources   []struct {
				Mesh, Service string
				Targets       []struct{ Name, Scheme, Address, MetricsPath string }
			}
		}
		if err := json.NewDecoder(resp.Body).Decode(&got); err != nil {
			return fmt.Errorf("%s: %w", resp.Status, err)
		}
		if resp.StatusCode != http.StatusOK || got.VersionInfo == "" || len(got.Resources) != 1 || got.Resources[0].Mesh != "m" || got.Resources[0].Service != "web" ||
			len(got.Resources[0].Targets) != 1 || got.Resources[0].Targets[0].Name != "web-1" || got.Resources[0].Targets[0].Address != "127.0.0.1:5670" {
			return fmt.Errorf("%s %+v", resp.Status, got)
		}
		return nil
	})
}
