package proxies

import (
	"bytes"
	"context"
	"errors"
	"maps"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/meridian-mesh/meridian/api/codec"
	"github.com/meridian-mesh/meridian/api/dataplane"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/tokens"
	"github.com/meridian-mesh/meridian/api/validate"
	"github.com/meridian-mesh/meridian/common/store"
)

// registration is what became of the resource of a proxy that was admitted.
type registration struct {
	brought bool // by the proxy
	created bool // now
	// subscription is that of the new stream, where it had to be stored with the registration; else nil.
	subscription *subscription
}

// brought is the resource that a proxy brings, right by itself.
type brought struct {
	descriptor *resource.Descriptor
	message    proto.Message
	labels     map[string]string // nil: it says nothing about labels
}

// enrolment is what admitting a proxy does to a state.
type enrolment struct {
	old, mesh, insight *store.Record // what it depends on; nil where there is none
	ops                []store.Op
	registration
}

// register authenticates a proxy and stores the resource it brings, or looks for one that is there.
//
// It is decided twice like every write: on the snapshot, which keeps hopeless proxies off the committer, and by the state
// that the batch is applied to. A proxy whose resource is stored already goes to the committer all the same, since its
// removal may be under way there, by whatever process; one that brings none does where that is to be expected.
func (r *Registry) register(ctx context.Context, n *node, c credential, aside bool) (registration, error) {
	// Of strangers nothing is even read.
	if snap := r.store.Snapshot(); c.required && (n.kind != Sidecar || hasMesh(snap, n.mesh)) {
		if _, err := r.verify(snap, n, c); err != nil {
			return registration{}, err
		}
	}
	b, err := decodeBrought(n)
	if err != nil {
		return registration{}, err
	}
	now := time.Now().UTC()
	plan, err := r.enrol(r.store.Snapshot(), n, c, b, aside, now)
	if err != nil || b == nil && len(plan.ops) == 0 {
		return plan.registration, err
	}
	// Whether the stream still is there or not, what becomes of the batch has to be known: what is registered must be removed when
	// the stream is over.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), registrationTimeout)
	defer cancel()
	var final enrolment // written by the update, which may still run when it was given up: read only after success
	_, err = r.store.Update(ctx, func(head *store.Snapshot) ([]store.Op, error) {
		old, _ := head.Get(n.key())
		mesh, _ := head.Get(meshKey(n))
		insight, _ := head.Get(n.insightKey())
		if final = plan; old != plan.old || mesh != plan.mesh || insight != plan.insight {
			var err error
			if final, err = r.enrol(head, n, c, b, aside, now); err != nil {
				return nil, err
			}
		}
		return final.ops, nil
	})
	if err == nil {
		return final.registration, nil
	}
	if _, ok := errors.AsType[*refusal](err); ok {
		return registration{}, err
	}
	return registration{}, refuse(storeFailed, codes.Unavailable, "the proxy could not be registered: %v", err)
}

// registrationTimeout is how long the store may take to register a proxy.
const registrationTimeout = time.Minute

// decodeBrought reads the resource in a node's metadata; nil when there is none.
func decodeBrought(n *node) (*brought, error) {
	if n.resource == "" {
		return nil, nil
	}
	bad := func(format string, args ...any) (*brought, error) {
		return nil, refuse(badResource, codes.InvalidArgument, "the resource that the proxy brings is refused: "+format, args...)
	}
	d, _ := resource.Lookup(n.kind.Type())
	format := "application/yaml"
	if strings.HasPrefix(strings.TrimSpace(n.resource), "{") {
		format = "application/json"
	}
	doc, err := codec.Decode(d, format, []byte(n.resource))
	if err != nil {
		return bad("%s", clipTo(err.Error(), maxErrorBytes))
	}
	switch {
	case doc.Type != string(d.Name):
		return bad("type: %q is not %s", clip(doc.Type), d.Name)
	case doc.Name != n.name:
		return bad("name: %q is not that of the node, %q", clip(doc.Name), clip(n.name))
	case d.Scope == resource.ScopeMesh && doc.Mesh != n.mesh:
		return bad("mesh: %q is not that of the node, %q", clip(doc.Mesh), clip(n.mesh))
	}
	if found := validate.Spec(d, n.key(), doc.Spec); len(found) > 0 {
		return bad("%s", violations(found))
	}
	b := &brought{descriptor: d, message: d.NewSpec(), labels: doc.Labels}
	if err := proto.Unmarshal(doc.Spec, b.message); err != nil {
		return bad("it cannot be read")
	}
	return b, nil
}

