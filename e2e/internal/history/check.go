package history

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// What a history may break.
var (
	ErrNotLinearizable   = errors.New("writes of one key are not linearizable")
	ErrVersionTwice      = errors.New("two writes were answered with one version")
	ErrVersionBeforeTime = errors.New("a write has a smaller version than one that was answered before it began")
	ErrRefusedYetStored  = errors.New("what was said not to be stored is there")
	ErrReadFromNowhere   = errors.New("something was read that nobody had written")
	ErrReadWentBack      = errors.New("a replica showed an older state than before")
	ErrReplicasDiffer    = errors.New("replicas differ at the end")
	ErrWatchGap          = errors.New("a watch lacks a change of before the revision that it says it has")
	ErrWatchWentBack     = errors.New("a watch showed an older state than before")
	ErrWatchBeganAnew    = errors.New("a watch could not go on from where it was, though nothing had been forgotten")
	ErrTooLong           = errors.New("the history is too long to judge")
)

// Check returns what h breaks, joined.
func (h *History) Check() error {
	r := h.resolved()
	return errors.Join(r.versions(), r.reads(), r.final(), r.watches(), r.linearizable())
}

// versions checks the versions of what was written, over all keys: a version is the revision of a commit.
func (h *History) versions() error {
	var puts []*Call
	by := map[uint64]*Call{}
	for _, c := range h.Calls {
		if c.Method != "PUT" || c.Outcome != Done {
			continue
		}
		if other := by[c.Version]; other != nil {
			return fmt.Errorf("%w: %s; %s", ErrVersionTwice, other, c)
		}
		by[c.Version] = c
		puts = append(puts, c)
	}
	begins, ends := slices.Clone(puts), puts
	slices.SortFunc(begins, func(a, b *Call) int { return cmp.Compare(a.Began, b.Began) })
	slices.SortFunc(ends, func(a, b *Call) int { return cmp.Compare(a.Ended, b.Ended) })
	newest := &Call{}
	for _, c := range begins {
		for len(ends) > 0 && ends[0].Ended < c.Began {
			if ends[0].Version > newest.Version {
				newest = ends[0]
			}
			ends = ends[1:]
		}
		if c.Version < newest.Version {
			return fmt.Errorf("%w: %s; %s", ErrVersionBeforeTime, newest, c)
		}
	}
	return nil
}

// reads checks that what was read had been written, and that no replica went back.
func (h *History) reads() error {
	written := map[string]*Call{}
	for _, c := range h.Calls {
		if c.Method == "PUT" {
			written[c.Value] = c
		}
	}
	for key, calls := range byKey(slices.Concat(h.Calls, h.Final)) {
		for _, c := range calls {
			if c.Method != "GET" || c.Outcome != Done {
				continue
			}
			w := written[c.Value]
			switch {
			case w == nil, w.Key != key, w.Began > c.Ended, w.Outcome == Done && w.Version != c.Version:
				return fmt.Errorf("%w: %s; written by %v", ErrReadFromNowhere, c, w)
			case w.Outcome != Done:
				return fmt.Errorf("%w: %s; read by %s", ErrRefusedYetStored, w, c)
			}
		}
		if err := wentBack(calls, written); err != nil {
			return err
		}
	}
	return nil
}

// wentBack checks the reads of one key.
func wentBack(calls []*Call, written map[string]*Call) error {
	// shows is the least version that a replica must show to who asks after a call, and whether that version is gone.
	shows := func(c *Call) (version uint64, gone bool) {
		switch {
		case c.Outcome == Done && c.Method != "DELETE":
			return c.Version, false
		case c.Outcome == Done, c.Outcome == Absent:
			// What was answered before it began is gone: at any replica when a write says so, at this one when a read does.
			for _, p := range calls {
				if p.Outcome == Done && p.Ended < c.Began && (c.Method == "DELETE" || c.Replica == p.Replica) {
					version = max(version, p.Version)
				}
			}
			return version, true
		}
		return 0, false
	}
	floors := make([]uint64, len(calls))
	gones := make([]bool, len(calls))
	for i, c := range calls {
		floors[i], gones[i] = shows(c)
	}
	for _, r := range calls {
		if r.Method != "GET" || r.Outcome != Done && r.Outcome != Absent {
			continue
		}
		for i, c := range calls {
			if c.Replica != r.Replica || c.Ended >= r.Began || floors[i] == 0 {
				continue
			}
			switch {
			case r.Outcome == Done && (r.Version < floors[i] || r.Version == floors[i] && gones[i]):
				return fmt.Errorf("%w: %s, and then %s", ErrReadWentBack, c, r)
			case r.Outcome == Absent && !gones[i] && !deletedAfter(calls, written[c.Value], r.Ended):
				return fmt.Errorf("%w: %s, and then, though nobody deleted it, %s", ErrReadWentBack, c, r)
			}
		}
	}
	return nil
}

