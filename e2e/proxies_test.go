package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meridian-mesh/meridian/e2e/envoy"
)

// aSecond bounds what is promised to happen within a second; what it took is logged. The rest is for a loaded machine.
const aSecond = 3 * time.Second

// shown is what tells of a proxy in the overview of any kind of proxy.
type shown struct {
	Dataplane          json.RawMessage
	DataplaneInsight   *insight
	ZoneIngressInsight *insight
	ZoneEgressInsight  *insight
}

type insight struct {
	Subscriptions []subscription
	MTLS          *struct {
		CertificateExpirationTime, LastCertificateRegeneration time.Time
		CertificateRegenerations                               uint32
		IssuedBackend                                          string
		SupportedBackends                                      []string
	} `json:"mTLS"`
}

type subscription struct {
	ID                          string
	ControlPlaneInstanceID      string
	ConnectTime, DisconnectTime *time.Time
	Status                      struct {
		Total, CDS, EDS, LDS, RDS *stats
		LastRejection             *struct {
			TypeURL, Message string
			Time             time.Time
		}
		ConfigError string
	}
	Version struct {
		KumaDP struct {
			Version          string
			KumaCPCompatible bool
		}
		Envoy struct {
			Version          string
			KumaDPCompatible bool
		}
		Dependencies map[string]string
	}
}

type stats struct {
	Sent         uint64 `json:"responsesSent,string"`
	Acknowledged uint64 `json:"responsesAcknowledged,string"`
	Rejected     uint64 `json:"responsesRejected,string"`
}

// insightOf reads the insight from an overview.
func (p *Plane) insightOf(overview string) (*insight, error) {
	code, b, err := p.Call(http.MethodGet, overview, "")
	if err != nil {
		return nil, err
	}
	if code != http.StatusOK {
		return nil, fmt.Errorf("GET %s: %d %s", overview, code, b)
	}
	var s shown
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, fmt.Errorf("%w in %s", err, b)
	}
	for _, i := range []*insight{s.DataplaneInsight, s.ZoneIngressInsight, s.ZoneEgressInsight} {
		if i != nil {
			return i, nil
		}
	}
	return &insight{}, nil
}

func (i *insight) online() bool {
	return slices.ContainsFunc(i.Subscriptions, func(s subscription) bool { return s.ConnectTime != nil && s.DisconnectTime == nil })
}

func (i *insight) newest() *subscription {
	if len(i.Subscriptions) == 0 {
		return &subscription{}
	}
	return &i.Subscriptions[len(i.Subscriptions)-1]
}

// shows waits until the overview of a proxy says whether it is online.
func (p *Plane) shows(overview string, online bool) {
	p.t.Helper()
	p.quickly(fmt.Sprintf("%s online=%v", overview, online), func() error {
		i, err := p.insightOf(overview)
		if err == nil && i.online() != online {
			err = fmt.Errorf("online is %v", i.online())
		}
		return err
	})
}

// quickly is eventually for what must happen within a second.
func (p *Plane) quickly(what string, f func() error) {
	p.t.Helper()
	began := time.Now()
	p.eventually(aSecond, what, f)
	p.t.Logf("%s: %s after %s", p.Name, what, time.Since(began).Round(time.Millisecond))
}

// gone waits until a resource is not there.
func (p *Plane) gone(path string, within time.Duration) {
	p.t.Helper()
	p.eventually(within, "without "+path, func() error { return is(p, path, http.StatusNotFound) })
}

// token asks for a token: of kind dataplane or zone.
func (p *Plane) token(kind, body string) string {
	p.t.Helper()
	return string(p.Must(http.MethodPost, "/tokens/"+kind, body, 200))
}

