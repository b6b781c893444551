package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/postgres"
	"github.com/meridian-mesh/meridian/common/store/postgres/pgtest"
)

// nextVersion is what the program of the next version says it is.
const nextVersion = "v99.0.0-next"

// nextGlobal builds the global of a version that comes after this one, as different as the rules for an upgrade allow: with a
// migration that this version can live with, and with a member that this version does not know in all JSON that replicas tell each other
// or keep in the store. The differences are laid over the source by the Go tool; the tree stays as it is.
func nextGlobal(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	replace := map[string]string{}
	lay := func(path, content string) {
		t.Helper()
		original, err := filepath.Abs(filepath.Join("..", path))
		if err != nil {
			t.Fatal(err)
		}
		replace[original] = filepath.Join(dir, strings.ReplaceAll(path, "/", "_"))
		if err := os.WriteFile(replace[original], []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}

	migrations, err := filepath.Glob("../common/store/postgres/migrations/*.sql")
	if err != nil || len(migrations) == 0 {
		t.Fatalf("no migrations: %v", err)
	}
	lay(fmt.Sprintf("common/store/postgres/migrations/%04d_next.compatible-%d.sql", len(migrations)+1, len(migrations)), `
		CREATE TABLE meridian_next (one int);
		ALTER TABLE meridian_entries ADD COLUMN next text;
		ALTER TABLE meridian_head ADD COLUMN next int NOT NULL DEFAULT 0;
		ALTER TABLE meridian_leases ADD COLUMN next text;`)

	for _, pkg := range []string{"common/cluster", "common/peers", "global/zones", "sync/forward"} {
		files, err := filepath.Glob(filepath.Join("..", pkg, "*.go"))
		if err != nil {
			t.Fatal(err)
		}
		found := false
		for _, file := range files {
			source, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if strings.HasSuffix(file, "_test.go") || !bytes.Contains(source, []byte("json.Marshal(")) {
				continue
			}
			found = true
			lay(filepath.Join(pkg, filepath.Base(file)),
				strings.ReplaceAll(string(source), "json.Marshal(", "marshalNext(")+"\nvar _ = json.Marshal\n")
		}
		if !found {
			t.Fatalf("%s makes no JSON any more: this test must find what does", pkg)
		}
		lay(filepath.Join(pkg, "next.go"), "package "+filepath.Base(pkg)+`

			import "encoding/json"

			func marshalNext(v any) ([]byte, error) {
				b, err := json.Marshal(v)
				if err == nil && len(b) > 2 && b[0] == '{' {
					b = append(b[:len(b)-1], `+"`"+`,"next":{"of":"a later version"}}`+"`"+`...)
				}
				return b, err
			}
		`)
	}

	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(file, overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(dir, "meridian-global")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-overlay", file, "-o", program,
		"-ldflags", "-X github.com/meridian-mesh/meridian/common/version.version="+nextVersion, "../cmd/meridian-global")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the next version: %v\n%s", err, out)
	}
	return program
}

// A plane is upgraded replica by replica while clients write and a zone is connected, and goes back by one.
func TestAPlaneIsUpgradedReplicaByReplica(t *testing.T) {
	t.Parallel()
	next := nextGlobal(t)
	server := pgtest.Start(t, "fsync=off")
	g := newReplicas(t, server, "global", "", 3)
	g.start()
	zone := newZoneReplicas(g, server, "east", 1)
	zone.start()
	g.showsZone("east")
	this := g.planes[0].program

	later := g.laterResources()
	w := g.write(4)
	var versions []string
	turn := func(p *Plane, program string) {
		t.Helper()
		p.Stop()
		p.program = program
		p.Start()
		versions = g.versions()
		began := time.Now()
		g.showsZone("east")
		t.Logf("%s is upgraded or put back: the replicas are %q; %s after it was ready all show the zone online", p.Name, versions, time.Since(began))
	}
	for _, p := range g.planes {
		turn(p, next)
	}
	if len(distinct(versions)) != 1 || versions[0] != nextVersion {
		t.Fatalf("after the upgrade there are %q", versions)
	}
	turn(g.planes[0], this) // on the schema of the next version
	if len(distinct(versions)) != 2 {
		t.Errorf("after a replica went back there are %q", versions)
	}

	acknowledged, longest := w.stop()
	t.Logf("%d writes acknowledged, the one that waited longest took %s", len(acknowledged), longest)
	if longest > 5*time.Second {
		t.Errorf("a write was refused for %s", longest)
	}
	for _, p := range append(slices.Clone(g.planes), zone.planes...) {
		p.eventually(20*time.Second, "having every acknowledged write", func() error {
			items, err := p.Items("/meshes/default/traffic-permissions")
			if err != nil {
				return err
			}
			for name := range maps.Keys(acknowledged) {
				if _, there := items["default/"+name]; !there {
					return fmt.Errorf("%s is lost", name)
				}
			}
			return nil
		})
	}
	// The zone went on where it was, each time: had it been sent everything again, that would be several times as much.
	if n := zone.planes[0].metric("meridian_kds_applied_resources_total"); int(n) > len(acknowledged)+100 {
		t.Errorf("the zone changed %v resources for %d writes", n, len(acknowledged))
	}
	g.keeps(later)
	zone.keeps(map[store.Key][]byte{laterMesh: later[laterMesh]})
	for _, p := range g.planes {
		log, err := os.ReadFile(p.logFile())
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(log)) {
			if strings.Contains(line, "level=ERROR") {
				t.Errorf("%s: %s", p.Name, line)
			}
		}
	}
}

