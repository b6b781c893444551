package proxies

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/zone/xds"
)

const (
	// subscriptionsKept of a proxy, newest last.
	subscriptionsKept = 2
	// maxErrorBytes of what a proxy says when it rejects a configuration, or of why none can be made.
	maxErrorBytes = 2048
)

// insight is what is known of a proxy in the form in which it is stored. Ingresses and egresses have the same, without
// certificates.
type insight struct {
	subscriptions []*meshv1.DiscoverySubscription
	mtls          *meshv1.DataplaneInsight_MTLS
}

// subscribed is what the insights of all kinds are.
type subscribed interface {
	proto.Message
	GetSubscriptions() []*meshv1.DiscoverySubscription
}

// decodeInsight reads a stored insight.
func decodeInsight(kind Kind, spec []byte) (*insight, error) {
	var m subscribed
	switch kind {
	case Sidecar:
		m = &meshv1.DataplaneInsight{}
	case Ingress:
		m = &meshv1.ZoneIngressInsight{}
	case Egress:
		m = &meshv1.ZoneEgressInsight{}
	}
	if err := proto.Unmarshal(spec, m); err != nil {
		return nil, fmt.Errorf("decode the insight: %w", err)
	}
	i := &insight{subscriptions: m.GetSubscriptions()}
	if dp, ok := m.(*meshv1.DataplaneInsight); ok {
		i.mtls = dp.GetMTLS()
	}
	return i, nil
}

// encode is the form in which an insight is stored.
func (i *insight) encode(kind Kind) ([]byte, error) {
	var m proto.Message
	switch kind {
	case Sidecar:
		m = &meshv1.DataplaneInsight{Subscriptions: i.subscriptions, MTLS: i.mtls}
	case Ingress:
		m = &meshv1.ZoneIngressInsight{Subscriptions: i.subscriptions}
	case Egress:
		m = &meshv1.ZoneEgressInsight{Subscriptions: i.subscriptions}
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode the insight: %w", err)
	}
	return b, nil
}

// newest is the newest subscription, nil when there is none.
func (i *insight) newest() *meshv1.DiscoverySubscription {
	if len(i.subscriptions) == 0 {
		return nil
	}
	return i.subscriptions[len(i.subscriptions)-1]
}

// open adds a subscription and closes the others.
func (i *insight) open(instance string, v *meshv1.Version) *meshv1.DiscoverySubscription {
	now := timestamppb.Now()
	i.closeAll(now)
	sub := &meshv1.DiscoverySubscription{
		Id: uuid.NewString(), ControlPlaneInstanceId: instance, ConnectTime: now, Version: v,
		Status: &meshv1.DiscoverySubscriptionStatus{
			LastUpdateTime: now, Total: &meshv1.DiscoveryServiceStats{}, Cds: &meshv1.DiscoveryServiceStats{},
			Eds: &meshv1.DiscoveryServiceStats{}, Lds: &meshv1.DiscoveryServiceStats{}, Rds: &meshv1.DiscoveryServiceStats{},
		},
	}
	for _, s := range i.subscriptions {
		s.Deregistering = false
	}
	i.subscriptions = append(i.subscriptions, sub)
	i.trim()
	return sub
}

func (i *insight) trim() {
	if over := len(i.subscriptions) - subscriptionsKept; over > 0 {
		i.subscriptions = slices.Clone(i.subscriptions[over:])
	}
}

// closeAll gives every open subscription a disconnect time and reports whether there was one.
func (i *insight) closeAll(at *timestamppb.Timestamp) bool {
	changed := false
	for _, s := range i.subscriptions {
		if s.GetDisconnectTime() == nil {
			s.DisconnectTime, changed = at, true
		}
	}
	return changed
}

// shut closes the subscription of a stream that has ended. remaining is that of the newest stream that has not, if there is
// one: it was closed when a newer one came, and is what keeps the proxy connected now.
func (i *insight) shut(sub, remaining *meshv1.DiscoverySubscription) {
	if sub.GetDisconnectTime() == nil {
		sub.DisconnectTime = timestamppb.Now()
	}
	if remaining.GetDisconnectTime() == nil { // also when there is none
		return
	}
	remaining.DisconnectTime = nil
	i.subscriptions = append(slices.DeleteFunc(i.subscriptions, func(s *meshv1.DiscoverySubscription) bool { return s == remaining }), remaining)
	i.trim()
}

