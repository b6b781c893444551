package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Kinds of a targetRef.
const (
	KindMesh              = "Mesh"
	KindMeshSubset        = "MeshSubset"
	KindMeshService       = "MeshService"
	KindMeshServiceSubset = "MeshServiceSubset"
	KindMeshGatewayRoute  = "MeshGatewayRoute"
)

// kindOrder are the kinds from the least to the most specific: what a later one says overrides what an earlier one says.
func kindOrder() []string {
	return []string{KindMesh, KindMeshSubset, KindMeshService, KindMeshServiceSubset, KindMeshGatewayRoute}
}

// Ref is the specification of a targetRef policy. It is shared: read-only.
type Ref struct {
	// TargetRef says which proxies the policy is for.
	TargetRef TargetRef
	// From say what holds for connections from some clients to the proxy; To, for those from the proxy to some services.
	From, To []Item
	// Default says what holds for the proxy as a whole; nil when the policy does not.
	Default json.RawMessage

	conf any // Default, parsed
}

// Item is a configuration for the peers that its TargetRef names.
type Item struct {
	TargetRef TargetRef
	Default   json.RawMessage

	conf any // Default, parsed
}

// TargetRef names proxies or services.
type TargetRef struct {
	Kind string
	Name string            // of kinds with a name
	Tags map[string]string // of the two subsets
	// ProxyTypes narrows what is named to "Sidecar" or "Gateway", as newer planes allow; empty: both.
	ProxyTypes []string
}

// selectors are the tags that a proxy must have to be named; none when it names no proxies.
func (r TargetRef) selectors() []selector {
	switch r.Kind {
	case KindMesh:
		return []selector{{}}
	case KindMeshSubset, KindMeshService, KindMeshServiceSubset:
		return []selector{newSelector(r.tags())}
	default:
		return nil
	}
}

// tags are all tags that what is named has, kuma.io/service included.
func (r TargetRef) tags() map[string]string {
	tags := make(map[string]string, len(r.Tags)+1)
	maps.Copy(tags, r.Tags)
	if r.Kind == KindMeshService || r.Kind == KindMeshServiceSubset {
		tags[serviceTag] = r.Name
	}
	return tags
}

// forType reports whether the target admits proxies of a type.
func (r TargetRef) forType(proxyType string) bool {
	return len(r.ProxyTypes) == 0 || slices.Contains(r.ProxyTypes, proxyType)
}

// object is a JSON object whose members are read by their exact name: encoding/json fills structs without regard to case,
// and would take a member that is not ours for one that is.
type object map[string]json.RawMessage

// member decodes a member into v and leaves v alone when the object has none, or null.
func (o object) member(name string, v any) error {
	raw, ok := o[name]
	if !ok {
		return nil
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// decodeRef reads a specification. It refuses what it would otherwise have to ignore: a policy that is half understood
// could allow what it forbids.
func decodeRef(spec []byte) (*Ref, error) {
	var o object
	if err := json.Unmarshal(spec, &o); err != nil {
		return nil, err
	}
	if o == nil {
		return nil, errors.New("is not an object")
	}
	var rules []json.RawMessage
	if err := o.member("rules", &rules); err != nil {
		return nil, err
	}
	if len(rules) > 0 {
		return nil, errors.New("rules: are of a newer version, and not understood")
	}
	ref := &Ref{}
	var err error
	if ref.TargetRef, err = decodeTargetRef(o); err != nil {
		return nil, err
	}
	if ref.From, err = decodeItems(o, "from"); err != nil {
		return nil, err
	}
	if ref.To, err = decodeItems(o, "to"); err != nil {
		return nil, err
	}
	ref.Default, ref.conf, err = decodeDefault(o)
	return ref, err
}

func decodeItems(o object, name string) ([]Item, error) {
	var list []object
	if err := o.member(name, &list); err != nil {
		return nil, err
	}
	var items []Item
	for i, o := range list {
		var item Item
		var err error
		if item.TargetRef, err = decodeTargetRef(o); err == nil && item.TargetRef.Kind == KindMeshGatewayRoute {
			err = errors.New("targetRef: kind MeshGatewayRoute names no peers")
		}
		if err == nil {
			item.Default, item.conf, err = decodeDefault(o)
		}
		if err != nil {
			return nil, fmt.Errorf("%s[%d].%w", name, i, err)
		}
		items = append(items, item)
	}
	return items, nil
}

// decodeTargetRef reads the member targetRef of o. Newer planes may leave it out, and mean the mesh.
func decodeTargetRef(o object) (TargetRef, error) {
	ref := TargetRef{Kind: KindMesh}
	var members object
	if err := o.member("targetRef", &members); err != nil || members == nil {
		return ref, err
	}
	err := errors.Join(members.member("kind", &ref.Kind), members.member("name", &ref.Name),
		members.member("tags", &ref.Tags), members.member("proxyTypes", &ref.ProxyTypes))
	if err == nil && !slices.Contains(kindOrder(), ref.Kind) {
		err = fmt.Errorf("kind %q is not known", ref.Kind)
	}
	if err != nil {
		return ref, fmt.Errorf("targetRef: %w", err)
	}
	return ref, nil
}

func decodeDefault(o object) (json.RawMessage, any, error) {
	raw, ok := o["default"]
	if !ok {
		return nil, nil, nil
	}
	conf, err := parse(raw)
	if err != nil {
		return nil, nil, fmt.Errorf("default: %w", err)
	}
	return raw, conf, nil
}

// parse decodes JSON and keeps numbers as they are written.
func parse(raw []byte) (any, error) {
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, err
	}
	return v, nil
}

// encode is the JSON of what parse and mergePatch return: compact, members sorted, no escapes for the sake of HTML.
func encode(v any) (json.RawMessage, error) {
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return json.RawMessage(strings.TrimSuffix(b.String(), "\n")), nil
}

// mergePatch applies a JSON merge patch (RFC 7386, section 2) and returns the result. Neither argument is changed; the result
// may share parts with both.
func mergePatch(target, patch any) any {
	changes, ok := patch.(map[string]any)
	if !ok {
		return patch
	}
	old, _ := target.(map[string]any)
	merged := make(map[string]any, len(old)+len(changes))
	maps.Copy(merged, old)
	for k, v := range changes {
		if v == nil {
			delete(merged, k)
		} else {
			merged[k] = mergePatch(merged[k], v)
		}
	}
	return merged
}
