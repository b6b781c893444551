package vips

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/meridian-mesh/meridian/api/dataplane"
	"github.com/meridian-mesh/meridian/api/hosttemplate"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

// ErrExhausted says that the range of addresses is used up.
var ErrExhausted = errors.New("no virtual address is left")

// Config is the section dns of a zone's configuration.
type Config struct {
	Domain         string `yaml:"domain" env:"MERIDIAN_DNS_DOMAIN" doc:"domain of the services' host names"`
	CIDR           string `yaml:"cidr" env:"MERIDIAN_DNS_CIDR" doc:"range of the virtual addresses that host names resolve to"`
	ServiceVIPPort uint32 `yaml:"serviceVipPort" env:"MERIDIAN_DNS_SERVICE_VIP_PORT" doc:"port at which services can be reached at their virtual addresses, 1-65535"`
}

// DefaultConfig returns the documented defaults.
func DefaultConfig() Config { return Config{Domain: "mesh", CIDR: "240.0.0.0/4", ServiceVIPPort: 80} }

// Validate returns every problem of c, each starting with the field's name in the file.
func (c Config) Validate() []error {
	var errs []error
	if !isHostname(c.Domain) {
		errs = append(errs, fmt.Errorf("domain: %q is not the name of a domain", c.Domain))
	}
	if _, err := netip.ParsePrefix(c.CIDR); err != nil {
		errs = append(errs, fmt.Errorf("cidr: %q is not a range of addresses, such as 240.0.0.0/4", c.CIDR))
	}
	if c.ServiceVIPPort < 1 || c.ServiceVIPPort > 65535 {
		errs = append(errs, fmt.Errorf("serviceVipPort: %d is not in 1-65535", c.ServiceVIPPort))
	}
	return errs
}

// Input is what virtual addresses are made for. Nothing of it is changed.
type Input struct {
	Config
	// Services are the tags of what can be reached in the mesh: of the inbounds of this zone, as [TagSets] gives them, and of
	// what other zones offer. They may repeat.
	Services []map[string]string
	// ExternalServices and VirtualOutbounds of the mesh, by name.
	ExternalServices map[string]*meshv1.ExternalService
	VirtualOutbounds map[string]*meshv1.VirtualOutbound
	// Names are further ones, such as those of gateways that other meshes may use.
	Names []Name
	// Keep has what the previous table has and nothing asks for stay as it is: for who may not know yet of all that asks.
	Keep bool
}

// Name is a host name and port, and where it leads.
type Name struct {
	Host   string
	Port   uint32
	Tags   map[string]string
	Origin string
}

// noPort is the port of inbounds that stand for a workload which listens to nothing.
const noPort = 49151

// TagSets returns the tags of the inbounds of a proxy that can be reached.
func TagSets(dp *meshv1.Dataplane) []map[string]string {
	var sets []map[string]string
	for _, in := range dp.GetNetworking().GetInbound() {
		if in.GetPort() != noPort {
			sets = append(sets, in.GetTags())
		}
	}
	return sets
}

// maxProblems bounds what is told of in one go.
const maxProblems = 100

// Compute returns the table of a mesh. It depends on nothing but its arguments, and not on the order of anything in them.
//
// An entry of prev that lives keeps its address, as long as that is in the range and nobody else's. New ones get the lowest
// free addresses. A host that is an address is its own.
//
// The table can be used whatever the problems are: they tell what is not in it, and why. A name that exists already gets the
// further ports that are wanted of it; a port that leads elsewhere already is not given again, so that no new policy takes a
// name away from what had it: services come first, then external services, then virtual outbounds, each by name. An entry
// for which there is no address is left out, with an error that is [ErrExhausted].
func Compute(prev Table, in Input) (Table, []error) {
	c := computation{in: in, names: make(names), table: make(map[Entry]map[uint32]Outbound)}
	c.services()
	c.hosts()
	c.virtualOutbounds()
	for _, n := range slices.SortedFunc(slices.Values(in.Names), compareNames) {
		c.name(FQDN, n.Host, Outbound{n.Port, n.Tags, n.Origin})
	}
	if in.Keep {
		c.keep(prev)
	}
	t := c.allocate(prev)
	if more := len(c.problems) - maxProblems; more > 0 {
		c.problems = append(c.problems[:maxProblems], fmt.Errorf("%d more problems", more))
	}
	return t, c.problems
}

type computation struct {
	in       Input
	names    names
	table    map[Entry]map[uint32]Outbound // by the port that it is in effect
	problems []error
}

func (c *computation) problem(format string, args ...any) {
	c.problems = append(c.problems, fmt.Errorf(format, args...))
}

