package admin

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/server"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/global/zones"
	"github.com/meridian-mesh/meridian/sync/kds"
)

func wantError(t *testing.T, got reply, reason server.AskReason, text string) {
	t.Helper()
	ask, ok := errors.AsType[*server.AskError](got.err)
	if !ok || ask.Reason != reason || !strings.Contains(ask.Details, text) {
		t.Errorf("answer %q, error %v, want reason %d and %q", got.body, got.err, reason, text)
	}
}

func TestEachAnswerReachesWhoAskedInWhateverOrderTheyCome(t *testing.T) {
	r := newRig(t, nil)
	p := r.connect("zone-1", false)
	var waiting []<-chan reply
	var ids []string
	for i := range 20 {
		waiting = append(waiting, r.start(t.Context(), dump("zone-1")))
		req := p.read() // of the one that was just asked
		if _, err := uuid.Parse(req.GetRequestId()); err != nil {
			t.Errorf("request id %d: %v", i, err)
		}
		want := &meshv1.XDSConfigRequest{RequestId: req.GetRequestId(), ResourceType: "Dataplane", ResourceMesh: "default", ResourceName: "dp-1"}
		if !proto.Equal(req, want) {
			t.Errorf("request %v, want %v", req, want)
		}
		ids = append(ids, req.GetRequestId())
	}
	for _, i := range rand.Perm(len(ids)) {
		p.say(ids[i], fmt.Sprint(i))
	}
	for i, c := range waiting {
		if got := <-c; got.err != nil || string(got.body) != fmt.Sprint(i) {
			t.Errorf("question %d: %q, %v", i, got.body, got.err)
		}
	}
	if r.metric("meridian_proxy_questions_in_flight") != 0 || r.metric("meridian_proxy_questions_total") != 20 {
		t.Error("the metrics do not say so")
	}
}

// Lesson 38.
func TestAnswersThatNobodyWaitsForAreIgnoredAndCounted(t *testing.T) {
	r := newRig(t, nil)
	p := r.connect("zone-1", false)
	ctx, cancel := context.WithCancel(t.Context())
	gone := r.start(ctx, dump("zone-1"))
	late := p.read().GetRequestId()
	cancel()
	if got := <-gone; !errors.Is(got.err, context.Canceled) {
		t.Errorf("after the client left: %v", got.err)
	}
	c := r.start(t.Context(), dump("zone-1"))
	id := p.read().GetRequestId()
	p.say(late, "late")
	p.say("nonsense", "unknown")
	p.write(&meshv1.XDSConfigResponse{})
	p.say(id, `"right"`)
	p.say(id, "twice")
	if got := <-c; got.err != nil || string(got.body) != `"right"` {
		t.Errorf("answer %q, %v", got.body, got.err)
	}
	c = r.start(t.Context(), dump("zone-1"))
	p.say(p.read().GetRequestId(), `"still there"`)
	if got := <-c; string(got.body) != `"still there"` {
		t.Errorf("answer %q, %v", got.body, got.err)
	}
	if n := r.metric("meridian_proxy_questions_ignored_answers_total"); n != 4 {
		t.Errorf("%v answers were ignored, want 4", n)
	}
}

func TestWhatAZoneAnswersIsWhatTheClientIsTold(t *testing.T) {
	r := newRig(t, nil)
	p := r.connect("zone-1", true)
	for _, tt := range []struct {
		text, reason string
		want         server.AskReason
	}{
		{"no idea", "", server.AskFailed},
		{`resource not found: type="Dataplane" name="dp-1" mesh="default"`, "", server.AskNotFound},
		{"gone", "not_found", server.AskNotFound},
		{"dead", "unreachable", server.AskUnreachable},
		{"slow", "timeout", server.AskTimeout},
		{"busy", "busy", server.AskBusy},
		{"odd", "invalid", server.AskInvalid},
		{"odd", "a reason of tomorrow", server.AskFailed},
		{"", "", server.AskFailed},
	} {
		c := r.start(t.Context(), dump("zone-1"))
		p.write(&meshv1.XDSConfigResponse{
			RequestId: p.read().GetRequestId(), Result: &meshv1.XDSConfigResponse_Error{Error: tt.text}, MeridianReason: tt.reason,
		})
		wantError(t, <-c, tt.want, "could not send XDSConfigRequest: "+tt.text)
	}
	c := r.start(t.Context(), dump("zone-1"))
	p.write(&meshv1.XDSConfigResponse{RequestId: p.read().GetRequestId()})
	wantError(t, <-c, server.AskFailed, "no configuration")
	c = r.start(t.Context(), dump("zone-1"))
	p.say(p.read().GetRequestId(), "no JSON")
	wantError(t, <-c, server.AskFailed, "what the zone answered is no JSON")
}

