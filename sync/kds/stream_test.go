package kds

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/metadata"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// Lesson 1: a peer whose connection lives, but which does not read the stream, must not hold it open for ever.
func TestLesson01_APeerThatDoesNotReadIsResetInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		line := newPipe(1)
		p := NewPublisher(publisherConfig(t, Down, openStore(t, store.Options{})))
		began := time.Now()
		var halves sync.WaitGroup
		ended := make(chan error, 1)
		go func() { ended <- p.Run(t.Context(), publisherEnd{line}, &halves) }()
		for _, typ := range []resource.Type{resource.Mesh, resource.Secret, permissionType} {
			line.requests <- request(typ, "")
		}
		err := <-ended
		if !errors.Is(err, ErrAckTimeout) || time.Since(began) > 31*time.Second {
			t.Errorf("ended after %s: %v", time.Since(began), err)
		}
		line.close()
		halves.Wait()
	})
}

func TestLesson01_ASubscriberIsNotHeldByAPeerThatDoesNotRead(t *testing.T) {
	for name, limited := range map[string]bool{"until the time-out": true, "until it is told to stop": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				line := newPipe(1)
				cfg := subscriberConfig(t, Down, openStore(t, store.Options{}))
				if limited {
					cfg.SendTimeout = 30 * time.Second
				}
				s := NewSubscriber(cfg)
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				var halves sync.WaitGroup
				ended := make(chan error, 1)
				go func() { ended <- s.Run(ctx, subscriberEnd{line}, &halves) }()
				time.Sleep(time.Minute)
				synctest.Wait()
				want := context.Canceled
				if limited {
					want = ErrAckTimeout
				} else {
					cancel()
				}
				if err := <-ended; !errors.Is(err, want) {
					t.Errorf("ended with %v, want %v", err, want)
				}
				line.close()
				halves.Wait()
			})
		})
	}
}

// Lesson 35: whatever a message makes us stumble over, it ends one stream and not the process.
func TestLesson35_APanicEndsOneStream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := openStore(t, store.Options{})
		cfg := publisherConfig(t, Down, st)
		cfg.Observer = stumbling{}
		end, _, stop := publish(t, cfg, 10)
		end.requests <- request(resource.Mesh, "")
		synctest.Wait()
		if err := stop(); !errors.Is(err, errPanic) {
			t.Errorf("ended with %v", err)
		}
		sub := subscriberConfig(t, Down, st)
		sub.VerifyCluster = func(context.Context, string) error { return nil }
		sub.Header = func() (metadata.MD, error) { panic("stumbled") }
		peer, stop := subscribe(t, sub, 100)
		peer.responses <- reply("global", resource.Mesh, "1", "")
		synctest.Wait()
		if err := stop(); !errors.Is(err, errPanic) {
			t.Errorf("ended with %v", err)
		}
	})
}

type stumbling struct{ PublisherObserver }

func (stumbling) Subscribed(Node) { panic("stumbled") }

// What an ended stream still had in hand must not overwrite what its successor brought.
func TestAnEndedStreamCommitsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := openStore(t, store.Options{})
		ctx, cancel := context.WithCancelCause(t.Context())
		cause := errors.New("replaced")
		s := NewSubscriber(subscriberConfig(t, Up, st))
		d, _ := resource.Lookup(resource.Dataplane)
		cancel(cause)
		// Some of these find the committer idle, some do not.
		for range 100 {
			_, err := s.store(ctx, d, reply("zone-1", resource.Dataplane, "1", "", onWire(t, "dp", "default", newDataplane("1.1.1.1"), nil)))
			if err == nil || len(namesOf(st, resource.Dataplane)) != 0 {
				t.Fatal("the response of an ended stream was committed")
			}
		}
	})
}

// Every type may have a response under way, in both directions at once, on a line that holds one message each way.
func TestLesson02_NeitherSideWaitsForTheOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		global, zone := openStore(t, store.Options{}), openStore(t, store.Options{})
		for i := range 50 {
			commit(t, global, store.Put(newRecord(t, permissionType, "default", fmt.Sprint("p", i), newPermission("a"))),
				store.Put(newRecord(t, resource.Secret, "default", fmt.Sprint("s", i), newSecret("a"))))
		}
		line := newPipe(0)
		p, s := NewPublisher(publisherConfig(t, Down, global)), NewSubscriber(subscriberConfig(t, Down, zone))
		stopPub := run(line, func(ctx context.Context, wg *sync.WaitGroup) error { return p.Run(ctx, publisherEnd{line}, wg) })
		stopSub := run(line, func(ctx context.Context, wg *sync.WaitGroup) error { return s.Run(ctx, subscriberEnd{line}, wg) })
		for i := range 50 {
			commit(t, global, store.Put(newRecord(t, permissionType, "default", fmt.Sprint("p", i), newPermission("b"))))
		}
		synctest.Wait()
		if got, want := stored(zone, permissionType), stored(global, permissionType); len(got) != 50 || fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("the zone has %d permissions, or other ones", len(got))
		}
		if got := len(namesOf(zone, resource.Secret)); got != 50 {
			t.Errorf("the zone has %d secrets", got)
		}
		_, _ = stopPub(), stopSub()
	})
}

var (
	_ ResponseStream = subscriberEnd{}
	_ interface {
		Send(*discoveryv3.DeltaDiscoveryResponse) error
	} = publisherEnd{}
)
