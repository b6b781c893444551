package envoy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tracev3 "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
)

// walk calls visit for m and every message inside it, those packed into an Any included. A packed type that is not known is an
// error.
func walk(m proto.Message, visit func(proto.Message) error) error {
	if packed, ok := m.(*anypb.Any); ok {
		if packed.GetTypeUrl() == "" {
			return nil
		}
		inner, err := packed.UnmarshalNew()
		if err != nil {
			return fmt.Errorf("%s: %w", packed.GetTypeUrl(), err)
		}
		return walk(inner, visit)
	}
	if err := visit(m); err != nil {
		return err
	}
	var failed error
	m.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap():
			if fd.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
					failed = walk(v.Message().Interface(), visit)
					return failed == nil
				})
			}
		case fd.Message() == nil:
		case fd.IsList():
			for i := 0; failed == nil && i < v.List().Len(); i++ {
				failed = walk(v.List().Get(i).Message().Interface(), visit)
			}
		default:
			failed = walk(v.Message().Interface(), visit)
		}
		return failed == nil
	})
	return failed
}

// check applies the rules that the types themselves carry, through everything packed into m.
func check(m proto.Message) error {
	return walk(m, func(m proto.Message) error {
		if len(m.ProtoReflect().GetUnknown()) > 0 {
			return fmt.Errorf("%s: unknown fields", m.ProtoReflect().Descriptor().FullName())
		}
		if v, ok := m.(interface{ ValidateAll() error }); ok {
			return v.ValidateAll()
		}
		return nil
	})
}

// checkResource applies what Envoy checks beyond the rules of the types.
func checkResource(m proto.Message) error {
	if nameOf(m) == "" {
		return errors.New("no name")
	}
	if err := check(m); err != nil {
		return err
	}
	switch m := m.(type) {
	case *clusterv3.Cluster:
		return checkCluster(m)
	case *listenerv3.Listener:
		return checkListener(m)
	case *endpointv3.ClusterLoadAssignment:
		return checkAssignment(m)
	case *routev3.RouteConfiguration:
		return checkRoutes(m)
	}
	return nil
}

func checkCluster(c *clusterv3.Cluster) error {
	switch c.GetType() {
	case clusterv3.Cluster_EDS:
		source := c.GetEdsClusterConfig().GetEdsConfig()
		if source == nil {
			return errors.New("an EDS cluster without eds_config")
		}
		if c.GetLoadAssignment() != nil {
			return errors.New("an EDS cluster with an assignment of its own")
		}
		return checkSource(source)
	case clusterv3.Cluster_STATIC:
		return checkAssignment(c.GetLoadAssignment())
	case clusterv3.Cluster_ORIGINAL_DST:
		if c.GetLbPolicy() != clusterv3.Cluster_CLUSTER_PROVIDED {
			return errors.New("an ORIGINAL_DST cluster must have lb_policy CLUSTER_PROVIDED")
		}
		if c.GetLoadAssignment() != nil {
			return errors.New("an ORIGINAL_DST cluster with an assignment")
		}
	case clusterv3.Cluster_STRICT_DNS, clusterv3.Cluster_LOGICAL_DNS:
		if len(c.GetLoadAssignment().GetEndpoints()) == 0 {
			return errors.New("a DNS cluster without endpoints")
		}
	}
	return nil
}

func checkSource(s *corev3.ConfigSource) error {
	if s.GetAds() == nil {
		return errors.New("a configuration source other than ADS is not known to this stand-in")
	}
	return nil
}

func checkAssignment(a *endpointv3.ClusterLoadAssignment) error {
	for _, group := range a.GetEndpoints() {
		for _, e := range group.GetLbEndpoints() {
			if s := e.GetEndpoint().GetAddress().GetSocketAddress(); s != nil {
				if _, err := netip.ParseAddr(s.GetAddress()); err != nil {
					return fmt.Errorf("malformed IP address: %s", s.GetAddress())
				}
			}
		}
	}
	return nil
}

func checkRoutes(r *routev3.RouteConfiguration) error {
	domains := make(map[string]bool)
	for _, host := range r.GetVirtualHosts() {
		for _, d := range host.GetDomains() {
			if domains[d] {
				return fmt.Errorf("route configuration %q: domain %q is there twice", r.GetName(), d)
			}
			domains[d] = true
		}
	}
	return nil
}

