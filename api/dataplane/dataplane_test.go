package dataplane_test

import (
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/meridian-mesh/meridian/api/dataplane"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

func TestStatusOf(t *testing.T) {
	type inbound = meshv1.Dataplane_Networking_Inbound
	type health = meshv1.Dataplane_Networking_Inbound_Health
	unsaid, ready, notReady := &inbound{}, &inbound{Health: &health{Ready: true}}, &inbound{Health: &health{}}
	workload := func(inbounds ...*inbound) *meshv1.Dataplane {
		return &meshv1.Dataplane{Networking: &meshv1.Dataplane_Networking{Inbound: inbounds}}
	}
	gateway := workload(notReady)
	gateway.Networking.Gateway = &meshv1.Dataplane_Networking_Gateway{}

	at := &timestamppb.Timestamp{Seconds: 1}
	insight := func(subs ...*meshv1.DiscoverySubscription) *meshv1.DataplaneInsight {
		return &meshv1.DataplaneInsight{Subscriptions: subs}
	}
	live := &meshv1.DiscoverySubscription{ConnectTime: at}
	ended := &meshv1.DiscoverySubscription{ConnectTime: at, DisconnectTime: at}
	never := &meshv1.DiscoverySubscription{}

	tests := []struct {
		name    string
		dp      *meshv1.Dataplane
		insight *meshv1.DataplaneInsight
		want    dataplane.Status
	}{
		{"a proxy without insight is offline", workload(ready), nil, dataplane.Offline},
		{"a proxy that never subscribed is offline", workload(ready), insight(), dataplane.Offline},
		{"a subscription without connect time is not live", workload(ready), insight(never), dataplane.Offline},
		{"a proxy whose streams ended is offline", workload(ready), insight(ended, ended), dataplane.Offline},
		{"any live subscription will do", workload(ready), insight(live, ended), dataplane.Online},
		{"good inbounds are online", workload(ready, ready), insight(ended, live), dataplane.Online},
		{"an inbound without health is good", workload(unsaid), insight(live), dataplane.Online},
		{"some bad inbounds are a degradation", workload(ready, notReady), insight(live), dataplane.PartiallyDegraded},
		{"an unsaid one beside a bad one too", workload(unsaid, notReady), insight(live), dataplane.PartiallyDegraded},
		{"only bad inbounds are offline", workload(notReady, notReady), insight(live), dataplane.Offline},
		{"no inbounds are offline", workload(), insight(live), dataplane.Offline},
		{"no networking is offline", &meshv1.Dataplane{}, insight(live), dataplane.Offline},
		{"a gateway is online whatever its inbounds", gateway, insight(live), dataplane.Online},
		{"a gateway without stream is offline", gateway, insight(ended), dataplane.Offline},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := dataplane.StatusOf(tt.dp, tt.insight); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func TestServiceIsNamedByEitherTag(t *testing.T) {
	tests := []struct {
		name string
		tags map[string]string
		want string
	}{
		{"the tag of today", map[string]string{"kuma.io/service": "web", "version": "1"}, "web"},
		{"the older tag", map[string]string{"service": "web"}, "web"},
		{"the tag of today wins", map[string]string{"service": "old", "kuma.io/service": "new"}, "new"},
		{"neither", map[string]string{"version": "1"}, ""},
		{"no tags", nil, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := dataplane.Service(tt.tags); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestLastVersionIsOfTheNewestSubscription(t *testing.T) {
	version := func(v string) *meshv1.DiscoverySubscription {
		return &meshv1.DiscoverySubscription{Version: &meshv1.Version{Envoy: &meshv1.EnvoyVersion{Version: v}}}
	}
	insight := &meshv1.DataplaneInsight{Subscriptions: []*meshv1.DiscoverySubscription{version("1.22"), version("1.30")}}
	if got := dataplane.LastVersion(insight).GetEnvoy().GetVersion(); got != "1.30" {
		t.Errorf("got %q", got)
	}
	if got := dataplane.LastVersion(nil).GetEnvoy().GetVersion(); got != "" {
		t.Errorf("without an insight: %q", got)
	}
}
