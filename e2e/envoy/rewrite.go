package envoy

import (
	"fmt"
	"regexp"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

// rewritePath is the path under which a route sends a request on.
func rewritePath(route *routev3.Route, path string) (string, error) {
	action := route.GetRoute()
	if prefix := action.GetPrefixRewrite(); prefix != "" {
		return replacePrefix(route.GetMatch(), path, prefix)
	}
	if regex := action.GetRegexRewrite(); regex != nil {
		return replaceRegex(regex, path)
	}
	return path, nil
}

// replacePrefix puts something else in the place of what a route matched.
func replacePrefix(m *routev3.RouteMatch, path, with string) (string, error) {
	switch p := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		return with + path[len(p.Prefix):], nil
	case *routev3.RouteMatch_PathSeparatedPrefix:
		return with + path[len(p.PathSeparatedPrefix):], nil
	case *routev3.RouteMatch_Path:
		return with, nil
	default:
		return "", fmt.Errorf("%w: prefix rewrite of %T", ErrUnsupported, p)
	}
}

func replaceRegex(regex *matcherv3.RegexMatchAndSubstitute, path string) (string, error) {
	re, err := regexp.Compile(regex.GetPattern().GetRegex())
	if err != nil {
		return "", fmt.Errorf("regex rewrite: %w", err)
	}
	// \1 is Envoy's way to say ${1}, a dollar has no meaning there.
	to := strings.ReplaceAll(regex.GetSubstitution(), "$", "$$")
	to = regexp.MustCompile(`\\(\d)`).ReplaceAllString(to, "$${$1}")
	return re.ReplaceAllString(path, to), nil
}