// services adds the entries of services, external ones included.
func (c *computation) services() {
	ports := make(map[string][]uint32)
	for _, tags := range c.in.Services {
		if s := dataplane.Service(tags); s != "" && ports[s] == nil {
			ports[s] = []uint32{0}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(c.in.ExternalServices)) {
		es := c.in.ExternalServices[name]
		s := dataplane.Service(es.GetTags())
		if s == "" {
			continue
		}
		if ports[s] == nil {
			ports[s] = []uint32{0}
		}
		if _, port, err := hostPort(es); err == nil {
			ports[s] = append(ports[s], port)
		}
	}
	var entries []Entry
	for _, s := range slices.Sorted(maps.Keys(ports)) {
		e := Entry{Service, s}
		entries = append(entries, e)
		c.table[e] = make(map[uint32]Outbound)
		for _, port := range ports[s] {
			c.add(e, Outbound{port, map[string]string{dataplane.ServiceTag: s}, "service"})
		}
	}
	c.problems = append(c.problems, c.names.services(entries, c.in.Domain)...)
}

// hosts adds the entries of the hosts of external services.
func (c *computation) hosts() {
	for _, name := range slices.Sorted(maps.Keys(c.in.ExternalServices)) {
		es := c.in.ExternalServices[name]
		if es.GetNetworking().GetDisableHostDNSEntry() {
			continue
		}
		s := dataplane.Service(es.GetTags())
		host, port, err := hostPort(es)
		if err != nil || s == "" {
			c.problem("external service %q has no host name: its address or its service is not valid", name)
			continue
		}
		c.name(Host, host, Outbound{port, map[string]string{dataplane.ServiceTag: s}, "external-service:" + name})
	}
}

func hostPort(es *meshv1.ExternalService) (string, uint32, error) {
	host, text, err := net.SplitHostPort(es.GetNetworking().GetAddress())
	if err != nil {
		return "", 0, err
	}
	port, err := strconv.ParseUint(text, 10, 16)
	return host, uint32(port), err
}

// name adds a port to the entry that has a host name, which is one of the kind unless the name exists already.
func (c *computation) name(kind Kind, host string, o Outbound) {
	e := Entry{kind, strings.TrimSuffix(host, ".")}
	switch addr, err := netip.ParseAddr(host); {
	case err == nil:
		if addr.Zone() != "" || addr.IsUnspecified() || addr.IsMulticast() {
			c.problem("%s: %s cannot be reached", o.Origin, host)
			return
		}
		e.Name = addr.Unmap().String() // one address, one name
	case !isHostname(host):
		c.problem("%s: %.300q is not a host name", o.Origin, host)
		return
	}
	if o.Port < 1 || o.Port > 65535 {
		c.problem("%s: %d is not a port", o.Origin, o.Port)
		return
	}
	e, _ = c.names.claim(e.Name, e)
	if c.table[e] == nil {
		c.table[e] = make(map[uint32]Outbound)
	}
	c.add(e, o)
}

// add adds a port to an entry, unless it has it.
func (c *computation) add(e Entry, o Outbound) {
	port := cmp.Or(o.Port, c.in.ServiceVIPPort)
	if had, ok := c.table[e][port]; !ok {
		c.table[e][port] = o
	} else if !maps.Equal(had.TagSet, o.TagSet) {
		c.problem("%s: port %d of %s leads elsewhere already, because of %s", o.Origin, port, e, had.Origin)
	}
}

// virtualOutbounds adds what virtual outbounds make of the tags that they select.
func (c *computation) virtualOutbounds() {
	if len(c.in.VirtualOutbounds) == 0 {
		return
	}
	sets := make(map[string]map[string]string)
	for _, tags := range c.in.Services {
		sets[textOf(tags)] = tags
	}
	for _, es := range c.in.ExternalServices {
		sets[textOf(es.GetTags())] = es.GetTags()
	}
	order := slices.Sorted(maps.Keys(sets))
	for _, name := range slices.Sorted(maps.Keys(c.in.VirtualOutbounds)) {
		vo := c.in.VirtualOutbounds[name]
		r, err := rendererOf(vo)
		if err != nil {
			c.problem("virtual outbound %q: %w", name, err)
			continue
		}
		for _, text := range order {
			tags := withService(sets[text])
			if !selects(vo, tags) {
				continue
			}
			host, port, used, err := r.render(tags)
			if err != nil {
				c.problem("virtual outbound %q, for the tags %s: %w", name, text, err)
				continue
			}
			c.name(FQDN, host, Outbound{port, used, "virtual-outbound:" + name})
		}
	}
}

// textOf is a set of tags as text.
func textOf(tags map[string]string) string {
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(tags)) {
		_, _ = fmt.Fprintf(&b, "%s=%s ", k, tags[k])
	}
	return strings.TrimSuffix(b.String(), " ")
}

// withService returns the tags with the service under the tag's name of today.
func withService(tags map[string]string) map[string]string {
	s := dataplane.Service(tags)
	if s == "" || s == tags[dataplane.ServiceTag] {
		return tags
	}
	tags = maps.Clone(tags)
	tags[dataplane.ServiceTag] = s
	return tags
}

