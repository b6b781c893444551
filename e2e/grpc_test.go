package e2e

import (
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// strict is the mesh default with mutual TLS from the first of these backends on.
func strict(enabled string, backends ...string) string {
	var list []string
	for _, b := range backends {
		list = append(list, fmt.Sprintf(`{"name":%q,"type":"builtin"}`, b))
	}
	return fmt.Sprintf(`{"type":"Mesh","name":"default","mtls":{"enabledBackend":%q,"backends":[%s]}}`, enabled, strings.Join(list, ","))
}

// chance bounds how likely it is to see such a share, or one farther from what is expected, in n independent tries
// (Chernoff's bound, for both sides).
func chance(n int, seen int, expected float64) float64 {
	q := float64(seen) / float64(n)
	divergence := 0.0
	for _, part := range [][2]float64{{q, expected}, {1 - q, 1 - expected}} {
		if part[0] > 0 {
			divergence += part[0] * math.Log(part[0]/part[1])
		}
	}
	return min(1, 2*math.Exp(-float64(n)*divergence))
}

// shares is an error when the share is one that chance alone would give in less than one of a million runs.
func shares(what string, seen, n int, expected float64) error {
	if p := chance(n, seen, expected); p < 1e-6 {
		return fmt.Errorf("%s: %d of %d, which is not %.0f%% (chance %.2g)", what, seen, n, expected*100, p)
	}
	return nil
}

const backend = "xds:///backend"

// rig is a mesh with a server of two versions and a client.
type rig struct {
	*System
	zone           *Plane
	v1, v2, client *program
}

func newRig(t *testing.T) *rig {
	t.Helper()
	s := newSystem(t, bin, "zone-1")
	r := &rig{System: s, zone: s.Zones[0]}
	s.Global.Must(http.MethodPut, "/meshes/default", strict("ca-1", "ca-1"), 200)
	s.Global.Must(http.MethodDelete, "/meshes/default/retries/retry-all-default", "", 200) // which would hide failures
	r.v1 = s.joins(t, r.zone, "default", "backend-1", "kuma.io/service: backend, version: v1")
	r.v2 = s.joins(t, r.zone, "default", "backend-2", "kuma.io/service: backend, version: v2")
	r.client = s.joins(t, r.zone, "default", "web-1", "kuma.io/service: web")
	r.v1.startServer()
	r.v2.startServer()
	r.client.startClient()
	r.client.reaches(backend, "OK", patience)
	r.zone.eventually(patience, "serving with both instances", func() error {
		o := r.client.makes(calls{Target: backend, Calls: 10})
		if len(o.Instances) != 2 {
			return fmt.Errorf("%+v", o)
		}
		return nil
	})
	return r
}

// put puts a policy, which is deleted at the end of t.
func (r *rig) put(t *testing.T, path, body string) {
	t.Helper()
	r.policy("default", path, body)
	t.Cleanup(func() { r.Global.Must(http.MethodDelete, "/meshes/default/"+path, "", 200, 404) })
}

// until repeats calls until what becomes of them is right, and returns how long that took.
func (r *rig) until(t *testing.T, what string, c calls, right func(outcome) error) time.Duration {
	t.Helper()
	began := time.Now()
	r.zone.eventually(patience, what, func() error { return right(r.client.makes(c)) })
	took := time.Since(began)
	t.Logf("%s after %s", what, took)
	return took
}

// Unmodified gRPC programs are in the mesh: what policies say of them happens to real calls.
func TestPoliciesActOnGRPCPrograms(t *testing.T) {
	t.Parallel()
	r := newRig(t)

	t.Run("a split of 90 to 10", func(t *testing.T) {
		r.put(t, "traffic-routes/split", legacyPolicy("TrafficRoute", "default", "split", "web", "backend",
			`{"split":[{"weight":90,"destination":{"kuma.io/service":"backend","version":"v1"}},
			{"weight":10,"destination":{"kuma.io/service":"backend","version":"v2"}}]}`))
		const n = 3000
		r.until(t, "divided", calls{Target: backend, Calls: n, Concurrency: 4}, func(o outcome) error {
			if err := o.all("OK"); err != nil {
				return err
			}
			return shares("v2", o.Instances["backend-2"], n, 0.1)
		})
	})
	t.Run("requests by method and header", func(t *testing.T) {
		r.put(t, "traffic-routes/rules", legacyPolicy("TrafficRoute", "default", "rules", "web", "backend",
			`{"http":[{"match":{"path":{"prefix":"/meridian.e2e.Echo/"},"method":{"exact":"POST"},"headers":{"x-user":{"exact":"beta"}}},
			"destination":{"kuma.io/service":"backend","version":"v2"}}],
			"destination":{"kuma.io/service":"backend","version":"v1"}}`))
		for user, want := range map[string]string{"beta": "backend-2", "other": "backend-1"} {
			r.until(t, user+" to "+want, calls{Target: backend, Calls: 20, Metadata: map[string]string{"x-user": user}}, func(o outcome) error {
				if o.Instances[want] != 20 {
					return fmt.Errorf("%+v", o)
				}
				return nil
			})
		}
	})
	t.Run("a timeout", func(t *testing.T) {
		const limit = 300 * time.Millisecond
		r.put(t, "timeouts/short", legacyPolicy("Timeout", "default", "short", "web", "backend", `{"http":{"requestTimeout":"0.3s"}}`))
		r.until(t, "cut", calls{Target: backend, Calls: 3, Metadata: map[string]string{"take-time": "8s"}}, func(o outcome) error {
			if o.fastest() < limit {
				return fmt.Errorf("cut before its time: %+v", o)
			}
			if o.slowest() > 7*time.Second { // the server would have taken longer
				return fmt.Errorf("cut late: %+v", o)
			}
			return o.all("DeadlineExceeded")
		})
		if err := r.client.makes(calls{Target: backend, Calls: 20}).all("OK"); err != nil {
			t.Error(err)
		}
	})
	t.Run("retries", func(t *testing.T) {
		failing := func(n int) calls {
			return calls{Target: backend, Calls: 10, Metadata: map[string]string{"fail-first": fmt.Sprint(n)}}
		}
		if err := r.client.makes(failing(1)).all("Unavailable"); err != nil {
			t.Fatalf("without a policy: %v", err)
		}
		r.put(t, "retries/three", legacyPolicy("Retry", "default", "three", "web", "backend",
			`{"grpc":{"numRetries":3,"retryOn":["unavailable"],"backOff":{"baseInterval":"0.005s","maxInterval":"0.02s"}}}`))
		r.until(t, "retried three times", failing(3), func(o outcome) error { return o.all("OK") })
		if err := r.client.makes(failing(4)).all("Unavailable"); err != nil {
			t.Errorf("of four failures: %v", err)
		}
		r.policy("default", "retries/three", legacyPolicy("Retry", "default", "three", "web", "backend",
			`{"grpc":{"numRetries":3,"retryOn":["cancelled"],"backOff":{"baseInterval":"0.005s","maxInterval":"0.02s"}}}`))
		r.until(t, "not retried for another reason", failing(1), func(o outcome) error { return o.all("Unavailable") })
	})
	t.Run("an injected abort", func(t *testing.T) {
		fault := func(percentage int) string {
			return fmt.Sprintf(`{"type":"FaultInjection","mesh":"default","name":"abort","sources":[{"match":{"kuma.io/service":"web"}}],
				"destinations":[{"match":{"kuma.io/service":"backend","kuma.io/protocol":"grpc"}}],
				"conf":{"abort":{"percentage":%d,"httpStatus":503}}}`, percentage)
		}
		r.put(t, "fault-injections/abort", fault(100))
		r.until(t, "all aborted", calls{Target: backend, Calls: 100}, func(o outcome) error { return o.all("Unavailable") })
		r.policy("default", "fault-injections/abort", fault(50))
		const n = 2000
		r.until(t, "half aborted", calls{Target: backend, Calls: n, Concurrency: 4}, func(o outcome) error {
			return shares("aborted", o.Codes["Unavailable"], n, 0.5)
		})
		r.Global.Must(http.MethodDelete, "/meshes/default/fault-injections/abort", "", 200)
		r.until(t, "none aborted", calls{Target: backend, Calls: 100}, func(o outcome) error { return o.all("OK") })
	})
	t.Run("an injected delay", func(t *testing.T) {
		r.put(t, "fault-injections/delay", `{"type":"FaultInjection","mesh":"default","name":"delay","sources":[{"match":{"kuma.io/service":"web"}}],
			"destinations":[{"match":{"kuma.io/service":"backend","kuma.io/protocol":"grpc"}}],"conf":{"delay":{"percentage":100,"value":"0.2s"}}}`)
		r.until(t, "delayed", calls{Target: backend, Calls: 5}, func(o outcome) error {
			if o.fastest() < 200*time.Millisecond {
				return fmt.Errorf("too early: %+v", o)
			}
			return o.all("OK")
		})
	})
	t.Run("a limit of requests at once", func(t *testing.T) {
		r.put(t, "circuit-breakers/five", legacyPolicy("CircuitBreaker", "default", "five", "web", "backend", `{"thresholds":{"maxRequests":5}}`))
		c := calls{Target: backend, Calls: 20, Concurrency: 20, Metadata: map[string]string{"take-time": "2s"}}
		r.until(t, "limited", c, func(o outcome) error {
			if o.Codes["OK"] != 5 || o.Codes["Unavailable"] != 15 {
				return fmt.Errorf("%+v", o)
			}
			return nil
		})
	})
	t.Run("an instance that fails", func(t *testing.T) {
		bad := r.joins(t, r.zone, "default", "backend-3", "kuma.io/service: backend, version: v3")
		bad.startServer("--failing")
		r.until(t, "failing at times", calls{Target: backend, Calls: 30}, func(o outcome) error {
			if o.Codes["Unavailable"] == 0 || o.Codes["OK"] == 0 {
				return fmt.Errorf("%+v", o)
			}
			return nil
		})
		r.put(t, "circuit-breakers/eject", legacyPolicy("CircuitBreaker", "default", "eject", "web", "backend",
			`{"interval":"0.5s","baseEjectionTime":"60s","maxEjectionPercent":50,
			"detectors":{"failure":{"requestVolume":5,"minimumHosts":3,"threshold":50}}}`))
		r.until(t, "without the one that fails", calls{Target: backend, Calls: 100, Pause: "1ms"}, func(o outcome) error {
			if len(o.Instances) != 2 {
				return fmt.Errorf("%+v", o)
			}
			return o.all("OK")
		})
		bad.app.stop()
		bad.agent.stop()
	})
}

// Who may call whom is decided for each call, by the newest policy.
func TestPermissionsActOnGRPCPrograms(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	stranger := r.joins(t, r.zone, "default", "stranger-1", "kuma.io/service: stranger")
	stranger.startClient()
	stranger.reaches(backend, "OK", patience)

	// expect waits until the client and the stranger get these codes.
	expect := func(t *testing.T, client, other string) {
		t.Helper()
		t.Log("client:", r.client.reaches(backend, client, patience), "stranger:", stranger.reaches(backend, other, patience))
	}
	t.Run("TrafficPermission", func(t *testing.T) {
		r.put(t, "traffic-permissions/web", legacyPolicy("TrafficPermission", "default", "web", "web", "backend", ""))
		expect(t, "OK", "PermissionDenied")
		r.policy("default", "traffic-permissions/web", legacyPolicy("TrafficPermission", "default", "web", "stranger", "backend", ""))
		expect(t, "PermissionDenied", "OK")
		r.Global.Must(http.MethodDelete, "/meshes/default/traffic-permissions/web", "", 200)
		expect(t, "OK", "OK") // there is one for all again
		r.Global.Must(http.MethodDelete, "/meshes/default/traffic-permissions/allow-all-default", "", 200)
		expect(t, "PermissionDenied", "PermissionDenied")
	})
	t.Run("MeshTrafficPermission", func(t *testing.T) {
		permission := func(service, action string) string {
			return fmt.Sprintf(`{"type":"MeshTrafficPermission","mesh":"default","name":"some","spec":{"targetRef":{"kind":"MeshService","name":"backend"},
				"from":[{"targetRef":{"kind":"MeshService","name":%q},"default":{"action":%q}}]}}`, service, action)
		}
		r.put(t, "meshtrafficpermissions/some", permission("web", "ALLOW"))
		expect(t, "OK", "PermissionDenied")
		r.policy("default", "meshtrafficpermissions/some", permission("stranger", "ALLOW"))
		expect(t, "PermissionDenied", "OK")
		r.policy("default", "meshtrafficpermissions/some", permission("stranger", "DENY"))
		expect(t, "PermissionDenied", "PermissionDenied")
	})
}

// ours is an outcome without the calls that gRPC itself fails, whatever a control plane does: when a route leads to a cluster
// for the first time, grpc-go (1.85) chooses it for calls an instant before its balancer has it, and does not retry these.
func ours(o outcome) outcome {
	for text, n := range o.Errors {
		if strings.Contains(text, "unknown cluster selected for RPC") {
			o.Calls -= n
		}
	}
	return o
}

// What changes in a mesh costs no request.
func TestChangesDoNotFailCallsOfGRPCPrograms(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	steady := r.joins(t, r.zone, "default", "web-2", "kuma.io/service: web")
	steady.startClient()
	steady.reaches(backend, "OK", patience)
	load := calls{Target: backend, Concurrency: 4, Pause: "2ms", Reconnect: "1s"}
	change := func(t *testing.T) outcome {
		t.Helper()
		steady.begins(load)
		for i := range 12 {
			r.put(t, "traffic-routes/split", legacyPolicy("TrafficRoute", "default", "split", "web", "backend", fmt.Sprintf(
				`{"split":[{"weight":%d,"destination":{"kuma.io/service":"backend","version":"v%d"}},{"weight":10,"destination":{"kuma.io/service":"backend"}}]}`,
				10+i, 1+i%2)))
			r.put(t, "timeouts/long", legacyPolicy("Timeout", "default", "long", "web", "backend", fmt.Sprintf(`{"http":{"requestTimeout":"%ds"}}`, 10+i)))
			r.put(t, "circuit-breakers/many", legacyPolicy("CircuitBreaker", "default", "many", "web", "backend",
				fmt.Sprintf(`{"thresholds":{"maxRequests":%d}}`, 1000+i)))
			r.put(t, "traffic-permissions/web", legacyPolicy("TrafficPermission", "default", "web", "web", "backend", ""))
			r.put(t, "traffic-permissions/other", legacyPolicy("TrafficPermission", "default", "other", []string{"*", "web"}[i%2], "backend", ""))
			time.Sleep(150 * time.Millisecond) // the calls are in another process
			r.Global.Must(http.MethodDelete, "/meshes/default/circuit-breakers/many", "", 200)
			r.Global.Must(http.MethodDelete, "/meshes/default/traffic-permissions/other", "", 200)
			if i%3 == 2 {
				r.Global.Must(http.MethodDelete, "/meshes/default/traffic-routes/split", "", 200)
			}
		}
		o := steady.ends()
		t.Logf("%+v", o)
		return o
	}
	t.Run("policies change", func(t *testing.T) {
		if err := ours(change(t)).all("OK"); err != nil {
			t.Error(err)
		}
	})
	t.Run("instances come and go", func(t *testing.T) {
		steady.begins(load)
		for range 2 {
			third := r.joins(t, r.zone, "default", "backend-3", "kuma.io/service: backend, version: v3")
			third.startServer()
			r.until(t, "with a third instance", calls{Target: backend, Calls: 30}, func(o outcome) error {
				if len(o.Instances) != 3 {
					return fmt.Errorf("%+v", o)
				}
				return nil
			})
			third.app.stop()
			third.agent.stop()
		}
		o := steady.ends()
		t.Logf("%+v", o)
		if err := o.all("OK"); err != nil {
			t.Error(err)
		}
	})
	t.Run("the control plane restarts", func(t *testing.T) {
		steady.begins(load)
		r.zone.Stop()
		r.zone.Start()
		r.zone.eventually(patience, "serving all streams", func() error {
			// Those of four agents, and of four programs.
			if n := r.zone.metric("meridian_ads_streams"); n < 8 {
				return fmt.Errorf("%v are open", n)
			}
			return nil
		})
		r.put(t, "traffic-routes/one", legacyPolicy("TrafficRoute", "default", "one", "web", "backend",
			`{"destination":{"kuma.io/service":"backend","version":"v1"}}`))
		r.until(t, "configured again", calls{Target: backend, Calls: 30}, func(o outcome) error {
			if o.Instances["backend-1"] != 30 {
				return fmt.Errorf("%+v", o)
			}
			return nil
		})
		o := steady.ends()
		t.Logf("%+v", o)
		if err := ours(o).all("OK"); err != nil {
			t.Error(err)
		}
	})
	t.Run("the service goes away and comes back", func(t *testing.T) {
		for _, p := range []*program{r.v1, r.v2} {
			p.app.stop()
			p.agent.stop()
		}
		t.Log("gone after", r.client.reaches(backend, "Unavailable", patience))
		for _, p := range []*program{r.v1, r.v2} {
			p.startAgent()
			p.startServer()
		}
		t.Log("back after", r.client.reaches(backend, "OK", patience))
	})
}

// watchedFiles is how long gRPC may take to read a certificate again, and some more.
const watchedFiles = 3 * time.Second

// The authority of a mesh is replaced by way of a second backend, and no call fails.
func TestAuthoritiesAreRotatedUnderGRPCTraffic(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	programs := []*program{r.v1, r.v2, r.client}
	// await waits until all programs are told to have this, and gives gRPC the time to take it.
	await := func(issued string, supported ...string) {
		t.Helper()
		for _, p := range programs {
			r.zone.eventually(patience, "showing the certificate of "+p.name, func() error {
				gotIssued, gotSupported, err := p.mtls()
				slices.Sort(gotSupported)
				if err == nil && (gotIssued != issued || !slices.Equal(gotSupported, supported)) {
					err = fmt.Errorf("issued by %q, supported %q; want %q, %q", gotIssued, gotSupported, issued, supported)
				}
				return err
			})
		}
		time.Sleep(watchedFiles)
	}
	certificate := func() string {
		b, err := os.ReadFile(filepath.Join(r.v1.dir, "grpc", "current", "cert.pem"))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	await("ca-1", "ca-1")
	before := certificate()
	r.client.begins(calls{Target: backend, Concurrency: 4, Pause: "2ms", Reconnect: "200ms"})
	r.Global.Must(http.MethodPut, "/meshes/default", strict("ca-1", "ca-1", "ca-2"), 200)
	await("ca-1", "ca-1", "ca-2")
	r.Global.Must(http.MethodPut, "/meshes/default", strict("ca-2", "ca-1", "ca-2"), 200)
	await("ca-2", "ca-1", "ca-2")
	r.Global.Must(http.MethodPut, "/meshes/default", strict("ca-2", "ca-2"), 200)
	await("ca-2", "ca-2")
	o := r.client.ends()
	t.Logf("%d calls over %d connections, the slowest %s: %v", o.Calls, o.Connections, o.Slowest, o.Codes)
	if err := o.all("OK"); err != nil {
		t.Error(err)
	}
	if o.Connections < 40 || len(o.Instances) != 2 {
		t.Errorf("too little was tried: %+v", o)
	}
	if certificate() == before {
		t.Error("the certificate is the one of before")
	}
}
