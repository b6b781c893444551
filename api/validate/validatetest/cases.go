package validatetest

import "slices"

// Elsewhere are the rows that are no matter of specifications, with the tests of package api/server that cover them.
var Elsewhere = map[string]string{
	"(every type) name":                "TestAPutIsRefusedWithAllThatIsWrong",
	"(every type) name #2":             "TestAPutIsRefusedWithAllThatIsWrong",
	"(every type) name #3":             "TestAPutIsRefusedWithAllThatIsWrong",
	"(every type) type":                "TestAPutIsRefusedWithAllThatIsWrong",
	"(every mesh-scoped type) mesh":    "TestAPutIsRefusedWithAllThatIsWrong",
	"(every mesh-scoped type) mesh #2": "TestAPutIsRefusedWithAllThatIsWrong",
	"(every mesh-scoped type except Secret, ExternalService and RateLimit, which can be written into a mesh that does not exist) mesh": "TestAPutIsRefusedWithAllThatIsWrong",
	"Mesh mesh":   "TestADeletionIsRefusedWhileTheResourceIsInUse",
	"Zone zone":   "TestADeletionIsRefusedWhileTheResourceIsInUse",
	"Secret name": "TestADeletionIsRefusedWhileTheResourceIsInUse",
}

// Unchecked are the rows that say that nothing is checked: types without a route, or that only planes write.
var Unchecked = []string{
	"Config -", "DataplaneInsight -", "ZoneIngressInsight -", "ZoneEgressInsight -", "ZoneInsight -", "MeshInsight -", "ServiceInsight -",
}

// Texts that many cases expect.
const (
	empty      = "cannot be empty"
	defined    = "has to be defined"
	positive   = "must have a positive value"
	percent    = "has to be in [0.0 - 100.0] range"
	badPort    = "port must be in the range [1, 65535]"
	noElement  = "must have at least one element"
	noTag      = "must have at least one tag"
	noService  = `mandatory tag "kuma.io/service" is missing`
	onlyTag    = `must consist of exactly one tag "kuma.io/service"`
	negative   = "must not be negative"
	noSource   = "data source cannot be empty"
	noBackend  = "has to be set to one of the backends in the mesh"
	badAddress = "address has to be valid IP address or domain name"
	badIP      = "address has to be valid IP address"
	anyAddress = "must not be 0.0.0.0 or ::"
	tagName    = "tag name must consist of alphanumeric characters, dots, dashes, slashes, colons and underscores"
	tagValue   = "tag value must consist of alphanumeric characters, dots, dashes, colons and underscores"
	matchValue = `tag value must consist of alphanumeric characters, dots, dashes, slashes, colons and underscores or be "*"`
)

// Cases returns all cases: at least one for each row.
func Cases() []Case {
	return slices.Concat(
		selectorCases(), resilienceCases(), trafficCases(), proxyCases(), externalServiceCases(), meshCases(), authorityCases(),
		gatewayCases(), gatewayRouteCases(), proxyTemplateCases(), virtualOutboundCases(), targetRefCases(), otherCases(),
	)
}

