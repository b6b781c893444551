package hds

import (
	"net"
	"slices"
	"strconv"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	healthv3 "github.com/envoyproxy/go-control-plane/envoy/service/health/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/zone/proxies"
)

const (
	// adminCluster is Envoy itself.
	adminCluster = "kuma:envoy:admin"
	loopback     = "127.0.0.1"
	loopbackIPv6 = "::1"
)

// specifier is what a proxy is asked to check: itself, and each workload that has a probe.
func (s *Server) specifier(dp *meshv1.Dataplane, m proxies.Metadata) *healthv3.HealthCheckSpecifier {
	spec := &healthv3.HealthCheckSpecifier{Interval: durationpb.New(s.cfg.Interval)}
	if m.AdminPort != 0 {
		address := loopback
		if m.AdminAddress == loopbackIPv6 || m.AdminAddress == "::" {
			address = loopbackIPv6
		}
		check := s.check(nil)
		check.HealthChecker = &corev3.HealthCheck_HttpHealthCheck_{HttpHealthCheck: &corev3.HealthCheck_HttpHealthCheck{Path: "/ready"}}
		spec.ClusterHealthChecks = append(spec.ClusterHealthChecks, clusterCheck(adminCluster, address, m.AdminPort, check))
	}
	var asked []uint32
	for _, in := range dp.GetNetworking().GetInbound() {
		port := workloadPort(in)
		if in.GetServiceProbe() == nil || slices.Contains(asked, port) {
			continue
		}
		asked = append(asked, port)
		check := s.check(in.GetServiceProbe())
		check.HealthChecker = &corev3.HealthCheck_TcpHealthCheck_{TcpHealthCheck: &corev3.HealthCheck_TcpHealthCheck{}}
		spec.ClusterHealthChecks = append(spec.ClusterHealthChecks, clusterCheck(workloadCluster(port), loopback, port, check))
	}
	return spec
}

// workloadPort is where the workload behind an inbound listens.
func workloadPort(in *meshv1.Dataplane_Networking_Inbound) uint32 {
	if p := in.GetServicePort(); p != 0 {
		return p
	}
	return in.GetPort()
}

func workloadCluster(port uint32) string { return "localhost:" + strconv.FormatUint(uint64(port), 10) }

// portOf is the workload's port that a cluster of the specifier checks.
func portOf(cluster string) (uint32, bool) {
	host, port, err := net.SplitHostPort(cluster)
	if err != nil || host != "localhost" {
		return 0, false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return uint32(n), err == nil
}

// check is a check without its kind. A probe says what it wants to be different.
func (s *Server) check(probe *meshv1.Dataplane_Networking_Inbound_ServiceProbe) *corev3.HealthCheck {
	c := s.cfg.Check
	return &corev3.HealthCheck{
		Timeout: duration(probe.GetTimeout(), c.Timeout), Interval: duration(probe.GetInterval(), c.Interval),
		NoTrafficInterval:  durationpb.New(c.NoTrafficInterval),
		HealthyThreshold:   threshold(probe.GetHealthyThreshold(), c.HealthyThreshold),
		UnhealthyThreshold: threshold(probe.GetUnhealthyThreshold(), c.UnhealthyThreshold),
	}
}

func duration(d *durationpb.Duration, otherwise time.Duration) *durationpb.Duration {
	if d != nil {
		return d
	}
	return durationpb.New(otherwise)
}

func threshold(n *wrapperspb.UInt32Value, otherwise uint32) *wrapperspb.UInt32Value {
	if n != nil {
		return n
	}
	return wrapperspb.UInt32(otherwise)
}

func clusterCheck(cluster, address string, port uint32, check *corev3.HealthCheck) *healthv3.ClusterHealthCheck {
	return &healthv3.ClusterHealthCheck{
		ClusterName: cluster, HealthChecks: []*corev3.HealthCheck{check},
		LocalityEndpoints: []*healthv3.LocalityEndpoints{{Endpoints: []*endpointv3.Endpoint{{
			Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
				Address: address, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
			}}},
		}}}},
	}
}

// reportOf reads what a proxy reports. A proxy that says nothing of itself, for it has no admin port, is ready: it answers.
func reportOf(r *healthv3.EndpointHealthResponse) report {
	out := report{envoy: true, ports: make(map[uint32]bool)}
	for _, c := range r.GetClusterEndpointsHealth() {
		healthy := true
		for _, l := range c.GetLocalityEndpointsHealth() {
			for _, e := range l.GetEndpointsHealth() {
				st := e.GetHealthStatus()
				healthy = healthy && (st == corev3.HealthStatus_HEALTHY || st == corev3.HealthStatus_UNKNOWN)
			}
		}
		if c.GetClusterName() == adminCluster {
			out.envoy = healthy
		} else if port, ok := portOf(c.GetClusterName()); ok {
			out.ports[port] = healthy
		}
	}
	return out
}
