package openapi

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/meridian-mesh/meridian/api/codec"
	"github.com/meridian-mesh/meridian/api/resource"
)

// Names of schemas that are not made from messages.
const (
	schemaDuration  = "Duration"
	schemaTimestamp = "Timestamp"
	schemaProblem   = "Problem"
)

// schemas collects the named schemas of a document. Each is made once, when it is first referred to.
type schemas struct {
	named   map[string]*Schema
	sources map[string]any                 // what a named schema was made from
	specs   map[protoreflect.FullName]bool // messages that are specifications of resources
}

func newSchemas() *schemas {
	s := &schemas{named: make(map[string]*Schema), sources: make(map[string]any), specs: make(map[protoreflect.FullName]bool)}
	all := resource.All()
	for i := range all {
		if !all[i].IsJSON() {
			s.specs[all[i].Message().FullName()] = true
		}
	}
	for _, name := range [...]string{schemaDuration, schemaTimestamp, schemaProblem} {
		s.sources[name] = "made here"
	}
	s.named[schemaProblem] = problemSchema()
	s.named[schemaDuration] = &Schema{
		Description: `A length of time: numbers with units, such as "5s", "0.250s" or "1m30s". Answers are in seconds.`,
		Type:        Types{"string"},
		Pattern:     `^[-+]?(0|(([0-9]+[.]?[0-9]*|[.][0-9]+)(ns|us|µs|μs|ms|s|m|h))+)$`,
		Examples:    []any{"5s", "0.250s"},
	}
	s.named[schemaTimestamp] = &Schema{
		Description: "A time in UTC.",
		Type:        Types{"string"},
		Format:      "date-time",
		Examples:    []any{"2026-02-03T04:05:06.789Z"},
	}
	return s
}

func refTo(name string) *Schema { return &Schema{Ref: "#/components/schemas/" + name} }

// once makes a named schema when there is none, and refers to it. source tells what is described: two things under one
// name would be a mistake in the program, so it panics.
func (s *schemas) once(name string, source any, build func() *Schema) *Schema {
	if other, ok := s.sources[name]; ok {
		if other != source {
			panic(fmt.Sprintf("openapi: the schema %s would describe %v and %v", name, other, source))
		}
		return refTo(name)
	}
	s.sources[name] = source // at once: messages that contain themselves find it
	s.named[name] = build()
	return refTo(name)
}

// message refers to the schema of a message as the codec reads and writes it.
func (s *schemas) message(md protoreflect.MessageDescriptor) *Schema {
	if known := wellKnown(md.FullName()); known != nil {
		return known
	}
	return s.once(s.messageName(md), md.FullName(), func() *Schema {
		return &Schema{
			Description: messageDescription(md),
			Type:        Types{"object"},
			Properties:  s.fields(md),
		}
	})
}

// meshPackage is the package of most messages.
const meshPackage = "kuma.mesh.v1alpha1"

// messageName is a message's name without its package, of which others than the mesh's leave their second part. The name
// of a specification is the resource's, so its message gets another.
func (s *schemas) messageName(md protoreflect.Descriptor) string {
	pkg := md.ParentFile().Package()
	name := strings.TrimPrefix(string(md.FullName()), string(pkg)+".")
	if s.specs[md.FullName()] {
		name += "Spec"
	}
	if pkg == meshPackage {
		return name
	}
	return strings.Split(string(pkg), ".")[1] + "." + name // kuma.system.v1alpha1
}

// wellKnown returns the schema of a message that has a form of its own in JSON.
func wellKnown(name protoreflect.FullName) *Schema {
	number := func(minimum, maximum int64) *Schema {
		return &Schema{Type: Types{"integer"}, Minimum: &minimum, Maximum: &maximum}
	}
	switch name {
	case "google.protobuf.Duration":
		return refTo(schemaDuration)
	case "google.protobuf.Timestamp":
		return refTo(schemaTimestamp)
	case "google.protobuf.BoolValue":
		return &Schema{Type: Types{"boolean"}}
	case "google.protobuf.StringValue":
		return &Schema{Type: Types{"string"}}
	case "google.protobuf.BytesValue":
		return bytesSchema()
	case "google.protobuf.Int32Value":
		return number(math.MinInt32, math.MaxInt32)
	case "google.protobuf.UInt32Value":
		return number(0, math.MaxUint32)
	case "google.protobuf.Int64Value", "google.protobuf.UInt64Value":
		return int64Schema()
	case "google.protobuf.FloatValue", "google.protobuf.DoubleValue":
		return &Schema{Type: Types{"number"}}
	case "google.protobuf.Struct":
		return &Schema{Type: Types{"object"}, AdditionalProperties: &Schema{}}
	case "google.protobuf.ListValue":
		return &Schema{Type: Types{"array"}}
	case "google.protobuf.Value":
		return &Schema{}
	default:
		return nil
	}
}

func bytesSchema() *Schema {
	return &Schema{Type: Types{"string"}, ContentEncoding: "base64"}
}

