package archtest

import (
	"encoding/json"
	"errors"
	"go/doc"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// listed is what `go list -json` says of a package, as far as it is of interest.
type listed struct {
	ImportPath, Dir string
	GoFiles         []string
}

// complaints returns what a reader would miss in a package with the given comment.
func complaints(p listed, comment string) []string {
	var out []string
	switch rel := strings.TrimPrefix(p.ImportPath+"/", module); rel {
	case "sync/", "common/", "api/":
		out = append(out, p.ImportPath+" has Go files: its folder is for packages named for what they do")
	}
	switch filepath.Base(p.ImportPath) {
	case "util", "utils", "helper", "helpers", "misc", "shared":
		out = append(out, p.ImportPath+" is named for nothing it does")
	}
	if new(doc.Package).Synopsis(comment) == "" {
		out = append(out, p.ImportPath+" does not say why it exists")
	}
	return out
}

func TestPackagesSayWhyTheyExist(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Dir,GoFiles", "../../...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	dec := json.NewDecoder(strings.NewReader(string(out)))
	n := 0
	for {
		var p listed
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		if len(p.GoFiles) == 0 || generated(p) {
			continue
		}
		n++
		for _, c := range complaints(p, packageComment(t, p)) {
			t.Error(c)
		}
	}
	if n < 20 {
		t.Errorf("only %d packages read", n)
	}
}

// generated reports a package that consists of generated files.
func generated(p listed) bool {
	return !slices.ContainsFunc(p.GoFiles, func(f string) bool { return !strings.HasSuffix(f, ".pb.go") })
}

func packageComment(t *testing.T, p listed) string {
	t.Helper()
	var comment strings.Builder
	for _, name := range p.GoFiles {
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		comment.WriteString(f.Doc.Text())
	}
	return comment.String()
}

func TestAPoorPackageIsFound(t *testing.T) {
	tests := []struct {
		name, path, comment string
		want                int
	}{
		{"a package with a reason", "common/store", "Package store is the change log.", 0},
		{"no comment", "common/store", "", 1},
		{"files in a folder of packages", "sync", "Package sync synchronizes.", 1},
		{"a name that says nothing", "api/util", "Package util has tools.", 1},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := complaints(listed{ImportPath: module + tt.path}, tt.comment); len(got) != tt.want {
				t.Errorf("complaints are %q, want %d", got, tt.want)
			}
		})
	}
}
