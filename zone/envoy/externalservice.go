package envoy

import (
	"errors"
	"fmt"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/structpb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/zone/topology"
)

// externalCluster connects to external services: of a sidecar those that are reached without an egress, of an egress all.
// Their addresses are part of the cluster.
func (g *draft) externalCluster(mesh *topology.Mesh, ipv6 bool, c *cluster) *clusterv3.Cluster {
	m := &clusterv3.Cluster{
		Name: c.name, AltStatName: altStatName(c.name), ConnectTimeout: seconds(defaultConnectSeconds),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STATIC},
		DnsLookupFamily:      clusterv3.Cluster_V4_ONLY,
	}
	if ipv6 {
		m.DnsLookupFamily = clusterv3.Cluster_AUTO
	}
	if c.protocol.overHTTP() {
		m.TypedExtensionProtocolOptions = g.p.httpOptions(httpVersion(c.protocol), c.timeouts.clusterOptions())
	}
	var usable []topology.Endpoint
	for _, e := range c.endpoints {
		if !isIP(e.Address) {
			m.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STRICT_DNS}
		}
		e.Tags = withTag(e.Tags, externalNameTag, e.ExternalName)
		if tls := e.External.GetNetworking().GetTls(); tls.GetEnabled() {
			context, err := externalTLS(mesh.Secrets, e.Address, tls)
			if err != nil {
				// Without its TLS the service would be reached in a way that nobody asked for: it is not reached.
				g.warn("ExternalService %q: %v", e.ExternalName, err)
				continue
			}
			m.TransportSocketMatches = append(m.TransportSocketMatches, &clusterv3.Cluster_TransportSocketMatch{
				Name: e.ExternalName,
				Match: &structpb.Struct{Fields: map[string]*structpb.Value{
					externalNameTag: structpb.NewStringValue(e.ExternalName),
				}},
				TransportSocket: g.p.tlsSocket(context),
			})
		}
		usable = append(usable, e)
	}
	m.LoadAssignment = assignment(c.name, usable, mesh.Spec.GetRouting().GetLocalityAwareLoadBalancing())
	return m
}

func withTag(tags map[string]string, key, value string) map[string]string {
	out := without(tags)
	out[key] = value
	return out
}

func externalTLS(secrets map[string][]byte, host string, conf *meshv1.ExternalService_Networking_TLS) (*tlsv3.UpstreamTlsContext, error) {
	out := &tlsv3.UpstreamTlsContext{
		CommonTlsContext: &tlsv3.CommonTlsContext{}, Sni: host, AllowRenegotiation: conf.GetAllowRenegotiation().GetValue(),
	}
	if conf.GetServerName() != nil {
		out.Sni = conf.GetServerName().GetValue()
	}
	if conf.GetCaCert() != nil {
		ca, err := load(secrets, conf.GetCaCert())
		if err != nil {
			return nil, fmt.Errorf("networking.tls.caCert: %w", err)
		}
		names := []*tlsv3.SubjectAltNameMatcher{{SanType: sanTypeOf(host), Matcher: exactly(host)}}
		if out.GetSni() != "" && out.GetSni() != host {
			names = append(names, &tlsv3.SubjectAltNameMatcher{SanType: sanTypeOf(out.GetSni()), Matcher: exactly(out.GetSni())})
		}
		out.CommonTlsContext.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{
			ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: inline(ca), MatchTypedSubjectAltNames: names},
		}
	}
	if conf.GetClientCert() != nil || conf.GetClientKey() != nil {
		cert, err := load(secrets, conf.GetClientCert())
		if err != nil {
			return nil, fmt.Errorf("networking.tls.clientCert: %w", err)
		}
		key, err := load(secrets, conf.GetClientKey())
		if err != nil {
			return nil, fmt.Errorf("networking.tls.clientKey: %w", err)
		}
		out.CommonTlsContext.TlsCertificates = []*tlsv3.TlsCertificate{{CertificateChain: inline(cert), PrivateKey: inline(key)}}
	}
	return out, nil
}

func sanTypeOf(host string) tlsv3.SubjectAltNameMatcher_SanType {
	if isIP(host) {
		return tlsv3.SubjectAltNameMatcher_IP_ADDRESS
	}
	return tlsv3.SubjectAltNameMatcher_DNS
}

func inline(b []byte) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: b}}
}

// load returns what a data source of a resource stands for.
func load(secrets map[string][]byte, d *systemv1.DataSource) ([]byte, error) {
	switch t := d.GetType().(type) {
	case *systemv1.DataSource_Secret:
		content, ok := secrets[t.Secret]
		if !ok {
			return nil, fmt.Errorf("there is no secret %q", t.Secret)
		}
		return content, nil
	case *systemv1.DataSource_Inline:
		return t.Inline.GetValue(), nil
	case *systemv1.DataSource_InlineString:
		return []byte(t.InlineString), nil
	case *systemv1.DataSource_File:
		return nil, errors.New("files of the control plane are not read: use a secret")
	default:
		return nil, errors.New("is missing")
	}
}
