package envoy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// admin is Envoy's admin endpoint: plain HTTP where the bootstrap says.
type admin struct {
	p       *Proxy
	started time.Time
	server  *http.Server
	done    sync.WaitGroup
}

func startAdmin(ctx context.Context, p *Proxy) (*admin, error) {
	a := &admin{p: p, started: time.Now()}
	socket := p.bootstrap.GetAdmin().GetAddress().GetSocketAddress()
	if socket == nil {
		return a, nil
	}
	address := net.JoinHostPort(socket.GetAddress(), strconv.Itoa(int(socket.GetPortValue())))
	ln, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("open the admin endpoint: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ready", a.ready)
	mux.HandleFunc("GET /config_dump", a.dump)
	mux.HandleFunc("GET /stats", a.stats)
	mux.HandleFunc("GET /clusters", a.clusters)
	mux.HandleFunc("POST /healthcheck/fail", a.drain(true))
	mux.HandleFunc("POST /healthcheck/ok", a.drain(false))
	a.server = &http.Server{Handler: mux, ReadHeaderTimeout: 30 * time.Second}
	a.done.Go(func() {
		if err := a.server.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			p.log.ErrorContext(ctx, "admin endpoint ended", "err", err)
		}
	})
	return a, nil
}

func (a *admin) close() {
	if a.server != nil {
		_ = a.server.Close()
	}
	a.done.Wait()
}

func (a *admin) state() string {
	a.p.mu.Lock()
	defer a.p.mu.Unlock()
	switch {
	case a.p.draining:
		return "DRAINING"
	case a.p.state.listenersReady:
		return "LIVE"
	case a.p.state.clustersReady:
		return "INITIALIZING"
	}
	return "PRE_INITIALIZING"
}

func (a *admin) ready(w http.ResponseWriter, _ *http.Request) {
	s := a.state()
	w.Header().Set("Content-Type", "text/plain; charset=UTF-8")
	if s != "LIVE" {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	fmt.Fprintln(w, s)
}

func (a *admin) drain(on bool) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		a.p.update(func() { a.p.draining = on })
		fmt.Fprintln(w, "OK")
	}
}

var statNames = map[Kind]string{ //nolint:gochecknoglobals // a constant
	Clusters: "cluster_manager.cds", Listeners: "listener_manager.lds", Endpoints: "cluster.eds", Secrets: "sds", Routes: "http.rds",
	Runtimes: "runtime.rtds",
}

func (a *admin) stats(w http.ResponseWriter, _ *http.Request) {
	c := a.p.Config()
	lines := []string{
		fmt.Sprintf("cluster_manager.active_clusters: %d", len(c.Clusters)),
		fmt.Sprintf("cluster_manager.warming_clusters: %d", len(c.WarmingClusters)),
		fmt.Sprintf("control_plane.connected_state: %d", map[bool]int{true: 1}[c.Connected]),
		fmt.Sprintf("listener_manager.total_listeners_active: %d", len(c.Listeners)),
		fmt.Sprintf("listener_manager.total_listeners_warming: %d", len(c.WarmingListeners)),
		fmt.Sprintf("server.live: %d", map[bool]int{true: 1}[a.state() == "LIVE"]),
		fmt.Sprintf("server.uptime: %d", int(time.Since(a.started).Seconds())),
	}
	for kind, n := range c.Counters {
		lines = append(lines, fmt.Sprintf("%s.update_success: %d", statNames[kind], n.Accepted),
			fmt.Sprintf("%s.update_rejected: %d", statNames[kind], n.Rejected))
	}
	slices.Sort(lines)
	w.Header().Set("Content-Type", "text/plain; charset=UTF-8")
	_, _ = io.WriteString(w, strings.Join(lines, "\n")+"\n")
}

