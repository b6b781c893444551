package server

import (
	"context"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

const demoMesh = `{"type":"Mesh","name":"demo"}`

// tracedMesh is demo with another content.
const tracedMesh = `{"type":"Mesh","name":"demo","labels":{"a":"%s"}}`

func labelled(value string) string { return strings.Replace(tracedMesh, "%s", value, 1) }

func TestAnEntityTagIsStoreAndVersion(t *testing.T) {
	p := newPlane(t, resource.Global)
	id := p.store.ID()
	tag := func(versions string) string { return `"` + id + "-" + versions + `"` }
	if got := p.want(201, "PUT", "/meshes/demo", demoMesh).Header.Get("ETag"); got != tag("1") {
		t.Errorf("created: %s", got)
	}
	p.want(201, "PUT", "/meshes/other", `{"type":"Mesh","name":"other"}`)
	if got := p.want(200, "PUT", "/meshes/demo", demoMesh).Header.Get("ETag"); got != tag("1") {
		t.Errorf("unchanged, with the store at revision 2: %s", got)
	}
	if got := p.want(200, "PUT", "/meshes/demo", labelled("1")).Header.Get("ETag"); got != tag("3") {
		t.Errorf("updated: %s", got)
	}
	p.seed(
		record(t, resource.Dataplane, "demo", "dp-1", "zone-1", &meshv1.Dataplane{}),
		record(t, resource.ServiceInsight, "demo", "all-services-demo", "", &meshv1.ServiceInsight{}),
		record(t, resource.ZoneType, "", "zone-1", "", &systemv1.Zone{}),
	)
	p.seed(record(t, resource.DataplaneInsight, "demo", "dp-1", "zone-1", &meshv1.DataplaneInsight{}))
	for _, tc := range []struct{ target, want string }{
		{"/meshes/demo", tag("3")},
		{"/meshes/demo/dataplanes/dp-1", tag("4")},
		{"/meshes/demo/dataplanes+insights/dp-1", tag("4-5")},
		{"/zones+insights/zone-1", tag("4-0")},
		{"/meshes/demo/service-insights/web", tag("4")},
		{"/meshes/other/service-insights/web", tag("0-2")},
		{"/meshes", "W/" + tag("3")},
		{"/traffic-routes", "W/" + tag("2")}, // the one that came with the other mesh
		{"/traffic-logs", "W/" + tag("0")},
		{"/dataplanes?size=1", "W/" + tag("4")},
		{"/dataplanes+insights", "W/" + tag("4-5")},
		{"/zones+insights", "W/" + tag("4-0")},
		{"/service-insights", "W/" + tag("4")},
	} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			if got := p.want(200, method, tc.target, "").Header.Get("ETag"); got != tc.want {
				t.Errorf("%s %s: %s, want %s", method, tc.target, got, tc.want)
			}
		}
		a := p.want(304, "GET", tc.target, "", "If-None-Match: "+tc.want)
		if a.Body != "" || a.Header.Get("ETag") != tc.want {
			t.Errorf("%s: 304 with ETag %s and body %q", tc.target, a.Header.Get("ETag"), a.Body)
		}
	}
}

func TestWhatLiveSessionsOverlayHasNoEntityTag(t *testing.T) {
	p := newPlane(t, resource.Global, func(o *Options) {
		o.Zones = sessions{insight: map[string]*systemv1.ZoneInsight{"zone-1": {}}}
	})
	p.seed(
		record(t, resource.ZoneType, "", "zone-1", "", &systemv1.Zone{}),
		record(t, resource.ZoneInsight, "", "zone-1", "", &systemv1.ZoneInsight{}),
	)
	for _, target := range []string{"/zone-insights", "/zone-insights/zone-1", "/zones+insights", "/zones+insights/zone-1"} {
		if got := p.want(200, "GET", target, "", "If-None-Match: *").Header.Get("ETag"); got != "" {
			t.Errorf("%s: %s", target, got)
		}
	}
	p.want(304, "GET", "/zones/zone-1", "", "If-None-Match: *")
}

