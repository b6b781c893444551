package validatetest

func gatewayCases() []Case {
	const (
		at    = "conf.listeners[0]"
		https = "conf.listeners[0] = {port: 8443, protocol: HTTPS, tls: {mode: TERMINATE, certificates: [{secret: a}]}}\n"
	)
	second := func(listener string) string { return "conf.listeners[1] = " + listener }
	return []Case{
		refuse("MeshGateway conf", "conf -", "conf", empty),
		refuse("MeshGateway conf.listeners", "conf.listeners = []", "conf.listeners", empty),
		refuse(`MeshGateway tags["k"] and conf.listeners[i].tags["k"]`, "tags = {kuma.io/external-service-name: a, kuma.io/protocol: http, kuma.io/service: a, kuma.io/zone: a}",
			`tags["kuma.io/external-service-name"]`, `tag name must not be "kuma.io/external-service-name"`,
			`tags["kuma.io/protocol"]`, `tag name must not be "kuma.io/protocol"`,
			`tags["kuma.io/service"]`, `tag name must not be "kuma.io/service"`,
			`tags["kuma.io/zone"]`, `tag name must not be "kuma.io/zone"`),
		refuse(`MeshGateway tags["k"] and conf.listeners[i].tags["k"]`, "conf.listeners[0].tags = {kuma.io/zone: a}", `conf.listeners[0].tags["kuma.io/zone"]`, `tag name must not be "kuma.io/zone"`),
		refuse("MeshGateway conf.listeners[i].hostname", "conf.listeners[0].hostname = Shop.example", at+".hostname", "invalid hostname"),
		refuse("MeshGateway conf.listeners[i].hostname", "conf.listeners[0].hostname = '*.*.example'", at+".hostname", "invalid wildcard domain"),
		accept("MeshGateway conf.listeners[i].hostname", "conf.listeners[0].hostname = '*.shop.example'"),
		refuse("MeshGateway conf.listeners[i].port", "conf.listeners[0].port -", at+".port", badPort),
		refuse("MeshGateway conf.listeners[i].protocol", "conf.listeners[0].protocol = NONE", at+".protocol", empty),
		refuse("MeshGateway conf.listeners[i].protocol", "conf.listeners[0].protocol = UDP", at+".protocol", "protocol type is not supported"),
		refuse("MeshGateway conf.listeners[i].protocol", "conf.listeners[0].protocol = TLS", at+".protocol", "protocol type is not supported"),
		refuse("MeshGateway conf.listeners[i].protocol #2", "conf.listeners[0].protocol = HTTPS\nconf.listeners[0].crossMesh = true", at+".protocol", "protocol is not supported with crossMesh"),
		refuse("MeshGateway conf.listeners[i].tls", "conf.listeners[0].protocol = HTTPS", at+".tls", empty),
		refuse("MeshGateway conf.listeners[i].tls.mode", https+"conf.listeners[0].tls.mode -", at+".tls.mode", empty),
		refuse("MeshGateway conf.listeners[i].tls.certificates", https+"conf.listeners[0].tls.mode = PASSTHROUGH", at+".tls.certificates", "must be empty in TLS passthrough mode"),
		refuse("MeshGateway conf.listeners[i].tls.certificates", https+"conf.listeners[0].tls.certificates -", at+".tls.certificates", "cannot be empty in TLS termination mode"),
		refuse("MeshGateway conf.listeners[i].tls.certificates", https+"conf.listeners[0].tls.certificates = [{secret: a}, {secret: b}, {secret: c}]", at+".tls.certificates", "cannot have more than 2 certificates"),
		refuse("MeshGateway conf.listeners[i].tls.certificates[j]", https+"conf.listeners[0].tls.certificates = [{}]", at+".tls.certificates[0]", noSource).
			differs("sources of certificates must have something in them"),
		refuse("MeshGateway conf.listeners[i].tls #2", "conf.listeners[0].crossMesh = true\nconf.listeners[0].tls = {mode: PASSTHROUGH}", at+".tls", "must be empty with crossMesh"),
		refuse("MeshGateway conf.listeners[i]", second("{port: 8080, protocol: TCP, hostname: a.b}"), "conf.listeners[1]", "protocol conflicts with other listeners on this port"),
		refuse("MeshGateway conf.listeners[i] #2", second("{port: 8080, protocol: HTTP, hostname: '*'}"), "conf.listeners[1]", "multiple listeners for hostname on this port"),
		refuse("MeshGateway conf.listeners[i].resources.connectionLimit", second("{port: 8080, protocol: HTTP, hostname: a.b, resources: {connectionLimit: 5}}"),
			"conf.listeners[1].resources.connectionLimit", "conflicting values for this port"),
	}
}

