package topology

import (
	"slices"
	"strings"
)

// ProtocolTag is the tag of an inbound or an external service that says what is spoken there.
const ProtocolTag = "kuma.io/protocol"

// stacks are the protocols that can be told apart, each with what it is made of, from the top.
var stacks = map[string][]string{
	"grpc":  {"grpc", "http2", "tcp"},
	"http2": {"http2", "tcp"},
	"http":  {"http", "tcp"},
	"kafka": {"kafka", "tcp"},
	"tcp":   {"tcp"},
}

// Protocol is what tags say is spoken: tcp, http, http2, grpc, kafka, or "" when they do not say, or something else.
func Protocol(tags map[string]string) string {
	p := strings.ToLower(tags[ProtocolTag])
	if _, known := stacks[p]; !known {
		return ""
	}
	return p
}

// CommonProtocol is the most specific protocol that all of the given have in common: of http and http2 it is tcp, of grpc and
// http2 it is http2. It is "", unknown, when one of them is unknown or none is given.
func CommonProtocol(protocols ...string) string {
	if len(protocols) == 0 {
		return ""
	}
	common := stacks[protocols[0]]
	for _, p := range protocols[1:] {
		stack := stacks[p]
		i := slices.IndexFunc(common, func(layer string) bool { return slices.Contains(stack, layer) })
		if i < 0 {
			return ""
		}
		common = common[i:]
	}
	if len(common) == 0 {
		return ""
	}
	return common[0]
}
