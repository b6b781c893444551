package envoy_test

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	"github.com/meridian-mesh/meridian/api/dataplane"
	"github.com/meridian-mesh/meridian/api/inspect"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/vips"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/zone/envoy"
	"github.com/meridian-mesh/meridian/zone/topology"
)

// The property: what inspection says is attached to a part of a proxy is what the configuration of that place was made from. Each
// random policy has a number, and a configuration in which that number can be found again; they are read out of the
// configuration by markersOf, which knows Envoy's types and nothing of policies.

// inspection is a random mesh.
type inspection struct {
	docs    []string // of the resources, as users write them
	proxies []string
	mtls    string // "", STRICT or PERMISSIVE
}

func (in *inspection) String() string { return strings.Join(in.docs, "\n---\n") }

var inspectedServices = []string{"a", "b", "c", "ext"}

func drawInspection() *rapid.Generator[*inspection] {
	return rapid.Custom(func(t *rapid.T) *inspection {
		in := &inspection{mtls: rapid.SampledFrom([]string{"", "STRICT", "STRICT", "PERMISSIVE"}).Draw(t, "mtls")}
		n := 0
		var logs, traces []string
		policies := func(f func(n int) string) {
			for range rapid.SampledFrom([]int{0, 1, 2, 2, 4}).Draw(t, "policies") {
				n++
				in.docs = append(in.docs, f(n))
			}
		}
		source := func() string { return drawSelectors(t, []string{"a", "b", "edge", "*", "*"}) }
		// Most policies about connections choose by the service that they lead to, which is all that they may.
		service := func() string {
			return fmt.Sprintf("[{match: {kuma.io/service: %q}}]",
				rapid.SampledFrom(append(slices.Clone(inspectedServices), "*", "*", "pass_through")).Draw(t, "to"))
		}
		inbound := func() string { return drawSelectors(t, []string{"a", "b", "ext", "dataplane-metrics", "*", "*", "*"}) }
		connection := func(typ resource.Type, to func() string, conf string) {
			policies(func(n int) string {
				return fmt.Sprintf("type: %s\nmesh: m\nname: %s\ncreationTime: 2024-01-0%dT00:00:00Z\nsources: %s\ndestinations: %s\n%s",
					typ, marked(typ, n), rapid.IntRange(1, 2).Draw(t, "created"), source(), to(), strings.ReplaceAll(conf, "N", strconv.Itoa(n)))
			})
		}
		connection(policy.Timeout, service, "conf: {connectTimeout: Ns, tcp: {idleTimeout: Ns}, http: {idleTimeout: Ns, streamIdleTimeout: Ns, requestTimeout: Ns}}")
		connection(policy.Retry, service, "conf: {http: {numRetries: N}, grpc: {numRetries: N}, tcp: {maxConnectAttempts: N}}")
		connection(policy.HealthCheck, service, "conf: {interval: Ns, timeout: 1s, unhealthyThreshold: 1, healthyThreshold: 1, tcp: {}}")
		connection(policy.CircuitBreaker, service, "conf: {thresholds: {maxConnections: N}}")
		connection(policy.TrafficPermission, inbound, "")
		connection(policy.FaultInjection, inbound, "conf: {delay: {percentage: 50, value: Ns}}")
		connection(policy.RateLimit, func() string {
			if rapid.Bool().Draw(t, "outbound") {
				return service()
			}
			return inbound()
		}, "conf: {http: {requests: N, interval: 1s}}")
		policies(func(n int) string {
			logs = append(logs, marked(policy.TrafficLog, n))
			return fmt.Sprintf("type: TrafficLog\nmesh: m\nname: %[1]s\nsources: %[2]s\ndestinations: %[3]s\nconf: {backend: %[1]s}",
				marked(policy.TrafficLog, n), source(), service())
		})
		policies(func(n int) string { return drawInspectedRoute(t, n, source(), service()) })
		policies(func(n int) string {
			traces = append(traces, marked(policy.TrafficTrace, n))
			return fmt.Sprintf("type: TrafficTrace\nmesh: m\nname: %[1]s\nselectors: %[2]s\nconf: {backend: %[1]s}",
				marked(policy.TrafficTrace, n), source())
		})
		policies(func(n int) string {
			name := marked(policy.ProxyTemplate, n)
			return fmt.Sprintf("type: ProxyTemplate\nmesh: m\nname: %[1]s\nselectors: %[2]s\nconf: {imports: [default-proxy], modifications: "+
				"[{cluster: {operation: add, value: \"{name: %[1]s, type: STATIC, connectTimeout: 1s}\"}}]}", name, source())
		})
		targetRef := func(typ resource.Type, conf string) {
			policies(func(n int) string {
				ref := rapid.SampledFrom([]string{
					"{kind: Mesh}", "{kind: MeshService, name: a}", "{kind: MeshSubset, tags: {version: v1}}",
					"{kind: MeshServiceSubset, name: b, tags: {version: v1}}", "{kind: MeshService, name: edge}", "{kind: MeshGatewayRoute, name: r}",
				}).Draw(t, "targetRef")
				return fmt.Sprintf("type: %s\nmesh: m\nname: %s\nspec:\n  targetRef: %s\n  %s", typ, marked(typ, n), ref, strings.ReplaceAll(conf, "N", strconv.Itoa(n)))
			})
		}
		peer := rapid.SampledFrom([]string{"{kind: Mesh}", "{kind: MeshService, name: a}"}).Draw(t, "to of access logs")
		targetRef(policy.MeshAccessLog, "from: [{targetRef: {kind: Mesh}, default: {backends: [{file: {path: /MeshAccessLog-N}}]}}]\n"+
			"  to: [{targetRef: "+peer+", default: {backends: [{file: {path: /MeshAccessLog-N}}]}}]")
		targetRef(policy.MeshTrace, `default: {backends: [{zipkin: {url: "http://MeshTrace-N:9411/"}}]}`)
		targetRef(policy.MeshTrafficPermission, "from: [{targetRef: {kind: MeshService, name: MeshTrafficPermission-N}, default: {action: ALLOW}}]")

		in.docs = append(in.docs, drawInspectedMesh(t, in.mtls, logs, traces))
		in.docs = append(in.docs, fmt.Sprintf("type: ExternalService\nmesh: m\nname: e\ntags: {kuma.io/service: ext, kuma.io/protocol: %s}\nnetworking: {address: \"%s:8080\"}",
			rapid.SampledFrom([]string{"http", "http", "tcp"}).Draw(t, "external"), rapid.SampledFrom([]string{"ext.example", "192.0.2.9"}).Draw(t, "host")))
		policies(func(n int) string { return drawInspectedGateway(t, n, drawSelectors(t, []string{"edge", "*", "*"})) })
		policies(func(n int) string {
			return drawGatewayRoute(t, n, "{http: {hostnames: ["+rapid.SampledFrom([]string{"", "a.com"}).Draw(t, "hostnames")+"], rules: [")
		})
		policies(func(n int) string { return drawGatewayRoute(t, n, "{tcp: {rules: [") })
		for i := range rapid.IntRange(1, 4).Draw(t, "proxies") {
			name := fmt.Sprintf("dp-%d", i)
			in.proxies = append(in.proxies, name)
			in.docs = append(in.docs, drawInspectedProxy(t, name, i))
		}
		return in
	})
}

