package archtest

import (
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/meridian-mesh/meridian/"

// forbidden says which top-level folders the packages of a folder must not depend on, however indirectly.
var forbidden = map[string][]string{
	"common": {"api", "sync", "global", "zone", "cmd", "e2e"},
	"api":    {"sync", "global", "zone", "cmd", "e2e"},
	"sync":   {"global", "zone", "cmd", "e2e"},
	"global": {"zone", "cmd", "e2e"},
	"zone":   {"global", "cmd", "e2e"},
	"cmd":    {"e2e"},
	"e2e":    {"sync", "global", "zone", "cmd"},
}

// violations returns the packages that depend on what their folder must not, from lines of "package dep dep ...".
func violations(listing string) []string {
	var out []string
	for line := range strings.Lines(listing) {
		pkgs := strings.Fields(line)
		if len(pkgs) == 0 {
			continue
		}
		for _, dep := range pkgs[1:] {
			for _, not := range forbidden[folder(pkgs[0])] {
				if folder(dep) == not {
					out = append(out, pkgs[0]+" depends on "+dep)
				}
			}
		}
	}
	return out
}

func folder(pkg string) string {
	rest, ok := strings.CutPrefix(pkg, module)
	if !ok {
		return ""
	}
	top, _, _ := strings.Cut(rest, "/")
	return top
}

func TestImportsPointOneWay(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "list", "-f", `{{.ImportPath}} {{join .Deps " "}}`, "../../...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	if n := strings.Count(string(out), "\n"); n < 20 {
		t.Fatalf("only %d packages listed", n)
	}
	for _, v := range violations(string(out)) {
		t.Error(v)
	}
}

func TestAViolationIsFound(t *testing.T) {
	for _, line := range []string{
		module + "global/zones " + module + "zone/upstream",
		module + "zone " + module + "global",
		module + "common/store fmt " + module + "api/resource",
		module + "api/server " + module + "sync/kds",
		module + "sync/kds " + module + "global",
	} {
		if len(violations(line)) != 1 {
			t.Errorf("nothing found in %q", line)
		}
	}
	if v := violations(module + "global " + module + "sync/kds " + module + "common/store fmt"); len(v) != 0 {
		t.Errorf("found %v where all is well", v)
	}
}
