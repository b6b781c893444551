package policy_test

import (
	"fmt"
	"slices"
	"testing"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// manyPolicies are n policies of each type with selectors, each for a service of its own; with wild of them for all
// services of a client of its own.
func manyPolicies(n, wild int) []*store.Record {
	var records []*store.Record
	for _, typ := range []resource.Type{
		policy.TrafficRoute, policy.Timeout, policy.RateLimit, policy.TrafficLog, policy.HealthCheck, policy.CircuitBreaker, policy.Retry,
		policy.TrafficPermission, policy.FaultInjection,
	} {
		for i := range n {
			sources, destinations := everything(), []tags{service(fmt.Sprintf("s%d", i))}
			if i < wild {
				sources, destinations = destinations, sources
			}
			records = append(records, record(typ, fmt.Sprintf("p%d", i), connection(sources, destinations, ""), i+1))
		}
		records = append(records, record(typ, "all", connection(everything(), everything(), ""), 1))
	}
	for i := range n {
		records = append(records, permission(fmt.Sprintf("p%d", i), toService(fmt.Sprintf("s%d", i)), item(toMesh, deny), item(toService("a"), allow)))
	}
	return records
}

func client(outbounds int) (*meshv1.Dataplane, policy.Options) {
	var o policy.Options
	for i := range outbounds {
		o.Outbounds = append(o.Outbounds, service(fmt.Sprintf("s%d", i*7)))
	}
	return sidecar(service("s1", "version=1", "kuma.io/protocol=http")), o
}

// BenchmarkMatch shows that a proxy is matched at a cost that depends on what concerns it, not on how many policies for others its
// mesh has: where policies are for others (wild=0), a thousand of a type must cost what ten do.
func BenchmarkMatch(b *testing.B) {
	for _, n := range []int{10, 1000} {
		for _, outbounds := range []int{1, 100} {
			for _, wild := range []int{0, n} {
				b.Run(fmt.Sprintf("policies=%d/wild=%d/outbounds=%d", n, wild, outbounds), func(b *testing.B) {
					set := newSet(b, manyPolicies(n, wild)...)
					dp, o := client(outbounds)
					b.ReportAllocs()
					for b.Loop() {
						m := set.Match(dp, o)
						for _, out := range m.Outbounds {
							m.Service(out.Service)
						}
					}
				})
			}
		}
	}
}

func BenchmarkAffects(b *testing.B) {
	set := newSet(b, manyPolicies(1000, 0)...)
	p := set.Of(policy.Timeout)[500]
	dp, o := client(100)
	b.ReportAllocs()
	for b.Loop() {
		set.Affects(p, dp, o)
	}
}

func BenchmarkNewSetOf10000(b *testing.B) {
	records := manyPolicies(1000, 0)
	b.ReportAllocs()
	for b.Loop() {
		policy.NewSet("default", slices.Values(records))
	}
}

func BenchmarkWithOneOf1000(b *testing.B) {
	set := newSet(b, manyPolicies(1000, 0)...)
	rec := record(policy.Timeout, "p500", connection(everything(), everything(), ""), 1)
	b.ReportAllocs()
	for b.Loop() {
		set.With(store.Change{Key: rec.Key, Record: rec})
	}
}

func BenchmarkRulesOf1000Services(b *testing.B) {
	items := []string{item(toMesh, deny)}
	for i := range 1000 {
		items = append(items, item(toService(fmt.Sprintf("s%d", i)), allow))
	}
	set := newSet(b, permission("p", toMesh, items...))
	dp, _ := client(0)
	b.ReportAllocs()
	for b.Loop() {
		set.Match(dp, policy.Options{})
	}
}
