package deploy_test

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// goldenMetrics are the metrics of both planes, with the names of their labels, as the planes' own tests have them.
func goldenMetrics(t *testing.T) map[string][]string {
	t.Helper()
	metrics := map[string][]string{}
	for _, plane := range []string{"global", "zone"} {
		content, err := os.ReadFile(filepath.Join("..", plane, "testdata", "metrics.golden"))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(content)) {
			name, labels, _ := strings.Cut(strings.TrimRight(line, "}\n"), "{")
			metrics[name] = strings.FieldsFunc(labels, func(r rune) bool { return r == ',' })
		}
	}
	return metrics
}

// foreign are the metrics that are not ours to name: of Prometheus, of Go, of the process.
var foreign = []string{"up", "go_goroutines", "go_memstats_heap_inuse_bytes", "process_cpu_seconds_total", "process_resident_memory_bytes"}

// targetLabels are the labels that scraping adds; see prometheus.yml.
var targetLabels = []string{"job", "instance", "plane"}

var promQL = struct{ functions, words []string }{
	functions: []string{"rate", "increase", "sum", "max", "min", "count", "histogram_quantile", "clamp_min", "time"},
	words:     []string{"by", "on", "group_left", "group_right", "or", "and", "unless", "offset"},
}

var token = regexp.MustCompile(`"[^"]*"|[a-zA-Z_][a-zA-Z0-9_]*|[0-9.]+[smhd]?|[<>=!~]+|\S`)

// problems says what an expression names that is not there: metrics, their labels, functions, or brackets that do not match.
// It is no parser of PromQL, which would bring most of Prometheus along.
func problems(expr string, metrics map[string][]string) (found []string, used int) {
	tokens := token.FindAllString(expr, -1)
	following := func(i int) string {
		if i+1 < len(tokens) {
			return tokens[i+1]
		}
		return ""
	}
	known := slices.Concat(targetLabels, []string{"le"}) // labels of what the expression is about
	for _, name := range tokens {
		known = append(known, metrics[histogramSuffix.ReplaceAllString(name, "")]...)
	}
	var open []string
	var selected []string // labels of the metric that a selector in braces belongs to
	for i, word := range tokens {
		switch {
		case strings.Contains("({[", word):
			if grouping := i > 0 && slices.Contains([]string{"by", "on", "group_left", "group_right"}, tokens[i-1]); grouping {
				word = "labels"
			}
			open = append(open, word)
			continue
		case strings.Contains(")}]", word):
			if len(open) == 0 || map[string]string{"(": ")", "labels": ")", "{": "}", "[": "]"}[open[len(open)-1]] != word {
				return append(found, "brackets that do not match"), used
			}
			open = open[:len(open)-1]
			continue
		case !regexp.MustCompile(`^[a-zA-Z_]`).MatchString(word):
			continue
		}
		inside := ""
		if len(open) > 0 {
			inside = open[len(open)-1]
		}
		base := histogramSuffix.ReplaceAllString(word, "")
		labels, ours := metrics[base]
		switch {
		case inside == "{":
			if !slices.Contains(selected, word) {
				found = append(found, "label "+word)
			}
		case inside == "labels":
			if !slices.Contains(known, word) {
				found = append(found, "label "+word)
			}
		case ours:
			used++
			selected = slices.Concat(labels, targetLabels)
		case slices.Contains(foreign, word):
			selected = targetLabels
		case slices.Contains(promQL.functions, word) && (following(i) == "(" || following(i) == "by"), slices.Contains(promQL.words, word):
		default:
			found = append(found, word)
		}
	}
	if len(open) > 0 {
		found = append(found, "brackets that do not match")
	}
	return found, used
}

var histogramSuffix = regexp.MustCompile(`_(bucket|sum|count)$`)

