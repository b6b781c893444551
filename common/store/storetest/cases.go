package storetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/meridian-mesh/meridian/common/store"
)

// Cases returns everything a backend must keep.
func Cases() []Case {
	return slices.Concat(batchCases(), readCases(), durabilityCases(), historyCases(), watchCases(), failureCases(), LeaseCases())
}

func batchCases() []Case {
	return []Case{
		{"revisions count committed batches without a gap", func(e *env) {
			s := e.store(store.Options{})
			for want := store.Revision(1); want <= 20; want++ {
				if got := e.commit(s, store.Put(record("T", "m", fmt.Sprint(want), "x"))); got != want {
					e.fatalf("batch got revision %d, want %d", got, want)
				}
				if want%5 == 0 {
					e.refused(s, store.ErrConflict, store.Put(record("T", "m", "new", "x")).If(77))
					s = e.restart(s, store.Options{})
				}
			}
		}},
		{"a batch is applied whole or not at all", func(e *env) {
			s := e.store(store.Options{})
			v := e.commit(s, store.Put(record("T", "m", "a", "1")), store.Put(record("T", "m", "b", "1")))
			e.refused(s, store.ErrConflict,
				store.Put(record("T", "m", "a", "2")), store.Delete(key("T", "m", "b")), store.Put(record("T", "m", "c", "1")).If(v))
			before := e.content(s.Snapshot())
			s = e.restart(s, store.Options{})
			e.equal("content after the refused batch and a restart", before, e.content(s.Snapshot()))
		}},
		{"all records of a batch have its revision", func(e *env) {
			s := e.store(store.Options{})
			e.commit(s, store.Put(record("T", "m", "a", "1")))
			rev := e.commit(s, store.Put(record("T", "m", "a", "2")), store.Put(record("U", "", "b", "1")))
			a, b := e.get(s.Snapshot(), key("T", "m", "a")), e.get(s.Snapshot(), key("U", "", "b"))
			e.equal("versions", []store.Revision{rev, 1, rev, rev}, []store.Revision{a.Version, a.CreateRevision, b.Version, b.CreateRevision})
		}},
		{"a precondition names the version that must be there", func(e *env) {
			s := e.store(store.Options{})
			k := key("T", "m", "a")
			v1 := e.commit(s, store.Put(record("T", "m", "a", "1")).If(0))
			e.refused(s, store.ErrConflict, store.Put(record("T", "m", "a", "2")).If(0))
			v2 := e.commit(s, store.Put(record("T", "m", "a", "2")).If(v1))
			e.refused(s, store.ErrConflict, store.Put(record("T", "m", "a", "3")).If(v1))
			e.refused(s, store.ErrConflict, store.Delete(k).If(v1))
			e.commit(s, store.Delete(k).If(v2))
			e.refused(s, store.ErrConflict, store.Delete(k).If(v2))
			e.commit(s, store.Delete(k).If(0))
			_, err := s.Update(e.ctx, batch(store.Delete(k).If(v2)))
			if err == nil || !strings.Contains(err.Error(), k.String()) {
				e.fatalf("the error %v does not name %s", err, k)
			}
		}},
		{"of many writers that expect the same version one wins", func(e *env) {
			s := e.store(store.Options{})
			var won atomic.Int32
			var g errgroup.Group
			for i := range 32 {
				g.Go(func() error {
					_, err := s.Update(e.ctx, batch(store.Put(record("T", "m", "a", fmt.Sprint(i))).If(0)))
					if err == nil {
						won.Add(1)
					} else if !errors.Is(err, store.ErrConflict) {
						return err
					}
					return nil
				})
			}
			e.must("concurrent updates", g.Wait())
			e.equal("winners", int32(1), won.Load())
		}},
		{"a put of what is there commits nothing", func(e *env) {
			s := e.store(store.Options{})
			r := full("a")
			v := e.commit(s, store.Put(r))
			again := full("a")
			again.Created = again.Created.In(time.FixedZone("elsewhere", 3600))
			e.equal("revision answered", v, e.commit(s, store.Put(again), store.Delete(key("T", "m", "absent"))))
			e.equal("revision of the head", v, s.Snapshot().Revision())
			e.refused(s, store.ErrConflict, store.Put(again).If(v+1))
			for name, change := range map[string]func(*store.Record){
				"spec":     func(r *store.Record) { r.Spec = []byte("other") },
				"labels":   func(r *store.Record) { r.Labels = map[string]string{"k": "w"} },
				"origin":   func(r *store.Record) { r.Origin = "zone-2" },
				"wirename": func(r *store.Record) { r.WireName = "other" },
				"created":  func(r *store.Record) { r.Created = r.Created.Add(1) },
				"modified": func(r *store.Record) { r.Modified = time.Time{} },
			} {
				changed := full("a")
				change(changed)
				before := s.Snapshot().Revision()
				if e.commit(s, store.Put(changed)) != before+1 {
					e.fatalf("a put with another %s was not a change", name)
				}
				e.commit(s, store.Put(full("a")))
			}
		}},
		{"an empty batch answers the head's revision", func(e *env) {
			s := e.store(store.Options{})
			e.equal("revision of the empty store", store.Revision(0), e.commit(s))
			v := e.commit(s, store.Put(full("a")))
			e.equal("revision", v, e.commit(s))
			e.equal("revision after deleting nothing", v, e.commit(s, store.Delete(key("T", "m", "absent"))))
		}},
		{"the error of an update's function is returned unchanged", func(e *env) {
			s := e.store(store.Options{})
			want := errors.New("no")
			_, err := s.Update(e.ctx, func(*store.Snapshot) ([]store.Op, error) {
				return []store.Op{store.Put(full("a"))}, want
			})
			if err != want { //nolint:errorlint // unchanged is the promise
				e.fatalf("update answered %v", err)
			}
			e.equal("revision", store.Revision(0), s.Snapshot().Revision())
		}},
		{"a panic of an update's function fails that update alone", func(e *env) {
			s := e.store(store.Options{})
			if _, err := s.Update(e.ctx, func(*store.Snapshot) ([]store.Op, error) { panic("boom") }); err == nil {
				e.fatalf("no error")
			}
			e.equal("revision of the next batch", store.Revision(1), e.commit(s, store.Put(full("a"))))
		}},
		{"a batch with impossible keys is refused", func(e *env) {
			s := e.store(store.Options{})
			wrongKey := store.Put(full("a"))
			wrongKey.Key.Name = "b"
			withNUL := full("a")
			withNUL.WireName = "x\x00y"
			for name, ops := range map[string][]store.Op{
				"two ops on one key":   {store.Put(full("a")), store.Delete(full("a").Key)},
				"no type":              {store.Put(record("", "m", "a", "1"))},
				"no name":              {store.Delete(key("T", "m", ""))},
				"NUL in the name":      {store.Put(record("T", "m", "a\x00b", "1"))},
				"NUL in the wire name": {store.Put(withNUL)},
				"another's record":     {wrongKey},
				"an endless name":      {store.Put(record("T", "m", strings.Repeat("a", 5000), "1"))},
			} {
				if _, err := s.Update(e.ctx, batch(ops...)); !errors.Is(err, store.ErrInvalid) {
					e.fatalf("%s: update answered %v", name, err)
				}
			}
			e.commit(s, store.Put(record("T", "m", strings.Repeat("a", 4000), "1")))
		}},
		{"the caller's record is not changed", func(e *env) {
			s := e.store(store.Options{})
			r, want := full("a"), full("a")
			r.Created = r.Created.In(time.FixedZone("elsewhere", 3600))
			e.commit(s, store.Put(r))
			e.equal("the caller's record", want, r)
			if r.Created.Location() == time.UTC {
				e.fatalf("the caller's time was moved to UTC")
			}
		}},
		{"the pending head has every batch accepted before", func(e *env) {
			s := e.store(store.Options{})
			release := e.hold(s)
			var waiting []<-chan result
			for i := range 10 {
				waiting = append(waiting, e.queued(e.ctx, s, func(head *store.Snapshot) ([]store.Op, error) {
					if n := head.Count("T", "m"); n != i {
						return nil, fmt.Errorf("batch %d sees %d records", i, n)
					}
					if n := len(slices.Collect(head.List("T", ""))); n != i {
						return nil, fmt.Errorf("batch %d lists %d records", i, n)
					}
					if head.Revision() != store.Revision(i) || head.LastChange("T") != store.Revision(i) {
						return nil, fmt.Errorf("batch %d sees revision %d", i, head.Revision())
					}
					changes, err := head.Changes("T", 0)
					if err != nil {
						return nil, err
					}
					if n := len(slices.Collect(changes)); n != i {
						return nil, fmt.Errorf("batch %d sees %d changes", i, n)
					}
					return []store.Op{store.Put(record("T", "m", fmt.Sprint(i), "1")).If(0)}, nil
				}))
			}
			conflict := e.queued(e.ctx, s, batch(store.Put(record("T", "m", "0", "2")).If(0)))
			unchanged := e.queued(e.ctx, s, batch(store.Put(record("T", "m", "0", "1")).If(1)))
			release()
			for i, ch := range waiting {
				r := <-ch
				e.must("update", r.Err)
				e.equal("revision", store.Revision(i+1), r.Rev)
			}
			if r := <-conflict; !errors.Is(r.Err, store.ErrConflict) {
				e.fatalf("a precondition on an earlier batch of the group: %v", r.Err)
			}
			e.equal("answer to the batch that changes nothing", result{Rev: 10}, func() result { return <-unchanged }())
		}},
	}
}

