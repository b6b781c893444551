package policy

import (
	"cmp"
	"iter"
	"maps"
	"slices"
	"strings"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// Set holds the policies of one mesh, decoded. It never changes; With makes another that shares all types that stay the
// same. All methods are safe for concurrent use.
type Set struct {
	mesh   string
	tables map[resource.Type]*table
	// routeAll is the route of a mesh without TrafficRoutes.
	routeAll *Policy
}

// table holds the policies of one type and finds those that may be for a service.
type table struct {
	policies []*Policy // sorted by order
	// exact are the targets that want one value of kuma.io/service, by that value; open are all others. Both are in the
	// order of the policies.
	exact map[string][]target
	open  []target
}

// target is one of the targets of a policy.
type target struct {
	at  int // of the policy in table.policies
	sel *selector
}

// order sorts policies by the name that their owners gave them, so that every plane has the same order.
func order(a, b *Policy) int {
	return cmp.Or(strings.Compare(a.display, b.display), strings.Compare(a.Name, b.Name))
}

func newTable(policies []*Policy) *table {
	t := &table{policies: policies, exact: make(map[string][]target)}
	for at, p := range policies {
		for i := range p.targets {
			sel := &p.targets[i]
			if sel.service != "" {
				t.exact[sel.service] = append(t.exact[sel.service], target{at, sel})
			} else {
				t.open = append(t.open, target{at, sel})
			}
		}
	}
	return t
}

// matching yields the targets that match tags, which are normalized, in no particular order.
func (t *table) matching(tags map[string]string) iter.Seq2[int, *selector] {
	return func(yield func(int, *selector) bool) {
		for _, list := range [...][]target{t.exact[tags[serviceTag]], t.open} {
			for _, c := range list {
				if c.sel.matches(tags) && !yield(c.at, c.sel) {
					return
				}
			}
		}
	}
}

// NewSet decodes the policies of a mesh. Records of other meshes, and of types that a Set does not hold, are passed over.
// What cannot be decoded is left out, and each such record is named by one of the errors, which are for the log.
func NewSet(mesh string, records iter.Seq[*store.Record]) (*Set, []error) {
	changes := make(map[resource.Type]map[string]*Policy)
	var errs []error
	for rec := range records {
		if err := note(changes, mesh, rec.Key, rec); err != nil {
			errs = append(errs, err)
		}
	}
	empty := &Set{mesh: mesh, routeAll: routeAll(mesh)}
	return empty.with(changes), errs
}

// With returns the set as it is after the changes, of which those that do not concern it are passed over. The cost is that
// of the types that change; without any the result is s itself. A record that cannot be decoded is left out, also when an
// earlier version of it was in s, and named by one of the errors.
func (s *Set) With(changes ...store.Change) (*Set, []error) {
	noted := make(map[resource.Type]map[string]*Policy)
	var errs []error
	for _, c := range changes {
		if err := note(noted, s.mesh, c.Key, c.Record); err != nil {
			errs = append(errs, err)
		}
	}
	if len(noted) == 0 {
		return s, errs
	}
	return s.with(noted), errs
}

// note adds what became of a key to changes: its policy, nil when there is none anymore.
func note(changes map[resource.Type]map[string]*Policy, mesh string, key store.Key, rec *store.Record) error {
	d, ok := resource.Lookup(resource.Type(key.Type))
	if !ok || !holds(d) || key.Mesh != mesh {
		return nil
	}
	var p *Policy
	var err error
	if rec != nil {
		p, err = decode(d, rec)
	}
	if changes[d.Name] == nil {
		changes[d.Name] = make(map[string]*Policy)
	}
	changes[d.Name][key.Name] = p
	return err
}

func (s *Set) with(changes map[resource.Type]map[string]*Policy) *Set {
	tables := make(map[resource.Type]*table, len(s.tables)+len(changes))
	maps.Copy(tables, s.tables)
	for typ, named := range changes {
		var kept []*Policy
		for _, p := range s.Of(typ) {
			if _, changed := named[p.Name]; !changed {
				kept = append(kept, p)
			}
		}
		for _, p := range named {
			if p != nil {
				kept = append(kept, p)
			}
		}
		slices.SortFunc(kept, order)
		tables[typ] = newTable(kept)
	}
	return &Set{mesh: s.mesh, tables: tables, routeAll: s.routeAll}
}

// Mesh is the name of the mesh.
func (s *Set) Mesh() string { return s.mesh }

// Of returns the policies of a type, sorted by the names their owners gave them. The slice is shared: read-only.
func (s *Set) Of(t resource.Type) []*Policy { return s.table(t).policies }

// Get returns a policy by its type and name.
func (s *Set) Get(t resource.Type, name string) (*Policy, bool) {
	for _, p := range s.Of(t) {
		if p.Name == name {
			return p, true
		}
	}
	return nil, false
}

func (s *Set) table(t resource.Type) *table {
	if table := s.tables[t]; table != nil {
		return table
	}
	return &table{}
}

// routeAll is how a mesh without any TrafficRoute behaves: each outbound leads to the service it names. Newer Kuma planes
// have no default route.
func routeAll(mesh string) *Policy {
	everything := func() []*meshv1.Selector {
		return []*meshv1.Selector{{Match: map[string]string{serviceTag: anyValue}}}
	}
	p := &Policy{Type: TrafficRoute, Mesh: mesh, Spec: &meshv1.TrafficRoute{
		Sources:      everything(),
		Destinations: everything(),
		Conf: &meshv1.TrafficRoute_Conf{
			Destination: map[string]string{serviceTag: anyValue},
			LoadBalancer: &meshv1.TrafficRoute_LoadBalancer{
				LbType: &meshv1.TrafficRoute_LoadBalancer_RoundRobin_{RoundRobin: &meshv1.TrafficRoute_LoadBalancer_RoundRobin{}},
			},
		},
	}}
	p.compile()
	return p
}

// Only returns a set with the policies of some types alone. It costs as much as there are types.
func (s *Set) Only(types ...resource.Type) *Set {
	tables := make(map[resource.Type]*table, len(types))
	for _, t := range types {
		if table := s.tables[t]; table != nil {
			tables[t] = table
		}
	}
	return &Set{mesh: s.mesh, tables: tables, routeAll: s.routeAll}
}
