package envoy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// decode reads a resource from YAML.
func decode(t *testing.T, kind, text string) types.Resource {
	t.Helper()
	empty, err := (&anypb.Any{TypeUrl: kind}).UnmarshalNew()
	if err != nil {
		t.Fatal(err)
	}
	var tree any
	if err := yaml.Unmarshal([]byte(text), &tree); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	b, err := json.Marshal(tree)
	if err != nil {
		t.Fatal(err)
	}
	if err := protojson.Unmarshal(b, empty); err != nil {
		t.Fatalf("%v in\n%s", err, text)
	}
	return empty
}

const (
	ads       = `{ads: {}, resourceApiVersion: V3}`
	http2     = `typedExtensionProtocolOptions: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {"@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicitHttpConfig: {http2ProtocolOptions: {}}}}`
	tlsPrefix = `name: envoy.transport_sockets.tls, typedConfig: {"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.`
	identity  = `tlsCertificateSdsSecretConfigs: [{name: identity, sdsConfig: ` + ads + `}]`
	roots     = `validationContextSdsSecretConfig: {name: roots, sdsConfig: ` + ads + `}`
)

func edsCluster(name, more string) string {
	return fmt.Sprintf("name: %s\ntype: EDS\nconnectTimeout: 5s\nedsClusterConfig: {edsConfig: %s}\n%s", name, ads, more)
}

// mtlsCluster is an EDS cluster whose endpoints must prove to be a service.
func mtlsCluster(name, san, sni, more string) string {
	return edsCluster(name, fmt.Sprintf(`transportSocket: {%sUpstreamTlsContext, sni: %q, commonTlsContext: {alpnProtocols: [kuma], %s,
 combinedValidationContext: {defaultValidationContext: {matchTypedSubjectAltNames: [{sanType: URI, matcher: {exact: %q}}]}, %s}}}}
%s`, tlsPrefix, sni, identity, san, roots, more))
}

func assignment(cluster string, ports ...int) string {
	var list []string
	for _, p := range ports {
		list = append(list, fmt.Sprintf(`{endpoint: {address: {socketAddress: {address: 127.0.0.1, portValue: %d}}}}`, p))
	}
	return fmt.Sprintf("clusterName: %s\nendpoints: [{lbEndpoints: [%s]}]", cluster, strings.Join(list, ", "))
}

func tcpFilter(cluster string) string {
	return fmt.Sprintf(`{name: envoy.filters.network.tcp_proxy, typedConfig: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, statPrefix: x, cluster: %s}}`, cluster)
}

func listenerYAML(name string, port int, chains ...string) string {
	return fmt.Sprintf("name: %s\naddress: {socketAddress: {address: 127.0.0.1, portValue: %d}}\nfilterChains:\n- %s",
		name, port, strings.Join(chains, "\n- "))
}

// mtlsChain ends mTLS with the proxy's identity. It names a protocol that clients do not, which Envoy takes.
func mtlsChain(match string, filters ...string) string {
	return fmt.Sprintf(`{%s transportSocket: {%sDownstreamTlsContext, requireClientCertificate: true, commonTlsContext: {alpnProtocols: [h2], %s,
   combinedValidationContext: {defaultValidationContext: {matchTypedSubjectAltNames: [{sanType: URI, matcher: {prefix: "spiffe://default/"}}]}, %s}}}},
   filters: [%s]}`, match, tlsPrefix, identity, roots, strings.Join(filters, ", "))
}

func plainChain(filters ...string) string { return "{filters: [" + strings.Join(filters, ", ") + "]}" }

func (p *plane) secrets(names ...string) []string {
	cert, key := p.ca.issue(p.t, names...)
	return []string{
		fmt.Sprintf("name: identity\ntlsCertificate: {certificateChain: {inlineString: %q}, privateKey: {inlineString: %q}}", cert, key),
		fmt.Sprintf("name: roots\nvalidationContext: {trustedCa: {inlineString: %q}}", p.ca.pem),
	}
}

