package openapi

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	_ "embed" // the page's template and style
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"maps"
	"net/http"
	"slices"
	"strings"
)

var (
	//go:embed page.html
	pageTemplate string
	//go:embed page.css
	pageStyle string
)

// PagePolicy is the Content-Security-Policy under which the page works: its own style, and nothing from anywhere.
var PagePolicy = func() string {
	sum := sha256.Sum256([]byte(pageStyle))
	return "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; style-src 'sha256-" +
		base64.StdEncoding.EncodeToString(sum[:]) + "'"
}()

// page is what the template shows.
type page struct {
	*Document
	Style  template.CSS
	Groups []pageGroup
}

// pageGroup is the operations of one tag.
type pageGroup struct {
	Tag
	Operations []pageOperation
}

// pageOperation is an operation with what it refers to.
type pageOperation struct {
	Operation
	Method, Path string
	Refused      bool // there is no way to do it here
	Admin        bool
	Parameters   []Parameter
	Body         *Schema
	BodyTypes    []string
	Answers      []pageAnswer
	Curl         string
}

// pageAnswer is one answer of an operation.
type pageAnswer struct {
	Status, Description string
	Types               []string
	Schema              *Schema
	Headers             []pageHeader
}

type pageHeader struct{ Name, Description string }

// pageField is a member of an object, or of one inside it.
type pageField struct {
	Path, Description string
	Type              template.HTML
	Required          bool
}

// fieldsOf are the members of an object and of the objects inside it, by their paths. That what is inside may be null
// is left out: the introduction says that null stands for absence.
func fieldsOf(s *Schema, path string) []pageField {
	var fields []pageField
	for _, p := range s.Properties {
		shown := *p.Schema
		if path != "" {
			shown.Type = slices.DeleteFunc(slices.Clone(shown.Type), func(t string) bool { return t == "null" })
		}
		f := pageField{
			Path: path + p.Name, Description: shown.Description, Type: typeLinks(&shown), Required: slices.Contains(s.Required, p.Name),
		}
		if shown.ReadOnly {
			f.Description = strings.TrimSpace(f.Description + " In answers only.")
		}
		fields = append(fields, f)
		inner, in := p.Schema, f.Path+"."
		if inner.Items != nil {
			inner, in = inner.Items, f.Path+"[]."
		}
		fields = append(fields, fieldsOf(inner, in)...)
	}
	return fields
}

// Page renders the document as one HTML page that needs nothing else.
func (d *Document) Page() ([]byte, error) {
	d, err := d.complete()
	if err != nil {
		return nil, err
	}
	t, err := template.New("page").Funcs(template.FuncMap{
		"type": typeLinks, "anchor": anchor, "paragraphs": paragraphs, "fields": func(s *Schema) []pageField { return fieldsOf(s, "") },
		"schemas": func() []string { return slices.Sorted(maps.Keys(d.Components.Schemas)) },
	}).Parse(pageTemplate)
	if err != nil {
		return nil, fmt.Errorf("parse the page's template: %w", err)
	}
	p := page{Document: d, Style: template.CSS(pageStyle)} //nolint:gosec // it is ours
	for _, tag := range d.Tags {
		operations, err := d.operations(tag.Name)
		if err != nil {
			return nil, err
		}
		p.Groups = append(p.Groups, pageGroup{tag, operations})
	}
	var out bytes.Buffer
	if err := t.Execute(&out, p); err != nil {
		return nil, fmt.Errorf("render the page: %w", err)
	}
	return out.Bytes(), nil
}

// operations are those of a tag, in the order in which they were added.
func (d *Document) operations(tag string) ([]pageOperation, error) {
	var found []pageOperation
	for _, path := range d.order {
		for _, method := range methods {
			op, ok := d.Paths[path][strings.ToLower(method)]
			if ok && slices.Contains(op.Tags, tag) {
				p, err := d.operation(method, path, op)
				if err != nil {
					return nil, err
				}
				found = append(found, p)
			}
		}
	}
	return found, nil
}

