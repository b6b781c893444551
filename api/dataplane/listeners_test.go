package dataplane_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meridian-mesh/meridian/api/dataplane"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

func TestOutbounds(t *testing.T) {
	service := func(name string) map[string]string { return map[string]string{"kuma.io/service": name} }
	vips := []dataplane.VIP{
		{Address: "240.0.0.0", Outbounds: []dataplane.VIPOutbound{{80, service("a")}, {8080, service("a")}}},
		{Address: "240.0.0.1", Outbounds: []dataplane.VIPOutbound{{80, service("b")}}},
		{Address: "10.0.0.1", Outbounds: []dataplane.VIPOutbound{{80, service("ext")}, {81, service("ext")}}},
	}
	for name, tc := range map[string]struct {
		dp    string
		all   []dataplane.Outbound
		twice []dataplane.Outbound
	}{
		"its own, at the address of the host where none is said": {
			dp: `{"networking":{"address":"10.0.0.1","outbound":[{"port":1,"tags":{"kuma.io/service":"a"}},
				{"port":1,"address":"10.1.1.1","service":"b"}]}}`,
			all: []dataplane.Outbound{{"127.0.0.1", 1, service("a")}, {"10.1.1.1", 1, service("b")}},
		},
		"the second at one place does not count": {
			dp: `{"networking":{"outbound":[{"port":1,"tags":{"kuma.io/service":"a"}},
				{"port":1,"address":"127.0.0.1","tags":{"kuma.io/service":"b"}}]}}`,
			all: []dataplane.Outbound{{"127.0.0.1", 1, service("a")}}, twice: []dataplane.Outbound{{"127.0.0.1", 1, service("b")}},
		},
		"of redirected traffic those of the mesh, except where the proxy itself is": {
			dp: `{"networking":{"address":"10.0.0.1","inbound":[{"port":80,"tags":{"kuma.io/service":"a"}}],
				"transparentProxying":{"redirectPortOutbound":15001}}}`,
			all: []dataplane.Outbound{
				{"240.0.0.0", 80, service("a")},
				{"240.0.0.0", 8080, service("a")},
				{"240.0.0.1", 80, service("b")},
				{"10.0.0.1", 81, service("ext")},
			},
		},
		"of redirected traffic those that are wanted, and its own at other addresses": {
			dp: `{"networking":{"address":"10.0.0.2","transparentProxying":{"redirectPortOutbound":15001,"reachableServices":["b"]},
				"outbound":[{"port":1,"address":"240.0.0.0","tags":{"kuma.io/service":"c"}},{"port":2,"tags":{"service":"d"}}]}}`,
			all: []dataplane.Outbound{{"240.0.0.1", 80, service("b")}, {"127.0.0.1", 2, service("d")}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			dp := &meshv1.Dataplane{}
			parse(t, tc.dp, dp)
			all, twice := dataplane.Outbounds(dp, vips)
			if diff := cmp.Diff(tc.all, all); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
			if diff := cmp.Diff(tc.twice, twice); diff != "" {
				t.Errorf("twice (-want +got)\n%s", diff)
			}
		})
	}
}

func TestInboundOf(t *testing.T) {
	dp := &meshv1.Dataplane{}
	parse(t, `{"networking":{"address":"10.0.0.1","inbound":[{"port":80,"tags":{"service":"a","protocol":"http"}},
		{"port":81,"address":"10.0.0.2","servicePort":8081,"serviceAddress":"127.0.0.1"},{"port":49151},{"port":82,"servicePort":49151}]}}`, dp)
	want := []dataplane.Inbound{
		{"10.0.0.1", 80, "10.0.0.1", 80, map[string]string{"kuma.io/service": "a", "kuma.io/protocol": "http"}},
		{"10.0.0.2", 81, "127.0.0.1", 8081, nil},
		{"10.0.0.1", 49151, "10.0.0.1", 49151, nil},
		{"10.0.0.1", 82, "10.0.0.1", 49151, nil},
	}
	for i, in := range dp.GetNetworking().GetInbound() {
		got := dataplane.InboundOf(dp, in)
		if diff := cmp.Diff(want[i], got); diff != "" {
			t.Errorf("inbound %d (-want +got)\n%s", i, diff)
		}
		if got.Serves() != (i < 2) {
			t.Errorf("inbound %d serves: %t", i, got.Serves())
		}
	}
}
