package envoy_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/meridian-mesh/meridian/api/resource"
)

// fieldsOf are the paths of all fields of a message that hold a value.
func fieldsOf(md protoreflect.MessageDescriptor, prefix string) []string {
	var out []string
	fields := md.Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		name, message := prefix+f.JSONName(), f.Message()
		switch {
		case f.IsList():
			name += "[]"
		case f.IsMap():
			if message = f.MapValue().Message(); message != nil {
				name += "{}"
			}
		}
		if message != nil && message.FullName().Parent() != "google.protobuf" {
			out = append(out, fieldsOf(message, name+".")...)
			continue
		}
		out = append(out, name)
	}
	return out
}

// rows are the field paths that the tables of a document name, by the heading above.
func rows(t *testing.T, document string) map[string][]string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("..", "..", "docs", document))
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string][]string)
	code := regexp.MustCompile("`([^`]+)`")
	var headings []string
	for line := range strings.Lines(string(raw)) {
		if h, ok := strings.CutPrefix(line, "### "); ok {
			headings = strings.Split(strings.TrimSpace(h), ", ")
		}
		if !strings.HasPrefix(line, "| ") {
			continue
		}
		cell, _, _ := strings.Cut(line[2:], " |")
		for _, m := range code.FindAllStringSubmatch(cell, -1) {
			for _, h := range headings {
				out[h] = append(out[h], m[1])
			}
		}
	}
	return out
}

func covers(row, field string) bool {
	prefix, all := strings.CutSuffix(row, "*")
	return row == field || all && strings.HasPrefix(field, prefix)
}

func TestTheDocumentSaysOfEveryFieldWhatIsDone(t *testing.T) {
	documented := rows(t, "PROXIES.md")
	common := documented["Selectors of all policies"]
	all := resource.All()
	for i := range all {
		d := &all[i]
		if d.Message() == nil || !d.Policy && d.Name != resource.Mesh && d.Name != resource.Dataplane {
			continue
		}
		own := append(documented[string(d.Name)], common...)
		for _, field := range fieldsOf(d.Message(), "") {
			found := false
			for _, row := range own {
				found = found || covers(row, field)
			}
			if !found {
				t.Errorf("%s: docs/PROXIES.md says nothing of %s", d.Name, field)
			}
		}
		for _, row := range documented[string(d.Name)] {
			if !strings.ContainsAny(row, ".[") {
				continue // of a targetRef policy, which has no schema here
			}
			found := false
			for _, field := range fieldsOf(d.Message(), "") {
				found = found || covers(row, field)
			}
			if !found && !strings.Contains(row, "format.") {
				t.Errorf("%s: docs/PROXIES.md speaks of %s, which there is not", d.Name, row)
			}
		}
	}
}