// marked is the name of a policy with a number.
func marked(t resource.Type, n int) string { return fmt.Sprintf("%s-%d", t, n) }

func drawSelectors(t *rapid.T, services []string) string {
	var all []string
	for range rapid.IntRange(1, 2).Draw(t, "selectors") {
		match := fmt.Sprintf("kuma.io/service: %q", rapid.SampledFrom(services).Draw(t, "service"))
		if v := rapid.SampledFrom([]string{"", "", "v1", "*"}).Draw(t, "version"); v != "" {
			match += fmt.Sprintf(", version: %q", v)
		}
		all = append(all, "{match: {"+match+"}}")
	}
	return "[" + strings.Join(all, ", ") + "]"
}

// drawInspectedRoute draws a route that leads to endpoints with a tag that has its number, besides others.
func drawInspectedRoute(t *rapid.T, n int, sources, destinations string) string {
	service := func(label string) string { return rapid.SampledFrom([]string{"a", "b", "ext", "*"}).Draw(t, label) }
	conf := fmt.Sprintf("split: [{weight: 1, destination: {kuma.io/service: %q, route: \"%d\"}}, {weight: %d, destination: {kuma.io/service: %q}}]",
		service("route to"), n, rapid.IntRange(0, 1).Draw(t, "weight"), service("or to"))
	if rapid.Bool().Draw(t, "of requests") {
		conf += fmt.Sprintf("\n  http: [{match: {path: {prefix: /x}}, destination: {kuma.io/service: %q}}]", service("requests to"))
	}
	return fmt.Sprintf("type: TrafficRoute\nmesh: m\nname: %s\nsources: %s\ndestinations: %s\nconf:\n  %s",
		marked(policy.TrafficRoute, n), sources, destinations, conf)
}

// drawInspectedGateway draws a MeshGateway. Ports above 8000 are for connections, the others for requests.
func drawInspectedGateway(t *rapid.T, n int, selectors string) string {
	doc := fmt.Sprintf("type: MeshGateway\nmesh: m\nname: %s\nselectors: %s\nconf:\n  listeners:", marked(policy.MeshGateway, n), selectors)
	for i := range rapid.IntRange(1, 3).Draw(t, "listeners") {
		tag := rapid.SampledFrom([]string{"x", "y"}).Draw(t, "listener")
		if i == 2 {
			return doc + fmt.Sprintf("\n  - {port: 8001, protocol: TCP, tags: {l: %s}}", tag)
		}
		doc += fmt.Sprintf("\n  - {port: %d, protocol: HTTP, hostname: %q, tags: {l: %s}}", 90+rapid.IntRange(0, 1).Draw(t, "port"),
			[]string{"", "b.com"}[i], tag)
	}
	return doc
}

