package resource_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/meridian-mesh/meridian/api/resource"
)

// contract is the table of types as the contract has it, written a second time so that a slip in one is seen:
// name, path, display names, flags (g: outside meshes, d: to zones, u: to global, G Z: writable on global, zone,
// p: policy, i: inspect, a: admin only, x: experimental, n: plain name on the wire), insight of, message.
const contract = `
CircuitBreaker|circuit-breakers|Circuit Breaker|Circuit Breakers|dGpi||mesh
FaultInjection|fault-injections|Fault Injection|Fault Injections|dGpi||mesh
HealthCheck|health-checks|Health Check|Health Checks|dGpi||mesh
MeshAccessLog|meshaccesslogs|Mesh Access Log|Mesh Access Logs|dGpi||json
MeshGateway|meshgateways|Mesh Gateway|Mesh Gateways|dGpx||mesh
MeshGatewayRoute|meshgatewayroutes|Mesh Gateway Route|Mesh Gateway Routes|dGpx||mesh
MeshTrace|meshtraces|Mesh Trace|Mesh Traces|dGpi||json
MeshTrafficPermission|meshtrafficpermissions|Mesh Traffic Permission|Mesh Traffic Permissions|dGpi||json
ProxyTemplate|proxytemplates|Proxy Template|Proxy Templates|dGpi||mesh
RateLimit|rate-limits|Rate Limit|Rate Limits|dGpi||mesh
Retry|retries|Retry|Retries|dGpi||mesh
Timeout|timeouts|Timeout|Timeouts|dGpi||mesh
TrafficLog|traffic-logs|Traffic Log|Traffic Logs|dGpi||mesh
TrafficPermission|traffic-permissions|Traffic Permission|Traffic Permissions|dGpi||mesh
TrafficRoute|traffic-routes|Traffic Route|Traffic Routes|dGpi||mesh
TrafficTrace|traffic-traces|Traffic Trace|Traffic Traces|dGpi||mesh
VirtualOutbound|virtual-outbounds|Virtual Outbound|Virtual Outbounds|dGp||mesh
ExternalService|external-services|External Service|External Services|dGp||mesh
Mesh|meshes|Mesh|Meshes|gdGn||mesh
Secret|secrets|Secret|Secrets|dGan||system
GlobalSecret|global-secrets|||gdGan||system.Secret
Config||Config|Configs|gdn||system
Dataplane|dataplanes|Dataplane|Dataplanes|uZ||mesh
DataplaneInsight|dataplane-insights|Dataplane Insight|Dataplane Insights|u|Dataplane|mesh
ZoneIngress|zone-ingresses|Zone Ingress|Zone Ingresses|gduGZ||mesh
ZoneIngressInsight|zone-ingress-insights|Zone Ingress Insight|Zone Ingress Insights|gu|ZoneIngress|mesh
ZoneEgress|zoneegresses|Zone Egress|Zone Egresses|guZ||mesh
ZoneEgressInsight|zoneegressinsights|Zone Egress Insight|Zone Egress Insights|gu|ZoneEgress|mesh
Zone|zones|Zone|Zones|gG||system
ZoneInsight|zone-insights|Zone Insight|Zone Insights|g|Zone|system
MeshInsight|mesh-insights|Mesh Insight|Mesh Insights|g|Mesh|mesh
ServiceInsight|service-insights|Service Insight|Service Insights|d||mesh
`

