package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/meridian-mesh/meridian/e2e/envoy"
)

// stream opens a stream of a node that brings a resource, and asks for clusters. It ends with ctx.
func (p *Plane) stream(ctx context.Context, id, proxyType, resource string, authorization ...string,
) discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient {
	p.t.Helper()
	ca, err := os.ReadFile(filepath.Join(p.Dir, "trust", "dp-ca.crt"))
	if err != nil {
		p.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	conn, err := grpc.NewClient(fmt.Sprint("localhost:", p.Proxies),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12})))
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = conn.Close() })
	md := metadata.MD{}
	md.Append("authorization", authorization...)
	s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(metadata.NewOutgoingContext(ctx, md))
	if err != nil {
		p.t.Fatal(err)
	}
	fields := map[string]any{"dataplane.proxyType": proxyType}
	if resource != "" {
		fields["dataplane.resource"] = resource
	}
	m, err := structpb.NewStruct(fields)
	if err != nil {
		p.t.Fatal(err)
	}
	_ = s.Send(&discoveryv3.DiscoveryRequest{Node: &corev3.Node{Id: id, Metadata: m}, TypeUrl: string(envoy.Clusters)}) // Recv tells why not
	return s
}

// secret is the body of a secret.
func secret(typ, mesh, name, data string) string {
	return fmt.Sprintf(`{"type":%q,"mesh":%q,"name":%q,"data":%q}`, typ, mesh, name, base64.StdEncoding.EncodeToString([]byte(data)))
}

// idOf reads the id (jti) of a token.
func idOf(t *testing.T, token string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	return tokenID(t, file)
}

func TestAProxyThatCannotProveWhoItIsIsRefused(t *testing.T) {
	t.Parallel()
	s := newSystem(t, bin, "zone-1")
	g, z := s.Global, s.Zones[0]
	s.aMesh("m")
	s.aMesh("other")
	z.has("/global-secrets/zone-token-signing-public-key-1")
	dataplane := func(body string) string { return g.token("dataplane", body) }
	zoneToken := func(body string) string { return g.token("zone", body) }
	expires := time.Now().Add(2 * time.Second)
	expired := dataplane(`{"mesh":"m","validFor":"1s"}`)
	revoked, revokedZone := dataplane(`{"mesh":"m"}`), zoneToken(`{"zone":"zone-1","scope":["ingress"]}`)
	g.Must(http.MethodPut, "/meshes/m/secrets/dataplane-token-revocations-m", secret("Secret", "m", "dataplane-token-revocations-m", idOf(t, revoked)), 201)
	g.Must(http.MethodPut, "/global-secrets/zone-token-revocations", secret("GlobalSecret", "", "zone-token-revocations", idOf(t, revokedZone)), 201)
	z.has("/meshes/m/secrets/dataplane-token-revocations-m", "/global-secrets/zone-token-revocations")
	changed := []byte(dataplane(`{"mesh":"m"}`))
	if at := len(changed) - 10; changed[at] == 'A' { // it stays base64
		changed[at] = 'B'
	} else {
		changed[at] = 'A'
	}
	time.Sleep(time.Until(expires))

	web := sidecar{mesh: "m", name: "web-1", service: "web", port: 1000, servicePort: 1001, tags: map[string]string{"version": "1"}}.json(t)
	zonal := func(kind string) string {
		return object(t, map[string]any{"type": kind, "name": "in", "networking": map[string]any{"address": "127.0.0.1", "port": 1002}})
	}
	for _, tt := range []struct {
		name, proxyType, text string
		auth                  []string
	}{
		{"no token", "dataplane", "no token was presented", nil},
		{"two tokens", "dataplane", "more than one authorization", []string{"a", "b"}},
		{"no JWT", "dataplane", "not a token", []string{"garbage"}},
		{"a changed signature", "dataplane", "signature does not match", []string{string(changed)}},
		{"the key of another mesh", "dataplane", `for the mesh "other"`, []string{dataplane(`{"mesh":"other"}`)}},
		{"another name", "dataplane", `for the proxy "web-2"`, []string{dataplane(`{"mesh":"m","name":"web-2"}`)}},
		{"a tag that the dataplane lacks", "dataplane", `no tag "team"`, []string{dataplane(`{"mesh":"m","tags":{"team":["a"]}}`)}},
		{"a value that is not allowed", "dataplane", `tag "version" has the value "1"`, []string{dataplane(`{"mesh":"m","tags":{"version":["2","3"]}}`)}},
		{"an expired token", "dataplane", "the token is expired", []string{expired}},
		{"a revoked token", "dataplane", "the token is revoked", []string{revoked}},
		{"a zone's token for a dataplane", "dataplane", "a zone token is not accepted", []string{zoneToken(`{"zone":"zone-1","scope":["ingress"]}`)}},
		{"a dataplane's token for an ingress", "ingress", "a dataplane token is not accepted", []string{dataplane(`{"mesh":"m"}`)}},
		{"a token of another zone", "ingress", `for the zone "zone-2"`, []string{zoneToken(`{"zone":"zone-2","scope":["ingress"]}`)}},
		{"an egress's scope for an ingress", "ingress", "not for an ingress", []string{zoneToken(`{"zone":"zone-1","scope":["egress"]}`)}},
		{"an ingress's scope for an egress", "egress", "not for an egress", []string{zoneToken(`{"zone":"zone-1","scope":["ingress"]}`)}},
		{"a revoked token of a zone", "ingress", "the token is revoked", []string{revokedZone}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			id, resource := "m.web-1", web
			switch tt.proxyType {
			case "ingress":
				id, resource = ".in", zonal("ZoneIngress")
			case "egress":
				id, resource = ".in", zonal("ZoneEgress")
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			_, err := z.stream(ctx, id, tt.proxyType, resource, tt.auth...).Recv()
			if st, _ := status.FromError(err); st.Code() != codes.Unknown || !strings.HasPrefix(st.Message(), "authentication failed") ||
				!strings.Contains(st.Message(), tt.text) {
				t.Errorf("it is refused with %v", err)
			}
			z.logs(aSecond, "a proxy is refused", strings.ReplaceAll(tt.text, `"`, `\"`))
		})
	}
	for _, path := range []string{"/meshes/m/dataplanes/web-1", "/zone-ingresses/in", "/zoneegresses/in"} {
		if err := is(z, path, http.StatusNotFound); err != nil {
			t.Errorf("%s, whose proxy was refused: %v", path, err)
		}
	}
	log, err := os.ReadFile(z.logFile())
	if err != nil {
		t.Fatal(err)
	}
	for name, token := range map[string]string{"expired": expired, "revoked": revoked, "revoked zone": revokedZone, "changed": string(changed)} {
		if strings.Contains(string(log), token) {
			t.Errorf("the log shows the token that is %s", name)
		}
	}
}

