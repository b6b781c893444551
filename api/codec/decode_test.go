package codec_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/meridian-mesh/meridian/api/codec"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// violations renders what is wrong as "field: message" lines.
func violations(t *testing.T, err error) []string {
	t.Helper()
	invalid, ok := errors.AsType[*codec.Error](err)
	if !ok {
		t.Fatalf("got %v, want a *codec.Error", err)
	}
	var lines []string
	for _, v := range invalid.Violations {
		lines = append(lines, v.Field+": "+v.Message)
	}
	return lines
}

func TestWrongBodiesAreExplained(t *testing.T) {
	deep := strings.Repeat(`{"conf":`, 101) + "1" + strings.Repeat("}", 101)
	tests := map[string]struct {
		typ  resource.Type
		body string
		want []string
	}{
		"an empty body": {"Zone", " \n", []string{": the body is empty"}},
		"an array":      {"Zone", "[]", []string{": must be an object, got an array"}},
		"null":          {"Zone", "null", []string{": must be an object, got null"}},
		"a syntax error names line and column, in characters": {
			"Zone", "{\n \"näme\": \"é\" x}",
			[]string{": malformed JSON at line 2, column 14: expected ',' or '}' after a member, got 'x'"},
		},
		"garbage after the value": {
			"Zone", `{} {}`, []string{": malformed JSON at line 1, column 4: there is more after the end of the value: '{'"},
		},
		"an unfinished object": {
			"Zone", `{"name":"a",`, []string{": malformed JSON at line 1, column 13: expected the name of a member in double quotes, got end of the body"},
		},
		"a trailing comma": {
			"Zone", `{"name":"a",}`, []string{": malformed JSON at line 1, column 13: expected the name of a member in double quotes, got '}'"},
		},
		"single quotes": {
			"Zone", `{'name':1}`, []string{`: malformed JSON at line 1, column 2: expected the name of a member in double quotes, got '\''`},
		},
		"a missing colon":         {"Zone", `{"a" 1}`, []string{": malformed JSON at line 1, column 6: expected ':' after the name of a member, got '1'"}},
		"no value":                {"Zone", `{"a":}`, []string{": malformed JSON at line 1, column 6: expected a value, got '}'"}},
		"an open array":           {"Zone", `{"a":[1 2]}`, []string{": malformed JSON at line 1, column 9: expected ',' or ']' after an element, got '2'"}},
		"an open string":          {"Zone", `{"a":"b}`, []string{": malformed JSON at line 1, column 6: the string has no end"}},
		"an escape at the end":    {"Zone", `{"a":"b\`, []string{": malformed JSON at line 1, column 8: the string has no end"}},
		"an unknown escape":       {"Zone", `{"a":"\x"}`, []string{": malformed JSON at line 1, column 7: unknown escape in a string"}},
		"a short escape":          {"Zone", `{"a":"\u12"}`, []string{`: malformed JSON at line 1, column 7: \u needs four hexadecimal digits`}},
		"half a surrogate pair":   {"Zone", `{"a":"\ud800x"}`, []string{": malformed JSON at line 1, column 7: half a surrogate pair"}},
		"a raw control character": {"Zone", "{\"a\":\"\n\"}", []string{`: malformed JSON at line 1, column 7: control characters in a string must be escaped, got '\n'`}},
		"a leading zero":          {"Zone", `{"a":01}`, []string{": malformed JSON at line 1, column 7: not a number"}},
		"a bare point":            {"Zone", `{"a":1.}`, []string{": malformed JSON at line 1, column 7: not a number"}},
		"a lonely minus":          {"Zone", `{"a":-}`, []string{": malformed JSON at line 1, column 6: not a number"}},
		"bytes that are not UTF-8": {
			"Zone", "{\"a\":\"\xff\"}", []string{": malformed JSON at line 1, column 7: not UTF-8"},
		},
		"too deep": {"Zone", deep, []string{": malformed JSON at line 1, column 801: nested deeper than 100 levels"}},
		"meta of wrong types": {
			"Dataplane", `{"type":1,"mesh":true,"name":["x"],"labels":{"a":1,"b":null},"creationTime":{},"networking":null}`,
			[]string{
				"type: must be a string, got a number", "mesh: must be a string, got a boolean", "name: must be a string, got an array",
				`labels["a"]: must be a string, got a number`, `labels["b"]: must be a string, got null`,
			},
		},
		"wrong types by path, all together": {
			"Dataplane",
			`{"networking":{"address":1,"inbound":[{"port":1},{"port":"80","tags":{"version":2,"a b":null}}, 7, null],"outbound":{},"admin":[],
			  "gateway":{"type":{}},"transparentProxying":{"directAccessServices":["a",1]}}}`,
			[]string{
				"networking.address: must be a string, got a number",
				"networking.inbound[1].port: must be a number, got a string",
				`networking.inbound[1].tags["version"]: must be a string, got a number`,
				`networking.inbound[1].tags["a b"]: must be a string, got null`,
				"networking.inbound[2]: must be an object, got a number",
				"networking.inbound[3]: must be an object, got null",
				"networking.outbound: must be an array, got an object",
				"networking.admin: must be an object, got an array",
				"networking.gateway.type: must be a string, got an object",
				"networking.transparentProxying.directAccessServices[1]: must be a string, got a number",
			},
		},
		"numbers that do not fit": {
			"Dataplane",
			`{"networking":{"inbound":[{"port":-1},{"port":4294967296},{"port":1.5},{"port":1e999},{"port":80.0},{"port":8e3}]}}`,
			[]string{
				"networking.inbound[0].port: must be between 0 and 4294967295, got -1",
				"networking.inbound[1].port: must be between 0 and 4294967295, got 4294967296",
				"networking.inbound[2].port: must be a whole number, got 1.5",
				"networking.inbound[3].port: must be between 0 and 4294967295, got 1e999",
			},
		},
		"64-bit numbers that do not fit": {
			"TrafficRoute",
			`{"conf":{"loadBalancer":{"ringHash":{"minRingSize":"18446744073709551616","maxRingSize":"x"}}}}`,
			[]string{
				"conf.loadBalancer.ringHash.minRingSize: must be between 0 and 18446744073709551615, got 18446744073709551616",
				"conf.loadBalancer.ringHash.maxRingSize: must be a number, got a string",
			},
		},
		"floats that do not fit": {
			"HealthCheck", `{"conf":{"healthyPanicThreshold":1e39}}`, []string{"conf.healthyPanicThreshold: is too large a number: 1e39"},
		},
		"an unknown enum value names the known ones": {
			"Dataplane", `{"networking":{"gateway":{"type":"FANCY"}}}`,
			[]string{`networking.gateway.type: has the unknown value "FANCY"; allowed: DELEGATED, BUILTIN`},
		},
		"an unknown enum number": {
			"Dataplane", `{"networking":{"gateway":{"type":7}}}`,
			[]string{"networking.gateway.type: has the unknown value 7; allowed: DELEGATED, BUILTIN"},
		},
		"wrappers are plain values": {
			"Zone", `{"enabled":{"value":true}}`, []string{"enabled: must be a boolean, got an object"},
		},
		"bad base64": {"Secret", `{"data":"%%"}`, []string{"data: must be base64"}},
		"bad durations": {
			"Timeout", `{"conf":{"connectTimeout":"5","tcp":{"idleTimeout":5},"http":{"requestTimeout":"315576000001s","idleTimeout":"99999999999999999999s"}}}`,
			[]string{
				`conf.connectTimeout: must be a duration such as "5s", "0.250s" or "1m30s", got "5"`,
				`conf.tcp.idleTimeout: must be a duration such as "5s", "0.250s" or "1m30s", got a number`,
				`conf.http.requestTimeout: must be between -315576000000s and 315576000000s, got "315576000001s"`,
				`conf.http.idleTimeout: must be between -315576000000s and 315576000000s, got "99999999999999999999s"`,
			},
		},
		"bad times": {
			"MeshInsight", `{"lastSync":"yesterday"}`, []string{`lastSync: must be a time such as "2006-01-02T15:04:05Z", got "yesterday"`},
		},
		"two arms of a oneof": {
			"ExternalService", `{"networking":{"tls":{"caCert":{"secret":"a","file":"b"}}}}`,
			[]string{"networking.tls.caCert.file: cannot be given together with secret"},
		},
		"a name given twice": {
			"Zone", `{"name":"a","enabled":true,"name":"b","other":{"x":1,"x":2}}`,
			[]string{"name: is given twice", "other.x: is given twice"},
		},
		"one field under both its names": {
			"TrafficRoute", `{"conf":{"loadBalancer":{"roundRobin":{}},"load_balancer":{"random":{}}}}`,
			[]string{"conf.load_balancer: is given twice, as loadBalancer and as load_balancer"},
		},
		"a free structure is checked too": {
			"Mesh", `{"mtls":{"backends":[{"conf":{"cert":{"a":1e999}}},{"conf":[]}]}}`,
			[]string{
				"mtls.backends[0].conf.cert.a: is too large a number: 1e999",
				"mtls.backends[1].conf: must be an object, got an array",
			},
		},
		"a JSON type without a spec": {"MeshTrace", `{"name":"a","default":{}}`, []string{"spec: must be defined"}},
		"a JSON type with null spec": {"MeshTrace", `{"spec":null}`, []string{"spec: must be defined"}},
		"a JSON type whose spec is no object": {
			"MeshTrace", `{"spec":"x"}`, []string{"spec: must be an object, got a string"},
		},
		"wrong types inside a JSON spec": {
			"MeshTrafficPermission",
			`{"spec":{"targetRef":{"kind":1,"tags":{"a":1}},"from":[{"default":{"action":"MAYBE"}},{"default":{"action":"AllowWithShadowDeny"}},1]}}`,
			[]string{
				"spec.targetRef.kind: must be a string, got a number",
				`spec.targetRef.tags["a"]: must be a string, got a number`,
				`spec.from[0].default.action: has the unknown value "MAYBE"; allowed: ALLOW, DENY, ALLOW_WITH_SHADOW_DENY, Allow, Deny, AllowWithShadowDeny`,
				"spec.from[2]: must be an object, got a number",
			},
		},
		"wrong types inside another JSON spec": {
			"MeshTrace", `{"spec":{"default":{"backends":{},"sampling":{"overall":1.5,"random":"50","client":true}}}}`,
			[]string{
				"spec.default.backends: must be an array, got an object",
				"spec.default.sampling.overall: must be a whole number, got 1.5",
				"spec.default.sampling.client: must be a number, got a boolean",
			},
		},
		"a long name is cut in the path": {
			"Dataplane", `{"networking":{"gateway":{"tags":{"` + strings.Repeat("x", 1000) + `":1}}}}`,
			[]string{`networking.gateway.tags["` + strings.Repeat("x", 128) + `…"]: must be a string, got a number`},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			doc, err := codec.Decode(row(t, tt.typ), "application/json", []byte(tt.body))
			if err == nil {
				t.Fatalf("decoded to %+v", doc)
			}
			if diff := cmp.Diff(tt.want, violations(t, err)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestReportsAreBounded(t *testing.T) {
	body := `{"networking":{"inbound":[` + strings.Repeat("1,", 500) + `1]}}`
	_, err := codec.Decode(row(t, "Dataplane"), "application/json", []byte(body))
	if got := len(violations(t, err)); got != 100 {
		t.Errorf("%d violations, want 100", got)
	}
	var unknown strings.Builder
	unknown.WriteString(`{"name":"x"`)
	for i := range 500 {
		fmt.Fprintf(&unknown, `,"f%d":1`, i)
	}
	unknown.WriteString("}")
	if got := len(decode(t, row(t, "Zone"), unknown.String()).Unknown); got != 100 {
		t.Errorf("%d unknown fields, want 100", got)
	}
}

func TestAcceptedForms(t *testing.T) {
	second := func(s int64, n int32) *durationpb.Duration { return &durationpb.Duration{Seconds: s, Nanos: n} }
	timeout := func(d *durationpb.Duration) proto.Message {
		return &meshv1.Timeout{Conf: &meshv1.Timeout_Conf{ConnectTimeout: d}}
	}
	tests := map[string]struct {
		typ     resource.Type
		body    string
		want    proto.Message
		unknown []string
	}{
		"fields under their names in the schema": {
			"TrafficRoute", `{"conf":{"load_balancer":{"ring_hash":{"min_ring_size":64}}}}`,
			&meshv1.TrafficRoute{Conf: &meshv1.TrafficRoute_Conf{LoadBalancer: &meshv1.TrafficRoute_LoadBalancer{
				LbType: &meshv1.TrafficRoute_LoadBalancer_RingHash_{RingHash: &meshv1.TrafficRoute_LoadBalancer_RingHash{MinRingSize: 64}},
			}}}, nil,
		},
		"an enum by number": {
			"Dataplane", `{"networking":{"gateway":{"type":1}}}`,
			&meshv1.Dataplane{Networking: &meshv1.Dataplane_Networking{Gateway: &meshv1.Dataplane_Networking_Gateway{
				Type: meshv1.Dataplane_Networking_Gateway_BUILTIN,
			}}}, nil,
		},
		"numbers that are whole though they do not look so": {
			"Dataplane", `{"networking":{"admin":{"port":9.9e3}}}`,
			&meshv1.Dataplane{Networking: &meshv1.Dataplane_Networking{Admin: &meshv1.EnvoyAdmin{Port: 9900}}}, nil,
		},
		"the largest 64-bit number": {
			"TrafficRoute", `{"conf":{"loadBalancer":{"ringHash":{"maxRingSize":18446744073709551615}}}}`,
			&meshv1.TrafficRoute{Conf: &meshv1.TrafficRoute_Conf{LoadBalancer: &meshv1.TrafficRoute_LoadBalancer{
				LbType: &meshv1.TrafficRoute_LoadBalancer_RingHash_{RingHash: &meshv1.TrafficRoute_LoadBalancer_RingHash{MaxRingSize: 1<<64 - 1}},
			}}}, nil,
		},
		"null is absence, also beside another arm of a oneof": {
			"ExternalService", `{"networking":{"tls":{"caCert":{"secret":null,"file":"f"},"enabled":null,"serverName":null}},"tags":null}`,
			&meshv1.ExternalService{Networking: &meshv1.ExternalService_Networking{Tls: &meshv1.ExternalService_Networking_TLS{
				CaCert: fileSource("f"),
			}}}, nil,
		},
		"an empty object is present": {"Timeout", `{"conf":{}}`, &meshv1.Timeout{Conf: &meshv1.Timeout_Conf{}}, nil},
		"a duration in seconds":      {"Timeout", `{"conf":{"connectTimeout":"5s"}}`, timeout(second(5, 0)), nil},
		"a duration with a fraction": {"Timeout", `{"conf":{"connectTimeout":"0.250s"}}`, timeout(second(0, 250_000_000)), nil},
		"a duration as Go writes it": {"Timeout", `{"conf":{"connectTimeout":"1m30s"}}`, timeout(second(90, 0)), nil},
		"a duration of many centuries": {
			"Timeout", `{"conf":{"connectTimeout":"-315575999999.5s"}}`, timeout(second(-315575999999, -500_000_000)), nil,
		},
		"a negative duration": {"Timeout", `{"conf":{"connectTimeout":"-0.5s"}}`, timeout(second(0, -500_000_000)), nil},
		"a time in another time zone": {
			"MeshInsight", `{"lastSync":"2020-05-12T12:31:45.606217+02:00"}`,
			&meshv1.MeshInsight{LastSync: &timestamppb.Timestamp{Seconds: 1589279505, Nanos: 606217000}}, nil,
		},
		"base64 with the alphabet of URLs, unpadded": {
			"HealthCheck", `{"conf":{"tcp":{"send":"-_8"}}}`,
			&meshv1.HealthCheck{Conf: &meshv1.HealthCheck_Conf{Tcp: &meshv1.HealthCheck_Conf_Tcp{Send: wrapperspb.Bytes([]byte{0xfb, 0xff})}}}, nil,
		},
		"escapes in strings": {
			"TrafficLog", `{"conf":{"backend":"\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00"}}`,
			&meshv1.TrafficLog{Conf: &meshv1.TrafficLog_Conf{Backend: "\"\\/\b\f\n\r\té😀"}}, nil,
		},
		"unknown fields are listed by path": {
			"HealthCheck", `{"later":{"a":1},"conf":{"http":{"path":"/","useHttp9":true},"a b":1}}`,
			&meshv1.HealthCheck{Conf: &meshv1.HealthCheck_Conf{Http: &meshv1.HealthCheck_Conf_Http{Path: "/"}}},
			[]string{"later", "conf.http.useHttp9", `conf["a b"]`},
		},
		"the older form of a dataplane is kept": {
			"Dataplane", `{"networking":{"inbound":[{"port":1,"tags":{"service":"a"}}],"outbound":[{"port":2,"service":"b"}]}}`,
			&meshv1.Dataplane{Networking: &meshv1.Dataplane_Networking{
				Inbound:  []*meshv1.Dataplane_Networking_Inbound{{Port: 1, Tags: map[string]string{"service": "a"}}},
				Outbound: []*meshv1.Dataplane_Networking_Outbound{{Port: 2, Service: "b"}},
			}}, nil,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d := row(t, tt.typ)
			doc := decode(t, d, tt.body)
			got, err := codec.Spec(d, &store.Record{Spec: doc.Spec})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got, protocmp.Transform()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.unknown, doc.Unknown); diff != "" {
				t.Errorf("unknown fields (-want +got):\n%s", diff)
			}
		})
	}
}

func TestTheHeadOfADocument(t *testing.T) {
	tests := map[string]struct {
		typ  resource.Type
		body string
		want codec.Document
	}{
		"type, mesh, name and labels are returned as sent": {
			"TrafficLog", `{"type":"Other","mesh":"m","name":"n","labels":{"a":"b"},"creationTime":1,"modificationTime":null}`,
			codec.Document{Type: "Other", Mesh: "m", Name: "n", Labels: map[string]string{"a": "b"}},
		},
		"a mesh is ignored outside meshes, whatever it is": {
			"Zone", `{"type":"Zone","mesh":1,"name":"n","labels":{}}`, codec.Document{Type: "Zone", Name: "n"},
		},
		"the older spelling of a global secret is returned as sent": {
			"GlobalSecret", `{"type":"Secret","name":"n","labels":null}`, codec.Document{Type: "Secret", Name: "n"},
		},
		"what is absent is empty": {"Zone", `{}`, codec.Document{}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := decode(t, row(t, tt.typ), tt.body)
			got.Spec = nil
			if diff := cmp.Diff(&tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestTheSameSpecificationIsAlwaysTheSameBytes(t *testing.T) {
	d := row(t, "TrafficPermission")
	a := decode(t, d, `{"sources":[{"match":{"a":"1","b":"2","c":"3","d":"4","e":"5"}}]}`)
	for range 20 {
		b := decode(t, d, `{ "sources": [{"match":{"e":"5","d":"4","c":"3","b":"2","a":"1"}}]}`)
		if diff := cmp.Diff(a.Spec, b.Spec); diff != "" {
			t.Fatal(diff)
		}
	}
}

func TestMediaTypes(t *testing.T) {
	for mediaType, ok := range map[string]bool{
		"application/json": true, "application/json; charset=utf-8": true, "Application/JSON": true,
		"application/yaml": true, "application/x-yaml": true, "text/yaml": true,
		"": false, "text/json": false, "application/x-www-form-urlencoded": false, "application/json;;": false,
	} {
		_, err := codec.Decode(row(t, "Zone"), mediaType, []byte("{}"))
		if got := !errors.Is(err, codec.ErrMediaType); got != ok {
			t.Errorf("%q: %v", mediaType, err)
		}
	}
}

func TestYAML(t *testing.T) {
	const head = `{"type":"TrafficRoute","mesh":"m","name":"r",`
	tests := map[string]struct {
		typ        resource.Type
		yaml, json string
	}{
		"block style with comments": {
			"TrafficRoute", "---\ntype: TrafficRoute # the type\nmesh: m\nname: r\nconf:\n  split:\n  - weight: 90\n    destination:\n      kuma.io/service: \"a\"\n",
			head + `"conf":{"split":[{"weight":90,"destination":{"kuma.io/service":"a"}}]}}`,
		},
		"anchors, aliases and merge keys": {
			"TrafficRoute", "type: TrafficRoute\nmesh: m\nname: r\nsources:\n- match: &web {kuma.io/service: web, version: v1}\n- match: *web\ndestinations:\n- match: {<<: *web, version: v2}\n- match:\n    <<: [{a: b}, *web]\n    a: c\n",
			head + `"sources":[{"match":{"kuma.io/service":"web","version":"v1"}},{"match":{"kuma.io/service":"web","version":"v1"}}],` +
				`"destinations":[{"match":{"kuma.io/service":"web","version":"v2"}},{"match":{"kuma.io/service":"web","version":"v1","a":"c"}}]}`,
		},
		"numbers in other notations, nulls and times": {
			"Mesh", "name: m\nmtls:\n  backends:\n  - name: a\n    conf: {hex: 0x10, under: 1_000, plus: +5, float: 1.5, exp: 1e3, no: ~, time: 2020-01-02, yes: yes, bool: TRUE, 8: 9}\n",
			`{"name":"m","mtls":{"backends":[{"name":"a","conf":{"hex":16,"under":1000,"plus":5,"float":1.5,"exp":1e3,"no":null,"time":"2020-01-02","yes":"yes","bool":true,"8":9}}]}}`,
		},
		"a JSON specification in the order of the document": {
			"MeshTrace", "spec:\n  zeta: \"1\\n\"\n  default:\n    tags: [{literal: x, name: n}]\n    later: {a: 0x1F}\n",
			`{"spec":{"zeta":"1\n","default":{"tags":[{"literal":"x","name":"n"}],"later":{"a":31}}}}`,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d := row(t, tt.typ)
			got, err := codec.Decode(d, "application/yaml", []byte(tt.yaml))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(decode(t, d, tt.json), got); diff != "" {
				t.Errorf("(-json +yaml):\n%s", diff)
			}
		})
	}
}

func TestWrongYAMLIsExplained(t *testing.T) {
	laughs := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for c := 'b'; c < 'k'; c++ {
		laughs += fmt.Sprintf("%c: &%c [%s]\n", c, c, strings.TrimSuffix(strings.Repeat(fmt.Sprintf("*%c,", c-1), 9), ","))
	}
	tests := map[string]struct{ body, want string }{
		"a wrong type by path":        {"networking:\n  admin:\n    port: \"1\"\n", "networking.admin.port: must be a number, got a string"},
		"only comments":               {"# nothing\n", ": the body is empty"},
		"a syntax error":              {"a: [1\nb: 2\n", ": malformed YAML: line 1: did not find expected ',' or ']'"},
		"a second document":           {"a: 1\n---\nb: 2\n", ": malformed YAML: only one document is allowed, the second begins at line 2"},
		"a broken second document":    {"a: 1\n---\n[", ": malformed YAML: line 3: did not find expected node content"},
		"a name given twice":          {"networking: {}\nnetworking: {}\n", "networking: is given twice"},
		"a mapping as a name":         {"{a: b}: c\n", ": malformed YAML: line 1: a name must be a plain value"},
		"infinity":                    {"networking: {admin: {port: .inf}}\n", ": malformed YAML: line 1: not a finite number"},
		"an unknown tag":              {"a: !secret b\n", ": malformed YAML: line 1: unknown tag !secret"},
		"a number that is not one":    {"a: !!int b\n", ": malformed YAML: line 1: not a number"},
		"a merge of something else":   {"a: {<<: 1}\n", ": malformed YAML: line 1: << needs a mapping or a list of mappings"},
		"an alias inside its anchor":  {"a: &a [*a]\n", ": malformed YAML: line 1: nested deeper than 100 levels"},
		"aliases that multiply":       {laughs, ": malformed YAML: line 1: aliases stand for more than 10000 values"},
		"too deep":                    {strings.Repeat("[", 101) + strings.Repeat("]", 101), ": malformed YAML: line 1: nested deeper than 100 levels"},
		"an alias without its anchor": {"a: *b\n", ": malformed YAML: unknown anchor 'b' referenced"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			doc, err := codec.Decode(row(t, "Dataplane"), "text/yaml", []byte(tt.body))
			if err == nil {
				t.Fatalf("decoded to %+v", doc)
			}
			if diff := cmp.Diff([]string{tt.want}, violations(t, err)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestABodyThatIsNoResourceIsReadAsJSON(t *testing.T) {
	for _, tc := range []struct {
		name, mediaType, body, want, wantErr string
	}{
		{"JSON", "application/json; charset=utf-8", "{ \"a\" : [1, 2.50, null] }", `{"a":[1,2.50,null]}`, ""},
		{"YAML", "application/yaml", "a: [1, x]\nb: {c: true}\n", `{"a":[1,"x"],"b":{"c":true}}`, ""},
		{"another format", "text/plain", "a", "", "unsupported media type"},
		{"nothing", "application/json", " \n", "", "the body is empty"},
		{"broken", "application/json", `{"a"`, "", "malformed JSON at line 1, column 5"},
		{"more than one value", "application/json", `{} {}`, "", "more after the end"},
		{"a name given twice", "application/json", `{"a":{"b":1,"b":2}}`, "", "a.b is given twice"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := codec.JSON(tc.mediaType, []byte(tc.body))
			if tc.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tc.wantErr) {
					t.Errorf("got %v, want %q", err, tc.wantErr)
				}
				return
			}
			if err != nil || string(got) != tc.want {
				t.Errorf("got %s, %v; want %s", got, err, tc.want)
			}
		})
	}
}
