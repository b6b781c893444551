package admin

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meridian-mesh/meridian/api/server"
)

type metrics struct {
	questions *prometheus.CounterVec
	seconds   *prometheus.HistogramVec
	inFlight  prometheus.Gauge
}

func newMetrics() *metrics {
	const namespace, subsystem = "meridian", "inspection"
	return &metrics{
		questions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "questions_total", Help: "Questions about proxies, by what became of them.",
		}, []string{"view", "outcome"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "question_seconds", Help: "How long questions about proxies took, the wait for their turn included.",
			Buckets: prometheus.ExponentialBuckets(0.001, 4, 8),
		}, []string{"view"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "questions_in_flight", Help: "Questions about proxies that are on their way or wait for their turn.",
		}),
	}
}

func (m *metrics) register(reg prometheus.Registerer) error {
	for _, c := range []prometheus.Collector{m.questions, m.seconds, m.inFlight} {
		if err := reg.Register(c); err != nil {
			return fmt.Errorf("register metrics of inspection: %w", err)
		}
	}
	return nil
}

// outcomes are the labels of reasons.
var outcomes = map[server.AskReason]string{
	server.AskUnreachable: "unreachable", server.AskTimeout: "timeout", server.AskFailed: "failed", server.AskBusy: "busy",
	server.AskInvalid: "invalid", server.AskNotFound: "not_found",
}

func (m *metrics) asked(view server.ProxyView, err error, took time.Duration) {
	outcome := "ok"
	if ask, ok := errors.AsType[*server.AskError](err); ok {
		outcome = outcomes[ask.Reason]
	} else if errors.Is(err, context.Canceled) {
		outcome = "canceled"
	} else if err != nil {
		outcome = "error"
	}
	m.questions.WithLabelValues(string(view), outcome).Inc()
	m.seconds.WithLabelValues(string(view)).Observe(took.Seconds())
}
