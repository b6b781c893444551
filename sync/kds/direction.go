package kds

import "github.com/meridian-mesh/meridian/api/resource"

// Direction is which way resources travel on a stream.
type Direction uint8

const (
	// Down is from the global to a zone (GlobalToZoneSync).
	Down Direction = iota
	// Up is from a zone to the global (ZoneToGlobalSync).
	Up
)

// String names the direction as it stands in logs and metric labels.
func (d Direction) String() string {
	if d == Up {
		return "zone_to_global"
	}
	return "global_to_zone"
}

// GlobalIdentifier is the control plane identifier of every global, and the origin of what a zone received from it.
const GlobalIdentifier = "global"

// Types returns the rows of the registry that travel in direction d, in the registry's order.
func (d Direction) Types() []*resource.Descriptor {
	var out []*resource.Descriptor
	all := resource.All()
	for i := range all {
		if d.carries(&all[i]) {
			out = append(out, &all[i])
		}
	}
	return out
}

func (d Direction) carries(desc *resource.Descriptor) bool {
	switch desc.Flow {
	case resource.FlowBoth:
		return true
	case resource.FlowToZones:
		return d == Down
	case resource.FlowToGlobal:
		return d == Up
	case resource.FlowNone:
	}
	return false
}
