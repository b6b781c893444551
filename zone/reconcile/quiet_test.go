package reconcile

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
)

// What is deleted is not remembered for ever. When all of it was of no concern, the next change is a change like any other.
func TestWhatIsOfNoConcernDoesNotMakeTheNextChangeReadEverythingAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st, err := store.Open(t.Context(), memory.New(), store.Options{MaxTombstones: 5})
		if err != nil {
			t.Fatal(err)
		}
		var unused *store.Store
		r := newRig(t, func(o *Options) { unused, o.Store = o.Store, st })
		defer func() { _ = unused.Close() }()
		r.st = st
		r.write(put(resource.Mesh, "", "m", &meshv1.Mesh{}), put(resource.Dataplane, "m", "a", workload("10.0.0.1", nil, in(80, tags{"kuma.io/service": "web"}))))
		r.start()
		defer func() { r.stop() }()
		r.r.Connected(sidecar("m", "a"))
		time.Sleep(time.Second)
		synctest.Wait()
		world := r.r.world
		for i := range 50 {
			name := fmt.Sprint("b", i)
			r.write(put(resource.DataplaneInsight, "m", name, &meshv1.DataplaneInsight{}))
			r.write(del(resource.DataplaneInsight, "m", name))
			synctest.Wait()
		}
		_, before := r.pub.get("m.a")
		r.write(put(resource.Dataplane, "m", "a", workload("10.0.0.1", nil, in(81, tags{"kuma.io/service": "web"}))))
		time.Sleep(time.Second)
		synctest.Wait()
		if _, after := r.pub.get("m.a"); after != before+1 {
			t.Errorf("the change was published %d times", after-before)
		}
		if r.r.world != world {
			t.Error("everything was read anew")
		}
	})
}
