package server

import (
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
)

// Every list there is: that of each type, those of overviews, and services.
func TestEveryListIsFilteredByPartOfTheName(t *testing.T) {
	p := newPlane(t, resource.Global)
	all := []string{"a-east.web-1", "b-east.web-2", "c-west.web-1", "d-west.Web"}
	seeded := map[resource.Type]bool{}
	var paths []string
	seed := func(d *resource.Descriptor) {
		if seeded[d.Name] {
			return
		}
		seeded[d.Name] = true
		if d.Name == resource.ServiceInsight {
			services := map[string]*meshv1.ServiceInsight_Service{}
			for _, name := range all {
				services[name] = &meshv1.ServiceInsight_Service{}
			}
			p.seed(record(t, d.Name, "demo", "all-services-demo", "", &meshv1.ServiceInsight{Services: services}))
			return
		}
		mesh := ""
		if d.Scope == resource.ScopeMesh {
			mesh = "demo"
		}
		for _, name := range all {
			p.seed(record(t, d.Name, mesh, name, "", nil))
		}
	}
	for i, d := range resource.All() {
		if d.Path == "" {
			continue
		}
		seed(&resource.All()[i])
		paths = append(paths, "/"+d.Path)
		if d.Scope == resource.ScopeMesh {
			paths = append(paths, "/meshes/demo/"+d.Path)
		}
	}
	for _, v := range overviews() {
		paths = append(paths, "/"+v.path)
		if v.main.Scope == resource.ScopeMesh {
			paths = append(paths, "/meshes/demo/"+v.path)
		}
	}
	if len(paths) < 58 {
		t.Fatalf("only %d lists", len(paths))
	}
	tests := []struct {
		query string
		want  []string
		total float64
		next  string // query of the next page
	}{
		{"", all, 4, ""},
		{"name=", all, 4, ""},
		{"name=web-1", []string{all[0], all[2]}, 2, ""},
		{"name=east.", all[:2], 2, ""},
		{"name=a-east.web-1", all[:1], 1, ""},
		{"name=Web", all[3:], 1, ""},
		{"name=WEB-1", []string{}, 0, ""},
		{"name=*", []string{}, 0, ""},
		{"name=%00%ff%2F..", []string{}, 0, ""},
		{"name=web&size=2", all[:2], 3, "name=web&offset=2&size=2"},
		{"name=web&size=2&offset=2", all[2:3], 3, ""},
		{"name=web&offset=7", []string{}, 3, ""},
	}
	for _, path := range paths {
		overview := strings.Contains(path, "insights") && strings.Contains(path, "+") || strings.Contains(path, "overviews")
		for _, tt := range tests {
			body := p.want(200, http.MethodGet, path+"?"+tt.query, "").Body
			got := []string{}
			for _, n := range names(t, body) {
				got = append(got, n[strings.LastIndex(n, "/")+1:])
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("%s?%s (-want +got):\n%s", path, tt.query, diff)
			}
			total := tt.total
			if overview {
				total = float64(len(tt.want)) // of the page, as clients know it
			}
			list := object(t, body)
			next, _ := list["next"].(string)
			if _, query, _ := strings.Cut(next, "?"); list["total"] != total || query != tt.next {
				t.Errorf("%s?%s: total %v, next %q; want %v, %q", path, tt.query, list["total"], next, total, tt.next)
			}
		}
	}
}

func TestTheFiltersOfDataplaneOverviewsAddUp(t *testing.T) {
	p := newPlane(t, resource.Global)
	web, api := map[string]string{"kuma.io/service": "web"}, map[string]string{"kuma.io/service": "api"}
	p.seed(
		record(t, resource.Dataplane, "demo", "east.web-1", "east", dataplane(t, false, web)),
		record(t, resource.Dataplane, "demo", "east.api-1", "east", dataplane(t, false, api)),
		record(t, resource.Dataplane, "demo", "west.web-1", "west", dataplane(t, false, web)),
		record(t, resource.Dataplane, "demo", "east.edge-1", "east", dataplane(t, true, web)),
	)
	got := names(t, p.want(200, http.MethodGet, "/dataplanes+insights?name=east&tag=kuma.io/service:web&gateway=false", "").Body)
	if diff := cmp.Diff([]string{"demo/east.web-1"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestATagFilterFindsDataplanesThatNameTheirServiceTheOldWay(t *testing.T) {
	p := withMesh(t, resource.Global)
	for name, tags := range map[string]map[string]string{
		"new": {"kuma.io/service": "web"}, "old": {"service": "web"}, "other": {"service": "db"}, "none": {"version": "1"},
	} {
		p.seed(record(t, resource.Dataplane, "demo", name, "", &meshv1.Dataplane{Networking: &meshv1.Dataplane_Networking{
			Inbound: []*meshv1.Dataplane_Networking_Inbound{{Tags: tags}},
		}}))
	}
	for query, want := range map[string][]string{
		"tag=kuma.io/service:web": {"demo/new", "demo/old"},
		"tag=kuma.io/service:*":   {"demo/new", "demo/old", "demo/other"},
		"tag=service:web":         {"demo/old"},
	} {
		got := names(t, p.want(http.StatusOK, http.MethodGet, "/dataplanes+insights?"+query, "").Body)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", query, diff)
		}
	}
}
