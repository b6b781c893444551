package xds

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func TestSubscriptions(t *testing.T) {
	t.Run("Envoy asks for all clusters and listeners and names the rest, and each change reaches it once", func(t *testing.T) {
		r := newRig(t)
		r.Publish("a", newConfig(t, map[Kind]content{Cluster: {"x": 1, "y": 1}, Endpoint: {"x": 1, "y": 1}, Listener: {"in": 1}}))
		p := r.connect(t, "a")
		p.subscribe(Cluster)
		first := p.takes(Cluster, content{"x": 1, "y": 1})
		if first.GetNonce() != "1" || first.GetControlPlane().GetIdentifier() != "zone-1" || first.GetVersionInfo() == "" {
			t.Errorf("first response: nonce %q, control plane %q, version %q", first.GetNonce(), first.GetControlPlane(), first.GetVersionInfo())
		}
		p.subscribe(Endpoint, "x", "y")
		p.takes(Endpoint, content{"x": 1, "y": 1})
		p.subscribe(Listener)
		p.takes(Listener, content{"in": 1})
		p.quiet(Route)

		// Only what changed is sent of endpoints, all of clusters; and what did not change is not sent.
		r.Publish("a", newConfig(t, map[Kind]content{Cluster: {"x": 1, "y": 1}, Endpoint: {"x": 1, "y": 2}, Listener: {"in": 1}}))
		p.takes(Endpoint, content{"y": 2})
		r.settle(t)
		r.Publish("a", newConfig(t, map[Kind]content{Cluster: {"x": 1, "z": 1}, Endpoint: {"x": 1, "y": 2}, Listener: {"in": 1}}))
		last := p.takes(Cluster, content{"x": 1, "z": 1})
		if last.GetVersionInfo() == first.GetVersionInfo() || last.GetNonce() != "6" {
			t.Errorf("version %q after %q, nonce %q", last.GetVersionInfo(), first.GetVersionInfo(), last.GetNonce())
		}
		p.quiet(Runtime)
	})
	t.Run("a change of several kinds is sent in the order of the kinds", func(t *testing.T) {
		r := newRig(t)
		state := func(n int) *Config {
			all := map[Kind]content{}
			for k := range kinds {
				all[k] = content{"x": n}
			}
			return newConfig(t, all)
		}
		r.Publish("a", state(1))
		p := r.connect(t, "a")
		for _, k := range []Kind{Runtime, Route, Listener, Secret, Endpoint, Cluster} {
			p.subscribe(k, "x")
			p.takes(k, content{"x": 1})
		}
		p.subscribe(Endpoint, "x") // clusters have been sent since
		p.takes(Endpoint, content{"x": 1})
		r.settle(t)
		r.Publish("a", state(2))
		for k := range kinds {
			p.takes(k, content{"x": 2})
		}
	})
	t.Run("before the first Publish requests wait, and then get everything", func(t *testing.T) {
		r := newRig(t)
		p := r.connect(t, "a")
		p.subscribe(Listener)
		p.subscribe(Cluster)
		r.waitsFor(t, "a", Listener, Cluster)
		r.Publish("a", newConfig(t, map[Kind]content{Cluster: {"x": 1}, Listener: {"in": 1}}))
		p.takes(Cluster, content{"x": 1})
		p.takes(Listener, content{"in": 1})
	})
	t.Run("a gRPC client names listeners and clusters and never means all of them", func(t *testing.T) {
		r := newRig(t)
		p := r.connect(t, "a")
		r.Publish("a", newConfig(t, map[Kind]content{Listener: {"one": 1, "two": 1}, Cluster: {"c": 1}}))
		p.subscribe(Listener, "one")
		p.takes(Listener, content{"one": 1})
		p.subscribe(Listener, "one", "two")
		p.takes(Listener, content{"one": 1, "two": 1})
		p.subscribe(Listener, "two")
		p.subscribe(Listener)
		p.quiet(Route) // neither is answered
		r.Publish("a", newConfig(t, map[Kind]content{Listener: {"one": 2, "two": 2}}))
		p.quiet(Secret)
		p.subscribe(Listener, "two")
		p.takes(Listener, content{"two": 2})
	})
	t.Run("names that do not exist are answered when they do", func(t *testing.T) {
		r := newRig(t)
		r.Publish("a", newConfig(t, map[Kind]content{Endpoint: {"x": 1}, Listener: {"l": 1}}))
		p := r.connect(t, "a")
		p.subscribe(Endpoint, "x", "absent")
		p.takes(Endpoint, content{"x": 1})
		p.subscribe(Endpoint, "x", "absent", "later")
		p.quiet(Route)
		r.Publish("a", newConfig(t, map[Kind]content{Endpoint: {"x": 1, "later": 1, "other": 1}}))
		p.takes(Endpoint, content{"later": 1})
		p.quiet(Secret)
	})
	t.Run("a change of what a stream has not subscribed to is not sent, and streams of one node are apart", func(t *testing.T) {
		r := newRig(t)
		r.Publish("a", newConfig(t, map[Kind]content{Cluster: {"x": 1, "y": 1}}))
		p, q := r.connect(t, "a"), r.connect(t, "a")
		p.subscribe(Cluster, "x")
		p.takes(Cluster, content{"x": 1})
		q.subscribe(Cluster, "y")
		q.takes(Cluster, content{"y": 1})
		r.settle(t)
		r.Publish("a", newConfig(t, map[Kind]content{Cluster: {"x": 1, "y": 2}}))
		q.takes(Cluster, content{"y": 2})
		p.quiet(Route)
		q.quiet(Route)
	})
	t.Run("what is gone from what is complete is told, but a cluster asked for by name is kept until it no longer is", func(t *testing.T) {
		r := newRig(t)
		r.Publish("a", newConfig(t, map[Kind]content{Cluster: {"x": 1, "y": 1}, Listener: {"x": 1, "y": 1}}))
		p, q := r.connect(t, "a"), r.connect(t, "a")
		p.subscribe(Cluster, "x", "y")
		p.takes(Cluster, content{"x": 1, "y": 1})
		p.subscribe(Listener, "x", "y")
		p.takes(Listener, content{"x": 1, "y": 1})
		q.subscribe(Cluster)
		q.takes(Cluster, content{"x": 1, "y": 1})
		r.settle(t)
		r.Publish("a", newConfig(t, map[Kind]content{Cluster: {"y": 1}, Listener: {"y": 1}}))
		q.takes(Cluster, content{"y": 1})
		p.takes(Listener, content{"y": 1})
		r.settle(t)
		r.Publish("a", newConfig(t, map[Kind]content{Cluster: {"y": 2}, Listener: {"y": 1}}))
		p.takes(Cluster, content{"x": 1, "y": 2})
		q.takes(Cluster, content{"y": 2})
		r.settle(t)
		r.Publish("a", newConfig(t, map[Kind]content{Cluster: {"y": 3}, Listener: {"y": 1}}))
		p.takes(Cluster, content{"x": 1, "y": 3})
		q.takes(Cluster, content{"y": 3})
		p.subscribe(Cluster, "y")
		p.quiet(Route)
		p.subscribe(Cluster, "x", "y") // it was given up in between
		p.quiet(Endpoint)
		r.Publish("a", newConfig(t, map[Kind]content{Cluster: {"y": 4}, Listener: {"y": 1}}))
		p.takes(Cluster, content{"y": 4})
		q.takes(Cluster, content{"y": 4})
		r.settle(t)
		r.Publish("a", newConfig(t, map[Kind]content{Cluster: {"x": 5, "y": 4}, Listener: {"y": 1}}))
		p.takes(Cluster, content{"x": 5, "y": 4})
	})
	t.Run("what is asked for again is sent again", func(t *testing.T) {
		r := newRig(t)
		r.Publish("a", newConfig(t, map[Kind]content{Secret: {"s": 1, "t": 1}, Listener: {"l": 1}}))
		p := r.connect(t, "a")
		p.subscribe(Secret, "s", "t")
		p.takes(Secret, content{"s": 1, "t": 1})
		p.subscribe(Secret, "t")
		p.subscribe(Secret, "s", "t")
		p.takes(Secret, content{"s": 1})
		p.subscribe(Secret, "s", "t") // a repetition: dropped and named in between
		p.takes(Secret, content{"s": 1, "t": 1})
		p.quiet(Route)
	})
	t.Run("a request that met a response on its way counts when that is acknowledged", func(t *testing.T) {
		r := newRig(t)
		r.Publish("a", newConfig(t, map[Kind]content{Endpoint: {"x": 1, "y": 1}}))
		p := r.connect(t, "a")
		p.subscribe(Endpoint, "x", "y")
		p.takes(Endpoint, content{"x": 1, "y": 1})
		r.settle(t)
		r.Publish("a", newConfig(t, map[Kind]content{Endpoint: {"x": 1, "y": 2}}))
		old := p.nonce[Endpoint]
		m := p.wants(Endpoint, content{"y": 2})
		p.nonce[Endpoint] = old
		p.subscribe(Endpoint, "y")
		p.subscribe(Endpoint, "x", "y")
		p.nonce[Endpoint] = m.GetNonce()
		p.ack(m)
		p.takes(Endpoint, content{"x": 1, "y": 2})
		p.quiet(Route)
	})
}

