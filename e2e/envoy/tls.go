package envoy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	upstreamv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
)

// secretLookup finds a secret by name, nil when there is none.
type secretLookup func(name string) *tlsv3.Secret

// upstreamTLS is the configuration of a client's transport socket, nil for a plain one.
func upstreamTLS(socket *corev3.TransportSocket, secret secretLookup) (*tls.Config, error) {
	ctx := &tlsv3.UpstreamTlsContext{}
	if ok, err := readTLS(socket, ctx); !ok {
		return nil, err
	}
	config, verify, err := commonTLS(ctx.GetCommonTlsContext(), secret)
	if err != nil {
		return nil, err
	}
	config.ServerName = ctx.GetSni()
	// Envoy checks the chain and the configured names, never the name that was dialed: verify does that.
	config.InsecureSkipVerify = true //nolint:gosec // see above
	if verify != nil {
		config.VerifyConnection = func(s tls.ConnectionState) error { return verify(s.PeerCertificates, x509.ExtKeyUsageServerAuth) }
	}
	return config, nil
}

// downstreamTLS is the configuration of a server's transport socket, nil for a plain one.
func downstreamTLS(socket *corev3.TransportSocket, secret secretLookup) (*tls.Config, error) {
	ctx := &tlsv3.DownstreamTlsContext{}
	if ok, err := readTLS(socket, ctx); !ok {
		return nil, err
	}
	config, verify, err := commonTLS(ctx.GetCommonTlsContext(), secret)
	if err != nil {
		return nil, err
	}
	if len(config.Certificates) == 0 {
		return nil, errors.New("a server without certificate")
	}
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if slices.ContainsFunc(hello.SupportedProtos, func(p string) bool { return slices.Contains(config.NextProtos, p) }) {
			return nil, nil
		}
		// Envoy goes on without a protocol where it knows none of the client's; the server of this program would refuse.
		without := config.Clone()
		without.NextProtos = nil
		return without, nil
	}
	switch {
	case ctx.GetRequireClientCertificate().GetValue():
		config.ClientAuth = tls.RequireAnyClientCert
	case verify != nil:
		config.ClientAuth = tls.RequestClientCert
	}
	if verify != nil {
		config.VerifyConnection = func(s tls.ConnectionState) error {
			if len(s.PeerCertificates) == 0 {
				return nil // where one is required the handshake has failed already
			}
			return verify(s.PeerCertificates, x509.ExtKeyUsageClientAuth)
		}
	}
	return config, nil
}

// readTLS reads the configuration of a transport socket; ok is false for a plain one.
func readTLS(socket *corev3.TransportSocket, into proto.Message) (ok bool, err error) {
	switch config := socket.GetTypedConfig(); {
	case socket == nil || isRaw(socket):
		return false, nil
	case !config.MessageIs(into):
		return false, fmt.Errorf("%w: transport socket %s", ErrUnsupported, config.GetTypeUrl())
	default:
		err := config.UnmarshalTo(into)
		return err == nil, err
	}
}

func isRaw(socket *corev3.TransportSocket) bool {
	return socket.GetTypedConfig().GetTypeUrl() == "type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
}

type verifier func(chain []*x509.Certificate, usage x509.ExtKeyUsage) error

