package envoy_test

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
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
	// By part: its listener is for requests; it leads somewhere; where it leads is an external service that is reached directly; there
	// is a rule whose first backend it is.
	http, served, external, first map[place]bool
	// ruled are by listener the targetRef policies that count there: a MeshAccessLog, and MeshTrafficPermissions that allow a
	// client. The MeshTrace whose collector is used is at "", the MeshAccessLog of all traffic of a gateway at policy.PassThrough.
	ruled map[string][]string

	refs     map[string]envoy.EndpointRef  // by cluster
	clusters map[string]*clusterv3.Cluster // of a gateway
}

// readInspected finds the numbers of policies in a configuration.
func readInspected(out *envoy.Output, gateway bool) *configured {
	c := &configured{
		shown: make(shown), http: make(map[place]bool), served: make(map[place]bool), external: make(map[place]bool),
		first: make(map[place]bool), ruled: make(map[string][]string),
		refs: make(map[string]envoy.EndpointRef), clusters: make(map[string]*clusterv3.Cluster),
	}
	for _, ref := range out.Endpoints {
		c.refs[ref.Cluster] = ref
	}
	for _, r := range out.Resources {
		m, ok := r.Message.(*clusterv3.Cluster)
		if !ok {
			continue
		}
		c.whole(m)
		if c.clusters[m.GetName()] = m; !gateway {
			service := c.service(m.GetName())
			c.cluster(m, place{Type: inspect.AtService, Name: service, Service: service})
		}
	}
	for _, r := range out.Resources {
		switch m := r.Message.(type) {
		case *listenerv3.Listener:
			if gateway {
				c.gateway(m)
			} else {
				c.listener(m)
			}
		case *routev3.RouteConfiguration:
			port := uint32(number64(m.GetName()[strings.LastIndexByte(m.GetName(), ':')+1:]))
			for _, h := range m.GetVirtualHosts() {
				c.host(port, h)
			}
		}
	}
	return c
}

// whole finds what a cluster says of policies for the whole proxy.
func (c *configured) whole(m *clusterv3.Cluster) {
	at := place{Type: inspect.AtDataplane}
	switch typ, _, _ := strings.Cut(m.GetName(), "-"); {
	case typ == "ProxyTemplate":
		c.shown.add(at, m.GetName())
	case strings.HasPrefix(m.GetName(), "tracing:"):
		c.shown.add(at, strings.TrimPrefix(m.GetName(), "tracing:"))
	case m.GetName() == "meshtrace:zipkin":
		c.rule("", m.GetLoadAssignment().GetEndpoints()[0].GetLbEndpoints()[0].GetEndpoint().GetAddress().GetSocketAddress().GetAddress())
	}
}

// service is that of the endpoints of a cluster. One without a load assignment of its own is external, and there is one such service.
func (c *configured) service(cluster string) string {
	if ref, ok := c.refs[cluster]; ok {
		return ref.Service
	}
	if strings.HasPrefix(cluster, "ext-") {
		return "ext"
	}
	return cluster
}

func (c *configured) cluster(m *clusterv3.Cluster, at place) {
	for _, hc := range m.GetHealthChecks() {
		c.shown.add(at, number("HealthCheck", hc.GetInterval().GetSeconds()))
	}
	for _, limits := range m.GetCircuitBreakers().GetThresholds() {
		c.shown.add(at, number("CircuitBreaker", int64(limits.GetMaxConnections().GetValue())))
	}
}

// defaultConnect is the timeout of a cluster that no Timeout is for; no drawn one has this number.
const defaultConnect = 10

// leads notes that a host of a gateway leads to a cluster, and what the cluster says.
func (c *configured) leads(port uint32, host, cluster string) place {
	at := hostPlace(port, host, c.service(cluster))
	ref, ok := c.refs[cluster]
	c.external[at] = c.external[at] || !ok
	c.shown.add(at, "Destination-"+ref.Tags["route"])
	m := c.clusters[cluster]
	c.cluster(m, at)
	if n := m.GetConnectTimeout().GetSeconds(); n != defaultConnect {
		c.shown.add(at, number("Timeout", n))
	}
	return at
}

