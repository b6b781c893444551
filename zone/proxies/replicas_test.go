package proxies

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"pgregory.net/rapid"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/tokens"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/storetest"
	"github.com/meridian-mesh/meridian/zone/xds"
)

// view is what a replica knows of the others.
type view struct {
	mu      sync.Mutex // guards what follows
	gone    map[string]bool
	changed chan struct{}
}

func (v *view) Gone(instance string) bool { v.mu.Lock(); defer v.mu.Unlock(); return v.gone[instance] }

func (v *view) Changed() <-chan struct{} { v.mu.Lock(); defer v.mu.Unlock(); return v.changed }

func (v *view) set(instance string, gone bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.gone[instance] != gone {
		v.gone[instance] = gone
		close(v.changed)
		v.changed = make(chan struct{})
	}
}

// replicas are several planes of a zone on one database.
type replicas struct {
	*testing.T
	db   *storetest.Database
	list []*rig // dead ones too, by the number in their names
	cfg  Config
}

// simulateReplicas runs a test with three replicas, cp-0 to cp-2, in a bubble.
func simulateReplicas(t *testing.T, change func(*Config), test func(p *replicas)) {
	t.Helper()
	keys()
	synctest.Test(t, func(t *testing.T) {
		t.Helper()
		p := &replicas{T: t, db: storetest.NewDatabase(), cfg: DefaultConfig()}
		if change != nil {
			change(&p.cfg)
		}
		p.begin()
		test(p)
	})
}

func (p *replicas) begin() {
	for range 3 {
		p.add()
	}
	synctest.Wait()
}

// add starts one more replica.
func (p *replicas) add() *rig {
	p.Helper()
	r := p.unstarted()
	r.start()
	return r
}

// unstarted is a replica whose registry does not run.
func (p *replicas) unstarted() *rig {
	p.Helper()
	v := &view{gone: make(map[string]bool), changed: make(chan struct{})}
	r := &rig{T: p.T, backend: p.db.Replica(), events: &events{}, instance: fmt.Sprintf("cp-%d", len(p.list)), members: v, cfg: p.cfg}
	for _, o := range p.list {
		if o.dead {
			v.gone[o.instance] = true
		}
	}
	r.openStore()
	if len(p.list) == 0 {
		r.furnish()
	}
	p.list = append(p.list, r)
	return r
}

// kill ends a replica without a word: nothing it knows reaches the store any more.
func (p *replicas) kill(r *rig) {
	p.Helper()
	r.dead = true
	_ = r.store.Close()
	r.stop()
}

// find has the others find out that a replica is dead, or believe it.
func (p *replicas) find(dead *rig) {
	for _, r := range p.list {
		if r != dead {
			r.members.(*view).set(dead.instance, true)
		}
	}
	synctest.Wait()
}

// any is a replica that is alive.
func (p *replicas) any() *rig {
	return p.list[slices.IndexFunc(p.list, func(r *rig) bool { return !r.dead })]
}

// wants compares the subscriptions of a proxy with what they should be: instance and + open, - closed, or ! about to be removed.
func (p *replicas) wants(when string, want ...string) {
	p.Helper()
	synctest.Wait()
	var got []string
	for _, s := range p.any().insight().GetSubscriptions() {
		state := "+"
		if s.GetDeregistering() {
			state = "!"
		} else if s.GetDisconnectTime() != nil {
			state = "-"
		}
		got = append(got, s.GetControlPlaneInstanceId()+state)
	}
	if !slices.Equal(got, want) {
		p.Errorf("%s: the subscriptions are %v, want %v", when, got, want)
	}
}

func (p *replicas) there(when string) {
	p.Helper()
	if !p.any().exists(resource.Dataplane, "default", "backend-1") {
		p.Fatalf("%s: the resource is removed", when)
	}
}

func (p *replicas) removed(when string) {
	p.Helper()
	if p.any().exists(resource.Dataplane, "default", "backend-1") || p.any().exists(resource.DataplaneInsight, "default", "backend-1") {
		p.Fatalf("%s: the resource is still there", when)
	}
}

const listenerType = "type.googleapis.com/envoy.config.listener.v3.Listener"

