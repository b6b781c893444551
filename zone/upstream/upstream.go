// Package upstream keeps a zone connected to its global: it sends up what the zone owns, stores what comes down, and
// tells the global that the zone lives. While the global is away it tries again, and the zone works on from its store.
package upstream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	_ "google.golang.org/grpc/encoding/gzip" // what a global may answer in
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/server"
	"github.com/meridian-mesh/meridian/common/config"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/sync/kds"
)

// Config tunes the connection. Durations and sizes must be positive.
type Config struct {
	Zone string
	// Address is where the global is: grpcs://host:port, or grpc://host:port for plain text; several are separated by commas.
	Address             string
	AcceptGlobal        string // cluster id of the one global to accept; empty: the first one met
	MaxMessageBytes     int
	HealthCheckInterval time.Duration // until the global says otherwise
	HealthCheckTimeout  time.Duration
	AckTimeout          time.Duration
	InsightInterval     time.Duration
	Keepalive           time.Duration // at least 15 s toward Kuma, which refuses more
	ReconnectBase       time.Duration
	ReconnectMax        time.Duration
}

// Options are what the connection stands on.
type Options struct {
	Config     Config
	InstanceID string
	Version    kds.Version
	// EffectiveConfig is what the global shows as the zone's configuration.
	EffectiveConfig func() string
	Store           *store.Store
	// Credentials are those for a server of a name or IP address. They are made anew for each connection, so that a CA file may
	// appear or change. Nil with a grpc:// address.
	Credentials func(serverName string) (credentials.TransportCredentials, error)
	// Token gives the zone token that goes with every call; it is asked at each, so that the token may change. Nil: none.
	Token func() (config.Secret, error)
	// Proxies answers what the global asks about proxies; nil: no proxy can be asked.
	Proxies server.Proxies
	// Dial replaces the network in tests.
	Dial       []grpc.DialOption
	Registerer prometheus.Registerer
	Metrics    *kds.Metrics
	Log        *slog.Logger
}

// Upstream is the zone's side of KDS.
type Upstream struct {
	o       Options
	targets []string
	plain   bool
	encoder *kds.Encoder
	online  atomic.Bool
	gauge   prometheus.Gauge
	foreign prometheus.Gauge
}

// New returns an upstream that is not connected yet.
func New(o Options) (*Upstream, error) {
	targets, plain, err := ParseAddresses(o.Config.Address)
	if err != nil {
		return nil, fmt.Errorf("global address: %w", err)
	}
	u := &Upstream{
		o: o, targets: targets, plain: plain, encoder: kds.NewEncoder(),
		gauge: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "meridian", Subsystem: "upstream", Name: "connected", Help: "1 while the zone receives from its global through this replica, the one that leads.",
		}),
		foreign: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "meridian", Subsystem: "upstream", Name: "foreign_global", Help: "1 while the global that answers is not the one this zone belongs to.",
		}),
	}
	if o.Registerer != nil {
		o.Registerer.MustRegister(u.gauge, u.foreign)
	}
	return u, nil
}

// Connected reports whether the zone is receiving from its global through this replica.
func (u *Upstream) Connected() bool { return u.online.Load() }

// Run keeps the zone connected until ctx ends, and says goodbye then. Of the replicas of a zone one runs it at a time, the leader,
// whose lease fences update: what Run commits, it commits by that. It returns store.ErrLeaseLost when another has taken over.
func (u *Upstream) Run(ctx context.Context, update kds.Update) error {
	defer u.foreign.Set(0) // whoever leads next may meet another
	retry := u.retry()
	for {
		began := time.Now()
		err := u.connect(ctx, update)
		if ctx.Err() != nil || errors.Is(err, errStopping) {
			return nil //nolint:nilerr // told to stop: whatever ended with it is no failure
		}
		if errors.Is(err, store.ErrLeaseLost) {
			return err
		}
		moved := errors.Is(err, errMoved)
		switch {
		case moved:
			u.o.Log.InfoContext(ctx, "the global asks to connect anew", "address", u.o.Config.Address, "reason", err)
		case !u.refused(ctx, err):
			u.o.Log.WarnContext(ctx, "connection to the global lost", "address", u.o.Config.Address, "err", err)
		}
		if moved && time.Since(began) > u.o.Config.ReconnectMax {
			continue // zones are not asked all at once
		}
		if !retry.wait(ctx, time.Since(began)) {
			return nil
		}
	}
}

