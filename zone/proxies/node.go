package proxies

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/version"
)

// Kind is what a proxy is for.
type Kind uint8

// The kinds of proxies.
const (
	Sidecar Kind = iota // also gateways: whatever a Dataplane stands for
	Ingress
	Egress
)

// kindRow is what there is to know of a kind.
type kindRow struct {
	name, proxyType string
	main, insight   resource.Type
}

var kinds = [...]kindRow{
	Sidecar: {"sidecar", "dataplane", resource.Dataplane, resource.DataplaneInsight},
	Ingress: {"ingress", "ingress", resource.ZoneIngress, resource.ZoneIngressInsight},
	Egress:  {"egress", "egress", resource.ZoneEgress, resource.ZoneEgressInsight},
}

// String names the kind in logs and metrics.
func (k Kind) String() string { return kinds[k].name }

// Type is the type of the resources that stand for proxies of the kind.
func (k Kind) Type() resource.Type { return kinds[k].main }

// kindOf returns the kind that a resource type stands for.
func kindOf(t string) (Kind, bool) {
	i := slices.IndexFunc(kinds[:], func(row kindRow) bool { return string(row.main) == t })
	return Kind(max(i, 0)), i >= 0
}

// kindOfInsight returns the kind whose insights have a resource type.
func kindOfInsight(t string) Kind {
	return Kind(slices.IndexFunc(kinds[:], func(row kindRow) bool { return string(row.insight) == t })) //nolint:gosec // one of them
}

// NodeID is the key of a proxy's configuration. It is the id of the proxy's node, except that egresses are kept apart from
// ingresses, whose nodes may have the same id. mesh is "" for both.
func NodeID(kind Kind, mesh, name string) string {
	if kind == Egress {
		return "egress/." + name // parseNode takes no mesh with such a name
	}
	return mesh + "." + name
}

// Metadata is what a proxy tells of itself. It is shared and never changes.
type Metadata struct {
	// AdminAddress and AdminPort are where Envoy's own administration listens; an address that is "" or a loopback one, or all of
	// them. Port 0: it has none.
	AdminAddress string
	AdminPort    uint32
	// DNSPort and EmptyDNSPort are those of kuma-dp; 0: none.
	DNSPort, EmptyDNSPort uint32
	// Features are what the data plane program announced, such as "feature-tcp-accesslog-via-named-pipe".
	Features []string
	// Dynamic is what the user of kuma-dp added.
	Dynamic map[string]string
	// Version is never nil.
	Version *meshv1.Version
}

// node is what the first request of a stream says of its proxy.
type node struct {
	kind       Kind
	proxyless  bool
	mesh, name string
	metadata   Metadata
	// resource is the text of the resource that the proxy brought, "" when it brought none.
	resource string
}

func (n *node) id() string { return NodeID(n.kind, n.mesh, n.name) }

func (n *node) key() store.Key {
	return store.Key{Type: string(n.kind.Type()), Mesh: n.mesh, Name: n.name}
}

func (n *node) insightKey() store.Key {
	return store.Key{Type: string(kinds[n.kind].insight), Mesh: n.mesh, Name: n.name}
}

// Bounds on what is taken from metadata, which anybody may send who reaches the port.
const (
	maxNodeIDBytes   = 1024
	maxResourceBytes = 1 << 20
	maxTextBytes     = 256 // of a version, a feature, a name or a value
	maxEntries       = 64  // of features, dependencies and dynamic metadata
)

// Names in the metadata of a node.
const (
	metaAdminPort    = "dataplane.admin.port"
	metaAdminAddress = "dataplane.admin.address"
	metaDNSPort      = "dataplane.dns.port"
	metaEmptyDNSPort = "dataplane.dns.empty.port"
	metaProxyType    = "dataplane.proxyType"
	metaResource     = "dataplane.resource"
	metaDynamic      = "dynamicMetadata"
	metaFeatures     = "features"
	metaVersion      = "version"
	metaProxyless    = "meridian.io/proxyless"
)

// parseNode reads the node of a stream's first request. It says what is wrong with one that cannot be a proxy's; what it does
// not know in the metadata it leaves alone.
func parseNode(n *corev3.Node) (*node, error) {
	id := n.GetId()
	switch {
	case id == "":
		return nil, errors.New("the first request names no node")
	case len(id) > maxNodeIDBytes || !utf8.ValidString(id) || strings.ContainsRune(id, 0):
		return nil, errors.New("the node's id is too long, or no text")
	}
	mesh, name, ok := strings.Cut(id, ".")
	if !ok || name == "" {
		return nil, fmt.Errorf("the node's id %q is not of the form <mesh>.<name>, or .<name> for an ingress or egress", clip(id))
	}
	fields := n.GetMetadata().GetFields()
	if strings.ContainsRune(mesh, '/') { // else it could be taken for an egress: see NodeID
		return nil, fmt.Errorf("the node's id %q names no mesh", clip(id))
	}
	parsed := &node{mesh: mesh, name: name}
	var err error
	if parsed.kind, err = parseKind(text(fields[metaProxyType]), mesh); err != nil {
		return nil, err
	}
	parsed.proxyless = strings.HasPrefix(n.GetUserAgentName(), "gRPC") || truth(fields[metaProxyless])
	m := &parsed.metadata
	for _, port := range []struct {
		name string
		to   *uint32
	}{
		{metaAdminPort, &m.AdminPort}, {metaDNSPort, &m.DNSPort}, {metaEmptyDNSPort, &m.EmptyDNSPort},
	} {
		if *port.to, err = parsePort(fields[port.name]); err != nil {
			return nil, fmt.Errorf("%s: %w", port.name, err)
		}
	}
	m.AdminAddress = text(fields[metaAdminAddress])
	switch m.AdminAddress {
	case "", "127.0.0.1", "0.0.0.0", "::1", "::":
	default: // else the proxy would be made to pass requests on to whatever is there
		return nil, fmt.Errorf("%s: %q is not an address of the proxy's own host", metaAdminAddress, clip(m.AdminAddress))
	}
	m.Features = parseFeatures(fields[metaFeatures])
	m.Dynamic = parseStrings(fields[metaDynamic])
	m.Version = parseVersion(fields[metaVersion].GetStructValue())
	if parsed.resource = text(fields[metaResource]); len(parsed.resource) > maxResourceBytes {
		return nil, fmt.Errorf("%s: longer than %d bytes", metaResource, maxResourceBytes)
	}
	return parsed, nil
}

