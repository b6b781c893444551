package openapi

import (
	"cmp"
	"encoding/json"
	"maps"
	"net/http"
	"strings"
	"unicode"

	"github.com/meridian-mesh/meridian/api/resource"
)

// adminOnly is the security of operations that need administrator rights.
var adminOnly = []map[string][]string{{"bearer": {}}}

// List describes GET of a collection, that of a mesh or of all.
func (d *Document) List(row *resource.Descriptor, inMesh bool) Operation {
	return watchable(Operation{
		Tags:       []string{tagOf(row)},
		ID:         "list" + title(row.Path),
		Summary:    "List " + many(row),
		Parameters: []Parameter{Param("size"), Param("offset"), Param("nameContains")},
		Responses:  Answer("A page, sorted by mesh and name.", d.schemas.list(string(row.Name), d.schemas.resource(row))),
	}, row, inMesh)
}

// watchable completes a list that can be watched.
func watchable(op Operation, row *resource.Descriptor, inMesh bool) Operation {
	op.Description = "With watch=true, server-sent events instead of a page: what is there as added, then a bookmark, then added, " +
		"modified and deleted as it happens. data is the resource in one line; of deleted its type, mesh and name, and of " +
		"bookmark {\"revision\": N}. An event with an id is where a later watch can go on."
	op.Parameters = append(op.Parameters, Param("watch"), Param("lastEventIDHeader"), Param("lastEventID"))
	op.Responses = answers(op.Responses, answerInvalid, answerUnaccepted, answerGone, answerUnavailable)
	op = conditional(scoped(op, row, inMesh))
	ok := op.Responses["200"]
	ok.Content[mediaSSE] = Media{Schema: &Schema{Type: Types{"string"}}}
	ok.Headers["Cache-Control"] = header("NoStore")
	return op
}

// scoped completes an operation that exists for one mesh and for all of them.
func scoped(op Operation, row *resource.Descriptor, inMesh bool) Operation {
	switch {
	case inMesh:
		op.Parameters = append([]Parameter{Param("mesh")}, op.Parameters...)
		op.ID += "InMesh"
		op.Summary += " of a mesh"
		op.Description = strings.TrimSpace("A mesh that does not exist has none. " + op.Description)
	case row.Scope == resource.ScopeMesh:
		op.Summary += " of all meshes"
	}
	return restricted(op, row)
}

// restricted marks an operation on a type that is for administrators.
func restricted(op Operation, row *resource.Descriptor) Operation {
	if row.AdminOnly {
		op.Security = adminOnly
		maps.Copy(op.Responses, answers(nil, answerForbidden))
	}
	return op
}

// item are the path parameters of one resource.
func item(row *resource.Descriptor) []Parameter {
	if row.Scope == resource.ScopeMesh {
		return []Parameter{Param("mesh"), Param("name")}
	}
	return []Parameter{Param("name")}
}

// Get describes GET of one resource.
func (d *Document) Get(row *resource.Descriptor) Operation {
	op := Operation{
		Tags:       []string{tagOf(row)},
		ID:         "get" + string(row.Name),
		Summary:    "Read " + one(row),
		Parameters: item(row),
		Responses:  answers(Answer("The "+singular(row)+".", d.schemas.resource(row)), answerNotFound),
	}
	if row.Name == resource.ServiceInsight {
		op.Description = "A service that nothing is known of has empty statistics, as long as its mesh exists."
	}
	return conditional(restricted(op, row))
}

// Put describes PUT of one resource, which on some planes is always refused.
func (d *Document) Put(row *resource.Descriptor, writable bool) Operation {
	op := Operation{
		Tags:       []string{tagOf(row)},
		ID:         "put" + string(row.Name),
		Summary:    "Create or replace " + one(row),
		Parameters: item(row),
	}
	if !writable {
		return refused(op)
	}
	op.Description = "Replaces the whole resource: what the body leaves out is cleared. A body that says what is there " +
		"already changes nothing. The answer means that the write is durable."
	op.Parameters = append(op.Parameters, Param("strict"), Param("dryRun"), Param("ifMatch"), Param("ifNoneMatchWrite"))
	schema := d.schemas.resource(row)
	op.RequestBody = requestBody("", schema, examples[row.Name])
	headers := map[string]Header{"ETag": header("ETag"), "Warning": header("Warning"), "Meridian-Dry-Run": header("DryRun")}
	done := func(description string) Response {
		return Response{
			Description: description + " Of a dry run: as it would be, in the body; otherwise there is none.",
			Headers:     headers,
			Content:     map[string]Media{mediaJSON: {Schema: schema}},
		}
	}
	op.Responses = answers(d.awaited(&op, map[string]Response{
		"201": done("It was created."),
		"200": done("It was replaced, or is as it was."),
	}), answerInvalid, answerForbidden, answerReadOnly, answerUnaccepted, answerConflict, answerFailed, answerTooLarge, answerMediaType, answerUnavailable)
	return restricted(op, row)
}

