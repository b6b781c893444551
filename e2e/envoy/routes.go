package envoy

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
)

// virtualHost finds the host by exact domain, then the longest suffix, the longest prefix, then `*`.
func virtualHost(config *routev3.RouteConfiguration, authority string) *routev3.VirtualHost {
	var best *routev3.VirtualHost
	score := -1
	authority = strings.ToLower(authority)
	for _, host := range config.GetVirtualHosts() {
		for _, domain := range host.GetDomains() {
			d, s := strings.ToLower(domain), -1
			switch {
			case d == authority:
				s = 1 << 20
			case d == "*":
				s = 0
			case strings.HasPrefix(d, "*") && strings.HasSuffix(authority, d[1:]):
				s = 1<<10 + len(d)
			case strings.HasSuffix(d, "*") && strings.HasPrefix(authority, d[:len(d)-1]):
				s = len(d)
			}
			if s > score {
				best, score = host, s
			}
		}
	}
	return best
}

// findRoute returns the first route that matches and its place in the host, nil when none does.
func findRoute(host *routev3.VirtualHost, r *http.Request) (*routev3.Route, int, error) {
	for i, route := range host.GetRoutes() {
		ok, err := matches(route.GetMatch(), r)
		if err != nil || ok {
			return route, i, err
		}
	}
	return nil, 0, nil
}

func matches(m *routev3.RouteMatch, r *http.Request) (bool, error) {
	if err := understands(m); err != nil {
		return false, err
	}
	path, ok := r.URL.EscapedPath(), false
	fold := func(s string) string {
		if cs := m.GetCaseSensitive(); cs != nil && !cs.GetValue() {
			return strings.ToLower(s)
		}
		return s
	}
	var err error
	switch p := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		ok = strings.HasPrefix(fold(path), fold(p.Prefix))
	case *routev3.RouteMatch_Path:
		ok = fold(path) == fold(p.Path)
	case *routev3.RouteMatch_PathSeparatedPrefix:
		rest, found := strings.CutPrefix(fold(path), fold(p.PathSeparatedPrefix))
		ok = found && (rest == "" || rest[0] == '/')
	case *routev3.RouteMatch_SafeRegex:
		ok, err = matchWhole(p.SafeRegex, path)
	default:
		err = fmt.Errorf("%w: route match %T", ErrUnsupported, p)
	}
	for _, header := range m.GetHeaders() {
		if err != nil || !ok {
			break
		}
		ok, err = matchHeader(header, r)
	}
	for _, parameter := range m.GetQueryParameters() {
		if err != nil || !ok {
			break
		}
		ok, err = matchQuery(parameter, r.URL.Query())
	}
	if fraction := m.GetRuntimeFraction(); fraction != nil {
		ok = ok && chance(fraction.GetDefaultValue())
	}
	return ok, err
}

// matchQuery looks at the first value of a parameter, as Envoy does.
func matchQuery(m *routev3.QueryParameterMatcher, query url.Values) (bool, error) {
	there := query.Has(m.GetName())
	switch s := m.GetQueryParameterMatchSpecifier().(type) {
	case nil:
		return there, nil
	case *routev3.QueryParameterMatcher_PresentMatch:
		return there == s.PresentMatch, nil
	case *routev3.QueryParameterMatcher_StringMatch:
		ok, err := matchString(s.StringMatch, query.Get(m.GetName()))
		return ok && there, err
	default:
		return false, fmt.Errorf("%w: query parameter match %T", ErrUnsupported, s)
	}
}

func matchHeader(m *routev3.HeaderMatcher, r *http.Request) (bool, error) {
	var value string
	var there bool
	switch strings.ToLower(m.GetName()) {
	case ":method":
		value, there = r.Method, true
	case ":path":
		value, there = r.URL.RequestURI(), true
	case ":authority", "host":
		value, there = r.Host, true
	default:
		values := r.Header.Values(m.GetName())
		value, there = strings.Join(values, ","), len(values) > 0
	}
	var ok bool
	var err error
	//nolint:staticcheck // the older matchers are still valid on the wire
	switch s := m.GetHeaderMatchSpecifier().(type) {
	case *routev3.HeaderMatcher_StringMatch:
		ok, err = matchString(s.StringMatch, value)
	case *routev3.HeaderMatcher_ExactMatch:
		ok = value == s.ExactMatch
	case *routev3.HeaderMatcher_PrefixMatch:
		ok = strings.HasPrefix(value, s.PrefixMatch)
	case *routev3.HeaderMatcher_SuffixMatch:
		ok = strings.HasSuffix(value, s.SuffixMatch)
	case *routev3.HeaderMatcher_ContainsMatch:
		ok = strings.Contains(value, s.ContainsMatch)
	case *routev3.HeaderMatcher_SafeRegexMatch:
		ok, err = matchWhole(s.SafeRegexMatch, value)
	case *routev3.HeaderMatcher_PresentMatch:
		return (there == s.PresentMatch) != m.GetInvertMatch(), nil
	case nil:
		return there != m.GetInvertMatch(), nil
	default:
		err = fmt.Errorf("%w: header match %T", ErrUnsupported, s)
	}
	if !there {
		return false, err // a header that is not there matches nothing, inverted or not
	}
	return ok != m.GetInvertMatch(), err
}
