package kds

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/meridian-mesh/meridian/api/codec"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// inbox turns what a peer sends into records. The peer is a zone on the way up, and "global" on the way down; it is
// the origin of all that it sends.
type inbox struct {
	dir  Direction
	peer string
}

// record decodes one resource of a response. An error concerns that resource alone. A nil record without an error is
// a resource that is not for this plane.
func (in inbox) record(d *resource.Descriptor, res *discoveryv3.Resource) (*store.Record, error) {
	body := res.GetResource()
	switch {
	case body == nil:
		return nil, errors.New("it has no body")
	case body.GetTypeUrl() != kumaResourceURL:
		return nil, fmt.Errorf("its type URL is %q, not %q", body.GetTypeUrl(), kumaResourceURL)
	}
	var kr meshv1.KumaResource
	if err := proto.Unmarshal(body.GetValue(), &kr); err != nil {
		return nil, fmt.Errorf("undecodable: %w", err)
	}
	meta := kr.GetMeta()
	switch {
	case meta.GetName() == "":
		return nil, errors.New("it has no name")
	case !storable(meta.GetName()) || !storable(meta.GetMesh()):
		return nil, errUnstorable
	case d.Scope == resource.ScopeMesh && meta.GetMesh() == "":
		return nil, errors.New("it has no mesh")
	case kr.GetSpec() == nil:
		return nil, errors.New("it has no spec")
	}
	mesh := meta.GetMesh()
	if d.Scope == resource.ScopeGlobal {
		mesh = ""
	}
	// What zones may also create themselves is taken from the global only if it says that it comes from there.
	if in.dir == Down && d.Flow == resource.FlowBoth && meta.GetLabels()[labelOrigin] != originGlobal {
		return nil, nil
	}
	spec, err := in.spec(d, kr.GetSpec().GetTypeUrl(), kr.GetSpec().GetValue())
	if err != nil {
		return nil, err
	}
	rec := &store.Record{Spec: spec, Origin: in.peer, WireName: meta.GetName()}
	rec.Labels, rec.Created, rec.Modified = inLabels(meta.GetLabels())
	rec.Key = storeKey(d, mesh, in.name(meta.GetName(), rec.Labels))
	if !storable(rec.Key.Name) {
		return nil, errUnstorable
	}
	return rec, nil
}

// maxKeyPart bounds the names and meshes that are taken from peers, in bytes. Names of Kuma have at most 253, and get a
// zone's or a namespace's in front or behind.
const maxKeyPart = 1024

var errUnstorable = fmt.Errorf("its name or mesh has a NUL in it or more than %d bytes", maxKeyPart)

// storable reports whether the store takes a name. One that it does not take must not fail the batch, and with it the
// stream.
func storable(name string) bool {
	return len(name) <= maxKeyPart && strings.IndexByte(name, 0) < 0
}

// ownKey is the wire key of a resource by what it says itself, which is what counts; "" when it cannot be read.
func ownKey(res *discoveryv3.Resource) string {
	var kr meshv1.KumaResource
	if proto.Unmarshal(res.GetResource().GetValue(), &kr) != nil || kr.GetMeta().GetName() == "" {
		return ""
	}
	return wireKey(kr.GetMeta().GetName(), kr.GetMeta().GetMesh())
}

// name is the name under which a received resource is stored. On the global a zone's resources carry the zone's name
// in front of the name their owner knows (decisions 12 and 22).
func (in inbox) name(wire string, labels map[string]string) string {
	if in.dir == Down {
		return wire
	}
	name := wire
	if display := labels[labelDisplayName]; display != "" {
		name = display
		if ns := labels[labelNamespace]; ns != "" {
			name += "." + ns
		}
	}
	return in.peer + "." + name
}

// spec checks a specification and brings it into the form that is stored: canonical bytes for messages, so that equal
// means equal, and JSON byte for byte.
func (in inbox) spec(d *resource.Descriptor, typeURL string, value []byte) ([]byte, error) {
	if d.IsJSON() {
		if err := codec.ValidateSpec(d, value); err != nil {
			return nil, err
		}
		return value, nil
	}
	want := d.Message().FullName()
	if name := typeURL[strings.LastIndexByte(typeURL, '/')+1:]; name != string(want) {
		return nil, fmt.Errorf("its spec is a %q, not a %q", name, want)
	}
	msg := d.NewSpec()
	if err := proto.Unmarshal(value, msg); err != nil {
		return nil, fmt.Errorf("undecodable spec: %w", err)
	}
	if in.dir == Up {
		setZone(msg, in.peer)
	}
	spec, err := proto.MarshalOptions{Deterministic: true}.Marshal(msg)
	if err != nil {
		return nil, fmt.Errorf("encode spec: %w", err)
	}
	if err := codec.ValidateSpec(d, spec); err != nil {
		return nil, err
	}
	return spec, nil
}

