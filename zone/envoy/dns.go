package envoy

import (
	"net/netip"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	dnsdatav3 "github.com/envoyproxy/go-control-plane/envoy/data/dns/v3"
	dnsfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/udp/dns_filter/v3"
	caresv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/network/dns_resolver/cares/v3"

	"github.com/meridian-mesh/meridian/zone/xds"
)

const (
	dnsFilter     = "envoy.filters.udp.dns_filter"
	caresResolver = "envoy.network.dns_resolver.cares"

	dnsMaxPending = 256
	dnsTTLSeconds = 30
)

// dns answers for the virtual addresses of the mesh, and asks the data plane program's own server for everything else.
func (g *generator) dns() {
	if !g.transparent() || g.proxy.DNSPort == 0 || g.proxy.EmptyDNSPort == 0 {
		return
	}
	table := &dnsdatav3.DnsTable{}
	for host, addresses := range sorted(g.hostAddresses()) {
		table.VirtualDomains = append(table.VirtualDomains, &dnsdatav3.DnsTable_DnsVirtualDomain{
			Name: host, AnswerTtl: seconds(dnsTTLSeconds),
			Endpoint: &dnsdatav3.DnsTable_DnsEndpoint{EndpointConfig: &dnsdatav3.DnsTable_DnsEndpoint_AddressList{
				AddressList: &dnsdatav3.DnsTable_AddressList{Address: addresses},
			}},
		})
	}
	filter := &dnsfilterv3.DnsFilterConfig{
		StatPrefix: statName(dnsName),
		ServerConfig: &dnsfilterv3.DnsFilterConfig_ServerContextConfig{
			ConfigSource: &dnsfilterv3.DnsFilterConfig_ServerContextConfig_InlineDnsTable{InlineDnsTable: table},
		},
		ClientConfig: &dnsfilterv3.DnsFilterConfig_ClientContextConfig{
			MaxPendingLookups: dnsMaxPending,
			TypedDnsResolverConfig: &corev3.TypedExtensionConfig{
				Name: caresResolver,
				TypedConfig: g.p.pack(&caresv3.CaresDnsResolverConfig{
					Resolvers:          []*corev3.Address{udpAddress("127.0.0.1", g.proxy.EmptyDNSPort)},
					DnsResolverOptions: &corev3.DnsResolverOptions{NoDefaultSearchDomain: true},
				}),
			},
		},
	}
	g.add(originDNS, xds.Listener, dnsName, &listenerv3.Listener{
		Name: dnsName, Address: udpAddress("127.0.0.1", g.proxy.DNSPort), TrafficDirection: corev3.TrafficDirection_OUTBOUND,
		EnableReusePort: boolean(true),
		ListenerFilters: []*listenerv3.ListenerFilter{{
			Name: dnsFilter, ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: g.p.pack(filter)},
		}},
	})
}

// hostAddresses are the names of the mesh and their addresses. Where IPv6 is redirected each has its mapped form as well.
func (g *generator) hostAddresses() map[string][]string {
	hosts := make(map[string][]string)
	for _, v := range g.mesh.VIPs {
		addresses := []string{v.Address}
		if ip, err := netip.ParseAddr(v.Address); err == nil && ip.Is4() && g.redirectsIPv6() {
			addresses = append(addresses, netip.AddrFrom16(ip.As16()).String())
		}
		for _, host := range v.Hostnames {
			for _, a := range addresses {
				if !slices.Contains(hosts[host], a) {
					hosts[host] = append(hosts[host], a)
				}
			}
		}
	}
	return hosts
}
