package xds

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

// complete says whether a response must hold every resource subscribed to, so that what is missing in it is gone: so the
// protocol has it for clusters and listeners, and Envoy and grpc-go read those and no others that way. Of the other kinds a
// response may hold any part, and we send what changed.
func (k Kind) complete() bool { return k == Cluster || k == Listener }

// keeps says whether what is gone stays with a stream as long as it asks for it by name. Envoy asks for all clusters. gRPC
// programs name those that their routes lead to, and no longer do so once they have other routes and the last call on the old
// ones is over: to take a cluster away before that would fail calls.
func (k Kind) keeps(sub *subscription) bool { return k == Cluster && !sub.all }

// subscription is what a stream asks for of one kind. It never changes.
type subscription struct {
	all   bool // whatever there is, and names say nothing
	names map[string]struct{}
}

func (s *subscription) has(name string) bool {
	_, named := s.names[name]
	return named || s.all
}

func (s *subscription) equal(o *subscription) bool {
	return s == o || s.all == o.all && maps.Equal(s.names, o.names)
}

// and returns what both ask for, as far as s or o says so by names.
func (s *subscription) and(o *subscription) *subscription {
	switch {
	case s == o, o.all:
		return s
	case s.all:
		return o
	}
	names := make(map[string]struct{}, len(o.names))
	for name := range o.names {
		if s.has(name) {
			names[name] = struct{}{}
		}
	}
	return &subscription{names: names}
}

// contents is the resources of one kind in a Config that a subscription asks for. Without a Config it is empty.
type contents struct {
	config *Config
	kind   Kind
	sub    *subscription
}

// get returns a resource, nil when it is not among the contents.
func (c contents) get(name string) *Resource {
	if c.config == nil || !c.sub.has(name) {
		return nil
	}
	return c.config.Get(c.kind, name)
}

// differ calls f with each resource that differs between c and next, as it is in both (nil: not), until f returns false. With
// one subscription for both it walks two sorted lists, and looks up only the names of what differs.
func (c contents) differ(next contents, f func(old, now *Resource) bool) {
	if c.sub != next.sub {
		for _, old := range c.config.sorted(c.kind) {
			if c.sub.has(old.Name) {
				if now := next.get(old.Name); !same(old, now) && !f(old, now) {
					return
				}
			}
		}
		for _, now := range next.config.sorted(c.kind) {
			if next.sub.has(now.Name) && c.get(now.Name) == nil && !f(nil, now) {
				return
			}
		}
		return
	}
	olds, news := c.config.sorted(c.kind), next.config.sorted(c.kind)
	for len(olds) > 0 || len(news) > 0 {
		var old, now *Resource
		switch {
		case len(news) == 0 || len(olds) > 0 && olds[0].Name < news[0].Name:
			old, olds = olds[0], olds[1:]
		case len(olds) == 0 || olds[0].Name > news[0].Name:
			now, news = news[0], news[1:]
		default:
			old, olds, now, news = olds[0], olds[1:], news[0], news[1:]
		}
		if !same(old, now) && c.sub.has(cmp.Or(old, now).Name) && !f(old, now) {
			return
		}
	}
}

func same(a, b *Resource) bool { return a == b || a != nil && b != nil && a.Version == b.Version }

// watch is what one stream knows about one kind. A response goes through three steps: it becomes due, it is queued (when a
// request waits for it, that is, the watch is open), and it is sent.
//
// All is guarded by the node's lock. The stream's loop alone writes the fields of the first group, and may read them without.
type watch struct {
	subscribed bool          // there was a request
	want       *subscription // of the latest request
	held       contents      // of the latest response that was sent, less what is no longer wanted; without a Config: none was
	rejected   bool          // the proxy rejected that response
	nonce      string        // of the latest response
	answered   string        // nonce that the latest request carried
	stale      bool          // a request was passed over because it carried the nonce of an older response
	whole      bool          // the next response must hold everything subscribed to
	// kept are resources that were sent, are asked for by name and are gone; see Kind.keeps.
	kept map[string]*Resource
	// leaving are clusters that were sent to a stream that asks for all, are gone, and were in the latest response nevertheless:
	// listeners and routes that the proxy had by then may send to them.
	leaving map[string]*Resource
	// unanswered: the latest response was made, and the proxy has yet to answer it.
	unanswered bool
	// again: the next response is due although nothing changed, and must hold everything subscribed to.
	again bool

	open    *discoveryv3.DiscoveryRequest // the request that waits for something new; nil: none
	out     chan<- cache.Response         // where its answer goes
	queued  *Config                       // what the response in out is made of; nil: there is none
	since   time.Time                     // when the oldest published change was that is due and not queued; zero: none is
	sending time.Time                     // the same of what is queued, until it is sent
}

// latest returns what the stream will hold once what is queued is sent.
func (w *watch) latest(k Kind) (held contents, rejected, again bool) {
	if w.queued != nil {
		return contents{w.queued, k, w.want}, false, false
	}
	return w.held, w.rejected, w.again
}

