package envoy

import (
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"

	"github.com/meridian-mesh/meridian/api/dataplane"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/zone/xds"
)

// transparent reports whether the traffic of the workload is redirected to the proxy.
func (g *generator) transparent() bool { return dataplane.Transparent(g.dp) }

// redirectsIPv6 reports whether that of IPv6 is as well.
func (g *generator) redirectsIPv6() bool {
	return g.transparent() && g.dp.GetNetworking().GetTransparentProxying().GetRedirectPortInboundV6() != 0
}

// transparentProxying makes the listeners that redirected connections arrive at. Those that a listener of another part is
// for are handed to it; the others go on to where they were going.
func (g *generator) transparentProxying() {
	if !g.transparent() {
		return
	}
	conf := g.dp.GetNetworking().GetTransparentProxying()
	g.passthrough(false, conf.GetRedirectPortInbound(), conf.GetRedirectPortOutbound())
	if g.redirectsIPv6() {
		g.passthrough(true, conf.GetRedirectPortInboundV6(), conf.GetRedirectPortOutbound())
	}
}

func (g *generator) passthrough(ipv6 bool, inboundPort, outboundPort uint32) {
	everywhere, source := "0.0.0.0", "127.0.0.6"
	if ipv6 {
		everywhere, source = "::", "::6"
	}
	outboundName, inboundName := passthroughName("outbound", ipv6), passthroughName("inbound", ipv6)

	// Without its cluster the listener takes connections and closes them.
	if p := g.mesh.Spec.GetNetworking().GetOutbound().GetPassthrough(); p == nil || p.GetValue() {
		g.add(originTransparent, xds.Cluster, outboundName, originalDstCluster(outboundName))
	}
	out := g.passthroughListener(outboundName, everywhere, outboundPort, corev3.TrafficDirection_OUTBOUND)
	g.add(originTransparent, xds.Listener, outboundName, out)

	if inboundPort == 0 {
		return
	}
	c := originalDstCluster(inboundName)
	c.UpstreamBindConfig = &corev3.BindConfig{SourceAddress: socketAddress(source, 0).GetSocketAddress()}
	g.add(originTransparent, xds.Cluster, inboundName, c)
	in := g.passthroughListener(inboundName, everywhere, inboundPort, corev3.TrafficDirection_INBOUND)
	g.add(originTransparent, xds.Listener, inboundName, in)
}

func (g *generator) passthroughListener(name, address string, port uint32, direction corev3.TrafficDirection) *listenerv3.Listener {
	proxy := &tcpproxyv3.TcpProxy{
		StatPrefix: statName(name), ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: name},
	}
	if direction == corev3.TrafficDirection_OUTBOUND {
		log := g.matched.Service(policy.PassThrough).TrafficLog
		proxy.AccessLog = g.outboundLogs(externalLogName, nil, log, false)
	}
	return &listenerv3.Listener{
		Name: name, Address: socketAddress(address, port), TrafficDirection: direction, UseOriginalDst: boolean(true),
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{g.p.tcpProxy(proxy)}}},
	}
}

// directAccess lets the proxy connect to single other proxies by their own addresses.
func (g *generator) directAccess() {
	wanted := g.dp.GetNetworking().GetTransparentProxying().GetDirectAccessServices()
	if !g.transparent() || len(wanted) == 0 {
		return
	}
	log := g.matched.Service(policy.PassThrough).TrafficLog
	taken := make(map[string]bool)
	for _, o := range g.outboundList {
		taken[hostPort(o.address, o.port)] = true
	}
	found := false
	for name, dp := range sorted(g.mesh.Dataplanes) {
		if name == g.proxy.Name {
			continue
		}
		for _, in := range dp.GetNetworking().GetInbound() {
			address, service := in.GetAddress(), spelledNow(in.GetTags())[serviceTag]
			if address == "" {
				address = dp.GetNetworking().GetAddress()
			}
			at := hostPort(address, in.GetPort())
			if taken[at] || !isIP(address) || !slices.Contains(wanted, "*") && !slices.Contains(wanted, service) {
				continue
			}
			taken[at], found = true, true
			listener := directAccessName + "_" + at
			g.add(originDirectAccess, xds.Listener, listener, &listenerv3.Listener{
				Name: listener, Address: socketAddress(address, in.GetPort()), TrafficDirection: corev3.TrafficDirection_OUTBOUND,
				BindToPort: boolean(false),
				FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{g.p.tcpProxy(&tcpproxyv3.TcpProxy{
					StatPrefix:       statName(listener),
					ClusterSpecifier: &tcpproxyv3.TcpProxy_Cluster{Cluster: directAccessName},
					AccessLog:        g.outboundLogs(service, map[string]string{serviceTag: service}, log, false),
				})}}},
			})
		}
	}
	if found {
		g.add(originDirectAccess, xds.Cluster, directAccessName, g.directAccessCluster())
	}
}

// directAccessCluster goes wherever the client wants to, as long as someone of the mesh is there.
func (g *generator) directAccessCluster() *clusterv3.Cluster {
	c := originalDstCluster(directAccessName)
	if g.mtls != mtlsOff {
		g.useMeshSecrets(g.mesh.Name)
		c.TransportSocket = g.p.anyClientTLS(g.mesh.Name)
	}
	return c
}
