package insights

import (
	"fmt"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// mesh "m" with insights that are up to date, and quiet for long.
func quiet(t *testing.T) *rig {
	t.Helper()
	r := newRig(t, store.Options{})
	r.update(putMesh(t, "m"))
	r.start()
	r.pass(time.Minute)
	if n := len(r.written()); n != 1 {
		t.Fatalf("a new mesh made %d batches, want 1", n)
	}
	return r
}

func TestTheFirstChangeAfterAQuietTimeIsStoredAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := quiet(t)
		defer r.close()
		r.update(put(t, resource.Dataplane, "m", "a", workload(good("web"))))
		r.wait()
		if n := meshInsight(t, r.st.Snapshot(), "m").GetDataplanes().GetTotal(); n != 1 {
			t.Errorf("%d dataplanes", n)
		}
		if n := len(services(t, r.st.Snapshot(), "m").GetServices()); n != 1 {
			t.Errorf("%d services", n)
		}
		got := r.written()
		if len(got) != 1 {
			t.Fatalf("%d batches, want 1", len(got))
		}
		if diff := cmp.Diff([]store.Key{
			key(resource.MeshInsight, "", "m"), key(resource.ServiceInsight, "m", "all-services-m"),
		}, got[0].keys); diff != "" {
			t.Errorf("both insights come in one batch (-want +got):\n%s", diff)
		}
	})
}

func TestABurstIsStoredOnceASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := quiet(t)
		defer r.close()
		const changes, every = 1000, 5 * time.Millisecond // five seconds of changes
		for i := range changes {
			r.update(put(t, resource.Dataplane, "m", fmt.Sprint("dp-", i), workload(good("web"))))
			time.Sleep(every)
		}
		r.pass(time.Second)
		if n := meshInsight(t, r.st.Snapshot(), "m").GetDataplanes().GetTotal(); n != changes {
			t.Errorf("%d dataplanes within a second of the last, want %d", n, changes)
		}
		got := r.written()
		for i := 1; i < len(got); i++ {
			if gap := got[i].at.Sub(got[i-1].at); gap < time.Second {
				t.Errorf("two batches %s apart", gap)
			}
		}
		if len(got) < 5 || len(got) > 7 {
			t.Errorf("%d batches in five seconds", len(got))
		}
	})
}

// What a commit takes counts: the next batch begins a second after the one before began.
func TestASlowDiskDoesNotStretchTheInterval(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, store.Options{})
		r.update(putMesh(t, "m"))
		r.backend.latency = 300 * time.Millisecond
		r.start()
		defer r.close()
		r.pass(time.Minute)
		r.written()
		r.update(put(t, resource.Dataplane, "m", "a", workload(good("web"))))
		r.pass(500 * time.Millisecond)
		r.update(put(t, resource.Dataplane, "m", "b", workload(good("web"))))
		r.pass(time.Minute)
		got := r.written()
		if len(got) != 2 {
			t.Fatalf("%d batches, want 2", len(got))
		}
		if gap := got[1].at.Sub(got[0].at); gap != time.Second {
			t.Errorf("the batches are %s apart, want 1s", gap)
		}
	})
}

func TestAnInsightKeepsItsCreationTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := quiet(t)
		defer r.close()
		begin := time.Now()
		r.update(put(t, resource.Dataplane, "m", "a", workload(good("web"))))
		r.wait()
		for _, k := range left(r, "m") {
			rec, _ := r.st.Snapshot().Get(k)
			if !rec.Created.Equal(begin.Add(-time.Minute)) || !rec.Modified.Equal(begin) {
				t.Errorf("%s: created %s, modified %s; now is %s", k, rec.Created, rec.Modified, begin)
			}
		}
	})
}