func readCases() []Case {
	return []Case{
		{"a new store is empty and has an ID of its own", func(e *env) {
			s := e.store(store.Options{})
			if s.ID() == "" {
				e.fatalf("no ID")
			}
			e.equal("content", content{Counts: map[string]int{}, LastChange: map[string]store.Revision{}}, e.content(s.Snapshot()))
			id := s.ID()
			s = e.restart(s, store.Options{})
			e.equal("ID after a restart", id, s.ID())
		}},
		{"a snapshot never changes", func(e *env) {
			s := e.store(store.Options{})
			e.commit(s, store.Put(full("a")), store.Put(full("b")))
			old := s.Snapshot()
			before := e.content(old)
			e.commit(s, store.Delete(full("a").Key), store.Put(record("T", "m", "b", "2")), store.Put(full("c")))
			e.equal("the old snapshot", before, e.content(old))
			e.must("close", s.Close())
			e.equal("the old snapshot after closing", before, e.content(old))
		}},
		{"lists are sorted by mesh, then name, and counted", func(e *env) {
			s := e.store(store.Options{})
			// "m" before "m-2" and "m2", whatever the separators do; types that begin alike stay apart.
			names := []string{"T/m/a", "T/m/a-b", "T/m/ab", "T/m/b", "T/m-2/a", "T/m2/a", "TT/m/a", "G/a", "G/b"}
			var ops []store.Op
			for _, n := range names {
				p := strings.Split(n, "/")
				if len(p) == 2 {
					p = []string{p[0], "", p[1]}
				}
				ops = append(ops, store.Put(record(p[0], p[1], p[2], n)))
			}
			for i := range ops {
				e.commit(s, ops[(i*5+3)%len(ops)])
			}
			for _, head := range []*store.Snapshot{s.Snapshot(), e.restart(s, store.Options{}).Snapshot()} {
				for _, q := range []struct {
					typ, mesh string
					want      []string
				}{
					{"T", "", names[:6]},
					{"T", "m", names[:4]},
					{"T", "m-2", names[4:5]},
					{"T", "absent", nil},
					{"TT", "", names[6:7]},
					{"G", "", names[7:]},
					{"absent", "", nil},
				} {
					var got []string
					for r := range head.List(q.typ, q.mesh) {
						got = append(got, r.Key.String())
					}
					e.equal("list of "+q.typ+" in "+q.mesh, q.want, got)
					e.equal("count of "+q.typ+" in "+q.mesh, len(q.want), head.Count(q.typ, q.mesh))
				}
				e.equal("types", []string{"G", "T", "TT"}, slices.Collect(head.Types()))
			}
		}},
		{"records are found by owner and by the owner's name for them", func(e *env) {
			s := e.store(store.Options{})
			owned := func(name, origin, wire string) *store.Record {
				r := record("T", "m", name, "1")
				r.Origin, r.WireName = origin, wire
				return r
			}
			e.commit(s, store.Put(owned("zone-1.a", "zone-1", "a")), store.Put(owned("zone-1.ab", "zone-1", "ab")),
				store.Put(owned("zone-2.a", "zone-2", "a")), store.Put(owned("mine", "", "")))
			e.commit(s, store.Put(owned("zone-1.c", "zone-1", "c")))
			check := func(head *store.Snapshot, origin string, want ...string) {
				var got []string
				for r := range head.ByOrigin("T", origin) {
					got = append(got, r.Key.Name)
				}
				e.equal("records of "+origin, want, got)
			}
			wire := func(head *store.Snapshot, origin, name string) string {
				r, ok := head.ByWireName("T", origin, "m", name)
				if !ok {
					return ""
				}
				return r.Key.Name
			}
			for _, head := range []*store.Snapshot{s.Snapshot(), e.restart(s, store.Options{}).Snapshot()} {
				check(head, "zone-1", "zone-1.a", "zone-1.ab", "zone-1.c")
				check(head, "zone-2", "zone-2.a")
				check(head, "", "mine")
				check(head, "zone")
				e.equal("by wire name", []string{"zone-1.a", "zone-2.a", "", "", ""},
					[]string{wire(head, "zone-1", "a"), wire(head, "zone-2", "a"), wire(head, "zone-1", ""), wire(head, "", "a"), wire(head, "zone-2", "ab")})
			}
			s = e.opened[len(e.opened)-1]
			e.commit(s, store.Put(owned("zone-1.a", "zone-2", "b")), store.Delete(key("T", "m", "zone-1.ab")))
			check(s.Snapshot(), "zone-1", "zone-1.c")
			check(s.Snapshot(), "zone-2", "zone-1.a", "zone-2.a")
			e.equal("by wire name", []string{"", "zone-1.a"}, []string{wire(s.Snapshot(), "zone-1", "a"), wire(s.Snapshot(), "zone-2", "b")})
			// A batch may hand a wire name from one record to another.
			e.commit(s, store.Delete(key("T", "m", "zone-2.a")), store.Put(owned("zone-2.a2", "zone-2", "a")))
			e.equal("wire name handed on", "zone-2.a2", wire(s.Snapshot(), "zone-2", "a"))
		}},
		{"a newer snapshot is announced", func(e *env) {
			s := e.store(store.Options{})
			old := s.Snapshot()
			select {
			case <-old.Next():
				e.fatalf("announced before any write")
			default:
			}
			e.commit(s, store.Put(full("a")))
			select {
			case <-old.Next():
			default:
				e.fatalf("not announced although the write was answered")
			}
			head := s.Snapshot()
			e.commit(s, store.Put(full("a"))) // nothing changes
			select {
			case <-head.Next():
				e.fatalf("announced although nothing changed")
			default:
			}
		}},
	}
}

