package resource

import (
	"strings"

	"github.com/meridian-mesh/meridian/common/store"
)

// DisplayNameLabel is where a peer puts the name that a resource has for its owner when the name on the wire is another.
const DisplayNameLabel = "kuma.io/display-name"

// DisplayName is the name a record has for its owner.
func DisplayName(rec *store.Record) string {
	if name := rec.Labels[DisplayNameLabel]; name != "" {
		return name
	}
	if rec.Origin != "" {
		if name, ok := strings.CutPrefix(rec.Key.Name, rec.Origin+"."); ok {
			return name
		}
	}
	return rec.Key.Name
}
