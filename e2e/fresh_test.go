package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meridian-mesh/meridian/common/store/postgres/pgtest"
)

// rounds is how often a test repeats what depends on chance; MERIDIAN_STRESS_ROUNDS says otherwise.
func rounds(few int) int {
	if n, err := strconv.Atoi(os.Getenv("MERIDIAN_STRESS_ROUNDS")); err == nil {
		return n
	}
	return few
}

// Two replicas that start at the same instant on an empty database make what a plane starts with once, and choose one leader.
func TestFreshReplicasOfAPlane(t *testing.T) {
	server := pgtest.Start(t, "fsync=off")
	for _, plane := range []struct {
		kind, name string
		env        []string
		has        []string
	}{
		{"global", "", nil, append(comesWith("default"),
			"global-secrets/admin-user-token", "global-secrets/user-token-signing-key-1",
			"global-secrets/zone-ingress-token-signing-key-1", "global-secrets/zone-token-signing-key-1")},
		{"zone", "east", []string{"MERIDIAN_ZONE_NAME=east", "MERIDIAN_ZONE_GLOBAL_ADDRESS=grpcs://localhost:1"}, []string{
			"global-secrets/admin-user-token", "global-secrets/envoy-admin-ca", "global-secrets/user-token-signing-key-1",
		}},
	} {
		t.Run(plane.kind, func(t *testing.T) {
			slices.Sort(plane.has)
			var ready, led []time.Duration
			for i := range rounds(3) {
				t.Run(fmt.Sprint("round ", i), func(t *testing.T) {
					r := newReplicas(t, server, plane.kind, plane.name, 2, plane.env...)
					began := time.Now()
					r.start()
					ready = append(ready, time.Since(began))
					first := r.madeAtStart(plane.has)
					r.agreeOnALeader()
					led = append(led, time.Since(began))
					if diff := cmp.Diff(first, r.madeAtStart(plane.has)); diff != "" {
						t.Errorf("made anew (-before +after):\n%s", diff)
					}
					if n := r.logged("made what was missing"); n != 1 {
						t.Errorf("%d replicas made what a plane starts with", n)
					}
				})
			}
			slices.Sort(ready)
			slices.Sort(led)
			t.Logf("%d rounds: both ready after %s (median), %s (longest); both show the one leader after %s (median), %s (longest)",
				len(ready), ready[len(ready)/2], ready[len(ready)-1], led[len(led)/2], led[len(led)-1])
		})
	}
}

// madeAtStart returns what the replicas made at their start, which both must have alike: resources with their entity tags,
// which name store and version, as want lists them; the id of the cluster; the administrator's token in the data directory.
func (r *replicas) madeAtStart(want []string) map[string]string {
	r.t.Helper()
	all := make([]map[string]string, len(r.planes))
	for i, p := range r.planes {
		all[i] = map[string]string{}
		got, err := p.named("circuit-breakers", "meshes", "retries", "secrets", "timeouts", "traffic-permissions", "traffic-routes", "global-secrets")
		if err != nil {
			r.t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			r.t.Fatalf("%s has (-want +got):\n%s", p.Name, diff)
		}
		for _, name := range got {
			all[i][name] = p.tagged(resourcePath(name))
		}
		var index struct{ ClusterID string }
		if err := json.Unmarshal(p.Must(http.MethodGet, "/", "", http.StatusOK), &index); err != nil {
			r.t.Fatal(err)
		}
		all[i]["cluster id"] = index.ClusterID
		if p.Zone == "" { // a zone has the global's, and no file
			token, err := os.ReadFile(filepath.Join(p.Dir, "admin-user-token"))
			if index.ClusterID == "" || err != nil {
				r.t.Fatalf("%s has cluster id %q, administrator's token: %v", p.Name, index.ClusterID, err)
			}
			all[i]["token file"] = string(token)
		}
		versions := map[string]bool{}
		for _, name := range got {
			tag, _, _ := strings.Cut(all[i][name], " ")
			versions[tag] = true
		}
		if len(versions) != 1 {
			r.t.Errorf("%s: made in %d batches: %v", p.Name, len(versions), versions)
		}
	}
	for i := range all {
		if diff := cmp.Diff(all[0], all[i]); diff != "" {
			r.t.Errorf("%s and %s differ:\n%s", r.planes[0].Name, r.planes[i].Name, diff)
		}
	}
	return all[0]
}

// resourcePath is the path of what named calls collection/mesh/name or collection/name.
func resourcePath(name string) string {
	if part := strings.Split(name, "/"); len(part) == 3 {
		return "/meshes/" + part[1] + "/" + part[0] + "/" + part[2]
	}
	return "/" + name
}

// tagged is the entity tag and the body of a resource.
func (p *Plane) tagged(path string) string {
	p.t.Helper()
	req, err := http.NewRequestWithContext(p.t.Context(), http.MethodGet, p.url(path), http.NoBody)
	if err != nil {
		p.t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	var body json.RawMessage
	if err := json.NewDecoder(resp.Body).Decode(&body); err != nil || resp.StatusCode != http.StatusOK {
		p.t.Fatalf("%s: GET %s: %s %v", p.Name, path, resp.Status, err)
	}
	return resp.Header.Get("ETag") + " " + string(body)
}

// logged returns how many lines of all logs have a text.
func (r *replicas) logged(text string) (lines int) {
	r.t.Helper()
	for _, p := range r.planes {
		log, err := os.ReadFile(p.logFile())
		if err != nil {
			r.t.Fatal(err)
		}
		lines += strings.Count(string(log), text)
	}
	return lines
}

// agreeOnALeader waits until every replica shows all of them, and the same one leading.
func (r *replicas) agreeOnALeader() {
	r.t.Helper()
	r.planes[0].eventually(30*time.Second, "of one mind with the others", func() error {
		leaders := map[string]bool{}
		for _, p := range r.planes {
			_, leader := p.instances(len(r.planes))
			leaders[leader] = true
		}
		if len(leaders) != 1 {
			return fmt.Errorf("leaders are %v", leaders)
		}
		return nil
	})
}
