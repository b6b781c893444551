package gateway_test

import (
	"fmt"
	"testing"

	"github.com/meridian-mesh/meridian/api/gateway"
	"github.com/meridian-mesh/meridian/common/store"
)

func BenchmarkOf(b *testing.B) {
	for _, n := range []int{100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			records := []*store.Record{meshGateway(`{"port":80,"protocol":"HTTP"}`)}
			for i := range n {
				records = append(records, httpRoute(fmt.Sprintf("r-%d", i), fmt.Sprintf("h-%d.example.com", i)))
			}
			set := newSet(b, records...)
			dp := builtin(tags{"kuma.io/service": "edge"})
			for b.Loop() {
				gateway.Of(set, dp)
			}
		})
	}
}
