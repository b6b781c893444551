package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/meridian-mesh/meridian/common/store/postgres/pgtest"
	"github.com/meridian-mesh/meridian/e2e/envoy"
)

// tally is what became of the calls of one kind.
type tally struct {
	what string

	mu    sync.Mutex // guards what follows
	took  []time.Duration
	wrong map[string]int
}

func (c *tally) add(took time.Duration, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.took = append(c.took, took)
	if err != nil {
		c.wrong[err.Error()]++
	}
}

// check logs c, and fails unless there were calls, all of them right and none longer than that.
func (c *tally) check(t testing.TB, longest time.Duration) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.took) == 0 {
		t.Errorf("%s: none was made", c.what)
		return
	}
	slices.Sort(c.took)
	last := c.took[len(c.took)-1]
	t.Logf("%s: %d, 99 of 100 within %s, the slowest %s", c.what, len(c.took), c.took[len(c.took)*99/100], last)
	if len(c.wrong) > 0 || last > longest {
		t.Errorf("%s: the slowest took %s, of %s; wrong: %v", c.what, last, longest, c.wrong)
	}
}

// meanwhile makes calls of one kind, one after the other, until stop.
func (m *moment) meanwhile(what string, pause time.Duration, call func(n int) error) *tally {
	c := &tally{what: what, wrong: map[string]int{}}
	m.calls.Go(func() {
		for n := 0; m.ctx.Err() == nil; n++ {
			began := time.Now()
			err := call(n)
			c.add(time.Since(began), err)
			select {
			case <-time.After(pause):
			case <-m.ctx.Done():
			}
		}
	})
	return c
}

// moment is a time in which calls are made.
type moment struct {
	ctx   context.Context //nolint:containedctx // it is what ends the moment
	stop  func()
	calls sync.WaitGroup
}

func newMoment(t testing.TB) *moment {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	m := &moment{ctx: ctx}
	m.stop = func() { cancel(); m.calls.Wait() }
	t.Cleanup(m.stop)
	return m
}

