package proxies

import (
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/tokens"
)

func ingressNode() *corev3.Node {
	return aNode(".in-1", map[string]any{
		"dataplane.proxyType": "ingress",
		"dataplane.resource":  `{"type":"ZoneIngress","name":"in-1","networking":{"address":"10.0.0.9","port":10001}}`,
	})
}

func egressNode() *corev3.Node {
	return aNode(".in-1", map[string]any{
		"dataplane.proxyType": "egress",
		"dataplane.resource":  `{"type":"ZoneEgress","name":"in-1","networking":{"address":"10.0.0.8","port":10002}}`,
	})
}

func TestAProxyIsRefusedWith(t *testing.T) {
	r := newRig(t, nil)
	revokedToken := func(kind tokens.Kind, key int, c tokens.Claims, mesh string) string {
		raw, claims, err := tokens.Sign(keys()[key], 1, kind, c, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		r.secret(tokens.Revocations(kind, mesh), []byte("other, "+claims.ID))
		return raw
	}
	bad := []byte(r.dpToken())
	bad[len(bad)-5] = otherLetter(bad[len(bad)-5])
	for _, c := range []struct {
		name, reason, text string
		node               *corev3.Node
		auth               []string
	}{
		{"no token", noToken, "no token", backendNode(), nil},
		{"an empty token", noToken, "no token", backendNode(), []string{" "}},
		{"two tokens", manyTokens, "more than one", backendNode(), []string{r.dpToken(), r.dpToken()}},
		{"no JWT", malformed, "not a token", backendNode(), []string{"hello"}},
		{"a changed signature", badSignature, "signature does not match", backendNode(), []string{string(bad)}},
		{
			"a key of another mesh", badSignature, "signature does not match", backendNode(),
			[]string{r.token(tokens.Dataplane, 1, tokens.Claims{Mesh: "default"}, time.Hour)},
		},
		{
			"a token of another mesh", wrongMesh, `for the mesh "other"`, backendNode(),
			[]string{r.token(tokens.Dataplane, 1, tokens.Claims{Mesh: "other"}, time.Hour)},
		},
		{
			"another name", wrongName, `for the proxy "web-1"`, backendNode(),
			[]string{r.token(tokens.Dataplane, 0, tokens.Claims{Mesh: "default", Name: "web-1"}, time.Hour)},
		},
		{
			"a tag that the dataplane lacks", tagMissing, `no tag "team"`, backendNode(),
			[]string{r.token(tokens.Dataplane, 0, tokens.Claims{Mesh: "default", Tags: map[string][]string{"team": {"a"}}}, time.Hour)},
		},
		{
			"a value that is not allowed", tagNotAllowed, `"version" has the value "1"`, backendNode(),
			[]string{r.token(tokens.Dataplane, 0, tokens.Claims{Mesh: "default", Tags: map[string][]string{"version": {"2", "3"}}}, time.Hour)},
		},
		{
			"an expired token", expired, "expired", backendNode(),
			[]string{r.token(tokens.Dataplane, 0, tokens.Claims{Mesh: "default"}, -time.Minute)},
		},
		{"a revoked token", revoked, "revoked", backendNode(), []string{revokedToken(tokens.Dataplane, 0, tokens.Claims{Mesh: "default"}, "default")}},
		{
			"a user's token", wrongKind, "a user token is not accepted", backendNode(),
			[]string{r.token(tokens.User, 4, tokens.Claims{Name: "me"}, time.Hour)},
		},
		{
			"a zone token for a dataplane", wrongKind, "a zone token is not accepted", backendNode(),
			[]string{r.token(tokens.Zone, 2, tokens.Claims{Zone: "zone-1", Scope: []string{"ingress"}}, time.Hour)},
		},
		{"a dataplane token for an ingress", wrongKind, "a dataplane token is not accepted", ingressNode(), []string{r.dpToken()}},
		{
			"a zone token of another zone", wrongZone, `for the zone "zone-2"`, ingressNode(),
			[]string{r.token(tokens.Zone, 2, tokens.Claims{Zone: "zone-2", Scope: []string{"ingress"}}, time.Hour)},
		},
		{
			"an old ingress token of another zone", wrongZone, `for the zone "zone-2"`, ingressNode(),
			[]string{r.token(tokens.ZoneIngress, 3, tokens.Claims{Zone: "zone-2"}, time.Hour)},
		},
		{
			"an egress's scope for an ingress", outOfScope, "not for an ingress", ingressNode(),
			[]string{r.token(tokens.Zone, 2, tokens.Claims{Zone: "zone-1", Scope: []string{"egress", "cp"}}, time.Hour)},
		},
		{
			"an ingress's scope for an egress", outOfScope, "not for an egress", egressNode(),
			[]string{r.token(tokens.Zone, 2, tokens.Claims{Zone: "zone-1", Scope: []string{"ingress"}}, time.Hour)},
		},
		{
			"an old ingress token for an egress", wrongKind, "a zone-ingress token is not accepted", egressNode(),
			[]string{r.token(tokens.ZoneIngress, 3, tokens.Claims{Zone: "zone-1"}, time.Hour)},
		},
		{
			"an expired zone token", expired, "expired", egressNode(),
			[]string{r.token(tokens.Zone, 2, tokens.Claims{Zone: "zone-1", Scope: []string{"egress"}}, -time.Minute)},
		},
		{
			"an expired old ingress token", expired, "expired", ingressNode(),
			[]string{r.token(tokens.ZoneIngress, 3, tokens.Claims{Zone: "zone-1"}, -time.Minute)},
		},
		{
			"a revoked zone token", revoked, "revoked", egressNode(),
			[]string{revokedToken(tokens.Zone, 2, tokens.Claims{Zone: "zone-1", Scope: []string{"egress"}}, "")},
		},
		{
			"a revoked old ingress token", revoked, "revoked", ingressNode(),
			[]string{revokedToken(tokens.ZoneIngress, 3, tokens.Claims{Zone: "zone-1"}, "")},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := r.open(c.node, c.auth...)
			if err == nil {
				s.Close()
				t.Fatal("it is admitted")
			}
			if got := reasonOf(err); got != c.reason {
				t.Errorf("the reason is %q, want %q: %v", got, c.reason, err)
			}
			st, _ := status.FromError(err)
			if st.Code() != codes.Unknown || !strings.HasPrefix(st.Message(), "authentication failed: ") || !strings.Contains(st.Message(), c.text) {
				t.Errorf("it is refused with %v %q", st.Code(), st.Message())
			}
			for _, raw := range c.auth {
				if len(strings.TrimSpace(raw)) > 5 && strings.Contains(err.Error(), raw[:6]) {
					t.Errorf("the token is shown: %v", err)
				}
			}
		})
	}
	if n := len(r.registry.proxies); n != 0 {
		t.Errorf("%d proxies are remembered that were refused", n)
	}
	if r.exists("Dataplane", "default", "backend-1") || r.exists("ZoneIngress", "", "in-1") || r.exists("ZoneEgress", "", "in-1") {
		t.Error("a proxy is registered that was refused")
	}
}

