package e2e

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// bin is where TestMain puts the programs.
var bin string

var lastPort atomic.Int64

// nextPort walks through ports below those the system gives to outgoing connections.
func nextPort() int { return int(lastPort.Add(1)) }

func TestMain(m *testing.M) {
	if options := os.Getenv(proxyProcess); options != "" {
		os.Exit(runProxy(options))
	}
	os.Exit(build(m))
}

func build(m *testing.M) int {
	dir, err := os.MkdirTemp("", "meridian-e2e-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command("go", "build", "-o", dir, "../cmd/meridian-global", "../cmd/meridian-zone", "../cmd/meridian-agent",
		"./internal/grpcapp")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		return 1
	}
	bin = dir
	lastPort.Store(int64(20000 + os.Getpid()%5000))
	return m.Run()
}

const (
	permissionBody = `{"type":"TrafficPermission","mesh":"default","name":%q,"sources":[{"match":{"kuma.io/service":"*"}}],"destinations":[{"match":{"kuma.io/service":%q}}]}`
	dataplaneBody  = `{"type":"Dataplane","mesh":"default","name":%q,"networking":{"address":"10.0.0.1","inbound":[{"port":8080,"tags":{"kuma.io/service":%q}}]}}`
	ingressBody    = `{"type":"ZoneIngress","name":"ingress","networking":{"address":"10.0.0.9","port":10001}}`
	egressBody     = `{"type":"ZoneEgress","name":"egress","networking":{"address":"10.0.0.8","port":10002}}`
)

func TestReplicationBothWays(t *testing.T) {
	t.Parallel()
	replicates(t, newSystem(t, bin, "zone-1", "zone-2"), true)
}

// replicates is the main job on a running system, processes or containers. admin: requests have administrator rights.
func replicates(t *testing.T, s *System, admin bool) {
	t.Helper()
	g, z1, z2 := s.Global, s.Zones[0], s.Zones[1]
	for _, z := range s.Zones {
		z.eventually(5*time.Second, "given the default mesh", func() error { return is(z, "/meshes/default", http.StatusOK) })
	}
	g.Must("PUT", "/meshes/m", `{"type":"Mesh","name":"m"}`, 201)
	g.Must("PUT", "/meshes/default/traffic-permissions/a", fmt.Sprintf(permissionBody, "a", "x"), 201)
	paths := []string{"/meshes/m", "/meshes/default/traffic-permissions/a", "/meshes/default/meshtraces/t"}
	if admin {
		g.Must("PUT", "/meshes/m/secrets/s", `{"type":"Secret","mesh":"m","name":"s","data":"c2VjcmV0"}`, 201)
		paths = append(paths, "/meshes/m/secrets/s")
	}
	g.Must("PUT", "/meshes/default/meshtraces/t", `{"type":"MeshTrace","mesh":"default","name":"t","spec":{"targetRef":{"kind":"Mesh"},"default":{"backends":[]}}}`, 201)
	for _, z := range s.Zones {
		for _, path := range paths {
			z.eventually(5*time.Second, "given "+path, func() error { return is(z, path, http.StatusOK) })
		}
		z.Must("PUT", "/meshes/default/traffic-permissions/b", fmt.Sprintf(permissionBody, "b", "x"), 405)
		z.Must("DELETE", "/meshes/m", "", 405)
	}
	g.Must("PUT", "/meshes/default/traffic-permissions/a", fmt.Sprintf(permissionBody, "a", "changed"), 200)
	for _, z := range s.Zones {
		z.eventually(5*time.Second, "updated", func() error { return shows(z, "/meshes/default/traffic-permissions/a", "changed") })
	}
	g.Must("DELETE", "/meshes/default/traffic-permissions/a", "", 200)
	for _, z := range s.Zones {
		z.eventually(5*time.Second, "deleted", func() error { return is(z, "/meshes/default/traffic-permissions/a", http.StatusNotFound) })
	}

	z1.Must("PUT", "/meshes/default/dataplanes/dp-1", fmt.Sprintf(dataplaneBody, "dp-1", "web"), 201)
	z1.Must("PUT", "/zone-ingresses/ingress", ingressBody, 201)
	z1.Must("PUT", "/zoneegresses/egress", egressBody, 201)
	for path, want := range map[string]string{
		"/meshes/default/dataplanes/zone-1.dp-1":          `"kuma.io/zone": "zone-1"`,
		"/meshes/default/dataplanes+insights/zone-1.dp-1": `"dataplaneInsight": {}`,
		"/zone-ingresses/zone-1.ingress":                  `"zone": "zone-1"`,
		"/zoneingresses+insights/zone-1.ingress":          `"zoneIngressInsight": {}`,
		"/zoneegresses/zone-1.egress":                     `"zone": "zone-1"`,
		"/zoneegressoverviews/zone-1.egress":              `"zoneEgressInsight": {}`,
	} {
		g.eventually(5*time.Second, "given "+path, func() error { return shows(g, path, want) })
	}
	for _, p := range []*Plane{g, z1, z2} { // counted on the global, and sent to the zones
		p.eventually(5*time.Second, "told of the service", func() error {
			return shows(p, "/meshes/default/service-insights/web", `"addressPort": "web.mesh:80"`)
		})
	}
	if err := shows(g, "/mesh-insights/default", `"unknown": {`); err != nil { // a version of a proxy that has none
		t.Error(err)
	}
	g.Must("PUT", "/zone-ingresses/zone-1.ingress", strings.Replace(ingressBody, "ingress", "zone-1.ingress", 1), 405)
	z2.eventually(5*time.Second, "given zone-1's ingress", func() error { return is(z2, "/zone-ingresses/zone-1.ingress", http.StatusOK) })
	z1.Must("GET", "/zone-ingresses/zone-1.ingress", "", 404)
	z1.Must("DELETE", "/meshes/default/dataplanes/dp-1", "", 200)
	g.eventually(5*time.Second, "rid of the dataplane", func() error { return is(g, "/meshes/default/dataplanes/zone-1.dp-1", http.StatusNotFound) })
}