// settle waits until the server waits for requests: until each stream has an open watch for every kind it subscribed to.
func (r *rig) settle(t testing.TB) {
	t.Helper()
	eventually(t, "the server still waits for an acknowledgement", r.settled)
}

// waitsFor waits until the server has requests of all the kinds of a stream of the node, which it cannot answer yet.
func (r *rig) waitsFor(t testing.TB, node string, of ...Kind) {
	t.Helper()
	eventually(t, "the server does not have the requests", func() bool {
		n := r.lockNode(node)
		defer n.mu.Unlock()
		for st := range n.streams {
			if !slices.ContainsFunc(of, func(k Kind) bool { return st.watches[k].open == nil }) {
				return true
			}
		}
		return false
	})
}

func eventually(t testing.TB, failure string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !done() {
		if time.Now().After(deadline) {
			t.Fatal(failure)
		}
		time.Sleep(time.Millisecond)
	}
}

func (r *rig) settled() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, n := range r.nodes {
		n.mu.Lock()
		for st := range n.streams {
			for k := range st.watches {
				if w := &st.watches[k]; w.subscribed && w.open == nil {
					n.mu.Unlock()
					return false
				}
			}
		}
		n.mu.Unlock()
	}
	return true
}

func TestWarming(t *testing.T) {
	t.Run("endpoints are sent again when clusters were sent since", func(t *testing.T) {
		r := newRig(t)
		r.Publish("a", newConfig(t, map[Kind]content{Cluster: {"x": 1}, Endpoint: {"x": 1, "y": 1}}))
		p := r.connect(t, "a")
		p.subscribe(Cluster)
		p.takes(Cluster, content{"x": 1})
		p.subscribe(Endpoint, "x", "y")
		p.takes(Endpoint, content{"x": 1, "y": 1})
		r.settle(t)
		r.Publish("a", newConfig(t, map[Kind]content{Cluster: {"x": 2}, Endpoint: {"x": 1, "y": 1}}))
		p.takes(Cluster, content{"x": 2})
		p.subscribe(Endpoint, "x", "y") // the nonce is acknowledged, names and version are the same
		p.takes(Endpoint, content{"x": 1, "y": 1})
		p.quiet(Route)
	})
	t.Run("endpoints that change with the clusters are sent whole", func(t *testing.T) {
		r := newRig(t)
		r.Publish("a", newConfig(t, map[Kind]content{Cluster: {"x": 1}, Endpoint: {"x": 1, "y": 1}}))
		p := r.connect(t, "a")
		p.subscribe(Cluster)
		p.takes(Cluster, content{"x": 1})
		p.subscribe(Endpoint, "x", "y")
		p.takes(Endpoint, content{"x": 1, "y": 1})
		r.settle(t)
		r.Publish("a", newConfig(t, map[Kind]content{Cluster: {"x": 2}, Endpoint: {"x": 1, "y": 2}}))
		p.takes(Cluster, content{"x": 2})
		p.takes(Endpoint, content{"x": 1, "y": 2})
		p.quiet(Route)
	})
}