// connect holds one connection: every stream on it is supervised by itself, and the health check ends it when the
// global does not answer any more.
func (u *Upstream) connect(ctx context.Context, update kds.Update) error {
	creds := insecure.NewCredentials()
	if !u.plain {
		creds = newPerName(u.o.Credentials)
	}
	target, opts := anyOf(u.targets)
	opts = append(opts,
		grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(
			grpc.MaxCallRecvMsgSize(u.o.Config.MaxMessageBytes), grpc.MaxCallSendMsgSize(u.o.Config.MaxMessageBytes), grpc.WaitForReady(true)),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: u.o.Config.Keepalive, Timeout: u.o.Config.Keepalive, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: u.o.Config.ReconnectBase, Multiplier: 1.6, Jitter: 0.3, MaxDelay: u.o.Config.ReconnectMax},
			MinConnectTimeout: 5 * time.Second,
		}),
		grpc.WithIdleTimeout(0),
	)
	opts = append(opts, u.o.Dial...)
	if u.o.Token != nil {
		opts = append(opts, grpc.WithPerRPCCredentials(zoneToken{u.o.Token, !u.plain}))
	}
	conn, err := grpc.NewClient(target, opts...)
	if err != nil {
		return fmt.Errorf("dial %s: %w", u.o.Config.Address, err)
	}
	var readers sync.WaitGroup
	defer readers.Wait()
	defer func() { _ = conn.Close() }() // its only error is that it was closed before
	session := uuid.NewString()
	stopping := ctx.Done()
	// The streams outlive ctx by one call, which tells the global that they end because the zone stops.
	ctx, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	header := []string{
		kds.HeaderClientID, u.o.Config.Zone, kds.HeaderKDS, "v3", kds.HeaderVersion, u.o.Version.Version,
		kds.HeaderFeatures, kds.FeaturePing, kds.HeaderPlaneID, u.o.Store.ID(), kds.HeaderSession, session,
	}
	if u.o.Proxies != nil {
		header = append(header, kds.HeaderFeatures, kds.FeatureInspect)
	}
	g, ctx := errgroup.WithContext(metadata.AppendToOutgoingContext(ctx, header...))
	client, admin := meshv1.NewKDSSyncServiceClient(conn), meshv1.NewGlobalKDSServiceClient(conn)
	g.Go(func() error { return u.healthChecks(ctx, admin) })
	g.Go(func() error {
		return u.supervise(ctx, kds.Down.String(), func(ctx context.Context) error { return u.receive(ctx, client, update, &readers) })
	})
	g.Go(func() error {
		return u.supervise(ctx, kds.Up.String(), func(ctx context.Context) error { return u.send(ctx, client, &readers) })
	})
	u.superviseAdmin(ctx, g, admin)
	g.Go(func() error { return untilGone(ctx, conn) })
	g.Go(func() error {
		select {
		case <-stopping:
			u.leave(ctx, admin)
			return errStopping
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return g.Wait()
}

// errGone ends what was on a connection that the global has closed, or wants to close, or that broke.
var errGone = errors.New("the connection is over")

// untilGone returns when the connection, once it was there, is no more. grpc would make another, perhaps to another replica of the
// global; but a session is the streams of one connection, and a new session draws lots among all addresses, looked up anew.
func untilGone(ctx context.Context, conn *grpc.ClientConn) error {
	state := conn.GetState()
	for conn.WaitForStateChange(ctx, state) {
		if state == connectivity.Ready {
			return errGone
		}
		state = conn.GetState()
	}
	return ctx.Err()
}

// errMoved ends a connection because the global sends the zone away, to come back by another one: the replica that it leads to stops, or
// zones are to spread over the replicas again.
var errMoved = errors.New("sent away by the global")

// ended returns why a stream has ended, err: errMoved where the global says so.
func ended(stream grpc.ClientStream, err error) error {
	if status.Code(err) == codes.Unavailable && len(stream.Trailer().Get(kds.HeaderLeaving)) > 0 { // Recv has returned it
		return fmt.Errorf("%w: %w", errMoved, err)
	}
	return err
}

// errStopping ends a connection because the zone stops.
var errStopping = errors.New("the zone stops")

// leave tells the global that the zone stops and will be back, so that it does not take it for dead. A global that cannot
// be told within a moment has to believe what it sees.
func (u *Upstream) leave(ctx context.Context, client meshv1.GlobalKDSServiceClient) {
	if !u.Connected() {
		return
	}
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, kds.HeaderLeaving, "1"), leaveTimeout)
	defer cancel()
	if _, err := client.HealthCheck(ctx, &meshv1.ZoneHealthCheckRequest{}, grpc.WaitForReady(false)); err != nil {
		u.o.Log.DebugContext(ctx, "the global was not told that the zone stops", "err", err)
	}
}

