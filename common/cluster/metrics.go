package cluster

import "github.com/prometheus/client_golang/prometheus"

type metrics struct {
	members    prometheus.Gauge
	departures prometheus.Counter
	refused    prometheus.Counter
	leading    *prometheus.GaugeVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	const namespace, subsystem = "meridian", "cluster"
	m := &metrics{
		members: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "members", Help: "Replicas of this plane that are there, this one included.",
		}),
		departures: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "departures_total", Help: "Times that another replica left or was found dead.",
		}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "refused_total", Help: "Times that who is not of this plane was kept from joining.",
		}),
		leading: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: namespace, Subsystem: subsystem, Name: "leading", Help: "Whether this replica leads under a lease: 1 or 0.",
		}, []string{"lease"}),
	}
	if reg != nil {
		reg.MustRegister(m.members, m.departures, m.refused, m.leading)
	}
	return m
}
