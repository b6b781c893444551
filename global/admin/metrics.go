package admin

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meridian-mesh/meridian/api/server"
)

type metrics struct {
	questions *prometheus.CounterVec
	duration  *prometheus.HistogramVec
	inFlight  prometheus.Gauge
	ignored   *prometheus.CounterVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	const namespace, subsystem = "meridian", "proxy_questions"
	m := &metrics{
		questions: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "total", Help: "Questions about proxies, by view and how they ended.",
		}, []string{"view", "outcome"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "duration_seconds", Help: "Time until a question about a proxy has ended.",
			Buckets: []float64{.005, .02, .1, .5, 1, 2.5, 5, 10},
		}, []string{"view"}),
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "in_flight", Help: "Questions about proxies that are on their way.",
		}),
		ignored: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "ignored_answers_total",
			Help: "Answers that nobody waited for: late, sent twice, or to no question.",
		}, []string{"stream"}),
	}
	if reg != nil {
		reg.MustRegister(m.questions, m.duration, m.inFlight, m.ignored)
	}
	return m
}

func (m *metrics) observe(view server.ProxyView, outcome string, took time.Duration) {
	m.questions.WithLabelValues(string(view), outcome).Inc()
	m.duration.WithLabelValues(string(view)).Observe(took.Seconds())
}
