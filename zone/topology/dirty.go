package topology

import "github.com/meridian-mesh/meridian/api/policy"

// Dirty says what a change made different. What it does not name is as it was.
type Dirty struct {
	// Meshes are the meshes in which something is different, by name.
	Meshes map[string]*MeshDirty
	// Ingresses and Egresses are the names of the resources that were written or deleted, of other zones too.
	Ingresses, Egresses map[string]struct{}
	// AdminCA: the authority of the proxies' administration.
	AdminCA bool
	// Available: AvailableServices may be different.
	Available bool
}

// MeshDirty says what is different in a mesh.
type MeshDirty struct {
	// Whole: the Mesh itself was written, made or deleted, so that everything may be different.
	Whole bool
	// Endpoints are services that have other endpoints, which are sent by EDS.
	Endpoints map[string]struct{}
	// Services are services that appeared, vanished, or have another protocol, readiness for TLS, or external endpoints: what
	// is written into clusters and listeners.
	Services map[string]struct{}
	// Remote are services with other endpoints in Mesh.Remote.
	Remote map[string]struct{}
	// Dataplanes are the names of the proxies that were written or deleted.
	Dataplanes map[string]struct{}
	// Policies are what was written or deleted.
	Policies policy.Difference
	// Secrets are the names of the secrets with another content.
	Secrets map[string]struct{}
	// Tags: the ports or tags of inbounds in this zone; Externals: external services, whether or not they can be reached.
	Tags, Externals bool
	// VIPs: the virtual addresses.
	VIPs bool
}

func newDirty() *Dirty {
	return &Dirty{Meshes: make(map[string]*MeshDirty), Ingresses: make(map[string]struct{}), Egresses: make(map[string]struct{})}
}

func (d *Dirty) mesh(name string) *MeshDirty {
	m := d.Meshes[name]
	if m == nil {
		m = &MeshDirty{
			Endpoints: make(map[string]struct{}), Services: make(map[string]struct{}), Remote: make(map[string]struct{}),
			Dataplanes: make(map[string]struct{}), Secrets: make(map[string]struct{}),
		}
		d.Meshes[name] = m
	}
	return m
}

func (m *MeshDirty) empty() bool {
	return !m.Whole && !m.VIPs && !m.Tags && !m.Externals && len(m.Endpoints) == 0 && len(m.Services) == 0 && len(m.Remote) == 0 && len(m.Dataplanes) == 0 &&
		m.Policies.Empty() && len(m.Secrets) == 0
}

// Empty reports whether nothing is different.
func (d *Dirty) Empty() bool {
	return len(d.Meshes) == 0 && len(d.Ingresses) == 0 && len(d.Egresses) == 0 && !d.AdminCA && !d.Available
}
