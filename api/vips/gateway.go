package vips

import (
	"maps"
	"strings"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

// GatewayNames returns the names under which the listeners of a gateway that other meshes may use are known: each by its own
// host name, or by one that says which gateway it is. mesh is the gateway's own. The names belong into the tables of all
// meshes.
func GatewayNames(mesh, name string, gateway *meshv1.MeshGateway, domain string) []Name {
	var all []Name
	for _, l := range gateway.GetConf().GetListeners() {
		if !l.GetCrossMesh() {
			continue
		}
		host := l.GetHostname()
		if host == "" || strings.Contains(host, "*") {
			host = "internal." + name + "." + mesh + "." + domain
		}
		for _, s := range gateway.GetSelectors() {
			tags := make(map[string]string)
			maps.Copy(tags, gateway.GetTags())
			maps.Copy(tags, l.GetTags())
			tags["kuma.io/mesh"] = mesh
			maps.Copy(tags, s.GetMatch())
			all = append(all, Name{Host: host, Port: l.GetPort(), Tags: tags, Origin: "mesh-gateway:" + mesh + ":" + name})
		}
	}
	return all
}
