// Package hds asks Envoy whether the workload beside it answers, over Envoy's health discovery service, and keeps the answer in
// the inbounds of the proxy's Dataplane. There, configuration and insights see it like any other change.
package hds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	healthv3 "github.com/envoyproxy/go-control-plane/envoy/service/health/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/zone/proxies"
)

// Proxies decides who may open a stream. *proxies.Registry is one.
type Proxies interface {
	Attach(ctx context.Context, n *corev3.Node, authorization []string) (*proxies.Session, error)
}

// Options is what a Server works with.
type Options struct {
	Config  Config
	Proxies Proxies
	Store   *store.Store
	Log     *slog.Logger // nil: nowhere
}

// Server serves health discovery to proxies. Safe for concurrent use.
type Server struct {
	healthv3.UnimplementedHealthDiscoveryServiceServer

	// Set by New, read-only after.
	cfg     Config
	proxies Proxies
	store   *store.Store
	log     *slog.Logger

	readers sync.WaitGroup // goroutines that receive; each ends with its stream

	mu      sync.Mutex // guards what follows
	reports map[store.Key]report
	wake    chan struct{} // cap 1, level-triggered: reports is not empty
}

// report is what a proxy said last: whether Envoy is ready, and each probed port. A port that is not in it is not probed, or
// not known yet.
type report struct {
	envoy bool
	ports map[uint32]bool
}

// New returns a server without streams. Run stores what it is told.
func New(o Options) (*Server, error) {
	if o.Proxies == nil || o.Store == nil {
		return nil, errors.New("hds: proxies and store must be set")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{
		cfg: o.Config, proxies: o.Proxies, store: o.Store, log: o.Log, reports: make(map[store.Key]report), wake: make(chan struct{}, 1),
	}, nil
}

// Register adds the service to a gRPC server.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	healthv3.RegisterHealthDiscoveryServiceServer(r, s)
}

// What the search for the resource of a proxy that is about to be registered may take.
const (
	attempts     = 30
	attemptDelay = time.Second
)

// firstMessage is how long after its opening a stream must have said whose it is.
const firstMessage = 30 * time.Second

// StreamHealthCheck serves one proxy.
func (s *Server) StreamHealthCheck(stream healthv3.HealthDiscoveryService_StreamHealthCheckServer) error {
	ctx := stream.Context()
	// Receiving ends with the stream, which ends when this function returns.
	received := make(chan *healthv3.HealthCheckRequestOrEndpointHealthResponse)
	failed := make(chan error, 1)
	s.readers.Go(func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				failed <- err
				return
			}
			select {
			case received <- m:
			case <-ctx.Done():
				return
			}
		}
	})

	// Whoever reaches the port can open streams; those that say nothing are not kept.
	silent := time.NewTimer(firstMessage)
	defer silent.Stop()
	var first *healthv3.HealthCheckRequestOrEndpointHealthResponse
	select {
	case first = <-received:
		silent.Stop()
	case err := <-failed:
		return err
	case <-silent.C:
		return status.Error(codes.DeadlineExceeded, "no message has come on the stream")
	case <-ctx.Done():
		return ctx.Err() //nolint:wrapcheck // gRPC makes a status of it
	}
	n := first.GetHealthCheckRequest().GetNode()
	if n == nil {
		return status.Error(codes.InvalidArgument, "the first message names no node")
	}
	session, err := s.attach(ctx, n)
	if err != nil {
		return err
	}
	defer session.Close()
	if session.Key().Type != string(resource.Dataplane) {
		return status.Error(codes.InvalidArgument, "only dataplanes have workloads to check")
	}

	var sent told // nothing
	for {
		changed := s.store.Changed(session.Key().Type)
		if sent, err = s.send(stream, session, sent); err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err() //nolint:wrapcheck // gRPC makes a status of it
		case <-session.Done():
			return session.Err() //nolint:wrapcheck // a status
		case err := <-failed:
			return err
		case <-changed:
		case m := <-received:
			if err := session.Check(); err != nil {
				return err //nolint:wrapcheck // a status
			}
			if r := m.GetEndpointHealthResponse(); r != nil {
				s.note(session.Key(), reportOf(r))
			}
		}
	}
}

