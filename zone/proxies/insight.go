package proxies

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

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

func (c *Certificate) equal(o *Certificate) bool {
	if c == nil || o == nil {
		return c == o
	}
	return c.Backend == o.Backend && slices.Equal(c.Supported, o.Supported) && c.Issued.Equal(o.Issued) && c.NotAfter.Equal(o.NotAfter)
}

// certified is what was told of a proxy's certificate while it has been connected here: nothing yet, that it needs none (nil),
// or one.
type certified struct {
	told bool
	is   *Certificate
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
	if p.certificate.told && p.certificate.is.equal(c) {
		return
	}
	p.certificate = certified{told: true, is: c}
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
		for _, sub := range p.subscriptions {
			if sub.GetDisconnectTime() == nil {
				sub.DisconnectTime = now
				r.dirty[p] = struct{}{}
			}
		}
	}
	r.mu.Unlock()
	if err := r.flush(ctx); err != nil {
		r.log.ErrorContext(ctx, "it could not be stored that proxies are disconnected; the next start will", "err", err)
	}
	return nil
}

// merged is the insight of a proxy on its way to the store.
type merged struct {
	proxy *proxy
	with  *store.Record // what was stored; nil: nothing
	put   *store.Record // nil: that is as it should be
	// subscriptions are those of this process that are in it, ended those of them that will not change any more.
	subscriptions, ended []*subscription
}

// live is the subscription of the newest stream that has neither ended nor is about to; nil when there is none. It is called with
// Registry.mu held.
func (p *proxy) live() *subscription {
	for _, s := range slices.Backward(p.streams) {
		if s.sub.GetDisconnectTime() == nil && s.Err() == nil {
			return s.sub
		}
	}
	return nil
}

// flush stores what has changed in one batch. What could not be stored stays to be.
//
// Insights are made outside of the committer, from the snapshot, and made again there where another process has written one
// meanwhile.
func (r *Registry) flush(ctx context.Context) error {
	r.mu.Lock()
	changed := slices.Collect(maps.Keys(r.dirty))
	clear(r.dirty)
	r.mu.Unlock()
	if len(changed) == 0 {
		return nil
	}
	now := time.Now().UTC()
	batch := make([]merged, 0, len(changed))
	snap := r.store.Snapshot()
	for _, p := range changed {
		m, err := r.merge(snap, p, now)
		if err != nil {
			r.log.ErrorContext(ctx, "an insight cannot be stored", "type", p.insKey.Type, "mesh", p.insKey.Mesh, "name", p.insKey.Name, "err", err)
			continue
		}
		batch = append(batch, m)
	}
	var final []merged // written by the update, which may still run when it was given up: read only after success
	_, err := r.store.Update(ctx, func(head *store.Snapshot) ([]store.Op, error) {
		final = slices.Clone(batch)
		var ops []store.Op
		for k := range final {
			m := &final[k]
			if owner, ok := head.Get(m.proxy.key); !ok || owner.Origin != "" {
				continue // an insight goes with its owner
			}
			if stored, _ := head.Get(m.proxy.insKey); stored != m.with {
				var err error
				if *m, err = r.merge(head, m.proxy, now); err != nil {
					return nil, err
				}
			}
			if m.put != nil {
				ops = append(ops, store.Put(m.put))
			}
		}
		return ops, nil
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil {
		r.metrics.flushes.WithLabelValues("failed").Inc()
		for _, m := range batch {
			r.markLocked(m.proxy, false)
		}
		return fmt.Errorf("store %d insights: %w", len(batch), err)
	}
	r.metrics.flushes.WithLabelValues("stored").Inc()
	for _, m := range final {
		for _, s := range m.subscriptions {
			s.stored, s.back = true, false
		}
		m.proxy.subscriptions = slices.DeleteFunc(m.proxy.subscriptions, func(s *subscription) bool { return slices.Contains(m.ended, s) })
		r.forgetLocked(m.proxy)
	}
	return nil
}

// merge makes the insight of a proxy from what is stored of it and what this process knows.
func (r *Registry) merge(view *store.Snapshot, p *proxy, now time.Time) (merged, error) {
	m := merged{proxy: p}
	rec := &store.Record{Key: p.insKey, Created: now, Modified: now}
	i := &insight{}
	if m.with, _ = view.Get(p.insKey); m.with != nil {
		if m.with.Origin != "" {
			return m, nil // as another plane sees the proxy
		}
		rec.Created, rec.Labels = m.with.Created, m.with.Labels
		var err error
		if i, err = decodeInsight(p.kind, m.with.Spec); err != nil {
			r.log.Error("a stored insight cannot be read and starts over", "type", p.insKey.Type, "mesh", p.insKey.Mesh, "name", p.insKey.Name, "err", err)
			i = &insight{}
		}
	}
	r.mu.Lock()
	m.subscriptions = slices.Clone(p.subscriptions)
	for _, s := range p.subscriptions {
		if s.GetDisconnectTime() != nil {
			m.ended = append(m.ended, s)
		}
	}
	i.merge(p.subscriptions, p.live(), p.certificate, timestamppb.New(now))
	spec, err := i.encode(p.kind)
	r.mu.Unlock()
	if err != nil {
		return m, err
	}
	if m.with == nil || !bytes.Equal(m.with.Spec, spec) {
		rec.Spec, m.put = spec, rec
	}
	return m, nil
}
