package dataplane_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/meridian-mesh/meridian/api/dataplane"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

func TestPrometheus(t *testing.T) {
	for name, tc := range map[string]struct{ mesh, dp, want string }{
		"a mesh without metrics has none": {mesh: `{}`, dp: `{}`},
		"a mesh with a backend that is not enabled has none": {
			mesh: `{"metrics":{"backends":[{"name":"p","type":"prometheus"}]}}`,
			dp:   `{"metrics":{"type":"prometheus","conf":{"port":1}}}`,
		},
		"a backend of another type is none": {
			mesh: `{"metrics":{"enabledBackend":"s","backends":[{"name":"s","type":"statsd"}]}}`,
		},
		"defaults are filled in": {
			mesh: `{"metrics":{"enabledBackend":"p","backends":[{"name":"p","type":"prometheus"}]}}`,
			want: `{"port":5670,"path":"/metrics","tags":{"kuma.io/service":"dataplane-metrics"}}`,
		},
		"the enabled backend is taken": {
			mesh: `{"metrics":{"enabledBackend":"p","backends":[{"name":"o","type":"prometheus","conf":{"port":1}},` +
				`{"name":"p","type":"prometheus","conf":{"port":2,"path":"/x","skipMTLS":true,"tags":{"a":"b"},"later":1}}]}}`,
			want: `{"port":2,"path":"/x","skipMTLS":true,"tags":{"a":"b"}}`,
		},
		"a proxy overrides": {
			mesh: `{"metrics":{"enabledBackend":"p","backends":[{"name":"p","type":"prometheus","conf":{"port":2,"path":"/x","skipMTLS":true}}]}}`,
			dp:   `{"metrics":{"type":"prometheus","conf":{"port":3,"skipMTLS":false}}}`,
			want: `{"port":3,"path":"/x","skipMTLS":false,"tags":{"kuma.io/service":"dataplane-metrics"}}`,
		},
		"aggregates are merged by name": {
			mesh: `{"metrics":{"enabledBackend":"p","backends":[{"name":"p","type":"prometheus","conf":{"aggregate":[` +
				`{"name":"a","port":1,"path":"/a","enabled":true},{"name":"b","port":2}]}}]}}`,
			dp: `{"metrics":{"type":"prometheus","conf":{"aggregate":[{"name":"c","port":4},{"name":"a","enabled":false}]}}}`,
			want: `{"port":5670,"path":"/metrics","tags":{"kuma.io/service":"dataplane-metrics"},"aggregate":[` +
				`{"name":"a","port":1,"path":"/a","enabled":false},{"name":"b","port":2,"path":"/metrics"},{"name":"c","port":4,"path":"/metrics"}]}`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			mesh, dp := &meshv1.Mesh{}, &meshv1.Dataplane{}
			parse(t, tc.mesh, mesh)
			parse(t, tc.dp, dp)
			got, err := dataplane.Prometheus(mesh, dp)
			if err != nil {
				t.Fatal(err)
			}
			var want *meshv1.PrometheusMetricsBackendConfig
			if tc.want != "" {
				want = &meshv1.PrometheusMetricsBackendConfig{}
				parse(t, tc.want, want)
			}
			if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestPrometheusThatCannotBeReadSaysWhose(t *testing.T) {
	mesh := &meshv1.Mesh{}
	parse(t, `{"metrics":{"enabledBackend":"p","backends":[{"name":"p","type":"prometheus","conf":{"port":"x"}}]}}`, mesh)
	if _, err := dataplane.Prometheus(mesh, nil); err == nil || !strings.Contains(err.Error(), `backend "p" of the mesh`) {
		t.Errorf("error is %v", err)
	}
}

func TestTagsAndTheIdentifyingService(t *testing.T) {
	dp := &meshv1.Dataplane{}
	parse(t, `{"networking":{"inbound":[{"tags":{"kuma.io/service":"web","v":"2"}},{"tags":{"kuma.io/service":"api","v":"1"}},`+
		`{"tags":{"service":"aaa","v":"1"}}]}}`, dp)
	want := map[string][]string{"kuma.io/service": {"api", "web"}, "v": {"1", "2"}, "service": {"aaa"}}
	if diff := cmp.Diff(want, dataplane.Tags(dp)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if got := dataplane.IdentifyingService(dp); got != "aaa" {
		t.Errorf("service is %q", got)
	}
	if got := dataplane.IdentifyingService(nil); got != "unknown" {
		t.Errorf("service of nothing is %q", got)
	}
	gateway := &meshv1.Dataplane{}
	parse(t, `{"networking":{"gateway":{"tags":{"kuma.io/service":"edge"}}}}`, gateway)
	if got := dataplane.IdentifyingService(gateway); got != "edge" {
		t.Errorf("service of a gateway is %q", got)
	}
}

func parse(t *testing.T, text string, into proto.Message) {
	t.Helper()
	if text == "" {
		return
	}
	if err := protojson.Unmarshal([]byte(text), into); err != nil {
		t.Fatal(err)
	}
}
