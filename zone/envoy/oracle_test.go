package envoy_test

import (
	"cmp"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	rbacfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"
	tcpproxyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"pgregory.net/rapid"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/zone/envoy"
	"github.com/meridian-mesh/meridian/zone/envoy/envoytest"
	"github.com/meridian-mesh/meridian/zone/topology"
)

// The property: whatever the permissions, routes and timeouts of a mesh, what the oracle reads from the configuration of a
// proxy is what the policies say. The policies are read here by a second, slow reading of the rules of matching that shares
// nothing with api/policy.

type tags = map[string]string

// scenario is a mesh with strict mTLS in which web uses three services.
type scenario struct {
	web       tags
	protocols map[string]string // of the services
	versions  map[string][]string
	outbounds []tags
	policies  []model
}

// model is a policy of any of the three types.
type model struct {
	name                  string
	created               int
	sources, destinations []tags
	route                 *meshv1.TrafficRoute_Conf
	timeout               *meshv1.Timeout_Conf
}

func (m model) typ() string {
	switch {
	case m.route != nil:
		return "TrafficRoute"
	case m.timeout != nil:
		return "Timeout"
	default:
		return "TrafficPermission"
	}
}

func selectorsOf(all []tags) []*meshv1.Selector {
	out := make([]*meshv1.Selector, len(all))
	for i, m := range all {
		out[i] = &meshv1.Selector{Match: m}
	}
	return out
}

func (m model) spec() proto.Message {
	s, d := selectorsOf(m.sources), selectorsOf(m.destinations)
	switch {
	case m.route != nil:
		return &meshv1.TrafficRoute{Sources: s, Destinations: d, Conf: m.route}
	case m.timeout != nil:
		return &meshv1.Timeout{Sources: s, Destinations: d, Conf: m.timeout}
	default:
		return &meshv1.TrafficPermission{Sources: s, Destinations: d}
	}
}

// services that web uses, and the versions that there may be.
var (
	services = []string{"a", "b", "c"}
	versions = []string{"v1", "v2"}
)

func drawScenario(t *rapid.T) *scenario {
	s := &scenario{
		web:       tags{"kuma.io/service": "web", "version": rapid.SampledFrom(versions).Draw(t, "web")},
		protocols: make(map[string]string), versions: make(map[string][]string),
	}
	for _, name := range services {
		s.protocols[name] = rapid.SampledFrom([]string{"http", "http", "http", "tcp"}).Draw(t, "protocol of "+name)
		s.versions[name] = rapid.SliceOfNDistinct(rapid.SampledFrom(versions), 1, 2, rapid.ID).Draw(t, "versions of "+name)
		s.outbounds = append(s.outbounds, tags{"kuma.io/service": name})
	}
	if rapid.Bool().Draw(t, "outbound to a version") {
		s.outbounds = append(s.outbounds, tags{"kuma.io/service": "a", "version": "v1"})
	}
	selector := func(names ...string) *rapid.Generator[tags] {
		return rapid.Custom(func(t *rapid.T) tags {
			out := tags{"kuma.io/service": rapid.SampledFrom(append(names, "*")).Draw(t, "service")}
			if v := rapid.SampledFrom([]string{"", "", "*", "v1", "v2"}).Draw(t, "version"); v != "" {
				out["version"] = v
			}
			return out
		})
	}
	service := rapid.Custom(func(t *rapid.T) tags {
		return tags{"kuma.io/service": rapid.SampledFrom(append(slices.Clone(services), "*")).Draw(t, "service")}
	})
	for i := range rapid.IntRange(0, 8).Draw(t, "policies") {
		m := model{name: fmt.Sprintf("p%d", i), created: rapid.IntRange(1, 2).Draw(t, "created")}
		switch rapid.IntRange(0, 2).Draw(t, "type") {
		case 0:
			m.sources = rapid.SliceOfN(selector("web", "a", "b"), 1, 2).Draw(t, "sources")
			m.destinations = rapid.SliceOfN(selector("web", "a"), 1, 2).Draw(t, "destinations")
		case 1:
			m.sources = rapid.SliceOfN(selector("web", "a"), 1, 2).Draw(t, "sources")
			m.destinations = rapid.SliceOfN(service, 1, 2).Draw(t, "destinations")
			m.route = drawRoute(t)
		default:
			m.sources = rapid.SliceOfN(selector("web", "a"), 1, 2).Draw(t, "sources")
			m.destinations = rapid.SliceOfN(service, 1, 2).Draw(t, "destinations")
			m.timeout = &meshv1.Timeout_Conf{ConnectTimeout: durationpb.New(time.Duration(i+1) * time.Second)}
			if rapid.Bool().Draw(t, "of requests") {
				m.timeout.Http = &meshv1.Timeout_Conf_Http{RequestTimeout: durationpb.New(time.Duration(i+1) * time.Minute)}
			}
		}
		s.policies = append(s.policies, m)
	}
	return s
}

