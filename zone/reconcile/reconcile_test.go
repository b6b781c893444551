package reconcile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
	"github.com/meridian-mesh/meridian/zone/envoy"
	"github.com/meridian-mesh/meridian/zone/topology"
	"github.com/meridian-mesh/meridian/zone/xds"
)

// running is a rig in a bubble with a Reconciler that runs until the test ends.
func running(t *testing.T, change func(*Options), first ...store.Op) *rig {
	t.Helper()
	r := newRig(t, change)
	r.write(first...)
	r.start()
	t.Cleanup(r.stop)
	return r
}

// settle lets everything happen that is about to.
func settle() {
	time.Sleep(100 * time.Millisecond)
	synctest.Wait()
}

func (r *rig) config(nodeID string) *xds.Config {
	r.tb.Helper()
	c, _ := r.pub.get(nodeID)
	if c == nil {
		r.tb.Fatalf("nothing is published for %s", nodeID)
	}
	return c
}

func http(service string) tags { return tags{"kuma.io/service": service, "kuma.io/protocol": "http"} }

// spoken is a Status that remembers every word of errors.
type spoken struct {
	*published
	mu    sync.Mutex // guards what follows
	words []string
}

func (s *spoken) ConfigError(_, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.words = append(s.words, text)
}

func TestWhyThereIsNoConfigurationIsToldOnceAndThatItIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := &spoken{}
		broken := workload("10.0.0.1", nil, in(80, http("web")))
		broken.Networking.Admin = &meshv1.EnvoyAdmin{Port: 13}
		r := running(t, func(o *Options) { o.Status = told; told.published = newPublished() },
			put(resource.Mesh, "", "m", &meshv1.Mesh{}), put(resource.Dataplane, "m", "a", broken))
		r.r.Connected(sidecar("m", "a"))
		settle()
		for i := range 5 { // it is tried again, and comes out as before
			r.write(put(resource.Dataplane, "m", "b", workload(fmt.Sprintf("10.0.0.%d", 2+i), nil, in(80, http("api")))))
			settle()
		}
		if tries := testutil.ToFloat64(r.r.metrics.failures); tries < 2 {
			t.Errorf("it was tried %v times", tries)
		}
		if diff := cmp.Diff([]string{"thirteen"}, told.words); diff != "" {
			t.Errorf("told (-want +got):\n%s", diff)
		}
		r.write(put(resource.Dataplane, "m", "a", workload("10.0.0.1", nil, in(80, http("web")))))
		settle()
		if diff := cmp.Diff([]string{"thirteen", ""}, told.words); diff != "" {
			t.Errorf("told when it is over (-want +got):\n%s", diff)
		}
		r.config("m.a")
	})
}

func TestACertificateIsRenewedAtFourFifthsOfItsLifeAndNothingElseChanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := running(t, nil, append(secured(t, "m"), put(resource.Dataplane, "m", "a", workload("10.0.0.1", []string{"api"}, in(80, http("web")))),
			put(resource.Dataplane, "m", "b", workload("10.0.0.2", nil, in(80, http("api")))))...)
		begin := time.Now()
		r.r.Connected(sidecar("m", "a"))
		settle()
		before, cert := r.config("m.a"), r.pub.certificates["m.a"]
		renew := begin.Add(cert.NotAfter.Sub(begin) * 4 / 5)
		time.Sleep(time.Until(renew.Add(-2 * time.Second)))
		synctest.Wait()
		if r.config("m.a") != before {
			t.Error("it is renewed too early")
		}
		time.Sleep(4 * time.Second)
		synctest.Wait()
		after := r.config("m.a")
		for _, k := range allKinds {
			if same := before.Version(k) == after.Version(k); same == (k == xds.Secret) {
				t.Errorf("%s: the same as before: %t", k.TypeURL(), same)
			}
		}
		if now := r.pub.certificates["m.a"]; !now.NotAfter.After(cert.NotAfter) {
			t.Errorf("the new certificate is told to end %s, the old one ended %s", now.NotAfter, cert.NotAfter)
		}
		if _, n := r.pub.get("m.a"); n != 2 {
			t.Errorf("%d publications, want 2", n)
		}
	})
}

