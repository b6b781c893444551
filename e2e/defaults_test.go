package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// named are the resources of some lists, as collection/mesh/name.
func (p *Plane) named(collections ...string) ([]string, error) {
	var out []string
	for _, c := range collections {
		items, err := p.Items("/" + c)
		if err != nil {
			return nil, err
		}
		for name := range maps.Keys(items) {
			out = append(out, c+"/"+strings.TrimPrefix(name, "/"))
		}
	}
	slices.Sort(out)
	return out, nil
}

// comesWith is what a mesh comes with.
func comesWith(mesh string) []string {
	return []string{
		"circuit-breakers/" + mesh + "/circuit-breaker-all-" + mesh, "meshes/" + mesh, "retries/" + mesh + "/retry-all-" + mesh,
		"secrets/" + mesh + "/dataplane-token-signing-key-" + mesh + "-1", "timeouts/" + mesh + "/timeout-all-" + mesh,
		"traffic-permissions/" + mesh + "/allow-all-" + mesh, "traffic-routes/" + mesh + "/route-all-" + mesh,
	}
}

func TestAutomaticResourcesAreWhereTheyBelong(t *testing.T) {
	t.Parallel()
	s := newSystem(t, bin, "zone-1")
	g, z := s.Global, s.Zones[0]
	collections := []string{
		"circuit-breakers", "meshes", "retries", "secrets", "timeouts", "traffic-permissions", "traffic-routes", "global-secrets",
	}
	holds := func(p *Plane, globalSecrets []string, more ...string) {
		t.Helper()
		var want []string
		for _, name := range globalSecrets {
			want = append(want, "global-secrets/"+name)
		}
		want = append(append(want, comesWith("default")...), more...)
		slices.Sort(want)
		p.eventually(5*time.Second, "holding what it should", func() error {
			got, err := p.named(collections...)
			if diff := cmp.Diff(want, got); err == nil && diff != "" {
				err = fmt.Errorf("(-want +got):\n%s", diff)
			}
			return err
		})
	}
	onGlobal := []string{"admin-user-token", "user-token-signing-key-1", "zone-ingress-token-signing-key-1", "zone-token-signing-key-1"}
	onZone := []string{"admin-user-token", "envoy-admin-ca", "user-token-signing-key-1", "zone-ingress-token-signing-key-1", "zone-token-signing-public-key-1"}
	holds(g, onGlobal)
	holds(z, onZone)
	for _, name := range []string{"admin-user-token", "user-token-signing-key-1"} {
		a, b := g.Must("GET", "/global-secrets/"+name, "", 200), z.Must("GET", "/global-secrets/"+name, "", 200)
		if string(a) == string(b) {
			t.Errorf("the zone has the global's %s", name)
		}
	}

	const builtin = `{"type":"Mesh","name":"m","mtls":{"enabledBackend":"ca-1","backends":[{"name":"ca-1","type":"builtin"}]}}`
	g.Must("PUT", "/meshes/m", builtin, 201)
	ofM := append(comesWith("m"), "secrets/m/m.ca-builtin-cert-ca-1", "secrets/m/m.ca-builtin-key-ca-1")
	holds(g, onGlobal, ofM...)
	holds(z, onZone, ofM...)

	// What an operator deletes stays away, also over a restart; what was made before is not made again.
	g.Must("DELETE", "/meshes/m/retries/retry-all-m", "", 200)
	g.Must("PUT", "/meshes/m", strings.Replace(builtin, `"m",`, `"m","labels":{"a":"b"},`, 1), 200)
	before := g.Must("GET", "/global-secrets?size=0", "", 200)
	g.Stop()
	g.Start()
	ofM = slices.DeleteFunc(ofM, func(name string) bool { return strings.HasPrefix(name, "retries/") })
	holds(g, onGlobal, ofM...)
	if diff := cmp.Diff(string(before), string(g.Must("GET", "/global-secrets?size=0", "", 200))); diff != "" {
		t.Errorf("the restart changed global secrets") // without showing them
	}
	g.Must("DELETE", "/meshes/m", "", 200)
	holds(g, onGlobal)
	holds(z, onZone)
	if code, _, err := z.Call("GET", "/meshes/m/secrets/m.ca-builtin-key-ca-1", ""); err != nil || code != http.StatusNotFound {
		t.Errorf("the zone still has the authority of the mesh: %d, %v", code, err)
	}
}

// The token that a plane makes for its administrator is what gets in where being on the same host does not.
func TestTheAdministratorsTokenOpensItsOwnPlane(t *testing.T) {
	t.Parallel()
	s := newSystem(t, bin, "zone-1")
	raw := map[*Plane]string{}
	for _, p := range []*Plane{s.Global, s.Zones[0]} {
		var secret struct{ Data []byte }
		if err := json.Unmarshal(p.Must("GET", "/global-secrets/admin-user-token", "", 200), &secret); err != nil {
			t.Fatal(err)
		}
		raw[p] = string(secret.Data)
		p.Stop()
		p.env = append(p.env, "MERIDIAN_API_LOCALHOST_IS_ADMIN=false")
		p.Start()
	}
	get := func(p *Plane, token string) int {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.url("/global-secrets"), http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	for p, other := range map[*Plane]*Plane{s.Global: s.Zones[0], s.Zones[0]: s.Global} {
		got := []int{get(p, ""), get(p, raw[p]), get(p, raw[other])}
		if diff := cmp.Diff([]int{http.StatusForbidden, http.StatusOK, http.StatusUnauthorized}, got); diff != "" {
			t.Errorf("%s, without a token, with its own, with the other plane's (-want +got):\n%s", p.Name, diff)
		}
	}
}

// BenchmarkFreshStart is the time until a plane with an empty data directory is ready.
func BenchmarkFreshStart(b *testing.B) {
	b.Run("global", func(b *testing.B) {
		for b.Loop() {
			b.StopTimer()
			p := newPlane(b, bin, "global", "")
			p.env = append(p.env, fmt.Sprint("MERIDIAN_KDS_PORT=", freePort(b)))
			b.StartTimer()
			p.Start()
			b.StopTimer()
			p.Kill()
			b.StartTimer()
		}
	})
	b.Run("zone", func(b *testing.B) {
		s := newSystem(b, bin)
		for i := 0; b.Loop(); i++ {
			b.StopTimer()
			z := s.newZone(bin, fmt.Sprint("zone-", i))
			b.StartTimer()
			z.Start()
			b.StopTimer()
			z.Kill()
			b.StartTimer()
		}
	})
}
