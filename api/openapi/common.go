package openapi

// Media types.
const (
	mediaJSON = "application/json"
	mediaYAML = "application/yaml"
	mediaText = "text/plain"
	mediaSSE  = "text/event-stream"
)

// Param refers to a parameter of the catalogue.
func Param(name string) Parameter { return Parameter{Ref: "#/components/parameters/" + name} }

// parameters is the catalogue of parameters. A document holds those that its operations refer to.
var parameters = map[string]Parameter{
	"mesh": {
		Name: "mesh", In: "path", Required: true, Description: "Name of the mesh.",
		Schema: &Schema{Type: Types{"string"}}, Example: "default",
	},
	"name": {
		Name: "name", In: "path", Required: true,
		Description: "Name of the resource. On the global, a resource NAME of zone ZONE is ZONE.NAME.",
		Schema:      &Schema{Type: Types{"string"}},
	},
	"size": {
		Name: "size", In: "query", Description: "Most items on a page; 0 is all of them.",
		Schema: &Schema{Type: Types{"integer"}, Minimum: new(int64(0)), Maximum: new(int64(1000)), Default: 100},
	},
	"offset": {
		Name: "offset", In: "query", Description: "Index of the first item; the link next of a page has it.",
		Schema: &Schema{Type: Types{"integer"}, Minimum: new(int64(0)), Default: 0},
	},
	"nameContains": {
		Name: "name", In: "query", Description: "Only items whose name contains this, in the case of letters as written.",
		Schema: &Schema{Type: Types{"string"}},
	},
	"watch": {
		Name: "watch", In: "query", Description: "Answer with what is there and then with what happens, as server-sent events. Paging " +
			"and conditions are not looked at then.",
		Schema: flag(),
	},
	"lastEventIDHeader": {
		Name: "Last-Event-ID", In: "header", Description: "Id of the event after which a watch goes on; browsers set it by themselves.",
		Schema: &Schema{Type: Types{"string"}},
	},
	"lastEventID": {
		Name: "lastEventId", In: "query", Description: "The same as Last-Event-ID, for clients that cannot set headers.",
		Schema: &Schema{Type: Types{"string"}},
	},
	"tag": {
		Name: "tag", In: "query", Explode: new(true), AllowReserved: true,
		Description: "Only proxies of which one inbound, or the gateway, has this tag, as KEY:VALUE; the value * is any. " +
			"May be repeated: all of them then.",
		Schema: &Schema{Type: Types{"array"}, Items: &Schema{Type: Types{"string"}}}, Example: []string{"kuma.io/service:web"},
	},
	"gateway": {
		Name: "gateway", In: "query", Description: "true: only gateways; false: only others. In any case of letters.",
		Schema: &Schema{Type: Types{"string"}, Pattern: "^(?i:true|false)?$"},
	},
	"ifNoneMatch": {
		Name: "If-None-Match", In: "header",
		Description: "Entity tags of the states that the client has: when it is still one of them, the answer is 304.",
		Schema:      &Schema{Type: Types{"string"}},
	},
	"ifMatch": {
		Name: "If-Match", In: "header",
		Description: "Entity tags of the states in which to do it, or * for any; in others, and when there is nothing, the answer is 412.",
		Schema:      &Schema{Type: Types{"string"}},
	},
	"ifNoneMatchWrite": {
		Name: "If-None-Match", In: "header",
		Description: "Entity tags of the states in which not to do it; * is all of them: the resource must not exist. 412 otherwise.",
		Schema:      &Schema{Type: Types{"string"}},
	},
	"dryRun": {
		Name: "dryRun", In: "query", Description: "Do everything but store it. The answer is as it would be, and its body shows " +
			"what would be there.",
		Schema: flag(),
	},
	"wait": {
		Name: "wait", In: "query", Description: "For how long to wait until every connected zone has answered for the write; " +
			"apiServer.maxWait is the most. The body then says how the zones stand. Not with dryRun.",
		Schema: &Schema{Type: Types{"string"}}, Example: "5s",
	},
	"exportType": {
		Name: "type", In: "query", Description: "Only resources of this type.", Schema: &Schema{Type: Types{"string"}}, Example: "TrafficRoute",
	},
	"exportMesh": {
		Name: "mesh", In: "query", Description: "Only this mesh and what is in it.", Schema: &Schema{Type: Types{"string"}}, Example: "default",
	},
	"source": {
		Name: "source", In: "query", Description: "proxy: what the proxy itself says it has. controlplane: what the control plane of its " +
			"zone last sent to it, and what it acknowledged or rejected of that; for this the proxy need not be reachable.",
		Schema: &Schema{Type: Types{"string"}, Enum: []string{"proxy", "controlplane"}, Default: "proxy"},
	},
	"includeEndpoints": {
		Name: "include_eds", In: "query", Description: "Show endpoints too. includeEds means the same.", Schema: flag(),
	},
	"usedOnly": {
		Name: "used_only", In: "query", Description: "Leave out statistics that never changed. usedOnly means the same.", Schema: flag(),
	},
	"adminFormat": {
		Name: "format", In: "query", Description: "What to answer with, whatever Accept says.",
		Schema: &Schema{Type: Types{"string"}, Enum: []string{"text", "json"}, Default: "text"},
	},
	"service": {
		Name: "service", In: "query", Required: true, Description: "The service that the traffic goes to.",
		Schema: &Schema{Type: Types{"string"}}, Example: "backend",
	},
	"format": {
		Name: "format", In: "query", Description: "What to answer with, whatever Accept says.",
		Schema: &Schema{Type: Types{"string"}, Enum: []string{"json", "text"}},
	},
	"strict": {
		Name: "strict", In: "query", Description: "Refuse fields that the schema does not have. Without it they are ignored, " +
			"and named in Warning headers.",
		Schema: flag(),
	},
}

