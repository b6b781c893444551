package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/meridian-mesh/meridian/common/store/postgres/pgtest"
)

// composed is what runs of a compose file, in a project of its own.
type composed struct {
	t       *testing.T
	program []string // docker compose, in whichever of its two forms is there
	file    string
	project string
}

// requireCompose returns the program, or skips where there is none.
func requireCompose(t *testing.T) []string {
	t.Helper()
	if exec.CommandContext(t.Context(), "docker", "compose", "version").Run() == nil {
		return []string{"docker", "compose"}
	}
	if _, err := exec.LookPath("docker-compose"); err != nil {
		t.Skip("NOT RUN: neither docker compose nor docker-compose is installed")
	}
	return []string{"docker-compose"}
}

// docker runs the Docker client.
func docker(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "docker", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("docker %s: %v: %s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(string(out))
}

// compose runs docker compose on the file.
func (c *composed) compose(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	args = append(append(slices.Clone(c.program[1:]), "-f", c.file, "-p", c.project), args...)
	cmd := exec.CommandContext(ctx, c.program[0], args...)
	cmd.Env = append(os.Environ(), "MERIDIAN_TAG="+c.project, "POSTGRES_IMAGE=meridian/postgres:"+c.project)
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", c.program[0], strings.Join(args, " "), err, tail(out))
	}
	return strings.TrimSpace(string(out)), err
}

func (c *composed) must(args ...string) string {
	c.t.Helper()
	out, err := c.compose(args...)
	if err != nil {
		c.t.Fatal(err)
	}
	return out
}

func (c *composed) container(service string) string {
	c.t.Helper()
	return docker(c.t, "ps", "-aq", "--filter", "label=com.docker.compose.project="+c.project, "--filter", "label=com.docker.compose.service="+service)
}

// plane is the control plane of a service, which runs.
func (c *composed) plane(service string) *Plane {
	c.t.Helper()
	address := docker(c.t, "port", c.container(service), "5681/tcp")
	p := &Plane{t: c.t, Name: service}
	if _, err := fmt.Sscanf(address[strings.LastIndexByte(address, ':')+1:], "%d", &p.HTTP); err != nil {
		c.t.Fatalf("port of %s: %q", service, address)
	}
	return p
}

// derive writes a compose file as it is, but for two things that would let it meet others on this host: each port is
// published at a free one, and containers carry the label of the tests'.
func derive(t *testing.T, from, to string) {
	t.Helper()
	content, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	var file map[string]any
	if err := yaml.Unmarshal(content, &file); err != nil {
		t.Fatal(err)
	}
	dir, err := filepath.Abs(filepath.Dir(from))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range file["services"].(map[string]any) {
		service := s.(map[string]any)
		service["labels"] = map[string]any{"meridian.e2e": "true"}
		list, _ := service["ports"].([]any)
		for i, port := range list {
			_, inside, _ := strings.Cut(port.(string), ":")
			list[i] = inside
		}
		volumes, _ := service["volumes"].([]any)
		for i, volume := range volumes {
			if v := volume.(string); strings.HasPrefix(v, ".") {
				volumes[i] = filepath.Join(dir, v[:strings.IndexByte(v, ':')]) + v[strings.IndexByte(v, ':'):]
			}
		}
	}
	if content, err = yaml.Marshal(file); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// put makes a file in the volume of a container that need not run, for the user of our images.
func put(t *testing.T, container, dir, name, content string) {
	t.Helper()
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	header := &tar.Header{Name: name, Mode: 0o600, Uid: 65532, Gid: 65532, Size: int64(len(content)), Typeflag: tar.TypeReg}
	if err := w.WriteHeader(header); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(content)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), "docker", "cp", "-", container+":"+dir)
	cmd.Stdin = &archive
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("copy %s to %s: %v: %s", name, container, err, out)
	}
}