func TestSecretsInTheDumpOfAKumaZoneAreMasked(t *testing.T) {
	r := newRig(t, nil)
	p := r.connect("zone-1", false)
	c := r.start(t.Context(), dump("zone-1"))
	p.say(p.read().GetRequestId(), `{"configs":[{"initial_metadata":[{"key":"authorization","value":"a token"}]}]}`)
	if got := <-c; got.err != nil || strings.Contains(string(got.body), "a token") || !strings.Contains(string(got.body), "[redacted]") {
		t.Errorf("answer %s, %v", got.body, got.err)
	}
}

func TestWhatCannotBeAskedIsSaidAtOnce(t *testing.T) {
	r := newRig(t, nil)
	r.connect("zone-1", false)
	r.sessions.online["zone-2"] = true
	if _, err := r.o.Store.Update(t.Context(), func(*store.Snapshot) ([]store.Op, error) {
		return []store.Op{
			store.Put(&store.Record{Key: store.Key{Type: "Dataplane", Mesh: "default", Name: "here"}, Spec: []byte{}}),
			store.Put(&store.Record{Key: store.Key{Type: "Dataplane", Mesh: "default", Name: "zone-9.dp"}, Spec: []byte{}}),
		}, nil
	}); err != nil {
		t.Fatal(err)
	}
	explain := dump("zone-1")
	explain.View, explain.Service = server.ViewExplain, "backend"
	sent := dump("zone-1")
	sent.ControlPlane = true
	spy := dump("zone-1")
	spy.View = "spy"
	named := func(name string) server.ProxyQuestion {
		q := dump("")
		q.Name = name
		return q
	}
	for _, tt := range []struct {
		name   string
		q      server.ProxyQuestion
		reason server.AskReason
		text   string
	}{
		{"a zone that is disabled", dump("off"), server.AskUnreachable, `couldn't execute XDSConfig operation: zone "off" is disabled`},
		{"a zone without the stream", dump("zone-2"), server.AskUnreachable, `stream not connected: zone "zone-2"`},
		{"a zone that was deleted", named("zone-9.dp"), server.AskUnreachable, `there is no zone "zone-9"`},
		{"a proxy of no zone", named("here"), server.AskInvalid, `Dataplane "here" is of no zone`},
		{"a proxy that is gone", named("zone-1.dp-2"), server.AskNotFound, `"zone-1.dp-2" is not there`},
		{"an explanation by a Kuma zone", explain, server.AskInvalid, `the control plane of zone "zone-1" does not offer`},
		{"what a Kuma zone sent", sent, server.AskInvalid, `the control plane of zone "zone-1" does not offer`},
		{"a view that is none", spy, server.AskInvalid, `"spy" is not a view`},
	} {
		body, err := r.Ask(t.Context(), tt.q)
		wantError(t, reply{body, err}, tt.reason, tt.text)
	}
	delete(r.sessions.online, "zone-2")
	body, err := r.Ask(t.Context(), dump("zone-2"))
	wantError(t, reply{body, err}, server.AskUnreachable, `zone "zone-2" is offline`)
}

func TestAQuestionThatKumaDoesNotKnowGoesToZonesThatKnowIt(t *testing.T) {
	r := newRig(t, nil)
	p := r.connect("zone-1", true)
	q := dump("zone-1")
	q.View, q.Service = server.ViewExplain, "a&b=c"
	c := r.start(t.Context(), q)
	req := p.read()
	var got server.ProxyQuestion
	if err := kds.ReadQuery(&got, req.GetMeridianQuery()); err != nil || got.View != q.View || got.Service != q.Service {
		t.Errorf("query %q is read as %+v, %v", req.GetMeridianQuery(), got, err)
	}
	p.say(req.GetRequestId(), "{}")
	if got := <-c; string(got.body) != "{}" {
		t.Errorf("answer %q, %v", got.body, got.err)
	}
}

