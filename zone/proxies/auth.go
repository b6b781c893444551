package proxies

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"maps"
	"slices"
	"strings"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/tokens"
	"github.com/meridian-mesh/meridian/common/config"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/token"
)

// Scopes of zone tokens that proxies present.
const (
	scopeIngress = "ingress"
	scopeEgress  = "egress"
)

// credential is what a proxy presented. The zero value is that of one that need not present any.
type credential struct {
	required bool
	raw      config.Secret
}

// credentialOf takes the token out of the headers of a stream.
func (r *Registry) credentialOf(authorization []string) (credential, error) {
	if r.cfg.Auth == AuthNone {
		return credential{}, nil
	}
	switch len(authorization) {
	case 0:
		return credential{}, unauthenticated(noToken, "no token was presented")
	case 1:
	default:
		return credential{}, unauthenticated(manyTokens, "more than one authorization was presented")
	}
	raw := strings.TrimSpace(authorization[0])
	if scheme, rest, ok := strings.Cut(raw, " "); ok && strings.EqualFold(scheme, "bearer") {
		raw = strings.TrimSpace(rest)
	}
	if raw == "" {
		return credential{}, unauthenticated(noToken, "no token was presented")
	}
	return credential{required: true, raw: config.Secret(raw)}, nil
}

// verify returns what the token of a proxy says, judged by snap: its signature, its time, whether it was revoked, and
// whether it is for a proxy of this kind, mesh and name, or this zone.
func (r *Registry) verify(snap *store.Snapshot, n *node, c credential) (tokens.Claims, error) {
	if n.kind == Sidecar {
		return r.verifySidecar(snap, n, c)
	}
	return r.verifyZonal(snap, n, c)
}

func (r *Registry) verifySidecar(snap *store.Snapshot, n *node, c credential) (tokens.Claims, error) {
	claims, err := r.authority.Verify(snap, tokens.Dataplane, n.mesh, string(c.raw))
	switch {
	case err != nil:
		return claims, r.explain(snap, tokens.Dataplane, n, c, err)
	case claims.Name != "" && claims.Name != n.name:
		return claims, unauthenticated(wrongName, "the token is for the proxy %q, not %q", clip(claims.Name), clip(n.name))
	}
	return claims, nil
}

func (r *Registry) verifyZonal(snap *store.Snapshot, n *node, c credential) (tokens.Claims, error) {
	scope := scopeIngress
	if n.kind == Egress {
		scope = scopeEgress
	}
	claims, err := r.authority.Verify(snap, tokens.Zone, "", string(c.raw))
	if err == nil && !slices.Contains(claims.Scope, scope) {
		return claims, unauthenticated(outOfScope, "the token is not for an %s: its scope is %q", scope, clip(strings.Join(claims.Scope, ",")))
	}
	if err != nil && n.kind == Ingress { // the older kind of token for the same purpose
		older, olderErr := r.authority.Verify(snap, tokens.ZoneIngress, "", string(c.raw))
		if olderErr == nil || errors.Is(olderErr, tokens.ErrExpired) || errors.Is(olderErr, tokens.ErrRevoked) {
			claims, err = older, olderErr
		}
	}
	switch {
	case err != nil:
		return claims, r.explain(snap, tokens.Zone, n, c, err)
	case claims.Zone != "" && claims.Zone != r.zone:
		return claims, unauthenticated(wrongZone, "the token is for the zone %q, not %q", clip(claims.Zone), r.zone)
	}
	return claims, nil
}

// explain says why a token that should be of a kind is none. A token that is good for something else says so to who holds
// it; of one that nobody here has signed, nothing is believed.
func (r *Registry) explain(snap *store.Snapshot, kind tokens.Kind, n *node, c credential, err error) error {
	switch {
	case errors.Is(err, tokens.ErrExpired):
		return unauthenticated(expired, "the token is expired")
	case errors.Is(err, tokens.ErrRevoked):
		return unauthenticated(revoked, "the token is revoked")
	case errors.Is(err, token.ErrMalformed):
		return unauthenticated(malformed, "what was presented is not a token")
	case errors.Is(err, token.ErrNotYetValid):
		return unauthenticated(notYetValid, "the token is not valid yet")
	}
	for other := tokens.Dataplane; other <= tokens.User; other++ {
		mesh := ""
		if other == tokens.Dataplane {
			mesh = claimedMesh(string(c.raw))
		}
		if _, otherErr := r.authority.Verify(snap, other, mesh, string(c.raw)); otherErr != nil {
			continue
		}
		if other == tokens.Dataplane && kind == tokens.Dataplane {
			return unauthenticated(wrongMesh, "the token is for the mesh %q, not %q", clip(mesh), clip(n.mesh))
		}
		return unauthenticated(wrongKind, "a %s token is not accepted for this kind of proxy (%s)", other, n.kind)
	}
	switch {
	case errors.Is(err, tokens.ErrNoKey):
		return unauthenticated(noKey, "the key that the token names is not known here")
	case errors.Is(err, token.ErrSignature):
		return unauthenticated(badSignature, "the token's signature does not match")
	default:
		return unauthenticated(wrongKind, "the token is not one for this kind of proxy (%s)", n.kind)
	}
}

// claimedMesh reads the mesh that a token says it is for, without believing it.
func claimedMesh(raw string) string {
	_, rest, _ := strings.Cut(raw, ".")
	payload, _, _ := strings.Cut(rest, ".")
	b, err := base64.RawURLEncoding.DecodeString(payload)
	if err != nil {
		return ""
	}
	var claims struct{ Mesh string }
	if json.Unmarshal(b, &claims) != nil {
		return ""
	}
	return claims.Mesh
}

// allowTags refuses a dataplane that a token is not for: each tag of the token must be there, and each of its values must be
// allowed.
func allowTags(claims tokens.Claims, dp *meshv1.Dataplane) error {
	if len(claims.Tags) == 0 {
		return nil
	}
	values := tagsOf(dp)
	for _, tag := range slices.Sorted(maps.Keys(claims.Tags)) {
		has := values[tag]
		if len(has) == 0 {
			return unauthenticated(tagMissing, "the dataplane has no tag %q, which the token requires", clip(tag))
		}
		for _, v := range slices.Sorted(maps.Keys(has)) {
			if !slices.Contains(claims.Tags[tag], v) {
				return unauthenticated(tagNotAllowed, "the dataplane's tag %q has the value %q, which the token does not allow", clip(tag), clip(v))
			}
		}
	}
	return nil
}

// tagsOf collects the values of all tags of a dataplane.
func tagsOf(dp *meshv1.Dataplane) map[string]map[string]struct{} {
	all := make(map[string]map[string]struct{})
	add := func(tags map[string]string) {
		for tag, v := range tags {
			if all[tag] == nil {
				all[tag] = make(map[string]struct{})
			}
			all[tag][v] = struct{}{}
		}
	}
	add(dp.GetNetworking().GetGateway().GetTags())
	for _, in := range dp.GetNetworking().GetInbound() {
		add(in.GetTags())
	}
	return all
}

// reasonOf is the label for an error; storeFailed for what is no refusal.
func reasonOf(err error) string {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r.reason
	}
	return storeFailed
}
