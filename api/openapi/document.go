package openapi

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/meridian-mesh/meridian/api/resource"
)

// Tags of operations that are not about one type of resource.
const (
	TagControlPlane  = "Control plane"
	TagTokens        = "Tokens"
	TagTransfer      = "Backup and transfer"
	TagDocumentation = "Documentation"
)

// Document is the description of what a server serves. It is made with [New], completed with Add, and then rendered.
type Document struct {
	OpenAPI    string                          `json:"openapi"`
	Info       Info                            `json:"info"`
	Security   []map[string][]string           `json:"security"`
	Tags       []Tag                           `json:"tags"`
	Paths      map[string]map[string]Operation `json:"paths"` // by lower-case method
	Components Components                      `json:"components"`

	plane   resource.Plane
	schemas *schemas
	order   []string // of paths, as they were added
}

// New returns a document without operations, for a plane and a version of the program.
func New(plane resource.Plane, version string) *Document {
	s := newSchemas()
	return &Document{
		OpenAPI: "3.1.1",
		Info: Info{
			Title:       "Meridian " + plane.String() + " control plane",
			Summary:     "The HTTP API of a control plane of a multi-zone service mesh.",
			Description: introduction,
			License:     License{Name: "Apache License 2.0", Identifier: "Apache-2.0"},
			Version:     version,
		},
		Security: []map[string][]string{{}, {"bearer": {}}},
		Paths:    make(map[string]map[string]Operation),
		Components: Components{
			SecuritySchemes: map[string]SecurityScheme{"bearer": {
				Type: "http", Scheme: "bearer", BearerFormat: "JWT", Description: "A user token.",
			}},
		},
		plane:   plane,
		schemas: s,
	}
}

const introduction = `Resources are JSON objects: type, mesh, name, times and labels first, then their specification. Lists are pages. Errors say ` +
	`what was being done, what went wrong, and name every field that is wrong.

- HEAD is answered wherever GET is: the same headers, no body.
- Any path may end up with 405 for a method that it does not have; the header Allow names those it has. Paths that are ` +
	`not described here answer 404, both as a line of plain text.
- Bodies of requests may be JSON or YAML. A field goes by its name in JSON or by its name in the schema, a value of an ` +
	`enum by its name or its number; null stands for absence. Fields that are not described are ignored and named in ` +
	`Warning headers, or refused with strict=true.
- Requests from the machine itself have administrator rights, unless the configuration (apiServer.localhostIsAdmin) says ` +
	`otherwise. From elsewhere, operations that need these rights want a bearer token.
- Answers are compressed where Accept-Encoding admits gzip.`

// Add describes a route of the server. pattern is a path with parameters in braces.
func (d *Document) Add(method, pattern string, op Operation) {
	op.Responses = answers(op.Responses, answerUnauthenticated, answerInternal)
	if d.Paths[pattern] == nil {
		d.Paths[pattern] = make(map[string]Operation)
		d.order = append(d.order, pattern)
	}
	d.Paths[pattern][strings.ToLower(method)] = op
}

// JSON renders the document, indented.
func (d *Document) JSON() ([]byte, error) {
	whole, err := d.complete()
	if err != nil {
		return nil, err
	}
	compact, err := marshal(whole)
	if err != nil {
		return nil, err
	}
	var indented bytes.Buffer
	if err := json.Indent(&indented, compact, "", " "); err != nil {
		return nil, fmt.Errorf("indent the document: %w", err)
	}
	indented.WriteByte('\n')
	return indented.Bytes(), nil
}

// YAML renders the document in the same order as JSON does.
func (d *Document) YAML() ([]byte, error) {
	document, err := d.JSON()
	if err != nil {
		return nil, err
	}
	var root yaml.Node // JSON is YAML
	if err := yaml.Unmarshal(document, &root); err != nil {
		return nil, fmt.Errorf("read the document: %w", err)
	}
	plain(&root)
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	enc.SetIndent(2)
	if err := enc.Encode(&root); err != nil {
		return nil, fmt.Errorf("render YAML: %w", err)
	}
	return out.Bytes(), nil
}

// plain drops the style of JSON: brackets and quotes that YAML does not need.
func plain(n *yaml.Node) {
	n.Style = 0
	if strings.Contains(n.Value, "\n") {
		n.Style = yaml.LiteralStyle
	}
	for _, child := range n.Content {
		plain(child)
	}
}

// complete returns the document with the components that the operations refer to, directly or not, and their tags. It
// leaves d as it is, so that several forms can be rendered at the same time.
func (d *Document) complete() (*Document, error) {
	whole := *d
	c := &whole.Components
	c.Schemas = d.schemas.named
	c.Responses = make(map[string]Response)
	c.Parameters = make(map[string]Parameter)
	c.Headers = make(map[string]Header)
	used := make(map[string]bool) // tags
	var unknown []string
	for path, methods := range d.Paths {
		for method, op := range methods {
			missing := func(what, name string) { unknown = append(unknown, method+" "+path+": "+what+" "+name) }
			for _, tag := range op.Tags {
				used[tag] = true
			}
			for _, p := range op.Parameters {
				if name, ok := strings.CutPrefix(p.Ref, "#/components/parameters/"); ok {
					if c.Parameters[name], ok = parameters[name]; !ok {
						missing("parameter", name)
					}
				}
			}
			for _, r := range op.Responses {
				if name, ok := strings.CutPrefix(r.Ref, "#/components/responses/"); ok {
					r = responses[name].response
					if c.Responses[name] = r; r.Description == "" {
						missing("answer", name)
					}
				}
				for _, h := range r.Headers {
					if name, ok := strings.CutPrefix(h.Ref, "#/components/headers/"); ok {
						if c.Headers[name], ok = headers[name]; !ok {
							missing("header", name)
						}
					}
				}
			}
		}
	}
	for _, tag := range tags() {
		if used[tag.Name] {
			whole.Tags = append(whole.Tags, tag)
			delete(used, tag.Name)
		}
	}
	for tag := range used {
		unknown = append(unknown, "tag "+tag)
	}
	if len(unknown) > 0 {
		slices.Sort(unknown)
		return nil, fmt.Errorf("operations refer to what is not there: %s", strings.Join(unknown, ", "))
	}
	return &whole, nil
}

// tags are all tags in the order of the page: the control plane, then what it holds in the order of the registry.
func tags() []Tag {
	list := []Tag{
		{TagControlPlane, "What answers here, its configuration, and what it knows of the whole."},
		{TagTokens, "What proxies, zones and users prove with who they are."},
		{TagTransfer, "Everything at once: backup, restore, and moving from another system."},
		{TagDocumentation, "This description."},
	}
	all := resource.All()
	for i := range all {
		row := &all[i]
		if row.Path == "" || tagOf(row) != many(row) {
			continue
		}
		list = append(list, Tag{many(row), describeType(row)})
	}
	return list
}

// tagOf is the tag of operations on a type: its name, or that of the type that it reports on.
func tagOf(row *resource.Descriptor) string {
	if row.InsightOf != "" {
		row, _ = resource.Lookup(row.InsightOf)
	}
	return many(row)
}

// methods are the methods of a path in the order in which people read them.
var methods = []string{http.MethodGet, http.MethodPut, http.MethodPost, http.MethodDelete}
