package envoy

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tracev3 "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	tracingv3 "github.com/envoyproxy/go-control-plane/envoy/type/tracing/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"

	"github.com/meridian-mesh/meridian/api/dataplane"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/zone/xds"
)

const (
	zipkinTracer  = "envoy.tracers.zipkin"
	datadogTracer = "envoy.tracers.datadog"
)

// tracer is where the requests of a proxy are traced to.
type tracer struct {
	cluster       string
	host          string
	port          uint32
	tls           bool
	zipkin        *tracev3.ZipkinConfig // nil: Datadog
	splitServices bool                  // of Datadog

	overall, client, random *float64 // percentages; nil: Envoy's defaults
	tags                    []policy.TraceTag
}

// findTracer is what the MeshTraces say, or else the TrafficTrace.
func (g *generator) findTracer() *tracer {
	if rule := g.matched.Trace.Single; rule != nil {
		conf, err := rule.Trace()
		if err != nil {
			g.warn("%s: %v", origins(rule), err)
		}
		t, err := ruleTracer(conf)
		if err != nil {
			g.warn("%s: %v", origins(rule), err)
			return nil
		}
		return t
	}
	p := g.matched.TrafficTrace
	if p == nil {
		return nil
	}
	t, err := g.policyTracer(specOf[*meshv1.TrafficTrace](p).GetConf().GetBackend())
	if err != nil {
		g.warn("%s: %v", label(p), err)
		return nil
	}
	return t
}

func ruleTracer(conf *policy.Trace) (*tracer, error) {
	t := &tracer{overall: conf.Overall, client: conf.Client, random: conf.Random, tags: conf.Tags}
	switch {
	case conf.Zipkin != nil:
		t.cluster = "meshtrace:zipkin"
		z := conf.Zipkin
		return t, t.setZipkin(z.URL, z.APIVersion, z.TraceID128Bit, z.SharedSpanContext)
	case conf.Datadog != nil:
		t.cluster, t.splitServices = "meshtrace:datadog", conf.Datadog.SplitService
		_, err := t.setAddress(conf.Datadog.URL)
		return t, err
	default:
		return nil, nil
	}
}

// policyTracer is that of a backend of the mesh; "" is the mesh's default.
func (g *generator) policyTracer(name string) (*tracer, error) {
	tracing := g.mesh.Spec.GetTracing()
	if name == "" {
		name = tracing.GetDefaultBackend()
	}
	if name == "" {
		return nil, nil
	}
	at := slices.IndexFunc(tracing.GetBackends(), func(b *meshv1.TracingBackend) bool { return b.GetName() == name })
	if at < 0 {
		return nil, fmt.Errorf("the mesh has no tracing backend %q", name)
	}
	backend := tracing.GetBackends()[at]
	t := &tracer{cluster: "tracing:" + name}
	if s := backend.GetSampling(); s != nil {
		v := s.GetValue()
		t.overall = &v
	}
	conf := backend.GetConf().GetFields()
	switch backend.GetType() {
	case "zipkin":
		var shared *bool
		if f := conf["sharedSpanContext"]; f != nil {
			v := f.GetBoolValue()
			shared = &v
		}
		err := t.setZipkin(conf["url"].GetStringValue(), conf["apiVersion"].GetStringValue(),
			conf["traceId128bit"].GetBoolValue(), shared)
		if err != nil {
			return nil, fmt.Errorf("tracing backend %q: %w", name, err)
		}
	case "datadog":
		t.host, t.port = conf["address"].GetStringValue(), uint32(conf["port"].GetNumberValue())
		t.splitServices = conf["splitService"].GetBoolValue()
	default:
		return nil, fmt.Errorf("tracing backend %q has the unknown type %q", name, backend.GetType())
	}
	return t, nil
}

