package validate_test

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/meridian-mesh/meridian/api/codec"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/validate/validatetest"
)

// row is one line of the contract's table of rules.
type row struct {
	name, field, message string
}

func contractRows(t *testing.T) []row {
	t.Helper()
	folder := os.Getenv("MERIDIAN_CONTRACT")
	if folder == "" {
		t.Skip("not run: MERIDIAN_CONTRACT does not name the folder of the contract, which is not part of this repository")
	}
	text, err := os.ReadFile(filepath.Join(folder, "validation.tsv"))
	if err != nil {
		t.Fatal(err)
	}
	var rows []row
	seen := make(map[string]int)
	for i, line := range strings.Split(strings.TrimSpace(string(text)), "\n") {
		columns := strings.Split(line, "\t")
		if i == 0 || len(columns) < 4 {
			continue
		}
		name := columns[0] + " " + columns[1]
		if seen[name]++; seen[name] > 1 {
			name += fmt.Sprintf(" #%d", seen[name])
		}
		rows = append(rows, row{name: name, field: columns[1], message: columns[3]})
	}
	return rows
}

// TestEveryRowOfTheContractHasACase reads the contract's own table, when it is at hand: each row must have a case that
// is refused with the row's field and message, or that says why it differs.
func TestEveryRowOfTheContractHasACase(t *testing.T) {
	rows := contractRows(t)
	cases := make(map[string][]validatetest.Case)
	for _, c := range validatetest.Cases() {
		cases[c.Row] = append(cases[c.Row], c)
	}
	known := make(map[string]bool)
	for _, r := range rows {
		known[r.name] = true
		if test := validatetest.Elsewhere[r.name]; test != "" {
			hasTest(t, test)
			continue
		}
		if slices.Contains(validatetest.Unchecked, r.name) {
			continue
		}
		refused := false
		for _, c := range cases[r.name] {
			if c.Differs != "" {
				refused = true
				continue
			}
			if len(c.Want) == 0 {
				refused = refused || r.message == "-"
				continue
			}
			refused = true
			// Further violations may come with the row's own.
			if !slices.ContainsFunc(c.Want, func(v codec.Violation) bool {
				return fieldOf(r, c).MatchString(v.Field) && messageOf(r).MatchString(v.Message)
			}) {
				t.Errorf("%s: the case expects %v, the row has %q", r.name, c.Want, r.message)
			}
		}
		if !refused {
			t.Errorf("no case for %s", r.name)
		}
	}
	for name, list := range cases {
		for _, c := range list {
			if !known[name] && c.Differs == "" {
				t.Errorf("case %s is for no row and does not say why it is there", c.Name())
			}
		}
	}
}

// messageOf turns a row's message into what a text must match: "..." stands for more text, <x> for a value, | separates
// several, and some refer to another row.
func messageOf(r row) *regexp.Regexp {
	if strings.HasPrefix(r.message, "see ") || strings.HasPrefix(r.message, "as ") {
		return regexp.MustCompile("")
	}
	var all []string
	for alternative := range strings.SplitSeq(r.message, " | ") {
		alternative, _, _ = strings.Cut(alternative, ". (+ ") // a remark
		quoted := strings.NewReplacer(`\(\.\.\.\)`, `.*`, `\.\.\.`, `.*`, `\[i, j\]`, `\[\d+, \d+\]`).Replace(regexp.QuoteMeta(alternative))
		quoted = regexp.MustCompile(`<\w+>`).ReplaceAllString(quoted, `.+`)
		if len(alternative) < len(r.message) {
			quoted += `.*`
		}
		all = append(all, quoted)
	}
	return regexp.MustCompile(`^(` + strings.Join(all, "|") + `)$`)
}

// oddFields are what those rows mean whose field no rule of writing explains.
var oddFields = map[string]string{
	"MeshGatewayRoute conf.http.rules[i].filters[j].request_header.set[k] (.add[k]) .name / .value": `^conf\.http\.rules\[0\]\.filters\[0\]\.request_header\.(set|add)\[0\]\.(name|value)$`,
	"ProxyTemplate conf.modifications[i].cluster.match / .listener.match":                           `^conf\.modifications\[0\]\.(cluster|listener)\.match$`,
	"TrafficRoute conf.http[i].modify.<...>.add[j].value":                                           `^conf\.http\[0\]\.modify\.(request|response)Headers\.add\[0\]\.value$`,
}