func TestListenersDoNotOvertakeClusters(t *testing.T) {
	r := newRig(t)
	r.Publish("a", newConfig(t, map[Kind]content{Cluster: {"x": 1}, Listener: {"l": 1}, Route: {"r": 1}}))
	p := r.connect(t, "a")
	p.subscribe(Cluster)
	p.takes(Cluster, content{"x": 1})
	p.subscribe(Listener)
	p.takes(Listener, content{"l": 1})
	p.subscribe(Route, "r")
	p.takes(Route, content{"r": 1})
	r.settle(t)
	r.Publish("a", newConfig(t, map[Kind]content{Cluster: {"x": 2}, Listener: {"l": 1}, Route: {"r": 1}}))
	first := p.wants(Cluster, content{"x": 2}) // and keeps quiet about it
	r.Publish("a", newConfig(t, map[Kind]content{Cluster: {"y": 1}, Listener: {"l": 2}, Route: {"r": 2}}))
	p.quiet(Secret)
	p.ack(first)
	p.takes(Cluster, content{"x": 2, "y": 1})
	p.takes(Listener, content{"l": 2})
	p.takes(Route, content{"r": 2})
	p.takes(Cluster, content{"y": 1})
}

// Nor the endpoints of new clusters: until it has them, Envoy does not use a cluster.
func TestRoutesDoNotOvertakeEndpoints(t *testing.T) {
	r := newRig(t)
	r.Publish("a", newConfig(t, map[Kind]content{Cluster: {"x": 1}, Endpoint: {"x": 1}, Route: {"r": 1}}))
	p := r.connect(t, "a")
	p.subscribe(Cluster)
	p.takes(Cluster, content{"x": 1})
	p.subscribe(Endpoint, "x")
	p.takes(Endpoint, content{"x": 1})
	p.subscribe(Route, "r")
	p.takes(Route, content{"r": 1})
	r.settle(t)
	r.Publish("a", newConfig(t, map[Kind]content{Cluster: {"x": 1, "y": 1}, Endpoint: {"x": 1, "y": 1}, Route: {"r": 2}}))
	clusters := p.wants(Cluster, content{"x": 1, "y": 1})
	p.quiet(Secret)
	p.subscribe(Endpoint, "x", "y")
	p.takes(Endpoint, content{"x": 1, "y": 1})
	p.quiet(Runtime)
	p.ack(clusters)
	p.takes(Route, content{"r": 2})
}

