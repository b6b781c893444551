package diagnostics_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/meridian-mesh/meridian/common/diagnostics"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestServer(t *testing.T) {
	var notReady atomic.Pointer[error]
	start := func(t *testing.T, pprof bool) string {
		t.Helper()
		reg := prometheus.NewRegistry()
		reg.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "meridian_test"}, func() float64 { return 42 }))
		s, err := diagnostics.New(diagnostics.Options{
			Config: diagnostics.Config{BindAddress: "127.0.0.1", Pprof: pprof},
			Ready: func() error {
				if err := notReady.Load(); err != nil {
					return *err
				}
				return nil
			},
			Gatherer: reg,
			Log:      slog.New(slog.NewTextHandler(t.Output(), nil)),
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("Run returned %v after its context ended", err)
			}
			http.DefaultClient.CloseIdleConnections()
		})
		return "http://127.0.0.1:" + strconv.Itoa(s.Port())
	}
	loading := errors.New("the store is loading")

	tests := []struct {
		name     string
		path     string
		notReady error
		pprof    bool
		status   int
		body     string // all of it, or a part where contains is set
		contains bool
	}{
		{name: "a running process is healthy", path: "/healthy", notReady: loading, status: 200},
		{name: "a plane that can work is ready", path: "/ready", status: 200},
		{name: "a plane that cannot work says why", path: "/ready", notReady: loading, status: 503, body: "the store is loading\n"},
		{name: "metrics are those of the registry", path: "/metrics", status: 200, body: "meridian_test 42\n", contains: true},
		{name: "profiles are off unless asked for", path: "/debug/pprof/", status: 404, body: "404 page not found\n"},
		{name: "profiles can be switched on", path: "/debug/pprof/cmdline", pprof: true, status: 200, contains: true},
		{name: "anything else is not found", path: "/", status: 404, body: "404 page not found\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			base := start(t, tt.pprof)
			notReady.Store(nil)
			if tt.notReady != nil {
				notReady.Store(&tt.notReady)
			}
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+tt.path, nil)
			if err != nil {
				t.Fatal(err)
			}
			res, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			body, err := io.ReadAll(res.Body)
			if err != nil {
				t.Fatal(err)
			}
			if res.StatusCode != tt.status {
				t.Errorf("status is %d, want %d", res.StatusCode, tt.status)
			}
			if tt.contains {
				if !strings.Contains(string(body), tt.body) {
					t.Errorf("%q does not contain %q", body, tt.body)
				}
			} else if diff := cmp.Diff(tt.body, string(body)); diff != "" {
				t.Errorf("body (-want +got):\n%s", diff)
			}
		})
	}
}

func TestNewSaysWhatIsWrong(t *testing.T) {
	taken, err := diagnostics.New(valid())
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	tests := []struct {
		name   string
		change func(*diagnostics.Options)
		want   string
	}{
		{"a port out of range and a bad address are both named", func(o *diagnostics.Options) { o.Port, o.BindAddress = 70000, "nowhere" }, "diagnostics: port: 70000 is not in 0-65535\nbindAddress: \"nowhere\" is not an IP address"},
		{"a port in use", func(o *diagnostics.Options) { o.Port = taken.Port() }, "address already in use"},
		{"a missing gatherer", func(o *diagnostics.Options) { o.Gatherer = nil }, "Gatherer"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := valid()
			tt.change(&o)
			s, err := diagnostics.New(o)
			if err == nil {
				s.Close()
				t.Fatal("New succeeded")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %q, want %q in it", err, tt.want)
			}
		})
	}
}

func valid() diagnostics.Options {
	return diagnostics.Options{
		Config:   diagnostics.Config{BindAddress: "127.0.0.1"},
		Ready:    func() error { return nil },
		Gatherer: prometheus.NewRegistry(),
		Log:      slog.New(slog.DiscardHandler),
	}
}
