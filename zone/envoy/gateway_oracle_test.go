package envoy_test

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"pgregory.net/rapid"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/zone/envoy"
	"github.com/meridian-mesh/meridian/zone/envoy/envoytest"
	"github.com/meridian-mesh/meridian/zone/topology"
)

// The property: whatever the hosts of a gateway and its routes, what the oracle reads from its configuration is what the resources say
// of every request. They are read here once more, one request at a time, sharing nothing with api/gateway.

type (
	gwMatch   = meshv1.MeshGatewayRoute_HttpRoute_Match
	gwPath    = meshv1.MeshGatewayRoute_HttpRoute_Match_Path
	gwHeader  = meshv1.MeshGatewayRoute_HttpRoute_Match_Header
	gwQuery   = meshv1.MeshGatewayRoute_HttpRoute_Match_Query
	gwRule    = meshv1.MeshGatewayRoute_HttpRoute_Rule
	gwFilter  = meshv1.MeshGatewayRoute_HttpRoute_Filter
	gwBackend = meshv1.MeshGatewayRoute_Backend
	gwRoute   = meshv1.MeshGatewayRoute_HttpRoute
)

// edgeScenario is a gateway with one port.
type edgeScenario struct {
	hosts    []string            // of the listeners
	routes   []*gwRoute          // r0, r1, ...
	requests []envoytest.Request // that are asked about
}

func drawEdge(t *rapid.T) *edgeScenario {
	s := &edgeScenario{hosts: rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"*", "*.example.com", "www.example.com"}), 1, 3, rapid.ID).Draw(t, "hosts")}
	one := func(of ...string) string { return rapid.SampledFrom(of).Draw(t, "one") }
	maybe := func(n int) bool { return rapid.IntRange(1, n).Draw(t, "maybe") == n }
	destination := func() tags {
		out := tags{"kuma.io/service": one("a", "b")}
		if maybe(3) {
			out["version"] = one("v1", "v2")
		}
		return out
	}
	for range rapid.IntRange(1, 3).Draw(t, "routes") {
		r := &gwRoute{Hostnames: rapid.SliceOfN(rapid.SampledFrom([]string{"*", "*.example.com", "www.example.com", "api.example.com"}), 0, 2).Draw(t, "hostnames")}
		for range rapid.IntRange(1, 2).Draw(t, "rules") {
			rule := &gwRule{}
			for range rapid.IntRange(1, 2).Draw(t, "matches") {
				m := &gwMatch{}
				switch rapid.IntRange(0, 3).Draw(t, "path") {
				case 0:
					m.Path = &gwPath{Match: meshv1.MeshGatewayRoute_HttpRoute_Match_Path_EXACT, Value: one("/x", "/x/y", "/")}
				case 1:
					m.Path = &gwPath{Match: meshv1.MeshGatewayRoute_HttpRoute_Match_Path_PREFIX, Value: one("/x", "/x/y", "/")}
				case 2:
					m.Path = &gwPath{Match: meshv1.MeshGatewayRoute_HttpRoute_Match_Path_REGEX, Value: one("/x.*", "/.", "/[xz]/y")}
				}
				if maybe(4) {
					m.Method = meshv1.HttpMethod_POST
				}
				if maybe(4) {
					m.Headers = []*gwHeader{{Match: meshv1.MeshGatewayRoute_HttpRoute_Match_Header_MatchType(rapid.IntRange(0, 1).Draw(t, "kind")), Name: "x-user", Value: one("me", "m.")}}
				}
				if maybe(4) {
					m.QueryParameters = []*gwQuery{{Match: meshv1.MeshGatewayRoute_HttpRoute_Match_Query_MatchType(rapid.IntRange(0, 1).Draw(t, "kind")), Name: "q", Value: one("1", "[0-9]")}}
				}
				rule.Matches = append(rule.Matches, m)
			}
			if maybe(5) {
				rule.Filters = []*gwFilter{{Filter: &meshv1.MeshGatewayRoute_HttpRoute_Filter_Redirect_{Redirect: &meshv1.MeshGatewayRoute_HttpRoute_Filter_Redirect{
					Scheme: "https", Hostname: "new.example.com", Port: rapid.SampledFrom([]uint32{0, 8443}).Draw(t, "port"), StatusCode: rapid.SampledFrom([]uint32{301, 307}).Draw(t, "status"),
				}}}}
			} else {
				prefixes := !slices.ContainsFunc(rule.Matches, func(m *gwMatch) bool {
					return m.GetPath() == nil || m.GetPath().GetMatch() != meshv1.MeshGatewayRoute_HttpRoute_Match_Path_PREFIX
				})
				if maybe(3) && prefixes {
					rule.Filters = append(rule.Filters, &gwFilter{Filter: &meshv1.MeshGatewayRoute_HttpRoute_Filter_Rewrite_{Rewrite: &meshv1.MeshGatewayRoute_HttpRoute_Filter_Rewrite{
						Path: &meshv1.MeshGatewayRoute_HttpRoute_Filter_Rewrite_ReplacePrefixMatch{ReplacePrefixMatch: one("/", "/n", "/n/")},
					}}})
				} else if maybe(5) {
					rule.Filters = append(rule.Filters, &gwFilter{Filter: &meshv1.MeshGatewayRoute_HttpRoute_Filter_Rewrite_{Rewrite: &meshv1.MeshGatewayRoute_HttpRoute_Filter_Rewrite{
						Path: &meshv1.MeshGatewayRoute_HttpRoute_Filter_Rewrite_ReplaceFull{ReplaceFull: `/full\1`},
					}}})
				}
				if maybe(4) {
					rule.Filters = append(rule.Filters, &gwFilter{Filter: &meshv1.MeshGatewayRoute_HttpRoute_Filter_Mirror_{Mirror: &meshv1.MeshGatewayRoute_HttpRoute_Filter_Mirror{
						Percentage: wrapperspb.Double(50), Backend: &gwBackend{Destination: destination()},
					}}})
				}
				for range rapid.IntRange(1, 2).Draw(t, "backends") {
					rule.Backends = append(rule.Backends, &gwBackend{Weight: uint32(rapid.IntRange(0, 3).Draw(t, "weight")), Destination: destination()}) //nolint:gosec // small
				}
			}
			r.Rules = append(r.Rules, rule)
		}
		s.routes = append(s.routes, r)
	}
	s.ask()
	return s
}

