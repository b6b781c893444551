package server

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/cluster"
)

func TestInstancesStatusTellsWhatMembersTell(t *testing.T) {
	started := time.Now().Add(-90 * time.Second).Truncate(time.Second)
	for _, on := range []resource.Plane{resource.Global, resource.Zone} {
		p := newPlane(t, on, func(o *Options) {
			o.Instances = func() []cluster.Member {
				return []cluster.Member{
					{Name: "a", Self: true, Version: "1.0.0", Started: started, Lists: map[string]cluster.List{
						cluster.Leases: {Total: 2, Names: []string{"other", PlaneLease}}, cluster.Zones: {Total: 3, Names: []string{"z1", "z2"}},
					}},
					{Name: "b", Address: "10.0.0.7:7946", Calls: "10.0.0.7:7947", Version: "1.1.0", Started: time.Now().Add(time.Hour)}, // its clock is ahead
				}
			}
		})
		var got []map[string]any
		if err := json.Unmarshal([]byte(p.want(200, http.MethodGet, "/status/instances", "").Body), &got); err != nil {
			t.Fatal(err)
		}
		if s, ok := got[0]["uptimeSeconds"].(float64); !ok || s < 90 || s > 900 {
			t.Errorf("uptime: %v", got[0])
		}
		delete(got[0], "uptimeSeconds")
		delete(got[1], "started")
		none := map[string]any{"total": 0.0, "names": []any{}}
		want := []map[string]any{
			{
				"name": "a", "self": true, "address": nil, "callAddress": nil, "version": "1.0.0", "started": started.UTC().Format(time.RFC3339), "leader": true,
				"zones": map[string]any{"total": 3.0, "names": []any{"z1", "z2"}}, "proxies": none,
			},
			{
				"name": "b", "self": false, "address": "10.0.0.7:7946", "callAddress": "10.0.0.7:7947", "version": "1.1.0", "uptimeSeconds": 0.0, "leader": false,
				"zones": none, "proxies": none,
			},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
}
