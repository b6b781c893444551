package page

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// slips are paths in curl lines that are none of the API's, or name something else than the answer below them does,
// with the path that is meant. The others that the page gets wrong are answered as aliases.
var slips = map[string]string{
	"/sample-global-secret": "/global-secrets/sample-global-secret",
	"/zone-ingresses/ze-1":  "/zone-ingresses/zi-1",
}

// Keys that an example has and no answer can have.
var (
	// A zone is in no mesh.
	noMesh = "mesh"
	// A gateway is online or not, whatever its inbounds: it is never partially degraded.
	neverDegraded = "partiallyDegraded"
	// The count by which a zone shows that it writes an insight does not travel.
	generation = "generation"
)

// book is the page with the planes it is put to.
type book struct {
	*planes
	page *Page
}

func TestThePage(t *testing.T) {
	b := book{newPlanes(t), load(t)}
	eventually(t, "the zone has the mesh default", func() string {
		return statusIs(b.zone, "/meshes/default", http.StatusOK)
	})
	for _, part := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"every body is accepted", b.bodies},
		{"what the answers show is made", b.populate},
		{"every example is answered", b.answers},
		{"every inspection is answered", b.inspections},
		{"every endpoint answers", b.endpoints},
		{"pages are linked", b.pages},
		{"what is there can be deleted", b.deletions},
	} {
		if !t.Run(part.name, part.run) {
			return // what follows builds on it
		}
	}
}

// each runs f for the examples with a curl line and the given method.
func (b book) each(t *testing.T, method string, f func(*testing.T, Example, Call)) {
	t.Helper()
	for _, e := range b.page.Examples {
		if e.Curl == "" {
			continue
		}
		c, err := e.Call()
		if err != nil {
			t.Fatal(err)
		}
		if c.Method == method {
			t.Run(fmt.Sprintf("line %d %s %s", e.Line, c.Method, c.Path), func(t *testing.T) { f(t, e, c) })
		}
	}
}

// bodies puts every body of the page where the page says, and reads it back.
func (b book) bodies(t *testing.T) {
	b.each(t, http.MethodPut, func(t *testing.T, e Example, c Call) {
		if e.Body == nil {
			t.Fatal("a PUT without a body")
		}
		body := objectOf(t, e.Body)
		r := resourceAt(t, c.Path)
		home, other := b.home(r.d), b.other(r.d)
		if name := body["name"].(string); name != r.name {
			// A slip of the page: the body is for another resource than the path.
			wants(t, home.call(t, c.Method, c.Path, string(e.Body), c.Headers...), http.StatusBadRequest)
			c.Path = strings.TrimSuffix(c.Path, r.name) + name
			r.name = name
		}
		wants(t, other.call(t, c.Method, c.Path, string(e.Body), c.Headers...), http.StatusMethodNotAllowed)
		if !slices.Equal(e.Statuses, []int{http.StatusCreated, http.StatusOK}) {
			t.Fatalf("the page says %v", e.Statuses)
		}
		for _, status := range e.Statuses {
			wants(t, home.call(t, c.Method, c.Path, string(e.Body), c.Headers...), status)
		}
		// The call as the text has it may spell the path in another way.
		wants(t, home.call(t, c.Method, written(t, e, c.Path), string(e.Body), c.Headers...), http.StatusOK)
		b.reads(t, r, body)
	})
	for _, e := range b.page.Examples {
		if e.Body != nil && e.Curl == "" {
			t.Run(fmt.Sprintf("line %d %s", e.Line, e.Request), func(t *testing.T) {
				method, path, _ := strings.Cut(e.Request, " ")
				b.token(t, method, path, [][2]string{{"Content-Type", "application/json"}}, string(e.Body))
			})
		}
	}
	b.each(t, http.MethodPost, func(t *testing.T, _ Example, c Call) {
		b.token(t, c.Method, c.Path, c.Headers, c.Data)
	})
}

// written is the path of an example's call as the text above it writes it, with the parameters of the curl line.
func written(t *testing.T, e Example, path string) string {
	t.Helper()
	_, template, ok := strings.Cut(e.Request, " ")
	if !ok {
		return path
	}
	given, segments := strings.Split(path, "/"), strings.Split(template, "/")
	for i, s := range segments {
		if !strings.HasPrefix(s, "{") {
			continue
		}
		if i >= len(given) {
			t.Fatalf("%s gives nothing for %s of %s", path, s, template)
		}
		segments[i] = given[i]
	}
	return strings.Join(segments, "/")
}

