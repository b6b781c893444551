package zone

import (
	"flag"
	"log/slog"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// The names of metrics and of their labels are an interface: dashboards and alerts are built on them.
func TestMetricNamesAreThoseOfTheGoldenFile(t *testing.T) {
	cfg := DefaultConfig()
	cfg.General.DataDir = t.TempDir()
	cfg.API.HTTPPort, cfg.API.HTTPSPort, cfg.Diagnostics.Port = 0, 0, 0
	cfg.DPServer.Port, cfg.MADS.Port = 0, 0
	cfg.Multizone.Zone.Name, cfg.Multizone.Zone.GlobalAddress = "zone-1", "grpc://localhost:1"
	plane, err := New(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = plane.Close() })
	descs := make(chan *prometheus.Desc)
	go func() { plane.metrics.Describe(descs); close(descs) }()
	desc := regexp.MustCompile(`fqName: "(meridian_[^"]+)".* variableLabels: (\{.*?\})`)
	var names []string
	for d := range descs {
		if m := desc.FindStringSubmatch(d.String()); m != nil {
			names = append(names, strings.TrimSuffix(m[1]+m[2], "{}"))
		}
	}
	slices.Sort(names)
	got := strings.Join(slices.Compact(names), "\n") + "\n"
	const golden = "testdata/metrics.golden"
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("metrics differ from %s; rewrite it with -update if that is meant:\n%s", golden, got)
	}
}
