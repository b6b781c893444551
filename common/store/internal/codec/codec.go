// Package codec is how records and tombstones are written down: the form of the values that durable backends keep. A
// value carries a checksum, so that what was damaged, or stands under another key, is noticed and never served.
package codec

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/meridian-mesh/meridian/common/store"
)

// ErrCorrupt reports content that does not read back as it was written.
var ErrCorrupt = errors.New("stored content is corrupt")

// A value is a CRC-32C (4 bytes, big endian) of key and body, then the body: protobuf fields as numbered below, written
// by hand since there is no message to generate for three fixed shapes. A field this program does not know is passed
// over, so a later version may add some. A time is seconds since 1970 and nanoseconds; without seconds it is zero.
const (
	recordSpec            = 1  // bytes
	recordLabel           = 2  // message, repeated: key, value
	recordOrigin          = 3  // string
	recordWireName        = 4  // string
	recordCreatedSeconds  = 5  // sint64
	recordCreatedNanos    = 6  // uint32
	recordModifiedSeconds = 7  // sint64
	recordModifiedNanos   = 8  // uint32
	recordCreateRevision  = 9  // uint64
	recordVersion         = 10 // uint64

	labelKey   = 1 // string
	labelValue = 2 // string

	tombstoneOrigin         = 1 // string
	tombstoneRevision       = 2 // uint64
	tombstoneDeletedSeconds = 3 // sint64
	tombstoneDeletedNanos   = 4 // uint32
)

// EncodeKey returns the name of the entry of k: type, mesh and name joined by NULs, which keys do not contain.
func EncodeKey(k store.Key) []byte {
	b := make([]byte, 0, len(k.Type)+len(k.Mesh)+len(k.Name)+2)
	b = append(append(b, k.Type...), 0)
	b = append(append(b, k.Mesh...), 0)
	return append(b, k.Name...)
}

// KeyReader turns entry names into keys. Neighbours mostly share type and mesh, and so they share the strings.
type KeyReader struct{ last store.Key }

// Read returns the key that EncodeKey made b of.
func (r *KeyReader) Read(b []byte) (store.Key, error) {
	typ, rest, ok1 := bytes.Cut(b, []byte{0})
	mesh, name, ok2 := bytes.Cut(rest, []byte{0})
	if !ok1 || !ok2 || len(typ) == 0 || len(name) == 0 || bytes.IndexByte(name, 0) >= 0 {
		return store.Key{}, fmt.Errorf("%w: %q is not a key", ErrCorrupt, b)
	}
	if string(typ) != r.last.Type {
		r.last.Type = string(typ)
	}
	if string(mesh) != r.last.Mesh {
		r.last.Mesh = string(mesh)
	}
	r.last.Name = string(name)
	return r.last, nil
}

// EncodeRecord returns the value of r under the entry name k. Equal records give equal bytes.
func EncodeRecord(k []byte, r *store.Record) []byte {
	b := make([]byte, 4, 64+len(r.Spec)+len(r.Origin)+len(r.WireName)+32*len(r.Labels))
	if len(r.Spec) > 0 {
		b = protowire.AppendBytes(protowire.AppendTag(b, recordSpec, protowire.BytesType), r.Spec)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Labels)) {
		var label []byte
		label = appendString(label, labelKey, name)
		label = appendString(label, labelValue, r.Labels[name])
		b = protowire.AppendBytes(protowire.AppendTag(b, recordLabel, protowire.BytesType), label)
	}
	b = appendString(b, recordOrigin, r.Origin)
	b = appendString(b, recordWireName, r.WireName)
	b = appendTime(b, recordCreatedSeconds, recordCreatedNanos, r.Created)
	b = appendTime(b, recordModifiedSeconds, recordModifiedNanos, r.Modified)
	b = appendUint(b, recordCreateRevision, uint64(r.CreateRevision))
	b = appendUint(b, recordVersion, uint64(r.Version))
	return seal(k, b)
}