func gatewayRouteCases() []Case {
	const (
		rule   = "conf.http.rules[0]"
		match  = rule + ".matches[0]"
		filter = rule + ".filters[0]"
		expr   = "must be a regular expression: error parsing regexp: missing closing ): `(`"
	)
	filters := func(list string) string { return rule + ".filters = [" + list + "]" }
	redirect := func(changes string) string {
		return filters("{redirect: {scheme: https, hostname: a.b, port: 443, statusCode: 301}}") + "\n" + rule + ".backends -\n" + changes
	}
	return []Case{
		refuse("MeshGatewayRoute conf", "conf -", "conf", empty),
		refuse("MeshGatewayRoute conf", "conf = {}", "conf", empty),
		refuse("MeshGatewayRoute conf.http.rules", "conf.http.rules -", "conf.http.rules", empty),
		refuse("MeshGatewayRoute conf.http.rules[i].matches", "conf.http.rules[0] = {}", rule+".matches", empty),
		refuse("MeshGatewayRoute conf.http.rules[i].matches[j]", match+" = {}", match, empty),
		refuse("MeshGatewayRoute conf.http.rules[i].matches[j].value", match+".path = {match: REGEX}", match+".value", empty),
		refuse("MeshGatewayRoute conf.http.rules[i].matches[j].value", match+".path = {match: PREFIX, value: /a/}", match+".value",
			"does not need a trailing slash because only a / separated prefix or an entire path is matched"),
		refuse("MeshGatewayRoute conf.http.rules[i].matches[j].value", match+".path = {match: PREFIX, value: a}", match+".value", "must be an absolute path"),
		refuse("MeshGatewayRoute conf.http.rules[i].matches[j].value", match+".path = {match: EXACT, value: a}", match+".value", "must be an absolute path"),
		refuse("MeshGatewayRoute conf.http.rules[i].matches[j].value", match+".path = {match: REGEX, value: '('}", match+".value", expr).
			differs("expressions that no proxy can compile are refused"),
		refuse("MeshGatewayRoute conf.http.rules[i].matches[j].headers[k].name / .value", match+" = {headers: [{}]}", match+".headers[0].name", empty, match+".headers[0].value", empty),
		refuse("MeshGatewayRoute conf.http.rules[i].matches[j].query_parameters[k].name / .value", match+" = {queryParameters: [{name: a, value: b}, {name: c}]}", match+".query_parameters[1].value", empty),
		refuse("MeshGatewayRoute conf.http.rules[i].filters[j].request_header", filters("{requestHeader: {}}"), filter+".request_header", empty),
		refuse("MeshGatewayRoute conf.http.rules[i].filters[j].request_header.set[k] (.add[k]) .name / .value", filters("{requestHeader: {set: [{name: a}], add: [{value: b}]}}"),
			filter+".request_header.set[0].value", empty, filter+".request_header.add[0].name", empty),
		refuse("MeshGatewayRoute conf.http.rules[i].filters[j].request_header.remove[k]", filters("{requestHeader: {remove: [a, '']}}"), filter+".request_header.remove[1]", empty),
		refuse("MeshGatewayRoute conf.http.rules[i].filters[j].redirect.scheme / .hostname", redirect(filter+".redirect.scheme -\n"+filter+".redirect.hostname -"),
			filter+".redirect.scheme", empty, filter+".redirect.hostname", empty),
		refuse("MeshGatewayRoute conf.http.rules[i].filters[j].redirect.port", redirect(filter+".redirect.port = 70000"), filter+".redirect.port", badPort),
		accept("MeshGatewayRoute conf.http.rules[i].filters[j].redirect.port", redirect(filter+".redirect.port -")),
		refuse("MeshGatewayRoute conf.http.rules[i].filters[j].redirect.status_code", redirect(filter+".redirect.statusCode = 200"), filter+".redirect.status_code", "must be in the range [300, 308]"),
		refuse("MeshGatewayRoute conf.http.rules[i].filters[j].mirror.percentage", filters("{mirror: {backend: {destination: {kuma.io/service: a}}}}"), filter+".mirror.percentage", empty),
		refuse("MeshGatewayRoute conf.http.rules[i].filters[j].mirror.percentage", filters("{mirror: {percentage: 101, backend: {destination: {kuma.io/service: a}}}}"), filter+".mirror.percentage", percent),
		refuse("MeshGatewayRoute conf.http.rules[i].filters[j].mirror.backend", filters("{mirror: {percentage: 1}}"), filter+".mirror.backend", empty),
		refuse("MeshGatewayRoute conf.http.rules[i].filters[j].mirror.backend", filters("{mirror: {percentage: 1, backend: {destination: {a: b}}}}"), filter+".mirror.backend", noService).
			differs("this is the message of destinations, which the row refers to"),
		refuse("MeshGatewayRoute conf.http.rules[i].filters[j].rewrite.replacePrefixMatch", match+" = {path: {value: /a}}\n"+filters("{rewrite: {replacePrefixMatch: /b}}"),
			filter+".rewrite.replacePrefixMatch", "cannot be used without a match on path prefix"),
		refuse("MeshGatewayRoute conf.http.rules[i].filters", redirect(rule+".filters[1] = {rewrite: {replaceFull: /b}}"), rule+".filters", "redirects cannot be used with other filters"),
		refuse("MeshGatewayRoute conf.http.rules[i].backends", rule+".backends -", rule+".backends", empty),
		refuse("MeshGatewayRoute conf.http.rules[i].backends", redirect(rule+".backends = [{destination: {kuma.io/service: a}}]"), rule+".backends", "must be empty when using redirect filters"),
		refuse("MeshGatewayRoute conf.http.rules[i].backends[j]", rule+".backends = [{destination: {version: v1}}]", rule+".backends[0]", noService),
		refuse("MeshGatewayRoute conf.http.rules[i].backends[j]", rule+".backends = [{}]", rule+".backends[0]", noTag, rule+".backends[0]", noService),
	}
}