// token asks both planes for a token, which must claim what was asked for.
func (b book) token(t *testing.T, method, path string, headers [][2]string, body string) {
	t.Helper()
	asked := objectOf(t, json.RawMessage(body))
	delete(asked, "validFor") // the claims have times
	for _, p := range []*plane{b.global, b.zone} {
		eventually(t, fmt.Sprintf("%s %s on the %s", method, path, p.kind), func() string { // the zone waits for the keys
			a, err := p.try(method, path, body, headers...)
			if err != nil || a.status != http.StatusOK || a.header.Get("Content-Type") != "text/plain" {
				return fmt.Sprint(a.status, a.header["Content-Type"], string(a.body), err)
			}
			parts := strings.Split(string(a.body), ".")
			if len(parts) != 3 {
				return "no token: " + string(a.body)
			}
			raw, err := base64.RawURLEncoding.DecodeString(parts[1])
			if err != nil {
				return err.Error()
			}
			claims := map[string]any{}
			for k, v := range objectOf(t, raw) {
				claims[strings.ToLower(k)] = v
			}
			return strings.Join(changed(asked, claims), "; ")
		})
	}
}

// reads checks that a resource reads as it was put, on its home plane and where it travels.
func (b book) reads(t *testing.T, r reference, body map[string]any) {
	t.Helper()
	if r.d.Name == resource.GlobalSecret {
		body["type"] = string(resource.GlobalSecret)
	}
	home := b.home(r.d)
	got := wants(t, home.call(t, http.MethodGet, r.path(), ""), http.StatusOK).value(t)
	for _, c := range changed(body, got) {
		t.Errorf("%s on the %s: %s", r.path(), home.kind, c)
	}
	switch {
	case r.d.Flow == resource.FlowToZones && r.d.Name != resource.GlobalSecret:
		eventually(t, r.path()+" reaches the zone", func() string {
			a, err := b.zone.try(http.MethodGet, r.path(), "")
			if err != nil || a.status != http.StatusOK {
				return fmt.Sprint(a.status, err)
			}
			return strings.Join(changed(body, a.value(t)), "; ")
		})
	case r.d.Flow == resource.FlowToGlobal || r.d.Flow == resource.FlowBoth:
		body = maps.Clone(body)
		r.name = zoneName + "." + r.name
		body["name"] = r.name
		if r.d.Name == resource.ZoneEgress || r.d.Name == resource.ZoneIngress {
			body["zone"] = zoneName
		}
		eventually(t, r.path()+" reaches the global", func() string {
			a, err := b.global.try(http.MethodGet, r.path(), "")
			if err != nil || a.status != http.StatusOK {
				return fmt.Sprint(a.status, err)
			}
			return strings.Join(changed(body, a.value(t)), "; ")
		})
	}
}

// put stores a resource of the page through the API of its home plane and reads it back.
func (b book) put(t *testing.T, item map[string]any) {
	t.Helper()
	item = maps.Clone(item)
	delete(item, "creationTime")
	delete(item, "modificationTime")
	typ := resource.Type(item["type"].(string))
	if _, inMesh := item["mesh"]; typ == resource.Secret && !inMesh {
		typ = resource.GlobalSecret
	}
	d, ok := resource.Lookup(typ)
	if !ok {
		t.Fatalf("%s is no type", typ)
	}
	if b.home(d) == b.zone {
		item["name"] = zoneLocal(item["name"].(string))
	}
	r := reference{d: d, name: item["name"].(string)}
	r.mesh, _ = item["mesh"].(string)
	raw, err := json.Marshal(item)
	if err != nil {
		t.Fatal(err)
	}
	// The page's one inline certificate is not base64. The answer's keys are what matters there.
	raw = []byte(strings.ReplaceAll(string(raw), `"LS0tLS1=="`, `"LS0tLS0="`))
	if err := json.Unmarshal(raw, &item); err != nil {
		t.Fatal(err)
	}
	a := b.home(d).call(t, http.MethodPut, r.path(), string(raw), [2]string{"Content-Type", "application/json"})
	if a.status != http.StatusOK && a.status != http.StatusCreated {
		t.Fatalf("PUT %s: %d %s", r.path(), a.status, a.body)
	}
	b.reads(t, r, item)
}

