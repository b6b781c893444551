package mtls

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
)

// AllRootsName is the name of the secret with the authorities of all meshes.
const AllRootsName = "mesh_ca:secret:all"

// IdentityName is the name of the secret with a proxy's certificate and key.
func IdentityName(mesh string) string { return "identity_cert:secret:" + mesh }

// RootsName is the name of the secret with the authorities of a mesh.
func RootsName(mesh string) string { return "mesh_ca:secret:" + mesh }

// IdentitySecret is an identity as Envoy takes it.
func IdentitySecret(mesh string, id *Identity) *tlsv3.Secret {
	return &tlsv3.Secret{
		Name: IdentityName(mesh),
		Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: inline(id.CertPEM),
			PrivateKey:       inline(id.KeyPEM),
		}},
	}
}

// RootsSecret is what the proxies of a mesh trust, as Envoy takes it.
func RootsSecret(mesh string, r *Roots) *tlsv3.Secret { return rootsSecret(RootsName(mesh), r) }

// AllRootsSecret is what a gateway that serves all meshes trusts, as Envoy takes it.
func AllRootsSecret(r *Roots) *tlsv3.Secret { return rootsSecret(AllRootsName, r) }

func rootsSecret(name string, r *Roots) *tlsv3.Secret {
	return &tlsv3.Secret{
		Name: name,
		Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: inline(r.PEM)}},
	}
}

func inline(b []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
}