// shows reports that the answer of path does not contain want.
func shows(p *Plane, path, want string) error {
	_, b, err := p.Call("GET", path, "")
	if err == nil && !strings.Contains(string(b), want) {
		err = fmt.Errorf("no %s in %s", want, b)
	}
	return err
}

// is reports that path is not answered with the status want.
func is(p *Plane, path string, want int) error {
	code, _, err := p.Call("GET", path, "")
	if err == nil && code != want {
		err = fmt.Errorf("GET %s: %d, not %d", path, code, want)
	}
	return err
}

func TestZoneStatusIsTrue(t *testing.T) {
	t.Parallel()
	s := newSystem(t, bin, "zone-1", "zone-2")
	g, z1, z2 := s.Global, s.Zones[0], s.Zones[1]
	z1.Must("PUT", "/zone-ingresses/ingress", ingressBody, 201)
	z2.eventually(5*time.Second, "given zone-1's ingress", func() error { return is(z2, "/zone-ingresses/zone-1.ingress", http.StatusOK) })

	if status := string(g.Must("GET", "/status/zones", "", 200)); !strings.Contains(status, `"url": "grpcs://127.0.0.1:`) && !strings.Contains(status, `"url": "grpcs://[::1]:`) {
		t.Errorf("no address of a zone in %s", status)
	}
	g.Must("DELETE", "/zones/zone-1", "", 400)
	g.Must("PUT", "/zones/zone-1", `{"type":"Zone","name":"zone-1","enabled":false}`, 200)
	s.waitActive("zone-1", false, time.Second)
	z2.eventually(5*time.Second, "rid of the disabled zone's ingress", func() error { return is(z2, "/zone-ingresses/zone-1.ingress", http.StatusNotFound) })
	g.Must("PUT", "/zones/zone-1", `{"type":"Zone","name":"zone-1","enabled":true}`, 200)
	s.waitActive("zone-1", true, time.Second)
	z2.eventually(5*time.Second, "given it back", func() error { return is(z2, "/zone-ingresses/zone-1.ingress", http.StatusOK) })

	// Another plane under the same name is refused and changes nothing.
	twin := s.newZone(bin, "zone-1")
	twin.Start()
	g.eventually(10*time.Second, "refusing the second zone-1", func() error {
		log, err := os.ReadFile(g.logFile())
		if err == nil && !strings.Contains(string(log), "another control plane uses the name of a connected zone") {
			err = errors.New("not logged")
		}
		return err
	})
	if active, err := s.active("zone-1"); err != nil || !active {
		t.Errorf("zone-1 active: %v, %v", active, err)
	}
	twin.Stop()

	z1.Stop()
	t.Logf("clean stop shown after %s", s.waitActive("zone-1", false, time.Second))
	z1.Start()
	s.waitActive("zone-1", true, 10*time.Second)
	z1.Kill()
	t.Logf("kill -9 shown after %s", s.waitActive("zone-1", false, 5*time.Second))
	z1.Start()
	s.waitActive("zone-1", true, 10*time.Second)
	z1.signal(syscall.SIGSTOP)
	t.Logf("SIGSTOP shown after %s", s.waitActive("zone-1", false, 10*time.Second))
	z1.signal(syscall.SIGCONT)
	t.Logf("SIGCONT shown after %s", s.waitActive("zone-1", true, 20*time.Second))

	// The global dies, and the zone with it: no false online after the restart.
	g.Kill()
	z1.Kill()
	g.Start()
	if active, err := s.active("zone-1"); err != nil || active {
		t.Errorf("zone-1 after the crash of both: active %v, %v", active, err)
	}
	g.Must("DELETE", "/zones/zone-1", "", 200)
	g.Must("GET", "/zone-ingresses/zone-1.ingress", "", 404)
	z2.eventually(20*time.Second, "rid of the deleted zone's ingress", func() error { return is(z2, "/zone-ingresses/zone-1.ingress", http.StatusNotFound) })
}

