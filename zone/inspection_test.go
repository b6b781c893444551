package zone

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/server"
	"github.com/meridian-mesh/meridian/common/store"
)

// called is who was asked.
type called struct{ instance string }

func (c *called) Call(_ context.Context, instance, _ string, _ []byte) ([]byte, error) {
	c.instance = instance
	return []byte("from " + instance), nil
}

func TestTheReplicaThatHasTheProxyIsAsked(t *testing.T) {
	cfg := DefaultConfig()
	cfg.General.DataDir, cfg.General.InstanceID = t.TempDir(), "a"
	cfg.Multizone.Zone.Name, cfg.Multizone.Zone.GlobalAddress = "east", "grpcs://127.0.0.1:1"
	cfg.API.HTTPPort, cfg.API.HTTPSPort, cfg.Diagnostics.Port, cfg.DPServer.Port, cfg.MADS.Port = 0, 0, 0, 0, -1
	z, err := New(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = z.Close() })
	at := func(s int64) *timestamppb.Timestamp { return timestamppb.New(time.Unix(s, 0)) }
	open := func(instance string, since int64) *meshv1.DiscoverySubscription {
		return &meshv1.DiscoverySubscription{Id: fmt.Sprint(instance, since), ControlPlaneInstanceId: instance, ConnectTime: at(since)}
	}
	ended := func(instance string, since int64) *meshv1.DiscoverySubscription {
		s := open(instance, since)
		s.DisconnectTime = at(since + 1)
		return s
	}
	for name, tt := range map[string]struct {
		origin string
		subs   []*meshv1.DiscoverySubscription
		asked  string
		left   string
	}{
		"it never was connected":        {"", nil, "", ""},
		"its stream is elsewhere":       {"", []*meshv1.DiscoverySubscription{open("b", 1)}, "b", ""},
		"it should be here, and is not": {"", []*meshv1.DiscoverySubscription{open("a", 1)}, "", ""},
		"it has left":                   {"", []*meshv1.DiscoverySubscription{ended("b", 1), ended("c", 2)}, "", "c"},
		"it has moved":                  {"", []*meshv1.DiscoverySubscription{open("c", 3), open("b", 1), ended("a", 4)}, "c", ""},
		"never opened":                  {"", []*meshv1.DiscoverySubscription{open("b", 1), {Id: "x", ControlPlaneInstanceId: "c"}}, "b", ""},
		"it is of another zone":         {"global", []*meshv1.DiscoverySubscription{open("b", 1)}, "", ""},
	} {
		for typ, insight := range map[resource.Type]proto.Message{
			resource.Dataplane:   &meshv1.DataplaneInsight{Subscriptions: tt.subs},
			resource.ZoneIngress: &meshv1.ZoneIngressInsight{Subscriptions: tt.subs},
			resource.ZoneEgress:  &meshv1.ZoneEgressInsight{Subscriptions: tt.subs},
		} {
			spec, err := proto.Marshal(insight)
			if err != nil {
				t.Fatal(err)
			}
			q := server.ProxyQuestion{Type: typ, Name: "p", View: server.ViewStats}
			if typ == resource.Dataplane {
				q.Mesh = "default"
			}
			key := store.Key{Type: string(typ) + "Insight", Mesh: q.Mesh, Name: q.Name}
			if _, err := z.store.Update(t.Context(), func(*store.Snapshot) ([]store.Op, error) {
				return []store.Op{store.Put(&store.Record{Key: key, Spec: spec, Origin: tt.origin})}, nil
			}); err != nil {
				t.Fatal(err)
			}
			peers := &called{}
			i := z.inspection()
			i.peers = peers
			if answer, err := i.Ask(t.Context(), q); peers.instance != tt.asked || tt.asked != "" && (err != nil || string(answer) != "from "+tt.asked) || tt.asked == "" && err == nil {
				t.Errorf("%s, %s: %q is asked: %q, %v", typ, name, peers.instance, answer, err)
			}
			if tt.left != "" {
				past := q
				past.View, past.ControlPlane = server.ViewConfigDump, true
				if answer, err := i.Ask(t.Context(), past); err != nil || string(answer) != "from "+tt.left {
					t.Errorf("%s, %s: what was sent to it: %q, %v", typ, name, answer, err)
				}
				peers.instance = ""
			}
			if _, err := i.AskHere(t.Context(), q); err == nil || peers.instance != tt.asked {
				t.Errorf("%s, %s: what was forwarded here: %v", typ, name, err)
			}
		}
	}
}
