package envoy

import (
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/meridian-mesh/meridian/zone/xds"
)

// controlPlaneName is what the control plane's client certificate says.
const controlPlaneName = "kuma-cp"

// adminAddresses are those where a proxy may have its administration. It says so itself, and must not be able to make
// others reach anything else through it.
func adminAddresses() []string { return []string{"", "127.0.0.1", "0.0.0.0", "::1", "::"} }

// adminListener opens a part of Envoy's own administration to others: to anyone whether it is ready, and all of it to the
// control plane. The administration is at adminAddress and port, and opened at address, that of the proxy itself.
func (g *draft) adminListener(adminAddress string, port uint32, address string, admin *Admin) {
	if port == 0 {
		return
	}
	if !slices.Contains(adminAddresses(), adminAddress) {
		g.warn("the proxy says that its administration is at %s, which is not its own machine: it is not used", adminAddress)
		return
	}
	g.add(originAdmin, xds.Cluster, adminName, adminCluster(adminAddress, port))
	if address == "" || admin == nil || address == adminAddress {
		return
	}
	ready := &routev3.Route{
		Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Path{Path: "/ready"}},
		Action: routeTo(adminName),
	}
	all := &routev3.Route{Match: anyPath(), Action: routeTo(adminName)}
	g.add(originAdmin, xds.Listener, adminName, &listenerv3.Listener{
		Name: adminName, Address: socketAddress(address, port), TrafficDirection: corev3.TrafficDirection_INBOUND,
		EnableReusePort: boolean(false),
		ListenerFilters: []*listenerv3.ListenerFilter{g.p.inspectTLS()},
		FilterChains: []*listenerv3.FilterChain{
			{Filters: []*listenerv3.Filter{g.plainHTTP(adminName, adminName, ready)}},
			{
				FilterChainMatch: &listenerv3.FilterChainMatch{TransportProtocol: "tls"},
				TransportSocket:  g.p.adminTLS(admin),
				Filters:          []*listenerv3.Filter{g.plainHTTP(adminName, adminName, all)},
			},
		},
	})
}

func adminCluster(address string, port uint32) *clusterv3.Cluster {
	switch address {
	case "", "0.0.0.0":
		address = "127.0.0.1"
	case "::":
		address = "::1"
	}
	return staticCluster(adminName, socketAddress(address, port))
}

func (p *packer) adminTLS(admin *Admin) *corev3.TransportSocket {
	return p.tlsSocket(&tlsv3.DownstreamTlsContext{
		RequireClientCertificate: boolean(true),
		CommonTlsContext: &tlsv3.CommonTlsContext{
			TlsCertificates: []*tlsv3.TlsCertificate{{CertificateChain: inline(admin.Cert), PrivateKey: inline(admin.Key)}},
			ValidationContextType: &tlsv3.CommonTlsContext_ValidationContext{
				ValidationContext: &tlsv3.CertificateValidationContext{
					TrustedCa: inline(admin.CA),
					MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{
						{SanType: tlsv3.SubjectAltNameMatcher_DNS, Matcher: exactly(controlPlaneName)},
					},
				},
			},
		},
	})
}

func routeTo(cluster string) *routev3.Route_Route {
	return &routev3.Route_Route{Route: &routev3.RouteAction{
		ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster},
	}}
}

// plainHTTP serves routes and nothing else.
func (g *draft) plainHTTP(name, host string, routes ...*routev3.Route) *listenerv3.Filter {
	return g.p.hcm(&hcmv3.HttpConnectionManager{
		StatPrefix:  statName(name),
		HttpFilters: []*hcmv3.HttpFilter{g.p.router()},
		RouteSpecifier: &hcmv3.HttpConnectionManager_RouteConfig{RouteConfig: &routev3.RouteConfiguration{
			Name: name, ValidateClusters: boolean(false),
			VirtualHosts: []*routev3.VirtualHost{{Name: host, Domains: []string{"*"}, Routes: routes}},
		}},
	})
}
