package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
)

// remove deletes a record as synchronisation would.
func (p *plane) remove(typ resource.Type, mesh, name string) {
	p.t.Helper()
	key := store.Key{Type: string(typ), Mesh: mesh, Name: name}
	if _, err := p.store.Update(p.t.Context(), func(*store.Snapshot) ([]store.Op, error) {
		return []store.Op{store.Delete(key)}, nil
	}); err != nil {
		p.t.Fatal(err)
	}
}

func TestAWatchOfOverviewsTellsOfTheResourceAndOfItsInsight(t *testing.T) {
	for _, tc := range []struct {
		path, mesh    string
		main, insight resource.Type
	}{
		{"/dataplanes+insights", "demo", resource.Dataplane, resource.DataplaneInsight},
		{"/meshes/demo/dataplanes+insights", "demo", resource.Dataplane, resource.DataplaneInsight},
		{"/zones+insights", "", resource.ZoneType, resource.ZoneInsight},
		{"/zoneingresses+insights", "", resource.ZoneIngress, resource.ZoneIngressInsight},
		{"/zoneegressoverviews", "", resource.ZoneEgress, resource.ZoneEgressInsight},
	} {
		t.Run(tc.path, func(t *testing.T) {
			p, client, url := serving(t)
			put := func(typ resource.Type, name string, modified int) *store.Record {
				rec := record(t, typ, tc.mesh, name, "", nil)
				rec.Modified = rec.Modified.Add(time.Duration(modified) * time.Minute)
				return rec
			}
			p.seed(put(tc.main, "a", 0), put(tc.insight, "a", 0), put(tc.main, "b", 0), put(tc.insight, "orphan", 0))
			w := mustWatch(t, client, url+tc.path+"?watch=true", "")
			w.wants(t, "added a", "added b", "bookmark 1 1")

			p.seed(put(tc.insight, "b", 0)) // the insight appears
			w.wants(t, "modified b 2")
			p.seed(put(tc.insight, "b", 1)) // it changes
			w.wants(t, "modified b 3")
			p.remove(tc.insight, tc.mesh, "b") // it goes
			w.wants(t, "modified b 4")
			p.seed(put(tc.main, "a", 1)) // the resource changes
			w.wants(t, "modified a 5")
			p.seed(put(tc.main, "a", 2), put(tc.insight, "a", 2)) // both do, which is one event
			w.wants(t, "modified a 6")
			p.seed(put(tc.insight, "orphan", 1)) // no resource, no overview
			p.seed(put(tc.main, "orphan", 0))
			ev, err := w.next()
			if err != nil {
				t.Fatal(err)
			}
			list := object(t, p.want(200, "GET", tc.path, "").Body)["items"].([]any)
			if ev.Kind != eventAdded || ev.ID != p.store.ID()+"-8" {
				t.Errorf("got %+v", ev)
			}
			if diff := cmp.Diff(list[2], any(object(t, ev.Data))); diff != "" {
				t.Errorf("the event is not the list's item: %s", diff)
			}
			p.remove(tc.main, tc.mesh, "a") // the resource goes; its insight stays
			if ev, err = w.next(); err != nil {
				t.Fatal(err)
			}
			want := map[string]any{"type": string(tc.main) + "Overview", "name": "a"}
			if tc.mesh != "" {
				want["mesh"] = tc.mesh
			}
			if diff := cmp.Diff(want, object(t, ev.Data)); diff != "" || ev.Kind != eventDeleted {
				t.Errorf("%s: %s", ev.Kind, diff)
			}
			p.remove(tc.insight, tc.mesh, "a")
			p.seed(put(tc.main, "c", 0))
			w.wants(t, "added c 11")

			mustWatch(t, client, url+tc.path+"?watch=true", p.store.ID()+"-3").
				wants(t, "added orphan", "deleted a", "added c", "modified b 11")
			mustWatch(t, client, url+tc.path+"?watch=true&name=orph", "").wants(t, "added orphan", "bookmark 11 11")
		})
	}
}

