package kds

import "github.com/prometheus/client_golang/prometheus"

// Metrics are the counters of all KDS streams of a process. Labels are bounded: directions, registered types, fixed
// outcomes.
type Metrics struct {
	streams       *prometheus.GaugeVec
	responses     *prometheus.CounterVec
	resources     *prometheus.CounterVec
	ackAge        *prometheus.HistogramVec
	ackTimeouts   *prometheus.CounterVec
	messageBytes  *prometheus.HistogramVec
	oversized     *prometheus.CounterVec
	received      *prometheus.CounterVec
	arrived       *prometheus.CounterVec
	applied       *prometheus.CounterVec
	invalid       *prometheus.CounterVec
	refused       *prometheus.CounterVec
	massDeletions *prometheus.CounterVec
}

// NewMetrics makes the metrics and registers them with r; a nil r registers nothing.
func NewMetrics(r prometheus.Registerer) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "meridian", Subsystem: "kds", Name: name, Help: help}, labels)
	}
	histogram := func(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: "meridian", Subsystem: "kds", Name: name, Help: help, Buckets: buckets}, labels)
	}
	m := &Metrics{
		streams: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Namespace: "meridian", Subsystem: "kds", Name: "streams", Help: "Open sync streams.",
		}, []string{"direction"}),
		responses:     counter("responses_total", "Responses published, by what became of them: sent, acked, rejected.", "direction", "type", "outcome"),
		resources:     counter("sent_resources_total", "Resources in published responses.", "direction", "type", "op"),
		ackAge:        histogram("ack_age_seconds", "Time from sending a response to its acknowledgement.", prometheus.ExponentialBuckets(0.0005, 2, 16), "direction"),
		ackTimeouts:   counter("ack_timeouts_total", "Streams reset because a response was not acknowledged in time.", "direction"),
		messageBytes:  histogram("message_bytes", "Size of published responses.", prometheus.ExponentialBuckets(256, 4, 9), "direction"),
		oversized:     counter("oversized_total", "States that did not fit one message to a peer without paging, and were not sent.", "direction", "type"),
		received:      counter("received_responses_total", "Responses received, by how they were answered: acked, rejected.", "direction", "type", "outcome"),
		arrived:       counter("received_resources_total", "Resources in received responses that were stored, those that changed nothing included.", "direction", "type", "op"),
		applied:       counter("applied_resources_total", "Resources changed by received responses.", "direction", "type", "op"),
		invalid:       counter("invalid_resources_total", "Received resources that were stored although they break the rules of this version.", "direction", "type"),
		refused:       counter("refused_types_total", "Responses of types that do not travel in that direction.", "direction"),
		massDeletions: counter("mass_deletions_total", "Full states that removed more than half of a type.", "direction", "type"),
	}
	if r != nil {
		r.MustRegister(m.streams, m.responses, m.resources, m.ackAge, m.ackTimeouts, m.messageBytes, m.oversized,
			m.received, m.arrived, m.applied, m.invalid, m.refused, m.massDeletions)
	}
	return m
}
