package codec_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meridian-mesh/meridian/api/codec"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var (
	created  = time.Date(2024, 3, 1, 10, 15, 30, 606217000, time.FixedZone("", 2*3600))
	modified = time.Date(2024, 3, 2, 0, 0, 0, 0, time.UTC)
)

func row(t testing.TB, typ resource.Type) *resource.Descriptor {
	t.Helper()
	d, ok := resource.Lookup(typ)
	if !ok {
		t.Fatalf("no type %q", typ)
	}
	return d
}

// forEachBody calls f with every file of testdata/bodies and its type: the file's name up to a dash.
func forEachBody(t testing.TB, f func(file string, d *resource.Descriptor, content []byte)) {
	t.Helper()
	dir := os.DirFS("testdata/bodies")
	names, err := fs.Glob(dir, "*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		content, err := fs.ReadFile(dir, name)
		if err != nil {
			t.Fatal(err)
		}
		typ, _, _ := strings.Cut(strings.TrimSuffix(name, ".json"), "-")
		f(name, row(t, resource.Type(typ)), content)
	}
}

func decode(t testing.TB, d *resource.Descriptor, content string) *codec.Document {
	t.Helper()
	doc, err := codec.Decode(d, "application/json", []byte(content))
	if err != nil {
		t.Fatalf("decode %s: %v", content, err)
	}
	return doc
}

func record(d *resource.Descriptor, doc *codec.Document) *store.Record {
	return &store.Record{
		Key:     store.Key{Type: string(d.Name), Mesh: doc.Mesh, Name: doc.Name},
		Spec:    doc.Spec,
		Labels:  doc.Labels,
		Created: created, Modified: modified,
	}
}

