package zones

import (
	"github.com/meridian-mesh/meridian/api/server"
	"github.com/meridian-mesh/meridian/common/store"
)

var _ server.ZoneSessions = (*Table)(nil)

// Live says what is known of a zone's connection right now. ok is false for a zone that never connected to this process.
func (t *Table) Live(_ *store.Snapshot, name string) (live server.ZoneLive, ok bool) {
	t.mu.Lock()
	z := t.zones[name]
	if z == nil {
		t.mu.Unlock()
		return server.ZoneLive{}, false
	}
	if s := z.session; s != nil {
		live.URL, live.Auth = "grpc://"+s.hello.Address, s.hello.Credential.Method
		if s.hello.Secure {
			live.URL = "grpcs://" + s.hello.Address
		}
		if stream := s.streams[GlobalToZone]; stream != nil {
			live.Online, live.ConnectedSince = true, stream.sub.GetConnectTime().AsTime()
		}
	}
	t.mu.Unlock()
	return live, true
}
