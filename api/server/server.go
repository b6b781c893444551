package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/meridian-mesh/meridian/api/defaults"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/openapi"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/tokens"
	"github.com/meridian-mesh/meridian/common/cluster"
	"github.com/meridian-mesh/meridian/common/rsakeys"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/tlsconf"
	"github.com/meridian-mesh/meridian/common/version"
)

// ZoneLive is what the global knows about a zone's session beyond what is stored.
type ZoneLive struct {
	Online bool
	// URL is the address the session comes from, e.g. "grpcs://10.0.0.7:41220"; empty when there is none.
	URL string
	// Auth says how the zone proved who it is: "token", "exempt" or "none"; empty when there is no session.
	Auth string
	// ConnectedSince is zero when there is no session.
	ConnectedSince time.Time
}

// ZoneProgress is how far a zone has got.
type ZoneProgress struct {
	// Lag counts the resources that changed and that the zone has not acknowledged.
	Lag int
	// LastAck is zero when nothing was acknowledged yet.
	LastAck time.Time
}

// ZoneSessions is what only the global's live sessions know. Its methods are called for every request that shows
// zones: they must be safe for concurrent use, must not call back into the server and, but for Progress, must be quick.
type ZoneSessions interface {
	// Live describes the session of a zone at snap; false when nothing is known of that zone.
	Live(snap *store.Snapshot, zone string) (ZoneLive, bool)
	// Progress says how far zones have got at snap. It may ask other instances of this plane, each once and no longer than
	// a second; zones of which nobody tells are left out.
	Progress(ctx context.Context, snap *store.Snapshot, zones []string) map[string]ZoneProgress
	// Insight returns the insight of a zone when it is newer than the stored one. Neither side changes it any more.
	Insight(zone string) (*systemv1.ZoneInsight, bool)
}

// Options is what a [Server] needs.
type Options struct {
	Config

	// Plane is [resource.Global] or [resource.Zone]; ZoneName is set on a zone only.
	Plane    resource.Plane
	ZoneName string
	// Store must stay open until Run has returned.
	Store *store.Store
	// Zones is nil where there are no zone sessions: every zone then reads as offline.
	Zones ZoneSessions
	// Replication is nil where there are no zones to wait for.
	Replication Replication
	// DNSDomain and ServiceVIPPort are those of the virtual addresses of services; by default those of a zone.
	DNSDomain      string
	ServiceVIPPort uint32
	// Proxies looks into proxies; nil: none can be looked into.
	Proxies Proxies
	// EndZoneSession, where set, is called before a zone that is online is deleted (possible with UnsafeDelete only),
	// so that the session cannot write after the deletion. Its error ends the request.
	EndZoneSession func(ctx context.Context, zone string) error

	// Keys makes the keys that come with a new mesh; nil: they are made when they are needed, which a PUT waits for.
	Keys defaults.Source

	// InstanceID, Hostname and Version are shown at "/"; APIVersion there is the API generation that kumactl checks,
	// "2.0.8" when empty.
	InstanceID, Hostname, Version, APIVersion string
	// Instances returns the instances of this plane that are known, by name; nil: none is shown.
	Instances func() []cluster.Member
	// EffectiveConfig returns the body of /config with secrets masked; nil: "{}".
	EffectiveConfig func() ([]byte, error)

	// Access says who may do what; nil: DefaultAccess.
	Access *Access
	// TLS is needed unless HTTPSPort is -1.
	TLS *tls.Config
	// Registerer may be nil: nothing is exported then.
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// Server serves the API. Its listeners are bound from [New] on, so that ports are known before anything is served.
type Server struct {
	// Set by New, read-only after.
	opts     Options
	plane    resource.Plane
	store    *store.Store
	zones    ZoneSessions
	log      *slog.Logger
	origins  []*regexp.Regexp
	access   StaticAccess
	handler  http.Handler
	doc      *openapi.Document // describes handler
	policies []byte
	versions []byte
	metrics  metrics
	http     listener
	https    listener

	stopping chan struct{} // closed when Run begins to stop: what would wait for long ends now

	// Safe for concurrent use.
	tokens      *tokens.Authority
	clientCerts *tlsconf.ClientCerts // nil: nobody is asked for one
	renders     *renders
	inspected   *inspected
	watches     atomic.Int64 // lists that are being watched
	// writes holds a token for each write that is being worked on.
	writes chan struct{}
	// importing holds a token while an import is on its way: one at a time, so that memory for one is enough.
	importing chan struct{}
	buffers   sync.Pool // of *bytes.Buffer
	gzips     sync.Pool // of *gzip.Writer
}

// listener is one bound address; ln is nil when it is switched off.
type listener struct {
	ln     net.Listener
	secure bool
}

// New checks o, registers the metrics and binds the listeners. Who does not call Run must call Close.
func New(o Options) (*Server, error) {
	if err := errors.Join(o.Validate()...); err != nil {
		return nil, fmt.Errorf("api server: %w", err)
	}
	if o.Store == nil || o.Log == nil || (o.Plane != resource.Global && o.Plane != resource.Zone) {
		return nil, errors.New("api server: Store, Log and Plane must be set")
	}
	if o.HTTPSPort >= 0 && o.TLS == nil {
		return nil, errors.New("api server: HTTPS is on but there is no TLS configuration")
	}
	if o.Keys == nil {
		o.Keys = rsakeys.NewPool(0).Key
	}
	origins, err := compileOrigins(o.CORSAllowedDomains)
	if err != nil {
		return nil, fmt.Errorf("api server: %w", err)
	}
	s := &Server{
		opts:    o,
		plane:   o.Plane,
		store:   o.Store,
		zones:   o.Zones,
		log:     o.Log.With("component", "api"),
		origins: origins,
		access:  DefaultAccess().Static,
		tokens:  tokens.NewAuthority(),
		renders: newRenders(o.RenderCacheBytes),

		writes:    make(chan struct{}, o.MaxWrites),
		importing: make(chan struct{}, 1),
		stopping:  make(chan struct{}),
	}
	s.inspected = newInspected(&s.opts, s.log)
	if o.Access != nil {
		s.access = o.Access.Static
	}
	if o.ClientCertsDir != "" {
		if s.clientCerts, err = tlsconf.NewClientCerts(o.ClientCertsDir); err != nil {
			return nil, fmt.Errorf("api server: clientCertsDir: %w", err)
		}
	}
	if s.policies, err = s.policiesBody(); err != nil {
		return nil, fmt.Errorf("api server: %w", err)
	}
	if s.versions, err = versionsBody(version.OldestProxy, version.NewestProxy); err != nil {
		return nil, fmt.Errorf("api server: %w", err)
	}
	if s.metrics, err = newMetrics(o.Registerer); err != nil {
		return nil, fmt.Errorf("api server: register metrics: %w", err)
	}
	s.handler, s.doc = s.routes()
	if s.http.ln, err = listen(o.BindAddress, o.HTTPPort); err != nil {
		return nil, fmt.Errorf("api server: listen for HTTP: %w", err)
	}
	if o.HTTPSPort >= 0 {
		s.https.secure = true
		if s.https.ln, err = listen(o.BindAddress, o.HTTPSPort); err != nil {
			return nil, errors.Join(fmt.Errorf("api server: listen for HTTPS: %w", err), s.http.ln.Close())
		}
	}
	return s, nil
}

// announceAccess says at start what an operator should know of who may do what.
func (s *Server) announceAccess(ctx context.Context) {
	if s.opts.LocalhostIsAdmin {
		s.log.InfoContext(ctx, "requests from this host have administrator rights; localhostIsAdmin=false ends that")
	}
	if s.clientCerts != nil {
		s.log.InfoContext(ctx, "client certificates give administrator rights", "dir", s.opts.ClientCertsDir)
	}
	if s.opts.Writes == writesAnonymous && !s.opts.ReadOnly {
		s.log.WarnContext(ctx, "everyone who reaches the API may write all but secrets; MERIDIAN_API_WRITES=authenticated ends that")
	}
}

func listen(address string, port int) (net.Listener, error) {
	return (&net.ListenConfig{}).Listen(context.Background(), "tcp", net.JoinHostPort(address, strconv.Itoa(port)))
}

// HTTPAddr is the bound address of the plain listener.
func (s *Server) HTTPAddr() net.Addr { return s.http.ln.Addr() }

// HTTPSAddr is the bound address of the TLS listener, nil when it is off.
func (s *Server) HTTPSAddr() net.Addr {
	if s.https.ln == nil {
		return nil
	}
	return s.https.ln.Addr()
}

// Handler returns the API without its listeners.
func (s *Server) Handler() http.Handler { return s.handler }

// Close releases the listeners of a server that was not run; after Run it does nothing.
func (s *Server) Close() error {
	var errs []error
	for _, l := range []listener{s.http, s.https} {
		if l.ln == nil {
			continue
		}
		if err := l.ln.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, fmt.Errorf("close API listener: %w", err))
		}
	}
	return errors.Join(errs...)
}

