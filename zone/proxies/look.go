package proxies

// Look is what is known of a connected proxy.
type Look struct {
	Connected

	// Peer is the address and port that its newest stream comes from.
	Peer string
	// ConfigError is why no newer configuration can be made for it, "" when it can.
	ConfigError string
}

// Look returns what is known of a proxy by its node id, false when it is not connected.
func (r *Registry) Look(nodeID string) (Look, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.connectedLocked(nodeID)
	if p == nil {
		return Look{}, false
	}
	newest := p.streams[len(p.streams)-1]
	return Look{Connected: p.said, Peer: newest.peer, ConfigError: newest.sub.GetStatus().GetConfigError()}, true
}
