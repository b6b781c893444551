package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meridian-mesh/meridian/common/store/postgres/pgtest"
)

// A zone's session moves between replicas of the global because the one that holds it is killed, again and again, while writes go
// on by way of the others. What the zone has never goes back, nothing is sent twice in either direction, and every replica
// says within five seconds how the zone stands.
func TestAZonesSessionMovesBetweenReplicas(t *testing.T) {
	const seeded = 20
	r := newReplicas(t, pgtest.Start(t, "fsync=off"), "global", "", 3)
	r.start()
	zone := newPlane(t, bin, "zone", "east")
	zone.env = append(zone.env, "MERIDIAN_ZONE_NAME=east")
	gates := r.admitByGates(zone)
	zone.Start()
	m := &moves{t: t, replicas: r, zone: zone, gates: gates, upstream: seeded}
	for i := range seeded {
		zone.Must(http.MethodPut, fmt.Sprint("/meshes/default/dataplanes/d", i), fmt.Sprintf(dataplaneBody, fmt.Sprint("d", i), "web"), 201)
	}
	m.settled()
	down := zone.metric("meridian_kds_received_resources_total")
	up := zone.metric("meridian_kds_sent_resources_total")

	watched := m.watch()
	m.write()
	var shown moveTimes
	for round := range rounds(3) {
		shown.add(m.move(round))
	}
	m.stopWriting()
	m.settled()
	if problems := watched(); len(problems) > 0 {
		t.Errorf("what the zone has went back or was lost: %q", problems)
	}

	// The metrics are those of the zone, the one process that lives all the time.
	if got, want := zone.metric("meridian_kds_received_resources_total")-down, float64(m.written.Load()); got != want {
		t.Errorf("the zone was sent %v resources, of which %v had changed", got, want)
	}
	if got, want := zone.metric("meridian_kds_sent_resources_total")-up, float64(m.upstream-seeded); got != want {
		t.Errorf("the zone sent %v resources, of which %v had changed", got, want)
	}
	for _, p := range r.planes {
		if open, err := p.openSubscriptions("east"); err != nil || open != 1 {
			t.Errorf("%s shows %d open subscriptions: %v", p.Name, open, err)
		}
		items, err := p.Items("/meshes/default/dataplanes")
		if err != nil || len(items) != m.upstream {
			t.Errorf("%s has %d of %d proxies: %v", p.Name, len(items), m.upstream, err)
		}
	}
	t.Logf("%d writes while the session moved, %d of them waited for the zone: %d answered that it has them, the slowest after %s",
		m.written.Load(), m.waited.Load(), m.acknowledged.Load(), time.Duration(m.slowest.Load()).Round(time.Millisecond))
	shown.log(t)
}

// moves is a zone whose session is moved, and what is written meanwhile.
type moves struct {
	t        *testing.T
	replicas *replicas
	zone     *Plane
	gates    []*pgtest.Proxy
	upstream int // proxies that the zone has made

	// Writers hold the lock for reading during each write. Who holds it for writing decides which replica they do not use.
	mu     sync.RWMutex
	victim *Plane
	stop   chan struct{}
	done   sync.WaitGroup

	written, waited, acknowledged, slowest atomic.Int64
}

// write lets writes go on until stopWriting: one after the other new resources, and new values of one resource that the zone must
// have before the next.
func (m *moves) write() {
	m.stop = make(chan struct{})
	m.done.Go(func() {
		for n := 0; m.pause(100 * time.Millisecond); n++ {
			m.put(fmt.Sprint("new-", n), "x", "")
		}
	})
	m.done.Go(func() {
		for n := 1; m.pause(50 * time.Millisecond); n++ {
			began := time.Now()
			value := fmt.Sprintf("v%06d", n)
			body := m.put("counter", value, "?wait=20s")
			m.waited.Add(1)
			if strings.Contains(body, `"acknowledged":["east"]`) {
				m.acknowledged.Add(1)
				m.slowest.Store(max(m.slowest.Load(), int64(time.Since(began))))
				if has, err := m.counter(); err != nil || has < value {
					m.t.Errorf("the zone is said to have %s and has %q: %v", value, has, err)
				}
				continue
			}
			// Whatever the answer is, the zone gets every value, so that each can be counted.
			m.eventually("the zone having "+value+", of which a replica says "+body, func() error {
				has, err := m.counter()
				if err == nil && has < value {
					err = fmt.Errorf("it has %q", has)
				}
				return err
			})
		}
	})
}

func (m *moves) stopWriting() {
	close(m.stop)
	m.done.Wait()
}

func (m *moves) pause(d time.Duration) bool {
	select {
	case <-m.stop:
		return false
	case <-time.After(d):
		return true
	}
}

