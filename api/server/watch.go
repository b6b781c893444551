package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"google.golang.org/protobuf/proto"

	"github.com/meridian-mesh/meridian/api/codec"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// A watch is a list that goes on: GET of a list with ?watch=true answers with server-sent events. What is there comes
// first, each resource as an "added", then a "bookmark"; after that what happens, as it is committed. A client that
// applies the events in order has the state of the store at each event that carries an id, which names a revision and
// is where a later watch can go on.
//
// A watcher is one goroutine that owns nothing while it waits: no snapshot, no buffer, no queue. It waits for the bell
// of its types (store.Changed) and then asks the store what happened since the revision it told its client of. So a
// client that does not read delays only itself and finds what it missed merged per resource, and those who watch
// another type sleep on.

const (
	eventStream = "text/event-stream"

	eventAdded    = "added"
	eventModified = "modified"
	eventDeleted  = "deleted"
	eventBookmark = "bookmark"

	headerLastEventID = "Last-Event-ID"

	// watchFlushBytes is how much a watch collects before it writes.
	watchFlushBytes = 64 << 10
)

// event is one server-sent event.
type event struct {
	kind string
	data []byte // one line
}

// feed turns what is stored into the events of one watch. Its methods are called by that watch alone, with snapshots
// that grow.
type feed interface {
	// initial yields what is there at snap.
	initial(snap *store.Snapshot) iter.Seq2[event, error]
	// resume prepares for a client that has the state at revision after, and reports store.ErrCompacted when what
	// happened since cannot be told.
	resume(snap *store.Snapshot, after store.Revision) error
	// since yields what happened after a revision, up to snap. changes are those of the watched types, one type after
	// the other.
	since(snap *store.Snapshot, after store.Revision, changes iter.Seq[store.Change]) iter.Seq2[event, error]
}

// watchable serves a list, or with ?watch=true what happens to it.
func watchable(list, watch handlerFunc, title string) handlerFunc {
	list = producesJSON(list)
	return func(w http.ResponseWriter, r *http.Request) error {
		if r.URL.RawQuery == "" {
			return list(w, r)
		}
		on, err := boolQuery(r.URL.Query(), "watch", title)
		switch {
		case err != nil:
			return err
		case !on:
			return list(w, r)
		case !acceptsJSON(r) && !accepts(r, eventStream):
			return errUnaccepted
		}
		return watch(w, r)
	}
}

// filterOf reads which resources a watch is about.
func filterOf(r *http.Request) filter {
	return filter{mesh: chi.URLParam(r, "mesh"), name: r.URL.Query().Get(nameQuery)}
}

// watch serves a watch of resources.
func (e endpoint) watch(w http.ResponseWriter, r *http.Request) error {
	var f feed = plainFeed{e, filterOf(r)}
	if e.d.Name == resource.ServiceInsight {
		f = &serviceFeed{endpoint: e, only: filterOf(r), known: make(map[string]services)}
	}
	return e.stream(w, r, f, string(e.d.Name))
}

// stream serves a watch of the records of types until the client goes, the server stops, or what comes next cannot be
// told.
func (e endpoint) stream(w http.ResponseWriter, r *http.Request, f feed, types ...string) error {
	if err := e.allow(userOf(r), e.d); err != nil {
		return err
	}
	after, resumed, err := e.lastEventID(r)
	if err != nil {
		return err
	}
	snap := e.store.Snapshot()
	if resumed {
		if after > snap.Revision() { // the event came from another replica, and this one has yet to see what it tells of
			if snap, err = e.store.Latest(r.Context()); err != nil {
				return &problem{
					status: http.StatusServiceUnavailable, Title: titleList, retryAfter: 1, err: err,
					Details: "This instance has not seen yet what the last event tells of, and its store does not answer",
				}
			}
		}
		if _, err := changesOf(snap, after, types); err != nil {
			return gone(err)
		}
		if err := f.resume(snap, after); err != nil {
			return gone(err)
		}
	}
	if e.watches.Add(1) > int64(e.opts.MaxWatches) {
		e.watches.Add(-1)
		return &problem{
			status: http.StatusServiceUnavailable, Title: titleList, retryAfter: 10,
			Details: "Too many lists are being watched", err: fmt.Errorf("the limit is %d", e.opts.MaxWatches),
		}
	}
	defer e.watches.Add(-1)
	e.metrics.inFlight.Dec()
	defer e.metrics.inFlight.Inc()
	e.metrics.watches.Inc()
	defer e.metrics.watches.Dec()

	h := w.Header()
	h.Set("Content-Type", eventStream)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Accel-Buffering", "no") // for proxies that would collect the answer first
	w.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return nil
	}
	o := &eventWriter{s: e.Server, w: w, conn: http.NewResponseController(w)}
	// Neither the request nor the answer has an end that could be late. Where deadlines cannot be set there are none.
	_ = o.conn.SetReadDeadline(time.Time{})
	_ = o.conn.SetWriteDeadline(time.Time{})
	if !resumed {
		err := o.send(f.initial(snap), "")
		o.bookmark(e.eventID(snap.Revision()), snap.Revision())
		if err := errors.Join(err, o.flush()); err != nil {
			return e.ended(r, err)
		}
		after = snap.Revision()
	} else if err := o.flush(); err != nil { // the header, so that the client knows
		return e.ended(r, err)
	}
	return e.ended(r, e.follow(r, o, f, after, types))
}

