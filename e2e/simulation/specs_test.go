package simulation

import (
	"testing"

	"google.golang.org/protobuf/proto"
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
