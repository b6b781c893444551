package envoy

import (
	"fmt"
	"maps"
	"slices"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	runtimev3 "github.com/envoyproxy/go-control-plane/envoy/service/runtime/v3"
	"google.golang.org/protobuf/proto"
)

// state is what the proxy has accepted so far and what of it is in use. It has no lock of its own.
type state struct {
	static  map[string]*clusterv3.Cluster // of the bootstrap: never change
	runtime []string                      // layers that come over ADS, wanted before anything else

	subs map[Kind]*subscription

	clusters, warmingClusters   map[string]*cluster
	listeners, warmingListeners map[string]*listener
	secrets                     map[string]*tlsv3.Secret
	routes                      map[string]*routev3.RouteConfiguration
	runtimes                    map[string]*runtimev3.Runtime

	clustersAnswered, clustersReady   bool // the first CDS response came; the first clusters are warm
	listenersAnswered, listenersReady bool

	findings []string
}

// subscription is what Envoy remembers of one kind between requests.
type subscription struct {
	names    []string // asked for; nil for a wildcard
	version  string   // last accepted
	nonce    string   // last received on this stream
	accepted time.Time
	again    bool // ask again although the names are the same: a new watch on one of them
}

type cluster struct {
	proto      *clusterv3.Cluster
	assignment *endpointv3.ClusterLoadAssignment
	secrets    []string
	version    string
	since      time.Time
}

// service is the name of the cluster's endpoints, "" when they are in the cluster itself.
func (c *cluster) service() string {
	if c.proto.GetType() != clusterv3.Cluster_EDS {
		return ""
	}
	if s := c.proto.GetEdsClusterConfig().GetServiceName(); s != "" {
		return s
	}
	return c.proto.GetName()
}

type listener struct {
	proto   *listenerv3.Listener
	refs    references
	version string
	since   time.Time
}

func newState() *state {
	return &state{
		subs:     make(map[Kind]*subscription),
		clusters: make(map[string]*cluster), warmingClusters: make(map[string]*cluster),
		listeners: make(map[string]*listener), warmingListeners: make(map[string]*listener),
		secrets: make(map[string]*tlsv3.Secret), routes: make(map[string]*routev3.RouteConfiguration),
		runtimes: make(map[string]*runtimev3.Runtime), static: make(map[string]*clusterv3.Cluster),
	}
}

func (s *state) find(format string, args ...any) {
	f := fmt.Sprintf(format, args...)
	if !slices.Contains(s.findings, f) {
		s.findings = append(s.findings, f)
	}
}

// verify says why a response must be rejected, nil when it may be applied.
func (s *state) verify(kind Kind, resources []proto.Message) error {
	names := make(map[string]bool, len(resources))
	addresses := make(map[string]string)
	for _, m := range resources {
		name := nameOf(m)
		if err := checkResource(m); err != nil {
			return fmt.Errorf("%s %q: %w", m.ProtoReflect().Descriptor().Name(), name, err)
		}
		if names[name] {
			return fmt.Errorf("duplicate %s %q found", m.ProtoReflect().Descriptor().Name(), name)
		}
		names[name] = true
		if l, ok := m.(*listenerv3.Listener); ok && bound(l) {
			a := fmt.Sprint(l.GetAddress())
			if other, taken := addresses[a]; taken {
				return fmt.Errorf("error adding listener: %q has duplicate address as existing listener %q", name, other)
			}
			addresses[a] = name
		}
		if c, ok := m.(*clusterv3.Cluster); ok && s.static[c.GetName()] != nil {
			return fmt.Errorf("cluster %q is one of the bootstrap", name)
		}
	}
	_ = kind
	return nil
}

// bound is whether a listener has a socket of its own.
func bound(l *listenerv3.Listener) bool {
	//nolint:staticcheck // the older of the two ways to say it is still valid on the wire
	if old := l.GetDeprecatedV1().GetBindToPort(); old != nil && !old.GetValue() {
		return false
	}
	return l.GetApiListener() == nil && (l.GetBindToPort() == nil || l.GetBindToPort().GetValue())
}

