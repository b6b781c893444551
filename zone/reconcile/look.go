package reconcile

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync/atomic"

	"github.com/meridian-mesh/meridian/zone/topology"
)

// maxLooks is how many wait for their turn.
const maxLooks = 16

// Errors of Look.
var (
	// ErrBusy: as many wait for their turn as may.
	ErrBusy = errors.New("too many wait to look at the topology")
	// ErrStopped: Run has ended.
	ErrStopped = errors.New("the reconciler has stopped")
)

// View is what the goroutine of Run owns, for the length of a call.
type View struct {
	World *topology.World

	proxies set[*proxy] // sidecars of the mesh
}

// Sidecar returns what is known of the connected proxy of a Dataplane, and why it keeps an older configuration than it should
// have, "" when it does not; false when it is not connected.
func (v View) Sidecar(name string) (c Connected, failure string, ok bool) {
	for p := range v.proxies {
		if p.Name == name {
			return p.Connected, p.failure, true
		}
	}
	return Connected{}, "", false
}

// look is a function that waits for its turn.
type look struct {
	mesh    string
	f       func(View)
	claimed atomic.Bool   // by the loop, which calls it, or by who waits, who no longer does
	done    chan struct{} // closed after the call
	err     error         // of the call: set before done is closed
}

// Look calls f between two batches of Run, with what is known of a mesh. f must only read, must not keep what it was given, and must
// be quick: no proxy is configured meanwhile. Look returns when f has, or without a call when ctx has ended before its turn, with
// ErrBusy when too many wait, or with ErrStopped. Its panic becomes an error.
func (r *Reconciler) Look(ctx context.Context, mesh string, f func(View)) error {
	l := &look{mesh: mesh, f: f, done: make(chan struct{})}
	select {
	case r.looks <- l:
	default:
		return ErrBusy
	}
	var why error
	select {
	case <-l.done:
		return l.err
	case <-ctx.Done():
		why = fmt.Errorf("look at the topology: %w", ctx.Err())
	case <-r.stopped:
		why = ErrStopped
	}
	if l.claimed.CompareAndSwap(false, true) {
		return why
	}
	<-l.done // it has begun
	return l.err
}

// show lets one look.
func (r *Reconciler) show(l *look) {
	if !l.claimed.CompareAndSwap(false, true) {
		return
	}
	defer close(l.done)
	defer func() {
		if v := recover(); v != nil {
			l.err = fmt.Errorf("panic: %v", v)
			r.log.Error("a look at the topology panicked", "err", l.err, "stack", string(debug.Stack()))
		}
	}()
	l.f(View{World: r.world, proxies: r.byMesh[l.mesh]})
}
