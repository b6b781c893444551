package policy_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/api/resource"
)

// rule is the single rule with the given configuration.
func rule(t *testing.T, typ resource.Type, conf string) *policy.Rule {
	t.Helper()
	m := newSet(t, record(typ, "p", `{"targetRef":{"kind":"Mesh"},"default":`+conf+`}`, 1)).Match(sidecar(service("web")), policy.Options{})
	return map[resource.Type]policy.Attached{
		policy.MeshTrace: m.Trace, policy.MeshAccessLog: m.AccessLog, policy.MeshTrafficPermission: m.Permission,
	}[typ].Single
}

func TestActions(t *testing.T) {
	tests := []struct {
		conf string
		want policy.Action
		fail bool
	}{
		{`{"action":"ALLOW"}`, policy.Allow, false},
		{`{"action":"Allow"}`, policy.Allow, false},
		{`{"action":"DENY"}`, policy.Deny, false},
		{`{"action":"Deny"}`, policy.Deny, false},
		{`{"action":"ALLOW_WITH_SHADOW_DENY"}`, policy.AllowWithShadowDeny, false},
		{`{"action":"AllowWithShadowDeny"}`, policy.AllowWithShadowDeny, false},
		{`{"action":"allow"}`, policy.Deny, true},
		{`{"Action":"Allow"}`, policy.Deny, true},
		{`{"action":1}`, policy.Deny, true},
		{`{}`, policy.Deny, true},
		{`[]`, policy.Deny, true},
	}
	for _, tt := range tests {
		t.Run(tt.conf, func(t *testing.T) {
			got, err := rule(t, policy.MeshTrafficPermission, tt.conf).Action()
			if got != tt.want || (err != nil) != tt.fail {
				t.Errorf("got %d, %v", got, err)
			}
		})
	}
}

func TestBackendsOfAccessLogs(t *testing.T) {
	got, err := rule(t, policy.MeshAccessLog, `{"backends":[
		{"type":"File","file":{"path":"/tmp/a","format":{"plain":"%X%"}}},
		{"openTelemetry":{"endpoint":"x:1"}},
		{"tcp":{"address":"1.2.3.4:5","format":{"json":[{"key":"k","value":"v"},{"key":"l","value":"w"}]}}},
		{"file":{"path":"/tmp/b"}}]}`).AccessLog()
	want := []policy.LogBackend{
		{File: &policy.LogFile{Path: "/tmp/a", Format: policy.LogFormat{Plain: "%X%"}}},
		{TCP: &policy.LogTCP{Address: "1.2.3.4:5", Format: policy.LogFormat{JSON: []policy.LogField{{Key: "k", Value: "v"}, {Key: "l", Value: "w"}}}}},
		{File: &policy.LogFile{Path: "/tmp/b"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if err == nil || err.Error() != "backends[1]: neither tcp nor file" {
		t.Errorf("got error %v", err)
	}
}

func TestTraces(t *testing.T) {
	yes, no := true, false
	number := func(f float64) *float64 { return &f }
	tests := []struct {
		name, conf string
		want       policy.Trace
		fail       string
	}{
		{"nothing", `{}`, policy.Trace{}, ""},
		{"no backend", `{"backends":[]}`, policy.Trace{}, ""},
		{
			"zipkin", `{"backends":[{"zipkin":{"url":"http://z:9411/api","traceId128bit":true,"apiVersion":"httpProto","sharedSpanContext":false}}]}`,
			policy.Trace{Zipkin: &policy.Zipkin{URL: "http://z:9411/api", TraceID128Bit: true, APIVersion: "httpProto", SharedSpanContext: &no}},
			"",
		},
		{
			"zipkin with what is shared", `{"backends":[{"zipkin":{"url":"http://z:9411/api","sharedSpanContext":true}}]}`,
			policy.Trace{Zipkin: &policy.Zipkin{URL: "http://z:9411/api", SharedSpanContext: &yes}},
			"",
		},
		{
			"datadog", `{"backends":[{"datadog":{"url":"http://d:80","splitService":true}}]}`,
			policy.Trace{Datadog: &policy.Datadog{URL: "http://d:80", SplitService: true}},
			"",
		},
		{
			"sampling in either spelling", `{"sampling":{"overall":80,"client":"0.5","random":0}}`,
			policy.Trace{Overall: number(80), Client: number(0.5), Random: number(0)},
			"",
		},
		{"sampling that is none", `{"sampling":{"overall":"x","random":101,"client":null}}`, policy.Trace{}, "sampling.overall: not a percentage\nsampling.random: not a percentage"},
		{
			"tags", `{"tags":[{"name":"a","literal":"b"},{"name":"c","header":{"name":"h","default":"d"}}]}`,
			policy.Trace{Tags: []policy.TraceTag{{Name: "a", Literal: "b"}, {Name: "c", Header: &policy.TraceHeader{Name: "h", Default: "d"}}}},
			"",
		},
		{
			"more than one", `{"backends":[{"openTelemetry":{}},{"datadog":{"url":"http://d:80"}}]}`,
			policy.Trace{},
			"backends: only the first is used\nbackends[0]: neither zipkin nor datadog",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := rule(t, policy.MeshTrace, tt.conf).Trace()
			if diff := cmp.Diff(&tt.want, got); diff != "" {
				t.Error(diff)
			}
			if text := fmtError(err); text != tt.fail {
				t.Errorf("got error %q", text)
			}
		})
	}
}

func fmtError(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