func (t *tracer) setZipkin(address, apiVersion string, long bool, shared *bool) error {
	u, err := t.setAddress(address)
	if err != nil {
		return err
	}
	t.zipkin = &tracev3.ZipkinConfig{
		CollectorCluster: t.cluster, CollectorEndpoint: u.RequestURI(), CollectorHostname: u.Host,
		CollectorEndpointVersion: tracev3.ZipkinConfig_HTTP_JSON, TraceId_128Bit: long,
	}
	switch apiVersion {
	case "", "httpJson":
	case "httpProto":
		t.zipkin.CollectorEndpointVersion = tracev3.ZipkinConfig_HTTP_PROTO
	default:
		return fmt.Errorf("apiVersion %q is neither httpJson nor httpProto", apiVersion)
	}
	if shared != nil {
		t.zipkin.SharedSpanContext = boolean(*shared)
	}
	return nil
}

// setAddress takes host and port from a URL. A URL without a port has that of its scheme.
func (t *tracer) setAddress(address string) (*url.URL, error) {
	u, err := url.Parse(address)
	if err != nil || u.Hostname() == "" {
		return nil, fmt.Errorf("url %q has no host", address)
	}
	t.tls = u.Scheme == "https"
	t.host, t.port = u.Hostname(), 80
	if t.tls {
		t.port = 443
	}
	if u.Port() != "" {
		port, err := strconv.ParseUint(u.Port(), 10, 16)
		if err != nil {
			return nil, fmt.Errorf("url %q has no valid port", address)
		}
		t.port = uint32(port)
	}
	return u, nil
}

// tracing is what the listener for a service has on requests; nil: they are not traced.
func (g *generator) tracing(direction corev3.TrafficDirection, service string) *hcmv3.HttpConnectionManager_Tracing {
	t := g.trace
	if t == nil {
		return nil
	}
	out := &hcmv3.HttpConnectionManager_Tracing{
		OverallSampling: percentOf(t.overall), ClientSampling: percentOf(t.client), RandomSampling: percentOf(t.random),
	}
	for _, tag := range t.tags {
		out.CustomTags = append(out.CustomTags, customTag(tag))
	}
	if t.zipkin != nil {
		out.Provider = g.tracer(zipkinTracer, t.zipkin)
		return out
	}
	name := dataplane.IdentifyingService(g.dp)
	if t.splitServices {
		switch direction {
		case corev3.TrafficDirection_INBOUND:
			name += "_INBOUND"
		case corev3.TrafficDirection_OUTBOUND:
			name += "_OUTBOUND_" + service
		default: // a gateway is a service of its own
		}
	}
	out.Provider = g.tracer(datadogTracer, &tracev3.DatadogConfig{CollectorCluster: t.cluster, ServiceName: name})
	return out
}

func (g *generator) tracer(name string, m proto.Message) *tracev3.Tracing_Http {
	return &tracev3.Tracing_Http{Name: name, ConfigType: &tracev3.Tracing_Http_TypedConfig{TypedConfig: g.p.pack(m)}}
}

func percentOf(v *float64) *typev3.Percent {
	if v == nil {
		return nil
	}
	return &typev3.Percent{Value: *v}
}

func customTag(tag policy.TraceTag) *tracingv3.CustomTag {
	if tag.Header != nil {
		return &tracingv3.CustomTag{Tag: tag.Name, Type: &tracingv3.CustomTag_RequestHeader{
			RequestHeader: &tracingv3.CustomTag_Header{Name: tag.Header.Name, DefaultValue: tag.Header.Default},
		}}
	}
	return &tracingv3.CustomTag{Tag: tag.Name, Type: &tracingv3.CustomTag_Literal_{
		Literal: &tracingv3.CustomTag_Literal{Value: tag.Literal},
	}}
}

// tracingCluster is the collector.
func (g *generator) tracingCluster() {
	t := g.trace
	if t == nil {
		return
	}
	c := &clusterv3.Cluster{
		Name: t.cluster, AltStatName: altStatName(t.cluster), ConnectTimeout: seconds(defaultConnectSeconds),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STRICT_DNS},
		LoadAssignment:       oneEndpoint(t.cluster, socketAddress(t.host, t.port)),
	}
	if t.tls {
		tls := &tlsv3.UpstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{}}
		if net.ParseIP(t.host) == nil {
			tls.Sni = t.host
		}
		c.TransportSocket = g.p.tlsSocket(tls)
	}
	g.add(originTracing, xds.Cluster, t.cluster, c)
}
