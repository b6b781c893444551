package zones

import (
	"github.com/meridian-mesh/meridian/api/server"
	"github.com/meridian-mesh/meridian/common/store"
)

var _ server.ZoneSessions = (*Table)(nil)

// Live says what is known of a zone's connection right now: of a session here what is in memory, of one with another replica what is
// stored. ok is false for a zone that is connected to no other replica and never was to this process.
func (t *Table) Live(snap *store.Snapshot, name string) (live server.ZoneLive, ok bool) {
	t.mu.Lock()
	z := t.zones[name]
	if z == nil || z.session == nil {
		if h, known := HolderOf(snap, name); known && h.Live() && h.Instance != t.cfg.InstanceID {
			t.mu.Unlock()
			return liveOf(h), true
		}
	}
	if z == nil {
		t.mu.Unlock()
		return server.ZoneLive{}, false
	}
	if s := z.session; s != nil {
		live = liveOf(t.holderOf(s))
	}
	live.LastAck = z.lastAck
	publisher := z.last
	t.mu.Unlock()
	if publisher != nil {
		live.Lag = publisher.Lag(snap)
	}
	return live, true
}

func liveOf(h Holder) server.ZoneLive {
	scheme := "grpc://"
	if h.Secure {
		scheme = "grpcs://"
	}
	return server.ZoneLive{Online: h.Online(), URL: scheme + h.Address, Auth: h.Auth, ConnectedSince: h.Since}
}
