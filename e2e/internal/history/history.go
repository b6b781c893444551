// Package history records what clients of several replicas of a plane see over HTTP while things go wrong, and judges it: a
// [Recorder] makes the calls and follows the watches, [History.Check] says what must hold of any of them.
//
// Writes are decided on the newest state whichever replica is asked, so together with their refusals they must be linearizable. A read
// is answered from the replica's own snapshot, which may be some milliseconds behind what another replica has answered. So reads
// are no part of that history. They must be of what was written, and never go back at one replica. Only the reads at the
// very end, when all replicas are of one mind, are held against the writes.
package history

import (
	"fmt"
	"slices"
	"time"
)

// Outcome is what a client knows of a call.
type Outcome int

const (
	Done     Outcome = iota // 200 or 201: it was written or read
	Absent                  // 404
	Mismatch                // 412: its condition did not hold
	Refused                 // said not to have happened, and not to happen
	Unknown                 // no answer, or one that says so: it may have happened, or happen yet
)

// Call is a call on the resource that Key names.
type Call struct {
	Client, Replica    int
	Method, Key, Value string // Value is what was written or read; no two writes have the same
	Match              uint64 // the version that If-Match named; 0: none
	IfAbsent           bool   // If-None-Match: *
	Began, Ended       time.Duration
	Outcome            Outcome
	Version            uint64 // of what was written or read
}

func (c *Call) String() string {
	return fmt.Sprintf("%s %s=%s at replica %d by client %d (if-match %d, if-absent %v) %s-%s: outcome %d, version %d",
		c.Method, c.Key, c.Value, c.Replica, c.Client, c.Match, c.IfAbsent, c.Began, c.Ended, c.Outcome, c.Version)
}

// Event is what a watch was sent.
type Event struct {
	Kind       string // added, modified, deleted, bookmark; lost: its place was refused, it began anew
	Key, Value string
	Revision   uint64 // everything up to it has been sent; 0: more belongs to it
	At         time.Duration
}

// Watch is what one client was sent over all its connections, each of which went on from the last revision.
type Watch struct {
	Name    string
	Events  []Event
	Resumed int
}

// History is what clients saw. Calls on resources outside of it are none of its business.
type History struct {
	Calls   []*Call
	Watches []*Watch
	// Final are reads of every key at every replica, after the last write has reached all.
	Final []*Call
}

// String counts.
func (h *History) String() string {
	count := map[string]int{}
	for _, c := range h.Calls {
		count[c.Method]++
		count[c.Method+fmt.Sprint(c.Outcome)]++
	}
	events, resumed := 0, 0
	for _, w := range h.Watches {
		events, resumed = events+len(w.Events), resumed+w.Resumed
	}
	writes := func(o Outcome) int { return count[fmt.Sprint("PUT", int(o))] + count[fmt.Sprint("DELETE", int(o))] }
	return fmt.Sprintf("%d calls: %d writes acknowledged, %d whose condition did not hold, %d that found nothing, %d refused, %d of unknown outcome; "+
		"%d reads; %d events of %d watches that resumed %d times", len(h.Calls), writes(Done), writes(Mismatch), writes(Absent),
		writes(Refused), writes(Unknown), count["GET"], events, len(h.Watches), resumed)
}

// byKey groups calls.
func byKey(calls []*Call) map[string][]*Call {
	out := map[string][]*Call{}
	for _, c := range calls {
		out[c.Key] = append(out[c.Key], c)
	}
	return out
}

// resolved is the history in which a PUT without an answer that somebody read counts as done, before that read had its answer.
func (h *History) resolved() *History {
	read := map[string]*Call{} // the first to end, by value
	for _, c := range slices.Concat(h.Calls, h.Final) {
		if c.Method == "GET" && c.Outcome == Done && (read[c.Value] == nil || c.Ended < read[c.Value].Ended) {
			read[c.Value] = c
		}
	}
	out := &History{Watches: h.Watches, Final: h.Final}
	for _, c := range h.Calls {
		if r := read[c.Value]; c.Method == "PUT" && c.Outcome == Unknown && r != nil {
			done := *c
			done.Outcome, done.Version, done.Ended = Done, r.Version, r.Ended
			c = &done
		}
		out.Calls = append(out.Calls, c)
	}
	return out
}

// state is the value of each key that is there.
type state map[string]string
