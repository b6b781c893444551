package kds

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"
)

// errPanic reports a fault of ours, met while handling what a peer sent.
var errPanic = errors.New("panic")

// serve runs the two halves of a stream: read, the only caller of Recv, and write, the only caller of Send. It returns
// what ends write, whom readErr tells what ended read.
//
// A Send waits while the peer does not read, for as long as the peer's transport lives, and nothing but the end of the
// stream ends it. So serve does not wait for write when ctx ends or when a Send has stalled: its return is what ends the
// stream. halves counts what may outlive the call by that much.
func serve(ctx context.Context, halves *sync.WaitGroup, stall *stall, read func() error, write func(readErr <-chan error) error) error {
	readErr, wrote := make(chan error, 1), make(chan error, 1)
	halves.Go(func() { readErr <- guarded(read) })
	halves.Go(func() { wrote <- guarded(func() error { return write(readErr) }) })
	select {
	case err := <-wrote:
		return err
	case <-stall.over:
		return fmt.Errorf("%w: the peer does not read", ErrAckTimeout)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// guarded turns a panic into an error: no message of a peer may take the process down.
func guarded(half func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v\n%s", errPanic, r, debug.Stack())
		}
	}()
	return half()
}

// stall notices a Send that takes too long.
type stall struct {
	limit time.Duration // 0: none
	over  chan struct{} // cap 1
}

func newStall(limit time.Duration) *stall { return &stall{limit, make(chan struct{}, 1)} }

// watch calls send, and reports it if it takes longer than the limit.
func (s *stall) watch(send func() error) error {
	if s.limit <= 0 {
		return send()
	}
	timer := time.AfterFunc(s.limit, func() { s.over <- struct{}{} })
	err := send()
	if !timer.Stop() {
		return fmt.Errorf("%w: the peer does not read", ErrAckTimeout)
	}
	return err
}
