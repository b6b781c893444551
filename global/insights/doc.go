// Package insights keeps the counters of each mesh: a MeshInsight and, with one entry a service, a ServiceInsight.
//
// What a dataplane adds to which counter is remembered. When the dataplane or its insight changes, the old contribution
// is taken away and the new one added, so the cost of a change does not grow with the mesh. Nothing is polled: the
// package follows the store, and while it is not looking the store merges what happens for it.
//
//	insights.go  follows the store, and stores what changed
//	counts.go    the counters of a mesh, and what changes them
//	message.go   the counters as messages
//
// Both insights are derived and nothing else: they are counted anew at start, and only differences are stored. Of several
// replicas of a plane the leader counts; the others read what it stored. A leader that lost the lead without noticing cannot
// store anything: each batch is fenced by the lease.
package insights
