package validatetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"strconv"
	"strings"
	"time"
)

func proxyCases() []Case {
	const (
		urlPath     = "should be a valid URL Path"
		tagRequired = "tag has to exist"
		same        = "serviceAddress and servicePort has to differ from address and port"
	)
	const builtin = "networking = {address: 192.168.0.1, gateway: {type: BUILTIN, tags: {kuma.io/service: edge}}}\n"
	const delegated = "networking = {address: 192.168.0.1, gateway: {tags: {kuma.io/service: edge}}}\n"
	constrained := func(constraints string) string {
		return Sample("Mesh", "constraints = {dataplaneProxy: "+constraints+"}")
	}
	cases := []Case{
		refuse("Dataplane networking", "networking -", "networking", "must be defined"),
		refuse("Dataplane networking #2", "networking.inbound -", "networking", "has to contain at least one inbound interface or gateway"),
		refuse("Dataplane networking.address", "networking.address -", "networking.address", "address can't be empty"),
		refuse("Dataplane networking.address #2", "networking.address = 0.0.0.0", "networking.address", anyAddress),
		refuse("Dataplane networking.address #2", "networking.address = '::'", "networking.address", anyAddress),
		refuse("Dataplane networking.address #3", "networking.address = a..b", "networking.address", badAddress),
		refuse("Dataplane networking.address #3", "networking.address = 'a b'", "networking.address", badAddress),
		refuse("Dataplane networking.admin.port", "networking.address = 127.0.0.1\nnetworking.admin = {port: 80}", "networking.admin.port", "must differ from inbound"),
		refuse("Dataplane networking.admin.port", "networking.inbound[0].serviceAddress = 127.0.0.1\nnetworking.admin = {port: 8080}", "networking.admin.port", "must differ from inbound"),
		refuse("Dataplane networking.admin.port #2", "networking.outbound = [{port: 9901, tags: {kuma.io/service: a}}]\nnetworking.admin = {port: 9901}", "networking.admin.port", "must differ from outbound"),
		refuse("Dataplane networking.inbound[i].port", "networking.inbound[0].port = 0", "networking.inbound[0].port", badPort),
		refuse("Dataplane networking.inbound[i].port", "networking.inbound[0].port = 65536", "networking.inbound[0].port", badPort),
		refuse("Dataplane networking.inbound[i].servicePort", "networking.inbound[0].servicePort = 65536", "networking.inbound[0].servicePort", badPort),
		refuse("Dataplane networking.inbound[i].serviceAddress", "networking.inbound[0].serviceAddress = localhost", "networking.inbound[0].serviceAddress", "serviceAddress has to be valid IP address"),
		refuse("Dataplane networking.inbound[i].address", "networking.inbound[0].address = localhost", "networking.inbound[0].address", badIP),
		refuse("Dataplane networking.inbound[i].serviceAddress #2", "networking.inbound[0] = {port: 80, serviceAddress: 192.168.0.1, tags: {kuma.io/service: a}}",
			"networking.inbound[0].serviceAddress", same),
		refuse("Dataplane networking.inbound[i].serviceAddress #2", "networking.inbound[0] = {port: 80, servicePort: 80, address: 10.0.0.1, serviceAddress: 10.0.0.1, tags: {kuma.io/service: a}}",
			"networking.inbound[0].serviceAddress", same),
		refuse(`Dataplane networking.inbound[i].tags["kuma.io/service"]`, "networking.inbound[0].tags = {version: v1}", `networking.inbound[0].tags["kuma.io/service"]`, tagRequired),
		accept(`Dataplane networking.inbound[i].tags["kuma.io/service"]`, "networking.inbound[0].tags = {service: old}").because(5),
		refuse(`Dataplane networking.inbound[i].tags["kuma.io/protocol"]`, `networking.inbound[0].tags["kuma.io/protocol"] = smtp`,
			`networking.inbound[0].tags["kuma.io/protocol"]`, `tag "kuma.io/protocol" has an invalid value "smtp". Allowed values: grpc, http, http2, kafka, tcp`),
		refuse("Dataplane networking.inbound[i].tags", "networking.inbound[0].tags.version = a b", `networking.inbound[0].tags["version"]`, tagValue),
		refuse("Dataplane networking.inbound[i].serviceProbe.interval", "networking.inbound[0].serviceProbe = {interval: 0s}", "networking.inbound[0].serviceProbe.interval", positive),
		refuse("Dataplane networking.inbound[i].serviceProbe.timeout", "networking.inbound[0].serviceProbe = {timeout: -1s}", "networking.inbound[0].serviceProbe.timeout", positive),
		refuse("Dataplane networking.inbound[i].serviceProbe.unhealthyThreshold", "networking.inbound[0].serviceProbe = {unhealthyThreshold: 0}", "networking.inbound[0].serviceProbe.unhealthyThreshold", positive),
		refuse("Dataplane networking.inbound[i].serviceProbe.healthyThreshold", "networking.inbound[0].serviceProbe = {healthyThreshold: 0}", "networking.inbound[0].serviceProbe.healthyThreshold", positive),
		refuse("Dataplane networking.outbound[i].port", "networking.outbound = [{tags: {kuma.io/service: a}}]", "networking.outbound[0].port", badPort),
		refuse("Dataplane networking.outbound[i].address", "networking.outbound = [{address: here, port: 1, tags: {kuma.io/service: a}}]", "networking.outbound[0].address", badIP),
		refuse("Dataplane networking.outbound[i].tags", "networking.outbound = [{port: 1}]", "networking.outbound[0].tags", noService),
		refuse("Dataplane networking.outbound[i].tags", "networking.outbound = [{port: 1, tags: {version: v1}}]", "networking.outbound[0].tags", noService),
		accept("Dataplane networking.outbound[i].tags", "networking.outbound = [{port: 1, service: a}]"),
		refuse("Dataplane networking.inbound", delegated+"networking.inbound = [{port: 80, tags: {kuma.io/service: a}}]", "networking.inbound", "inbound cannot be defined for delegated gateways"),
		refuse("Dataplane networking.inbound #2", builtin+"networking.inbound = [{port: 80, tags: {kuma.io/service: a}}]", "networking.inbound", "inbound cannot be defined for builtin gateways"),
		refuse("Dataplane networking.outbound", builtin+"networking.outbound = [{port: 80, tags: {kuma.io/service: a}}]", "networking.outbound", "outbound cannot be defined for builtin gateways"),
		refuse("Dataplane networking.probes", builtin+"probes = {port: 9000}", "networking.probes", "probes cannot be defined for builtin gateways"),
		refuse("Dataplane networking.gateway.tags", "networking = {address: 192.168.0.1, gateway: {tags: {a: b}}}", "networking.gateway.tags", noService),
		refuse(`Dataplane networking.gateway.tags["kuma.io/protocol"]`, delegated+`networking.gateway.tags["kuma.io/protocol"] = http`,
			`networking.gateway.tags["kuma.io/protocol"]`, `other values than tcp are not allowed, provided value "http"`),
		refuse("Dataplane probes.port", "probes = {}", "probes.port", badPort),
		refuse("Dataplane probes.endpoints[i].inboundPort", "probes = {port: 9000, endpoints: [{inboundPath: /a, path: /b}]}", "probes.endpoints[0].inboundPort", badPort),
		refuse("Dataplane probes.endpoints[i].inboundPath", "probes = {port: 9000, endpoints: [{inboundPort: 1, inboundPath: a, path: /b}]}", "probes.endpoints[0].inboundPath", urlPath),
		refuse("Dataplane probes.endpoints[i].path", `probes = {port: 9000, endpoints: [{inboundPort: 1, inboundPath: /a, path: "/b\u0001"}]}`, "probes.endpoints[0].path", urlPath),
		refuse("Dataplane metrics.type", "metrics = {type: statsd}", "metrics.type", `unknown backend type. Available backends: "prometheus"`),
		accept("Dataplane metrics.type", delegated+"metrics = {type: statsd}"),
		refuse("Dataplane metrics.conf...", "metrics = {type: prometheus, conf: {envoy: {filterRegex: '('}}}", "metrics.conf.envoy.filterRegex",
			"provided regexp isn't correct: error parsing regexp: missing closing ): `(`"),

		refuse("Dataplane (whole)", "networking.inbound[1] = {port: 81, tags: {kuma.io/service: a, team: x}}", "networking.inbound[0].tags",
			`must meet one of the requirements that mesh "demo" has for dataplane proxies`).
			given(constrained(`{requirements: [{tags: {team: "*"}}, {tags: {owner: a}}]}`)).differs("decision 14"),
		refuse("Dataplane (whole)", "networking.inbound[0].tags.env = scratch", "networking.inbound[0].tags",
			`are not allowed by the restrictions[0] that mesh "demo" has for dataplane proxies`).
			given(constrained("{restrictions: [{tags: {env: scratch}}]}")).differs("decision 14"),
		refuse("Dataplane (whole)", delegated+"networking.gateway.tags.env = scratch", "networking.gateway.tags",
			`are not allowed by the restrictions[0] that mesh "demo" has for dataplane proxies`).
			given(constrained("{restrictions: [{tags: {env: scratch}}]}")).differs("decision 14"),
		accept("Dataplane (whole)", "networking.inbound[0].tags.owner = a").given(constrained("{requirements: [{tags: {team: x}}, {tags: {owner: a}}], restrictions: [{tags: {owner: b}}]}")),
		accept("Dataplane (whole)", "networking.inbound[0].tags = {service: a}").given(constrained(`{requirements: [{tags: {kuma.io/service: "*"}}]}`)).because(5),

		refuse("ZoneIngress networking.port", "networking.port -", "networking.port", badPort),
		refuse("ZoneIngress networking.advertisedPort", "networking.advertisedAddress = a.b\nnetworking.advertisedPort = 65536", "networking.advertisedPort", badPort),
		refuse("ZoneIngress networking.advertisedAddress", "networking.advertisedPort = 1", "networking.advertisedAddress", "has to be defined with advertisedPort"),
		refuse("ZoneIngress networking.advertisedPort #2", "networking.advertisedAddress = a.b", "networking.advertisedPort", "has to be defined with advertisedAddress"),
		refuse("ZoneIngress networking.address.address", "networking.address = 0.0.0.0", "networking.address.address", anyAddress),
		refuse("ZoneIngress networking.address.address", "networking.address = a_-..", "networking.address.address", badAddress),
		refuse("ZoneIngress networking.advertisedAddress.address", "networking.advertisedAddress = '::'\nnetworking.advertisedPort = 1", "networking.advertisedAddress.address", anyAddress),
		refuse("ZoneIngress networking.admin.port", "networking.address = 127.0.0.1\nnetworking.admin = {port: 10001}", "networking.admin.port", "must differ from port"),
		accept("ZoneIngress networking.admin.port", "networking.admin = {port: 10001}"),
		refuse("ZoneIngress availableService[i].tags", "availableServices = [{tags: {version: v1}}]", "availableService[0].tags", noService),
		refuse("ZoneEgress networking.port", "networking.port = 70000", "networking.port", badPort),
		refuse("ZoneEgress networking.address.address", "networking.address = '::'", "networking.address.address", anyAddress),
		refuse("ZoneEgress networking.address.address", "networking.address = 'a b'", "networking.address.address", badAddress),
		refuse("ZoneEgress networking.admin.port", "networking.address = 127.0.0.1\nnetworking.admin = {port: 10002}", "networking.admin.port", "must differ from port"),
	}
	return cases
}

