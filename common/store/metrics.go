package store

import (
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// outcome is how an update ended, a label of meridian_store_batches_total.
type outcome string

const (
	outcomeCommitted outcome = "committed"
	outcomeUnchanged outcome = "unchanged" // accepted, but nothing to do
	outcomeConflict  outcome = "conflict"  // a precondition did not hold
	outcomeRejected  outcome = "rejected"  // its function's error, or an invalid batch
	outcomeFailed    outcome = "failed"    // not made durable
)

// metrics are the store's figures. Gauges are read from the published snapshot when scraped and cost a commit nothing.
type metrics struct {
	store      *Store
	registerer prometheus.Registerer // nil: not registered

	appendSeconds prometheus.Histogram
	followSeconds prometheus.Histogram
	reloads       prometheus.Counter
	groupBatches  prometheus.Histogram
	batches       map[outcome]prometheus.Counter
	batchesVec    *prometheus.CounterVec

	revision, records, tombstones, queueLength, writable *prometheus.Desc
}

func newMetrics(s *Store, reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		store:      s,
		registerer: reg,
		appendSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "meridian_store_commit_duration_seconds", Help: "Time to make one group of batches durable.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2.5, 12),
		}),
		followSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "meridian_store_follow_duration_seconds", Help: "Time to take over what other replicas committed.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2.5, 12),
		}),
		reloads: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "meridian_store_reloads_total", Help: "Times the whole state was read anew, because the database was replaced, restored or far ahead.",
		}),
		groupBatches: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "meridian_store_group_batches", Help: "Batches that shared one durable transaction.",
			Buckets: prometheus.ExponentialBuckets(1, 2, 9),
		}),
		batchesVec: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "meridian_store_batches_total", Help: "Batches answered, by outcome.",
		}, []string{"outcome"}),
		batches:     map[outcome]prometheus.Counter{},
		revision:    prometheus.NewDesc("meridian_store_revision", "Revision of the published snapshot.", nil, nil),
		records:     prometheus.NewDesc("meridian_store_records", "Records held, by resource type.", []string{"type"}, nil),
		tombstones:  prometheus.NewDesc("meridian_store_tombstones", "Deletions remembered.", nil, nil),
		writable:    prometheus.NewDesc("meridian_store_writable", "1 while the store accepts writes, else 0.", nil, nil),
		queueLength: prometheus.NewDesc("meridian_store_queue_length", "Updates waiting for the committer.", nil, nil),
	}
	for _, o := range []outcome{outcomeCommitted, outcomeUnchanged, outcomeConflict, outcomeRejected, outcomeFailed} {
		m.batches[o] = m.batchesVec.WithLabelValues(string(o))
	}
	if reg != nil {
		if err := reg.Register(m); err != nil {
			return nil, fmt.Errorf("register store metrics: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) unregister() {
	if m.registerer != nil {
		m.registerer.Unregister(m)
	}
}

func (m *metrics) count(o outcome) { m.batches[o].Inc() }

func (m *metrics) timeAppend(batches int, appendGroup func() error) error {
	start := time.Now()
	err := appendGroup()
	m.appendSeconds.Observe(time.Since(start).Seconds())
	m.groupBatches.Observe(float64(batches))
	return err
}

// Describe implements prometheus.Collector. It names the figures of shared stores whatever store this is: dashboards and
// alerts are built on the names.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	m.appendSeconds.Describe(ch)
	m.groupBatches.Describe(ch)
	m.batchesVec.Describe(ch)
	m.followSeconds.Describe(ch)
	m.reloads.Describe(ch)
	for _, d := range []*prometheus.Desc{m.revision, m.records, m.tombstones, m.queueLength, m.writable} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	m.appendSeconds.Collect(ch)
	m.groupBatches.Collect(ch)
	m.batchesVec.Collect(ch)
	if m.store.shared != nil {
		m.followSeconds.Collect(ch)
		m.reloads.Collect(ch)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	head := m.store.Snapshot()
	gauge(m.revision, float64(head.Revision()))
	for typ := range head.Types() {
		gauge(m.records, float64(head.Count(typ, "")), typ)
	}
	gauge(m.tombstones, float64(head.tombstones))
	gauge(m.queueLength, float64(m.store.Waiting()))
	writable := 1.0
	if m.store.Err() != nil {
		writable = 0
	}
	gauge(m.writable, writable)
}
