// Package rsakeys makes RSA keys ahead of their use. A key of 2048 bits takes tens of milliseconds to find, sometimes
// hundreds; who answers a request, or decides something that others wait for, should not have to.
package rsakeys

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"fmt"
	"runtime"
)

// Bits is the size of the keys that are kept ready.
const Bits = 2048

// Pool hands out RSA keys, ready ones as long as they last. Each key is handed out once. Safe for concurrent use.
type Pool struct {
	ready chan *rsa.PrivateKey
	// slots bounds how many keys are being made at once, whoever asks: the rest of the plane needs processors too.
	slots chan struct{}
}

// NewPool returns a pool that keeps up to ready keys of [Bits] bits while it runs. It is empty, and usable at once.
func NewPool(ready int) *Pool {
	return &Pool{ready: make(chan *rsa.PrivateKey, ready), slots: make(chan struct{}, runtime.GOMAXPROCS(0))}
}

// Run fills the pool, and fills it again after use, until ctx ends. A full pool costs nothing.
func (p *Pool) Run(ctx context.Context) error {
	for {
		select {
		case p.slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		key, err := p.generate(Bits)
		if err != nil {
			return err
		}
		select {
		case p.ready <- key:
		case <-ctx.Done():
			return nil
		}
	}
}

// Key returns a key of that size: a ready one, or else one that is made now. ctx bounds the wait for its turn only: the
// search cannot be interrupted.
func (p *Pool) Key(ctx context.Context, bits int) (*rsa.PrivateKey, error) {
	var ready <-chan *rsa.PrivateKey
	if bits == Bits {
		ready = p.ready
	}
	select {
	case key := <-ready:
		return key, nil
	default:
	}
	select {
	case key := <-ready:
		return key, nil
	case p.slots <- struct{}{}:
		return p.generate(bits)
	case <-ctx.Done():
		return nil, fmt.Errorf("wait to generate a key: %w", ctx.Err())
	}
}

// generate makes a key in a slot that the caller took, and frees the slot.
func (p *Pool) generate(bits int) (*rsa.PrivateKey, error) {
	defer func() { <-p.slots }()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		return nil, fmt.Errorf("generate key of %d bits: %w", bits, err)
	}
	return key, nil
}
