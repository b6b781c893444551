package envoy

import (
	"fmt"

	runtimev3 "github.com/envoyproxy/go-control-plane/envoy/service/runtime/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/meridian-mesh/meridian/api/gateway"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/zone/topology"
	"github.com/meridian-mesh/meridian/zone/xds"
)

// gatewayRuntime is the layer of Envoy's runtime that the bootstrap of a builtin gateway asks for.
const gatewayRuntime = "gateway.listeners"

// Gateway makes the configuration of a builtin gateway: what api/gateway says that it serves. admin may be nil, as in [Sidecar], with
// which it shares what is said of errors and warnings.
//
// The routes of its listeners come apart from them (RDS), and certificates by name (SDS): [ServerSecret] finds what is behind a name.
// A host whose certificate cannot be used is not served.
func Gateway(mesh *topology.Mesh, p *Proxy, admin *Admin) (*Output, error) {
	g := &gatewayGenerator{
		generator: newGenerator(mesh, p, func(*generator) []*outbound { return nil }),
		served:    gateway.Of(mesh.Policies, p.Dataplane), certificates: make(map[*systemv1.DataSource]certificateName),
	}
	for _, w := range g.served.Warnings {
		g.warn("%s", w)
	}
	if g.served.MeshGateway == nil {
		g.warn("no MeshGateway selects the proxy, which is a builtin gateway: it serves nothing")
	}
	g.listeners()
	g.beside(admin)
	out, err := g.finish()
	if err != nil {
		return nil, fmt.Errorf("configuration of gateway %s in mesh %s: %w", p.Name, mesh.Name, err)
	}
	return out, nil
}

// gatewayGenerator makes the configuration of one builtin gateway.
type gatewayGenerator struct {
	*generator
	served       *gateway.Gateway
	certificates map[*systemv1.DataSource]certificateName // those that were looked at
}

// builtin reports whether the proxy is configured by a MeshGateway.
func (g *generator) builtin() bool {
	return g.dp.GetNetworking().GetGateway().GetType() == meshv1.Dataplane_Networking_Gateway_BUILTIN
}

// listeners makes all listeners, what they lead to, and the runtime with their limits, which Envoy waits for even if there are none.
func (g *gatewayGenerator) listeners() {
	limits := make(map[string]*structpb.Value)
	for _, l := range g.served.Listeners {
		if used := g.usedFor(g.dp.GetNetworking().GetAddress(), l.Port); used != "" {
			g.warn("%s: port %d is not served: it is that of %s", label(g.served.MeshGateway), l.Port, used)
			continue
		}
		g.ports = append(g.ports, l.Port)
		name := g.listenerName(l)
		g.listener(name, l)
		if l.ConnectionLimit > 0 {
			limits["envoy.resource_limits.listener."+name+".connection_limit"] = structpb.NewNumberValue(float64(l.ConnectionLimit))
		}
		if g.p.err != nil {
			g.p.err = fmt.Errorf("%s: listener on port %d: %w", label(g.served.MeshGateway), l.Port, g.p.err)
			return
		}
	}
	g.add(originGateway, xds.Runtime, gatewayRuntime, &runtimev3.Runtime{Name: gatewayRuntime, Layer: &structpb.Struct{Fields: limits}})
}

// listenerName is the name of a listener and of its routes.
func (g *gatewayGenerator) listenerName(l *gateway.Listener) string {
	return fmt.Sprintf("%s:%s:%d", g.served.MeshGateway.Name, l.Protocol, l.Port)
}
