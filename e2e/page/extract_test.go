package page

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite testdata/page.json from the page in the folder MERIDIAN_CONTRACT")

const extract = "testdata/page.json"

// load returns the extract.
func load(t *testing.T) *Page {
	t.Helper()
	raw, err := os.ReadFile(extract)
	if err != nil {
		t.Fatal(err)
	}
	var p Page
	if err := json.Unmarshal(raw, &p); err != nil {
		t.Fatalf("%s: %v", extract, err)
	}
	return &p
}

func TestTheExtractIsCurrent(t *testing.T) {
	folder := os.Getenv("MERIDIAN_CONTRACT")
	if folder == "" {
		t.Skip("NOT RUN: MERIDIAN_CONTRACT names no folder with page.txt; the other tests use the extract")
	}
	f, err := os.Open(filepath.Join(folder, "page.txt"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p, err := Parse(f)
	if err != nil {
		t.Fatal(err)
	}
	fresh := render(t, p)
	if *update {
		if err := os.WriteFile(extract, fresh, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	kept, err := os.ReadFile(extract)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(kept), string(fresh)); diff != "" {
		t.Errorf("%s is not what the page says; run this test with -update: %s", extract, diff)
	}
}

// render writes an endpoint or an example a line.
func render(t *testing.T, p *Page) []byte {
	t.Helper()
	var b bytes.Buffer
	list := func(n int, item func(int) any) {
		for i := range n {
			line, err := json.Marshal(item(i))
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&b, "  %s%s\n", line, strings.Repeat(",", min(1, n-1-i)))
		}
	}
	b.WriteString("{\n \"endpoints\": [\n")
	list(len(p.Endpoints), func(i int) any { return p.Endpoints[i] })
	b.WriteString(" ],\n \"examples\": [\n")
	list(len(p.Examples), func(i int) any { return p.Examples[i] })
	b.WriteString(" ]\n}\n")
	return b.Bytes()
}

// TestTheSlipsOfThePageAreKnown lists where the page's own JSON is none, so that a change shows.
func TestTheSlipsOfThePageAreKnown(t *testing.T) {
	slips := map[string]int{}
	for _, e := range load(t).Examples {
		for _, r := range e.Repaired {
			slips[r]++
		}
	}
	if diff := cmp.Diff(map[string]int{"ellipsis": 3, "comma left over": 2, "comma missing": 1}, slips); diff != "" {
		t.Error(diff)
	}
}

func TestTheExtractIsWhole(t *testing.T) {
	p := load(t)
	if len(p.Endpoints) != 67 || len(p.Examples) != 93 {
		t.Errorf("%d endpoints and %d examples are not what the page has", len(p.Endpoints), len(p.Examples))
	}
	if sorted := slices.Compact(slices.Sorted(slices.Values(p.Endpoints))); len(sorted) != len(p.Endpoints) {
		t.Error("an endpoint is listed twice")
	}
	for _, e := range p.Examples {
		if e.Curl == "" {
			continue
		}
		if _, err := e.Call(); err != nil {
			t.Errorf("line %d: %v", e.Line, err)
		}
	}
}