// A request must find the cluster that it was routed to, also while routes change.
func TestClustersOutliveWhatSendsToThem(t *testing.T) {
	begin := func(t *testing.T) (*rig, *proxy) {
		t.Helper()
		r := newRig(t)
		r.Publish("a", newConfig(t, map[Kind]content{Cluster: {"x": 1}, Listener: {"l": 1}, Route: {"r": 1}}))
		p := r.connect(t, "a")
		p.subscribe(Cluster)
		p.takes(Cluster, content{"x": 1})
		p.subscribe(Listener)
		p.takes(Listener, content{"l": 1})
		p.subscribe(Route, "r")
		p.takes(Route, content{"r": 1})
		r.settle(t)
		return r, p
	}
	t.Run("until the last answer", func(t *testing.T) {
		r, p := begin(t)
		r.Publish("a", newConfig(t, map[Kind]content{Cluster: {"y": 1}, Listener: {"l": 2}, Route: {"r": 2}}))
		both := p.takes(Cluster, content{"x": 1, "y": 1})
		p.takes(Listener, content{"l": 2})
		route := p.wants(Route, content{"r": 2})
		p.quiet(Secret)
		p.ack(route)
		if one := p.takes(Cluster, content{"y": 1}); one.GetVersionInfo() == both.GetVersionInfo() {
			t.Error("two contents have one version")
		}
		p.quiet(Endpoint)
	})
	t.Run("until an answer that rejects", func(t *testing.T) {
		r, p := begin(t)
		r.Publish("a", newConfig(t, map[Kind]content{Cluster: {"y": 1}, Listener: {"l": 2}, Route: {"r": 1}}))
		p.takes(Cluster, content{"x": 1, "y": 1})
		p.nack(p.wants(Listener, content{"l": 2}), "no")
		p.takes(Cluster, content{"y": 1})
	})
	t.Run("through several changes", func(t *testing.T) {
		r, p := begin(t)
		r.Publish("a", newConfig(t, map[Kind]content{Cluster: {"y": 1}, Listener: {"l": 1}, Route: {"r": 2}}))
		p.takes(Cluster, content{"x": 1, "y": 1})
		second := p.wants(Route, content{"r": 2})
		r.Publish("a", newConfig(t, map[Kind]content{Cluster: {"z": 1}, Listener: {"l": 1}, Route: {"r": 3}}))
		p.takes(Cluster, content{"x": 1, "y": 1, "z": 1})
		p.ack(second)
		p.takes(Route, content{"r": 3})
		p.takes(Cluster, content{"z": 1})
	})
	t.Run("when it comes back, in its new form", func(t *testing.T) {
		r, p := begin(t)
		r.Publish("a", newConfig(t, map[Kind]content{Cluster: {}, Listener: {"l": 1}, Route: {"r": 2}}))
		p.takes(Cluster, content{"x": 1})
		second := p.wants(Route, content{"r": 2})
		r.Publish("a", newConfig(t, map[Kind]content{Cluster: {"x": 2}, Listener: {"l": 1}, Route: {"r": 2}}))
		p.takes(Cluster, content{"x": 2})
		p.ack(second)
		p.quiet(Secret)
	})
	t.Run("but not for ever when the answer does not come", func(t *testing.T) {
		r, p := begin(t)
		many := content{"x": 1}
		for n := range maxLeaving {
			many[fmt.Sprint(n)] = 1
		}
		of := func(clusters content, route int) map[Kind]content {
			return map[Kind]content{Cluster: clusters, Listener: {"l": 1}, Route: {"r": route}}
		}
		r.Publish("a", newConfig(t, of(many, 1)))
		p.takes(Cluster, many)
		r.settle(t)
		all := maps.Clone(many)
		all["y"] = 1
		r.Publish("a", newConfig(t, of(content{"y": 1}, 2)))
		p.takes(Cluster, all)
		p.wants(Route, content{"r": 2})
		r.waitsFor(t, "a", Cluster)
		r.Publish("a", newConfig(t, of(content{"z": 1}, 2)))
		p.takes(Cluster, content{"y": 1, "z": 1}) // y has only just gone
	})
	t.Run("not when nothing that could send to it changes", func(t *testing.T) {
		r, p := begin(t)
		r.Publish("a", newConfig(t, map[Kind]content{Cluster: {"y": 1}, Listener: {"l": 1}, Route: {"r": 1}}))
		p.takes(Cluster, content{"y": 1})
	})
}

