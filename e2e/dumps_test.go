package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/meridian-mesh/meridian/e2e/envoy"
)

// dump is what is looked at of a configuration dump.
type dump struct {
	Configs []map[string]json.RawMessage
	Status  *struct {
		Node           string
		Connected      bool
		DisconnectedAt *time.Time
		ConfigError    string
		Kinds          []struct {
			TypeURL             string `json:"typeUrl"`
			Resources           int
			SentVersion         string
			AcknowledgedVersion string
			PublishedVersion    string
			Pending             bool
			Rejected            *struct{ Version, Reason string }
		}
	}
}

// part returns the part of a dump of a kind, nil when it has none.
func (d *dump) part(kind string) map[string]json.RawMessage {
	i := slices.IndexFunc(d.Configs, func(c map[string]json.RawMessage) bool {
		return string(c["@type"]) == `"type.googleapis.com/envoy.admin.v3.`+kind+`ConfigDump"`
	})
	if i < 0 {
		return nil
	}
	return d.Configs[i]
}

// dumpOf reads a dump, which must not have a secret in it.
func (p *Plane) dumpOf(path string, secrets ...string) (*dump, error) {
	code, b, err := p.Call(http.MethodGet, path, "")
	if err != nil {
		return nil, err
	}
	if code != http.StatusOK {
		return nil, fmt.Errorf("GET %s: %d %s", path, code, b)
	}
	for _, secret := range append(secrets, "PRIVATE KEY") {
		if strings.Contains(string(b), secret) {
			p.t.Errorf("%s shows a secret: %.10s...", path, secret)
		}
	}
	var d dump
	if err := json.Unmarshal(b, &d); err != nil {
		return nil, fmt.Errorf("%w in %.200s", err, b)
	}
	return &d, nil
}

func TestDumpsOfEveryKindOfProxy(t *testing.T) {
	t.Parallel()
	s := newSystem(t, bin, "zone-1")
	z := s.Zones[0]
	s.Global.Must(http.MethodPut, "/meshes/m", `{"type":"Mesh","name":"m","mtls":{"enabledBackend":"ca-1","backends":[{"name":"ca-1","type":"builtin"}]}}`, 201)
	z.has("/meshes/m/secrets/dataplane-token-signing-key-m-1", "/meshes/m/traffic-permissions/allow-all-m")
	token := z.token("dataplane", `{"mesh":"m"}`)

	// One with the administration listener in front of its administration, one without.
	away := sidecar{
		mesh: "m", name: "away", service: "away", port: freePort(t), servicePort: freePort(t),
		networking: map[string]any{"address": "127.0.0.2"}, outbounds: map[string]int{"near": freePort(t)},
	}
	near := sidecar{mesh: "m", name: "near", service: "near", port: freePort(t), servicePort: freePort(t)}
	var proxy *envoy.Proxy // of near
	for _, d := range []sidecar{away, near} {
		o := z.options(token, d.json(t))
		o.Traffic = true
		proxy = z.proxy(o)
		holds(t, proxy, 20*time.Second, "the configuration of "+d.name, envoy.Ready)
	}
	ingress, egress := s.zonal(z, "ingress", freePort(t)), s.zonal(z, "egress", freePort(t))
	holds(t, ingress, 20*time.Second, "the configuration of the ingress", envoy.Ready)
	holds(t, egress, 20*time.Second, "the configuration of the egress", envoy.Ready)

	for _, path := range []string{away.path(), near.path(), "/zoneingresses/ingress", "/zoneegresses/egress"} {
		z.eventually(10*time.Second, "a dump of "+path, func() error {
			d, err := z.dumpOf(path+"/xds?include_eds", token)
			if err != nil {
				return err
			}
			for _, kind := range []string{"Bootstrap", "Clusters", "Listeners", "Endpoints"} {
				if d.part(kind) == nil {
					return fmt.Errorf("the dump of %s has no %s", path, kind)
				}
			}
			if bootstrap := string(d.part("Bootstrap")["bootstrap"]); !strings.Contains(bootstrap, "[redacted]") {
				return errors.New("the token is not masked, or not there")
			}
			return nil
		})
		if d, err := z.dumpOf(path + "/xds"); err != nil || d.part("Endpoints") != nil || d.part("Clusters") == nil {
			t.Errorf("%s without endpoints: %+v, %v", path, d, err)
		}
		if stats := string(z.Must(http.MethodGet, path+"/stats", "", 200)); !strings.Contains(stats, "server.live: 1\n") {
			t.Errorf("statistics of %s: %s", path, stats)
		}
		if clusters := string(z.Must(http.MethodGet, path+"/clusters", "", 200)); !strings.Contains(clusters, "kuma:envoy:admin::") {
			t.Errorf("clusters of %s: %s", path, clusters)
		}
		z.eventually(10*time.Second, "what was sent to "+path, func() error {
			d, err := z.dumpOf(path+"/xds?source=controlplane&include_eds", token)
			switch {
			case err != nil:
				return err
			case d.Status == nil || !d.Status.Connected || d.Status.ConfigError != "" || d.part("Clusters") == nil || d.part("Listeners") == nil:
				return fmt.Errorf("got %+v", d.Status)
			}
			for _, k := range d.Status.Kinds {
				if k.Pending || k.SentVersion == "" || k.AcknowledgedVersion != k.SentVersion || k.Rejected != nil {
					return fmt.Errorf("got %+v", k)
				}
			}
			return nil
		})
	}
	for _, path := range []string{"/xds", "/xds?source=controlplane", "/stats", "/clusters"} {
		z.refusesAnonymous(near.path() + path)
	}

	const reason = "the stand-in does not like it"
	proxy.RejectNext(envoy.Listeners, reason)
	s.Global.Must(http.MethodDelete, "/meshes/m/traffic-permissions/allow-all-m", "", 200)
	z.quickly("showing the rejection", func() error {
		d, err := z.dumpOf(near.path() + "/xds?source=controlplane")
		if err != nil {
			return err
		}
		for _, k := range d.Status.Kinds {
			if k.TypeURL == string(envoy.Listeners) && k.Rejected != nil && k.Rejected.Reason == reason && k.AcknowledgedVersion != k.SentVersion {
				return nil
			}
		}
		return fmt.Errorf("got %+v", d.Status)
	})
	if n := z.metric(`meridian_inspection_questions_total{outcome="ok",view="stats"}`); n < 4 {
		t.Errorf("the metric counts %v answers", n)
	}
}

