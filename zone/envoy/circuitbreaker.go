package envoy

import (
	"math"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

// circuitBreakers are the limits of connections and requests; nil: Envoy's own.
func circuitBreakers(cb *meshv1.CircuitBreaker) *clusterv3.CircuitBreakers {
	t := cb.GetConf().GetThresholds()
	if t == nil {
		return nil
	}
	return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
		MaxConnections: t.GetMaxConnections(), MaxPendingRequests: t.GetMaxPendingRequests(),
		MaxRequests: t.GetMaxRequests(), MaxRetries: t.GetMaxRetries(),
	}}}
}

// outlierDetection takes endpoints that fail out of use. Only the detectors that the policy names act: each of the others,
// which Envoy has on by default, is turned off.
func outlierDetection(cb *meshv1.CircuitBreaker) *clusterv3.OutlierDetection {
	if cb == nil {
		return nil
	}
	conf := cb.GetConf()
	d := conf.GetDetectors()
	out := &clusterv3.OutlierDetection{
		Interval: positive(conf.GetInterval()), BaseEjectionTime: positive(conf.GetBaseEjectionTime()),
		MaxEjectionPercent:             conf.GetMaxEjectionPercent(),
		SplitExternalLocalOriginErrors: conf.GetSplitExternalAndLocalErrors(),

		EnforcingConsecutive_5Xx:               u32(0),
		EnforcingConsecutiveGatewayFailure:     u32(0),
		EnforcingConsecutiveLocalOriginFailure: u32(0),
		EnforcingSuccessRate:                   u32(0),
		EnforcingLocalOriginSuccessRate:        u32(0),
		EnforcingFailurePercentage:             u32(0),
		EnforcingFailurePercentageLocalOrigin:  u32(0),
	}
	if e := d.GetTotalErrors(); e != nil {
		out.EnforcingConsecutive_5Xx, out.Consecutive_5Xx = u32(100), e.GetConsecutive()
	}
	if e := d.GetGatewayErrors(); e != nil {
		out.EnforcingConsecutiveGatewayFailure, out.ConsecutiveGatewayFailure = u32(100), e.GetConsecutive()
	}
	if e := d.GetLocalErrors(); e != nil {
		out.EnforcingConsecutiveLocalOriginFailure, out.ConsecutiveLocalOriginFailure = u32(100), e.GetConsecutive()
	}
	if s := d.GetStandardDeviation(); s != nil {
		out.EnforcingSuccessRate, out.EnforcingLocalOriginSuccessRate = u32(100), u32(100)
		out.SuccessRateRequestVolume, out.SuccessRateMinimumHosts = s.GetRequestVolume(), s.GetMinimumHosts()
		if f := s.GetFactor(); f != nil {
			out.SuccessRateStdevFactor = u32(uint32(math.Round(f.GetValue() * 1000)))
		}
	}
	if f := d.GetFailure(); f != nil {
		out.EnforcingFailurePercentage, out.EnforcingFailurePercentageLocalOrigin = u32(100), u32(100)
		out.FailurePercentageRequestVolume, out.FailurePercentageMinimumHosts = f.GetRequestVolume(), f.GetMinimumHosts()
		out.FailurePercentageThreshold = f.GetThreshold()
	}
	return out
}
