package reconcile

import (
	"sync"
	"time"
)

// Kind is a kind of proxy.
type Kind uint8

// The kinds of proxies.
const (
	Sidecar Kind = iota
	Ingress
	Egress
)

// String names the kind in logs and metrics.
func (k Kind) String() string { return [...]string{"sidecar", "ingress", "egress"}[k] }

// Connected is a proxy that connected.
type Connected struct {
	NodeID     string
	Kind       Kind
	Proxyless  bool
	Mesh, Name string
	Metadata   Metadata
}

// Metadata is what a proxy tells of itself.
type Metadata struct {
	AdminAddress          string
	AdminPort             uint32
	DNSPort, EmptyDNSPort uint32
	Features              []string
}

// Certificate is what a proxy proves its identity with.
type Certificate struct {
	Issued, NotAfter time.Time
	Backend          string
	Supported        []string
}

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
