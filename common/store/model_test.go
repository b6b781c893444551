package store_test

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
)

// model is the store as a map and a list of every change ever made: plainly right, and slow.
type model struct {
	records map[store.Key]store.Record
	log     []store.Change // revision order
	head    store.Revision
}

func (m *model) commit(ops []store.Op) (store.Revision, bool) {
	for _, op := range ops {
		if op.IfVersion != nil && *op.IfVersion != m.records[op.Key].Version {
			return 0, false
		}
	}
	next := m.head + 1
	for _, op := range ops {
		old, exists := m.records[op.Key]
		switch {
		case op.Record == nil && exists:
			delete(m.records, op.Key)
			m.log = append(m.log, store.Change{Key: op.Key, Origin: old.Origin, Revision: next})
		case op.Record != nil:
			r := *op.Record
			r.Version, r.CreateRevision = next, next
			if exists {
				r.Version, r.CreateRevision = old.Version, old.CreateRevision
				if gocmp.Equal(r, old) {
					continue
				}
				r.Version = next
			}
			m.records[op.Key] = r
			m.log = append(m.log, store.Change{Key: op.Key, Record: &r, Origin: r.Origin, Revision: next})
		default:
			continue
		}
		m.head = next
	}
	return m.head, true
}

func (m *model) list(typ string, keep func(store.Record) bool) []store.Record {
	var out []store.Record
	for _, r := range m.records {
		if r.Key.Type == typ && keep(r) {
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b store.Record) int { return compareKeys(a.Key, b.Key) })
	return out
}

// changes is the last entry of the log for each key of the type after the revision.
func (m *model) changes(typ string, after store.Revision) []store.Change {
	last := map[store.Key]store.Change{}
	for _, c := range m.log {
		if c.Key.Type == typ && c.Revision > after {
			last[c.Key] = c
		}
	}
	return slices.SortedFunc(maps.Values(last), func(a, b store.Change) int {
		return cmp.Or(cmp.Compare(a.Revision, b.Revision), compareKeys(a.Key, b.Key))
	})
}

func (m *model) lastChange(typ string) store.Revision {
	var last store.Revision
	for _, c := range m.log {
		if c.Key.Type == typ {
			last = c.Revision
		}
	}
	return last
}

func compareKeys(a, b store.Key) int {
	return cmp.Or(cmp.Compare(a.Type, b.Type), cmp.Compare(a.Mesh, b.Mesh), cmp.Compare(a.Name, b.Name))
}

var (
	types   = rapid.SampledFrom([]string{"T", "TT"})
	meshes  = rapid.SampledFrom([]string{"", "m", "m2"})
	names   = rapid.SampledFrom([]string{"a", "ab", "b", "c-d"})
	origins = rapid.SampledFrom([]string{"", "z", "z2"})
	ops     = rapid.Custom(func(t *rapid.T) store.Op {
		op := store.Op{Key: store.Key{Type: types.Draw(t, "type"), Mesh: meshes.Draw(t, "mesh"), Name: names.Draw(t, "name")}}
		if rapid.IntRange(0, 2).Draw(t, "kind") > 0 {
			op.Record = &store.Record{Key: op.Key, Origin: origins.Draw(t, "origin"), Spec: []byte(rapid.SampledFrom([]string{"1", "2"}).Draw(t, "spec"))}
			if op.Record.Origin != "" {
				op.Record.WireName = op.Key.Name + op.Record.Origin
				op.Record.Created = time.Unix(1, 0).UTC()
			}
		}
		return op
	})
)

