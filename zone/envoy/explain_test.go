package envoy_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/meridian-mesh/meridian/api/explain"
	"github.com/meridian-mesh/meridian/zone/envoy"
	"github.com/meridian-mesh/meridian/zone/envoy/envoytest"
)

// TestExplanations compares the explanations of the cases under testdata/explain with the files beside them: of each input, JSON and
// text of the traffic to the service that the name of the case ends in.
func TestExplanations(t *testing.T) {
	inputs, err := filepath.Glob("testdata/explain/*.yaml")
	if err != nil || len(inputs) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, input := range inputs {
		name := strings.TrimSuffix(filepath.Base(input), ".yaml")
		t.Run(name, func(t *testing.T) {
			w := load(t, input)
			_, service, _ := strings.Cut(name, ".")
			out := envoy.Explain(w.mesh, &envoy.ExplainInput{Proxy: w.proxy, Zone: "zone-1", Proxyless: w.grpc, Service: service})
			out.Connected = true
			text, err := json.MarshalIndent(out, "", " ")
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "testdata/explain/"+name+".golden.json", append(text, '\n'))
			golden(t, "testdata/explain/"+name+".golden.txt", []byte(out.Text()))
		})
	}
}

// explanationFaults holds the explanations of the traffic of web against what the oracle reads from the configurations of web and of
// the servers. change has its way with each explanation first.
func (s *scenario) explanationFaults(t interface{ Fatalf(string, ...any) }, change func(*explain.Explanation)) []string {
	var bad []string
	say := func(format string, args ...any) { bad = append(bad, fmt.Sprintf(format, args...)) }
	mesh, out := s.build(t)
	oracle := envoytest.New(messages(out))
	clients := envoytest.Connection{TLS: true, Identities: []string{
		envoy.SPIFFEID("default", "web"), "kuma://kuma.io/service/web", "kuma://version/" + s.web["version"],
	}}
	admitted := func(dataplane, address string) bool {
		config, err := envoy.Sidecar(mesh, &envoy.Proxy{Mesh: "default", Name: dataplane, Dataplane: mesh.Dataplanes[dataplane]}, nil)
		if err != nil {
			t.Fatalf("%v", err)
		}
		got, err := envoytest.New(messages(config)).Ask("inbound:"+address, clients, nil)
		if err != nil {
			t.Fatalf("%v", err)
		}
		return got.Refused != "rbac"
	}
	for _, service := range services {
		e := envoy.Explain(mesh, &envoy.ExplainInput{
			Proxy: &envoy.Proxy{Mesh: "default", Name: "web-1", Dataplane: mesh.Dataplanes["web-1"]}, Zone: "zone-1", Service: service,
		})
		change(e)
		reached := make(map[string]bool)
		for _, o := range e.Outbounds {
			got, err := oracle.Ask("outbound:"+o.Address, envoytest.Connection{}, &envoytest.Request{Method: "GET", Path: "/none"})
			if err != nil {
				say("%s: %v", o.Address, err)
				continue
			}
			// The path is that of no rule but those for all, of which the first counts.
			to := o.Default
			for _, r := range o.Rules {
				if strings.Contains(r.Match, `path begins with "/"`) {
					to = r.To
					break
				}
			}
			if want := weights(to); !maps.Equal(want, shared(got.Destinations)) {
				say("%s leads to %v, and is said to lead to %v", o.Address, got.Destinations, want)
			}
			for _, rule := range o.Rules {
				for _, share := range rule.To {
					reached[share.Cluster] = true
				}
			}
			for _, share := range o.Default {
				reached[share.Cluster] = true
			}
			if len(to) > 0 && o.Protocol == "http" {
				want := "none"
				if got.Timeout == nil {
					want = ""
				} else if *got.Timeout > 0 {
					want = got.Timeout.String()
				}
				if said := setting(e, "Timeout", "request"); said != want {
					say("%s: request timeout %q is said to be %q", o.Address, want, said)
				}
			}
		}
		verdicts := make(map[explain.Verdict]bool)
		for _, d := range e.Destinations {
			if !reached[d.Cluster] {
				say("%s: nothing leads to %s", service, d.Cluster)
			}
			delete(reached, d.Cluster)
			verdicts[d.Verdict] = true
			upstream, err := oracle.Upstream(d.Cluster)
			if err != nil || upstream.SNI != d.TLS.SNI {
				say("%s: server name %q is said to be %q (%v)", d.Cluster, upstream.SNI, d.TLS.SNI, err)
			}
			said := make(map[string]uint32)
			for _, g := range d.Groups {
				for _, end := range g.Endpoints {
					said[end.Address] += end.Weight
					if want := admitted(end.Dataplane, end.Address); want != (g.Permission.Verdict == explain.Allowed) {
						say("%s: %s lets web in: %t, and is said to be %s", d.Cluster, end.Dataplane, want, g.Permission.Verdict)
					}
				}
			}
			cla, err := envoy.LoadAssignment(mesh, envoy.EndpointRef{Cluster: d.Cluster, Mesh: "default", Service: d.Service, Tags: d.Tags})
			if err != nil {
				t.Fatalf("%v", err)
			}
			want := make(map[string]uint32)
			for _, group := range cla.GetEndpoints() {
				for _, end := range group.GetLbEndpoints() {
					at := end.GetEndpoint().GetAddress().GetSocketAddress()
					want[fmt.Sprintf("%s:%d", at.GetAddress(), at.GetPortValue())] += end.GetLoadBalancingWeight().GetValue()
				}
			}
			if !maps.Equal(want, said) {
				say("%s: endpoints %v are said to be %v", d.Cluster, want, said)
			}
		}
		for cluster := range reached {
			say("%s: nothing is said of %s", service, cluster)
		}
		switch {
		case len(e.Destinations) == 0 && e.Verdict != explain.NoRoute:
			say("%s: nothing is reached, and the verdict is %s", service, e.Verdict)
		case len(verdicts) == 1 && !verdicts[e.Verdict] && e.Verdict != explain.Partly, len(verdicts) > 1 && e.Verdict != explain.Partly:
			say("%s: the destinations are %v, and the verdict is %s", service, verdicts, e.Verdict)
		}
	}
	return bad
}

