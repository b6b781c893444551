// Package dpserver is the one port that proxies talk to: POST /bootstrap and whatever else is HTTP, and the discovery
// services over gRPC, always with TLS. It owns the certificate, and knows which authority proxies have to trust to believe
// it: [TLS]. How requests are told apart is package oneport's.
package dpserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/meridian-mesh/meridian/common/oneport"
)

// Options is what a [Server] needs.
type Options struct {
	Config

	// TLS is what [LoadTLS] returned.
	TLS *TLS
	// Register adds the services to the gRPC server; it is called once, by New.
	Register func(grpc.ServiceRegistrar)
	// HTTP serves what is not gRPC. What it does not have must be answered as net/http does: kuma-dp takes the text for
	// the sign of a wrong port.
	HTTP http.Handler
	// Drain, where set, ends the gRPC streams at shutdown (xds.Server.Shutdown). Those still open when it returns are
	// cancelled.
	Drain func(context.Context)

	Registerer prometheus.Registerer // nil: nothing is exported
	Log        *slog.Logger
}

// Server is the listener for proxies. It is bound from [New] on, so that its port is known before anything is served.
type Server struct{ s *oneport.Server }

// New checks o and binds the listener. Who does not call Run must call Close.
func New(o Options) (*Server, error) {
	if err := errors.Join(o.Validate()...); err != nil {
		return nil, fmt.Errorf("dp server: %w", err)
	}
	if o.TLS == nil || o.Log == nil {
		return nil, errors.New("dp server: TLS and Log must be set")
	}
	open := prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: "meridian", Subsystem: "dp_server", Name: "connections",
		Help: "Open connections of proxies.",
	})
	refused := prometheus.NewCounter(prometheus.CounterOpts{
		Namespace: "meridian", Subsystem: "dp_server", Name: "refused_connections_total",
		Help: "Connections that were closed at once because dpServer.maxConnections were open.",
	})
	if o.Registerer != nil {
		for _, c := range []prometheus.Collector{open, refused} {
			if err := o.Registerer.Register(c); err != nil {
				return nil, fmt.Errorf("dp server: register metrics: %w", err)
			}
		}
	}
	s, err := oneport.New(oneport.Options{
		Name: "dp server", Address: net.JoinHostPort(o.BindAddress, strconv.Itoa(o.Port)),
		TLS: o.TLS.config(o.TLSMinVersion), HTTP: o.HTTP, Register: o.Register, Drain: o.Drain,
		MaxConnections: o.MaxConnections, MaxMessageBytes: o.MaxMessageBytes, RequestTimeout: o.RequestTimeout,
		Keepalive: o.Keepalive, ShutdownTimeout: o.ShutdownTimeout,
		Connections: open, Refused: refused, Log: o.Log.With("component", "dp_server"),
	})
	if err != nil {
		return nil, err //nolint:wrapcheck // begins with the name given above
	}
	return &Server{s}, nil
}

// Addr is the address that is listened on.
func (s *Server) Addr() net.Addr { return s.s.Addr() }

// Run serves until ctx ends or the listener fails, and returns when all requests and streams have ended, or twice
// shutdownTimeout has passed. It is called at most once.
func (s *Server) Run(ctx context.Context) error {
	return s.s.Run(ctx) //nolint:wrapcheck // begins with the name given to it
}

// Refuse accepts no connections from now on; see [oneport.Server.Refuse].
func (s *Server) Refuse() { s.s.Refuse() }

// Close releases the listener of a server that is not running.
func (s *Server) Close() error {
	return s.s.Close() //nolint:wrapcheck // begins with the name given to it
}

// The values of Config.TLSMinVersion.
const (
	tls12 = "TLSv1_2"
	tls13 = "TLSv1_3"
)

func tlsVersion(name string) (uint16, bool) {
	switch name {
	case tls12:
		return tls.VersionTLS12, true
	case tls13:
		return tls.VersionTLS13, true
	default:
		return 0, false
	}
}
