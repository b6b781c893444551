package zones

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/sync/kds"
)

// steady is a publisher whose peer has everything.
type steady struct{}

func (steady) Lag(*store.Snapshot) int { return 0 }

func (steady) Outcome(store.Revision, []store.Delta) (kds.Outcome, string) {
	return kds.Acknowledged, ""
}

func (steady) Await(string, store.Revision, func()) func() { return func() {} }

// One wait, of which there are as many as there are writes with ?wait, while all zones have what it is about.
func BenchmarkAwait(b *testing.B) {
	for _, zones := range []struct{ online, offline int }{{1, 0}, {100, 0}, {100, 100}} {
		b.Run(fmt.Sprintf("online=%d/offline=%d", zones.online, zones.offline), func(b *testing.B) {
			r := newRig(b)
			for i := range zones.online + zones.offline {
				h := r.zone(b, fmt.Sprint("zone-", i))
				h.PlaneID, h.Session = fmt.Sprint("p", i), fmt.Sprint("s", i)
				_, s := r.open(b, GlobalToZone, h)
				s.Publishing(steady{})
				if i >= zones.online {
					s.Close(nil)
				} else {
					b.Cleanup(func() { s.Close(nil) })
				}
			}
			time.Sleep(100 * time.Millisecond) // what has come and gone is stored
			deltas := []store.Delta{{Key: store.Key{Type: "Mesh", Name: "default"}}}
			rev := r.st.Snapshot().Revision()
			b.ReportAllocs()
			for b.Loop() {
				if d := r.Await(context.Background(), rev, deltas); len(d.Acknowledged) != zones.online || len(d.Offline) != zones.offline {
					b.Fatalf("%+v", d)
				}
			}
		})
	}
}