func commonTLS(c *tlsv3.CommonTlsContext, secret secretLookup) (*tls.Config, verifier, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: slices.Clone(c.GetAlpnProtocols())}
	if c.GetTlsParams().GetTlsMinimumProtocolVersion() == tlsv3.TlsParameters_TLSv1_3 {
		config.MinVersion = tls.VersionTLS13
	}
	if c.GetTlsParams().GetTlsMaximumProtocolVersion() == tlsv3.TlsParameters_TLSv1_2 {
		config.MaxVersion = tls.VersionTLS12
	}
	find := func(ref *tlsv3.SdsSecretConfig) (*tlsv3.Secret, error) {
		if s := secret(ref.GetName()); s != nil {
			return s, nil
		}
		return nil, fmt.Errorf("secret %q is not there", ref.GetName())
	}
	certificates := slices.Clone(c.GetTlsCertificates())
	for _, ref := range c.GetTlsCertificateSdsSecretConfigs() {
		s, err := find(ref)
		if err != nil {
			return nil, nil, err
		}
		if s.GetTlsCertificate() == nil {
			return nil, nil, fmt.Errorf("secret %q is not a certificate", ref.GetName())
		}
		certificates = append(certificates, s.GetTlsCertificate())
	}
	for _, cert := range certificates {
		pair, err := tls.X509KeyPair(inline(cert.GetCertificateChain()), inline(cert.GetPrivateKey()))
		if err != nil {
			return nil, nil, fmt.Errorf("certificate: %w", err)
		}
		config.Certificates = append(config.Certificates, pair)
	}

	var contexts []*tlsv3.CertificateValidationContext
	var refs []*tlsv3.SdsSecretConfig
	if v := c.GetValidationContext(); v != nil {
		contexts = append(contexts, v)
	}
	if ref := c.GetValidationContextSdsSecretConfig(); ref != nil {
		refs = append(refs, ref)
	}
	if v := c.GetCombinedValidationContext(); v != nil {
		if d := v.GetDefaultValidationContext(); d != nil {
			contexts = append(contexts, d)
		}
		if ref := v.GetValidationContextSdsSecretConfig(); ref != nil {
			refs = append(refs, ref)
		}
	}
	for _, ref := range refs {
		s, err := find(ref)
		if err != nil {
			return nil, nil, err
		}
		if s.GetValidationContext() == nil {
			return nil, nil, fmt.Errorf("secret %q is not a validation context", ref.GetName())
		}
		contexts = append(contexts, s.GetValidationContext())
	}
	if len(contexts) == 0 {
		return config, nil, nil
	}
	verify, err := verifierOf(contexts)
	return config, verify, err
}

func inline(d *corev3.DataSource) []byte {
	if s := d.GetInlineString(); s != "" {
		return []byte(s)
	}
	return d.GetInlineBytes()
}

// verifierOf merges the contexts as Envoy merges a combined one: repeated fields add up.
func verifierOf(contexts []*tlsv3.CertificateValidationContext) (verifier, error) {
	var roots *x509.CertPool
	var names []*tlsv3.SubjectAltNameMatcher
	for _, c := range contexts {
		if ca := inline(c.GetTrustedCa()); len(ca) > 0 {
			if roots == nil {
				roots = x509.NewCertPool()
			}
			if !roots.AppendCertsFromPEM(ca) {
				return nil, errors.New("no certificate in trusted_ca")
			}
		}
		if len(c.GetVerifyCertificateHash())+len(c.GetVerifyCertificateSpki()) > 0 || c.GetCrl() != nil {
			return nil, fmt.Errorf("%w: hashes and revocation lists in a validation context", ErrUnsupported)
		}
		names = append(names, c.GetMatchTypedSubjectAltNames()...)
		//nolint:staticcheck // the older field is still valid on the wire
		for _, m := range c.GetMatchSubjectAltNames() {
			names = append(names, &tlsv3.SubjectAltNameMatcher{Matcher: m})
		}
	}
	if roots == nil {
		if len(names) > 0 {
			return nil, errors.New("SAN-based verification of peer certificates without trusted CA is insecure and not allowed")
		}
		return nil, nil
	}
	for _, n := range names {
		if _, err := matchString(n.GetMatcher(), ""); err != nil {
			return nil, err
		}
	}
	return func(chain []*x509.Certificate, usage x509.ExtKeyUsage) error {
		if len(chain) == 0 {
			return errors.New("no certificate from the peer")
		}
		between := x509.NewCertPool()
		for _, c := range chain[1:] {
			between.AddCert(c)
		}
		leaf := *chain[0]
		// The standard library cannot read names such as kuma://version/v2.1 in a critical extension of its own; Envoy
		// compares them as text.
		leaf.UnhandledCriticalExtensions = nil
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
			return err
		}
		if len(names) == 0 {
			return nil
		}
		for _, n := range names {
			for _, san := range altNames(chain[0], n.GetSanType()) {
				if ok, err := matchString(n.GetMatcher(), san); err != nil || ok {
					return err
				}
			}
		}
		return errors.New("no subject alternative name of the peer matches")
	}, nil
}