func TestRejections(t *testing.T) {
	t.Run("what was rejected is not sent again, and what follows is", func(t *testing.T) {
		r := newRig(t)
		r.Publish("a", newConfig(t, map[Kind]content{Listener: {"l": 1}}))
		p := r.connect(t, "a")
		p.subscribe(Listener)
		p.takes(Listener, content{"l": 1})
		r.settle(t)
		r.Publish("a", newConfig(t, map[Kind]content{Listener: {"l": 2}}))
		p.nack(p.wants(Listener, content{"l": 2}), "no such filter")
		p.quiet(Route)
		r.Publish("a", newConfig(t, map[Kind]content{Listener: {"l": 2}, Secret: {"s": 1}})) // the same listeners
		p.quiet(Cluster)
		r.Publish("a", newConfig(t, map[Kind]content{Listener: {"l": 3}}))
		p.takes(Listener, content{"l": 3})
		p.quiet(Runtime)
		if got := testutil.ToFloat64(r.metrics.nacks.WithLabelValues("listener")); got != 1 {
			t.Errorf("%v rejections counted, want 1", got)
		}
	})
	t.Run("listeners that were rejected are tried again with other clusters", func(t *testing.T) {
		r := newRig(t)
		r.Publish("a", newConfig(t, map[Kind]content{Cluster: {"x": 1}, Listener: {"l": 1}}))
		p := r.connect(t, "a")
		p.subscribe(Cluster)
		p.takes(Cluster, content{"x": 1})
		p.subscribe(Listener)
		p.nack(p.wants(Listener, content{"l": 1}), "unknown cluster y")
		r.settle(t)
		r.Publish("a", newConfig(t, map[Kind]content{Cluster: {"x": 1, "y": 1}, Listener: {"l": 1}}))
		p.takes(Cluster, content{"x": 1, "y": 1})
		p.takes(Listener, content{"l": 1})
		p.quiet(Route)
	})
	t.Run("after a part was rejected everything is sent", func(t *testing.T) {
		r := newRig(t)
		r.Publish("a", newConfig(t, map[Kind]content{Endpoint: {"x": 1, "y": 1, "z": 1}}))
		p := r.connect(t, "a")
		p.subscribe(Endpoint, "x", "y", "z")
		p.takes(Endpoint, content{"x": 1, "y": 1, "z": 1})
		r.settle(t)
		r.Publish("a", newConfig(t, map[Kind]content{Endpoint: {"x": 2, "y": 2, "z": 1}}))
		p.nack(p.wants(Endpoint, content{"x": 2, "y": 2}), "bad x")
		r.settle(t)
		r.Publish("a", newConfig(t, map[Kind]content{Endpoint: {"x": 3, "y": 2, "z": 1}}))
		m := p.wants(Endpoint, content{"x": 3, "y": 2, "z": 1})
		p.nack(m, "bad x still")
		p.subscribe(Endpoint, "y", "z") // less than was rejected
		p.takes(Endpoint, content{"y": 2, "z": 1})
		p.quiet(Route)
	})
}

