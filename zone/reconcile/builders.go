package reconcile

import (
	"fmt"

	"github.com/meridian-mesh/meridian/zone/envoy"
	"github.com/meridian-mesh/meridian/zone/mtls"
	"github.com/meridian-mesh/meridian/zone/topology"
)

// AdminCertificates makes the certificates of administration ports. It is [mtls.Authority].
type AdminCertificates interface {
	AdminServer(ca []byte, address string) (*mtls.AdminCertificate, error)
}

// SidecarBuilder is the Builder of sidecars and delegated gateways.
func SidecarBuilder(admin AdminCertificates) Builder { return dataplaneBuilder(admin, envoy.Sidecar) }

// GatewayBuilder is the Builder of builtin gateways.
func GatewayBuilder(admin AdminCertificates) Builder { return dataplaneBuilder(admin, envoy.Gateway) }

func dataplaneBuilder(admin AdminCertificates, generate func(*topology.Mesh, *envoy.Proxy, *envoy.Admin) (*envoy.Output, error)) Builder {
	return func(in *Input) (*envoy.Output, error) {
		cert, err := adminOf(in, admin, in.Dataplane.GetNetworking().GetAddress())
		if err != nil {
			return nil, err
		}
		m := in.Proxy.Metadata
		return generate(in.Mesh, &envoy.Proxy{
			Mesh: in.Proxy.Mesh, Name: in.Proxy.Name, Dataplane: in.Dataplane, AdminAddress: m.AdminAddress, AdminPort: m.AdminPort,
			DNSPort: m.DNSPort, EmptyDNSPort: m.EmptyDNSPort, Features: m.Features,
		}, cert)
	}
}

// IngressBuilder is the Builder of zone ingresses.
func IngressBuilder(admin AdminCertificates) Builder {
	return func(in *Input) (*envoy.Output, error) {
		n := in.World.Ingress(in.Proxy.Name).Spec.GetNetworking()
		cert, err := adminOf(in, admin, n.GetAddress())
		if err != nil {
			return nil, err
		}
		return envoy.Ingress(in.World.Meshes(), zoneProxy(in, n.GetAddress(), n.GetPort()), cert)
	}
}

// EgressBuilder is the Builder of zone egresses.
func EgressBuilder(admin AdminCertificates) Builder {
	return func(in *Input) (*envoy.Output, error) {
		n := in.World.Egress(in.Proxy.Name).Spec.GetNetworking()
		cert, err := adminOf(in, admin, n.GetAddress())
		if err != nil {
			return nil, err
		}
		return envoy.Egress(in.World.Meshes(), zoneProxy(in, n.GetAddress(), n.GetPort()), cert)
	}
}

func zoneProxy(in *Input, address string, port uint32) *envoy.ZoneProxy {
	return &envoy.ZoneProxy{
		Zone: in.World.Zone(), Name: in.Proxy.Name, Address: address, Port: port,
		AdminAddress: in.Proxy.Metadata.AdminAddress, AdminPort: in.Proxy.Metadata.AdminPort,
	}
}

// adminOf is what the administration listener of a proxy needs; nil when the zone has no authority for it, or the proxy no
// administration.
func adminOf(in *Input, admin AdminCertificates, address string) (*envoy.Admin, error) {
	ca := in.World.AdminCA()
	if len(ca) == 0 || in.Proxy.Metadata.AdminPort == 0 || address == "" {
		return nil, nil //nolint:nilnil // a proxy without is nothing out of the way
	}
	cert, err := admin.AdminServer(ca, address)
	if err != nil {
		return nil, fmt.Errorf("certificate of the administration port: %w", err)
	}
	return &envoy.Admin{Cert: cert.CertPEM, Key: cert.KeyPEM, CA: cert.CAPEM}, nil
}

// ProxylessBuilder is the Builder of gRPC programs that speak xDS themselves.
func ProxylessBuilder(in *Input) (*envoy.Output, error) {
	return envoy.Proxyless(in.Mesh, &envoy.Proxy{Mesh: in.Proxy.Mesh, Name: in.Proxy.Name, Dataplane: in.Dataplane})
}
