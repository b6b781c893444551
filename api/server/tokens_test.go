package server

import (
	"bytes"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/types/known/wrapperspb"

	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/tokens"
	"github.com/meridian-mesh/meridian/common/token"
)

// signingKeys are keys that all tests share: making one takes longer than most of them.
var signingKeys = sync.OnceValue(func() (keys [5][]byte) {
	for i := range keys {
		var err error
		if keys[i], err = token.NewSigningKey(); err != nil {
			panic(err)
		}
	}
	return keys
})

// seedSecret stores a secret as another part of the plane, or synchronisation, would.
func (p *plane) seedSecret(typ resource.Type, mesh, name, origin string, data []byte) {
	p.t.Helper()
	p.seed(record(p.t, typ, mesh, name, origin, &systemv1.Secret{Data: wrapperspb.Bytes(data)}))
}

// seedKeys stores the mesh demo and key number 1 of each kind. On a zone, all but the user's come from the global, of the
// zone token's key only the public half.
func (p *plane) seedKeys(pl resource.Plane) {
	p.t.Helper()
	origin := ""
	if pl == resource.Zone {
		origin = "global"
	}
	keys := signingKeys()
	p.seed(record(p.t, resource.Mesh, "", "demo", origin, nil))
	p.seedSecret(resource.Secret, "demo", "dataplane-token-signing-key-demo-1", origin, keys[0])
	p.seedSecret(resource.GlobalSecret, "", "zone-ingress-token-signing-key-1", origin, keys[1])
	p.seedSecret(resource.GlobalSecret, "", "user-token-signing-key-1", "", keys[3])
	if pl == resource.Global {
		p.seedSecret(resource.GlobalSecret, "", "zone-token-signing-key-1", "", keys[2])
		return
	}
	public, err := token.PublicHalf(keys[2])
	if err != nil {
		p.t.Fatal(err)
	}
	p.seedSecret(resource.GlobalSecret, "", "zone-token-signing-public-key-1", origin, public)
}

// tokenCases are a request for a token of each kind, and what the token says.
var tokenCases = []struct {
	path, body string
	kind       tokens.Kind
	mesh       string
	want       tokens.Claims
}{
	{
		"/tokens/dataplane", `{"name": "dp-echo-1", "mesh": "demo", "tags": {"kuma.io/service": ["backend", "backend-admin"]}}`,
		tokens.Dataplane, "demo",
		tokens.Claims{Name: "dp-echo-1", Mesh: "demo", Tags: map[string][]string{"kuma.io/service": {"backend", "backend-admin"}}},
	},
	{
		"/tokens", `{"mesh": "demo", "type": "ingress", "validFor": "24h"}`, tokens.Dataplane, "demo",
		tokens.Claims{Mesh: "demo", Type: "ingress", Tags: map[string][]string{}},
	},
	{"/tokens/zone-ingress", `{"zone": "us-east", "validFor": "720h"}`, tokens.ZoneIngress, "", tokens.Claims{Zone: "us-east"}},
	{"/tokens/zone", `{"zone": "zone-1", "scope": ["cp"]}`, tokens.Zone, "", tokens.Claims{Zone: "zone-1", Scope: []string{"cp"}}},
	{"/tokens/zone", `{"scope": []}`, tokens.Zone, "", tokens.Claims{Scope: []string{}}},
	{"/tokens/user", `{"name": "jane", "groups": ["a", "b"], "validFor": "1h30m"}`, tokens.User, "", tokens.Claims{Name: "jane", Groups: []string{"a", "b"}}},
	{"/tokens/user", `{"name": "joe", "validFor": "87600h"}`, tokens.User, "", tokens.Claims{Name: "joe"}},
}

