package insights

import (
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/testing/protocmp"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

type (
	dpStat       = meshv1.MeshInsight_DataplaneStat
	policies     = map[string]*meshv1.MeshInsight_PolicyStat
	stats        = map[string]*dpStat
	serviceStat  = meshv1.ServiceInsight_Service
	serviceCount = meshv1.ServiceInsight_Service_DataplaneStat
)

const (
	delegated = meshv1.Dataplane_Networking_Gateway_DELEGATED
	builtin   = meshv1.Dataplane_Networking_Gateway_BUILTIN
)

// counted runs the insights over a mesh "m" with the ops in it and returns what they store.
func counted(t *testing.T, ops ...func(testing.TB) store.Op) (m *meshv1.MeshInsight, s *meshv1.ServiceInsight) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, store.Options{})
		r.update(putMesh(t, "m"))
		r.start()
		defer r.close()
		r.wait()
		var all []store.Op
		for _, op := range ops {
			all = append(all, op(t))
		}
		r.update(all...)
		r.pass(2e9)
		m, s = meshInsight(t, r.st.Snapshot(), "m"), services(t, r.st.Snapshot(), "m")
	})
	return m, s
}

func dp(name string, dp *meshv1.Dataplane) func(testing.TB) store.Op {
	return func(t testing.TB) store.Op { return put(t, resource.Dataplane, "m", name, dp) }
}

func insight(name string, i told) func(testing.TB) store.Op {
	return func(t testing.TB) store.Op { return put(t, resource.DataplaneInsight, "m", name, i.message()) }
}

func ext(name, service, address string) func(testing.TB) store.Op {
	return func(t testing.TB) store.Op { return put(t, externalService, "m", name, external(service, address)) }
}

func raw(typ resource.Type, mesh, name string) func(testing.TB) store.Op {
	return func(testing.TB) store.Op {
		return store.Put(&store.Record{Key: key(typ, mesh, name), Spec: []byte{}})
	}
}

// online and gone are the simplest insights of a proxy that has, or had, a stream.
var (
	online = told{}
	gone   = told{gone: true}
)