// populate makes what the page's answers show: resources through the API, and the insights of proxies in the store of
// their zone. The zone restarts for that, so that its own insight has an ended subscription too.
func (b book) populate(t *testing.T) {
	proxies := population(t)
	for _, e := range b.page.Examples {
		for _, item := range itemsOf(t, e.Answer) {
			typ, _ := item["type"].(string)
			if _, ok := overviewKinds[typ]; ok {
				proxies = append(proxies, partsOf(t, item))
			}
		}
	}
	b.put(t, map[string]any{"type": "Mesh", "name": "default", "mtls": map[string]any{
		"enabledBackend": "ca-1", "backends": []any{map[string]any{"name": "ca-1", "type": "builtin"}},
	}})
	insights := map[store.Key]*store.Record{}
	for _, p := range proxies {
		b.put(t, p.body)
		if p.insight != nil {
			insights[p.insight.Key] = p.insight
		}
	}
	b.seedZone(t, slices.Collect(maps.Values(insights)))
	eventually(t, "the zone is back", func() string { return statusIs(b.zone, "/meshes/default", http.StatusOK) })
	// A zone that starts believes no insight that somebody is connected. Who is to be online connects.
	for _, p := range population(t) {
		insight := &meshv1.DataplaneInsight{}
		if err := proto.Unmarshal(p.insight.Spec, insight); err != nil {
			t.Fatal(err)
		}
		if s := insight.GetSubscriptions()[0]; s.GetDisconnectTime() == nil {
			b.connect(t, p.insight.Key.Mesh, p.insight.Key.Name, s.GetVersion())
		}
	}
}

// answers makes the resources of every answer and compares it with ours.
func (b book) answers(t *testing.T) {
	b.each(t, http.MethodGet, func(t *testing.T, e Example, c Call) {
		if e.Answer == nil {
			t.Fatal("a GET without an answer")
		}
		if meant, ok := slips[c.Path]; ok {
			wants(t, b.global.call(t, c.Method, c.Path, ""), http.StatusNotFound)
			c.Path = meant
		}
		var example any
		if err := json.Unmarshal(e.Answer, &example); err != nil {
			t.Fatal(err)
		}
		defer b.spellings(t, written(t, e, c.Path), c.Path)
		switch segments := strings.Split(c.Path, "/"); segments[len(segments)-1] {
		case "config":
			b.config(t, c.Path)
		case "policies", "rules", "dataplanes":
			switch {
			case c.Path == "/policies":
				b.policies(t, c.Path, example)
			case len(segments) > 4: // of a dataplane or a policy
				b.inspection(t, c.Path, example)
			default:
				b.stored(t, c.Path, e.Answer, example)
			}
		case "xds":
			b.configDump(t, c.Path)
		case "zones":
			if c.Path == "/status/zones" {
				b.matches(t, b.global, c.Path, example)
				if a := wants(t, b.zone.call(t, c.Method, c.Path, ""), http.StatusOK); strings.TrimSpace(string(a.body)) != "[]" {
					t.Errorf("a zone has no zones: %s", a.body)
				}
				return
			}
			b.stored(t, c.Path, e.Answer, example)
		case "versions", "global-insights":
			b.matches(t, b.global, c.Path, example)
			b.matches(t, b.zone, c.Path, example)
		default:
			b.stored(t, c.Path, e.Answer, example)
		}
	})
}

// spellings checks that a path answers like the other spelling of it.
func (b book) spellings(t *testing.T, path, other string) {
	t.Helper()
	if t.Failed() {
		return
	}
	for _, p := range []*plane{b.global, b.zone} {
		want := p.call(t, http.MethodGet, b.seenOn(p, other), "")
		if a := p.call(t, http.MethodGet, b.seenOn(p, path), ""); a.status != want.status {
			t.Errorf("GET %s on the %s: %d, but %d at %s", path, p.kind, a.status, want.status, other)
		}
	}
}

