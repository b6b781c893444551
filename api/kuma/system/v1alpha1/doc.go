// Package systemv1 is the schema of what the control planes keep for themselves: zones, secrets, shared configuration.
// It is generated from the .proto files beside it, which share names, numbers and JSON names with Kuma's.
//
// Change a .proto file, then run `go run ./api/internal/protogen`.
package systemv1
