package zones

import (
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/version"
	"github.com/meridian-mesh/meridian/sync/kds"
)

// Publishing tells the table which publisher serves a GlobalToZone stream.
func (s *Stream) Publishing(p Publisher) {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	s.publisher = p
	if z := s.table.zones[s.zone]; z != nil {
		z.last = p
	}
	s.table.lookAgainLocked()
}

// Subscribed fills the subscription from the zone's first request.
func (s *Stream) Subscribed(n kds.Node) {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	s.sub.ZoneInstanceId = n.InstanceID
	s.sub.Config = n.Config
	s.sub.Version = &systemv1.Version{KumaCp: &systemv1.KumaCpVersion{
		Version: n.Version.Version, GitTag: n.Version.GitTag, GitCommit: n.Version.GitCommit, BuildDate: n.Version.BuildDate,
		KumaCpGlobalCompatible: compatible(version.KDS, n.Version.Version),
	}}
	s.table.markLocked(s.zone, true)
}

// Sent counts a response.
func (s *Stream) Sent(t resource.Type) {
	s.count(t, func(c *systemv1.KDSServiceStats) { c.ResponsesSent++ })
}

// Acked counts an acknowledgement.
func (s *Stream) Acked(t resource.Type) {
	s.count(t, func(c *systemv1.KDSServiceStats) { c.ResponsesAcknowledged++ })
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	if z := s.table.zones[s.zone]; z != nil {
		z.lastAck = time.Now()
	}
}

// Rejected counts a rejection.
func (s *Stream) Rejected(t resource.Type, _ string) {
	s.count(t, func(c *systemv1.KDSServiceStats) { c.ResponsesRejected++ })
}

func (s *Stream) count(t resource.Type, add func(*systemv1.KDSServiceStats)) {
	s.table.mu.Lock()
	defer s.table.mu.Unlock()
	st := s.sub.GetStatus()
	st.LastUpdateTime = timestamppb.Now()
	add(st.GetTotal())
	if _, known := resource.Lookup(t); known { // a peer may ask for anything; the map stays bounded
		c := st.Stat[string(t)]
		if c == nil {
			c = &systemv1.KDSServiceStats{}
			st.Stat[string(t)] = c
		}
		add(c)
	}
	s.table.markLocked(s.zone, false)
}

// Insight returns the zone's insight as it is right now, where this replica knows more of it than is stored.
func (t *Table) Insight(name string) (*systemv1.ZoneInsight, bool) {
	snap := t.store.Snapshot()
	t.mu.Lock()
	z := t.zones[name]
	if z == nil || (z.session == nil && len(z.subs) == 0) {
		t.mu.Unlock()
		return nil, false
	}
	d := t.draftLocked(z)
	claimed := false
	if s := z.session; s != nil {
		held, known := HolderOf(snap, name)
		right := t.rightLocked(s, held, known)
		claimed = right == own || right == free
	}
	t.mu.Unlock()
	return t.insightOf(snap, d, claimed), true
}

// insightOf is the insight of a zone with what this replica has to say: its own subscriptions, and when streams were opened and
// checked last, where that was here. What others have written stays. Where the session of d has the zone, or is about to,
// no other subscription than that session's is open.
func (t *Table) insightOf(head *store.Snapshot, d draft, claimed bool) *systemv1.ZoneInsight {
	insight := &systemv1.ZoneInsight{}
	if rec, ok := head.Get(insightKey(d.zone.name)); ok {
		insight = t.readInsight(rec)
	}
	for _, sub := range d.subs {
		same := func(s *systemv1.KDSSubscription) bool { return s.GetId() == sub.GetId() }
		if i := slices.IndexFunc(insight.GetSubscriptions(), same); i >= 0 {
			insight.Subscriptions[i] = sub
		} else {
			insight.Subscriptions = append(insight.Subscriptions, sub)
		}
	}
	closeOpen(insight, timestamppb.Now(), func(s *systemv1.KDSSubscription) bool {
		return s.GetId() != d.open && (claimed || s.GetGlobalInstanceId() == t.cfg.InstanceID)
	})
	// One that ended before others began may come to be stored only after them.
	slices.SortStableFunc(insight.GetSubscriptions(), func(a, b *systemv1.KDSSubscription) int {
		return a.GetConnectTime().AsTime().Compare(b.GetConnectTime().AsTime())
	})
	insight.Subscriptions = newest(insight.GetSubscriptions(), t.cfg.SubscriptionLimit)
	if insight.KdsStreams == nil {
		insight.KdsStreams = &systemv1.KDSStreams{}
	}
	for kind := range Kind(kinds) {
		if ours, stored := *stampOf(d.opened, kind), stampOf(insight.KdsStreams, kind); ours != nil && !later((*stored).GetConnectTime(), ours.GetConnectTime()) {
			*stored = ours
		}
	}
	insight.EnvoyAdminStreams = &systemv1.EnvoyAdminStreams{
		ConfigDumpGlobalInstanceId: insight.GetKdsStreams().GetConfigDump().GetGlobalInstanceId(),
		StatsGlobalInstanceId:      insight.GetKdsStreams().GetStats().GetGlobalInstanceId(),
		ClustersGlobalInstanceId:   insight.GetKdsStreams().GetClusters().GetGlobalInstanceId(),
	}
	if later(d.checked, insight.GetHealthCheck().GetTime()) {
		insight.HealthCheck = &systemv1.HealthCheck{Time: d.checked}
	}
	return insight
}

