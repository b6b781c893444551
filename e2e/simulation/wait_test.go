package simulation

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/server"
	"github.com/meridian-mesh/meridian/common/store"
)

// delivery is the body of an answer to ?wait.
type delivery struct {
	Revision      int
	Acknowledged  []string
	Rejected      []server.Reason
	Pending       []string
	Offline       []string
	NotApplicable []string
}

// expect is a delivery that names the zones that change sets, and no others.
func expect(change func(*delivery)) delivery {
	d := delivery{Acknowledged: []string{}, Rejected: []server.Reason{}, Pending: []string{}, Offline: []string{}, NotApplicable: []string{}}
	if change != nil {
		change(&d)
	}
	return d
}

// api serves the HTTP API of a global.
type api struct{ *server.Server }

func newAPI(t testing.TB, g *globalPlane) api {
	t.Helper()
	o := server.Options{
		Config: server.Default(), Plane: resource.Global, Store: g.st, Zones: g.table, Replication: g.table,
		EndZoneSession: g.table.End, Log: g.log,
	}
	o.BindAddress, o.HTTPPort, o.HTTPSPort = "127.0.0.1", 0, -1
	s, err := server.New(o)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil { // the handler is all that is needed
		t.Fatal(err)
	}
	return api{s}
}

// do sends a request as a local administrator.
func (a api) do(t testing.TB, ctx context.Context, method, target, body string) (int, delivery) { //nolint:revive // t first, as everywhere here
	t.Helper()
	r := httptest.NewRequestWithContext(ctx, method, target, strings.NewReader(body))
	r.RemoteAddr, r.Host = "127.0.0.1:1", "localhost"
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	a.Handler().ServeHTTP(w, r)
	var d delivery
	if strings.Contains(target, "wait=") {
		if err := json.Unmarshal(w.Body.Bytes(), &d); err != nil {
			t.Errorf("%s %s: %d %q: %v", method, target, w.Code, w.Body, err)
		}
	}
	return w.Code, d
}

// permit writes a TrafficPermission of the mesh default.
func (a api) permit(t testing.TB, name, service, wait string) (int, delivery) {
	t.Helper()
	return a.do(t, context.Background(), http.MethodPut, "/meshes/default/traffic-permissions/"+name+"?wait="+wait, permissionBody(name, service))
}

func permissionBody(name, service string) string {
	return fmt.Sprintf(`{"type":"TrafficPermission","mesh":"default","name":%q,
		"sources":[{"match":{"kuma.io/service":%q}}],"destinations":[{"match":{"kuma.io/service":%q}}]}`, name, service, service)
}

// permitted is the service that a permission names in a store, "" without one.
func permitted(t testing.TB, st *store.Store, name string) string {
	t.Helper()
	rec, ok := st.Snapshot().Get(store.Key{Type: "TrafficPermission", Mesh: "default", Name: name})
	if !ok {
		return ""
	}
	var tp meshv1.TrafficPermission
	if err := proto.Unmarshal(rec.Spec, &tp); err != nil {
		t.Fatal(err)
	}
	return tp.GetSources()[0].GetMatch()["kuma.io/service"]
}

