// Package kdsserver is the gRPC server that zones connect to: the two sync streams, the health check, and the three
// reverse streams for proxy administration.
package kdsserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	_ "google.golang.org/grpc/encoding/gzip" // Kuma zones compress every message
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/tokens"
	"github.com/meridian-mesh/meridian/common/grpcrecover"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/global/admin"
	"github.com/meridian-mesh/meridian/global/zones"
	"github.com/meridian-mesh/meridian/sync/kds"
)

// Config tunes the server. Durations and sizes must be positive.
type Config struct {
	MaxMessageBytes     int
	HealthCheckInterval time.Duration // what zones are told
	AckTimeout          time.Duration
	InsightInterval     time.Duration
	Keepalive           time.Duration // how often an idle connection is pinged, and how often a client may ping
	// MaxSessionAge is how long a zone stays connected, up to a tenth more or less, before it is asked to connect anew; 0: no matter
	// how long.
	MaxSessionAge time.Duration
	// DrainTimeout is how long a stop waits for handlers before it cuts connections.
	DrainTimeout time.Duration
	Auth         Auth
}

// Options are what the server stands on.
type Options struct {
	Config     Config
	ClusterID  string
	InstanceID string
	Version    kds.Version
	Store      *store.Store
	Zones      *zones.Table
	// Proxies asks over the streams that zones open for that; nil: they stay idle.
	Proxies *admin.Registry
	Tokens  *tokens.Authority // needed where zones authenticate
	TLS     *tls.Config       // nil: plain text
	Metrics *kds.Metrics
	// Registerer takes the server's own metrics; nil: none are exported.
	Registerer prometheus.Registerer
	Log        *slog.Logger
}

// Server serves KDS to zones.
type Server struct {
	meshv1.UnimplementedKDSSyncServiceServer
	meshv1.UnimplementedGlobalKDSServiceServer

	o       Options
	grpc    *grpc.Server
	encoder *kds.Encoder
	refused prometheus.Counter
	readers sync.WaitGroup // of streams; each ends when its handler has returned
	refuse  chan struct{}  // closed: no connection is accepted any more
	drained sync.Once
}

// New returns a server that is not listening yet.
func New(o Options) *Server {
	s := &Server{o: o, encoder: kds.NewEncoder(), refuse: make(chan struct{}), refused: prometheus.NewCounter(prometheus.CounterOpts{
		Namespace: "meridian", Subsystem: "zones", Name: "unauthenticated_total",
		Help: "Calls refused because the caller could not prove to be the zone it claims to be.",
	})}
	if o.Registerer != nil {
		o.Registerer.MustRegister(s.refused)
	}
	opts := append(grpcrecover.Options(o.Log),
		grpc.MaxRecvMsgSize(o.Config.MaxMessageBytes),
		grpc.MaxSendMsgSize(o.Config.MaxMessageBytes),
		grpc.MaxConcurrentStreams(1024), // per connection; a zone opens six
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: o.Config.Keepalive, Timeout: o.Config.Keepalive}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: o.Config.Keepalive * 9 / 10, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
	)
	if o.TLS != nil {
		opts = append(opts, grpc.Creds(credentials.NewTLS(o.TLS)))
	}
	s.grpc = grpc.NewServer(opts...)
	meshv1.RegisterKDSSyncServiceServer(s.grpc, s)
	meshv1.RegisterGlobalKDSServiceServer(s.grpc, s)
	return s
}

// Serve accepts connections from l until ctx ends, then ends every stream and waits for the handlers.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	watching, stopWatching := context.WithCancel(ctx)
	var watcher sync.WaitGroup
	if s.o.Config.Auth.Required {
		watcher.Go(func() { s.watchTokens(watching) })
	}
	defer watcher.Wait()
	defer stopWatching()
	served := make(chan error, 1)
	go func() { served <- s.grpc.Serve(l) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve KDS: %w", err)
	case <-s.refuse:
		_ = l.Close() // its only error is that it was closed before
		<-ctx.Done()
	case <-ctx.Done():
	}
	s.o.Zones.Shutdown()
	stopped := make(chan struct{})
	go func() { s.grpc.GracefulStop(); close(stopped) }()
	timer := time.NewTimer(s.o.Config.DrainTimeout)
	defer timer.Stop()
	select {
	case <-stopped:
	case <-timer.C:
		s.grpc.Stop()
		<-stopped
	}
	if err := <-served; err != nil && !errors.Is(err, net.ErrClosed) {
		s.o.Log.WarnContext(ctx, "KDS listener ended with an error", "err", err)
	}
	s.readers.Wait()
	return nil
}