// ask lists requests of all forms that the conditions above tell apart.
func (s *edgeScenario) ask() {
	for _, host := range []string{"www.example.com", "API.example.com:8080", "a.b.example.com", "example.org"} {
		for _, path := range []string{"/", "/x", "/xz", "/x/", "/x/y", "/x/y/z", "/z/y"} {
			for _, user := range []string{"", "me", "you"} {
				for _, more := range []string{"", "?q=1", "?q=a"} {
					method := "GET"
					if user == "me" && more != "?q=a" {
						method = "POST"
					}
					r := envoytest.Request{Method: method, Host: host, Path: path + more, Headers: map[string]string{}}
					if user != "" {
						r.Headers["x-user"] = user
					}
					s.requests = append(s.requests, r)
				}
			}
		}
	}
}

func (s *edgeScenario) build(t interface{ Fatalf(string, ...any) }) *envoy.Output {
	var changes []store.Change
	add := func(typ, name string, spec proto.Message) {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(spec)
		if err != nil {
			t.Fatalf("%v", err)
		}
		key := store.Key{Type: typ, Mesh: "default", Name: name}
		if typ == "Mesh" {
			key.Mesh = ""
		}
		changes = append(changes, store.Change{Key: key, Record: &store.Record{Key: key, Spec: b, Created: time.Unix(1, 0)}})
	}
	add("Mesh", "default", &meshv1.Mesh{})
	edge := []*meshv1.Selector{{Match: tags{"kuma.io/service": "edge"}}}
	gateway := &meshv1.MeshGateway{Selectors: edge, Conf: &meshv1.MeshGateway_Conf{}}
	for _, host := range s.hosts {
		gateway.Conf.Listeners = append(gateway.Conf.Listeners, &meshv1.MeshGateway_Listener{Port: 80, Protocol: meshv1.MeshGateway_Listener_HTTP, Hostname: host})
	}
	add("MeshGateway", "gw", gateway)
	for i, r := range s.routes {
		add("MeshGatewayRoute", fmt.Sprintf("r%d", i), &meshv1.MeshGatewayRoute{Selectors: edge, Conf: &meshv1.MeshGatewayRoute_Conf{
			Route: &meshv1.MeshGatewayRoute_Conf_Http{Http: r},
		}})
	}
	add("Timeout", "a", &meshv1.Timeout{
		Sources: edge, Destinations: []*meshv1.Selector{{Match: tags{"kuma.io/service": "a"}}},
		Conf: &meshv1.Timeout_Conf{Http: &meshv1.Timeout_Conf_Http{RequestTimeout: durationpb.New(7 * time.Second)}},
	})
	w := topology.New("zone-1", slog.New(slog.DiscardHandler))
	w.Apply(changes)
	out, err := envoy.Gateway(w.Mesh("default"), &envoy.Proxy{Mesh: "default", Name: "edge-1", Dataplane: &meshv1.Dataplane{
		Networking: &meshv1.Dataplane_Networking{Address: "10.0.0.1", Gateway: &meshv1.Dataplane_Networking_Gateway{
			Type: meshv1.Dataplane_Networking_Gateway_BUILTIN, Tags: tags{"kuma.io/service": "edge"},
		}},
	}}, nil)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return out
}