func TestAProxyMovesWhileItsOldStreamIsHalfOpen(t *testing.T) {
	simulateReplicas(t, nil, func(p *replicas) {
		old := p.list[0].mustOpen(backendNode(), p.list[0].dpToken())
		p.wants("connected", "cp-0+")
		now := p.list[1].mustOpen(backendNode(), p.list[1].dpToken())
		p.wants("moved", "cp-0-", "cp-1+")
		closed := p.any().insight().GetSubscriptions()[0].GetDisconnectTime().AsTime()
		pause(3 * time.Second)
		old.Sent(listenerType) // a late flush of the old replica
		pause(3 * time.Second)
		p.wants("after a late flush", "cp-0-", "cp-1+")
		sub := p.any().insight().GetSubscriptions()[0]
		if !sub.GetDisconnectTime().AsTime().Equal(closed) || sub.GetStatus().GetLds().GetResponsesSent() != 1 {
			t.Errorf("after a late flush the old subscription is %v", sub)
		}
		old.Close()
		pause(time.Hour)
		p.there("the old stream has ended")
		if s := p.any().insight().GetSubscriptions(); s[1].GetDisconnectTime() != nil || s[0].GetId() != old.subscriptionID {
			t.Errorf("the insight is %v", s)
		}
		now.Close()
		p.wants("gone", "cp-0!", "cp-1!")
		pause(11 * time.Second)
		p.removed("gone for long")
	})
}

func TestTheOldStreamIsLeftWhenTheNewerEnds(t *testing.T) {
	simulateReplicas(t, nil, func(p *replicas) {
		old := p.list[0].mustOpen(backendNode(), p.list[0].dpToken())
		pause(time.Second)
		p.list[1].mustOpen(backendNode(), p.list[1].dpToken()).Close()
		p.wants("the newer one has ended", "cp-1!", "cp-0+")
		pause(time.Hour)
		p.there("connected")
		old.Close()
		pause(11 * time.Second)
		p.removed("gone")
	})
}

func TestADeadReplicaLeavesNobodyOnline(t *testing.T) {
	simulateReplicas(t, nil, func(p *replicas) {
		dead := p.list[0]
		dead.mustOpen(backendNode(), dead.dpToken())
		p.list[1].mustOpen(proxyNode("web-1"), dead.dpToken()) // goes on
		pause(time.Second)
		p.kill(dead)
		pause(time.Second)
		p.wants("before it is known", "cp-0+")
		revision := p.any().store.Snapshot().Revision()
		p.find(dead)
		p.wants("once it is known", "cp-0-")
		if n := p.any().store.Snapshot().Revision() - revision; n != 1 {
			t.Errorf("it is closed in %d batches", n) // more, where others were closed too and are opened again
		}
		pause(time.Hour)
		p.there("its replica has died")
		p.list[2].mustOpen(backendNode(), p.list[2].dpToken())
		pause(time.Hour / 2)
		p.wants("back", "cp-0-", "cp-2+")
	})
}

func TestARemovalOutlivesWhoAnnouncedIt(t *testing.T) {
	for _, back := range []string{"never", "with its resource", "without"} {
		t.Run("back "+back, func(t *testing.T) {
			simulateReplicas(t, nil, func(p *replicas) {
				dead := p.list[0]
				dead.mustOpen(backendNode(), dead.dpToken()).Close()
				pause(5 * time.Second)
				p.kill(dead)
				pause(5 * time.Second)
				p.find(dead)
				pause(9 * time.Second)
				p.there("it has not had the whole delay")
				p.wants("announced", "cp-0!")
				if back == "never" {
					pause(2 * time.Second)
					p.removed("the delay is over")
					return
				}
				n := backendNode()
				if back == "without" {
					n = aNode("default.backend-1", nil)
				}
				p.list[2].mustOpen(n, p.list[2].dpToken())
				pause(time.Hour / 2)
				p.there("it is back")
				p.wants("back", "cp-0-", "cp-2+")
			})
		})
	}
}

// Two of three believe that a replica is dead which is not, and go on to.
func TestAReplicaThatIsTakenForDeadSaysOtherwise(t *testing.T) {
	simulateReplicas(t, nil, func(p *replicas) {
		s := p.list[0].mustOpen(backendNode(), p.list[0].dpToken())
		pause(time.Second)
		revision := p.any().store.Snapshot().Revision()
		p.find(p.list[0])
		pause(time.Minute)
		p.wants("taken for dead", "cp-0+")
		if n := p.any().store.Snapshot().Revision() - revision; n > 4 {
			t.Errorf("%d batches are committed about it", n)
		}
		s.Close()
		p.wants("gone", "cp-0!")
		pause(11 * time.Second)
		p.removed("gone")
	})
}

