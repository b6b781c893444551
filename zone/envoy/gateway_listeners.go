package envoy

import (
	"slices"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	gzipv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/compression/gzip/compressor/v3"
	compressorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/compressor/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/meridian-mesh/meridian/api/dataplane"
	"github.com/meridian-mesh/meridian/api/gateway"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/zone/xds"
)

// Bounds for clients that nobody vouches for.
const (
	gatewayIdleSeconds       = 300
	gatewayStreamIdleSeconds = 5
	gatewayHeadersMillis     = 500
	gatewayStreams           = 100
	gatewayStreamWindow      = 64 << 10
	gatewayConnectionWindow  = 1 << 20
	gatewayBuffer            = 32 << 10
)

const (
	// gatewayServerName is what answers say in the header server.
	gatewayServerName = "Meridian Gateway"
	compressorFilter  = "envoy.filters.http.compressor"
	gzipCompressor    = "envoy.compression.gzip.compressor"

	// anyHost is the host for all names that no other host is for.
	anyHost = "*"
	// anyDestination is how the destinations of a gateway are called in access logs: routes lead to several.
	anyDestination = "*"
)

// listener makes the listener of a port.
//
// In plain text one filter chain serves all hosts: requests say which they mean, and connections cannot, so they go to the backends of
// all. With TLS each host has a chain of its own, which the server name of a connection chooses. A host that cannot be served has one too,
// which closes connections, and answers 404: else the certificate and the routes of * or *.domain would be taken for its own.
//
// Requests choose their host by themselves, whatever the server name was: browsers send those for other names that a certificate is for
// over a connection that they have. Nobody is kept out by a server name, for clients do not have to show who they are.
func (g *gatewayGenerator) listener(name string, l *gateway.Listener) {
	m := &listenerv3.Listener{
		Name: name, Address: socketAddress(g.dp.GetNetworking().GetAddress(), l.Port), TrafficDirection: corev3.TrafficDirection_INBOUND,
		EnableReusePort: boolean(true), PerConnectionBufferLimitBytes: u32(gatewayBuffer), Metadata: listenerTags(l.Hosts[0].Tags),
	}
	var requests, plain, secured []*gateway.Host
	closed := make(map[*gateway.Host]bool)
	sockets := make(map[*gateway.Host]*corev3.TransportSocket)
	for _, h := range l.Hosts {
		if h.TLS.GetMode() == meshv1.MeshGateway_TLS_TERMINATE {
			if sockets[h] = g.terminate(l, h); sockets[h] == nil {
				h = &gateway.Host{Name: h.Name, Tags: h.Tags, TLS: h.TLS}
				closed[h] = true
			}
		}
		if gateway.HTTP(l.Protocol, h.TLS) {
			requests = append(requests, h)
		}
		if h.TLS == nil {
			plain = append(plain, h)
		} else {
			secured = append(secured, h)
		}
	}
	faults := false
	if slices.ContainsFunc(requests, func(h *gateway.Host) bool { return !closed[h] }) {
		var config *routev3.RouteConfiguration
		config, faults = g.routes(name, l, requests)
		g.add(originGateway, xds.Route, name, config)
	}
	filters := func(hosts ...*gateway.Host) []*listenerv3.Filter {
		if closed[hosts[0]] {
			return nil
		}
		if gateway.HTTP(l.Protocol, hosts[0].TLS) {
			return []*listenerv3.Filter{g.p.hcm(g.manager(name, faults))}
		}
		return g.connections(hosts)
	}
	for _, h := range secured {
		match := &listenerv3.FilterChainMatch{TransportProtocol: "tls"}
		if h.Name != anyHost {
			match.ServerNames = []string{h.Name}
		}
		m.FilterChains = append(m.FilterChains, &listenerv3.FilterChain{
			FilterChainMatch: match, TransportSocket: sockets[h], Filters: filters(h),
		})
	}
	if len(plain) > 0 {
		m.FilterChains = append(m.FilterChains, &listenerv3.FilterChain{Filters: filters(plain...)})
	}
	if len(secured) > 0 {
		m.ListenerFilters = []*listenerv3.ListenerFilter{g.p.inspectTLS()}
	}
	g.add(originGateway, xds.Listener, name, m)
}

