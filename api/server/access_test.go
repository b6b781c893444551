package server

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/tokens"
	"github.com/meridian-mesh/meridian/common/config"
)

// remote makes a request come from elsewhere.
const remote = "Remote: 10.0.0.1:1"

// issue returns a token and its claims.
func (p *plane) issue(kind tokens.Kind, c tokens.Claims, validFor time.Duration) (string, tokens.Claims) {
	p.t.Helper()
	raw, issued, err := tokens.NewAuthority().Issue(p.store.Snapshot(), kind, c, validFor)
	if err != nil {
		p.t.Fatal(err)
	}
	return raw, issued
}

// bearer returns the header of a user with a fresh token.
func (p *plane) bearer(name string, validFor time.Duration, groups ...string) string {
	p.t.Helper()
	raw, _ := p.issue(tokens.User, tokens.Claims{Name: name, Groups: groups}, validFor)
	return "Authorization: Bearer " + raw
}

const unauthenticated = "{\n \"title\": \"Invalid authentication data\",\n \"details\": \"Unauthenticated\"\n}\n"

// wantStranger checks that a header is refused on endpoints of every sort.
func (p *plane) wantStranger(header string) {
	p.t.Helper()
	for _, req := range [...][2]string{
		{"GET", "/meshes"},
		{"GET", "/"},
		{"GET", "/config"},
		{"GET", "/global-secrets"},
		{"GET", "/no/such/path"},
		{"POST", "/tokens/user"},
		{"PUT", "/meshes/new"},
		{"DELETE", "/meshes/demo"},
		{"PATCH", "/meshes/demo"},
	} {
		a := p.want(401, req[0], req[1], "", remote, header)
		if diff := cmp.Diff(unauthenticated, a.Body); diff != "" || a.Header.Get("Www-Authenticate") != "Bearer" {
			p.t.Errorf("%s %s: %v %s", req[0], req[1], a.Header, diff)
		}
	}
}

func TestAUserTokenSaysWhoIsAsking(t *testing.T) {
	for _, pl := range [...]resource.Plane{resource.Global, resource.Zone} {
		p := newPlane(t, pl)
		p.seedKeys(pl)
		for _, tc := range []struct {
			name, header string
			secrets      int
			user         string // as errors show it
		}{
			{"nobody", "X: y", 403, "mesh-system:anonymous/mesh-system:unauthenticated"},
			{"a user", p.bearer("jane", time.Hour, "team-a", "team-b"), 403, "jane/team-a,team-b,mesh-system:authenticated"},
			{"a user without groups", p.bearer("joe", time.Hour), 403, "joe/mesh-system:authenticated"},
			{"a user that says to be authenticated", p.bearer("jim", time.Hour, authenticatedGroup), 403, "jim/mesh-system:authenticated"},
			{"an administrator by name", p.bearer("mesh-system:admin", time.Hour), 200, ""},
			{"an administrator by group", p.bearer("jane", time.Hour, "mesh-system:admin"), 200, ""},
			{"the scheme in lower case", strings.Replace(p.bearer("jane", time.Hour, "mesh-system:admin"), "Bearer", "bearer", 1), 200, ""},
			{"another scheme", "Authorization: Basic amFuZTpwdw==", 403, "mesh-system:anonymous/mesh-system:unauthenticated"},
			{"a token without a scheme", "Authorization: " + strings.TrimPrefix(p.bearer("mesh-system:admin", time.Hour), "Authorization: Bearer "), 403, "mesh-system:anonymous/mesh-system:unauthenticated"},
		} {
			for _, path := range [...]string{"/global-secrets", "/global-secrets/user-token-signing-key-1", "/secrets", "/meshes/demo/secrets"} {
				a := p.want(tc.secrets, http.MethodGet, path, "", remote, tc.header)
				if tc.secrets == 403 && !strings.Contains(a.Body, `user \"`+tc.user+`\" cannot access the resource of type`) {
					t.Errorf("%s: %s", tc.name, a.Body)
				}
			}
			p.want(200, http.MethodGet, "/meshes", "", remote, tc.header)
		}
	}
}

