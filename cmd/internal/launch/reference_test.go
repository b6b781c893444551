package launch_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meridian-mesh/meridian/cmd/internal/agent"
	"github.com/meridian-mesh/meridian/common/config"
	"github.com/meridian-mesh/meridian/global"
	"github.com/meridian-mesh/meridian/zone"
)

var update = flag.Bool("update", false, "rewrite docs/CONFIGURATION.md")

const intro = `# Configuration

Generated from the structs that hold it; ` + "`make generate`" + ` rewrites this page, and a test fails when it is out of date.

Each value comes from its default, then the YAML file named by ` + "`--config`" + `, then the environment, then the flag; the last one
wins. Keys of the file and ` + "`MERIDIAN_`" + ` variables that are not listed here are errors, and all problems are reported at once.
A variable that is set but empty counts as not set. Durations are written like ` + "`250ms`, `10s` or `1h30m`" + `; lists outside the file
are separated by commas. A flag takes its value as ` + "`--flag value` or `--flag=value`" + `; a bool only as the latter. Values that are secret print
as ` + "`*****`" + ` in logs and in ` + "`GET /config`" + `, which answers with what is in effect.

A file names sections by nesting:

` + "```yaml" + `
apiServer:
  httpPort: 5681
multizone:
  global:
    kds:
      port: 5685
` + "```" + `
`

func TestReferencePageIsUpToDate(t *testing.T) {
	var page bytes.Buffer
	page.WriteString(intro)
	page.WriteString("\n## meridian-global\n")
	page.Write(config.Reference(global.DefaultConfig()))
	page.WriteString("\n## meridian-zone\n")
	page.Write(config.Reference(zone.DefaultConfig()))
	page.WriteString("\n## meridian-agent\n")
	page.Write(config.Reference(agent.DefaultConfig()))

	file := filepath.Join("..", "..", "..", "docs", "CONFIGURATION.md")
	if *update {
		if err := os.WriteFile(file, page.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), page.String()); diff != "" {
		t.Errorf("docs/CONFIGURATION.md (-file +generated):\n%s", diff)
	}
}