// A strong tag names bytes, and the compressed ones are others.
func TestABodyWithAStrongTagIsNotCompressed(t *testing.T) {
	p := newPlane(t, resource.Global)
	p.want(201, "PUT", "/meshes/demo", labelled(strings.Repeat("x", 4000)))
	a := p.want(200, "GET", "/meshes/demo", "", "Accept-Encoding: gzip")
	if a.Header.Get("Content-Encoding") != "" || a.Header.Get("Vary") != "" {
		t.Errorf("one resource: %v", a.Header)
	}
	a = p.want(200, "GET", "/meshes", "", "Accept-Encoding: gzip")
	if a.Header.Get("Content-Encoding") != "gzip" || a.Header.Get("Vary") != "Accept-Encoding" {
		t.Errorf("the list: %v", a.Header)
	}
}

func TestConditionsOnReads(t *testing.T) {
	p := newPlane(t, resource.Global)
	tag := p.want(201, "PUT", "/meshes/demo", demoMesh).Header.Get("ETag")
	for _, tc := range []struct {
		header string
		want   int
	}{
		{"If-None-Match: " + tag, 304},
		{"If-None-Match: W/" + tag, 304},
		{`If-None-Match: "x", ` + tag, 304},
		{"If-None-Match: *", 304},
		{`If-None-Match: "x"`, 200},
		{"If-None-Match: nonsense", 200},
		{"If-Match: " + tag, 200},
		{"If-Match: *", 200},
		{`If-Match: "x"`, 412},
		{"If-Match: W/" + tag, 412},
	} {
		for _, method := range []string{http.MethodGet, http.MethodHead} {
			p.want(tc.want, method, "/meshes/demo", "", tc.header)
		}
	}
	p.want(404, "GET", "/meshes/none", "", "If-None-Match: *")
}

func TestConditionsOnWrites(t *testing.T) {
	for _, tc := range []struct {
		name, header     string // TAG stands for the current tag
		put, putNew, del int
	}{
		{"the current tag", "If-Match: TAG", 200, 412, 200},
		{"one of several", `If-Match: "x" , TAG`, 200, 412, 200},
		{"another tag", `If-Match: "x"`, 412, 412, 412},
		{"a weak tag never matches strongly", "If-Match: W/TAG", 412, 412, 412},
		{"any", "If-Match: *", 200, 412, 200},
		{"none", "If-None-Match: *", 412, 201, 412},
		{"not the current tag", "If-None-Match: TAG", 412, 201, 412},
		{"weakly compared", "If-None-Match: W/TAG", 412, 201, 412},
		{"not another tag", `If-None-Match: "x"`, 200, 201, 200},
		{"a tag without quotes", "If-Match: x", 400, 400, 400},
		{"a tag that does not end", `If-None-Match: "x`, 400, 400, 400},
		{"an empty condition", "If-Match: ", 400, 400, 400},
		{"a star among tags", `If-Match: "x", *`, 400, 400, 400},
	} {
		t.Run(tc.name, func(t *testing.T) {
			p := newPlane(t, resource.Global)
			tag := p.want(201, "PUT", "/meshes/demo", demoMesh).Header.Get("ETag")
			header := strings.Replace(tc.header, "TAG", tag, 1)
			for _, dry := range []string{"?dryRun=true", ""} {
				for _, write := range []struct {
					status       int
					method, path string
					body         string
				}{
					{tc.putNew, "PUT", "/meshes/new", `{"type":"Mesh","name":"new"}`},
					{tc.put, "PUT", "/meshes/demo", demoMesh}, // changes nothing, so the tag stays
					{tc.del, "DELETE", "/meshes/demo", ""},
				} {
					a := p.want(write.status, write.method, write.path+dry, write.body, header)
					if write.status == 412 && object(t, a.Body)["details"] != "Precondition Failed" {
						t.Errorf("%s", a.Body)
					}
				}
			}
		})
	}
}