// describe writes a row of the registry in the form of contract.
func describe(d *resource.Descriptor) string {
	var flags strings.Builder
	for _, f := range []struct {
		set  bool
		flag byte
	}{
		{d.Scope == resource.ScopeGlobal, 'g'},
		{d.Flow == resource.FlowToZones || d.Flow == resource.FlowBoth, 'd'},
		{d.Flow == resource.FlowToGlobal || d.Flow == resource.FlowBoth, 'u'},
		{d.Writable&resource.Global != 0, 'G'},
		{d.Writable&resource.Zone != 0, 'Z'},
		{d.Policy, 'p'},
		{d.Inspect, 'i'},
		{d.AdminOnly, 'a'},
		{d.Experimental, 'x'},
		{d.PlainOnWire, 'n'},
	} {
		if f.set {
			flags.WriteByte(f.flag)
		}
	}
	message := "json"
	if !d.IsJSON() {
		message = strings.TrimPrefix(string(d.Message().FullName()), "kuma.")
		message = strings.Replace(message, ".v1alpha1", "", 1)
		message = strings.TrimSuffix(message, "."+string(d.Name))
	}
	return strings.Join([]string{string(d.Name), d.Path, d.Singular, d.Plural, flags.String(), string(d.InsightOf), message}, "|")
}

func TestTheRegistryIsTheContract(t *testing.T) {
	var got []string
	for i := range resource.All() {
		got = append(got, describe(&resource.All()[i]))
	}
	want := strings.Split(strings.TrimSpace(contract), "\n")
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-contract +registry):\n%s", diff)
	}
}

func TestEveryRow(t *testing.T) {
	paths := map[string]resource.Type{}
	for i := range resource.All() {
		d := &resource.All()[i]
		t.Run(string(d.Name), func(t *testing.T) {
			if got, ok := resource.Lookup(d.Name); !ok || got != d {
				t.Error("Lookup does not find it")
			}
			if d.Path != "" {
				if other, ok := paths[d.Path]; ok {
					t.Errorf("path %q is also that of %s", d.Path, other)
				}
				paths[d.Path] = d.Name
				if got, ok := resource.ByPath(d.Path); !ok || got != d {
					t.Error("ByPath does not find it")
				}
			}
			if d.IsJSON() {
				if d.Message() != nil {
					t.Error("a JSON type has a message")
				}
			} else {
				if _, err := protoregistry.GlobalTypes.FindMessageByName(d.Message().FullName()); err != nil {
					t.Error(err)
				}
				if a, b := d.NewSpec(), d.NewSpec(); a == b || !a.ProtoReflect().IsValid() {
					t.Error("NewSpec does not make a new message")
				}
			}
			if d.InsightOf != "" {
				base, ok := resource.Lookup(d.InsightOf)
				if !ok || base.Scope != d.Scope {
					t.Fatal("what it reports on is missing, or has another scope")
				}
				if got, ok := base.Insight(); !ok || got != d {
					t.Error("Insight does not find it")
				}
				if d.Writable != resource.Nowhere {
					t.Error("an insight can be written over HTTP")
				}
			}
		})
	}
}

func TestWhatThereIsNot(t *testing.T) {
	if _, ok := resource.Lookup("Nonsense"); ok {
		t.Error("Lookup found a type")
	}
	for _, path := range []string{"", "nonsense"} {
		if d, ok := resource.ByPath(path); ok {
			t.Errorf("ByPath(%q) found %s", path, d.Name)
		}
	}
	if d, _ := resource.Lookup("TrafficRoute"); d != nil {
		if insight, ok := d.Insight(); ok {
			t.Errorf("TrafficRoute has the insight %s", insight.Name)
		}
	}
}

func TestReferencedTypesAreOfferedFirst(t *testing.T) {
	index := map[resource.Type]int{}
	for i, d := range resource.All() {
		index[d.Name] = i
	}
	for _, d := range resource.All() {
		if d.Scope == resource.ScopeMesh && index[d.Name] < index[resource.Mesh] {
			t.Errorf("%s stands before Mesh", d.Name)
		}
		if d.InsightOf != "" && index[d.Name] < index[d.InsightOf] {
			t.Errorf("%s stands before %s", d.Name, d.InsightOf)
		}
	}
}

func TestPlanesHaveNames(t *testing.T) {
	for plane, want := range map[resource.Plane]string{
		resource.Global: "global", resource.Zone: "zone", resource.Nowhere: "nowhere",
	} {
		if got := plane.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}
