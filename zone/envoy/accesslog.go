package envoy

import (
	"slices"
	"strings"

	accesslogv3 "github.com/envoyproxy/go-control-plane/envoy/config/accesslog/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	filev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	grpcv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/grpc/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/meridian-mesh/meridian/api/dataplane"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
)

const (
	fileLogger = "envoy.access_loggers.file"
	grpcLogger = "envoy.access_loggers.http_grpc"

	// pipeFeature: the data plane program reads lines for TCP collectors from a pipe.
	pipeFeature = "feature-tcp-accesslog-via-named-pipe"

	// externalLogName is how the destination of traffic that no outbound is for is called.
	externalLogName = "external"
	unknownLogName  = "unknown"
)

const defaultHTTPFormat = `[%START_TIME%] %KUMA_MESH% "%REQ(:method)% %REQ(x-envoy-original-path?:path)% %PROTOCOL%" ` +
	`%RESPONSE_CODE% %RESPONSE_FLAGS% %BYTES_RECEIVED% %BYTES_SENT% %DURATION% ` +
	`%RESP(x-envoy-upstream-service-time)% "%REQ(x-forwarded-for)%" "%REQ(user-agent)%" ` +
	`"%REQ(x-b3-traceid?x-datadog-traceid)%" "%REQ(x-request-id)%" "%REQ(:authority)%" "%KUMA_SOURCE_SERVICE%" ` +
	`"%KUMA_DESTINATION_SERVICE%" "%KUMA_SOURCE_ADDRESS_WITHOUT_PORT%" "%UPSTREAM_HOST%"`

const defaultTCPFormat = `[%START_TIME%] %RESPONSE_FLAGS% %KUMA_MESH% ` +
	`%KUMA_SOURCE_ADDRESS_WITHOUT_PORT%(%KUMA_SOURCE_SERVICE%)->%UPSTREAM_HOST%(%KUMA_DESTINATION_SERVICE%) ` +
	`took %DURATION%ms, sent %BYTES_SENT% bytes, received: %BYTES_RECEIVED% bytes`

// logged is what the placeholders of a line stand for.
type logged struct {
	direction           string
	source, destination string
	http                bool
}

func (g *generator) outboundLogged(destination string, http bool) logged {
	return logged{direction: "OUTBOUND", source: dataplane.IdentifyingService(g.dp), destination: destination, http: http}
}

// outboundLogs are the loggers of an outbound: of its TrafficLog, and of MeshAccessLogs, which come on top.
func (g *generator) outboundLogs(destination string, tags map[string]string, log *policy.Policy, http bool) []*accesslogv3.AccessLog {
	l := g.outboundLogged(destination, http)
	out := g.trafficLog(log, l)
	if err := g.matched.AccessLog.ToErr; err != nil {
		g.warn("MeshAccessLog: %v", err)
	}
	return append(out, g.ruleLogs(g.matched.AccessLog.To.Compute(tags), l)...)
}

// inboundLogs are those of MeshAccessLogs. A TrafficLog acts on the side of the client only.
func (g *generator) inboundLogs(in inbound, policies inboundPolicies, http bool) []*accesslogv3.AccessLog {
	if policies.logs == nil {
		return nil
	}
	if policies.logs.Err != nil {
		g.warn("MeshAccessLog for inbound %s: %v", hostPort(in.Address, in.Port), policies.logs.Err)
	}
	l := logged{direction: "INBOUND", source: unknownLogName, destination: in.service, http: http}
	return g.ruleLogs(policies.logs.Rules.Compute(nil), l)
}

// trafficLog is the logger of a TrafficLog. One without a backend uses the mesh's default; a backend that the mesh does not
// have, none.
func (g *generator) trafficLog(log *policy.Policy, l logged) []*accesslogv3.AccessLog {
	if log == nil {
		return nil
	}
	logging := g.mesh.Spec.GetLogging()
	name := specOf[*meshv1.TrafficLog](log).GetConf().GetBackend()
	if name == "" {
		name = logging.GetDefaultBackend()
	}
	if name == "" {
		return nil
	}
	at := slices.IndexFunc(logging.GetBackends(), func(b *meshv1.LoggingBackend) bool { return b.GetName() == name })
	if at < 0 {
		g.warn("%s: the mesh has no logging backend %q", label(log), name)
		return nil
	}
	backend := logging.GetBackends()[at]
	format := backend.GetFormat()
	if format == "" {
		format = l.defaultFormat()
	}
	switch backend.GetType() {
	case "file":
		path := backend.GetConf().GetFields()["path"].GetStringValue()
		return []*accesslogv3.AccessLog{g.fileLog(path, textFormat(g.fill(format, l)+"\n"))}
	case "tcp":
		address := backend.GetConf().GetFields()["address"].GetStringValue()
		line := address + ";" + g.fill(format, l)
		if slices.Contains(g.proxy.Features, pipeFeature) {
			return []*accesslogv3.AccessLog{g.fileLog(g.logPipe(), textFormat(line+"\n"))}
		}
		return []*accesslogv3.AccessLog{{
			Name: grpcLogger,
			ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: g.p.pack(&grpcv3.HttpGrpcAccessLogConfig{
				CommonConfig: &grpcv3.CommonGrpcAccessLogConfig{
					LogName: line, TransportApiVersion: corev3.ApiVersion_V3,
					GrpcService: &corev3.GrpcService{TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
						EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{ClusterName: accessLogSink},
					}},
				},
			})},
		}}
	default:
		g.warn("%s: logging backend %q has the unknown type %q", label(log), name, backend.GetType())
		return nil
	}
}

