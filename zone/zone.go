// Package zone is a zone control plane: it holds the proxies of its zone, works on copies of what the global holds, and
// keeps working while the global is away.
package zone

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"google.golang.org/grpc/credentials"

	"github.com/meridian-mesh/meridian/api/defaults"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/server"
	"github.com/meridian-mesh/meridian/api/validate"
	"github.com/meridian-mesh/meridian/common/cluster"
	"github.com/meridian-mesh/meridian/common/component"
	"github.com/meridian-mesh/meridian/common/config"
	"github.com/meridian-mesh/meridian/common/diagnostics"
	"github.com/meridian-mesh/meridian/common/drain"
	"github.com/meridian-mesh/meridian/common/instance"
	"github.com/meridian-mesh/meridian/common/peers"
	"github.com/meridian-mesh/meridian/common/rsakeys"
	"github.com/meridian-mesh/meridian/common/storage"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/tlsconf"
	"github.com/meridian-mesh/meridian/common/version"
	"github.com/meridian-mesh/meridian/sync/forward"
	"github.com/meridian-mesh/meridian/sync/kds"
	"github.com/meridian-mesh/meridian/zone/upstream"
)

// Zone is a zone control plane with its listeners bound and its store open.
type Zone struct {
	cfg         Config
	log         *slog.Logger
	store       *store.Store
	upstream    *upstream.Upstream
	api         *server.Server
	cluster     *cluster.Cluster
	peers       *peers.Peers
	diagnostics *diagnostics.Server
	metrics     *prometheus.Registry
	dataPlane   dataPlane
	draining    atomic.Bool
}

// New opens the store and binds the listeners; it does not need the global. The caller closes what it returns, after
// Run if that was called.
func New(ctx context.Context, cfg Config, log *slog.Logger) (_ *Zone, err error) {
	if cfg.General.InstanceID == "" {
		cfg.General.InstanceID = instance.NewID()
	}
	log = log.With("instance", cfg.General.InstanceID, "zone", cfg.Multizone.Zone.Name)
	z := &Zone{cfg: cfg, log: log}
	defer func() { // what is returned is nil by then: the named result could not be closed
		if err != nil {
			z.release()
		}
	}()
	reg := prometheus.NewRegistry()
	z.metrics = reg
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	z.store, err = storage.Open(ctx, cfg.Store, cfg.General.DataDir, "zone "+cfg.Multizone.Zone.Name, store.Options{Registerer: reg, Log: log.With("component", "store")})
	if err != nil {
		return nil, err
	}
	// Two keys, once in the life of a zone: no pool has to be kept.
	err = defaults.Start{
		Store: z.store, Keys: rsakeys.NewPool(0).Key, Log: log.With("component", "defaults"),
		SkipAdminToken: !cfg.API.Authn.Tokens.BootstrapAdminToken,
	}.Zone(ctx)
	if err != nil {
		return nil, err
	}
	z.peers, err = peers.New(ctx, peers.Options{
		Config: z.cfg.Cluster, Name: z.cfg.General.InstanceID, Store: z.store,
		Member: func(instance string) (cluster.Member, bool) { return z.cluster.Member(instance) }, Registerer: reg, Log: log,
	})
	if err != nil {
		return nil, err
	}
	z.peers.Handle(forward.Call, forward.Handler(z.inspection().AskHere))
	if err := z.listenAPI(reg); err != nil {
		return nil, err
	}
	z.diagnostics, err = diagnostics.New(diagnostics.Options{
		Config: cfg.Diagnostics, Ready: z.ready, Gatherer: reg, Log: log,
	})
	if err != nil {
		return nil, err
	}
	z.cfg.Diagnostics.Port = z.diagnostics.Port()
	if err := z.newDataPlane(ctx, reg); err != nil {
		return nil, err
	}
	if err := z.newUpstream(ctx, reg); err != nil {
		return nil, err
	}
	z.cluster, err = cluster.New(cluster.Options{
		Config: z.cfg.Cluster, Name: z.cfg.General.InstanceID, Plane: z.store.ID, Version: version.Get().Version, APIPort: z.cfg.API.HTTPPort, CallPort: z.peers.Port(),
		Held: func() map[string][]string {
			return map[string][]string{cluster.Proxies: z.dataPlane.registry.Connected()}
		},
		Registerer: reg, Log: log,
	})
	if err != nil {
		return nil, err
	}
	return z, nil
}

