package zone

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/server"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/sync/forward"
	"github.com/meridian-mesh/meridian/zone/proxies"
)

// inspectTimeout is how long another replica may take for an answer: longer than any of [admin.Asker] and [explain.Explainer].
const inspectTimeout = 10 * time.Second

// inspection answers what the API, the global and other replicas ask about proxies. The API is made before what answers, and serves
// nothing until all is made.
type inspection struct {
	*dataPlane

	store    *store.Store
	instance string // id of this replica
	peers    forward.Peers
}

func (z *Zone) inspection() inspection {
	return inspection{&z.dataPlane, z.store, z.cfg.General.InstanceID, z.peers}
}

// Ask implements [server.Proxies]. Where the proxy has its stream with another replica of this plane, that one answers.
func (i inspection) Ask(ctx context.Context, q server.ProxyQuestion) ([]byte, error) {
	if sub := i.subscription(q); sub != nil && sub.GetControlPlaneInstanceId() != i.instance {
		connection := fmt.Sprintf("the proxy of %s %q is connected", q.Type, q.Name)
		if sub.GetDisconnectTime() != nil {
			connection = fmt.Sprintf("the proxy of %s %q was connected", q.Type, q.Name)
		}
		return forward.Ask(ctx, i.peers, sub.GetControlPlaneInstanceId(), connection, inspectTimeout, q)
	}
	return i.AskHere(ctx, q)
}

// AskHere answers by what this replica has of the proxy.
func (i inspection) AskHere(ctx context.Context, q server.ProxyQuestion) ([]byte, error) {
	if q.View == server.ViewExplain {
		return i.explainer.Ask(ctx, q)
	}
	return i.asker.Ask(ctx, q)
}

var kindsOfProxies = map[resource.Type]proxies.Kind{
	resource.Dataplane: proxies.Sidecar, resource.ZoneIngress: proxies.Ingress, resource.ZoneEgress: proxies.Egress,
}

// subscription returns the connection of the proxy by which a question is answered; nil: it has one to this replica, or none at
// all. What was sent to a proxy that has gone, the replica knows that it was connected to.
func (i inspection) subscription(q server.ProxyQuestion) *meshv1.DiscoverySubscription {
	kind, ok := kindsOfProxies[q.Type]
	if !ok {
		return nil
	}
	if _, here := i.registry.Look(proxies.NodeID(kind, q.Mesh, q.Name)); here {
		return nil
	}
	d, _ := resource.Lookup(q.Type)
	insight, _ := d.Insight()
	rec, ok := i.store.Snapshot().Get(store.Key{Type: string(insight.Name), Mesh: q.Mesh, Name: q.Name})
	if !ok || rec.Origin != "" { // of another zone
		return nil
	}
	spec := insight.NewSpec()
	if proto.Unmarshal(rec.Spec, spec) != nil { // its proxy will write it anew
		return nil
	}
	said, ok := spec.(interface {
		GetSubscriptions() []*meshv1.DiscoverySubscription
	})
	if !ok {
		return nil
	}
	open, ended := newest(said.GetSubscriptions())
	if open == nil && q.ControlPlane {
		return ended
	}
	return open
}

// newest returns the newest of the subscriptions that go on, and of those that have ended; nil where there is none.
func newest(all []*meshv1.DiscoverySubscription) (open, ended *meshv1.DiscoverySubscription) {
	for _, s := range all {
		at := &open
		if s.GetDisconnectTime() != nil {
			at = &ended
		}
		if s.GetConnectTime() != nil && (*at == nil || s.GetConnectTime().AsTime().After((*at).GetConnectTime().AsTime())) {
			*at = s
		}
	}
	return open, ended
}
