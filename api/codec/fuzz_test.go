package codec_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"testing"

	"github.com/meridian-mesh/meridian/api/codec"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
)

func fileSource(name string) *systemv1.DataSource {
	return &systemv1.DataSource{Type: &systemv1.DataSource_File{File: name}}
}

// FuzzDecode feeds bodies of every type. Nothing may panic; the only errors are *Error; and what decodes, encodes to
// JSON that decodes to the same again.
func FuzzDecode(f *testing.F) {
	types := resource.All()
	forEachBody(f, func(_ string, d *resource.Descriptor, content []byte) {
		for i := range types {
			if types[i].Name == d.Name {
				f.Add(uint8(i), false, content)
				f.Add(uint8(i), true, content)
			}
		}
	})
	f.Add(uint8(1), true, []byte("mtls: &a {backends: [{conf: {<<: {x: 0x1F, y: ~}, z: [.5, 1e3]}}]}\n"))
	f.Fuzz(func(t *testing.T, typ uint8, yaml bool, content []byte) {
		d := &types[int(typ)%len(types)]
		mediaType := "application/json"
		if yaml {
			mediaType = "application/yaml"
		}
		doc, err := codec.Decode(d, mediaType, content)
		if err != nil {
			invalid, ok := errors.AsType[*codec.Error](err)
			if !ok || len(invalid.Violations) == 0 {
				t.Fatalf("got %v, want a *codec.Error with violations", err)
			}
			return
		}
		if !yaml && !json.Valid(content) {
			t.Fatal("decoded what is not JSON")
		}
		if err := codec.ValidateSpec(d, doc.Spec); err != nil {
			t.Fatal(err)
		}
		rec := record(d, doc)
		out, err := codec.Encode(d, rec)
		if err != nil {
			t.Fatal(err)
		}
		if !json.Valid(out) {
			t.Fatalf("not JSON: %s", out)
		}
		document, err := codec.EncodeYAML(d, rec)
		if err != nil {
			t.Fatal(err)
		}
		same, err := codec.Decode(d, "application/yaml", document)
		if err != nil || !d.IsJSON() && !bytes.Equal(same.Spec, doc.Spec) {
			t.Fatalf("%s\nbecame\n%s\nwhich reads as %+v, %v", out, document, same, err)
		}
		if again, err := codec.EncodeYAML(d, record(d, same)); err != nil || !bytes.Equal(again, document) {
			t.Fatalf("%s\nbecame, read back,\n%s, %v", document, again, err)
		}
		item, err := codec.EncodeItem(d, rec)
		if err != nil || !bytes.Equal(codec.Single(item), out) {
			t.Fatalf("Single(EncodeItem) differs from Encode: %v", err)
		}
		again, err := codec.Decode(d, "application/json", out)
		if err != nil {
			t.Fatalf("the answer does not decode: %v\n%s", err, out)
		}
		if !bytes.Equal(again.Spec, doc.Spec) {
			t.Fatalf("specification changed on the way\nwas %q\nnow %q\nfor %s", doc.Spec, again.Spec, out)
		}
		if again.Name != doc.Name || again.Mesh != doc.Mesh || len(again.Labels) != len(doc.Labels) || len(again.Unknown) > 0 {
			t.Fatalf("was %+v\nnow %+v", doc, again)
		}
	})
}
