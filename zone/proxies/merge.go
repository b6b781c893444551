package proxies

import (
	"slices"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

// An insight has several writers: every process of the plane that has, or had, a stream of the proxy. Each knows its own
// streams and writes the subscriptions that stand for them, which it finds by their ids; those of others it leaves as they are,
// but for two things. A new stream closes what is open, since the proxy has come over, and a process that is gone cannot close its
// own. What an insight becomes is always decided on the head of the store, so the order of commits says which stream is the newest, and
// no clocks are compared.
//
// At most one subscription is open, the last one. It is that of the stream that came last of those that go on. Who holds a stream
// whose subscription was closed by another leaves it closed as long as one is open: the proxy has come over, and the old stream is a
// remainder. When none is open, the holder opens its own again: the newer stream has ended, or the holder was taken for dead.
// So whatever is written wrongly, or late, is put right by who knows better, and an insight that tells the truth is left alone.

// subscription is the part of an insight that stands for a stream of this process.
type subscription struct {
	// DisconnectTime is set when the stream has ended, whatever others write of it; Deregistering when it was the last one of a
	// proxy that brought its resource.
	*meshv1.DiscoverySubscription
	// stored: it has been in the store. Where it is no longer, others have pushed it out.
	stored bool
	// back: it was stored with the registration, when the proxy was away. What is announced of earlier streams is called off, also
	// where that was stored later.
	back bool
}

func newSubscription(instance string, v *meshv1.Version) *subscription {
	now := timestamppb.Now()
	return &subscription{DiscoverySubscription: &meshv1.DiscoverySubscription{
		Id: uuid.NewString(), ControlPlaneInstanceId: instance, ConnectTime: now, Version: v,
		Status: &meshv1.DiscoverySubscriptionStatus{
			LastUpdateTime: now, Total: &meshv1.DiscoveryServiceStats{}, Cds: &meshv1.DiscoveryServiceStats{},
			Eds: &meshv1.DiscoveryServiceStats{}, Lds: &meshv1.DiscoveryServiceStats{}, Rds: &meshv1.DiscoveryServiceStats{},
		},
	}}
}

// merge brings the subscriptions of this process into what is stored. live is that of its newest stream that goes on, nil when none
// does.
func (i *insight) merge(own []*subscription, live *subscription, c certified, now *timestamppb.Timestamp) {
	for _, s := range own {
		if s.back {
			i.keep()
		}
		ours := proto.CloneOf(s.DiscoverySubscription)
		at := i.index(ours.GetId())
		switch {
		case at >= 0:
			theirs := i.subscriptions[at]
			if theirs.GetDisconnectTime() != nil {
				ours.DisconnectTime = theirs.GetDisconnectTime()
			}
			ours.Deregistering = ours.GetDeregistering() || theirs.GetDeregistering()
			i.subscriptions[at] = ours
		case s.stored: // pushed out
		default:
			if i.open() == nil {
				i.keep() // it is back; where it was there all the time, streams that brought its resource count on
			}
			i.subscriptions = append(i.subscriptions, ours)
		}
	}
	i.order(now)
	if live != nil && i.open() == nil {
		i.subscriptions = slices.DeleteFunc(i.subscriptions, func(s *meshv1.DiscoverySubscription) bool { return s.GetId() == live.GetId() })
		i.subscriptions = append(i.subscriptions, proto.CloneOf(live.DiscoverySubscription))
	}
	i.trim()
	// The proxy has the certificate that it was given on its newest stream.
	if c.told && slices.ContainsFunc(own, func(s *subscription) bool { return s.GetId() == i.newest().GetId() }) {
		i.certify(c.is)
	}
}

func (i *insight) index(id string) int {
	return slices.IndexFunc(i.subscriptions, func(s *meshv1.DiscoverySubscription) bool { return s.GetId() == id })
}

// newest is the last subscription, nil when there is none.
func (i *insight) newest() *meshv1.DiscoverySubscription {
	if len(i.subscriptions) == 0 {
		return nil
	}
	return i.subscriptions[len(i.subscriptions)-1]
}

// open is the subscription that is open, nil when none is.
func (i *insight) open() *meshv1.DiscoverySubscription {
	for _, s := range slices.Backward(i.subscriptions) {
		if s.GetDisconnectTime() == nil {
			return s
		}
	}
	return nil
}

// keep calls off that the proxy is deregistered.
func (i *insight) keep() {
	for _, s := range i.subscriptions {
		s.Deregistering = false
	}
}

// close gives the open subscriptions that match a disconnect time and reports whether there was one.
func (i *insight) close(at *timestamppb.Timestamp, match func(*meshv1.DiscoverySubscription) bool) bool {
	changed := false
	for _, s := range i.subscriptions {
		if s.GetDisconnectTime() == nil && match(s) {
			s.DisconnectTime, changed = at, true
		}
	}
	return changed
}

// abandon closes the open subscriptions that match, since who served them is gone. That tells nothing of the proxy, so it is not
// deregistered for it.
func (i *insight) abandon(at *timestamppb.Timestamp, match func(*meshv1.DiscoverySubscription) bool) bool {
	changed := i.close(at, match)
	if changed && i.open() == nil {
		i.keep()
	}
	return changed
}

// order puts the newest open subscription last, and closes what else is open.
func (i *insight) order(now *timestamppb.Timestamp) {
	open := i.open()
	if open == nil {
		return
	}
	i.subscriptions = append(slices.DeleteFunc(i.subscriptions, func(s *meshv1.DiscoverySubscription) bool { return s == open }), open)
	i.close(now, func(s *meshv1.DiscoverySubscription) bool { return s != open })
}

// trim drops the oldest subscriptions. That the proxy brought its resource is not forgotten with them.
func (i *insight) trim() {
	over := len(i.subscriptions) - subscriptionsKept
	if over <= 0 {
		return
	}
	dropped := i.subscriptions[:over]
	i.subscriptions = slices.Clone(i.subscriptions[over:])
	if slices.ContainsFunc(dropped, (*meshv1.DiscoverySubscription).GetDeregistering) {
		i.subscriptions[0].Deregistering = true
	}
}

// leaving reports whether the proxy has gone and is to be deregistered.
func (i *insight) leaving() bool {
	return i.open() == nil && slices.ContainsFunc(i.subscriptions, (*meshv1.DiscoverySubscription).GetDeregistering)
}

// offlineSince reports whether the proxy was disconnected before a time, and is not back.
func (i *insight) offlineSince(before time.Time) bool {
	var last time.Time
	for _, s := range i.subscriptions {
		if at := s.GetDisconnectTime().AsTime(); at.After(last) {
			last = at
		}
	}
	return len(i.subscriptions) > 0 && i.open() == nil && last.Before(before)
}

// certify brings in the certificate that the proxy has now; nil: it needs none.
func (i *insight) certify(c *Certificate) {
	if c == nil {
		i.mtls = nil
		return
	}
	old := i.mtls
	i.mtls = &meshv1.DataplaneInsight_MTLS{
		CertificateExpirationTime: timestamppb.New(c.NotAfter), LastCertificateRegeneration: timestamppb.New(c.Issued),
		IssuedBackend: c.Backend, SupportedBackends: slices.Clone(c.Supported), CertificateRegenerations: old.GetCertificateRegenerations(),
	}
	if old == nil || !old.GetCertificateExpirationTime().AsTime().Equal(c.NotAfter) || old.GetIssuedBackend() != c.Backend ||
		!slices.Equal(old.GetSupportedBackends(), c.Supported) {
		i.mtls.CertificateRegenerations++
	}
}
