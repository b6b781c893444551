package admin

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/meridian-mesh/meridian/api/server"
	"github.com/meridian-mesh/meridian/common/peers"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/global/zones"
	"github.com/meridian-mesh/meridian/sync/forward"
)

// replicas are the registries of a plane's replicas, by instance id, as they call each other.
type replicas map[string]*rig

func (r replicas) Call(ctx context.Context, instance, call string, body []byte) ([]byte, error) {
	to, ok := r[instance]
	if !ok || call != forward.Call {
		return nil, fmt.Errorf("call %s of instance %q: %w", call, instance, peers.ErrUnreachable)
	}
	return forward.Handler(to.AskHere)(ctx, body)
}

func (r replicas) start(t *testing.T, instance string, change func(*Config)) *rig {
	t.Helper()
	one := newRig(t, change)
	one.o.Instance, one.o.Peers = instance, r
	r[instance] = one
	return one
}

// hold has all replicas know which of them a zone is connected to.
func (r replicas) hold(t *testing.T, zone string, h zones.Holder) {
	t.Helper()
	spec, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	rec := &store.Record{Key: store.Key{Type: zones.HolderType, Name: zone}, Spec: spec}
	for _, one := range r {
		if _, err := one.o.Store.Update(t.Context(), func(*store.Snapshot) ([]store.Op, error) { return []store.Op{store.Put(rec)}, nil }); err != nil {
			t.Fatal(err)
		}
	}
}

func TestTheReplicaThatHoldsTheZoneIsAsked(t *testing.T) {
	all := replicas{}
	a, b := all.start(t, "a", nil), all.start(t, "b", nil)
	all.hold(t, "zone-1", zones.Holder{Instance: "b", Session: "1", Since: time.Now()})
	zone := b.connect("zone-1", true)
	got := a.start(t.Context(), dump("zone-1"))
	req := zone.read()
	if req.GetResourceName() != "dp-1" {
		t.Errorf("asked: %v", req)
	}
	zone.say(req.GetRequestId(), `{"configs":[]}`)
	if got := <-got; got.err != nil || !strings.Contains(string(got.body), `"configs": []`) {
		t.Errorf("%q, %v", got.body, got.err)
	}
	if a.metric("meridian_proxy_questions_total") != 1 || b.metric("meridian_proxy_questions_total") != 0 {
		t.Error("the question is not counted once, where it was asked")
	}
	// A stream that is here is used, whatever the record says: it is being replaced, or the record is.
	here := a.connect("zone-1", true)
	got = a.start(t.Context(), dump("zone-1"))
	req = here.read()
	here.say(req.GetRequestId(), `{"configs":[]}`)
	if got := <-got; got.err != nil {
		t.Error(got.err)
	}
}

func TestWhatTheHolderAnswersIsWhatTheOthersTell(t *testing.T) {
	all := replicas{}
	a := all.start(t, "a", nil)
	b := all.start(t, "b", func(c *Config) { c.Timeout, c.MaxPerZone, c.MaxTotal = 100*time.Millisecond, 1, 1 })
	ask := func(zone string) reply { return <-a.start(t.Context(), dump(zone)) }

	all.hold(t, "zone-1", zones.Holder{Instance: "gone", Session: "1"})
	wantError(t, ask("zone-1"), server.AskUnreachable, `zone "zone-1" is connected to instance "gone" of this control plane, which cannot be reached`)
	all.hold(t, "zone-1", zones.Holder{Instance: "gone", Session: "1", Ended: time.Now()})
	wantError(t, ask("zone-1"), server.AskUnreachable, `zone "zone-1" is offline`)

	// Two that take each other for the holder do not pass it on and on.
	all.hold(t, "zone-1", zones.Holder{Instance: "b", Session: "2"})
	wantError(t, ask("zone-1"), server.AskUnreachable, `zone "zone-1" is offline`)

	zone := b.connect("zone-1", true)
	wantError(t, ask("zone-1"), server.AskTimeout, `zone "zone-1" has not answered within 100ms`)
	zone.read()
	if err := b.take("zone-1"); err != nil { // limits count where the stream is
		t.Fatal(err)
	}
	wantError(t, ask("zone-1"), server.AskBusy, `zone "zone-1" has 1 questions about proxies to answer already`)
	b.release("zone-1")
	if _, err := a.Ask(t.Context(), server.ProxyQuestion{Name: "x", View: "none"}); err == nil {
		t.Error("a view that is none is answered")
	}
}