func (a *admin) clusters(w http.ResponseWriter, _ *http.Request) {
	v := a.p.traffic.view.Load()
	w.Header().Set("Content-Type", "text/plain; charset=UTF-8")
	for _, name := range slices.Sorted(maps.Keys(v.clusters)) {
		c := v.clusters[name]
		fmt.Fprintf(w, "%s::added_via_api::%t\n", name, a.p.state.static[name] == nil)
		assignment := c.assignment
		if assignment == nil {
			assignment = c.proto.GetLoadAssignment()
		}
		for _, group := range assignment.GetEndpoints() {
			for _, e := range group.GetLbEndpoints() {
				at := e.GetEndpoint().GetAddress().GetPipe().GetPath()
				if s := e.GetEndpoint().GetAddress().GetSocketAddress(); s != nil {
					at = net.JoinHostPort(s.GetAddress(), strconv.Itoa(int(s.GetPortValue())))
				}
				weight := uint32(1)
				if e.GetLoadBalancingWeight() != nil {
					weight = e.GetLoadBalancingWeight().GetValue()
				}
				health := "healthy"
				if s := e.GetHealthStatus(); s != corev3.HealthStatus_UNKNOWN && s != corev3.HealthStatus_HEALTHY {
					health = "/failed_eds_health"
				}
				fmt.Fprintf(w, "%s::%s::health_flags::%s\n%s::%s::weight::%d\n%s::%s::zone::%s\n%s::%s::priority::%d\n",
					name, at, health, name, at, weight, name, at, group.GetLocality().GetZone(), name, at, group.GetPriority())
			}
		}
	}
}

