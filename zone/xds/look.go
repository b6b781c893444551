package xds

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// maxParted is how many nodes without a stream are remembered: the latest ones.
const maxParted = 256

// Look is what a node was sent, and said of it, on its latest stream.
type Look struct {
	// Ended is when its last stream ended; zero: it has one.
	Ended time.Time
	Kinds []KindLook // in the order of the kinds; those that the node never asked for are left out
}

// KindLook is a part of a Look. Times are zero, and versions empty, of what has not happened.
type KindLook struct {
	Kind Kind
	// Published is the version of what was published last, in which the node may not ask for all. It is not sent while it differs
	// from what was sent in nothing that the node asks for.
	Published string
	// Pending: it is yet to be sent.
	Pending bool

	Sent         string // version of the latest response
	SentAt       time.Time
	Acknowledged string // latest version that the node took
	Rejected     string // version that it rejected after that
	RejectedAt   time.Time
	Reason       string // of the rejection

	held    contents
	leaving map[string]*Resource
}

// Resources returns what the latest response, and those before it, made the node hold, in the order of their names.
func (l KindLook) Resources() []*Resource {
	if l.held.config == nil {
		return nil
	}
	all := slices.Collect(maps.Values(l.leaving))
	for _, r := range l.held.config.sorted(l.Kind) {
		if l.held.sub.has(r.Name) {
			all = append(all, r)
		}
	}
	slices.SortFunc(all, func(a, b *Resource) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// Look returns what is known of a node, false when nothing is. It costs about as much as a request of the node. Of nodes that have no
// stream any more the latest few hundred are known.
func (s *Server) Look(nodeID string) (Look, bool) {
	s.mu.Lock()
	n := s.nodes[nodeID]
	if n == nil {
		s.mu.Unlock()
		return s.parted.get(nodeID)
	}
	n.mu.Lock()
	s.mu.Unlock()
	defer n.mu.Unlock()
	if st := n.latest(); st != nil {
		return Look{Kinds: st.look()}, true
	}
	return s.parted.get(nodeID)
}

// latest returns the newest of the streams that asked for something, else any; nil when there is none. The caller holds the lock.
func (n *node) latest() *stream {
	var found *stream
	for st := range n.streams {
		if found == nil || st.asked() && (!found.asked() || st.since.After(found.since)) {
			found = st
		}
	}
	return found
}

func (st *stream) asked() bool {
	return slices.ContainsFunc(st.watches[:], func(w watch) bool { return w.subscribed })
}

// look describes the stream. The caller holds the node's lock.
func (st *stream) look() []KindLook {
	var all []KindLook
	for k := range kinds {
		w, e := &st.watches[k], &st.exchanges[k]
		if !w.subscribed {
			continue
		}
		l := KindLook{
			Kind: k, Pending: w.due(k, st.node.config), Sent: e.version, SentAt: e.at, Acknowledged: e.acknowledged,
			Rejected: e.rejected, RejectedAt: e.rejectedAt, Reason: e.reason, held: w.held, leaving: w.leaving,
		}
		if st.node.config != nil {
			l.Published = st.node.config.Version(k)
		}
		all = append(all, l)
	}
	return all
}

// exchange is what was said of one kind on a stream. Guarded by the node's lock.
type exchange struct {
	version, nonce   string // of the latest response
	at               time.Time
	acknowledged     string
	rejected, reason string
	rejectedAt       time.Time
}

// sent notes a response.
func (e *exchange) sent(r *discoveryv3.DiscoveryResponse) {
	e.version, e.nonce, e.at = r.GetVersionInfo(), r.GetNonce(), time.Now()
}

// answered notes a request with the nonce of a response; nack is why it rejects that, "" when it does not.
//
// After a rejection, requests that change a subscription carry the nonce of what was rejected too. Their version is the one that is kept.
func (e *exchange) answered(req *discoveryv3.DiscoveryRequest, nack string) {
	switch {
	case req.GetResponseNonce() != e.nonce:
	case nack != "":
		e.rejected, e.reason, e.rejectedAt = e.version, truncate(nack, maxNACKLook), time.Now()
	case req.GetVersionInfo() == e.version:
		e.acknowledged = e.version
		e.rejected, e.reason, e.rejectedAt = "", "", time.Time{}
	}
}

// maxNACKLook is how much of the reason for a rejection is kept, in bytes.
const maxNACKLook = 4 << 10

// noteAnswer notes what a request says of a response.
func (st *stream) noteAnswer(k Kind, req *discoveryv3.DiscoveryRequest, nack string) {
	st.node.mu.Lock()
	defer st.node.mu.Unlock()
	st.exchanges[k].answered(req, nack)
}

// parted are the nodes whose last stream has ended, oldest first. The zero value has none.
type parted struct {
	mu    sync.Mutex // guards what follows
	order []string
	nodes map[string]Look
}

// add remembers a node in place of the oldest one.
func (p *parted) add(nodeID string, l Look) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dropLocked(nodeID)
	if len(p.order) == maxParted {
		p.dropLocked(p.order[0])
	}
	if p.nodes == nil {
		p.nodes = make(map[string]Look)
	}
	p.nodes[nodeID] = l
	p.order = append(p.order, nodeID)
}

// drop forgets a node, which has a stream again.
func (p *parted) drop(nodeID string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dropLocked(nodeID)
}

func (p *parted) dropLocked(nodeID string) {
	if _, ok := p.nodes[nodeID]; ok {
		delete(p.nodes, nodeID)
		p.order = slices.DeleteFunc(p.order, func(id string) bool { return id == nodeID })
	}
}

func (p *parted) get(nodeID string) (Look, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	l, ok := p.nodes[nodeID]
	return l, ok
}
