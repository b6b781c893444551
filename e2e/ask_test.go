package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/meridian-mesh/meridian/e2e/envoy"
)

// askLimit is how long a question may take on a loaded machine. Its own limit is 10 s.
const askLimit = 15 * time.Second

// answer is what a plane says to a question about a proxy.
type answer struct {
	code int
	body []byte
	took time.Duration
}

// asks asks a plane about a proxy.
func (p *Plane) asks(path string) answer {
	p.t.Helper()
	a, err := p.tries(path)
	if err != nil {
		p.t.Errorf("%s: GET %s: %v", p.Name, path, err)
	}
	return a
}

func (p *Plane) tries(path string) (answer, error) {
	began := time.Now()
	client := http.Client{Timeout: 2 * askLimit}
	resp, err := client.Get(p.url(path))
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, b, time.Since(began)}, err
}

// fails checks that a question was answered with a problem whose details name something, in time.
func (a answer) fails(t testing.TB, what string, details string, codes ...int) {
	t.Helper()
	var problem struct{ Title, Details string }
	if err := json.Unmarshal(a.body, &problem); err != nil {
		t.Errorf("%s: %d %.200s: %v", what, a.code, a.body, err)
	}
	if !slices.Contains(codes, a.code) || problem.Title != "Could not execute admin operation" || !strings.Contains(problem.Details, details) {
		t.Errorf("%s: %d %.300s, want %v with %q", what, a.code, a.body, codes, details)
	}
	if a.took > askLimit {
		t.Errorf("%s: it took %s", what, a.took)
	}
	t.Logf("%s: %d after %s: %.200s", what, a.code, a.took.Round(time.Millisecond), problem.Details)
}

// kindsOf are the kinds of configuration that a dump has.
func kindsOf(dump []byte) ([]string, error) {
	var d struct {
		Configs []struct {
			Type string `json:"@type"`
		}
	}
	err := json.Unmarshal(dump, &d)
	var out []string
	for _, c := range d.Configs {
		out = append(out, c.Type[strings.LastIndexByte(c.Type, '.')+1:])
	}
	return out, err
}

// subscriptions is how many times a zone has connected, by its insight.
func (s *System) subscriptions(zone string) int {
	s.Global.t.Helper()
	var overview struct {
		ZoneInsight struct{ Subscriptions []json.RawMessage }
	}
	if err := json.Unmarshal(s.Global.Must(http.MethodGet, "/zones+insights/"+zone, "", 200), &overview); err != nil {
		s.Global.t.Fatal(err)
	}
	return len(overview.ZoneInsight.Subscriptions)
}

// worker is a sidecar of a zone whose name tells the zone.
func worker(t testing.TB, z *Plane) sidecar {
	t.Helper()
	return sidecar{mesh: "default", name: "web-of-" + z.Name, service: "web", port: freePort(t), servicePort: freePort(t)}
}

// started starts a proxy of the zone and waits until it has its configuration.
func (p *Plane) started(d sidecar, change func(*envoy.Options)) *envoy.Proxy {
	p.t.Helper()
	o := p.options(p.token("dataplane", fmt.Sprintf(`{"mesh":%q,"name":%q}`, d.mesh, d.name)), d.json(p.t))
	if change != nil {
		change(&o)
	}
	proxy := p.proxy(o)
	holds(p.t, proxy, 15*time.Second, "the configuration of "+d.name, envoy.Ready)
	return proxy
}

