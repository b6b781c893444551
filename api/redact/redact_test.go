package redact

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write the golden file again")

// planted is in each secret of the tests.
const planted = "SECRET"

func read(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func dump(t testing.TB, in []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := Dump(&out, bytes.NewReader(in)); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// exposed returns the texts with a planted secret, also those in base64.
func exposed(v any) []string {
	switch v := v.(type) {
	case string:
		decoded, _ := base64.StdEncoding.DecodeString(v)
		if strings.Contains(v, planted) || bytes.Contains(decoded, []byte(planted)) {
			return []string{v}
		}
	case []any:
		var all []string
		for _, e := range v {
			all = append(all, exposed(e)...)
		}
		return all
	case map[string]any:
		var all []string
		for _, e := range v {
			all = append(all, exposed(e)...)
		}
		return all
	}
	return nil
}

func parse(t testing.TB, text []byte) any {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return v
}

var snake = regexp.MustCompile(`_([a-z])`)

// camel spells the names of members as protojson does by default.
func camel(v any) any {
	switch v := v.(type) {
	case []any:
		for i := range v {
			v[i] = camel(v[i])
		}
	case map[string]any:
		out := make(map[string]any, len(v))
		for name, e := range v {
			out[snake.ReplaceAllStringFunc(name, func(m string) string { return strings.ToUpper(m[1:]) })] = camel(e)
		}
		return out
	}
	return v
}

func TestADumpIsMasked(t *testing.T) {
	in := read(t, "dump.json")
	if n := len(exposed(parse(t, in))); n != 16 {
		t.Fatalf("%d secrets are planted", n)
	}
	got := dump(t, in)
	if *update {
		if err := os.WriteFile(filepath.Join("testdata", "dump.golden"), got, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(string(read(t, "dump.golden")), string(got)); diff != "" {
		t.Error(diff)
	}
	if left := exposed(parse(t, got)); left != nil {
		t.Errorf("exposed: %q", left)
	}
	other, err := json.Marshal(camel(parse(t, in)))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(camel(parse(t, got)), parse(t, dump(t, other))); diff != "" {
		t.Errorf("in camel case: %s", diff)
	}
	if again := dump(t, got); !bytes.Equal(again, got) {
		t.Error("masking twice differs from masking once")
	}
}

func TestWhatIsNotOneJSONValueIsAnError(t *testing.T) {
	for _, in := range []string{
		"", " ", "{", "[", `{"a"`, `{"a":`, `{"a":1`, `{"a":1,}`, "[1,]", "[1 2]", `{"a":1}}`, `{"a":1} {}`, "[1]x", "nul", "\"a", `{1:2}`,
		"<html>", `{"key":"a","key":"authorization","value":"x"}`,
		`{"value":"x","value":"y","key":"authorization"}`,
		strings.Repeat("[", maxDepth+1) + strings.Repeat("]", maxDepth+1),
	} {
		if err := Dump(io.Discard, strings.NewReader(in)); err == nil {
			t.Errorf("%.40q passes", in)
		}
	}
	broken := errors.New("broken")
	if err := Dump(io.Discard, io.MultiReader(strings.NewReader(`{"a":`), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Error(err)
	}
	if err := Dump(brokenWriter{broken}, bytes.NewReader(read(t, "dump.json"))); !errors.Is(err, broken) {
		t.Error(err)
	}
}

type brokenWriter struct{ err error }

func (w brokenWriter) Write([]byte) (int, error) { return 0, w.err }

func TestADumpIsNotHeldAsAWhole(t *testing.T) {
	const elements = 50_000
	element := `{"name":"cluster","private_key":{"inline_string":"` + planted + `"},"value":"x"},`
	in := io.MultiReader(strings.NewReader("["), strings.NewReader(strings.Repeat(element, elements)), strings.NewReader("1]"))
	m := &watermark{in: in}
	if err := Dump(m, m); err != nil {
		t.Fatal(err)
	}
	if m.most > 64<<10 {
		t.Errorf("%d bytes were read before anything was written of them", m.most)
	}
}

// watermark measures how far reading is ahead of writing.
type watermark struct {
	in          io.Reader
	ahead, most int
}

func (m *watermark) Read(p []byte) (int, error) {
	n, err := m.in.Read(p[:min(len(p), 4096)])
	m.ahead += n
	m.most = max(m.most, m.ahead)
	return n, err
}

func (m *watermark) Write(p []byte) (int, error) {
	m.ahead = 0
	return len(p), nil
}

func BenchmarkDump(b *testing.B) {
	one := read(b, "dump.json")
	in := []byte("[" + strings.Repeat(string(one)+",", 10<<20/len(one)) + "1]")
	b.SetBytes(int64(len(in)))
	b.ReportAllocs()
	for b.Loop() {
		if err := Dump(io.Discard, bytes.NewReader(in)); err != nil {
			b.Fatal(err)
		}
	}
}

// FuzzNoSecretSurvives plants secrets in JSON of any shape, in every place and spelling that is known, and wants them gone and the
// rest to be equal.
func FuzzNoSecretSurvives(f *testing.F) {
	f.Add(read(f, "dump.json"), uint8(0))
	f.Add([]byte(`{"a":[1,null,true,"x",{"key":"k","value":"v"}],"a":{}}`), uint8(3))
	f.Add([]byte(`[[],{}, -0.0, 1e400, "\ud800"]`), uint8(9))
	f.Fuzz(func(t *testing.T, in []byte, which uint8) {
		var out bytes.Buffer
		err := Dump(&out, bytes.NewReader(in))
		if !json.Valid(in) {
			if err == nil {
				t.Fatalf("invalid JSON passes: %q", in)
			}
			return
		}
		if err != nil {
			return // too deep, or two keys
		}
		if !json.Valid(out.Bytes()) {
			t.Fatalf("invalid JSON comes out: %s", out.Bytes())
		}
		if bytes.Contains(in, []byte(planted)) {
			return
		}
		places := plants()
		plant := places[int(which)%len(places)]
		within := fmt.Appendf(nil, `{"before":%s,"planted":%s,"after":[%s]}`, in, plant, in)
		got, _ := parse(t, dump(t, within)).(map[string]any)
		if left := exposed(got["planted"]); left != nil {
			t.Errorf("%s: exposed %q", plant, left)
		}
		once := parse(t, out.Bytes())
		if diff := cmp.Diff(map[string]any{"before": once, "after": []any{once}, "planted": got["planted"]}, got); diff != "" {
			t.Errorf("the rest differs by where it stands: %s", diff)
		}
		if diff := cmp.Diff(masked(parse(t, in)), once); diff != "" {
			t.Errorf("more or less than secrets differs: %s", diff)
		}
	})
}

// plants are secrets in each place and spelling.
func plants() []string {
	encoded := base64.StdEncoding.EncodeToString([]byte(planted + "!"))
	var all []string
	for _, list := range []string{"initial_metadata", "initialMetadata"} {
		for _, key := range []string{"authorization", "Authorization"} {
			all = append(all,
				fmt.Sprintf(`{"%s":[{"key":"a","value":"b"},{"key":"%s","value":"%s"}]}`, list, key, planted),
				fmt.Sprintf(`{"%s":[{"value":"%s","key":"%s"}]}`, list, planted, key),
				fmt.Sprintf(`{"%s":[{"key":"%s","raw_value":"%s"}]}`, list, key, encoded),
				fmt.Sprintf(`{"%s":[{"rawValue":"%s","key":"%s"}]}`, list, encoded, key))
		}
	}
	sources := []string{
		`{"inline_string":"` + planted + `"}`, `{"inlineString":"` + planted + `"}`,
		`{"inline_bytes":"` + encoded + `"}`, `{"inlineBytes":"` + encoded + `"}`, `"` + planted + `"`,
		`{"watched_directory":{"path":"/x"},"inline_string":"` + planted + `"}`,
	}
	for _, source := range sources {
		for _, field := range []string{
			`"private_key":%s`, `"privateKey":%s`, `"password":%s`, `"pkcs12":%s`, `"session_ticket_keys":{"keys":[%s]}`,
			`"sessionTicketKeys":{"keys":[{"filename":"x"},%s]}`, `"generic_secret":{"secret":%s}`, `"genericSecret":{"secrets":{"a":%s}}`,
		} {
			if strings.HasPrefix(source, `"`) && strings.Contains(field, "secrets") {
				continue // a map has data sources only
			}
			all = append(all, "{"+fmt.Sprintf(field, source)+"}")
		}
	}
	return all
}

// masked is what Dump does, said the other way: on a value that is in memory as a whole.
func masked(v any) any {
	switch v := v.(type) {
	case string:
		if strings.Contains(v, keyMark) {
			return Mask
		}
	case []any:
		for i := range v {
			v[i] = masked(v[i])
		}
	case map[string]any:
		key, _ := v["key"].(string)
		for name, e := range v {
			field := plain(name)
			switch text, isText := e.(string); {
			case isText && field == "rawvalue" && (strings.EqualFold(key, "authorization") || strings.EqualFold(key, "proxy-authorization")):
				v[name] = MaskBytes
			case isText && field == "value" && (strings.EqualFold(key, "authorization") || strings.EqualFold(key, "proxy-authorization")):
				v[name] = Mask
			case secretFields[field]:
				v[name] = maskedSecret(e, field)
			case isText && hasKey(field, text):
				v[name] = MaskBytes
			default:
				v[name] = masked(e)
			}
		}
	}
	return v
}

func maskedSecret(v any, field string) any {
	switch v := v.(type) {
	case nil:
		return nil
	case []any:
		for i := range v {
			v[i] = maskedSecret(v[i], "")
		}
		return v
	case map[string]any:
		for name, e := range v {
			field := plain(name)
			_, isList := e.([]any)
			_, isObject := e.(map[string]any)
			switch {
			case isList, isObject, isContent(field), secretFields[field]:
				v[name] = maskedSecret(e, field)
			default:
				v[name] = masked(e)
				if text, ok := e.(string); ok && hasKey(field, text) {
					v[name] = MaskBytes
				}
			}
		}
		return v
	}
	if strings.HasSuffix(field, "bytes") || field == "rawvalue" {
		return MaskBytes
	}
	return Mask
}