// matches waits until an answer has every key of an example.
func (b book) matches(t *testing.T, p *plane, path string, example any) {
	t.Helper()
	eventually(t, fmt.Sprintf("GET %s on the %s is like the example", path, p.kind), func() string {
		a, err := p.try(http.MethodGet, path, "")
		if err != nil || a.status != http.StatusOK {
			return fmt.Sprint(a.status, " ", string(a.body), err)
		}
		return strings.Join(missing(example, a.value(t)), ", ")
	})
}

// config has the sections that clients read; the rest is each program's own.
func (b book) config(t *testing.T, path string) {
	for _, p := range []*plane{b.global, b.zone} {
		got := wants(t, p.call(t, http.MethodGet, path, ""), http.StatusOK).value(t)
		for _, m := range missing(map[string]any{
			"mode": "", "environment": "", "apiServer": map[string]any{}, "store": map[string]any{"type": ""}, "multizone": map[string]any{},
		}, got) {
			t.Errorf("%s of the %s has no %s", path, p.kind, m)
		}
	}
}

// policies has every entry of the page with its values; on a zone all are read-only.
func (b book) policies(t *testing.T, path string, example any) {
	for _, p := range []*plane{b.global, b.zone} {
		got := wants(t, p.call(t, http.MethodGet, path, ""), http.StatusOK).value(t)
		byName := map[string]any{}
		for _, entry := range got.(map[string]any)["policies"].([]any) {
			byName[entry.(map[string]any)["name"].(string)] = entry
		}
		for _, entry := range example.(map[string]any)["policies"].([]any) {
			want := maps.Clone(entry.(map[string]any))
			want["readOnly"] = p == b.zone
			for _, c := range changed(want, byName[want["name"].(string)]) {
				t.Errorf("%v on the %s: %s", want["name"], p.kind, c)
			}
		}
		if len(byName) != 18 {
			t.Errorf("the %s lists %d policies", p.kind, len(byName))
		}
	}
}

// inspection compares the outermost keys: what is below is attached by a plane that configures proxies.
func (b book) inspection(t *testing.T, path string, example any) {
	t.Helper()
	outer := map[string]any{}
	for k := range example.(map[string]any) {
		outer[k] = nil
	}
	r := resourceAt(t, path)
	edge := map[string]any{"kuma.io/service": "edge"}
	body := map[string]any{"type": string(r.d.Name), "mesh": r.mesh, "name": r.name}
	switch r.d.Name {
	case resource.Dataplane:
		networking := map[string]any{"address": "10.0.0.2"}
		if example.(map[string]any)["gateway"] != nil {
			networking["gateway"] = map[string]any{"type": "BUILTIN", "tags": edge}
		} else {
			networking["inbound"] = []any{map[string]any{"port": 10010, "tags": map[string]any{"kuma.io/service": "backend"}}}
		}
		body["networking"] = networking
		b.put(t, body)
	case "MeshGateway":
		body["selectors"] = []any{map[string]any{"match": edge}}
		body["conf"] = map[string]any{"listeners": []any{map[string]any{"port": 80, "protocol": "HTTP"}}}
		b.put(t, body)
	default: // a policy need not exist to reach nothing
	}
	for _, p := range []*plane{b.global, b.zone} {
		b.matches(t, p, b.seenOn(p, path), outer)
	}
}

// configDump is what a proxy says of itself; none is connected.
func (b book) configDump(t *testing.T, path string) {
	for _, p := range []*plane{b.global, b.zone} {
		a := wants(t, p.call(t, http.MethodGet, b.seenOn(p, path), ""), http.StatusServiceUnavailable)
		if got := a.value(t).(map[string]any); got["title"] != "Could not execute admin operation" {
			t.Errorf("%s on the %s: %v", path, p.kind, got)
		}
	}
}

