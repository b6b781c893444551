package peers

import (
	"context"
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	calls   *prometheus.CounterVec
	seconds *prometheus.HistogramVec
	serving prometheus.Gauge
}

// The values of the label outcome.
const (
	outcomeOK          = "ok"
	outcomeError       = "error" // of the handler
	outcomeBusy        = "busy"
	outcomeUnreachable = "unreachable"
	outcomeUnknown     = "unknown_call"
	outcomeGivenUp     = "given_up" // the caller had no more time, or no more interest
)

func newMetrics(reg prometheus.Registerer) *metrics {
	const namespace, subsystem = "meridian", "peers"
	m := &metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "calls_total",
			Help: "Calls of other replicas, by call and how they ended: ok, error, busy, unreachable, unknown_call, given_up.",
		}, []string{"call", "outcome"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "call_duration_seconds", Help: "Time until a call of another replica has ended.",
			Buckets: []float64{.001, .005, .02, .1, .5, 1, 2.5, 5, 10},
		}, []string{"call"}),
		serving: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "serving", Help: "Calls of other replicas that are being answered.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.calls, m.seconds, m.serving)
	}
	return m
}

// expect shows a call before it is made: replicas make those that they answer.
func (m *metrics) expect(call string) {
	for _, outcome := range [...]string{outcomeOK, outcomeError, outcomeBusy, outcomeUnreachable, outcomeUnknown, outcomeGivenUp} {
		m.calls.WithLabelValues(call, outcome)
	}
	m.seconds.WithLabelValues(call)
}

func (m *metrics) observe(call string, err error, took time.Duration) {
	m.calls.WithLabelValues(call, outcomeOf(err)).Inc()
	m.seconds.WithLabelValues(call).Observe(took.Seconds())
}

func outcomeOf(err error) string {
	e, answered := errors.AsType[*Error](err)
	switch {
	case err == nil:
		return outcomeOK
	case errors.Is(err, ErrUnreachable):
		return outcomeUnreachable
	case errors.Is(err, ErrUnknownCall):
		return outcomeUnknown
	case answered && e.Code == CodeBusy:
		return outcomeBusy
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return outcomeGivenUp
	default:
		return outcomeError
	}
}
