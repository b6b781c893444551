package envoy

import (
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	rbacfilterv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/rbac/v3"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
)

const rbacFilter = "envoy.filters.network.rbac"

// permissionRBAC allows what the permission of an inbound allows; without one, nothing.
func permissionRBAC(mesh, name string, permission *meshv1.TrafficPermission) *rbacv3.RBAC {
	rules := &rbacv3.RBAC{Action: rbacv3.RBAC_ALLOW}
	if permission == nil {
		return rules
	}
	principals := make([]*rbacv3.Principal, 0, len(permission.GetSources()))
	for _, source := range permission.GetSources() {
		principals = append(principals, principalOf(mesh, source.GetMatch()))
	}
	rules.Policies = map[string]*rbacv3.Policy{name: {Permissions: anyPermission(), Principals: principals}}
	return rules
}

func anyPermission() []*rbacv3.Permission {
	return []*rbacv3.Permission{{Rule: &rbacv3.Permission_Any{Any: true}}}
}

func anyone() *rbacv3.Principal {
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_Any{Any: true}}
}

// principalOf is who has all the tags; a key with the value * is had by everyone.
func principalOf(mesh string, tags map[string]string) *rbacv3.Principal {
	var ids []*rbacv3.Principal
	for k, v := range sorted(spelledNow(tags)) {
		if v != "*" {
			ids = append(ids, principalOfTag(mesh, k, v))
		}
	}
	return allOf(ids)
}

func allOf(ids []*rbacv3.Principal) *rbacv3.Principal {
	if len(ids) == 0 {
		return anyone()
	}
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_AndIds{AndIds: &rbacv3.Principal_Set{Ids: ids}}}
}

// principalOfTag is who has a tag. Certificates hold one SPIFFE id for each service of a proxy and one Kuma id for each tag.
func principalOfTag(mesh, key, value string) *rbacv3.Principal {
	id := kumaID(key, value)
	if key == serviceTag {
		id = SPIFFEID(mesh, value)
	}
	return &rbacv3.Principal{Identifier: &rbacv3.Principal_Authenticated_{
		Authenticated: &rbacv3.Principal_Authenticated{PrincipalName: exactly(id)},
	}}
}

// rbac is the filter that enforces rules; shadow, which may be nil, is only counted.
func (p *packer) rbac(listener string, rules, shadow *rbacv3.RBAC) *listenerv3.Filter {
	return p.networkFilter(rbacFilter, &rbacfilterv3.RBAC{
		StatPrefix: statName(listener) + ".", Rules: rules, ShadowRules: shadow,
	})
}

// inboundRBAC are the rules of an inbound, and those that are only counted. MeshTrafficPermissions take the place of the
// TrafficPermission where there are any.
func (g *generator) inboundRBAC(policies inboundPolicies) (rules, shadow *rbacv3.RBAC) {
	if policies.permission != nil {
		return g.meshPermissionRBAC(policies.permission)
	}
	name := ""
	if policies.TrafficPermission != nil {
		name = policies.TrafficPermission.Name
	}
	return permissionRBAC(g.mesh.Name, name, specOf[*meshv1.TrafficPermission](policies.TrafficPermission)), nil
}

const meshPermissionPolicy = "MeshTrafficPermission"

// meshPermissionRBAC allows those of whom a rule says so. Rules are of subsets that have nothing in common, so their order
// does not matter, and who is denied is simply absent.
func (g *generator) meshPermissionRBAC(from *policy.From) (rules, shadow *rbacv3.RBAC) {
	rules = &rbacv3.RBAC{Action: rbacv3.RBAC_ALLOW}
	if from.Err != nil {
		g.warn("MeshTrafficPermission: nobody may connect: %v", from.Err)
		return rules, nil
	}
	var allowed, shadowed []*rbacv3.Principal
	for _, rule := range from.Rules {
		action, err := rule.Action()
		if err != nil {
			g.warn("%s: clients are denied: %v", origins(rule), err)
		}
		switch action {
		case policy.Deny:
		case policy.AllowWithShadowDeny:
			shadowed = append(shadowed, g.principalOfRule(rule))
			allowed = append(allowed, g.principalOfRule(rule))
		case policy.Allow:
			allowed = append(allowed, g.principalOfRule(rule))
		}
	}
	if len(allowed) > 0 {
		rules.Policies = map[string]*rbacv3.Policy{meshPermissionPolicy: {Permissions: anyPermission(), Principals: allowed}}
	}
	if len(shadowed) > 0 {
		shadow = &rbacv3.RBAC{Action: rbacv3.RBAC_DENY, Policies: map[string]*rbacv3.Policy{
			meshPermissionPolicy: {Permissions: anyPermission(), Principals: shadowed},
		}}
	}
	return rules, shadow
}

func (g *generator) principalOfRule(rule *policy.Rule) *rbacv3.Principal {
	ids := make([]*rbacv3.Principal, len(rule.Subset))
	for i, t := range rule.Subset {
		id := principalOfTag(g.mesh.Name, t.Key, t.Value)
		if t.Not {
			id = &rbacv3.Principal{Identifier: &rbacv3.Principal_NotId{NotId: id}}
		}
		ids[i] = id
	}
	return allOf(ids)
}
