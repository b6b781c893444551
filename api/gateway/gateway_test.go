package gateway_test

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meridian-mesh/meridian/api/codec"
	"github.com/meridian-mesh/meridian/api/gateway"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

type tags = map[string]string

// record is a stored policy. body are the fields of its specification as JSON; created counts seconds, and 0 is not known.
func record(typ resource.Type, name, body string, created int) *store.Record {
	d, ok := resource.Lookup(typ)
	if !ok {
		panic("no type " + typ)
	}
	doc, err := codec.Decode(d, "application/json", []byte(body))
	if err != nil || len(doc.Unknown) > 0 {
		panic(fmt.Sprintf("%s %s: %v, unknown fields %v", name, body, err, doc))
	}
	rec := &store.Record{Key: store.Key{Type: string(typ), Mesh: "default", Name: name}, Spec: doc.Spec}
	if created != 0 {
		rec.Created = time.Unix(1_700_000_000+int64(created), 0).UTC()
	}
	return rec
}

func toJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func selectors(list ...tags) string {
	out := make([]map[string]tags, len(list))
	for i, t := range list {
		out[i] = map[string]tags{"match": t}
	}
	return toJSON(out)
}

func builtin(t tags) *meshv1.Dataplane {
	return &meshv1.Dataplane{Networking: &meshv1.Dataplane_Networking{
		Address: "10.0.0.1",
		Gateway: &meshv1.Dataplane_Networking_Gateway{Type: meshv1.Dataplane_Networking_Gateway_BUILTIN, Tags: t},
	}}
}

func newSet(tb interface{ Error(args ...any) }, records ...*store.Record) *policy.Set {
	set, errs := policy.NewSet("default", slices.Values(records))
	for _, err := range errs {
		tb.Error(err)
	}
	return set
}

func name(p *policy.Policy) string {
	if p == nil {
		return "-"
	}
	return p.Name
}

// describe says in lines what a gateway serves.
func describe(g *gateway.Gateway) []string {
	lines := []string{fmt.Sprintf("gateway %s log %s trace %s", name(g.MeshGateway), name(g.TrafficLog), name(g.TrafficTrace))}
	destination := func(kind string, d *gateway.Destination) {
		lines = append(lines, fmt.Sprintf("    %s %s x%d: breaker %s fault %s health %s limit %s retry %s timeout %s", kind, toJSON(d.Tags), d.Weight,
			name(d.CircuitBreaker), name(d.FaultInjection), name(d.HealthCheck), name(d.RateLimit), name(d.Retry), name(d.Timeout)))
	}
	for _, l := range g.Listeners {
		lines = append(lines, fmt.Sprintf("port %d %s limit %d", l.Port, l.Protocol, l.ConnectionLimit))
		for _, h := range l.Hosts {
			lines = append(lines, fmt.Sprintf(" host %s %s %s", h.Name, toJSON(h.Tags), h.TLS.GetMode()))
			for _, r := range h.Routes {
				lines = append(lines, "  route "+r.Policy.Name)
				for i, rule := range r.Rules {
					lines = append(lines, fmt.Sprintf("   rule %d http %t", i, rule.HTTP != nil))
					for _, d := range rule.Backends {
						destination("to", d)
					}
					for _, d := range rule.Mirrors {
						destination("mirror", d)
					}
				}
			}
		}
	}
	return lines
}

// hosts are the hosts of a gateway and the names of their routes.
func hosts(g *gateway.Gateway) []string {
	var lines []string
	for _, l := range g.Listeners {
		for _, h := range l.Hosts {
			names := []string{}
			for _, r := range h.Routes {
				names = append(names, r.Policy.Name)
			}
			lines = append(lines, strings.TrimSpace(fmt.Sprintf("%d %s: %s", l.Port, h.Name, strings.Join(names, " "))))
		}
	}
	return lines
}

const (
	edge    = `"selectors":[{"match":{"kuma.io/service":"edge"}}]`
	backend = `"backends":[{"weight":1,"destination":{"kuma.io/service":"api"}}]`
	rules   = `"rules":[{"matches":[{"path":{"match":"PREFIX","value":"/"}}],` + backend + `}]`
)

func meshGateway(listeners ...string) *store.Record {
	return record(policy.MeshGateway, "edge", `{`+edge+`,"conf":{"listeners":[`+strings.Join(listeners, ",")+`]}}`, 1)
}

func httpRoute(name string, hostnames ...string) *store.Record {
	return record(policy.MeshGatewayRoute, name, `{`+edge+`,"conf":{"http":{"hostnames":`+toJSON(hostnames)+`,`+rules+`}}}`, 1)
}