// Delete describes DELETE of one resource, which on some planes is always refused.
func (d *Document) Delete(row *resource.Descriptor, writable bool) Operation {
	op := Operation{
		Tags:       []string{tagOf(row)},
		ID:         "delete" + string(row.Name),
		Summary:    "Delete " + one(row),
		Parameters: item(row),
	}
	if !writable {
		return refused(op)
	}
	switch row.Name {
	case resource.Mesh:
		op.Description = "With all that is in it. Refused while proxies are in it."
	case resource.ZoneType:
		op.Description = "With all that came from it. Refused while it is connected."
	case resource.Secret:
		op.Description = "Refused while the mesh uses it."
	default:
		if insight, ok := row.Insight(); ok {
			op.Description = "With its " + insight.Singular + "."
		}
	}
	op.Parameters = append(op.Parameters, Param("dryRun"), Param("ifMatch"), Param("ifNoneMatchWrite"))
	op.Responses = answers(d.awaited(&op, map[string]Response{"200": {
		Description: "It is gone. Of a dry run: all that would go with it, in the body; otherwise there is none.",
		Headers:     map[string]Header{"Meridian-Dry-Run": header("DryRun")},
		Content:     map[string]Media{mediaJSON: {Schema: d.schemas.once("Deletions", "deletions", deletions)}},
	}}), answerInvalid, answerForbidden, answerNotFound, answerReadOnly, answerUnaccepted, answerConflict, answerFailed, answerUnavailable)
	return restricted(op, row)
}

// awaited adds to a write that it may wait for the zones, which only a global can.
func (d *Document) awaited(op *Operation, done map[string]Response) map[string]Response {
	if d.plane != resource.Global {
		return done
	}
	op.Parameters = append(op.Parameters, Param("wait"))
	zones := d.schemas.once("Delivery", "delivery", delivery)
	all := make(map[string]Response, len(done)+1)
	for status, r := range done {
		r.Description += " After a wait: how the zones stand; all that are connected have it."
		r.Content = map[string]Media{mediaJSON: {Schema: &Schema{AnyOf: []*Schema{r.Content[mediaJSON].Schema, zones}}}}
		all[status] = r
	}
	all["202"] = Response{
		Description: "After a wait: it is done, but zones have not answered or refuse it, or none is connected.",
		Headers:     done["200"].Headers,
		Content:     map[string]Media{mediaJSON: {Schema: zones}},
	}
	return all
}

// delivery is the schema of how the zones stand to a write.
func delivery() *Schema {
	names := func(description string) *Schema {
		return &Schema{Description: description, Type: Types{"array"}, Items: &Schema{Type: Types{"string"}}}
	}
	reasons := func(description string) *Schema {
		return &Schema{
			Description: description, Type: Types{"array"},
			Items: &Schema{
				Type: Types{"object"}, Required: []string{"zone", "reason"},
				Properties: Properties{{"zone", &Schema{Type: Types{"string"}}}, {"reason", &Schema{Type: Types{"string"}}}},
			},
		}
	}
	return &Schema{
		Description: "How the zones stand to a write, by name.",
		Type:        Types{"object"},
		Required:    []string{"revision", "acknowledged", "rejected", "pending", "offline", "notApplicable"},
		Properties: Properties{
			{"revision", &Schema{Description: "Of the write; of what is there, when it changed nothing.", Type: Types{"integer"}}},
			{"acknowledged", names("Zones that have it, or what later writes made of it.")},
			{"rejected", reasons("Zones that have answered and left it out.")},
			{"pending", names("Zones that are connected and have not answered.")},
			{"offline", names("Zones that are not connected.")},
			{"notApplicable", names("Zones that get nothing of it.")},
			{"pendingReasons", reasons("Of those pending: zones that may have answered, because the instance of the control plane that they are connected to does not tell. Left out where there is none.")},
		},
	}
}

