// Package meshv1 is the schema of everything that lives in a mesh, and of the protocol (KDS) that carries it between
// control planes. It is generated from the .proto files beside it, which share names, numbers and JSON names with
// Kuma's: both speak the same wire. The order of fields in a message is their order in JSON.
//
// Change a .proto file, then run `go run ./api/internal/protogen`.
package meshv1
