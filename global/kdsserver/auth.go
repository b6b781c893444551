package kdsserver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/tokens"
	"github.com/meridian-mesh/meridian/common/config"
	"github.com/meridian-mesh/meridian/global/zones"
)

// ScopeControlPlane is the scope of the zone tokens that zone control planes present. Tokens of the other scopes are for
// the zone's ingresses and egresses.
const ScopeControlPlane = "cp"

// Auth says how zones prove who they are.
type Auth struct {
	// Required: every call must carry a zone token for the zone it names, with the scope "cp".
	Required bool
	// Exempt names the zones that need not, because they cannot: Kuma's. One that does present a token is held to it.
	Exempt []string
}

// credential checks what a caller that claims to be zone presents. Tokens are verified against the newest committed
// state, so that a revocation counts from its commit on; [Server.watchTokens] ends what is open already.
func (s *Server) credential(md metadata.MD, zone string) (zones.Credential, error) {
	values := md.Get("authorization")
	if !s.o.Config.Auth.Required {
		return zones.Credential{Method: zones.AuthNone}, nil
	}
	switch {
	case len(values) == 0 && slices.Contains(s.o.Config.Auth.Exempt, zone):
		return zones.Credential{Method: zones.AuthExempt}, nil
	case len(values) == 0:
		return zones.Credential{}, errors.New("no zone token was presented")
	case len(values) > 1:
		return zones.Credential{}, errors.New("more than one authorization was presented")
	}
	raw, ok := bearer(values[0])
	if !ok {
		return zones.Credential{}, errors.New("the authorization presented is no bearer token")
	}
	claims, err := s.verify(zone, raw)
	if err != nil {
		return zones.Credential{}, err
	}
	return zones.Credential{Method: zones.AuthToken, Token: config.Secret(raw), Expires: claims.Expires}, nil
}

func bearer(authorization string) (string, bool) {
	scheme, raw, ok := strings.Cut(authorization, " ")
	return raw, ok && strings.EqualFold(scheme, "bearer") && raw != ""
}

// verify checks a token as the one of zone's control plane.
func (s *Server) verify(zone, raw string) (tokens.Claims, error) {
	claims, err := s.o.Tokens.Verify(s.o.Store.Snapshot(), tokens.Zone, "", raw)
	switch {
	case err != nil:
		return claims, fmt.Errorf("zone token: %w", err)
	case claims.Zone != zone:
		return claims, fmt.Errorf("the zone token is for zone %q", claims.Zone)
	case !slices.Contains(claims.Scope, ScopeControlPlane):
		return claims, fmt.Errorf("the zone token has not the scope %q", ScopeControlPlane)
	}
	return claims, nil
}

// refuse answers a caller that could not prove to be the zone it claims to be.
func (s *Server) refuse(ctx context.Context, hello zones.Hello, reason error) error {
	s.refused.Inc()
	s.o.Log.WarnContext(ctx, "a caller could not prove to be the zone it claims to be and is refused",
		"zone", hello.Zone, "peer", hello.Address, "reason", reason)
	return status.Errorf(codes.Unauthenticated, "zone %q is refused: %v", hello.Zone, reason)
}

// watchTokens ends the sessions whose tokens are accepted no more, as soon as a commit says so, until ctx ends.
// (Expiry needs no watching: the context of each stream ends with its token.)
func (s *Server) watchTokens(ctx context.Context) {
	snap := s.o.Store.Snapshot()
	for {
		seen := snap.LastChange(string(resource.GlobalSecret))
		for snap.LastChange(string(resource.GlobalSecret)) == seen {
			select {
			case <-ctx.Done():
				return
			case <-snap.Next():
				snap = s.o.Store.Snapshot()
			}
		}
		s.o.Zones.Recheck(func(zone string, token config.Secret) error {
			_, err := s.verify(zone, string(token))
			return err
		})
	}
}
