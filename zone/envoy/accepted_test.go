package envoy_test

import (
	"fmt"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/meridian-mesh/meridian/api/validate"
	"github.com/meridian-mesh/meridian/zone/envoy"
)

// What the API lets in must not keep a proxy from its configuration, and Envoy must take what is made of it: it refuses some
// things that its schema allows.
func TestWhatIsAcceptedIsConfigured(t *testing.T) {
	const everyone = "sources: [{match: {kuma.io/service: \"*\"}}]\ndestinations: [{match: {kuma.io/service: \"*\"}}]\n"
	const toWeb = "sources: [{match: {kuma.io/service: \"*\"}}]\ndestinations: [{match: {kuma.io/service: web, kuma.io/protocol: http}}]\n"
	const outbound = "  outbound: [{port: 10001, tags: {kuma.io/service: api}}]\n"
	const api = `---
type: Dataplane
mesh: default
name: api-1
networking:
  address: 10.0.0.2
  inbound: [{port: 80, tags: {kuma.io/service: api, kuma.io/protocol: http}}]
`
	tests := []struct{ name, typ, conf string }{
		{"a connect timeout of nothing", "Timeout", everyone + `conf: {connectTimeout: 0s}`},
		{"a circuit breaker that looks at once", "CircuitBreaker", everyone + `conf: {interval: 0s, detectors: {totalErrors: {}}}`},
		{"a circuit breaker that ejects for no time", "CircuitBreaker", everyone + `conf: {baseEjectionTime: 0s, detectors: {totalErrors: {}}}`},
		{"a choice of one", "TrafficRoute", everyone + `conf: {loadBalancer: {leastRequest: {choiceCount: 1}}, destination: {kuma.io/service: "*"}}`},
		{"a ring that is too large", "TrafficRoute", everyone + `conf: {loadBalancer: {ringHash: {maxRingSize: 8388609}}, destination: {kuma.io/service: "*"}}`},
		{"a ring smaller than the usual least", "TrafficRoute", everyone + `conf: {loadBalancer: {ringHash: {maxRingSize: 512}}, destination: {kuma.io/service: "*"}}`},
		{"a ring upside down", "TrafficRoute", everyone + `conf: {loadBalancer: {ringHash: {minRingSize: 4096, maxRingSize: 2048}}, destination: {kuma.io/service: "*"}}`},
		{"a delay of nothing", "FaultInjection", toWeb + `conf: {delay: {percentage: 50, value: 0s}}`},
		{"an abort with an interim status", "FaultInjection", toWeb + `conf: {abort: {percentage: 50, httpStatus: 100}}`},
		{"a bandwidth of nothing", "FaultInjection", toWeb + `conf: {responseBandwidth: {percentage: 50, limit: 0 kbps}}`},
		{"a limit with a status of no name", "RateLimit", toWeb + `conf: {http: {requests: 5, interval: 1s, onRateLimit: {status: 420}}}`},
		{"a limit in no time", "RateLimit", toWeb + `conf: {http: {requests: 5, interval: 10ms}}`},
		{"a retry that waits longer at first", "Retry", everyone + `conf: {http: {numRetries: 1, backOff: {baseInterval: 10s, maxInterval: 1s}}}`},
		{"a health check that sends nothing", "HealthCheck", everyone + `conf: {interval: 1s, timeout: 1s, healthyThreshold: 1, unhealthyThreshold: 1, tcp: {send: "", receive: [""]}}`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, rec := record(t, "type: "+tt.typ+"\nmesh: default\nname: odd\n"+tt.conf)
			if found := validate.Spec(d, rec.Key, rec.Spec); len(found) > 0 {
				t.Fatalf("it is not accepted any more, and can go from this table: %v", found)
			}
			w := parse(t, head+outbound+api+"---\ntype: "+tt.typ+"\nmesh: default\nname: odd\n"+tt.conf+"\n")
			out, err := envoy.Sidecar(w.mesh, w.proxy, w.admin)
			if err != nil {
				t.Fatalf("no configuration: %v", err)
			}
			for _, r := range out.Resources {
				for _, text := range refusedByEnvoy(r.Message) {
					t.Errorf("%s: %s", r.Name, text)
				}
			}
		})
	}
}

// refusedByEnvoy says what of a message Envoy would refuse although its schema allows it.
func refusedByEnvoy(m proto.Message) (found []string) {
	switch m := m.(type) {
	case *anypb.Any:
		inner, err := m.UnmarshalNew()
		if err != nil {
			return []string{err.Error()}
		}
		return refusedByEnvoy(inner)
	case *clusterv3.Cluster_RingHashLbConfig:
		least, most := uint64(1024), uint64(8<<20)
		if m.GetMinimumRingSize() != nil {
			least = m.GetMinimumRingSize().GetValue()
		}
		if m.GetMaximumRingSize() != nil {
			most = m.GetMaximumRingSize().GetValue()
		}
		if least > most {
			found = append(found, fmt.Sprintf("a ring of at least %d and at most %d", least, most))
		}
	case *routev3.RetryPolicy_RetryBackOff:
		if m.GetMaxInterval() != nil && m.GetMaxInterval().AsDuration() < m.GetBaseInterval().AsDuration() {
			found = append(found, "a back off that is less than its base")
		}
	case *typev3.TokenBucket:
		if m.GetFillInterval().AsDuration() < 50*time.Millisecond {
			found = append(found, "a bucket that is filled more often than every 50 ms")
		}
	}
	m.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap() && fd.MapValue().Message() != nil:
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				found = append(found, refusedByEnvoy(v.Message().Interface())...)
				return true
			})
		case fd.IsMap() || fd.Message() == nil:
		case fd.IsList():
			for i := range v.List().Len() {
				found = append(found, refusedByEnvoy(v.List().Get(i).Message().Interface())...)
			}
		default:
			found = append(found, refusedByEnvoy(v.Message().Interface())...)
		}
		return true
	})
	return found
}
