package proxies

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

type metrics struct {
	connected      *prometheus.GaugeVec
	refused, ended *prometheus.CounterVec
	deregistered   *prometheus.CounterVec
	flushes        *prometheus.CounterVec
}

func newMetrics() *metrics {
	opts := func(name, help string) prometheus.Opts {
		return prometheus.Opts{Namespace: "meridian", Subsystem: "proxies", Name: name, Help: help}
	}
	m := &metrics{
		connected: prometheus.NewGaugeVec(prometheus.GaugeOpts(opts("connected", "Proxies that have a stream.")), []string{"kind"}),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts(opts("refused_total", "Streams of proxies that were not admitted.")),
			[]string{"reason"}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts(opts("ended_total", "Streams of proxies that were ended by this side.")),
			[]string{"reason"}),
		deregistered: prometheus.NewCounterVec(
			prometheus.CounterOpts(opts("deregistered_total", "Resources of proxies that were removed because the proxy was gone.")),
			[]string{"cause"}),
		flushes: prometheus.NewCounterVec(prometheus.CounterOpts(opts("insight_flushes_total", "Batches of insights about proxies.")),
			[]string{"result"}),
	}
	for kind := range kinds { // from the start, so that a proxy that connects changes a value and does not make a series
		m.connected.WithLabelValues(Kind(kind).String())
	}
	return m
}

func (m *metrics) register(reg prometheus.Registerer) error {
	for _, c := range []prometheus.Collector{m.connected, m.refused, m.ended, m.deregistered, m.flushes} {
		if err := reg.Register(c); err != nil {
			return fmt.Errorf("register metrics of proxies: %w", err)
		}
	}
	return nil
}