func proxyTemplateCases() []Case {
	const (
		operation = `invalid operation. Available operations: "add", "patch", "remove"`
		filterOp  = `invalid operation. Available operations: "addFirst", "addLast", "addBefore", "addAfter", "patch", "remove"`
		before    = "cannot be empty. You need to pick a filter before which this one will be added"
		after     = "cannot be empty. You need to pick a filter after which this one will be added"
		invalid   = "native Envoy resource is not valid: "
		where     = "conf.modifications[0]."
		resource  = "conf.resources[0].resource"
	)
	modify := func(modification string) string { return "conf.modifications = [" + modification + "]" }
	raw := func(text string) string {
		return "conf.resources = [{name: a, version: b, resource: " + text + "}]"
	}
	cases := []Case{
		refuse("ProxyTemplate conf.imports[i]", "conf.imports = ['', other]", "conf.imports[0]", empty, "conf.imports[1]",
			"profile not found. Available profiles: default-proxy,egress-proxy,gateway-proxy,ingress-proxy"),
		refuse("ProxyTemplate conf.resources[i].name / .version / .resource", "conf.resources = [{}]",
			"conf.resources[0].name", empty, "conf.resources[0].version", empty, resource, empty),
		refuse("ProxyTemplate conf.resources[i].resource", raw("'a: ['"), resource, invalid+"line 1: did not find expected node content"),
		refuse("ProxyTemplate conf.resources[i].resource", raw(`'{name: &a long, altStatName: *a, "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster}'`), resource, invalid+"aliases are not supported"),
		refuse("ProxyTemplate conf.resources[i].resource", raw("text"), resource, invalid+"it is not an object"),
		refuse("ProxyTemplate conf.resources[i].resource", raw("'name: a'"), resource, invalid+"it has no @type"),
		refuse("ProxyTemplate conf.resources[i].resource", raw(`'{"@type": type.googleapis.com/kuma.Cluster}'`), resource, invalid+`unknown message type "kuma.Cluster"`),
		refuse("ProxyTemplate conf.resources[i].resource", raw(`'{"@type": type.googleapis.com/envoy.config.cluster.v3.Clusters}'`), resource, invalid+`unknown message type "envoy.config.cluster.v3.Clusters"`),
		refuse("ProxyTemplate conf.resources[i].resource", raw(`'{"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, nam: a}'`), resource, invalid+`unknown field "nam"`),
		accept("ProxyTemplate conf.resources[i].resource", raw(`'{"@type": type.googleapis.com/envoy.api.v2.Cluster, name: a, connectTimeout: 5s}'`)).because(1),
		accept("ProxyTemplate conf.resources[i].resource", raw(`'{"@type": type.googleapis.com/envoy.config.listener.v3.Listener, name: a, filterChains: [{filters: [{name: f, typedConfig: {"@type": type.googleapis.com/envoy.extensions.filters.network.zookeeper_proxy.v3.ZooKeeperProxy, statPrefix: a}}]}]}'`)),
		refuse("ProxyTemplate conf.modifications[i].networkFilter.match.name", modify("{networkFilter: {operation: addBefore, value: 'name: a'}}"), where+"networkFilter.match.name", before),
		refuse("ProxyTemplate conf.modifications[i].networkFilter.match.name", modify("{networkFilter: {operation: patch, value: 'name: a'}}"), where+"networkFilter.match.name", empty),
		refuse("ProxyTemplate conf.modifications[i].httpFilter.match.name", modify("{httpFilter: {operation: addAfter, value: 'name: a'}}"), where+"httpFilter.match.name", after),
		refuse("ProxyTemplate conf.modifications[i].httpFilter.match.name", modify("{httpFilter: {operation: patch, value: 'name: a'}}"), where+"httpFilter.match.name", empty),
		refuse("ProxyTemplate conf.modifications[i].cluster.match / .listener.match", modify("{cluster: {operation: add, match: {name: a}, value: 'name: a'}}"), where+"cluster.match", "cannot be defined"),
		refuse("ProxyTemplate conf.modifications[i].cluster.match / .listener.match", modify("{listener: {operation: add, match: {}, value: 'name: a'}}"), where+"listener.match", "cannot be defined"),
		refuse("ProxyTemplate conf.modifications[i].virtualHost.match.name", modify("{virtualHost: {operation: add, match: {name: a}, value: 'name: a'}}"), where+"virtualHost.match.name", "cannot be defined"),
		refuse("ProxyTemplate conf.modifications[i]", modify("{}"), "conf.modifications[0]", empty).differs("a modification of nothing is refused"),
	}
	for _, kind := range []string{"cluster", "listener", "virtualHost"} {
		cases = append(cases,
			refuse("ProxyTemplate conf.modifications[i]."+kind+".operation", modify("{"+kind+": {operation: addFirst}}"), where+kind+".operation", operation),
			refuse("ProxyTemplate conf.modifications[i].<kind>.value", modify("{"+kind+": {operation: patch, value: 'nam: a'}}"), where+kind+".value", invalid+`unknown field "nam"`),
			refuse("ProxyTemplate conf.modifications[i].<kind>.value", modify("{"+kind+": {operation: add}}"), where+kind+".value", invalid+"it is not an object"),
			accept("ProxyTemplate conf.modifications[i].<kind>.value", modify("{"+kind+": {operation: remove}}")),
		)
	}
	for _, kind := range []string{"networkFilter", "httpFilter"} {
		cases = append(cases,
			refuse("ProxyTemplate conf.modifications[i]."+kind+".operation", modify("{"+kind+": {operation: add}}"), where+kind+".operation", filterOp),
			refuse("ProxyTemplate conf.modifications[i].<kind>.value", modify("{"+kind+": {operation: addFirst, value: 'nam: a'}}"), where+kind+".value", invalid+`unknown field "nam"`),
		)
	}
	return cases
}