// versions waits until all replicas show each other and a leader, and returns what versions there are.
func (r *replicas) versions() []string {
	r.t.Helper()
	r.agreeOnALeader()
	var list []struct{ Name, Version string }
	if err := json.Unmarshal(r.planes[0].Must(http.MethodGet, "/status/instances", "", http.StatusOK), &list); err != nil {
		r.t.Fatal(err)
	}
	var versions []string
	for _, i := range list {
		versions = append(versions, i.Version)
	}
	return versions
}

// showsZone waits until every replica shows the zone active.
func (r *replicas) showsZone(zone string) {
	r.t.Helper()
	for _, p := range r.running() {
		(&System{Global: p}).waitActive(zone, true, 30*time.Second)
	}
}

// open opens the plane's store as one more replica, whose version knows everything.
func (r *replicas) open() *store.Store {
	r.t.Helper()
	b, err := postgres.Open(r.t.Context(), postgres.Options{URL: r.database.URL(), NoMigrations: true})
	if err != nil {
		r.t.Fatal(err)
	}
	st, err := store.Open(r.t.Context(), b, store.Options{})
	if err != nil {
		r.t.Fatal(err)
	}
	return st
}

var laterMesh = store.Key{Type: "Mesh", Name: "later"}

// laterResources stores what only a later version knows: a field of a mesh, and a type. It returns what was stored.
func (r *replicas) laterResources() map[store.Key][]byte {
	r.t.Helper()
	field := protowire.AppendBytes(protowire.AppendTag(nil, 5000, protowire.BytesType), []byte("a later field"))
	all := map[store.Key][]byte{
		laterMesh: field,
		{Type: "MeshLater", Mesh: "default", Name: "a"}: []byte("a later type"),
	}
	st := r.open()
	defer st.Close()
	if _, err := st.Update(r.t.Context(), func(*store.Snapshot) ([]store.Op, error) {
		var ops []store.Op
		for key, spec := range all {
			ops = append(ops, store.Put(&store.Record{Key: key, Spec: spec}))
		}
		return ops, nil
	}); err != nil {
		r.t.Fatal(err)
	}
	return all
}

// keeps checks that what was stored is there, byte for byte.
func (r *replicas) keeps(want map[store.Key][]byte) {
	r.t.Helper()
	st := r.open()
	defer st.Close()
	for key, spec := range want {
		rec, ok := st.Snapshot().Get(key)
		if !ok || !bytes.Equal(rec.Spec, spec) {
			r.t.Errorf("%s became %v, want %x", key, rec, spec)
		}
	}
}

// writers are clients that write without pause, each to the replica that answers.
type writers struct {
	end  context.CancelFunc
	done sync.WaitGroup

	mu           sync.Mutex // guards what follows
	acknowledged map[string]bool
	longest      time.Duration // from the first try of a write to its answer
}

// write starts so many clients.
func (r *replicas) write(clients int) *writers {
	ctx, end := context.WithCancel(r.t.Context())
	w := &writers{end: end, acknowledged: map[string]bool{}}
	var urls []string // processes come and go, their addresses stay
	for _, p := range r.planes {
		urls = append(urls, p.url("/meshes/default/traffic-permissions/"))
	}
	for c := range clients {
		w.done.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				name := fmt.Sprintf("w%d-%d", c, n)
				began := time.Now()
				for try := c; ; try++ {
					status, err := put(urls[try%len(urls)]+name, fmt.Sprintf(permissionBody, name, "x"))
					if err == nil && (status == http.StatusCreated || status == http.StatusOK) {
						break
					}
					if err == nil && status != http.StatusServiceUnavailable {
						r.t.Errorf("PUT %s: %d", name, status)
						return
					}
					if time.Since(began) > time.Minute {
						r.t.Errorf("PUT %s: still refused after a minute: %d, %v", name, status, err)
						return
					}
					time.Sleep(10 * time.Millisecond) // as a client would
				}
				w.mu.Lock()
				w.acknowledged[name] = true
				w.longest = max(w.longest, time.Since(began))
				w.mu.Unlock()
				time.Sleep(10 * time.Millisecond) // not to fill the machine
			}
		})
	}
	return w
}

func put(url, body string) (status int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPut, url, strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	return resp.StatusCode, resp.Body.Close()
}

// stop ends the clients and returns the names that were acknowledged, and how long a write had to be tried at most.
func (w *writers) stop() (acknowledged map[string]bool, longest time.Duration) {
	w.end()
	w.done.Wait()
	return w.acknowledged, w.longest
}

func distinct(list []string) []string { return slices.Compact(slices.Sorted(slices.Values(list))) }