func (z *Zone) listenAPI(reg prometheus.Registerer) error {
	a := &z.cfg.API
	opts := server.Options{
		Config: *a, Access: &z.cfg.Access, Plane: resource.Zone, ZoneName: z.cfg.Multizone.Zone.Name, Store: z.store,
		InstanceID: z.cfg.General.InstanceID, Hostname: instance.Hostname(), Version: version.Get().Version, APIVersion: version.KumaAPI,
		EffectiveConfig: func() ([]byte, error) { return config.Effective(z.cfg) },
		Instances:       func() []cluster.Member { return z.cluster.Members() },
		DNSDomain:       z.cfg.DNSServer.Domain, ServiceVIPPort: z.cfg.DNSServer.ServiceVIPPort,
		Proxies: z.inspection(), Registerer: reg, Log: z.log,
	}
	if a.HTTPSPort >= 0 {
		var err error
		if opts.TLS, err = serverTLS(z.cfg.General, a.TLSCertFile, a.TLSKeyFile); err != nil {
			return fmt.Errorf("TLS for the API: %w", err)
		}
	}
	var err error
	if z.api, err = server.New(opts); err != nil {
		return err
	}
	a.HTTPPort = portOf(z.api.HTTPAddr())
	if a.HTTPSPort >= 0 {
		a.HTTPSPort = portOf(z.api.HTTPSAddr())
	}
	return nil
}

func (z *Zone) newUpstream(ctx context.Context, reg prometheus.Registerer) error {
	m := z.cfg.Multizone.Zone
	_, plain, err := upstream.ParseAddresses(m.GlobalAddress)
	if err != nil {
		return fmt.Errorf("global address: %w", err)
	}
	switch {
	case plain:
		z.log.WarnContext(ctx, "the global is reached without TLS: what is sent and received, secrets included, can be read on the way")
	case m.KDS.TLSSkipVerify:
		z.log.WarnContext(ctx, "the global's certificate is not verified: whoever answers at its address is trusted", "address", m.GlobalAddress)
	}
	effective, err := config.Effective(z.cfg)
	if err != nil {
		return fmt.Errorf("render configuration: %w", err)
	}
	build := version.Get()
	z.upstream, err = upstream.New(upstream.Options{
		Config: upstream.Config{
			Zone: m.Name, Address: m.GlobalAddress, AcceptGlobal: m.AcceptGlobal, MaxMessageBytes: m.KDS.MaxMessageBytes,
			HealthCheckInterval: m.KDS.HealthCheckInterval, HealthCheckTimeout: m.KDS.HealthCheckTimeout, AckTimeout: m.KDS.AckTimeout,
			InsightInterval: m.KDS.InsightInterval, Keepalive: m.KDS.Keepalive,
			ReconnectBase: m.KDS.ReconnectBase, ReconnectMax: m.KDS.ReconnectMax,
		},
		InstanceID:      z.cfg.General.InstanceID,
		Version:         kds.Version{Version: version.KDS, GitTag: build.Version, GitCommit: build.Commit, BuildDate: build.Date},
		EffectiveConfig: func() string { return string(effective) },
		Store:           z.store,
		Credentials: func(serverName string) (credentials.TransportCredentials, error) {
			cfg, err := tlsconf.ClientConfig{ServerName: serverName, CAFile: m.KDS.CAFile, SkipVerify: m.KDS.TLSSkipVerify}.TLS()
			if err != nil {
				return nil, err
			}
			return credentials.NewTLS(cfg), nil
		},
		Token:      zoneToken(m),
		Proxies:    z.inspection(), // for those who ask the global
		Registerer: reg, Metrics: kds.NewMetrics(reg), Log: z.log.With("component", "upstream"),
	})
	return err
}

// zoneToken returns what gives the zone's token, nil when the zone has none.
func zoneToken(m MultizoneZone) func() (config.Secret, error) {
	switch {
	case m.Token != "":
		return func() (config.Secret, error) { return m.Token, nil }
	case m.TokenFile != "":
		return func() (config.Secret, error) {
			raw, err := os.ReadFile(m.TokenFile)
			if err != nil {
				return "", fmt.Errorf("read the zone token: %w", err)
			}
			return config.Secret(strings.TrimSpace(string(raw))), nil
		}
	default:
		return nil
	}
}