// fieldOf turns a row's field into what a path must match. Fields are written for people: several of them in one row,
// placeholders, remarks in parentheses.
func fieldOf(r row, c validatetest.Case) *regexp.Regexp {
	if odd, ok := oddFields[r.name]; ok {
		return regexp.MustCompile(odd)
	}
	field := r.field
	switch {
	case strings.HasPrefix(r.name, "(selector rule set)"):
		field = strings.ReplaceAll(field, "<list>", "sources|destinations|selectors")
	case strings.HasPrefix(r.name, "(targetRef rule set)"):
		field = strings.ReplaceAll(field, "<ref>", "spec.targetRef")
	case strings.HasPrefix(r.name, "(tag rule set"):
		field = "...tags[\"k\"]"
	}
	var alternatives []string
	prefix := ""
	for part := range strings.SplitSeq(regexp.MustCompile(` \((.*?)\)`).ReplaceAllStringFunc(field, parenthesis), " / ") {
		for part := range strings.SplitSeq(part, " and ") {
			for part := range strings.SplitSeq(part, ", ") {
				if strings.HasPrefix(part, ".") && !strings.HasPrefix(part, "...") {
					part = prefix + part
				} else if i := strings.LastIndex(part, "."); i > 0 {
					prefix = part[:i]
				}
				alternatives = append(alternatives, part)
			}
		}
	}
	for i, alternative := range alternatives {
		quoted := regexp.QuoteMeta(alternative)
		quoted = regexp.MustCompile(`\\\[[ijk0]\\\]`).ReplaceAllString(quoted, `\[\d+\]`)
		quoted = regexp.MustCompile(`\\\["(key|k|i)"\\\]`).ReplaceAllString(quoted, `\[".*"\]`)
		quoted = strings.ReplaceAll(quoted, `\.\.\.`, `.*`)
		quoted = regexp.MustCompile(`<(\w+)\\\|(\w+)(?:\\\|(\w+))?>`).ReplaceAllString(quoted, `($1|$2|$3)`)
		quoted = strings.ReplaceAll(quoted, "<kind>", `\w+`)
		quoted = strings.ReplaceAll(quoted, `sources\|destinations\|selectors`, `(sources|destinations|selectors)`)
		alternatives[i] = quoted
	}
	suffix := ""
	if c.Object {
		suffix = `(\.\w+)+`
	}
	if strings.HasPrefix(r.message, "see ") { // a whole rule set
		suffix = `.*`
	}
	return regexp.MustCompile(`^(` + strings.Join(alternatives, "|") + `)` + suffix + `$`)
}

// parenthesis keeps the fields inside a remark: "cert.secret (.inline .file)".
func parenthesis(remark string) string {
	inside := strings.Trim(remark, " ()")
	if !strings.HasPrefix(inside, ".") {
		return ""
	}
	return " / " + strings.ReplaceAll(inside, " ", " / ")
}

// hasTest checks that a test of the HTTP API exists.
func hasTest(t *testing.T, name string) {
	t.Helper()
	files, err := filepath.Glob("../server/*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "func "+name+"(") {
			return
		}
	}
	t.Errorf("package api/server has no test %s", name)
}

// TestTheBodiesOfTheDocumentationAreValid reads the bodies that the contract's page puts, when it is at hand.
func TestTheBodiesOfTheDocumentationAreValid(t *testing.T) {
	folder := os.Getenv("MERIDIAN_CONTRACT")
	if folder == "" {
		t.Skip("not run: MERIDIAN_CONTRACT does not name the folder of the contract, which is not part of this repository")
	}
	text, err := os.ReadFile(filepath.Join(folder, "page.txt"))
	if err != nil {
		t.Fatal(err)
	}
	put := regexp.MustCompile(`(?ms)^curl -XPUT http://localhost:5681/(?:meshes/[^/ ]+/)?([a-z-]+)/\S+ --data [^\n]*\n(\{\n.*?^\})`)
	found := put.FindAllStringSubmatch(string(text), -1)
	if len(found) < 10 {
		t.Fatalf("found only %d bodies", len(found))
	}
	for _, m := range found {
		d, ok := resource.ByPath(m[1])
		if !ok {
			t.Errorf("no type has the path %s", m[1])
			continue
		}
		accepts(t, d.Name, m[2])
	}
	t.Logf("%d bodies", len(found))
}