func virtualOutboundCases() []Case {
	const failed = "template pre evaluation failed with error='"
	return []Case{
		refuse("VirtualOutbound conf", "conf -", "conf", defined),
		refuse("VirtualOutbound conf.parameters", "conf.parameters[0].tagKey = version", "conf.parameters", "must contain a parameter with kuma.io/service as a tagKey"),
		refuse("VirtualOutbound conf.parameters[i].name", "conf.parameters[1] = {name: service}", "conf.parameters[1].name", "name is already used"),
		refuse("VirtualOutbound conf.parameters[i].name", "conf.parameters[1] = {name: a b, tagKey: a}", "conf.parameters[1].name", "must consist of alphanumeric characters to be used as a gotemplate key"),
		refuse("VirtualOutbound conf.parameters[i].name", "conf.parameters[1] = {name: a b}",
			"conf.parameters[1].name", "must consist of alphanumeric characters to be used as a gotemplate key", "conf.parameters[1].name", "must be a valid tag name if no tagKey is set"),
		refuse("VirtualOutbound conf.parameters[i].tagKey", "conf.parameters[1] = {name: a, tagKey: a b}", "conf.parameters[1].tagKey", "must be a valid tag name"),
		refuse("VirtualOutbound conf.host / conf.port", "conf.host -\nconf.port -", "conf.host", defined, "conf.port", defined),
		refuse("VirtualOutbound conf.host / conf.port", "conf.host = '{{.other}}.mesh'", "conf.host", failed+`template: :1:2: executing "" at <.other>: map has no entry for key "other"'`),
		refuse("VirtualOutbound conf.host / conf.port", "conf.host = '{{.service'", "conf.host", failed+`template: :1: unclosed action'`),
		refuse("VirtualOutbound conf.host / conf.port", "conf.port = '{{.service}}a'", "conf.port", failed+`"1a" is not a port'`),
		refuse("VirtualOutbound conf.host / conf.port", `conf.host = '{{printf "%999999999d" 1}}'`, "conf.host", failed+"printf is not supported'").
			differs("templates may not loop or format"),
		accept("VirtualOutbound conf.host / conf.port", `conf.host = '{{if eq .service "a"}}{{.service}}{{else}}b{{end}}.mesh'`),
	}
}

