package admin

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meridian-mesh/meridian/api/server"
	"github.com/meridian-mesh/meridian/zone/proxies"
	"github.com/meridian-mesh/meridian/zone/xds"
)

func TestWhatWasSentIsShownWhileTheProxyIsAway(t *testing.T) {
	r := newRig(t)
	q := r.dataplane("127.0.0.2", 9901, func(l *proxies.Look) { l.ConfigError = "no address" })
	q.ControlPlane = true
	if text := r.fails(q, server.AskUnreachable); !strings.Contains(text, "has sent nothing") {
		t.Error(text)
	}
	at := time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC)
	r.looks["default.web"] = xds.Look{Ended: at.Add(time.Minute), Kinds: []xds.KindLook{
		{Kind: xds.Cluster, Published: "2", Pending: true, Sent: "1", SentAt: at, Acknowledged: "0", Rejected: "1", RejectedAt: at, Reason: "bad"},
		{Kind: xds.Endpoint, Published: "2", Sent: "2", SentAt: at, Acknowledged: "2"},
	}}
	for _, endpoints := range []bool{false, true} {
		q.IncludeEndpoints = endpoints
		body, err := r.Ask(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		want := map[string]any{
			"configs": []any{map[string]any{
				"@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump", "version_info": "1", "dynamic_active_clusters": []any{},
			}},
			"status": map[string]any{
				"node": "default.web", "connected": false, "disconnectedAt": "2026-01-02T03:05:05.000006Z", "configError": "no address",
				"kinds": []any{
					map[string]any{
						"typeUrl": xds.Cluster.TypeURL(), "resources": 0.0, "sentVersion": "1", "sentAt": "2026-01-02T03:04:05.000006Z",
						"acknowledgedVersion": "0", "publishedVersion": "2", "pending": true,
						"rejected": map[string]any{"version": "1", "reason": "bad", "at": "2026-01-02T03:04:05.000006Z"},
					},
					map[string]any{
						"typeUrl": xds.Endpoint.TypeURL(), "resources": 0.0, "sentVersion": "2", "sentAt": "2026-01-02T03:04:05.000006Z",
						"acknowledgedVersion": "2", "publishedVersion": "2",
					},
				},
			},
		}
		if endpoints {
			want["configs"] = append(want["configs"].([]any), map[string]any{ //nolint:forcetypeassert // it is above
				"@type": "type.googleapis.com/envoy.admin.v3.EndpointsConfigDump", "dynamic_endpoint_configs": []any{},
			})
		}
		var got map[string]any
		if err := json.Unmarshal(body, &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
}
