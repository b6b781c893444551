package envoy

import (
	"fmt"
	"regexp"
	"strconv"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/meridian-mesh/meridian/api/explain"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
)

// clientPolicies are those that act on the side of the client, for the outbound's service.
func (x *explainer) clientPolicies(o *outbound) {
	policies := x.matched.Service(o.service)
	add := func(p explain.Policy) { x.out.Policies = append(x.out.Policies, p) }
	add(explained(policy.TrafficRoute, x.client.CandidatesTo(policy.TrafficRoute, o.service), nil))
	add(explained(policy.Timeout, x.client.CandidatesTo(policy.Timeout, o.service), timeoutSettings(o)))
	add(explained(policy.Retry, x.client.CandidatesTo(policy.Retry, o.service), x.retrySettings(o, policies.Retry)))
	if x.limitsExternal(o) {
		add(explained(policy.RateLimit, x.client.CandidatesTo(policy.RateLimit, o.service), limitSettings(o.policies.RateLimit)))
	}
}

// settings grows a list of what acts.
type settings []explain.Setting

func (s *settings) duration(name string, d *durationpb.Duration) {
	switch {
	case d == nil:
	case d.AsDuration() == 0:
		*s = append(*s, explain.Setting{Name: name, Value: "none"})
	default:
		*s = append(*s, explain.Setting{Name: name, Value: d.AsDuration().String()})
	}
}

func (s *settings) number(name string, n interface{ GetValue() uint32 }, there bool) {
	if there {
		*s = append(*s, explain.Setting{Name: name, Value: strconv.FormatUint(uint64(n.GetValue()), 10)})
	}
}

func (s *settings) text(name, value string) {
	*s = append(*s, explain.Setting{Name: name, Value: value})
}

// timeoutSettings are the timeouts that act on an outbound. What is not there is Envoy's own.
func timeoutSettings(o *outbound) []explain.Setting {
	var s settings
	s.duration("connect", o.timeouts.connect)
	if o.protocol.overHTTP() {
		s.duration("request", o.timeouts.request)
		s.duration("idle", o.timeouts.httpIdle)
		s.duration("streamIdle", o.timeouts.streamIdle)
		s.duration("maxStreamDuration", o.timeouts.maxStreamDuration)
	} else {
		s.duration("idle", o.timeouts.tcpIdle)
	}
	return s
}

func (x *explainer) retrySettings(o *outbound, p *policy.Policy) []explain.Setting {
	var s settings
	retry := specOf[*meshv1.Retry](p)
	made := retryPolicy(retry, o.protocol)
	if x.in.Proxyless {
		made = grpcOnlyRetry(retry)
	}
	if made != nil {
		s.number("retries", made.GetNumRetries(), made.GetNumRetries() != nil)
		s.text("on", made.GetRetryOn())
		s.duration("perTryTimeout", made.GetPerTryTimeout())
	} else if n := retry.GetConf().GetTcp().GetMaxConnectAttempts(); n > 0 && !o.protocol.overHTTP() {
		s.text("connectAttempts", strconv.FormatUint(uint64(n), 10))
	}
	return s
}

// clusterPolicies are those that act on the connections to a destination.
func (x *explainer) clusterPolicies(c *cluster) []explain.Policy {
	policies := x.matched.Service(c.service)
	var breaker, check settings
	if t := specOf[*meshv1.CircuitBreaker](policies.CircuitBreaker).GetConf().GetThresholds(); t != nil {
		breaker.number("maxConnections", t.GetMaxConnections(), t.GetMaxConnections() != nil)
		breaker.number("maxPendingRequests", t.GetMaxPendingRequests(), t.GetMaxPendingRequests() != nil)
		breaker.number("maxRequests", t.GetMaxRequests(), t.GetMaxRequests() != nil)
		breaker.number("maxRetries", t.GetMaxRetries(), t.GetMaxRetries() != nil)
	}
	if specOf[*meshv1.CircuitBreaker](policies.CircuitBreaker).GetConf().GetDetectors() != nil {
		breaker.text("outlierDetection", "on")
	}
	if conf := specOf[*meshv1.HealthCheck](policies.HealthCheck).GetConf(); conf != nil {
		check.duration("interval", conf.GetInterval())
		check.duration("timeout", conf.GetTimeout())
	}
	return []explain.Policy{
		explained(policy.CircuitBreaker, x.client.CandidatesTo(policy.CircuitBreaker, c.service), breaker),
		explained(policy.HealthCheck, x.client.CandidatesTo(policy.HealthCheck, c.service), check),
	}
}

func limitSettings(p *policy.Policy) []explain.Setting {
	conf := specOf[*meshv1.RateLimit](p).GetConf().GetHttp()
	if conf == nil {
		return nil
	}
	return []explain.Setting{{Name: "requests", Value: fmt.Sprintf("%d in %s", conf.GetRequests(), conf.GetInterval().AsDuration())}}
}

// serverPolicies are the faults and limits that a destination with the given tags has for requests of this proxy.
func (x *explainer) serverPolicies(tags map[string]string, overHTTP bool) []explain.Policy {
	if !overHTTP || !protocolOf(spelledNow(tags)[protocolTag]).overHTTP() {
		return nil
	}
	var out []explain.Policy
	for _, s := range x.mesh.Policies.FaultInjectionsFor(tags) {
		if x.hits(s) {
			out = append(out, explain.Policy{Type: string(policy.FaultInjection), Names: []string{s.Policy.Name}, Settings: faultSettings(s.Policy)})
		}
	}
	for _, s := range x.mesh.Policies.RateLimitsFor(tags) {
		if specOf[*meshv1.RateLimit](s.Policy).GetConf().GetHttp() != nil && x.hits(s) {
			out = append(out, explain.Policy{Type: string(policy.RateLimit), Names: []string{s.Policy.Name}, Settings: limitSettings(s.Policy)})
			break // the first whose sources the client is among
		}
	}
	return out
}

// hits reports whether a policy is for the requests of the proxy, by the expression that its server has.
func (x *explainer) hits(s policy.Sourced) bool {
	if x.in.Proxyless {
		return false // the header that tells who it is comes from proxies
	}
	re, err := regexp.Compile("^(?:" + sourcesRegex(s.Sources) + ")$")
	return err == nil && re.MatchString(x.tags.header())
}

func faultSettings(p *policy.Policy) []explain.Setting {
	var s settings
	conf := specOf[*meshv1.FaultInjection](p).GetConf()
	if d := conf.GetDelay(); d != nil {
		s.text("delay", fmt.Sprintf("%s for %g%%", d.GetValue().AsDuration(), d.GetPercentage().GetValue()))
	}
	if a := conf.GetAbort(); a != nil {
		s.text("abort", fmt.Sprintf("with %d for %g%%", a.GetHttpStatus().GetValue(), a.GetPercentage().GetValue()))
	}
	if b := conf.GetResponseBandwidth(); b != nil {
		s.text("bandwidth", fmt.Sprintf("%s for %g%%", b.GetLimit().GetValue(), b.GetPercentage().GetValue()))
	}
	return s
}