func parseKind(proxyType, mesh string) (Kind, error) {
	kind := slices.IndexFunc(kinds[:], func(row kindRow) bool { return row.proxyType == cmp.Or(proxyType, kinds[Sidecar].proxyType) })
	switch {
	case kind < 0:
		return 0, fmt.Errorf("%s: %q is none of dataplane, ingress, egress", metaProxyType, clip(proxyType))
	case Kind(kind) == Sidecar && mesh == "":
		return 0, errors.New("the node's id names no mesh, and its metadata does not say that it is an ingress or egress")
	case Kind(kind) != Sidecar && mesh != "":
		return 0, fmt.Errorf("an %s belongs to no mesh, but the node's id names one", Kind(kind))
	}
	return Kind(kind), nil
}

func text(v *structpb.Value) string { return v.GetStringValue() }

func truth(v *structpb.Value) bool { return v.GetBoolValue() || v.GetStringValue() == "true" }

// parsePort reads a port that is a string or a number; 0 when there is none.
func parsePort(v *structpb.Value) (uint32, error) {
	switch k := v.GetKind().(type) {
	case nil, *structpb.Value_NullValue:
		return 0, nil
	case *structpb.Value_NumberValue:
		if n := k.NumberValue; n >= 0 && n <= 65535 && n == math.Trunc(n) {
			return uint32(n), nil
		}
	case *structpb.Value_StringValue:
		if k.StringValue == "" {
			return 0, nil
		}
		if n, err := strconv.ParseUint(k.StringValue, 10, 16); err == nil {
			return uint32(n), nil
		}
	}
	return 0, errors.New("is not a port")
}

func parseFeatures(v *structpb.Value) []string {
	var list []string
	for _, e := range v.GetListValue().GetValues() {
		if s := text(e); s != "" && len(s) <= maxTextBytes && len(list) < maxEntries {
			list = append(list, s)
		}
	}
	return list
}

// parseStrings reads the entries of a struct that are strings. Of too many, the first by name are taken.
func parseStrings(v *structpb.Value) map[string]string {
	fields := v.GetStructValue().GetFields()
	if len(fields) == 0 {
		return nil
	}
	m := make(map[string]string)
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		s, ok := fields[name].GetKind().(*structpb.Value_StringValue)
		if ok && len(name) <= maxTextBytes && len(m) < maxEntries {
			m[name] = clip(s.StringValue)
		}
	}
	return m
}

func parseVersion(s *structpb.Struct) *meshv1.Version {
	dp := s.GetFields()["kumaDp"].GetStructValue().GetFields()
	envoy := s.GetFields()["envoy"].GetStructValue().GetFields()
	v := &meshv1.Version{
		KumaDp: &meshv1.KumaDpVersion{
			Version: clip(text(dp["version"])), GitTag: clip(text(dp["gitTag"])), GitCommit: clip(text(dp["gitCommit"])),
			BuildDate: clip(text(dp["buildDate"])),
		},
		Envoy: &meshv1.EnvoyVersion{
			Version: clip(text(envoy["version"])), Build: clip(text(envoy["build"])), KumaDpCompatible: truth(envoy["kumaDpCompatible"]),
		},
		Dependencies: parseStrings(s.GetFields()["dependencies"]),
	}
	v.KumaDp.KumaCpCompatible = compatible(v.KumaDp.GetVersion())
	return v
}

// minorsApart is how many minor versions a data plane program may be away from those that are known to work.
const minorsApart = 2

// compatible reports whether a version of kuma-dp is expected to work with this control plane. What cannot be parsed is given
// the benefit of the doubt, and so are previews.
func compatible(kumaDP string) bool {
	if strings.Contains(kumaDP, "preview") {
		return true
	}
	major, minor, ok := version.MajorMinor(kumaDP)
	if !ok {
		return true
	}
	oldestMajor, oldestMinor, _ := version.MajorMinor(version.OldestProxy)
	newestMajor, newestMinor, _ := version.MajorMinor(version.NewestProxy)
	return major >= oldestMajor && major <= newestMajor &&
		(major > oldestMajor || minor >= oldestMinor-minorsApart) && (major < newestMajor || minor <= newestMinor+minorsApart)
}

// clip bounds a text that a proxy chose, and makes it valid UTF-8: what is stored must be.
func clip(s string) string { return clipTo(s, maxTextBytes) }

func clipTo(s string, maxBytes int) string {
	if len(s) > maxBytes {
		s = s[:maxBytes]
	}
	return strings.ToValidUTF8(s, "")
}
