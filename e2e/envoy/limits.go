package envoy

import (
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/proto"
)

// place is where in the configuration of a listener something is counted.
type place struct {
	listener, config, host string
	route                  int // -1: of the whole virtual host, or of more
	filter                 string
}

// limits are the counts that outlive a connection. Its methods may be called from any goroutine.
type limits struct {
	mu      sync.Mutex // guards what follows
	buckets map[place]*bucket
	open    map[place]uint64 // connections
}

func newLimits() *limits {
	return &limits{buckets: make(map[place]*bucket), open: make(map[place]uint64)}
}

// keep forgets the buckets of listeners that are gone.
func (l *limits) keep(listeners map[string]*listener) {
	l.mu.Lock()
	defer l.mu.Unlock()
	maps.DeleteFunc(l.buckets, func(at place, _ *bucket) bool { return listeners[at.listener] == nil })
}

// bucket is a token bucket. A changed configuration begins with a full one.
type bucket struct {
	config *typev3.TokenBucket
	tokens uint32
	filled time.Time
}

// take takes a token, and says whether there was one.
func (l *limits) take(at place, config *typev3.TokenBucket) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	b := l.buckets[at]
	if b == nil || !proto.Equal(b.config, config) {
		b = &bucket{config: config, tokens: config.GetMaxTokens(), filled: now}
		l.buckets[at] = b
	}
	if interval := config.GetFillInterval().AsDuration(); interval > 0 {
		perFill := uint64(1)
		if n := config.GetTokensPerFill(); n != nil {
			perFill = uint64(n.GetValue())
		}
		fills := uint64(now.Sub(b.filled) / interval)
		b.filled = b.filled.Add(time.Duration(fills) * interval)
		b.tokens = uint32(min(uint64(b.tokens)+fills*perFill, uint64(config.GetMaxTokens())))
	}
	if b.tokens == 0 {
		return false
	}
	b.tokens--
	return true
}

// enter counts a connection; false when there are as many as there may be.
func (l *limits) enter(at place, most uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[at] >= most {
		return false
	}
	l.open[at]++
	return true
}

// leave is for a connection that entered.
func (l *limits) leave(at place) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open[at]--; l.open[at] == 0 {
		delete(l.open, at)
	}
}

// connectionLimit is how many connections a listener may have by the runtime, where Envoy looks for that.
func (v *view) connectionLimit(listener string) (most uint64, limited bool) {
	for _, r := range v.runtimes {
		if n := r.GetLayer().GetFields()["envoy.resource_limits.listener."+listener+".connection_limit"]; n != nil {
			return uint64(n.GetNumberValue()), true
		}
	}
	return 0, false
}

// chance decides by a percentage, nil is never.
func chance(p *typev3.FractionalPercent) bool {
	of := map[typev3.FractionalPercent_DenominatorType]uint32{
		typev3.FractionalPercent_HUNDRED: 100, typev3.FractionalPercent_TEN_THOUSAND: 10_000, typev3.FractionalPercent_MILLION: 1_000_000,
	}[p.GetDenominator()]
	return rand.Uint32N(of) < p.GetNumerator() //nolint:gosec // need not be unpredictable
}
