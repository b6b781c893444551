package envoy

import (
	kafkav3 "github.com/envoyproxy/go-control-plane/contrib/envoy/extensions/filters/network/kafka_broker/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	grpcstatsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_stats/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	inspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
)

const (
	hcmFilter       = "envoy.filters.network.http_connection_manager"
	tcpProxyFilter  = "envoy.filters.network.tcp_proxy"
	kafkaFilter     = "envoy.filters.network.kafka_broker"
	grpcStatsFilter = "envoy.filters.http.grpc_stats"
	routerFilter    = "envoy.filters.http.router"
	tlsInspector    = "envoy.filters.listener.tls_inspector"
)

func (p *packer) networkFilter(name string, m proto.Message) *listenerv3.Filter {
	return &listenerv3.Filter{Name: name, ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: p.pack(m)}}
}

func (p *packer) httpFilter(name string, m proto.Message) *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{Name: name, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: p.pack(m)}}
}

func (p *packer) router() *hcmv3.HttpFilter { return p.httpFilter(routerFilter, &routerv3.Router{}) }

func (p *packer) grpcStats() *hcmv3.HttpFilter {
	return p.httpFilter(grpcStatsFilter, &grpcstatsv3.FilterConfig{
		EmitFilterState:        true,
		PerMethodStatSpecifier: &grpcstatsv3.FilterConfig_StatsForAllMethods{StatsForAllMethods: boolean(true)},
	})
}

func (p *packer) kafkaBroker(statPrefix string) *listenerv3.Filter {
	return p.networkFilter(kafkaFilter, &kafkav3.KafkaBroker{StatPrefix: statPrefix})
}

func (p *packer) hcm(m *hcmv3.HttpConnectionManager) *listenerv3.Filter {
	return p.networkFilter(hcmFilter, m)
}

func (p *packer) tcpProxy(m *tcpproxyv3.TcpProxy) *listenerv3.Filter {
	return p.networkFilter(tcpProxyFilter, m)
}

func (p *packer) inspectTLS() *listenerv3.ListenerFilter {
	return &listenerv3.ListenerFilter{
		Name:       tlsInspector,
		ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: p.pack(&inspectorv3.TlsInspector{})},
	}
}

// listenerTags puts tags where modifications of templates and other tools look for them.
func listenerTags(tags map[string]string) *corev3.Metadata {
	fields := make(map[string]*structpb.Value, len(tags))
	for k, v := range tags {
		fields[k] = structpb.NewStringValue(v)
	}
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{listenerTagsKey: {Fields: fields}}}
}