func TestAZoneThatDoesNotAnswerCostsNoMoreThanTheTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.MaxPerZone, c.MaxTotal = 2, 4 })
		p := &peer{t: t, asked: make(chan *meshv1.XDSConfigRequest), answers: make(chan *meshv1.XDSConfigResponse), over: make(chan struct{})}
		ctx, cancel := context.WithCancel(context.Background())
		r.halves.Go(func() {
			defer close(p.over)
			p.err = r.ServeXDSConfigs(ctx, zones.Hello{Zone: "zone-1"}, p, &r.halves)
		})
		synctest.Wait()
		began := time.Now()
		first, second := r.start(t.Context(), dump("zone-1")), r.start(t.Context(), dump("zone-1"))
		synctest.Wait() // the writer waits in the first Send: the zone does not read
		_, err := r.Ask(t.Context(), dump("zone-1"))
		wantError(t, reply{nil, err}, server.AskBusy, `zone "zone-1" has 2 questions`)
		wantError(t, <-first, server.AskTimeout, `zone "zone-1" has not answered within 10s`)
		wantError(t, <-second, server.AskTimeout, `within 10s`)
		if took := time.Since(began); took != 10*time.Second {
			t.Errorf("they took %s", took)
		}
		// One stuck in Send, and two in the queue: a third asker must not wait for room.
		third := r.start(t.Context(), dump("zone-1"))
		wantError(t, <-third, server.AskTimeout, "10s")
		began = time.Now()
		_, err = r.Ask(t.Context(), dump("zone-1"))
		wantError(t, reply{nil, err}, server.AskBusy, "has not taken the questions before")
		if took := time.Since(began); took != 0 {
			t.Errorf("the refusal took %s", took)
		}
		// It reads again: what nobody waits for any more is not asked.
		stale := p.read()
		synctest.Wait()
		fresh := r.start(t.Context(), dump("zone-1"))
		req := p.read()
		p.say(stale.GetRequestId(), "stale")
		p.say(req.GetRequestId(), `"fresh"`)
		if got := <-fresh; string(got.body) != `"fresh"` {
			t.Errorf("answer %q, %v", got.body, got.err)
		}
		cancel()
		<-p.over
	})
}

func TestAZoneCannotUseUpWhatOthersMayAsk(t *testing.T) {
	r := newRig(t, func(c *Config) { c.MaxPerZone, c.MaxTotal = 2, 3 })
	one, two := r.connect("zone-1", false), r.connect("zone-2", false)
	var ids []string
	var waiting []<-chan reply
	for range 2 {
		waiting = append(waiting, r.start(t.Context(), dump("zone-1")))
		ids = append(ids, one.read().GetRequestId())
	}
	_, err := r.Ask(t.Context(), dump("zone-1"))
	wantError(t, reply{nil, err}, server.AskBusy, `zone "zone-1" has 2 questions about proxies to answer already`)
	other := r.start(t.Context(), dump("zone-2"))
	id := two.read().GetRequestId()
	_, err = r.Ask(t.Context(), dump("zone-2"))
	wantError(t, reply{nil, err}, server.AskBusy, "3 questions about proxies are on their way already")
	two.say(id, "{}")
	for i, c := range waiting {
		one.say(ids[i], "{}")
		<-c
	}
	<-other
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.asked) != 0 || r.total != 0 {
		t.Errorf("questions are counted that have ended: %v, %d", r.asked, r.total)
	}
}

func TestTheEndOfAStreamFailsItsQuestionsAtOnce(t *testing.T) {
	r := newRig(t, nil)
	for name, end := range map[string]func(*peer){
		"the zone ends it":     func(p *peer) { close(p.answers) },
		"the table ends it":    func(p *peer) { p.cut(zones.ErrHealthLost) },
		"the writer finds out": func(p *peer) { p.cut(zones.ErrReplaced) },
	} {
		p := r.connect("zone-1", false)
		c := r.start(t.Context(), dump("zone-1"))
		p.read()
		end(p)
		wantError(t, <-c, server.AskUnreachable, `the stream of zone "zone-1" has ended`)
		<-p.over
		if _, err := r.Ask(t.Context(), dump("zone-1")); err == nil || r.link("zone-1") != nil {
			t.Errorf("%s: the stream is still there", name)
		}
	}
}