// deletions is the schema of what a deletion takes along.
func deletions() *Schema {
	text := &Schema{Type: Types{"string"}}
	return &Schema{
		Description: "All that a deletion takes along, what was named first.",
		Type:        Types{"object"},
		Required:    []string{"total", "items", "next"},
		Properties: Properties{
			{"total", &Schema{Type: Types{"integer"}}},
			{"items", &Schema{Type: Types{"array"}, Items: &Schema{
				Type: Types{"object"}, Required: []string{"type", "name"},
				Properties: Properties{{"type", text}, {"mesh", text}, {"name", text}},
			}}},
			{"next", &Schema{Type: Types{"null"}, Description: "It is all of them."}},
		},
	}
}

// requestBody is a required body in the formats that are understood. example may be nil.
func requestBody(description string, schema *Schema, example json.RawMessage) *RequestBody {
	inJSON := Media{Schema: schema}
	if example != nil {
		inJSON.Example = example
	}
	return &RequestBody{
		Description: description, Required: true,
		Content: map[string]Media{
			mediaJSON: inJSON, mediaYAML: {Schema: schema},
			"application/x-yaml": {Schema: schema}, "text/yaml": {Schema: schema},
		},
	}
}

// refused turns an operation into one that answers 405 only.
func refused(op Operation) Operation {
	op.Summary += " (not here)"
	op.Description = "Not possible on this control plane: the answer says where it is."
	op.Responses = answers(nil, answerForbidden, answerReadOnly)
	return op
}

// ListOverviews describes GET of a collection of resources joined with their insights.
func (d *Document) ListOverviews(row *resource.Descriptor, inMesh bool) Operation {
	schema := d.schemas.list(overviewName(row), d.schemas.overview(row))
	op := Operation{
		Tags:       []string{tagOf(row)},
		ID:         "list" + overviewName(row) + "s",
		Summary:    "List " + many(row) + ", and what is known of them,",
		Parameters: []Parameter{Param("size"), Param("offset"), Param("nameContains")},
		Responses:  Answer("A page, sorted by mesh and name.", schema),
	}
	if row.Name == resource.Dataplane {
		op.Parameters = append(op.Parameters, Param("tag"), Param("gateway"))
	}
	op = watchable(op, row, inMesh)
	op.Summary = strings.TrimSuffix(op.Summary, ",")
	return op
}

// GetOverview describes GET of one resource joined with its insight.
func (d *Document) GetOverview(row *resource.Descriptor) Operation {
	return conditional(restricted(Operation{
		Tags:       []string{tagOf(row)},
		ID:         "get" + overviewName(row),
		Summary:    "Read " + one(row) + ", and what is known of it",
		Parameters: item(row),
		Responses:  answers(Answer("Both.", d.schemas.overview(row)), answerNotFound),
	}, row))
}

// conditional adds to a read that the client may say what it has.
func conditional(op Operation) Operation {
	op.Parameters = append(op.Parameters, Param("ifNoneMatch"), Param("ifMatch"))
	ok := op.Responses["200"]
	ok.Headers = map[string]Header{"ETag": header("ETag")}
	op.Responses["200"] = ok
	op.Responses = answers(op.Responses, answerNotModified, answerFailed)
	return op
}

// Answer is a 200 answer with a JSON body.
func Answer(description string, schema *Schema) map[string]Response {
	return map[string]Response{"200": {Description: description, Content: map[string]Media{mediaJSON: {Schema: schema}}}}
}

// answers adds answers of the catalogue to others.
func answers(others map[string]Response, names ...string) map[string]Response {
	all := maps.Clone(others)
	if all == nil {
		all = make(map[string]Response, len(names))
	}
	for _, name := range names {
		all[responses[name].status] = Response{Ref: "#/components/responses/" + name}
	}
	return all
}

