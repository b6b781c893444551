package envoy

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	faultcommonv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/fault/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
)

const faultFilter = "envoy.filters.http.fault"

// fault is the filter of one FaultInjection, for requests from its sources.
func (g *draft) fault(s policy.Sourced) *hcmv3.HttpFilter {
	m := g.faults(s.Policy)
	if m == nil {
		return nil
	}
	m.Headers = []*routev3.HeaderMatcher{regexHeader(TagsHeader, sourcesRegex(s.Sources))}
	g.p.check(label(s.Policy), m)
	return g.p.httpFilter(faultFilter, m)
}

// faults are the faults of a FaultInjection, whoever the client is; nil with an error noted.
func (g *draft) faults(p *policy.Policy) *faultv3.HTTPFault {
	conf := specOf[*meshv1.FaultInjection](p).GetConf()
	m := &faultv3.HTTPFault{}
	if d := conf.GetDelay(); positive(d.GetValue()) != nil {
		m.Delay = &faultcommonv3.FaultDelay{
			FaultDelaySecifier: &faultcommonv3.FaultDelay_FixedDelay{FixedDelay: d.GetValue()},
			Percentage:         percent(d.GetPercentage().GetValue()),
		}
	}
	if a := conf.GetAbort(); a != nil && a.GetHttpStatus().GetValue()/100 == 1 {
		g.warn("%s: a request cannot be aborted with the interim status %d", label(p), a.GetHttpStatus().GetValue())
	} else if a != nil {
		m.Abort = &faultv3.FaultAbort{
			ErrorType:  &faultv3.FaultAbort_HttpStatus{HttpStatus: a.GetHttpStatus().GetValue()},
			Percentage: percent(a.GetPercentage().GetValue()),
		}
	}
	if b := conf.GetResponseBandwidth(); b != nil {
		limit, err := kilobits(b.GetLimit().GetValue())
		if err != nil {
			g.p.fail(fmt.Errorf("%s: conf.responseBandwidth.limit: %w", label(p), err))
			return nil
		}
		m.ResponseRateLimit = &faultcommonv3.FaultRateLimit{
			LimitType: &faultcommonv3.FaultRateLimit_FixedLimit_{
				FixedLimit: &faultcommonv3.FaultRateLimit_FixedLimit{LimitKbps: max(limit, 1)},
			},
			Percentage: percent(b.GetPercentage().GetValue()),
		}
	}
	g.p.check(label(p), m)
	return m
}

// kilobits reads a bandwidth such as "50 mbps".
func kilobits(limit string) (uint64, error) {
	for unit, factor := range map[string]uint64{"kbps": 1, "mbps": 1000, "gbps": 1_000_000} {
		if n, ok := strings.CutSuffix(limit, unit); ok {
			v, err := strconv.ParseUint(strings.TrimSpace(n), 10, 40)
			if err != nil {
				return 0, fmt.Errorf("%q is not a number of %s", limit, unit)
			}
			return v * factor, nil
		}
	}
	return 0, fmt.Errorf("%q has no unit kbps, mbps or gbps", limit)
}

// sourcesRegex matches the value of TagsHeader of proxies that have all tags of any of the sources. Values are matched whole,
// and what is special in a regular expression stands for itself in keys and values, where Kuma's expression lets x-backend
// pass for backend.
func sourcesRegex(sources []map[string]string) string {
	exprs := make([]string, len(sources))
	for i, tags := range sources {
		exprs[i] = sourceRegex(tags)
	}
	if len(exprs) == 1 {
		return exprs[0]
	}
	return "(" + strings.Join(exprs, "|") + ")"
}

func sourceRegex(tags map[string]string) string {
	var b strings.Builder
	b.WriteString(".*")
	for k, v := range sorted(spelledNow(tags)) {
		b.WriteString("&" + regexp.QuoteMeta(k) + "=")
		if v != "*" {
			b.WriteString("(?:[^&]*,)?" + regexp.QuoteMeta(v) + "(?:,[^&]*)?&")
		} else {
			b.WriteString("[^&]*&")
		}
		b.WriteString(".*")
	}
	return b.String()
}