func TestAChangeIsVisibleWithinASecond(t *testing.T) {
	for _, after := range []time.Duration{0, time.Millisecond, 500 * time.Millisecond, 999 * time.Millisecond, time.Second} {
		t.Run(after.String()+" after another", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := quiet(t)
				defer r.close()
				r.update(put(t, resource.Dataplane, "m", "a", workload(good("web"))))
				r.pass(after)
				r.update(put(t, resource.DataplaneInsight, "m", "a", online.message()))
				r.pass(time.Second)
				if n := meshInsight(t, r.st.Snapshot(), "m").GetDataplanes().GetOnline(); n != 1 {
					t.Errorf("%d online", n)
				}
			})
		})
	}
}

func TestWhatDoesNotMatterIsNotStored(t *testing.T) {
	tests := []struct {
		name   string
		change func(testing.TB, *rig)
	}{
		{"time passes", func(testing.TB, *rig) {}},
		{"a proxy reports counters", func(t testing.TB, r *rig) {
			i := online.message()
			i.Subscriptions[0].Status = &meshv1.DiscoverySubscriptionStatus{Total: &meshv1.DiscoveryServiceStats{ResponsesSent: 7}}
			r.update(put(t, resource.DataplaneInsight, "m", "a", i))
		}},
		{"a policy is changed", func(_ testing.TB, r *rig) {
			r.update(store.Put(&store.Record{Key: key("TrafficRoute", "m", "r"), Spec: []byte("\x0a\x00")}))
		}},
		{"a dataplane moves", func(t testing.TB, r *rig) {
			moved := workload(good("web"))
			moved.Networking.Address = "10.9.9.9"
			r.update(put(t, resource.Dataplane, "m", "a", moved))
		}},
		{"a thing outside meshes is made", func(t testing.TB, r *rig) { r.update(raw("ZoneIngress", "", "z")(t)) }},
		{"the mesh is changed", func(t testing.TB, r *rig) {
			r.update(put(t, resource.Mesh, "", "m", &meshv1.Mesh{Routing: &meshv1.Routing{ZoneEgress: true}}))
		}},
		{"the process starts anew", func(_ testing.TB, r *rig) { r.stop(); r.start() }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, store.Options{})
				r.update(
					putMesh(t, "m"), raw("TrafficRoute", "m", "r")(t), put(t, externalService, "m", "e", external("db", "db:1")),
					put(t, resource.Dataplane, "m", "a", workload(good("web"))), put(t, resource.DataplaneInsight, "m", "a", online.message()),
				)
				r.start()
				defer func() { r.close() }()
				r.pass(time.Hour)
				r.written()
				before := r.st.Snapshot().Revision()
				tt.change(t, r)
				r.pass(time.Hour)
				if got := r.written(); len(got) != 0 {
					t.Errorf("stored %v", got)
				}
				if after := r.st.Snapshot().Revision(); after > before+1 {
					t.Errorf("%d batches for one change", after-before)
				}
			})
		})
	}
}

// left returns what there is of the insights of a mesh.
func left(r *rig, mesh string) (keys []store.Key) {
	snap := r.st.Snapshot()
	for _, k := range []store.Key{key(resource.MeshInsight, "", mesh), key(resource.ServiceInsight, mesh, "all-services-"+mesh)} {
		if _, ok := snap.Get(k); ok {
			keys = append(keys, k)
		}
	}
	return keys
}

