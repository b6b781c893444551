// Package validatetest holds resources that validation must refuse, and resources that it must accept, each tied to the
// row of the contract it stands for. The tests of package validate use them on the rules alone, those of the HTTP API
// from end to end.
package validatetest

import (
	"fmt"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/meridian-mesh/meridian/api/codec"
	"github.com/meridian-mesh/meridian/api/resource"
)

// Mesh is the mesh that all cases live in, and the name of the Meshes among them. It exists with an empty specification
// unless a case says otherwise.
const Mesh = "demo"

// Case is one resource and what is wrong with it.
type Case struct {
	// Row names the row of the contract: type and field, with #2, #3... for further rows of the same.
	Row string
	// Type and Body are the resource. Its name is "x", a Mesh's is Mesh.
	Type resource.Type
	Body string
	// Given are bodies of resources that exist, and Old is what the resource itself was; "" when it is new.
	Given []string
	Old   string
	// Want is everything that is wrong with Body. Empty: it is accepted.
	Want []codec.Violation
	// Object: the row's field is the object that Want's field stands in.
	Object bool
	// Form: it is not the rules that find this but the decoding of the body, and Want is only about the fields.
	Form bool
	// Differs says why this is not what the contract's row has: the number of the decision, or a sentence in
	// docs/COMPATIBILITY.md. Empty: field and message are the row's.
	Differs string
}

// Name identifies the case among the others.
func (c Case) Name() string {
	what := "accepted"
	if len(c.Want) > 0 {
		what = c.Want[0].Field + " " + c.Want[0].Message
	}
	return c.Row + ": " + what
}

// refuse is the case of a row: the type's sample with changes, and everything that is then wrong, as pairs of field and
// message, the row's own first in the order of the report.
func refuse(row, changes string, fieldsAndMessages ...string) Case {
	typ, _, _ := strings.Cut(row, " ")
	c := of(typ, row, changes)
	for i := 0; i < len(fieldsAndMessages); i += 2 {
		c.Want = append(c.Want, codec.Violation{Field: fieldsAndMessages[i], Message: fieldsAndMessages[i+1]})
	}
	return c
}

// accept is the case of a row whose rule is that there is none, or that a decision overrides.
func accept(row, changes string) Case { return refuse(row, changes) }

func of(typ, row, changes string) Case {
	return Case{Row: row, Type: resource.Type(typ), Body: Sample(resource.Type(typ), changes)}
}

// in puts the case under the row of a rule that many types share.
func (c Case) in(row string) Case { c.Row = row; return c }

// at says that the row names the object in which the fault is.
func (c Case) at() Case { c.Object = true; return c }

func (c Case) given(bodies ...string) Case { c.Given = bodies; return c }
func (c Case) was(changes string) Case     { c.Old = Sample(c.Type, changes); return c }
func (c Case) differs(because string) Case { c.Differs = because; return c }
func (c Case) form(because string) Case    { c.Form = true; return c.differs(because) }
func (c Case) because(decision int) Case   { return c.differs("decision " + strconv.Itoa(decision)) }

// Sample returns the body of a small valid resource of a type with changes, one a line: "path = value" sets what stands
// at a path to a YAML value, "path -" removes it. The parts of a path are .name, [index] and ["name"].
func Sample(typ resource.Type, changes string) string {
	var body map[string]any
	must(yaml.Unmarshal([]byte(samples[typ]), &body))
	body["type"], body["name"] = string(typ), "x"
	d, ok := resource.Lookup(typ)
	switch {
	case !ok:
		panic("no such type: " + typ)
	case d.Scope == resource.ScopeMesh:
		body["mesh"] = Mesh
	case typ == resource.Mesh:
		body["name"] = Mesh
	}
	for line := range strings.Lines(changes) {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if path, ok := strings.CutSuffix(line, " -"); ok {
			change(body, split(path), nil, true)
			continue
		}
		path, text, ok := strings.Cut(line, " = ")
		if !ok {
			panic("not a change: " + line)
		}
		var value any
		must(yaml.Unmarshal([]byte(text), &value))
		change(body, split(path), value, false)
	}
	text, err := yaml.Marshal(body)
	must(err)
	return string(text)
}

func must(err error) {
	if err != nil {
		panic(fmt.Sprintf("validatetest: %v", err))
	}
}

// split cuts a path into names and indexes.
func split(path string) []any {
	var parts []any
	for path != "" {
		switch {
		case path[0] == '.':
			path = path[1:]
		case strings.HasPrefix(path, `["`):
			end := strings.Index(path, `"]`)
			parts, path = append(parts, path[2:end]), path[end+2:]
		case path[0] == '[':
			end := strings.IndexByte(path, ']')
			i, err := strconv.Atoi(path[1:end])
			must(err)
			parts, path = append(parts, i), path[end+1:]
		default:
			end := strings.IndexAny(path, ".[")
			if end < 0 {
				end = len(path)
			}
			parts, path = append(parts, path[:end]), path[end:]
		}
	}
	return parts
}

// change sets or removes what stands at a path below v, and returns v, which may be new.
func change(v any, path []any, value any, remove bool) any {
	if len(path) == 0 {
		return value
	}
	switch part := path[0].(type) {
	case int:
		list, _ := v.([]any)
		if part == len(list) {
			list = append(list, nil)
		}
		if remove && len(path) == 1 {
			return append(list[:part:part], list[part+1:]...)
		}
		list[part] = change(list[part], path[1:], value, remove)
		return list
	case string:
		object, _ := v.(map[string]any)
		if object == nil {
			object = make(map[string]any)
		}
		if remove && len(path) == 1 {
			delete(object, part)
		} else {
			object[part] = change(object[part], path[1:], value, remove)
		}
		return object
	default:
		panic("unreachable")
	}
}
