package openapi

import "github.com/meridian-mesh/meridian/api/resource"

// AskProxy describes GET of something that a proxy itself shows. dump says that it is its configuration, which is JSON; the rest is
// text unless the client asks otherwise.
func AskProxy(row *resource.Descriptor, view string, dump bool) Operation {
	op := Operation{
		Tags:       []string{tagOf(row)},
		ID:         "ask" + string(row.Name) + title(view),
		Summary:    "Ask the proxy for its " + view,
		Parameters: item(row),
		Security:   adminOnly,
	}
	ok := Response{Description: "What the proxy says, as it is.", Content: map[string]Media{
		mediaText: {Schema: &Schema{Type: Types{"string"}}}, mediaJSON: {Schema: &Schema{Type: Types{"object"}}},
	}}
	if dump {
		op.Description = "Envoy's config_dump, with whatever is secret in it masked. For administrators."
		op.Parameters = append(op.Parameters, Param("source"), Param("includeEndpoints"))
		ok = Response{Description: "The configuration.", Content: map[string]Media{mediaJSON: {Schema: &Schema{Type: Types{"object"}}}}}
	} else {
		op.Description = "What Envoy's administration answers at /" + view + ". For administrators."
		if view == "stats" {
			op.Parameters = append(op.Parameters, Param("usedOnly"))
		}
		op.Parameters = append(op.Parameters, Param("adminFormat"))
	}
	op.Responses = answers(map[string]Response{"200": ok}, answerInvalid, answerForbidden, answerNotFound, answerBusy, answerBadGateway,
		answerNotConnected, answerTimeout)
	return op
}