// int64Schema is the schema of 64-bit integers: more than a JSON number holds everywhere.
func int64Schema() *Schema {
	return &Schema{
		Description: "Answered as a string of digits; a number is accepted too.",
		Type:        Types{"string", "integer"}, Format: "int64",
	}
}

// fields are the members of a message's object, in the order of the schema.
func (s *schemas) fields(md protoreflect.MessageDescriptor) Properties {
	properties := make(Properties, md.Fields().Len())
	for i := range properties {
		fd := md.Fields().Get(i)
		properties[i] = Property{fd.JSONName(), described(s.field(fd), descriptions[string(fd.FullName())])}
	}
	return properties
}

// described adds a description to a schema, before the one that it has.
func described(s *Schema, description string) *Schema {
	s.Description = strings.TrimSpace(description + " " + s.Description)
	return s
}

func (s *schemas) field(fd protoreflect.FieldDescriptor) *Schema {
	switch {
	case fd.IsList():
		return &Schema{Type: Types{"array"}, Items: s.value(fd)}
	case fd.IsMap():
		return &Schema{Type: Types{"object"}, AdditionalProperties: s.value(fd.MapValue())}
	default:
		return s.value(fd)
	}
}

// value is the schema of one value of a field's type.
func (s *schemas) value(fd protoreflect.FieldDescriptor) *Schema {
	switch fd.Kind() {
	case protoreflect.BoolKind:
		return wellKnown("google.protobuf.BoolValue")
	case protoreflect.StringKind:
		return wellKnown("google.protobuf.StringValue")
	case protoreflect.BytesKind:
		return bytesSchema()
	case protoreflect.EnumKind:
		return s.enum(fd.Enum())
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return wellKnown("google.protobuf.Int32Value")
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return wellKnown("google.protobuf.UInt32Value")
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		return wellKnown("google.protobuf.DoubleValue")
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return s.message(fd.Message())
	default: // the 64-bit integers
		return int64Schema()
	}
}

// enum refers to the schema of an enum. A value that a newer peer sent and that has no name here shows as its number.
func (s *schemas) enum(ed protoreflect.EnumDescriptor) *Schema {
	return s.once(s.messageName(ed), ed.FullName(), func() *Schema {
		names := make([]string, ed.Values().Len())
		for i := range names {
			names[i] = string(ed.Values().Get(i).Name())
		}
		return &Schema{
			Description: descriptions[string(ed.FullName())],
			AnyOf: []*Schema{
				{Type: Types{"string"}, Enum: names},
				{Type: Types{"integer"}, Description: "The number of a value in the schema."},
			},
		}
	})
}

// messageDescription is the comment of a message, and which of its fields exclude each other.
func messageDescription(md protoreflect.MessageDescriptor) string {
	sentences := []string{descriptions[string(md.FullName())]}
	for i := range md.Oneofs().Len() {
		oneof := md.Oneofs().Get(i)
		if oneof.IsSynthetic() {
			continue
		}
		names := make([]string, oneof.Fields().Len())
		for j := range names {
			names[j] = oneof.Fields().Get(j).JSONName()
		}
		sentences = append(sentences, "At most one of "+strings.Join(names, ", ")+".")
	}
	return strings.TrimSpace(strings.Join(sentences, " "))
}

// shape is the schema of a value inside the specification of a JSON type, where null may stand for absence anywhere and
// is kept.
func shape(s codec.Shape) *Schema {
	switch {
	case s.Fields != nil:
		object := shapeObject(s)
		object.Type = append(object.Type, "null")
		return object
	case s.Elements != nil:
		return &Schema{Type: Types{"array", "null"}, Items: shape(*s.Elements)}
	case s.Entries != nil:
		return &Schema{Type: Types{"object", "null"}, AdditionalProperties: shape(*s.Entries)}
	case s.Allowed != nil:
		return &Schema{AnyOf: []*Schema{{Type: Types{"string"}, Enum: s.Allowed}, {Type: Types{"null"}}}}
	case s.Percent:
		return &Schema{Type: Types{"integer", "string", "null"}, Description: "A percentage."}
	default:
		return &Schema{Type: Types{s.Scalar, "null"}}
	}
}

// shapeObject is the schema of an object with known members, and what else there may be.
func shapeObject(s codec.Shape) *Schema {
	object := &Schema{Type: Types{"object"}, AdditionalProperties: &Schema{}}
	for _, name := range slices.SortedFunc(maps.Keys(s.Fields), byImportance) {
		object.Properties = append(object.Properties, Property{name, shape(s.Fields[name])})
	}
	return object
}

// byImportance puts what selects first, as in the bodies that people write, and sorts the rest.
func byImportance(a, b string) int {
	rank := func(name string) int {
		return slices.Index([]string{"default", "from", "to", "name", "kind", "targetRef"}, name)
	}
	if c := rank(b) - rank(a); c != 0 {
		return c
	}
	return strings.Compare(a, b)
}
