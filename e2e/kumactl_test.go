package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// kumactlReply is what kumactl makes of an answer.
type kumactlReply struct {
	status int
	header http.Header
	body   []byte
}

// kumactlAsks makes a request in the form in which kumactl 2.0.8 makes it: JSON is all it accepts and sends.
func (p *Plane) kumactlAsks(method, path, body string) kumactlReply {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, p.url(path), strings.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header.Set("Accept", "application/json")
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		p.t.Fatalf("%s: %s %s: %v", p.Name, method, path, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return kumactlReply{resp.StatusCode, resp.Header, b}
}

// problem is an error as kumactl prints it: title and details, or else the body as it is.
func (r kumactlReply) problem() string {
	var e struct{ Title, Details string }
	if json.Unmarshal(r.body, &e) == nil && e.Title != "" && e.Details != "" {
		return e.Title + " (" + e.Details + ")"
	}
	return fmt.Sprintf("(%d): %s", r.status, r.body)
}

// kumactlList is a list as kumactl reads it: it shows what it knows of each item, and the offset of the next page.
type kumactlList struct {
	Total uint32
	Items []struct {
		Type, Mesh, Name               string
		CreationTime, ModificationTime time.Time
	}
	Next *string
}

func (p *Plane) kumactlLists(path string) kumactlList {
	p.t.Helper()
	r := p.kumactlAsks(http.MethodGet, path, "")
	var l kumactlList
	if err := json.Unmarshal(r.body, &l); err != nil || r.status != http.StatusOK {
		p.t.Fatalf("%s: GET %s: %d %v: %s", p.Name, path, r.status, err, r.body)
	}
	return l
}

// kumactlBody is a resource as kumactl puts it: times are there, and are those of no resource.
func kumactlBody(typ, mesh, name, spec string) string {
	meta := fmt.Sprintf(`"type":%q,"name":%q,"creationTime":"0001-01-01T00:00:00Z","modificationTime":"0001-01-01T00:00:00Z"`, typ, name)
	if mesh != "" {
		meta += fmt.Sprintf(`,"mesh":%q`, mesh)
	}
	if spec != "" {
		meta += "," + spec
	}
	return "{" + meta + "}"
}

// applies is kumactl apply: it looks whether the resource is there, puts it, and takes 200 and 201 for success.
func (p *Plane) applies(path, body string) {
	p.t.Helper()
	want := http.StatusOK
	if r := p.kumactlAsks(http.MethodGet, path, ""); r.status == http.StatusNotFound {
		want = http.StatusCreated
		if r.problem() != "Could not retrieve a resource (Not found)" {
			p.t.Errorf("GET %s: %s", path, r.problem())
		}
	}
	r := p.kumactlAsks(http.MethodPut, path, body)
	if r.status != want || len(r.header["Warning"]) > 0 {
		p.t.Fatalf("%s: PUT %s: %d %v, want %d: %s", p.Name, path, r.status, r.header["Warning"], want, r.body)
	}
}

// TestKumactlExchanges makes the requests that kumactl 2.0.8 makes, command by command, and reads the answers as it
// does. TestKumactl runs the program itself where there is one.
func TestKumactlExchanges(t *testing.T) {
	t.Parallel()
	s := newSystem(t, bin, "zone-1")
	g, z := s.Global, s.Zones[0]
	z.eventually(5*time.Second, "given the default mesh", func() error { return is(z, "/meshes/default", http.StatusOK) })
	planes := []*Plane{g, z}

	t.Run("config control-planes add", func(t *testing.T) {
		for _, p := range planes {
			r := p.kumactlAsks(http.MethodGet, "/", "")
			var index struct{ Hostname, Tagline, Product, Version, InstanceID, ClusterID string }
			if err := json.Unmarshal(r.body, &index); err != nil || r.status != http.StatusOK {
				t.Fatalf("%d %v: %s", r.status, err, r.body)
			}
			// 2.0.8 takes a server with this tagline only, newer ones one with this product.
			if index.Tagline != "Kuma" || index.Product != "Kuma" || index.Version != "2.0.8" || index.InstanceID == "" {
				t.Errorf("%s: %s", p.Name, r.body)
			}
		}
	})

	const match = `[{"match":{"kuma.io/service":"*"}}]`
	permission := `"sources":` + match + `,"destinations":` + match
	t.Run("apply", func(t *testing.T) {
		for _, a := range []struct {
			plane *Plane
			path  string
			body  string
		}{
			{g, "/meshes/shop", kumactlBody("Mesh", "", "shop", "")},
			{g, "/meshes/shop/traffic-permissions/tp", kumactlBody("TrafficPermission", "shop", "tp", permission)},
			{g, "/meshes/shop/meshtraces/mt", kumactlBody("MeshTrace", "shop", "mt", `"spec":{"targetRef":{"kind":"Mesh"},"default":{"backends":[]}}`)},
			{g, "/meshes/shop/secrets/s", kumactlBody("Secret", "shop", "s", `"data":"dGVzdAo="`)},
			{g, "/global-secrets/gs", kumactlBody("GlobalSecret", "", "gs", `"data":"dGVzdAo="`)},
			{g, "/meshes/shop/meshgateways/edge", kumactlBody("MeshGateway", "shop", "edge", `"selectors":`+match+`,"conf":{"listeners":[{"port":80,"protocol":"HTTP"}]}`)},
			{z, "/zone-ingresses/zi", kumactlBody("ZoneIngress", "", "zi", `"networking":{"address":"10.0.0.9","port":10001}`)},
			{z, "/zoneegresses/ze", kumactlBody("ZoneEgress", "", "ze", `"networking":{"address":"10.0.0.8","port":10002}`)},
		} {
			a.plane.applies(a.path, a.body)
			a.plane.applies(a.path, a.body)
		}
		z.eventually(5*time.Second, "given the mesh", func() error { return is(z, "/meshes/shop", http.StatusOK) })
		dp := kumactlBody("Dataplane", "shop", "dp", `"networking":{"address":"10.0.0.1","inbound":[{"port":8080,"tags":{"kuma.io/service":"web"}}]}`)
		z.applies("/meshes/shop/dataplanes/dp", dp)
		z.applies("/meshes/shop/dataplanes/dp", dp)
		// On the plane that does not own the type the body is printed as the error.
		for p, r := range map[*Plane]kumactlReply{
			g: g.kumactlAsks(http.MethodPut, "/meshes/shop/dataplanes/dp", dp),
			z: z.kumactlAsks(http.MethodPut, "/meshes/shop/traffic-permissions/tp", kumactlBody("TrafficPermission", "shop", "tp", permission)),
		} {
			if r.status != http.StatusMethodNotAllowed || !strings.HasPrefix(r.problem(), "(405): Operation not allowed.") {
				t.Errorf("%s: %s", p.Name, r.problem())
			}
		}
		r := g.kumactlAsks(http.MethodPut, "/meshes/none/traffic-permissions/tp", kumactlBody("TrafficPermission", "none", "tp", permission))
		if r.status != http.StatusBadRequest || r.problem() != "Could not create a resource (Mesh is not found)" {
			t.Errorf("%d %s", r.status, r.problem())
		}
	})

	t.Run("get", func(t *testing.T) {
		z.eventually(5*time.Second, "given the permission", func() error { return is(z, "/meshes/shop/traffic-permissions/tp", http.StatusOK) })
		for _, p := range planes {
			// kumactl get meshes --size 1, then --offset as it printed it
			var names []string
			for offset := ""; ; {
				path := "/meshes?size=1"
				if offset != "" {
					path = "/meshes?offset=" + offset + "&size=1"
				}
				l := p.kumactlLists(path)
				if l.Total != 2 || len(l.Items) != 1 || l.Items[0].Type != "Mesh" {
					t.Fatalf("%s: %s: %+v", p.Name, path, l)
				}
				names = append(names, l.Items[0].Name)
				if l.Next == nil {
					break
				}
				next, err := url.Parse(*l.Next)
				if err != nil {
					t.Fatal(err)
				}
				offset = next.Query().Get("offset")
			}
			if strings.Join(names, " ") != "default shop" {
				t.Errorf("%s: %v", p.Name, names)
			}
			// Without --size a page of a hundred.
			if l := p.kumactlLists("/meshes/shop/traffic-permissions?size=100"); l.Next != nil || len(l.Items) == 0 || l.Items[0].Mesh != "shop" {
				t.Errorf("%s: %+v", p.Name, l)
			}
			// kumactl get traffic-permission tp -m shop -o yaml
			r := p.kumactlAsks(http.MethodGet, "/meshes/shop/traffic-permissions/tp", "")
			var one map[string]any
			if err := json.Unmarshal(r.body, &one); err != nil || r.status != http.StatusOK || one["name"] != "tp" || one["sources"] == nil {
				t.Errorf("%s: %d %s", p.Name, r.status, r.body)
			}
			r = p.kumactlAsks(http.MethodGet, "/meshes/shop/traffic-permissions/none", "")
			if r.status != http.StatusNotFound || r.problem() != "Could not retrieve a resource (Not found)" {
				t.Errorf("%s: %d %s", p.Name, r.status, r.problem())
			}
		}
	})

	t.Run("inspect", func(t *testing.T) { kumactlInspects(t, g, z) })
	t.Run("generate", func(t *testing.T) { kumactlGenerates(t, g, z) })

	t.Run("delete", func(t *testing.T) {
		if r := g.kumactlAsks(http.MethodDelete, "/meshes/shop", ""); r.status != http.StatusBadRequest || r.problem() != "Could not delete a resource (Resource is not valid)" {
			t.Errorf("%d %s", r.status, r.problem())
		}
		for path, p := range map[string]*Plane{
			"/meshes/shop/traffic-permissions/tp": g, "/global-secrets/gs": g, "/meshes/shop/dataplanes/dp": z, "/zone-ingresses/zi": z, "/zoneegresses/ze": z,
		} {
			if r := p.kumactlAsks(http.MethodDelete, path, ""); r.status != http.StatusOK {
				t.Errorf("DELETE %s: %d %s", path, r.status, r.problem())
			}
			// kumactl turns this into "there is no ...".
			if r := p.kumactlAsks(http.MethodDelete, path, ""); r.status != http.StatusNotFound || r.problem() != "Could not delete a resource (Not found)" {
				t.Errorf("DELETE %s once more: %d %s", path, r.status, r.problem())
			}
		}
		g.eventually(5*time.Second, "rid of the mesh", func() error {
			if r := g.kumactlAsks(http.MethodDelete, "/meshes/shop", ""); r.status != http.StatusOK {
				return fmt.Errorf("%s", r.problem())
			}
			return nil
		})
	})
}

// kumactlInspects makes the requests of kumactl inspect.
func kumactlInspects(t *testing.T, g, z *Plane) {
	t.Helper()
	g.eventually(5*time.Second, "given the dataplane", func() error { return is(g, "/meshes/shop/dataplanes/zone-1.dp", http.StatusOK) })
	g.eventually(5*time.Second, "given the egress", func() error { return is(g, "/zoneegresses/zone-1.ze", http.StatusOK) })
	for _, p := range []*Plane{g, z} {
		prefix := ""
		if p == g {
			prefix = "zone-1."
		}
		for path, want := range map[string]string{
			"/meshes/shop/dataplanes+insights":                                                   "DataplaneOverview",
			"/meshes/shop/dataplanes+insights?gateway=false&tag=kuma.io%2Fservice%3Aweb":         "DataplaneOverview",
			"/meshes/shop/dataplanes+insights?gateway=true":                                      "",
			"/meshes/shop/dataplanes+insights?tag=kuma.io%2Fservice%3Aweb&tag=version%3Amissing": "",
			"/zoneingresses+insights":                                                            "ZoneIngressOverview",
			"/zoneegressoverviews":                                                               "ZoneEgressOverview",
			"/zoneegresses/_overview":                                                            "ZoneEgressOverview", // newer ones
			"/meshes/shop/dataplanes/_overview":                                                  "DataplaneOverview",
		} {
			l := p.kumactlLists(path)
			got := ""
			if len(l.Items) > 0 {
				got = l.Items[0].Type
			}
			if got != want {
				t.Errorf("%s: GET %s: %+v", p.Name, path, l)
			}
		}
		for path, want := range map[string]string{
			"/meshes/shop/dataplanes/" + prefix + "dp/policies":   `"kind": "SidecarDataplane"`,
			"/meshes/shop/traffic-permissions/tp/dataplanes":      `"name": "` + prefix + `dp"`,
			"/meshes/shop/meshgateways/edge/dataplanes":           `"total": 0`,
			"/meshes/shop/dataplanes/" + prefix + "dp/rules":      `"policyType": "MeshTrace"`,
			"/meshes/default/dataplanes+insights?size=1&offset=0": `"total": 0`,
		} {
			if r := p.kumactlAsks(http.MethodGet, path, ""); r.status != http.StatusOK || !strings.Contains(string(r.body), want) {
				t.Errorf("%s: GET %s: %d %s", p.Name, path, r.status, r.body)
			}
		}
		// Of a proxy that is not connected, kumactl prints why there is nothing to print.
		for _, path := range []string{
			"/meshes/shop/dataplanes/" + prefix + "dp/xds", "/meshes/shop/dataplanes/" + prefix + "dp/stats", "/meshes/shop/dataplanes/" + prefix + "dp/clusters",
			"/zoneingresses/" + prefix + "zi/xds", "/zoneegresses/" + prefix + "ze/xds",
		} {
			if r := p.kumactlAsks(http.MethodGet, path, ""); r.status/100 != 5 ||
				!strings.HasPrefix(r.problem(), "Could not execute admin operation (") || !strings.Contains(r.problem(), "The proxy of ") {
				t.Errorf("%s: GET %s: %d %s", p.Name, path, r.status, r.problem())
			}
		}
	}
	// inspect meshes, services and zones: the global counts them.
	g.eventually(5*time.Second, "counting", func() error {
		for path, want := range map[string]string{
			"/mesh-insights": "MeshInsight", "/meshes/shop/service-insights": "ServiceInsight", "/zones+insights": "ZoneOverview",
		} {
			if l := g.kumactlLists(path); len(l.Items) == 0 || l.Items[0].Type != want {
				return fmt.Errorf("%s: %+v", path, l)
			}
		}
		return nil
	})
}

// kumactlGenerates makes the requests of kumactl generate.
func kumactlGenerates(t *testing.T, g, z *Plane) {
	t.Helper()
	for _, a := range []struct {
		planes []*Plane
		path   string
		body   string
	}{
		{[]*Plane{g, z}, "/tokens/dataplane", `{"name":"dp","mesh":"shop","tags":{"kuma.io/service":["web"]},"type":"dataplane","validFor":"24h0m0s"}`},
		{[]*Plane{g, z}, "/tokens/zone-ingress", `{"zone":"zone-1","validFor":"24h0m0s"}`},
		{[]*Plane{g}, "/tokens/zone", `{"zone":"zone-1","scope":["egress","ingress"],"validFor":"24h0m0s"}`},
		{[]*Plane{g, z}, "/tokens/user", `{"name":"jane","groups":["team"],"validFor":"24h0m0s"}`},
	} {
		for _, p := range a.planes {
			r := p.kumactlAsks(http.MethodPost, a.path, a.body)
			if r.status != http.StatusOK || strings.Count(string(r.body), ".") != 2 || bytes.ContainsAny(r.body, " \n") {
				t.Errorf("%s: POST %s: %d %s", p.Name, a.path, r.status, r.problem())
			}
		}
	}
	if r := g.kumactlAsks(http.MethodPost, "/tokens/dataplane", `{"name":"dp","mesh":"none"}`); r.status != http.StatusNotFound || !strings.HasPrefix(r.problem(), "Signing Key not found (") {
		t.Errorf("%d %s", r.status, r.problem())
	}
}

// TestKumactl runs an unchanged kumactl against both planes.
func TestKumactl(t *testing.T) {
	program := os.Getenv("KUMACTL_BIN")
	if program == "" {
		t.Skip("NOT RUN: KUMACTL_BIN names no kumactl; TestKumactlExchanges makes its requests")
	}
	t.Parallel()
	s := newSystem(t, bin, "zone-1")
	g, z := s.Global, s.Zones[0]
	z.eventually(5*time.Second, "given the default mesh", func() error { return is(z, "/meshes/default", http.StatusOK) })
	dir := t.TempDir()
	run := func(t *testing.T, p *Plane, input string, args ...string) (string, error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		cmd := exec.CommandContext(ctx, program, append([]string{"--config-file", filepath.Join(dir, p.Name)}, args...)...)
		cmd.Env = []string{"HOME=" + dir, "PATH=" + os.Getenv("PATH")}
		cmd.Stdin = strings.NewReader(input)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	shows := func(t *testing.T, p *Plane, want string, args ...string) {
		t.Helper()
		if out, err := run(t, p, "", args...); err != nil || !strings.Contains(out, want) {
			t.Errorf("%s: kumactl %s: %v, no %q in:\n%s", p.Name, strings.Join(args, " "), err, want, out)
		}
	}
	for _, p := range s.all() {
		shows(t, p, "", "config", "control-planes", "add", "--name", p.Name, "--address", p.url(""), "--overwrite")
		shows(t, p, p.Name, "config", "control-planes", "list")
	}
	const permission = "type: TrafficPermission\nmesh: default\nname: tp\nsources:\n- match: {kuma.io/service: '*'}\ndestinations:\n- match: {kuma.io/service: web}\n"
	const dataplane = "type: Dataplane\nmesh: default\nname: dp\nnetworking:\n  address: 10.0.0.1\n  inbound:\n  - port: 8080\n    tags: {kuma.io/service: web}\n"
	for p, body := range map[*Plane]string{g: permission, z: dataplane} {
		for range 2 { // creates, then updates
			if out, err := run(t, p, body, "apply", "-f", "-"); err != nil {
				t.Fatalf("%s: apply: %v: %s", p.Name, err, out)
			}
		}
	}
	for p, body := range map[*Plane]string{z: permission, g: dataplane} {
		if out, err := run(t, p, body, "apply", "-f", "-"); err == nil || !strings.Contains(out, "Operation not allowed") {
			t.Errorf("%s: apply of what it does not own: %v: %s", p.Name, err, out)
		}
	}
	g.eventually(5*time.Second, "given the dataplane", func() error { return is(g, "/meshes/default/dataplanes/zone-1.dp", http.StatusOK) })
	z.eventually(5*time.Second, "given the permission", func() error { return is(z, "/meshes/default/traffic-permissions/tp", http.StatusOK) })
	for _, p := range s.all() {
		dp := "dp"
		if p == g {
			dp = "zone-1.dp"
		}
		shows(t, p, "default", "get", "meshes")
		shows(t, p, "tp", "get", "traffic-permissions", "-m", "default")
		shows(t, p, "name: tp", "get", "traffic-permission", "tp", "-m", "default", "-o", "yaml")
		shows(t, p, `"name": "default"`, "get", "mesh", "default", "-o", "json")
		shows(t, p, dp, "get", "dataplanes")
		shows(t, p, dp, "inspect", "dataplanes")
		shows(t, p, "", "inspect", "dataplane", dp)
		shows(t, p, "", "inspect", "traffic-permission", "tp")
		shows(t, p, "", "inspect", "zone-ingresses")
		shows(t, p, "", "inspect", "zoneegresses")
		shows(t, p, ".", "generate", "dataplane-token", "--name", "dp", "--mesh", "default", "--valid-for", "1h")
		shows(t, p, ".", "generate", "user-token", "--name", "jane", "--group", "team", "--valid-for", "1h")
		if out, err := run(t, p, "", "inspect", "dataplane", dp, "--type", "config-dump"); err == nil || !strings.Contains(out, "is not connected") {
			t.Errorf("%s: config dump: %v: %s", p.Name, err, out)
		}
	}
	shows(t, g, "zone-1", "inspect", "zones")
	shows(t, g, "default", "inspect", "meshes")
	g.eventually(5*time.Second, "counting services", func() error { return hasItems(g, "/meshes/default/service-insights") })
	shows(t, g, "web", "inspect", "services")
	shows(t, g, ".", "generate", "zone-token", "--zone", "zone-1", "--scope", "egress", "--valid-for", "1h")
	shows(t, g, ".", "generate", "zone-ingress-token", "--zone", "zone-1", "--valid-for", "1h")
	shows(t, g, "deleted", "delete", "traffic-permission", "tp")
	shows(t, z, "deleted", "delete", "dataplane", "dp")
	if out, err := run(t, g, "", "delete", "traffic-permission", "tp"); err == nil || !strings.Contains(out, "there is no") {
		t.Errorf("deleted twice: %v: %s", err, out)
	}
}

// all are the global and its zones.
func (s *System) all() []*Plane { return append([]*Plane{s.Global}, s.Zones...) }

func hasItems(p *Plane, path string) error {
	items, err := p.Items(path)
	if err == nil && len(items) == 0 {
		err = fmt.Errorf("GET %s: no items", path)
	}
	return err
}