// wants compares an answer; the revision is the global's unless the test says otherwise.
func wants(t *testing.T, g *globalPlane, gotStatus int, got delivery, wantStatus int, want delivery) {
	t.Helper()
	if want.Revision == 0 {
		want.Revision = int(g.st.Snapshot().LastChange("TrafficPermission"))
	}
	if gotStatus != wantStatus {
		t.Errorf("status %d, want %d", gotStatus, wantStatus)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// waitWorld is a global with its API, the mesh default, and zones that are in step.
func waitWorld(t *testing.T, zones ...string) (api, *globalPlane, []*zonePlane, func()) {
	t.Helper()
	g, all, stop := world(t, zones...)
	g.put(t, resource.Mesh, "", "default", meshSpec(0))
	settle(10 * time.Second)
	return newAPI(t, g), g, all, stop
}

func TestWaitSaysWhatEachZoneHas(t *testing.T) {
	const short, long = "5s", "60s"
	for _, tc := range []struct {
		name  string
		zones []string
		play  func(t *testing.T, a api, g *globalPlane, z []*zonePlane)
	}{
		{"no zone", nil, func(t *testing.T, a api, g *globalPlane, _ []*zonePlane) {
			start := time.Now()
			code, d := a.permit(t, "tp", "web", long)
			wants(t, g, code, d, 202, expect(nil))
			if took := time.Since(start); took > 0 {
				t.Errorf("it took %s to find that nobody is there", took)
			}
		}},
		{"every zone has it", []string{"zone-1", "zone-2"}, func(t *testing.T, a api, g *globalPlane, z []*zonePlane) {
			code, d := a.permit(t, "tp", "web", short)
			wants(t, g, code, d, 201, expect(func(d *delivery) { d.Acknowledged = []string{"zone-1", "zone-2"} }))
			for _, zone := range z {
				if got := permitted(t, zone.st, "tp"); got != "web" {
					t.Errorf("%s has %q", zone.name, got)
				}
			}
			code, d = a.permit(t, "tp", "api", short)
			wants(t, g, code, d, 200, expect(func(d *delivery) { d.Acknowledged = []string{"zone-1", "zone-2"} }))
		}},
		{"a write that changes nothing means the version that is there", []string{"zone-1"}, func(t *testing.T, a api, g *globalPlane, _ []*zonePlane) {
			_, first := a.permit(t, "tp", "web", short)
			g.put(t, resource.Mesh, "", "other", meshSpec(0))
			code, d := a.permit(t, "tp", "web", "0s")
			wants(t, g, code, d, 200, expect(func(d *delivery) { d.Acknowledged, d.Revision = []string{"zone-1"}, first.Revision }))
		}},
		{"a deletion", []string{"zone-1"}, func(t *testing.T, a api, g *globalPlane, z []*zonePlane) {
			a.permit(t, "tp", "web", short)
			code, d := a.do(t, t.Context(), "DELETE", "/meshes/default/traffic-permissions/tp?wait=5s", "")
			wants(t, g, code, d, 200, expect(func(d *delivery) { d.Acknowledged = []string{"zone-1"} }))
			if got := permitted(t, z[0].st, "tp"); got != "" {
				t.Errorf("the zone still has %q", got)
			}
		}},
		{"a deletion that takes more along is answered for as a whole", []string{"zone-1"}, func(t *testing.T, a api, g *globalPlane, z []*zonePlane) {
			a.permit(t, "tp", "web", short)
			z[0].valve.delay(2 * time.Second)
			code, d := a.do(t, t.Context(), "DELETE", "/meshes/default?wait=3s", "") // the types are committed one by one
			wants(t, g, code, d, 202, expect(func(d *delivery) { d.Pending = []string{"zone-1"} }))
			settle(time.Minute)
			z[0].valve.delay(0)
			if got := permitted(t, z[0].st, "tp"); got != "" {
				t.Errorf("the zone still has %q", got)
			}
		}},
		{"a slow zone", []string{"zone-1", "zone-2"}, func(t *testing.T, a api, g *globalPlane, z []*zonePlane) {
			z[0].valve.delay(10 * time.Second)
			start := time.Now()
			code, d := a.permit(t, "tp", "web", short)
			wants(t, g, code, d, 202, expect(func(d *delivery) { d.Acknowledged, d.Pending = []string{"zone-2"}, []string{"zone-1"} }))
			if took := time.Since(start); took != 5*time.Second {
				t.Errorf("it waited for %s", took)
			}
			if got := permitted(t, z[0].st, "tp"); got != "" {
				t.Errorf("the slow zone has %q already", got)
			}
			code, d = a.permit(t, "tp", "web", "20s") // the same write again: waits for the version that is there
			wants(t, g, code, d, 200, expect(func(d *delivery) { d.Acknowledged = []string{"zone-1", "zone-2"} }))
			if got := permitted(t, z[0].st, "tp"); got != "web" {
				t.Errorf("the slow zone has %q", got)
			}
			if took := time.Since(start); took != 10*time.Second {
				t.Errorf("it was told after %s, and the zone had it after 10s", took)
			}
			z[0].valve.delay(0)
		}},
		{"an answer to a later revision counts", []string{"zone-1"}, func(t *testing.T, a api, _ *globalPlane, z []*zonePlane) {
			z[0].valve.delay(3 * time.Second)
			var wg sync.WaitGroup
			for i := range 3 {
				wg.Go(func() {
					time.Sleep(time.Duration(i) * time.Second)
					if code, d := a.permit(t, "tp", fmt.Sprint("web-", i), long); code/100 != 2 || code == 202 || len(d.Acknowledged) != 1 {
						t.Errorf("write %d: %d %+v", i, code, d)
					}
				})
			}
			wg.Wait()
			if got := permitted(t, z[0].st, "tp"); got != "web-2" {
				t.Errorf("the zone has %q", got)
			}
			z[0].valve.delay(0)
		}},
		{"a state of several pages counts with the last", []string{"zone-1"}, func(t *testing.T, a api, g *globalPlane, z []*zonePlane) {
			z[0].valve.delay(2 * time.Second)
			g.put(t, "TrafficPermission", "default", "a", permission("first")) // on its way, so that the rest is sent together
			settle(time.Second)
			for i := range 3 {
				g.put(t, "TrafficPermission", "default", fmt.Sprint("big-", i), permission(strings.Repeat("s", 400_000)))
			}
			code, d := a.permit(t, "tp", "web", "3s")
			wants(t, g, code, d, 202, expect(func(d *delivery) { d.Pending = []string{"zone-1"} }))
			code, d = a.permit(t, "tp", "web", long)
			wants(t, g, code, d, 200, expect(func(d *delivery) { d.Acknowledged = []string{"zone-1"} }))
			if got := permitted(t, z[0].st, "tp"); got != "web" {
				t.Errorf("the zone has %q", got)
			}
			z[0].valve.delay(0)
		}},
		{"a zone that is cut off", []string{"zone-1", "zone-2"}, func(t *testing.T, a api, g *globalPlane, _ []*zonePlane) {
			for _, l := range g.net.of("zone-1") {
				l.freeze()
			}
			code, d := a.permit(t, "tp", "web", "1s")
			wants(t, g, code, d, 202, expect(func(d *delivery) { d.Acknowledged, d.Pending = []string{"zone-2"}, []string{"zone-1"} }))
			start := time.Now()
			code, d = a.permit(t, "tp", "api", long)
			wants(t, g, code, d, 200, expect(func(d *delivery) { d.Acknowledged, d.Offline = []string{"zone-2"}, []string{"zone-1"} }))
			if took := time.Since(start); took > 10*time.Second {
				t.Errorf("it took %s to find it gone", took)
			}
			g.net.cut("zone-1")
		}},
		{"a zone that rejects it", []string{"zone-1", "zone-2"}, func(t *testing.T, a api, g *globalPlane, z []*zonePlane) {
			z[0].put(t, "TrafficPermission", "default", "tp", permission("mine"))
			code, d := a.permit(t, "tp", "web", short)
			if len(d.Rejected) != 1 || !strings.Contains(d.Rejected[0].Reason, "already exists") {
				t.Fatalf("%+v", d)
			}
			reason := d.Rejected[0].Reason
			rejected := expect(func(d *delivery) {
				d.Acknowledged, d.Rejected = []string{"zone-2"}, []server.Reason{{Zone: "zone-1", Reason: reason}}
			})
			wants(t, g, code, d, 202, rejected)
			code, d = a.permit(t, "tp", "web", short) // it knows already
			wants(t, g, code, d, 202, rejected)
			z[0].delete(t, "TrafficPermission", "default", "tp")
			code, d = a.permit(t, "tp", "api", short)
			wants(t, g, code, d, 200, expect(func(d *delivery) { d.Acknowledged = []string{"zone-1", "zone-2"} }))
		}},
		{"a zone that is offline", []string{"zone-1", "zone-2"}, func(t *testing.T, a api, g *globalPlane, z []*zonePlane) {
			z[1].stop()
			settle(time.Second)
			code, d := a.permit(t, "tp", "web", short)
			wants(t, g, code, d, 201, expect(func(d *delivery) { d.Acknowledged, d.Offline = []string{"zone-1"}, []string{"zone-2"} }))
			z[0].stop()
			settle(time.Second)
			code, d = a.permit(t, "tp", "api", long)
			wants(t, g, code, d, 202, expect(func(d *delivery) { d.Offline = []string{"zone-1", "zone-2"} }))
		}},
		{"a zone that comes meanwhile counts from then on", []string{"zone-1"}, func(t *testing.T, a api, g *globalPlane, z []*zonePlane) {
			z[0].valve.delay(10 * time.Second)
			late := newZone(t, "zone-2", g)
			var wg sync.WaitGroup
			wg.Go(func() {
				time.Sleep(time.Second)
				late.start(t)
				late.valve.delay(time.Second) // each of its first commits, of which there are many
			})
			code, d := a.permit(t, "tp", "web", long)
			wg.Wait()
			wants(t, g, code, d, 201, expect(func(d *delivery) { d.Acknowledged = []string{"zone-1", "zone-2"} }))
			if got := permitted(t, late.st, "tp"); got != "web" {
				t.Errorf("the late zone has %q", got)
			}
			z[0].valve.delay(0)
			late.valve.delay(0)
			late.stop()
		}},
		{"a zone that reconnects with what it has", []string{"zone-1"}, func(t *testing.T, a api, g *globalPlane, z []*zonePlane) {
			a.permit(t, "tp", "web", short)
			z[0].stop()
			settle(time.Second)
			z[0].start(t)
			code, d := a.permit(t, "tp", "web", long)
			if code != 202 { // it may be connected already, or not yet
				wants(t, g, code, d, 200, expect(func(d *delivery) { d.Acknowledged = []string{"zone-1"} }))
			}
			settle(10 * time.Second)
			code, d = a.permit(t, "tp", "web", "0s")
			wants(t, g, code, d, 200, expect(func(d *delivery) { d.Acknowledged = []string{"zone-1"} }))
		}},
		{"what does not travel", []string{"zone-1"}, func(t *testing.T, a api, g *globalPlane, _ []*zonePlane) {
			nobody := func(target, body string) {
				t.Helper()
				code, d := a.do(t, t.Context(), "PUT", target+"?wait=5s", body)
				want := expect(func(d *delivery) { d.NotApplicable = []string{"zone-1"} })
				want.Revision = int(g.st.Snapshot().Revision())
				d.Revision = want.Revision
				wants(t, g, code, d, code, want)
				if code == 202 {
					t.Errorf("%s: 202", target)
				}
			}
			nobody("/zones/zone-1", `{"type":"Zone","name":"zone-1","enabled":true}`)
			a.do(t, t.Context(), "PUT", "/zones/zone-9", `{"type":"Zone","name":"zone-9"}`)
			if code, d := a.do(t, t.Context(), "DELETE", "/zones/zone-9?wait=5s", ""); code != 200 || !slices.Equal(d.NotApplicable, []string{"zone-1"}) {
				t.Errorf("%d %+v", code, d)
			}
			nobody("/global-secrets/mine", `{"type":"GlobalSecret","name":"mine","data":"eA=="}`)
			nobody("/meshes/default/timeouts/t", `{"type":"Timeout","mesh":"default","name":"t","labels":{"kuma.io/kds-sync":"disabled"},
				"sources":[{"match":{"kuma.io/service":"*"}}],"destinations":[{"match":{"kuma.io/service":"*"}}],"conf":{"connectTimeout":"5s"}}`)
			code, d := a.do(t, t.Context(), "PUT", "/global-secrets/mine?wait=5s", `{"type":"GlobalSecret","name":"mine","data":"eA==","labels":{"kuma.io/kds-sync":"enabled"}}`)
			if code != 200 || !slices.Equal(d.Acknowledged, []string{"zone-1"}) {
				t.Errorf("a secret that was made to travel: %d %+v", code, d)
			}
			code, d = a.do(t, t.Context(), "PUT", "/global-secrets/mine?wait=5s", `{"type":"GlobalSecret","name":"mine","data":"eA=="}`)
			if code != 200 || !slices.Equal(d.Acknowledged, []string{"zone-1"}) {
				t.Errorf("a secret that must go again: %d %+v", code, d)
			}
		}},
		{"a client that goes", []string{"zone-1"}, func(t *testing.T, a api, g *globalPlane, z []*zonePlane) {
			z[0].valve.delay(10 * time.Second)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			start := time.Now()
			a.do(t, ctx, "PUT", "/meshes/default/traffic-permissions/tp?wait=60s", permissionBody("tp", "web"))
			if took := time.Since(start); took != time.Second {
				t.Errorf("the wait went on for %s", took)
			}
			if got := permitted(t, g.st, "tp"); got != "web" {
				t.Errorf("the write is gone: %q", got)
			}
			z[0].valve.delay(0)
			settle(20 * time.Second)
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a, g, z, stop := waitWorld(t, tc.zones...)
				defer stop()
				tc.play(t, a, g, z)
			})
		})
	}
}

