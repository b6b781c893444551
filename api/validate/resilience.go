package validate

import (
	"net/http"
	"regexp"
	"strconv"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

// The policies that say how connections and requests may fail: CircuitBreaker, FaultInjection, HealthCheck, RateLimit,
// Retry, Timeout.

func circuitBreaker(r *report, at path, m *meshv1.CircuitBreaker) {
	r.selectors(at.field("sources"), m.GetSources(), selectorRules{service: true})
	r.serviceOnly(at.field("destinations"), m.GetDestinations())

	conf, c := at.field("conf"), m.GetConf()
	d, t := c.GetDetectors(), c.GetThresholds()
	detects := d.GetTotalErrors() != nil || d.GetGatewayErrors() != nil || d.GetLocalErrors() != nil ||
		d.GetStandardDeviation() != nil || d.GetFailure() != nil
	limits := t.GetMaxConnections() != nil || t.GetMaxPendingRequests() != nil || t.GetMaxRetries() != nil ||
		t.GetMaxRequests() != nil
	if !detects && !limits {
		r.add(conf, "must have at least one of the detector or threshold configured")
		return
	}
	r.notNegative(conf.field("interval"), c.GetInterval())
	r.notNegative(conf.field("baseEjectionTime"), c.GetBaseEjectionTime())
	r.percent(conf.field("maxEjectionPercent"), float64(c.GetMaxEjectionPercent().GetValue()))
	r.check(d == nil || detects, conf.field("detectors"), "can't be empty")
	r.percent(conf.field("detectors.failure.threshold"), float64(d.GetFailure().GetThreshold().GetValue()))
	r.check(t == nil || limits, conf.field("thresholds"), "can't be empty")
}

func faultInjection(r *report, at path, m *meshv1.FaultInjection) {
	r.selectors(at.field("sources"), m.GetSources(), selectorRules{})

	destinations := at.field("destinations")
	r.selectors(destinations, m.GetDestinations(), selectorRules{})
	for i, s := range m.GetDestinations() {
		item := destinations.at(i)
		match, spoken := item.field("match"), false
		for _, tag := range [...]string{tagProtocol, tagOldProtocol} {
			v, ok := s.GetMatch()[tag]
			if !ok {
				continue
			}
			spoken = true
			r.check(v == "http" || v == "http2" || v == "grpc", match.entry(tag), "must be one of the [http, http2, grpc]")
		}
		r.check(spoken, match, "protocol must be specified")
	}

	conf, c := at.field("conf"), m.GetConf()
	delay, abort, bandwidth := c.GetDelay(), c.GetAbort(), c.GetResponseBandwidth()
	r.check(delay.GetPercentage() != nil || delay.GetValue() != nil ||
		abort.GetPercentage() != nil || abort.GetHttpStatus() != nil ||
		bandwidth.GetPercentage() != nil || bandwidth.GetLimit() != nil,
		conf, "must have at least one of the faults configured")
	if delay != nil {
		where := conf.field("delay")
		r.somePercent(where.field("percentage"), delay.GetPercentage())
		value := where.field("value")
		if r.check(delay.GetValue() != nil, value, msgEmpty) {
			r.notNegative(value, delay.GetValue())
		}
	}
	if abort != nil {
		where := conf.field("abort")
		r.somePercent(where.field("percentage"), abort.GetPercentage())
		status := where.field("httpStatus")
		if r.check(abort.GetHttpStatus() != nil, status, msgEmpty) {
			known := http.StatusText(int(abort.GetHttpStatus().GetValue())) != ""
			r.check(known, status, "http status code is incorrect")
		}
	}
	if bandwidth != nil {
		where := conf.field("responseBandwidth")
		r.somePercent(where.field("percentage"), bandwidth.GetPercentage())
		limit := where.field("limit")
		if r.check(bandwidth.GetLimit() != nil, limit, msgEmpty) {
			r.check(bandwidthForm.MatchString(bandwidth.GetLimit().GetValue()), limit, "has to be in kbps/mbps/gbps units")
		}
	}
}

var bandwidthForm = regexp.MustCompile(`^\d{1,9}\s?[gmk]bps$`)

// somePercent wants a percentage that is given.
func (r *report) somePercent(at path, v *wrapperspb.DoubleValue) {
	if r.check(v != nil, at, msgEmpty) {
		r.percent(at, v.GetValue())
	}
}

func healthCheck(r *report, at path, m *meshv1.HealthCheck) {
	r.selectors(at.field("sources"), m.GetSources(), selectorRules{service: true})
	r.serviceOnly(at.field("destinations"), m.GetDestinations())

	conf, c := at.field("conf"), m.GetConf()
	if !r.check(c != nil, conf, msgDefined) {
		return
	}
	r.check(sign(c.GetInterval()) > 0, conf.field("interval"), msgPositive)
	r.check(sign(c.GetTimeout()) > 0, conf.field("timeout"), msgPositive)
	r.check(c.GetUnhealthyThreshold() > 0, conf.field("unhealthyThreshold"), msgPositive)
	r.check(c.GetHealthyThreshold() > 0, conf.field("healthyThreshold"), msgPositive)
	r.positive(conf.field("initialJitter"), c.GetInitialJitter(), msgPositive)
	r.positive(conf.field("intervalJitter"), c.GetIntervalJitter(), msgPositive)
	if v := c.GetHealthyPanicThreshold(); v != nil {
		r.check(v.GetValue() >= 0 && v.GetValue() <= 100, conf.field("healthyPanicThreshold"), "must be in range [0.0 - 100.0]")
	}
	r.positive(conf.field("noTrafficInterval"), c.GetNoTrafficInterval(), msgPositive)
	// With both tcp and http, a cluster gets two checks.
	if h := c.GetHttp(); h != nil {
		where := conf.field("http")
		r.check(h.GetPath() != "", where.field("path"), "has to be defined and cannot be empty")
		for i, option := range h.GetRequestHeadersToAdd() {
			list := where.field("requestHeadersToAdd")
			item := list.at(i)
			header := item.field("header")
			if r.check(option.GetHeader() != nil, header, msgDefined) {
				r.notEmpty(header.field("key"), option.GetHeader().GetKey())
			}
		}
		for i, status := range h.GetExpectedStatuses() {
			list, v := where.field("expectedStatuses"), status.GetValue()
			r.check(v >= 100 && v < 600, list.at(i), "must be in range [100, 600)")
		}
	}
}

func rateLimit(r *report, at path, m *meshv1.RateLimit) {
	r.selectors(at.field("sources"), m.GetSources(), selectorRules{})
	r.selectors(at.field("destinations"), m.GetDestinations(), selectorRules{})

	conf := at.field("conf")
	if !r.check(m.GetConf() != nil, conf, "must have conf") {
		return
	}
	where, h := conf.field("http"), m.GetConf().GetHttp()
	r.check(h.GetRequests() > 0, where.field("requests"), "requests must be set")
	interval := where.field("interval")
	if r.check(h.GetInterval() != nil, interval, "interval must be set") {
		r.positive(interval, h.GetInterval(), msgPositive)
	}
	for i, v := range h.GetOnRateLimit().GetHeaders() {
		headers := where.field("onRateLimit.header")
		item := headers.entry(strconv.Itoa(i))
		r.check(v.GetKey() != "", item, "key must be set")
		r.check(v.GetValue() != "", item, "value must be set")
	}
}

func retry(r *report, at path, m *meshv1.Retry) {
	r.selectors(at.field("sources"), m.GetSources(), selectorRules{service: true})
	r.serviceOnly(at.field("destinations"), m.GetDestinations(), tagProtocol, tagOldProtocol)

	conf, c := at.field("conf"), m.GetConf()
	if !r.check(c != nil, conf, msgDefined) {
		return
	}
	r.check(c.GetHttp() != nil || c.GetTcp() != nil || c.GetGrpc() != nil, conf, "missing protocol [grpc|http|tcp] configuration")
	if h := c.GetHttp(); h != nil {
		where := conf.field("http")
		empty := h.GetNumRetries() == nil && h.GetPerTryTimeout() == nil && h.GetBackOff() == nil &&
			len(h.GetRetriableStatusCodes())+len(h.GetRetriableMethods())+len(h.GetRetryOn()) == 0
		r.check(!empty, where, "field cannot be empty")
		r.retries(where, h.GetNumRetries(), h.GetPerTryTimeout(), h.GetBackOff())
		for i, method := range h.GetRetriableMethods() {
			list := where.field("retriableMethods")
			r.check(method != meshv1.HttpMethod_NONE, list.at(i), "field cannot be empty")
		}
		for i, on := range h.GetRetryOn() {
			list := where.field("retryOn")
			r.check(on != meshv1.HttpRetryOn_retriable_status_codes || len(h.GetRetriableStatusCodes()) > 0, list.at(i),
				"retriableStatusCodes cannot be empty when this option is specified")
		}
	}
	if t := c.GetTcp(); t != nil {
		r.check(t.GetMaxConnectAttempts() > 0, conf.field("tcp.maxConnectAttempts"), "has to be greater than 0")
	}
	if g := c.GetGrpc(); g != nil {
		where := conf.field("grpc")
		empty := g.GetNumRetries() == nil && g.GetPerTryTimeout() == nil && g.GetBackOff() == nil && len(g.GetRetryOn()) == 0
		r.check(!empty, where, "field cannot be empty")
		for i, on := range g.GetRetryOn() {
			for j := range i {
				if g.GetRetryOn()[j] == on {
					r.addf(where.field("retryOn"), "repeated value %q at indexes [%d, %d]", on.String(), j, i)
					break
				}
			}
		}
		r.retries(where, g.GetNumRetries(), g.GetPerTryTimeout(), g.GetBackOff())
	}
}

// retries checks what HTTP and gRPC have in common.
func (r *report) retries(at path, n *wrapperspb.UInt32Value, perTry *durationpb.Duration, backOff *meshv1.Retry_Conf_BackOff) {
	r.check(n == nil || n.GetValue() > 0, at.field("numRetries"), "has to be greater than 0 when defined")
	r.positive(at.field("perTryTimeout"), perTry, "has to be greater than 0 when defined")
	if backOff == nil {
		return
	}
	where := at.field("backOff")
	base := where.field("baseInterval")
	if r.check(backOff.GetBaseInterval() != nil, base, msgDefined) && r.positive(base, backOff.GetBaseInterval(), "has to be greater than 0") {
		r.positive(where.field("maxInterval"), backOff.GetMaxInterval(), "has to be greater than 0 when defined")
	}
}

func timeout(r *report, at path, m *meshv1.Timeout) {
	r.selectors(at.field("sources"), m.GetSources(), selectorRules{service: true})
	r.serviceOnly(at.field("destinations"), m.GetDestinations())

	const (
		some     = "at least one timeout in section has to be defined"
		positive = "has to be greater than 0 when defined"
	)
	conf, c := at.field("conf"), m.GetConf()
	if !r.check(c != nil, conf, msgDefined) {
		return
	}
	r.notNegative(conf.field("connectTimeout"), c.GetConnectTimeout())
	if t := c.GetTcp(); t != nil {
		where := conf.field("tcp")
		if r.check(t.GetIdleTimeout() != nil, where, some) {
			r.positive(where.field("idleTimeout"), t.GetIdleTimeout(), "has to be greater than 0")
		}
	}
	if h := c.GetHttp(); h != nil {
		where := conf.field("http")
		r.check(h.GetRequestTimeout() != nil || h.GetIdleTimeout() != nil, where, some)
		r.positive(where.field("requestTimeout"), h.GetRequestTimeout(), positive)
		r.positive(where.field("idleTimeout"), h.GetIdleTimeout(), positive)
		r.notNegative(where.field("streamIdleTimeout"), h.GetStreamIdleTimeout())
		r.notNegative(where.field("maxStreamDuration"), h.GetMaxStreamDuration())
	}
	if g := c.GetGrpc(); g != nil {
		where := conf.field("grpc")
		r.check(g.GetStreamIdleTimeout() != nil || g.GetMaxStreamDuration() != nil, where, some)
		r.positive(where.field("streamIdleTimeout"), g.GetStreamIdleTimeout(), positive)
		r.positive(where.field("maxStreamDuration"), g.GetMaxStreamDuration(), positive)
	}
}