// put writes by way of a replica that is not about to die. What it answers is returned without white space.
func (m *moves) put(name, service, query string) string {
	m.mu.RLock()
	defer m.mu.RUnlock()
	n := int(m.written.Add(1))
	all := m.replicas.planes
	p := all[n%len(all)]
	if p == m.victim {
		p = all[(n+1)%len(all)]
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, p.url("/meshes/default/traffic-permissions/"+name+query),
		bytes.NewBufferString(fmt.Sprintf(permissionBody, name, service)))
	if err != nil {
		m.t.Error(err)
		return ""
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		m.t.Errorf("%s: put %s: %v", p.Name, name, err)
		return ""
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode/100 != 2 {
		m.t.Errorf("%s: put %s: %d %s %v", p.Name, name, resp.StatusCode, b, err)
	}
	return strings.Join(strings.Fields(string(b)), "")
}

// counter is the value that the zone has of the resource that is written again and again; "": none yet.
func (m *moves) counter() (string, error) {
	items, err := m.zone.Items("/meshes/default/traffic-permissions")
	if err != nil {
		return "", err
	}
	return serviceOf(items["default/counter"]), nil
}

// serviceOf is the service that a permission of permissionBody is about.
func serviceOf(permission map[string]any) string {
	var p struct {
		Destinations []struct{ Match map[string]string }
	}
	b, err := json.Marshal(permission)
	if err != nil || json.Unmarshal(b, &p) != nil || len(p.Destinations) == 0 {
		return ""
	}
	return p.Destinations[0].Match["kuma.io/service"]
}

// eventually is for writers, which may not end the test.
func (m *moves) eventually(what string, f func() error) {
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) { // another process is awaited
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			m.t.Errorf("not %s within a minute: %v", what, err)
			return
		}
	}
}

// watch follows what the zone has of the resources that are written. What it returns ends that, and says what must not have
// happened: that something was taken away, came a second time, or went back.
func (m *moves) watch() func() (problems []string) {
	ctx, cancel := context.WithCancel(context.Background())
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.zone.url("/meshes/default/traffic-permissions?watch=true"), http.NoBody)
	if err != nil {
		m.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		m.t.Fatal(err)
	}
	var problems []string
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer resp.Body.Close()
		lines, kind, has := bufio.NewScanner(resp.Body), "", map[string]string{}
		for lines.Scan() {
			if name, ok := strings.CutPrefix(lines.Text(), "event: "); ok {
				kind = name
			}
			data, ok := strings.CutPrefix(lines.Text(), "data: ")
			if !ok || kind == "bookmark" {
				continue
			}
			var permission map[string]any
			if err := json.Unmarshal([]byte(data), &permission); err != nil {
				problems = append(problems, fmt.Sprintf("%s: %v", data, err))
				continue
			}
			name, value := fmt.Sprint(permission["name"]), serviceOf(permission)
			if was, known := has[name]; kind == "deleted" || known && value <= was {
				problems = append(problems, fmt.Sprintf("%s: %s %q after %q", name, kind, value, was))
			}
			has[name] = value
		}
		if !errors.Is(lines.Err(), context.Canceled) {
			problems = append(problems, fmt.Sprintf("the watch ended: %v", lines.Err())) //nolint:errorlint // it is nil at a clean end
		}
	}()
	return func() []string {
		cancel()
		<-ended
		return problems
	}
}

// moveTimes are how long replicas took to show how the zone stands: that it is away once its replica was killed, that it is there
// once it could connect to another, the same where it could at once, and a replica that has come back.
type moveTimes struct{ away, back, moved, restarted []time.Duration }

func (m *moveTimes) add(o moveTimes) {
	m.away, m.back = append(m.away, o.away...), append(m.back, o.back...)
	m.moved, m.restarted = append(m.moved, o.moved...), append(m.restarted, o.restarted...)
}

func (m *moveTimes) log(t *testing.T) {
	t.Helper()
	for _, of := range []struct {
		what  string
		times []time.Duration
	}{
		{"inactive after the kill, where the zone could not reconnect", m.away}, {"active after it could again", m.back},
		{"active over another replica after the kill", m.moved}, {"active on the replica that was started again", m.restarted},
	} {
		if len(of.times) > 0 {
			slices.Sort(of.times)
			t.Logf("%s: shown within %s (median), %s (longest of %d)", of.what,
				of.times[len(of.times)/2].Round(time.Millisecond), of.times[len(of.times)-1].Round(time.Millisecond), len(of.times))
		}
	}
}

// truthful is how long a replica may take to show how a zone stands.
const truthful = 5 * time.Second