// stored compares an answer that shows stored resources, or what is made of them.
func (b book) stored(t *testing.T, path string, raw json.RawMessage, example any) {
	var typ string
	for _, item := range itemsOf(t, raw) {
		typ = item["type"].(string)
		if d, ok := resource.Lookup(resource.Type(typ)); ok && d.Writable != resource.Nowhere {
			b.put(t, item)
		}
	}
	on := []*plane{b.global, b.zone}
	switch typ {
	case "ZoneOverview":
		drop(example, noMesh)
		path = strings.Replace(path, "cluster-1", zoneName, 1) // a zone that is connected
		on = on[:1]
	case string(resource.MeshInsight):
		dropBelow(example, "gateway", neverDegraded)
		on = on[:1]
	case string(resource.ZoneType):
		on = on[:1]
	case string(resource.Secret):
		if strings.HasPrefix(path, "/global-secrets") {
			on = on[:1]
		}
	}
	for _, p := range on {
		like := example
		if p == b.global && strings.HasSuffix(typ, "Overview") {
			like = clone(t, example)
			dropBelow(like, "subscriptions", generation)
		}
		b.matches(t, p, b.seenOn(p, path), like)
	}
	if kind, ok := overviewKinds[typ]; ok {
		b.insightReads(t, b.seenOn(b.zone, path), example, kind.insightKey)
	}
	// Where the other plane has none of it, its list is empty.
	if len(on) == 1 && !strings.HasPrefix(path, "/global-secrets") {
		if o, ok := example.(map[string]any); ok && o["items"] != nil {
			got := wants(t, b.zone.call(t, http.MethodGet, path, ""), http.StatusOK).value(t)
			for _, m := range missing(map[string]any{"total": nil, "items": nil, "next": nil}, got) {
				t.Errorf("GET %s on the zone has no %s", path, m)
			}
		}
	}
}

// insightReads checks on the zone that the insight of a single overview is read as the proxy's connection wrote it.
func (b book) insightReads(t *testing.T, path string, example any, key string) {
	t.Helper()
	o := example.(map[string]any)
	if o[key] == nil {
		return // a list, or an overview without an insight
	}
	got := wants(t, b.zone.call(t, http.MethodGet, path, ""), http.StatusOK).value(t)
	for _, c := range changed(map[string]any{key: o[key]}, got) {
		t.Errorf("GET %s: %s", path, c)
	}
}

// endpoints asks for every path of the page's list on both planes.
func (b book) endpoints(t *testing.T) {
	names := map[string]string{
		"meshes": "default", "mesh-insights": "default", "global-secrets": "sample-global-secret", "secrets": "sample-secret",
		"dataplanes": "backend-1", "dataplanes+insights": "example", "health-checks": "web-to-backend", "proxytemplates": "pt-1",
		"traffic-logs": "tl-1", "traffic-permissions": "tp-1", "traffic-routes": "web-to-backend", "fault-injections": "fi1",
		"retries": "r1", "external-services": "httpbin", "service-insights": "backend", "zones": zoneName, "zones+insights": zoneName,
		"zone-ingresses": "zi-1", "zoneingresses": "zi-1", "zoneingresses+insights": "zi-1",
		"zoneegresses": "ze-1", "zoneegressoverviews": "ze-1", "meshgateways": "edge-gateway",
	}
	meshes := map[string]string{ // where the page has its example, unless in default
		"health-checks": "mesh-1", "proxytemplates": "mesh-1", "traffic-logs": "mesh-1", "traffic-permissions": "mesh-1", "traffic-routes": "mesh-1",
	}
	// A zone does not have what belongs to the global alone.
	globalOnly := []string{"/mesh-insights/default", "/global-secrets/sample-global-secret", "/zones/" + zoneName, "/zones+insights/" + zoneName}
	asked := 0
	for _, endpoint := range b.page.Endpoints {
		for _, path := range b.fill(t, endpoint, names, meshes) {
			asked++
			for _, p := range []*plane{b.global, b.zone} {
				target := b.seenOn(p, path)
				switch {
				case strings.HasPrefix(path, "/tokens/"):
					wants(t, p.call(t, http.MethodPost, target, "{}", [2]string{"Content-Type", "application/json"}), http.StatusBadRequest)
				case strings.HasSuffix(path, "/xds"):
					wants(t, p.call(t, http.MethodGet, target, ""), http.StatusServiceUnavailable)
				case p == b.zone && slices.Contains(globalOnly, path):
					wants(t, p.call(t, http.MethodGet, target, ""), http.StatusNotFound)
				default:
					wants(t, p.call(t, http.MethodGet, target, ""), http.StatusOK)
				}
			}
		}
	}
	if asked < len(b.page.Endpoints) {
		t.Errorf("only %d of %d endpoints were asked", asked, len(b.page.Endpoints))
	}
}

