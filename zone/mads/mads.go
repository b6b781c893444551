// Package mads tells monitoring systems which proxies to scrape, and how: what kuma_sd_configs of Prometheus reads. It is
// kuma.observability.v1.MonitoringAssignmentDiscoveryService over gRPC, and the same as long polls over HTTP, on one port.
//
// Nothing is asked for at intervals: whoever waits is woken when a mesh, a proxy or a gateway changes, and answered when
// what there is to scrape has changed with it. Names of resources in requests are not looked at: everybody gets all.
package mads

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"

	madsv1 "github.com/meridian-mesh/meridian/api/kuma/observability/v1"
	"github.com/meridian-mesh/meridian/common/oneport"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/tlsconf"
)

// TypeURL is the type of resources that are told.
const TypeURL = "type.googleapis.com/kuma.observability.v1.MonitoringAssignment"

// Path is where fetches over HTTP go.
const Path = "/v3/discovery:monitoringassignments"

const (
	maxBodyBytes   = 1 << 20
	maxConnections = 1024
	keepalive      = 15 * time.Second
	shutdownGrace  = 2 * time.Second
	// transfer is how long a fetch may take beside what it waits.
	transfer = 30 * time.Second
)

// Options is what a [Server] needs.
type Options struct {
	Config

	Store      *store.Store
	Registerer prometheus.Registerer // nil: nothing is exported
	Log        *slog.Logger
}

// Server serves monitoring systems.
type Server struct {
	madsv1.UnimplementedMonitoringAssignmentDiscoveryServiceServer

	o     Options
	log   *slog.Logger
	port  *oneport.Server
	cache *cache
	// waiting holds a token for each fetch and stream.
	waiting chan struct{}
	// stopping is closed when Run begins to stop: who waits is answered now.
	stopping chan struct{}
	readers  sync.WaitGroup // of streams; each ends when its handler has returned
}

// New checks o and binds the listener. Config.Port must not be -1. Who does not call Run must call Close.
func New(o Options) (*Server, error) {
	if err := errors.Join(o.Validate()...); err != nil {
		return nil, fmt.Errorf("mads: %w", err)
	}
	if o.Store == nil || o.Log == nil || o.Port < 0 {
		return nil, errors.New("mads: Store and Log must be set, and the port not be switched off")
	}
	log := o.Log.With("component", "mads")
	s := &Server{
		o: o, log: log, cache: newCache(o.Store, log), waiting: make(chan struct{}, o.MaxWaiting), stopping: make(chan struct{}),
	}
	var secure *tls.Config
	var err error
	if o.TLSCertFile != "" {
		if secure, err = tlsconf.FromFiles(o.TLSCertFile, o.TLSKeyFile); err != nil {
			return nil, fmt.Errorf("mads: %w", err)
		}
	}
	waiting := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Namespace: "meridian", Subsystem: "mads", Name: "waiting",
		Help: "Fetches and streams of monitoring systems that are open.",
	}, func() float64 { return float64(len(s.waiting)) })
	if o.Registerer != nil {
		if err := o.Registerer.Register(waiting); err != nil {
			return nil, fmt.Errorf("mads: register metrics: %w", err)
		}
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+Path, s.fetch)
	s.port, err = oneport.New(oneport.Options{
		Name: "mads", Address: net.JoinHostPort(o.BindAddress, strconv.Itoa(o.Port)), TLS: secure, HTTP: mux,
		Register:       func(r grpc.ServiceRegistrar) { madsv1.RegisterMonitoringAssignmentDiscoveryServiceServer(r, s) },
		Drain:          func(context.Context) { close(s.stopping) },
		MaxConnections: maxConnections, MaxMessageBytes: 64 << 20, RequestTimeout: o.MaxFetchTimeout + transfer,
		Keepalive: keepalive, ShutdownTimeout: shutdownGrace, Log: log,
	})
	if err != nil {
		return nil, err //nolint:wrapcheck // begins with the name given above
	}
	return s, nil
}

// Addr is the address that is listened on.
func (s *Server) Addr() net.Addr { return s.port.Addr() }

// Run serves until ctx ends. Who waits then is answered at once. It is called at most once.
func (s *Server) Run(ctx context.Context) error {
	defer s.readers.Wait()
	return s.port.Run(ctx) //nolint:wrapcheck // begins with the name given to it
}

// Close releases the listener of a server that is not running.
func (s *Server) Close() error {
	return s.port.Close() //nolint:wrapcheck // begins with the name given to it
}

// enter takes a place among those who wait; false: there is none.
func (s *Server) enter() (leave func(), ok bool) {
	select {
	case s.waiting <- struct{}{}:
		return func() { <-s.waiting }, true
	default:
		return nil, false
	}
}

