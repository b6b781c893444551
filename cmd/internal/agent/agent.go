// Package agent joins a gRPC program to a mesh without a proxy beside it. gRPC libraries speak xDS themselves; what they lack
// is a registration, a certificate, and a way to present a token. The agent adds these: it registers the program's Dataplane
// and keeps it registered while it runs, keeps the certificate and the mesh's authorities in files which it replaces as a
// whole, and passes the program's own xDS streams on to the control plane through a local socket, with the token.
//
// No traffic of the program goes through the agent.
package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/meridian-mesh/meridian/common/component"
	"github.com/meridian-mesh/meridian/common/diagnostics"
	"github.com/meridian-mesh/meridian/common/tlsconf"
)

// Agent is an agent with its socket bound and its files written.
type Agent struct {
	cfg         Config
	log         *slog.Logger
	self        *self
	files       files
	conn        *grpc.ClientConn
	socket      net.Listener
	diagnostics *diagnostics.Server

	// registered is closed once the control plane has answered the agent: from then on it knows the program.
	registered chan struct{}
	failure    atomic.Pointer[error] // of the latest stream, nil while one is open
}

// New writes the program's gRPC bootstrap file and binds the socket. It does not need the control plane. The caller closes
// what it returns, after Run if that was called.
func New(_ context.Context, cfg Config, log *slog.Logger) (_ *Agent, err error) {
	if err := errors.Join(cfg.Validate()...); err != nil {
		return nil, err
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("dir: %w", err)
	}
	cfg.Dir = dir
	a := &Agent{cfg: cfg, files: files{dir}, registered: make(chan struct{})}
	defer func() {
		if err != nil {
			_ = a.Close()
		}
	}()
	notYet := errors.New("the control plane has not answered yet")
	a.failure.Store(&notYet)
	if a.self, err = newSelf(cfg); err != nil {
		return nil, err
	}
	a.log = log.With("component", "agent", "mesh", a.self.mesh, "name", a.self.name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("dir: %w", err)
	}
	if a.conn, err = a.dial(); err != nil {
		return nil, err
	}
	if a.socket, err = a.files.listen(); err != nil {
		return nil, err
	}
	if err := a.files.writeBootstrap(a.self); err != nil {
		return nil, err
	}
	a.diagnostics, err = diagnostics.New(diagnostics.Options{
		Config: cfg.Diagnostics, Gatherer: prometheus.NewRegistry(), Log: log,
		Ready: func() error {
			if failed := a.failure.Load(); failed != nil {
				return *failed
			}
			return nil
		},
	})
	if err != nil {
		return nil, err
	}
	return a, nil
}

func (a *Agent) dial() (*grpc.ClientConn, error) {
	u, err := target(a.cfg.ControlPlane)
	if err != nil {
		return nil, fmt.Errorf("controlPlane: %w", err)
	}
	tlsCfg, err := tlsconf.ClientConfig{ServerName: u.Hostname(), CAFile: a.cfg.CAFile}.TLS()
	if err != nil {
		return nil, fmt.Errorf("prepare TLS: %w", err)
	}
	conn, err := grpc.NewClient(u.Host,
		grpc.WithTransportCredentials(credentials.NewTLS(tlsCfg)),
		grpc.WithPerRPCCredentials(token{a.cfg.TokenFile}),
		// The control plane allows a ping each 15 s.
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 20 * time.Second, Timeout: 20 * time.Second}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 250 * time.Millisecond, Multiplier: 1.6, Jitter: 0.3, MaxDelay: maxRetry},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithIdleTimeout(0),
	)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", u.Host, err)
	}
	return conn, nil
}

// maxRetry is the longest wait before the agent tries again.
const maxRetry = 5 * time.Second

// Run serves until ctx ends or a part fails.
func (a *Agent) Run(ctx context.Context) error {
	a.log.InfoContext(ctx, "agent is running", "control_plane", a.cfg.ControlPlane, "bootstrap", a.files.bootstrap(),
		"diagnostics", a.diagnostics.Addr().String())
	return component.Run(ctx,
		component.Component{Name: "diagnostics", Run: a.diagnostics.Run},
		component.Component{Name: "identity", Run: a.keepIdentity}, // registration, certificate, authorities
		component.Component{Name: "relay", Run: a.relay},           // the program's xDS streams
	)
}

// Close releases what New opened.
func (a *Agent) Close() error {
	if a.diagnostics != nil {
		_ = a.diagnostics.Close()
	}
	if a.socket != nil {
		_ = a.socket.Close() // and the file of the socket
	}
	if a.conn != nil {
		_ = a.conn.Close()
	}
	return nil
}

// token puts the token into every call.
type token struct{ file string }

// GetRequestMetadata implements [credentials.PerRPCCredentials].
func (t token) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	if t.file == "" {
		return nil, nil
	}
	raw, err := os.ReadFile(t.file)
	if err != nil {
		return nil, fmt.Errorf("read the token: %w", err)
	}
	return map[string]string{"authorization": strings.TrimSpace(string(raw))}, nil
}

// RequireTransportSecurity implements [credentials.PerRPCCredentials].
func (token) RequireTransportSecurity() bool { return true }