// fill puts names into the parameters of an endpoint.
func (b book) fill(t *testing.T, endpoint string, names, meshes map[string]string) []string {
	t.Helper()
	if strings.Contains(endpoint, "{policy-type}") {
		var out []string
		for _, d := range resource.All() {
			if d.Inspect {
				out = append(out, strings.NewReplacer("{mesh}", "default", "{policy-type}", d.Path, "{policy-name}", "p").Replace(endpoint))
			}
		}
		return out
	}
	segments := strings.Split(strings.TrimPrefix(endpoint, "/"), "/")
	collection := segments[0]
	if len(segments) > 2 && segments[0] == "meshes" {
		collection = segments[2]
	}
	for i, s := range segments {
		if !strings.HasPrefix(s, "{") {
			continue
		}
		switch s {
		case "{mesh}":
			segments[i] = "default"
			if m, ok := meshes[collection]; ok {
				segments[i] = m
			}
		case "{name}", "{gateway-name}":
			segments[i] = names[collection]
		}
		if segments[i] == "" || strings.HasPrefix(segments[i], "{") {
			t.Fatalf("%s: nothing for %s", endpoint, s)
		}
	}
	return []string{"/" + strings.Join(segments, "/")}
}

// pages checks the link of the page's example of paging, which shows no call: only where the next page is.
func (b book) pages(t *testing.T) {
	for _, e := range b.page.Examples {
		if e.Request != "" || e.Curl != "" {
			continue
		}
		example := objectOf(t, e.Answer)
		next := example["next"].(string)
		path, _, _ := strings.Cut(strings.TrimPrefix(next, "http://localhost:5681"), "?")
		for _, p := range []*plane{b.global, b.zone} {
			got := wants(t, p.call(t, http.MethodGet, path+"?size=10", ""), http.StatusOK).value(t)
			for _, m := range missing(example, got) {
				t.Errorf("%s on the %s: no %s", path, p.kind, m)
			}
			want := strings.Replace(next, "5681", fmt.Sprint(p.port), 1) + "&size=10"
			if got := got.(map[string]any)["next"]; got != want {
				t.Errorf("the next page is at %v, want %s", got, want)
			}
			wants(t, p.call(t, http.MethodGet, strings.TrimPrefix(want, fmt.Sprint("http://localhost:", p.port)), ""), http.StatusOK)
		}
		return
	}
	t.Error("the example is gone")
}

// deletions runs the page's DELETE lines from its end, so that what holds others goes last.
func (b book) deletions(t *testing.T) {
	slices.Reverse(b.page.Examples)
	defer slices.Reverse(b.page.Examples)
	b.each(t, http.MethodDelete, func(t *testing.T, e Example, c Call) {
		if !slices.Equal(e.Statuses, []int{http.StatusOK}) {
			t.Fatalf("the page says %v", e.Statuses)
		}
		r := resourceAt(t, c.Path)
		home, other := b.home(r.d), b.other(r.d)
		b.ensure(t, r)
		wants(t, other.call(t, c.Method, c.Path, ""), http.StatusMethodNotAllowed)
		eventually(t, c.Method+" "+c.Path, func() string { // a mesh may go when the global knows that its proxies are gone
			a, err := home.try(c.Method, c.Path, "")
			if err == nil && a.status == http.StatusOK {
				return ""
			}
			return fmt.Sprint(a.status, " ", string(a.body), err)
		})
		wants(t, home.call(t, http.MethodGet, c.Path, ""), http.StatusNotFound)
		wants(t, home.call(t, c.Method, c.Path, ""), http.StatusNotFound)
	})
}

// ensure makes a resource that a DELETE line names and nothing else on the page does, from the body the page has for
// its type.
func (b book) ensure(t *testing.T, r reference) {
	t.Helper()
	if b.home(r.d).call(t, http.MethodGet, r.path(), "").status == http.StatusOK {
		return
	}
	for _, e := range b.page.Examples {
		if e.Body == nil || e.Curl == "" {
			continue
		}
		body := objectOf(t, e.Body)
		if body["type"] == string(r.d.Name) {
			body["name"] = r.name
			b.put(t, body)
			return
		}
	}
	t.Fatalf("%s is nowhere on the page", r.path())
}

// reference names a resource.
type reference struct {
	d          *resource.Descriptor
	mesh, name string
}

