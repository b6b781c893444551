package inspect

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/meridian-mesh/meridian/api/dataplane"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/api/resource"
)

// RuleKind says whom a rule is about.
type RuleKind string

// The kinds.
const (
	ForClients      RuleKind = "clientSubset"      // some clients of an inbound
	ForDestinations RuleKind = "destinationSubset" // where an outbound leads
	ForProxy        RuleKind = "singleItem"        // the proxy as a whole
)

// Rule is what targetRef policies of one type say together of one part of a proxy.
type Rule struct {
	Type RuleKind
	// Name is address:port of an inbound or outbound, "dataplane" for the proxy as a whole, whose Service is empty, and
	// policy.PassThrough for all traffic through a builtin gateway.
	Name, Service string
	PolicyType    resource.Type
	// Subset are the tags of the clients or of the destination; a value that is not had begins with an exclamation mark.
	Subset map[string]string
	// Conf is the merged configuration.
	Conf json.RawMessage
	// Origins are the policies it is merged from, sorted by name.
	Origins []*policy.Policy
}

// Rules returns the rules that targetRef policies make for a proxy, sorted by name, type and type of policy; for one inbound and
// policy type in the order in which they are to be tried. An error says which policies cannot be made into rules, and comes
// with no rules.
func Rules(mesh *meshv1.Mesh, set *policy.Set, p *Proxy) ([]Rule, error) {
	types := []resource.Type{policy.MeshAccessLog, policy.MeshTrace, policy.MeshTrafficPermission}
	v := viewOf(mesh, set.Only(append(types, policy.MeshGateway)...), p)
	var c ruleCollector
	for _, a := range [...]struct {
		of       resource.Type
		attached policy.Attached
	}{
		{policy.MeshAccessLog, v.matched.AccessLog}, {policy.MeshTrace, v.matched.Trace}, {policy.MeshTrafficPermission, v.matched.Permission},
	} {
		c.of = a.of
		if a.attached.Single != nil {
			c.add(ForProxy, string(AtDataplane), "", a.attached.Single)
		}
		if p.IsBuiltinGateway() {
			c.everything(a.attached)
		} else {
			c.clients(v.inbounds, a.attached)
			c.destinations(v.outbounds, a.attached)
		}
	}
	if c.err != nil {
		return nil, c.err
	}
	slices.SortStableFunc(c.rules, func(a, b Rule) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), strings.Compare(string(a.Type), string(b.Type)),
			strings.Compare(string(a.PolicyType), string(b.PolicyType)))
	})
	return c.rules, nil
}

type ruleCollector struct {
	of    resource.Type
	rules []Rule
	err   error
}

func (c *ruleCollector) fail(err error) {
	if c.err == nil && err != nil {
		c.err = fmt.Errorf("rules of %s: %w", c.of, err)
	}
}

func (c *ruleCollector) clients(inbounds []dataplane.Inbound, a policy.Attached) {
	for i, from := range a.From {
		in := inbounds[i]
		if !in.Serves() {
			continue
		}
		c.fail(from.Err)
		for _, rule := range from.Rules {
			c.add(ForClients, dataplane.HostPort(in.Address, in.Port), in.Tags[dataplane.ServiceTag], rule)
		}
	}
}

func (c *ruleCollector) destinations(outbounds []dataplane.Outbound, a policy.Attached) {
	c.fail(a.ToErr)
	for _, out := range outbounds {
		if rule := a.To.Compute(out.Tags); rule != nil {
			c.add(ForDestinations, dataplane.HostPort(out.Address, out.Port), out.Tags[dataplane.ServiceTag], rule)
		}
	}
}

// everything is for a builtin gateway, which has listeners instead of inbounds and outbounds: one rule is for all its traffic, the one
// for destinations without tags.
func (c *ruleCollector) everything(a policy.Attached) {
	c.fail(a.ToErr)
	if rule := a.To.Compute(nil); rule != nil {
		c.add(ForDestinations, policy.PassThrough, policy.PassThrough, rule)
	}
}

func (c *ruleCollector) add(kind RuleKind, name, service string, r *policy.Rule) {
	conf, err := confOf(c.of, r)
	c.fail(err)
	subset := make(map[string]string, len(r.Subset))
	for _, t := range r.Subset {
		value := t.Value
		if t.Not {
			value = "!" + value
		}
		subset[t.Key] = value
	}
	origins := slices.SortedFunc(slices.Values(r.Origins), func(a, b *policy.Policy) int { return strings.Compare(a.Name, b.Name) })
	c.rules = append(c.rules, Rule{
		Type: kind, Name: name, Service: service, PolicyType: c.of, Subset: subset, Conf: conf, Origins: slices.Compact(origins),
	})
}

// confOf is the configuration of a rule. Clients of a MeshTrace expect that it says when there are no tags.
func confOf(t resource.Type, r *policy.Rule) (json.RawMessage, error) {
	if t != policy.MeshTrace {
		return r.Conf, nil
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(r.Conf, &members); err != nil {
		return nil, fmt.Errorf("read the configuration of %s %q: %w", t, r.Origins[0].Name, err)
	}
	if members == nil {
		members = make(map[string]json.RawMessage)
	}
	if _, ok := members["tags"]; !ok {
		members["tags"] = json.RawMessage("null")
	}
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(members); err != nil {
		return nil, fmt.Errorf("encode the configuration of %s %q: %w", t, r.Origins[0].Name, err)
	}
	return json.RawMessage(strings.TrimSuffix(b.String(), "\n")), nil
}