func drawRoute(t *rapid.T) *meshv1.TrafficRoute_Conf {
	destination := rapid.Custom(func(t *rapid.T) tags {
		out := tags{"kuma.io/service": rapid.SampledFrom(append(slices.Clone(services), "*")).Draw(t, "to")}
		if v := rapid.SampledFrom([]string{"", "", "*", "v1", "v2"}).Draw(t, "version"); v != "" {
			out["version"] = v
		}
		return out
	})
	split := rapid.Custom(func(t *rapid.T) []*meshv1.TrafficRoute_Split {
		out := []*meshv1.TrafficRoute_Split{{Weight: wrapperspb.UInt32(7), Destination: destination.Draw(t, "first")}}
		for range rapid.IntRange(0, 2).Draw(t, "more") {
			w := rapid.SampledFrom([]uint32{0, 1, 30}).Draw(t, "weight")
			out = append(out, &meshv1.TrafficRoute_Split{Weight: wrapperspb.UInt32(w), Destination: destination.Draw(t, "next")})
		}
		return out
	})
	conf := &meshv1.TrafficRoute_Conf{}
	if rapid.Bool().Draw(t, "is split") {
		conf.Split = split.Draw(t, "split")
	} else {
		conf.Destination = destination.Draw(t, "destination")
	}
	for range rapid.IntRange(0, 2).Draw(t, "rules") {
		type matcher = meshv1.TrafficRoute_Http_Match_StringMatcher
		match := &meshv1.TrafficRoute_Http_Match{}
		path := rapid.SampledFrom([]string{"/", "/x", "/x/y"}).Draw(t, "path")
		if rapid.Bool().Draw(t, "is prefix") {
			match.Path = &matcher{MatcherType: &meshv1.TrafficRoute_Http_Match_StringMatcher_Prefix{Prefix: path}}
		} else {
			match.Path = &matcher{MatcherType: &meshv1.TrafficRoute_Http_Match_StringMatcher_Exact{Exact: path}}
		}
		if rapid.Bool().Draw(t, "has method") {
			match.Method = &matcher{MatcherType: &meshv1.TrafficRoute_Http_Match_StringMatcher_Exact{Exact: "GET"}}
		}
		conf.Http = append(conf.Http, &meshv1.TrafficRoute_Http{Match: match, Split: split.Draw(t, "split of the rule")})
	}
	return conf
}