func (r reference) path() string {
	if r.d.Scope == resource.ScopeMesh {
		return "/meshes/" + r.mesh + "/" + r.d.Path + "/" + r.name
	}
	return "/" + r.d.Path + "/" + r.name
}

// resourceAt returns the resource that a path names, or is below.
func resourceAt(t *testing.T, path string) reference {
	t.Helper()
	segments := strings.Split(strings.TrimPrefix(path, "/"), "/")
	var r reference
	if len(segments) > 3 && segments[0] == "meshes" {
		r.mesh, segments = segments[1], segments[2:]
	}
	var ok bool
	if r.d, ok = resource.ByPath(segments[0]); !ok || len(segments) < 2 {
		t.Fatalf("%s names no resource", path)
	}
	r.name = segments[1]
	return r
}

// home is the plane on which a type is written.
func (b book) home(d *resource.Descriptor) *plane {
	if d.Flow == resource.FlowToGlobal || d.Flow == resource.FlowBoth {
		return b.zone
	}
	return b.global
}

func (b book) other(d *resource.Descriptor) *plane {
	if b.home(d) == b.zone {
		return b.global
	}
	return b.zone
}

// zoneLocal is the name under which a zone of ours can have what the page shows under the name that a global gives it.
func zoneLocal(name string) string { return strings.ReplaceAll(name, ".", "-") }

// seenOn rewrites the path of what a zone has for the plane that is asked: the global puts the zone before the name.
func (b book) seenOn(p *plane, path string) string {
	segments := strings.Split(path, "/")
	at := 2
	if segments[1] == "meshes" {
		at = 4
	}
	if len(segments) <= at || segments[at] == "" {
		return path
	}
	switch segments[at-1] {
	case "dataplanes", "dataplane", "dataplanes+insights", "dataplane+insights", "zone-ingress", "zone-ingresses", "zoneingresses", "zoneingresses+insights",
		"zoneegresses", "zoneegressoverviews", "zonesegressoverviews":
		segments[at] = zoneLocal(segments[at])
		if p == b.global {
			segments[at] = zoneName + "." + segments[at]
		}
	}
	return strings.Join(segments, "/")
}

// itemsOf returns the resources that an answer shows: its items, or itself.
func itemsOf(t *testing.T, raw json.RawMessage) []map[string]any {
	t.Helper()
	var v any
	if raw == nil {
		return nil
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	one, ok := v.(map[string]any)
	if !ok {
		return nil
	}
	list, ok := one["items"].([]any)
	if !ok {
		return []map[string]any{one}
	}
	var out []map[string]any
	for _, i := range list {
		out = append(out, i.(map[string]any))
	}
	return out
}

// drop removes a key from an object, or from the items of a list.
func drop(v any, key string) {
	o, ok := v.(map[string]any)
	if !ok {
		return
	}
	delete(o, key)
	items, _ := o["items"].([]any)
	for _, i := range items {
		drop(i, key)
	}
}

// dropBelow removes a key from every object of the given name, and from the objects of a list of that name.
func dropBelow(v any, parent, key string) {
	switch x := v.(type) {
	case map[string]any:
		for k, child := range x {
			if k == parent {
				remove(child, key)
			}
			dropBelow(child, parent, key)
		}
	case []any:
		for _, child := range x {
			dropBelow(child, parent, key)
		}
	}
}

func remove(v any, key string) {
	switch x := v.(type) {
	case map[string]any:
		delete(x, key)
	case []any:
		for _, element := range x {
			remove(element, key)
		}
	}
}

func clone(t *testing.T, v any) any {
	t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var c any
	if err := json.Unmarshal(raw, &c); err != nil {
		t.Fatal(err)
	}
	return c
}

func objectOf(t *testing.T, raw json.RawMessage) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(raw, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// wants checks the status of an answer.
func wants(t *testing.T, a answer, status int) answer {
	t.Helper()
	if a.status != status {
		t.Fatalf("status %d, want %d: %s", a.status, status, a.body)
	}
	return a
}

func statusIs(p *plane, path string, status int) string {
	a, err := p.try(http.MethodGet, path, "")
	if err == nil && a.status == status {
		return ""
	}
	return fmt.Sprint(a.status, " ", err)
}