func TestAProxyThatReturnsWithinAMinuteHasItsCertificateBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := running(t, nil, append(secured(t, "m"), put(resource.Dataplane, "m", "a", workload("10.0.0.1", nil, in(80, http("web")))))...)
		version := func() string {
			r.r.Connected(sidecar("m", "a"))
			settle()
			return r.config("m.a").Version(xds.Secret)
		}
		away := func(d time.Duration) {
			r.r.Disconnected("m.a")
			time.Sleep(d)
			synctest.Wait()
		}
		first := version()
		away(59 * time.Second)
		if again := version(); again != first {
			t.Error("after 59 seconds it has another certificate")
		}
		away(61 * time.Second)
		if n := len(r.r.kept); n != 0 {
			t.Errorf("%d certificates are kept after more than a minute", n)
		}
		if again := version(); again == first {
			t.Error("after 61 seconds it has the same certificate")
		}
	})
}

func TestVirtualAddressesOutliveThePlane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		t.Cleanup(func() { _ = r.st.Close() })
		addresses := func(write ...store.Op) map[string]string {
			var err error
			if r.r, err = New(r.opts); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- r.r.Run(ctx) }()
			settle()
			for _, op := range write {
				r.write(op)
				settle()
			}
			cancel()
			<-ended
			out := make(map[string]string)
			for _, v := range r.r.world.Mesh("m").VIPs {
				for _, host := range v.Hostnames {
					out[host] = v.Address
				}
			}
			return out
		}
		// Names are given addresses in their order where they come together: these come one by one in another.
		before := addresses(put(resource.Mesh, "", "m", &meshv1.Mesh{}),
			put(resource.Dataplane, "m", "z", workload("10.0.0.1", nil, in(80, http("zebra")))),
			put(resource.Dataplane, "m", "a", workload("10.0.0.2", nil, in(80, http("ant")))))
		if len(before) < 2 {
			t.Fatalf("addresses: %v", before)
		}
		if _, ok := r.st.Snapshot().Get(configKey("m")); !ok {
			t.Fatal("they are not stored")
		}
		if diff := cmp.Diff(before, addresses()); diff != "" {
			t.Errorf("after a start (-before +after):\n%s", diff)
		}
		r.write(store.Delete(configKey("m")))
		if maps.Equal(before, addresses()) {
			t.Error("given anew they would be the same, so that this test shows nothing")
		}
	})
}

// names is a resolver whose answers can be changed.
type names struct {
	mu sync.Mutex // guards what follows
	of map[string]string
}

func (n *names) set(host, address string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.of[host] = address
}

func (n *names) resolve(_ context.Context, host string) ([]string, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.of[host] == "" {
		return nil, errors.New("no such host")
	}
	return []string{n.of[host]}, nil
}

func (r *rig) endpoints(nodeID, cluster string) []string {
	r.tb.Helper()
	var out []string
	res := r.config(nodeID).Get(xds.Endpoint, cluster)
	if res == nil {
		r.tb.Fatalf("%s has no endpoints of %s", nodeID, cluster)
	}
	for _, l := range res.Message.(*endpointv3.ClusterLoadAssignment).GetEndpoints() {
		for _, e := range l.GetLbEndpoints() {
			out = append(out, e.GetEndpoint().GetAddress().GetSocketAddress().GetAddress())
		}
	}
	return out
}

