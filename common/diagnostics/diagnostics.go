// Package diagnostics serves what tells whether a plane is well, on a port of its own: probes and scrapes go on when
// the API is overloaded, and need no rights there.
package diagnostics

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
)

// Config is the section diagnostics.
type Config struct {
	BindAddress string `yaml:"bindAddress" env:"MERIDIAN_DIAGNOSTICS_BIND_ADDRESS" doc:"IP address the listener binds; empty means all interfaces"`
	Port        int    `yaml:"port" env:"MERIDIAN_DIAGNOSTICS_PORT" doc:"port of /ready, /healthy and /metrics, 0-65535; 0 takes any free port"`
	Pprof       bool   `yaml:"pprof" env:"MERIDIAN_DIAGNOSTICS_PPROF" doc:"serve Go profiles under /debug/pprof/, to anyone who can reach the port"`
}

// Default returns the documented defaults.
func Default() Config { return Config{Port: 5680} }

// Validate returns every problem of c, each starting with the field's name in the file.
func (c Config) Validate() []error {
	var errs []error
	if c.Port < 0 || c.Port > 65535 {
		errs = append(errs, fmt.Errorf("port: %d is not in 0-65535", c.Port))
	}
	if c.BindAddress != "" && net.ParseIP(c.BindAddress) == nil {
		errs = append(errs, fmt.Errorf("bindAddress: %q is not an IP address", c.BindAddress))
	}
	return errs
}

// Options is what a [Server] needs.
type Options struct {
	Config
	// Ready says why the plane cannot do its work, or nil when it can. It is called for every probe, from any
	// goroutine, and must be quick. Its text is shown to whoever asks.
	Ready func() error
	// Gatherer is served at /metrics.
	Gatherer prometheus.Gatherer
	Log      *slog.Logger
}

// Server answers /healthy (200 while the process runs), /ready (200, or 503 with the reason), /metrics and, when
// switched on, /debug/pprof/.
type Server struct {
	ln   net.Listener
	http http.Server
	log  *slog.Logger
}

// New binds the listener, so that the port is known before anything is served. Who does not call Run calls Close.
func New(o Options) (*Server, error) {
	if err := errors.Join(o.Validate()...); err != nil {
		return nil, fmt.Errorf("diagnostics: %w", err)
	}
	if o.Ready == nil || o.Gatherer == nil || o.Log == nil {
		return nil, errors.New("diagnostics: Ready, Gatherer and Log must be set")
	}
	ln, err := net.Listen("tcp", net.JoinHostPort(o.BindAddress, strconv.Itoa(o.Port))) //nolint:noctx // binding does not block
	if err != nil {
		return nil, fmt.Errorf("diagnostics: %w", err)
	}
	s := &Server{ln: ln, log: o.Log.With("component", "diagnostics")}
	s.http = http.Server{
		Handler:           handler(o, s.log),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       5 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

func handler(o Options, log *slog.Logger) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthy", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusOK) })
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		if err := o.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		w.WriteHeader(http.StatusOK)
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(o.Gatherer, promhttp.HandlerOpts{
		ErrorLog:      slog.NewLogLogger(log.Handler(), slog.LevelError),
		ErrorHandling: promhttp.ContinueOnError,
		Timeout:       10 * time.Second,
	}))
	if o.Pprof {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("POST /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return mux
}

// Port is the port that was bound.
func (s *Server) Port() int { return s.Addr().(*net.TCPAddr).Port }

// Addr is the address that was bound.
func (s *Server) Addr() net.Addr { return s.ln.Addr() }

// Close frees the port of a server that was never run.
func (s *Server) Close() error { return s.ln.Close() }

// Run serves until ctx ends. Requests in flight get a second to finish; then it returns nil.
func (s *Server) Run(ctx context.Context) error {
	s.log.InfoContext(ctx, "diagnostics served", "address", s.Addr().String())
	g, serving := errgroup.WithContext(ctx)
	g.Go(func() error {
		if err := s.http.Serve(s.ln); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve diagnostics: %w", err)
		}
		return nil
	})
	g.Go(func() error {
		<-serving.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if err := s.http.Shutdown(grace); err != nil {
			return s.http.Close() // a profile may run for minutes: nobody waits for it
		}
		return nil
	})
	return g.Wait()
}