func TestAPreconditionYieldsToWhatMakesTheWriteImpossible(t *testing.T) {
	p := newPlane(t, resource.Global)
	p.want(201, "PUT", "/meshes/demo", demoMesh)
	p.seed(record(t, resource.Dataplane, "demo", "dp-1", "zone-1", &meshv1.Dataplane{}))
	const stale = `If-Match: "stale"`
	p.want(404, "DELETE", "/meshes/none", "", stale)
	p.want(400, "PUT", "/meshes/demo", "{", stale)
	p.want(400, "DELETE", "/meshes/demo", "", stale) // it has a dataplane
	p.want(403, "PUT", "/global-secrets/s", `{"type":"GlobalSecret","name":"s","data":"eA=="}`, stale, "Remote: 10.0.0.9:1")
	p.want(412, "PUT", "/meshes/demo", demoMesh, stale)
	got := []any{
		object(t, p.want(412, "PUT", "/meshes/demo", labelled("1"), stale).Body)["title"],
		object(t, p.want(412, "PUT", "/meshes/new", `{"type":"Mesh","name":"new"}`, stale).Body)["title"],
	}
	if diff := cmp.Diff([]any{titleUpdate, titleCreate}, got); diff != "" {
		t.Error(diff)
	}
}

func TestADryRunAnswersLikeTheWriteAndStoresNothing(t *testing.T) {
	p := newPlane(t, resource.Global)
	dry := func(status int, method, target, body string) answer {
		t.Helper()
		before := p.store.Snapshot().Revision()
		a := p.want(status, method, target, body)
		if after := p.store.Snapshot().Revision(); after != before {
			t.Fatalf("%s %s moved the store from %d to %d", method, target, before, after)
		}
		return a
	}
	a := dry(201, "PUT", "/meshes/demo?dryRun=true", `{"type":"Mesh","name":"demo","x":1}`)
	if a.Header.Get("Meridian-Dry-Run") != "true" || a.Header.Get("ETag") != "" || a.Header.Get("Warning") == "" {
		t.Errorf("%v", a.Header)
	}
	would := object(t, a.Body)
	if would["type"] != "Mesh" || would["name"] != "demo" || would["creationTime"] == "" {
		t.Errorf("%s", a.Body)
	}
	p.want(404, "GET", "/meshes/demo", "")

	created := p.want(201, "PUT", "/meshes/demo?dryRun=false", demoMesh)
	if created.Body != "" || created.Header.Get("Meridian-Dry-Run") != "" {
		t.Errorf("%+v", created)
	}
	was := p.want(200, "GET", "/meshes/demo", "")
	a = dry(200, "PUT", "/meshes/demo?dryRun=1", demoMesh)
	if a.Body != was.Body || a.Header.Get("ETag") != was.Header.Get("ETag") {
		t.Errorf("what would not change: %s", a.Body)
	}
	a = dry(200, "PUT", "/meshes/demo?dryRun=true", labelled("1"))
	would = object(t, a.Body)
	if diff := cmp.Diff(map[string]any{"a": "1"}, would["labels"]); diff != "" || would["creationTime"] != object(t, was.Body)["creationTime"] {
		t.Errorf("%s\n%s", diff, a.Body)
	}

	p.seed(record(t, resource.Mesh, "", "bare", "", nil)) // without what comes with a mesh that is put
	p.want(201, "PUT", "/meshes/bare/timeouts/t", bodyOf(t, lookup(t, "Timeout"), "bare", "t"))
	p.seed(&store.Record{Key: store.Key{Type: syncToken, Mesh: "bare", Name: "x"}})
	a = dry(200, "DELETE", "/meshes/bare?dryRun=true", "")
	const want = "{\n \"total\": 2,\n \"items\": [\n  {\n   \"type\": \"Mesh\",\n   \"name\": \"bare\"\n  },\n" +
		"  {\n   \"type\": \"Timeout\",\n   \"mesh\": \"bare\",\n   \"name\": \"t\"\n  }\n ],\n \"next\": null\n}\n"
	if diff := cmp.Diff(want, a.Body); diff != "" {
		t.Error(diff)
	}
	dry(404, "DELETE", "/meshes/none?dryRun=true", "")
	dry(400, "PUT", "/meshes/none/timeouts/t?dryRun=true", bodyOf(t, lookup(t, "Timeout"), "none", "t"))
}