// Drain accepts no connections and no streams from now on, and tells the zones to go to other replicas of this plane, one by one, over a
// time. Serve goes on with those that are left.
func (s *Server) Drain(ctx context.Context, over time.Duration) {
	s.drained.Do(func() { close(s.refuse) })
	s.o.Zones.Drain(ctx, over)
}

// hello reads who calls from the request headers, and refuses who cannot prove it.
func (s *Server) hello(ctx context.Context, missing codes.Code) (zones.Hello, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	one := func(key string) string {
		if v := md.Get(key); len(v) > 0 {
			return v[0]
		}
		return ""
	}
	h := zones.Hello{
		Zone: one(kds.HeaderClientID), PlaneID: one(kds.HeaderPlaneID), Session: one(kds.HeaderSession),
		Leaving: one(kds.HeaderLeaving) != "",
	}
	if h.Zone == "" {
		return h, status.Errorf(missing, "%q is not present in metadata", kds.HeaderClientID)
	}
	if err := resource.CheckZoneName(h.Zone); err != nil {
		return h, status.Errorf(codes.InvalidArgument, "client-id %q is no zone name: %v", h.Zone, err)
	}
	for _, f := range md.Get(kds.HeaderFeatures) {
		h.Pings = h.Pings || f == kds.FeaturePing
		h.Inspects = h.Inspects || f == kds.FeatureInspect
	}
	if p, ok := peer.FromContext(ctx); ok {
		h.Address, h.Secure = p.Addr.String(), p.AuthInfo != nil && p.AuthInfo.AuthType() == "tls"
	}
	var err error
	if h.Credential, err = s.credential(md, h.Zone); err != nil {
		return h, s.refuse(ctx, h, err)
	}
	return h, nil
}

// ensureZone makes the Zone of a caller that is not known yet, whichever RPC comes first, and returns the revision that
// created it.
func (s *Server) ensureZone(ctx context.Context, name string) (store.Revision, error) {
	key := store.Key{Type: string(resource.ZoneType), Name: name}
	if rec, ok := s.o.Store.Snapshot().Get(key); ok {
		return rec.CreateRevision, nil
	}
	spec, err := proto.Marshal(&systemv1.Zone{Enabled: wrapperspb.Bool(true)})
	if err != nil {
		return 0, fmt.Errorf("encode zone: %w", err)
	}
	var existing store.Revision
	created, err := s.o.Store.Update(ctx, func(head *store.Snapshot) ([]store.Op, error) {
		if rec, ok := head.Get(key); ok {
			existing = rec.CreateRevision
			return nil, nil
		}
		existing = 0
		now := time.Now().UTC()
		return []store.Op{store.Put(&store.Record{Key: key, Spec: spec, Created: now, Modified: now})}, nil
	})
	if err != nil {
		return 0, fmt.Errorf("create zone %q: %w", name, err)
	}
	if existing != 0 {
		return existing, nil
	}
	s.o.Log.InfoContext(ctx, "zone created on first contact", "zone", name)
	return created, nil
}

// open admits a stream of the caller.
func (s *Server) open(ctx context.Context, kind zones.Kind, missing codes.Code) (context.Context, zones.Hello, *zones.Stream, error) {
	hello, err := s.hello(ctx, missing)
	if err != nil {
		return nil, hello, nil, err
	}
	if hello.Created, err = s.ensureZone(ctx, hello.Zone); err != nil {
		return nil, hello, nil, statusOf(err)
	}
	streamCtx, stream, err := s.admit(ctx, kind, hello)
	return streamCtx, hello, stream, err
}

// admit opens a stream for a caller whose token was good when it was looked at. A revocation since then found no stream
// to end, so the token is looked at once more now that there is one: what comes later, watchTokens sees to.
func (s *Server) admit(ctx context.Context, kind zones.Kind, hello zones.Hello) (context.Context, *zones.Stream, error) {
	streamCtx, stream, err := s.o.Zones.Open(ctx, kind, hello)
	if err != nil {
		return nil, nil, farewell(ctx, err)
	}
	if hello.Credential.Method == zones.AuthToken {
		if _, err := s.verify(hello.Zone, string(hello.Credential.Token)); err != nil {
			stream.Close(fmt.Errorf("%w: %w", zones.ErrTokenEnded, err))
			return nil, nil, s.refuse(ctx, hello, err)
		}
	}
	return streamCtx, stream, nil
}

