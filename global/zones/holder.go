package zones

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/meridian-mesh/meridian/common/store"
)

// HolderType is the store's type of the records that say which replica of this plane holds the session of a zone, one a zone, named
// like it: bookkeeping, never served nor sent. A record goes with its Zone.
const HolderType = "ZoneSession"

// Holder is the newest session of a zone with this plane, and where it is: the one answer to that which all replicas give.
// It is written by the replica that holds the session; where that one has died, any other may end it.
type Holder struct {
	// Instance is the replica, and Session the session there. A session is known by both.
	Instance string `json:"instance"`
	Session  string `json:"session"`
	// Number counts the sessions of the zone, this one included.
	Number uint64 `json:"number"`
	// Plane is the id of the zone's plane, empty for a Kuma zone.
	Plane string `json:"plane,omitempty"`
	// Address is where the connection comes from, host:port, and Secure that it is a TLS connection.
	Address string `json:"address"`
	Secure  bool   `json:"secure,omitempty"`
	// Auth is how the zone proved who it is: AuthToken, AuthExempt or AuthNone.
	Auth string `json:"auth"`
	// Since is when the zone came online; zero while the stream that makes it so is not open.
	Since time.Time `json:"since,omitzero"`
	// Leaving: the zone has said that it stops.
	Leaving bool `json:"leaving,omitempty"`
	// Ended is when the session ended, zero while it is live. Lost says that nobody had said it would.
	Ended time.Time `json:"ended,omitzero"`
	Lost  bool      `json:"lost,omitempty"`
}

// Live reports whether the session goes on.
func (h Holder) Live() bool { return h.Ended.IsZero() }

// Online reports whether the zone is shown as online.
func (h Holder) Online() bool { return h.Live() && !h.Since.IsZero() }

// HolderOf returns the newest session of a zone in a snapshot; false for a zone that never had one.
func HolderOf(snap *store.Snapshot, zone string) (Holder, bool) {
	rec, ok := snap.Get(holderKey(zone))
	if !ok {
		return Holder{}, false
	}
	return readHolder(rec)
}

func holderKey(zone string) store.Key { return store.Key{Type: HolderType, Name: zone} }

// readHolder decodes a record. One that cannot be read says nothing, and the next session takes its place.
func readHolder(rec *store.Record) (h Holder, ok bool) {
	if json.Unmarshal(rec.Spec, &h) != nil {
		return Holder{}, false
	}
	return h, true
}

func putHolder(zone string, h Holder) (store.Op, error) {
	h.Since, h.Ended = h.Since.UTC(), h.Ended.UTC()
	spec, err := json.Marshal(h)
	if err != nil {
		return store.Op{}, fmt.Errorf("encode the session of zone %q: %w", zone, err)
	}
	return store.Put(&store.Record{Key: holderKey(zone), Spec: spec}), nil
}