func TestSessions(t *testing.T) {
	t.Run("the session sees the node, the credentials, and each response and answer", func(t *testing.T) {
		r := newRig(t)
		r.Publish("a", newConfig(t, map[Kind]content{Cluster: {"x": 1}, Endpoint: {"x": 1, "y": 1}}))
		ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", "one", "authorization", "two")
		stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(r.conn).StreamAggregatedResources(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&discoveryv3.DiscoveryRequest{Node: &corev3.Node{Id: "a", Cluster: "c"}, TypeUrl: Cluster.TypeURL()}); err != nil {
			t.Fatal(err)
		}
		s := r.opened(t)
		if diff := cmp.Diff([]string{"one", "two"}, s.first.Authorization); diff != "" || s.first.Node.GetCluster() != "c" || s.first.Peer == "" {
			t.Errorf("opening: %+v\n%s", s.first, diff)
		}
		s.wants(t, "sent cluster")
		if err := stream.CloseSend(); err != nil {
			t.Fatal(err)
		}
		<-s.closed

		p := r.connect(t, "a")
		p.subscribe(Cluster)
		p.takes(Cluster, content{"x": 1})
		s = r.opened(t)
		p.subscribe(Endpoint, "x")
		p.takes(Endpoint, content{"x": 1})
		p.subscribe(Endpoint, "x", "y")
		m := p.wants(Endpoint, content{"y": 1})
		p.nonce[Endpoint] = "1" // stale
		p.subscribe(Endpoint, "x", "y")
		p.nack(m, "no")
		s.wants(t, "sent cluster", "ack cluster", "sent endpoint", "ack endpoint", "ack endpoint", "sent endpoint", "ack endpoint", "nack endpoint no")
	})
	t.Run("a plain error of Open has code Unknown and its text, a status error is kept", func(t *testing.T) {
		for _, refuse := range []error{errors.New("authentication failed: no token"), status.Error(codes.Unknown, "authentication failed: no token")} {
			r := newRig(t)
			r.sessions.refuse = refuse
			p := r.connect(t, "a")
			p.subscribe(Cluster)
			wantStatus(t, p.ends(), codes.Unknown, "authentication failed: no token")
		}
		r := newRig(t)
		r.sessions.refuse = status.Error(codes.ResourceExhausted, "too many")
		p := r.connect(t, "a")
		p.subscribe(Cluster)
		wantStatus(t, p.ends(), codes.ResourceExhausted, "too many")
	})
	t.Run("the credential is checked before each later request", func(t *testing.T) {
		r := newRig(t)
		r.Publish("a", newConfig(t, nil))
		p := r.connect(t, "a")
		p.subscribe(Cluster)
		p.takes(Cluster, content{})
		s := r.opened(t)
		s.wants(t, "sent cluster", "ack cluster")
		s.mu.Lock()
		s.check = errors.New("authentication failed: token expired")
		s.mu.Unlock()
		p.subscribe(Listener)
		wantStatus(t, p.ends(), codes.Unknown, "authentication failed: token expired")
		<-s.closed
		s.wants(t, "sent cluster", "ack cluster")
	})
	t.Run("an idle stream ends when its session is over", func(t *testing.T) {
		r := newRig(t)
		p := r.connect(t, "a")
		p.subscribe(Cluster)
		s := r.opened(t)
		s.err = errors.New("authentication failed: token revoked")
		close(s.done)
		wantStatus(t, p.ends(), codes.Unknown, "authentication failed: token revoked")
		<-s.closed
	})
	t.Run("Shutdown ends streams, closes sessions and refuses new streams", func(t *testing.T) {
		r := newRig(t)
		p, idle := r.connect(t, "a"), r.connect(t, "b")
		p.subscribe(Cluster)
		s := r.opened(t)
		r.Shutdown()
		wantStatus(t, p.ends(), codes.Unavailable, "control plane is shutting down")
		wantStatus(t, idle.ends(), codes.Unavailable, "control plane is shutting down")
		select {
		case <-s.closed:
		default:
			t.Error("the session is open after Shutdown")
		}
		late := r.connect(t, "c")
		wantStatus(t, late.ends(), codes.Unavailable, "control plane is shutting down")
		if len(r.nodes) != 0 || len(r.open) != 0 {
			t.Errorf("%d nodes and %d streams are left", len(r.nodes), len(r.open))
		}
	})
}

