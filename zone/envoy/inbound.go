package envoy

import (
	"fmt"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"

	"github.com/meridian-mesh/meridian/api/dataplane"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/zone/xds"
)

// Timeouts of the side of the server: twice the defaults, so that those of the client act first.
const (
	inboundIdleSeconds       = 7200
	inboundStreamIdleSeconds = 3600
)

// inbound is an inbound and what follows from its tags.
type inbound struct {
	dataplane.Inbound
	service  string
	protocol protocol
}

func (g *generator) inboundOf(raw *meshv1.Dataplane_Networking_Inbound) inbound {
	in := dataplane.InboundOf(g.dp, raw)
	return inbound{Inbound: in, service: in.Tags[serviceTag], protocol: protocolOf(in.Tags[protocolTag])}
}

func (g *generator) inbounds() {
	for i, raw := range g.dp.GetNetworking().GetInbound() {
		in := g.inboundOf(raw)
		if !in.Serves() {
			continue
		}
		g.add(originInbound, xds.Cluster, localClusterName(in.WorkloadPort), g.localCluster(in))
		name := inboundListenerName(in.Address, in.Port)
		g.add(originInbound, xds.Listener, name, g.inboundListener(name, in, g.inboundPolicies(i)))
		if g.p.err != nil {
			g.p.err = fmt.Errorf("inbound %s: %w", hostPort(in.Address, in.Port), g.p.err)
			return
		}
	}
}

// localCluster is the workload behind an inbound.
func (g *generator) localCluster(in inbound) *clusterv3.Cluster {
	name := localClusterName(in.WorkloadPort)
	c := staticCluster(name, socketAddress(in.WorkloadAddress, in.WorkloadPort))
	if in.protocol.overHTTP() {
		c.TypedExtensionProtocolOptions = g.p.httpOptions(httpVersion(in.protocol),
			&corev3.HttpProtocolOptions{IdleTimeout: seconds(inboundIdleSeconds)})
	}
	if g.transparent() {
		// From an address of its own the connection is not redirected to the proxy again.
		c.UpstreamBindConfig = &corev3.BindConfig{SourceAddress: socketAddress(loopSource(in.WorkloadAddress), 0).GetSocketAddress()}
	}
	return c
}

func (g *generator) inboundListener(name string, in inbound, policies inboundPolicies) *listenerv3.Listener {
	l := &listenerv3.Listener{
		Name: name, Address: socketAddress(in.Address, in.Port), TrafficDirection: corev3.TrafficDirection_INBOUND,
		EnableReusePort: boolean(false), Metadata: listenerTags(in.Tags),
	}
	if g.transparent() {
		l.BindToPort = boolean(false)
	}
	filters := g.inboundFilters(in, policies)
	secured := func() *listenerv3.FilterChain {
		rules, shadow := g.inboundRBAC(policies)
		return &listenerv3.FilterChain{
			TransportSocket: g.p.serverTLS(g.mesh.Name),
			Filters:         append([]*listenerv3.Filter{g.p.rbac(name, rules, shadow)}, filters...),
		}
	}
	switch g.mtls {
	case mtlsOff:
		l.FilterChains = []*listenerv3.FilterChain{{Filters: filters}}
	case mtlsStrict:
		g.useMeshSecrets(g.mesh.Name)
		l.FilterChains = []*listenerv3.FilterChain{secured()}
	case mtlsPermissive:
		// Who a plain client is, nobody can tell: permissions are for those with a certificate.
		g.useMeshSecrets(g.mesh.Name)
		l.ListenerFilters = []*listenerv3.ListenerFilter{g.p.inspectTLS()}
		mtls := secured()
		mtls.FilterChainMatch = &listenerv3.FilterChainMatch{
			TransportProtocol: "tls", ApplicationProtocols: []string{meshALPN},
		}
		l.FilterChains = []*listenerv3.FilterChain{
			{FilterChainMatch: &listenerv3.FilterChainMatch{TransportProtocol: "raw_buffer"}, Filters: filters},
			{
				FilterChainMatch: &listenerv3.FilterChainMatch{TransportProtocol: "tls"},
				Filters:          []*listenerv3.Filter{g.p.tcpProxy(g.inboundTCP(in, policies))},
			},
			mtls,
		}
	}
	return l
}

// inboundFilters are those behind authentication.
func (g *generator) inboundFilters(in inbound, policies inboundPolicies) []*listenerv3.Filter {
	switch {
	case in.protocol.overHTTP():
		return []*listenerv3.Filter{g.p.hcm(g.inboundHTTP(in, policies))}
	case in.protocol == kafka:
		return []*listenerv3.Filter{g.p.kafkaBroker(statName(localClusterName(in.WorkloadPort))), g.p.tcpProxy(g.inboundTCP(in, policies))}
	default:
		return []*listenerv3.Filter{g.p.tcpProxy(g.inboundTCP(in, policies))}
	}
}

func (g *generator) inboundTCP(in inbound, policies inboundPolicies) *tcpproxyv3.TcpProxy {
	cluster := localClusterName(in.WorkloadPort)
	return &tcpproxyv3.TcpProxy{
		StatPrefix: statName(cluster), ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: cluster},
		IdleTimeout: seconds(inboundIdleSeconds), AccessLog: g.inboundLogs(in, policies, false),
	}
}

func (g *generator) inboundHTTP(in inbound, policies inboundPolicies) *hcmv3.HttpConnectionManager {
	cluster := localClusterName(in.WorkloadPort)
	route := func(match *routev3.RouteMatch) *routev3.Route {
		return &routev3.Route{Match: match, Action: &routev3.Route_Route{Route: &routev3.RouteAction{
			ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster}, Timeout: seconds(0),
		}}}
	}
	var filters []*hcmv3.HttpFilter
	if in.protocol == grpc {
		filters = append(filters, g.p.grpcStats())
	}
	for _, fault := range policies.faults {
		filters = append(filters, g.fault(fault))
	}
	var routes []*routev3.Route
	if len(policies.limits) > 0 {
		filters = append(filters, g.p.rateLimitFilter())
		routes = g.rateLimitRoutes(policies.limits, route)
	}
	filters = append(filters, g.p.router())
	routes = append(routes, route(anyPath()))
	m := &hcmv3.HttpConnectionManager{
		StatPrefix:                  statName(cluster),
		ForwardClientCertDetails:    hcmv3.HttpConnectionManager_SANITIZE_SET,
		SetCurrentClientCertDetails: &hcmv3.HttpConnectionManager_SetCurrentClientCertDetails{Uri: true},
		CommonHttpProtocolOptions:   &corev3.HttpProtocolOptions{IdleTimeout: seconds(inboundIdleSeconds)},
		StreamIdleTimeout:           seconds(inboundStreamIdleSeconds),
		HttpFilters:                 filters,
		AccessLog:                   g.inboundLogs(in, policies, true),
		Tracing:                     g.tracing(corev3.TrafficDirection_INBOUND, in.service),
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
			Name: "inbound:" + in.service, ValidateClusters: boolean(false),
			RequestHeadersToRemove: []string{TagsHeader},
			VirtualHosts:           []*routev3.VirtualHost{{Name: in.service, Domains: []string{"*"}, Routes: routes}},
		}},
	}
	return m
}
