package reconcile

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meridian-mesh/meridian/zone/proxies"
)

const (
	namespace = "meridian"
	subsystem = "reconcile"
)

type metrics struct {
	reconciles  prometheus.Counter
	regenerated *prometheus.CounterVec
	failures    prometheus.Counter
	seconds     prometheus.Histogram
	latency     prometheus.Histogram
	proxies     *prometheus.GaugeVec
	warned      prometheus.Gauge
	gauges      []prometheus.Collector
}

func newMetrics() *metrics {
	m := &metrics{
		reconciles: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "steps_total", Help: "Bursts of changes that were taken in.",
		}),
		regenerated: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "configurations_total", Help: "Configurations of proxies that were made, by the first cause.",
		}, []string{"cause"}),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "failures_total", Help: "Configurations that could not be made. The proxy kept what it had.",
		}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "build_duration_seconds", Help: "Time to make the configuration of one proxy.",
			Buckets: prometheus.ExponentialBuckets(0.00001, 4, 10),
		}),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "publish_latency_seconds",
			Help:    "Time from a commit, or a connect, until the configuration of a proxy that follows from it is published.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 14),
		}),
		proxies: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "proxies", Help: "Proxies that are connected, by kind.",
		}, []string{"kind"}),
		warned: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "proxies_with_warnings",
			Help: "Connected proxies whose configuration leaves out something that was asked for. The log says what.",
		}),
	}
	for _, name := range causeNames {
		m.regenerated.WithLabelValues(name)
	}
	for _, k := range []proxies.Kind{Sidecar, Ingress, Egress} {
		m.proxies.WithLabelValues(k.String())
	}
	return m
}

// watch adds the gauges that are read from r.
func (m *metrics) watch(r *Reconciler) {
	m.gauges = []prometheus.Collector{
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "shared_resources", Help: "Different resources that proxies have together.",
		}, func() float64 { return float64(r.interned.len()) }),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "shared_assignments", Help: "Different sets of endpoints that proxies have together.",
		}, func() float64 { return float64(r.assignments.len()) }),
	}
}

func (m *metrics) register(reg prometheus.Registerer) error {
	all := append([]prometheus.Collector{m.reconciles, m.regenerated, m.failures, m.seconds, m.latency, m.proxies, m.warned}, m.gauges...)
	for _, c := range all {
		if err := reg.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return nil
}
