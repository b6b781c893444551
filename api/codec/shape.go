package codec

import "github.com/meridian-mesh/meridian/api/resource"

// Shape says what is known of a value inside the specification of a JSON type, for those who describe it. Exactly one
// field is set. Objects may have further members that no shape mentions; they may hold anything and are kept.
type Shape struct {
	Fields   map[string]Shape // an object with these members, among others
	Elements *Shape           // an array
	Entries  *Shape           // an object with any names
	Allowed  []string         // one of these strings
	Percent  bool             // a whole number, or a string
	Scalar   string           // "string" or "boolean"
}

// ShapeOf returns the shape of the specification of a JSON type; false for any other type.
func ShapeOf(t resource.Type) (Shape, bool) {
	s, ok := jsonShapes[t]
	if !ok {
		return Shape{}, false
	}
	return s.export(), true
}

func (s *shape) export() Shape {
	switch {
	case s.fields != nil:
		fields := make(map[string]Shape, len(s.fields))
		for name, f := range s.fields {
			fields[name] = f.export()
		}
		return Shape{Fields: fields}
	case s.elements != nil:
		return Shape{Elements: new(s.elements.export())}
	case s.entries != nil:
		return Shape{Entries: new(s.entries.export())}
	case s.allowed != nil:
		return Shape{Allowed: s.allowed}
	case s.percent:
		return Shape{Percent: true}
	case s.scalar == kindBool:
		return Shape{Scalar: "boolean"}
	default:
		return Shape{Scalar: "string"}
	}
}