// build makes the topology and the configuration.
func (s *scenario) build(t interface{ Fatalf(string, ...any) }) (*topology.Mesh, *envoy.Output) {
	var records []*store.Record
	add := func(typ, name string, created int, spec proto.Message) {
		b, err := proto.MarshalOptions{Deterministic: true}.Marshal(spec)
		if err != nil {
			t.Fatalf("%v", err)
		}
		mesh := "default"
		if typ == "Mesh" {
			mesh = ""
		}
		key := store.Key{Type: typ, Mesh: mesh, Name: name}
		records = append(records, &store.Record{Key: key, Spec: b, Created: time.Unix(int64(created), 0)})
	}
	add("Mesh", "default", 1, &meshv1.Mesh{Mtls: &meshv1.Mesh_Mtls{
		EnabledBackend: "ca", Backends: []*meshv1.CertificateAuthorityBackend{{Name: "ca", Type: "builtin"}},
	}})
	web := &meshv1.Dataplane{Networking: &meshv1.Dataplane_Networking{
		Address: "10.0.0.1", Inbound: []*meshv1.Dataplane_Networking_Inbound{{Port: 80, Tags: s.web}},
	}}
	for i, o := range s.outbounds {
		web.Networking.Outbound = append(web.Networking.Outbound,
			&meshv1.Dataplane_Networking_Outbound{Port: outboundPort(i), Tags: o})
	}
	add("Dataplane", "web-1", 1, web)
	for name, vs := range s.versions {
		for _, v := range vs {
			add("Dataplane", name+"-"+v, 1, &meshv1.Dataplane{Networking: &meshv1.Dataplane_Networking{
				Address: addressOf(name, v),
				Inbound: []*meshv1.Dataplane_Networking_Inbound{{Port: 80, Tags: tags{
					"kuma.io/service": name, "kuma.io/protocol": s.protocols[name], "version": v,
				}}},
			}})
		}
	}
	for _, m := range s.policies {
		add(m.typ(), m.name, m.created, m.spec())
	}
	w := topology.New("zone-1", slog.New(slog.DiscardHandler))
	changes := make([]store.Change, len(records))
	for i, r := range records {
		changes[i] = store.Change{Key: r.Key, Record: r}
	}
	w.Apply(changes)
	mesh := w.Mesh("default")
	set, errs := policy.NewSet("default", slices.Values(records))
	if len(errs) > 0 {
		t.Fatalf("%v", errs)
	}
	mesh.Policies = set
	out, err := envoy.Sidecar(mesh, &envoy.Proxy{Mesh: "default", Name: "web-1", Dataplane: web}, nil)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return mesh, out
}

func outboundPort(i int) uint32 { return uint32(10001 + i) } //nolint:gosec // small

func addressOf(service, version string) string {
	return fmt.Sprintf("10.1.%d.%s", slices.Index(services, service), strings.TrimPrefix(version, "v"))
}

// The second reading of the rules of matching.

func selects(sel, t tags) bool {
	for k, v := range sel {
		if got, has := t[k]; !has || v != "*" && v != got {
			return false
		}
	}
	return true
}

func rankOf(sel tags) [2]int {
	var r [2]int // total, exact
	for _, v := range sel {
		r[0]++
		if v != "*" {
			r[1]++
		}
	}
	return r
}

// best is the highest rank of the selectors that match; ok: there is one.
func best(sels []tags, t tags) (r [2]int, ok bool) {
	for _, sel := range sels {
		if selects(sel, t) {
			if n := rankOf(sel); !ok || slices.Compare(n[:], r[:]) > 0 {
				r, ok = n, true
			}
		}
	}
	return r, ok
}

// choose is the policy of a type for a destination, from a source unless that is nil.
func (s *scenario) choose(typ string, from, to tags) *model {
	var found *model
	var rank [2]int
	for i := range s.policies {
		m := &s.policies[i]
		if m.typ() != typ {
			continue
		}
		r, ok := best(m.destinations, to)
		if ok && from != nil {
			var source [2]int
			source, ok = best(m.sources, from)
			r[0], r[1] = r[0]+source[0], r[1]+source[1]
		}
		if !ok {
			continue
		}
		better := 1
		if found != nil {
			better = cmp.Or(slices.Compare(r[:], rank[:]), cmp.Compare(m.created, found.created), cmp.Compare(found.name, m.name))
		}
		if better > 0 {
			found, rank = m, r
		}
	}
	return found
}