func TestDumpsOfAProxyThatIsAway(t *testing.T) {
	t.Parallel()
	s := newSystemWith(t, []string{"MERIDIAN_DP_DEREGISTRATION_DELAY=10m"}, "zone-1")
	z := s.Zones[0]
	s.aMesh("m")
	web := sidecar{mesh: "m", name: "web-1", service: "web", port: freePort(t), servicePort: freePort(t)}
	kill := z.proxyToKill(z.options(z.token("dataplane", `{"mesh":"m"}`), web.json(t)))
	acknowledged := func(d *dump) error {
		for _, k := range d.Status.Kinds {
			if k.TypeURL == string(envoy.Listeners) && k.AcknowledgedVersion != "" && k.AcknowledgedVersion == k.SentVersion && k.Resources > 0 {
				return nil
			}
		}
		return fmt.Errorf("listeners are not acknowledged: %+v", d.Status)
	}
	z.eventually(20*time.Second, "a configuration", func() error {
		d, err := z.dumpOf(web.path() + "/xds?source=controlplane")
		if err != nil {
			return err
		}
		return acknowledged(d)
	})
	kill()
	z.shows(web.overview(), false)
	d, err := z.dumpOf(web.path() + "/xds?source=controlplane")
	if err != nil {
		t.Fatal(err)
	}
	if err := acknowledged(d); err != nil || d.Status.Connected || d.Status.DisconnectedAt == nil {
		t.Errorf("%v, %+v", err, d.Status)
	}
	for _, view := range []string{"xds", "stats", "clusters"} {
		body := z.Must(http.MethodGet, web.path()+"/"+view, "", 503)
		if !strings.Contains(string(body), "is not connected") {
			t.Errorf("%s: %s", view, body)
		}
	}
}

// refusesAnonymous asks as nobody: a request with an origin is not taken for a local administrator's.
func (p *Plane) refusesAnonymous(path string) {
	p.t.Helper()
	req, err := http.NewRequestWithContext(p.t.Context(), http.MethodGet, p.url(path), http.NoBody)
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header.Set("Origin", "http://elsewhere.example")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusForbidden {
		p.t.Errorf("GET %s as nobody: %d", path, res.StatusCode)
	}
}
