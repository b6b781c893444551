// Package deploy_test checks the files of this folder against each other and against the programs, because most of them
// are read by programs that are not there when tests run.
package deploy_test

import (
	"encoding/json"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
)

type compose struct {
	Version  string
	Services map[string]struct {
		Image       string
		Command     []string
		Environment map[string]string
		Volumes     []string
		Ports       []string
		Profiles    []string
		DependsOn   []string `yaml:"depends_on"`
	}
	Volumes map[string]any
}

func readYAML(t *testing.T, path string, into any) {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(content, into); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

func readCompose(t *testing.T) compose {
	t.Helper()
	var c compose
	readYAML(t, filepath.Join("compose", "docker-compose.yml"), &c)
	return c
}

func TestComposeHoldsTogether(t *testing.T) {
	c := readCompose(t)
	if c.Version != "2.4" {
		t.Errorf("version is %q: docker-compose 1.29 reads profiles and depends_on of 2.4, later compose ignores it", c.Version)
	}
	host := map[string]string{}
	for name, s := range c.Services {
		for _, v := range s.Volumes {
			source, _, _ := strings.Cut(v, ":")
			if strings.HasPrefix(source, ".") {
				if _, err := os.Stat(filepath.Join("compose", source)); err != nil {
					t.Errorf("%s mounts what is not there: %v", name, err)
				}
			} else if _, ok := c.Volumes[source]; !ok {
				t.Errorf("%s uses volume %s, which the file does not declare", name, source)
			}
		}
		for _, p := range s.Ports {
			published, _, _ := strings.Cut(p, ":")
			if other, taken := host[published]; taken {
				t.Errorf("%s and %s both publish port %s", name, other, published)
			}
			host[published] = name
		}
		if dp := s.Environment["MERIDIAN_DP_PORT"]; strings.HasPrefix(s.Image, "meridian/zone:") && !slices.Contains(s.Ports, dp+":"+dp) {
			t.Errorf("%s does not publish its port for proxies, %q, under the number that it tells Envoys: %q", name, dp, s.Ports)
		}
		for _, d := range s.DependsOn {
			if _, ok := c.Services[d]; !ok {
				t.Errorf("%s depends on %s, which is no service", name, d)
			}
		}
		if own := strings.HasPrefix(s.Image, "meridian/"); own == slices.Contains(s.Profiles, "observability") {
			t.Errorf("%s: own image %t, profiles %v; only what needs a registry is in the profile", name, own, s.Profiles)
		}
	}
}

// Each setting in the compose file must be one that the configuration page lists.
func TestComposeUsesKnownSettings(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "docs", "CONFIGURATION.md"))
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range readCompose(t).Services {
		for setting := range s.Environment {
			if strings.HasPrefix(setting, "MERIDIAN_") && !strings.Contains(string(page), "`"+setting+"`") {
				t.Errorf("%s sets %s, which docs/CONFIGURATION.md does not know", name, setting)
			}
		}
	}
}