// setZone says in a specification that has a place for it to which zone the resource belongs, whatever it said.
func setZone(msg proto.Message, zone string) {
	m := msg.ProtoReflect()
	f := m.Descriptor().Fields().ByName("zone")
	if f != nil && f.Kind() == protoreflect.StringKind && f.Cardinality() != protoreflect.Repeated {
		m.Set(f, protoreflect.ValueOfString(zone))
	}
}

// equal reports whether storing b over a would change nothing.
func equal(a, b *store.Record) bool {
	return a.WireName == b.WireName && bytes.Equal(a.Spec, b.Spec) && maps.Equal(a.Labels, b.Labels) &&
		(b.Created.IsZero() || a.Created.Equal(b.Created) && a.Modified.Equal(b.Modified))
}

// apply is one response on its way into the store.
type apply struct {
	inbox
	desc    *resource.Descriptor
	records []*store.Record
	removed []string
	// full: what is neither in records nor in keep goes. keep holds wire keys of invalid resources, and of earlier pages.
	full bool
	keep map[string]bool
	// token is stored when something changed, or when it is far ahead of the stored one. "": none.
	token string
}

// tokenSlack is how many revisions a stored token may fall behind while nothing of its type changes. It saves a
// commit per type on each reconnect, and must stay well below what the publisher's store retains (100,000).
const tokenSlack = 10_000

// ops computes the batch against head. It returns what could not be applied beside it; result counts for the log.
// Nothing cascades: each type is replicated as its owner has it, and what this plane owns is never touched.
func (a *apply) ops(head *store.Snapshot) (ops []store.Op, rejected []rejection, result applied) {
	touched := make(map[store.Key]bool, len(a.records))
	present := make(map[string]bool, len(a.records)+len(a.keep))
	for k := range a.keep {
		present[k] = true
	}
	typ := string(a.desc.Name)
	for _, rec := range a.records {
		key := wireKey(rec.WireName, rec.Key.Mesh)
		present[key] = true
	}
	del := func(rec *store.Record) {
		if !touched[rec.Key] {
			touched[rec.Key] = true
			ops = append(ops, store.Delete(rec.Key))
			result.deleted++
		}
	}
	for _, rec := range a.records {
		key := wireKey(rec.WireName, rec.Key.Mesh)
		old, exists := head.Get(rec.Key)
		switch {
		case touched[rec.Key]:
			rejected = append(rejected, rejection{key, fmt.Errorf("another resource of this message is also called %q", rec.Key.Name)})
			continue
		case exists && old.Origin != a.peer:
			rejected = append(rejected, rejection{key, fmt.Errorf("resource already exists: %s belongs to %s", rec.Key, owner(old.Origin))})
			continue
		case exists && old.WireName != rec.WireName && a.stays(present, wireKey(old.WireName, old.Key.Mesh)):
			rejected = append(rejected, rejection{key, fmt.Errorf("resource already exists: %s is known as %q", rec.Key, old.WireName)})
			continue
		}
		if moved, ok := head.ByWireName(typ, a.peer, rec.Key.Mesh, rec.WireName); ok && moved.Key != rec.Key {
			del(moved)
		}
		touched[rec.Key] = true
		if exists && equal(old, rec) {
			continue
		}
		if exists && rec.Created.IsZero() {
			rec.Created, rec.Modified = old.Created, old.Modified
		}
		ops = append(ops, store.Put(rec))
		result.put = append(result.put, rec)
	}
	for _, key := range a.removed {
		name, mesh := splitWireKey(key)
		if old, ok := head.ByWireName(typ, a.peer, mesh, name); ok && !present[key] {
			del(old)
		}
	}
	if a.full {
		for old := range head.ByOrigin(typ, a.peer) {
			result.known++
			if !present[wireKey(old.WireName, old.Key.Mesh)] {
				del(old)
			}
		}
	}
	if a.token != "" && len(rejected) == 0 && (len(ops) > 0 || a.tokenDue(head)) {
		ops = append(ops, store.Put(&store.Record{Key: tokenKey(a.peer, a.desc.Name), Spec: []byte(a.token)}))
	}
	return ops, rejected, result
}

// applied is what became of a response. put are the records that changed.
type applied struct {
	put            []*store.Record
	deleted, known int
}

// stays reports whether the resource with that wire key will still be there after this response.
func (a *apply) stays(present map[string]bool, key string) bool {
	if a.full {
		return present[key]
	}
	return present[key] || !slices.Contains(a.removed, key)
}

func (a *apply) tokenDue(head *store.Snapshot) bool {
	stored, err := ParseToken(storedToken(head, a.peer, a.desc.Name))
	if err != nil {
		return true
	}
	now, err := ParseToken(a.token)
	return err == nil && (now.Store != stored.Store || now.Revision > stored.Revision+tokenSlack)
}

func owner(origin string) string {
	if origin == "" {
		return "this control plane"
	}
	return origin
}