// options are those of a proxy of the zone.
func (p *Plane) options(token, resource string) envoy.Options {
	p.t.Helper()
	ca, err := os.ReadFile(filepath.Join(p.Dir, "trust", "dp-ca.crt"))
	if err != nil {
		p.t.Fatal(err)
	}
	return envoy.Options{
		ControlPlane: fmt.Sprintf("https://localhost:%d", p.Proxies), CA: ca, Token: token, Resource: resource,
		BootstrapRetry: 100 * time.Millisecond, BootstrapTimeout: 20 * time.Second, Backoff: 100 * time.Millisecond,
		Log: slog.New(slog.NewTextHandler(p.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("zone", p.Name),
	}
}

// proxy starts a proxy of the zone and ends it with the test.
func (p *Plane) proxy(o envoy.Options) *envoy.Proxy {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 30*time.Second)
	defer cancel()
	proxy, err := envoy.Start(ctx, o)
	if err != nil {
		p.t.Fatalf("%s: start a proxy: %v", p.Name, err)
	}
	p.t.Cleanup(func() {
		if err := proxy.Close(); err != nil {
			p.t.Errorf("a proxy of %s: %v", p.Name, err)
		}
	})
	return proxy
}

// holds waits until the configuration of a proxy is as cond says, and returns how long that took.
func holds(t testing.TB, proxy *envoy.Proxy, within time.Duration, what string, cond func(*envoy.Config) error) {
	t.Helper()
	began := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	if err := proxy.Wait(ctx, cond); err != nil {
		t.Fatalf("not %s: %v", what, err)
	}
	t.Logf("%s after %s", what, time.Since(began).Round(time.Millisecond))
}

// sound is what must hold of every proxy in the end.
func sound(t testing.TB, proxy *envoy.Proxy) {
	t.Helper()
	c := proxy.Config()
	if len(c.Findings) > 0 {
		t.Errorf("the configuration was not always sound: %q", c.Findings)
	}
	accepted(t, proxy)
}

// accepted is what must hold also of a proxy that services were taken from while it had no stream: on the next one, clusters come
// before the listeners that no longer refer to some.
func accepted(t testing.TB, proxy *envoy.Proxy) {
	t.Helper()
	for _, r := range proxy.History() {
		if r.Rejected != "" {
			t.Errorf("a response was rejected: %+v", r)
		}
	}
}

// sidecar is a Dataplane.
type sidecar struct {
	mesh, name, service string
	port, servicePort   int // servicePort is the workload's
	tags                map[string]string
	outbounds           map[string]int // port by service
	networking          map[string]any // more of it
	inbound             map[string]any // more of it
}

// json is the resource; its administration port is another each time.
func (d sidecar) json(t testing.TB) string {
	t.Helper()
	tags := map[string]string{"kuma.io/service": d.service, "kuma.io/protocol": "tcp"}
	maps.Copy(tags, d.tags)
	inbound := map[string]any{"port": d.port, "servicePort": d.servicePort, "tags": tags}
	maps.Copy(inbound, d.inbound)
	networking := map[string]any{"address": "127.0.0.1", "admin": map[string]any{"port": freePort(t)}, "inbound": []any{inbound}}
	if len(d.outbounds) > 0 {
		var list []any
		for service, port := range d.outbounds {
			list = append(list, map[string]any{"port": port, "tags": map[string]string{"kuma.io/service": service}})
		}
		networking["outbound"] = list
	}
	maps.Copy(networking, d.networking)
	return object(t, map[string]any{"type": "Dataplane", "mesh": d.mesh, "name": d.name, "networking": networking})
}

func object(t testing.TB, v map[string]any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func (d sidecar) overview() string { return "/meshes/" + d.mesh + "/dataplanes+insights/" + d.name }
func (d sidecar) path() string     { return "/meshes/" + d.mesh + "/dataplanes/" + d.name }

// onGlobal is the path of a resource of the zone on the global.
func (p *Plane) onGlobal(path string) string {
	i := strings.LastIndex(path, "/") + 1
	return path[:i] + p.Zone + "." + path[i:]
}

const builtinMesh = `{"type":"Mesh","name":%q,"mtls":{"enabledBackend":"ca-1","backends":[{"name":"ca-1","type":"builtin"}]}}`

// has waits until a plane has a resource.
func (p *Plane) has(paths ...string) {
	p.t.Helper()
	for _, path := range paths {
		p.eventually(10*time.Second, "with "+path, func() error { return is(p, path, http.StatusOK) })
	}
}

// aMesh makes a mesh with mutual TLS, and waits until the zones have what its proxies need.
func (s *System) aMesh(name string) {
	s.Global.t.Helper()
	s.Global.Must(http.MethodPut, "/meshes/"+name, fmt.Sprintf(builtinMesh, name), 201)
	for _, z := range s.Zones {
		z.has("/meshes/"+name, "/meshes/"+name+"/secrets/dataplane-token-signing-key-"+name+"-1",
			"/meshes/"+name+"/secrets/"+name+".ca-builtin-key-ca-1", "/meshes/"+name+"/traffic-routes/route-all-"+name,
			"/meshes/"+name+"/traffic-permissions/allow-all-"+name)
	}
}

// newSystemWith is newSystem with settings for the zones.
func newSystemWith(t testing.TB, env []string, zones ...string) *System {
	t.Helper()
	s := newSystem(t, bin)
	for _, name := range zones {
		z := s.newZone(bin, name)
		z.env = append(z.env, env...)
		z.Start()
		s.Zones = append(s.Zones, z)
	}
	for _, z := range s.Zones {
		s.waitActive(z.Name, true, 15*time.Second)
	}
	return s
}

func TestASidecarFromBootstrapToDeregistration(t *testing.T) {
	t.Parallel()
	s := newSystemWith(t, []string{"MERIDIAN_DP_DEREGISTRATION_DELAY=2s"}, "zone-1")
	z := s.Zones[0]
	s.aMesh("m")
	web := sidecar{mesh: "m", name: "web-1", service: "web", port: freePort(t), servicePort: freePort(t), outbounds: map[string]int{"web": freePort(t)}}
	proxy := z.proxy(z.options(z.token("dataplane", `{"mesh":"m","name":"web-1","tags":{"kuma.io/service":["web"]}}`), web.json(t)))
	holds(t, proxy, 10*time.Second, "the first configuration", envoy.Ready)
	z.shows(web.overview(), true)
	s.Global.shows(z.onGlobal(web.overview()), true)

	// What is counted is what was sent.
	z.quickly("counting what was sent", func() error {
		i, err := z.insightOf(web.overview())
		if err != nil {
			return err
		}
		want := map[string]stats{"total": {}, "cds": {}, "eds": {}, "lds": {}, "rds": {}}
		for kind, c := range proxy.Config().Counters {
			n := stats{Sent: uint64(c.Received), Acknowledged: uint64(c.Accepted), Rejected: uint64(c.Rejected)}
			switch kind { //nolint:exhaustive // the others count in the total only
			case envoy.Clusters:
				want["cds"] = n
			case envoy.Endpoints:
				want["eds"] = n
			case envoy.Listeners:
				want["lds"] = n
			case envoy.Routes:
				want["rds"] = n
			}
			total := want["total"]
			want["total"] = stats{total.Sent + n.Sent, total.Acknowledged + n.Acknowledged, total.Rejected + n.Rejected}
		}
		st := i.newest().Status
		got := map[string]stats{"total": *st.Total, "cds": *st.CDS, "eds": *st.EDS, "lds": *st.LDS, "rds": *st.RDS}
		if diff := cmp.Diff(want, got); diff != "" {
			return fmt.Errorf("(-want +got):\n%s", diff)
		}
		return nil
	})
	i, err := z.insightOf(web.overview())
	if err != nil {
		t.Fatal(err)
	}
	v := i.newest().Version
	if v.KumaDP.Version != "2.0.8" || !v.KumaDP.KumaCPCompatible || v.Envoy.Version != "1.22.7" || !v.Envoy.KumaDPCompatible {
		t.Errorf("versions %+v", v)
	}
	m := i.MTLS
	if m == nil || m.IssuedBackend != "ca-1" || !slices.Equal(m.SupportedBackends, []string{"ca-1"}) || m.CertificateRegenerations != 1 ||
		m.CertificateExpirationTime.Sub(m.LastCertificateRegeneration).Round(time.Minute) != 24*time.Hour {
		t.Errorf("mTLS %+v", m)
	}
	sound(t, proxy)

	// A proxy that comes back in time keeps its resource.
	created := z.Must(http.MethodGet, web.path(), "", 200)
	if err := proxy.Close(); err != nil {
		t.Error(err)
	}
	z.shows(web.overview(), false)
	s.Global.shows(z.onGlobal(web.overview()), false)
	again := z.proxy(z.options(z.token("dataplane", `{"mesh":"m","name":"web-1"}`), string(created)))
	z.shows(web.overview(), true)
	time.Sleep(2500 * time.Millisecond) // the delay, in which nothing must happen
	z.shows(web.overview(), true)
	if err := again.Close(); err != nil {
		t.Error(err)
	}
	left := time.Now()
	z.shows(web.overview(), false)
	z.gone(web.path(), 10*time.Second)
	if took := time.Since(left); took < 1900*time.Millisecond {
		t.Errorf("deregistered after %s", took)
	} else {
		t.Logf("deregistered after %s", took)
	}
	z.gone(web.overview(), aSecond)
	s.Global.gone(z.onGlobal(web.path()), aSecond)
}

func TestASidecarWhoseResourceIsThereBefore(t *testing.T) {
	t.Parallel()
	s := newSystemWith(t, []string{"MERIDIAN_DP_DEREGISTRATION_DELAY=0s"}, "zone-1")
	z := s.Zones[0]
	s.aMesh("m")
	web := sidecar{mesh: "m", name: "web-1", service: "web", port: freePort(t), servicePort: freePort(t)}
	o := z.options(z.token("dataplane", `{"mesh":"m","name":"web-1"}`), "")
	o.Mesh, o.Name = "m", "web-1"
	short := o
	short.BootstrapTimeout = 300 * time.Millisecond
	if _, err := envoy.Start(t.Context(), short); err == nil || !strings.Contains(err.Error(), "does not know the proxy yet") {
		t.Errorf("a proxy that is not known starts: %v", err)
	}
	put := make(chan error, 1)
	body := web.json(t)
	time.AfterFunc(300*time.Millisecond, func() {
		code, b, err := z.Call(http.MethodPut, web.path(), body)
		if err == nil && code != 201 {
			err = fmt.Errorf("%d %s", code, b)
		}
		put <- err
	})
	proxy := z.proxy(o)
	if err := <-put; err != nil {
		t.Fatal(err)
	}
	holds(t, proxy, 10*time.Second, "the first configuration", envoy.Ready)
	z.shows(web.overview(), true)
	sound(t, proxy)
	if err := proxy.Close(); err != nil {
		t.Error(err)
	}
	z.shows(web.overview(), false)
	time.Sleep(500 * time.Millisecond) // nothing must happen: who made the resource removes it
	z.Must(http.MethodGet, web.path(), "", 200)

	// What no retry can mend is refused with a text, over the wire as in the tests of the handler.
	good := sidecar{mesh: "m", name: "x", service: "x", port: 1000, servicePort: 1001}
	replace := func(from, to string) func(*envoy.Options) {
		return func(o *envoy.Options) {
			changed := strings.Replace(o.Resource, from, to, 1)
			if changed == o.Resource {
				t.Fatalf("%s is not in %s", from, o.Resource)
			}
			o.Resource = changed
		}
	}
	for name, tt := range map[string]struct {
		o    func(*envoy.Options)
		code int
		text string
	}{
		"no token":                          {func(o *envoy.Options) { o.Token = "" }, 422, "token is required"},
		"no such mesh":                      {replace(`"mesh":"m"`, `"mesh":"absent"`), 422, `mesh "absent" does not exist`},
		"a bad resource":                    {replace(`"port":1000`, `"port":70000`), 422, "port"},
		"outbounds and a transparent proxy": {replace(`"inbound":`, `"outbound":[{"port":1002,"tags":{"kuma.io/service":"a"}}],"transparentProxying":{"redirectPortInbound":15006,"redirectPortOutbound":15001},"inbound":`), 422, "networking.outbound"},
	} {
		t.Run(name, func(t *testing.T) {
			o := z.options("any", good.json(t))
			tt.o(&o)
			_, err := envoy.Start(t.Context(), o)
			refused, ok := errors.AsType[*envoy.RefusedError](err)
			if !ok || refused.Status != tt.code || !strings.Contains(refused.Body, tt.text) {
				t.Errorf("got %v", err)
			}
		})
	}
	for name, tt := range map[string]struct {
		body string
		code int
	}{
		"what is not JSON":         {"{", 400},
		"an unknown type of proxy": {`{"mesh":"m","name":"x","proxyType":"toaster","dataplaneToken":"a"}`, 500},
		"an unknown proxy":         {`{"mesh":"m","name":"absent","dataplaneToken":"a"}`, 404},
	} {
		t.Run(name, func(t *testing.T) {
			code, b := z.bootstrap(tt.body)
			if code != tt.code || len(b) > 0 {
				t.Errorf("got %d %q, want %d and nothing", code, b, tt.code)
			}
		})
	}
}

// bootstrap posts a body as kuma-dp does, and returns status and body.
func (p *Plane) bootstrap(body string) (int, []byte) {
	p.t.Helper()
	ca, err := os.ReadFile(filepath.Join(p.Dir, "trust", "dp-ca.crt"))
	if err != nil {
		p.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
	}}
	req, err := http.NewRequestWithContext(p.t.Context(), http.MethodPost, fmt.Sprintf("https://localhost:%d/bootstrap", p.Proxies), strings.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp.StatusCode, b
}
