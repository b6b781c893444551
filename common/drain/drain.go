// Package drain is how a replica of a plane stops while others are there: who is connected to it is told to go little by little, so
// that the others are not run down by all of them in the same instant.
package drain

import (
	"context"
	"math/rand/v2"
	"time"
)

// Before returns a context that ends when ctx has ended and then fn has returned: what runs under it goes on meanwhile. stop ends it
// at once, and the context of fn with it, and waits for fn; it is to be called when nothing runs any more.
func Before(ctx context.Context, fn func(context.Context)) (drained context.Context, stop func()) {
	drained, cancel := context.WithCancel(context.WithoutCancel(ctx))
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-ctx.Done():
			fn(drained)
			cancel()
		case <-drained.Done():
		}
	}()
	return drained, func() { cancel(); <-done }
}

// Spread calls end for each of list, in random order and at moments that are random but evenly spread over the time given. It returns
// after the last, or when ctx ends: those that are left have not been called then.
func Spread[T any](ctx context.Context, over time.Duration, list []T, end func(T)) {
	began := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	share := float64(over) / float64(len(list))
	for n, i := range rand.Perm(len(list)) {
		timer.Reset(time.Until(began.Add(time.Duration((float64(n) + rand.Float64()) * share)))) //nolint:gosec // jitter needs no secrecy
		select {
		case <-timer.C:
			end(list[i])
		case <-ctx.Done():
			return
		}
	}
}
