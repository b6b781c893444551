package kds

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/genproto/googleapis/rpc/status"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

const permissionType resource.Type = "TrafficPermission"

// unreadable is a record that a subscriber cannot take: its specification is not a message.
func unreadable(t testing.TB, name string) *store.Record {
	rec := newRecord(t, permissionType, "default", name, newPermission("a"))
	rec.Spec = []byte{0xff}
	return rec
}

// Lesson 12: what was bad is named, the rest is stored, mending it heals; and the lag says just that.
func TestLesson12_OnlyWhatWasLeftOutLags(t *testing.T) {
	for name, heal := range map[string]store.Op{
		"it is mended":  store.Put(newRecord(t, permissionType, "default", "bad", newPermission("b"))),
		"it is deleted": store.Delete(store.Key{Type: string(permissionType), Mesh: "default", Name: "bad"}),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				global, zone := openStore(t, store.Options{}), openStore(t, store.Options{})
				ops := []store.Op{store.Put(unreadable(t, "bad"))}
				for i := range 9 {
					ops = append(ops, store.Put(newRecord(t, permissionType, "default", fmt.Sprint("good-", i), newPermission("a"))))
				}
				commit(t, global, ops...)
				p, stop := join(t, publisherConfig(t, Down, global), subscriberConfig(t, Down, zone))
				synctest.Wait()
				if n := len(namesOf(zone, permissionType)); n != 9 {
					t.Errorf("%d of 9 good ones stored", n)
				}
				if lag := p.Lag(global.Snapshot()); lag != 1 {
					t.Errorf("lag is %d with one rejected resource", lag)
				}
				commit(t, global, heal)
				synctest.Wait()
				if lag := p.Lag(global.Snapshot()); lag != 0 {
					t.Errorf("lag is %d after it healed", lag)
				}
				if want := len(namesOf(global, permissionType)); len(namesOf(zone, permissionType)) != want {
					t.Errorf("zone has %v", namesOf(zone, permissionType))
				}
				_, _ = stop()
			})
		})
	}
}

// A Kuma peer does not say which resources it left out.
func TestLesson12_APeerThatNamesNothingStopsLaggingOnceItIsContent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		global := openStore(t, store.Options{})
		put := func(name, service string) {
			commit(t, global, store.Put(newRecord(t, permissionType, "default", name, newPermission(service))))
		}
		put("a", "1")
		put("b", "1")
		end, p, _ := publish(t, publisherConfig(t, Down, global), 10)
		end.requests <- request(permissionType, "")
		nack := ackOf(next(t, end.responses))
		nack.ErrorDetail = &status.Status{Message: "no"}
		end.requests <- nack
		quiet(t, end.responses) // the same content is never sent again
		if lag := p.Lag(global.Snapshot()); lag != 2 {
			t.Errorf("lag is %d after two were rejected", lag)
		}
		put("c", "1")
		end.requests <- ackOf(next(t, end.responses))
		synctest.Wait()
		if lag := p.Lag(global.Snapshot()); lag != 2 {
			t.Errorf("lag is %d though nothing was mended", lag)
		}
		put("b", "2")
		end.requests <- ackOf(next(t, end.responses))
		synctest.Wait()
		if lag := p.Lag(global.Snapshot()); lag != 0 {
			t.Errorf("lag is %d after the peer acknowledged the mended one", lag)
		}
	})
}

// A token that covered a rejected resource would keep it from ever being offered again.
func TestLesson12_WhatWasRejectedIsOfferedAgainOnReconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		global, zone := openStore(t, store.Options{}), openStore(t, store.Options{})
		commit(t, global, store.Put(newRecord(t, permissionType, "default", "good", newPermission("a"))))
		_, stop := join(t, publisherConfig(t, Down, global), subscriberConfig(t, Down, zone))
		synctest.Wait()
		commit(t, global, store.Put(unreadable(t, "bad")))
		synctest.Wait()
		commit(t, global, store.Put(newRecord(t, permissionType, "default", "later", newPermission("a"))))
		synctest.Wait()
		_, _ = stop()

		end, _ := subscribe(t, subscriberConfig(t, Down, zone), 100)
		var resume string
		for resume == "" {
			if req := next(t, end.requests); req.GetTypeUrl() == string(permissionType) {
				resume = nodeOf(req.GetNode()).Resume
			}
		}
		peer, _, _ := publish(t, publisherConfig(t, Down, global), 10)
		peer.requests <- request(permissionType, resume, FeatureResume)
		if got := summarize(next(t, peer.responses)).Names; !slices.Contains(got, "bad.default") {
			t.Errorf("resumed from %s: offered %v", resume, got)
		}
	})
}

func TestARejectionSaysWhatWasLeftOutAndWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		zone := openStore(t, store.Options{})
		end, _ := subscribe(t, subscriberConfig(t, Down, zone), 100)
		long := strings.Repeat("n", 5000)
		nul := onWire(t, "nu\x00l", "default", newPermission("a"), nil)
		noBody := onWire(t, "no-body", "default", newPermission("a"), nil)
		noBody.Resource = nil
		foreign := onWire(t, "foreign", "default", newPermission("a"), nil)
		foreign.Resource.TypeUrl = "type.googleapis.com/google.protobuf.Empty"
		end.responses <- reply("global", permissionType, "1", "",
			onWire(t, "good", "default", newPermission("a"), nil),
			nul, noBody, foreign,
			onWire(t, long, "default", newPermission("a"), nil),
			onWire(t, "other", "default", newSecret("x"), nil),
			onWire(t, "meshless", "", newPermission("a"), nil),
			onWire(t, "", "default", newPermission("a"), nil),
		)
		nack := answerTo(t, end, "1")
		want := map[string]bool{
			"nu\x00l.default": true, "no-body.default": true, "foreign.default": true, long + ".default": true,
			"other.default": true, "meshless.": true, ".default": true,
		}
		got := rejectedKeys(nack.GetErrorDetail())
		for key := range want {
			if !got[key] {
				t.Errorf("%.30q is not named as rejected", key)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%d named, want %d", len(got), len(want))
		}
		if got := namesOf(zone, permissionType); !slices.Equal(got, []string{"default/good"}) {
			t.Errorf("stored %.100q", got)
		}
	})
}

// The key of a resource on the wire is the sender's business; the resource is what its meta says (KDS contract §6.3).
func TestAnInvalidResourceOfAFullStateIsKeptUnderItsOwnName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		zone := openStore(t, store.Options{})
		end, stop := subscribe(t, subscriberConfig(t, Down, zone), 100)
		end.responses <- reply("global", permissionType, "1", "", onWire(t, "a", "default", newPermission("a"), nil))
		answerTo(t, end, "1")
		_ = stop()
		end, _ = subscribe(t, subscriberConfig(t, Down, zone), 100)
		bad := onWire(t, "a", "default", newSecret("not a permission"), nil)
		bad.Name = "something else"
		end.responses <- reply("global", permissionType, "1", "", bad)
		if answerTo(t, end, "1").GetErrorDetail() == nil {
			t.Error("it was acknowledged")
		}
		if got := namesOf(zone, permissionType); !slices.Equal(got, []string{"default/a"}) {
			t.Errorf("the last good state is gone: %v", got)
		}
	})
}