// later reports whether a is after b; nil is before everything.
func later(a, b *timestamppb.Timestamp) bool {
	return a != nil && (b == nil || a.AsTime().After(b.AsTime()))
}

// stampOf is where it is noted when and on which replica a stream of a kind was last opened.
func stampOf(s *systemv1.KDSStreams, kind Kind) **systemv1.KDSStream {
	switch kind {
	case ZoneToGlobal:
		return &s.ZoneToGlobal
	case XDSConfigs:
		return &s.ConfigDump
	case Stats:
		return &s.Stats
	case Clusters:
		return &s.Clusters
	default:
		return &s.GlobalToZone
	}
}

// newest returns the last subscriptions, up to limit.
func newest(subs []*systemv1.KDSSubscription, limit int) []*systemv1.KDSSubscription {
	return subs[max(0, len(subs)-limit):]
}

func without(subs []*systemv1.KDSSubscription, id string) []*systemv1.KDSSubscription {
	return slices.DeleteFunc(subs, func(s *systemv1.KDSSubscription) bool { return s.GetId() == id })
}

// closeOpen gives the open subscriptions that match a disconnect time and reports whether there was one.
func closeOpen(insight *systemv1.ZoneInsight, at *timestamppb.Timestamp, match func(*systemv1.KDSSubscription) bool) bool {
	changed := false
	for _, s := range insight.GetSubscriptions() {
		if s.GetDisconnectTime() == nil && match(s) {
			s.DisconnectTime, changed = at, true
		}
	}
	return changed
}

func insightKey(zone string) store.Key {
	return store.Key{Type: string(resource.ZoneInsight), Name: zone}
}

// readInsight decodes a stored insight. One that cannot be read starts over.
func (t *Table) readInsight(rec *store.Record) *systemv1.ZoneInsight {
	insight := &systemv1.ZoneInsight{}
	if err := proto.Unmarshal(rec.Spec, insight); err != nil {
		t.log.Error("a stored zone insight cannot be read and starts over", "zone", rec.Key.Name, "err", err)
		return &systemv1.ZoneInsight{}
	}
	return insight
}

func putInsight(head *store.Snapshot, name string, insight *systemv1.ZoneInsight) (store.Op, error) {
	spec, err := proto.MarshalOptions{Deterministic: true}.Marshal(insight)
	if err != nil {
		return store.Op{}, fmt.Errorf("encode the insight of zone %q: %w", name, err)
	}
	now := time.Now().UTC()
	rec := &store.Record{Key: insightKey(name), Spec: spec, Created: now, Modified: now}
	if old, ok := head.Get(rec.Key); ok {
		rec.Created, rec.Labels = old.Created, old.Labels
	}
	return store.Put(rec), nil
}

// compatible reports whether a zone of version theirs may work with a global of version ours: the same major and
// minors at most two apart. What cannot be parsed is given the benefit of the doubt (insights.md §2).
func compatible(ours, theirs string) bool {
	major, minor, ok := version.MajorMinor(ours)
	theirMajor, theirMinor, known := version.MajorMinor(theirs)
	if !ok || !known {
		return true
	}
	return major == theirMajor && max(minor, theirMinor)-min(minor, theirMinor) <= 2
}