func TestAWatchOfOverviewsFollowsItsFilters(t *testing.T) {
	p, client, url := serving(t)
	put := func(mesh, name, service string) {
		p.seed(record(t, resource.Dataplane, mesh, name, "zone-1", dataplane(t, service == "gateway", map[string]string{"kuma.io/service": service})))
	}
	insight := func(name string, n uint32) {
		p.seed(record(t, resource.DataplaneInsight, "demo", name, "zone-1",
			&meshv1.DataplaneInsight{Subscriptions: []*meshv1.DiscoverySubscription{{Generation: n}}}))
	}
	put("demo", "a", "web")
	put("demo", "b", "api")
	put("other", "a", "web")
	webs := url + "/meshes/demo/dataplanes+insights?watch=true&tag=kuma.io/service:web"
	w := mustWatch(t, client, webs, "")
	w.wants(t, "added a", "bookmark 3 3")
	insight("a", 1) // 4: selected
	w.wants(t, "modified a 4")
	insight("b", 1)          // 5: not selected
	put("other", "b", "web") // 6: of another mesh
	put("demo", "b", "web")  // 7: enters
	w.wants(t, "added b 7")
	insight("b", 2)
	w.wants(t, "modified b 8")
	put("demo", "a", "api") // 9: leaves
	w.wants(t, "deleted a 9")
	insight("a", 2)                           // 10: has left
	p.remove(resource.Dataplane, "demo", "a") // 11: and goes
	put("demo", "c", "api")                   // 12: never was
	put("demo", "b", "gateway")               // 13
	w.wants(t, "deleted b 13")

	id := p.store.ID()
	gateways := url + "/dataplanes+insights?watch=true&gateway=true"
	mustWatch(t, client, gateways, "").wants(t, "added b", "bookmark 13 13")
	for _, tc := range []struct {
		name, url, after string
		then             func()
		want             []string
	}{
		// What changed since is told as if it had been shown: c never was.
		{"those that left", webs, "8", nil, []string{"deleted a", "deleted c", "deleted b 13"}},
		{"one that entered", gateways, "12", nil, []string{"added b 13"}},
		{"one that is shown and whose insight changes", gateways, "13", func() { insight("b", 3) }, []string{"modified b 14"}},
		{"one that is not shown and whose insight changes", gateways, "14", func() {
			insight("c", 1)
			put("demo", "b", "gateway") // nothing changes
			insight("b", 4)
		}, []string{"modified b 16"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := mustWatch(t, client, tc.url, id+"-"+tc.after)
			if tc.then != nil {
				tc.then()
			}
			w.wants(t, tc.want...)
		})
	}
}