func (s *Server) log(hello zones.Hello, dir kds.Direction) *slog.Logger {
	return s.o.Log.With("zone", hello.Zone, "direction", dir.String(), "peer", hello.Address)
}

// GlobalToZoneSync publishes to the zone what it consumes.
func (s *Server) GlobalToZoneSync(g grpc.BidiStreamingServer[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]) error {
	ctx, hello, stream, err := s.open(g.Context(), zones.GlobalToZone, codes.Unknown)
	if err != nil {
		return err
	}
	log := s.log(hello, kds.Down)
	publisher := kds.NewPublisher(kds.PublisherConfig{
		Direction: kds.Down, Zone: hello.Zone, Identifier: kds.GlobalIdentifier, Store: s.o.Store, Encoder: s.encoder,
		MaxMessageBytes: s.o.Config.MaxMessageBytes, AckTimeout: s.o.Config.AckTimeout, InsightInterval: s.o.Config.InsightInterval,
		Observer: stream, Metrics: s.o.Metrics, Log: log,
	})
	stream.Publishing(publisher)
	if age := s.o.Config.MaxSessionAge; age > 0 {
		defer time.AfterFunc(age-age/10+rand.N(age/5+1), func() { s.o.Zones.Move(hello) }).Stop() //nolint:gosec // jitter needs no secrecy
	}
	return s.serve(ctx, g, stream, log, func() error { return publisher.Run(ctx, g, &s.readers) })
}

// ZoneToGlobalSync stores what the zone owns.
func (s *Server) ZoneToGlobalSync(g grpc.BidiStreamingServer[discoveryv3.DeltaDiscoveryResponse, discoveryv3.DeltaDiscoveryRequest]) error {
	ctx, hello, stream, err := s.open(g.Context(), zones.ZoneToGlobal, codes.Unknown)
	if err != nil {
		return err
	}
	log := s.log(hello, kds.Up)
	zoneKey := store.Key{Type: string(resource.ZoneType), Name: hello.Zone}
	subscriber := kds.NewSubscriber(kds.SubscriberConfig{
		Direction: kds.Up, Peer: hello.Zone, Store: s.o.Store, SendTimeout: s.o.Config.AckTimeout, Metrics: s.o.Metrics, Log: log,
		Node: kds.Node{
			ID: hello.Zone, InstanceID: s.o.InstanceID, PlaneID: s.o.Store.ID(), Version: s.o.Version,
			Features: []string{kds.FeatureResume},
		},
		Guard: func(head *store.Snapshot) ([]store.Op, error) {
			// A Zone that was made again since is not the one whose resources this stream has been sending.
			if rec, ok := head.Get(zoneKey); !ok || rec.CreateRevision != hello.Created {
				return nil, zones.ErrZoneDeleted
			}
			return nil, nil
		},
	})
	return s.serve(ctx, g, stream, log, func() error { return subscriber.Run(ctx, g, &s.readers) })
}

func (s *Server) serve(ctx context.Context, g grpc.ServerStream, stream *zones.Stream, log *slog.Logger, run func() error) error {
	err := g.SendHeader(metadata.Pairs(kds.HeaderClusterID, s.o.ClusterID))
	if err == nil {
		err = run()
	}
	if cause := context.Cause(ctx); cause != nil && ctx.Err() != nil && !errors.Is(cause, context.Canceled) {
		err = cause // why the table ended it, whatever that looked like to the stream
	}
	stream.Close(err)
	if expected(err) {
		log.InfoContext(g.Context(), "sync stream ended", "reason", err)
	} else {
		log.WarnContext(g.Context(), "sync stream failed", "err", err)
	}
	return farewell(g.Context(), err)
}

// farewell is statusOf for the end of a stream of ctx. A zone that is to go elsewhere is told so: else it would open the stream again on
// the same connection, for as long as that is there.
func farewell(ctx context.Context, err error) error {
	if errors.Is(err, zones.ErrShutdown) || errors.Is(err, zones.ErrMoved) {
		_ = grpc.SetTrailer(ctx, metadata.Pairs(kds.HeaderLeaving, "1")) // fails only where there is no stream
	}
	return statusOf(err)
}

// expected reports whether a stream ended in the course of things.
func expected(err error) bool {
	if errors.Is(err, kds.ErrStreamEnded) || errors.Is(err, zones.ErrShutdown) || errors.Is(err, zones.ErrMoved) || errors.Is(err, zones.ErrReplaced) ||
		errors.Is(err, zones.ErrZoneDeleted) || errors.Is(err, context.Canceled) {
		return true
	}
	code := status.Code(errors.Unwrap(err))
	return code == codes.Canceled
}