// drawGatewayRoute draws a route that leads to endpoints with a tag that has its number, besides others.
func drawGatewayRoute(t *rapid.T, n int, conf string) string {
	service := func(label string) string { return rapid.SampledFrom([]string{"a", "b", "ext"}).Draw(t, label) }
	var rules []string
	for range rapid.IntRange(1, 2).Draw(t, "rules") {
		rule := fmt.Sprintf("backends: [{weight: %d, destination: {kuma.io/service: %s, route: \"%d\"}}, {weight: %d, destination: {kuma.io/service: %s%s}}]",
			rapid.SampledFrom([]int{1, 1, 0}).Draw(t, "first weight"), service("first"), n, rapid.IntRange(0, 1).Draw(t, "second weight"), service("second"),
			rapid.SampledFrom([]string{"", "", "", ", kuma.io/mesh: other"}).Draw(t, "mesh"))
		if strings.HasPrefix(conf, "{http") {
			rule += ", matches: [{path: {match: PREFIX, value: /" + strconv.Itoa(len(rules)) + "}}]"
			rule += rapid.SampledFrom([]string{
				"", "", ", filters: [{mirror: {backend: {destination: {kuma.io/service: c}}, percentage: 1}}]",
				", filters: [{redirect: {scheme: https, hostname: elsewhere.com, port: 443, statusCode: 301}}]",
			}).Draw(t, "filters")
		}
		rules = append(rules, "{"+rule+"}")
	}
	return fmt.Sprintf("type: MeshGatewayRoute\nmesh: m\nname: %s\nselectors: [{match: {%s}}]\nconf: %s%s]}}", marked(policy.MeshGatewayRoute, n),
		rapid.SampledFrom([]string{"l: x", "l: \"*\"", "kuma.io/service: edge"}).Draw(t, "selector"), conf, strings.Join(rules, ", "))
}

func drawInspectedMesh(t *rapid.T, mtls string, logs, traces []string) string {
	doc := "type: Mesh\nname: m"
	if mtls != "" {
		doc += fmt.Sprintf("\nmtls: {enabledBackend: ca, backends: [{name: ca, type: builtin, mode: %s}]}", mtls)
	}
	if rapid.Bool().Draw(t, "metrics") {
		doc += "\nmetrics: {enabledBackend: p, backends: [{name: p, type: prometheus, conf: {port: 5670, skipMTLS: false}}]}"
	}
	if rapid.SampledFrom([]bool{false, false, true}).Draw(t, "egress") && mtls != "" {
		doc += "\nrouting: {zoneEgress: true}"
	}
	backends := func(section string, names []string, conf string) {
		if len(names) == 0 {
			return
		}
		doc += "\n" + section + ":\n  backends:"
		for _, name := range names {
			doc += fmt.Sprintf("\n  - {name: %s, %s}", name, fmt.Sprintf(conf, name))
		}
	}
	backends("logging", logs, "type: file, conf: {path: /%s}")
	backends("tracing", traces, "type: zipkin, conf: {url: \"http://%s:9411/\"}")
	return doc
}

func drawInspectedProxy(t *rapid.T, name string, i int) string {
	doc := fmt.Sprintf("type: Dataplane\nmesh: m\nname: %s\nnetworking:\n  address: 10.0.0.%d", name, i+1)
	switch rapid.IntRange(0, 7).Draw(t, "kind") {
	case 0, 1:
		return doc + fmt.Sprintf("\n  gateway: {type: BUILTIN, tags: {kuma.io/service: %s, version: %s}}",
			rapid.SampledFrom([]string{"edge", "edge", "b"}).Draw(t, "gateway"), rapid.SampledFrom([]string{"v1", "v2"}).Draw(t, "version"))
	case 2:
		doc += fmt.Sprintf("\n  gateway: {tags: {kuma.io/service: edge, version: %s}}", rapid.SampledFrom([]string{"v1", "v2"}).Draw(t, "version"))
	default:
		doc += "\n  inbound:"
		for j := range rapid.IntRange(1, 3).Draw(t, "inbounds") {
			port := rapid.SampledFrom([]int{80 + j, 80 + j, 80 + j, 49151}).Draw(t, "port")
			doc += fmt.Sprintf("\n  - {port: %d, servicePort: %d, tags: {kuma.io/service: %s, version: %s, kuma.io/protocol: %s}}", port, port+1000,
				rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "inbound"), rapid.SampledFrom([]string{"v1", "v2"}).Draw(t, "version"),
				rapid.SampledFrom([]string{"http", "http", "tcp", "grpc"}).Draw(t, "protocol"))
			if port == 49151 {
				break // one such port is enough
			}
		}
	}
	if rapid.Bool().Draw(t, "transparent") {
		reachable := rapid.SampledFrom([]string{"", "", ", reachableServices: [a, ext]"}).Draw(t, "reachable")
		return doc + "\n  transparentProxying: {redirectPortInbound: 15006, redirectPortOutbound: 15001" + reachable + "}"
	}
	doc += "\n  outbound:"
	for j, service := range rapid.SliceOfNDistinct(rapid.SampledFrom(inspectedServices), 1, 4, rapid.ID).Draw(t, "outbounds") {
		tags := "kuma.io/service: " + service
		if rapid.SampledFrom([]bool{false, false, true}).Draw(t, "part") {
			tags += ", version: v1"
		}
		doc += fmt.Sprintf("\n  - {port: %d, tags: {%s}}", 10001+j, tags)
	}
	return doc
}

// inspectedPlane is what configuration and inspection of a mesh are made from.
type inspectedPlane struct {
	mesh *topology.Mesh
	set  *policy.Set // decoded apart from that of the topology
}