func TestAWatchOfOverviewsThatCannotGoOnIsGone(t *testing.T) {
	for _, forgotten := range []resource.Type{resource.ZoneType, resource.ZoneInsight} {
		t.Run(string(forgotten), func(t *testing.T) {
			st, err := store.Open(t.Context(), memory.New(), store.Options{MaxTombstones: -1})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = st.Close() }()
			p, client, url := serving(t, func(o *Options) { o.Store = st })
			p.seed(record(t, resource.ZoneType, "", "a", "", nil), record(t, resource.ZoneInsight, "", "a", "", nil))
			p.remove(forgotten, "", "a")
			p.seed(record(t, forgotten, "", "b", "", nil)) // with this change the deletion is forgotten
			_, err = watch(t.Context(), client, url+"/zones+insights?watch=true", st.ID()+"-1")
			if failure, ok := errors.AsType[*statusError](err); !ok || failure.status != 410 {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestAWatchOfZonesShowsWhatTheLiveSessionKnows(t *testing.T) {
	insight := func(id string) *systemv1.ZoneInsight {
		return &systemv1.ZoneInsight{Subscriptions: []*systemv1.KDSSubscription{{Id: id}}}
	}
	p, client, url := serving(t, func(o *Options) {
		o.Zones = sessions{insight: map[string]*systemv1.ZoneInsight{"a": insight("live")}}
	})
	p.seed(record(t, resource.ZoneType, "", "a", "", nil))
	w := mustWatch(t, client, url+"/zones+insights?watch=true", "")
	for i, want := range []string{eventAdded, eventBookmark, eventModified} {
		ev, err := w.next()
		if err != nil {
			t.Fatal(err)
		}
		if ev.Kind != want || (want != eventBookmark && !strings.Contains(ev.Data, `"id":"live"`)) {
			t.Errorf("event %d: got %+v, want %s", i, ev, want)
		}
		if want == eventBookmark {
			p.seed(record(t, resource.ZoneInsight, "", "a", "", insight("stored")))
		}
	}
}

// Dataplanes and their insights come, change and go at random. A client that now and then takes one step late, or
// connects anew and resumes, has at each step what a new watch is shown first.
func TestAWatchOfOverviewsMissesNothing(t *testing.T) {
	for _, query := range []string{"", "tag=v:1", "gateway=true", "name=1"} {
		t.Run(query, func(t *testing.T) {
			p := newPlane(t, resource.Global)
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			rng := rand.New(rand.NewPCG(seed, 0))
			values, err := url.ParseQuery(query)
			if err != nil {
				t.Fatal(err)
			}
			newFeed := func() *overviewFeed {
				o := overviews()[0]
				o.Server = p.srv
				f := &overviewFeed{overview: o, only: filter{name: values.Get("name")}, shown: map[store.Key]bool{}}
				if f.dataplanes, err = dataplaneFilterOf(values, ""); err != nil {
					t.Fatal(err)
				}
				return f
			}
			state := map[string]string{} // by name
			feed, after := newFeed(), store.Revision(0)
			resumed, told := 0, 0
			for range 1500 {
				for range rng.IntN(4) {
					name := fmt.Sprintf("d%d", rng.IntN(12))
					typ := []resource.Type{resource.Dataplane, resource.DataplaneInsight}[rng.IntN(2)]
					if rng.IntN(3) == 0 {
						p.remove(typ, "demo", name)
						continue
					}
					rec := record(t, typ, "demo", name, "", nil)
					if typ == resource.Dataplane {
						rec = record(t, typ, "demo", name, "", dataplane(t, rng.IntN(2) == 0, map[string]string{"v": fmt.Sprint(rng.IntN(2))}))
					}
					rec.Modified = rec.Modified.Add(time.Duration(rng.IntN(1000)) * time.Second)
					p.seed(rec)
				}
				snap := p.store.Snapshot()
				if rng.IntN(5) == 0 {
					resumed++
					feed = newFeed()
					if err := feed.resume(snap, after); err != nil {
						t.Fatal(err)
					}
					if rng.IntN(2) == 0 { // what is told is newer than what it resumed at
						p.seed(record(t, resource.Dataplane, "demo", "d1", "", dataplane(t, true, map[string]string{"v": fmt.Sprint(rng.IntN(2))})))
						snap = p.store.Snapshot()
					}
				}
				changes, err := changesOf(snap, after, []string{string(resource.Dataplane), string(resource.DataplaneInsight)})
				if err != nil {
					t.Fatal(err)
				}
				seen := map[string]bool{}
				for ev, err := range feed.since(snap, after, changes) {
					if err != nil {
						t.Fatal(err)
					}
					told++
					name := nameOf(t, ev)
					if _, has := state[name]; ev.kind == eventModified && !has || seen[name] {
						t.Fatalf("at %d: %s %s, known: %t, told before: %t", snap.Revision(), ev.kind, name, has, seen[name])
					}
					seen[name] = true
					state[name] = string(ev.data)
					if ev.kind == eventDeleted {
						delete(state, name)
					}
				}
				after = snap.Revision()
				want := map[string]string{}
				for ev, err := range newFeed().initial(snap) {
					if err != nil {
						t.Fatal(err)
					}
					want[nameOf(t, ev)] = string(ev.data)
				}
				if diff := cmp.Diff(want, state); diff != "" {
					t.Fatalf("at %d: %s", after, diff)
				}
			}
			if t.Logf("%d revisions, %d events, %d resumed", after, told, resumed); told == 0 || resumed == 0 {
				t.Error("nothing was told, or no watch resumed")
			}
		})
	}
}

func nameOf(t *testing.T, ev event) string {
	t.Helper()
	var data struct{ Name string }
	if err := json.Unmarshal(ev.data, &data); err != nil {
		t.Fatal(err)
	}
	return data.Name
}