// violations renders what is wrong with a resource.
func violations(found []codec.Violation) string {
	return clipTo((&codec.Error{Violations: found}).Error(), maxErrorBytes)
}

func meshKey(n *node) store.Key { return store.Key{Type: string(resource.Mesh), Name: n.mesh} }

func hasMesh(snap *store.Snapshot, mesh string) bool {
	_, ok := snap.Get(store.Key{Type: string(resource.Mesh), Name: mesh})
	return ok
}

// enrol says what admitting the proxy does to a state, or why it is refused.
func (r *Registry) enrol(view *store.Snapshot, n *node, c credential, b *brought, aside bool, now time.Time) (enrolment, error) {
	var e enrolment
	var exists, meshThere bool
	e.old, exists = view.Get(n.key())
	e.insight, _ = view.Get(n.insightKey())
	if n.kind == Sidecar {
		// A proxy that is known keeps what it has when its mesh is gone; a token of the mesh cannot be verified then.
		if e.mesh, meshThere = view.Get(meshKey(n)); !meshThere && (!exists || c.required) {
			return e, refuse(noMesh, codes.NotFound, "there is no mesh %q", clip(n.mesh))
		}
	}
	var claims tokens.Claims
	if c.required {
		var err error
		if claims, err = r.verify(view, n, c); err != nil {
			return e, err
		}
	}
	if exists && e.old.Origin != "" {
		return e, refuse(foreignResource, codes.PermissionDenied, "%s %q belongs to another control plane", e.old.Key.Type, clip(n.name))
	}
	if exists && n.kind == Sidecar {
		var stored meshv1.Dataplane
		if err := proto.Unmarshal(e.old.Spec, &stored); err != nil {
			return e, refuse(badResource, codes.Internal, "the stored resource of the proxy cannot be read")
		}
		if len(e.old.Spec) > 0 || b == nil {
			if err := allowTags(claims, &stored); err != nil {
				return e, err
			}
		}
	}
	switch {
	case b != nil:
		if err := r.enrolBrought(view, &e, n, claims, b, now); err != nil {
			return e, err
		}
	case !exists:
		return e, refuse(noResource, codes.NotFound, "there is no %s %q, and the proxy brings none", n.kind.Type(), clip(n.name))
	}
	if aside {
		return e, nil
	}
	return e, r.enlist(&e, n, now)
}

// enrolBrought completes e for a proxy that brings its resource.
func (r *Registry) enrolBrought(view *store.Snapshot, e *enrolment, n *node, claims tokens.Claims, b *brought, now time.Time) error {
	m := proto.Clone(b.message)
	e.brought, e.created = true, e.old == nil
	if e.created {
		if err := resource.CheckName(n.name); err != nil {
			return refuse(badResource, codes.InvalidArgument, "the name of the proxy is refused: %v", err)
		}
	}
	switch m := m.(type) {
	case *meshv1.Dataplane:
		keepHealth(m, e.old)
		dataplane.Complete(m, r.zone, e.created)
		if err := allowTags(claims, m); err != nil {
			return err
		}
	case *meshv1.ZoneIngress:
		if err := r.ownZone(m.GetZone()); err != nil {
			return err
		}
		keepServices(m, e.old)
	case *meshv1.ZoneEgress:
		if err := r.ownZone(m.GetZone()); err != nil {
			return err
		}
	}
	spec, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return refuse(badResource, codes.InvalidArgument, "the resource that the proxy brings cannot be stored")
	}
	rec := &store.Record{Key: n.key(), Spec: spec, Labels: b.labels, Created: now, Modified: now}
	if e.old != nil {
		if rec.Created = e.old.Created; rec.Labels == nil {
			rec.Labels = e.old.Labels
		}
		if bytes.Equal(e.old.Spec, spec) && maps.Equal(e.old.Labels, rec.Labels) {
			rec = nil
		}
	}
	// Also of one that is there already: the mesh may have become stricter.
	judged := rec
	if judged == nil {
		judged = e.old
	}
	if found := validate.State(view, b.descriptor, judged, e.old); len(found) > 0 {
		return refuse(meshRefuses, codes.FailedPrecondition, "the mesh does not take the proxy: %s", violations(found))
	}
	if rec != nil {
		e.ops = []store.Op{store.Put(rec)}
	}
	return nil
}

