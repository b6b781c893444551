package envoy

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

// timeouts are those of one outbound. With no Timeout all are nil, which leaves Envoy its defaults; what a Timeout does not
// say is no limit.
type timeouts struct {
	connect           *durationpb.Duration
	tcpIdle           *durationpb.Duration
	httpIdle          *durationpb.Duration
	request           *durationpb.Duration
	streamIdle        *durationpb.Duration
	maxStreamDuration *durationpb.Duration // nil: no limit
}

func timeoutsOf(timeout *meshv1.Timeout, p protocol) timeouts {
	conf := timeout.GetConf()
	if conf == nil {
		return timeouts{connect: seconds(defaultConnectSeconds)}
	}
	t := timeouts{
		connect:           conf.GetConnectTimeout(),
		tcpIdle:           orZero(conf.GetTcp().GetIdleTimeout()),
		httpIdle:          orZero(conf.GetHttp().GetIdleTimeout()),
		request:           orZero(conf.GetHttp().GetRequestTimeout()),
		streamIdle:        conf.GetHttp().GetStreamIdleTimeout(),
		maxStreamDuration: conf.GetHttp().GetMaxStreamDuration(),
	}
	if t.connect.AsDuration() <= 0 { // Envoy knows no connecting without limit
		t.connect = seconds(defaultConnectSeconds)
	}
	if p == grpc {
		// An older form of the policy has a section of its own for gRPC.
		if t.streamIdle == nil {
			t.streamIdle = conf.GetGrpc().GetStreamIdleTimeout()
		}
		if t.maxStreamDuration == nil {
			t.maxStreamDuration = conf.GetGrpc().GetMaxStreamDuration()
		}
	}
	t.streamIdle = orZero(t.streamIdle)
	return t
}

// clusterOptions are the parts that clusters have.
func (t timeouts) clusterOptions() *corev3.HttpProtocolOptions {
	if t.httpIdle == nil && t.maxStreamDuration == nil {
		return nil
	}
	return &corev3.HttpProtocolOptions{IdleTimeout: t.httpIdle, MaxStreamDuration: t.maxStreamDuration}
}
