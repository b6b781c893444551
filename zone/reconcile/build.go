package reconcile

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/proto"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/zone/envoy"
	"github.com/meridian-mesh/meridian/zone/mtls"
	"github.com/meridian-mesh/meridian/zone/topology"
	"github.com/meridian-mesh/meridian/zone/xds"
)

// allKinds are the kinds of resources of a configuration.
var allKinds = [...]xds.Kind{xds.Cluster, xds.Endpoint, xds.Secret, xds.Listener, xds.Route, xds.Runtime}

// errWait says that there is nothing to make a configuration from: the mesh or the resource of the proxy is not here. What the
// proxy has stays.
var errWait = errors.New("nothing to configure the proxy from")

// result is what a worker made for a proxy.
type result struct {
	proxy     *proxy
	dataplane *meshv1.Dataplane
	host      string // where the proxy listens, when that is not an address
	out       *envoy.Output
	refs      []*assignment
	config    *xds.Config
	identity  identities
	supported []string // backends that are trusted, of the proxy's own mesh
	seconds   float64
	partial   error // what of the configuration could not be made: the rest is good
	err       error
	stack     []byte // of a panic
}

// build makes what p needs. It is run by workers: it reads p and the World, and changes neither.
func (r *Reconciler) build(ctx context.Context, p *proxy) (res result) {
	begin := time.Now()
	res = result{proxy: p, host: p.host, out: p.out, refs: p.refs, config: p.config, identity: p.identity}
	defer func() {
		if v := recover(); v != nil {
			res.err, res.stack = fmt.Errorf("panic: %v", v), debug.Stack()
		}
		res.seconds = time.Since(begin).Seconds()
	}()
	mesh := r.world.Mesh(p.Mesh)
	all := p.need&needAll != 0 || p.out == nil
	switch p.Kind {
	case Sidecar:
		if mesh == nil || mesh.Dataplanes[p.Name] == nil {
			res.err = errWait
			return res
		}
		res.dataplane = mesh.Dataplanes[p.Name]
	case Ingress:
		if r.world.Ingress(p.Name) == nil {
			res.err = errWait
			return res
		}
	case Egress:
		if r.world.Egress(p.Name) == nil {
			res.err = errWait
			return res
		}
	}
	if all {
		builder := r.builders.of(&p.Connected, res.dataplane)
		if builder == nil {
			res.err = fmt.Errorf("proxies of this kind (%s) cannot be configured", p.Kind)
			return res
		}
		located, err := r.locate(&res)
		if err != nil {
			res.err = err
			return res
		}
		out, err := builder(&Input{World: r.world, Mesh: mesh, Dataplane: located, Proxy: p.Connected})
		if err != nil {
			res.err = err
			return res
		}
		for i, one := range out.Resources {
			out.Resources[i] = r.interned.of(one)
		}
		res.out, res.refs = out, nil
		for _, ref := range out.Endpoints {
			ref.Mesh = meshOf(p, &ref)
			res.refs = append(res.refs, r.assignments.of(ref))
		}
	}
	if !all && p.need == needEndpoints {
		res.config, res.err = r.freshEndpoints(p)
		return res
	}
	resources := slices.Clone(res.out.Resources)
	endpoints, err := r.endpoints(res.refs)
	if err != nil {
		res.err = err
		return res
	}
	resources = append(resources, endpoints...)
	secrets, err := r.secrets(ctx, &res, mesh)
	if err != nil {
		res.err = err
		return res
	}
	res.config, res.err = xds.NewConfig(append(resources, secrets...)...)
	return res
}

// locate returns the Dataplane with the address that its host name stands for: Envoy listens on addresses only.
func (r *Reconciler) locate(res *result) (*meshv1.Dataplane, error) {
	host := res.dataplane.GetNetworking().GetAddress()
	if _, err := netip.ParseAddr(host); host == "" || err == nil || res.proxy.Proxyless {
		res.host = ""
		return res.dataplane, nil
	}
	res.host = strings.ToLower(host)
	address := r.world.Address(host)
	if address == "" {
		return nil, fmt.Errorf("the address of the proxy, %q, is a host name that is not resolved (yet)", host)
	}
	dp := proto.CloneOf(res.dataplane)
	dp.Networking.Address = address
	return dp, nil
}

// endpoints are the endpoints of clusters as they are now, in the order of the refs. A cluster of an ingress that several meshes
// have endpoints in, which its refs stand side by side for, is put together from theirs.
func (r *Reconciler) endpoints(refs []*assignment) ([]*xds.Resource, error) {
	out := make([]*xds.Resource, 0, len(refs))
	var parts []*endpointv3.ClusterLoadAssignment
	for i, e := range refs {
		one, err := r.assignments.current(e, r.world.Mesh(e.ref.Mesh))
		if err != nil {
			return nil, err
		}
		first := i == 0 || refs[i-1].ref.Cluster != e.ref.Cluster
		last := i == len(refs)-1 || refs[i+1].ref.Cluster != e.ref.Cluster
		if first && last {
			out = append(out, one)
			continue
		}
		if first {
			parts = nil
		}
		parts = append(parts, one.Message.(*endpointv3.ClusterLoadAssignment)) //nolint:forcetypeassert // current makes no other
		if !last {
			continue
		}
		if one, err = xds.NewResource(xds.Endpoint, e.ref.Cluster, envoy.Join(e.ref.Cluster, parts)); err != nil {
			return nil, fmt.Errorf("endpoints of cluster %q: %w", e.ref.Cluster, err)
		}
		out = append(out, one)
	}
	return out, nil
}