// follow sends what happens after a revision. It returns nil when the client is gone or the server stops.
func (e endpoint) follow(r *http.Request, o *eventWriter, f feed, after store.Revision, types []string) error {
	timer := time.NewTimer(e.opts.WatchHeartbeat)
	defer timer.Stop()
	idle := false
	for {
		var changed [2]<-chan struct{} // nobody watches more types; nil never rings
		for i, typ := range types {
			changed[i] = e.store.Changed(typ) // before the snapshot: what comes in between rings it
		}
		snap := e.store.Snapshot()
		changes, err := changesOf(snap, after, types)
		if err != nil {
			return fmt.Errorf("client too slow: %w", err)
		}
		if e.d.AdminOnly { // rights may have been withdrawn since the watch began
			if u, err := e.identify(r); err != nil || e.allow(u, e.d) != nil {
				return nil // the next request will be told
			}
		}
		o.sent = 0
		err = o.send(f.since(snap, after, changes), e.eventID(snap.Revision()))
		if idle && o.sent == 0 {
			o.bookmark(e.eventID(snap.Revision()), snap.Revision())
		}
		after = snap.Revision()
		if o.sent > 0 {
			err = errors.Join(err, o.flush())
			timer.Reset(e.opts.WatchHeartbeat)
		}
		if err != nil {
			return err
		}
		idle = false
		if errors.Is(e.store.Err(), store.ErrClosed) {
			return nil
		}
		select {
		case <-changed[0]:
		case <-changed[1]:
		case <-timer.C:
			idle = true
		case <-r.Context().Done():
			return nil
		case <-e.stopping:
			return nil
		}
	}
}

// changesOf yields the changes of each type since a revision.
func changesOf(snap *store.Snapshot, after store.Revision, types []string) (iter.Seq[store.Change], error) {
	all := make([]iter.Seq[store.Change], len(types))
	for i, typ := range types {
		var err error
		if all[i], err = snap.Changes(typ, after); err != nil {
			return nil, err //nolint:wrapcheck // it says all
		}
	}
	return func(yield func(store.Change) bool) {
		for _, changes := range all {
			for c := range changes {
				if !yield(c) {
					return
				}
			}
		}
	}, nil
}

// ended takes the end of a watch whose answer has begun: there is nobody left to tell but the log.
func (e endpoint) ended(r *http.Request, err error) error {
	if err != nil {
		e.log.DebugContext(r.Context(), "watch ended", "type", e.d.Name, "remote", r.RemoteAddr, "err", err)
	}
	return nil
}

// eventID names a revision of this store.
func (s *Server) eventID(rev store.Revision) string {
	return s.store.ID() + "-" + strconv.FormatUint(uint64(rev), 10)
}

// lastEventID reads where a client left off: from the header, which clients set when they reconnect by themselves, else
// from the query, for those that cannot set headers.
func (e endpoint) lastEventID(r *http.Request) (after store.Revision, ok bool, err error) {
	field, id := headerLastEventID, r.Header.Get(headerLastEventID)
	if id == "" {
		field, id = "lastEventId", r.URL.Query().Get("lastEventId")
	}
	if id == "" {
		return 0, false, nil
	}
	i := strings.LastIndexByte(id, '-')
	rev, parseErr := strconv.ParseUint(id[i+1:], 10, 64)
	switch {
	case i < 1 || parseErr != nil:
		return 0, false, invalidQuery(titleList, field, "must be the id of an event of an earlier watch")
	case id[:i] != e.store.ID():
		return 0, false, gone(fmt.Errorf("%w: the id is of another store", store.ErrCompacted))
	}
	return store.Revision(rev), true, nil
}

