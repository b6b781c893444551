package codec

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/meridian-mesh/meridian/common/store"
)

var testKey = store.Key{Type: "TrafficRoute", Mesh: "default", Name: "route"}

func testRecords() []*store.Record {
	return []*store.Record{
		{Key: testKey, CreateRevision: 1, Version: 1},
		{
			Key: testKey, Spec: []byte{0, 1, 0xff}, Labels: map[string]string{"b": "2", "a": "1", "": ""},
			Origin: "zone-1", WireName: "route", CreateRevision: 3, Version: 1<<64 - 1,
			Created:  time.Date(2024, 1, 2, 3, 4, 5, 678901234, time.UTC),
			Modified: time.Date(1, 1, 1, 0, 0, 0, 1, time.UTC),
		},
		{Key: testKey, Created: time.Unix(0, 0).UTC(), Modified: time.Unix(-1, 999_999_999).UTC(), CreateRevision: 1, Version: 2},
	}
}

func TestARecordReadsBackAsItWasWritten(t *testing.T) {
	k := EncodeKey(testKey)
	for _, want := range testRecords() {
		got, err := DecodeRecord(testKey, k, EncodeRecord(k, want))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("-want +got:\n%s", diff)
		}
	}
}

func TestFieldsOfALaterVersionArePassedOver(t *testing.T) {
	k := EncodeKey(testKey)
	want := testRecords()[1]
	v := EncodeRecord(k, want)
	v = protowire.AppendString(protowire.AppendTag(v, 100, protowire.BytesType), "later")
	v = protowire.AppendFixed64(protowire.AppendTag(v, 101, protowire.Fixed64Type), 7)
	v = protowire.AppendVarint(protowire.AppendTag(v, 102, protowire.VarintType), 7)
	got, err := DecodeRecord(testKey, k, seal(k, v))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestAFieldOfTheWrongKindIsCorrupt(t *testing.T) {
	k := EncodeKey(testKey)
	for number := protowire.Number(1); number <= recordVersion; number++ {
		v := make([]byte, 4)
		if number == recordSpec || number == recordLabel || number == recordOrigin || number == recordWireName {
			v = protowire.AppendVarint(protowire.AppendTag(v, number, protowire.VarintType), 1)
		} else {
			v = protowire.AppendBytes(protowire.AppendTag(v, number, protowire.BytesType), []byte("x"))
		}
		if _, err := DecodeRecord(testKey, k, seal(k, v)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("field %d: %v", number, err)
		}
	}
}

// FuzzDecodeRecord decodes bodies under a checksum that fits, as a bug of a writer would leave them: whatever is
// accepted must be written and read back the same.
func FuzzDecodeRecord(f *testing.F) {
	k := EncodeKey(testKey)
	for _, r := range testRecords() {
		f.Add(EncodeRecord(k, r)[4:])
	}
	f.Add([]byte{0x12, 0x00})             // a label without key and value
	f.Add([]byte{0x28, 0xff, 0xff})       // a cut-off number
	f.Add([]byte{0x0b, 0x0c})             // a group
	f.Add([]byte{0x30, 0xff, 0xff, 0x03}) // nanoseconds alone
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := DecodeRecord(testKey, k, seal(k, append(make([]byte, 4), body...)))
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("error %v does not say that the content is corrupt", err)
			}
			return
		}
		written := EncodeRecord(k, r)
		again, err := DecodeRecord(testKey, k, written)
		if err != nil {
			t.Fatalf("read %+v, which does not read back: %v", r, err)
		}
		if diff := cmp.Diff(r, again); diff != "" {
			t.Fatalf("changed by writing it (-read +read back):\n%s", diff)
		}
		if !bytes.Equal(written, EncodeRecord(k, again)) {
			t.Fatal("equal records give different bytes")
		}
	})
}

// FuzzReadKey reads entry names: what is accepted must name the same entry again.
func FuzzReadKey(f *testing.F) {
	f.Add(EncodeKey(testKey))
	f.Add(EncodeKey(store.Key{Type: "Mesh", Name: "default"}))
	f.Add([]byte("T\x00\x00"))
	f.Add([]byte("T\x00m\x00a\x00b"))
	f.Fuzz(func(t *testing.T, b []byte) {
		var keys KeyReader
		k, err := keys.Read(b)
		if err == nil && !bytes.Equal(b, EncodeKey(k)) {
			t.Fatalf("%q became %q", b, EncodeKey(k))
		}
	})
}
