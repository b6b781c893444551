package agent

import (
	"errors"
	"fmt"
	"os"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/meridian-mesh/meridian/api/codec"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/version"
)

// Proxyless is the key in a node's metadata by which a gRPC program asks for configuration that gRPC understands.
const proxyless = "meridian.io/proxyless"

// self is what the agent says of its program.
type self struct {
	mesh, name string
	resource   string // of the file; "" when the Dataplane exists already
}

func newSelf(cfg Config) (*self, error) {
	if cfg.DataplaneFile == "" {
		return &self{mesh: cfg.Mesh, name: cfg.Name}, nil
	}
	raw, err := os.ReadFile(cfg.DataplaneFile)
	if err != nil {
		return nil, fmt.Errorf("dataplaneFile: %w", err)
	}
	d, _ := resource.Lookup(resource.Dataplane)
	head, err := codec.Decode(d, "application/yaml", raw)
	if err != nil {
		return nil, fmt.Errorf("dataplaneFile: %w", err)
	}
	switch {
	case head.Type != "Dataplane":
		return nil, fmt.Errorf("dataplaneFile: type is %q, not Dataplane", head.Type)
	case head.Mesh == "" || head.Name == "":
		return nil, errors.New("dataplaneFile: mesh and name must be set")
	case strings.Contains(head.Mesh, "."):
		return nil, errors.New("dataplaneFile: mesh holds a dot")
	case len(head.Unknown) > 0:
		// The control plane takes them, for clients newer than itself; the agent is as old as its schema.
		return nil, fmt.Errorf("dataplaneFile: a Dataplane has no such fields: %s", strings.Join(head.Unknown, ", "))
	}
	return &self{mesh: head.Mesh, name: head.Name, resource: string(raw)}, nil
}

func (s *self) nodeID() string { return s.mesh + "." + s.name }

// metadata is what the agent and its program say of themselves alike.
func (*self) metadata() map[string]any {
	build := version.Get()
	return map[string]any{
		"dataplane.proxyType": "dataplane",
		proxyless:             "true",
		"version": map[string]any{
			"kumaDp": map[string]any{"version": build.Version, "gitTag": build.Version, "gitCommit": build.Commit, "buildDate": build.Date},
		},
	}
}

// node is how the agent introduces itself; the Dataplane comes along.
func (s *self) node() (*corev3.Node, error) {
	meta := s.metadata()
	if s.resource != "" {
		meta["dataplane.resource"] = s.resource
	}
	m, err := structpb.NewStruct(meta)
	if err != nil {
		return nil, fmt.Errorf("describe the program: %w", err)
	}
	return &corev3.Node{Id: s.nodeID(), UserAgentName: "meridian-agent", Metadata: m}, nil
}
