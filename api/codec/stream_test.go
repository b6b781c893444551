package codec_test

import (
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/meridian-mesh/meridian/api/codec"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

const (
	asJSON = "application/json"
	asYAML = "application/yaml"
)

// split collects what Split yields, as "line:content", and its error.
func split(r io.Reader, mediaType string, maxBytes int) ([]string, error) {
	var parts []string
	for p, err := range codec.Split(r, mediaType, maxBytes) {
		if err != nil {
			return parts, err
		}
		parts = append(parts, string(rune('0'+p.Line))+":"+string(p.Content))
	}
	return parts, nil
}

func TestSplit(t *testing.T) {
	long := strings.Repeat("x", 70_000) // longer than what is read at once
	for _, c := range []struct {
		name, mediaType, stream string
		want                    []string
	}{
		{"an empty stream has no documents", asYAML, "", nil},
		{"comments are no documents", asYAML, "# a\n---\n# b\n\n---\n...\n", nil},
		{"one document needs no marker", asYAML, "a: 1\nb: 2", []string{"1:a: 1\nb: 2"}},
		{"markers separate documents", asYAML, "# head\n---\na: 1\n---\nb: 2\n", []string{"2:\na: 1\n", "4:\nb: 2\n"}},
		{"a marker may be followed by its document", asYAML, "--- {a: 1}\n--- {b: 2}", []string{"1: {a: 1}\n", "2: {b: 2}"}},
		{"a document may be ended", asYAML, "a: 1\n...\nb: 2\n", []string{"1:a: 1\n", "2:\nb: 2\n"}},
		{"directives belong to no document", asYAML, "%YAML 1.1\n---\na: 1\n", []string{"2:\na: 1\n"}},
		{"what only begins like a marker is text", asYAML, "a: |\n  ---\n----: 1\n---b: 2\n", []string{"1:a: |\n  ---\n----: 1\n---b: 2\n"}},
		{"lines end as on Windows", asYAML, "---\r\na: 1\r\n---\r\nb: 2\r\n", []string{"1:\r\na: 1\r\n", "3:\r\nb: 2\r\n"}},
		{"lines may be long", asYAML, "a: " + long + "\n---\nb: 2\n", []string{"1:a: " + long + "\n", "2:\nb: 2\n"}},
		{"a long line may hold a marker further on", asYAML, "#" + long + "\n--- a", []string{"2: a"}},
		{"JSON objects may follow one another", asJSON, `{"a":1} {"b":[2]}`, []string{`0:{"a":1}`, `0:{"b":[2]}`}},
		{"JSON may be an array", asJSON, `[{"a":1}, {"b":2}, 3]`, []string{`0:{"a":1}`, `0:{"b":2}`, `0:3`}},
		{"JSON may be a list", asJSON, `{"total":2,"items":[{"a":1},{"b":2}],"next":null}`, []string{`0:{"a":1}`, `0:{"b":2}`}},
		{"an empty list has no documents", asJSON, `{"total":0,"items":null,"next":null} []`, nil},
		{"members given twice are kept", asJSON, `{"a":1,"a":{"items":[]}}`, []string{`0:{"a":1,"a":{"items":[]}}`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			for name, r := range map[string]io.Reader{
				"at once": strings.NewReader(c.stream), "by bytes": iotest.OneByteReader(strings.NewReader(c.stream)),
			} {
				got, err := split(r, c.mediaType, 100_000)
				if err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				if d := cmp.Diff(c.want, got); d != "" {
					t.Errorf("%s: %s", name, d)
				}
			}
		})
	}
}

func TestSplitRefuses(t *testing.T) {
	for _, c := range []struct{ name, mediaType, stream, want string }{
		{"a document that is too large", asYAML, "---\na: 1\n---\nb: " + strings.Repeat("x", 20), "invalid body: a document that begins at line 3 is larger than 20 bytes"},
		{"a JSON document that is too large", asJSON, `[1,"` + strings.Repeat("x", 20) + `"]`, "invalid body: a document is larger than 20 bytes"},
		{"half an array", asJSON, `[{"a":1},`, "invalid body: malformed JSON near byte 9: unexpected EOF"},
		{"half an object", asJSON, `{"a":`, "invalid body: malformed JSON near byte 5: unexpected EOF"},
		{"a value that is no object", asJSON, `7`, "invalid body: malformed JSON near byte 1: expected an object, or an array of objects"},
		{"items that are no array", asJSON, `{"items":{}}`, "invalid body: malformed JSON near byte 10: expected an object, or an array of objects"},
		{"what is not JSON", asJSON, "[{\"a\":1}\n---", "invalid body: malformed JSON near byte 9: expected comma after array element"},
		{"another format", "text/plain", "a", `unsupported media type: "text/plain"`},
		{"no format", "", "a", `unsupported media type: ""`},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := split(strings.NewReader(c.stream), c.mediaType, 20)
			if err == nil || err.Error() != c.want {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
	t.Run("what cannot be read", func(t *testing.T) {
		for _, mediaType := range []string{asJSON, asYAML} {
			_, err := split(iotest.ErrReader(os.ErrDeadlineExceeded), mediaType, 20)
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: got %v", mediaType, err)
			}
		}
	})
}

func TestSplitStopsWhenNoMoreIsWanted(t *testing.T) {
	for mediaType, stream := range map[string]string{asJSON: "[1,2,3]", asYAML: "--- 1\n--- 2\n"} {
		n := 0
		for range codec.Split(strings.NewReader(stream), mediaType, 100) {
			n++
			break
		}
		if n != 1 {
			t.Errorf("%s: %d parts", mediaType, n)
		}
	}
}

func TestDecodeAnyReadsTypeAndTimes(t *testing.T) {
	d, doc, err := codec.DecodeAny(asYAML, []byte(`
type: TrafficPermission
mesh: default
name: web
creationTime: 2024-03-01T10:15:30.606217+02:00
modificationTime: "2024-03-02T00:00:00Z"
sources: [{match: {kuma.io/service: web}}]
destinations: [{match: {kuma.io/service: backend}}]
`))
	if err != nil {
		t.Fatal(err)
	}
	if d.Name != "TrafficPermission" || doc.Mesh != "default" || doc.Name != "web" || len(doc.Spec) == 0 {
		t.Errorf("got %s and %+v", d.Name, doc)
	}
	if !doc.Created.Equal(created) || !doc.Modified.Equal(modified) {
		t.Errorf("times are %s and %s", doc.Created, doc.Modified)
	}
	_, doc, err = codec.DecodeAny(asJSON, []byte(`{"type":"Mesh","name":"a","creationTime":"1970-01-01T00:00:00Z","modificationTime":null}`))
	if err != nil || !doc.Created.IsZero() || !doc.Modified.IsZero() {
		t.Errorf("got %+v, %v", doc, err)
	}
}

func TestDecodeAnyNamesWhatItRefuses(t *testing.T) {
	type named struct{ Type, Mesh, Name, Err string }
	for _, c := range []struct {
		name, content string
		want          named
	}{
		{"no object", `[]`, named{"", "", "", "invalid body: must be an object, got an array"}},
		{"no type", `{"mesh":"m","name":"n"}`, named{"", "m", "n", "invalid body: type must be defined"}},
		{"an unknown type", `{"type":"Nope","name":"n"}`, named{"Nope", "", "n", `invalid body: type is not known: "Nope"`}},
		{"a type that is no text", `{"type":7,"name":"n"}`, named{"", "", "n", "invalid body: type must be a string, got a number"}},
		{"a wrong field", `{"type":"Mesh","name":"n","mtls":7}`, named{"Mesh", "", "n", "invalid body: mtls must be an object, got a number"}},
		{"a time that is none", `{"type":"Mesh","name":"n","creationTime":"now"}`, named{"Mesh", "", "n", `invalid body: creationTime must be a time such as "2006-01-02T15:04:05Z", got "now"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, doc, err := codec.DecodeAny(asJSON, []byte(c.content))
			if err == nil {
				t.Fatal("no error")
			}
			if d := cmp.Diff(c.want, named{doc.Type, doc.Mesh, doc.Name, err.Error()}); d != "" {
				t.Error(d)
			}
		})
	}
}

// TestEncodeYAML: what Encode writes as JSON, EncodeYAML writes as YAML, for every body there is.
func TestEncodeYAML(t *testing.T) {
	forEachBody(t, func(file string, d *resource.Descriptor, content []byte) {
		rec := record(d, decode(t, d, string(content)))
		document, err := codec.EncodeYAML(d, rec)
		if err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		same, doc, err := codec.DecodeAny(asYAML, document)
		if err != nil {
			t.Fatalf("%s: %v\n%s", file, err, document)
		}
		if same != d {
			t.Fatalf("%s: reads as a %v", file, same)
		}
		again := record(d, doc)
		again.Created, again.Modified = doc.Created, doc.Modified
		rec.Created, rec.Modified = rec.Created.UTC(), rec.Modified.UTC()
		if diff := cmp.Diff(rec, again); diff != "" {
			t.Errorf("%s: %s\n%s", file, diff, document)
		}
	})
}

func TestEncodeYAMLIsReadable(t *testing.T) {
	doc := decode(t, row(t, "MeshTrafficPermission"), `{"type":"MeshTrafficPermission","mesh":"default","name":"true",
		"labels":{"kuma.io/zone":"east-1","note":"two words","empty":"","`+strings.Repeat("k", 1001)+`":"long"},
		"spec":{"targetRef":{"kind":"Mesh"},"from":[{"targetRef":{"kind":"Mesh"},"default":{"action":"ALLOW"}},{"a":[[1,2],[],{}]}],
		"x":{"n":-1.50,"big":1e999,"no":null,"yes":true,"line":"a\nb ","key with: colon":"1"}}}`)
	got, err := codec.EncodeYAML(row(t, "MeshTrafficPermission"), &store.Record{
		Key:  store.Key{Type: "MeshTrafficPermission", Mesh: "default", Name: "true"},
		Spec: doc.Spec, Labels: doc.Labels, Created: time.Unix(1, 0), Modified: modified,
	})
	if err != nil {
		t.Fatal(err)
	}
	want := `type: MeshTrafficPermission
mesh: default
name: "true"
creationTime: "1970-01-01T00:00:01Z"
modificationTime: "2024-03-02T00:00:00Z"
labels:
  empty: ""
  ? ` + strings.Repeat("k", 1001) + `
  : long
  kuma.io/zone: east-1
  note: "two words"
spec:
  targetRef:
    kind: Mesh
  from:
  - targetRef:
      kind: Mesh
    default:
      action: ALLOW
  - a:
    - - 1
      - 2
    - []
    - {}
  x:
    "n": -1.50
    big: !!float 1e999
    "no": null
    "yes": true
    line: "a\nb\u2028"
    "key with: colon": "1"
`
	if d := cmp.Diff(want, string(got)); d != "" {
		t.Error(d)
	}
	if again, err := codec.Decode(row(t, "MeshTrafficPermission"), asYAML, got); err != nil || string(again.Spec) != string(doc.Spec) {
		t.Errorf("reads as %s, %v", again.Spec, err)
	}
}