func selectorCases() []Case {
	const anyType = "(selector rule set) "
	rule := func(row, changes string, want ...string) Case {
		return refuse("TrafficPermission "+row, changes, want...).in(anyType + row)
	}
	cases := []Case{
		rule("<list>", "sources = []", "sources", noElement),
		rule("<list>[i].match", "sources[0].match = {}", "sources[0].match", noTag),
		refuse("Timeout", `sources[0].match = {version: "1"}`, "sources[0].match", noService).in(anyType + "<list>[i].match #2"),
		rule("<list>[i].match #3", `sources[0].match[""] = x`, "sources[0].match", "tag name must be non-empty"),
		rule(`<list>[i].match["key"]`, `sources[0].match["a b"] = x`, `sources[0].match["a b"]`, tagName),
		rule(`<list>[i].match["key"] #2`, `sources[0].match.version = ""`, `sources[0].match["version"]`, "tag value must be non-empty"),
		rule(`<list>[i].match["key"] #3`, `sources[0].match.version = "a*"`, `sources[0].match["version"]`, matchValue),
		refuse("MeshGateway", "selectors[1] = {match: {kuma.io/service: b}}\nconf.listeners[0].crossMesh = true",
			"selectors[1]", "there can be at most one selector").in(anyType + "<list>[i]"),
		refuse("Timeout", "destinations[0].match = {version: v1}", "destinations[0].match", onlyTag,
			`destinations[0].match["version"]`, `tag "version" is not allowed`).in("(service-only destination rule set) destinations[i].match"),
		refuse("Timeout", "destinations[0].match.version = v1", "destinations[0].match", onlyTag,
			`destinations[0].match["version"]`, `tag "version" is not allowed`).in(`(service-only destination rule set) destinations[i].match["key"]`),
	}
	const tags = `(tag rule set, dataplane/external service/ingress tags) tags["key"]`
	cases = append(cases,
		refuse("ExternalService", "tags.version = a/b", `tags["version"]`, tagValue).in(tags),
		refuse("ExternalService", `tags.version = "*"`, `tags["version"]`, tagValue).in(tags),
		refuse("ExternalService", `tags.version = ""`, `tags["version"]`, "tag value must be non-empty").in(tags+" #2"),
		refuse("Dataplane", "networking.inbound[0].tags.version = a/b", `networking.inbound[0].tags["version"]`, tagValue).in(tags),
		refuse("ZoneIngress", "availableServices = [{tags: {kuma.io/service: a, version: a/b}}]", `availableService[0].tags["version"]`, tagValue).in(tags),
	)
	for _, typ := range []string{"CircuitBreaker", "HealthCheck", "Retry", "Timeout", "TrafficLog", "TrafficRoute"} {
		cases = append(cases,
			refuse(typ+" sources", "sources -", "sources", noElement),
			refuse(typ+" sources", "sources[0].match = {}", "sources[0].match", noTag, "sources[0].match", noService),
			refuse(typ+" destinations", "destinations -", "destinations", noElement),
			refuse(typ+" destinations", "destinations[0].match = {}", "destinations[0].match", onlyTag),
		)
	}
	for _, typ := range []string{"TrafficPermission", "RateLimit", "FaultInjection"} {
		cases = append(cases,
			refuse(typ+" sources", "sources -", "sources", noElement),
			refuse(typ+" sources", "sources[0].match = {}", "sources[0].match", noTag),
			refuse(typ+" destinations", "destinations -", "destinations", noElement),
		)
	}
	return append(cases,
		refuse("TrafficPermission destinations", "destinations[0].match = {}", "destinations[0].match", noTag),
		refuse("RateLimit destinations", "destinations[0].match = {}", "destinations[0].match", noTag),
		refuse("FaultInjection destinations", "destinations[0].match = {}", "destinations[0].match", noTag,
			"destinations[0].match", "protocol must be specified"),
		refuse("ProxyTemplate selectors", "selectors = [{match: {a: b}}]", "selectors[0].match", noService),
		refuse("ProxyTemplate selectors", "selectors = [{}]", "selectors[0].match", noTag, "selectors[0].match", noService),
		accept("ProxyTemplate selectors", "selectors -"),
		refuse("TrafficTrace selectors", "selectors -", "selectors", noElement),
		refuse("TrafficTrace selectors", "selectors = [{}]", "selectors[0].match", noTag),
		refuse("VirtualOutbound selectors", "selectors -", "selectors", noElement),
		refuse("VirtualOutbound selectors", "selectors = [{}]", "selectors[0].match", noTag),
		refuse("MeshGateway selectors", "selectors -", "selectors", noElement),
		refuse("MeshGateway selectors", "selectors = [{match: {a: b}}]", "selectors[0].match", noService),
		refuse("MeshGatewayRoute selectors", "selectors -", "selectors", noElement),
		refuse("MeshGatewayRoute selectors", "selectors = [{match: {a: b}}]", "selectors[0].match", noService),
		accept("Retry destinations", "destinations[0].match.protocol = http").because(4),
		accept("Retry destinations", `destinations[0].match["kuma.io/protocol"] = http`).because(4),
		accept("FaultInjection destinations", "destinations[0].match = {kuma.io/service: a, protocol: grpc}").because(4),
	)
}