func externalServiceCases() []Case {
	const where = "networking.address"
	return []Case{
		refuse("ExternalService networking", "networking -", "networking", "should have networking"),
		refuse("ExternalService networking.address", "networking.address -", where, "address can't be empty"),
		refuse("ExternalService networking.address #2", "networking.address = httpbin.org", where, "unable to parse address"),
		refuse("ExternalService networking.address #3", "networking.address = 'a b:80'", where, "address has to be a valid IP address or a domain name"),
		refuse("ExternalService networking.address #4", "networking.address = 'httpbin.org:http'", where, "unable to parse port in address"),
		refuse("ExternalService networking.address #5", "networking.address = 'httpbin.org:65536'", where, badPort),
		refuse("ExternalService networking.tls.serverName", "networking.tls = {serverName: ''}", "networking.tls.serverName", empty),
		refuse("ExternalService networking.tls.caCert", "networking.tls = {caCert: {}}", "networking.tls.caCert", noSource),
		refuse("ExternalService networking.tls.caCert", "networking.tls = {caCert: {secret: ''}}", "networking.tls.caCert", noSource),
		refuse("ExternalService networking.tls.clientCert", "networking.tls = {clientCert: {inline: ''}}", "networking.tls.clientCert", noSource),
		refuse("ExternalService networking.tls.clientKey", "networking.tls = {clientKey: {inlineString: ''}}", "networking.tls.clientKey", noSource),
		refuse("ExternalService tags", "tags = {version: v1}", "tags", noService),
		refuse("ExternalService tags", `tags["kuma.io/protocol"] = smtp`, `tags["kuma.io/protocol"]`,
			`tag "kuma.io/protocol" has an invalid value "smtp". Allowed values: grpc, http, http2, kafka, tcp`).differs("this is the message that the row refers to"),
		refuse("ExternalService externalservice", `tags.version = "1"`, "externalservice",
			"ExternalService would match RateLimit 'x' whose destination has more tags than kuma.io/service, which is not supported").
			given(Sample("RateLimit", `destinations[0].match = {kuma.io/service: "*", version: "1"}`)),
		accept("ExternalService externalservice", "").given(Sample("RateLimit", `destinations[0].match = {kuma.io/service: httpbin, version: "1"}`)),
		accept("ExternalService externalservice", "networking.address = '[::1]:80'"),
	}
}

