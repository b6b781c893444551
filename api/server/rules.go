package server

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/meridian-mesh/meridian/api/codec"
	proxies "github.com/meridian-mesh/meridian/api/dataplane"
	"github.com/meridian-mesh/meridian/api/defaults"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// syncToken is the type of the records in which synchronisation keeps how far it got with a zone; Key.Mesh holds the
// zone's name. It has no row in the registry: it is no resource.
const syncToken = "SyncToken"

// zoneBookkeeping are the types of the records that the global keeps of a zone's session, under the zone's name. They are no
// resources either.
var zoneBookkeeping = [...]string{"ZoneSession", "LostZone"}

// admit returns the specification to store for one that was sent. What it adds is part of the resource from then on:
// putting back what was read changes nothing.
func (e endpoint) admit(spec []byte, creating bool) ([]byte, error) {
	switch {
	case e.plane == resource.Global && e.d.Name == resource.Mesh:
		return admitMesh(spec)
	case e.plane == resource.Zone && e.d.Name == resource.Dataplane:
		return e.admitDataplane(spec, creating)
	default:
		return spec, nil
	}
}

func admitMesh(spec []byte) ([]byte, error) {
	var mesh meshv1.Mesh
	if err := proto.Unmarshal(spec, &mesh); err != nil {
		return nil, fmt.Errorf("read the mesh: %w", err)
	}
	if !defaults.FillMesh(&mesh) {
		return spec, nil
	}
	admitted, err := proto.MarshalOptions{Deterministic: true}.Marshal(&mesh)
	if err != nil {
		return nil, fmt.Errorf("encode the mesh: %w", err)
	}
	return admitted, nil
}

// belongings returns what is stored along with a resource and does not exist in the state v, and what must be made for
// it first: a new mesh comes with its default policies and a key for tokens, any mesh with the authorities of its
// builtin backends.
func (e endpoint) belongings(v view, d draft, spec []byte, creating bool) ([]store.Op, []defaults.Need, error) {
	if e.plane != resource.Global || e.d.Name != resource.Mesh {
		return nil, nil, nil
	}
	var mesh meshv1.Mesh
	if err := proto.Unmarshal(spec, &mesh); err != nil {
		return nil, nil, fmt.Errorf("read the mesh: %w", err)
	}
	return defaults.MeshWrite{Name: d.key.Name, Spec: &mesh, Policies: creating && !d.bare, Key: creating, Now: d.now}.Ops(v, d.material)
}

// admitDataplane: a Dataplane carries the zone's name on every inbound or on its gateway, and an inbound with a probe
// starts as not ready, until the probe has spoken.
func (e endpoint) admitDataplane(spec []byte, creating bool) ([]byte, error) {
	var dp meshv1.Dataplane
	if err := proto.Unmarshal(spec, &dp); err != nil {
		return nil, fmt.Errorf("read the dataplane: %w", err)
	}
	proxies.Complete(&dp, e.opts.ZoneName, creating)
	admitted, err := proto.MarshalOptions{Deterministic: true}.Marshal(&dp)
	if err != nil {
		return nil, fmt.Errorf("encode the dataplane: %w", err)
	}
	return admitted, nil
}

// deletion returns the batch that removes rec: itself, its insight, and what goes with a resource of its type, or the
// reason why it must stay. online says whether a zone has a live session.
func (e endpoint) deletion(head *store.Snapshot, rec *store.Record, online bool) ([]store.Op, error) {
	ops := []store.Op{store.Delete(rec.Key)}
	if insight, ok := e.d.Insight(); ok {
		key := rec.Key
		key.Type = string(insight.Name)
		if i, ok := head.Get(key); ok && i.Origin == "" {
			ops = append(ops, store.Delete(key))
		}
	}
	switch e.d.Name {
	case resource.Mesh:
		return e.meshDeletion(head, rec.Key.Name, ops)
	case resource.ZoneType:
		return e.zoneDeletion(head, rec.Key.Name, online, ops)
	case resource.Secret:
		if err := e.secretUnused(head, rec.Key); err != nil {
			return nil, err
		}
	default:
	}
	return ops, nil
}