// Two replicas of a global and two of a zone, each plane on a database of its own, and proxies with traffic. First one database is
// away for a while, then the other.
func TestADatabaseOfReplicasIsAway(t *testing.T) {
	away := 10 * time.Second
	if os.Getenv("MERIDIAN_STRESS_ROUNDS") != "" {
		away = time.Minute
	}
	ofGlobals, ofZones := pgtest.Start(t, "fsync=off"), pgtest.Start(t, "fsync=off")
	globals := newReplicas(t, ofGlobals, "global", "", 2)
	globals.start()
	zones := newZoneReplicas(globals, ofZones, "east", 2)
	zones.start()
	globals.holder("east")
	zones.leader()
	all := slices.Concat(globals.planes, zones.planes)
	for _, z := range zones.planes {
		z.has("/meshes/default", "/meshes/default/secrets/dataplane-token-signing-key-default-1", "/meshes/default/traffic-routes/route-all-default")
	}

	workload, _ := app(t, "backend-1")
	outbound := freePort(t)
	backend := sidecar{mesh: "default", name: "backend-1", service: "backend", port: freePort(t), servicePort: workload}
	web := sidecar{
		mesh: "default", name: "web-1", service: "web", port: freePort(t), servicePort: freePort(t),
		outbounds: map[string]int{"backend": outbound},
	}
	var proxies []*envoy.Proxy
	for _, d := range []sidecar{backend, web} {
		o := zones.options(zones.planes[0].token("dataplane", fmt.Sprintf(`{"mesh":"default","name":%q}`, d.name)), d.json(t))
		o.Traffic = true
		proxies = append(proxies, zones.planes[0].proxy(o))
	}
	answers(zones.planes[0], outbound, "backend-1")
	allIsWell(t, globals, zones, 2)

	traffic := newMoment(t)
	calls := traffic.meanwhile("calls through the proxies", 10*time.Millisecond, func(int) error {
		got, err := greet(outbound)
		if err == nil && got != "backend-1 answers hello" {
			err = fmt.Errorf("answered %q", got)
		}
		return err
	})
	for _, fault := range []struct {
		name             string
		server           *pgtest.Server
		without, with    *replicas
		refuses, accepts write
	}{
		{"the zone's", ofZones, zones, globals, aDataplane, aPermission},
		{"the global's", ofGlobals, globals, zones, aPermission, aDataplane},
	} {
		t.Run(fault.name, func(t *testing.T) {
			// A proxy keeps its configuration: the stream that it has, and what was sent on it.
			before := make([]envoy.Config, len(proxies))
			for i, p := range proxies {
				before[i] = *p.Config()
			}
			if err := fault.server.Stop(); err != nil {
				t.Fatal(err)
			}
			m := newMoment(t)
			var reads, refused, accepted []*tally
			for _, p := range all {
				reads = append(reads, m.meanwhile("reads of "+p.Name, 20*time.Millisecond, func(n int) error {
					path := []string{"/meshes/default", "/dataplanes", "/meshes/default/traffic-permissions", "/status/instances"}[n%4]
					return is(p, path, http.StatusOK)
				}))
			}
			for i, p := range fault.without.planes {
				refused = append(refused, m.meanwhile("writes refused by "+p.Name, 50*time.Millisecond, func(n int) error {
					return refusal(p, fault.refuses, fmt.Sprint("refused-", i, "-", n))
				}))
			}
			for i, p := range fault.with.planes {
				accepted = append(accepted, m.meanwhile("writes accepted by "+p.Name, 200*time.Millisecond, func(n int) error {
					return fault.accepts.to(p, fmt.Sprint("accepted-", i, "-", n%10), n)
				}))
			}
			select {
			case <-time.After(away):
			case <-t.Context().Done():
			}
			m.stop()
			for _, c := range reads {
				c.check(t, 3*time.Second)
			}
			for _, c := range refused {
				c.check(t, 11*time.Second) // the first may wait for twice the timeout of the database, 5 s
			}
			for _, c := range accepted {
				c.check(t, 3*time.Second)
			}
			for i, p := range proxies {
				if now := p.Config(); now.Streams != before[i].Streams {
					t.Errorf("proxy %d has opened stream %d, before it was %d", i, now.Streams, before[i].Streams)
				}
			}

			if err := fault.server.Start(); err != nil {
				t.Fatal(err)
			}
			back := time.Now()
			for i, p := range fault.without.planes {
				p.eventually(10*time.Second, "taking writes again", func() error { return fault.refuses.to(p, fmt.Sprint("again-", i), 0) })
				t.Logf("%s takes writes again %s after the database came back", p.Name, time.Since(back).Round(time.Millisecond))
			}
			// Both directions, from any replica to any.
			globals.planes[1].eventually(10*time.Second, "taking a policy", func() error { return aPermission.to(globals.planes[1], "to-zone", int(back.Unix())) })
			zones.planes[1].eventually(10*time.Second, "taking a dataplane", func() error { return aDataplane.to(zones.planes[1], "to-global", int(back.Unix())) })
			for _, z := range zones.planes {
				z.eventually(30*time.Second, "given the new policy", func() error { return shows(z, aPermission.path("to-zone"), fmt.Sprint("s", back.Unix())) })
			}
			t.Logf("what the global takes is in the zone %s after the database came back", time.Since(back).Round(time.Millisecond))
			for _, g := range globals.planes {
				g.eventually(30*time.Second, "given the new dataplane", func() error {
					return shows(g, zones.planes[0].onGlobal(aDataplane.path("to-global")), fmt.Sprint("s", back.Unix()))
				})
			}
			t.Logf("what the zone takes is on the global %s after the database came back", time.Since(back).Round(time.Millisecond))
			allIsWell(t, globals, zones, 2)
			t.Logf("all is shown as it is %s after the database came back", time.Since(back).Round(time.Millisecond))
			for _, p := range all {
				items, err := p.Items(fault.refuses.list)
				if err != nil {
					t.Fatal(err)
				}
				for name := range items {
					if strings.Contains(name, "refused-") {
						t.Errorf("%s has %s, which was refused", p.Name, name)
					}
				}
			}
		})
	}
	traffic.stop()
	calls.check(t, 5*time.Second)
	for i, p := range proxies {
		sound(t, p)
		if n := p.Config().Streams; n != 1 {
			t.Logf("proxy %d has had %d streams", i, n)
		}
	}
}

// write is a kind of resource, made with a service of its own.
type write struct{ list, body string }

var (
	aPermission = write{"/meshes/default/traffic-permissions", permissionBody}
	aDataplane  = write{"/meshes/default/dataplanes", dataplaneBody}
)

