// Package global is the global control plane: it holds meshes and policies, serves the HTTP API over them, and is what
// the zones connect to.
package global

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/meridian-mesh/meridian/api/defaults"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/server"
	"github.com/meridian-mesh/meridian/api/tokens"
	"github.com/meridian-mesh/meridian/api/validate"
	"github.com/meridian-mesh/meridian/common/cluster"
	"github.com/meridian-mesh/meridian/common/component"
	"github.com/meridian-mesh/meridian/common/config"
	"github.com/meridian-mesh/meridian/common/diagnostics"
	"github.com/meridian-mesh/meridian/common/instance"
	"github.com/meridian-mesh/meridian/common/peers"
	"github.com/meridian-mesh/meridian/common/rsakeys"
	"github.com/meridian-mesh/meridian/common/storage"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/tlsconf"
	"github.com/meridian-mesh/meridian/common/version"
	"github.com/meridian-mesh/meridian/global/admin"
	"github.com/meridian-mesh/meridian/global/insights"
	"github.com/meridian-mesh/meridian/global/kdsserver"
	"github.com/meridian-mesh/meridian/global/zones"
	"github.com/meridian-mesh/meridian/sync/kds"
)

// drainTimeout is how long a stop waits for zones to let go of their streams. With the API's own drain, which runs at
// the same time, a stop stays well below 10 s.
const drainTimeout = 3 * time.Second

// readyKeys is how many RSA keys wait for new meshes: one with a builtin authority takes two.
const readyKeys = 2

// Global is a global control plane with its listeners bound and its store open.
type Global struct {
	cfg         Config
	log         *slog.Logger
	store       *store.Store
	zones       *zones.Table
	proxies     *admin.Registry
	insights    *insights.Insights
	kds         *kdsserver.Server
	kdsListener net.Listener
	keys        *rsakeys.Pool
	api         *server.Server
	cluster     *cluster.Cluster
	peers       *peers.Peers
	diagnostics *diagnostics.Server
	metrics     *prometheus.Registry
	// startRevision is the state that the administrator's token was written from.
	startRevision store.Revision
}

// New opens the store, makes what a new global needs, and binds the listeners. The caller closes what it returns,
// after Run if that was called.
func New(ctx context.Context, cfg Config, log *slog.Logger) (_ *Global, err error) {
	if cfg.General.InstanceID == "" {
		cfg.General.InstanceID = instance.NewID()
	}
	log = log.With("instance", cfg.General.InstanceID)
	g := &Global{cfg: cfg, log: log}
	defer func() { // what is returned is nil by then: the named result could not be closed
		if err != nil {
			g.release()
		}
	}()
	reg := prometheus.NewRegistry()
	g.metrics = reg
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	g.store, err = storage.Open(ctx, cfg.Store, cfg.General.DataDir, "global", store.Options{Registerer: reg, Log: log.With("component", "store")})
	if err != nil {
		return nil, err
	}
	g.keys = rsakeys.NewPool(readyKeys)
	clusterID, err := defaults.Start{
		Store: g.store, Keys: g.keys.Key, Log: log.With("component", "defaults"),
		SkipMesh: cfg.Defaults.SkipMeshCreation, SkipAdminToken: !cfg.API.Authn.Tokens.BootstrapAdminToken,
	}.Global(ctx)
	if err != nil {
		return nil, err
	}
	log.InfoContext(ctx, "cluster", "id", clusterID)
	started := g.store.Snapshot()
	if err := shareAdminToken(started, cfg.General.DataDir); err != nil {
		return nil, err
	}
	g.startRevision = started.Revision()
	g.peers, err = peers.New(ctx, peers.Options{
		Config: g.cfg.Cluster, Name: g.cfg.General.InstanceID, Store: g.store,
		Member: func(instance string) (cluster.Member, bool) { return g.cluster.Member(instance) }, Registerer: reg, Log: log,
	})
	if err != nil {
		return nil, err
	}
	k := cfg.Multizone.Global.KDS
	g.zones, err = zones.New(ctx, zones.Config{
		InstanceID: cfg.General.InstanceID, HealthTimeout: k.HealthCheckTimeout,
		InsightInterval: k.ZoneInsightInterval, SubscriptionLimit: k.SubscriptionLimit,
		WithdrawLost: k.WithdrawLostZones, Peers: g.peers,
	}, g.store, reg, log.With("component", "zones"))
	if err != nil {
		return nil, err
	}
	g.peers.HandleWaiting(zones.AwaitCall, g.zones.AnswerAwait)
	g.peers.Handle(zones.ProgressCall, g.zones.AnswerProgress)
	g.proxies = admin.New(admin.Options{
		Config: k.Proxies, Store: g.store, Zones: g.zones, Registerer: reg, Log: log.With("component", "proxies"),
	})
	g.insights = insights.New(insights.Options{
		Store: g.store, Interval: cfg.Metrics.Mesh.MinResyncTimeout,
		Domain: cfg.DNSServer.Domain, VIPPort: cfg.DNSServer.ServiceVIPPort,
		Registerer: reg, Log: log.With("component", "insights"),
	})
	if err := g.listenKDS(ctx, clusterID, reg); err != nil {
		return nil, err
	}
	if err := g.listenAPI(reg); err != nil {
		return nil, err
	}
	g.diagnostics, err = diagnostics.New(diagnostics.Options{
		Config: cfg.Diagnostics, Ready: g.store.Ready, Gatherer: reg, Log: log,
	})
	if err != nil {
		return nil, err
	}
	g.cfg.Diagnostics.Port = g.diagnostics.Port()
	g.cluster, err = cluster.New(cluster.Options{
		Config: g.cfg.Cluster, Name: g.cfg.General.InstanceID, Plane: g.store.ID, Version: version.Get().Version, APIPort: g.cfg.API.HTTPPort, CallPort: g.peers.Port(),
		Held: func() map[string][]string { return map[string][]string{cluster.Zones: g.zones.Connected()} }, Registerer: reg, Log: log,
	})
	if err != nil {
		return nil, err
	}
	return g, nil
}

