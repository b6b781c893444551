package reconcile

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/meridian-mesh/meridian/api/resource"
)

func TestWhoLooksSeesTheTopologyAndWhoIsConnected(t *testing.T) {
	r := newRig(t, nil)
	r.write(append(secured(t, "default"), put(resource.Dataplane, "default", "web", workload("10.0.0.1", nil, in(80, tags{"kuma.io/service": "web"}))))...)
	r.start()
	defer r.stop()
	err := r.r.Look(t.Context(), "default", func(v View) {
		if m := v.World.Mesh("default"); m == nil || m.Services["web"] == nil {
			t.Error("the service is not there")
		}
		if _, _, ok := v.Sidecar("web"); ok {
			t.Error("the proxy is connected")
		}
	})
	if err != nil {
		t.Error(err)
	}
	if err := r.r.Look(t.Context(), "default", func(View) { panic("an accident") }); err == nil || !strings.Contains(err.Error(), "an accident") {
		t.Errorf("got %v", err)
	}
	if err := r.r.Look(t.Context(), "default", func(View) {}); err != nil {
		t.Errorf("after a panic: %v", err)
	}
}

// Nothing runs here, so all wait.
func TestThoseWhoWaitToLookAreBounded(t *testing.T) {
	r := newRig(t, nil)
	over, cancel := context.WithCancel(t.Context())
	cancel()
	for range maxLooks {
		if err := r.r.Look(over, "default", func(View) { t.Error("called after its time") }); !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
	}
	if err := r.r.Look(t.Context(), "default", func(View) {}); !errors.Is(err, ErrBusy) {
		t.Errorf("got %v", err)
	}
	r.start() // those who left are passed over
	r.stop()
}