// Run serves until ctx ends or a listener fails. Then no connection is accepted any more, watches and waits end, and requests in
// flight get ShutdownTimeout to finish; the rest is cut off. It returns nil after a shutdown that ctx asked for. It is
// called at most once.
func (s *Server) Run(ctx context.Context) error {
	s.announceAccess(ctx)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		<-ctx.Done()
		close(s.stopping)
		return nil
	})
	for _, l := range []listener{s.http, s.https} {
		if l.ln == nil {
			continue
		}
		srv := &http.Server{
			Handler:           s.handler,
			ReadHeaderTimeout: min(s.opts.ReadTimeout, 10*time.Second),
			ReadTimeout:       s.opts.ReadTimeout,
			WriteTimeout:      s.opts.WriteTimeout,
			IdleTimeout:       s.opts.IdleTimeout,
			MaxHeaderBytes:    64 << 10,
			ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelDebug),
			// Requests outlive ctx: they end by themselves during the shutdown.
			BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
		}
		g.Go(func() error {
			s.log.InfoContext(ctx, "serving API", "address", l.ln.Addr().String(), "tls", l.secure)
			var err error
			if l.secure {
				srv.TLSConfig = s.opts.TLS.Clone()
				if s.clientCerts != nil {
					srv.TLSConfig.ClientAuth = tls.RequestClientCert // identify verifies what comes
				}
				err = srv.ServeTLS(l.ln, "", "")
			} else {
				err = srv.Serve(l.ln)
			}
			if !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve API on %s: %w", l.ln.Addr(), err)
			}
			return nil
		})
		g.Go(func() error {
			<-ctx.Done()
			grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.opts.ShutdownTimeout)
			defer cancel()
			if err := srv.Shutdown(grace); err != nil {
				s.log.WarnContext(grace, "requests cut off at shutdown", "err", err)
				return srv.Close()
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return fmt.Errorf("api server: %w", err)
	}
	return nil
}
