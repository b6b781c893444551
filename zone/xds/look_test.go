package xds

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// lookAt returns what is known of a kind of the node.
func (r *rig) lookAt(t *testing.T, node string, k Kind) (Look, KindLook) {
	t.Helper()
	l, ok := r.Look(node)
	if !ok {
		t.Fatalf("nothing is known of %s", node)
	}
	i := slices.IndexFunc(l.Kinds, func(of KindLook) bool { return of.Kind == k })
	if i < 0 {
		t.Fatalf("nothing is known of %s of %s: %+v", k.TypeURL(), node, l)
	}
	return l, l.Kinds[i]
}

func held(l KindLook) string {
	var all []string
	for _, r := range l.Resources() {
		all = append(all, r.Name+"="+r.Version)
	}
	return fmt.Sprint(all)
}

func TestWhatWasSentCanBeLookedAt(t *testing.T) {
	r := newRig(t)
	if _, ok := r.Look("a"); ok {
		t.Error("something is known of a node that never was")
	}
	first := newConfig(t, map[Kind]content{Cluster: {"x": 1}, Endpoint: {"x": 1, "y": 1}})
	r.Publish("a", first)
	if _, ok := r.Look("a"); ok {
		t.Error("something was sent to a node that never was connected")
	}
	p := r.connect(t, "a")
	p.subscribe(Cluster)
	m := p.takes(Cluster, content{"x": 1})
	p.quiet(Route)
	if _, l := r.lookAt(t, "a", Cluster); l.Sent != m.GetVersionInfo() || l.Acknowledged != l.Sent || l.Rejected != "" || l.Pending || l.Published != l.Sent ||
		l.SentAt.IsZero() || held(l) != fmt.Sprintf("[x=%s]", first.Get(Cluster, "x").Version) {
		t.Errorf("after the first answer: %+v, resources %s", l, held(l))
	}
	p.subscribe(Endpoint, "y")
	p.wants(Endpoint, content{"y": 1})
	if _, l := r.lookAt(t, "a", Endpoint); l.Sent == "" || l.Acknowledged != "" || held(l) != fmt.Sprintf("[y=%s]", first.Get(Endpoint, "y").Version) {
		t.Errorf("before an acknowledgement: %+v, resources %s", l, held(l))
	}

	second := newConfig(t, map[Kind]content{Cluster: {"x": 2}, Endpoint: {"x": 1, "y": 1}})
	r.Publish("a", second)
	rejected := p.wants(Cluster, content{"x": 2})
	p.nack(rejected, "no such thing")
	p.subscribe(Cluster) // carries the nonce of what was rejected, and acknowledges nothing
	p.quiet(Secret)
	_, l := r.lookAt(t, "a", Cluster)
	if l.Sent != rejected.GetVersionInfo() || l.Acknowledged != m.GetVersionInfo() || l.Rejected != l.Sent || l.Reason != "no such thing" || l.RejectedAt.IsZero() {
		t.Errorf("after a rejection: %+v", l)
	}

	_ = p.stream.CloseSend()
	_ = p.ends()
	<-r.opened(t).closed
	r.Forget("a")
	gone, kept := r.lookAt(t, "a", Cluster)
	if gone.Ended.IsZero() || kept.Reason != l.Reason || held(kept) != held(l) || held(kept) != fmt.Sprintf("[x=%s]", second.Get(Cluster, "x").Version) {
		t.Errorf("after its stream: %+v, %+v, resources %s", gone, kept, held(kept))
	}

	again := r.connect(t, "a")
	again.subscribe(Cluster)
	for l, ok := r.Look("a"); !ok || !l.Ended.IsZero() || len(l.Kinds) == 0; l, ok = r.Look("a") {
		time.Sleep(time.Millisecond) // until it has asked
	}
	if back, l := r.lookAt(t, "a", Cluster); !back.Ended.IsZero() || l.Sent != "" || held(l) != "[]" {
		t.Errorf("after it came back: %+v, %+v", back, l)
	}
}

func TestOnlyTheLatestNodesAreRemembered(t *testing.T) {
	var p parted
	for i := range 3 * maxParted {
		p.add(fmt.Sprint(i), Look{})
		p.add(fmt.Sprint(i), Look{})
	}
	p.drop(fmt.Sprint(3*maxParted - 1))
	if len(p.nodes) != maxParted-1 || len(p.order) != maxParted-1 {
		t.Errorf("%d nodes are remembered, in an order of %d", len(p.nodes), len(p.order))
	}
	for node, want := range map[int]bool{2*maxParted - 1: false, 2 * maxParted: true, 3*maxParted - 2: true, 3*maxParted - 1: false} {
		if _, ok := p.get(fmt.Sprint(node)); ok != want {
			t.Errorf("%d is remembered: %t", node, ok)
		}
	}
}
