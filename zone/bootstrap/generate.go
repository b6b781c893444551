package bootstrap

import (
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	credentialv3 "github.com/envoyproxy/go-control-plane/envoy/config/grpc_credential/v3"
	metricsv3 "github.com/envoyproxy/go-control-plane/envoy/config/metrics/v3"
	overloadv3 "github.com/envoyproxy/go-control-plane/envoy/config/overload/v3"
	filelogv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	fixedheapv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/resource_monitors/fixed_heap/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meridian-mesh/meridian/common/config"
)

// Names that the control plane's other parts, or kuma-dp, know.
const (
	adsCluster       = "ads_cluster"
	accessLogCluster = "access_log_sink"
	trustSecret      = "cp_validation_ctx"
	runtimeLayer     = "kuma"
	gatewayLayer     = "gateway"
	gatewayRuntime   = "gateway.listeners" // asked for over ADS
)

// authorization is the key of the token among the metadata of a stream.
const authorization = "authorization"

// tokenFileCredentials is Envoy's name for credentials that are read from a file.
const tokenFileCredentials = "envoy.grpc_credentials.file_based_metadata"

// maxGatewayConnections bounds the connections that a gateway takes.
const maxGatewayConnections = 50_000

// Types of proxies, as they stand in requests and in the metadata of the node.
const (
	typeDataplane = "dataplane"
	typeIngress   = "ingress"
	typeEgress    = "egress"
)

// Proxy is what an Envoy's start-up configuration is made from.
type Proxy struct {
	Type       string // dataplane, ingress, egress
	Mesh, Name string // Mesh is empty unless Type is dataplane
	// Service identifies the proxy in statistics and logs.
	Service string
	// Gateway: the proxy routes itself what comes into the mesh. MaxHeapBytes bounds its memory; 0: no bound.
	Gateway      bool
	MaxHeapBytes uint64

	AdminAddress, AdminAccessLogPath string
	AdminPort                        uint32 // 0: no administration

	// XDSHost and XDSPort are where the control plane is, CA (PEM) is what signed its certificate.
	XDSHost           string
	XDSPort           uint32
	XDSConnectTimeout time.Duration
	CA                []byte
	// Token is presented there; TokenPath is a file to read it from instead. Both empty: nothing is.
	Token     config.Secret
	TokenPath string
	// HDS: the proxy reports the health of its workload.
	HDS bool

	// What follows is told to the control plane again when the proxy connects.
	Resource              string // as it was sent
	Version               Version
	DynamicMetadata       map[string]string
	DNSPort, EmptyDNSPort uint32
	Features              []string
}

// NodeID is the name under which the proxy connects: the mesh, which holds no dot and may be empty, a dot, and the name.
func (p *Proxy) NodeID() string { return p.Mesh + "." + p.Name }

// Generate makes the start-up configuration of an Envoy. It is a pure function. The result obeys all rules that Envoy's
// schema states; where p does not allow that, the error names the field.
func Generate(p *Proxy) (*bootstrapv3.Bootstrap, error) {
	metadata, err := nodeMetadata(p)
	if err != nil {
		return nil, fmt.Errorf("metadata of the node: %w", err)
	}
	b := builder{p: p}
	out := &bootstrapv3.Bootstrap{
		Node:  &corev3.Node{Id: p.NodeID(), Cluster: p.Service, Metadata: metadata},
		Admin: b.admin(),
		DynamicResources: &bootstrapv3.Bootstrap_DynamicResources{
			LdsConfig: overADS(), CdsConfig: overADS(), AdsConfig: b.source(),
		},
		StaticResources: &bootstrapv3.Bootstrap_StaticResources{
			Clusters: []*clusterv3.Cluster{b.accessLogSink()},
			Secrets:  []*tlsv3.Secret{b.trust()},
		},
		LayeredRuntime: &bootstrapv3.LayeredRuntime{Layers: b.layers()},
		StatsConfig:    &metricsv3.StatsConfig{StatsTags: statsTags()},
	}
	if p.TokenPath == "" {
		out.StaticResources.Clusters = append([]*clusterv3.Cluster{b.controlPlane()}, out.StaticResources.Clusters...)
	}
	if p.HDS && p.Type == typeDataplane {
		out.HdsConfig = b.source()
	}
	if p.Gateway && p.MaxHeapBytes > 0 {
		out.OverloadManager = b.overload()
	}
	if b.err != nil {
		return nil, b.err
	}
	if err := out.ValidateAll(); err != nil {
		return nil, fmt.Errorf("breaks Envoy's rules: %w", err)
	}
	return out, nil
}

