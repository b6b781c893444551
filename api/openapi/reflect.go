package openapi

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"time"
)

// Of returns the schema of v's type as encoding/json writes it; a struct with a name gets a schema of that name. The tag
// doc of a field is its description, and null:"true" on a list says that it may be null. Members that may be left out (omitempty, omitzero) are not required; pointers may be
// null unless they are left out instead. It is for the bodies that are Go values, and panics for a type that it does not
// know: that is a mistake in the program.
func (d *Document) Of(v any) *Schema { return d.schemas.goType(reflect.TypeOf(v)) }

// Named refers to a schema that is then described under a name of its own.
func (d *Document) Named(name string, schema *Schema) *Schema {
	return d.schemas.once(name, "the body "+name, func() *Schema { return schema })
}

func (s *schemas) goType(t reflect.Type) *Schema {
	switch t {
	case reflect.TypeFor[time.Time]():
		return refTo(schemaTimestamp)
	case reflect.TypeFor[json.RawMessage]():
		return &Schema{}
	}
	switch t.Kind() {
	case reflect.Bool:
		return &Schema{Type: Types{"boolean"}}
	case reflect.String:
		return &Schema{Type: Types{"string"}}
	case reflect.Int, reflect.Int32, reflect.Int64:
		return &Schema{Type: Types{"integer"}}
	case reflect.Uint, reflect.Uint32, reflect.Uint64:
		return &Schema{Type: Types{"integer"}, Minimum: new(int64(0))}
	case reflect.Float64:
		return &Schema{Type: Types{"number"}}
	case reflect.Interface:
		return &Schema{}
	case reflect.Slice:
		return &Schema{Type: Types{"array"}, Items: s.goType(t.Elem())}
	case reflect.Map:
		return &Schema{Type: Types{"object"}, AdditionalProperties: s.goType(t.Elem())}
	case reflect.Pointer:
		schema := s.goType(t.Elem())
		if schema.Ref != "" {
			return &Schema{AnyOf: []*Schema{schema, {Type: Types{"null"}}}}
		}
		schema.Type = append(schema.Type, "null")
		return schema
	case reflect.Struct:
		if t.Name() == "" {
			return s.goStruct(t)
		}
		return s.once(strings.ToUpper(t.Name()[:1])+t.Name()[1:], t, func() *Schema { return s.goStruct(t) })
	default:
		panic(fmt.Sprintf("openapi: no schema for %s", t))
	}
}

func (s *schemas) goStruct(t reflect.Type) *Schema {
	object := &Schema{Type: Types{"object"}}
	for f := range t.Fields() {
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if !f.IsExported() && !f.Anonymous || name == "-" {
			continue
		}
		if f.Anonymous && name == "" {
			embedded := s.goStruct(f.Type)
			object.Properties = append(object.Properties, embedded.Properties...)
			object.Required = append(object.Required, embedded.Required...)
			continue
		}
		ft, optional := f.Type, strings.Contains(options, "omit")
		if ft.Kind() == reflect.Pointer && optional {
			ft = ft.Elem()
		}
		schema := described(s.goType(ft), f.Tag.Get("doc"))
		if ft.Kind() == reflect.Slice && f.Tag.Get("null") == "true" {
			schema.Type = append(schema.Type, "null")
		}
		object.Properties = append(object.Properties, Property{name, schema})
		if !optional {
			object.Required = append(object.Required, name)
		}
	}
	return object
}
