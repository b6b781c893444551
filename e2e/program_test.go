package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// process is a process beside the planes.
type process struct {
	t      testing.TB
	name   string
	log    string
	cmd    *exec.Cmd
	exited chan struct{}
}

// startProcess starts a process, which ends with the test. Its log is shown when the test fails.
func startProcess(t testing.TB, name, log string, cmd *exec.Cmd) *process {
	t.Helper()
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stderr = out
	if err := cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	p := &process{t: t, name: name, log: log, cmd: cmd, exited: make(chan struct{})}
	go func() { _ = cmd.Wait(); close(p.exited) }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-p.exited
		if t.Failed() {
			b, _ := os.ReadFile(log)
			t.Logf("log of %s:\n%s", name, tail(b))
		}
	})
	return p
}

// stop is a clean stop.
func (p *process) stop() {
	p.t.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(20 * time.Second):
		p.t.Fatalf("%s did not stop", p.name)
	}
}

// program is a gRPC program, and the agent by which it is in the mesh.
type program struct {
	t          testing.TB
	zone       *Plane
	mesh, name string
	dir        string
	port       int // of its inbound
	flags      []string
	agent, app *process

	// Of a client.
	in  *json.Encoder
	out *json.Decoder
}

// wait of tests for what happens in other processes. The machine may be slow.
const patience = 20 * time.Second

// joins makes a program with an inbound of these tags ("kuma.io/service: backend, version: v1") and starts its agent. The
// program itself is not started.
func (s *System) joins(t testing.TB, z *Plane, mesh, name, tags string) *program {
	t.Helper()
	dir, err := os.MkdirTemp("", "agent") //nolint:usetesting // the path of a socket must be short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	p := &program{t: t, zone: z, mesh: mesh, name: name, dir: dir, port: freePort(t)}
	token := s.Global.Must(http.MethodPost, "/tokens/dataplane", fmt.Sprintf(`{"mesh":%q,"name":%q}`, mesh, name), 200)
	p.write("token", string(token))
	p.write("dataplane.yaml", fmt.Sprintf(`type: Dataplane
mesh: %s
name: %s
networking:
  address: 127.0.0.1
  inbound:
    - port: %d
      tags: {kuma.io/protocol: grpc, meridian.io/proxyless: "true", %s}
`, mesh, name, p.port, tags))
	p.startAgent()
	return p
}

func (p *program) file(name string) string { return filepath.Join(p.dir, name) }

func (p *program) write(name, content string) {
	p.t.Helper()
	if err := os.WriteFile(p.file(name), []byte(content), 0o600); err != nil {
		p.t.Fatal(err)
	}
}

func (p *program) startAgent() {
	p.t.Helper()
	cmd := exec.Command(filepath.Join(bin, "meridian-agent"))
	cmd.Env = []string{
		"MERIDIAN_AGENT_CONTROL_PLANE=" + fmt.Sprint("https://localhost:", p.zone.Proxies),
		"MERIDIAN_AGENT_CA_FILE=" + filepath.Join(p.zone.Dir, "trust", "dp-ca.crt"),
		"MERIDIAN_AGENT_TOKEN_FILE=" + p.file("token"), "MERIDIAN_AGENT_DATAPLANE_FILE=" + p.file("dataplane.yaml"),
		"MERIDIAN_AGENT_DIR=" + p.file("grpc"), "MERIDIAN_DIAGNOSTICS_PORT=0",
	}
	p.agent = startProcess(p.t, "agent of "+p.name, p.file("agent.log"), cmd)
}

func (p *program) command(flags ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(bin, "grpcapp"), flags...)
	cmd.Env = []string{"GRPC_XDS_BOOTSTRAP=" + p.file("grpc/grpc-bootstrap.json"), "GRPC_GO_LOG_SEVERITY_LEVEL=warning"}
	return cmd
}

// bootstrapped waits until the agent has written what a program starts with.
func (p *program) bootstrapped() {
	p.t.Helper()
	p.zone.eventually(patience, "given "+p.name+" a bootstrap file", func() error {
		_, err := os.Stat(p.file("grpc/grpc-bootstrap.json"))
		return err
	})
}

// startServer starts the program as a server at its inbound, which waits until it may serve.
func (p *program) startServer(flags ...string) {
	p.t.Helper()
	p.bootstrapped()
	flags = append([]string{"--name", p.name, "--listen", fmt.Sprint("127.0.0.1:", p.port)}, flags...)
	p.app = startProcess(p.t, p.name, p.file("app.log"), p.command(flags...))
}

