package reconcile

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/zone/envoy"
	"github.com/meridian-mesh/meridian/zone/xds"
)

// crowd is a rig with n connected sidecars, the first of which have an outbound to the service that changes; all have ten more.
func crowd(b *testing.B, n, dependents int, change func(*Options)) (r *rig, publications *atomic.Int64) {
	b.Helper()
	publications = new(atomic.Int64)
	r = newRig(b, func(o *Options) {
		o.Builders = Builders{Sidecar: SidecarBuilder(newAuthority(b)), LoadAssignment: envoy.LoadAssignment}
		if change != nil {
			change(o)
		}
	})
	r.pub.then = func(string, *xds.Config) { publications.Add(1) }
	ops := secured(b, "default")
	for i := range n {
		outbounds := make([]string, 0, 11)
		for j := range 10 {
			outbounds = append(outbounds, fmt.Sprintf("service-%d", (i+j)%100))
		}
		if i < dependents {
			outbounds = append(outbounds, "changing")
		}
		dp := workload(fmt.Sprintf("10.1.%d.%d", i/250, i%250), outbounds,
			in(80, tags{"kuma.io/service": fmt.Sprintf("service-%d", i%100), "kuma.io/protocol": "http"}))
		ops = append(ops, put(resource.Dataplane, "default", fmt.Sprintf("dp-%d", i), dp))
	}
	ops = append(ops, changing(0))
	r.write(ops...)
	r.start()
	return r, publications
}

func changing(i int) store.Op {
	return put(resource.Dataplane, "default", "changing", workload(fmt.Sprintf("10.2.0.%d", 1+i%2), nil,
		in(80, tags{"kuma.io/service": "changing", "kuma.io/protocol": "http"})))
}

func await(b *testing.B, n *atomic.Int64, want int64) {
	b.Helper()
	for deadline := time.Now().Add(time.Minute); n.Load() < want; time.Sleep(50 * time.Microsecond) {
		if time.Now().After(deadline) {
			b.Fatalf("%d publications of %d", n.Load(), want)
		}
	}
}

// BenchmarkEndpointChange has a thousand connected proxies and moves an endpoint: the time until all that depend on it have the
// new one published, the holdoff included.
func BenchmarkEndpointChange(b *testing.B) {
	for _, dependents := range []int{10, 100, 1000} {
		b.Run(fmt.Sprint(dependents), func(b *testing.B) {
			r, n := crowd(b, 1000, dependents, nil)
			defer r.stop()
			for i := range 1000 {
				r.r.Connected(sidecar("default", fmt.Sprintf("dp-%d", i)))
			}
			await(b, n, 1000)
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				n.Store(0)
				r.write(changing(i + 1))
				await(b, n, int64(dependents))
			}
		})
	}
}

// BenchmarkColdStart connects a thousand proxies at once to a plane that has just started.
func BenchmarkColdStart(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		r, n := crowd(b, 1000, 100, nil)
		b.StartTimer()
		for i := range 1000 {
			r.r.Connected(sidecar("default", fmt.Sprintf("dp-%d", i)))
		}
		await(b, n, 1000)
		b.StopTimer()
		r.stop()
		b.StartTimer()
	}
}

// BenchmarkBurst writes a thousand dataplanes, one commit each by eight writers, as when many workloads start at once, while a
// thousand proxies are connected that all depend on them: the time from the first commit until each proxy has all of them, and how
// many configurations were published for it on the way, by the holdoff.
func BenchmarkBurst(b *testing.B) {
	const writes, writers, proxies = 1000, 8, 1000
	for _, holdoff := range []time.Duration{-1, 5 * time.Millisecond, 20 * time.Millisecond, 100 * time.Millisecond} {
		b.Run(fmt.Sprint(max(holdoff, 0)), func(b *testing.B) {
			r, n := crowd(b, proxies, proxies, func(o *Options) { o.Holdoff = holdoff })
			defer r.stop()
			for i := range proxies {
				r.r.Connected(sidecar("default", fmt.Sprintf("dp-%d", i)))
			}
			await(b, n, proxies)
			var complete atomic.Int64
			var round atomic.Uint32
			r.pub.mu.Lock()
			r.pub.then = func(_ string, c *xds.Config) {
				n.Add(1)
				if cla, ok := c.Get(xds.Endpoint, "changing").Message.(*endpointv3.ClusterLoadAssignment); ok && hasAll(cla, writes+1, round.Load()) {
					complete.Add(1)
				}
			}
			r.pub.mu.Unlock()
			n.Store(0)
			for b.Loop() {
				complete.Store(0)
				port := round.Add(1)
				var wg sync.WaitGroup
				for w := range writers {
					wg.Go(func() {
						for i := w; i < writes; i += writers {
							r.write(put(resource.Dataplane, "default", fmt.Sprintf("burst-%d", i), workload(fmt.Sprintf("10.3.%d.%d", i/250, i%250), nil,
								in(1000+port, tags{"kuma.io/service": "changing", "kuma.io/protocol": "http"}))))
						}
					})
				}
				wg.Wait()
				await(b, &complete, proxies)
			}
			b.ReportMetric(float64(n.Load())/float64(b.N)/proxies, "configurations/proxy")
		})
	}
}

// hasAll reports whether there are n endpoints, and all but one are of a round.
func hasAll(cla *endpointv3.ClusterLoadAssignment, n int, round uint32) bool {
	total, now := 0, 0
	for _, l := range cla.GetEndpoints() {
		total += len(l.GetLbEndpoints())
		for _, e := range l.GetLbEndpoints() {
			if e.GetEndpoint().GetAddress().GetSocketAddress().GetPortValue() == 1000+round {
				now++
			}
		}
	}
	return total == n && now == n-1
}