// deletedAfter reports whether something may have deleted what put wrote, until then.
func deletedAfter(calls []*Call, put *Call, then time.Duration) bool {
	return slices.ContainsFunc(calls, func(d *Call) bool {
		return d.Method == "DELETE" && (d.Outcome == Done || d.Outcome == Unknown) && d.Began < then && (d.Outcome == Unknown || d.Ended > put.Began)
	})
}

// final checks that all replicas hold the same at the end.
func (h *History) final() error {
	for _, reads := range byKey(h.Final) {
		for _, c := range reads[1:] {
			if f := reads[0]; c.Outcome != f.Outcome || c.Value != f.Value || c.Version != f.Version {
				return fmt.Errorf("%w: %s; %s", ErrReplicasDiffer, f, c)
			}
		}
	}
	return nil
}

// watches checks that what each watch has at a revision is what there was at that revision.
func (h *History) watches() error {
	calls := byKey(h.Calls)
	written := map[string]*Call{}
	var puts []*Call // by version
	for _, c := range h.Calls {
		if c.Method == "PUT" {
			written[c.Value] = c
			if c.Outcome == Done {
				puts = append(puts, c)
			}
		}
	}
	slices.SortFunc(puts, func(a, b *Call) int { return cmp.Compare(a.Version, b.Version) })
	for _, w := range h.Watches {
		if err := follow(w, puts, calls, written); err != nil {
			return fmt.Errorf("%s: %w", w.Name, err)
		}
		last := replay(w)
		for _, c := range h.Final {
			if value, there := last[c.Key]; there != (c.Outcome == Done) || value != c.Value {
				return fmt.Errorf("%s: %w: at the end it has %s=%q (%v), and there is %s", w.Name, ErrWatchGap, c.Key, value, there, c)
			}
		}
	}
	return nil
}

// replay is what a client has that applied all events.
func replay(w *Watch) state {
	s := state{}
	for _, e := range w.Events {
		s.apply(e)
	}
	return s
}

func (s state) apply(e Event) {
	switch e.Kind {
	case "added", "modified":
		s[e.Key] = e.Value
	case "deleted":
		delete(s, e.Key)
	}
}

// follow checks a watch event by event. puts are those done, by version.
func follow(w *Watch, puts []*Call, calls map[string][]*Call, written map[string]*Call) error {
	has, shown := state{}, map[string]uint64{} // shown is the newest version of each key
	want := map[string]*Call{}                 // the newest put of each key up to the revision
	dirty := map[string]struct{}{}             // keys that either has changed of since the last comparison
	var at uint64
	var began time.Duration // whatever ended before it has a smaller revision than at
	for _, e := range w.Events {
		if e.Kind == "lost" {
			return ErrWatchBeganAnew
		}
		if e.Key != "" {
			dirty[e.Key] = struct{}{}
			has.apply(e)
			p := written[e.Value]
			switch {
			case e.Kind == "deleted":
			case p == nil || p.Key != e.Key || p.Began > e.At:
				return fmt.Errorf("%w: %+v", ErrReadFromNowhere, e)
			case p.Outcome != Done && p.Outcome != Unknown:
				return fmt.Errorf("%w: %s; %+v", ErrRefusedYetStored, p, e)
			case p.Version != 0 && p.Version < shown[e.Key]:
				return fmt.Errorf("%w: version %d, and then %+v of %s", ErrWatchWentBack, shown[e.Key], e, p)
			default:
				shown[e.Key] = max(shown[e.Key], p.Version)
			}
		}
		if e.Revision == 0 {
			continue
		}
		if e.Revision < at {
			return fmt.Errorf("%w: revision %d, and then %+v", ErrWatchWentBack, at, e)
		}
		at = e.Revision
		for len(puts) > 0 && puts[0].Version <= at {
			p := puts[0]
			want[p.Key], began, puts = p, max(began, p.Began), puts[1:]
			dirty[p.Key] = struct{}{}
		}
		for key := range dirty {
			value, there := has[key]
			open, err := agrees(value, there, want[key], calls[key], written, began, e.At)
			if err != nil {
				return fmt.Errorf("%w: at revision %d: %w", ErrWatchGap, at, err)
			}
			if !open {
				delete(dirty, key)
			}
		}
	}
	return nil
}