func (in *inspection) plane(t testing.TB) *inspectedPlane {
	t.Helper()
	w := topology.New("zone-1", slog.New(slog.DiscardHandler))
	var changes []store.Change
	for _, doc := range in.docs {
		_, rec := record(t, doc)
		changes = append(changes, store.Change{Key: rec.Key, Record: rec})
	}
	w.Apply(changes)
	mesh := w.Mesh("m")
	addresses := vips.Input{Config: vips.DefaultConfig(), ExternalServices: mesh.ExternalServices}
	for _, dp := range mesh.Dataplanes {
		addresses.Services = append(addresses.Services, vips.TagSets(dp)...)
	}
	table, problems := vips.Compute(nil, addresses)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	w.SetVIPs("m", table.VIPs("mesh", 80))
	return &inspectedPlane{mesh, in.set(t)}
}

func (in *inspection) set(t testing.TB) *policy.Set {
	t.Helper()
	var records []*store.Record
	for _, doc := range in.docs {
		_, rec := record(t, doc)
		records = append(records, rec)
	}
	set, errs := policy.NewSet("m", slices.Values(records))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	return set
}

func (p *inspectedPlane) proxy(name string) *inspect.Proxy {
	return &inspect.Proxy{Name: name, Dataplane: p.mesh.Dataplanes[name], VIPs: p.mesh.VIPs}
}

// place is a part of a proxy as both sides name it.
type place = inspect.Attachment

// shown are the names of policies by part and type, as inspection or the configuration has them.
type shown map[place]map[string][]string

func (s shown) add(at place, name string) {
	typ, _, _ := strings.Cut(name, "-")
	if s[at] == nil {
		s[at] = make(map[string][]string)
	}
	if !slices.Contains(s[at][typ], name) {
		s[at][typ] = append(s[at][typ], name)
		slices.Sort(s[at][typ])
	}
}

// inspector is inspection, or a wrong one.
type inspector struct {
	policies func(mesh *meshv1.Mesh, set *policy.Set, p *inspect.Proxy) []inspect.Item
	rules    func(mesh *meshv1.Mesh, set *policy.Set, p *inspect.Proxy) ([]inspect.Rule, error)
	gateway  func(set *policy.Set, p *inspect.Proxy) *inspect.GatewayPolicies
}

func rightInspector() inspector { return inspector{inspect.Policies, inspect.Rules, inspect.Gateway} }

// configured reads the configuration of a proxy.
func (p *inspectedPlane) configured(t testing.TB, name string) *configured {
	t.Helper()
	proxy := &envoy.Proxy{Mesh: "m", Name: name, Dataplane: p.mesh.Dataplanes[name]}
	generate := envoy.Sidecar
	if p.proxy(name).IsBuiltinGateway() {
		generate = envoy.Gateway
	}
	out, err := generate(p.mesh, proxy, nil)
	if err != nil {
		t.Fatal(err)
	}
	return readInspected(out, p.proxy(name).IsBuiltinGateway())
}

// differences compares what inspection says of all proxies of a mesh with their configurations; "" when they agree.
func (in *inspection) differences(t testing.TB, plane *inspectedPlane, by inspector) string {
	t.Helper()
	for _, name := range in.proxies {
		dp, c := plane.mesh.Dataplanes[name], plane.configured(t, name)
		var said shown
		var targetRefs []string
		if p := plane.proxy(name); p.IsBuiltinGateway() {
			g := by.gateway(plane.set, p)
			if g.MeshGateway == nil {
				continue // it serves nothing, and is shown without policies
			}
			said = in.effectiveOfGateway(g, c)
			for _, p := range g.Attached {
				targetRefs = append(targetRefs, p.Name)
			}
			slices.Sort(targetRefs)
		} else {
			items := by.policies(plane.mesh.Spec, plane.set, p)
			said, targetRefs = in.effective(items, dp, c), targetRefsOf(items)
		}
		if diff := gocmp.Diff(c.shown, said); diff != "" {
			return fmt.Sprintf("policies of %s (-configured +inspected)\n%s", name, diff)
		}
		if diff := gocmp.Diff(plane.targeting(name), targetRefs); diff != "" {
			return fmt.Sprintf("targetRef policies of %s (-by their targetRef +inspected)\n%s", name, diff)
		}
		rules, err := by.rules(plane.mesh.Spec, plane.set, plane.proxy(name))
		if err != nil {
			t.Fatal(err)
		}
		if diff := gocmp.Diff(c.ruled, in.effectiveRules(rules, c)); diff != "" {
			return fmt.Sprintf("rules of %s (-configured +inspected)\n%s", name, diff)
		}
	}
	return ""
}

// hostPlace is where a gateway leads from a host of a port, which for connections stand for all hosts, to the endpoints of a service.
func hostPlace(port uint32, host, service string) place {
	return place{Type: "host", Name: fmt.Sprintf("%d/%s", port, host), Service: service}
}