func TestABearerTokenThatProvesNothingIsRefusedEverywhere(t *testing.T) {
	for _, pl := range [...]resource.Plane{resource.Global, resource.Zone} {
		p := newPlane(t, pl)
		p.seedKeys(pl)
		good := p.bearer("mesh-system:admin", time.Hour)
		expired := p.bearer("mesh-system:admin", -time.Hour)
		ingress, _ := p.issue(tokens.ZoneIngress, tokens.Claims{Zone: "z"}, time.Hour)
		dataplane, _ := p.issue(tokens.Dataplane, tokens.Claims{Mesh: "demo", Name: "mesh-system:admin"}, time.Hour)
		for _, header := range [...]string{
			"Authorization: Bearer", "Authorization: Bearer ", "Authorization: Bearer x", "Authorization: Bearer a.b.c", good + "x", good + " x",
			"Authorization: Bearer " + strings.Repeat("x", 20000), expired, "Authorization: Bearer " + ingress, "Authorization: Bearer " + dataplane,
		} {
			p.wantStranger(header)
			p.want(200, http.MethodGet, "/meshes", "", header) // on this host, nobody looks at it
		}
		p.want(200, http.MethodGet, "/global-secrets", "", remote, good)
	}
}

func TestUserTokensEndWithTimeRevocationAndTheirKey(t *testing.T) {
	signingKeys()
	synctest.Test(t, func(t *testing.T) {
		p := newPlane(t, resource.Global)
		p.seedKeys(resource.Global)
		const list = "/global-secrets/user-token-revocations"
		secret := func(name string, data []byte) string {
			return `{"type":"GlobalSecret","name":"` + name + `","data":"` + base64.StdEncoding.EncodeToString(data) + `"}`
		}
		raw, issued := p.issue(tokens.User, tokens.Claims{Name: "jane", Groups: []string{adminGroup}}, time.Hour)
		jane, jim := "Authorization: Bearer "+raw, p.bearer("jim", 2*time.Hour, adminGroup)
		works := func(header string) {
			t.Helper()
			p.want(200, http.MethodGet, "/global-secrets", "", remote, header)
		}

		works(jane)
		p.want(201, http.MethodPut, list, secret("user-token-revocations", []byte("x,"+issued.ID+"\n")), remote, jane)
		p.wantStranger(jane)
		works(jim)
		p.want(200, http.MethodDelete, list, "", remote, jim)
		works(jane)

		time.Sleep(time.Hour)
		p.wantStranger(jane)
		works(jim)

		// A new key signs, the old one still verifies, until it is removed.
		p.want(201, http.MethodPut, "/global-secrets/user-token-signing-key-2", secret("user-token-signing-key-2", signingKeys()[4]), remote, jim)
		a := p.want(200, http.MethodPost, "/tokens/user", `{"name":"kim","groups":["mesh-system:admin"],"validFor":"1h"}`, remote, jim)
		kim := "Authorization: Bearer " + a.Body
		works(jim)
		works(kim)
		p.want(200, http.MethodDelete, "/global-secrets/user-token-signing-key-1", "", remote, kim)
		p.wantStranger(jim)
		works(kim)
	})
}

func TestWritesCanBeClosedToAnonymous(t *testing.T) {
	var log bytes.Buffer
	for _, pl := range [...]resource.Plane{resource.Global, resource.Zone} {
		p := newPlane(t, pl, func(o *Options) {
			o.Writes = "authenticated"
			o.Log = slog.New(slog.NewTextHandler(&log, nil))
		})
		p.seedKeys(pl)
		item, body := "/meshes/demo/retries/r", bodyOf(t, lookup(t, "Retry"), "demo", "r")
		if pl == resource.Zone {
			item, body = "/meshes/demo/dataplanes/d", bodyOf(t, lookup(t, "Dataplane"), "demo", "d")
		}
		log.Reset()
		a := p.want(403, http.MethodPut, item, body, remote)
		want := "{\n \"title\": \"Access Denied\",\n \"details\": \"user \\\"mesh-system:anonymous/mesh-system:unauthenticated\\\" cannot write: this control plane takes writes from authenticated users only\"\n}\n"
		if diff := cmp.Diff(want, a.Body); diff != "" {
			t.Error(diff)
		}
		if !strings.Contains(log.String(), "action=put outcome=refused status=403") {
			t.Errorf("logged %s", log.String())
		}
		p.want(403, http.MethodDelete, "/meshes/demo", "", remote)
		p.want(200, http.MethodGet, "/meshes/demo", "", remote)
		p.want(201, http.MethodPut, item, body, remote, p.bearer("jane", time.Hour))
		p.want(200, http.MethodPut, item, body)
	}
}