func (d *Document) operation(method, path string, op Operation) (pageOperation, error) {
	p := pageOperation{Operation: op, Method: method, Path: path, Refused: true, Admin: len(op.Security) > 0}
	for _, parameter := range op.Parameters {
		if name, ok := strings.CutPrefix(parameter.Ref, "#/components/parameters/"); ok {
			parameter = parameters[name]
		}
		p.Parameters = append(p.Parameters, parameter)
	}
	if op.RequestBody != nil {
		p.BodyTypes = slices.Sorted(maps.Keys(op.RequestBody.Content))
		p.Body = op.RequestBody.Content[p.BodyTypes[0]].Schema
	}
	for _, status := range slices.Sorted(maps.Keys(op.Responses)) {
		r := op.Responses[status]
		if name, ok := strings.CutPrefix(r.Ref, "#/components/responses/"); ok {
			r = responses[name].response
		}
		p.Refused = p.Refused && status >= "400"
		answer := pageAnswer{Status: status, Description: r.Description, Types: slices.Sorted(maps.Keys(r.Content))}
		for _, name := range slices.Sorted(maps.Keys(r.Headers)) {
			h := r.Headers[name]
			if ref, ok := strings.CutPrefix(h.Ref, "#/components/headers/"); ok {
				h = headers[ref]
			}
			answer.Headers = append(answer.Headers, pageHeader{name, h.Description})
		}
		if len(answer.Types) > 0 {
			answer.Schema = r.Content[answer.Types[0]].Schema
		}
		p.Answers = append(p.Answers, answer)
	}
	var err error
	p.Curl, err = p.curl()
	return p, err
}

// curl is a command that makes the request.
func (p pageOperation) curl() (string, error) {
	var body struct{ Name string }
	var data bytes.Buffer
	if p.RequestBody != nil {
		if example, ok := p.RequestBody.Content[mediaJSON].Example.(json.RawMessage); ok {
			if err := errors.Join(json.Unmarshal(example, &body), json.Indent(&data, example, "", "  ")); err != nil {
				return "", fmt.Errorf("read the example of %s: %w", p.ID, err)
			}
		}
	}
	path := strings.NewReplacer("{mesh}", "default", "{name}", cmp.Or(body.Name, "NAME")).Replace(p.Path)
	var b strings.Builder
	b.WriteString("curl ")
	if p.Method != http.MethodGet {
		b.WriteString("-X " + p.Method + " ")
	}
	if p.Admin {
		b.WriteString(`-H "Authorization: Bearer $TOKEN" `)
	}
	b.WriteString("http://localhost:5681" + path)
	switch {
	case p.RequestBody == nil:
	case data.Len() > 0:
		b.WriteString(" \\\n  -H 'Content-Type: " + mediaJSON + "' --data '" + data.String() + "'")
	default:
		b.WriteString(" \\\n  -H 'Content-Type: " + mediaYAML + "' --data-binary @resources.yaml")
	}
	return b.String(), nil
}

func anchor(name string) string { return "schema-" + name }

// typeLinks names the type of a schema, with links to named ones.
func typeLinks(s *Schema) template.HTML {
	escaped := template.HTMLEscapeString
	if s == nil {
		return "anything"
	}
	if name, ok := strings.CutPrefix(s.Ref, "#/components/schemas/"); ok {
		return template.HTML(fmt.Sprintf(`<a href="#%s">%s</a>`, escaped(anchor(name)), escaped(name))) //nolint:gosec // escaped
	}
	parts := make([]string, 0, len(s.Type)+len(s.AnyOf))
	for _, t := range s.Type {
		switch {
		case t == "array" && s.Items != nil && len(s.Items.Properties) > 0:
			t = "list of objects"
		case t == "array" && s.Items != nil:
			t = "list of " + string(typeLinks(s.Items))
		case t == "object" && s.AdditionalProperties != nil && len(s.Properties) == 0:
			t = "map of " + string(typeLinks(s.AdditionalProperties))
		case t == "string" && s.Const != "":
			t = "<code>" + escaped(s.Const) + "</code>"
		case t == "string" && len(s.Enum) > 0:
			values := make([]string, len(s.Enum))
			for i, v := range s.Enum {
				values[i] = "<code>" + escaped(v) + "</code>"
			}
			t = strings.Join(values, ", ")
		}
		parts = append(parts, t)
	}
	for _, other := range s.AnyOf {
		parts = append(parts, string(typeLinks(other)))
	}
	if len(parts) == 0 {
		return "anything"
	}
	return template.HTML(strings.Join(parts, " or ")) //nolint:gosec // made of what is escaped above
}

// paragraphs turns text with blank lines and lists into HTML.
func paragraphs(text string) template.HTML {
	var b strings.Builder
	for block := range strings.SplitSeq(text, "\n\n") {
		if !strings.HasPrefix(block, "- ") {
			b.WriteString("<p>" + template.HTMLEscapeString(block) + "</p>")
			continue
		}
		b.WriteString("<ul>")
		for line := range strings.SplitSeq(block, "\n") {
			b.WriteString("<li>" + template.HTMLEscapeString(strings.TrimPrefix(line, "- ")) + "</li>")
		}
		b.WriteString("</ul>")
	}
	return template.HTML(b.String()) //nolint:gosec // escaped
}
