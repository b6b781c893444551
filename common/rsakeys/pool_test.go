package rsakeys

import (
	"context"
	"crypto/rsa"
	"errors"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// run runs p until the test ends, and checks that it ends without an error.
func run(t *testing.T, p *Pool) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// waitFor waits for keys that are found in their own time.
func waitFor(t *testing.T, p *Pool, ready int) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); len(p.ready) < ready; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d keys are ready, not %d", len(p.ready), ready)
		}
	}
}

func TestAPoolThatRunsIsFullAgainAfterUse(t *testing.T) {
	p := NewPool(2)
	run(t, p)
	waitFor(t, p, 2)
	seen := map[string]bool{}
	for range 5 {
		key, err := p.Key(t.Context(), Bits)
		if err != nil {
			t.Fatal(err)
		}
		if key.N.BitLen() != Bits || key.Validate() != nil {
			t.Errorf("a key of %d bits: %v", key.N.BitLen(), key.Validate())
		}
		if seen[key.N.String()] {
			t.Error("a key was handed out twice")
		}
		seen[key.N.String()] = true
	}
	waitFor(t, p, 2)
}

func TestAPoolThatDoesNotRunMakesKeysWhenAsked(t *testing.T) {
	p := NewPool(0)
	for _, bits := range []int{Bits, 3072} {
		key, err := p.Key(t.Context(), bits)
		if err != nil {
			t.Fatal(err)
		}
		if key.N.BitLen() != bits {
			t.Errorf("%d bits, not %d", key.N.BitLen(), bits)
		}
	}
}

func TestAKeyOfAnotherSizeIsNotTakenFromTheReadyOnes(t *testing.T) {
	p := NewPool(1)
	p.ready <- &rsa.PrivateKey{}
	key, err := p.Key(t.Context(), 3072)
	if err != nil || key.N.BitLen() != 3072 {
		t.Fatalf("got %v", err)
	}
	if len(p.ready) != 1 {
		t.Error("the ready key is gone")
	}
}

func TestWhoWaitsForAKeyCanGiveUp(t *testing.T) {
	p := NewPool(1)
	for range cap(p.slots) {
		p.slots <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := p.Key(ctx, Bits); !errors.Is(err, context.Canceled) {
			t.Errorf("Key: %v", err)
		}
	})
	wg.Go(func() {
		if err := p.Run(ctx); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	wg.Wait()
}

func BenchmarkKey(b *testing.B) {
	p := NewPool(0)
	for b.Loop() {
		if _, err := p.Key(b.Context(), Bits); err != nil {
			b.Fatal(err)
		}
	}
}
