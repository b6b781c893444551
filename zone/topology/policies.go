package topology

import (
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/common/store"
)

// PolicyChange is what became of a policy: Old is nil when it is new, New when it is gone.
type PolicyChange struct{ Old, New *policy.Policy }

func (w *World) setPolicy(c store.Change, d *Dirty) {
	m := w.of(c.Key.Mesh)
	m.pending = append(m.pending, c)
	d.mesh(c.Key.Mesh).Policies = append(d.mesh(c.Key.Mesh).Policies, PolicyChange{})
}

func (w *World) settlePolicies(*Dirty) {}

func (m *mesh) noPolicies() bool { return true }
