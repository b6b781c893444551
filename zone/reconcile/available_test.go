package reconcile

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
)

// offerRig is an offer of one service over a store, in a bubble.
type offerRig struct {
	t     *testing.T
	store *store.Store
	*offer
}

func newOfferRig(t *testing.T) *offerRig {
	t.Helper()
	s, err := store.Open(t.Context(), memory.New(), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	r := &offerRig{t: t, store: s, offer: newOffer(s, slog.New(slog.DiscardHandler))}
	r.put(resource.ZoneIngress, &meshv1.ZoneIngress{})
	r.set([]*meshv1.ZoneIngress_AvailableService{{Mesh: "m", Tags: map[string]string{"kuma.io/service": "a"}, Instances: 1}})
	return r
}

func (r *offerRig) put(typ resource.Type, m proto.Message) {
	r.t.Helper()
	spec, err := proto.Marshal(m)
	if err != nil {
		r.t.Fatal(err)
	}
	_, err = r.store.Update(r.t.Context(), func(*store.Snapshot) ([]store.Op, error) {
		return []store.Op{store.Put(&store.Record{Key: store.Key{Type: string(typ), Name: "in"}, Spec: spec})}, nil
	})
	if err != nil {
		r.t.Fatal(err)
	}
}

// runs runs the offer; stop ends it as the plane's end does.
func (r *offerRig) runs() (stop func()) {
	ctx, cancel := context.WithCancel(r.t.Context())
	ended := make(chan struct{})
	go func() { _ = r.run(ctx); close(ended) }()
	return func() { cancel(); <-ended }
}

// offers checks whether the stored ingress offers the service, once everything has come to rest.
func (r *offerRig) offers(want bool, when string) {
	r.t.Helper()
	synctest.Wait()
	rec, ok := r.store.Snapshot().Get(store.Key{Type: string(resource.ZoneIngress), Name: "in"})
	var in meshv1.ZoneIngress
	if !ok || proto.Unmarshal(rec.Spec, &in) != nil {
		r.t.Fatal("no ingress")
	}
	if got := len(in.GetAvailableServices()) == 1; got != want {
		r.t.Errorf("%s: it is offered: %v", when, got)
	}
}

func TestNothingIsOfferedThroughAnIngressThatIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newOfferRig(t)
		stop := r.runs()
		r.connected("in")
		r.offers(true, "connected")
		r.disconnected("in")
		time.Sleep(withdrawAfter / 2)
		r.offers(true, "a moment after it has gone")
		r.connected("in")
		time.Sleep(time.Hour)
		r.offers(true, "back in time")
		r.disconnected("in")
		time.Sleep(withdrawAfter)
		r.offers(false, "gone")
		r.connected("in")
		r.offers(true, "back")
		stop()

		// The plane that ends takes nothing back, and the next one waits for the proxies.
		r.disconnected("in")
		time.Sleep(time.Hour)
		r.offers(true, "without a plane")
		services := r.services
		r.offer = newOffer(r.store, slog.New(slog.DiscardHandler))
		r.set(services)
		defer r.runs()()
		time.Sleep(awaitReturn - time.Second)
		r.offers(true, "soon after a start")
		time.Sleep(time.Second)
		r.offers(false, "it did not come back after a start")
	})
}

func TestAnIngressOfAnotherPlaneIsLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newOfferRig(t)
		r.put(resource.ZoneIngress, &meshv1.ZoneIngress{AvailableServices: r.services})
		elsewhere := &meshv1.DiscoverySubscription{Id: "1", ConnectTime: timestamppb.Now()}
		r.put(resource.ZoneIngressInsight, &meshv1.ZoneIngressInsight{Subscriptions: []*meshv1.DiscoverySubscription{elsewhere}})
		defer r.runs()()
		time.Sleep(time.Hour)
		r.offers(true, "connected to another plane")
		elsewhere.DisconnectTime = timestamppb.Now()
		r.put(resource.ZoneIngressInsight, &meshv1.ZoneIngressInsight{Subscriptions: []*meshv1.DiscoverySubscription{elsewhere}})
		time.Sleep(awaitReturn)
		r.offers(false, "gone there too")
	})
}
