package envoy

import (
	"math"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
)

const (
	rateLimitFilterName = "envoy.filters.http.local_ratelimit"
	rateLimitStatPrefix = "rate_limit"
)

// rateLimitFilter limits nothing by itself: the limits are on routes.
func (p *packer) rateLimitFilter() *hcmv3.HttpFilter {
	return p.httpFilter(rateLimitFilterName, &ratelimitv3.LocalRateLimit{StatPrefix: rateLimitStatPrefix})
}

// rateLimitRoutes is one route for each limit, for requests from its sources.
func (g *draft) rateLimitRoutes(limits []policy.Sourced, route func(*routev3.RouteMatch) *routev3.Route) []*routev3.Route {
	var out []*routev3.Route
	for _, s := range limits {
		conf := specOf[*meshv1.RateLimit](s.Policy).GetConf().GetHttp()
		if conf == nil {
			continue
		}
		match := anyPath()
		match.Headers = []*routev3.HeaderMatcher{regexHeader(TagsHeader, sourcesRegex(s.Sources))}
		r := route(match)
		r.TypedPerFilterConfig = g.rateLimit(label(s.Policy), conf)
		out = append(out, r)
	}
	return out
}

// rateLimit is what a route has on it.
func (g *draft) rateLimit(name string, conf *meshv1.RateLimit_Conf_Http) map[string]*anypb.Any {
	always := func(key string) *corev3.RuntimeFractionalPercent {
		return &corev3.RuntimeFractionalPercent{DefaultValue: &typev3.FractionalPercent{Numerator: 100}, RuntimeKey: key}
	}
	m := &ratelimitv3.LocalRateLimit{
		StatPrefix:     rateLimitStatPrefix,
		TokenBucket:    bucket(conf.GetRequests(), conf.GetInterval()),
		FilterEnabled:  always("local_rate_limit_enabled"),
		FilterEnforced: always("local_rate_limit_enforced"),
	}
	if s := conf.GetOnRateLimit().GetStatus(); s != nil && typev3.StatusCode_name[int32(s.GetValue())] == "" { //nolint:gosec // none of the names is negative
		g.warn("%s: Envoy does not answer with the status %d: it is 429", name, s.GetValue())
	} else if s.GetValue() != 0 {
		m.Status = &typev3.HttpStatus{Code: typev3.StatusCode(s.GetValue())}
	}
	for _, h := range conf.GetOnRateLimit().GetHeaders() {
		m.ResponseHeadersToAdd = append(m.ResponseHeadersToAdd, header(h.GetKey(), h.GetValue(), h.GetAppend() == nil || h.GetAppend().GetValue()))
	}
	g.p.check(name, m)
	return map[string]*anypb.Any{rateLimitFilterName: g.p.pack(m)}
}

// minFill is how often Envoy fills a bucket at most; it refuses a shorter interval.
const minFill = 50 * time.Millisecond

// bucket holds what is allowed in an interval. Where that is too short for Envoy, as much more is allowed in a longer one.
func bucket(requests uint32, interval *durationpb.Duration) *typev3.TokenBucket {
	if d := interval.AsDuration(); d > 0 && d < minFill {
		requests = uint32(min(uint64(requests)*uint64(minFill)/uint64(d), math.MaxUint32)) //nolint:gosec // both are positive
		interval = durationpb.New(minFill)
	}
	return &typev3.TokenBucket{MaxTokens: requests, TokensPerFill: u32(requests), FillInterval: interval}
}

// limitsExternal: on the side of the client limits are for external services without an egress alone. All others limit for
// themselves.
func (g *generator) limitsExternal(o *outbound) bool {
	if specOf[*meshv1.RateLimit](o.policies.RateLimit).GetConf().GetHttp() == nil {
		return false
	}
	for _, c := range o.clusters() {
		if c.external {
			return true
		}
	}
	return false
}

func (g *generator) externalLimit(o *outbound) map[string]*anypb.Any {
	if !g.limitsExternal(o) {
		return nil
	}
	return g.rateLimit(label(o.policies.RateLimit), specOf[*meshv1.RateLimit](o.policies.RateLimit).GetConf().GetHttp())
}
