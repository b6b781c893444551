package envoy

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/meridian-mesh/meridian/zone/topology"
)

// LoadAssignment is where the cluster of ref leads: the endpoints of its service that carry all its tags. External services
// that are reached without an egress are not among them: their addresses are part of their clusters, for only the proxies
// with a permission may know them.
func LoadAssignment(mesh *topology.Mesh, ref EndpointRef) (*endpointv3.ClusterLoadAssignment, error) {
	var cla *endpointv3.ClusterLoadAssignment
	switch ref.At {
	case AtIngress:
		cla = crossing(mesh.Name, ref, offered(mesh.Services[ref.Service]))
	case AtEgress:
		cla = crossing(mesh.Name, ref, mesh.Remote[ref.Service])
	case AtSidecar:
		var endpoints []topology.Endpoint
		if s := mesh.Services[ref.Service]; s != nil {
			for _, e := range s.Endpoints {
				if !direct(e) && carries(e.Tags, ref.Tags) {
					endpoints = append(endpoints, e)
				}
			}
		}
		cla = assignment(ref.Cluster, endpoints, mesh.Spec.GetRouting().GetLocalityAwareLoadBalancing())
	}
	if ref.Proxyless {
		cla = forGRPC(cla)
	}
	if err := cla.ValidateAll(); err != nil {
		return nil, fmt.Errorf("endpoints of cluster %q in mesh %q: %w", ref.Cluster, ref.Mesh, err)
	}
	return cla, nil
}

// Join makes one assignment of those of the same cluster in several meshes, as ingresses have them. The parts stay as they are.
func Join(cluster string, parts []*endpointv3.ClusterLoadAssignment) *endpointv3.ClusterLoadAssignment {
	out := &endpointv3.ClusterLoadAssignment{ClusterName: cluster}
	for _, part := range parts {
		for _, group := range part.GetEndpoints() {
			if len(out.GetEndpoints()) == 0 {
				out.Endpoints = []*endpointv3.LocalityLbEndpoints{{}}
			}
			out.Endpoints[0].LbEndpoints = append(out.Endpoints[0].LbEndpoints, group.GetLbEndpoints()...)
		}
	}
	return out
}

// offered are the endpoints of a service that an ingress leads to: the instances in this zone, or of an external service that
// belongs to this zone the egresses.
func offered(s *topology.Service) []topology.Endpoint {
	if s == nil {
		return nil
	}
	var out []topology.Endpoint
	for _, e := range s.Endpoints {
		instance := !e.Remote && e.External == nil
		outside := !s.Local && !e.Remote && e.ViaEgress && e.Tags[zoneTag] != ""
		if instance || outside {
			e.Weight = 1
			out = append(out, e)
		}
	}
	return out
}

// crossing is an assignment of a proxy between zones. Parts of a service are chosen by metadata, of which the mesh is a part.
// Zones and priorities mean nothing here: to an ingress everything is near, to an egress everything is far.
func crossing(mesh string, ref EndpointRef, endpoints []topology.Endpoint) *endpointv3.ClusterLoadAssignment {
	group := &endpointv3.LocalityLbEndpoints{}
	endpoints = slices.Clone(endpoints)
	sortEndpoints(endpoints)
	for i, e := range endpoints {
		if i > 0 && compareEndpoints(e, endpoints[i-1]) == 0 || !carries(e.Tags, ref.Tags) {
			continue
		}
		e.Tags = withTag(e.Tags, sniMeshTag, mesh)
		group.LbEndpoints = append(group.LbEndpoints, lbEndpoint(e))
	}
	out := &endpointv3.ClusterLoadAssignment{ClusterName: ref.Cluster}
	if len(group.GetLbEndpoints()) > 0 {
		out.Endpoints = []*endpointv3.LocalityLbEndpoints{group}
	}
	return out
}

// direct: the endpoint is an external service, and no egress stands before it.
func direct(e topology.Endpoint) bool { return e.External != nil && !e.ViaEgress }

// place is what endpoints are grouped by.
type place struct {
	zone     string
	priority uint32
}

