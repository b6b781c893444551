package kds

import (
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/maypok86/otter/v2"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

const (
	typeURLPrefix   = "type.googleapis.com/"
	kumaResourceURL = typeURLPrefix + "kuma.mesh.v1alpha1.KumaResource"

	zoneTokenKeyPrefix       = "zone-token-signing-key"
	zoneTokenPublicKeyPrefix = "zone-token-signing-public-key"
)

// travellingSecrets are the prefixes of the GlobalSecrets that zones need: what verifies the tokens of their proxies
// and peers. Everything else stays on the global unless labelled kuma.io/kds-sync: enabled (decision 40).
var travellingSecrets = []string{
	"zone-ingress-token-signing-key", zoneTokenKeyPrefix, "zone-token-revocations", "zone-ingress-token-revocations",
}

// maxWireCacheBytes bounds what Encoder keeps.
const maxWireCacheBytes = 64 << 20

// Encoder renders records as they travel. The result depends on the record and on few traits of the peer, so it is
// cached and shared by the streams of a plane. What is kept of a resource is its newest version: a plane that is written
// all the time would otherwise fill the cache with versions that nobody asks for again. Safe for concurrent use.
type Encoder struct {
	cache *otter.Cache[encoderKey, *wireResource]
}

type encoderKey struct {
	key   store.Key
	style wireStyle
}

// wireStyle is all of a peer that the encoding depends on.
type wireStyle struct {
	dir      Direction
	zone     string // the sender's, on the way up
	hashed   bool   // the peer takes hashed names
	meridian bool   // the peer is one of ours: times travel, and nothing is projected
}

// wireResource is an encoded record; shared and read-only.
type wireResource struct {
	rec  *store.Record
	res  *discoveryv3.Resource
	size int
	err  error // it cannot be said to this peer
}

// NewEncoder returns an empty Encoder.
func NewEncoder() *Encoder {
	return &Encoder{cache: otter.Must(&otter.Options[encoderKey, *wireResource]{
		MaximumWeight: maxWireCacheBytes,
		// What the record holds counts too: the cache may be the last that knows it.
		Weigher: func(_ encoderKey, w *wireResource) uint32 { return uint32(w.size) + uint32(len(w.rec.Spec)) + 512 },
	})}
}

func (e *Encoder) encode(d *resource.Descriptor, rec *store.Record, style wireStyle) *wireResource {
	key := encoderKey{rec.Key, style}
	if w, ok := e.cache.GetIfPresent(key); ok && w.rec == rec {
		return w
	}
	w := encodeRecord(d, rec, style)
	w.rec = rec
	e.cache.Set(key, w)
	return w
}

func encodeRecord(d *resource.Descriptor, rec *store.Record, style wireStyle) *wireResource {
	labels := outLabels(style.dir, style.zone, rec)
	name := rec.Key.Name
	if style.hashed && !d.PlainOnWire {
		display := resource.DisplayName(rec)
		name = resource.HashedName(rec.Key.Mesh, display, labels)
		labels[labelDisplayName] = display
	}
	if style.meridian && !rec.Created.IsZero() {
		labels[labelTimes] = formatTimes(rec.Created, rec.Modified)
	}
	spec, err := wireSpec(d, rec, style)
	if err != nil {
		return &wireResource{err: err}
	}
	if public, ok := publicKeyName(d, name); ok {
		labels[labelDisplayName], name = name, public
	}
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(&meshv1.KumaResource{
		Meta: &meshv1.KumaResource_Meta{Name: name, Mesh: rec.Key.Mesh, Labels: labels},
		Spec: spec,
	})
	if err != nil {
		return &wireResource{err: fmt.Errorf("encode %s: %w", rec.Key, err)}
	}
	sum := sha256.Sum256(body)
	res := &discoveryv3.Resource{
		Name:     wireKey(name, rec.Key.Mesh),
		Version:  hex.EncodeToString(sum[:]),
		Resource: &anypb.Any{TypeUrl: kumaResourceURL, Value: body},
	}
	return &wireResource{res: res, size: proto.Size(res)}
}

// wireSpec is the specification as it travels: JSON as it is under an empty type URL, messages as Any. The few types
// that change on the way are changed here.
func wireSpec(d *resource.Descriptor, rec *store.Record, style wireStyle) (*anypb.Any, error) {
	if d.IsJSON() {
		return &anypb.Any{Value: rec.Spec}, nil
	}
	spec := rec.Spec
	change := specChange(d, rec, style)
	if change != nil {
		msg := d.NewSpec()
		if err := proto.Unmarshal(spec, msg); err != nil {
			return nil, fmt.Errorf("decode %s: %w", rec.Key, err)
		}
		if err := change(msg); err != nil {
			return nil, fmt.Errorf("%s cannot be sent: %w", rec.Key, err)
		}
		var err error
		if spec, err = (proto.MarshalOptions{Deterministic: true}).Marshal(msg); err != nil {
			return nil, fmt.Errorf("encode %s: %w", rec.Key, err)
		}
	}
	return &anypb.Any{TypeUrl: typeURLPrefix + string(d.Message().FullName()), Value: spec}, nil
}

// specChange returns what must be done to a specification before it leaves, nil for nearly all.
func specChange(d *resource.Descriptor, rec *store.Record, style wireStyle) func(proto.Message) error {
	switch {
	case style.dir == Up && d.InsightOf != "":
		return dropGenerations
	case style.dir == Up:
		return nil
	case d.Name == resource.GlobalSecret && strings.HasPrefix(rec.Key.Name, zoneTokenKeyPrefix):
		return toPublicKey
	case !style.meridian:
		return projections[d.Name]
	}
	return nil
}

// dropGenerations clears the counter that proves a proxy's session alive, so that it does not cause traffic
// (KDS contract §11).
func dropGenerations(m proto.Message) error {
	type insight interface {
		GetSubscriptions() []*meshv1.DiscoverySubscription
	}
	if in, ok := m.(insight); ok {
		for _, s := range in.GetSubscriptions() {
			s.Generation = 0
		}
	}
	return nil
}

func publicKeyName(d *resource.Descriptor, name string) (string, bool) {
	if d.Name != resource.GlobalSecret {
		return "", false
	}
	rest, ok := strings.CutPrefix(name, zoneTokenKeyPrefix)
	return zoneTokenPublicKeyPrefix + rest, ok
}

// toPublicKey leaves a zone only the half of the zone token key that verifies.
func toPublicKey(m proto.Message) error {
	secret, ok := m.(*systemv1.Secret)
	if !ok {
		return fmt.Errorf("a secret was expected, not %T", m)
	}
	block, _ := pem.Decode(secret.GetData().GetValue())
	if block == nil {
		return errors.New("the key is not PEM")
	}
	key, err := parseRSA(block.Bytes)
	if err != nil {
		return err
	}
	secret.Data = wrapperspb.Bytes(pem.EncodeToMemory(&pem.Block{
		Type: "RSA PUBLIC KEY", Bytes: x509.MarshalPKCS1PublicKey(&key.PublicKey),
	}))
	return nil
}

func parseRSA(der []byte) (*rsa.PrivateKey, error) {
	if key, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return key, nil
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, errors.New("the key is neither PKCS#1 nor PKCS#8")
	}
	rsaKey, ok := key.(*rsa.PrivateKey)
	if !ok {
		return nil, errors.New("the key is not RSA")
	}
	return rsaKey, nil
}

