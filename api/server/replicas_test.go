package server

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/storetest"
)

// late is a replica that hears nothing of what others commit until it has a turn itself. A real one is some milliseconds late.
type late struct{ *storetest.Replica }

func (late) Advanced() <-chan struct{} { return nil }

// onDatabase makes a plane one of several on a database.
func onDatabase(t *testing.T, db *storetest.Database) func(*Options) {
	t.Helper()
	st, err := store.Open(context.Background(), late{db.Replica()}, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
	})
	return func(o *Options) { o.Store = st }
}

// A client may be led to another replica with each request. What it is refused there is refused because of what the plane holds, not
// because of what that replica has not heard of yet.
func TestAReplicaRefusesByTheLatestState(t *testing.T) {
	const (
		mesh   = `{"type":"Mesh","name":"m"}`
		policy = `{"type":"TrafficPermission","mesh":"m","name":"p","sources":[{"match":{"kuma.io/service":"*"}}],"destinations":[{"match":{"kuma.io/service":"*"}}]}`
	)
	for _, tc := range []struct {
		name            string
		there           func(*plane)          // done at the one replica
		here            func(*plane) []string // done at the other, which has seen nothing of that: method, target, body, headers
		want, otherwise int                   // its status, and what it is when that was not done
	}{
		{
			"a resource in a mesh that has just been made",
			func(p *plane) { p.want(201, "PUT", "/meshes/m", mesh) },
			func(*plane) []string { return []string{"PUT", "/meshes/m/traffic-permissions/p", policy} }, 201, 400,
		},
		{
			"trying that",
			func(p *plane) { p.want(201, "PUT", "/meshes/m", mesh) },
			func(*plane) []string { return []string{"PUT", "/meshes/m/traffic-permissions/p?dryRun=true", policy} }, 201, 400,
		},
		{
			"importing that",
			func(p *plane) { p.want(201, "PUT", "/meshes/m", mesh) },
			func(*plane) []string { return []string{"POST", "/import", policy} }, 200, 400,
		},
		{
			"a token for a mesh that has just been made",
			func(p *plane) { p.want(201, "PUT", "/meshes/m", mesh) },
			func(*plane) []string { return []string{"POST", "/tokens/dataplane", `{"mesh":"m","name":"dp"}`} }, 200, 404,
		},
		{
			"deleting what has just been made",
			func(p *plane) { p.want(201, "PUT", "/meshes/m", mesh) },
			func(*plane) []string { return []string{"DELETE", "/meshes/m", ""} }, 200, 404,
		},
		{
			"changing the version that has just been stored",
			func(p *plane) { p.want(201, "PUT", "/meshes/m", mesh) },
			func(p *plane) []string {
				return []string{"PUT", "/meshes/m", `{"type":"Mesh","name":"m","labels":{"a":"b"}}`, `If-Match: "` + p.store.ID() + `-1"`}
			}, 200, 412,
		},
		{
			"making anew what has just been deleted",
			func(p *plane) { p.want(200, "DELETE", "/meshes/old", "") },
			func(*plane) []string {
				return []string{"PUT", "/meshes/old", `{"type":"Mesh","name":"old"}`, "If-None-Match: *"}
			}, 201, 412,
		},
		{
			"deleting what has just been deleted",
			func(p *plane) { p.want(200, "DELETE", "/meshes/old", "") },
			func(*plane) []string { return []string{"DELETE", "/meshes/old", ""} }, 404, 200,
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, done := range []bool{false, true} {
				db := storetest.NewDatabase()
				a := newPlane(t, resource.Global, onDatabase(t, db))
				if strings.Contains(tc.here(a)[1], "old") {
					a.seed(record(t, resource.Mesh, "", "old", "", nil))
				}
				b := newPlane(t, resource.Global, onDatabase(t, db))
				want := tc.otherwise
				if done {
					tc.there(a)
					want = tc.want
				}
				r := tc.here(b)
				b.want(want, r[0], r[1], r[2], r[3:]...)
			}
		})
	}
}

func TestAReplicaWithoutItsDatabaseRefusesNothingForGood(t *testing.T) {
	db := storetest.NewDatabase()
	p := newPlane(t, resource.Global, onDatabase(t, db))
	p.want(404, "DELETE", "/meshes/m", "")
	db.SetAway(errors.New("away"))
	for _, r := range [][]string{
		{"DELETE", "/meshes/m", ""}, {"POST", "/tokens/dataplane", `{"mesh":"m","name":"dp"}`},
		{"GET", "/meshes?watch=true&lastEventId=" + p.store.ID() + "-7", ""},
	} {
		if a := p.want(http.StatusServiceUnavailable, r[0], r[1], r[2]); a.Header.Get("Retry-After") == "" {
			t.Errorf("%s %s: no Retry-After", r[0], r[1])
		}
	}
}

// The id of an event names a state of the plane, whichever replica told of it.
func TestAWatchGoesOnAtAnotherReplica(t *testing.T) {
	db := storetest.NewDatabase()
	a := newPlane(t, resource.Global, onDatabase(t, db))
	b, client, url := serving(t, onDatabase(t, db))
	for _, name := range []string{"a", "b", "c"} {
		a.want(201, "PUT", "/meshes/"+name, `{"type":"Mesh","name":"`+name+`"}`)
	}
	id := a.store.ID()
	if n := b.store.Snapshot().Revision(); n != 0 {
		t.Fatalf("the replica is at revision %d already", n)
	}
	w := mustWatch(t, client, url+"/meshes?watch=true", id+"-2") // which it has not seen yet
	w.wants(t, "added c 3")
	a.want(200, "DELETE", "/meshes/a", "")
	b.want(201, "PUT", "/meshes/d", `{"type":"Mesh","name":"d"}`)
	w.wants(t, "deleted a", "added d 5")

	_, err := watch(t.Context(), client, url+"/meshes?watch=true", id+"-99")
	if failure, ok := errors.AsType[*statusError](err); !ok || failure.status != http.StatusGone {
		t.Errorf("a revision that no replica knows: %v", err)
	}
}
