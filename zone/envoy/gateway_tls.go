package envoy

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	"github.com/meridian-mesh/meridian/api/gateway"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/policy"
	"github.com/meridian-mesh/meridian/zone/topology"
)

// minRSABits is the least that Envoy takes of a key.
const minRSABits = 2048

// terminate takes on TLS for a host, with a certificate for each kind of key that the host has one of. It is nil when there is none that
// can be used: the host is not served then.
func (g *gatewayGenerator) terminate(l *gateway.Listener, h *gateway.Host) *corev3.TransportSocket {
	var names, kinds []string
	for i, source := range h.TLS.GetCertificates() {
		name, err := g.serverSecretName(source)
		if err != nil {
			g.warn("%s: port %d, host %s: tls.certificates[%d]: %v", label(g.served.MeshGateway), l.Port, h.Name, i, err)
			continue
		}
		kind, _, _ := strings.Cut(name, ":")
		if slices.Contains(kinds, kind) {
			g.warn("%s: port %d, host %s: tls.certificates[%d]: an earlier one has the same kind of key: it is not used",
				label(g.served.MeshGateway), l.Port, h.Name, i)
			continue
		}
		names, kinds = append(names, name), append(kinds, kind)
	}
	if len(names) == 0 {
		g.warn("%s: port %d: host %s is not served: it has no certificate that can be used", label(g.served.MeshGateway), l.Port, h.Name)
		return nil
	}
	m := &tlsv3.DownstreamTlsContext{
		CommonTlsContext: &tlsv3.CommonTlsContext{
			TlsParams: &tlsv3.TlsParameters{TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2},
		},
		RequireClientCertificate: boolean(false),
	}
	if gateway.HTTP(l.Protocol, h.TLS) {
		m.CommonTlsContext.AlpnProtocols = []string{"h2", "http/1.1"}
	}
	for _, name := range names {
		g.secrets[name] = true
		m.CommonTlsContext.TlsCertificateSdsSecretConfigs = append(m.CommonTlsContext.TlsCertificateSdsSecretConfigs, bySDS(name))
	}
	return g.p.tlsSocket(m)
}

// ServerSecretPrefix is what the names of the certificates of gateways begin with.
const ServerSecretPrefix = "cert."

// certificateName is the name of a secret, or why there is none.
type certificateName struct {
	name string
	err  error
}

// serverSecretName is the name of the secret with the certificate that a data source of a listener stands for: by it proxies ask for it.
// The hosts that routes make of a listener share its sources, whose certificates take long to read.
func (g *gatewayGenerator) serverSecretName(source *systemv1.DataSource) (string, error) {
	n, ok := g.certificates[source]
	if !ok {
		var content []byte
		if content, n.err = load(g.mesh.Secrets, source); n.err == nil {
			var kind string
			_, kind, n.err = serverCertificate(content)
			n.name = ServerSecretPrefix + kind + serverSecretSuffix(source, content)
		}
		g.certificates[source] = n
	}
	return n.name, n.err
}

// serverSecretSuffix is what follows the kind of the key in the name of a secret.
func serverSecretSuffix(source *systemv1.DataSource, content []byte) string {
	if s, ok := source.GetType().(*systemv1.DataSource_Secret); ok {
		return ":secret:" + s.Secret
	}
	// The name of what has none follows from the content, which it does not tell.
	sum := sha256.Sum256(content)
	return ":inline:" + hex.EncodeToString(sum[:8])
}

// ServerSecret is the certificate of a builtin gateway that a secret of its configuration stands for, as Envoy takes it.
func ServerSecret(mesh *topology.Mesh, dp *meshv1.Dataplane, name string) (*tlsv3.Secret, error) {
	configured := mesh.Policies.Match(dp, policy.Options{}).Gateway
	for _, l := range specOf[*meshv1.MeshGateway](configured).GetConf().GetListeners() {
		for _, source := range l.GetTls().GetCertificates() {
			content, err := load(mesh.Secrets, source)
			if err != nil {
				continue
			}
			suffix := serverSecretSuffix(source, content)
			if !strings.HasSuffix(name, suffix) { // those of other names are not read
				continue
			}
			cert, kind, err := serverCertificate(content)
			if err != nil || name != ServerSecretPrefix+kind+suffix {
				continue
			}
			return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: cert}}, nil
		}
	}
	return nil, fmt.Errorf("secret %q: no listener of the gateway has such a certificate", name)
}

// serverCertificate reads a certificate with its chain and its key, which stand in one text of PEM blocks, and the kind of the key: rsa
// or ecdsa. What Envoy would refuse is an error. No error tells of the content.
func serverCertificate(content []byte) (cert *tlsv3.TlsCertificate, kind string, err error) {
	var chain, key []byte
	for rest := content; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		switch {
		case block.Type == "CERTIFICATE":
			chain = append(chain, pem.EncodeToMemory(block)...)
		case !strings.HasSuffix(block.Type, "PRIVATE KEY"): // parameters of a curve, and the like
		case key != nil:
			return nil, "", errors.New("it has more than one private key")
		default:
			key = pem.EncodeToMemory(block)
		}
	}
	switch {
	case chain == nil:
		return nil, "", errors.New("it has no certificate in PEM")
	case key == nil:
		return nil, "", errors.New("it has no private key in PEM")
	}
	pair, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return nil, "", errors.New("its certificate and private key cannot be read, or do not belong together")
	}
	switch k := pair.PrivateKey.(type) {
	case *rsa.PrivateKey:
		if k.N.BitLen() < minRSABits {
			return nil, "", fmt.Errorf("its RSA key has %d bits: Envoy takes no fewer than %d", k.N.BitLen(), minRSABits)
		}
		kind = "rsa"
	case *ecdsa.PrivateKey:
		if k.Curve != elliptic.P256() {
			return nil, "", fmt.Errorf("its key is on the curve %s: Envoy takes P-256", k.Curve.Params().Name)
		}
		kind = "ecdsa"
	default:
		return nil, "", errors.New("its key is neither RSA nor ECDSA")
	}
	return &tlsv3.TlsCertificate{CertificateChain: inline(chain), PrivateKey: inline(key)}, kind, nil
}