// effectiveOfGateway is effective for a builtin gateway.
func (in *inspection) effectiveOfGateway(g *inspect.GatewayPolicies, c *configured) shown {
	out := make(shown)
	trace := slices.ContainsFunc(g.Attached, func(p *policy.Policy) bool { return p.Type == policy.MeshTrace })
	for _, p := range g.Whole {
		if p.Type == policy.TrafficTrace && trace {
			continue // a MeshTrace takes its place
		}
		out.add(place{Type: inspect.AtDataplane}, p.Name)
	}
	for _, l := range g.Listeners {
		for _, h := range l.Hosts {
			name := h.Name
			if l.Protocol == "TCP" {
				name = "*"
			}
			for _, r := range h.Routes {
				for _, d := range r.Destinations {
					at := hostPlace(l.Port, name, d.Tags["kuma.io/service"])
					out.add(at, "Destination-"+d.Tags["route"])
					for t, p := range d.Policies {
						seen := true
						switch t {
						case policy.Retry: // one for a rule, that of its first backend
							seen = c.first[at]
						case policy.RateLimit: // copies of requests are not limited
							seen = c.served[at]
						case policy.FaultInjection: // services of the mesh have theirs at the other end
							seen = c.served[at] && c.external[at]
						}
						if seen {
							out.add(at, p.Name)
						}
					}
				}
			}
		}
	}
	return out
}

// targeting are the targetRef policies that name a proxy by any of its tags.
func (p *inspectedPlane) targeting(name string) []string {
	dp := p.mesh.Dataplanes[name]
	types := []resource.Type{policy.MeshAccessLog, policy.MeshTrace, policy.MeshTrafficPermission}
	var sets []tags
	for _, in := range dp.GetNetworking().GetInbound() {
		sets = append(sets, in.GetTags())
	}
	if g := dp.GetNetworking().GetGateway(); g != nil {
		sets = append(sets, g.GetTags())
	}
	if p.proxy(name).IsBuiltinGateway() {
		// It has the tags of its listeners, and takes connections from those who have no certificate.
		types = types[:2]
		own := sets[0]
		sets = nil
		for _, l := range inspect.Gateway(p.set, p.proxy(name)).MeshGateway.Spec.(*meshv1.MeshGateway).GetConf().GetListeners() {
			merged := maps.Clone(own)
			maps.Copy(merged, l.GetTags())
			sets = append(sets, merged)
		}
	}
	var all []string
	for _, t := range types {
		for _, p := range p.set.Of(t) {
			if slices.ContainsFunc(sets, func(tags tags) bool { return naiveTarget(p.Ref.TargetRef, tags) }) {
				all = append(all, p.Name)
			}
		}
	}
	slices.Sort(all)
	return all
}

func targetRefsOf(items []inspect.Item) []string {
	var all []string
	for _, item := range items {
		for t, policies := range item.Policies {
			for _, p := range policies {
				if t == policy.MeshAccessLog || t == policy.MeshTrace || t == policy.MeshTrafficPermission {
					all = append(all, p.Name)
				}
			}
		}
	}
	slices.Sort(all)
	return all
}

// effectiveRules is what the rules say as far as it can be seen, in the form of [configured.ruled].
func (in *inspection) effectiveRules(rules []inspect.Rule, c *configured) map[string][]string {
	out := make(map[string][]string)
	add := func(listener, name string) {
		if !slices.Contains(out[listener], name) {
			out[listener] = append(out[listener], name)
			slices.Sort(out[listener])
		}
	}
	for _, r := range rules {
		var conf struct {
			Action   string
			Backends []struct {
				File   struct{ Path string }
				Zipkin struct{ URL string }
			}
		}
		if err := json.Unmarshal(r.Conf, &conf); err != nil {
			panic(err)
		}
		switch r.PolicyType {
		case policy.MeshAccessLog:
			path := strings.TrimPrefix(conf.Backends[0].File.Path, "/")
			outbound := place{Type: inspect.AtOutbound, Name: r.Name, Service: r.Service}
			if r.Name == policy.PassThrough {
				add(policy.PassThrough, path)
			} else if r.Type == inspect.ForClients {
				add("inbound:"+r.Name, path)
			} else if c.served[outbound] { // where no route leads anywhere, connections are closed
				add("outbound:"+r.Name, path)
			}
		case policy.MeshTrafficPermission:
			if in.mtls != "" && conf.Action == "ALLOW" { // nobody is known without mutual TLS
				add("inbound:"+r.Name, r.Subset["kuma.io/service"])
			}
		case policy.MeshTrace:
			add("", strings.TrimSuffix(strings.TrimPrefix(conf.Backends[0].Zipkin.URL, "http://"), ":9411/"))
		}
	}
	return out
}

