package insights

import (
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/server"
	"github.com/meridian-mesh/meridian/common/store"
)

// The answers clients read, byte for byte but for the times: from resources in the store, over counting, to HTTP.
func TestInsightsOverHTTP(t *testing.T) {
	rig := newRig(t, store.Options{})
	st := rig.st
	t.Cleanup(func() { _ = st.Close() })
	config := server.Default()
	config.BindAddress, config.HTTPPort, config.HTTPSPort = "127.0.0.1", 0, -1
	srv, err := server.New(server.Options{
		Config: config, Plane: resource.Global, Store: st, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = srv.Close() })
	rig.update(
		putMesh(t, "default"), putMesh(t, "empty"),
		put(t, resource.Dataplane, "default", "zone-1.backend-1", workload(good("backend"))),
		put(t, resource.DataplaneInsight, "default", "zone-1.backend-1", told{kumaDP: "1.0.4", envoy: "1.15.0", mtls: mtls("ca-1", "ca-1")}.message()),
		put(t, resource.Dataplane, "default", "zone-1.backend-2", workload(good("backend"), bad("web"))),
		put(t, resource.DataplaneInsight, "default", "zone-1.backend-2", online.message()),
		put(t, resource.Dataplane, "default", "zone-2.edge", gateway(delegated, "edge")),
		put(t, externalService, "default", "out", external("out", "example.org:443")),
		raw("TrafficRoute", "default", "route")(t),
	)
	in := New(Options{Store: st, Domain: "mesh", VIPPort: 80, Log: slog.New(slog.DiscardHandler)})
	in.lease = lease(t, st)
	in.countAll(st.Snapshot())
	if _, err := in.storeChanged(t.Context(), st.Snapshot()); err != nil {
		t.Fatal(err)
	}

	const backend = `{
 "type": "ServiceInsight",
 "mesh": "default",
 "name": "backend",
 "creationTime": "T",
 "modificationTime": "T",
 "status": "partially_degraded",
 "dataplanes": {
  "total": 2,
  "online": 1,
  "offline": 1
 },
 "issuedBackends": {
  "ca-1": 1
 },
 "addressPort": "backend.mesh:80"
}
`
	const defaultMesh = `{
 "type": "MeshInsight",
 "name": "default",
 "creationTime": "T",
 "modificationTime": "T",
 "lastSync": "T",
 "dataplanes": {
  "total": 3,
  "online": 1,
  "offline": 1,
  "partiallyDegraded": 1
 },
 "policies": {
  "ExternalService": {
   "total": 1
  },
  "ServiceInsight": {
   "total": 1
  },
  "TrafficRoute": {
   "total": 1
  }
 },
 "dpVersions": {
  "kumaDp": {
   "1.0.4": {
    "total": 1,
    "online": 1
   },
   "unknown": {
    "total": 2,
    "offline": 1,
    "partiallyDegraded": 1
   }
  },
  "envoy": {
   "1.15.0": {
    "total": 1,
    "online": 1
   },
   "unknown": {
    "total": 2,
    "offline": 1,
    "partiallyDegraded": 1
   }
  }
 },
 "mTLS": {
  "issuedBackends": {
   "ca-1": {
    "total": 1,
    "online": 1
   }
  },
  "supportedBackends": {
   "ca-1": {
    "total": 1,
    "online": 1
   }
  }
 },
 "services": {
  "total": 4,
  "internal": 3,
  "external": 1
 },
 "dataplanesByType": {
  "standard": {
   "total": 2,
   "online": 1,
   "partiallyDegraded": 1
  },
  "gateway": {
   "total": 1,
   "offline": 1
  }
 }
}
`
	const emptyMesh = `{
 "type": "MeshInsight",
 "name": "empty",
 "creationTime": "T",
 "modificationTime": "T",
 "lastSync": "T",
 "dataplanes": {},
 "policies": {
  "ServiceInsight": {
   "total": 1
  }
 },
 "dpVersions": {},
 "mTLS": {},
 "services": {},
 "dataplanesByType": {
  "standard": {},
  "gateway": {}
 }
}
`
	for target, want := range map[string]string{
		"/mesh-insights/default":                   defaultMesh,
		"/mesh-insights/empty":                     emptyMesh,
		"/meshes/default/service-insights/backend": backend,
	} {
		if diff := cmp.Diff(want, get(t, srv, target)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", target, diff)
		}
	}
	for target, want := range map[string][]string{
		"/mesh-insights":                     {"default", "empty"},
		"/mesh-insights?name=fau":            {"default"},
		"/service-insights":                  {"backend", "edge", "out", "web"},
		"/meshes/default/service-insights":   {"backend", "edge", "out", "web"},
		"/service-insights?name=ed":          {"edge"},
		"/meshes/empty/service-insights":     nil,
		"/meshes/none/service-insights":      nil,
		"/service-insights?size=1&offset=2":  {"out"},
		"/mesh-insights?size=1&offset=1":     {"empty"},
		"/mesh-insights?size=10&name=nobody": nil,
	} {
		var list struct {
			Items []struct{ Name string }
		}
		if err := json.Unmarshal([]byte(get(t, srv, target)), &list); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, i := range list.Items {
			got = append(got, i.Name)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", target, diff)
		}
	}
}

// get returns the body of target with every time as T.
func get(t *testing.T, srv *server.Server, target string) string {
	t.Helper()
	r := httptest.NewRequest(http.MethodGet, target, http.NoBody)
	r.RemoteAddr, r.Host = "127.0.0.1:1", "localhost"
	w := httptest.NewRecorder()
	srv.Handler().ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		t.Fatalf("GET %s: %d\n%s", target, w.Code, w.Body)
	}
	lines := strings.Split(w.Body.String(), "\n")
	for i, line := range lines {
		for _, name := range []string{"creationTime", "modificationTime", "lastSync"} {
			if before, _, ok := strings.Cut(line, `"`+name+`": "`); ok {
				lines[i] = before + `"` + name + `": "T"` + line[len(strings.TrimRight(line, ",")):]
			}
		}
	}
	return strings.Join(lines, "\n")
}