// apply takes in a verified response.
func (s *state) apply(kind Kind, version string, resources []proto.Message, now time.Time) {
	switch kind {
	case Clusters:
		s.applyClusters(version, resources, now)
	case Listeners:
		s.applyListeners(version, resources, now)
	case Endpoints:
		for _, m := range resources {
			if a := m.(*endpointv3.ClusterLoadAssignment); s.wanted(kind, a.GetClusterName()) {
				s.applyAssignment(a)
			}
		}
	case Secrets:
		for _, m := range resources {
			if secret := m.(*tlsv3.Secret); s.wanted(kind, secret.GetName()) {
				s.secrets[secret.GetName()] = secret
			}
		}
	case Routes:
		for _, m := range resources {
			if r := m.(*routev3.RouteConfiguration); s.wanted(kind, r.GetName()) {
				s.routes[r.GetName()] = r
			}
		}
	case Runtimes:
		for _, m := range resources {
			if r := m.(*runtimev3.Runtime); s.wanted(kind, r.GetName()) {
				s.runtimes[r.GetName()] = r
			}
		}
	}
}

// wanted is whether a resource was asked for. Envoy ignores others without a word; a control plane should not send them.
func (s *state) wanted(kind Kind, name string) bool {
	if slices.Contains(s.subs[kind].names, name) {
		return true
	}
	s.find("%s %q was sent and not asked for", kind, name)
	return false
}

func (s *state) applyClusters(version string, resources []proto.Message, now time.Time) {
	s.clustersAnswered = true
	there := make(map[string]bool)
	for _, m := range resources {
		c := m.(*clusterv3.Cluster)
		there[c.GetName()] = true
		if old := s.warmingClusters[c.GetName()]; old != nil && proto.Equal(old.proto, c) {
			continue
		}
		if old := s.clusters[c.GetName()]; old != nil && proto.Equal(old.proto, c) {
			delete(s.warmingClusters, c.GetName())
			continue
		}
		n := &cluster{proto: c, secrets: referencesOf(c).secrets, version: version, since: now}
		s.warmingClusters[c.GetName()] = n
		if n.service() != "" {
			s.sub(Endpoints).again = true
		}
	}
	gone := func(name string, _ *cluster) bool { return !there[name] }
	maps.DeleteFunc(s.clusters, gone)
	maps.DeleteFunc(s.warmingClusters, gone)
}

func (s *state) applyListeners(version string, resources []proto.Message, now time.Time) {
	s.listenersAnswered = true
	there := make(map[string]bool)
	for _, m := range resources {
		l := m.(*listenerv3.Listener)
		there[l.GetName()] = true
		if old := s.warmingListeners[l.GetName()]; old != nil && proto.Equal(old.proto, l) {
			continue
		}
		if old := s.listeners[l.GetName()]; old != nil && proto.Equal(old.proto, l) {
			delete(s.warmingListeners, l.GetName())
			continue
		}
		n := &listener{proto: l, refs: referencesOf(l), version: version, since: now}
		if len(n.refs.routes) > 0 {
			// Providers of a route configuration are shared by name: one that is known is ready at once.
			s.sub(Routes)
		}
		s.warmingListeners[l.GetName()] = n
	}
	gone := func(name string, _ *listener) bool { return !there[name] }
	maps.DeleteFunc(s.listeners, gone)
	maps.DeleteFunc(s.warmingListeners, gone)
}

func (s *state) applyAssignment(a *endpointv3.ClusterLoadAssignment) {
	priorities := make(map[uint32]bool)
	for _, group := range a.GetEndpoints() {
		priorities[group.GetPriority()] = true
	}
	for p := range priorities {
		if p > 0 && !priorities[p-1] {
			s.find("endpoints of %q have priority %d and none with %d", a.GetClusterName(), p, p-1)
		}
	}
	for _, set := range []map[string]*cluster{s.clusters, s.warmingClusters} {
		for _, c := range set {
			if c.service() == a.GetClusterName() {
				c.assignment = a
			}
		}
	}
}

// settle moves to active what has all it waits for, and notes what the active configuration lacks.
func (s *state) settle() {
	for name, c := range s.warmingClusters {
		if len(s.clusterWaits(c)) > 0 {
			continue
		}
		if s.clusters[name] != nil && c.service() != "" {
			s.sub(Endpoints).again = true // the watch of the cluster that is replaced ends
		}
		s.clusters[name] = c
		delete(s.warmingClusters, name)
	}
	if s.clustersAnswered && len(s.warmingClusters) == 0 {
		s.clustersReady = true
	}
	for name, l := range s.warmingListeners {
		if len(s.listenerWaits(l)) == 0 {
			s.listeners[name] = l
			delete(s.warmingListeners, name)
		}
	}
	if s.listenersAnswered && len(s.warmingListeners) == 0 {
		s.listenersReady = true
	}
	for _, d := range s.dangling() {
		s.find("%s", d)
	}
}

