// Package forward passes questions about proxies to the replica of the same plane that holds the stream they go over: that of the
// proxy on a zone, that of its zone on the global.
//
// Who is asked answers by itself or not at all: nothing is forwarded twice, so that two replicas which take each other for the
// holder end in an error and not in a loop. What limits questions counts where the stream is. An error keeps its kind and its text on
// the way, so that clients get the same answer from every replica.
package forward

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/server"
	"github.com/meridian-mesh/meridian/common/peers"
	"github.com/meridian-mesh/meridian/sync/kds"
)

// Call is the name of the call between replicas. Its body is a question in JSON, its answer the view as it is.
const Call = "proxies/ask"

// margin is how much longer than the holder the one that asked it waits, so that the holder says what took so long.
const margin = time.Second

// Peers are the other replicas. It is [peers.Peers].
type Peers interface {
	Call(ctx context.Context, instance, call string, body []byte) ([]byte, error)
}

// question is a [server.ProxyQuestion] as it travels. Fields are added, never changed.
type question struct {
	Type         resource.Type    `json:"type"`
	Mesh         string           `json:"mesh,omitempty"`
	Name         string           `json:"name"`
	View         server.ProxyView `json:"view"`
	ControlPlane bool             `json:"controlPlane,omitempty"`
	Endpoints    bool             `json:"endpoints,omitempty"`
	JSON         bool             `json:"json,omitempty"`
	UsedOnly     bool             `json:"usedOnly,omitempty"`
	Service      string           `json:"service,omitempty"`
}

// Ask has the replica of that instance id answer, within limit and a little. connection begins what errors say, with what is
// connected to it: `zone "east" is connected`.
func Ask(ctx context.Context, p Peers, instance, connection string, limit time.Duration, q server.ProxyQuestion) ([]byte, error) {
	body, err := json.Marshal(question{
		Type: q.Type, Mesh: q.Mesh, Name: q.Name, View: q.View, ControlPlane: q.ControlPlane, Endpoints: q.IncludeEndpoints,
		JSON: q.JSON, UsedOnly: q.UsedOnly, Service: q.Service,
	})
	if err != nil {
		return nil, err
	}
	callCtx, cancel := context.WithTimeout(ctx, limit+margin)
	defer cancel()
	answer, err := p.Call(callCtx, instance, Call, body)
	if err == nil {
		return answer, nil
	}
	where := fmt.Sprintf("%s to instance %q of this control plane", connection, instance)
	answered, ok := errors.AsType[*peers.Error](err)
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case ok && answered.Code == peers.CodeBusy:
		return nil, fail(server.AskBusy, "%s: %s", where, answered.Text)
	case ok && answered.Code == peers.CodeTooLarge:
		return nil, fail(server.AskFailed, "%s: %s", where, answered.Text)
	case ok && answered.Code != "" && answered.Code != peers.CodeInternal:
		return nil, kds.AskError(answered.Code, answered.Text)
	case errors.Is(err, peers.ErrUnreachable):
		return nil, fail(server.AskUnreachable, "%s, which cannot be reached", where)
	case errors.Is(err, peers.ErrUnknownCall):
		return nil, fail(server.AskUnreachable, "%s, which is of a version that answers no questions of others: ask it itself", where)
	case errors.Is(err, context.DeadlineExceeded):
		return nil, fail(server.AskTimeout, "%s, which has not answered within %s", where, limit+margin)
	default:
		return nil, err
	}
}

func fail(reason server.AskReason, format string, args ...any) *server.AskError {
	return &server.AskError{Reason: reason, Details: fmt.Sprintf(format, args...)}
}

// Handler answers [Call] by what asks proxies without the help of other replicas.
func Handler(ask func(ctx context.Context, q server.ProxyQuestion) ([]byte, error)) peers.Handler {
	return func(ctx context.Context, body []byte) ([]byte, error) {
		q, err := read(body)
		var answer []byte
		if err == nil {
			answer, err = ask(ctx, q)
		}
		if reason := kds.Reason(err); reason != "" {
			return nil, &peers.Error{Code: reason, Text: err.Error()}
		}
		return answer, err
	}
}

// read decodes a question. What it does not know is an error: a question must not be answered as if it were another one.
func read(body []byte) (server.ProxyQuestion, error) {
	var q question
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(&q); err != nil {
		return server.ProxyQuestion{}, fail(server.AskInvalid, "the instance that was asked does not understand the question: %v", err)
	}
	return server.ProxyQuestion{
		Type: q.Type, Mesh: q.Mesh, Name: q.Name, View: q.View, ControlPlane: q.ControlPlane, IncludeEndpoints: q.Endpoints,
		JSON: q.JSON, UsedOnly: q.UsedOnly, Service: q.Service,
	}, nil
}
