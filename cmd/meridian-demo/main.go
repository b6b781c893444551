// Command meridian-demo shows Meridian at work on this machine: it starts a global and two zones as processes with
// stores of their own in a temporary directory, applies the resources embedded here, waits until each has arrived on
// the other side, prints what each side sees, and stays up until Ctrl-C.
package main

import (
	"bytes"
	"context"
	"embed"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/meridian-mesh/meridian/api/resource"
)

//go:embed resources
var resources embed.FS

// readyWithin bounds each wait of the demo.
const readyWithin = 30 * time.Second

func main() {
	once := flag.Bool("once", false, "exit after showing what each side sees")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *once); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, "meridian-demo:", err)
		os.Exit(1)
	}
}

// plane is one control plane process.
type plane struct {
	name    string
	dir     string
	ports   map[string]int
	cmd     *exec.Cmd
	exited  chan struct{}
	waitErr error // set before exited is closed
}

func (p *plane) url(path string) string {
	return fmt.Sprintf("http://localhost:%d%s", p.ports["http"], path)
}

func run(ctx context.Context, once bool) (err error) {
	bin, err := binaries()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "meridian-demo-")
	if err != nil {
		return fmt.Errorf("make a directory for the data: %w", err)
	}
	defer func() {
		if err == nil || errors.Is(err, context.Canceled) {
			_ = os.RemoveAll(dir)
		} else {
			fmt.Fprintln(os.Stderr, "logs and data are kept in", dir)
		}
	}()
	var planes []*plane
	defer func() {
		for _, p := range planes {
			p.stop()
		}
	}()
	start := func(program, name string, ports map[string]int, env ...string) (*plane, error) {
		p := &plane{name: name, dir: filepath.Join(dir, name), ports: ports, exited: make(chan struct{})}
		if err := p.start(filepath.Join(bin, program), env); err != nil {
			return nil, err
		}
		planes = append(planes, p)
		return p, nil
	}
	ports, err := pickPorts()
	if err != nil {
		return err
	}
	fmt.Println("starting a global and two zones ...")
	global, err := start("meridian-global", "global", ports[0], fmt.Sprint("MERIDIAN_KDS_PORT=", ports[0]["kds"]))
	if err != nil {
		return err
	}
	if err := global.ready(ctx); err != nil {
		return err
	}
	for i, name := range []string{"zone-1", "zone-2"} {
		token := filepath.Join(dir, name, "zone-token")
		if err := mint(ctx, bin, global, name, token); err != nil {
			return err
		}
		if _, err := start("meridian-zone", name, ports[i+1],
			"MERIDIAN_ZONE_NAME="+name,
			"MERIDIAN_ZONE_TOKEN_FILE="+token,
			fmt.Sprintf("MERIDIAN_ZONE_GLOBAL_ADDRESS=grpcs://localhost:%d", ports[0]["kds"]),
			"MERIDIAN_ZONE_KDS_CA_FILE="+filepath.Join(global.dir, "trust", "kds-ca.crt")); err != nil {
			return err
		}
	}
	zones := planes[1:]
	for _, z := range zones {
		if err := z.ready(ctx); err != nil {
			return err
		}
	}
	if err := replicate(ctx, global, zones); err != nil {
		return err
	}
	if err := show(ctx, global, zones); err != nil || once {
		return err
	}
	fmt.Println("\nCtrl-C stops all and removes the data.")
	for {
		select {
		case <-ctx.Done():
			fmt.Println("\nstopping ...")
			return nil
		case <-global.exited:
			return fmt.Errorf("the global ended: %w", global.waitErr)
		case <-zones[0].exited:
			return fmt.Errorf("%s ended: %w", zones[0].name, zones[0].waitErr)
		case <-zones[1].exited:
			return fmt.Errorf("%s ended: %w", zones[1].name, zones[1].waitErr)
		}
	}
}

// mint has the global make the token by which a zone proves who it is, as an operator would.
func mint(ctx context.Context, bin string, global *plane, zone, file string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(bin, "meridian-global"), "token", "zone", "--name", zone, "--out", file)
	cmd.Env = global.cmd.Env
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("make the token of %s: %w: %s", zone, err, out)
	}
	return nil
}

// binaries is where the control planes are: beside this program, where `make build` puts all three.
func binaries() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	dir := filepath.Dir(self)
	for _, name := range []string{"meridian-global", "meridian-zone"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			return "", fmt.Errorf("%s must be beside this program; use `make demo`: %w", name, err)
		}
	}
	return dir, nil
}