// stands reports whether pattern stands for a name, or for all names that a narrower pattern stands for.
func stands(pattern, name string) bool {
	return pattern == "*" || pattern == name || strings.HasPrefix(pattern, "*.") && strings.HasSuffix(name, pattern[1:])
}

// at are the routes that serve requests for a name.
func (s *edgeScenario) at(name string) []int {
	name, _, _ = strings.Cut(strings.ToLower(name), ":")
	hosts := make(map[string]map[int]bool)
	for _, h := range s.hosts {
		if hosts[h] == nil {
			hosts[h] = make(map[int]bool)
		}
		for i, r := range s.routes {
			if len(r.GetHostnames()) == 0 {
				hosts[h][i] = true
			}
			for _, wanted := range r.GetHostnames() {
				both := wanted // what the listener and the route have in common
				if stands(wanted, h) {
					both = h
				} else if !stands(h, wanted) {
					continue
				}
				if hosts[both] == nil {
					hosts[both] = make(map[int]bool)
				}
				hosts[both][i] = true
			}
		}
	}
	best := ""
	for h := range hosts {
		if stands(h, name) && len(h) > len(best) {
			best = h
		}
	}
	return slices.Sorted(maps.Keys(hosts[best]))
}

// fits reports whether a request has what a match asks for, and how much that is.
func fits(m *gwMatch, r *envoytest.Request) (bool, []int) {
	path, query, _ := strings.Cut(r.Path, "?")
	rank := []int{0, 0, 0, len(m.GetHeaders()), len(m.GetQueryParameters())}
	v := m.GetPath().GetValue()
	ok := true
	switch {
	case m.GetPath() == nil:
	case m.GetPath().GetMatch() == meshv1.MeshGatewayRoute_HttpRoute_Match_Path_EXACT:
		ok, rank[0], rank[1] = path == v, 3, len(v)
	case m.GetPath().GetMatch() == meshv1.MeshGatewayRoute_HttpRoute_Match_Path_REGEX:
		ok, rank[0], rank[1] = regexp.MustCompile("^(?:"+v+")$").MatchString(path), 1, len(v)
	case v != "/":
		ok, rank[0], rank[1] = strings.HasPrefix(path+"/", v+"/"), 2, len(v)
	}
	if m.GetMethod() != meshv1.HttpMethod_NONE {
		rank[2] = 1
		ok = ok && r.Method == m.GetMethod().String()
	}
	value := func(regex bool, want, got string) bool {
		if regex {
			return regexp.MustCompile("^(?:" + want + ")$").MatchString(got)
		}
		return want == got
	}
	for _, h := range m.GetHeaders() {
		ok = ok && value(h.GetMatch() == meshv1.MeshGatewayRoute_HttpRoute_Match_Header_REGEX, h.GetValue(), r.Headers[h.GetName()])
	}
	for _, q := range m.GetQueryParameters() {
		got, has := strings.CutPrefix(query, q.GetName()+"=")
		ok = ok && has && value(q.GetMatch() == meshv1.MeshGatewayRoute_HttpRoute_Match_Query_REGEX, q.GetValue(), got)
	}
	return ok, rank
}

