package envoy

import (
	"strconv"
	"strings"

	"github.com/meridian-mesh/meridian/api/dataplane"
)

// Names that metrics, dashboards and Kuma's data plane program know.
const (
	adminName        = "kuma:envoy:admin"
	prometheusName   = "kuma:metrics:prometheus"
	hijackerName     = "kuma:metrics:hijacker"
	dnsName          = "kuma:dns"
	probeListener    = "probe:listener"
	directAccessName = "direct_access"
	accessLogSink    = "access_log_sink"

	// TagsHeader carries the tags of the client's proxy, for policies that choose by the source of a request.
	TagsHeader = "x-kuma-tags"
	// listenerTagsKey is where the tags of a listener stand in its metadata.
	listenerTagsKey = "io.kuma.tags"

	// sniMeshTag is the mesh in server names, and in the metadata of endpoints of proxies between zones.
	sniMeshTag = "mesh"
	// egressService is the service that zone egresses have certificates of.
	egressService = "zone-egress"
)

// IdentitySecretName is the name of the secret with a proxy's certificate.
func IdentitySecretName(mesh string) string { return "identity_cert:secret:" + mesh }

// RootsSecretName is the name of the secret with all authorities of a mesh.
func RootsSecretName(mesh string) string { return "mesh_ca:secret:" + mesh }

// SPIFFEID is the identity of a service.
func SPIFFEID(mesh, service string) string { return "spiffe://" + mesh + "/" + service }

// kumaID is the identity that a tag is in a certificate.
func kumaID(key, value string) string { return "kuma://" + key + "/" + value }

// SNI names a part of a service in a mesh: zone ingresses and egresses choose by it.
func SNI(mesh, service string, tags map[string]string) string {
	pairs := make([]string, 0, len(tags)+1)
	withMesh := make(map[string]string, len(tags)+1)
	for k, v := range tags {
		if k != serviceTag {
			withMesh[k] = v
		}
	}
	withMesh[sniMeshTag] = mesh
	for k, v := range sorted(withMesh) {
		pairs = append(pairs, k+"="+v)
	}
	return service + "{" + strings.Join(pairs, ",") + "}"
}

func hostPort(address string, port uint32) string { return dataplane.HostPort(address, port) }

func inboundListenerName(address string, port uint32) string {
	return "inbound:" + hostPort(address, port)
}

func outboundListenerName(address string, port uint32) string {
	return "outbound:" + hostPort(address, port)
}

func localClusterName(port uint32) string { return "localhost:" + strconv.FormatUint(uint64(port), 10) }

func subsetClusterName(service string, n int) string {
	return service + "-_" + strconv.Itoa(n) + "_"
}

// passthroughName is the name of a listener and its cluster for traffic whose destination only the client knows.
func passthroughName(direction string, ipv6 bool) string {
	if ipv6 {
		return direction + ":passthrough:ipv6"
	}
	return direction + ":passthrough:ipv4"
}

// statName is a name in the form that metrics can carry.
func statName(name string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '_', r == '-':
			return r
		default:
			return '_'
		}
	}, name)
}

// socketPath is the path of a unix socket of Kuma's data plane program: cut so that it fits where the kernel takes it.
func socketPath(prefix, name, mesh string) string {
	const maxBytes = 98
	path := "/tmp/" + prefix + "-" + name + "-" + mesh
	if len(path) > maxBytes {
		path = path[:maxBytes]
	}
	return path + ".sock"
}