// DecodeRecord reads what EncodeRecord wrote. The record shares nothing with v.
func DecodeRecord(key store.Key, k, v []byte) (*store.Record, error) {
	body, err := unseal(k, v)
	if err != nil {
		return nil, err
	}
	r := &store.Record{Key: key}
	var created, modified timeReader
	err = fields(body, func(f field) error {
		switch f.number {
		case recordSpec:
			r.Spec = bytes.Clone(f.bytes)
			return f.want(protowire.BytesType)
		case recordLabel:
			if err := f.want(protowire.BytesType); err != nil {
				return err
			}
			var name, value string
			err := fields(f.bytes, func(f field) error {
				switch f.number {
				case labelKey:
					return f.text(&name)
				case labelValue:
					return f.text(&value)
				}
				return nil
			})
			if r.Labels == nil {
				r.Labels = map[string]string{}
			}
			r.Labels[name] = value
			return err
		case recordOrigin:
			return f.text(&r.Origin)
		case recordWireName:
			return f.text(&r.WireName)
		case recordCreatedSeconds:
			return created.seconds(f)
		case recordCreatedNanos:
			return created.nanos(f)
		case recordModifiedSeconds:
			return modified.seconds(f)
		case recordModifiedNanos:
			return modified.nanos(f)
		case recordCreateRevision:
			return f.revision(&r.CreateRevision)
		case recordVersion:
			return f.revision(&r.Version)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if len(r.Spec) == 0 {
		r.Spec = nil
	}
	r.Created, r.Modified = created.time(), modified.time()
	return r, nil
}

// EncodeTombstone returns the value of t under the entry name k.
func EncodeTombstone(k []byte, t store.Tombstone) []byte {
	b := make([]byte, 4, 32+len(t.Origin))
	b = appendString(b, tombstoneOrigin, t.Origin)
	b = appendUint(b, tombstoneRevision, uint64(t.Revision))
	b = appendTime(b, tombstoneDeletedSeconds, tombstoneDeletedNanos, t.Deleted)
	return seal(k, b)
}

// DecodeTombstone reads what EncodeTombstone wrote.
func DecodeTombstone(key store.Key, k, v []byte) (store.Tombstone, error) {
	body, err := unseal(k, v)
	if err != nil {
		return store.Tombstone{}, err
	}
	t := store.Tombstone{Key: key}
	var deleted timeReader
	err = fields(body, func(f field) error {
		switch f.number {
		case tombstoneOrigin:
			return f.text(&t.Origin)
		case tombstoneRevision:
			return f.revision(&t.Revision)
		case tombstoneDeletedSeconds:
			return deleted.seconds(f)
		case tombstoneDeletedNanos:
			return deleted.nanos(f)
		}
		return nil
	})
	if err != nil {
		return store.Tombstone{}, err
	}
	t.Deleted = deleted.time()
	return t, nil
}

// seal fills in the checksum, for which b has four bytes free at its start. The key is part of it: an entry under
// another's name does not read back.
func seal(k, b []byte) []byte {
	binary.BigEndian.PutUint32(b, checksum(k, b[4:]))
	return b
}

func unseal(k, v []byte) ([]byte, error) {
	if len(v) < 4 {
		return nil, fmt.Errorf("%w: value of %d bytes", ErrCorrupt, len(v))
	}
	if got, want := checksum(k, v[4:]), binary.BigEndian.Uint32(v); got != want {
		return nil, fmt.Errorf("%w: checksum is %08x, not %08x", ErrCorrupt, got, want)
	}
	return v[4:], nil
}

func checksum(k, body []byte) uint32 {
	table := crc32.MakeTable(crc32.Castagnoli) // made once by the library
	return crc32.Update(crc32.Checksum(k, table), table, body)
}

func appendString(b []byte, n protowire.Number, s string) []byte {
	if s == "" {
		return b
	}
	return protowire.AppendString(protowire.AppendTag(b, n, protowire.BytesType), s)
}

func appendUint(b []byte, n protowire.Number, v uint64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(b, n, protowire.VarintType), v)
}

func appendTime(b []byte, seconds, nanos protowire.Number, t time.Time) []byte {
	if t.IsZero() {
		return b
	}
	b = appendUint(b, seconds, protowire.EncodeZigZag(t.Unix()))
	if n := t.Nanosecond(); n != 0 {
		b = appendUint(b, nanos, uint64(n))
	}
	return b
}

// field is one field as it stands in the bytes; bytes or varint is set as typ says.
type field struct {
	number protowire.Number
	typ    protowire.Type
	bytes  []byte
	varint uint64
}

// fields calls visit for each field of b.
func fields(b []byte, visit func(field) error) error {
	for len(b) > 0 {
		number, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return fmt.Errorf("%w: %w", ErrCorrupt, protowire.ParseError(n))
		}
		b = b[n:]
		f := field{number: number, typ: typ}
		switch typ {
		case protowire.VarintType:
			f.varint, n = protowire.ConsumeVarint(b)
		case protowire.BytesType:
			f.bytes, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(number, typ, b)
		}
		if n < 0 {
			return fmt.Errorf("%w: field %d: %w", ErrCorrupt, number, protowire.ParseError(n))
		}
		b = b[n:]
		if err := visit(f); err != nil {
			return err
		}
	}
	return nil
}

func (f field) want(t protowire.Type) error {
	if f.typ != t {
		return fmt.Errorf("%w: field %d has wire type %d", ErrCorrupt, f.number, f.typ)
	}
	return nil
}

func (f field) text(s *string) error {
	*s = string(f.bytes)
	return f.want(protowire.BytesType)
}

func (f field) revision(r *store.Revision) error {
	*r = store.Revision(f.varint)
	return f.want(protowire.VarintType)
}

// timeReader puts a time together from its two fields.
type timeReader struct {
	set  bool
	s, n int64
}

func (t *timeReader) seconds(f field) error {
	t.set, t.s = true, protowire.DecodeZigZag(f.varint)
	return f.want(protowire.VarintType)
}

func (t *timeReader) nanos(f field) error {
	if f.varint >= uint64(time.Second) {
		return fmt.Errorf("%w: field %d: %d nanoseconds", ErrCorrupt, f.number, f.varint)
	}
	t.n = int64(f.varint)
	return f.want(protowire.VarintType)
}

func (t *timeReader) time() time.Time {
	if !t.set {
		return time.Time{}
	}
	return time.Unix(t.s, t.n).UTC()
}
