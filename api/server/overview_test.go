package server

import (
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
)

func dataplane(t *testing.T, gateway bool, tags ...map[string]string) *meshv1.Dataplane {
	t.Helper()
	net := &meshv1.Dataplane_Networking{Address: "10.0.0.1"}
	if gateway {
		net.Gateway = &meshv1.Dataplane_Networking_Gateway{Tags: tags[0]}
		tags = tags[1:]
	}
	for i, m := range tags {
		net.Inbound = append(net.Inbound, &meshv1.Dataplane_Networking_Inbound{Port: uint32(80 + i), Tags: m})
	}
	return &meshv1.Dataplane{Networking: net}
}

func TestOverviewsJoinAResourceWithItsInsight(t *testing.T) {
	p := newPlane(t, resource.Global)
	subscription := []*meshv1.DiscoverySubscription{{Id: "sub-1"}}
	p.seed(
		record(t, resource.Dataplane, "demo", "a", "zone-1", dataplane(t, false)),
		record(t, resource.Dataplane, "demo", "b", "zone-1", nil),
		record(t, resource.DataplaneInsight, "demo", "a", "zone-1", &meshv1.DataplaneInsight{Subscriptions: subscription}),
		record(t, resource.DataplaneInsight, "other", "b", "zone-1", &meshv1.DataplaneInsight{Subscriptions: subscription}),
		record(t, resource.ZoneType, "", "a", "", &systemv1.Zone{Enabled: wrapperspb.Bool(true)}),
		record(t, resource.ZoneType, "", "b", "", nil),
		record(t, resource.ZoneInsight, "", "a", "", &systemv1.ZoneInsight{Subscriptions: []*systemv1.KDSSubscription{{Id: "sub-1"}}}),
		record(t, resource.ZoneIngress, "", "a", "zone-1", &meshv1.ZoneIngress{Zone: "zone-1"}),
		record(t, resource.ZoneIngress, "", "b", "zone-1", nil),
		record(t, resource.ZoneIngressInsight, "", "a", "zone-1", &meshv1.ZoneIngressInsight{Subscriptions: subscription}),
		record(t, resource.ZoneEgress, "", "a", "zone-1", &meshv1.ZoneEgress{Zone: "zone-1"}),
		record(t, resource.ZoneEgress, "", "b", "zone-1", nil),
		record(t, resource.ZoneEgressInsight, "", "a", "zone-1", &meshv1.ZoneEgressInsight{Subscriptions: subscription}),
	)
	for _, tc := range []struct{ path, typ, main, insight, mesh, one string }{
		{"/meshes/demo/dataplanes+insights", "DataplaneOverview", "dataplane", "dataplaneInsight", "demo", "a dataplane overview"},
		{"/zones+insights", "ZoneOverview", "zone", "zoneInsight", "", "a zone overview"},
		{"/zoneingresses+insights", "ZoneIngressOverview", "zoneIngress", "zoneIngressInsight", "", "a zone ingress overview"},
		{"/zoneegressoverviews", "ZoneEgressOverview", "zoneEgress", "zoneEgressInsight", "", "a zone egress overview"},
	} {
		t.Run(tc.typ, func(t *testing.T) {
			one := object(t, p.want(200, http.MethodGet, tc.path+"/a", "").Body)
			keys := []string{"creationTime", tc.main, tc.insight, "modificationTime", "name", "type"}
			if tc.mesh != "" {
				keys = []string{"creationTime", tc.main, tc.insight, "mesh", "modificationTime", "name", "type"}
			}
			slices.Sort(keys)
			if diff := cmp.Diff(keys, sortedKeys(one)); diff != "" {
				t.Error(diff)
			}
			if one["type"] != tc.typ || one["name"] != "a" || one["creationTime"] != "2024-05-01T10:00:00Z" || one["modificationTime"] != "2024-05-01T11:00:00Z" {
				t.Errorf("meta is %v", one)
			}
			subs := one[tc.insight].(map[string]any)["subscriptions"].([]any)
			if subs[0].(map[string]any)["id"] != "sub-1" {
				t.Errorf("insight is %v", one[tc.insight])
			}

			bare := object(t, p.want(200, http.MethodGet, tc.path+"/b", "").Body)
			if diff := cmp.Diff(map[string]any{}, bare[tc.insight]); diff != "" {
				t.Errorf("an overview without insight: %s", diff)
			}

			a := p.want(404, http.MethodGet, tc.path+"/none", "")
			if got := object(t, a.Body); got["title"] != "Could not retrieve "+tc.one || got["details"] != "Not found" {
				t.Errorf("got %s", a.Body)
			}

			list := object(t, p.want(200, http.MethodGet, tc.path, "").Body)
			items := list["items"].([]any)
			if len(items) != 2 || list["total"] != 2.0 || list["next"] != nil {
				t.Fatalf("list is %v", list)
			}
			if diff := cmp.Diff(any(one), items[0]); diff != "" {
				t.Error(diff)
			}
			delete(bare, tc.insight)
			if diff := cmp.Diff(any(bare), items[1]); diff != "" {
				t.Errorf("a list's item without insight: %s", diff)
			}

			first := object(t, p.want(200, http.MethodGet, tc.path+"?size=1", "").Body)
			if first["total"] != 1.0 || first["next"] != "http://localhost:5681"+tc.path+"?offset=1&size=1" {
				t.Errorf("the first page has total %v and next %v", first["total"], first["next"])
			}
			last := p.want(200, http.MethodGet, tc.path+"?size=1&offset=1", "").Body
			if object(t, last)["next"] != nil || !strings.Contains(last, `"name": "b"`) {
				t.Errorf("the last page is %s", last)
			}
		})
	}
}