// violations holds what the oracle reads against what the policies say.
func (s *scenario) violations(mesh *topology.Mesh, out *envoy.Output, resources []proto.Message) []string {
	var bad []string
	say := func(format string, args ...any) { bad = append(bad, fmt.Sprintf(format, args...)) }
	oracle := envoytest.New(resources)

	permission := s.choose("TrafficPermission", nil, s.web)
	for _, name := range []string{"web", "a", "b", "d"} {
		for _, v := range versions {
			client := tags{"kuma.io/service": name, "version": v}
			conn := envoytest.Connection{TLS: true, Identities: []string{
				"spiffe://default/" + name, "kuma://kuma.io/service/" + name, "kuma://version/" + v,
			}}
			want := false
			if permission != nil {
				_, want = best(permission.sources, client)
			}
			got, err := oracle.Ask("inbound:10.0.0.1:80", conn, nil)
			if err != nil {
				say("%v: %v", client, err)
			} else if (got.Refused == "") != want {
				say("%v may connect: %v, refused: %q", client, want, got.Refused)
			}
		}
	}
	if got, _ := oracle.Ask("inbound:10.0.0.1:80", envoytest.Connection{}, nil); got.Refused == "" {
		say("a client without TLS is let in")
	}

	refs := make(map[string]envoy.EndpointRef)
	for _, ref := range out.Endpoints {
		refs[ref.Cluster] = ref
	}
	for i, o := range s.outbounds {
		for _, req := range []*envoytest.Request{
			{Method: "GET", Path: "/"}, {Method: "POST", Path: "/x"}, {Method: "GET", Path: "/x?q=1"}, {Method: "GET", Path: "/x/y/z"},
		} {
			got, err := oracle.Ask("outbound:127.0.0.1:"+strconv.Itoa(10001+i), envoytest.Connection{}, req)
			if err != nil {
				say("outbound %v: %v", o, err)
				continue
			}
			want := s.expect(o, req)
			have := make(map[string]uint32)
			for c, weight := range got.Destinations {
				ref := refs[c]
				have[part(ref.Service, ref.Tags)] += weight
				s.checkUpstream(mesh, oracle, ref, say)
			}
			if len(have) == 1 {
				for k := range have {
					have[k] = 1
				}
			}
			if !maps.Equal(have, want.to) {
				say("outbound %v, %v goes to %v, not to %v (%s)", o, *req, have, want.to, got.Refused)
			}
			if want.http && !equal(got.Timeout, want.timeout) {
				say("outbound %v: timeout %v, not %v", o, got.Timeout, want.timeout)
			}
		}
	}
	return bad
}

func equal(a, b *time.Duration) bool { return a == nil && b == nil || a != nil && b != nil && *a == *b }

func part(service string, t tags) string {
	var b strings.Builder
	b.WriteString(service)
	for _, k := range slices.Sorted(maps.Keys(t)) {
		b.WriteString("," + k + "=" + t[k])
	}
	return b.String()
}

type expectation struct {
	http    bool
	to      map[string]uint32
	timeout *time.Duration
}

// expect is where a request to an outbound goes.
func (s *scenario) expect(o tags, req *envoytest.Request) expectation {
	to := tags{"kuma.io/service": o["kuma.io/service"]}
	conf := &meshv1.TrafficRoute_Conf{Destination: tags{"kuma.io/service": "*"}}
	if m := s.choose("TrafficRoute", s.web, to); m != nil {
		conf = m.route
	} else if slices.ContainsFunc(s.policies, func(m model) bool { return m.route != nil }) {
		return expectation{to: map[string]uint32{}}
	}
	e := expectation{http: true}
	targets := func(split []*meshv1.TrafficRoute_Split, single tags) map[string]uint32 {
		if single != nil {
			split = []*meshv1.TrafficRoute_Split{{Weight: wrapperspb.UInt32(1), Destination: single}}
		}
		out := make(map[string]uint32)
		for _, d := range split {
			if d.GetWeight().GetValue() == 0 {
				continue
			}
			full := maps.Clone(o)
			for k, v := range d.GetDestination() {
				if v != "*" {
					full[k] = v
				}
			}
			service := full["kuma.io/service"]
			e.http = e.http && s.protocols[service] == "http"
			delete(full, "kuma.io/service")
			out[part(service, full)] += d.GetWeight().GetValue()
		}
		if len(out) == 1 {
			for k := range out {
				out[k] = 1
			}
		}
		return out
	}
	rest := targets(conf.GetSplit(), conf.GetDestination())
	e.to = rest
	path, _, _ := strings.Cut(req.Path, "?")
	taken := false
	for _, rule := range conf.GetHttp() {
		there := targets(rule.GetSplit(), rule.GetDestination())
		p := rule.GetMatch().GetPath()
		ok := p.GetExact() != "" && path == p.GetExact() || p.GetExact() == "" && strings.HasPrefix(path, p.GetPrefix())
		if m := rule.GetMatch().GetMethod(); m != nil && m.GetExact() != req.Method {
			ok = false
		}
		if ok && !taken {
			e.to, taken = there, true
		}
	}
	if !e.http {
		e.to = rest
	}
	if m := s.choose("Timeout", s.web, to); m != nil {
		d := m.timeout.GetHttp().GetRequestTimeout().AsDuration()
		e.timeout = &d
	}
	return e
}

