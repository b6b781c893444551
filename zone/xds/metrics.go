package xds

import (
	"fmt"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/protobuf/proto"
)

// metrics count what happens on streams. Their one label is a kind.
type metrics struct {
	streams   prometheus.Gauge
	responses *prometheus.CounterVec
	bytes     *prometheus.CounterVec
	nacks     *prometheus.CounterVec
	latency   prometheus.Histogram
}

var kindLabels = [kinds]string{
	Cluster: "cluster", Endpoint: "endpoint", Secret: "secret", Listener: "listener", Route: "route", Runtime: "runtime",
}

func newMetrics() *metrics {
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: "meridian", Subsystem: "ads", Name: name, Help: help},
			[]string{"kind"})
	}
	m := &metrics{
		streams: prometheus.NewGauge(prometheus.GaugeOpts{
			Namespace: "meridian", Subsystem: "ads", Name: "streams", Help: "Open streams of proxies.",
		}),
		responses: counter("responses_total", "Responses sent to proxies."),
		bytes:     counter("response_bytes_total", "Size of the responses sent to proxies, before compression."),
		nacks:     counter("rejections_total", "Responses that proxies rejected."),
		latency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: "meridian", Subsystem: "ads", Name: "publish_to_send_seconds",
			Help:    "Time from publishing a change to having sent it to a proxy that was connected by then.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 4, 10),
		}),
	}
	for _, label := range kindLabels {
		m.responses.WithLabelValues(label)
		m.bytes.WithLabelValues(label)
		m.nacks.WithLabelValues(label)
	}
	return m
}

func (m *metrics) register(r prometheus.Registerer) error {
	for _, c := range []prometheus.Collector{m.streams, m.responses, m.bytes, m.nacks, m.latency} {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("register metrics of the aggregated discovery service: %w", err)
		}
	}
	return nil
}

// sent counts a response that has been sent; since is when what is new in it was published, zero when nothing is.
func (m *metrics) sent(k Kind, r *discoveryv3.DiscoveryResponse, since time.Time) {
	m.responses.WithLabelValues(kindLabels[k]).Inc()
	m.bytes.WithLabelValues(kindLabels[k]).Add(float64(proto.Size(r)))
	if !since.IsZero() {
		m.latency.Observe(time.Since(since).Seconds())
	}
}

// nacked counts a rejection. Nothing of an unknown type was sent, so a rejection of it is not counted.
func (m *metrics) nacked(k Kind, known bool) {
	if known {
		m.nacks.WithLabelValues(kindLabels[k]).Inc()
	}
}
