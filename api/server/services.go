package server

import (
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"

	"github.com/go-chi/chi/v5"

	"github.com/meridian-mesh/meridian/api/codec"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

const titleServices = "Could not paginate resources"

// allServices is the key of the one ServiceInsight that is stored for a mesh. It holds all services of the mesh;
// over HTTP each service is a resource of its own.
func allServices(mesh string) store.Key {
	return store.Key{Type: string(resource.ServiceInsight), Mesh: mesh, Name: resource.ServiceInsightName(mesh)}
}

// service is one item: a service of a stored insight.
type service struct {
	stored *store.Record
	name   string
	spec   *meshv1.ServiceInsight_Service
}

// servicesOf returns the services that a stored insight holds, by name.
func (e endpoint) servicesOf(rec *store.Record) (map[string]*meshv1.ServiceInsight_Service, error) {
	spec, err := codec.Spec(e.d, rec)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", rec.Key, err)
	}
	insight, ok := spec.(*meshv1.ServiceInsight)
	if !ok {
		return nil, fmt.Errorf("read %s: it holds a %T", rec.Key, spec)
	}
	return insight.GetServices(), nil
}

// serviceItem renders a service for a list.
func (e endpoint) serviceItem(svc service) ([]byte, error) {
	return e.renders.item(renderKey{main: svc.stored, form: formService, part: svc.name}, func() ([]byte, error) {
		return codec.Item(svc.encode()), nil
	})
}

// encode renders a service with the meta of the insight that holds it.
func (svc service) encode() []byte {
	meta := codec.MetaOf(svc.stored)
	meta.Name = svc.name
	return codec.EncodeMessage(meta, svc.spec)
}

// listServices serves the list of services, sorted by mesh and service. Items are null when there are none.
func (e endpoint) listServices(w http.ResponseWriter, r *http.Request) error {
	query := r.URL.Query()
	p, err := pagingOf(query, titleServices)
	if err != nil {
		return err
	}
	snap := e.store.Snapshot()
	tag := e.listTag(snap, string(e.d.Name))
	if done, err := e.unchanged(w, r, tag, titleServices); done || err != nil {
		return err
	}
	var all []service
	for rec := range snap.List(string(e.d.Name), chi.URLParam(r, "mesh")) {
		byName, err := e.servicesOf(rec)
		if err != nil {
			return internal(titleServices, err)
		}
		for _, name := range slices.Sorted(maps.Keys(byName)) {
			if strings.Contains(name, query.Get(nameQuery)) {
				all = append(all, service{rec, name, byName[name]})
			}
		}
	}
	if len(all) == 0 {
		return e.sendTagged(w, r, []byte("{\n \"total\": 0,\n \"items\": null,\n \"next\": null\n}\n"), tag)
	}
	o := e.newReply(w, r)
	o.tag = tag
	defer o.release()
	o.writeListHead(len(all))
	empty := true
	for svc := range page(p, slices.Values(all)) {
		item, err := e.serviceItem(svc)
		if err != nil {
			return o.fail(internal(titleServices, err))
		}
		o.writeListItem(empty, item)
		empty = false
	}
	if err := o.writeListTail(empty, p, p.more(len(all))); err != nil {
		return o.fail(internal(titleServices, err))
	}
	return o.send()
}

// getService serves one service. A service that nothing is known of is answered with empty statistics, as long as its
// mesh exists.
func (e endpoint) getService(w http.ResponseWriter, r *http.Request) error {
	snap := e.store.Snapshot()
	mesh, name := chi.URLParam(r, "mesh"), chi.URLParam(r, "name")
	stored, ok := snap.Get(allServices(mesh))
	var spec *meshv1.ServiceInsight_Service
	var tag string
	if ok {
		tag = e.etag(stored.Version)
		byName, err := e.servicesOf(stored)
		if err != nil {
			return internal(titleGet, err)
		}
		spec = byName[name]
	} else {
		m, ok := snap.Get(store.Key{Type: string(resource.Mesh), Name: mesh})
		if !ok {
			return notFound(titleGet)
		}
		// Nothing was counted in this mesh yet: the times are the mesh's.
		stored = &store.Record{Key: allServices(mesh), Created: m.Created, Modified: m.Modified}
		tag = e.etag(0, m.Version)
	}
	if done, err := e.unchanged(w, r, tag, titleGet); done || err != nil {
		return err
	}
	if spec == nil {
		spec = &meshv1.ServiceInsight_Service{Dataplanes: &meshv1.ServiceInsight_Service_DataplaneStat{}}
	}
	return e.sendTagged(w, r, append(service{stored, name, spec}.encode(), '\n'), tag)
}
