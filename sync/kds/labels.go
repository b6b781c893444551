package kds

import (
	"maps"
	"strings"
	"time"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// Labels with a meaning on the wire (KDS contract §9). Origin and zone are derived from the record's owner when it is
// sent and taken off when it is received; the owner is Record.Origin, whatever a label says.
const (
	labelOrigin      = "kuma.io/origin"
	labelZone        = "kuma.io/zone"
	labelDisplayName = resource.DisplayNameLabel
	labelSync        = "kuma.io/kds-sync"
	labelNamespace   = "k8s.kuma.io/namespace"

	// labelTimes carries creation and modification time between Meridian planes, as "<created>,<modified>"; it never
	// reaches a store or a Kuma peer.
	labelTimes = "meridian.io/times"

	originGlobal = "global"
	originZone   = "zone"
)

// outLabels are the labels of rec as they go out in direction dir; zone is the sending zone's name on the way up.
func outLabels(dir Direction, zone string, rec *store.Record) map[string]string {
	out := make(map[string]string, len(rec.Labels)+3)
	maps.Copy(out, rec.Labels)
	delete(out, labelTimes)
	delete(out, labelZone)
	if dir == Up {
		out[labelOrigin], out[labelZone] = originZone, zone
		return out
	}
	out[labelOrigin] = originGlobal
	if rec.Origin != "" {
		out[labelZone] = rec.Origin
	}
	return out
}

func formatTimes(created, modified time.Time) string {
	return created.UTC().Format(time.RFC3339Nano) + "," + modified.UTC().Format(time.RFC3339Nano)
}

// parseTimes reads what formatTimes wrote; anything else is no times at all.
func parseTimes(s string) (created, modified time.Time) {
	a, b, ok := strings.Cut(s, ",")
	if !ok {
		return time.Time{}, time.Time{}
	}
	created, err := time.Parse(time.RFC3339Nano, a)
	if err != nil {
		return time.Time{}, time.Time{}
	}
	modified, err = time.Parse(time.RFC3339Nano, b)
	if err != nil {
		return time.Time{}, time.Time{}
	}
	return created.UTC(), modified.UTC()
}

// inLabels are the labels of a received resource as they are stored, and its times where the peer sent them.
func inLabels(in map[string]string) (labels map[string]string, created, modified time.Time) {
	created, modified = parseTimes(in[labelTimes])
	for k, v := range in {
		switch k {
		case labelOrigin, labelZone, labelTimes:
			continue
		}
		if labels == nil {
			labels = make(map[string]string, len(in))
		}
		labels[k] = v
	}
	return labels, created, modified
}

// wireKey is a resource's key in a response: "<name>.<mesh>", with a trailing dot outside meshes.
func wireKey(name, mesh string) string { return name + "." + mesh }

// splitWireKey undoes wireKey at the last dot. A key without any dot is a name outside meshes.
func splitWireKey(key string) (name, mesh string) {
	i := strings.LastIndexByte(key, '.')
	if i < 0 {
		return key, ""
	}
	return key[:i], key[i+1:]
}

func storeKey(d *resource.Descriptor, mesh, name string) store.Key {
	return store.Key{Type: string(d.Name), Mesh: mesh, Name: name}
}
