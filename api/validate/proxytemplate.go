package validate

import (
	"slices"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

func proxyTemplate(r *report, at path, m *meshv1.ProxyTemplate) {
	r.selectors(at.field("selectors"), m.GetSelectors(), selectorRules{optional: true, service: true})

	conf := at.field("conf")
	imports := conf.field("imports")
	for i, name := range m.GetConf().GetImports() {
		switch name {
		case "":
			r.add(imports.at(i), msgEmpty)
		case "default-proxy", "egress-proxy", "gateway-proxy", "ingress-proxy":
		default:
			r.add(imports.at(i), "profile not found. Available profiles: default-proxy,egress-proxy,gateway-proxy,ingress-proxy")
		}
	}
	resources := conf.field("resources")
	for i, raw := range m.GetConf().GetResources() {
		item := resources.at(i)
		r.notEmpty(item.field("name"), raw.GetName())
		r.notEmpty(item.field("version"), raw.GetVersion())
		if where := item.field("resource"); r.notEmpty(where, raw.GetResource()) {
			r.envoy(where, raw.GetResource(), &anypb.Any{})
		}
	}
	modifications := conf.field("modifications")
	for i, mod := range m.GetConf().GetModifications() {
		r.modification(modifications.at(i), mod)
	}
}

func (r *report) modification(at path, m *meshv1.ProxyTemplate_Modifications) {
	switch v := m.GetType().(type) {
	case nil:
		r.add(at, msgEmpty)
	case *meshv1.ProxyTemplate_Modifications_Cluster_:
		where := at.field("cluster")
		r.operation(where, v.Cluster, &clusterv3.Cluster{})
		r.check(v.Cluster.GetOperation() != opAdd || v.Cluster.GetMatch() == nil, where.field("match"), "cannot be defined")
	case *meshv1.ProxyTemplate_Modifications_Listener_:
		where := at.field("listener")
		r.operation(where, v.Listener, &listenerv3.Listener{})
		r.check(v.Listener.GetOperation() != opAdd || v.Listener.GetMatch() == nil, where.field("match"), "cannot be defined")
	case *meshv1.ProxyTemplate_Modifications_VirtualHost_:
		where := at.field("virtualHost")
		r.operation(where, v.VirtualHost, &routev3.VirtualHost{})
		r.check(v.VirtualHost.GetOperation() != opAdd || v.VirtualHost.GetMatch().GetName() == "", where.field("match.name"), "cannot be defined")
	case *meshv1.ProxyTemplate_Modifications_NetworkFilter_:
		where := at.field("networkFilter")
		r.filterOperation(where, v.NetworkFilter, v.NetworkFilter.GetMatch().GetName(), &listenerv3.Filter{})
	case *meshv1.ProxyTemplate_Modifications_HttpFilter_:
		where := at.field("httpFilter")
		r.filterOperation(where, v.HttpFilter, v.HttpFilter.GetMatch().GetName(), &hcmv3.HttpFilter{})
	}
}

const (
	opAdd    = "add"
	opPatch  = "patch"
	opRemove = "remove"
	opBefore = "addBefore"
	opAfter  = "addAfter"
)

var (
	operations       = []string{opAdd, opPatch, opRemove}
	filterOperations = []string{"addFirst", "addLast", opBefore, opAfter, opPatch, opRemove}
)

// modifier is what all kinds of modification have.
type modifier interface {
	GetOperation() string
	GetValue() string
}

func (r *report) operation(at path, m modifier, message proto.Message) {
	if r.check(slices.Contains(operations, m.GetOperation()), at.field("operation"),
		`invalid operation. Available operations: "add", "patch", "remove"`) && m.GetOperation() != opRemove {
		r.envoy(at.field("value"), m.GetValue(), message)
	}
}

func (r *report) filterOperation(at path, m modifier, name string, message proto.Message) {
	op := m.GetOperation()
	if !r.check(slices.Contains(filterOperations, op), at.field("operation"),
		`invalid operation. Available operations: "addFirst", "addLast", "addBefore", "addAfter", "patch", "remove"`) {
		return
	}
	if name == "" {
		switch where := at.field("match.name"); op {
		case opBefore:
			r.add(where, "cannot be empty. You need to pick a filter before which this one will be added")
		case opAfter:
			r.add(where, "cannot be empty. You need to pick a filter after which this one will be added")
		case opPatch:
			r.add(where, msgEmpty)
		}
	}
	if op != opRemove {
		r.envoy(at.field("value"), m.GetValue(), message)
	}
}
