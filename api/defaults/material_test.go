package defaults

import (
	"context"
	"crypto/rsa"
	"errors"
	"fmt"
	"testing"

	"github.com/meridian-mesh/meridian/common/store"
)

// Keys that are ready at once make goroutines end while others are yet to be started: under the race detector this
// fails when one of them writes what the starting loop reads.
func TestMaterialIsMadeSideBySide(t *testing.T) {
	needs := make([]Need, 500)
	for i := range needs {
		needs[i] = Need{secret: store.Key{Type: "Secret", Mesh: "demo", Name: fmt.Sprint("key-", i)}, bits: 2048}
	}
	broken := errors.New("no entropy")
	m := Material{}
	if err := m.Add(t.Context(), sameKey, needs[:400]); err != nil {
		t.Fatal(err)
	}
	// What is there is not made again: the source would fail. What cannot be made is no reason to forget the rest.
	needs[450].bits = 1
	err := m.Add(t.Context(), func(ctx context.Context, bits int) (*rsa.PrivateKey, error) {
		if bits == 1 {
			return nil, broken
		}
		return sameKey(ctx, bits)
	}, needs)
	if !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if len(m) != 499 {
		t.Errorf("%d of 499 are there", len(m))
	}
}
