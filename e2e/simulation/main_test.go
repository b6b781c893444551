package simulation

import (
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	// Encoder's cache keeps its timer goroutine until the cache is collected.
	goleak.VerifyTestMain(m, goleak.IgnoreAnyFunction("github.com/maypok86/otter/v2.(*cache[...]).periodicCleanUp"))
}
