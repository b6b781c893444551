package admin

import (
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"

	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/server"
	"github.com/meridian-mesh/meridian/common/store"
)

// labelNamespace is where a zone on Kubernetes puts the namespace of a resource.
const labelNamespace = "k8s.kuma.io/namespace"

// locate finds which zone a proxy is of, and what it is called there (KDS contract §13). The record says; where it does not, because
// the resource did not come from a zone, the name here does: <zone>.<name>.
func (r *Registry) locate(q server.ProxyQuestion) (zone, name string, err error) {
	rec, ok := r.o.Store.Snapshot().Get(store.Key{Type: string(q.Type), Mesh: q.Mesh, Name: q.Name})
	if !ok {
		return "", "", fail(server.AskNotFound, "%s %q is not there any more", q.Type, q.Name)
	}
	if rec.Origin == "" {
		if zone, name, ok = strings.Cut(q.Name, "."); !ok {
			return "", "", fail(server.AskInvalid, "%s %q is of no zone: nobody can be asked", q.Type, q.Name)
		}
		return zone, name, nil
	}
	name = resource.DisplayName(rec)
	if ns := rec.Labels[labelNamespace]; ns != "" && rec.Labels[resource.DisplayNameLabel] != "" && r.onKubernetes(rec.Origin) {
		name += "." + ns
	}
	return rec.Origin, name, nil
}

// onKubernetes reports whether a zone keeps its resources there, by the configuration that it has sent last.
func (r *Registry) onKubernetes(zone string) bool {
	insight, ok := r.o.Zones.Insight(zone)
	if !ok { // its session is with another replica, or over
		rec, stored := r.o.Store.Snapshot().Get(store.Key{Type: string(resource.ZoneInsight), Name: zone})
		if insight = new(systemv1.ZoneInsight); !stored || proto.Unmarshal(rec.Spec, insight) != nil {
			return false
		}
	}
	for _, sub := range slices.Backward(insight.GetSubscriptions()) {
		text := sub.GetConfig()
		if text == "" {
			continue
		}
		var config struct {
			Store struct {
				Type string `yaml:"type"`
			} `yaml:"store"`
		}
		return yaml.Unmarshal([]byte(text), &config) == nil && config.Store.Type == "kubernetes" // JSON is YAML
	}
	return false
}
