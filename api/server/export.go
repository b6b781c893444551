package server

import (
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/meridian-mesh/meridian/api/codec"
	"github.com/meridian-mesh/meridian/api/openapi"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

const (
	titleExport = "Could not export resources"
	titleImport = "Could not import resources"
)

// revisionHeader says which state an export shows.
const revisionHeader = "Meridian-Revision"

// mediaYAML is what an export is; import takes it, and what else a PUT takes.
const mediaYAML = "application/yaml"

var errUnacceptedYAML = &textError{
	status: http.StatusNotAcceptable, text: "406: Not Acceptable\n\nAvailable representations: " + mediaYAML + "\n",
}

// transferRoutes adds what moves everything at once.
func (s *Server) transferRoutes(t table) {
	t.read("/export", s.export, openapi.Export())
	t.handle(http.MethodPost, "/import", s.importResources, openapi.Import(t.doc.Of(importAnswer{})))
}

// transferable reports whether resources of a type are exported and imported: those that clients write on this plane.
// The rest is made by the planes themselves, is derived from what is exported, or is a copy of what another plane owns.
func (s *Server) transferable(d *resource.Descriptor) bool {
	return d.Path != "" && d.WritableOn(s.plane, "")
}

// export serves GET /export: everything that this plane owns, secrets included, as a YAML stream that POST /import
// takes. It shows one snapshot, which its first line and a header name, in the order of the registry, so that a mesh
// comes before what is in it. A resource is encoded when it is sent: memory does not grow with the number of resources.
func (s *Server) export(w http.ResponseWriter, r *http.Request) error {
	if err := s.allowAdmin(userOf(r), "export resources"); err != nil {
		return err
	}
	if !accepts(r, mediaYAML) && !accepts(r, "text/yaml") {
		return errUnacceptedYAML
	}
	query, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return invalidQuery(titleExport, "", "the query cannot be read: "+err.Error())
	}
	snap := s.store.Snapshot()
	records, err := s.exported(snap, query)
	if err != nil {
		return err
	}
	id, err := s.clusterID()
	if err != nil {
		return internal(titleExport, err)
	}
	w.Header().Set(revisionHeader, strconv.FormatUint(uint64(snap.Revision()), 10))
	o := s.newReply(w, r)
	o.contentType = mediaYAML
	defer o.release()
	o.writeString(fmt.Sprintf("# Resources of a Meridian %s control plane, cluster %q, at revision %d.\n", s.plane, id, snap.Revision()))
	conn := http.NewResponseController(w)
	for d, rec := range records {
		document, err := codec.EncodeYAML(d, rec)
		if err != nil {
			return o.fail(internal(titleExport, fmt.Errorf("render %s: %w", rec.Key, err)))
		}
		o.writeString("---\n")
		o.write(document)
		if o.broken {
			return nil
		}
		if o.buf.Len() == 0 { // a piece is out: the next one has as long
			_ = conn.SetWriteDeadline(time.Now().Add(s.opts.WriteTimeout)) // where it cannot be set, there is none
		}
	}
	return o.send()
}

// exported yields the resources that an export's query asks for.
func (s *Server) exported(snap *store.Snapshot, query url.Values) (iter.Seq2[*resource.Descriptor, *store.Record], error) {
	for _, name := range [...]string{"mesh", "type"} {
		if len(query[name]) > 1 { // a backup must not hold less than was asked for
			return nil, invalidQuery(titleExport, name, "is given more than once")
		}
	}
	only, mesh := resource.Type(query.Get("type")), query.Get("mesh")
	if only != "" {
		if d, ok := resource.Lookup(only); !ok || !s.transferable(d) {
			return nil, invalidQuery(titleExport, "type", fmt.Sprintf("%q is no type of resources that this control plane exports", only))
		}
	}
	if mesh != "" && !hasMesh(snap, mesh) {
		return nil, invalidQuery(titleExport, "mesh", fmt.Sprintf("mesh of name %s is not found", mesh))
	}
	return func(yield func(*resource.Descriptor, *store.Record) bool) {
		all := resource.All()
		for i := range all {
			d := &all[i]
			if !s.transferable(d) || only != "" && d.Name != only {
				continue
			}
			if mesh != "" && d.Scope == resource.ScopeGlobal && d.Name != resource.Mesh {
				continue
			}
			in := mesh
			if d.Scope == resource.ScopeGlobal {
				in = ""
			}
			for rec := range snap.List(string(d.Name), in) {
				if rec.Origin != "" || mesh != "" && d.Name == resource.Mesh && rec.Key.Name != mesh {
					continue
				}
				if !yield(d, rec) {
					return
				}
			}
		}
	}, nil
}
