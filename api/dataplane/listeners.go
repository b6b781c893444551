package dataplane

import (
	"maps"
	"net"
	"slices"
	"strconv"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

// VIP is a virtual address and the ports at which it leads to services.
type VIP struct {
	Address   string
	Hostnames []string
	Outbounds []VIPOutbound
}

// VIPOutbound is a port of a virtual address.
type VIPOutbound struct {
	Port uint32
	Tags map[string]string // of the destination, kuma.io/service included
}

// Equal reports whether two virtual addresses are the same in everything.
func (v VIP) Equal(o VIP) bool {
	return v.Address == o.Address && slices.Equal(v.Hostnames, o.Hostnames) &&
		slices.EqualFunc(v.Outbounds, o.Outbounds, func(a, b VIPOutbound) bool { return a.Port == b.Port && maps.Equal(a.Tags, b.Tags) })
}

// Transparent reports whether the traffic of the workload is redirected to the proxy.
func Transparent(dp *meshv1.Dataplane) bool {
	return dp.GetNetworking().GetTransparentProxying().GetRedirectPortOutbound() != 0
}

// Serviceless is the port of an inbound that stands for a workload which serves nothing.
const Serviceless = 49151

// Inbound is an inbound with its addresses worked out.
type Inbound struct {
	Address         string
	Port            uint32
	WorkloadAddress string
	WorkloadPort    uint32
	Tags            map[string]string // spelled as today
}

// InboundOf works out the addresses of an inbound of a proxy.
func InboundOf(dp *meshv1.Dataplane, in *meshv1.Dataplane_Networking_Inbound) Inbound {
	out := Inbound{
		Address: in.GetAddress(), Port: in.GetPort(), WorkloadAddress: in.GetServiceAddress(), WorkloadPort: in.GetServicePort(),
		Tags: SpelledNow(in.GetTags()),
	}
	if out.Address == "" {
		out.Address = dp.GetNetworking().GetAddress()
	}
	if out.WorkloadAddress == "" {
		out.WorkloadAddress = dp.GetNetworking().GetAddress()
	}
	if out.WorkloadPort == 0 {
		out.WorkloadPort = out.Port
	}
	return out
}

// Serves reports whether there is a listener for the inbound.
func (in Inbound) Serves() bool { return in.Port != Serviceless && in.WorkloadPort != Serviceless }

// Outbound is where a workload finds a service.
type Outbound struct {
	Address string
	Port    uint32
	Tags    map[string]string // of the destination, spelled as today
}

// Outbounds are the outbounds that a proxy has. Where its traffic is redirected they follow from the virtual addresses of its
// mesh: those of the services that it wants to reach. Its own are beside them, except at virtual addresses. Of several at one
// address and port the first one counts; the others are returned as twice.
func Outbounds(dp *meshv1.Dataplane, vips []VIP) (all, twice []Outbound) {
	taken := make(map[string]bool)
	add := func(o Outbound) {
		at := HostPort(o.Address, o.Port)
		if taken[at] {
			twice = append(twice, o)
			return
		}
		taken[at] = true
		o.Tags = SpelledNow(o.Tags)
		all = append(all, o)
	}
	virtual := make(map[string]bool)
	if Transparent(dp) {
		wanted := dp.GetNetworking().GetTransparentProxying().GetReachableServices()
		own := make(map[string]bool)
		for _, raw := range dp.GetNetworking().GetInbound() {
			in := InboundOf(dp, raw)
			own[HostPort(in.Address, in.Port)] = true
		}
		for _, v := range vips {
			virtual[v.Address] = true
			for _, o := range v.Outbounds {
				reachable := len(wanted) == 0 || slices.Contains(wanted, o.Tags[ServiceTag])
				if reachable && !own[HostPort(v.Address, o.Port)] {
					add(Outbound{v.Address, o.Port, o.Tags})
				}
			}
		}
	}
	for _, o := range dp.GetNetworking().GetOutbound() {
		address := o.GetAddress()
		if address == "" {
			address = "127.0.0.1"
		}
		if !virtual[address] {
			add(Outbound{address, o.GetPort(), OutboundTags(o)})
		}
	}
	return all, twice
}

// HostPort is an address and a port in one, an IPv6 address in brackets.
func HostPort(address string, port uint32) string {
	return net.JoinHostPort(address, strconv.FormatUint(uint64(port), 10))
}
