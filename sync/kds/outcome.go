package kds

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// Outcome is what became of a batch at the peer of a publisher.
type Outcome uint8

// The outcomes.
const (
	// NotApplicable: nothing of the batch is for this peer, or it does not ask for such types.
	NotApplicable Outcome = iota
	// Pending: the peer has not answered for all of it yet.
	Pending
	// Acknowledged: the peer has committed all of it that is for it, in this revision or later ones.
	Acknowledged
	// Rejected: the peer has answered, and left out some of it.
	Rejected
)

// refusal is why the peer does not have what this side has under a key.
type refusal struct {
	reason string
	upTo   store.Revision // newest version of the record it is about; everything when the peer said so itself
	at     time.Time
}

// refuse notes that the peer did not take what a response held for a key, a record or its removal.
func (s *subscription) refuse(k store.Key, reason string) {
	s.noteRefusal(k, refusal{reason, math.MaxUint64, time.Now()})
}

// withhold notes that a version of a record cannot be said to this peer.
func (s *subscription) withhold(rec *store.Record, err error) {
	s.noteRefusal(rec.Key, refusal{err.Error(), rec.Version, time.Now()})
}

func (s *subscription) noteRefusal(k store.Key, r refusal) {
	if k == (store.Key{}) {
		return // a removal of something that is not of this side's making
	}
	if s.refused == nil {
		s.refused = make(map[store.Key]refusal)
	}
	s.refused[k] = r
}

const (
	// refusalMemory is how long a refusal is remembered after its record is gone: longer than anybody waits to hear
	// what became of a deletion.
	refusalMemory = 5 * time.Minute
	// maxRefusals is how many there may be before those are looked for.
	maxRefusals = 1024
)

// pruneRefusals forgets the refusals of what is long gone.
func (s *subscription) pruneRefusals(snap *store.Snapshot) {
	if len(s.refused) <= maxRefusals {
		return
	}
	for k, r := range s.refused {
		if _, exists := snap.Get(k); !exists && time.Since(r.at) > refusalMemory {
			delete(s.refused, k)
		}
	}
}

// Outcome says what became of the batch at revision rev, of which deltas are all or some. An answer to a later state
// counts: it is one to whatever the keys had become by then. reason is set with [Rejected].
func (p *Publisher) Outcome(rev store.Revision, deltas []store.Delta) (outcome Outcome, reason string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.peer == nil {
		return Pending, "" // it is about to say what it wants
	}
	snap := p.cfg.Store.Snapshot()
	offer := p.offerTo(*p.peer)
	for _, d := range deltas {
		desc := p.types[resource.Type(d.Key.Type)]
		if desc == nil {
			continue
		}
		sub := p.byTyp[desc.Name]
		switch {
		case !offer.concerns(snap, desc, sub, d):
		case sub == nil && p.answered:
			// A peer asks for all it wants before it answers anything, so this it does not want.
		case sub == nil || sub.acked < rev:
			return Pending, ""
		default:
			if why, refused := offer.refused(snap, desc, sub, rev, d); refused {
				outcome, reason = Rejected, why
			} else if outcome == NotApplicable {
				outcome = Acknowledged
			}
		}
	}
	return outcome, reason
}

// Outline is rec without what takes space and does not decide whether and under which name it travels: [Publisher.Outcome]
// says the same of a delta and of its outline. It is what replicas tell each other of a record that may be gone.
func Outline(rec *store.Record) *store.Record {
	if rec == nil {
		return nil
	}
	o := &store.Record{Key: rec.Key, Labels: rec.Labels, Origin: rec.Origin}
	if d, ok := resource.Lookup(resource.Type(rec.Key.Type)); ok && d.Flow == resource.FlowBoth && rec.Origin == "" {
		o.Spec = rec.Spec // says whose it is; see offer.selects
	}
	return o
}

// concerns reports whether the peer gets something of d: the new record, or the removal of the old one.
func (o *offer) concerns(snap *store.Snapshot, desc *resource.Descriptor, sub *subscription, d store.Delta) bool {
	for _, rec := range [...]*store.Record{d.New, d.Old} {
		if rec == nil || !o.selects(snap, desc, rec) {
			continue
		}
		if sub == nil || sub.names == nil {
			return true
		}
		if w := o.encode(desc, rec); w.err != nil || sub.names[w.res.GetName()] {
			return true
		}
	}
	return false
}

// refused reports why the peer, which has answered for rev, does not have d.
func (o *offer) refused(snap *store.Snapshot, desc *resource.Descriptor, sub *subscription, rev store.Revision, d store.Delta) (string, bool) {
	if r, ok := sub.refused[d.Key]; ok && rev <= r.upTo {
		return r.reason, true
	}
	// A record that the peer is believed to have had before this stream began was not encoded for it.
	if now, ok := snap.Get(d.Key); d.New != nil && ok && now.Version == rev && o.selects(snap, desc, now) {
		if w := o.encode(desc, now); w.err != nil {
			return fmt.Sprintf("it cannot be sent to this zone: %v", w.err), true
		}
	}
	return "", false
}

// awaiting is somebody who waits for the peer's answer to a state of a type.
type awaiting struct {
	rev    store.Revision
	notify func()
}

// Await calls notify once, soon after the peer has answered for the state of a type at rev, whatever the answer; not
// at all if it has answered already, or never does. notify must not block. The order that loses nothing is Await, then
// Outcome. cancel releases what notify holds.
func (p *Publisher) Await(typ string, rev store.Revision, notify func()) (cancel func()) {
	t := resource.Type(typ)
	p.mu.Lock()
	defer p.mu.Unlock()
	if sub := p.byTyp[t]; sub != nil && sub.acked >= rev {
		return func() {}
	}
	if p.waiting == nil {
		p.waiting = make(map[resource.Type][]*awaiting)
	}
	a := &awaiting{rev, notify}
	i, _ := slices.BinarySearchFunc(p.waiting[t], rev+1, compareAwaiting) // behind those of the same revision
	p.waiting[t] = slices.Insert(p.waiting[t], i, a)
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		list := p.waiting[t]
		first, _ := slices.BinarySearchFunc(list, a.rev, compareAwaiting)
		for i := first; i < len(list) && list[i].rev == a.rev; i++ {
			if list[i] == a {
				p.waiting[t] = slices.Delete(list, i, i+1)
				return
			}
		}
	}
}

func compareAwaiting(a *awaiting, rev store.Revision) int {
	switch {
	case a.rev < rev:
		return -1
	case a.rev > rev:
		return 1
	}
	return 0
}

// settledLocked moves the state of a type that the peer has answered for. Who waits for it is told by unlockAndNotify.
func (p *Publisher) settledLocked(sub *subscription, rev store.Revision) {
	if rev <= sub.acked {
		return
	}
	sub.acked = rev
	list := p.waiting[sub.typ]
	n, _ := slices.BinarySearchFunc(list, rev+1, compareAwaiting)
	p.due = append(p.due, list[:n]...)
	if n > 0 {
		p.waiting[sub.typ] = slices.Delete(list, 0, n)
	}
}

// answeredLocked notes that the peer has begun to answer: what it did not ask for by now, it does not want.
func (p *Publisher) answeredLocked() {
	if p.answered {
		return
	}
	p.answered = true
	for t, list := range p.waiting {
		if p.byTyp[t] == nil {
			p.due = append(p.due, list...)
			delete(p.waiting, t)
		}
	}
}

// unlockAndNotify releases the lock and tells those whose wait is over.
func (p *Publisher) unlockAndNotify() {
	due := p.due
	p.due = nil
	p.mu.Unlock()
	for _, a := range due {
		a.notify()
	}
}