func TestPrometheusScrapesEveryPlane(t *testing.T) {
	var p struct {
		ScrapeConfigs []struct {
			JobName       string                       `yaml:"job_name"`
			StaticConfigs []struct{ Targets []string } `yaml:"static_configs"`
		} `yaml:"scrape_configs"`
	}
	readYAML(t, filepath.Join("prometheus", "prometheus.yml"), &p)
	var got, want []string
	for _, s := range p.ScrapeConfigs {
		for _, c := range s.StaticConfigs {
			got = append(got, c.Targets...)
		}
	}
	for name, s := range readCompose(t).Services {
		if strings.HasPrefix(s.Image, "meridian/") && len(s.Command) == 0 { // with a command it does a task and ends
			want = append(want, name+":5680")
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("targets (-services +prometheus.yml):\n%s", diff)
	}
}

func TestGrafanaFindsItsParts(t *testing.T) {
	var sources struct {
		Datasources []struct{ UID, URL string }
	}
	readYAML(t, filepath.Join("grafana", "provisioning", "datasources", "prometheus.yml"), &sources)
	if len(sources.Datasources) != 1 || sources.Datasources[0].URL != "http://prometheus:9090" {
		t.Fatalf("data sources are %+v", sources.Datasources)
	}
	var providers struct {
		Providers []struct{ Options struct{ Path string } }
	}
	readYAML(t, filepath.Join("grafana", "provisioning", "dashboards", "meridian.yml"), &providers)
	mounted := slices.ContainsFunc(readCompose(t).Services["grafana"].Volumes, func(v string) bool {
		return len(providers.Providers) == 1 && strings.Contains(v, ":"+providers.Providers[0].Options.Path+":")
	})
	if !mounted {
		t.Errorf("nothing is mounted where %+v looks for dashboards", providers.Providers)
	}
	for _, p := range panels(t) {
		if p.Datasource.UID != sources.Datasources[0].UID {
			t.Errorf("panel %q reads from %q", p.Title, p.Datasource.UID)
		}
	}
}

// metricName matches our metrics in an expression: the part after meridian_, its first word the subsystem.
var metricName = regexp.MustCompile(`meridian_([a-z]+)_([a-z_]+)`)

// Each metric of the dashboard must be one that the code names, in one piece or after its subsystem. A running plane
// would not do: it shows counters with labels only once they have counted.
func TestDashboardUsesMetricsOfTheCode(t *testing.T) {
	named := quotedWords(t, "api", "common", "global", "sync", "zone")
	used := 0
	for _, p := range panels(t) {
		for _, target := range p.Targets {
			for _, m := range metricName.FindAllStringSubmatch(target.Expr, -1) {
				used++
				rest := histogramSuffix.ReplaceAllString(m[2], "")
				if !named["meridian_"+m[1]+"_"+rest] && (!named[rest] || !named[m[1]]) {
					t.Errorf("panel %q shows %s, which the code does not name", p.Title, m[0])
				}
			}
		}
	}
	if used == 0 {
		t.Error("the dashboard shows none of our metrics")
	}
}

var (
	histogramSuffix = regexp.MustCompile(`_(bucket|sum|count)$`)
	quotedWord      = regexp.MustCompile(`"([a-z_]+)"`)
)

// quotedWords collects the string literals of the Go files, tests left out, that could be names of metrics.
func quotedWords(t *testing.T, folders ...string) map[string]bool {
	t.Helper()
	words := map[string]bool{}
	for _, folder := range folders {
		err := filepath.WalkDir(filepath.Join("..", folder), func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.HasSuffix(path, ".pb.go") {
				return err
			}
			content, err := os.ReadFile(path)
			for _, m := range quotedWord.FindAllSubmatch(content, -1) {
				words[string(m[1])] = true
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return words
}

type panel struct {
	Title      string
	Datasource struct{ UID string }
	Targets    []struct{ Expr string }
}

func panels(t *testing.T) []panel {
	t.Helper()
	content, err := os.ReadFile(filepath.Join("grafana", "dashboards", "meridian.json"))
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct{ Panels []panel }
	if err := json.Unmarshal(content, &dashboard); err != nil {
		t.Fatal(err)
	}
	if len(dashboard.Panels) == 0 {
		t.Fatal("the dashboard has no panels")
	}
	return dashboard.Panels
}

// What an image copies has to reach the builder, which sees nothing but what .dockerignore lets through.
func TestImagesAreBuiltFromWhatTheBuilderSees(t *testing.T) {
	content, err := os.ReadFile("../.dockerignore")
	if err != nil {
		t.Fatal(err)
	}
	ignore := strings.Split(string(content), "\n")
	files, err := filepath.Glob("docker/Dockerfile.*")
	if err != nil || len(files) < 3 {
		t.Fatalf("found %q: %v", files, err)
	}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		copied := regexp.MustCompile(`(?m)^COPY (?:--\S+ )?(\S+) \S+$`).FindAllStringSubmatch(string(content), -1)
		if len(copied) == 0 {
			t.Errorf("%s copies nothing", file)
		}
		for _, c := range copied {
			if !slices.Contains(ignore, "!"+c[1]) {
				t.Errorf("%s copies %s, which .dockerignore keeps from the builder", file, c[1])
			}
		}
	}
}
