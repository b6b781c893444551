package envoy_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	filev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/meridian-mesh/meridian/api/inspect"
	"github.com/meridian-mesh/meridian/zone/envoy"
)

// configured is what the policies of a random mesh left in a configuration.
type configured struct {
	shown shown
	// By part: its listener is for requests; leads somewhere; leads to an external service that is reached directly.
	http, served, external map[place]bool
	// ruled are by listener the targetRef policies that count there: a MeshAccessLog, and MeshTrafficPermissions that allow a
	// client. The MeshTrace whose collector is used is at "".
	ruled map[string][]string
}

// readInspected finds the numbers of policies in a configuration.
func readInspected(t testing.TB, out *envoy.Output) *configured {
	t.Helper()
	c := &configured{
		shown: make(shown), http: make(map[place]bool), served: make(map[place]bool), external: make(map[place]bool),
		ruled: make(map[string][]string),
	}
	refs := make(map[string]envoy.EndpointRef)
	for _, ref := range out.Endpoints {
		refs[ref.Cluster] = ref
	}
	for _, r := range out.Resources {
		switch m := r.Message.(type) {
		case *clusterv3.Cluster:
			c.cluster(t, m, refs)
		case *listenerv3.Listener:
			c.listener(t, m, refs)
		}
	}
	return c
}

func (c *configured) cluster(t testing.TB, m *clusterv3.Cluster, refs map[string]envoy.EndpointRef) {
	t.Helper()
	whole := place{Type: inspect.AtDataplane}
	switch typ, _, _ := strings.Cut(m.GetName(), "-"); {
	case typ == "ProxyTemplate":
		c.shown.add(whole, m.GetName())
	case strings.HasPrefix(m.GetName(), "tracing:"):
		c.shown.add(whole, strings.TrimPrefix(m.GetName(), "tracing:"))
	case m.GetName() == "meshtrace:zipkin":
		c.rule("", m.GetLoadAssignment().GetEndpoints()[0].GetLbEndpoints()[0].GetEndpoint().GetAddress().GetSocketAddress().GetAddress())
	}
	service := m.GetName()
	if ref, ok := refs[m.GetName()]; ok {
		service = ref.Service
	}
	at := place{Type: inspect.AtService, Name: service, Service: service}
	for _, hc := range m.GetHealthChecks() {
		c.shown.add(at, number("HealthCheck", hc.GetInterval().GetSeconds()))
	}
	for _, limits := range m.GetCircuitBreakers().GetThresholds() {
		c.shown.add(at, number("CircuitBreaker", int64(limits.GetMaxConnections().GetValue())))
	}
}

func (c *configured) rule(listener, name string) {
	if !slices.Contains(c.ruled[listener], name) {
		c.ruled[listener] = append(c.ruled[listener], name)
		slices.Sort(c.ruled[listener])
	}
}

func number(typ string, n int64) string { return typ + "-" + strconv.FormatInt(n, 10) }

func (c *configured) listener(t testing.TB, l *listenerv3.Listener, refs map[string]envoy.EndpointRef) {
	t.Helper()
	direction, address, _ := strings.Cut(l.GetName(), ":")
	service := ""
	if tags := l.GetMetadata().GetFilterMetadata()["io.kuma.tags"]; tags != nil {
		service = tags.GetFields()["kuma.io/service"].GetStringValue()
	}
	bound := l.GetAddress().GetSocketAddress()
	switch {
	case strings.HasPrefix(address, "passthrough"):
		if direction == "outbound" {
			c.logs(l, place{Type: inspect.AtService, Name: "pass_through", Service: "pass_through"})
		}
	case direction == "outbound":
		c.outbound(l, place{Type: inspect.AtOutbound, Name: address, Service: service}, place{Type: inspect.AtService, Name: service, Service: service}, refs)
	case direction == "inbound":
		workload := ""
		walk(l, func(m proto.Message) {
			switch m := m.(type) {
			case *tcpproxyv3.TcpProxy:
				workload = strings.TrimPrefix(m.GetCluster(), "localhost:")
			case *hcmv3.HttpConnectionManager:
				workload = strings.TrimPrefix(m.GetRouteConfig().GetVirtualHosts()[0].GetRoutes()[0].GetRoute().GetCluster(), "localhost:")
			}
		})
		c.inbound(l, place{Type: inspect.AtInbound, Name: address + ":" + workload, Service: service})
	case l.GetName() == "kuma:metrics:prometheus":
		c.inbound(l, place{Type: inspect.AtInbound, Name: fmt.Sprintf("%s:%[2]d:%[2]d", bound.GetAddress(), bound.GetPortValue()), Service: ""})
	}
}