func (g *Global) listenKDS(ctx context.Context, clusterID string, reg prometheus.Registerer) error {
	k := &g.cfg.Multizone.Global.KDS
	var tlsConfig *tls.Config
	if k.TLSEnabled {
		var err error
		if tlsConfig, err = serverTLS(g.cfg.General, "kds", k.TLSCertFile, k.TLSKeyFile); err != nil {
			return fmt.Errorf("TLS for zones: %w", err)
		}
	} else {
		g.log.WarnContext(ctx, "zones connect without TLS: what they send and receive, secrets included, can be read on the way")
	}
	switch {
	case k.Auth == AuthNone:
		g.log.WarnContext(ctx, "zones are not authenticated: whoever reaches the port may join as any zone and receives what zones receive, secrets included")
	case len(k.AuthExemptZones) > 0:
		g.log.WarnContext(ctx, "zones are exempt from authentication: whoever reaches the port may join as one of them", "zones", k.AuthExemptZones)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", net.JoinHostPort(k.BindAddress, strconv.Itoa(k.Port)))
	if err != nil {
		return fmt.Errorf("listen for zones: %w", err)
	}
	g.kdsListener = l
	k.Port = portOf(l.Addr())
	build := version.Get()
	g.kds = kdsserver.New(kdsserver.Options{
		Config: kdsserver.Config{
			MaxMessageBytes: k.MaxMessageBytes, HealthCheckInterval: k.HealthCheckInterval, AckTimeout: k.AckTimeout,
			InsightInterval: k.ZoneInsightInterval, Keepalive: k.Keepalive, DrainTimeout: drainTimeout,
			Auth: kdsserver.Auth{Required: k.Auth == AuthToken, Exempt: k.AuthExemptZones},
		},
		ClusterID: clusterID, InstanceID: g.cfg.General.InstanceID, Store: g.store, Zones: g.zones, Proxies: g.proxies, TLS: tlsConfig,
		Tokens:  tokens.NewAuthority(),
		Version: kds.Version{Version: version.KDS, GitTag: build.Version, GitCommit: build.Commit, BuildDate: build.Date},
		Metrics: kds.NewMetrics(reg), Registerer: reg, Log: g.log.With("component", "kds"),
	})
	return nil
}

func (g *Global) listenAPI(reg prometheus.Registerer) error {
	a := &g.cfg.API
	opts := server.Options{
		Config: *a, Access: &g.cfg.Access, Plane: resource.Global, Store: g.store, Zones: g.zones, Replication: g.zones, Proxies: g.proxies, EndZoneSession: g.zones.End,
		Keys: g.keys.Key, InstanceID: g.cfg.General.InstanceID, Hostname: instance.Hostname(), Version: version.Get().Version, APIVersion: version.KumaAPI,
		EffectiveConfig: func() ([]byte, error) { return config.Effective(g.cfg) },
		Instances:       func() []cluster.Member { return g.cluster.Members() },
		Registerer:      reg, Log: g.log,
	}
	if a.HTTPSPort >= 0 {
		var err error
		if opts.TLS, err = serverTLS(g.cfg.General, "api", a.TLSCertFile, a.TLSKeyFile); err != nil {
			return fmt.Errorf("TLS for the API: %w", err)
		}
	}
	var err error
	if g.api, err = server.New(opts); err != nil {
		return err
	}
	a.HTTPPort = portOf(g.api.HTTPAddr())
	if a.HTTPSPort >= 0 {
		a.HTTPSPort = portOf(g.api.HTTPSAddr())
	}
	return nil
}

func serverTLS(c General, name, certFile, keyFile string) (*tls.Config, error) {
	if certFile != "" {
		return tlsconf.FromFiles(certFile, keyFile)
	}
	cfg, _, err := tlsconf.LoadOrCreate(c.DataDir, name, c.Hostnames...)
	return cfg, err
}

func portOf(a net.Addr) int {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.Port
	}
	return 0
}