// effective is what inspection says as far as it can be seen. These are all the reasons why a policy that is attached has no
// effect.
func (in *inspection) effective(items []inspect.Item, dp *meshv1.Dataplane, c *configured) shown {
	out := make(shown)
	trace := false
	permissions := make(map[string]bool) // inbounds that MeshTrafficPermissions are for instead of TrafficPermissions
	for _, item := range items {
		trace = trace || len(item.Policies[policy.MeshTrace]) > 0
		for _, p := range item.Policies[policy.MeshTrafficPermission] {
			for _, raw := range dp.GetNetworking().GetInbound() {
				if naiveTarget(p.Ref.TargetRef, raw.GetTags()) {
					i := dataplane.InboundOf(dp, raw)
					permissions[dataplane.HostPort(i.Address, i.Port)] = true
				}
			}
		}
	}
	for _, item := range items {
		at := item.Attachment
		metrics := at.Type == inspect.AtInbound && at.Service == ""
		for typ, policies := range item.Policies {
			for _, p := range policies {
				seen := true
				switch {
				case at.Type == inspect.AtInbound && typ == policy.TrafficPermission:
					// Nobody is known without mutual TLS, and a MeshTrafficPermission takes the place of TrafficPermissions.
					address := at.Name[:strings.LastIndexByte(at.Name, ':')]
					seen = in.mtls != "" && !permissions[address]
				case at.Type == inspect.AtInbound: // faults and limits are for requests, and what metrics are read from has none of them
					seen = c.http[at] && !metrics
				case at.Type == inspect.AtOutbound && typ == policy.RateLimit:
					// On the side of the client a limit is for requests to external services that are reached directly.
					seen = c.http[at] && c.external[at]
				case at.Type == inspect.AtOutbound, typ == policy.Retry, typ == policy.TrafficLog && at.Name != policy.PassThrough:
					seen = c.served[at] // where no route leads anywhere, connections are closed
				case at.Name == policy.PassThrough:
					seen = dataplane.Transparent(dp) // other proxies have no traffic beside their outbounds
				case typ == policy.TrafficTrace:
					seen = !trace // a MeshTrace takes its place
				case typ == policy.MeshAccessLog, typ == policy.MeshTrace, typ == policy.MeshTrafficPermission:
					seen = false // compared by the rules that they make
				}
				if seen {
					out.add(at, p.Name)
				}
			}
		}
	}
	return out
}

// naiveTarget reports whether a targetRef names what has the tags.
func naiveTarget(ref policy.TargetRef, tags map[string]string) bool {
	if ref.Kind == policy.KindMeshGatewayRoute || ref.Name != "" && tags["kuma.io/service"] != ref.Name {
		return false
	}
	for k, v := range ref.Tags {
		if tags[k] != v {
			return false
		}
	}
	return true
}

func TestInspectionIsWhatIsConfigured(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		for range 2 { // 200 meshes
			in := drawInspection().Draw(rt, "mesh")
			if diff := in.differences(t, in.plane(t), rightInspector()); diff != "" {
				rt.Fatalf("%s\nin\n%s", diff, in)
			}
		}
	})
}

// The meshes are such that every type of policy is found in configurations often enough to tell something.
func TestRandomMeshesHaveEverything(t *testing.T) {
	const meshes, atLeast = 100, 10
	found := make(map[string]int)
	for seed := range meshes {
		in := drawInspection().Example(seed)
		plane := in.plane(t)
		here := make(map[string]bool)
		for _, name := range in.proxies {
			c := plane.configured(t, name)
			for at, types := range c.shown {
				for typ := range types {
					here[typ+" at "+string(at.Type)] = true
				}
			}
			for _, names := range c.ruled {
				for _, name := range names {
					typ, _, _ := strings.Cut(name, "-")
					here[typ] = true
				}
			}
		}
		for what := range here {
			found[what]++
		}
	}
	for _, what := range []string{
		"TrafficTrace at dataplane", "ProxyTemplate at dataplane", "TrafficPermission at inbound", "FaultInjection at inbound",
		"RateLimit at inbound", "TrafficRoute at outbound", "Timeout at outbound", "TrafficLog at service", "HealthCheck at service",
		"CircuitBreaker at service", "Retry at service", "MeshAccessLog", "MeshTrace", "MeshTrafficPermission",
		"Destination at host", "CircuitBreaker at host", "HealthCheck at host", "RateLimit at host", "Retry at host", "Timeout at host",
	} {
		if found[what] < atLeast {
			t.Errorf("%s: in %d of %d meshes", what, found[what], meshes)
		}
	}
	for _, what := range []string{"RateLimit at outbound", "FaultInjection at host"} { // of external services over HTTP without an egress
		if found[what] == 0 {
			t.Errorf("%s: never", what)
		}
	}
}

