package reconcile

import (
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"weak"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/zone/envoy"
	"github.com/meridian-mesh/meridian/zone/mtls"
	"github.com/meridian-mesh/meridian/zone/topology"
	"github.com/meridian-mesh/meridian/zone/xds"
)

// assignments are the endpoints of clusters, each made once for all proxies that have the cluster.
type assignments struct {
	load func(*topology.Mesh, envoy.EndpointRef) (*endpointv3.ClusterLoadAssignment, error)

	mu    sync.Mutex // guards what follows
	byRef map[string]*assignment
}

// assignment is the endpoints of one cluster.
type assignment struct {
	key   string
	ref   envoy.EndpointRef
	users int // proxies; belongs to the goroutine of Run

	mu sync.Mutex // guards what follows
	// What res was made from. Services never change, so that the same pointer means the same content.
	service *topology.Service
	spec    *meshv1.Mesh
	remote  *topology.Endpoint
	made    bool
	res     *xds.Resource
	err     error
}

// refKey is a text that is the same for the same ref only.
func refKey(ref *envoy.EndpointRef) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%q %q %q %t %d", ref.Cluster, ref.Mesh, ref.Service, ref.Proxyless, ref.At)
	for _, k := range slices.Sorted(maps.Keys(ref.Tags)) {
		fmt.Fprintf(&b, " %q=%q", k, ref.Tags[k])
	}
	return b.String()
}

// of returns the assignment of a ref. Workers call it.
func (a *assignments) of(ref envoy.EndpointRef) *assignment {
	key := refKey(&ref)
	a.mu.Lock()
	defer a.mu.Unlock()
	e := a.byRef[key]
	if e == nil {
		e = &assignment{key: key, ref: ref}
		a.byRef[key] = e
	}
	return e
}

// current returns the resource as it follows from the mesh, which is nil when there is none. Workers call it; one of those
// that want the same makes it.
func (a *assignments) current(e *assignment, mesh *topology.Mesh) (*xds.Resource, error) {
	if mesh == nil {
		return nil, fmt.Errorf("endpoints of cluster %q: there is no mesh %q", e.ref.Cluster, e.ref.Mesh)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	var remote *topology.Endpoint
	if list := mesh.Remote[e.ref.Service]; len(list) > 0 {
		remote = &list[0]
	}
	if service := mesh.Services[e.ref.Service]; !e.made || e.service != service || e.spec != mesh.Spec || e.remote != remote {
		e.service, e.spec, e.remote, e.made = service, mesh.Spec, remote, true
		var cla *endpointv3.ClusterLoadAssignment
		if cla, e.err = a.load(mesh, e.ref); e.err == nil {
			var res *xds.Resource
			if res, e.err = xds.NewResource(xds.Endpoint, e.ref.Cluster, cla); e.err == nil && (e.res == nil || e.res.Version != res.Version) {
				e.res = res
			}
		}
		if e.err != nil {
			e.err = fmt.Errorf("endpoints of cluster %q: %w", e.ref.Cluster, e.err)
		}
	}
	if e.err != nil {
		return nil, e.err
	}
	return e.res, nil
}

// use counts proxies that have assignments; release those that no longer do. Both belong to the goroutine of Run, and what
// nobody has is forgotten.
func (a *assignments) use(list []*assignment) {
	for _, e := range list {
		e.users++
	}
}

func (a *assignments) release(list []*assignment) {
	for _, e := range list {
		e.users--
	}
	a.sweep(list)
}

// sweep forgets those of the list that nobody has.
func (a *assignments) sweep(list []*assignment) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range list {
		if e.users <= 0 && a.byRef[e.key] == e {
			delete(a.byRef, e.key)
		}
	}
}

func (a *assignments) len() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.byRef)
}

// trust is what the proxies of meshes trust, as resources made once.
type trust struct {
	authority Authority

	mu     sync.Mutex // guards what follows
	byMesh map[string]trusted
}

type trusted struct {
	roots *mtls.Roots
	res   *xds.Resource
}

// of returns what the proxies of a mesh trust. Workers call it.
func (t *trust) of(mesh *topology.Mesh) (trusted, error) {
	roots, err := t.authority.Roots(mesh.Name, mesh.Spec, mesh.Secrets)
	if err != nil {
		return trusted{}, fmt.Errorf("authorities of mesh %q: %w", mesh.Name, err)
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	had, ok := t.byMesh[mesh.Name]
	if ok && had.roots == roots {
		return had, nil
	}
	res := had.res
	if !ok || had.roots.Hash != roots.Hash {
		if res, err = xds.NewResource(xds.Secret, mtls.RootsName(mesh.Name), mtls.RootsSecret(mesh.Name, roots)); err != nil {
			return trusted{}, fmt.Errorf("authorities of mesh %q: %w", mesh.Name, err)
		}
	}
	t.byMesh[mesh.Name] = trusted{roots, res}
	return t.byMesh[mesh.Name], nil
}

func (t *trust) forget(mesh string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.byMesh, mesh)
	t.authority.Forget(mesh)
}

// interned makes equal resources of different proxies one. It keeps none alive.
type interned struct {
	mu    sync.Mutex // guards what follows
	byKey map[internKey]weak.Pointer[xds.Resource]
}

type internKey struct {
	kind          xds.Kind
	name, version string
}

// of returns the resource that stands for all that are equal to r. Workers call it.
func (t *interned) of(r *xds.Resource) *xds.Resource {
	key := internKey{r.Kind, r.Name, r.Version}
	t.mu.Lock()
	defer t.mu.Unlock()
	if old := t.byKey[key].Value(); old != nil {
		return old
	}
	t.byKey[key] = weak.Make(r)
	runtime.AddCleanup(r, t.drop, key)
	return r
}

// drop forgets a resource that is gone, unless another has taken its place.
func (t *interned) drop(key internKey) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byKey[key].Value() == nil {
		delete(t.byKey, key)
	}
}

func (t *interned) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.byKey)
}