// move kills the replica that holds the session, and starts it again when the session is with another one. In every other round the
// zone cannot connect for a while.
func (m *moves) move(round int) (times moveTimes) {
	m.t.Helper()
	holder := m.replicas.holder("east")
	m.mu.Lock()
	m.victim = holder
	m.mu.Unlock()
	killed := time.Now()
	holder.Kill()
	survivors := m.replicas.running()
	if round%2 == 1 {
		m.refuse(true)
		times.away = m.shown(survivors, killed, func(z zoneState) bool { return !z.Active })
		killed = time.Now()
		m.refuse(false)
		// It reconnects when its back-off says so.
		m.shownWithin(20*time.Second, survivors[:1], killed, func(z zoneState) bool { return z.Active })
		times.back = m.shown(survivors, time.Now(), func(z zoneState) bool { return z.Active && z.ConnectedSince.After(killed) })
	} else {
		times.moved = m.shown(survivors, killed, func(z zoneState) bool { return z.Active && z.ConnectedSince.After(killed) })
	}
	m.replicas.start()
	times.restarted = m.shown([]*Plane{holder}, time.Now(), func(z zoneState) bool { return z.Active && z.ConnectedSince.After(killed) })
	m.mu.Lock()
	m.victim = nil
	m.mu.Unlock()
	name := fmt.Sprint("d", m.upstream)
	m.zone.Must(http.MethodPut, "/meshes/default/dataplanes/"+name, fmt.Sprintf(dataplaneBody, name, "web"), 201)
	m.upstream++
	for _, p := range m.replicas.planes {
		p.eventually(patience, "given "+name+" by the zone", func() error { return is(p, "/meshes/default/dataplanes/east."+name, http.StatusOK) })
	}
	return times
}

func (m *moves) refuse(refuses bool) {
	for _, g := range m.gates {
		g.Refuse(refuses)
	}
}

// shown waits until replicas show the zone as it is, and returns how long each took since an event.
func (m *moves) shown(planes []*Plane, since time.Time, is func(zoneState) bool) []time.Duration {
	m.t.Helper()
	return m.shownWithin(truthful, planes, since, is)
}

func (m *moves) shownWithin(within time.Duration, planes []*Plane, since time.Time, is func(zoneState) bool) (took []time.Duration) {
	m.t.Helper()
	waiting := slices.Clone(planes)
	m.zone.eventually(within-time.Since(since), "shown as it is", func() error {
		var last error
		waiting = slices.DeleteFunc(waiting, func(p *Plane) bool {
			z, err := p.zoneState("east")
			if err == nil && is(z) {
				took = append(took, time.Since(since))
				return true
			}
			last = fmt.Errorf("%s shows %+v: %w", p.Name, z, err)
			return false
		})
		return last
	})
	for range 10 { // and it stays so
		for _, p := range planes {
			if z, err := p.zoneState("east"); err != nil || !is(z) {
				m.t.Errorf("%s shows the zone for a moment, then %+v: %v", p.Name, z, err)
			}
		}
		time.Sleep(20 * time.Millisecond)
	}
	return took
}

// settled waits until nothing is on its way, as all replicas show.
func (m *moves) settled() {
	m.t.Helper()
	for _, p := range m.replicas.planes {
		p.eventually(30*time.Second, "showing that nothing is on its way", func() error {
			z, err := p.zoneState("east")
			if err == nil && (!z.Active || z.Lag == nil || *z.Lag != 0 || z.LastAck == nil) {
				err = fmt.Errorf("shown: %+v", z)
			}
			if err != nil {
				return err
			}
			items, err := p.Items("/meshes/default/dataplanes")
			if err == nil && len(items) != m.upstream {
				err = fmt.Errorf("it has %d of %d proxies", len(items), m.upstream)
			}
			return err
		})
	}
}

// zoneState is an entry of /status/zones.
type zoneState struct {
	Name           string
	Active         bool
	ConnectedSince time.Time
	LastAck        *time.Time
	Lag            *int
}

func (p *Plane) zoneState(zone string) (zoneState, error) {
	code, b, err := p.Call(http.MethodGet, "/status/zones", "")
	if err != nil || code != http.StatusOK {
		return zoneState{}, fmt.Errorf("%d %w", code, err)
	}
	var list []zoneState
	if err := json.Unmarshal(b, &list); err != nil {
		return zoneState{}, err
	}
	for _, z := range list {
		if z.Name == zone {
			return z, nil
		}
	}
	return zoneState{}, fmt.Errorf("%s is not listed", zone)
}

// openSubscriptions counts those of a zone's insight that are not closed.
func (p *Plane) openSubscriptions(zone string) (open int, err error) {
	code, b, err := p.Call(http.MethodGet, "/zones+insights/"+zone, "")
	if err != nil || code != http.StatusOK {
		return 0, fmt.Errorf("%d %w", code, err)
	}
	var overview struct {
		ZoneInsight struct {
			Subscriptions []struct{ DisconnectTime *time.Time }
		}
	}
	if err := json.Unmarshal(b, &overview); err != nil {
		return 0, err
	}
	for _, s := range overview.ZoneInsight.Subscriptions {
		if s.DisconnectTime == nil {
			open++
		}
	}
	return open, nil
}

// admitByGates gives a zone its token and the addresses of all replicas of the global, each by way of a proxy of its own.
func (r *replicas) admitByGates(z *Plane) (gates []*pgtest.Proxy) {
	r.t.Helper()
	r.admit(z)
	var addresses []string
	for _, p := range r.planes {
		gate := pgtest.NewProxy(r.t, fmt.Sprint("127.0.0.1:", p.KDS))
		gates, addresses = append(gates, gate), append(addresses, fmt.Sprint("grpcs://localhost:", gate.Port()))
	}
	z.env = append(z.env, "MERIDIAN_ZONE_GLOBAL_ADDRESS="+strings.Join(addresses, ","))
	return gates
}
