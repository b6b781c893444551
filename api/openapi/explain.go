package openapi

import "github.com/meridian-mesh/meridian/api/resource"

// Explain describes GET of why the traffic of a proxy to a service does what it does.
func Explain(row *resource.Descriptor, body *Schema) Operation {
	return Operation{
		Tags:    []string{tagOf(row)},
		ID:      "explain" + string(row.Name),
		Summary: "Explain its traffic to a service",
		Description: "What becomes of the traffic of this proxy to a service, and which policies, endpoints and certificates decide it: " +
			"the verdict first, then what a request meets on its way. As text for people with Accept: text/plain or format=text.",
		Parameters: append(item(row), Param("service"), Param("format")),
		Responses: answers(map[string]Response{
			"200": {
				Description: "The explanation.",
				Content: map[string]Media{
					mediaJSON: {Schema: body},
					mediaText: {Schema: &Schema{Type: Types{"string"}}},
				},
			},
		}, answerInvalid, answerNotFound, answerUnaccepted, answerNotConnected, answerBusy, answerBadGateway, answerTimeout),
	}
}
