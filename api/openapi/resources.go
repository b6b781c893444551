package openapi

import (
	"strings"

	"github.com/meridian-mesh/meridian/api/codec"
	"github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
)

// jsonDescriptions describe the JSON types, whose specifications have no schema to say so.
var jsonDescriptions = map[resource.Type]string{
	"MeshAccessLog":         "MeshAccessLog says where the access logs of the selected proxies go.",
	"MeshTrace":             "MeshTrace says where the traces of the selected proxies go, and how many there are.",
	"MeshTrafficPermission": "MeshTrafficPermission says which clients may talk to the selected proxies.",
}

// describeType says what a type is for, as its file does: what is said of its message is about the specification alone.
func describeType(d *resource.Descriptor) string {
	if d.IsJSON() {
		return jsonDescriptions[d.Name]
	}
	return descriptions[d.Message().ParentFile().Path()]
}

// meta are the members that every resource begins with.
func meta(typ string, mesh bool) (Properties, []string) {
	properties := Properties{{"type", &Schema{Type: Types{"string"}, Const: typ}}}
	required := []string{"type"}
	if typ == string(resource.GlobalSecret) {
		properties[0].Schema = &Schema{
			Type: Types{"string"}, Enum: []string{typ, string(resource.Secret)},
			Description: "Answered as GlobalSecret; Secret is accepted too.",
		}
	}
	if mesh {
		properties = append(properties, Property{"mesh", &Schema{
			Type: Types{"string"}, Description: "Name of the mesh; the same as in the path.",
		}})
		required = append(required, "mesh")
	}
	properties = append(properties,
		Property{"name", &Schema{Type: Types{"string"}, Description: "The same as in the path."}},
		Property{"creationTime", &Schema{Ref: refTo(schemaTimestamp).Ref, ReadOnly: true}},
		Property{"modificationTime", &Schema{Ref: refTo(schemaTimestamp).Ref, ReadOnly: true}},
		Property{"labels", &Schema{
			Type: Types{"object"}, AdditionalProperties: &Schema{Type: Types{"string"}},
			Description: "Free to use; left out when there are none.",
		}},
	)
	return properties, append(required, "name", "creationTime", "modificationTime")
}

// resource refers to the schema of a resource: its meta, then its specification.
func (s *schemas) resource(d *resource.Descriptor) *Schema {
	name := string(d.Name)
	return s.once(name, d.Name, func() *Schema {
		properties, required := meta(name, d.Scope == resource.ScopeMesh)
		object := &Schema{Type: Types{"object"}}
		switch known, isJSON := codec.ShapeOf(d.Name); {
		case d.Name == resource.ServiceInsight:
			// Stored for a mesh, shown for a service.
			md := (*meshv1.ServiceInsight_Service)(nil).ProtoReflect().Descriptor()
			object.Description = messageDescription(md)
			properties = append(properties, s.fields(md)...)
		case isJSON:
			object.Description = describeType(d)
			spec := described(shapeObject(known), "Members that are not listed are kept as they are.")
			properties, required = append(properties, Property{"spec", spec}), append(required, "spec")
		default:
			object.Description = describeType(d)
			properties = append(properties, s.fields(d.Message())...)
		}
		object.Properties, object.Required = properties, required
		return object
	})
}

// overview refers to the schema of a resource joined with its insight.
func (s *schemas) overview(d *resource.Descriptor) *Schema {
	name := overviewName(d)
	return s.once(name, "overview of "+d.Name, func() *Schema {
		insight, _ := d.Insight()
		properties, required := meta(name, d.Scope == resource.ScopeMesh)
		main, other := lowerFirst(string(d.Name)), lowerFirst(string(insight.Name))
		return &Schema{
			Description: "A " + d.Singular + " and what is known of it, made on read.",
			Type:        Types{"object"},
			Required:    append(required, main),
			Properties: append(properties,
				Property{main, s.message(d.Message())},
				Property{other, described(s.message(insight.Message()), "In lists left out while nothing is known.")}),
		}
	})
}

func overviewName(d *resource.Descriptor) string { return string(d.Name) + "Overview" }

// list refers to the schema of a page of items.
func (s *schemas) list(name string, item *Schema) *Schema {
	return s.once(name+"List", "list of "+name, func() *Schema {
		items := &Schema{Type: Types{"array"}, Items: item}
		total := "Number of items that match, on all pages."
		switch {
		case name == string(resource.ServiceInsight):
			items.Type = Types{"array", "null"}
			items.Description = "null when there are none."
		case strings.HasSuffix(name, "Overview"):
			total = "Number of items on this page."
		}
		return &Schema{
			Type:     Types{"object"},
			Required: []string{"total", "items", "next"},
			Properties: Properties{
				{"total", &Schema{Type: Types{"integer"}, Description: total}},
				{"items", items},
				{"next", &Schema{
					Type: Types{"string", "null"}, Format: "uri",
					Description: "Address of the next page, null on the last one.",
				}},
			},
		}
	})
}

func lowerFirst(s string) string { return strings.ToLower(s[:1]) + s[1:] }
