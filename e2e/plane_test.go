package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Plane is one control plane process with its own data directory and ports, which it keeps over restarts.
type Plane struct {
	t                             testing.TB
	Name                          string
	Zone                          string // of a zone; its replicas have names of their own
	program, Dir                  string
	HTTP, HTTPS, Diagnostics, KDS int
	Proxies, MADS                 int // of a zone
	env                           []string
	cmd                           *exec.Cmd
	exited                        chan struct{}
}

// System is a global and its zones.
type System struct {
	Global *Plane
	Zones  []*Plane
}

// newSystem starts a global and the named zones in temporary directories and waits until the zones are active.
func newSystem(t testing.TB, bin string, zones ...string) *System {
	t.Helper()
	s := &System{Global: newPlane(t, bin, "global", "")}
	s.Global.KDS = freePort(t)
	s.Global.env = append(s.Global.env, fmt.Sprint("MERIDIAN_KDS_PORT=", s.Global.KDS))
	s.Global.Start()
	for _, name := range zones {
		z := s.newZone(bin, name)
		z.Start()
		s.Zones = append(s.Zones, z)
	}
	for _, z := range s.Zones {
		s.waitActive(z.Name, true, 15*time.Second)
	}
	return s
}

// newZone makes a zone of the system, and its token; it is not started. The global is running.
func (s *System) newZone(bin, name string) *Plane {
	z := newPlane(s.Global.t, bin, "zone", name)
	s.admit(z)
	return z
}

// admit gives a zone its token, and tells it where the global is.
func (s *System) admit(z *Plane) {
	token := filepath.Join(z.Dir, "zone-token")
	s.Global.mint(z.Zone, token)
	z.env = append(z.env, "MERIDIAN_ZONE_NAME="+z.Zone, "MERIDIAN_ZONE_TOKEN_FILE="+token,
		fmt.Sprintf("MERIDIAN_ZONE_GLOBAL_ADDRESS=grpcs://localhost:%d", s.Global.KDS),
		"MERIDIAN_ZONE_KDS_CA_FILE="+filepath.Join(s.Global.Dir, "trust", "kds-ca.crt"))
}

// mint makes the token of a zone, as an operator on the global's host would. Further flags may follow.
func (p *Plane) mint(zone, file string, flags ...string) {
	p.t.Helper()
	cmd := exec.Command(p.program, append([]string{"token", "zone", "--name", zone, "--out", file}, flags...)...)
	cmd.Env = p.env
	if out, err := cmd.CombinedOutput(); err != nil {
		p.t.Fatalf("make the token of %s: %v: %s", zone, err, out)
	}
}

func newPlane(t testing.TB, bin, kind, name string) *Plane {
	t.Helper()
	if name == "" {
		name = kind
	}
	p := &Plane{
		t: t, Name: name, program: filepath.Join(bin, "meridian-"+kind), Dir: t.TempDir(),
		HTTP: freePort(t), HTTPS: freePort(t), Diagnostics: freePort(t),
	}
	p.env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + p.Dir, "MERIDIAN_DATA_DIR=" + p.Dir,
		fmt.Sprint("MERIDIAN_API_HTTP_PORT=", p.HTTP), fmt.Sprint("MERIDIAN_API_HTTPS_PORT=", p.HTTPS),
		fmt.Sprint("MERIDIAN_DIAGNOSTICS_PORT=", p.Diagnostics),
	}
	if kind == "zone" {
		p.Zone = name
		p.Proxies, p.MADS = freePort(t), freePort(t)
		p.env = append(p.env, fmt.Sprint("MERIDIAN_DP_PORT=", p.Proxies), fmt.Sprint("MERIDIAN_MADS_PORT=", p.MADS))
	}
	t.Cleanup(func() {
		if p.cmd != nil {
			p.Kill()
		}
		if t.Failed() {
			log, _ := os.ReadFile(p.logFile())
			t.Logf("log of %s:\n%s", p.Name, tail(log))
		}
	})
	return p
}

func tail(b []byte) []byte {
	const most = 6000
	if len(b) > most {
		return b[len(b)-most:]
	}
	return b
}

func (p *Plane) logFile() string { return filepath.Join(p.Dir, "log") }

// freePort takes a port from below the range the system hands out to outgoing connections, so that it stays free
// while the plane that owns it is down.
func freePort(t testing.TB) int {
	t.Helper()
	for range 1000 {
		port := nextPort()
		l, err := net.Listen("tcp", fmt.Sprint(":", port))
		if err == nil {
			_ = l.Close()
			return port
		}
	}
	t.Fatal("no free port found")
	return 0
}

// Start starts the process and waits until it is ready.
func (p *Plane) Start() {
	p.t.Helper()
	p.launch()
	p.awaitReady()
}

