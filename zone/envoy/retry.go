package envoy

import (
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

const (
	defaultHTTPRetryOn = "gateway-error,connect-failure,refused-stream"
	defaultGRPCRetryOn = "cancelled,connect-failure,gateway-error,refused-stream,reset,resource-exhausted,unavailable"
)

// retryPolicy is what a Retry says of a protocol; nil when it says nothing. HTTP/2 has the settings of HTTP, where Kuma
// leaves it without any.
func retryPolicy(retry *meshv1.Retry, p protocol) *routev3.RetryPolicy {
	switch {
	case p == grpc && retry.GetConf().GetGrpc() != nil:
		return grpcRetry(retry.GetConf().GetGrpc())
	case (p == http || p == http2) && retry.GetConf().GetHttp() != nil:
		return httpRetry(retry.GetConf().GetHttp())
	default:
		return nil
	}
}

func httpRetry(conf *meshv1.Retry_Conf_Http) *routev3.RetryPolicy {
	on := defaultHTTPRetryOn
	if len(conf.GetRetryOn()) > 0 {
		names := make([]string, len(conf.GetRetryOn()))
		for i, r := range conf.GetRetryOn() {
			names[i] = httpRetryName(r)
		}
		on = strings.Join(names, ",")
	}
	const statusCodes = "retriable-status-codes"
	if len(conf.GetRetriableStatusCodes()) > 0 && !strings.Contains(on, statusCodes) {
		on += "," + statusCodes
	}
	out := &routev3.RetryPolicy{
		RetryOn: on, NumRetries: conf.GetNumRetries(), PerTryTimeout: conf.GetPerTryTimeout(),
		RetriableStatusCodes: conf.GetRetriableStatusCodes(), RetryBackOff: backOff(conf.GetBackOff()),
	}
	for _, m := range conf.GetRetriableMethods() {
		if m != meshv1.HttpMethod_NONE {
			out.RetriableRequestHeaders = append(out.RetriableRequestHeaders, exactHeader(":method", m.String()))
		}
	}
	return out
}

// httpRetryName is Envoy's name of a condition.
func httpRetryName(r meshv1.HttpRetryOn) string {
	if r == meshv1.HttpRetryOn_all_5xx {
		return "5xx"
	}
	// Only the words are separated by dashes in Envoy's names: retriable-4xx, http3-post-connect-failure.
	return strings.ReplaceAll(r.String(), "_", "-")
}

func grpcRetry(conf *meshv1.Retry_Conf_Grpc) *routev3.RetryPolicy {
	on := defaultGRPCRetryOn
	if len(conf.GetRetryOn()) > 0 {
		names := make([]string, len(conf.GetRetryOn()))
		for i, r := range conf.GetRetryOn() {
			names[i] = strings.ReplaceAll(r.String(), "_", "-")
		}
		on = strings.Join(names, ",")
	}
	return &routev3.RetryPolicy{
		RetryOn: on, NumRetries: conf.GetNumRetries(), PerTryTimeout: conf.GetPerTryTimeout(),
		RetryBackOff: backOff(conf.GetBackOff()),
	}
}

func backOff(b *meshv1.Retry_Conf_BackOff) *routev3.RetryPolicy_RetryBackOff {
	if b == nil {
		return nil
	}
	out := &routev3.RetryPolicy_RetryBackOff{BaseInterval: b.GetBaseInterval(), MaxInterval: b.GetMaxInterval()}
	if b.GetMaxInterval() != nil && b.GetMaxInterval().AsDuration() < b.GetBaseInterval().AsDuration() {
		out.MaxInterval = b.GetBaseInterval() // Envoy refuses less
	}
	return out
}