func TestARevocationEndsStreams(t *testing.T) {
	t.Parallel()
	s := newSystemWith(t, []string{"MERIDIAN_DP_DEREGISTRATION_DELAY=1h"}, "zone-1")
	g, z := s.Global, s.Zones[0]
	s.aMesh("m")
	z.has("/global-secrets/zone-token-signing-public-key-1")
	web := sidecar{mesh: "m", name: "web-1", service: "web", port: freePort(t), servicePort: freePort(t)}
	bad, good := g.token("dataplane", `{"mesh":"m","name":"web-1"}`), g.token("dataplane", `{"mesh":"m","name":"web-2"}`)
	proxy := z.proxy(z.options(bad, web.json(t)))
	web2 := web
	web2.name = "web-2"
	beside := z.proxy(z.options(good, web2.json(t)))
	zoneToken := g.token("zone", `{"zone":"zone-1","scope":["ingress"]}`)
	o := z.options(zoneToken, object(t, map[string]any{
		"type": "ZoneIngress", "name": "in", "networking": map[string]any{"address": "127.0.0.1", "port": freePort(t), "admin": map[string]any{"port": freePort(t)}},
	}))
	o.ProxyType = "ingress"
	ingress := z.proxy(o)
	ended := func(c *envoy.Config) error {
		if c.Connected && c.Streams == 1 {
			return errors.New("connected")
		}
		return nil
	}
	for name, p := range map[string]*envoy.Proxy{"web-1": proxy, "web-2": beside, "ingress": ingress} {
		holds(t, p, 10*time.Second, name+" is configured", envoy.Ready)
	}
	z.shows(web.overview(), true)

	g.Must(http.MethodPut, "/meshes/m/secrets/dataplane-token-revocations-m", secret("Secret", "m", "dataplane-token-revocations-m", "x,"+idOf(t, bad)), 201)
	holds(t, proxy, aSecond, "the stream of a sidecar has ended", ended)
	z.logs(aSecond, "proxy's stream ended", "name=web-1", "the token is revoked")
	z.logs(aSecond, "a proxy is refused", "node=m.web-1", "the token is revoked")
	z.shows(web.overview(), false)

	g.Must(http.MethodPut, "/global-secrets/zone-token-revocations", secret("GlobalSecret", "", "zone-token-revocations", idOf(t, zoneToken)), 201)
	holds(t, ingress, aSecond, "the stream of an ingress has ended", ended)
	z.shows("/zoneingresses+insights/in", false)

	if c := beside.Config(); !c.Connected || c.Streams != 1 {
		t.Errorf("the proxy beside them was disturbed: connected %v, %d streams", c.Connected, c.Streams)
	}
	var i struct{ Items []json.RawMessage }
	if err := json.Unmarshal(z.Must(http.MethodGet, "/meshes/m/dataplanes", "", 200), &i); err != nil || len(i.Items) != 2 {
		t.Errorf("%d dataplanes, %v", len(i.Items), err)
	}
}