func TestProblemsOfExpressionsAreFound(t *testing.T) {
	metrics := map[string][]string{"meridian_a_total": {"type"}, "meridian_b_seconds": nil}
	for expr, want := range map[string]string{
		`sum by (type, plane) (rate(meridian_a_total{type="x"}[5m])) > 0`:                               "",
		`histogram_quantile(0.99, sum by (le) (rate(meridian_b_seconds_bucket[5m])))`:                   "",
		`meridian_b_seconds_sum < on (plane) group_left () max by (plane) (meridian_a_total offset 1m)`: "",
		`meridian_c_total`:                              "meridian_c_total",
		`meridian_a_total{kind="x"}`:                    "label kind",
		`meridian_b_seconds_count{type="x"}`:            "label type",
		`sum by (kind) (meridian_a_total)`:              "label kind",
		`summe(meridian_a_total)`:                       "summe",
		`sum(rate(meridian_a_total[5m])`:                "brackets that do not match",
		`sum(rate(meridian_a_total[5m)])`:               "brackets that do not match",
		`up{job="x", type="y"}`:                         "label type",
		`sum by (instance) (process_cpu_seconds_total)`: "",
	} {
		found, _ := problems(expr, metrics)
		if got := strings.Join(found, ", "); got != want {
			t.Errorf("%s: %q, want %q", expr, got, want)
		}
	}
}

type dashboard struct {
	UID, Title string
	Panels     []panel
}

type panel struct {
	ID         int
	Title      string
	Type       string
	Datasource struct{ UID string }
	GridPos    struct{ H, W, X, Y int }
	Targets    []struct{ Expr, LegendFormat string }
}

// dashboards are the dashboards by file.
func dashboards(t *testing.T) map[string]dashboard {
	t.Helper()
	files, err := filepath.Glob("grafana/dashboards/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("found %q: %v", files, err)
	}
	all := map[string]dashboard{}
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var d dashboard
		if err := json.Unmarshal(content, &d); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		all[filepath.Base(file)] = d
	}
	return all
}

var templateLabel = regexp.MustCompile(`{{\s*(?:\$labels\.)?(\w+)\s*}}`)

func TestDashboardsShowWhatThereIs(t *testing.T) {
	metrics := goldenMetrics(t)
	uids := map[string]string{}
	for file, d := range dashboards(t) {
		if other := uids[d.UID]; d.UID == "" || other != "" || d.Title == "" {
			t.Errorf("%s: uid %q, which %q has too; title %q", file, d.UID, other, d.Title)
		}
		uids[d.UID] = file
		ids := map[int]bool{}
		shown := 0
		for _, p := range d.Panels {
			if ids[p.ID] || p.Title == "" || p.GridPos.W == 0 || p.GridPos.X+p.GridPos.W > 24 {
				t.Errorf("%s: panel %+v", file, p)
			}
			ids[p.ID] = true
			for _, target := range p.Targets {
				found, used := problems(target.Expr, metrics)
				shown += used
				if len(found) > 0 {
					t.Errorf("%s: panel %q shows what is not there: %q in %s", file, p.Title, found, target.Expr)
				}
				for _, m := range templateLabel.FindAllStringSubmatch(target.LegendFormat, -1) {
					if by := groups(target.Expr); len(by) > 0 && !strings.Contains(target.Expr, "group_") && !slices.Contains(by, m[1]) {
						t.Errorf("%s: the legend of panel %q names %s, which %s has not", file, p.Title, m[1], target.Expr)
					}
				}
			}
			if p.Type != "row" && len(p.Targets) == 0 {
				t.Errorf("%s: panel %q shows nothing", file, p.Title)
			}
		}
		if shown == 0 {
			t.Errorf("%s shows none of our metrics", file)
		}
	}
}

// groups are the labels of all by clauses of an expression.
func groups(expr string) []string {
	var all []string
	for _, m := range regexp.MustCompile(`by \(([^)]*)\)`).FindAllStringSubmatch(expr, -1) {
		all = append(all, strings.FieldsFunc(m[1], func(r rune) bool { return r == ',' || r == ' ' })...)
	}
	return all
}

