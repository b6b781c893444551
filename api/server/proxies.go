package server

import (
	"context"

	"github.com/meridian-mesh/meridian/api/resource"
)

// Proxies looks into proxies on behalf of the API: a zone asks those that are connected to it, the global asks their zone.
type Proxies interface {
	// Ask answers a question about one proxy: JSON to ViewConfigDump and ViewExplain, else what the proxy says as it is. Secrets
	// are masked in it. It returns within a bound of its own, and before ctx ends. An error that a client can do something about is
	// an [AskError].
	Ask(ctx context.Context, q ProxyQuestion) ([]byte, error)
}

// ProxyQuestion is a question about the proxy of a Dataplane, ZoneIngress or ZoneEgress that exists on this plane.
type ProxyQuestion struct {
	Type resource.Type
	Mesh string // of a Dataplane
	Name string // of the resource on this plane: the global's are <zone>.<name>
	View ProxyView

	// ControlPlane asks for what the zone's control plane last sent to the proxy and what of it was acknowledged, instead of asking
	// the proxy. For ViewConfigDump.
	ControlPlane bool
	// IncludeEndpoints asks for endpoints too. For ViewConfigDump.
	IncludeEndpoints bool
	// JSON asks for that instead of text; UsedOnly leaves out statistics that never changed. For ViewStats and ViewClusters.
	JSON, UsedOnly bool
	// Service is the destination that is to be explained. For ViewExplain.
	Service string
}

// ProxyView is what is to be shown of a proxy; also the last segment of its path here.
type ProxyView string

// The views.
const (
	ViewConfigDump ProxyView = "xds"
	ViewStats      ProxyView = "stats"
	ViewClusters   ProxyView = "clusters"
	ViewExplain    ProxyView = "explain"
)

// AskError is why a question about a proxy has no answer.
type AskError struct {
	Reason  AskReason
	Details string // for the client
}

func (e *AskError) Error() string { return e.Details }

// AskReason is the kind of an AskError.
type AskReason uint8

// The reasons, and the status that the API answers with.
const (
	AskUnreachable AskReason = iota // 503: the proxy, or its zone, is not connected, or does not take connections
	AskTimeout                      // 504: no answer in time
	AskFailed                       // 502: the proxy answered with an error, or its answer is larger than is passed on
	AskBusy                         // 429: as many questions are on their way as may be at a time
	AskInvalid                      // 400: the question makes no sense for this proxy
	AskNotFound                     // 404: what it asks for is not there, e.g. an outbound to the service that is to be explained
)