func TestTokensOfEachKindAreIssued(t *testing.T) {
	p := newPlane(t, resource.Global)
	p.seedKeys(resource.Global)
	authority := tokens.NewAuthority()
	for _, tc := range tokenCases {
		for _, method := range [...]string{http.MethodPost, http.MethodPut} {
			a := p.want(200, method, tc.path, tc.body)
			if a.Header.Get("Content-Type") != "text/plain" || a.Header.Get("Cache-Control") != "no-store" || strings.TrimSpace(a.Body) != a.Body {
				t.Errorf("%s %s: got %v", method, tc.path, a.Header)
			}
			got, err := authority.Verify(p.store.Snapshot(), tc.kind, tc.mesh, a.Body)
			if err != nil {
				t.Errorf("%s %s: %v", method, tc.path, err)
				continue
			}
			life, want := got.Expires.Sub(got.Issued), 10*365*24*time.Hour
			if v, ok := object(t, tc.body)["validFor"].(string); ok {
				want, _ = time.ParseDuration(v)
			}
			if life != want || got.KeyID != "1" || got.ID == "" {
				t.Errorf("%s %s: valid for %s, want %s; key %q, id %q", method, tc.path, life, want, got.KeyID, got.ID)
			}
			got.ID, got.KeyID, got.Issued, got.Expires = "", "", time.Time{}, time.Time{}
			if diff := cmp.Diff(tc.want, got); diff != "" {
				t.Errorf("%s %s: %s", method, tc.path, diff)
			}
		}
	}
	a := p.want(200, http.MethodPost, "/tokens/zone", "zone: zone-1\nscope: [cp]\n", "-Content-Type", "Content-Type: application/yaml")
	if _, err := authority.Verify(p.store.Snapshot(), tokens.Zone, "", a.Body); err != nil {
		t.Errorf("asked for in YAML: %v", err)
	}
}

func TestWhatAZoneCanIssue(t *testing.T) {
	p := newPlane(t, resource.Zone)
	p.seedKeys(resource.Zone)
	for _, tc := range tokenCases {
		want := 200
		if tc.kind == tokens.Zone {
			want = 404
		}
		a := p.want(want, http.MethodPost, tc.path, tc.body)
		if want == 404 {
			const body = "{\n \"title\": \"Signing Key not found\",\n \"details\": \"no signing key: there is no GlobalSecret/zone-token-signing-key-1\"\n}\n"
			if diff := cmp.Diff(body, a.Body); diff != "" {
				t.Error(diff)
			}
		}
	}
}