func TestDataplaneOverviewsAreFiltered(t *testing.T) {
	p := newPlane(t, resource.Global)
	type tags = map[string]string
	for name, dp := range map[string]*meshv1.Dataplane{
		"a-gateway": dataplane(t, true, tags{"kuma.io/service": "gw", "team": "blue"}),
		"b-two":     dataplane(t, false, tags{"kuma.io/service": "web", "v": "1"}, tags{"kuma.io/service": "api", "v": "2"}),
		"c-one":     dataplane(t, false, tags{"kuma.io/service": "web", "v": "2"}),
	} {
		p.seed(record(t, resource.Dataplane, "demo", name, "zone-1", dp))
	}
	for query, want := range map[string][]string{
		"":                                  {"a-gateway", "b-two", "c-one"},
		"tag=kuma.io/service:web":           {"b-two", "c-one"},
		"tag=kuma.io/service:web&tag=v:2":   {"c-one"},
		"tag=kuma.io/service:*":             {"a-gateway", "b-two", "c-one"},
		"tag=v:*":                           {"b-two", "c-one"},
		"tag=team:blue":                     {"a-gateway"},
		"tag=none:*":                        {},
		"tag=broken&tag=a:b:c":              {"a-gateway", "b-two", "c-one"},
		"gateway=true":                      {"a-gateway"},
		"gateway=FALSE":                     {"b-two", "c-one"},
		"gateway=false&tag=v:2&ingress=yes": {"b-two", "c-one"},
	} {
		for _, path := range []string{"/dataplanes+insights", "/meshes/demo/dataplanes+insights"} {
			got := names(t, p.want(200, http.MethodGet, path+"?"+query, "").Body)
			prefixed := []string{}
			for _, n := range want {
				prefixed = append(prefixed, "demo/"+n)
			}
			if diff := cmp.Diff(prefixed, got); diff != "" {
				t.Errorf("%s?%s: %s", path, query, diff)
			}
		}
	}
	a := p.want(200, http.MethodGet, "/dataplanes+insights?tag=v:*&size=1", "")
	if next := object(t, a.Body)["next"]; next != "http://localhost:5681/dataplanes+insights?offset=1&size=1&tag=v%3A%2A" {
		t.Errorf("next is %v", next)
	}
	if got := names(t, p.want(200, http.MethodGet, "/dataplanes+insights?offset=1&size=1&tag=v%3A%2A", "").Body); len(got) != 1 || got[0] != "demo/c-one" {
		t.Errorf("the second page is %v", got)
	}
	a = p.want(400, http.MethodGet, "/dataplanes+insights?gateway=maybe", "")
	cause := object(t, a.Body)["causes"].([]any)[0].(map[string]any)
	if cause["field"] != "/meshes/{mesh}/dataplanes+insights.gateway" || !strings.Contains(cause["message"].(string), "true or false") {
		t.Errorf("got %s", a.Body)
	}
	if got := names(t, p.want(200, http.MethodGet, "/dataplanes?tag=v:1&gateway=true", "").Body); len(got) != 3 {
		t.Errorf("the filters work on plain dataplanes: %v", got)
	}
}

