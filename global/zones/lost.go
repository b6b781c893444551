package zones

import (
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/sync/kds"
)

// withdrawals are the changes to head that make the stored lost zones those whose resources are to be kept from the others, where
// changed are records of sessions that the same batch writes. They are asked for when a zone is lost or there again, and depend
// on nothing but these records, so they are the same from every replica. That a replica died changes nothing: its sessions
// ended, but its zones are not lost.
//
// While more zones are lost than are connected, the more likely explanation is that this plane is the one cut off, and none is
// withdrawn.
func (t *Table) withdrawals(head *store.Snapshot, changed map[string]Holder) []store.Op {
	lost, connected := make(map[string]bool), 0
	count := func(zone string, h Holder) {
		switch {
		case h.Live():
			connected++
		case h.Lost && t.cfg.WithdrawLost:
			lost[zone] = true
		}
	}
	for rec := range head.List(HolderType, "") {
		if _, ok := changed[rec.Key.Name]; ok {
			continue
		}
		if h, ok := readHolder(rec); ok {
			count(rec.Key.Name, h)
		}
	}
	for zone, h := range changed {
		count(zone, h)
	}
	if len(lost) > connected {
		clear(lost)
	}
	var ops []store.Op
	for rec := range head.List(kds.LostZoneKey("").Type, "") {
		if !lost[rec.Key.Name] {
			ops = append(ops, store.Delete(rec.Key))
		}
	}
	for name := range lost {
		if _, ok := head.Get(kds.LostZoneKey(name)); !ok {
			ops = append(ops, store.Put(&store.Record{Key: kds.LostZoneKey(name)}))
		}
	}
	return ops
}