// due says whether c has something to say to the stream about a kind.
func (w *watch) due(k Kind, c *Config) bool {
	held, rejected, again := w.latest(k)
	switch {
	case c == nil || !w.subscribed:
		return false // the first response waits for the first Publish
	case held.config == nil || again:
		return true
	case c.Version(k) == held.config.Version(k) && w.want.equal(held.sub):
		return false
	case w.want.all:
		return !held.sub.all || c.Version(k) != held.config.Version(k)
	}
	due := false
	held.differ(contents{c, k, w.want}, func(_, now *Resource) bool {
		// What is gone is told of the complete kinds. And anything that differs from what was rejected may be good, also less.
		due = now != nil || k.complete() && !k.keeps(w.want) || rejected
		return !due
	})
	return due
}

// behind says whether the proxy may still use listeners or routes older than those of c: it has yet to be sent these, or to answer.
// An answer that rejects is one too. What then stays in use may lack a cluster, but waiting on would let clusters pile up for as long
// as the proxy rejects.
func (st *stream) behind(c *Config) bool {
	for _, k := range []Kind{Listener, Route} {
		if w := &st.watches[k]; w.unanswered || w.queued != nil || w.held.config != nil && w.due(k, c) {
			return true
		}
	}
	return false
}

// warming says whether a listener or route of c would overtake the clusters that it may send to. Those are due and not queued only
// while the proxy has yet to answer the ones before; when it has, pump runs again.
//
// A proxy that asks for all clusters, as Envoy does, takes a new one into use when it has its endpoints. It asks for these before it
// answers the clusters: so its listeners and routes wait for that answer, and then follow the endpoints, which need no answer.
func (st *stream) warming(c *Config) bool {
	clusters, endpoints := &st.watches[Cluster], &st.watches[Endpoint]
	switch {
	case clusters.due(Cluster, c):
		return true
	case !clusters.subscribed || !clusters.want.all:
		return false
	}
	return clusters.queued != nil || clusters.unanswered || endpoints.whole && endpoints.due(Endpoint, c)
}

// pump queues an answer to each open watch for which one is due. The caller holds the node's lock.
//
// It never blocks. go-control-plane makes one channel for a stream, with room for types.UnknownType (10) responses. A kind has
// at most one in it: queueing closes the watch, and go-control-plane opens it again only after it has taken every response of
// the kind, and whatever else it finds, out of the channel. There are six kinds, and no other type is answered.
//
// published is when something was published, zero when pump is called for another reason.
func (st *stream) pump(published time.Time) {
	c := st.node.config
	for k := range kinds {
		w := &st.watches[k]
		if w.open == nil && published.IsZero() {
			continue
		}
		over := len(w.leaving) > 0 && c != nil && !st.behind(c)
		if !w.due(k, c) && !over {
			w.since = time.Time{}
			continue
		}
		if w.since.IsZero() {
			w.since = published
		}
		if w.open == nil {
			continue
		}
		if (k == Listener || k == Route) && st.warming(c) {
			continue
		}
		select {
		case w.out <- &response{stream: st, kind: k, config: c, request: w.open}:
			w.queued, w.open = c, nil
			w.sending, w.since = w.since, time.Time{}
		default:
			st.cancel(status.Error(codes.Internal, "more responses than kinds"))
			return
		}
	}
}

// CreateWatch is called with each request that is not stale. An earlier watch of the same type is cancelled by then.
func (st *stream) CreateWatch(req *cache.Request, s cache.Subscription, out chan cache.Response) (func(), error) {
	k, ok := KindOf(req.GetTypeUrl())
	if !ok {
		return nil, nil //nolint:nilnil // a watch that never fires needs no cancelling
	}
	// The map is made anew for each request.
	want := &subscription{names: s.SubscribedResources()}
	if s.IsWildcard() {
		want = &subscription{all: true}
	}

	st.node.mu.Lock()
	defer st.node.mu.Unlock()
	w := &st.watches[k]
	unchanged := w.subscribed && w.want.equal(want)
	if unchanged {
		want = w.want
	}
	repeated := unchanged && w.answered != "" && w.answered == req.GetResponseNonce()
	raced := w.stale
	w.subscribed, w.want, w.answered, w.stale, w.unanswered = true, want, req.GetResponseNonce(), false, false
	if req.GetErrorDetail() != nil {
		w.rejected = true
	}
	maps.DeleteFunc(w.kept, func(name string, _ *Resource) bool { return !want.has(name) || want.all })
	if w.held.config != nil && !w.rejected { // what was rejected is compared as a whole, and not sent again
		// A proxy forgets what it no longer subscribes to, and wants it again when it subscribes once more.
		w.held.sub = w.held.sub.and(want)
		// It may do both between two requests. Envoy does with the endpoints of a cluster that a response has replaced, and
		// keeps the new cluster warming until it gets them. What tells of it is a request that repeats the one before; a request
		// that was passed over, as it met a response on the way; and, when Envoy joins it to an acknowledgement, nothing but
		// that clusters were sent before.
		if !want.all && len(want.names) > 0 && (repeated || raced || k == Endpoint && w.whole) {
			w.again = true
		}
	}
	w.open, w.out = req, out
	st.pump(time.Time{})
	return func() { // what is queued is then dropped
		st.node.mu.Lock()
		defer st.node.mu.Unlock()
		if w.open = nil; w.queued != nil {
			w.queued, w.since = nil, w.sending
		}
	}, nil
}

