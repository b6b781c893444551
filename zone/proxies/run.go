package proxies

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/tokens"
	"github.com/meridian-mesh/meridian/common/store"
)

// Run keeps the registry until ctx ends. Then every stream is ended and no new one admitted; nobody is deregistered, and what
// is stored says that the proxies are disconnected.
func (r *Registry) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return r.watch(ctx) })         // ends streams that have lost their right
	g.Go(func() error { return r.storeInsights(ctx) }) // what has changed in them
	g.Go(func() error { return r.attend(ctx) })        // to what others write of them, or leave behind; removes who is gone
	g.Go(func() error { return r.upkeep(ctx) })        // what time brings about
	return g.Wait()
}

// watch looks at the streams that a change can affect.
func (r *Registry) watch(ctx context.Context) error {
	types := []string{
		string(resource.Dataplane), string(resource.ZoneIngress), string(resource.ZoneEgress),
		string(resource.Secret), string(resource.GlobalSecret),
	}
	from := r.from
	for {
		for changes, err := range r.store.Watch(ctx, from, types...) {
			switch {
			case err == nil:
				from = changes.To
				r.recheck(changes)
			case errors.Is(err, store.ErrCompacted):
				snap := r.store.Snapshot()
				from = snap.Revision()
				for _, s := range r.affected(func(*proxy) bool { return true }) {
					_ = s.verify(snap)
				}
			case errors.Is(err, store.ErrClosed), ctx.Err() != nil:
				return nil
			default:
				return fmt.Errorf("watch what proxies depend on: %w", err)
			}
		}
	}
}

// recheck looks at the streams that changes can affect. Each ends itself when it must.
func (r *Registry) recheck(changes store.Changes) {
	nodes := make(map[string]struct{})
	meshes := make(map[string]struct{})
	zonal := false
	for _, c := range changes.List {
		kind, isProxy := kindOf(c.Key.Type)
		switch {
		case isProxy:
			nodes[NodeID(kind, c.Key.Mesh, c.Key.Name)] = struct{}{}
		case decides(c.Key, tokens.Dataplane):
			meshes[c.Key.Mesh] = struct{}{}
		case decides(c.Key, tokens.Zone), decides(c.Key, tokens.ZoneIngress):
			zonal = true
		}
	}
	var sessions []*Session
	if len(meshes) > 0 || zonal {
		sessions = r.affected(func(p *proxy) bool {
			_, named := nodes[p.id]
			_, inMesh := meshes[p.key.Mesh]
			return named || inMesh && p.kind == Sidecar || zonal && p.kind != Sidecar
		})
	} else {
		sessions = r.named(nodes)
	}
	for _, s := range sessions {
		_ = s.verify(changes.Snapshot) // its stream is told by Done
	}
}

// decides reports whether tokens of a kind are judged by a secret.
func decides(key store.Key, kind tokens.Kind) bool {
	revocations := tokens.Revocations(kind, key.Mesh)
	if key == revocations {
		return true
	}
	stem := strings.TrimSuffix(revocations.Name, "-"+key.Mesh)
	stem = strings.TrimSuffix(stem, "revocations")
	return key.Type == revocations.Type && strings.HasPrefix(key.Name, stem)
}

// affected returns the streams of the proxies that match.
func (r *Registry) affected(match func(*proxy) bool) []*Session {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []*Session
	for _, p := range r.proxies {
		if match(p) {
			list = append(append(list, p.streams...), p.aside...)
		}
	}
	return list
}

// named returns the streams of the proxies with these node ids.
func (r *Registry) named(nodes map[string]struct{}) []*Session {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []*Session
	for id := range nodes {
		if p := r.proxies[id]; p != nil {
			list = slices.Concat(list, p.streams, p.aside)
		}
	}
	return list
}