func wantStatus(t *testing.T, err error, code codes.Code, text string) {
	t.Helper()
	if s := status.Convert(err); s.Code() != code || !strings.Contains(s.Message(), text) {
		t.Errorf("stream ended with %v, want %v %q", err, code, text)
	}
}

func TestBadRequests(t *testing.T) {
	for name, tc := range map[string]struct {
		requests []*discoveryv3.DiscoveryRequest
		want     string
	}{
		"no node": {
			[]*discoveryv3.DiscoveryRequest{{TypeUrl: Cluster.TypeURL()}},
			"must have a node with an id",
		},
		"another node later": {
			[]*discoveryv3.DiscoveryRequest{
				{Node: &corev3.Node{Id: "a"}, TypeUrl: Cluster.TypeURL()},
				{Node: &corev3.Node{Id: "b"}, TypeUrl: Listener.TypeURL()},
			},
			`node id changed from "a" to "b"`,
		},
		"no type": {
			[]*discoveryv3.DiscoveryRequest{{Node: &corev3.Node{Id: "a"}}},
			"type URL is required",
		},
		"too many names": {
			[]*discoveryv3.DiscoveryRequest{{Node: &corev3.Node{Id: "a"}, TypeUrl: Endpoint.TypeURL(), ResourceNames: make([]string, 10_001)}},
			"request names 10001 resources, more than 10000",
		},
		"too many unknown types": {
			func() (out []*discoveryv3.DiscoveryRequest) {
				for i := range maxUnknownTypes + 1 {
					out = append(out, &discoveryv3.DiscoveryRequest{Node: &corev3.Node{Id: "a"}, TypeUrl: fmt.Sprint("type-", i)})
				}
				return out
			}(),
			"requests of more than 16 types",
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			p := r.connect(t, "a")
			for _, req := range tc.requests {
				p.node = req.Node
				p.send(req)
			}
			wantStatus(t, p.ends(), codes.InvalidArgument, tc.want)
		})
	}
	t.Run("a message beyond gRPC's limit", func(t *testing.T) {
		r := newRig(t, grpc.MaxRecvMsgSize(1<<10))
		p := r.connect(t, strings.Repeat("a", 2<<10))
		p.subscribe(Cluster)
		wantStatus(t, p.ends(), codes.ResourceExhausted, "larger than max")
	})
	t.Run("unknown types within the limit wait", func(t *testing.T) {
		r := newRig(t)
		r.Publish("a", newConfig(t, nil))
		p := r.connect(t, "a")
		for i := range maxUnknownTypes {
			p.send(&discoveryv3.DiscoveryRequest{TypeUrl: fmt.Sprint("type-", i)})
		}
		p.quiet(Cluster)
	})
	t.Run("the incremental protocol is not served", func(t *testing.T) {
		r := newRig(t)
		stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(r.conn).DeltaAggregatedResources(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		_, err = stream.Recv()
		wantStatus(t, err, codes.Unimplemented, "")
	})
}

