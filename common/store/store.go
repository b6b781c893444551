// Package store is the change log and the in-memory view that everything else in a control plane reads.
//
// A store commits atomic batches of puts and deletes. Each committed batch gets the next [Revision]: a uint64 that
// is gap-free and grows in commit order. The whole state is held in memory as immutable snapshots, so that reads
// take no locks and are always consistent; a [Backend] makes batches durable and is read only once, when the store
// is opened.
//
// The package knows keys and bytes, not resource types.
package store

import (
	"time"
)

// Revision counts committed batches. The first batch has revision 1; 0 is the empty store.
type Revision uint64

// Key names a record. Mesh is empty for records that live outside any mesh.
type Key struct {
	Type, Mesh, Name string
}

// String renders the key for logs: "Type/mesh/name", or "Type/name" outside meshes.
func (k Key) String() string {
	if k.Mesh == "" {
		return k.Type + "/" + k.Name
	}
	return k.Type + "/" + k.Mesh + "/" + k.Name
}

// Record is one resource at one version. Records are shared between all readers: neither the struct nor what it
// points to may be changed after it was handed to the store.
type Record struct {
	Key Key
	// Spec is the encoded specification, opaque here.
	Spec []byte
	// Labels are the user's and the peer's labels; nil when there are none.
	Labels map[string]string
	// Origin names the peer plane that owns the record: a zone's name, or "global". Empty means that this plane
	// owns it. Only the sync receiver may write records with an origin.
	Origin string
	// WireName is the name the owning peer uses for the record on the wire, where Origin is set.
	WireName string
	// Created and Modified are zero when the owner did not say.
	Created, Modified time.Time
	// CreateRevision is the revision of the batch that first created the record; Version that of its last change.
	// Both are set by the store.
	CreateRevision, Version Revision
}

// Tombstone remembers a deleted record until it is compacted.
type Tombstone struct {
	Key      Key
	Origin   string
	Revision Revision // of the batch that deleted it
	Deleted  time.Time
}

// Change is the last thing that happened to a key after some revision.
type Change struct {
	Key      Key
	Record   *Record // nil when the key was deleted
	Origin   string  // of the record, or of the record that was deleted
	Revision Revision
}

// Delta is what a batch did to a key.
type Delta struct {
	Key Key
	// Old is nil when there was none, New when it was deleted. They are the same when the batch changed nothing.
	Old, New *Record
}

// Op is one element of a batch: a put or a delete, with an optional precondition.
type Op struct {
	Key Key
	// Record is what to put; nil deletes Key. Deleting an absent key is no change and no error.
	Record *Record
	// IfVersion, when not nil, must equal the key's version at commit (0: the key must be absent); otherwise the
	// whole batch fails with ErrConflict.
	IfVersion *Revision
}

// Put returns the Op that stores r, whatever was there before.
func Put(r *Record) Op { return Op{Key: r.Key, Record: r} }

// Delete returns the Op that removes k, if it is there.
func Delete(k Key) Op { return Op{Key: k} }

// If returns o with the precondition that the key's version is v at commit.
func (o Op) If(v Revision) Op { o.IfVersion = &v; return o }
