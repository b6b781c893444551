package server

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/tokens"
)

// Names and groups that the access rules know.
const (
	adminName            = tokens.Admin
	adminGroup           = tokens.Admin
	anonymousName        = "mesh-system:anonymous"
	unauthenticatedGroup = "mesh-system:unauthenticated"
	authenticatedGroup   = "mesh-system:authenticated"
)

// user is who a request comes from.
type user struct {
	name   string
	groups []string
}

// String renders the user as access errors and audit lines show it: NAME/GROUP1,GROUP2.
func (u user) String() string { return u.name + "/" + strings.Join(u.groups, ",") }

func (u user) authenticated() bool { return slices.Contains(u.groups, authenticatedGroup) }

var (
	anonymous = user{anonymousName, []string{unauthenticatedGroup}}
	admin     = user{adminName, []string{adminGroup, authenticatedGroup}}
)

// allows reports whether u is named by the grant.
func (g Grant) allows(u user) bool {
	return slices.Contains(g.Users, u.name) ||
		slices.ContainsFunc(u.groups, func(group string) bool { return slices.Contains(g.Groups, group) })
}

// userKey is the key of the context value that authenticate sets.
type userKey struct{}

// authenticate finds out who is asking, for every request, before anything is done for it. Who shows something that
// proves nothing is refused, whatever is asked for.
func (s *Server) authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u, err := s.identify(r)
		if err != nil {
			s.refuseStranger(w, r, err)
			return
		}
		next.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), userKey{}, u)))
	})
}

// userOf returns who makes a request that passed authenticate; anybody else is anonymous.
func userOf(r *http.Request) user {
	if u, ok := r.Context().Value(userKey{}).(user); ok {
		return u
	}
	return anonymous
}

// identify says who is asking. It is the only place that decides so. In this order: a program on this host, the holder
// of an administrator's certificate, the holder of a user token; everybody else is anonymous, other schemes of
// Authorization included. Its error says what is wrong with a certificate or token, and never contains it.
func (s *Server) identify(r *http.Request) (user, error) {
	if s.opts.LocalhostIsAdmin && fromLocalhost(r) {
		return admin, nil
	}
	if s.clientCerts != nil && r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		if err := s.clientCerts.Verify(r.TLS); err != nil {
			return user{}, fmt.Errorf("client certificate: %w", err)
		}
		return admin, nil
	}
	raw, ok := bearer(r)
	if !ok {
		return anonymous, nil
	}
	claims, err := s.tokens.Verify(s.store.Snapshot(), tokens.User, "", raw)
	if err != nil {
		return user{}, fmt.Errorf("user token: %w", err)
	}
	groups := slices.Clip(claims.Groups)
	if !slices.Contains(groups, authenticatedGroup) {
		groups = append(groups, authenticatedGroup)
	}
	return user{claims.Name, groups}, nil
}

// bearer returns the token of an Authorization header of that scheme.
func bearer(r *http.Request) (string, bool) {
	scheme, raw, _ := strings.Cut(strings.TrimSpace(r.Header.Get("Authorization")), " ")
	return strings.TrimSpace(raw), strings.EqualFold(scheme, "Bearer")
}

// refuseStranger answers a request whose sender could not be identified. If it wanted to change something, it leaves the
// audit line that its handler would have left.
func (s *Server) refuseStranger(w http.ResponseWriter, r *http.Request, err error) {
	w.Header().Set("WWW-Authenticate", "Bearer")
	status := s.fail(w, r, &problem{
		status: http.StatusUnauthorized, Title: "Invalid authentication data", Details: "Unauthenticated", err: err,
	})
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions:
		s.log.DebugContext(r.Context(), "not authenticated", "path", r.URL.Path, "remote", r.RemoteAddr, "err", err)
	default:
		s.log.InfoContext(r.Context(), "write", "action", strings.ToLower(r.Method), "outcome", outcomeRefused,
			"status", status, "path", r.URL.Path, "user", "unknown", "remote", r.RemoteAddr, "err", err)
	}
}

// fromLocalhost reports whether a request was made by a local program on its own behalf. A loopback peer alone does
// not show that: a web page in a local browser (cross-origin calls, or a foreign name that resolves to 127.0.0.1) and
// a local reverse proxy reach us over loopback too. They give themselves away by Origin or Sec-Fetch-Site, by a Host
// that is not local, and by forwarding headers.
func fromLocalhost(r *http.Request) bool {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !peer.Addr().Unmap().IsLoopback() || !localHost(r.Host) {
		return false
	}
	for _, h := range [...]string{"Origin", "Forwarded", "X-Forwarded-For", "X-Real-Ip"} {
		if len(r.Header[h]) > 0 {
			return false
		}
	}
	switch r.Header.Get("Sec-Fetch-Site") {
	case "", "none", "same-origin":
		return true
	default:
		return false
	}
}

// localHost reports whether a Host header names this machine's loopback interface.
func localHost(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if strings.EqualFold(host, "localhost") {
		return true
	}
	addr, err := netip.ParseAddr(host)
	return err == nil && addr.Unmap().IsLoopback()
}

// allow checks that u may see and write resources of type d.
func (s *Server) allow(u user, d *resource.Descriptor) error {
	if !d.AdminOnly {
		return nil
	}
	return s.allowAdmin(u, fmt.Sprintf("access the resource of type %q", d.Name))
}

// allowAdmin checks that u has the rights of an administrator: to see and write everything. what completes the sentence
// "user ... cannot".
func (s *Server) allowAdmin(u user, what string) error {
	if s.access.AdminResources.allows(u) {
		return nil
	}
	return denied(fmt.Sprintf("user %q cannot %s", u, what))
}

// allowWrite checks that u may write at all. Which types, is for allow.
func (s *Server) allowWrite(u user) error {
	if s.opts.Writes != writesAuthenticated || u.authenticated() {
		return nil
	}
	return denied(fmt.Sprintf("user %q cannot write: this control plane takes writes from authenticated users only", u))
}

// allowView checks that u may see what proxies show: certificates and addresses among it, so it is for administrators
// unless configured otherwise.
func (s *Server) allowView(u user, view ProxyView) error {
	grant := s.access.ViewConfigDump
	switch view {
	case ViewStats:
		grant = s.access.ViewStats
	case ViewClusters:
		grant = s.access.ViewClusters
	case ViewExplain:
		return nil // it says what the policies amount to, which everybody may see
	case ViewConfigDump:
	}
	if grant.allows(u) {
		return nil
	}
	return denied(fmt.Sprintf("user %q cannot view the %s of proxies", u, view))
}

func denied(details string) *problem {
	return &problem{status: http.StatusForbidden, Title: titleAccess, Details: details}
}