func TestARefusedStrangerLeavesAnAuditLineWhenItWantedToWrite(t *testing.T) {
	var log bytes.Buffer
	p := newPlane(t, resource.Global, func(o *Options) { o.Log = slog.New(slog.NewTextHandler(&log, nil)) })
	p.seedKeys(resource.Global)
	expired := p.bearer("jane", -time.Hour)
	for method, want := range map[string]string{
		"GET": "", "HEAD": "", "OPTIONS": "",
		"PUT":    `action=put outcome=refused status=401 path=/meshes/x user=unknown remote=10.0.0.1:1 err="user token: token is expired"`,
		"DELETE": `action=delete outcome=refused status=401 path=/meshes/x`,
		"POST":   `action=post outcome=refused status=401 path=/meshes/x`,
	} {
		log.Reset()
		p.want(401, method, "/meshes/x", "", remote, expired)
		got := log.String()
		if (want == "") != (got == "") || !strings.Contains(got, want) || strings.Contains(got, expired[22:]) {
			t.Errorf("%s logged %s want %s", method, got, want)
		}
	}
}

func TestWhatProxiesShowCanBeOpened(t *testing.T) {
	access := DefaultAccess()
	access.Static.ViewStats = Grant{Groups: []string{unauthenticatedGroup, authenticatedGroup}}
	access.Static.ViewClusters = Grant{Users: []string{"jane"}}
	p := newPlane(t, resource.Zone, func(o *Options) { o.Access = &access })
	p.seedKeys(resource.Zone)
	jane := p.bearer("jane", time.Hour)
	for view, want := range map[string][2]int{"xds": {403, 403}, "stats": {404, 404}, "clusters": {403, 404}} {
		p.want(want[0], http.MethodGet, "/meshes/demo/dataplanes/none/"+view, "", remote)
		p.want(want[1], http.MethodGet, "/meshes/demo/dataplanes/none/"+view, "", remote, jane)
	}
}

// clientCert makes a self-signed client certificate.
func clientCert(t *testing.T) (tls.Certificate, []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "admin"}, NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestAClientCertificateMakesAnAdministrator(t *testing.T) {
	dir := t.TempDir()
	conf, client := selfSigned(t)
	mine, file := clientCert(t)
	foreign, _ := clientCert(t)
	path := filepath.Join(dir, "admin.pem")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	p := newPlane(t, resource.Global, func(o *Options) {
		o.HTTPSPort, o.TLS, o.ClientCertsDir, o.LocalhostIsAdmin = 0, conf, dir, false
	})
	p.seedKeys(resource.Global)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.srv.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	roots := client.Transport.(*http.Transport).TLSClientConfig.RootCAs
	with := func(certs ...tls.Certificate) func() int {
		c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: certs}, ForceAttemptHTTP2: true}}
		t.Cleanup(c.CloseIdleConnections)
		return func() int {
			res, err := c.Get("https://" + p.srv.HTTPSAddr().String() + "/global-secrets")
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			return res.StatusCode
		}
	}
	admin := with(mine)
	if got := [...]int{admin(), with(foreign)(), with()()}; got != [...]int{200, 401, 403} {
		t.Errorf("with the certificate, with another, and without: got %v, want 200, 401, 403", got)
	}
	// Removing the file ends the right, on the connection that is open too.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	for start := time.Now(); admin() != 401; time.Sleep(20 * time.Millisecond) {
		if time.Since(start) > 10*time.Second {
			t.Fatal("the certificate is still trusted")
		}
	}
}

func TestAdministratorsCanBeOthers(t *testing.T) {
	access := DefaultAccess()
	access.Static.AdminResources = Grant{Groups: []string{"ops"}}
	p := newPlane(t, resource.Global, func(o *Options) { o.Access = &access })
	p.seedKeys(resource.Global)
	p.want(200, http.MethodGet, "/global-secrets", "", remote, p.bearer("jane", time.Hour, "ops"))
	p.want(403, http.MethodGet, "/global-secrets", "", remote, p.bearer("mesh-system:admin", time.Hour, "mesh-system:admin"))
}