func (c *configured) inbound(l *listenerv3.Listener, at place) {
	c.logs(l, at)
	walk(l, func(m proto.Message) {
		switch m := m.(type) {
		case *hcmv3.HttpConnectionManager:
			c.http[at] = true
		case *faultv3.HTTPFault:
			c.shown.add(at, number("FaultInjection", m.GetDelay().GetFixedDelay().GetSeconds()))
		case *ratelimitv3.LocalRateLimit:
			if m.GetTokenBucket() != nil {
				c.shown.add(at, number("RateLimit", int64(m.GetTokenBucket().GetMaxTokens())))
			}
		case *rbacv3.RBAC:
			for name := range m.GetPolicies() {
				if strings.HasPrefix(name, "TrafficPermission") {
					c.shown.add(at, name)
				}
			}
		case *rbacv3.Principal_Authenticated:
			if _, client, ok := strings.Cut(m.GetPrincipalName().GetExact(), "spiffe://m/MeshTrafficPermission"); ok {
				c.rule(l.GetName(), "MeshTrafficPermission"+client)
			}
		}
	})
}

func (c *configured) outbound(l *listenerv3.Listener, at, service place, refs map[string]envoy.EndpointRef) {
	c.logs(l, service)
	leadsTo := func(cluster string) {
		c.served[at], c.served[service] = true, true
		ref, ok := refs[cluster]
		if !ok {
			c.external[at] = true
		} else if n := ref.Tags["route"]; n != "" {
			c.shown.add(at, "TrafficRoute-"+n)
		}
	}
	timeout := func(d *durationpb.Duration) {
		if d != nil {
			c.shown.add(at, number("Timeout", d.GetSeconds()))
		}
	}
	walk(l, func(m proto.Message) {
		switch m := m.(type) {
		case *hcmv3.HttpConnectionManager:
			c.http[at] = true
			timeout(m.GetStreamIdleTimeout())
			host := m.GetRouteConfig().GetVirtualHosts()[0]
			if retry := host.GetRetryPolicy(); retry != nil {
				c.shown.add(service, number("Retry", int64(retry.GetNumRetries().GetValue())))
			}
			for _, r := range host.GetRoutes() {
				if name := r.GetRoute().GetCluster(); name != "" {
					leadsTo(name)
				}
				for _, w := range r.GetRoute().GetWeightedClusters().GetClusters() {
					leadsTo(w.GetName())
				}
			}
		case *tcpproxyv3.TcpProxy:
			timeout(m.GetIdleTimeout())
			if m.GetMaxConnectAttempts() != nil {
				c.shown.add(service, number("Retry", int64(m.GetMaxConnectAttempts().GetValue())))
			}
			if m.GetCluster() != "" {
				leadsTo(m.GetCluster())
			}
			for _, w := range m.GetWeightedClusters().GetClusters() {
				leadsTo(w.GetName())
			}
		case *ratelimitv3.LocalRateLimit:
			if m.GetTokenBucket() != nil {
				c.shown.add(at, number("RateLimit", int64(m.GetTokenBucket().GetMaxTokens())))
			}
		}
	})
}

func (c *configured) logs(l *listenerv3.Listener, at place) {
	walk(l, func(m proto.Message) {
		if file, ok := m.(*filev3.FileAccessLog); ok {
			switch path := strings.TrimPrefix(file.GetPath(), "/"); {
			case strings.HasPrefix(path, "TrafficLog"):
				c.shown.add(at, path)
			case at.Name != "pass_through": // rules for traffic beside the outbounds are not shown
				c.rule(l.GetName(), path)
			}
		}
	})
}

// walk visits m and all messages in it, also those that are packed.
func walk(m proto.Message, visit func(proto.Message)) {
	if packed, ok := m.(*anypb.Any); ok {
		inner, err := packed.UnmarshalNew()
		if err != nil {
			panic(err)
		}
		walk(inner, visit)
		return
	}
	visit(m)
	m.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap():
			if fd.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
					walk(v.Message().Interface(), visit)
					return true
				})
			}
		case fd.Message() == nil:
		case fd.IsList():
			for i := range v.List().Len() {
				walk(v.List().Get(i).Message().Interface(), visit)
			}
		default:
			walk(v.Message().Interface(), visit)
		}
		return true
	})
}
