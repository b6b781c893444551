// Package cluster is the replicas of one plane that know of each other: who is there, where, since when, and what each holds.
//
// Replicas gossip (hashicorp/memberlist): each probes the others and tells what it learns, so that all of them know within
// 5 seconds that one has died, and at once when one leaves in an orderly way. Nothing is decided by it. What must happen once
// is decided by the store's leases, what is true by the store; this package knows who is probably there, which is enough to find a
// replica and to show an operator.
//
// Beside its address each member tells what it holds: lists of names, such as the zones that have a session with it. Each
// member owns its own lists and counts their versions. They go to the other members when they change, and whole states are
// exchanged with a random member every few seconds, so that a lost message is late and not lost. Lists are bounded; of a longer one
// the beginning is told, and its length.
//
// Replicas are found by a list of addresses, and by records that each writes to the store which they share (seeds.go).
//
// Members of another plane are refused: each tells the id of its plane's store. What a member tells of itself is JSON whose
// unknown fields are ignored, so that versions mix.
//
// A plane of one replica switches this off, and is the only member.
package cluster