func encode(t testing.TB, d *resource.Descriptor, rec *store.Record) string {
	t.Helper()
	out, err := codec.Encode(d, rec)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := path.Join("testdata/golden", name)
	if *update {
		if err := os.MkdirAll(path.Dir(file), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("%v (run with -update to make it)", err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

func TestEveryTypeHasABody(t *testing.T) {
	seen := map[resource.Type]bool{}
	forEachBody(t, func(_ string, d *resource.Descriptor, _ []byte) { seen[d.Name] = true })
	for _, d := range resource.All() {
		if !seen[d.Name] {
			t.Errorf("testdata/bodies has none of type %s", d.Name)
		}
	}
}

func TestEveryBodyIsAnsweredAsItWasSent(t *testing.T) {
	var files []string
	forEachBody(t, func(file string, d *resource.Descriptor, content []byte) {
		files = append(files, file)
		t.Run(file, func(t *testing.T) {
			doc := decode(t, d, string(content))
			if len(doc.Unknown) > 0 {
				t.Errorf("unknown fields: %q", doc.Unknown)
			}
			if err := codec.ValidateSpec(d, doc.Spec); err != nil {
				t.Error(err)
			}
			got := encode(t, d, record(d, doc))
			golden(t, file, []byte(got))

			want, have := object(t, string(content)), object(t, got)
			delete(have, "creationTime")
			delete(have, "modificationTime")
			want["type"] = string(d.Name) // one body uses the older spelling
			if !d.IsJSON() {
				want = withoutNulls(want).(map[string]any)
			}
			if diff := cmp.Diff(want, have); diff != "" {
				t.Errorf("sent and answered differ (-sent +answered):\n%s", diff)
			}
			again := decode(t, d, got)
			if diff := cmp.Diff(doc.Spec, again.Spec); diff != "" {
				t.Errorf("the answer decodes to another specification:\n%s", diff)
			}
		})
	})
	stale, err := fs.Glob(os.DirFS("testdata/golden"), "*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range stale {
		if !slices.Contains(files, file) && !strings.Contains(file, "Overview") && file != "list.json" {
			t.Errorf("testdata/golden/%s has no body", file)
		}
	}
}

func TestABodyInYAMLIsTheSameAsInJSON(t *testing.T) {
	forEachBody(t, func(file string, d *resource.Descriptor, content []byte) {
		t.Run(file, func(t *testing.T) {
			want := decode(t, d, string(content))
			// JSON is YAML, so the file itself serves, in flow style; block style is tested elsewhere.
			got, err := codec.Decode(d, "application/yaml; charset=utf-8", content)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-json +yaml):\n%s", diff)
			}
		})
	})
}

// protobuf's own JSON is the reference: what we write, it must read as the same message.
func TestAnswersAreProtobufJSON(t *testing.T) {
	forEachBody(t, func(file string, d *resource.Descriptor, content []byte) {
		if d.IsJSON() {
			return
		}
		t.Run(file, func(t *testing.T) {
			rec := record(d, decode(t, d, string(content)))
			want, err := codec.Spec(d, rec)
			if err != nil {
				t.Fatal(err)
			}
			got := d.NewSpec()
			if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal([]byte(encode(t, d, rec)), got); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
				t.Errorf("(-want +protojson):\n%s", diff)
			}
		})
	})
}

func TestTheFormOfAnswers(t *testing.T) {
	epoch := `"1970-01-01T00:00:00Z"`
	tests := map[string]struct {
		typ  resource.Type
		rec  store.Record
		spec proto.Message
		want string
	}{
		"a global type has no mesh, zero times are 1970, zero fields are left out": {
			typ:  "Zone",
			rec:  store.Record{Key: store.Key{Type: "Zone", Name: "z"}},
			spec: &systemv1.Zone{},
			want: `{
 "type": "Zone",
 "name": "z",
 "creationTime": ` + epoch + `,
 "modificationTime": ` + epoch + `
}`,
		},
		"labels are sorted and stand after the times; times are UTC with up to nine digits": {
			typ: "Zone",
			rec: store.Record{
				Key: store.Key{Type: "Zone", Name: "z"}, Labels: map[string]string{"b": "<&>", "a": "\"\n"},
				Created: created, Modified: time.Unix(0, 1),
			},
			spec: &systemv1.Zone{Enabled: wrapperspb.Bool(false)},
			want: `{
 "type": "Zone",
 "name": "z",
 "creationTime": "2024-03-01T08:15:30.606217Z",
 "modificationTime": "1970-01-01T00:00:00.000000001Z",
 "labels": {
  "a": "\"\n",
  "b": "<&>"
 },
 "enabled": false
}`,
		},
		"durations and timestamps have 0, 3, 6 or 9 digits after the point": {
			typ: "DataplaneInsight",
			rec: store.Record{Key: store.Key{Type: "DataplaneInsight", Mesh: "m", Name: "d"}},
			spec: &meshv1.DataplaneInsight{Subscriptions: []*meshv1.DiscoverySubscription{
				{ConnectTime: &timestamppb.Timestamp{Seconds: 1, Nanos: 1000}},
				{ConnectTime: &timestamppb.Timestamp{Seconds: 1, Nanos: 120000000}, Status: &meshv1.DiscoverySubscriptionStatus{}},
			}},
			want: `{
 "type": "DataplaneInsight",
 "mesh": "m",
 "name": "d",
 "creationTime": ` + epoch + `,
 "modificationTime": ` + epoch + `,
 "subscriptions": [
  {
   "connectTime": "1970-01-01T00:00:01.000001Z"
  },
  {
   "connectTime": "1970-01-01T00:00:01.120Z",
   "status": {}
  }
 ]
}`,
		},
		"a negative duration of less than a second keeps its sign": {
			typ:  "Timeout",
			rec:  store.Record{Key: store.Key{Type: "Timeout", Mesh: "m", Name: "t"}},
			spec: &meshv1.Timeout{Conf: &meshv1.Timeout_Conf{ConnectTimeout: durationpb.New(-250 * time.Millisecond)}},
			want: `{
 "type": "Timeout",
 "mesh": "m",
 "name": "t",
 "creationTime": ` + epoch + `,
 "modificationTime": ` + epoch + `,
 "conf": {
  "connectTimeout": "-0.250s"
 }
}`,
		},
		"an enum value that the schema does not have is its number": {
			typ: "Retry",
			rec: store.Record{Key: store.Key{Type: "Retry", Mesh: "m", Name: "r"}},
			spec: &meshv1.Retry{Conf: &meshv1.Retry_Conf{Http: &meshv1.Retry_Conf_Http{
				RetriableMethods: []meshv1.HttpMethod{meshv1.HttpMethod_NONE, 99},
			}}},
			want: `{
 "type": "Retry",
 "mesh": "m",
 "name": "r",
 "creationTime": ` + epoch + `,
 "modificationTime": ` + epoch + `,
 "conf": {
  "http": {
   "retriableMethods": [
    "NONE",
    99
   ]
  }
 }
}`,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var err error
			if tt.rec.Spec, err = proto.Marshal(tt.spec); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, encode(t, row(t, tt.typ), &tt.rec)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestAJSONSpecificationIsKeptAsSent(t *testing.T) {
	d := row(t, "MeshTrace")
	sent := `{"type":"MeshTrace","mesh":"m","name":"t","extra":1,"spec":{ "zeta": 1.50e0, "default":{"tags":null,"later":{"b":"<&\u003c\/>","a":[ ]}} }}`
	doc := decode(t, d, sent)
	const want = `{"zeta":1.50e0,"default":{"tags":null,"later":{"b":"<&\u003c\/>","a":[]}}}`
	if string(doc.Spec) != want {
		t.Errorf("kept %s\nwant %s", doc.Spec, want)
	}
	if diff := cmp.Diff([]string{"extra", "spec.zeta", "spec.default.later"}, doc.Unknown); diff != "" {
		t.Errorf("unknown fields (-want +got):\n%s", diff)
	}
	got := encode(t, d, &store.Record{Key: store.Key{Type: "MeshTrace", Mesh: "m", Name: "t"}, Spec: doc.Spec})
	if !strings.Contains(got, ` "spec": {
  "zeta": 1.50e0,
  "default": {
   "tags": null,
   "later": {
    "b": "<&\u003c\/>",
    "a": []
   }
  }
 }
}`) {
		t.Errorf("answered %s", got)
	}
}

func TestListItems(t *testing.T) {
	var list strings.Builder
	list.WriteString("{\n \"items\": [")
	separator := "\n  "
	forEachBody(t, func(file string, d *resource.Descriptor, content []byte) {
		rec := record(d, decode(t, d, string(content)))
		item, err := codec.EncodeItem(d, rec)
		if err != nil {
			t.Fatal(err)
		}
		single := encode(t, d, rec)
		if got := string(codec.Single(item)); got != single {
			t.Errorf("%s: Single(item) differs (-want +got):\n%s", file, cmp.Diff(single, got))
		}
		if got := codec.Item([]byte(single)); string(got) != string(item) {
			t.Errorf("%s: Item(single) differs (-want +got):\n%s", file, cmp.Diff(string(item), string(got)))
		}
		list.WriteString(separator)
		list.Write(item)
		separator = ",\n  "
	})
	list.WriteString("\n ]\n}")

	var want bytes.Buffer
	if err := json.Indent(&want, []byte(list.String()), "", " "); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want.String(), list.String()); diff != "" {
		t.Errorf("a concatenation of items is not indented as a whole (-want +got):\n%s", diff)
	}
}

func TestOverviews(t *testing.T) {
	body := func(file string) []byte {
		content, err := os.ReadFile(path.Join("testdata/bodies", file))
		if err != nil {
			t.Fatal(err)
		}
		return content
	}
	for _, typ := range []resource.Type{"Dataplane", "ZoneIngress", "ZoneEgress", "Zone"} {
		t.Run(string(typ)+" with its insight", func(t *testing.T) {
			d, insight := row(t, typ), row(t, typ+"Insight")
			rec := record(d, decode(t, d, string(body(string(typ)+".json"))))
			report := record(insight, decode(t, insight, string(body(string(typ)+"Insight.json"))))
			got, err := codec.EncodeOverview(d, rec, report, false)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, string(typ)+"Overview.json", got)
		})
	}
	d := row(t, "Zone")
	rec := &store.Record{Key: store.Key{Type: "Zone", Name: "z"}}
	for name, tt := range map[string]struct {
		showMissing bool
		want        string
	}{
		"a missing insight is shown as {}": {true, ",\n \"zone\": {},\n \"zoneInsight\": {}\n}"},
		"a missing insight is left out":    {false, ",\n \"zone\": {}\n}"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := codec.EncodeOverview(d, rec, nil, tt.showMissing)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.HasSuffix(string(got), tt.want) || !strings.Contains(string(got), `"type": "ZoneOverview"`) {
				t.Errorf("got %s", got)
			}
		})
	}
	if _, err := codec.EncodeOverview(row(t, "TrafficRoute"), rec, nil, true); err == nil {
		t.Error("a type without an insight got an overview")
	}
}

func TestASingleServiceIsShownAsAResource(t *testing.T) {
	meta := codec.Meta{Type: "ServiceInsight", Mesh: "m", Name: "cart"}
	got := codec.EncodeMessage(meta, &meshv1.ServiceInsight_Service{
		Status: meshv1.ServiceInsight_Service_online, Dataplanes: &meshv1.ServiceInsight_Service_DataplaneStat{Total: 1},
	})
	want := `{
 "type": "ServiceInsight",
 "mesh": "m",
 "name": "cart",
 "creationTime": "1970-01-01T00:00:00Z",
 "modificationTime": "1970-01-01T00:00:00Z",
 "status": "online",
 "dataplanes": {
  "total": 1
 }
}`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestWhatCannotBeEncodedIsAnError(t *testing.T) {
	for name, tt := range map[string]struct {
		typ  resource.Type
		spec string
	}{
		"bytes that are no message": {"Zone", "\xff"},
		"text that is no JSON":      {"MeshTrace", "{"},
	} {
		t.Run(name, func(t *testing.T) {
			d := row(t, tt.typ)
			rec := &store.Record{Key: store.Key{Type: string(tt.typ), Name: "x"}, Spec: []byte(tt.spec)}
			if out, err := codec.Encode(d, rec); err == nil {
				t.Errorf("got %s", out)
			}
			if _, err := codec.Spec(d, rec); err == nil {
				t.Error("Spec succeeded")
			}
		})
	}
}

func TestValidateSpec(t *testing.T) {
	unknownField := "\xfa\x3f\x01x" // number 1023, one byte
	for name, tt := range map[string]struct {
		typ  resource.Type
		spec string
		ok   bool
	}{
		"an empty message is valid":                {"Zone", "", true},
		"a field of a newer peer is valid":         {"Zone", unknownField, true},
		"a truncated message is not":               {"Zone", "\x0a\x05\x08", false},
		"a JSON object is valid":                   {"MeshTrace", ` {"later": {}}`, true},
		"empty text is not a JSON object":          {"MeshTrace", "", false},
		"a JSON array is not an object":            {"MeshTrace", "[]", false},
		"two JSON objects are not one":             {"MeshTrace", "{}{}", false},
		"strings that are not UTF-8 are not valid": {"Config", "\x0a\x01\xff", false},
	} {
		t.Run(name, func(t *testing.T) {
			if err := codec.ValidateSpec(row(t, tt.typ), []byte(tt.spec)); (err == nil) != tt.ok {
				t.Errorf("got %v", err)
			}
		})
	}
}

// The codec knows the kinds of fields that the schemas use; a new kind must be taught to it.
func TestEveryFieldOfEverySchemaIsOfAKnownKind(t *testing.T) {
	special := map[protoreflect.FullName]bool{}
	for _, name := range []string{"BoolValue", "StringValue", "BytesValue", "Int32Value", "Int64Value", "UInt32Value", "UInt64Value", "FloatValue", "DoubleValue", "Duration", "Timestamp", "Struct", "ListValue", "Value"} {
		special["google.protobuf."+protoreflect.FullName(name)] = true
	}
	seen := map[protoreflect.FullName]bool{}
	var visit func(md protoreflect.MessageDescriptor)
	visit = func(md protoreflect.MessageDescriptor) {
		if seen[md.FullName()] || special[md.FullName()] {
			return
		}
		seen[md.FullName()] = true
		if md.FullName().Parent() == "google.protobuf" {
			t.Errorf("%s has a special form in JSON that the codec does not know", md.FullName())
		}
		for i := range md.Fields().Len() {
			fd := md.Fields().Get(i)
			if fd.IsMap() && fd.MapKey().Kind() != protoreflect.StringKind {
				t.Errorf("%s: keys are not strings", fd.FullName())
			}
			if m := fd.Message(); m != nil && !fd.IsMap() {
				visit(m)
			}
			if fd.IsMap() && fd.MapValue().Message() != nil {
				visit(fd.MapValue().Message())
			}
		}
	}
	reserved := []protoreflect.Name{"type", "mesh", "name", "labels", "creationTime", "modificationTime", "spec"}
	for _, d := range resource.All() {
		if d.IsJSON() {
			continue
		}
		visit(d.Message())
		for i := range d.Message().Fields().Len() {
			if fd := d.Message().Fields().Get(i); slices.Contains(reserved, fd.Name()) {
				t.Errorf("%s: the name stands for something else at the top of a body", fd.FullName())
			}
		}
	}
	if len(seen) < 100 {
		t.Errorf("visited only %d messages", len(seen))
	}
}

func object(t testing.TB, text string) map[string]any {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
	return v
}

// withoutNulls drops members that are null: they stand for absence.
func withoutNulls(v any) any {
	switch v := v.(type) {
	case map[string]any:
		for name, member := range v {
			if member == nil && name != "enabled" { // inside a free Struct null is a value
				delete(v, name)
			} else {
				withoutNulls(member)
			}
		}
	case []any:
		for _, element := range v {
			withoutNulls(element)
		}
	}
	return v
}

func TestATargetRefPolicyCanBeFlat(t *testing.T) {
	rec := &store.Record{Key: store.Key{Type: "MeshTrace", Mesh: "m", Name: "n"}}
	for spec, want := range map[string]string{
		``:   ``,
		`{}`: ``,
		// What would be read as the resource's own is left out; the order stays.
		`{"targetRef":{"kind":"Mesh"},"name":"other","default":{"b":1.50,"a":["<&>"]},"type":"x"}`: `,"targetRef":{"kind":"Mesh"},"default":{"b":1.50,"a":["<&>"]}`,
	} {
		rec.Spec = []byte(spec)
		flat, err := codec.EncodeFlat(rec)
		if err != nil {
			t.Fatal(err)
		}
		var got bytes.Buffer
		if err := json.Compact(&got, flat); err != nil {
			t.Fatal(err)
		}
		const epoch = `"1970-01-01T00:00:00Z"`
		head := `{"type":"MeshTrace","mesh":"m","name":"n","creationTime":` + epoch + `,"modificationTime":` + epoch
		if diff := cmp.Diff(head+want+"}", got.String()); diff != "" {
			t.Errorf("%s (-want +got)\n%s", spec, diff)
		}
	}
	for _, spec := range []string{`[]`, `{"a":`, `{"a":1`, `"x"`, `{"a":}`} {
		rec.Spec = []byte(spec)
		if _, err := codec.EncodeFlat(rec); err == nil {
			t.Errorf("%s is encoded", spec)
		}
	}
}
