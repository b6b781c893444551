package openapi

import (
	_ "embed" // the examples
	"encoding/json"
	"fmt"

	"github.com/meridian-mesh/meridian/api/resource"
)

//go:embed examples.json
var exampleFile []byte

// examples has a small body for each type that can be written somewhere. They can be written as they are.
var examples = func() map[resource.Type]json.RawMessage {
	var all map[resource.Type]json.RawMessage
	if err := json.Unmarshal(exampleFile, &all); err != nil {
		panic(fmt.Sprintf("openapi: examples.json: %v", err))
	}
	return all
}()

// Example returns the example of a type, nil where there is none.
func Example(t resource.Type) json.RawMessage { return examples[t] }

// tokenExamples are requests for tokens, by kind.
var tokenExamples = map[string]json.RawMessage{
	"dataplane":    json.RawMessage(`{"name": "web-1", "mesh": "default", "validFor": "720h"}`),
	"zone-ingress": json.RawMessage(`{"zone": "zone-1", "validFor": "720h"}`),
	"zone":         json.RawMessage(`{"zone": "zone-1", "scope": ["cp"], "validFor": "720h"}`),
	"user":         json.RawMessage(`{"name": "john", "groups": ["mesh-system:admin"], "validFor": "24h"}`),
}
