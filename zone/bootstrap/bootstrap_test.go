package bootstrap

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/meridian-mesh/meridian/api/codec"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
)

var update = flag.Bool("update", false, "rewrite golden files")

// trust is a certificate with the names of hosts.
type trust struct {
	hosts []string
	ca    []byte
}

func (s trust) CA() ([]byte, error) { return s.ca, nil }

func (s trust) VerifyHost(host string) error {
	if !slices.Contains(s.hosts, host) {
		return errors.New("not valid for it")
	}
	return nil
}

const stored = `{"type":"Dataplane","mesh":"default","name":"stored","networking":{"address":"10.0.0.9","admin":{"port":9999},` +
	`"inbound":[{"port":80,"tags":{"kuma.io/service":"web"}}]}}`

const defaultMesh = `{"type":"Mesh","name":"default","metrics":{"enabledBackend":"p","backends":[{"name":"p","type":"prometheus","conf":{` +
	`"aggregate":[{"name":"app","port":8080,"path":"/stats"},{"name":"off","port":1,"enabled":false}]}}]}}`

const fencedMesh = `{"type":"Mesh","name":"fenced","constraints":{"dataplaneProxy":{"requirements":[{"tags":{"team":"*"}}]}}}`

func newStore(tb testing.TB, bodies ...string) *store.Store {
	tb.Helper()
	st, err := store.Open(tb.Context(), memory.New(), store.Options{Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = st.Close() })
	for _, body := range bodies {
		d, doc, err := codec.DecodeAny("application/json", []byte(body))
		if err != nil {
			tb.Fatal(err)
		}
		rec := &store.Record{Key: store.Key{Type: string(d.Name), Mesh: doc.Mesh, Name: doc.Name}, Spec: doc.Spec}
		if doc.Name == "foreign" {
			rec.Origin = "global"
		}
		if _, err := st.Update(tb.Context(), func(*store.Snapshot) ([]store.Op, error) { return []store.Op{store.Put(rec)}, nil }); err != nil {
			tb.Fatal(err)
		}
	}
	return st
}

func testCA(tb testing.TB) []byte {
	tb.Helper()
	ca, err := os.ReadFile(filepath.Join("testdata", "ca.crt"))
	if err != nil {
		tb.Fatal(err)
	}
	return ca
}

func newHandler(tb testing.TB, change func(*Options)) *Handler {
	tb.Helper()
	o := Options{
		Config: Default(), Trust: trust{[]string{"cp.example.com", "10.0.0.1", "::1"}, testCA(tb)},
		Store: newStore(tb, defaultMesh, fencedMesh, stored,
			`{"type":"ZoneIngress","name":"foreign","networking":{"address":"10.0.0.8","port":10001}}`,
			`{"type":"ZoneEgress","name":"out","networking":{"address":"10.0.0.7","port":10002,"admin":{"port":9902}}}`),
		Port: 5678, AuthRequired: true, HDS: true, Log: slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&o)
	}
	h, err := New(o)
	if err != nil {
		tb.Fatal(err)
	}
	return h
}

func post(h http.Handler, body, host string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, "/bootstrap", strings.NewReader(body))
	r.Host = host
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Accept", "application/json")
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

// readBootstrap reads YAML as kuma-dp does: typed, by way of JSON. Nothing may be unknown.
func readBootstrap(tb testing.TB, document []byte) *bootstrapv3.Bootstrap {
	tb.Helper()
	var v any
	if err := yaml.Unmarshal(document, &v); err != nil {
		tb.Fatal(err)
	}
	text, err := json.Marshal(v)
	if err != nil {
		tb.Fatal(err)
	}
	b := &bootstrapv3.Bootstrap{}
	if err := protojson.Unmarshal(text, b); err != nil {
		tb.Fatalf("%v\n%s", err, document)
	}
	if err := b.ValidateAll(); err != nil {
		tb.Fatal(err)
	}
	return b
}