// host reads a virtual host of a gateway.
func (c *configured) host(port uint32, h *routev3.VirtualHost) {
	filters := func(at place, packed map[string]*anypb.Any) {
		for _, any := range packed {
			walk(any, func(m proto.Message) {
				switch m := m.(type) {
				case *ratelimitv3.LocalRateLimit:
					c.shown.add(at, number("RateLimit", int64(m.GetTokenBucket().GetMaxTokens())))
				case *faultv3.HTTPFault:
					c.shown.add(at, number("FaultInjection", m.GetDelay().GetFixedDelay().GetSeconds()))
				}
			})
		}
	}
	for _, r := range h.GetRoutes() {
		action := r.GetRoute()
		if action == nil {
			continue
		}
		type share struct {
			cluster string
			filters map[string]*anypb.Any
		}
		shares := []share{{cluster: action.GetCluster()}}
		if split := action.GetWeightedClusters().GetClusters(); len(split) > 0 {
			shares = nil
			for _, w := range split {
				shares = append(shares, share{w.GetName(), w.GetTypedPerFilterConfig()})
			}
		}
		for i, s := range shares {
			at := c.leads(port, h.GetName(), s.cluster)
			c.served[at] = true
			filters(at, s.filters)
			filters(at, r.GetTypedPerFilterConfig())
			if i == 0 {
				c.first[at] = true
				if retry := action.GetRetryPolicy(); retry != nil {
					c.shown.add(at, number("Retry", int64(retry.GetNumRetries().GetValue())))
				}
			}
		}
		for _, m := range action.GetRequestMirrorPolicies() {
			c.leads(port, h.GetName(), m.GetCluster())
		}
	}
}

// gateway reads a listener of a gateway. What metrics are read from is no part of a gateway.
func (c *configured) gateway(l *listenerv3.Listener) {
	if strings.HasPrefix(l.GetName(), "kuma:") {
		return
	}
	walk(l, func(m proto.Message) {
		switch m := m.(type) {
		case *filev3.FileAccessLog:
			if path := strings.TrimPrefix(m.GetPath(), "/"); strings.HasPrefix(path, "TrafficLog") {
				c.shown.add(place{Type: inspect.AtDataplane}, path)
			} else {
				c.rule("pass_through", path)
			}
		case *tcpproxyv3.TcpProxy:
			names := []string{m.GetCluster()}
			if split := m.GetWeightedClusters().GetClusters(); len(split) > 0 {
				names = nil
				for _, w := range split {
					names = append(names, w.GetName())
				}
			}
			for i, name := range names {
				at := c.leads(l.GetAddress().GetSocketAddress().GetPortValue(), "*", name)
				if i == 0 {
					c.first[at] = true
					if m.GetMaxConnectAttempts() != nil {
						c.shown.add(at, number("Retry", int64(m.GetMaxConnectAttempts().GetValue())))
					}
				}
			}
		}
	})
}

func number64(text string) int64 {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		panic(err)
	}
	return n
}

func (c *configured) rule(listener, name string) {
	if !slices.Contains(c.ruled[listener], name) {
		c.ruled[listener] = append(c.ruled[listener], name)
		slices.Sort(c.ruled[listener])
	}
}

func number(typ string, n int64) string { return typ + "-" + strconv.FormatInt(n, 10) }

func (c *configured) listener(l *listenerv3.Listener) {
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
		c.outbound(l, place{Type: inspect.AtOutbound, Name: address, Service: service}, place{Type: inspect.AtService, Name: service, Service: service})
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

func (c *configured) outbound(l *listenerv3.Listener, at, service place) {
	c.logs(l, service)
	leadsTo := func(cluster string) {
		c.served[at], c.served[service] = true, true
		ref, ok := c.refs[cluster]
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