// pickPorts takes the documented ports for the global, and for the zones the same with 10000 and 20000 added, where all
// of them are free; else any free ones.
func pickPorts() ([3]map[string]int, error) {
	var out [3]map[string]int
	free := true
	for i := range out {
		base := 10000 * i
		out[i] = map[string]int{"http": 5681 + base, "https": 5682 + base, "diagnostics": 5680 + base}
		if i == 0 {
			out[i]["kds"] = 5685
		} else {
			out[i]["proxies"], out[i]["mads"] = 5678+base, 5676+base
		}
		for _, port := range out[i] {
			free = free && isFree(port)
		}
	}
	if free {
		return out, nil
	}
	for i := range out {
		for name := range out[i] {
			l, err := net.Listen("tcp", ":0") //nolint:noctx // it is closed again at once
			if err != nil {
				return out, fmt.Errorf("find a free port: %w", err)
			}
			defer l.Close() // kept open until all are chosen, so that none is taken twice
			out[i][name] = l.Addr().(*net.TCPAddr).Port
		}
	}
	return out, nil
}

func isFree(port int) bool {
	l, err := net.Listen("tcp", fmt.Sprint(":", port)) //nolint:noctx // it is closed again at once
	if err != nil {
		return false
	}
	return l.Close() == nil
}

func (p *plane) start(program string, env []string) error {
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return fmt.Errorf("make data directory: %w", err)
	}
	log, err := os.Create(filepath.Join(p.dir, "log"))
	if err != nil {
		return fmt.Errorf("make log file: %w", err)
	}
	defer log.Close()             //nolint:errcheck // the child has its own descriptor
	p.cmd = exec.Command(program) //nolint:noctx // stopped by signal, not killed by a context
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the demo, which stops them in order
	p.cmd.Env = append(clean(os.Environ()),
		"MERIDIAN_DATA_DIR="+p.dir,
		fmt.Sprint("MERIDIAN_API_HTTP_PORT=", p.ports["http"]),
		fmt.Sprint("MERIDIAN_API_HTTPS_PORT=", p.ports["https"]),
		fmt.Sprint("MERIDIAN_DIAGNOSTICS_PORT=", p.ports["diagnostics"]))
	if p.ports["proxies"] != 0 {
		p.cmd.Env = append(p.cmd.Env,
			fmt.Sprint("MERIDIAN_DP_PORT=", p.ports["proxies"]), fmt.Sprint("MERIDIAN_MADS_PORT=", p.ports["mads"]))
	}
	p.cmd.Env = append(p.cmd.Env, env...)
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	go func() {
		p.waitErr = p.cmd.Wait()
		close(p.exited)
	}()
	return nil
}

// clean drops settings of other control planes from the environment.
func clean(env []string) []string {
	var out []string
	for _, kv := range env {
		if !strings.HasPrefix(kv, "MERIDIAN_") {
			out = append(out, kv)
		}
	}
	return out
}

// stop ends the process the way an operator would, and waits for it.
func (p *plane) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	timer := time.NewTimer(12 * time.Second)
	defer timer.Stop()
	select {
	case <-p.exited:
	case <-timer.C:
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
}

func (p *plane) ready(ctx context.Context) error {
	return eventually(ctx, p.name+" is ready", func() error {
		select {
		case <-p.exited:
			log, _ := os.ReadFile(filepath.Join(p.dir, "log"))
			return stopError{fmt.Errorf("%s ended: %w\n%s", p.name, p.waitErr, log)}
		default:
		}
		_, err := get(ctx, fmt.Sprintf("http://localhost:%d/ready", p.ports["diagnostics"]))
		return err
	})
}

// stopError ends a wait before its time.
type stopError struct{ error }

// eventually tries f until it succeeds or time is up.
func eventually(ctx context.Context, what string, f func() error) error {
	ctx, cancel := context.WithTimeout(ctx, readyWithin)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		var end stopError
		if err == nil || errors.As(err, &end) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting until %s: %w (last: %w)", what, context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

func get(ctx context.Context, url string) ([]byte, error) { return call(ctx, http.MethodGet, url, nil) }

func call(ctx context.Context, method, url string, body []byte) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("make request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/yaml")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", url, err)
	}
	if resp.StatusCode >= 300 {
		return nil, fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, answer)
	}
	return answer, nil
}