// gone answers a client that cannot go on from where it left off.
func gone(err error) error {
	if !errors.Is(err, store.ErrCompacted) {
		return internal(titleList, err)
	}
	return &problem{
		status: http.StatusGone, Title: titleList, Details: "Gone", err: err,
		Causes: []cause{{
			headerLastEventID,
			"what happened since this event is no longer known; watch again without an id to start from the present state",
		}},
	}
}

// eventWriter writes server-sent events. The first failure ends it: later calls do nothing.
type eventWriter struct {
	s    *Server
	w    http.ResponseWriter
	conn *http.ResponseController
	buf  *bytes.Buffer // nil while there is nothing to write
	sent int           // events since the caller last set it to 0
	err  error
}

// send writes events; the last of them carries id, unless that is "".
func (o *eventWriter) send(events iter.Seq2[event, error], id string) error {
	var last event
	for ev, err := range events {
		if err != nil {
			return err
		}
		if last.kind != "" {
			o.event(last, "")
		}
		if last = ev; o.err != nil {
			return o.err
		}
	}
	if last.kind != "" {
		o.event(last, id)
	}
	return o.err
}

// bookmark says that the client has everything up to rev.
func (o *eventWriter) bookmark(id string, rev store.Revision) {
	o.event(event{eventBookmark, fmt.Appendf(nil, `{"revision":%d}`, rev)}, id)
}

func (o *eventWriter) event(ev event, id string) {
	if o.buf == nil {
		if buf, ok := o.s.buffers.Get().(*bytes.Buffer); ok {
			o.buf = buf
		} else {
			o.buf = new(bytes.Buffer)
		}
	}
	o.sent++
	o.buf.WriteString("event: ")
	o.buf.WriteString(ev.kind)
	if id != "" {
		o.buf.WriteString("\nid: ")
		o.buf.WriteString(id)
	}
	o.buf.WriteString("\ndata: ")
	o.buf.Write(ev.data)
	o.buf.WriteString("\n\n")
	if o.buf.Len() >= watchFlushBytes {
		o.write()
	}
}

// write hands what was collected to the connection. A client that does not take it in time is given up.
func (o *eventWriter) write() {
	if o.buf == nil {
		return
	}
	if o.err == nil {
		_ = o.conn.SetWriteDeadline(time.Now().Add(o.s.opts.WriteTimeout))
		_, o.err = o.w.Write(o.buf.Bytes())
	}
	o.buf.Reset()
	o.s.buffers.Put(o.buf)
	o.buf = nil
}

// flush brings everything to the client.
func (o *eventWriter) flush() error {
	o.write()
	if o.err == nil {
		_ = o.conn.SetWriteDeadline(time.Now().Add(o.s.opts.WriteTimeout))
		o.err = o.conn.Flush()
		_ = o.conn.SetWriteDeadline(time.Time{}) // on HTTP/2 one that passes would end the stream, idle or not
	}
	return o.err
}

// filter says by its key which resources a watch is about. Neither a mesh nor a name ever changes, so that nothing enters or
// leaves.
type filter struct {
	mesh string // "": all
	name string // a part of it
}

func (f filter) selects(mesh, name string) bool {
	return (f.mesh == "" || mesh == f.mesh) && strings.Contains(name, f.name)
}

// plainFeed is the feed of a type whose records are its resources.
type plainFeed struct {
	endpoint
	only filter
}

func (f plainFeed) initial(snap *store.Snapshot) iter.Seq2[event, error] {
	return func(yield func(event, error) bool) {
		for rec := range named(snap.List(string(f.d.Name), f.only.mesh), f.only.name) {
			line, err := f.renders.line(f.d, rec)
			if !yield(event{eventAdded, line}, err) {
				return
			}
		}
	}
}

func (f plainFeed) resume(*store.Snapshot, store.Revision) error { return nil }