func TestInsightsGoWithTheirMesh(t *testing.T) {
	mesh := key(resource.Mesh, "", "m")
	cascade := []store.Op{
		store.Delete(mesh), store.Delete(key(resource.MeshInsight, "", "m")), store.Delete(key(resource.ServiceInsight, "m", "all-services-m")),
	}
	tests := []struct {
		name string
		run  func(testing.TB, *rig)
	}{
		{"with the cascade of the API", func(_ testing.TB, r *rig) { r.update(cascade...) }},
		{"when only the mesh is deleted", func(_ testing.TB, r *rig) { r.update(store.Delete(mesh)) }},
		{"when it is deleted while a change waits for the end of the interval", func(t testing.TB, r *rig) {
			r.update(put(t, resource.Dataplane, "m", "b", workload(good("api"))))
			r.pass(500 * time.Millisecond)
			r.update(put(t, resource.Dataplane, "m", "c", workload(good("api"))))
			r.update(cascade...)
		}},
		{"when a dataplane changes after it", func(t testing.TB, r *rig) {
			r.update(cascade...)
			r.update(put(t, resource.Dataplane, "m", "b", workload(good("api"))))
		}},
		{"when it was deleted while no process ran", func(_ testing.TB, r *rig) {
			r.stop()
			r.update(store.Delete(mesh))
			r.start()
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := quiet(t)
				defer func() { r.close() }()
				r.update(put(t, resource.Dataplane, "m", "a", workload(good("web"))))
				r.pass(time.Minute)
				tt.run(t, r)
				r.pass(2 * time.Second)
				if keys := left(r, "m"); len(keys) != 0 {
					t.Errorf("left: %v", keys)
				}
				// The dataplanes are the zone's and stay. When the mesh is made again they are counted in it.
				r.update(putMesh(t, "m"))
				r.pass(time.Second)
				total := meshInsight(t, r.st.Snapshot(), "m").GetDataplanes().GetTotal()
				if want := r.st.Snapshot().Count(string(resource.Dataplane), "m"); int(total) != want {
					t.Errorf("the mesh made again counts %d dataplanes, want %d", total, want)
				}
			})
		})
	}
}

func TestAMeshMadeAgainInOneStepHasNewInsights(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := quiet(t)
		defer r.close()
		old, _ := r.st.Snapshot().Get(key(resource.MeshInsight, "", "m"))
		r.update(put(t, resource.Dataplane, "m", "a", workload(good("web")))) // from here on the interval runs
		r.wait()
		r.update(
			store.Delete(key(resource.Mesh, "", "m")), store.Delete(key(resource.MeshInsight, "", "m")),
			store.Delete(key(resource.ServiceInsight, "m", "all-services-m")),
		)
		r.update(putMesh(t, "m"))
		r.pass(time.Second)
		rec, ok := r.st.Snapshot().Get(key(resource.MeshInsight, "", "m"))
		if !ok || len(left(r, "m")) != 2 {
			t.Fatalf("the mesh has %v", left(r, "m"))
		}
		if !rec.Created.After(old.Created) {
			t.Errorf("created at %s, the insight of the mesh before at %s", rec.Created, old.Created)
		}
	})
}

// The mesh changes between the snapshot that was counted and the commit: what was counted is not for it any more.
func TestWhatWasCountedForAnotherMeshIsNotStored(t *testing.T) {
	again := func(t testing.TB) []store.Op { return []store.Op{putMesh(t, "m")} }
	for name, then := range map[string]func(testing.TB) []store.Op{"deleted": nil, "made again": again} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, store.Options{})
			t.Cleanup(func() { _ = r.st.Close() })
			r.update(putMesh(t, "m"))
			in := New(Options{Store: r.st, Log: slog.New(slog.DiscardHandler)})
			snap := r.st.Snapshot()
			in.lease = lease(t, r.st)
			in.countAll(snap)
			r.update(store.Delete(key(resource.Mesh, "", "m")))
			if then != nil {
				r.update(then(t)...)
			}
			if _, err := in.storeChanged(t.Context(), snap); err != nil {
				t.Fatal(err)
			}
			if keys := left(r, "m"); len(keys) != 0 {
				t.Errorf("stored: %v", keys)
			}
		})
	}
}

func TestWhatIsGoneLeavesNothingInMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, store.Options{})
		r.start()
		defer r.close()
		for i := range 10 {
			mesh := fmt.Sprint("mesh-", i)
			r.update(putMesh(t, mesh), put(t, resource.Dataplane, mesh, "a", workload(good("web"))), raw("TrafficRoute", mesh, "r")(t))
			r.pass(2 * time.Second)
			r.update(store.Delete(key(resource.Mesh, "", mesh)), store.Delete(key("TrafficRoute", mesh, "r")))
			r.pass(2 * time.Second)
			r.update(store.Delete(key(resource.Dataplane, mesh, "a")))
			r.pass(2 * time.Second)
			if i%2 == 0 {
				r.update(put(t, resource.DataplaneInsight, mesh, "a", online.message())) // of nothing
				r.pass(2 * time.Second)
			}
		}
		r.stop()
		if n := len(r.in.meshes); n != 0 {
			t.Errorf("%d meshes are remembered", n)
		}
	})
}