// HealthCheck notes that the zone lives and tells it when to call again.
func (s *Server) HealthCheck(ctx context.Context, _ *meshv1.ZoneHealthCheckRequest) (*meshv1.ZoneHealthCheckResponse, error) {
	hello, err := s.hello(ctx, codes.InvalidArgument)
	if err != nil {
		return nil, err
	}
	if _, err := s.ensureZone(ctx, hello.Zone); err != nil {
		return nil, statusOf(err)
	}
	if err := s.o.Zones.Health(hello); err != nil {
		return nil, statusOf(err)
	}
	return &meshv1.ZoneHealthCheckResponse{Interval: durationpb.New(s.o.Config.HealthCheckInterval)}, nil
}

// StreamXDSConfigs asks the zone for the configuration of its proxies.
func (s *Server) StreamXDSConfigs(g grpc.BidiStreamingServer[meshv1.XDSConfigResponse, meshv1.XDSConfigRequest]) error {
	return s.ask(g, zones.XDSConfigs, func(ctx context.Context, hello zones.Hello) error {
		return s.o.Proxies.ServeXDSConfigs(ctx, hello, g, &s.readers)
	})
}

// StreamStats asks the zone for the statistics of its proxies.
func (s *Server) StreamStats(g grpc.BidiStreamingServer[meshv1.StatsResponse, meshv1.StatsRequest]) error {
	return s.ask(g, zones.Stats, func(ctx context.Context, hello zones.Hello) error {
		return s.o.Proxies.ServeStats(ctx, hello, g, &s.readers)
	})
}

// StreamClusters asks the zone for the clusters of its proxies.
func (s *Server) StreamClusters(g grpc.BidiStreamingServer[meshv1.ClustersResponse, meshv1.ClustersRequest]) error {
	return s.ask(g, zones.Clusters, func(ctx context.Context, hello zones.Hello) error {
		return s.o.Proxies.ServeClusters(ctx, hello, g, &s.readers)
	})
}

// ask serves one of the streams for questions about proxies. Its end concerns nothing but the questions on it.
func (s *Server) ask(g grpc.ServerStream, kind zones.Kind, run func(context.Context, zones.Hello) error) error {
	ctx, hello, stream, err := s.open(g.Context(), kind, codes.InvalidArgument)
	if err != nil {
		return err
	}
	if s.o.Proxies == nil {
		<-ctx.Done()
		err = context.Cause(ctx)
	} else {
		err = run(ctx, hello)
	}
	stream.Close(err)
	if ctx.Err() == nil && !errors.Is(err, kds.ErrStreamEnded) {
		s.o.Log.WarnContext(ctx, "stream for questions about proxies failed", "zone", hello.Zone, "stream", kind.String(), "peer", hello.Address, "err", err)
	}
	return farewell(g.Context(), err)
}

// statusOf maps what ended an RPC to the code its caller sees.
func statusOf(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, kds.ErrProtocol):
		return status.Error(codes.InvalidArgument, err.Error())
	case errors.Is(err, kds.ErrOversize):
		return status.Error(codes.ResourceExhausted, err.Error())
	case errors.Is(err, kds.ErrAckTimeout):
		return status.Error(codes.DeadlineExceeded, err.Error())
	case errors.Is(err, zones.ErrTokenEnded):
		return status.Error(codes.Unauthenticated, err.Error())
	case errors.Is(err, zones.ErrNameTaken):
		return status.Error(codes.AlreadyExists, err.Error())
	case errors.Is(err, zones.ErrReplaced), errors.Is(err, zones.ErrZoneDeleted):
		return status.Error(codes.Aborted, err.Error())
	case errors.Is(err, zones.ErrHealthLost), errors.Is(err, context.Canceled), errors.Is(err, kds.ErrStreamEnded):
		return status.Error(codes.Canceled, err.Error())
	case errors.Is(err, zones.ErrShutdown), errors.Is(err, zones.ErrMoved), errors.Is(err, store.ErrUnavailable), errors.Is(err, store.ErrClosed):
		return status.Error(codes.Unavailable, err.Error())
	}
	var st interface{ GRPCStatus() *status.Status }
	if errors.As(err, &st) {
		return st.GRPCStatus().Err()
	}
	return status.Error(codes.Internal, "stream failed")
}