// loadInsight reads what is stored of a proxy. It starts over when the resource is new, or what is stored cannot be read.
func (r *Registry) loadInsight(kind Kind, key store.Key) *insight {
	rec, ok := r.store.Snapshot().Get(key)
	if !ok || rec.Origin != "" {
		return &insight{}
	}
	i, err := decodeInsight(kind, rec.Spec)
	if err != nil {
		r.log.Error("a stored insight cannot be read and starts over", "type", key.Type, "mesh", key.Mesh, "name", key.Name, "err", err)
		return &insight{}
	}
	return i
}

// markLocked notes that the proxy's insight must be stored; urgent means without waiting for the interval.
func (r *Registry) markLocked(p *proxy, urgent bool) {
	r.dirty[p] = struct{}{}
	r.urgent = r.urgent || urgent
	select {
	case r.wake <- struct{}{}:
	default: // already awake
	}
}

// Sent counts a response.
func (s *Session) Sent(typeURL string) {
	s.count(typeURL, func(c *meshv1.DiscoveryServiceStats) { c.ResponsesSent++ }, nil)
}

// Answered counts an acknowledgement, or a rejection when nack is not empty.
func (s *Session) Answered(typeURL, nack string) {
	if nack == "" {
		s.count(typeURL, func(c *meshv1.DiscoveryServiceStats) { c.ResponsesAcknowledged++ }, nil)
		return
	}
	s.count(typeURL, func(c *meshv1.DiscoveryServiceStats) { c.ResponsesRejected++ }, &meshv1.Rejection{
		TypeUrl: clip(typeURL), Message: clipTo(nack, maxErrorBytes), Time: timestamppb.Now(),
	})
}

func (s *Session) count(typeURL string, add func(*meshv1.DiscoveryServiceStats), rejection *meshv1.Rejection) {
	if s.aside {
		return
	}
	r := s.registry
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closing {
		return
	}
	st := s.sub.GetStatus()
	st.LastUpdateTime = timestamppb.Now()
	add(st.GetTotal())
	kind, known := xds.KindOf(typeURL)
	if known {
		switch kind { //nolint:exhaustive // of the others there is only the total
		case xds.Cluster:
			add(st.GetCds())
		case xds.Endpoint:
			add(st.GetEds())
		case xds.Listener:
			add(st.GetLds())
		case xds.Route:
			add(st.GetRds())
		}
	}
	if rejection != nil {
		st.LastRejection = rejection
	}
	r.markLocked(s.proxy, false)
}

// Certificate is the identity that a proxy has been given.
type Certificate struct {
	// Backend issued it. Supported are the backends that the proxy trusts.
	Backend          string
	Supported        []string
	Issued, NotAfter time.Time
}

// Certificate tells of the identity of a connected proxy; nil: its mesh has no mutual TLS. It does nothing for one that is
// not connected.
func (r *Registry) Certificate(nodeID string, c *Certificate) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.connectedLocked(nodeID)
	if p == nil {
		return
	}
	old := p.insight.mtls
	if c == nil {
		if old != nil {
			p.insight.mtls = nil
			r.markLocked(p, false)
		}
		return
	}
	now := &meshv1.DataplaneInsight_MTLS{
		CertificateExpirationTime: timestamppb.New(c.NotAfter), LastCertificateRegeneration: timestamppb.New(c.Issued),
		IssuedBackend: c.Backend, SupportedBackends: slices.Clone(c.Supported), CertificateRegenerations: old.GetCertificateRegenerations(),
	}
	if proto.Equal(old, now) {
		return
	}
	if old == nil || !old.GetCertificateExpirationTime().AsTime().Equal(c.NotAfter) || old.GetIssuedBackend() != c.Backend ||
		!slices.Equal(old.GetSupportedBackends(), c.Supported) {
		now.CertificateRegenerations++
	}
	p.insight.mtls = now
	r.markLocked(p, false)
}

// ConfigError tells why no new configuration can be made for a connected proxy; "" when it can again.
func (r *Registry) ConfigError(nodeID, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.connectedLocked(nodeID)
	if p == nil {
		return
	}
	text = clipTo(text, maxErrorBytes)
	st := p.streams[len(p.streams)-1].sub.GetStatus()
	if st.GetConfigError() != text {
		st.ConfigError = text
		r.markLocked(p, false)
	}
}

