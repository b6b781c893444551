package insights

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/meridian-mesh/meridian/api/dataplane"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
)

var deterministic = proto.MarshalOptions{Deterministic: true}

// meshInsight is the counters of the mesh.
func (m *mesh) meshInsight() *meshv1.MeshInsight {
	policies := make(map[string]*meshv1.MeshInsight_PolicyStat, len(m.numbers)+1)
	for typ, n := range m.numbers {
		policies[typ] = &meshv1.MeshInsight_PolicyStat{Total: uint32(n)} //nolint:gosec // no store holds that many
	}
	// It is stored together with this one.
	policies[string(resource.ServiceInsight)] = &meshv1.MeshInsight_PolicyStat{Total: 1}
	return &meshv1.MeshInsight{
		Dataplanes:       m.all.message(),
		DataplanesByType: &meshv1.MeshInsight_DataplanesByType{Standard: m.standard.message(), Gateway: m.gateway.message()},
		Policies:         policies,
		DpVersions:       &meshv1.MeshInsight_DpVersions{KumaDp: m.kumaDP.message(), Envoy: m.envoy.message()},
		MTLS:             &meshv1.MeshInsight_MTLS{IssuedBackends: m.issued.message(), SupportedBackends: m.supported.message()},
		Services: &meshv1.MeshInsight_ServiceStat{
			Total: uint32(m.internal + len(m.externals)), Internal: uint32(m.internal), External: uint32(len(m.externals)), //nolint:gosec // counts of things in memory
		},
	}
}

func (s stat) message() *meshv1.MeshInsight_DataplaneStat {
	count := func(of dataplane.Status) uint32 { return uint32(s[of]) } //nolint:gosec // never negative
	m := &meshv1.MeshInsight_DataplaneStat{
		Online: count(dataplane.Online), Offline: count(dataplane.Offline), PartiallyDegraded: count(dataplane.PartiallyDegraded),
	}
	m.Total = m.GetOnline() + m.GetOffline() + m.GetPartiallyDegraded()
	return m
}

func (t tally) message() map[string]*meshv1.MeshInsight_DataplaneStat {
	m := make(map[string]*meshv1.MeshInsight_DataplaneStat, len(t))
	for name, s := range t {
		m[name] = s.message()
	}
	return m
}

// appendServices appends the encoded ServiceInsight of the mesh to b. The encoding of messages one after another is that
// of their union, so each service keeps its own, and only those that have changed are encoded again.
func (m *mesh) appendServices(b []byte) ([]byte, error) {
	for _, name := range m.names {
		s := m.services[name]
		if s.encoded == nil {
			var err error
			s.encoded, err = deterministic.Marshal(&meshv1.ServiceInsight{
				Services: map[string]*meshv1.ServiceInsight_Service{name: s.message()},
			})
			if err != nil {
				return nil, fmt.Errorf("encode service %q: %w", name, err)
			}
		}
		b = append(b, s.encoded...)
	}
	return b, nil
}

func (s *service) message() *meshv1.ServiceInsight_Service {
	first := s.entries[0]
	m := &meshv1.ServiceInsight_Service{
		Dataplanes: &meshv1.ServiceInsight_Service_DataplaneStat{
			Total: uint32(s.total), Online: uint32(s.online), Offline: uint32(s.offline), //nolint:gosec // never negative
		},
		IssuedBackends: s.issued,
		ServiceType:    first.kind,
		AddressPort:    first.address,
	}
	switch {
	case first.external():
		m.Status = meshv1.ServiceInsight_Service_not_available
	case s.online == 0:
		m.Status = meshv1.ServiceInsight_Service_offline
	case s.online == s.total:
		m.Status = meshv1.ServiceInsight_Service_online
	default:
		m.Status = meshv1.ServiceInsight_Service_partially_degraded
	}
	return m
}
