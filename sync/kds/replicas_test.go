package kds

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/storetest"
)

// deaf is a replica that hears nothing of what others commit.
type deaf struct{ *storetest.Replica }

func (deaf) Advanced() <-chan struct{} { return nil }

func openReplica(t *testing.T, b store.Backend) *store.Store {
	t.Helper()
	st, err := store.Open(t.Context(), b, store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	return st
}

// A leader that was stopped for a while (SIGSTOP) goes on with what was under way to it, when its successor has received newer.
func TestAReplacedSubscriberCommitsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := storetest.NewDatabase()
		lead := func(name string) (*store.Store, publisherEnd, func() error) {
			st := openReplica(t, db.Replica())
			lease, err := st.Acquire(t.Context(), "plane", name, 4*time.Second)
			if err != nil {
				t.Fatal(err)
			}
			cfg := subscriberConfig(t, Down, st)
			cfg.Update = func(ctx context.Context, fn func(*store.Snapshot) ([]store.Op, error)) (store.Revision, error) {
				return st.UpdateUnder(ctx, lease, fn)
			}
			end, stop := subscribe(t, cfg, 100)
			return st, end, stop
		}
		const typ = permissionType
		old, toOld, stop := lead("old")
		toOld.responses <- reply(GlobalIdentifier, typ, "1", "g/1/end", onWire(t, "first", "default", newPermission("web"), nil))
		answerTo(t, toOld, "1")
		time.Sleep(5 * time.Second) // as long as it is stopped
		_, toNew, _ := lead("new")
		toNew.responses <- reply(GlobalIdentifier, typ, "1", "g/3/end",
			onWire(t, "first", "default", newPermission("web"), nil), onWire(t, "second", "default", newPermission("web"), nil))
		answerTo(t, toNew, "1")
		// What was under way to the old one is older, and does not know the second.
		toOld.responses <- reply(GlobalIdentifier, typ, "2", "g/2/end/1", onWire(t, "first", "default", newPermission("old"), nil))
		synctest.Wait()
		if err := stop(); !errors.Is(err, store.ErrLeaseLost) {
			t.Errorf("the old one ended with %v", err)
		}
		if d := cmp.Diff([]string{"default/first", "default/second"}, namesOf(old, typ)); d != "" {
			t.Errorf("stored (-want +got):\n%s", d)
		}
		if got := stored(old, typ)["default/first"]; got != string(encode(t, newPermission("web"))) {
			t.Errorf("what is older was put over what is newer: %q", got)
		}
		if token := storedToken(old.Snapshot(), GlobalIdentifier, typ); token != "g/3/end" {
			t.Errorf("the token is %q", token)
		}
	})
}

func TestASubscriberGoesOnWhereAnotherReplicaEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db := storetest.NewDatabase()
		first, second := openReplica(t, db.Replica()), openReplica(t, deaf{db.Replica()})
		end, stop := subscribe(t, subscriberConfig(t, Down, first), 100)
		end.responses <- reply(GlobalIdentifier, resource.Mesh, "1", "g/7/end")
		answerTo(t, end, "1")
		_ = stop()
		end, _ = subscribe(t, subscriberConfig(t, Down, second), 100)
		for {
			req := next(t, end.requests)
			if req.GetTypeUrl() != string(resource.Mesh) {
				continue
			}
			if got := nodeOf(req.GetNode()).Resume; got != "g/7/end" {
				t.Errorf("it asks to go on from %q", got)
			}
			return
		}
	})
}

// The peer comes from another replica of this plane, which has seen, and sent, more of the store.
func TestAPublisherWaitsForTheStateThatItsPeerHas(t *testing.T) {
	const typ = permissionType
	for name, arrives := range map[string]bool{"and goes on from there": true, "and sends everything where it does not come": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				st := openStore(t, store.Options{})
				rev := commit(t, st, store.Put(newRecord(t, typ, "default", "a", newPermission("web"))))
				has := Token{Store: st.ID(), Revision: rev + 1}
				end, _, _ := publish(t, publisherConfig(t, Down, st), 100)
				asked := time.Now()
				end.requests <- request(typ, has.String(), FeatureResume)
				quiet(t, end.responses)
				if !arrives {
					resp := <-end.responses
					sameSummary(t, summary{Names: []string{"a.default"}, Token: Token{Store: st.ID(), Revision: rev}.String()}, resp)
					if took := time.Since(asked); took != behindTimeout {
						t.Errorf("after %s", took)
					}
					return
				}
				commit(t, st, store.Put(newRecord(t, typ, "default", "b", newPermission("web")))) // the peer has it
				sameSummary(t, summary{Token: Token{Store: st.ID(), Revision: rev + 1, Delta: true, From: rev + 1}.String()}, next(t, end.responses))
			})
		})
	}
}