func resilienceCases() []Case {
	const (
		atZero  = "has to be greater than 0"
		above   = "has to be greater than 0 when defined"
		section = "at least one timeout in section has to be defined"
	)
	return []Case{
		refuse("CircuitBreaker conf", "conf -", "conf", "must have at least one of the detector or threshold configured"),
		refuse("CircuitBreaker conf", "conf = {maxEjectionPercent: 101, thresholds: {}}", "conf", "must have at least one of the detector or threshold configured"),
		refuse("CircuitBreaker conf.detectors", "conf.detectors = {}", "conf.detectors", "can't be empty"),
		refuse("CircuitBreaker conf.thresholds", "conf = {thresholds: {}, detectors: {totalErrors: {}}}", "conf.thresholds", "can't be empty"),
		refuse("CircuitBreaker conf.maxEjectionPercent", "conf.maxEjectionPercent = 101", "conf.maxEjectionPercent", percent),
		refuse("CircuitBreaker conf.detectors.failure.threshold", "conf.detectors = {failure: {threshold: 101}}", "conf.detectors.failure.threshold", percent),
		refuse("CircuitBreaker conf.interval", "conf.interval = -1s", "conf.interval", negative).because(14),
		refuse("CircuitBreaker conf.baseEjectionTime", "conf.baseEjectionTime = -1s", "conf.baseEjectionTime", negative).because(14),

		refuse(`FaultInjection destinations[i].match`, `destinations[0].match["kuma.io/protocol"] -`, "destinations[0].match", "protocol must be specified"),
		refuse(`FaultInjection destinations[i].match["kuma.io/protocol"]`, `destinations[0].match["kuma.io/protocol"] = tcp`,
			`destinations[0].match["kuma.io/protocol"]`, "must be one of the [http, http2, grpc]"),
		refuse("FaultInjection conf", "conf -", "conf", "must have at least one of the faults configured"),
		refuse("FaultInjection conf", "conf = {}", "conf", "must have at least one of the faults configured"),
		refuse("FaultInjection conf.delay.percentage", "conf.delay.percentage -", "conf.delay.percentage", empty),
		refuse("FaultInjection conf.delay.percentage #2", "conf.delay.percentage = -0.1", "conf.delay.percentage", percent),
		refuse("FaultInjection conf.abort.percentage", "conf.abort = {httpStatus: 500}", "conf.abort.percentage", empty),
		refuse("FaultInjection conf.abort.percentage #2", "conf.abort = {httpStatus: 500, percentage: 100.5}", "conf.abort.percentage", percent),
		refuse("FaultInjection conf.responseBandwidth.percentage", "conf.responseBandwidth = {limit: 1 mbps}", "conf.responseBandwidth.percentage", empty),
		refuse("FaultInjection conf.responseBandwidth.percentage #2", "conf.responseBandwidth = {limit: 1 mbps, percentage: 101}", "conf.responseBandwidth.percentage", percent),
		refuse("FaultInjection conf.delay.value", "conf.delay.value -", "conf.delay.value", empty),
		refuse("FaultInjection conf.delay.value", "conf.delay.value = -5s", "conf.delay.value", negative).because(14),
		refuse("FaultInjection conf.abort.httpStatus", "conf.abort = {percentage: 1}", "conf.abort.httpStatus", empty),
		refuse("FaultInjection conf.abort.httpStatus #2", "conf.abort = {percentage: 1, httpStatus: 499}", "conf.abort.httpStatus", "http status code is incorrect"),
		refuse("FaultInjection conf.responseBandwidth.limit", "conf.responseBandwidth = {percentage: 1}", "conf.responseBandwidth.limit", empty),
		refuse("FaultInjection conf.responseBandwidth.limit #2", "conf.responseBandwidth = {percentage: 1, limit: 50 mb}", "conf.responseBandwidth.limit", "has to be in kbps/mbps/gbps units"),

		refuse("HealthCheck conf", "conf -", "conf", defined),
		refuse("HealthCheck conf.interval", "conf.interval -", "conf.interval", positive),
		refuse("HealthCheck conf.interval", "conf.interval = -1s", "conf.interval", positive),
		refuse("HealthCheck conf.timeout", "conf.timeout = 0s", "conf.timeout", positive),
		refuse("HealthCheck conf.unhealthyThreshold", "conf.unhealthyThreshold = 0", "conf.unhealthyThreshold", positive),
		refuse("HealthCheck conf.healthyThreshold", "conf.healthyThreshold -", "conf.healthyThreshold", positive),
		refuse("HealthCheck conf.initialJitter", "conf.initialJitter = 0s", "conf.initialJitter", positive),
		refuse("HealthCheck conf.intervalJitter", "conf.intervalJitter = -2s", "conf.intervalJitter", positive),
		refuse("HealthCheck conf.noTrafficInterval", "conf.noTrafficInterval = 0s", "conf.noTrafficInterval", positive),
		refuse("HealthCheck conf.healthyPanicThreshold", "conf.healthyPanicThreshold = 100.1", "conf.healthyPanicThreshold", "must be in range [0.0 - 100.0]"),
		refuse("HealthCheck conf.http.path", "conf.http = {}", "conf.http.path", "has to be defined and cannot be empty"),
		refuse("HealthCheck conf.http.expectedStatuses[i]", "conf.http = {path: /, expectedStatuses: [200, 99, 600]}",
			"conf.http.expectedStatuses[1]", "must be in range [100, 600)", "conf.http.expectedStatuses[2]", "must be in range [100, 600)"),
		refuse("HealthCheck conf.http.requestHeadersToAdd[i].header", "conf.http = {path: /, requestHeadersToAdd: [{}]}", "conf.http.requestHeadersToAdd[0].header", defined),
		refuse("HealthCheck conf.http.requestHeadersToAdd[i].header.key", "conf.http = {path: /, requestHeadersToAdd: [{header: {value: a}}]}", "conf.http.requestHeadersToAdd[0].header.key", empty),
		accept("HealthCheck conf #2", "conf.http = {path: /health}").because(3),

		refuse("RateLimit conf", "conf -", "conf", "must have conf"),
		refuse("RateLimit conf.http.requests", "conf.http.requests = 0", "conf.http.requests", "requests must be set"),
		refuse("RateLimit conf.http.interval", "conf.http.interval -", "conf.http.interval", "interval must be set"),
		refuse("RateLimit conf.http.interval", "conf.http.interval = 0s", "conf.http.interval", positive).because(14),
		refuse(`RateLimit conf.http.onRateLimit.header["i"]`, "conf.http.onRateLimit = {headers: [{key: a, value: b}, {}]}",
			`conf.http.onRateLimit.header["1"]`, "key must be set", `conf.http.onRateLimit.header["1"]`, "value must be set"),
		refuse("RateLimit ratelimit", `destinations[0].match = {kuma.io/service: httpbin, version: "1"}`,
			"ratelimit", "RateLimit applied to external service only supports kuma.io/service as destination tag; it would match ExternalService 'x'").
			given(Sample("ExternalService", `tags.version = "1"`)),
		accept("RateLimit ratelimit", "destinations[0].match = {kuma.io/service: httpbin}").given(Sample("ExternalService", "")),
		accept("RateLimit ratelimit", `destinations[0].match = {kuma.io/service: httpbin, version: "1"}`).given(Sample("ExternalService", "tags.version = \"2\"")),

		refuse("Retry conf", "conf -", "conf", defined),
		refuse("Retry conf #2", "conf = {}", "conf", "missing protocol [grpc|http|tcp] configuration"),
		refuse("Retry conf.http / conf.grpc", "conf = {http: {}}", "conf.http", "field cannot be empty"),
		refuse("Retry conf.http / conf.grpc", "conf = {grpc: {}}", "conf.grpc", "field cannot be empty"),
		refuse("Retry conf.http.numRetries / conf.grpc.numRetries", "conf.http.numRetries = 0", "conf.http.numRetries", above),
		refuse("Retry conf.http.numRetries / conf.grpc.numRetries", "conf = {grpc: {numRetries: 0}}", "conf.grpc.numRetries", above),
		refuse("Retry conf.http.perTryTimeout / conf.grpc.perTryTimeout", "conf.http.perTryTimeout = 0s", "conf.http.perTryTimeout", above),
		refuse("Retry conf.http.perTryTimeout / conf.grpc.perTryTimeout", "conf.grpc.perTryTimeout = -1s", "conf.grpc.perTryTimeout", above),
		refuse("Retry conf.<http|grpc>.backOff.baseInterval", "conf.http.backOff = {maxInterval: 0s}", "conf.http.backOff.baseInterval", defined),
		refuse("Retry conf.<http|grpc>.backOff.baseInterval", "conf.grpc = {backOff: {baseInterval: 0s}}", "conf.grpc.backOff.baseInterval", atZero),
		refuse("Retry conf.<http|grpc>.backOff.maxInterval", "conf.http.backOff = {baseInterval: 1s, maxInterval: 0s}", "conf.http.backOff.maxInterval", above),
		refuse("Retry conf.http.retriableMethods[i]", "conf.http.retriableMethods = [GET, NONE]", "conf.http.retriableMethods[1]", "field cannot be empty"),
		refuse("Retry conf.http.retryOn[i]", "conf.http.retryOn = [retriable_status_codes]", "conf.http.retryOn[0]", "retriableStatusCodes cannot be empty when this option is specified"),
		refuse("Retry conf.grpc.retryOn", "conf.grpc.retryOn = [cancelled, internal, cancelled]", "conf.grpc.retryOn", `repeated value "cancelled" at indexes [0, 2]`),
		refuse("Retry conf.tcp.maxConnectAttempts", "conf.tcp = {}", "conf.tcp.maxConnectAttempts", atZero),
		refuse("Retry (body)", "conf.http.retryOn = [sometimes]", "conf.http.retryOn[0]", "").form("decision 14"),

		refuse("Timeout conf", "conf -", "conf", defined),
		accept("Timeout conf", "conf = {}"),
		refuse("Timeout conf.tcp", "conf.tcp = {}", "conf.tcp", section),
		refuse("Timeout conf.http", "conf.http = {streamIdleTimeout: 1s}", "conf.http", section),
		refuse("Timeout conf.grpc", "conf.grpc = {}", "conf.grpc", section),
		refuse("Timeout conf.tcp.idleTimeout", "conf.tcp = {idleTimeout: 0s}", "conf.tcp.idleTimeout", atZero),
		refuse("Timeout conf.http.requestTimeout / .idleTimeout, conf.grpc.streamIdleTimeout / .maxStreamDuration",
			"conf.http = {requestTimeout: 0s, idleTimeout: -1s}\nconf.grpc = {streamIdleTimeout: 0s, maxStreamDuration: 0s}",
			"conf.http.requestTimeout", above, "conf.http.idleTimeout", above, "conf.grpc.streamIdleTimeout", above, "conf.grpc.maxStreamDuration", above),
		refuse("Timeout conf.connectTimeout", "conf.connectTimeout = -1s", "conf.connectTimeout", negative).because(14),
		refuse("Timeout conf.http.streamIdleTimeout", "conf.http = {idleTimeout: 1s, streamIdleTimeout: -1s, maxStreamDuration: -1s}",
			"conf.http.streamIdleTimeout", negative, "conf.http.maxStreamDuration", negative).because(14),
	}
}