func TestADryDeletionNamesSecretsOnlyToThoseWhoMayListThem(t *testing.T) {
	p := newPlane(t, resource.Global)
	p.want(201, "PUT", "/meshes/demo", demoMesh)
	const secret = "dataplane-token-signing-key-demo-1"
	for who, want := range map[string]bool{"X: an administrator": true, remote: false} {
		a := p.want(200, "DELETE", "/meshes/demo?dryRun=true", "", who)
		if !strings.Contains(a.Body, "Timeout") || strings.Contains(a.Body, secret) != want {
			t.Errorf("%s: %s", who, a.Body)
		}
	}
}

func TestABadValueOfDryRunIsNamed(t *testing.T) {
	p := newPlane(t, resource.Global)
	for _, method := range []string{"PUT", "DELETE"} {
		a := p.want(400, method, "/meshes/demo?dryRun=maybe", demoMesh)
		want := []any{map[string]any{"field": "dryRun", "message": "must be either true or false"}}
		if diff := cmp.Diff(want, object(t, a.Body)["causes"]); diff != "" {
			t.Error(diff)
		}
	}
}

func TestAZonesSessionEndsOnlyWhenTheZoneIsDeleted(t *testing.T) {
	var ended []string
	p := newPlane(t, resource.Global, func(o *Options) {
		o.UnsafeDelete = true
		o.Zones = sessions{live: map[string]ZoneLive{"zone-1": {Online: true}}}
		o.EndZoneSession = func(_ context.Context, zone string) error { ended = append(ended, zone); return nil }
	})
	tag := p.want(201, "PUT", "/zones/zone-1", `{"type":"Zone","name":"zone-1"}`).Header.Get("ETag")
	p.want(200, "DELETE", "/zones/zone-1?dryRun=true", "")
	p.want(412, "DELETE", "/zones/zone-1", "", `If-Match: "stale"`)
	if len(ended) > 0 {
		t.Errorf("a session was ended for a zone that stays: %v", ended)
	}
	p.want(200, "DELETE", "/zones/zone-1", "", "If-Match: "+tag)
	if diff := cmp.Diff([]string{"zone-1"}, ended); diff != "" {
		t.Error(diff)
	}
}

func TestNobodyOverwritesWhatTheyHaveNotSeen(t *testing.T) {
	p := newPlane(t, resource.Global)
	tag := p.want(201, "PUT", "/meshes/demo", demoMesh).Header.Get("ETag")
	next := p.want(200, "PUT", "/meshes/demo", labelled("1"), "If-Match: "+tag).Header.Get("ETag")
	p.want(412, "PUT", "/meshes/demo", labelled("2"), "If-Match: "+tag)
	p.want(200, "PUT", "/meshes/demo", labelled("2"), "If-Match: "+next)
	p.want(200, "DELETE", "/meshes/demo", "")
	again := p.want(201, "PUT", "/meshes/demo", demoMesh, "If-None-Match: *").Header.Get("ETag")
	if again == tag {
		t.Error("a resource that was made again has its first tag")
	}
	p.want(412, "DELETE", "/meshes/demo", "", "If-Match: "+tag)
	p.want(200, "DELETE", "/meshes/demo", "", "If-Match: "+again)
}