// Run serves until ctx ends or a part fails.
func (g *Global) Run(ctx context.Context) error {
	g.log.InfoContext(ctx, "global control plane is running", "api", g.api.HTTPAddr().String(), "api_tls", g.cfg.API.HTTPSPort,
		"kds", g.kdsListener.Addr().String(), "diagnostics", g.diagnostics.Addr().String(), "store", g.store.ID(),
		"revision", g.store.Snapshot().Revision(), "version", version.Get().Version)
	return component.Run(ctx,
		component.Component{Name: "diagnostics", Run: g.diagnostics.Run},
		component.Component{Name: "validation", Run: g.validate}, // of what is stored; once
		component.Component{Name: "admin token", Run: g.keepAdminToken},
		component.Component{Name: "cluster", Run: g.cluster.Run}, // who else is there
		component.Component{Name: "peers", Run: g.peers.Run},     // and what they ask
		component.Component{Name: "leader", Run: g.lead},         // and what is done by one of them
		component.Component{Name: "zones", Run: g.zones.Run},     // sessions and insights
		component.Component{Name: "kds", Run: func(ctx context.Context) error { return g.kds.Serve(ctx, g.kdsListener) }},
		component.Component{Name: "keys", Run: g.keys.Run}, // RSA keys ahead of the meshes that need them
		component.Component{Name: "api", Run: g.api.Run},   // operators' HTTP
	)
}

// lead does what is done once in the plane, as long as this instance is the one to do it: the insights of meshes and services.
func (g *Global) lead(ctx context.Context) error {
	return g.cluster.Lead(ctx, g.store, server.PlaneLease, g.insights.Run)
}

// validate tells of stored resources that this version would not take. They stay.
func (g *Global) validate(ctx context.Context) error {
	log := g.log.With("component", "validation")
	validate.LogStored(ctx, g.store.Snapshot(), log)
	return nil
}

// Close releases what New opened. What was committed is on disk whether Close is called or not.
func (g *Global) Close() error {
	g.release()
	return nil
}

// release closes whatever is open; each part that ran has closed its own listener, which is no matter.
func (g *Global) release() {
	if g.cluster != nil {
		_ = g.cluster.Close()
	}
	if g.peers != nil {
		_ = g.peers.Close()
	}
	if g.diagnostics != nil {
		_ = g.diagnostics.Close()
	}
	if g.api != nil {
		_ = g.api.Close()
	}
	if g.kdsListener != nil {
		_ = g.kdsListener.Close()
	}
	if g.store != nil {
		if err := g.store.Close(); err != nil {
			g.log.Error("store not closed cleanly", "err", err)
		}
	}
}