func TestAnEndpointWithAHostNameIsLeftOutUntilItResolves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dns := &names{of: make(map[string]string)}
		r := running(t, func(o *Options) { o.Resolve = dns.resolve },
			put(resource.Mesh, "", "m", &meshv1.Mesh{}),
			put(resource.Dataplane, "m", "a", workload("10.0.0.1", []string{"db"}, in(80, http("web")))),
			put(resource.Dataplane, "m", "b", workload("10.0.0.2", nil, in(80, http("db")))),
			put(resource.Dataplane, "m", "c", workload("db.example", nil, in(80, http("db")))))
		r.r.Connected(sidecar("m", "a"))
		settle()
		wants := func(when string, want ...string) {
			t.Helper()
			got := r.endpoints("m.a", "db-0")
			slices.Sort(got)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", when, diff)
			}
		}
		wants("not resolved", "10.0.0.2")
		dns.set("db.example", "10.0.0.3")
		time.Sleep(resolveInterval + time.Second)
		settle()
		wants("resolved", "10.0.0.2", "10.0.0.3")
		dns.set("db.example", "")
		time.Sleep(resolveInterval + time.Second)
		settle()
		wants("no longer resolved: it keeps the address", "10.0.0.2", "10.0.0.3")
		dns.set("db.example", "10.0.0.4")
		time.Sleep(resolveInterval + time.Second)
		settle()
		wants("resolved to another", "10.0.0.2", "10.0.0.4")
		r.write(put(resource.Dataplane, "m", "c", workload("db2.example", nil, in(80, http("db")))))
		settle()
		wants("another name", "10.0.0.2")
	})
}

func TestTheTopologyIsReadAnewWhenMoreWasDeletedThanIsRemembered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged bytes.Buffer
		r := running(t, func(o *Options) {
			var err error
			_ = o.Store.Close()
			if o.Store, err = store.Open(t.Context(), memory.New(), store.Options{MaxTombstones: 2}); err != nil {
				t.Fatal(err)
			}
			o.Log = slog.New(slog.NewTextHandler(&logged, nil))
		})
		ops := []store.Op{
			put(resource.Mesh, "", "m", &meshv1.Mesh{}), put(resource.Dataplane, "m", "a", workload("10.0.0.1", []string{"db"}, in(80, http("web")))),
		}
		for i := range 9 {
			ops = append(ops, put(resource.Dataplane, "m", fmt.Sprintf("db-%d", i), workload(fmt.Sprintf("10.0.1.%d", i), nil, in(80, http("db")))))
		}
		r.write(ops...)
		r.r.Connected(sidecar("m", "a"))
		settle()
		if n := len(r.endpoints("m.a", "db-0")); n != 9 {
			t.Fatalf("%d endpoints, want 9", n)
		}
		for i := range 8 {
			r.write(del(resource.Dataplane, "m", fmt.Sprintf("db-%d", i)))
		}
		settle()
		if !strings.Contains(logged.String(), "read anew") {
			t.Fatalf("nothing was compacted: %s", logged.String())
		}
		if diff := cmp.Diff([]string{"10.0.1.8"}, r.endpoints("m.a", "db-0")); diff != "" {
			t.Errorf("endpoints (-want +got):\n%s", diff)
		}
	})
}