// full returns a record with every field set.
func full(name string) *store.Record {
	return &store.Record{
		Key:      key("T", "m", name),
		Spec:     []byte("\x00\xff spec\n"),
		Labels:   map[string]string{"k": "v", "": "empty", "größe": "ß\x00", "kuma.io/zone": ""},
		Origin:   "zone-1",
		WireName: "wire-" + name,
		Created:  time.Date(2024, 2, 29, 12, 0, 0, 123456789, time.UTC),
		Modified: time.Date(1969, 12, 31, 23, 59, 59, 1, time.UTC),
	}
}

func durabilityCases() []Case {
	return []Case{
		{"a record survives a restart in every field", func(e *env) {
			s := e.store(store.Options{})
			empty := record("T", "m", "empty", "")
			empty.Spec, empty.Labels = []byte{}, map[string]string{}
			epoch := record("T", "m", "epoch", "1")
			epoch.Created, epoch.Modified = time.Unix(0, 0), time.Date(1, 1, 1, 0, 0, 0, 1, time.UTC)
			rev := e.commit(s, store.Put(full("full")), store.Put(empty), store.Put(epoch), store.Put(record("G", "", "g", "1")))
			for _, head := range []*store.Snapshot{s.Snapshot(), e.restart(s, store.Options{}).Snapshot()} {
				want := full("full")
				want.Version, want.CreateRevision = rev, rev
				e.equal("full record", want, e.get(head, want.Key))
				e.equal("empty record", &store.Record{Key: empty.Key, Version: rev, CreateRevision: rev}, e.get(head, empty.Key))
				got := e.get(head, epoch.Key)
				if !got.Created.Equal(epoch.Created) || !got.Modified.Equal(epoch.Modified) || got.Created.Location() != time.UTC {
					e.fatalf("times %v and %v became %v and %v", epoch.Created, epoch.Modified, got.Created, got.Modified)
				}
			}
		}},
		{"everything survives a restart", func(e *env) {
			o := store.Options{MaxTombstones: 5}
			s := e.store(o)
			random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // the same every time
			for i := range 200 {
				name := fmt.Sprint(random.IntN(40))
				switch i % 5 {
				case 0:
					e.commit(s, store.Delete(key("T", "m", name)), store.Put(record("U", "", name, fmt.Sprint(i))))
				case 1:
					e.commit(s, store.Delete(key("U", "", name)), store.Put(record("T", "n", name, fmt.Sprint(i))))
				default:
					r := full(name)
					r.Spec = fmt.Append(nil, i)
					e.commit(s, store.Put(r), store.Delete(key("T", "n", name)))
				}
				if i%50 == 49 {
					before := e.content(s.Snapshot())
					s = e.restart(s, o)
					e.equal("content after a restart", before, e.content(s.Snapshot()))
				}
			}
			if s.Snapshot().Compacted() == 0 {
				e.fatalf("nothing was compacted: the case tests too little")
			}
		}},
		{"a group of batches is durable as a whole", func(e *env) {
			s := e.store(store.Options{})
			e.commit(s, store.Put(full("old")))
			release := e.hold(s)
			var waiting []<-chan result
			for i := range 20 {
				ops := []store.Op{store.Put(full(fmt.Sprint(i)))}
				if i == 10 {
					ops = append(ops, store.Delete(key("T", "m", "old")))
				}
				if i == 15 {
					ops = append(ops, store.Put(full("old"))) // recreated within the group
				}
				waiting = append(waiting, e.queued(e.ctx, s, batch(ops...)))
			}
			release()
			for _, ch := range waiting {
				e.must("update", (<-ch).Err)
			}
			before := e.content(s.Snapshot())
			e.equal("revision", store.Revision(21), before.Revision)
			e.equal("records", 21, len(before.Records))
			s = e.restart(s, store.Options{})
			e.equal("content after a restart", before, e.content(s.Snapshot()))
		}},
		{"what 32 concurrent writers were told is there after a restart", func(e *env) {
			s := e.store(store.Options{})
			const writers, writes = 32, 20
			var mu sync.Mutex
			acknowledged := map[store.Revision]store.Key{}
			g, ctx := errgroup.WithContext(e.ctx)
			for w := range writers {
				g.Go(func() error {
					for i := range writes {
						r := record("T", fmt.Sprint("mesh-", w%3), fmt.Sprintf("%d-%d", w, i), "1")
						rev, err := s.Update(ctx, batch(store.Put(r)))
						if err != nil {
							return err
						}
						if got, ok := s.Snapshot().Get(r.Key); !ok || got.Version != rev {
							return fmt.Errorf("%s was answered with revision %d but is not in the snapshot so", r.Key, rev)
						}
						mu.Lock()
						acknowledged[rev] = r.Key
						mu.Unlock()
					}
					return nil
				})
			}
			e.must("concurrent writers", g.Wait())
			s = e.restart(s, store.Options{})
			e.equal("head", store.Revision(writers*writes), s.Snapshot().Revision())
			e.equal("revisions answered", writers*writes, len(acknowledged))
			for rev := store.Revision(1); rev <= writers*writes; rev++ {
				k, ok := acknowledged[rev]
				if !ok {
					e.fatalf("nobody was answered revision %d", rev)
				}
				if got := e.get(s.Snapshot(), k).Version; got != rev {
					e.fatalf("%s has version %d, was answered %d", k, got, rev)
				}
			}
		}},
	}
}