// enlist has the subscription of the new stream stored with the registration where any process of the plane might remove the
// resource before the session has stored it: when the resource is new, or that of a proxy that is gone and may be removed by now.
//
// Of a proxy that brought its resource it says that it is about to be removed: that is so until there is the session, which
// opens it. Whoever finds it after a crash in between removes the resource, after the whole delay.
func (r *Registry) enlist(e *enrolment, n *node, now time.Time) error {
	rec, i := &store.Record{Key: n.insightKey(), Created: now, Modified: now}, &insight{}
	if old := e.insight; old != nil {
		if old.Origin != "" {
			return nil
		}
		if known, err := decodeInsight(n.kind, old.Spec); err == nil && !e.created { // else it starts over
			i, rec.Created, rec.Labels = known, old.Created, old.Labels
		}
	}
	if !e.created && !i.leaving() && !i.offlineSince(now.Add(-r.cfg.CleanupAge/2)) {
		return nil
	}
	i.keep()
	e.subscription = newSubscription(r.instance, n.metadata.Version)
	e.subscription.stored, e.subscription.back = true, true
	sub := proto.CloneOf(e.subscription.DiscoverySubscription)
	if e.brought {
		sub.DisconnectTime, sub.Deregistering = sub.GetConnectTime(), true
	}
	i.subscriptions = append(i.subscriptions, sub)
	i.trim()
	var err error
	if rec.Spec, err = i.encode(n.kind); err != nil {
		return refuse(badResource, codes.Internal, "the proxy cannot be registered: %v", err)
	}
	e.ops = append(e.ops, store.Put(rec))
	return nil
}

// ownZone refuses an ingress or egress that says it is in another zone: traffic of the meshes would go there.
func (r *Registry) ownZone(zone string) error {
	if zone == "" || zone == r.zone {
		return nil
	}
	return refuse(badResource, codes.InvalidArgument, "the resource that the proxy brings is refused: zone: %q is not this one, %q", clip(zone), r.zone)
}

// keepHealth takes over what is known of the health of inbounds that say nothing of it themselves: what a proxy brings does
// not know, and a proxy that reconnects has not become ill by that.
func keepHealth(dp *meshv1.Dataplane, old *store.Record) {
	var stored meshv1.Dataplane
	if old == nil || proto.Unmarshal(old.Spec, &stored) != nil {
		return
	}
	type listener struct {
		address string
		port    uint32
	}
	known := make(map[listener]*meshv1.Dataplane_Networking_Inbound)
	for _, in := range stored.GetNetworking().GetInbound() {
		known[listener{in.GetAddress(), in.GetPort()}] = in
	}
	for _, in := range dp.GetNetworking().GetInbound() {
		was, ok := known[listener{in.GetAddress(), in.GetPort()}]
		switch {
		case in.GetHealth() != nil:
		case ok:
			in.Health = was.GetHealth()
		case in.GetServiceProbe() != nil: // a new one
			in.Health = &meshv1.Dataplane_Networking_Inbound_Health{}
		}
	}
}

// keepServices takes over what this zone offers through an ingress, which the ingress does not know.
func keepServices(in *meshv1.ZoneIngress, old *store.Record) {
	var stored meshv1.ZoneIngress
	if old == nil || len(in.GetAvailableServices()) > 0 || proto.Unmarshal(old.Spec, &stored) != nil {
		return
	}
	in.AvailableServices = stored.GetAvailableServices()
}