func meshCases() []Case {
	const (
		used   = `"a" name is already used for another backend`
		format = "has to be a valid format"
	)
	builtin := func(changes string) string {
		return "mtls = {backends: [{name: a, type: builtin}]}\n" + changes
	}
	tracing := func(changes string) string {
		return "tracing = {backends: [{name: a, type: zipkin, conf: {url: 'http://zipkin:9411/api'}}]}\n" + changes
	}
	logging := func(changes string) string {
		return "logging = {backends: [{name: a, type: file, conf: {path: /tmp/log}}]}\n" + changes
	}
	metrics := func(changes string) string {
		return "metrics = {backends: [{name: a, type: prometheus}]}\n" + changes
	}
	listed := func(authorities int) string {
		var list strings.Builder
		for i := range authorities {
			fmt.Fprintf(&list, "{name: a%d, type: builtin},", i)
		}
		return "mtls = {backends: [" + list.String() + "]}"
	}
	return []Case{
		accept("Mesh mtls.backends", listed(16)).because(2),
		refuse("Mesh mtls.backends", listed(17), "mtls.backends", "must have at most 16 elements").because(2),
		accept("Mesh mtls.backends", builtin("mtls.enabledBackend = a\nmtls.backends[1] = {name: b, type: builtin}")).because(2),
		refuse("Mesh mtls.backends[i].name", builtin("mtls.backends[1] = {name: a, type: builtin}"), "mtls.backends[1].name", used),
		refuse("Mesh mtls.enabledBackend", builtin("mtls.enabledBackend = b"), "mtls.enabledBackend", noBackend),
		refuse("Mesh mtls.dpcert.rotation.expiration", builtin("mtls.backends[0].dpCert = {rotation: {expiration: soon}}"), "mtls.dpcert.rotation.expiration", format),
		accept("Mesh mtls.dpcert.rotation.expiration", builtin("mtls.backends[0].dpCert = {rotation: {expiration: 2w}}")),
		refuse("Mesh mtls.backends[i].dpCert.requestTimeout", builtin("mtls.backends[0].dpCert = {requestTimeout: -1s}"), "mtls.backends[0].dpCert.requestTimeout", negative).because(14),
		refuse("Mesh mtls.backends[i].type", "mtls = {backends: [{name: a, type: vault}]}", "mtls.backends[0].type", "could not find installed plugin for this type"),
		refuse("Mesh mtls.backends[i].conf.mtls.backends.name", builtin("mtls.backends[0].name = "+strings.Repeat("abcdefghi.", 25)+"a"),
			"mtls.backends[0].conf.mtls.backends.name", "Backend name is too long. Max length: 255"),
		refuse("Mesh mtls.backends[i].conf.mtls.backends.name #2", builtin("mtls.backends[0].name = A_"),
			"mtls.backends[0].conf.mtls.backends.name", `"A_" name must be valid dns name`),
		refuse("Mesh mtls.backends[i].conf.caCert.RSAbits", builtin("mtls.backends[0].conf = {caCert: {RSAbits: 100000}}"),
			"mtls.backends[0].conf.caCert.RSAbits", "must be in the range [2048, 4096]").differs("sizes of RSA keys have bounds"),
		refuse("Mesh mtls.backends[i].conf.caCert.expiration", builtin("mtls.backends[0].conf = {caCert: {expiration: soon}}"),
			"mtls.backends[0].conf.caCert.expiration", "must be a number above 0 and a unit, such as 10y or 30d").differs("lifetimes of builtin authorities are checked"),
		refuse("Mesh mtls.backends[i].conf.caCert.expiration", builtin("mtls.backends[0].conf = {caCert: {expiration: 10}}"),
			"mtls.backends[0].conf", "could not parse config: invalid value for string field expiration: 10").differs("a configuration of the wrong form is refused for every kind of backend"),
		refuse("Mesh mtls", "routing = {zoneEgress: true}", "mtls", "has to be set when zoneEgress enabled"),
		refuse("Mesh mtls", builtin("routing = {zoneEgress: true}"), "mtls", "has to be set when zoneEgress enabled"),

		refuse("Mesh tracing.backends[i].name", tracing("tracing.backends[0].name -"), "tracing.backends[0].name", empty),
		refuse("Mesh tracing.backends[i].name", tracing("tracing.backends[1] = {name: a, type: datadog, conf: {address: a, port: 1}}"), "tracing.backends[1].name", used),
		refuse("Mesh tracing.backends[i].sampling", tracing("tracing.backends[0].sampling = 100.1"), "tracing.backends[0].sampling", percent),
		refuse("Mesh tracing.backends[i].type", tracing("tracing.backends[0].type = jaeger"), "tracing.backends[0].type", `unknown backend type. Available backends: "zipkin", "datadog"`),
		refuse("Mesh tracing.backends[i].config.url", tracing("tracing.backends[0].conf -"), "tracing.backends[0].config.url", empty),
		refuse("Mesh tracing.backends[i].config.url", tracing("tracing.backends[0].conf.url = zipkin"), "tracing.backends[0].config.url", "invalid URL"),
		refuse("Mesh tracing.backends[i].config.url", tracing("tracing.backends[0].conf.url = http://zipkin/api"), "tracing.backends[0].config.url", "port has to be explicitly specified"),
		refuse("Mesh tracing.backends[i].config.apiVersion", tracing("tracing.backends[0].conf.apiVersion = v3"), "tracing.backends[0].config.apiVersion", "has invalid value. Allowed values: httpJsonV1, httpJson, httpProto"),
		refuse("Mesh tracing.backends[i].config.address", "tracing = {backends: [{name: a, type: datadog, conf: {port: 1}}]}", "tracing.backends[0].config.address", empty),
		refuse("Mesh tracing.backends[i].config.port", "tracing = {backends: [{name: a, type: datadog, conf: {address: a}}]}", "tracing.backends[0].config.port", badPort),
		refuse("Mesh tracing.defaultBackend", tracing("tracing.defaultBackend = b"), "tracing.defaultBackend", "has to be set to one of the tracing backend in mesh"),

		refuse("Mesh logging.backends[i].name", logging("logging.backends[0].name = ''"), "logging.backends[0].name", empty),
		refuse("Mesh logging.backends[i].name", logging("logging.backends[1] = {name: a, type: file, conf: {path: /a}}"), "logging.backends[1].name", used),
		refuse("Mesh logging.backends[i].format", logging(`logging.backends[0].format = "took %DURATION"`), "logging.backends[0].format", "format string is not valid: expected a command such as %START_TIME% at position 5"),
		refuse("Mesh logging.backends[i].format", logging(`logging.backends[0].format = "%KUMA_NOTHING%"`), "logging.backends[0].format", "format string is not valid: unknown command %KUMA_NOTHING% at position 0"),
		accept("Mesh logging.backends[i].format", logging(`logging.backends[0].format = "100%% [%START_TIME(%Y/%m/%d)%] %REQ(X-A?:PATH):9% %KUMA_MESH%"`)),
		refuse("Mesh logging.backends[i].type", logging("logging.backends[0].type = kafka"), "logging.backends[0].type", `unknown backend type. Available backends: "tcp", "file"`),
		refuse("Mesh logging.backends[i].config.path", logging("logging.backends[0].conf = {}"), "logging.backends[0].config.path", empty),
		refuse("Mesh logging.backends[i].config.address", "logging = {backends: [{name: a, type: tcp}]}", "logging.backends[0].config.address", empty),
		refuse("Mesh logging.backends[i].config.address", "logging = {backends: [{name: a, type: tcp, conf: {address: loki}}]}", "logging.backends[0].config.address", "has to be in format of HOST:PORT"),
		refuse("Mesh logging.backends[i].config", logging("logging.backends[0].conf = {path: 5}"), "logging.backends[0].config", "could not parse config: invalid value for string field path: 5"),
		refuse("Mesh logging.defaultBackend", logging("logging.defaultBackend = b"), "logging.defaultBackend", "has to be set to one of the logging backend in mesh"),

		refuse("Mesh metrics.backends[i].name", metrics("metrics.backends[1] = {name: a, type: prometheus}"), "metrics.backends[1].name", used),
		refuse("Mesh metrics.backends[i].type", metrics("metrics.backends[0].type = statsd"), "metrics.backends[0].type", `unknown backend type. Available backends: "prometheus"`),
		refuse("Mesh metrics.backends[i].conf.envoy.filterRegex", metrics("metrics.backends[0].conf = {envoy: {filterRegex: '['}}"), "metrics.backends[0].conf.envoy.filterRegex",
			"provided regexp isn't correct: error parsing regexp: missing closing ]: `[`"),
		refuse("Mesh metrics.backends[i].conf.aggregate[j].name", metrics("metrics.backends[0].conf = {aggregate: [{name: a}, {name: a}]}"), "metrics.backends[0].conf.aggregate[1].name",
			"duplicate entry: a, values have to be unique"),
		refuse("Mesh metrics.backends[i].conf.port", metrics("metrics.backends[0].conf = {port: 70000}"), "metrics.backends[0].conf.port", badPort).differs("ports of metrics have bounds"),
		refuse("Mesh metrics.enabledBackend", metrics("metrics.enabledBackend = b"), "metrics.enabledBackend", noBackend),
		refuse("Mesh constraints.dataplaneProxy.requirements[i].tags", "constraints = {dataplaneProxy: {requirements: [{}]}}", "constraints.dataplaneProxy.requirements[0].tags", noTag),
		refuse("Mesh constraints.dataplaneProxy.restrictions[i].tags", "constraints = {dataplaneProxy: {restrictions: [{tags: {a: b}}, {tags: {}}]}}", "constraints.dataplaneProxy.restrictions[1].tags", noTag),
	}
}