// terminal is whether a network filter answers connections itself, so that it must come last.
func terminal(m proto.Message) bool {
	switch m.(type) {
	case *hcmv3.HttpConnectionManager, *tcpv3.TcpProxy:
		return true
	}
	return false
}

func checkListener(l *listenerv3.Listener) error {
	if l.GetAddress() == nil && l.GetApiListener() == nil {
		return errors.New("no address")
	}
	if s := l.GetAddress().GetSocketAddress(); s != nil {
		if _, err := netip.ParseAddr(s.GetAddress()); err != nil {
			return fmt.Errorf("malformed IP address: %s", s.GetAddress())
		}
		if s.GetProtocol() == corev3.SocketAddress_UDP {
			return nil
		}
	}
	if len(l.GetFilterChains()) == 0 && l.GetDefaultFilterChain() == nil && l.GetApiListener() == nil {
		return errors.New("no filter chains specified")
	}
	var matches []*listenerv3.FilterChainMatch
	for _, chain := range l.GetFilterChains() {
		match := chain.GetFilterChainMatch()
		if match == nil {
			match = &listenerv3.FilterChainMatch{}
		}
		if slices.ContainsFunc(matches, func(m *listenerv3.FilterChainMatch) bool { return proto.Equal(m, match) }) {
			return errors.New("multiple filter chains with the same matching rules")
		}
		matches = append(matches, match)
		for i, f := range chain.GetFilters() {
			m, err := f.GetTypedConfig().UnmarshalNew()
			if err != nil {
				return fmt.Errorf("filter %q: %w", f.GetName(), err)
			}
			last := i == len(chain.GetFilters())-1
			if terminal(m) != last {
				return fmt.Errorf("filter %q: a terminal filter must be the last of its chain, and the last must be terminal", f.GetName())
			}
			if h, ok := m.(*hcmv3.HttpConnectionManager); ok {
				if err := checkHTTP(h); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func checkHTTP(h *hcmv3.HttpConnectionManager) error {
	for i, f := range h.GetHttpFilters() {
		isRouter := f.GetTypedConfig().GetTypeUrl() == "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"
		if isRouter != (i == len(h.GetHttpFilters())-1) {
			return errors.New("the router must be the last http filter, and only that")
		}
	}
	if len(h.GetHttpFilters()) == 0 {
		return errors.New("no http filters: nothing would answer")
	}
	if rds := h.GetRds(); rds != nil {
		return checkSource(rds.GetConfigSource())
	}
	if rc := h.GetRouteConfig(); rc != nil {
		return checkRoutes(rc)
	}
	return nil
}

// references are the names that a resource expects others to have.
type references struct {
	secrets, routes, clusters []string
}

// referencesOf collects them; secrets that are not over ADS are not among them.
func referencesOf(m proto.Message) references {
	var r references
	add := func(to *[]string, name string) {
		if name != "" && !slices.Contains(*to, name) {
			*to = append(*to, name)
		}
	}
	_ = walk(m, func(m proto.Message) error { // everything in m was unpacked once before
		switch m := m.(type) {
		case *tlsv3.SdsSecretConfig:
			if m.GetSdsConfig() != nil {
				add(&r.secrets, m.GetName())
			}
		case *hcmv3.Rds:
			add(&r.routes, m.GetRouteConfigName())
		case *routev3.RouteAction:
			add(&r.clusters, m.GetCluster())
		case *routev3.WeightedCluster_ClusterWeight:
			add(&r.clusters, m.GetName())
		case *routev3.RouteAction_RequestMirrorPolicy:
			add(&r.clusters, m.GetCluster())
		case *tcpv3.TcpProxy:
			add(&r.clusters, m.GetCluster())
		case *tcpv3.TcpProxy_WeightedCluster_ClusterWeight:
			add(&r.clusters, m.GetName())
		case *corev3.GrpcService_EnvoyGrpc:
			add(&r.clusters, m.GetClusterName())
		case *tracev3.ZipkinConfig:
			add(&r.clusters, m.GetCollectorCluster())
		case *tracev3.DatadogConfig:
			add(&r.clusters, m.GetCollectorCluster())
		}
		return nil
	})
	slices.Sort(r.secrets)
	slices.Sort(r.routes)
	slices.Sort(r.clusters)
	return r
}
