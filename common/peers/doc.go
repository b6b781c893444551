// Package peers is calls between the replicas of one plane: a replica that is asked for what another one holds, such as the stream
// of a proxy, asks that one.
//
// A call has a name, "area/verb", and a body in JSON each way. Replicas of two versions live side by side during an upgrade: fields
// are added, never changed, and a call that the other version does not have is [ErrUnknownCall]. The callee gets the deadline of its
// caller, and its context ends when the caller has gone. A call is made once: what may be repeated, its caller repeats.
//
// Calls are HTTP/2 over mutual TLS, on a port of their own. The authority is in the store that makes the replicas one plane: whoever
// may write the plane's state could speak in its name anyway, and nothing has to be handed out to operators. It is looked up
// at each handshake, since a database may be restored or replaced while the replicas run; a connection that is open stays
// so. Each replica signs itself a certificate with its instance id, which lives for an hour in memory only; both ends look for that
// name, so that an address that has gone to another instance is not taken for the one that had it.
//
// Why not gossip (common/cluster): it carries packets that may be lost, bounded lists, and no answers. It says where a replica probably is,
// which is all that is asked of it here. Why not the port that zones or proxies connect to: other parties reach those, with other
// certificates and other rights, behind load balancers that choose a replica. What replicas ask each other must reach a certain
// replica, and nobody else.
//
// Files, in the order of a call: call.go makes it, serve.go answers it, authority.go tells each who the other is.
package peers