const leaveTimeout = 500 * time.Millisecond

// zoneToken puts the zone's token into every call.
type zoneToken struct {
	token  func() (config.Secret, error)
	secure bool // refuse to send it in plain text
}

// GetRequestMetadata implements [credentials.PerRPCCredentials].
func (z zoneToken) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	token, err := z.token()
	if err != nil {
		return nil, err
	}
	return map[string]string{"authorization": "Bearer " + string(token)}, nil
}

// RequireTransportSecurity implements [credentials.PerRPCCredentials].
func (z zoneToken) RequireTransportSecurity() bool { return z.secure }

// refused reports, and logs, that a call failed because the global does not take this zone for who it says it is: that
// will not mend itself.
func (u *Upstream) refused(ctx context.Context, err error) bool {
	if status.Code(err) != codes.Unauthenticated {
		return false
	}
	hint := "look at the token in MERIDIAN_ZONE_TOKEN_FILE: its zone, its scope (cp), its expiry, its revocation"
	if u.o.Token == nil {
		hint = "set MERIDIAN_ZONE_TOKEN_FILE to a zone token of scope cp"
	}
	u.o.Log.ErrorContext(ctx, "the global refuses this zone, which works on with what it has and tries again", "err", err, "hint", hint)
	return true
}

// supervise runs one stream again whenever it fails, independently of the others, unless this replica leads no more or the global
// sends it away.
func (u *Upstream) supervise(ctx context.Context, name string, run func(context.Context) error) error {
	retry := u.retry()
	for {
		began := time.Now()
		streamCtx, cancel := context.WithCancel(ctx)
		err := run(streamCtx)
		cancel()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if errors.Is(err, store.ErrLeaseLost) || errors.Is(err, errMoved) {
			return err
		}
		if !u.refused(ctx, err) {
			u.o.Log.WarnContext(ctx, "stream to the global failed", "stream", name, "err", err)
		}
		if !retry.wait(ctx, time.Since(began)) {
			return ctx.Err()
		}
	}
}

// superviseOptional is supervise for a stream that a global need not have. Sync streams are none of these: for them
// Unimplemented is what a proxy says while the global behind it restarts.
func (u *Upstream) superviseOptional(ctx context.Context, name string, run func(context.Context) error) error {
	return u.supervise(ctx, name, func(ctx context.Context) error {
		err := run(ctx)
		if status.Code(err) == codes.Unimplemented {
			u.o.Log.InfoContext(ctx, "the global does not serve a stream; going on without", "stream", name)
			<-ctx.Done()
		}
		return err
	})
}

// receive subscribes to what the global has for this zone.
func (u *Upstream) receive(ctx context.Context, client meshv1.KDSSyncServiceClient, update kds.Update, readers *sync.WaitGroup) error {
	stream, err := client.GlobalToZoneSync(ctx)
	if err != nil {
		return fmt.Errorf("open stream: %w", err)
	}
	subscriber := kds.NewSubscriber(kds.SubscriberConfig{
		Direction: kds.Down, Peer: kds.GlobalIdentifier, Store: u.o.Store, Update: update, Header: stream.Header,
		Node: kds.Node{
			ID: u.o.Config.Zone, InstanceID: u.o.InstanceID, PlaneID: u.o.Store.ID(), Version: u.o.Version,
			Config: u.o.EffectiveConfig(), Features: []string{kds.FeatureResume},
		},
		VerifyCluster: func(ctx context.Context, id string) error { return u.verifyCluster(ctx, update, id) },
		SendTimeout:   u.o.Config.AckTimeout,
		Metrics:       u.o.Metrics, Log: u.o.Log.With("direction", kds.Down.String()),
	})
	defer u.setOnline(false)
	return ended(stream, subscriber.Run(ctx, stream, readers))
}