// freshEndpoints is the configuration of p with the endpoints that are current.
func (r *Reconciler) freshEndpoints(p *proxy) (*xds.Config, error) {
	var changed []*xds.Resource
	endpoints, err := r.endpoints(p.refs)
	if err != nil {
		return nil, err
	}
	for _, one := range endpoints {
		if had := p.config.Get(xds.Endpoint, one.Name); had != one && (had == nil || had.Version != one.Version) {
			changed = append(changed, one)
		}
	}
	if len(changed) == 0 {
		return p.config, nil
	}
	return p.config.Replace(changed...), nil
}

// secrets are the secrets that the configuration refers to. Certificates that still fit are kept.
//
// An egress serves many meshes, of which one may have no authority that can be used. Of that one it keeps the secrets that it has,
// or has none and cannot serve it; the others get theirs.
func (r *Reconciler) secrets(ctx context.Context, res *result, own *topology.Mesh) ([]*xds.Resource, error) {
	var out []*xds.Resource
	res.identity = make(identities)
	for _, name := range res.out.Secrets {
		one, err := r.secret(ctx, res, own, name)
		switch {
		case err == nil:
			out = append(out, one)
		case res.proxy.Kind != Egress || ctx.Err() != nil:
			return nil, err
		default:
			res.partial = errors.Join(res.partial, err)
			meshName := strings.TrimPrefix(name, mtls.IdentityName(""))
			if had := res.proxy.identity[meshName]; had != nil {
				res.identity[meshName] = had
			}
			if res.proxy.config == nil {
				continue
			}
			if had := res.proxy.config.Get(xds.Secret, name); had != nil {
				out = append(out, had)
			}
		}
	}
	return out, nil
}

// secret is one of the secrets of a configuration.
func (r *Reconciler) secret(ctx context.Context, res *result, own *topology.Mesh, name string) (*xds.Resource, error) {
	if meshName, ok := strings.CutPrefix(name, mtls.RootsName("")); ok {
		if name == mtls.AllRootsName {
			return nil, fmt.Errorf("secret %q: bundles of several meshes are not made", name)
		}
		mesh := r.world.Mesh(meshName)
		if mesh == nil {
			return nil, fmt.Errorf("secret %q: there is no such mesh", name)
		}
		t, err := r.trust.of(mesh)
		if err != nil {
			return nil, err
		}
		if mesh == own {
			res.supported = t.roots.Backends
		}
		return t.res, nil
	}
	if strings.HasPrefix(name, envoy.ServerSecretPrefix) {
		return r.serverSecret(res, own, name)
	}
	meshName, ok := strings.CutPrefix(name, mtls.IdentityName(""))
	mesh := r.world.Mesh(meshName)
	if !ok || mesh == nil {
		return nil, fmt.Errorf("secret %q: there is no such secret", name)
	}
	id, err := r.identityOf(ctx, res, mesh)
	if err != nil {
		return nil, err
	}
	res.identity[meshName] = id
	return id.secret, nil
}

// serverSecret is a certificate of a builtin gateway for its own clients.
func (r *Reconciler) serverSecret(res *result, own *topology.Mesh, name string) (*xds.Resource, error) {
	m, err := envoy.ServerSecret(own, res.dataplane, name)
	if err != nil {
		return nil, err //nolint:wrapcheck // names the secret
	}
	secret, err := xds.NewResource(xds.Secret, name, m)
	if err != nil {
		return nil, fmt.Errorf("secret %q: %w", name, err)
	}
	return secret, nil
}

// identityOf is the identity of a proxy in a mesh: the one it has, where that fits and is not due, or a new one.
func (r *Reconciler) identityOf(ctx context.Context, res *result, mesh *topology.Mesh) (*identity, error) {
	req := mtls.IdentityRequest{Mesh: mesh.Name, Tags: mtls.EgressTags()}
	if res.dataplane != nil {
		req.Tags = mtls.TagsOf(res.dataplane)
	}
	had := res.proxy.identity[mesh.Name]
	if had != nil && r.now().Before(had.RenewAt) && had.Fits(mesh.Spec, mesh.Secrets, req) {
		return had, nil
	}
	id, err := r.trust.authority.Issue(ctx, mesh.Spec, mesh.Secrets, req)
	if err != nil {
		return nil, fmt.Errorf("certificate in mesh %q: %w", mesh.Name, err)
	}
	secret, err := xds.NewResource(xds.Secret, mtls.IdentityName(mesh.Name), mtls.IdentitySecret(mesh.Name, id))
	if err != nil {
		return nil, fmt.Errorf("certificate in mesh %q: %w", mesh.Name, err)
	}
	return &identity{id, secret}, nil
}

// same reports whether two configurations are equal in all kinds.
func same(a, b *xds.Config) bool {
	if a == nil || b == nil {
		return a == b
	}
	return !slices.ContainsFunc(allKinds[:], func(k xds.Kind) bool { return a.Version(k) != b.Version(k) })
}