func TestSlowProxyDelaysOnlyItself(t *testing.T) {
	r := newRig(t, grpc.InitialWindowSize(64<<10))
	big := func(n int) *Config {
		var resources []*Resource
		for i := range 400 {
			resources = append(resources, newResource(t, Listener, fmt.Sprintf("l%d-%s", i, strings.Repeat("x", 1000)), n))
		}
		c, err := NewConfig(resources...)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	conn, err := r.dial()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	slow, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range []Kind{Cluster, Listener, Endpoint} {
		if err := slow.Send(&discoveryv3.DiscoveryRequest{Node: &corev3.Node{Id: "slow"}, TypeUrl: k.TypeURL()}); err != nil {
			t.Fatal(err)
		}
	}
	s := r.opened(t)
	fast := r.connect(t, "fast")
	fast.subscribe(Cluster)
	fast.subscribe(Listener)
	r.opened(t)
	r.settle(t)
	for n := range 100 {
		r.Publish("slow", big(n))
		r.Publish("fast", newConfig(t, map[Kind]content{Cluster: {"x": n}}))
		fast.takes(Cluster, content{"x": n})
		if n == 0 {
			fast.takes(Listener, content{})
		}
	}
	close(s.done) // also ends a stream whose Send blocks
	select {
	case <-s.closed:
	case <-time.After(patience):
		t.Fatal("a stream that is not read did not end")
	}
}

func TestAStreamThatSaysNothingEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv, err := New(Options{Sessions: newSessions()})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- srv.StreamAggregatedResources(silentStream{ctx: ctx}) }()
		time.Sleep(firstRequest + time.Second)
		synctest.Wait()
		select {
		case err := <-ended:
			if status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("it ends with %v", err)
			}
		default:
			t.Error("it is still open")
		}
		cancel() // as gRPC does when the handler has returned
		srv.Shutdown()
	})
}

// silentStream is a connection on which nothing comes.
type silentStream struct {
	grpc.ServerStream

	ctx context.Context
}

func (s silentStream) Context() context.Context                { return s.ctx }
func (silentStream) Send(*discoveryv3.DiscoveryResponse) error { return nil }
func (s silentStream) Recv() (*discoveryv3.DiscoveryRequest, error) {
	<-s.ctx.Done()
	return nil, s.ctx.Err()
}
