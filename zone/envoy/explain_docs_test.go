package envoy_test

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/meridian-mesh/meridian/api/explain"
)

// TestTheDocumentShowsRealExplanations holds the examples of the document against the golden files.
func TestTheDocumentShowsRealExplanations(t *testing.T) {
	doc := inspectionDoc(t)
	examples := regexp.MustCompile("(?s)<!-- (\\S+) -->\n```text\n(.*?)\n```\n").FindAllStringSubmatch(doc, -1)
	if len(examples) < 7 {
		t.Fatalf("%d examples", len(examples))
	}
	for _, e := range examples {
		want, err := os.ReadFile("testdata/explain/" + e[1] + ".golden.txt")
		if err != nil {
			t.Fatal(err)
		}
		if strings.TrimSpace(string(want)) != strings.TrimSpace(e[2]) {
			t.Errorf("docs/INSPECTION.md: the example %s is not testdata/explain/%s.golden.txt", e[1], e[1])
		}
	}
}

// TestTheDocumentNamesAllFieldsOfExplanations: each field by its name, and none that is not there.
func TestTheDocumentNamesAllFieldsOfExplanations(t *testing.T) {
	_, table, _ := strings.Cut(inspectionDoc(t), "## The answer as JSON")
	table, _, _ = strings.Cut(table, "\n## ")
	named := make(map[string]bool)
	for _, m := range regexp.MustCompile("`([a-zA-Z.*\\[\\]]+)`").FindAllStringSubmatch(table, -1) {
		for part := range strings.SplitSeq(m[1], ".") {
			named[strings.TrimSuffix(part, "[]")] = true
		}
	}
	fields := make(map[string]bool)
	jsonFields(reflect.TypeFor[explain.Explanation](), fields)
	for f := range fields {
		if !named[f] {
			t.Errorf("docs/INSPECTION.md says nothing of the field %s", f)
		}
	}
	for line := range strings.Lines(table) {
		cell, _, _ := strings.Cut(strings.TrimPrefix(line, "| "), " |")
		for _, m := range regexp.MustCompile("`([a-zA-Z.*\\[\\]]+)`").FindAllStringSubmatch(cell, -1) {
			for part := range strings.SplitSeq(m[1], ".") {
				if part = strings.TrimSuffix(part, "[]"); part != "*" && !fields[part] {
					t.Errorf("docs/INSPECTION.md speaks of the field %s, which there is not", part)
				}
			}
		}
	}
}

func inspectionDoc(t *testing.T) string {
	t.Helper()
	raw, err := os.ReadFile("../../docs/INSPECTION.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(raw)
}

func jsonFields(typ reflect.Type, into map[string]bool) {
	switch typ.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		jsonFields(typ.Elem(), into)
	case reflect.Struct:
		for f := range typ.Fields() {
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			into[name] = true
			jsonFields(f.Type, into)
		}
	default:
	}
}
