package envoy

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"

	"github.com/meridian-mesh/meridian/api/gateway"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

// wanted is a destination of a host.
type wanted struct {
	host        *gateway.Host
	destination *gateway.Destination
}

func wants(h *gateway.Host, destinations []*gateway.Destination) []wanted {
	out := make([]wanted, len(destinations))
	for i, d := range destinations {
		out[i] = wanted{h, d}
	}
	return out
}

// backend is a cluster, its share, and the destination that it was first wanted for.
type backend struct {
	weighted
	destination *gateway.Destination
}

// backends are the clusters of destinations that get a share, each once, in the order of first use.
func (g *gatewayGenerator) backends(all []wanted) []backend {
	destinations := make([]*gateway.Destination, len(all))
	for i, w := range all {
		destinations[i] = w.destination
	}
	weights := gateway.Weights(destinations)
	var out []backend
	for i, w := range all {
		weight := uint64(weights[i])
		if weight == 0 {
			continue
		}
		c := g.dial(w.host, w.destination)
		if c == nil {
			continue
		}
		if i := slices.IndexFunc(out, func(b backend) bool { return b.cluster == c }); i >= 0 {
			out[i].weight += weight
			continue
		}
		out = append(out, backend{weighted{c, weight}, w.destination})
	}
	return out
}

// dial returns the cluster of a destination; nil, with a warning, when there can be none. Its settings are those of the policies of
// the destination, which follow from the tags of the host and its own.
func (g *gatewayGenerator) dial(h *gateway.Host, d *gateway.Destination) *cluster {
	tags := spelledNow(d.Tags)
	service := tags[serviceTag]
	if service == "" {
		g.warn("%s: a backend of host %s names no service", label(g.served.MeshGateway), h.Name)
		return nil
	}
	if m := tags[meshTag]; m != "" && m != g.mesh.Name {
		g.warn("%s: backend %s of host %s: services of other meshes cannot be reached", label(g.served.MeshGateway), service, h.Name)
		return nil
	}
	rest := without(tags, serviceTag, meshTag)
	name := gatewayClusterName(service, rest, h.Tags)
	c := g.clusters[name]
	if c == nil {
		c = &cluster{name: name, service: service, tags: rest}
		g.resolveEndpoints(c)
		c.timeouts = timeoutsOf(specOf[*meshv1.Timeout](d.Timeout), c.protocol)
		g.clusters[name] = c
		g.addCluster(originGateway, c, d.CircuitBreaker, d.HealthCheck)
	}
	return c
}

// weightedOf are the clusters of backends and their shares.
func weightedOf(to []backend) []weighted {
	out := make([]weighted, len(to))
	for i, b := range to {
		out[i] = b.weighted
	}
	return out
}

// gatewayClusterName tells parts of a service from each other, and what hosts with different policies make of one.
func gatewayClusterName(service string, part, host map[string]string) string {
	sum := sha256.Sum256([]byte(service + "\x00" + tagString(part) + "\x00" + tagString(host)))
	return service + "-" + hex.EncodeToString(sum[:8])
}