// launch starts the process.
func (p *Plane) launch() {
	p.t.Helper()
	log, err := os.OpenFile(p.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		p.t.Fatalf("open log: %v", err)
	}
	defer log.Close()
	p.cmd = exec.Command(p.program)
	p.cmd.Env, p.cmd.Stdout, p.cmd.Stderr = p.env, log, log
	if err := p.cmd.Start(); err != nil {
		p.t.Fatalf("start %s: %v", p.Name, err)
	}
	p.exited = make(chan struct{})
	go func(cmd *exec.Cmd, exited chan struct{}) { _ = cmd.Wait(); close(exited) }(p.cmd, p.exited)
}

func (p *Plane) awaitReady() {
	p.t.Helper()
	p.eventually(20*time.Second, "ready", func() error {
		select {
		case <-p.exited:
			p.t.Fatalf("%s ended at once", p.Name)
		default:
		}
		resp, err := http.Get(fmt.Sprintf("http://localhost:%d/ready", p.Diagnostics))
		if err != nil {
			return err
		}
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s", resp.Status)
		}
		return nil
	})
}

func (p *Plane) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatalf("signal %s: %v", p.Name, err)
	}
}

// Stop is a clean stop; it must not take longer than ten seconds.
func (p *Plane) Stop() {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(10 * time.Second):
		p.t.Errorf("%s did not stop within 10 s", p.Name)
		p.Kill()
	}
	p.cmd = nil
}

// Kill is kill -9.
func (p *Plane) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.exited
	p.cmd = nil
}

func (p *Plane) url(path string) string { return fmt.Sprintf("http://localhost:%d%s", p.HTTP, path) }

// Call makes a request and returns status and body.
func (p *Plane) Call(method, path, body string) (int, []byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, p.url(path), bytes.NewBufferString(body))
	if err != nil {
		return 0, nil, err
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, b, err
}

// Must makes a request that must be answered with one of the statuses.
func (p *Plane) Must(method, path, body string, want ...int) []byte {
	p.t.Helper()
	code, b, err := p.Call(method, path, body)
	if err != nil {
		p.t.Fatalf("%s: %s %s: %v", p.Name, method, path, err)
	}
	if slices.Contains(want, code) {
		return b
	}
	p.t.Fatalf("%s: %s %s: %d %s, want %v", p.Name, method, path, code, b, want)
	return nil
}

// Items returns a whole list by mesh/name, without the fields that only say when.
func (p *Plane) Items(path string) (map[string]map[string]any, error) {
	code, b, err := p.Call(http.MethodGet, path+"?size=0", "")
	if err != nil {
		return nil, err
	}
	if code != http.StatusOK {
		return nil, fmt.Errorf("GET %s: %d %s", path, code, b)
	}
	var page struct{ Items []map[string]any }
	if err := json.Unmarshal(b, &page); err != nil {
		return nil, err
	}
	out := make(map[string]map[string]any, len(page.Items))
	for _, item := range page.Items {
		mesh, _ := item["mesh"].(string)
		out[mesh+"/"+fmt.Sprint(item["name"])] = item
	}
	return out, nil
}

func (p *Plane) eventually(within time.Duration, what string, f func() error) {
	p.t.Helper()
	deadline := time.Now().Add(within)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("%s: not %s within %s: %v", p.Name, what, within, err)
		}
		time.Sleep(10 * time.Millisecond) // another process is awaited, which gives no sign
	}
}

// waitActive waits until /status/zones says so, and returns how long that took.
func (s *System) waitActive(zone string, active bool, within time.Duration) time.Duration {
	s.Global.t.Helper()
	began := time.Now()
	s.Global.eventually(within, fmt.Sprintf("%s active=%v", zone, active), func() error {
		got, err := s.active(zone)
		if err == nil && got != active {
			err = fmt.Errorf("active is %v", got)
		}
		return err
	})
	return time.Since(began)
}

func (s *System) active(zone string) (bool, error) {
	code, b, err := s.Global.Call(http.MethodGet, "/status/zones", "")
	if err != nil || code != http.StatusOK {
		return false, fmt.Errorf("%d %w", code, err)
	}
	var list []struct {
		Name   string
		Active bool
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return false, err
	}
	for _, z := range list {
		if z.Name == zone {
			return z.Active, nil
		}
	}
	return false, fmt.Errorf("%s is not listed", zone)
}

// metric sums the samples of a metric.
func (p *Plane) metric(name string) float64 {
	p.t.Helper()
	resp, err := http.Get(fmt.Sprintf("http://localhost:%d/metrics", p.Diagnostics))
	if err != nil {
		p.t.Fatalf("metrics of %s: %v", p.Name, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatalf("metrics of %s: %v", p.Name, err)
	}
	sum := 0.0
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, name+"{") || strings.HasPrefix(line, name+" ") {
			var v float64
			_, _ = fmt.Sscanf(line[strings.LastIndexByte(strings.TrimSpace(line), ' ')+1:], "%g", &v)
			sum += v
		}
	}
	return sum
}
