package zones

import (
	"github.com/meridian-mesh/meridian/common/store"
)

// right is what a session of this replica has to its zone, by the record in a snapshot.
type right uint8

const (
	free     right = iota // the session may be claimed: it is the newest
	own                   // the record names it
	replaced              // it had been claimed, and a newer one has since
	taken                 // it may not be claimed: another plane is live under the zone's name
)

// rightLocked compares a session with the newest that a snapshot knows of its zone, where known.
//
// Whether a session was claimed need not be known for certain here, since the outcome of a commit may be lost. Numbers settle
// it: every claim takes the next one, so under a number not above the one tried here no other can have replaced this session.
func (t *Table) rightLocked(s *session, h Holder, known bool) right {
	switch {
	case !known:
		return free
	case h.Instance == t.cfg.InstanceID && h.Session == s.id:
		return own
	case s.number != 0 && h.Number > s.number:
		return replaced
	case t.takenLocked(h, s.hello.PlaneID):
		return taken
	default:
		return free
	}
}

// takenLocked reports whether a zone's name is that of a plane, other than the given one, that another replica has a session with.
// Those that this replica has itself it knows better than the store does.
func (t *Table) takenLocked(h Holder, plane string) bool {
	return h.Live() && h.Instance != t.cfg.InstanceID && h.Plane != "" && h.Plane != plane && !t.gone(h.Instance)
}

func (t *Table) gone(instance string) bool {
	return t.cfg.Replicas == nil || t.cfg.Replicas.Gone(instance)
}

// holderOf is what the record says of a session here; its number is the claim's to give.
func (t *Table) holderOf(s *session) Holder {
	h := Holder{
		Instance: t.cfg.InstanceID, Session: s.id, Plane: s.hello.PlaneID, Address: s.hello.Address, Secure: s.hello.Secure,
		Auth: s.hello.Credential.Method, Leaving: s.leaving, Ended: s.ended, Lost: s.lost,
	}
	if stream := s.streams[GlobalToZone]; stream != nil {
		h.Since = stream.sub.GetConnectTime().AsTime()
	}
	return h
}

// Guard returns the ops that must go with a batch of what the zone sent over the stream, given the head: those that claim the
// zone for the stream's session, where that has not been done yet. It fails once another session has the zone, so that
// nothing of an older connection is stored over what a newer one brought.
func (s *Stream) Guard(head *store.Snapshot) ([]store.Op, error) {
	t := s.table
	t.mu.Lock()
	defer t.mu.Unlock()
	held, known := HolderOf(head, s.zone)
	switch t.rightLocked(s.session, held, known) {
	case own:
		return nil, nil
	case taken:
		return nil, nameTaken(s.zone, held.Address)
	case replaced:
		return nil, ErrReplaced
	default:
	}
	if !s.session.ended.IsZero() {
		return nil, ErrReplaced // it may not come back
	}
	next := t.holderOf(s.session)
	next.Number = held.Number + 1
	s.session.number = next.Number
	op, err := putHolder(s.zone, next)
	if err != nil {
		return nil, err
	}
	ops := []store.Op{op}
	if held.Lost {
		ops = append(ops, t.withdrawals(head, map[string]Holder{s.zone: next})...)
	}
	return ops, nil
}

// reviewLocked looks at what the store says of the zone's session here: it ends it when another replica has claimed the zone since,
// and asserts it when it was closed by one that took this replica for dead.
func (t *Table) reviewLocked(z *zone, snap *store.Snapshot) {
	s := z.session
	if s == nil {
		return
	}
	held, known := HolderOf(snap, z.name)
	switch t.rightLocked(s, held, known) {
	case own:
		s.number = max(s.number, held.Number)
		if !held.Live() {
			t.log.Warn("the session of a zone was closed by a replica that takes this one for dead, and goes on", "zone", z.name)
			t.markLocked(z.name, true)
		}
	case replaced:
		t.replacedLocked(z, held)
	case free, taken: // the next batch claims it, or ends it
		if s.number != 0 {
			t.markLocked(z.name, true) // the store has forgotten that it was
		}
	}
}

// replacedLocked ends the session here because held has replaced it.
func (t *Table) replacedLocked(z *zone, held Holder) {
	t.log.Info("zone has connected to another replica while its session here was still open", "zone", z.name,
		"address", held.Address, "older_address", z.session.hello.Address, "replica", held.Instance)
	t.swapLocked(z)
	t.retireLocked(z, ErrReplaced)
}

// takenAwayLocked ends the session here, which was never claimed, because another plane has the zone's name. What it was shall not
// show among the subscriptions of that one.
func (t *Table) takenAwayLocked(z *zone, held Holder) {
	s := z.session
	t.refusedLocked(z, s.hello, held.Address, held.Plane)
	for _, stream := range s.streams {
		if stream != nil && stream.sub != nil {
			z.subs = without(z.subs, stream.sub.GetId())
		}
	}
	t.retireLocked(z, nameTaken(z.name, held.Address))
	z.over = nil
}