func trafficCases() []Case {
	const (
		oneOf  = `requires either "destination" or "split"`
		both   = `"split" cannot be defined at the same time as "destination"`
		option = `cannot be empty. Available options: "exact", "prefix" or "regex"`
		match  = `must be present and contain at least one of the elements: "method", "path" or "headers"`
		pseudo = "host header and HTTP/2 pseudo-headers are not allowed to be modified"
	)
	http := func(changes string) string {
		return "conf.http = [{match: {path: {prefix: /a}}, destination: {kuma.io/service: a}}]\n" + changes
	}
	return []Case{
		refuse("TrafficRoute conf", "conf -", "conf", empty),
		refuse("TrafficRoute conf and conf.http[i]", "conf = {}", "conf", oneOf),
		refuse("TrafficRoute conf and conf.http[i]", "conf.split = [{weight: 1, destination: {kuma.io/service: a}}]", "conf", both),
		refuse("TrafficRoute conf and conf.http[i]", http("conf.http[0].destination -"), "conf.http[0]", oneOf),
		refuse("TrafficRoute conf and conf.http[i]", http("conf.http[0].split = [{weight: 1, destination: {kuma.io/service: a}}]"), "conf.http[0]", both),
		refuse("TrafficRoute conf...split[i].weight", "conf = {split: [{weight: 1, destination: {kuma.io/service: a}}, {destination: {kuma.io/service: a}}]}",
			"conf.split[1].weight", "needs to be defined"),
		refuse("TrafficRoute conf...split", "conf = {split: [{weight: 0, destination: {kuma.io/service: a}}]}",
			"conf.split", "there must be at least one split entry with weight above 0"),
		refuse("TrafficRoute conf...split[i].destination and conf...destination", "conf = {split: [{weight: 1, destination: {version: v1}}]}",
			"conf.split[0].destination", noService),
		refuse("TrafficRoute conf...split[i].destination and conf...destination", "conf.destination = {version: v1}", "conf.destination", noService),
		refuse("TrafficRoute conf...split[i].destination and conf...destination", http("conf.http[0].destination = {version: v1}"), "conf.http[0].destination", noService),
		refuse("TrafficRoute conf.http[i].match", http("conf.http[0].match -"), "conf.http[0].match", match),
		refuse("TrafficRoute conf.http[i].match", http("conf.http[0].match = {}"), "conf.http[0].match", match),
		refuse(`TrafficRoute conf.http[i].match.method / .path / .headers["k"]`, http("conf.http[0].match = {method: {}, path: {prefix: ''}, headers: {a: {}, b: {regex: ''}}}"),
			"conf.http[0].match.method", option, "conf.http[0].match.path.prefix", empty,
			`conf.http[0].match.headers["a"]`, option, `conf.http[0].match.headers["b"].regex`, empty).
			differs("the text names the option prefix, which exists, not split"),
		refuse("TrafficRoute conf.http[i].match.regex", http(`conf.http[0].match.path = {regex: "("}`),
			"conf.http[0].match.path.regex", "must be a regular expression: error parsing regexp: missing closing ): `(`").differs("expressions that no proxy can compile are refused"),
		refuse("TrafficRoute conf.http[i].match.headers", http("conf.http[0].match = {headers: {}}"), "conf.http[0].match", match).
			differs("an empty map cannot be told from none in what is stored"),
		refuse("TrafficRoute conf.http[i].modify.path", http("conf.http[0].modify.path = {}"), "conf.http[0].modify.path", `either "rewritePrefix" or "regex" has to be set`),
		refuse("TrafficRoute conf.http[i].modify.path", http("conf.http[0].match = {path: {exact: /a}}\nconf.http[0].modify.path = {rewritePrefix: /b}"),
			"conf.http[0].modify.path.rewritePrefix", "can only be set when .http.match.path.prefix is not empty").at(),
		refuse("TrafficRoute conf.http[i].modify.path", http("conf.http[0].modify.path = {rewritePrefix: ''}"), "conf.http[0].modify.path.rewritePrefix", empty).at(),
		refuse("TrafficRoute conf.http[i].modify.path", http("conf.http[0].modify.path = {regex: {}}"),
			"conf.http[0].modify.path.regex.pattern", empty, "conf.http[0].modify.path.regex.substitution", empty).at(),
		refuse("TrafficRoute conf.http[i].modify.host", http("conf.http[0].modify.host = {}"), "conf.http[0].modify.host", `either "value" or "fromPath" has to be set`),
		refuse("TrafficRoute conf.http[i].modify.host", http("conf.http[0].modify.host = {value: ''}"), "conf.http[0].modify.host.value", empty).at(),
		refuse("TrafficRoute conf.http[i].modify.host", http("conf.http[0].modify.host = {fromPath: {pattern: a}}"), "conf.http[0].modify.host.fromPath.substitution", empty).at(),
		refuse("TrafficRoute conf.http[i].modify.<requestHeaders|responseHeaders>.<add|remove>[j].name",
			http("conf.http[0].modify = {requestHeaders: {add: [{name: Host, value: a}], remove: [{}]}, responseHeaders: {remove: [{name: ':status'}]}}"),
			"conf.http[0].modify.requestHeaders.add[0].name", pseudo, "conf.http[0].modify.requestHeaders.remove[0].name", empty,
			"conf.http[0].modify.responseHeaders.remove[0].name", pseudo),
		refuse("TrafficRoute conf.http[i].modify.<...>.add[j].value", http("conf.http[0].modify = {responseHeaders: {add: [{name: a}]}}"),
			"conf.http[0].modify.responseHeaders.add[0].value", empty),
		refuse("TrafficRoute conf.loadBalancer.ringHash.hashFunction", "conf.loadBalancer = {ringHash: {hashFunction: MD5}}",
			"conf.loadBalancer.ringHash.hashFunction", "must have a valid hash function"),
		accept("TrafficLog conf.backend", "conf = {backend: nowhere}"),
		accept("TrafficLog conf.backend", "conf -"),
		accept("TrafficTrace conf.backend", "conf = {backend: nowhere}"),
		accept("TrafficTrace conf.backend", "conf -"),
	}
}

func otherCases() []Case {
	return []Case{
		accept("Zone (none)", ""),
		accept("Zone (none)", "enabled = null"),
		accept("Zone (none)", "enabled = false"),
		accept("Secret data", "data -"),
		refuse("Secret data", "data = '***'", "data", "").form("decision 14"),
		accept("GlobalSecret data", "data -"),
		refuse("GlobalSecret data", "data = '***'", "data", "").form("decision 14"),
	}
}
