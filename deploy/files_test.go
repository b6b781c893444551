// Package deploy_test checks the files of this folder against each other and against the programs, because most of them
// are read by programs that are not there when tests run.
package deploy_test

import (
	"cmp"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
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
		DependsOn   dependencies `yaml:"depends_on"`
	}
	Volumes map[string]any
}

// dependencies are service names, written as a list or, with conditions, as a map.
type dependencies []string

func (d *dependencies) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.SequenceNode {
		return n.Decode((*[]string)(d))
	}
	var conditions map[string]struct{ Condition string }
	if err := n.Decode(&conditions); err != nil {
		return err
	}
	for name, c := range conditions {
		if !slices.Contains([]string{"service_started", "service_healthy", "service_completed_successfully"}, c.Condition) {
			return fmt.Errorf("line %d: condition %q of %s", n.Line, c.Condition, name)
		}
		*d = append(*d, name)
	}
	return nil
}

// composeFiles are the compose files, and the configuration of Prometheus that each mounts.
var composeFiles = map[string]string{
	"docker-compose.yml": "prometheus.yml", "docker-compose.ha.yml": "prometheus-ha.yml",
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

func readCompose(t *testing.T, file string) compose {
	t.Helper()
	var c compose
	readYAML(t, filepath.Join("compose", file), &c)
	return c
}

func TestComposeHoldsTogether(t *testing.T) {
	for file := range composeFiles {
		t.Run(file, func(t *testing.T) { composeHoldsTogether(t, readCompose(t, file)) })
	}
}

func composeHoldsTogether(t *testing.T, c compose) {
	t.Helper()
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
		needed := strings.HasPrefix(s.Image, "meridian/") || strings.HasPrefix(s.Image, "${POSTGRES_IMAGE:-")
		if needed == slices.Contains(s.Profiles, "observability") {
			t.Errorf("%s: needed %t, profiles %v; what the planes do without is in the profile", name, needed, s.Profiles)
		}
	}
}

// Each setting in the compose file must be one that the configuration page lists.
func TestComposeUsesKnownSettings(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "docs", "CONFIGURATION.md"))
	if err != nil {
		t.Fatal(err)
	}
	for file := range composeFiles {
		for name, s := range readCompose(t, file).Services {
			for setting := range s.Environment {
				if strings.HasPrefix(setting, "MERIDIAN_") && !strings.Contains(string(page), "`"+setting+"`") {
					t.Errorf("%s: %s sets %s, which docs/CONFIGURATION.md does not know", file, name, setting)
				}
			}
		}
	}
}

// The file of replicas has what its name promises, and no plane in it keeps state where only one process can have it.
func TestReplicasOfTheComposeFile(t *testing.T) {
	databases, err := os.ReadFile("compose/databases.sql")
	if err != nil {
		t.Fatal(err)
	}
	planes, used := map[string]int{}, map[string]string{}
	for name, s := range readCompose(t, "docker-compose.ha.yml").Services {
		if !strings.HasPrefix(s.Image, "meridian/") || len(s.Command) > 0 {
			continue
		}
		plane := cmp.Or(s.Environment["MERIDIAN_ZONE_NAME"], "global")
		planes[plane]++
		if s.Environment["MERIDIAN_INSTANCE_ID"] != name {
			t.Errorf("%s calls itself %q", name, s.Environment["MERIDIAN_INSTANCE_ID"])
		}
		if planes[plane] == 1 {
			used[plane] = s.Environment["MERIDIAN_STORE_POSTGRES_URL"]
		} else if used[plane] == "" || used[plane] != s.Environment["MERIDIAN_STORE_POSTGRES_URL"] {
			t.Errorf("replicas of %s do not share a database: %q, %q", plane, used[plane], s.Environment["MERIDIAN_STORE_POSTGRES_URL"])
		}
	}
	if diff := gocmp.Diff(map[string]int{"global": 2, "zone-1": 2, "zone-2": 1}, planes); diff != "" {
		t.Errorf("replicas (-want +file):\n%s", diff)
	}
	for plane, address := range used {
		if address == "" {
			continue
		}
		u, err := url.Parse(address)
		if err != nil || !strings.Contains(string(databases), "CREATE DATABASE "+strings.TrimPrefix(u.Path, "/")+";") {
			t.Errorf("nothing makes the database of %s, %q: %v", plane, address, err)
		}
	}
}

func TestPrometheusScrapesEveryPlane(t *testing.T) {
	for file, prometheus := range composeFiles {
		var p struct {
			RuleFiles     []string `yaml:"rule_files"`
			ScrapeConfigs []struct {
				JobName       string `yaml:"job_name"`
				StaticConfigs []struct {
					Targets []string
					Labels  map[string]string
				} `yaml:"static_configs"`
			} `yaml:"scrape_configs"`
		}
		readYAML(t, filepath.Join("prometheus", prometheus), &p)
		got, want := map[string]string{}, map[string]string{} // planes by target
		for _, s := range p.ScrapeConfigs {
			for _, c := range s.StaticConfigs {
				for _, target := range c.Targets {
					got[target] = c.Labels["plane"]
				}
			}
		}
		services := readCompose(t, file).Services
		for name, s := range services {
			if strings.HasPrefix(s.Image, "meridian/") && len(s.Command) == 0 { // with a command it does a task and ends
				want[name+":5680"] = cmp.Or(s.Environment["MERIDIAN_ZONE_NAME"], "global")
			}
		}
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Errorf("targets (-%s +%s):\n%s", file, prometheus, diff)
		}
		volumes := services["prometheus"].Volumes
		for _, mount := range []string{
			"../prometheus/" + prometheus + ":/etc/prometheus/prometheus.yml:ro", "../prometheus/rules.yml:/etc/prometheus/rules.yml:ro",
		} {
			if !slices.Contains(volumes, mount) {
				t.Errorf("%s: Prometheus is not given %s", file, mount)
			}
		}
		if !slices.Equal(p.RuleFiles, []string{"rules.yml"}) {
			t.Errorf("%s loads the rules %q", prometheus, p.RuleFiles)
		}
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
	for file := range composeFiles {
		mounted := slices.ContainsFunc(readCompose(t, file).Services["grafana"].Volumes, func(v string) bool {
			return len(providers.Providers) == 1 && strings.Contains(v, ":"+providers.Providers[0].Options.Path+":")
		})
		if !mounted {
			t.Errorf("%s: nothing is mounted where %+v looks for dashboards", file, providers.Providers)
		}
	}
	for name, d := range dashboards(t) {
		for _, p := range d.Panels {
			if p.Type != "row" && p.Datasource.UID != sources.Datasources[0].UID {
				t.Errorf("%s: panel %q reads from %q", name, p.Title, p.Datasource.UID)
			}
		}
	}
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