// assignment groups and sorts endpoints. Of two with the same address and tags one is enough: several external services or
// ingresses may lead to the same egress.
func assignment(cluster string, endpoints []topology.Endpoint, localityAware bool) *endpointv3.ClusterLoadAssignment {
	groups := make(map[place][]topology.Endpoint)
	for _, e := range endpoints {
		p := place{zone: e.Tags[zoneTag]}
		if localityAware && e.Remote {
			p.priority = 1
		}
		groups[p] = append(groups[p], e)
	}
	out := &endpointv3.ClusterLoadAssignment{ClusterName: cluster}
	places := slices.SortedFunc(maps.Keys(groups), func(a, b place) int {
		return cmp.Or(cmp.Compare(a.zone, b.zone), cmp.Compare(a.priority, b.priority))
	})
	for _, p := range places {
		group := &endpointv3.LocalityLbEndpoints{Priority: p.priority}
		if p.zone != "" {
			group.Locality = &corev3.Locality{Zone: p.zone}
		}
		sortEndpoints(groups[p])
		for i, e := range groups[p] {
			if i > 0 && compareEndpoints(e, groups[p][i-1]) == 0 {
				continue
			}
			group.LbEndpoints = append(group.LbEndpoints, lbEndpoint(e))
		}
		out.Endpoints = append(out.Endpoints, group)
	}
	return out
}

// forGRPC is an assignment as gRPC takes it, which refuses a place without a name or a weight, an address that is there twice
// (the parts of a service behind one ingress), and a gap in the priorities.
func forGRPC(cla *endpointv3.ClusterLoadAssignment) *endpointv3.ClusterLoadAssignment {
	first := uint32(math.MaxUint32)
	for _, group := range cla.GetEndpoints() {
		first = min(first, group.GetPriority())
	}
	byAddress := make(map[string]*endpointv3.LbEndpoint)
	for _, group := range cla.GetEndpoints() {
		group.Priority -= first
		if group.Locality == nil {
			group.Locality = &corev3.Locality{}
		}
		group.LoadBalancingWeight = u32(0)
		group.LbEndpoints = slices.DeleteFunc(group.LbEndpoints, func(e *endpointv3.LbEndpoint) bool {
			weight := e.GetLoadBalancingWeight().GetValue()
			group.LoadBalancingWeight.Value += weight
			at := e.GetEndpoint().GetAddress().GetSocketAddress()
			address := hostPort(at.GetAddress(), at.GetPortValue())
			if same := byAddress[address]; same != nil {
				same.LoadBalancingWeight.Value += weight
				return true
			}
			byAddress[address] = e
			return false
		})
	}
	cla.Endpoints = slices.DeleteFunc(cla.Endpoints, func(g *endpointv3.LocalityLbEndpoints) bool { return len(g.GetLbEndpoints()) == 0 })
	return cla
}

func sortEndpoints(endpoints []topology.Endpoint) { slices.SortStableFunc(endpoints, compareEndpoints) }

func compareEndpoints(a, b topology.Endpoint) int {
	if c := cmp.Or(cmp.Compare(a.Address, b.Address), cmp.Compare(a.Port, b.Port)); c != 0 {
		return c
	}
	return strings.Compare(tagString(a.Tags), tagString(b.Tags))
}

func tagString(tags map[string]string) string {
	var b strings.Builder
	for k, v := range sorted(tags) {
		b.WriteString(k + "=" + v + ",")
	}
	return b.String()
}

func lbEndpoint(e topology.Endpoint) *endpointv3.LbEndpoint {
	return &endpointv3.LbEndpoint{
		HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
			Address: socketAddress(e.Address, e.Port),
		}},
		LoadBalancingWeight: u32(max(e.Weight, 1)),
		Metadata:            endpointMetadata(without(e.Tags, serviceTag)),
	}
}

// endpointMetadata puts tags where subsets of a cluster and transport sockets are chosen by.
func endpointMetadata(tags map[string]string) *corev3.Metadata {
	if len(tags) == 0 {
		return nil
	}
	fields := make(map[string]*structpb.Value, len(tags))
	for k, v := range tags {
		fields[k] = structpb.NewStringValue(v)
	}
	s := &structpb.Struct{Fields: fields}
	return &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"envoy.lb": s, "envoy.transport_socket_match": s}}
}