func targetRefCases() []Case {
	const (
		anyType     = "(targetRef rule set) "
		top         = "spec.targetRef"
		unsupported = "value is not supported"
		backend     = "spec.to[0].default.backends[0]"
		trace       = "spec.default.backends[0]"
	)
	ref := func(row, targetRef string, want ...string) Case {
		return refuse("MeshTrafficPermission "+row, "spec.targetRef = "+targetRef, want...).in(anyType + row)
	}
	backends := func(list string) string { return "spec.to[0].default.backends = " + list }
	datadog := func(url, message string) Case {
		return refuse("MeshTrace spec.default.backends[0].datadog.url", "spec.default.backends = [{datadog: {url: '"+url+"'}}]", trace+".datadog.url", message)
	}
	cases := []Case{
		ref("<ref>.kind", "{}", top+".kind", "must be set"),
		ref("<ref>.kind #2", "{kind: MeshThing}", top+".kind", unsupported),
		ref("<ref>.name (kind Mesh)", "{kind: Mesh, name: a}", top+".name", "using name with kind Mesh is not yet supported"),
		ref("<ref>.mesh", "{kind: MeshService, name: a, mesh: b}", top+".mesh", "cannot be set with kind MeshService"),
		ref("<ref>.mesh", "{kind: Mesh, mesh: b}", top+".mesh", "cannot be set with kind Mesh"),
		ref("<ref>.tags (kinds Mesh, MeshService)", "{kind: Mesh, tags: {a: b}}", top+".tags", "cannot be set with kind Mesh"),
		ref("<ref>.tags (kinds Mesh, MeshService)", "{kind: MeshService, name: a, tags: {a: b}}", top+".tags", "cannot be set with kind MeshService"),
		ref("<ref>.name (kind MeshSubset)", "{kind: MeshSubset, name: a, tags: {a: b}}", top+".name", "cannot be set with kind MeshSubset"),
		ref("<ref>.name (kinds MeshService, MeshServiceSubset, MeshGatewayRoute)", "{kind: MeshService}", top+".name", "must be set with kind MeshService"),
		ref("<ref>.name (kinds MeshService, MeshServiceSubset, MeshGatewayRoute)", "{kind: MeshServiceSubset, tags: {a: b}}", top+".name", "must be set with kind MeshServiceSubset"),
		ref("<ref>.name (kinds MeshService, MeshServiceSubset, MeshGatewayRoute)", "{kind: MeshGatewayRoute}", top+".name", "must be set with kind MeshGatewayRoute"),
		refuse("MeshAccessLog spec", "spec.to[0].default.backends = text", "spec.to[0].default.backends", "").in(anyType + "spec").form("wrong JSON types are named by their own paths"),

		refuse("MeshAccessLog spec.from[i].targetRef", "spec.from = [{targetRef: {kind: MeshService, name: a}, default: {backends: []}}]", "spec.from[0].targetRef.kind", unsupported).at(),
		refuse("MeshAccessLog spec.to[i].targetRef", "spec.to[0].targetRef = {kind: MeshSubset}", "spec.to[0].targetRef.kind", unsupported).at(),
		refuse("MeshAccessLog spec", "spec.to = []", "spec", "at least one of 'from', 'to' has to be defined"),
		refuse("MeshAccessLog spec.<from|to>[i].default.backends", "spec.to[0].default = {}", "spec.to[0].default.backends", "must be defined"),
		accept("MeshAccessLog spec.<from|to>[i].default.backends", backends("[]")),
		refuse("MeshAccessLog spec.<from|to>[i].default.backends[j]", backends("[{}]"), backend, "backend must have only one type defined: tcp, file"),
		refuse("MeshAccessLog spec.<from|to>[i].default.backends[j]", backends("[{tcp: {address: 'a:1'}, file: {path: /a}}]"), backend, "backend must have only one type defined: tcp, file"),
		refuse("MeshAccessLog ...backends[j].file.path", backends("[{file: {}}]"), backend+".file.path", "file backend requires a valid path"),
		refuse("MeshAccessLog ...backends[j].tcp.address", backends("[{tcp: {address: loki}}]"), backend+".tcp.address", "tcp backend requires valid address"),
		refuse("MeshAccessLog ...format", backends("[{file: {path: /a, format: {plain: a, json: [{key: a, value: b}]}}}]"), backend+".file.format", "format must have only one type defined: plain, json"),
		refuse("MeshAccessLog ...format.json", backends("[{tcp: {address: 'a:1', format: {json: []}}}]"), backend+".tcp.format.json", "must not be empty"),
		refuse("MeshAccessLog ...format.json[k].key / .value", backends("[{file: {path: /a, format: {json: [{}]}}}]"),
			backend+".file.format.json[0].key", "key cannot be empty", backend+".file.format.json[0].value", "value cannot be empty"),
		refuse("MeshAccessLog ...format.json[k]", backends(`[{file: {path: /a, format: {json: [{key: 'a"', value: b}]}}}]`), backend+".file.format.json[0]", "is not a valid JSON object"),
		refuse("MeshAccessLog spec.to", "spec.targetRef = {kind: MeshGatewayRoute, name: a}", "spec.to", `cannot use "to" when "targetRef" is "MeshGatewayRoute" as the only destination is the gateway`),

		refuse("MeshTrace spec.default.backends", "spec.default.backends -", "spec.default.backends", "must be defined"),
		refuse("MeshTrace spec.default.backends", "spec.default.backends = [{datadog: {url: 'http://a:1'}}, {datadog: {url: 'http://a:1'}}]", "spec.default.backends", "must have zero or one backend defined"),
		accept("MeshTrace spec.default.backends", "spec.default.backends = []"),
		refuse("MeshTrace spec.default.backends[0]", "spec.default.backends = [{}]", trace, "backend must have only one type defined: datadog, zipkin"),
		datadog("datadog", "must be a valid url"),
		datadog("https://a:1", "scheme must be http"),
		datadog("http://a", "port must be defined"),
		datadog("http://a:0", "port must be a valid (1-65535)"),
		datadog("http://a:1/path", "path must not be defined"),
		datadog("http://a:1?a=b", "query must not be defined"),
		datadog("http://a:1#a", "fragment must not be defined"),
		datadog("http://me@a:1", "user info must not be defined"),
		refuse("MeshTrace spec.default.backends[0].zipkin.url", "spec.default.backends = [{zipkin: {}}]", trace+".zipkin.url", "must not be empty"),
		refuse("MeshTrace spec.default.backends[0].zipkin.url", "spec.default.backends = [{zipkin: {url: zipkin}}]", trace+".zipkin.url", "must be a valid url"),
		refuse("MeshTrace spec.default.backends[0].zipkin.apiVersion", "spec.default.backends[0].zipkin.apiVersion = v1", trace+".zipkin.apiVersion", "must be one of httpJson, httpProto"),
		refuse("MeshTrace spec.default.tags[i].name", "spec.default.tags = [{literal: a}]", "spec.default.tags[0].name", "must not be empty"),
		refuse("MeshTrace spec.default.tags[i]", "spec.default.tags = [{name: a}, {name: b, literal: c, header: {name: d}}]",
			"spec.default.tags[0]", "tag must have only one type defined: header, literal", "spec.default.tags[1]", "tag must have only one type defined: header, literal"),
		refuse("MeshTrace spec.default.sampling.<client|random|overall>", "spec.default.sampling = {overall: 101, client: '100.5', random: 5}",
			"spec.default.sampling.overall", "must be between 0 and 100", "spec.default.sampling.client", "must be between 0 and 100"),
		accept("MeshTrace spec.default.sampling.<client|random|overall>", "spec.default.sampling = {overall: '33.3', random: null}").because(20),

		refuse("MeshTrafficPermission spec.from", "spec.from = []", "spec.from", "needs at least one item"),
		refuse("MeshTrafficPermission spec.from[i].targetRef", "spec.from[0].targetRef = {kind: MeshGatewayRoute, name: a}", "spec.from[0].targetRef.kind", unsupported).at(),
		refuse("MeshTrafficPermission spec.from[i].default.action", "spec.from[0].default = {}", "spec.from[0].default.action", "must be defined"),
		refuse("MeshTrafficPermission spec", "spec.from[0].default.action = MAYBE", "spec.from[0].default.action", "").form("unknown values are named by their own paths"),
		accept("MeshTrafficPermission spec", "spec.from[0].default.action = AllowWithShadowDeny").because(20),
		accept("MeshTrafficPermission spec", "spec.from[0].default.later = {}\nspec.Kind = 5").because(20),
	}
	for _, typ := range []string{"MeshAccessLog", "MeshTrace", "MeshTrafficPermission"} {
		cases = append(cases, refuse(typ+" spec.targetRef", "spec.targetRef = {kind: Dataplane}", top+".kind", unsupported).at())
		for _, kind := range []string{"{kind: MeshSubset, tags: {a: b}}", "{kind: MeshService, name: a}", "{kind: MeshServiceSubset, name: a, tags: {a: b}}"} {
			cases = append(cases, accept(typ+" spec.targetRef", "spec.targetRef = "+kind))
		}
	}
	return append(cases, accept("MeshTrace spec.targetRef", "spec.targetRef = {kind: MeshGatewayRoute, name: a}"))
}