// flag is the schema of a query parameter that is true or false.
func flag() *Schema { return &Schema{Type: Types{"boolean"}, Default: false} }

// headers is the catalogue of headers of answers.
var headers = map[string]Header{
	"Allow": {
		Description: "The methods that the path has.", Required: true,
		Schema: &Schema{Type: Types{"string"}, Examples: []any{"GET, HEAD"}},
	},
	"ETag": {
		Description: "Names this state. There is none where live sessions know more than what is stored.",
		Schema:      &Schema{Type: Types{"string"}, Pattern: `^(W/)?"[^"]+"$`},
	},
	"Authenticate": {
		Description: "What proves who is asking.", Required: true, Schema: &Schema{Type: Types{"string"}, Const: "Bearer"},
	},
	"NoStore": {
		Description: "It is not for caches.", Schema: &Schema{Type: Types{"string"}, Const: "no-store"},
	},
	"DryRun": {
		Description: "Nothing was stored.", Schema: &Schema{Type: Types{"string"}, Const: "true"},
	},
	"Revision": {
		Description: "Revision of the state that is shown.", Required: true, Schema: &Schema{Type: Types{"integer"}},
	},
	"RetryAfter": {
		Description: "When to try again, in seconds.", Required: true, Schema: &Schema{Type: Types{"integer"}},
	},
	"RequestID": {
		Description: "The id under which the control plane's log says what happened.", Required: true,
		Schema: &Schema{Type: Types{"string"}},
	},
	"Warning": {
		Description: "One for each field of the body that the schema does not have, by its path.",
		Schema:      &Schema{Type: Types{"string"}, Pattern: `^299 - "`, Examples: []any{`299 - "unknown field conf.typo"`}},
	},
}

func header(name string) Header { return Header{Ref: "#/components/headers/" + name} }

// Names of the answers that operations share.
const (
	answerInvalid = "Invalid"
	// answerUnauthenticated is for who shows something that proves nothing.
	answerUnauthenticated = "Unauthenticated"
	answerForbidden       = "Forbidden"
	answerNotFound        = "NotFound"
	answerReadOnly        = "ReadOnly"
	answerUnaccepted      = "NotAcceptable"
	answerGone            = "Gone"
	answerConflict        = "Conflict"
	answerNotModified     = "NotModified"
	answerFailed          = "PreconditionFailed"
	answerTooLarge        = "TooLarge"
	answerMediaType       = "UnsupportedMediaType"
	answerInternal        = "InternalError"
	answerUnavailable     = "Unavailable"
	// answerNotConnected is another 503.
	answerNotConnected = "NotConnected"
	answerBusy         = "Busy"
	answerBadGateway   = "BadGateway"
	answerTimeout      = "GatewayTimeout"
)

