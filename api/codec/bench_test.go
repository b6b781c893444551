package codec_test

import (
	"os"
	"testing"

	"github.com/meridian-mesh/meridian/api/codec"
	"github.com/meridian-mesh/meridian/api/resource"
)

// benchTypes are a small, a large and a JSON specification.
var benchTypes = []resource.Type{"TrafficPermission", "TrafficRoute", "Mesh", "MeshTrafficPermission"}

func benchBody(b *testing.B, typ resource.Type) (*resource.Descriptor, []byte) {
	b.Helper()
	content, err := os.ReadFile("testdata/bodies/" + string(typ) + ".json")
	if err != nil {
		b.Fatal(err)
	}
	return row(b, typ), content
}

func BenchmarkDecode(b *testing.B) {
	for _, typ := range benchTypes {
		b.Run(string(typ), func(b *testing.B) {
			d, content := benchBody(b, typ)
			b.SetBytes(int64(len(content)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := codec.Decode(d, "application/json", content); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkEncode(b *testing.B) {
	for _, typ := range benchTypes {
		b.Run(string(typ), func(b *testing.B) {
			d, content := benchBody(b, typ)
			rec := record(d, decode(b, d, string(content)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := codec.Encode(d, rec); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkSingle(b *testing.B) {
	d, content := benchBody(b, "TrafficRoute")
	item, err := codec.EncodeItem(d, record(d, decode(b, d, string(content))))
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(item)))
	b.ReportAllocs()
	for b.Loop() {
		codec.Single(item)
	}
}
