package storetest

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/anishathalye/porcupine"
	"golang.org/x/sync/errgroup"

	"github.com/meridian-mesh/meridian/common/store"
)

// History is many clients that read and write a few keys on all replicas while Disturb does what it wants to the storage,
// and what must hold then:
//
//   - what the clients saw is what they would have seen one after the other (porcupine, per key), where a write without an
//     answer may have happened and a refused one may not;
//   - no two writes were answered with one revision;
//   - at the end every replica holds the same;
//   - a watch on every replica had no gap.
type History struct {
	Seed     uint64
	Replicas []*store.Store
	// Clients on each replica, and the calls of each.
	Clients, Calls int
	// Disturb runs meanwhile, until its context ends. It leaves the storage in order.
	Disturb func(context.Context, *rand.Rand) error
	// Patience bounds how long the replicas may take to agree at the end. Default a minute.
	Patience time.Duration

	answered, refused, unknown atomic.Int64
}

// String says what happened.
func (h *History) String() string {
	return fmt.Sprintf("seed %d: %d calls answered, %d refused, %d of unknown outcome",
		h.Seed, h.answered.Load(), h.refused.Load(), h.unknown.Load())
}

type call struct {
	Kind    string // read, put, create, swap, delete
	Key     string
	Value   string
	Version store.Revision // of swap
}

type answer struct {
	Outcome string // ok, conflict, unknown
	// Version and Value are what was read; Version is also what was written.
	Version store.Revision
	Value   string
}

// held is the state of a key. A version of 0 with Exists is one that was written without an answer.
type held struct {
	Exists  bool
	Version store.Revision
	Value   string
}

func step(s held, c call, a answer) []held {
	written := held{Exists: true, Version: a.Version, Value: c.Value}
	if c.Kind == "delete" {
		written = held{}
	}
	may := true // the condition holds, or it is not known whether it does
	must := true
	switch c.Kind {
	case "create":
		may = !s.Exists
		must = may
	case "swap":
		may = s.Exists && (s.Version == c.Version || s.Version == 0)
		must = s.Exists && s.Version == c.Version
	case "read":
		switch {
		case a.Outcome == "unknown":
			return []held{s}
		case s.Exists != (a.Version != 0), s.Value != a.Value, s.Version != 0 && s.Version != a.Version:
			return nil
		}
		return []held{{s.Exists, a.Version, a.Value}}
	}
	switch {
	case a.Outcome == "unknown" && may:
		return []held{s, written}
	case a.Outcome == "unknown", a.Outcome == "conflict" && !must:
		return []held{s}
	case a.Outcome == "ok" && may:
		return []held{written}
	}
	return nil
}

func linearizable() porcupine.Model {
	model := porcupine.NondeterministicModel{
		Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
			byKey := map[string][]porcupine.Operation{}
			for _, op := range history {
				k := op.Input.(call).Key //nolint:forcetypeassert // put there below
				byKey[k] = append(byKey[k], op)
			}
			var parts [][]porcupine.Operation
			for _, part := range byKey {
				parts = append(parts, part)
			}
			return parts
		},
		Init: func() []any { return []any{held{}} },
		Step: func(state, input, output any) []any {
			var next []any
			for _, s := range step(state.(held), input.(call), output.(answer)) { //nolint:forcetypeassert // ours
				next = append(next, s)
			}
			return next
		},
	}
	return model.ToModel()
}

// Run runs the clients and judges what they saw.
func (h *History) Run(ctx context.Context) error {
	if h.Patience == 0 {
		h.Patience = time.Minute
	}
	disturbing, calm := context.WithCancel(ctx)
	defer calm()
	var disturbed error
	var disturber sync.WaitGroup
	if h.Disturb != nil {
		disturber.Go(func() { disturbed = h.Disturb(disturbing, rand.New(rand.NewPCG(h.Seed, 0))) }) //nolint:gosec // from the seed
	}
	watching, unwatch := context.WithCancel(ctx)
	defer unwatch()
	watchers := make([]*Watcher, len(h.Replicas))
	var watches errgroup.Group
	for i, s := range h.Replicas {
		watchers[i] = NewWatcher(s)
		watches.Go(func() error {
			for watching.Err() == nil {
				if err := watchers[i].Run(watching, math.MaxUint64); err != nil && watching.Err() == nil {
					return fmt.Errorf("watch of replica %d: %w", i, err)
				}
			}
			return nil
		})
	}
	history, err := h.clients(ctx)
	calm()
	disturber.Wait()
	if err := errors.Join(err, disturbed); err != nil {
		return err
	}
	patient, cancel := context.WithTimeout(ctx, h.Patience)
	defer cancel()
	last, err := h.finish(patient)
	if err != nil {
		return err
	}
	if err := Equal(patient, h.Replicas...); err != nil {
		return fmt.Errorf("replicas differ at the end: %w", err)
	}
	for i := range watchers {
		if err := awaitWatcher(patient, watchers[i], last); err != nil {
			return fmt.Errorf("watch of replica %d: %w", i, err)
		}
	}
	unwatch()
	if err := watches.Wait(); err != nil {
		return err
	}
	for i, w := range watchers {
		if w.Restarts > 0 {
			return fmt.Errorf("watch of replica %d had to begin anew, and nothing was compacted", i)
		}
	}
	switch porcupine.CheckOperationsTimeout(linearizable(), history, time.Minute) {
	case porcupine.Illegal:
		return errors.New("the history is not linearizable")
	case porcupine.Unknown:
		return errors.New("the history is too long to judge")
	default:
		return nil
	}
}

