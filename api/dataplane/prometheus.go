package dataplane

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

// prometheusType is the one type of metrics backend there is.
const prometheusType = "prometheus"

// What holds where a mesh does not say; a mesh that was written through HTTP always does.
const (
	defaultMetricsPort    = 5670
	defaultMetricsPath    = "/metrics"
	defaultMetricsService = "dataplane-metrics"
)

// Prometheus returns how the metrics of a proxy of mesh are exposed: the enabled backend of the mesh, overridden by what
// the proxy says itself, with every default filled in. It is nil when the mesh has metrics off, or on in a way that is not
// Prometheus'. dp may be nil.
//
// Applications whose metrics are aggregated are merged by name: those of the mesh come first, in its order, then those that
// only the proxy has. The result is the caller's own.
func Prometheus(mesh *meshv1.Mesh, dp *meshv1.Dataplane) (*meshv1.PrometheusMetricsBackendConfig, error) {
	backend := enabledMetrics(mesh)
	if backend.GetType() != prometheusType {
		return nil, nil //nolint:nilnil // no metrics is no error
	}
	conf := &meshv1.PrometheusMetricsBackendConfig{}
	if err := unpack(backend.GetConf(), conf); err != nil {
		return nil, fmt.Errorf("metrics backend %q of the mesh: %w", backend.GetName(), err)
	}
	if own := dp.GetMetrics(); own.GetType() == prometheusType {
		override := &meshv1.PrometheusMetricsBackendConfig{}
		if err := unpack(own.GetConf(), override); err != nil {
			return nil, fmt.Errorf("metrics of the dataplane: %w", err)
		}
		merge(conf, override)
	}
	if conf.GetPort() == 0 {
		conf.Port = defaultMetricsPort
	}
	if conf.GetPath() == "" {
		conf.Path = defaultMetricsPath
	}
	if len(conf.GetTags()) == 0 {
		conf.Tags = map[string]string{ServiceTag: defaultMetricsService}
	}
	for _, a := range conf.GetAggregate() {
		if a.GetPath() == "" {
			a.Path = defaultMetricsPath
		}
	}
	return conf, nil
}

// Aggregated reports whether the metrics of an application are served with those of the proxy: unless it says otherwise.
func Aggregated(a *meshv1.PrometheusAggregateMetricsConfig) bool {
	return a.GetEnabled() == nil || a.GetEnabled().GetValue()
}

func enabledMetrics(mesh *meshv1.Mesh) *meshv1.MetricsBackend {
	name := mesh.GetMetrics().GetEnabledBackend()
	if name == "" {
		return nil
	}
	for _, b := range mesh.GetMetrics().GetBackends() {
		if b.GetName() == name {
			return b
		}
	}
	return nil
}

// merge lets what override says count. Merging messages is not enough: a wrapped false would not win over a wrapped true.
func merge(conf, override *meshv1.PrometheusMetricsBackendConfig) {
	aggregate := mergeAggregates(conf.GetAggregate(), override.GetAggregate())
	override.Aggregate = nil
	if override.GetSkipMTLS() != nil {
		conf.SkipMTLS = nil
	}
	if conf.GetEnvoy() != nil && override.GetEnvoy().GetUsedOnly() != nil {
		conf.Envoy.UsedOnly = nil
	}
	proto.Merge(conf, override)
	conf.Aggregate = aggregate
}

func mergeAggregates(mesh, own []*meshv1.PrometheusAggregateMetricsConfig) []*meshv1.PrometheusAggregateMetricsConfig {
	merged := make([]*meshv1.PrometheusAggregateMetricsConfig, 0, len(mesh)+len(own))
	byName := make(map[string]*meshv1.PrometheusAggregateMetricsConfig, len(mesh)+len(own))
	for _, list := range [...][]*meshv1.PrometheusAggregateMetricsConfig{mesh, own} {
		for _, a := range list {
			if there := byName[a.GetName()]; there != nil {
				if a.GetEnabled() != nil {
					there.Enabled = nil
				}
				proto.Merge(there, a)
				continue
			}
			byName[a.GetName()] = a
			merged = append(merged, a)
		}
	}
	return merged
}

// unpack fills a message from its free form. Fields that the schema does not have are passed over.
func unpack(s *structpb.Struct, into proto.Message) error {
	if len(s.GetFields()) == 0 {
		return nil
	}
	text, err := protojson.Marshal(s)
	if err != nil {
		return fmt.Errorf("read conf: %w", err)
	}
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(text, into); err != nil {
		return fmt.Errorf("read conf: %w", err)
	}
	return nil
}