// expect says in one line what becomes of a request.
func (s *edgeScenario) expect(r *envoytest.Request) string {
	var rule *gwRule
	var match *gwMatch
	var best []int
	for _, i := range s.at(r.Host) {
		for _, one := range s.routes[i].GetRules() {
			for _, m := range one.GetMatches() {
				if ok, rank := fits(m, r); ok && (rule == nil || slices.Compare(rank, best) > 0) {
					rule, match, best = one, m, rank
				}
			}
		}
	}
	if rule == nil {
		return "404"
	}
	path, _, _ := strings.Cut(r.Path, "?")
	mirror := ""
	for _, f := range rule.GetFilters() {
		switch {
		case f.GetRedirect() != nil:
			host := "new.example.com"
			if f.GetRedirect().GetPort() != 0 {
				host += ":8443"
			}
			return fmt.Sprintf("%d https://%s%s", f.GetRedirect().GetStatusCode(), host, r.Path)
		case f.GetRewrite().GetReplaceFull() != "":
			path = f.GetRewrite().GetReplaceFull()
		case f.GetRewrite() != nil:
			rest := strings.Trim(strings.TrimPrefix(path, strings.TrimSuffix(match.GetPath().GetValue(), "/")), " ")
			path = cmp.Or(strings.TrimSuffix(f.GetRewrite().GetReplacePrefixMatch(), "/")+rest, "/")
		case f.GetMirror() != nil:
			mirror = partOf(f.GetMirror().GetBackend().GetDestination())
		}
	}
	shares, first := make(map[string]uint32), ""
	even := !slices.ContainsFunc(rule.GetBackends(), func(b *gwBackend) bool { return b.GetWeight() > 0 })
	for _, b := range rule.GetBackends() {
		weight := b.GetWeight()
		if even {
			weight = 1
		}
		if weight > 0 {
			first = cmp.Or(first, b.GetDestination()["kuma.io/service"])
			shares[partOf(b.GetDestination())] += weight
		}
	}
	if len(shares) == 1 {
		for k := range shares {
			shares[k] = 1
		}
	}
	timeout := "none"
	if first == "a" {
		timeout = "7s"
	}
	return fmt.Sprintf("to %v at %s, copies to %q, timeout %s", shares, path, mirror, timeout)
}

func partOf(t tags) string { return t["kuma.io/service"] + t["version"] }

// violations are the requests of which the configuration says something else than the resources.
func (s *edgeScenario) violations(out *envoy.Output, resources []proto.Message) []string {
	oracle := envoytest.New(resources)
	part := make(map[string]string)
	for _, ref := range out.Endpoints {
		part[ref.Cluster] = ref.Service + ref.Tags["version"]
	}
	var bad []string
	for i := range s.requests {
		r := &s.requests[i]
		want := s.expect(r)
		o, err := oracle.Ask("gw:HTTP:80", envoytest.Connection{}, r)
		var got string
		switch {
		case err != nil:
			got = err.Error()
		case o.Location != "":
			got = fmt.Sprintf("%d %s", o.Answer, o.Location)
		case o.Answer != 0:
			got = fmt.Sprint(o.Answer)
		case o.Refused != "":
			got = o.Refused
		default:
			shares, mirror, timeout := make(map[string]uint32), "", "none"
			for cluster, weight := range o.Destinations {
				shares[part[cluster]] += weight
			}
			for _, m := range o.Mirrors {
				mirror += part[m]
			}
			if o.Timeout != nil {
				timeout = o.Timeout.String()
			}
			got = fmt.Sprintf("to %v at %s, copies to %q, timeout %s", shares, o.Path, mirror, timeout)
		}
		if got != want {
			bad = append(bad, fmt.Sprintf("%s %s%s %v: %s, want %s", r.Method, r.Host, r.Path, r.Headers, got, want))
		}
	}
	return bad
}