// finish commits one more batch, which every watch must see.
func (h *History) finish(ctx context.Context) (store.Revision, error) {
	for {
		rev, err := h.Replicas[0].Update(ctx, batch(store.Put(record("U", "", "last", fmt.Sprint(h.Seed)))))
		if !errors.Is(err, store.ErrUnavailable) {
			return rev, err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return 0, fmt.Errorf("the store does not recover: %w", err)
		}
	}
}

func awaitWatcher(ctx context.Context, w *Watcher, last store.Revision) error {
	for w.Revision() < last {
		select {
		case <-time.After(time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("it has seen revision %d, not %d", w.Revision(), last)
		}
	}
	return nil
}

func (h *History) clients(ctx context.Context) ([]porcupine.Operation, error) {
	start := time.Now()
	var mu sync.Mutex
	var history []porcupine.Operation
	revisions := map[store.Revision]call{}
	g, ctx := errgroup.WithContext(ctx)
	for n := range h.Clients * len(h.Replicas) {
		s := h.Replicas[n%len(h.Replicas)]
		rng := rand.New(rand.NewPCG(h.Seed, uint64(n)+1)) //nolint:gosec // from the seed
		g.Go(func() error {
			seen := map[string]store.Revision{}
			for i := range h.Calls {
				c := call{
					Kind: []string{"read", "read", "put", "put", "create", "swap", "swap", "delete"}[rng.IntN(8)],
					Key:  fmt.Sprint("k", rng.IntN(4)), Value: fmt.Sprint(n, "-", i),
				}
				if c.Version = seen[c.Key]; c.Kind == "swap" && c.Version == 0 {
					c.Kind = "read"
				}
				begin := int64(time.Since(start))
				a, refused, err := do(ctx, s, c)
				if err != nil {
					return err
				}
				if refused {
					h.refused.Add(1)
					select {
					case <-time.After(5 * time.Millisecond):
					case <-ctx.Done():
					}
					continue
				}
				op := porcupine.Operation{ClientId: n, Input: c, Call: begin, Output: a, Return: int64(time.Since(start))}
				if a.Outcome == "unknown" {
					h.unknown.Add(1)
					op.Return = math.MaxInt64
				} else {
					h.answered.Add(1)
				}
				if a.Version != 0 {
					seen[c.Key] = a.Version
				}
				mu.Lock()
				history = append(history, op)
				other, twice := revisions[a.Version]
				if c.Kind != "read" && c.Kind != "delete" && a.Outcome == "ok" {
					revisions[a.Version] = c
					if twice {
						err = fmt.Errorf("revision %d was answered to %v and %v", a.Version, other, c)
					}
				}
				mu.Unlock()
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := g.Wait()
	return history, err
}

// do carries out c. refused: the store says that it was not applied.
func do(ctx context.Context, s *store.Store, c call) (a answer, refused bool, err error) {
	k := key("T", "m", c.Key)
	rev, err := s.Update(ctx, func(head *store.Snapshot) ([]store.Op, error) {
		op := store.Put(record("T", "m", c.Key, c.Value))
		switch c.Kind {
		case "read":
			a.Version, a.Value = 0, ""
			if r, ok := head.Get(k); ok {
				a.Version, a.Value = r.Version, string(r.Spec)
			}
			return nil, nil
		case "create":
			op = op.If(0)
		case "swap":
			op = op.If(c.Version)
		case "delete":
			op = store.Delete(k)
		}
		return []store.Op{op}, nil
	})
	switch {
	case err == nil:
		a.Outcome = "ok"
		if c.Kind != "read" && c.Kind != "delete" {
			a.Version = rev
		}
	case errors.Is(err, store.ErrConflict):
		a.Outcome = "conflict"
	case errors.Is(err, store.ErrUnknown):
		a = answer{Outcome: "unknown"}
	case errors.Is(err, store.ErrUnavailable):
		return a, true, nil
	default:
		return a, false, err
	}
	return a, false, nil
}