func (l logged) defaultFormat() string {
	if l.http {
		return defaultHTTPFormat
	}
	return defaultTCPFormat
}

// ruleLogs are the loggers of what MeshAccessLogs say of a peer.
func (g *generator) ruleLogs(rule *policy.Rule, l logged) []*accesslogv3.AccessLog {
	if rule == nil {
		return nil
	}
	backends, err := rule.AccessLog()
	if err != nil {
		g.warn("%s: %v", origins(rule), err)
	}
	var out []*accesslogv3.AccessLog
	for _, b := range backends {
		switch {
		case b.File != nil:
			out = append(out, g.fileLog(b.File.Path, g.ruleFormat(b.File.Format, l)))
		case b.TCP != nil:
			message := structpb.NewStringValue(g.fill(firstOf(b.TCP.Format.Plain, l.defaultFormat()), l))
			if len(b.TCP.Format.JSON) > 0 {
				message = structpb.NewStructValue(g.jsonFields(b.TCP.Format.JSON, l))
			}
			out = append(out, g.fileLog(g.logPipe(), jsonFormat(&structpb.Struct{Fields: map[string]*structpb.Value{
				"address": structpb.NewStringValue(b.TCP.Address), "message": message,
			}})))
			if !slices.Contains(g.proxy.Features, pipeFeature) {
				g.warn("%s: the proxy's data plane program does not read access logs for TCP backends", origins(rule))
			}
		}
	}
	return out
}

func origins(rule *policy.Rule) string {
	names := make([]string, len(rule.Origins))
	for i, p := range rule.Origins {
		names[i] = label(p)
	}
	return strings.Join(names, ", ")
}

func firstOf(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}

func (g *generator) ruleFormat(f policy.LogFormat, l logged) *corev3.SubstitutionFormatString {
	if len(f.JSON) > 0 {
		return jsonFormat(g.jsonFields(f.JSON, l))
	}
	return textFormat(g.fill(firstOf(f.Plain, l.defaultFormat()), l) + "\n")
}

func (g *generator) jsonFields(fields []policy.LogField, l logged) *structpb.Struct {
	s := &structpb.Struct{Fields: make(map[string]*structpb.Value, len(fields))}
	for _, f := range fields {
		s.Fields[f.Key] = structpb.NewStringValue(g.fill(f.Value, l))
	}
	return s
}

func textFormat(line string) *corev3.SubstitutionFormatString {
	return &corev3.SubstitutionFormatString{Format: &corev3.SubstitutionFormatString_TextFormatSource{
		TextFormatSource: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: line}},
	}}
}

func jsonFormat(s *structpb.Struct) *corev3.SubstitutionFormatString {
	return &corev3.SubstitutionFormatString{Format: &corev3.SubstitutionFormatString_JsonFormat{JsonFormat: s}}
}

func (g *generator) fileLog(path string, format *corev3.SubstitutionFormatString) *accesslogv3.AccessLog {
	return &accesslogv3.AccessLog{
		Name: fileLogger,
		ConfigType: &accesslogv3.AccessLog_TypedConfig{TypedConfig: g.p.pack(&filev3.FileAccessLog{
			Path: path, AccessLogFormat: &filev3.FileAccessLog_LogFormat{LogFormat: format},
		})},
	}
}

// logPipe is what kuma-dp reads lines for TCP collectors from.
func (g *generator) logPipe() string { return socketPath("kuma-al", g.proxy.Name, g.mesh.Name) }

// fill replaces the placeholders that Envoy does not know. The others are left to Envoy.
func (g *generator) fill(format string, l logged) string {
	address := g.dp.GetNetworking().GetAddress()
	return strings.NewReplacer(
		"%KUMA_SOURCE_SERVICE%", l.source,
		"%KUMA_DESTINATION_SERVICE%", l.destination,
		"%KUMA_SOURCE_ADDRESS%", hostPort(address, 0),
		"%KUMA_SOURCE_ADDRESS_WITHOUT_PORT%", address,
		"%KUMA_MESH%", g.mesh.Name,
		"%KUMA_TRAFFIC_DIRECTION%", l.direction,
	).Replace(format)
}