// next returns the assignments as soon as their version is not known any more, or nil when that is not so until done, ctx
// or the server ends.
func (s *Server) next(ctx context.Context, known string, done <-chan time.Time) *Assignments {
	for {
		var changed [3]<-chan struct{} // taken before looking, so that nothing falls in between
		for i, t := range inputs() {
			changed[i] = s.o.Store.Changed(string(t))
		}
		if now := s.cache.current(); now.Version != known {
			return now
		}
		select {
		case <-changed[0]:
		case <-changed[1]:
		case <-changed[2]:
		case <-done:
			return nil
		case <-s.stopping:
			return nil
		case <-ctx.Done():
			return nil
		}
		if errors.Is(s.o.Store.Err(), store.ErrClosed) { // Changed does not block any more
			return nil
		}
		// A rollout changes proxies one by one: what changes within the holdoff is told together.
		timer := time.NewTimer(s.o.Holdoff)
		select {
		case <-timer.C:
		case <-s.stopping:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

func respond(a *Assignments, nonce string) *discoveryv3.DiscoveryResponse {
	return &discoveryv3.DiscoveryResponse{VersionInfo: a.Version, Resources: a.Resources, TypeUrl: TypeURL, Nonce: nonce}
}

// fetch is a long poll: 200 with what is new, 304 when nothing is.
func (s *Server) fetch(w http.ResponseWriter, r *http.Request) {
	wait := s.o.DefaultFetchTimeout
	if v := r.URL.Query().Get("fetch-timeout"); v != "" {
		d, err := time.ParseDuration(v)
		if err != nil || d < 0 {
			problem(w, http.StatusBadRequest, "fetch-timeout: is not a duration such as 30s")
			return
		}
		wait = min(d, s.o.MaxFetchTimeout)
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBodyBytes))
	if err != nil {
		problem(w, http.StatusBadRequest, "the request cannot be read")
		return
	}
	var req discoveryv3.DiscoveryRequest
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(body, &req); err != nil {
		problem(w, http.StatusBadRequest, "the request is not a discovery request in JSON")
		return
	}
	if t := req.GetTypeUrl(); t != "" && t != TypeURL {
		problem(w, http.StatusBadRequest, "type_url: only "+TypeURL+" is served")
		return
	}
	leave, ok := s.enter()
	if !ok {
		w.Header().Set("Retry-After", "5")
		problem(w, http.StatusServiceUnavailable, "too many fetches are waiting")
		return
	}
	defer leave()
	timer := time.NewTimer(wait)
	defer timer.Stop()
	a := s.next(r.Context(), req.GetVersionInfo(), timer.C)
	if a == nil {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	answer, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(respond(a, a.Version))
	if err != nil {
		s.log.ErrorContext(r.Context(), "assignments cannot be rendered", "err", err)
		problem(w, http.StatusInternalServerError, "the answer cannot be rendered")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(answer) // a failed write means that the client is gone
}

func problem(w http.ResponseWriter, code int, details string) {
	body, err := json.Marshal(map[string]string{"title": "Could not fetch monitoring assignments", "details": details})
	if err != nil {
		code = http.StatusInternalServerError
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(body)
}

// FetchMonitoringAssignments answers at once with everything.
func (s *Server) FetchMonitoringAssignments(_ context.Context, req *discoveryv3.DiscoveryRequest) (*discoveryv3.DiscoveryResponse, error) {
	if err := checkType(req); err != nil {
		return nil, err
	}
	a := s.cache.current()
	return respond(a, a.Version), nil
}

func checkType(req *discoveryv3.DiscoveryRequest) error {
	if t := req.GetTypeUrl(); t != "" && t != TypeURL {
		return status.Errorf(codes.InvalidArgument, "only %s is served", TypeURL)
	}
	return nil
}

// StreamMonitoringAssignments sends everything, and everything again whenever something has changed and the response before
// was answered. What a client rejects is not sent again until it changes.
func (s *Server) StreamMonitoringAssignments(stream grpc.BidiStreamingServer[discoveryv3.DiscoveryRequest, discoveryv3.DiscoveryResponse]) error {
	leave, ok := s.enter()
	if !ok {
		return status.Error(codes.ResourceExhausted, "too many streams are open")
	}
	defer leave()
	// The reader touches the stream's Recv and ctx only, and ends at the latest when this function has returned.
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	requests := make(chan *discoveryv3.DiscoveryRequest)
	s.readers.Go(func() {
		for {
			req, err := stream.Recv()
			if err != nil {
				cancel(err)
				return
			}
			select {
			case requests <- req:
			case <-ctx.Done():
				return
			}
		}
	})
	sent, nonce := "", uint64(0)
	for {
		// One response is under way at a time: wait for the first request, then for the answer to each response.
		select {
		case req := <-requests:
			if err := checkType(req); err != nil {
				return err
			}
			if nonce > 0 && req.GetResponseNonce() != strconv.FormatUint(nonce, 10) {
				continue // about a response before
			}
			if nonce == 0 {
				sent = req.GetVersionInfo()
			}
			if e := req.GetErrorDetail(); e != nil {
				s.log.WarnContext(ctx, "monitoring system rejected assignments", "version", sent, "err", e.GetMessage())
			}
		case <-s.stopping:
			return status.Error(codes.Unavailable, "the control plane is stopping")
		case <-ctx.Done():
			return ended(ctx)
		}
		a := s.next(ctx, sent, nil)
		if a == nil {
			if ctx.Err() != nil {
				return ended(ctx)
			}
			return status.Error(codes.Unavailable, "the control plane is stopping")
		}
		nonce++
		sent = a.Version
		if err := stream.Send(respond(a, strconv.FormatUint(nonce, 10))); err != nil {
			return err //nolint:wrapcheck // a status of gRPC
		}
	}
}

// ended is what a stream returns whose client is gone, or has nothing more to say.
func ended(ctx context.Context) error {
	err := context.Cause(ctx)
	if errors.Is(err, io.EOF) || errors.Is(err, context.Canceled) {
		return nil
	}
	return err //nolint:wrapcheck // a status of gRPC
}