// checkUpstream: the other end must be the service, and the endpoints are those that have the tags.
func (s *scenario) checkUpstream(mesh *topology.Mesh, oracle *envoytest.Config, ref envoy.EndpointRef, say func(string, ...any)) {
	up, err := oracle.Upstream(ref.Cluster)
	if err != nil {
		say("%v", err)
		return
	}
	sni := ref.Service + "{mesh=default}"
	if v := ref.Tags["version"]; v != "" {
		sni = ref.Service + "{mesh=default,version=" + v + "}"
	}
	if len(up.Identities) != 1 || up.Identities[0].GetExact() != "spiffe://default/"+ref.Service || up.SNI != sni {
		say("cluster %s connects with SNI %q to %v", ref.Cluster, up.SNI, up.Identities)
	}
	cla, err := envoy.LoadAssignment(mesh, ref)
	if err != nil {
		say("%v", err)
		return
	}
	var got, want []string
	for _, group := range cla.GetEndpoints() {
		for _, e := range group.GetLbEndpoints() {
			got = append(got, e.GetEndpoint().GetAddress().GetSocketAddress().GetAddress())
		}
	}
	for _, v := range s.versions[ref.Service] {
		if only := ref.Tags["version"]; only == "" || only == v {
			want = append(want, addressOf(ref.Service, v))
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		say("cluster %s has the endpoints %v, not %v", ref.Cluster, got, want)
	}
}

func messages(out *envoy.Output) []proto.Message {
	all := make([]proto.Message, len(out.Resources))
	for i, r := range out.Resources {
		all[i] = r.Message
	}
	return all
}

func TestTheConfigurationIsWhatThePoliciesSay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := drawScenario(t)
		mesh, out := s.build(t)
		for _, v := range s.violations(mesh, out, messages(out)) {
			t.Errorf("%s", v)
		}
	})
}