func TestCertificatesAreThoseOfTheNewestStream(t *testing.T) {
	simulateReplicas(t, nil, func(p *replicas) {
		backend := func() string { return p.any().insight().GetMTLS().GetIssuedBackend() }
		regenerations := func() uint32 { return p.any().insight().GetMTLS().GetCertificateRegenerations() }
		tell := func(r *rig, by string) {
			r.registry.Certificate("default.backend-1", &Certificate{Backend: by, Issued: time.Now(), NotAfter: time.Now().Add(time.Hour)})
			pause(2 * time.Second)
		}
		p.list[0].mustOpen(backendNode(), p.list[0].dpToken())
		tell(p.list[0], "a")
		now := p.list[1].mustOpen(backendNode(), p.list[1].dpToken())
		synctest.Wait()
		if backend() != "a" || regenerations() != 1 {
			t.Errorf("before it has another, its certificate is by %q, after %d", backend(), regenerations())
		}
		tell(p.list[1], "b")
		tell(p.list[0], "late")
		if backend() != "b" || regenerations() != 2 {
			t.Errorf("its certificate is by %q, after %d", backend(), regenerations())
		}
		now.Close()
		pause(2 * time.Second)
		if backend() != "late" || regenerations() != 3 {
			t.Errorf("on the stream that is left its certificate is by %q, after %d", backend(), regenerations())
		}
	})
}

// A gRPC program and the agent that registers it, each at a replica of its own.
func TestStreamsAtTwoReplicasAreOneProxy(t *testing.T) {
	for _, first := range []int{0, 1} {
		simulateReplicas(t, nil, func(p *replicas) {
			agent := p.list[0].mustOpen(backendNode(), p.list[0].dpToken())
			synctest.Wait()
			both := []*Session{agent, p.list[1].mustOpen(aNode("default.backend-1", nil), p.list[1].dpToken())}
			pause(time.Second)
			both[first].Close()
			pause(time.Minute)
			p.there("a stream is open")
			both[1-first].Close()
			pause(time.Minute)
			p.removed("both have ended")
		})
	}
}

func TestThatAResourceWasBroughtIsNotForgotten(t *testing.T) {
	simulateReplicas(t, nil, func(p *replicas) {
		agent := p.list[0].mustOpen(backendNode(), p.list[0].dpToken())
		synctest.Wait()
		program := p.list[1].mustOpen(aNode("default.backend-1", nil), p.list[1].dpToken())
		pause(time.Second)
		agent.Close()
		for range 5 { // its connections are made anew
			pause(time.Second)
			next := p.list[1].mustOpen(aNode("default.backend-1", nil), p.list[1].dpToken())
			pause(time.Second)
			program.Close()
			program = next
		}
		pause(time.Minute)
		p.there("a stream is open")
		program.Close()
		pause(time.Minute)
		p.removed("all have ended")
	})
}

// A replica that has not seen yet that the proxy was back elsewhere, and left again, does not cut its new delay short.
func TestARemovalIsOfTheAnnouncementItWasMadeFor(t *testing.T) {
	simulateReplicas(t, nil, func(p *replicas) {
		p.list[0].mustOpen(backendNode(), p.list[0].dpToken()).Close()
		pause(time.Second)
		insight := store.Key{Type: "DataplaneInsight", Mesh: "default", Name: "backend-1"}
		id := p.any().insight().GetSubscriptions()[0].GetId()
		p.list[1].mustOpen(backendNode(), p.list[1].dpToken()).Close()
		pause(time.Second)
		if removed, _, err := p.list[0].registry.remove(p.Context(), []departure{{insight, id, time.Now()}}); err != nil || len(removed) > 0 {
			t.Errorf("removed: %v, %v", removed, err)
		}
		p.there("it has just left")
	})
}

// What is stored of a session that begins must keep the resource, since other replicas remove it by what is stored alone.
func TestAResourceIsNotRemovedWhileItsProxyConnectsElsewhere(t *testing.T) {
	for _, c := range []struct {
		name string
		node *corev3.Node
		age  time.Duration
	}{
		{"about to be deregistered, it brings its resource", backendNode(), 9 * time.Second},
		{"about to be deregistered, it brings none", aNode("default.backend-1", nil), 9 * time.Second},
		{"offline for long, it brings its resource", backendNode(), 71*time.Hour + 59*time.Minute},
		{"offline for long, it brings none", aNode("default.backend-1", nil), 71*time.Hour + 59*time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			simulateReplicas(t, func(cfg *Config) {
				if c.age > time.Hour {
					cfg.DeregistrationDelay = 1000 * time.Hour
				}
			}, func(p *replicas) {
				p.list[0].mustOpen(backendNode(), p.list[0].dpToken()).Close()
				pause(c.age)
				slow := p.unstarted() // it has not stored the insight
				registry, err := New(p.Context(), Options{
					Config: p.cfg, Zone: "zone-1", InstanceID: slow.instance, Store: slow.store, Authority: tokens.NewAuthority(), Members: slow.members,
				})
				if err != nil {
					t.Fatal(err)
				}
				s, err := registry.Open(p.Context(), xds.Opening{Node: c.node, Authorization: []string{slow.dpToken()}})
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close()
				pause(5 * time.Minute)
				p.there("it is connected")
				if err := s.Check(); err != nil {
					t.Errorf("its stream ends: %v", err)
				}
			})
		})
	}
}