func (a *admin) dump(w http.ResponseWriter, r *http.Request) {
	dump, err := a.configDump(r.URL.Query().Has("include_eds"))
	var b []byte
	if err == nil {
		b, err = protojson.MarshalOptions{UseProtoNames: true, Multiline: true, Indent: " "}.Marshal(dump)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(b)
}

// configDump is Envoy's /config_dump: secrets are hidden as Envoy hides them.
func (a *admin) configDump(endpoints bool) (*adminv3.ConfigDump, error) {
	a.p.mu.Lock()
	defer a.p.mu.Unlock()
	s := a.p.state
	begun := timestamppb.New(a.started)
	var failed error
	pack := func(m proto.Message) *anypb.Any {
		hidden := proto.Clone(m)
		failed = errors.Join(failed, redact(hidden.ProtoReflect()))
		out, err := anypb.New(hidden)
		failed = errors.Join(failed, err)
		return out
	}
	bootstrap := proto.CloneOf(a.p.bootstrap)
	failed = errors.Join(failed, redact(bootstrap.ProtoReflect()))
	if n := a.p.dumpBytes; n > 0 && bootstrap.GetNode().GetMetadata() != nil {
		bootstrap.Node.Metadata.Fields["long"] = structpb.NewStringValue(strings.Repeat("x", n))
	}

	clusters := &adminv3.ClustersConfigDump{VersionInfo: s.version(Clusters)}
	for _, name := range slices.Sorted(maps.Keys(s.static)) {
		clusters.StaticClusters = append(clusters.StaticClusters,
			&adminv3.ClustersConfigDump_StaticCluster{Cluster: pack(s.static[name]), LastUpdated: begun})
	}
	dynamic := func(set map[string]*cluster) []*adminv3.ClustersConfigDump_DynamicCluster {
		var out []*adminv3.ClustersConfigDump_DynamicCluster
		for _, name := range slices.Sorted(maps.Keys(set)) {
			c := set[name]
			out = append(out, &adminv3.ClustersConfigDump_DynamicCluster{
				VersionInfo: c.version, Cluster: pack(c.proto), LastUpdated: timestamppb.New(c.since),
			})
		}
		return out
	}
	clusters.DynamicActiveClusters, clusters.DynamicWarmingClusters = dynamic(s.clusters), dynamic(s.warmingClusters)

	assignments := &adminv3.EndpointsConfigDump{}
	for _, name := range slices.Sorted(maps.Keys(s.clusters)) {
		if c := s.clusters[name]; c.assignment != nil {
			assignments.DynamicEndpointConfigs = append(assignments.DynamicEndpointConfigs,
				&adminv3.EndpointsConfigDump_DynamicEndpointConfig{VersionInfo: s.version(Endpoints), EndpointConfig: pack(c.assignment)})
		}
	}

	listeners := &adminv3.ListenersConfigDump{VersionInfo: s.version(Listeners)}
	listenerState := func(l *listener) *adminv3.ListenersConfigDump_DynamicListenerState {
		if l == nil {
			return nil
		}
		return &adminv3.ListenersConfigDump_DynamicListenerState{
			VersionInfo: l.version, Listener: pack(l.proto), LastUpdated: timestamppb.New(l.since),
		}
	}
	names := maps.Clone(s.listeners)
	maps.Copy(names, s.warmingListeners)
	for _, name := range slices.Sorted(maps.Keys(names)) {
		listeners.DynamicListeners = append(listeners.DynamicListeners, &adminv3.ListenersConfigDump_DynamicListener{
			Name: name, ActiveState: listenerState(s.listeners[name]), WarmingState: listenerState(s.warmingListeners[name]),
		})
	}

	routes := &adminv3.RoutesConfigDump{}
	for _, name := range slices.Sorted(maps.Keys(s.routes)) {
		routes.DynamicRouteConfigs = append(routes.DynamicRouteConfigs, &adminv3.RoutesConfigDump_DynamicRouteConfig{
			VersionInfo: s.version(Routes), RouteConfig: pack(s.routes[name]), LastUpdated: timestamppb.New(s.sub(Routes).accepted),
		})
	}

	secrets := &adminv3.SecretsConfigDump{}
	for _, secret := range a.p.bootstrap.GetStaticResources().GetSecrets() {
		secrets.StaticSecrets = append(secrets.StaticSecrets,
			&adminv3.SecretsConfigDump_StaticSecret{Name: secret.GetName(), Secret: pack(secret), LastUpdated: begun})
	}
	for _, name := range slices.Sorted(maps.Keys(s.secrets)) {
		secrets.DynamicActiveSecrets = append(secrets.DynamicActiveSecrets, &adminv3.SecretsConfigDump_DynamicSecret{
			Name: name, VersionInfo: s.version(Secrets), Secret: pack(s.secrets[name]),
			LastUpdated: timestamppb.New(s.sub(Secrets).accepted),
		})
	}
	if sub := s.subs[Secrets]; sub != nil {
		for _, name := range sub.names {
			if s.secrets[name] == nil {
				secrets.DynamicWarmingSecrets = append(secrets.DynamicWarmingSecrets, &adminv3.SecretsConfigDump_DynamicSecret{
					Name: name, VersionInfo: "uninitialized", Secret: pack(&tlsv3.Secret{Name: name}), LastUpdated: begun,
				})
			}
		}
	}

	parts := []proto.Message{&adminv3.BootstrapConfigDump{Bootstrap: bootstrap, LastUpdated: begun}, clusters}
	if endpoints {
		parts = append(parts, assignments)
	}
	out := &adminv3.ConfigDump{}
	for _, part := range append(parts, listeners, routes, secrets) {
		packed, err := anypb.New(part)
		failed = errors.Join(failed, err)
		out.Configs = append(out.Configs, packed)
	}
	return out, failed
}

func (s *state) version(kind Kind) string {
	if sub := s.subs[kind]; sub != nil {
		return sub.version
	}
	return ""
}

const redacted = "[redacted]"

// redact replaces what Envoy holds for sensitive: private keys, passwords and ticket keys, also in packed messages.
func redact(m protoreflect.Message) error {
	switch m := m.Interface().(type) {
	case *anypb.Any:
		if m.GetTypeUrl() == "" {
			return nil
		}
		inner, err := m.UnmarshalNew()
		if err != nil {
			return err
		}
		if err := redact(inner.ProtoReflect()); err != nil {
			return err
		}
		return m.MarshalFrom(inner)
	case *tlsv3.TlsCertificate:
		for _, source := range []*corev3.DataSource{m.GetPrivateKey(), m.GetPassword(), m.GetPkcs12()} {
			hide(source)
		}
	case *tlsv3.TlsSessionTicketKeys:
		for _, source := range m.GetKeys() {
			hide(source)
		}
	case *tlsv3.GenericSecret:
		hide(m.GetSecret())
	}
	var failed error
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case fd.IsMap():
			if fd.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
					failed = redact(v.Message())
					return failed == nil
				})
			}
		case fd.Message() == nil:
		case fd.IsList():
			for i := 0; failed == nil && i < v.List().Len(); i++ {
				failed = redact(v.List().Get(i).Message())
			}
		default:
			failed = redact(v.Message())
		}
		return failed == nil
	})
	return failed
}

func hide(d *corev3.DataSource) {
	switch d.GetSpecifier().(type) {
	case *corev3.DataSource_InlineString:
		d.Specifier = &corev3.DataSource_InlineString{InlineString: redacted}
	case *corev3.DataSource_InlineBytes:
		d.Specifier = &corev3.DataSource_InlineBytes{InlineBytes: []byte(redacted)}
	}
}
