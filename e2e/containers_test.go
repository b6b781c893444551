package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/testcontainers/testcontainers-go"
	tcexec "github.com/testcontainers/testcontainers-go/exec"
	"github.com/testcontainers/testcontainers-go/network"
	"github.com/testcontainers/testcontainers-go/wait"
)

// requireDocker skips where no engine answers, and fails there if the caller said that one must.
func requireDocker(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "docker", "info", "--format", "{{.ServerVersion}}").CombinedOutput(); err != nil {
		if os.Getenv("MERIDIAN_REQUIRE_DOCKER") != "" {
			t.Fatalf("a Docker engine is required and none answers: %v: %s", err, out)
		}
		t.Skip("NOT RUN: no Docker engine answers; the same scenario runs as processes")
	}
}

// buildContext lays out what the Dockerfiles of deploy/ need, with the programs under test.
func buildContext(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for from, to := range map[string]string{
		filepath.Join(bin, "meridian-global"): "bin/meridian-global",
		filepath.Join(bin, "meridian-zone"):   "bin/meridian-zone",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, to)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Link(from, filepath.Join(dir, to)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(filepath.Join(dir, "deploy", "docker"), os.DirFS("../deploy/docker")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// containerPlane starts a control plane of an image built FROM scratch and returns it with its published API port.
func containerPlane(t *testing.T, dir, kind, name, net string, env map[string]string, files ...testcontainers.ContainerFile) (*Plane, testcontainers.Container) {
	t.Helper()
	ctx := context.Background()
	c, err := testcontainers.GenericContainer(ctx, testcontainers.GenericContainerRequest{
		Started: true,
		ContainerRequest: testcontainers.ContainerRequest{
			FromDockerfile: testcontainers.FromDockerfile{Context: dir, Dockerfile: "deploy/docker/Dockerfile." + kind, Repo: "meridian/" + kind, Tag: "e2e", KeepImage: true},
			Env:            env, Files: files,
			Labels:   map[string]string{"meridian.e2e": "true"},
			Networks: []string{net}, NetworkAliases: map[string][]string{net: {name}},
			ExposedPorts: []string{"5680/tcp", "5681/tcp"},
			// The image's own health check, `meridian-… health`: nothing in it needs a shell.
			WaitingFor: wait.ForHealthCheck().WithStartupTimeout(time.Minute),
		},
	})
	if c != nil {
		t.Cleanup(func() {
			if t.Failed() {
				if logs, err := c.Logs(ctx); err == nil {
					b, _ := io.ReadAll(logs)
					t.Logf("log of %s:\n%s", name, tail(b))
				}
			}
			_ = testcontainers.TerminateContainer(c)
		})
	}
	if err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	port, err := c.MappedPort(ctx, "5681/tcp")
	if err != nil {
		t.Fatalf("port of %s: %v", name, err)
	}
	return &Plane{t: t, Name: name, HTTP: int(port.Num())}, c
}

func TestContainersReplicateBothWays(t *testing.T) {
	requireDocker(t)
	t.Setenv("TESTCONTAINERS_RYUK_DISABLED", "true") // its image cannot be had everywhere; Cleanup and the label do its work
	ctx := context.Background()
	net, err := network.New(ctx, network.WithLabels(map[string]string{"meridian.e2e": "true"}))
	if err != nil {
		t.Fatalf("make network: %v", err)
	}
	t.Cleanup(func() { _ = net.Remove(ctx) })
	dir := buildContext(t)
	global, c := containerPlane(t, dir, "global", "global", net.Name, map[string]string{"MERIDIAN_HOSTNAMES": "global"})
	ca, err := c.CopyFileFromContainer(ctx, "/data/trust/kds-ca.crt")
	if err != nil {
		t.Fatalf("read the authority's certificate: %v", err)
	}
	pem, err := io.ReadAll(ca)
	if err != nil || !strings.Contains(string(pem), "BEGIN CERTIFICATE") {
		t.Fatalf("the authority's certificate: %v %q", err, pem)
	}
	s := &System{Global: global}
	var zones []testcontainers.Container
	for _, name := range []string{"zone-1", "zone-2"} {
		code, out, err := c.Exec(ctx, []string{"/meridian-global", "token", "zone", "--name", name}, tcexec.Multiplexed())
		if err != nil {
			t.Fatalf("make the token of %s: %v", name, err)
		}
		token, err := io.ReadAll(out)
		if err != nil || code != 0 {
			t.Fatalf("make the token of %s: exit code %d, %v", name, code, err)
		}
		p, c := containerPlane(t, dir, "zone", name, net.Name, map[string]string{
			"MERIDIAN_ZONE_TOKEN": strings.TrimSpace(string(token)),
			"MERIDIAN_ZONE_NAME":  name, "MERIDIAN_ZONE_GLOBAL_ADDRESS": "grpcs://global:5685", "MERIDIAN_ZONE_KDS_CA_FILE": "/trust/kds-ca.crt",
		}, testcontainers.ContainerFile{Reader: bytes.NewReader(pem), ContainerFilePath: "/trust/kds-ca.crt", FileMode: 0o644})
		s.Zones = append(s.Zones, p)
		zones = append(zones, c)
	}
	for _, z := range s.Zones {
		s.waitActive(z.Name, true, 15*time.Second)
	}
	// Requests come over the bridge, so they are not the administrator's: secrets are left out.
	replicates(t, s, false)
	grace := 10 * time.Second
	if err := zones[0].Stop(ctx, &grace); err != nil {
		t.Fatalf("stop zone-1: %v", err)
	}
	t.Log(fmt.Sprint("a stopped container is shown after ", s.waitActive("zone-1", false, time.Second)))
	if err := zones[0].Start(ctx); err != nil {
		t.Fatalf("start zone-1: %v", err)
	}
	s.waitActive("zone-1", true, 20*time.Second)
}
