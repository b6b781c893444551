package envoy

import (
	"fmt"
	"maps"
	"net/http"

	compressorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/compressor/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	statsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_stats/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// filter puts the request through the http filters, in order. done says that it was answered.
func (e *exchange) filter(w http.ResponseWriter, r *http.Request) (done bool, err error) {
	overrides, at := e.overrides()
	for _, f := range e.manager.GetHttpFilters() {
		packed, counted := f.GetTypedConfig(), place{listener: e.listener, route: -1, filter: f.GetName()}
		if o := overrides[f.GetName()]; o != nil {
			packed, counted = o, at[f.GetName()]
			counted.filter = f.GetName()
		}
		delete(overrides, f.GetName())
		m, err := packed.UnmarshalNew()
		if err != nil {
			return false, err
		}
		switch m := m.(type) {
		case *routerv3.Router, *statsv3.FilterConfig:
		case *compressorv3.Compressor:
			// An answer may go uncompressed to any client.
		case *ratelimitv3.LocalRateLimit:
			done, err = e.limit(m, counted, w)
		case *faultv3.HTTPFault:
			done, err = fault(m, w, r)
		default:
			err = fmt.Errorf("%w: http filter %s", ErrUnsupported, packed.GetTypeUrl())
		}
		if done || err != nil {
			return done, err
		}
	}
	for name := range overrides {
		return false, fmt.Errorf("%w: a route configures filter %q, which the listener does not have", ErrUnsupported, name)
	}
	return false, nil
}

// overrides are the configurations of filters on the way to the route, the most specific of each filter, and where it is from.
func (e *exchange) overrides() (map[string]*anypb.Any, map[string]place) {
	out, from := make(map[string]*anypb.Any), make(map[string]place)
	at := place{listener: e.listener, config: e.config.GetName(), route: -1}
	take := func(level map[string]*anypb.Any) {
		maps.Copy(out, level)
		for name := range level {
			from[name] = at
		}
	}
	take(e.config.GetTypedPerFilterConfig())
	at.host = e.host.GetName()
	take(e.host.GetTypedPerFilterConfig())
	at.route = e.index
	take(e.route.GetTypedPerFilterConfig())
	return out, from
}

// limit answers a request when there are too many.
func (e *exchange) limit(m *ratelimitv3.LocalRateLimit, at place, w http.ResponseWriter) (done bool, err error) {
	if err := understands(m); err != nil {
		return false, err
	}
	if m.GetTokenBucket() == nil || !chance(m.GetFilterEnabled().GetDefaultValue()) || e.t.limits.take(at, m.GetTokenBucket()) ||
		!chance(m.GetFilterEnforced().GetDefaultValue()) {
		return false, nil
	}
	if err := edit(w.Header(), m.GetResponseHeadersToAdd(), nil); err != nil {
		return false, err
	}
	status := http.StatusTooManyRequests
	if s := int(m.GetStatus().GetCode()); s >= 400 {
		status = s
	}
	http.Error(w, "local_rate_limited", status)
	return true, nil
}

// fault delays a request or answers it.
func fault(m *faultv3.HTTPFault, w http.ResponseWriter, r *http.Request) (done bool, err error) {
	messages := []proto.Message{m}
	if m.GetDelay() != nil {
		messages = append(messages, m.GetDelay())
	}
	if m.GetAbort() != nil {
		messages = append(messages, m.GetAbort())
	}
	if err := understands(messages...); err != nil {
		return false, err
	}
	for _, h := range m.GetHeaders() {
		if ok, err := matchHeader(h, r); err != nil || !ok {
			return false, err
		}
	}
	if d := m.GetDelay(); d != nil && chance(d.GetPercentage()) && !pause(r.Context(), d.GetFixedDelay().AsDuration()) {
		return true, nil
	}
	if a := m.GetAbort(); a != nil && chance(a.GetPercentage()) {
		http.Error(w, "fault filter abort", int(a.GetHttpStatus()))
		return true, nil
	}
	return false, nil
}