func (f plainFeed) since(_ *store.Snapshot, after store.Revision, changes iter.Seq[store.Change]) iter.Seq2[event, error] {
	return func(yield func(event, error) bool) {
		for c := range changes {
			if !f.only.selects(c.Key.Mesh, c.Key.Name) {
				continue
			}
			var ev event
			var err error
			switch {
			case c.Record == nil:
				ev, err = deletedEvent(c.Key)
			case c.Record.CreateRevision > after:
				ev.kind = eventAdded
				ev.data, err = f.renders.line(f.d, c.Record)
			default:
				ev.kind = eventModified
				ev.data, err = f.renders.line(f.d, c.Record)
			}
			if !yield(ev, err) {
				return
			}
		}
	}
}

func deletedEvent(k store.Key) (event, error) {
	line, err := json.Marshal(resourceKey{k.Type, k.Mesh, k.Name})
	if err != nil {
		return event{}, fmt.Errorf("render the key of %s: %w", k, err)
	}
	return event{eventDeleted, line}, nil
}

// services are the services of one mesh by name.
type services = map[string]*meshv1.ServiceInsight_Service

// serviceFeed is the feed of services. A mesh stores all of its services in one record, so this feed remembers what it
// told of each, and compares: an event for every service each time one of them changes would help nobody. The times in
// a service's meta are the record's, and alone make no event.
type serviceFeed struct {
	endpoint
	only  filter
	known map[string]services // by mesh
}

func (f *serviceFeed) initial(snap *store.Snapshot) iter.Seq2[event, error] {
	return func(yield func(event, error) bool) {
		for rec := range snap.List(string(f.d.Name), f.only.mesh) {
			for ev, err := range f.compare(rec.Key.Mesh, rec) {
				if !yield(ev, err) {
					return
				}
			}
		}
	}
}

// resume takes what is there for what the client has. That is so as long as no record changed since; of one that did,
// the older content is not known.
func (f *serviceFeed) resume(snap *store.Snapshot, after store.Revision) error {
	changes, err := snap.Changes(string(f.d.Name), after)
	if err != nil {
		return fmt.Errorf("resume a watch of services: %w", err)
	}
	for c := range changes {
		if f.only.selects(c.Key.Mesh, f.only.name) {
			return fmt.Errorf("%w: services of mesh %s changed since", store.ErrCompacted, c.Key.Mesh)
		}
	}
	for rec := range snap.List(string(f.d.Name), f.only.mesh) {
		if f.known[rec.Key.Mesh], err = f.servicesOf(rec); err != nil {
			return err
		}
	}
	return nil
}

func (f *serviceFeed) since(_ *store.Snapshot, _ store.Revision, changes iter.Seq[store.Change]) iter.Seq2[event, error] {
	return func(yield func(event, error) bool) {
		for c := range changes {
			if !f.only.selects(c.Key.Mesh, f.only.name) || c.Key != allServices(c.Key.Mesh) {
				continue
			}
			for ev, err := range f.compare(c.Key.Mesh, c.Record) {
				if !yield(ev, err) {
					return
				}
			}
		}
	}
}

// compare yields what differs between what is known of a mesh and rec, nil for nothing, by name; rec is what is known
// from then on.
func (f *serviceFeed) compare(mesh string, rec *store.Record) iter.Seq2[event, error] {
	return func(yield func(event, error) bool) {
		var now services
		if rec != nil {
			var err error
			if now, err = f.servicesOf(rec); err != nil {
				yield(event{}, err)
				return
			}
		}
		was := f.known[mesh]
		f.known[mesh] = now
		if now == nil {
			delete(f.known, mesh)
		}
		names := slices.Collect(maps.Keys(now))
		for name := range was {
			if _, stays := now[name]; !stays {
				names = append(names, name)
			}
		}
		slices.Sort(names)
		for _, name := range names {
			if !f.only.selects(mesh, name) {
				continue
			}
			ev, err := f.difference(rec, store.Key{Type: string(f.d.Name), Mesh: mesh, Name: name}, was[name], now[name])
			if (ev.kind != "" || err != nil) && !yield(ev, err) {
				return
			}
		}
	}
}

// difference is the event that leads from was to now, of which one may be nil; none when they are the same.
func (f *serviceFeed) difference(rec *store.Record, key store.Key, was, now *meshv1.ServiceInsight_Service) (event, error) {
	switch {
	case now == nil:
		return deletedEvent(key)
	case was != nil && proto.Equal(was, now):
		return event{}, nil
	}
	ev := event{kind: eventAdded}
	if was != nil {
		ev.kind = eventModified
	}
	item, err := f.renders.item(renderKey{main: rec, form: formServiceLine, part: key.Name}, func() ([]byte, error) {
		return oneLine(codec.Item(service{rec, key.Name, now}.encode()))
	})
	ev.data = item
	return ev, err
}