// offer is what one stream's publisher offers to its peer.
type offer struct {
	style wireStyle
	zone  string // the zone of the stream: the peer on the way down, this plane on the way up
	enc   *Encoder
}

// selects reports whether the peer gets rec, given the rest of the state. What it depends on besides the record is
// said by zonesChanged.
func (o *offer) selects(snap *store.Snapshot, d *resource.Descriptor, rec *store.Record) bool {
	sync := rec.Labels[labelSync]
	if sync == "disabled" {
		return false
	}
	if o.style.dir == Up {
		return rec.Origin == ""
	}
	switch d.Name {
	case resource.Config:
		return rec.Key.Name == resource.ClusterIDName // the only one that leaves a global
	case resource.GlobalSecret:
		return sync == "enabled" || travels(rec.Key.Name)
	}
	if d.Flow != resource.FlowBoth {
		return rec.Origin == ""
	}
	owner := rec.Origin
	if owner == "" {
		owner = zoneOf(d, rec)
	}
	return owner != o.zone && zoneEnabled(snap, owner) && !zoneLost(snap, owner)
}

// zonesChanged reports whether something else than the records of a type changed, on which it depends what of the type is
// selected: a Zone, or whether one is lost.
func zonesChanged(snap *store.Snapshot, dir Direction, d *resource.Descriptor, after store.Revision) bool {
	if dir != Down || d.Flow != resource.FlowBoth {
		return false
	}
	return snap.LastChange(string(resource.ZoneType)) > after || snap.LastChange(lostZone) > after
}

// lostZone is the type of the records by which a global remembers whose resources it keeps from the other zones because
// their plane died: bookkeeping, never served nor sent.
const lostZone = "LostZone"

// LostZoneKey is the key of the record that is there while a zone is lost: its plane has gone without a word. What the
// zone shares with others is withdrawn from them meanwhile.
func LostZoneKey(zone string) store.Key { return store.Key{Type: lostZone, Name: zone} }

func zoneLost(snap *store.Snapshot, zone string) bool {
	_, lost := snap.Get(LostZoneKey(zone))
	return lost
}

func (o *offer) encode(d *resource.Descriptor, rec *store.Record) *wireResource {
	return o.enc.encode(d, rec, o.style)
}

// plainWireKey is the key under which a peer that takes plain names knows a record, also one that is gone.
func plainWireKey(d *resource.Descriptor, k store.Key) string {
	name := k.Name
	if public, ok := publicKeyName(d, name); ok {
		name = public
	}
	return wireKey(name, k.Mesh)
}

func travels(name string) bool {
	for _, prefix := range travellingSecrets {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// zoneOf reads the zone that a specification names.
func zoneOf(d *resource.Descriptor, rec *store.Record) string {
	msg := d.NewSpec()
	if proto.Unmarshal(rec.Spec, msg) != nil {
		return ""
	}
	if z, ok := msg.(interface{ GetZone() string }); ok {
		return z.GetZone()
	}
	return ""
}

// zoneEnabled reports whether a zone's resources may be seen by others. A zone that is not known, or does not say, is
// enabled.
func zoneEnabled(snap *store.Snapshot, name string) bool {
	rec, ok := snap.Get(store.Key{Type: string(resource.ZoneType), Name: name})
	if !ok {
		return true
	}
	var zone systemv1.Zone
	if proto.Unmarshal(rec.Spec, &zone) != nil {
		return true
	}
	return zone.GetEnabled() == nil || zone.GetEnabled().GetValue()
}