// TestNothingSecretLeavesByTheWay drives every endpoint that handles tokens or secrets, well and badly, and looks for key
// material, secrets and tokens wherever they have no business: log, metrics, configuration, and every answer but the one
// to who asked for just that.
func TestNothingSecretLeavesByTheWay(t *testing.T) {
	var log bytes.Buffer
	reg := prometheus.NewRegistry()
	p := newPlane(t, resource.Global, func(o *Options) {
		o.Log = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		o.Registerer = reg
		c := o.Config
		o.EffectiveConfig = func() ([]byte, error) { return config.Effective(c) }
	})
	p.seedKeys(resource.Global)

	const plain = "correct-horse-battery-staple"
	secrets := []string{plain, base64.StdEncoding.EncodeToString([]byte(plain)), base64.URLEncoding.EncodeToString([]byte(plain))}
	for _, key := range signingKeys() {
		text := strings.Split(string(key), "\n")[3] // a line of the PEM
		whole := base64.StdEncoding.EncodeToString(key)
		secrets = append(secrets, text, whole[200:240], whole[400:440])
	}
	seen := 0 // answers that may show a secret
	search := func(where, text string) {
		t.Helper()
		for _, s := range secrets {
			if strings.Contains(text, s) {
				t.Errorf("%s shows %q:\n%.500s", where, s, text)
			}
		}
	}
	request := func(may bool, method, path, body string, headers ...string) answer {
		t.Helper()
		a := p.do(method, path, body, headers...)
		if may && a.Status < 300 {
			seen++
			return a
		}
		search(method+" "+path, a.Body)
		for _, values := range a.Header {
			search(method+" "+path, strings.Join(values, "\n"))
		}
		return a
	}

	var issued []string
	for _, tc := range tokenCases {
		a := request(true, http.MethodPost, tc.path, tc.body)
		parts := strings.Split(a.Body, ".")
		issued = append(issued, a.Body)
		secrets = append(secrets, parts[1], parts[2])
		request(false, http.MethodPost, tc.path, tc.body, remote)
		request(false, http.MethodPost, tc.path, tc.body[:len(tc.body)-1])
		request(false, http.MethodPost, tc.path, `{"name":"`+plain[:4]+`"}`)
	}
	for _, raw := range issued {
		for _, header := range [...]string{"Authorization: Bearer " + raw, "Authorization: Bearer " + raw[:len(raw)-1], "Authorization: bearer x" + raw, "Authorization: Basic " + raw} {
			request(false, http.MethodGet, "/meshes", "", remote, header)
			request(false, http.MethodGet, "/global-secrets", "", remote, header)
			request(false, http.MethodPut, "/meshes/x", `{"type":"Mesh","name":"x"}`, remote, header)
			request(false, http.MethodPost, "/tokens/user", `{"name":"a","validFor":"1h"}`, remote, header)
		}
	}
	for _, d := range [...]struct{ item, list, meta string }{
		{"/global-secrets/s", "/global-secrets", `"type":"GlobalSecret","name":"s"`},
		{"/meshes/demo/secrets/s", "/meshes/demo/secrets", `"type":"Secret","name":"s","mesh":"demo"`},
	} {
		for _, data := range [...]string{
			`"` + secrets[1] + `"`, `"` + plain + `!!"`, `{"value":"` + plain + `"}`, `["` + plain + `"]`, `{"` + plain + `":1}`, plain, `"` + plain,
		} {
			for _, who := range [...]string{"X: y", remote} {
				request(false, http.MethodPut, d.item, `{`+d.meta+`,"data":`+data+`}`, who)
				request(false, http.MethodPut, d.item+"?strict=true", `{`+d.meta+`,"data":`+data+`}`, who)
				request(false, http.MethodPut, d.item, "data: "+data, who, "-Content-Type", "Content-Type: application/yaml")
			}
		}
		for _, who := range [...]string{"X: y", remote} {
			request(true, http.MethodGet, d.item, "", who)
			request(true, http.MethodGet, d.list, "", who)
			request(false, http.MethodGet, d.list+"?size=x", "", who)
			request(false, http.MethodDelete, d.item, "", remote)
		}
		request(false, http.MethodDelete, d.item, "")
	}
	request(true, http.MethodGet, "/secrets", "")
	if seen < len(tokenCases)+5 {
		t.Fatalf("only %d answers had something to show", seen)
	}

	request(false, http.MethodGet, "/config", "", remote)
	search("the log", log.String())
	metrics := httptest.NewRecorder()
	promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(metrics, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
	search("metrics", metrics.Body.String())
	if log.Len() < 10000 || metrics.Body.Len() < 1000 {
		t.Errorf("little to search: %d bytes of log, %d of metrics", log.Len(), metrics.Body.Len())
	}
}

func BenchmarkGetWithAUserToken(b *testing.B) {
	p := newPlane(b, resource.Global)
	p.seedKeys(resource.Global)
	jane := p.bearer("jane", time.Hour, "team-a")
	for name, headers := range map[string][]string{"anonymous": {remote}, "bearer": {remote, jane}} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if a := p.do(http.MethodGet, "/meshes/demo", "", headers...); a.Status != 200 {
					b.Fatal(a)
				}
			}
		})
	}
}
