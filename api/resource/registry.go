// Package resource is the one table of resource types. HTTP routes, storage, sync direction, read-only rules and
// /policies all follow from a type's row here; see docs/ARCHITECTURE.md, "Adding a resource type".
package resource

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
)

// Type is the name of a resource type as it stands in a body's "type" and on the wire, e.g. "TrafficRoute".
type Type string

// Scope says whether resources of a type live inside a mesh.
type Scope uint8

// The two scopes.
const (
	ScopeMesh Scope = iota
	ScopeGlobal
)

// Flow says between which planes resources of a type travel.
type Flow uint8

// The flows of KDS. FlowBoth: a zone's own go up to the global, other zones' come down.
const (
	FlowNone Flow = iota
	FlowToZones
	FlowToGlobal
	FlowBoth
)

// Plane is one of the two kinds of control plane.
type Plane uint8

// The planes. A plane is also a bit in Descriptor.Writable.
const (
	Global Plane = 1 << iota
	Zone
	Nowhere Plane = 0
)

// String returns "global" or "zone".
func (p Plane) String() string {
	switch p {
	case Global:
		return "global"
	case Zone:
		return "zone"
	default:
		return "nowhere"
	}
}

// Descriptor is one row of the registry: all that the rest of the system needs to know about a type.
type Descriptor struct {
	Name  Type
	Scope Scope
	// Path is the URL segment of the type's collection; empty: the type has no route.
	Path string
	// Singular and Plural are the display names of /policies.
	Singular, Plural string
	// Spec is the zero message of the type's specification. It is nil for types whose specification is plain JSON
	// nested under "spec" (the targetRef policies).
	Spec proto.Message
	// Flow and Writable: who sends it to whom, and on which planes the HTTP API may write it.
	Flow     Flow
	Writable Plane
	// OwnOfZones are the beginnings of the names that a zone writes itself although the type is the global's: what every
	// plane has of its own, such as the keys of its users' tokens.
	OwnOfZones []string
	// Policy: listed in /policies. Inspect: has /{name}/dataplanes. AdminOnly: even reading needs admin rights.
	Policy, Inspect, AdminOnly, Experimental bool
	// InsightOf names the type that a record of this type reports on; it has the same name, and goes when that goes.
	InsightOf Type
	// PlainOnWire: the name is never hashed toward a peer that hashes names (KDS contract §8).
	PlainOnWire bool
}

// IsJSON reports whether the specification is plain JSON nested under "spec".
func (d *Descriptor) IsJSON() bool { return d.Spec == nil }

// NewSpec returns a new empty specification message. It must not be called for a JSON type.
func (d *Descriptor) NewSpec() proto.Message { return d.Spec.ProtoReflect().New().Interface() }

// Message returns the descriptor of the specification message, nil for a JSON type.
func (d *Descriptor) Message() protoreflect.MessageDescriptor {
	if d.Spec == nil {
		return nil
	}
	return d.Spec.ProtoReflect().Descriptor()
}

// WritableOn reports whether the HTTP API of a plane may write the resource of a name, or with "" any of the type.
func (d *Descriptor) WritableOn(p Plane, name string) bool {
	if d.Writable&p != 0 {
		return true
	}
	return p == Zone && slices.ContainsFunc(d.OwnOfZones, func(own string) bool {
		return name == "" || strings.HasPrefix(name, own)
	})
}

// Names that several packages branch on.
const (
	Mesh               Type = "Mesh"
	Secret             Type = "Secret"
	GlobalSecret       Type = "GlobalSecret"
	Config             Type = "Config"
	Dataplane          Type = "Dataplane"
	DataplaneInsight   Type = "DataplaneInsight"
	ZoneIngress        Type = "ZoneIngress"
	ZoneIngressInsight Type = "ZoneIngressInsight"
	ZoneEgress         Type = "ZoneEgress"
	ZoneEgressInsight  Type = "ZoneEgressInsight"
	ZoneType           Type = "Zone"
	ZoneInsight        Type = "ZoneInsight"
	MeshInsight        Type = "MeshInsight"
	ServiceInsight     Type = "ServiceInsight"
)