// attach authenticates the proxy. One that is not registered yet is waited for: its other stream may be a moment later.
func (s *Server) attach(ctx context.Context, n *corev3.Node) (*proxies.Session, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	for attempt := 1; ; attempt++ {
		session, err := s.proxies.Attach(ctx, n, md.Get("authorization"))
		if err == nil || status.Code(err) != codes.NotFound || attempt == attempts {
			return session, err //nolint:wrapcheck // a status
		}
		timer := time.NewTimer(attemptDelay)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err() //nolint:wrapcheck // gRPC makes a status of it
		}
	}
}

// told is what a proxy was asked to check last, and the resource that this was made from.
type told struct {
	from *store.Record
	what *healthv3.HealthCheckSpecifier
}

// send tells the proxy what to check, when that is not what it was told before.
func (s *Server) send(stream healthv3.HealthDiscoveryService_StreamHealthCheckServer, session *proxies.Session, before told) (told, error) {
	rec, ok := s.store.Snapshot().Get(session.Key())
	if !ok || rec == before.from {
		return before, nil // when it is gone, the session is about to end
	}
	var dp meshv1.Dataplane
	if err := proto.Unmarshal(rec.Spec, &dp); err != nil {
		return before, status.Error(codes.Internal, "the stored resource of the proxy cannot be read")
	}
	now := told{rec, s.specifier(&dp, session.Metadata())}
	if proto.Equal(now.what, before.what) {
		return now, nil
	}
	return now, stream.Send(now.what) //nolint:wrapcheck // a status
}

// note keeps what a proxy reports until it is stored.
func (s *Server) note(key store.Key, r report) {
	s.mu.Lock()
	s.reports[key] = r
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default: // already awake
	}
}

// Run stores what proxies report, until ctx ends and the streams have ended. What comes while a batch is stored makes up the
// next; reports that change nothing are not stored.
func (s *Server) Run(ctx context.Context) error {
	defer s.readers.Wait()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.wake:
		}
		if err := s.flush(ctx); err != nil && ctx.Err() == nil {
			// The proxies report again, every few seconds.
			s.log.WarnContext(ctx, "the health of workloads could not be stored", "err", err)
		}
	}
}

func (s *Server) flush(ctx context.Context) error {
	s.mu.Lock()
	reports := s.reports
	s.reports = make(map[store.Key]report)
	s.mu.Unlock()
	now := time.Now().UTC()
	if ops, _ := edits(s.store.Snapshot(), reports, now); len(ops) == 0 {
		return nil // as nearly always: nothing for the committer
	}
	_, err := s.store.Update(ctx, func(head *store.Snapshot) ([]store.Op, error) { return edits(head, reports, now) })
	if err != nil {
		return fmt.Errorf("store the health of %d proxies: %w", len(reports), err)
	}
	return nil
}

// edits are the ops that give dataplanes the health that was reported.
func edits(snap *store.Snapshot, reports map[store.Key]report, now time.Time) ([]store.Op, error) {
	var ops []store.Op
	for key, r := range reports {
		rec, ok := snap.Get(key)
		if !ok || rec.Origin != "" {
			continue
		}
		var dp meshv1.Dataplane
		if err := proto.Unmarshal(rec.Spec, &dp); err != nil || !apply(&dp, r) {
			continue
		}
		spec, err := proto.MarshalOptions{Deterministic: true}.Marshal(&dp)
		if err != nil {
			return nil, fmt.Errorf("encode %s: %w", key, err)
		}
		ops = append(ops, store.Put(&store.Record{Key: key, Spec: spec, Labels: rec.Labels, Created: rec.Created, Modified: now}))
	}
	return ops, nil
}

// apply gives every inbound the health that was reported, and reports whether that changed anything. An inbound with a probe
// of which nothing is known yet stays as it is.
func apply(dp *meshv1.Dataplane, r report) bool {
	changed := false
	for _, in := range dp.GetNetworking().GetInbound() {
		ready := r.envoy
		if in.GetServiceProbe() != nil {
			workload, known := r.ports[workloadPort(in)]
			if !known && r.envoy {
				continue
			}
			ready = r.envoy && workload
		}
		if in.GetHealth() == nil || in.GetHealth().GetReady() != ready {
			in.Health = &meshv1.Dataplane_Networking_Inbound_Health{Ready: ready}
			changed = true
		}
	}
	return changed
}
