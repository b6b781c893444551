package e2e

import (
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/meridian-mesh/meridian/common/store/postgres/pgtest"
)

// onPostgres is a global and a zone, each in a database of its own, by way of a proxy.
func onPostgres(t *testing.T) (*System, *pgtest.Server) {
	t.Helper()
	server := pgtest.Start(t, "fsync=off")
	env := func() []string {
		return []string{
			"MERIDIAN_STORE_TYPE=postgres", "MERIDIAN_STORE_POSTGRES_URL=" + server.NewSchema(t).URL(),
			"MERIDIAN_STORE_POSTGRES_TIMEOUT=1s",
		}
	}
	s := &System{Global: newPlane(t, bin, "global", "")}
	s.Global.KDS = freePort(t)
	s.Global.env = append(append(s.Global.env, fmt.Sprint("MERIDIAN_KDS_PORT=", s.Global.KDS)), env()...)
	s.Global.Start()
	z := s.newZone(bin, "east")
	z.env = append(z.env, env()...)
	z.Start()
	s.Zones = []*Plane{z}
	s.waitActive("east", true, 15*time.Second)
	return s, server
}

func TestPlanesOnPostgres(t *testing.T) {
	t.Parallel()
	s, server := onPostgres(t)
	put := func(name string) (int, http.Header) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodPut, s.Global.url("/meshes/default/traffic-permissions/"+name),
			strings.NewReader(fmt.Sprintf(permissionBody, name, "x")))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp.StatusCode, resp.Header
	}
	replicated := func(name string) {
		t.Helper()
		s.Zones[0].eventually(20*time.Second, name+" in the zone", func() error {
			return is(s.Zones[0], "/meshes/default/traffic-permissions/"+name, http.StatusOK)
		})
	}
	if code, _ := put("before"); code != http.StatusCreated {
		t.Fatalf("PUT answers %d", code)
	}
	replicated("before")

	for _, fault := range []struct {
		name       string
		away, back func() error
	}{
		{"stopped", server.Stop, server.Start},
		{"frozen", server.Pause, server.Resume},
	} {
		if err := fault.away(); err != nil {
			t.Fatal(err)
		}
		for range 5 {
			code, header := put("while-" + fault.name)
			if code != http.StatusServiceUnavailable || header.Get("Retry-After") == "" {
				t.Errorf("database %s: PUT answers %d, Retry-After %q", fault.name, code, header.Get("Retry-After"))
			}
		}
		for _, p := range []*Plane{s.Global, s.Zones[0]} {
			if err := is(p, "/meshes/default/traffic-permissions/before", http.StatusOK); err != nil {
				t.Errorf("database %s: %v", fault.name, err)
			}
		}
		if err := fault.back(); err != nil {
			t.Fatal(err)
		}
		s.Global.eventually(20*time.Second, "writes again", func() error {
			if code, _ := put("after-" + fault.name); code != http.StatusCreated && code != http.StatusOK {
				return fmt.Errorf("PUT answers %d", code)
			}
			return nil
		})
		replicated("after-" + fault.name)
	}

	// What a plane keeps up by itself goes on, too.
	s.Global.eventually(20*time.Second, "insights of what was written since", func() error {
		_, b, err := s.Global.Call("GET", "/mesh-insights/default", "")
		if err == nil && !strings.Contains(strings.Join(strings.Fields(string(b)), ""), `"TrafficPermission":{"total":4}`) {
			err = fmt.Errorf("not four permissions in %s", b)
		}
		return err
	})

	// What was written is there after a restart.
	s.Global.Kill()
	s.Global.Start()
	for _, name := range []string{"before", "after-stopped", "after-frozen"} {
		s.Global.Must("GET", "/meshes/default/traffic-permissions/"+name, "", http.StatusOK)
	}
	s.waitActive("east", true, 15*time.Second)
}

func TestAPlaneThatMayNotMigrate(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, "fsync=off")
	p := newPlane(t, bin, "global", "")
	p.env = append(p.env, "MERIDIAN_STORE_TYPE=postgres", "MERIDIAN_STORE_POSTGRES_URL="+server.URL(),
		"MERIDIAN_STORE_POSTGRES_AUTO_MIGRATE=false", fmt.Sprint("MERIDIAN_KDS_PORT=", freePort(t)))
	run := func(args ...string) (string, error) {
		cmd := exec.CommandContext(t.Context(), p.program, args...)
		cmd.Env = p.env
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run(); err == nil || !strings.Contains(out, "the database needs migrations") {
		t.Fatalf("started on an empty database: %v: %s", err, out)
	}
	for _, want := range []string{"applied migration 1", "the database is up to date"} {
		if out, err := run("migrate"); err != nil || !strings.Contains(out, want) {
			t.Fatalf("migrate: %v: %s, want %q", err, out, want)
		}
	}
	p.Start()
}