func tcpRoute(name string) *store.Record {
	return record(policy.MeshGatewayRoute, name, `{`+edge+`,"conf":{"tcp":{"rules":[{`+backend+`}]}}}`, 1)
}

func TestHostsAndTheirRoutes(t *testing.T) {
	const (
		all         = `{"port":80,"protocol":"HTTP"}`
		www         = `{"port":80,"protocol":"HTTP","hostname":"www.example.com"}`
		domain      = `{"port":80,"protocol":"HTTP","hostname":"*.example.com"}`
		tcp         = `{"port":90,"protocol":"TCP"}`
		passthrough = `{"port":443,"protocol":"HTTPS","hostname":"www.example.com","tls":{"mode":"PASSTHROUGH"}}`
		terminate   = `{"port":443,"protocol":"HTTPS","hostname":"api.example.com","tls":{"mode":"TERMINATE","certificates":[{"secret":"c"}]}}`
	)
	tests := []struct {
		name     string
		records  []*store.Record
		want     []string
		warnings []string
	}{
		{"no gateway serves nothing", []*store.Record{httpRoute("r")}, nil, nil},
		{"a listener without routes has its host", []*store.Record{meshGateway(all)}, []string{"80 *:"}, nil},
		{
			"a route without host names is for the name of its listener",
			[]*store.Record{meshGateway(www), httpRoute("r")},
			[]string{"80 www.example.com: r"},
			nil,
		},
		{
			"a route with host names makes hosts of a listener for all names",
			[]*store.Record{meshGateway(all), httpRoute("r", "a.example.com", "B.example.com"), httpRoute("s")},
			[]string{"80 *: s", "80 a.example.com: r", "80 b.example.com: r"},
			nil,
		},
		{
			"a route joins the routes of a listener that has its name",
			[]*store.Record{meshGateway(all, www), httpRoute("r", "www.example.com"), httpRoute("s")},
			[]string{"80 *: s", "80 www.example.com: r s"},
			nil,
		},
		{
			"a route for a domain is for a listener in it",
			[]*store.Record{meshGateway(www), httpRoute("r", "*.example.com")},
			[]string{"80 www.example.com: r"},
			nil,
		},
		{
			"a listener for a domain has no other names",
			[]*store.Record{meshGateway(domain), httpRoute("r", "example.com", "a.b.example.com")},
			[]string{"80 *.example.com:", "80 a.b.example.com: r"},
			nil,
		},
		{
			"a route for other names is not served, and told",
			[]*store.Record{meshGateway(www), httpRoute("r", "api.example.com")},
			[]string{"80 www.example.com:"},
			[]string{`MeshGatewayRoute "r" is not served: no listener that it selects has its protocol and one of its host names`},
		},
		{
			"names that no proxy can listen for are left out, and told",
			[]*store.Record{
				meshGateway(all, `{"port":80,"protocol":"HTTP","hostname":"*api.example.com"}`), httpRoute("r", "*x.example.com", "*.", "a b", "ok.example.com"),
				httpRoute("s", "w.*.com"),
			},
			[]string{"80 *:", "80 ok.example.com: r"},
			[]string{
				`MeshGateway "edge": conf.listeners[1] on port 80 is not served: "*api.example.com" is not a host name, *.domain or *`,
				`MeshGatewayRoute "r": conf.http.hostnames: "*x.example.com" is not a host name, *.domain or *: the route is not for it`,
				`MeshGatewayRoute "r": conf.http.hostnames: "*." is not a host name, *.domain or *: the route is not for it`,
				`MeshGatewayRoute "r": conf.http.hostnames: "a b" is not a host name, *.domain or *: the route is not for it`,
				`MeshGatewayRoute "s": conf.http.hostnames: "w.*.com" is not a host name, *.domain or *: the route is not for it`,
				`MeshGatewayRoute "s" is not served: no listener that it selects has its protocol and one of its host names`,
			},
		},
		{
			"routes go where their protocol is spoken",
			[]*store.Record{meshGateway(all, tcp, passthrough, terminate), httpRoute("r"), tcpRoute("s")},
			[]string{"80 *: r", "90 *: s", "443 api.example.com: r", "443 www.example.com: s"},
			nil,
		},
		{
			"listeners that do not fit are told",
			[]*store.Record{meshGateway(
				all, all, `{"port":80,"protocol":"TCP"}`, `{"port":81,"protocol":"UDP"}`, `{"port":82,"protocol":"HTTP","crossMesh":true}`,
				`{"port":83,"protocol":"HTTPS"}`, `{"port":84,"protocol":"HTTP","tls":{"mode":"TERMINATE"},"resources":{"connectionLimit":5}}`,
				`{"port":84,"protocol":"HTTP","hostname":"a","resources":{"connectionLimit":6}}`,
			)},
			[]string{"80 *:", "84 *:", "84 a:"},
			[]string{
				`MeshGateway "edge": conf.listeners[1] on port 80 is not served: an earlier one is for the same host name there`,
				`MeshGateway "edge": conf.listeners[2] on port 80 is not served: an earlier one has another protocol there`,
				`MeshGateway "edge": conf.listeners[3] on port 81 is not served: the protocol UDP is not supported`,
				`MeshGateway "edge": conf.listeners[4] on port 82 is not served: listeners for other meshes are not supported`,
				`MeshGateway "edge": conf.listeners[5] on port 83 is not served: it does not say how TLS is taken on`,
				`MeshGateway "edge": conf.listeners[6] on port 84: tls has no effect with the protocol HTTP`,
				`MeshGateway "edge": the listeners on port 84 have several connection limits: the first is used`,
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := gateway.Of(newSet(t, tt.records...), builtin(tags{"kuma.io/service": "edge"}))
			if diff := cmp.Diff(tt.want, hosts(g)); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff(tt.warnings, g.Warnings); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestPoliciesOfDestinations(t *testing.T) {
	connection := func(typ resource.Type, name string, source, destination tags, conf string) *store.Record {
		return record(typ, name, `{"sources":`+selectors(source)+`,"destinations":`+selectors(destination)+`,"conf":`+conf+`}`, 1)
	}
	api, all := tags{"kuma.io/service": "api"}, tags{"kuma.io/service": "*"}
	set := newSet(
		t,
		record(policy.MeshGateway, "edge", `{`+edge+`,"tags":{"team":"x","tier":"a"},"conf":{"listeners":[
			{"port":80,"protocol":"HTTP","tags":{"tier":"b"}},{"port":81,"protocol":"HTTP"}]}}`, 1),
		record(policy.MeshGatewayRoute, "r", `{"selectors":`+selectors(tags{"kuma.io/service": "edge", "tier": "b"})+`,"conf":{"http":{"rules":[{
			"matches":[{"method":"GET"}],
			"filters":[{"mirror":{"percentage":10,"backend":{"destination":{"kuma.io/service":"shadow"}}}}],
			"backends":[{"weight":2,"destination":{"kuma.io/service":"api","version":"1"}},{"weight":3,"destination":{"kuma.io/service":"old"}}]}]}}}`, 1),
		connection(policy.Timeout, "all", all, all, `{"connectTimeout":"1s"}`),
		connection(policy.Timeout, "of-listener", tags{"kuma.io/service": "edge", "tier": "b"}, api, `{"connectTimeout":"1s"}`),
		connection(policy.Timeout, "of-other-listener", tags{"kuma.io/service": "edge", "tier": "a"}, tags{"kuma.io/service": "api", "version": "1"}, `{"connectTimeout":"1s"}`),
		connection(policy.Retry, "version", all, tags{"kuma.io/service": "api", "version": "1"}, `{"tcp":{"maxConnectAttempts":2}}`),
		connection(policy.FaultInjection, "fault", all, tags{"kuma.io/service": "api", "kuma.io/protocol": "http"}, `{"abort":{"httpStatus":500,"percentage":10}}`),
		connection(policy.FaultInjection, "fault-grpc", all, tags{"kuma.io/service": "old", "kuma.io/protocol": "grpc"}, `{"abort":{"httpStatus":500,"percentage":10}}`),
		connection(policy.TrafficLog, "log", all, all, `{"backend":"b"}`),
		record(policy.TrafficTrace, "trace", `{"selectors":`+selectors(all)+`}`, 1),
	)
	want := []string{
		"gateway edge log log trace trace",
		"port 80 HTTP limit 0",
		` host * {"kuma.io/service":"edge","team":"x","tier":"b"} NONE`,
		"  route r",
		"   rule 0 http true",
		`    to {"kuma.io/service":"api","version":"1"} x2: breaker - fault fault health - limit - retry version timeout of-listener`,
		`    to {"kuma.io/service":"old"} x3: breaker - fault - health - limit - retry - timeout all`,
		`    mirror {"kuma.io/service":"shadow"} x0: breaker - fault - health - limit - retry - timeout all`,
		"port 81 HTTP limit 0",
		` host * {"kuma.io/service":"edge","team":"x","tier":"a"} NONE`,
	}
	if diff := cmp.Diff(want, describe(gateway.Of(set, builtin(tags{"kuma.io/service": "edge"})))); diff != "" {
		t.Error(diff)
	}
}
