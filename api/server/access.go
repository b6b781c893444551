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
)

// Names and groups that the access rules know.
const (
	adminName            = "mesh-system:admin"
	adminGroup           = "mesh-system:admin"
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

func (u user) admin() bool { return u.name == adminName || slices.Contains(u.groups, adminGroup) }

// userKey is the key of the context value that authenticate sets.
type userKey struct{}

// authenticate finds out who is asking, for every request, before anything is done for it.
func (s *Server) authenticate(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u, err := s.identify(r)
		if err != nil {
			s.fail(w, r, err)
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

var anonymous = user{anonymousName, []string{unauthenticatedGroup}}

// identify says who is asking. It is the only place that decides so.
func (s *Server) identify(r *http.Request) (user, error) {
	if s.opts.LocalhostIsAdmin && fromLocalhost(r) {
		return user{adminName, []string{adminGroup, authenticatedGroup}}, nil
	}
	return anonymous, nil
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
	if !d.AdminOnly || u.admin() {
		return nil
	}
	return &problem{
		status: http.StatusForbidden, Title: titleAccess,
		Details: fmt.Sprintf("user %q cannot access the resource of type %q", u, d.Name),
	}
}