// inspectionBugs are inspections that are wrong in one respect each: in what they read, or in what they make of it.
func inspectionBugs() map[string]struct {
	reads func(doc string) string
	says  inspector
} {
	type bug = struct {
		reads func(doc string) string
		says  inspector
	}
	misread := func(expr, with string) bug {
		e := regexp.MustCompile(expr)
		return bug{reads: func(doc string) string { return e.ReplaceAllString(doc, with) }}
	}
	misjudge := func(change func(mesh *meshv1.Mesh, set **policy.Set, p *inspect.Proxy)) bug {
		prepare := func(mesh *meshv1.Mesh, set *policy.Set, p *inspect.Proxy) (*meshv1.Mesh, *policy.Set) {
			mesh = proto.CloneOf(mesh)
			p.Dataplane = proto.CloneOf(p.Dataplane)
			change(mesh, &set, p)
			return mesh, set
		}
		return bug{says: inspector{
			func(mesh *meshv1.Mesh, set *policy.Set, p *inspect.Proxy) []inspect.Item {
				mesh, set = prepare(mesh, set, p)
				return inspect.Policies(mesh, set, p)
			},
			func(mesh *meshv1.Mesh, set *policy.Set, p *inspect.Proxy) ([]inspect.Rule, error) {
				mesh, set = prepare(mesh, set, p)
				return inspect.Rules(mesh, set, p)
			},
			inspect.Gateway,
		}}
	}
	missay := func(change func([]inspect.Item) []inspect.Item) bug {
		return bug{says: inspector{func(mesh *meshv1.Mesh, set *policy.Set, p *inspect.Proxy) []inspect.Item {
			return change(inspect.Policies(mesh, set, p))
		}, inspect.Rules, inspect.Gateway}}
	}
	// misserve changes what is said of each host of a gateway, and of the gateway itself where there is no host.
	misserve := func(change func(g *inspect.GatewayPolicies, h *inspect.Host)) bug {
		return bug{says: inspector{inspect.Policies, inspect.Rules, func(set *policy.Set, p *inspect.Proxy) *inspect.GatewayPolicies {
			g := inspect.Gateway(set, p)
			for _, l := range g.Listeners {
				for i := range l.Hosts {
					change(g, &l.Hosts[i])
				}
			}
			return g
		}}}
	}
	// ofDestinations changes what is said of the destinations of each route.
	ofDestinations := func(change func([]inspect.Destination) []inspect.Destination) bug {
		return misserve(func(_ *inspect.GatewayPolicies, h *inspect.Host) {
			for i, r := range h.Routes {
				h.Routes[i].Destinations = change(r.Destinations)
			}
		})
	}
	without := func(t resource.Type) bug {
		return ofDestinations(func(all []inspect.Destination) []inspect.Destination {
			for _, d := range all {
				delete(d.Policies, t)
			}
			return all
		})
	}
	return map[string]bug{
		"times do not decide":                   misread(`2024-01-02`, "2024-01-01"),
		"shares of nothing count":               misread(`weight: 0`, "weight: 1"),
		"rules for requests lead nowhere":       misread(`\n  http: \[.*`, ""),
		"a tag of any value is as good as none": misread(`, version: "\*"`, ""),
		"only the first selector counts":        misread(`(\[\{match: \{[^}]*\}\}), \{match: \{[^}]*\}\}\]`, "$1]"),
		"versions do not matter":                misread(`, version: "v1"`, ""),
		"a targetRef names the whole service":   misread(`kind: MeshServiceSubset, name: b, tags: \{version: v1\}`, "kind: MeshService, name: b"),
		"a MeshGatewayRoute is the mesh":        misread(`kind: MeshGatewayRoute, name: r`, "kind: Mesh"),
		"what proxies want to reach is ignored": misjudge(func(_ *meshv1.Mesh, _ **policy.Set, p *inspect.Proxy) {
			if tp := p.Dataplane.Networking.TransparentProxying; tp != nil {
				tp.ReachableServices = nil
			}
		}),
		"virtual addresses are ignored":        misjudge(func(_ *meshv1.Mesh, _ **policy.Set, p *inspect.Proxy) { p.VIPs = nil }),
		"the inbound for metrics is forgotten": misjudge(func(mesh *meshv1.Mesh, _ **policy.Set, _ *inspect.Proxy) { mesh.Metrics = nil }),
		"a gateway has no tags":                misjudge(func(_ *meshv1.Mesh, _ **policy.Set, p *inspect.Proxy) { p.Dataplane.Networking.Gateway = nil }),
		"outbounds lead to their services": misjudge(func(_ *meshv1.Mesh, set **policy.Set, _ *inspect.Proxy) {
			*set = (*set).Only(allBut(policy.TrafficRoute)...)
		}),
		"the last inbound is forgotten": misjudge(func(_ *meshv1.Mesh, _ **policy.Set, p *inspect.Proxy) {
			n := p.Dataplane.Networking
			n.Inbound = n.Inbound[:max(len(n.Inbound)-1, 0)]
		}),
		"the tags of other inbounds do not help": misjudge(func(_ *meshv1.Mesh, _ **policy.Set, p *inspect.Proxy) {
			for _, in := range p.Dataplane.Networking.Inbound[min(1, len(p.Dataplane.Networking.Inbound)):] {
				in.Tags = nil
			}
		}),
		"only the last backend is shown": ofDestinations(func(all []inspect.Destination) []inspect.Destination {
			return all[max(len(all)-1, 0):]
		}),
		"copies of requests go nowhere": ofDestinations(func(all []inspect.Destination) []inspect.Destination {
			return slices.DeleteFunc(all, func(d inspect.Destination) bool { return d.Tags["kuma.io/service"] == "c" })
		}),
		"services of other meshes are this mesh's": misread(`, kuma.io/mesh: other`, ""),
		"requests that are redirected go on":       misread(`, filters: \[\{redirect: \{[^}]*\}\}\]`, ""),
		"the first route of a host is enough":      misserve(func(_ *inspect.GatewayPolicies, h *inspect.Host) { h.Routes = h.Routes[:min(1, len(h.Routes))] }),
		"listeners have no tags":                   misread(`, tags: \{l: [xy]\}`, ""),
		"a gateway has no ProxyTemplate": misserve(func(g *inspect.GatewayPolicies, _ *inspect.Host) {
			g.Whole = slices.DeleteFunc(g.Whole, func(p *policy.Policy) bool { return p.Type == policy.ProxyTemplate })
		}),
		"a gateway has no targetRef policies": misserve(func(g *inspect.GatewayPolicies, _ *inspect.Host) { g.Attached = nil }),
		"a gateway limits no requests":        without(policy.RateLimit),
		"a gateway tries once":                without(policy.Retry),
		"one policy of a type is enough": missay(func(items []inspect.Item) []inspect.Item {
			for _, item := range items {
				for t, policies := range item.Policies {
					item.Policies[t] = policies[:1]
				}
			}
			return items
		}),
		"other traffic has no log": missay(func(items []inspect.Item) []inspect.Item {
			return slices.DeleteFunc(items, func(i inspect.Item) bool { return i.Name == policy.PassThrough })
		}),
		"retries are where health checks are": missay(func(items []inspect.Item) []inspect.Item {
			for _, item := range items {
				if item.Policies[policy.HealthCheck] == nil && item.Policies[policy.CircuitBreaker] == nil {
					delete(item.Policies, policy.Retry)
				}
			}
			return items
		}),
	}
}