// At the same moment the removal is due at one replica and the proxy is back at another, whichever comes first.
func TestAProxyIsBackWhenItsRemovalIsDue(t *testing.T) {
	for round := range 20 {
		simulateReplicas(t, nil, func(p *replicas) {
			p.list[0].mustOpen(backendNode(), p.list[0].dpToken()).Close()
			time.Sleep(10*time.Second - time.Duration(round%3))
			s := p.list[1].mustOpen(backendNode(), p.list[1].dpToken())
			pause(time.Minute)
			p.there("it is back")
			if s.Err() != nil {
				t.Errorf("its stream has ended: %v", s.Err())
			}
			if subs := p.any().insight().GetSubscriptions(); subs[len(subs)-1].GetId() != s.subscriptionID || subs[len(subs)-1].GetDisconnectTime() != nil {
				t.Errorf("the insight is %v", subs)
			}
		})
	}
}

// action is a step of a random history.
type action struct {
	Do             string
	Replica, Proxy int
}

func (a action) String() string { return fmt.Sprintf("%s(cp %d, proxy %d)", a.Do, a.Replica, a.Proxy) }

func actions() *rapid.Generator[action] {
	return rapid.Custom(func(t *rapid.T) action {
		return action{
			Do: rapid.SampledFrom([]string{
				"connect", "connect", "connect", "connect bare", "disconnect", "disconnect", "move", "move", "count", "certify", "kill", "find", "suspect",
				"trust", "breathe", "second", "delay",
			}).Draw(t, "do"),
			Replica: rapid.IntRange(0, 2).Draw(t, "replica"),
			Proxy:   rapid.IntRange(0, 2).Draw(t, "proxy"),
		}
	})
}

// stream is one that a history has opened.
type stream struct {
	session *Session
	at      *rig
	proxy   string
}

func proxyNode(name string) *corev3.Node {
	return aNode("default."+name, map[string]any{"dataplane.resource": strings.ReplaceAll(backendResource, "backend-1", name)})
}