// selects reports whether a virtual outbound is for what has the tags.
func selects(vo *meshv1.VirtualOutbound, tags map[string]string) bool {
	return slices.ContainsFunc(vo.GetSelectors(), func(s *meshv1.Selector) bool {
		for key, want := range s.GetMatch() {
			value, ok := tags[key]
			if !ok {
				switch key { // older spellings
				case "service":
					value, ok = tags[dataplane.ServiceTag]
				case "protocol":
					value, ok = tags["kuma.io/protocol"]
				}
			}
			if !ok || want != "*" && want != value {
				return false
			}
		}
		return true
	})
}

// renderer makes host and port of a virtual outbound.
type renderer struct {
	host, port *hosttemplate.Template
	tags       map[string]string // by the name of the parameter
}

func rendererOf(vo *meshv1.VirtualOutbound) (renderer, error) {
	host, err := hosttemplate.Parse(vo.GetConf().GetHost())
	if err != nil {
		return renderer{}, fmt.Errorf("read conf.host: %w", err)
	}
	port, err := hosttemplate.Parse(vo.GetConf().GetPort())
	if err != nil {
		return renderer{}, fmt.Errorf("read conf.port: %w", err)
	}
	r := renderer{host, port, make(map[string]string)}
	for _, p := range vo.GetConf().GetParameters() {
		r.tags[p.GetName()] = cmp.Or(p.GetTagKey(), p.GetName())
	}
	return r, nil
}

// render returns what the templates give for the tags, and those tags that they may use: the destination's.
func (r renderer) render(tags map[string]string) (host string, port uint32, used map[string]string, err error) {
	values := make(map[string]string, len(r.tags))
	used = make(map[string]string, len(r.tags))
	for name, key := range r.tags {
		if value, ok := tags[key]; ok {
			values[name], used[key] = value, value
		}
	}
	if used[dataplane.ServiceTag] == "" {
		return "", 0, nil, fmt.Errorf("there is no parameter with the tag %s", dataplane.ServiceTag)
	}
	if host, err = r.host.Render(values); err != nil {
		return "", 0, nil, fmt.Errorf("evaluate conf.host: %w", err)
	}
	text, err := r.port.Render(values)
	if err != nil {
		return "", 0, nil, fmt.Errorf("evaluate conf.port: %w", err)
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return "", 0, nil, fmt.Errorf("conf.port gives %.100q, which is not a port", text)
	}
	return host, uint32(n), used, nil
}

// keep adds the entries and ports of a table that nothing asks for.
func (c *computation) keep(prev Table) {
	for e, a := range prev {
		if c.table[e] == nil {
			c.table[e] = make(map[uint32]Outbound)
		}
		for _, o := range a.Outbounds {
			if port := cmp.Or(o.Port, c.in.ServiceVIPPort); c.table[e][port].TagSet == nil {
				c.table[e][port] = o
			}
		}
	}
}

// allocate gives every entry an address.
func (c *computation) allocate(prev Table) Table {
	t := make(Table, len(c.table))
	prefix, err := netip.ParsePrefix(c.in.CIDR)
	if err != nil {
		c.problem("the range of virtual addresses: %w", err)
		return t
	}
	prefix = prefix.Masked()
	used := make(map[netip.Addr]bool, len(c.table))
	entries := slices.SortedFunc(maps.Keys(c.table), Entry.compare)
	take := func(e Entry, addr netip.Addr) {
		used[addr] = true
		a := Address{Address: addr}
		for _, port := range slices.Sorted(maps.Keys(c.table[e])) {
			a.Outbounds = append(a.Outbounds, c.table[e][port])
		}
		t[e] = a
	}
	for _, e := range entries {
		if addr, err := netip.ParseAddr(e.Name); e.Kind != Service && err == nil {
			take(e, addr)
		}
	}
	for _, e := range entries {
		if addr := prev[e].Address; t[e].Address == (netip.Addr{}) && prefix.Contains(addr) && !used[addr] {
			take(e, addr)
		}
	}
	next, left := prefix.Addr(), 0
	for _, e := range entries {
		if t[e].Address != (netip.Addr{}) {
			continue
		}
		for used[next] {
			next = next.Next()
		}
		if !prefix.Contains(next) { // also when there is no next one
			left++
			continue
		}
		take(e, next)
	}
	if left > 0 {
		// The first of all, not to be cut off.
		c.problems = slices.Insert(c.problems, 0, fmt.Errorf("%w in %s for %d names", ErrExhausted, prefix, left))
	}
	return t
}

func compareNames(a, b Name) int {
	return cmp.Or(strings.Compare(a.Host, b.Host), cmp.Compare(a.Port, b.Port), strings.Compare(a.Origin, b.Origin),
		strings.Compare(textOf(a.Tags), textOf(b.Tags)))
}

// hostname is what DNS could hold. Underscores are allowed: names of services have them.
var hostname = regexp.MustCompile(`^([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.?$`)

func isHostname(s string) bool { return len(s) <= 253 && hostname.MatchString(s) }
