package component_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/meridian-mesh/meridian/common/component"
)

var errBroken = errors.New("broken")

func untilDone(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }

func TestRun(t *testing.T) {
	tests := []struct {
		name       string
		cancel     bool
		components []component.Component
		want       string
		wantIs     error
	}{
		{
			name:       "an empty list ends at once",
			components: nil,
		},
		{
			name:   "ending with the context is no failure",
			cancel: true,
			components: []component.Component{
				{Name: "a", Run: untilDone},
				{Name: "b", Run: func(ctx context.Context) error { <-ctx.Done(); return nil }},
			},
		},
		{
			name:   "a failure while stopping is reported",
			cancel: true,
			components: []component.Component{
				{Name: "a", Run: untilDone},
				{Name: "b", Run: func(ctx context.Context) error { <-ctx.Done(); return errBroken }},
			},
			want: "b: broken", wantIs: errBroken,
		},
		{
			name: "the first failure ends the others and carries its name",
			components: []component.Component{
				{Name: "a", Run: untilDone},
				{Name: "b", Run: func(context.Context) error { return errBroken }},
			},
			want: "b: broken", wantIs: errBroken,
		},
		{
			name: "a cancellation of its own is a failure like any other",
			components: []component.Component{
				{Name: "a", Run: untilDone},
				{Name: "b", Run: func(context.Context) error { return context.Canceled }},
			},
			want: "b: context canceled", wantIs: context.Canceled,
		},
		{
			name: "one that is finished does not end the others",
			components: []component.Component{
				{Name: "a", Run: func(context.Context) error { return nil }},
				{Name: "b", Run: func(ctx context.Context) error {
					select {
					case <-ctx.Done():
						return errors.New("ended early")
					case <-time.After(time.Hour):
						return nil
					}
				}},
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if tt.cancel {
					time.AfterFunc(time.Minute, cancel)
				}
				err := component.Run(ctx, tt.components...)
				got := ""
				if err != nil {
					got = err.Error()
				}
				if got != tt.want || !errors.Is(err, tt.wantIs) {
					t.Errorf("Run returned %q, want %q", got, tt.want)
				}
			})
		})
	}
}