func allBut(t resource.Type) []resource.Type {
	return slices.DeleteFunc(policy.Types(), func(o resource.Type) bool { return o == t })
}

func TestABugOfInspectionIsFound(t *testing.T) {
	for name, bug := range inspectionBugs() {
		t.Run(name, func(t *testing.T) {
			for seed := range 300 {
				in := drawInspection().Example(seed)
				plane := in.plane(t)
				if bug.reads != nil {
					misread := &inspection{proxies: in.proxies, mtls: in.mtls}
					for _, doc := range in.docs {
						misread.docs = append(misread.docs, bug.reads(doc))
					}
					plane.set, bug.says = misread.set(t), rightInspector()
				}
				if in.differences(t, plane, bug.says) != "" {
					return
				}
			}
			t.Error("not found in 300 meshes")
		})
	}
}

// Of every policy, the proxies that it reaches are those that have it, and where they have it.
func TestReachIsTheInverseOfPolicies(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		for range 2 {
			in := drawInspection().Draw(rt, "mesh")
			plane := in.plane(t)
			for _, name := range in.proxies {
				if plane.proxy(name).IsBuiltinGateway() {
					if diff := plane.reachOfGateway(name); diff != "" {
						rt.Fatalf("%s\nin\n%s", diff, in)
					}
					continue
				}
				items := inspect.Policies(plane.mesh.Spec, plane.set, plane.proxy(name))
				for _, typ := range policy.Types() {
					for _, p := range plane.set.Of(typ) {
						var want []place
						for _, item := range items {
							if slices.Contains(item.Policies[typ], p) {
								want = append(want, item.Attachment)
							}
						}
						reach, ok := inspect.NewReach(plane.mesh.Spec, plane.set, typ, p.Name)
						if !ok {
							rt.Fatalf("no %s %q", typ, p.Name)
						}
						if diff := gocmp.Diff(want, reach.Sidecar(plane.proxy(name))); diff != "" {
							rt.Fatalf("%s on %s (-has +reached)\n%s\nin\n%s", p.Name, name, diff, in)
						}
					}
				}
			}
		}
	})
}

// reachOfGateway compares, for each policy, what it reaches of a builtin gateway with what the gateway has.
func (p *inspectedPlane) reachOfGateway(name string) string {
	proxy := p.proxy(name)
	g := inspect.Gateway(p.set, proxy)
	for _, typ := range policy.Types() {
		for _, pol := range p.set.Of(typ) {
			var want, got []string
			whole := slices.Contains(g.Whole, pol) || slices.Contains(g.Attached, pol)
			each(g, func(at string, d inspect.Destination) {
				if d.Policies[typ] == pol && !whole {
					want = append(want, at)
				}
			})
			reach, _ := inspect.NewReach(p.mesh.Spec, p.set, typ, pol.Name)
			reached, ok := reach.Gateway(proxy)
			if ok != (whole || len(want) > 0) {
				return fmt.Sprintf("%s on %s: has %v, reached %v", pol.Name, name, want, ok)
			}
			if ok {
				each(reached, func(at string, _ inspect.Destination) { got = append(got, at) })
			}
			if diff := gocmp.Diff(want, got); diff != "" {
				return fmt.Sprintf("%s on %s (-has +reached)\n%s", pol.Name, name, diff)
			}
			used := g.MeshGateway == pol
			for _, l := range g.Listeners {
				for _, h := range l.Hosts {
					used = used || slices.ContainsFunc(h.Routes, func(r inspect.Route) bool { return r.Policy == pol })
				}
			}
			if configures := inspect.Configures(p.set, pol, proxy); configures != used {
				return fmt.Sprintf("%s configures %s: %v, used: %v", pol.Name, name, configures, used)
			}
		}
	}
	return ""
}

// each visits the destinations of a gateway.
func each(g *inspect.GatewayPolicies, visit func(at string, d inspect.Destination)) {
	for _, l := range g.Listeners {
		for _, h := range l.Hosts {
			for _, r := range h.Routes {
				for _, d := range r.Destinations {
					visit(fmt.Sprint(l.Port, l.Protocol, h.Name, r.Policy.Name, d.Tags), d)
				}
			}
		}
	}
}