// TestTheOracleFindsInjectedBugs is the test of that test: each bug is one that was easy to make.
func TestTheOracleFindsInjectedBugs(t *testing.T) {
	s := &scenario{
		web:       tags{"kuma.io/service": "web", "version": "v1"},
		protocols: map[string]string{"a": "http", "b": "http", "c": "tcp"},
		versions:  map[string][]string{"a": {"v1", "v2"}, "b": {"v1"}, "c": {"v1"}},
		outbounds: []tags{{"kuma.io/service": "a"}, {"kuma.io/service": "c"}},
		policies: []model{
			{
				name: "permission", created: 1, sources: []tags{{"kuma.io/service": "a", "version": "v2"}},
				destinations: []tags{{"kuma.io/service": "web"}},
			},
			{
				name: "route", created: 1, sources: []tags{{"kuma.io/service": "*"}}, destinations: []tags{{"kuma.io/service": "*"}},
				route: &meshv1.TrafficRoute_Conf{Split: []*meshv1.TrafficRoute_Split{
					{Weight: wrapperspb.UInt32(9), Destination: tags{"kuma.io/service": "*", "version": "v1"}},
					{Weight: wrapperspb.UInt32(1), Destination: tags{"kuma.io/service": "*", "version": "v2"}},
				}, Http: []*meshv1.TrafficRoute_Http{{
					Match: &meshv1.TrafficRoute_Http_Match{Path: &meshv1.TrafficRoute_Http_Match_StringMatcher{
						MatcherType: &meshv1.TrafficRoute_Http_Match_StringMatcher_Prefix{Prefix: "/x"},
					}},
					Destination: tags{"kuma.io/service": "b"},
				}}},
			},
			{
				name: "timeout", created: 1, sources: []tags{{"kuma.io/service": "*"}}, destinations: []tags{{"kuma.io/service": "*"}},
				timeout: &meshv1.Timeout_Conf{Http: &meshv1.Timeout_Conf_Http{RequestTimeout: durationpb.New(7 * time.Second)}},
			},
		},
	}
	tests := []struct {
		name   string
		inject func(m proto.Message)
	}{
		{"nothing", nil},
		{"one tag of a source is enough", func(m proto.Message) {
			eachFilter(m, func(r *rbacfilterv3.RBAC) {
				for _, p := range r.GetRules().GetPolicies() {
					for _, principal := range p.GetPrincipals() {
						principal.Identifier = &rbacv3.Principal_OrIds{OrIds: principal.GetAndIds()}
					}
				}
			})
		}},
		{"the rest is tried before the rules", func(m proto.Message) {
			eachFilter(m, func(h *hcmv3.HttpConnectionManager) {
				slices.Reverse(h.GetRouteConfig().GetVirtualHosts()[0].GetRoutes())
			})
		}},
		{"the shares of a split are equal", func(m proto.Message) {
			eachFilter(m, func(p *tcpproxyv3.TcpProxy) {
				for _, w := range p.GetWeightedClusters().GetClusters() {
					w.Weight = 1
				}
			})
		}},
		{"the timeout is that of Envoy", func(m proto.Message) {
			eachFilter(m, func(h *hcmv3.HttpConnectionManager) {
				for _, r := range h.GetRouteConfig().GetVirtualHosts()[0].GetRoutes() {
					r.GetRoute().Timeout = nil
				}
			})
		}},
		{"any service of the mesh may answer", func(m proto.Message) {
			c, ok := m.(*clusterv3.Cluster)
			if !ok || c.GetTransportSocket() == nil {
				return
			}
			tls := &tlsv3.UpstreamTlsContext{}
			if err := c.GetTransportSocket().GetTypedConfig().UnmarshalTo(tls); err != nil {
				panic(err)
			}
			tls.GetCommonTlsContext().GetCombinedValidationContext().GetDefaultValidationContext().MatchTypedSubjectAltNames = nil
			repack(c.GetTransportSocket().GetTypedConfig(), tls)
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			mesh, out := s.build(t)
			all := messages(out)
			if tt.inject == nil {
				if bad := s.violations(mesh, out, all); len(bad) > 0 {
					t.Fatal(strings.Join(bad, "\n"))
				}
				return
			}
			for i := range all {
				all[i] = proto.Clone(all[i])
				tt.inject(all[i])
			}
			if len(s.violations(mesh, out, all)) == 0 {
				t.Error("the bug is not found")
			}
		})
	}
}

// eachFilter changes the filters of one kind in a listener.
func eachFilter[T proto.Message](m proto.Message, change func(T)) {
	l, ok := m.(*listenerv3.Listener)
	if !ok {
		return
	}
	for _, chain := range l.GetFilterChains() {
		for _, f := range chain.GetFilters() {
			config, err := f.GetTypedConfig().UnmarshalNew()
			if err != nil {
				panic(err)
			}
			if typed, ok := config.(T); ok {
				change(typed)
				repack(f.GetTypedConfig(), config)
			}
		}
	}
}

func repack(into *anypb.Any, m proto.Message) {
	if err := into.MarshalFrom(m); err != nil {
		panic(err)
	}
}