func TestTheStoreBehavesLikeAMapWithAListOfChanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{records: map[store.Key]store.Record{}}
		backend := memory.New()
		o := store.Options{MaxTombstones: rapid.SampledFrom([]int{-1, 3, 100}).Draw(t, "max tombstones")}
		open := func() *store.Store {
			s, err := store.Open(t.Context(), backend, o)
			if err != nil {
				t.Fatal(err)
			}
			return s
		}
		s := open()
		defer func() { _ = s.Close() }()
		old, oldRecords := s.Snapshot(), maps.Clone(m.records)
		t.Repeat(map[string]func(*rapid.T){
			"commit": func(t *rapid.T) {
				batch := rapid.SliceOfNDistinct(ops, 0, 4, func(op store.Op) store.Key { return op.Key }).Draw(t, "batch")
				for i, op := range batch {
					switch rapid.IntRange(0, 5).Draw(t, "precondition") {
					case 0:
						batch[i] = op.If(m.records[op.Key].Version)
					case 1:
						batch[i] = op.If(store.Revision(rapid.IntRange(0, 3).Draw(t, "version")))
					}
				}
				want, accepted := m.commit(batch)
				got, err := s.Update(t.Context(), func(*store.Snapshot) ([]store.Op, error) { return batch, nil })
				if accepted != (err == nil) || err != nil && !errors.Is(err, store.ErrConflict) || got != want {
					t.Fatalf("answered %d, %v; want %d, accepted %v", got, err, want, accepted)
				}
			},
			"keep a snapshot": func(*rapid.T) { old, oldRecords = s.Snapshot(), maps.Clone(m.records) },
			"restart": func(t *rapid.T) {
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				s = open()
			},
			"": func(t *rapid.T) {
				if err := check(s.Snapshot(), m); err != nil {
					t.Fatal(err)
				}
				if err := check(old, &model{records: oldRecords, head: old.Revision(), log: logUntil(m.log, old.Revision())}); err != nil {
					t.Fatalf("an old snapshot: %v", err)
				}
			},
		})
	})
}

func logUntil(log []store.Change, rev store.Revision) []store.Change {
	i := slices.IndexFunc(log, func(c store.Change) bool { return c.Revision > rev })
	if i < 0 {
		return log
	}
	return log[:i]
}

// check compares everything a snapshot says with the model.
func check(s *store.Snapshot, m *model) error {
	equal := func(what string, want, got any) error {
		if d := gocmp.Diff(want, got); d != "" {
			return fmt.Errorf("%s (-want +got):\n%s", what, d)
		}
		return nil
	}
	deref := func(seq func(func(*store.Record) bool)) []store.Record {
		var out []store.Record
		for r := range seq {
			out = append(out, *r)
		}
		return out
	}
	errs := []error{equal("revision", m.head, s.Revision())}
	for _, typ := range []string{"T", "TT", "absent"} {
		for _, mesh := range []string{"", "m", "m2"} {
			want := m.list(typ, func(r store.Record) bool { return mesh == "" || r.Key.Mesh == mesh })
			errs = append(errs, equal("list", want, deref(s.List(typ, mesh))), equal("count", len(want), s.Count(typ, mesh)))
		}
		for _, origin := range []string{"", "z", "z2"} {
			want := m.list(typ, func(r store.Record) bool { return r.Origin == origin })
			errs = append(errs, equal("by origin", want, deref(s.ByOrigin(typ, origin))))
			for _, r := range want {
				if got, ok := s.ByWireName(typ, origin, r.Key.Mesh, r.WireName); ok != (origin != "") || ok && got.Key != r.Key {
					errs = append(errs, fmt.Errorf("by wire name of %s: %v, %v", r.Key, got, ok))
				}
			}
		}
		errs = append(errs, equal("last change", m.lastChange(typ), s.LastChange(typ)))
		for after := s.Revision() - min(s.Revision(), 12); after <= s.Revision(); after++ {
			want := m.changes(typ, after)
			seq, err := s.Changes(typ, after)
			if err != nil {
				if !errors.Is(err, store.ErrCompacted) || after >= s.Compacted() {
					errs = append(errs, fmt.Errorf("changes of %s since %d, compacted %d: %w", typ, after, s.Compacted(), err))
				}
				continue
			}
			errs = append(errs, equal(fmt.Sprintf("changes of %s since %d", typ, after), want, slices.Collect(seq)))
		}
	}
	for k, r := range m.records {
		if got, ok := s.Get(k); !ok || !gocmp.Equal(*got, r) {
			errs = append(errs, fmt.Errorf("get %s: %v, %v", k, got, ok))
		}
	}
	return errors.Join(errs...)
}
