package store

import (
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Options tune a store; the zero value means the defaults.
type Options struct {
	// QueueLength is how many updates may wait for the committer before Update blocks. Default 1024.
	QueueLength int
	// MaxGroupBatches and MaxGroupBytes bound what shares one durable transaction. A group takes no further update
	// once it has either; a single batch may exceed MaxGroupBytes. Default 256 batches, 4 MiB.
	MaxGroupBatches, MaxGroupBytes int
	// TombstoneRetention is how long a deletion is remembered at least, unless there are more than MaxTombstones.
	// Default 24 hours. A negative value forgets at the next commit.
	TombstoneRetention time.Duration
	// MaxTombstones is how many deletions are remembered at most, give or take a tenth. Default 100,000. A negative
	// value remembers none.
	MaxTombstones int
	// Registerer takes the metrics of the store until it is closed. Nil: no metrics.
	Registerer prometheus.Registerer
	// Log is told when the store stops accepting writes. Nil: nothing is logged.
	Log *slog.Logger
}

func (o Options) withDefaults() Options {
	setDefault(&o.QueueLength, 1024)
	setDefault(&o.MaxGroupBatches, 256)
	setDefault(&o.MaxGroupBytes, 4<<20)
	setDefault(&o.TombstoneRetention, 24*time.Hour)
	setDefault(&o.MaxTombstones, 100_000)
	o.MaxTombstones = max(o.MaxTombstones, 0)
	o.TombstoneRetention = max(o.TombstoneRetention, 0)
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}