// meshDeletion adds all that this plane owns in a mesh. Proxies keep the mesh, also those that zones own; what else
// zones own in it is theirs to remove.
func (e endpoint) meshDeletion(head *store.Snapshot, mesh string, ops []store.Op) ([]store.Op, error) {
	if !e.opts.UnsafeDelete && head.Count(string(resource.Dataplane), mesh) > 0 {
		return nil, invalid(titleDelete, cause{"mesh", "unable to delete mesh, there are still some dataplanes attached"})
	}
	all := resource.All()
	for i := range all {
		if all[i].Scope != resource.ScopeMesh {
			continue
		}
		for rec := range head.List(string(all[i].Name), mesh) {
			if rec.Origin == "" {
				ops = append(ops, store.Delete(rec.Key))
			}
		}
	}
	return ops, nil
}

// zoneDeletion adds all that came from a zone, and the memory of its session and of how far synchronisation with it got: should the
// zone come back, it starts anew.
func (e endpoint) zoneDeletion(head *store.Snapshot, zone string, online bool, ops []store.Op) ([]store.Op, error) {
	if online && !e.opts.UnsafeDelete {
		return nil, invalid(titleDelete, cause{
			"zone", "unable to delete Zone, Zone CP is still connected, please shut it down first",
		})
	}
	all := resource.All()
	for i := range all {
		for rec := range head.ByOrigin(string(all[i].Name), zone) {
			ops = append(ops, store.Delete(rec.Key))
		}
	}
	for rec := range head.List(syncToken, zone) {
		ops = append(ops, store.Delete(rec.Key))
	}
	for _, typ := range zoneBookkeeping {
		ops = append(ops, store.Delete(store.Key{Type: typ, Name: zone}))
	}
	return ops, nil
}

// zoneOnline reports whether a zone has a live session.
func (e endpoint) zoneOnline(snap *store.Snapshot, key store.Key) bool {
	live, ok := e.live(snap, key.Name)
	return ok && live.Online
}

// secretUnused refuses to delete a secret that an mTLS backend of its mesh takes its CA from.
func (e endpoint) secretUnused(head *store.Snapshot, key store.Key) error {
	if e.opts.UnsafeDelete {
		return nil
	}
	rec, ok := head.Get(store.Key{Type: string(resource.Mesh), Name: key.Mesh})
	if !ok {
		return nil
	}
	d, _ := resource.Lookup(resource.Mesh)
	spec, err := codec.Spec(d, rec)
	if err != nil {
		return internal(titleDelete, fmt.Errorf("read %s: %w", rec.Key, err))
	}
	mesh, ok := spec.(*meshv1.Mesh)
	if !ok {
		return internal(titleDelete, fmt.Errorf("read %s: it holds a %T", rec.Key, spec))
	}
	for _, b := range mesh.GetMtls().GetBackends() {
		if backendUses(b, key) {
			return invalid(titleDelete, cause{"name", fmt.Sprintf(
				"The secret %q that you are trying to remove is currently in use in Mesh %q in mTLS backend %q. "+
					"Please remove the reference from the %q backend before removing the secret.",
				key.Name, key.Mesh, b.GetName(), b.GetName())})
		}
	}
	return nil
}

// authorityOf returns the backend in the name of a secret that holds the pair of a builtin CA, which begins with the
// mesh and a dot; otherwise the name. So a client may bring back what a plane once made. The dots that a backend may
// have in its name, unlike a resource, are shown as dashes.
func authorityOf(secret store.Key) string {
	cert, key := defaults.BuiltinSecrets(secret.Mesh, "")
	for _, prefix := range [...]string{cert, key} {
		if backend, ok := strings.CutPrefix(secret.Name, prefix); ok {
			return strings.ReplaceAll(backend, ".", "-")
		}
	}
	return secret.Name
}

// backendUses reports whether a CA backend reads a secret: the pair made for a builtin one, or those a provided one
// names.
func backendUses(b *meshv1.CertificateAuthorityBackend, secret store.Key) bool {
	switch b.GetType() {
	case "builtin":
		cert, key := defaults.BuiltinSecrets(secret.Mesh, b.GetName())
		return secret.Name == cert || secret.Name == key
	case "provided":
		for _, part := range [...]string{"cert", "key"} {
			source := b.GetConf().GetFields()[part].GetStructValue()
			if source.GetFields()["secret"].GetStringValue() == secret.Name {
				return true
			}
		}
	}
	return false
}