func historyCases() []Case {
	brief := func(changes []store.Change) []string {
		var out []string
		for _, ch := range changes {
			verb := "put"
			if ch.Record == nil {
				verb = "delete"
			} else if ch.Record.Version != ch.Revision || ch.Record.Key != ch.Key || ch.Record.Origin != ch.Origin {
				verb = "put that contradicts its record"
			}
			out = append(out, fmt.Sprintf("%d %s %s", ch.Revision, verb, ch.Key))
		}
		return out
	}
	return []Case{
		{"changes are the last change of each key, in commit order", func(e *env) {
			s := e.store(store.Options{})
			put := func(name, spec string) store.Op { return store.Put(record("T", "m", name, spec)) }
			del := func(name string) store.Op { return store.Delete(key("T", "m", name)) }
			e.commit(s, put("a", "1"), put("b", "1"), put("c", "1"))           // 1
			e.commit(s, put("d", "1"), store.Put(record("TT", "m", "a", "1"))) // 2
			e.commit(s, del("b"), put("e", "1"), del("a"))                     // 3
			e.commit(s, put("c", "2"))                                         // 4
			e.commit(s, put("b", "2"))                                         // 5: recreated
			e.commit(s, put("f", "1"))                                         // 6
			e.commit(s, del("f"), store.Put(record("S", "", "z", "1")))        // 7
			for _, head := range []*store.Snapshot{s.Snapshot(), e.restart(s, store.Options{}).Snapshot()} {
				all := []string{"2 put T/m/d", "3 delete T/m/a", "3 put T/m/e", "4 put T/m/c", "5 put T/m/b", "7 delete T/m/f"}
				for after, want := range map[store.Revision][]string{0: all, 1: all, 2: all[1:], 3: all[3:], 4: all[4:], 5: all[5:], 6: all[5:], 7: nil} {
					e.equal(fmt.Sprint("changes since ", after), want, brief(e.changes(head, "T", after)))
				}
				e.equal("changes of TT", []string{"2 put TT/m/a"}, brief(e.changes(head, "TT", 0)))
				e.equal("changes of an unknown type", []string(nil), brief(e.changes(head, "X", 0)))
				e.equal("last changes", []store.Revision{7, 2, 7, 0},
					[]store.Revision{head.LastChange("T"), head.LastChange("TT"), head.LastChange("S"), head.LastChange("X")})
				e.equal("created again", store.Revision(5), e.get(head, key("T", "m", "b")).CreateRevision)
			}
		}},
		{"a deletion tells whose record it was", func(e *env) {
			s := e.store(store.Options{})
			e.commit(s, store.Put(full("a")))
			rev := e.commit(s, store.Delete(full("a").Key))
			for _, head := range []*store.Snapshot{s.Snapshot(), e.restart(s, store.Options{}).Snapshot()} {
				e.equal("changes", []store.Change{{Key: full("a").Key, Origin: "zone-1", Revision: rev}}, e.changes(head, "T", 0))
			}
		}},
		{"changes before the oldest known deletion are refused", func(e *env) {
			o := store.Options{MaxTombstones: 10}
			s := e.store(o)
			for i := range 30 {
				ops := []store.Op{store.Put(record("T", "m", fmt.Sprint(i), "1"))}
				if i == 0 {
					ops = append(ops, store.Put(record("U", "m", "u", "1")))
				}
				e.commit(s, ops...)
			}
			for i := range 20 {
				e.commit(s, store.Delete(key("T", "m", fmt.Sprint(i))))
			}
			for _, head := range []*store.Snapshot{s.Snapshot(), e.restart(s, o).Snapshot()} {
				compacted := head.Compacted()
				if compacted < 38 || compacted > 40 {
					e.fatalf("20 of at most 10 deletions, the last at revision 50: compacted to %d", compacted)
				}
				if _, err := head.Changes("T", compacted-1); !errors.Is(err, store.ErrCompacted) {
					e.fatalf("changes since revision %d: %v", compacted-1, err)
				}
				e.equal("changes of a type that has not changed since", []string(nil), brief(e.changes(head, "U", 1)))
				e.equal("changes since the compacted revision", int(50-compacted), len(e.changes(head, "T", compacted)))
			}
		}},
		{"changes since a revision that is not reached are refused", func(e *env) {
			s := e.store(store.Options{})
			v := e.commit(s, store.Put(full("a")))
			if _, err := s.Snapshot().Changes("T", v+1); !errors.Is(err, store.ErrCompacted) {
				e.fatalf("changes since the future: %v", err)
			}
		}},
		{"deletions are forgotten when they are old", func(e *env) {
			o := store.Options{TombstoneRetention: -1}
			s := e.store(o)
			e.commit(s, store.Put(full("a")), store.Put(full("b")), store.Put(record("U", "", "u", "1")))
			e.commit(s, store.Delete(full("a").Key))
			e.commit(s, store.Delete(full("b").Key))
			e.commit(s, store.Put(full("c")))
			for _, head := range []*store.Snapshot{s.Snapshot(), e.restart(s, o).Snapshot()} {
				e.equal("compacted", store.Revision(3), head.Compacted())
				e.equal("changes", []string{"4 put T/m/c"}, brief(e.changes(head, "T", 3)))
			}
			e.must("close", e.opened[len(e.opened)-1].Close())
			b, err := e.open()
			e.must("open the backend", err)
			_, err = b.Load(e.ctx, func(*store.Record) error { return nil }, func(t store.Tombstone) error {
				return fmt.Errorf("the tombstone of %s is still stored", t.Key)
			})
			e.must("load", errors.Join(err, b.Close()))
		}},
		{"the last change of a type is known though its deletion is forgotten", func(e *env) {
			o := store.Options{MaxTombstones: -1}
			s := e.store(o)
			e.commit(s, store.Put(full("a")), store.Put(full("b")), store.Put(record("U", "", "u", "1")), store.Put(record("U", "", "v", "1")))
			e.commit(s, store.Delete(full("a").Key), store.Delete(full("b").Key))
			e.commit(s, store.Delete(key("U", "", "u")))
			e.commit(s, store.Put(record("V", "", "v", "1")))
			for _, head := range []*store.Snapshot{s.Snapshot(), e.restart(s, o).Snapshot()} {
				e.equal("last changes", []store.Revision{2, 3}, []store.Revision{head.LastChange("T"), head.LastChange("U")})
			}
		}},
	}
}