// A Kuma zone names what it rejects in the text of its answer, or nothing at all; and it asks for what it knows only.
func TestWaitForAZoneOfKuma(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, g, _, stop := waitWorld(t)
		defer stop()
		raw := g.rawZone(t, "kuma-1")
		defer raw.close()
		s := raw.down()
		if err := s.Send(raw.ask("TrafficPermission")); err != nil {
			t.Fatal(err)
		}
		first, err := s.Recv()
		if err != nil {
			t.Fatal(err)
		}
		code, d := a.permit(t, "tp", "one", "1s")
		wants(t, g, code, d, 202, expect(func(d *delivery) { d.Pending = []string{"kuma-1"} }))
		if err := s.Send(raw.ack(first)); err != nil {
			t.Fatal(err)
		}
		answer := func(reason string) {
			resp, err := s.Recv()
			if err != nil {
				t.Error(err)
				return
			}
			time.Sleep(time.Second)
			req := raw.ack(resp)
			if reason != "" {
				req.ErrorDetail = &status.Status{Message: reason}
			}
			if err := s.Send(req); err != nil {
				t.Error(err)
			}
		}
		var wg sync.WaitGroup
		wg.Go(func() { answer("") })
		code, d = a.permit(t, "tp", "one", "5s")
		wants(t, g, code, d, 200, expect(func(d *delivery) { d.Acknowledged = []string{"kuma-1"} }))
		wg.Wait()

		wg.Go(func() { answer("the store is down") })
		code, d = a.permit(t, "tp", "two", "5s")
		down := expect(func(d *delivery) { d.Rejected = []server.Reason{{Zone: "kuma-1", Reason: "the store is down"}} })
		wants(t, g, code, d, 202, down)
		wg.Wait()
		wg.Go(func() { answer("the store is down") })
		code, d = a.do(t, t.Context(), "DELETE", "/meshes/default/traffic-permissions/tp?wait=5s", "")
		wants(t, g, code, d, 202, down)
		wg.Wait()

		code, d = a.do(t, t.Context(), "PUT", "/meshes/default/retries/r?wait=5s", `{"type":"Retry","mesh":"default","name":"r",
			"sources":[{"match":{"kuma.io/service":"*"}}],"destinations":[{"match":{"kuma.io/service":"*"}}],"conf":{"http":{"numRetries":3}}}`)
		want := expect(func(d *delivery) { d.NotApplicable = []string{"kuma-1"} })
		want.Revision = d.Revision
		wants(t, g, code, d, 201, want)
		settle(time.Second)
	})
}