func TestAProxyIsAdmittedWith(t *testing.T) {
	r := newRig(t, nil)
	for _, c := range []struct {
		name, token string
		node        *corev3.Node
	}{
		{"a token of its mesh", r.dpToken(), backendNode()},
		{"a bearer token", "Bearer " + r.dpToken(), backendNode()},
		{"a token for its name", r.token(tokens.Dataplane, 0, tokens.Claims{Mesh: "default", Name: "backend-1"}, time.Hour), backendNode()},
		{"a token for its tags", r.token(tokens.Dataplane, 0, tokens.Claims{Mesh: "default", Tags: map[string][]string{
			"version": {"2", "1"}, "kuma.io/zone": {"zone-1"},
		}}, time.Hour), backendNode()},
		{"a zone token of scope ingress", r.token(tokens.Zone, 2, tokens.Claims{Zone: "zone-1", Scope: []string{"ingress"}}, time.Hour), ingressNode()},
		{"a zone token of any zone", r.token(tokens.Zone, 2, tokens.Claims{Scope: []string{"ingress"}}, time.Hour), ingressNode()},
		{"an old ingress token", r.token(tokens.ZoneIngress, 3, tokens.Claims{Zone: "zone-1"}, time.Hour), ingressNode()},
		{"a zone token of scope egress", r.token(tokens.Zone, 2, tokens.Claims{Zone: "zone-1", Scope: []string{"ingress", "egress"}}, time.Hour), egressNode()},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := r.open(c.node, c.token)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if err := s.Check(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestAProxyIsRefusedThatTheStateHasNoPlaceFor(t *testing.T) {
	r := newRig(t, nil)
	anonymous := newRig(t, func(c *Config) { c.Auth = AuthNone })
	r.put("Mesh", "", "other", &meshv1.Mesh{Constraints: &meshv1.Mesh_Constraints{DataplaneProxy: &meshv1.Mesh_DataplaneProxyConstraints{
		Restrictions: []*meshv1.Mesh_DataplaneProxyConstraints_Rules{{Tags: map[string]string{"kuma.io/service": "backend"}}},
	}}})
	other := r.token(tokens.Dataplane, 1, tokens.Claims{Mesh: "other"}, time.Hour)
	for _, c := range []struct {
		name   string
		rig    *rig
		node   *corev3.Node
		token  string
		reason string
		code   codes.Code
	}{
		{"its mesh is missing", anonymous, aNode("none.a", nil), "", noMesh, codes.NotFound},
		{"it is unknown and brings nothing", r, aNode("default.a", nil), r.dpToken(), noResource, codes.NotFound},
		{"it is an ingress of another zone", anonymous, aNode(".in-1", map[string]any{
			"dataplane.proxyType": "ingress",
			"dataplane.resource":  `{"type":"ZoneIngress","name":"in-1","zone":"zone-2","networking":{"address":"10.0.0.9","port":10001}}`,
		}), "", badResource, codes.InvalidArgument},
		{"it is an egress of another zone", anonymous, aNode(".out-1", map[string]any{
			"dataplane.proxyType": "egress",
			"dataplane.resource":  `{"type":"ZoneEgress","name":"out-1","zone":"zone-2","networking":{"address":"10.0.0.9","port":10001}}`,
		}), "", badResource, codes.InvalidArgument},
		{"it may not come in, whatever it brings", r, aNode("default.a", map[string]any{"dataplane.resource": "{"}), "junk", malformed, codes.Unknown},
		{"the name differs", r, aNode("default.b", map[string]any{"dataplane.resource": backendResource}), r.dpToken(), badResource, codes.InvalidArgument},
		{"the mesh differs", r, aNode("other.backend-1", map[string]any{"dataplane.resource": backendResource}), other, badResource, codes.InvalidArgument},
		{"the resource is of another type", r, aNode("default.backend-1", map[string]any{
			"dataplane.resource": `{"type":"ZoneIngress","name":"backend-1","networking":{}}`,
		}), r.dpToken(), badResource, codes.InvalidArgument},
		{"the resource is invalid", r, aNode("default.backend-1", map[string]any{
			"dataplane.resource": strings.ReplaceAll(backendResource, "8080", "0"),
		}), r.dpToken(), badResource, codes.InvalidArgument},
		{"the resource is no resource", r, aNode("default.backend-1", map[string]any{"dataplane.resource": "{"}), r.dpToken(), badResource, codes.InvalidArgument},
		{"the mesh restricts it", r, aNode("other.backend-1", map[string]any{
			"dataplane.resource": strings.ReplaceAll(backendResource, `"mesh":"default"`, `"mesh":"other"`),
		}), other, meshRefuses, codes.FailedPrecondition},
		{"it has no node", r, nil, r.dpToken(), badNode, codes.InvalidArgument},
	} {
		t.Run(c.name, func(t *testing.T) {
			var auth []string
			if c.token != "" {
				auth = []string{c.token}
			}
			s, err := c.rig.open(c.node, auth...)
			if err == nil {
				s.Close()
				t.Fatal("it is admitted")
			}
			if status.Code(err) != c.code || reasonOf(err) != c.reason {
				t.Errorf("it is refused with %v %s: %v", status.Code(err), reasonOf(err), err)
			}
		})
	}
}

// otherLetter is a letter of base64 that is not c.
func otherLetter(c byte) byte {
	if c == 'A' {
		return 'B'
	}
	return 'A'
}