// sample is a configuration with everything that warms.
func (p *plane) sample() map[resource.Type][]string {
	return map[resource.Type][]string{
		resource.ClusterType:  {mtlsCluster("backend", "spiffe://default/backend", "backend{mesh=default}", http2)},
		resource.EndpointType: {assignment("backend", 4321)},
		resource.ListenerType: {listenerYAML("outbound", 1, plainChain(tcpFilter("backend")))},
		resource.SecretType:   p.secrets("spiffe://default/web"),
	}
}

func TestAProxySubscribesInEnvoysOrder(t *testing.T) {
	p := newPlane(t)
	p.publish("default.web", "v1", p.sample())
	proxy := p.proxy(p.options("web"))
	waitFor(t, proxy, Ready)
	eventually(t, func() error {
		for _, kind := range []string{"Cluster [] \"v1\"", "Listener [] \"v1\"", "Secret [identity roots] \"v1\"", "ClusterLoadAssignment [backend] \"v1\""} {
			if !slices.Contains(p.sent(), kind) {
				return fmt.Errorf("%q not among %q", kind, p.sent())
			}
		}
		return nil
	})
	sent := p.sent()
	// The answers of the server to two open subscriptions come in any order; what asks for what does not.
	want := []string{`Cluster [] "" node`, `ClusterLoadAssignment [backend] ""`, `Secret [identity roots] ""`, `Cluster [] "v1"`}
	if diff := cmp.Diff(want, sent[:4]); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	listeners := slices.Index(sent, `Listener [] ""`)
	if first := min(slices.Index(sent, `ClusterLoadAssignment [backend] "v1"`), slices.Index(sent, `Secret [identity roots] "v1"`)); listeners < first {
		t.Errorf("listeners were asked for before clusters were warm: %q", sent)
	}
	if diff := cmp.Diff([]string{"token-of-web"}, p.auth); diff != "" {
		t.Errorf("authorization (-want +got):\n%s", diff)
	}
	if c := proxy.Config(); len(c.Findings) > 0 || c.Counters[Clusters] != (Counter{Received: 1, Accepted: 1}) {
		t.Errorf("findings %q, counters %v", c.Findings, c.Counters)
	}

	// Only the endpoints change: only they come.
	before := len(proxy.History())
	next := p.sample()
	next[resource.EndpointType] = []string{assignment("backend", 4321, 4322)}
	p.publishVersions("default.web", map[resource.Type]string{resource.EndpointType: "v2"}, "v1", next)
	waitFor(t, proxy, func(c *Config) error {
		if n := len(c.Endpoints["backend"].GetEndpoints()[0].GetLbEndpoints()); n != 2 {
			return fmt.Errorf("%d endpoints", n)
		}
		return nil
	})
	got := proxy.History()[before:]
	if len(got) != 1 || got[0].Kind != Endpoints || got[0].Version != "v2" || got[0].Rejected != "" {
		t.Errorf("responses after a change of endpoints: %+v", got)
	}
}