func TestRequestsForTokensThatAreRefused(t *testing.T) {
	p := newPlane(t, resource.Global)
	p.seedKeys(resource.Global)
	field := func(f, m string) string {
		return fmt.Sprintf("{\n \"title\": \"Invalid request\",\n \"details\": \"Resource is not valid\",\n \"causes\": [\n  {\n   \"field\": %q,\n   \"message\": %q\n  }\n ]\n}\n", f, m)
	}
	for _, tc := range []struct {
		name, path, body string
		status           int
		want             string // the body, or its beginning; empty: any
		headers          []string
	}{
		{"no mesh", "/tokens/dataplane", `{}`, 400, field("mesh", "cannot be empty"), nil},
		{"no mesh, the short path", "/tokens", `{"mesh":""}`, 400, field("mesh", "cannot be empty"), nil},
		{"an unknown proxy type", "/tokens/dataplane", `{"mesh":"demo","type":"gateway"}`, 400, field("type", "gateway is not a valid proxy type"), nil},
		{"no duration", "/tokens/dataplane", `{"mesh":"demo","validFor":"soon"}`, 400, field("validFor", `is invalid: time: invalid duration "soon"`), nil},
		{"a duration without a unit", "/tokens/zone", `{"scope":[],"validFor":"10"}`, 400, field("validFor", `is invalid: time: missing unit in duration "10"`), nil},
		{"a negative duration", "/tokens/zone-ingress", `{"zone":"z","validFor":"-1h"}`, 400, field("validFor", "must be between 1s and 876000h"), nil},
		{"no time at all", "/tokens/zone-ingress", `{"zone":"z","validFor":"0s"}`, 400, field("validFor", "must be between 1s and 876000h"), nil},
		{"more than a hundred years", "/tokens/zone-ingress", `{"zone":"z","validFor":"876001h"}`, 400, field("validFor", "must be between 1s and 876000h"), nil},
		{"no zone", "/tokens/zone-ingress", `{"zone":null}`, 400, field("zone", "cannot be empty"), nil},
		{"no scope", "/tokens/zone", `{"zone":"z"}`, 400, field("scope", "cannot be empty"), nil},
		{"scope null", "/tokens/zone", `{"zone":"z","scope":null}`, 400, field("scope", "cannot be empty"), nil},
		{"no user", "/tokens/user", `{"validFor":"1h"}`, 400, field("name", "cannot be empty"), nil},
		{"a user token without an end", "/tokens/user", `{"name":"jane"}`, 400, field("validFor", "cannot be empty"), nil},
		{"a wrong type", "/tokens/user", `{"name":["jane"],"validFor":"1h"}`, 400, field("name", "must be a string"), nil},
		{"another wrong type", "/tokens/user", `{"name":"jane","groups":"a","validFor":"1h"}`, 400, field("groups", "must be a list of strings"), nil},
		{"a third wrong type", "/tokens", `{"mesh":"demo","tags":{"a":"b"}}`, 400, field("tags", "must be an object of lists of strings"), nil},
		{"all that is wrong", "/tokens/user", `{}`, 400, "{\n \"title\": \"Invalid request\",\n \"details\": \"Resource is not valid\",\n \"causes\": [\n  {\n   \"field\": \"name\",\n   \"message\": \"cannot be empty\"\n  },\n  {\n   \"field\": \"validFor\",", nil},
		{"claims that fit no token", "/tokens/user", `{"name":"` + strings.Repeat("x", 10000) + `","validFor":"1h"}`, 400, field("", "invalid token: token would be longer than 8192 bytes"), nil},
		{"a field given twice", "/tokens/zone", `{"zone":"a","zone":"b","scope":[]}`, 400, field("zone", "is given twice"), nil},
		{"broken JSON", "/tokens/zone", `{`, 400, "{\n \"title\": \"Invalid request\"", nil},
		{"garbage after the JSON", "/tokens/zone", `{"scope":[]}x`, 400, "{\n \"title\": \"Invalid request\"", nil},
		{"a list", "/tokens/zone", `[]`, 400, field("", "must be an object"), nil},
		{"null", "/tokens/zone", `null`, 400, field("", "must be an object"), nil},
		{"an unknown field, strictly", "/tokens/zone?strict=true", `{"scope":[],"x":1}`, 400, field("x", "unknown field"), nil},
		{"a form", "/tokens/zone", `zone=a`, 415, "415", []string{"-Content-Type", "Content-Type: application/x-www-form-urlencoded"}},
		{"a body too large", "/tokens/zone", `{"zone":"` + strings.Repeat("x", 1<<17) + `"}`, 413, "{\n \"title\": \"Invalid request\"", nil},
		{"an unknown mesh", "/tokens/dataplane", `{"mesh":"none"}`, 404, "{\n \"title\": \"Signing Key not found\",\n \"details\": \"no signing key: there is no Secret/none/dataplane-token-signing-key-none-1\"\n}\n", nil},
		{"somebody from elsewhere", "/tokens/user", `{"name":"mesh-system:admin","validFor":"1h"}`, 403, "{\n \"title\": \"Access Denied\",\n \"details\": \"action not allowed\"\n}\n", []string{"Remote: 10.0.0.1:1"}},
		{"somebody from elsewhere, with broken JSON", "/tokens/zone", `{`, 403, "{\n \"title\": \"Access Denied\"", []string{"Remote: 10.0.0.1:1"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, method := range [...]string{http.MethodPost, http.MethodPut} {
				p := &plane{t: t, srv: p.srv, store: p.store}
				a := p.want(tc.status, method, tc.path, tc.body, tc.headers...)
				if !strings.HasPrefix(a.Body, tc.want) {
					t.Errorf("got  %s\nwant %s", a.Body, tc.want)
				}
			}
		})
	}
	a := p.want(200, http.MethodPost, "/tokens/zone", `{"scope":[],"zome":"x"}`)
	if diff := cmp.Diff([]string{`299 - "unknown field zome"`}, a.Header["Warning"]); diff != "" {
		t.Error(diff)
	}
	for _, path := range [...]string{"/tokens", "/tokens/dataplane", "/tokens/zone", "/tokens/zone-ingress", "/tokens/user"} {
		for _, method := range [...]string{http.MethodGet, http.MethodHead, http.MethodDelete} {
			if allow := p.want(405, method, path, "").Header.Get("Allow"); allow != "PUT, POST" {
				t.Errorf("%s %s: allowed are %q", method, path, allow)
			}
		}
	}
}

