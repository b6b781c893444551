package validate

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	// The types that ProxyTemplates use most, beside those of proxytemplate.go.
	_ "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// envoy checks that text, YAML or JSON, is an Envoy resource of message's type; with an Any, of the type that it names.
//
// A type of which this program has the package (clusters, listeners, routes, endpoints, the connection managers) is
// checked in full. There are hundreds of others, and those of APIs that Envoy itself no longer has, such as
// envoy.api.v2.Cluster: of these only the form is judged, and the proxy has the last word.
func (r *report) envoy(at path, text string, message proto.Message) {
	if err := parseEnvoy(text, message); err != nil {
		r.addf(at, "native Envoy resource is not valid: %s", reason(err))
	}
}

func parseEnvoy(text string, message proto.Message) error {
	var doc yaml.Node
	if err := yaml.Unmarshal([]byte(text), &doc); err != nil {
		return errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if hasAlias(&doc) {
		return errors.New("aliases are not supported")
	}
	var content any
	if err := doc.Decode(&content); err != nil {
		return errors.New(strings.TrimPrefix(err.Error(), "yaml: "))
	}
	root, ok := content.(map[string]any)
	if !ok {
		return errors.New("it is not an object")
	}
	if isAny := message.ProtoReflect().Descriptor().FullName() == "google.protobuf.Any"; isAny && root["@type"] == nil {
		return errors.New("it has no @type")
	}
	known, err := replaceUnknown(content)
	if err != nil {
		return err
	}
	asJSON, err := json.Marshal(known)
	if err != nil {
		return fmt.Errorf("it has no JSON form: %w", err)
	}
	return protojson.Unmarshal(asJSON, message) //nolint:wrapcheck // the caller says what was being done
}

// hasAlias reports whether a document repeats parts of itself. A few bytes could stand for gigabytes then.
func hasAlias(n *yaml.Node) bool {
	return n.Kind == yaml.AliasNode || slices.ContainsFunc(n.Content, hasAlias)
}

// replaceUnknown puts an empty message in the place of every one whose type this program does not have, so that what is
// around it can be checked. It reports types that there cannot be.
func replaceUnknown(v any) (any, error) {
	var err error
	switch v := v.(type) {
	case map[string]any:
		if url, ok := v["@type"].(string); ok {
			switch known, err := knownType(url); {
			case err != nil:
				return nil, err
			case !known:
				return map[string]any{"@type": "type.googleapis.com/google.protobuf.Empty", "value": map[string]any{}}, nil
			}
		}
		for k := range v {
			if v[k], err = replaceUnknown(v[k]); err != nil {
				return nil, err
			}
		}
	case []any:
		for i := range v {
			if v[i], err = replaceUnknown(v[i]); err != nil {
				return nil, err
			}
		}
	}
	return v, nil
}

func knownType(url string) (bool, error) {
	name := protoreflect.FullName(url[strings.LastIndexByte(url, '/')+1:])
	if _, err := protoregistry.GlobalTypes.FindMessageByName(name); err == nil {
		return true, nil
	}
	first, _, _ := strings.Cut(string(name), ".")
	if !name.IsValid() || first != "envoy" && first != "udpa" && first != "xds" ||
		protoregistry.GlobalFiles.NumFilesByPackage(name.Parent()) > 0 {
		return false, fmt.Errorf("unknown message type %q", clip(string(name)))
	}
	return false, nil
}