func TestAMissingMeshGetsNoInsight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, store.Options{})
		r.start()
		defer r.close()
		r.update(put(t, resource.Dataplane, "m", "zone-1.a", workload(good("web"))))
		r.pass(time.Minute)
		if keys := left(r, "m"); len(keys) != 0 {
			t.Errorf("there is %v", keys)
		}
		if got := r.st.Snapshot().Revision(); got != 1 {
			t.Errorf("at revision %d: something was written", got)
		}
	})
}

func TestAnInsightThatWasLostOrCannotBeReadIsMadeAgain(t *testing.T) {
	for _, k := range []store.Key{key(resource.MeshInsight, "", "m"), key(resource.ServiceInsight, "m", "all-services-m")} {
		for name, op := range map[string]store.Op{
			"deleted": store.Delete(k),
			"garbage": store.Put(&store.Record{Key: k, Spec: []byte{0xff}}),
		} {
			t.Run(k.Type+" "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := quiet(t)
					defer r.close()
					want, _ := r.st.Snapshot().Get(k)
					r.update(op)
					r.pass(time.Second)
					got, ok := r.st.Snapshot().Get(k)
					if !ok || len(got.Spec) != len(want.Spec) { // lastSync is another
						t.Errorf("got %v, want %v", got, want)
					}
				})
			})
		}
	}
}

// A store that remembers one deletion cannot tell what was deleted during an interval.
func TestMoreDeletionsThanAreRememberedAreCountedAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, store.Options{MaxTombstones: 1})
		r.update(putMesh(t, "m"))
		for i := range 10 {
			r.update(put(t, resource.Dataplane, "m", fmt.Sprint("dp-", i), workload(good("web"))))
		}
		r.start()
		defer r.close()
		r.wait() // the interval runs
		for i := range 9 {
			r.update(store.Delete(key(resource.Dataplane, "m", fmt.Sprint("dp-", i))))
		}
		r.pass(2 * time.Second)
		if n := meshInsight(t, r.st.Snapshot(), "m").GetDataplanes().GetTotal(); n != 1 {
			t.Errorf("%d dataplanes, want 1", n)
		}
	})
}

func TestAResourceThatCannotBeReadStopsNothingButItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := quiet(t)
		defer r.close()
		r.update(
			store.Put(&store.Record{Key: key(resource.Dataplane, "m", "broken"), Spec: []byte{0xff}}),
			store.Put(&store.Record{Key: key(externalService, "m", "broken"), Spec: []byte{0xff}}),
			put(t, resource.Dataplane, "m", "a", workload(good("web"))),
			store.Put(&store.Record{Key: key(resource.DataplaneInsight, "m", "a"), Spec: []byte{0xff}}),
		)
		r.pass(time.Second)
		want := &dpStat{Total: 1, Offline: 1}
		if diff := cmp.Diff(want.String(), meshInsight(t, r.st.Snapshot(), "m").GetDataplanes().String()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

func TestAStoreThatRefusesWritesEndsTheKeepingButNotThePlane(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, store.Options{})
		r.update(putMesh(t, "m"))
		r.backend.broken = true
		r.start() // fails the test when Run returns an error
		r.pass(time.Minute)
		if keys := left(r, "m"); len(keys) != 0 {
			t.Errorf("there is %v", keys)
		}
		r.close()
	})
}

func TestBatchesAreMetered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := quiet(t)
		defer r.close()
		r.update(put(t, resource.Dataplane, "m", "a", workload(good("web"))))
		r.pass(time.Second)
		families, err := r.reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]float64{}
		for _, f := range families {
			for _, m := range f.GetMetric() {
				got[f.GetName()] = m.GetCounter().GetValue() + float64(m.GetHistogram().GetSampleCount())
			}
		}
		want := map[string]float64{"meridian_insights_batches_total": 2, "meridian_insights_update_duration_seconds": 2}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}