// playReplicas runs a history and returns what is wrong after it, or in it.
func playReplicas(t *testing.T, script []action) (wrong string) {
	keys()
	synctest.Test(t, func(t *testing.T) {
		p := &replicas{T: t, db: storetest.NewDatabase(), cfg: DefaultConfig()}
		p.begin()
		at := []*rig{p.list[0], p.list[1], p.list[2]} // those that are there
		var streams []stream
		var unfound []*rig
		counted := make(map[string]uint64)
		open := func(a action, n *corev3.Node) {
			r := at[a.Replica]
			s, err := r.open(n, r.dpToken())
			if err != nil {
				if len(n.GetMetadata().GetFields()) == 0 && reasonOf(err) == noResource {
					return
				}
				wrong = fmt.Sprintf("%v is refused: %v", a, err)
				return
			}
			streams = append(streams, stream{s, r, n.GetId()})
		}
		kept := func() { // at any time: who is connected is registered, and its subscriptions do not go back
			synctest.Wait()
			for _, s := range streams {
				if s.session.Err() != nil {
					wrong = fmt.Sprintf("a stream of %s at %s is ended: %v", s.proxy, s.at.instance, s.session.Err())
				}
			}
			for proxy := range 3 {
				subs := p.any().insightOf(fmt.Sprintf("web-%d", proxy)).GetSubscriptions()
				for i, sub := range subs {
					if sub.GetStatus().GetTotal().GetResponsesSent() < counted[sub.GetId()] {
						wrong = fmt.Sprintf("a counter of web-%d goes back: %v", proxy, sub)
					}
					counted[sub.GetId()] = sub.GetStatus().GetTotal().GetResponsesSent()
					if sub.GetDisconnectTime() == nil && i != len(subs)-1 || i >= subscriptionsKept {
						wrong = fmt.Sprintf("the subscriptions of web-%d are %v", proxy, subs)
					}
				}
			}
		}
		for step, a := range script {
			name := fmt.Sprintf("web-%d", a.Proxy)
			id := "default." + name
			newest := -1
			for i, s := range streams {
				if s.proxy == id {
					newest = i
				}
			}
			switch a.Do {
			case "connect":
				open(a, proxyNode(name))
			case "connect bare":
				open(a, aNode(id, nil))
			case "disconnect", "move":
				if a.Do == "move" {
					open(a, proxyNode(name))
				}
				if newest >= 0 {
					streams[newest].session.Close()
					streams = slices.Delete(streams, newest, newest+1)
				}
			case "count":
				if newest >= 0 {
					streams[newest].session.Sent(listenerType)
				}
			case "certify":
				at[a.Replica].registry.Certificate(id, &Certificate{Backend: at[a.Replica].instance, Issued: time.Now(), NotAfter: time.Now().Add(time.Hour)})
			case "kill": // and another takes its place
				dead := at[a.Replica]
				p.kill(dead)
				unfound = append(unfound, dead)
				var left []stream
				for _, s := range streams {
					if s.at == dead {
						s.session.Close()
					} else {
						left = append(left, s)
					}
				}
				streams = left
				at[a.Replica] = p.add()
			case "find":
				for _, dead := range unfound {
					p.find(dead)
				}
				unfound = nil
			case "suspect", "trust":
				at[(a.Replica+1)%3].members.(*view).set(at[a.Replica].instance, a.Do == "suspect")
			case "breathe":
				synctest.Wait()
			case "second":
				pause(time.Second)
			case "delay":
				pause(11 * time.Second)
			}
			if a.Do == "breathe" || a.Do == "second" || a.Do == "delay" || step == len(script)-1 {
				kept()
			}
			if wrong != "" {
				wrong = fmt.Sprintf("step %d, %v: %s", step, a, wrong)
				break
			}
		}
		if wrong == "" {
			for _, dead := range unfound {
				p.find(dead)
			}
			pause(time.Minute)
			kept()
		}
		for proxy := range 3 {
			if wrong == "" {
				wrong = settled(p, fmt.Sprintf("web-%d", proxy), streams)
			}
		}
		for _, r := range p.list {
			for _, o := range r.registry.proxies {
				if len(o.subscriptions) != len(o.streams) && !r.dead && wrong == "" {
					wrong = fmt.Sprintf("%s has %d streams of %s, and keeps %d subscriptions", r.instance, len(o.streams), o.id, len(o.subscriptions))
				}
			}
		}
		for _, s := range streams {
			s.session.Close()
		}
		pause(time.Minute)
		for proxy := range 3 {
			if wrong == "" {
				wrong = settled(p, fmt.Sprintf("web-%d", proxy), nil)
			}
		}
		for _, r := range p.list {
			if n := len(r.registry.proxies); n > 0 && !r.dead && wrong == "" {
				wrong = fmt.Sprintf("%s remembers %d proxies", r.instance, n)
			}
		}
	})
	return wrong
}

// settled says what is wrong with what is stored of a proxy that has these streams among others.
func settled(p *replicas, name string, streams []stream) string {
	live := make(map[string]bool)
	for _, s := range streams {
		if s.proxy == "default."+name {
			live[s.session.subscriptionID] = true
		}
	}
	subs := p.any().insightOf(name).GetSubscriptions()
	ids := make(map[string]bool)
	var open []*meshv1.DiscoverySubscription
	for _, s := range subs {
		ids[s.GetId()] = true
		if s.GetDisconnectTime() == nil {
			open = append(open, s)
		}
	}
	switch {
	case len(ids) != len(subs):
		return fmt.Sprintf("%s has a subscription twice: %v", name, subs)
	case len(live) == 0 && len(open) > 0:
		return fmt.Sprintf("%s is shown online and is not: %v", name, subs)
	case len(live) > 0 && (len(open) != 1 || !live[open[0].GetId()]):
		return fmt.Sprintf("%s has the streams %v, and its subscriptions are %v", name, live, subs)
	case len(live) > 0 && !p.any().exists(resource.Dataplane, "default", name):
		return name + " is connected and has no resource"
	}
	return ""
}

func TestInsightsTellTheTruthWhateverHappens(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		script := rapid.SliceOfN(actions(), 5, 40).Draw(rt, "script")
		if wrong := playReplicas(t, script); wrong != "" {
			rt.Fatalf("%s\nscript: %v", wrong, script)
		}
	})
}
