package openapi

import (
	_ "embed" // the examples
	"encoding/json"
	"fmt"

	"github.com/meridian-mesh/meridian/api/resource"
)

//go:embed inspect.json
var inspectExampleFile []byte

// inspectExamples has an answer for each view.
var inspectExamples = func() (all struct{ Policies, Rules, Reached, Configured json.RawMessage }) {
	if err := json.Unmarshal(inspectExampleFile, &all); err != nil {
		panic(fmt.Sprintf("openapi: inspect.json: %v", err))
	}
	return all
}()

// inspect describes GET of something about one resource: what is the end of the operation's id.
func inspect(row *resource.Descriptor, what, summary, description string, body *Schema, example json.RawMessage) Operation {
	op := Operation{
		Tags:        []string{tagOf(row)},
		ID:          "inspect" + string(row.Name) + what,
		Summary:     summary,
		Description: description,
		Parameters:  item(row),
		Responses:   answers(Answer("All of them: there are no pages.", body), answerNotFound),
	}
	op.Responses["200"].Content[mediaJSON] = Media{Schema: body, Example: example}
	return op
}

// InspectPolicies describes GET of the policies that reach a proxy.
func InspectPolicies(body *Schema) Operation {
	row, _ := resource.Lookup(resource.Dataplane)
	return inspect(row, "Policies", "List the policies that reach it",
		"The policies that its configuration is made from, by the part of the proxy that they are for. On the global the outbounds of a "+
			"transparent proxy are named by host name and port: the addresses are its zone's.",
		body, inspectExamples.Policies)
}

// InspectRules describes GET of the rules that targetRef policies make for a proxy.
func InspectRules(body *Schema) Operation {
	row, _ := resource.Lookup(resource.Dataplane)
	return inspect(row, "Rules", "List the rules that targetRef policies make for it",
		"What all policies of a type say together, for each inbound by the tags of its clients and for each outbound. Of several rules of "+
			"one inbound and type the first one whose subset a client is in counts.",
		body, inspectExamples.Rules)
}

// InspectPolicy describes GET of the proxies that a policy reaches.
func InspectPolicy(row *resource.Descriptor, body *Schema) Operation {
	return inspect(row, "Proxies", "List the proxies that it reaches",
		"The inverse of the policies of a dataplane. A policy that does not exist reaches none, as long as its mesh exists.",
		body, inspectExamples.Reached)
}

// InspectGateway describes GET of the proxies that a gateway, or a route of one, configures.
func InspectGateway(row *resource.Descriptor, body *Schema) Operation {
	return inspect(row, "Proxies", "List the proxies that it configures",
		"Builtin gateways only, and only those that serve something by it: of several MeshGateways for a proxy one counts.",
		body, inspectExamples.Configured)
}