// startHA builds the images and starts docker-compose.ha.yml. Postgres is the installed one, in an image made for this.
func startHA(t *testing.T) *composed {
	t.Helper()
	const password = "not/a+secret="
	c := &composed{t: t, program: requireCompose(t), file: filepath.Join(t.TempDir(), "docker-compose.yml"), project: fmt.Sprint("meridian-e2e-", os.Getpid())}
	derive(t, "../deploy/compose/docker-compose.ha.yml", c.file)
	sql, err := os.ReadFile("../deploy/compose/databases.sql")
	if err != nil {
		t.Fatal(err)
	}
	planes := buildContext(t)
	t.Cleanup(func() {
		if t.Failed() {
			out, _ := c.compose("logs", "--no-color", "--tail=40")
			t.Logf("logs:\n%s", out)
		}
		if _, err := c.compose("down", "-v", "-t", "1"); err != nil {
			t.Error(err)
		}
		docker(t, "rmi", "-f", "meridian/global:"+c.project, "meridian/zone:"+c.project, "meridian/postgres:"+c.project)
	})
	pgtest.Image(t, "meridian/postgres:"+c.project, "meridian", password, string(sql))
	for _, kind := range []string{"global", "zone"} {
		docker(t, "build", "-q", "-t", "meridian/"+kind+":"+c.project, "-f", filepath.Join(planes, "deploy/docker/Dockerfile."+kind), planes)
	}
	// The data of the image was made with a password of ours. What is in its file already stays.
	c.must("up", "--no-start", "--no-deps", "postgres-password")
	put(t, c.container("postgres-password"), "/data", "postgres-password", password+"\n")
	c.must("up", "-d")
	return c
}

func TestComposedReplicasStandInForEachOther(t *testing.T) {
	requireDocker(t)
	began := time.Now()
	c := startHA(t)
	t.Logf("started after %s", time.Since(began).Round(time.Millisecond))

	planes := map[string]*Plane{}
	for _, service := range []string{"global-1", "global-2", "zone-1a", "zone-1b", "zone-2"} {
		planes[service] = c.plane(service)
	}
	// arrives writes on a global, which may need a moment for that, and waits until the others serve it.
	arrives := func(name, writer string, others ...string) {
		t.Helper()
		path := "/meshes/default/traffic-permissions/" + name
		planes[writer].eventually(20*time.Second, "taking a write", func() error {
			code, body, err := planes[writer].Call(http.MethodPut, path, fmt.Sprintf(permissionBody, name, name))
			if err == nil && code != http.StatusCreated && code != http.StatusOK {
				err = fmt.Errorf("%d %s", code, body)
			}
			return err
		})
		for _, p := range others {
			planes[p].eventually(20*time.Second, "serving "+name, func() error { return is(planes[p], path, http.StatusOK) })
		}
	}
	complete := func() {
		t.Helper()
		for _, p := range []string{"global-1", "global-2", "zone-1a", "zone-1b"} {
			planes[p].instances(2)
		}
		for _, zone := range []string{"zone-1", "zone-2"} {
			for _, g := range []string{"global-1", "global-2"} {
				(&System{Global: planes[g]}).waitActive(zone, true, 20*time.Second)
			}
		}
	}
	complete()
	arrives("one", "global-1", "global-2", "zone-1a", "zone-1b", "zone-2")
	arrives("two", "global-2", "global-1", "zone-1a", "zone-1b", "zone-2")

	// A global dies and a replica of a zone; then the others.
	for _, pair := range [][2]string{{"global-1", "zone-1a"}, {"global-2", "zone-1b"}} {
		survivor, holder := map[string]string{"global-1": "global-2", "global-2": "global-1"}[pair[0]], pair[0]
		other := map[string]string{"zone-1a": "zone-1b", "zone-1b": "zone-1a"}[pair[1]]
		docker(t, "kill", c.container(holder), c.container(pair[1]))
		died := time.Now()
		arrives("without-"+holder, survivor, other, "zone-2")
		planes[survivor].instances(1)
		planes[other].instances(1)
		for _, zone := range []string{"zone-1", "zone-2"} {
			(&System{Global: planes[survivor]}).waitActive(zone, true, 20*time.Second)
		}
		t.Logf("without %s and %s: all is right after %s", pair[0], pair[1], time.Since(died).Round(time.Millisecond))

		// They come back, to what was written meanwhile.
		c.must("start", holder, pair[1])
		planes[holder], planes[pair[1]] = c.plane(holder), c.plane(pair[1])
		for _, p := range []string{holder, pair[1]} {
			planes[p].eventually(20*time.Second, "serving what it missed", func() error {
				return is(planes[p], "/meshes/default/traffic-permissions/without-"+holder, http.StatusOK)
			})
		}
		complete()
	}
	t.Logf("%s in all", time.Since(began).Round(time.Millisecond))
}
