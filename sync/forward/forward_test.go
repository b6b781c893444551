package forward

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/server"
	"github.com/meridian-mesh/meridian/common/peers"
)

// callFunc is the other replica.
type callFunc func(ctx context.Context, body []byte) ([]byte, error)

func (f callFunc) Call(ctx context.Context, instance, call string, body []byte) ([]byte, error) {
	if instance != "b" || call != "proxies/ask" {
		return nil, fmt.Errorf("%s of %s is called", call, instance)
	}
	answer, err := f(ctx, body)
	if err != nil {
		err = fmt.Errorf("call %s of instance %q: %w", call, instance, err) // as peers do
	}
	return answer, err
}

func ask(p Peers, q server.ProxyQuestion) ([]byte, error) {
	return Ask(context.Background(), p, "b", `zone "east" is connected`, 5*time.Second, q)
}

func TestAQuestionArrivesAsItWasAsked(t *testing.T) {
	full := server.ProxyQuestion{}
	v := reflect.ValueOf(&full).Elem()
	for i := range v.NumField() { // those that are added too
		switch f := v.Field(i); f.Kind() {
		case reflect.String:
			f.SetString(v.Type().Field(i).Name)
		case reflect.Bool:
			f.SetBool(true)
		default:
			t.Fatalf("%s is a %s", v.Type().Field(i).Name, f.Kind())
		}
	}
	for _, want := range []server.ProxyQuestion{full, {Type: resource.ZoneEgress, Name: "e", View: server.ViewStats}} {
		var got server.ProxyQuestion
		answer, err := ask(callFunc(Handler(func(_ context.Context, q server.ProxyQuestion) ([]byte, error) {
			got = q
			return []byte("text, not JSON"), nil
		})), want)
		if diff := cmp.Diff(want, got); diff != "" || err != nil || string(answer) != "text, not JSON" {
			t.Errorf("%q, %v: %s", answer, err, diff)
		}
	}
}

func TestErrorsKeepTheirKindAndText(t *testing.T) {
	for reason := server.AskUnreachable; reason <= server.AskNotFound; reason++ {
		want := &server.AskError{Reason: reason, Details: fmt.Sprintf("for reason %d: \"x\"", reason)}
		_, err := ask(callFunc(Handler(func(context.Context, server.ProxyQuestion) ([]byte, error) { return nil, want })), server.ProxyQuestion{})
		if got, ok := errors.AsType[*server.AskError](err); !ok || *got != *want {
			t.Errorf("%#v became %#v", want, err)
		}
	}
}

func TestWhatGoesWrongOnTheWayNamesWhoIsNotReached(t *testing.T) {
	const where = `zone "east" is connected to instance "b" of this control plane`
	for name, tt := range map[string]struct {
		err    error
		reason server.AskReason
		want   string
	}{
		"gone":       {fmt.Errorf("%w: no such member is there", peers.ErrUnreachable), server.AskUnreachable, where + ", which cannot be reached"},
		"older":      {peers.ErrUnknownCall, server.AskUnreachable, where + ", which is of a version that"},
		"busy":       {&peers.Error{Code: peers.CodeBusy, Text: "64 calls"}, server.AskBusy, where + ": 64 calls"},
		"large":      {&peers.Error{Code: peers.CodeTooLarge, Text: "too much"}, server.AskFailed, where + ": too much"},
		"newer kind": {&peers.Error{Code: "tired", Text: "it sleeps"}, server.AskFailed, "it sleeps"},
	} {
		_, err := ask(callFunc(func(context.Context, []byte) ([]byte, error) { return nil, tt.err }), server.ProxyQuestion{})
		if got, ok := errors.AsType[*server.AskError](err); !ok || got.Reason != tt.reason || !strings.HasPrefix(got.Details, tt.want) {
			t.Errorf("%s: %#v", name, err)
		}
	}
	// A fault is no answer to a client.
	for name, fault := range map[string]error{"fault": errors.New("decode zone"), "panic": &peers.Error{Code: peers.CodeInternal, Text: "failed"}} {
		_, err := ask(callFunc(func(context.Context, []byte) ([]byte, error) { return nil, fault }), server.ProxyQuestion{})
		if got, ok := errors.AsType[*server.AskError](err); ok || err == nil {
			t.Errorf("%s: %#v", name, got)
		}
	}
}

func TestAnAnswerIsNotAwaitedForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		silent := callFunc(func(ctx context.Context, _ []byte) ([]byte, error) { <-ctx.Done(); return nil, ctx.Err() })
		began := time.Now()
		_, err := ask(silent, server.ProxyQuestion{})
		if got, ok := errors.AsType[*server.AskError](err); !ok || got.Reason != server.AskTimeout || time.Since(began) != 6*time.Second {
			t.Errorf("after %s: %#v", time.Since(began), err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := Ask(ctx, silent, "b", "", time.Minute, server.ProxyQuestion{}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("who asks had no more time: %v", err)
		} else if _, ok := errors.AsType[*server.AskError](err); ok {
			t.Errorf("who asks had no more time: %#v", err)
		}
	})
}

func TestAQuestionThatIsNotUnderstoodIsNotAnswered(t *testing.T) {
	h := Handler(func(context.Context, server.ProxyQuestion) ([]byte, error) { return []byte("{}"), nil })
	for _, body := range []string{``, `[]`, `{"type":"Dataplane","name":"a","view":"xds","since":"yesterday"}`} {
		_, err := h(t.Context(), []byte(body))
		if e, ok := errors.AsType[*peers.Error](err); !ok || e.Code != "invalid" {
			t.Errorf("%s: %#v", body, err)
		}
	}
}
