package envoy

import (
	"net"
	"net/http"
	"strconv"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
)

// scheme is by which the client came.
func (e *exchange) scheme() string {
	if e.d.secure {
		return "https"
	}
	return "http"
}

// direct answers with what the route says.
func (e *exchange) direct(a *routev3.DirectResponseAction, w http.ResponseWriter) error {
	if err := understands(a); err != nil {
		return err
	}
	if err := e.editResponse(w.Header()); err != nil {
		return err
	}
	w.WriteHeader(int(a.GetStatus()))
	_, err := w.Write(inline(a.GetBody()))
	return err
}

// redirect sends the client elsewhere.
func (e *exchange) redirect(a *routev3.RedirectAction, w http.ResponseWriter, r *http.Request) error {
	if err := understands(a); err != nil {
		return err
	}
	scheme, query := e.scheme(), r.URL.RawQuery
	if a.GetSchemeRedirect() != "" {
		scheme = a.GetSchemeRedirect()
	} else if a.GetHttpsRedirect() {
		scheme = "https"
	}
	host, port := r.Host, ""
	if h, p, err := net.SplitHostPort(r.Host); err == nil {
		host, port = h, p
	}
	switch {
	case a.GetHostRedirect() != "":
		host, port = a.GetHostRedirect(), ""
	case scheme != e.scheme() && port == map[string]string{"http": "80", "https": "443"}[e.scheme()]:
		port = "" // that of the scheme left, which is not that of the new one
	}
	if a.GetPortRedirect() != 0 {
		port = strconv.Itoa(int(a.GetPortRedirect()))
	}
	if port != "" {
		host = net.JoinHostPort(host, port)
	}
	if a.GetStripQuery() {
		query = ""
	}
	path := r.URL.EscapedPath()
	var err error
	switch rewrite := a.GetPathRewriteSpecifier().(type) {
	case *routev3.RedirectAction_PathRedirect:
		var other string
		var has bool
		if path, other, has = strings.Cut(rewrite.PathRedirect, "?"); has {
			query = other
		}
	case *routev3.RedirectAction_PrefixRewrite:
		path, err = replacePrefix(e.route.GetMatch(), path, rewrite.PrefixRewrite)
	case *routev3.RedirectAction_RegexRewrite:
		path, err = replaceRegex(rewrite.RegexRewrite, path)
	}
	if err != nil {
		return err
	}
	if err := e.editResponse(w.Header()); err != nil {
		return err
	}
	location := scheme + "://" + host + path
	if query != "" {
		location += "?" + query
	}
	w.Header().Set("Location", location)
	w.WriteHeader(map[routev3.RedirectAction_RedirectResponseCode]int{
		routev3.RedirectAction_MOVED_PERMANENTLY: 301, routev3.RedirectAction_FOUND: 302, routev3.RedirectAction_SEE_OTHER: 303,
		routev3.RedirectAction_TEMPORARY_REDIRECT: 307, routev3.RedirectAction_PERMANENT_REDIRECT: 308,
	}[a.GetResponseCode()])
	return nil
}
