package topology

import (
	"slices"

	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// setPolicy notes a change of a policy. Policies of one type are made anew together, so they wait for the end of Apply.
func (w *World) setPolicy(c store.Change) {
	m := w.of(c.Key.Mesh)
	m.pending = append(m.pending, c)
}

// settlePolicies brings the policies up to date.
func (w *World) settlePolicies(d *Dirty) {
	for name, md := range d.Meshes {
		m := w.meshes[name]
		if m == nil || len(m.pending) == 0 {
			continue
		}
		before := m.Policies
		after, errs := before.With(m.pending...)
		for _, err := range errs {
			w.log.Error("a stored policy cannot be read and counts as absent", "mesh", name, "err", err)
		}
		m.pending = nil
		m.Policies, md.Policies = after, policy.Diff(before, after)
	}
}

func (m *mesh) noPolicies() bool {
	return !slices.ContainsFunc(policy.Types(), func(t resource.Type) bool {
		return slices.ContainsFunc(m.Policies.Of(t), func(p *policy.Policy) bool { return !p.Synthetic() })
	})
}
