// Package dataplane holds the rules about proxies that several parts share: whether a proxy is online, in what state it
// is, and which service a set of its tags stands for. Insights, overviews and what is made for proxies must agree on them.
package dataplane

import (
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

// Tags that name a service.
const (
	// ServiceTag is on every inbound, gateway and external service.
	ServiceTag = "kuma.io/service"
	// oldServiceTag is what the oldest dataplanes carry instead.
	oldServiceTag = "service"
)

// Service is the service that tags stand for; "" when they name none.
func Service(tags map[string]string) string {
	if s := tags[ServiceTag]; s != "" {
		return s
	}
	return tags[oldServiceTag]
}

// OutboundTags are the tags of what an outbound leads to. The oldest dataplanes name a service instead.
func OutboundTags(o *meshv1.Dataplane_Networking_Outbound) map[string]string {
	if len(o.GetTags()) == 0 && o.GetService() != "" {
		return map[string]string{ServiceTag: o.GetService()}
	}
	return o.GetTags()
}

// Status sums up a proxy and the workload behind it.
type Status uint8

// The statuses. The zero value is Offline: nothing is known to work.
const (
	Offline Status = iota
	PartiallyDegraded
	Online
)

// String names the status in logs.
func (s Status) String() string {
	return [...]string{"offline", "partially_degraded", "online"}[s]
}

// StatusOf is the status of a proxy. insight is nil when nothing is known of it.
//
// A proxy without a live stream is offline. One with a stream is as good as its inbounds: online when all are good,
// partially degraded when some are bad, offline when all are, or when there is none. An inbound is bad when it has a
// health that does not say ready; without a health it is good. A gateway has no workload behind it: its stream decides.
func StatusOf(dp *meshv1.Dataplane, insight *meshv1.DataplaneInsight) Status {
	if !Connected(insight.GetSubscriptions()) {
		return Offline
	}
	if dp.GetNetworking().GetGateway() != nil {
		return Online
	}
	inbounds := dp.GetNetworking().GetInbound()
	bad := 0
	for _, in := range inbounds {
		if in.GetHealth() != nil && !in.GetHealth().GetReady() {
			bad++
		}
	}
	switch bad {
	case len(inbounds):
		return Offline
	case 0:
		return Online
	default:
		return PartiallyDegraded
	}
}

// Connected reports whether one of the subscriptions of a proxy is live. The rule is that of dataplanes, zone ingresses
// and zone egresses alike.
func Connected(subscriptions []*meshv1.DiscoverySubscription) bool {
	for _, s := range subscriptions {
		if s.GetConnectTime() != nil && s.GetDisconnectTime() == nil {
			return true
		}
	}
	return false
}

// LastVersion is the version in the newest subscription of an insight; nil when there is none. Its getters may be called
// all the same.
func LastVersion(insight *meshv1.DataplaneInsight) *meshv1.Version {
	subs := insight.GetSubscriptions()
	if len(subs) == 0 {
		return nil
	}
	return subs[len(subs)-1].GetVersion()
}