func watchCases() []Case {
	return []Case{
		{"a watch replays to the very state of its snapshot, under concurrent writers", func(e *env) {
			s := e.store(store.Options{})
			const writers, writes = 8, 40
			ctx, stop := context.WithCancel(e.ctx)
			defer stop()
			g, ctx := errgroup.WithContext(ctx)
			for w := range writers {
				g.Go(func() error {
					for i := range writes {
						name := fmt.Sprint((w*7 + i) % 10)
						op := store.Put(record("T", "m", name, fmt.Sprintf("%d-%d", w, i)))
						if i%3 == 2 {
							op = store.Delete(key("T", "m", name))
						}
						marker := store.Put(record("U", "", fmt.Sprint(w), fmt.Sprint(i)))
						if _, err := s.Update(ctx, batch(op, marker)); err != nil {
							return err
						}
					}
					return nil
				})
			}
			for watcher := range 3 {
				g.Go(func() error {
					state := map[store.Key]store.Revision{}
					var at store.Revision
					for step, err := range s.Watch(ctx, 0, "T", "U") {
						if err != nil {
							return fmt.Errorf("watcher %d: %w", watcher, err)
						}
						if step.From != at || step.To <= step.From || step.To != step.Snapshot.Revision() {
							return fmt.Errorf("step from %d to %d (snapshot at %d) follows revision %d", step.From, step.To, step.Snapshot.Revision(), at)
						}
						seen := map[store.Key]bool{}
						last := step.From
						for _, c := range step.List {
							if c.Revision <= step.From || c.Revision > step.To || c.Revision < last || seen[c.Key] {
								return fmt.Errorf("step from %d to %d has %s at %d out of order, out of range or twice", step.From, step.To, c.Key, c.Revision)
							}
							seen[c.Key], last = true, c.Revision
							if c.Record == nil {
								delete(state, c.Key)
							} else {
								state[c.Key] = c.Record.Version
							}
						}
						want := map[store.Key]store.Revision{}
						for _, typ := range []string{"T", "U"} {
							for r := range step.Snapshot.List(typ, "") {
								want[r.Key] = r.Version
							}
						}
						if !maps.Equal(want, state) {
							return fmt.Errorf("replayed to revision %d: have %v, want %v", step.To, state, want)
						}
						if at = step.To; at == writers*writes {
							return nil
						}
					}
					return errors.New("watch ended without an error")
				})
			}
			e.must("writers and watchers", g.Wait())
		}},
		{"a watch of some types does not see the others", func(e *env) {
			// Deletions are forgotten at once, which must not hurt who watches another type.
			s := e.store(store.Options{MaxTombstones: -1})
			ctx, stop := context.WithCancel(e.ctx)
			defer stop()
			steps := make(chan store.Changes)
			var g errgroup.Group
			g.Go(func() error {
				defer close(steps)
				for step, err := range s.Watch(ctx, 0, "T") {
					if err != nil {
						return err
					}
					select {
					case steps <- step:
					case <-ctx.Done():
					}
				}
				return errors.New("watch ended without an error")
			})
			next := func() store.Changes {
				step, ok := <-steps
				if !ok {
					e.fatalf("watch ended: %w", g.Wait())
				}
				return step
			}
			e.commit(s, store.Put(record("T", "m", "a", "1")))
			first := next()
			for i := range 50 {
				e.commit(s, store.Put(record("U", "m", fmt.Sprint(i), "1")))
				e.commit(s, store.Delete(key("U", "m", fmt.Sprint(i))))
				time.Sleep(50 * time.Microsecond) // mostly lets the watch look at each
			}
			last := e.commit(s, store.Put(record("T", "m", "a", "2")))
			second := next()
			e.equal("range of the steps", []store.Revision{0, 1, 1, last}, []store.Revision{first.From, first.To, second.From, second.To})
			e.equal("changes of the second step", 1, len(second.List))
			stop()
			if err := g.Wait(); !errors.Is(err, context.Canceled) {
				e.fatalf("watch ended: %w", err)
			}
		}},
		{"what a watch missed while busy comes merged", func(e *env) {
			s := e.store(store.Options{})
			e.commit(s, store.Put(record("T", "m", "a", "1")))
			steps := 0
			for step, err := range s.Watch(e.ctx, 0) {
				e.must("watch", err)
				if steps++; steps == 1 {
					for i := range 100 {
						e.commit(s, store.Put(record("T", "m", "a", fmt.Sprint("again ", i))))
					}
					e.commit(s, store.Put(record("U", "m", "b", "1")), store.Delete(key("T", "m", "absent")))
					continue
				}
				e.equal("merged step", []store.Revision{1, 102, 101, 102},
					[]store.Revision{step.From, step.To, step.List[0].Revision, step.List[1].Revision})
				e.equal("changes", 2, len(step.List))
				break
			}
		}},
		{"a watch ends with the reason", func(e *env) {
			s := e.store(store.Options{MaxTombstones: -1})
			e.commit(s, store.Put(full("a")), store.Put(full("b")))
			e.commit(s, store.Delete(full("a").Key))
			e.commit(s, store.Delete(full("b").Key))
			head := s.Snapshot().Revision()
			only := func(ctx context.Context, from store.Revision) error {
				for step, err := range s.Watch(ctx, from, "T") {
					if err != nil {
						return err
					}
					e.fatalf("unexpected step %v", step)
				}
				return errors.New("ended without an error")
			}
			if err := only(e.ctx, 1); !errors.Is(err, store.ErrCompacted) {
				e.fatalf("from a compacted revision: %v", err)
			}
			if err := only(e.ctx, head+1); !errors.Is(err, store.ErrCompacted) {
				e.fatalf("from the future: %v", err)
			}
			ctx, cancel := context.WithCancel(e.ctx)
			cancel()
			if err := only(ctx, head); !errors.Is(err, context.Canceled) {
				e.fatalf("canceled: %v", err)
			}
			e.must("close", s.Close())
			if err := only(e.ctx, head); !errors.Is(err, store.ErrClosed) {
				e.fatalf("closed: %v", err)
			}
		}},
	}
}