func TestTheGlobalAsksProxiesOfEveryZone(t *testing.T) {
	t.Parallel()
	s := newSystem(t, bin, "zone-1", "zone-2")
	g := s.Global
	type asked struct{ zone, path, of string }
	var all []asked
	for _, z := range s.Zones {
		z.has("/meshes/default", "/meshes/default/secrets/dataplane-token-signing-key-default-1")
		d := worker(t, z)
		z.started(d, nil)
		all = append(all, asked{z.Name, d.path(), d.name})
		for _, kind := range []string{"ingress", "egress"} {
			holds(t, s.zonal(z, kind, freePort(t)), 15*time.Second, "the configuration of the "+kind, envoy.Ready)
			all = append(all, asked{z.Name, map[string]string{"ingress": "/zoneingresses/ingress", "egress": "/zoneegresses/egress"}[kind], kind})
		}
	}
	for _, a := range all {
		z := s.Zones[slices.IndexFunc(s.Zones, func(z *Plane) bool { return z.Name == a.zone })]
		path := z.onGlobal(a.path)
		g.has(path)
		for _, view := range []string{"xds", "xds?include_eds", "xds?source=controlplane", "stats", "stats?used_only", "clusters"} {
			here, there := g.asks(path+"/"+view), z.asks(a.path+"/"+view)
			if here.code != 200 || there.code != 200 {
				t.Fatalf("%s of %s of %s: %d %.300s on the global, %d %.300s on the zone", view, a.of, a.zone, here.code, here.body, there.code, there.body)
			}
			t.Logf("%s of %s of %s: %d bytes, %s over the global, %s from its zone", view, a.of, a.zone, len(here.body),
				here.took.Round(time.Microsecond), there.took.Round(time.Microsecond))
			switch {
			case strings.HasPrefix(view, "xds"):
				wants, err := kindsOf(there.body)
				if err != nil {
					t.Fatal(err)
				}
				if got, err := kindsOf(here.body); err != nil || !slices.Equal(got, wants) || len(got) == 0 {
					t.Errorf("%s of %s of %s: %v, %v, want %v as on the zone", view, a.of, a.zone, got, err, wants)
				}
				if !bytes.Contains(here.body, []byte(a.of)) {
					t.Errorf("%s of %s of %s does not name it", view, a.of, a.zone)
				}
			case view == "stats" && !bytes.Contains(here.body, []byte("server.live: 1")):
				t.Errorf("stats of %s of %s: %.300s", a.of, a.zone, here.body)
			}
		}
	}

	for _, z := range s.Zones { // an explanation, and the lack of one
		d := "/meshes/default/dataplanes/web-of-" + z.Name
		for service, want := range map[string]int{"web": 200, "web&format=text": 200, "": 400} {
			path := "/explain?service=" + service
			here, there := g.asks(z.onGlobal(d)+path), z.asks(d+path)
			if here.code != want || there.code != want || want == 200 && !bytes.Equal(here.body, there.body) {
				t.Errorf("%s in %s: %d %.300s on the global, %d %.300s on the zone", path, z.Name, here.code, here.body, there.code, there.body)
			}
			t.Logf("%s in %s: %d after %s", path, z.Name, here.code, here.took.Round(time.Millisecond))
		}
	}

	// Fifty at a time, over both zones.
	var wg sync.WaitGroup
	took := make([]time.Duration, 50)
	began := time.Now()
	for i := range took {
		a := all[i%2*3] // the sidecar of either zone
		path := strings.Replace(a.path, a.of, a.zone+"."+a.of, 1) + "/" + []string{"xds", "stats", "clusters"}[i%3]
		wg.Go(func() {
			got := g.asks(path)
			if took[i] = got.took; got.code != 200 || !strings.HasSuffix(path, "clusters") && len(got.body) == 0 {
				t.Errorf("%s among fifty: %d %.200s", path, got.code, got.body)
			}
		})
	}
	wg.Wait()
	slices.Sort(took)
	t.Logf("fifty at a time: all after %s; half after %s, the last after %s", time.Since(began).Round(time.Millisecond),
		took[25].Round(time.Millisecond), took[49].Round(time.Millisecond))
	if n := g.metric("meridian_proxy_questions_in_flight"); n != 0 {
		t.Errorf("%v questions are still on their way", n)
	}
	for _, z := range s.Zones {
		if n := s.subscriptions(z.Name); n != 1 {
			t.Errorf("%s has connected %d times", z.Name, n)
		}
	}
}

func TestADeadProxyIsAskedOverTheGlobal(t *testing.T) {
	t.Parallel()
	s := newSystem(t, bin, "zone-1")
	g, z := s.Global, s.Zones[0]
	z.has("/meshes/default", "/meshes/default/secrets/dataplane-token-signing-key-default-1")
	d := worker(t, z)
	kill := z.proxyToKill(z.options(z.token("dataplane", `{"mesh":"default"}`), d.json(t)))
	z.shows(d.overview(), true)
	path := z.onGlobal(d.path())
	g.has(path)
	// What it is sent last is what is shown of it when it is dead: so it lives until it has all.
	z.eventually(15*time.Second, "configured and asked", func() error {
		for _, query := range []string{"", "?source=controlplane"} {
			a, err := g.tries(path + "/xds" + query)
			if err != nil {
				return err
			}
			kinds, err := kindsOf(a.body)
			if err != nil {
				return err
			}
			if a.code != 200 || !slices.Contains(kinds, "ListenersConfigDump") {
				return fmt.Errorf("%s: %d %.200s: %v", query, a.code, a.body, kinds)
			}
		}
		return nil
	})
	kill()
	z.shows(d.overview(), false)
	for _, view := range []string{"xds", "stats", "clusters"} {
		g.asks(path+"/"+view).fails(t, view+" of a dead proxy", "not connected", 503)
	}
	sent := g.asks(path + "/xds?source=controlplane")
	if kinds, err := kindsOf(sent.body); sent.code != 200 || err != nil || !slices.Contains(kinds, "ListenersConfigDump") {
		t.Errorf("what was sent to it: %d %.300s: %v, %v", sent.code, sent.body, kinds, err)
	}
	t.Logf("what its control plane sent to it: %d bytes after %s", len(sent.body), sent.took.Round(time.Millisecond))
}