// overviewFeed is the feed of overviews: an event for each resource that changed or whose insight did. An insight
// without its resource is no overview.
//
// The queries tag and gateway look into a dataplane, so that with them an overview enters and leaves as its dataplane
// changes, and what the client was shown has to be known. A client that resumes was shown those that have not changed
// since and are selected. Of those that have, nobody knows: they are told as if they had been shown, added when they
// are selected and deleted when not, which leads to the right state from either.
type overviewFeed struct {
	overview
	only       filter
	dataplanes dataplaneFilter
	shown      map[store.Key]bool // by key of the main record; false: perhaps. Unused without queries for dataplanes
}

func (f *overviewFeed) initial(snap *store.Snapshot) iter.Seq2[event, error] {
	return func(yield func(event, error) bool) {
		for main := range named(snap.List(string(f.main.Name), f.only.mesh), f.only.name) {
			selected, err := f.dataplanes.selects(f.main, main)
			if err != nil {
				yield(event{}, err)
				return
			}
			if !selected {
				continue
			}
			f.show(main.Key, true)
			if !yield(f.event(snap, eventAdded, main)) {
				return
			}
		}
	}
}

func (f *overviewFeed) resume(snap *store.Snapshot, after store.Revision) error {
	if f.dataplanes.all() {
		return nil
	}
	for main := range named(snap.List(string(f.main.Name), f.only.mesh), f.only.name) {
		selected, err := f.dataplanes.selects(f.main, main)
		if err != nil {
			return err
		}
		if selected {
			f.show(main.Key, true)
		}
	}
	changes, err := snap.Changes(string(f.main.Name), after)
	if err != nil {
		return fmt.Errorf("resume a watch of overviews: %w", err)
	}
	for c := range changes {
		if f.only.selects(c.Key.Mesh, c.Key.Name) {
			f.show(c.Key, false)
		}
	}
	return nil
}

func (f *overviewFeed) since(snap *store.Snapshot, after store.Revision, changes iter.Seq[store.Change]) iter.Seq2[event, error] {
	return func(yield func(event, error) bool) {
		for c := range changes {
			if !f.only.selects(c.Key.Mesh, c.Key.Name) {
				continue
			}
			ev, err := f.change(snap, after, c)
			if (ev.kind != "" || err != nil) && !yield(ev, err) {
				return
			}
		}
	}
}

// change is the event of a change; none when it leaves the overviews as they are, or is told with another change.
func (f *overviewFeed) change(snap *store.Snapshot, after store.Revision, c store.Change) (event, error) {
	main := c.Record
	if c.Key.Type != string(f.main.Name) { // the insight's
		c.Key.Type = string(f.main.Name)
		var ok bool
		if main, ok = snap.Get(c.Key); !ok || main.Version > after || !f.dataplanes.all() && !f.shown[c.Key] {
			return event{}, nil
		}
		return f.event(snap, eventModified, main)
	}
	had, known := f.shown[c.Key]
	if f.dataplanes.all() {
		had, known = true, true
	}
	selected := false
	if main != nil {
		var err error
		if selected, err = f.dataplanes.selects(f.main, main); err != nil {
			return event{}, err
		}
	}
	switch {
	case !selected && known:
		delete(f.shown, c.Key)
		c.Key.Type += "Overview" // as the item says
		return deletedEvent(c.Key)
	case !selected:
		return event{}, nil
	}
	f.show(c.Key, true)
	if !had || main.CreateRevision > after {
		return f.event(snap, eventAdded, main)
	}
	return f.event(snap, eventModified, main)
}

// show keeps what the client was shown, where that matters.
func (f *overviewFeed) show(k store.Key, surely bool) {
	if !f.dataplanes.all() {
		f.shown[k] = surely
	}
}

// event is the event of an overview that is there.
func (f *overviewFeed) event(snap *store.Snapshot, kind string, main *store.Record) (event, error) {
	j, err := f.join(snap, main)
	if err != nil {
		return event{}, err
	}
	line, err := f.line(j)
	return event{kind, line}, err
}