// TestGolden makes a configuration of each testdata/<case>.request.json.
func TestGolden(t *testing.T) {
	requests, err := filepath.Glob(filepath.Join("testdata", "*.request.json"))
	if err != nil || len(requests) < 8 {
		t.Fatalf("%d requests, %v", len(requests), err)
	}
	for _, file := range requests {
		name := strings.TrimSuffix(filepath.Base(file), ".request.json")
		t.Run(name, func(t *testing.T) {
			body, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			host := "cp.example.com:5678"
			h := newHandler(t, func(o *Options) {
				switch name {
				case "token-path":
					o.UseTokenPath = true
				case "no-auth":
					o.AuthRequired, o.HDS = false, false
				}
			})
			if name == "no-auth" {
				host = "10.0.0.1:5678"
			}
			w := post(h, string(body), host)
			if w.Code != http.StatusOK {
				t.Fatalf("status %d: %s", w.Code, w.Body)
			}
			var resp response
			if err := json.Unmarshal(w.Body.Bytes(), &resp); err != nil {
				t.Fatal(err)
			}
			readBootstrap(t, resp.Bootstrap)
			sidecar, err := json.Marshal(resp.KumaSidecarConfiguration)
			if err != nil {
				t.Fatal(err)
			}
			got := append([]byte("# "+string(sidecar)+"\n"), resp.Bootstrap...)
			golden := filepath.Join("testdata", name+".golden.yaml")
			if *update {
				if err := os.WriteFile(golden, got, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
	goldens, err := filepath.Glob(filepath.Join("testdata", "*.golden.yaml"))
	if err != nil || len(goldens) != len(requests) {
		t.Errorf("%d golden files for %d requests, %v", len(goldens), len(requests), err)
	}
}

const leafCert = "leaf.crt"

func TestWhatIsRefused(t *testing.T) {
	leaf, err := os.ReadFile(filepath.Join("testdata", leafCert))
	if err != nil {
		t.Fatal(err)
	}
	quoted, err := json.Marshal(string(leaf))
	if err != nil {
		t.Fatal(err)
	}
	dp := func(spec string) string {
		text, err := json.Marshal(`{"type":"Dataplane","mesh":"default","name":"dp","networking":` + spec + `}`)
		if err != nil {
			t.Fatal(err)
		}
		return `{"mesh":"default","name":"dp","dataplaneToken":"t","dataplaneResource":` + string(text) + `}`
	}
	const inbound = `"address":"10.0.0.2","inbound":[{"port":80,"tags":{"kuma.io/service":"web"}}]`
	for name, tc := range map[string]struct {
		body, host string
		change     func(*Options)
		status     int
		text       string // part of the body; "": the body is empty
	}{
		"no JSON":              {body: `{`, status: 400},
		"JSON of another type": {body: `{"mesh":1}`, status: 400},
		"something after it":   {body: `{} {}`, status: 400},
		"a host that the certificate is not valid for": {
			body: `{"mesh":"default","name":"stored","dataplaneToken":"t"}`, host: "other:5678", status: 400, text: `"other"`,
		},
		"no host": {body: `{"mesh":"default","name":"stored","dataplaneToken":"t"}`, host: ":5678", status: 400, text: "Host header"},
		"a certificate that is no authority": {
			body: `{"mesh":"default","name":"stored","dataplaneToken":"t","caCert":` + string(quoted) + `}`, status: 400, text: "CA=false",
		},
		"a CA that is no certificate": {
			body: `{"mesh":"default","name":"stored","dataplaneToken":"t","caCert":"x"}`, status: 400, text: "not a certificate in PEM",
		},
		"a server whose authority is not known": {
			body: `{"mesh":"default","name":"stored","dataplaneToken":"t"}`, status: 400, text: "CA=false",
			change: func(o *Options) { o.Trust = trust{[]string{"cp.example.com"}, nil} },
		},
		"a server with a certificate that is no authority": {
			body: `{"mesh":"default","name":"stored","dataplaneToken":"t"}`, status: 400, text: "CA=false",
			change: func(o *Options) { o.Trust = trust{[]string{"cp.example.com"}, leaf} },
		},
		"no token": {body: `{"mesh":"default","name":"stored"}`, status: 422, text: "a token is required"},
		"a token that cannot be a header": {
			body: `{"mesh":"default","name":"stored","dataplaneToken":"a\nb"}`, status: 422, text: "dataplaneToken: ",
		},
		"an invalid resource":  {body: dp(`{}`), status: 422, text: "networking: has to contain at least one inbound interface or gateway"},
		"an ill-typed one":     {body: dp(`{"address":7}`), status: 422, text: "networking.address: "},
		"an unreadable one":    {body: `{"mesh":"default","name":"dp","dataplaneToken":"t","dataplaneResource":"{"}`, status: 422, text: " "},
		"one that is a number": {body: `{"mesh":"default","name":"dp","dataplaneToken":"t","dataplaneResource":"7"}`, status: 422, text: "not an object"},
		"an unknown mesh": {
			body: strings.ReplaceAll(dp(`{`+inbound+`}`), "default", "nowhere"), status: 422, text: `mesh: mesh "nowhere" does not exist`,
		},
		"a mesh with a dot": {
			body: strings.ReplaceAll(dp(`{`+inbound+`}`), "default", "a.b"), status: 422, text: `mesh: invalid characters`,
		},
		"a mesh that does not take the proxy": {
			body: strings.ReplaceAll(dp(`{`+inbound+`}`), "default", "fenced"), status: 422, text: `must meet one of the requirements`,
		},
		"outbounds beside transparent proxying": {
			body:   dp(`{` + inbound + `,"outbound":[{"port":81,"tags":{"kuma.io/service":"x"}}],"transparentProxying":{"redirectPortInbound":15006,"redirectPortOutbound":15001}}`),
			status: 422, text: "networking.outbound: must be empty",
		},
		"a name that differs": {
			body: strings.Replace(dp(`{`+inbound+`}`), `"name":"dp"`, `"name":"dp2"`, 1), status: 422, text: "name: differs",
		},
		"a name with bad characters": {
			body: strings.ReplaceAll(dp(`{`+inbound+`}`), `dp`, `D_P.x`), status: 422, text: "name: invalid characters",
		},
		"a resource of another plane": {
			body: `{"name":"foreign","proxyType":"ingress","dataplaneToken":"t","dataplaneResource":` +
				`"{\"type\":\"ZoneIngress\",\"name\":\"foreign\",\"networking\":{\"address\":\"10.0.0.8\",\"port\":10001}}"}`,
			status: 422, text: "another control plane",
		},
		"an admin port that is none": {
			body: dp(`{` + inbound + `,"admin":{"port":70000}}`), status: 422, text: "PortValue",
		},
		"a resource that is not there":     {body: `{"mesh":"default","name":"x","dataplaneToken":"t"}`, status: 404},
		"an ingress that is not there":     {body: `{"name":"x","proxyType":"ingress","dataplaneToken":"t"}`, status: 404},
		"nobody":                           {body: `null`, status: 404, change: func(o *Options) { o.AuthRequired = false }},
		"a proxy type that is not known":   {body: `{"mesh":"default","name":"stored","proxyType":"x","dataplaneToken":"t"}`, status: 500},
		"a resource of another kind":       {body: `{"name":"x","proxyType":"egress","dataplaneToken":"t","dataplaneResource":"type: ZoneIngress"}`, status: 500},
		"a resource without a kind":        {body: `{"name":"x","proxyType":"egress","dataplaneToken":"t","dataplaneResource":"name: x"}`, status: 500},
		"a body that is too long":          {body: `{"mesh":"` + strings.Repeat("x", maxBodyBytes) + `"}`, status: 413, text: "longer than"},
		"a body with a token path that is": {body: `{"mesh":"default","name":"gone","dataplaneTokenPath":"/t"}`, status: 404},
	} {
		t.Run(name, func(t *testing.T) {
			host := tc.host
			if host == "" {
				host = "cp.example.com:5678"
			}
			w := post(newHandler(t, tc.change), tc.body, host)
			if w.Code != tc.status {
				t.Errorf("status %d, want %d", w.Code, tc.status)
			}
			if body := w.Body.String(); (body == "") != (tc.text == "") || !strings.Contains(body, tc.text) {
				t.Errorf("body %q, want %q in it", body, tc.text)
			}
		})
	}
}

func TestTheAnswerDependsOnWhoAsks(t *testing.T) {
	const body = `{"mesh":"default","name":"stored","dataplaneToken":"t"}`
	t.Run("any other Accept gets the bare configuration", func(t *testing.T) {
		r := httptest.NewRequest(http.MethodPost, "/bootstrap", strings.NewReader(body))
		r.Host = "[::1]:5678"
		w := httptest.NewRecorder()
		newHandler(t, nil).ServeHTTP(w, r)
		if w.Code != http.StatusOK || w.Header().Get("Content-Type") != "text/x-yaml" {
			t.Fatalf("%d %v", w.Code, w.Header())
		}
		if b := readBootstrap(t, w.Body.Bytes()); b.GetNode().GetId() != "default.stored" {
			t.Errorf("node is %v", b.GetNode())
		}
	})
	t.Run("a configured host and port are used whatever the client used", func(t *testing.T) {
		h := newHandler(t, func(o *Options) { o.Params.XDSHost, o.Params.XDSPort = "xds.example.com", 443 })
		w := post(h, body, "other")
		var resp response
		if err := json.Unmarshal(w.Body.Bytes(), &resp); err != nil {
			t.Fatalf("%v: %s", err, w.Body)
		}
		if !bytes.Contains(resp.Bootstrap, []byte("xds.example.com")) || !bytes.Contains(resp.Bootstrap, []byte("443")) {
			t.Errorf("%s", resp.Bootstrap)
		}
	})
}

func TestSocketNamesFitTheKernel(t *testing.T) {
	if got := SocketName("kuma-al", "dp", "default"); got != "/tmp/kuma-al-dp-default.sock" {
		t.Errorf("%s", got)
	}
	if got := SocketName("kuma-mh", strings.Repeat("x", 200), "default"); len(got) != 103 {
		t.Errorf("%d bytes", len(got))
	}
}

func FuzzBootstrap(f *testing.F) {
	requests, err := filepath.Glob(filepath.Join("testdata", "*.request.json"))
	if err != nil {
		f.Fatal(err)
	}
	for _, file := range requests {
		body, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(body), "cp.example.com:5678")
	}
	f.Add(`{"mesh":"default","name":"dp","dataplaneToken":"t","dataplaneResource":"type: Dataplane\nnetworking: &a {x: *a}"}`, "[::1]")
	h := newHandler(f, nil)
	f.Fuzz(func(t *testing.T, body, host string) {
		w := post(h, body, host)
		if w.Code == http.StatusOK {
			var resp response
			if err := json.Unmarshal(w.Body.Bytes(), &resp); err != nil {
				t.Fatal(err)
			}
			readBootstrap(t, resp.Bootstrap)
		}
		if w.Code < 500 {
			return
		}
		// Only what is said to be 500 is: a type of proxy, or a kind of resource, that does not fit.
		var req request
		if err := json.Unmarshal([]byte(body), &req); err != nil || w.Body.Len() > 0 {
			t.Fatalf("status %d, body %q for %q", w.Code, w.Body, body)
		}
		switch req.ProxyType {
		case "", typeDataplane, typeIngress, typeEgress:
			if req.DataplaneResource == "" {
				t.Fatalf("status %d for %q", w.Code, body)
			}
		}
	})
}

func BenchmarkBootstrap(b *testing.B) {
	body, err := os.ReadFile(filepath.Join("testdata", "sidecar.request.json"))
	if err != nil {
		b.Fatal(err)
	}
	h := newHandler(b, nil)
	b.ReportAllocs()
	for b.Loop() {
		if w := post(h, string(body), "cp.example.com:5678"); w.Code != http.StatusOK {
			b.Fatal(w.Body)
		}
	}
}
