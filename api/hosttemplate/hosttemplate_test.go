package hosttemplate

import (
	"strings"
	"testing"
)

func TestTemplates(t *testing.T) {
	values := map[string]string{"service": "api", "version": "2", "empty": ""}
	for text, want := range map[string]string{
		"":                               "",
		"plain.example.org":              "plain.example.org",
		"{{.service}}.{{.version}}":      "api.2",
		"{{ .service -}} .mesh":          "api.mesh",
		"{{/* a remark */}}x":            "x",
		`{{if .empty}}a{{else}}b{{end}}`: "b",
		`{{if and (eq .service "api") (ne .version "1")}}yes{{else if .empty}}no{{end}}`: "yes",
	} {
		tmpl, err := Parse(text)
		if err != nil {
			t.Errorf("%s: %v", text, err)
			continue
		}
		if got, err := tmpl.Render(values); err != nil || got != want {
			t.Errorf("%s gives %q (%v), not %q", text, got, err, want)
		}
	}
}

func TestWhatIsRefused(t *testing.T) {
	for text, want := range map[string]string{
		"{{":                         "unclosed action",
		"{{.service":                 "unclosed action",
		"{{range .service}}x{{end}}": "is not supported",
		"{{with .service}}x{{end}}":  "is not supported",
		`{{printf "%999999999d" 1}}`: "is not supported",
		`{{html .service}}`:          "is not supported",
		"{{$x := .service}}{{$x}}":   "variables are not supported",
		`{{define "a"}}{{template "a"}}{{end}}{{template "a"}}`: "templates inside templates",
		`{{template "a"}}`:                 "is not supported",
		strings.Repeat("x", maxTemplate+1): "longer than",
	} {
		if _, err := Parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60s: %v, not %q", text, err, want)
		}
	}
}

func TestAParameterWithoutAValueIsAnError(t *testing.T) {
	tmpl, err := Parse("{{.version}}.mesh")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := tmpl.Render(map[string]string{"service": "api"}); err == nil || !strings.Contains(err.Error(), "version") {
		t.Errorf("%q, %v", got, err)
	}
}

func TestWhatATemplateGivesIsBounded(t *testing.T) {
	tmpl, err := Parse(strings.Repeat("{{.v}}", 100))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tmpl.Render(map[string]string{"v": strings.Repeat("x", 1<<20)}); err == nil || !strings.Contains(err.Error(), "gives more than") {
		t.Error(err)
	}
}