// dependencyPrefix marks dynamic metadata that are versions of programs that came with the proxy.
const dependencyPrefix = "version.dependencies."

func nodeMetadata(p *Proxy) (*structpb.Struct, error) {
	dependencies, dynamic := make(map[string]any), make(map[string]any, len(p.DynamicMetadata))
	for k, v := range p.DynamicMetadata {
		dynamic[k] = v
		if name, ok := strings.CutPrefix(k, dependencyPrefix); ok {
			dependencies[name] = v
		}
	}
	m := map[string]any{
		"dataplane.proxyType": p.Type,
		"version": map[string]any{
			"kumaDp": map[string]any{
				"version": p.Version.KumaDP.Version, "gitTag": p.Version.KumaDP.GitTag,
				"gitCommit": p.Version.KumaDP.GitCommit, "buildDate": p.Version.KumaDP.BuildDate,
			},
			"envoy": map[string]any{
				"version": p.Version.Envoy.Version, "build": p.Version.Envoy.Build,
				"kumaDpCompatible": p.Version.Envoy.KumaDPCompatible,
			},
			"dependencies": dependencies,
		},
	}
	if p.AdminPort != 0 {
		m["dataplane.admin.port"], m["dataplane.admin.address"] = number(p.AdminPort), p.AdminAddress
	}
	if p.Resource != "" {
		m["dataplane.resource"] = p.Resource
	}
	if p.DNSPort != 0 {
		m["dataplane.dns.port"] = number(p.DNSPort)
	}
	if p.EmptyDNSPort != 0 {
		m["dataplane.dns.empty.port"] = number(p.EmptyDNSPort)
	}
	if len(dynamic) > 0 {
		m["dynamicMetadata"] = dynamic
	}
	if len(p.Features) > 0 {
		features := make([]any, len(p.Features))
		for i, f := range p.Features {
			features[i] = f
		}
		m["features"] = features
	}
	return structpb.NewStruct(m) //nolint:wrapcheck // the caller says what of
}

func number(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// builder makes the parts of a configuration. The first error stays.
type builder struct {
	p   *Proxy
	err error
}

func (b *builder) any(m proto.Message) *anypb.Any {
	out, err := anypb.New(m)
	if err != nil && b.err == nil {
		b.err = fmt.Errorf("pack %s: %w", m.ProtoReflect().Descriptor().FullName(), err)
	}
	return out
}

func (b *builder) admin() *bootstrapv3.Admin {
	if b.p.AdminPort == 0 {
		return nil
	}
	return &bootstrapv3.Admin{
		AccessLog: []*accesslogv3.AccessLog{{
			Name:       "envoy.access_loggers.file",
			ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: b.any(&filelogv3.FileAccessLog{Path: b.p.AdminAccessLogPath})},
		}},
		Address: socket(b.p.AdminAddress, b.p.AdminPort),
	}
}

func overADS() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		ResourceApiVersion:    corev3.ApiVersion_V3,
	}
}

// source is the control plane as a source of configuration.
func (b *builder) source() *corev3.ApiConfigSource {
	return &corev3.ApiConfigSource{
		ApiType:                   corev3.ApiConfigSource_GRPC,
		TransportApiVersion:       corev3.ApiVersion_V3,
		SetNodeOnFirstMessageOnly: true,
		GrpcServices:              []*corev3.GrpcService{b.service()},
	}
}