func TestLiveZoneInsightsAreShownOverStoredOnes(t *testing.T) {
	insight := func(id string) *systemv1.ZoneInsight {
		return &systemv1.ZoneInsight{Subscriptions: []*systemv1.KDSSubscription{{Id: id}}}
	}
	live := map[string]*systemv1.ZoneInsight{"both": insight("live-1"), "unstored": insight("live-1"), "gone": insight("live-1")}
	p := newPlane(t, resource.Global, func(o *Options) { o.Zones = sessions{insight: live} })
	for _, name := range []string{"both", "stored", "unstored"} {
		p.seed(record(t, resource.ZoneType, "", name, "", nil))
	}
	p.seed(record(t, resource.ZoneInsight, "", "both", "", insight("stored")), record(t, resource.ZoneInsight, "", "stored", "", insight("stored")))

	id := func(target, key string) string {
		t.Helper()
		m := object(t, p.want(200, http.MethodGet, target, "").Body)
		if key != "" {
			m = m[key].(map[string]any)
		}
		return m["subscriptions"].([]any)[0].(map[string]any)["id"].(string)
	}
	for range 2 { // the second time, whatever is kept is kept
		got := []string{
			id("/zone-insights/both", ""), id("/zone-insights/stored", ""),
			id("/zones+insights/both", "zoneInsight"), id("/zones+insights/stored", "zoneInsight"), id("/zones+insights/unstored", "zoneInsight"),
		}
		want := live["both"].GetSubscriptions()[0].GetId()
		if diff := cmp.Diff([]string{want, "stored", want, "stored", "live-1"}, got); diff != "" {
			t.Error(diff)
		}
		for path, n := range map[string]int{"/zone-insights": 1, "/zones+insights": 2} {
			if body := p.want(200, http.MethodGet, path, "").Body; strings.Count(body, `"live-`) != n {
				t.Errorf("%s: %s", path, body)
			}
		}
		live["both"] = insight("live-2")
	}
	p.want(404, http.MethodGet, "/zone-insights/gone", "")
	p.want(404, http.MethodGet, "/zones+insights/gone", "")
}

func TestServicesAreShownOneByOne(t *testing.T) {
	p := newPlane(t, resource.Zone)
	p.seed(record(t, resource.Mesh, "", "demo", "global", nil), record(t, resource.Mesh, "", "new", "global", nil))
	const none = "{\n \"total\": 0,\n \"items\": null,\n \"next\": null\n}\n"
	for _, target := range []string{"/service-insights", "/meshes/demo/service-insights", "/meshes/none/service-insights"} {
		if diff := cmp.Diff(none, p.want(200, http.MethodGet, target, "").Body); diff != "" {
			t.Errorf("%s: %s", target, diff)
		}
	}
	stat := func(online, offline uint32) *meshv1.ServiceInsight_Service_DataplaneStat {
		return &meshv1.ServiceInsight_Service_DataplaneStat{Total: online + offline, Online: online, Offline: offline}
	}
	for _, mesh := range []string{"demo", "b"} {
		p.seed(record(t, resource.ServiceInsight, mesh, "all-services-"+mesh, "global", &meshv1.ServiceInsight{
			Services: map[string]*meshv1.ServiceInsight_Service{
				"web": {Status: meshv1.ServiceInsight_Service_partially_degraded, Dataplanes: stat(1, 1)},
				"api": {Status: meshv1.ServiceInsight_Service_online, Dataplanes: stat(2, 0), AddressPort: "api.mesh:80"},
			},
		}))
	}
	want := `{
 "type": "ServiceInsight",
 "mesh": "demo",
 "name": "web",
 "creationTime": "2024-05-01T10:00:00Z",
 "modificationTime": "2024-05-01T11:00:00Z",
 "status": "partially_degraded",
 "dataplanes": {
  "total": 2,
  "online": 1,
  "offline": 1
 }
}
`
	if diff := cmp.Diff(want, p.want(200, http.MethodGet, "/meshes/demo/service-insights/web", "").Body); diff != "" {
		t.Error(diff)
	}
	for _, tc := range []struct {
		target string
		names  []string
		next   any
	}{
		{"/service-insights", []string{"b/api", "b/web", "demo/api", "demo/web"}, nil},
		{"/meshes/demo/service-insights", []string{"demo/api", "demo/web"}, nil},
		{"/service-insights?size=3", []string{"b/api", "b/web", "demo/api"}, "http://localhost:5681/service-insights?offset=3&size=3"},
		{"/service-insights?size=3&offset=3", []string{"demo/web"}, nil},
	} {
		for range 2 {
			body := p.want(200, http.MethodGet, tc.target, "").Body
			if diff := cmp.Diff(tc.names, names(t, body)); diff != "" {
				t.Errorf("%s: %s", tc.target, diff)
			}
			if next := object(t, body)["next"]; next != tc.next {
				t.Errorf("%s: next is %v", tc.target, next)
			}
		}
	}
	for _, target := range []string{"/meshes/demo/service-insights/unknown", "/meshes/new/service-insights/web"} {
		got := object(t, p.want(200, http.MethodGet, target, "").Body)
		delete(got, "mesh")
		wantEmpty := map[string]any{
			"type": "ServiceInsight", "name": target[strings.LastIndex(target, "/")+1:],
			"creationTime": "2024-05-01T10:00:00Z", "modificationTime": "2024-05-01T11:00:00Z", "dataplanes": map[string]any{},
		}
		if diff := cmp.Diff(wantEmpty, got); diff != "" {
			t.Errorf("%s: %s", target, diff)
		}
	}
	p.want(404, http.MethodGet, "/meshes/none/service-insights/web", "")
}

