package server

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
)

// inspectPlane holds a mesh with one resource of each kind that can be inspected.
func inspectPlane(t *testing.T, pl resource.Plane) *plane {
	t.Helper()
	p := newPlane(t, pl)
	gateway := dataplane(t, true, map[string]string{"kuma.io/service": "edge"})
	builtin := dataplane(t, true, map[string]string{"kuma.io/service": "edge"})
	builtin.Networking.Gateway.Type = meshv1.Dataplane_Networking_Gateway_BUILTIN
	p.seed(
		record(t, resource.Mesh, "", "demo", "", nil),
		record(t, resource.Dataplane, "demo", "sidecar", "", dataplane(t, false, map[string]string{"kuma.io/service": "web"})),
		record(t, resource.Dataplane, "demo", "delegated", "", gateway),
		record(t, resource.Dataplane, "demo", "builtin", "", builtin),
		record(t, "MeshGateway", "demo", "edge", "", nil), record(t, "MeshGatewayRoute", "demo", "route", "", nil),
		record(t, "Retry", "demo", "r", "", nil),
		record(t, resource.ZoneIngress, "", "in", "", nil), record(t, resource.ZoneEgress, "", "out", "", nil),
		record(t, resource.ZoneIngress, "", "zone-2.in", "global", nil),
	)
	return p
}

func TestInspectionShowsThatNothingIsAttached(t *testing.T) {
	const (
		empty   = "{\n \"total\": 0,\n \"items\": []\n}\n"
		sidecar = "{\n \"kind\": \"SidecarDataplane\",\n \"total\": 0,\n \"items\": []\n}\n"
		gateway = "{\n \"kind\": \"MeshGatewayDataplane\",\n \"gateway\": {\n  \"mesh\": \"demo\",\n  \"name\": \"\"\n },\n \"listeners\": []\n}\n"
	)
	missing := func(title string) string {
		return "{\n \"title\": \"" + title + "\",\n \"details\": \"Not found\"\n}\n"
	}
	for _, pl := range [...]resource.Plane{resource.Global, resource.Zone} {
		p := inspectPlane(t, pl)
		for _, tc := range []struct {
			target string
			status int
			body   string
		}{
			{"/meshes/demo/dataplanes/sidecar/policies", 200, sidecar},
			{"/meshes/demo/dataplanes/delegated/policies", 200, sidecar},
			{"/meshes/demo/dataplanes/builtin/policies", 200, gateway},
			{"/meshes/none/dataplanes/sidecar/policies", 404, missing("Could not build MeshContext")},
			{"/meshes/demo/dataplanes/none/policies", 404, missing("Could not get MatchedPolicies")},
			{"/meshes/demo/dataplanes/sidecar/rules", 200, empty},
			{"/meshes/demo/dataplanes/builtin/rules", 200, empty},
			{"/meshes/none/dataplanes/sidecar/rules", 404, missing("Could not build MeshContext")},
			{"/meshes/demo/dataplanes/none/rules", 404, missing("Could not get MatchedPolicies")},
			{"/meshes/demo/retries/r/dataplanes", 200, empty},
			{"/meshes/demo/retries/none/dataplanes", 200, empty},
			{"/meshes/none/retries/r/dataplanes", 404, missing("Could not list Dataplanes")},
			{"/meshes/demo/trafficpermissions/none/dataplanes", 200, empty},
			{"/meshes/demo/virtual-outbounds/v/dataplanes", 404, "404: Page Not Found"},
			{"/meshes/demo/external-services/e/dataplanes", 404, "404: Page Not Found"},
			{"/meshes/demo/secrets/s/dataplanes", 404, "404: Page Not Found"},
			{"/meshes/demo/meshgateways/edge/dataplanes", 200, empty},
			{"/meshes/demo/meshgateways/edge/policies", 200, empty},
			{"/meshes/demo/meshgateways/none/dataplanes", 404, missing("Could not find MeshGateway")},
			{"/meshes/none/meshgateways/edge/dataplanes", 404, missing("Could not find MeshGateway")},
			{"/meshes/demo/meshgatewayroutes/route/dataplanes", 200, empty},
			{"/meshes/demo/meshgatewayroutes/none/dataplanes", 404, missing("Could not find MeshGatewayRoute")},
		} {
			a := p.want(tc.status, http.MethodGet, tc.target, "")
			if diff := cmp.Diff(tc.body, a.Body); diff != "" {
				t.Errorf("%s: %s", tc.target, diff)
			}
			p.want(tc.status, http.MethodHead, tc.target, "")
		}
	}
}

func TestAProxyThatIsNotConnectedCannotBeAsked(t *testing.T) {
	const notConnected = "is not connected to this control plane"
	for _, pl := range [...]resource.Plane{resource.Global, resource.Zone} {
		p := inspectPlane(t, pl)
		elsewhere, elsewhereTitle, elsewhereText := 503, titleAdmin, notConnected
		if pl == resource.Zone {
			elsewhere, elsewhereTitle, elsewhereText = 400, "Could not connect to zone ingress that resides in another zone", "another zone"
		}
		for _, tc := range []struct {
			target         string
			status         int
			title, details string
		}{
			{"/meshes/demo/dataplanes/sidecar", 503, "Could not execute admin operation", notConnected},
			{"/meshes/demo/dataplane/sidecar", 503, "Could not execute admin operation", notConnected},
			{"/meshes/demo/dataplanes/none", 404, "Could not get dataplane resource", "Not found"},
			{"/meshes/none/dataplanes/sidecar", 404, "Could not get dataplane resource", "Not found"},
			{"/zoneingresses/in", 503, "Could not execute admin operation", notConnected},
			{"/zoneingresses/none", 404, "Could not get zone ingress resource", "Not found"},
			{"/zoneingresses/zone-2.in", elsewhere, elsewhereTitle, elsewhereText},
			{"/zoneegresses/out", 503, "Could not execute admin operation", notConnected},
			{"/zoneegresses/none", 404, "Could not get zone egress resource", "Not found"},
		} {
			for _, view := range [...]string{"xds", "stats", "clusters"} {
				target := tc.target + "/" + view
				a := object(t, p.want(tc.status, http.MethodGet, target, "").Body)
				if details, _ := a["details"].(string); a["title"] != tc.title || !strings.Contains(details, tc.details) {
					t.Errorf("%s: got %v", target, a)
				}
				for _, who := range [...]string{"Remote: 10.0.0.1:1", "Origin: http://elsewhere"} {
					denied := object(t, p.want(403, http.MethodGet, target, "", who).Body)
					if denied["title"] != "Access Denied" {
						t.Errorf("%s: got %v", target, denied)
					}
				}
			}
		}
	}
}