// startClient starts the program as a client that waits to be told what to call.
func (p *program) startClient() {
	p.t.Helper()
	p.bootstrapped()
	cmd := p.command()
	in, err := cmd.StdinPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	p.app = startProcess(p.t, p.name, p.file("app.log"), cmd)
	p.in, p.out = json.NewEncoder(in), json.NewDecoder(out)
}

// calls is what a client makes; see the command of grpcapp.
type calls struct {
	Target      string
	Calls       int               `json:",omitempty"`
	Concurrency int               `json:",omitempty"`
	Pause       string            `json:",omitempty"`
	Reconnect   string            `json:",omitempty"`
	Timeout     string            `json:",omitempty"`
	Metadata    map[string]string `json:",omitempty"`
}

// outcome is what became of calls.
type outcome struct {
	Calls            int
	Codes, Instances map[string]int
	Connections      int
	Fastest, Slowest string
	Errors           map[string]int
}

func (o outcome) fastest() time.Duration { d, _ := time.ParseDuration(o.Fastest); return d }
func (o outcome) slowest() time.Duration { d, _ := time.ParseDuration(o.Slowest); return d }

// all is an error unless every call had that code.
func (o outcome) all(code string) error {
	if o.Calls == 0 || o.Codes[code] != o.Calls {
		return fmt.Errorf("not all are %s: %+v", code, o)
	}
	return nil
}

// makes lets a client make calls, and returns when all are made.
func (p *program) makes(c calls) outcome {
	p.t.Helper()
	if c.Calls == 0 {
		p.t.Fatal("calls without end")
	}
	p.tell(c)
	return p.outcome()
}

// begins lets a client make calls until ends.
func (p *program) begins(c calls) {
	p.t.Helper()
	c.Calls = 0
	p.tell(c)
}

// ends ends the calls that begins began.
func (p *program) ends() outcome {
	p.t.Helper()
	p.tell(calls{})
	return p.outcome()
}

func (p *program) tell(c calls) {
	p.t.Helper()
	if err := p.in.Encode(c); err != nil {
		p.t.Fatalf("tell %s: %v", p.name, err)
	}
}

func (p *program) outcome() outcome {
	p.t.Helper()
	var o outcome
	if err := p.out.Decode(&o); err != nil {
		p.t.Fatalf("%s did not answer: %v", p.name, err)
	}
	return o
}

// reaches waits until ten calls in a row have the code, and returns how long it took.
func (p *program) reaches(target, code string, within time.Duration) time.Duration {
	p.t.Helper()
	began := time.Now()
	p.zone.eventually(within, fmt.Sprintf("answering %s on %s with %s", p.name, target, code), func() error {
		return p.makes(calls{Target: target, Calls: 10, Timeout: "5s"}).all(code)
	})
	return time.Since(began)
}

// mtls is the mTLS section of the program's insight.
func (p *program) mtls() (issued string, supported []string, err error) {
	code, b, err := p.zone.Call(http.MethodGet, fmt.Sprintf("/meshes/%s/dataplane-insights/%s", p.mesh, p.name), "")
	if err != nil || code != http.StatusOK {
		return "", nil, fmt.Errorf("insight of %s: %d %w", p.name, code, err)
	}
	var insight struct {
		MTLS struct {
			IssuedBackend     string
			SupportedBackends []string
		}
	}
	err = json.Unmarshal(b, &insight)
	return insight.MTLS.IssuedBackend, insight.MTLS.SupportedBackends, err
}

// policy puts a policy of mesh on the global.
func (s *System) policy(mesh, path, body string) {
	s.Global.t.Helper()
	s.Global.Must(http.MethodPut, "/meshes/"+mesh+"/"+path, body, 200, 201)
}

// legacyPolicy is a policy from service to service, in which "*" is any.
func legacyPolicy(typ, mesh, name, from, to, conf string) string {
	b := &strings.Builder{}
	fmt.Fprintf(b, `{"type":%q,"mesh":%q,"name":%q,"sources":[{"match":{"kuma.io/service":%q}}],"destinations":[{"match":{"kuma.io/service":%q}}]`,
		typ, mesh, name, from, to)
	if conf != "" {
		_, _ = io.WriteString(b, `,"conf":`+conf)
	}
	return b.String() + "}"
}
