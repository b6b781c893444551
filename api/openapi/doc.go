// Package openapi describes the HTTP API in OpenAPI 3.1: what is served, in the forms in which it is served.
//
// Nothing here is written down twice. Schemas are made from the protobuf messages and from the shapes of the JSON types,
// by the rules of package codec; operations on resources from the rows of the registry; and a [Document] lists the
// operations that its maker adds, which is the HTTP server itself, from its own routing table.
//
//	model.go         the parts of an OpenAPI document, as far as they are used
//	schema.go        schemas from protobuf messages, and from shapes
//	resources.go     schemas of resources, lists and overviews
//	reflect.go       schemas from Go types, for bodies that are no resources
//	examples.go      a small body of each type
//	operations.go    the operations on resources
//	common.go        parameters, headers and answers that operations share
//	document.go      the whole, in JSON and YAML
//	page.go          the whole, as a page to read
//	descriptions.go  comments of the .proto files (generated)
package openapi
