package launch

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/meridian-mesh/meridian/common/diagnostics"
	"github.com/meridian-mesh/meridian/common/logging"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type settings struct {
	Name        string             `yaml:"name" env:"MERIDIAN_ZONE_NAME" doc:"any name, and there must be one"`
	Log         logging.Config     `yaml:"log"`
	Diagnostics diagnostics.Config `yaml:"diagnostics"`
}

func (s settings) Validate() []error {
	if s.Name == "" {
		return []error{errors.New("name: must be set")}
	}
	return nil
}

// planeFunc is a plane in two functions.
type planeFunc struct {
	run   func(context.Context) error
	close func() error
}

func (p planeFunc) Run(ctx context.Context) error { return p.run(ctx) }
func (p planeFunc) Close() error                  { return p.close() }

func untilDone(ctx context.Context) error { <-ctx.Done(); return nil }

// output is written by the plane's goroutine and read by the test.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

func TestMainFunction(t *testing.T) {
	broken := errors.New("broken")
	tests := []struct {
		name    string
		args    []string
		environ []string
		signals []os.Signal
		start   error
		run     func(context.Context) error
		close   error
		code    int
		stdout  string // part of it
		stderr  string // part of it
		closed  bool
	}{
		{name: "help is printed", args: []string{"--help"}, code: ExitOK, stdout: "MERIDIAN_ZONE_NAME"},
		{name: "the version is printed", args: []string{"--version"}, code: ExitOK, stdout: "meridian-test "},
		{
			name: "a wrong configuration is explained", args: []string{"--log-level=loud"}, code: ExitUsage,
			stderr: "log.level: \"loud\" is not debug, info, warn or error\n  - name: must be set\nSee meridian-test --help.",
		},
		{
			name: "a signal ends it cleanly", environ: named, signals: []os.Signal{syscall.SIGTERM}, run: untilDone,
			code: ExitOK, stderr: "msg=stopped", closed: true,
		},
		{
			name: "a second signal ends it at once", environ: named, signals: []os.Signal{syscall.SIGTERM, os.Interrupt}, run: stuck(t),
			code: ExitKilled, stderr: "stopped before the shutdown was finished",
		},
		{
			name: "a shutdown has a limit", environ: named, signals: []os.Signal{os.Interrupt}, run: stuck(t),
			code: ExitKilled, stderr: "shutdown took too long",
		},
		{name: "a failure to start is reported", environ: named, start: broken, code: ExitFailed, stderr: `err="start: broken"`},
		{
			name: "a signal while starting is no failure", environ: named, start: context.Canceled, signals: []os.Signal{syscall.SIGTERM},
			code: ExitOK, stderr: "msg=stopped",
		},
		{
			name: "a plane that fails is closed and reported", environ: named, run: func(context.Context) error { return broken },
			code: ExitFailed, stderr: `err=broken`, closed: true,
		},
		{
			name: "a failure to close is reported", environ: named, signals: []os.Signal{syscall.SIGTERM}, run: untilDone, close: broken,
			code: ExitFailed, stderr: `err="close: broken"`, closed: true,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var stdout, stderr output
			closed := false
			signals := make(chan os.Signal, len(tt.signals))
			for _, s := range tt.signals {
				signals <- s
			}
			p := Program[settings]{
				Name: "meridian-test", Summary: "A program for tests.",
				Defaults:    settings{Log: logging.Default(), Diagnostics: diagnostics.Default()},
				Log:         func(s settings) logging.Config { return s.Log },
				Diagnostics: func(s settings) diagnostics.Config { return s.Diagnostics },
				Start: func(ctx context.Context, s settings, _ *slog.Logger) (Plane, error) {
					if s.Name != "zone-1" {
						t.Errorf("started with name %q", s.Name)
					}
					if errors.Is(tt.start, context.Canceled) {
						<-ctx.Done()
						return nil, ctx.Err()
					}
					return planeFunc{tt.run, func() error { closed = true; return tt.close }}, tt.start
				},
				Args: tt.args, Environ: tt.environ, Stdout: &stdout, Stderr: &stderr, Signals: signals,
				shutdownLimit: 50 * time.Millisecond,
			}
			if code := p.Main(); code != tt.code {
				t.Errorf("exit code is %d, want %d; stderr:\n%s", code, tt.code, stderr.String())
			}
			if !strings.Contains(stdout.String(), tt.stdout) {
				t.Errorf("stdout is %q, want %q in it", stdout.String(), tt.stdout)
			}
			if !strings.Contains(stderr.String(), tt.stderr) {
				t.Errorf("stderr is %q, want %q in it", stderr.String(), tt.stderr)
			}
			if tt.code != ExitKilled && closed != tt.closed {
				t.Errorf("plane closed: %t, want %t", closed, tt.closed)
			}
		})
	}
}

var named = []string{"MERIDIAN_ZONE_NAME=zone-1"}

// stuck is a plane that does not stop before the test ends.
func stuck(t *testing.T) func(context.Context) error {
	t.Helper()
	end := make(chan struct{})
	t.Cleanup(func() { close(end) }) // goleak waits for the plane
	return func(ctx context.Context) error {
		<-ctx.Done()
		<-end
		return nil
	}
}

func TestHealth(t *testing.T) {
	var status int
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/ready" {
			t.Errorf("asked for %s", r.URL.Path)
		}
		w.WriteHeader(status)
		_, _ = w.Write([]byte("loading"))
	}))
	t.Cleanup(server.Close)
	port := server.Listener.Addr().(*net.TCPAddr).Port
	unused, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	free := unused.Addr().(*net.TCPAddr).Port
	if err := unused.Close(); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		status int
		port   int
		code   int
		output string
	}{
		// None of these gives the name that serving needs: health must do without.
		{"a plane that is ready", http.StatusOK, port, ExitOK, "ready\n"},
		{"a plane that is not ready", http.StatusServiceUnavailable, port, ExitFailed, "not ready: 503 Service Unavailable: loading\n"},
		{"no plane at all", 0, free, ExitFailed, "connection refused"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			status = tt.status
			var out output
			p := Program[settings]{
				Defaults:    settings{Log: logging.Default(), Diagnostics: diagnostics.Default()},
				Diagnostics: func(s settings) diagnostics.Config { return s.Diagnostics },
				Args:        []string{"health"}, Environ: []string{"MERIDIAN_DIAGNOSTICS_PORT=" + strconv.Itoa(tt.port)},
				Stdout: &out, Stderr: &out,
			}
			if code := p.Main(); code != tt.code {
				t.Errorf("exit code is %d, want %d", code, tt.code)
			}
			if !strings.Contains(out.String(), tt.output) {
				t.Errorf("output is %q, want %q in it", out.String(), tt.output)
			}
		})
	}
}
