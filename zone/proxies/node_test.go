package proxies

import (
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
)

func TestCompatibleVersions(t *testing.T) {
	for v, want := range map[string]bool{
		"2.0.8": true, "2.13.7": true, "2.15.0": true, "2.16.0": false, "1.8.0": false, "3.0.0": false,
		"": true, "dev": true, "2.99.0-preview.vabc": true, "v2.1.0": true,
	} {
		if got := compatible(v); got != want {
			t.Errorf("%q is compatible: %v", v, got)
		}
	}
}

func TestANodeIsRefusedWith(t *testing.T) {
	for name, n := range map[string]*corev3.Node{
		"no id":                        aNode("", nil),
		"no dot":                       aNode("web", nil),
		"no name":                      aNode("default.", nil),
		"no mesh":                      aNode(".web", nil),
		"the key of an egress":         aNode("egress/.web", nil),
		"an ingress in a mesh":         aNode("default.in", map[string]any{"dataplane.proxyType": "ingress"}),
		"an unknown type":              aNode("default.a", map[string]any{"dataplane.proxyType": "toaster"}),
		"an admin port that is none":   aNode("default.a", map[string]any{"dataplane.admin.port": "65536"}),
		"an admin port with a part":    aNode("default.a", map[string]any{"dataplane.admin.port": 1.5}),
		"an admin address elsewhere":   aNode("default.a", map[string]any{"dataplane.admin.address": "169.254.169.254"}),
		"an admin address that is one": aNode("default.a", map[string]any{"dataplane.admin.address": "localhost.evil.example"}),
		"a long id":                    aNode("default."+strings.Repeat("a", 2000), nil),
	} {
		if parsed, err := parseNode(n); err == nil {
			t.Errorf("%s: it is read as %+v", name, parsed)
		}
	}
}

func TestANodeIsRead(t *testing.T) {
	n, err := parseNode(aNode("default.web.1", map[string]any{
		"dataplane.admin.port": "9901", "dataplane.admin.address": "127.0.0.1", "dataplane.dns.port": "15054", "dataplane.dns.empty.port": 15055,
		"features": []any{"a", 1, "b"}, "dynamicMetadata": map[string]any{"x": "y", "z": 1}, "meridian.io/proxyless": "true",
		"version": map[string]any{
			"kumaDp": map[string]any{"version": "2.0.8"}, "envoy": map[string]any{"version": "1.24.0", "kumaDpCompatible": true},
			"dependencies": map[string]any{"coredns": "1.8"},
		},
	}))
	if err != nil {
		t.Fatal(err)
	}
	m := n.metadata
	if n.mesh != "default" || n.name != "web.1" || !n.proxyless || m.AdminPort != 9901 || m.DNSPort != 15054 || m.EmptyDNSPort != 15055 ||
		len(m.Features) != 2 || len(m.Dynamic) != 1 || !m.Version.GetKumaDp().GetKumaCpCompatible() ||
		!m.Version.GetEnvoy().GetKumaDpCompatible() || m.Version.GetDependencies()["coredns"] != "1.8" {
		t.Errorf("it is read as %+v", n)
	}
	if n, err := parseNode(&corev3.Node{Id: "default.client", UserAgentName: "gRPC Go"}); err != nil || !n.proxyless {
		t.Errorf("a gRPC client is %+v %v", n, err)
	}
}

// FuzzNode feeds whatever decodes as a node to the parser, and to the reading of the resource in it.
func FuzzNode(f *testing.F) {
	for _, n := range []*corev3.Node{backendNode(), ingressNode(), aNode("default.a", map[string]any{"features": []any{1}})} {
		b, err := proto.Marshal(n)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var raw corev3.Node
		if proto.Unmarshal(b, &raw) != nil {
			return
		}
		n, err := parseNode(&raw)
		if err != nil {
			return
		}
		if n.name == "" || (n.kind == Sidecar) == (n.mesh == "") || n.metadata.Version == nil || n.metadata.AdminPort > 65535 {
			t.Errorf("it is read as %+v", n)
		}
		if _, err := proto.Marshal(n.metadata.Version); err != nil {
			t.Errorf("its version cannot be stored: %v", err)
		}
		_, _ = decodeBrought(n)
	})
}