func TestTheNewestStreamOfAZoneCounts(t *testing.T) {
	r := newRig(t, nil)
	older, newer := r.connect("zone-1", false), (*peer)(nil)
	c := r.start(t.Context(), dump("zone-1"))
	older.read()
	newer = r.connect("zone-1", false)
	older.cut(zones.ErrReplaced)
	wantError(t, <-c, server.AskUnreachable, "has ended")
	<-older.over
	c = r.start(t.Context(), dump("zone-1"))
	newer.say(newer.read().GetRequestId(), `"newer"`)
	if got := <-c; string(got.body) != `"newer"` {
		t.Errorf("answer %q, %v", got.body, got.err)
	}
	// A stream that was replaced before it got here is not the newest, though it comes last.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.ServeXDSConfigs(ctx, zones.Hello{Zone: "zone-1"}, &peer{over: closed(), t: t}, &r.halves); err == nil {
		t.Error("it ended without a reason")
	}
	c = r.start(t.Context(), dump("zone-1"))
	newer.say(newer.read().GetRequestId(), `"still"`)
	if got := <-c; string(got.body) != `"still"` {
		t.Errorf("answer %q, %v", got.body, got.err)
	}
}

func closed() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}

func TestAProxyIsAskedForByItsNameInItsZone(t *testing.T) {
	r := newRig(t, nil)
	const universal, kubernetes = `{"store":{"type":"memory"}}`, `{"environment":"kubernetes","store":{"type":"kubernetes"}}`
	for _, tt := range []struct {
		name, origin, key string
		labels            map[string]string
		configs           []string // that the zone has sent, oldest first
		want              string   // zone/name
	}{
		{"a name of Meridian", "zone-1", "zone-1.a.b", nil, nil, "zone-1/a.b"},
		{"the record counts, not the name", "zone-1", "zone-2.a", nil, nil, "zone-1/zone-2.a"},
		{"a name of Kuma", "zone-1", "zone-1.a", map[string]string{resource.DisplayNameLabel: "a"}, nil, "zone-1/a"},
		{
			"a name on Kubernetes", "zone-1", "zone-1.a.ns",
			map[string]string{resource.DisplayNameLabel: "a", labelNamespace: "ns"},
			[]string{kubernetes, ""},
			"zone-1/a.ns",
		},
		{
			"the newest configuration counts", "zone-1", "zone-1.a.ns",
			map[string]string{resource.DisplayNameLabel: "a", labelNamespace: "ns"},
			[]string{kubernetes, universal},
			"zone-1/a",
		},
		{
			"a label without Kubernetes", "zone-1", "zone-1.a.ns",
			map[string]string{resource.DisplayNameLabel: "a", labelNamespace: "ns"},
			nil, "zone-1/a",
		},
		{
			"a configuration that cannot be read", "zone-1", "zone-1.a.ns",
			map[string]string{resource.DisplayNameLabel: "a", labelNamespace: "ns"},
			[]string{"{["},
			"zone-1/a",
		},
		{"a resource that came from no zone", "", "zone-1.a.b", nil, nil, "zone-1/a.b"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r.sessions.insight = &systemv1.ZoneInsight{}
			for _, c := range tt.configs {
				r.sessions.insight.Subscriptions = append(r.sessions.insight.Subscriptions, &systemv1.KDSSubscription{Config: c})
			}
			key := store.Key{Type: "Dataplane", Mesh: "default", Name: tt.key}
			if _, err := r.o.Store.Update(t.Context(), func(*store.Snapshot) ([]store.Op, error) {
				return []store.Op{store.Put(&store.Record{Key: key, Spec: []byte{}, Origin: tt.origin, Labels: tt.labels})}, nil
			}); err != nil {
				t.Fatal(err)
			}
			zone, name, err := r.locate(server.ProxyQuestion{Type: "Dataplane", Mesh: "default", Name: tt.key})
			if err != nil || zone+"/"+name != tt.want {
				t.Errorf("%s/%s, %v, want %s", zone, name, err, tt.want)
			}
		})
	}
}
