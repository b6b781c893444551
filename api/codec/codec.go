// Package codec turns resources into the JSON that HTTP serves, and what clients send into resources.
//
// A resource is one JSON object: type, mesh, name, times and labels first, then the fields of its specification in the
// order in which the schema declares them. The targetRef policies, whose specification is plain JSON, nest it under
// "spec", where it is kept byte for byte apart from white space.
//
// The package has an encoder and a decoder of its own rather than protobuf's: bytes must be the same in every process
// (entity tags and caches depend on it), the order of fields is part of the contract, and a client whose body is wrong
// should read the path of every field that is, not only where the first was met.
package codec

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// ErrMediaType reports that a body is in a format that Decode does not read.
var ErrMediaType = errors.New("unsupported media type")

// Document is what a body says.
type Document struct {
	// Type, Mesh and Name stand here as sent, empty when absent: whether they agree with the URL is not decided here.
	// Mesh is always empty for a type that lives outside meshes, whatever the body says.
	Type, Mesh, Name string
	// Labels is nil when there are none.
	Labels map[string]string
	// Created and Modified are zero when the document does not say, and always after Decode, which ignores them.
	Created, Modified time.Time
	// Spec is the specification as stores and peers keep it: deterministic protobuf, or compact JSON as it was sent.
	Spec []byte
	// Unknown are the paths of fields that the schema does not have, in the order of the body. Their values are not
	// in Spec, except inside the specification of a JSON type, where they are kept: a newer peer may know them. At
	// most 100.
	Unknown []string
}

// Violation is one thing that is wrong with a body.
type Violation struct {
	// Field is the path of the value as the client wrote it, e.g. networking.inbound[1].tags["version"]. It is empty
	// when the body as a whole is meant.
	Field string
	// Message completes the sentence that begins with Field.
	Message string
}

// Error reports all that is wrong with a body, up to 100 violations, in the order of the body.
type Error struct {
	Violations []Violation
}

// Error joins the violations.
func (e *Error) Error() string {
	parts := make([]string, len(e.Violations))
	for i, v := range e.Violations {
		parts[i] = strings.TrimSpace(v.Field + " " + v.Message)
	}
	return "invalid body: " + strings.Join(parts, "; ")
}

// Spec decodes the specification of a record. It fails for a JSON type, which has no message.
func Spec(d *resource.Descriptor, rec *store.Record) (proto.Message, error) {
	if d.IsJSON() {
		return nil, fmt.Errorf("decode specification of %s: the type has no message", rec.Key)
	}
	m := d.NewSpec()
	if err := proto.Unmarshal(rec.Spec, m); err != nil {
		return nil, fmt.Errorf("decode specification of %s: %w", rec.Key, err)
	}
	return m, nil
}

// SpecOf decodes the specification of a record, which must be an M.
func SpecOf[M proto.Message](rec *store.Record) (M, error) {
	var none M
	d, ok := resource.Lookup(resource.Type(rec.Key.Type))
	if !ok {
		return none, fmt.Errorf("decode specification of %s: the type is not in the registry", rec.Key)
	}
	spec, err := Spec(d, rec)
	if err != nil {
		return none, err
	}
	m, ok := spec.(M)
	if !ok {
		return none, fmt.Errorf("decode specification of %s: it is a %T", rec.Key, spec)
	}
	return m, nil
}

// ValidateSpec reports whether spec, which came from a peer, can be stored as it is: it must decode as the type's
// message, or be a JSON object. What a newer peer added and our schema does not know is no error; it stays in spec.
func ValidateSpec(d *resource.Descriptor, spec []byte) error {
	if d.IsJSON() {
		if !json.Valid(spec) {
			return fmt.Errorf("specification of %s is not JSON", d.Name)
		}
		if first := strings.TrimLeft(string(spec), " \t\r\n"); first[0] != '{' {
			return fmt.Errorf("specification of %s is not a JSON object", d.Name)
		}
		return nil
	}
	if err := proto.Unmarshal(spec, d.NewSpec()); err != nil {
		return fmt.Errorf("specification of %s: %w", d.Name, err)
	}
	return nil
}