func (r *Registry) connectedLocked(nodeID string) *proxy {
	if p := r.proxies[nodeID]; p != nil && len(p.streams) > 0 && !r.closing {
		return p
	}
	return nil
}

// storeInsights stores the insights that have changed, until ctx ends; then once more, with every subscription closed.
func (r *Registry) storeInsights(ctx context.Context) error {
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return r.shutDown(ctx)
		case <-r.wake:
		}
		if !r.hold(ctx, last.Add(r.cfg.InsightInterval)) {
			return r.shutDown(ctx)
		}
		last = time.Now()
		if err := r.flush(ctx); err != nil && ctx.Err() == nil {
			r.log.WarnContext(ctx, "insights about proxies could not be stored and will be again", "err", err)
		}
	}
}

// hold waits until a time, or until something is urgent. It reports false when ctx has ended.
func (r *Registry) hold(ctx context.Context, until time.Time) bool {
	timer := time.NewTimer(time.Until(until))
	defer timer.Stop()
	for {
		r.mu.Lock()
		urgent := r.urgent
		r.urgent = false
		r.mu.Unlock()
		if urgent {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-timer.C:
			return true
		case <-r.wake:
		}
	}
}

// shutdownTimeout bounds how long the last insights may take.
const shutdownTimeout = 10 * time.Second

// shutDown ends every stream and stores that it did.
func (r *Registry) shutDown(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	r.mu.Lock()
	r.closing = true
	now := timestamppb.Now()
	for _, p := range r.proxies {
		for _, s := range slices.Concat(p.streams, p.aside) {
			s.endLocked(errShuttingDown)
		}
		if p.insight != nil && p.insight.closeAll(now) {
			r.dirty[p] = struct{}{}
		}
	}
	r.mu.Unlock()
	if err := r.flush(ctx); err != nil {
		r.log.ErrorContext(ctx, "it could not be stored that proxies are disconnected; the next start will", "err", err)
	}
	return nil
}

// encoded is an insight on its way to the store.
type encoded struct {
	proxy *proxy
	spec  []byte
}

// flush stores what has changed in one batch. What could not be stored stays to be.
func (r *Registry) flush(ctx context.Context) error {
	r.mu.Lock()
	changed := slices.Collect(maps.Keys(r.dirty))
	clear(r.dirty)
	r.mu.Unlock()
	if len(changed) == 0 {
		return nil
	}
	batch := make([]encoded, 0, len(changed))
	for _, p := range changed {
		r.mu.Lock()
		spec, err := p.insight.encode(p.kind)
		r.mu.Unlock()
		if err != nil {
			r.log.ErrorContext(ctx, "an insight cannot be stored", "type", p.insKey.Type, "mesh", p.insKey.Mesh, "name", p.insKey.Name, "err", err)
			continue
		}
		batch = append(batch, encoded{p, spec})
	}
	now := time.Now().UTC()
	_, err := r.store.Update(ctx, func(head *store.Snapshot) ([]store.Op, error) {
		ops := make([]store.Op, 0, len(batch))
		for _, e := range batch {
			if op, ok := putInsight(head, e, now); ok {
				ops = append(ops, op)
			}
		}
		return ops, nil
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.metrics.flushes.WithLabelValues("failed").Inc()
		for _, e := range batch {
			r.markLocked(e.proxy, false)
		}
		return fmt.Errorf("store %d insights: %w", len(batch), err)
	}
	r.metrics.flushes.WithLabelValues("stored").Inc()
	for _, e := range batch {
		r.forgetLocked(e.proxy)
	}
	return nil
}

// putInsight makes the op that stores an insight. There is none when the proxy's resource is gone: an insight goes with it.
func putInsight(head *store.Snapshot, e encoded, now time.Time) (store.Op, bool) {
	if owner, ok := head.Get(e.proxy.key); !ok || owner.Origin != "" {
		return store.Op{}, false
	}
	rec := &store.Record{Key: e.proxy.insKey, Spec: e.spec, Created: now, Modified: now}
	if old, ok := head.Get(rec.Key); ok {
		if old.Origin != "" {
			return store.Op{}, false
		}
		rec.Created, rec.Labels = old.Created, old.Labels
	}
	return store.Put(rec), true
}
