package envoy

import (
	"strings"

	"github.com/meridian-mesh/meridian/zone/topology"
)

// protocol is what is spoken on top of a connection, as far as proxies take notice of it.
type protocol string

const (
	unknown protocol = ""
	tcp     protocol = "tcp"
	http    protocol = "http"
	http2   protocol = "http2"
	grpc    protocol = "grpc"
	kafka   protocol = "kafka"
)

// protocolOf reads the value of a tag; what it does not know is unknown, and handled like TCP.
func protocolOf(value string) protocol {
	switch p := protocol(strings.ToLower(value)); p {
	case tcp, http, http2, grpc, kafka:
		return p
	default:
		return unknown
	}
}

// overHTTP: requests are understood.
func (p protocol) overHTTP() bool { return p == http || p == http2 || p == grpc }

// common is the best protocol that both may be treated as.
func common(a, b protocol) protocol {
	return protocol(topology.CommonProtocol(string(a), string(b)))
}
