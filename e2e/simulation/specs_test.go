package simulation

import (
	"strings"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/sync/kds"
)

func meshSpec(n int) proto.Message {
	return &meshv1.Mesh{Routing: &meshv1.Routing{ZoneEgress: n%2 == 0, LocalityAwareLoadBalancing: n%3 == 0}}
}

func secret(n int) proto.Message {
	return &systemv1.Secret{Data: wrapperspb.Bytes([]byte{byte(n)})}
}

func egress(address string) proto.Message {
	return &meshv1.ZoneEgress{Networking: &meshv1.ZoneEgress_Networking{Address: address, Port: 10002}}
}

func insight(n int) proto.Message {
	return &meshv1.DataplaneInsight{Subscriptions: []*meshv1.DiscoverySubscription{{
		Id: "s", ConnectTime: &timestamppb.Timestamp{Seconds: int64(n)},
	}}}
}

// deleteZone removes a Zone and all that came from it in one batch, as the HTTP API does when it is told to force it.
func deleteZone(t testing.TB, g *globalPlane, name string) {
	t.Helper()
	if _, err := g.st.Update(t.Context(), func(head *store.Snapshot) ([]store.Op, error) {
		ops := []store.Op{
			store.Delete(store.Key{Type: string(resource.ZoneType), Name: name}),
			store.Delete(store.Key{Type: string(resource.ZoneInsight), Name: name}),
		}
		for _, d := range resource.All() {
			for r := range head.ByOrigin(string(d.Name), name) {
				ops = append(ops, store.Delete(r.Key))
			}
		}
		for r := range head.List(kds.TokenType, name) {
			ops = append(ops, store.Delete(r.Key))
		}
		return ops, nil
	}); err != nil {
		t.Fatalf("delete zone: %v", err)
	}
}

// bigValue is a configuration of a megabyte.
var bigValue = structpb.NewStringValue(strings.Repeat("c", 1<<20))

// withoutEachField returns copies of a message, each with one field missing, at any depth. Bytes of the resource
// envelope are taken apart too.
func withoutEachField(m proto.Message) []proto.Message {
	var out []proto.Message
	walk(m.ProtoReflect(), func() { out = append(out, proto.Clone(m)) })
	resp, ok := m.(*discoveryv3.DeltaDiscoveryResponse)
	if !ok {
		return out
	}
	for i, r := range resp.GetResources() {
		var kr meshv1.KumaResource
		if proto.Unmarshal(r.GetResource().GetValue(), &kr) != nil {
			continue
		}
		walk(kr.ProtoReflect(), func() {
			c := proto.CloneOf(resp)
			c.Resources[i].Resource.Value, _ = proto.Marshal(&kr)
			out = append(out, c)
		})
	}
	return out
}

// walk calls f while each field of m in turn is missing, and puts it back.
func walk(m protoreflect.Message, f func()) {
	var set []protoreflect.FieldDescriptor
	m.Range(func(fd protoreflect.FieldDescriptor, _ protoreflect.Value) bool { set = append(set, fd); return true })
	for _, fd := range set {
		whole := proto.Clone(m.Interface())
		m.Clear(fd)
		f()
		proto.Reset(m.Interface())
		proto.Merge(m.Interface(), whole)
		v := m.Get(fd)
		switch {
		case fd.IsList() && fd.Message() != nil:
			for i := range v.List().Len() {
				walk(v.List().Get(i).Message(), f)
			}
		case !fd.IsList() && !fd.IsMap() && fd.Message() != nil:
			walk(v.Message(), f)
		}
	}
}