// altNames are the names of a type in a certificate, all of them for none.
func altNames(c *x509.Certificate, of tlsv3.SubjectAltNameMatcher_SanType) []string {
	var out []string
	all := of == tlsv3.SubjectAltNameMatcher_SAN_TYPE_UNSPECIFIED
	if all || of == tlsv3.SubjectAltNameMatcher_DNS {
		out = append(out, c.DNSNames...)
	}
	if all || of == tlsv3.SubjectAltNameMatcher_URI {
		for _, u := range c.URIs {
			out = append(out, u.String())
		}
	}
	if all || of == tlsv3.SubjectAltNameMatcher_EMAIL {
		out = append(out, c.EmailAddresses...)
	}
	if all || of == tlsv3.SubjectAltNameMatcher_IP_ADDRESS {
		for _, ip := range c.IPAddresses {
			out = append(out, ip.String())
		}
	}
	return out
}

// matchString is Envoy's StringMatcher.
func matchString(m *matcherv3.StringMatcher, s string) (bool, error) {
	fold := func(s string) string {
		if m.GetIgnoreCase() {
			return strings.ToLower(s)
		}
		return s
	}
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		return fold(s) == fold(p.Exact), nil
	case *matcherv3.StringMatcher_Prefix:
		return strings.HasPrefix(fold(s), fold(p.Prefix)), nil
	case *matcherv3.StringMatcher_Suffix:
		return strings.HasSuffix(fold(s), fold(p.Suffix)), nil
	case *matcherv3.StringMatcher_Contains:
		return strings.Contains(fold(s), fold(p.Contains)), nil
	case *matcherv3.StringMatcher_SafeRegex:
		return matchWhole(p.SafeRegex, s)
	}
	return false, fmt.Errorf("%w: string matcher %T", ErrUnsupported, m.GetMatchPattern())
}

// matchWhole matches all of s, as Envoy does.
func matchWhole(m *matcherv3.RegexMatcher, s string) (bool, error) {
	re, err := regexp.Compile(`^(?:` + m.GetRegex() + `)$`)
	if err != nil {
		return false, fmt.Errorf("regex of a matcher: %w", err)
	}
	return re.MatchString(s), nil
}

// httpOptions are the HTTP options of a cluster, nil when it has none.
func httpOptions(c *clusterv3.Cluster) (*upstreamv3.HttpProtocolOptions, error) {
	packed := c.GetTypedExtensionProtocolOptions()["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"]
	if packed == nil {
		return nil, nil
	}
	o := &upstreamv3.HttpProtocolOptions{}
	if err := packed.UnmarshalTo(o); err != nil {
		return nil, fmt.Errorf("cluster %q: HTTP options: %w", c.GetName(), err)
	}
	return o, nil
}

// speaksHTTP2 is whether requests to a cluster are HTTP/2.
func speaksHTTP2(c *clusterv3.Cluster) (bool, error) {
	o, err := httpOptions(c)
	if err != nil {
		return false, err
	}
	//nolint:staticcheck // the older field is still valid on the wire
	return o.GetExplicitHttpConfig().GetHttp2ProtocolOptions() != nil || c.GetHttp2ProtocolOptions() != nil, nil
}

func wantsHTTP2(c *clusterv3.Cluster) error {
	if h2, err := speaksHTTP2(c); err != nil || !h2 {
		return errors.Join(err, fmt.Errorf("cluster %q carries gRPC and is not HTTP/2", c.GetName()))
	}
	return nil
}

// plainConn hides that a connection is TLS, so that net/http looks at the bytes and not at the type.
type plainConn struct{ net.Conn }
