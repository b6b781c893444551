package envoy

import (
	"fmt"
	"net/http"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
)

// headers is what can change headers: a route, a virtual host, a route configuration, a weighted cluster.
type headers interface {
	GetRequestHeadersToAdd() []*corev3.HeaderValueOption
	GetRequestHeadersToRemove() []string
	GetResponseHeadersToAdd() []*corev3.HeaderValueOption
	GetResponseHeadersToRemove() []string
}

func edit(h http.Header, add []*corev3.HeaderValueOption, remove []string) error {
	for _, name := range remove {
		h.Del(name)
	}
	for _, o := range add {
		name, value := o.GetHeader().GetKey(), o.GetHeader().GetValue()
		if strings.Contains(strings.ReplaceAll(value, "%%", ""), "%") {
			return fmt.Errorf("%w: formatted header %q", ErrUnsupported, name)
		}
		value = strings.ReplaceAll(value, "%%", "%")
		//nolint:staticcheck // the older field is still valid on the wire
		appends := o.GetAppend()
		switch {
		case appends != nil && !appends.GetValue(), o.GetAppendAction() == corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD:
			h.Set(name, value)
		case o.GetAppendAction() == corev3.HeaderValueOption_ADD_IF_ABSENT && len(h.Values(name)) > 0:
		case o.GetAppendAction() == corev3.HeaderValueOption_OVERWRITE_IF_EXISTS:
			if len(h.Values(name)) > 0 {
				h.Set(name, value)
			}
		default:
			h.Add(name, value)
		}
	}
	return nil
}

func clientCertificate(h *hcmv3.HttpConnectionManager, d *downstream, out http.Header) {
	const name = "X-Forwarded-Client-Cert"
	switch h.GetForwardClientCertDetails() {
	case hcmv3.HttpConnectionManager_SANITIZE:
		out.Del(name)
	case hcmv3.HttpConnectionManager_SANITIZE_SET:
		out.Del(name)
		if d.peer == nil || !h.GetSetCurrentClientCertDetails().GetUri() {
			return
		}
		var parts []string
		for _, u := range d.peer.URIs {
			parts = append(parts, "URI="+u.String())
		}
		out.Set(name, strings.Join(parts, ";"))
	default:
	}
}
