package envoy

import (
	"fmt"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// packer turns messages into the typed configuration of extensions. Validation of a message does not look inside of those,
// so each is validated here. The first failure is kept: what is built after it is thrown away with the rest.
type packer struct {
	err error
}

func (p *packer) fail(err error) {
	if p.err == nil {
		p.err = err
	}
}

// pack validates and encodes m. Until the caller looks at the error it works on with nil.
func (p *packer) pack(m proto.Message) *anypb.Any {
	if p.err != nil {
		return nil
	}
	if v, ok := m.(interface{ ValidateAll() error }); ok {
		if err := v.ValidateAll(); err != nil {
			p.fail(err)
			return nil
		}
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		p.fail(fmt.Errorf("encode %s: %w", m.ProtoReflect().Descriptor().Name(), err))
		return nil
	}
	return &anypb.Any{TypeUrl: "type.googleapis.com/" + string(m.ProtoReflect().Descriptor().FullName()), Value: b}
}

// check validates what was made of a policy, so that an error names it.
func (p *packer) check(policy string, m interface{ ValidateAll() error }) {
	if p.err != nil {
		return
	}
	if err := m.ValidateAll(); err != nil {
		p.fail(fmt.Errorf("%s: %w", policy, err))
	}
}

// Short forms of wrapped values.

func u32(v uint32) *wrapperspb.UInt32Value { return wrapperspb.UInt32(v) }

func boolean(v bool) *wrapperspb.BoolValue { return wrapperspb.Bool(v) }

func seconds(n int64) *durationpb.Duration { return &durationpb.Duration{Seconds: n} }

// orZero is what an absent duration of a policy that applies means: no limit.
func orZero(d *durationpb.Duration) *durationpb.Duration {
	if d == nil {
		return &durationpb.Duration{}
	}
	return d
}

// positive is nil for a duration that is not: Envoy's default stands where it has no word for "at once" or "never".
func positive(d *durationpb.Duration) *durationpb.Duration {
	if d.AsDuration() <= 0 {
		return nil
	}
	return d
}

func socketAddress(address string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: address, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}

func udpAddress(address string, port uint32) *corev3.Address {
	a := socketAddress(address, port)
	a.GetSocketAddress().Protocol = corev3.SocketAddress_UDP
	return a
}

func pipeAddress(path string) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: path}}}
}

func viaADS() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}
}

func exactly(s string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: s}}
}

func beginsWith(s string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: s}}
}

func regex(expr string) *matcherv3.RegexMatcher {
	return &matcherv3.RegexMatcher{
		// Envoy before 1.23 wants the engine named.
		EngineType: &matcherv3.RegexMatcher_GoogleRe2{GoogleRe2: &matcherv3.RegexMatcher_GoogleRE2{}}, //nolint:staticcheck // see above
		Regex:      expr,
	}
}

// perMillion is a percentage with fractions down to a ten thousandth. Kuma's own conversion of fractions comes out as always
// (value * 10,000 over TEN_THOUSAND); this is what the policy says.
func perMillion(percentage float64) *typev3.FractionalPercent {
	return &typev3.FractionalPercent{
		Numerator: uint32(percentage*10_000 + 0.5), Denominator: typev3.FractionalPercent_MILLION,
	}
}

// percent is a percentage in the plainest form that expresses it.
func percent(percentage float64) *typev3.FractionalPercent {
	if whole := uint32(percentage); float64(whole) == percentage {
		return &typev3.FractionalPercent{Numerator: whole}
	}
	return perMillion(percentage)
}

func u64(v uint64) *wrapperspb.UInt64Value { return wrapperspb.UInt64(v) }
