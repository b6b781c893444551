package server

import (
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strings"

	"github.com/go-chi/chi/v5"

	"github.com/meridian-mesh/meridian/api/codec"
	proxies "github.com/meridian-mesh/meridian/api/dataplane"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// overview serves resources joined with their insights, made on read.
type overview struct {
	*Server
	main, insight       *resource.Descriptor
	path                string
	titleOne, titleMany string
}

// overviews is the table of overviews. The insight of a type is the registry's.
func overviews() []overview {
	const dataplanes = "Could not retrieve dataplane overviews"
	table := []struct {
		main                   resource.Type
		path, singular, plural string
	}{
		{resource.Dataplane, "dataplanes+insights", "a dataplane overview", dataplanes},
		{resource.ZoneType, "zones+insights", "a zone overview", dataplanes},
		{resource.ZoneIngress, "zoneingresses+insights", "a zone ingress overview", "Could not retrieve zone ingress overviews"},
		{resource.ZoneEgress, "zoneegressoverviews", "a zone egress overview", "Could not retrieve zone egress overviews"},
	}
	list := make([]overview, 0, len(table))
	for _, t := range table {
		o := overview{path: t.path, titleOne: "Could not retrieve " + t.singular, titleMany: t.plural}
		o.main, _ = resource.Lookup(t.main)
		o.insight, _ = o.main.Insight()
		list = append(list, o)
	}
	return list
}

// joined is one row of an overview.
type joined struct {
	main, insight *store.Record // insight may be nil
	live          bool          // insight is newer than what is stored: do not keep its rendering
}

// versions are what names the row; that of a missing insight is 0.
func (j joined) versions() []store.Revision {
	if j.insight == nil {
		return []store.Revision{j.main.Version, 0}
	}
	return []store.Revision{j.main.Version, j.insight.Version}
}

// join finds the insight of a record.
func (v overview) join(snap *store.Snapshot, main *store.Record) (joined, error) {
	key := main.Key
	key.Type = string(v.insight.Name)
	stored, ok := snap.Get(key)
	if !ok && v.insight.Name != resource.ZoneInsight {
		return joined{main: main}, nil
	}
	base := stored
	if !ok {
		base = &store.Record{Key: key} // a zone so new that its insight is not stored yet
	}
	insight, err := v.overlaid(base)
	if err != nil {
		return joined{}, err
	}
	if insight == base {
		return joined{main: main, insight: stored}, nil
	}
	return joined{main: main, insight: insight, live: true}, nil
}

// item renders a row for a list, where a missing insight is left out.
func (v overview) item(j joined) ([]byte, error) {
	return v.cache(j).item(renderKey{main: j.main, insight: j.insight, form: formOverview}, func() ([]byte, error) {
		single, err := codec.EncodeOverview(v.main, j.main, j.insight, false)
		return codec.Item(single), err
	})
}

// line renders a row of a list as one line of JSON.
func (v overview) line(j joined) ([]byte, error) {
	return v.cache(j).item(renderKey{main: j.main, insight: j.insight, form: formOverviewLine}, func() ([]byte, error) {
		single, err := codec.EncodeOverview(v.main, j.main, j.insight, false)
		if err != nil {
			return nil, fmt.Errorf("encode: %w", err)
		}
		return oneLine(single)
	})
}

// cache keeps the renderings of a row.
func (v overview) cache(j joined) *renders {
	if j.live {
		return &renders{}
	}
	return v.renders
}

// get serves GET of one overview, where a missing insight shows as {}.
func (v overview) get(w http.ResponseWriter, r *http.Request) error {
	if err := v.allow(userOf(r), v.main); err != nil {
		return err
	}
	snap := v.store.Snapshot()
	main, ok := snap.Get(store.Key{Type: string(v.main.Name), Mesh: chi.URLParam(r, "mesh"), Name: chi.URLParam(r, "name")})
	if !ok {
		return notFound(v.titleOne)
	}
	j, err := v.join(snap, main)
	if err != nil {
		return internal(v.titleOne, err)
	}
	tag := ""
	if !j.live {
		tag = v.etag(j.versions()...)
		if done, err := v.unchanged(w, r, tag, v.titleOne); done || err != nil {
			return err
		}
	}
	body, err := codec.EncodeOverview(v.main, j.main, j.insight, true)
	if err != nil {
		return internal(v.titleOne, fmt.Errorf("render overview of %s: %w", main.Key, err))
	}
	return v.sendTagged(w, r, append(body, '\n'), tag)
}

// list serves GET of a list of overviews. Its total counts the items of the page, as clients know it.
func (v overview) list(w http.ResponseWriter, r *http.Request) error {
	if err := v.allow(userOf(r), v.main); err != nil {
		return err
	}
	query := r.URL.Query()
	p, err := pagingOf(query, v.titleMany)
	if err != nil {
		return err
	}
	snap := v.store.Snapshot()
	tag := ""
	if v.zones == nil || v.insight.Name != resource.ZoneInsight { // those are overlaid by the live sessions
		tag = v.listTag(snap, string(v.main.Name), string(v.insight.Name))
	}
	all := named(snap.List(string(v.main.Name), chi.URLParam(r, "mesh")), query.Get(nameQuery))
	var filterErr error
	if v.main.Name == resource.Dataplane {
		f, err := dataplaneFilterOf(query, v.titleMany)
		if err != nil {
			return err
		}
		all = f.filter(all, v.main, &filterErr)
	}
	if tag != "" {
		if done, err := v.unchanged(w, r, tag, v.titleMany); done || err != nil {
			return err
		}
	}

	// One more than the page holds tells whether there is a next one.
	ahead := p
	if p.size > 0 {
		ahead.size++
	}
	rows := make([]joined, 0, min(ahead.size, maxPageSize+1))
	for main := range page(ahead, all) {
		j, err := v.join(snap, main)
		if err != nil {
			return internal(v.titleMany, err)
		}
		rows = append(rows, j)
	}
	if filterErr != nil {
		return internal(v.titleMany, filterErr)
	}
	more := p.size > 0 && len(rows) > p.size
	if more {
		rows = rows[:p.size]
	}

	o := v.newReply(w, r)
	o.tag = tag
	defer o.release()
	o.writeListHead(len(rows))
	for i, j := range rows {
		item, err := v.item(j)
		if err != nil {
			return o.fail(internal(v.titleMany, err))
		}
		o.writeListItem(i == 0, item)
		if o.broken {
			return nil
		}
	}
	if err := o.writeListTail(len(rows) == 0, p, more); err != nil {
		return o.fail(internal(v.titleMany, err))
	}
	return o.send()
}

// watch serves a watch of overviews.
func (v overview) watch(w http.ResponseWriter, r *http.Request) error {
	f := &overviewFeed{overview: v, only: filterOf(r), shown: make(map[store.Key]bool)}
	if v.main.Name == resource.Dataplane {
		var err error
		if f.dataplanes, err = dataplaneFilterOf(r.URL.Query(), v.titleMany); err != nil {
			return err
		}
	}
	return endpoint{v.Server, v.main}.stream(w, r, f, string(v.main.Name), string(v.insight.Name))
}

// dataplaneFilter selects dataplanes by the queries tag and gateway.
type dataplaneFilter struct {
	tags    [][2]string // all on one inbound, or on the gateway; value "*" is any
	gateway *bool
}

func dataplaneFilterOf(query url.Values, title string) (dataplaneFilter, error) {
	var f dataplaneFilter
	for _, t := range query["tag"] {
		if kv := strings.Split(t, ":"); len(kv) == 2 {
			f.tags = append(f.tags, [2]string(kv))
		}
	}
	if v := query.Get("gateway"); v != "" {
		is := strings.EqualFold(v, "true")
		if !is && !strings.EqualFold(v, "false") {
			return f, invalidQuery(title, "/meshes/{mesh}/dataplanes+insights.gateway", "must be either true or false")
		}
		f.gateway = &is
	}
	return f, nil
}

// invalidQuery is the answer to a query parameter with a value that means nothing.
func invalidQuery(title, field, message string) *problem {
	return &problem{
		status: http.StatusBadRequest, Title: title, Details: "Invalid query parameter",
		Causes: []cause{{Field: field, Message: message}},
	}
}

// all reports whether every dataplane matches.
func (f dataplaneFilter) all() bool { return len(f.tags) == 0 && f.gateway == nil }

// filter yields the records that match. A record that cannot be read ends it and is reported in failure.
func (f dataplaneFilter) filter(all iter.Seq[*store.Record], d *resource.Descriptor, failure *error) iter.Seq[*store.Record] {
	if f.all() {
		return all
	}
	return func(yield func(*store.Record) bool) {
		for rec := range all {
			matches, err := f.selects(d, rec)
			if err != nil {
				*failure = err
				return
			}
			if matches && !yield(rec) {
				return
			}
		}
	}
}

// selects reports whether a record matches.
func (f dataplaneFilter) selects(d *resource.Descriptor, rec *store.Record) (bool, error) {
	if f.all() {
		return true, nil
	}
	spec, err := codec.Spec(d, rec)
	if err != nil {
		return false, fmt.Errorf("filter %s: %w", rec.Key, err)
	}
	dp, ok := spec.(*meshv1.Dataplane)
	return ok && f.matches(dp), nil
}

func (f dataplaneFilter) matches(dp *meshv1.Dataplane) bool {
	net := dp.GetNetworking()
	if f.gateway != nil && *f.gateway != (net.GetGateway() != nil) {
		return false
	}
	if len(f.tags) == 0 {
		return true
	}
	if g := net.GetGateway(); g != nil && f.carriedBy(g.GetTags()) {
		return true
	}
	for _, in := range net.GetInbound() {
		if f.carriedBy(in.GetTags()) {
			return true
		}
	}
	return false
}

func (f dataplaneFilter) carriedBy(tags map[string]string) bool {
	for _, kv := range f.tags {
		v, ok := tags[kv[0]]
		if !ok && kv[0] == proxies.ServiceTag { // the oldest dataplanes name their service otherwise
			v = proxies.Service(tags)
			ok = v != ""
		}
		if !ok || (kv[1] != "*" && kv[1] != v) {
			return false
		}
	}
	return true
}