// authorityCases are the cases of certificate authorities that users provide, and of changing one.
func authorityCases() []Case {
	const (
		conf      = "mtls.backends[0].conf"
		forbidden = "Changing CA when mTLS is enabled is forbidden. To change it without failing requests, first add the new backend " +
			"beside the enabled one, then make it the enabledBackend while both stay listed, and remove the old one " +
			"when all proxies have new certificates. Or disable mTLS first"
	)
	cert, key := Authority()
	leaf, leafKey := pair(func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement })
	provided := func(changes string) string {
		return "mtls = {enabledBackend: a, backends: [{name: a, type: provided, conf: {cert: {secret: cert}, key: {secret: key}}}]}\n" + changes
	}
	secret := func(name, text string) string {
		body := Sample("Secret", "data = "+base64.StdEncoding.EncodeToString([]byte(text)))
		return strings.Replace(body, "name: x\n", "name: "+name+"\n", 1)
	}
	missing := func(name string) string {
		return `could not load data: Resource not found: type="Secret" name="` + name + `" mesh="` + Mesh + `"`
	}
	inline := func(cert, key string) string {
		return provided(conf + " = {cert: {inlineString: " + strconv.Quote(cert) + "}, key: {inlineString: " + strconv.Quote(key) + "}}")
	}
	two := func(enabled string) string {
		return "mtls = {enabledBackend: " + enabled + ", backends: [{name: a, type: builtin}, {name: b, type: builtin}]}"
	}
	one := func(name string) string {
		return "mtls = {enabledBackend: " + name + ", backends: [{name: " + name + ", type: builtin}]}"
	}
	return []Case{
		refuse("Mesh mtls.backends[i].conf.cert / .key", provided(conf+" -"), conf+".cert", defined, conf+".key", defined),
		refuse("Mesh mtls.backends[i].conf.cert / .key", provided(conf+".key -"), conf+".key", defined),
		refuse("Mesh mtls.backends[i].conf.cert.secret (.inline .file)", provided(conf+" = {cert: {secret: ''}, key: {file: ''}}"),
			conf+".cert.secret", empty, conf+".key.file", empty),
		refuse("Mesh mtls.backends[i].conf.cert.secret (.inline .file)", provided(conf+" = {cert: {inline: ''}, key: {inlineString: ''}}"),
			conf+".cert.inline", empty, conf+".key.inlineString", empty),
		refuse("Mesh mtls.backends[i].conf.cert", provided(conf+".cert = {}"), conf+".cert", "data source has to be chosen. Available sources: secret, file, inline"),
		refuse("Mesh mtls.backends[i].conf", provided(conf+".key = a private key"), conf,
			"could not parse config: cert and key must be objects with one of secret, file, inline, inlineString").
			differs("a configuration of the wrong form is refused for every kind of backend"),
		refuse("Mesh mtls.backends[i].conf.cert and .key", provided(""), conf+".cert", missing("cert"), conf+".key", missing("key")).was(""),
		refuse("Mesh mtls.backends[i].conf.cert and .key", provided(""), conf+".key", missing("key")).was("").given(secret("cert", cert)),
		refuse("Mesh mtls.backends[i].conf.cert #2", provided(""), conf+".cert", "not a valid TLS key pair: failed to find any PEM data in certificate input").
			was("").given(secret("cert", "test"), secret("key", key)),
		refuse("Mesh mtls.backends[i].conf.cert #2", inline(cert, leafKey), conf+".cert", "not a valid TLS key pair: private key does not match public key"),
		refuse("Mesh mtls.backends[i].conf.cert[j]", inline(cert+leaf, key),
			conf+".cert[1]", "basic constraint 'CA' must be set to 'true' (see X509-SVID: 4.1. Basic Constraints)",
			conf+".cert[1]", "key usage extension 'keyCertSign' must be set (see X509-SVID: 4.3. Key Usage)",
			conf+".cert[1]", "key usage extension 'keyAgreement' must NOT be set (see X509-SVID: Appendix A)"),
		accept("Mesh mtls.backends[i].conf.cert and .key", provided("")).was("").given(secret("cert", cert), secret("key", key)),
		accept("Mesh mtls.backends[i].conf.cert and .key", inline(cert, key)),
		accept("Mesh mtls.backends[i].conf.cert and .key", provided("mtls.enabledBackend -")).because(1),
		accept("Mesh mtls.backends[i].conf.cert and .key", provided(conf+" = {cert: {file: /etc/ca.pem}, key: {file: /etc/ca.key}}")).
			differs("files that a mesh names are not opened when it is written"),

		refuse("Mesh mtls.enabledBackend #2", one("b"), "mtls.enabledBackend", forbidden).was(one("a")),
		refuse("Mesh mtls.enabledBackend #2", two("b"), "mtls.enabledBackend", forbidden).was(one("a")),
		refuse("Mesh mtls.enabledBackend #2", one("b"), "mtls.enabledBackend", forbidden).was(two("a")),
		refuse("Mesh mtls.enabledBackend #2", provided("")+"mtls.backends[0].conf = {cert: {file: /c}, key: {file: /k}}", "mtls.enabledBackend", forbidden).was(one("a")).because(2),
		accept("Mesh mtls.enabledBackend #2", two("a")).was(one("a")).because(2),
		accept("Mesh mtls.enabledBackend #2", two("b")).was(two("a")).because(2),
		accept("Mesh mtls.enabledBackend #2", one("b")).was(two("b")).because(2),
		accept("Mesh mtls.enabledBackend #2", "").was(one("a")),
		accept("Mesh mtls.enabledBackend #2", one("a")).was(""),
	}
}

// Authority makes the certificate and key of a certificate authority that a mesh may use, in PEM.
func Authority() (cert, key string) {
	return pair(func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign })
}

// pair makes a certificate that signs itself, and its key, in PEM.
func pair(change func(*x509.Certificate)) (cert, key string) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: Mesh}, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	change(template)
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	must(err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	must(err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
}