// response is an answer to a request. It is encoded when it is sent, by the goroutine of its stream.
type response struct {
	stream  *stream
	kind    Kind
	config  *Config
	request *discoveryv3.DiscoveryRequest
}

// GetDiscoveryResponse is called once, right before sending.
func (r *response) GetDiscoveryResponse() (*discoveryv3.DiscoveryResponse, error) {
	st, w := r.stream, &r.stream.watches[r.kind]
	next := contents{r.config, r.kind, w.want}
	st.node.mu.Lock()
	w.leave(next, st.behind(r.config))
	st.node.mu.Unlock()
	out := &discoveryv3.DiscoveryResponse{VersionInfo: r.config.Version(r.kind), TypeUrl: r.kind.TypeURL()}
	if len(w.leaving) == 0 {
		out.Resources = next.encoded(w)
	} else {
		all := maps.Clone(w.leaving)
		maps.Copy(all, r.config.sets[r.kind].byName)
		s := newSet(all)
		out.VersionInfo, out.Resources = s.version, s.encoded
	}

	st.node.mu.Lock()
	defer st.node.mu.Unlock()
	w.keep(next)
	if r.kind == Cluster {
		st.watches[Endpoint].whole = true
		if w.held.config != nil && w.held.config.Version(Cluster) != r.config.Version(Cluster) {
			// What was rejected for want of a cluster may be good now.
			for _, k := range []Kind{Listener, Route} {
				if later := &st.watches[k]; later.rejected {
					later.rejected, later.again = false, true
				}
			}
		}
	}
	w.held, w.rejected, w.again, w.whole, w.queued, w.unanswered = next, false, false, false, nil, true
	st.pump(time.Time{})
	return out, nil
}

// maxLeaving bounds what a stream is given of clusters that have long gone: they would pile up with a proxy that answers for clusters
// and never for listeners and routes. With so many, only those that have just gone stay.
const maxLeaving = 1000

// leave notes which clusters the stream is to hold for a while beyond next. The caller holds the node's lock.
func (w *watch) leave(next contents, behind bool) {
	before := w.leaving
	w.leaving = nil
	if next.kind != Cluster || !next.sub.all || !behind {
		return
	}
	leaving := make(map[string]*Resource)
	if w.held.config != nil {
		w.held.differ(next, func(old, now *Resource) bool {
			if now == nil {
				leaving[old.Name] = old
			}
			return true
		})
	}
	if len(before) < maxLeaving {
		for name, r := range before {
			if next.get(name) == nil {
				leaving[name] = cmp.Or(leaving[name], r)
			}
		}
	}
	w.leaving = leaving
}

// gone returns a resource that is kept for the stream, or will be.
func (w *watch) gone(k Kind, name string) *Resource {
	if !k.keeps(w.want) {
		return nil
	}
	return cmp.Or(w.held.get(name), w.kept[name])
}

// keep notes what the stream keeps when it holds next.
func (w *watch) keep(next contents) {
	if !next.kind.keeps(next.sub) {
		w.kept = nil
		return
	}
	kept := make(map[string]*Resource)
	for name := range next.sub.names {
		if next.get(name) == nil {
			if r := w.gone(next.kind, name); r != nil {
				kept[name] = r
			}
		}
	}
	w.kept = kept
}

// encoded returns the resources to send to a stream that holds what w says. The messages are shared, and only read.
func (c contents) encoded(w *watch) []*anypb.Any {
	everything := c.kind.complete() || w.held.config == nil || w.rejected || w.again || w.whole
	if everything && c.sub.all {
		return c.config.sets[c.kind].encoded
	}
	var resources []*Resource
	if everything {
		for name := range c.sub.names {
			if r := cmp.Or(c.config.Get(c.kind, name), w.gone(c.kind, name)); r != nil {
				resources = append(resources, r)
			}
		}
	} else {
		w.held.differ(c, func(_, now *Resource) bool {
			if now != nil {
				resources = append(resources, now)
			}
			return true
		})
	}
	slices.SortFunc(resources, func(a, b *Resource) int { return strings.Compare(a.Name, b.Name) })
	return encoded(resources)
}

func (r *response) GetRequest() *discoveryv3.DiscoveryRequest { return r.request }
func (r *response) GetVersion() (string, error)               { return r.GetResponseVersion(), nil }
func (r *response) GetResponseVersion() string                { return r.config.Version(r.kind) }
func (r *response) GetContext() context.Context               { return r.stream.ctx }

// GetReturnedResources returns nothing: the watch knows what was sent.
func (*response) GetReturnedResources() map[string]string { return nil }