func TestZonesStatusTellsWhatTheSessionsKnow(t *testing.T) {
	since := time.Date(2024, 6, 1, 12, 0, 0, 0, time.FixedZone("", 7200))
	live := map[string]ZoneLive{
		"a": {Online: true, Auth: "token", URL: "grpcs://10.0.0.7:4000", ConnectedSince: since},
		"b": {Online: true, Auth: "exempt", URL: "grpcs://10.0.0.8:4000", ConnectedSince: since},
	}
	progress := map[string]ZoneProgress{"a": {Lag: 3, LastAck: since.Add(time.Second)}, "b": {}, "c": {Lag: 7}}
	p := newPlane(t, resource.Global, func(o *Options) { o.Zones = sessions{live: live, progress: progress} })
	if a := p.want(200, http.MethodGet, "/status/zones", ""); a.Body != "[]\n" {
		t.Errorf("without zones: %q", a.Body)
	}
	p.seed(
		record(t, resource.ZoneType, "", "a", "", nil),
		record(t, resource.ZoneType, "", "b", "", &systemv1.Zone{Enabled: wrapperspb.Bool(false)}),
		record(t, resource.ZoneType, "", "c", "", &systemv1.Zone{Enabled: wrapperspb.Bool(true)}),
		record(t, resource.ZoneType, "", "d", "", nil),
		// Whatever a crash left in the store, it does not make a zone active.
		record(t, resource.ZoneInsight, "", "d", "", &systemv1.ZoneInsight{Subscriptions: []*systemv1.KDSSubscription{{Id: "x", ConnectTime: timestamppb.New(since)}}}),
	)
	want := `[
 {
  "name": "a",
  "url": "grpcs://10.0.0.7:4000",
  "active": true,
  "auth": "token",
  "connectedSince": "2024-06-01T10:00:00Z",
  "lastAck": "2024-06-01T10:00:01Z",
  "lag": 3
 },
 {
  "name": "b",
  "url": "grpcs://10.0.0.8:4000",
  "active": false,
  "auth": "exempt",
  "connectedSince": "2024-06-01T10:00:00Z",
  "lastAck": null,
  "lag": 0
 },
 {
  "name": "c",
  "url": "",
  "active": false,
  "auth": null,
  "connectedSince": null,
  "lastAck": null,
  "lag": 7
 },
 {
  "name": "d",
  "url": "",
  "active": false,
  "auth": null,
  "connectedSince": null,
  "lastAck": null,
  "lag": null
 }
]
`
	if diff := cmp.Diff(want, p.want(200, http.MethodGet, "/status/zones", "").Body); diff != "" {
		t.Error(diff)
	}
	if a := newPlane(t, resource.Zone).want(200, http.MethodGet, "/status/zones", ""); a.Body != "[]\n" {
		t.Errorf("on a zone: %q", a.Body)
	}
}

