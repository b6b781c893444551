package page

import (
	"encoding/json"
	"fmt"
	"maps"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// record is a resource as a plane itself writes it.
func record(t *testing.T, typ resource.Type, mesh, name string, spec proto.Message) *store.Record {
	t.Helper()
	raw, err := proto.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().UTC()
	return &store.Record{Key: store.Key{Type: string(typ), Mesh: mesh, Name: name}, Spec: raw, Created: now, Modified: now}
}

// overview is the parts of an overview: the resource as a body that can be put, and the insight, nil when it has none.
type overview struct {
	body    map[string]any
	insight *store.Record
}

// overviewKinds says by the type of an overview which key holds what.
var overviewKinds = map[string]struct {
	main, insight       resource.Type
	mainKey, insightKey string
}{
	"DataplaneOverview":   {resource.Dataplane, resource.DataplaneInsight, "dataplane", "dataplaneInsight"},
	"ZoneIngressOverview": {resource.ZoneIngress, resource.ZoneIngressInsight, "zoneIngress", "zoneIngressInsight"},
	"ZoneEgressOverview":  {resource.ZoneEgress, resource.ZoneEgressInsight, "zoneEgress", "zoneEgressInsight"},
}

// partsOf takes an overview of the page apart.
func partsOf(t *testing.T, item map[string]any) overview {
	t.Helper()
	kind := overviewKinds[item["type"].(string)]
	main, ok := item[kind.mainKey].(map[string]any)
	if !ok {
		t.Fatalf("%v has no %s", item["name"], kind.mainKey)
	}
	body := map[string]any{"type": string(kind.main), "name": zoneLocal(item["name"].(string))}
	if mesh, ok := item["mesh"]; ok {
		body["mesh"] = mesh
	}
	maps.Copy(body, main)
	o := overview{body: body}
	insight, _ := item[kind.insightKey].(map[string]any)
	if len(insight) == 0 {
		return o
	}
	raw, err := json.Marshal(insight)
	if err != nil {
		t.Fatal(err)
	}
	d, _ := resource.Lookup(kind.insight)
	spec := d.NewSpec()
	if err := protojson.Unmarshal(raw, spec); err != nil {
		t.Fatalf("insight of %v: %v", item["name"], err)
	}
	mesh, _ := item["mesh"].(string)
	o.insight = record(t, kind.insight, mesh, zoneLocal(item["name"].(string)), spec)
	return o
}

// proxyState is what a proxy of the population is like.
type proxyState struct {
	online, degraded bool
}

// population is proxies enough for every counter of the page's MeshInsight and ServiceInsight to count something: of each
// service, each version and each kind of proxy one that is online, one with a part of its inbounds down, and one offline.
func population(t *testing.T) []overview {
	t.Helper()
	var all []overview
	add := func(service string, gateway bool, kumaDp, envoy string, s proxyState) {
		name := fmt.Sprintf("proxy-%d", len(all))
		tags := map[string]any{"kuma.io/service": service}
		networking := map[string]any{"address": "10.0.0.1"}
		if gateway {
			networking["gateway"] = map[string]any{"tags": tags}
		} else {
			second := map[string]any{"port": 8081, "tags": map[string]any{"kuma.io/service": service + "-admin"}}
			if s.degraded {
				second["health"] = map[string]any{}
			}
			networking["inbound"] = []any{map[string]any{"port": 8080, "tags": tags}, second}
		}
		subscription := &meshv1.DiscoverySubscription{
			Id: name, ControlPlaneInstanceId: "zone-instance", ConnectTime: timestamppb.Now(),
			Status: &meshv1.DiscoverySubscriptionStatus{},
			Version: &meshv1.Version{
				KumaDp: &meshv1.KumaDpVersion{Version: kumaDp}, Envoy: &meshv1.EnvoyVersion{Version: envoy},
			},
		}
		if !s.online {
			subscription.DisconnectTime = timestamppb.Now()
		}
		all = append(all, overview{
			body: map[string]any{"type": "Dataplane", "mesh": "default", "name": name, "networking": networking},
			insight: record(t, resource.DataplaneInsight, "default", name, &meshv1.DataplaneInsight{
				Subscriptions: []*meshv1.DiscoverySubscription{subscription},
				MTLS:          &meshv1.DataplaneInsight_MTLS{IssuedBackend: "ca-1", SupportedBackends: []string{"ca-1"}},
			}),
		})
	}
	states := []proxyState{{online: true}, {online: true, degraded: true}, {}}
	for _, s := range states {
		add("backend", false, "1.0.4", "1.15.0", s)
		add("backend-api", false, "1.0.0-rc2-119-g50e35395", "", s)
		add("web", false, "", "1.15.0", s)
		add("edge", true, "1.0.4", "1.15.0", s)
	}
	return all
}