func TestADumpThatIsTooLargeIsAnErrorAndDisturbsNobody(t *testing.T) {
	t.Parallel()
	s := newSystem(t, bin, "zone-1")
	g, z := s.Global, s.Zones[0]
	z.has("/meshes/default", "/meshes/default/secrets/dataplane-token-signing-key-default-1")
	d := worker(t, z)
	z.started(d, func(o *envoy.Options) { o.DumpBytes = 11 << 20 })
	path := z.onGlobal(d.path())
	g.has(path)
	stop := make(chan struct{})
	var asking sync.WaitGroup
	asked := 0
	asking.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			g.asks(path+"/xds").fails(t, "a dump of 11 MiB", "bytes", 502)
			asked++
		}
	})
	var slowest time.Duration
	for i := range 10 {
		name := fmt.Sprint("meanwhile-", i)
		began := time.Now()
		g.Must(http.MethodPut, "/meshes/default/timeouts/"+name, fmt.Sprintf(
			`{"type":"Timeout","mesh":"default","name":%q,"sources":[{"match":{"kuma.io/service":"*"}}],"destinations":[{"match":{"kuma.io/service":"*"}}],"conf":{"connectTimeout":"5s"}}`, name), 201)
		z.has("/meshes/default/timeouts/" + name)
		slowest = max(slowest, time.Since(began))
	}
	close(stop)
	asking.Wait()
	t.Logf("ten writes reached the zone among %d questions, the slowest after %s", asked, slowest.Round(time.Millisecond))
	if asked == 0 {
		t.Error("nothing was asked meanwhile")
	}
	if got := g.asks(path + "/stats"); got.code != 200 {
		t.Errorf("stats after it: %d %.200s", got.code, got.body)
	}
	if n := s.subscriptions(z.Name); n != 1 {
		t.Errorf("the zone has connected %d times", n)
	}
}

func TestProxiesOfAZoneThatIsCutOffCannotBeAsked(t *testing.T) {
	t.Parallel()
	s := newSystem(t, bin, "zone-1", "zone-2")
	g, cut := s.Global, s.Zones[1]
	paths := map[string]string{}
	for _, z := range s.Zones {
		z.has("/meshes/default", "/meshes/default/secrets/dataplane-token-signing-key-default-1")
		d := worker(t, z)
		z.started(d, nil)
		paths[z.Name] = z.onGlobal(d.path()) + "/xds"
		g.has(z.onGlobal(d.path()))
	}
	there := func() {
		t.Helper()
		if a := g.asks(paths["zone-1"]); a.code != 200 || a.took > askLimit {
			t.Errorf("the other zone: %d %.200s after %s", a.code, a.body, a.took)
		}
	}
	back := func() {
		t.Helper()
		s.waitActive("zone-2", true, 20*time.Second)
		g.eventually(30*time.Second, "answering for zone-2 again", func() error {
			a, err := g.tries(paths["zone-2"])
			if err == nil && a.code != 200 {
				err = fmt.Errorf("%d %.200s", a.code, a.body)
			}
			return err
		})
	}
	cut.signal(syscall.SIGSTOP)
	frozen := make(chan answer, 1)
	go func() { frozen <- g.asks(paths["zone-2"]) }()
	there() // meanwhile
	(<-frozen).fails(t, "of a zone that is frozen", `zone "zone-2"`, 503, 504)
	s.waitActive("zone-2", false, 15*time.Second)
	g.asks(paths["zone-2"]).fails(t, "once that is known", `zone "zone-2" is offline`, 503)
	cut.signal(syscall.SIGCONT)
	back()
	cut.Stop()
	s.waitActive("zone-2", false, 15*time.Second)
	g.asks(paths["zone-2"]).fails(t, "of a zone that is stopped", `zone "zone-2" is offline`, 503)
	there()
	cut.Start()
	back()
	g.Must(http.MethodPut, "/zones/zone-2", `{"type":"Zone","name":"zone-2","enabled":false}`, 200)
	g.asks(paths["zone-2"]).fails(t, "of a zone that is disabled", `zone "zone-2" is disabled`, 503)
}