// service is the connection to the control plane. Envoy's own client takes the token as it is now; Google's reads it from
// its file for each stream.
func (b *builder) service() *corev3.GrpcService {
	if b.p.TokenPath != "" {
		return &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_GoogleGrpc_{GoogleGrpc: &corev3.GrpcService_GoogleGrpc{
			TargetUri:  net.JoinHostPort(b.p.XDSHost, number(b.p.XDSPort)),
			StatPrefix: "ads",
			ChannelCredentials: &corev3.GrpcService_GoogleGrpc_ChannelCredentials{
				CredentialSpecifier: &corev3.GrpcService_GoogleGrpc_ChannelCredentials_SslCredentials{
					SslCredentials: &corev3.GrpcService_GoogleGrpc_SslCredentials{RootCerts: inline(b.p.CA)},
				},
			},
			CredentialsFactoryName: tokenFileCredentials,
			CallCredentials: []*corev3.GrpcService_GoogleGrpc_CallCredentials{{
				CredentialSpecifier: &corev3.GrpcService_GoogleGrpc_CallCredentials_FromPlugin{
					FromPlugin: &corev3.GrpcService_GoogleGrpc_CallCredentials_MetadataCredentialsFromPlugin{
						Name: tokenFileCredentials,
						ConfigType: &corev3.GrpcService_GoogleGrpc_CallCredentials_MetadataCredentialsFromPlugin_TypedConfig{
							TypedConfig: b.any(&credentialv3.FileBasedMetadataConfig{SecretData: &corev3.DataSource{
								Specifier: &corev3.DataSource_Filename{Filename: b.p.TokenPath},
							}}),
						},
					},
				},
			}},
		}}}
	}
	s := &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
		EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: adsCluster},
	}}
	if b.p.Token != "" {
		s.InitialMetadata = []*corev3.HeaderValue{{Key: authorization, Value: string(b.p.Token)}}
	}
	return s
}

func (b *builder) controlPlane() *clusterv3.Cluster {
	discovery := clusterv3.Cluster_STRICT_DNS
	if net.ParseIP(b.p.XDSHost) != nil {
		discovery = clusterv3.Cluster_STATIC
	}
	c := b.cluster(adsCluster, discovery, socket(b.p.XDSHost, b.p.XDSPort))
	c.TransportSocket = &corev3.TransportSocket{
		Name: "envoy.transport_sockets.tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: b.any(&tlsv3.UpstreamTlsContext{
			Sni: b.p.XDSHost,
			CommonTlsContext: &tlsv3.CommonTlsContext{
				TlsParams: &tlsv3.TlsParameters{TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2},
				ValidationContextType: &tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig{
					ValidationContextSdsSecretConfig: &tlsv3.SdsSecretConfig{Name: trustSecret},
				},
			},
		})},
	}
	return c
}

// trust says whom to believe to be the control plane.
func (b *builder) trust() *tlsv3.Secret {
	kind := tlsv3.SubjectAltNameMatcher_DNS
	if net.ParseIP(b.p.XDSHost) != nil {
		kind = tlsv3.SubjectAltNameMatcher_IP_ADDRESS
	}
	return &tlsv3.Secret{
		Name: trustSecret,
		Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			TrustedCa: inline(b.p.CA),
			MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{{
				SanType: kind,
				Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: b.p.XDSHost}},
			}},
		}},
	}
}

func (b *builder) accessLogSink() *clusterv3.Cluster {
	return b.cluster(accessLogCluster, clusterv3.Cluster_STATIC, &corev3.Address{
		Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: SocketName("kuma-al", b.p.Name, b.p.Mesh)}},
	})
}

// cluster has one address and speaks HTTP/2. The field that says so is an old one, but it is the one that every Envoy, and
// every kuma-dp that reads this configuration before Envoy does, understands.
func (b *builder) cluster(name string, discovery clusterv3.Cluster_DiscoveryType, address *corev3.Address) *clusterv3.Cluster {
	return &clusterv3.Cluster{
		Name:                 name,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: discovery},
		ConnectTimeout:       durationpb.New(b.p.XDSConnectTimeout),
		LbPolicy:             clusterv3.Cluster_ROUND_ROBIN,
		Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}, //nolint:staticcheck // see above
		UpstreamConnectionOptions: &clusterv3.UpstreamConnectionOptions{TcpKeepalive: &corev3.TcpKeepalive{
			KeepaliveProbes: wrapperspb.UInt32(3), KeepaliveTime: wrapperspb.UInt32(10), KeepaliveInterval: wrapperspb.UInt32(10),
		}},
		LoadAssignment: &endpointv3.ClusterLoadAssignment{
			ClusterName: name,
			Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
				HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address}},
			}}}},
		},
	}
}

