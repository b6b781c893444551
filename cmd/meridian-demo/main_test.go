package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// output is written by the demo and read by the test.
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

// The demo is the first thing a newcomer runs: it must work, end at Ctrl-C, and leave nothing behind.
func TestDemo(t *testing.T) {
	bin := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "build", "-o", bin+string(filepath.Separator), "../meridian-global", "../meridian-zone", ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	tests := []struct {
		name      string
		args      []string
		interrupt bool
	}{
		{"ends by itself where asked to", []string{"--once"}, false},
		{"ends at Ctrl-C", nil, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tmp := t.TempDir()
			var out output
			demo := exec.CommandContext(t.Context(), filepath.Join(bin, "meridian-demo"), tt.args...)
			// A setting of the user's own planes must not reach those of the demo.
			demo.Env = append(os.Environ(), "TMPDIR="+tmp, "MERIDIAN_STORE_TYPE=no-such-store")
			demo.Stdout, demo.Stderr = &out, &out
			if err := demo.Start(); err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- demo.Wait() }()
			deadline := time.After(90 * time.Second)
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			interrupted := false
			for ended := false; !ended; {
				select {
				case err := <-done:
					if err != nil {
						t.Fatalf("the demo failed: %v\n%s", err, out.String())
					}
					ended = true
				case <-tick.C:
					if tt.interrupt && !interrupted && strings.Contains(out.String(), "Ctrl-C stops all") {
						interrupted = true
						if err := demo.Process.Signal(syscall.SIGINT); err != nil {
							t.Fatal(err)
						}
					}
				case <-deadline:
					_ = demo.Process.Signal(syscall.SIGTERM)
					t.Fatalf("the demo takes too long:\n%s", out.String())
				}
			}
			for _, want := range []string{"zone-1.web-1", "zone-2.backend-1", "zone-2.ingress", "zone-1.egress", "allow-web", `"active": true`, "/zones+insights"} {
				if !strings.Contains(out.String(), want) {
					t.Errorf("%q is not in what the demo prints:\n%s", want, out.String())
				}
			}
			left, err := os.ReadDir(tmp)
			if err != nil {
				t.Fatal(err)
			}
			if len(left) > 0 {
				t.Errorf("the demo left %s behind", left[0].Name())
			}
		})
	}
}
