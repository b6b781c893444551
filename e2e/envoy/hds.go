package envoy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	healthv3 "github.com/envoyproxy/go-control-plane/envoy/service/health/v3"
	"google.golang.org/grpc/metadata"
)

func (p *Proxy) runHDS(ctx context.Context, d *dialer) {
	p.again(ctx, func() (bool, error) { return p.healthSession(ctx, d) })
}

// healthSession is one stream: it takes specifiers, checks what the last one names, and reports at its interval.
func (p *Proxy) healthSession(ctx context.Context, d *dialer) (useful bool, err error) {
	conn, err := d.dial()
	if err != nil {
		return false, err
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithCancel(metadata.NewOutgoingContext(ctx, d.metadata))
	stream, err := healthv3.NewHealthDiscoveryServiceClient(conn).StreamHealthCheck(ctx)
	if err != nil {
		cancel()
		return false, fmt.Errorf("open the HDS stream: %w", err)
	}
	hello := &healthv3.HealthCheckRequest{Node: p.bootstrap.GetNode(), Capability: &healthv3.Capability{
		HealthCheckProtocols: []healthv3.Capability_Protocol{healthv3.Capability_HTTP, healthv3.Capability_TCP},
	}}
	if err := stream.Send(&healthv3.HealthCheckRequestOrEndpointHealthResponse{
		RequestType: &healthv3.HealthCheckRequestOrEndpointHealthResponse_HealthCheckRequest{HealthCheckRequest: hello},
	}); err != nil {
		cancel()
		return false, fmt.Errorf("HDS stream: %w", err)
	}
	specifiers := make(chan *healthv3.HealthCheckSpecifier)
	var reader sync.WaitGroup
	var ended error
	reader.Go(func() {
		defer close(specifiers)
		for {
			s, err := stream.Recv()
			if err != nil {
				ended = fmt.Errorf("HDS stream: %w", err)
				return
			}
			select {
			case specifiers <- s:
			case <-ctx.Done():
				return
			}
		}
	})
	defer reader.Wait()
	defer cancel()

	var checks []*endpointCheck
	stopChecks := func() {}
	defer func() { stopChecks() }()
	report := time.NewTicker(time.Hour)
	defer report.Stop()
	for {
		select {
		case s, ok := <-specifiers:
			if !ok {
				return useful, ended
			}
			useful = true
			if err := check(s); err != nil {
				return useful, fmt.Errorf("HDS specifier: %w", err)
			}
			stopChecks()
			if checks, stopChecks, err = startChecks(ctx, s); err != nil {
				_ = p.fail("HDS: %s", err)
				return useful, err
			}
			report.Reset(max(s.GetInterval().AsDuration(), 10*time.Millisecond))
		case <-report.C:
			if checks == nil {
				continue
			}
			if err := stream.Send(&healthv3.HealthCheckRequestOrEndpointHealthResponse{
				RequestType: &healthv3.HealthCheckRequestOrEndpointHealthResponse_EndpointHealthResponse{
					EndpointHealthResponse: healthReport(checks),
				},
			}); err != nil {
				return useful, fmt.Errorf("HDS stream: %w", err)
			}
		}
	}
}

// endpointCheck is the health of one endpoint of one cluster.
type endpointCheck struct {
	cluster  string
	locality *corev3.Locality
	endpoint *endpointv3.Endpoint
	check    *corev3.HealthCheck

	mu        sync.Mutex // guards what follows
	status    corev3.HealthStatus
	good, bad uint32 // results in a row
}

// startChecks runs the checks of a specifier until stop, which waits for them.
func startChecks(ctx context.Context, s *healthv3.HealthCheckSpecifier) (checks []*endpointCheck, stop func(), err error) {
	checks = []*endpointCheck{}
	for _, c := range s.GetClusterHealthChecks() {
		if len(c.GetHealthChecks()) != 1 {
			return nil, func() {}, fmt.Errorf("%w: %d health checks of cluster %q", ErrUnsupported, len(c.GetHealthChecks()), c.GetClusterName())
		}
		hc := c.GetHealthChecks()[0]
		if hc.GetHttpHealthCheck() == nil && hc.GetTcpHealthCheck() == nil {
			return nil, func() {}, fmt.Errorf("%w: health check %T", ErrUnsupported, hc.GetHealthChecker())
		}
		if tcp := hc.GetTcpHealthCheck(); tcp != nil && (tcp.GetSend() != nil || len(tcp.GetReceive()) > 0) {
			return nil, func() {}, fmt.Errorf("%w: TCP health check with payload", ErrUnsupported)
		}
		for _, group := range c.GetLocalityEndpoints() {
			for _, e := range group.GetEndpoints() {
				checks = append(checks, &endpointCheck{
					cluster: c.GetClusterName(), locality: group.GetLocality(), endpoint: e, check: hc, status: corev3.HealthStatus_UNHEALTHY,
				})
			}
		}
	}
	ctx, cancel := context.WithCancel(ctx)
	var group sync.WaitGroup
	for _, c := range checks {
		group.Go(func() {
			for {
				c.note(c.try(ctx))
				if !pause(ctx, max(c.check.GetInterval().AsDuration(), 10*time.Millisecond)) {
					return
				}
			}
		})
	}
	return checks, func() { cancel(); group.Wait() }, nil
}

// note counts a result; the first decides at once, as in Envoy.
func (c *endpointCheck) note(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	first := c.good+c.bad == 0
	if err == nil {
		c.good, c.bad = c.good+1, 0
		if first || c.good >= c.check.GetHealthyThreshold().GetValue() {
			c.status = corev3.HealthStatus_HEALTHY
		}
		return
	}
	c.good, c.bad = 0, c.bad+1
	if first || c.bad >= c.check.GetUnhealthyThreshold().GetValue() {
		c.status = corev3.HealthStatus_UNHEALTHY
	}
}

func (c *endpointCheck) try(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.check.GetTimeout().AsDuration())
	defer cancel()
	s := c.endpoint.GetAddress().GetSocketAddress()
	target := net.JoinHostPort(s.GetAddress(), strconv.Itoa(int(s.GetPortValue())))
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", target)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	h := c.check.GetHttpHealthCheck()
	if h == nil {
		return nil
	}
	transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return conn, nil }}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+target+h.GetPath(), http.NoBody)
	if err != nil {
		return err
	}
	if h.GetHost() != "" {
		req.Host = h.GetHost()
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20))
	for _, r := range h.GetExpectedStatuses() {
		if int64(resp.StatusCode) >= r.GetStart() && int64(resp.StatusCode) < r.GetEnd() {
			return nil
		}
	}
	if len(h.GetExpectedStatuses()) == 0 && resp.StatusCode == http.StatusOK {
		return nil
	}
	return errors.New(resp.Status)
}

