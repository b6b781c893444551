package simulation

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meridian-mesh/meridian/api/defaults"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/tokens"
	"github.com/meridian-mesh/meridian/common/store"
)

// holdings are the resources of a store as Type/mesh/name, each with its owner where that is another plane.
func holdings(st *store.Store) []string {
	var out []string
	for _, d := range resource.All() {
		for rec := range st.Snapshot().List(string(d.Name), "") {
			name := rec.Key.String()
			if rec.Origin != "" {
				name += " of " + rec.Origin
			}
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// What a plane makes for itself, and what zones get of it, both planes starting with nothing.
func TestNewPlanesHoldTheirOwnKeysAndAZoneWhatItNeedsOfTheGlobals(t *testing.T) {
	keys := make(chan *rsa.PrivateKey, 6) // made outside of the bubble, where time is real
	for range cap(keys) {
		key, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		keys <- key
	}
	source := func(context.Context, int) (*rsa.PrivateKey, error) { return <-keys, nil }
	synctest.Test(t, func(t *testing.T) {
		g := newGlobal(t)
		g.cluster = "" // it makes its own
		g.start(t)
		defer func() { g.stop() }()
		id, err := defaults.Start{Store: g.st, Keys: source, Log: g.log}.Global(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		z := newZone(t, "zone-1", g)
		z.start(t)
		defer func() { z.stop() }()
		if err := (defaults.Start{Store: z.st, Keys: source, Log: z.log}).Zone(t.Context()); err != nil {
			t.Fatal(err)
		}
		settle(10 * time.Second)

		travels := []string{
			"CircuitBreaker/default/circuit-breaker-all-default", "Config/kuma-cluster-id", "Mesh/default", "Retry/default/retry-all-default",
			"Secret/default/dataplane-token-signing-key-default-1", "Timeout/default/timeout-all-default",
			"TrafficPermission/default/allow-all-default", "TrafficRoute/default/route-all-default",
			"ServiceInsight/default/all-services-default", // derived from what there is, like the other insights
		}
		global := append([]string{
			"GlobalSecret/admin-user-token", "GlobalSecret/user-token-signing-key-1",
			"GlobalSecret/zone-ingress-token-signing-key-1", "GlobalSecret/zone-token-signing-key-1", "MeshInsight/default",
			"Zone/zone-1", "ZoneInsight/zone-1",
		}, travels...)
		zone := []string{
			"GlobalSecret/admin-user-token", "GlobalSecret/envoy-admin-ca", "GlobalSecret/user-token-signing-key-1", // its own
			"GlobalSecret/zone-ingress-token-signing-key-1 of global", "GlobalSecret/zone-token-signing-public-key-1 of global",
		}
		for _, name := range travels {
			zone = append(zone, name+" of global")
		}
		slices.Sort(global)
		slices.Sort(zone)
		if diff := cmp.Diff(global, holdings(g.st)); diff != "" {
			t.Errorf("the global (-want +got):\n%s", diff)
		}
		if diff := cmp.Diff(zone, holdings(z.st)); diff != "" {
			t.Errorf("the zone (-want +got):\n%s", diff)
		}
		if got := content(z.st.Snapshot().List(string(resource.Config), "")); got["/"+resource.ClusterIDName] != content(g.st.Snapshot().List(string(resource.Config), ""))["/"+resource.ClusterIDName] || id == "" {
			t.Errorf("the zone's cluster is %q, the global's %q", got, id)
		}
		for _, typ := range []resource.Type{resource.Secret, "TrafficRoute", "Retry"} {
			if diff := cmp.Diff(content(g.st.Snapshot().List(string(typ), "default")), content(z.st.Snapshot().List(string(typ), "default"))); diff != "" {
				t.Errorf("%s differs", typ)
			}
		}

		// Tokens hold where they should: those of proxies and zones on both planes, those of users on their own.
		authority := tokens.NewAuthority()
		on := map[string]*store.Snapshot{"global": g.st.Snapshot(), "zone": z.st.Snapshot()}
		for _, tc := range []struct {
			kind   tokens.Kind
			claims tokens.Claims
			issuer string
			good   map[string]bool
		}{
			{tokens.Dataplane, tokens.Claims{Mesh: "default", Name: "dp"}, "global", map[string]bool{"global": true, "zone": true}},
			{tokens.Dataplane, tokens.Claims{Mesh: "default", Name: "dp"}, "zone", map[string]bool{"global": true, "zone": true}},
			{tokens.ZoneIngress, tokens.Claims{Zone: "zone-1"}, "global", map[string]bool{"global": true, "zone": true}},
			{tokens.Zone, tokens.Claims{Zone: "zone-1", Scope: []string{"egress"}}, "global", map[string]bool{"global": true, "zone": true}},
			{tokens.User, tokens.Claims{Name: "jane"}, "global", map[string]bool{"global": true, "zone": false}},
			{tokens.User, tokens.Claims{Name: "jane"}, "zone", map[string]bool{"global": false, "zone": true}},
		} {
			raw, _, err := authority.Issue(on[tc.issuer], tc.kind, tc.claims, time.Hour)
			if err != nil {
				t.Errorf("%s token on the %s: %v", tc.kind, tc.issuer, err)
				continue
			}
			for plane, good := range tc.good {
				if _, err := authority.Verify(on[plane], tc.kind, tc.claims.Mesh, raw); (err == nil) != good {
					t.Errorf("%s token of the %s on the %s: %v", tc.kind, tc.issuer, plane, err)
				}
			}
		}
		if _, _, err := authority.Issue(on["zone"], tokens.Zone, tokens.Claims{Zone: "zone-1"}, time.Hour); err == nil {
			t.Error("a zone can issue zone tokens")
		}
	})
}