// agrees compares what a watch has of a key with the newest put that it must have. Whatever ended before began must show in it. It is
// open while a deletion may show later.
func agrees(value string, there bool, newest *Call, calls []*Call, written map[string]*Call, began, now time.Duration) (open bool, err error) {
	switch {
	case there && written[value].Outcome == Unknown: // nobody can tell its version
		return true, nil
	case newest == nil && there:
		return false, fmt.Errorf("it has %s, which is newer", written[value])
	case newest == nil:
		return false, nil
	case there && value != newest.Value:
		return false, fmt.Errorf("it has %s, not %s", written[value], newest)
	case !there && !deletedAfter(calls, newest, now):
		return false, fmt.Errorf("it lacks %s", newest)
	case !there:
		return false, nil
	}
	for _, d := range calls {
		if d.Method != "DELETE" || d.Outcome != Done || d.Began < newest.Ended {
			continue
		}
		if d.Ended < began {
			return false, fmt.Errorf("it has %s, which was deleted: %s", newest, d)
		}
		open = true
	}
	return open, nil
}

// held is what there is of one key. A version of 0 that exists is that of a write nobody can tell it of. Of what was deleted the
// version remains: it does not come again.
type held struct {
	exists  bool
	version uint64
	value   string
}

// step yields the states that may follow.
func step(s held, c *Call) []held {
	may, must := true, true // its condition holds, as far as can be known; it surely does
	switch {
	case c.IfAbsent:
		may, must = !s.exists, !s.exists
	case c.Match != 0:
		may, must = s.exists && (s.version == c.Match || s.version == 0), s.exists && s.version == c.Match
	}
	written := held{true, c.Version, c.Value}
	if c.Method == "DELETE" {
		may, written = may && s.exists, held{version: s.version}
	}
	switch c.Outcome {
	case Done:
		switch {
		case c.Method == "GET" && s.exists && s.value == c.Value && (s.version == c.Version || s.version == 0):
			return []held{{true, c.Version, c.Value}}
		case c.Method == "GET", !may, c.Method == "PUT" && c.Version <= s.version:
			return nil
		}
		return []held{written}
	case Absent:
		if !s.exists {
			return []held{s}
		}
	case Mismatch:
		if !must && (s.exists || c.Method != "DELETE") {
			return []held{s}
		}
	case Unknown:
		if may {
			return []held{s, written}
		}
		return []held{s}
	case Refused:
	}
	return nil
}

// linearizable checks the writes of each key, and the reads at the end.
func (h *History) linearizable() error {
	model := porcupine.NondeterministicModel{
		Init: func() []any { return []any{held{}} },
		Step: func(s, input, _ any) []any {
			var next []any
			for _, n := range step(s.(held), input.(*Call)) { //nolint:forcetypeassert // ours
				next = append(next, n)
			}
			return next
		},
	}
	writes := slices.DeleteFunc(slices.Clone(h.Calls), func(c *Call) bool { return c.Method == "GET" || c.Outcome == Refused })
	for key, calls := range byKey(append(writes, h.Final...)) {
		var ops []porcupine.Operation
		for _, c := range calls {
			op := porcupine.Operation{ClientId: c.Client, Input: c, Call: int64(c.Began), Return: int64(c.Ended)}
			if c.Outcome == Unknown {
				op.Return = math.MaxInt64
			}
			ops = append(ops, op)
		}
		switch porcupine.CheckOperationsTimeout(model.ToModel(), ops, time.Minute) {
		case porcupine.Illegal:
			return fmt.Errorf("%w: %s, %d calls", ErrNotLinearizable, key, len(ops))
		case porcupine.Unknown:
			return fmt.Errorf("%w: %s, %d calls", ErrTooLong, key, len(ops))
		}
	}
	return nil
}
