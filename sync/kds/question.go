package kds

import (
	"errors"
	"fmt"
	"net/url"

	"github.com/meridian-mesh/meridian/api/server"
)

// The keys and values of XDSConfigRequest.meridian_query.
const (
	queryView    = "view"
	queryService = "service"
	querySource  = "source"

	sourceControlPlane = "controlplane"
)

// Query is what of a question Kuma's messages have no place for, as XDSConfigRequest.meridian_query has it; "" for a question
// that every zone understands.
func Query(q server.ProxyQuestion) string {
	v := url.Values{}
	if q.View == server.ViewExplain {
		v.Set(queryView, string(server.ViewExplain))
		v.Set(queryService, q.Service)
	}
	if q.ControlPlane {
		v.Set(querySource, sourceControlPlane)
	}
	return v.Encode()
}

// ReadQuery puts into q what [Query] has made a query of. What it does not know is an error: a question must not be answered as if
// it were another one.
func ReadQuery(q *server.ProxyQuestion, query string) error {
	values, err := url.ParseQuery(query)
	if err != nil {
		return fmt.Errorf("the query cannot be read: %w", err)
	}
	for key, v := range values {
		if len(v) != 1 {
			return fmt.Errorf("%q is given %d times", key, len(v))
		}
		switch {
		case key == queryView && v[0] == string(server.ViewExplain):
			q.View = server.ViewExplain
		case key == queryService:
			q.Service = v[0]
		case key == querySource && v[0] == sourceControlPlane:
			q.ControlPlane = true
		default:
			return fmt.Errorf("%s=%s is not known to this zone", key, v[0])
		}
	}
	if q.Service != "" && q.View != server.ViewExplain {
		return errors.New("service is of view=explain")
	}
	return nil
}

// reasons are the words for the kinds of errors in meridian_reason.
var reasons = map[server.AskReason]string{
	server.AskUnreachable: "unreachable",
	server.AskTimeout:     "timeout",
	server.AskFailed:      "failed",
	server.AskBusy:        "busy",
	server.AskInvalid:     "invalid",
	server.AskNotFound:    "not_found",
}

// Reason is the word for the kind of an error, "" for an error of no kind.
func Reason(err error) string {
	if ask, ok := errors.AsType[*server.AskError](err); ok {
		return reasons[ask.Reason]
	}
	return ""
}

// AskError is the error of a kind that a peer has told; of one that this plane does not know, or of none, it is AskFailed.
func AskError(reason, details string) *server.AskError {
	for r, word := range reasons {
		if word == reason {
			return &server.AskError{Reason: r, Details: details}
		}
	}
	return &server.AskError{Reason: server.AskFailed, Details: details}
}