// IssueToken describes a request for a token of a kind. Both methods do the same.
func IssueToken(method, path, kind string, request *Schema) Operation {
	op := Operation{
		Tags:        []string{TagTokens},
		ID:          strings.ToLower(method) + title(path),
		Summary:     "Issue a " + kind + " token",
		Description: "Signed with the newest signing key of its kind that this control plane has.",
		Parameters:  []Parameter{Param("strict")},
		RequestBody: requestBody("", request, tokenExamples[kind]),
		Responses: answers(map[string]Response{"200": {
			Description: "The token.",
			Headers:     map[string]Header{"Warning": header("Warning"), "Cache-Control": header("NoStore")},
			Content:     text(),
		}}, answerInvalid, answerForbidden, answerNotFound, answerTooLarge, answerMediaType),
		Security: adminOnly,
	}
	if method == http.MethodPut {
		op.Description += " The same as POST."
	}
	return op
}

// Export describes GET of everything that can be written here.
func Export() Operation {
	return Operation{
		Tags:    []string{TagTransfer},
		ID:      "export",
		Summary: "Export resources",
		Description: "All that belongs to this control plane and can be written on it, secrets included, at one revision: a " +
			"stream of YAML documents that /import takes.",
		Parameters: []Parameter{Param("exportType"), Param("exportMesh")},
		Responses: answers(map[string]Response{"200": {
			Description: "The resources, a mesh before what is in it.",
			Headers:     map[string]Header{"Meridian-Revision": header("Revision")},
			Content:     map[string]Media{mediaYAML: {}},
		}}, answerInvalid, answerForbidden, answerUnaccepted),
		Security: adminOnly,
	}
}

// Import describes POST of what an export gave, or of other resources.
func Import(result *Schema) Operation {
	op := Operation{
		Tags:    []string{TagTransfer},
		ID:      "import",
		Summary: "Import resources",
		Description: "Stores all of them as one batch, or none. Each is judged in the state that all of them make together, and " +
			"keeps the times that it has. What is here and not in the body stays. A new mesh gets no default policies.",
		Parameters: []Parameter{Param("strict"), Param("dryRun")},
		RequestBody: requestBody("YAML: documents separated by --- lines. JSON: objects one after another, an array of them, or "+
			"a list as this API answers it.", nil, nil),
		Responses: answers(Answer("What was done, or would be done.", result), answerInvalid, answerForbidden, answerReadOnly,
			answerUnaccepted, answerConflict, answerTooLarge, answerMediaType, answerUnavailable),
		Security: adminOnly,
	}
	done := op.Responses["200"]
	done.Headers = map[string]Header{"Warning": header("Warning"), "Meridian-Dry-Run": header("DryRun")}
	op.Responses["200"] = done
	return op
}

// Description describes GET of the description itself.
func Description(id, form, mediaType string) Operation {
	return conditional(Operation{
		Tags:      []string{TagDocumentation},
		ID:        id,
		Summary:   "Read this description, " + form,
		Responses: map[string]Response{"200": {Description: "This.", Content: map[string]Media{mediaType: {}}}},
	})
}

// Unacceptable returns the operation with the answer to an Accept header that excludes JSON.
func (op Operation) Unacceptable() Operation {
	op.Responses = answers(op.Responses, answerUnaccepted)
	return op
}

// Read describes GET of something of the control plane that is no resource.
func Read(id, summary, description string, body *Schema) Operation {
	return Operation{
		Tags: []string{TagControlPlane}, ID: id, Summary: summary, Description: description,
		Responses: Answer("It.", body),
	}
}

// one names a single resource of a type in a sentence, many several.
func one(row *resource.Descriptor) string {
	name := singular(row)
	if strings.ContainsAny(name[:1], "AEIO") {
		return "an " + name
	}
	return "a " + name
}

func singular(row *resource.Descriptor) string { return cmp.Or(row.Singular, spaced(string(row.Name))) }

func many(row *resource.Descriptor) string { return cmp.Or(row.Plural, spaced(string(row.Name))+"s") }

// spaced turns "GlobalSecret", which has no display name, into "Global Secret".
func spaced(name string) string {
	var b strings.Builder
	for i, r := range name {
		if i > 0 && unicode.IsUpper(r) {
			b.WriteByte(' ')
		}
		b.WriteRune(r)
	}
	return b.String()
}

// title turns a path such as "traffic-routes" into "TrafficRoutes".
func title(path string) string {
	var b strings.Builder
	for _, word := range strings.FieldsFunc(path, func(r rune) bool { return r == '-' || r == '+' || r == '/' }) {
		b.WriteString(strings.ToUpper(word[:1]) + word[1:])
	}
	return b.String()
}