// TestWaitIsTruthful writes with ?wait while zones are slow, frozen, cut off, restarted and killed. At the moment of
// every answer each zone that is said to have acknowledged a write must have it, or what later writes made of it, in
// its store.
func TestWaitIsTruthful(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		script := rapid.SliceOfN(waitStep(), 1, 40).Draw(rt, "script")
		if wrong := playWaits(t, script); wrong != "" {
			rt.Fatalf("after %v:\n%s", script, wrong)
		}
	})
}

func waitStep() *rapid.Generator[action] {
	return rapid.Custom(func(t *rapid.T) action {
		return action{
			Do: rapid.SampledFrom([]string{
				"put", "put", "put", "put", "delete", "slow", "fast", "cut", "freeze", "restart", "kill", "block", "unblock", "pause",
			}).Draw(t, "do"),
			Zone: rapid.IntRange(0, 2).Draw(t, "zone"),
			Name: rapid.IntRange(0, 3).Draw(t, "name"),
			N:    rapid.IntRange(0, 15).Draw(t, "n"),
		}
	})
}

// blocked is what a zone itself has under a name, so that it rejects what the global has.
const blocked = "blocked"

func playWaits(t *testing.T, script []action) (wrong string) {
	synctest.Test(t, func(t *testing.T) {
		a, g, zones, stop := waitWorld(t, "zone-1", "zone-2", "zone-3")
		defer stop()
		var stores [3]atomic.Pointer[store.Store]
		for i, z := range zones {
			stores[i].Store(z.st)
		}
		var mu sync.Mutex
		complain := func(format string, args ...any) {
			mu.Lock()
			defer mu.Unlock()
			wrong += fmt.Sprintf(format, args...) + "\n"
		}
		// check looks whether a zone has write n of name, or a later one. Writes are numbered in the order of their
		// commits; a deletion is a write too.
		var deleted [4]atomic.Int64 // the newest deletion that was asked for, by name
		check := func(d delivery, name, n int) {
			for _, zone := range d.Acknowledged {
				i := int(zone[len(zone)-1] - '1')
				got := permitted(t, stores[i].Load(), fmt.Sprint("r", name))
				var have int64
				if got != "" && got != blocked {
					_, _ = fmt.Sscanf(got, "s%d", &have)
				} else {
					have = deleted[name].Load()
				}
				if have < int64(n) {
					complain("%s is said to have write %d of r%d and has %q", zone, n, name, got)
				}
			}
		}
		var waits sync.WaitGroup
		for n, step := range script {
			z := zones[step.Zone]
			name := fmt.Sprint("r", step.Name)
			switch step.Do {
			case "put", "delete":
				waits.Go(func() {
					method, body := http.MethodPut, permissionBody(name, fmt.Sprint("s", n))
					if step.Do == "delete" {
						method, body = http.MethodDelete, ""
						deleted[step.Name].Store(int64(n))
					}
					code, d := a.do(t, context.Background(), method, fmt.Sprintf("/meshes/default/traffic-permissions/%s?wait=%ds", name, step.N), body)
					if code != http.StatusNotFound {
						check(d, step.Name, n)
					}
				})
				synctest.Wait() // it is committed, and waits
				time.Sleep(time.Duration(step.N) * 20 * time.Millisecond)
			case "slow":
				z.valve.delay(time.Duration(step.N) * time.Second)
			case "fast":
				z.valve.delay(0)
			case "cut":
				g.net.cut(z.name)
			case "freeze":
				for _, l := range g.net.of(z.name) {
					l.freeze()
				}
			case "restart":
				z.restart(t)
				stores[step.Zone].Store(z.st)
			case "kill":
				z.kill()
				z.start(t)
				stores[step.Zone].Store(z.st)
			case "block":
				rec := record(t, "TrafficPermission", "default", name, permission(blocked))
				_, _ = z.st.Update(t.Context(), func(*store.Snapshot) ([]store.Op, error) { return []store.Op{store.Put(rec).If(0)}, nil })
			case "unblock":
				if rec, ok := z.st.Snapshot().Get(store.Key{Type: "TrafficPermission", Mesh: "default", Name: name}); ok && rec.Origin == "" {
					z.delete(t, "TrafficPermission", "default", name)
				}
			case "pause":
				time.Sleep(time.Duration(step.N) * time.Second)
			}
		}
		waits.Wait()
		for _, z := range zones {
			z.valve.delay(0)
			for i := range 4 {
				if rec, ok := z.st.Snapshot().Get(store.Key{Type: "TrafficPermission", Mesh: "default", Name: fmt.Sprint("r", i)}); ok && rec.Origin == "" {
					z.delete(t, "TrafficPermission", "default", rec.Key.Name)
				}
			}
		}
		settle(5 * time.Minute)
		if code, d := a.permit(t, "last", "last", "30s"); code != 201 || len(d.Acknowledged) != 3 {
			complain("in the end: %d %+v", code, d)
		}
	})
	return wrong
}
