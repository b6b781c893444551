package envoy_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/meridian-mesh/meridian/zone/xds"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// TestGoldenFiles compares the configuration of the cases under testdata with what is beside them: input.yaml are the
// resources as users write them. With -update the files are rewritten; the difference is for review.
func TestGoldenFiles(t *testing.T) {
	inputs, err := filepath.Glob("testdata/*/input.yaml")
	if err != nil || len(inputs) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, input := range inputs {
		dir := filepath.Dir(input)
		t.Run(filepath.Base(dir), func(t *testing.T) {
			w := load(t, input)
			out := w.output(t)
			want := map[string][]proto.Message{"listeners": nil, "clusters": nil, "endpoints": nil, "routes": nil, "runtime": nil}
			for _, r := range out.Resources {
				switch r.Kind {
				case xds.Listener:
					want["listeners"] = append(want["listeners"], r.Message)
				case xds.Cluster:
					want["clusters"] = append(want["clusters"], r.Message)
				case xds.Route:
					want["routes"] = append(want["routes"], r.Message)
				case xds.Runtime:
					want["runtime"] = append(want["runtime"], r.Message)
				default:
					t.Errorf("a resource of kind %s", r.Kind.TypeURL())
				}
			}
			for _, cla := range w.assignments(t, out) {
				want["endpoints"] = append(want["endpoints"], cla)
			}
			for name, messages := range want {
				golden(t, filepath.Join(dir, name+".golden.yaml"), asYAML(t, messages))
			}
			golden(t, filepath.Join(dir, "warnings.golden.txt"), []byte(strings.Join(append(slices.Clone(out.Warnings), ""), "\n")))
			files, err := filepath.Glob(filepath.Join(dir, "*.golden.*"))
			if err != nil {
				t.Fatal(err)
			}
			for _, file := range files {
				name := strings.TrimSuffix(filepath.Base(file), ".golden.yaml")
				if _, known := want[name]; !known && filepath.Base(file) != "warnings.golden.txt" {
					t.Errorf("%s belongs to no kind of resource", file)
				}
			}
		})
	}
}

// golden compares got with a file. Nothing is no file.
func golden(t *testing.T, file string, got []byte) {
	t.Helper()
	if *update {
		if len(got) == 0 {
			_ = os.Remove(file)
			return
		}
		if err := os.WriteFile(file, got, 0o644); err != nil { //nolint:gosec // a file of the repository
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s (-want +got), rewrite with -update:\n%s", file, diff)
	}
}

// asYAML is the messages as documents of YAML, with the fields in the order of their names.
func asYAML(t *testing.T, messages []proto.Message) []byte {
	t.Helper()
	var b bytes.Buffer
	for i, m := range messages {
		if i > 0 {
			b.WriteString("---\n")
		}
		text, err := protojson.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		var v any
		if err := json.Unmarshal(text, &v); err != nil {
			t.Fatal(err)
		}
		enc := yaml.NewEncoder(&b)
		enc.SetIndent(2)
		if err := enc.Encode(v); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}