// weights are the shares by cluster, as the oracle says them: one alone has no weight.
func weights(to []explain.Share) map[string]uint32 {
	out := make(map[string]uint32)
	for _, s := range to {
		out[s.Cluster] += uint32(s.Weight) //nolint:gosec // those of the scenarios are small
	}
	return shared(out)
}

func shared(to map[string]uint32) map[string]uint32 {
	if len(to) == 1 {
		for k := range to {
			return map[string]uint32{k: 1}
		}
	}
	if to == nil {
		return map[string]uint32{}
	}
	return to
}

func setting(e *explain.Explanation, policy, name string) string {
	for _, p := range e.Policies {
		for _, s := range p.Settings {
			if p.Type == policy && s.Name == name {
				return s.Value
			}
		}
	}
	return ""
}

func TestExplanationsAgreeWithTheConfiguration(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		if bad := drawScenario(rt).explanationFaults(rt, func(*explain.Explanation) {}); len(bad) > 0 {
			rt.Fatal(strings.Join(bad, "\n"))
		}
	})
}

func TestWrongExplanationsAreNoticed(t *testing.T) {
	groups := func(e *explain.Explanation, f func(*explain.Group)) {
		for i := range e.Destinations {
			for j := range e.Destinations[i].Groups {
				f(&e.Destinations[i].Groups[j])
			}
		}
	}
	wrong := map[string]func(*explain.Explanation){
		"everyone is allowed": func(e *explain.Explanation) {
			groups(e, func(g *explain.Group) { g.Permission.Verdict = explain.Allowed })
		},
		"everyone is denied": func(e *explain.Explanation) {
			groups(e, func(g *explain.Group) { g.Permission.Verdict = explain.Denied })
		},
		"the verdict is that of the first destination": func(e *explain.Explanation) {
			if len(e.Destinations) > 0 {
				e.Verdict = e.Destinations[0].Verdict
			}
		},
		"a missing route is allowed": func(e *explain.Explanation) {
			if e.Verdict == explain.NoRoute {
				e.Verdict = explain.Allowed
			}
		},
		"all shares are equal": func(e *explain.Explanation) {
			for i := range e.Outbounds {
				for j := range e.Outbounds[i].Default {
					e.Outbounds[i].Default[j].Weight = 1
				}
			}
		},
		"rules do not count": func(e *explain.Explanation) {
			for i := range e.Outbounds {
				e.Outbounds[i].Rules = nil
			}
		},
		"there is no timeout": func(e *explain.Explanation) {
			for i := range e.Policies {
				e.Policies[i].Settings = nil
			}
		},
		"an endpoint is left out": func(e *explain.Explanation) {
			groups(e, func(g *explain.Group) { g.Endpoints = g.Endpoints[:len(g.Endpoints)-1] })
		},
		"the server name is that of the whole service": func(e *explain.Explanation) {
			for i, d := range e.Destinations {
				e.Destinations[i].TLS.SNI = envoy.SNI("default", d.Service, nil)
			}
		},
	}
	scenarios := rapid.Custom(drawScenario)
	for seed := 0; seed < 500 && len(wrong) > 0; seed++ {
		s := scenarios.Example(seed)
		for name, change := range wrong {
			if len(s.explanationFaults(t, change)) > 0 {
				delete(wrong, name)
			}
		}
	}
	for name := range wrong {
		t.Errorf("nobody notices that %s", name)
	}
}

// BenchmarkExplain explains the traffic to a service of 100 instances in a mesh with 1,000 proxies and 500 policies.
func BenchmarkExplain(b *testing.B) {
	var docs strings.Builder
	docs.WriteString(head + "  outbound: [{port: 10001, tags: {kuma.io/service: s0}}]\n")
	for i := range 1000 {
		fmt.Fprintf(&docs, "---\ntype: Dataplane\nmesh: default\nname: dp-%d\nnetworking: {address: 10.1.%d.%d, inbound: [{port: 80, tags: "+
			"{kuma.io/service: s%d, kuma.io/protocol: http, version: v%d}}]}\n", i, i/250, i%250, i%10, i%50)
	}
	for i := range 500 {
		typ := []string{"TrafficPermission", "Timeout", "TrafficRoute", "CircuitBreaker", "Retry"}[i%5]
		to := fmt.Sprintf("s%d", i%20)
		if i < 5 {
			to = `"*"`
		}
		conf := "conf: {}\n"
		switch typ {
		case "TrafficPermission":
			conf = ""
		case "TrafficRoute":
			conf = "conf: {destination: {kuma.io/service: \"*\"}}\n"
		}
		fmt.Fprintf(&docs, "---\ntype: %s\nmesh: default\nname: p%d\nsources: [{match: {kuma.io/service: \"*\"}}]\n"+
			"destinations: [{match: {kuma.io/service: %s}}]\n%s", typ, i, to, conf)
	}
	w := parse(b, docs.String())
	b.ReportAllocs()
	for b.Loop() {
		e := envoy.Explain(w.mesh, &envoy.ExplainInput{Proxy: w.proxy, Zone: "zone-1", Service: "s0"})
		if e.Verdict != explain.Allowed {
			b.Fatal(e.Text())
		}
	}
}