// ClusterIDName names the Config that holds the id of the cluster: made by the global, copied to its zones.
const ClusterIDName = "kuma-cluster-id"

// policy is the row of a policy whose specification is a protobuf message: written on the global, sent to zones.
func policy(name Type, path, singular, plural string, spec proto.Message) Descriptor {
	return Descriptor{
		Name: name, Scope: ScopeMesh, Path: path, Singular: singular, Plural: plural, Spec: spec,
		Flow: FlowToZones, Writable: Global, Policy: true, Inspect: true,
	}
}

func with(d Descriptor, change func(*Descriptor)) Descriptor { change(&d); return d }

func noInspect(d *Descriptor)    { d.Inspect = false }
func experimental(d *Descriptor) { d.Inspect, d.Experimental = false, true }

// table is the registry. Its order is the order in which types are offered to a peer: what others refer to comes first.
var table = []Descriptor{
	{Name: Config, Scope: ScopeGlobal, Singular: "Config", Plural: "Configs", Spec: (*systemv1.Config)(nil), Flow: FlowToZones, PlainOnWire: true},
	{Name: Mesh, Scope: ScopeGlobal, Path: "meshes", Singular: "Mesh", Plural: "Meshes", Spec: (*meshv1.Mesh)(nil), Flow: FlowToZones, Writable: Global, PlainOnWire: true},
	{
		Name: GlobalSecret, Scope: ScopeGlobal, Path: "global-secrets", Spec: (*systemv1.Secret)(nil), Flow: FlowToZones, Writable: Global, AdminOnly: true, PlainOnWire: true,
		OwnOfZones: []string{"user-token-signing-key", "user-token-revocations", "admin-user-token", "envoy-admin-ca"},
	},
	{Name: Secret, Scope: ScopeMesh, Path: "secrets", Singular: "Secret", Plural: "Secrets", Spec: (*systemv1.Secret)(nil), Flow: FlowToZones, Writable: Global, AdminOnly: true, PlainOnWire: true},

	policy("CircuitBreaker", "circuit-breakers", "Circuit Breaker", "Circuit Breakers", (*meshv1.CircuitBreaker)(nil)),
	with(policy("ExternalService", "external-services", "External Service", "External Services", (*meshv1.ExternalService)(nil)), noInspect),
	policy("FaultInjection", "fault-injections", "Fault Injection", "Fault Injections", (*meshv1.FaultInjection)(nil)),
	policy("HealthCheck", "health-checks", "Health Check", "Health Checks", (*meshv1.HealthCheck)(nil)),
	policy("MeshAccessLog", "meshaccesslogs", "Mesh Access Log", "Mesh Access Logs", nil),
	with(policy("MeshGateway", "meshgateways", "Mesh Gateway", "Mesh Gateways", (*meshv1.MeshGateway)(nil)), experimental),
	with(policy("MeshGatewayRoute", "meshgatewayroutes", "Mesh Gateway Route", "Mesh Gateway Routes", (*meshv1.MeshGatewayRoute)(nil)), experimental),
	policy("MeshTrace", "meshtraces", "Mesh Trace", "Mesh Traces", nil),
	policy("MeshTrafficPermission", "meshtrafficpermissions", "Mesh Traffic Permission", "Mesh Traffic Permissions", nil),
	policy("ProxyTemplate", "proxytemplates", "Proxy Template", "Proxy Templates", (*meshv1.ProxyTemplate)(nil)),
	policy("RateLimit", "rate-limits", "Rate Limit", "Rate Limits", (*meshv1.RateLimit)(nil)),
	policy("Retry", "retries", "Retry", "Retries", (*meshv1.Retry)(nil)),
	policy("Timeout", "timeouts", "Timeout", "Timeouts", (*meshv1.Timeout)(nil)),
	policy("TrafficLog", "traffic-logs", "Traffic Log", "Traffic Logs", (*meshv1.TrafficLog)(nil)),
	policy("TrafficPermission", "traffic-permissions", "Traffic Permission", "Traffic Permissions", (*meshv1.TrafficPermission)(nil)),
	policy("TrafficRoute", "traffic-routes", "Traffic Route", "Traffic Routes", (*meshv1.TrafficRoute)(nil)),
	policy("TrafficTrace", "traffic-traces", "Traffic Trace", "Traffic Traces", (*meshv1.TrafficTrace)(nil)),
	with(policy("VirtualOutbound", "virtual-outbounds", "Virtual Outbound", "Virtual Outbounds", (*meshv1.VirtualOutbound)(nil)), noInspect),

	{Name: Dataplane, Scope: ScopeMesh, Path: "dataplanes", Singular: "Dataplane", Plural: "Dataplanes", Spec: (*meshv1.Dataplane)(nil), Flow: FlowToGlobal, Writable: Zone},
	{Name: DataplaneInsight, Scope: ScopeMesh, Path: "dataplane-insights", Singular: "Dataplane Insight", Plural: "Dataplane Insights", Spec: (*meshv1.DataplaneInsight)(nil), Flow: FlowToGlobal, InsightOf: Dataplane},
	{Name: ZoneIngress, Scope: ScopeGlobal, Path: "zone-ingresses", Singular: "Zone Ingress", Plural: "Zone Ingresses", Spec: (*meshv1.ZoneIngress)(nil), Flow: FlowBoth, Writable: Global | Zone},
	{Name: ZoneIngressInsight, Scope: ScopeGlobal, Path: "zone-ingress-insights", Singular: "Zone Ingress Insight", Plural: "Zone Ingress Insights", Spec: (*meshv1.ZoneIngressInsight)(nil), Flow: FlowToGlobal, InsightOf: ZoneIngress},
	{Name: ZoneEgress, Scope: ScopeGlobal, Path: "zoneegresses", Singular: "Zone Egress", Plural: "Zone Egresses", Spec: (*meshv1.ZoneEgress)(nil), Flow: FlowToGlobal, Writable: Zone},
	{Name: ZoneEgressInsight, Scope: ScopeGlobal, Path: "zoneegressinsights", Singular: "Zone Egress Insight", Plural: "Zone Egress Insights", Spec: (*meshv1.ZoneEgressInsight)(nil), Flow: FlowToGlobal, InsightOf: ZoneEgress},
	{Name: ZoneType, Scope: ScopeGlobal, Path: "zones", Singular: "Zone", Plural: "Zones", Spec: (*systemv1.Zone)(nil), Writable: Global},
	{Name: ZoneInsight, Scope: ScopeGlobal, Path: "zone-insights", Singular: "Zone Insight", Plural: "Zone Insights", Spec: (*systemv1.ZoneInsight)(nil), InsightOf: ZoneType},
	{Name: MeshInsight, Scope: ScopeGlobal, Path: "mesh-insights", Singular: "Mesh Insight", Plural: "Mesh Insights", Spec: (*meshv1.MeshInsight)(nil), InsightOf: Mesh},
	{Name: ServiceInsight, Scope: ScopeMesh, Path: "service-insights", Singular: "Service Insight", Plural: "Service Insights", Spec: (*meshv1.ServiceInsight)(nil), Flow: FlowToZones},
}

var byName = func() map[Type]*Descriptor {
	m := make(map[Type]*Descriptor, len(table))
	for i := range table {
		m[table[i].Name] = &table[i]
	}
	return m
}()

// All returns every row, in the order of the table. The slice and its rows are read-only.
func All() []Descriptor { return table }

// Lookup returns the row of a type.
func Lookup(t Type) (*Descriptor, bool) {
	d, ok := byName[t]
	return d, ok
}