func serverTLS(c General, certFile, keyFile string) (*tls.Config, error) {
	if certFile != "" {
		return tlsconf.FromFiles(certFile, keyFile)
	}
	cfg, _, err := tlsconf.LoadOrCreate(c.DataDir, "api", c.Hostnames...)
	return cfg, err
}

func portOf(a net.Addr) int {
	if tcp, ok := a.(*net.TCPAddr); ok {
		return tcp.Port
	}
	return 0
}

// Run serves until ctx ends or a part fails.
func (z *Zone) Run(ctx context.Context) error {
	z.log.InfoContext(ctx, "zone control plane is running", "api", z.api.HTTPAddr().String(), "api_tls", z.cfg.API.HTTPSPort,
		"proxies", z.dataPlane.listener.Addr().String(), "global", z.cfg.Multizone.Zone.GlobalAddress, "diagnostics", z.diagnostics.Addr().String(), "store", z.store.ID(),
		"revision", z.store.Snapshot().Revision(), "version", version.Get().Version)
	d := &z.dataPlane
	parts := []component.Component{
		{Name: "diagnostics", Run: z.diagnostics.Run},
		{Name: "validation", Run: z.validate},      // of what is stored; once
		{Name: "cluster", Run: z.cluster.Run},      // who else is there
		{Name: "peers", Run: z.peers.Run},          // and what they ask
		{Name: "upstream", Run: z.lead},            // KDS session with the global, of the one that leads
		{Name: "api", Run: z.api.Run},              // operators' HTTP
		{Name: "proxies", Run: d.registry.Run},     // who is connected, and what is stored of them
		{Name: "reconcile", Run: d.reconciler.Run}, // configuration of proxies
		{Name: "dp server", Run: d.listener.Run},   // what proxies talk to
		{Name: "health discovery", Run: d.hds.Run}, // what they report of workloads
	}
	if d.mads != nil {
		parts = append(parts, component.Component{Name: "mads", Run: d.mads.Run}) // what Prometheus scrapes
	}
	drained, stop := drain.Before(ctx, z.drain)
	defer stop()
	return component.Run(drained, parts...)
}

// drain sends the proxies to other replicas, if there are any, before this one stops: nobody new is to come, and those who are here go
// one by one.
func (z *Zone) drain(ctx context.Context) {
	if z.cfg.Cluster.DrainTime == 0 || len(z.cluster.Members()) < 2 {
		return
	}
	z.draining.Store(true)
	z.dataPlane.listener.Refuse()
	z.dataPlane.registry.Drain(ctx, z.cfg.Cluster.DrainTime)
}

// ready says why nobody is to be sent here, or nil.
func (z *Zone) ready() error {
	if z.draining.Load() {
		return errDraining
	}
	return z.store.Ready()
}

var errDraining = errors.New("this instance stops, and sends those who are connected to others")

// lead does what is done once in the plane, as long as this instance is the one to do it: the session with the global. What it
// commits is fenced by the lease, so that an instance that was stopped for a while puts nothing old over what its successor received.
func (z *Zone) lead(ctx context.Context) error {
	return z.cluster.Lead(ctx, z.store, server.PlaneLease, func(ctx context.Context, l store.Lease) error {
		return z.upstream.Run(ctx, func(ctx context.Context, fn func(*store.Snapshot) ([]store.Op, error)) (store.Revision, error) {
			return z.store.UpdateUnder(ctx, l, fn)
		})
	})
}

// validate tells of stored resources that this version would not take. They stay.
func (z *Zone) validate(ctx context.Context) error {
	log := z.log.With("component", "validation")
	validate.LogStored(ctx, z.store.Snapshot(), log)
	return nil
}

// Close releases what New opened. What was committed is on disk whether Close is called or not.
func (z *Zone) Close() error {
	z.release()
	return nil
}

// release closes whatever is open; each part that ran has closed its own listener, which is no matter.
func (z *Zone) release() {
	if z.cluster != nil {
		_ = z.cluster.Close()
	}
	if z.peers != nil {
		_ = z.peers.Close()
	}
	if z.diagnostics != nil {
		_ = z.diagnostics.Close()
	}
	z.dataPlane.close()
	if z.api != nil {
		_ = z.api.Close()
	}
	if z.store != nil {
		if err := z.store.Close(); err != nil {
			z.log.Error("store not closed cleanly", "err", err)
		}
	}
}