func TestRightsToMakeTokensAreGrantedSeparately(t *testing.T) {
	access := DefaultAccess()
	access.Static.GenerateDataplaneToken = Grant{Users: []string{"deployer"}}
	access.Static.GenerateZoneToken = Grant{Groups: []string{"zones"}}
	p := newPlane(t, resource.Global, func(o *Options) { o.Access = &access })
	p.seedKeys(resource.Global)
	deployer := p.bearer("deployer", time.Hour)
	joe := p.bearer("joe", time.Hour, "zones", "other")
	for _, tc := range tokenCases {
		want := map[string]int{deployer: 403, joe: 403}
		switch tc.kind {
		case tokens.Dataplane:
			want[deployer] = 200
		case tokens.Zone, tokens.ZoneIngress:
			want[joe] = 200
		case tokens.User:
		}
		for who, status := range want {
			p.want(status, http.MethodPost, tc.path, tc.body, "Remote: 10.0.0.1:1", who)
		}
		status := 403 // the list was replaced, so administrators are no longer on it
		if tc.kind == tokens.User {
			status = 200
		}
		p.want(status, http.MethodPost, tc.path, tc.body)
	}
}

func TestEveryTokenLeavesOneAuditLine(t *testing.T) {
	var log bytes.Buffer
	p := newPlane(t, resource.Global, func(o *Options) { o.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	p.seedKeys(resource.Global)
	for _, tc := range []struct {
		path, body, remote, want string
	}{
		{"/tokens/dataplane", `{"name":"dp-1","mesh":"demo"}`, "127.0.0.1:1", "msg=token component=api action=issue outcome=issued status=200 kind=dataplane mesh=demo zone=\"\" name=dp-1 "},
		{"/tokens/zone", `{"zone":"z","scope":["cp"]}`, "127.0.0.1:1", "kind=zone mesh=\"\" zone=z name=\"\" groups=[] scope=[cp] token_id="},
		{"/tokens/user", `{"name":"jane","groups":["a","b"],"validFor":"1h"}`, "127.0.0.1:1", "name=jane groups=\"[a b]\""},
		{"/tokens/user", `{"name":"jane","validFor":"1h"}`, "10.0.0.9:1", "outcome=refused status=403 kind=user user=mesh-system:anonymous/mesh-system:unauthenticated remote=10.0.0.9:1"},
		{"/tokens/zone", `{`, "127.0.0.1:1", "outcome=refused status=400 kind=zone"},
		{"/tokens", `{"mesh":"none"}`, "127.0.0.1:1", "outcome=refused status=404 kind=dataplane"},
	} {
		log.Reset()
		a := p.do(http.MethodPost, tc.path, tc.body, "Remote: "+tc.remote)
		got := log.String()
		if strings.Count(got, "\n") != 1 || !strings.Contains(got, tc.want) {
			t.Errorf("POST %s logged %s want %s", tc.path, got, tc.want)
		}
		if a.Status != 200 {
			continue
		}
		if strings.Contains(got, a.Body) || strings.Contains(got, strings.Split(a.Body, ".")[2]) {
			t.Errorf("POST %s logged the token: %s", tc.path, got)
		}
		for _, key := range [...]string{" token_id=", " key=1 ", " expires=", " user=mesh-system:admin/"} {
			if !strings.Contains(got, key) {
				t.Errorf("POST %s logged %s without %s", tc.path, got, key)
			}
		}
	}
}
