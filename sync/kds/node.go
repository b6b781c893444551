package kds

import (
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/types/known/structpb"
)

// gRPC metadata keys of a KDS connection. The first four are Kuma's (KDS contract §3); the rest are ours and are
// ignored by Kuma.
const (
	HeaderClientID = "client-id"
	HeaderVersion  = "version"
	HeaderKDS      = "kds-version"
	HeaderFeatures = "features"

	// HeaderPlaneID carries the id of the sender's store, shared by the replicas of a plane.
	HeaderPlaneID = "meridian-plane-id"
	// HeaderSession is random per connection, so that the global knows which RPCs belong together.
	HeaderSession = "meridian-session"
	// HeaderLeaving comes with the last health check of a zone that stops in an orderly way, and in the trailer of a stream that a
	// global ends so that the zone connects anew, to another replica of it where there is one.
	HeaderLeaving = "meridian-leaving"
	// HeaderClusterID is sent by the global in the response headers of the sync streams.
	HeaderClusterID = "meridian-cluster-id"
)

// Feature strings (KDS contract §5).
const (
	// FeaturePing in the gRPC header: the zone sends health checks, so a session without them may be cut.
	FeaturePing = "zone-ping-health"
	// FeatureHashSuffix: in the header, the zone's names are unique as they are; in the node, it takes hashed names.
	FeatureHashSuffix = "hash-suffix"
	// FeatureInspect in the header: the zone answers the questions about proxies that only Meridian asks ([Query]). Only
	// Meridian sends it.
	FeatureInspect = "meridian-inspect-1"
	// FeatureResume in the node: the sender understands Token, pages, and the times label. Only Meridian sends it.
	FeatureResume = "meridian-resume-1"
)

// Version is the build information in a node's metadata.
type Version struct {
	Version, GitTag, GitCommit, BuildDate string
}

// Node is what a subscriber says about itself in the first request of a type.
type Node struct {
	// ID is the zone's name, in both directions.
	ID string
	// InstanceID is the process; PlaneID the store it stands on.
	InstanceID, PlaneID string
	Version             Version
	// Config is the sender's effective configuration as JSON, without secrets.
	Config   string
	Features []string
	// Resume is the Token to go on from, if any.
	Resume string
}

// Has reports whether the node announced a feature.
func (n Node) Has(feature string) bool { return slices.Contains(n.Features, feature) }

const (
	metaVersion  = "version"
	metaConfig   = "config"
	metaInstance = "control-plane-id"
	metaFeatures = "features"
	metaPlane    = "meridian-plane-id"
	metaResume   = "meridian-resume"
)

func str(s string) *structpb.Value { return structpb.NewStringValue(s) }

// proto renders the node with its metadata.
func (n Node) proto() *corev3.Node {
	features := make([]*structpb.Value, len(n.Features))
	for i, f := range n.Features {
		features[i] = str(f)
	}
	meta := map[string]*structpb.Value{
		metaVersion: structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{
			"kumaCp": structpb.NewStructValue(&structpb.Struct{Fields: map[string]*structpb.Value{
				"version":   str(n.Version.Version),
				"gitTag":    str(n.Version.GitTag),
				"gitCommit": str(n.Version.GitCommit),
				"buildDate": str(n.Version.BuildDate),
			}}),
		}}),
		metaConfig:   str(n.Config),
		metaInstance: str(n.InstanceID),
		metaFeatures: structpb.NewListValue(&structpb.ListValue{Values: features}),
		metaPlane:    str(n.PlaneID),
	}
	if n.Resume != "" {
		meta[metaResume] = str(n.Resume)
	}
	return &corev3.Node{Id: n.ID, Metadata: &structpb.Struct{Fields: meta}}
}

// nodeOf reads what proto wrote, or what Kuma writes. Every part may be absent.
func nodeOf(p *corev3.Node) Node {
	field := p.GetMetadata().GetFields()
	cp := field[metaVersion].GetStructValue().GetFields()["kumaCp"].GetStructValue().GetFields()
	n := Node{
		ID:         p.GetId(),
		InstanceID: field[metaInstance].GetStringValue(),
		PlaneID:    field[metaPlane].GetStringValue(),
		Config:     field[metaConfig].GetStringValue(),
		Resume:     field[metaResume].GetStringValue(),
		Version: Version{
			Version:   cp["version"].GetStringValue(),
			GitTag:    cp["gitTag"].GetStringValue(),
			GitCommit: cp["gitCommit"].GetStringValue(),
			BuildDate: cp["buildDate"].GetStringValue(),
		},
	}
	for _, v := range field[metaFeatures].GetListValue().GetValues() {
		if s := v.GetStringValue(); s != "" {
			n.Features = append(n.Features, s)
		}
	}
	return n
}