// responses is the catalogue of answers, by name and status.
var responses = map[string]struct {
	status   string
	response Response
}{
	answerNotModified: {"304", Response{
		Description: "It is what the client has.", Headers: map[string]Header{"ETag": header("ETag")},
	}},
	answerInvalid: {"400", problem("The request is wrong. All that is wrong with a body is in causes.",
		map[string]Header{"Warning": header("Warning")})},
	answerUnauthenticated: {"401", problem("The token or certificate of the request is not valid.",
		map[string]Header{"WWW-Authenticate": header("Authenticate")})},
	answerForbidden: {"403", problem("Who asks may not do this.", nil)},
	answerNotFound:  {"404", problem("There is no such thing.", nil)},
	answerReadOnly: {"405", Response{
		Description: "It cannot be written on this control plane, or belongs to another one. The text says where it can.",
		Headers:     map[string]Header{"Allow": header("Allow")},
		Content:     text(),
	}},
	answerUnaccepted: {"406", Response{Description: "Accept excludes what this answers with.", Content: text()}},
	answerConflict:   {"409", problem("Another request changed it at the same time.", nil)},
	answerGone:       {"410", problem("What happened since the event that the client names is no longer known: watch again without an id.", nil)},
	answerFailed:     {"412", problem("The state is not one that If-Match or If-None-Match asks for.", nil)},
	answerTooLarge:   {"413", problem("The body is larger than this control plane accepts.", nil)},
	answerMediaType:  {"415", Response{Description: "Content-Type is none of those accepted.", Content: text()}},
	answerInternal: {"500", problem("Something failed here; the log has it under the request's id.",
		map[string]Header{"X-Request-Id": header("RequestID")})},
	answerUnavailable: {"503", problem("This control plane has more to do than it can, or its store fails.",
		map[string]Header{"X-Request-Id": header("RequestID"), "Retry-After": header("RetryAfter")})},
	answerNotConnected: {"503", problem("The proxy, or its zone, is not connected, or does not take connections.",
		map[string]Header{"X-Request-Id": header("RequestID"), "Retry-After": header("RetryAfter")})},
	answerBusy: {"429", problem("As many proxies are being asked as may be at a time.",
		map[string]Header{"Retry-After": header("RetryAfter")})},
	answerBadGateway: {"502", problem("The proxy answered with an error, or with more than is passed on.",
		map[string]Header{"X-Request-Id": header("RequestID")})},
	answerTimeout: {"504", problem("The proxy, or its zone, did not answer in time.",
		map[string]Header{"X-Request-Id": header("RequestID")})},
}

func problem(description string, headers map[string]Header) Response {
	return Response{
		Description: description,
		Headers:     headers,
		Content:     map[string]Media{mediaJSON: {Schema: refTo(schemaProblem)}},
	}
}

func text() map[string]Media {
	return map[string]Media{mediaText: {Schema: &Schema{Type: Types{"string"}}}}
}

// problemSchema is the body of an error.
func problemSchema() *Schema {
	return &Schema{
		Description: "Why a request was not carried out.",
		Type:        Types{"object"},
		Required:    []string{"title", "details"},
		Properties: Properties{
			{"title", &Schema{Type: Types{"string"}, Description: "What was being done.", Examples: []any{"Could not create a resource"}}},
			{"details", &Schema{Type: Types{"string"}, Description: "What went wrong.", Examples: []any{"Resource is not valid"}}},
			{"causes", &Schema{
				Type: Types{"array"}, Description: "Each single thing that is wrong with the request; left out when there is none to name.",
				Items: &Schema{
					Type: Types{"object"}, Required: []string{"field", "message"},
					Properties: Properties{
						{"field", &Schema{
							Type: Types{"string"}, Examples: []any{"networking.inbound[0].port"},
							Description: "Path of the field, or name of the query parameter; empty when the body as a whole is meant.",
						}},
						{"message", &Schema{Type: Types{"string"}}},
					},
				},
			}},
		},
	}
}
