package zone

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"github.com/meridian-mesh/meridian/api/server"
	"github.com/meridian-mesh/meridian/api/tokens"
	"github.com/meridian-mesh/meridian/zone/admin"
	"github.com/meridian-mesh/meridian/zone/bootstrap"
	"github.com/meridian-mesh/meridian/zone/dpserver"
	"github.com/meridian-mesh/meridian/zone/envoy"
	"github.com/meridian-mesh/meridian/zone/explain"
	"github.com/meridian-mesh/meridian/zone/hds"
	"github.com/meridian-mesh/meridian/zone/mads"
	"github.com/meridian-mesh/meridian/zone/mtls"
	"github.com/meridian-mesh/meridian/zone/proxies"
	"github.com/meridian-mesh/meridian/zone/reconcile"
	"github.com/meridian-mesh/meridian/zone/xds"
)

// dataPlane is what a zone has for its proxies. They meet it in this order: bootstrap tells them how to reach the listener,
// the registry lets them in, the reconciler makes their configuration, and xds sends it.
type dataPlane struct {
	registry   *proxies.Registry
	reconciler *reconcile.Reconciler
	xds        *xds.Server
	hds        *hds.Server
	listener   *dpserver.Server
	asker      *admin.Asker      // asks proxies
	explainer  explain.Explainer // of their traffic
	mads       *mads.Server      // nil: switched off
}

// members are those of the cluster, which is made after the registry that is told of them.
type members struct{ *Zone }

func (m members) Gone(instance string) bool { return m.cluster.Gone(instance) }
func (m members) Changed() <-chan struct{}  { return m.cluster.Changed() }

// status passes what becomes of configurations to the registry, which is made after the reconciler that it tells of proxies.
type status struct{ *proxies.Registry }

func (z *Zone) newDataPlane(ctx context.Context, reg prometheus.Registerer) error {
	cfg, d := &z.cfg, &z.dataPlane
	authority, err := mtls.New(mtls.Options{Config: cfg.MTLS, Registerer: reg, Log: z.log.With("component", "mtls")})
	if err != nil {
		return fmt.Errorf("mtls: %w", err)
	}
	told := &status{}
	publisher := &publisher{}
	d.reconciler, err = reconcile.New(reconcile.Options{
		Store: z.store, Zone: cfg.Multizone.Zone.Name, Publisher: publisher, Status: told, Authority: authority,
		Builders: reconcile.Builders{
			Sidecar: reconcile.SidecarBuilder(authority), Gateway: reconcile.GatewayBuilder(authority), Proxyless: reconcile.ProxylessBuilder,
			Ingress: reconcile.IngressBuilder(authority), Egress: reconcile.EgressBuilder(authority), LoadAssignment: envoy.LoadAssignment,
		},
		DNS: cfg.DNSServer, Holdoff: holdoff(cfg.XDSServer), Registerer: reg, Log: z.log.With("component", "reconcile"),
	})
	if err != nil {
		return fmt.Errorf("reconcile: %w", err)
	}
	cfg.Proxies.Auth = cfg.DPServer.Auth.Type
	var others proxies.Members
	if cfg.Cluster.Enabled() {
		others = members{z}
	}
	d.registry, err = proxies.New(ctx, proxies.Options{
		Config: cfg.Proxies, Zone: cfg.Multizone.Zone.Name, InstanceID: cfg.General.InstanceID, Store: z.store,
		Authority: tokens.NewAuthority(), Members: others, Watcher: d.reconciler, Registerer: reg, Log: z.log.With("component", "proxies"),
	})
	if err != nil {
		return err
	}
	told.Registry = d.registry
	d.explainer.Looker = d.reconciler
	d.xds, err = xds.New(xds.Options{
		Sessions: d.registry, ControlPlaneID: cfg.General.InstanceID, Registerer: reg, Log: z.log.With("component", "xds"),
	})
	if err != nil {
		return err
	}
	publisher.Server = d.xds
	d.hds, err = hds.New(hds.Options{Config: cfg.HDS, Proxies: d.registry, Store: z.store, Log: z.log.With("component", "hds")})
	if err != nil {
		return err
	}
	d.asker, err = admin.New(admin.Options{
		Config: cfg.Inspection, Store: z.store, Proxies: d.registry, Sent: d.xds, Authority: authority, Registerer: reg,
		Log: z.log.With("component", "inspection"),
	})
	if err != nil {
		return err
	}
	if err := z.listenProxies(ctx, reg); err != nil {
		return err
	}
	if cfg.MADS.Port < 0 {
		return nil
	}
	d.mads, err = mads.New(mads.Options{Config: cfg.MADS, Store: z.store, Registerer: reg, Log: z.log})
	if err != nil {
		return err
	}
	cfg.MADS.Port = portOf(d.mads.Addr())
	return nil
}

// inspection answers what the API asks about proxies. The API is made before what answers, and serves nothing until all is made.
type inspection struct{ *dataPlane }

func (i inspection) Ask(ctx context.Context, q server.ProxyQuestion) ([]byte, error) {
	if q.View == server.ViewExplain {
		return i.explainer.Ask(ctx, q)
	}
	return i.asker.Ask(ctx, q)
}

// publisher is the server that the reconciler publishes to, which is made after it.
type publisher struct{ *xds.Server }

// listenProxies binds the port for proxies.
func (z *Zone) listenProxies(ctx context.Context, reg prometheus.Registerer) error {
	cfg, d := &z.cfg, &z.dataPlane
	secure, err := dpserver.LoadTLS(cfg.DPServer, cfg.General.DataDir, cfg.General.Hostnames...)
	if err != nil {
		return err
	}
	authenticated := cfg.DPServer.Auth.Type != dpserver.AuthNone
	if !authenticated {
		z.log.WarnContext(ctx, "proxies need not prove who they are: whoever reaches the port for proxies may be any of them")
	}
	routes := chi.NewRouter()
	routes.NotFound(http.NotFound)
	d.listener, err = dpserver.New(dpserver.Options{
		Config: cfg.DPServer, TLS: secure, HTTP: routes, Registerer: reg, Log: z.log,
		Register: func(r grpc.ServiceRegistrar) {
			d.xds.Register(r)
			if cfg.HDS.Enabled {
				d.hds.Register(r)
			}
		},
		Drain: func(context.Context) { d.xds.Shutdown() },
	})
	if err != nil {
		return err
	}
	cfg.DPServer.Port = portOf(d.listener.Addr())
	start, err := bootstrap.New(bootstrap.Options{
		Config: cfg.BootstrapServer, Store: z.store, Trust: secure, Port: cfg.DPServer.Port, AuthRequired: authenticated,
		UseTokenPath: cfg.DPServer.Auth.UseTokenPath, HDS: cfg.HDS.Enabled, Registerer: reg, Log: z.log,
	})
	if err != nil {
		return err
	}
	routes.Post("/bootstrap", start.ServeHTTP)
	return nil
}

// holdoff is the setting as the reconciler takes it, for which 0 is the default.
func holdoff(x XDSServer) (d time.Duration) {
	if x.Holdoff == 0 {
		return -1
	}
	return x.Holdoff
}

// close releases the listeners.
func (d *dataPlane) close() {
	if d.listener != nil {
		_ = d.listener.Close()
	}
	if d.mads != nil {
		_ = d.mads.Close()
	}
}
