// Package kds replicates resources between a global control plane and its zones, over the delta stream that Kuma
// calls KDS (the wire of its 2.13 generation).
//
// A stream has a publisher, which offers its resources, and a subscriber, which stores them. On GlobalToZoneSync the
// global publishes and the zone subscribes; on ZoneToGlobalSync it is the other way round. [Direction] is all that
// differs: what is offered ([offer]), how it is named on the wire, and what the receiver accepts ([inbox]).
//
// The rules both ends live by, each there because its absence once cost somebody a mesh:
//
//   - A stream has one reader and one writer. The reader never waits for the writer: what it reads goes into a slot
//     per type, and the protocol allows one response per type in flight, so the slots are bounded.
//   - What is not yet sent is not queued. The publisher remembers up to which revision the peer is current and asks
//     the store for the changes since, so that a slow peer costs nothing and sees only the last state.
//   - An ACK is sent after the commit, never before. Invalid resources are left out and named in a NACK; a failing
//     store ends the stream, so that the next one starts over.
//   - The first response of a type is a full state, and what it lacks is deleted; unless the subscriber presented a
//     [Token] that the publisher can continue from, in which case it is a delta like every later one.
package kds
