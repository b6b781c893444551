package reconcile

import (
	"sync"
	"time"

	"github.com/meridian-mesh/meridian/zone/proxies"
)

type (
	// Connected is a proxy that has a stream.
	Connected = proxies.Connected
	// Certificate is the identity that a proxy has been given.
	Certificate = proxies.Certificate
	// Metadata is what a proxy tells of itself.
	Metadata = proxies.Metadata
)

// The kinds of proxies.
const (
	Sidecar = proxies.Sidecar
	Ingress = proxies.Ingress
	Egress  = proxies.Egress
)

var _ proxies.Watcher = (*Reconciler)(nil)

// inbox holds which proxies came and went since the loop last looked. Nobody who tells it waits.
type inbox struct {
	wake chan struct{} // cap 1, level-triggered: there are events

	mu     sync.Mutex // guards what follows
	events []event
}

// event is that a proxy came or, with connected nil, went.
type event struct {
	nodeID    string
	connected *Connected
	at        time.Time
}

func (i *inbox) add(e event) {
	i.mu.Lock()
	i.events = append(i.events, e)
	i.mu.Unlock()
	select {
	case i.wake <- struct{}{}:
	default: // already awake
	}
}

func (i *inbox) take() []event {
	i.mu.Lock()
	defer i.mu.Unlock()
	events := i.events
	i.events = nil
	return events
}

// Connected tells that a proxy has opened its first stream, or that what it says of itself is another. Its resource must be in
// the store by then. It does not block.
func (r *Reconciler) Connected(c Connected) {
	r.inbox.add(event{nodeID: c.NodeID, connected: &c, at: time.Now()})
}

// Disconnected tells that a proxy has closed its last stream. Its configuration is forgotten. It does not block.
func (r *Reconciler) Disconnected(nodeID string) { r.inbox.add(event{nodeID: nodeID, at: time.Now()}) }
