// Package capb is the schema of the conf of a mesh's certificate authority backends. In a Mesh the conf is a free
// Struct, so that a backend type may bring its own; these messages say what the two known types expect there.
//
// Change a .proto file, then run `go run ./api/internal/protogen`.
package capb