// healthReport is what Envoy reports: flat, and by cluster and locality.
func healthReport(checks []*endpointCheck) *healthv3.EndpointHealthResponse {
	out := &healthv3.EndpointHealthResponse{}
	for _, c := range checks {
		c.mu.Lock()
		health := &healthv3.EndpointHealth{Endpoint: c.endpoint, HealthStatus: c.status}
		c.mu.Unlock()
		//nolint:staticcheck // Envoy still sends the flat list
		out.EndpointsHealth = append(out.EndpointsHealth, health)
		i := slices.IndexFunc(out.ClusterEndpointsHealth, func(h *healthv3.ClusterEndpointsHealth) bool { return h.ClusterName == c.cluster })
		if i < 0 {
			i = len(out.ClusterEndpointsHealth)
			out.ClusterEndpointsHealth = append(out.ClusterEndpointsHealth, &healthv3.ClusterEndpointsHealth{ClusterName: c.cluster})
		}
		of := out.ClusterEndpointsHealth[i]
		if n := len(of.LocalityEndpointsHealth); n == 0 || of.LocalityEndpointsHealth[n-1].Locality != c.locality {
			of.LocalityEndpointsHealth = append(of.LocalityEndpointsHealth, &healthv3.LocalityEndpointsHealth{Locality: c.locality})
		}
		last := of.LocalityEndpointsHealth[len(of.LocalityEndpointsHealth)-1]
		last.EndpointsHealth = append(last.EndpointsHealth, health)
	}
	return out
}