// maxSocketStem is how much of a socket's path is kept before its suffix: the kernel takes 107 bytes.
const maxSocketStem = 98

// SocketName is the path of a unix socket that kuma-dp serves next to the proxy with a name: prefix is kuma-al for access
// logs and kuma-mh for metrics.
func SocketName(prefix, name, mesh string) string {
	stem := "/tmp/" + prefix + "-" + name + "-" + mesh
	return stem[:min(len(stem), maxSocketStem)] + ".sock"
}

func (b *builder) layers() []*bootstrapv3.RuntimeLayer {
	layers := []*bootstrapv3.RuntimeLayer{b.static(runtimeLayer, map[string]any{
		"envoy.restart_features.use_apple_api_for_dns_lookups": false,
		"re2.max_program_size.error_level":                     uint32(4294967295),
		"re2.max_program_size.warn_level":                      1000,
	})}
	if !b.p.Gateway {
		return layers
	}
	return append(layers,
		b.static(gatewayLayer, map[string]any{"overload.global_downstream_max_connections": maxGatewayConnections}),
		&bootstrapv3.RuntimeLayer{
			Name: gatewayRuntime,
			LayerSpecifier: &bootstrapv3.RuntimeLayer_RtdsLayer_{RtdsLayer: &bootstrapv3.RuntimeLayer_RtdsLayer{
				Name: gatewayRuntime, RtdsConfig: overADS(),
			}},
		})
}

func (b *builder) static(name string, values map[string]any) *bootstrapv3.RuntimeLayer {
	s, err := structpb.NewStruct(values)
	if err != nil && b.err == nil {
		b.err = fmt.Errorf("runtime layer %s: %w", name, err)
	}
	return &bootstrapv3.RuntimeLayer{Name: name, LayerSpecifier: &bootstrapv3.RuntimeLayer_StaticLayer{StaticLayer: s}}
}

// overload keeps a gateway from being killed for its memory: it gives memory back first, and then turns requests away.
func (b *builder) overload() *overloadv3.OverloadManager {
	const monitor = "envoy.resource_monitors.fixed_heap"
	action := func(name string, at float64) *overloadv3.OverloadAction {
		return &overloadv3.OverloadAction{Name: name, Triggers: []*overloadv3.Trigger{{
			Name: monitor,
			TriggerOneof: &overloadv3.Trigger_Threshold{Threshold: &overloadv3.ThresholdTrigger{
				Value: at,
			}},
		}}}
	}
	return &overloadv3.OverloadManager{
		RefreshInterval: durationpb.New(250 * time.Millisecond),
		ResourceMonitors: []*overloadv3.ResourceMonitor{{
			Name: monitor,
			ConfigType: &overloadv3.ResourceMonitor_TypedConfig{
				TypedConfig: b.any(&fixedheapv3.FixedHeapConfig{MaxHeapSizeBytes: b.p.MaxHeapBytes}),
			},
		}},
		Actions: []*overloadv3.OverloadAction{
			action("envoy.overload_actions.shrink_heap", 0.95),
			action("envoy.overload_actions.stop_accepting_requests", 0.98),
		},
	}
}

// statsTags take the parts of statistics' names that vary out of them. In each expression the first group is what is cut
// out, the second the tag's value.
func statsTags() []*metricsv3.TagSpecifier {
	tag := func(name, regex string) *metricsv3.TagSpecifier {
		return &metricsv3.TagSpecifier{TagName: name, TagValue: &metricsv3.TagSpecifier_Regex{Regex: regex}}
	}
	return []*metricsv3.TagSpecifier{
		tag("name", `^grpc\.((.+)\.)`),
		tag("status", `^grpc.*streams_closed(_([0-9]+))`),
		tag("kafka_name", `^kafka(\.(\S*[0-9]))\.`),
		tag("kafka_type", `^kafka\..*\.(.*)`),
		tag("worker", `(worker_([0-9]+)\.)`),
		tag("listener", `((.+?)\.)rbac\.`),
	}
}

func socket(address string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: address, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}

func inline(content []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: content}}
}