func (s *state) clusterWaits(c *cluster) []string {
	var out []string
	if service := c.service(); service != "" && c.assignment == nil {
		out = append(out, fmt.Sprintf("cluster %q waits for endpoints %q", c.proto.GetName(), service))
	}
	for _, name := range c.secrets {
		if s.secrets[name] == nil {
			out = append(out, fmt.Sprintf("cluster %q waits for secret %q", c.proto.GetName(), name))
		}
	}
	return out
}

func (s *state) listenerWaits(l *listener) []string {
	var out []string
	for _, name := range l.refs.secrets {
		if s.secrets[name] == nil {
			out = append(out, fmt.Sprintf("listener %q waits for secret %q", l.proto.GetName(), name))
		}
	}
	for _, name := range l.refs.routes {
		if s.routes[name] == nil {
			out = append(out, fmt.Sprintf("listener %q waits for routes %q", l.proto.GetName(), name))
		}
	}
	return out
}

// waits says what everything that is warming lacks.
func (s *state) waits() []string {
	var out []string
	for _, layer := range s.runtime {
		if s.runtimes[layer] == nil {
			out = append(out, fmt.Sprintf("the start waits for runtime %q", layer))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.warmingClusters)) {
		out = append(out, s.clusterWaits(s.warmingClusters[name])...)
	}
	for _, name := range slices.Sorted(maps.Keys(s.warmingListeners)) {
		out = append(out, s.listenerWaits(s.warmingListeners[name])...)
	}
	return out
}

// dangling says which clusters that the active listeners and routes send traffic to are not there.
func (s *state) dangling() []string {
	var out []string
	note := func(what, name string, refs references) {
		for _, c := range refs.clusters {
			if s.clusters[c] == nil && s.warmingClusters[c] == nil && s.static[c] == nil {
				out = append(out, fmt.Sprintf("%s %q refers to cluster %q, which is not there", what, name, c))
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.listeners)) {
		note("listener", name, s.listeners[name].refs)
	}
	for _, name := range slices.Sorted(maps.Keys(s.routes)) {
		note("route configuration", name, referencesOf(s.routes[name]))
	}
	return out
}

func (s *state) sub(kind Kind) *subscription {
	sub := s.subs[kind]
	if sub == nil {
		sub = &subscription{}
		s.subs[kind] = sub
	}
	return sub
}

// names returns what each kind that is asked for by name should be asked for now; what nobody names any more is forgotten.
func (s *state) names() map[Kind][]string {
	sets := map[Kind]map[string]bool{Endpoints: {}, Secrets: {}, Routes: {}, Runtimes: {}}
	for _, layer := range s.runtime {
		sets[Runtimes][layer] = true
	}
	for _, group := range []map[string]*cluster{s.clusters, s.warmingClusters} {
		for _, c := range group {
			if c.service() != "" {
				sets[Endpoints][c.service()] = true
			}
			for _, name := range c.secrets {
				sets[Secrets][name] = true
			}
		}
	}
	for _, group := range []map[string]*listener{s.listeners, s.warmingListeners} {
		for _, l := range group {
			for _, name := range l.refs.secrets {
				sets[Secrets][name] = true
			}
			for _, name := range l.refs.routes {
				sets[Routes][name] = true
			}
		}
	}
	maps.DeleteFunc(s.secrets, func(name string, _ *tlsv3.Secret) bool { return !sets[Secrets][name] })
	maps.DeleteFunc(s.routes, func(name string, _ *routev3.RouteConfiguration) bool { return !sets[Routes][name] })
	out := make(map[Kind][]string)
	for kind, set := range sets {
		out[kind] = slices.Sorted(maps.Keys(set))
	}
	return out
}

// due returns the kinds to send a request of because what is asked for has changed, in the order of sending.
func (s *state) due() []Kind {
	var out []Kind
	names := s.names()
	for _, kind := range []Kind{Runtimes, Endpoints, Secrets, Routes} {
		sub := s.subs[kind]
		if sub == nil && len(names[kind]) == 0 {
			continue
		}
		sub = s.sub(kind)
		if (sub.again && len(names[kind]) > 0) || !slices.Equal(sub.names, names[kind]) {
			out = append(out, kind)
		}
		sub.again = false
		sub.names = names[kind]
	}
	if s.subs[Clusters] == nil && len(s.runtimes) >= len(s.runtime) {
		s.sub(Clusters)
		out = append(out, Clusters)
	}
	if s.subs[Listeners] == nil && s.clustersReady {
		s.sub(Listeners)
		out = append(out, Listeners)
	}
	return out
}
