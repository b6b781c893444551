package envoy

import (
	"regexp"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
)

// header adds a header, or with add false sets it. Every Envoy that is in use knows the older of the two fields for that.
func header(name, value string, add bool) *corev3.HeaderValueOption {
	return &corev3.HeaderValueOption{
		Header: &corev3.HeaderValue{Key: name, Value: headerValue(value)},
		Append: boolean(add), //nolint:staticcheck // see above
	}
}

// headerCommand is what Envoy fills in when it stands in the value of a header, in all versions in use; and %%, which is one %.
var headerCommand = regexp.MustCompile(`^%(%|(` + strings.Join([]string{
	"DOWNSTREAM_LOCAL_ADDRESS", "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT", "DOWNSTREAM_LOCAL_PORT", "DOWNSTREAM_LOCAL_SUBJECT", "DOWNSTREAM_LOCAL_URI_SAN",
	"DOWNSTREAM_PEER_CERT", "DOWNSTREAM_PEER_CERT_V_END", "DOWNSTREAM_PEER_CERT_V_START", "DOWNSTREAM_PEER_FINGERPRINT_1",
	"DOWNSTREAM_PEER_FINGERPRINT_256", "DOWNSTREAM_PEER_ISSUER", "DOWNSTREAM_PEER_SERIAL", "DOWNSTREAM_PEER_SUBJECT", "DOWNSTREAM_PEER_URI_SAN",
	"DOWNSTREAM_REMOTE_ADDRESS", "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", "DOWNSTREAM_TLS_CIPHER", "DOWNSTREAM_TLS_SESSION_ID",
	"DOWNSTREAM_TLS_VERSION", "HOSTNAME", "PROTOCOL", "REQUESTED_SERVER_NAME", "RESPONSE_CODE_DETAILS", "RESPONSE_FLAGS", "START_TIME",
	"UPSTREAM_REMOTE_ADDRESS", "VIRTUAL_CLUSTER_NAME", `REQ\([A-Za-z0-9:?_-]+\)`,
}, "|") + `)%)`)

// headerValue lets any other % stand for itself. Envoy would refuse it, and with it all routes beside it.
func headerValue(value string) string {
	var b strings.Builder
	for {
		literal, _, more := strings.Cut(value, "%")
		b.WriteString(literal)
		if !more {
			return b.String()
		}
		value = value[len(literal):]
		if command := headerCommand.FindString(value); command != "" {
			b.WriteString(command)
			value = value[len(command):]
		} else {
			b.WriteString("%%")
			value = value[1:]
		}
	}
}
