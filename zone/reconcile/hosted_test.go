package reconcile

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/zone/envoy"
	"github.com/meridian-mesh/meridian/zone/xds"
)

func TestAProxyWhoseAddressIsAHostNameListensOnWhatItStandsFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var address atomic.Value
		address.Store("")
		r := newRig(t, func(o *Options) {
			o.Builders = Builders{Sidecar: SidecarBuilder(newAuthority(t)), LoadAssignment: envoy.LoadAssignment}
			o.Resolve = func(_ context.Context, host string) ([]string, error) {
				if a := address.Load().(string); host == "web.internal" && a != "" {
					return []string{a}, nil
				}
				return nil, errors.New("no such host")
			}
		})
		r.start()
		defer func() { r.stop() }()
		dp := workload("web.internal", nil, in(8080, tags{"kuma.io/service": "web"}))
		// Others reach it elsewhere, so that nobody but the proxy itself needs the name.
		dp.Networking.AdvertisedAddress = "192.0.2.1"
		r.write(put(resource.Mesh, "", "m", &meshv1.Mesh{}), put(resource.Dataplane, "m", "a", dp))
		r.r.Connected(sidecar("m", "a"))
		time.Sleep(time.Second)
		synctest.Wait()
		if c, _ := r.pub.get("m.a"); c != nil || !strings.Contains(r.pub.failure("m.a"), "web.internal") {
			t.Fatalf("before the name is known: %v, failure %q", c, r.pub.failure("m.a"))
		}
		for _, a := range []string{"10.0.0.7", "10.0.0.8"} {
			address.Store(a)
			time.Sleep(2 * resolveInterval)
			synctest.Wait()
			c, _ := r.pub.get("m.a")
			if c == nil || c.Get(xds.Listener, "inbound:"+a+":8080") == nil || r.pub.failure("m.a") != "" {
				t.Fatalf("at %s: %v, failure %q", a, c, r.pub.failure("m.a"))
			}
		}
		r.r.Disconnected("m.a")
		time.Sleep(time.Second)
		synctest.Wait()
		if len(r.r.hosted) > 0 {
			t.Errorf("the host name of a proxy that has gone is still wanted")
		}
	})
}