func failureCases() []Case {
	return []Case{
		{"a failed append fails its whole group and every later write", func(e *env) {
			b, err := e.open()
			e.must("open the backend", err)
			cause := errors.New("disk full")
			var broken atomic.Bool
			s := e.storeOn(FailAppends(b, func(store.Group) error {
				if broken.Load() {
					return cause
				}
				return nil
			}), store.Options{})
			e.commit(s, store.Put(full("a")))
			before, old := e.content(s.Snapshot()), s.Snapshot()

			broken.Store(true)
			release := e.hold(s)
			conflictBefore := e.queued(e.ctx, s, batch(store.Put(full("a")).If(9)))
			group := []<-chan result{
				e.queued(e.ctx, s, batch(store.Put(full("b")))),
				e.queued(e.ctx, s, batch(store.Put(full("c")))),
				e.queued(e.ctx, s, batch(store.Put(full("b")).If(0))), // a conflict only with what is not durable
				e.queued(e.ctx, s, batch(store.Put(full("b")))),       // unchanged, likewise
			}
			release()
			if r := <-conflictBefore; !errors.Is(r.Err, store.ErrConflict) {
				e.fatalf("a conflict with the durable state: %v", r.Err)
			}
			for i, ch := range group {
				if r := <-ch; !errors.Is(r.Err, store.ErrUnavailable) || !errors.Is(r.Err, cause) {
					e.fatalf("batch %d of the failed group: %v", i, r.Err)
				}
			}
			broken.Store(false)
			e.refused(s, store.ErrUnavailable, store.Put(full("d")))
			e.refused(s, store.ErrUnavailable)
			if !errors.Is(s.Err(), store.ErrUnavailable) {
				e.fatalf("Err: %v", s.Err())
			}
			e.equal("what is read after the failure", before, e.content(s.Snapshot()))
			select {
			case <-old.Next():
				e.fatalf("a snapshot was announced")
			default:
			}
			s = e.restart(s, store.Options{})
			e.must("after a restart", s.Err())
			e.equal("content after a restart", before, e.content(s.Snapshot()))
			e.equal("next revision", store.Revision(2), e.commit(s, store.Put(full("b"))))
		}},
		{"a closed store refuses writes and is read on", func(e *env) {
			s := e.store(store.Options{})
			e.commit(s, store.Put(full("a")))
			before := e.content(s.Snapshot())
			release := e.hold(s)
			last := e.queued(e.ctx, s, batch(store.Put(full("b"))))
			closed := make(chan error, 1)
			go func() { closed <- s.Close() }()
			for s.Err() == nil {
				time.Sleep(50 * time.Microsecond)
			}
			e.refused(s, store.ErrClosed, store.Put(full("c")))
			release()
			e.must("the batch that waited when the store was closed", (<-last).Err)
			e.must("close", <-closed)
			e.must("close again", s.Close())
			e.refused(s, store.ErrClosed, store.Put(full("c")))
			if !errors.Is(s.Err(), store.ErrClosed) {
				e.fatalf("Err: %v", s.Err())
			}
			s = e.store(store.Options{})
			e.equal("records after reopening", len(before.Records)+1, s.Snapshot().Count("T", ""))
		}},
		{"an update whose caller left before its turn is not applied", func(e *env) {
			s := e.store(store.Options{})
			release := e.hold(s)
			ctx, leave := context.WithCancel(e.ctx)
			gone := e.queued(ctx, s, batch(store.Put(full("gone"))))
			stays := e.queued(e.ctx, s, batch(store.Put(full("stays"))))
			leave()
			if r := <-gone; !errors.Is(r.Err, context.Canceled) {
				e.fatalf("answered %v", r.Err)
			}
			release()
			e.equal("answer to the other", result{Rev: 1}, func() result { return <-stays }())
			if _, ok := s.Snapshot().Get(full("gone").Key); ok {
				e.fatalf("applied")
			}
		}},
		{"a full queue makes writers wait, and lets them leave", func(e *env) {
			s := e.store(store.Options{QueueLength: 1})
			release := e.hold(s)
			waits := e.queued(e.ctx, s, batch(store.Put(full("a"))))
			ctx, cancel := context.WithTimeout(e.ctx, 5*time.Millisecond)
			defer cancel()
			if _, err := s.Update(ctx, batch(store.Put(full("b")))); !errors.Is(err, context.DeadlineExceeded) {
				e.fatalf("the writer that found no place: %v", err)
			}
			release()
			e.must("the writer in the queue", (<-waits).Err)
		}},
	}
}