// writer is a client that writes as fast as it is answered, and remembers what was acknowledged.
type writer struct {
	plane      *Plane
	path, body string // with verbs for the name and the value

	mu    sync.Mutex
	acked map[string]string // last acknowledged value by name; "" is deleted
	open  map[string]bool   // written without an answer since: either value may be there
	total int
}

func (w *writer) run(stop <-chan struct{}, id int) {
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		default:
		}
		name, value := fmt.Sprintf("w%d-%d", id, i%40), fmt.Sprint("v", id, "-", i)
		method, body := http.MethodPut, fmt.Sprintf(w.body, name, value)
		if i%7 == 6 {
			method, body, value = http.MethodDelete, "", ""
		}
		w.mu.Lock()
		w.open[name] = true
		w.mu.Unlock()
		req, err := http.NewRequest(method, w.plane.url(fmt.Sprintf(w.path, name)), strings.NewReader(body))
		if err != nil {
			panic(err)
		}
		if body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		resp, err := client.Do(req)
		if err != nil {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		_ = resp.Body.Close()
		if ok := resp.StatusCode < 300 || method == http.MethodDelete && resp.StatusCode == 404; ok {
			w.mu.Lock()
			w.acked[name] = value
			delete(w.open, name)
			w.total++
			w.mu.Unlock()
		}
	}
}

// lost returns the acknowledged writes that are not there.
func (w *writer) lost(list string) ([]string, error) {
	items, err := w.plane.Items(list)
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for name, value := range w.acked {
		item, ok := items["default/"+name]
		switch {
		case w.open[name]:
		case value == "" && ok:
			out = append(out, name+" is back")
		case value != "" && (!ok || !strings.Contains(fmt.Sprint(item), value)):
			out = append(out, fmt.Sprintf("%s=%s, there is %v", name, value, item))
		}
	}
	return out, nil
}