func (w write) path(name string) string { return w.list + "/" + name }

// to writes to a plane; it is an error unless that takes it.
func (w write) to(p *Plane, name string, service int) error {
	code, body, err := p.Call(http.MethodPut, w.path(name), fmt.Sprintf(w.body, name, fmt.Sprint("s", service)))
	if err == nil && code != http.StatusOK && code != http.StatusCreated {
		err = fmt.Errorf("PUT answers %d %s", code, body)
	}
	return err
}

// refusal is an error unless a plane refuses a write as one does whose database is away.
func refusal(p *Plane, w write, name string) error {
	req, err := http.NewRequest(http.MethodPut, p.url(w.path(name)), strings.NewReader(fmt.Sprintf(w.body, name, "x")))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := (&http.Client{Timeout: 20 * time.Second}).Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var problem struct{ Title, Details string }
	err = json.NewDecoder(resp.Body).Decode(&problem)
	if err == nil && (resp.StatusCode != http.StatusServiceUnavailable || resp.Header.Get("Retry-After") == "" || problem.Title == "" ||
		!strings.HasPrefix(problem.Details, "The store ")) {
		err = fmt.Errorf("%d, Retry-After %q, %+v", resp.StatusCode, resp.Header.Get("Retry-After"), problem)
	}
	return err
}

// allIsWell waits until every replica shows what there is: two replicas of each plane, one of which leads, the zone with one session,
// and its proxies, each with one stream.
func allIsWell(t testing.TB, globals, zones *replicas, proxies int) {
	t.Helper()
	globals.holder("east")
	for _, r := range []*replicas{globals, zones} {
		leader := r.leader()
		for _, p := range r.planes {
			p.eventually(20*time.Second, "of one mind about the leader", func() error {
				if _, l := p.instances(2); l != leader.Name {
					return fmt.Errorf("%s leads, or %s", leader.Name, l)
				}
				return nil
			})
		}
	}
	online := func(p *Plane, overview string) error {
		i, err := p.insightOf(overview)
		if err != nil {
			return err
		}
		open := 0
		for _, s := range i.Subscriptions {
			if s.DisconnectTime == nil {
				open++
			}
		}
		if open != 1 {
			return fmt.Errorf("%s: %d subscriptions are open of %d", overview, open, len(i.Subscriptions))
		}
		return nil
	}
	for _, p := range slices.Concat(globals.planes, zones.planes) {
		p.eventually(20*time.Second, "showing the proxies and the zone as they are", func() error {
			overview := func(name string) string {
				path := "/meshes/default/dataplanes+insights/" + name
				if p.Zone == "" {
					path = zones.planes[0].onGlobal(path)
				}
				return path
			}
			err := errors.Join(online(p, overview("web-1")), online(p, overview("backend-1")))
			if p.Zone != "" {
				return err
			}
			active, activeErr := (&System{Global: p}).active("east")
			if activeErr == nil && !active {
				activeErr = errors.New("the zone is not active")
			}
			code, body, countErr := p.Call(http.MethodGet, "/mesh-insights/default", "")
			var insight struct{ Dataplanes struct{ Online int } }
			if countErr == nil {
				countErr = json.Unmarshal(body, &insight)
			}
			if countErr == nil && insight.Dataplanes.Online != proxies {
				countErr = fmt.Errorf("%d %d proxies are counted as online", code, insight.Dataplanes.Online)
			}
			return errors.Join(err, activeErr, countErr, p.onlyOpen("east"))
		})
	}
}

// onlyOpen is an error unless one session of a zone is shown as open.
func (p *Plane) onlyOpen(zone string) error {
	code, body, err := p.Call(http.MethodGet, "/zones+insights/"+zone, "")
	if err != nil || code != http.StatusOK {
		return fmt.Errorf("%d %w", code, err)
	}
	var shown struct {
		ZoneInsight struct{ Subscriptions []subscription }
	}
	if err := json.Unmarshal(body, &shown); err != nil {
		return err
	}
	open := 0
	for _, s := range shown.ZoneInsight.Subscriptions {
		if s.DisconnectTime == nil {
			open++
		}
	}
	if open != 1 {
		return fmt.Errorf("%d sessions of the zone are open of %d", open, len(shown.ZoneInsight.Subscriptions))
	}
	return nil
}