func TestMeshInsightCounters(t *testing.T) {
	type op = func(testing.TB) store.Op
	// What every mesh has, so that cases say only what is theirs.
	with := func(change func(*meshv1.MeshInsight)) *meshv1.MeshInsight {
		m := &meshv1.MeshInsight{
			Dataplanes: &dpStat{}, DataplanesByType: &meshv1.MeshInsight_DataplanesByType{Standard: &dpStat{}, Gateway: &dpStat{}},
			DpVersions: &meshv1.MeshInsight_DpVersions{}, MTLS: &meshv1.MeshInsight_MTLS{}, Services: &meshv1.MeshInsight_ServiceStat{},
			Policies: policies{"ServiceInsight": {Total: 1}},
		}
		change(m)
		return m
	}
	tests := []struct {
		name string
		ops  []op
		want *meshv1.MeshInsight
	}{
		{"an empty mesh has every message and no counter", nil, with(func(*meshv1.MeshInsight) {})},
		{
			"proxies are counted by status and kind",
			[]op{
				dp("a", workload(good("web"))), insight("a", online),
				dp("b", workload(good("web"), bad("api"))), insight("b", online),
				dp("c", workload(bad("web"))), insight("c", online),
				dp("d", workload(good("web"))), insight("d", gone),
				dp("e", workload(good("web"))),
				dp("f", gateway(delegated, "edge")), insight("f", online),
				dp("g", gateway(builtin, "edge")), insight("g", gone),
			},
			with(func(m *meshv1.MeshInsight) {
				m.Dataplanes = &dpStat{Total: 7, Online: 2, PartiallyDegraded: 1, Offline: 4}
				m.DataplanesByType.Standard = &dpStat{Total: 5, Online: 1, PartiallyDegraded: 1, Offline: 3}
				m.DataplanesByType.Gateway = &dpStat{Total: 2, Online: 1, Offline: 1}
				all := &dpStat{Total: 7, Online: 2, PartiallyDegraded: 1, Offline: 4}
				m.DpVersions = &meshv1.MeshInsight_DpVersions{KumaDp: stats{"unknown": all}, Envoy: stats{"unknown": all}}
				m.Services = &meshv1.MeshInsight_ServiceStat{Total: 3, Internal: 3}
			}),
		},
		{
			"versions are those of the newest subscription, and totals count everything",
			[]op{
				dp("a", workload(good("web"))), insight("a", told{kumaDP: "2.0.8", envoy: "1.22.7"}),
				dp("b", workload(good("web"), bad("web"))), insight("b", told{kumaDP: "2.0.8", envoy: "1.22.7"}),
				dp("c", workload(good("web"))), insight("c", told{gone: true, kumaDP: "2.0.8"}),
				dp("d", workload(good("web"))),
			},
			with(func(m *meshv1.MeshInsight) {
				m.Dataplanes = &dpStat{Total: 4, Online: 1, PartiallyDegraded: 1, Offline: 2}
				m.DataplanesByType.Standard = m.GetDataplanes()
				m.DpVersions = &meshv1.MeshInsight_DpVersions{
					KumaDp: stats{"2.0.8": {Total: 3, Online: 1, PartiallyDegraded: 1, Offline: 1}, "unknown": {Total: 1, Offline: 1}},
					Envoy:  stats{"1.22.7": {Total: 2, Online: 1, PartiallyDegraded: 1}, "unknown": {Total: 2, Offline: 2}},
				}
				m.Services = &meshv1.MeshInsight_ServiceStat{Total: 1, Internal: 1}
			}),
		},
		{
			"identities are counted by backend, whatever the status",
			[]op{
				dp("a", workload(good("web"))), insight("a", told{mtls: mtls("ca-1", "ca-1", "ca-2")}),
				dp("b", workload(good("web"))), insight("b", told{gone: true, mtls: mtls("ca-2", "ca-2", "ca-2", "ca-1")}),
				dp("c", workload(good("web"), bad("web"))), insight("c", told{mtls: mtls("")}),
				dp("d", workload(good("web"))), insight("d", online),
			},
			with(func(m *meshv1.MeshInsight) {
				m.Dataplanes = &dpStat{Total: 4, Online: 2, PartiallyDegraded: 1, Offline: 1}
				m.DataplanesByType.Standard = m.GetDataplanes()
				m.DpVersions = &meshv1.MeshInsight_DpVersions{
					KumaDp: stats{"unknown": m.GetDataplanes()}, Envoy: stats{"unknown": m.GetDataplanes()},
				}
				m.MTLS = &meshv1.MeshInsight_MTLS{
					IssuedBackends: stats{
						"ca-1": {Total: 1, Online: 1}, "ca-2": {Total: 1, Offline: 1}, "unknown": {Total: 1, PartiallyDegraded: 1},
					},
					SupportedBackends: stats{
						"ca-1": {Total: 2, Online: 1, Offline: 1}, "ca-2": {Total: 2, Online: 1, Offline: 1},
					},
				}
				m.Services = &meshv1.MeshInsight_ServiceStat{Total: 1, Internal: 1}
			}),
		},
		{
			"every type of the mesh is counted, and nothing of other meshes",
			[]op{
				raw("TrafficRoute", "m", "r-1"), raw("TrafficRoute", "m", "r-2"), raw("MeshTrafficPermission", "m", "p"),
				raw(resource.Secret, "m", "s"), raw("MeshGateway", "m", "g"), raw("TrafficLog", "other", "l"),
				ext("e-1", "db", "db:5432"), ext("e-2", "db", "db-2:5432"),
			},
			with(func(m *meshv1.MeshInsight) {
				m.Policies = policies{
					"ServiceInsight": {Total: 1}, "TrafficRoute": {Total: 2}, "MeshTrafficPermission": {Total: 1}, "Secret": {Total: 1},
					"MeshGateway": {Total: 1}, "ExternalService": {Total: 2},
				}
				m.Services = &meshv1.MeshInsight_ServiceStat{Total: 2, External: 2}
			}),
		},
		{
			"an insight without its dataplane counts for nothing",
			[]op{insight("a", online)},
			with(func(*meshv1.MeshInsight) {}),
		},
		{
			"a service is counted once, however many offer it, and apart when something outside bears its name",
			[]op{
				dp("a", workload(good("web"), good("web"))), dp("b", workload(good("web"), &inbound{Tags: tags{"service": "old"}})),
				ext("e", "web", "web.example:80"),
			},
			with(func(m *meshv1.MeshInsight) {
				m.Dataplanes = &dpStat{Total: 2, Offline: 2}
				m.DataplanesByType.Standard = m.GetDataplanes()
				m.DpVersions = &meshv1.MeshInsight_DpVersions{
					KumaDp: stats{"unknown": m.GetDataplanes()}, Envoy: stats{"unknown": m.GetDataplanes()},
				}
				m.Policies["ExternalService"] = &meshv1.MeshInsight_PolicyStat{Total: 1}
				m.Services = &meshv1.MeshInsight_ServiceStat{Total: 3, Internal: 2, External: 1}
			}),
		},
		{
			"an inbound that names no service is no service",
			[]op{dp("a", workload(&inbound{Tags: tags{"version": "1"}})), insight("a", online)},
			with(func(m *meshv1.MeshInsight) {
				m.Dataplanes = &dpStat{Total: 1, Online: 1}
				m.DataplanesByType.Standard = m.GetDataplanes()
				m.DpVersions = &meshv1.MeshInsight_DpVersions{
					KumaDp: stats{"unknown": m.GetDataplanes()}, Envoy: stats{"unknown": m.GetDataplanes()},
				}
			}),
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, _ := counted(t, tt.ops...)
			if diff := cmp.Diff(tt.want, got, protocmp.Transform()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestServiceInsightCounters(t *testing.T) {
	type op = func(testing.TB) store.Op
	const (
		offline  = meshv1.ServiceInsight_Service_offline
		degraded = meshv1.ServiceInsight_Service_partially_degraded
		up       = meshv1.ServiceInsight_Service_online
		outside  = meshv1.ServiceInsight_Service_not_available
	)
	tests := []struct {
		name string
		ops  []op
		want map[string]*serviceStat
	}{
		{"an empty mesh has an insight without services", nil, nil},
		{
			"every inbound counts, and an old tag too",
			[]op{
				dp("a", workload(good("web"), good("web"), good("api"))), insight("a", online),
				dp("b", workload(&inbound{Tags: tags{"service": "web"}})), insight("b", online),
			},
			map[string]*serviceStat{
				"web": {Status: up, Dataplanes: &serviceCount{Total: 3, Online: 3}, AddressPort: "web.mesh:80"},
				"api": {Status: up, Dataplanes: &serviceCount{Total: 1, Online: 1}, AddressPort: "api.mesh:80"},
			},
		},
		{
			"a degraded proxy counts as offline for each of its inbounds",
			[]op{dp("a", workload(good("web"), bad("api"))), insight("a", online), dp("b", workload(good("web"))), insight("b", online)},
			map[string]*serviceStat{
				"web": {Status: degraded, Dataplanes: &serviceCount{Total: 2, Online: 1, Offline: 1}, AddressPort: "web.mesh:80"},
				"api": {Status: offline, Dataplanes: &serviceCount{Total: 1, Offline: 1}, AddressPort: "api.mesh:80"},
			},
		},
		{
			"a service none of whose proxies is online is offline",
			[]op{dp("a", workload(good("web"))), dp("b", workload(good("web"))), insight("b", gone)},
			map[string]*serviceStat{
				"web": {Status: offline, Dataplanes: &serviceCount{Total: 2, Offline: 2}, AddressPort: "web.mesh:80"},
			},
		},
		{
			"gateways have no address",
			[]op{
				dp("a", gateway(builtin, "edge")), insight("a", online),
				dp("b", gateway(delegated, "kong")), insight("b", gone),
			},
			map[string]*serviceStat{
				"edge": {Status: up, Dataplanes: &serviceCount{Total: 1, Online: 1}, ServiceType: meshv1.ServiceInsight_Service_gateway_builtin},
				"kong": {Status: offline, Dataplanes: &serviceCount{Total: 1, Offline: 1}, ServiceType: meshv1.ServiceInsight_Service_gateway_delegated},
			},
		},
		{
			"external services are counted, and nothing is known of their state",
			[]op{ext("e-1", "db", "db-1:5432"), ext("e-2", "db", "db-2:5432")},
			map[string]*serviceStat{
				"db": {
					Status: outside, Dataplanes: &serviceCount{Total: 2},
					ServiceType: meshv1.ServiceInsight_Service_external, AddressPort: "db-1:5432",
				},
			},
		},
		{
			"the first dataplane by name fixes type and address, before external services",
			[]op{
				ext("a", "web", "web.example:80"),
				dp("c", workload(good("web"))), insight("c", online), dp("b", gateway(builtin, "web")), insight("b", online),
			},
			map[string]*serviceStat{
				"web": {
					Status: degraded, Dataplanes: &serviceCount{Total: 3, Online: 2},
					ServiceType: meshv1.ServiceInsight_Service_gateway_builtin,
				},
			},
		},
		{
			"backends are counted for every inbound, online or not",
			[]op{
				dp("a", workload(good("web"), good("web"))), insight("a", told{mtls: mtls("ca-1", "ca-1")}),
				dp("b", workload(good("web"))), insight("b", told{gone: true, mtls: mtls("ca-2", "ca-1")}),
				dp("c", workload(good("web"))), insight("c", told{mtls: mtls("")}),
			},
			map[string]*serviceStat{
				"web": {
					Status: degraded, Dataplanes: &serviceCount{Total: 4, Online: 3, Offline: 1}, AddressPort: "web.mesh:80",
					IssuedBackends: map[string]uint32{"ca-1": 2, "ca-2": 1},
				},
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, got := counted(t, tt.ops...)
			want := &meshv1.ServiceInsight{Services: tt.want}
			if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