func TestWhatIsMissingIsNamed(t *testing.T) {
	p := newPlane(t)
	config := p.sample()
	config[resource.SecretType] = config[resource.SecretType][:1] // no roots
	p.publish("default.web", "v1", config)
	proxy := p.proxy(p.options("web"))
	waitFor(t, proxy, func(c *Config) error {
		if c.Secrets["identity"] == nil || c.Endpoints["backend"] != nil {
			return errors.New("not yet")
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := proxy.Wait(ctx, Ready)
	if err == nil || !strings.Contains(err.Error(), `cluster "backend" waits for secret "roots"`) {
		t.Errorf("got %v", err)
	}
	if c := proxy.Config(); len(c.Clusters) != 0 || c.Counters[Listeners].Received != 0 {
		t.Errorf("clusters %v and listeners %v although a secret is missing", c.Clusters, c.Counters[Listeners])
	}
	p.publish("default.web", "v2", p.sample())
	waitFor(t, proxy, Ready)
}

func TestABadResponseIsRejectedAndTheOldConfigurationStays(t *testing.T) {
	p := newPlane(t)
	p.publish("default.web", "v1", p.sample())
	proxy := p.proxy(p.options("web"))
	waitFor(t, proxy, Ready)
	old := proxy.Config()

	bad := p.sample()
	bad[resource.ClusterType] = append(bad[resource.ClusterType], "name: negative\nconnectTimeout: -1s\ntype: STATIC")
	p.publish("default.web", "v2", bad)
	waitFor(t, proxy, func(c *Config) error {
		if c.Counters[Clusters].Rejected == 0 {
			return errors.New("nothing rejected")
		}
		return nil
	})
	c := proxy.Config()
	if c.Versions[Clusters] != "v1" || !proto.Equal(c.Clusters["backend"], old.Clusters["backend"]) || len(c.Clusters) != 1 {
		t.Errorf("the bad response was taken: version %s, clusters %v", c.Versions[Clusters], c.Clusters)
	}
	eventually(t, func() error {
		if !slices.Contains(p.sent(), `Cluster [] "v1" NACK`) {
			return fmt.Errorf("no NACK among %q", p.sent())
		}
		return nil
	})
	good := p.sample()
	p.publish("default.web", "v3", good)
	waitFor(t, proxy, func(c *Config) error {
		if c.Versions[Clusters] != "v3" {
			return errors.New("the good one is not there")
		}
		return nil
	})
}

func TestAResponseIsRejectedOnDemand(t *testing.T) {
	p := newPlane(t)
	p.publish("default.web", "v1", p.sample())
	proxy := p.proxy(p.options("web"))
	waitFor(t, proxy, Ready)
	proxy.RejectNext(Endpoints, "because the test says so")
	next := p.sample()
	next[resource.EndpointType] = []string{assignment("backend", 4322)}
	p.publishVersions("default.web", map[resource.Type]string{resource.EndpointType: "v2"}, "v1", next)
	waitFor(t, proxy, func(c *Config) error {
		if c.Counters[Endpoints].Rejected != 1 {
			return errors.New("nothing rejected")
		}
		return nil
	})
	h := proxy.History()
	if i := slices.IndexFunc(h, func(r Response) bool { return r.Rejected != "" }); h[i].Rejected != "because the test says so" {
		t.Errorf("rejected for %q", h[i].Rejected)
	}
}

func TestANewStreamGoesOnWhereTheOldOneEnded(t *testing.T) {
	p := newPlane(t)
	p.publish("default.web", "v1", p.sample())
	proxy := p.proxy(p.options("web"))
	waitFor(t, proxy, Ready)
	eventually(t, func() error {
		if !slices.Contains(p.sent(), `Listener [] "v1"`) {
			return errors.New("the last answer is not there")
		}
		return nil
	})
	p.stopADS()
	waitFor(t, proxy, func(c *Config) error {
		if c.Connected {
			return errors.New("still connected")
		}
		return nil
	})
	if c := proxy.Config(); len(c.Clusters) != 1 || len(c.Listeners) != 1 {
		t.Error("the configuration went with the stream")
	}
	p.mu.Lock()
	p.requests = nil
	p.mu.Unlock()
	p.startADS(p.address)
	waitFor(t, proxy, func(c *Config) error {
		if !c.Connected || c.Streams < 2 {
			return errors.New("no new stream")
		}
		return nil
	})
	want := []string{
		`Cluster [] "v1" node`, `ClusterLoadAssignment [backend] "v1"`, `Secret [identity roots] "v1"`, `Listener [] "v1"`,
	}
	eventually(t, func() error {
		sent := p.sent() // followed by answers: this server sends again what the proxy says it has
		if diff := cmp.Diff(want, sent[:min(4, len(sent))]); diff != "" {
			return errors.New(diff)
		}
		return nil
	})
}

func TestAChangedClusterWarmsAnew(t *testing.T) {
	p := newPlane(t)
	p.publish("default.web", "v1", p.sample())
	proxy := p.proxy(p.options("web"))
	waitFor(t, proxy, Ready)
	// go-control-plane's own cache does not answer a subscription that repeats an acknowledged version: the server to find out.
	next := p.sample()
	next[resource.ClusterType] = []string{mtlsCluster("backend", "spiffe://default/backend", "other", http2)}
	p.publishVersions("default.web", map[resource.Type]string{resource.ClusterType: "v2"}, "v1", next)
	waitFor(t, proxy, func(c *Config) error {
		if c.WarmingClusters["backend"] == nil || c.Clusters["backend"] == nil {
			return errors.New("not warming beside the old one")
		}
		if !slices.Contains(c.Waiting, `cluster "backend" waits for endpoints "backend"`) {
			return fmt.Errorf("waits for %q", c.Waiting)
		}
		return nil
	})
	p.publishVersions("default.web", map[resource.Type]string{resource.ClusterType: "v2", resource.EndpointType: "v2"}, "v1", next)
	waitFor(t, proxy, Ready)
	if sni := proxy.Config().Clusters["backend"].GetTransportSocket().String(); !strings.Contains(sni, "other") {
		t.Errorf("the new cluster is not in use: %s", sni)
	}
}

// offline is a proxy without a control plane, to be fed by hand.
func offline(t *testing.T) *Proxy {
	t.Helper()
	p := &Proxy{log: newPlaneless(), state: newState(), counters: map[Kind]Counter{}, rejects: map[Kind][]string{}, changed: make(chan struct{})}
	p.traffic = newTraffic(t.Context(), p, false)
	t.Cleanup(p.traffic.close)
	p.state.due()
	return p
}

func feed(t *testing.T, p *Proxy, kind Kind, docs ...string) *discoveryv3.DiscoveryRequest {
	t.Helper()
	resp := &discoveryv3.DiscoveryResponse{TypeUrl: string(kind), VersionInfo: "v", Nonce: "n"}
	for _, d := range docs {
		packed, err := anypb.New(decode(t, string(kind), d))
		if err != nil {
			t.Fatal(err)
		}
		resp.Resources = append(resp.Resources, packed)
	}
	requests := p.receive(t.Context(), resp)
	if len(requests) == 0 {
		return nil
	}
	return requests[len(requests)-1]
}

func TestWhatEnvoyRejects(t *testing.T) {
	for name, c := range map[string]struct {
		kind Kind
		docs []string
		want string
	}{
		"two clusters of one name":               {Clusters, []string{edsCluster("a", ""), edsCluster("a", "")}, "duplicate"},
		"an EDS cluster without source":          {Clusters, []string{"name: a\ntype: EDS"}, "eds_config"},
		"a host name in a static cluster":        {Clusters, []string{"name: a\ntype: STATIC\nloadAssignment: " + `{clusterName: a, endpoints: [{lbEndpoints: [{endpoint: {address: {socketAddress: {address: host, portValue: 1}}}}]}]}`}, "malformed IP"},
		"an invalid value deep in a packed type": {Listeners, []string{listenerYAML("l", 1, plainChain(`{name: t, typedConfig: {"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, cluster: a}}`))}, "StatPrefix"},
		"a listener without filter chains":       {Listeners, []string{"name: l\naddress: {socketAddress: {address: 127.0.0.1, portValue: 1}}"}, "no filter chains"},
		"two listeners of one address":           {Listeners, []string{listenerYAML("l", 1, plainChain(tcpFilter("a"))), listenerYAML("m", 1, plainChain(tcpFilter("a")))}, "duplicate address"},
		"two chains with one match":              {Listeners, []string{listenerYAML("l", 1, plainChain(tcpFilter("a")), plainChain(tcpFilter("b")))}, "same matching rules"},
		"a filter after the last":                {Listeners, []string{listenerYAML("l", 1, plainChain(tcpFilter("a"), tcpFilter("a")))}, "terminal"},
	} {
		t.Run(name, func(t *testing.T) {
			p := offline(t)
			if c.kind == Listeners {
				feed(t, p, Clusters)
			}
			answer := feed(t, p, c.kind, c.docs...)
			if !strings.Contains(answer.GetErrorDetail().GetMessage(), c.want) {
				t.Errorf("answered %v, want an error with %q", answer, c.want)
			}
			if answer.GetVersionInfo() != "" || answer.GetResponseNonce() != "n" {
				t.Errorf("version %q and nonce %q", answer.GetVersionInfo(), answer.GetResponseNonce())
			}
		})
	}
	t.Run("a type that is not linked in", func(t *testing.T) {
		p := offline(t)
		feed(t, p, Clusters)
		l := decode(t, string(Listeners), listenerYAML("l", 1, plainChain(tcpFilter("a"))))
		packed, err := anypb.New(l)
		if err != nil {
			t.Fatal(err)
		}
		packed.Value = []byte(strings.ReplaceAll(string(packed.Value), "v3.TcpProxy", "v9.TcpProxy"))
		answers := p.receive(t.Context(), &discoveryv3.DiscoveryResponse{TypeUrl: string(Listeners), Nonce: "n", Resources: []*anypb.Any{packed}})
		if m := answers[len(answers)-1].GetErrorDetail().GetMessage(); !strings.Contains(m, "v9.TcpProxy") {
			t.Errorf("answered %q", m)
		}
	})
}

func TestWhatEnvoyToleratesIsFound(t *testing.T) {
	p := offline(t)
	feed(t, p, Endpoints, assignment("early", 1))
	feed(t, p, Clusters, edsCluster("a", ""))
	feed(t, p, Endpoints, assignment("a", 1), assignment("b", 1))
	feed(t, p, Listeners, listenerYAML("l", 1, plainChain(tcpFilter("nowhere"))))
	want := []string{
		"a response of " + string(Endpoints) + ", which was not subscribed to",
		string(Endpoints) + ` "b" was sent and not asked for`,
		`listener "l" refers to cluster "nowhere", which is not there`,
	}
	if diff := cmp.Diff(want, p.Config().Findings); diff != "" {
		t.Errorf("findings (-want +got):\n%s", diff)
	}
	if err := Ready(&Config{Connected: true, Initialized: true, Dangling: p.Config().Dangling}); err == nil {
		t.Error("ready with a reference to nowhere")
	}
}

func TestBootstrapAnswers(t *testing.T) {
	p := newPlane(t)
	p.publish("default.web", "v1", p.sample())
	for name, status := range map[string]int{"400": 400, "422": 422} {
		t.Run(name+" is final", func(t *testing.T) {
			p.setAnswer(func(w http.ResponseWriter) bool { http.Error(w, "why", status); return true })
			_, err := Start(t.Context(), p.options("web"))
			refused, ok := errors.AsType[*RefusedError](err)
			if !ok || refused.Status != status || refused.Body != "why\n" {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("a missing proxy and a failing plane are asked again", func(t *testing.T) {
		n := 0
		p.setAnswer(func(w http.ResponseWriter) bool {
			n++
			switch n {
			case 1:
				w.WriteHeader(http.StatusNotFound)
			case 2:
				w.WriteHeader(http.StatusInternalServerError)
			}
			return n <= 2
		})
		o := p.options("")
		o.Mesh, o.Resource = "", "type: Dataplane\nmesh: default\nname: web\nnetworking: {address: 127.0.0.1}"
		proxy := p.proxy(o)
		waitFor(t, proxy, Ready)
		if n != 3 {
			t.Errorf("asked %d times", n)
		}
		want := map[string]any{
			"mesh": "default", "name": "web", "proxyType": "dataplane", "dataplaneToken": "token-of-",
			"dataplaneResource": `{"creationTime":"0001-01-01T00:00:00Z","mesh":"default","modificationTime":"0001-01-01T00:00:00Z","name":"web","networking":{"address":"127.0.0.1"},"type":"Dataplane"}`,
			"version": map[string]any{
				"kumaDp": map[string]any{"version": "2.0.8", "gitTag": "2.0.8", "gitCommit": "unknown", "buildDate": "unknown"},
				"envoy":  map[string]any{"version": "1.22.7", "build": "stand-in/1.22.7", "kumaDpCompatible": true},
			},
			"caCert": p.ca.pem, "dynamicMetadata": map[string]any{"version.dependencies.coredns": "1.8.3"},
			"dnsPort": 15054.0, "emptyDnsPort": 15055.0, "operatingSystem": "linux",
			"features": []any{"feature-tcp-accesslog-via-named-pipe"}, "resources": map[string]any{"maxHeapSizeBytes": 0.0},
		}
		if diff := cmp.Diff(want, p.posted); diff != "" {
			t.Errorf("request (-want +got):\n%s", diff)
		}
	})
	t.Run("unknown fields are an error", func(t *testing.T) {
		if _, err := parseBootstrap([]byte("node: {id: a}\nnonsense: 1")); err == nil {
			t.Error("taken")
		}
	})
}