func TestCrashesLoseNothingAcknowledged(t *testing.T) {
	s := newSystem(t, bin, "zone-1", "zone-2")
	g, z := s.Global, s.Zones[0]
	z.eventually(5*time.Second, "given the default mesh", func() error { return is(z, "/meshes/default", http.StatusOK) })
	g.Must("PUT", "/meshes/default/traffic-permissions/untouched", fmt.Sprintf(permissionBody, "untouched", "x"), 201)
	z.Must("PUT", "/meshes/default/dataplanes/untouched", fmt.Sprintf(dataplaneBody, "untouched", "x"), 201)
	created := map[string]string{}
	createdOf := func(p *Plane, path string) string {
		var at string
		p.eventually(20*time.Second, "serving "+path, func() error {
			items, err := p.Items(path[:strings.LastIndexByte(path, '/')])
			if err != nil {
				return err
			}
			item, ok := items["default/"+filepath.Base(path)]
			if !ok {
				return errors.New("not there")
			}
			at = fmt.Sprint(item["creationTime"])
			return nil
		})
		return at
	}
	untouched := []struct {
		p    *Plane
		path string
	}{
		{g, "/meshes/default/traffic-permissions/untouched"},
		{z, "/meshes/default/traffic-permissions/untouched"},
		{z, "/meshes/default/dataplanes/untouched"},
		{g, "/meshes/default/dataplanes/zone-1.untouched"},
	}
	for _, u := range untouched {
		created[u.p.Name+u.path] = createdOf(u.p, u.path)
	}
	onGlobal := &writer{plane: g, path: "/meshes/default/traffic-permissions/%s", body: permissionBody, acked: map[string]string{}, open: map[string]bool{}}
	onZone := &writer{plane: z, path: "/meshes/default/dataplanes/%s", body: dataplaneBody, acked: map[string]string{}, open: map[string]bool{}}
	var load time.Duration
	many := rounds(5)
	for round := range many {
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for id := range 2 {
			wg.Go(func() { onGlobal.run(stop, id) })
			wg.Go(func() { onZone.run(stop, id) })
		}
		began := time.Now()
		time.Sleep(time.Duration(200+round%5*70) * time.Millisecond)
		load += time.Since(began)
		switch round % 3 {
		case 0:
			g.Kill()
		case 1:
			z.Kill()
		case 2:
			g.Kill()
			z.Kill()
		}
		time.Sleep(50 * time.Millisecond)
		close(stop)
		wg.Wait()
		for _, p := range []*Plane{g, z} {
			if p.cmd == nil {
				p.Start()
			}
		}
		for w, list := range map[*writer]string{onGlobal: "/meshes/default/traffic-permissions", onZone: "/meshes/default/dataplanes"} {
			lost, err := w.lost(list)
			if err != nil || len(lost) > 0 {
				t.Fatalf("round %d: %s lost acknowledged writes: %v %v", round, w.plane.Name, lost, err)
			}
		}
		g.eventually(30*time.Second, "of one mind with the zones", func() error { return equal(s) })
		for _, u := range untouched {
			if at := createdOf(u.p, u.path); at != created[u.p.Name+u.path] {
				t.Fatalf("round %d: %s of %s was created again: %s, then %s", round, u.path, u.p.Name, created[u.p.Name+u.path], at)
			}
		}
	}
	total := onGlobal.total + onZone.total
	rate := float64(total) / load.Seconds()
	t.Logf("%d rounds, %d acknowledged writes, %.0f a second, none lost", many, total, rate)
	if rate < 200 {
		t.Errorf("only %.0f acknowledged writes a second: the load was too light to prove anything", rate)
	}
}

// equal compares what the planes have of each other's resources, times included.
func equal(s *System) error {
	policies, err := s.Global.Items("/traffic-permissions")
	if err != nil {
		return err
	}
	proxies, err := s.Global.Items("/dataplanes")
	if err != nil {
		return err
	}
	want := map[string]map[string]any{}
	for _, z := range s.Zones {
		got, err := z.Items("/traffic-permissions")
		if err != nil {
			return err
		}
		if !reflect.DeepEqual(got, policies) {
			return fmt.Errorf("%s has %d policies, the global %d, or they differ", z.Name, len(got), len(policies))
		}
		own, err := z.Items("/dataplanes")
		if err != nil {
			return err
		}
		for _, item := range own {
			item = maps.Clone(item)
			item["name"] = z.Name + "." + fmt.Sprint(item["name"])
			want[fmt.Sprint(item["mesh"], "/", item["name"])] = item
		}
	}
	if !reflect.DeepEqual(want, proxies) {
		return fmt.Errorf("the zones have %d dataplanes, the global %d, or they differ", len(want), len(proxies))
	}
	return nil
}