// replicate applies the resources and waits until each is on the other side.
func replicate(ctx context.Context, global *plane, zones []*plane) error {
	began := time.Now()
	paths, err := apply(ctx, global, "resources/global")
	if err != nil {
		return err
	}
	for _, z := range zones {
		for _, path := range paths {
			if err := eventually(ctx, z.name+" has "+path, func() error { _, err := get(ctx, z.url(path)); return err }); err != nil {
				return err
			}
		}
	}
	fmt.Printf("applied %d resources on the global; both zones have them after %s\n", len(paths), time.Since(began).Round(time.Millisecond))
	for _, z := range zones {
		began := time.Now()
		paths, err := apply(ctx, z, "resources/zone")
		if err != nil {
			return err
		}
		for _, path := range paths {
			i := strings.LastIndexByte(path, '/') + 1
			path = path[:i] + z.name + "." + path[i:]
			if err := eventually(ctx, "the global has "+path, func() error { _, err := get(ctx, global.url(path)); return err }); err != nil {
				return err
			}
		}
		fmt.Printf("applied %d resources on %s; the global has them after %s\n", len(paths), z.name, time.Since(began).Round(time.Millisecond))
	}
	return eventually(ctx, "zones see each other's ingress", func() error {
		_, err1 := get(ctx, zones[0].url("/zone-ingresses/"+zones[1].name+".ingress"))
		_, err2 := get(ctx, zones[1].url("/zone-ingresses/"+zones[0].name+".ingress"))
		return errors.Join(err1, err2)
	})
}

// apply puts every file of dir, in order, and returns their paths.
func apply(ctx context.Context, p *plane, dir string) ([]string, error) {
	files, err := fs.ReadDir(resources, dir)
	if err != nil {
		return nil, fmt.Errorf("list resources: %w", err)
	}
	var paths []string
	for _, f := range files {
		body, err := resources.ReadFile(dir + "/" + f.Name())
		if err != nil {
			return nil, fmt.Errorf("read resource: %w", err)
		}
		var meta struct{ Type, Mesh, Name string }
		if err := yaml.Unmarshal(body, &meta); err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name(), err)
		}
		d, ok := resource.Lookup(resource.Type(meta.Type))
		if !ok {
			return nil, fmt.Errorf("%s: unknown type %q", f.Name(), meta.Type)
		}
		path := "/" + d.Path + "/" + meta.Name
		if d.Scope == resource.ScopeMesh {
			path = "/meshes/" + meta.Mesh + path
			// A zone takes a proxy only into a mesh it knows.
			if err := eventually(ctx, p.name+" has mesh "+meta.Mesh, func() error { _, err := get(ctx, p.url("/meshes/"+meta.Mesh)); return err }); err != nil {
				return nil, err
			}
		}
		if _, err := call(ctx, http.MethodPut, p.url(path), body); err != nil {
			return nil, err
		}
		paths = append(paths, path)
	}
	return paths, nil
}

// show prints what each side sees.
func show(ctx context.Context, global *plane, zones []*plane) error {
	fmt.Println("\nWhat each side sees:")
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "  RESOURCE\tGLOBAL\t"+strings.ToUpper(zones[0].name)+"\t"+strings.ToUpper(zones[1].name))
	planes := append([]*plane{global}, zones...)
	for _, path := range []string{"meshes", "traffic-permissions", "traffic-routes", "timeouts", "meshtrafficpermissions", "external-services", "dataplanes", "zone-ingresses", "zoneegresses"} {
		row := []string{"  " + path}
		for _, p := range planes {
			names, err := list(ctx, p.url("/"+path))
			if err != nil {
				return err
			}
			row = append(row, strings.Join(names, ", "))
		}
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	status, err := get(ctx, global.url("/status/zones"))
	if err != nil {
		return err
	}
	fmt.Printf("\nGET /status/zones on the global:\n%s\nTry:\n", status)
	fmt.Printf("  curl %s\n  curl %s\n  curl %s\n", global.url("/zones+insights"), global.url("/dataplanes+insights"), zones[0].url("/meshes/shop/traffic-routes"))
	for _, p := range planes {
		fmt.Printf("  %-7s http://localhost:%d  https://localhost:%d  metrics http://localhost:%d/metrics  log %s\n",
			p.name, p.ports["http"], p.ports["https"], p.ports["diagnostics"], filepath.Join(p.dir, "log"))
	}
	return nil
}

func list(ctx context.Context, url string) ([]string, error) {
	body, err := get(ctx, url)
	if err != nil {
		return nil, err
	}
	var page struct {
		Items []struct{ Name string }
	}
	if err := json.Unmarshal(body, &page); err != nil {
		return nil, fmt.Errorf("%s: %w", url, err)
	}
	names := make([]string, len(page.Items))
	for i, item := range page.Items {
		names[i] = item.Name
	}
	return names, nil
}
