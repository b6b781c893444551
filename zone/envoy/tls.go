package envoy

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

const (
	tlsSocket = "envoy.transport_sockets.tls"
	// meshALPN tells the mesh's own TLS from that of workloads, where a listener accepts both.
	meshALPN = "kuma"
)

// mtlsMode is how a mesh secures connections.
type mtlsMode uint8

const (
	mtlsOff mtlsMode = iota
	mtlsPermissive
	mtlsStrict
)

// modeOf is that of the enabled backend.
func modeOf(mesh *meshv1.Mesh) mtlsMode {
	mtls := mesh.GetMtls()
	for _, b := range mtls.GetBackends() {
		switch {
		case b.GetName() != mtls.GetEnabledBackend():
		case b.GetMode() == meshv1.CertificateAuthorityBackend_PERMISSIVE:
			return mtlsPermissive
		default:
			return mtlsStrict
		}
	}
	return mtlsOff
}

func uriSAN(m *matcherv3.StringMatcher) *tlsv3.SubjectAltNameMatcher {
	return &tlsv3.SubjectAltNameMatcher{SanType: tlsv3.SubjectAltNameMatcher_URI, Matcher: m}
}

func bySDS(name string) *tlsv3.SdsSecretConfig {
	return &tlsv3.SdsSecretConfig{Name: name, SdsConfig: viaADS()}
}

// meshTLS is what both ends of a connection inside a mesh have in common: the proxy's own certificate, and a peer whose
// certificate any authority of the mesh has signed for san. The roots are one secret with the authorities of all listed
// backends, so replacing an authority changes secrets alone.
func meshTLS(mesh string, san *matcherv3.StringMatcher, alpn ...string) *tlsv3.CommonTlsContext {
	return &tlsv3.CommonTlsContext{
		AlpnProtocols:                  alpn,
		TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{bySDS(IdentitySecretName(mesh))},
		ValidationContextType: &tlsv3.CommonTlsContext_CombinedValidationContext{
			CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
				DefaultValidationContext: &tlsv3.CertificateValidationContext{
					MatchTypedSubjectAltNames: []*tlsv3.SubjectAltNameMatcher{uriSAN(san)},
				},
				ValidationContextSdsSecretConfig: bySDS(RootsSecretName(mesh)),
			},
		},
	}
}

// serverTLS accepts clients with a certificate of the mesh, whichever service they are. Proxies offer no protocol that it names,
// which Envoy takes; gRPC programs without a proxy insist on agreeing on HTTP/2.
func (p *packer) serverTLS(mesh string) *corev3.TransportSocket {
	return p.tlsSocket(&tlsv3.DownstreamTlsContext{
		CommonTlsContext:         meshTLS(mesh, beginsWith("spiffe://"+mesh+"/"), "h2"),
		RequireClientCertificate: boolean(true),
	})
}

// clientTLS connects to a server that proves to be the service.
//
// grpc: some servers are gRPC programs without a proxy, which insist on agreeing on HTTP/2.
func (p *packer) clientTLS(mesh, service, sni string, grpc bool) *corev3.TransportSocket {
	alpn := []string{meshALPN}
	if grpc {
		alpn = append(alpn, "h2")
	}
	return p.tlsSocket(&tlsv3.UpstreamTlsContext{
		CommonTlsContext: meshTLS(mesh, exactly(SPIFFEID(mesh, service)), alpn...),
		Sni:              sni,
	})
}

func (p *packer) tlsSocket(m proto.Message) *corev3.TransportSocket {
	return &corev3.TransportSocket{
		Name: tlsSocket, ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: p.pack(m)},
	}
}

// anyClientTLS connects to any server of the mesh.
func (p *packer) anyClientTLS(mesh string) *corev3.TransportSocket {
	return p.tlsSocket(&tlsv3.UpstreamTlsContext{CommonTlsContext: meshTLS(mesh, beginsWith("spiffe://"+mesh+"/"), meshALPN)})
}
