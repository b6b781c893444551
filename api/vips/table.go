// Package vips gives the services of a mesh virtual addresses: proxies that catch all traffic of their workload answer its
// DNS queries with them, and know by them where a connection is to go.
//
// A name keeps its address for as long as it lives, whatever comes and goes beside it, since workloads hold on to what they
// have resolved. Each zone has addresses of its own, and so has each mesh; the table of a mesh is kept in a Config of the zone.
package vips

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/meridian-mesh/meridian/api/dataplane"
)

// Kind says where a name comes from.
type Kind uint8

// The kinds. Of two names that are the same the one of the earlier kind has the address, and the ports of both.
const (
	Service Kind = iota // the name of a service, without the domain
	Host                // the host of an external service
	FQDN                // what a virtual outbound, or a gateway, makes
	kinds
)

// Entry is a name that has an address.
type Entry struct {
	Kind Kind
	Name string
}

// String is the entry in messages.
func (e Entry) String() string { return [...]string{"service", "host", "name"}[e.Kind] + " " + e.Name }

// MarshalText writes the key of an entry in a Config.
func (e Entry) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%d:%s", e.Kind, e.Name), nil }

// UnmarshalText reads the key of an entry in a Config. Old ones are names of services alone.
func (e *Entry) UnmarshalText(text []byte) error {
	s := string(text)
	*e = Entry{Service, s}
	if kind, name, ok := strings.Cut(s, ":"); ok && len(kind) == 1 && kind[0] >= '0' && kind[0] < '0'+byte(kinds) {
		*e = Entry{Kind(kind[0] - '0'), name}
	}
	if e.Name == "" {
		return fmt.Errorf("%q names nothing", s)
	}
	return nil
}

func (e Entry) compare(o Entry) int {
	return cmp.Or(cmp.Compare(e.Kind, o.Kind), strings.Compare(e.Name, o.Name))
}

// Outbound is a port of an address.
type Outbound struct {
	// Port is 0 for the one that all services have, which a control plane's configuration says.
	Port uint32
	// TagSet are the tags of the destination, kuma.io/service among them.
	TagSet map[string]string
	// Origin is what it is there for: service, external-service:NAME, virtual-outbound:NAME.
	Origin string
}

// Address is what an entry has.
type Address struct {
	Address   netip.Addr `json:"address"`
	Outbounds []Outbound `json:"outbounds,omitempty"`
}

// UnmarshalJSON reads an address, also an old one, which has nothing beside it.
func (a *Address) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		*a = Address{}
		return json.Unmarshal(b, &a.Address)
	}
	type plain Address
	return json.Unmarshal(b, (*plain)(a))
}

// Table is the addresses of a mesh.
type Table map[Entry]Address

const configPrefix, configSuffix = "kuma-", "-dns-vips"

// ConfigName is the name of the Config with the table of a mesh. It belongs to the zone and does not travel.
func ConfigName(mesh string) string { return configPrefix + mesh + configSuffix }

// ConfigMesh returns the mesh whose table a Config is, if it is one.
func ConfigMesh(name string) (string, bool) {
	mesh, prefixed := strings.CutPrefix(name, configPrefix)
	mesh, suffixed := strings.CutSuffix(mesh, configSuffix)
	return mesh, prefixed && suffixed && mesh != ""
}

// Parse reads a table from a Config. An empty text is an empty table.
func Parse(text string) (Table, error) {
	t := make(Table)
	if text == "" {
		return t, nil
	}
	if err := json.Unmarshal([]byte(text), &t); err != nil {
		return nil, fmt.Errorf("read virtual addresses: %w", err)
	}
	return t, nil
}

// Encode writes a table as [Parse] reads it. Equal tables give equal texts.
func (t Table) Encode() (string, error) {
	b, err := json.Marshal(t)
	if err != nil {
		return "", fmt.Errorf("encode virtual addresses: %w", err)
	}
	return string(b), nil
}

// entries returns the entries in their order.
func (t Table) entries() []Entry { return slices.SortedFunc(maps.Keys(t), Entry.compare) }

// VIPs returns the table as proxies are configured from it, sorted by address. domain and port are the ones it was computed
// with.
func (t Table) VIPs(domain string, port uint32) []dataplane.VIP {
	entries := t.entries()
	names := make(names)
	services := 0
	for services < len(entries) && entries[services].Kind == Service {
		services++
	}
	names.services(entries[:services], domain)
	for _, e := range entries[services:] {
		names.claim(e.Name, e)
	}
	byAddress := slices.Clone(entries)
	slices.SortStableFunc(byAddress, func(a, b Entry) int { return t[a].Address.Compare(t[b].Address) })
	vips := make([]dataplane.VIP, 0, len(t))
	for _, e := range byAddress {
		vip := dataplane.VIP{Address: t[e].Address.String(), Hostnames: names.of(e, domain)}
		for _, o := range t[e].Outbounds {
			vip.Outbounds = append(vip.Outbounds, dataplane.VIPOutbound{Port: cmp.Or(o.Port, port), Tags: o.TagSet})
		}
		slices.SortFunc(vip.Outbounds, func(a, b dataplane.VIPOutbound) int { return cmp.Compare(a.Port, b.Port) })
		vips = append(vips, vip)
	}
	return vips
}

// Hostnames returns the names that an entry would have if it were alone: of a service two, where its name has an underscore,
// which host names of some programs must not.
func (e Entry) Hostnames(domain string) []string {
	if e.Kind != Service {
		if _, err := netip.ParseAddr(e.Name); err == nil {
			return nil
		}
		return []string{e.Name}
	}
	name := e.Name + "." + domain
	if !isHostname(name) {
		return nil // what a tag may hold is more
	}
	if dotted := strings.ReplaceAll(e.Name, "_", ".") + "." + domain; dotted != name && isHostname(dotted) {
		return []string{name, dotted}
	}
	return []string{name}
}

// names says which entry has a name. Names that differ in their case are the same.
type names map[string]Entry

// claim returns the entry that has a name, which is e unless another one had it before.
func (n names) claim(name string, e Entry) (Entry, bool) {
	name = canonical(name)
	if owner, ok := n[name]; ok {
		return owner, owner == e
	}
	n[name] = e
	return e, true
}

// services gives services their names: first those that they are known by, then the second ones that are free. It tells of
// those that are not.
func (n names) services(entries []Entry, domain string) (taken []error) {
	for second := range 2 {
		for _, e := range entries {
			if names := e.Hostnames(domain); len(names) > second {
				if owner, ok := n.claim(names[second], e); !ok {
					taken = append(taken, fmt.Errorf("%s has not the host name %s: that belongs to %s", e, names[second], owner))
				}
			}
		}
	}
	return taken
}

// of returns the names that an entry has.
func (n names) of(e Entry, domain string) []string {
	return slices.DeleteFunc(e.Hostnames(domain), func(name string) bool {
		return n[canonical(name)] != e
	})
}

func canonical(name string) string { return strings.TrimSuffix(strings.ToLower(name), ".") }
