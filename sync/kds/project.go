package kds

import (
	"google.golang.org/protobuf/proto"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
)

// projections turn what only Meridian accepts into the form that a plain Kuma zone takes (decision 39).
// docs/COMPATIBILITY.md lists them for users.
var projections = map[resource.Type]func(proto.Message) error{
	resource.Mesh: func(m proto.Message) error {
		mtls := m.(*meshv1.Mesh).GetMtls()
		if len(mtls.GetBackends()) < 2 {
			return nil
		}
		for _, b := range mtls.GetBackends() {
			if b.GetName() == mtls.GetEnabledBackend() {
				mtls.Backends = []*meshv1.CertificateAuthorityBackend{b}
				return nil
			}
		}
		mtls.Backends = mtls.Backends[:1]
		return nil
	},
	"HealthCheck": func(m proto.Message) error {
		conf := m.(*meshv1.HealthCheck).GetConf()
		if conf.GetTcp() != nil && conf.GetHttp() != nil {
			conf.Tcp = nil
		}
		return nil
	},
	"FaultInjection": func(m proto.Message) error {
		spec := m.(*meshv1.FaultInjection)
		spellProtocol(spec.GetSources())
		spellProtocol(spec.GetDestinations())
		return nil
	},
	"Retry": func(m proto.Message) error {
		spec := m.(*meshv1.Retry)
		spellProtocol(spec.GetSources())
		for _, s := range spec.GetDestinations() {
			delete(s.GetMatch(), "protocol") // the reference allows only kuma.io/service there
		}
		return nil
	},
}

// spellProtocol replaces the older tag "protocol" by "kuma.io/protocol".
func spellProtocol(selectors []*meshv1.Selector) {
	for _, s := range selectors {
		if v, ok := s.GetMatch()["protocol"]; ok {
			delete(s.Match, "protocol")
			if _, ok := s.Match["kuma.io/protocol"]; !ok {
				s.Match["kuma.io/protocol"] = v
			}
		}
	}
}