func TestAGatewayDoesWhatItsRoutesSay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawEdge(t)
		out := s.build(t)
		if bad := s.violations(out, messages(out)); len(bad) > 0 {
			t.Fatalf("%d of %d requests, the first: %s\nhosts %v, routes %v", len(bad), len(s.requests), bad[0], s.hosts, s.routes)
		}
	})
}

// TestTheOracleFindsInjectedBugsOfGateways is the test of that test: some scenario shows each bug.
func TestTheOracleFindsInjectedBugsOfGateways(t *testing.T) {
	eachRoute := func(change func(*routev3.Route)) func(*routev3.RouteConfiguration) {
		return func(c *routev3.RouteConfiguration) {
			for _, h := range c.GetVirtualHosts() {
				for _, r := range h.GetRoutes() {
					change(r)
				}
			}
		}
	}
	bugs := map[string]func(*routev3.RouteConfiguration){
		"the least specific match comes first": func(c *routev3.RouteConfiguration) {
			for _, h := range c.GetVirtualHosts() {
				slices.Reverse(h.Routes[:len(h.GetRoutes())-1])
			}
		},
		"all names are at the first host": func(c *routev3.RouteConfiguration) {
			c.VirtualHosts = c.GetVirtualHosts()[:1]
			c.VirtualHosts[0].Domains = []string{"*"}
		},
		"a prefix ends in the middle of a segment": eachRoute(func(r *routev3.Route) {
			if p := r.GetMatch().GetPrefix(); len(p) > 1 {
				r.Match.PathSpecifier = &routev3.RouteMatch_Prefix{Prefix: strings.TrimSuffix(p, "/")}
			}
		}),
		"headers do not matter":          eachRoute(func(r *routev3.Route) { r.Match.Headers = nil }),
		"query parameters do not matter": eachRoute(func(r *routev3.Route) { r.Match.QueryParameters = nil }),
		"shares are equal": eachRoute(func(r *routev3.Route) {
			for _, w := range r.GetRoute().GetWeightedClusters().GetClusters() {
				w.Weight = wrapperspb.UInt32(1)
			}
		}),
		"copies are not made": eachRoute(func(r *routev3.Route) {
			if r.GetRoute() != nil {
				r.GetRoute().RequestMirrorPolicies = nil
			}
		}),
		"paths stay as they are": eachRoute(func(r *routev3.Route) {
			if r.GetRoute() != nil {
				r.GetRoute().PrefixRewrite, r.GetRoute().RegexRewrite = "", nil
			}
		}),
		"all redirects are for now": eachRoute(func(r *routev3.Route) {
			if r.GetRedirect() != nil {
				r.GetRedirect().ResponseCode = routev3.RedirectAction_FOUND
			}
		}),
		"the timeout is that of Envoy": eachRoute(func(r *routev3.Route) {
			if r.GetRoute() != nil {
				r.GetRoute().Timeout = nil
			}
		}),
	}
	scenarios := rapid.Custom(drawEdge)
	for seed := 0; seed < 300 && len(bugs) > 0; seed++ {
		s := scenarios.Example(seed)
		out := s.build(t)
		for name, inject := range bugs {
			all := messages(out)
			for i, m := range all {
				if c, ok := m.(*routev3.RouteConfiguration); ok {
					broken := proto.CloneOf(c)
					inject(broken)
					all[i] = broken
				}
			}
			if len(s.violations(out, all)) > 0 {
				delete(bugs, name)
			}
		}
	}
	for name := range bugs {
		t.Errorf("nobody notices that %s", name)
	}
}