func (u *Upstream) setOnline(online bool) {
	u.online.Store(online)
	u.gauge.Set(0)
	if online {
		u.gauge.Set(1)
	}
}

// send publishes what this zone owns.
func (u *Upstream) send(ctx context.Context, client meshv1.KDSSyncServiceClient, readers *sync.WaitGroup) error {
	stream, err := client.ZoneToGlobalSync(ctx)
	if err != nil {
		return fmt.Errorf("open stream: %w", err)
	}
	publisher := kds.NewPublisher(kds.PublisherConfig{
		Direction: kds.Up, Zone: u.o.Config.Zone, Identifier: u.o.Config.Zone, Store: u.o.Store, Encoder: u.encoder,
		MaxMessageBytes: u.o.Config.MaxMessageBytes, AckTimeout: u.o.Config.AckTimeout, InsightInterval: u.o.Config.InsightInterval,
		Metrics: u.o.Metrics, Log: u.o.Log.With("direction", kds.Up.String()),
	})
	return ended(stream, publisher.Run(ctx, stream, readers))
}

// healthChecks calls the global at the interval it asks for. An answer that does not come means that the connection is
// dead, however open it looks.
func (u *Upstream) healthChecks(ctx context.Context, client meshv1.GlobalKDSServiceClient) error {
	interval := u.o.Config.HealthCheckInterval
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-timer.C:
		}
		next, err := u.healthCheck(ctx, client)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case status.Code(err) == codes.Unimplemented:
			<-ctx.Done()
			return ctx.Err()
		case err != nil:
			return fmt.Errorf("health check: %w", err)
		case next > 0:
			interval = next
		}
		timer.Reset(interval)
	}
}

func (u *Upstream) healthCheck(ctx context.Context, client meshv1.GlobalKDSServiceClient) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, u.o.Config.HealthCheckTimeout)
	defer cancel()
	resp, err := client.HealthCheck(ctx, &meshv1.ZoneHealthCheckRequest{})
	if err != nil {
		return 0, err
	}
	return resp.GetInterval().AsDuration(), nil
}

// clusterKey is where the zone keeps the cluster id of its global: bookkeeping, never served nor sent.
var clusterKey = store.Key{Type: "PlaneState", Name: "global-cluster-id"}

// verifyCluster admits the global this zone belongs to: the one named in the configuration, else the first one met.
func (u *Upstream) verifyCluster(ctx context.Context, update kds.Update, id string) error {
	known := ""
	if rec, ok := u.o.Store.Snapshot().Get(clusterKey); ok {
		known = string(rec.Spec)
	}
	want := u.o.Config.AcceptGlobal
	if want == "" {
		want = known
	}
	if want != "" && id != want {
		u.foreign.Set(1)
		u.o.Log.ErrorContext(ctx, "the global that answers is not the one this zone belongs to; nothing of it is applied",
			"cluster", id, "expected", want, "accept_with", "MERIDIAN_ZONE_ACCEPT_GLOBAL")
		return fmt.Errorf("%w: %s, not %s", kds.ErrForeignGlobal, id, want)
	}
	u.foreign.Set(0)
	if id != known {
		if _, err := update(ctx, func(*store.Snapshot) ([]store.Op, error) {
			return []store.Op{store.Put(&store.Record{Key: clusterKey, Spec: []byte(id)})}, nil
		}); err != nil {
			return fmt.Errorf("remember the global's cluster id: %w", err)
		}
		u.o.Log.InfoContext(ctx, "zone belongs to global", "cluster", id)
	}
	u.setOnline(true)
	return nil
}

// retry is a jittered exponential back-off that starts over after a run that lasted.
type retry struct {
	base, limit, next time.Duration
}

func (u *Upstream) retry() *retry {
	return &retry{base: u.o.Config.ReconnectBase, limit: u.o.Config.ReconnectMax, next: u.o.Config.ReconnectBase}
}

// wait reports false when ctx ended first.
func (r *retry) wait(ctx context.Context, ran time.Duration) bool {
	if ran > r.limit {
		r.next = r.base
	}
	pause := r.next/2 + rand.N(r.next/2+1) //nolint:gosec // jitter needs no secrecy
	r.next = min(r.next*2, r.limit)
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
