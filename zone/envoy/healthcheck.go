package envoy

import (
	"encoding/hex"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

// healthChecks are the active checks of a policy: one over TCP, one over HTTP, or both, where Kuma accepts only one of them.
// A policy with neither gets a check that only connects.
func healthChecks(hc *meshv1.HealthCheck, p protocol) []*corev3.HealthCheck {
	conf := hc.GetConf()
	if conf == nil {
		return nil
	}
	base := &corev3.HealthCheck{
		Interval: conf.GetInterval(), Timeout: conf.GetTimeout(),
		UnhealthyThreshold: u32(conf.GetUnhealthyThreshold()), HealthyThreshold: u32(conf.GetHealthyThreshold()),
		InitialJitter: conf.GetInitialJitter(), IntervalJitter: conf.GetIntervalJitter(),
		IntervalJitterPercent:        conf.GetIntervalJitterPercent(),
		EventLogPath:                 conf.GetEventLogPath(), //nolint:staticcheck // what took its place is not known to every Envoy in use
		AlwaysLogHealthCheckFailures: conf.GetAlwaysLogHealthCheckFailures().GetValue(),
		NoTrafficInterval:            conf.GetNoTrafficInterval(),
		ReuseConnection:              conf.GetReuseConnection(),
	}
	var out []*corev3.HealthCheck
	if conf.GetTcp() != nil || conf.GetHttp() == nil {
		c := proto.CloneOf(base)
		c.HealthChecker = &corev3.HealthCheck_TcpHealthCheck_{TcpHealthCheck: tcpCheck(conf.GetTcp())}
		out = append(out, c)
	}
	if conf.GetHttp() != nil {
		base.HealthChecker = &corev3.HealthCheck_HttpHealthCheck_{HttpHealthCheck: httpCheck(conf.GetHttp(), p)}
		out = append(out, base)
	}
	return out
}

func tcpCheck(conf *meshv1.HealthCheck_Conf_Tcp) *corev3.HealthCheck_TcpHealthCheck {
	payload := func(b []byte) *corev3.HealthCheck_Payload {
		return &corev3.HealthCheck_Payload{Payload: &corev3.HealthCheck_Payload_Text{Text: hex.EncodeToString(b)}}
	}
	out := &corev3.HealthCheck_TcpHealthCheck{}
	if send := conf.GetSend(); len(send.GetValue()) > 0 {
		out.Send = payload(send.GetValue())
	}
	for _, r := range conf.GetReceive() {
		if len(r.GetValue()) > 0 {
			out.Receive = append(out.Receive, payload(r.GetValue()))
		}
	}
	return out
}

func httpCheck(conf *meshv1.HealthCheck_Conf_Http, p protocol) *corev3.HealthCheck_HttpHealthCheck {
	out := &corev3.HealthCheck_HttpHealthCheck{Path: conf.GetPath(), CodecClientType: typev3.CodecClientType_HTTP1}
	if p == http2 || p == grpc {
		out.CodecClientType = typev3.CodecClientType_HTTP2
	}
	for _, h := range conf.GetRequestHeadersToAdd() {
		add := header(h.GetHeader().GetKey(), h.GetHeader().GetValue(), true)
		if h.GetAppend() != nil {
			add.Append = h.GetAppend() //nolint:staticcheck // as in header
		}
		out.RequestHeadersToAdd = append(out.RequestHeadersToAdd, add)
	}
	for _, s := range conf.GetExpectedStatuses() {
		status := int64(s.GetValue())
		out.ExpectedStatuses = append(out.ExpectedStatuses, &typev3.Int64Range{Start: status, End: status + 1})
	}
	return out
}

// panicLB is what a cluster does when too few of its endpoints are healthy; nil: Envoy's default.
func panicLB(hc *meshv1.HealthCheck) *clusterv3.Cluster_CommonLbConfig {
	conf := hc.GetConf()
	if conf.GetHealthyPanicThreshold() == nil && conf.GetFailTrafficOnPanic() == nil {
		return nil
	}
	out := &clusterv3.Cluster_CommonLbConfig{}
	if t := conf.GetHealthyPanicThreshold(); t != nil {
		out.HealthyPanicThreshold = &typev3.Percent{Value: float64(t.GetValue())}
	}
	if f := conf.GetFailTrafficOnPanic(); f != nil {
		out.LocalityConfigSpecifier = &clusterv3.Cluster_CommonLbConfig_ZoneAwareLbConfig_{
			ZoneAwareLbConfig: &clusterv3.Cluster_CommonLbConfig_ZoneAwareLbConfig{FailTrafficOnPanic: f.GetValue()},
		}
	}
	return out
}
