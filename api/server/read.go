package server

import (
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/go-chi/chi/v5"
	"google.golang.org/protobuf/proto"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

const (
	defaultPageSize = 100
	maxPageSize     = 1000
)

// paging is the part of a list that is asked for.
type paging struct {
	offset int // index of the first item
	size   int // most items; 0: all
}

// pagingOf reads offset and size from the query.
func pagingOf(query url.Values, title string) (paging, error) {
	p := paging{size: defaultPageSize}
	bad := func(details, field, message string) error {
		return &problem{
			status: http.StatusBadRequest, Title: title, Details: details,
			Causes: []cause{{Field: field, Message: message}},
		}
	}
	var err error
	if v := query.Get("size"); v != "" {
		const details = "Invalid page size"
		if p.size, err = strconv.Atoi(v); err != nil {
			return paging{}, bad(details, "size", "Invalid format")
		}
		if p.size < 0 {
			return paging{}, bad(details, "size", fmt.Sprintf("Invalid page size of %d. It must not be negative", p.size))
		}
		if p.size > maxPageSize {
			return paging{}, bad(details, "size",
				fmt.Sprintf("Invalid page size of %d. Maximum page size is %d", p.size, maxPageSize))
		}
	}
	if v := query.Get("offset"); v != "" {
		const details = "Invalid offset"
		if p.offset, err = strconv.Atoi(v); err != nil {
			return paging{}, bad(details, "offset", "Invalid format")
		}
		if p.offset < 0 {
			return paging{}, bad(details, "offset", fmt.Sprintf("Invalid offset of %d. It must not be negative", p.offset))
		}
	}
	return p, nil
}

// more reports whether a list of total items goes on after this page.
func (p paging) more(total int) bool {
	return p.size > 0 && p.offset < total && total-p.offset > p.size
}

// page yields the items of all that are on p.
func page[T any](p paging, all iter.Seq[T]) iter.Seq[T] {
	return func(yield func(T) bool) {
		i := 0
		for v := range all {
			if i >= p.offset && !yield(v) {
				return
			}
			i++
			if p.size > 0 && i-p.offset >= p.size {
				return
			}
		}
	}
}

// writeListHead writes a list's JSON up to its items. Items follow by writeListItem, then writeListTail.
func (o *reply) writeListHead(total int) {
	o.writeString("{\n \"total\": ")
	o.writeInt(total)
	o.writeString(",\n \"items\": [")
}

func (o *reply) writeListItem(first bool, item []byte) {
	if first {
		o.writeString("\n  ")
	} else {
		o.writeString(",\n  ")
	}
	o.write(item)
}

// writeListTail ends a list: with the link to the next page when there is one.
func (o *reply) writeListTail(empty bool, p paging, more bool) error {
	if !empty {
		o.writeString("\n ")
	}
	o.writeString("],\n \"next\": ")
	if !more {
		o.writeString("null\n}\n")
		return nil
	}
	next, err := marshal(nextURL(o.r, p))
	if err != nil {
		return fmt.Errorf("render next: %w", err)
	}
	o.write(next)
	o.writeString("}\n")
	return nil
}

// nextURL is the address of the page after p: the request's own, as the client wrote it, with another offset.
func nextURL(r *http.Request, p paging) string {
	query := r.URL.Query()
	query.Set("offset", strconv.Itoa(p.offset+p.size))
	u := url.URL{Scheme: "http", Host: r.Host, Path: r.URL.Path, RawPath: r.URL.RawPath, RawQuery: query.Encode()}
	if r.TLS != nil {
		u.Scheme = "https"
	}
	return u.String()
}

// nameQuery is the query parameter that every list is filtered by: a part of the name, in the case as written.
const nameQuery = "name"

// named yields the records whose name contains part.
func named(all iter.Seq[*store.Record], part string) iter.Seq[*store.Record] {
	if part == "" {
		return all
	}
	return func(yield func(*store.Record) bool) {
		for rec := range all {
			if strings.Contains(rec.Key.Name, part) && !yield(rec) {
				return
			}
		}
	}
}

// list serves GET of a collection.
func (e endpoint) list(w http.ResponseWriter, r *http.Request) error {
	if err := e.allow(userOf(r), e.d); err != nil {
		return err
	}
	query := r.URL.Query()
	p, err := pagingOf(query, titleList)
	if err != nil {
		return err
	}
	mesh := chi.URLParam(r, "mesh")
	snap := e.store.Snapshot()
	tag := ""
	if !e.overlays() {
		tag = e.listTag(snap, string(e.d.Name))
		if done, err := e.unchanged(w, r, tag, titleList); done || err != nil {
			return err
		}
	}
	all := snap.List(string(e.d.Name), mesh)
	total := 0
	if part := query.Get(nameQuery); part == "" {
		total = snap.Count(string(e.d.Name), mesh)
	} else {
		matches := slices.Collect(named(all, part))
		all, total = slices.Values(matches), len(matches)
	}

	o := e.newReply(w, r)
	o.tag = tag
	defer o.release()
	o.writeListHead(total)
	empty := true
	for rec := range page(p, all) {
		item, err := e.item(rec)
		if err != nil {
			return o.fail(internal(titleList, err))
		}
		o.writeListItem(empty, item)
		empty = false
		if o.broken {
			return nil
		}
	}
	if err := o.writeListTail(empty, p, p.more(total)); err != nil {
		return o.fail(internal(titleList, err))
	}
	return o.send()
}

// get serves GET of one resource.
func (e endpoint) get(w http.ResponseWriter, r *http.Request) error {
	if err := e.allow(userOf(r), e.d); err != nil {
		return err
	}
	rec, ok := e.store.Snapshot().Get(e.key(r))
	if !ok {
		return notFound(titleGet)
	}
	tag := ""
	if !e.overlays() {
		tag = e.etag(rec.Version)
		if done, err := e.unchanged(w, r, tag, titleGet); done || err != nil {
			return err
		}
	}
	item, err := e.item(rec)
	if err != nil {
		return internal(titleGet, err)
	}
	o := e.newReply(w, r)
	o.tag = tag
	defer o.release()
	o.writeItem(item)
	return o.send()
}

// key is the key that a request's path names.
func (e endpoint) key(r *http.Request) store.Key {
	return store.Key{Type: string(e.d.Name), Mesh: chi.URLParam(r, "mesh"), Name: chi.URLParam(r, "name")}
}

// item renders a record of the endpoint's type, with what the live sessions know on top.
func (e endpoint) item(rec *store.Record) ([]byte, error) {
	live, err := e.overlaid(rec)
	if err != nil {
		return nil, err
	}
	if live != rec {
		return (&renders{}).resource(e.d, live)
	}
	return e.renders.resource(e.d, rec)
}

// overlays reports whether what is answered for this type depends on the live sessions too: no version names it then.
func (e endpoint) overlays() bool { return e.zones != nil && e.d.Name == resource.ZoneInsight }

// overlaid returns rec, or, for the insight of a zone of which the live session knows more, a copy with that.
func (s *Server) overlaid(rec *store.Record) (*store.Record, error) {
	if s.zones == nil || rec == nil || rec.Key.Type != string(resource.ZoneInsight) {
		return rec, nil
	}
	insight, ok := s.zones.Insight(rec.Key.Name)
	if !ok {
		return rec, nil
	}
	spec, err := proto.MarshalOptions{Deterministic: true}.Marshal(insight)
	if err != nil {
		return nil, fmt.Errorf("encode live insight of zone %s: %w", rec.Key.Name, err)
	}
	live := *rec
	live.Spec = spec
	return &live, nil
}