// manager serves requests by the routes of a name. faults: some of them inject faults.
func (g *gatewayGenerator) manager(routes string, faults bool) *hcmv3.HttpConnectionManager {
	m := &hcmv3.HttpConnectionManager{
		StatPrefix: statName(dataplane.IdentifyingService(g.dp)), ServerName: gatewayServerName,
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{RouteConfigName: routes, ConfigSource: viaADS()}},
		HttpFilters: []*hcmv3.HttpFilter{
			g.p.rateLimitFilter(),
			g.p.httpFilter(compressorFilter, &compressorv3.Compressor{CompressorLibrary: &corev3.TypedExtensionConfig{
				Name: gzipCompressor, TypedConfig: g.p.pack(&gzipv3.Gzip{}),
			}}),
			g.p.router(),
		},
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{
			IdleTimeout: seconds(gatewayIdleSeconds), HeadersWithUnderscoresAction: corev3.HttpProtocolOptions_REJECT_REQUEST,
		},
		Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
			MaxConcurrentStreams: u32(gatewayStreams), InitialStreamWindowSize: u32(gatewayStreamWindow),
			InitialConnectionWindowSize: u32(gatewayConnectionWindow),
		},
		StreamIdleTimeout:     seconds(gatewayStreamIdleSeconds),
		RequestHeadersTimeout: &durationpb.Duration{Nanos: gatewayHeadersMillis * 1_000_000},
		UseRemoteAddress:      boolean(true), NormalizePath: boolean(true), MergeSlashes: true,
		StripPortMode: &hcmv3.HttpConnectionManager_StripAnyHostPort{StripAnyHostPort: true},
		AccessLog:     g.logs(true),
		Tracing:       g.tracing(corev3.TrafficDirection_UNSPECIFIED, ""),
	}
	if faults {
		m.HttpFilters = append([]*hcmv3.HttpFilter{g.p.httpFilter(faultFilter, &faultv3.HTTPFault{})}, m.HttpFilters...)
	}
	return m
}

// connections passes connections on to the backends of hosts. Without any they are closed.
func (g *gatewayGenerator) connections(hosts []*gateway.Host) []*listenerv3.Filter {
	var all []wanted
	for _, h := range hosts {
		for _, r := range h.Routes {
			for _, rule := range r.Rules {
				all = append(all, wants(h, rule.Backends)...)
			}
		}
	}
	to := g.backends(all)
	if len(to) == 0 {
		return nil
	}
	first := to[0].destination
	m := &tcpproxyv3.TcpProxy{
		StatPrefix: statName(dataplane.IdentifyingService(g.dp)), AccessLog: g.logs(false),
		IdleTimeout: to[0].cluster.timeouts.tcpIdle,
	}
	if n := specOf[*meshv1.Retry](first.Retry).GetConf().GetTcp().GetMaxConnectAttempts(); n > 0 {
		m.MaxConnectAttempts = u32(n)
	}
	splitConnections(m, weightedOf(to))
	return []*listenerv3.Filter{g.p.tcpProxy(m)}
}

// logs are the loggers of the gateway: of the TrafficLog for traffic through no outbound, and of MeshAccessLogs for all peers.
func (g *gatewayGenerator) logs(http bool) []*accesslogv3.AccessLog {
	l := logged{direction: "INBOUND", source: dataplane.IdentifyingService(g.dp), destination: anyDestination, http: http}
	out := g.trafficLog(g.served.TrafficLog, l)
	if err := g.matched.AccessLog.ToErr; err != nil {
		g.warn("MeshAccessLog: %v", err)
	}
	return append(out, g.ruleLogs(g.matched.AccessLog.To.Compute(nil), l)...)
}