func TestTheIndexNamesThePlane(t *testing.T) {
	for _, tc := range []struct {
		plane resource.Plane
		want  map[string]any
	}{
		{resource.Global, map[string]any{
			"hostname": "host", "tagline": "Kuma", "product": "Kuma", "version": "2.0.8", "meridian": "0.1.0",
			"mode": "global", "instanceId": "host-1234", "clusterId": "cluster-1",
		}},
		{resource.Zone, map[string]any{
			"hostname": "host", "tagline": "Kuma", "product": "Kuma", "version": "2.0.8", "meridian": "0.1.0",
			"mode": "zone", "zone": "zone-1", "instanceId": "host-1234", "clusterId": "cluster-1",
		}},
	} {
		p := newPlane(t, tc.plane)
		p.seed(record(t, resource.Config, "", "kuma-cluster-id", "", &systemv1.Config{Config: "cluster-1"}))
		if diff := cmp.Diff(tc.want, object(t, p.want(200, http.MethodGet, "/", "").Body)); diff != "" {
			t.Error(diff)
		}
	}
	if got := object(t, newPlane(t, resource.Zone).want(200, http.MethodGet, "/", "").Body)["clusterId"]; got != "" {
		t.Errorf("a zone that never met its global shows cluster %v", got)
	}
}

func TestPoliciesListsEveryPolicyType(t *testing.T) {
	for _, pl := range []resource.Plane{resource.Global, resource.Zone} {
		p := newPlane(t, pl)
		list := object(t, p.want(200, http.MethodGet, "/policies", "").Body)["policies"].([]any)
		var got []string
		for _, e := range list {
			got = append(got, e.(map[string]any)["name"].(string))
		}
		want := []string{
			"CircuitBreaker", "ExternalService", "FaultInjection", "HealthCheck", "MeshAccessLog", "MeshGateway",
			"MeshGatewayRoute", "MeshTrace", "MeshTrafficPermission", "ProxyTemplate", "RateLimit", "Retry", "Timeout",
			"TrafficLog", "TrafficPermission", "TrafficRoute", "TrafficTrace", "VirtualOutbound",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		first := map[string]any{
			"name": "CircuitBreaker", "readOnly": pl == resource.Zone, "path": "circuit-breakers", "displayName": "Circuit Breakers",
			"singularDisplayName": "Circuit Breaker", "pluralDisplayName": "Circuit Breakers", "isExperimental": false,
		}
		if diff := cmp.Diff(any(first), list[0]); diff != "" {
			t.Error(diff)
		}
	}
}

func TestGlobalInsightsCountsGlobalTypes(t *testing.T) {
	p := newPlane(t, resource.Global)
	p.seed(record(t, resource.Mesh, "", "a", "", nil), record(t, resource.Mesh, "", "b", "", nil),
		record(t, resource.GlobalSecret, "", "a", "", nil), record(t, resource.MeshInsight, "", "a", "", nil),
		record(t, resource.Config, "", "kuma-cluster-id", "", nil))
	got := object(t, p.want(200, http.MethodGet, "/global-insights", "", "Remote: 10.0.0.1:1").Body)
	created, err := time.Parse(time.RFC3339Nano, got["creationTime"].(string))
	if err != nil || time.Since(created) > time.Minute {
		t.Errorf("creationTime is %v", got["creationTime"])
	}
	delete(got, "creationTime")
	total := func(n float64) map[string]any { return map[string]any{"total": n} }
	want := map[string]any{"type": "GlobalInsights", "resources": map[string]any{
		"GlobalSecret": total(1), "Mesh": total(2), "Zone": total(0), "ZoneEgress": total(0), "ZoneIngress": total(0),
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestVersionsNamesTheProxiesThatAreAccepted(t *testing.T) {
	body, err := versionsBody("2.0.0", "2.2.99")
	if err != nil {
		t.Fatal(err)
	}
	want := "{\n \"kumaDp\": {\n  \"~2.0.0\": {\n   \"envoy\": \"~1.22.0\"\n  },\n" +
		"  \"~2.1.0\": {\n   \"envoy\": \">=1.22.0\"\n  },\n  \"~2.2.0\": {\n   \"envoy\": \">=1.22.0\"\n  }\n }\n}\n"
	if diff := cmp.Diff(want, string(body)); diff != "" {
		t.Error(diff)
	}
	for _, bad := range [][2]string{{"2", "2.1.0"}, {"2.2.0", "2.1.0"}, {"1.8.0", "2.1.0"}, {"2.0.0", ""}} {
		if body, err := versionsBody(bad[0], bad[1]); err == nil {
			t.Errorf("%q to %q: %s", bad[0], bad[1], body)
		}
	}
	served := object(t, newPlane(t, resource.Zone).want(200, http.MethodGet, "/versions", "").Body)["kumaDp"].(map[string]any)
	if _, oldest := served["~2.0.0"]; !oldest || len(served) != 14 {
		t.Errorf("%v", served)
	}
}
