package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/meridian-mesh/meridian/api/explain"
)

// explains waits until the explanation of web's traffic to backend has a verdict, and returns its text.
func explains(p *Plane, verdict explain.Verdict) string {
	p.t.Helper()
	path := "/meshes/default/dataplanes/web-1/explain?service=backend"
	if p.Name == "" || p.Name == "global" {
		path = strings.Replace(path, "web-1", "zone-1.web-1", 1)
	}
	p.eventually(10*time.Second, "the verdict "+string(verdict), func() error {
		var got explain.Explanation
		if err := json.Unmarshal(p.Must(http.MethodGet, path, "", 200), &got); err != nil {
			return err
		}
		if got.Verdict != verdict || !got.Connected {
			return fmt.Errorf("got %s (%s), connected: %t", got.Verdict, got.Summary, got.Connected)
		}
		return nil
	})
	return string(p.Must(http.MethodGet, path+"&format=text", "", 200))
}

func TestAnExplanationIsWhatTrafficDoes(t *testing.T) {
	t.Parallel()
	s := newSystem(t, bin, "zone-1")
	g, z := s.Global, s.Zones[0]
	g.Must(http.MethodPut, "/meshes/default", fmt.Sprintf(routedMesh, false), 200)
	z.has("/meshes/default/secrets/default.ca-builtin-key-ca-1", "/meshes/default/secrets/dataplane-token-signing-key-default-1")
	workload, _ := app(t, "backend-1")
	outbound := freePort(t)
	z.workload(sidecar{mesh: "default", name: "backend-1", service: "backend", port: freePort(t), servicePort: workload})
	z.workload(sidecar{mesh: "default", name: "web-1", service: "web", port: freePort(t), servicePort: freePort(t), outbounds: map[string]int{"backend": outbound}})
	answers(z, outbound, "backend-1")
	if text := explains(z, explain.Allowed); !strings.HasPrefix(text, `ALLOWED: TrafficPermission "allow-all-default" allows it`) {
		t.Error(text)
	}

	g.Must(http.MethodDelete, "/meshes/default/traffic-permissions/allow-all-default", "", 200)
	z.eventually(10*time.Second, "denied", func() error {
		if got, err := greet(outbound); err == nil && got != "" {
			return fmt.Errorf("got %q", got)
		}
		return nil
	})
	if text := explains(z, explain.Denied); !strings.HasPrefix(text, "DENIED: no TrafficPermission is for the destination") {
		t.Error(text)
	}

	g.Must(http.MethodPut, "/meshes/default/traffic-permissions/p", fmt.Sprintf(permissionBody, "p", "backend"), 201)
	answers(z, outbound, "backend-1")
	explains(z, explain.Allowed)

	// The global passes the question on to the zone.
	if text := explains(g, explain.Allowed); !strings.Contains(text, `TrafficPermission "p" allows it`) {
		t.Error(text)
	}
}