func TestAProxyThatConnectsDoesNotWaitForAChangeOfTheWholeMesh(t *testing.T) {
	const many = 10 * batchSize
	r := newRig(t, nil)
	t.Cleanup(func() { _ = r.st.Close() })
	ops := []store.Op{put(resource.Mesh, "", "m", &meshv1.Mesh{})}
	for i := range many + 1 {
		ops = append(ops, put(resource.Dataplane, "m", fmt.Sprintf("dp-%d", i), workload("10.0.0.1", nil, in(80, http("web")))))
	}
	r.write(ops...)
	step := func() {
		if err := r.r.step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	r.r.load(r.st.Snapshot())
	for i := range many {
		r.r.connect(sidecar("m", fmt.Sprintf("dp-%d", i)), time.Now())
	}
	for len(r.r.fresh)+len(r.r.queue) > 0 {
		step()
	}
	r.write(put(resource.Mesh, "", "m", &meshv1.Mesh{Routing: &meshv1.Routing{LocalityAwareLoadBalancing: true}}))
	if err := r.r.catchUp(r.st.Snapshot()); err != nil {
		t.Fatal(err)
	}
	step()
	newcomer := sidecar("m", fmt.Sprintf("dp-%d", many))
	r.r.connect(newcomer, time.Now())
	step()
	if _, n := r.pub.get(newcomer.NodeID); n != 1 {
		t.Errorf("%d publications after the next batch, want 1", n)
	}
	if left := len(r.r.queue); left < many-3*batchSize {
		t.Errorf("%d of %d are left: the change was worked off before", left, many)
	}
}

func TestNothingIsDoneAboutWhatProxiesAreNotConfiguredFrom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := running(t, nil, put(resource.Mesh, "", "m", &meshv1.Mesh{}), put(resource.Dataplane, "m", "a", workload("10.0.0.1", nil, in(80, http("web")))))
		r.r.Connected(sidecar("m", "a"))
		settle()
		steps := testutil.ToFloat64(r.r.metrics.reconciles)
		_, before := r.pub.get("m.a")
		for i := range 100 {
			r.write(put(resource.DataplaneInsight, "m", "a", &meshv1.DataplaneInsight{
				Subscriptions: []*meshv1.DiscoverySubscription{{Id: fmt.Sprint(i)}},
			}))
			time.Sleep(time.Second)
		}
		synctest.Wait()
		if n := testutil.ToFloat64(r.r.metrics.reconciles) - steps; n != 0 {
			t.Errorf("%v steps", n)
		}
		if _, n := r.pub.get("m.a"); n != before {
			t.Errorf("%d publications, before %d", n, before)
		}
		r.write(put(policy.TrafficPermission, "m", "all", &meshv1.TrafficPermission{}))
		settle()
		if n := testutil.ToFloat64(r.r.metrics.reconciles) - steps; n != 1 {
			t.Errorf("%v steps for a change of a policy", n)
		}
	})
}

func TestWhatAConfigurationLeavesOutIsLoggedOnceAndCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var logged bytes.Buffer
		r := running(t, func(o *Options) {
			o.Log = slog.New(slog.NewTextHandler(&logged, nil))
			o.Builders = Builders{LoadAssignment: modelAssignment, Sidecar: func(in *Input) (*envoy.Output, error) {
				out, err := modelSidecar(&Input{Mesh: &topology.Mesh{Spec: in.Mesh.Spec, Policies: in.Mesh.Policies}, Dataplane: in.Dataplane})
				for i := range in.Dataplane.GetNetworking().GetAdmin().GetPort() {
					out.Warnings = append(out.Warnings, fmt.Sprintf("left out %d.", i))
				}
				return out, err
			}}
		}, put(resource.Mesh, "", "m", &meshv1.Mesh{}))
		warn := func(name string, n uint32) {
			dp := workload("10.0.0.1", nil, in(80, http("web")))
			dp.Networking.Admin = &meshv1.EnvoyAdmin{Port: n}
			r.write(put(resource.Dataplane, "m", name, dp))
			settle()
		}
		wants := func(when string, proxies float64, lines int) {
			t.Helper()
			if n := testutil.ToFloat64(r.r.metrics.warned); n != proxies {
				t.Errorf("%s: %v proxies are counted, want %v", when, n, proxies)
			}
			if n := strings.Count(logged.String(), "level=WARN"); n != lines {
				t.Errorf("%s: %d warnings are logged, want %d:\n%s", when, n, lines, logged.String())
			}
		}
		warn("a", 2)
		warn("b", 0)
		r.r.Connected(sidecar("m", "a"))
		r.r.Connected(sidecar("m", "b"))
		settle()
		wants("two things of one proxy", 1, 2)
		warn("a", 3)
		wants("a third thing", 1, 3)
		warn("a", 0)
		wants("nothing any more", 0, 3)
		warn("a", 3)
		wants("the same again", 1, 3)
		warn("b", 100)
		wants("very many of another", 2, 3+maxWarnings+1)
		warn("b", 101)
		wants("still more", 2, 3+maxWarnings+1)
		r.r.Disconnected("m.b")
		settle()
		wants("it has gone", 1, 3+maxWarnings+1)
	})
}