func TestAlertsAreSoundAndExplained(t *testing.T) {
	var rules struct {
		Groups []struct {
			Name  string
			Rules []struct {
				Alert, Expr, For    string
				Labels, Annotations map[string]string
			}
		}
	}
	readYAML(t, "prometheus/rules.yml", &rules)
	metrics := goldenMetrics(t)
	headings := headingsOf(t, "../docs/OPERATIONS.md")
	names := map[string]bool{}
	for _, g := range rules.Groups {
		if g.Name == "" || names[g.Name] || len(g.Rules) == 0 {
			t.Errorf("group %q is empty, or its name is taken", g.Name)
		}
		names[g.Name] = true
		for _, r := range g.Rules {
			if r.Alert == "" || names[r.Alert] {
				t.Errorf("alert %q: its name is taken", r.Alert)
			}
			names[r.Alert] = true
			found, used := problems(r.Expr, metrics)
			if len(found) > 0 || used == 0 && !strings.HasPrefix(r.Expr, "up{") {
				t.Errorf("%s: %q is not there in %s", r.Alert, found, r.Expr)
			}
			if r.For != "" {
				if d, err := time.ParseDuration(r.For); err != nil || d <= 0 {
					t.Errorf("%s: for %q", r.Alert, r.For)
				}
			}
			if s := r.Labels["severity"]; s != "page" && s != "ticket" {
				t.Errorf("%s: severity %q", r.Alert, s)
			}
			if r.Annotations["summary"] == "" {
				t.Errorf("%s has no summary", r.Alert)
			}
			for _, m := range templateLabel.FindAllStringSubmatch(r.Annotations["summary"], -1) {
				if by := groups(r.Expr); strings.HasPrefix(strings.TrimLeft(r.Expr, "("), "sum") && !slices.Contains(by, m[1]) {
					t.Errorf("%s: the summary names %s, which %s has not", r.Alert, m[1], r.Expr)
				}
			}
			page, heading, _ := strings.Cut(r.Annotations["runbook"], "#")
			if page != "OPERATIONS.md" || !headings[heading] {
				t.Errorf("%s: runbook %q is no heading of OPERATIONS.md", r.Alert, r.Annotations["runbook"])
			}
		}
	}
}

// headingsOf returns the anchors of a document.
func headingsOf(t *testing.T, file string) map[string]bool {
	t.Helper()
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	anchors := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(string(content), -1) {
		anchor := regexp.MustCompile(`[^a-z0-9 -]`).ReplaceAllString(strings.ToLower(m[1]), "")
		anchors[strings.ReplaceAll(anchor, " ", "-")] = true
	}
	return anchors
}

// Each metric has one row in the page of operations, with the labels that it has; no row is of a metric that is gone.
func TestOperationsExplainEveryMetric(t *testing.T) {
	content, err := os.ReadFile("../docs/OPERATIONS.md")
	if err != nil {
		t.Fatal(err)
	}
	metrics := goldenMetrics(t)
	rows := map[string]int{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(meridian_\\w+)(?:{([\\w,]+)})?` \\| (.+?) \\| (.+?) \\|$").FindAllStringSubmatch(string(content), -1) {
		name := m[1]
		rows[name]++
		labels, there := metrics[name]
		switch got := strings.Join(labels, ","); {
		case !there:
			t.Errorf("OPERATIONS.md explains %s, which there is not", name)
		case got != m[2]:
			t.Errorf("OPERATIONS.md says %s has the labels %q; it has %q", name, m[2], got)
		case len(m[3]) < 10 || m[4] == "":
			t.Errorf("OPERATIONS.md does not explain %s: %q, %q", name, m[3], m[4])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(metrics)) {
		if rows[name] != 1 {
			t.Errorf("OPERATIONS.md has %d rows of %s", rows[name], name)
		}
	}
}
